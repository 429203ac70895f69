"""This project's client against real nodes: what one of them was given, it gets from another, checked."""

import contextlib
import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import pytest
import requests

from crop_assets_tests.resources.fault_proxy import fault_proxy
from crop_assets_tests.resources.selected import NamedRanges, file_of, selected
from crop_assets_tests.services.conftest import PATIENCE, Helia, JsIpfs, Kubo
from resources.errors import CutShortError, IntegrityError, NotFoundError, ResourceError, UnavailableError
from resources.ipfs.car import read_car, write_car
from resources.ipfs.cid import Cid
from resources.ipfs.directory import FolderDag
from resources.ipfs.leaves import tree_of
from resources.ipfs.nodes import Gateway, IpfsSource, KuboNode
from resources.ipfs.resource import IpfsContent
from resources.ipfs.retrieve import Retrieval
from resources.ipfs.unixfs import FileDag, matches_cid
from resources.resume import PartialFiles
from resources.sources import FetchResult, FileRequest, Memory, Sources
from resources.tiff import HEAD_BYTES

pytestmark = pytest.mark.xdist_group("services")

MIB = 1 << 20
LIMIT = 8 * MIB
UNKNOWN = "bafkreifjjcie6lypi6ny7amxnfftagclbuxndqonfipmb64f2km2devei4"


def band(folder: Path, seed: str, size: int = 3_000_000) -> Path:
    path = folder / f"{seed}.tif"
    path.write_bytes(hashlib.shake_256(f"client {seed}".encode()).digest(size))
    return path


def anything(path: Path, got: FetchResult) -> None:
    assert got.verified


def obtain(folder: Path, cid: str, *nodes: Gateway | KuboNode, said: list[str] | None = None) -> FetchResult:
    """Fetch `cid` into `folder`/got."""
    sources = Sources([IpfsSource(node) for node in nodes], attempts=1, memory=Memory(4))
    wanted = FileRequest("scene/band.tif", cid, "", LIMIT)
    say = (said if said is not None else []).append
    return sources.obtain(wanted, folder / "got", PartialFiles(folder / "partial"), anything, say)


@pytest.mark.parametrize("size", [0, 1, 262144, 3_000_000])
def test_what_kubo_was_given_comes_from_the_gateway(
    helia: Helia, kubo: Kubo, tmp_path: Path, size: int
) -> None:
    path = band(tmp_path, f"kubo {size}", size)
    cid = kubo.add(path)
    helia.dial(kubo.address)
    assert obtain(tmp_path, cid, Gateway(helia.url, 10)) == FetchResult(helia.url, True)
    assert (tmp_path / "got").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("chunk", [262144, MIB])
@pytest.mark.parametrize("version", [0, 1])
def test_what_js_ipfs_was_given_comes_by_its_rpc(
    js_ipfs: JsIpfs, tmp_path: Path, version: Literal[0, 1], chunk: int
) -> None:
    path = band(tmp_path, f"rpc {version} {chunk}")
    raw = "true" if version else "false"
    cid = js_ipfs.add(path, chunker=f"size-{chunk}", cid_version=version, raw_leaves=raw)
    assert obtain(tmp_path, cid, KuboNode(js_ipfs.rpc_url, 10)).source == js_ipfs.rpc_url
    assert (tmp_path / "got").read_bytes() == path.read_bytes()
    assert matches_cid(path, cid) == (version == 1 or chunk == 262144)


def test_the_gateway_goes_on_from_a_byte(helia: Helia, tmp_path: Path) -> None:
    path = band(tmp_path, "resumed")
    root, gateway, out = Cid.parse(helia.add(path)), Gateway(helia.url, 10), tmp_path / "out"
    with gateway.car(root, 0) as pieces:
        car = b"".join(pieces)
    with pytest.raises(CutShortError), Retrieval(root, out, LIMIT) as retrieval:
        retrieval.feed([car[: 2 * MIB + 1000]])
    with Retrieval(root, out, LIMIT) as retrieval:
        assert retrieval.at == 2 * MIB
        with gateway.car(root, retrieval.at) as pieces:
            rest = b"".join(pieces)
        assert [len(block) for cid, block in read_car([rest]) if cid.codec == "raw"] == [902_848]
        retrieval.feed([rest])
    assert out.read_bytes() == path.read_bytes()


def test_a_node_that_lies_is_passed_over(js_ipfs: JsIpfs, helia: Helia, tmp_path: Path) -> None:
    """js-ipfs checks nothing that is imported, and gives it out under the name that it came with."""
    path = band(tmp_path, "lie")
    cid = helia.add(path)
    *blocks, (last, leaf) = FileDag(path, MIB).blocks()
    wrong = [*blocks, (last, bytes([leaf[0] ^ 1]) + leaf[1:])]

    class Lie:
        root = Cid.parse(cid)

        def blocks(self, repeats: bool = True) -> object:
            return iter(wrong)

    node, said = KuboNode(js_ipfs.rpc_url, 10), list[str]()
    node.import_car(write_car(Lie()), Lie.root)  # type: ignore[arg-type]
    with pytest.raises(IntegrityError, match=f"the bytes sent as block {last} are not that block"):
        obtain(tmp_path, cid, node)
    assert not (tmp_path / "got").exists()
    assert obtain(tmp_path, cid, node, Gateway(helia.url, 10), said=said).source == helia.url
    assert (tmp_path / "got").read_bytes() == path.read_bytes()
    assert len(said) == 1


def test_what_nobody_has_is_told_apart_from_nobody_being_there(
    js_ipfs: JsIpfs, helia: Helia, tmp_path: Path
) -> None:
    with pytest.raises(UnavailableError, match="is too slow"):
        obtain(tmp_path, UNKNOWN, KuboNode(js_ipfs.rpc_url, 0.5))
    with pytest.raises(CutShortError, match="was cut short"):
        obtain_once(tmp_path, Gateway(helia.url, 10))
    with pytest.raises(UnavailableError, match="cannot be reached"):
        obtain(tmp_path, UNKNOWN, Gateway("http://127.0.0.1:1", 10))
    ipfs = IpfsContent(kubo_api=js_ipfs.rpc_url, gateways=[helia.url], probe_seconds=0.3)
    with pytest.raises(UnavailableError, match=r"timed out.*; .*too slow"):
        ipfs.find_block(Cid.parse(UNKNOWN), ipfs.probes(["kubo", "gateways"]), Memory(4))


def obtain_once(folder: Path, node: Gateway) -> None:
    wanted = FileRequest("scene/band.tif", UNKNOWN, "", LIMIT)
    IpfsSource(node).fetch(wanted, folder / "got", PartialFiles(folder / "partial"), lambda count: None)


def test_the_availability_of_a_file_is_known_by_its_first_block(helia: Helia, tmp_path: Path) -> None:
    path = band(tmp_path, "available")
    root = Cid.parse(helia.add(path))
    ipfs = IpfsContent(kubo_api="", gateways=[helia.url], probe_seconds=10)
    source, block = ipfs.find_block(root, ipfs.probes(["kubo", "gateways"]), Memory(4))
    assert source == helia.url
    assert block == FileDag(path, MIB).block(root)


def test_a_path_in_a_directory_leads_to_the_file(helia: Helia, tmp_path: Path) -> None:
    path = band(tmp_path, "in a folder")
    directory = Cid.parse(helia.add(path, named=True))
    ipfs = IpfsContent(kubo_api="", gateways=[helia.url])
    nodes = ipfs.probes(["gateways"])
    assert ipfs.resolve(directory, [path.name], nodes, Memory(4)) == FileDag(path, MIB).root
    with pytest.raises(NotFoundError, match="has no entry 'none'"):
        ipfs.resolve(directory, ["none"], nodes, Memory(4))


@pytest.mark.parametrize("files", [3, 4000])
def test_a_published_folder_is_a_folder_for_others(js_ipfs: JsIpfs, tmp_path: Path, files: int) -> None:
    """Of 4,000 files it is sharded."""
    local = {}
    for number in range(files):
        path = tmp_path / str(number)
        path.write_text(f"chip {number}")
        local[f"chips_filtered/chip_{number:04d}_0257_merged_and_a_long_name_{number}.tif"] = path
    large = band(tmp_path, f"large {files}")
    local["band_stats/values.tif"] = large
    dag = FolderDag(local)
    for _ in range(2):
        KuboNode(js_ipfs.rpc_url, 30).import_car(write_car(dag, repeats=False), dag.root)
    for name in (*list(local)[:: max(1, files // 3)], "band_stats/values.tif"):
        got = requests.get(f"{js_ipfs.gateway_url}/ipfs/{dag.root}/{name}", timeout=PATIENCE)
        assert got.content == local[name].read_bytes(), name
    ipfs = IpfsContent(kubo_api=js_ipfs.rpc_url, gateways=[])
    name = f"chip_{files - 1:04d}_0257_merged_and_a_long_name_{files - 1}.tif"
    found = ipfs.resolve(dag.root, ["chips_filtered", name], ipfs.probes(["kubo"]), Memory(4))
    assert str(found) == str(FileDag(tmp_path / str(files - 1)).root)
    pinned = requests.post(
        f"{js_ipfs.rpc_url}/api/v0/pin/ls", params={"arg": str(dag.root)}, timeout=PATIENCE
    )
    assert pinned.ok, pinned.text


def test_a_node_that_cannot_import_says_why(js_ipfs: JsIpfs, tmp_path: Path) -> None:
    dag = FileDag(band(tmp_path, "cut"))
    cut = iter([b"".join(write_car(dag))[:-1000]])
    with pytest.raises(ResourceError, match="dag/import answered 500"):
        KuboNode(js_ipfs.rpc_url, 10).import_car(cut, dag.root)


RANGES = [(700_000, 710_000), (2_000_000, 2_050_000)]


def obtain_ranges(folder: Path, cid: str, node: Gateway | KuboNode) -> FetchResult:
    """Write the ranges of a file that its first line names into `folder`/got."""
    wanted = FileRequest("scene/band.tif", cid, "", LIMIT)
    partials = PartialFiles(folder / "partial")
    with ThreadPoolExecutor(4) as pool:
        return Sources([IpfsSource(node)], 1, Memory(4)).obtain(
            wanted, folder / "got", partials, anything, print, selection=NamedRanges(pool)
        )


def leaf_bytes(chunk: int) -> int:
    """Bytes of the leaves that hold the head and RANGES, in a file of 3 MB."""
    leaves = {
        at for start, stop in [(0, HEAD_BYTES), *RANGES] for at in range(start // chunk, -(-stop // chunk))
    }
    return sum(min((at + 1) * chunk, 3_000_000) - at * chunk for at in leaves)


@pytest.mark.parametrize("way", ["entity-bytes", "raw blocks"])
@pytest.mark.parametrize("chunk", [262144, MIB])
def test_ranges_of_a_file_come_from_the_gateway(
    helia: Helia, kubo: Kubo, tmp_path: Path, chunk: int, way: str
) -> None:
    """Of leaves of 1 MiB, raw, that Helia was given, and of 256 KiB, dag-pb, that Kubo was given."""
    path = tmp_path / "band.tif"
    path.write_bytes(file_of(RANGES, 3_000_000, f"{way} {chunk}"))
    if chunk == MIB:
        cid = helia.add(path)
    else:
        cid = kubo.add(path)
        helia.dial(kubo.address)
    with fault_proxy(helia.url) as proxy:
        node = Gateway(proxy.address, PATIENCE)
        node.takes_ranges = way == "entity-bytes"
        assert obtain_ranges(tmp_path, cid, node) == FetchResult(proxy.address, True, True)
        assert node.takes_ranges == (way == "entity-bytes"), "the gateway sends what it is asked for"
        assert (tmp_path / "got").read_bytes() == selected(path.read_bytes())
        assert leaf_bytes(chunk) <= proxy.sent <= leaf_bytes(chunk) + 10_000


@pytest.mark.parametrize("chunk", [262144, MIB])
@pytest.mark.parametrize("version", [0, 1])
def test_ranges_of_a_file_come_by_the_rpc(
    js_ipfs: JsIpfs, tmp_path: Path, version: Literal[0, 1], chunk: int
) -> None:
    path = tmp_path / "band.tif"
    path.write_bytes(file_of(RANGES, 3_000_000, f"rpc {version} {chunk}"))
    raw = "true" if version else "false"
    cid = js_ipfs.add(path, chunker=f"size-{chunk}", cid_version=version, raw_leaves=raw)
    with fault_proxy(js_ipfs.rpc_url) as proxy:
        assert obtain_ranges(tmp_path, cid, KuboNode(proxy.address, PATIENCE)).verified
        assert (tmp_path / "got").read_bytes() == selected(path.read_bytes())
        assert leaf_bytes(chunk) <= proxy.sent <= leaf_bytes(chunk) + 10_000
        assert all(asked[":path"].startswith("/api/v0/block/get?") for asked in proxy.asked)


@pytest.mark.parametrize("chunk", [262144, MIB])
@pytest.mark.parametrize("version", [0, 1])
def test_the_links_of_a_file_come_without_its_leaves(
    js_ipfs: JsIpfs, tmp_path: Path, version: Literal[0, 1], chunk: int
) -> None:
    """By which ranges of other servers are checked."""
    path = band(tmp_path, f"links {version} {chunk}")
    raw = "true" if version else "false"
    cid = js_ipfs.add(path, chunker=f"size-{chunk}", cid_version=version, raw_leaves=raw)
    with fault_proxy(js_ipfs.rpc_url) as proxy:
        tree = tree_of(Cid.parse(cid), KuboNode(proxy.address, PATIENCE), LIMIT, contextlib.nullcontext, None)
        assert len(proxy.asked) == 1
    data = path.read_bytes()
    leaves = list(tree.ends(0, len(data)))
    assert [leaf.start for leaf in leaves] == list(range(0, len(data), chunk))
    assert all(leaf.holds(data[leaf.start : leaf.stop]) for leaf in leaves)
