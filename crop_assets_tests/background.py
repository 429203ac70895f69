"""Servers and daemons that run beside a test, in processes of their own."""

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import requests

Found = TypeVar("Found")
SECONDS = 600
"""Many times what anything takes, also on a machine with other work."""


@dataclass(frozen=True)
class Background:
    """A process that runs until it is ended. Its output is in a file, which nobody has to read for it to go on."""

    process: subprocess.Popen[bytes]
    log: Path

    def wait_for(self, what: str, found: Callable[[], Found]) -> Found:
        """What `found` returns, once that is true. A server that does not answer yet has not found it.

        Fails with the output of the process where it ends before that, or much too much time passes.
        """
        deadline = time.monotonic() + SECONDS
        while True:
            # before asking, for what was found by the time of the end counts
            ended = self.process.poll()
            with contextlib.suppress(requests.RequestException, KeyError):
                if result := found():
                    return result
            assert ended is None, f"ended with {ended} before {what} was there:\n{self.output}"
            assert time.monotonic() < deadline, f"waited in vain for {what}:\n{self.output}"
            time.sleep(0.5)

    @property
    def output(self) -> str:
        """The end of what it wrote."""
        return self.log.read_text(errors="replace")[-20_000:]


@contextlib.contextmanager
def background(
    command: Sequence[str],
    log: Path,
    environment: Mapping[str, str] | None = None,
    start_new_session: bool = False,
) -> Iterator[Background]:
    """A command that runs for as long as the context lasts, and is then asked to end."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=start_new_session,
        )
        try:
            yield Background(process, log)
        finally:
            process.terminate()
            try:
                process.wait(SECONDS)
            finally:
                process.kill()
