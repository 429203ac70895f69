import os
import threading
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from rasterio.env import get_gdal_config

from resources import machine
from resources.machine import MAX_WORKERS, Machine

GIB = 1 << 30


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the limits of a container on a machine of 8 cores and 32 GiB; none are set at first."""
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    memory(monkeypatch, 32 * GIB)
    return tmp_path


def memory(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free))


@pytest.mark.parametrize("workers", [1, 3, 64])
def test_a_number_of_workers_is_what_it_says(cgroup: Path, workers: int) -> None:
    (cgroup / "cpu.max").write_text("100000 100000\n")
    (cgroup / "memory.max").write_text("1000\n")
    assert Machine(workers=workers).threads == workers


@pytest.mark.parametrize("workers", [0, -1])
def test_otherwise_there_is_a_thread_for_each_core(cgroup: Path, workers: int) -> None:
    assert Machine(workers=workers).threads == 8
    assert Machine().threads == 8


@pytest.mark.parametrize(
    ("quota", "threads"),
    [
        ("max 100000", 8),
        ("400000 100000", 4),
        ("250000 100000", 2),
        ("50000 100000", 1),
        ("1600000 100000", 8),
        ("150000 50000", 3),
        ("", 8),
    ],
)
def test_a_container_is_given_no_more_threads_than_its_share_of_cores(
    cgroup: Path, quota: str, threads: int
) -> None:
    (cgroup / "cpu.max").write_text(f"{quota}\n")
    assert Machine().threads == threads


@pytest.mark.parametrize(
    ("limit", "threads"),
    [("max", 8), (str(64 * GIB), 8), (str(2 * GIB), 4), (str(2 * GIB - 1), 3), (str(GIB // 4), 1), ("0", 1)],
)
def test_a_thread_is_given_half_a_gigabyte_of_a_containers_memory(
    cgroup: Path, limit: str, threads: int
) -> None:
    (cgroup / "memory.max").write_text(f"{limit}\n")
    assert Machine().threads == threads


@pytest.mark.parametrize(("free", "threads"), [(32 * GIB, 8), (3 * GIB, 6), (GIB // 2, 1), (0, 1)])
def test_a_thread_is_given_half_a_gigabyte_of_free_memory(
    cgroup: Path, monkeypatch: pytest.MonkeyPatch, free: int, threads: int
) -> None:
    memory(monkeypatch, free)
    (cgroup / "memory.max").write_text(f"{8 * GIB}\n")
    assert Machine().threads == threads


def test_the_tightest_bound_counts(cgroup: Path) -> None:
    (cgroup / "cpu.max").write_text("600000 100000")
    (cgroup / "memory.max").write_text(str(GIB))
    assert Machine().threads == 2


def test_cores_that_a_scheduler_keeps_for_others_do_not_count(
    cgroup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {2, 5}, raising=False)
    assert Machine().threads == 2


def test_where_affinity_is_unknown_all_cores_count(cgroup: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert Machine().threads == 5
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert Machine().threads == 1


def test_threads_start_as_work_comes() -> None:
    before = threading.active_count()
    with Machine(workers=MAX_WORKERS).pool() as pool:
        assert threading.active_count() == before
        for _ in range(20):
            assert pool.submit(int).result() == 0
        together = threading.Barrier(3, timeout=10)
        list(pool.map(lambda _: together.wait(), range(3)))
        assert threading.active_count() <= before + 20 + 3
    assert threading.active_count() == before


def test_this_machine_has_at_least_one_thread() -> None:
    assert 1 <= Machine().threads <= (os.cpu_count() or 1)


def test_a_pool_has_the_threads_of_the_machine_and_bounds_gdals_cache() -> None:
    together = threading.Barrier(3, timeout=10)
    before = get_gdal_config("GDAL_CACHEMAX")
    with Machine(workers=3).pool() as pool:
        list(pool.map(lambda _: together.wait(), range(3)))
        assert get_gdal_config("GDAL_CACHEMAX") == 64 << 20
        with pytest.raises(threading.BrokenBarrierError):
            pool.submit(threading.Barrier(2, timeout=0.01).wait).result()
    assert get_gdal_config("GDAL_CACHEMAX") == before
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(int)
