"""How slowly bytes may come before a server counts as silent, and when requests have to be over."""

import contextlib
import math
import time
from collections.abc import Iterator
from contextvars import ContextVar

from resources.errors import SlowError

SLOWEST = 4096
"""Useful bytes a second; a read time-out alone would let a byte a minute pass."""
LONGEST_SECONDS = 6 * 3600.0
"""What one request may take in all. 2 GB, as a CDL archive has, come in that time by 100 kB a second, and by less in
several requests, each of which resumes the one before.
"""
_LONGEST_OF_NOTHING = 600.0
_SLOWEST_IN_ALL = 32 << 10
"""Bytes a second of a whole file."""

_last_moment: ContextVar[float] = ContextVar("last_moment", default=math.inf)


@contextlib.contextmanager
def until(moment: float) -> Iterator[None]:
    """The requests of the block that this thread makes, with all retries and pauses, raise SlowError at a moment of
    `time.monotonic`, or at that of a block around it which ends sooner.
    """
    token = _last_moment.set(min(moment, _last_moment.get()))
    try:
        yield
    finally:
        _last_moment.reset(token)


def last_moment() -> float:
    """The moment of the innermost `until`, for another thread of the same work; infinity outside of any."""
    return _last_moment.get()


def longest_seconds(most_bytes: int) -> float:
    """What a request for so many bytes may take in all: 20 minutes for a band of 20 MB."""
    return min(_LONGEST_OF_NOTHING + most_bytes / _SLOWEST_IN_ALL, LONGEST_SECONDS)


class Pace:
    """The useful bytes of an answer over time. What is sent needlessly does not count, however much it is."""

    def __init__(self, patience: float, longest: float = LONGEST_SECONDS) -> None:
        self._patience = patience
        self._longest = longest
        self._began = self._since = time.monotonic()
        self._received = 0

    def add(self, useful: int) -> None:
        """Count useful bytes, or none. Raises SlowError after `patience` seconds with fewer than SLOWEST a second, and
        after `longest` seconds in all.
        """
        now = time.monotonic()
        self._received += useful
        if now - self._began > self._longest:
            raise SlowError(f"is too slow (not at its end after {now - self._began:.0f} s)")
        seconds = now - self._since
        if seconds > self._patience:
            if self._received < seconds * SLOWEST:
                raise SlowError(f"is too slow ({self._received} bytes in {seconds:.0f} s)")
            self._since, self._received = now, 0
