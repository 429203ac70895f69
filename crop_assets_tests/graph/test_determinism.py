import shutil
from pathlib import Path

import pandas as pd
import rasterio

from crop_assets.demo.server import serve
from crop_assets.partitions import TILE
from crop_assets_tests.small_world import (
    CHIPS,
    EAST,
    TILES,
    WEST,
    YEAR,
    Finished,
    Graph,
    Setting,
    digests,
    new_graph,
    recipe,
)
from resources.cdl import CdlReleases
from resources.machine import Machine

TELL_ADDRESSES = {f"{asset}/{tile}" for asset in ("scene_metadata", "band_cids") for tile in TILES}
MADE_FROM_THESE = {
    "tile_payloads",
    *(
        f"{asset}/{tile}"
        for asset in ("candidate_fmasks", "selected_scenes", "downloaded_fmasks", "downloaded_bands")
        for tile in TILES
    ),
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
        # the catalogue's answers are kept by its address
        ours, theirs = (
            {name: digest for name, digest in digests(root).items() if not name.startswith("answers/")}
            for root in (graph.root, finished.graph.root)
        )
        assert set(ours) == set(theirs)
        differing = {name for name in ours if ours[name] != theirs[name]}
        tables = TELL_ADDRESSES | MADE_FROM_THESE
        assert differing == {f"{graph.layout.root}/tables/{name}.parquet" for name in tables}
        for table in tables:
            left, right = (whose.table(*table.split("/")) for whose in (graph, finished.graph))
            links = [name for name in left if name.endswith("http")]
            assert bool(links) == (table in TELL_ADDRESSES)
            pd.testing.assert_frame_equal(left.drop(columns=links), right.drop(columns=links))


def test_whole_tiles_in_one_thread_hold_the_same_chips(labelled_graph: Graph, finished: Finished) -> None:
    run = labelled_graph.run("tiles_job", recipe=recipe(coverage="full"), machine=Machine(workers=1))
    assert run.success, run.failure
    for folder in ("chips", "chips_fmask", "chips_filtered"):
        assert digests(labelled_graph.dataset / folder) == digests(finished.graph.dataset / folder)
    for tile in TILES:
        whole, under_chips = (
            graph.table("reprojected_tiles", tile) for graph in (labelled_graph, finished.graph)
        )
        assert (under_chips["blocks"] == len(CHIPS[tile])).all()
        # 109.8 km are a little more than 16 chips, and the tile lies askew on the CDL grid
        assert whole["blocks"].between(16**2, 19**2).all()
        with rasterio.open(labelled_graph.root / whole["path"].iloc[0]) as raster:
            assert (raster.read(1) != raster.nodata).sum() > 0.99 * 3660**2
