"""HTTP for all clients here: sessions with limited retries, responses and hosts, and errors by what to do."""

import base64
import contextlib
import email.utils
import http.client
import io
import itertools
import math
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.utils import select_proxy
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.util import Retry

from resources.addresses import AddressError, join, read, same_site, shown
from resources.errors import (
    CutShortError,
    ForbiddenError,
    IntegrityError,
    LoginError,
    NotAFileError,
    NotFoundError,
    RefusedError,
    ResourceError,
    SlowError,
    TryAgainError,
    UnreachableError,
)
from resources.json_values import count
from resources.pace import MAX_SECONDS, Pace, current_deadline, max_seconds
from resources.stop import check, pause
from resources.words import MAX_BYTES, document, server_words

CONNECT_SECONDS = 5.0
RETRIED_STATUSES = (408, 425, 429, 500, 502, 503, 504)
USER_AGENT = "crop-assets"
_MAX_RETRY_AFTER_SECONDS = 60.0
_MAX_DATE = 100
_MIN_SECRET = 4
"""Characters; shorter secrets would match in any text."""
_USUAL_SECONDS = 60.0
"""The timeout of requests without one."""
_MAX_REDIRECTS = 5
_PIECE = 1 << 18
_FREE_PIECES = 10_000
_SMALL_PIECE = 128
"""Least average bytes of a response's pieces after the free ones: network packets have 500 or more."""
WORDS_SECONDS = 3.0
"""How long `first_bytes` reads."""
_WHOLE_PATIENCES = 10
"""Timeouts within which a response other than a file must be complete: ten minutes for a page of 10 MB."""
_MAX_WASTE = 1 << 20
_MAX_WASTE_RATIO = 9
"""Received bytes allowed for each useful one. One-byte chunks take six; chunk extensions can take any number."""
_MAX_WHOLE_BYTES = 4 << 20
"""Limit of a response that is not streamed, such as that of a login."""

Auth = Callable[[requests.PreparedRequest], requests.PreparedRequest]


def retry_rule(attempts: int) -> Retry:
    """Retries with exponential backoff and jitter. Obeys Retry-After up to two minutes."""
    return _StoppableRetry(
        total=attempts - 1,
        backoff_factor=0.5,
        backoff_max=30,
        backoff_jitter=0.5,
        retry_after_max=120,
        status_forcelist=RETRIED_STATUSES,
        allowed_methods=None,
        raise_on_status=False,
    )


def new_session(attempts: int, allowed: Callable[[str, str], bool] | None = None) -> requests.Session:
    """A session for catalogues: retries by `retry_rule`, no login, and redirects that `allowed` permits, as in
    `RestrictedSession`; by default those within the same site.
    """
    return RestrictedSession(allowed or same_site, attempts)


def mount(
    session: requests.Session,
    retries: Retry | int = 0,
    login_hosts: Collection[str] = (),
    plain_hosts: Collection[str] = (),
) -> None:
    """Make a session connect to this machine without a proxy, and name the proxy and the CA bundle in errors.

    Logins are sent only to `login_hosts`, and plain http only to this machine and to `plain_hosts` and their
    subdomains; ports count as in `Address.is_one_of`.
    """
    for scheme in ("https://", "http://"):
        session.mount(scheme, _Adapter(retries, login_hosts, plain_hosts))


class _Adapter(HTTPAdapter):
    """Sends a request or redirect to its host, directly or through the proxy of the environment.

    The last check of every request, as it is sent. Raises AddressError if its address is refused.
    """

    def __init__(
        self, retries: Retry | int, login_hosts: Collection[str], plain_hosts: Collection[str]
    ) -> None:
        super().__init__(max_retries=retries)
        self._login_hosts = login_hosts
        self._plain_hosts = plain_hosts

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        pool: Any = super().get_connection_with_tls_context(*args, **kwargs)
        pool.ConnectionCls = _HttpsConnection if pool.scheme == "https" else _HttpConnection
        return pool

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: Any = None,
        verify: bool | str = True,
        cert: Any = None,
        proxies: Mapping[str, str] | None = None,
    ) -> requests.Response:
        url = request.url or ""
        address = read(url, plain_http=True)
        if not address.is_at(self._plain_hosts):
            read(url)
        # urllib3 sends a proxy its login; requests also adds it to redirects, to whatever host
        request.headers.pop("Proxy-Authorization", None)
        if "Authorization" in request.headers and not address.is_one_of(self._login_hosts):
            raise AddressError(f"no login is sent to {address.place}")
        if address.is_loopback:
            proxies = {}
        # None would wait for ever
        timeout = _seconds(timeout)
        proxy = _shown_proxy(select_proxy(url, proxies) or "")
        if isinstance(verify, str) and url.startswith("https:") and not Path(verify).exists():
            raise RefusedError(
                f"the CA bundle {verify} is not there; set {_bundle_variable()} to one that is, or unset it"
            )
        try:
            with _reading(url):
                answer = super().send(request, stream, timeout, verify, cert, proxies)
        except (requests.RequestException, OSError) as error:
            if proxy:
                error.add_note(f"through the proxy {proxy}")
            if isinstance(error, requests.exceptions.SSLError) and isinstance(verify, str):
                error.add_note(f"with the certificates of {_bundle_variable()}={verify}")
            raise
        vars(answer)["proxy"] = proxy
        if not stream:
            # requests would read it without a limit
            answer._content = _whole(answer, timeout[1])
        return answer


@contextlib.contextmanager
def _reading(url: str) -> Iterator[None]:
    """Turn the errors that libraries raise for malformed numbers, dates and texts of a response into IntegrityError."""
    try:
        yield
    except (ResourceError, requests.RequestException, urllib3.exceptions.HTTPError, OSError):
        raise
    except (ValueError, OverflowError, LookupError, TypeError, AttributeError) as error:
        raise IntegrityError(
            f"{shown(url)} answered with something that cannot be read ({type(error).__name__}); check what is there, "
            "or try again later"
        ) from None


class _Answer(http.client.HTTPResponse):
    """A response with a deadline for each read, however slowly bytes come: its status line and headers (a proxy's too)
    within the timeout of the request, and then what `_read` requests. Raises TimeoutError.
    """

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self._raw = _RawAnswer(self.fp.detach(), sock)
        self.fp = io.BufferedReader(self._raw)

    @property
    def received(self) -> int:
        """Bytes received so far, with framing and compressed as sent."""
        return self._raw.received

    def wait_until(self, until: float) -> None:
        self._raw.until = until


class _RawAnswer(io.RawIOBase):
    """The bytes of a socket until a moment of `time.monotonic`, or until the run is stopped."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket) -> None:
        self._raw, self._sock = raw, sock
        patience = sock.gettimeout()
        self.until = math.inf if patience is None else time.monotonic() + patience
        self.received = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        check()
        left = min(self.until, current_deadline()) - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        patience = self._sock.gettimeout()
        self._sock.settimeout(None if left == math.inf else left)
        try:
            came = self._raw.readinto(buffer)
        finally:
            self._sock.settimeout(patience)
        self.received += came or 0
        return came

    def fileno(self) -> int:
        return self._raw.fileno()

    def close(self) -> None:
        self._raw.close()
        super().close()


class _HttpConnection(HTTPConnection):
    response_class = _Answer


class _HttpsConnection(HTTPSConnection):
    response_class = _Answer


def _shown_proxy(proxy: str) -> str:
    """Host and port of a proxy, without its login."""
    return proxy.rsplit("@", 1)[-1].rsplit("://", 1)[-1].split("/")[0][:100]


def _bundle_variable() -> str:
    return "REQUESTS_CA_BUNDLE" if os.environ.get("REQUESTS_CA_BUNDLE") else "CURL_CA_BUNDLE"


class _StoppableRetry(Retry):
    """Retries whose pauses end when the run is stopped, and that do not read the bodies of errors."""

    def increment(
        self,
        method: str | None = None,
        url: str | None = None,
        response: urllib3.BaseHTTPResponse | None = None,
        *rest: Any,
        **named: Any,
    ) -> Self:
        following = super().increment(method, url, response, *rest, **named)
        if response is not None:
            # urllib3 would read it to its end, however long it is
            response.close()
        return following

    def get_retry_after(self, response: urllib3.BaseHTTPResponse) -> float | None:
        # urllib3's own method fails for some numbers and dates
        return min(_asked_pause(response.headers.get("Retry-After", "")), self.retry_after_max) or None

    def sleep(self, response: urllib3.BaseHTTPResponse | None = None) -> None:
        seconds = (self.get_retry_after(response) if response else None) or self.get_backoff_time()
        if time.monotonic() + seconds >= current_deadline():
            raise urllib3.exceptions.TimeoutError("there is no time left to ask again")
        pause(seconds)


class RestrictedSession(requests.Session):
    """A session that follows only redirects that `allowed` permits, and sends a login only to the first host.

    `allowed(url, target)` returns whether a redirect from `url` to `target` may be followed. The login is the `auth` of
    a request; none is read from a netrc file, and none is sent on to another host. `login_hosts` and `plain_hosts` are
    those of `mount`. The response to a request, with all its redirects, must begin within its timeout, multiplied by
    `attempts`. Use it in one thread at a time.
    """

    def __init__(
        self,
        allowed: Callable[[str, str], bool],
        attempts: int = 1,
        login_hosts: Collection[str] = (),
        plain_hosts: Collection[str] = (),
    ) -> None:
        super().__init__()
        self._attempts = attempts
        self._began = math.inf
        self._allowed = allowed
        self.headers["User-Agent"] = USER_AGENT
        self.headers["Accept-Encoding"] = "identity"
        self.max_redirects = _MAX_REDIRECTS
        # an auth that does nothing keeps requests from reading a netrc file
        self.auth = _no_login
        mount(self, retry_rule(attempts) if attempts > 1 else 0, login_hosts, plain_hosts)

    def request(self, *args: Any, **kwargs: Any) -> requests.Response:
        self._began = time.monotonic()
        return super().request(*args, **kwargs)

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        check()
        connect, patience = _seconds(kwargs.get("timeout"))
        # redirects are sent by this method too
        left = min(self._began + self._attempts * patience, current_deadline()) - time.monotonic()
        if left <= 0:
            raise requests.ReadTimeout("redirects, or requests before this one, took too long")
        # this also parses the cookies of redirects
        with _reading(request.url or ""):
            return super().send(request, **kwargs | {"timeout": (min(connect, left), min(patience, left))})

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        try:
            target = super().get_redirect_target(resp)
        except UnicodeError:
            raise RefusedError("redirects to an address that is not followed: it is not UTF-8") from None
        if target is None:
            return None
        # requests would read the body of a redirect, however long it is
        resp.close()
        resp._content = b""
        try:
            address = join(resp.url, target)
        except AddressError as error:
            raise RefusedError(
                f"{shown(resp.url)} redirects to an address that is not followed: {error}"
            ) from None
        if not self._allowed(resp.url, address.url):
            raise RefusedError(f"redirects to {address.place[:80]}, which is not followed")
        # not the target, which requests would parse and join differently
        return address.url

    def rebuild_auth(self, prepared_request: requests.PreparedRequest, response: requests.Response) -> None:
        old, new = response.request.url or "", prepared_request.url or ""
        if self.should_strip_auth(old, new):  # type: ignore[no-untyped-call]
            for name in ("Authorization", "Cookie"):
                prepared_request.headers.pop(name, None)

    def rebuild_proxies(
        self, prepared_request: requests.PreparedRequest, proxies: dict[str, str] | None
    ) -> dict[str, str]:
        found: dict[str, str] = super().rebuild_proxies(  # type: ignore[no-untyped-call]
            prepared_request, proxies
        )
        prepared_request.headers.pop("Proxy-Authorization", None)
        return found


def _seconds(timeout: Any) -> tuple[float, float]:
    """The timeouts in seconds to connect, and for a response to begin, from a timeout in the form of requests."""
    connect, patience = timeout if isinstance(timeout, tuple) else (timeout, timeout)
    return connect or CONNECT_SECONDS, patience or _USUAL_SECONDS


def _no_login(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


@contextlib.contextmanager
def translate_errors(url: str = "") -> Iterator[None]:
    """Translate the errors of requests and urllib3 into UnreachableError, SlowError, CutShortError and others here.

    Of their messages only the operating system's text is kept, because they repeat URLs that may be signed.
    """
    try:
        yield
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        where = f"{shown(url)} " if url else ""
        notes = "".join(f" {note}" for note in getattr(error, "__notes__", ()))
        through_proxy = "through the proxy" in notes
        if through_proxy and isinstance(error, ValueError):
            raise UnreachableError(
                f"{where}cannot be reached{notes}, whose address cannot be used ({_short(error)}); "
                "check HTTPS_PROXY, HTTP_PROXY and ALL_PROXY"
            ) from None
        if _never_connected(error):
            advice = ""
            if isinstance(error, requests.exceptions.ProxyError) or through_proxy:
                advice = "; check HTTPS_PROXY, HTTP_PROXY and ALL_PROXY, or name the host in NO_PROXY"
            elif isinstance(error, requests.exceptions.SSLError):
                advice = "; where a proxy or firewall signs certificates, set REQUESTS_CA_BUNDLE to its authority's"
            raise UnreachableError(f"{where}cannot be reached{notes} ({_short(error)}){advice}") from None
        if isinstance(error, requests.Timeout) or isinstance(_reason(error), urllib3.exceptions.TimeoutError):
            raise SlowError(f"{where}is too slow{notes} ({_short(error)})") from None
        if isinstance(error, requests.exceptions.ChunkedEncodingError | urllib3.exceptions.ProtocolError):
            raise CutShortError(f"{where}was cut short{notes} ({_short(error)})") from None
        if isinstance(error, requests.TooManyRedirects):
            raise RefusedError(f"{where}redirects more than {_MAX_REDIRECTS} times") from None
        if isinstance(error, requests.exceptions.InvalidURL | requests.exceptions.InvalidSchema):
            raise RefusedError(f"{where}leads to an address that no request can be made of") from None
        raise TryAgainError(f"{where}broke off{notes} ({_short(error)})") from None


def check_status(answer: requests.Response, url: str = "", not_found: bool = False, words: str = "") -> None:
    """Raise the error that a status other than 200 and 206 stands for, with the server's message.

    `words` is that message if it was already read; `not_found` is whether it means that there is no such content.
    """
    status = answer.status_code
    if status in (200, 206):
        return
    words = words or first_words(answer)
    proxy = vars(answer).get("proxy", "")
    said = f"{shown(url)} answered {status}".strip() + (f" {words}" if words else "")
    if proxy and status in (502, 503, 504):
        said += f" (through the proxy {proxy}, which may be what answered)"
    if status == 407:
        raise RefusedError(
            f"{said}: the proxy {proxy or 'before it'} wants a login; put one into HTTP_PROXY or HTTPS_PROXY"
        )
    if status in (404, 410) or not_found:
        raise NotFoundError(said if words else f"{said}: there is no such thing")
    if status in (401, 403):
        kind = LoginError if status == 401 else ForbiddenError
        said = f"{shown(url)} answered {status}".strip()
        raise kind(f"{said}: not allowed with these credentials" + (f": {words}" if words else ""))
    if status in RETRIED_STATUSES or status >= 500:
        # 504: a gateway whose own search has timed out
        raise (SlowError if status == 504 else TryAgainError)(said, retry_after(answer))
    raise RefusedError(said)


def retry_after(answer: requests.Response) -> float:
    """Seconds of the Retry-After header, at most 60."""
    return min(_asked_pause(answer.headers.get("Retry-After", "")), _MAX_RETRY_AFTER_SECONDS)


def _asked_pause(text: str) -> float:
    """The seconds of a Retry-After, which is a number or a date (RFC 9110, 10.2.3); 0 for anything else."""
    text = text.strip()[:_MAX_DATE]
    if text.isascii() and text.isdecimal():
        return float(text)
    try:
        return max(email.utils.parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except (ValueError, OverflowError, OSError):
        return 0.0


def first_words(answer: requests.Response) -> str:
    """The message in the body of an error response, shortened and without secrets."""
    sent = [one.request for one in (answer, *answer.history) if one.request is not None]
    logins = (request.headers.get("Authorization", "") for request in sent)
    return server_words(first_bytes(answer), tuple(login.split(" ", 1)[-1] for login in logins))


def first_bytes(answer: requests.Response) -> bytes:
    """The first 16 KiB of a response, or what comes within WORDS_SECONDS, for an error message."""
    data = bytearray()
    until = time.monotonic() + WORDS_SECONDS
    with contextlib.suppress(Exception):
        _require_asked_encoding(answer)
        while len(data) < MAX_BYTES and time.monotonic() < until:
            piece = _read(answer, MAX_BYTES - len(data), until)
            if not piece:
                break
            data += piece
    return bytes(data)


def require_no_page(answer: requests.Response, data: bytes, what: str, url: str = "") -> None:
    """Raise NotAFileError if a successful response is a web page, by its first bytes or its content type."""
    found = document(data, answer.headers.get("Content-Type", ""))
    if found and (what == "a file" or found.startswith("a web page")):
        raise NotAFileError(f"{shown(url)} answered with {found} instead of {what}".strip())


def body(answer: requests.Response, patience: float, longest: float = MAX_SECONDS) -> Iterator[bytes]:
    """The response's bytes as they arrive, decompressed. Raises SlowError like `Pace`, and IntegrityError for an
    encoding that was not requested, or if framing takes many times more bytes than the content.
    """
    _require_asked_encoding(answer)
    return in_time(_pieces(answer, patience), patience, longest)


def _pieces(answer: requests.Response, patience: float) -> Iterator[bytes]:
    original: Any = answer.raw._original_response
    before, useful = original.received, 0
    while piece := _read(answer, _PIECE, time.monotonic() + patience):
        useful += len(piece)
        received = original.received - before
        if received > _MAX_WASTE + _MAX_WASTE_RATIO * useful:
            raise IntegrityError(f"{shown(answer.url)} sent {received:,} bytes to give {useful:,}")
        yield piece


def _require_asked_encoding(answer: requests.Response) -> None:
    found = answer.headers.get("Content-Encoding", "identity").strip().lower()
    asked = answer.request.headers.get("Accept-Encoding", "").lower().split(",")
    if found not in ("", "identity", *(name.partition(";")[0].strip() for name in asked)):
        raise IntegrityError(
            f"{shown(answer.url)} answered in the encoding {found[:40]!r}, which was not asked for"
        )


def _read(answer: requests.Response, size: int, until: float) -> bytes:
    """The next bytes of a response, b"" at its end, by the deadline `until` even if only framing arrives."""
    original: Any = answer.raw._original_response
    original.wait_until(until)
    piece: bytes = answer.raw.read1(size, decode_content=True)
    return piece


def in_time(pieces: Iterator[bytes], patience: float, longest: float = MAX_SECONDS) -> Iterator[bytes]:
    """The pieces as they arrive. Raises SlowError like `Pace`, counting all bytes as useful, and IntegrityError for
    very many tiny pieces, as each costs as much time as a large one.
    """
    pace = Pace(patience, longest)
    received = 0
    for number, piece in enumerate(pieces):
        check()
        pace.add(len(piece))
        received += len(piece)
        if number > _FREE_PIECES + received // _SMALL_PIECE:
            raise IntegrityError(f"sent {received:,} bytes in {number:,} pieces, which no server does")
        yield piece


def _whole(answer: requests.Response, patience: float, max_bytes: int = _MAX_WHOLE_BYTES) -> bytes:
    """The complete response. Raises like `body`, and IntegrityError above `max_bytes`."""
    data = bytearray()
    try:
        for piece in body(answer, patience, _WHOLE_PATIENCES * patience):
            data += piece
            if len(data) > max_bytes:
                raise IntegrityError(f"{shown(answer.url)} answered more than {max_bytes:,} bytes")
    except BaseException:
        answer.close()
        raise
    return bytes(data)


def get_bytes(session: requests.Session, url: str, timeout: float, max_bytes: int) -> bytes:
    """The body of a GET. Raises like `ask`."""
    return ask(session, "GET", url, timeout, max_bytes)[0]


def ask(
    session: requests.Session,
    method: str,
    url: str,
    timeout: float,
    max_bytes: int,
    headers: Mapping[str, str] | None = None,
    parameters: Mapping[str, Any] | None = None,
    json: Any = None,
    page: bool = False,
) -> tuple[bytes, requests.Response]:
    """The body of a response, of at most `max_bytes`, and the response, for its headers and final URL.

    Accepts gzip, which makes text a tenth as large. The body must be complete within ten times `timeout` seconds.
    Raises NotAFileError for a web page, unless `page` allows one; NotFoundError, ForbiddenError, RefusedError,
    UnavailableError, CutShortError, IntegrityError.
    """
    with (
        translate_errors(url),
        session.request(
            method,
            url,
            headers={"Accept-Encoding": "gzip", **(headers or {})},
            params=parameters,
            json=json,
            timeout=timeout,
            stream=True,
        ) as answer,
    ):
        check_status(answer, url)
        data = _whole(answer, timeout, max_bytes)
        if not page:
            require_no_page(answer, data, "data", url)
        return data, answer


class RateLimit:
    """Limits the requests per second of all threads together; each waits for its turn."""

    def __init__(self, per_second: float) -> None:
        self._between = 1 / per_second
        self._next = 0.0
        self._lock = threading.Lock()

    def wait(self) -> None:
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + self._between
        pause(turn - now)


_STRONG_TAG = re.compile(rb'"[\x21\x23-\x7e]{0,1000}"')


def strong_tag(answer: requests.Response) -> str:
    """The strong ETag of a response (RFC 9110, 8.8.3); "" if it has none."""
    tag = answer.headers.get("ETag", "")
    return tag if _STRONG_TAG.fullmatch(tag.encode(errors="replace")) else ""


def get_file(
    session: requests.Session,
    url: str,
    timeout: float,
    max_bytes: int,
    path: Path,
    auth: Auth | None = None,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Stream a GET into `path`, resuming a partial download of the same version; returns the size in bytes.

    The version is the server's strong ETag (RFC 9110, 8.8.3), kept in `<path>.etag` until the file is complete;
    without one, the file is fetched from its start. Raises IntegrityError above `max_bytes`, CutShortError for fewer
    bytes than announced, NotAFileError for a web page or a message, and otherwise like `check_status` and
    `translate_errors`.
    """
    note = path.with_name(f"{path.name}.etag")
    headers = {"Accept-Encoding": "identity"}
    had, version = 0, ""
    if path.is_file() and note.is_file() and _STRONG_TAG.fullmatch(kept := note.read_bytes()):
        had, version = path.stat().st_size, kept.decode()
    if had:
        headers |= {"Range": f"bytes={had}-", "If-Range": version}
    with (
        translate_errors(url),
        session.get(
            url, headers=headers, timeout=(min(CONNECT_SECONDS, timeout), timeout), stream=True, auth=auth
        ) as answer,
    ):
        tag = answer.headers.get("ETag", "")
        if answer.status_code == 416:
            note.unlink(missing_ok=True)
            raise TryAgainError(
                f"{shown(url)} answered 416 to what is left of it; it is fetched from its start next"
            )
        check_status(answer, url)
        size = had if answer.status_code == 206 else 0
        part = answer.headers.get("Content-Range", "")
        if answer.status_code == 206 and not (had and part.startswith(f"bytes {had}-")):
            # so that the next attempt fetches the complete file
            note.unlink(missing_ok=True)
            raise IntegrityError(f"{shown(url)} answered with another part than the one asked for")
        if answer.status_code == 206 and tag not in ("", version):
            note.unlink()
            raise TryAgainError(f"{shown(url)} has changed; it is fetched from its start next")
        announced = count(answer.headers.get("Content-Length"))
        most = max_bytes - size if announced is None else min(announced, max_bytes - size)
        pieces = body(answer, timeout, max_seconds(most))
        first = next(pieces, b"")
        if not size:
            # before writing, so that a web page does not replace a partial download
            require_no_page(answer, first, "a file", url)
        with path.open("ab") as file:
            file.truncate(size)
            # only now, so that it never describes bytes of another version
            if tag.startswith('"'):
                note.write_text(tag)
            else:
                note.unlink(missing_ok=True)
            for piece in itertools.chain([first], pieces):
                size += len(piece)
                if size > max_bytes:
                    path.unlink()
                    note.unlink(missing_ok=True)
                    raise IntegrityError(f"{shown(url)} answered more than {max_bytes:,} bytes")
                file.write(piece)
                if progress:
                    progress(len(piece))
    note.unlink(missing_ok=True)
    return size


def _never_connected(error: Exception) -> bool:
    if isinstance(
        error, requests.ConnectTimeout | requests.exceptions.SSLError | requests.exceptions.ProxyError
    ):
        return True
    return isinstance(_reason(error), urllib3.exceptions.NewConnectionError)


def _reason(error: Exception) -> object:
    """Why the last retry failed, or the error itself."""
    return getattr(error.args[0] if error.args else None, "reason", error)


def _short(error: Exception) -> str:
    """The operating system's message (or a proxy's) inside an error of requests or urllib3, else the error's class."""
    told = type(error).__name__
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, OSError) and not isinstance(inner, requests.RequestException):
            told = f"{type(inner).__name__}: {inner.strerror or inner}"
        inner = inner.__cause__ or inner.__context__
    return server_words(told.encode(errors="replace"), _proxy_logins()) or type(error).__name__


def _proxy_logins() -> tuple[str, ...]:
    """The logins of the environment's proxies, as written there and as sent."""
    found: set[str] = set()
    for proxy in (value for name, value in os.environ.items() if name.lower().endswith("_proxy")):
        login = proxy.rpartition("@")[0].rpartition("//")[2]
        for spelled in (login, unquote(login)):
            password = spelled.partition(":")[2]
            sent = base64.b64encode(spelled.encode(errors="replace")).decode()
            found |= {one for one in (spelled, password, sent) if len(one) >= _MIN_SECRET}
    return tuple(sorted(found, key=len, reverse=True))
