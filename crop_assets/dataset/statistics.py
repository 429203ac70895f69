"""Statistics of the six bands on the three dates over many chips, in one pass and in constant memory."""

import contextlib
import json
import os
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.errors import RasterioError

from crop_assets.chip_grid import CHIP_SIZE
from crop_assets.errors import InputError
from crop_assets.hls import NODATA, POSITIONS, REFLECTANCE_BANDS
from resources.geodata import open_geotiff
from resources.object_store import translated
from resources.parallel import in_parallel

_OFFSET = 32768
_VALUES = len(POSITIONS) * CHIP_SIZE**2
"""Values of one band in a chip."""
CHIPS_PER_TASK = 8
_TASKS_AT_ONCE = 32
CLIPPED_PERCENT = 1.5
"""Share of values clipped at either end for minimum and maximum, as in the published statistics."""

Counts = NDArray[np.int64]
"""How often each int16 value occurs, from -32768 on: int64 (..., 65536), all that exact statistics need."""


@dataclass(frozen=True)
class BandStatistics:
    """Statistics of one band, in the units of the raster (reflectance x 10,000)."""

    mean: float
    std: float
    minimum: float
    maximum: float
    pixels: int


def count_values(values: NDArray[np.int16]) -> Counts:
    """How often each value occurs in an array of any shape; missing pixels (-9999) are not counted."""
    counts = np.bincount(values.ravel().view(np.uint16) ^ _OFFSET, minlength=65536)
    counts[NODATA + _OFFSET] = 0
    return counts


def band_statistics(counts: Counts) -> BandStatistics:
    """Mean, population standard deviation, and the values at 1.5 and 98.5 percent, by linear interpolation.

    Raises InputError if there are no values.
    """
    total = int(counts.sum())
    if total == 0:
        raise InputError("there are no statistics, because all pixels of a band are missing")
    values = np.arange(65536, dtype=np.float64) - _OFFSET
    mean = float((values * counts).sum() / total)
    std = float(np.sqrt((counts * (values - mean) ** 2).sum() / total))
    low, high = (percentile(counts, percent) for percent in (CLIPPED_PERCENT, 100 - CLIPPED_PERCENT))
    return BandStatistics(mean, std, low, high, total)


def percentile(counts: Counts, percent: float) -> float:
    """The value at a percentile, by linear interpolation as numpy's. There must be values."""
    cumulative = np.cumsum(counts)
    rank = percent / 100 * (int(cumulative[-1]) - 1)
    low, high = np.searchsorted(cumulative, [np.floor(rank), np.ceil(rank)], side="right") - _OFFSET
    return float(low + (high - low) * (rank - np.floor(rank)))


def measure_bands(
    images: Sequence[str],
    splits: Sequence[str],
    pool: Executor,
    binaries: Sequence[Path] = (),
    in_binaries: Collection[str] = (),
    progress: Callable[[int], None] | None = None,
) -> dict[str, Counts]:
    """How often each value occurs in the merged images of chips (18 bands, int16, -9999 missing): for each split int64
    (3 dates, 6 bands, 65536).

    `images` are paths for GDAL, and `splits` their splits. `binaries`, if given, are six files that get the values of
    each band, including missing ones, of the images of the splits `in_binaries`, as a `.npy` of int16 (chips x 3 x 224
    x 224) that numpy can memory-map. `progress` is called with the number of chips done. Raises InputError if an image
    cannot be read.
    """
    totals = {
        split: np.zeros((len(POSITIONS), len(REFLECTANCE_BANDS), 65536), np.int64)
        for split in dict.fromkeys(splits)
    }
    lock = threading.Lock()
    chosen = np.isin(list(splits), list(in_binaries))
    place = np.cumsum(chosen) - 1
    with contextlib.ExitStack() as stack:
        files = [_value_file(stack, path, int(chosen.sum())) for path in binaries]

        def measure(start: int) -> None:
            for at, image in enumerate(images[start : start + CHIPS_PER_TASK], start):
                values = _read(image)
                total = totals[splits[at]]
                for date, band in np.ndindex(total.shape[:2]):
                    counts = count_values(values[date, band])
                    with lock:
                        total[date, band] += counts
                for band, (file, first) in enumerate(files if chosen[at] else ()):
                    offset = int(place[at]) * _VALUES * values.itemsize
                    os.pwrite(file, values[:, band].tobytes(), first + offset)

        starts = range(0, len(images), CHIPS_PER_TASK)
        for at in range(0, len(starts), _TASKS_AT_ONCE):
            in_parallel(pool, measure, starts[at : at + _TASKS_AT_ONCE])
            if progress:
                progress(min((at + _TASKS_AT_ONCE) * CHIPS_PER_TASK, len(images)))
    return totals


def statistics_texts(
    counts: Mapping[str, Counts], over: Collection[str], chips: Mapping[str, int]
) -> dict[str, str]:
    """The texts of the files with statistics, by name, from what `measure_bands` returns.

    `over` are the splits whose statistics normalise; `chips` has the chips of each split. Raises InputError if a band
    of `over` has no values on a date.
    """
    chosen = np.sum([counts[split] for split in over], axis=0)
    bands = [band_statistics(of_band) for of_band in chosen.sum(axis=0)]
    by_date = [[band_statistics(of_band) for of_band in of_date] for of_date in chosen]
    texts = {
        f"band_stats/band_values_{number}.txt": f"Mean: {band.mean}\nStd: {band.std}\n"
        f"Min: {band.minimum}\nMax: {band.maximum}\n"
        for number, band in enumerate(bands, start=1)
    }
    figures = {"min": "minimum", "max": "maximum", "mean": "mean", "std": "std"}
    texts["global_stats.txt"] = "".join(
        f"{name}: [{', '.join(f'{getattr(band, field):.6f}' for band in bands)}]\n"
        for name, field in figures.items()
    )
    for name, field in (("means", "mean"), ("stds", "std")):
        texts[f"{name}.txt"] = "".join(f"{getattr(band, field):.6f}\n" for band in bands)
        texts[f"{name}_by_date.txt"] = "".join(
            f"{getattr(band, field):.6f}\n" for of_date in by_date for band in of_date
        )
    document = {
        "unit": "reflectance x 10,000",
        "missing": NODATA,
        "clipped_percent": CLIPPED_PERCENT,
        "over": list(over),
        "splits": {
            split: {"chips": int(chips[split]), "bands": _band_documents(counts[split])}
            for split in sorted(counts)
        },
        "bands": _band_documents(chosen),
    }
    return texts | {"statistics.json": json.dumps(document, indent=2) + "\n"}


def _band_documents(counts: Counts) -> dict[str, Any]:
    return {
        name: {
            **_document(counts[:, band].sum(axis=0)),
            "dates": {position: _document(counts[date, band]) for date, position in enumerate(POSITIONS)},
        }
        for band, name in enumerate(REFLECTANCE_BANDS)
    }


def _document(counts: Counts) -> dict[str, Any]:
    """Statistics as JSON values; null if there are no values."""
    if not counts.any():
        return {"mean": None, "std": None, "min": None, "max": None, "pixels": 0}
    found = band_statistics(counts)
    return {
        "mean": found.mean,
        "std": found.std,
        "min": found.minimum,
        "max": found.maximum,
        "pixels": found.pixels,
    }


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
