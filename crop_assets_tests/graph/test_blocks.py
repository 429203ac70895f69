"""A dataset made from the blocks under its chips is the one that is made from complete files."""

from pathlib import Path
from typing import Any

import pytest
import rasterio

from crop_assets.bands.blocks import read_partial
from crop_assets.hls import QA_BAND
from crop_assets.verify import verify_tables
from crop_assets_tests.small_world import (
    EAST,
    KEPT,
    THREE_TILES,
    TILE_STAGES,
    TILES,
    WEST,
    YEAR,
    Finished,
    Graph,
    Setting,
    Traffic,
    digests,
    recipe,
)
from resources.earthdata import LpDaac
from resources.stac import IpfsStac
from resources.store import DatasetStore

LP_DAAC = {"ipfs_stac": IpfsStac(url=""), "lp_daac": LpDaac(token="letmein", hosts=["127.0.0.1"])}
BLOCKS = {"recipe": recipe(fetch="blocks")}


def band_files(graph: Graph, tile: str) -> dict[str, Path]:
    table = graph.table("downloaded_bands", tile)
    return {path.rsplit("/", 1)[-1]: graph.root / path for path in table["path"]}


@pytest.mark.parametrize("services", [{}, LP_DAAC], ids=["IPFS", "HTTP without CIDs"])
def test_the_dataset_is_the_same(
    graph: Graph, finished: Finished, setting: Setting, services: dict[str, Any], pool: Any
) -> None:
    assert not graph.dataset.exists()
    for run in graph.run_all(**services, **BLOCKS):
        assert run.success, run.failure
    for folder in ("tiles_reprojected", "chips", "chips_fmask", "chips_filtered", "band_stats"):
        ours, theirs = digests(graph.dataset / folder), digests(finished.graph.dataset / folder)
        assert len(theirs) >= 3, folder
        assert ours == theirs, folder
    names = ["train_data.txt", "validation_data.txt", "class_weights.csv"]
    for name in names if services else [*names, "tile_payloads.json"]:
        ours, theirs = (one.dataset / name for one in (graph, finished.graph))
        assert ours.read_bytes() == theirs.read_bytes(), name
    kept = sorted(path.name for path in (graph.dataset / "chips_filtered").glob("*_merged.tif"))
    assert kept == [f"{chip}_merged.tif" for chip in KEPT]

    store = DatasetStore(root=str(graph.root))
    originals = {path.name: path for path in setting.world.root.rglob("HLS.*.tif")}
    for tile in TILES:
        table = graph.table("downloaded_bands", tile).set_index("path")
        assert len(table) == 21
        for name, row in table.iterrows():
            original, path = originals[Path(name).name], graph.root / name
            assert row["complete_bytes"] == original.stat().st_size
            if row["band"] == QA_BAND:
                assert path.read_bytes() == original.read_bytes()
                assert row["blocks"] == 0
                continue
            partial = read_partial(path)
            assert partial is not None
            assert row["blocks"] == len(partial.blocks) > 0
            assert row["bytes"] == path.stat().st_size
            assert row["verified"] == partial.verified == (not services)
            assert bool(row["note"]) == bool(services)
    tables = [graph.layout.table(stage, tile) for stage in TILE_STAGES for tile in TILES]
    report = verify_tables(store, tables, pool)
    assert (report.bad_files, report.partial) == ([], 36)


def test_nothing_is_fetched_twice_and_a_spoilt_file_alone_again(
    graph: Graph, traffic: Traffic, pool: Any
) -> None:
    for job in ("labels_job", "tiles_job"):
        run = graph.run(job, **BLOCKS)
        assert run.success, run.failure
    made = run.made["downloaded_bands", f"{YEAR}|{WEST}"].metadata
    assert made["fetch"].value.startswith("blocks under the chips, ")
    assert 0 < made["fetched_bytes"].value < made["complete_bytes"].value
    before = digests(graph.dataset)

    traffic.clear()
    again = graph.run("tiles_job", **BLOCKS)
    assert again.success
    assert not again.redone
    assert not [asked for asked in traffic.asked if asked.path.startswith(("/ipfs/", "/lpdaac/"))]

    spoilt, removed = [
        path for name, path in band_files(graph, EAST).items() if name.endswith(("B03.tif", "B11.tif"))
    ][:2]
    data = bytearray(spoilt.read_bytes())
    data[-5] ^= 1
    spoilt.write_bytes(bytes(data))
    removed.unlink()
    store = DatasetStore(root=str(graph.root))
    report = verify_tables(store, [graph.layout.table("downloaded_bands", EAST)], pool)
    assert {bad.file for bad in report.bad_files} == {
        str(path.relative_to(graph.root)) for path in (spoilt, removed)
    }
    traffic.clear()
    run = graph.run("tiles_job", **BLOCKS)
    assert run.success, run.failure
    assert digests(graph.dataset) == before
    roots = {asked.path.split("/")[2] for asked in traffic.asked if asked.path.startswith("/ipfs/")}
    table = graph.table("downloaded_bands", EAST).set_index("path")
    wanted = {table.loc[str(path.relative_to(graph.root)), "cid"] for path in (spoilt, removed)}
    assert wanted <= roots
    assert not roots & (set(table["cid"]) - wanted)


def test_a_recipe_that_wants_more_completes_what_is_there(graph: Graph, finished: Finished) -> None:
    for job in ("labels_job", "tiles_job"):
        assert graph.run(job, **BLOCKS).success
    partial = {name: path.read_bytes() for name, path in band_files(graph, WEST).items()}
    run = graph.run("tiles_job", recipe=recipe(fetch="blocks", coverage="full"))
    assert run.success, run.failure
    for name, path in band_files(graph, WEST).items():
        if QA_BAND in name:
            continue
        with rasterio.open(path) as raster:
            assert raster.tags()["PARTIAL_BLOCKS"] == "0-224"
        assert path.stat().st_size > len(partial[name])
    run = graph.run("tiles_job", recipe=recipe(fetch="files"))
    assert run.success, run.failure
    assert digests(graph.dataset / "tiles") == digests(finished.graph.dataset / "tiles")
    assert digests(graph.dataset / "chips") == digests(finished.graph.dataset / "chips")


def test_three_tiles_in_blocks(graph: Graph, three_tiles: dict[str, Any]) -> None:
    tiles = sorted(THREE_TILES)
    changed = three_tiles | {
        "recipe": three_tiles.get("recipe", recipe()).model_copy(update={"fetch": "blocks"})
    }
    for job in ("labels_job", "tiles_job"):
        run = graph.run(job, tiles=tiles, **changed)
        assert run.success, run.failure
    for tile in (WEST, EAST):
        table = graph.table("chips", tile)
        assert sorted(table["chip_id"]) == sorted(THREE_TILES[tile])
        assert (table["outcome"] == "").all()
        assert (graph.table("downloaded_bands", tile)["blocks"] > 0).sum() == 18
