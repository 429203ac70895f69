"""Progress messages and statistics of a download of many files."""

import threading
import time
from collections.abc import Callable

_SECONDS_BETWEEN_REPORTS = 5
_TYPICAL_BAND_BYTES = 18 << 20
"""A deflated HLS band has 15 to 20 MB."""


def expected_bytes(known: int, limit: int) -> int:
    """The size of a file if `known`; if that is 0, the size of a typical band, or `limit` if that is smaller."""
    return known or min(limit, _TYPICAL_BAND_BYTES)


class Transfer:
    """Counts the bytes and files of one tile's download, from many threads, and logs its progress every few seconds."""

    def __init__(self, log: Callable[[str], None], files: int) -> None:
        self._log = log
        self._files = files
        self._done = 0
        self._bytes = 0
        self._started = self._logged = time.monotonic()
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        """Count received bytes."""
        with self._lock:
            self._bytes += count
            now = time.monotonic()
            if now - self._logged < _SECONDS_BETWEEN_REPORTS:
                return
            self._logged = now
            message = self._state()
        self._log(message)

    def file_done(self) -> None:
        with self._lock:
            self._done += 1
            message = self._state() if self._done == self._files else ""
        if message:
            self._log(message)

    def _state(self) -> str:
        seconds = max(time.monotonic() - self._started, 1e-3)
        rate = f", {self._bytes / 1e6:,.1f} MB downloaded at {self._bytes / seconds / 1e6:,.1f} MB/s"
        return f"{self._done} of {self._files} files{rate if self._bytes else ''}"

    def metadata(self) -> dict[str, int | float]:
        """Bytes downloaded, and megabytes per second over the total time."""
        seconds = max(time.monotonic() - self._started, 1e-3)
        return {"fetched_bytes": self._bytes, "megabytes_per_second": round(self._bytes / seconds / 1e6, 1)}
