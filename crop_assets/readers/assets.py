"""Stages of the files that readers open: `chip_index`, `reader_layout` and `exports`."""

import geopandas as gpd
import pandas as pd

from crop_assets.dataset.splits import SPLIT_NAMES, TEST, TRAIN
from crop_assets.graph.metadata import markdown
from crop_assets.graph.stage import AllTiles, Check, Finding, Made, YearRun, stage
from crop_assets.hls import POSITIONS
from crop_assets.progress import Progress
from crop_assets.readers.configs import config_texts
from crop_assets.readers.contract import contract_problems
from crop_assets.readers.exports import CHIPS_PER_FILE, write_array, write_parquet
from crop_assets.readers.folders import list_texts, write_folders
from crop_assets.readers.index import index_rows
from crop_assets.schemas import CHIP_INDEX, EXPORTS, READER_LAYOUT
from resources.machine import Machine

_SHOWN = 20


@stage("readers", CHIP_INDEX, kinds={"geoparquet"}, code_version="2")
def chip_index(
    run: YearRun,
    splits: pd.DataFrame,
    chip_bboxes: gpd.GeoDataFrame,
    label_quality: pd.DataFrame,
    cdl: pd.DataFrame,
    chips: AllTiles,
    filtered_chips: AllTiles,
    downloaded_bands: AllTiles,
) -> Made:
    """`chips.parquet` (GeoParquet): a row a chip with its box, split, dates, scenes with their CIDs, CDL release, class
    shares, quality of labels and of each date, and files with their checksums; `geopandas.read_parquet` opens it.
    """
    release, bands = cdl.iloc[0], downloaded_bands.frame
    index = index_rows(
        splits,
        chip_bboxes,
        chips.frame,
        filtered_chips.frame,
        bands,
        label_quality,
        release,
        run.layout.root,
    )
    file = run.layout.file("chips.parquet")
    with run.store.writing(file) as path:
        index.to_parquet(path, index=False, compression="zstd", schema_version="1.1.0")
    shown = index[["chip_id", "split", "tile", *(f"{position}_date" for position in POSITIONS)]]
    return Made(index, {"chips": len(index), "first_chips": markdown(shown, _SHOWN)}, [file])


def _readers_find(chips: pd.DataFrame, _: object, run: YearRun) -> Finding:
    means_over = SPLIT_NAMES if run.recipe.statistics_over == "kept" else [TRAIN]
    problems = contract_problems(run.store, run.layout, chips, means_over)
    shown = {"problems": markdown(pd.DataFrame({"problem": problems}), _SHOWN)} if problems else {}
    return Finding(not problems, {"problem_count": len(problems), **shown})


@stage(
    "readers",
    READER_LAYOUT,
    kinds={"geotiff"},
    checks=[
        Check(
            "readers_find_what_the_tables_say",
            "By the rules of TerraTorch and the Clark baseline: each split's folder and lists have its chips, with "
            "images and masks in pairs; bands, dates, places and labels of some chips are right; and normalised "
            "training pixels have the mean 0.",
            _readers_find,
        )
    ],
)
def reader_layout(
    run: YearRun,
    splits: pd.DataFrame,
    band_stats: pd.DataFrame,
    class_weights: pd.DataFrame,
    machine: Machine,
) -> Made:
    """`training_chips/`, `validation_chips/` and `test_chips/` with hard links to the chips, or copies in an object
    store, and the lists `train_data.txt`, `training_data.txt`, `validation_data.txt` and `test_data.txt`, written
    last: a layout that is not complete has no list. `terratorch.yaml`, `terratorch_tl.yaml` with `crop_datamodule.py`,
    and `clark_config.yaml` train on the dataset as it is.
    """
    with machine.pool() as pool:
        layout, removed = write_folders(run.store, run.layout, splits, pool)
    for name in removed:
        run.warn(f"{name} is of no chip of this split; removed")
    files = {
        **dict(zip(layout["merged_path"], splits["merged_sha256"], strict=True)),
        **dict(zip(layout["mask_path"], splits["mask_sha256"], strict=True)),
    }
    configs = config_texts(
        means=list(band_stats["mean"]),
        stds=list(band_stats["std"]),
        minimums=list(band_stats["min"]),
        maximums=list(band_stats["max"]),
        class_weights=list(class_weights["weight"][1:]),
        has_test=bool((layout["split"] == TEST).any()),
    )
    texts = configs | list_texts(layout)
    written = [run.write_text(name, text) for name, text in texts.items()]
    counts = {str(split): int(count) for split, count in layout["split"].value_counts().items()}
    return Made(layout, counts, files | {name: run.store.sha256(name) for name in written})


@stage("readers", EXPORTS, kinds={"parquet", "numpy"}, fields=["exports"])
def exports(run: YearRun, chip_index: gpd.GeoDataFrame) -> Made:
    """Copies of the dataset in other forms, as the recipe's `exports` names them, in `exports/`: Parquet with the bytes
    of images and masks, for Hugging Face's `load_dataset("parquet")`; and `.npy` arrays by split, which numpy maps into
    memory.
    """
    report = Progress(run.log, len(chip_index) * len(run.recipe.exports), "chips exported")
    rows: list[tuple[str, str, str, int]] = []
    done = 0
    for form in run.recipe.exports:
        for split, chips in chip_index.groupby("split"):
            made = _EXPORTS[form](run, str(split), chips.sort_values("chip_id"))
            rows += [(form, str(split), name, count) for name, count in made.items()]
            done += len(chips)
            report(done)
    table = pd.DataFrame(rows, columns=["form", "split", "file", "chips"])
    files = [run.layout.file(name) for name in table["file"]]
    table["bytes"] = [run.store.size(name) for name in files]
    return Made(table, {"files": markdown(table)}, files)


def _parquet_files(run: YearRun, split: str, chips: pd.DataFrame) -> dict[str, int]:
    """Write a split as Parquet files of a size that hubs recommend; returns the number of chips in each."""
    parts = [chips.iloc[at : at + CHIPS_PER_FILE] for at in range(0, len(chips), CHIPS_PER_FILE)]
    made = {}
    for number, part in enumerate(parts):
        name = f"exports/{split}-{number:05d}-of-{len(parts):05d}.parquet"
        facts = pd.DataFrame(part.drop(columns=["geometry", "image", "mask"]))
        with run.store.writing(run.layout.file(name)) as path:
            write_parquet(
                path, facts, list(zip(*_images_and_masks(run, part), strict=True)), run.store.read_bytes
            )
        made[name] = len(part)
    return made


def _array_files(run: YearRun, split: str, chips: pd.DataFrame) -> dict[str, int]:
    """Write a split as `.npy` arrays of images and masks, and the ids of their chips."""
    made = {}
    for kind, files in zip(("images", "masks"), _images_and_masks(run, chips), strict=True):
        made[name := f"exports/{split}_{kind}.npy"] = len(chips)
        with run.store.writing(run.layout.file(name)) as path:
            write_array(path, [run.store.gdal_path(file) for file in files])
    made[name := f"exports/{split}_ids.txt"] = len(chips)
    run.write_text(name, "".join(f"{chip}\n" for chip in chips["chip_id"]))
    return made


_EXPORTS = {"parquet": _parquet_files, "npy": _array_files}


def _images_and_masks(run: YearRun, chips: pd.DataFrame) -> tuple[list[str], list[str]]:
    images, masks = ([run.layout.file(name) for name in chips[kind]] for kind in ("image", "mask"))
    return images, masks
