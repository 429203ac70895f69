"""Tiles launched by clicks, from an empty store: what was made is what was chosen."""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import requests

from crop_assets.layout import Layout
from crop_assets_tests.automation.test_daemon import daemon
from crop_assets_tests.automation.test_daemon import environment as environment
from crop_assets_tests.automation.test_daemon import home as home
from crop_assets_tests.automation.test_launches import CHIPS, EARLIER, EMPTY, made
from crop_assets_tests.automation.test_launches import labels as labels
from crop_assets_tests.browser.chromium import opened
from crop_assets_tests.resources.nass import nass as nass
from crop_assets_tests.small_world import EAST, SOUTH, TILE_STAGES, WEST, YEAR


def launch(page: Any, years: Sequence[int] | None, tiles: Sequence[str]) -> None:
    """Choose years (None: the button "All") and tiles in the dialog that the page's button opens, and launch."""
    page.get_by_role("button", name="Materialize").first.click()
    dialog = page.get_by_role("dialog").filter(has_text="Partition selection")
    every = dialog.get_by_role("button", name="All", exact=True)
    # one for the years and one for the tiles
    every.nth(1).wait_for()
    for keys in ([] if years is None else years, tiles):
        if keys:
            dialog.get_by_text("Select a partition").nth(0 if keys == years else -1).click()
        for key in keys:
            page.get_by_title(str(key), exact=True).last.click()
        page.keyboard.press("Escape")
    launching = dialog.get_by_role("button", name="Launch").last
    # a click on it while the dialog still loads its partitions chooses none of them
    while years is None and launching.is_disabled():
        every.first.click()
        page.wait_for_timeout(500)
    launching.click()


def test_clicks_and_a_command_make_what_they_name(labels: dict[str, str], home: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    both, tiles = (EARLIER, YEAR), (EMPTY, WEST, SOUTH, EAST)
    chips = CHIPS[YEAR, WEST] | CHIPS[YEAR, EAST]
    with daemon(home, labels) as (running, instance):
        url = f"http://127.0.0.1:{running.process.args[-1]}"  # type: ignore[index]
        running.wait_for("the webserver", lambda: requests.get(f"{url}/server_info", timeout=30))

        def wait_for_the_end(backfills: int) -> None:
            def ended() -> bool:
                found = instance.get_backfills()
                statuses = [one.status.value for one in found]
                assert not any("FAIL" in status for status in statuses), running.output
                # the command line makes the older kind of backfill, which is complete once its runs are launched
                if len(found) < backfills or not set(statuses) <= {"COMPLETED", "COMPLETED_SUCCESS"}:
                    return False
                runs = instance.get_runs()
                assert not [run for run in runs if run.is_failure_or_canceled], running.output
                return all(run.is_finished for run in runs)

            running.wait_for("the end of the backfills", ended)

        with opened(url) as page:
            page.goto("/locations/crop_assets.definitions/jobs/tiles_job")
            # more than a run takes, with a gap
            launch(page, None, [EMPTY, WEST, EAST])
            running.wait_for("the first backfill", instance.get_backfills)

            page.goto("/asset-groups")
            page.get_by_role("button", name="Materialize all").first.wait_for()
            page.locator(".CodeMirror").last.click()
            page.keyboard.insert_text(" or ".join(f'key:"{stage}"' for stage in TILE_STAGES))
            page.keyboard.press("Enter")
            page.wait_for_url("**/asset-groups~**")
            launch(page, None, [SOUTH])
            wait_for_the_end(2)
            assert made(data) == ({(year, tile) for year in both for tile in tiles}, chips)
            sizes = {
                len(instance.get_runs(dg.RunsFilter(tags={"dagster/backfill": one.backfill_id})))
                for one in instance.get_backfills()
            }
            assert sizes == {4, 1}, "two tiles share a run where no gap lies between them"

            earlier, latest = (data / Layout("small", year).root for year in both)
            for stage in TILE_STAGES:
                shutil.rmtree(earlier / "tables" / stage)
            for folder in ("chips", "tables/chips"):
                shutil.rmtree(latest / folder)
            page.goto("/assets/chips")
            launch(page, [YEAR], [SOUTH, WEST, EAST])
            names = ",".join(f"{EARLIER}|{tile}" for tile in (EAST, EMPTY, SOUTH))
            command = [sys.executable, "-m", "dagster", "job", "backfill", "-j", "tiles_job"]
            command += ["-m", "crop_assets.definitions", "--partitions", names, "--noprompt"]
            done = subprocess.run(command, env=labels, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr[-4000:]
            wait_for_the_end(4)
    assert {path.stem for path in (latest / "tables/chips").iterdir()} == {SOUTH, WEST, EAST}
    assert {path.name for path in (latest / "chips").iterdir()} == chips
    for stage in TILE_STAGES:
        made_again = {path.stem for path in (earlier / "tables" / stage).glob("*.parquet")}
        assert made_again == {EAST, EMPTY, SOUTH}, stage
