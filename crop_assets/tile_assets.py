"""The per-tile stages of the graph, joined into one Dagster multi-asset.

Each stage stays an asset of its own in the graph, with its own partitions, metadata and lineage; they
share one step so that a tile goes through all of its stages whatever becomes of its neighbours. Dagster
skips everything downstream of a failed step, so with a step per stage one bad tile would stop every
other tile of its run. Here each (stage, tile) that succeeds is recorded as it ends, and the step
fails last, naming the tiles that failed and why.

Belongs here: the glue between Dagster and the stages. Does not: what any stage does.
"""

import inspect
import queue
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

import dagster as dg
import pandas as pd

from crop_assets.crs import require_proj
from crop_assets.errors import InputError
from crop_assets.layout import Layout
from crop_assets.lineage import Lineage
from crop_assets.partitions import (
    CDL_YEAR,
    TILE,
    launched_keys,
    shown_tile,
    tiles_per_run,
    year_and_tile,
    year_mapping,
    year_tile_partitions,
)
from crop_assets.recipe import DatasetRecipe
from crop_assets.tiles.grid import tile_names
from crop_assets.year_assets import (
    OWNERS,
    YearRun,
    column_schema,
    earlier_metadata,
    identity_of,
    latest_record,
    plain,
    shown,
    table_metadata,
    whole_table,
    with_provenance,
)
from resources.cdl import CdlReleases
from resources.downloads import Downloads
from resources.earthdata import LpDaac
from resources.errors import IntegrityError, ResourceError, UnavailableError
from resources.ipfs.resource import IpfsContent
from resources.machine import Machine
from resources.mirror import BandMirror
from resources.plain_text import plain_text
from resources.sources import Sources
from resources.stac import IpfsStac, SceneStac
from resources.stop import StoppablePool, check, uninterrupted
from resources.store import DatasetStore
from resources.tables import StoredTable, TableSchema, write_table

EVERY_TILE_IS_IN = "every_tile_is_in"
_FAILED = "failed"
"""Metadata of the observations by which a stage and tile that was not made says why."""
_TRANSIENT = "transient"
"""Metadata of these observations: whether the stage and tile is worked on again."""
_ATTEMPT = "attempt"
"""Metadata of these observations: how often the run had worked on the tile before."""
_NAMED = 5
"""Missing tiles that an error names with their causes; the log and the check name all."""


@dataclass(frozen=True)
class Services:
    """The outside world as the tile stages see it."""

    recipe: DatasetRecipe
    store: DatasetStore
    cdl_releases: CdlReleases
    stac: SceneStac
    ipfs_stac: IpfsStac
    ipfs: IpfsContent
    sources: Sources
    machine: Machine


@dataclass(frozen=True)
class TileRun:
    """One tile of one year on its way through a stage."""

    year: int
    tile: str
    services: Services
    log: Callable[[str], None]
    pool: Executor

    @property
    def recipe(self) -> DatasetRecipe:
        return self.services.recipe

    @property
    def store(self) -> DatasetStore:
        return self.services.store

    @property
    def layout(self) -> Layout:
        return Layout(self.recipe.dataset, self.year)


@dataclass(frozen=True)
class TileTable:
    """What a stage made: its table, what the operator should see, and the files that the table names.

    `files` maps names in the store to their SHA-256.
    """

    frame: pd.DataFrame
    metadata: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TileStage:
    """A stage: a function of a TileRun and the tables named by its further parameters."""

    function: Callable[..., TileTable]
    group: str
    kinds: frozenset[str]
    schema: TableSchema
    recipe_fields: tuple[str, ...]
    code_version: str
    refresh: str
    always: bool

    @property
    def name(self) -> str:
        return self.function.__name__

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(inspect.signature(self.function).parameters)[1:]

    def spec(self, tile_assets: Iterable[str]) -> dg.AssetSpec:
        names = set(tile_assets)
        return dg.AssetSpec(
            self.name,
            description=inspect.getdoc(self.function),
            group_name=self.group,
            kinds={"python", *self.kinds},
            owners=list(OWNERS),
            code_version=self.code_version,
            skippable=True,
            metadata={"dagster/column_schema": column_schema(self.schema)},
            deps=[
                upstream if upstream in names else dg.AssetDep(upstream, partition_mapping=year_mapping())
                for upstream in self.reads
            ],
        )


def tile_stage(
    group: str,
    schema: TableSchema,
    kinds: Iterable[str] = (),
    recipe_fields: Sequence[str] = (),
    code_version: str = "1",
    refresh: str = "",
    always: bool = False,
) -> Callable[[Callable[..., TileTable]], TileStage]:
    """Declare a stage. `recipe_fields` are the choices that it uses; `refresh` names the service whose
    `refresh` field makes it ask again though nothing else changed; `always` has it ask each time.
    """

    def declare(function: Callable[..., TileTable]) -> TileStage:
        return TileStage(
            function, group, frozenset(kinds), schema, tuple(recipe_fields), code_version, refresh, always
        )

    return declare


def tile_assets(stages: Sequence[TileStage], at_once: int) -> dg.AssetsDefinition:
    """All stages, in their order, as one subsettable multi-asset partitioned by year and tile."""
    names = [stage.name for stage in stages]

    @dg.multi_asset(
        name="tile_stages",
        specs=[stage.spec(names) for stage in stages],
        partitions_def=year_tile_partitions,
        backfill_policy=tiles_per_run(at_once),
        can_subset=True,
        # so that runs at once share what a catalogue bears: dagster.yaml says how many
        pool="tiles",
    )
    def tile_stages(
        context: dg.AssetExecutionContext,
        recipe: dg.ResourceParam[DatasetRecipe],
        store: dg.ResourceParam[DatasetStore],
        cdl_releases: dg.ResourceParam[CdlReleases],
        stac: dg.ResourceParam[SceneStac],
        ipfs_stac: dg.ResourceParam[IpfsStac],
        ipfs: dg.ResourceParam[IpfsContent],
        lp_daac: dg.ResourceParam[LpDaac],
        mirror: dg.ResourceParam[BandMirror],
        downloads: dg.ResourceParam[Downloads],
        machine: dg.ResourceParam[Machine],
    ) -> Iterator[dg.MaterializeResult]:  # type: ignore[type-arg]
        require_proj()
        selected = {key.to_user_string() for key in context.selected_asset_keys}
        chosen = [stage for stage in stages if stage.name in selected]
        sources = downloads.of(recipe.sources, ipfs, lp_daac, mirror)
        services = Services(recipe, store, cdl_releases, stac, ipfs_stac, ipfs, sources, machine)
        keys = launched_keys(context)
        earlier = _earlier_failures(context) if context.retry_number else {}
        again = [key for key in keys if not earlier or (str(key) in earlier and earlier[str(key)].transient)]
        if context.retry_number:
            pause = downloads.tile_pause_seconds * 2 ** (context.retry_number - 1)
            tiles = ", ".join(map(shown_tile, again))
            with uninterrupted():
                context.log.info(plain_text(f"working again on {tiles} in {pause:.0f} s"))
            # here, for Dagster's own pause cannot be interrupted
            time.sleep(pause)
        failures = _run_tiles(context, again, services, chosen, frozenset(names))
        if any(failure.transient for failure in failures) and context.retry_number < downloads.tile_retries:
            raise dg.RetryRequested(max_retries=downloads.tile_retries) from _failure(failures, len(keys))
        failures += [failure for failure in earlier.values() if not failure.transient]
        if failures:
            raise _failure(failures, len(keys))
        # each (stage, tile) has been recorded by an event of its own
        yield from ()

    return tile_stages


@dataclass(frozen=True)
class TileTables:
    """The tables of one per-tile asset over all tiles of a year's tile map.

    `missing` names the tiles without a table, or with one of another recipe, and why.
    """

    asset: str
    frame: pd.DataFrame
    versions: dict[str, str]
    missing: dict[str, str]

    def check(self) -> dg.AssetCheckResult:
        """The result of `every_tile_is_in` where the missing tiles are no more than the recipe allows."""
        return dg.AssetCheckResult(
            check_name=EVERY_TILE_IS_IN,
            passed=not self.missing,
            severity=dg.AssetCheckSeverity.WARN,
            metadata=self.metadata(),
        )

    def metadata(self) -> dict[str, Any]:
        found: dict[str, Any] = {"tiles": len(self.versions), "tiles_missing": len(self.missing)}
        if self.missing:
            lines = [f"- **{tile}**: {plain(reason)}" for tile, reason in sorted(self.missing.items())]
            found["missing"] = dg.MetadataValue.md("\n".join(lines))
        return found


def every_tile_is_in(asset: str) -> dg.AssetCheckSpec:
    """The check of a per-year asset that reads all tiles by `read_tiles`."""
    return dg.AssetCheckSpec(
        EVERY_TILE_IS_IN,
        asset=asset,
        description="Every tile of the year's tile map is done, by this recipe. Fails with the severity ERROR if more "
        "are missing than `max_missing_tiles` allows; the asset fails then too.",
    )


def read_tiles(run: YearRun, asset: str, job: str = "tiles_job") -> TileTables:
    """Read a per-tile asset's tables of all tiles of the year, with a `tile` column, in the order of tiles.

    A tile whose table is missing, unreadable, or not what would be made now is left out and named in `missing`.
    `job` is the one that makes the tables.
    Raises InputError, before anything is written, if the year's tile map is not current, no tile is, or more are
    missing than `max_missing_tiles`; the check `every_tile_is_in` of the asset then fails with the severity ERROR.
    """
    lineage = Lineage(run.store, run.layout, run.recipe)
    if reason := lineage.stale_because("tile_map", None):
        raise InputError(f"{run.asset} {run.year}: {reason}")
    frames, versions, missing = [], {}, {}
    for tile in tile_names(run.read("tile_map")):
        try:
            reason = lineage.stale_because(asset, tile)
            if not reason:
                frames.append(lineage.read(asset, tile).assign(tile=tile))
                versions[tile] = lineage.version(asset, tile, per_tile=True)
        except IntegrityError as error:
            reason = str(error)
        if reason:
            missing[tile] = reason
    missing |= failed_because(run.context.instance, asset, run.year, missing)
    for tile, reason in missing.items():
        run.warn(f"{tile}: {reason}")
    made = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
    tiles = TileTables(asset, made, versions, missing)
    if frames and len(missing) <= run.recipe.max_missing_tiles:
        return tiles
    failed = dg.AssetCheckEvaluation(
        asset_key=run.context.asset_key,
        check_name=EVERY_TILE_IS_IN,
        passed=False,
        severity=dg.AssetCheckSeverity.ERROR,
        metadata=tiles.metadata(),
    )
    with uninterrupted():
        run.context.log_event(failed)
    raise InputError(f"{run.asset} {run.year}: {_too_few(run, tiles, job)}")


def failed_because(
    instance: dg.DagsterInstance, asset: str, year: int, tiles: Collection[str]
) -> dict[str, str]:
    """Why the last run that was to make a tile's table failed, by tile; without tiles that were made since, or never
    failed. The event log is asked three times, however many tiles there are.
    """
    if not tiles:
        return {}
    key = dg.AssetKey(asset)
    partitions = {str(dg.MultiPartitionKey({CDL_YEAR: str(year), TILE: tile})): tile for tile in tiles}
    observed, made = (
        instance.get_latest_storage_id_by_partition(key, kind, set(partitions))
        for kind in (dg.DagsterEventType.ASSET_OBSERVATION, dg.DagsterEventType.ASSET_MATERIALIZATION)
    )
    later = [event for partition, event in observed.items() if event > made.get(partition, 0)]
    if not later:
        return {}
    where = dg.AssetRecordsFilter(asset_key=key, storage_ids=later)
    events = [record.asset_observation for record in instance.fetch_observations(where, len(later)).records]
    return {
        # anybody who reaches the UI may report an event
        partitions[event.partition]: plain_text(str(event.metadata[_FAILED].value))
        for event in events
        if event and event.partition and _FAILED in event.metadata
    }


def _too_few(run: YearRun, tiles: TileTables, job: str) -> str:
    """Which tiles are missing and why, what that means for the dataset, and what to do."""
    missing, total = sorted(tiles.missing.items()), len(tiles.missing) + len(tiles.versions)
    if not total:
        return "the tile map has no tile; its table says why no chip box has one. Choose other boxes, or a larger grid"
    causes = "; ".join(f"{tile}: {reason}" for tile, reason in missing[:_NAMED])
    more = f"; and {len(missing) - _NAMED} more, which the log names" if len(missing) > _NAMED else ""
    if tiles.versions:
        are = "is" if len(missing) == 1 else "are"
        allowed = f"max_missing_tiles allows {run.recipe.max_missing_tiles}"
        head = f"{len(missing)} of {total} tiles {are} missing, and {allowed}"
        without = f", or set max_missing_tiles: {len(missing)} in the recipe for a dataset without them"
    else:
        head, without = f"none of {total} tiles is ready", ""
    earlier = (
        f" The {run.asset} of an earlier run is still in {run.layout.root}, and may not fit the chips there."
        if run.store.exists(run.layout.table(run.asset))
        else ""
    )
    advice = f"Nothing was written. Backfill {job} over these tiles of {run.year}{without}."
    return f"{head}. {causes}{more}. {advice}{earlier}"


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
    """An upstream table: its content hash, and whether it is a tile's or the year's."""

    version: str
    per_tile: bool


@dataclass(frozen=True)
class _Done:
    stage: TileStage
    partition: dg.MultiPartitionKey
    stored: StoredTable
    metadata: dict[str, Any]
    inputs: dict[str, _Input]
    reused: bool


def _run_tiles(
    context: dg.AssetExecutionContext,
    keys: Sequence[dg.MultiPartitionKey],
    services: Services,
    stages: Sequence[TileStage],
    tile_assets: frozenset[str],
) -> list[_Failure]:
    messages: queue.SimpleQueue[str | _Done | _Failure | None] = queue.SimpleQueue()

    def work(key: dg.MultiPartitionKey, pool: Executor) -> None:
        try:
            run_stages(key, services, stages, tile_assets, messages.put, pool)
        finally:
            messages.put(None)

    # the tiles have threads of their own, so that those who wait for work leave the ones who do it
    with services.machine.pool() as pool, StoppablePool(services.machine.threads) as tiles:
        futures = [tiles.submit(work, key, pool) for key in keys]
        try:
            return _record(context, messages, len(keys), [stage.name for stage in stages])
        finally:
            # where the event log fails
            for future in futures:
                future.cancel()


def _record(
    context: dg.AssetExecutionContext,
    messages: "queue.SimpleQueue[str | _Done | _Failure | None]",
    tiles: int,
    stages: Sequence[str],
) -> list[_Failure]:
    """Write what the tiles report to Dagster's event log, which takes one thread alone, until all have ended."""
    failures: list[_Failure] = []
    finished = 0
    while finished < tiles:
        message = messages.get()
        with uninterrupted():
            if message is None:
                finished += 1
                context.log.info(f"{finished} of {tiles} tiles finished, {len(failures)} failed")
            elif isinstance(message, _Done):
                context.log_event(_materialization(context.instance, message))
            elif isinstance(message, _Failure):
                failures.append(message)
                _log_failure(context, message, stages)
            else:
                context.log.info(message)
    return sorted(failures, key=lambda failure: failure.tile)


def _log_failure(context: dg.AssetExecutionContext, failure: _Failure, stages: Sequence[str]) -> None:
    context.log.error(f"{failure.tile} failed at {failure.stage}: {failure.cause}{failure.traceback}")
    why: dict[str, Any] = {
        _FAILED: f"failed at {failure.stage}: {failure.cause}",
        _TRANSIENT: failure.transient,
        _ATTEMPT: context.retry_number,
    }
    for name in stages[stages.index(failure.stage) :]:
        context.log_event(dg.AssetObservation(name, partition=failure.partition, metadata=why))


def run_stages(
    key: dg.MultiPartitionKey,
    services: Services,
    stages: Sequence[TileStage],
    tile_assets: frozenset[str],
    report: Callable[[str | _Done | _Failure], None],
    pool: Executor,
) -> None:
    label = shown_tile(key)
    for stage in stages:
        check()
        try:
            year, tile = year_and_tile(key)
            run = TileRun(
                year,
                tile,
                services,
                lambda text, name=stage.name: report(plain_text(f"{label} {name}: {text}")),  # type: ignore[misc]
                pool,
            )
            report(_run_stage(key, run, stage, tile_assets))
        except (InputError, ResourceError, OSError) as error:
            transient = isinstance(error, UnavailableError | ConnectionError | TimeoutError)
            report(_Failure(str(key), label, stage.name, plain_text(str(error)), "", transient))
            return
        except Exception as error:
            # the words of another library, of whatever length
            cause = plain_text(f"{type(error).__name__}: {error}")
            where = "".join(traceback.format_tb(error.__traceback__))
            report(_Failure(str(key), label, stage.name, cause, f"\n{where}", False))
            return


def _run_stage(
    key: dg.MultiPartitionKey, run: TileRun, stage: TileStage, tile_assets: frozenset[str]
) -> _Done:
    started = time.monotonic()
    lineage = Lineage(run.store, run.layout, run.recipe)
    frames, inputs = {}, {}
    for upstream in stage.reads:
        frames[upstream], inputs[upstream] = _read(run, lineage, upstream, upstream in tile_assets)
    provenance = lineage.provenance(stage.recipe_fields, stage.reads, run.tile, tile_assets)
    made_from = [provenance["fields"], provenance["upstream"]]
    provenance["identity"] = identity_of(stage.name, stage.code_version, made_from)
    name = run.layout.table(stage.name, run.tile)
    refresh = stage.always or (stage.refresh and getattr(run.services, stage.refresh).refresh)
    stored = None if refresh else whole_table(run.store, name, stage.schema, provenance["identity"], run.log)
    metadata: dict[str, Any] = {}
    if stored is not None:
        run.log(f"unchanged, nothing to do ({stored.rows} rows)")
        final = with_provenance(run.store, stored, stage.schema, provenance)
    else:
        if "tile_map" in frames and frames["tile_map"].empty:
            made = TileTable(
                stage.schema.empty(), {"outcome": f"no chip box of {run.year} lies in this tile"}
            )
        else:
            made = stage.function(run, **frames)
        metadata = made.metadata
        final = write_table(run.store, name, made.frame, stage.schema, {**provenance, "files": made.files})
        run.log(f"{final.rows} rows in {time.monotonic() - started:.1f} s")
    described = table_metadata(run.store, final, stored is not None, time.monotonic() - started)
    return _Done(stage, key, final, {**metadata, **described}, inputs, stored is not None)


def _read(run: TileRun, lineage: Lineage, asset: str, per_tile: bool) -> tuple[pd.DataFrame, _Input]:
    """The rows of an upstream table that belong to this tile, and which table that is.

    Raises InputError where it is missing, or not what would be made now.
    """
    tile = run.tile if per_tile else None
    if reason := lineage.stale_because(asset, tile):
        raise InputError(reason)
    frame = lineage.read(asset, tile) if per_tile else lineage.rows(asset, run.tile)
    return frame, _Input(lineage.version(asset, tile, per_tile), per_tile)


def _materialization(instance: dg.DagsterInstance, done: _Done) -> dg.AssetMaterialization:
    """The event of one stage and tile.

    Its tags are those by which Dagster tells what is out of date: for partitioned inputs that is the event of the
    input, by its id in the event log.
    """
    partition = str(done.partition)
    earlier = earlier_metadata(instance, done.stage.name, partition, done.stored) if done.reused else {}
    tags = {
        "dagster/data_version": done.stored.data_version,
        "dagster/data_version_is_user_provided": "true",
        "dagster/code_version": done.stage.code_version,
        **{f"dagster/partition/{name}": key for name, key in done.partition.keys_by_dimension.items()},
    }
    for name, upstream in done.inputs.items():
        key = partition if upstream.per_tile else done.partition.keys_by_dimension[CDL_YEAR]
        tags[f"dagster/input_data_version/{name}"] = upstream.version
        record = latest_record(instance, name, key)
        tags[f"dagster/input_event_pointer/{name}"] = str(record.storage_id) if record else "NULL"
    return dg.AssetMaterialization(
        done.stage.name, partition=partition, metadata={**earlier, **shown(done.metadata)}, tags=tags
    )


def _earlier_failures(context: dg.AssetExecutionContext) -> dict[str, _Failure]:
    """The last failure of each partition in the earlier attempts of this run, by partition, but for those that an
    attempt has made since.

    From the event log, for an attempt may have a process of its own.
    """
    logs = context.instance.all_logs(context.run.run_id, of_type=dg.DagsterEventType.ASSET_OBSERVATION)
    found = {}
    for log in logs:
        event = log.dagster_event.asset_observation_data.asset_observation if log.dagster_event else None
        if event is None or event.partition is None or _TRANSIENT not in event.metadata:
            continue
        transient = bool(event.metadata[_TRANSIENT].value)
        if transient and event.metadata[_ATTEMPT].value != context.retry_number - 1:
            # it was worked on again, and has another failure or none
            continue
        # each stage that was not made has the same words
        words = str(event.metadata[_FAILED].value).removeprefix("failed at ")
        stage, _, cause = words.partition(": ")
        tile = shown_tile(year_tile_partitions.get_partition_key_from_str(event.partition))
        found[event.partition] = _Failure(event.partition, tile, stage, cause, "", transient)
    return found


def _failure(failures: Sequence[_Failure], tiles: int) -> dg.Failure:
    """Names the causes first, each once, then the tiles and stages."""
    failures = sorted(failures, key=lambda failure: failure.tile)
    places: dict[str, list[str]] = {}
    for f in failures:
        places.setdefault(f.cause, []).append(f"{f.tile} at {f.stage}")
    causes = [f"{cause} ({', '.join(where)})" for cause, where in places.items()]
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
