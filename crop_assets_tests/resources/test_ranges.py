"""Files in ranges from LP DAAC, of which real servers on loopback play the archive and the storage behind it."""

import contextlib
import hashlib
import itertools
import re
import socket
import struct
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import pytest

from crop_assets_tests.resources.gateways import World
from crop_assets_tests.resources.loopback import serving
from crop_assets_tests.resources.selected import NamedRanges, file_of, selected
from resources import parts as parts_module
from resources.earthdata import LpDaac
from resources.errors import IntegrityError, RefusedError, ResourceError, UnavailableError
from resources.ipfs.nodes import Gateway, IpfsSource
from resources.ipfs.unixfs import KUBO_CHUNK, file_cid
from resources.resume import PartialFiles
from resources.sources import FetchResult, FileRequest, Memory, Source, Sources
from resources.tiff import HEAD_BYTES

TOKEN = "eyJ0eXAi.secret-token.c2lnbmF0dXJl"
SIGNATURE = "X-Amz-Signature=secret-signature"
PATH = "/HLSS30.020/HLS.S30.T14SMF.2021062T172221.v2.0.B02.tif"
SIZE = 3_000_000
LIMIT = 4_000_000
RANGES = [(500_000, 510_000), (900_000, 950_000), (1_800_000, 1_900_000), (2_950_000, SIZE)]
"""Further apart than any gap that is fetched along."""
DATA = file_of(RANGES, SIZE)
NEWER = file_of([(100_000, 200_000), (2_000_000, 2_100_000)], SIZE - 9, "newer")

pytestmark = pytest.mark.usefixtures("short_pauses", "brief_backoff", "netrc")


@dataclass(frozen=True)
class Reply:
    """An answer as it goes over the wire; `announced` is its Content-Length, None for its true length."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    announced: int | None = None
    then: Literal["", "close", "reset", "silence"] = ""
    """What happens after the body."""

    def but(self, **headers: str) -> "Reply":
        """The same with other headers; "" leaves one out, and _ stands for -."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        kept = {name: value for name, value in (self.headers | named).items() if value}
        return replace(self, headers=kept)


@dataclass(frozen=True)
class Asked:
    path: str
    range: str
    tag: str
    login: str


class FileServer:
    """Serves files by ranges, as a server should, except what `spoil` makes of its answers."""

    def __init__(self) -> None:
        self.files: dict[str, tuple[bytes, str]] = {}
        """Bytes and ETag of each path; the query of a request is not part of it."""
        self.redirects: dict[str, str] = {}
        self.spoil: Callable[[int, Asked, Reply], Reply] = lambda number, asked, reply: reply
        """Makes the answer to a request, the first of which has the number 0, of the right one."""
        self.asked: list[Asked] = []
        self.sent = 0
        """Bytes of bodies."""
        self.heard = ""
        self.ended = threading.Event()
        self._lock = threading.Lock()

    def has(self, data: bytes, path: str = PATH, tag: str | None = None) -> str:
        name = f'"{hashlib.sha256(data).hexdigest()[:16]}"' if tag is None else tag
        self.files[path] = data, name
        return self.url(path)

    def url(self, path: str = PATH, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    def forget(self) -> None:
        self.asked, self.sent, self.heard = [], 0, ""

    def ranges(self) -> list[str]:
        return [asked.range for asked in self.asked]

    def reply(self, path: str, headers: Any) -> Reply:
        asked = Asked(
            path, headers.get("Range", ""), headers.get("If-Range", ""), headers.get("Authorization", "")
        )
        with self._lock:
            number = len(self.asked)
            self.asked.append(asked)
            self.heard += f"{path}\n{headers}\n"
        reply = self.spoil(number, asked, self._right(asked))
        self.sent += len(reply.body)
        return reply

    def _right(self, asked: Asked) -> Reply:
        path = asked.path.partition("?")[0]
        if path in self.redirects:
            return Reply(302, headers={"Location": self.redirects[path]})
        if path not in self.files:
            return Reply(404)
        data, tag = self.files[path]
        named = {"ETag": tag} if tag else {}
        match = re.fullmatch(r"bytes=([0-9]+)-([0-9]*)", asked.range)
        if not match or (asked.tag and asked.tag != tag):
            return Reply(200, data, named)
        first, last = int(match[1]), min(int(match[2] or len(data)), len(data) - 1)
        if first >= len(data):
            return Reply(416, headers={"Content-Range": f"bytes */{len(data)}"})
        part = f"bytes {first}-{last}/{len(data)}"
        return Reply(206, data[first : last + 1], named | {"Content-Range": part})


@contextlib.contextmanager
def file_server() -> Iterator[FileServer]:
    server = FileServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            reply = server.reply(self.path, self.headers)
            length = len(reply.body) if reply.announced is None else reply.announced
            self.send_response(reply.status)
            for name, value in {"Content-Length": str(length), **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(reply.body)
            self.close_connection = bool(reply.then)
            if reply.then == "silence":
                server.ended.wait(30)
            elif reply.then == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                socket.close(self.connection.detach())

        def handle(self) -> None:
            with contextlib.suppress(OSError):
                super().handle()

        def finish(self) -> None:
            with contextlib.suppress(OSError, ValueError):
                super().finish()

        def log_message(self, format: str, *args: object) -> None:
            pass

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listener.daemon_threads = True
    server.port = listener.server_port
    thread = threading.Thread(target=listener.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.ended.set()
    listener.shutdown()
    listener.server_close()
    thread.join()


@pytest.fixture
def archive() -> Iterator[FileServer]:
    with file_server() as server:
        server.has(DATA)
        yield server


@pytest.fixture
def storage() -> Iterator[FileServer]:
    with file_server() as server:
        server.has(DATA, "/signed")
        yield server


@pytest.fixture
def netrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").touch()
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("EARTHDATA_TOKEN_FILE", raising=False)


@pytest.fixture
def brief_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts_module, "_BACKOFF_SECONDS", 0.005)


class Getting:
    """Fetches the selected ranges of the file into a folder, as one process after another would."""

    def __init__(self, folder: Path, archive: FileServer) -> None:
        self.folder, self.out = folder / "partials", folder / "out"
        self.url = archive.url()
        self.said: list[str] = []
        self.progress: list[int] = []
        self.nodes: list[Source] = []
        self.cid = ""
        self.seconds = 5.0
        self.world: World

    def __call__(self, attempts: int = 1, threads: int = 1, limit: int = LIMIT) -> FetchResult:
        local: dict[str, Any] = {"hosts": ["127.0.0.1"], "storage_hosts": ["localhost"]}
        source = LpDaac(token=TOKEN, timeout_seconds=self.seconds, **local)
        request = FileRequest("scene/B02.tif", self.cid, self.url, limit)
        with ThreadPoolExecutor(threads) as pool:
            self.selection = NamedRanges(pool)
            return Sources([source, *self.nodes], attempts, Memory(4)).obtain(
                request,
                self.out,
                PartialFiles(self.folder),
                lambda path, got: None,
                self.said.append,
                self.progress.append,
                self.selection,
            )

    def nothing(self) -> bool:
        """Whether nothing is at the destination."""
        return not self.out.exists()

    def done(self, data: bytes = DATA) -> bool:
        """Whether the selected ranges are there, and nothing that was on its way."""
        return self.out.read_bytes() == selected(data) and not list(self.folder.iterdir())

    def complete(self, data: bytes = DATA) -> bool:
        """The same for the complete file."""
        return self.out.read_bytes() == data and not list(self.folder.iterdir())


@pytest.fixture
def get(tmp_path: Path, archive: FileServer) -> Getting:
    return Getting(tmp_path, archive)


def asked_for(*ranges: tuple[int, int]) -> list[str]:
    return [f"bytes={start}-{stop - 1}" for start, stop in ranges]


ALL = asked_for((0, HEAD_BYTES), *RANGES)


def told(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)) + repr(error) + str(vars(error))


# servers that do as they should


def test_the_chosen_ranges_are_asked_for_and_no_others(get: Getting, archive: FileServer) -> None:
    assert get() == FetchResult("LP DAAC", False, True)
    assert get.done()
    tag = archive.files[PATH][1]
    assert get.selection.chosen == [(tag, SIZE)]
    assert get.selection.written == [(tag, False)]
    assert archive.ranges() == ALL
    assert [asked.tag for asked in archive.asked] == ["", *[tag] * len(RANGES)]
    assert {asked.login for asked in archive.asked} == {f"Bearer {TOKEN}"}
    assert sum(get.progress) == archive.sent == HEAD_BYTES + len(selected(DATA))


def test_threads_ask_for_the_ranges_at_once(get: Getting, archive: FileServer) -> None:
    meeting = threading.Barrier(len(RANGES), timeout=20)

    def wait(number: int, asked: Asked, reply: Reply) -> Reply:
        if number:
            meeting.wait()
        return reply

    archive.spoil = wait
    get.seconds = 30
    get(threads=len(RANGES))
    assert get.done()
    assert sorted(archive.ranges()) == sorted(ALL)


def test_ranges_near_each_other_are_fetched_as_one(get: Getting, archive: FileServer) -> None:
    data = file_of([(100_000, 110_000), (150_000, 160_000), (SIZE - 1000, SIZE)], SIZE)
    archive.has(data)
    get()
    assert get.done(data)
    assert archive.ranges() == asked_for((0, HEAD_BYTES), (100_000, 160_000), (SIZE - 1000, SIZE))


def test_ranges_in_the_head_and_beyond_the_end_are_not_asked_for(get: Getting, archive: FileServer) -> None:
    data = file_of([(10, HEAD_BYTES), (SIZE - 1000, SIZE + 5000), (2 * SIZE, 3 * SIZE)], SIZE)
    archive.has(data)
    get()
    assert get.done(data)
    assert archive.ranges() == asked_for((0, HEAD_BYTES), (SIZE - 1000, SIZE))


def test_a_file_smaller_than_a_head(get: Getting, archive: FileServer) -> None:
    data = file_of([(50, 90)], 100)
    archive.has(data)
    get()
    assert get.done(data)
    assert archive.ranges() == asked_for((0, HEAD_BYTES))


def test_a_cut_costs_a_part_of_a_long_range(get: Getting, archive: FileServer) -> None:
    size = 10_000_000
    data = file_of([(1_000_000, size)], size)
    archive.has(data)

    def cut(number: int, asked: Asked, reply: Reply) -> Reply:
        if number != 2:
            return reply
        return replace(reply, body=reply.body[:-1], announced=len(reply.body), then="close")

    archive.spoil = cut
    get(limit=size)
    assert get.done(data)
    most = 4 << 20
    edges = [1_000_000, 1_000_000 + most, 1_000_000 + 2 * most, size]
    spans = asked_for((0, HEAD_BYTES), *itertools.pairwise(edges))
    assert archive.ranges() == [*spans[:3], *spans[2:]]


def test_what_came_is_not_asked_for_by_the_next_process(get: Getting, archive: FileServer) -> None:
    archive.spoil = later(3, lambda reply: Reply(404))
    with pytest.raises(ResourceError):
        get()
    assert get.nothing()
    archive.forget()
    archive.spoil = lambda number, asked, reply: reply
    get()
    assert get.done()
    assert archive.ranges() == ALL[3:]


# servers that lie


def later(number: int, spoilt: Callable[[Reply], Reply]) -> Callable[[int, Asked, Reply], Reply]:
    """Spoils the answer of that number and all after it."""
    return lambda at, asked, reply: spoilt(reply) if at >= number else reply


def _moved(reply: Reply, first: int, last: int, size: int = 0) -> Reply:
    found = re.fullmatch(r"bytes ([0-9]+)-([0-9]+)/([0-9]+)", reply.headers.get("Content-Range", ""))
    assert found
    a, b, c = map(int, found.groups())
    return reply.but(Content_Range=f"bytes {a + first}-{b + last}/{c + size}")


MULTIPART = (
    b"--x\r\nContent-Type: image/tiff\r\nContent-Range: bytes 0-9/3000000\r\n\r\n0123456789\r\n--x--\r\n"
)
LIES: dict[str, tuple[Callable[[Reply], Reply], str]] = {
    "another range": (lambda reply: _moved(reply, 1, 1), "instead of"),
    "a range before it": (lambda reply: _moved(reply, 0, -1), "instead of"),
    "a short range that says so": (
        lambda reply: replace(_moved(reply, 0, -10), body=reply.body[:-10]),
        "instead of",
    ),
    "a longer range that says so": (
        lambda reply: replace(_moved(reply, 0, 10), body=reply.body + bytes(10)),
        "instead of",
    ),
    "a longer body": (lambda reply: replace(reply, body=reply.body + b"more"), "sent more than"),
    "no Content-Range": (lambda reply: reply.but(Content_Range=""), "a range without saying which"),
    "an unknown size": (
        lambda reply: reply.but(Content_Range=reply.headers["Content-Range"].split("/")[0] + "/*"),
        "a range without saying which",
    ),
    "a nonsensical range": (lambda reply: reply.but(Content_Range="bytes 9-1/-5"), "without saying which"),
    "a reversed range": (lambda reply: reply.but(Content_Range="bytes 16383-0/3000000"), "instead of"),
    "a huge size": (
        lambda reply: reply.but(Content_Range=f"bytes 0-16383/{'9' * 400}"),
        "without saying which",
    ),
    "multipart": (
        lambda reply: replace(reply, body=MULTIPART).but(
            Content_Range="", Content_Type="multipart/byteranges; boundary=x"
        ),
        "without saying which",
    ),
    "an encoding": (lambda reply: reply.but(Content_Encoding="gzip"), "the encoding 'gzip'"),
}


@pytest.mark.parametrize("number", [0, 2], ids=["at first", "later"])
@pytest.mark.parametrize("name", LIES)
def test_a_lie_is_refused_and_nothing_of_it_stays(
    get: Getting, archive: FileServer, name: str, number: int
) -> None:
    spoilt, words = LIES[name]
    archive.spoil = later(number, spoilt)
    with pytest.raises(IntegrityError, match=words):
        get(attempts=3)
    assert get.nothing()
    assert len(set(archive.ranges())) == len(archive.ranges()) > number, "none is asked for again"
    archive.spoil = lambda number, asked, reply: reply
    archive.forget()
    get()
    assert get.done()
    assert archive.ranges() == ALL[number:]


@pytest.mark.parametrize("threads", [1, 4])
def test_another_size_half_way_is_another_version(get: Getting, archive: FileServer, threads: int) -> None:
    """Whatever its ETag: what came before is dropped, as nobody knows which of the two is the right one."""
    archive.spoil = later(2, lambda reply: _moved(reply, 0, 0, 5))
    with pytest.raises(UnavailableError, match="has 3,000,005 bytes, and had 3,000,000"):
        get(threads=threads)
    assert get.nothing()
    archive.spoil = lambda number, asked, reply: reply
    archive.forget()
    get()
    assert get.done()
    assert archive.ranges() == ALL


def test_a_file_above_the_limit_is_refused_by_its_first_range(get: Getting, archive: FileServer) -> None:
    with pytest.raises(IntegrityError, match="3,000,000 bytes, more than the 2,999,999 allowed"):
        get(limit=SIZE - 1)
    assert archive.ranges() == ALL[:1]
    assert get.nothing()
    get(limit=SIZE)
    assert get.done()


@pytest.mark.parametrize("number", [0, 2], ids=["at first", "later"])
def test_a_server_without_ranges_gives_the_complete_file(
    get: Getting, archive: FileServer, number: int
) -> None:
    """Also if it has sent some, of the same version."""
    data, tag = archive.files[PATH]
    archive.spoil = later(number, lambda reply: Reply(200, data, {"ETag": tag}))
    assert get() == FetchResult("LP DAAC", False)
    assert get.complete()
    assert archive.ranges()[: number + 1] == ALL[: number + 1]
    assert archive.ranges()[-1] == ""
    assert any("sends no ranges; the complete file is fetched" in line for line in get.said)


@pytest.mark.parametrize("tag", ["", 'W/"1"', "unquoted", '"two\twords"'])
def test_without_a_strong_etag_the_complete_file_is_fetched(
    get: Getting, archive: FileServer, tag: str
) -> None:
    archive.has(DATA, tag=tag)
    get()
    assert get.complete()
    assert archive.ranges() == [ALL[0], ""]


def test_an_etag_that_is_left_out_later_leads_to_the_complete_file(get: Getting, archive: FileServer) -> None:
    archive.spoil = later(2, lambda reply: reply.but(ETag=""))
    get()
    assert get.complete()
    assert archive.ranges()[:3] == ALL[:3]
    assert archive.ranges()[-1] == ""


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("honest", [True, False], ids=["if-range", "ignores if-range"])
@pytest.mark.parametrize("number", [1, 3])
def test_a_file_that_changes_half_way_is_the_new_one_entirely(
    get: Getting, archive: FileServer, number: int, honest: bool, threads: int
) -> None:
    def change(at: int, asked: Asked, reply: Reply) -> Reply:
        if at == number:
            archive.has(NEWER)
        if at < number:
            return reply
        return archive._right(asked if honest else replace(asked, tag=""))

    archive.spoil = change
    get(attempts=3, threads=threads)
    assert get.done(NEWER)
    tag = archive.files[PATH][1]
    assert get.selection.written == [(tag, False)]
    heads = [at for at, asked in enumerate(archive.asked) if asked.range == ALL[0] and not asked.tag]
    assert len(heads) == 2
    assert archive.ranges()[heads[1] :][:1] == ALL[:1]
    assert sorted(archive.ranges()[heads[1] + 1 :]) == sorted(
        asked_for((100_000, 200_000), (2_000_000, 2_100_000))
    )


@pytest.mark.parametrize("newer", [NEWER, file_of([(20_000, 50_000)], 60_000)], ids=["as long", "shorter"])
@pytest.mark.parametrize("honest", [True, False], ids=["if-range", "ignores if-range"])
def test_a_file_that_changed_between_two_processes_is_the_new_one_entirely(
    get: Getting, archive: FileServer, newer: bytes, honest: bool
) -> None:
    archive.spoil = later(3, lambda reply: Reply(404))
    with pytest.raises(ResourceError):
        get()
    archive.has(newer)
    archive.spoil = lambda number, asked, reply: archive._right(asked if honest else replace(asked, tag=""))
    get(attempts=2)
    assert get.done(newer)


PAGE = b"<html>please sign in</html>" + b" " * HEAD_BYTES


def test_a_web_page_in_place_of_the_head_is_named(get: Getting, archive: FileServer) -> None:
    archive.spoil = later(0, lambda reply: replace(reply, body=PAGE[:HEAD_BYTES]))
    with pytest.raises(RefusedError, match="answered with a web page instead of a file"):
        get()
    assert get.nothing()
    assert len(archive.asked) == 1


@pytest.mark.parametrize("number", [0, 2], ids=["at first", "later"])
def test_a_web_page_in_place_of_a_range_is_neither_a_file_nor_a_change(
    get: Getting, archive: FileServer, number: int
) -> None:
    archive.spoil = later(number, lambda reply: Reply(200, PAGE, {"Content-Type": "text/html"}))
    with pytest.raises(RefusedError, match="answered with a web page instead of a file"):
        get(attempts=2)
    assert get.nothing()
    archive.spoil = lambda number, asked, reply: reply
    archive.forget()
    get()
    assert get.done()
    assert archive.ranges() == ALL[number:]


@pytest.mark.parametrize("status", [400, 404, 410, 416])
def test_a_refusal_of_the_first_range_is_final(get: Getting, archive: FileServer, status: int) -> None:
    archive.spoil = later(0, lambda reply: Reply(status))
    with pytest.raises(ResourceError, match=f"answered {status}"):
        get(attempts=3)
    assert len(archive.asked) == 1
    assert get.nothing()


# servers in trouble


FAILURES: dict[str, Reply | None] = {
    "500": Reply(500),
    "503": Reply(503, b"later"),
    "503 with a pause": Reply(503, headers={"Retry-After": "1"}),
    "429 with a pause": Reply(429, headers={"Retry-After": "1"}),
    "429": Reply(429),
    "a reset": None,
}


@pytest.mark.parametrize("number", [0, 2], ids=["at first", "later"])
@pytest.mark.parametrize("name", FAILURES)
def test_a_passing_failure_costs_one_more_request(
    get: Getting, archive: FileServer, name: str, number: int
) -> None:
    moments: list[float] = []

    def fail(at: int, asked: Asked, reply: Reply) -> Reply:
        moments.append(time.monotonic())
        reset = replace(reply, body=b"", announced=len(reply.body), then="reset")
        return (FAILURES[name] or reset) if at == number else reply

    archive.spoil = fail
    get()
    assert get.done()
    assert archive.ranges() == [*ALL[: number + 1], *ALL[number:]]
    if "pause" in name:
        assert moments[number + 1] - moments[number] >= 1


@pytest.mark.parametrize("then", ["close", "reset"])
def test_a_range_that_is_cut_short_is_asked_for_again(
    get: Getting, archive: FileServer, then: Literal["close", "reset"]
) -> None:
    def cut(at: int, asked: Asked, reply: Reply) -> Reply:
        half = len(reply.body) // 2
        return (
            replace(reply, body=reply.body[:half], announced=len(reply.body), then=then) if at == 2 else reply
        )

    archive.spoil = cut
    get()
    assert get.done()
    assert archive.ranges() == [*ALL[:3], *ALL[2:]]
    assert sum(get.progress) == HEAD_BYTES + len(selected(DATA))


def test_a_short_body_of_the_right_range_is_no_range(get: Getting, archive: FileServer) -> None:
    archive.spoil = later(2, lambda reply: replace(reply, body=reply.body[:-1]))
    with pytest.raises(UnavailableError, match="ended after 49,999 of 50,000 bytes"):
        get()
    assert get.nothing()
    assert archive.ranges()[:5] == [*ALL[:2], *[ALL[2]] * 3]


def test_a_server_that_keeps_failing_is_given_up_and_what_came_stays(
    get: Getting, archive: FileServer
) -> None:
    archive.spoil = later(2, lambda reply: Reply(503))
    with pytest.raises(UnavailableError, match="answered 503"):
        get()
    assert archive.ranges()[:5] == [*ALL[:2], *[ALL[2]] * 3]
    archive.forget()
    archive.spoil = lambda number, asked, reply: reply
    get()
    assert get.done()
    assert archive.ranges() == ALL[2:]


def test_a_longer_pause_is_not_waited_for_within_a_file(get: Getting, archive: FileServer) -> None:
    archive.spoil = later(1, lambda reply: Reply(503, headers={"Retry-After": "50"}))
    with pytest.raises(UnavailableError, match="answered 503"):
        get()
    assert archive.ranges() == ALL[:2]


@pytest.mark.parametrize("number", [0, 2], ids=["at first", "later"])
def test_a_silent_server_is_not_asked_again_at_once(get: Getting, archive: FileServer, number: int) -> None:
    archive.spoil = later(
        number, lambda reply: replace(reply, body=reply.body[:100], announced=len(reply.body), then="silence")
    )
    get.seconds = 0.5
    with pytest.raises(UnavailableError, match="too slow"):
        get()
    assert get.nothing()
    assert archive.ranges().count(ALL[number]) == 1
    get.seconds = 5
    archive.forget()
    archive.spoil = lambda number, asked, reply: reply
    get()
    assert get.done()
    assert archive.ranges() == ALL[number:]


# redirects


@pytest.fixture
def redirected(archive: FileServer, storage: FileServer) -> str:
    """The address at the storage that the archive redirects to."""
    url = storage.url(f"/signed?{SIGNATURE}", "localhost")
    archive.redirects[PATH] = url
    return url


@pytest.mark.usefixtures("redirected")
def test_one_redirect_serves_all_ranges_and_the_login_stays_behind(
    get: Getting, archive: FileServer, storage: FileServer
) -> None:
    get()
    assert get.done()
    assert archive.ranges() == ALL[:1]
    assert storage.ranges() == ALL
    assert {asked.path for asked in storage.asked} == {f"/signed?{SIGNATURE}"}
    assert "secret-token" in archive.heard
    assert "secret-token" not in storage.heard
    assert "Authorization" not in storage.heard


@pytest.mark.usefixtures("redirected")
@pytest.mark.parametrize("status", [400, 403, 404])
def test_an_expired_address_is_asked_for_once_again(
    get: Getting, archive: FileServer, storage: FileServer, status: int
) -> None:
    fresh = f"/signed?{SIGNATURE}-2"

    def expire(at: int, asked: Asked, reply: Reply) -> Reply:
        if at < 2:
            return reply
        archive.redirects[PATH] = storage.url(fresh, "localhost")
        return reply if asked.path == fresh else Reply(status, f"{SIGNATURE} has expired".encode())

    storage.spoil = expire
    get()
    assert get.done()
    assert archive.ranges() == [ALL[0], ALL[2]]
    assert storage.ranges() == [*ALL[:3], *ALL[2:]]
    assert [asked.path for asked in storage.asked[3:]] == [fresh] * 3
    assert "secret-token" not in storage.heard


@pytest.mark.usefixtures("redirected")
@pytest.mark.parametrize("lie", ["refused", "another range", "a page", "cut", "reset", "503", "silent"])
def test_no_error_or_log_shows_the_signature(
    get: Getting,
    archive: FileServer,
    storage: FileServer,
    lie: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    words = f"no: http://localhost/signed?{SIGNATURE}".encode()
    replies: dict[str, Callable[[Reply], Reply]] = {
        "refused": lambda reply: Reply(403, words),
        "another range": lambda reply: _moved(reply, 1, 1),
        "a page": lambda reply: Reply(200, b"<html>" + words),
        "cut": lambda reply: replace(reply, body=b"", announced=9, then="close"),
        "reset": lambda reply: Reply(206, then="reset"),
        "503": lambda reply: Reply(503, words),
        "silent": lambda reply: replace(reply, body=b"", announced=len(reply.body), then="silence"),
    }
    get.seconds = 1
    storage.spoil = later(2, replies[lie])
    caplog.set_level(0)
    with pytest.raises(ResourceError) as error:
        get()
    everything = (
        told(error.value)
        + "".join(get.said)
        + "".join(record.getMessage() for record in caplog.records if not record.name.startswith("urllib3"))
    )
    assert "B02.tif" in everything
    assert "secret" not in everything
    assert get.nothing()


def test_a_redirect_on_the_same_host_keeps_the_login(get: Getting, archive: FileServer) -> None:
    """Each range takes it, as there is no address that needs no login."""
    archive.has(DATA, "/elsewhere")
    archive.redirects[PATH] = "/elsewhere"
    archive.spoil = lambda number, asked, reply: reply if asked.login else Reply(401)
    get()
    assert get.done()
    assert [asked.path for asked in archive.asked] == [PATH, "/elsewhere"] * len(ALL)
    assert {asked.login for asked in archive.asked} == {f"Bearer {TOKEN}"}


def test_an_address_that_requests_spells_otherwise_keeps_the_login(get: Getting, archive: FileServer) -> None:
    archive.has(DATA, "/a~b/B02.tif")
    get.url = archive.url("/a%7Eb/B02.tif")
    archive.spoil = lambda number, asked, reply: reply if asked.login else Reply(401)
    get()
    assert get.done()
    assert len(archive.asked) == len(ALL)


# ranges that are checked leaf by leaf


@pytest.fixture
def verified(get: Getting, tmp_path: Path) -> Iterator[Getting]:
    """A file whose CID's links a gateway knows; of the leaves it gives none."""
    path = tmp_path / "band"
    path.write_bytes(DATA)
    get.cid = file_cid(path)
    world = World({get.cid: path})
    with serving(world.app()) as world.address:
        get.nodes = [IpfsSource(Gateway(world.gateway("good"), 10))]
        get.world = world
        yield get


def leaves_of(*ranges: tuple[int, int]) -> list[tuple[int, int]]:
    """The ranges extended to leaves, without those of the head, joined."""
    numbers = {at for start, stop in ranges for at in range(start // KUBO_CHUNK, -(-stop // KUBO_CHUNK))} - {
        0
    }
    return parts_module.merged((at * KUBO_CHUNK, min((at + 1) * KUBO_CHUNK, SIZE)) for at in numbers)


LEAVES = asked_for((0, KUBO_CHUNK), *leaves_of(*RANGES))


def test_ranges_are_leaves_each_of_which_is_checked(verified: Getting, archive: FileServer) -> None:
    assert verified() == FetchResult("LP DAAC", True, True)
    assert verified.done()
    assert verified.selection.written == [(verified.cid, True)]
    assert verified.world.asked["good"] == 1, "the root alone"
    assert archive.ranges() == LEAVES
    assert {asked.tag for asked in archive.asked} == {""}, "the CID is the version"


@pytest.mark.parametrize("tag", ["", 'W/"1"'])
def test_leaves_need_no_etag(verified: Getting, archive: FileServer, tag: str) -> None:
    archive.has(DATA, tag=tag)
    assert verified().verified
    assert verified.done()
    assert archive.ranges() == LEAVES


@pytest.mark.parametrize("at", [KUBO_CHUNK, 2 * KUBO_CHUNK - 1, 7 * KUBO_CHUNK + 5, SIZE - 1])
def test_a_wrong_byte_in_a_leaf_is_refused_and_nothing_of_the_leaf_stays(
    verified: Getting, archive: FileServer, at: int
) -> None:
    wrong = bytearray(DATA)
    wrong[at] ^= 1
    archive.has(bytes(wrong))
    nodes, verified.nodes = verified.nodes, []
    verified.nodes = [_TreeOnly(nodes[0])]
    start = at // KUBO_CHUNK * KUBO_CHUNK
    with pytest.raises(
        IntegrityError, match=f"bytes {start:,} to {min(start + KUBO_CHUNK, SIZE):,} are not "
    ):
        verified()
    assert verified.nothing()
    archive.has(DATA)
    archive.forget()
    assert verified().verified
    assert verified.done()
    first = next(asked for asked in archive.ranges())
    assert int(re.findall("[0-9]+", first)[0]) == start, "the leaves before it were kept"


class _TreeOnly:
    """A source that has links of CIDs and no file."""

    name, host, by_cid = "links", "", True

    def __init__(self, source: Source) -> None:
        self._source = source

    def offers(self, request: FileRequest) -> bool:
        return True

    def tree(self, *arguments: Any) -> Any:
        return self._source.tree(*arguments)

    def fetch(self, *arguments: Any, **named: Any) -> bool:
        raise ResourceError("has no files")

    fetch_parts = fetch


def test_a_long_range_is_asked_for_in_leaves(verified: Getting, archive: FileServer, tmp_path: Path) -> None:
    size = 10_000_000
    data = file_of([(1_000_000, size)], size)
    archive.has(data)
    path = tmp_path / "long"
    path.write_bytes(data)
    verified.cid = file_cid(path)
    with serving(World({verified.cid: path}).app()) as address:
        verified.nodes = [IpfsSource(Gateway(f"{address}/good", 10))]
        assert verified(limit=size).source == "LP DAAC"
    assert verified.done(data)
    edges = [3 * KUBO_CHUNK, 19 * KUBO_CHUNK, 35 * KUBO_CHUNK, size]
    assert archive.ranges() == asked_for((0, KUBO_CHUNK), *itertools.pairwise(edges))


def test_another_version_than_that_of_the_cid_is_refused(verified: Getting, archive: FileServer) -> None:
    verified.nodes = [_TreeOnly(verified.nodes[0])]
    archive.has(NEWER)
    with pytest.raises(
        IntegrityError, match=f"has {len(NEWER):,} bytes, and the file of {verified.cid} 3,000,000"
    ):
        verified()
    assert verified.nothing()
    assert len(archive.asked) == 1


def test_the_gateway_gives_the_leaves_that_lp_daac_has_wrong(verified: Getting, archive: FileServer) -> None:
    """And those that came from LP DAAC are not asked for again."""
    wrong = bytearray(DATA)
    wrong[SIZE - 1] ^= 1
    archive.has(bytes(wrong))
    assert verified() == FetchResult(verified.nodes[0].name, True, True)
    assert verified.done()
    assert sum(verified.progress) == sum(
        stop - start for start, stop in [(0, KUBO_CHUNK), *leaves_of(*RANGES)]
    )
    # for the links, and for the one leaf
    assert verified.world.asked["good"] <= 3


def test_a_tree_that_nobody_has_leaves_the_ranges_unverified(verified: Getting, archive: FileServer) -> None:
    verified.nodes = []
    assert verified() == FetchResult("LP DAAC", False, True)
    assert verified.done()
    assert archive.ranges() == ALL


def test_a_host_that_limits_its_rate_gives_all_files_in_the_end(
    archive: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three files at once; after every fourth answer the host asks for a pause, longer than one within a file."""
    monkeypatch.setattr(parts_module, "_MAX_PAUSE_SECONDS", 0.0)
    paths = [f"/scene/{name}.tif" for name in ("a", "b", "c")]
    for path in paths:
        archive.has(DATA, path)
    served = 0
    lock = threading.Lock()

    def limit(number: int, asked: Asked, reply: Reply) -> Reply:
        nonlocal served
        with lock:
            served += 1
            return Reply(429, headers={"Retry-After": "1"}) if served % 5 == 0 else reply

    archive.spoil = limit
    source = LpDaac(token=TOKEN, timeout_seconds=5, hosts=["127.0.0.1"])
    sources = Sources([source], 2, Memory(4))

    def fetch(path: str) -> bytes:
        out = tmp_path / path.rsplit("/", 1)[-1]
        with ThreadPoolExecutor(2) as pool:
            request = FileRequest(f"scene/{out.name}", "", archive.url(path), LIMIT)
            selection = NamedRanges(pool)
            partials = PartialFiles(tmp_path / "partials")
            sources.obtain(request, out, partials, lambda path, got: None, print, selection=selection)
        return out.read_bytes()

    with ThreadPoolExecutor(3) as files:
        assert list(files.map(fetch, paths)) == [selected(DATA)] * 3
    # nothing that came was requested again
    good = [asked for number, asked in enumerate(archive.asked, 1) if number % 5]
    assert len(good) == 3 * (1 + len(RANGES))
