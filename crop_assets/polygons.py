"""Repairs and joins polygons from outside in bounded time."""

import numpy as np
import shapely
from numpy.typing import NDArray

from crop_assets.errors import InputError

MAX_VERTICES = 2_000_000
MAX_CROSSINGS = 1000
"""Maximum crossings of a polygon's outline with itself: repairing 1,000 takes 0.7 s, ten times as many 40 s."""
MAX_CROSSINGS_OF_ALL = 20_000
"""Maximum crossings between the outlines of valid polygons; joining them takes 2 s."""
_SEGMENTS_AT_ONCE, _PAIRS_AT_ONCE = 256, 100_000
_MAX_NEAR = 10_000_000
"""Pairs of segments whose bounds touch; checking them takes 4 s. An outline of 2,000,000 short segments has 6,000,000,
because each touches itself and its neighbours."""


def make_valid(shapes: NDArray[np.object_], max_crossings: int = MAX_CROSSINGS) -> NDArray[np.object_]:
    """The geometries as `shapely.make_valid` repairs them, [n].

    Raises InputError if there are more than `MAX_VERTICES` vertices, or the outlines of invalid polygons cross or touch
    themselves more than `max_crossings` times in all.
    """
    vertices = int(shapely.get_num_coordinates(shapes).sum())
    if vertices > MAX_VERTICES:
        raise InputError(f"{vertices:,} vertices are more than {MAX_VERTICES:,}; simplify the polygons")
    valid: NDArray[np.object_] = shapes.copy()
    left = max_crossings
    for i in np.flatnonzero(~shapely.is_valid(shapes)):
        left -= _crossings(shapes[i : i + 1], left)
        if left < 0:
            raise InputError(
                f"outlines cross themselves more than {max_crossings:,} times; redraw or simplify them"
            )
        valid[i] = shapely.make_valid(shapes[i])
    return valid


def join(shapes: NDArray[np.object_], max_crossings: int = MAX_CROSSINGS_OF_ALL) -> shapely.Geometry:
    """The union of valid polygons. Raises InputError if their outlines cross more than `max_crossings` times."""
    if _crossings(shapes, max_crossings) > max_crossings:
        raise InputError(
            f"outlines cross one another more than {max_crossings:,} times; simplify the polygons"
        )
    return shapely.union_all(shapes)


def _crossings(shapes: NDArray[np.object_], maximum: int) -> int:
    """How many pairs of segments that are not neighbours share a point; counting ends above `maximum`.

    Raises InputError if more than `_MAX_NEAR` pairs would have to be checked.
    """
    rings = shapely.get_rings(shapely.get_parts(shapes))
    points, ring = shapely.get_coordinates(rings, return_index=True)
    segments = shapely.linestrings(np.stack([points[:-1], points[1:]], axis=1)[ring[:-1] == ring[1:]])
    tree, found, checked = shapely.STRtree(segments), 0, 0
    at_once = max(16, min(_SEGMENTS_AT_ONCE, 200 * _PAIRS_AT_ONCE // max(1, len(segments))))
    for start in range(0, len(segments), at_once):
        some = segments[start : start + at_once]
        mine, others = tree.query(some)
        checked += len(mine)
        if checked > _MAX_NEAR:
            raise InputError("outlines have too many long edges side by side; simplify the polygons")
        # each shares a point with itself and its two neighbours, and each pair is found twice
        found -= 3 * len(some)
        for slice_start in range(0, len(mine), _PAIRS_AT_ONCE):
            pairs = slice(slice_start, slice_start + _PAIRS_AT_ONCE)
            found += int(shapely.intersects(some[mine[pairs]], segments[others[pairs]]).sum())
            if found > 2 * maximum:
                return maximum + 1
        found = max(0, found)
    return -(-found // 2)
