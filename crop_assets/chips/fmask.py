"""Counts the Fmask values under each chip of a tile, before its other bands are downloaded, or its scenes selected."""

import contextlib
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio.errors import RasterioError

from crop_assets.chip_grid import CHIP_SIZE, chip_geobox
from crop_assets.chips.quality import quality_counts
from crop_assets.chips.rasters import BlockReader
from crop_assets.chips.warp import SourcePixels, nearest, source_pixels
from crop_assets.errors import InputError
from crop_assets.hls import QA_NODATA
from resources.parallel import in_parallel

_CHIPS_AT_ONCE = 16
"""Chips whose source pixels are held in memory at once, at 3 MB each."""


@dataclass(frozen=True)
class FmaskBlocks:
    """The Fmask of each chip at each position, uint8 (224, 224), in the order of the chips; and by chip and grid of the
    files, for the first chips, the source pixels that it is from.
    """

    blocks: dict[str, list[NDArray[np.uint8]]]
    pixels: dict[tuple[str, GeoBox], SourcePixels | None]


def read_fmasks(fmasks: Mapping[str, Path], chips: Sequence[str], pool: Executor) -> FmaskBlocks:
    """Resample (nearest) Fmask files (uint8, fill 255, UTM) by position to the CDL grid, exactly as in the Fmask bands
    of the chips. Raises InputError if a file cannot be read.
    """
    first: dict[tuple[str, GeoBox], SourcePixels | None] = {}
    with contextlib.ExitStack() as stack:
        grids: dict[Hashable, GeoBox | None] = {}
        rasters = [_Fmask(stack, path, grids) for path in fmasks.values()]
        blocks: list[list[NDArray[np.uint8]]] = [[] for _ in rasters]
        for start in range(0, len(chips), _CHIPS_AT_ONCE):
            # scenes of a tile nearly always share one grid
            some = chips[start : start + _CHIPS_AT_ONCE]
            pixels_by_grid = {
                grid: in_parallel(pool, lambda chip: source_pixels(chip_geobox(chip), grid), some)  # noqa: B023
                for grid in dict.fromkeys(raster.grid for raster in rasters)
            }
            read = in_parallel(pool, lambda raster: raster.read(pixels_by_grid[raster.grid]), rasters)  # noqa: B023
            for known, more in zip(blocks, read, strict=True):
                known += more
            first = first or {
                (chip, grid): at
                for grid, found in pixels_by_grid.items()
                for chip, at in zip(some, found, strict=True)
            }
    return FmaskBlocks(dict(zip(fmasks, blocks, strict=True)), first)


def fmask_facts(chips: Sequence[str], blocks: Mapping[str, Sequence[NDArray[np.uint8]]]) -> pd.DataFrame:
    """One row per chip: chip_id, the counts of the Fmask at each position, and na_count, the number of pixels without
    Fmask on any date.
    """
    rows = []
    for at, chip_id in enumerate(chips):
        pixels = {position: of_chips[at] for position, of_chips in blocks.items()}
        missing = np.any([values == QA_NODATA for values in pixels.values()], axis=0)
        counts = {
            f"{name}_{position}": count
            for position, values in pixels.items()
            for name, count in quality_counts(values).items()
        }
        rows.append({"chip_id": chip_id, **counts, "na_count": int(missing.sum())})
    return pd.DataFrame(rows)


def count_fmasks(
    fmasks: Sequence[Callable[[], AbstractContextManager[Path]]], chips: Sequence[str], pool: Executor
) -> list[list[dict[str, int]] | str]:
    """The counts of many Fmask files under each of the chips, in the order of both, resampled as by `read_fmasks`; of a
    file that cannot be read, why.

    `fmasks` open local files. A few are open at once, and the source pixels of a few chips in memory, at 50 MB, however
    many files and chips there are.
    """
    found: list[list[dict[str, int]] | str] = []
    grids: dict[Hashable, GeoBox | None] = {}
    of_file: list[GeoBox | None] = []
    for fmask in fmasks:
        try:
            with contextlib.ExitStack() as stack:
                of_file.append(_Fmask(stack, stack.enter_context(fmask()), grids).grid)
            found.append([])
        except InputError as error:
            of_file.append(None)
            found.append(str(error))
    for start in range(0, len(chips), _CHIPS_AT_ONCE):
        some = chips[start : start + _CHIPS_AT_ONCE]
        pixels_by_grid = {
            grid: in_parallel(pool, lambda chip: source_pixels(chip_geobox(chip), grid), some)  # noqa: B023
            for grid in dict.fromkeys(grid for grid in of_file if grid)
        }

        def count(at: int) -> list[dict[str, int]] | str:
            grid = of_file[at]
            assert grid
            try:
                with contextlib.ExitStack() as stack:
                    raster = _Fmask(stack, stack.enter_context(fmasks[at]()), grids)
                    return [quality_counts(pixels) for pixels in raster.read(pixels_by_grid[grid])]  # noqa: B023
            except InputError as error:
                return str(error)

        readable = [at for at, counts in enumerate(found) if not isinstance(counts, str)]
        for at, more in zip(readable, in_parallel(pool, count, readable), strict=True):
            known = found[at]
            found[at] = more if isinstance(more, str) or isinstance(known, str) else known + more
    return found


class _Fmask:
    """An open Fmask file, and its grid."""

    def __init__(self, stack: contextlib.ExitStack, path: Path, grids: dict[Hashable, GeoBox | None]) -> None:
        self._name = path.name
        with _translate_errors(path.name):
            # `with` would tie the raster to the thread that opened it
            self._raster = stack.enter_context(contextlib.closing(BlockReader(path, grids)))
        if self._raster.grid is None:
            raise InputError(f"{path.name} has no coordinate reference system")
        self.grid = self._raster.grid

    def read(self, chips: Sequence[SourcePixels | None]) -> list[NDArray[np.uint8]]:
        """The pixels of each chip, 224 x 224; fill where they are outside the file."""
        with _translate_errors(self._name):
            return [
                np.full((CHIP_SIZE, CHIP_SIZE), QA_NODATA, np.uint8)
                if at is None
                else nearest(self._raster.read(at.window), at)
                for at in chips
            ]


@contextlib.contextmanager
def _translate_errors(name: str) -> Iterator[None]:
    try:
        yield
    except RasterioError as error:
        raise InputError(
            f"{name} cannot be read ({error}); delete it and materialize its asset again"
        ) from error
