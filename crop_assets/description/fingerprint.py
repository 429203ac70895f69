"""The fingerprint of a dataset: one hash of its recipe, inputs and outputs.

Two datasets with the same fingerprint were made by the same recipe, from the same sources, and a model sees the same
data in them. The three hashes beside it show in which of these two datasets differ.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from crop_assets.hls import QA_BAND
from resources.plain_text import plain_text

FILE = "dataset.json"
"""At the top of a dataset: its fingerprint, and the recipe's values."""
_VERSION = 1
"""Of what is hashed, and how; part of the fingerprint."""
_GRID = ["tile", "minx", "miny", "maxx", "maxy"]
_MAX_RELEASE = 200
_DATA_OF = {
    "splits": (".csv",),
    "band_stats": (".txt", ".json"),
    "class_weights": (".csv", ".txt", ".json"),
}
"""The stages whose files are outputs besides images and masks, and the suffixes of these files."""
_NO_DATA = {"rejected_chips.csv"}
OUTPUT_STAGES = tuple(_DATA_OF)


@dataclass(frozen=True)
class Fingerprint:
    """SHA-256 in hex of the recipe, the inputs, the outputs, and of these three; and how many inputs and outputs."""

    fingerprint: str
    recipe_sha256: str
    inputs_sha256: str
    outputs_sha256: str
    inputs: int
    outputs: int


def fingerprint_of(
    recipe: Mapping[str, Any],
    cdl_sha256: str,
    tile_grid: pd.DataFrame,
    bands: pd.DataFrame,
    lists: Mapping[str, str],
    outputs: Mapping[str, str],
) -> Fingerprint:
    """The fingerprint of a dataset. The order of rows and keys does not matter.

    `recipe` are the recipe's values, `lists` the checksums of the files that it names, by field. `tile_grid` and
    `bands` (downloaded_bands of all tiles) are tables of the stages. `outputs` are checksums by name in the dataset's
    folder, as `output_files` chooses them.

    A band file is identified by its scene, band and CID, whether its bytes could be compared with the CID or not:
    inputs are what was asked for, and outputs what came of it. Without a CID it is identified by scene, band and the
    size of the complete file, and Fmask, which is always fetched completely, by its SHA-256. For other bands that
    would not do: the file that is kept has only the blocks under the chips, or all, by what the recipe's `fetch` and
    the server allow, and the dataset is the same.

    Of the tile grid, names and edges in degrees are hashed. Its projected places depend on the version of PROJ.
    """
    columns = (bands[name] for name in ("scene_id", "band", "cid", "sha256", "complete_bytes"))
    files = sorted(
        {
            (scene, band, _identity(band, cid, sha256, size))
            for scene, band, cid, sha256, size in zip(*columns, strict=True)
        }
    )
    grid = sorted(tile_grid[_GRID].itertuples(index=False, name=None))
    inputs = {"bands": files, "cdl": cdl_sha256, "lists": dict(lists), "tile_grid": grid}
    hashes = {"recipe": _hash(recipe), "inputs": _hash(inputs), "outputs": _hash(dict(outputs))}
    return Fingerprint(
        fingerprint=_hash({"version": _VERSION, **hashes}),
        recipe_sha256=hashes["recipe"],
        inputs_sha256=hashes["inputs"],
        outputs_sha256=hashes["outputs"],
        # the raster and the grid
        inputs=2 + len(files) + len(lists),
        outputs=len(outputs),
    )


def output_files(splits: pd.DataFrame, root: str, recorded: Mapping[str, tuple[str, str]]) -> dict[str, str]:
    """The SHA-256 of the files of a dataset that hold the data that a model sees, by name in the dataset's folder
    `root`: images and masks of `splits`, ids of splits, dates and places, band statistics and class weights.

    `recorded` are stage and SHA-256 of the files that year stages have written, by name in the folder. Pictures, the
    viewer, exports and Parquet are left out, because their bytes depend on versions of libraries; so are binaries of
    band values and lists that repeat the ids. Images and masks count by their files: another release of the library
    that compresses them may give them another checksum.
    """
    outputs = {
        name.removeprefix(f"{root}/"): digest
        for kind in ("merged", "mask")
        for name, digest in zip(splits[f"{kind}_path"], splits[f"{kind}_sha256"], strict=True)
    }
    for name, (stage, digest) in recorded.items():
        if name.endswith(_DATA_OF.get(stage, ())) and name not in _NO_DATA:
            outputs[name] = digest
    return outputs


def description(
    found: Fingerprint,
    recipe: Mapping[str, Any],
    year: int,
    cdl: pd.Series,
    splits: pd.DataFrame,
    bands: pd.DataFrame,
) -> str:
    """The text of `dataset.json`; its size does not depend on the number of chips."""
    chips = {split: int(count) for split, count in splits["split"].value_counts().sort_index().items()}
    described = {
        "dataset": recipe["dataset"],
        "year": year,
        "fingerprint": found.fingerprint,
        "recipe_sha256": found.recipe_sha256,
        "inputs_sha256": found.inputs_sha256,
        "outputs_sha256": found.outputs_sha256,
        "inputs": found.inputs,
        "outputs": found.outputs,
        "chips": chips,
        "tiles": int(splits["tile"].nunique()),
        "scenes": int(bands["scene_id"].nunique()),
        "cdl_release": plain_text(str(cdl["release"]), _MAX_RELEASE),
        "cdl_sha256": cdl["sha256"],
        "recipe": dict(recipe),
    }
    return json.dumps(described, indent=2) + "\n"


def _identity(band: str, cid: str, sha256: str, complete_bytes: int) -> str:
    if cid:
        return f"cid:{cid}"
    return f"sha256:{sha256}" if band == QA_BAND else f"bytes:{complete_bytes}"


def _hash(value: Any) -> str:
    """SHA-256 of a JSON value in its canonical form: sorted keys, ASCII, no spaces."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
