"""The partitions of the asset graph: CDL year, HLS tile, and both together.

Belongs here: partition definitions, the mapping between them, and reading keys off a run. Does not: who adds
partitions (`tiles.assets` adds tiles; a person or a sensor adds years).
"""

import warnings

import dagster as dg

CDL_YEAR = "cdl_year"
TILE = "tile"

cdl_year_partitions = dg.DynamicPartitionsDefinition(name=CDL_YEAR)
tile_partitions = dg.DynamicPartitionsDefinition(name=TILE)
year_tile_partitions = dg.MultiPartitionsDefinition({CDL_YEAR: cdl_year_partitions, TILE: tile_partitions})


def year_mapping() -> dg.MultiToSingleDimensionPartitionMapping:
    """Between a per-year asset and a per-year-and-tile asset, in either direction."""
    with warnings.catch_warnings():
        # in beta for years, and the one mapping that Dagster has for this
        warnings.simplefilter("ignore", dg.BetaWarning)
        return dg.MultiToSingleDimensionPartitionMapping(partition_dimension_name=CDL_YEAR)


def year_of(context: dg.AssetExecutionContext) -> int:
    """The CDL year of a per-year asset's run. Raises Failure where the key is no year."""
    if not context.partition_key.isdigit():
        raise dg.Failure(
            f"the partition {context.partition_key!r} is no CDL year; use a key such as 2022",
            allow_retries=False,
        )
    return int(context.partition_key)
