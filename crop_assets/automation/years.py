"""How far a year's dataset is, and what is to be done for it next.

Belongs here: that judgement, from the tables in the store. Does not: launching anything (`sensors`).
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from crop_assets.graph.lineage import Lineage
from crop_assets.schemas import tile_names
from resources.errors import IntegrityError


@dataclass(frozen=True)
class YearState:
    """The tiles of a year's tile map: those that have current filtered chips, by content hash, and those that wait."""

    tile_map: str
    """Content hash of the tile map and fingerprint of the recipe: what the tiles are asked for by."""
    done: Mapping[str, str]
    waiting: tuple[str, ...]

    @property
    def digest(self) -> str:
        """What a dataset of these tiles is made from."""
        return hashlib.sha256(repr((self.tile_map, sorted(self.done.items()))).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class NextStep:
    """`tiles` to backfill, or the dataset to materialize, or neither; and why, in words."""

    what: Literal["tiles", "dataset", "nothing"]
    why: str


def year_state(lineage: Lineage) -> YearState | None:
    """The state of a year under a recipe; None where its tile map is not there, or not what would be made now.

    Raises IntegrityError where the tile map is damaged, or not one that this project makes.
    """
    if lineage.stale_because("tile_map", None):
        return None
    tiles = tile_names(lineage.read("tile_map", None))
    done = {
        tile: lineage.version("filtered_chips", tile, per_tile=True)
        for tile in tiles
        if _current(lineage, tile)
    }
    version = f"{lineage.version('tile_map', None, per_tile=False)}-{lineage.recipe.fingerprint()}"
    return YearState(version, done, tuple(tile for tile in tiles if tile not in done))


def next_step(state: YearState, tiles_asked: str, dataset_asked: str) -> NextStep:
    """What to launch for a year, each thing once: `tiles_asked` and `dataset_asked` are the `tile_map` and `digest` of
    the states for which tiles and dataset were launched last.
    """
    total = len(state.done) + len(state.waiting)
    if state.waiting and tiles_asked != state.tile_map:
        return NextStep("tiles", f"{len(state.waiting)} of {total} tiles are to be made")
    if state.waiting:
        some = ", ".join(state.waiting[:5]) + (", …" if len(state.waiting) > 5 else "")
        return NextStep("nothing", f"waiting for {len(state.waiting)} of {total} tiles ({some})")
    if state.done and dataset_asked != state.digest:
        return NextStep("dataset", f"all {total} tiles are done")
    return NextStep(
        "nothing", f"all {total} tiles are done, and the dataset was asked for" if total else "no tile"
    )


def _current(lineage: Lineage, tile: str) -> bool:
    try:
        return not lineage.stale_because("filtered_chips", tile)
    except IntegrityError:
        return False
