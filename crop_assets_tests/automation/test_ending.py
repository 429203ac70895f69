"""How runs end that do not end on their own, on a running instance with the settings of deploy/one/dagster.yaml."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import pytest
import requests
import yaml

from crop_assets.demo.run import server_environment
from crop_assets.layout import Layout
from crop_assets_tests.background import Background, Found
from crop_assets_tests.small_world import CHIPS, RECIPE, TILES, YEAR, Served, Setting, Traffic
from resources.loopback import free_port

SHIPPED = Path(__file__).resolve().parents[2] / "deploy/one/dagster.yaml"
SHORT = {"poll_interval_seconds": 1, "free_slots_after_run_end_seconds": 1}
_LAUNCH = """
mutation($job: String!, $tags: [ExecutionTag!]) {
  launchRun(executionParams: {
    selector: {repositoryName: "__repository__", repositoryLocationName: "crop_assets.definitions", jobName: $job},
    mode: "default", runConfigData: {}, executionMetadata: {tags: $tags}
  }) { __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } }
}"""


def settings(monitoring: dict[str, int]) -> str:
    """The settings in deploy/, with some shorter times of `run_monitoring`, all of which must be set there."""
    shipped = yaml.safe_load(SHIPPED.read_text())
    assert all(shipped["run_monitoring"][name] > value for name, value in monitoring.items())
    shipped["run_monitoring"] |= monitoring
    return yaml.safe_dump(shipped)


@dataclass
class Live:
    """`dagster dev` over a store with labels, as a person starts it."""

    home: Path
    environment: dict[str, str]
    port: int
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def data(self) -> Path:
        return Path(self.environment["CROP_ASSETS_DATA"])

    def configure(self, text: str) -> None:
        (self.home / "dagster.yaml").write_text(text)

    def start(self) -> None:
        line = [sys.executable, "-m", "dagster", "dev", "-m", "crop_assets.definitions"]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*line, "-h", "127.0.0.1", "-p", str(self.port)],
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.wait_for("the webserver", lambda: "data" in self.ask("{version}", {}))

    @property
    def _log(self) -> Path:
        return self.home / "dev.log"

    def wait_for(self, what: str, found: Callable[[], Found]) -> Found:
        assert self.process is not None
        return Background(self.process, self._log).wait_for(what, found)

    def ask(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        answer = requests.post(
            f"http://127.0.0.1:{self.port}/graphql",
            json={"query": query, "variables": variables},
            timeout=60,
        )
        return dict(answer.json())

    def kill(self) -> None:
        """Kill all of its processes, including runs, as the power button does."""
        assert self.process is not None
        for process in self.family():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(30)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            family = self.family()
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(30)
            for process in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()

    def family(self) -> list[psutil.Process]:
        assert self.process is not None
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]

    def launch(self, tiles: Sequence[str] = TILES) -> str:
        """The id of a new run of the tiles job."""
        where = {"start": f"{YEAR}|{tiles[0]}", "end": f"{YEAR}|{tiles[-1]}"}
        tags = [{"key": f"dagster/asset_partition_range_{k}", "value": v} for k, v in where.items()]
        answer = self.ask(_LAUNCH, {"job": "tiles_job", "tags": tags})["data"]["launchRun"]
        return str(answer["run"]["runId"])

    def chips(self) -> set[str]:
        folder = self.data / Layout("small", YEAR).root / "chips"
        return {path.name.removesuffix("_merged.tif") for path in folder.glob("*_merged.tif")}


@pytest.fixture
def live(
    tmp_path: Path, setting: Setting, served: Served, traffic: Traffic, labelled: Path
) -> Iterator[Live]:
    home = tmp_path / "home"
    home.mkdir()
    shutil.copytree(labelled, tmp_path / "data")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    environment = {
        **os.environ,
        **server_environment(served.server),
        "PYTHONWARNINGS": "ignore",
        "DAGSTER_HOME": str(home),
        "CROP_ASSETS_DATA": str(tmp_path / "data"),
        "CROP_ASSETS_RECIPE": str(tmp_path / "recipe.yaml"),
        "CROP_ASSETS_CDL": str(setting.world.cdl),
        "CROP_ASSETS_CDL_INDEX": "",
        "CROP_ASSETS_TILE_GRID": str(setting.grid),
    }
    live = Live(home, environment, free_port())
    try:
        yield live
    finally:
        traffic.clear()
        live.stop()


@contextlib.contextmanager
def instance_of(live: Live, tiles: Sequence[str] = TILES) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.from_config(str(live.home)) as instance:
        instance.add_dynamic_partitions("cdl_year", [str(YEAR)])
        instance.add_dynamic_partitions("tile", list(tiles))
        yield instance


def status(instance: dg.DagsterInstance, run: str) -> str:
    return instance.get_run_by_id(run).status.value  # type: ignore[union-attr]


def pid_of(instance: dg.DagsterInstance, run: str) -> int:
    """The process that a run has logged."""
    for record in instance.all_logs(run):
        if match := re.search(r"Started process for run \(pid: (\d+)\)", record.message):
            return int(match[1])
    raise AssertionError(f"run {run} has no process")


def slots_taken(instance: dg.DagsterInstance) -> set[str]:
    """The runs with a slot in the pool of tiles."""
    info = instance.event_log_storage.get_concurrency_info("tiles")
    return {step.run_id for step in info.claimed_slots}


def two_runs_at_work(live: Live, instance: dg.DagsterInstance) -> list[str]:
    """Two new runs of the tiles job, after they got the two slots in the pool."""
    runs = [live.launch(), live.launch()]
    live.wait_for("the runs to take their places", lambda: set(runs) <= slots_taken(instance))
    return runs


def test_slots_of_killed_runs_are_released(live: Live, traffic: Traffic) -> None:
    live.configure(settings(SHORT))
    traffic.silent.add("/cmr/")
    with instance_of(live) as instance:
        live.start()
        killed = two_runs_at_work(live, instance)
        waiting = live.launch()
        for run in killed:
            os.kill(pid_of(instance, run), signal.SIGKILL)
        traffic.clear()
        live.wait_for("the third run", lambda: status(instance, waiting) == "SUCCESS")
        assert [status(instance, run) for run in killed] == ["FAILURE", "FAILURE"]
        live.wait_for("all places", lambda: not slots_taken(instance))
    assert live.chips() == {chip for chips in CHIPS.values() for chip in chips}


def test_runs_interrupted_by_a_reboot_end_and_release_their_slots(live: Live, traffic: Traffic) -> None:
    live.configure(settings(SHORT))
    traffic.silent.add("/cmr/")
    with instance_of(live) as instance:
        live.start()
        runs = two_runs_at_work(live, instance)
        live.kill()
        assert [status(instance, run) for run in runs] == ["STARTED", "STARTED"]
    live.configure(settings({**SHORT, "max_runtime_seconds": 1}))
    with instance_of(live) as instance:
        live.start()
        for run in runs:
            live.wait_for("its end", lambda run=run: status(instance, run) == "FAILURE")  # type: ignore[misc]
        live.wait_for("all places", lambda: not slots_taken(instance))
