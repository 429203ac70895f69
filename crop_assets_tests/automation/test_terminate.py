"""A run terminated as from the UI, on a running instance with the settings of deploy/one/dagster.yaml."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from crop_assets.layout import Layout
from crop_assets_tests.automation.test_ending import (
    Live,
    instance_of,
    pid_of,
    settings,
    slots_taken,
    status,
)
from crop_assets_tests.automation.test_ending import live as live
from crop_assets_tests.small_world import (
    EAST,
    RECIPE,
    SOUTH,
    THREE_TILES,
    WEST,
    YEAR,
    Served,
    Setting,
    Traffic,
    digests,
    new_graph,
)

LONGEST_END = 30.0
"""Seconds from Terminate until the process of the run is gone, on a machine with much other work: it takes some four,
and minutes where threads go on. Run monitoring then shows CANCELED after one minute, and the process goes on."""
TILES = (SOUTH, WEST, EAST)
TERMINATE = """mutation($run: String!) {terminateRun(runId: $run) {
    __typename ... on TerminateRunFailure {message} ... on PythonError {message}}}"""


@pytest.fixture
def three(tmp_path: Path, live: Live, setting: Setting, served: Served, three_tiles: dict[str, Any]) -> Path:
    """The dataset of an undisturbed run of three tiles. Of these, `live` has the labels, and a command `ipfs` that
    knows no content, or hangs while there is a file `hang` beside it."""
    labels, made = tmp_path / "labels", tmp_path / "made"
    recipe = three_tiles["recipe"].model_copy(update={"sources": ["ipfs_cli", "gateways"]})
    with new_graph(made, setting, served.server) as graph:
        assert graph.run("labels_job", **three_tiles | {"recipe": recipe}).success
        shutil.copytree(made, labels)
        assert graph.run("tiles_job", TILES, **three_tiles | {"recipe": recipe}).success
    shutil.rmtree(live.data)
    labels.rename(live.data)
    chosen = {**RECIPE, "chip_boxes": recipe.chip_boxes, "sources": recipe.sources}
    Path(live.environment["CROP_ASSETS_RECIPE"]).write_text(yaml.safe_dump(chosen))
    command = tmp_path / "bin/ipfs"
    command.parent.mkdir()
    command.write_text('#!/bin/sh\n[ -e "${0%/*}/hang" ] && sleep 600\necho not found >&2\nexit 1\n')
    command.chmod(0o755)
    live.environment |= {
        "CROP_ASSETS_CDL": three_tiles["cdl_releases"].source,
        "CROP_ASSETS_WORKERS": "3",
        "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}",
    }
    return made


def lives(process: psutil.Process) -> bool:
    """Whether the process is running, and not a zombie."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_terminated_run_is_gone_sends_no_requests_and_releases_its_slot(
    tmp_path: Path, live: Live, traffic: Traffic, three: Path
) -> None:
    live.configure(settings({}))
    hang = tmp_path / "bin/hang"

    def terminated(asked: Callable[[], int]) -> None:
        """Launch a run, terminate it when several of its threads are working, and check what is left."""
        traffic.asked.clear()
        run = live.launch(TILES)
        live.wait_for("what it waits for", lambda: asked() >= 2)
        process = psutil.Process(pid_of(instance, run))
        children = process.children(recursive=True)
        assert (
            live.ask(TERMINATE, {"run": run})["data"]["terminateRun"]["__typename"] == "TerminateRunSuccess"
        )
        sent = time.monotonic()
        live.wait_for("CANCELED", lambda: status(instance, run) == "CANCELED")
        requests_made = len(traffic.asked)
        live.wait_for("its process to end", lambda: not lives(process))
        assert time.monotonic() - sent < LONGEST_END
        assert len(traffic.asked) == requests_made, "a run that is shown as CANCELED went on"
        assert not slots_taken(instance)
        assert not [child for child in children if lives(child)]
        hang.unlink(missing_ok=True)
        traffic.clear()

    with instance_of(live, TILES) as instance:
        live.start()
        for piece, manner in (
            ("/cmr/", "silent"),
            ("/cmr/", "busy"),
            ("/ipfs/", "silent"),
            ("/ipfs/", "busy"),
            ("/ipfs/", "dripping"),
        ):
            getattr(traffic, manner).add(piece)
            terminated(lambda piece=piece: sum(piece in one.path for one in traffic.asked))  # type: ignore[misc]
        hang.touch()
        # or the files come from there before long
        traffic.silent.add("/ipfs/")
        terminated(lambda: sum(process.name() == "sleep" for process in live.family()))

        run = live.launch(TILES)
        live.wait_for("the next run", lambda: status(instance, run) == "SUCCESS")
    dataset = Layout("small", YEAR).root
    assert digests(live.data / dataset) == digests(three / dataset)
    assert live.chips() == {chip for tile in (WEST, EAST) for chip in THREE_TILES[tile]}
