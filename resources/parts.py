"""Parts of a remote file: which ranges of bytes to request, and those that have come, on disk.

The ranges that have come lie at their places in a sparse local file, with their checksums beside it, so that an
interrupted download is resumed after a check of what is there.
"""

import base64
import contextlib
import hashlib
import json
import math
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Protocol

import tenacity

from resources.errors import IntegrityError, ResourceError, SlowError, TryAgainError, UnreachableError
from resources.file_system import no_follow
from resources.pace import current_deadline, deadline
from resources.parallel import in_parallel
from resources.stop import pause
from resources.tiff import HEAD_BYTES, Read


class ChangedError(TryAgainError):
    """The file is another version than that of the ranges which have come."""


class NotInPartsError(ResourceError):
    """The file is not available in parts from this source; it must be fetched complete."""


Range = tuple[int, int]
"""The bytes from a start to a stop."""
Turn = Callable[[], AbstractContextManager[None]]
"""Waits for a turn at a host, for the length of one request."""

_ATTEMPTS = 3
_BACKOFF_SECONDS = 0.2
_MAX_PAUSE_SECONDS = 2.0
"""Other sources are asked instead of waiting for longer."""
_MAX_LOG_BYTES = 8 << 20
MAX_RANGE_BYTES = 4 << 20
"""Of one request: what is lost if it is cut short, and what one connection carries for the others."""


class Selection(Protocol):
    """What is needed of a file, and what is made of it."""

    pool: Executor
    """The threads that send requests."""

    def choose(self, read: Read, size: int, version: str) -> Sequence[Range]:
        """The ranges that are needed of a `version` of the file, of `size` bytes; `read` fetches what that depends on.

        Raises NotInPartsError if the file cannot be used in parts, and IntegrityError if it is not the right one.
        """
        ...

    def write(self, read: Read, destination: Path, version: str, verified: bool) -> None:
        """Write what is needed to `destination`. `read` has the chosen ranges, of the file's `version`."""
        ...


class Parts:
    """The ranges of one version of a file that are here, in the sparse file `path`; a context manager.

    `<path>.parts` names the version, the size and the ranges, with their SHA-256. The ranges of another version, and
    those whose bytes are damaged, are dropped. Several threads may use it.
    """

    def __init__(self, path: Path, progress: Callable[[int], None] = lambda count: None) -> None:
        self.version, self.size = "", 0
        """Both unknown until `begin`: a CID or an ETag, and the size of the complete file in bytes."""
        self._path, self._log_path = path, path.with_name(f"{path.name}.parts")
        self._progress = progress
        self._lock = threading.Lock()
        self._have: list[Range] = []
        self._notes: dict[str, bytes] = {}
        self._files = contextlib.ExitStack()
        flags = os.O_RDWR | os.O_CREAT
        self._data = no_follow(str(path), flags)
        self._files.callback(os.close, self._data)
        self._log = no_follow(str(self._log_path), flags | os.O_APPEND)
        self._files.callback(os.close, self._log)
        self._load()

    def __enter__(self) -> "Parts":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.close()

    def begin(self, version: str, size: int, max_bytes: int) -> None:
        """Keep ranges of this version and size only. Raises IntegrityError if the file has more than `max_bytes`."""
        if size > max_bytes:
            raise IntegrityError(f"the file has {size:,} bytes, more than the {max_bytes:,} allowed")
        with self._lock:
            if (version, size) != (self.version, self.size):
                self._forget()
                self.version, self.size = version, size
                self._note({"version": version, "size": size})

    def forget(self) -> None:
        """Drop all ranges, for example because the file has changed."""
        with self._lock:
            self._forget()

    def remove(self) -> None:
        """Remove the files, once what is needed of them has been written elsewhere."""
        self._log_path.unlink(missing_ok=True)
        self._path.unlink(missing_ok=True)

    def add(self, start: int, data: bytes) -> None:
        """Keep the bytes from `start` on, which are those of the current version."""
        at, rest = start, memoryview(data)
        while rest:
            written = os.pwrite(self._data, rest, at)
            at, rest = at + written, rest[written:]
        digest = hashlib.sha256(data).hexdigest()
        with self._lock:
            self._note([start, len(data), digest])
            self._have = merged([*self._have, (start, start + len(data))])
        self._progress(len(data))

    def note(self, name: str, data: bytes) -> None:
        """Keep something that belongs to the current version besides its bytes."""
        with self._lock:
            self._notes[name] = data
            self._note({"name": name, "data": base64.b64encode(data).decode()})

    def notes(self, version: str) -> dict[str, bytes]:
        """What was kept with `note` for a version."""
        with self._lock:
            return dict(self._notes) if version == self.version else {}

    def missing(self, ranges: Iterable[Range]) -> list[Range]:
        """The parts of these ranges, up to the end of the file, that are not here."""
        with self._lock:
            have = list(self._have)
        found = []
        for start, stop in merged((start, min(stop, self.size)) for start, stop in ranges):
            at = start
            for begin, end in have:
                if end > at and begin < stop:
                    if begin > at:
                        found.append((at, begin))
                    at = max(at, end)
            if at < stop:
                found.append((at, stop))
        return found

    def read(self, start: int, stop: int) -> bytes:
        """The bytes of a range that is here. Raises IntegrityError if a part of it is not."""
        stop = min(stop, self.size)
        if self.missing([(start, stop)]):
            raise IntegrityError(f"bytes {start:,} to {stop:,} of the file were not fetched")
        return os.pread(self._data, max(0, stop - start), start)

    def _forget(self) -> None:
        self._have, self._notes, self.version, self.size = [], {}, "", 0
        os.truncate(self._data, 0)
        os.truncate(self._log, 0)

    def _note(self, entry: object) -> None:
        os.write(self._log, json.dumps(entry).encode() + b"\n")

    def _load(self) -> None:
        """Read which ranges an earlier download left, and check their bytes."""
        lines = os.pread(self._log, _MAX_LOG_BYTES, 0).split(b"\n")
        if len(lines) < 2:
            self._forget()
            return
        # what follows the last line feed is nothing, or half a line of a killed process
        if lines[-1]:
            os.truncate(self._log, len(b"\n".join(lines)) - len(lines[-1]))
        held = os.fstat(self._data).st_size
        try:
            first = json.loads(lines[0])
            self.version, self.size = str(first["version"]), int(first["size"])
            for line in lines[1:-1]:
                entry = json.loads(line)
                if isinstance(entry, dict):
                    self._notes[str(entry["name"])] = base64.b64decode(entry["data"])
                    continue
                start, length, digest = entry
                if not 0 <= start <= start + length <= min(self.size, held):
                    continue
                data = os.pread(self._data, length, start)
                if len(data) == length and hashlib.sha256(data).hexdigest() == digest:
                    self._have = merged([*self._have, (start, start + length)])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError, OSError):
            self._forget()


class Client(Protocol):
    """Requests ranges of one file from one source."""

    verified: bool
    """Whether it checks each byte against the CID."""

    def bring(self, ranges: Sequence[Range]) -> None:
        """Add these ranges to the parts, after `Parts.begin`. Raises ResourceError; what came until then stays."""
        ...


def obtain(selection: Selection, parts: Parts, client: Client, destination: Path) -> bool:
    """Write what is selected of a file to `destination`; returns whether its bytes are verified.

    Raises NotInPartsError if the file must be fetched complete, and the errors of `client` and `selection`.
    """

    def read(start: int, stop: int) -> bytes:
        if not parts.size or parts.missing([(start, stop)]):
            client.bring([(start, stop)])
        return parts.read(start, stop)

    try:
        read(0, HEAD_BYTES)
        ranges = selection.choose(read, parts.size, parts.version)
        if missing := parts.missing(ranges):
            client.bring(missing)
    except NotInPartsError:
        parts.remove()
        raise
    selection.write(parts.read, destination, parts.version, client.verified)
    parts.remove()
    return client.verified


def obtain_locally(selection: Selection, path: Path, version: str, destination: Path, verified: bool) -> None:
    """The same of a complete local file. Raises as `obtain`."""
    with path.open("rb") as file:

        def read(start: int, stop: int) -> bytes:
            return os.pread(file.fileno(), max(0, stop - start), start)

        selection.choose(read, os.fstat(file.fileno()).st_size, version)
        selection.write(read, destination, version, verified)


def merged(ranges: Iterable[Range], gap: int = 0, most: float = math.inf) -> list[Range]:
    """The ranges in ascending order, without empty ones; those at most `gap` bytes apart are joined, up to `most` bytes
    if they are not longer themselves.
    """
    found: list[Range] = []
    for start, stop in sorted(one for one in ranges if one[0] < one[1]):
        first, last = found[-1] if found else (0, -1)
        if found and start - last <= gap and (stop <= last or stop - first <= most):
            found[-1] = first, max(last, stop)
        else:
            found.append((start, stop))
    return found


def in_turns(pool: Executor, turn: Turn, requests: Iterable[Callable[[], None]]) -> None:
    """Send requests from the threads of `pool`, each in its turn, and again after a passing failure.

    Not again if the source cannot be reached, is silent, or asks for a longer pause. Raises the error of the first
    request that failed in the end, when no other is under way.
    """
    until = current_deadline()

    def send(request: Callable[[], None]) -> None:
        with deadline(until):
            for attempt in _attempts():
                with attempt, turn():
                    request()

    in_parallel(pool, send, requests)


def _attempts() -> tenacity.Retrying:
    backoff = tenacity.wait_exponential(_BACKOFF_SECONDS) + tenacity.wait_random(0, _BACKOFF_SECONDS)

    def wait(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        return max(backoff(state), error.retry_after if isinstance(error, TryAgainError) else 0)

    return tenacity.Retrying(
        stop=tenacity.stop_after_attempt(_ATTEMPTS),
        wait=wait,
        sleep=pause,
        retry=tenacity.retry_if_exception(_is_brief),
        reraise=True,
    )


def _is_brief(error: BaseException) -> bool:
    return (
        isinstance(error, TryAgainError)
        and not isinstance(error, UnreachableError | SlowError | ChangedError)
        and error.retry_after <= _MAX_PAUSE_SECONDS
    )
