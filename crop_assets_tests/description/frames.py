"""Tables of a dataset of any number of chips, without files, for the texts that describe it."""

import datetime as dt
import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from crop_assets.chip_grid import chip_id, chip_outline
from crop_assets.classes import CLASS_COLUMNS, CLASSES
from crop_assets.dataset.splits import Shares, leakage, random_split
from crop_assets.description.facts import CardTables
from crop_assets.hls import BANDS, POSITIONS
from crop_assets.labels.quality import clustering, largest_classes
from crop_assets.readers.index import index_rows
from crop_assets.schemas import CHIP_INDEX, SPLITS

ROOT = "training_datasets/made/2022"
PIXELS = 224**2
DAYS = dict(zip(POSITIONS, (72, 162, 262), strict=True))


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def made_tables(
    chips: int, *, classes: int = 13, test_share: float = 0.0, train_share: float = 0.75
) -> CardTables:
    """Tables of `chips` kept chips and half as many rejected ones, in tiles of 25, with pixels of `classes` classes."""
    rng = np.random.default_rng(chips)
    boxes = chips + chips // 2
    ids = [chip_id(200 + at // 60, 300 + at % 60) for at in range(boxes)]
    tiles = [f"14S{'ABCDEFGH'[at // 25 // 8 % 8]}{'ABCDEFGH'[at // 25 % 8]}" for at in range(boxes)]
    place = [chip_outline(one).centroid for one in ids]
    table = pd.DataFrame({"chip_id": ids, "tile": tiles, "block": [f"b{at // 9:03d}" for at in range(boxes)]})
    table["lon"], table["lat"] = [at.x for at in place], [at.y for at in place]
    shares = rng.dirichlet(np.ones(classes), boxes)
    counts = np.zeros((boxes, len(CLASSES)), int)
    counts[:, 1 : classes + 1] = np.floor(shares * PIXELS)
    counts[:, 1] += PIXELS - counts.sum(axis=1)
    table[CLASS_COLUMNS] = counts
    for position, day in DAYS.items():
        table[f"{position}_date"] = dt.date(2022, 1, 1) + dt.timedelta(days=day - 1)
        table[f"{position}_scene"] = [f"HLS.S30.T{tile}.2022{day:03d}T172020.v2.0" for tile in tiles]
        table[f"bad_percent_{position}"] = np.round(rng.uniform(0, 5, boxes), 3)
    table["na_count"] = 0
    table["kept"] = [at < chips for at in range(boxes)]
    table["reason"] = ["" if kept else "bad_quality" for kept in table["kept"]]
    table["figure"] = [float("nan") if kept else 12.5 for kept in table["kept"]]
    for kind, end in (("merged", "_merged.tif"), ("mask", ".mask.tif")):
        table[f"{kind}_path"] = [f"{ROOT}/chips_filtered/{one}{end}" for one in ids]
        table[f"{kind}_sha256"] = [sha256(one + end) for one in ids]
    table["split"] = random_split(ids, Shares(train_share, test_share), 1)
    kept = table[table["kept"]].reset_index(drop=True)
    if chips == 1:
        kept["split"] = "train"
    kept = pd.concat([kept, leakage(kept)], axis=1)
    cdl = pd.DataFrame(
        [("2022_30m_cdls.tif", "https://nass.example/2022_30m_cdls.zip", 10, sha256("cdl"))],
        columns=["file", "release", "bytes", "sha256"],
    )
    bands = pd.DataFrame(
        [
            (scene, band, f"bafy{sha256(scene + band)[:40]}", True, tile)
            for position in POSITIONS
            for scene, tile in sorted(set(zip(table[f"{position}_scene"], tiles, strict=True)))
            for band in BANDS
        ],
        columns=["scene_id", "band", "cid", "verified", "tile"],
    )
    splits = kept[[column.name for column in SPLITS.columns]]
    labels = pd.DataFrame({"chip_id": ids, "confidence_percent": float("nan")})
    labels["purity_percent"] = np.round(rng.uniform(60, 100, boxes), 3)
    index = index_rows(splits, table, table, table, bands, labels, cdl.iloc[0], ROOT)
    names = dict.fromkeys(["train", "validation", *(["test"] if test_share else [])])
    distribution = pd.concat([class_rows(kept, split) for split in names], ignore_index=True)
    weights = pd.DataFrame({"class": range(len(CLASSES)), "name": list(CLASSES)})
    weights["pixels"] = kept.loc[kept["split"] == "train", CLASS_COLUMNS].sum().to_numpy()
    weights["weight"] = np.where(weights["pixels"] > 0, 1 / (weights["pixels"] + 1), 0)
    weights["weight"] /= weights["weight"].sum()
    files = [path.removeprefix(f"{ROOT}/") for kind in ("merged", "mask") for path in kept[f"{kind}_path"]]
    files += [
        "chips.parquet",
        "train_data.txt",
        "training_dst.png",
        "validation_dst.png",
        "band_histograms.png",
    ]
    return CardTables(
        fingerprint=pd.DataFrame(
            [(sha256("all"), sha256("recipe"), sha256("inputs"), sha256("outputs"), 7, len(files))],
            columns=["fingerprint", "recipe_sha256", "inputs_sha256", "outputs_sha256", "inputs", "outputs"],
        ),
        cdl=cdl,
        splits=splits,
        chip_index=index[[*(column.name for column in CHIP_INDEX.columns), "geometry"]],
        class_distribution=distribution,
        downloaded_bands=bands,
        dataset_files=pd.DataFrame(
            {
                "file": sorted(files),
                "stage": "x",
                "media_type": [_media_type(name) for name in sorted(files)],
                "bytes": [len(name) for name in sorted(files)],
                "sha256": [sha256(name) for name in sorted(files)],
            }
        ),
        stac_catalogue=pd.DataFrame(columns=["file", "kind", "bytes", "sha256"]),
        tile_map=table[["chip_id", "tile"]].assign(margin_m=1.0, finding=""),
        class_weights=weights,
        label_quality=labels,
        filtered_chips=table,
        missing={},
    )


def class_rows(chips: pd.DataFrame, split: str) -> pd.DataFrame:
    """The rows of `class_distribution` for the chips of a split."""
    chosen = chips[chips["split"] == split]
    counts = chosen[CLASS_COLUMNS].to_numpy()
    classes = {"split": split, "class": range(len(CLASSES)), "name": list(CLASSES)}
    rows = pd.DataFrame({**classes, "pixels": counts.sum(axis=0), "chips": (counts > 0).sum(axis=0)})
    return rows.join(clustering(list(chosen["chip_id"]), largest_classes(counts)))


def with_changes(tables: CardTables, **changes: Any) -> CardTables:
    return replace(tables, **changes)


def _media_type(name: str) -> str:
    kinds = {"tif": "image/tiff", "png": "image/png", "txt": "text/plain"}
    return kinds.get(name.rsplit(".", 1)[-1], "application/vnd.apache.parquet")
