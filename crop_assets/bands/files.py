"""Whether a local file is the band file that it is named after.

Belongs here: checks on one file. Does not: fetching it.
"""

from pathlib import Path

import rasterio
from rasterio.errors import RasterioError

from crop_assets.recipe import QA_BAND
from resources.errors import IntegrityError


def check_band(path: Path, band: str, every_block: bool = True) -> None:
    """Raise IntegrityError unless the file is a one-band raster of the band's type, with a CRS and all of its blocks.

    Reflectance is int16, Fmask uint8 (HLS v2.0 user guide). `every_block` decodes all of it, which finds bytes that
    were changed; those that are verified against a CID need it not, if only no block lies behind the end.
    """
    expected = "uint8" if band == QA_BAND else "int16"
    try:
        with rasterio.open(path) as raster:
            if raster.count != 1 or raster.dtypes[0] != expected:
                raise IntegrityError(
                    f"has {raster.count} band(s) of {raster.dtypes[0]}; {band} has one of {expected}"
                )
            if raster.crs is None or not (raster.crs.is_projected or raster.crs.is_geographic):
                raise IntegrityError("has no coordinate reference system that says where on Earth it is")
            size = path.stat().st_size
            for (row, col), window in raster.block_windows(1):
                if every_block:
                    raster.read(1, window=window)
                elif _block_end(raster, row, col) > size:
                    raise IntegrityError("is cut short: some of its blocks lie behind its end")
    except RasterioError as error:
        raise IntegrityError(
            f"cannot be read as a raster: {str(error).replace(str(path), path.name)}"
        ) from error


def _block_end(raster: rasterio.DatasetReader, row: int, col: int) -> int:
    """Where a block of a GeoTIFF ends in the file; 0 for one that is not stored."""
    where = (raster.get_tag_item(f"BLOCK_{what}_{col}_{row}", "TIFF", bidx=1) for what in ("OFFSET", "SIZE"))
    return sum(int(value or 0) for value in where)
