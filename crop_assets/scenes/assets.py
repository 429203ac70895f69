"""A tile -> three scenes: `scene_metadata` and `selected_scenes`.

Belongs here: the glue between the graph and the scene logic. Does not: the logic (`granules`, `selection`).
"""

import pandas as pd
import pyarrow as pa

from crop_assets.scenes.granules import FILES, scene_rows
from crop_assets.scenes.selection import POSITIONS, select_scenes
from crop_assets.tile_assets import TileRun, TileTable, tile_stage
from crop_assets.year_assets import markdown
from resources.tables import Column, TableSchema

_SCENE = (
    Column("scene_id", pa.string(), "HLS scene id, such as HLS.S30.T13TDE.2022111T174859.v2.0"),
    Column("tile", pa.string(), "HLS tile, such as 13TDE"),
    Column("date", pa.date32(), "day of sensing (UTC)"),
    Column("cloud_cover", pa.float64(), "cloud cover of the whole scene, percent"),
    Column("spatial_coverage", pa.float64(), "share of the tile that the scene covers, percent"),
    Column("missing_bands", pa.string(), "needed bands that the catalogue does not list, space-separated"),
)
SCENE_METADATA = TableSchema(
    (
        *_SCENE,
        Column(
            "granule_bytes", pa.int64(), "bytes of all files of the scene; 0 where the metadata do not say"
        ),
        *(Column(f"{band}_http", pa.string(), f"HTTPS link of {band}") for band in FILES),
        *(Column(f"{band}_s3", pa.string(), f"S3 link of {band}") for band in FILES),
    )
)
SELECTED_SCENES = TableSchema(
    (
        *_SCENE,
        Column("fit", pa.bool_(), "whether cloud cover, coverage and bands let the scene be selected"),
        Column("position", pa.string(), "first, middle or last; empty where not selected"),
        Column("reason", pa.string(), "why the scene is not selected; empty where it is"),
        Column("coverage_step", pa.float64(), "rung of the coverage ladder taken, percent"),
    )
)


@tile_stage(
    "scenes", SCENE_METADATA, {"stac"}, ["season_start", "season_end"], code_version="2", refresh="stac"
)
def scene_metadata(run: TileRun, tile_map: pd.DataFrame) -> TileTable:
    """All HLS scenes of the tile in the season, with cloud cover, spatial coverage, date, and the HTTPS
    and S3 links of the bands, from the STAC catalogue and the granules' own metadata documents.
    """
    first = tile_map.iloc[0]
    bbox = (first["tile_west"], first["tile_south"], first["tile_east"], first["tile_north"])
    items = run.services.stac.search(bbox, *run.recipe.season(run.year))
    rows, aside = scene_rows(items, run.tile, run.services.stac.document)
    for line in aside:
        run.log(line)
    if rows.empty:
        return TileTable(
            SCENE_METADATA.empty(), {"outcome": "the catalogue has no scene of this tile in season"}
        )
    return TileTable(rows, {"clear_scenes": int((rows["cloud_cover"] <= run.recipe.max_cloud_cover).sum())})


@tile_stage("scenes", SELECTED_SCENES, (), ["max_cloud_cover", "coverage_ladder", "middle_scene"])
def selected_scenes(run: TileRun, scene_metadata: pd.DataFrame) -> TileTable:
    """First, middle and last scene of the season among those with little cloud, on the highest rung of
    the coverage ladder that holds three; every other scene with the reason against it.
    """
    scenes = scene_metadata[[column.name for column in _SCENE]]
    recipe = run.recipe
    table = select_scenes(scenes, recipe.max_cloud_cover, recipe.coverage_ladder, recipe.middle_scene)
    chosen = table[table["position"] != ""]
    outcome = "three scenes selected"
    if len(chosen) < len(POSITIONS):
        fit = f"{int(table['fit'].sum())} of {len(table)}"
        outcome = f"fewer than three scenes are fit ({fit}): no chip of this tile can be made"
        run.log(outcome)
    shown = table[["date", "cloud_cover", "spatial_coverage", "position", "reason", "scene_id"]]
    return TileTable(table, {"outcome": outcome, "scenes": markdown(shown)})
