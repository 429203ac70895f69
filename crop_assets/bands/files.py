"""Whether a local file is the band file that it is named after.

Belongs here: checks on one file. Does not: fetching it.
"""

from pathlib import Path
from typing import Literal

import rasterio
from rasterio.errors import RasterioError

from crop_assets.recipe import QA_BAND
from resources.errors import IntegrityError
from resources.ipfs.unixfs import file_cid

# (chunk size, CID version) of files added by Kubo's defaults of different years and by Helia
_LAYOUTS: tuple[tuple[int, Literal[0, 1]], ...] = ((256 * 1024, 1), (1024 * 1024, 1), (256 * 1024, 0))


def matches_cid(path: Path, cid: str) -> bool:
    """Whether the file has this CID in one of the layouts in common use.

    A file that was added in another layout does not match, though its bytes may be right.
    """
    return any(file_cid(path, chunk_size=chunk, version=version) == cid for chunk, version in _LAYOUTS)


def check_band(path: Path, band: str) -> None:
    """Raise IntegrityError unless the file is a one-band raster of the band's type, each block readable.

    Reflectance is int16, Fmask uint8 (HLS v2.0 user guide).
    """
    expected = "uint8" if band == QA_BAND else "int16"
    try:
        with rasterio.open(path) as raster:
            if raster.count != 1 or raster.dtypes[0] != expected:
                raise IntegrityError(
                    f"{path.name} has {raster.count} band(s) of {raster.dtypes[0]}; {band} has one of {expected}"
                )
            if raster.crs is None:
                raise IntegrityError(f"{path.name} has no coordinate reference system")
            for _, window in raster.block_windows(1):
                raster.read(1, window=window)
    except RasterioError as error:
        raise IntegrityError(f"{path.name} cannot be read as a raster: {error}") from error
