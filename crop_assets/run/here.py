"""Executes jobs in this process, with one readable line of output per message of a run."""

import contextlib
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg

from crop_assets.dagster_internals import end_dead_runs, execute_here, instance_of_terminal, is_interrupt
from crop_assets.definitions import LOCATION, build_defs, environment_resources, tiles_per_run
from crop_assets.errors import InputError
from crop_assets.partitions import add_tiles, add_year, ranges_of
from crop_assets.run.years import Outcome, Stop
from resources.plain_text import plain_text


@contextlib.contextmanager
def open_instance(log: Callable[[str], None], needed: bool = False) -> Iterator[dg.DagsterInstance]:
    """The instance of DAGSTER_HOME; without it, one in memory, unless it is `needed`.

    Raises InputError if the instance cannot be opened.
    """
    home = os.environ.get("DAGSTER_HOME", "")
    if not home and not needed:
        log("DAGSTER_HOME is not set, so no UI will show these runs")
        with dg.DagsterInstance.ephemeral() as instance:
            yield instance
        return
    if not (Path(home).is_absolute() and Path(home).is_dir()):
        raise InputError(f"DAGSTER_HOME is {home!r}, and must be the absolute path of a folder that exists")
    try:
        opened = instance_of_terminal(Path(home))
    except Exception as error:
        # of the configuration, its storage or a database
        raise InputError(
            plain_text(f"the Dagster instance in {home} cannot be opened: {error}", 1000)
        ) from None
    with opened as instance:
        yield instance


@dataclass(frozen=True)
class HereRunner:
    """Executes jobs in this process, as runs of the code location in `instance`.

    Earlier runs whose process was killed end as failed, and release their slots in pools. Raises KeyboardInterrupt
    after Ctrl-C; the interrupted run is CANCELED. `check` is called before each run.
    """

    instance: dg.DagsterInstance
    log: Callable[[str], None]
    check: Callable[[], None] = Stop().check

    def __post_init__(self) -> None:
        for run_id in end_dead_runs(self.instance):
            self.log(f"the process of the earlier run {run_id[:8]} was killed; that run ends as failed")

    def run_year(self, job: str, year: int) -> Outcome:
        add_year(self.instance, year)
        self.log(f"— {job} {year}")
        return self._execute(job, year, {"dagster/partition": str(year)})

    def run_tiles(self, year: int, tiles: Sequence[str]) -> Outcome:
        outcome = Outcome("tiles_job", year, True, 0, 0, 0)
        add_tiles(self.instance, tiles)
        begun = 0
        for first, last, count in ranges_of(self.instance, year, tiles, tiles_per_run()):
            self.log(f"— tiles_job {year}: tiles {begun + 1} to {begun + count} of {len(tiles)}")
            tags = {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}
            begun += count
            one = self._execute("tiles_job", year, tags)
            outcome = Outcome(
                "tiles_job",
                year,
                outcome.success and one.success,
                outcome.made + one.made,
                outcome.reused + one.reused,
                outcome.seconds + one.seconds,
            )
        return outcome

    def _execute(self, job: str, year: int, tags: Mapping[str, str]) -> Outcome:
        started = time.monotonic()
        defs = dg.Definitions.merge(
            build_defs(environment_resources()), dg.Definitions(loggers={"console": console})
        )
        run_config: dict[str, Any] = {"loggers": {"console": {}}}
        definition = defs.resolve_job_def(job)
        self.check()
        result = execute_here(definition, self.instance, LOCATION, run_config, tags)
        # from the instance, because a result lacks the events of a failed step
        made, reused = count_tables(self.instance, [result.run_id])
        return Outcome(job, year, result.success, made, reused, time.monotonic() - started)


def count_tables(instance: dg.DagsterInstance, run_ids: Sequence[str]) -> tuple[int, int]:
    """How many tables these runs made, and how many they reused."""
    records = [
        record
        for run_id in run_ids
        for record in instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
    ]
    events = [record.asset_materialization for record in records if record.asset_materialization]
    reused = sum(bool(event.metadata["reused"].value) for event in events)
    return len(events) - reused, reused


def cause_of(event: dg.DagsterEvent) -> str:
    """Why a step failed: the message of the first error, without the name of its class."""
    error = event.step_failure_data.error
    if error is None:
        return "failed"
    while error.cause:
        error = error.cause
    message = error.message.strip()
    return message.partition(": ")[2] or message


_BLOCKED = re.compile(r"Step (still )?blocked by limit for pool (?P<pool>\w+)")
"""Dagster's event of a run that waits, at its beginning and every few minutes (`step_concurrency_blocked`)."""


class _LogLine(logging.Formatter):
    """A readable line of the run's log: time and message."""

    def format(self, record: logging.LogRecord) -> str:
        meta = getattr(record, "dagster_meta", None) or {}
        step, text = meta.get("step_key"), meta.get("orig_message") or record.getMessage()
        event = meta.get("dagster_event")
        if event is not None and event.is_step_failure and event.step_failure_data.error:
            text = f"failed: {cause_of(event)}"
        if event is not None and (blocked := _BLOCKED.match(event.message or "")):
            text = f"waiting for a slot in the pool {blocked['pool']}, which other runs of this instance use"
        text = text if step in (None, "tile_stages") else f"{step}: {text}"
        mark = "" if record.levelno < logging.WARNING else f"{record.levelname}: "
        return f"  {time.strftime('%H:%M:%S', time.localtime(record.created))} {mark}{text}"


class _NoDagsterEvents(logging.Filter):
    """Passes only the project's messages and errors, not Dagster's events."""

    def filter(self, record: logging.LogRecord) -> bool:
        meta = getattr(record, "dagster_meta", None) or {}
        event = meta.get("dagster_event")
        if event is not None and _BLOCKED.match(event.message or ""):
            return True
        if event is None:
            return record.levelno >= logging.INFO
        return record.levelno >= logging.ERROR and not is_interrupt(event)


# declared like the logger that it replaces, so that to Dagster the jobs are the same as in the code location
@dg.logger(dg.colored_console_logger.config_schema, description=dg.colored_console_logger.description)
def console(context: dg.InitLoggerContext) -> logging.Logger:
    """A run's progress, one readable line per message."""
    # Dagster's events are of the level DEBUG
    logger = logging.Logger("crop_assets.run", level=logging.DEBUG)
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_LogLine())
    handler.addFilter(_NoDagsterEvents())
    logger.addHandler(handler)
    return logger
