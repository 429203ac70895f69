"""All stages, as the assets of each room declare them."""

from crop_assets.bands import assets as bands
from crop_assets.chips import assets as chips
from crop_assets.dataset import assets as dataset
from crop_assets.graph.stage import Stage
from crop_assets.labels import assets as labels
from crop_assets.scenes import assets as scenes
from crop_assets.tiles import assets as tiles


def _in_order() -> dict[str, Stage]:
    """By name, in the order of the rooms, but each after those that it reads."""
    rooms = (labels, tiles, scenes, bands, chips, dataset)
    found = {one.name: one for room in rooms for one in vars(room).values() if isinstance(one, Stage)}
    ordered: dict[str, Stage] = {}

    def add(one: Stage) -> None:
        for name in (*one.upstream, *one.all_tiles):
            add(found[name])
        ordered.setdefault(one.name, one)

    for one in found.values():
        add(one)
    return ordered


STAGES = _in_order()
_OF_TILES = [one for one in STAGES.values() if one.scope == "tile"]
# what has a job of its own comes last: where it fails, the tile is done all the same
TILE_STAGES = tuple(sorted(_OF_TILES, key=lambda one: one.job != "tiles_job"))
