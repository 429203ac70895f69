import contextlib
import hashlib
import itertools
import tracemalloc
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random
from typing import Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from resources.errors import CutShortError, IntegrityError, NotFoundError
from resources.ipfs import retrieve as retrieve_module
from resources.ipfs import varint
from resources.ipfs.car import MAX_HEADER, MAX_SECTION, read_car, write_car
from resources.ipfs.cid import Cid
from resources.ipfs.retrieve import Retrieval
from resources.ipfs.unixfs import FileDag, Link, decode_file_node, encode_file_node

MIB = 1 << 20
HEADER = b"\x0a\xa1\x67version\x01"

# some bytes, some long runs of one byte: the runs make equal leaves and equal subtrees
CONTENTS = st.lists(
    st.one_of(
        st.binary(max_size=40),
        st.tuples(st.binary(min_size=1, max_size=1), st.integers(0, 300)).map(lambda t: t[0] * t[1]),
    ),
    max_size=6,
).map(b"".join)


def retrieve(root: Cid, pieces: Iterable[bytes], path: Path, max_bytes: int) -> int:
    """One walk with nothing there before."""
    for left in path.parent.glob(f"{path.name}*"):
        left.unlink()
    with Retrieval(root, path, max_bytes) as retrieval:
        return retrieval.feed(pieces)


def kept(path: Path) -> bytes:
    """What a walk that failed left of the file."""
    return path.read_bytes() if path.exists() else b""


def dag_of(tmp_path: Path, data: bytes, **layout: int) -> FileDag:
    path = tmp_path / "original"
    path.write_bytes(data)
    return FileDag(path, **layout)  # type: ignore[arg-type]


def cut(data: bytes, size: int) -> Iterator[bytes]:
    return (data[i : i + size] for i in range(0, len(data), size))


def car(*blocks: tuple[Cid, bytes]) -> bytes:
    sections = [varint.encode(len(bytes(cid)) + len(block)) + bytes(cid) + block for cid, block in blocks]
    return HEADER + b"".join(sections)


def raw(block: bytes) -> tuple[Cid, bytes]:
    return Cid.of(block, "raw"), block


def node(data: bytes, *links: Link) -> tuple[Cid, bytes]:
    block = encode_file_node(data, links)
    return Cid.of(block, "dag-pb"), block


def link(block: tuple[Cid, bytes], size: int | None = None) -> Link:
    return Link(block[0], len(block[1]) if size is None else size, len(block[1]))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    data=CONTENTS,
    chunk_size=st.integers(1, 400),
    version=st.sampled_from([0, 1]),
    width=st.integers(2, 5),
    repeats=st.booleans(),
    piece=st.integers(1, 1000),
)
def test_every_layout_comes_back(
    tmp_path: Path,
    data: bytes,
    chunk_size: int,
    version: Literal[0, 1],
    width: int,
    repeats: bool,
    piece: int,
) -> None:
    dag = dag_of(tmp_path, data, chunk_size=chunk_size, version=version, width=width)
    stream = b"".join(write_car(dag, repeats))
    out = tmp_path / "out"
    assert retrieve(dag.root, cut(stream, piece), out, len(data)) == len(data)
    assert out.read_bytes() == data


@pytest.mark.parametrize("version", [0, 1])
def test_a_file_in_kubos_layout(tmp_path: Path, version: Literal[0, 1]) -> None:
    data = hashlib.shake_256(b"kubo").digest(3 * MIB + 7)
    dag = dag_of(tmp_path, data, version=version)
    assert retrieve(dag.root, cut(b"".join(write_car(dag)), 65536), tmp_path / "out", 4 * MIB) == len(data)
    assert (tmp_path / "out").read_bytes() == data


@pytest.mark.parametrize("version", [0, 1])
def test_no_flipped_byte_gets_through(tmp_path: Path, version: Literal[0, 1]) -> None:
    data = bytes(range(60))
    dag = dag_of(tmp_path, data, chunk_size=16, width=2, version=version)
    stream = b"".join(write_car(dag))
    out = tmp_path / "out"
    header = stream[0] + 1
    for at in range(len(stream)):
        wrong = bytearray(stream)
        wrong[at] ^= 0x11
        try:
            retrieve(dag.root, [bytes(wrong)], out, 100)
        except (IntegrityError, CutShortError):
            assert data.startswith(kept(out))
        else:
            assert at < header, "only the header's roots are not looked at"
            assert out.read_bytes() == data


def test_a_stream_cut_anywhere_is_cut_short(tmp_path: Path) -> None:
    data = bytes(range(60))
    dag = dag_of(tmp_path, data, chunk_size=16, width=2)
    stream = b"".join(write_car(dag))
    out = tmp_path / "out"
    header = stream[0] + 1
    for length in range(len(stream)):
        with pytest.raises(NotFoundError if length == header else CutShortError):
            retrieve(dag.root, [stream[:length]], out, 100)
        assert data.startswith(kept(out))


def test_the_roots_of_the_header_are_not_trusted(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"other")
    with pytest.raises(IntegrityError, match="expected block"):
        retrieve(
            dag_of(tmp_path, b"mine").root, write_car(FileDag(tmp_path / "other")), tmp_path / "out", 100
        )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=CONTENTS, chunk_size=st.integers(1, 60), version=st.sampled_from([0, 1]), seed=st.randoms())
def test_blocks_may_come_in_any_order(
    tmp_path: Path, data: bytes, chunk_size: int, version: Literal[0, 1], seed: Random
) -> None:
    dag = dag_of(tmp_path, data, chunk_size=chunk_size, version=version, width=2)
    blocks = list(dag.blocks(repeats=seed.random() < 0.5))
    seed.shuffle(blocks)
    out = tmp_path / "out"
    assert retrieve(dag.root, [car(*blocks)], out, len(data)) == len(data)
    assert out.read_bytes() == data
    assert {path.name for path in tmp_path.glob("out*")} == {"out", "out.tree"}


def test_a_strange_block_is_no_part_of_a_file(tmp_path: Path) -> None:
    one, two = raw(b"one"), raw(b"two")
    root = node(b"", link(one))
    with pytest.raises(
        IntegrityError, match=f"expected block {one[0]} at byte 0 of the file, but {two[0]} was"
    ):
        retrieve(root[0], [car(root, two)], tmp_path / "out", 100)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    data=CONTENTS,
    chunk_size=st.integers(1, 60),
    version=st.sampled_from([0, 1]),
    cuts=st.lists(st.floats(0, 1), max_size=3),
    again=st.booleans(),
)
def test_a_walk_goes_on_where_the_last_one_ended(
    tmp_path: Path, data: bytes, chunk_size: int, version: Literal[0, 1], cuts: list[float], again: bool
) -> None:
    """Each time from the start of the stream, or from the first block that is missing."""
    dag = dag_of(tmp_path, data, chunk_size=chunk_size, version=version, width=3)
    blocks = list(dag.blocks())
    out = tmp_path / "out"
    for path in tmp_path.glob("out*"):
        path.unlink()
    added: list[int] = []
    for share in cuts:
        stream = b"".join(write_car(dag))
        with (
            Retrieval(dag.root, out, len(data), added.append) as retrieval,
            contextlib.suppress(CutShortError, NotFoundError),
        ):
            retrieval.feed([stream[: int(share * len(stream))]])
    with Retrieval(dag.root, out, len(data), added.append) as retrieval:
        start = retrieval.at
        assert data.startswith(kept(out))
        rest, place = [], 0
        for cid, block in blocks:
            length = len(block) if cid.codec == "raw" else len(decode_file_node(block).data)
            # what an offset leaves out: leaves that are over, but for the inner nodes
            if again or place + length > start or length == 0:
                rest.append((cid, block))
            place += length
        assert retrieval.feed([car(*rest)]) == len(data)
    assert out.read_bytes() == data
    retrieval.move_to(tmp_path / "moved")
    assert (tmp_path / "moved").read_bytes() == data
    assert list(tmp_path.glob("out*")) == []


@pytest.mark.parametrize("version", [0, 1])
def test_what_was_changed_between_two_walks_is_fetched_again(tmp_path: Path, version: Literal[0, 1]) -> None:
    data = bytes(range(100))
    dag = dag_of(tmp_path, data, chunk_size=10, width=3, version=version)
    out, tree = tmp_path / "out", tmp_path / "out.tree"
    stream = b"".join(write_car(dag))
    for wrong in (out, tree):
        for at in range(0, 100, 7):
            with pytest.raises(CutShortError), Retrieval(dag.root, out, 100) as retrieval:
                retrieval.feed([stream[:-5]])
            broken = bytearray(wrong.read_bytes())
            broken[at % len(broken)] ^= 1
            wrong.write_bytes(broken)
            with Retrieval(dag.root, out, 100) as retrieval:
                assert retrieval.at <= 90
                retrieval.feed([stream])
            assert out.read_bytes() == data
            out.unlink()
            tree.unlink()


def test_a_stream_that_repeats_itself_for_ever_is_given_up(tmp_path: Path) -> None:
    leaf = raw(b"leaf")
    root = node(bytes(100_000), link(leaf))
    sections = car(root)[len(HEADER) :]
    with pytest.raises(IntegrityError, match="holds much more than the file"):
        retrieve(root[0], itertools.chain([HEADER], itertools.repeat(sections)), tmp_path / "out", 200_000)


def test_own_bytes_come_before_those_of_links(tmp_path: Path) -> None:
    leaf = raw(b"leaf")
    inner = node(b"inner ", link(leaf))
    root = node(b"root ", link(inner, 10), link(leaf))
    assert retrieve(root[0], [car(root, inner, leaf, leaf)], tmp_path / "out", 100) == 19
    assert (tmp_path / "out").read_bytes() == b"root inner leafleaf"


def test_a_repeated_subtree_may_be_left_out(tmp_path: Path) -> None:
    leaf = raw(b"leaf")
    inner = node(b"", link(leaf), link(leaf))
    root = node(b"", link(inner, 8), link(inner, 8))
    for blocks in (
        [root, inner, leaf],
        [root, inner, leaf, leaf, inner, leaf, leaf],
        [root, inner, leaf, inner],
    ):
        assert retrieve(root[0], [car(*blocks)], tmp_path / "out", 100) == 16
        assert (tmp_path / "out").read_bytes() == b"leaf" * 4


@pytest.mark.parametrize("sent", [True, False])
def test_identity_blocks_need_not_be_sent(tmp_path: Path, sent: bool) -> None:
    tail = (Cid(1, "raw", "identity", b"tail"), b"tail")
    root = node(b"head ", link(tail))
    assert retrieve(root[0], [car(root, tail) if sent else car(root)], tmp_path / "out", 100) == 9
    assert (tmp_path / "out").read_bytes() == b"head tail"


def test_an_identity_cid_can_be_a_whole_file(tmp_path: Path) -> None:
    assert retrieve(Cid.parse("bafkqabtimvwgy3yk"), [HEADER], tmp_path / "out", 100) == 6
    assert (tmp_path / "out").read_bytes() == b"hello\n"


def test_a_server_may_name_a_block_in_the_other_version(tmp_path: Path) -> None:
    dag = dag_of(tmp_path, b"x", version=0)
    ((_, block),) = dag.blocks()
    assert retrieve(dag.root, [car((Cid.of(block, "dag-pb", 1), block))], tmp_path / "out", 100) == 1


@pytest.mark.parametrize("size", [3, 5])
def test_a_leaf_must_have_the_size_that_its_parent_says(tmp_path: Path, size: int) -> None:
    leaf = raw(b"leaf")
    root = node(b"", link(leaf, size))
    with pytest.raises(IntegrityError, match=f"holds 4 bytes of the file, its parent says {size}"):
        retrieve(root[0], [car(root, leaf)], tmp_path / "out", 100)


def test_a_repeated_leaf_must_have_the_size_that_its_parent_says(tmp_path: Path) -> None:
    leaf = raw(b"leaf")
    root = node(b"", link(leaf), link(leaf, 5))
    with pytest.raises(IntegrityError, match="its parent says 5"):
        retrieve(root[0], [car(root, leaf)], tmp_path / "out", 100)


def test_a_large_file_is_refused_at_its_root(tmp_path: Path) -> None:
    dag = dag_of(tmp_path, bytes(100), chunk_size=10)
    assert retrieve(dag.root, write_car(dag), tmp_path / "out", 100) == 100
    with pytest.raises(IntegrityError, match="100 bytes, more than the 99 allowed"):
        retrieve(dag.root, write_car(dag), tmp_path / "out", 99)
    assert kept(tmp_path / "out") == b""


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    block = b"\x0a\x02\x08\x01"
    with pytest.raises(IntegrityError, match="names a directory, not a file"):
        retrieve(Cid.of(block, "dag-pb"), [car((Cid.of(block, "dag-pb"), block))], tmp_path / "out", 100)


def test_a_tree_of_nothing_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieve_module, "MAX_NODES", 1000)
    leaf = raw(b"")
    root = node(b"", *[link(leaf, 0)] * 1000)
    with pytest.raises(IntegrityError, match="more than 1000 nodes"):
        retrieve(root[0], [car(root, leaf)], tmp_path / "out", 100)


@pytest.mark.parametrize(
    ("stream", "why"),
    [
        (b"<!DOCTYPE html><html></html>" + b" " * 60, "not a CAR of version 1"),
        (b"\x0a\xa1\x67version\x02", "not a CAR of version 1"),
        (varint.encode(MAX_HEADER + 1), "header of 8193 bytes"),
        (b"\x00", "header of 0 bytes"),
        (HEADER + b"\x00", "section of 0 bytes"),
        (HEADER + varint.encode(MAX_SECTION + 1), f"section of {MAX_SECTION + 1} bytes"),
        (HEADER + b"\xff" * 30, "no end"),
        (HEADER + b"\x03\x01\x55\x12", "no end"),
        (HEADER + b"\x05\x01\x71\x12\x01a", "codec 0x71"),
    ],
)
def test_streams_that_are_no_car(tmp_path: Path, stream: bytes, why: str) -> None:
    with pytest.raises(IntegrityError, match=why):
        retrieve(
            Cid.parse("bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"),
            [stream],
            tmp_path / "o",
            1,
        )


def test_what_follows_the_file_is_not_read(tmp_path: Path) -> None:
    def stream() -> Iterator[bytes]:
        yield car(raw(b"all"))
        raise AssertionError("read on")

    assert retrieve(raw(b"all")[0], stream(), tmp_path / "out", 100) == 3


def test_an_endless_stream_of_something_else_is_given_up(tmp_path: Path) -> None:
    def stream() -> Iterator[bytes]:
        yield HEADER
        yield from itertools.repeat(car(raw(b"more"))[len(HEADER) :])

    with pytest.raises(IntegrityError, match="was sent again or needlessly"):
        retrieve(raw(b"all")[0], stream(), tmp_path / "out", 100)


def test_empty_pieces_do_not_end_a_stream(tmp_path: Path) -> None:
    pieces: Iterable[bytes] = itertools.chain.from_iterable((b"", byte) for byte in cut(car(raw(b"all")), 1))
    assert list(read_car(pieces)) == [raw(b"all")]


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    dag = dag_of(tmp_path, hashlib.shake_256(b"large").digest(1 << 18) * 96)
    tracemalloc.start()
    try:
        assert retrieve(dag.root, write_car(dag), tmp_path / "out", dag.size) == 24 * MIB
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * MIB
