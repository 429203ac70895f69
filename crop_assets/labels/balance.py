"""Chooses boxes whose classes together come as close to a target as the landscape allows.

Ranking boxes one by one, as `sampling.evenness` does, cannot do that: the most even boxes all hold the same common
classes. Here boxes are chosen for their sum.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from crop_assets.chip_grid import CHIP_SIZE

_STEPS = 50
_SWAPS = 2000
_PIXELS = CHIP_SIZE * CHIP_SIZE
_PRICE_SCALE = 1 << 20


@dataclass(frozen=True)
class Balance:
    """The target of a balanced choice, and how far its boxes are spread out."""

    target: tuple[float, ...] = (1 / 13,) * 13
    """Shares of the classes 1 to 13; they add up to 1."""
    block_chips: int = 8
    """Side of a block in chips."""
    max_per_block: int = 8
    """Maximum number of boxes per block, unless that leaves too few."""
    seed: int = 42


def choose_balanced(
    counts: NDArray[np.int32], rows: NDArray[np.int64], cols: NDArray[np.int64], chips: int, balance: Balance
) -> NDArray[np.intp]:
    """Indices, ascending, of the `chips` boxes whose classes together come closest to the target; all if there are few.

    `counts` is [n, 13], the pixels of classes 1 to 13 of boxes without no-data pixels (224 * 224 each); `rows` and
    `cols`, [n], are their positions on the chip grid. Closeness is the sum of squares over the classes.

    The relaxed problem, in which fractions of boxes may be taken, is convex and is solved by the Frank-Wolfe method
    (Jaggi, ICML 2013): each step prices the classes by how much is lacking and takes the boxes of the highest price.
    The solution is rounded, and then boxes are swapped for better ones. Ties are broken by a hash of seed and
    position, and all sums over boxes are of integers below 2^53, so the choice depends neither on the order of the
    boxes nor on the machine.
    """
    total = len(counts)
    if total <= chips:
        return np.arange(total)
    places = np.array(balance.seed << 32 | rows << 16 | cols, np.uint64)
    shuffled = np.argsort(pd.util.hash_array(places))
    classes = counts[shuffled].astype(np.float64)
    blocks = (rows // balance.block_chips << 16 | cols // balance.block_chips)[shuffled]
    _, block = np.unique(blocks, return_inverse=True)
    limit = max(balance.max_per_block, _smallest_limit(np.bincount(block), chips))
    aim = _apportioned(balance.target, chips * _PIXELS)
    shares = _relaxed(classes, block, aim, chips, limit)
    chosen = _best(shares, block, chips, limit)
    return np.sort(shuffled[_swapped(classes, block, aim, chosen, limit)])


def target_shares(wanted: Mapping[str, float], names: Sequence[str]) -> tuple[float, ...]:
    """The target share of each class; shares add up to 1.

    `wanted` has weights by name of class; a class that it does not name weighs 1.
    """
    weights = [wanted.get(name, 1.0) for name in names]
    return tuple(weight / math.fsum(weights) for weight in weights)


def distance(pixels: NDArray[np.int64], target: Sequence[float]) -> float:
    """The share of pixels that would need another class to match `target`, 0 to 1.

    `pixels` is [13], by class. This is the total variation distance of the two distributions.
    """
    shares = pixels / max(int(pixels.sum()), 1)
    return float(np.abs(shares - np.asarray(target)).sum() / 2)


def _relaxed(
    classes: NDArray[np.float64], block: NDArray[np.intp], aim: NDArray[np.float64], chips: int, limit: int
) -> NDArray[np.float64]:
    """The fraction of each box in the best mixture, 0 to 1."""
    common = np.maximum(classes.sum(axis=0), 1)
    prices = np.round(common.min() / common * _PRICE_SCALE)
    shares = np.zeros(len(classes))
    sums = np.zeros_like(aim)
    for step in range(_STEPS):
        taken = _best(classes @ prices, block, chips, limit)
        towards = classes[taken].sum(axis=0) - sums
        lacking = aim - sums
        length = math.fsum(towards * towards)
        stride = min(1.0, max(0.0, math.fsum(lacking * towards) / length)) if length else 0.0
        if step == 0:
            stride = 1.0
        elif stride == 0:
            break
        sums = sums + stride * towards
        shares *= 1 - stride
        shares[taken] += stride
        lacking = aim - sums
        if not lacking.any():
            break
        prices = np.round(lacking / np.abs(lacking).max() * _PRICE_SCALE)
    return shares


def _swapped(
    classes: NDArray[np.float64],
    block: NDArray[np.intp],
    aim: NDArray[np.float64],
    chosen: NDArray[np.intp],
    limit: int,
) -> NDArray[np.intp]:
    """`chosen`, after swapping the worst box for the one that then fits best, as long as that helps."""
    inside = np.zeros(len(classes), bool)
    inside[chosen] = True
    used = np.bincount(block[chosen], minlength=block.max() + 1)
    squares = (classes * classes).sum(axis=1)
    excess = classes[chosen].sum(axis=0) - aim
    for _ in range(_SWAPS):
        out = int(np.where(inside, squares - 2 * (classes @ excess), np.inf).argmin())
        without = excess - classes[out]
        free = ~inside & ((used < limit)[block] | (block == block[out]))
        into = int(np.where(free, squares + 2 * (classes @ without), np.inf).argmin())
        after = without + classes[into]
        if not free[into] or math.fsum(after * after) >= math.fsum(excess * excess):
            break
        inside[[out, into]] = False, True
        used[block[[out, into]]] += (-1, 1) if block[out] != block[into] else (0, 0)
        excess = after
    return np.flatnonzero(inside)


def _best(worth: NDArray[np.float64], block: NDArray[np.intp], chips: int, limit: int) -> NDArray[np.intp]:
    """The `chips` boxes of the greatest worth, at most `limit` per block; ties go to the first."""
    ranked = np.argsort(-worth, kind="stable")
    by_block = np.argsort(block[ranked], kind="stable")
    in_order = block[ranked][by_block]
    starts = np.searchsorted(in_order, in_order)
    rank_in_block = np.empty(len(ranked), np.intp)
    rank_in_block[by_block] = np.arange(len(ranked)) - starts
    return ranked[rank_in_block < limit][:chips]


def _smallest_limit(sizes: NDArray[np.intp], chips: int) -> int:
    """The smallest limit per block that leaves `chips` boxes, given the sizes of the blocks."""
    low, high = 1, int(sizes.max())
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if np.minimum(sizes, middle).sum() >= chips else (middle + 1, high)
    return low


def _apportioned(target: Sequence[float], pixels: int) -> NDArray[np.float64]:
    """`pixels` distributed over the classes by `target` as integers (largest remainder method)."""
    exact = [share * pixels for share in target]
    integers = [math.floor(value) for value in exact]
    first = sorted(range(len(exact)), key=lambda i: (integers[i] - exact[i], i))
    for i in first[: pixels - sum(integers)]:
        integers[i] += 1
    return np.array(integers, np.float64)
