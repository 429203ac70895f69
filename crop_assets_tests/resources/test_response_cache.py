"""Whatever became of a kept answer, it is given as it was kept, or asked for again."""

import gzip
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from resources.response_cache import read_response, write_response
from resources.store import DatasetStore

NAME = "answers/14SMG.json.gz"
ANSWER = {"items": [{"id": f"scene {i}", "cloud": i / 7} for i in range(20)]}


@pytest.fixture
def store(tmp_path: Path) -> DatasetStore:
    store = DatasetStore(root=str(tmp_path / "store"))
    write_response(store, NAME, ANSWER)
    return store


def is_one(answer: dict[str, Any]) -> bool:
    return isinstance(answer.get("items"), list)


def read(store: DatasetStore) -> dict[str, Any] | None:
    """The answer; where there is none to use, that is said."""
    said: list[str] = []
    answer = read_response(store, NAME, is_one, said.append)
    assert [f"the cached response {NAME} is damaged" in line and "asking again" in line for line in said] == (
        [True] if answer is None else []
    )
    return answer


def test_an_answer_is_read_as_it_was_kept(store: DatasetStore) -> None:
    assert read(store) == ANSWER


def test_a_flipped_bit_anywhere_costs_the_answer_at_most(store: DatasetStore) -> None:
    data = store.read_bytes(NAME)
    lost = 0
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        store.write_bytes(NAME, bytes(damaged))
        answer = read(store)
        assert answer in (None, ANSWER)
        lost += answer is None
    # but for the name, the time and the like in the head
    assert lost > 8 * (len(data) - 20)


def test_an_answer_cut_anywhere_is_asked_for_again(store: DatasetStore) -> None:
    data = store.read_bytes(NAME)
    for size in range(len(data)):
        store.write_bytes(NAME, data[:size])
        assert read(store) is None


def test_an_answer_of_more_values_than_any_is_asked_for_again(store: DatasetStore) -> None:
    store.write_bytes(NAME, gzip.compress(b'{"items": [' + b"{}," * 2_000_000 + b"{}]}", 1))
    assert read(store) is None


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b'{"items":' * 100_000,
        b'{"items": {}}',
        b'{"item": []}',
        b"[]",
        b"null",
        b'"items"',
        b"9" * 10_000,
        b"\xff\xfe{",
        b"",
        b'{"items": []',
    ],
)
def test_what_is_no_answer_is_asked_for_again(store: DatasetStore, content: bytes) -> None:
    store.write_bytes(NAME, gzip.compress(content))
    assert read(store) is None
    store.write_bytes(NAME, content)
    assert read(store) is None


def test_an_answer_that_would_fill_the_memory_is_asked_for_again(store: DatasetStore) -> None:
    piece = gzip.compress(b" " * (64 << 20), 9)
    store.write_bytes(NAME, piece * 9 + gzip.compress(json.dumps(ANSWER).encode()))
    assert read(store) is None


def test_a_link_in_its_place_is_not_followed_and_replaced(store: DatasetStore, tmp_path: Path) -> None:
    kept = Path(store.root) / NAME
    kept.rename(tmp_path / "elsewhere")
    before = (tmp_path / "elsewhere").read_bytes()
    kept.symlink_to(tmp_path / "elsewhere")
    assert read(store) is None
    write_response(store, NAME, {"items": []})
    assert read(store) == {"items": []}
    assert (tmp_path / "elsewhere").read_bytes() == before


def test_a_pipe_in_its_place_holds_nobody_up(store: DatasetStore) -> None:
    kept = Path(store.root) / NAME
    kept.unlink()
    os.mkfifo(kept)
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(read(store)), daemon=True)
    thread.start()
    thread.join(60)
    assert found == [None]
