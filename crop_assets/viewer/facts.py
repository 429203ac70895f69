"""Collects what the page shows of a dataset's chips: the content of `data.js`, from the tables."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pandas as pd

from crop_assets.chip_grid import CHIP_METRES, CHIP_SIZE, CRS, ORIGIN_X, ORIGIN_Y, transformer
from crop_assets.chips.quality import figure_text
from crop_assets.classes import CLASS_COLOURS, CLASS_COLUMNS, CLASSES
from crop_assets.dataset.funnel import reject_ledger
from crop_assets.hls import BANDS, POSITIONS, hls_bounds
from crop_assets.schemas import tile_names
from crop_assets.viewer.packs import CHIPS_PER_PACK, FMASK_LEGEND, pack_name, script_json

_PLACES = 6
"""Decimals of degrees: 0.1 m."""


def viewer_facts(
    dataset: str,
    year: int,
    splits: pd.DataFrame,
    boxes: pd.DataFrame,
    tile_map: pd.DataFrame,
    filtered: pd.DataFrame,
    bands: pd.DataFrame,
    *,
    missing: Mapping[str, str],
    in_no_split: str,
    pictured: Collection[str],
    quality: pd.DataFrame,
) -> dict[str, Any]:
    """Everything that the page shows except pictures, as JSON values, with a chip for each of `boxes` (chip_bboxes).

    `splits` and `tile_map` are tables of the stages; `filtered` (filtered_chips) and `bands` (downloaded_bands) those
    of all tiles, and `missing` the tiles that are not done, with the cause. `in_no_split` is the reason of kept chips
    that `splits` lacks; `pictured` are the chips in the packs, and `quality` is the table label_quality.
    Raises InputError if the tables do not match.
    """
    chips = boxes.sort_values("chip_id", ignore_index=True)
    ids = list(chips["chip_id"])
    tile_of = dict(zip(tile_map["chip_id"], tile_map["tile"], strict=True))
    reason, detail = _reasons(reject_ledger(tile_map, filtered, missing))
    kept = set(filtered.loc[filtered["kept"], "chip_id"])
    reason |= dict.fromkeys(kept - {*splits["chip_id"]}, in_no_split)
    scenes, by_tile = _scenes(bands)
    indexes = [by_tile.get(tile_of[chip]) for chip in ids]
    pixels = chips[CLASS_COLUMNS].to_numpy(np.int64)
    judged = filtered.set_index("chip_id").reindex(ids)
    labels = quality.set_index("chip_id").reindex(ids)
    pack_of = {chip: at // CHIPS_PER_PACK for at, chip in enumerate(sorted(pictured))}
    split_of = dict(zip(splits["chip_id"], splits["split"], strict=True))
    return {
        "dataset": dataset,
        "year": year,
        "classes": [
            {"value": value, "name": name, "color": CLASS_COLOURS[value]}
            for value, name in enumerate(CLASSES)
        ],
        "fmask": [
            {"value": value, "name": name, "color": colour}
            for value, (name, colour) in enumerate(FMASK_LEGEND)
        ],
        "tiles": {tile: _outline(tile) for tile in tile_names(tile_map)},
        "scenes": scenes,
        "columns": {
            "id": ids,
            "tile": [tile_of[chip] for chip in ids],
            "split": [split_of.get(chip, "") for chip in ids],
            "reason": [reason.get(chip, "") for chip in ids],
            "detail": [detail.get(chip, "") for chip in ids],
            "corners": _corners(chips),
            "dominant": pixels.argmax(axis=1).tolist(),
            "shares": (pixels * 100 / CHIP_SIZE**2).round(1).tolist(),
            "bad": [
                None if np.isnan(row).any() else row.round(2).tolist()
                for row in judged[[f"bad_percent_{position}" for position in POSITIONS]].to_numpy(
                    "float64", na_value=np.nan
                )
            ],
            "missing": _numbers(judged["na_count"], int),
            "purity": _numbers(labels["purity_percent"], float),
            "confidence": _numbers(labels["confidence_percent"], float),
            "dates": [found and [scenes[at]["date"] for at in found] for found in indexes],
            "scenes": indexes,
            "pack": [pack_of.get(chip, -1) for chip in ids],
        },
        "packs": [pack_name(number) for number in range(-(-len(pack_of) // CHIPS_PER_PACK))],
    }


def facts_text(facts: Mapping[str, Any]) -> str:
    """The script `data.js`."""
    return f"cropViewer.load({script_json(facts)})\n"


def _reasons(ledger: pd.DataFrame) -> tuple[dict[str, str], dict[str, str]]:
    """Why each chip of the ledger is not in the dataset, and in detail, by chip id."""
    columns = (ledger[name] for name in ("chip_id", "reason", "figure", "detail"))
    rows = list(zip(*columns, strict=True))
    details = {chip: detail or figure_text(reason, figure) for chip, reason, figure, detail in rows}
    return {chip: reason for chip, reason, *_ in rows}, details


def _scenes(bands: pd.DataFrame) -> tuple[list[dict[str, Any]], dict[str, list[int]]]:
    """The scenes with their files, by id, and the indexes of those of each tile, by position."""
    found = {
        str(scene): {
            "id": str(scene),
            "date": files["date"].iloc[0].isoformat(),
            "files": [
                [band, files["cid"][band], bool(files["verified"][band])]
                for band in BANDS
                if band in files.index
            ],
        }
        for scene, of_scene in (bands.groupby("scene_id") if len(bands) else ())
        for files in [of_scene.set_index("band")]
    }
    index = {scene: at for at, scene in enumerate(sorted(found))}
    by_tile: dict[str, list[int]] = {}
    for tile, of_tile in bands.groupby("tile") if len(bands) else ():
        at = dict(zip(of_tile["position"], of_tile["scene_id"], strict=True))
        by_tile[str(tile)] = [index[at[position]] for position in POSITIONS]
    return [found[scene] for scene in sorted(found)], by_tile


def _numbers(values: "pd.Series[Any]", kind: type[int] | type[float]) -> list[float | None]:
    return [None if pd.isna(value) else round(kind(value), 2) for value in values]


def _corners(chips: pd.DataFrame) -> list[list[list[float]]]:
    """Latitude and longitude of the four corners of each chip, clockwise from the upper left."""
    rows, cols = (chips[name].to_numpy()[:, None] for name in ("row", "col"))
    x = ORIGIN_X + CHIP_METRES * np.add(cols, [0, 1, 1, 0])
    y = ORIGIN_Y - CHIP_METRES * np.add(rows, [0, 0, 1, 1])
    lon, lat = transformer(CRS, "EPSG:4326").transform(x, y)
    corners: list[list[list[float]]] = np.stack([lat, lon], axis=-1).round(_PLACES).tolist()
    return corners


def _outline(tile: str) -> list[list[float]]:
    """Latitude and longitude of the corners of a tile's rasters, clockwise from the upper left."""
    epsg, left, bottom, right, top = hls_bounds(tile)
    lon, lat = transformer(f"EPSG:{epsg}", "EPSG:4326").transform(
        [left, right, right, left], [top, top, bottom, bottom]
    )
    return [[round(y, _PLACES), round(x, _PLACES)] for x, y in zip(lon, lat, strict=True)]
