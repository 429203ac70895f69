"""A chip box -> an HLS tile: `tile_grid`, `tile_map`.

Belongs here: the glue between the graph and the tile logic. Does not: the logic (`grid`, `mapping`).
"""

import hashlib
from pathlib import Path

import dagster as dg
import pandas as pd

from crop_assets.errors import InputError
from crop_assets.labels.plots import chip_map_png
from crop_assets.layout import tile_grid_table
from crop_assets.partitions import add_tiles
from crop_assets.recipe import DatasetRecipe
from crop_assets.schemas import TILE_GRID, TILE_MAP
from crop_assets.tiles.grid import official_grid_path, read_tile_grid, tile_names
from crop_assets.tiles.mapping import map_chips
from crop_assets.year_assets import (
    OWNERS,
    YearRun,
    bounded_errors,
    column_schema,
    identity_of,
    markdown,
    picture,
    whole_table,
    year_asset,
)
from resources.store import DatasetStore
from resources.tables import read_table, write_table
from resources.tile_grid import TileGridSource

_GRID_CODE_VERSION = "1"


@dg.asset(
    group_name="tiles",
    kinds={"python", "geoparquet"},
    owners=list(OWNERS),
    code_version=_GRID_CODE_VERSION,
    metadata={"dagster/column_schema": column_schema(TILE_GRID)},
)
@bounded_errors
def tile_grid(
    context: dg.AssetExecutionContext,
    store: dg.ResourceParam[DatasetStore],
    tile_grid_source: dg.ResourceParam[TileGridSource],
) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """The Sentinel-2 tile grid: name, centroid, bounding box and outline of each tile; tiles across the
    antimeridian are whole.
    """
    source = Path(tile_grid_source.path) if tile_grid_source.path else official_grid_path()
    if not source.is_file():
        raise InputError(f"the tile grid {source} is not there; mend CROP_ASSETS_TILE_GRID or leave it unset")
    with source.open("rb") as file:
        identity = identity_of(
            "tile_grid", _GRID_CODE_VERSION, hashlib.file_digest(file, "sha256").hexdigest()
        )
    name = tile_grid_table()
    stored = whole_table(store, name, TILE_GRID, identity, context.log.warning)
    reused = stored is not None
    if stored is None:
        stored = write_table(
            store, name, read_tile_grid(source), TILE_GRID, {"identity": identity, "files": {}}
        )
    return dg.MaterializeResult(
        metadata={"dagster/row_count": stored.rows, "reused": reused, "source": source.name},
        data_version=dg.DataVersion(stored.data_version),
    )


@dg.asset(
    **year_asset("tiles", TILE_MAP, {"parquet"}, deps=["chip_bboxes", "tile_grid"]),
    check_specs=[
        dg.AssetCheckSpec(
            "chips_lie_in_their_tile",
            asset="tile_map",
            description="Every chip box lies wholly inside the HLS raster of its tile.",
        )
    ],
)
@bounded_errors
def tile_map(
    context: dg.AssetExecutionContext,
    recipe: dg.ResourceParam[DatasetRecipe],
    store: dg.ResourceParam[DatasetStore],
) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """The chip payload (chip id, centroid) with the nearest HLS tile, which becomes a tile partition."""
    run = YearRun.of(context, recipe, store, TILE_MAP)
    boxes, grid = run.read("chip_bboxes"), read_table(store, tile_grid_table(), TILE_GRID)
    table = map_chips(boxes, grid, recipe.tile_rule, recipe.outside_chips)
    edges = grid[["tile", "minx", "miny", "maxx", "maxy"]]
    edges.columns = pd.Index(["tile", "tile_west", "tile_south", "tile_east", "tile_north"])
    table = table.merge(edges, on="tile", how="left").fillna({"tile": ""})
    # the boxes come by rank, and a new rank alone must not make a tile's work again
    table = table.sort_values("chip_id", ignore_index=True)
    tiles = tile_names(table)
    add_tiles(context.instance, tiles)
    findings = table[table["finding"] != ""]
    check = dg.AssetCheckResult(
        check_name="chips_lie_in_their_tile",
        passed=findings.empty,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"findings": markdown(findings[["chip_id", "tile", "finding"]])},
    )
    upstream = ["chip_bboxes", "tile_grid"]
    if done := run.unchanged(upstream=upstream, fields=["tile_rule", "outside_chips"], check_results=[check]):
        return done
    chips = table.groupby("tile", as_index=False).agg(
        chips=("chip_id", "size"), contained=("contained", "sum")
    )
    chart = picture(chip_map_png(boxes, grid[grid["tile"].isin(tiles)]), "map of chips and tiles")
    metadata = {"tiles": len(tiles), "map": chart, "chips_per_tile": markdown(chips)}
    return run.finish(table, metadata, check_results=[check])
