import contextlib
import os
import signal
import sys
import time
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from crop_assets.demo.server import WorldServer
from crop_assets_tests.small_world import (
    KEPT,
    TILE_STAGES,
    TILES,
    YEAR,
    Finished,
    Graph,
    Served,
    Setting,
    digests,
    new_graph,
)
from resources.store import DatasetStore

WEEK = 7 * 24 * 3600
FOLDERS = ("tiles", "tiles_reprojected", "chips", "chips_filtered")


def run_and_die(
    job: str,
    root: Path,
    home: Path,
    setting: Setting,
    server: WorldServer,
    folder: Path,
    **changes: Any,
) -> None:
    """Run a job in this process, and kill it once a file has its final name below `folder`."""

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event != "os.rename":
            return
        _, name, _, handle = arguments
        target = Path(os.fsdecode(name))
        if handle >= 0:
            target = Path(f"/proc/self/fd/{handle}").readlink() / target
        # told before a rename, of which other threads may be as far: one must have come to its end
        if target.is_relative_to(folder.resolve()) and has_files(folder):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    with new_graph(root, setting, server, dg.DagsterInstance.local_temp(str(home))) as graph:
        graph.run(job, **changes)


def has_files(folder: Path) -> bool:
    return any(path.is_file() and ".writing-" not in path.name for path in folder.rglob("*"))


def temporary_files(root: Path) -> set[str]:
    return {path.name for path in root.rglob(".writing-*")}


def finished_files(folder: Path) -> dict[str, str]:
    return {name: digest for name, digest in digests(folder).items() if ".writing-" not in name}


def test_runs_killed_at_every_stage_end_in_the_same_bytes(
    setting: Setting,
    served: Served,
    processes: ForkServerContext,
    finished: Finished,
    labelled_graph: Graph,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root, dataset = labelled_graph.root, labelled_graph.dataset
    home = tmp_path / "home"
    home.mkdir()
    undisturbed = digests(finished.graph.dataset)
    killed_files: set[str] = set()
    for folder in FOLDERS:
        process = processes.Process(
            target=run_and_die, args=("tiles_job", root, home, setting, served.server, dataset / folder)
        )
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "the run had ended before it was killed"
        assert finished_files(dataset / folder)
        whole = finished_files(dataset)
        assert whole.items() <= undisturbed.items(), "what bears a final name is whole"
        assert len(whole) < len(undisturbed)
        killed_files |= temporary_files(root)
    # a file of each thread at work, of every run
    assert len(killed_files) >= len(FOLDERS)

    with monkeypatch.context() as patch:
        now = time.time()
        patch.setattr(time, "time", lambda: now + WEEK + 60)
        with contextlib.suppress(ZeroDivisionError), DatasetStore(root=str(root)).writing("swept"):
            raise ZeroDivisionError
    assert temporary_files(root) == set()
    with new_graph(root, setting, served.server, dg.DagsterInstance.local_temp(str(home))) as graph:
        run = graph.run("tiles_job")
        assert run.success, run.failure
        for stage in TILE_STAGES:
            assert graph.instance.get_materialized_partitions(dg.AssetKey(stage)) == {
                f"{YEAR}|{tile}" for tile in TILES
            }
        assert graph.run("dataset_job").success
    assert digests(root) == digests(finished.graph.root)
    assert temporary_files(root) == set()


def test_a_dataset_killed_amid_its_folders_has_no_list_and_ends_in_the_same_bytes(
    setting: Setting,
    served: Served,
    processes: ForkServerContext,
    finished: Finished,
    labelled_graph: Graph,
    tmp_path: Path,
) -> None:
    root, dataset = labelled_graph.root, labelled_graph.dataset
    assert labelled_graph.run("tiles_job").success
    undisturbed = digests(finished.graph.dataset)
    for folder in ("training_chips", "validation_chips"):
        home = tmp_path / folder
        home.mkdir()
        process = processes.Process(
            target=run_and_die, args=("dataset_job", root, home, setting, served.server, dataset / folder)
        )
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "the run had ended before it was killed"
        assert finished_files(dataset / folder)
        assert finished_files(dataset).items() <= undisturbed.items()
        assert not list(dataset.glob("*_data.txt"))
    run = labelled_graph.run("dataset_job")
    assert run.success, run.failure
    assert finished_files(dataset) == undisturbed


def test_temporary_files_are_no_data(finished: Finished, finished_graph: Graph) -> None:
    chip = finished_graph.layout.merged(KEPT[0], "chips_filtered")
    with DatasetStore(root=str(finished_graph.root)).writing(chip) as written:
        left = written.with_name(".writing-left.tif")
        left.write_bytes(b"half a chip")
        (finished_graph.root / chip).unlink()

        runs = finished_graph.run_all()
        assert all(run.success for run in runs)
        assert temporary_files(finished_graph.root) == {written.name, left.name}
        assert finished_files(finished_graph.dataset) == digests(finished.graph.dataset)
        written.write_bytes((finished_graph.root / chip).read_bytes())
    assert temporary_files(finished_graph.root) == {left.name}
