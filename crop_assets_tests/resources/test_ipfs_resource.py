import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import tenacity
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from crop_assets.bands.retrievability import check_cids
from crop_assets_tests.resources.gateways import RAW, UNKNOWN, World
from crop_assets_tests.resources.loopback import closed_port, dripping, serving
from resources import sources as sources_module
from resources.downloads import Downloads
from resources.earthdata import LpDaac
from resources.errors import (
    CutShortError,
    IntegrityError,
    NotFoundError,
    RefusedError,
    ResourceError,
    TryAgainError,
    UnavailableError,
    UnreachableError,
)
from resources.ipfs import directory as directory_module
from resources.ipfs.cid import Cid
from resources.ipfs.directory import FolderDag
from resources.ipfs.nodes import Gateway, IpfsCommand, IpfsNode, KuboNode
from resources.ipfs.resource import IpfsContent
from resources.ipfs.unixfs import file_cid
from resources.mirror import BandMirror
from resources.resume import PartialFiles
from resources.sources import FileRequest, Memory


class Scripted:
    """A node that gives or raises what it is told for blocks, the last of it again and again."""

    host = ""

    def __init__(self, name: str, *script: bytes | Exception) -> None:
        self.name = name
        self.script = list(script)
        self.asked = 0

    def block(self, cid: Cid) -> bytes:
        self.asked += 1
        said = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(said, Exception):
            raise said
        return said

    def car(self, root: Cid, offset: int) -> object:
        raise AssertionError("nobody asks for a file here")


def content(world: World, *names: str, **settings: Any) -> IpfsContent:
    addresses = [name if "://" in name else world.gateway(name) for name in names]
    return IpfsContent(kubo_api="", gateways=addresses, **settings)


def nodes_of(ipfs: IpfsContent) -> list[IpfsNode]:
    return ipfs.probes(["gateways"])


@pytest.fixture
def ipfs() -> IpfsContent:
    return IpfsContent()


@pytest.fixture
def memory() -> Memory:
    return Memory(per_host=4)


def asking(ipfs: IpfsContent, memory: Memory, *nodes: Scripted) -> Callable[[], tuple[str, bytes]]:
    return lambda: ipfs.find_block(Cid.of(b"block", "raw"), nodes, memory)  # type: ignore[arg-type]


# Kinds of sources


def test_each_kind_has_its_nodes_in_order() -> None:
    ipfs = IpfsContent(
        kubo_api="http://127.0.0.1:5001/",
        gateways=["http://127.0.0.1:2/", "https://example.org/base"],
        command="/opt/ipfs",
        timeout_seconds=7,
        probe_seconds=3,
    )
    nodes = ipfs.probes(["ipfs_cli", "gateways", "mirror", "kubo", "lp_daac"])
    assert [type(node) for node in nodes] == [IpfsCommand, Gateway, Gateway, KuboNode]
    names = ["/opt/ipfs", "http://127.0.0.1:2", "https://example.org/base", "http://127.0.0.1:5001"]
    assert [node.name for node in nodes] == names
    assert [node.host for node in nodes] == ["", "127.0.0.1", "example.org", "127.0.0.1"]
    for kind, of_kind in (
        ("kubo", names[3:]),
        ("gateways", names[1:3]),
        ("ipfs_cli", names[:1]),
        ("mirror", []),
    ):
        sources = ipfs.sources(kind)
        assert [source.name for source in sources] == of_kind
        assert all(source.by_cid for source in sources)
        assert {source.node.timeout_seconds for source in sources} <= {7}  # type: ignore[attr-defined]
    assert {node.timeout_seconds for node in nodes} == {3}  # type: ignore[attr-defined]


def test_without_a_kubo_node_there_is_none() -> None:
    ipfs = IpfsContent(kubo_api="")
    assert ipfs.probes(["kubo"]) == []
    assert ipfs.sources("kubo") == []
    with pytest.raises(UnavailableError, match="CROP_ASSETS_KUBO_API"):
        ipfs.kubo()


def test_the_kubo_node_can_be_had_by_itself() -> None:
    node = IpfsContent(kubo_api="http://127.0.0.1:5001").kubo()
    assert isinstance(node, KuboNode)
    assert node.name == "http://127.0.0.1:5001"


@pytest.mark.parametrize(
    "address",
    ["ftp://127.0.0.1", "127.0.0.1:5001", "http://me:secret@127.0.0.1", "x", "https://127.0.0.1/?key=secret"],
)
def test_an_address_that_is_none_is_refused_before_it_is_needed(address: str) -> None:
    for fields in ({"kubo_api": address}, {"gateways": ["https://127.0.0.1", address]}):
        (field,) = fields
        with pytest.raises(ValueError, match=f"{field}: must be the http or https URL") as error:
            IpfsContent(**fields)  # type: ignore[arg-type]
        assert "secret" not in str(error.value)


@pytest.mark.parametrize("field", ["timeout_seconds", "probe_seconds"])
def test_a_wait_is_longer_than_nothing(field: str) -> None:
    with pytest.raises(ValueError, match=field):
        IpfsContent(**{field: 0})  # type: ignore[arg-type]


# Single blocks


def test_a_block_comes_from_the_first_node_that_has_it(world: World) -> None:
    ipfs = content(world, "gone", "good", "good-too")
    root = Cid.parse(world.cid)
    name, block = ipfs.find_block(root, nodes_of(ipfs), Memory(4))
    assert name == world.gateway("good")
    assert root.matches(block)
    assert world.asked == {"gone": 1, "good": 1}


def test_a_wrong_block_is_not_taken(world: World) -> None:
    ipfs = content(world, "other", "page", "large", "good")
    root = Cid.parse(world.cid)
    assert ipfs.find_block(root, nodes_of(ipfs), Memory(4))[0] == world.gateway("good")
    with pytest.raises(IntegrityError) as error:
        ipfs.find_block(root, nodes_of(ipfs)[:3], Memory(4))
    assert f"{world.gateway('other')}: the bytes sent as block {root} are not that block" in str(error.value)
    assert f"{world.gateway('page')}: answered with a web page instead of application/vnd.ipld.raw" in str(
        error.value
    )
    assert f"{world.gateway('large')}: sent a block of more than" in str(error.value)


def test_each_node_is_asked_once_and_its_word_told(world: World) -> None:
    ipfs = content(world, "gone", "broken", "too-many", "forbidden")
    with pytest.raises(UnavailableError, match=f"block {UNKNOWN}: ") as error:
        ipfs.find_block(Cid.parse(UNKNOWN), nodes_of(ipfs), Memory(4))
    for name, said in (("gone", "answered 410"), ("broken", "answered 502"), ("forbidden", "not for you")):
        assert f"{world.gateway(name)}: " in str(error.value)
        assert said in str(error.value)
    assert set(world.asked.values()) == {1}


def test_a_block_that_nobody_has_is_not_found(world: World) -> None:
    ipfs = content(world, "good", "gone")
    with pytest.raises(NotFoundError):
        ipfs.find_block(Cid.parse(UNKNOWN), nodes_of(ipfs), Memory(4))
    with pytest.raises(NotFoundError, match="there is no source to ask"):
        ipfs.find_block(Cid.parse(UNKNOWN), [], Memory(4))


def test_a_node_that_cannot_be_reached_is_left_out_for_a_minute(
    ipfs: IpfsContent, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(sources_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    dead, good = Scripted("a", UnreachableError("cannot be reached")), Scripted("b", b"block")
    find = asking(ipfs, memory, dead, good)
    for _ in range(3):
        assert find() == ("b", b"block")
    assert dead.asked == 1
    with pytest.raises(UnavailableError, match="a: unreachable lately"):
        asking(ipfs, memory, dead)()
    now[0] += 61
    find()
    assert dead.asked == 2


def test_a_node_that_has_an_error_is_asked_last_for_the_next_block(ipfs: IpfsContent, memory: Memory) -> None:
    failing = Scripted("a", TryAgainError("answered 500"))
    find = asking(ipfs, memory, failing, Scripted("b", b"block"))
    assert [find()[0], find()[0]] == ["b", "b"]
    assert failing.asked == 1
    with pytest.raises(UnavailableError, match="a: answered 500"):
        asking(ipfs, memory, failing, Scripted("b", NotFoundError("answered 404")))()


def test_an_unreachable_node_is_told_of_in_its_own_words(world: World, memory: Memory) -> None:
    ipfs = content(world, closed_port())
    with pytest.raises(UnavailableError, match="cannot be reached"):
        ipfs.find_block(Cid.parse(UNKNOWN), nodes_of(ipfs), memory)
    with pytest.raises(UnavailableError, match="unreachable lately"):
        ipfs.find_block(Cid.parse(UNKNOWN), nodes_of(ipfs), memory)


# What is shared with downloads


def tiles_at_once(tile: Callable[[int], object]) -> None:
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(tile, range(3)))


def test_tiles_at_once_keep_to_the_bound_of_a_host_for_blocks_and_files_together(
    world: World, tmp_path: Path
) -> None:
    ipfs = content(world, "crowded")
    sources = Downloads(per_host=2).of(["gateways"], ipfs, LpDaac(), BandMirror())
    partials = PartialFiles(tmp_path / "partials")

    def tile(at: int) -> None:
        wanted = FileRequest("scene/B02.tif", world.cid, "", 1 << 20)
        if at == 0:
            for _ in range(2):
                sources.obtain(wanted, tmp_path / "B02.tif", partials, lambda *_: None, print)
            return
        files = pd.DataFrame({"cid": [world.cid] * 8, "problem": ""})
        found = check_cids(
            files, lambda cid: ipfs.find_block(cid, nodes_of(ipfs), sources.memory)[0], 8, print
        )
        assert list(found["source"]) == [world.gateway("crowded")] * 8

    tiles_at_once(tile)
    assert (tmp_path / "B02.tif").read_bytes() == world.data
    assert world.asked == {"crowded": 18}
    assert world.most_at_once["crowded"] == 2


@pytest.mark.parametrize("first", ["blocks", "files"])
def test_a_node_that_is_silent_to_blocks_or_files_is_asked_last_by_both(
    world: World, tmp_path: Path, first: str
) -> None:
    with dripping(b"", b"") as (address, asked):
        ipfs = content(world, address, "good", probe_seconds=0.5, first_seconds=0.5)
        sources = Downloads(per_host=1).of(["gateways"], ipfs, LpDaac(), BandMirror())
        partials, cids = PartialFiles(tmp_path / "partials"), list(world.files)[:3]

        def block(at: int) -> str:
            return ipfs.find_block(Cid.parse(cids[at]), nodes_of(ipfs), sources.memory)[0]

        def file(at: int) -> str:
            wanted, path = FileRequest(f"scene/{at}.tif", cids[at], "", 1 << 20), tmp_path / f"{at}.tif"
            source = sources.obtain(wanted, path, partials, lambda *_: None, print).source
            assert path.read_bytes() == world.files[cids[at]].read_bytes()
            return source

        def tile(at: int) -> None:
            for ask in (block, file) if first == "blocks" else (file, block):
                assert ask(at) == world.gateway("good")

        tiles_at_once(tile)
        assert len(asked) == 1
        with pytest.raises(UnavailableError, match=f"; {address}: is too slow"):
            ipfs.find_block(Cid.parse(UNKNOWN), nodes_of(ipfs), sources.memory)
        assert len(asked) == 2, "it is asked where no other has it"


# Paths in directories


class Blocks:
    """A gateway of single blocks, and a Kubo node beside it; some requests can be made to fail."""

    def __init__(self, dag: FolderDag) -> None:
        self.blocks = {str(cid): block for cid, block in dag.blocks()}
        self.asked: list[str] = []
        self.failing: list[Response] = []

    def app(self) -> Starlette:
        def by_gateway(request: Request) -> Response:
            return self._answer(request.path_params["cid"], 404)

        def by_kubo(request: Request) -> Response:
            return self._answer(request.query_params["arg"], 500)

        return Starlette(
            routes=[
                Route("/ipfs/{cid}", by_gateway),
                Route("/api/v0/block/get", by_kubo, methods=["POST"]),
            ]
        )

    def _answer(self, cid: str, missing: int) -> Response:
        self.asked.append(cid)
        if self.failing:
            return self.failing.pop(0)
        if cid in self.blocks:
            return Response(self.blocks[cid], media_type=RAW)
        return PlainTextResponse(json.dumps({"Message": "ipld: could not find " + cid}), missing)


@pytest.fixture
def folder(tmp_path: Path) -> dict[str, Path]:
    """The files of a folder by name: a few at the top, and many in a folder below."""
    files = {}
    for name in ("readme.txt", "2022/B02.tif", "2022/B03.tif", *(f"many/{i}" for i in range(40))):
        path = tmp_path / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name * 3)
        files[name] = path
    return files


@pytest.fixture(params=["plain", "sharded"])
def dag(
    request: pytest.FixtureRequest, folder: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> FolderDag:
    if request.param == "sharded":
        monkeypatch.setattr(directory_module, "KUBO_SHARDING", 1000)
    return FolderDag(folder)


@pytest.fixture
def served(dag: FolderDag) -> Iterator[tuple[Blocks, str]]:
    blocks = Blocks(dag)
    with serving(blocks.app()) as address:
        yield blocks, address


@pytest.mark.parametrize("kind", ["gateways", "kubo"])
def test_a_path_leads_to_the_cid_of_its_file(
    dag: FolderDag, folder: dict[str, Path], served: tuple[Blocks, str], kind: str
) -> None:
    blocks, address = served
    ipfs = IpfsContent(kubo_api=address, gateways=[address])
    for name in ("readme.txt", "2022/B03.tif", "many/7", "many/39"):
        found = ipfs.resolve(dag.root, name.split("/"), ipfs.probes([kind]), Memory(4))
        assert str(found) == file_cid(folder[name])
    assert not set(blocks.asked) & {file_cid(path) for path in folder.values()}, "no file was asked for"


def test_no_path_leads_to_the_cid_itself(dag: FolderDag, ipfs: IpfsContent) -> None:
    assert ipfs.resolve(dag.root, [], [], Memory(4)) == dag.root


def test_a_name_that_is_not_there_is_not_found(dag: FolderDag, served: tuple[Blocks, str]) -> None:
    ipfs = IpfsContent(gateways=[served[1]])
    with pytest.raises(NotFoundError, match=r"has no entry 'B99\.tif'"):
        ipfs.resolve(dag.root, ["2022", "B99.tif"], nodes_of(ipfs), Memory(4))
    with pytest.raises(IntegrityError, match="names a block of a file, not of a directory"):
        ipfs.resolve(dag.root, ["readme.txt", "x"], nodes_of(ipfs), Memory(4))


def test_a_directory_that_nobody_has_is_not_found(dag: FolderDag, served: tuple[Blocks, str]) -> None:
    blocks, address = served
    ipfs = IpfsContent(gateways=[address])
    elsewhere = Cid.of(b"another directory", "dag-pb")
    with pytest.raises(NotFoundError, match=f"block {elsewhere}: .*could not find"):
        ipfs.resolve(elsewhere, ["x"], nodes_of(ipfs), Memory(4))
    assert len(blocks.asked) == 1, "it is not asked for again"


def test_a_wrong_directory_is_not_gone_into(dag: FolderDag, served: tuple[Blocks, str]) -> None:
    blocks, address = served
    ipfs = IpfsContent(gateways=[address])
    other = next(cid for cid in blocks.blocks if cid != str(dag.root))
    blocks.blocks[str(dag.root)] = blocks.blocks[other]
    with pytest.raises(IntegrityError, match="are not that block"):
        ipfs.resolve(dag.root, ["readme.txt"], nodes_of(ipfs), Memory(4))


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenacity, "wait_random_exponential", lambda **_: tenacity.wait_none())


@pytest.mark.usefixtures("no_pauses")
def test_a_directory_is_asked_for_again_where_that_may_help(
    dag: FolderDag, folder: dict[str, Path], served: tuple[Blocks, str]
) -> None:
    blocks, address = served
    ipfs = IpfsContent(gateways=[address])
    blocks.failing = [PlainTextResponse("", 500), PlainTextResponse("", 429)]
    assert str(ipfs.resolve(dag.root, ["readme.txt"], nodes_of(ipfs), Memory(4))) == file_cid(
        folder["readme.txt"]
    )
    blocks.asked.clear()
    blocks.failing = [PlainTextResponse("", 500) for _ in range(9)]
    with pytest.raises(UnavailableError, match="answered 500"):
        ipfs.resolve(dag.root, ["readme.txt"], nodes_of(ipfs), Memory(4))
    assert len(blocks.asked) == 3


@pytest.mark.usefixtures("no_pauses")
def test_a_directory_whose_stream_was_cut_is_asked_for_again(
    ipfs: IpfsContent, folder: dict[str, Path]
) -> None:
    dag = FolderDag(folder)
    block = dict(dag.blocks())[dag.root]
    node = Scripted("a", CutShortError("was cut short"), block)
    found = ipfs.resolve(dag.root, ["readme.txt"], [node], Memory(4))  # type: ignore[list-item]
    assert str(found) == file_cid(folder["readme.txt"])


def test_resolving_tells_of_a_node_that_sends_what_it_should_not(ipfs: IpfsContent) -> None:
    node = Scripted("a", ResourceError("answered 403"))
    with pytest.raises(RefusedError, match="answered 403"):
        ipfs.find_block(Cid.parse(UNKNOWN), [node], Memory(4))  # type: ignore[list-item]
