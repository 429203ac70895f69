"""The running daemon: from an archive on the index to a dataset, without a person but for turning a sensor on."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import dagster as dg
import pytest
import yaml

from crop_assets.demo.run import server_environment
from crop_assets.layout import Layout
from crop_assets_tests.browser.test_ui import free_port
from crop_assets_tests.graph.conftest import CHIPS, KEPT, TILES, YEAR, Served, Setting
from crop_assets_tests.graph.conftest import processes as processes
from crop_assets_tests.graph.conftest import served as served
from crop_assets_tests.graph.conftest import setting as setting
from crop_assets_tests.resources.nass import Nass, archive_of
from crop_assets_tests.resources.nass import nass as nass

Found = TypeVar("Found")
DAGSTER_YAML = {"telemetry": {"enabled": False}, "run_queue": {"dequeue_interval_seconds": 1}}


def wait_for(what: str, found: Callable[[], Found], seconds: float = 240) -> Found:
    deadline = time.monotonic() + seconds
    while not (result := found()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(1)
    return result


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "dagster_home"
    home.mkdir()
    (home / "dagster.yaml").write_text(yaml.safe_dump(DAGSTER_YAML))
    return home


@pytest.fixture
def environment(tmp_path: Path, home: Path, setting: Setting, served: Served, nass: Nass) -> dict[str, str]:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"dataset": "small", "min_classes": 1}))
    return {
        **os.environ,
        **server_environment(served.server),
        "PYTHONWARNINGS": "ignore",
        "DAGSTER_HOME": str(home),
        "CROP_ASSETS_DATA": str(tmp_path / "data"),
        "CROP_ASSETS_RECIPE": str(recipe),
        "CROP_ASSETS_CDL": str(tmp_path / "data/cdl"),
        "CROP_ASSETS_CDL_INDEX": nass.index,
        "CROP_ASSETS_TILE_GRID": str(setting.grid),
    }


@pytest.fixture
def command(environment: dict[str, str]) -> Callable[..., None]:
    def run(*words: str) -> None:
        line = [sys.executable, "-m", "dagster", *words, "-m", "crop_assets.definitions"]
        subprocess.run(line, env=environment, check=True, capture_output=True, timeout=120)

    return run


@pytest.fixture
def daemon(environment: dict[str, str]) -> Iterator[Callable[[], None]]:
    """Starts `dagster dev`, as a person does."""
    running: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        line = [sys.executable, "-m", "dagster", "dev", "-m", "crop_assets.definitions"]
        line += ["-h", "127.0.0.1", "-p", str(free_port())]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        running.append(subprocess.Popen(line, env=environment, **quiet))  # type: ignore[call-overload]

    yield start
    for process in running:
        process.terminate()
        process.wait(60)


def statuses(instance: dg.DagsterInstance, job: str) -> list[dg.DagsterRunStatus]:
    return [run.status for run in instance.get_runs(dg.RunsFilter(job_name=job))]


def dataset_runs(instance: dg.DagsterInstance) -> list[dg.DagsterRunStatus]:
    splits = dg.AssetKey("splits")
    return [run.status for run in instance.get_runs() if splits in (run.asset_selection or ())]


def versions(instance: dg.DagsterInstance) -> dict[str, str]:
    states = [s for s in instance.all_instigator_state() if s.instigator_name == "cdl_release_sensor"]
    data = states[0].instigator_data if states else None
    return json.loads(getattr(data, "cursor", None) or "{}").get("versions", {})


def test_the_first_tick_of_the_daemon_records_what_is_there(
    nass: Nass, home: Path, daemon: Callable[[], None]
) -> None:
    nass.put(2020, b"an archive that nobody asked for")
    daemon()
    with dg.DagsterInstance.from_config(str(home)) as instance:
        wait_for("the first tick", lambda: versions(instance))
        assert versions(instance).keys() == {"2020"}
        assert instance.get_runs() == []
        assert instance.get_dynamic_partitions("cdl_year") == []
    assert nass.asked_for("GET") == ["/Release/index.php"]


def test_a_new_release_becomes_a_dataset(
    nass: Nass,
    home: Path,
    tmp_path: Path,
    setting: Setting,
    command: Callable[..., None],
    daemon: Callable[[], None],
) -> None:
    nass.put(2020, b"an archive that nobody asked for")
    nass.put(YEAR, archive_of(tmp_path / "packed.zip", setting.world.cdl, f"{YEAR}_30m_cdls.tif"))
    # what an earlier day's look left: 2020 was there, 2022 was not
    place = f"{tmp_path / 'data/cdl'} {nass.index}"
    known = json.dumps({"place": place, "versions": {"2020": "as it was"}})
    command("sensor", "cursor", "cdl_release_sensor", "--set", known)
    nass.etags["/Release/datasets/2020_30m_cdls.zip"] = "as it was"
    command("sensor", "start", "cdl_release_sensor")
    command("sensor", "start", "dataset_sensor")
    daemon()
    success = [dg.DagsterRunStatus.SUCCESS]
    with dg.DagsterInstance.from_config(str(home)) as instance:
        wait_for("the labels", lambda: statuses(instance, "labels_job") == success)
        assert instance.get_dynamic_partitions("cdl_year") == [str(YEAR)]
        assert set(instance.get_dynamic_partitions("tile")) == set(TILES)
        backfills = wait_for("a backfill", lambda: instance.get_backfills())
        wait_for("the dataset", lambda: dataset_runs(instance) == success)
        assert len(backfills) == len(instance.get_backfills()) == 1
        assert versions(instance).keys() == {"2020", str(YEAR)}
    assert "/Release/datasets/2020_30m_cdls.zip" not in nass.asked_for("GET")
    dataset = tmp_path / "data" / Layout("small", YEAR).root
    kept = {
        name
        for file in ("train_data.txt", "validation_data.txt")
        for name in (dataset / file).read_text().split()
    }
    assert kept == set(KEPT)
    assert kept < {chip for chips in CHIPS.values() for chip in chips}
