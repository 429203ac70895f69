"""Opens rasters safely. A lint rule forbids opening them elsewhere; `resources.vectors` opens vector files.

GDAL detects formats by the content of a file, whatever its name, and many of its formats are descriptions that lead to
other files, other hosts, or an object store with the keys of whoever opens them. So the driver is chosen before a file
is opened, the sources of a description are checked, and drivers that use the network are not registered.
"""

import contextlib
import os
import threading
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import rasterio
from rasterio.errors import NotGeoreferencedWarning, RasterioIOError

from resources.errors import IntegrityError
from resources.mosaics import MAX_BYTES, Mosaic, Source, plain_name, read_mosaic
from resources.plain_text import shell_file

_SKIPPED_BY_RASTERIO = """
    DAAS EEDA EEDAI ESRIC GTI HTTP KMLSUPEROVERLAY MRF PLMOSAIC STACIT STACTA WCS WMS WMTS
"""
"""Drivers in rasterio's build of GDAL that connect to hosts, or open whatever a description names. GDAL warns about
unknown names."""


@contextlib.contextmanager
def drivers_left_out(drivers: str) -> Iterator[None]:
    """Skip drivers while GDAL registers the others, in addition to those that GDAL_SKIP already names."""
    before = os.environ.get("GDAL_SKIP")
    os.environ["GDAL_SKIP"] = ",".join(filter(None, [before, *drivers.split()]))
    try:
        yield
    finally:
        if before is None:
            del os.environ["GDAL_SKIP"]
        else:
            os.environ["GDAL_SKIP"] = before


with drivers_left_out(_SKIPPED_BY_RASTERIO), rasterio.Env():
    pass

Driver = Literal["GTiff", "HFA", "VRT"]

_RASTERS: Mapping[str, Driver] = {".tif": "GTiff", ".tiff": "GTiff", ".img": "HFA", ".vrt": "VRT"}
_ALONE = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_PAM_ENABLED": "NO"}
"""Options that keep GDAL from reading other files next to the one that it opens."""
_REMOTE = {"CPL_VSIL_CURL_CHUNK_SIZE": str(2 << 20), "CPL_VSIL_CURL_CACHE_SIZE": str(64 << 20)}
"""Options by which GDAL reads a chip, of up to 1.8 MB, from an object store in one request, not seven; its cache, of
the process, has room for 32 of them. GDAL looks at the first option once in a process."""
# without this GDAL presents a strip of all rows as strips of one row, and may decode it from its start for each
_AS_STORED = {"GDAL_ENABLE_TIFF_SPLIT": "NO"}
_COMPRESSIONS = ("DEFLATE", "LZW", "PACKBITS", "ZSTD")
"""HLS v2.0 uses DEFLATE; the others are general too. With those for pictures, a hundred bytes can unpack to
gigabytes."""
_OPENED_BY_CONTENT = (".ovr", ".msk")
_MAX_BANDS = 100
_MAX_BLOCK_BYTES = 64 << 20
_MAX_BLOCKS = 1 << 20
"""The national raster in blocks of 128 x 128 has 910,000."""
_MAX_TIMES_PADDED = 4
"""Blocks reach beyond the edges of a raster: blocks of 1024 x 1024 pixels have 1.3 times the pixels of an HLS tile."""
_MAX_NESTED = 4
_WARNING = threading.Lock()


class SourceError(RasterioIOError):  # type: ignore[misc]
    """A raster refers to files that do not exist, or that it must not refer to."""


def open_geotiff(path: str | Path) -> rasterio.DatasetReader:
    """Open a GeoTIFF without the files next to it. `path` is local, or GDAL's path in an object store (/vsis3/...).

    Raises RasterioIOError if it is not a GeoTIFF, or refers to other files.
    """
    return _open(path, "GTiff", _ALONE)


def open_raster(path: Path) -> rasterio.DatasetReader:
    """Open a local raster by its suffix: a GeoTIFF, an .img or a .vrt, with the files that belong to it.

    The sources of a .vrt must be such rasters too, in its folder or below. Raises RasterioIOError if the suffix is
    another or does not match the content, or if the raster refers to files elsewhere.
    """
    driver = _RASTERS.get(path.suffix.lower())
    if driver is None:
        raise RasterioIOError(f"{path} is not a {', '.join(_RASTERS)} file; run: {translated(path)}")
    folder = path.resolve().parent
    if driver == "VRT":
        return _open(path, driver, {}, _described(path, folder)[0].name)
    return _open_inside(path, driver, folder)


def create_raster(path: Path, driver: str = "GTiff", **profile: Any) -> rasterio.io.DatasetWriter:
    """Create a local raster; `profile` is as for `rasterio.open`."""
    return rasterio.open(path, "w", driver=driver, **profile)


def raster_sources(path: Path) -> list[Path]:
    """The files that a raster is read from, including `path`, by the names it uses. Raises as `open_raster`."""
    with open_raster(path) as raster:
        files = [Path(file) for file in raster.files]
    return [path, *_described(path, path.resolve().parent)[1]] if raster.driver == "VRT" else files


def _open(
    path: str | Path, driver: Driver, options: Mapping[str, str], description: str = ""
) -> rasterio.DatasetReader:
    """Open a raster by its path, or by a VRT description that this module wrote."""
    # of an object store only this file may be read, and none for a local file, whatever its metadata names
    remote = path if isinstance(path, str) and path.startswith("/vsi") else "none"
    options = {**_AS_STORED, **options, **(_REMOTE if remote == path else {})}
    with rasterio.Env.from_defaults(CPL_VSIL_CURL_ALLOWED_FILENAME=remote, **options):
        try:
            raster = rasterio.open(description or (path if remote == path else Path(path)), driver=driver)
            try:
                _require_plain(path, raster)
            except BaseException:
                raster.close()
                raise
        except UnicodeDecodeError as error:
            raise RasterioIOError(f"{path} has a CRS that is no text: {error}") from None
    return raster


def _require_plain(path: str | Path, raster: rasterio.DatasetReader) -> None:
    """Raise RasterioIOError if a raster would take hours or all memory to read, or refers to other files."""
    # GDAL opens that file by its content, even if its name is no text, so that rasterio leaves the tag out
    if "OVERVIEWS" in raster.tag_namespaces():
        raise RasterioIOError(f"{path} has its overviews in a file that its metadata name")
    if raster.count > _MAX_BANDS:
        raise RasterioIOError(f"{path} has {raster.count} bands; the most is {_MAX_BANDS}")
    again = f"run: gdal_translate -co TILED=YES -co COMPRESS=DEFLATE {shell_file(path)} and a new name"
    compression = raster.tags(ns="IMAGE_STRUCTURE").get("COMPRESSION")
    if raster.driver == "GTiff" and compression not in (None, *_COMPRESSIONS):
        raise RasterioIOError(f"{path} is compressed by {compression[:50]}, which is not read here; {again}")
    for (rows, cols), dtype in zip(raster.block_shapes, raster.dtypes, strict=True):
        blocks = -(-raster.height // rows) * -(-raster.width // cols)
        block = rows * cols * np.dtype(dtype).itemsize
        pixels = raster.height * raster.width * np.dtype(dtype).itemsize
        padded = blocks * block > _MAX_TIMES_PADDED * pixels + _MAX_BLOCK_BYTES
        if block > _MAX_BLOCK_BYTES or blocks > _MAX_BLOCKS or padded:
            raise RasterioIOError(
                f"{path} has {blocks:,} blocks of {cols:,} x {rows:,} pixels, which takes too long or too much memory "
                f"to read; {again}"
            )


def translated(path: Path) -> str:
    """The command that converts a raster to a GeoTIFF in the current folder."""
    return f"gdal_translate {shell_file(path)} {shell_file(f'{path.stem}.tif')}"


def _open_inside(path: Path, driver: Driver, folder: Path) -> rasterio.DatasetReader:
    """Open a raster. Raises RasterioIOError if it refers to files outside `folder`."""
    if not path.is_file():
        raise RasterioIOError(f"{path}: No such file or directory")
    for beside in path.parent.iterdir():
        if not beside.name.lower().startswith(f"{path.name.lower()}."):
            continue
        if beside.suffix.lower() in _OPENED_BY_CONTENT:
            _require_geotiff(beside)
        elif beside.suffix.lower() == ".xml" and driver == "GTiff":
            # it may contain another compression
            _require_geotiff(path)
    raster = _open(path, driver, {})
    try:
        _require_inside(path, map(Path, raster.files), folder)
    except SourceError:
        raster.close()
        raise
    return raster


def _require_geotiff(path: Path) -> None:
    """Raise as `open_geotiff`, without a warning if the georeference is in another file."""
    with _WARNING, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        _open(path, "GTiff", _ALONE).close()


def _described(
    path: Path, folder: Path, depth: int = _MAX_NESTED, known: dict[Path, Source] | None = None
) -> tuple[Source, list[Path]]:
    """A .vrt as a description that is safe for GDAL, and the files that it names.

    `known` are the sources that were checked before. Raises RasterioIOError if it does more than combine rasters in
    `folder`.
    """
    known = {} if known is None else known
    mosaic = _mosaic(path)
    try:
        # a mosaic may name each of its files a thousand times
        files = {named: (path.parent if named.relative else Path()) / named.name for named in mosaic.names}
        sources = {}
        for named, file in files.items():
            if (there := file.resolve()) not in known:
                known[there] = _source(path, file, folder, depth, known)
            sources[named] = known[there]
        return mosaic.described(sources), sorted(set(files.values()))
    except RasterioIOError:
        raise
    except (IntegrityError, OSError, RuntimeError, ValueError) as error:
        # paths raise these for names that are too long, and for circular links
        raise SourceError(f"{path} cannot be used: {error}") from None


def _mosaic(path: Path) -> Mosaic:
    try:
        with path.open("rb") as file:
            return read_mosaic(file.read(MAX_BYTES + 1))
    except IntegrityError as error:
        raise RasterioIOError(f"{path} cannot be used: {error}") from None
    except OSError as error:
        raise RasterioIOError(f"{path} cannot be read: {error.strerror}") from None


def _source(path: Path, file: Path, folder: Path, depth: int, known: dict[Path, Source]) -> Source:
    _require_inside(path, [file], folder)
    driver = _RASTERS.get(file.suffix.lower())
    if driver is None or not file.is_file() or not depth:
        raise SourceError(f"{path} is read from {file}, which is not a local {', '.join(_RASTERS)} file")
    if driver == "VRT":
        return _described(file, folder, depth - 1, known)[0]
    # GDAL gets the target of a link, and so the files next to the target
    with _open_inside(file.resolve(), driver, folder) as raster:
        if raster.count != 1 or raster.dtypes[0] != "uint8":
            raise SourceError(f"{path} is read from {file}, which does not have one band of bytes")
        (height, width), (block_height, block_width) = raster.shape, raster.block_shapes[0]
    name = plain_name(str(file.resolve()))
    return Source(name, width, height, block_width, block_height, width * height)


def _require_inside(path: Path, files: Any, folder: Path) -> None:
    for file in files:
        if not (path.parent / file).resolve().is_relative_to(folder):
            raise SourceError(
                f"{path} leads to {str(file)[:200]}, which is not in its folder; put both into one folder, or run: "
                f"{translated(path)}"
            )
