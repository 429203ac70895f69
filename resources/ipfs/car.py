"""Reads and writes content-addressable archives (CAR, version 1): a stream of blocks, not verified here."""

from collections.abc import Iterable, Iterator
from typing import Protocol

from resources.errors import CutShortError, IntegrityError
from resources.ipfs import varint
from resources.ipfs.cid import Cid

CONTENT_TYPE = "application/vnd.ipld.car"
DFS_CONTENT_TYPE = f"{CONTENT_TYPE}; version=1; order=dfs; dups=y"
"""Depth first, with repeated blocks (IPIP-412)."""

MAX_SECTION = 4 << 20
"""Bytes of a CID with its block. Blocks on the network have at most 2 MiB; the rest is margin."""
MAX_HEADER = 8 << 10
"""Bytes of the header; one root takes about 60."""

# The header is a DAG-CBOR map, whose keys and small integers have one spelling each.
_VERSION_1 = b"\x67version\x01"


class _Reader:
    """Reads exact numbers of bytes from pieces of any size."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._piece = b""
        self._at = 0

    def at_end(self) -> bool:
        while self._at == len(self._piece):
            piece = next(self._pieces, None)
            if piece is None:
                return True
            self._piece, self._at = piece, 0
        return False

    def take(self, count: int) -> bytes:
        parts = []
        missing = count
        while missing:
            if self.at_end():
                raise CutShortError(f"the CAR ended where {missing} more bytes were due")
            part = self._piece[self._at : self._at + missing]
            self._at += len(part)
            missing -= len(part)
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def length(self, limit: int, what: str) -> int:
        spelled = self.take(1)
        while spelled[-1] >= 0x80:
            if len(spelled) == 9:
                break
            spelled += self.take(1)
        value, _ = varint.decode(spelled)
        if not 0 < value <= limit:
            raise IntegrityError(f"the CAR has a {what} of {value} bytes; it may have 1 to {limit}")
        return value


def read_car(pieces: Iterable[bytes]) -> Iterator[tuple[Cid, bytes]]:
    """The CID and bytes of each block of a CAR that arrives in `pieces`, in its order and unverified.

    Ignores the roots in the header, because gateways differ in what they write there. Holds at most one block in
    memory. Raises IntegrityError if the stream is not a CAR of version 1 or exceeds MAX_HEADER or MAX_SECTION, and
    CutShortError if it ends inside a block.
    """
    reader = _Reader(pieces)
    header = reader.take(reader.length(MAX_HEADER, "header"))
    if _VERSION_1 not in header:
        raise IntegrityError(f"the stream is not a CAR of version 1; it begins with {header[:20]!r}")
    while not reader.at_end():
        section = reader.take(reader.length(MAX_SECTION, "section"))
        cid, start = Cid.split(section)
        yield cid, section[start:]


class Dag(Protocol):
    """The tree of blocks of a file or a folder."""

    @property
    def root(self) -> Cid: ...

    def blocks(self, repeats: bool = True) -> Iterator[tuple[Cid, bytes]]: ...


def write_car(dag: Dag, repeats: bool = True) -> Iterator[bytes]:
    """A CAR of all blocks of `dag` in depth-first order; yields the header, then one piece per block.

    With `repeats`, equal blocks are written each time they occur (`dups=y`), otherwise once (`dups=n`).
    """
    return car_of(dag.root, dag.blocks(repeats))


def car_of(root_cid: Cid, blocks: Iterable[tuple[Cid, bytes]]) -> Iterator[bytes]:
    """A CAR of these blocks; yields the header, then one piece per block."""
    root = b"\0" + bytes(root_cid)
    header = b"\xa2\x65roots\x81\xd8\x2a\x58" + varint.encode(len(root)) + root + _VERSION_1
    yield varint.encode(len(header)) + header
    for cid, block in blocks:
        name = bytes(cid)
        yield b"".join((varint.encode(len(name) + len(block)), name, block))
