"""Telling how far long work is.

Belongs here: how often, and in what words. Does not: the work.
"""

import time
from collections.abc import Callable

_SECONDS_BETWEEN_REPORTS = 5


class Progress:
    """Says now and then, and at the end, how much of a known amount is done, and how long the rest may take."""

    def __init__(self, say: Callable[[str], None], total: int, what: str) -> None:
        self._say = say
        self._total = total
        self._what = what
        self._started = self._told = time.monotonic()
        self._ended = False

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        if self._ended or (done < self._total and now - self._told < _SECONDS_BETWEEN_REPORTS):
            return
        self._ended = done >= self._total
        self._told = now
        left = (now - self._started) / done * (self._total - done) if done else 0
        rest = f", some {left:.0f} s to go" if left >= 1 else ""
        self._say(f"{done} of {self._total} {self._what}{rest}")
