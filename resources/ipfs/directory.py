"""UnixFS directories, basic and sharded: finding a name in their blocks, and the tree that Kubo makes of a folder.

A directory is one dag-pb block whose links are its entries. A directory that would be too large is sharded into a
hash array mapped trie (HAMT): each shard has `fanout` slots, the leading bits of a name's hash select the slot, and a
slot holds an entry or another shard, for which the next bits are used. The name of a link is its slot in hexadecimal,
followed by the name of the entry, or by nothing if it leads to a shard. Where the UnixFS specification
(https://specs.ipfs.tech/unixfs/) leaves something open, this follows Kubo's library boxo (ipld/unixfs).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import mmh3

from resources.errors import IntegrityError, NotFoundError
from resources.ipfs.cid import Cid
from resources.ipfs.unixfs import FileDag, decode_node, field, fields

KUBO_SHARDING = 262144
"""A directory is sharded if the names and CIDs of its links have more bytes than this: the default of boxo's
HAMTShardingSize. Before boxo 0.37 (Kubo 0.40), a directory of exactly this size was sharded too."""
KUBO_FANOUT = 256
"""Slots of a shard, boxo's DefaultShardWidth."""

_DIRECTORY, _SHARD = 1, 5
_KINDS = {0: "a file", 1: "an unsharded directory", 2: "a file", 3: "metadata", 4: "a symbolic link"}
_MURMUR3 = 0x22
"""murmur3-x64-64 in the multicodec table, the only hash used for names."""
_HASH_BITS = 64
_MIN_FANOUT, _MAX_FANOUT = 8, 1024
"""The bounds of boxo: slots in whole bytes, and its maximumHamtWidth."""


@dataclass(frozen=True, slots=True)
class SubShard:
    """The shard to search next; `taken` bits of the name's hash were used to get there."""

    cid: Cid
    taken: int


def find(block: bytes, name: str, taken: int = 0) -> Cid | SubShard | None:
    """Look up `name` in one dag-pb block of a directory: its CID, the shard to search next, or None.

    `taken`: bits of the name's hash that led to this block, 0 for the directory itself. The caller must have verified
    `block`. Raises IntegrityError if the block is malformed, is not part of a directory, or has more than one entry
    of that name; links of other names are not checked.
    """
    links, unixfs = decode_node(block, _decode_link)
    kind = hash_type = fanout = 0
    slots = b""
    for number, _, value in fields(unixfs, "UnixFS data"):
        match number, value:
            case 1, int():
                kind = value
            case 2, bytes():
                slots = value
            case 5, int():
                hash_type = value
            case 6, int():
                fanout = value
            case ((3 | 4 | 7), int()) | (8, bytes()):
                pass  # sizes, mode and modification time are not needed
            case _:
                raise IntegrityError(f"UnixFS data: field {number} is unknown")

    # a name with surrogates is not valid UTF-8, so no proper directory has it
    wanted = name.encode(errors="surrogatepass")
    if kind == _SHARD:
        if hash_type != _MURMUR3:
            raise IntegrityError(f"shard: names are hashed by 0x{hash_type:x}, not by 0x{_MURMUR3:x}")
        return _find_in_shard(links, slots, fanout, wanted, taken)
    if kind != _DIRECTORY or taken:
        due = "a shard" if taken else "a directory"
        raise IntegrityError(f"the CID names {_KINDS.get(kind, f'UnixFS type {kind}')}, not {due}")
    found = [cid for entry, cid in links if entry == wanted]
    if len(found) > 1:
        raise IntegrityError(f"{len(found)} entries have the name {name!r}")
    return Cid.from_bytes(found[0]) if found else None


def _decode_link(message: bytes) -> tuple[bytes, bytes]:
    """Name and CID of a link. The CID stays undecoded, as other entries may have codecs that are not supported."""
    name = b""
    cid: bytes | None = None
    for number, _, value in fields(message, "dag-pb link"):
        match number, value:
            case 1, bytes() if cid is None:
                cid = value
            case 2, bytes():
                name = value
            case 3, int():
                pass
            case _:
                raise IntegrityError(f"dag-pb link: field {number} is unknown or repeated")
    if cid is None:
        raise IntegrityError("dag-pb link: no CID")
    return name, cid


def _find_in_shard(
    links: Sequence[tuple[bytes, bytes]], slots: bytes, fanout: int, name: bytes, taken: int
) -> Cid | SubShard | None:
    if not _MIN_FANOUT <= fanout <= _MAX_FANOUT or fanout & (fanout - 1):
        raise IntegrityError(
            f"shard: fanout {fanout} is not a power of two from {_MIN_FANOUT} to {_MAX_FANOUT}"
        )
    bitfield = int.from_bytes(slots)
    if len(slots) * 8 > fanout or bitfield.bit_count() != len(links):
        raise IntegrityError(
            f"shard: a bitfield of {len(slots)} bytes with {bitfield.bit_count()} set, "
            f"for {len(links)} links and a fanout of {fanout}"
        )
    used = [slot for slot in range(fanout) if bitfield >> slot & 1]
    for (label, _), slot in zip(links, used, strict=True):
        if not label.startswith(_slot_prefix(slot, fanout)):
            raise IntegrityError(f"shard: the link {label[:100]!r} stands in slot 0x{slot:X}")

    bits = fanout.bit_length() - 1
    if taken + bits > _HASH_BITS:
        raise IntegrityError(f"shard: too deep, as a name's hash has {_HASH_BITS} bits")
    slot = _hash(name) >> (_HASH_BITS - taken - bits) & (fanout - 1)
    if slot not in used:
        return None
    label, cid = links[used.index(slot)]
    prefix = _slot_prefix(slot, fanout)
    if label == prefix:
        return SubShard(Cid.from_bytes(cid), taken + bits)
    return Cid.from_bytes(cid) if label == prefix + name else None


def _slot_prefix(slot: int, fanout: int) -> bytes:
    """The slot in upper-case hexadecimal, padded to the width of the last slot."""
    return f"{slot:0{len(f'{fanout - 1:X}')}X}".encode()


def _hash(name: bytes) -> int:
    """murmur3-x64-64, the first half of murmur3-x64-128, as a big-endian integer."""
    return mmh3.hash64(name, x64arch=True, signed=False)[0]


def resolve_path(root: Cid, segments: Sequence[str], block: Callable[[Cid], bytes]) -> Cid:
    """The CID of the file or directory at the path `segments`, plain names, below the directory `root`.

    `block` fetches the bytes of a block, which are verified before they are decoded. It is not called for identity
    CIDs, and at most 22 times for each segment, because each shard uses 3 or more of the 64 bits of a hash. The block
    at the end of the path is not fetched.

    Raises IntegrityError if a block does not match its CID, is malformed, or is not a directory, and NotFoundError if
    a directory has no such entry.
    """
    cid = root
    for segment in segments:
        found: Cid | SubShard | None = SubShard(cid, 0)
        while isinstance(found, SubShard):
            data = _verified(found.cid, block)
            try:
                found = find(data, segment, found.taken)
            except IntegrityError as error:
                raise IntegrityError(f"directory {cid}: {error}") from None
        if found is None:
            raise NotFoundError(f"the directory {cid} has no entry {segment!r}")
        cid = found
    return cid


def _verified(cid: Cid, block: Callable[[Cid], bytes]) -> bytes:
    if cid.codec != "dag-pb":
        raise IntegrityError(f"{cid} names a block of a file, not of a directory")
    if cid.hash_name == "identity":
        return cid.digest
    data = block(cid)
    if not cid.matches(data):
        raise IntegrityError(f"the bytes sent as block {cid} are not that block")
    return data


@dataclass(frozen=True, slots=True)
class _Part:
    """A file or a block of a directory: `source` is the local file or the block itself.

    `total` counts the bytes of this block and all below it, repeated ones included (Tsize).
    """

    cid: Cid
    total: int
    source: Path | bytes
    parts: tuple["_Part", ...] = ()


_Tree: TypeAlias = dict[str, "Path | _Tree"]


class FolderDag:
    """The blocks of local files arranged as a folder, like `ipfs add -r --cid-version=1`.

    Each file is read once to hash it, and twice more when its blocks are requested. The CIDs of files and the blocks of
    directories are kept in memory, some 500 bytes per file; the blocks of files and their CIDs are not.
    """

    def __init__(
        self,
        files: Mapping[str, Path],
        version: Literal[0, 1] = 1,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Hash `files`, which maps relative names like "folder/file" to local files, in any order.

        `version`: of the CIDs; with 0, leaves are dag-pb, the default of `ipfs add -r`. `progress` gets the number of
        files hashed so far. Raises ValueError if a name has an empty segment, ".", "..", a backslash or NUL, is not
        UTF-8, or is both a file and a folder; OSError if a file cannot be read.
        """
        self._version = version
        self._progress: Callable[[int], None] = progress or (lambda count: None)
        self._hashed = 0
        self._size = 0
        self._root = self._folder(_tree_of(files))

    @property
    def root(self) -> Cid:
        return self._root.cid

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return self._size

    def blocks(self, repeats: bool = True) -> Iterator[tuple[Cid, bytes]]:
        """All blocks, depth first from the root; without `repeats`, each of them once.

        Raises IntegrityError if a file has changed since it was hashed.
        """
        seen: set[Cid] = set()
        ahead = [self._root]
        while ahead:
            part = ahead.pop()
            if part.cid in seen:
                continue  # and so were all the blocks below it
            for cid, block in self._blocks_of(part, repeats):
                if not repeats:
                    if cid in seen:
                        continue
                    seen.add(cid)
                yield cid, block
            ahead.extend(reversed(part.parts))

    def _blocks_of(self, part: _Part, repeats: bool) -> Iterator[tuple[Cid, bytes]]:
        if isinstance(part.source, bytes):
            return iter([(part.cid, part.source)])
        dag = FileDag(part.source, version=self._version)
        if dag.root != part.cid:
            raise IntegrityError(f"{part.source} was changed while its folder was read; it was {part.cid}")
        return dag.blocks(repeats)

    def _folder(self, tree: _Tree) -> _Part:
        # dag-pb sorts links by the bytes of their names
        names = {name.encode(): name for name in tree}
        entries = {label: self._entry(tree[names[label]]) for label in sorted(names)}
        if sum(len(label) + len(bytes(part.cid)) for label, part in entries.items()) > KUBO_SHARDING:
            return self._shard(entries, _HASH_BITS)
        return self._node(entries, field(1, _DIRECTORY))

    def _entry(self, entry: Path | _Tree) -> _Part:
        if isinstance(entry, dict):
            return self._folder(entry)
        dag = FileDag(entry, version=self._version)
        self._size += dag.size
        self._hashed += 1
        self._progress(self._hashed)
        return _Part(dag.root, dag.total, entry)

    def _shard(self, entries: Mapping[bytes, _Part], bits: int) -> _Part:
        """The shard of `entries`; `bits` of their names' hashes are left to distinguish them."""
        if bits == 0:
            raise ValueError(f"the names {sorted(entries)} have the same hash, so no directory can have all")
        bits -= KUBO_FANOUT.bit_length() - 1
        slots: dict[int, dict[bytes, _Part]] = {}
        for name, part in entries.items():
            slots.setdefault(_hash(name) >> bits & (KUBO_FANOUT - 1), {})[name] = part
        links: dict[bytes, _Part] = {}
        for slot, inside in sorted(slots.items()):
            prefix = _slot_prefix(slot, KUBO_FANOUT)
            if len(inside) > 1:
                links[prefix] = self._shard(inside, bits)
            else:
                ((name, part),) = inside.items()
                links[prefix + name] = part
        bitfield = sum(1 << slot for slot in slots)
        unixfs = field(2, bitfield.to_bytes((bitfield.bit_length() + 7) // 8))
        return self._node(links, field(1, _SHARD) + unixfs + field(5, _MURMUR3) + field(6, KUBO_FANOUT))

    def _node(self, links: Mapping[bytes, _Part], unixfs: bytes) -> _Part:
        block = b"".join(
            field(2, field(1, bytes(part.cid)) + field(2, name) + field(3, part.total))
            for name, part in links.items()
        ) + field(1, unixfs)
        total = len(block) + sum(part.total for part in links.values())
        return _Part(Cid.of(block, "dag-pb", self._version), total, block, tuple(links.values()))


def _tree_of(files: Mapping[str, Path]) -> _Tree:
    tree: _Tree = {}
    # sorted, so that a file comes before names that would be inside it
    for name, path in sorted(files.items()):
        segments = name.split("/")
        if any(k in ("", ".", "..") or "\\" in k or "\0" in k for k in segments):
            raise ValueError(f"{name!r} is not a relative name of plain segments")
        name.encode()  # raises a ValueError where there is no UTF-8 of it
        folder = tree
        for segment in segments[:-1]:
            below = folder.setdefault(segment, {})
            if not isinstance(below, dict):
                raise ValueError(f"{name!r} would lie in a file, as another name ends in {segment!r}")
            folder = below
        folder[segments[-1]] = path
    return tree
