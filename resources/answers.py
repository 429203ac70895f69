"""Answers of catalogues, kept in the store as compressed JSON so that they are not asked for twice.

Belongs here: reading and writing them. Does not: what was asked (`crop_assets.scenes`, `crop_assets.bands`).
"""

import gzip
import json
from collections.abc import Callable, Sequence
from typing import Any

from resources.store import DatasetStore


def read_answer(
    store: DatasetStore, name: str, log: Callable[[str], None], parts: Sequence[str] = ()
) -> dict[str, Any] | None:
    """The answer as it was kept; None where there is none, or one that is damaged or lacks `parts`, which is logged."""
    if not store.exists(name):
        return None
    try:
        answer = dict(json.loads(gzip.decompress(store.read_bytes(name))))
        if lacking := set(parts) - set(answer):
            raise KeyError(*lacking)
        return answer
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        log(f"the stored answer {name} is damaged ({type(error).__name__}); asking again")
        return None


def write_answer(store: DatasetStore, name: str, answer: dict[str, Any]) -> None:
    """Keep an answer; the same content gives the same bytes."""
    store.write_bytes(name, gzip.compress(json.dumps(answer, sort_keys=True).encode(), 6, mtime=0))
