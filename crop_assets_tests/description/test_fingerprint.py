import json
import random
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crop_assets.description.fingerprint import Fingerprint, description, fingerprint_of, output_files
from crop_assets.recipe import DatasetRecipe

ROOT = "training_datasets/small/2022"
SCENE = "HLS.S30.T14SMG.2022111T172020.v2.0"
BANDS = ("B02", "B03", "Fmask")


def rows_of_bands(cid: str = "", blocks: int = 0, sha256: str = "a" * 64) -> pd.DataFrame:
    rows = [(SCENE, band, cid and f"{cid}{band}", sha256, blocks, 1000 + len(band)) for band in BANDS]
    return pd.DataFrame(rows, columns=["scene_id", "band", "cid", "sha256", "blocks", "complete_bytes"])


GRID = pd.DataFrame(
    {"tile": ["14SMG", "14SNG"], "minx": [-99.0, -98.0], "miny": 37.0, "maxx": [-98.0, -97.0], "maxy": 38.0}
)
PARTS: dict[str, Any] = {
    "recipe": DatasetRecipe().values(),
    "cdl_sha256": "c" * 64,
    "tile_grid": GRID,
    "bands": rows_of_bands("bafy"),
    "lists": {"scene_list": "1" * 64, "cid_list": "2" * 64},
    "outputs": {"chips_filtered/a.tif": "3" * 64, "chips_filtered/b.tif": "4" * 64, "means.txt": "5" * 64},
}


def found(**changes: Any) -> Fingerprint:
    return fingerprint_of(**{**PARTS, **changes})


@given(seed=st.integers())
def test_order_does_not_matter(seed: int) -> None:
    shuffled = {}
    generator = random.Random(seed)
    for name, part in PARTS.items():
        if isinstance(part, dict):
            items = list(part.items())
            generator.shuffle(items)
            shuffled[name] = dict(items)
        elif isinstance(part, pd.DataFrame):
            order = list(range(len(part)))
            generator.shuffle(order)
            shuffled[name] = part.iloc[order].reset_index(drop=True)
    assert found(**shuffled) == found()


@given(
    name=st.sampled_from(sorted(PARTS["outputs"])),
    digest=st.text("0123456789abcdef", min_size=64, max_size=64),
)
def test_another_output_is_another_fingerprint(name: str, digest: str) -> None:
    other = found(outputs=PARTS["outputs"] | {name: digest})
    same = digest == PARTS["outputs"][name]
    assert (other.fingerprint == found().fingerprint) == same
    assert (other.outputs_sha256 == found().outputs_sha256) == same
    assert (other.recipe_sha256, other.inputs_sha256) == (found().recipe_sha256, found().inputs_sha256)


@given(data=st.data())
def test_names_and_checksums_do_not_run_into_each_other(data: st.DataObject) -> None:
    """Of any two different sets of files, the hashes differ."""
    files = st.dictionaries(st.text(max_size=4), st.text("ab", max_size=4), max_size=4)
    a, b = data.draw(files), data.draw(files)
    assert (found(outputs=a).outputs_sha256 == found(outputs=b).outputs_sha256) == (a == b)


@pytest.mark.parametrize("field", sorted(DatasetRecipe.model_fields))
def test_each_field_of_the_recipe_counts(field: str) -> None:
    other = found(recipe=PARTS["recipe"] | {field: "another"})
    assert other.fingerprint != found().fingerprint
    assert other.recipe_sha256 != found().recipe_sha256
    assert other.inputs_sha256 == found().inputs_sha256


@pytest.mark.parametrize(
    "changes",
    [
        {"cdl_sha256": "d" * 64},
        {"tile_grid": GRID.assign(minx=[-99.0, -98.1])},
        {"tile_grid": GRID.iloc[:1]},
        {"bands": rows_of_bands("bafz")},
        {"bands": rows_of_bands("bafy").iloc[:-1]},
        {"bands": rows_of_bands("bafy").assign(scene_id=SCENE.replace("111", "121"))},
        {"bands": rows_of_bands()},
        {"lists": {"scene_list": "1" * 64}},
        {"lists": {"scene_list": "9" * 64, "cid_list": "2" * 64}},
    ],
)
def test_each_input_counts(changes: dict[str, Any]) -> None:
    assert found(**changes).inputs_sha256 != found().inputs_sha256
    assert found(**changes).fingerprint != found().fingerprint
    assert found(**changes).outputs_sha256 == found().outputs_sha256


def test_how_a_band_was_fetched_does_not_count() -> None:
    for cid in ("bafy", ""):
        complete, partial = rows_of_bands(cid), rows_of_bands(cid, blocks=8)
        partial.loc[partial["band"] != "Fmask", "sha256"] = "b" * 64
        assert found(bands=complete) == found(bands=partial)
    without = rows_of_bands()
    other_fmask = without.assign(sha256=["a" * 64, "a" * 64, "b" * 64])
    larger = without.assign(complete_bytes=[2000, 1003, 1005])
    hashes = {found(bands=bands).inputs_sha256 for bands in (without, other_fmask, larger)}
    assert len(hashes) == 3


def test_outputs_are_the_data_that_a_model_sees() -> None:
    splits = pd.DataFrame(
        {
            "merged_path": [f"{ROOT}/chips_filtered/chip_001_002_merged.tif"],
            "mask_path": [f"{ROOT}/chips_filtered/chip_001_002.mask.tif"],
            "merged_sha256": ["1"],
            "mask_sha256": ["2"],
        }
    )
    recorded = {
        "train_ids.csv": ("splits", "3"),
        "chips_df.csv": ("splits", "4"),
        "rejected_chips.csv": ("splits", "5"),
        "means.txt": ("band_stats", "6"),
        "statistics.json": ("band_stats", "7"),
        "band_histograms.png": ("band_stats", "8"),
        "class_weights.csv": ("class_weights", "9"),
        "chips.parquet": ("chip_index", "10"),
        "exports/train_ids.txt": ("exports", "11"),
    }
    assert output_files(splits, ROOT, recorded) == {
        "chips_filtered/chip_001_002_merged.tif": "1",
        "chips_filtered/chip_001_002.mask.tif": "2",
        "train_ids.csv": "3",
        "chips_df.csv": "4",
        "means.txt": "6",
        "statistics.json": "7",
        "class_weights.csv": "9",
    }


def test_the_description_is_bounded_and_escaped() -> None:
    splits = pd.DataFrame(
        {"split": ["train"] * 3 + ["validation"], "tile": ["14SMG", "14SNG", "14SMG", "14SMG"]}
    )
    cdl = pd.Series({"release": "</script>\x1b\u202e" + "x" * 10_000, "sha256": "c" * 64})
    text = description(found(), PARTS["recipe"], 2022, cdl, splits, PARTS["bands"])
    read = json.loads(text)
    assert read["chips"] == {"train": 3, "validation": 1}
    assert (read["tiles"], read["scenes"], read["year"]) == (2, 1, 2022)
    assert read["recipe"] == json.loads(json.dumps(PARTS["recipe"]))
    assert len(text) < 10_000
    assert text.isascii()
    assert "\x1b" not in read["cdl_release"]
