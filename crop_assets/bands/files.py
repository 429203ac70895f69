"""Whether a local file is the band file that it is named after.

Belongs here: checks on one file. Does not: fetching it.
"""

from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj.exceptions import ProjError
from rasterio.errors import RasterioError

from crop_assets.chip_grid import RESOLUTION, grid_text, raster_geobox, same_pixels
from crop_assets.hls import HLS_SIZE, QA_BAND, hls_bounds
from resources.errors import IntegrityError
from resources.geodata import open_geotiff
from resources.words import MAX_BYTES, document

_MOST_BLOCK_BYTES = 2 << 20
"""HLS v2.0 has blocks of 128 KiB; this is one of 1024 x 1024 reflectances. A chip is cut from some four of them."""


def check_band(path: Path, band: str, tile: str, every_block: bool = True) -> None:
    """Raise IntegrityError unless the file is a one-band raster of the band's type on its tile's HLS grid, with all of
    its blocks.

    Reflectance is int16, Fmask uint8 (HLS v2.0 user guide). Of the grid counts where the pixels lie, to a tenth of one,
    however the CRS is written. `every_block` decodes all of it, which finds bytes that were changed; those that are
    verified against a CID need it not, if only no block lies behind the end.
    """
    expected = "uint8" if band == QA_BAND else "int16"
    try:
        with open_geotiff(path) as raster:
            if raster.count != 1 or raster.dtypes[0] != expected:
                raise IntegrityError(
                    f"has {raster.count} band(s) of {raster.dtypes[0]}; {band} has one of {expected}"
                )
            if raster.crs is None or not (raster.crs.is_projected or raster.crs.is_geographic):
                raise IntegrityError("has no coordinate reference system that says where on Earth it is")
            _require_grid(raster, tile)
            rows, cols = raster.block_shapes[0]
            if rows * cols * np.dtype(expected).itemsize > _MOST_BLOCK_BYTES:
                raise IntegrityError(
                    f"has blocks of {cols:,} x {rows:,} pixels, far larger than those of HLS"
                )
            size = path.stat().st_size
            for (row, col), window in raster.block_windows(1):
                if every_block:
                    raster.read(1, window=window)
                elif _block_end(raster, row, col) > size:
                    raise IntegrityError("is cut short: some of its blocks lie behind its end")
    except (RasterioError, ProjError) as error:
        with path.open("rb") as file:
            if found := document(file.read(MAX_BYTES)):
                raise IntegrityError(f"is {found} and no raster") from None
        raise IntegrityError(
            f"cannot be read as a raster: {str(error).replace(str(path), path.name)}"
        ) from error


def _require_grid(raster: rasterio.DatasetReader, tile: str) -> None:
    epsg, left, _, _, top = hls_bounds(tile)
    place = Affine(RESOLUTION, 0, left, 0, -RESOLUTION, top)
    found, wanted = raster_geobox(raster), GeoBox((HLS_SIZE, HLS_SIZE), place, f"EPSG:{epsg}")
    if not same_pixels(found, wanted):
        raise IntegrityError(
            f"has {grid_text(found)}, and not the grid of tile {tile}: {grid_text(wanted)}; "
            "take the complete file of this tile"
        )


def _block_end(raster: rasterio.DatasetReader, row: int, col: int) -> int:
    """Where a block of a GeoTIFF ends in the file; 0 for one that is not stored."""
    where = (raster.get_tag_item(f"BLOCK_{what}_{col}_{row}", "TIFF", bidx=1) for what in ("OFFSET", "SIZE"))
    return sum(int(value or 0) for value in where)
