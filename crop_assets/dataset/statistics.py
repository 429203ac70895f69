"""Statistics of the six bands over many chips, in one pass and in memory that does not grow with them.

Belongs here: partial statistics that add up, and what is read off them. Does not: finding chips.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_OFFSET = 32768
CLIPPED_PERCENT = 1.5
"""Share of values clipped at either end before minimum and maximum are taken (published statistics)."""


@dataclass(frozen=True)
class BandStatistics:
    """Statistics of one band, in the units of the raster (reflectance x 10,000)."""

    mean: float
    std: float
    minimum: float
    maximum: float
    pixels: int


class BandHistogram:
    """How often each int16 value occurs in a band: everything exact that its statistics need, in 512 KiB."""

    def __init__(self) -> None:
        self._counts = np.zeros(65536, dtype=np.int64)

    def add(self, values: NDArray[np.int16], nodata: int) -> None:
        """Count an array of any shape; `nodata` pixels are left out."""
        counts = np.bincount(values.ravel().astype(np.int32) + _OFFSET, minlength=65536)
        counts[nodata + _OFFSET] = 0
        self._counts += counts

    def statistics(self) -> BandStatistics:
        """Mean, population standard deviation, and the values at 1.5 and 98.5 percent, by linear interpolation.

        Raises ValueError where nothing was counted.
        """
        total = int(self._counts.sum())
        if total == 0:
            raise ValueError("there are no pixels to take statistics of")
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
