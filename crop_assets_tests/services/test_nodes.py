"""What the real nodes do that other tests build on. Does not belong here: tests of this project's own code."""

import hashlib
from pathlib import Path
from typing import Literal

import pytest
import requests

from crop_assets_tests.services.conftest import PATIENCE, Helia, JsIpfs, Kubo
from resources.ipfs import varint
from resources.ipfs.cid import Cid
from resources.ipfs.unixfs import FileDag, file_cid

# one set of nodes for all
pytestmark = pytest.mark.xdist_group("services")

MIB = 1 << 20
UNKNOWN = "bafkreifjjcie6lypi6ny7amxnfftagclbuxndqonfipmb64f2km2devei4"


def _file(folder: Path, seed: str) -> Path:
    """Some 3 MB that look random, so that no two blocks are alike, and differ by seed."""
    path = folder / f"{seed}.tif"
    path.write_bytes(hashlib.shake_256(seed.encode()).digest(3_000_000))
    return path


def _blocks(car: bytes) -> dict[Cid, bytes]:
    """The blocks of a CAR, each of which must be what its CID says."""
    header, at = varint.decode(car)
    at += header
    blocks: dict[Cid, bytes] = {}
    while at < len(car):
        length, at = varint.decode(car, at)
        section = car[at : at + length]
        cid, prefix = Cid.split(section)
        blocks[cid] = section[prefix:]
        assert cid.matches(blocks[cid])
        at += length
    return blocks


def _get(helia: Helia, path: str, **query: str) -> requests.Response:
    return requests.get(f"{helia.url}/ipfs/{path}", params=query, timeout=PATIENCE)


def _rpc(
    js_ipfs: JsIpfs, command: str, file: bytes | None = None, **arguments: str | int
) -> requests.Response:
    parts = None if file is None else {"file": ("file", file, "application/octet-stream")}
    return requests.post(
        f"{js_ipfs.rpc_url}/api/v0/{command}", params=arguments, files=parts, timeout=PATIENCE
    )


def test_helia_serves_a_file_as_car(helia: Helia, tmp_path: Path) -> None:
    path = _file(tmp_path, "helia")
    cid = helia.add(path)
    assert cid == file_cid(path, MIB)
    response = _get(helia, cid, format="car")
    assert response.headers["content-type"] == "application/vnd.ipld.car; version=1; order=unk; dups=y"
    assert _blocks(response.content) == dict(FileDag(path, MIB).blocks())


def test_helia_serves_only_the_blocks_of_a_byte_range(helia: Helia, tmp_path: Path) -> None:
    path = _file(tmp_path, "range")
    root, _, second, *_ = FileDag(path, MIB).blocks()
    query = {"format": "car", "dag-scope": "entity", "entity-bytes": f"{MIB}:{MIB + 9}"}
    assert _blocks(_get(helia, helia.add(path), **query).content) == dict([root, second])


@pytest.mark.parametrize("span", [(0, 16_383), (MIB - 1, MIB), (2 * MIB, 2_999_999), (2 * MIB, 5 * MIB)])
def test_helia_serves_the_blocks_of_a_range_in_order(
    helia: Helia, tmp_path: Path, span: tuple[int, int]
) -> None:
    """The root first, also where the range ends beyond the file."""
    path = _file(tmp_path, "spans")
    first, last = span
    query = {"format": "car", "dag-scope": "entity", "entity-bytes": f"{first}:{last}"}
    found = _blocks(_get(helia, helia.add(path), **query).content)
    assert list(found.items()) == list(FileDag(path, MIB).blocks(start=first, stop=min(last + 1, 3_000_000)))


def test_helia_serves_single_blocks(helia: Helia, tmp_path: Path) -> None:
    path = _file(tmp_path, "single")
    helia.add(path)
    for cid, block in FileDag(path, MIB).blocks():
        response = _get(helia, str(cid), format="raw")
        assert response.headers["content-type"] == "application/vnd.ipld.raw"
        assert response.content == block


def test_helia_serves_a_path_below_a_directory(helia: Helia, tmp_path: Path) -> None:
    path = _file(tmp_path, "below")
    directory = helia.add(path, named=True)
    car = _blocks(_get(helia, f"{directory}/{path.name}", format="car").content)
    # the directory proves that the name leads to the file
    assert set(car) == {Cid.parse(directory), *dict(FileDag(path, MIB).blocks())}
    assert _get(helia, f"{directory}/nothing", format="car").status_code == 404


def test_helia_gets_what_kubo_has(helia: Helia, kubo: Kubo, tmp_path: Path) -> None:
    path = _file(tmp_path, "kubo")
    cid = kubo.add(path)
    assert cid == file_cid(path, version=0)
    helia.dial(kubo.address)
    dag = FileDag(path, version=0)
    raw = _get(helia, cid, format="raw")
    assert raw.headers["content-type"] == "application/vnd.ipld.raw"
    assert raw.content == dag.block(dag.root)
    assert _blocks(_get(helia, cid, format="car").content) == dict(dag.blocks())
    assert _get(helia, cid).content == path.read_bytes()


def test_helia_is_known_to_have_no_other_blocks(helia: Helia) -> None:
    address = f"{helia.url}/ipfs/{UNKNOWN}?format=raw"
    assert requests.get(address, timeout=PATIENCE).status_code == 504
    cached = requests.get(address, headers={"Cache-Control": "only-if-cached"}, timeout=PATIENCE)
    assert cached.status_code == 412


@pytest.mark.parametrize("chunk", [262144, MIB])
@pytest.mark.parametrize("version", [0, 1])
def test_js_ipfs_gives_a_file_the_cid_of_its_options(
    js_ipfs: JsIpfs, tmp_path: Path, version: Literal[0, 1], chunk: int
) -> None:
    path = _file(tmp_path, "cid")
    raw = "true" if version else "false"
    cid = js_ipfs.add(path, chunker=f"size-{chunk}", cid_version=version, raw_leaves=raw)
    assert cid == file_cid(path, chunk, version)


def test_js_ipfs_answers_kubos_rpc(js_ipfs: JsIpfs, tmp_path: Path) -> None:
    path = _file(tmp_path, "rpc")
    dag = FileDag(path)
    cid = js_ipfs.add(path, cid_version=1, raw_leaves="true")
    root = dag.block(dag.root)
    assert root
    assert _rpc(js_ipfs, "block/get", arg=cid).content == root
    assert _rpc(js_ipfs, "block/stat", arg=cid).json()["Size"] == len(root)
    assert _blocks(_rpc(js_ipfs, "dag/export", arg=cid).content) == dict(dag.blocks())
    assert _rpc(js_ipfs, "cat", arg=cid, offset=MIB, length=9).content == path.read_bytes()[MIB : MIB + 9]


def test_js_ipfs_imports_a_car(js_ipfs: JsIpfs, helia: Helia, tmp_path: Path) -> None:
    path = _file(tmp_path, "import")
    cid = helia.add(path)
    answer = _rpc(js_ipfs, "dag/import", _get(helia, cid, format="car").content).json()
    assert answer == {"Root": {"Cid": {"/": cid}, "PinErrorMsg": ""}}
    assert requests.get(f"{js_ipfs.gateway_url}/ipfs/{cid}", timeout=PATIENCE).content == path.read_bytes()


def test_js_ipfs_serves_wrong_blocks_as_they_were_imported(
    js_ipfs: JsIpfs, helia: Helia, tmp_path: Path
) -> None:
    path = _file(tmp_path, "wrong")
    car = bytearray(_get(helia, helia.add(path), format="car").content)
    car[-1] ^= 1
    assert _rpc(js_ipfs, "dag/import", bytes(car)).ok
    *_, last = dict(FileDag(path, MIB).blocks())
    assert not last.matches(_rpc(js_ipfs, "block/get", arg=str(last)).content)


@pytest.mark.parametrize("offline", ["false", "true"])
@pytest.mark.parametrize("command", ["block/stat", "block/get", "cat"])
def test_js_ipfs_looks_for_an_unknown_block_until_the_timeout(
    js_ipfs: JsIpfs, command: str, offline: str
) -> None:
    response = _rpc(js_ipfs, command, arg=UNKNOWN, timeout="300ms", offline=offline)
    assert response.status_code == 500
    assert response.json()["Message"].endswith("request timed out")
