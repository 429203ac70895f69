"""Stages of what a dataset consists of: `fingerprint` and `dataset_files`."""

import hashlib
from dataclasses import astuple

import geopandas as gpd
import pandas as pd

from crop_assets.dataset.publish import recorded_files
from crop_assets.dataset.splits import parse_ids
from crop_assets.description.files import file_problems, file_rows
from crop_assets.description.fingerprint import (
    FILE,
    OUTPUT_STAGES,
    description,
    fingerprint_of,
    output_files,
)
from crop_assets.graph.metadata import markdown
from crop_assets.graph.stage import AllTiles, Check, Finding, Made, Source, YearRun, stage
from crop_assets.labels.aoi import aoi_checksum, read_aoi
from crop_assets.recipe import PATHS, DatasetRecipe, read_named_file
from crop_assets.schemas import DATASET_FILES, FINGERPRINT
from resources.stop import StoppablePool

_SHOWN = 20
_READS_AT_ONCE = 8
_FILES_OF = (
    "chip_bboxes",
    "splits",
    "band_stats",
    "class_weights",
    "class_distribution",
    "tile_payloads",
    "chip_index",
    "reader_layout",
    "exports",
    "fingerprint",
)
"""The year stages whose files belong to a dataset; `dataset_files` has a parameter for each."""


def _all_fields(recipe: DatasetRecipe) -> list[str]:
    return sorted(type(recipe).model_fields)


def _lists_and_files(run: YearRun) -> Source:
    """Checksums of the files that the recipe names, and what is recorded of the data that year stages have written."""
    named = {name: path for name in sorted(PATHS) if (path := getattr(run.recipe, name))}
    lists = {
        name: aoi_checksum(read_aoi(path)) if name == "aoi" else _list_checksum(name, path)
        for name, path in named.items()
    }
    recorded = recorded_files(run.store, run.layout, OUTPUT_STAGES)
    return Source((lists, recorded), [lists, recorded])


def _list_checksum(name: str, path: str) -> str:
    data = read_named_file(path)
    if name.endswith("_ids"):
        # the ids identify a split, not how they are written
        data = "\n".join(sorted(set(parse_ids(data.decode(errors="replace"), path)))).encode()
    return _sha256(data)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@stage("description", FINGERPRINT, kinds={"json"}, fields=_all_fields, source=_lists_and_files)
def fingerprint(
    run: YearRun,
    cdl: pd.DataFrame,
    tile_grid: gpd.GeoDataFrame,
    downloaded_bands: AllTiles,
    splits: pd.DataFrame,
    band_stats: pd.DataFrame,
    class_weights: pd.DataFrame,
    source: tuple[dict[str, str], dict[str, tuple[str, str]]],
) -> Made:
    """One hash of the recipe, the inputs (CDL raster, tile grid, band files, lists that the recipe names) and the
    outputs (images, masks, splits, band statistics, class weights); also in `dataset.json`, with the recipe's values.
    Datasets with the same fingerprint are the same.
    """
    lists, recorded = source
    values = run.recipe.values()
    bands = downloaded_bands.frame
    outputs = output_files(splits, run.layout.root, recorded)
    found = fingerprint_of(values, str(cdl.iloc[0]["sha256"]), tile_grid, bands, lists, outputs)
    text = description(found, values, run.year, cdl.iloc[0], splits, bands)
    file = run.write_text(FILE, text)
    table = pd.DataFrame([astuple(found)], columns=[column.name for column in FINGERPRINT.columns])
    return Made(
        table,
        {"fingerprint": found.fingerprint, "inputs": found.inputs, "outputs": found.outputs},
        {file: _sha256(text.encode())},
    )


def _recorded(run: YearRun) -> Source:
    recorded = recorded_files(run.store, run.layout, _FILES_OF)
    return Source(recorded, recorded)


def _files_are_as_written(files: pd.DataFrame, _: object, run: YearRun) -> Finding:
    with StoppablePool(_READS_AT_ONCE) as pool:
        problems = file_problems(run.store, run.layout, files, pool)
    shown = markdown(pd.DataFrame(problems, columns=["file", "problem"]), _SHOWN) if problems else None
    return Finding(
        not problems, {"problem_count": len(problems), **({"problems": shown} if problems else {})}
    )


@stage(
    "description",
    DATASET_FILES,
    source=_recorded,
    checks=[
        Check(
            "files_are_as_written",
            "Every file of the dataset is there with the recorded size and checksum, and the folders of splits have no "
            "others. In an object store, 64 of the images and masks are hashed; `crop-assets verify` hashes all.",
            _files_are_as_written,
        )
    ],
)
def dataset_files(
    run: YearRun,
    chip_bboxes: gpd.GeoDataFrame,
    splits: pd.DataFrame,
    band_stats: pd.DataFrame,
    class_weights: pd.DataFrame,
    class_distribution: pd.DataFrame,
    tile_payloads: pd.DataFrame,
    chip_index: gpd.GeoDataFrame,
    reader_layout: pd.DataFrame,
    exports: pd.DataFrame,
    fingerprint: pd.DataFrame,
    source: dict[str, tuple[str, str]],
) -> Made:
    """Every file of the dataset that a recipient gets, with its size, SHA-256, media type and the asset that wrote it:
    chips, lists, statistics, charts, exports. Tables, downloads, and binaries of band values are not among them.
    """
    table = file_rows(run.store, run.layout, splits, source)
    by_stage = table.groupby("stage", sort=True).agg(files=("file", "size"), bytes=("bytes", "sum"))
    shown = markdown(by_stage.reset_index(), _SHOWN)
    return Made(table, {"files": len(table), "bytes": int(table["bytes"].sum()), "by_stage": shown})
