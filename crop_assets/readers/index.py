"""One row a chip with everything that is known of it: the content of `chips.parquet`."""

import geopandas as gpd
import pandas as pd
import shapely

from crop_assets.chip_grid import CHIP_SIZE, CRS, chip_geobox
from crop_assets.classes import CLASS_COLUMNS
from crop_assets.dataset.splits import LEAKAGE, some_ids
from crop_assets.errors import InputError
from crop_assets.hls import POSITIONS, REFLECTANCE_BANDS

SHARE_COLUMNS = tuple(f"{name}_share" for name in CLASS_COLUMNS)
_LABELS = ["purity_percent", "confidence_percent"]
_FROM_SPLITS = ["chip_id", "split", "tile", "block", *LEAKAGE]


def index_rows(
    splits: pd.DataFrame,
    boxes: pd.DataFrame,
    chips: pd.DataFrame,
    quality: pd.DataFrame,
    bands: pd.DataFrame,
    labels: pd.DataFrame,
    release: pd.Series,
    root: str,
) -> gpd.GeoDataFrame:
    """The chips of a dataset with split, place, dates, scenes and their CIDs, CDL release, classes, quality and files.

    `splits`, `boxes` (chip_bboxes), `chips`, `quality` (filtered_chips), `bands` (downloaded_bands, of all tiles) and
    `labels` (label_quality) are tables of the stages; `release` is the row of `cdl`. CIDs are those of the six bands in
    the order of REFLECTANCE_BANDS, "" where unknown. Files are relative to `root`, the dataset's folder. The geometry
    is the chip's box in EPSG:5070. Raises InputError if a chip of `splits` lacks its row in another table.
    """
    scenes = [f"{position}_scene" for position in POSITIONS]
    bad = [f"bad_percent_{position}" for position in POSITIONS]
    rows = (
        splits.merge(boxes[["chip_id", "lon", "lat"]], on="chip_id")
        .merge(chips[["chip_id", *scenes]], on="chip_id")
        .merge(quality[["chip_id", *bad, "na_count"]], on="chip_id")
        .merge(labels[["chip_id", *_LABELS]], on="chip_id")
        .sort_values("chip_id", ignore_index=True)
    )
    if lost := sorted({*splits["chip_id"]} - {*rows["chip_id"]}):
        raise InputError(
            f"{some_ids(lost)} of splits are in no table of their tiles; materialize splits again"
        )
    found = rows[[*_FROM_SPLITS, "lon", "lat"]].copy()
    of_band = bands[bands["band"].isin(REFLECTANCE_BANDS)]
    by_scene = {
        scene: files.set_index("band").loc[list(REFLECTANCE_BANDS)]
        for scene, files in of_band.groupby("scene_id")
    }
    for position in POSITIONS:
        scene = rows[f"{position}_scene"]
        found[f"{position}_date"] = rows[f"{position}_date"]
        found[f"{position}_scene"] = scene
        found[f"{position}_cids"] = [list(by_scene[one]["cid"]) for one in scene]
        found[f"{position}_verified"] = [bool(by_scene[one]["verified"].all()) for one in scene]
        found[f"bad_percent_{position}"] = rows[f"bad_percent_{position}"]
    found["na_count"] = rows["na_count"].astype("int32")
    for name in ("file", "release", "sha256"):
        found[f"cdl_{name}"] = str(release[name])
    for column, share in zip(CLASS_COLUMNS, SHARE_COLUMNS, strict=True):
        found[share] = rows[column] / CHIP_SIZE**2
    found[_LABELS] = rows[_LABELS]
    for kind, column in (("image", "merged"), ("mask", "mask")):
        found[kind] = rows[f"{column}_path"].str.removeprefix(f"{root}/")
        found[f"{kind}_sha256"] = rows[f"{column}_sha256"]
    geometry = [shapely.box(*chip_geobox(chip).boundingbox.bbox) for chip in found["chip_id"]]
    return gpd.GeoDataFrame(found, geometry=geometry, crs=CRS)
