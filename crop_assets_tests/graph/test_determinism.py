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
    Setting,
    digests,
    new_graph,
)
from resources.cdl import CdlReleases

TELL_ADDRESSES = {f"{asset}/{tile}" for asset in ("scene_metadata", "band_cids") for tile in TILES}
MADE_FROM_THESE = {
    "tile_payloads",
    *(f"{asset}/{tile}" for asset in ("selected_scenes", "downloaded_bands") for tile in TILES),
}
"""Their rows are the same; the identity of their inputs, which is recorded with them, is not."""


def test_only_addresses_tell_two_stores_apart(setting: Setting, finished: Finished, tmp_path: Path) -> None:
    """Another store and instance, another place of the CDL, another port, tiles in another order, a run each."""
    elsewhere = tmp_path / "elsewhere" / f"{YEAR}_30m_cdls.tif"
    elsewhere.parent.mkdir()
    shutil.copy(setting.world.cdl, elsewhere)
    with serve(setting.world, 0) as server, new_graph(tmp_path / "store", setting, server) as graph:
        moved = CdlReleases(source=str(elsewhere))
        graph.instance.add_dynamic_partitions(TILE, [EAST, WEST])
        runs = [graph.run("labels_job", cdl_releases=moved)]
        runs += [graph.run("tiles_job", tiles=[tile], cdl_releases=moved) for tile in (EAST, WEST)]
        runs.append(graph.run("dataset_job"))
        assert all(run.success for run in runs), [run.failure for run in runs]
        ours, theirs = digests(graph.root), digests(finished.graph.root)
        assert set(ours) == set(theirs)
        differing = {name for name in ours if ours[name] != theirs[name]}
        tables = TELL_ADDRESSES | MADE_FROM_THESE
        assert differing == {f"{graph.layout.root}/tables/{name}.parquet" for name in tables}
        for table in tables:
            left, right = (whose.table(*table.split("/")) for whose in (graph, finished.graph))
            links = [name for name in left if name.endswith("http")]
            assert bool(links) == (table in TELL_ADDRESSES)
            pd.testing.assert_frame_equal(left.drop(columns=links), right.drop(columns=links))
