"""Making sure of a raster that was just written.

Belongs here: what GDAL leaves unsaid. Does not: what is in a raster.
"""

import errno
from collections.abc import Iterable
from pathlib import Path

import rasterio
from rasterio.errors import RasterioError


def require_whole(path: Path, blocks: Iterable[tuple[int, int, int]]) -> None:
    """Raise OSError unless each block (band, row, column) of a closed GeoTIFF lies within the file.

    GDAL writes most of a small file when it closes it, and rasterio says nothing of what fails then, as on a full
    disk (measured with rasterio 1.4.4).
    """
    size = path.stat().st_size
    try:
        with rasterio.open(path) as raster:
            whole = all(_end(raster, *block) <= size for block in blocks)
    except RasterioError:
        whole = False
    if not whole:
        raise OSError(errno.ENOSPC, "the file was not written whole; see that the disk has room", path.name)


def _end(raster: rasterio.DatasetReader, band: int, row: int, col: int) -> float:
    """Where a block ends in the file, in bytes; beyond any file where it is not stored."""
    offset, size = (
        raster.get_tag_item(f"BLOCK_{what}_{col}_{row}", "TIFF", bidx=band) for what in ("OFFSET", "SIZE")
    )
    return int(offset) + int(size) if offset and size else float("inf")
