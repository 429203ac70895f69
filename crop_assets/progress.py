"""Progress messages of long work."""

import time
from collections.abc import Callable

_SECONDS_BETWEEN_REPORTS = 5


class Progress:
    """Logs every few seconds, and at the end, how much of a known amount is done, and how long the rest may take."""

    def __init__(self, log: Callable[[str], None], total: int, what: str) -> None:
        self._log = log
        self._total = total
        self._what = what
        self._started = self._logged = time.monotonic()
        self._ended = False

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        if self._ended or (done < self._total and now - self._logged < _SECONDS_BETWEEN_REPORTS):
            return
        self._ended = done >= self._total
        self._logged = now
        left = (now - self._started) / done * (self._total - done) if done else 0
        rest = f", about {left:.0f} s to go" if left >= 1 else ""
        self._log(f"{done} of {self._total} {self._what}{rest}")
