"""Stages from chips to a training set: `splits`, `band_stats`, `class_weights`, `class_distribution` and
`published_dataset`.
"""

import contextlib
from pathlib import Path
from typing import Literal

import dagster as dg
import numpy as np
import pandas as pd
from pydantic import Field

from crop_assets.classes import CLASS_COLUMNS, CLASSES
from crop_assets.dataset.funnel import reject_ledger, yield_funnel
from crop_assets.dataset.plots import funnel_png
from crop_assets.dataset.publish import published_names
from crop_assets.dataset.splits import TRAIN, VALIDATION, split_chips
from crop_assets.dataset.statistics import BandStatistics, measure_bands
from crop_assets.dataset.weights import class_weights as balanced_weights
from crop_assets.errors import InputError
from crop_assets.graph.metadata import Picture, markdown
from crop_assets.graph.stage import AllTiles, Made, YearRun, stage
from crop_assets.hls import REFLECTANCE_BANDS
from crop_assets.labels.plots import class_histogram_png
from crop_assets.progress import Progress
from crop_assets.schemas import BAND_STATS, CLASS_DISTRIBUTION, CLASS_WEIGHTS, PUBLISHED_DATASET, SPLITS
from resources.ipfs.car import write_car
from resources.ipfs.directory import FolderDag
from resources.ipfs.resource import IpfsContent
from resources.machine import Machine
from resources.tables import TableSchema


@stage("dataset", SPLITS, kinds={"csv"}, fields=["train_share", "seed"])
def splits(run: YearRun, filtered_chips: AllTiles, tile_map: pd.DataFrame) -> Made:
    """The kept chips, split into training and validation by a seeded hash of their ids: `train_ids.csv`,
    `val_ids.csv`, `train_data.txt`, `validation_data.txt`; and `rejected_chips.csv`, which lists every other chip box
    with the reason why it is not in the dataset.
    """
    judged = filtered_chips.frame
    ledger = reject_ledger(tile_map, judged, filtered_chips.missing)
    kept = judged[judged["kept"]]
    if kept.empty:
        run.write_text("rejected_chips.csv", _ledger_text(ledger))
        raise InputError(
            f"none of the {len(tile_map)} chip boxes of {run.year} is kept: "
            f"{ledger['reason'].value_counts().to_dict()}; rejected_chips.csv lists them all"
        )
    funnel = yield_funnel(tile_map, ledger)
    split = split_chips(kept["chip_id"], run.recipe.train_share, run.recipe.seed)
    counts = split["split"].value_counts()
    table = kept.merge(split, on="chip_id").sort_values("chip_id", ignore_index=True)
    files = _write_splits(run, table, ledger)
    _remove_old_chips(run, set(tile_map["chip_id"]))
    metadata = {
        "funnel": markdown(funnel),
        "funnel_chart": Picture(funnel_png(funnel), "funnel"),
        **{name: int(counts.get(name, 0)) for name in (TRAIN, VALIDATION)},
    }
    return Made(table[_columns(SPLITS)], metadata, files)


def _write_splits(run: YearRun, table: pd.DataFrame, ledger: pd.DataFrame) -> list[str]:
    contents = {"rejected_chips.csv": _ledger_text(ledger)}
    for split, ids_file, data_file in (
        (TRAIN, "train_ids.csv", "train_data.txt"),
        (VALIDATION, "val_ids.csv", "validation_data.txt"),
    ):
        ids = list(table.loc[table["split"] == split, "chip_id"])
        contents[ids_file] = "".join(f"{line}\n" for line in ["ids", *(i.removeprefix("chip_") for i in ids)])
        contents[data_file] = "".join(f"{chip_id}\n" for chip_id in ids)
    return [run.write_text(name, text) for name, text in contents.items()]


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


@stage("dataset", BAND_STATS, kinds={"numpy"}, fields=["statistics_over", "band_values_binary"])
def band_stats(run: YearRun, splits: pd.DataFrame, machine: Machine) -> Made:
    """Mean, standard deviation, minimum and maximum (1.5 % clipped at either end) of each of the six bands over the
    three dates: text files and binaries of all values in `band_stats/`, and `global_stats.txt`.
    """
    chosen = _chosen(run, splits)
    numbers = range(1, len(REFLECTANCE_BANDS) + 1) if run.recipe.band_values_binary else ()
    files = [run.layout.file(f"band_stats/band_values_{number}.npy") for number in numbers]
    images = [run.store.gdal_path(name) for name in chosen["merged_path"]]
    report = Progress(run.log, len(images), "chips measured")
    with contextlib.ExitStack() as stack:
        binaries = [stack.enter_context(run.store.writing(name)) for name in files]
        statistics = measure_bands(images, stack.enter_context(machine.pool()), binaries, report)
    for number, band in enumerate(statistics, start=1):
        text = f"Mean: {band.mean}\nStd: {band.std}\nMin: {band.minimum}\nMax: {band.maximum}\n"
        files.append(run.write_text(f"band_stats/band_values_{number}.txt", text))
    files.append(run.write_text("global_stats.txt", _global_stats(statistics)))
    rows = [
        (b, s.mean, s.std, s.minimum, s.maximum, s.pixels)
        for b, s in zip(REFLECTANCE_BANDS, statistics, strict=True)
    ]
    table = pd.DataFrame(rows, columns=_columns(BAND_STATS))
    return Made(table, {"chips": len(chosen), "statistics": markdown(table.round(2))}, files)


def _global_stats(statistics: list[BandStatistics]) -> str:
    lines = [f"bands: {' '.join(REFLECTANCE_BANDS)}"]
    for name, values in (
        ("means", [s.mean for s in statistics]),
        ("stds", [s.std for s in statistics]),
        ("mins", [s.minimum for s in statistics]),
        ("maxs", [s.maximum for s in statistics]),
    ):
        lines.append(f"{name}: [{', '.join(f'{value:.6f}' for value in values)}]")
    return "\n".join(lines) + "\n"


@stage("dataset", CLASS_WEIGHTS, kinds={"csv"}, fields=["statistics_over"])
def class_weights(run: YearRun, splits: pd.DataFrame) -> Made:
    """`class_weights.csv`: balanced weights that sum to 1; class 0 and classes without pixels have weight 0."""
    pixels = _chosen(run, splits)[CLASS_COLUMNS].sum().astype("int64")
    weights = balanced_weights(list(pixels))
    lines = "".join(f"{c}, {weight}\n" for c, weight in enumerate(weights))
    file = run.write_text("class_weights.csv", lines)
    table = pd.DataFrame(
        {"class": range(len(CLASSES)), "name": list(CLASSES), "pixels": pixels.to_numpy(), "weight": weights}
    )
    absent = [CLASSES[c] for c in range(1, len(CLASSES)) if pixels.iloc[c] == 0]
    if absent:
        run.warn(f"no chip has pixels of {', '.join(absent)}; the weight is 0")
    return Made(table, {"weights": markdown(table.round(4)), "absent": ", ".join(absent)}, [file])


@stage("dataset", CLASS_DISTRIBUTION, kinds={"png"})
def class_distribution(run: YearRun, splits: pd.DataFrame) -> Made:
    """`training_dst.png` and `validation_dst.png`: the share of each class in the two splits."""
    files, metadata, tables = [], {}, []
    for split, name in ((TRAIN, "training_dst"), (VALIDATION, "validation_dst")):
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


_PUBLISHED = ["splits", "band_stats", "class_weights", "class_distribution", "tile_payloads"]


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
