"""Single leaves of a file by their CIDs: which leaves hold a range, and how a node returns them."""

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from resources.errors import CutShortError, ForbiddenError, IntegrityError, NotFoundError, RefusedError
from resources.ipfs.car import MAX_SECTION, read_car
from resources.ipfs.cid import Cid
from resources.ipfs.unixfs import FILE_TYPES, FileNode, Link, decode_file_node, encode_file_node
from resources.parts import MAX_RANGE_BYTES, NotInPartsError, Parts, Range, Turn, in_turns, merged

_MAX_LEVELS = 8
_NODE_BYTES, _LINK_BYTES = 1024, 256
"""Most bytes of a node besides its data, and of one of its links."""
_MAX_INNER_NODES = 100
_MAX_INLINE = 64
_MIN_LEAF_BYTES, _SPARE_LINKS, _SPARE_PLACES = 4096, 16, 1024
_LEAF_OVERHEAD = 32
"""Most bytes of a dag-pb leaf besides those of the file: Kubo's have up to 17, and an inner node with its leaf 61."""
_SPARE_BLOCKS = 64
"""Blocks that a node may send beyond those of a range, such as repeated ones."""


class LeafNode(Protocol):
    """What is needed here of an `IpfsNode`."""

    takes_ranges: bool

    def car(
        self, root: Cid, offset: int, first_seconds: float | None = None, stop: int | None = None
    ) -> AbstractContextManager[Iterator[bytes]]: ...

    def block(self, cid: Cid, first_seconds: float | None = None) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Place:
    """The bytes of a file that a block holds: a leaf, or an inner node by the blocks below it."""

    cid: Cid
    start: int
    stop: int

    def holds(self, data: bytes) -> bool:
        """Whether these bytes of the file make the leaf: as they are, or in a dag-pb node of either type."""
        if self.cid.codec == "raw":
            return self.cid.matches(data)
        return any(self.cid.matches(encode_file_node(data, (), kind)) for kind in FILE_TYPES)


class Tree:
    """The tree of a file, as far as its inner nodes are known. Several threads may use it."""

    def __init__(self, root: Cid) -> None:
        self.root = root
        self.size = 0
        """Bytes of the file; 0 until the root is known."""
        self._links: dict[Cid, tuple[Link, ...]] = {}
        self._inner: set[Cid] = set()

    def add(self, cid: Cid, block: bytes) -> FileNode:
        """Check a block of the tree, and remember its links. Raises IntegrityError if it is not `cid` or is malformed;
        NotInPartsError if the file is better fetched complete.
        """
        if not cid.matches(block):
            raise IntegrityError(f"the bytes sent as block {cid} are not that block")
        node = FileNode(block, (), len(block)) if cid.codec == "raw" else decode_file_node(block)
        if node.links and (node.data or len(node.links) > _SPARE_LINKS + node.size // _MIN_LEAF_BYTES):
            raise NotInPartsError(f"the tree of {self.root} has bytes in inner nodes, or many tiny leaves")
        if len(block) > _NODE_BYTES + _LINK_BYTES * len(node.links) + len(node.data):
            # they are kept, in memory and on disk
            raise NotInPartsError(f"the tree of {self.root} has nodes with other things than links and bytes")
        if cid == self.root:
            # before the links, from which other threads see that the root is known
            self.size = node.size
        self._inner.update(link.cid for link in node.links if _is_inner(link))
        self._links[cid] = node.links
        return node

    def has(self, cid: Cid) -> bool:
        return cid in self._links

    def is_inner(self, cid: Cid) -> bool:
        """Whether a block is an inner node, by what its parent says; it may be unknown."""
        return cid in self._inner

    def links(self, cid: Cid) -> tuple[Link, ...]:
        return self._links.get(cid, ())

    def blocks(self, start: int, stop: int) -> Iterator[Place]:
        """The blocks that hold the bytes from `start` to `stop`, each before those below it, as far as they are known.

        Raises IntegrityError if sizes do not add up, or the tree is too deep, and NotInPartsError if it has very many
        blocks: few that link to each other many times make millions of places.
        """
        most = _SPARE_PLACES + 2 * (stop - start) // _MIN_LEAF_BYTES
        for number, place in enumerate(self._below(Place(self.root, 0, self.size), start, stop, 1)):
            if number > most:
                raise NotInPartsError(f"the tree of {self.root} has many tiny leaves")
            yield place

    def ends(self, start: int, stop: int) -> Iterator[Place]:
        """Those of `blocks` without known links: leaves, and inner nodes that are not known. Raises as `blocks`."""
        return (place for place in self.blocks(start, stop) if not self.links(place.cid))

    def _below(self, place: Place, start: int, stop: int, level: int) -> Iterator[Place]:
        if level > _MAX_LEVELS:
            raise IntegrityError(f"the tree of {self.root} has more than {_MAX_LEVELS} levels")
        yield place
        at = place.start
        for link in self.links(place.cid):
            if link.size and at < stop and at + link.size > start:
                yield from self._below(Place(link.cid, at, at + link.size), start, stop, level + 1)
            at += link.size
        if at not in (place.start, place.stop):
            size = place.stop - place.start
            raise IntegrityError(f"block {place.cid} holds {at - place.start} bytes, its parent says {size}")


def tree_of(root: Cid, node: LeafNode, max_bytes: int, turn: Turn, first_seconds: float | None) -> Tree:
    """The tree of a file with all inner nodes, which a node is asked for.

    A dag-pb block is taken for an inner node if it holds more bytes than a block may have, or if it takes more bytes
    than a leaf, by its parent's Tsize. Raises ResourceError.
    """
    tree = Tree(root)
    unknown = {root: None}
    nodes = 0
    while unknown:
        links: list[Link] = []
        nodes += len(unknown)
        if nodes > _MAX_INNER_NODES:
            raise NotInPartsError(f"the tree of {root} has more than {_MAX_INNER_NODES} inner nodes")
        for cid in unknown:
            if cid.hash_name == "identity":
                links += tree.add(cid, cid.digest).links
                continue
            with turn():
                links += tree.add(cid, node.block(cid, first_seconds)).links
        if not 0 < tree.size <= max_bytes:
            raise IntegrityError(f"the file has {tree.size:,} bytes; 1 to {max_bytes:,} are allowed")
        for _ in tree.blocks(0, tree.size):
            # raises for a tree that is too deep or malformed
            pass
        unknown = {link.cid: None for link in links if _is_inner(link) and not tree.has(link.cid)}
    return tree


def _is_inner(link: Link) -> bool:
    return link.cid.codec == "dag-pb" and (
        link.cid.hash_name == "identity" or link.size > MAX_SECTION or link.total > link.size + _LEAF_OVERHEAD
    )


class IpfsLeaves:
    """The leaves of one file from a node, as a `resources.parts.Client`. Each block is checked against its CID."""

    verified = True

    def __init__(
        self,
        root: Cid,
        node: LeafNode,
        parts: Parts,
        max_bytes: int,
        pool: Executor,
        turn: Turn,
        first_seconds: float | None = None,
    ) -> None:
        self._root, self._node, self._parts = root, node, parts
        self._max_bytes, self._pool, self._turn = max_bytes, pool, turn
        self._first_seconds = first_seconds
        self._sends_blocks = False
        self._tree = Tree(root)
        self._leaves: dict[Cid, Range] = {}
        """Where the leaves are that came."""
        for name, block in parts.notes(str(root)).items():
            # those of a damaged log are requested again
            with contextlib.suppress(IntegrityError):
                self._tree.add(Cid.parse(name), block)

    def bring(self, ranges: Sequence[Range]) -> None:
        while missing := self._missing(ranges):
            if inline := {place.cid for place in missing if place.cid.hash_name == "identity"}:
                if len(inline) > _MAX_INLINE:
                    raise NotInPartsError(f"the tree of {self._root} has many leaves in their CIDs")
                # the CID itself has the bytes, and gateways leave the block out
                for cid in inline:
                    self._take(cid, cid.digest)
                continue
            ranged = self._node.takes_ranges
            # the first range alone if the root is not known, because the others need it
            ranges_now = ranges if self._tree.size else ranges[:1]
            if ranged:
                spans = merged(
                    {self._tree_span(place, one) for one in ranges_now for place in missing},
                    most=MAX_RANGE_BYTES,
                )
                requests = [partial(self._by_range, *span) for span in spans]
            else:
                requests = [partial(self._by_block, cid) for cid in dict.fromkeys(p.cid for p in missing)]
            in_turns(self._pool, self._turn, requests)
            if ranged == self._node.takes_ranges and self._missing(ranges) == missing:
                raise CutShortError(f"sent nothing of {self._root} that was asked for")

    def _missing(self, ranges: Sequence[Range]) -> list[Place]:
        """The blocks to request next."""
        if not self._tree.size:
            return [Place(self._root, 0, 0)]
        missing = self._parts.missing(ranges)
        places = {place for one in missing for place in self._tree.ends(*one)}
        return sorted(places, key=lambda place: (place.start, place.stop))

    def _tree_span(self, place: Place, wanted: Range) -> Range:
        """What to request of a block: a leaf as it is, and of an inner node only what is wanted."""
        if self._tree.size and not self._tree.is_inner(place.cid):
            return place.start, place.stop
        start, stop = wanted
        return (max(place.start, start), min(place.stop, stop)) if self._tree.size else wanted

    def _by_range(self, start: int, stop: int) -> None:
        """Request what is missing of a range. A node that sends something else is not asked for ranges again."""
        if self._tree.size:
            # an earlier attempt may have brought a part, or another range the same leaf
            missing = self._parts.missing([(start, stop)])
            if not missing:
                return
            start, stop = missing[0][0], missing[-1][1]
        came, spare = False, _SPARE_BLOCKS
        with self._node.car(self._root, start, self._first_seconds, stop) as pieces:
            for sent, block in read_car(pieces):
                came = True
                found = [place for place in self._tree.blocks(start, stop) if place.cid.same_block(sent)]
                if not all(map(self._is_here, found)):
                    self._take(found[0].cid, block)
                elif found and spare:
                    spare -= 1
                else:
                    self._node.takes_ranges = False
                    return
        if not came:
            raise NotFoundError(f"the CAR of {self._root} holds no block")
        if not self._tree.size or self._parts.missing([(start, stop)]):
            raise CutShortError(f"the CAR of bytes {start:,} to {stop:,} of {self._root} ended early")

    def _is_here(self, place: Place) -> bool:
        if not self._tree.has(place.cid):
            return False
        return bool(self._tree.links(place.cid)) or not self._parts.missing([(place.start, place.stop)])

    def _by_block(self, cid: Cid) -> None:
        try:
            block = self._node.block(cid, self._first_seconds)
        except (ForbiddenError, RefusedError) as error:
            if self._sends_blocks:
                raise
            raise NotInPartsError(f"single blocks are refused ({error})") from None
        self._sends_blocks = True
        self._take(cid, block)

    def _take(self, cid: Cid, block: bytes) -> None:
        """Keep a block at each of its places in the file."""
        node = self._tree.add(cid, block)
        if cid == self._root:
            if not node.size:
                raise IntegrityError(f"{cid} is an empty file")
            self._parts.begin(str(cid), node.size, self._max_bytes)
        if not node.links:
            self._fill(cid, node.data)
            return
        self._parts.note(str(cid), block)
        # those that came before, below another node
        for leaf in {place.cid for place in self._tree.ends(0, self._tree.size)} & self._leaves.keys():
            self._fill(leaf, self._parts.read(*self._leaves[leaf]))

    def _fill(self, cid: Cid, data: bytes) -> None:
        """Keep the bytes of a leaf at each of its places."""
        for place in self._tree.ends(0, self._tree.size):
            if place.cid == cid and self._parts.missing([(place.start, place.stop)]):
                if place.stop - place.start != len(data):
                    raise IntegrityError(
                        f"block {cid} holds {len(data)} bytes, its parent says {place.stop - place.start}"
                    )
                self._parts.add(place.start, data)
                self._leaves[cid] = place.start, place.stop
