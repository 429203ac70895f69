"""Content from IPFS in the whole graph: Fmask first, availability, resumed downloads, the published dataset."""

import json
import os
from pathlib import Path

import dagster as dg
import pandas as pd
import pytest
import rasterio
import requests

from crop_assets.hls import FMASK_COUNTS, POSITIONS
from crop_assets.schemas import CID_RETRIEVABILITY, MISSING_CIDS, PUBLISHED_DATASET
from crop_assets_tests.resources.loopback import dripping
from crop_assets_tests.services.conftest import JsIpfs
from crop_assets_tests.services.conftest import js_ipfs as js_ipfs
from crop_assets_tests.small_world import (
    CHIPS,
    EAST,
    FIRST,
    KEPT,
    MIDDLE,
    THROUGH_DOWNLOAD,
    TILES,
    WEST,
    YEAR,
    Finished,
    Graph,
    Served,
    Setting,
    Traffic,
    digests,
    ledger,
    recipe,
)
from resources.downloads import Downloads
from resources.earthdata import LpDaac
from resources.errors import CutShortError
from resources.ipfs.car import read_car
from resources.ipfs.cid import Cid
from resources.ipfs.directory import resolve_path
from resources.ipfs.nodes import Gateway
from resources.ipfs.resource import IpfsContent
from resources.ipfs.retrieve import Retrieval
from resources.ipfs.unixfs import KUBO_CHUNK
from resources.stac import IpfsStac
from resources.store import DatasetStore


def test_what_fmask_tells_before_the_bands_are_there_is_what_the_chips_say(finished: Finished) -> None:
    for tile in TILES:
        early, late = (finished.graph.table(name, tile) for name in ("chip_quality", "chips"))
        counts = ["chip_id", *(f"{count}_{position}" for count in FMASK_COUNTS for position in POSITIONS)]
        pd.testing.assert_frame_equal(early[counts], late[counts])
        assert (early["na_count"] <= late["na_count"]).all()


@pytest.fixture
def clouded(labelled_graph: Graph, setting: Setting, tmp_path: Path) -> Graph:
    """The graph, with an Fmask of the eastern tile that is all cloud, in the store already."""
    scene = setting.scene(EAST, MIDDLE[EAST])
    name = labelled_graph.layout.band(scene.scene_id, "Fmask")
    with rasterio.open(setting.world.band_path(scene, "Fmask")) as source:
        profile, values = source.profile, source.read(1)
    path = labelled_graph.root / name
    path.parent.mkdir(parents=True)
    values[values != 255] = 2
    with rasterio.open(path, "w", **profile) as target:
        target.write(values, 1)
    return labelled_graph


def test_a_clouded_tile_costs_three_fmasks(clouded: Graph, traffic: Traffic) -> None:
    # without CIDs the Fmask in the store is adopted, and the rest comes from LP DAAC
    services = {"ipfs_stac": IpfsStac(url=""), "lp_daac": LpDaac(token="letmein", hosts=["127.0.0.1"])}
    run = clouded.run("tiles_job", **services)
    assert run.success, run.failure
    files = {asked.path.rsplit("/", 1)[-1] for asked in traffic.asked if asked.path.startswith("/lpdaac/")}
    eastern = [name for name in files if EAST in name]
    assert len(eastern) == 2
    assert all(name.endswith(".Fmask.tif") for name in eastern)
    assert len(files) == 2 + 21
    made = run.made["downloaded_bands", f"{YEAR}|{EAST}"].metadata
    assert made["outcome"].value.startswith("labels or Fmask rule out all chips: 18 files, about ")
    # of a typical band, or of all files of the granule where that is less
    assert 0 < made["saved_bytes"].value < 18 * (18 << 20)
    assert list(clouded.table("downloaded_bands", EAST)["band"]) == ["Fmask"] * 3
    assert clouded.table("reprojected_tiles", EAST).empty
    assert set(clouded.table("chips", EAST)["outcome"]) == {"bands_not_fetched"}
    rejected = clouded.table("filtered_chips", EAST)
    assert sorted(rejected["chip_id"]) == CHIPS[EAST]
    assert set(rejected["reason"]) <= {"bad_quality", "na_pixels"}
    assert (rejected["bad_percent_middle"] > 90).all()
    assert clouded.run("dataset_job").success
    assert {row["chip_id"] for row in ledger(clouded)} >= set(CHIPS[EAST])

    traffic.clear()
    run = clouded.run("tiles_job", recipe=recipe(fmask_first=False), **services)
    assert run.success, run.failure
    assert len({asked.path for asked in traffic.asked if asked.path.startswith("/lpdaac/")}) == 18
    assert len(clouded.table("downloaded_bands", EAST)) == 21
    again = clouded.table("filtered_chips", EAST)
    assert set(again["reason"]) <= {"bad_quality", "na_pixels"}


def test_the_availability_of_each_cid_is_asked_for_without_downloading_it(
    finished_graph: Graph, setting: Setting, served: Served, traffic: Traffic
) -> None:
    graph = finished_graph
    with dripping(b"HTTP/1.1 200 OK\r\nX-Long: ", b"x") as (address, slow):
        gateways = [address, served.server.gateway_url]
        ipfs = IpfsContent(kubo_api="", gateways=gateways, probe_seconds=1)
        assert graph.run("retrievability_job", ipfs=ipfs, downloads=Downloads(per_host=1)).success
    assert len(slow) == 1, "it is asked last by all tiles, once one has found it slow"
    for tile in TILES:
        table = graph.table("cid_retrievability", tile)
        assert len(table) == 21
        assert table["available"].all()
        assert set(table["source"]) == {served.server.gateway_url}
    assert len(traffic.asked) == 42
    assert sum(asked.path.startswith("/ipfs/") for asked in traffic.asked) == 42
    year = graph.run("missing_cids_job")
    assert {name: check.passed for (_, name), check in year.checks.items()} == {
        "every_tile_is_in": True,
        "every_cid_is_retrievable": True,
    }
    assert json.loads((graph.dataset / "missing_cids.json").read_text()) == {}

    scene = setting.scene(EAST, FIRST[EAST])
    traffic.clear()
    traffic.broken[scene.files["B04"].cid] = 404
    traffic.broken[scene.files["B11"].cid] = 503
    traffic.corrupt.add(scene.files["B12"].cid)
    assert graph.run("retrievability_job").success, "a CID that nobody has is a finding, not a failure"
    year = graph.run("missing_cids_job")
    check = year.checks["missing_cids", "every_cid_is_retrievable"]
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)
    missing = json.loads((graph.dataset / "missing_cids.json").read_text())
    assert list(missing) == [scene.scene_id]
    assert {entry["band_name"]: entry["cid"] for entry in missing[scene.scene_id]} == {
        band: scene.files[band].cid for band in ("B04", "B11", "B12")
    }
    problems = {entry["band_name"]: entry["problem"] for entry in missing[scene.scene_id]}
    assert "answered 404" in problems["B04"]
    assert "answered 503" in problems["B11"]
    assert "are not that block" in problems["B12"]
    assert (finished_graph.table("missing_cids")["tile"] == EAST).all()


def test_a_download_goes_on_where_it_broke_off(
    labelled_graph: Graph, finished: Finished, setting: Setting, served: Served, traffic: Traffic
) -> None:
    """As after a killed process: a part of the file lies there, and is not asked for again."""
    scene = setting.scene(WEST, FIRST[WEST])
    cid = Cid.parse(scene.files["B02"].cid)

    store = DatasetStore(root=str(labelled_graph.root))
    gateway = Gateway(served.server.gateway_url, 10)
    with store.partials.holding(str(cid)) as path, Retrieval(cid, path, 1 << 30) as retrieval:
        with gateway.car(cid, 0) as pieces:
            whole = b"".join(pieces)
        with pytest.raises(CutShortError):
            retrieval.feed([whole[: len(whole) * 7 // 10]])
        had = retrieval.at
    assert had == 2 * KUBO_CHUNK
    run = labelled_graph.run("tiles_job", tiles=[WEST], stages=THROUGH_DOWNLOAD)
    assert run.success, run.failure
    made = [run.made[stage, f"{YEAR}|{WEST}"].metadata for stage in ("downloaded_fmasks", "downloaded_bands")]
    sizes = labelled_graph.table("downloaded_bands", WEST)["bytes"].sum()
    assert sum(metadata["fetched_bytes"].value for metadata in made) == sizes - had
    ours, theirs = (digests(graph.dataset / "tiles") for graph in (labelled_graph, finished.graph))
    assert ours.items() <= theirs.items()
    kept = (labelled_graph.root / f".partial-{os.getuid()}").rglob("*")
    assert [path for path in kept if path.is_file()] == []


def test_a_finished_dataset_is_published_under_one_cid(finished_graph: Graph, finished: Finished) -> None:
    graph = finished_graph
    run = graph.run("publish_job")
    assert run.success, run.failure
    table = graph.table("published_dataset")
    root = Cid.parse(table["root_cid"].iloc[0])
    car = graph.root / table["place"].iloc[0]
    blocks = dict(read_car([car.read_bytes()]))
    assert all(cid.matches(block) for cid, block in blocks.items())
    names = [
        *(f"chips_filtered/{chip}{end}" for chip in KEPT for end in ("_merged.tif", ".mask.tif")),
        "train_data.txt",
        "class_weights.csv",
        "tile_payloads.json",
        "band_stats/band_values_1.txt",
    ]
    for name in names:
        file = resolve_path(root, name.split("/"), blocks.__getitem__)
        out = graph.root / "out"
        with Retrieval(file, out, 1 << 30) as retrieval:
            retrieval.feed([car.read_bytes()])
        assert out.read_bytes() == (graph.dataset / name).read_bytes()
        out.unlink()
    assert graph.run("publish_job").redone == set()
    config = {"ops": {"published_dataset": {"config": {"to": "kubo"}}}}
    refused = graph.run("publish_job", run_config=config, ipfs=IpfsContent(kubo_api="", gateways=[]))
    assert "there is no Kubo node; set CROP_ASSETS_KUBO_API" in refused.failure

    # another folder, and files that were made anew, are the same dataset
    car.unlink()
    again = graph.run("publish_job")
    assert again.redone == {("published_dataset", str(YEAR))}
    assert graph.table("published_dataset")["root_cid"].iloc[0] == str(root)


def test_a_tile_comes_from_a_real_node_and_its_dataset_goes_to_one(
    labelled_graph: Graph,
    finished: Finished,
    setting: Setting,
    traffic: Traffic,
    js_ipfs: JsIpfs,
) -> None:
    graph = labelled_graph
    for scene in setting.world.scenes:
        for band, file in scene.files.items() if scene.tile == WEST else ():
            path = setting.world.band_path(scene, band)
            assert js_ipfs.add(path, cid_version=1, raw_leaves="true") == file.cid
    traffic.clear()
    node = IpfsContent(kubo_api=js_ipfs.rpc_url, gateways=[])
    run = graph.run("tiles_job", tiles=[WEST], ipfs=node)
    assert run.success, run.failure
    assert not [asked for asked in traffic.asked if asked.path.startswith(("/ipfs/", "/lpdaac/"))]
    assert graph.table("downloaded_bands", WEST)["verified"].all()
    sources = run.made["downloaded_bands", f"{YEAR}|{WEST}"].metadata["sources"].value
    assert f"| `{js_ipfs.rpc_url}` | 18 |" in str(sources)
    ours, theirs = (digests(g.dataset / "chips_filtered") for g in (graph, finished.graph))
    assert ours.items() <= theirs.items()
    assert ours

    west_alone = recipe(max_missing_tiles=1)
    assert graph.run("dataset_job", recipe=west_alone).success
    config = {"ops": {"published_dataset": {"config": {"to": "kubo"}}}}
    for _ in range(2):
        run = graph.run("publish_job", run_config=config, ipfs=node, recipe=west_alone)
        assert run.success, run.failure
    root = graph.table("published_dataset")["root_cid"].iloc[0]
    for name in ("train_data.txt", f"chips_filtered/{next(iter(ours))}"):
        got = requests.post(f"{js_ipfs.rpc_url}/api/v0/cat", params={"arg": f"{root}/{name}"}, timeout=30)
        assert got.content == (graph.dataset / name).read_bytes()


def test_columns_of_what_is_made_on_demand_are_those_of_its_tables(finished_graph: Graph) -> None:

    for job in ("retrievability_job", "missing_cids_job", "publish_job"):
        assert finished_graph.run(job).success
    for schema, table in (
        (CID_RETRIEVABILITY, finished_graph.table("cid_retrievability", EAST)),
        (MISSING_CIDS, finished_graph.table("missing_cids")),
        (PUBLISHED_DATASET, finished_graph.table("published_dataset")),
    ):
        assert [column.name for column in schema.columns] == list(table.columns)
