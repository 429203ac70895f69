"""Responses of catalogues, cached in the store as compressed JSON."""

import gzip
import io
import json
import zlib
from collections.abc import Callable
from typing import Any

from resources.errors import IntegrityError, UnsafeNameError
from resources.json_values import parse
from resources.store import DatasetStore

_MAX_PACKED_BYTES = 64 << 20
_MAX_BYTES = 192 << 20
"""Most bytes of a response when unpacked: three times what catalogues may answer with for a tile."""
_MAX_VALUES = 4_000_000
"""Twice what they may answer with; commas in documents, which are stored as text, count as well."""


def read_response(
    store: DatasetStore, name: str, is_valid: Callable[[dict[str, Any]], bool], log: Callable[[str], None]
) -> dict[str, Any] | None:
    """The cached response; None if there is none, or if it is damaged or not `is_valid`, which is logged."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(store.read_bytes(name, _MAX_PACKED_BYTES))) as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise IntegrityError(f"it unpacks to more than {_MAX_BYTES:,} bytes")
        response = parse(data, _MAX_VALUES)
        if not isinstance(response, dict) or not is_valid(response):
            raise IntegrityError("not a response that would be cached")
        return response
    except FileNotFoundError:
        return None
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
        log(f"the cached response {name} is damaged ({why}); asking again")
        return None


def write_response(store: DatasetStore, name: str, response: dict[str, Any]) -> None:
    """Cache a response; the same content gives the same bytes."""
    store.write_bytes(name, gzip.compress(json.dumps(response, sort_keys=True).encode(), 6, mtime=0))
