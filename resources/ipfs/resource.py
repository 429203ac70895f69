"""IpfsContent: files by their CID, from a Kubo node or from public gateways, verified on the way.

Belongs here: which source is asked, when it is asked again, and what each of them said. Does not: the
verification (`resources.ipfs.retrieve`), nor which CIDs a dataset needs.
"""

import contextlib
import dataclasses
import email.utils
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import dagster as dg
import requests
import tenacity
import urllib3
from pydantic import Field, PrivateAttr

from resources.errors import CutShortError, IntegrityError, NotFoundError, ResourceError, UnavailableError
from resources.ipfs.car import CONTENT_TYPE, DFS_CONTENT_TYPE
from resources.ipfs.cid import Cid
from resources.ipfs.retrieve import retrieve

_CONNECT_SECONDS = 5.0
_PROBE_SECONDS = 2.0
_REST_SECONDS = 60.0
_BACKOFF_SECONDS = 0.5
_MAX_BACKOFF_SECONDS = 20.0
_MAX_RETRY_AFTER_SECONDS = 60.0
_MAX_REDIRECTS = 5
_PIECE = 1 << 18
_SLOWEST = 4096
"""Bytes a second below which an answer counts as timed out; a read time-out lets a byte a minute pass."""

_REDIRECTS = (301, 302, 303, 307, 308)
_PASSING = (408, 425, 429)


@dataclasses.dataclass(frozen=True)
class Retrieved:
    """How a file was had: from which source, its size in bytes, and how long it took."""

    source: str
    bytes: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class _Source:
    """One server, named by its address, and the request for one CAR."""

    name: str
    method: str
    url: str
    parameters: dict[str, str]
    content_types: tuple[str, ...]


def _gateway(address: str, root: Cid) -> _Source:
    name = _checked_url(address, "gateways").rstrip("/")
    parameters = {"format": "car", "dag-scope": "entity"}
    return _Source(name, "GET", f"{name}/ipfs/{root}", parameters, (CONTENT_TYPE,))


def _kubo_node(address: str, root: Cid) -> _Source:
    name = _checked_url(address, "kubo_api").rstrip("/")
    # nodes that do not name the type of a CAR call it octets or text
    types = (CONTENT_TYPE, "application/octet-stream", "text/plain")
    return _Source(name, "POST", f"{name}/api/v0/dag/export", {"arg": str(root)}, types)


def _checked_url(url: str, what: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        shown = url.rsplit("@", 1)[-1]
        raise ValueError(f"{what}: {shown!r} must be an http or https URL of a server, without a user name")
    return url


class _TryAgainError(UnavailableError):
    """The source may have the file in a while, `retry_after` seconds from now at the earliest."""

    def __init__(self, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class _UnreachableError(_TryAgainError):
    """No connection to the source came about."""


class _SlowError(_TryAgainError):
    """The source took the request, and then kept silent or dripped."""


class _Session(requests.Session):
    """A session that sends no credentials and leaves redirects, and the reading of their bodies, to us."""

    def __init__(self) -> None:
        super().__init__()
        self.headers["User-Agent"] = "crop-assets"
        # a callable that adds nothing keeps requests from looking for credentials in a netrc file
        self.auth = _no_credentials

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        return None


def _no_credentials(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


class _State:
    """What the threads of one resource share."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.local = threading.local()
        self.node_answers: bool | None = None
        self.unreachable_until: dict[str, float] = {}
        self.slow_until: dict[str, float] = {}

    def session(self) -> requests.Session:
        if not hasattr(self.local, "session"):
            self.local.session = _Session()
        session: requests.Session = self.local.session
        return session


class IpfsContent(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Fetches files by CID. Nothing is contacted before the first `fetch`, which several threads may call."""

    kubo_api: str = Field(
        default="http://127.0.0.1:5001",
        description="RPC address of a Kubo node, asked first where one answers. Empty for none.",
    )
    gateways: list[str] = Field(
        default=["https://trustless-gateway.link", "https://ipfs.io", "https://dweb.link"],
        description="Addresses of trustless gateways, asked in this order. They need not be trusted: each "
        "block is checked against its CID.",
    )
    timeout_seconds: float = Field(
        default=60.0, gt=0, description="Longest wait for the next bytes of an answer, in seconds."
    )
    attempts: int = Field(
        default=4,
        ge=1,
        description="How often the sources are gone through before a fetch fails, at least 1.",
    )

    _state: _State = PrivateAttr(default_factory=_State)

    def fetch(
        self,
        cid: str,
        destination: Path,
        max_bytes: int,
        log: Callable[[str], None] | None = None,
    ) -> Retrieved:
        """Write the file named `cid`, of at most `max_bytes`, to `destination`; every byte is verified.

        After an error `destination` may hold a verified beginning of the file: pass a temporary path,
        and rename it. Each source is asked in turn. Time-outs, resets, cut streams, 408, 425, 429 and 5xx
        lead to another turn, after a growing pause or the server's Retry-After (at most 60 s). For the
        next 60 s, other fetches leave out a source that cannot be connected to, and ask a slow one last.

        Raises IntegrityError where a source gave wrong bytes or the CID cannot be verified, otherwise
        UnavailableError where one may have it later, otherwise NotFoundError. ValueError for an address
        that is none.
        """
        root = Cid.parse(cid)
        started = time.monotonic()
        tell = log or (lambda message: None)
        said: dict[str, ResourceError] = {}
        not_before: dict[str, float] = {}
        sources = self._awake(root, said, tell)

        def turn() -> Retrieved | None:
            for source in list(sources):
                if not_before.get(source.name, 0.0) > time.monotonic():
                    continue
                try:
                    size = self._read(source, root, destination, max_bytes)
                except (_TryAgainError, CutShortError) as error:
                    said[source.name] = error
                    not_before[source.name] = time.monotonic() + getattr(error, "retry_after", 0.0)
                    self._remember(source, error)
                except ResourceError as error:
                    said[source.name] = error
                    sources.remove(source)
                else:
                    return Retrieved(source.name, size, time.monotonic() - started)
                tell(f"IPFS {root}: {source.name}: {said[source.name]}")
            return None

        backoff = tenacity.wait_exponential(
            multiplier=_BACKOFF_SECONDS, max=_MAX_BACKOFF_SECONDS
        ) + tenacity.wait_random(0, _BACKOFF_SECONDS)

        def pause(state: tenacity.RetryCallState) -> float:
            soonest = min(not_before[source.name] for source in sources) - time.monotonic()
            return max(backoff(state), soonest)

        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(self.attempts),
            wait=pause,
            retry=tenacity.retry_if_result(lambda found: found is None and bool(sources)),
            retry_error_callback=lambda state: None,
        )
        found = retrying(turn)
        if found is None:
            raise _verdict(root, said)
        return found

    def _awake(self, root: Cid, said: dict[str, ResourceError], tell: Callable[[str], None]) -> list[_Source]:
        """The sources to ask now, slow ones last; those that rest have their reason in `said`."""
        sources = [_gateway(address, root) for address in self.gateways]
        if self.kubo_api:
            node = _kubo_node(self.kubo_api, root)
            if self._answers(node, tell):
                sources.insert(0, node)
        awake = []
        now = time.monotonic()
        for source in sources:
            left = self._state.unreachable_until.get(source.name, now) - now
            if left > 0:
                said[source.name] = UnavailableError(f"unreachable lately, asked again in {left:.0f} s")
            else:
                awake.append(source)
        # a node that looks for a file nobody has keeps silent until the time-out
        return sorted(awake, key=lambda source: self._state.slow_until.get(source.name, now) > now)

    def _remember(self, source: _Source, error: ResourceError) -> None:
        """Spare other fetches the wait that this one had."""
        until = time.monotonic() + _REST_SECONDS
        if isinstance(error, _UnreachableError):
            self._state.unreachable_until[source.name] = until
        elif isinstance(error, _SlowError):
            self._state.slow_until[source.name] = until

    def _answers(self, node: _Source, tell: Callable[[str], None]) -> bool:
        with self._state.lock:
            if self._state.node_answers is None:
                try:
                    answer = self._state.session().post(
                        f"{node.name}/api/v0/version", timeout=_PROBE_SECONDS, stream=True
                    )
                    answer.close()
                    self._state.node_answers = answer.status_code == 200
                except requests.RequestException:
                    self._state.node_answers = False
                if not self._state.node_answers:
                    tell(f"IPFS: no Kubo node answers at {node.name}; asking gateways only")
            return self._state.node_answers

    def _read(self, source: _Source, root: Cid, destination: Path, max_bytes: int) -> int:
        """Ask one source once. Returns the bytes of the file, or raises what the answer means."""
        try:
            with contextlib.closing(self._open(source)) as response:
                _check_answer(source, response)
                body = _body(response, self.timeout_seconds)
                size = retrieve(root, body, destination, max_bytes)
                # the connection can be used again once the end of the answer is read
                with contextlib.suppress(requests.RequestException, urllib3.exceptions.HTTPError):
                    next(body, None)
                return size
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            if _never_connected(error):
                raise _UnreachableError(f"cannot be reached ({_short(error)})") from None
            if isinstance(error, requests.Timeout | urllib3.exceptions.TimeoutError):
                raise _SlowError(f"too slow ({_short(error)})") from None
            raise _TryAgainError(f"broke off ({_short(error)})") from None

    def _open(self, source: _Source) -> requests.Response:
        url, parameters = source.url, source.parameters
        for _ in range(_MAX_REDIRECTS + 1):
            response = self._state.session().request(
                source.method,
                url,
                params=parameters,
                headers={"Accept": DFS_CONTENT_TYPE, "Accept-Encoding": "identity"},
                stream=True,
                timeout=(min(_CONNECT_SECONDS, self.timeout_seconds), self.timeout_seconds),
            )
            target = response.headers.get("Location")
            if source.method != "GET" or response.status_code not in _REDIRECTS or not target:
                return response
            response.close()
            parameters = {}
            try:
                url = _checked_url(urljoin(url, target), "redirect")
            except ValueError as error:
                raise UnavailableError(f"redirects to an address that is not followed ({error})") from None
        raise UnavailableError(f"redirects more than {_MAX_REDIRECTS} times")


def _check_answer(source: _Source, response: requests.Response) -> None:
    """Raise what an answer other than a CAR means."""
    status = response.status_code
    if status == 200:
        content_type = response.headers.get("Content-Type", "")
        if content_type.split(";")[0].strip().lower() not in source.content_types:
            raise IntegrityError(f"answered with {content_type[:80]!r} instead of {CONTENT_TYPE}")
        return
    said = f"HTTP {status} {_first_words(response)}".strip()
    # a Kubo node answers 500 to every error
    if status in (404, 410) or (
        source.method == "POST" and ("not found" in said or "could not find" in said)
    ):
        raise NotFoundError(said)
    if status in _PASSING or status >= 500:
        raise _TryAgainError(said, _retry_after(response))
    raise UnavailableError(said)


def _body(response: requests.Response, patience: float) -> Iterator[bytes]:
    """The answer's bytes as they arrive. Raises requests.Timeout for one slower than _SLOWEST."""
    started = time.monotonic()
    received = 0
    while piece := response.raw.read1(_PIECE, decode_content=True):
        received += len(piece)
        seconds = time.monotonic() - started
        if seconds > patience and received < seconds * _SLOWEST:
            raise requests.Timeout(f"{received} bytes in {seconds:.0f} s")
        yield piece


def _first_words(response: requests.Response) -> str:
    """The beginning of an error's text on one line, for a message."""
    try:
        text = response.raw.read1(512, decode_content=True).decode(errors="replace")
    except (requests.RequestException, urllib3.exceptions.HTTPError):
        return ""
    return "".join(c if c.isprintable() else " " for c in " ".join(text.split()))[:200]


def _retry_after(response: requests.Response) -> float:
    """Seconds that the server asks for, given as a number or a date (RFC 9110, 10.2.3), at most 60."""
    text = response.headers.get("Retry-After", "").strip()
    if text.isdecimal():
        seconds = float(text)
    else:
        try:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        except ValueError:
            seconds = 0.0
    return min(max(seconds, 0.0), _MAX_RETRY_AFTER_SECONDS)


def _never_connected(error: Exception) -> bool:
    if isinstance(
        error, requests.ConnectTimeout | requests.exceptions.SSLError | requests.exceptions.ProxyError
    ):
        return True
    reason = getattr(error.args[0], "reason", None) if error.args else None
    return isinstance(reason, urllib3.exceptions.NewConnectionError)


def _short(error: Exception) -> str:
    """The system's words below an error that requests and urllib3 have wrapped, or its own."""
    told: BaseException = error
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, OSError) and not isinstance(inner, requests.RequestException):
            told = inner
        inner = inner.__cause__ or inner.__context__
    return f"{type(told).__name__}: {told}"[:200]


def _verdict(root: Cid, said: dict[str, ResourceError]) -> ResourceError:
    """One error that names what each source said, of the class that tells most."""
    if not said:
        return UnavailableError(
            f"IPFS {root}: there is no source to ask. Start a Kubo node, or name gateways in "
            "IpfsContent.gateways."
        )
    words = f"IPFS {root}: " + "; ".join(f"{name}: {error}" for name, error in said.items())
    errors = said.values()
    if any(isinstance(error, IntegrityError) for error in errors):
        return IntegrityError(
            f"{words}. Nothing that fits the CID was sent: check it in the catalogue, or leave out the "
            "gateway that sends wrong bytes."
        )
    if all(isinstance(error, NotFoundError) for error in errors):
        return NotFoundError(
            f"{words}. Check the CID in the catalogue, or name a gateway that has it in IpfsContent.gateways."
        )
    return UnavailableError(f"{words}. Run again later, or name other gateways in IpfsContent.gateways.")
