"""What a tile's Fmask files alone tell of its chips, before any band is there.

Belongs here: reading Fmask under each chip, and counting. Does not: which counts are good enough (`quality`), nor
the rasters that chips are cut from (`reproject`).
"""

import contextlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path

import numpy as np
import pandas as pd
import rasterio
from numpy.typing import NDArray
from rasterio.errors import RasterioError

from crop_assets.chips.quality import quality_counts
from crop_assets.chips.reproject import raster_geobox
from crop_assets.chips.warp import QA_NODATA, nearest, source_pixels
from crop_assets.errors import InputError
from crop_assets.grid import CHIP_SIZE, chip_geobox
from crop_assets.parallel import in_parallel


def fmask_facts(fmasks: Mapping[str, Path], chips: Sequence[str], pool: Executor) -> pd.DataFrame:
    """One row per chip: chip_id, the counts of each position's Fmask, and na_count.

    `fmasks` are the Fmask files (uint8, fill 255, UTM) by position; na_count is how many pixels lack Fmask on any
    date. The pixels are those of the chips' own Fmask bands: nearest on the CDL grid. Raises InputError where a file
    cannot be read.
    """

    def read(item: tuple[str, Path]) -> list[NDArray[np.uint8]]:
        return _read_chips(item[1], chips)

    by_position = dict(zip(fmasks, in_parallel(pool, read, fmasks.items()), strict=True))
    rows = []
    for at, chip_id in enumerate(chips):
        pixels = {position: blocks[at] for position, blocks in by_position.items()}
        missing = np.any([values == QA_NODATA for values in pixels.values()], axis=0)
        counts = {
            f"{name}_{position}": count
            for position, values in pixels.items()
            for name, count in quality_counts(values).items()
        }
        rows.append({"chip_id": chip_id, **counts, "na_count": int(missing.sum())})
    return pd.DataFrame(rows)


def _read_chips(path: Path, chips: Sequence[str]) -> list[NDArray[np.uint8]]:
    try:
        with contextlib.closing(rasterio.open(path)) as raster:
            if raster.crs is None:
                raise InputError(f"{path.name} has no coordinate reference system")
            source = raster_geobox(raster)
            blocks = []
            for chip_id in chips:
                at = source_pixels(chip_geobox(chip_id), source)
                block = np.full((CHIP_SIZE, CHIP_SIZE), QA_NODATA, np.uint8)
                if at is not None:
                    block = nearest(raster.read(1, window=at.window), at)
                blocks.append(block)
            return blocks
    except RasterioError as error:
        raise InputError(
            f"{path.name} cannot be read ({error}); delete it and materialize downloaded_fmasks again"
        ) from error
