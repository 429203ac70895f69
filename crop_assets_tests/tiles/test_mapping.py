from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import rasterio.warp
import shapely

from crop_assets.chip_grid import GRID_COLS, GRID_ROWS, chip_position
from crop_assets.errors import InputError
from crop_assets.labels.cdl import ChipHistograms
from crop_assets.labels.sampling import candidate_boxes, weighed_boxes
from crop_assets.tiles.grid import hls_tile_bounds
from crop_assets.tiles.mapping import map_chips

FALSE_TILE, TRUE_TILE = "01SBS", "11SPS"


def boxes_of(cells: Any) -> gpd.GeoDataFrame:
    rows, cols = np.array(cells, dtype=np.int32).reshape(-1, 2).T
    counts = np.zeros((len(rows), 14), np.int32)
    return weighed_boxes(candidate_boxes(ChipHistograms(rows, cols, counts, np.zeros(256, np.int64))), 1)


@pytest.fixture(scope="module")
def published(real: Path) -> pd.DataFrame:
    return pd.read_csv(real / "tables" / "chip_df.csv")


@pytest.fixture(scope="module")
def published_boxes(published: pd.DataFrame) -> gpd.GeoDataFrame:
    return boxes_of([chip_position(name) for name in published["chip_id"]])


def test_degrees_gives_the_published_tile_of_every_chip_but_the_false_one(
    official_grid: gpd.GeoDataFrame, published: pd.DataFrame, published_boxes: gpd.GeoDataFrame
) -> None:
    mapped = map_chips(published_boxes, official_grid, "degrees")
    assert mapped["chip_id"].tolist() == published["chip_id"].tolist()
    np.testing.assert_allclose(
        mapped[["chip_x", "chip_y"]], published[["chip_x", "chip_y"]], rtol=0, atol=1e-12
    )
    assert (published["tile"] == FALSE_TILE).sum() == 1
    expected = published["tile"].replace(FALSE_TILE, TRUE_TILE).tolist()
    assert mapped["tile"].tolist() == expected


def test_projected_agrees_with_the_published_tile_but_for_eleven_of_two_thousand(
    official_grid: gpd.GeoDataFrame, published: pd.DataFrame, published_boxes: gpd.GeoDataFrame
) -> None:
    mapped = map_chips(published_boxes, official_grid, "projected")
    assert (mapped["tile"].to_numpy() == published["tile"].to_numpy()).sum() == 1989


@pytest.mark.parametrize("rule", ["projected", "degrees"])
def test_every_published_chip_lies_inside_its_tile(
    official_grid: gpd.GeoDataFrame, published_boxes: gpd.GeoDataFrame, rule: Any
) -> None:
    mapped = map_chips(published_boxes, official_grid, rule)
    assert mapped["contained"].all()
    assert (mapped["margin_m"] > 30).all()
    assert (mapped["finding"] == "").all()
    assert (mapped["distance_m"] < 80_000).all()


def test_margin_is_the_distance_to_the_edge_of_the_raster(official_grid: gpd.GeoDataFrame) -> None:
    boxes = boxes_of([(184, 236), (230, 307), (50, 114)])
    mapped = map_chips(boxes, official_grid, "projected")
    polygons = official_grid.set_index("tile").geometry
    for i, row in mapped.iterrows():
        tile = hls_tile_bounds(row["tile"], polygons[row["tile"]])
        corners = list(boxes.geometry[i].exterior.coords)[:4]
        projected = rasterio.warp.transform("EPSG:5070", f"EPSG:{tile.epsg}", *zip(*corners, strict=True))
        x, y = map(np.array, projected)
        to_edges = [x - tile.left, tile.right - x, y - tile.bottom, tile.top - y]
        nearest = np.min(to_edges)
        assert row["margin_m"] == pytest.approx(nearest, abs=0.001)
        assert row["contained"]


def test_chip_beyond_its_tile_has_a_finding_and_a_far_tile_is_no_tile(
    official_grid: gpd.GeoDataFrame,
) -> None:
    alone = official_grid[official_grid["tile"] == "14SNH"]
    tile = hls_tile_bounds("14SNH", alone.geometry.iloc[0])
    x, y = rasterio.warp.transform(
        f"EPSG:{tile.epsg}", "EPSG:5070", [tile.left + 50_000, tile.left], [tile.bottom + 50_000] * 2
    )
    inside, astride = (
        (int((3172605 - b) // 6720), int((a + 2356095) // 6720)) for a, b in zip(x, y, strict=True)
    )
    far = (100, 100)
    mapped = map_chips(boxes_of([inside, astride, far]), alone, "projected")
    assert mapped["contained"].tolist() == [True, False, False]
    assert mapped["tile"].isna().tolist() == [False, False, True]
    assert mapped["finding"][0] == ""
    assert "m beyond its tile 14SNH" in mapped["finding"][1]
    assert "wholly outside the nearest tile 14SNH" in mapped["finding"][2]
    assert -7000 < mapped["margin_m"][1] < 0
    assert mapped["margin_m"][2] < -500_000
    assert mapped["distance_m"][2] > 500_000


def test_false_centroid_cannot_lead_to_a_far_tile(official_grid: gpd.GeoDataFrame) -> None:
    box = boxes_of([(284, 79)])
    grid = official_grid[official_grid["tile"].isin([FALSE_TILE, TRUE_TILE])].copy()
    grid.loc[grid["tile"] == FALSE_TILE, ["lon", "lat"]] = box[["lon", "lat"]].to_numpy()
    mapped = map_chips(box, grid, "degrees")
    assert mapped["tile"].isna().all()
    assert mapped["finding"].str.contains("wholly outside the nearest tile 01SBS").all()


def test_equally_near_tiles_go_by_name_whatever_the_order(official_grid: gpd.GeoDataFrame) -> None:
    box = boxes_of([(230, 307)])
    home = official_grid[official_grid["tile"] == map_chips(box, official_grid, "projected")["tile"][0]]
    four = pd.concat([home] * 4, ignore_index=True)
    four["tile"] = ["14SXH", "14SNH", "14SMH", "14SQH"]
    four[["x", "y"]] = box[["x", "y"]].to_numpy() + np.array([[1000, 0], [-1000, 0], [0, 1000], [0, -1000]])
    for seed in range(5):
        shuffled = four.sample(frac=1, random_state=seed)
        assert map_chips(box, shuffled, "projected")["tile"][0] == "14SMH"


def test_tile_without_a_projected_centroid_is_passed_over(official_grid: gpd.GeoDataFrame) -> None:
    boxes = boxes_of([(230, 307)])
    polar = gpd.GeoDataFrame(
        {"tile": ["33XVP"], "lon": [10.0], "lat": [84.0], "x": [np.inf], "y": [np.inf]},
        geometry=[shapely.box(5, 83, 15, 84)],
        crs=4326,
    )
    both = pd.concat([official_grid, polar])
    pd.testing.assert_frame_equal(
        map_chips(boxes, both, "projected"), map_chips(boxes, official_grid, "projected")
    )
    with pytest.raises(InputError, match="none with a centroid"):
        map_chips(boxes, polar, "projected")
    with pytest.raises(InputError, match="of 0 tiles"):
        map_chips(boxes, official_grid.iloc[:0], "degrees")


def test_no_chips_make_an_empty_map(official_grid: gpd.GeoDataFrame) -> None:
    some, none = (map_chips(boxes_of(c), official_grid, "projected") for c in ([(230, 307)], []))
    assert none.empty
    assert none.dtypes.to_dict() == some.dtypes.to_dict()


def test_the_whole_country_is_mapped(official_grid: gpd.GeoDataFrame) -> None:
    boxes = boxes_of([(row, col) for row in range(0, GRID_ROWS, 3) for col in range(0, GRID_COLS, 3)])
    mapped = map_chips(boxes, official_grid, "projected")
    assert mapped["tile"].notna().all()
    assert mapped["contained"].mean() > 0.999


def test_a_box_outside_its_nearest_tile_goes_to_the_one_that_holds_it_if_that_is_wanted(
    official_grid: gpd.GeoDataFrame,
) -> None:
    box = boxes_of([(284, 79)])
    grid = official_grid[official_grid["tile"].isin([FALSE_TILE, TRUE_TILE])].copy()
    grid.loc[grid["tile"] == FALSE_TILE, ["lon", "lat"]] = box[["lon", "lat"]].to_numpy()
    assert map_chips(box, grid, "degrees", "drop")["tile"].isna().all()
    mapped = map_chips(box, grid, "degrees", "reassign")
    assert list(mapped["tile"]) == [TRUE_TILE]
    assert mapped["contained"].all()
    assert mapped["margin_m"][0] > 0
    alone = grid[grid["tile"] == FALSE_TILE]
    assert map_chips(box, alone, "degrees", "reassign")["tile"].isna().all()
    inside = map_chips(box, official_grid, "projected", "reassign")
    assert inside.equals(map_chips(box, official_grid, "projected", "drop"))
