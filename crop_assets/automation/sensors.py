"""The sensors: what is launched without a person.

Belongs here: asking, and launching what was decided. Does not: the decisions (`releases`, `years`), nor reading what
the last look left (`cursors`).
"""

import time
from datetime import UTC, datetime
from typing import TypeVar

import dagster as dg

from crop_assets.automation.cursors import YEARS, Asked, Looked, Seen, read_cursor
from crop_assets.automation.jobs import DATASET, DATASET_ASSETS, TILE_ASSETS, TILES, labels_job
from crop_assets.automation.releases import (
    LOOK_SECONDS,
    MAX_RUNS_PER_LOOK,
    RETRY_MINUTES,
    look_is_due,
    release_changes,
)
from crop_assets.automation.years import next_step, year_state
from crop_assets.dagster_internals import request_backfill
from crop_assets.graph.lineage import Lineage
from crop_assets.graph.metadata import bounded_errors
from crop_assets.layout import Layout, parse_year
from crop_assets.partitions import CDL_YEAR, TILE, add_tiles, cdl_year_partitions, year_tile_partitions
from crop_assets.recipe import DatasetRecipe
from resources.cdl import CdlReleases, Release
from resources.errors import IntegrityError, ResourceError, UnsafeNameError
from resources.plain_text import plain_text
from resources.store import DatasetStore

# Dagster counts the interval from ticks that failed as well, or that never reached the code server: with an hour, the
# next look after one of these would be an hour later
_RELEASE_SECONDS = 60
_YEAR_SECONDS = 30

_Cursor = TypeVar("_Cursor", Looked, Seen)


@dg.sensor(
    job=labels_job,
    minimum_interval_seconds=_RELEASE_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Looks for CDL releases every hour. The first look records what is there and launches nothing; a "
    "new year becomes a partition, and labels_job is launched for it; so it is for a partition that is released again, "
    f"for {MAX_RUNS_PER_LOOK} years a look at most. "
    "A look that fails changes nothing, and is tried again after a minute, and later every "
    f"{RETRY_MINUTES} minutes.",
)
@bounded_errors
def cdl_release_sensor(
    context: dg.SensorEvaluationContext, cdl_releases: dg.ResourceParam[CdlReleases]
) -> dg.SensorResult:
    (cursor, anew), place = _cursor(context, Looked), f"{cdl_releases.source} {cdl_releases.index}"
    # another index is looked at for the first time
    known = cursor.versions if cursor.place == place else None
    before = None if known is None else {int(year): version for year, version in known.items()}
    # a clock that was wrong must not put off the next look
    looked = None if before is None or (cursor.looked or 0) > time.time() else cursor.looked
    since = looked + LOOK_SECONDS if looked else context.last_sensor_start_time or 0.0
    # a preview in the UI has no earlier tick either, and looks at once
    if (
        not anew
        and not context.is_first_tick_since_sensor_start
        and not look_is_due(time.time(), context.last_tick_completion_time or 0.0, since)
    ):
        told = _not_due(looked, since, cursor.problem)
        return dg.SensorResult(skip_reason=plain_text(told), cursor=context.cursor)
    partitions = set(_years_of(context.instance))
    try:
        changes = release_changes(
            before, cdl_releases.releases(lambda text: context.log.warning(plain_text(text))), partitions
        )
    except (ResourceError, OSError) as error:
        # what is known stays known
        cursor.problem = plain_text(str(error), 1000)
        return _look_failed(error, cursor.model_dump_json(exclude_defaults=True), anew)
    asked = [*changes.new, *changes.again]
    said = _nothing_new(before is None, sorted(changes.known))
    if changes.unused:
        said = (
            f"released again: {_years(changes.unused)}; nothing is launched for years that are no partition"
        )
        context.log.info(said)
    for release in asked:
        context.log.info(plain_text(f"{release.year}: {release.place}, version {release.version}"))
    if changes.later:
        context.log.info(
            f"{_years(changes.later)} changed too, and will be launched by later looks: a look launches "
            f"{MAX_RUNS_PER_LOOK} runs at most"
        )
    return dg.SensorResult(
        run_requests=[
            dg.RunRequest(
                # a key is never launched twice, so it names the release, and the one that it takes the place of
                run_key=plain_text(
                    f"cdl-{release.year}-{(before or {}).get(release.year, '')}-{release.version}"
                ),
                partition_key=str(release.year),
                tags={"cdl_release": release.place},
            )
            for release in asked
        ],
        skip_reason=None if asked else plain_text(anew + said),
        dynamic_partitions_requests=(
            [cdl_year_partitions.build_add_request([str(release.year) for release in asked])] if asked else []
        ),
        cursor=Looked(
            place=place,
            versions={str(year): version for year, version in sorted(changes.known.items())},
            looked=time.time(),
        ).model_dump_json(exclude_defaults=True),
    )


@dg.sensor(
    # not by jobs: Dagster takes backfills of sensors that target assets alone
    asset_selection=TILES | DATASET,
    minimum_interval_seconds=_YEAR_SECONDS,
    default_status=dg.DefaultSensorStatus.STOPPED,
    description="Turn it on to have each year made to its end: once a year's tile_map is there, its tiles are "
    "backfilled; once all tiles are done, the assets of dataset_job are materialized. Each is asked for once; what "
    "failed waits for a person, and is named here.",
)
@bounded_errors
def dataset_sensor(
    context: dg.SensorEvaluationContext,
    recipe: dg.ResourceParam[DatasetRecipe],
    store: dg.ResourceParam[DatasetStore],
) -> dg.SensorResult:
    (cursor, anew), latest = _cursor(context, Seen), _latest_events(context.instance, recipe)
    if cursor.seen == latest:
        return dg.SensorResult(skip_reason=plain_text(f"{cursor.told}; nothing has changed since"))
    requests, told = [], []
    asked = dict(cursor.asked)
    # a key of before the cursor was lost would launch nothing
    count = int(time.time()) if anew else cursor.count
    for number in _years_of(context.instance):
        year = str(number)
        try:
            state = year_state(Lineage(store, Layout(recipe.dataset, number), recipe))
            if state is None:
                continue
            before = asked.get(year, Asked())
            step = next_step(state, before.tiles, before.dataset)
            if step.what == "tiles":
                add_tiles(context.instance, state.waiting)
        except (IntegrityError, UnsafeNameError, ValueError) as error:
            # the year's own tables, which must not keep the other years waiting
            told.append(plain_text(f"{year}: {error}", 500))
            continue
        except (ResourceError, OSError) as error:
            # with the cursor of before, so that the next tick looks again
            return _look_failed(error, context.cursor, anew)
        told.append(f"{year}: {step.why}")
        if step.what == "tiles":
            requests.append(_backfill(year, state.waiting))
            asked[year] = before.model_copy(update={"tiles": state.tile_map})
        elif step.what == "dataset":
            count += 1
            # a key is never launched twice, and a recipe may go back to what it was
            key = f"dataset-{recipe.dataset}-{year}-{state.digest}-{count}"
            assets = [dg.AssetKey(name) for name in DATASET_ASSETS]
            requests.append(dg.RunRequest(run_key=key, partition_key=year, asset_selection=assets))
            asked[year] = before.model_copy(update={"dataset": state.digest})
    said = plain_text("; ".join(told) or "no year has a tile map of this recipe yet")
    context.log.info(said)
    return dg.SensorResult(
        run_requests=requests,
        skip_reason=None if requests else plain_text(anew + said),
        cursor=Seen(seen=latest, told=said, asked=asked, count=count).model_dump_json(),
    )


def _backfill(year: str, tiles: tuple[str, ...]) -> dg.RunRequest:
    """A backfill of the tile stages over tiles of a year, which the daemon launches as it does one from the UI."""
    keys = [dg.MultiPartitionKey({CDL_YEAR: year, TILE: tile}) for tile in tiles]
    return request_backfill(TILE_ASSETS, year_tile_partitions, keys, {CDL_YEAR: year})


def _latest_events(instance: dg.DagsterInstance, recipe: DatasetRecipe) -> list[str | int]:
    """What changes whenever there may be something new to see: recipe, and the last events of the tables looked at."""
    events: list[str | int] = [recipe.fingerprint()]
    for asset in ("tile_map", "filtered_chips"):
        records = instance.fetch_materializations(dg.AssetKey(asset), limit=1).records
        events.append(records[0].storage_id if records else 0)
    return events


def _cursor(context: dg.SensorEvaluationContext, kind: type[_Cursor]) -> tuple[_Cursor, str]:
    """What the last look left, and ""; or, where it cannot be read, a new cursor, and words that say so."""
    text = context.cursor or "{}"
    cursor = read_cursor(text, kind)
    if cursor is not None:
        return cursor, ""
    told = "the cursor is not one of this sensor's own, which begins anew"
    context.log.warning(plain_text(f"{told}: {text}", 500))
    return kind(), f"{told}; "


def _years_of(instance: dg.DagsterInstance) -> list[int]:
    """The partitions that are years of the CDL; anybody may add others in the UI."""
    found = filter(None, map(parse_year, instance.get_dynamic_partitions(CDL_YEAR)))
    return [year for year in found if year in YEARS]


def _years(releases: list[Release]) -> str:
    return ", ".join(str(release.year) for release in releases)


def _nothing_new(first: bool, years: list[int]) -> str:
    there = f"{len(years)} of {years[0]} to {years[-1]}" if years else "none"
    return (
        f"first look: releases recorded: {there}; nothing is launched for them"
        if first
        else f"no change: {there}"
    )


def _look_failed(error: Exception, cursor: str | None, anew: str) -> dg.SensorResult:
    """A tick whose look failed: skipped, with the cause. One that raised would put two tracebacks into the log, of
    Dagster's own code.
    """
    return dg.SensorResult(
        skip_reason=plain_text(f"{anew}the look failed: {error}; nothing was changed"), cursor=cursor
    )


def _not_due(looked: float | None, since: float, problem: str) -> str:
    if looked is None or since < time.time():
        why = f": {problem}" if problem else ""
        return f"the latest look failed{why}; it is tried again within {RETRY_MINUTES} minutes"
    at, due = (datetime.fromtimestamp(when, UTC).strftime("%H:%M") for when in (looked, since))
    return f"looked at {at} UTC; the next look is due at {due} UTC"


SENSORS = (cdl_release_sensor, dataset_sensor)
