"""Answers of catalogues, kept in the store as compressed JSON so that they are not asked for twice.

Belongs here: reading and writing them. Does not: what was asked (`crop_assets.scenes`, `crop_assets.bands`).
"""

import gzip
import io
import json
import zlib
from collections.abc import Callable
from typing import Any

from resources.errors import IntegrityError, UnsafeNameError
from resources.json_values import parse
from resources.store import DatasetStore

_MAX_KEPT_BYTES = 64 << 20
_MAX_BYTES = 192 << 20
"""What a kept answer is unpacked to at most, three times what catalogues may answer a tile with."""
_MAX_VALUES = 4_000_000
"""Twice what they may answer with; commas in documents, which are kept as text, count as well."""


def read_answer(
    store: DatasetStore, name: str, is_one: Callable[[dict[str, Any]], bool], log: Callable[[str], None]
) -> dict[str, Any] | None:
    """The answer as it was kept; None where there is none, or one that is damaged or not one by `is_one`, which is
    logged.
    """
    try:
        if not store.exists(name):
            return None
        with gzip.GzipFile(fileobj=io.BytesIO(store.read_bytes(name, _MAX_KEPT_BYTES))) as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise IntegrityError(f"it unpacks to more than {_MAX_BYTES:,} bytes")
        answer = parse(data, _MAX_VALUES)
        if not isinstance(answer, dict) or not is_one(answer):
            raise IntegrityError("it is no answer that would be kept")
        return answer
    except (
        OSError,
        EOFError,
        zlib.error,
        ValueError,
        RecursionError,
        IntegrityError,
        UnsafeNameError,
    ) as error:
        why = str(error) if isinstance(error, IntegrityError | UnsafeNameError) else type(error).__name__
        log(f"the stored answer {name} is damaged ({why}); asking again")
        return None


def write_answer(store: DatasetStore, name: str, answer: dict[str, Any]) -> None:
    """Keep an answer; the same content gives the same bytes."""
    store.write_bytes(name, gzip.compress(json.dumps(answer, sort_keys=True).encode(), 6, mtime=0))
