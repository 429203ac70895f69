"""Weights of the classes for a loss function.

Belongs here: weights from pixel counts. Does not: counting.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from crop_assets.errors import InputError


def class_weights(pixels: Sequence[int]) -> NDArray[np.float64]:
    """Balanced weights (inversely proportional to the pixels of a class) that sum to 1, float64 (14,).

    `pixels` counts the pixels of class 0 to 13. Class 0, which is ignored in training, and a class without a
    pixel weigh 0; no other class moves for that. Raises InputError where no class has a pixel, or one less than none.
    """
    counts = np.asarray(pixels, dtype=np.float64).copy()
    counts[0] = 0
    if not counts.any() or counts.min() < 0:
        raise InputError("no pixel has a class, or counts are negative, so classes cannot be weighed")
    weights = np.divide(1.0, counts, out=np.zeros_like(counts), where=counts > 0)
    return np.asarray(weights / weights.sum())
