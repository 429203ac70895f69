from pathlib import Path

import pytest
from typer.testing import CliRunner

from crop_assets.cli import app
from crop_assets.errors import InputError
from crop_assets.layout import Layout
from crop_assets.stored import dataset_years, stored_datasets, years_with
from resources.store import DatasetStore


@pytest.fixture
def store(tmp_path: Path) -> DatasetStore:
    """A store of two datasets, of which one has two years, and things that are none."""
    store = DatasetStore(root=str(tmp_path / "project" / "data"))
    for dataset, year, asset in (
        ("kansas", 2021, "tile_map"),
        ("kansas", 2022, "tile_map"),
        ("iowa-2020", 2020, "candidate_chips"),
    ):
        store.write_bytes(Layout(dataset, year).table(asset), b"")
    store.write_bytes("training_datasets/kansas/2023/note.txt", b"no tables yet")
    store.write_bytes("training_datasets/kansas/old/note.txt", b"no year")
    store.write_bytes("training_datasets/empty/note.txt", b"no year either")
    for name in ("02022", "٢٠٢٢", "²022"):
        store.write_bytes(f"training_datasets/kansas/{name}/note.txt", b"no year's folder")
    return store


def test_datasets_and_years_are_those_that_have_a_folder(store: DatasetStore) -> None:
    assert stored_datasets(store) == {"iowa-2020": [2020], "kansas": [2021, 2022, 2023]}
    assert dataset_years(store, "nowhere") == []
    assert stored_datasets(DatasetStore(root=f"{store.root}/nowhere")) == {}


def test_the_years_with_a_table_are_listed(store: DatasetStore) -> None:
    assert years_with(store, "kansas", "tile_map", None) == [2021, 2022]
    assert years_with(store, "kansas", "tile_map", 2021) == [2021]
    for dataset, year in (("kansas", 2023), ("iowa-2020", None)):
        with pytest.raises(InputError, match=f"no tile_map of the dataset {dataset}.*; or launch labels_job"):
            years_with(store, dataset, "tile_map", year)


@pytest.mark.parametrize("command", ["verify", "plan", "aoi"])
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], r"It has: iowa-2020 of 2020; kansas of 2021, 2022, 2023. Give --dataset, or --data"),
        (["--dataset", "Kansas"], "dataset Kansas (did you mean 'kansas'?). It has: iowa-2020"),
        (["--dataset", "kanas"], "dataset kanas (did you mean 'kansas'?). It has: iowa-2020"),
        (["--dataset", "kansas", "--year", "2012"], "kansas of 2012. It has: iowa-2020 of 2020; kansas of"),
    ],
)
def test_a_command_lists_the_available_datasets(
    store: DatasetStore, command: str, arguments: list[str], told: str
) -> None:
    shown = CliRunner().invoke(app, [command, "--data", store.root, *arguments])
    assert shown.exit_code == 2
    assert shown.stderr.startswith(f"error: the store {store.root} has no ")
    assert told in shown.stderr


@pytest.mark.parametrize("command", ["verify", "plan", "aoi"])
def test_a_nearby_folder_with_datasets_is_suggested(
    store: DatasetStore, command: str, tmp_path: Path
) -> None:
    for place in (Path(store.root).parent, Path(store.root) / "training_datasets" / "kansas"):
        shown = CliRunner().invoke(app, [command, "--data", str(place), "--dataset", "kansas"])
        assert shown.exit_code == 2
        assert f"and no other dataset either; --data {store.root} has datasets" in shown.stderr
    far_below = Path(store.root) / "training_datasets" / "kansas" / "2022"
    for place in (tmp_path / "elsewhere", far_below):
        shown = CliRunner().invoke(app, [command, "--data", str(place)])
        assert "and no other dataset either; give --data or set CROP_ASSETS_DATA" in shown.stderr


def test_the_only_dataset_is_suggested(tmp_path: Path) -> None:
    DatasetStore(root=str(tmp_path)).write_bytes(Layout("iowa", 2020).table("splits"), b"")
    shown = CliRunner().invoke(app, ["verify", "--data", str(tmp_path)])
    assert "It has: iowa of 2020. Give --dataset iowa, or --data" in shown.stderr


def test_a_recipe_can_be_an_option(
    store: DatasetStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("dataset: ohio\n")
    monkeypatch.setenv("CROP_ASSETS_RECIPE", "nowhere.yaml")
    for command in ("verify", "plan", "aoi"):
        shown = CliRunner().invoke(app, [command, "--data", store.root, "--recipe", str(recipe)])
        assert "dataset ohio" in shown.stderr
        assert "nowhere.yaml: no such file" in CliRunner().invoke(app, [command, "--data", store.root]).stderr
