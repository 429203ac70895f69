"""The Dagster UI over the demo's results, as a person sees and uses it, in headless Chromium."""

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

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


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def ui() -> Iterator[str]:
    if not (ROOT / "data").is_dir():
        pytest.skip(f"there is no demo at {ROOT} to look at; run make demo first")
    port, ui_port = free_port(), free_port()
    command = [sys.executable, "-m", "crop_assets.cli", "ui", "--port", str(port), "--ui-port", str(ui_port)]
    process = subprocess.Popen(
        [*command, "--root", str(ROOT)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{ui_port}"
    try:
        wait_for(lambda: graphql(url, "{version}"), 120)
        yield url
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture
def page(ui: str) -> Iterator[Any]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=QUIET)
        page = browser.new_page(viewport={"width": 1800, "height": 1100}, base_url=ui)
        page.set_default_timeout(20_000)
        yield page
        browser.close()


def graphql(url: str, query: str) -> dict[str, Any]:
    return requests.post(f"{url}/graphql", json={"query": query}, timeout=30).json()["data"]


def wait_for(found: Any, seconds: float) -> Any:
    deadline = time.monotonic() + seconds
    while True:
        try:
            if result := found():
                return result
        except (requests.RequestException, KeyError):
            pass
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(1)


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


def launch_tiles(page: Any, every: bool) -> None:
    """Launch tiles_job from its page, for every tile or for 14SMG alone."""
    page.goto("/locations/crop_assets.definitions/jobs/tiles_job")
    page.get_by_role("button", name="Materialize all").first.click()
    dialog = page.get_by_role("dialog")
    whole = dialog.get_by_role("button", name="All", exact=True)
    # one for the years and one for the tiles; before both are there, the last is the first
    wait_for(lambda: whole.count() == 2, 60)
    whole.first.click()
    if every:
        whole.last.click()
    else:
        dialog.get_by_text("Select a partition").last.click()
        page.get_by_title("14SMG").last.click()
        page.keyboard.press("Escape")
        dialog.get_by_text("1 partition", exact=True).wait_for()
    dialog.get_by_role("button", name="Launch").last.click()


def backfills(ui: str) -> dict[str, Any]:
    query = "{partitionBackfillsOrError {... on PartitionBackfills {results {id status numPartitions}}}}"
    return {row.pop("id"): row for row in graphql(ui, query)["partitionBackfillsOrError"]["results"]}


def one_tile_runs(ui: str) -> dict[str, Any]:
    query = "{runsOrError {... on Runs {results {runId status tags {key value}}}}}"
    runs = {run["runId"]: run for run in graphql(ui, query)["runsOrError"]["results"]}
    tag = {"key": "dagster/partition", "value": "2022|14SMG"}
    return {run_id: run["status"] for run_id, run in runs.items() if tag in run["tags"]}


def test_all_tiles_are_backfilled_from_the_ui(page: Any, ui: str) -> None:
    before = backfills(ui)
    launch_tiles(page, every=True)
    wait_for(lambda: len(backfills(ui)) > len(before), 60)
    (launched,) = set(backfills(ui)) - set(before)
    wait_for(lambda: backfills(ui)[launched]["status"].startswith("COMPLETED"), 180)
    assert backfills(ui)[launched] == {"status": "COMPLETED_SUCCESS", "numPartitions": 2}


def test_one_tile_is_materialized_from_the_ui(page: Any, ui: str) -> None:
    before = one_tile_runs(ui)
    launch_tiles(page, every=False)
    wait_for(lambda: len(one_tile_runs(ui)) > len(before), 60)
    (launched,) = set(one_tile_runs(ui)) - set(before)
    wait_for(lambda: one_tile_runs(ui)[launched] in ("SUCCESS", "FAILURE"), 180)
    assert one_tile_runs(ui)[launched] == "SUCCESS"
