"""Sources of files behind one interface: they are asked in turn until one has the right file.

This module decides which source is asked when, how many requests it gets at once, when it is asked again or spared for
a while, and combines the errors of all sources into one.
"""

import contextlib
import errno
import functools
import logging
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import tenacity

from resources import stop
from resources.errors import (
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
from resources.ipfs.leaves import Tree
from resources.pace import deadline, max_seconds
from resources.parts import NotInPartsError, Selection, Turn
from resources.resume import PartialFiles
from resources.words import server_words

_logger = logging.getLogger(__name__)
_LOCAL_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_REST_SECONDS = 60.0
_MAX_REST_SECONDS = 600.0
BACKOFF_SECONDS = 0.5
"""The first pause before all sources are asked again."""
_MAX_BACKOFF_SECONDS = 20.0
_FREE_TURNS = 20
"""Turns of a file in parts that do not count as attempts, because a busy host was waited for."""


@dataclass(frozen=True)
class FileRequest:
    """A file to fetch.

    `name` is `<scene id>/<file name>`; `cid` and `url` are "" if unknown; `max_bytes` limits its size.
    """

    name: str
    cid: str
    url: str
    max_bytes: int

    @property
    def file_name(self) -> str:
        return self.name.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class PartsRequest:
    """A file of which only a selection is needed, and how its parts are requested.

    `progress` and `brief` are as for `Source.fetch`; each request waits for its `turn`. `tree` gets the tree of the CID
    from a source that finds files by CIDs; None if there is none.
    """

    file: FileRequest
    selection: Selection
    partials: PartialFiles
    progress: Callable[[int], None]
    turn: Turn
    brief: bool
    tree: Callable[[], Tree | None]


class Source(Protocol):
    """One source of files. Several threads may use it at once."""

    @property
    def name(self) -> str:
        """What messages call it: an address, or a word."""
        ...

    @property
    def host(self) -> str:
        """The host that requests are counted for; "" for this machine, which has no limit."""
        ...

    @property
    def by_cid(self) -> bool:
        """Whether it finds files by their CIDs, so that others of its kind would give the same bytes."""
        ...

    def offers(self, request: FileRequest) -> bool:
        """Whether it can be asked for the file; sends no request."""
        ...

    def fetch(
        self,
        request: FileRequest,
        destination: Path,
        partials: PartialFiles,
        progress: Callable[[int], None],
        brief: bool = False,
    ) -> bool:
        """Write the file to `destination`; True if its bytes match the CID.

        Asks once. `progress` gets the number of bytes as they arrive. `brief` means that others may have the file too:
        a source that has to look for the file then waits only a few seconds. Raises SlowError if the source is silent,
        TryAgainError if asking again may help, otherwise another ResourceError.
        """
        ...

    def fetch_parts(self, wanted: PartsRequest, destination: Path) -> bool:
        """Write what is selected of the file to `destination`; True if its bytes are checked against the CID.

        Raises as `fetch`, and NotInPartsError if the file must be fetched complete.
        """
        ...

    def tree(self, request: FileRequest, turn: Turn, brief: bool) -> Tree | None:
        """The tree of the file's CID; None if the source does not find files by CIDs. Raises as `fetch`."""
        ...


@dataclass(frozen=True)
class FetchResult:
    """The source of a file, whether its bytes are verified against its CID, and whether it was made of parts."""

    source: str
    verified: bool
    in_parts: bool = False


@dataclass
class _Health:
    """Until when a source is skipped, paused, or asked after the others."""

    unreachable_until: float = 0.0
    busy_until: float = 0.0
    late_until: float = 0.0
    silent_until: float = 0.0
    failures: int = 0

    def rest(self) -> float:
        """Seconds to spare a source that cannot be reached or is silent: a minute, doubled each time."""
        self.failures += 1
        return min(_REST_SECONDS * 2.0 ** (self.failures - 1), _MAX_REST_SECONDS)


class PutOffError(SlowError):
    """Others found the source silent while this request waited for its turn; it was not sent."""


class Asked(Protocol):
    """A source, or a node that is asked for single blocks."""

    @property
    def name(self) -> str: ...

    @property
    def host(self) -> str: ...


_Some = TypeVar("_Some", bound=Asked)


class Memory:
    """The recent failures of sources, and the limits on requests to a host at once, over all threads: `per_host` files,
    or `ranges_per_host` ranges of files. A host that says that it is busy gets `per_host` ranges at once from then on.

    A source that cannot be reached is skipped for a minute, and longer each time, up to ten; a silent source is asked
    last for as long; a source that asks for a pause gets it; after other failures it is asked last for a minute.
    """

    def __init__(self, per_host: int, ranges_per_host: int = 16) -> None:
        self.per_host, self.ranges_per_host = per_host, ranges_per_host
        self._health: dict[str, _Health] = defaultdict(_Health)
        self._slots: dict[tuple[str, bool], threading.BoundedSemaphore] = {}
        self._busy_hosts: set[str] = set()
        self.received = 0
        """Bytes from all sources, roughly."""
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def asking(self, source: Asked, brief: bool = False, ranges: bool = False) -> Iterator[None]:
        """Wait for a turn at the source's host for a file, or one of its `ranges`; forget its failures if it answers.

        Raises TryAgainError if it has asked for a pause meanwhile and, if `brief`, PutOffError if it was silent.
        """
        silent = self.silent(source)
        with self._slot(source, ranges):
            if (pause := self.busy(source)) > 0:
                raise TryAgainError(f"asked for a pause of {pause:.0f} s", pause)
            if brief and not silent and self.silent(source):
                raise PutOffError("was silent just now")
            yield
        health = self._health[source.name]
        health.unreachable_until, health.late_until, health.silent_until, health.failures = 0.0, 0.0, 0.0, 0

    def busy(self, source: Asked) -> float:
        """Seconds left of the pause that the source has asked for."""
        return self._health[source.name].busy_until - time.monotonic()

    def silent(self, source: Asked) -> bool:
        return self._health[source.name].silent_until > time.monotonic()

    def in_order(self, sources: Iterable[_Some], errors: dict[str, ResourceError]) -> list[_Some]:
        """The sources to ask: first those without recent failures, last those that were silent. `errors` gets an error
        for each that is skipped.
        """
        now = time.monotonic()
        awake = []
        for source in sources:
            rest = self._health[source.name].unreachable_until - now
            if rest > 0:
                errors[source.name] = UnavailableError(f"unreachable lately, asked again in {rest:.0f} s")
            else:
                awake.append(source)
        return sorted(
            awake, key=lambda source: (self.silent(source), self._health[source.name].late_until > now)
        )

    def failed(self, source: Asked, error: ResourceError) -> None:
        """Remember a failure, which spares others the wait or the wrong bytes."""
        health, now = self._health[source.name], time.monotonic()
        if isinstance(error, UnreachableError):
            # several threads may notice at once
            if health.unreachable_until <= now:
                health.unreachable_until = now + health.rest()
        elif isinstance(error, TryAgainError) and error.retry_after:
            health.busy_until = now + error.retry_after
            self._busy_hosts.add(source.host)
        elif isinstance(error, SlowError):
            if health.silent_until <= now:
                health.silent_until = now + health.rest()
        elif not isinstance(error, NotFoundError):
            health.late_until = now + _REST_SECONDS

    def _slot(self, source: Asked, ranges: bool) -> threading.BoundedSemaphore:
        ranges = ranges and source.host not in self._busy_hosts
        with self._lock:
            most = (self.ranges_per_host if ranges else self.per_host) if source.host else 1 << 16
            return self._slots.setdefault((source.host, ranges), threading.BoundedSemaphore(most))


@dataclass(frozen=True)
class Sources:
    """Sources in the order in which they are asked, except as the memory of their failures changes it.

    While others are left, a source is asked briefly, and with its full time after them.
    """

    sources: Sequence[Source]
    attempts: int
    """How often all sources are tried before a file is given up."""
    memory: Memory

    def obtain(
        self,
        request: FileRequest,
        destination: Path,
        partials: PartialFiles,
        check: Callable[[Path, FetchResult], None],
        log: Callable[[str], None],
        progress: Callable[[int], None] | None = None,
        selection: Selection | None = None,
    ) -> FetchResult:
        """Write the file to `destination` from the first source that has it; with `selection`, what it makes of parts
        of the file if the source sends parts.

        `check` gets the path and how the file came, and raises IntegrityError if it is unfit. Time-outs,
        resets, cut streams, 408, 425, 429 and 5xx lead to another turn, after a growing pause with jitter or the
        server's Retry-After. Raises UnavailableError if a source may have it later, otherwise IntegrityError if one
        sent wrong bytes, otherwise NotFoundError, ForbiddenError or RefusedError, with the error of every source.
        """
        errors: dict[str, ResourceError] = {}
        left = self.memory.in_order((source for source in self.sources if source.offers(request)), errors)
        tree = functools.cache(lambda: self._tree(request, dict(errors)))
        seen, free = self.memory.received, 0

        def count(number: int) -> None:
            self.memory.received += number
            (progress or _ignore)(number)

        def turn() -> FetchResult | None:
            queue = sorted(left, key=self.memory.silent)
            briefly: list[Source] = []
            while queue:
                source = queue.pop(0)
                if source not in left:
                    continue
                brief = bool(queue) and source not in briefly
                if (pause := self.memory.busy(source)) > 0:
                    errors.setdefault(source.name, UnavailableError(f"asked for a pause of {pause:.0f} s"))
                    continue
                try:
                    return self._ask(
                        source,
                        request,
                        destination,
                        partials,
                        check,
                        log,
                        count,
                        tree,
                        brief,
                        selection,
                    )
                except Exception as raised:
                    error = as_resource_error(source.name, raised)
                    errors[source.name] = error
                    # a wrong file in a mirror does not count against its other files
                    if source.host or source.by_cid:
                        self.memory.failed(source, error)
                    if isinstance(error, SlowError) and brief:
                        briefly.append(source)
                        queue.append(source)
                    elif isinstance(error, _UnfitError):
                        left[:] = [other for other in left if not other.by_cid and other is not source]
                    elif not isinstance(error, TryAgainError):
                        left.remove(source)
                # that a folder lacks a file is not worth a line
                if source.host or not isinstance(errors[source.name], NotFoundError):
                    later = "; asked again, for longer, if no other source has it" if source in queue else ""
                    log(f"{request.file_name}: {source.name}: {errors[source.name]}{later}")
            return None

        backoff = tenacity.wait_exponential(
            multiplier=BACKOFF_SECONDS, max=_MAX_BACKOFF_SECONDS
        ) + tenacity.wait_random(0, BACKOFF_SECONDS)

        def pause(state: tenacity.RetryCallState) -> float:
            return max(backoff(state), min(map(self.memory.busy, left)))

        def enough(state: tenacity.RetryCallState) -> bool:
            # a host that limits its rate, and serves other files meanwhile, would use up the attempts of all
            nonlocal seen, free
            busy = any(self.memory.busy(one) > 0 for one in left)
            if selection is not None and self.attempts > 1 and busy and self.memory.received > seen:
                free += 1
            seen = self.memory.received
            return state.attempt_number - min(free, _FREE_TURNS) >= self.attempts

        retrying = tenacity.Retrying(
            stop=enough,
            wait=pause,
            sleep=stop.pause,
            retry=tenacity.retry_if_result(lambda found: found is None and bool(left)),
            retry_error_callback=lambda state: None,
        )
        found = retrying(turn)
        if found is None:
            why = (
                f" by its CID {request.cid}"
                if request.cid
                else ""
                if request.url
                else " without a CID or a link"
            )
            raise combined_error(f"{request.file_name} could not be had{why}", errors)
        return found

    def _ask(
        self,
        source: Source,
        request: FileRequest,
        destination: Path,
        partials: PartialFiles,
        check: Callable[[Path, FetchResult], None],
        log: Callable[[str], None],
        progress: Callable[[int], None],
        tree: Callable[[], Tree | None],
        brief: bool,
        selection: Selection | None,
    ) -> FetchResult:
        got: FetchResult | None = None
        if selection is not None:
            turn = functools.partial(self._turn, source, brief)
            wanted = PartsRequest(request, selection, partials, progress, turn, brief, tree)
            try:
                with deadline(time.monotonic() + max_seconds(request.max_bytes)):
                    verified = source.fetch_parts(wanted, destination)
                got = FetchResult(source.name, verified, True)
            except NotInPartsError as error:
                log(f"{request.file_name}: {source.name}: {error}; the complete file is fetched")
        if got is None:
            with self.memory.asking(source, brief):
                got = FetchResult(source.name, source.fetch(request, destination, partials, progress, brief))
        try:
            check(destination, got)
        except IntegrityError as error:
            raise (_UnfitError if got.verified else IntegrityError)(str(error)) from error
        return got

    @contextlib.contextmanager
    def _turn(self, source: Source, brief: bool) -> Iterator[None]:
        """A turn for one range; that the source asks for a pause is remembered at once."""
        try:
            with self.memory.asking(source, brief, ranges=True):
                yield
        except TryAgainError as error:
            if error.retry_after:
                self.memory.failed(source, error)
            raise

    def _tree(self, request: FileRequest, errors: Mapping[str, ResourceError]) -> Tree | None:
        """The tree of the file's CID from the first source that has it; None if none has. Those that are silent, or had
        an error for this file, are not asked.
        """
        found = (
            source
            for source in self.sources
            if source.by_cid
            and source.offers(request)
            and source.name not in errors
            and not self.memory.silent(source)
        )
        for source in self.memory.in_order(found, {}):
            try:
                return source.tree(request, functools.partial(self._turn, source, True), True)
            except Exception as raised:
                error = as_resource_error(source.name, raised)
                if not isinstance(error, NotInPartsError):
                    self.memory.failed(source, error)
        return None


class _UnfitError(IntegrityError):
    """The bytes match the CID, and yet are not the right file."""


def as_resource_error(source: str, error: Exception) -> ResourceError:
    """The error, if it is a ResourceError. An unexpected one is logged as a warning with its place in the code, and
    replaced by a ResourceError, so that the other sources are asked. Raises `error` if no other source can help: the
    disk is full or cannot be written.
    """
    if isinstance(error, ResourceError):
        return error
    if isinstance(error, OSError) and error.errno in _LOCAL_TROUBLE:
        raise error
    words = f"failed unexpectedly ({type(error).__name__}: {server_words(str(error).encode())})"
    last = traceback.extract_tb(error.__traceback__)[-1:]
    where = "".join(f" at {Path(frame.filename).name}:{frame.lineno}" for frame in last)
    _logger.warning("%s %s%s; the other sources are asked", source, words, where)
    return ResourceError(words)


def _ignore(count: int) -> None:
    pass


def combined_error(what: str, errors: dict[str, ResourceError]) -> ResourceError:
    """One error with the messages of all sources, by their names, of the class that is most useful to the caller."""
    if not errors:
        return NotFoundError(
            f"{what}: there is no source to ask. It needs a CID or a link, and sources in the recipe that take them."
        )
    words = f"{what}: " + "; ".join(f"{name}: {error}" for name, error in errors.items())
    found = errors.values()
    if any(isinstance(error, UnavailableError) for error in found):
        return UnavailableError(f"{words}. Run again later, or name other sources.")
    if any(isinstance(error, IntegrityError) for error in found):
        return IntegrityError(
            f"{words}. Nothing that fits was sent: check the CID in the catalogue, or leave out the "
            "source that sends wrong bytes."
        )
    if all(isinstance(error, NotFoundError) for error in found):
        return NotFoundError(f"{words}. Check the catalogue, or name a source that has it.")
    refused = ForbiddenError if any(isinstance(error, ForbiddenError) for error in found) else RefusedError
    return refused(f"{words}. Do what these ask for, or name other sources in the recipe.")
