"""The STAC catalogue of whole runs, compared with the files and tables of their datasets."""

import hashlib
import json
from collections import Counter
from collections.abc import Container
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pystac
import rasterio
import shapely

from crop_assets.classes import CLASSES
from crop_assets.dataset.assets import _PUBLISHED
from crop_assets.dataset.publish import published_names, recorded_files
from crop_assets.hls import POSITIONS, REFLECTANCE_BANDS
from crop_assets_tests.description.stac_schemas import problems
from crop_assets_tests.description.test_stac import items_of, links
from crop_assets_tests.small_world import DEAD, THREE_TILES, TILES, YEAR, Finished, Graph, digests, recipe
from resources.store import DatasetStore

SCENE_ITEM = "https://cmr.earthdata.nasa.gov/stac/LPCLOUD/collections/HLSS30_2.0/items/"
WORDS = {"train": "train", "validation": "validate", "test": "test"}


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_bytes())
    return found


def require_catalogue(graph: Graph) -> dict[str, dict[str, Any]]:
    """The items by chip; they, the collection and the geoparquet must be valid and have what tables and files have."""
    folder = graph.dataset / "stac"
    splits, files = graph.table("splits").set_index("chip_id"), graph.table("dataset_files").set_index("file")
    table = graph.table("stac_catalogue").set_index("file")
    on_disk = {f"stac/{name}": digest for name, digest in digests(folder).items()}
    assert on_disk == table["sha256"].to_dict()
    assert table["bytes"].to_dict() == {name: (graph.dataset / name).stat().st_size for name in on_disk}

    collection = read(folder / "collection.json")
    items = {chip: read(folder / "items" / f"{chip}.json") for chip in splits.index}
    assert Counter(table["kind"]) == {"collection": 1, "geoparquet": 1, "item": len(items)}
    assert problems(collection) == []
    assert {chip: found for chip, item in items.items() if (found := problems(item))} == {}
    assert collection["version"] == graph.table("fingerprint")["fingerprint"].iloc[0]
    assert items_of(folder / "items.parquet") == list(items.values())
    described = recorded_files(DatasetStore(root=str(graph.root)), graph.layout, _PUBLISHED)
    published = published_names(graph.layout, files.index, described)
    require_links(folder / "collection.json", collection, published)
    assert {asset["href"].removeprefix("../") for asset in collection["assets"].values()} >= {
        "chips.parquet",
        "statistics.json",
        "train_data.txt",
    }

    opened = pystac.Collection.from_file(str(folder / "collection.json"))
    assert [item.id for item in opened.get_items()] == list(items)
    outlines = {chip: shapely.geometry.shape(item["geometry"]) for chip, item in items.items()}
    assert opened.extent.spatial.bboxes == [gpd.GeoSeries(outlines).total_bounds.tolist()]

    tiles = gpd.read_parquet(graph.root / "tile_grid.parquet").set_index("tile").geometry
    index = gpd.read_parquet(graph.dataset / "chips.parquet").set_index("chip_id")
    for chip, item in items.items():
        split = splits.loc[chip]
        properties = item["properties"]
        require_links(folder / "items" / f"{chip}.json", item, published)
        assert properties["ml-aoi:split"] == WORDS[split["split"]]
        assert properties["crops:tile"] == split["tile"]
        assert tiles[split["tile"]].contains(outlines[chip])
        assert properties["proj:bbox"] == list(index.geometry[chip].bounds)
        for name, asset in item["assets"].items():
            path = folder / "items" / asset["href"]
            assert asset["file:checksum"] == f"1220{hashlib.sha256(path.read_bytes()).hexdigest()}"
            assert (
                asset["file:size"] == path.stat().st_size == files.loc[f"chips_filtered/{path.name}", "bytes"]
            )
            with rasterio.open(path) as raster:
                assert raster.crs.to_string() == properties["proj:code"]
                assert list(raster.transform)[:6] == properties["proj:transform"]
                assert list(raster.shape) == properties["proj:shape"]
                assert set(raster.dtypes) == {asset["data_type"]}
                assert raster.nodata == asset.get("nodata")
                if name == "image":
                    assert raster.count == len(asset["bands"])
                    continue
                pixels = np.bincount(raster.read(1).ravel(), minlength=len(CLASSES))
            classes = asset["classification:classes"]
            assert [one["count"] for one in classes] == list(pixels)
            shares = properties["crops:class_share"]
            assert [shares[one["name"]] for one in classes] == list(pixels / pixels.sum())
        bands = graph.table("downloaded_bands", split["tile"]).set_index(["position", "band"])
        scenes = [bands.loc[(position, "B02"), "scene_id"] for position in POSITIONS]
        assert links(item, "derived_from") == [f"{SCENE_ITEM}{scene}" for scene in scenes]
        cids = [bands.loc[(position, band), "cid"] for position in POSITIONS for band in REFLECTANCE_BANDS]
        assert links(item, "via") == [f"ipfs://{cid}" for cid in cids if cid]
        dates = [str(bands.loc[(position, "B02"), "date"]) for position in POSITIONS]
        assert properties["start_datetime"][:10] == dates[0]
        assert properties["end_datetime"][:10] == dates[2]
        assert [band["description"].split(", ")[-1] for band in item["assets"]["image"]["bands"]] == list(
            np.repeat(dates, 6)
        )
    return items


def require_links(path: Path, stac: dict[str, Any], published: Container[str]) -> None:
    """Links within the dataset are relative and lead to files that are published with it; the others are those of the
    sources.
    """
    hrefs = [asset["href"] for asset in stac["assets"].values()]
    for link in stac["links"]:
        if link["rel"] in ("derived_from", "license", "via"):
            assert link["href"].startswith(("https://", "ipfs://"))
        else:
            hrefs.append(link["href"])
    for href in hrefs:
        assert href.startswith(("./", "../"))
        target = (path.parent / href).resolve(strict=True)
        assert (
            target.relative_to(path.parents[1 if stac["type"] == "Collection" else 2]).as_posix() in published
        )


def test_three_tiles_from_an_empty_store(graph: Graph, three_tiles: dict[str, Any]) -> None:
    allowed = three_tiles["recipe"].model_copy(update={"max_missing_tiles": 1})
    changed = three_tiles | {"recipe": allowed}
    assert graph.run("labels_job", **changed).success
    graph.run("tiles_job", tiles=sorted(THREE_TILES), **changed)
    run = graph.run("dataset_job", **changed)
    assert run.success, run.failure
    items = require_catalogue(graph)
    assert {item["properties"]["crops:tile"] for item in items.values()} == set(TILES)
    assert len(items) == 4
    for item in items.values():
        counts = {one["name"]: one["count"] for one in item["assets"]["mask"]["classification:classes"]}
        assert counts["corn"] == counts["soybeans"] == 224 * 112
        assert len(links(item, "via")) == 18
    assert run.made["stac_catalogue", str(YEAR)].metadata["items"].value == 4

    before = digests(graph.dataset / "stac")
    again = graph.run("dataset_job", **changed)
    assert again.success, again.failure
    assert ("stac_catalogue", str(YEAR)) not in again.redone
    (graph.dataset / "stac" / "items" / f"{min(items)}.json").write_text("{}")
    repaired = graph.run("dataset_job", **changed)
    assert repaired.success, repaired.failure
    assert ("stac_catalogue", str(YEAR)) in repaired.redone
    assert digests(graph.dataset / "stac") == before


def test_items_of_chips_that_are_no_longer_in_the_dataset_are_removed(
    finished: Finished, finished_graph: Graph
) -> None:
    before = require_catalogue(finished.graph)
    graph = finished_graph
    fewer = recipe(max_bad_percent=0)
    for job in ("tiles_job", "dataset_job"):
        run = graph.run(job, recipe=fewer)
        assert run.success, run.failure
    after = require_catalogue(graph)
    assert 0 < len(after) < len(before)
    assert sorted(path.stem for path in (graph.dataset / "stac" / "items").iterdir()) == sorted(after)


def test_one_chip(finished: Finished, finished_graph: Graph) -> None:
    graph, chip = finished_graph, min(finished.graph.table("splits")["chip_id"])
    lists = {"train_ids": chip, "validation_ids": DEAD}
    for name, ids in lists.items():
        (graph.root / name).write_text(f"{ids}\n")
    files = {name: str(graph.root / name) for name in lists}
    run = graph.run("dataset_job", recipe=recipe(split="files", **files))
    assert run.success, run.failure
    assert list(require_catalogue(graph)) == [chip]
    collection = read(graph.dataset / "stac" / "collection.json")
    assert collection["summaries"]["ml-aoi:split"] == ["train"]
    assert pd.read_parquet(graph.dataset / "stac" / "items.parquet")["id"].tolist() == [chip]
