"""The verifying walk: from a trusted CID and an untrusted stream to a file whose every byte is checked.

Belongs here: which block must come next, and that it is the right one. Does not: HTTP, sources and
retries (`resources.ipfs.resource`).
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from resources.errors import CutShortError, IntegrityError
from resources.ipfs.car import read_car
from resources.ipfs.cid import Cid
from resources.ipfs.unixfs import FileNode, decode_file_node

MAX_NODES = 1 << 18
"""Nodes of a file's tree: 64 GiB in leaves of 256 KiB. Bounds the work and the memory (some 60 MB) that a
hostile tree, for example one of empty leaves, can cause."""

_PIECE = 1 << 20


class _Blocks:
    """Hands out blocks of a CAR in the order in which they are expected."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._stream = read_car(pieces)
        self._ahead: tuple[Cid, bytes] | None = None

    def peek(self) -> tuple[Cid, bytes] | None:
        if self._ahead is None:
            self._ahead = next(self._stream, None)
        return self._ahead

    def take(self, expected: Cid) -> bytes | None:
        """The next block, verified, if the stream says that it is `expected`; else None."""
        ahead = self.peek()
        if ahead is not None and ahead[0].same_block(expected):
            if not expected.matches(ahead[1]):
                raise IntegrityError(f"the bytes sent as block {expected} are not that block")
            self._ahead = None
            return ahead[1]
        # gateways leave identity blocks out, as the CID itself holds the bytes
        return expected.digest if expected.hash_name == "identity" else None


def retrieve(root: Cid, pieces: Iterable[bytes], destination: Path, max_bytes: int) -> int:
    """Write the file that `root` names to `destination`, from a depth-first CAR that arrives in `pieces`.

    Blocks that occur again may be sent again or left out. Only verified bytes are written; after an
    error `destination` holds a verified beginning of the file. What follows the last block is not read.
    Memory is bounded by one block and MAX_NODES, not by the size of the file.

    Returns the bytes of the file. Raises IntegrityError where a block is not the expected one, where the
    tree is malformed, its sizes do not add up, or the file is larger than `max_bytes`; CutShortError
    where the stream ends early.
    """
    blocks = _Blocks(pieces)
    places: dict[Cid, tuple[int, int]] = {}
    expected: list[tuple[Cid, int | None]] = [(root, None)]
    nodes = 1
    at = 0
    with destination.open("w+b") as out:
        while expected:
            cid, size = expected.pop()
            block = blocks.take(cid)
            if block is None and cid in places:
                start, length = places[cid]
                _check_size(cid, length, size, max_bytes)
                _repeat(out, start, length)
                at += length
                continue
            if block is None:
                raise _missing(blocks, cid, at)
            node = FileNode(block, (), len(block)) if cid.codec == "raw" else decode_file_node(block)
            _check_size(cid, node.size, size, max_bytes)
            nodes += len(node.links)
            if nodes > MAX_NODES:
                raise IntegrityError(f"the tree of {root} has more than {MAX_NODES} nodes")
            places[cid] = (at, node.size)
            out.write(node.data)
            at += len(node.data)
            expected.extend((link.cid, link.size) for link in reversed(node.links))
    return at


def _check_size(cid: Cid, size: int, promised: int | None, max_bytes: int) -> None:
    """The root has no promised size; as all others keep theirs, its own bounds the whole file."""
    if promised is None and size > max_bytes:
        raise IntegrityError(f"the file has {size} bytes, more than the {max_bytes} allowed")
    if promised is not None and size != promised:
        raise IntegrityError(f"block {cid} holds {size} bytes of the file, its parent says {promised}")


def _repeat(out: BinaryIO, start: int, length: int) -> None:
    """Append `length` bytes that were already written at `start`."""
    out.flush()
    for offset in range(start, start + length, _PIECE):
        out.write(os.pread(out.fileno(), min(_PIECE, start + length - offset), offset))


def _missing(blocks: _Blocks, cid: Cid, at: int) -> IntegrityError:
    ahead = blocks.peek()
    if ahead is None:
        return CutShortError(f"the stream ended at byte {at} of the file, before block {cid}")
    return IntegrityError(f"expected block {cid} at byte {at} of the file, but {ahead[0]} was sent")
