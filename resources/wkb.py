"""Geometries in well-known binary, as GeoPackage and GeoParquet store them; refuses those that would crash GEOS."""

import struct
from collections.abc import Sequence

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.errors import ShapelyError

from resources.errors import IntegrityError

MAX_BYTES = 48 << 20
"""More than `crop_assets.polygons.MOST_VERTICES` take. A geometry of empty parts takes up to 34 times its bytes."""
_MAX_DEPTH = 32
"""GEOS recurses into every level, and overflows the stack."""
_UNHEEDED_BYTES = 9 * 100
"""The header of a collection has nine."""
_POINT, _LINE, _POLYGON, _COLLECTION = 1, 2, 3, 7


def read_wkb(values: Sequence[bytes | None]) -> NDArray[np.object_]:
    """The geometries, None for None.

    Raises IntegrityError if one is invalid or nested more than 32 deep, or they have more than `MAX_BYTES` together.
    """
    if (size := sum(len(value) for value in values if value is not None)) > MAX_BYTES:
        raise IntegrityError(f"geometries of {size:,} bytes are more than {MAX_BYTES:,}; simplify them")
    for value in values:
        if value is not None and len(value) > _UNHEEDED_BYTES:
            require_shallow(value)
    try:
        found: NDArray[np.object_] = shapely.from_wkb(np.array(values, dtype=object))
    except (ShapelyError, TypeError, ValueError, NotImplementedError) as error:
        raise IntegrityError(f"a geometry cannot be read: {error}") from None
    return found


def require_shallow(value: bytes) -> None:
    """Raise IntegrityError if a geometry is nested more than 32 deep, or ambiguous."""
    left, at = [1], 0
    try:
        while left:
            if not left[-1]:
                left.pop()
                continue
            left[-1] -= 1
            order = {0: ">", 1: "<"}[value[at]]
            kind, dimensions = _kind(*struct.unpack_from(f"{order}I", value, at + 1))
            at += 5
            if kind == _POINT:
                at += 8 * dimensions
                continue
            (count,) = struct.unpack_from(f"{order}I", value, at)
            at += 4
            if kind == _LINE:
                at += 8 * dimensions * count
            elif kind == _POLYGON:
                for _ in range(count):
                    (points,) = struct.unpack_from(f"{order}I", value, at)
                    at += 4 + 8 * dimensions * points
            elif len(left) == _MAX_DEPTH:
                raise IntegrityError(f"a geometry is nested more than {_MAX_DEPTH} deep")
            else:
                left.append(count)
    except (LookupError, struct.error):
        at = len(value) + 1
    if at > len(value):
        raise IntegrityError("a geometry cannot be read: it is cut short or invalid")


def _kind(code: int) -> tuple[int, int]:
    """The kind of a geometry and the number of coordinates of its points, by ISO's or PostGIS's codes."""
    kind, height_and_measure = code & 0xFFFF, code >> 30
    dimensions = 2 + height_and_measure.bit_count()
    if code < 4000:
        kind, dimensions = code % 1000, (2, 3, 3, 4)[code // 1000]
    elif code & 0x3FFF0000 or kind > _COLLECTION:
        raise IntegrityError(f"a geometry is of the unsupported kind {code}")
    if not _POINT <= kind <= _COLLECTION:
        raise IntegrityError(f"a geometry is of the unsupported kind {code}")
    return kind, dimensions
