import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from crop_assets.cli import app
from crop_assets.description import assets
from crop_assets.description.files import file_problems
from crop_assets.recipe import DatasetRecipe
from crop_assets_tests.small_world import EAST, SOUTH, WEST, Finished, Graph, recipe
from resources.machine import Machine
from resources.store import DatasetStore

OTHERS = ("tables/", "tiles/", "tiles_reprojected/", "chips/", "chips_fmask/", "pictures/")
"""What is in the folder of a dataset and no part of it."""
DESCRIPTIONS = ("README.md", "croissant.json", "files.csv", "stac/")
"""What is made from the table, and has tables of its own."""


def on_disk(dataset: Path) -> dict[str, bytes]:
    names = {path.relative_to(dataset).as_posix(): path for path in dataset.rglob("*") if path.is_file()}
    return {
        name: path.read_bytes()
        for name, path in names.items()
        if not name.startswith((*OTHERS, *DESCRIPTIONS))
        and not (name.startswith("band_stats/") and name.endswith(".npy"))
    }


def test_the_table_has_each_file_of_the_dataset(finished: Finished) -> None:
    table = finished.graph.table("dataset_files")
    files = on_disk(finished.graph.dataset)
    assert dict(zip(table["file"], table["sha256"], strict=True)) == {
        name: hashlib.sha256(data).hexdigest() for name, data in files.items()
    }
    assert dict(zip(table["file"], table["bytes"], strict=True)) == {
        name: len(data) for name, data in files.items()
    }
    assert list(table["file"]) == sorted(files)


def test_dataset_json_has_the_fingerprint(finished: Finished) -> None:
    found = json.loads((finished.graph.dataset / "dataset.json").read_text())
    (row,) = finished.graph.table("fingerprint").to_dict("records")
    assert found | row == found
    assert found["recipe"] == json.loads(json.dumps(recipe().values()))


def one_of_each_kind(graph: Graph) -> list[str]:
    table = graph.table("dataset_files")
    kinds = table.assign(folder=table["file"].str.extract(r"^(?:(.*)/)?", expand=False).fillna(""))
    return list(kinds.groupby(["stage", "folder", "media_type"])["file"].first())


def problems(run: object) -> str:
    check = run.checks["dataset_files", "files_are_as_written"]  # type: ignore[attr-defined]
    return "" if check.passed else str(check.metadata["problems"].value)


def verified(graph: Graph) -> tuple[int, str]:
    shown = CliRunner().invoke(app, ["verify", "--data", str(graph.root), "--dataset", "small"])
    return shown.exit_code, shown.output


def add_exports(graph: Graph) -> DatasetRecipe:
    """A recipe with exports, of which the dataset has been made."""
    more = recipe(exports=["parquet", "npy"])
    run = graph.run("dataset_job", recipe=more)
    assert run.success, run.failure
    assert problems(run) == ""
    assert verified(graph)[0] == 0
    return more


def test_an_edited_file_of_each_kind_is_named(finished_graph: Graph) -> None:
    more = add_exports(finished_graph)
    names = one_of_each_kind(finished_graph)
    assert {Path(name).suffix for name in names} > {".tif", ".csv", ".npy", ".png", ".yaml", ".parquet"}
    for name in names:
        path = finished_graph.dataset / name
        data = path.read_bytes()
        # as a file of its own, where it is linked to another
        path.unlink()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    code, shown = verified(finished_graph)
    assert code == 1
    assert [name for name in names if f"/{name}: has changed since" not in shown] == []
    found = shown_by_check(finished_graph, names)
    assert found == dict.fromkeys(names, "changed")
    # and all are made again
    assert finished_graph.run("labels_job", recipe=more).success
    assert finished_graph.run("tiles_job", recipe=more).success
    run = finished_graph.run("dataset_job", recipe=more)
    assert run.success, run.failure
    assert problems(run) == ""
    assert verified(finished_graph)[0] == 0


def test_a_missing_file_of_each_kind_is_named(finished_graph: Graph) -> None:
    add_exports(finished_graph)
    names = one_of_each_kind(finished_graph)
    for name in names:
        (finished_graph.dataset / name).unlink()
    code, shown = verified(finished_graph)
    assert code == 1
    assert [name for name in names if f"/{name}: is missing" not in shown] == []
    assert shown_by_check(finished_graph, names) == dict.fromkeys(names, "missing")


def shown_by_check(graph: Graph, names: list[str]) -> dict[str, str]:
    """What is wrong with each file by the check's function; its metadata have 20."""
    with ThreadPoolExecutor(2) as pool:
        store = DatasetStore(root=str(graph.root))
        found = dict(file_problems(store, graph.layout, graph.table("dataset_files"), pool))
    words = ("missing", "changed")
    return {name: next(word for word in words if word in problem) for name, problem in found.items()}


def test_the_check_names_a_file_of_a_run_that_made_nothing(finished_graph: Graph) -> None:
    (finished_graph.dataset / "train_data.txt").unlink()
    (finished_graph.dataset / "training_chips" / "chip_001_001_merged.tif").write_bytes(b"II")
    run = finished_graph.run("dataset_job", stages=["dataset_files"])
    assert run.success, run.failure
    assert run.redone == set()
    assert "train_data.txt" in problems(run)
    assert "training_chips/chip_001_001_merged.tif" in problems(run)


@pytest.mark.parametrize(
    "folder", ["chips_filtered", "training_chips", "validation_chips", "test_chips", "exports"]
)
def test_a_file_that_belongs_to_no_asset_is_named(finished_graph: Graph, folder: str) -> None:
    path = finished_graph.dataset / folder / "chip_001_001_merged.tif"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"II")
    code, shown = verified(finished_graph)
    assert code == 1
    assert f"{folder}/chip_001_001_merged.tif: belongs to no asset" in shown
    assert "1 WRONG" in shown


@pytest.mark.parametrize("change", ["edited", "deleted"])
def test_a_description_that_is_not_as_written_is_named(finished_graph: Graph, change: str) -> None:
    dataset = finished_graph.dataset
    items = sorted(path.relative_to(dataset).as_posix() for path in (dataset / "stac/items").iterdir())
    names = [
        "README.md",
        "croissant.json",
        "files.csv",
        "stac/collection.json",
        "stac/items.parquet",
        items[0],
    ]
    before = {name: (dataset / name).read_bytes() for name in names}
    for name, data in before.items():
        if change == "edited":
            (dataset / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        else:
            (dataset / name).unlink()
    word = "has changed since" if change == "edited" else "is missing"
    code, shown = verified(finished_graph)
    assert code == 1
    assert [name for name in names if f"/{name}: {word}" not in shown] == []
    with ThreadPoolExecutor(1) as pool:
        store, layout = DatasetStore(root=str(finished_graph.root)), finished_graph.layout
        tables = [finished_graph.table(name).assign(stage=name) for name in assets.DESCRIPTIONS]
        found = dict(file_problems(store, layout, pd.concat(tables), pool))
    assert set(found) == set(names)
    assert all(word in problem for problem in found.values())
    # and all are made again
    run = finished_graph.run("dataset_job")
    assert run.success, run.failure
    assert run.checks["croissant", "descriptions_are_as_written"].passed
    assert {name: (dataset / name).read_bytes() for name in names} == before
    assert verified(finished_graph)[0] == 0


def test_the_check_of_the_descriptions_names_a_file_of_a_run_that_made_nothing(finished_graph: Graph) -> None:
    with (finished_graph.dataset / "README.md").open("a") as file:
        file.write("99 chips\n")
    run = finished_graph.run("dataset_job", stages=["croissant"])
    check = run.checks["croissant", "descriptions_are_as_written"]
    assert not check.passed
    assert "README.md" in str(check.metadata["problems"].value)


def test_a_file_that_is_not_there_is_not_listed(finished_graph: Graph) -> None:
    (finished_graph.dataset / "class_weights.txt").unlink()
    (finished_graph.root / finished_graph.layout.table("dataset_files")).unlink()
    run = finished_graph.run("dataset_job", stages=["dataset_files"])
    assert not run.success
    assert "class_weights.txt is missing; materialize class_weights again" in run.failure


def test_the_fingerprint_does_not_depend_on_how_bands_were_fetched(
    graph: Graph, three_tiles: dict[str, Any]
) -> None:
    """Three tiles, of which two have scenes, from an empty store."""
    found = {}
    for fetch in ("blocks", "files"):
        changed = three_tiles | {"recipe": three_tiles["recipe"].model_copy(update={"fetch": fetch})}
        other = Graph(
            graph.root / fetch,
            graph.instance,
            graph.resources | {"store": DatasetStore(root=str(graph.root / fetch))},
        )
        assert other.run("labels_job", **changed).success
        assert other.run("tiles_job", tiles=[SOUTH, WEST, EAST], **changed).success
        run = other.run("dataset_job", **changed)
        assert run.success, run.failure
        assert problems(run) == ""
        (found[fetch],) = other.table("fingerprint").to_dict("records")
        blocks = other.table("downloaded_bands", WEST)["blocks"]
        assert (blocks > 0).any() == (fetch == "blocks")
        table, files = other.table("dataset_files"), on_disk(other.dataset)
        assert dict(zip(table["file"], table["bytes"], strict=True)) == {
            n: len(data) for n, data in files.items()
        }
    for name in ("inputs_sha256", "outputs_sha256"):
        assert found["blocks"][name] == found["files"][name]
    for name in ("recipe_sha256", "fingerprint"):
        assert found["blocks"][name] != found["files"][name]
    # two scenes' worth of tiles with three scenes of seven files, the raster, the grid, and the chip boxes
    assert found["files"]["inputs"] == 2 * 3 * 7 + 3


def test_another_machine_and_order_make_the_same_fingerprint(graph: Graph, finished: Finished) -> None:
    assert graph.run("labels_job").success
    for tile in (EAST, WEST):
        assert graph.run("tiles_job", tiles=[tile], machine=Machine(workers=1)).success
    assert graph.run("dataset_job", machine=Machine(workers=1)).success
    for table in ("fingerprint", "dataset_files"):
        pd.testing.assert_frame_equal(graph.table(table), finished.graph.table(table))
