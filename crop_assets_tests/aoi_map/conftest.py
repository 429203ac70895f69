"""A small store to draw on: 20 x 30 boxes in Kansas, with four special columns."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest

from crop_assets.aoi_map.area import Area, load_area
from crop_assets.labels.sampling import choose_boxes, weighed_boxes, with_surroundings
from crop_assets.layout import Layout, tile_grid_table
from crop_assets.recipe import DatasetRecipe
from crop_assets.schemas import CANDIDATE_CHIPS, CHIP_BBOXES, TILE_GRID
from crop_assets_tests.labels.conftest import PIXELS, boxes_of
from resources.store import DatasetStore
from resources.tables import read_table, write_table

LAYOUT = Layout("multi_temporal_crop_classification", 2022)
ROWS, COLS = range(220, 240), range(300, 330)
NO_DATA_COL = 303


def number_of_classes(row: int, col: int) -> int:
    return 1 + (row + col) % 13


def candidates() -> pd.DataFrame:
    """Boxes with 1 to 13 classes; one column has no-data pixels."""
    cells = [(row, col) for row in ROWS for col in COLS]
    counts = np.zeros((len(cells), 14), np.int32)
    for count, (row, col) in zip(counts, cells, strict=True):
        classes = number_of_classes(row, col)
        count[1 : classes + 1] = PIXELS // classes
        count[1] += PIXELS - count.sum()
        if col == NO_DATA_COL:
            count[0], count[1] = 7, count[1] - 7
    return pd.DataFrame(boxes_of(cells, counts).drop(columns=["weight", "geometry"]))


@pytest.fixture(scope="session")
def small_store(official_grid: gpd.GeoDataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the results of labels_job for the boxes, five of them chosen; tests do not change it."""
    root = tmp_path_factory.mktemp("aoi_store")
    store = DatasetStore(root=str(root))
    grid = official_grid
    near = grid[grid["lon"].between(-103, -96) & grid["lat"].between(35, 41)]
    chosen = with_surroundings(choose_boxes(weighed_boxes(candidates(), 8), "evenness", 5), 8)
    for name, table, schema in (
        (LAYOUT.table("candidate_chips"), candidates(), CANDIDATE_CHIPS),
        (LAYOUT.table("chip_bboxes"), chosen, CHIP_BBOXES),
        (tile_grid_table(), near, TILE_GRID),
    ):
        write_table(store, name, table, schema, {"files": {}})
    return root


@pytest.fixture
def store(small_store: Path, tmp_path: Path) -> DatasetStore:
    """A copy of the store that a test may change."""
    shutil.copytree(small_store, tmp_path / "store")
    return DatasetStore(root=str(tmp_path / "store"))


@pytest.fixture(scope="session")
def area(small_store: Path) -> Area:
    return load_area(DatasetStore(root=str(small_store)), LAYOUT, DatasetRecipe())


def landscape(store: DatasetStore) -> Any:
    """The boxes that the graph can choose from, regardless of their classes."""
    boxes = weighed_boxes(read_table(store, LAYOUT.table("candidate_chips"), CANDIDATE_CHIPS), 8)
    return boxes[boxes["class_0"] == 0].reset_index(drop=True)


def collection(*rings: Iterable[tuple[float, float]]) -> dict[str, Any]:
    """A FeatureCollection of polygons without holes."""
    features = [
        {
            "type": "Feature",
            "properties": {},
            "geometry": {"type": "Polygon", "coordinates": [[list(position) for position in ring]]},
        }
        for ring in rings
    ]
    return {"type": "FeatureCollection", "features": features}


def rectangle(west: float, south: float, east: float, north: float) -> list[tuple[float, float]]:
    return [(west, south), (east, south), (east, north), (west, north), (west, south)]
