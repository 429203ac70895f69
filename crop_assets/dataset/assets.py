"""Stages from chips to a training set: `splits`, `band_stats`, `class_weights`, `class_distribution` and
`published_dataset`.
"""

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import dagster as dg
import geopandas as gpd
import numpy as np
import pandas as pd
from pydantic import Field

from crop_assets.classes import CLASS_COLOURS, CLASS_COLUMNS, CLASSES
from crop_assets.dataset.funnel import left_out, reject_ledger, yield_funnel
from crop_assets.dataset.plots import band_histograms_png, funnel_png
from crop_assets.dataset.publish import published_names
from crop_assets.dataset.splits import (
    LISTS,
    OF_SPLIT,
    SPLIT_NAMES,
    TEST,
    TOUCHES,
    TRAIN,
    VALIDATION,
    Shares,
    block_split,
    leakage,
    leakage_report,
    parse_ids,
    random_split,
    some_ids,
    split_by_files,
)
from crop_assets.dataset.statistics import band_statistics, measure_bands, statistics_texts
from crop_assets.dataset.weights import class_weights as balanced_weights
from crop_assets.errors import InputError
from crop_assets.graph.metadata import Picture, markdown
from crop_assets.graph.stage import AllTiles, Check, Finding, Made, Source, YearRun, stage
from crop_assets.hls import POSITIONS, REFLECTANCE_BANDS
from crop_assets.labels.plots import class_histogram_png
from crop_assets.progress import Progress
from crop_assets.recipe import DatasetRecipe, read_named_file
from crop_assets.schemas import BAND_STATS, CLASS_DISTRIBUTION, CLASS_WEIGHTS, PUBLISHED_DATASET, SPLITS
from resources.ipfs.car import write_car
from resources.ipfs.directory import FolderDag
from resources.ipfs.resource import IpfsContent
from resources.machine import Machine
from resources.tables import TableSchema


def _split_fields(recipe: DatasetRecipe) -> list[str]:
    shares = ["train_share", "test_share", "seed"]
    return ["split", *{"random": shares, "blocks": [*shares, "whole_tiles"], "files": []}[recipe.split]]


def _split_files(run: YearRun) -> Source:
    """The ids of each split that the recipe names a file for."""
    recipe = run.recipe
    named = {TRAIN: recipe.train_ids, VALIDATION: recipe.validation_ids, TEST: recipe.test_ids}
    ids = {
        split: parse_ids(read_named_file(path).decode(errors="replace"), path)
        for split, path in named.items()
        if path
    }
    return Source(ids, {split: sorted(set(found)) for split, found in ids.items()})


def _few_chips_touch(chips: pd.DataFrame, _: object, run: YearRun) -> Finding:
    recipe = run.recipe
    others = chips[chips["split"] != TRAIN]
    percent = 100 * float(others[TOUCHES].mean()) if len(others) else 0.0
    metadata: dict[str, Any] = {"touching_percent": percent, "limit_percent": recipe.max_touching}
    if recipe.split == "random" and percent > recipe.max_touching:
        metadata["advice"] = "the recipe's split: blocks keeps them apart"
    return Finding(percent <= recipe.max_touching, metadata)


@stage(
    "dataset",
    SPLITS,
    kinds={"csv"},
    fields=_split_fields,
    code_version="3",
    source=_split_files,
    checks=[
        Check(
            "few_chips_touch_training",
            "No more validation and test chips touch a training chip than `max_touching` allows: results on those that "
            "do are better than on new fields.",
            _few_chips_touch,
        )
    ],
    warnings=("not_in_dataset", "empty"),
)
def splits(
    run: YearRun,
    filtered_chips: AllTiles,
    tile_map: pd.DataFrame,
    chip_bboxes: gpd.GeoDataFrame,
    source: dict[str, list[str]],
) -> Made:
    """The kept chips, split into training, validation and test: `train_ids.csv`, `val_ids.csv`, `test_ids.csv`;
    `chips_df.csv` with the dates and place of each chip; which of them lie next to training chips; and
    `rejected_chips.csv`, which lists every other chip box with the reason why it is not in the dataset.
    """
    judged = filtered_chips.frame
    ledger = reject_ledger(tile_map, judged, filtered_chips.missing)
    kept = judged[judged["kept"]].merge(_split(run.recipe, tile_map, chip_bboxes, source), on="chip_id")
    ledger = pd.concat([ledger, left_out(kept)]).sort_values("chip_id", ignore_index=True)
    chips = kept[kept["split"].isin(SPLIT_NAMES)].sort_values("chip_id", ignore_index=True)
    if chips.empty:
        run.write_text("rejected_chips.csv", _ledger_text(ledger))
        if len(kept):
            raise InputError(
                f"none of the {len(kept)} chips of {run.year} that are kept is in a split: the files of train_ids, "
                f"validation_ids and test_ids name others ({some_ids(sorted(set().union(*source.values())))})"
            )
        raise InputError(
            f"none of the {len(tile_map)} chip boxes of {run.year} is kept: "
            f"{ledger['reason'].value_counts().to_dict()}; rejected_chips.csv lists them all"
        )
    chips = pd.concat([chips, leakage(chips)], axis=1)
    wanted = source or Shares(run.recipe.train_share, run.recipe.test_share).by_split
    counts = {split: int((chips["split"] == split).sum()) for split in wanted}
    files = _write_splits(run, chips, ledger, counts)
    files.append(run.write_text("chips_df.csv", _chips_text(chips)))
    _remove_old_chips(run, set(tile_map["chip_id"]))
    funnel = yield_funnel(tile_map, ledger)
    metadata = {
        "funnel": markdown(funnel),
        "funnel_chart": Picture(funnel_png(funnel), "funnel"),
        **counts,
        "leakage": markdown(leakage_report(chips).round(1)),
    }
    if empty := [split for split, count in counts.items() if not count]:
        metadata["empty"] = (
            f"no chip is for {' or '.join(empty)}; choose more chips, other shares or smaller blocks"
        )
    if unknown := sorted({chip for ids in source.values() for chip in ids} - set(chips["chip_id"])):
        metadata["not_in_dataset"] = (
            f"{len(unknown):,} chips ({some_ids(unknown)}) of the files of the split, not in the dataset"
        )
    return Made(chips[_columns(SPLITS)], metadata, files)


def _split(
    recipe: DatasetRecipe, tile_map: pd.DataFrame, boxes: pd.DataFrame, files: dict[str, list[str]]
) -> pd.DataFrame:
    """The split and the block of each chip box, whether or not it is kept, so that new tiles move no chip."""
    shares = Shares(recipe.train_share, recipe.test_share)
    found = boxes.merge(tile_map[["chip_id", "tile"]], on="chip_id")
    if recipe.split == "files":
        found["split"] = split_by_files(list(found["chip_id"]), files)
    elif recipe.split == "blocks":
        found["split"] = block_split(found, shares, recipe.seed, "tile" if recipe.whole_tiles else "block")
    else:
        found["split"] = random_split(found["chip_id"], shares, recipe.seed)
    return found[["chip_id", "split", "block", "lon", "lat"]]


def _write_splits(
    run: YearRun, chips: pd.DataFrame, ledger: pd.DataFrame, splits: Iterable[str]
) -> list[str]:
    for name in [*(files.ids for files in OF_SPLIT.values()), *LISTS]:
        # so that a run that dies leaves no list of this split beside one of another
        run.store.remove(run.layout.file(name))
    contents = {"rejected_chips.csv": _ledger_text(ledger)}
    for split in splits:
        ids = chips.loc[chips["split"] == split, "chip_id"]
        contents[OF_SPLIT[split].ids] = "".join(
            f"{line}\n" for line in ["ids", *ids.str.removeprefix("chip_")]
        )
    return [run.write_text(name, text) for name, text in contents.items()]


def _chips_text(chips: pd.DataFrame) -> str:
    """One row a chip with the names that TerraTorch reads; places are those of the centre."""
    named = {f"{position}_date": f"{position}_img_date" for position in POSITIONS}
    columns = ["chip_id", *named, "split", "tile", "lon", "lat"]
    text = chips[columns].rename(columns=named).to_csv(index=False, float_format="%.6f", lineterminator="\n")
    return str(text)


def _ledger_text(ledger: pd.DataFrame) -> str:
    return str(ledger.to_csv(index=False, float_format="%.6g", lineterminator="\n"))


def _remove_old_chips(run: YearRun, chip_ids: set[str]) -> None:
    """Remove files from chips_filtered that belong to chips of an earlier recipe.

    Files of current chip boxes are left to their tiles, whose runs may be writing them.
    """
    for name in run.store.names(run.layout.file("chips_filtered")):
        chip_id = name.rsplit("/", 1)[-1].removesuffix("_merged.tif").removesuffix(".mask.tif")
        if chip_id not in chip_ids:
            run.warn(f"{name} no longer belongs to a chip box of the year; removing it")
            run.store.remove(name)


def _chosen(run: YearRun, splits: pd.DataFrame) -> pd.DataFrame:
    """The chips to compute statistics from, by the recipe. Raises InputError if there are none."""
    chosen = splits if run.recipe.statistics_over == "kept" else splits[splits["split"] == TRAIN]
    if chosen.empty:
        raise InputError(
            f"no chip of {run.year} is in the training split, and only {len(splits)} are kept; choose more chips or a "
            "larger train_share"
        )
    return chosen


@stage(
    "dataset",
    BAND_STATS,
    kinds={"numpy", "png"},
    fields=["statistics_over", "band_values_binary"],
    code_version="3",
)
def band_stats(run: YearRun, splits: pd.DataFrame, machine: Machine) -> Made:
    """Mean, standard deviation, minimum and maximum (1.5 % clipped at either end) of each of the six bands over the
    three dates: text files and binaries of all values in `band_stats/`; `global_stats.txt`, which is part of a
    configuration of the Clark baseline; `means.txt` and `stds.txt` with a number a line, which TerraTorch reads, and
    `means_by_date.txt` and `stds_by_date.txt` with 18; `statistics.json`, for each split and date; and histograms.
    """
    over = list(_chosen(run, splits)["split"].unique())
    numbers = range(1, len(REFLECTANCE_BANDS) + 1) if run.recipe.band_values_binary else ()
    files = [run.layout.file(f"band_stats/band_values_{number}.npy") for number in numbers]
    images = [run.store.gdal_path(name) for name in splits["merged_path"]]
    report = Progress(run.log, len(images), "chips measured")
    with contextlib.ExitStack() as stack:
        binaries = [stack.enter_context(run.store.writing(name)) for name in files]
        pool = stack.enter_context(machine.pool())
        counts = measure_bands(images, list(splits["split"]), pool, binaries, over, report)
    chosen = np.sum([counts[split] for split in over], axis=0)
    statistics = [band_statistics(of_band) for of_band in chosen.sum(axis=0)]
    chips = {split: int((splits["split"] == split).sum()) for split in counts}
    files += [run.write_text(name, text) for name, text in statistics_texts(counts, over, chips).items()]
    measured = sum(chips[split] for split in over)
    chart = band_histograms_png(chosen, f"{' and '.join(over)}: {measured} chips of {run.year}")
    files.append(run.layout.file("band_histograms.png"))
    run.store.write_bytes(files[-1], chart)
    rows = [
        (b, s.mean, s.std, s.minimum, s.maximum, s.pixels)
        for b, s in zip(REFLECTANCE_BANDS, statistics, strict=True)
    ]
    table = pd.DataFrame(rows, columns=_columns(BAND_STATS))
    metadata = {
        "chips": measured,
        "statistics": markdown(table.round(2)),
        "histograms": Picture(chart, "histograms"),
    }
    return Made(table, metadata, files)


@stage("dataset", CLASS_WEIGHTS, kinds={"csv"}, fields=["statistics_over"], code_version="2")
def class_weights(run: YearRun, splits: pd.DataFrame) -> Made:
    """`class_weights.csv`: balanced weights that sum to 1; class 0 and classes without pixels have weight 0.
    `class_weights.txt`: those of classes 1 to 13, a number a line, for losses that ignore class 0. `classes.json`: the
    value of each class in masks, its label where 0 is ignored, its name, colour and pixels.
    """
    pixels = _chosen(run, splits)[CLASS_COLUMNS].sum().astype("int64")
    weights = balanced_weights(list(pixels))
    lines = "".join(f"{c}, {weight}\n" for c, weight in enumerate(weights))
    contents = {
        "class_weights.csv": lines,
        "class_weights.txt": "".join(f"{weight}\n" for weight in weights[1:]),
        "classes.json": _classes_text(pixels),
    }
    files = [run.write_text(name, text) for name, text in contents.items()]
    table = pd.DataFrame(
        {"class": range(len(CLASSES)), "name": list(CLASSES), "pixels": pixels.to_numpy(), "weight": weights}
    )
    absent = [CLASSES[c] for c in range(1, len(CLASSES)) if pixels.iloc[c] == 0]
    if absent:
        run.warn(f"no chip has pixels of {', '.join(absent)}; the weight is 0")
    return Made(table, {"weights": markdown(table.round(4)), "absent": ", ".join(absent)}, files)


def _classes_text(pixels: "pd.Series[int]") -> str:
    classes = [
        {
            "value": value,
            "label": value - 1 if value else None,
            "name": name,
            "color": CLASS_COLOURS[value],
            "pixels": int(pixels.iloc[value]),
        }
        for value, name in enumerate(CLASSES)
    ]
    return json.dumps(classes, indent=2) + "\n"


@stage("dataset", CLASS_DISTRIBUTION, kinds={"png"})
def class_distribution(run: YearRun, splits: pd.DataFrame) -> Made:
    """`training_dst.png` and `validation_dst.png`: the share of each class in the splits; `test_dst.png` too if there
    are test chips.
    """
    files, metadata, tables = [], {}, []
    names = {TRAIN: "training_dst", VALIDATION: "validation_dst"}
    if (splits["split"] == TEST).any():
        names[TEST] = "test_dst"
    for split, name in names.items():
        counts = splits.loc[splits["split"] == split, CLASS_COLUMNS]
        pixels = counts.sum().to_numpy(dtype=np.int64)
        png = class_histogram_png(pixels, f"{split}: {len(counts)} chips of {run.year}")
        files.append(run.layout.file(f"{name}.png"))
        run.store.write_bytes(files[-1], png)
        metadata[name] = Picture(png, "classes")
        chips = (counts > 0).sum().to_numpy(dtype=np.int64)
        classes = {"class": range(len(CLASSES)), "name": list(CLASSES)}
        tables.append(pd.DataFrame({"split": split, **classes, "pixels": pixels, "chips": chips}))
    return Made(pd.concat(tables, ignore_index=True), metadata, files)


class Publishing(dg.Config):
    """Where to publish a dataset."""

    to: Literal["car", "kubo"] = Field(
        default="car",
        description="'car' writes a CAR file into the store; 'kubo' imports it into the node of `ipfs.kubo_api` and "
        "pins it there.",
    )


_PUBLISHED = [
    "splits",
    "band_stats",
    "class_weights",
    "class_distribution",
    "tile_payloads",
    "chip_index",
    "reader_layout",
    "viewer",
]


@stage(
    "dataset",
    PUBLISHED_DATASET,
    kinds={"ipfs"},
    again=lambda config: config.to == "kubo",
    job="publish_job",
)
def published_dataset(
    run: YearRun,
    splits: pd.DataFrame,
    band_stats: pd.DataFrame,
    class_weights: pd.DataFrame,
    class_distribution: pd.DataFrame,
    tile_payloads: pd.DataFrame,
    chip_index: gpd.GeoDataFrame,
    reader_layout: pd.DataFrame,
    viewer: pd.DataFrame,
    config: Publishing,
    ipfs: IpfsContent,
) -> Made:
    """The finished dataset as a folder in IPFS, so that others can download the same bytes by a single CID: in a CAR
    file, or imported into a Kubo node. The same dataset has the same CID. Band values (.npy) are left out.
    """
    names = published_names(run.store, run.layout, splits, _PUBLISHED)
    report = Progress(run.log, len(names), "files hashed")
    with contextlib.ExitStack() as stack:
        local = {name: stack.enter_context(run.store.local(file)) for name, file in names.items()}
        dag = FolderDag(local, progress=report)
        run.log(f"{dag.root}: {len(names)} files, {dag.size:,} bytes")
        published_to, files = ipfs.kubo_api, []
        if config.to == "kubo":
            ipfs.kubo().import_car(write_car(dag, repeats=False), dag.root)
        else:
            published_to = run.layout.file(f"{dag.root}.car")
            files = [published_to]
            _write_pieces(stack.enter_context(run.store.writing(published_to)), dag)
    table = pd.DataFrame(
        [(str(dag.root), config.to, published_to, len(names), dag.size)], columns=_columns(PUBLISHED_DATASET)
    )
    return Made(table, {"root_cid": str(dag.root), "published_to": published_to, "bytes": dag.size}, files)


def _write_pieces(path: Path, dag: FolderDag) -> None:
    with path.open("wb") as file:
        for piece in write_car(dag, repeats=False):
            file.write(piece)


def _columns(schema: TableSchema) -> list[str]:
    return [column.name for column in schema.columns]
