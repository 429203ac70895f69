"""Sources of files behind one interface: each is asked in turn until one gives what was promised.

Belongs here: which source is asked when, how many at once, when it is asked again or left to rest, and telling
what each of them said. Does not: any source's protocol.
"""

import contextlib
import errno
import logging
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from resources.partials import Partials
from resources.words import server_words

_logger = logging.getLogger(__name__)
_LOCAL_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_REST_SECONDS = 60.0
_LONGEST_REST_SECONDS = 600.0
_BACKOFF_SECONDS = 0.5
_MAX_BACKOFF_SECONDS = 20.0


@dataclass(frozen=True)
class Wanted:
    """A file that is wanted.

    `name` is `<scene id>/<file name>`; `cid` and `url` are "" where none is known; `max_bytes` bounds it.
    """

    name: str
    cid: str
    url: str
    max_bytes: int

    @property
    def file_name(self) -> str:
        return self.name.rsplit("/", 1)[-1]


class Source(Protocol):
    """One place that files can be had from. Threads may use it at once."""

    @property
    def name(self) -> str:
        """How people know it: an address, or a word."""
        ...

    @property
    def host(self) -> str:
        """What bounds on requests are counted by; "" for this machine, which has none."""
        ...

    @property
    def by_cid(self) -> bool:
        """Whether all that it gives is named by a CID, so that others of its kind would give the same."""
        ...

    def offers(self, wanted: Wanted) -> bool:
        """Whether it makes sense to ask; asks nobody."""
        ...

    def fetch(
        self,
        wanted: Wanted,
        destination: Path,
        partials: Partials,
        progress: Callable[[int], None],
        brief: bool = False,
    ) -> bool:
        """Write the file to `destination`; True where its bytes are those that the CID promises.

        Asks once. Tells `progress` of bytes as they arrive. `brief` where others may have the file too: a source
        that looks for what it lacks then waits a few seconds only. Raises SlowError where it is silent,
        TryAgainError where asking again may help, else another ResourceError.
        """
        ...


@dataclass(frozen=True)
class Obtained:
    """How a file came: from which source, and whether its bytes are verified against its CID."""

    source: str
    verified: bool


@dataclass
class _Health:
    """What is remembered of a source: until when it is left out, not asked, or asked after the others."""

    unreachable_until: float = 0.0
    busy_until: float = 0.0
    late_until: float = 0.0
    silent_until: float = 0.0
    failures: int = 0

    def rest(self) -> float:
        """Seconds to spare a source that cannot be reached or is silent: a minute, twice as long each time."""
        self.failures += 1
        return min(_REST_SECONDS * 2.0 ** (self.failures - 1), _LONGEST_REST_SECONDS)


class PutOffError(SlowError):
    """A source was found silent by others while this one waited for its turn; it was not asked."""


class Asked(Protocol):
    """What a memory knows of a source, or of a node that is asked for single blocks."""

    @property
    def name(self) -> str: ...

    @property
    def host(self) -> str: ...


_Some = TypeVar("_Some", bound=Asked)


class Memory:
    """How sources fared, and at most `per_host` requests to a host at once, over all threads and all that they ask for.

    A source that cannot be reached is left out for a minute, and longer each time, up to ten; one that is silent is
    asked last for as long; one that asks for a pause gets it; one that failed otherwise is asked after the others for
    a minute.
    """

    def __init__(self, per_host: int) -> None:
        self.per_host = per_host
        self._health: dict[str, _Health] = defaultdict(_Health)
        self._slots: dict[str, threading.BoundedSemaphore] = {}
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def asking(self, source: Asked, brief: bool = False) -> Iterator[None]:
        """Wait for a turn at the source's host, and forgive it what was before if it answers.

        Raises TryAgainError where it has asked for a pause meanwhile and, if `brief`, PutOffError where it was silent.
        """
        silent = self.silent(source)
        with self._slot(source):
            if (pause := self.busy(source)) > 0:
                raise TryAgainError(f"asked for a pause of {pause:.0f} s", pause)
            if brief and not silent and self.silent(source):
                raise PutOffError("was silent just now")
            yield
        health = self._health[source.name]
        health.unreachable_until, health.late_until, health.silent_until, health.failures = 0.0, 0.0, 0.0, 0

    def busy(self, source: Asked) -> float:
        """Seconds for which the source has asked to be left alone."""
        return self._health[source.name].busy_until - time.monotonic()

    def silent(self, source: Asked) -> bool:
        return self._health[source.name].silent_until > time.monotonic()

    def in_order(self, sources: Iterable[_Some], said: dict[str, ResourceError]) -> list[_Some]:
        """The sources to ask, those that failed lately after the others, and those that were silent last; those that
        rest say why in `said`.
        """
        now = time.monotonic()
        awake = []
        for source in sources:
            rest = self._health[source.name].unreachable_until - now
            if rest > 0:
                said[source.name] = UnavailableError(f"unreachable lately, asked again in {rest:.0f} s")
            else:
                awake.append(source)
        return sorted(
            awake, key=lambda source: (self.silent(source), self._health[source.name].late_until > now)
        )

    def failed(self, source: Asked, error: ResourceError) -> None:
        """Spare others the wait, or the wrong bytes, that this one had."""
        health, now = self._health[source.name], time.monotonic()
        if isinstance(error, UnreachableError):
            # several threads may find it out at once
            if health.unreachable_until <= now:
                health.unreachable_until = now + health.rest()
        elif isinstance(error, TryAgainError) and error.retry_after:
            health.busy_until = now + error.retry_after
        elif isinstance(error, SlowError):
            if health.silent_until <= now:
                health.silent_until = now + health.rest()
        elif not isinstance(error, NotFoundError):
            health.late_until = now + _REST_SECONDS

    def _slot(self, source: Asked) -> threading.BoundedSemaphore:
        with self._lock:
            most = self.per_host if source.host else 1 << 16
            return self._slots.setdefault(source.host, threading.BoundedSemaphore(most))


@dataclass(frozen=True)
class Sources:
    """Sources in the order in which they are asked, but for what the memory of how they fared says.

    While there are others to ask, a source is asked briefly, and with all its time after them.
    """

    sources: Sequence[Source]
    attempts: int
    """How often the sources are gone through before a file is given up."""
    memory: Memory

    def obtain(
        self,
        wanted: Wanted,
        destination: Path,
        partials: Partials,
        check: Callable[[Path, bool], None],
        say: Callable[[str], None],
        progress: Callable[[int], None] | None = None,
    ) -> Obtained:
        """Write the file to `destination` from the first source that has it.

        `check` gets the path and whether it is verified, and raises IntegrityError for what is unfit. Time-outs,
        resets, cut streams, 408, 425, 429 and 5xx lead to another turn, after a growing pause with jitter or the
        server's Retry-After. Raises UnavailableError where a source may have it later, otherwise IntegrityError where
        one gave wrong bytes, otherwise NotFoundError, ForbiddenError or RefusedError; each tells what every source
        said.
        """
        said: dict[str, ResourceError] = {}
        left = self.memory.in_order((source for source in self.sources if source.offers(wanted)), said)

        def turn() -> Obtained | None:
            queue = sorted(left, key=self.memory.silent)
            briefly: list[Source] = []
            while queue:
                source = queue.pop(0)
                if source not in left:
                    continue
                brief = bool(queue) and source not in briefly
                if (pause := self.memory.busy(source)) > 0:
                    said.setdefault(source.name, UnavailableError(f"asked for a pause of {pause:.0f} s"))
                    continue
                try:
                    return self._ask(source, wanted, destination, partials, check, progress or _ignore, brief)
                except Exception as raised:
                    error = as_resource_error(source.name, raised)
                    said[source.name] = error
                    # a mirror that is wrong about one file costs the others nothing
                    if source.host or source.by_cid:
                        self.memory.failed(source, error)
                    if isinstance(error, SlowError) and brief:
                        briefly.append(source)
                        queue.append(source)
                    elif isinstance(error, _UnfitError):
                        left[:] = [other for other in left if not other.by_cid and other is not source]
                    elif not isinstance(error, TryAgainError):
                        left.remove(source)
                # a folder that lacks a file is no news
                if source.host or not isinstance(said[source.name], NotFoundError):
                    later = "; asked again, for longer, if no other source has it" if source in queue else ""
                    say(f"{wanted.file_name}: {source.name}: {said[source.name]}{later}")
            return None

        backoff = tenacity.wait_exponential(
            multiplier=_BACKOFF_SECONDS, max=_MAX_BACKOFF_SECONDS
        ) + tenacity.wait_random(0, _BACKOFF_SECONDS)

        def pause(state: tenacity.RetryCallState) -> float:
            return max(backoff(state), min(map(self.memory.busy, left)))

        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(self.attempts),
            wait=pause,
            sleep=stop.pause,
            retry=tenacity.retry_if_result(lambda found: found is None and bool(left)),
            retry_error_callback=lambda state: None,
        )
        found = retrying(turn)
        if found is None:
            why = (
                f" by its CID {wanted.cid}"
                if wanted.cid
                else ""
                if wanted.url
                else " without a CID or a link"
            )
            raise verdict(f"{wanted.file_name} could not be had{why}", said)
        return found

    def _ask(
        self,
        source: Source,
        wanted: Wanted,
        destination: Path,
        partials: Partials,
        check: Callable[[Path, bool], None],
        progress: Callable[[int], None],
        brief: bool,
    ) -> Obtained:
        with self.memory.asking(source, brief):
            verified = source.fetch(wanted, destination, partials, progress, brief)
        try:
            check(destination, verified)
        except IntegrityError as error:
            raise (_UnfitError if verified else IntegrityError)(str(error)) from error
        return Obtained(source.name, verified)


class _UnfitError(IntegrityError):
    """The bytes are those of the CID, and yet not what they should be."""


def as_resource_error(source: str, error: Exception) -> ResourceError:
    """The error; or, for one that no source should raise, what stands for it, so that the others are asked all the
    same: it is logged as a warning with its place in the code. Raises `error` where no other source can help: no room
    on the disk, or one that cannot be written.
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


def verdict(what: str, said: dict[str, ResourceError]) -> ResourceError:
    """One error that names what each source said, of the class that tells most."""
    if not said:
        return NotFoundError(
            f"{what}: there is no source to ask. It needs a CID or a link, and the recipe sources that take them."
        )
    words = f"{what}: " + "; ".join(f"{name}: {error}" for name, error in said.items())
    errors = said.values()
    if any(isinstance(error, UnavailableError) for error in errors):
        return UnavailableError(f"{words}. Run again later, or name other sources.")
    if any(isinstance(error, IntegrityError) for error in errors):
        return IntegrityError(
            f"{words}. Nothing that fits was sent: check the CID in the catalogue, or leave out the "
            "source that sends wrong bytes."
        )
    if all(isinstance(error, NotFoundError) for error in errors):
        return NotFoundError(f"{words}. Check the catalogue, or name a source that has it.")
    refused = ForbiddenError if any(isinstance(error, ForbiddenError) for error in errors) else RefusedError
    return refused(f"{words}. Do what these ask for, or name other sources in the recipe.")
