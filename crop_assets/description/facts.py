"""What the card, the STAC catalogue and the Croissant metadata share: tables, and facts of these and of the sources."""

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

import geopandas as gpd
import pandas as pd

from crop_assets.classes import CLASSES
from crop_assets.description.files import media_type
from crop_assets.hls import POSITIONS, QA_BAND
from crop_assets.recipe import DatasetRecipe
from resources.errors import IntegrityError

CARD, CROISSANT, FILES = "README.md", "croissant.json", "files.csv"
"""The files that describe a dataset; the last two are written after the card, which names them."""
COLOURS = {
    "B02": "blue",
    "B03": "green",
    "B04": "red",
    "B8A": "narrow near infrared",
    "B11": "short-wave infrared 1",
    "B12": "short-wave infrared 2",
}
"""What each band measures."""
WAVELENGTHS = {
    "B02": (450, 510),
    "B03": (530, 590),
    "B04": (640, 670),
    "B8A": (850, 880),
    "B11": (1570, 1650),
    "B12": (2110, 2290),
}
"""The range of each band in nanometres, of Landsat's OLI, which HLS adjusts Sentinel-2 to (HLS v2.0 user guide)."""
HLS_PRODUCTS = {
    "S30": ("HLS Sentinel-2 MSI surface reflectance v2.0 (HLSS30)", "10.5067/HLS/HLSS30.002"),
    "L30": ("HLS Landsat OLI surface reflectance v2.0 (HLSL30)", "10.5067/HLS/HLSL30.002"),
}
"""Name and DOI of the product of each sensor."""
PUBLISHED_DOI = "10.57967/hf/0955"
"""The published dataset of the same form: Cecil et al. 2023."""
CDL_PAGE = "https://www.nass.usda.gov/Research_and_Science/Cropland/SARS1a.php"
CDL_METADATA_PAGE = "https://www.nass.usda.gov/Research_and_Science/Cropland/metadata/meta.php"
LP_DAAC_POLICY = "https://lpdaac.usgs.gov/data/data-citation-and-policies/"


@dataclass(frozen=True)
class Tables:
    """Tables that describe a dataset, by the names of their stages; `downloaded_bands` is that of all tiles."""

    fingerprint: pd.DataFrame
    cdl: pd.DataFrame
    splits: pd.DataFrame
    chip_index: gpd.GeoDataFrame
    class_distribution: pd.DataFrame
    downloaded_bands: pd.DataFrame


@dataclass(frozen=True)
class CardTables(Tables):
    """What the card also shows; `filtered_chips` is that of all tiles, and `missing` has the tiles that are not done,
    with the cause.
    """

    dataset_files: pd.DataFrame
    stac_catalogue: pd.DataFrame
    tile_map: pd.DataFrame
    class_weights: pd.DataFrame
    label_quality: pd.DataFrame
    filtered_chips: pd.DataFrame
    missing: Mapping[str, str]


def bounding_box(chips: gpd.GeoDataFrame) -> tuple[float, float, float, float]:
    """West, south, east and north of the chips, in degrees (EPSG:4326), to 0.0001: outwards, so that all are inside."""
    west, south, east, north = (float(edge) for edge in chips.geometry.to_crs("EPSG:4326").total_bounds)
    step = 1e-4
    return (
        round(west // step * step, 4),
        round(south // step * step, 4),
        round(-(-east // step) * step, 4),
        round(-(-north // step) * step, 4),
    )


def dates(chips: pd.DataFrame) -> tuple[dt.date, dt.date]:
    """The first and the last day of the images of a `chip_index`."""
    days = pd.concat([chips[f"{position}_date"] for position in POSITIONS])
    return days.min(), days.max()


def scenes(chips: pd.DataFrame) -> list[str]:
    """The ids of the scenes that the chips of a `chip_index` are from, sorted."""
    return sorted({scene for position in POSITIONS for scene in chips[f"{position}_scene"]})


def sensors(chips: pd.DataFrame) -> list[str]:
    """The sensors of the scenes: S30, L30 or both."""
    return sorted({scene.split(".")[1] for scene in scenes(chips)}, reverse=True)


def bands_of(tables: Tables) -> pd.DataFrame:
    """The rows of `downloaded_bands` that the chips of the dataset are from, without Fmask."""
    bands = tables.downloaded_bands
    of_dataset = bands["scene_id"].isin(scenes(tables.chip_index)) & (bands["band"] != QA_BAND)
    return bands[of_dataset].sort_values(["scene_id", "band"], ignore_index=True)


def sampling(recipe: DatasetRecipe) -> str:
    """How the chip boxes were chosen, a sentence."""
    if recipe.chip_boxes:
        return "Chip boxes are those of a given file."
    where = " that touch an area of interest" if recipe.aoi else ""
    return {
        "evenness": f"Chips are the boxes of the CDL's grid{where} whose classes are most even, with at least "
        f"{recipe.min_classes} of the 13 classes.",
        "balanced": f"Chips are boxes of the CDL's grid{where} that together have balanced classes.",
        "all": f"Chips are all boxes of the CDL's grid{where}, in its order, up to {recipe.chips:,}.",
    }[recipe.sampling]


def class_pixels(distribution: pd.DataFrame) -> "pd.Series[int]":
    """Pixels of each class, 0 to 13, over all splits of `class_distribution`."""
    found = distribution.groupby("class")["pixels"].sum()
    return found.reindex(range(len(CLASSES)), fill_value=0)


def described_files(*tables: pd.DataFrame) -> pd.DataFrame:
    """All files of `dataset_files` and of the tables of later stages: file, media_type, bytes, sha256, sorted by file.

    Raises IntegrityError for a name that leads out of the dataset's folder, or is there twice.
    """
    columns = ["file", "media_type", "bytes", "sha256"]
    parts = [
        table.assign(media_type=table.get("media_type", table["file"].map(media_type)))[columns]
        for table in tables
        if len(table)
    ]
    files = pd.concat(parts, ignore_index=True).sort_values("file", ignore_index=True)
    wrong = [name for name in files["file"] if ".." in PurePosixPath(name).parts or name.startswith("/")]
    if wrong or files["file"].duplicated().any():
        named = (wrong or list(files.loc[files["file"].duplicated(), "file"]))[0]
        raise IntegrityError(
            f"dataset_files names {named!r:.200} twice or outside the dataset's folder; materialize dataset_files again"
        )
    return files
