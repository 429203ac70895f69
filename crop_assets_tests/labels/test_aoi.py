import json
from pathlib import Path

import geopandas as gpd
import pandas as pd
import pytest
import shapely
import shapely.affinity

from crop_assets.errors import InputError
from crop_assets.labels.aoi import aoi_checksum, aoi_shapes, filter_aoi, read_aoi


def point_aoi(boxes: gpd.GeoDataFrame, row: int) -> gpd.GeoDataFrame:
    return gpd.GeoDataFrame(geometry=[boxes.geometry[row].centroid.buffer(100)], crs=5070)


@pytest.mark.parametrize("crs", [5070, 4326, 3857, 32614, 4269])
def test_aoi_may_be_in_any_crs(block: gpd.GeoDataFrame, crs: int) -> None:
    inside = filter_aoi(block, point_aoi(block, 6).to_crs(crs))
    assert inside["chip_id"].tolist() == [block["chip_id"][6]]
    assert list(inside.columns) == list(block.columns)


def test_aoi_of_several_polygons_takes_each_box_once_in_order(block: gpd.GeoDataFrame) -> None:
    aoi = pd.concat([point_aoi(block, 11), point_aoi(block, 2), point_aoi(block, 11)])
    assert filter_aoi(block, aoi)["chip_id"].tolist() == block["chip_id"][[2, 11]].tolist()


def test_self_intersecting_aoi_is_repaired(block: gpd.GeoDataFrame) -> None:
    left, bottom, right, top = block.geometry[5].buffer(-100).bounds
    bow_tie = shapely.Polygon([(left, bottom), (right, top), (right, bottom), (left, top)])
    assert not bow_tie.is_valid
    chosen = filter_aoi(block, gpd.GeoDataFrame(geometry=[bow_tie], crs=5070))
    assert chosen["chip_id"].tolist() == [block["chip_id"][5]]


def test_edge_of_an_aoi_in_degrees_is_straight_in_degrees(block: gpd.GeoDataFrame) -> None:
    # at 38 N a parallel bows 25 km from the chord of its ends 20 degrees apart
    south, north = block["lat"].min() - 0.01, block["lat"].max() + 0.01
    aoi = gpd.GeoDataFrame(geometry=[shapely.box(-109, south, -89, north)], crs=4326)
    assert len(filter_aoi(block, aoi)) == len(block)


def test_aoi_elsewhere_is_refused_with_both_bounds(block: gpd.GeoDataFrame) -> None:
    aoi = gpd.GeoDataFrame(geometry=[shapely.box(5, 45, 6, 46)], crs=4326)
    with pytest.raises(
        InputError,
        match=r"touches no chip box: in EPSG:4326 the AOI lies within \(5, 45, 6, 46\), the 12 boxes",
    ):
        filter_aoi(block, aoi)


def test_aoi_without_crs_or_geometry_is_refused(block: gpd.GeoDataFrame, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no CRS"):
        filter_aoi(block, gpd.GeoDataFrame(geometry=[shapely.box(0, 0, 1, 1)]))
    with pytest.raises(InputError, match="has no geometry"):
        filter_aoi(block, gpd.GeoDataFrame(geometry=[shapely.Polygon(), None], crs=5070))


def test_aoi_files(block: gpd.GeoDataFrame, tmp_path: Path) -> None:
    square = {"type": "Polygon", "coordinates": [[[-99, 38], [-98, 38], [-98, 39], [-99, 38]]]}
    (tmp_path / "aoi.geojson").write_text(json.dumps(square))
    assert read_aoi(tmp_path / "aoi.geojson").crs.to_epsg() == 4326
    point_aoi(block, 3).to_file(tmp_path / "aoi.gpkg")
    assert len(filter_aoi(block, read_aoi(tmp_path / "aoi.gpkg"))) == 1

    with pytest.raises(InputError, match=r"nowhere\.geojson cannot be read"):
        read_aoi(tmp_path / "nowhere.geojson")
    (tmp_path / "broken.geojson").write_text('{"type": "Featu')
    with pytest.raises(InputError, match=r"broken\.geojson cannot be read"):
        read_aoi(tmp_path / "broken.geojson")
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="has no geometry"):
        read_aoi(tmp_path / "table.csv")


def crossing(west: float, east: float, south: float = 36, north: float = 41) -> gpd.GeoDataFrame:
    return gpd.GeoDataFrame(
        geometry=[shapely.Polygon([(west, south), (east, south), (east, north), (west, north)])], crs=4326
    )


@pytest.mark.parametrize(("west", "east"), [(170, 260.75), (-190, -99.15), (150, -99.2)])
def test_aoi_across_the_antimeridian_takes_what_lies_in_it(
    block: gpd.GeoDataFrame, west: float, east: float
) -> None:
    chosen = filter_aoi(block, crossing(west, east))
    edge = (east + 180) % 360 - 180
    expected = block[block.to_crs(4326).bounds["minx"] <= edge]
    assert 0 < len(expected) < len(block)
    assert chosen["chip_id"].tolist() == expected["chip_id"].tolist()


def test_an_edge_of_more_than_half_the_world_goes_the_short_way(block: gpd.GeoDataFrame) -> None:
    with pytest.raises(InputError, match=r"touches no chip box: .* \(-180, 36, 180, 41\)"):
        filter_aoi(block, crossing(-160, 100))


def test_aoi_of_the_whole_world_takes_all(block: gpd.GeoDataFrame) -> None:
    world = gpd.GeoDataFrame(geometry=[shapely.box(-180, -90, 180, 90)], crs=4326)
    assert len(filter_aoi(block, world)) == len(block)
    assert len(
        filter_aoi(block, gpd.GeoDataFrame(geometry=[shapely.box(-2e7, -2e7, 2e7, 2e7)], crs=3857))
    ) == len(block)


def test_two_halves_of_an_aoi_at_the_antimeridian_are_one(block: gpd.GeoDataFrame) -> None:
    halves = shapely.MultiPolygon([shapely.box(170, 30, 180, 45), shapely.box(-180, 30, -90, 45)])
    assert len(filter_aoi(block, gpd.GeoDataFrame(geometry=[halves], crs=4326))) == len(block)


def ring(west: float, south: float, east: float, north: float) -> list[tuple[float, float]]:
    return [(west, south), (east, south), (east, north), (west, north)]


@pytest.mark.parametrize("turn", [0, 360, -360, 720])
def test_holes_stay_holes_however_far_round_longitudes_are_counted(
    block: gpd.GeoDataFrame, turn: float
) -> None:
    left, bottom, right, top = block.to_crs(4326).total_bounds
    hole = block.to_crs(4326).geometry[5].buffer(-0.001).bounds
    shape = shapely.Polygon(ring(left, bottom, right, top), [ring(*hole)])
    shape = shapely.affinity.translate(shape, turn)
    aoi = gpd.GeoDataFrame(geometry=[shape], crs=4326)
    assert set(block["chip_id"]) == set(filter_aoi(block, aoi)["chip_id"])
    wide = block.to_crs(4326).geometry[5].buffer(0.001).bounds
    shape = shapely.affinity.translate(shapely.Polygon(ring(left, bottom, right, top), [ring(*wide)]), turn)
    chosen = filter_aoi(block, gpd.GeoDataFrame(geometry=[shape], crs=4326))
    assert set(block["chip_id"]) - set(chosen["chip_id"]) == {block["chip_id"][5]}


def test_a_hole_at_the_antimeridian_is_cut_with_its_polygon() -> None:
    shape = shapely.Polygon(ring(170, 30, -160, 45), [ring(175, 35, -170, 40)])
    cut = shapely.union_all(aoi_shapes(gpd.GeoDataFrame(geometry=[shape], crs=4326)))
    assert cut.area == pytest.approx(30 * 15 - 15 * 5)
    assert cut.contains(shapely.Point(172, 37))
    assert not cut.intersects(shapely.Point(-179, 37))
    assert cut.contains(shapely.Point(-165, 37))


def test_a_polygon_around_a_pole_and_coordinates_that_are_none_are_refused() -> None:
    around = shapely.Polygon([(0, 80), (120, 80), (-120, 80), (0, 80)])
    with pytest.raises(InputError, match="goes round a pole"):
        aoi_shapes(gpd.GeoDataFrame(geometry=[around], crs=4326))
    odd = shapely.Polygon([(0, 0), (1, 0), (1, float("inf")), (0, 0)])
    with pytest.raises(InputError, match="no finite numbers"):
        aoi_shapes(gpd.GeoDataFrame(geometry=[odd], crs=5070))


def test_collections_of_collections_are_taken_apart(block: gpd.GeoDataFrame) -> None:
    inner = shapely.MultiPolygon([block.to_crs(4326).geometry[i].buffer(-0.01) for i in (0, 11)])
    outer = shapely.GeometryCollection([shapely.GeometryCollection([shapely.affinity.translate(inner, 360)])])
    chosen = filter_aoi(block, gpd.GeoDataFrame(geometry=[outer], crs=4326))
    assert chosen["chip_id"].tolist() == block["chip_id"][[0, 11]].tolist()


def test_all_layers_of_a_file_count(block: gpd.GeoDataFrame, tmp_path: Path) -> None:
    point_aoi(block, 2).to_file(tmp_path / "aoi.gpkg", layer="west")
    point_aoi(block, 9).to_crs(4326).to_file(tmp_path / "aoi.gpkg", layer="east")
    chosen = filter_aoi(block, read_aoi(tmp_path / "aoi.gpkg"))
    assert chosen["chip_id"].tolist() == block["chip_id"][[2, 9]].tolist()


def test_the_same_area_has_the_same_checksum_in_any_file(block: gpd.GeoDataFrame, tmp_path: Path) -> None:
    area = point_aoi(block, 2)
    names = ("aoi.gpkg", "aoi.fgb", "aoi.shp")
    for name in names:
        area.to_file(tmp_path / name)
    area.to_parquet(tmp_path / "aoi.parquet")
    first, *others = (read_aoi(tmp_path / name) for name in (*names, "aoi.parquet"))
    assert len({aoi_checksum(aoi) for aoi in (first, others[0], others[2])}) == 1
    assert aoi_checksum(first) != aoi_checksum(first.to_crs(4326))
    assert aoi_checksum(first) != aoi_checksum(point_aoi(block, 3))
    assert all(len(filter_aoi(block, aoi)) == 1 for aoi in (first, *others))
