"""Clients that fetch unverified blocks: of trustless gateways, a Kubo node and the `ipfs` command."""

import contextlib
import os
import select
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Protocol

import requests

from resources.addresses import AddressError, configured, safe_elsewhere
from resources.errors import (
    IntegrityError,
    NotFoundError,
    ResourceError,
    SlowError,
    TryAgainError,
    UnreachableError,
)
from resources.http import (
    CONNECT_SECONDS,
    RestrictedSession,
    body,
    check_status,
    first_bytes,
    first_words,
    in_time,
    require_no_page,
    translate_errors,
)
from resources.ipfs.car import CONTENT_TYPE, DFS_CONTENT_TYPE, MAX_SECTION
from resources.ipfs.cid import Cid
from resources.ipfs.leaves import IpfsLeaves, Tree, tree_of
from resources.ipfs.retrieve import Retrieval
from resources.json_values import parse
from resources.parts import Parts, Turn, obtain
from resources.plain_text import plain_text
from resources.resume import PartialFiles
from resources.sources import FileRequest, PartsRequest
from resources.stop import check

_RAW = "application/vnd.ipld.raw"
_PIECE = 1 << 18
_LINGER_SECONDS = 1.0
_PINNING_SECONDS = 3600.0
"""Timeout while a node accepts the next bytes of a dataset and pins it."""
_BEGINNING = 512
"""Bytes that a node may send before it has found any content: the header of a CAR takes some 60."""
_POLL_SECONDS = 0.2
"""How often to check whether the run has been stopped."""
_CHILD_VARIABLES = {
    "HOME",
    "IPFS_PATH",
    "LANG",
    "LANGUAGE",
    "LD_LIBRARY_PATH",
    "LOGNAME",
    "PATH",
    "SSL_CERT_DIR",
}
_CHILD_VARIABLES |= {"SSL_CERT_FILE", "TMPDIR", "TZ", "USER", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR"}
_CHILD_VARIABLES |= {"ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY"}
"""The variables that a command gets, and LC_*. Others may hold tokens and keys."""
_NOT_FOUND = ("not found", "could not find")
_LOOKED_IN_VAIN = ("deadline exceeded", "timed out")


class IpfsNode(Protocol):
    """A server or command that returns blocks, which need not be right."""

    name: str
    host: str
    timeout_seconds: float
    takes_ranges: bool
    """Whether `car` is known, or still hoped, to leave out what is not requested."""

    def car(
        self, root: Cid, offset: int, first_seconds: float | None = None, stop: int | None = None
    ) -> AbstractContextManager[Iterator[bytes]]:
        """A CAR of the file `root`, in pieces: the complete file, or the part from byte `offset` on, to before `stop`.

        `first_seconds` is the timeout for the first block, if shorter than that for the rest. Raises NotFoundError,
        TryAgainError, UnavailableError or IntegrityError, and CutShortError while it is read.
        """
        ...

    def block(self, cid: Cid, first_seconds: float | None = None) -> bytes:
        """One block, unverified, of at most 4 MiB; `first_seconds` is the timeout, if shorter. Raises as `car` does."""
        ...


@dataclass(frozen=True)
class IpfsSource:
    """A node as a source of files: verifies every byte, and keeps the verified part of an interrupted download."""

    node: IpfsNode
    first_seconds: float = 5.0
    """Timeout for the first block of a file that other sources may have too."""
    by_cid: bool = True

    @property
    def name(self) -> str:
        return self.node.name

    @property
    def host(self) -> str:
        return self.node.host

    def offers(self, request: FileRequest) -> bool:
        return bool(request.cid)

    def fetch(
        self,
        request: FileRequest,
        destination: Path,
        partials: PartialFiles,
        progress: Callable[[int], None],
        brief: bool = False,
    ) -> bool:
        first_seconds = self.first_seconds if brief else None
        root = Cid.parse(request.cid)
        with partials.holding(str(root)) as path:
            with Retrieval(root, path, request.max_bytes, progress) as retrieval:
                if not retrieval.whole:
                    with self.node.car(root, retrieval.at, first_seconds) as pieces:
                        retrieval.feed(pieces, self.node.timeout_seconds)
            retrieval.move_to(destination)
        return True

    def fetch_parts(self, wanted: PartsRequest, destination: Path) -> bool:
        root, pool = Cid.parse(wanted.file.cid), wanted.selection.pool
        first_seconds = self.first_seconds if wanted.brief else None
        with wanted.partials.holding(f"parts of {root}") as path, Parts(path, wanted.progress) as parts:
            leaves = IpfsLeaves(
                root, self.node, parts, wanted.file.max_bytes, pool, wanted.turn, first_seconds
            )
            return obtain(wanted.selection, parts, leaves, destination)

    def tree(self, request: FileRequest, turn: Turn, brief: bool) -> Tree:
        """The tree of the file's CID. Raises ResourceError."""
        first_seconds = self.first_seconds if brief else None
        return tree_of(Cid.parse(request.cid), self.node, request.max_bytes, turn, first_seconds)


class _Web:
    """HTTP requests, shared by gateways and Kubo nodes."""

    def __init__(self, address: str, what: str, timeout_seconds: float) -> None:
        try:
            parsed = configured(address, plain_http=True)
        except AddressError as error:
            raise ValueError(f"{what}: must be the http or https URL of a server: {error}") from None
        self.name = address.rstrip("/")
        self.host = parsed.host
        self._place = parsed.place
        self.timeout_seconds = timeout_seconds
        self._local = threading.local()

    @contextlib.contextmanager
    def _ask(
        self,
        method: str,
        path: str,
        parameters: dict[str, str],
        accept: str,
        types: tuple[str, ...],
        first_seconds: float | None = None,
    ) -> Iterator[Iterator[bytes]]:
        """The body of one response, whose content type must be one of `types`."""
        first = min(first_seconds or self.timeout_seconds, self.timeout_seconds)
        with (
            translate_errors(),
            self._session().request(
                method,
                f"{self.name}{path}",
                params=parameters,
                headers={"Accept": accept, "Accept-Encoding": "identity"},
                stream=True,
                timeout=(min(CONNECT_SECONDS, self.timeout_seconds), first),
                allow_redirects=method == "GET",
            ) as answer,
        ):
            words = "" if answer.status_code == 200 else first_words(answer)
            # a Kubo node answers 500 to every error
            not_found = method == "POST" and any(part in words for part in _NOT_FOUND)
            if method == "POST" and any(part in words for part in _LOOKED_IN_VAIN):
                raise SlowError(f"answered {answer.status_code} {words}")
            check_status(answer, "", not_found, words)
            told = answer.headers.get("Content-Type", "")
            if told.split(";")[0].strip().lower() not in types:
                if "html" in told.lower():
                    require_no_page(answer, first_bytes(answer), accept.split(";")[0])
                raise IntegrityError(f"answered with {told[:80]!r} instead of {accept.split(';')[0]}")
            yield _begun_within(first, partial(body, answer), self.timeout_seconds)
            # reading to the end, if it is already there, lets the connection be used again
            with contextlib.suppress(Exception):
                next(body(answer, _LINGER_SECONDS), None)

    def _session(self) -> requests.Session:
        if not hasattr(self._local, "session"):
            # content is verified by its CID, and no login is sent
            self._local.session = RestrictedSession(safe_elsewhere, plain_hosts=[self._place])
        session: requests.Session = self._local.session
        return session


class Gateway(_Web):
    """A trustless gateway (specs.ipfs.tech/http-gateways/trustless-gateway, IPIP-402 and IPIP-412)."""

    takes_ranges = True

    def __init__(self, address: str, timeout_seconds: float) -> None:
        super().__init__(address, "gateways", timeout_seconds)

    def car(
        self, root: Cid, offset: int, first_seconds: float | None = None, stop: int | None = None
    ) -> AbstractContextManager[Iterator[bytes]]:
        parameters = {"format": "car", "dag-scope": "entity"}
        if offset or stop is not None:
            parameters["entity-bytes"] = f"{offset}:{'*' if stop is None else stop - 1}"
        path = f"/ipfs/{root}"
        return self._ask("GET", path, parameters, DFS_CONTENT_TYPE, (CONTENT_TYPE,), first_seconds)

    def block(self, cid: Cid, first_seconds: float | None = None) -> bytes:
        with self._ask("GET", f"/ipfs/{cid}", {"format": "raw"}, _RAW, (_RAW,), first_seconds) as pieces:
            return _bounded(pieces)


class KuboNode(_Web):
    """A Kubo node by its RPC API, which accepts only POST requests (docs.ipfs.tech/reference/kubo/rpc).

    The node searches the network for blocks that it lacks. They are verified here all the same.
    """

    takes_ranges = False
    # nodes that do not declare the type of a CAR or block send one of the last three
    _TYPES = (CONTENT_TYPE, _RAW, "application/octet-stream", "text/plain", "application/json")

    def __init__(self, address: str, timeout_seconds: float) -> None:
        super().__init__(address, "kubo_api", timeout_seconds)

    def car(
        self, root: Cid, offset: int, first_seconds: float | None = None, stop: int | None = None
    ) -> AbstractContextManager[Iterator[bytes]]:
        # the API has no offset, but the node has what it sent before in its own store
        path, parameters = "/api/v0/dag/export", {"arg": str(root)}
        return self._ask("POST", path, parameters, CONTENT_TYPE, self._TYPES, first_seconds)

    def block(self, cid: Cid, first_seconds: float | None = None) -> bytes:
        # a node that lacks a block searches until this timeout, and reports the failure only then
        seconds = min(first_seconds or self.timeout_seconds, self.timeout_seconds)
        parameters = {"arg": str(cid), "timeout": f"{0.8 * seconds:g}s"}
        with self._ask("POST", "/api/v0/block/get", parameters, _RAW, self._TYPES, first_seconds) as pieces:
            return _bounded(pieces)

    def import_car(self, pieces: Iterator[bytes], root: Cid) -> None:
        """Add the blocks of a CAR and pin `root`. Raises ResourceError unless the node confirms the pin."""
        boundary = uuid.uuid4().hex
        parameters = {"pin-roots": "true"}
        with (
            translate_errors(),
            self._session().post(
                f"{self.name}/api/v0/dag/import",
                params=parameters,
                data=_form(pieces, boundary),
                headers={"Content-Type": f"multipart/form-data; boundary={boundary}"},
                stream=True,
                timeout=(CONNECT_SECONDS, _PINNING_SECONDS),
                allow_redirects=False,
            ) as answer,
        ):
            if answer.status_code != 200:
                check_status(answer, f"{self.name}/api/v0/dag/import", words=first_words(answer))
            said = _bounded(body(answer, self.timeout_seconds))
        if not any(_pinned(line, root) for line in said.splitlines()):
            raise ResourceError(f"{self.name} did not pin {root}: {_printable(said[:512])}")


class IpfsCommand:
    """The `ipfs` command line tool, with whatever repository and daemon it finds.

    Uses `ipfs dag export` and not `ipfs get`, because blocks can be verified whatever layout the file was added in.
    """

    host = ""
    takes_ranges = False

    def __init__(self, command: str, timeout_seconds: float) -> None:
        self.name = command
        self.timeout_seconds = timeout_seconds

    @contextlib.contextmanager
    def car(
        self, root: Cid, offset: int, first_seconds: float | None = None, stop: int | None = None
    ) -> Iterator[Iterator[bytes]]:
        with self._run(first_seconds, "dag", "export", str(root)) as pieces:
            yield pieces

    def block(self, cid: Cid, first_seconds: float | None = None) -> bytes:
        with self._run(first_seconds, "block", "get", str(cid)) as pieces:
            return _bounded(pieces)

    @contextlib.contextmanager
    def _run(self, first_seconds: float | None, *arguments: str) -> Iterator[Iterator[bytes]]:
        command = shutil.which(self.name)
        if command is None:
            raise UnreachableError(f"there is no command {self.name} on this machine")
        with tempfile.TemporaryFile() as words:
            try:
                process = subprocess.Popen(  # noqa: S603 - the CID has been parsed
                    [command, *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=words,
                    start_new_session=True,
                    env=_child_environment(),
                )
            except OSError as error:
                raise UnreachableError(f"{command} cannot be run ({error.strerror})") from None
            assert process.stdout is not None
            with process.stdout:
                try:
                    first = min(first_seconds or self.timeout_seconds, self.timeout_seconds)
                    yield _begun_within(
                        first,
                        lambda seconds: in_time(_output(process, words, seconds), seconds),
                        self.timeout_seconds,
                    )
                finally:
                    # and its children, in case it is a wrapper script
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                    process.wait()


def _child_environment() -> dict[str, str]:
    # proxy variables may be in lower case
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith("LC_") or {name, name.upper()} & _CHILD_VARIABLES
    }


def _begun_within(first: float, read: Callable[[float], Iterator[bytes]], then: float) -> Iterator[bytes]:
    """The pieces of a response from `read`, with a timeout of `first` seconds until content comes, then of `then`."""
    received = 0
    for piece in read(first):
        yield piece
        received += len(piece)
        if received > _BEGINNING:
            yield from read(then)
            return


def _output(process: "subprocess.Popen[bytes]", words: IO[bytes], seconds: float) -> Iterator[bytes]:
    """The output of a process. Raises SlowError after `seconds` without any, and a ResourceError if it fails."""
    assert process.stdout is not None
    out = process.stdout.fileno()
    # not select, which supports only file descriptors below 1024
    ready = select.poll()
    ready.register(out, select.POLLIN)
    while True:
        silent_since = time.monotonic()
        while not ready.poll(1000 * min(_POLL_SECONDS, seconds)):
            check()
            if time.monotonic() - silent_since >= seconds:
                raise SlowError(f"was silent for {seconds:.0f} s")
        piece = os.read(out, _PIECE)
        if not piece:
            break
        yield piece
    _await_end(process, seconds)
    if process.returncode != 0:
        words.seek(0)
        said = _printable(words.read(512))
        error: type[ResourceError] = TryAgainError
        if any(part in said for part in _NOT_FOUND):
            error = NotFoundError
        elif any(part in said for part in _LOOKED_IN_VAIN):
            error = SlowError
        raise error(f"ended with code {process.returncode}: {said}")


def _await_end(process: "subprocess.Popen[bytes]", seconds: float) -> None:
    """Wait until the process has ended. Raises SlowError after `seconds`."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(min(_POLL_SECONDS, seconds))
            return
        check()
    raise SlowError(f"closed its output and did not end within {seconds:g} s")


def _pinned(line: bytes, root: Cid) -> bool:
    """Whether a line of the response to an import confirms that `root` is pinned."""
    try:
        told = parse(line)["Root"]
        return bool(told["Cid"]["/"] == str(root) and told["PinErrorMsg"] == "")
    except (ValueError, KeyError, TypeError):
        return False


def _form(pieces: Iterator[bytes], boundary: str) -> Iterator[bytes]:
    """A multipart form (RFC 7578) with one file, in pieces, as requests would hold all of it in memory."""
    yield (
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="dataset.car"\r\n'
        f"Content-Type: {CONTENT_TYPE}\r\n\r\n"
    ).encode()
    yield from pieces
    yield f"\r\n--{boundary}--\r\n".encode()


def _bounded(pieces: Iterator[bytes]) -> bytes:
    found = bytearray()
    for piece in pieces:
        found += piece
        if len(found) > MAX_SECTION:
            raise IntegrityError(f"sent a block of more than {MAX_SECTION} bytes")
    return bytes(found)


def _printable(text: bytes) -> str:
    return plain_text(" ".join(text.decode(errors="replace").split()), 200)
