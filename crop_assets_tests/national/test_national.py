"""A CDL raster of the whole country, from the raster to the tiles of its chips, in bounded memory."""

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from crop_assets.chip_grid import CHIP_SIZE, GRID_COLS, GRID_ROWS, ORIGIN_X, ORIGIN_Y
from crop_assets.demo.landscape import draw_landscape, write_landscape
from crop_assets.layout import Layout
from crop_assets.schemas import SCHEMAS
from resources.store import DatasetStore
from resources.tables import read_table

WIDTH, HEIGHT = 153_811, 96_523
CHIPS = 5000
SIDE, PIECE = 12, 10
"""Chips along the side of the landscape, and of each piece of it that is laid out."""

RUN = """
import json, pathlib, sys
import dagster as dg
from crop_assets.definitions import build_defs, environment_resources
from crop_assets.recipe import DatasetRecipe
from resources.cdl import CdlReleases
from resources.store import DatasetStore
root, cdl = sys.argv[1:]
resources = environment_resources() | {
    "recipe": DatasetRecipe(dataset="national", sampling="balanced"),
    "store": DatasetStore(root=root),
    "cdl_releases": CdlReleases(source=cdl, index=""),
}
with dg.DagsterInstance.ephemeral() as instance:
    instance.add_dynamic_partitions("cdl_year", ["2022"])
    job = build_defs(resources).resolve_job_def("labels_job")
    result = job.execute_in_process(instance=instance, partition_key="2022")
    tiles = instance.get_dynamic_partitions("tile")
status = dict(line.split(":", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines())
print(json.dumps({"success": result.success, "tiles": len(tiles), "peak_mb": int(status["VmHWM"].split()[0]) / 1024}))
"""


def write_country(path: Path, part: Path) -> int:
    """A raster of full size as a VRT of pieces of one landscape, with as much sea between and at the edges.

    Returns how many whole chips are on land.
    """
    rng = np.random.default_rng(0)
    root = ElementTree.Element("VRTDataset", rasterXSize=str(WIDTH), rasterYSize=str(HEIGHT))
    ElementTree.SubElement(root, "SRS").text = "EPSG:5070"
    ElementTree.SubElement(root, "GeoTransform").text = f"{ORIGIN_X}, 30, 0, {ORIGIN_Y}, 0, -30"
    band = ElementTree.SubElement(root, "VRTRasterBand", dataType="Byte", band="1")
    land = 0
    for row, top in enumerate(range(2, GRID_ROWS - PIECE, PIECE)):
        for left in range(2 + row % 2 * PIECE, GRID_COLS - PIECE, 2 * PIECE):
            source = ElementTree.SubElement(band, "SimpleSource")
            ElementTree.SubElement(source, "SourceFilename", relativeToVRT="1").text = part.name
            ElementTree.SubElement(source, "SourceBand").text = "1"
            x, y = rng.integers(0, (SIDE - PIECE) * CHIP_SIZE, 2)
            size = {"xSize": str(PIECE * CHIP_SIZE), "ySize": str(PIECE * CHIP_SIZE)}
            ElementTree.SubElement(source, "SrcRect", xOff=str(x), yOff=str(y), **size)
            place = {"xOff": str(left * CHIP_SIZE), "yOff": str(top * CHIP_SIZE)}
            ElementTree.SubElement(source, "DstRect", **place, **size)
            land += PIECE**2
    ElementTree.ElementTree(root).write(path)
    return land


@pytest.fixture(scope="module")
def country(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    folder = tmp_path_factory.mktemp("country")
    part = folder / "part.tif"
    write_landscape(part, draw_landscape(SIDE, SIDE))
    return folder / "2022.vrt", write_country(folder / "2022.vrt", part)


def test_the_whole_country_is_labelled_within_a_gigabyte(country: tuple[Path, int], tmp_path: Path) -> None:
    path, land = country
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RUN, str(tmp_path), str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    told = json.loads(run.stdout.splitlines()[-1])
    assert told["success"]
    assert told["peak_mb"] < 1000

    store, layout = DatasetStore(root=str(tmp_path)), Layout("national", 2022)
    candidates = read_table(store, layout.table("candidate_chips"), SCHEMAS["candidate_chips"])
    assert len(candidates) == GRID_ROWS * GRID_COLS
    # the landscape has a corner without data, which lies on some of the chips
    assert 0.999 * land < (candidates["class_0"] == 0).sum() <= land
    boxes = read_table(store, layout.table("chip_bboxes"), SCHEMAS["chip_bboxes"])
    assert len(boxes) == CHIPS
    assert (boxes["class_0"] == 0).all()
    assert boxes["block"].value_counts().max() <= 8
    tile_map = read_table(store, layout.table("tile_map"), SCHEMAS["tile_map"])
    assert set(tile_map["chip_id"]) == set(boxes["chip_id"])
    assert told["tiles"] == tile_map.loc[tile_map["tile"] != "", "tile"].nunique()
    assert told["tiles"] > 700
    assert pd.Series(tile_map["tile"] == "").mean() < 0.01
