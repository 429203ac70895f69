"""Tile stages as one Dagster multi-asset.

Each stage is a separate asset in the graph, with its own partitions, metadata and lineage, but they share one step, so
that a tile goes through all of its stages even if other tiles fail. Dagster skips everything downstream of a failed
step, so with a step per stage one bad tile would stop every other tile of its run. Here each (stage, tile) is recorded
as soon as it succeeds, and the step fails at the end, naming the tiles that failed and why.
"""

import contextlib
import functools
import inspect
import queue
import time
import traceback
import warnings
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

import dagster as dg

from crop_assets.crs import require_proj
from crop_assets.errors import InputError
from crop_assets.graph.lineage import Lineage
from crop_assets.graph.metadata import (
    OWNERS,
    column_schema,
    earlier_metadata,
    plain,
    shown,
    store_pictures,
    table_metadata,
)
from crop_assets.graph.services import resource_keys, services_of
from crop_assets.graph.stage import Check, Finding, Made, Source, Stage, TileRun, call
from crop_assets.graph.years import FAILED
from crop_assets.layout import Layout, parse_year
from crop_assets.partitions import (
    CDL_YEAR,
    launched_keys,
    shown_tile,
    tiles_per_run,
    year_and_tile,
    year_mapping,
    year_tile_partitions,
)
from crop_assets.recipe import DatasetRecipe, RecipeFiles
from resources.errors import ResourceError, UnavailableError
from resources.machine import Machine
from resources.plain_text import plain_text
from resources.stop import StoppablePool, check, uninterrupted
from resources.store import DatasetStore
from resources.tables import StoredTable

_TRANSIENT = "transient"
"""Metadata of observations of failures: whether the stage and tile is retried."""
_ATTEMPT = "attempt"
"""Metadata of these observations: the number of retries before it."""
_OUTCOME = "outcome"
"""Metadata of the tables of a tile without chip boxes."""
_NAMED = 5
"""Maximum causes in an error; the log has all."""


@dataclass(frozen=True)
class TileWork:
    """The tile stages of a run, in order, and what they use."""

    stages: Sequence[Stage]
    selected: Collection[str]
    """The stages whose tables are made; for the others only the checks are executed."""
    tile_assets: frozenset[str]
    """All tile stages of the graph, whether in this run or not."""
    store: DatasetStore
    recipe: DatasetRecipe
    machine: Machine
    services: Mapping[str, Any]
    files: RecipeFiles = field(default_factory=RecipeFiles)


def tile_assets(stages: Sequence[Stage], at_once: int) -> dg.AssetsDefinition:
    """All tile stages, in order, as one subsettable multi-asset partitioned by year and tile."""
    names = frozenset(stage.name for stage in stages)

    @dg.multi_asset(
        name="tile_stages",
        specs=[_spec(stage, names) for stage in stages],
        check_specs=[_check_spec(stage, check) for stage in stages for check in stage.checks],
        partitions_def=year_tile_partitions,
        backfill_policy=tiles_per_run(at_once),
        can_subset=True,
        # limits concurrent runs, because they share the rate limit of a catalogue; dagster.yaml has the number
        pool="tiles",
        required_resource_keys={"machine", "downloads"}.union(
            *(resource_keys(one.services) for one in stages)
        ),
    )
    def tile_stages(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[Any]]:
        _materialize(context, stages, names)
        # each (stage, tile) has been recorded by a separate event
        yield from ()

    return tile_stages


def _spec(stage: Stage, tile_assets: frozenset[str]) -> dg.AssetSpec:
    return dg.AssetSpec(
        stage.name,
        description=inspect.getdoc(stage.function),
        group_name=stage.group,
        kinds={"python", *stage.kinds},
        owners=list(OWNERS),
        code_version=stage.code_version,
        skippable=True,
        metadata={"dagster/column_schema": column_schema(stage.schema)},
        deps=[
            name if name in tile_assets else dg.AssetDep(name, partition_mapping=year_mapping())
            for name in stage.tables
        ],
    )


def _check_spec(stage: Stage, check: Check) -> dg.AssetCheckSpec:
    with warnings.catch_warnings():
        # partitions of checks are new in Dagster 1.13, and may change
        warnings.simplefilter("ignore", dg.PreviewWarning)
        return dg.AssetCheckSpec(
            check.name, asset=stage.name, description=check.description, partitions_def=year_tile_partitions
        )


def _materialize(context: dg.AssetExecutionContext, stages: Sequence[Stage], names: frozenset[str]) -> None:
    require_proj()
    selected = {key.to_user_string() for key in context.selected_asset_keys}
    # a check can be executed without its asset
    checked = {key.asset_key.to_user_string() for key in context.selected_asset_check_keys}
    chosen = [stage for stage in stages if stage.name in selected | checked]
    resources = context.resources
    services = services_of(resources, frozenset().union(*(stage.services for stage in chosen)))
    work = TileWork(chosen, selected, names, resources.store, resources.recipe, resources.machine, services)
    retries, pause_seconds = resources.downloads.tile_retries, resources.downloads.tile_pause_seconds
    keys = launched_keys(context)
    earlier = _earlier_failures(context) if context.retry_number else {}
    again = [key for key in keys if not earlier or (str(key) in earlier and earlier[str(key)].transient)]
    if context.retry_number:
        pause = pause_seconds * 2 ** (context.retry_number - 1)
        tiles = ", ".join(map(shown_tile, again))
        with uninterrupted():
            context.log.info(plain_text(f"retrying {tiles} in {pause:.0f} s"))
        # not by Dagster, whose own pause cannot be interrupted
        time.sleep(pause)
    failures = _run_tiles(context, again, work)
    if any(failure.transient for failure in failures) and context.retry_number < retries:
        raise dg.RetryRequested(max_retries=retries) from _failure(failures, len(keys))
    failures += [failure for failure in earlier.values() if not failure.transient]
    if failures:
        raise _failure(failures, len(keys))


@dataclass(frozen=True)
class _Failure:
    partition: str
    tile: str
    stage: str
    cause: str
    traceback: str
    transient: bool


@dataclass(frozen=True)
class _Input:
    """An upstream table: its content hash, and whether it is per tile or per year."""

    version: str
    per_tile: bool


@dataclass(frozen=True)
class _Done:
    stage: Stage
    partition: dg.MultiPartitionKey
    stored: StoredTable
    metadata: dict[str, Any]
    inputs: dict[str, _Input]
    reused: bool


@dataclass(frozen=True)
class _Finished:
    partition: dg.MultiPartitionKey


@dataclass(frozen=True)
class _Checked:
    stage: Stage
    partition: dg.MultiPartitionKey
    findings: list[tuple[Check, Finding]]


def _run_tiles(
    context: dg.AssetExecutionContext, keys: Sequence[dg.MultiPartitionKey], work: TileWork
) -> list[_Failure]:
    messages: queue.SimpleQueue[str | _Done | _Checked | _Failure | _Finished] = queue.SimpleQueue()
    years: dict[str, Lineage] = {}
    for key in keys:
        year = key.keys_by_dimension[CDL_YEAR]
        if number := parse_year(year):
            years.setdefault(year, Lineage(work.store, Layout(work.recipe.dataset, number), work.recipe))

    def make(key: dg.MultiPartitionKey, pool: Executor) -> None:
        try:
            make_tile(key, work, years.get(key.keys_by_dimension[CDL_YEAR]), messages.put, pool)
        finally:
            messages.put(_Finished(key))

    # separate threads for tiles, so that a tile that waits for its work does not occupy a thread that does work
    with work.machine.pool() as pool, StoppablePool(work.machine.threads) as tiles:
        futures = [tiles.submit(make, key, pool) for key in keys]
        try:
            return _record(context, messages, len(keys), [stage.name for stage in work.stages])
        finally:
            # if the event log fails
            for future in futures:
                future.cancel()


def _record(
    context: dg.AssetExecutionContext,
    messages: "queue.SimpleQueue[str | _Done | _Checked | _Failure | _Finished]",
    tiles: int,
    stages: Sequence[str],
) -> list[_Failure]:
    """Write what the tiles report to Dagster's event log until all have ended; only one thread may write to it."""
    failures: list[_Failure] = []
    finished = 0
    unchanged: dict[str, list[str]] = {}
    # an input's event of this run is recorded before it is looked up
    pointer = functools.cache(functools.partial(_event_pointer, context.instance))
    while finished < tiles:
        message = messages.get()
        with uninterrupted():
            if isinstance(message, _Finished):
                finished += 1
                text = f"{finished} of {tiles} tiles finished, {len(failures)} failed"
                if names := unchanged.pop(str(message.partition), []):
                    # in one line, because each costs as much as reading a table
                    text += f"; {shown_tile(message.partition)}: unchanged, nothing to do: {', '.join(names)}"
                context.log.info(text)
            elif isinstance(message, _Done):
                if message.reused:
                    unchanged.setdefault(str(message.partition), []).append(message.stage.name)
                context.log_event(_materialization(context.instance, message, pointer))
            elif isinstance(message, _Checked):
                for check, found in message.findings:
                    context.log_event(_evaluation(message, check, found))
            elif isinstance(message, _Failure):
                failures.append(message)
                _log_failure(context, message, stages)
            else:
                context.log.info(message)
    return sorted(failures, key=lambda failure: failure.tile)


def _log_failure(context: dg.AssetExecutionContext, failure: _Failure, stages: Sequence[str]) -> None:
    context.log.error(f"{failure.tile} failed at {failure.stage}: {failure.cause}{failure.traceback}")
    why: dict[str, Any] = {
        FAILED: f"failed at {failure.stage}: {failure.cause}",
        _TRANSIENT: failure.transient,
        _ATTEMPT: context.retry_number,
    }
    for name in stages[stages.index(failure.stage) :]:
        context.log_event(dg.AssetObservation(name, partition=failure.partition, metadata=why))


def make_tile(
    key: dg.MultiPartitionKey,
    work: TileWork,
    year_lineage: Lineage | None,
    report: Callable[[str | _Done | _Checked | _Failure], None],
    pool: Executor,
) -> None:
    """Make the tables of a tile, one stage after another, until one fails.

    `year_lineage` is shared by the tiles of a year, so that the year's tables are read once. Of an object store, what a
    stage has read or written is kept on this machine for the later ones, until the tile is finished.
    """
    label = shown_tile(key)
    lineage: Lineage | None = None
    handover: dict[Hashable, Any] = {}
    with contextlib.ExitStack() as stack:
        for stage in work.stages:
            check()
            try:
                year, tile = year_and_tile(key)

                def log(text: str, name: str = stage.name) -> None:
                    report(plain_text(f"{label} {name}: {text}"))

                if lineage is None:
                    store = stack.enter_context(work.store.scratch())
                    lineage = Lineage(store, Layout(work.recipe.dataset, year), work.recipe, year_lineage)
                run = TileRun(lineage.store, work.recipe, log, log, year, tile, pool, work.files, handover)
                if stage.name in work.selected:
                    report(_make(key, run, stage, work, lineage))
                if stage.checks:
                    table = lineage.read(stage.name, tile)
                    found = [(check, check.function(table, {}, run)) for check in stage.checks]
                    report(_Checked(stage, key, found))
            except (InputError, ResourceError, OSError) as error:
                transient = isinstance(error, UnavailableError | ConnectionError | TimeoutError)
                report(_Failure(str(key), label, stage.name, plain_text(str(error)), "", transient))
                return
            except Exception as error:
                # a message from another library, of any length
                cause = plain_text(f"{type(error).__name__}: {error}")
                where = "".join(traceback.format_tb(error.__traceback__))
                report(_Failure(str(key), label, stage.name, cause, f"\n{where}", False))
                return


def _make(key: dg.MultiPartitionKey, run: TileRun, stage: Stage, work: TileWork, lineage: Lineage) -> _Done:
    started = time.monotonic()
    inputs = {}
    for upstream in stage.tables:
        per_tile = upstream in work.tile_assets
        if reason := lineage.stale_because(upstream, run.tile if per_tile else None):
            raise InputError(reason)
        inputs[upstream] = _Input(lineage.version(upstream, run.tile, per_tile), per_tile)
    fields = stage.recipe_fields(run.recipe)
    known = {"run": run, **{name: work.services[name] for name in stage.services}}
    source = call(stage.source, known) if stage.source else Source(None, None)
    identified = [stage.name, stage.code_version, *([source.identity] if stage.source else [])]
    record = lineage.record(fields, stage.tables, run.tile, work.tile_assets, {}, identified)
    again = call(stage.again, known)
    stored = None if again else lineage.unchanged(stage.name, run.tile, record, run.log)
    metadata = dict(source.metadata)
    reused = stored is not None
    without_chips = lineage.rows("tile_map", run.tile).empty
    if without_chips:
        metadata[_OUTCOME] = f"no chip box of {run.year} is in this tile"
    if stored is None:
        if without_chips:
            made = Made(stage.schema.empty())
        else:
            frames = {
                name: lineage.read(name, run.tile) if one.per_tile else lineage.rows(name, run.tile)
                for name, one in inputs.items()
            }
            made = call(stage.function, {**known, **frames, "source": source.value})
        metadata |= store_pictures(made.metadata, run.store, run.layout.pictures(stage.name, run.tile))
        files = made.digests(run.store)
        stored = lineage.write(stage.name, run.tile, made.frame, {**record, "files": files})
        if stored.rows:
            run.log(f"{stored.rows} rows in {time.monotonic() - started:.1f} s")
    described = table_metadata(run.store, stored, reused, time.monotonic() - started)
    return _Done(stage, key, stored, {**metadata, **described}, inputs, reused)


def _event_pointer(instance: dg.DagsterInstance, asset: str, partition: str) -> str:
    """The id in the event log of an asset's latest materialization of a partition, as Dagster's tags have it."""
    # without reading the event itself, which takes longer
    made = dg.DagsterEventType.ASSET_MATERIALIZATION
    found = instance.get_latest_storage_id_by_partition(dg.AssetKey(asset), made, {partition})
    return str(found.get(partition, "NULL"))


def _materialization(
    instance: dg.DagsterInstance, done: _Done, pointer: Callable[[str, str], str]
) -> dg.AssetMaterialization:
    """The event of one stage and tile.

    From its tags Dagster finds out what is out of date: for partitioned inputs, the id of the input's event in the
    event log.
    """
    partition = str(done.partition)
    earlier: dict[str, Any] = {}
    if done.reused and _OUTCOME not in done.metadata:
        earlier = earlier_metadata(instance, done.stage.name, partition, done.stored)
    tags = {
        "dagster/data_version": done.stored.data_version,
        "dagster/data_version_is_user_provided": "true",
        "dagster/code_version": done.stage.code_version,
        **{f"dagster/partition/{name}": key for name, key in done.partition.keys_by_dimension.items()},
    }
    for name, upstream in done.inputs.items():
        tags[f"dagster/input_data_version/{name}"] = upstream.version
        where = partition if upstream.per_tile else done.partition.keys_by_dimension[CDL_YEAR]
        tags[f"dagster/input_event_pointer/{name}"] = pointer(name, where)
    return dg.AssetMaterialization(
        done.stage.name, partition=partition, metadata=shown({**earlier, **done.metadata}), tags=tags
    )


def _evaluation(done: _Checked, check: Check, found: Finding) -> dg.AssetCheckEvaluation:
    return dg.AssetCheckEvaluation(
        asset_key=dg.AssetKey(done.stage.name),
        check_name=check.name,
        passed=found.passed,
        metadata=shown(found.metadata),
        severity=dg.AssetCheckSeverity.WARN,
        partition=str(done.partition),
    )


def _earlier_failures(context: dg.AssetExecutionContext) -> dict[str, _Failure]:
    """The last failure of each partition in the earlier attempts of this run, by partition, without those that
    succeeded in a later attempt.

    Read from the event log, because each attempt may run in a separate process.
    """
    logs = context.instance.all_logs(context.run.run_id, of_type=dg.DagsterEventType.ASSET_OBSERVATION)
    found = {}
    for log in logs:
        event = log.dagster_event.asset_observation_data.asset_observation if log.dagster_event else None
        if event is None or event.partition is None or _TRANSIENT not in event.metadata:
            continue
        transient = bool(event.metadata[_TRANSIENT].value)
        if transient and event.metadata[_ATTEMPT].value != context.retry_number - 1:
            # it was retried, and has another failure or none
            continue
        # each stage that was not made has the same text
        words = str(event.metadata[FAILED].value).removeprefix("failed at ")
        stage, _, cause = words.partition(": ")
        tile = shown_tile(year_tile_partitions.get_partition_key_from_str(event.partition))
        found[event.partition] = _Failure(event.partition, tile, stage, cause, "", transient)
    return found


def _failure(failures: Sequence[_Failure], tiles: int) -> dg.Failure:
    """The failure of the step: first the causes, each once, with their tiles and stages."""
    failures = sorted(failures, key=lambda failure: failure.tile)
    affected: dict[str, list[str]] = {}
    for f in failures:
        affected.setdefault(f.cause, []).append(f"{f.tile} at {f.stage}")
    causes = [f"{cause} ({', '.join(where)})" for cause, where in affected.items()]
    more = f"; and {len(causes) - _NAMED} more causes, which the log names" if len(causes) > _NAMED else ""
    lines = [f"- **{f.tile}** at `{f.stage}`: {plain(f.cause)}" for f in failures]
    return dg.Failure(
        plain_text(f"{'; '.join(causes[:_NAMED])}{more}. {_how_many(len(failures), tiles)}"),
        metadata={"failed_tiles": dg.MetadataValue.md("\n".join(lines))},
        allow_retries=False,
    )


def _how_many(failed: int, tiles: int) -> str:
    if failed == tiles:
        return "This was the only tile of the run." if tiles == 1 else f"All {tiles} tiles of the run failed."
    others = "the other one is" if tiles - failed == 1 else f"the other {tiles - failed} are"
    return f"{failed} of {tiles} tiles failed; {others} done."
