import contextlib
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resources.errors import IntegrityError
from resources.ipfs.cid import Cid
from resources.ipfs.unixfs import (
    KUBO_CHUNK,
    FileDag,
    FileNode,
    Link,
    decode_file_node,
    encode_file_node,
    file_cid,
)

LEAF = Link(Cid.of(b"leaf", "raw"), 4, 4)

# CIDs that aleph-cid 0.1.0 gives the first bytes of SHAKE-256 of "crop-assets", in versions 1 and 0.
KNOWN = [
    (
        0,
        "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku",
        "QmbFMke1KXqnYyBBWxB74N4c5SBnJMVAiMNRcGu6x1AwQH",
    ),
    (
        KUBO_CHUNK,
        "bafkreifedwa74dwvbagt4zjnpim2sbtejru3w74fflcjpmwlhqi6knvvxi",
        "QmNgR7uRzKh5Bhf1GajkWnDqddaTTBH4dZkq1ti5rbrduK",
    ),
    (
        KUBO_CHUNK + 1,
        "bafybeibpm4pmg6cobuilgs4aqsokxkcwc2yqrpr7dyanyyzsfw5trvi6pe",
        "Qmc8okQspnzLbwQpg9TNKhrJ8pBMNVkE3qN58iHpCoL1LQ",
    ),
    (
        1_000_000,
        "bafybeihvjinfskmihzcqsv7bkkdsfqwpsbcqbevktdeehfhoonxbo2fvey",
        "Qmd328ZAZVmL9RLb99cKwRJfYYwFRkY3rTcCuFWmommqRv",
    ),
    (
        174 * KUBO_CHUNK + 1,
        "bafybeihxexbogrqof277grpxflbc4jdpzfettyxca5kxvyhxnmieag574q",
        "QmfYbuBhEvZyc9yZGDtRxSNUEwqed4qDk3maZxosMTsbtN",
    ),
]


def write(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "file"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(("size", "version_1", "version_0"), KNOWN)
def test_cids_of_others(tmp_path: Path, size: int, version_1: str, version_0: str) -> None:
    path = write(tmp_path, hashlib.shake_256(b"crop-assets").digest(size))
    assert file_cid(path) == version_1
    assert file_cid(path, version=0) == version_0


def test_the_cid_of_hello_world(tmp_path: Path) -> None:
    assert (
        file_cid(write(tmp_path, b"hello world\n"), version=0)
        == "QmT78zSuBmuS4z925WZfrqQ1qHaJ56DQaTfyMUF7F8ff5o"
    )


def test_another_chunk_size_gives_another_cid(tmp_path: Path) -> None:
    path = write(tmp_path, bytes(1000))
    assert file_cid(path, chunk_size=999) != file_cid(path)
    assert file_cid(path, chunk_size=1000) == file_cid(path)


@pytest.mark.parametrize("options", [{"chunk_size": 0}, {"chunk_size": 3 << 20}, {"width": 1}])
def test_layouts_out_of_bounds(tmp_path: Path, options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        FileDag(write(tmp_path, b""), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("version", [0, 1])
def test_blocks_come_depth_first_and_fit_their_cids(tmp_path: Path, version: Literal[0, 1]) -> None:
    dag = FileDag(write(tmp_path, bytes(range(100))), chunk_size=7, version=version, width=3)
    blocks = list(dag.blocks())
    assert dag.size == 100
    assert blocks[0][0] == dag.root
    expected = [dag.root]
    data = b""
    for cid, block in blocks:
        assert expected.pop() == cid
        assert cid.matches(block)
        assert dag.block(cid) == block
        node = FileNode(block, (), len(block)) if cid.codec == "raw" else decode_file_node(block)
        data += node.data
        expected += [link.cid for link in reversed(node.links)]
    assert not expected
    assert data == bytes(range(100))
    assert {cid for cid, _ in blocks} == set(dag.cids())


def test_repeated_blocks_can_be_left_out(tmp_path: Path) -> None:
    dag = FileDag(write(tmp_path, bytes(64)), chunk_size=4, width=4)
    cids = [cid for cid, _ in dag.blocks(repeats=False)]
    assert len(cids) == 3
    assert len(list(dag.blocks())) == 1 + 4 + 16
    assert set(cids) == set(dag.cids())


def test_blocks_of_other_files_are_not_given(tmp_path: Path) -> None:
    assert FileDag(write(tmp_path, b"a")).block(Cid.of(b"b", "raw")) is None


def test_the_total_size_counts_the_blocks(tmp_path: Path) -> None:
    dag = FileDag(write(tmp_path, bytes(range(40))), chunk_size=4, width=3)
    blocks = dict(dag.blocks())
    root = decode_file_node(blocks[dag.root])
    below = sum(len(block) for cid, block in dag.blocks() if cid != dag.root)
    assert sum(link.total for link in root.links) == below


@given(
    st.binary(max_size=50),
    st.lists(st.tuples(st.binary(max_size=40), st.integers(0, 1 << 40), st.integers(0, 1 << 40)), max_size=6),
)
def test_nodes_survive_a_round_trip(data: bytes, children: Sequence[tuple[bytes, int, int]]) -> None:
    links = tuple(Link(Cid.of(block, "raw"), size, total) for block, size, total in children)
    node = decode_file_node(encode_file_node(data, links))
    assert node == FileNode(data, links, len(data) + sum(size for _, size, _ in children))


def test_data_may_come_before_the_links() -> None:
    block = encode_file_node(b"", [LEAF])
    data = b"\x0a\x06\x08\x02\x18\x04\x20\x04"
    assert block.endswith(data)
    assert decode_file_node(data + block.removesuffix(data)) == decode_file_node(block)


@pytest.mark.parametrize(
    ("block", "why"),
    [
        (b"", "no UnixFS data"),
        (b"\x0a\x02\x08\x01", "a directory"),
        (b"\x0a\x02\x08\x04", "a symbolic link"),
        (b"\x0a\x02\x08\x05", "a sharded directory"),
        (b"\x0a\x02\x08\x09", "UnixFS type 9"),
        (b"\x0a\x00", "UnixFS type None"),
        (b"\x0a\x05\x08\x02\x12\x01a", "file size 0, but its parts have 1"),
        (b"\x0a\x06\x08\x02\x18\x01\x20\x01", "1 block sizes for 0 links"),
        (b"\x0a\x02\x08\x02\x0a\x02\x08\x02", "unknown or repeated"),
        (b"\x0a\x02\x08\x02\x1a\x00", "unknown or repeated"),
        (b"\x0a\x04\x08\x02\x4a\x00", "field 9 is unknown"),
        (b"\x0a\x7f\x08\x02", "longer than its message"),
        (b"\x0d\x00", "wire type 5"),
        (b"\x0a\x82\x00\x08\x02", "padded"),
        (b"\xff" * 20, "no end"),
        (b"\x12\x00\x0a\x02\x08\x02", "no CID"),
        (b"\x12\x03\x12\x01a", "does not belong to a part of a file"),
    ],
)
def test_malformed_nodes(block: bytes, why: str) -> None:
    with pytest.raises(IntegrityError, match=why):
        decode_file_node(block)


@given(st.binary(max_size=80))
def test_any_bytes_are_a_node_or_an_integrity_error(block: bytes) -> None:
    with contextlib.suppress(IntegrityError):
        decode_file_node(block)
