import asyncio
import contextlib
import hashlib
import itertools
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from crop_assets_tests.resources.loopback import serving
from crop_assets_tests.resources.selected import NamedRanges, file_of, selected
from resources import parts as parts_module
from resources.errors import CutShortError, IntegrityError, NotFoundError, ResourceError
from resources.ipfs.car import DFS_CONTENT_TYPE, car_of
from resources.ipfs.cid import Cid
from resources.ipfs.leaves import IpfsLeaves, LeafNode, Tree, tree_of
from resources.ipfs.nodes import Gateway, IpfsSource
from resources.ipfs.unixfs import KUBO_CHUNK, FileDag, Link, decode_file_node, encode_file_node
from resources.parts import NotInPartsError, Parts, Range, merged, obtain
from resources.resume import PartialFiles
from resources.sources import FetchResult, FileRequest, Memory, Sources
from resources.tiff import HEAD_BYTES

MIB = 1 << 20
LIMIT = 64 * MIB
RAW = "application/vnd.ipld.raw"
Block = tuple[Cid, bytes]


@pytest.fixture(autouse=True)
def brief_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts_module, "_BACKOFF_SECONDS", 0.001)


def below(blocks: dict[Cid, bytes], cid: Cid, start: int, stop: int, at: int = 0) -> Iterator[Block]:
    """The blocks of a range of a file, depth first, repeated ones again: as of a gateway that honours entity-bytes."""
    yield cid, blocks[cid]
    if cid.codec == "dag-pb":
        for link in decode_file_node(blocks[cid]).links:
            if at < stop and at + link.size > start and link.cid.hash_name != "identity":
                yield from below(blocks, link.cid, start, stop, at)
            at += link.size


class Server:
    """A trustless gateway with one file, except what `car` and `block` make of its answers."""

    def __init__(self) -> None:
        self.address = ""

    def has(self, root: Cid, blocks: Iterable[Block]) -> None:
        self.root, self.blocks = root, dict(blocks)
        self.car: Callable[[int, int], Iterable[bytes] | AsyncIterator[bytes]] = self.right
        self.block: Callable[[Cid], bytes | None] = self.blocks.get
        self.cars: list[str] = []
        """The entity-bytes of each CAR that was asked for."""
        self.raw: list[Cid] = []
        """The blocks that were asked for."""
        self.sent: list[Cid] = []
        """The blocks that were sent, in CARs."""

    def right(self, start: int, stop: int) -> Iterator[bytes]:
        return self.car_with(below(self.blocks, self.root, start, stop))

    def car_with(self, blocks: Iterable[Block]) -> Iterator[bytes]:
        def counted() -> Iterator[Block]:
            for cid, block in blocks:
                self.sent.append(cid)
                yield cid, block

        return car_of(self.root, counted())

    def answer(self, request: Request) -> Response:
        cid = Cid.parse(request.path_params["cid"])
        if request.query_params["format"] == "raw":
            self.raw.append(cid)
            block = self.block(cid)
            return PlainTextResponse("", 404) if block is None else Response(block, media_type=RAW)
        assert cid == self.root
        span = request.query_params.get("entity-bytes", "0:*")
        self.cars.append(span)
        first, _, last = span.partition(":")
        pieces = self.car(int(first), LIMIT if last == "*" else int(last) + 1)
        return StreamingResponse(pieces, headers={"Content-Type": DFS_CONTENT_TYPE})

    def leaves(self) -> Counter[Cid]:
        """How often each leaf was sent or asked for."""
        return Counter(cid for cid in [*self.sent, *self.raw] if not decode(cid, self.blocks[cid]))


def decode(cid: Cid, block: bytes) -> tuple[Link, ...]:
    return () if cid.codec == "raw" else decode_file_node(block).links


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    server = Server()
    with serving(Starlette(routes=[Route("/ipfs/{cid}", server.answer)])) as server.address:
        yield server


class Fetching:
    """Ranges of the server's file, which come into one folder, as one process after another would fetch them."""

    def __init__(self, folder: Path, server: Server, pool: Executor) -> None:
        self.folder, self.server, self.pool = folder, server, pool
        self.gateway = Gateway(server.address, 10)

    def holds(
        self, data: bytes, chunk: int = KUBO_CHUNK, version: Literal[0, 1] = 1, width: int = 174
    ) -> FileDag:
        path = self.folder / "original"
        path.write_bytes(data)
        self.data, dag = data, FileDag(path, chunk, version, width)
        self.server.has(dag.root, dag.blocks())
        return dag

    @contextlib.contextmanager
    def parts(self) -> Iterator[Parts]:
        with Parts(self.folder / "parts") as parts:
            yield parts

    def bring(self, *ranges: Range, head: bool = True) -> None:
        """Bring the ranges, after the head as `obtain` does; what is there then must be right."""
        with self.parts() as parts:
            leaves = IpfsLeaves(
                self.server.root, self.gateway, parts, LIMIT, self.pool, contextlib.nullcontext
            )
            if head and not parts.size:
                leaves.bring([(0, HEAD_BYTES)])
            if missing := parts.missing(ranges):
                leaves.bring(missing)
            for start, stop in ranges:
                assert parts.read(start, stop) == self.data[start:stop]

    def kept(self) -> list[Range]:
        """What is on disk, which must be right."""
        with self.parts() as parts:
            missing = parts.missing([(0, parts.size)])
            edges = [0, *itertools.chain(*missing), parts.size]
            found = [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b]
            for start, stop in found:
                assert parts.read(start, stop) == self.data[start:stop]
            return found


@pytest.fixture
def fetch(tmp_path: Path, running: Server) -> Iterator[Fetching]:
    with ThreadPoolExecutor(2) as pool:
        yield Fetching(tmp_path, running, pool)


def data_of(size: int, seed: str = "a band") -> bytes:
    return hashlib.shake_256(seed.encode()).digest(size)


LAYOUTS: dict[str, tuple[int, int, Literal[0, 1], int]] = {
    "256 KiB raw": (3_000_000, KUBO_CHUNK, 1, 174),
    "256 KiB dag-pb": (3_000_000, KUBO_CHUNK, 0, 174),
    "1 MiB raw": (3_000_000, MIB, 1, 174),
    "1 MiB dag-pb": (3_000_000, MIB, 0, 174),
    "one block raw": (200_000, KUBO_CHUNK, 1, 174),
    "one block dag-pb": (200_000, KUBO_CHUNK, 0, 174),
    "three levels raw": (600_000, 65_536, 1, 4),
    "three levels dag-pb": (600_000, 65_536, 0, 4),
    "four levels raw": (600_000, 32_768, 1, 3),
}
BY_LAYOUT = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
WAYS = pytest.mark.parametrize("way", ["entity-bytes", "raw blocks"])


@WAYS
@BY_LAYOUT
def test_only_the_leaves_of_the_ranges_come(
    fetch: Fetching, layout: tuple[int, int, Literal[0, 1], int], way: str
) -> None:
    size, chunk, *others = layout
    fetch.holds(data_of(size), chunk, *others)
    fetch.gateway.takes_ranges = way == "entity-bytes"
    ranges = [(size // 3, size // 3 + 10), (size - 5, size)]
    fetch.bring(*ranges)
    leaves = {
        at for start, stop in [(0, HEAD_BYTES), *ranges] for at in range(start // chunk, -(-stop // chunk))
    }
    expected = merged((at * chunk, min((at + 1) * chunk, size)) for at in leaves)
    assert fetch.kept() == expected
    assert sorted(fetch.server.leaves().values()) == [1] * len(leaves)
    assert bool(fetch.server.raw) == (way == "raw blocks")
    assert bool(fetch.server.cars) == (way == "entity-bytes")


def test_the_first_request_brings_the_root_and_the_first_leaf(fetch: Fetching) -> None:
    dag = fetch.holds(data_of(3_000_000))
    fetch.bring((0, 100))
    assert fetch.server.cars == [f"0:{HEAD_BYTES - 1}"]
    assert fetch.server.sent == [cid for cid, _ in itertools.islice(dag.blocks(), 2)]


@pytest.mark.parametrize("version", [0, 1])
def test_two_ranges_in_one_leaf_are_one_request(fetch: Fetching, version: Literal[0, 1]) -> None:
    fetch.holds(data_of(3_000_000), KUBO_CHUNK, version)
    fetch.bring((600_000, 600_010), (700_000, 700_010))
    assert fetch.server.cars[1:] == [f"{2 * KUBO_CHUNK}:{3 * KUBO_CHUNK - 1}"]


@WAYS
def test_a_second_process_asks_for_nothing_that_was_there(fetch: Fetching, way: str) -> None:
    fetch.holds(data_of(3_000_000))
    fetch.gateway.takes_ranges = way == "entity-bytes"
    fetch.bring((300_000, 900_000))
    first = fetch.server.leaves()
    fetch.bring((300_000, 1_900_000))
    assert set(fetch.server.leaves().values()) == {1}
    assert set(first) < set(fetch.server.leaves())
    before = len(fetch.server.cars) + len(fetch.server.raw)
    fetch.bring((0, 1_900_000))
    assert len(fetch.server.cars) + len(fetch.server.raw) == before


@WAYS
def test_leaves_that_are_alike_come_once(fetch: Fetching, way: str) -> None:
    """Below one inner node, or several, which are alike too."""
    dag = fetch.holds(bytes(1_300_000), 16_384, 1, 4)
    fetch.gateway.takes_ranges = way == "entity-bytes"
    fetch.bring((0, 1_300_000))
    assert fetch.kept() == [(0, 1_300_000)]
    if way == "raw blocks":
        assert Counter(fetch.server.raw) == Counter(set(dag.cids()))


def test_a_leaf_that_is_alike_below_two_inner_nodes(fetch: Fetching) -> None:
    """It comes below the first one before the second one is known."""
    chunk = 4096
    a, b, zeros = data_of(chunk, "a"), data_of(chunk, "b"), bytes(chunk)
    fetch.holds(data_of(chunk, "c") + a + zeros + b + zeros + data_of(chunk, "d"), chunk, 1, 2)
    fetch.bring((chunk, 6 * chunk))
    assert len(fetch.server.cars) <= 2
    assert fetch.gateway.takes_ranges


def test_a_car_without_repeats_is_enough(fetch: Fetching) -> None:
    chunk = 4096
    a, zeros = data_of(chunk, "a"), bytes(chunk)
    fetch.holds(data_of(chunk, "c") + a + zeros + a + zeros + a, chunk, 1, 2)
    server = fetch.server
    server.car = lambda start, stop: server.car_with(
        dict(below(server.blocks, server.root, start, stop)).items()
    )
    fetch.bring((chunk, 6 * chunk))
    assert fetch.gateway.takes_ranges


@WAYS
def test_an_identity_cid_is_its_own_block(fetch: Fetching, way: str) -> None:
    """And is not asked for: gateways leave it out of CARs, or do not have it."""
    first, last = raw(data_of(20_000)), raw(data_of(20_000, "last"))
    inline = Cid(1, "raw", "identity", b"inline bytes")
    node = Cid(1, "dag-pb", "identity", encode_file_node(b"", [Link(inline, 12, 12)]))
    root = inner(link(first), Link(inline, 12, 12), Link(node, 12, 60), link(last))
    fetch.data = first[1] + 2 * inline.digest + last[1]
    fetch.server.has(root[0], [root, first, last])
    fetch.gateway.takes_ranges = way == "entity-bytes"
    fetch.bring((19_990, 20_100))
    assert fetch.kept() == [(0, len(fetch.data))]
    assert not any(cid.hash_name == "identity" for cid in fetch.server.raw)
    tree = tree_of(root[0], fetch.gateway, LIMIT, contextlib.nullcontext, None)
    assert [p.stop - p.start for p in tree.ends(0, tree.size)] == [20_000, 12, 12, 20_000]


# gateways that do not do as they should


def raw(block: bytes) -> Block:
    return Cid.of(block, "raw"), block


def inner(*links: Link, data: bytes = b"") -> Block:
    block = encode_file_node(data, links)
    return Cid.of(block, "dag-pb"), block


def link(block: Block, size: int | None = None) -> Link:
    cid, data = block
    if cid.codec == "raw":
        return Link(cid, len(data) if size is None else size, len(data))
    node = decode_file_node(data)
    return Link(cid, node.size if size is None else size, len(data) + sum(one.total for one in node.links))


def test_a_gateway_that_ignores_ranges_is_noticed_and_not_read_to_the_end(fetch: Fetching) -> None:
    fetch.holds(data_of(3_000_000))
    server = fetch.server
    cancelled = []

    async def everything() -> AsyncIterator[bytes]:
        try:
            for number, piece in enumerate(server.car_with(below(server.blocks, server.root, 0, LIMIT))):
                yield piece
                if number == 4:
                    # a client that reads on waits for longer than it may
                    await asyncio.sleep(60)
        finally:
            cancelled.append(len(server.sent))

    server.car = lambda start, stop: everything()
    fetch.gateway = Gateway(server.address, 30)
    fetch.bring((1_500_000, 1_500_010), (2_999_990, 3_000_000))
    assert not fetch.gateway.takes_ranges
    assert len(server.cars) == 1
    leaves = [p.cid for p in _tree(fetch).ends(0, 3_000_000)]
    assert set(server.raw) == {leaves[5], leaves[11]}
    assert len(server.raw) == 2
    assert fetch.kept() == [(0, KUBO_CHUNK), (5 * KUBO_CHUNK, 6 * KUBO_CHUNK), (11 * KUBO_CHUNK, 3_000_000)]
    fetch.bring((0, 3_000_000))
    assert len(server.cars) == 1, "it is not asked for ranges again"
    assert sorted(server.raw, key=bytes) == sorted(leaves[1:], key=bytes)


def _tree(fetch: Fetching) -> Tree:
    tree = Tree(fetch.server.root)
    for cid, block in fetch.server.blocks.items():
        if cid.codec == "dag-pb":
            tree.add(cid, block)
    return tree


def other_file(fetch: Fetching) -> Iterator[Block]:
    path = fetch.folder / "other"
    path.write_bytes(data_of(600_000, "other"))
    return FileDag(path).blocks()


STRANGE: dict[str, Callable[[Fetching, list[Block]], Iterable[Block]]] = {
    "a leaf of another file": lambda fetch, right: [*right[:1], *list(other_file(fetch))[1:], *right[1:]],
    "another file": lambda fetch, right: other_file(fetch),
    "the leaf before its root": lambda fetch, right: right[::-1],
    "a leaf too early": lambda fetch, right: [right[0], raw(fetch.data[2 * KUBO_CHUNK : 3 * KUBO_CHUNK])],
    "the root for ever": lambda fetch, right: itertools.repeat(right[0], 500),
    "the first leaf for ever": lambda fetch, right: [right[0], *[right[1]] * 200],
}


@pytest.mark.parametrize("name", STRANGE)
def test_what_a_gateway_sends_besides_is_not_kept_and_raw_blocks_are_asked_for(
    fetch: Fetching, name: str
) -> None:
    fetch.holds(data_of(3_000_000))
    server = fetch.server
    server.car = lambda start, stop: server.car_with(
        STRANGE[name](fetch, list(below(server.blocks, server.root, start, stop)))
    )
    fetch.bring((1_500_000, 1_500_010))
    assert fetch.kept() == [(0, KUBO_CHUNK), (5 * KUBO_CHUNK, 6 * KUBO_CHUNK)]
    assert not fetch.gateway.takes_ranges
    assert len(server.sent) <= 200


def test_blocks_in_another_order_are_kept_where_their_parents_came_before(fetch: Fetching) -> None:
    fetch.holds(data_of(3_000_000))
    server = fetch.server

    def breadth_first(start: int, stop: int) -> Iterable[bytes]:
        root, *leaves = below(server.blocks, server.root, start, stop)
        return server.car_with([root, *reversed(leaves), *leaves[:1]])

    server.car = breadth_first
    fetch.bring((500_000, 1_500_000))
    assert fetch.gateway.takes_ranges
    assert not server.raw


@pytest.mark.parametrize("at", [0, 100, -1])
@pytest.mark.parametrize("which", [0, 1], ids=["root", "leaf"])
@WAYS
def test_wrong_bytes_are_refused_and_nothing_of_the_block_stays(
    fetch: Fetching, which: int, at: int, way: str
) -> None:
    fetch.holds(data_of(3_000_000))
    server = fetch.server
    cid = list(below(server.blocks, server.root, 1_500_000, 1_500_010))[which][0]
    wrong = bytearray(server.blocks[cid])
    wrong[at] ^= 1
    spoilt = server.blocks | {cid: bytes(wrong)}
    server.car = lambda start, stop: server.car_with(
        (one, spoilt[one]) for one, _ in below(server.blocks, server.root, start, stop)
    )
    server.block = spoilt.get
    fetch.gateway.takes_ranges = way == "entity-bytes"
    with pytest.raises(IntegrityError, match=f"the bytes sent as block {cid} are not that block"):
        fetch.bring((1_500_000, 1_500_010))
    assert fetch.kept() == ([] if which == 0 else [(0, KUBO_CHUNK)])
    server.has(server.root, server.blocks.items())
    fetch.bring((1_500_000, 1_500_010))
    assert fetch.kept() == [(0, KUBO_CHUNK), (5 * KUBO_CHUNK, 6 * KUBO_CHUNK)]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_car_that_is_cut_short_is_asked_for_again_without_what_came(fetch: Fetching, share: float) -> None:
    fetch.holds(data_of(3_000_000))
    server = fetch.server
    fetch.bring((0, 100))

    def cut(start: int, stop: int) -> Iterable[bytes]:
        data = b"".join(car_of(server.root, below(server.blocks, server.root, start, stop)))
        server.car = server.right
        return [data[: int(share * len(data))]]

    server.car = cut
    server.sent.clear()
    fetch.bring((300_000, 2_900_000))
    assert fetch.gateway.takes_ranges
    came = int(share * 11 * KUBO_CHUNK) // KUBO_CHUNK
    assert len(server.cars) == 3
    assert 11 - came <= sum(server.leaves().values()) <= 12 - came


@pytest.mark.parametrize("left", [0, 1, 11])
def test_a_car_that_is_always_cut_short_is_given_up(fetch: Fetching, left: int) -> None:
    fetch.holds(data_of(3_000_000))
    server = fetch.server

    def short(start: int, stop: int) -> Iterable[bytes]:
        *pieces, last = server.right(start, stop)
        return [*pieces, last[: len(last) - left]] if left else pieces

    server.car = short
    with pytest.raises(CutShortError):
        fetch.bring((1_500_000, 1_500_010))
    assert fetch.kept() == []
    assert len(server.cars) == 3


def test_a_car_without_blocks_is_that_of_nothing(fetch: Fetching) -> None:
    fetch.holds(data_of(3_000_000))
    fetch.server.car = lambda start, stop: car_of(fetch.server.root, [])
    with pytest.raises(NotFoundError, match="holds no block"):
        fetch.bring((1_500_000, 1_500_010))
    assert len(fetch.server.cars) == 1


@pytest.mark.parametrize("junk", [b"", b"junk", b"<html>" * 2000, b"\xff" * 50])
def test_what_is_no_car_is_refused(fetch: Fetching, junk: bytes) -> None:
    fetch.holds(data_of(3_000_000))
    fetch.server.car = lambda start, stop: [junk]
    with pytest.raises(ResourceError):
        fetch.bring((1_500_000, 1_500_010))
    assert fetch.kept() == []


def test_a_missing_block_is_not_found(fetch: Fetching) -> None:
    fetch.holds(data_of(3_000_000))
    leaf = next(_tree(fetch).ends(1_500_000, 1_500_010)).cid
    right = fetch.server.block
    fetch.server.block = lambda cid: None if cid == leaf else right(cid)
    fetch.gateway.takes_ranges = False
    with pytest.raises(NotFoundError):
        fetch.bring((1_500_000, 1_500_010))
    assert fetch.kept() == [(0, KUBO_CHUNK)]


# trees that are not as they should be


HALF = 300_000
ONE, TWO = raw(data_of(HALF)), raw(data_of(HALF, "two"))


def _deep(levels: int) -> list[Block]:
    blocks = [ONE]
    for _ in range(levels):
        blocks.append(inner(link(blocks[-1])))
    return blocks


def _many(levels: int) -> list[Block]:
    """Few blocks that link to each other 16 times each."""
    blocks = [raw(b"x")]
    for _ in range(levels):
        blocks.append(inner(*[link(blocks[-1])] * 16))
    return blocks


def _folder() -> Block:
    # UnixFS type 1
    return Cid.of(b"\x0a\x02\x08\x01", "dag-pb"), b"\x0a\x02\x08\x01"


WRONG_TREES: dict[str, tuple[list[Block], type[ResourceError], str]] = {
    "a leaf shorter than its link": (
        [TWO, ONE, inner(link(ONE), link(TWO, HALF + 1))],
        IntegrityError,
        "parent says",
    ),
    "a leaf longer than its link": (
        [TWO, ONE, inner(link(ONE), link(TWO, HALF - 1))],
        IntegrityError,
        "parent says",
    ),
    "many levels": (_deep(12), IntegrityError, "more than 8 levels"),
    "tiny leaves": ([raw(b"x"), inner(*[link(raw(b"x"))] * 20_000)], NotInPartsError, "many tiny leaves"),
    "millions of leaves in few blocks": (_many(6), NotInPartsError, "many tiny leaves"),
    "bytes in an inner node": (
        [ONE, inner(link(ONE), data=b"its own")],
        NotInPartsError,
        "bytes in inner nodes",
    ),
    "an empty file": ([raw(b"")], IntegrityError, ""),
    "a folder": ([_folder()], IntegrityError, "a directory, not a file"),
    "nonsense": ([(Cid.of(b"nonsense", "dag-pb"), b"nonsense")], IntegrityError, ""),
    "a file above the limit": ([ONE, inner(*[link(ONE)] * 300)], IntegrityError, "allowed"),
}


@pytest.mark.parametrize("name", WRONG_TREES)
@WAYS
def test_a_wrong_tree_is_refused(fetch: Fetching, name: str, way: str) -> None:
    blocks, error, words = WRONG_TREES[name]
    root = blocks[-1][0]
    fetch.server.has(root, blocks)
    fetch.data = b""
    server = fetch.server
    # as a hostile gateway: whatever there is, the root first
    server.car = lambda start, stop: server.car_with(reversed(blocks))
    fetch.gateway.takes_ranges = way == "entity-bytes"
    with pytest.raises(error, match=words or None):
        fetch.bring((0, 600_000))
    with fetch.parts() as parts:
        assert not parts.size or parts.missing([(0, parts.size)])


@pytest.mark.parametrize(
    "name", ["many levels", "millions of leaves in few blocks", "a file above the limit"]
)
def test_the_links_of_a_wrong_tree_are_not_followed_for_long(fetch: Fetching, name: str) -> None:
    blocks, error, words = WRONG_TREES[name]
    fetch.server.has(blocks[-1][0], blocks)
    with pytest.raises(error, match=words):
        tree_of(blocks[-1][0], fetch.gateway, LIMIT, contextlib.nullcontext, None)
    assert len(fetch.server.raw) <= 12


def test_an_inner_node_of_another_size_than_its_parent_says(fetch: Fetching) -> None:
    node = inner(link(ONE), link(TWO))
    root = inner(link(node, 2 * HALF + 1), link(ONE))
    fetch.server.has(root[0], [root, node, ONE, TWO])
    for takes_ranges in (True, False):
        fetch.gateway.takes_ranges = takes_ranges
        with pytest.raises(IntegrityError, match="holds 600000 bytes, its parent says 600001"):
            fetch.bring((0, 600_000))


# trees for ranges from elsewhere


@BY_LAYOUT
def test_the_tree_of_a_file_has_all_leaves_and_takes_inner_nodes_alone(
    fetch: Fetching, layout: tuple[int, int, Literal[0, 1], int]
) -> None:
    size, chunk, version, width = layout
    dag = fetch.holds(data_of(size), chunk, version, width)
    tree = tree_of(dag.root, fetch.gateway, LIMIT, contextlib.nullcontext, None)
    assert (tree.root, tree.size) == (dag.root, size)
    found = list(tree.ends(0, size))
    assert [(p.start, p.stop) for p in found] == [(at, min(at + chunk, size)) for at in range(0, size, chunk)]
    for place in found:
        data = fetch.data[place.start : place.stop]
        assert place.holds(data)
        assert not place.holds(data[:-1] + bytes([data[-1] ^ 1]))
    inner_nodes = [cid for cid, block in fetch.server.blocks.items() if decode(cid, block)]
    assert sorted(fetch.server.raw, key=bytes) == sorted(inner_nodes or [dag.root], key=bytes)
    assert not fetch.server.cars


# any file, layout and ranges


class LocalNode:
    """A node in this process, which breaks off after some answers."""

    name = host = ""
    timeout_seconds = 1.0

    def __init__(self, dag: FileDag, takes_ranges: bool, answers: int) -> None:
        self.dag, self.takes_ranges, self.left = dag, takes_ranges, answers
        self.blocks = dict(dag.blocks())
        self.sent: list[Cid] = []

    def _answer(self) -> None:
        if not self.left:
            raise NotFoundError("gone")
        self.left -= 1

    @contextlib.contextmanager
    def car(
        self, root: Cid, offset: int, first_seconds: float | None = None, stop: int | None = None
    ) -> Iterator[Iterator[bytes]]:
        self._answer()

        def counted() -> Iterator[Block]:
            for cid, block in below(self.blocks, root, offset, LIMIT if stop is None else stop):
                self.sent.append(cid)
                yield cid, block

        yield car_of(root, counted())

    def block(self, cid: Cid, first_seconds: float | None = None) -> bytes:
        self._answer()
        self.sent.append(cid)
        return self.blocks[cid]


@given(
    data=st.data(),
    chunk=st.integers(20, 400),
    width=st.integers(2, 5),
    version=st.sampled_from([0, 1]),
    takes_ranges=st.booleans(),
    answers=st.integers(0, 6),
)
def test_any_ranges_of_any_file_arrive_and_nothing_is_fetched_twice(
    data: st.DataObject,
    chunk: int,
    width: int,
    version: Literal[0, 1],
    takes_ranges: bool,
    answers: int,
) -> None:
    size = data.draw(st.integers(1, 12 * chunk))
    content = hashlib.shake_256(bytes([chunk % 256, width])).digest(size)
    ranges = data.draw(
        st.lists(st.tuples(st.integers(0, size), st.integers(0, size + 50)), min_size=1, max_size=4)
    )
    # one thread: two ranges below an inner node that is not known yet may ask for the same leaf at once
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as pool:
        path = Path(folder) / "original"
        path.write_bytes(content)
        dag = FileDag(path, chunk, version, width)

        def bring(node: LeafNode) -> None:
            with Parts(Path(folder) / "parts") as parts:
                leaves = IpfsLeaves(dag.root, node, parts, LIMIT, pool, contextlib.nullcontext)
                if not parts.size or parts.missing([(0, 10)]):
                    leaves.bring([(0, 10)])
                if missing := parts.missing(ranges):
                    leaves.bring(missing)
                for start, stop in ranges:
                    assert parts.read(start, stop) == content[start:stop]

        first = LocalNode(dag, takes_ranges, answers)
        with contextlib.suppress(NotFoundError):
            bring(first)
        second = LocalNode(dag, takes_ranges, 1000)
        bring(second)
        third = LocalNode(dag, takes_ranges, 0)
        bring(third)

        wanted = {0} | {
            at
            for start, stop in merged((start, min(stop, size)) for start, stop in ranges)
            for at in range(start // chunk, -(-stop // chunk))
        }
        expected = Counter(_leaf(content[at * chunk : (at + 1) * chunk], version) for at in wanted)
        sent = Counter(cid for cid in [*first.sent, *second.sent] if not decode(cid, first.blocks[cid]))
        assert sent == expected
        assert third.sent == []
        inner_of = [cid for cid in second.sent if decode(cid, second.blocks[cid])]
        if not takes_ranges:
            assert len(set(inner_of)) == len(inner_of)
            assert not set(inner_of) & set(first.sent)


def _leaf(data: bytes, version: Literal[0, 1]) -> Cid:
    if version:
        return Cid.of(data, "raw")
    return Cid.of(encode_file_node(data, ()), "dag-pb", 0)


# as a source


@pytest.mark.parametrize("size", [3_000_000, 100_000])
def test_a_selection_comes_verified_from_a_gateway(fetch: Fetching, tmp_path: Path, size: int) -> None:
    fetch.holds(file_of([(50_000, 60_000), (size - 10, size)], size))
    selection, said = NamedRanges(fetch.pool), list[str]()
    request = FileRequest("scene/B02.tif", str(fetch.server.root), "", LIMIT)
    got = Sources([IpfsSource(fetch.gateway)], 1, Memory(4)).obtain(
        request,
        tmp_path / "out",
        PartialFiles(tmp_path / "partials"),
        lambda path, got: None,
        said.append,
        selection=selection,
    )
    assert got == FetchResult(fetch.server.address, True, True)
    assert (tmp_path / "out").read_bytes() == selected(fetch.data)
    assert not list((tmp_path / "partials").iterdir())
    assert selection.chosen == [(str(fetch.server.root), size)]
    assert selection.written == [(str(fetch.server.root), True)]


def test_a_damaged_link_in_the_parts_is_fetched_again(fetch: Fetching) -> None:
    """Not taken for an error of every node, for as long as the parts stay."""
    fetch.holds(data_of(600_000), 65_536, 1, 4)
    fetch.bring((300_000, 310_000))
    log = fetch.folder / "parts.parts"
    lines = log.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines):
        if b'"name"' in line:
            changed = line.replace(b'"data": "E', b'"data": "F')
            log.write_bytes(b"".join([*lines[:number], changed, *lines[number + 1 :]]))
            fetch.bring((300_000, 320_000), (500_000, 510_000))
            log.write_bytes(b"".join(lines))
    assert sum(b'"name"' in line for line in lines) == 3


def test_a_selection_is_written_of_what_is_there(fetch: Fetching, tmp_path: Path) -> None:
    """`obtain` asks for nothing if all of it came before."""
    fetch.holds(file_of([(700_000, 800_000)], 3_000_000))
    fetch.bring((700_000, 800_000))
    count = len(fetch.server.cars)
    with fetch.parts() as parts:
        leaves = IpfsLeaves(
            fetch.server.root, fetch.gateway, parts, LIMIT, fetch.pool, contextlib.nullcontext
        )
        assert obtain(NamedRanges(fetch.pool), parts, leaves, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == fetch.data[700_000:800_000]
    assert len(fetch.server.cars) == count
