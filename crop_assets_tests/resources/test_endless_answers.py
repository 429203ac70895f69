"""Servers that send for ever, quickly or slowly, what is of no use: each is given up, soon and with little memory."""

import contextlib
import datetime as dt
import gzip
import hashlib
import itertools
import json
import re
import socket
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from crop_assets_tests.resources.nass import Nass
from crop_assets_tests.resources.nass import nass as nass
from resources.cdl import CdlReleases, archive_links
from resources.errors import IntegrityError, ResourceError, SlowError, TryAgainError
from resources.http import RestrictedSession, get_bytes, get_file, in_time, mount, new_session, same_site
from resources.ipfs import varint
from resources.ipfs.car import car_of, write_car
from resources.ipfs.cid import Cid
from resources.ipfs.nodes import Gateway, IpfsSource, KuboNode
from resources.ipfs.retrieve import Retrieval
from resources.ipfs.unixfs import FileDag
from resources.json_values import parse
from resources.pace import deadline, max_seconds
from resources.resume import PartialFiles
from resources.sources import FileRequest
from resources.stac import IpfsStac, SceneStac
from resources.words import document, server_words

PATIENCE = 0.5
MIB = 1 << 20
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n"

Answers = Callable[[bytes], Iterator[bytes]]


def _whole_request(connection: socket.socket) -> bytes:
    """A request with its body: a connection that is closed with unread bytes resets, and the answer may be lost."""
    request = b""
    while piece := connection.recv(1 << 16):
        request += piece
        head, end, body = request.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: *([0-9]+)", head, re.IGNORECASE)
        if end and len(body) >= (int(length[1]) if length else 0):
            break
    return request


class Endless:
    """A server that answers each request with what `answer` makes of its first line, as long as the client stays."""

    def __init__(self, answer: Answers) -> None:
        self.answer = answer
        self.sent = 0
        self.asked: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._ended = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while not self._ended.is_set():
                connection, _ = self._listener.accept()
                threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            request = _whole_request(connection)
            self.asked.append(request.split(b"\r\n")[0])
            for piece in self.answer(request):
                if self._ended.is_set():
                    return
                connection.sendall(piece)
                self.sent += len(piece)

    def stop(self) -> None:
        self._ended.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def endless() -> Iterator[Callable[[Answers], Endless]]:
    running: list[Endless] = []

    def start(answer: Answers) -> Endless:
        running.append(Endless(answer))
        return running[-1]

    yield start
    for server in running:
        server.stop()


@contextlib.contextmanager
def within(most_bytes: int = 64 * MIB) -> Iterator[None]:
    """In memory; that the work ends at all is what the servers without an end show."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most_bytes
    finally:
        tracemalloc.stop()


def for_ever(start: bytes, drop: bytes, pause: float = 0.02) -> Answers:
    """An answer that begins with `start`, and then sends `drop` each `pause` seconds; without pause in large pieces."""

    def answer(_: bytes) -> Iterator[bytes]:
        yield start
        while True:
            yield drop if pause else drop * (1 + (1 << 16) // len(drop))
            time.sleep(pause)

    return answer


EMPTY_DEFLATE = zlib.compressobj(wbits=31).flush(zlib.Z_SYNC_FLUSH)
"""The head of a gzip stream, with an empty block."""
EMPTY_BLOCK = b"\x00\x00\x00\xff\xff"


def chunk(data: bytes, extension: bytes = b"") -> bytes:
    return b"%x%s\r\n%s\r\n" % (len(data), extension, data)


# each at 6 kB a second or more, above the slowest that is waited for
USELESS = {
    "informational answers": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 6),
    "informational answers with headers": (b"", b"HTTP/1.1 100 Continue\r\nX-A: " + b"x" * 100 + b"\r\n\r\n"),
    "headers": (OK, b"X-Long: " + b"x" * 120 + b"\r\n"),
    "one long header": (OK + b"X-Long: ", b"x" * 130),
    "a status line": (b"HTTP/1.1 200 ", b"O" * 130),
    "extensions of one chunk": (CHUNKED + b"\r\n5;", b"x=y;" * 40),
    "extensions of each chunk": (CHUNKED + b"\r\n", chunk(b"x", b";" + b"e" * 2000) * 2),
    "trailers": (CHUNKED + b"\r\n" + chunk(b"x" * 9) + b"0\r\n", b"X-Trailer: " + b"x" * 120 + b"\r\n"),
    "a drip of bytes": (OK + b"\r\n", b"x"),
}
PACKED = {
    "empty blocks of deflate": (OK + b"Content-Encoding: gzip\r\n\r\n" + EMPTY_DEFLATE, EMPTY_BLOCK * 30),
    "empty members of gzip": (OK + b"Content-Encoding: gzip\r\n\r\n", gzip.compress(b"") * 8),
    "what follows the end of gzip": (
        OK + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(b""),
        b"\0" * 200,
    ),
}


@pytest.mark.parametrize("pause", [0.02, 0.0], ids=["slowly", "quickly"])
@pytest.mark.parametrize("kind", USELESS)
def test_a_file_of_useless_bytes_is_given_up(
    endless: Callable[[Answers], Endless], tmp_path: Path, kind: str, pause: float
) -> None:
    if kind == "a drip of bytes" and not pause:
        return
    start, drop = USELESS[kind]
    server = endless(for_ever(start, drop, pause))
    with (
        within(),
        RestrictedSession(same_site) as session,
        pytest.raises((TryAgainError, IntegrityError)) as error,
    ):
        get_file(session, f"{server.address}/a.tif", PATIENCE, 64 * MIB, tmp_path / "a")
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("pause", [0.02, 0.0], ids=["slowly", "quickly"])
@pytest.mark.parametrize("kind", [*USELESS, *PACKED])
def test_a_document_of_useless_bytes_is_given_up(
    endless: Callable[[Answers], Endless], kind: str, pause: float
) -> None:
    if kind == "a drip of bytes" and not pause:
        return
    start, drop = (USELESS | PACKED)[kind]
    server = endless(for_ever(start, drop, pause))
    with (
        within(),
        new_session(attempts=2) as session,
        pytest.raises((TryAgainError, IntegrityError)),
    ):
        get_bytes(session, f"{server.address}/a", PATIENCE, 4 * MIB)


@pytest.mark.parametrize("node", [Gateway, KuboNode])
@pytest.mark.parametrize("kind", USELESS)
def test_a_node_that_sends_useless_bytes_is_given_up(
    endless: Callable[[Answers], Endless], tmp_path: Path, node: type[Gateway] | type[KuboNode], kind: str
) -> None:
    start, drop = USELESS[kind]
    start = start.replace(OK, OK + b"Content-Type: application/vnd.ipld.car\r\n")
    server = endless(for_ever(start, drop))
    with within(), pytest.raises((TryAgainError, IntegrityError)):
        fetch_from(node(server.address, PATIENCE), Cid.of(b"wanted", "raw"), tmp_path)


@pytest.mark.parametrize("kind", ["block", "import", "file", "document"])
def test_what_comes_byte_by_byte_is_refused_before_it_costs_much(
    endless: Callable[[Answers], Endless], tmp_path: Path, kind: str
) -> None:
    head = CHUNKED + b"Content-Type: application/vnd.ipld.raw\r\n\r\n"
    server = endless(for_ever(head, chunk(b"x"), 0))
    ask = {
        "block": lambda: Gateway(server.address, 5).block(ROOT),
        "import": lambda: KuboNode(server.address, 5).import_car(iter([HEADER]), ROOT),
        "file": lambda: get_file(new_session(1), f"{server.address}/a", 5, 64 * MIB, tmp_path / "a"),
        "document": lambda: get_bytes(new_session(1), f"{server.address}/a", 5, 4 * MIB),
    }[kind]
    with pytest.raises(IntegrityError, match=r"sent 10,0[0-9]+ bytes in 10,0[0-9]+ pieces"):
        ask()


def test_pieces_of_a_slow_network_are_taken_however_many_they_are() -> None:
    assert sum(map(len, in_time(iter([bytes(536)] * 30_000), 60))) == 536 * 30_000
    assert sum(map(len, in_time(iter([b"x"] * 10_000), 60))) == 10_000


def test_a_file_may_take_as_long_as_its_size_deserves(
    endless: Callable[[Answers], Endless], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hours = [max_seconds(size) / 3600 for size in (0, 20_000_000, 256 * MIB, 2_000_000_000, 20 << 30)]
    assert [round(each, 2) for each in hours] == [0.17, 0.34, 2.44, 6, 6]
    monkeypatch.setattr("resources.http.max_seconds", lambda max_bytes: max_bytes / 20_000)
    for announced in (b"Content-Length: 20000\r\n", b""):
        # some 10 kB a second
        server = endless(for_ever(OK + announced + b"\r\n", b"x" * 200, 0.02))
        with new_session(1) as session, pytest.raises(SlowError, match="not at its end after"):
            get_file(session, f"{server.address}/a", 5, 20_000, tmp_path / "a")


@pytest.mark.parametrize("status", [503, 404, 302])
@pytest.mark.parametrize(
    "framing", [b"", b"Content-Length: 999999999999\r\n", b"Transfer-Encoding: chunked\r\n"]
)
def test_the_endless_body_of_an_error_is_not_read(
    endless: Callable[[Answers], Endless], status: int, framing: bytes
) -> None:
    head = b"HTTP/1.1 %d No\r\nRetry-After: 0\r\nLocation: /b\r\n%s\r\n" % (status, framing)
    server = endless(for_ever(head, chunk(b"x" * 1000), 0))
    with within(8 * MIB), new_session(attempts=3) as session, pytest.raises(ResourceError):
        get_bytes(session, f"{server.address}/a", 5, 4 * MIB)
    assert len(server.asked) == {503: 3, 404: 1, 302: 6}[status]


@pytest.mark.parametrize("kind", ["quickly", "slowly", "packed", "without an end of headers"])
def test_a_session_of_a_library_is_bounded_too(endless: Callable[[Answers], Endless], kind: str) -> None:
    bomb = OK + b"Content-Encoding: gzip\r\nConnection: close\r\n\r\n" + gzip.compress(bytes(512 * MIB), 1)
    server = endless(
        {
            "quickly": for_ever(OK + b"\r\n", b"x" * 1000, 0),
            "slowly": for_ever(OK + b"\r\n", b"x" * 10, 0.02),
            "packed": lambda _: iter([bomb]),
            "without an end of headers": for_ever(OK, b"X-A: b\r\n", 0.02),
        }[kind]
    )
    with within(), requests.Session() as session:
        mount(session)
        with pytest.raises((requests.RequestException, IntegrityError, SlowError)):
            session.get(server.address, timeout=PATIENCE)


def test_a_login_answer_that_is_whole_is_read_as_requests_reads_it(
    endless: Callable[[Answers], Endless],
) -> None:
    server = endless(lambda _: iter([OK + b"Content-Length: 9\r\n\r\n", b'{"a": ', b"[1]}"]))
    with requests.Session() as session:
        mount(session)
        answer = session.get(server.address, timeout=5)
    with pytest.raises(ValueError, match="Expecting"):
        answer.json()
    assert answer.content == b'{"a": [1]'


def test_redirects_together_take_no_longer_than_one_answer(endless: Callable[[Answers], Endless]) -> None:
    def answer(request: bytes) -> Iterator[bytes]:
        time.sleep(0.9)
        yield b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: /x%d\r\n\r\n" % time.monotonic_ns()

    server = endless(answer)
    with RestrictedSession(same_site) as session, pytest.raises(SlowError):
        get_bytes(session, f"{server.address}/a", 2.0, 99)
    assert len(server.asked) <= 3


ODD_HEADERS = {
    "Retry-After": ["9" * 5000, "Mon, 01 Jan 99999 00:00:00 GMT", "-5", "\u00b2", "Mon, " * 3000],
    "Content-Length": ["9" * 5000, "-1", "1, 2", "1_0", "\u00b2", "2, 2", "+2", "0x2"],
    "Transfer-Encoding": ["chunked, chunked", "gzip, chunked", "x" * 9999],
    "Content-Encoding": ["gzip, " * 99, "\xff"],
    "Content-Range": ["bytes 0-" + "9" * 5000 + "/*", "bytes -", "\xff"],
    "Content-Type": ["text/html; charset=" + "x" * 9999, "; ; =", "\xff/\xfe", 'multipart/x; boundary="'],
    "Set-Cookie": [
        "a=b; max-age=" + "9" * 5000,
        "a=b; expires=" + "9" * 5000,
        "a=b; expires=Mon, 01 Jan 99999 00:00:00 GMT",
        "a=b; domain=\xff; path=\xff; port=" + "9" * 5000,
        "a=b; version=" + "9" * 5000,
        "; ; ==;",
    ],
    "Location": [
        "http://127.0.0.1:" + "9" * 5000 + "/",
        "\xff\xfe",
        "//[",
        "http://[::1%/",
        "?" + "%" * 5000,
        "#" * 5000,
    ],
    "ETag": ["\x1b[31m", '"' + "\xff" * 999 + '"'],
    "Last-Modified": ["Mon, 01 Jan 99999 00:00:00 GMT", "9" * 5000],
    "Connection": ["\xff" * 99],
    "\xff\xfe": ["x"],
    "Link": ["<" * 9999],
}


@pytest.mark.parametrize("status", [200, 206, 302, 401, 407, 416, 503])
@pytest.mark.parametrize("header", ODD_HEADERS)
def test_no_header_makes_an_error_of_a_library(
    endless: Callable[[Answers], Endless], tmp_path: Path, header: str, status: int
) -> None:
    head = f"HTTP/1.1 {status} x\r\n{header}: ".encode("latin-1")
    values = [
        value.encode("utf-8" if header in ("Retry-After", "Content-Length") else "latin-1")
        for value in ODD_HEADERS[header]
    ]
    said = [b""]
    server = endless(lambda _: iter([head + said[0] + b"\r\n\r\n2\r\n{}\r\n0\r\n\r\n"]))
    with new_session(attempts=1) as session, new_session(attempts=2) as again:
        for said[0] in values:
            with contextlib.suppress(ResourceError):
                get_bytes(session, f"{server.address}/a", 5, 4 * MIB)
            with contextlib.suppress(ResourceError):
                get_file(session, f"{server.address}/a", 5, 4 * MIB, tmp_path / "a")
            # a pause that the server asks for is not waited for
            with contextlib.suppress(ResourceError), deadline(time.monotonic() + 0.3):
                get_bytes(again, f"{server.address}/a", 5, 4 * MIB)
            with contextlib.suppress(ResourceError):
                Gateway(server.address, 5).block(ROOT)
            with contextlib.suppress(ResourceError), deadline(time.monotonic() + 0.3):
                CdlReleases(source=str(tmp_path), index=f"{server.address}/", attempts=2).releases()


@pytest.mark.parametrize(
    "size", [b"-5", b"+2", b"1_0", b"f" * 5000, b" ", b"\xff", b"2;" + b"x" * 5000, b"0x2"]
)
def test_no_size_of_a_chunk_makes_an_error_of_a_library(
    endless: Callable[[Answers], Endless], size: bytes
) -> None:
    server = endless(lambda _: iter([CHUNKED + b"\r\n" + size + b"\r\n{}\r\n0\r\n\r\n"]))
    with new_session(attempts=1) as session, contextlib.suppress(ResourceError):
        get_bytes(session, f"{server.address}/a", 5, 4 * MIB)


def fetch_from(node: Gateway | KuboNode, root: Cid, tmp_path: Path) -> None:
    wanted = FileRequest("B02.tif", str(root), "", 64 * MIB)
    IpfsSource(node).fetch(wanted, tmp_path / "out", PartialFiles(tmp_path / "partials"), lambda _: None)


def section(cid: Cid, block: bytes) -> bytes:
    return varint.encode(len(bytes(cid)) + len(block)) + bytes(cid) + block


ROOT = Cid.of(b"wanted", "raw")
NEEDLESS: dict[str, Callable[[], Iterator[bytes]]] = {
    "the empty block": lambda: itertools.repeat(section(Cid.of(b"", "raw"), b"") * 4),
    "the empty node": lambda: itertools.repeat(section(Cid.of(b"", "dag-pb"), b"") * 4),
    "the empty identity": lambda: itertools.repeat(section(Cid.split(bytes([1, 0x55, 0, 0]))[0], b"") * 30),
    "one small block again and again": lambda: itertools.repeat(section(Cid.of(b"x", "raw"), b"x") * 4),
    "one large block again and again": lambda: itertools.repeat(
        section(Cid.of(bytes(200), "raw"), bytes(200))
    ),
}
HEADER = next(car_of(ROOT, []))


@pytest.mark.parametrize("pause", [0.02, 0.0], ids=["slowly", "quickly"])
@pytest.mark.parametrize("node", [Gateway, KuboNode])
@pytest.mark.parametrize("kind", NEEDLESS)
def test_blocks_that_add_nothing_are_given_up(
    endless: Callable[[Answers], Endless],
    tmp_path: Path,
    kind: str,
    node: type[Gateway] | type[KuboNode],
    pause: float,
) -> None:
    def answer(_: bytes) -> Iterator[bytes]:
        yield OK + b"Content-Type: application/vnd.ipld.car\r\n\r\n" + HEADER
        for piece in NEEDLESS[kind]():
            yield piece if pause else piece * 100
            time.sleep(pause)

    server = endless(answer)
    wanted = FileRequest("B02.tif", str(ROOT), "", MIB)
    expected = SlowError if pause else (SlowError, IntegrityError)
    with within(), pytest.raises(expected):
        IpfsSource(node(server.address, PATIENCE)).fetch(
            wanted, tmp_path / "out", PartialFiles(tmp_path / "partials"), lambda _: None
        )


@pytest.mark.parametrize("size", [1, 1000, 100_000])
def test_distinct_blocks_without_end_are_given_up(tmp_path: Path, size: int) -> None:
    def blocks() -> Iterator[bytes]:
        yield HEADER
        for number in itertools.count():
            block = b"%d" % number + bytes(size)
            yield section(Cid.of(block, "raw"), block)

    with (
        within(256 * MIB),
        Retrieval(ROOT, tmp_path / "out", MIB) as retrieval,
        pytest.raises((IntegrityError, SlowError)),
    ):
        retrieval.feed(blocks(), 0.2)


def test_a_resumed_file_whose_beginning_comes_again_slowly_is_waited_for(tmp_path: Path) -> None:
    data = hashlib.shake_256(b"a file").digest(10_000)
    (tmp_path / "original").write_bytes(data)
    dag = FileDag(tmp_path / "original", chunk_size=256)
    stream = b"".join(write_car(dag))
    out = tmp_path / "out"
    with Retrieval(dag.root, out, MIB) as retrieval, pytest.raises(TryAgainError):
        retrieval.feed([stream[: len(stream) * 3 // 4]])

    def slowly() -> Iterator[bytes]:
        # some 13 kB a second
        for at in range(0, len(stream), 256):
            time.sleep(0.02)
            yield stream[at : at + 256]

    with Retrieval(dag.root, out, MIB) as retrieval:
        assert retrieval.at > len(data) // 2
        retrieval.feed(slowly(), 0.3)
    assert out.read_bytes() == data


def catalogue(page: Callable[[int], dict[str, Any]], headers: Callable[[int], str] = lambda _: "") -> Answers:
    """A STAC API and granule search whose answers `page` makes, by their number."""
    numbers = itertools.count()

    def answer(request: bytes) -> Iterator[bytes]:
        host = request.lower().split(b"host: ")[1].split(b"\r\n")[0].decode()
        if request.startswith(b"GET /stac "):
            body: dict[str, Any] = {
                "type": "Catalog",
                "id": "a",
                "stac_version": "1.0.0",
                "description": "",
                "conformsTo": ["https://api.stacspec.org/v1.0.0/item-search"],
                "links": [
                    {
                        "rel": "search",
                        "href": f"http://{host}/search",
                        "type": "application/geo+json",
                        "method": "POST",
                    }
                ],
            }
            fields = ""
        else:
            number = next(numbers)
            body, fields = page(number), headers(number)
            body.setdefault("links", [{"rel": "next", "href": f"http://{host}/search?{number}"}])
        data = json.dumps(body).encode()
        yield OK + f"Connection: close\r\nContent-Length: {len(data)}\r\n{fields}\r\n".encode() + data

    return answer


def features(first: int, count: int) -> list[dict[str, Any]]:
    return [
        {"type": "Feature", "id": f"item{number}", "properties": {}} for number in range(first, first + count)
    ]


PAGES: dict[str, tuple[Callable[[int], dict[str, Any]], str]] = {
    "distinct items": (lambda n: {"features": features(n * 1000, 1000)}, "records"),
    "a number matched": (lambda n: {"features": features(n, 1), "numberMatched": 1_300_000}, "records"),
    "one item a page": (lambda n: {"features": features(n, 1)}, "pages"),
    "large items": (
        lambda n: {"features": [{"id": f"item{n}", "properties": {"x": "x" * (15 << 20)}}]},
        "bytes",
    ),
    "many values": (lambda n: {"features": [{"id": f"item{n}", "x": [{}] * 200_000}]}, "values"),
    "values in links": (lambda n: {"features": features(n, 1), "context": [[]] * 200_000}, "values"),
}
YEAR = (dt.date(2022, 1, 1), dt.date(2022, 12, 31))
ANYWHERE = (-180.0, -90.0, 180.0, 90.0)


@pytest.mark.parametrize("kind", PAGES)
def test_a_catalogue_without_end_is_given_up(endless: Callable[[Answers], Endless], kind: str) -> None:
    page, what = PAGES[kind]
    server = endless(catalogue(page))
    stac = IpfsStac(url=f"{server.address}/stac", attempts=1, requests_per_second=10_000)
    with (
        within(96 * MIB),
        pytest.raises(IntegrityError, match=f"answers with [0-9,]+ {what}, but at most [0-9,]+ can be right"),
    ):
        stac.search(ANYWHERE, *YEAR)
    assert len(server.asked) <= 510


def test_a_catalogue_may_answer_so_much_in_all_however_many_ids_are_asked_for(
    endless: Callable[[Answers], Endless],
) -> None:
    server = endless(catalogue(lambda n: {"features": features(n * 400, 400), "links": []}))
    stac = IpfsStac(url=f"{server.address}/stac", attempts=1, requests_per_second=10_000)
    with pytest.raises(IntegrityError, match=r"answers with 2,400 records, but at most 2,100 can be right"):
        stac.items([f"a{number}" for number in range(1000)])
    assert len(server.asked) == 1 + 6


def test_a_granule_search_without_end_is_given_up(endless: Callable[[Answers], Endless]) -> None:
    def page(number: int) -> dict[str, Any]:
        records = [{"umm": {"GranuleUR": f"G{number}-{each}"}} for each in range(100)]
        return {"hits": (number + 2) * 100, "items": records}

    server = endless(catalogue(page, lambda n: f"CMR-Search-After: [{n}]\r\n"))
    stac = SceneStac(
        url=f"{server.address}/stac",
        granule_search=f"{server.address}/search",
        attempts=1,
        requests_per_second=10_000,
    )
    with pytest.raises(IntegrityError, match=r"answers with 1,500 records, but at most 1,460 can be right"):
        stac.granules("HLSS30", "14SNH", *YEAR)
    assert len(server.asked) == 14


@pytest.mark.parametrize(
    "unit",
    [
        "x",
        "<!---->",
        "<!-- ",
        "<message ",
        "<title>",
        "<title",
        "token",
        "sig",
        "pass ",
        "bearer",
        "eyJaaaa.",
        "AKIA",
        "https://",
        "h.h",
        "<script",
        "<?xml ",
        '"a":"',
        '{"a":',
        "[",
        'password"',
        " ",
        "&amp;",
        "a:b@",
        "//",
    ],
)
def test_the_words_of_a_server_are_read_at_once(unit: str) -> None:
    for start in ("", "<html>", "{", "<"):
        text = (start + unit * (20_000 // len(unit))).encode()
        assert len(server_words(text)) < 800
        assert len(document(text)) < 1000


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[" * 100_000, "nested more than 64 deep"),
        ("[" * 100_000 + "]" * 100_000, "nested more than 64 deep"),
        ('{"a":' * 65 + "1" + "}" * 65, "nested more than 64 deep"),
        ("[" * 500 + "]" * 500, "nested more than 64 deep"),
        ("[" + "[]," * 250_000 + "1]", "more than 500,000 values"),
        ("[" + "0," * 500_000 + "1]", "more than 500,000 values"),
        ("[" + "{}," * 250_000 + "1]", "more than 500,000 values"),
        ("", "Expecting value"),
        ("{} {}", "Extra data"),
    ],
)
def test_json_has_bounds(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse(text)
    with pytest.raises(ValueError, match=why):
        parse(text.encode())


def test_odd_values_of_json_cost_themselves_alone() -> None:
    assert parse("[" * 64 + "]" * 64)
    found = parse(
        '{"id": "a", "n": 1, "n": 2, "b": [{"x": {}, "x": 1, "y": -12}], "huge": %s}' % ("9" * 100_000)
    )
    assert found == {"id": "a", "b": [{"y": -12}], "huge": float("inf")}
    assert parse("123456789012345678") == 123456789012345678
    with pytest.raises(UnicodeDecodeError):
        parse(b'"\xff"')


def test_a_page_of_html_is_read_within_bounds(nass: Nass, tmp_path: Path) -> None:
    for unit in (
        "<",
        "</",
        "<!--",
        "<a ",
        "<a href=",
        '<a "',
        "<a href='",
        "<script>",
        "<!doctype [",
        "<a/",
    ):
        assert archive_links(unit * 10_000, "https://nass.example/") == {}
        with pytest.raises(IntegrityError, match=r"has 20,001 HTML tags; the most is 20,000"):
            archive_links(unit * 20_001, "https://nass.example/")
    for start, unit in (("", "&#"), ("<a ", "a="), ("<a ", " \n"), ("<!--", "--!"), ("<a href='", "x")):
        assert archive_links(start + unit * (MIB // len(unit)), "https://nass.example/") == {}
    for page in ("<![" * 99, "<![if" * 9, "<!DOCTYPE a [<!ENTITY % x"):
        nass.page = page
        with pytest.raises(IntegrityError):
            nass.releases(tmp_path).releases()
    nass.page = "".join(f'<a href="{number}/2022_30m_cdls.zip">' for number in range(2000))
    with pytest.raises(IntegrityError, match="more than 1,000 links to archives"):
        nass.releases(tmp_path).releases()


def test_a_release_is_of_a_year_that_there_has_been(nass: Nass, tmp_path: Path) -> None:
    for year in range(1990, 2110):
        nass.put(year, b"x")
    found = nass.releases(tmp_path).releases()
    this_year = time.gmtime().tm_year
    assert [release.year for release in found] == list(range(1997, this_year + 1))
    assert len(nass.asked_for("HEAD")) == len(found)


def test_what_tells_a_release_is_short(nass: Nass, tmp_path: Path) -> None:
    nass.put(2022, b"x")
    nass.etags["/Release/datasets/2022_30m_cdls.zip"] = '"' + "e" * 20_000 + '"'
    (release,) = nass.releases(tmp_path).releases()
    assert len(release.version) < 300
