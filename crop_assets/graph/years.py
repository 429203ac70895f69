"""Year stages, and stages of a store, as Dagster assets: one asset and one step each."""

import contextlib
import inspect
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

import dagster as dg
import pandas as pd

from crop_assets.errors import InputError
from crop_assets.graph.lineage import Lineage
from crop_assets.graph.metadata import (
    OWNERS,
    bounded_errors,
    column_schema,
    earlier_metadata,
    plain,
    shown,
    store_pictures,
    table_metadata,
)
from crop_assets.graph.services import resource_keys, services_of
from crop_assets.graph.stage import AllTiles, Check, Made, Run, Source, Stage, YearRun, alone, call
from crop_assets.layout import Layout
from crop_assets.partitions import CDL_YEAR, TILE, cdl_year_partitions, year_mapping, year_of
from crop_assets.schemas import tile_names
from resources.errors import IntegrityError, UnsafeNameError
from resources.parallel import in_parallel
from resources.plain_text import plain_text
from resources.stop import StoppablePool, uninterrupted
from resources.tables import StoredTable

EVERY_TILE_IS_IN = "every_tile_is_in"
FAILED = "failed"
"""Metadata of the observation of a stage and tile that was not made: the reason."""
_READS_AT_ONCE = 8
"""Tables of tiles that are read at once, because an object store takes some time for each."""
_NAMED = 5
"""Maximum missing tiles in an error, with their causes; the log and the check have all."""
_ALL_TILES = (
    "Every tile of the year's tile map is done, by this recipe. Fails with the severity ERROR if more are missing than "
    "`max_missing_tiles` allows; the asset fails then too."
)


def year_asset(stage: Stage, jobs: Mapping[str, str]) -> dg.AssetsDefinition:
    """The Dagster asset of a stage with the scope "year" or "store"; `jobs` are the jobs of all stages by name."""
    described = [(check.name, check.description) for check in stage.checks]
    if stage.all_tiles:
        described.insert(0, (EVERY_TILE_IS_IN, _ALL_TILES))

    def without_config(context: dg.AssetExecutionContext) -> dg.MaterializeResult:  # type: ignore[type-arg]
        return _materialize(context, stage, jobs, None)

    def with_config(context: dg.AssetExecutionContext, config: Any) -> dg.MaterializeResult:  # type: ignore[type-arg]
        return _materialize(context, stage, jobs, config)

    if stage.config:
        # Dagster derives the schema of the run configuration from it
        with_config.__annotations__["config"] = stage.config
    function: Callable[..., Any] = with_config if stage.config else without_config
    asset: dg.AssetsDefinition = dg.asset(
        name=stage.name,
        description=inspect.getdoc(stage.function),
        group_name=stage.group,
        kinds={"python", *stage.kinds},
        owners=list(OWNERS),
        code_version=stage.code_version,
        partitions_def=cdl_year_partitions if stage.scope == "year" else None,
        deps=[
            *stage.upstream,
            *(dg.AssetDep(name, partition_mapping=year_mapping()) for name in stage.all_tiles),
        ],
        metadata={"dagster/column_schema": column_schema(stage.schema)},
        required_resource_keys={"lineages", *resource_keys(stage.services)},
        check_specs=[dg.AssetCheckSpec(name, asset=stage.name, description=text) for name, text in described],
    )(bounded_errors(function))
    return asset


@dg.resource(description="What the steps of a run have read and judged of the stored tables, by year.")
def lineages(context: dg.InitResourceContext) -> dict[int, Lineage]:
    """The steps of a run share it, and no other run has it. A process that runs one step alone has one of its own."""
    return {}


def _materialize(
    context: dg.AssetExecutionContext, stage: Stage, jobs: Mapping[str, str], config: Any
) -> dg.MaterializeResult:  # type: ignore[type-arg]
    started = time.monotonic()

    def log(text: str) -> None:
        with uninterrupted():
            context.log.info(plain_text(text))

    def warn(text: str) -> None:
        with uninterrupted():
            context.log.warning(plain_text(text))

    store, recipe = context.resources.store, context.resources.recipe
    year = year_of(context) if stage.scope == "year" else 0
    run = YearRun(store, recipe, log, warn, year) if year else Run(store, recipe, log, warn)
    lineage = context.resources.lineages.get(year)
    if lineage is None:
        lineage = context.resources.lineages[year] = Lineage(store, Layout(recipe.dataset, year), recipe)
    for name in stage.upstream:
        if reason := lineage.stale_because(name, None):
            raise InputError(f"{stage.name} {year}: {reason}")
    tiles = {name: read_tiles(context, stage, name, jobs[name], run, lineage) for name in stage.all_tiles}
    known = {"run": run, "config": config, **services_of(context.resources, stage.services)}
    source = call(stage.source, known) if stage.source else Source(None, None)
    record = _record(stage, lineage, tiles, source, config)
    stored = None if call(stage.again, known) else lineage.unchanged(stage.name, None, record, warn)
    reused = stored is not None
    metadata = dict(source.metadata)
    if tiles:
        metadata |= tiles_metadata(_together(tiles))
    if stored is not None:
        log(f"{stage.name}{f' {year}' if year else ''}: unchanged, nothing to do ({stored.rows} rows)")
        partition = context.partition_key if year else None
        metadata = {**earlier_metadata(context.instance, stage.name, partition, stored), **metadata}
    else:
        frames = {name: lineage.read(name, None) for name in stage.tables}
        with alone(lineage.layout):
            made = call(stage.function, {**known, **frames, **tiles, "source": source.value})
            metadata |= store_pictures(made.metadata, store, lineage.layout.pictures(stage.name))
            stored = _write(lineage, stage, run, made, record)
        if not year:
            # those of years may depend on the earlier table
            context.resources.lineages.clear()
    for name in stage.warnings:
        if text := metadata.get(name):
            # metadata of an earlier run is wrapped
            warn(str(getattr(text, "value", text)))
    table = lineage.read(stage.name, None) if stage.then or stage.checks else pd.DataFrame()
    if stage.then:
        stage.then(context.instance, table)
    return dg.MaterializeResult(
        metadata=shown({**metadata, **table_metadata(store, stored, reused, time.monotonic() - started)}),
        data_version=dg.DataVersion(stored.data_version),
        check_results=[
            *([_every_tile_is_in(_together(tiles))] if tiles else ()),
            *(_check(check, table, tiles, run) for check in stage.checks),
        ],
    )


def _record(
    stage: Stage, lineage: Lineage, tiles: Mapping[str, AllTiles], source: Source, config: Any
) -> dict[str, Any]:
    """What the table records of how it is made."""
    fields = stage.recipe_fields(lineage.recipe)
    versions = {name: found.versions for name, found in tiles.items()}
    missing = {name: found.missing for name, found in tiles.items()}
    identified = [stage.name, stage.code_version, source.identity, config and config.model_dump(), missing]
    record = lineage.record(fields, stage.upstream, None, (), versions, identified)
    if stage.scope == "store":
        # the recipes of all datasets share it
        del record["recipe_fingerprint"]
    return record


def _write(lineage: Lineage, stage: Stage, run: Run, made: Made, record: Mapping[str, Any]) -> StoredTable:
    """Write the result; files that only the earlier table named are removed."""
    digests = made.digests(run.store)
    with contextlib.suppress(IntegrityError):
        earlier = lineage.stored(stage.name, None)
        for file in set(earlier.provenance.get("files", {}) if earlier else ()) - set(digests):
            # others may have changed the record
            if file.startswith(f"{lineage.layout.root}/"):
                with contextlib.suppress(UnsafeNameError):
                    run.store.remove(file)
    return lineage.write(stage.name, None, made.frame, {**record, "files": digests})


def _check(check: Check, table: pd.DataFrame, tiles: Mapping[str, AllTiles], run: Run) -> dg.AssetCheckResult:
    found = check.function(table, tiles, run)
    return dg.AssetCheckResult(
        check_name=check.name,
        passed=found.passed,
        severity=dg.AssetCheckSeverity.WARN,
        metadata=shown(found.metadata),
    )


def _together(tiles: Mapping[str, AllTiles]) -> AllTiles:
    """The tiles of all these stages, without their rows; a tile is missing if one stage lacks it."""
    missing = {tile: reason for found in tiles.values() for tile, reason in found.missing.items()}
    known = {tile: version for found in tiles.values() for tile, version in found.versions.items()}
    return AllTiles(pd.DataFrame(), {t: v for t, v in known.items() if t not in missing}, missing)


def _every_tile_is_in(tiles: AllTiles) -> dg.AssetCheckResult:
    """The check's result if no more tiles are missing than the recipe allows."""
    return dg.AssetCheckResult(
        check_name=EVERY_TILE_IS_IN,
        passed=not tiles.missing,
        severity=dg.AssetCheckSeverity.WARN,
        metadata=shown(tiles_metadata(tiles)),
    )


def tiles_metadata(tiles: AllTiles) -> dict[str, Any]:
    """Metadata about the tiles of a year, for the UI."""
    found: dict[str, Any] = {"tiles": len(tiles.versions), "tiles_missing": len(tiles.missing)}
    if tiles.missing:
        lines = [f"- **{tile}**: {plain(reason)}" for tile, reason in sorted(tiles.missing.items())]
        found["missing"] = dg.MetadataValue.md("\n".join(lines))
    return found


def read_tiles(
    context: dg.AssetExecutionContext, stage: Stage, upstream: str, job: str, run: Run, lineage: Lineage
) -> AllTiles:
    """The tables of a tile stage for all tiles of the year, in the order of tiles.

    A tile whose table is missing, unreadable or out of date is left out and named in `missing`. `job` makes them.
    Raises InputError, before anything is written, if no tile is current, or more are missing than `max_missing_tiles`;
    the check `every_tile_is_in` then fails with the severity ERROR.
    """
    frames, versions, missing = [], {}, {}
    names = tile_names(lineage.read("tile_map", None))
    lineage.read_ahead(upstream, names)

    def read(tile: str) -> tuple[str, str, pd.DataFrame | None]:
        try:
            reason, version = lineage.of_tile(upstream, tile)
            frame = None if reason else lineage.read_tile(upstream, tile).assign(tile=tile)
            return reason, version, frame
        except IntegrityError as error:
            return str(error), "", None

    with StoppablePool(_READS_AT_ONCE) as pool:
        for tile, (reason, version, frame) in zip(names, in_parallel(pool, read, names), strict=True):
            if frame is None:
                missing[tile] = reason
            else:
                frames.append(frame)
                versions[tile] = version
    missing |= failed_because(context.instance, upstream, lineage.layout.year, missing)
    for tile, reason in missing.items():
        run.warn(f"{tile}: {reason}")
    tiles = AllTiles(pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(), versions, missing)
    if frames and len(missing) <= run.recipe.max_missing_tiles:
        return tiles
    failed = dg.AssetCheckEvaluation(
        asset_key=context.asset_key,
        check_name=EVERY_TILE_IS_IN,
        passed=False,
        severity=dg.AssetCheckSeverity.ERROR,
        metadata=shown(tiles_metadata(tiles)),
    )
    with uninterrupted():
        context.log_event(failed)
    raise InputError(f"{stage.name} {lineage.layout.year}: {_too_few(stage, job, run, lineage, tiles)}")


def failed_because(
    instance: dg.DagsterInstance, asset: str, year: int, tiles: Collection[str]
) -> dict[str, str]:
    """Why the last run for a tile's table failed, by tile; without tiles that never failed or were made since.

    Three queries of the event log, for any number of tiles.
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
        # anyone with access to the UI may report an event
        partitions[event.partition]: plain_text(str(event.metadata[FAILED].value))
        for event in events
        if event and event.partition and FAILED in event.metadata
    }


def _too_few(stage: Stage, job: str, run: Run, lineage: Lineage, tiles: AllTiles) -> str:
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
    layout = lineage.layout
    earlier = (
        f" The {stage.name} of an earlier run is still in {layout.root}, and may not fit the chips there."
        if run.store.exists(layout.table(stage.name))
        else ""
    )
    advice = f"Nothing was written. Backfill {job} over these tiles of {layout.year}{without}."
    return f"{head}. {causes}{more}. {advice}{earlier}"
