"""Reading JSON from outside: documents of bounded size, and values that may not have the expected type."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

MALFORMED = (AttributeError, LookupError, TypeError, ValueError, OverflowError, RecursionError)
"""The errors that reading JSON of an unexpected shape raises, including shapely's for a geometry."""

MAX_VALUES = 500_000
"""About 100 MB at most. A hundred items of a catalogue have 12,000, of another mission 90,000; 500 granule records have
170,000.
"""
_MAX_DEPTH = 64
_MAX_DIGITS = 30
_HIGH, _LOW = r"[dD][89abAB][0-9a-fA-F]{2}", r"[dD][c-fC-F][0-9a-fA-F]{2}"
_ESCAPE = re.compile(rf"\\(?:u{_HIGH}\\u{_LOW}|(?P<lone>u{_HIGH}|u{_LOW})|.)", re.DOTALL)


def parse(data: bytes | str, max_values: int = MAX_VALUES) -> Any:
    """The document. A key that occurs twice in an object is left out, because readers differ in which one they take.
    Half of a surrogate pair, which cannot be encoded, becomes U+FFFD.

    Raises ValueError if it is not JSON, has more than about `max_values` values, or is nested more than 64 deep.
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
    """An upper bound of the number of values in a document that has not been parsed."""
    if isinstance(text, bytes):
        return sum(map(text.count, (b",", b"[", b"{")))
    return sum(map(text.count, ",[{"))


def size(value: Any) -> tuple[int, int]:
    """The number of values in a JSON value, including itself, and the number of characters in its texts and keys."""
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
    # int() refuses more than a few thousand digits, and is slow for fewer
    return int(digits) if len(digits) <= _MAX_DIGITS else float(digits)


def _inner(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def number(value: Any, low: float, high: float) -> float | None:
    """A number from `low` to `high`, or a text of one; None for anything else, such as true, NaN or "high"."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    # float() also accepts underscores, and the digits of all scripts
    if isinstance(value, str) and (not value.isascii() or "_" in value):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    # a comparison with NaN is false
    return found if low <= found <= high and math.isfinite(found) else None


def count(value: Any, maximum: int = 1 << 40) -> int | None:
    """A number of things or bytes, from 0 to `maximum`; None for anything else, such as -1 or 2.5."""
    found = number(value, 0, maximum)
    return int(found) if found is not None and found.is_integer() else None


def mapping(value: Any) -> Mapping[str, Any]:
    """The value if it is an object, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def objects(value: Any) -> list[Mapping[str, Any]]:
    """The objects in a list; none if it is not a list."""
    return [entry for entry in value if isinstance(entry, Mapping)] if isinstance(value, list) else []


def text(value: Any) -> str:
    """The value if it is a text, else ""."""
    return value if isinstance(value, str) else ""
