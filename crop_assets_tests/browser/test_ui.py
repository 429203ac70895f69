"""The Dagster UI over the demo's results, as a person sees and uses it, in headless Chromium."""

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest
import requests

from crop_assets.stages import STAGES
from crop_assets_tests.background import Background, background
from crop_assets_tests.browser.chromium import opened
from resources.loopback import free_port

Found = TypeVar("Found")

ROOT = Path(__file__).resolve().parents[2] / ".demo"


@dataclass(frozen=True)
class Ui:
    """The running UI."""

    url: str
    running: Background

    def wait_for(self, what: str, found: Callable[[], Found]) -> Found:
        return self.running.wait_for(what, found)

    def graphql(self, query: str) -> dict[str, Any]:
        return requests.post(f"{self.url}/graphql", json={"query": query}, timeout=60).json()["data"]

    def runs_of_jobs(self) -> dict[str, list[dict[str, Any]]]:
        """The runs in each job's history, the latest first, as the pages of the jobs ask for them."""
        query = """{repositoryOrError(repositorySelector: {
            repositoryName: "__repository__", repositoryLocationName: "crop_assets.definitions"}) {
            ... on Repository {pipelines {name runs {runId status startTime tags {key value}}}}}}"""
        jobs = self.graphql(query)["repositoryOrError"]["pipelines"]
        return {job["name"]: job["runs"] for job in jobs}


@pytest.fixture(scope="module")
def ui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ui]:
    if not (ROOT / "data").is_dir():
        pytest.skip(f"there is no demo at {ROOT} to look at; run make demo first")
    port, ui_port = free_port(), free_port()
    command = [sys.executable, "-m", "crop_assets.cli", "ui", "--port", str(port), "--ui-port", str(ui_port)]
    with background([*command, "--root", str(ROOT)], tmp_path_factory.mktemp("ui") / "log") as running:
        ui = Ui(f"http://127.0.0.1:{ui_port}", running)
        ui.wait_for("the UI", lambda: ui.graphql("{version}"))
        yield ui


@pytest.fixture
def page(ui: Ui) -> Iterator[Any]:
    with opened(ui.url) as page:
        yield page


def test_the_graphs_of_the_groups_show_every_asset(page: Any) -> None:
    """The graph of all assets does not fit on a page with names that can be read."""
    page.goto("/asset-groups")
    for group in {stage.group for stage in STAGES.values()}:
        page.get_by_text(group, exact=True).first.wait_for()
    for asset, stage in STAGES.items():
        path = f"/locations/crop_assets.definitions/asset-groups/{stage.group}"
        if not page.url.endswith(path):
            page.goto(path)
        page.get_by_text(asset, exact=True).first.wait_for()


def test_a_chip_can_be_looked_at(page: Any) -> None:
    page.goto("/assets/chips?view=events")
    picture = page.get_by_role("img", name="chip_").first
    picture.wait_for()
    assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") > 600
    assert "/pictures/chips/" in (picture.get_attribute("src") or ""), (
        "a file of the store, not part of the event"
    )


@pytest.mark.parametrize(
    ("asset", "name", "file"),
    [
        ("filtered_chips", "chips of ", "/pictures/filtered_chips/"),
        ("splits", "map of the splits", "/pictures/splits/map.png"),
    ],
)
def test_pictures_of_many_chips_are_on_the_page(page: Any, asset: str, name: str, file: str) -> None:
    page.goto(f"/assets/{asset}?view=events")
    picture = page.get_by_role("img", name=name).first
    picture.wait_for()
    assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") > 390
    assert file in (picture.get_attribute("src") or "")


def test_the_runs_of_the_demo_are_in_the_histories_of_their_jobs(page: Any, ui: Ui) -> None:
    runs = ui.runs_of_jobs()
    for job in ("labels_job", "tiles_job", "dataset_job"):
        latest = runs[job][0]
        assert latest["status"] == "SUCCESS"
        page.goto(f"/locations/crop_assets.definitions/jobs/{job}/runs")
        page.get_by_text(latest["runId"][:8], exact=True).first.wait_for()
    tags = {tag["key"]: tag["value"] for tag in runs["tiles_job"][-1]["tags"]}
    assert tags["dagster/asset_partition_range_start"] == "2022|14SMG"
    assert tags["dagster/asset_partition_range_end"] == "2022|14SNG"


def test_the_runs_of_the_demo_are_in_the_timeline(page: Any, ui: Ui) -> None:
    if ui.runs_of_jobs()["labels_job"][0]["startTime"] < time.time() - 11 * 3600:
        pytest.skip("the timeline shows twelve hours, and the demo ran before; run make demo again")
    page.goto("/overview/activity/timeline")
    for job in ("labels_job", "tiles_job", "dataset_job"):
        page.get_by_role("link", name=job).first.wait_for()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT], ids=lambda one: one.name)
def test_the_command_takes_all_of_its_processes_along(tmp_path: Path, number: signal.Signals) -> None:
    if not (ROOT / "data").is_dir():
        pytest.skip(f"there is no demo at {ROOT}; run make demo first")
    ports = free_port(), free_port()
    command = [sys.executable, "-m", "crop_assets.cli", "ui", "--root", str(ROOT)]
    command += ["--port", str(ports[0]), "--ui-port", str(ports[1])]
    with background(command, tmp_path / "log", start_new_session=True) as running:
        ui = Ui(f"http://127.0.0.1:{ports[1]}", running)
        ui.wait_for("the UI", lambda: ui.graphql("{version}"))
        family = psutil.Process(running.process.pid).children(recursive=True)
        assert len(family) >= 4, "Dagster, its webserver, daemon and code server"
        # as a terminal does that is closed or in which Ctrl-C is pressed
        os.killpg(running.process.pid, number)
        running.process.wait(60)
        _, alive = psutil.wait_procs(family, timeout=30)
        assert alive == []
        for port in ports:
            with socket.socket() as taken:
                assert taken.connect_ex(("127.0.0.1", port)) != 0
