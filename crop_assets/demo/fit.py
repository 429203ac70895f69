"""Whether a recipe can be followed over the embedded world.

Belongs here: the fields that name places, days or sources which the world may lack. Does not: what the graph itself
says of a recipe, such as how many boxes it can choose.
"""

from collections.abc import Collection

from crop_assets.demo.world import World
from crop_assets.errors import InputError
from crop_assets.labels.aoi import filter_aoi, read_aoi
from crop_assets.labels.cdl import check_cdl, chip_histograms
from crop_assets.labels.sampling import candidate_boxes, read_chip_geojson, weighed_boxes
from crop_assets.recipe import DatasetRecipe
from crop_assets.scenes.granules import parse_scene_id
from resources.machine import Machine

_SOURCES = ("gateways", "lp_daac", "mirror")


def require_fit(recipe: DatasetRecipe, world: World) -> None:
    """Raise InputError that names the field which the recipe cannot have over `world`, and says what the world has."""
    if not set(recipe.sources) & set(_SOURCES):
        raise InputError(
            f"sources: {', '.join(recipe.sources)} cannot give the files of the demo's world; add one of "
            f"{', '.join(_SOURCES)}"
        )
    _require_season(recipe, world)
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


def _require_season(recipe: DatasetRecipe, world: World) -> None:
    start, end = recipe.season(world.year)
    names = [parse_scene_id(scene.scene_id) for scene in world.scenes]
    seen = [(name.tile, name.sensed.date()) for name in names if name.sensor in recipe.sensors]
    inside = {(tile, day) for tile, day in seen if start <= day <= end}
    if max(_days(inside, tile) for tile in world.tiles) < 3:
        first, last = min(day for _, day in seen), max(day for _, day in seen)
        raise InputError(
            f"season_start and season_end: from {start} to {end} the demo's world has {len(inside)} scenes by "
            f"{', '.join(recipe.sensors)}, and a chip needs three dates; its scenes are from {first} to {last}"
        )


def _days(seen: Collection[tuple[str, object]], tile: str) -> int:
    return sum(one == tile for one, _ in seen)
