import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from crop_assets.demo.server import WorldServer
from crop_assets_tests.resources.loopback import closed_port
from crop_assets_tests.small_world import (
    EAST,
    FIRST,
    THROUGH_DOWNLOAD,
    TILES,
    WEST,
    Finished,
    Graph,
    Served,
    Setting,
    Traffic,
    collection,
    digests,
    items_of,
    recipe,
)
from resources.downloads import Downloads
from resources.earthdata import LpDaac
from resources.ipfs.resource import IpfsContent
from resources.mirror import BandMirror
from resources.stac import IpfsStac, SceneStac


@pytest.fixture
def nowhere() -> str:
    return closed_port()


def prepared(items: list[dict[str, Any]], setting: Setting, server: WorldServer, nowhere: str) -> Any:
    """The items as a person without the network has them: their coverage told, their links dead."""
    coverage = {scene.scene_id: scene.spatial_coverage for scene in setting.world.scenes}
    for item in items:
        item["properties"]["spatial_coverage"] = coverage[item["id"]]
    return json.loads(json.dumps(items).replace(server.base_url, nowhere))


def test_files_at_hand_give_the_same_chips_without_the_network(
    labelled_graph: Graph,
    finished: Finished,
    served: Served,
    setting: Setting,
    traffic: Traffic,
    nowhere: str,
    tmp_path: Path,
) -> None:
    scenes = prepared(items_of(served.server.stac_url), setting, served.server, nowhere)
    cids = prepared(items_of(served.server.ipfs_stac_url), setting, served.server, nowhere)
    traffic.clear()
    run = labelled_graph.run(
        "tiles_job",
        stac=SceneStac(url=collection(tmp_path / "scenes.json", scenes)),
        ipfs_stac=IpfsStac(url=collection(tmp_path / "cids.json", cids)),
        ipfs=IpfsContent(kubo_api=nowhere, gateways=[nowhere]),
        lp_daac=LpDaac(hosts=["127.0.0.1"]),
        mirror=BandMirror(folder=str(setting.world.scene_folder)),
        downloads=Downloads(attempts=1, tile_retries=0),
    )
    assert run.success, run.failure
    assert traffic.asked == []
    for tile in TILES:
        assert labelled_graph.table("downloaded_bands", tile)["verified"].all()
    assert labelled_graph.run("dataset_job").success
    for folder in ("chips", "chips_fmask", "chips_filtered"):
        assert digests(labelled_graph.dataset / folder) == digests(finished.graph.dataset / folder)
    for name in (
        "train_ids.csv",
        "val_ids.csv",
        "global_stats.txt",
        "class_weights.csv",
        "classes.json",
        "means.txt",
        "tile_payloads.json",
    ):
        ours, theirs = (graph.dataset / name for graph in (labelled_graph, finished.graph))
        assert ours.read_bytes() == theirs.read_bytes()


def test_a_mirror_without_a_catalogue_of_cids_gives_the_same_files_unverified(
    labelled_graph: Graph, finished: Finished, setting: Setting, traffic: Traffic
) -> None:
    run = labelled_graph.run(
        "tiles_job",
        tiles=[EAST],
        stages=THROUGH_DOWNLOAD,
        ipfs_stac=IpfsStac(url=""),
        mirror=BandMirror(folder=str(setting.world.scene_folder)),
        recipe=recipe(fetch="files"),
    )
    assert run.success, run.failure
    assert {asked.path.split("/")[1] for asked in traffic.asked} == {"cmr"}
    assert not labelled_graph.table("downloaded_bands", EAST)["verified"].any()
    ours, theirs = (digests(graph.dataset / "tiles") for graph in (labelled_graph, finished.graph))
    assert len(ours) == 21
    assert ours.items() <= theirs.items()


def test_a_wrong_file_in_the_mirror_is_passed_over(
    labelled_graph: Graph, finished: Finished, setting: Setting, tmp_path: Path, traffic: Traffic
) -> None:
    scene = setting.scene(WEST, FIRST[WEST])
    wrong, right = (scene.file_name(band) for band in ("B02", "B03"))
    for name in (wrong, right):
        shutil.copy(setting.world.scene_folder / scene.scene_id / right, tmp_path / name)
    mirror = BandMirror(folder=str(tmp_path))
    run = labelled_graph.run("tiles_job", tiles=[WEST], stages=THROUGH_DOWNLOAD, mirror=mirror)
    assert run.success, run.failure
    fetched = {asked.path.removeprefix("/ipfs/") for asked in traffic.asked}
    assert scene.files["B02"].cid in fetched
    assert scene.files["B03"].cid not in fetched
    ours, theirs = (digests(graph.dataset / "tiles") for graph in (labelled_graph, finished.graph))
    assert len(ours) == 21
    assert ours.items() <= theirs.items()
