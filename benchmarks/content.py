"""A file of 256 MB from a stream of blocks: verified against its CID, and as clients do it that check nothing."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from resources.ipfs.car import write_car
from resources.ipfs.retrieve import Retrieval
from resources.ipfs.unixfs import FileDag

Work = Iterator[Callable[[], object]]

BYTES = 256 << 20
_PIECE = 1 << 18


def write_file(path: Path) -> None:
    """A file that no two blocks of are alike."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(np.random.default_rng(0).bytes(BYTES))


def _pieces(data: bytes) -> Iterator[memoryview]:
    view = memoryview(data)
    return (view[at : at + _PIECE] for at in range(0, len(view), _PIECE))


@contextlib.contextmanager
def verified(root: Path) -> Work:
    """The project's walk over a CAR, into a file."""
    dag = FileDag(root / "file")
    car = b"".join(write_car(dag))

    def work() -> None:
        (root / "verified").unlink(missing_ok=True)
        with Retrieval(dag.root, root / "verified", BYTES) as retrieval:
            retrieval.feed(map(bytes, _pieces(car)))

    yield work


@contextlib.contextmanager
def unchecked(root: Path) -> Work:
    """The bytes as they come, into a file."""
    data = (root / "file").read_bytes()

    def work() -> None:
        with (root / "unchecked").open("wb") as file:
            for piece in _pieces(data):
                file.write(piece)

    yield work


@contextlib.contextmanager
def sha256(root: Path) -> Work:
    """Only the hash of the bytes."""
    data = (root / "file").read_bytes()
    yield lambda: hashlib.sha256(data).digest()
