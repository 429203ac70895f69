"""Estimates what a dataset will take, from the tables that `plan_job` makes before any band is downloaded."""

import contextlib
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from crop_assets.bands.blocks import chips_to_fetch, fetch_of, file_sizes
from crop_assets.errors import InputError
from crop_assets.graph.lineage import Lineage
from crop_assets.hls import POSITIONS, QA_BAND
from crop_assets.schemas import tile_names
from resources.errors import IntegrityError, NotFoundError, UnsafeNameError

_SECONDS_A_TILE, _SECONDS_A_CHIP = 2.0, 0.05
"""Reprojection and chips on two cores, from docs/performance.md, including Dagster's overhead."""


@dataclass(frozen=True)
class Plan:
    """The plan of a year. `tiles` has one row per tile: tile, chips, fit_scenes, files, bytes, complete_bytes, fetch,
    with_cid, seconds and problem, which is why the tile would fail or give no chips, or what must be materialized
    first; "" if neither.
    """

    tiles: pd.DataFrame

    @property
    def ready(self) -> pd.DataFrame:
        return self.tiles[self.tiles["problem"] == ""]


def make_plan(lineage: Lineage, megabytes_per_second: float) -> Plan:
    """The plan of a year's dataset with its recipe, from `tile_map`, `selected_scenes` and `band_cids`.

    `bytes` is what is still to be downloaded, with sizes from the catalogue or typical ones, and `complete_bytes` what
    that would be in complete files; `fetch` is "blocks" or "files", "" if nothing is missing. Raises NotFoundError if
    there is no tile map, and IntegrityError if it is damaged.
    """
    tile_map = lineage.read("tile_map", None)
    chips = {str(tile): sorted(ids) for tile, ids in tile_map.groupby("tile")["chip_id"]}
    rows = [_tile_row(lineage, tile, chips[tile], megabytes_per_second) for tile in tile_names(tile_map)]
    columns = ["tile", "chips", "fit_scenes", "files", "bytes", "complete_bytes", "fetch", "with_cid"]
    columns += ["seconds", "problem"]
    return Plan(pd.DataFrame(rows, columns=columns))


def _tile_row(
    lineage: Lineage, tile: str, chips: list[str], megabytes_per_second: float
) -> dict[str, object]:
    row: dict[str, object] = {
        "tile": tile,
        "chips": len(chips),
        "fit_scenes": 0,
        "files": 0,
        "bytes": 0,
        "complete_bytes": 0,
        "fetch": "",
        "with_cid": 0,
        "seconds": 0.0,
        "problem": "",
    }
    try:
        return row | _needs(lineage, tile, chips, megabytes_per_second)
    except (IntegrityError, UnsafeNameError, InputError) as error:
        return row | {"problem": str(error)}


def _needs(lineage: Lineage, tile: str, chips: list[str], megabytes_per_second: float) -> dict[str, object]:
    """What must be downloaded for a tile, or the problem with it. Raises IntegrityError if a table is damaged."""
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
    wanted = chips_to_fetch(lineage.recipe, chips)
    is_fmask = (table["band"] == QA_BAND).to_numpy()
    fetch = fetch_of(lineage.recipe, tile, wanted, table[~is_fmask])
    missing = ~_is_there(lineage, tile, table, fetch.by_blocks)
    sizes = np.array(file_sizes(table))
    complete = int(sizes[missing].sum())
    share = fetch.block_bytes / max(fetch.file_bytes, 1) if fetch.by_blocks else 1.0
    needed = int(sizes[missing & is_fmask].sum() + share * sizes[missing & ~is_fmask].sum())
    nowhere = table[(table["cid"] == "") & (table["http"] == "")]
    if len(nowhere):
        row["problem"] = (
            f"{len(nowhere)} files have neither a CID nor a link, such as {nowhere['file'].iloc[0]}"
        )
    return row | {
        "files": int(missing.sum()),
        "bytes": needed,
        "complete_bytes": complete,
        "fetch": ("blocks" if fetch.by_blocks else "files") if (missing & ~is_fmask).any() else "",
        "with_cid": int((table["cid"] != "").sum()),
        "seconds": needed / 1e6 / megabytes_per_second + _SECONDS_A_TILE + len(chips) * _SECONDS_A_CHIP,
    }


def _is_there(lineage: Lineage, tile: str, files: pd.DataFrame, by_blocks: bool) -> NDArray[np.bool_]:
    """Whether the store has each file; a partial file, by the last table, counts only if blocks are enough."""
    names = [lineage.layout.band(*file) for file in zip(files["scene_id"], files["band"], strict=True)]
    there = np.array([lineage.store.exists(name) for name in names], bool)
    if not by_blocks and there.any():
        with contextlib.suppress(IntegrityError, NotFoundError):
            made = lineage.read("downloaded_bands", tile)
            partial = set(made.loc[made["blocks"] > 0, "path"])
            there &= np.array([name not in partial for name in names])
    return there
