import shutil
from pathlib import Path

from crop_assets.demo.server import serve
from crop_assets_tests.graph.conftest import (
    EAST,
    WEST,
    YEAR,
    Finished,
    Graph,
    Setting,
    digests,
    new_graph,
)
from crop_assets.partitions import TILE
from resources.cdl import CdlReleases


def test_the_order_of_tiles_and_runs_does_not_show_in_any_file(graph: Graph, finished: Finished) -> None:
    graph.instance.add_dynamic_partitions(TILE, [EAST, WEST])
    assert graph.run("labels_job").success
    for tile in (EAST, WEST):
        assert graph.run("tiles_job", tiles=[tile]).success
    assert graph.run("dataset_job").success
    assert digests(graph.root) == digests(finished.graph.root)


def test_x(setting: Setting, finished: Finished, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere" / f"{YEAR}_30m_cdls.tif"
    elsewhere.parent.mkdir()
    shutil.copy(setting.world.cdl, elsewhere)
    with serve(setting.world, 0) as server, new_graph(tmp_path / "store", setting, server) as graph:
        for run in graph.run_all(cdl_releases=CdlReleases(source=str(elsewhere))):
            assert run.success, run.failure
        ours, theirs = digests(graph.dataset), digests(finished.graph.dataset)
    assert set(ours) == set(theirs)
    assert {name for name in ours if ours[name] != theirs[name]} == {}
