"""A chip box -> an HLS tile: `tile_grid`, `tile_map`."""

import hashlib
from pathlib import Path

import geopandas as gpd
import pandas as pd

from crop_assets.errors import InputError
from crop_assets.graph.metadata import Picture, markdown
from crop_assets.graph.stage import Check, Finding, Made, Run, Source, YearRun, stage
from crop_assets.labels.plots import chip_map_png
from crop_assets.partitions import add_tiles
from crop_assets.schemas import TILE_GRID, TILE_MAP, tile_names
from crop_assets.tiles.grid import official_grid_path, read_tile_grid
from crop_assets.tiles.mapping import map_chips
from resources.tile_grid import TileGridSource


def _grid_file(tile_grid_source: TileGridSource) -> Source:
    path = Path(tile_grid_source.path) if tile_grid_source.path else official_grid_path()
    if not path.is_file():
        raise InputError(
            f"the tile grid {path} does not exist; correct CROP_ASSETS_TILE_GRID or leave it unset"
        )
    with path.open("rb") as file:
        return Source(path, hashlib.file_digest(file, "sha256").hexdigest(), {"source": path.name})


@stage("tiles", TILE_GRID, kinds={"geoparquet"}, source=_grid_file)
def tile_grid(run: Run, source: Path) -> Made:
    """The Sentinel-2 tile grid: name, centroid, bounding box and outline of each tile; tiles across the
    antimeridian are complete.
    """
    return Made(read_tile_grid(source))


def _chips_lie_in_their_tile(tile_map: pd.DataFrame, *_: object) -> Finding:
    findings = tile_map[tile_map["finding"] != ""]
    return Finding(findings.empty, {"findings": markdown(findings[["chip_id", "tile", "finding"]])})


@stage(
    "tiles",
    TILE_MAP,
    kinds={"parquet"},
    fields=["tile_rule", "outside_chips"],
    checks=[
        Check(
            "chips_lie_in_their_tile",
            "Every chip box is completely inside the HLS raster of its tile.",
            _chips_lie_in_their_tile,
        )
    ],
    then=lambda instance, tile_map: add_tiles(instance, tile_names(tile_map)),
)
def tile_map(run: YearRun, chip_bboxes: gpd.GeoDataFrame, tile_grid: gpd.GeoDataFrame) -> Made:
    """The chip payload (chip id, centroid) with the nearest HLS tile, which becomes a tile partition."""
    table = map_chips(chip_bboxes, tile_grid, run.recipe.tile_rule, run.recipe.outside_chips)
    edges = tile_grid[["tile", "minx", "miny", "maxx", "maxy"]]
    edges.columns = pd.Index(["tile", "tile_west", "tile_south", "tile_east", "tile_north"])
    table = table.merge(edges, on="tile", how="left").fillna({"tile": ""})
    # boxes are in order of rank, and a new rank alone must not cause a tile to be made again
    table = table.sort_values("chip_id", ignore_index=True)
    tiles = tile_names(table)
    chips = table.groupby("tile", as_index=False).agg(
        chips=("chip_id", "size"), contained=("contained", "sum")
    )
    outlines = tile_grid[tile_grid["tile"].isin(tiles)]
    chart = Picture(chip_map_png(chip_bboxes, outlines), "map of chips and tiles")
    return Made(table, {"tiles": len(tiles), "map": chart, "chips_per_tile": markdown(chips)})
