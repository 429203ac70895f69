"""Minimum transfer rates, and deadlines of requests."""

import contextlib
import math
import time
from collections.abc import Iterator
from contextvars import ContextVar

from resources.errors import SlowError

SLOWEST = 4096
"""Useful bytes per second. A read timeout alone would permit one byte a minute."""
MAX_SECONDS = 6 * 3600.0
"""Maximum duration of one request: enough for the 2 GB of a CDL archive at 100 kB/s. At a lower rate it takes several
requests, each of which resumes the one before.
"""
_MAX_EMPTY_SECONDS = 600.0
_SLOWEST_IN_ALL = 32 << 10
"""Bytes per second, over a complete file."""

_deadline: ContextVar[float] = ContextVar("deadline", default=math.inf)


@contextlib.contextmanager
def deadline(moment: float) -> Iterator[None]:
    """Set a deadline, a moment of `time.monotonic`, for this thread's requests in the block, with retries and pauses.

    They raise SlowError after it. An earlier deadline of an enclosing block still applies.
    """
    token = _deadline.set(min(moment, _deadline.get()))
    try:
        yield
    finally:
        _deadline.reset(token)


def current_deadline() -> float:
    """The deadline of this thread, to pass on to another thread; infinity if there is none."""
    return _deadline.get()


def max_seconds(max_bytes: int) -> float:
    """Maximum duration of a request for so many bytes: 20 minutes for a band of 20 MB."""
    return min(_MAX_EMPTY_SECONDS + max_bytes / _SLOWEST_IN_ALL, MAX_SECONDS)


class Pace:
    """Checks the rate of a response's useful bytes; those sent needlessly do not count."""

    def __init__(self, patience: float, longest: float = MAX_SECONDS) -> None:
        self._patience = patience
        self._longest = longest
        self._began = self._since = time.monotonic()
        self._received = 0

    def add(self, useful: int) -> None:
        """Count useful bytes, possibly 0. Raises SlowError after `patience` seconds at a rate below SLOWEST, and after
        `longest` seconds in all.
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
