"""The ledger of chip boxes that are not in the dataset, and how many boxes are left after each step."""

from collections.abc import Mapping

import pandas as pd

from crop_assets.chips.quality import BAD_QUALITY, IMPURE_LABELS, LOW_CONFIDENCE, NA_PIXELS, NO_SCENES
from crop_assets.dataset.splits import BUFFER, UNASSIGNED
from crop_assets.errors import InputError

NO_TILE, TILE_MISSING = "no_tile", "tile_missing"
_OF_SOME_SPLITS = (BUFFER, UNASSIGNED)
_OF_SOME_RECIPES = (IMPURE_LABELS, LOW_CONFIDENCE, *_OF_SOME_SPLITS)


def reject_ledger(tile_map: pd.DataFrame, filtered: pd.DataFrame, missing: Mapping[str, str]) -> pd.DataFrame:
    """Every chip box that is not in the dataset: chip_id, tile, reason, figure, detail, sorted by chip_id.

    `missing` has the tiles that are not done, with the cause. Raises InputError if a chip box of
    `tile_map` is neither in `filtered` nor in a missing tile, or is in `filtered` twice.
    """
    rejected = filtered.loc[~filtered["kept"], ["chip_id", "tile", "reason", "figure"]].assign(detail="")
    waiting = tile_map.loc[tile_map["tile"].isin(list(missing)), ["chip_id", "tile"]]
    waiting = waiting.assign(
        reason=TILE_MISSING, figure=float("nan"), detail=[missing[tile] for tile in waiting["tile"]]
    )
    outside = tile_map.loc[tile_map["tile"] == "", ["chip_id", "tile", "margin_m", "finding"]]
    outside = outside.rename(columns={"margin_m": "figure", "finding": "detail"}).assign(reason=NO_TILE)
    seen = pd.concat([filtered["chip_id"], waiting["chip_id"], outside["chip_id"]])
    lost = set(tile_map["chip_id"]) ^ set(seen)
    if lost or seen.duplicated().any():
        raise InputError(
            f"chip boxes and results do not match: {sorted(lost)[:5] or 'a chip occurs twice'}; "
            "materialize the tiles of this year again"
        )
    parts = [part for part in (rejected, waiting, outside) if len(part)]
    ledger = pd.concat(parts, ignore_index=True) if parts else rejected
    return ledger.sort_values("chip_id", ignore_index=True)


def left_out(chips: pd.DataFrame) -> pd.DataFrame:
    """The rows of the ledger for kept chips that are in no split: those whose `split` is BUFFER or UNASSIGNED."""
    rows = chips.loc[chips["split"].isin(_OF_SOME_SPLITS), ["chip_id", "tile", "split"]]
    return rows.rename(columns={"split": "reason"}).assign(figure=float("nan"), detail="")


def yield_funnel(tile_map: pd.DataFrame, ledger: pd.DataFrame) -> pd.DataFrame:
    """The steps from chip boxes to the chips of the dataset: step, chips left, chips lost at this step, and why.

    Steps by the quality of labels, and the last ones, by the split, are there if they leave chips out.
    """
    lost = ledger["reason"].value_counts()
    left = len(tile_map)
    rows = [("chip boxes", left, 0, "")]
    for step, reason, why in (
        ("in a tile", NO_TILE, "the nearest tile does not reach the chip"),
        ("tile done", TILE_MISSING, "the tile failed or was not materialized"),
        ("pure labels", IMPURE_LABELS, "fewer labels than min_purity agree with their neighbours"),
        ("confident labels", LOW_CONFIDENCE, "the CDL is less confident than min_confidence"),
        ("three scenes", NO_SCENES, "fewer than three scenes are fit"),
        ("no missing pixels", NA_PIXELS, "pixels lack a band or Fmask on some date"),
        ("kept", BAD_QUALITY, "too much cloud, shadow or snow on some date"),
        ("in a split", BUFFER, "training chips that touch a validation or test chip"),
        ("in the split's files", UNASSIGNED, "no file of the split names the chip"),
    ):
        gone = int(lost.get(reason, 0))
        if not gone and reason in _OF_SOME_RECIPES:
            continue
        left -= gone
        rows.append((step, left, gone, why if gone else ""))
    return pd.DataFrame(rows, columns=["step", "chips", "lost", "why"])
