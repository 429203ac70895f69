"""Values of JSON from outside: each is of the kind that is expected, or unknown, whatever stands beside it.

Belongs here: what any document may have wrong. Does not: what a field means.
"""

import math
from collections.abc import Mapping
from typing import Any

MALFORMED = (AttributeError, LookupError, TypeError, ValueError, OverflowError, RecursionError)
"""What a look into JSON of another shape raises, also that of shapely for a geometry."""


def number(value: Any, low: float, high: float) -> float | None:
    """A number from `low` to `high`, as such or as text; None for anything else, such as true, NaN or "high"."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    # float() also reads the underscores of Python's own numbers, and the digits of all scripts
    if isinstance(value, str) and (not value.isascii() or "_" in value):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    # a comparison with NaN is false
    return found if low <= found <= high and math.isfinite(found) else None


def count(value: Any, most: int = 1 << 40) -> int | None:
    """A number of things or bytes, from 0 to `most`; None for anything else, such as -1 or 2.5."""
    found = number(value, 0, most)
    return int(found) if found is not None and found.is_integer() else None


def mapping(value: Any) -> Mapping[str, Any]:
    """The value, or nothing where it is no object."""
    return value if isinstance(value, Mapping) else {}


def objects(value: Any) -> list[Mapping[str, Any]]:
    """The objects of a list; none where it is no list."""
    return [entry for entry in value if isinstance(entry, Mapping)] if isinstance(value, list) else []


def text(value: Any) -> str:
    """The value, or "" where it is no text."""
    return value if isinstance(value, str) else ""
