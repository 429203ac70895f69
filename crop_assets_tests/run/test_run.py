"""`crop-assets run` and `crop-assets status`, as a batch scheduler or a person calls them, from an empty store."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from crop_assets.dagster_internals import daemon_is_live
from crop_assets.layout import Layout
from crop_assets_tests.automation.test_daemon import daemon
from crop_assets_tests.automation.test_daemon import environment as environment
from crop_assets_tests.automation.test_daemon import home as home
from crop_assets_tests.automation.test_ending import SHIPPED, slots_taken
from crop_assets_tests.automation.test_launches import CHIPS
from crop_assets_tests.background import Background
from crop_assets_tests.resources.nass import nass as nass
from crop_assets_tests.small_world import (
    EAST,
    RECIPE,
    SOUTH,
    TILE_STAGES,
    WEST,
    YEAR,
    Served,
    Setting,
    Traffic,
    digests,
    new_graph,
)

EARLIER = YEAR - 1
TILES = {EAST, SOUTH, WEST}
COMMAND = str(Path(sys.executable).with_name("crop-assets"))


@pytest.fixture
def variables(tmp_path: Path, environment: dict[str, str], three_tiles: dict[str, Any]) -> dict[str, str]:
    """The environment for three tiles with two chips each, without a recipe; nothing is published for one of them, or
    for the earlier year."""
    source = Path(three_tiles["cdl_releases"].source)
    shutil.copy(source, tmp_path / source.name)
    shutil.copy(source, tmp_path / source.name.replace(str(YEAR), str(EARLIER)))
    recipe = {**RECIPE, "chip_boxes": three_tiles["recipe"].chip_boxes}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    cdl = str(tmp_path / source.name).replace(str(YEAR), "{year}")
    changes = {"CROP_ASSETS_CDL": cdl, "CROP_ASSETS_CDL_INDEX": "", "CROP_ASSETS_TILES_PER_RUN": "2"}
    left_out = ("CROP_ASSETS_RECIPE", "CROP_ASSETS_DATA", "DAGSTER_HOME")
    return {name: value for name, value in environment.items() if name not in left_out} | changes


def call(folder: Path, variables: dict[str, str], *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [COMMAND, *words, "--data", str(folder / "data"), "--recipe", str(folder / "recipe.yaml")],
        env=variables,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def dataset_of(folder: Path, year: int = YEAR) -> Path:
    return folder / "data" / Layout("small", year).root


def tiles_with_all_tables(dataset: Path) -> set[str]:
    tables = [{path.stem for path in (dataset / "tables" / stage).glob("*")} for stage in TILE_STAGES]
    assert all(one == tables[0] for one in tables), tables
    return tables[0]


def chips(dataset: Path) -> set[str]:
    return {path.name for path in (dataset / "chips").glob("*.tif")}


def test_two_years_of_three_tiles_reach_their_end_and_a_second_run_reuses_them(
    tmp_path: Path,
    variables: dict[str, str],
    setting: Setting,
    served: Served,
    three_tiles: dict[str, Any],
) -> None:
    years = ("--year", str(EARLIER), "--year", str(YEAR))
    first = call(tmp_path, variables, "run", *years)
    # the earlier year has no scenes, and so no chips for a dataset
    assert first.returncode == 1, first.stdout
    assert "DAGSTER_HOME is not set" in first.stdout
    assert f"{EARLIER} dataset_job FAILED" in first.stdout
    assert f"{YEAR} dataset_job done" in first.stdout
    for year in (EARLIER, YEAR):
        assert tiles_with_all_tables(dataset_of(tmp_path, year)) == TILES
    assert chips(dataset_of(tmp_path, EARLIER)) == set()
    assert chips(dataset_of(tmp_path)) == CHIPS[YEAR, WEST] | CHIPS[YEAR, EAST]
    with new_graph(tmp_path / "other", setting, served.server) as graph:
        for job in ("labels_job", "tiles_job", "dataset_job"):
            done = graph.run(job, sorted(TILES), **three_tiles)
            assert done.success, done.failure
        assert digests(dataset_of(tmp_path)) == digests(graph.dataset)

    second = call(tmp_path, variables, "run", "--year", str(YEAR))
    assert second.returncode == 0, second.stdout
    assert "Nothing has changed, so everything was reused." in second.stdout

    shown = call(tmp_path, variables, "status", "--json")
    assert shown.returncode == 1, shown.stdout
    earlier, latest = json.loads(shown.stdout)["years"]
    assert (earlier["year"], earlier["done"], set(earlier["tiles"])) == (EARLIER, False, TILES)
    assert "materialize" in earlier["dataset"]
    assert (latest["year"], latest["done"], set(latest["tiles"].values())) == (YEAR, True, {""})
    assert sum(latest["chips"].values()) == 4
    files = {path.stat().st_ino: path for path in dataset_of(tmp_path).rglob("*") if path.is_file()}
    usage = latest["usage"].values()
    assert sum(one["files"] for one in usage) == len(files)
    assert sum(one["bytes"] for one in usage) == sum(path.stat().st_size for path in files.values())
    shown = call(tmp_path, variables, "status", "--year", str(YEAR))
    assert shown.returncode == 0, shown.stdout
    assert "tiles 3 of 3 done" in shown.stdout


def test_some_tiles_are_made_and_the_dataset_is_not(tmp_path: Path, variables: dict[str, str]) -> None:
    dataset = dataset_of(tmp_path)
    labels = call(tmp_path, variables, "run", "--year", str(YEAR), "--until", "labels")
    assert labels.returncode == 0, labels.stdout
    assert {path.stem for path in (dataset / "tables").glob("*")} >= {"tile_map", "chip_bboxes"}
    assert tiles_with_all_tables(dataset) == set()
    unknown = call(tmp_path, variables, "run", "--year", str(YEAR), "--tiles", f"{WEST},14SMH")
    assert unknown.returncode == 2
    assert "--tiles: 14SMH has no chip box in 2022" in unknown.stdout
    assert tiles_with_all_tables(dataset) == set()
    two = call(tmp_path, variables, "run", "--year", str(YEAR), "--tiles", f"{WEST}, {EAST}")
    assert two.returncode == 0, two.stdout
    assert f"the dataset of {YEAR} is not made: 1 other tiles are missing ({SOUTH})" in two.stdout
    assert tiles_with_all_tables(dataset) == {WEST, EAST}
    assert chips(dataset) == CHIPS[YEAR, WEST] | CHIPS[YEAR, EAST]
    assert not (dataset / "tables/splits.parquet").exists()
    shown = call(tmp_path, variables, "status")
    assert shown.returncode == 1
    assert "tiles 2 of 3 done" in shown.stdout
    assert f"crop-assets run --year {YEAR}\n" in shown.stdout
    assert f"{SOUTH}: filtered_chips has not been materialized for {SOUTH}" in shown.stdout
    last = call(tmp_path, variables, "run", "--year", str(YEAR), "--tiles", SOUTH)
    assert last.returncode == 0, last.stdout
    assert tiles_with_all_tables(dataset) == TILES
    assert (dataset / "chips.parquet").is_file()


def started(folder: Path, variables: dict[str, str], log: Path, *words: str) -> "subprocess.Popen[bytes]":
    with log.open("wb") as out:
        return subprocess.Popen(
            [COMMAND, *words, "--data", str(folder / "data"), "--recipe", str(folder / "recipe.yaml")],
            env=variables,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def at_work(
    folder: Path, variables: dict[str, str], log: Path, traffic: Traffic
) -> "subprocess.Popen[bytes]":
    """A run that waits in its tiles for the silent catalogue."""
    traffic.asked.clear()
    process = started(folder, variables, log, "run", "--year", str(YEAR))
    Background(process, log).wait_for("a request", lambda: any("/cmr/" in one.path for one in traffic.asked))
    return process


def tiles_runs(home: Path) -> list[str]:
    with dg.DagsterInstance.from_config(str(home)) as instance:
        assert not instance.event_log_storage.get_concurrency_info("tiles").claimed_slots
        return [
            run.status.value for run in instance.get_runs(dg.RunsFilter(job_name="tiles_job"), ascending=True)
        ]


def test_killed_and_terminated_runs_end_release_their_slots_and_are_resumed(
    tmp_path: Path, home: Path, variables: dict[str, str], traffic: Traffic
) -> None:
    shutil.copy(SHIPPED, home / "dagster.yaml")
    variables |= {"DAGSTER_HOME": str(home), "CROP_ASSETS_TILES_PER_RUN": "3"}
    traffic.silent.add("/cmr/")
    # as many as the pool has slots
    for number in range(2):
        log = tmp_path / f"killed_{number}.log"
        process = at_work(tmp_path, variables, log, traffic)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    log = tmp_path / "terminated.log"
    process = at_work(tmp_path, variables, log, traffic)
    process.terminate()
    assert process.wait(60) == 130, log.read_text()
    assert "Stopped. Finished work is reused." in log.read_text()
    assert "was killed; that run ends as failed" in log.read_text()
    assert tiles_runs(home) == ["FAILURE", "FAILURE", "CANCELED"]
    assert not (dataset_of(tmp_path) / "chips").exists()
    traffic.clear()
    done = call(tmp_path, variables, "run", "--year", str(YEAR))
    assert done.returncode == 0, done.stdout
    assert tiles_runs(home) == ["FAILURE", "FAILURE", "CANCELED", "SUCCESS"]
    assert tiles_with_all_tables(dataset_of(tmp_path)) == TILES
    assert chips(dataset_of(tmp_path)) == CHIPS[YEAR, WEST] | CHIPS[YEAR, EAST]


def test_a_daemon_does_the_work_with_the_given_recipe(
    tmp_path: Path, home: Path, variables: dict[str, str], traffic: Traffic
) -> None:
    variables |= {"DAGSTER_HOME": str(home)}
    words = ("run", "--year", str(YEAR), "--daemon")
    alone = call(tmp_path, variables, *words)
    assert alone.returncode == 2, alone.stdout
    assert "no daemon works on DAGSTER_HOME" in alone.stdout
    of_daemon = tmp_path / "of_daemon.yaml"
    of_daemon.write_text(
        yaml.safe_dump({**yaml.safe_load((tmp_path / "recipe.yaml").read_text()), "seed": 1})
    )
    own = {"CROP_ASSETS_DATA": str(tmp_path / "data"), "CROP_ASSETS_RECIPE": str(of_daemon)}
    traffic.corrupt.add("/ipfs/")
    with daemon(home, variables | own) as (running, instance):
        running.wait_for("the daemon", lambda: daemon_is_live(instance, 120))
        failed = call(tmp_path, variables, *words)
        assert failed.returncode == 1, failed.stdout
        assert "tiles_job 2022: 3 of 3 tiles finished" not in failed.stdout
        assert f"{WEST}: failed at downloaded_" in failed.stdout
        assert "dataset_job 2022: splits: splits 2022: 2 of 3 tiles are missing" in failed.stdout
        shown = call(tmp_path, variables, "status")
        assert f"{WEST}: failed at downloaded_" in shown.stdout
        traffic.clear()
        done = call(tmp_path, variables, *words)
        assert done.returncode == 0, done.stdout
        assert "tiles_job 2022: 3 of 3 tiles finished" in done.stdout
        statuses = {
            job: [run.status.value for run in instance.get_runs(dg.RunsFilter(job_name=job), ascending=True)]
            for job in ("labels_job", "dataset_job")
        }
        assert statuses == {"labels_job": ["SUCCESS"] * 2, "dataset_job": ["FAILURE", "SUCCESS"]}
        assert [one.status.value for one in instance.get_backfills()] == [
            "COMPLETED_SUCCESS",
            "COMPLETED_FAILED",
        ]
    assert tiles_with_all_tables(dataset_of(tmp_path)) == TILES
    assert chips(dataset_of(tmp_path)) == CHIPS[YEAR, WEST] | CHIPS[YEAR, EAST]
    # by the recipe of the command, not of the daemon
    shown = call(tmp_path, variables, "status")
    assert shown.returncode == 0, shown.stdout


def test_a_dagster_home_or_its_file_that_is_not_valid_is_refused(
    tmp_path: Path, variables: dict[str, str]
) -> None:
    missing = call(tmp_path, variables | {"DAGSTER_HOME": str(tmp_path / "none")}, "run", "--year", str(YEAR))
    assert missing.returncode == 2
    assert "must be the absolute path of a folder that exists" in missing.stdout
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/dagster.yaml").write_text("storage: {postgres: 3}\n")
    bad = call(tmp_path, variables | {"DAGSTER_HOME": str(tmp_path / "bad")}, "run", "--year", str(YEAR))
    assert bad.returncode == 2
    assert "the Dagster instance in" in bad.stdout
    assert "Traceback" not in bad.stdout


def test_a_run_that_waits_for_a_slot_shows_it(
    tmp_path: Path, home: Path, variables: dict[str, str], traffic: Traffic
) -> None:
    shutil.copy(SHIPPED, home / "dagster.yaml")
    variables |= {"DAGSTER_HOME": str(home), "CROP_ASSETS_TILES_PER_RUN": "3"}
    traffic.silent.add("/cmr/")
    words = ("run", "--year", str(YEAR))
    processes = []
    try:
        with dg.DagsterInstance.from_config(str(home)) as instance:
            for number in (1, 2):
                log = tmp_path / f"busy_{number}.log"
                processes.append(started(tmp_path, variables, log, *words))
                Background(processes[-1], log).wait_for(
                    "its slot", lambda number=number: len(slots_taken(instance)) == number
                )
        log = tmp_path / "waiting.log"
        processes.append(started(tmp_path, variables, log, *words))
        Background(processes[-1], log).wait_for("a message", lambda: "waiting for a slot" in log.read_text())
        assert "in the pool tiles, which other runs of this instance use" in log.read_text()
    finally:
        for process in processes:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    traffic.clear()
    done = call(tmp_path, variables, "run", "--year", str(YEAR))
    assert done.returncode == 0, done.stdout
    assert chips(dataset_of(tmp_path)) == CHIPS[YEAR, WEST] | CHIPS[YEAR, EAST]


OPEN = """
import sys, pathlib
from crop_assets.dagster_internals import instance_of_terminal
print("ready", flush=True)
sys.stdin.readline()
with instance_of_terminal(pathlib.Path(sys.argv[1])) as instance:
    instance.add_dynamic_partitions("tile", [sys.argv[2]])
"""


def test_processes_that_make_a_new_dagster_home_at_once_leave_one_that_opens(tmp_path: Path) -> None:
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    tiles = ["14SMG", "14SNG", "14SMF"]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", OPEN, str(tmp_path), tile],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for tile in tiles
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        assert sorted(instance.get_dynamic_partitions("tile")) == sorted(tiles)
