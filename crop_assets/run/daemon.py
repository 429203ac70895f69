"""Has the daemon of DAGSTER_HOME execute jobs, and waits for them. The UI shows them like those that it launches."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dagster as dg

from crop_assets.automation.jobs import TILE_ASSETS
from crop_assets.dagster_internals import (
    add_backfill,
    backfill_outcome,
    daemon_is_live,
    enqueue,
    has_queue,
    retry_of,
)
from crop_assets.definitions import LOCATION, build_defs, environment_resources
from crop_assets.errors import InputError
from crop_assets.graph.years import failed_because
from crop_assets.partitions import CDL_YEAR, TILE, add_tiles, add_year, year_tile_partitions
from crop_assets.recipe import PATHS, DatasetRecipe
from crop_assets.run.here import cause_of, count_tables
from crop_assets.run.years import Outcome
from resources.plain_text import plain_text

_POLL_SECONDS = 2.0
_SILENT_SECONDS = 120
"""A daemon writes a heartbeat every 30 seconds."""
_LAST_TILE_ASSET = "filtered_chips"


@dataclass(frozen=True)
class DaemonRunner:
    """Launches jobs through the daemon of `instance`: a year's as a run, tiles as a backfill.

    With a `recipe`, the runs use its choices; the files that it names must be those of the daemon's recipe, because a
    run's configuration cannot name files. `check` is called while it waits. Raises InputError if no daemon works on the
    instance.
    """

    instance: dg.DagsterInstance
    log: Callable[[str], None]
    check: Callable[[], None]
    recipe: DatasetRecipe | None = None
    _live: list[bool] = field(default_factory=lambda: [True])

    def __post_init__(self) -> None:
        if not has_queue(self.instance):
            raise InputError("dagster.yaml configures a run coordinator without a queue; --daemon needs one")
        if not daemon_is_live(self.instance, _SILENT_SECONDS):
            raise InputError(
                f"no daemon works on DAGSTER_HOME ({self.instance.root_directory}): start it with crop-assets dev, or "
                "dagster-daemon run"
            )

    def run_year(self, job: str, year: int) -> Outcome:
        started = time.monotonic()
        add_year(self.instance, year)
        definition = build_defs(environment_resources()).resolve_job_def(job)
        tags = {"dagster/partition": str(year)}
        run_ids = [enqueue(definition, self.instance, LOCATION, self._run_config, tags)]
        state = ""
        while True:
            run = self.instance.get_run_by_id(run_ids[-1])
            if run is None:
                self.log(f"{job} {year}: run {run_ids[-1][:8]} was deleted")
                return Outcome(job, year, False, 0, 0, time.monotonic() - started)
            if state != run.status.value:
                state = run.status.value
                self.log(f"{job} {year}: run {run.run_id[:8]} {state.lower()}")
            if run.is_finished:
                retry = retry_of(run)
                if retry is None:
                    break
                if retry:
                    run_ids.append(retry)
            self._wait()
        success = run.status == dg.DagsterRunStatus.SUCCESS
        if not success:
            self._log_causes(job, year, run.run_id)
        made, reused = count_tables(self.instance, run_ids)
        return Outcome(job, year, success, made, reused, time.monotonic() - started)

    def run_tiles(self, year: int, tiles: Sequence[str]) -> Outcome:
        started = time.monotonic()
        add_tiles(self.instance, tiles)
        keys = [dg.MultiPartitionKey({CDL_YEAR: str(year), TILE: tile}) for tile in tiles]
        before = self._finished(keys)
        tags, title = {CDL_YEAR: str(year)}, f"tiles of {year}, by crop-assets run"
        backfill = add_backfill(
            self.instance, TILE_ASSETS, year_tile_partitions, keys, tags, self._run_config, title
        )
        self.log(f"tiles_job {year}: backfill {backfill} of {len(tiles)} tiles")
        shown = -1
        while True:
            success, why = backfill_outcome(self.instance, backfill)
            now = self._finished(keys)
            done = sum(now.get(key) != before.get(key) for key in now)
            if done != shown:
                shown = done
                self.log(f"tiles_job {year}: {done} of {len(tiles)} tiles finished")
            if success is not None:
                break
            self._wait()
        if why:
            self.log(plain_text(f"tiles_job {year}: {why}", 1000))
        failed = {} if success else failed_because(self.instance, _LAST_TILE_ASSET, year, tiles)
        for tile, reason in sorted(failed.items()):
            self.log(plain_text(f"{tile}: {reason}"))
        runs = self.instance.get_runs(dg.RunsFilter(tags={"dagster/backfill": backfill}))
        made, reused = count_tables(self.instance, [run.run_id for run in runs])
        return Outcome("tiles_job", year, bool(success), made, reused, time.monotonic() - started)

    @property
    def _run_config(self) -> Mapping[str, Any]:
        if self.recipe is None:
            return {}
        return {"resources": {"recipe": {"config": self.recipe.model_dump(exclude=PATHS)}}}

    def _finished(self, keys: Sequence[str]) -> Mapping[str, int]:
        """The last event of each of these partitions of the last tile asset."""
        made = dg.DagsterEventType.ASSET_MATERIALIZATION
        return self.instance.get_latest_storage_id_by_partition(
            dg.AssetKey(_LAST_TILE_ASSET), made, {str(key) for key in keys}
        )

    def _log_causes(self, job: str, year: int, run_id: str) -> None:
        failures = self.instance.all_logs(run_id, of_type=dg.DagsterEventType.STEP_FAILURE)
        events = [record.dagster_event for record in failures if record.dagster_event]
        for event in events:
            self.log(plain_text(f"{job} {year}: {event.step_key}: {cause_of(event)}", 1000))
        if not events:
            self.log(f"{job} {year}: the run ended before its first step; the UI shows the log of {run_id}")

    def _wait(self) -> None:
        time.sleep(_POLL_SECONDS)
        self.check()
        live = daemon_is_live(self.instance, _SILENT_SECONDS)
        if live != self._live[0]:
            self._live[0] = live
            self.log(
                "the daemon works again"
                if live
                else f"the daemon has given no sign of life for {_SILENT_SECONDS} s; waiting until it is back"
            )
