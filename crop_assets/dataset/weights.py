"""Class weights for a loss function."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from crop_assets.errors import InputError


def class_weights(pixels: Sequence[int]) -> NDArray[np.float64]:
    """Balanced weights (inversely proportional to the pixels of a class) that sum to 1, float64 (14,).

    `pixels` has the number of pixels of classes 0 to 13. Class 0, which is ignored in training, and classes without
    pixels get the weight 0. Raises InputError if no class has pixels, and for negative counts.
    """
    counts = np.asarray(pixels, dtype=np.float64).copy()
    counts[0] = 0
    if not counts.any() or counts.min() < 0:
        raise InputError("no pixel has a class, or counts are negative, so there are no class weights")
    weights = np.divide(1.0, counts, out=np.zeros_like(counts), where=counts > 0)
    return np.asarray(weights / weights.sum())
