"""Stages of what a dataset consists of and of what describes it: `fingerprint`, `dataset_files`, `stac_catalogue`,
`dataset_card` and `croissant`.
"""

import hashlib
from dataclasses import astuple

import geopandas as gpd
import pandas as pd

from crop_assets.dataset.publish import recorded_files
from crop_assets.dataset.splits import parse_ids
from crop_assets.description.card import card_text
from crop_assets.description.croissant import croissant_text, files_text
from crop_assets.description.facts import CARD, CROISSANT, FILES, CardTables, Tables, described_files
from crop_assets.description.files import file_problems, file_rows, foreign_files
from crop_assets.description.fingerprint import (
    FILE,
    OUTPUT_STAGES,
    description,
    fingerprint_of,
    output_files,
)
from crop_assets.description.stac import (
    COLLECTION,
    ITEMS_PARQUET,
    chip_item,
    collection,
    item_name,
    items_table,
    json_bytes,
    write_items,
)
from crop_assets.graph.metadata import markdown
from crop_assets.graph.stage import AllTiles, Check, Finding, Made, Source, YearRun, stage
from crop_assets.labels.aoi import aoi_checksum, read_aoi
from crop_assets.progress import Progress
from crop_assets.recipe import PATHS, DatasetRecipe, read_named_file
from crop_assets.schemas import CROISSANT as CROISSANT_TABLE
from crop_assets.schemas import DATASET_CARD, DATASET_FILES, FINGERPRINT, SCHEMAS, STAC_CATALOGUE
from resources.parallel import in_parallel
from resources.stop import StoppablePool
from resources.tables import read_table

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
    "viewer",
    "fingerprint",
)
"""The year stages whose files belong to a dataset; `dataset_files` has a parameter for each."""
DESCRIPTIONS = ("stac_catalogue", "dataset_card", "croissant")
"""The later stages, whose files describe these."""


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
    return _finding(run, files, foreign_files(run.store, run.layout, files))


def _descriptions_are_as_written(_: pd.DataFrame, __: object, run: YearRun) -> Finding:
    tables = {name: read_table(run.store, run.layout.table(name), SCHEMAS[name]) for name in DESCRIPTIONS}
    return _finding(run, pd.concat([table.assign(stage=name) for name, table in tables.items()]), [])


def _finding(run: YearRun, files: pd.DataFrame, foreign: list[tuple[str, str]]) -> Finding:
    with StoppablePool(_READS_AT_ONCE) as pool:
        problems = file_problems(run.store, run.layout, files, pool) + foreign
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
    viewer: pd.DataFrame,
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


_BATCH = 500
"""Items in memory: some 50 kB each."""
_WRITES_AT_ONCE = 16
"""An object store takes some time for each file, in which the processor is idle."""


@stage("description", STAC_CATALOGUE, kinds={"stac", "geoparquet"})
def stac_catalogue(
    run: YearRun, chip_index: gpd.GeoDataFrame, dataset_files: pd.DataFrame, fingerprint: pd.DataFrame
) -> Made:
    """The dataset as a static STAC 1.1 catalogue, `stac/collection.json`, with an item a chip in `stac/items/`: place,
    dates, bands, classes and their shares, split, checksums, and links to the scenes, their CIDs and the CDL release;
    and the items as stac-geoparquet, `stac/items.parquet`. Links within the dataset are relative.
    """
    sizes = dict(zip(dataset_files["file"], dataset_files["bytes"], strict=True))
    dataset = f"{run.recipe.dataset}-{run.year}"
    report = Progress(run.log, len(chip_index), "items written")
    rows: list[tuple[str, str, int, str]] = []
    tables, bboxes = [], []

    def write(kind: str, name: str, data: bytes) -> tuple[str, str, int, str]:
        run.store.write_bytes(run.layout.file(name), data)
        return name, kind, len(data), _sha256(data)

    with StoppablePool(_WRITES_AT_ONCE) as pool:
        for start in range(0, len(chip_index), _BATCH):
            chips = chip_index.iloc[start : start + _BATCH].drop(columns="geometry").to_dict("records")
            items = [chip_item(chip, sizes, dataset) for chip in chips]
            rows += in_parallel(
                pool, lambda item: write("item", item_name(item["id"]), json_bytes(item)), items
            )
            tables.append(items_table(items))
            bboxes += [item["bbox"] for item in items]
            report(len(rows))
    described = collection(
        run.recipe.dataset, run.year, chip_index, bboxes, dataset_files, fingerprint.to_dict("records")[0]
    )
    file = run.layout.file(ITEMS_PARQUET)
    with run.store.writing(file) as path:
        write_items(path, tables, described["extent"]["spatial"]["bbox"][0])
        data = path.read_bytes()
    rows.append((ITEMS_PARQUET, "geoparquet", len(data), _sha256(data)))
    # last, so that it names no item that is not there
    rows.append(write("collection", COLLECTION, json_bytes(described)))
    table = pd.DataFrame(rows, columns=["file", "kind", "bytes", "sha256"]).sort_values(
        "file", ignore_index=True
    )
    files = {
        run.layout.file(name): sha256 for name, sha256 in zip(table["file"], table["sha256"], strict=True)
    }
    return Made(table, {"items": len(chip_index), "bytes": int(table["bytes"].sum())}, files)


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


@stage(
    "description",
    CROISSANT_TABLE,
    kinds={"json"},
    fields=_all_fields,
    checks=[
        Check(
            "descriptions_are_as_written",
            "The STAC catalogue, the card and the Croissant metadata are there with the recorded size and checksum.",
            _descriptions_are_as_written,
        )
    ],
)
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
        digest = _sha256(data)
        files[run.write_text(name, text)] = digest
        rows.append((name, len(data), digest))
    table = pd.DataFrame(rows, columns=["file", "bytes", "sha256"]).sort_values("file", ignore_index=True)
    return Made(table, {"bytes": int(table["bytes"].sum())}, files)
