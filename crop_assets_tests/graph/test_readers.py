"""The files that readers open: folders and lists by split, chips.parquet, exports, and the check of all of them."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import rasterio
import yaml

from crop_assets.classes import CLASS_COLUMNS
from crop_assets.hls import REFLECTANCE_BANDS
from crop_assets.layout import Layout
from crop_assets.readers.contract import contract_problems
from crop_assets.schemas import READER_LAYOUT
from crop_assets_tests.small_world import DESCRIPTION, KEPT, TILES, YEAR, Finished, Graph, lines, recipe
from resources.store import DatasetStore
from resources.tables import read_table

FOLDERS = {"train": "training_chips", "validation": "validation_chips", "test": "test_chips"}
LISTS = {"train": "training_data.txt", "validation": "validation_data.txt", "test": "test_data.txt"}
CHECK = ("reader_layout", "readers_find_what_the_tables_say")


def require_layout(graph: Graph) -> dict[str, list[str]]:
    """The chips of each split by the table; the folders and lists must have these and no others."""
    table = graph.table("splits")
    found = {}
    for split, folder in FOLDERS.items():
        chips = sorted(table.loc[table["split"] == split, "chip_id"])
        names = sorted(path.name for path in (graph.dataset / folder).glob("*"))
        assert names == sorted(f"{chip}{end}" for chip in chips for end in (".mask.tif", "_merged.tif"))
        for name in names:
            assert (graph.dataset / folder / name).read_bytes() == (
                graph.dataset / "chips_filtered" / name
            ).read_bytes()
        if not chips and split == "test":
            assert not (graph.dataset / LISTS[split]).exists()
            continue
        assert (graph.dataset / LISTS[split]).read_text() == "".join(f"{chip}\n" for chip in chips)
        found[split] = chips
    assert lines(graph, "train_data.txt") == found["train"]
    return found


def test_folders_and_lists_are_those_of_the_splits_and_take_no_room(finished: Finished) -> None:
    found = require_layout(finished.graph)
    assert sorted(found["train"] + found["validation"]) == KEPT
    assert min(map(len, found.values())) > 0
    for chip in found["train"]:
        link = finished.graph.dataset / "training_chips" / f"{chip}_merged.tif"
        assert link.samefile(finished.graph.dataset / "chips_filtered" / link.name)
    check = finished.runs["dataset_job"].checks[CHECK]
    assert check.passed
    assert check.metadata["problem_count"].value == 0


def test_configurations_have_the_statistics_and_weights_of_the_tables(finished: Finished) -> None:
    graph = finished.graph
    stats, weights = graph.table("band_stats"), graph.table("class_weights")
    clark = yaml.safe_load((graph.dataset / "clark_config.yaml").read_text())
    for name in ("min", "max", "mean", "std"):
        assert clark["global_stats"][name] == pytest.approx(list(stats[name]), abs=1e-6)
    assert clark["criterion"]["weight"] == pytest.approx(list(weights["weight"][1:]))
    assert clark["test_csv_path"] == "val_ids.csv"
    for name in ("terratorch.yaml", "terratorch_tl.yaml"):
        model = yaml.safe_load((graph.dataset / name).read_text())["model"]["init_args"]
        assert model["class_weights"] == clark["criterion"]["weight"]
    assert (graph.dataset / "crop_datamodule.py").is_file()


def test_another_split_and_fewer_chips_leave_nothing_over(finished_graph: Graph) -> None:
    before = require_layout(finished_graph)
    blocks = {"split": "blocks", "block_chips": 2, "train_share": 0.5, "test_share": 0.25, "seed": 42}
    for job in ("labels_job", "tiles_job", "dataset_job"):
        assert finished_graph.run(job, recipe=recipe(**blocks)).success
    assert set(require_layout(finished_graph)) == set(FOLDERS)
    clark = yaml.safe_load((finished_graph.dataset / "clark_config.yaml").read_text())
    assert clark["test_csv_path"] == "test_ids.csv"

    # a chip with some cloud is no longer kept
    for job in ("labels_job", "tiles_job", "dataset_job"):
        assert finished_graph.run(job, recipe=recipe(max_bad_percent=0)).success
    after = require_layout(finished_graph)
    gone = {*before["train"], *before["validation"]} - {*after["train"], *after["validation"]}
    assert gone
    left = [path for path in finished_graph.dataset.rglob("*") if any(chip in path.name for chip in gone)]
    assert {path.parent.name for path in left} <= {"chips", "chips_fmask"}
    assert not gone & set(gpd.read_parquet(finished_graph.dataset / "chips.parquet")["chip_id"])
    assert not gone & set(pd.read_csv(finished_graph.dataset / "chips_df.csv")["chip_id"])


def test_a_file_that_is_missing_and_one_too_many_are_put_right(finished_graph: Graph) -> None:
    chip = require_layout(finished_graph)["train"][0]
    (finished_graph.dataset / "training_chips" / f"{chip}.mask.tif").unlink()
    # readers that pair by order would get the wrong mask with every later image
    (finished_graph.dataset / "training_chips" / "chip_000_000_merged.tif").write_bytes(b"another")
    run = finished_graph.run("dataset_job")
    assert run.success
    assert {asset for asset, _ in run.redone} == {"reader_layout"}
    require_layout(finished_graph)
    assert run.checks[CHECK].passed


class Dies(Exception):
    pass


class FailingStore(DatasetStore):
    def copy_file(self, source: str, name: str) -> None:
        if len(list((Path(self.root) / name).parent.glob("*"))) >= 3:
            raise Dies
        super().copy_file(source, name)


def test_a_run_that_dies_amid_the_folders_leaves_no_list(labelled_graph: Graph) -> None:
    assert labelled_graph.run("tiles_job").success
    run = labelled_graph.run("dataset_job", store=FailingStore(root=str(labelled_graph.root)))
    assert not run.success
    assert list((labelled_graph.dataset / "training_chips").iterdir())
    assert not list(labelled_graph.dataset.glob("*_data.txt"))
    assert labelled_graph.run("dataset_job").success
    require_layout(labelled_graph)


def test_a_layout_of_an_earlier_split_is_complete_until_the_new_one_is(finished_graph: Graph) -> None:
    before = require_layout(finished_graph)
    store = FailingStore(root=str(finished_graph.root))
    assert not finished_graph.run("dataset_job", store=store, recipe=recipe(seed=3)).success
    assert not list(finished_graph.dataset.glob("*_data.txt"))
    assert finished_graph.run("dataset_job", recipe=recipe(seed=3)).success
    assert require_layout(finished_graph) != before


def test_one_line_reads_all_that_is_known_of_the_chips(finished: Finished) -> None:
    graph = finished.graph
    path = graph.dataset / "chips.parquet"
    found = gpd.read_parquet(path)
    assert list(found["chip_id"]) == KEPT
    assert found.crs == "EPSG:5070"
    assert json.loads(pq.read_schema(path).metadata[b"geo"])["version"] == "1.1.0"
    splits = graph.table("splits").set_index("chip_id")
    cids = pd.concat([graph.table("band_cids", tile) for tile in TILES])
    by_file = cids.set_index("file")["cid"]
    quality = pd.concat([graph.table("filtered_chips", tile) for tile in TILES]).set_index("chip_id")
    for chip in found.to_dict("records"):
        of_split = splits.loc[chip["chip_id"]]
        assert (chip["split"], chip["tile"]) == (of_split["split"], of_split["tile"])
        with rasterio.open(graph.dataset / chip["image"]) as raster:
            assert chip["geometry"].bounds == tuple(raster.bounds)
            dates = [text.split("_")[0] for text in raster.descriptions[::6]]
        for position, date in zip(("first", "middle", "last"), dates, strict=True):
            assert str(chip[f"{position}_date"]) == date
            scene = chip[f"{position}_scene"]
            assert scene.split(".")[3].startswith(pd.Timestamp(date).strftime("%Y%j"))
            expected = [by_file[f"{scene}.{band}.tif"] for band in REFLECTANCE_BANDS]
            assert list(chip[f"{position}_cids"]) == expected
            assert chip[f"{position}_verified"] is True
            assert chip[f"bad_percent_{position}"] == quality.loc[chip["chip_id"], f"bad_percent_{position}"]
        with rasterio.open(graph.dataset / chip["mask"]) as raster:
            counts = np.bincount(raster.read(1).ravel(), minlength=14)
        assert [chip[f"{column}_share"] for column in CLASS_COLUMNS] == pytest.approx(counts / 224**2)
        for kind in ("image", "mask"):
            data = (graph.dataset / chip[kind]).read_bytes()
            assert chip[f"{kind}_sha256"] == hashlib.sha256(data).hexdigest()
    release = graph.table("cdl").iloc[0]
    assert set(found["cdl_file"]) == {release["file"]} and set(found["cdl_sha256"]) == {release["sha256"]}


def _replace(path: Path, data: bytes) -> None:
    # the file may be a link to one of a store that other tests read
    path.unlink()
    path.write_bytes(data)


def _rewrite(path: Path, change: Callable[[np.ndarray], np.ndarray], **profile: Any) -> None:
    with rasterio.open(path) as raster:
        values, known, names = raster.read(), raster.profile, raster.descriptions
    path.unlink()
    with rasterio.open(path, "w", **{**known, **profile}) as raster:
        raster.write(change(values))
        raster.descriptions = names


def _text(path: Path, change: Callable[[str], str]) -> None:
    text = path.read_text()
    assert change(text) != text
    _replace(path, change(text).encode())


def _swap_places(path: Path) -> None:
    facts = pd.read_csv(path)
    facts[["lon", "lat"]] = facts[["lat", "lon"]]
    _replace(path, facts.to_csv(index=False).encode())


def _another_order(path: Path) -> None:
    with rasterio.open(path) as raster:
        values, profile, names = raster.read(), raster.profile, raster.descriptions
    order = np.arange(18).reshape(3, 6).T.ravel()
    path.unlink()
    with rasterio.open(path, "w", **profile) as raster:
        raster.write(values[order])
        raster.descriptions = [names[at] for at in order]


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "a blank line": (
        lambda root: _text(root / "training_data.txt", lambda text: text + "\n"),
        "lines, which are not",
    ),
    "a list that lacks a chip": (
        lambda root: _text(root / "validation_data.txt", lambda text: text.split("\n", 1)[1]),
        "validation_data.txt has",
    ),
    "no list": (lambda root: (root / "training_data.txt").unlink(), "FileNotFoundError"),
    "a missing mask": (
        lambda root: next((root / "training_chips").glob("*.mask.tif")).unlink(),
        "masks, which are not those",
    ),
    "an image too many": (
        lambda root: (root / "validation_chips" / "chip_001_001_merged.tif").write_bytes(b""),
        "images, which are not those",
    ),
    "longitude for latitude": (lambda root: _swap_places(root / "chips_df.csv"), "has latitude"),
    "dates that become 1970": (
        lambda root: _text(root / "chips_df.csv", lambda text: text.replace(f"{YEAR}-03-13", f"{YEAR}0313")),
        "ValueError",
    ),
    "ids without chip_": (
        lambda root: _text(root / "chips_df.csv", lambda text: text.replace("\nchip_", "\n")),
        "KeyError",
    ),
    "a chip in two rows": (
        lambda root: _text(root / "chips_df.csv", lambda text: text + text.splitlines()[-1] + "\n"),
        "duplicate",
    ),
    "five means": (
        lambda root: _text(root / "means.txt", lambda text: text.split("\n", 1)[1]),
        "ValueError",
    ),
    "other means": (
        lambda root: _text(root / "means.txt", lambda text: "1" + text),
        "normalised by means.txt and stds.txt",
    ),
    "a mask with nodata 0": (
        lambda root: _rewrite(
            next((root / "training_chips").glob("*.mask.tif")), lambda values: values, nodata=0
        ),
        "has the nodata value 0",
    ),
    "a mask beyond the classes": (
        lambda root: _rewrite(
            next((root / "validation_chips").glob("*.mask.tif")), lambda values: values + 14
        ),
        "values up to",
    ),
    "bands before dates": (
        lambda root: _another_order(next((root / "training_chips").glob("*_merged.tif"))),
        "its bands by band and date",
    ),
    "an image that cannot be read": (
        lambda root: _replace(next((root / "training_chips").glob("*_merged.tif")), b"no raster"),
        "Error: ",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_the_check_names_what_readers_would_not_notice(finished: Finished, tmp_path: Path, what: str) -> None:
    shutil.copytree(finished.graph.root, tmp_path / "store")
    store, layout = DatasetStore(root=str(tmp_path / "store")), Layout("small", YEAR)
    chips = read_table(store, layout.table("reader_layout"), READER_LAYOUT)
    assert contract_problems(store, layout, chips, ["train"]) == []
    change, words = BROKEN[what]
    change(tmp_path / "store" / layout.root)
    problems = contract_problems(store, layout, chips, ["train"])
    assert problems
    assert any(words in problem for problem in problems), problems


def test_a_split_without_chips_is_named_since_readers_open_it_without_an_error(finished_graph: Graph) -> None:
    run = finished_graph.run("dataset_job", recipe=recipe(train_share=0.999))
    assert run.success
    assert (finished_graph.dataset / "validation_data.txt").read_text() == ""
    check = run.checks[CHECK]
    assert not check.passed
    assert "no chip is for validation" in str(check.metadata["problems"].value)


def test_exports_have_every_pixel_and_go_when_the_recipe_no_longer_wants_them(finished_graph: Graph) -> None:
    assert finished_graph.table("exports").empty
    assert not (finished_graph.dataset / "exports").exists()
    run = finished_graph.run("dataset_job", recipe=recipe(exports=["parquet", "npy"]))
    assert run.success, run.failure
    assert {asset for asset, _ in run.redone} == {"exports", *DESCRIPTION}
    folder = finished_graph.dataset / "exports"
    index = gpd.read_parquet(finished_graph.dataset / "chips.parquet").set_index("chip_id")
    for split, chips in index.groupby("split"):
        rows = pq.read_table(folder / f"{split}-00000-of-00001.parquet").to_pylist()
        assert [row["chip_id"] for row in rows] == list(chips.index)
        images, masks = (
            np.load(folder / f"{split}_{kind}.npy", mmap_mode="r") for kind in ("images", "masks")
        )
        assert (images.shape, images.dtype) == ((len(chips), 18, 224, 224), np.int16)
        assert (masks.shape, masks.dtype) == ((len(chips), 224, 224), np.uint8)
        assert (folder / f"{split}_ids.txt").read_text().split() == list(chips.index)
        for row, image, mask in zip(rows, images, masks, strict=True):
            known = chips.loc[row["chip_id"]]
            for kind, array in (("image", image), ("mask", mask)):
                assert row[kind] == (finished_graph.dataset / known[kind]).read_bytes()
                with rasterio.MemoryFile(row[kind]) as file, file.open() as raster:
                    np.testing.assert_array_equal(np.squeeze(raster.read()), array)
            assert (row["tile"], row["first_date"]) == (known["tile"], known["first_date"])
    listed = finished_graph.table("exports")
    assert sorted(listed["file"]) == sorted(f"exports/{path.name}" for path in folder.iterdir())

    assert finished_graph.run("dataset_job", recipe=recipe(exports=["npy"])).success
    assert {path.suffix for path in folder.iterdir()} == {".npy", ".txt"}
    assert finished_graph.run("dataset_job").success
    assert not list(folder.iterdir())


def test_large_splits_are_exported_as_several_files(
    finished_graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crop_assets.readers.assets.CHIPS_PER_FILE", 3)
    assert finished_graph.run("dataset_job", recipe=recipe(exports=["parquet"])).success
    chips = require_layout(finished_graph)["train"]
    files = sorted((finished_graph.dataset / "exports").glob("train-*"))
    assert [file.name for file in files] == [
        f"train-{n:05d}-of-{len(files):05d}.parquet" for n in range(-(-len(chips) // 3))
    ]
    assert [id for file in files for id in pq.read_table(file)["chip_id"].to_pylist()] == chips
