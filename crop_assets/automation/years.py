"""Decides from the tables in the store what to launch next for a year's dataset."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from crop_assets.graph.lineage import Lineage
from crop_assets.schemas import tile_names
from resources.errors import IntegrityError


@dataclass(frozen=True)
class YearState:
    """The tiles of a year's tile map: `done` have up-to-date filtered chips, given by content hash; others wait."""

    tile_map: str
    """Content hashes of the tile map and of the quality of labels, and fingerprint of the recipe; identifies a request
    for tiles.
    """
    done: Mapping[str, str]
    waiting: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Identifies the inputs of a dataset of these tiles."""
        return hashlib.sha256(repr((self.tile_map, sorted(self.done.items()))).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class NextStep:
    """Whether to backfill tiles, or to materialize the dataset, or neither; and why."""

    what: Literal["tiles", "dataset", "nothing"]
    why: str


def year_state(lineage: Lineage) -> YearState | None:
    """The state of a year with a recipe; None if its labels are missing or out of date.

    Raises IntegrityError if the tile map is damaged or invalid.
    """
    if lineage.stale_because("tile_map", None):
        return None
    tiles = tile_names(lineage.read("tile_map", None))
    # the last of the labels that tiles need
    if tiles and lineage.stale_because("label_quality", None):
        return None
    lineage.read_ahead("filtered_chips", tiles)
    done = {
        tile: lineage.version("filtered_chips", tile, per_tile=True)
        for tile in tiles
        if _current(lineage, tile)
    }
    labels = [lineage.version(name, None, per_tile=False) for name in ("tile_map", "label_quality")]
    version = "-".join([*labels, lineage.recipe.fingerprint()])
    return YearState(version, done, tuple(tile for tile in tiles if tile not in done))


def next_step(state: YearState, tiles_asked: str, dataset_asked: str) -> NextStep:
    """What to launch for a year; nothing is launched twice. `tiles_asked` and `dataset_asked` are the `tile_map` and
    `digest` of the states for which the tiles and the dataset were last launched.
    """
    total = len(state.done) + len(state.waiting)
    if state.waiting and tiles_asked != state.tile_map:
        return NextStep("tiles", f"{len(state.waiting)} of {total} tiles must be made")
    if state.waiting:
        some = ", ".join(state.waiting[:5]) + (", …" if len(state.waiting) > 5 else "")
        return NextStep("nothing", f"waiting for {len(state.waiting)} of {total} tiles ({some})")
    if state.done and dataset_asked != state.digest:
        return NextStep("dataset", f"all {total} tiles are done")
    return NextStep(
        "nothing", f"all {total} tiles are done, and the dataset was requested" if total else "no tiles"
    )


def _current(lineage: Lineage, tile: str) -> bool:
    try:
        return not lineage.stale_because("filtered_chips", tile)
    except IntegrityError:
        return False
