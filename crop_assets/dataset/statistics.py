"""Statistics of the six bands over many chips, in one pass and in constant memory."""

import contextlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rasterio.errors import RasterioError

from crop_assets.chip_grid import CHIP_SIZE
from crop_assets.errors import InputError
from crop_assets.hls import NODATA, POSITIONS, REFLECTANCE_BANDS
from crop_assets.parallel import in_parallel
from resources.geodata import open_geotiff
from resources.object_store import translated

_OFFSET = 32768
_VALUES = len(POSITIONS) * CHIP_SIZE**2
"""Values of one band in a chip."""
CHIPS_PER_TASK = 8
_TASKS_AT_ONCE = 32
"""Tasks whose histograms, at 3 MB each, are in memory at once."""
CLIPPED_PERCENT = 1.5
"""Share of values clipped at either end for minimum and maximum, as in the published statistics."""


@dataclass(frozen=True)
class BandStatistics:
    """Statistics of one band, in the units of the raster (reflectance x 10,000)."""

    mean: float
    std: float
    minimum: float
    maximum: float
    pixels: int


class BandHistogram:
    """The count of each int16 value in a band: in 512 KiB all that exact statistics need."""

    def __init__(self) -> None:
        self._counts = np.zeros(65536, dtype=np.int64)

    def add(self, values: NDArray[np.int16], nodata: int) -> None:
        """Count the values of an array of any shape, without `nodata` pixels."""
        counts = np.bincount(values.ravel().view(np.uint16) ^ _OFFSET, minlength=65536)
        counts[nodata + _OFFSET] = 0
        self._counts += counts

    def merge(self, other: "BandHistogram") -> None:
        """Add the counts of another histogram; the order does not matter."""
        self._counts += other._counts

    def statistics(self) -> BandStatistics:
        """Mean, population standard deviation, and the values at 1.5 and 98.5 percent, by linear interpolation.

        Raises InputError if there are no values.
        """
        total = int(self._counts.sum())
        if total == 0:
            raise InputError("there are no statistics, because all pixels of a band are missing")
        values = np.arange(65536, dtype=np.float64) - _OFFSET
        mean = float((values * self._counts).sum() / total)
        std = float(np.sqrt((self._counts * (values - mean) ** 2).sum() / total))
        return BandStatistics(
            mean,
            std,
            self._percentile(CLIPPED_PERCENT, total),
            self._percentile(100 - CLIPPED_PERCENT, total),
            total,
        )

    def _percentile(self, percent: float, total: int) -> float:
        cumulative = np.cumsum(self._counts)
        rank = percent / 100 * (total - 1)
        low, high = np.searchsorted(cumulative, [np.floor(rank), np.ceil(rank)], side="right") - _OFFSET
        return float(low + (high - low) * (rank - np.floor(rank)))


def measure_bands(
    images: Sequence[str],
    pool: Executor,
    binaries: Sequence[Path] = (),
    progress: Callable[[int], None] | None = None,
) -> list[BandStatistics]:
    """Statistics of each of the six bands over the merged images of chips (18 bands, int16, -9999 missing).

    `images` are paths for GDAL. `binaries`, if given, are six files that get the values of each band, including
    missing ones, as a `.npy` of int16 (chips x 3 x 224 x 224) that numpy can memory-map. `progress` is called with the
    number of chips done. Raises InputError if an image cannot be read, and if a band has no data at all.
    """
    totals = [BandHistogram() for _ in REFLECTANCE_BANDS]
    with contextlib.ExitStack() as stack:
        files = [_value_file(stack, path, len(images)) for path in binaries]

        def measure(start: int) -> list[BandHistogram]:
            histograms = [BandHistogram() for _ in REFLECTANCE_BANDS]
            for at, image in enumerate(images[start : start + CHIPS_PER_TASK], start):
                values = _read(image)
                for band, histogram in enumerate(histograms):
                    histogram.add(values[:, band], NODATA)
                for band, (file, first) in enumerate(files):
                    os.pwrite(file, values[:, band].tobytes(), first + at * _VALUES * values.itemsize)
            return histograms

        starts = range(0, len(images), CHIPS_PER_TASK)
        for at in range(0, len(starts), _TASKS_AT_ONCE):
            for histograms in in_parallel(pool, measure, starts[at : at + _TASKS_AT_ONCE]):
                for total, histogram in zip(totals, histograms, strict=True):
                    total.merge(histogram)
            if progress:
                progress(min((at + _TASKS_AT_ONCE) * CHIPS_PER_TASK, len(images)))
    return [total.statistics() for total in totals]


def _read(image: str) -> NDArray[np.int16]:
    """A merged image as (date, band, 224, 224)."""
    try:
        with translated(image), open_geotiff(image) as raster:
            shape = (raster.count, *raster.shape)
            if shape != (len(POSITIONS) * len(REFLECTANCE_BANDS), CHIP_SIZE, CHIP_SIZE):
                raise InputError(f"{Path(image).name} has the shape {shape}; materialize its tile again")
            if set(raster.dtypes) != {"int16"}:
                raise InputError(
                    f"{Path(image).name} has the type {raster.dtypes[0]}, not int16; materialize its tile again"
                )
            values: NDArray[np.int16] = raster.read()
    except RasterioError as error:
        raise InputError(
            f"{Path(image).name} cannot be read ({error}); materialize its tile again"
        ) from error
    return values.reshape(len(POSITIONS), len(REFLECTANCE_BANDS), CHIP_SIZE, CHIP_SIZE)


def _value_file(stack: contextlib.ExitStack, path: Path, chips: int) -> tuple[int, int]:
    """Create a `.npy` of int16 values for random writes; returns its file descriptor, and the offset of the values.

    It is not a memory map, because mapped pages count as memory of the process.
    """
    file = stack.enter_context(path.open("wb"))
    header = {"descr": "<i2", "fortran_order": False, "shape": (chips * _VALUES,)}
    np.lib.format.write_array_header_1_0(file, header)
    file.flush()
    return file.fileno(), file.tell()
