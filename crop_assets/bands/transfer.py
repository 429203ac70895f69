"""What a download of many files comes to: how much there is to fetch, and how fast it goes.

Belongs here: counting and telling. Does not: fetching.
"""

import threading
import time
from collections.abc import Callable

_SECONDS_BETWEEN_REPORTS = 5
_TYPICAL_BAND_BYTES = 18 << 20
"""A deflated HLS band has some 15 to 20 MB."""


def expected_bytes(known: int, most: int) -> int:
    """The size of a file as far as metadata tell: `known`, or where that is 0 a typical band's, at most `most`."""
    return known or min(most, _TYPICAL_BAND_BYTES)


class Transfer:
    """Counts the bytes and files of one tile's download, from many threads, and says now and then how far it is."""

    def __init__(self, say: Callable[[str], None], files: int) -> None:
        self._say = say
        self._files = files
        self._done = 0
        self._bytes = 0
        self._started = self._told = time.monotonic()
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        """Count bytes that have arrived."""
        with self._lock:
            self._bytes += count
            now = time.monotonic()
            if now - self._told < _SECONDS_BETWEEN_REPORTS:
                return
            self._told = now
            told = self._state()
        self._say(told)

    def file_done(self) -> None:
        with self._lock:
            self._done += 1
            told = self._state() if self._done == self._files else ""
        if told:
            self._say(told)

    def _state(self) -> str:
        seconds = max(time.monotonic() - self._started, 1e-3)
        rate = f", {self._bytes / 1e6:,.1f} MB fetched at {self._bytes / seconds / 1e6:,.1f} MB/s"
        return f"{self._done} of {self._files} files{rate if self._bytes else ''}"

    def metadata(self) -> dict[str, int | float]:
        """Bytes fetched, and megabytes a second over the whole time."""
        seconds = max(time.monotonic() - self._started, 1e-3)
        return {"fetched_bytes": self._bytes, "megabytes_per_second": round(self._bytes / seconds / 1e6, 1)}
