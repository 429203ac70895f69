"""Exact resampling of a scene's bands to the CDL grid, one chip block at a time, on arrays.

The value of a pixel does not depend on what else is computed: each block is computed on its own, with pyproj's
coordinates, while GDAL's default warp approximates coordinates per chunk. The scenes of a tile share one grid, so the
coordinates of a block are computed once for all bands and dates.
"""

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio.windows import Window

from crop_assets.coordinates import is_inside, source_coordinates
from crop_assets.hls import NODATA, QA_NODATA

if TYPE_CHECKING:
    from scipy.sparse import csr_array

_ROUNDING = 1e-9
"""The weights of four neighbours with data add up to 1 within this."""


@dataclass(frozen=True)
class SourcePixels:
    """The source pixels for each pixel of a target grid (h x w), computed once for all bands.

    `window` is the part of the source to read. `weights` maps its flattened pixels to the bilinear mean of the four
    neighbours of each target pixel: float64 (h * w, pixels of the window), 0 for neighbours outside the source.
    `nearest` is the index of the nearest pixel of the window, intp (h, w), and `inside` whether that pixel is in the
    source; `within` is true if all four neighbours of every target pixel are in the source.
    """

    window: Window
    weights: "csr_array"
    nearest: NDArray[np.intp]
    inside: NDArray[np.bool_]
    within: bool


def source_pixels(target: GeoBox, source: GeoBox) -> SourcePixels | None:
    """The source pixels for each pixel of `target`; None if `target` is completely outside `source`."""
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
    inside = is_inside(nearest_row, height) & is_inside(nearest_col, width)
    if not inside.any():
        return None
    corners = list(itertools.product((0, 1), repeat=2))
    first = row * width + col
    neighbours = np.empty((*first.shape, len(corners)), np.int32)
    weights = np.empty(neighbours.shape)
    from_above, from_left = 1 - down, 1 - across
    for at, (r, c) in enumerate(corners):
        np.add(first, r * width + c, out=neighbours[..., at])
        np.multiply(down if r else from_above, across if c else from_left, out=weights[..., at])
    within = bool(row.min() >= 0 and row.max() < height - 1 and col.min() >= 0 and col.max() < width - 1)
    if not within:
        beyond = ~np.stack(
            [is_inside(row + r, height) & is_inside(col + c, width) for r, c in corners], axis=-1
        )
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
    """For one axis: the pixel before each coordinate, relative to the start of the window; the fraction of the way to
    the next pixel; and the start and size of the window (size 0 or less if no coordinate is near the source).
    """
    before = np.floor(coordinates)
    fraction = coordinates - before
    start = max(0, int(before.min()))
    stop = min(size, int(before.max()) + 2)
    before -= start
    # clip far coordinates so that they do not overflow; they stay outside the window
    near = before.clip(-2, size + 1, out=before).astype(np.int32)
    return near, fraction, start, stop - start


def bilinear(
    values: NDArray[np.int16], at: SourcePixels, fill: float, nodata: int = NODATA
) -> NDArray[np.int16]:
    """Bilinear interpolation of the window `at.window` of a source at exact coordinates, rounded half up.

    A target pixel has data if its nearest source pixel has. Its value is the mean of its neighbours with data, by
    their bilinear weights, so fill never bleeds into data; if all four have data, that is plain bilinear
    interpolation. All other pixels are `nodata`.
    """
    pixels = values.ravel()
    # numpy converts all pixels to compare them with a float
    is_data = pixels != (int(fill) if float(fill).is_integer() else fill)
    all_data = bool(is_data.all())
    # one product in scipy is faster than the steps of an interpolation in numpy, and scales well with threads
    mean: NDArray[np.float64] = at.weights @ (pixels if all_data else np.where(is_data, pixels, 0)).astype(
        float
    )
    if not (at.within and all_data):
        weight = at.weights @ is_data.astype(np.float64)
        at_edge = (weight < 1 - _ROUNDING) & (weight > 0)
        mean[at_edge] /= weight[at_edge]
        mean[~(at.inside.ravel() & is_data.take(at.nearest.ravel()))] = nodata
    mean += 0.5
    return np.floor(mean, out=mean).astype(np.int16).reshape(at.inside.shape)


def nearest(values: NDArray[np.uint8], at: SourcePixels, nodata: int = QA_NODATA) -> NDArray[np.uint8]:
    """The nearest source pixel in the window `at.window`; `nodata` outside the source."""
    return np.where(at.inside, values.ravel().take(at.nearest), nodata).astype(np.uint8)
