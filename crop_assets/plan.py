"""What a dataset will take, before anything is downloaded.

Belongs here: counting tiles, scenes, files and bytes from the tables that need no download. Does not: making these
tables (`plan_job` does), nor downloading.
"""

from dataclasses import dataclass

import pandas as pd

from crop_assets.bands.transfer import expected_bytes
from crop_assets.errors import InputError
from crop_assets.graph.lineage import Lineage
from crop_assets.hls import POSITIONS
from crop_assets.schemas import tile_names
from resources.errors import IntegrityError, UnsafeNameError

_SECONDS_A_TILE, _SECONDS_A_CHIP = 2.0, 0.05
"""Reprojection and chips on two cores, by docs/performance.md, with what Dagster adds."""


@dataclass(frozen=True)
class Plan:
    """One row per tile, and what they come to. `tiles` has tile, chips, fit_scenes, files, bytes, with_cid, seconds and
    problem: why the tile would fail or give no chip, or what is to be materialized to know; "" for none.
    """

    tiles: pd.DataFrame

    @property
    def ready(self) -> pd.DataFrame:
        return self.tiles[self.tiles["problem"] == ""]


def make_plan(lineage: Lineage, megabytes_per_second: float) -> Plan:
    """The plan of a year's dataset under its recipe, from `tile_map`, `selected_scenes` and `band_cids`.

    `bytes` are those still to be fetched, sizes by the catalogue or typical ones. Raises NotFoundError where there is
    no tile map, IntegrityError where it is damaged.
    """
    tile_map = lineage.read("tile_map", None)
    chips = tile_map["tile"].value_counts()
    rows = [_tile_row(lineage, tile, int(chips[tile]), megabytes_per_second) for tile in tile_names(tile_map)]
    columns = ["tile", "chips", "fit_scenes", "files", "bytes", "with_cid", "seconds", "problem"]
    return Plan(pd.DataFrame(rows, columns=columns))


def _tile_row(lineage: Lineage, tile: str, chips: int, megabytes_per_second: float) -> dict[str, object]:
    row: dict[str, object] = {
        "tile": tile,
        "chips": chips,
        "fit_scenes": 0,
        "files": 0,
        "bytes": 0,
        "with_cid": 0,
        "seconds": 0.0,
        "problem": "",
    }
    try:
        return row | _needs(lineage, tile, chips, megabytes_per_second)
    except (IntegrityError, UnsafeNameError, InputError) as error:
        return row | {"problem": str(error)}


def _needs(lineage: Lineage, tile: str, chips: int, megabytes_per_second: float) -> dict[str, object]:
    """What is to be fetched for a tile, or the problem with it. Raises errors of a table that is damaged."""
    row: dict[str, object] = {}
    for asset in ("selected_scenes", "band_cids"):
        if reason := lineage.stale_because(asset, tile):
            return row | {"problem": reason}
        table = lineage.read(asset, tile)
        if asset == "selected_scenes":
            row["fit_scenes"] = int(table["fit"].sum())
            if (table["position"] != "").sum() < len(POSITIONS):
                return row | {
                    "problem": f"fewer than three scenes are fit ({row['fit_scenes']} of {len(table)})"
                }
    missing = [
        file
        for file in table.to_dict("records")
        if not lineage.store.exists(lineage.layout.band(file["scene_id"], file["band"]))
    ]
    sizes = [expected_bytes(file["bytes"], file["max_bytes"]) for file in missing]
    nowhere = table[(table["cid"] == "") & (table["http"] == "")]
    if len(nowhere):
        row["problem"] = (
            f"{len(nowhere)} files have neither a CID nor a link, such as {nowhere['file'].iloc[0]}"
        )
    return row | {
        "files": len(missing),
        "bytes": sum(sizes),
        "with_cid": int((table["cid"] != "").sum()),
        "seconds": sum(sizes) / 1e6 / megabytes_per_second + _SECONDS_A_TILE + chips * _SECONDS_A_CHIP,
    }
