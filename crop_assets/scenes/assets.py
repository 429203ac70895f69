"""A tile -> three scenes: `scene_metadata` and `selected_scenes`."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from crop_assets.chip_grid import chip_outline
from crop_assets.graph.metadata import Picture, markdown
from crop_assets.graph.stage import Made, Source, TileRun, stage
from crop_assets.hls import POSITIONS
from crop_assets.recipe import DatasetRecipe
from crop_assets.scenes.archive import TileQuestion, tile_answer
from crop_assets.scenes.granules import scene_rows
from crop_assets.scenes.plots import season_chart
from crop_assets.scenes.scene_list import ListedScene, listed_rows, parse_scene_list, scenes_of_tile
from crop_assets.scenes.selection import (
    QaLimits,
    clearest_scenes,
    listed_scenes,
    select_scenes,
    spread_scenes,
)
from crop_assets.schemas import SCENE_COLUMNS, SCENE_METADATA, SELECTED_SCENES
from resources.stac import SceneStac


def _listed(run: TileRun) -> Source:
    """The tile's scenes of the recipe's list; None without a list."""
    path = run.recipe.scene_list
    if not path:
        return Source(None, None)
    scenes = scenes_of_tile(run.files.parsed(path, parse_scene_list), run.tile, run.year, path)
    return Source(scenes, [[scene.scene_id, scene.cloud_cover, scene.spatial_coverage] for scene in scenes])


def _catalogue_fields(recipe: DatasetRecipe) -> list[str]:
    return ["scene_list", *([] if recipe.scene_list else ["season_start", "season_end", "sensors"])]


@stage(
    "scenes",
    SCENE_METADATA,
    kinds={"stac"},
    fields=_catalogue_fields,
    code_version="4",
    source=_listed,
    again=lambda stac: stac.refresh,
)
def scene_metadata(
    run: TileRun, tile_map: pd.DataFrame, stac: SceneStac, source: Sequence[ListedScene] | None
) -> Made:
    """All HLS scenes of the tile in the season, with cloud cover, spatial coverage, date, and the HTTPS
    and S3 links of the bands, from the STAC catalogue and CMR's granule search or the granules' own documents.
    Complete answers are kept in the store and not asked for again. A malformed item is set aside in a row of its own.
    With `scene_list`, the tile's scenes in that list, and no catalogue is asked.
    """
    if source is not None:
        if not source:
            named = Path(run.recipe.scene_list).name
            outcome = f"{named} has no scene of this tile in {run.year}"
            return Made(SCENE_METADATA.empty(), {"outcome": outcome})
        return Made(listed_rows(source), {"listed": len(source), "asked_the_catalogue": False})
    first = tile_map.iloc[0]
    bbox = (first["tile_west"], first["tile_south"], first["tile_east"], first["tile_north"])
    question = TileQuestion(run.tile, bbox, *run.recipe.season(run.year), run.recipe.sensors)
    answer = tile_answer(question, stac, run.store, run.log)
    chips = [chip_outline(chip_id) for chip_id in tile_map["chip_id"]]
    rows = scene_rows(answer.items, answer.documents, run.tile, run.recipe.sensors, chips)
    if rows.empty:
        return Made(SCENE_METADATA.empty(), {"outcome": "the catalogue has no scene of this tile in season"})
    for row in rows[rows["problem"] != ""].itertuples():
        run.log(f"{row.scene_id}: {row.problem}")
    clear = int((rows["cloud_cover"] <= run.recipe.max_cloud_cover).sum())
    aside = int(rows["date"].isna().sum())
    return Made(rows, {"clear_scenes": clear, "set_aside": aside, "asked_the_catalogue": answer.asked})


def _choice_fields(recipe: DatasetRecipe) -> list[str]:
    choice = ["max_cloud_cover", "coverage_ladder", "middle_scene", "scene_rule", "min_gap_days"]
    chart = ["season_start", "season_end"]
    quality = ["qa_rule", "max_bad_percent", "max_na_pixels"] if recipe.measures_candidates else []
    return ["scene_list", *chart, *([] if recipe.scene_list else choice), *quality]


@stage("scenes", SELECTED_SCENES, fields=_choice_fields, code_version="4")
def selected_scenes(run: TileRun, scene_metadata: pd.DataFrame, candidate_fmasks: pd.DataFrame) -> Made:
    """First, middle and last scene of the season among those with little cloud, on the highest rung of the coverage
    ladder that holds three; by `season_spread` the three that are jointly best for the tile's chips; or by `clearest`
    those that leave most chips by their Fmask, with how many more that are than by `season_spread`. Every other scene
    has the reason against it. With `scene_list`, the scenes of the list by their dates.
    """
    scenes = scene_metadata[[column.name for column in SCENE_COLUMNS]]
    recipe, season = run.recipe, run.recipe.season(run.year)
    named = Path(recipe.scene_list).name
    if named:
        table = listed_scenes(scenes, named)
    elif recipe.measures_candidates:
        table = clearest_scenes(
            scenes,
            candidate_fmasks,
            QaLimits(recipe.qa_rule, recipe.max_bad_percent, recipe.max_na_pixels),
            recipe.max_cloud_cover,
            recipe.min_gap_days,
            season,
        )
    elif recipe.scene_rule == "season_spread":
        table = spread_scenes(scenes, recipe.max_cloud_cover, recipe.min_gap_days, season)
    else:
        table = select_scenes(scenes, recipe.max_cloud_cover, recipe.coverage_ladder, recipe.middle_scene)
    outcome = "three scenes selected"
    if (table["position"] != "").sum() < len(POSITIONS):
        fit = int(table["fit"].sum())
        outcome = f"fewer than three scenes are fit ({fit} of {len(table)}): no chip of this tile can be made"
        if named:
            outcome = f"only {len(table)} of 3 scenes are in {named}: no chip of this tile can be made"
        elif fit >= len(POSITIONS):
            outcome = (
                f"no three of {fit} fit scenes lie {recipe.min_gap_days} days apart: no chip can be made"
            )
        run.log(outcome)
    figures = ["cloud_cover", "spatial_coverage"]
    gain = {}
    if recipe.measures_candidates:
        figures += ["measured_percent", "chips_clear"]
        pass_with = table.loc[table["position"] == "first", ["chips_pass", "chips_pass_estimated"]].dropna(
            axis=1
        )
        gain = {str(name): int(pass_with[name].iloc[0]) for name in pass_with if len(pass_with)}
    shown = table[["date", *figures, "position", "reason", "note", "scene_id"]]
    limit = None if named or recipe.measures_candidates else recipe.max_cloud_cover
    chart = Picture(season_chart(table, season, run.tile, limit), f"season of {run.tile}", "svg")
    return Made(table, {"outcome": outcome, **gain, "season": chart, "scenes": markdown(shown)})
