"""A reverse proxy on loopback that does its worst to some of the answers that go through it.

It stands in front of a real server, so that what a client makes of a fault can be told from what it makes of a
server's own ways. It counts the content that it lets through, by which a test sees what was fetched twice.
"""

import contextlib
import fcntl
import http.client
import itertools
import socket
import struct
import termios
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import urlsplit

Kind = Literal["flip", "cut", "stall", "reset", "endless", "answer"]
_PIECE = 1 << 16
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "date", "server"}
_PATIENCE_SECONDS = 20.0


@dataclass(frozen=True)
class Fault:
    """What happens to an answer: to its content from byte `at` on, or to all of it.

    flip: the byte there is another one. cut: the connection ends in good order. stall: nothing comes any more, and the
    connection stays. reset: the connection breaks off. endless: zeros follow, for ever. answer: the upstream server is
    not asked; `status`, `headers` and `body` are the answer.
    """

    kind: Kind
    at: int = 0
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""


def flip(at: int) -> Fault:
    return Fault("flip", at)


def cut(at: int) -> Fault:
    return Fault("cut", at)


def stall(at: int) -> Fault:
    return Fault("stall", at)


def reset(at: int) -> Fault:
    return Fault("reset", at)


def endless(at: int) -> Fault:
    return Fault("endless", at)


def answer(status: int, body: bytes = b"", **headers: str) -> Fault:
    """An answer of the proxy's own; `Retry_After="1"` stands for the header Retry-After."""
    named = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    return Fault("answer", 0, status, named, body)


@dataclass
class FaultProxy:
    """A running proxy in front of `upstream`. Tests change its fields between requests."""

    upstream: str
    port: int = 0
    faults: list[Fault] = field(default_factory=list)
    """What happens to the next answers, one each; those after them go through as they are."""
    lost: set[str] = field(default_factory=set)
    """Names of headers, in lower case, that requests lose on their way."""
    left_out: set[str] = field(default_factory=set)
    """Names of headers, in lower case, that answers lose on their way."""
    changed: dict[str, str] = field(default_factory=dict)
    """Headers that answers get another value of, by their names in lower case."""
    asked: list[dict[str, str]] = field(default_factory=list)
    """The headers of each request since the last `forget`, with names in lower case, and its target as `:path`."""
    stalled: threading.Event = field(default_factory=threading.Event)
    """Set when an answer has begun to stall."""
    counts: list[list[int]] = field(default_factory=list)
    """Sizes of the pieces of content of each answer since the last `forget`."""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def sent(self) -> int:
        """Bytes of content that were sent on since the last `forget`."""
        return sum(map(sum, self.counts))

    def forget(self) -> None:
        """Count anew. What is still on its way counts no more."""
        self.counts, self.asked = [], []

    def next_fault(self) -> Fault | None:
        with contextlib.suppress(IndexError):
            return self.faults.pop(0)
        return None


@contextlib.contextmanager
def fault_proxy(upstream: str) -> Iterator[FaultProxy]:
    """A proxy in front of the server at the address `upstream`, for as long as the context lasts."""
    proxy = FaultProxy(upstream.rstrip("/"))

    class Handler(_Handler):
        the_proxy = proxy

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    proxy.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    the_proxy: FaultProxy

    def do_GET(self) -> None:
        proxy = self.the_proxy
        proxy.asked.append(
            {name.lower(): value for name, value in self.headers.items()} | {":path": self.path}
        )
        fault = proxy.next_fault()
        with contextlib.suppress(ConnectionError):
            if fault and fault.kind == "answer":
                self._send_head(fault.status, [*fault.headers, ("Content-Length", str(len(fault.body)))])
                self.wfile.write(fault.body)
            else:
                self._pass_on(fault)

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _pass_on(self, fault: Fault | None) -> None:
        place = urlsplit(self.the_proxy.upstream)
        connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=_PATIENCE_SECONDS)
        length = int(self.headers.get("Content-Length", 0))
        lost = _HOP_BY_HOP | self.the_proxy.lost
        passed = {name: value for name, value in self.headers.items() if name.lower() not in lost}
        with contextlib.closing(connection):
            connection.request(
                self.command, place.path + self.path, self.rfile.read(length) if length else None, passed
            )
            answer = connection.getresponse()
            dropped = _HOP_BY_HOP | self.the_proxy.left_out
            endless = fault is not None and fault.kind == "endless"
            headers = [
                (name, self.the_proxy.changed.get(name.lower(), value))
                for name, value in answer.getheaders()
                if name.lower() not in dropped and not (endless and name.lower() == "content-length")
            ]
            chunked = not any(name.lower() == "content-length" for name, _ in headers)
            self._send_head(
                answer.status, [*headers, ("Transfer-Encoding", "chunked")] if chunked else headers
            )
            count: list[int] = []
            self.the_proxy.counts.append(count)
            pieces = iter(lambda: answer.read1(_PIECE), b"")
            for piece in _spoilt(pieces, fault) if fault else pieces:
                # before it is sent: the client may have done with it first
                count.append(len(piece))
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            if fault and fault.kind in ("cut", "stall", "reset"):
                self._end_early(fault.kind)
            elif chunked:
                self.wfile.write(b"0\r\n\r\n")

    def _send_head(self, status: int, headers: list[tuple[str, str]]) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()

    def _end_early(self, kind: Kind) -> None:
        self.close_connection = True
        if kind == "stall":
            self.the_proxy.stalled.set()
            self.connection.settimeout(_PATIENCE_SECONDS)
            with contextlib.suppress(OSError):
                self.connection.recv(1)  # returns when the client has gone away
        elif kind == "reset":
            self._wait_until_all_has_arrived()
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            # at once, without the end of stream that the server would send
            socket.close(self.connection.detach())

    def _wait_until_all_has_arrived(self) -> None:
        """A reset throws away what is on its way."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while time.monotonic() < deadline:
            (left,) = struct.unpack("i", fcntl.ioctl(self.connection, termios.TIOCOUTQ, bytes(4)))
            if not left:
                return
            time.sleep(0.005)


def _spoilt(pieces: Iterator[bytes], fault: Fault) -> Iterator[bytes]:
    """The content as the fault lets it through."""
    passed = 0
    for piece in pieces:
        place = fault.at - passed
        passed += len(piece)
        if not 0 <= place < len(piece):
            yield piece
        elif fault.kind == "flip":
            yield piece[:place] + bytes([piece[place] ^ 1]) + piece[place + 1 :]
        else:
            if place:
                yield piece[:place]
            break
    if fault.kind == "endless":
        yield from itertools.repeat(bytes(_PIECE))
