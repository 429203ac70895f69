"""Checks that a recipe suits the demo's world: its area, season and sources."""

import datetime as dt

from crop_assets.demo.scenes import Scene
from crop_assets.demo.world import World
from crop_assets.errors import InputError
from crop_assets.hls import parse_scene_id
from crop_assets.labels.aoi import filter_aoi, read_aoi
from crop_assets.labels.cdl import check_cdl, chip_histograms
from crop_assets.labels.sampling import candidate_boxes, read_chip_geojson, weighed_boxes
from crop_assets.recipe import DatasetRecipe
from resources.machine import Machine

_SOURCES = ("gateways", "lp_daac", "mirror")


def require_fit(recipe: DatasetRecipe, world: World) -> None:
    """Raise InputError if the recipe does not suit `world`; it names the field, and what the world has."""
    if not set(recipe.sources) & set(_SOURCES):
        raise InputError(
            f"sources: {', '.join(recipe.sources)} do not have the files of the demo's world; add one of "
            f"{', '.join(_SOURCES)}"
        )
    _require_scenes(recipe, world)
    if not (recipe.aoi or recipe.chip_boxes):
        return
    with Machine().pool() as pool:
        boxes = weighed_boxes(candidate_boxes(chip_histograms(check_cdl(world.cdl), pool)), 1)
    field = "chip_boxes"
    try:
        if recipe.chip_boxes:
            boxes = read_chip_geojson(recipe.chip_boxes, boxes)
        field = "aoi"
        if recipe.aoi:
            filter_aoi(boxes, read_aoi(recipe.aoi))
    except InputError as error:
        ids = boxes["chip_id"]
        raise InputError(
            f"{field}: {error}; the demo's world has the boxes {ids.iloc[0]} to {ids.iloc[-1]}"
        ) from None


def _require_scenes(recipe: DatasetRecipe, world: World) -> None:
    start, end = recipe.season(world.year)
    scenes = [scene for scene in world.scenes if parse_scene_id(scene.scene_id).sensor in recipe.sensors]
    who = f"{' and '.join(recipe.sensors)} scenes"

    def require_dates(fit: list[Scene], gap: int, field: str, has: str) -> None:
        if not any(
            _three_dates([s.sensed.date() for s in fit if s.tile == tile], gap) for tile in world.tiles
        ):
            raise InputError(
                f"{field}: with this recipe, no tile of the demo's world has the three dates that a chip needs; its "
                f"{who} {has}"
            )

    days = sorted(scene.sensed.date() for scene in scenes)
    scenes = [scene for scene in scenes if start <= scene.sensed.date() <= end]
    require_dates(scenes, 1, "season_start and season_end", f"are from {days[0]} to {days[-1]}")
    if recipe.scene_rule != "clearest":
        clouds = sorted(scene.cloud_coverage for scene in scenes)
        scenes = [scene for scene in scenes if scene.cloud_coverage <= recipe.max_cloud_cover]
        require_dates(
            scenes, 1, "max_cloud_cover", f"of the season have {', '.join(map(str, clouds))} % cloud"
        )
    if recipe.scene_rule != "first_middle_last":
        days = sorted({scene.sensed.date() for scene in scenes})
        require_dates(
            scenes, recipe.min_gap_days, "min_gap_days", f"that fit are from {', '.join(map(str, days))}"
        )
    else:
        seen = sorted(scene.spatial_coverage for scene in scenes)
        scenes = [scene for scene in scenes if scene.spatial_coverage >= recipe.coverage_ladder[-1]]
        require_dates(
            scenes, 1, "coverage_ladder", f"that fit otherwise cover {', '.join(map(str, seen))} % of it"
        )


def _three_dates(days: list[dt.date], gap: int) -> bool:
    """Whether there are three days that are at least `gap` days apart."""
    kept: list[dt.date] = []
    for day in sorted(days):
        if not kept or (day - kept[-1]).days >= max(gap, 1):
            kept.append(day)
    return len(kept) >= 3
