"""What a dataset says of itself, from an empty store: the card's figures, names and lines, and the metadata."""

import contextlib
import hashlib
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import rasterio

from crop_assets.description.assets import croissant, dataset_card
from crop_assets.description.facts import CARD, CROISSANT, FILES, CardTables, media_type
from crop_assets.graph.stage import AllTiles, YearRun
from crop_assets.recipe import DatasetRecipe
from crop_assets_tests.description.markdown import Card
from crop_assets_tests.description.test_card import require_figures
from crop_assets_tests.description.test_croissant import opened, pytestmark, records, require_chips
from crop_assets_tests.small_world import (
    EAST,
    SOUTH,
    THREE_TILES,
    WEST,
    YEAR,
    Graph,
    Served,
    Setting,
    digests,
    new_graph,
    recipe,
)
from resources.store import DatasetStore

__all__ = ["pytestmark"]
OF_OTHERS = {"tables", "tiles", "tiles_reprojected", "chips", "chips_fmask", "pictures"}
"""Folders that are not part of what a recipient gets."""
WRITTEN = (CARD, FILES, CROISSANT)
ALL_TILES = (WEST, EAST, SOUTH)


@dataclass(frozen=True)
class Described:
    graph: Graph
    tables: CardTables
    recipe: DatasetRecipe

    @property
    def folder(self) -> Path:
        return self.graph.dataset

    @property
    def card(self) -> Card:
        return Card.of(self.folder)


def described(graph: Graph, of: DatasetRecipe, tiles: tuple[str, ...]) -> Described:
    """Make the files that describe a finished dataset."""
    names = sorted(
        path.relative_to(graph.dataset).as_posix()
        for path in graph.dataset.rglob("*")
        if path.is_file() and path.relative_to(graph.dataset).parts[0] not in {*OF_OTHERS, *WRITTEN}
    )
    kinds = {".tif": "image/tiff", ".png": "image/png"}
    files = pd.DataFrame({"file": names, "stage": "x"}).assign(
        media_type=[kinds.get(Path(name).suffix, media_type(name)) for name in names],
        bytes=[(graph.dataset / name).stat().st_size for name in names],
        sha256=[hashlib.sha256((graph.dataset / name).read_bytes()).hexdigest() for name in names],
    )
    chips = list(graph.table("tile_map")["chip_id"])
    labels = pd.DataFrame({"chip_id": chips, "purity_percent": np.linspace(70, 99, len(chips))})
    hashes = ["fingerprint", "recipe_sha256", "inputs_sha256", "outputs_sha256"]
    fingerprint = pd.DataFrame([[*"abcd", 3, len(files)]], columns=[*hashes, "inputs", "outputs"])
    fingerprint[hashes] = fingerprint[hashes] * 64

    def of_tiles(asset: str) -> AllTiles:
        frames = [graph.table(asset, tile).assign(tile=tile) for tile in tiles]
        return AllTiles(pd.concat(frames, ignore_index=True), {}, {})

    tables: dict[str, Any] = {
        "fingerprint": fingerprint,
        "dataset_files": files,
        "stac_catalogue": pd.DataFrame(columns=["file", "kind", "bytes", "sha256"]),
        **{name: graph.table(name) for name in ("cdl", "splits", "chip_index", "class_distribution")},
    }
    of_card = tables | {
        **{name: graph.table(name) for name in ("tile_map", "class_weights")},
        "label_quality": labels.assign(confidence_percent=float("nan")),
        "filtered_chips": of_tiles("filtered_chips"),
        "downloaded_bands": of_tiles("downloaded_bands"),
    }
    warnings: list[str] = []
    run = YearRun(DatasetStore(root=str(graph.root)), of, warnings.append, warnings.append, YEAR)
    made = dataset_card(run, **of_card)
    metadata = croissant(run, **tables, dataset_card=made.frame, downloaded_bands=of_card["downloaded_bands"])
    for one in (made, metadata):
        for row in one.frame.itertuples():
            data = (graph.dataset / str(row.file)).read_bytes()
            assert (row.bytes, row.sha256) == (len(data), hashlib.sha256(data).hexdigest())
            assert dict(one.files)[graph.layout.file(str(row.file))] == row.sha256  # type: ignore[arg-type]
    frames = {name: one.frame if isinstance(one, AllTiles) else one for name, one in of_card.items()}
    return Described(graph, CardTables(**frames, missing={}), of)


@pytest.fixture(scope="module")
def three(
    setting: Setting, served: Served, three_tiles: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Described]:
    """A dataset of three tiles with all exports, of which one tile has no scenes, from an empty store."""
    chosen = three_tiles["recipe"].model_copy(update={"exports": ["parquet", "npy"]})
    resources = three_tiles | {"recipe": chosen}
    with new_graph(tmp_path_factory.mktemp("described"), setting, served.server) as graph:
        for job in ("labels_job", "tiles_job", "dataset_job"):
            run = graph.run(job, tiles=sorted(ALL_TILES), **resources)
            assert run.success, run.failure
        yield described(graph, chosen, ALL_TILES)


def test_every_figure_of_the_card_is_that_of_a_table(three: Described) -> None:
    require_figures(three.card, three.tables, three.recipe)
    kept = sorted(THREE_TILES[WEST] + THREE_TILES[EAST])
    assert list(three.tables.splits["chip_id"]) == kept
    funnel = three.card.table("From chip boxes to chips").set_index("step")
    assert list(funnel.loc["three scenes", ["chips", "lost"]]) == ["4", "2"]
    assert "fewer than three scenes are fit" in funnel.loc["three scenes", "why"]
    assert "No chip has Natural Vegetation, Forest, Wetlands" in three.card.body


def test_every_name_of_the_card_is_a_file(three: Described) -> None:
    named = three.card.named_files
    assert named >= {
        *(
            "chips_filtered/",
            "training_chips/",
            "exports/",
            "chips.parquet",
            "rejected_chips.csv",
            "files.csv",
        ),
        *(
            "croissant.json",
            "terratorch.yaml",
            "terratorch_tl.yaml",
            "training_dst.png",
            "band_histograms.png",
        ),
        *("exports/train-00000-of-00001.parquet", "exports/train_images.npy", "means.txt", "train_data.txt"),
    }
    missing = {name for name in named if not (three.folder / name).exists()}
    assert missing == set()
    for name in named:
        assert (three.folder / name).is_dir() == name.endswith("/"), name


def run_lines(card: Card, folder: Path, *without: str) -> list[dict[str, Any]]:
    """What the card's blocks of Python define, each run in the dataset's folder, but those that need other packages."""
    found = []
    with contextlib.chdir(folder), mpl.rc_context({"backend": "agg"}):
        for code in card.code("python"):
            if not any(word in code for word in without):
                names: dict[str, Any] = {}
                exec(code, names)
                found.append(names)
    return found


def test_the_lines_of_the_card_load_the_dataset(three: Described) -> None:
    skipped = ("import torch", "import datasets", "clark_config.yaml")
    found = run_lines(three.card, three.folder, *skipped)
    rasters, frames, metadata, parquet, arrays = found
    chip = (three.folder / "train_data.txt").read_text().split()[0]
    with rasterio.open(three.folder / f"chips_filtered/{chip}_merged.tif") as raster:
        values = raster.read()
    assert np.array_equal(rasters["image"].data, values)
    assert (rasters["mask"].shape, rasters["normalised"].shape) == ((224, 224), (18, 224, 224))
    assert abs(rasters["normalised"].mean()) < 5
    assert list(frames["chips"]["chip_id"]) == list(three.tables.chip_index["chip_id"])
    assert len(metadata["chips"]) == len(three.tables.chip_index)
    ids = parquet["table"]["chip_id"].to_pylist()
    with rasterio.open(three.folder / f"chips_filtered/{ids[0]}_merged.tif") as raster:
        assert np.array_equal(parquet["image"], raster.read())
    assert arrays["images"].shape == ((three.tables.splits["split"] == "train").sum(), 18, 224, 224)
    assert len(found) + len(skipped) == len(three.card.code("python"))


def test_the_lines_for_pytorch_are_those_that_make_readers_runs(three: Described) -> None:
    guide = (Path(__file__).parents[2] / "docs/loading.md").read_text()
    (lines,) = (code for code in three.card.code("python") if "import torch" in code)
    assert lines in re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    for command in three.card.code("sh"):
        assert all(line in guide for line in command.splitlines())
    assert 'yaml.safe_load(open("/path/to/dataset/clark_config.yaml"))' in guide


def test_mlcroissant_finds_every_file_as_the_metadata_say(
    three: Described, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = opened(three.folder / "croissant.json", caplog)
    caplog.set_level(logging.ERROR)
    require_chips(records(dataset, "chips"), gpd.read_parquet(three.folder / "chips.parquet"))
    found = {row["file"]: row["sha256"] for row in records(dataset, "files")}
    there = {
        name: digest for name, digest in digests(three.folder).items() if Path(name).parts[0] not in OF_OTHERS
    }
    assert set(there) - set(found) == {CROISSANT, FILES}
    assert found == {name: there[name] for name in found}
    for one in dataset.metadata.file_objects:
        assert one.sha256 == there[one.content_url], one.name
    in_sets = [
        path.relative_to(three.folder).as_posix()
        for one in dataset.metadata.file_sets
        for path in three.folder.glob(one.includes[0])
    ]
    assert sorted(in_sets) == sorted(name for name in found if "/" in name)


def test_each_chip_says_which_scenes_it_is_from(three: Described, caplog: pytest.LogCaptureFixture) -> None:
    text = (three.folder / "croissant.json").read_text()
    files = pd.concat([three.graph.table("band_cids", tile) for tile in (WEST, EAST)])
    cids = set(files.loc[files["band"] != "Fmask", "cid"])
    assert len(cids) == 36
    assert set(re.findall(r'"ipfs://(\w+)"', text)) == cids
    assert set(re.findall(r'"urn:hls:([^"]+)"', text)) == set(files["scene_id"])


def test_the_same_dataset_is_described_by_the_same_bytes(three: Described) -> None:
    before = {name: (three.folder / name).read_bytes() for name in WRITTEN}
    for name in WRITTEN:
        (three.folder / name).unlink()
    described(three.graph, three.recipe, ALL_TILES)
    assert {name: (three.folder / name).read_bytes() for name in WRITTEN} == before
    assert not any(str(three.graph.root).encode() in data for data in before.values())


def test_without_exports_the_card_names_none(finished_graph: Graph) -> None:
    found = described(finished_graph, recipe(), (WEST, EAST))
    require_figures(found.card, found.tables, found.recipe)
    assert found.card.header["viewer"] is False
    assert "exports/" not in found.card.named_files
    assert "Hugging Face" not in found.card.body.split("## Load it")[1]
    assert all((found.folder / name).exists() for name in found.card.named_files)
    assert len(run_lines(found.card, found.folder, "import torch", "clark_config.yaml")) == 3
