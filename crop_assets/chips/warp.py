"""Exact resampling of a scene's bands onto the CDL grid, chip block by chip block.

A pixel has the same value whatever is computed beside it: each block is computed by itself, from source
coordinates that are pyproj's. GDAL's default warp approximates coordinates per chunk. The scenes of a tile
share one grid, so the coordinates of a block are computed once for all of its bands and dates.

Belongs here: coordinates and interpolation, of arrays. Does not: files (`reproject`).
"""

import functools
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.polynomial import chebyshev
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio.windows import Window

from crop_assets.chip_grid import transformer, wkt
from crop_assets.hls import NODATA, QA_NODATA

if TYPE_CHECKING:
    from scipy.sparse import csr_array

_NODES = 6
"""Chebyshev nodes on each axis of a target grid. From Albers to UTM is so smooth a step that four leave no more
than 1e-8 pixel over a block, and six over a whole tile (measured)."""
_ROUNDING = 1e-9
"""Weights of four neighbours that are all data add up to 1 but for this."""


@dataclass(frozen=True)
class SourcePixels:
    """Where the pixels of a target grid (h x w) lie in a source raster, computed once for all of its bands.

    `window` is the part of the source to read. `weights` takes its pixels, flattened, to the bilinear mean of the
    four around each target pixel: float64 (h * w, pixels of the window), with 0 for those beyond the source.
    `nearest` is the index of the nearest pixel of the window, intp (h, w), and `inside` whether it lies in the
    source; `within` is whether each target pixel has all its four neighbours in the source.
    """

    window: Window
    weights: "csr_array"
    nearest: NDArray[np.intp]
    inside: NDArray[np.bool_]
    within: bool


def source_coordinates(target: GeoBox, source: GeoBox) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rows and columns in `source` of the pixel centres of `target`, float64 (h, w), as pyproj has them.

    0.0 is the centre of the first pixel. pyproj is asked at 6 x 6 Chebyshev nodes; the polynomial through them
    is within 1e-6 pixel for a target up to the size of a tile, in a tenth of the time. It is evaluated
    by additions and products alone, which are the same on every machine. Not finite where the
    projection of `source` has no such place.
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
    """What the value at each Chebyshev node adds to each of `size` pixels: float64 (nodes, size)."""
    values = chebyshev.chebvander(chebyshev.chebpts1(_NODES), _NODES - 1) * (2 / _NODES)
    values[:, 0] /= 2
    pixels = chebyshev.chebvander((np.arange(size) + 0.5) * 2 / size - 1, _NODES - 1)
    return np.asarray((values[:, :, None] * pixels.T).sum(axis=1), np.float64)


def _spread(
    at_nodes: NDArray[np.float64], down: NDArray[np.float64], across: NDArray[np.float64]
) -> NDArray[np.float64]:
    # no matrix product, whose last bits depend on the processor
    rows = (at_nodes[:, :, None] * across).sum(axis=1)
    spread = np.zeros((down.shape[1], across.shape[1]))
    for node in range(_NODES):
        spread += down[node][:, None] * rows[node]
    return spread


def source_pixels(target: GeoBox, source: GeoBox) -> SourcePixels | None:
    """Where each pixel centre of `target` lies in `source`; None where none is inside of it."""
    # only this step needs scipy, which takes 0.3 s to import
    from scipy.sparse import csr_array

    rows, cols = source_coordinates(target, source)
    if not (np.isfinite(rows).all() and np.isfinite(cols).all()):
        return None
    row, down, top, height = _along(rows, source.shape[0])
    col, across, left, width = _along(cols, source.shape[1])
    if height <= 0 or width <= 0:
        return None
    nearest_row, nearest_col = row + (down >= 0.5), col + (across >= 0.5)
    inside = _within(nearest_row, height) & _within(nearest_col, width)
    if not inside.any():
        return None
    corners = list(itertools.product((0, 1), repeat=2))
    neighbours = (row * width + col)[..., None] + np.array([r * width + c for r, c in corners], np.int32)
    weights = np.empty(neighbours.shape)
    for at, (r, c) in enumerate(corners):
        np.multiply(down if r else 1 - down, across if c else 1 - across, out=weights[..., at])
    within = bool(row.min() >= 0 and row.max() < height - 1 and col.min() >= 0 and col.max() < width - 1)
    if not within:
        beyond = ~np.stack([_within(row + r, height) & _within(col + c, width) for r, c in corners], axis=-1)
        weights[beyond], neighbours[beyond] = 0, 0
    matrix = csr_array(
        (weights.ravel(), neighbours.ravel(), np.arange(0, neighbours.size + 1, 4, dtype=np.int32)),
        shape=(rows.size, height * width),
    )
    nearest_at = np.where(inside, nearest_row * width + nearest_col, 0).astype(np.intp)
    return SourcePixels(Window(left, top, width, height), matrix, nearest_at, inside, within)


def _along(
    coordinates: NDArray[np.float64], size: int
) -> tuple[NDArray[np.int32], NDArray[np.float64], int, int]:
    """On one axis: the pixel before each coordinate, counted from the window's start, the share of the way to the
    next, and the window's start and size (not above 0 where no coordinate is near the source).
    """
    before = np.floor(coordinates)
    start = max(0, int(before.min()))
    stop = min(size, int(before.max()) + 2)
    # so that a far coordinate cannot overflow; it is beyond the window all the same
    near = (before - start).clip(-2, size + 1).astype(np.int32)
    return near, coordinates - before, start, stop - start


def _within(index: NDArray[np.int32], size: int) -> NDArray[np.bool_]:
    return (index >= 0) & (index < size)


def bilinear(
    values: NDArray[np.int16], at: SourcePixels, fill: float, nodata: int = NODATA
) -> NDArray[np.int16]:
    """Bilinear interpolation of the window `at.window` of a source at exact coordinates, rounded half up.

    A target pixel is data if its nearest source pixel is; it is then the mean of those of its four
    neighbours that are data, by their bilinear weights, so that fill never bleeds into data. Where all
    four are data that is plain bilinear interpolation. Elsewhere the result is `nodata`.
    """
    pixels = values.ravel()
    is_data = pixels != fill
    # one product in scipy takes less time than the steps of an interpolation in numpy, and threads share it well
    mean: NDArray[np.float64] = at.weights @ np.where(is_data, pixels, 0).astype(np.float64)
    if not (at.within and is_data.all()):
        weight = at.weights @ is_data.astype(np.float64)
        at_edge = (weight < 1 - _ROUNDING) & (weight > 0)
        mean[at_edge] /= weight[at_edge]
        mean[~(at.inside.ravel() & is_data.take(at.nearest.ravel()))] = nodata
    mean += 0.5
    return np.floor(mean, out=mean).astype(np.int16).reshape(at.inside.shape)


def nearest(values: NDArray[np.uint8], at: SourcePixels, nodata: int = QA_NODATA) -> NDArray[np.uint8]:
    """The nearest source pixel in the window `at.window`; `nodata` outside of the source."""
    return np.where(at.inside, values.ravel().take(at.nearest), nodata).astype(np.uint8)
