"""Reads a .vrt as a mosaic of rasters, and writes a safe description of it for GDAL, which never gets the original.

GDAL reads XML in its own way: attributes count as elements, names are case-insensitive, and the name of a file may be a
connection or another description. So the original is read here, and anything unknown in it is refused.
"""

import html
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple
from xml.etree.ElementTree import Element, ParseError

import defusedxml.ElementTree
import pyproj
from defusedxml.common import DefusedXmlException
from pyproj.exceptions import ProjError

from resources.errors import IntegrityError

MAX_BYTES = 16 << 20
_MAX_SIZE = 2**31 - 1
_MAX_TIMES_READ = 16
"""A pixel of 30 m takes nine of 10 m; sources overlap at the borders of states."""
_UNHEEDED_PIXELS = 1 << 24
_SOURCES = ("SimpleSource", "ComplexSource")
_DATASET = {"SRS", "GeoTransform", "VRTRasterBand"}
_BAND = {"NoDataValue", "HideNoDataValue", *_SOURCES}
_SOURCE = {"SourceFilename", "SourceBand", "SourceProperties", "SrcRect", "DstRect", "NODATA"}
_IGNORED = {
    "Metadata",
    "OverviewList",
    "BlockXSize",
    "BlockYSize",
    "ColorInterp",
    "ColorTable",
    "CategoryNames",
    "Description",
    "GDALRasterAttributeTable",
    "Histograms",
    "UnitType",
    "Offset",
    "Scale",
}
"""Elements that GDAL's tools write and that are not needed."""
_ATTRIBUTES = {
    "VRTDataset": {"rasterXSize", "rasterYSize"},
    "SRS": {"dataAxisToSRSAxisMapping", "coordinateEpoch"},
    "VRTRasterBand": {"dataType", "band", "blockXSize", "blockYSize"},
    "SourceFilename": {"relativeToVRT", "shared"},
    "SourceProperties": {"RasterXSize", "RasterYSize", "DataType", "BlockXSize", "BlockYSize"},
    "SrcRect": {"xOff", "yOff", "xSize", "ySize"},
    "DstRect": {"xOff", "yOff", "xSize", "ySize"},
}
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?", re.ASCII)
_CODE = re.compile(r"(EPSG|ESRI):(\d{1,9})", re.ASCII)
_ODD = re.compile(r"[\0-\x1f\x7f<>\ud800-\udfff]")


class Rectangle(NamedTuple):
    """Columns and rows of a raster."""

    left: float
    top: float
    width: float
    height: float

    def within(self, width: float, height: float) -> float:
        """How many pixels of a raster are inside."""
        cols = min(self.left + self.width, width) - max(self.left, 0)
        rows = min(self.top + self.height, height) - max(self.top, 0)
        return max(cols, 0) * max(rows, 0)

    @property
    def attributes(self) -> str:
        return f'xOff="{self.left!r}" yOff="{self.top!r}" xSize="{self.width!r}" ySize="{self.height!r}"'


class Name(NamedTuple):
    """The file name of a part, as the .vrt gives it: relative to the .vrt, or to the working folder."""

    name: str
    relative: bool


@dataclass(frozen=True)
class Part:
    """A part of a mosaic. `rectangles` are its pixels in the source and in the mosaic; without them, all of the
    source is in the upper left corner.
    """

    named: Name
    nodata: float | None
    rectangles: tuple[Rectangle, Rectangle] | None


@dataclass(frozen=True)
class Source:
    """A raster with one band of bytes that GDAL opens by `name`: a path, or a description that this module wrote.

    `read` is the number of pixels in files that are decoded to read all of it.
    """

    name: str
    width: int
    height: int
    block_width: int
    block_height: int
    read: float


@dataclass(frozen=True)
class Mosaic:
    """The content of a .vrt."""

    width: int
    height: int
    crs: pyproj.CRS | None
    transform: tuple[float, ...]
    nodata: float | None
    hides_nodata: bool
    parts: tuple[Part, ...]

    @property
    def names(self) -> list[Name]:
        """The names of its files, each once, in order."""
        return list(dict.fromkeys(part.named for part in self.parts))

    def described(self, sources: Mapping[Name, Source]) -> Source:
        """The mosaic as a raster, given the source of each name.

        Raises IntegrityError if sources would be read too many times.
        """
        size = self.width * self.height
        read, length, written = 0.0, 0, []
        for part in self.parts:
            source = sources[part.named]
            there, here = part.rectangles or [Rectangle(0, 0, source.width, source.height)] * 2
            share = there.within(source.width, source.height) / (source.width * source.height)
            read += max(share * source.read, here.within(self.width, self.height))
            if read > _MAX_TIMES_READ * size + _UNHEEDED_PIXELS:
                raise IntegrityError(
                    f"its sources have over {_MAX_TIMES_READ} times as many pixels as it has"
                )
            written.append(_element(source, there, here, part.nodata))
            length += len(written[-1])
            if length > 2 * MAX_BYTES:
                raise IntegrityError("it contains too many sources")
        place = f"<SRS>{html.escape(self.crs.to_wkt())}</SRS>" if self.crs else ""
        if self.transform:
            place += f"<GeoTransform>{','.join(map(repr, self.transform))}</GeoTransform>"
        nodata = ""
        if self.nodata is not None:
            hides = int(self.hides_nodata)
            nodata = f"<NoDataValue>{self.nodata!r}</NoDataValue><HideNoDataValue>{hides}</HideNoDataValue>"
        description = (
            f'<VRTDataset rasterXSize="{self.width}" rasterYSize="{self.height}">{place}'
            f'<VRTRasterBand dataType="Byte" band="1">{nodata}{"".join(written)}</VRTRasterBand></VRTDataset>'
        )
        # GDAL's blocks of a .vrt have at most 128 x 128 pixels unless it says otherwise
        block = min(self.width, 128), min(self.height, 128)
        return Source(description, self.width, self.height, *block, read)


def _element(source: Source, there: Rectangle, here: Rectangle, nodata: float | None) -> str:
    kind, besides = (
        ("SimpleSource", "") if nodata is None else ("ComplexSource", f"<NODATA>{nodata!r}</NODATA>")
    )
    return (
        f'<{kind}><SourceFilename relativeToVRT="0">{html.escape(source.name)}</SourceFilename>'
        # with these properties GDAL opens a few hundred sources at a time, not all of them
        f'<SourceBand>1</SourceBand><SourceProperties RasterXSize="{source.width}" RasterYSize="{source.height}" '
        f'DataType="Byte" BlockXSize="{source.block_width}" BlockYSize="{source.block_height}"/>'
        f"<SrcRect {there.attributes}/><DstRect {here.attributes}/>{besides}</{kind}>"
    )


def plain_name(path: str) -> str:
    """The path of a file, if GDAL cannot take it for anything else. Raises IntegrityError if it might."""
    if path.startswith("/vsi") or _ODD.search(path):
        raise IntegrityError(f"{path!r} may be taken for more than the path of a file; rename it")
    return path


def read_mosaic(data: bytes) -> Mosaic:
    """Parse a .vrt of at most `MAX_BYTES`. Raises IntegrityError if it does more than combine rasters."""
    if len(data) > MAX_BYTES:
        raise IntegrityError(f"it has more than {MAX_BYTES >> 20} MiB")
    try:
        root = defusedxml.ElementTree.fromstring(data)
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
        raise IntegrityError(f"it is not well-formed XML: {error}") from None
    if root.tag != "VRTDataset":
        raise IntegrityError(f"it has the root {root.tag[:50]!r} and is not a .vrt")
    held = _children(root, _DATASET)
    band = _one(held, "VRTRasterBand")
    if band is None or band.get("dataType", "Byte") != "Byte" or band.get("band", "1") != "1":
        raise IntegrityError("it must have one band of bytes")
    inside = _children(band, _BAND)
    return Mosaic(
        _size(root, "rasterXSize"),
        _size(root, "rasterYSize"),
        _crs(_text(_one(held, "SRS"))),
        _transform(_text(_one(held, "GeoTransform"))),
        _optional(_text(_one(inside, "NoDataValue"))),
        _flag(_text(_one(inside, "HideNoDataValue")) or "0"),
        tuple(_part(element) for element in inside if element.tag in _SOURCES),
    )


def _part(element: Element) -> Part:
    held = _children(element, _SOURCE)
    name = _one(held, "SourceFilename")
    nodata = _text(_one(held, "NODATA"))
    if name is None or not _text(name):
        raise IntegrityError("one of its sources has no name")
    if _text(_one(held, "SourceBand")) not in ("", "1") or (nodata and element.tag == "SimpleSource"):
        raise IntegrityError("it must take the first band of each source")
    return Part(
        Name(_text(name), _flag(name.get("relativeToVRT", "0"))),
        _optional(nodata),
        _rectangles(_one(held, "SrcRect"), _one(held, "DstRect")),
    )


def _children(element: Element, known: set[str]) -> list[Element]:
    """The relevant elements inside one. Raises IntegrityError for unknown ones, and for unknown attributes."""
    _require_known(element, element.attrib.keys() - _ATTRIBUTES.get(element.tag, set()))
    found = []
    for child in element:
        if child.tag in _IGNORED:
            continue
        _require_known(child, {child.tag} - known)
        _require_known(child, child.attrib.keys() - _ATTRIBUTES.get(child.tag, set()))
        if child.tag not in ("VRTRasterBand", *_SOURCES):
            _require_known(child, {inner.tag for inner in child})
        found.append(child)
    return found


def _require_known(element: Element, unknown: set[str]) -> None:
    if unknown:
        what = f"{element.tag[:50]} {min(unknown)[:50]}" if min(unknown) != element.tag else element.tag[:50]
        raise IntegrityError(f"it has {what!r}, and a .vrt may only combine rasters")


def _one(elements: list[Element], tag: str) -> Element | None:
    found = [element for element in elements if element.tag == tag]
    if len(found) > 1:
        raise IntegrityError(f"it has {tag} more than once")
    return found[0] if found else None


def _text(element: Element | None) -> str:
    # not stripped: a name with a space at an end is another file
    return "" if element is None else element.text or ""


def _number(text: str) -> float:
    found = _NUMBER.fullmatch(text.strip(" \t\r\n"))
    if not found or not math.isfinite(float(found[0])):
        raise IntegrityError(f"it has {text[:50]!r} in place of a number")
    return float(found[0])


def _optional(text: str) -> float | None:
    return _number(text) if text else None


def _flag(text: str) -> bool:
    if text not in ("0", "1"):
        raise IntegrityError(f"it has {text[:50]!r} in place of 0 or 1")
    return text == "1"


def _size(element: Element, name: str) -> int:
    found = _number(element.get(name, ""))
    if not (found.is_integer() and 1 <= found <= _MAX_SIZE):
        raise IntegrityError(f"its {name} is {found:g}")
    return int(found)


def _transform(text: str) -> tuple[float, ...]:
    found = tuple(map(_number, text.split(","))) if text else ()
    if len(found) not in (0, 6):
        raise IntegrityError("its GeoTransform must have six numbers")
    return found


def _rectangles(there: Element | None, here: Element | None) -> tuple[Rectangle, Rectangle] | None:
    if there is None and here is None:
        return None
    if there is None or here is None:
        raise IntegrityError("one of its sources has only one of SrcRect and DstRect")
    return _rectangle(there), _rectangle(here)


def _rectangle(element: Element) -> Rectangle:
    found = Rectangle(*[_number(element.get(name, "")) for name in ("xOff", "yOff", "xSize", "ySize")])
    if found.width <= 0 or found.height <= 0:
        raise IntegrityError(f"it has a {element.tag} without an area")
    return found


def _crs(text: str) -> pyproj.CRS | None:
    try:
        if code := _CODE.fullmatch(text.strip()):
            return pyproj.CRS.from_authority(*code.groups())
        return pyproj.CRS.from_wkt(text) if text.strip() else None
    except ProjError as error:
        raise IntegrityError(f"its SRS is neither a code nor well-known text: {error}") from None
