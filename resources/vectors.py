"""Opens vector files by the rules of `resources.geodata`. A lint rule forbids opening them elsewhere."""

import contextlib
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Protocol
from xml.etree.ElementTree import ParseError

import defusedxml.ElementTree
import geopandas as gpd
import pandas as pd
from defusedxml.common import DefusedXmlException
from pyproj.exceptions import ProjError
from shapely.errors import ShapelyError

from resources.archives import members, unpack
from resources.errors import IntegrityError
from resources.geodata import drivers_left_out
from resources.geojson import GeoJson
from resources.geopackage import GeoPackage

_SKIPPED_BY_PYOGRIO = """
    ADBC AmigoCloud Carto CSW EEDA Elasticsearch GDALG GML GPSBabel HTTP LVBAG NGW OAPIF OGCAPI OGR_VRT PLSCENES WFS
"""
"""Drivers in pyogrio's build of GDAL that connect to hosts, or open and run whatever a description names."""

with drivers_left_out(_SKIPPED_BY_PYOGRIO):
    import pyogrio

VECTORS = (".geojson", ".json", ".gpkg", ".shp", ".fgb", ".kml")
"""Suffixes of the supported vector files."""
_SHAPEFILE = (".shx", ".dbf", ".prj", ".cpg")
_MAGIC = {".gpkg": b"SQLite format 3\0", ".shp": b"\0\0\x27\x0a", ".fgb": b"fgb\x03fgb"}
_GEOPACKAGE = (b"GPKG", b"GP10", b"GP11")
"""The application ids of a GeoPackage, at byte 68 (OGC 12-128r18, 1.1.1.1)."""
_OFFLINE = {
    "CPL_VSIL_CURL_ALLOWED_FILENAME": "none",
    # some parts of GDAL ignore the first option; they get a proxy on a port where nothing listens
    "GDAL_HTTP_PROXY": "http://127.0.0.1:9",
    "GDAL_HTTP_TIMEOUT": "1",
    "GDAL_HTTP_MAX_RETRY": "0",
    **dict.fromkeys(
        ("GDAL_HTTP_HEADERS", "GDAL_HTTP_HEADER_FILE", "GDAL_HTTP_USERPWD", "GDAL_HTTP_BEARER"), ""
    ),
}
_CONFIGURING = threading.Lock()


class Vector(Protocol):
    """An open vector file. Its methods raise IntegrityError if it is damaged."""

    def layers(self) -> dict[str, str | None]:
        """The geometry type of each layer, by name; None if it has no geometries."""

    def columns(self, layer: str) -> list[str]: ...

    def read(self, layer: str, columns: Sequence[str] = ()) -> gpd.GeoDataFrame | pd.DataFrame:
        """The geometries of a layer, if it has any, with the given columns."""


@dataclass(frozen=True)
class _GdalVector:
    """A vector file that GDAL reads: its path, and its size in bytes including the files that belong to it."""

    source: str
    size: int
    known: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What is known of each layer: GDAL parses a KML file as a whole each time."""

    def layers(self) -> dict[str, str | None]:
        with _reading():
            return {str(name): kind for name, kind in pyogrio.list_layers(self.source)}

    def columns(self, layer: str) -> list[str]:
        with _reading():
            return [str(name) for name in self._info(layer)["fields"]]

    def read(self, layer: str, columns: Sequence[str] = ()) -> gpd.GeoDataFrame | pd.DataFrame:
        with _reading():
            features = self._info(layer)["features"]
            if features > self.size:
                raise ValueError(f"{self.source} reports {features:,} features in {self.size:,} bytes")
            found: pd.DataFrame = pyogrio.read_dataframe(self.source, layer=layer, columns=list(columns))
            return found

    def _info(self, layer: str) -> dict[str, Any]:
        if layer not in self.known:
            self.known[layer] = pyogrio.read_info(self.source, layer=layer)
        return self.known[layer]


@contextlib.contextmanager
def open_vector(path: Path, max_bytes: int = 1 << 30) -> Iterator[Vector]:
    """Open a local vector file by its suffix (`VECTORS`), or the one in a .zip or .kmz; at most `max_bytes` unpacked.

    Raises IntegrityError if the suffix is another or does not match the content.
    """
    if path.suffix.lower() not in (".zip", ".kmz"):
        yield _vector(path, max_bytes)
        return
    with tempfile.TemporaryDirectory() as folder:
        found = members(path, max_bytes)
        vectors = [one for one in found if PurePosixPath(one.filename).suffix.lower() in VECTORS]
        if len(vectors) != 1:
            listed = ", ".join(one.filename for one in vectors[:5]) or "none"
            raise IntegrityError(f"{path} must contain one vector file, found {len(vectors)}: {listed}")
        vector = PurePosixPath(vectors[0].filename)
        # only these, so that GDAL finds no other files next to it
        suffixes = (_SHAPEFILE if vector.suffix.lower() == ".shp" else ()) + (vector.suffix.lower(),)
        for member in found:
            name = PurePosixPath(member.filename)
            if name.with_suffix("") == vector.with_suffix("") and name.suffix.lower() in suffixes:
                unpack(path, member, Path(folder, name.name), lambda _: None)
        yield _vector(Path(folder, vector.name), max_bytes)


def _vector(path: Path, max_bytes: int) -> Vector:
    """Open an unpacked vector file. pyogrio cannot be given a driver, so its first bytes must be those of only one."""
    suffix = path.suffix.lower()
    if not path.is_file():
        raise IntegrityError(f"{path}: No such file or directory")
    if suffix not in VECTORS:
        raise IntegrityError(f"{path} is not a {', '.join(VECTORS)} or .parquet file; save it as one")
    if (size := path.stat().st_size) > max_bytes:
        raise IntegrityError(f"{path} has {size:,} bytes; the most is {max_bytes:,}")
    if suffix in (".geojson", ".json"):
        return GeoJson(path.read_bytes(), path.stem)
    if suffix == ".kml":
        _require_kml(path)
    else:
        with path.open("rb") as file:
            head = file.read(72)
        if not head.startswith(_MAGIC[suffix]) or (suffix == ".gpkg" and head[68:72] not in _GEOPACKAGE):
            raise IntegrityError(f"{path} does not begin like a {suffix} file; save it again")
        if suffix == ".gpkg":
            return GeoPackage(path)
    beside = [path.with_suffix(other) for other in _SHAPEFILE] if suffix == ".shp" else []
    return _GdalVector(
        str(path.absolute()), size + sum(file.stat().st_size for file in beside if file.is_file())
    )


def _require_kml(path: Path) -> None:
    """Raise IntegrityError if a file does not begin as KML, so that GDAL chooses a driver for KML."""
    try:
        with path.open("rb") as file:
            _, root = next(defusedxml.ElementTree.iterparse(file, events=("start",)))
    except (ParseError, DefusedXmlException, ValueError, LookupError, StopIteration) as error:
        raise IntegrityError(f"{path} is not well-formed XML: {error}") from None
    if root.tag.rsplit("}", 1)[-1] != "kml":
        raise IntegrityError(f"{path} has the root {root.tag[:50]!r} and is not KML")


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    """Keep pyogrio from connecting to hosts that a file names."""
    # the options apply to the process, and others may need other values
    with _CONFIGURING:
        pyogrio.set_gdal_config_options(_OFFLINE)
        try:
            yield
        except MemoryError:
            raise IntegrityError("it would take more memory than there is") from None
        except (
            pyogrio.errors.DataSourceError,
            pyogrio.errors.DataLayerError,
            pyogrio.errors.FeatureError,
            pyogrio.errors.FieldError,
            pyogrio.errors.GeometryError,
            pyogrio.errors.CRSError,
            ProjError,
            ShapelyError,
            UnicodeDecodeError,
            ValueError,
        ) as error:
            raise IntegrityError(str(error)) from None
        finally:
            pyogrio.set_gdal_config_options(dict.fromkeys(_OFFLINE))
