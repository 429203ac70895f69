"""Stages of the files that describe a dataset to those who receive it: `dataset_card` and `croissant`."""

import hashlib

import geopandas as gpd
import pandas as pd

from crop_assets.description.card import card_text
from crop_assets.description.croissant import croissant_text, files_text
from crop_assets.description.facts import CARD, CROISSANT, FILES, CardTables, Tables, described_files
from crop_assets.graph.stage import AllTiles, Made, YearRun, stage
from crop_assets.recipe import DatasetRecipe
from crop_assets.schemas import CROISSANT as CROISSANT_TABLE
from crop_assets.schemas import DATASET_CARD


def _all_fields(recipe: DatasetRecipe) -> list[str]:
    return sorted(type(recipe).model_fields)


@stage("description", DATASET_CARD, kinds={"markdown"}, fields=_all_fields)
def dataset_card(
    run: YearRun,
    fingerprint: pd.DataFrame,
    dataset_files: pd.DataFrame,
    stac_catalogue: pd.DataFrame,
    cdl: pd.DataFrame,
    tile_map: pd.DataFrame,
    splits: pd.DataFrame,
    chip_index: gpd.GeoDataFrame,
    class_distribution: pd.DataFrame,
    class_weights: pd.DataFrame,
    label_quality: pd.DataFrame,
    filtered_chips: AllTiles,
    downloaded_bands: AllTiles,
) -> Made:
    """`README.md`: what the dataset has, where and when, classes, splits and leakage, quality, yield, recipe, how to
    load it, what the labels are, known limits, licences and fingerprint, with the header that Hugging Face reads. Every
    figure is computed from the tables.
    """
    tables = CardTables(
        fingerprint=fingerprint,
        cdl=cdl,
        splits=splits,
        chip_index=chip_index,
        class_distribution=class_distribution,
        downloaded_bands=downloaded_bands.frame,
        dataset_files=dataset_files,
        stac_catalogue=stac_catalogue,
        tile_map=tile_map,
        class_weights=class_weights,
        label_quality=label_quality,
        filtered_chips=filtered_chips.frame,
        missing=filtered_chips.missing,
    )
    return _made(run, {CARD: card_text(tables, run.recipe, run.year)})


@stage("description", CROISSANT_TABLE, kinds={"json"}, fields=_all_fields)
def croissant(
    run: YearRun,
    fingerprint: pd.DataFrame,
    dataset_files: pd.DataFrame,
    stac_catalogue: pd.DataFrame,
    dataset_card: pd.DataFrame,
    cdl: pd.DataFrame,
    splits: pd.DataFrame,
    chip_index: gpd.GeoDataFrame,
    class_distribution: pd.DataFrame,
    downloaded_bands: AllTiles,
) -> Made:
    """`croissant.json`: metadata in JSON-LD (Croissant 1.1, GeoCroissant 1.0, PROV-O) by which mlcroissant serves the
    chips, classes, splits and files as records, with the scenes and CIDs that the dataset is derived from; and
    `files.csv`, the SHA-256 of every file of the dataset.
    """
    files = described_files(dataset_files, stac_catalogue, dataset_card)
    listed = files_text(files)
    tables = Tables(fingerprint, cdl, splits, chip_index, class_distribution, downloaded_bands.frame)
    text = croissant_text(tables, files, listed, run.recipe, run.year)
    return _made(run, {FILES: listed, CROISSANT: text})


def _made(run: YearRun, texts: dict[str, str]) -> Made:
    """Write the files and return their table."""
    rows, files = [], {}
    for name, text in texts.items():
        data = text.encode()
        digest = hashlib.sha256(data).hexdigest()
        files[run.write_text(name, text)] = digest
        rows.append((name, len(data), digest))
    table = pd.DataFrame(rows, columns=["file", "bytes", "sha256"]).sort_values("file", ignore_index=True)
    return Made(table, {"bytes": int(table["bytes"].sum())}, files)
