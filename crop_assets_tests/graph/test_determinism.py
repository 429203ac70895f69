import shutil
from pathlib import Path

import pandas as pd

from crop_assets.demo.server import serve
from crop_assets.partitions import TILE
from crop_assets_tests.graph.conftest import (
    EAST,
    TILES,
    WEST,
    YEAR,
    Finished,
    Graph,
    Setting,
    digests,
    new_graph,
)
from resources.cdl import CdlReleases

TELL_ADDRESSES = {"cdl", *(f"{asset}/{tile}" for asset in ("scene_metadata", "band_cids") for tile in TILES)}
MADE_FROM_THESE = {
    "tile_payloads",
    *(f"{asset}/{tile}" for asset in ("selected_scenes", "downloaded_bands", "chips") for tile in TILES),
}
"""Their rows are the same; the identity of their inputs, which is recorded with them, is not."""


def test_the_order_of_tiles_and_runs_does_not_show_in_any_file(graph: Graph, finished: Finished) -> None:
    graph.instance.add_dynamic_partitions(TILE, [EAST, WEST])
    assert graph.run("labels_job").success
    for tile in (EAST, WEST):
        assert graph.run("tiles_job", tiles=[tile]).success
    assert graph.run("dataset_job").success
    assert digests(graph.root) == digests(finished.graph.root)


def test_other_addresses_show_in_the_tables_that_tell_them_alone(
    setting: Setting, finished: Finished, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere" / f"{YEAR}_30m_cdls.tif"
    elsewhere.parent.mkdir()
    shutil.copy(setting.world.cdl, elsewhere)
    with serve(setting.world, 0) as server, new_graph(tmp_path / "store", setting, server) as graph:
        for run in graph.run_all(cdl_releases=CdlReleases(source=str(elsewhere))):
            assert run.success, run.failure
        ours, theirs = digests(graph.dataset), digests(finished.graph.dataset)
        assert set(ours) == set(theirs)
        differing = {name for name in ours if ours[name] != theirs[name]}
        tables = TELL_ADDRESSES | MADE_FROM_THESE
        assert differing == {f"tables/{name}.parquet" for name in tables}
        for table in tables:
            left, right = (
                whose.table(*table.split("/")).drop(columns="path" if table == "cdl" else [])
                for whose in (graph, finished.graph)
            )
            if table in TELL_ADDRESSES:
                left, right = (
                    frame[[name for name in frame if not name.endswith("http")]] for frame in (left, right)
                )
            pd.testing.assert_frame_equal(left, right)
