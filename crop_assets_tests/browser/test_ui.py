"""The Dagster UI over the demo's results, as a person sees and uses it, in headless Chromium."""

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
import requests

from crop_assets_tests.background import Background, background
from resources.loopback import free_port

Found = TypeVar("Found")

ROOT = Path(__file__).resolve().parents[2] / ".demo"
ASSETS = [
    "cdl",
    "candidate_chips",
    "tile_grid",
    "chip_bboxes",
    "tile_map",
    "scene_metadata",
    "selected_scenes",
    "band_cids",
    "downloaded_fmasks",
    "chip_quality",
    "downloaded_bands",
    "cid_retrievability",
    "missing_cids",
    "tile_payloads",
    "reprojected_tiles",
    "chips",
    "filtered_chips",
    "splits",
    "band_stats",
    "class_weights",
    "class_distribution",
    "published_dataset",
]
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


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

    def backfills(self) -> dict[str, Any]:
        query = "{partitionBackfillsOrError {... on PartitionBackfills {results {id status numPartitions}}}}"
        return {row.pop("id"): row for row in self.graphql(query)["partitionBackfillsOrError"]["results"]}

    def one_tile_runs(self) -> dict[str, Any]:
        query = "{runsOrError {... on Runs {results {runId status tags {key value}}}}}"
        runs = {run["runId"]: run for run in self.graphql(query)["runsOrError"]["results"]}
        tag = {"key": "dagster/partition", "value": "2022|14SMG"}
        return {run_id: run["status"] for run_id, run in runs.items() if tag in run["tags"]}


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
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=QUIET)
        page = browser.new_page(viewport={"width": 1800, "height": 1100}, base_url=ui.url)
        page.set_default_timeout(120_000)
        yield page
        browser.close()


def test_the_graph_shows_every_asset(page: Any) -> None:
    page.goto("/asset-groups")
    page.get_by_text("dataset", exact=True).first.wait_for()
    page.keyboard.press("Alt+e")
    for asset in ASSETS:
        page.get_by_text(asset, exact=True).first.wait_for()


def test_a_chip_can_be_looked_at(page: Any) -> None:
    page.goto("/assets/chips?view=events")
    page.get_by_text("[Show Markdown]").first.click()
    picture = page.get_by_role("img", name="chip_").first
    picture.wait_for()
    assert picture.evaluate("image => image.naturalWidth") > 600


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


def launch_tiles(page: Any, every: bool) -> None:
    """Launch tiles_job from its page, for every tile or for 14SMG alone."""
    page.goto("/locations/crop_assets.definitions/jobs/tiles_job")
    page.get_by_role("button", name="Materialize all").first.click()
    dialog = page.get_by_role("dialog")
    whole = dialog.get_by_role("button", name="All", exact=True)
    # one for the years and one for the tiles; before both are there, the last is the first
    whole.nth(1).wait_for()
    launch = dialog.get_by_role("button", name="Launch").last
    whole.first.click()
    if every:
        whole.last.click()
        # a click while the dialog still loads its partitions chooses none of them
        for _ in range(20):
            if launch.is_enabled():
                break
            page.wait_for_timeout(500)
            whole.first.click()
            whole.last.click()
    else:
        dialog.get_by_text("Select a partition").last.click()
        page.get_by_title("14SMG").last.click()
        page.keyboard.press("Escape")
        dialog.get_by_text("1 partition", exact=True).wait_for()
    launch.click()


def test_all_tiles_are_backfilled_from_the_ui(page: Any, ui: Ui) -> None:
    before = ui.backfills()
    launch_tiles(page, every=True)
    ui.wait_for("a backfill", lambda: len(ui.backfills()) > len(before))
    (launched,) = set(ui.backfills()) - set(before)
    ui.wait_for("its end", lambda: ui.backfills()[launched]["status"].startswith("COMPLETED"))
    assert ui.backfills()[launched] == {"status": "COMPLETED_SUCCESS", "numPartitions": 2}


def test_one_tile_is_materialized_from_the_ui(page: Any, ui: Ui) -> None:
    before = ui.one_tile_runs()
    launch_tiles(page, every=False)
    ui.wait_for("a run", lambda: len(ui.one_tile_runs()) > len(before))
    (launched,) = set(ui.one_tile_runs()) - set(before)
    ui.wait_for("its end", lambda: ui.one_tile_runs()[launched] in ("SUCCESS", "FAILURE"))
    assert ui.one_tile_runs()[launched] == "SUCCESS"
