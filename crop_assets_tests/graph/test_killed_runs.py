import multiprocessing
import os
import re
import signal
import time
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path

import dagster as dg
import pytest

from crop_assets.demo.server import WorldServer
from crop_assets_tests.graph.conftest import (
    Finished,
    Graph,
    Served,
    Setting,
    digests,
    labelled_graph,  # noqa: F401
    new_graph,
)

FOLDERS = ("tiles", "tiles_reprojected", "chips", "chips_filtered")


def run_tiles(root: Path, home: Path, setting: Setting, server: WorldServer) -> None:
    with new_graph(root, setting, server, dg.DagsterInstance.local_temp(str(home))) as graph:
        graph.run("tiles_job")


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Starts processes that have imported everything already, without this process's threads."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def finished_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*.tif") if not path.name.startswith(".writing-")]


def leftovers(root: Path) -> list[Path]:
    return sorted(root.rglob(".writing-*"))


def test_a(
    labelled_graph: Graph,
    processes: ForkServerContext, setting: Setting, served: Served, finished: Finished, tmp_path: Path
) -> None:
    graph = labelled_graph
    for folder in FOLDERS:
        print(time.time())
        process = processes.Process(target=run_tiles, args=(graph.root, tmp_path, setting, served.server))
        process.start()
        while process.is_alive() and not finished_files(graph.dataset / folder):
            time.sleep(0.002)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        print(time.time(), folder, leftovers(graph.root), len(finished_files(graph.dataset)))
    assert graph.run("tiles_job").success
    assert graph.run("dataset_job").success
    print(leftovers(graph.root))
    assert digests(graph.root) == digests(finished.graph.root)
