"""All stages, collected from the `assets` modules."""

from crop_assets.bands import assets as bands
from crop_assets.chips import assets as chips
from crop_assets.dataset import assets as dataset
from crop_assets.description import assets as description
from crop_assets.graph.stage import Stage
from crop_assets.labels import assets as labels
from crop_assets.readers import assets as readers
from crop_assets.scenes import assets as scenes
from crop_assets.schemas import SCHEMAS
from crop_assets.tiles import assets as tiles
from crop_assets.viewer import assets as viewer


def _in_order() -> dict[str, Stage]:
    """Stages by name, in the order of the modules, but each after its inputs. Raises TypeError for invalid stages."""
    rooms = (labels, tiles, scenes, bands, chips, dataset, readers, viewer, description)
    found = {one.name: one for room in rooms for one in vars(room).values() if isinstance(one, Stage)}
    ordered: dict[str, Stage] = {}

    def add(one: Stage, readers: tuple[str, ...] = ()) -> None:
        if one.name in readers:
            raise TypeError(f"{one.name} is made from itself")
        for name in (*one.upstream, *one.all_tiles):
            if name not in found:
                raise TypeError(f"{one.name} reads {name}, which no stage makes")
            add(found[name], (*readers, one.name))
        ordered.setdefault(one.name, one)

    for one in found.values():
        add(one)
    for one in ordered.values():
        _require_valid(one, ordered)
    return ordered


def _require_valid(one: Stage, stages: dict[str, Stage]) -> None:
    """Raise TypeError if a stage has something that its scope does not allow."""
    if SCHEMAS.get(one.name) != one.schema:
        raise TypeError(f"{one.name}: its table must be in SCHEMAS of crop_assets/schemas.py under this name")
    if one.scope == "tile":
        if one.all_tiles or one.config or one.then or one.warnings:
            raise TypeError(f"{one.name}: AllTiles, config, then and warnings are for stages of a year")
        if not any(name == "tile_map" or stages[name].scope == "tile" for name in one.tables):
            raise TypeError(f"{one.name}: a tile stage must read the tile map, or another tile stage")
    elif of_tiles := [name for name in one.tables if stages[name].scope == "tile"]:
        raise TypeError(f"{one.name}: a stage of a year gets {of_tiles[0]} as AllTiles")
    elif others := [name for name in one.all_tiles if stages[name].scope != "tile"]:
        raise TypeError(f"{one.name}: {others[0]} is not a tile stage")


STAGES = _in_order()
_OF_TILES = [one for one in STAGES.values() if one.scope == "tile"]
# stages with their own job come last: if they fail, the tile is still done
TILE_STAGES = tuple(sorted(_OF_TILES, key=lambda one: one.job != "tiles_job"))
