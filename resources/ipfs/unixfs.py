"""Files as trees of blocks: the dag-pb and UnixFS formats, and the tree that Kubo makes of a file."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from resources.errors import IntegrityError
from resources.file_system import no_follow
from resources.ipfs import varint
from resources.ipfs.cid import Cid

_Link = TypeVar("_Link")

KUBO_CHUNK = 262144
"""Bytes of the file in each leaf, with Kubo's default chunker size-262144."""
KUBO_WIDTH = 174
"""Links of each inner node, in Kubo's default balanced layout."""
_CHUNKS = {0: (KUBO_CHUNK,), 1: (KUBO_CHUNK, 1 << 20)}
"""Bytes of the file in each leaf, by CID version: the defaults of Kubo and Helia, the more likely first."""
_MAX_CHUNK = 2 << 20
"""The largest block that bitswap transfers."""

_VARINT, _BYTES = 0, 2
_RAW, _FILE = 0, 2
FILE_TYPES = (_FILE, _RAW)
"""UnixFS types of a file's node; old versions of IPFS wrote leaves of the second one."""
_KINDS = {1: "a directory", 3: "metadata", 4: "a symbolic link", 5: "a sharded directory"}


@dataclass(frozen=True, slots=True)
class Link:
    """A child of an inner node: `size` counts bytes of the file, `total` bytes of all its blocks (Tsize)."""

    cid: Cid
    size: int
    total: int


@dataclass(frozen=True, slots=True)
class FileNode:
    """A node of a file's tree: its own bytes, then those of its links; `size` bytes of the file in all."""

    data: bytes
    links: tuple[Link, ...]
    size: int


def fields(message: bytes, what: str) -> Iterator[tuple[int, int, int | bytes]]:
    """Field number, wire type and value of each field of a protobuf message of varints and byte strings.

    Raises IntegrityError, naming `what`, if the message is malformed or has fields of other types.
    """
    at = 0
    while at < len(message):
        tag, at = varint.decode(message, at)
        number, wire = tag >> 3, tag & 7
        value, at = varint.decode(message, at)
        if wire == _BYTES:
            if value > len(message) - at:
                raise IntegrityError(f"{what}: field {number} is longer than its message")
            yield number, wire, message[at : at + value]
            at += value
        elif wire == _VARINT:
            yield number, wire, value
        else:
            raise IntegrityError(f"{what}: field {number} has the wire type {wire}")


def _decode_link(message: bytes) -> tuple[Cid, int]:
    cid: Cid | None = None
    total = 0
    for number, _, value in fields(message, "dag-pb link"):
        match number, value:
            case 1, bytes() if cid is None:
                cid = Cid.from_bytes(value)
            case 2, b"":
                pass
            case 3, int():
                total = value
            case _:
                raise IntegrityError(f"dag-pb link: field {number} does not belong to a part of a file")
    if cid is None:
        raise IntegrityError("dag-pb link: no CID")
    return cid, total


def decode_node(block: bytes, decode_link: Callable[[bytes], _Link]) -> tuple[list[_Link], bytes]:
    """The links of a dag-pb node, each decoded by `decode_link`, and its UnixFS data.

    Raises IntegrityError if the node is malformed.
    """
    links: list[_Link] = []
    unixfs: bytes | None = None
    for number, _, value in fields(block, "dag-pb node"):
        match number, value:
            case 1, bytes() if unixfs is None:
                unixfs = value
            case 2, bytes():
                links.append(decode_link(value))
            case _:
                raise IntegrityError(f"dag-pb node: field {number} is unknown or repeated")
    if unixfs is None:
        raise IntegrityError("dag-pb node: no UnixFS data")
    return links, unixfs


def decode_file_node(block: bytes) -> FileNode:
    """Decode a dag-pb block of a file's tree.

    Raises IntegrityError if the block is malformed, is not part of a file, or if its sizes do not add up: it must
    have one block size per link, and its own bytes plus the block sizes must equal the file size.
    """
    links, unixfs = decode_node(block, _decode_link)

    kind: int | None = None
    data = b""
    size = 0
    sizes: list[int] = []
    for number, _, value in fields(unixfs, "UnixFS data"):
        match number, value:
            case 1, int():
                kind = value
            case 2, bytes():
                data = value
            case 3, int():
                size = value
            case 4, int():
                sizes.append(value)
            case ((5 | 6 | 7), int()):
                pass  # hash type, fan-out and mode do not affect a file's bytes
            case 8, bytes():
                pass  # modification time
            case _:
                raise IntegrityError(f"UnixFS data: field {number} is unknown")
    if kind not in (_RAW, _FILE):
        raise IntegrityError(f"the CID names {_KINDS.get(kind or 0, f'UnixFS type {kind}')}, not a file")
    if len(links) != len(sizes):
        raise IntegrityError(f"UnixFS data: {len(sizes)} block sizes for {len(links)} links")
    if len(data) + sum(sizes) != size:
        raise IntegrityError(
            f"UnixFS data: file size {size}, but its parts have {len(data) + sum(sizes)} bytes"
        )
    joined = (Link(cid, part, total) for (cid, total), part in zip(links, sizes, strict=True))
    return FileNode(data, tuple(joined), size)


def field(number: int, value: int | bytes) -> bytes:
    """Encode one field of a protobuf message, as a varint or a byte string."""
    if isinstance(value, int):
        return varint.encode(number << 3 | _VARINT) + varint.encode(value)
    return varint.encode(number << 3 | _BYTES) + varint.encode(len(value)) + value


def encode_file_node(data: bytes, links: Sequence[Link], kind: int = _FILE) -> bytes:
    """Encode a node as a dag-pb block, byte for byte like Kubo: links first, each with an empty name; `kind` is one of
    FILE_TYPES.
    """
    out = [field(2, field(1, bytes(k.cid)) + field(2, b"") + field(3, k.total)) for k in links]
    unixfs = [field(1, kind)]
    if data:
        unixfs.append(field(2, data))
    unixfs.append(field(3, len(data) + sum(k.size for k in links)))
    unixfs.extend(field(4, k.size) for k in links)
    return b"".join(out) + field(1, b"".join(unixfs))


class FileDag:
    """The blocks of a local file in a balanced tree, by default like `ipfs add --cid-version=1`.

    The file is read once to hash it, and again whenever its blocks are requested. CIDs and inner nodes are kept in
    memory, the file's bytes are not. If the file changes in between, its blocks no longer match their CIDs.
    """

    def __init__(
        self,
        path: Path,
        chunk_size: int = KUBO_CHUNK,
        version: Literal[0, 1] = 1,
        width: int = KUBO_WIDTH,
    ) -> None:
        """Hash the file at `path`.

        `chunk_size`: bytes of the file in each leaf, from 1 to 2 MiB. `version`: of the CIDs; leaves are raw in
        version 1, dag-pb in version 0. `width`: links of each inner node, at least 2. Raises ValueError outside
        these bounds and OSError if the file cannot be read.
        """
        if not 1 <= chunk_size <= _MAX_CHUNK:
            raise ValueError(f"chunk_size is {chunk_size}, and must be from 1 to {_MAX_CHUNK} bytes")
        if width < 2:
            raise ValueError(f"width is {width}, and must be at least 2")
        self._path = path
        self._chunk_size = chunk_size
        self._version = version
        self._width = width
        with open(path, "rb", opener=no_follow) as file:
            leaves = [self._leaf_link(file.read(chunk_size))]
            while chunk := file.read(chunk_size):
                leaves.append(self._leaf_link(chunk))
        self._levels: list[list[Link]] = [leaves]
        self._inner: dict[Cid, bytes] = {}
        while len(self._levels[-1]) > 1:
            below = self._levels[-1]
            groups = [below[i : i + width] for i in range(0, len(below), width)]
            self._levels.append([self._inner_link(group) for group in groups])
        (self._top,) = self._levels[-1]
        self._leaf_index = {link.cid: i for i, link in enumerate(leaves)}

    @property
    def root(self) -> Cid:
        return self._top.cid

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._top.size

    @property
    def total(self) -> int:
        """Bytes of all blocks, repeated ones included: the Tsize of a link to the root."""
        return self._top.total

    def blocks(
        self, repeats: bool = True, start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[Cid, bytes]]:
        """All blocks, depth first from the root; without `repeats`, each of them once.

        `start` and `stop` skip blocks that are not needed for the bytes of the file from one to before the other.
        """
        seen: set[Cid] = set()
        with open(self._path, "rb", opener=no_follow) as file:
            last = self.size if stop is None else max(stop, start + 1)
            leaves = range(start // self._chunk_size, -(-last // self._chunk_size))
            for cid, leaf in self._order(len(self._levels) - 1, 0, leaves):
                if not repeats:
                    if cid in seen:
                        continue
                    seen.add(cid)
                yield cid, self._inner[cid] if leaf is None else self._read_leaf(file.fileno(), leaf)

    def block(self, cid: Cid) -> bytes | None:
        """The block `cid`, or None if it is not part of this file."""
        if cid in self._inner:
            return self._inner[cid]
        if cid not in self._leaf_index:
            return None
        with open(self._path, "rb", opener=no_follow) as file:
            return self._read_leaf(file.fileno(), self._leaf_index[cid])

    def cids(self) -> Iterator[Cid]:
        """The CIDs of all blocks, each once, in no particular order."""
        yield from self._inner
        yield from self._leaf_index

    def _order(self, level: int, index: int, leaves: range) -> Iterator[tuple[Cid, int | None]]:
        cid = self._levels[level][index].cid
        if level == 0:
            yield cid, index
            return
        yield cid, None
        below, each = len(self._levels[level - 1]), self._width ** (level - 1)
        for child in range(index * self._width, min((index + 1) * self._width, below)):
            if (child + 1) * each > leaves.start and child * each < leaves.stop:
                yield from self._order(level - 1, child, leaves)

    def _leaf_block(self, chunk: bytes) -> bytes:
        return chunk if self._version == 1 else encode_file_node(chunk, ())

    def _leaf_link(self, chunk: bytes) -> Link:
        block = self._leaf_block(chunk)
        return Link(
            Cid.of(block, "raw" if self._version == 1 else "dag-pb", self._version), len(chunk), len(block)
        )

    def _inner_link(self, children: Sequence[Link]) -> Link:
        block = encode_file_node(b"", children)
        cid = Cid.of(block, "dag-pb", self._version)
        self._inner[cid] = block
        return Link(cid, sum(k.size for k in children), len(block) + sum(k.total for k in children))

    def _read_leaf(self, file: int, index: int) -> bytes:
        return self._leaf_block(os.pread(file, self._chunk_size, index * self._chunk_size))


def file_cid(path: Path, chunk_size: int = KUBO_CHUNK, version: Literal[0, 1] = 1) -> str:
    """The CID that `ipfs add` gives the file at `path` with these options. Bounds and errors as in FileDag."""
    return str(FileDag(path, chunk_size, version).root)


def matches_cid(path: Path, cid: str) -> bool:
    """Whether the file has this CID in a common layout: that of Kubo in either version, or of Helia.

    A file that was added in another layout does not match, although its bytes may be right.
    """
    version = Cid.parse(cid).version
    return any(file_cid(path, chunk, version) == cid for chunk in _CHUNKS[version])
