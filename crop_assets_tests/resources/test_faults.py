"""Downloads through a proxy that spoils them, in front of a real gateway and of a real file server."""

import contextlib
import hashlib
import itertools
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route

from crop_assets.demo.gateway import gateway_routes
from crop_assets_tests.resources.fault_proxy import (
    Fault,
    FaultProxy,
    answer,
    cut,
    endless,
    fault_proxy,
    flip,
    reset,
    stall,
)
from crop_assets_tests.resources.gateways import World
from crop_assets_tests.resources.loopback import serving
from crop_assets_tests.resources.selected import NamedRanges, file_of, selected
from resources import parts as parts_module
from resources.earthdata import LpDaac
from resources.errors import (
    CutShortError,
    IntegrityError,
    NotAFileError,
    NotFoundError,
    RefusedError,
    ResourceError,
    SlowError,
    TryAgainError,
    UnavailableError,
)
from resources.ipfs.car import DFS_CONTENT_TYPE
from resources.ipfs.nodes import Gateway, IpfsSource, KuboNode
from resources.ipfs.unixfs import KUBO_CHUNK, file_cid
from resources.parts import Parts
from resources.resume import PartialFiles
from resources.sources import FetchResult, FileRequest, Memory, Source, Sources
from resources.tiff import HEAD_BYTES

pytestmark = pytest.mark.usefixtures("short_pauses")

DATA = hashlib.shake_256(b"a band").digest(3_000_000)
LIMIT = 4_000_000
BREAK = 1_800_000
"""Where faults set in: at 60 % of the file."""
TREE = 4_096
"""Most bytes of a CAR of the file that are none of its own."""
TOKEN = "secret-token"


@dataclass(frozen=True)
class Archive:
    """One file on a gateway and on a file server that wants a token."""

    path: Path
    cid: str
    address: str


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    path = tmp_path_factory.mktemp("archive") / "B02.tif"
    path.write_bytes(DATA)
    cid = file_cid(path)

    def give(request: Request) -> Response:
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return PlainTextResponse("", 401)
        return FileResponse(path)

    routes = [*gateway_routes({cid: path}), Route("/B02.tif", give)]
    with serving(Starlette(routes=routes)) as address:
        yield Archive(path, cid, address)


@pytest.fixture
def archived(archive: Archive) -> Iterator[Archive]:
    """The archive, for tests that put another version of the file there."""
    yield archive
    archive.path.write_bytes(DATA)


@pytest.fixture
def proxy(archive: Archive) -> Iterator[FaultProxy]:
    with fault_proxy(archive.address) as running:
        yield running


@pytest.fixture
def second(archive: Archive) -> Iterator[FaultProxy]:
    """Another gateway with the same file, at another address."""
    with fault_proxy(archive.address) as running:
        yield running


def patience(proxy: FaultProxy) -> float:
    """Seconds to wait for an answer: few where it is known that none will come."""
    return 1.0 if any(fault.kind == "stall" for fault in proxy.faults) else 20.0


class Getting:
    """Downloads the file into a folder, as one process after another would."""

    def __init__(self, folder: Path, archive: Archive) -> None:
        self.folder = folder / "partials"
        self.out = folder / "B02.tif"
        self.archive = archive
        self.said: list[str] = []
        self.progress: list[int] = []

    def gateway(self, proxy: FaultProxy) -> IpfsSource:
        return IpfsSource(Gateway(proxy.address, patience(proxy)))

    def lp_daac(self, proxy: FaultProxy) -> LpDaac:
        return LpDaac(token=TOKEN, hosts=["127.0.0.1"], timeout_seconds=patience(proxy))

    def wanted(self) -> FileRequest:
        return FileRequest("scene/B02.tif", self.archive.cid, "", LIMIT)

    def wanted_of(self, proxy: FaultProxy, cid: str = "") -> FileRequest:
        return FileRequest("scene/B02.tif", cid, f"{proxy.address}/B02.tif", LIMIT)

    def by_cid(self, *sources: Source, attempts: int = 1) -> FetchResult:
        return self._obtain(self.wanted(), sources, attempts)

    def by_link(self, proxy: FaultProxy, attempts: int = 1, cid: str = "") -> FetchResult:
        return self._obtain(self.wanted_of(proxy, cid), [self.lp_daac(proxy)], attempts)

    def nothing_wrong(self) -> bool:
        """Whether nothing is at the destination."""
        return not self.out.exists()

    def whole(self, data: bytes = DATA) -> bool:
        """Whether the file is there, and nothing that was on its way."""
        return self.out.read_bytes() == data and not list(self.folder.iterdir())

    def partial(self, suffix: str = "") -> Path:
        (path,) = (path for path in self.folder.iterdir() if path.suffix == suffix)
        return path

    def _obtain(
        self, wanted: FileRequest, sources: list[Source] | tuple[Source, ...], attempts: int
    ) -> FetchResult:
        return Sources(sources, attempts, Memory(4)).obtain(
            wanted, self.out, PartialFiles(self.folder), _check, self.said.append, self.progress.append
        )


def _check(path: Path, got: FetchResult) -> None:
    if not got.verified and path.stat().st_size < 1000:
        raise IntegrityError("is no raster")


@pytest.fixture
def get(tmp_path: Path, archive: Archive) -> Getting:
    return Getting(tmp_path, archive)


def rest(verified: int) -> int:
    """Most bytes of content that a gateway need send where the file's first `verified` bytes are there."""
    return len(DATA) - verified // KUBO_CHUNK * KUBO_CHUNK + TREE


PAGE = b"<html>please sign in</html>"
FAULTS = {
    "flip": flip(BREAK),
    "cut": cut(BREAK),
    "stall": stall(BREAK),
    "reset": reset(BREAK),
    "cut at once": cut(0),
    "reset at once": reset(0),
    "stall at once": stall(0),
    "429": answer(429, b"slow down", Retry_After="1"),
    "500": answer(500),
    "404": answer(404),
    "a page": answer(200, PAGE, Content_Type="text/html"),
    "a page as a CAR": answer(200, PAGE * 10, Content_Type=DFS_CONTENT_TYPE),
    "endless": endless(BREAK),
    "a redirect elsewhere": answer(302, Location="http://example.org/B02.tif"),
}

OF_A_GATEWAY = {
    "flip": IntegrityError,
    "cut": CutShortError,
    "stall": SlowError,
    "reset": CutShortError,
    "cut at once": CutShortError,
    "reset at once": CutShortError,
    "stall at once": SlowError,
    "429": TryAgainError,
    "500": TryAgainError,
    "404": NotFoundError,
    "a page": NotAFileError,
    "a page as a CAR": IntegrityError,
    "endless": IntegrityError,
    "a redirect elsewhere": RefusedError,
}

OF_LP_DAAC = {
    name: kind
    for name, kind in OF_A_GATEWAY.items()
    if name not in ("flip", "a page", "a page as a CAR")  # what has no CID is checked by what opens it
}


def verdict_of(kind: type[ResourceError]) -> type[ResourceError]:
    """What is raised where the only source has raised an error of this class."""
    if issubclass(kind, UnavailableError):
        return UnavailableError
    return kind if kind in (IntegrityError, NotFoundError) else RefusedError


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_of_a_gateway_has_its_error_and_leaves_nothing_wrong(
    get: Getting, proxy: FaultProxy, name: str
) -> None:
    expected = OF_A_GATEWAY[name]
    proxy.faults = [FAULTS[name]]
    elsewhere = PartialFiles(get.folder.with_name("elsewhere"))
    with pytest.raises(ResourceError) as error:
        get.gateway(proxy).fetch(get.wanted(), get.out, elsewhere, get.progress.append)
    assert type(error.value) is expected
    assert get.nothing_wrong()

    proxy.faults = [FAULTS[name]]
    with pytest.raises(ResourceError) as error:
        get.by_cid(get.gateway(proxy))
    assert type(error.value) is verdict_of(expected)
    assert proxy.address in str(error.value)
    assert "B02.tif" in str(error.value)
    assert get.nothing_wrong()

    get.by_cid(get.gateway(proxy))
    assert get.whole()


@pytest.mark.parametrize("name", FAULTS)
def test_a_file_that_was_there_stays_as_it_was(get: Getting, proxy: FaultProxy, name: str) -> None:
    get.out.write_bytes(b"what was there")
    proxy.faults = [FAULTS[name]]
    with pytest.raises(ResourceError):
        get.by_cid(get.gateway(proxy))
    assert get.out.read_bytes() == b"what was there"


@pytest.mark.parametrize("fault", [cut(BREAK), stall(BREAK), reset(BREAK)], ids=lambda fault: fault.kind)
def test_the_next_turn_goes_on_where_the_last_one_broke_off(
    get: Getting, proxy: FaultProxy, fault: Fault
) -> None:
    proxy.faults = [fault]
    get.by_cid(get.gateway(proxy), attempts=2)
    assert get.whole()
    assert len(proxy.asked) == 2
    assert proxy.sent <= BREAK + rest(BREAK - KUBO_CHUNK - TREE)
    assert proxy.sent - BREAK <= 0.4 * len(DATA) + KUBO_CHUNK + TREE


@pytest.mark.parametrize(
    "fault",
    [flip(BREAK), cut(BREAK), stall(BREAK), reset(BREAK), endless(BREAK)],
    ids=lambda fault: fault.kind,
)
def test_the_next_source_goes_on_where_the_last_one_broke_off(
    get: Getting, proxy: FaultProxy, second: FaultProxy, fault: Fault
) -> None:
    proxy.faults = [fault]
    assert get.by_cid(get.gateway(proxy), get.gateway(second)).source == second.address
    assert get.whole()
    assert second.sent <= 0.4 * len(DATA) + KUBO_CHUNK + TREE


@pytest.mark.parametrize(
    "fault",
    [flip(BREAK), cut(BREAK), stall(BREAK), reset(BREAK), endless(BREAK)],
    ids=lambda fault: fault.kind,
)
def test_the_next_process_goes_on_where_the_last_one_broke_off(
    get: Getting, proxy: FaultProxy, fault: Fault
) -> None:
    proxy.faults = [fault]
    with pytest.raises(ResourceError):
        get.by_cid(get.gateway(proxy))
    proxy.forget()
    get.by_cid(get.gateway(proxy))
    assert get.whole()
    assert proxy.sent <= 0.4 * len(DATA) + KUBO_CHUNK + TREE


@pytest.mark.parametrize("fault", [cut(BREAK), reset(BREAK)], ids=lambda fault: fault.kind)
def test_a_line_that_breaks_every_time_is_no_proof_of_wrong_bytes(
    get: Getting, proxy: FaultProxy, fault: Fault
) -> None:
    proxy.faults = [fault]
    with pytest.raises(ResourceError) as error:
        get.by_cid(get.gateway(proxy))
    assert type(error.value) is UnavailableError
    assert "wrong bytes" not in str(error.value)


def test_many_breaks_cost_no_more_than_a_chunk_each(get: Getting, proxy: FaultProxy) -> None:
    breaks = [cut(700_000), stall(600_000), reset(500_000), cut(400_000), stall(0), reset(600_000)]
    proxy.faults = list(breaks)
    get.by_cid(get.gateway(proxy), attempts=len(breaks) + 1)
    assert get.whole()
    assert proxy.sent <= len(DATA) + len(breaks) * (KUBO_CHUNK + TREE)


def test_progress_tells_of_the_bytes_that_arrive_alone(get: Getting, proxy: FaultProxy) -> None:
    proxy.faults = [cut(BREAK)]
    get.by_cid(get.gateway(proxy), attempts=2)
    assert sum(get.progress) <= len(DATA) + KUBO_CHUNK


def _fetch_for_ever(get: Getting, proxy: FaultProxy) -> None:
    with contextlib.suppress(BaseException):
        get.by_cid(IpfsSource(Gateway(proxy.address, 60)))
    os._exit(1)


# Python 3.12 warns of forks beside threads; the child only downloads
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_what_a_killed_process_had_is_gone_on_with(get: Getting, proxy: FaultProxy) -> None:
    proxy.faults = [stall(BREAK)]
    child = multiprocessing.get_context("fork").Process(target=_fetch_for_ever, args=(get, proxy))
    child.start()
    assert proxy.stalled.wait(20)
    partial = next(path for path in get.folder.iterdir() if not path.suffix)
    verified = BREAK // KUBO_CHUNK * KUBO_CHUNK
    while partial.stat().st_size < verified:
        assert child.is_alive()
    os.kill(child.pid or 0, signal.SIGKILL)
    child.join()
    assert child.exitcode == -signal.SIGKILL
    child.close()
    assert get.nothing_wrong()
    assert get.partial(".lock").exists()

    proxy.forget()
    get.by_cid(get.gateway(proxy))
    assert get.whole()
    assert proxy.sent <= len(DATA) - verified + KUBO_CHUNK + TREE


@pytest.mark.parametrize("suffix", ["", ".tree"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_partial_file_that_was_tampered_with_is_not_trusted(
    get: Getting, proxy: FaultProxy, suffix: str, share: float
) -> None:
    proxy.faults = [cut(BREAK)]
    with pytest.raises(ResourceError):
        get.by_cid(get.gateway(proxy))
    path = get.partial(suffix)
    data = bytearray(path.read_bytes())
    place = int(share * len(data))
    data[place] ^= 1
    path.write_bytes(data)
    proxy.forget()
    get.by_cid(get.gateway(proxy))
    assert get.whole()
    trusted = 0 if suffix else place
    assert proxy.sent <= rest(trusted)


@pytest.mark.parametrize("junk", [b"", b"x", bytes(LIMIT)], ids=len)
@pytest.mark.parametrize("suffix", ["", ".tree"])
def test_junk_in_the_place_of_a_partial_file_does_no_harm(
    get: Getting, proxy: FaultProxy, suffix: str, junk: bytes
) -> None:
    proxy.faults = [cut(BREAK)]
    with pytest.raises(ResourceError):
        get.by_cid(get.gateway(proxy))
    get.partial(suffix).write_bytes(junk)
    get.by_cid(get.gateway(proxy))
    assert get.whole()


def test_another_files_partial_is_not_taken_for_this_one(
    get: Getting, proxy: FaultProxy, tmp_path: Path
) -> None:
    proxy.faults = [cut(BREAK)]
    with pytest.raises(ResourceError):
        get.by_cid(get.gateway(proxy))
    name = get.partial().name
    other = Getting(tmp_path / "other", get.archive)
    other.folder.mkdir(parents=True)
    (other.folder / name).write_bytes(hashlib.shake_256(b"another band").digest(2_000_000))
    (other.folder / f"{name}.tree").write_bytes(get.partial(".tree").read_bytes())
    other.by_cid(get.gateway(proxy))
    assert other.whole()


@pytest.mark.parametrize(
    "fault", [cut(400_000), stall(400_000), reset(400_000)], ids=lambda fault: fault.kind
)
def test_a_kubo_node_that_breaks_off_sends_all_of_it_again(get: Getting, world: World, fault: Fault) -> None:
    with fault_proxy(world.gateway("kubo")) as proxy:
        proxy.faults = [fault]
        source = IpfsSource(KuboNode(proxy.address, patience(proxy)))
        wanted = FileRequest("scene/B02.tif", world.cid, "", LIMIT)
        Sources([source], 2, Memory(4)).obtain(
            wanted, get.out, PartialFiles(get.folder), _check, get.said.append
        )
        assert proxy.sent > 400_000 + len(world.data)
    assert get.whole(world.data)


# LP DAAC


@pytest.mark.parametrize("name", OF_LP_DAAC)
def test_each_fault_of_lp_daac_has_its_error_and_leaves_nothing_wrong(
    get: Getting, proxy: FaultProxy, name: str
) -> None:
    expected = OF_LP_DAAC[name]
    proxy.faults = [FAULTS[name]]
    elsewhere = PartialFiles(get.folder.with_name("elsewhere"))
    with pytest.raises(ResourceError) as error:
        get.lp_daac(proxy).fetch(get.wanted_of(proxy), get.out, elsewhere, get.progress.append)
    assert type(error.value) is expected
    assert get.nothing_wrong()

    proxy.faults = [FAULTS[name]]
    with pytest.raises(ResourceError) as error:
        get.by_link(proxy)
    assert type(error.value) is verdict_of(expected)
    assert "B02.tif" in str(error.value)
    assert TOKEN not in str(error.value)
    assert get.nothing_wrong()

    get.by_link(proxy)
    assert get.whole()


@pytest.mark.parametrize("name", ["a page", "a page as a CAR"])
def test_a_page_in_the_place_of_a_file_of_lp_daac_is_named(
    get: Getting, proxy: FaultProxy, name: str
) -> None:
    proxy.faults = [FAULTS[name]]
    with pytest.raises(RefusedError, match="answered with a web page instead of a file"):
        get.by_link(proxy)
    get.by_link(proxy)
    assert get.whole()


def test_a_flipped_byte_of_lp_daac_is_found_by_the_cid(get: Getting, proxy: FaultProxy) -> None:
    proxy.faults = [flip(BREAK)]
    assert not get.by_link(proxy, cid=get.archive.cid).verified
    assert get.by_link(proxy, cid=get.archive.cid).verified
    assert get.whole()


BREAKS = pytest.mark.parametrize(
    "fault", [cut(BREAK), stall(BREAK), reset(BREAK)], ids=lambda fault: fault.kind
)


@BREAKS
def test_lp_daac_is_asked_for_the_rest_in_the_next_turn(
    get: Getting, proxy: FaultProxy, fault: Fault
) -> None:
    proxy.faults = [fault]
    get.by_link(proxy, attempts=2)
    assert get.whole()
    assert proxy.sent == len(DATA)
    first, then = proxy.asked
    assert "range" not in first
    assert then["range"] == f"bytes={BREAK}-"
    assert sum(get.progress) == len(DATA)


@BREAKS
def test_lp_daac_is_asked_for_the_rest_by_the_next_process(
    get: Getting, proxy: FaultProxy, fault: Fault
) -> None:
    proxy.faults = [fault]
    with pytest.raises(ResourceError):
        get.by_link(proxy)
    proxy.forget()
    get.by_link(proxy)
    assert get.whole()
    assert proxy.sent == len(DATA) - BREAK


@BREAKS
def test_a_file_that_lp_daac_has_replaced_is_fetched_from_its_start(
    get: Getting, proxy: FaultProxy, archived: Archive, fault: Fault
) -> None:
    proxy.faults = [fault]
    with pytest.raises(ResourceError):
        get.by_link(proxy)
    newer = hashlib.shake_256(b"a newer band").digest(len(DATA) + 1)
    archived.path.write_bytes(newer)
    proxy.forget()
    get.by_link(proxy)
    assert get.whole(newer)
    assert proxy.sent == len(newer)


@BREAKS
@pytest.mark.parametrize("turns", ["in one process", "in the next process"])
def test_what_has_no_etag_is_fetched_from_its_start(
    get: Getting, proxy: FaultProxy, fault: Fault, turns: str
) -> None:
    proxy.left_out = {"etag"}
    proxy.faults = [fault]
    if turns == "in one process":
        get.by_link(proxy, attempts=2)
    else:
        with pytest.raises(ResourceError):
            get.by_link(proxy)
        get.by_link(proxy)
    assert get.whole()
    assert proxy.sent == BREAK + len(DATA)
    assert not any("range" in headers for headers in proxy.asked)


def test_a_weak_etag_does_not_tell_versions_apart(get: Getting, proxy: FaultProxy) -> None:
    proxy.changed = {"etag": 'W/"1"'}
    proxy.faults = [cut(BREAK)]
    get.by_link(proxy, attempts=2)
    assert get.whole()
    assert not any("range" in headers for headers in proxy.asked)


def test_a_rest_that_the_server_does_not_know_of_is_fetched_from_the_start(
    get: Getting, proxy: FaultProxy
) -> None:
    """416, as where a process was killed between the last byte and its end."""
    proxy.faults = [cut(BREAK), answer(416)]
    with pytest.raises(ResourceError):
        get.by_link(proxy)
    with pytest.raises(UnavailableError, match="answered 416"):
        get.by_link(proxy)
    assert get.nothing_wrong()
    proxy.forget()
    get.by_link(proxy)
    assert get.whole()
    assert proxy.sent == len(DATA)


def test_a_file_that_had_all_its_bytes_when_its_process_was_killed(get: Getting, proxy: FaultProxy) -> None:
    proxy.faults = [cut(BREAK)]
    with pytest.raises(ResourceError):
        get.by_link(proxy)
    get.partial().write_bytes(DATA)
    get.by_link(proxy, attempts=2)
    assert get.whole()


def test_a_server_that_sends_all_of_it_though_asked_for_the_rest(get: Getting, proxy: FaultProxy) -> None:
    proxy.faults = [cut(BREAK)]
    with pytest.raises(ResourceError):
        get.by_link(proxy)
    proxy.lost = {"range", "if-range"}
    get.by_link(proxy)
    assert get.whole()


@pytest.mark.parametrize("part", ["bytes 0-2999999/3000000", "bytes 1800001-2999999/3000000", "", "nonsense"])
def test_another_part_than_the_one_asked_for_is_refused(get: Getting, proxy: FaultProxy, part: str) -> None:
    proxy.faults = [cut(BREAK), answer(206, b"part", Content_Range=part, ETag='"1"')]
    with pytest.raises(ResourceError):
        get.by_link(proxy)
    with pytest.raises(IntegrityError, match="answered with another part than the one asked for"):
        get.by_link(proxy)
    assert get.nothing_wrong()
    get.by_link(proxy)
    assert get.whole()


def test_a_rest_of_another_version_is_not_joined_to_what_is_there(
    get: Getting, proxy: FaultProxy, archived: Archive
) -> None:
    proxy.faults = [cut(BREAK)]
    with pytest.raises(ResourceError):
        get.by_link(proxy)
    newer = hashlib.shake_256(b"a newer band").digest(len(DATA))
    archived.path.write_bytes(newer)
    os.utime(archived.path, (1, 1))
    proxy.lost = {"if-range"}
    get.by_link(proxy, attempts=3)
    assert get.whole(newer)


def test_an_error_before_the_first_new_byte_does_not_give_old_bytes_the_new_etag(
    get: Getting, proxy: FaultProxy, archived: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy.faults = [cut(BREAK)]
    with pytest.raises(ResourceError):
        get.by_link(proxy)
    newer = hashlib.shake_256(b"a newer band").digest(len(DATA))
    archived.path.write_bytes(newer)
    os.utime(archived.path, (1, 1))
    with monkeypatch.context() as patch, pytest.raises(ResourceError, match="Too many open files"):
        patch.setattr(Path, "open", _too_many_open_files(Path.open))
        get.by_link(proxy)
    get.by_link(proxy)
    assert get.whole(newer)


def _too_many_open_files(really: Callable[..., Any]) -> Callable[..., Any]:
    def refuse(path: Path, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        if mode == "ab":
            raise OSError(24, "Too many open files")
        return really(path, mode, *arguments, **named)

    return refuse


@pytest.mark.parametrize(
    "odd",
    [
        answer(416),
        answer(206, DATA[:5000], Content_Range="bytes 0-4999/3000000"),
        answer(204),
        answer(304),
        answer(200),
    ],
    ids=["416", "206", "204", "304", "nothing"],
)
def test_an_odd_answer_of_lp_daac_is_an_error_like_others(
    get: Getting, proxy: FaultProxy, odd: Fault
) -> None:
    proxy.faults = [odd]
    with pytest.raises(ResourceError):
        get.by_link(proxy)
    assert get.nothing_wrong() or get.out.read_bytes() == b""
    get.by_link(proxy)
    assert get.whole()


# ranges of a file

SPAN = (1_000_000, 2_800_000)
"""The range that is needed of it, besides its first line."""
RANGED = file_of([SPAN], 3_000_000)
MIDDLE = 900_000
"""Where faults set in, in the answer with the range."""
LEAVES = 9 * KUBO_CHUNK
"""Bytes of the first leaf, and of those with the range."""
THROUGH = flip(1 << 40)
"""Changes nothing."""


@pytest.fixture(scope="module")
def ranged_archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    path = tmp_path_factory.mktemp("ranged") / "B02.tif"
    path.write_bytes(RANGED)
    cid = file_cid(path)
    routes = [*gateway_routes({cid: path}), Route("/B02.tif", lambda request: FileResponse(path))]
    with serving(Starlette(routes=routes)) as address:
        yield Archive(path, cid, address)


@pytest.fixture
def upstream(ranged_archive: Archive) -> Iterator[FaultProxy]:
    with fault_proxy(ranged_archive.address) as running:
        yield running


class GettingRanges(Getting):
    """Fetches the selected range, in one of the ways in which ranges come."""

    def __init__(self, folder: Path, archive: Archive, way: str) -> None:
        super().__init__(folder, archive)
        self.way = way

    def __call__(self, proxy: FaultProxy, attempts: int = 1) -> FetchResult:
        cid = "" if self.way == "one etag" else self.archive.cid
        sources: list[Source] = [self.lp_daac(proxy)]
        if self.way == "leaves of a server":
            sources.append(_Links(Gateway(self.archive.address, 20)))
        elif self.way != "one etag":
            gateway = Gateway(proxy.address, patience(proxy))
            gateway.takes_ranges = self.way == "leaves of a gateway"
            sources = [IpfsSource(gateway)]
        with ThreadPoolExecutor(1) as pool:
            return Sources(sources, attempts, Memory(4)).obtain(
                self.wanted_of(proxy, cid),
                self.out,
                PartialFiles(self.folder),
                _check,
                self.said.append,
                self.progress.append,
                NamedRanges(pool),
            )

    def kept(self) -> int:
        """How many bytes are on disk for the next process, all of which must be right."""
        logs = [path for path in self.folder.iterdir() if path.suffix == ".parts"]
        if not logs:
            return 0
        with Parts(logs[0].with_suffix("")) as parts:
            missing = parts.missing([(0, parts.size)])
            edges = [0, *itertools.chain(*missing), parts.size]
            for start, stop in zip(edges[::2], edges[1::2], strict=True):
                assert parts.read(start, stop) == RANGED[start:stop]
            return parts.size - sum(stop - start for start, stop in missing)

    def done(self) -> bool:
        return self.whole(selected(RANGED))

    @property
    def needed(self) -> int:
        """Bytes of the file that must come in all."""
        return HEAD_BYTES + SPAN[1] - SPAN[0] if self.way == "one etag" else LEAVES

    @property
    def lost_at_most(self) -> int:
        """Bytes that are sent in vain where an answer breaks off in the middle."""
        return KUBO_CHUNK if "gateway" in self.way or "raw" in self.way else MIDDLE


class _Links(IpfsSource):
    """Gives the links of a file, and no file."""

    def fetch_parts(self, *arguments: Any, **named: Any) -> bool:
        raise NotFoundError("gives links only")

    fetch = fetch_parts


WAYS = ["leaves of a gateway", "raw blocks of a gateway", "leaves of a server", "one etag"]
UNSEEN = ("one etag", "flip")
"""What nothing verifies: the table of downloads says so."""
OF_RANGES = {
    **FAULTS,
    **{name: replace(fault, at=MIDDLE) for name, fault in FAULTS.items() if fault.at == BREAK},
}


@pytest.fixture
def ranges(
    tmp_path: Path, ranged_archive: Archive, way: str, monkeypatch: pytest.MonkeyPatch
) -> GettingRanges:
    monkeypatch.setattr(parts_module, "_BACKOFF_SECONDS", 0.01)
    return GettingRanges(tmp_path, ranged_archive, way)


@pytest.mark.parametrize(
    ("way", "name"), [(way, name) for way in WAYS for name in OF_RANGES if (way, name) != UNSEEN]
)
@pytest.mark.parametrize("before", [0, 1], ids=["the head", "the range"])
def test_a_fault_leaves_nothing_wrong_of_ranges_and_nothing_comes_twice(
    ranges: GettingRanges, upstream: FaultProxy, way: str, name: str, before: int
) -> None:
    fault = OF_RANGES[name]
    if fault.at and (before == 0 or "raw" in way):
        fault = replace(fault, at=10_000)
    # as often as it is asked within a file
    upstream.faults = [THROUGH] * (2 * before if "raw" in way else before) + [fault] * 3
    with contextlib.suppress(ResourceError):
        ranges(upstream)
        assert ranges.done()
    if not ranges.out.exists():
        kept = ranges.kept()
        upstream.faults.clear()
        upstream.forget()
        ranges(upstream)
        assert ranges.done()
        assert upstream.sent <= ranges.needed - kept + TREE * len(upstream.asked)
    assert sum(ranges.progress) == ranges.needed


BREAKS_OF_RANGES = pytest.mark.parametrize(
    "fault", [cut(MIDDLE), stall(MIDDLE), reset(MIDDLE)], ids=lambda fault: fault.kind
)


@BREAKS_OF_RANGES
@pytest.mark.parametrize("way", ["leaves of a gateway", "leaves of a server", "one etag"])
def test_the_next_turn_asks_for_the_ranges_that_did_not_come(
    ranges: GettingRanges, upstream: FaultProxy, fault: Fault
) -> None:
    upstream.faults = [THROUGH, fault]
    ranges(upstream, attempts=2)
    assert ranges.done()
    assert upstream.sent <= ranges.needed + ranges.lost_at_most + TREE * len(upstream.asked)
    assert sum(ranges.progress) == ranges.needed


@pytest.mark.parametrize("way", ["leaves of a gateway"])
def test_a_second_gateway_sends_the_leaves_that_did_not_come(
    ranges: GettingRanges, upstream: FaultProxy, ranged_archive: Archive
) -> None:
    with fault_proxy(ranged_archive.address) as other:
        upstream.faults = [THROUGH, flip(MIDDLE)]
        with pytest.raises(ResourceError):
            ranges(upstream)
        kept = ranges.kept()
        assert kept == 4 * KUBO_CHUNK, "the head, and three of the range"
        ranges(other)
        assert ranges.done()
        assert other.sent <= LEAVES - kept + TREE


def _fetch_ranges_for_ever(ranges: GettingRanges, proxy: FaultProxy) -> None:
    with contextlib.suppress(BaseException):
        ranges(proxy)
    os._exit(1)


# Python 3.12 warns of forks beside threads; the child only downloads
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("way", ["leaves of a gateway", "one etag"])
def test_the_ranges_of_a_killed_process_are_not_asked_for_again(
    ranges: GettingRanges, upstream: FaultProxy, way: str
) -> None:
    upstream.faults = [THROUGH, stall(MIDDLE)]
    child = multiprocessing.get_context("fork").Process(
        target=_fetch_ranges_for_ever, args=(ranges, upstream)
    )
    child.start()
    assert upstream.stalled.wait(20)
    # the version and the head; and the root, and three leaves of the range
    lines, kept = (2, HEAD_BYTES) if way == "one etag" else (6, 4 * KUBO_CHUNK)
    while ranges.partial(".parts").read_bytes().count(b"\n") < lines:
        assert child.is_alive()
    os.kill(child.pid or 0, signal.SIGKILL)
    child.join()
    assert child.exitcode == -signal.SIGKILL
    child.close()
    assert ranges.nothing_wrong()
    assert ranges.kept() == kept
    upstream.forget()
    ranges(upstream)
    assert ranges.done()
    assert upstream.sent <= ranges.needed - kept + TREE * len(upstream.asked)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("suffix", ["", ".parts"])
@pytest.mark.parametrize("way", ["leaves of a gateway", "leaves of a server", "one etag"])
def test_ranges_that_were_tampered_with_are_not_trusted(
    ranges: GettingRanges, upstream: FaultProxy, suffix: str, share: float
) -> None:
    upstream.faults = [THROUGH, answer(404)]
    with pytest.raises(ResourceError):
        ranges(upstream)
    path = ranges.partial(suffix)
    data = bytearray(path.read_bytes())
    data[int(share * len(data))] ^= 1
    path.write_bytes(data)
    ranges(upstream)
    assert ranges.done()
