"""The systemd units of one machine: their commands, started as they are, carry a year of three tiles to its end."""

import contextlib
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import dagster as dg
import pytest
import requests

from crop_assets.dagster_internals import daemon_is_live
from crop_assets_tests.automation.test_daemon import environment as environment
from crop_assets_tests.automation.test_daemon import home as home
from crop_assets_tests.automation.test_launches import CHIPS
from crop_assets_tests.background import background
from crop_assets_tests.resources.nass import nass as nass
from crop_assets_tests.run.test_run import TILES, call, chips, dataset_of, tiles_with_all_tables
from crop_assets_tests.run.test_run import variables as variables
from crop_assets_tests.small_world import EAST, WEST, YEAR
from resources.loopback import free_port

ONE = Path(__file__).resolve().parents[2] / "deploy/one"
UNITS = ("crop-assets-code", "crop-assets-webserver", "crop-assets-daemon")


def here(text: str, folder: Path, port: int) -> str:
    """A unit or its workspace with the folders, programs and port of a test."""
    places = {
        "/opt/crop-assets/bin": str(Path(sys.executable).parent),
        "/etc/crop-assets": str(folder),
        "/run/crop-assets": str(folder),
        "--ui-port 3000": f"--ui-port {port}",
    }
    for place, other in places.items():
        text = text.replace(place, other)
    return text


def test_the_commands_of_the_units_make_what_they_are_asked_for(
    tmp_path: Path, home: Path, variables: dict[str, str]
) -> None:
    shutil.copy(ONE / "dagster.yaml", home / "dagster.yaml")
    port = free_port()
    (tmp_path / "workspace.yaml").write_text(here((ONE / "workspace.yaml").read_text(), tmp_path, port))
    variables |= {"DAGSTER_HOME": str(home)}
    own: Mapping[str, str] = {
        **variables,
        "CROP_ASSETS_DATA": str(tmp_path / "data"),
        "CROP_ASSETS_RECIPE": str(tmp_path / "recipe.yaml"),
    }
    with contextlib.ExitStack() as stack:
        running = {}
        for name in UNITS:
            unit = here((ONE / f"{name}.service").read_text(), tmp_path, port)
            (command,) = re.findall("^ExecStart=(.+)$", unit, re.M)
            running[name] = stack.enter_context(
                background(shlex.split(command), tmp_path / f"{name}.log", own, start_new_session=True)
            )
            if name == "crop-assets-code":
                running[name].wait_for("its socket", (tmp_path / "code.sock").exists)
        instance = stack.enter_context(dg.DagsterInstance.from_config(str(home)))
        running["crop-assets-daemon"].wait_for("the daemon", lambda: daemon_is_live(instance, 120))
        done = call(tmp_path, variables, "run", "--year", str(YEAR), "--daemon")
        assert done.returncode == 0, done.stdout
        assert tiles_with_all_tables(dataset_of(tmp_path)) == TILES
        assert chips(dataset_of(tmp_path)) == CHIPS[YEAR, WEST] | CHIPS[YEAR, EAST]
        query = "{runsOrError {... on Runs {results {jobName status}}}}"

        def shown() -> list[dict[str, str]]:
            answer = requests.post(f"http://127.0.0.1:{port}/graphql", json={"query": query}, timeout=60)
            return list(answer.json()["data"]["runsOrError"]["results"])

        runs = running["crop-assets-webserver"].wait_for("the UI", shown)
        assert {run["status"] for run in runs} == {"SUCCESS"}
        assert {"labels_job", "dataset_job"} < {run["jobName"] for run in runs}
        foreign = requests.post(
            f"http://127.0.0.1:{port}/graphql",
            json={"query": query},
            headers={"Origin": "https://elsewhere.example"},
            timeout=60,
        )
        assert foreign.status_code == 403


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
@pytest.mark.parametrize("name", UNITS)
def test_systemd_accepts_the_units(tmp_path: Path, name: str) -> None:
    for one in UNITS:
        unit = here((ONE / f"{one}.service").read_text(), tmp_path, 3000)
        (tmp_path / f"{one}.service").write_text(unit)
    command = ["systemd-analyze", "verify", "--recursive-errors=no", str(tmp_path / f"{name}.service")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    (tmp_path / f"{name}.service").write_text("[Service]\nExecStart=/no/such/program\nRestrt=always\n")
    assert "Restrt" in subprocess.run(command, capture_output=True, text=True, check=False).stderr
