"""The running daemon: from an archive on the release page to a dataset, after turning on a sensor."""

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorTick,
    SensorInstigatorData,
    TickStatus,
)

from crop_assets.demo.run import server_environment
from crop_assets.layout import Layout
from crop_assets_tests.background import Background, background
from crop_assets_tests.resources.nass import Nass, archive_of
from crop_assets_tests.resources.nass import nass as nass
from crop_assets_tests.small_world import (
    EAST,
    KEPT,
    RECIPE,
    SOUTH,
    THREE_TILES,
    TILE_STAGES,
    WEST,
    YEAR,
    Served,
    Setting,
)
from resources.loopback import free_port

DAGSTER_YAML = {
    "telemetry": {"enabled": False},
    "nux": {"enabled": False},
    "run_queue": {"dequeue_interval_seconds": 1},
}
INDEX = "/Release/index.php"
PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "dagster_home"
    home.mkdir()
    (home / "dagster.yaml").write_text(yaml.safe_dump(DAGSTER_YAML))
    # where two processes make Dagster's databases at the same time, one of them can fail
    with dg.DagsterInstance.from_config(str(home)):
        return home


@pytest.fixture
def environment(tmp_path: Path, home: Path, setting: Setting, served: Served, nass: Nass) -> dict[str, str]:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE))
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


@contextlib.contextmanager
def daemon(home: Path, environment: dict[str, str]) -> Iterator[tuple[Background, dg.DagsterInstance]]:
    """`dg dev`, as a person runs it, and its instance."""
    line = [str(Path(sys.executable).with_name("dg")), "dev", "--target-path", str(PROJECT)]
    line += ["-h", "127.0.0.1", "-p", str(free_port())]
    environment = {name: value for name, value in environment.items() if name != "PYTHONWARNINGS"}
    with (
        background(line, home / "dev.log", environment) as running,
        dg.DagsterInstance.from_config(str(home)) as instance,
    ):
        yield running, instance


def statuses(instance: dg.DagsterInstance, job: str) -> list[dg.DagsterRunStatus]:
    return [run.status for run in instance.get_runs(dg.RunsFilter(job_name=job))]


def dataset_runs(instance: dg.DagsterInstance) -> list[dg.DagsterRunStatus]:
    splits = dg.AssetKey("splits")
    return [run.status for run in instance.get_runs() if splits in (run.asset_selection or ())]


def release_sensor(instance: dg.DagsterInstance) -> InstigatorState | None:
    states = instance.all_instigator_state()
    return next((state for state in states if state.instigator_name == "cdl_release_sensor"), None)


def ticks(instance: dg.DagsterInstance) -> list[InstigatorTick]:
    """The finished ticks of the release sensor, the latest first."""
    state = release_sensor(instance)
    found = instance.get_ticks(state.instigator_origin_id, state.selector_id) if state else []
    return [tick for tick in found if tick.status != TickStatus.STARTED]


def versions(instance: dg.DagsterInstance) -> dict[str, str]:
    state = release_sensor(instance)
    data = state.instigator_data if state else None
    return json.loads(getattr(data, "cursor", None) or "{}").get("versions", {})


def let_a_minute_pass(instance: dg.DagsterInstance, running: Background) -> None:
    """Move the daemon's times of the release sensor back by a minute, after its tick has ended."""

    def at_rest() -> InstigatorState | None:
        state = release_sensor(instance)
        data = state.instigator_data if state else None
        assert isinstance(data, SensorInstigatorData)
        return state if data.last_tick_timestamp == data.last_tick_start_timestamp else None

    state = running.wait_for("the end of the tick", at_rest)
    assert state is not None
    times = ("last_tick_timestamp", "last_tick_start_timestamp", "last_sensor_start_timestamp")
    earlier = {name: getattr(state.instigator_data, name) - 61 for name in times}
    instance.update_instigator_state(state.with_data(state.instigator_data._replace(**earlier)))  # type: ignore[union-attr]


def test_the_first_look_of_the_daemon_records_what_is_there_and_is_tried_again_if_it_fails(
    nass: Nass, home: Path, environment: dict[str, str]
) -> None:
    nass.put(2020, b"an archive that nobody asked for")
    nass.broken[INDEX] = 404
    with daemon(home, environment) as (running, instance):
        running.wait_for("the first tick", lambda: ticks(instance))
        assert [tick.status for tick in ticks(instance)] == [TickStatus.SKIPPED]
        assert f"{INDEX} answered 404" in str(ticks(instance)[0].skip_reason)
        assert versions(instance) == {}
        lines = [line for line in running.output.splitlines() if "answered 404" in line]
        assert len(lines) == 1
        assert "Sensor cdl_release_sensor skipped: the look failed: " in lines[0]
        assert not re.search("Traceback|Warning|warning|superseded", running.output)
        nass.broken.clear()
        let_a_minute_pass(instance, running)
        running.wait_for("the second tick", lambda: versions(instance))
        assert versions(instance).keys() == {"2020"}
        asked = len(nass.asked_for("GET"))
        let_a_minute_pass(instance, running)
        running.wait_for("the third tick", lambda: len(ticks(instance)) == 3)
        assert "the next one is due at" in str(ticks(instance)[0].skip_reason)
        assert instance.get_runs() == []
        assert instance.get_dynamic_partitions("cdl_year") == []
    assert nass.asked_for("GET") == [INDEX] * asked


def test_a_new_release_becomes_a_dataset(
    nass: Nass,
    home: Path,
    tmp_path: Path,
    setting: Setting,
    environment: dict[str, str],
    three_tiles: dict[str, Any],
    command: Callable[..., None],
) -> None:
    boxes = three_tiles["recipe"].chip_boxes
    Path(environment["CROP_ASSETS_RECIPE"]).write_text(yaml.safe_dump({**RECIPE, "chip_boxes": boxes}))
    environment["CROP_ASSETS_TILES_PER_RUN"] = "2"
    nass.put(2020, b"an archive that nobody asked for")
    labels = Path(three_tiles["cdl_releases"].source)
    nass.put(YEAR, archive_of(tmp_path / "packed.zip", labels, f"{YEAR}_30m_cdls.tif"))
    # what an earlier day's look left: 2020 was there, 2022 was not
    place = f"{tmp_path / 'data/cdl'} {nass.index}"
    known = json.dumps({"place": place, "versions": {"2020": "as it was"}})
    command("sensor", "cursor", "cdl_release_sensor", "--set", known)
    nass.etags["/Release/datasets/2020_30m_cdls.zip"] = "as it was"
    command("sensor", "start", "cdl_release_sensor")
    command("sensor", "start", "dataset_sensor")
    success = [dg.DagsterRunStatus.SUCCESS]
    with daemon(home, environment) as (running, instance):
        running.wait_for("the labels", lambda: statuses(instance, "labels_job") == success)
        assert instance.get_dynamic_partitions("cdl_year") == [str(YEAR)]
        assert set(instance.get_dynamic_partitions("tile")) == {WEST, EAST, SOUTH}
        backfills = running.wait_for("a backfill", lambda: instance.get_backfills())
        running.wait_for("the dataset", lambda: dataset_runs(instance) == success)
        assert len(backfills) == len(instance.get_backfills()) == 1
        assert versions(instance).keys() == {"2020", str(YEAR)}
    assert "/Release/datasets/2020_30m_cdls.zip" not in nass.asked_for("GET")
    dataset = tmp_path / "data" / Layout("small", YEAR).root
    for stage in TILE_STAGES:
        tables = (dataset / "tables" / stage).glob("*.parquet")
        assert {path.stem for path in tables} == {WEST, EAST, SOUTH}, stage
    kept = {
        name
        for file in ("train_data.txt", "validation_data.txt")
        for name in (dataset / file).read_text().split()
    }
    named = {chip for tile in (WEST, EAST) for chip in THREE_TILES[tile]}
    assert kept == named & set(KEPT)
    assert len(kept) > 2
