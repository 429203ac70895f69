"""The scan of a CDL raster for chip boxes, and the statistics of many chips: this project, and the plain loops.

Both are measured on as much as takes some seconds; both scale with the number of chips.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import rasterio

from crop_assets.chip_grid import CHIP_SIZE, chip_window
from crop_assets.classes import CDL_CLASSES, CLASSES
from crop_assets.dataset.statistics import CLIPPED_PERCENT, measure_bands
from crop_assets.labels.cdl import check_cdl, chip_histograms
from resources.machine import Machine

Work = Iterator[Callable[[], object]]


@contextlib.contextmanager
def scan_ours(root: Path) -> Work:
    """The project's block-wise histograms."""
    with Machine().pool() as pool:
        yield lambda: chip_histograms(check_cdl(root / "cdl.tif"), pool)


@contextlib.contextmanager
def scan_loop(root: Path) -> Work:
    """A window read and `np.unique` per chip."""

    def work() -> None:
        cdl = check_cdl(root / "cdl.tif")
        counts = {}
        with rasterio.open(root / "cdl.tif") as raster:
            for row in cdl.chip_rows:
                for col in cdl.chip_cols:
                    codes = raster.read(1, window=chip_window(raster.transform, row, col))
                    found: Counter[int] = Counter()
                    for code, count in zip(*np.unique(codes, return_counts=True), strict=True):
                        found[CDL_CLASSES[int(code)]] += int(count)
                    counts[row, col] = [found[value] for value in range(len(CLASSES))]

    yield work


@contextlib.contextmanager
def scan_floor(root: Path) -> Work:
    """Only reads and decodes all blocks, in one thread."""

    def work() -> None:
        with rasterio.open(root / "cdl.tif") as raster:
            for _, window in raster.block_windows(1):
                raster.read(1, window=window)

    yield work


def _images(root: Path) -> list[str]:
    return sorted(map(str, (root / "chips").glob("*_merged.tif")))


@contextlib.contextmanager
def statistics_ours(root: Path) -> Work:
    """The project's histograms in one pass."""
    images = _images(root)
    with Machine().pool() as pool:

        def work() -> None:
            measure_bands(images, [""] * len(images), pool)

        yield work


@contextlib.contextmanager
def statistics_concatenate(root: Path) -> Work:
    """One of the six bands: each chip's values appended to what there is, then sorted to clip both ends."""
    images = _images(root)

    def work() -> None:
        values = np.array([])
        for image in images:
            with rasterio.open(image) as raster:
                pixels = raster.read([1, 7, 13])
            values = np.concatenate([values, pixels.ravel()])
        ranked, clipped = np.sort(values), int(len(values) * CLIPPED_PERCENT / 100)
        _ = (values.mean(), values.std(), ranked[clipped], ranked[-1 - clipped])

    yield work


def megapixels(root: Path) -> float:
    """Size of the CDL raster that is scanned."""
    cdl = check_cdl(root / "cdl.tif")
    return len(cdl.chip_rows) * len(cdl.chip_cols) * CHIP_SIZE**2 / 1e6
