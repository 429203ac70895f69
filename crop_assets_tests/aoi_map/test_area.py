import json
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import shapely
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crop_assets.aoi_map.area import Area, load_area
from crop_assets.aoi_map.drawing import read_drawing
from crop_assets.errors import InputError
from crop_assets.labels.aoi import filter_aoi, read_aoi
from crop_assets.labels.sampling import write_chip_geojson
from crop_assets.layout import Layout, tile_grid_table
from crop_assets.recipe import DatasetRecipe
from crop_assets.schemas import TILE_GRID
from crop_assets.tiles.mapping import map_chips
from crop_assets_tests.aoi_map.conftest import (
    COLS,
    LAYOUT,
    NO_DATA_COL,
    ROWS,
    collection,
    landscape,
    number_of_classes,
    rectangle,
)
from resources.store import DatasetStore
from resources.tables import read_table


def frame(*shapes: shapely.Geometry) -> gpd.GeoDataFrame:
    return gpd.GeoDataFrame(geometry=list(shapes), crs=4326)


def inside_of(boxes: gpd.GeoDataFrame, row: int, col: int) -> shapely.Polygon:
    """A small area inside a box."""
    box = boxes[(boxes["row"] == row) & (boxes["col"] == col)]
    return box.to_crs(4326).geometry.iloc[0].centroid.buffer(0.005)


def test_a_box_with_no_data_is_not_counted(area: Area, small_store: Path) -> None:
    assert len(area.boxes) == len(ROWS) * (len(COLS) - 1)
    assert NO_DATA_COL not in set(area.boxes["col"])
    every = area.count(frame(shapely.box(-110, 30, -90, 45)))
    assert every.boxes == len(area.boxes)


def test_boxes_with_many_classes_are_counted_separately(area: Area, small_store: Path) -> None:
    boxes = landscape(DatasetStore(root=str(small_store)))
    cells = [(225, 305), (225, 306), (230, 320)]
    assert [number_of_classes(*cell) for cell in cells] == [11, 12, 5]
    count = area.count(frame(*(inside_of(boxes, *cell) for cell in cells)))
    assert (count.boxes, count.rich, count.chips, count.repaired) == (3, 2, 2, 0)


def test_tiles_are_those_of_the_boxes(area: Area, small_store: Path) -> None:
    store = DatasetStore(root=str(small_store))
    aoi = frame(shapely.box(-100.2, 37.6, -99.1, 38.3))
    boxes = filter_aoi(landscape(store), aoi)
    mapped = map_chips(boxes, read_table(store, tile_grid_table(), TILE_GRID), "projected", "drop")
    count = area.count(aoi)
    assert count.tiles == sorted(mapped["tile"].dropna().unique())
    assert count.boxes == len(boxes) and len(count.tiles) > 1


def test_an_empty_drawing_contains_nothing(area: Area) -> None:
    count = area.count(frame())
    assert (count.boxes, count.rich, count.chips, count.tiles, count.km2) == (0, 0, 0, [], 0)


def test_the_area_has_edges_straight_in_degrees_and_counts_an_overlap_once(area: Area) -> None:
    # of a spherical zone of the authalic radius, whose area differs from the ellipsoid's by little
    west, south, east, north = -102, 36, -96, 40
    radius = 6371.0072
    zone = radius**2 * np.deg2rad(east - west) * (np.sin(np.deg2rad(north)) - np.sin(np.deg2rad(south)))
    whole = shapely.box(west, south, east, north)
    assert area.count(frame(whole, whole.buffer(-1))).km2 == pytest.approx(zone, rel=0.005)
    # straight edges in EPSG:5070 alone would be off by more than that here
    wide = area.count(frame(shapely.box(-126, 36, -66, 37))).km2
    strip = radius**2 * np.deg2rad(60) * (np.sin(np.deg2rad(37)) - np.sin(np.deg2rad(36)))
    assert wide == pytest.approx(strip, rel=0.005)


def test_chips_are_limited_by_the_recipe(small_store: Path, tmp_path: Path) -> None:
    store = DatasetStore(root=str(small_store))
    everything = frame(shapely.box(-110, 30, -90, 45))
    few = load_area(store, LAYOUT, DatasetRecipe(chips=40)).count(everything)
    assert few.chips == 40 < few.rich
    every = load_area(store, LAYOUT, DatasetRecipe(sampling="all")).count(everything)
    assert every.chips == every.boxes > every.rich
    poor = load_area(store, LAYOUT, DatasetRecipe(min_classes=13)).count(everything)
    assert (
        poor.chips == poor.rich == sum(number_of_classes(r, c) == 13 for r in ROWS for c in COLS if c != 303)
    )


def test_boxes_of_a_file_are_used_as_they_are(small_store: Path, tmp_path: Path) -> None:
    store = DatasetStore(root=str(small_store))
    write_chip_geojson(landscape(store).head(50), tmp_path / "boxes.geojson", "EPSG:5070")
    recipe = DatasetRecipe(chip_boxes=str(tmp_path / "boxes.geojson"), chips=10)
    count = load_area(store, LAYOUT, recipe).count(frame(shapely.box(-110, 30, -90, 45)))
    assert (count.boxes, count.chips) == (50, 50)


def test_the_error_of_a_missing_table_says_what_to_do(store: DatasetStore) -> None:
    with pytest.raises(
        InputError, match=r"no table .*2021/tables/candidate_chips.*launch labels_job for 2021"
    ):
        load_area(store, Layout(LAYOUT.dataset, 2021), DatasetRecipe())
    store.remove(tile_grid_table())
    with pytest.raises(InputError, match=r"no table tile_grid\.parquet"):
        load_area(store, LAYOUT, DatasetRecipe())


def test_an_area_is_refused_with_the_message_of_the_graph(area: Area, small_store: Path) -> None:
    boxes = landscape(DatasetStore(root=str(small_store)))
    for aoi in (frame(), frame(shapely.box(10, 50, 11, 51))):
        with pytest.raises(InputError) as here:
            area.require_boxes(aoi)
        with pytest.raises(InputError) as there:
            filter_aoi(boxes, aoi)
        assert str(here.value) == str(there.value)
    area.require_boxes(frame(inside_of(boxes, 230, 310)))


_LON, _LAT = st.floats(-103, -96), st.floats(35.5, 40)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(polygons=st.lists(st.lists(st.tuples(_LON, _LAT), min_size=3, max_size=8), min_size=1, max_size=3))
def test_counts_are_those_of_the_graph_for_the_saved_file(
    polygons: list[list[tuple[float, float]]], area: Area, small_store: Path, tmp_path: Path
) -> None:
    """Holds for any drawing, including self-intersecting ones."""
    drawing = read_drawing(json.dumps(collection(*([*ring, ring[0]] for ring in polygons))).encode())
    told = area.count(drawing.frame())
    path = tmp_path / "aoi.geojson"
    path.write_bytes(drawing.to_bytes())
    boxes = landscape(DatasetStore(root=str(small_store)))
    if told.boxes == 0:
        with pytest.raises(InputError, match=r"touches no chip box|has no geometry"):
            filter_aoi(boxes, read_aoi(path))
        return
    assert len(filter_aoi(boxes, read_aoi(path))) == told.boxes


def test_a_rectangle_counts_the_boxes_that_it_touches(area: Area) -> None:
    drawing = read_drawing(json.dumps(collection(rectangle(-99.5, 37.5, -99, 38))).encode())
    boxes = area.boxes
    expected = boxes.intersects(shapely.box(-99.5, 37.5, -99, 38)).sum()
    assert area.count(drawing.frame()).boxes == expected > 20
