"""The sensors: they look, and launch what `releases` and `years` decide."""

import time
from datetime import UTC, datetime
from typing import TypeVar

import dagster as dg

from crop_assets.automation.cursors import (
    YEARS,
    DatasetCursor,
    LastRequests,
    ReleaseCursor,
    YearLook,
    read_cursor,
)
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

# Dagster also counts the interval from ticks that failed or never reached the code server: with an interval of an hour,
# the next look after such a tick would be an hour later
_RELEASE_SECONDS = 60
_YEAR_SECONDS = 30
_LOOK_SECONDS = 20
"""After this time the years that are left wait for the next tick; Dagster ends a tick after 60 seconds."""

_Cursor = TypeVar("_Cursor", ReleaseCursor, DatasetCursor)


@dg.sensor(
    job=labels_job,
    minimum_interval_seconds=_RELEASE_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Looks for CDL releases every hour. The first look records the releases and launches nothing. Later, a "
    "new year becomes a partition, and labels_job is launched for it, and for a partition that is released again; "
    f"each look launches at most {MAX_RUNS_PER_LOOK} years. "
    "A failed look changes nothing, and is repeated after a minute, later every "
    f"{RETRY_MINUTES} minutes.",
)
@bounded_errors
def cdl_release_sensor(
    context: dg.SensorEvaluationContext, cdl_releases: dg.ResourceParam[CdlReleases]
) -> dg.SensorResult:
    (cursor, reset), place = _cursor(context, ReleaseCursor), f"{cdl_releases.source} {cdl_releases.index}"
    # a different index counts as a first look
    known = cursor.versions if cursor.place == place else None
    before = None if known is None else {int(year): version for year, version in known.items()}
    # a time in the future, from a wrong clock, must not delay the next look
    looked = None if before is None or (cursor.looked or 0) > time.time() else cursor.looked
    since = looked + LOOK_SECONDS if looked else context.last_sensor_start_time or 0.0
    # a preview in the UI has no earlier tick either, and looks immediately
    if (
        not reset
        and not context.is_first_tick_since_sensor_start
        and not look_is_due(time.time(), context.last_tick_completion_time or 0.0, since)
    ):
        message = _not_due(looked, since, cursor.problem)
        return dg.SensorResult(skip_reason=plain_text(message), cursor=context.cursor)
    partitions = set(_years_of(context.instance))
    try:
        changes = release_changes(
            before, cdl_releases.releases(lambda text: context.log.warning(plain_text(text))), partitions
        )
    except (ResourceError, OSError) as error:
        # keep the known versions
        cursor.problem = plain_text(str(error), 1000)
        return _look_failed(error, cursor.model_dump_json(exclude_defaults=True), reset)
    launched = [*changes.new, *changes.again]
    message = _nothing_new(before is None, sorted(changes.known))
    if changes.unused:
        message = (
            f"released again: {_years(changes.unused)}; nothing is launched for years that are not partitions"
        )
        context.log.info(message)
    for release in launched:
        context.log.info(plain_text(f"{release.year}: {release.location}, version {release.version}"))
    if changes.later:
        context.log.info(
            f"{_years(changes.later)} also changed, and will be launched by later looks: each look launches at most "
            f"{MAX_RUNS_PER_LOOK} runs"
        )
    return dg.SensorResult(
        run_requests=[
            dg.RunRequest(
                # a key is launched only once, so it contains this release and the one that it replaces
                run_key=plain_text(
                    f"cdl-{release.year}-{(before or {}).get(release.year, '')}-{release.version}"
                ),
                partition_key=str(release.year),
                tags={"cdl_release": release.location},
            )
            for release in launched
        ],
        skip_reason=None if launched else plain_text(reset + message),
        dynamic_partitions_requests=(
            [cdl_year_partitions.build_add_request([str(release.year) for release in launched])]
            if launched
            else []
        ),
        cursor=ReleaseCursor(
            place=place,
            versions={str(year): version for year, version in sorted(changes.known.items())},
            looked=time.time(),
        ).model_dump_json(exclude_defaults=True),
    )


@dg.sensor(
    # not jobs: Dagster accepts backfills only from sensors that target assets
    asset_selection=TILES | DATASET,
    minimum_interval_seconds=_YEAR_SECONDS,
    default_status=dg.DefaultSensorStatus.STOPPED,
    description="Turn it on to finish each year automatically: when a year's label_quality is there, its tiles are "
    "backfilled; when all tiles are done, the assets of dataset_job are materialized. Each is requested once; failed "
    "tiles are listed here and must be launched again by hand.",
)
@bounded_errors
def dataset_sensor(
    context: dg.SensorEvaluationContext,
    recipe: dg.ResourceParam[DatasetRecipe],
    store: dg.ResourceParam[DatasetStore],
) -> dg.SensorResult:
    (cursor, reset), latest = _cursor(context, DatasetCursor), _latest_events(context.instance, recipe)
    if cursor.seen == latest:
        return dg.SensorResult(skip_reason=plain_text(f"{cursor.told}; nothing has changed since"))
    requests: list[dg.RunRequest] = []
    messages: list[str] = []
    later: list[str] = []
    asked, looks = dict(cursor.asked), dict(cursor.looks)
    # after a lost cursor, a key that was used before would launch nothing
    count = int(time.time()) if reset else cursor.count
    events, started, looked = _events_by_year(context.instance), time.monotonic(), False
    # first the years that have waited for their look, last those that change with each tick
    for number in sorted(
        _years_of(context.instance), key=lambda one: looks[str(one)].event if str(one) in looks else -1
    ):
        year = str(number)
        look = YearLook(recipe=recipe.fingerprint(), event=events.get(year, 0))
        if year in looks and (looks[year].recipe, looks[year].event) == (look.recipe, look.event):
            messages += filter(None, [looks[year].told])
            continue
        if looked and time.monotonic() - started > _LOOK_SECONDS:
            later.append(year)
            continue
        looked = True
        looks.pop(year, None)
        try:
            state = year_state(Lineage(store, Layout(recipe.dataset, number), recipe))
            if state is None:
                looks[year] = look
                continue
            before = asked.get(year, LastRequests())
            step = next_step(state, before.tiles, before.dataset)
            if step.what == "tiles":
                add_tiles(context.instance, state.waiting)
        except (IntegrityError, UnsafeNameError, ValueError) as error:
            # bad tables of one year must not hold up the other years
            messages.append(plain_text(f"{year}: {error}", 500))
            continue
        except (ResourceError, OSError) as error:
            # keep the cursor, so that the next tick looks again
            return _look_failed(error, context.cursor, reset)
        messages.append(f"{year}: {step.why}")
        told = messages[-1] if step.what == "nothing" else f"{messages[-1]} (requested)"
        looks[year] = look.model_copy(update={"told": plain_text(told, 500)})
        if step.what == "tiles":
            requests.append(_backfill(year, state.waiting))
            asked[year] = before.model_copy(update={"tiles": state.tile_map})
        elif step.what == "dataset":
            count += 1
            # a key is launched only once, but a recipe may be changed back
            key = f"dataset-{recipe.dataset}-{year}-{state.digest}-{count}"
            assets = [dg.AssetKey(name) for name in DATASET_ASSETS]
            requests.append(dg.RunRequest(run_key=key, partition_key=year, asset_selection=assets))
            asked[year] = before.model_copy(update={"dataset": state.digest})
    if later:
        messages.append(f"the next look is at {', '.join(later[:5])}{', …' if len(later) > 5 else ''}")
    message = plain_text("; ".join(messages) or "no year has a tile map of this recipe yet")
    context.log.info(message)
    return dg.SensorResult(
        run_requests=requests,
        skip_reason=None if requests else plain_text(reset + message),
        cursor=DatasetCursor(
            seen=[] if later else latest, told=message, looks=looks, asked=asked, count=count
        ).model_dump_json(),
    )


def _backfill(year: str, tiles: tuple[str, ...]) -> dg.RunRequest:
    """A backfill of the tile stages over tiles of a year; the daemon launches it like one from the UI."""
    keys = [dg.MultiPartitionKey({CDL_YEAR: year, TILE: tile}) for tile in tiles]
    return request_backfill(TILE_ASSETS, year_tile_partitions, keys, {CDL_YEAR: year})


def _latest_events(instance: dg.DagsterInstance, recipe: DatasetRecipe) -> list[str | int]:
    """Changes whenever there may be something new: the recipe, and the last events of the relevant tables."""
    events: list[str | int] = [recipe.fingerprint()]
    for asset in ("tile_map", "label_quality", "filtered_chips"):
        records = instance.fetch_materializations(dg.AssetKey(asset), limit=1).records
        events.append(records[0].storage_id if records else 0)
    return events


def _events_by_year(instance: dg.DagsterInstance) -> dict[str, int]:
    """The last event of the relevant tables of each year, so that years without new ones need not be looked at."""
    last: dict[str, int] = {}
    for asset in ("tile_map", "label_quality", "filtered_chips"):
        found = instance.get_latest_storage_id_by_partition(
            dg.AssetKey(asset), dg.DagsterEventType.ASSET_MATERIALIZATION
        )
        for partition, event in found.items():
            year = partition.partition("|")[0]
            last[year] = max(last.get(year, 0), event)
    return last


def _cursor(context: dg.SensorEvaluationContext, kind: type[_Cursor]) -> tuple[_Cursor, str]:
    """The cursor and ""; or, if it cannot be read, a new cursor and a message."""
    text = context.cursor or "{}"
    cursor = read_cursor(text, kind)
    if cursor is not None:
        return cursor, ""
    message = "the cursor is not valid for this sensor and was reset"
    context.log.warning(plain_text(f"{message}: {text}", 500))
    return kind(), f"{message}; "


def _years_of(instance: dg.DagsterInstance) -> list[int]:
    """The partitions that are years of the CDL; others can be added in the UI."""
    found = filter(None, map(parse_year, instance.get_dynamic_partitions(CDL_YEAR)))
    return [year for year in found if year in YEARS]


def _years(releases: list[Release]) -> str:
    return ", ".join(str(release.year) for release in releases)


def _nothing_new(first: bool, years: list[int]) -> str:
    releases = f"{len(years)} of {years[0]} to {years[-1]}" if years else "none"
    return (
        f"first look: releases recorded: {releases}; nothing is launched for them"
        if first
        else f"no change: {releases}"
    )


def _look_failed(error: Exception, cursor: str | None, reset: str) -> dg.SensorResult:
    """A tick whose look failed: skipped, with the cause. If it raised, the log would get two tracebacks of Dagster's
    code.
    """
    return dg.SensorResult(
        skip_reason=plain_text(f"{reset}the look failed: {error}; nothing was changed"), cursor=cursor
    )


def _not_due(looked: float | None, since: float, problem: str) -> str:
    if looked is None or since < time.time():
        why = f": {problem}" if problem else ""
        return f"the last look failed{why}; the next one is within {RETRY_MINUTES} minutes"
    at, due = (datetime.fromtimestamp(when, UTC).strftime("%H:%M") for when in (looked, since))
    return f"last look at {at} UTC; the next one is due at {due} UTC"


SENSORS = (cdl_release_sensor, dataset_sensor)
