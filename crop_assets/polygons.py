"""Polygons from outside, made valid and joined in bounded time."""

import numpy as np
import shapely
from numpy.typing import NDArray

from crop_assets.errors import InputError

MOST_VERTICES = 2_000_000
MOST_CROSSINGS = 1000
"""How often a polygon's outline may cross itself: 1,000 times take 0.7 s to sort out, and ten times as many 40 s."""
MOST_CROSSINGS_OF_ALL = 20_000
"""How often the outlines of valid polygons may cross one another: a join of them takes 2 s."""
_SEGMENTS_AT_ONCE = 256


def make_valid(shapes: NDArray[np.object_], most_crossings: int = MOST_CROSSINGS) -> NDArray[np.object_]:
    """The geometries as `shapely.make_valid` repairs them, [n].

    Raises InputError for more than `MOST_VERTICES` vertices, and where the outlines of those that are not valid cross
    or touch themselves more than `most_crossings` times in all.
    """
    vertices = int(shapely.get_num_coordinates(shapes).sum())
    if vertices > MOST_VERTICES:
        raise InputError(f"{vertices:,} vertices are more than {MOST_VERTICES:,}; simplify the polygons")
    valid: NDArray[np.object_] = shapes.copy()
    left = most_crossings
    for i in np.flatnonzero(~shapely.is_valid(shapes)):
        left -= _crossings(shapes[i : i + 1], left)
        if left < 0:
            raise InputError(
                f"outlines cross themselves more than {most_crossings:,} times; draw them anew, or simplify them"
            )
        valid[i] = shapely.make_valid(shapes[i])
    return valid


def join(shapes: NDArray[np.object_]) -> shapely.Geometry:
    """The union of valid polygons. Raises InputError for more than `MOST_CROSSINGS_OF_ALL` crossings of outlines."""
    if _crossings(shapes, MOST_CROSSINGS_OF_ALL) > MOST_CROSSINGS_OF_ALL:
        raise InputError(
            f"outlines cross one another more than {MOST_CROSSINGS_OF_ALL:,} times; simplify the polygons"
        )
    return shapely.union_all(shapes)


def _crossings(shapes: NDArray[np.object_], most: int) -> int:
    """How many pairs of segments that are no neighbours share a point; counting ends above `most`."""
    rings = shapely.get_rings(shapely.get_parts(shapes))
    points, ring = shapely.get_coordinates(rings, return_index=True)
    segments = shapely.linestrings(np.stack([points[:-1], points[1:]], axis=1)[ring[:-1] == ring[1:]])
    tree, found = shapely.STRtree(segments), 0
    for start in range(0, len(segments), _SEGMENTS_AT_ONCE):
        some = segments[start : start + _SEGMENTS_AT_ONCE]
        # each shares a point with itself and its two neighbours, and each pair is found from both sides
        found += max(0, len(tree.query(some, predicate="intersects")[0]) - 3 * len(some))
        if found > 2 * most:
            return most + 1
    return -(-found // 2)
