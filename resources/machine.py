"""How many threads may compute at once on this machine, by its cores and memory."""

import contextlib
import os
from collections.abc import Iterator
from concurrent.futures import Executor
from pathlib import Path

import psutil
import rasterio
from pydantic import Field

from resources.settings import Settings
from resources.stop import StoppablePool

MAX_WORKERS = 1024
_BYTES_PER_THREAD = 512 << 20
"""More than the peak of a whole process that works on one tile, which the benchmarks measure."""
_GDAL_CACHE_BYTES = 64 << 20
"""For decoded blocks. GDAL's default, 5 % of the memory, grows with the machine to no use here."""
CGROUP = Path("/sys/fs/cgroup")
"""The limits of this process's container (cgroup v2)."""


class Machine(Settings):
    """Limits on what a run takes of its machine."""

    workers: int = Field(
        default=0,
        ge=-1,
        le=MAX_WORKERS,
        description="Threads that compute at once, and tiles that a run works on at once; 0 (or -1) takes as many as "
        "there are cores, and memory at half a gigabyte each.",
    )

    @property
    def threads(self) -> int:
        return self.workers if self.workers > 0 else max(1, min(_cores(), _memory() // _BYTES_PER_THREAD))

    @contextlib.contextmanager
    def pool(self) -> Iterator[Executor]:
        """A pool of threads; within the block, GDAL's cache is limited."""
        with rasterio.Env(GDAL_CACHEMAX=_GDAL_CACHE_BYTES), StoppablePool(self.threads) as pool:
            yield pool


def _cores() -> int:
    # os.cpu_count() also counts cores that a scheduler has given to others
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _container_limit("cpu.max").partition(" ")
    return min(cores, max(1, int(quota) // int(period))) if quota.isdigit() else cores


def _memory() -> int:
    free = int(psutil.virtual_memory().available)
    limit = _container_limit("memory.max")
    return min(free, int(limit)) if limit.isdigit() else free


def _container_limit(name: str) -> str:
    """A limit of this process's container (cgroup v2); "" or "max" if there is none."""
    try:
        return (CGROUP / name).read_text().strip()
    except OSError:
        return ""
