"""The partitions of the asset graph: CDL year, HLS tile, and both together.

`tiles.assets` adds tiles; a person or a sensor adds years.
"""

import math
import warnings
from collections.abc import Collection

import click
import dagster as dg
from sqlalchemy.exc import IntegrityError

from crop_assets.chip_grid import MAX_TILES
from crop_assets.errors import InputError
from crop_assets.hls import is_tile
from crop_assets.layout import parse_year
from resources import errors
from resources.plain_text import plain_text
from resources.stop import uninterrupted

CDL_YEAR = "cdl_year"
TILE = "tile"
_PARTITION_TAG = "dagster/partition"
_RANGE_TAGS = ("dagster/asset_partition_range_start", "dagster/asset_partition_range_end")
_RUNS_AT_ONCE = 25
"""Runs of a job's backfill that Dagster 1.13.27 submits before it records a checkpoint (its CHECKPOINT_COUNT)."""

_MAX_NAME = 60
_ADD_ATTEMPTS = 5

cdl_year_partitions = dg.DynamicPartitionsDefinition(name=CDL_YEAR)
tile_partitions = dg.DynamicPartitionsDefinition(name=TILE)
year_tile_partitions = dg.MultiPartitionsDefinition({CDL_YEAR: cdl_year_partitions, TILE: tile_partitions})


def add_tiles(instance: dg.DagsterInstance, tiles: Collection[str]) -> None:
    """Add these tiles (`crop_assets.schemas.tile_names`) as partitions.

    Raises `resources.errors.IntegrityError` if there would be more than any dataset has, for example because of forged
    tile maps.
    """
    existing = set(instance.get_dynamic_partitions(TILE))
    if len(existing.union(tiles)) > MAX_TILES:
        raise errors.IntegrityError(
            f"there are {len(existing):,} tile partitions, and {len(set(tiles) - existing):,} more would exceed the "
            f"limit of {MAX_TILES:,}; delete those that are not tiles, on the page of an asset with tiles"
        )
    _add(instance, TILE, tiles)


def add_year(instance: dg.DagsterInstance, year: int) -> None:
    """Add a CDL year as a partition."""
    _add(instance, CDL_YEAR, [str(year)])


def _add(instance: dg.DagsterInstance, name: str, keys: Collection[str]) -> None:
    for attempt in range(_ADD_ATTEMPTS):
        try:
            with uninterrupted():
                instance.add_dynamic_partitions(name, list(keys))
            return
        except IntegrityError:
            # Dagster looks which keys exist, then inserts the others: another process may have done so in between
            if attempt == _ADD_ATTEMPTS - 1:
                raise


def year_mapping() -> dg.MultiToSingleDimensionPartitionMapping:
    """Between a per-year asset and a per-year-and-tile asset, in either direction."""
    with warnings.catch_warnings():
        # still in beta, but Dagster has no other mapping for this
        warnings.simplefilter("ignore", dg.BetaWarning)
        return dg.MultiToSingleDimensionPartitionMapping(partition_dimension_name=CDL_YEAR)


def year_of(context: dg.AssetExecutionContext) -> int:
    """The CDL year of a per-year asset's run. Raises Failure if the key is not a year."""
    year = parse_year(context.partition_key)
    if year is None:
        named = plain_text(repr(context.partition_key), _MAX_NAME)
        raise dg.Failure(
            f"the partition {named} is not a CDL year; use a key such as 2022", allow_retries=False
        )
    return year


def year_and_tile(key: dg.MultiPartitionKey) -> tuple[int, str]:
    """The CDL year and the HLS tile of a key. Raises InputError if they are invalid, because partitions with any name
    can be added in the UI.
    """
    year, tile = (key.keys_by_dimension[name] for name in (CDL_YEAR, TILE))
    number = parse_year(year)
    if number is None or not is_tile(tile):
        raise InputError(
            f"the partition {plain_text(repr(str(key)), 2 * _MAX_NAME)} is not a CDL year and HLS tile, such as "
            "2022|14SMG; delete it on the page of an asset that has it"
        )
    return number, tile


def shown_tile(key: dg.MultiPartitionKey) -> str:
    """The tile of a key, for messages."""
    return plain_text(key.keys_by_dimension[TILE], _MAX_NAME)


def tiles_per_run(count: int) -> dg.BackfillPolicy:
    """At most `count` tiles per run of a backfill.

    If a command (`dagster asset materialize`, `dagster job execute`, `dg launch`) is given a range of partitions, all
    tiles are in one run, because these commands require that policy.
    """
    command = click.get_current_context(silent=True)
    if command is not None and command.params.get("partition_range"):
        return dg.BackfillPolicy.single_run()
    return dg.BackfillPolicy.multi_run(max_partitions_per_run=count)


def launched_keys(context: dg.AssetExecutionContext) -> list[dg.MultiPartitionKey]:
    """The pairs of CDL year and tile that a run was launched for.

    These are the partitions with planned materializations or checks, not `context.partition_keys`: a run of a backfill
    that was launched from a job's page has the tags of the backfill's first key as well as those of its own range, and
    Dagster 1.13.27 uses only the first key (`StepExecutionContext.partition_key_range`).

    Raises Failure if the tags name other partitions than were planned, name none, or name something that is not a pair,
    and if Dagster would not launch the backfill completely.
    """
    tags = context.run.tags
    named = {tags[tag] for tag in (_PARTITION_TAG, *_RANGE_TAGS) if tag in tags}
    planned = _planned(context.instance, context.run.run_id)
    if not named:
        # the year and the tile may also be given by a tag each, and then Dagster plans no partitions
        planned = named = set(context.partition_keys)
    if not named <= planned:
        raise dg.Failure(
            f"this run is for {_some(named)}, but Dagster planned it for {_some(planned)}; nothing was made. Launch it "
            "again. A range goes from the first to the last year and, within each year, from the first to the last "
            "tile, both in the order of the UI",
            allow_retries=False,
        )
    for key in planned:
        if key.count("|") != 1:
            raise dg.Failure(
                f"the partition {plain_text(repr(key), 2 * _MAX_NAME)} is not a CDL year and HLS tile, such as "
                "2022|14SMG; nothing was made. Delete it on the page of an asset that has it",
                allow_retries=False,
            )
    if context.has_partition_key_range:
        _require_complete_backfill(context)
    return [year_tile_partitions.get_partition_key_from_str(key) for key in sorted(planned)]


def ranges_of(
    instance: dg.DagsterInstance, year: int, tiles: Collection[str], at_most: int
) -> list[tuple[str, str, int]]:
    """Ranges of the keys of a year that together are exactly `tiles`: the first and last key, and the number of tiles.

    A range has at most `at_most` tiles, which are neighbours in the order of the tile partitions.
    """
    wanted, ranges = set(tiles), list[list[str]]()
    follows = False
    for tile in instance.get_dynamic_partitions(TILE):
        if tile in wanted and follows and len(ranges[-1]) < at_most:
            ranges[-1].append(tile)
        elif tile in wanted:
            ranges.append([tile])
        follows = tile in wanted
    return [(f"{year}|{one[0]}", f"{year}|{one[-1]}", len(one)) for one in ranges]


def _planned(instance: dg.DagsterInstance, run_id: str) -> set[str]:
    """The partitions that a run is planned for: those of its materializations or, if it has none, of its checks."""
    logs = instance.all_logs(run_id, dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED)
    planned = {event.partition for log in logs if (event := log.dagster_event) and event.partition}
    if logs:
        return planned
    logs = instance.all_logs(run_id, dg.DagsterEventType.ASSET_CHECK_EVALUATION_PLANNED)
    events = [log.dagster_event.asset_check_planned_data for log in logs if log.dagster_event]
    return {
        key
        for event in events
        if event.partitions_subset
        for key in event.partitions_subset.get_partition_keys()
    }


def _require_complete_backfill(context: dg.AssetExecutionContext) -> None:
    """Raise Failure if Dagster would skip some runs of this run's backfill and still report success.

    Dagster 1.13.27 submits the ranges of a job's backfill year by year, with the years in arbitrary order. After 25
    ranges it records the last partition, and resumes with the partitions that follow it in the list
    (`_get_partitions_chunk` in `job_backfill`). Years that come earlier in the list but were not submitted yet are
    skipped. Backfills of assets are not affected.
    """
    backfill = context.instance.get_backfill(context.run.tags.get("dagster/backfill", ""))
    names = backfill.partition_names if backfill else None
    policy = context.assets_def.backfill_policy
    if not names or policy is None or policy.max_partitions_per_run is None:
        return
    with dg.partition_loading_context(dynamic_partitions_store=context.instance):
        years = {str(name).partition("|")[0] for name in names}
        wanted = set(names)
        in_order = [key for key in year_tile_partitions.get_partition_keys() if key in wanted] == list(names)
        ranges = year_tile_partitions.subset_with_partition_keys(names).get_partition_key_ranges(
            year_tile_partitions
        )
        keys = [len(year_tile_partitions.get_partition_keys_in_range(one)) for one in ranges]
    runs = sum(math.ceil(count / policy.max_partitions_per_run) for count in keys)
    if runs > _RUNS_AT_ONCE and (len(years) > 1 or not in_order):
        raise dg.Failure(
            f"this backfill has {runs} runs over {len(years)} years, and Dagster would skip some of them but report "
            "success; nothing was made. Launch it for one year at a time, or from the asset graph: select the assets "
            "there, then Materialize",
            allow_retries=False,
        )


def _some(keys: Collection[str]) -> str:
    shown = [plain_text(key, _MAX_NAME) for key in sorted(keys)[:3]]
    return (
        ", ".join(shown) + (f" and {len(keys) - len(shown)} more" if len(keys) > len(shown) else "") or "none"
    )
