"""Where the pixels of a grid lie in another: exact coordinates of chips in the rasters of scenes."""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.polynomial import chebyshev
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from crop_assets.chip_grid import chip_geobox, transformer, wkt

_NODES = 6
"""Chebyshev nodes on each axis of a target grid. The transformation from Albers to UTM is so smooth that the error is
at most 1e-8 pixel with four nodes for a block, and with six for a complete tile (measured)."""


def source_coordinates(target: GeoBox, source: GeoBox) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rows and columns in `source` of the pixel centres of `target`, float64 (h, w), by pyproj.

    0.0 is the centre of the first pixel. pyproj transforms 6 x 6 Chebyshev nodes, and a polynomial interpolates
    between them: the error is below 1e-6 pixel for a target up to the size of a tile, in a tenth of the time. Only
    additions and products are used, which give the same result on every machine. Not finite where the projection of
    `source` is not defined.
    """
    height, width = target.shape
    nodes: NDArray[Any] = chebyshev.chebpts1(_NODES)
    cols: Any
    rows: Any
    cols, rows = np.meshgrid((nodes + 1) * width / 2, (nodes + 1) * height / 2)
    x, y = transformer(wkt(target), wkt(source)).transform(*(target.affine @ (cols, rows)))
    source_cols, source_rows = ~source.affine @ (x, y)
    across, down = _basis(width), _basis(height)
    return _spread(source_rows - 0.5, down, across), _spread(source_cols - 0.5, down, across)


@functools.lru_cache(maxsize=4)
def _basis(size: int) -> NDArray[np.float64]:
    """The weight of each Chebyshev node at each of `size` pixels: float64 (nodes, size)."""
    values = chebyshev.chebvander(chebyshev.chebpts1(_NODES), _NODES - 1) * (2 / _NODES)
    values[:, 0] /= 2
    pixels = chebyshev.chebvander((np.arange(size) + 0.5) * 2 / size - 1, _NODES - 1)
    return np.asarray((values[:, :, None] * pixels.T).sum(axis=1), np.float64)


def _spread(
    at_nodes: NDArray[np.float64], down: NDArray[np.float64], across: NDArray[np.float64]
) -> NDArray[np.float64]:
    # not a matrix product: its last bits depend on the processor
    rows = (at_nodes[:, :, None] * across).sum(axis=1)
    spread: NDArray[np.float64] = down[0][:, None] * rows[0]
    term = np.empty_like(spread)
    for node in range(1, _NODES):
        spread += np.multiply(down[node][:, None], rows[node], out=term)
    return spread


def is_inside(index: NDArray[np.int32], size: int) -> NDArray[np.bool_]:
    return (index >= 0) & (index < size)


@functools.lru_cache(maxsize=64)
def blocks_of_chips(chips: tuple[str, ...], source: GeoBox, block: tuple[int, int]) -> frozenset[int]:
    """The blocks of `source` that hold the four neighbours of any pixel of these chips, which is what
    `crop_assets.chips.warp.source_pixels` weighs.

    `block` is (rows, columns) of pixels; blocks are numbered row by row. Cached, because the bands of a scene have one
    grid, and mostly all scenes of a tile have.
    """
    return frozenset(n for chip in chips for n in _blocks_of(chip_geobox(chip), source, block))


def _blocks_of(target: GeoBox, source: GeoBox, block: tuple[int, int]) -> Sequence[int]:
    rows, cols = source_coordinates(target, source)
    if not (np.isfinite(rows).all() and np.isfinite(cols).all()):
        return []
    height, width = source.shape
    row = np.floor(rows).clip(-2, height + 1).astype(np.int32)
    col = np.floor(cols).clip(-2, width + 1).astype(np.int32)
    found: set[int] = set()
    for down, across in itertools.product((0, 1), repeat=2):
        inside = is_inside(row + down, height) & is_inside(col + across, width)
        numbers = (row + down) // block[0] * -(-width // block[1]) + (col + across) // block[1]
        found.update(np.unique(numbers[inside]).tolist())
    return sorted(found)
