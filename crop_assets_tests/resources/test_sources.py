import errno
import itertools
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import dagster as dg
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route

from crop_assets_tests.resources.gateways import UNKNOWN, World
from crop_assets_tests.resources.loopback import closed_port, dripping, serving
from resources import http
from resources import sources as sources_module
from resources.downloads import Downloads
from resources.earthdata import LpDaac
from resources.errors import (
    CutShortError,
    ForbiddenError,
    IntegrityError,
    NotFoundError,
    RefusedError,
    ResourceError,
    SlowError,
    TryAgainError,
    UnavailableError,
    UnreachableError,
)
from resources.ipfs.nodes import Gateway, IpfsCommand, IpfsSource, KuboNode
from resources.ipfs.resource import IpfsContent
from resources.mirror import BandMirror
from resources.resume import PartialFiles
from resources.sources import FetchResult, FileRequest, Memory, Source, Sources, combined_error

pytestmark = pytest.mark.usefixtures("short_pauses")

LIMIT = 1 << 20
NAME = "HLS.S30.T14SMG.2022112T172221.v2.0/HLS.S30.T14SMG.2022112T172221.v2.0.B02.tif"
FILE = "HLS.S30.T14SMG.2022112T172221.v2.0.B02.tif"


class Scripted:
    """A source that gives or raises what it is told, the last of it again and again."""

    def __init__(
        self, name: str, *script: bytes | Exception, by_cid: bool = True, host: str | None = None
    ) -> None:
        self.name = name
        self.host = name if host is None else host
        self.by_cid = by_cid
        self.script = list(script)
        self.asked = 0
        self.asked_at: list[float] = []
        self.briefly: list[bool] = []
        self.verifies = by_cid

    def offers(self, wanted: FileRequest) -> bool:
        return bool(wanted.cid if self.by_cid else wanted.url)

    def fetch(
        self,
        wanted: FileRequest,
        destination: Path,
        partials: PartialFiles,
        progress: Callable[[int], None],
        brief: bool,
    ) -> bool:
        self.asked += 1
        self.briefly.append(brief)
        self.asked_at.append(time.monotonic())
        said = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(said, Exception):
            raise said
        destination.write_bytes(said)
        progress(len(said))
        return self.verifies


class Getting:
    """Gets files from some sources, and remembers what was said meanwhile."""

    def __init__(self, folder: Path, *sources: Source, attempts: int = 2, per_host: int = 4) -> None:
        self.sources = Sources(sources, attempts, Memory(per_host))
        self.partials = PartialFiles(folder / "partials")
        self.out = folder / "out"
        self.said: list[str] = []
        self.checked: list[tuple[bytes, bool]] = []
        self.unfit: set[bytes] = set()

    def __call__(
        self, cid: str = UNKNOWN, url: str = "https://example.org/B02.tif", out: Path | None = None
    ) -> FetchResult:
        return self.sources.obtain(
            FileRequest(NAME, cid, url, LIMIT), out or self.out, self.partials, self._check, self.said.append
        )

    def _check(self, path: Path, got: FetchResult) -> None:
        data = path.read_bytes()
        self.checked.append((data, got.verified))
        if data in self.unfit:
            raise IntegrityError("is no raster")


@pytest.fixture
def getting(tmp_path: Path) -> Callable[..., Getting]:
    return lambda *sources, **bounds: Getting(tmp_path, *sources, **bounds)


def gateways(world: World, *names: str, **seconds: float) -> list[IpfsSource]:
    addresses = [name if name.startswith("http") else world.gateway(name) for name in names]
    ipfs = IpfsContent(kubo_api="", gateways=addresses, **({"timeout_seconds": 10} | seconds))
    return ipfs.sources("gateways")


def kubo(world: World, name: str = "kubo") -> IpfsSource:
    return IpfsSource(KuboNode(world.gateway(name), 10))


# Order, and the next source making good


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Could not determine home directory."),
        KeyError("uid"),
        PermissionError(13, "denied"),
        ValueError("token=secret"),
    ],
)
def test_an_unexpected_error_of_a_source_does_not_keep_the_others_from_being_asked(
    getting: Callable[..., Getting], caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    kind = type(error).__name__
    get = getting(Scripted("a", error), Scripted("b", b"x"))
    assert get() == FetchResult("b", True)
    assert get.said[0].startswith(f"{FILE}: a: failed unexpectedly ({kind}")
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert re.search(
        rf"a failed unexpectedly \({kind}.*\) at test_sources\.py:\d+; the other sources are asked",
        record.message,
    )
    get = getting(Scripted("a", error), Scripted("b", NotFoundError("answered 404")))
    with pytest.raises(RefusedError, match=rf"a: failed unexpectedly \({kind}.*; b: answered 404"):
        get()
    assert "secret" not in caplog.text + str(get.said)


def test_a_full_disk_stops_all_sources(getting: Callable[..., Getting]) -> None:
    other = Scripted("b", b"x")
    with pytest.raises(OSError, match="No space"):
        getting(Scripted("a", OSError(errno.ENOSPC, "No space left")), other)()
    assert other.asked == 0


def test_the_first_source_that_has_a_file_gives_it(world: World, getting: Callable[..., Getting]) -> None:
    get = getting(*gateways(world, "good", "good-too"))
    assert get(world.cid) == FetchResult(world.gateway("good"), True)
    assert get.out.read_bytes() == world.data
    assert get.checked == [(world.data, True)]
    assert world.asked == {"good": 1}
    assert get.said == []


@pytest.mark.parametrize(
    "fault",
    [
        "flipped",
        "short",
        "reset",
        "endless",
        "page",
        "forbidden",
        "broken",
        "gone",
        "too-many",
        "moved-to-nonsense",
    ],
)
def test_the_next_gateway_makes_good(world: World, getting: Callable[..., Getting], fault: str) -> None:
    get = getting(*gateways(world, fault, "good"))
    assert get(world.cid).source == world.gateway("good")
    assert get.out.read_bytes() == world.data
    assert len(get.said) == 1
    assert get.said[0].startswith(f"{FILE}: {world.gateway(fault)}: ")


def test_a_kubo_node_is_asked_first_where_it_stands_first(
    world: World, getting: Callable[..., Getting]
) -> None:
    get = getting(kubo(world), *gateways(world, "good"))
    for _ in range(2):
        assert get(world.cid).source == world.gateway("kubo")
        assert get.out.read_bytes() == world.data
    assert world.asked == {"kubo": 2}
    other = list(world.files)[1]
    assert get(other).source == world.gateway("good")
    assert get.out.read_bytes() == world.files[other].read_bytes()


def test_a_kubo_node_that_is_not_there_rests_as_any_other(
    world: World, getting: Callable[..., Getting]
) -> None:
    get = getting(IpfsSource(KuboNode(closed_port(), 5)), *gateways(world, "good"))
    for _ in range(3):
        assert get(world.cid).source == world.gateway("good")
    assert len(get.said) == 1


def test_what_is_no_kubo_node_is_passed_by(world: World, getting: Callable[..., Getting]) -> None:
    get = getting(kubo(world, "good-too"), *gateways(world, "good"))
    assert get(world.cid).source == world.gateway("good")
    assert world.asked == {"good-too": 1, "good": 1}


def test_kinds_of_sources_are_asked_in_the_order_of_the_recipe() -> None:
    ipfs = IpfsContent(
        kubo_api="http://127.0.0.1:5001", gateways=["http://127.0.0.1:8080", "http://127.0.0.1:8081"]
    )
    lp_daac, mirror = LpDaac(), BandMirror(folder="/bands")
    order = ["lp_daac", "gateways", "mirror", "ipfs_cli", "kubo"]
    found = Downloads(per_host=3, attempts=7).of(order, ipfs, lp_daac, mirror)
    assert [source.name for source in found.sources] == [
        "LP DAAC",
        "http://127.0.0.1:8080",
        "http://127.0.0.1:8081",
        "mirror",
        "ipfs",
        "http://127.0.0.1:5001",
    ]
    assert [source.by_cid for source in found.sources] == [False, True, True, False, True, True]
    assert (found.attempts, found.memory.per_host) == (7, 3)
    assert isinstance(found.sources[4].node, IpfsCommand)  # type: ignore[attr-defined]
    assert Downloads().of(["mirror"], ipfs, lp_daac, mirror).sources == [mirror]
    with pytest.raises(ValueError, match="kubo_api"):
        Downloads().of(["kubo"], IpfsContent(kubo_api="127.0.0.1:5001"), lp_daac, mirror)


def test_a_source_that_does_not_offer_a_file_is_not_asked_for_it(getting: Callable[..., Getting]) -> None:
    by_cid, by_url = Scripted("a", b"x"), Scripted("b", b"y", by_cid=False)
    get = getting(by_cid, by_url)
    assert get(cid="") == FetchResult("b", False)
    assert get(url="") == FetchResult("a", True)
    assert (by_cid.asked, by_url.asked) == (1, 1)


# Turns


def test_a_server_error_is_tried_again(world: World, getting: Callable[..., Getting]) -> None:
    get = getting(*gateways(world, "first-fails"))
    get(world.cid)
    assert get.out.read_bytes() == world.data
    assert get.said == [f"{FILE}: {world.gateway('first-fails')}: answered 500 down for a while"]


@pytest.mark.parametrize("attempts", [1, 3])
def test_the_sources_are_gone_through_as_often_as_configured(
    world: World, getting: Callable[..., Getting], attempts: int
) -> None:
    get = getting(*gateways(world, "broken", "short", "gone", closed_port()), attempts=attempts)
    with pytest.raises(ResourceError):
        get(world.cid)
    assert world.asked == {"broken": attempts, "short": attempts, "gone": 1}


@pytest.mark.parametrize(
    ("error", "times"),
    [
        (TryAgainError("later"), 3),
        (UnreachableError("cannot be reached"), 3),
        (SlowError("is too slow"), 3),
        (CutShortError("was cut short"), 3),
        (RefusedError("answered 451"), 1),
        (NotFoundError("answered 404"), 1),
        (IntegrityError("is not that block"), 1),
        (ForbiddenError("not allowed"), 1),
    ],
)
def test_a_source_is_asked_again_where_that_may_help(
    getting: Callable[..., Getting], error: ResourceError, times: int
) -> None:
    source = Scripted("a", error)
    with pytest.raises(ResourceError, match=str(error)):
        getting(source, attempts=3)()
    assert source.asked == times


def test_an_error_that_is_none_of_a_source_is_not_hidden(getting: Callable[..., Getting]) -> None:
    later = Scripted("b", b"x")
    with pytest.raises(OSError, match="No space left"):
        getting(Scripted("a", OSError(28, "No space left on device")), later)()
    assert later.asked == 0


@pytest.mark.parametrize("fault", ["busy", "busy-until"])
def test_the_pause_that_a_server_asks_for_is_waited_for(
    world: World, getting: Callable[..., Getting], fault: str
) -> None:
    get = getting(*gateways(world, fault))
    get(world.cid)
    assert get.out.read_bytes() == world.data
    assert world.asked == {fault: 2}
    clock = time.monotonic() if fault == "busy" else time.time()
    assert clock >= world.ready_at[fault]


def test_a_source_that_asks_for_a_pause_is_passed_by_meanwhile(getting: Callable[..., Getting]) -> None:
    busy = Scripted("a", TryAgainError("answered 429", 0.3), b"x")
    failing = Scripted("b", TryAgainError("answered 500"))
    get = getting(busy, failing, attempts=50)
    assert get().source == "a"
    assert busy.asked_at[1] - busy.asked_at[0] >= 0.3
    assert failing.asked > 1


def test_other_files_respect_the_pause_too(getting: Callable[..., Getting]) -> None:
    busy = Scripted("a", TryAgainError("answered 429", 0.3), b"x")
    other = Scripted("b", b"y")
    get = getting(busy, other)
    assert [get().source, get().source] == ["b", "b"]
    time.sleep(0.3)
    assert get().source == "a"
    assert busy.asked == 2


def test_a_source_that_pauses_may_have_it_later(getting: Callable[..., Getting]) -> None:
    busy = Scripted("a", TryAgainError("answered 429", 30))
    get = getting(busy, attempts=1)
    for _ in range(2):
        with pytest.raises(ResourceError) as error:
            get()
        assert type(error.value) is UnavailableError


def test_a_file_is_not_found_only_where_those_that_pause_say_so_too(getting: Callable[..., Getting]) -> None:
    busy = Scripted("a", TryAgainError("answered 429", 30))
    get = getting(busy, Scripted("b", NotFoundError("answered 404")), attempts=1)
    for _ in range(2):
        with pytest.raises(ResourceError) as error:
            get()
        assert type(error.value) is UnavailableError


def test_files_that_wait_for_their_turn_at_a_host_respect_the_pause_as_well(tmp_path: Path) -> None:
    coming: list[FileRequest] = []

    class Busy(Scripted):
        def offers(self, wanted: FileRequest) -> bool:
            coming.append(wanted)
            return True

        def fetch(self, *arguments: object) -> bool:
            self.asked += 1
            while len(coming) < 3:
                time.sleep(0.01)
            time.sleep(0.3)  # by then the others wait
            raise TryAgainError("answered 429", 30)

    busy = Busy("a")
    get = Getting(tmp_path, busy, attempts=1, per_host=1)

    def ask(_: int) -> None:
        with pytest.raises(ResourceError):
            get()

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(ask, range(3)))
    assert busy.asked == 1


def test_a_file_that_was_on_its_way_does_not_end_the_pause(tmp_path: Path) -> None:
    on_its_way, refused = threading.Event(), threading.Event()

    class Busy(Scripted):
        def fetch(self, wanted: FileRequest, destination: Path, *arguments: object) -> bool:
            self.asked += 1
            if self.asked == 1:
                on_its_way.set()
                refused.wait(10)
                destination.write_bytes(b"x")
                return True
            raise TryAgainError("answered 429", 30)

    busy = Busy("a")
    get = Getting(tmp_path, busy, Scripted("b", b"y"))
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(get, out=tmp_path / "first")
        on_its_way.wait(10)
        assert get().source == "b"
        refused.set()
        assert first.result().source == "a"
    get()
    assert busy.asked == 2


# Memory of how sources fared


def test_an_unreachable_source_is_left_out_by_other_files_for_a_while(
    world: World, getting: Callable[..., Getting]
) -> None:
    dead = closed_port()
    get = getting(*gateways(world, dead, "good"))
    get(world.cid)
    assert get.out.read_bytes() == world.data
    assert len(get.said) == 1
    assert f"{dead}: cannot be reached (ConnectionRefusedError" in get.said[0]
    get(world.cid)
    assert len(get.said) == 1
    with pytest.raises(UnavailableError, match=r"unreachable lately, asked again in \d+ s"):
        get(UNKNOWN)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time by which sources rest, to be changed."""
    now = [1000.0]
    monkeypatch.setattr(sources_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def seconds_of_rest(dead: Scripted, get: Getting, clock: list[float]) -> float:
    """How long a source that has just failed is left out; it has failed again by then."""
    begun, asked = clock[0], dead.asked
    while dead.asked == asked:
        clock[0] += 5
        get()
    return clock[0] - begun


def test_an_unreachable_source_rests_longer_each_time(
    clock: list[float], getting: Callable[..., Getting]
) -> None:
    dead = Scripted("a", UnreachableError("cannot be reached"))
    get = getting(dead, Scripted("b", b"x"), attempts=1)
    get()
    assert [seconds_of_rest(dead, get, clock) for _ in range(6)] == [60, 120, 240, 480, 600, 600]


def test_a_silent_source_is_asked_last_for_longer_each_time(
    clock: list[float], getting: Callable[..., Getting]
) -> None:
    silent = Scripted("a", SlowError("is too slow"))
    get = getting(silent, Scripted("b", b"x"), attempts=1)
    get()
    assert [seconds_of_rest(silent, get, clock) for _ in range(5)] == [60, 120, 240, 480, 600]
    assert set(silent.briefly) == {True}


def test_a_silent_source_that_gives_a_file_is_forgiven(
    clock: list[float], getting: Callable[..., Getting]
) -> None:
    silent = Scripted("a", *[SlowError("is too slow")] * 3, b"x", SlowError("is too slow"))
    get = getting(silent, Scripted("b", b"y"), attempts=1)
    get()
    assert [seconds_of_rest(silent, get, clock) for _ in range(3)] == [60, 120, 240]
    assert get().source == "b", "it gave a file, and is silent once more"
    assert seconds_of_rest(silent, get, clock) == 60


@pytest.mark.parametrize("attempts", [1, 3])
def test_a_slow_source_is_asked_with_all_its_time_when_no_other_has_the_file(
    getting: Callable[..., Getting], attempts: int
) -> None:
    slow, silent = Scripted("a", SlowError("is too slow"), b"x"), Scripted("b", SlowError("is silent"))
    lacking = Scripted("c", NotFoundError("answered 404"))
    get = getting(slow, silent, lacking, attempts=attempts)
    assert get().source == "a"
    assert (slow.briefly, silent.briefly, lacking.asked) == ([True, False], [True], 1)
    assert get.said == [
        f"{FILE}: a: is too slow; asked again, for longer, if no other source has it",
        f"{FILE}: b: is silent; asked again, for longer, if no other source has it",
        f"{FILE}: c: answered 404",
    ]


def test_a_single_source_has_all_its_time_at_once(getting: Callable[..., Getting]) -> None:
    alone, elsewhere = Scripted("a", SlowError("is too slow"), b"x"), Scripted("b", b"y", by_cid=False)
    assert getting(alone, elsewhere)(url="").source == "a"
    assert alone.briefly == [False, False]
    assert elsewhere.asked == 0


def test_files_that_wait_for_their_turn_do_not_wait_for_a_silent_source_too(tmp_path: Path) -> None:
    coming: list[FileRequest] = []

    class Silent(Scripted):
        def offers(self, wanted: FileRequest) -> bool:
            coming.append(wanted)
            return True

        def fetch(self, *arguments: object) -> bool:
            while len(coming) < 6:
                time.sleep(0.01)
            time.sleep(0.3)  # by then the others wait
            return super().fetch(*arguments)  # type: ignore[arg-type]

    silent = Silent("a", SlowError("is too slow"))
    get = Getting(tmp_path, silent, Scripted("b", b"x"), per_host=2)
    with ThreadPoolExecutor(6) as pool:
        assert {one.source for one in pool.map(lambda i: get(out=tmp_path / str(i)), range(6))} == {"b"}
    assert silent.asked == 2


def test_a_source_that_answers_again_is_forgiven(clock: list[float], getting: Callable[..., Getting]) -> None:
    dead = Scripted("a", *[UnreachableError("cannot be reached")] * 3, b"x", UnreachableError("again"))
    get = getting(dead, Scripted("b", b"y"), attempts=1)
    get()
    assert [seconds_of_rest(dead, get, clock) for _ in range(3)] == [60, 120, 240]
    assert get().source == "b", "it gave a file, and is unreachable once more"
    assert seconds_of_rest(dead, get, clock) == 60


def test_threads_that_find_a_source_unreachable_at_once_count_as_one(
    clock: list[float], tmp_path: Path
) -> None:
    together = threading.Barrier(4)

    class Dead(Scripted):
        def fetch(self, *arguments: object) -> bool:
            if not together.broken:
                together.wait(10)
            return super().fetch(*arguments)  # type: ignore[arg-type]

    dead = Dead("a", UnreachableError("cannot be reached"))
    get = Getting(tmp_path, dead, Scripted("b", b"x"), attempts=1)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: get(out=tmp_path / str(i)), range(4)))
    together.abort()
    assert seconds_of_rest(dead, get, clock) == 60


@pytest.mark.parametrize(
    "fault", ["silent", "dripping", "announcing", "silent-kubo", "announcing-kubo", "command"]
)
def test_a_node_that_lacks_the_content_and_goes_on_looking_costs_one_short_wait(
    world: World, tmp_path: Path, getting: Callable[..., Getting], fault: str
) -> None:
    """Files of three tiles: a node that is silent stands first, and the mirror has all of them."""
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    cids = list(world.files)[:9]
    for tile, (cid, name) in enumerate(zip(cids, range(9), strict=True)):
        scene = f"HLS.S30.T{10 + tile // 3}SMG.2022112T172221.v2.0"
        (mirror / f"{scene}.B0{name}.tif").write_bytes(world.files[cid].read_bytes())
    if fault == "command":
        command = tmp_path / "ipfs"
        command.write_text("#!/bin/sh\nexec sleep 60\n")
        command.chmod(0o755)
        node: IpfsSource = IpfsSource(IpfsCommand(str(command), 60), 0.3)
    elif fault.endswith("kubo"):
        node = IpfsSource(KuboNode(world.gateway(fault), 60), 0.3)
    else:
        (node,) = gateways(world, fault, timeout_seconds=60, first_seconds=0.3)
    get = getting(node, BandMirror(folder=str(mirror)))
    for path in sorted(mirror.iterdir()):
        wanted = FileRequest(f"{path.name[:-8]}/{path.name}", cids[int(path.name[-5])], "", LIMIT)
        got = get.sources.obtain(wanted, get.out, get.partials, lambda path, got: None, get.said.append)
        assert got == FetchResult("mirror", True)
        assert get.out.read_bytes() == path.read_bytes()
    assert len(get.said) == 1
    assert "slow" in get.said[0] or "silent" in get.said[0]
    assert sum(world.asked.values()) == (0 if fault == "command" else 1)


def test_a_node_that_has_the_content_and_is_slow_gives_it_when_no_other_does(
    world: World, getting: Callable[..., Getting]
) -> None:
    get = getting(*gateways(world, "silent", "gone", first_seconds=0.3), attempts=1)
    assert get(world.cid).source == world.gateway("silent")
    assert get.out.read_bytes() == world.data
    assert world.asked == {"silent": 2, "gone": 1}


def test_a_node_may_pause_for_longer_once_it_has_begun(world: World, getting: Callable[..., Getting]) -> None:
    get = getting(*gateways(world, "pausing", "good", first_seconds=0.3))
    assert get(world.cid).source == world.gateway("pausing")
    assert get.out.read_bytes() == world.data
    assert world.asked == {"pausing": 1}


def test_a_gateway_that_has_looked_in_vain_is_asked_last_for_longer(
    world: World, getting: Callable[..., Getting]
) -> None:
    get = getting(*gateways(world, "timed-out", "good"))
    assert [get(world.cid).source for _ in range(3)] == [world.gateway("good")] * 3
    assert world.asked == {"timed-out": 1, "good": 3}
    health = get.sources.memory._health[world.gateway("timed-out")]
    assert health.silent_until > time.monotonic()


@pytest.mark.parametrize("fault", ["dripping", "silent"])
def test_a_slow_source_is_asked_last_for_a_while(
    world: World, getting: Callable[..., Getting], fault: str
) -> None:
    get = getting(*gateways(world, fault, "good", timeout_seconds=0.4))
    get(world.cid)
    assert "too slow" in get.said[0]
    get(world.cid)
    assert len(get.said) == 1
    assert world.asked == {fault: 1, "good": 2}


OK = b"HTTP/1.1 200 OK\r\n"
CAR = OK + b"Content-Type: application/vnd.ipld.car\r\n"
DRIPS = {
    "status": (b"HTTP/1.1 200 O", b"K"),
    "header": (OK + b"X-Long: ", b"x"),
    "headers": (OK, b"X: y\r\n"),
    "interim": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "chunk": (CAR + b"Transfer-Encoding: chunked\r\n\r\n1;x=", b"y"),
    "gzip": (CAR + b"Content-Encoding: gzip\r\n\r\n\x1f\x8b\x08\x08\0\0\0\0\0\x03", b"n"),
    "redirect": (b"HTTP/1.1 302 Found\r\n", b"X: y\r\n"),
    "words": (b"HTTP/1.1 503 Busy\r\nTransfer-Encoding: chunked\r\n\r\n1;x=", b"y"),
}
"""What comes at once, and what every 0.2 s from then on."""


@pytest.mark.parametrize("drip", DRIPS)
@pytest.mark.parametrize("kind", ["gateway", "LP DAAC"])
def test_a_source_whose_answer_drips_before_its_content_is_asked_last(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, drip: str
) -> None:
    monkeypatch.setattr(http, "WORDS_SECONDS", 0.5)
    with dripping(*DRIPS[drip]) as (address, asked):
        if kind == "gateway":
            (source,) = gateways(world, address, timeout_seconds=0.5)
        else:
            source = LpDaac(token="token", hosts=["127.0.0.1"], timeout_seconds=0.5)
        get = Getting(tmp_path, source, *gateways(world, "good"))
        for cid in list(world.files)[:3]:
            assert get(cid, f"{address}/B02.tif") == FetchResult(world.gateway("good"), True)
            assert get.out.read_bytes() == world.files[cid].read_bytes()
        assert len(asked) == len(get.said) == 1
        told = {"words": "answered 503", "gzip": "which was not asked for"}
        assert told.get(drip, "is too slow") in get.said[0]


@pytest.mark.parametrize(
    ("error", "last"),
    [
        (SlowError("is too slow"), True),
        (TryAgainError("answered 500"), True),
        (CutShortError("was cut short"), True),
        (IntegrityError("is not that block"), True),
        (ForbiddenError("not allowed"), True),
        (NotFoundError("answered 404"), False),
    ],
)
def test_a_source_that_failed_is_asked_last_for_a_minute(
    clock: list[float], getting: Callable[..., Getting], error: ResourceError, last: bool
) -> None:
    failing = Scripted("a", error)
    get = getting(failing, Scripted("b", b"x"), attempts=1)
    for _ in range(3):
        assert get().source == "b"
    assert failing.asked == (1 if last else 3)
    clock[0] += 61
    get()
    assert failing.asked == (2 if last else 4)


def test_a_mirror_without_some_of_the_files_is_asked_first_all_the_same(
    clock: list[float], getting: Callable[..., Getting]
) -> None:
    mirror = Scripted("mirror", IntegrityError("does not match"), b"x", by_cid=False, host="")
    get = getting(mirror, Scripted("b", b"y"))
    assert [get().source, get().source] == ["b", "mirror"]


def test_a_command_that_hangs_is_asked_last_as_well(
    clock: list[float], getting: Callable[..., Getting]
) -> None:
    command = Scripted("ipfs", SlowError("was silent for 60 s"), host="")
    get = getting(command, Scripted("b", b"x"))
    get()
    get()
    assert command.asked == 1


def test_a_command_that_is_not_there_rests(getting: Callable[..., Getting]) -> None:
    get = getting(IpfsSource(IpfsCommand("ipfs-none", 1)), Scripted("b", b"x"))
    assert [get().source, get().source] == ["b", "b"]
    assert get.said == [f"{FILE}: ipfs-none: there is no command ipfs-none on this machine"]


# What is checked


@pytest.fixture
def link(tmp_path: Path, world: World) -> Iterator[str]:
    """A link to another file under the same name, as an archive has it that processed its data anew."""
    other = tmp_path / "newer.tif"
    other.write_bytes(b"newer")

    def give(request: Request) -> Response:
        if request.headers.get("authorization") != "Bearer token":
            return PlainTextResponse("", 401)
        return FileResponse(other)

    with serving(Starlette(routes=[Route(f"/{FILE}", give)])) as address:
        yield f"{address}/{FILE}"


def lp_daac() -> LpDaac:
    return LpDaac(token="token", hosts=["127.0.0.1"], timeout_seconds=5)


def test_lp_daac_makes_good_what_nobody_has_by_its_cid(
    world: World, getting: Callable[..., Getting], link: str
) -> None:
    get = getting(*gateways(world, "good", "gone"), lp_daac())
    assert get(UNKNOWN, link) == FetchResult("LP DAAC", False)
    assert get.checked == [(b"newer", False)]


def test_an_unfit_file_of_a_gateway_is_made_good_by_lp_daac(
    world: World, getting: Callable[..., Getting], link: str
) -> None:
    get = getting(*gateways(world, "good"), lp_daac())
    get.unfit = {world.data}
    assert get(world.cid, link) == FetchResult("LP DAAC", False)
    assert get.out.read_bytes() == b"newer"
    assert get.said == [f"{FILE}: {world.gateway('good')}: is no raster"]


def test_an_unfit_file_is_not_asked_of_others_who_have_it_by_the_same_cid(
    world: World, getting: Callable[..., Getting], link: str
) -> None:
    get = getting(*gateways(world, "good", "good-too"), kubo(world), lp_daac())
    get.unfit = {world.data}
    assert get(world.cid, link).source == "LP DAAC"
    assert world.asked == {"good": 1}
    assert get.checked == [(world.data, True), (b"newer", False)]


def test_a_file_that_is_unfit_wherever_it_comes_from_is_an_integrity_error(
    world: World, getting: Callable[..., Getting]
) -> None:
    get = getting(*gateways(world, "good", "good-too"))
    get.unfit = {world.data}
    with pytest.raises(IntegrityError, match=f"{world.gateway('good')}: is no raster"):
        get(world.cid)
    assert world.asked == {"good": 1}


def test_an_unfit_file_that_is_not_verified_may_be_right_elsewhere(
    world: World, getting: Callable[..., Getting], link: str
) -> None:
    get = getting(lp_daac(), *gateways(world, "good"))
    get.unfit = {b"newer"}
    assert get(world.cid, link) == FetchResult(world.gateway("good"), True)
    assert get.out.read_bytes() == world.data
    assert get.checked == [(b"newer", False), (world.data, True)]


# What is said in the end


def test_nobody_has_it(world: World, getting: Callable[..., Getting]) -> None:
    get = getting(*gateways(world, "good", "gone"))
    with pytest.raises(NotFoundError) as error:
        get(UNKNOWN)
    assert FILE in str(error.value)
    assert f"{world.gateway('good')}: answered 404 {UNKNOWN} is not served here" in str(error.value)
    assert f"{world.gateway('gone')}: answered 410" in str(error.value)
    assert world.asked == {"good": 1, "gone": 1}
    assert not get.out.exists()


def test_a_source_that_may_have_it_later_outweighs_one_that_has_it_not(
    world: World, getting: Callable[..., Getting]
) -> None:
    with pytest.raises(UnavailableError, match="answered 502") as error:
        getting(*gateways(world, "gone", "broken"))(UNKNOWN)
    assert type(error.value) is UnavailableError
    assert world.asked == {"gone": 1, "broken": 2}


def test_wrong_bytes_outweigh_what_no_later_try_changes(
    world: World, getting: Callable[..., Getting]
) -> None:
    names = ("gone", "flipped", "forbidden")
    with pytest.raises(IntegrityError, match="Nothing that fits was sent") as error:
        getting(*gateways(world, *names))(world.cid)
    for name in names:
        assert f"{world.gateway(name)}: " in str(error.value)


def test_a_refusal_is_not_repeated(world: World, getting: Callable[..., Getting]) -> None:
    with pytest.raises(ForbiddenError, match="answered 403: not allowed with these credentials: not for you"):
        getting(*gateways(world, "forbidden"))(world.cid)
    assert world.asked == {"forbidden": 1}


def test_nothing_is_reachable(getting: Callable[..., Getting]) -> None:
    with pytest.raises(UnavailableError, match="cannot be reached"):
        getting(IpfsSource(Gateway(closed_port(), 5)))()


@pytest.mark.parametrize("sources", [[], [Scripted("a", b"x")]])
def test_there_is_no_source_to_ask(getting: Callable[..., Getting], sources: list[Scripted]) -> None:
    with pytest.raises(NotFoundError, match="there is no source to ask"):
        getting(*sources)(cid="")


SAID: dict[type[ResourceError], ResourceError] = {
    type(error): error
    for error in (
        NotFoundError("a"),
        UnavailableError("b"),
        TryAgainError("c"),
        UnreachableError("d"),
        SlowError("e"),
        ResourceError("f"),
        IntegrityError("g"),
        CutShortError("h"),
        ForbiddenError("i"),
        RefusedError("j"),
    )
}


@pytest.mark.parametrize("kinds", list(itertools.combinations_with_replacement(SAID, 2)))
def test_a_combined_error_is_of_the_most_useful_class(kinds: tuple[type[ResourceError], ...]) -> None:
    found = combined_error("it could not be had", {f"{i}": SAID[kind] for i, kind in enumerate(kinds)})
    expected: type[ResourceError] = UnavailableError
    if any(issubclass(kind, UnavailableError) for kind in kinds):
        pass
    elif IntegrityError in kinds:
        expected = IntegrityError
    elif set(kinds) == {NotFoundError}:
        expected = NotFoundError
    else:
        expected = ForbiddenError if ForbiddenError in kinds else RefusedError
    assert type(found) is expected
    for i, kind in enumerate(kinds):
        assert f"{i}: {SAID[kind]}" in str(found)


# Many at once


@pytest.mark.parametrize("per_host", [1, 3])
def test_no_host_has_more_requests_at_once_than_its_bound(
    world: World, tmp_path: Path, per_host: int
) -> None:
    """Gateways at one host share its bound."""
    get = Getting(tmp_path, *gateways(world, "crowded", "crowded-too"), per_host=per_host)
    both = [get.sources, Sources(get.sources.sources[::-1], 2, get.sources.memory)]

    def ask(i: int) -> None:
        wanted = FileRequest(NAME, world.cid, "", LIMIT)
        both[i % 2].obtain(wanted, tmp_path / str(i), get.partials, lambda path, got: None, get.said.append)

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(ask, range(12)))
    assert world.asked == {"crowded": 6, "crowded-too": 6}
    assert world.most_at_once["crowded"] == per_host


def test_this_machine_has_no_bound(tmp_path: Path) -> None:
    together = threading.Barrier(8)

    class Local(Scripted):
        def fetch(self, *arguments: object) -> bool:
            together.wait(10)
            return super().fetch(*arguments)  # type: ignore[arg-type]

    get = Getting(tmp_path, Local("mirror", b"x", host=""), per_host=1)
    with ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(lambda i: get(out=tmp_path / str(i)), range(8)))) == 8


def test_a_slot_is_given_back_whatever_happens(getting: Callable[..., Getting]) -> None:
    source = Scripted("a", OSError("disk"), IntegrityError("wrong"), TryAgainError("later"), b"x")
    get = getting(source, attempts=1, per_host=1)
    for _ in range(3):
        with pytest.raises((OSError, ResourceError)):
            get()
    assert get().source == "a"


def test_threads_get_files_at_once(world: World, tmp_path: Path) -> None:
    get = Getting(tmp_path, *gateways(world, closed_port(), "first-fails", "good", "good-too"))
    names = list(world.files) * 3

    def ask(i: int) -> Path:
        get(names[i], out=tmp_path / str(i))
        return tmp_path / str(i)

    with ThreadPoolExecutor(8) as pool:
        for name, path in zip(names, pool.map(ask, range(len(names))), strict=True):
            assert path.read_bytes() == world.files[name].read_bytes()
    assert not [path for path in (tmp_path / "partials").iterdir() if path.is_file()]


def test_an_asset_uses_them(world: World, tmp_path: Path) -> None:
    @dg.asset
    def band(
        ipfs: dg.ResourceParam[IpfsContent],
        lp_daac: dg.ResourceParam[LpDaac],
        mirror: dg.ResourceParam[BandMirror],
        downloads: dg.ResourceParam[Downloads],
    ) -> str:
        sources = downloads.of(["mirror", "gateways", "lp_daac"], ipfs, lp_daac, mirror)
        wanted = FileRequest(NAME, world.cid, "", LIMIT)
        partials = PartialFiles(tmp_path / "partials")
        return sources.obtain(wanted, tmp_path / "out", partials, lambda path, got: None, print).source

    resources = {
        "ipfs": IpfsContent(kubo_api="", gateways=[world.gateway("good")]),
        "lp_daac": LpDaac(),
        "mirror": BandMirror(),
        "downloads": Downloads(),
    }
    result = dg.materialize([band], resources=resources)
    assert result.output_for_node("band") == world.gateway("good")
    assert (tmp_path / "out").read_bytes() == world.data
