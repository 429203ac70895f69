"""A file whose first line names ranges of it, and a selection of those ranges."""

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path

from resources.parts import Range
from resources.tiff import Read

LINE = 4096


def file_of(ranges: Sequence[Range], size: int, seed: str = "") -> bytes:
    """A file of `size` bytes that look random, after its first line."""
    line = json.dumps(ranges).encode() + b"\n"
    return line + hashlib.shake_256(seed.encode()).digest(size - len(line))


def selected(data: bytes) -> bytes:
    """What a selection of the file's ranges writes."""
    ranges: list[Range] = json.loads(data[:LINE].partition(b"\n")[0])
    return b"".join(data[start:stop] for start, stop in ranges)


class NamedRanges:
    """Writes the ranges that the file's first line names, one after the other."""

    def __init__(self, pool: Executor) -> None:
        self.pool = pool
        self.chosen: list[tuple[str, int]] = []
        """The version and size of each file that it was given."""
        self.written: list[tuple[str, bool]] = []
        """The version of what it wrote, and whether that is verified."""

    def choose(self, read: Read, size: int, version: str) -> list[Range]:
        self.chosen.append((version, size))
        self._ranges: list[Range] = [tuple(one) for one in json.loads(read(0, LINE).partition(b"\n")[0])]
        return self._ranges

    def write(self, read: Read, destination: Path, version: str, verified: bool) -> None:
        destination.write_bytes(b"".join(read(*one) for one in self._ranges))
        self.written.append((version, verified))
