"""JSON from outside: documents within bounds, and values of the kind that is expected, or unknown.

Belongs here: what any document may have wrong. Does not: what a field means.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

MALFORMED = (AttributeError, LookupError, TypeError, ValueError, OverflowError, RecursionError)
"""What a look into JSON of another shape raises, also that of shapely for a geometry."""

MAX_VALUES = 500_000
"""Some 100 MB at most. A hundred items of a catalogue have 12,000, of another mission 90,000; 500 granule records have
170,000.
"""
_MAX_DEPTH = 64
_MAX_DIGITS = 30
_HIGH, _LOW = r"[dD][89abAB][0-9a-fA-F]{2}", r"[dD][c-fC-F][0-9a-fA-F]{2}"
_ESCAPE = re.compile(rf"\\(?:u{_HIGH}\\u{_LOW}|(?P<lone>u{_HIGH}|u{_LOW})|.)", re.DOTALL)


def parse(data: bytes | str, max_values: int = MAX_VALUES) -> Any:
    """The document. A key that an object has twice is left out, for readers differ in which they take. Half of a
    surrogate pair, which no text can be written with, is U+FFFD.

    Raises ValueError for what is no JSON, has more than some `max_values` values, or is nested more than 64 deep.
    """
    text = data if isinstance(data, str) else data.decode()
    if "\\ud" in text or "\\uD" in text:
        text = _ESCAPE.sub(_paired, text)
    if values_in(text) > max_values:
        raise ValueError(f"it has more than {max_values:,} values")
    try:
        document = json.loads(text, object_pairs_hook=_object, parse_int=_integer)
    except RecursionError:
        raise ValueError(f"it is nested more than {_MAX_DEPTH} deep") from None
    layer = [document]
    for _ in range(_MAX_DEPTH):
        layer = [inner for value in layer for inner in _inner(value) if isinstance(inner, list | dict)]
        if not layer:
            return document
    raise ValueError(f"it is nested more than {_MAX_DEPTH} deep")


def values_in(text: str | bytes) -> int:
    """How many values a document has at most, but for itself, before it is read."""
    if isinstance(text, bytes):
        return sum(map(text.count, (b",", b"[", b"{")))
    return sum(map(text.count, ",[{"))


def size(value: Any) -> tuple[int, int]:
    """How many values are in a value of JSON, itself among them, and how many characters in its texts and keys."""
    values = characters = 0
    layer = [value]
    while layer:
        values += len(layer)
        characters += sum(len(one) for one in layer if isinstance(one, str))
        characters += sum(len(key) for one in layer if isinstance(one, dict) for key in one)
        layer = [inner for one in layer for inner in _inner(one)]
    return values, characters


def _paired(escape: re.Match[str]) -> str:
    return "\\ufffd" if escape["lone"] else escape[0]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = Counter(name for name, _ in pairs)
        found = {name: value for name, value in pairs if names[name] == 1}
    return found


def _integer(digits: str) -> int | float:
    # int() refuses more than some thousand digits, and takes long for fewer
    return int(digits) if len(digits) <= _MAX_DIGITS else float(digits)


def _inner(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


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
