import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import rasterio
from click.testing import Result
from typer.testing import CliRunner

from crop_assets.cli import app
from crop_assets.layout import Layout
from crop_assets.schemas import SCHEMAS
from crop_assets_tests.small_world import (
    CHIPS,
    EAST,
    GAPPY,
    KEPT,
    SPARE_DAY,
    WEST,
    YEAR,
    Finished,
    Graph,
    digests,
    recipe,
)
from resources.store import DatasetStore
from resources.tables import read_table, write_table


def diff(a: Path, b: Path | str, *options: str) -> Result:
    return CliRunner().invoke(app, ["diff", str(a), str(b), *options])


def differences(a: Path, b: Path | str, *options: str) -> dict[str, Any]:
    """The kinds of differences that there are."""
    shown = diff(a, b, "--json", *options)
    found = json.loads(shown.stdout)
    assert shown.exit_code == (0 if found["same"] else 1)
    return {kind: rows for kind, rows in found["differences"].items() if rows}


def change(root: Path, asset: str, column: str, values: Any, tile: str | None = None) -> None:
    """Write a table with other values in a column."""
    store, name = DatasetStore(root=str(root)), Layout("small", YEAR).table(asset, tile)
    frame = read_table(store, name, SCHEMAS[asset])
    frame[column] = values(frame[column])
    write_table(store, name, frame, SCHEMAS[asset], {})


@pytest.fixture
def other(finished: Finished, tmp_path: Path) -> Path:
    """A copy of the finished store."""
    shutil.copytree(finished.graph.root, tmp_path / "other")
    return tmp_path / "other"


def dataset(root: Path) -> Path:
    return root / Layout("small", YEAR).root


def test_a_dataset_and_its_copy_have_no_differences(finished: Finished, other: Path) -> None:
    before = digests(other)
    shown = diff(finished.graph.dataset, dataset(other))
    assert shown.exit_code == 0, shown.output
    assert shown.output.splitlines()[-1] == "no differences"
    assert f"{len(KEPT)} chips are in both" in shown.output
    assert diff(finished.graph.dataset, f"small/{YEAR}", "--data", str(other)).exit_code == 0
    assert digests(other) == before


def test_another_seed_moves_chips_and_changes_what_is_computed_of_them(
    finished: Finished, finished_graph: Graph
) -> None:
    assert finished_graph.run("dataset_job", recipe=recipe(seed=7)).success
    found = differences(finished.graph.dataset, finished_graph.dataset)
    assert found["recipe"] == [{"field": "seed", "a": 2, "b": 7}]
    a, b = (graph.table("splits").set_index("chip_id")["split"] for graph in (finished.graph, finished_graph))
    moved = [chip for chip in a.index if a[chip] != b[chip]]
    assert moved
    assert found["split"] == [{"chip_id": chip, "a": a[chip], "b": b[chip]} for chip in moved]
    means = [
        graph.table("band_stats").set_index("band")["mean"] for graph in (finished.graph, finished_graph)
    ]
    changed = {row["name"]: (row["a"], row["b"]) for row in found["statistics"]}
    assert changed["B02 mean"] == (means[0]["B02"], means[1]["B02"])
    assert not {"only_a", "only_b", "scenes", "dates", "files", "pixels"} & set(found)


def test_another_limit_of_clouds_is_why_chips_are_only_in_one(
    finished: Finished, finished_graph: Graph
) -> None:
    stricter = recipe(max_bad_percent=0.01)
    assert finished_graph.run("tiles_job", recipe=stricter).success
    assert finished_graph.run("dataset_job", recipe=stricter).success
    found = differences(finished.graph.dataset, finished_graph.dataset)
    rejected = pd.concat([finished_graph.table("filtered_chips", tile) for tile in (WEST, EAST)])
    reasons = rejected.set_index("chip_id")
    lost = sorted(set(KEPT) - set(finished_graph.table("splits")["chip_id"]))
    assert lost
    assert {row["chip_id"]: row["why"] for row in found["only_a"]} == {
        chip: f"{reasons['reason'][chip]} {reasons['figure'][chip]:.6g}" for chip in lost
    }
    assert "only_b" not in found
    assert found["recipe"] == [{"field": "max_bad_percent", "a": 5.0, "b": 0.01}]
    # the other way round
    swapped = differences(finished_graph.dataset, finished.graph.dataset)
    assert swapped["only_b"] == found["only_a"]


def test_a_missing_tile_is_why_its_chips_are_missing(finished: Finished, finished_graph: Graph) -> None:
    (finished_graph.root / finished_graph.layout.table("filtered_chips", EAST)).unlink()
    run = finished_graph.run("dataset_job", recipe=recipe(max_missing_tiles=1))
    # the fingerprint has the bands of the tile, which are there
    assert run.success, run.failure
    found = differences(finished.graph.dataset, finished_graph.dataset)
    assert [row["chip_id"] for row in found["only_a"]] == sorted(set(KEPT) & set(CHIPS[EAST]))
    assert all(row["why"].startswith("tile_missing filtered_chips has not been") for row in found["only_a"])


def test_an_edited_pixel_is_found_in_its_band_and_date(finished: Finished, other: Path) -> None:
    layout = Layout("small", YEAR)
    for name, band, by in (
        (layout.merged(KEPT[0], "chips_filtered"), 8, 700),
        (layout.mask(KEPT[1], "chips_filtered"), 1, 1),
    ):
        path = other / name
        with rasterio.open(path) as raster:
            pixels, profile = raster.read(), raster.profile
        pixels[band - 1, 5, 7] += by
        path.unlink()
        with rasterio.open(path, "w", **profile) as raster:
            raster.write(pixels)
    store = DatasetStore(root=str(other))
    for kind, name in (("merged", "merged_path"), ("mask", "mask_path")):
        paths = read_table(store, layout.table("splits"), SCHEMAS["splits"])[name]
        change(
            other, "splits", f"{kind}_sha256", lambda _, paths=paths: [store.sha256(path) for path in paths]
        )
    found = differences(finished.graph.dataset, dataset(other))
    assert found == {
        "files": [
            {"chip_id": KEPT[0], "image": True, "mask": False},
            {"chip_id": KEPT[1], "image": False, "mask": True},
        ],
        "pixels": [
            {"chip_id": KEPT[0], "band": "middle B03", "pixels": 1, "largest": 700, "mean": 700.0},
            {"chip_id": KEPT[1], "band": "mask", "pixels": 1, "largest": None, "mean": None},
        ],
    }
    shown = diff(finished.graph.dataset, dataset(other))
    assert f"  {KEPT[0]} middle B03: 1 pixels, by 700 on average and 700 at most" in shown.output
    assert "pixels" not in differences(finished.graph.dataset, dataset(other), "--no-pixels")
    (other / layout.merged(KEPT[0], "chips_filtered")).write_bytes(b"no TIFF")
    shown = diff(finished.graph.dataset, dataset(other))
    assert shown.exit_code == 2
    assert "cannot be read" in shown.output


def test_another_scene_is_named_by_tile_and_position(finished: Finished, other: Path) -> None:
    scenes = finished.graph.table("selected_scenes", EAST).set_index("position")["scene_id"]
    (spare,) = (
        scene
        for scene in finished.graph.table("selected_scenes", EAST)["scene_id"]
        if f"{YEAR}{SPARE_DAY}" in scene
    )
    last = scenes["last"]
    frame = finished.graph.table("selected_scenes", EAST)
    swapped = {spare: "last", last: ""}
    positions = [
        swapped.get(scene, old) for scene, old in zip(frame["scene_id"], frame["position"], strict=True)
    ]
    change(other, "selected_scenes", "position", lambda _: positions, EAST)
    found = differences(finished.graph.dataset, dataset(other))
    assert found == {"scenes": [{"tile": EAST, "position": "last", "a": last, "b": spare}]}


def test_ids_and_scenes_that_were_published_are_compared_with_a_dataset(
    finished: Finished, tmp_path: Path
) -> None:
    splits = finished.graph.table("splits").set_index("chip_id")["split"]
    by_split = {split: sorted(splits.index[splits == split]) for split in ("train", "validation")}
    published = tmp_path / "published"
    published.mkdir()
    lines = [chip.removeprefix("chip_") for chip in by_split["train"]]
    (published / "train_ids.csv").write_text("\n".join(["ids", *lines]))
    moved, *others = by_split["validation"]
    (published / "training_data.txt").write_text("\n".join([*by_split["train"], moved]))
    (published / "validation_data.txt").write_text("\n".join([*others, GAPPY, "chip_001_002"]))
    found = differences(finished.graph.dataset, published)
    assert found["split"] == [{"chip_id": moved, "a": "validation", "b": "train"}]
    swapped = differences(published, finished.graph.dataset)
    (gappy,) = (
        finished.graph.table("filtered_chips", WEST).set_index("chip_id").loc[[GAPPY]].to_dict("records")
    )
    assert swapped["only_a"] == [
        {"chip_id": "chip_001_002", "split": "validation", "why": "no chip box"},
        {"chip_id": GAPPY, "split": "validation", "why": f"na_pixels {gappy['figure']:g}"},
    ]
    assert set(found) == {"split", "only_b"}
    shown = diff(finished.graph.dataset, published)
    for what in ("recipe", "scenes", "images and masks", "statistics", "class weights", "class shares"):
        assert f"not compared: {what}: not in B" in shown.output


def test_the_published_tables_themselves(real: Path, tmp_path: Path) -> None:
    tables = real / "tables"
    assert diff(tables, tables).exit_code == 0
    rows = pd.read_csv(tables / "chip_tracker.csv", dtype=str, keep_default_na=False)
    changed = rows.copy()
    # kept; rejected for clouds; without scenes
    kept, cloudy, without = (
        rows.index[rows["bad_pct_max"].map(test)][0]
        for test in (
            lambda text: text != "" and float(text) < 5,
            lambda text: text != "" and float(text) >= 5,
            lambda text: text == "",
        )
    )
    changed.loc[kept, "bad_pct_max"] = "5.0"
    changed.loc[cloudy, "bad_pct_max"] = "4.999"
    changed.loc[without, ["bad_pct_max", "na_count"]] = ["0", "0"]
    other = tmp_path / "other"
    other.mkdir()
    changed.to_csv(other / "chip_tracker.csv", index=False)
    found = json.loads(diff(tables, other, "--json").stdout)
    # counted by hand in the table: 2,000 rows, 441 with 5 % or more, 42 without figures
    assert (found["a"]["chips"], found["b"]["chips"], found["chips_in_both"]) == (1517, 1518, 1516)
    rows_of = found["differences"]
    assert rows_of["only_a"] == [{"chip_id": rows["chip_id"][kept], "split": "", "why": "bad_quality 5"}]
    percent = float(rows["bad_pct_max"][cloudy])
    whys = {rows["chip_id"][cloudy]: f"bad_quality {percent:.6g}", rows["chip_id"][without]: "too_few_scenes"}
    assert {row["chip_id"]: row["why"] for row in rows_of["only_b"]} == whys
    assert "scenes: not in B" in found["not_compared"]


@pytest.mark.parametrize(
    ("name", "text", "error"),
    [
        ("notes.txt", "hello", "is not a dataset"),
        ("chip_tracker.csv", "a,b\n1,2\n", "has no column chip_id"),
        ("train_ids.csv", "ids\n\x1b[31mred\n", "has no chip id"),
        (
            "chip_tracker.csv",
            "chip_id,bad_pct_max,na_count,first_image_date,second_image_date,third_image_date\n\x1b[2J,1,1,a,b,c\n",
            "is not a chip id",
        ),
        (
            "chip_tracker.csv",
            "chip_id,bad_pct_max,na_count,first_image_date,second_image_date,third_image_date\nchip_001_001,\x1b,1,a,b,c\n",
            "which is not a number",
        ),
    ],
)
def test_what_cannot_be_compared_is_an_error(
    finished: Finished, tmp_path: Path, name: str, text: str, error: str
) -> None:
    (tmp_path / name).write_text(text)
    shown = diff(finished.graph.dataset, tmp_path)
    assert shown.exit_code == 2
    assert error in shown.output
    assert "\x1b" not in shown.output.replace("\x1b[31merror", "").replace("\x1b[0m", "")


def test_a_place_without_a_dataset_is_an_error(finished: Finished, tmp_path: Path) -> None:
    empty = tmp_path / "training_datasets" / "small" / "2022"
    empty.mkdir(parents=True)
    for place in (tmp_path / "nothing", "small/1999", empty, finished.graph.root):
        shown = diff(finished.graph.dataset, place, "--data", str(finished.graph.root))
        assert shown.exit_code == 2, shown.output
        assert "Traceback" not in shown.output


def test_hostile_texts_are_shown_escaped(finished: Finished, other: Path) -> None:
    file = dataset(other) / "rejected_chips.csv"
    gone = KEPT[0]
    file.write_text(file.read_text() + f'{gone},{WEST},"\x1b[31m<b>\nred\u202e",1,\n')
    store, name = DatasetStore(root=str(other)), Layout("small", YEAR).table("splits")
    frame = read_table(store, name, SCHEMAS["splits"])
    write_table(store, name, frame[frame["chip_id"] != gone], SCHEMAS["splits"], {})
    shown = diff(finished.graph.dataset, dataset(other))
    assert r"\x1b[31m<b>\nred\u202e 1" in shown.output
    assert "\x1b" not in shown.output
    assert "\u202e" not in shown.output
    raw = diff(finished.graph.dataset, dataset(other), "--json").stdout
    assert raw.isascii()
