"""Counts the Fmask values under each chip of a tile, before its other bands are downloaded."""

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rasterio.errors import RasterioError

from crop_assets.chip_grid import CHIP_SIZE, chip_geobox, raster_geobox
from crop_assets.chips.quality import quality_counts
from crop_assets.chips.warp import SourcePixels, nearest, source_pixels
from crop_assets.errors import InputError
from crop_assets.hls import QA_NODATA
from crop_assets.parallel import in_parallel
from resources.geodata import open_geotiff

_CHIPS_AT_ONCE = 16
"""Chips whose source pixels are held in memory at once, at 3 MB each."""


def fmask_facts(fmasks: Mapping[str, Path], chips: Sequence[str], pool: Executor) -> pd.DataFrame:
    """One row per chip: chip_id, the counts of the Fmask at each position, and na_count.

    `fmasks` are the Fmask files (uint8, fill 255, UTM) by position; na_count is the number of pixels without Fmask on
    any date. Pixels are resampled (nearest) to the CDL grid, exactly as in the Fmask bands of the chips. Raises
    InputError if a file cannot be read.
    """
    with contextlib.ExitStack() as stack:
        rasters = [_Fmask(stack, path) for path in fmasks.values()]
        blocks: list[list[NDArray[np.uint8]]] = [[] for _ in rasters]
        for start in range(0, len(chips), _CHIPS_AT_ONCE):
            some = [chip_geobox(chip_id) for chip_id in chips[start : start + _CHIPS_AT_ONCE]]
            # scenes of a tile nearly always share one grid
            pixels_by_grid = {
                source: in_parallel(pool, functools.partial(source_pixels, source=source), some)
                for source in dict.fromkeys(raster.grid for raster in rasters)
            }
            read = in_parallel(pool, lambda raster: raster.read(pixels_by_grid[raster.grid]), rasters)  # noqa: B023
            for found, more in zip(blocks, read, strict=True):
                found += more
    by_position = dict(zip(fmasks, blocks, strict=True))
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


class _Fmask:
    """An open Fmask file, and its grid."""

    def __init__(self, stack: contextlib.ExitStack, path: Path) -> None:
        self._name = path.name
        with _translate_errors(path.name):
            # `with` would tie the raster to the thread that opened it
            self._raster = stack.enter_context(contextlib.closing(open_geotiff(path)))
        if self._raster.crs is None:
            raise InputError(f"{path.name} has no coordinate reference system")
        self.grid = raster_geobox(self._raster)

    def read(self, chips: Sequence[SourcePixels | None]) -> list[NDArray[np.uint8]]:
        """The pixels of each chip, 224 x 224; fill where they are outside the file."""
        with _translate_errors(self._name):
            return [
                np.full((CHIP_SIZE, CHIP_SIZE), QA_NODATA, np.uint8)
                if at is None
                else nearest(self._raster.read(1, window=at.window), at)
                for at in chips
            ]


@contextlib.contextmanager
def _translate_errors(name: str) -> Iterator[None]:
    try:
        yield
    except RasterioError as error:
        raise InputError(
            f"{name} cannot be read ({error}); delete it and materialize downloaded_fmasks again"
        ) from error
