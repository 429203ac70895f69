"""Renders the three dates of a chip as colour pictures."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from crop_assets.hls import NODATA, POSITIONS, REFLECTANCE_BANDS

Composite = Literal["true_colour", "near_infrared"]

COMPOSITES: dict[Composite, tuple[str, str, str]] = {
    "true_colour": ("B04", "B03", "B02"),
    "near_infrared": ("B8A", "B04", "B03"),
}
"""The bands shown as red, green and blue: in the near-infrared composite, growing crops are red."""

_CUT_PERCENT = 2
_MIN_RANGE = 500
"""Smallest range of reflectance x 10,000 that is stretched, so that noise over water or haze stays faint."""
_EVERY = 4
"""Percentiles are of every fourth row and column, 3,136 pixels of a chip: exact enough, in a sixteenth of the time."""


def composites(image: NDArray[np.int16], kind: Composite) -> NDArray[np.uint8]:
    """The three dates of a chip in colour: uint8 (3 dates, rows, columns, 3); missing pixels are black.

    `image` is a merged chip, int16 (18, rows, columns), reflectance x 10,000 by date and band. Each date is stretched
    from its 2nd to its 98th percentile: in true colour that of the three bands together, so that colours keep their
    balance; in near infrared that of each band, because crops reflect several times as much there as in red and green.
    """
    by_date = image.reshape(len(POSITIONS), len(REFLECTANCE_BANDS), *image.shape[1:])
    shown = by_date[:, [REFLECTANCE_BANDS.index(band) for band in COMPOSITES[kind]]]
    return np.stack([stretched(date, together=kind == "true_colour") for date in shown])


def stretched(bands: NDArray[np.int16], together: bool = True) -> NDArray[np.uint8]:
    """Three bands of one date, int16 (3, rows, columns), in colour: uint8 (rows, columns, 3)."""
    there = (bands != NODATA).all(axis=0)
    sample = bands[:, ::_EVERY, ::_EVERY][:, there[::_EVERY, ::_EVERY]]
    if not sample.size:
        sample = bands[:, there]
    if not sample.size:
        return np.zeros((*there.shape, 3), np.uint8)
    limits = np.percentile(
        sample.reshape(1 if together else 3, -1), (_CUT_PERCENT, 100 - _CUT_PERCENT), axis=1
    )
    middle, half = limits.mean(axis=0), np.maximum(np.diff(limits, axis=0)[0], _MIN_RANGE) / 2
    low, scale = ((values[:, None, None]).astype(np.float32) for values in (middle - half, 127.5 / half))
    scaled = (bands.astype(np.float32) - low) * scale
    pixels: NDArray[np.uint8] = np.moveaxis(scaled.clip(0, 255).astype(np.uint8), 0, -1)
    pixels[~there] = 0
    return pixels
