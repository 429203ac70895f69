import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
import shapely.affinity
import shapely.geometry

from crop_assets.errors import InputError
from crop_assets.labels import aoi as aoi_module
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
        match=r"touches no chip box: in EPSG:4326 the bounds of the AOI are \(5, 45, 6, 46\), those of the 12 boxes",
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
    with pytest.raises(
        InputError, match=r"table\.csv is not a \.geojson, .* or \.parquet file; save it as one"
    ):
        read_aoi(tmp_path / "table.csv")


def crossing(west: float, east: float, south: float = 36, north: float = 41) -> gpd.GeoDataFrame:
    return gpd.GeoDataFrame(
        geometry=[shapely.Polygon([(west, south), (east, south), (east, north), (west, north)])], crs=4326
    )


@pytest.mark.parametrize(("west", "east"), [(170, 260.75), (-190, -99.15), (150, -99.2)])
def test_aoi_across_the_antimeridian_takes_the_boxes_inside(
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


def test_two_halves_of_an_aoi_at_the_antimeridian_are_joined(block: gpd.GeoDataFrame) -> None:
    halves = shapely.MultiPolygon([shapely.box(170, 30, 180, 45), shapely.box(-180, 30, -90, 45)])
    assert len(filter_aoi(block, gpd.GeoDataFrame(geometry=[halves], crs=4326))) == len(block)


def ring(west: float, south: float, east: float, north: float) -> list[tuple[float, float]]:
    return [(west, south), (east, south), (east, north), (west, north)]


@pytest.mark.parametrize("turn", [0, 360, -360, 720])
def test_holes_stay_holes_however_often_longitudes_wrap(block: gpd.GeoDataFrame, turn: float) -> None:
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


def test_a_polygon_around_a_pole_and_invalid_coordinates_are_refused() -> None:
    around = shapely.Polygon([(0, 80), (120, 80), (-120, 80), (0, 80)])
    with pytest.raises(InputError, match="goes around a pole"):
        aoi_shapes(gpd.GeoDataFrame(geometry=[around], crs=4326))
    odd = shapely.Polygon([(0, 0), (1, 0), (1, float("inf")), (0, 0)])
    with pytest.raises(InputError, match="coordinates that are not finite"):
        aoi_shapes(gpd.GeoDataFrame(geometry=[odd], crs=5070))


LOCAL = 'LOCAL_CS["quarry grid",UNIT["metre",1]]'
ENGINEERING = (
    'ENGCRS["harbour",EDATUM["pier 4"],CS[Cartesian,2],AXIS["x",east],AXIS["y",north],'
    'LENGTHUNIT["foot",0.3048]]'
)


@pytest.mark.parametrize(
    ("crs", "name"),
    [
        (LOCAL, r"'quarry grid' \(Engineering CRS\)"),
        (ENGINEERING, r"'harbour' \(Engineering CRS\)"),
        (5703, "'NAVD88 height'"),
        (4978, r"'WGS 84' \(Geocentric CRS\)"),
    ],
)
def test_a_crs_that_is_not_tied_to_the_earth_is_refused(
    block: gpd.GeoDataFrame, tmp_path: Path, crs: Any, name: str
) -> None:
    aoi = gpd.GeoDataFrame(geometry=[block.geometry[5]], crs=crs)
    for path, write in ((tmp_path / "aoi.gpkg", aoi.to_file), (tmp_path / "aoi.parquet", aoi.to_parquet)):
        write(path)
        with pytest.raises(InputError, match=f"AOI {path} is in {name}.* where on Earth .*EPSG:4326"):
            read_aoi(path)
    point_aoi(block, 2).to_file(tmp_path / "two.gpkg", layer="west")
    aoi.to_file(tmp_path / "two.gpkg", layer="east")
    with pytest.raises(InputError, match=rf"the layer 'east' of AOI .*two\.gpkg is in {name}"):
        read_aoi(tmp_path / "two.gpkg")
    with pytest.raises(InputError, match=f"the AOI is in {name}"):
        filter_aoi(block, aoi)


def geojson(path: Path, *shapes: shapely.Geometry) -> gpd.GeoDataFrame:
    """Geometries as read from a GeoJSON without a CRS."""
    features = [
        {"type": "Feature", "properties": {}, "geometry": shapely.geometry.mapping(shape)} for shape in shapes
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return read_aoi(path)


@pytest.mark.parametrize(
    ("crs", "advice"),
    [
        (5070, r'metres of EPSG:5070; .*add "crs": {"type": "name", "properties": {"name": "EPSG:5070"}} to'),
        (3857, r'metres of EPSG:3857; .*"EPSG:3857"'),
        (32614, "metres of a UTM zone; save it in the CRS that its coordinates are in"),
    ],
)
def test_a_geojson_in_metres_that_names_no_crs_is_refused(
    block: gpd.GeoDataFrame, tmp_path: Path, crs: int, advice: str
) -> None:
    shape = block.geometry[[5]].to_crs(crs).iloc[0]
    for shapes in ([shape], [shape, shapely.LineString(shape.exterior)]):
        with pytest.raises(
            InputError, match=f"AOI are not degrees, although EPSG:4326, .* look like {advice}"
        ):
            filter_aoi(block, geojson(tmp_path / "aoi.geojson", *shapes))


def test_the_error_guesses_the_crs_of_the_coordinates(block: gpd.GeoDataFrame, tmp_path: Path) -> None:
    degrees = block.to_crs(4326).geometry[5]
    swapped = shapely.transform(degrees, lambda points: points[:, ::-1])
    with pytest.raises(
        InputError, match="look like latitude before longitude; save it with longitude before"
    ):
        filter_aoi(block, geojson(tmp_path / "aoi.geojson", swapped))
    # east of 90 W both ways round are degrees
    east = block.assign(geometry=block.geometry.translate(1.4e6))
    swapped = shapely.transform(east.to_crs(4326).geometry[5], lambda points: points[:, ::-1])
    with pytest.raises(InputError, match=r"touches no chip box: .*; it would with longitude before latitude"):
        filter_aoi(east, geojson(tmp_path / "aoi.geojson", swapped))
    with pytest.raises(InputError, match=r"touches no chip box: .*; its coordinates look like degrees"):
        filter_aoi(block, gpd.GeoDataFrame(geometry=[degrees], crs=5070))


def around(block: gpd.GeoDataFrame, kilometres: float = 5) -> list[tuple[float, float]]:
    """A ring in degrees around all boxes that touches none of them."""
    left, bottom, right, top = block.to_crs(4326).total_bounds
    by = kilometres / 100
    return [*ring(left - by, bottom - by, right + by, top + by), (left - by, bottom - by)]


CLOSED_LINES: dict[str, Callable[[list[tuple[float, float]]], shapely.Geometry]] = {
    "a line": shapely.LineString,
    "a line with heights": lambda ring: shapely.LineString([(*point, 300.0) for point in ring]),
    "a line closed up to noise": lambda ring: shapely.LineString(
        [*ring[:-1], (ring[0][0] + 1e-9, ring[0][1])]
    ),
    "lines": lambda ring: shapely.MultiLineString(
        [ring, [(-98.9, 37.5), (-98.8, 37.5), (-98.8, 37.6), (-98.9, 37.5)]]
    ),
    "a line in pieces": lambda ring: shapely.MultiLineString([ring[:3], ring[2:]]),
    "a collection": lambda ring: shapely.GeometryCollection(
        [shapely.box(-98, 37, -97.9, 37.1), shapely.GeometryCollection([shapely.LineString(ring)])]
    ),
    "a line that crosses itself": lambda ring: shapely.LineString(
        [
            ring[0],
            ring[2],
            (ring[2][0] + 1, ring[2][1]),
            (ring[2][0] + 1, ring[2][1] - 1),
            ring[2],
            ring[3],
            ring[0],
        ]
    ),
}


@pytest.mark.parametrize("kind", CLOSED_LINES)
def test_a_closed_line_counts_as_a_polygon(block: gpd.GeoDataFrame, tmp_path: Path, kind: str) -> None:
    line = CLOSED_LINES[kind](around(block))
    chosen = filter_aoi(block, geojson(tmp_path / "aoi.geojson", line))["chip_id"].tolist()
    if "crosses" in kind:
        # the half above the diagonal, which passes through boxes
        upper = shapely.Polygon([around(block)[i] for i in (0, 2, 3)])
        expected = block[block.to_crs(4326).intersects(upper)]["chip_id"].tolist()
        assert 0 < len(expected) < len(block)
        assert chosen == expected
    else:
        assert chosen == block["chip_id"].tolist()


@pytest.mark.parametrize(
    ("shapes", "found"),
    [
        ([shapely.LineString([(-99.4, 37.3), (-99, 37.3), (-99, 37.7)])], "points: 0, open lines: 1"),
        ([shapely.Point(-99.2, 37.5)], "points: 1, open lines: 0"),
        (
            [shapely.MultiPoint([(-99.2, 37.5), (-99.1, 37.5)]), shapely.box(-99.2, 37.4, -99, 37.6)],
            "points: 2",
        ),
        ([shapely.LineString([(-99.2, 37.5), (-99.1, 37.5), (-99.2, 37.5)])], "open lines: 1"),
        (
            [
                shapely.GeometryCollection(
                    [shapely.box(-99.2, 37.4, -99, 37.6), shapely.LineString([(-99.2, 37.5), (-99.1, 37.5)])]
                )
            ],
            "points: 0, open lines: 1",
        ),
        # a gap of 100 m in 40 km
        ([shapely.LineString([(-99.4, 37.3), (-99, 37.3), (-99, 37.7), (-99.4, 37.301)])], "open lines: 1"),
    ],
)
def test_geometries_without_an_area_are_refused(
    block: gpd.GeoDataFrame, tmp_path: Path, shapes: list[shapely.Geometry], found: str
) -> None:
    with pytest.raises(
        InputError, match=f"without an area .*{found}.*draw polygons, or lines that end where"
    ):
        filter_aoi(block, geojson(tmp_path / "aoi.geojson", *shapes))


def test_a_spike_of_a_polygon_takes_no_boxes(block: gpd.GeoDataFrame, tmp_path: Path) -> None:
    left, bottom, right, top = block.to_crs(4326).geometry[0].buffer(-0.01).bounds
    far = block.to_crs(4326).total_bounds[2]
    spiked = shapely.Polygon([(left, bottom), (right, bottom), (far, bottom), (right, bottom), (right, top)])
    chosen = filter_aoi(block, geojson(tmp_path / "aoi.geojson", spiked))
    assert chosen["chip_id"].tolist() == [block["chip_id"][0]]
    flat = shapely.Polygon([(left, bottom), (right, bottom), (far, bottom)])
    with pytest.raises(InputError, match="no geometry with an area"):
        filter_aoi(block, geojson(tmp_path / "aoi.geojson", flat))


def test_empty_layers_and_features_are_ignored(block: gpd.GeoDataFrame, tmp_path: Path) -> None:
    nothing = gpd.GeoDataFrame(geometry=[], crs=LOCAL)
    nothing.to_file(tmp_path / "aoi.gpkg", layer="notes")
    with pytest.raises(InputError, match="has no geometry"):
        filter_aoi(block, read_aoi(tmp_path / "aoi.gpkg"))
    point_aoi(block, 9).to_file(tmp_path / "aoi.gpkg", layer="area")
    assert filter_aoi(block, read_aoi(tmp_path / "aoi.gpkg"))["chip_id"].tolist() == [block["chip_id"][9]]
    empty = geojson(tmp_path / "aoi.geojson", shapely.box(-99.2, 37.4, -99, 37.6), shapely.Polygon())
    assert len(filter_aoi(block, empty)) > 1
    (tmp_path / "aoi.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    with pytest.raises(InputError, match="has no geometry"):
        filter_aoi(block, read_aoi(tmp_path / "aoi.geojson"))


def test_collections_of_collections_are_taken_apart(block: gpd.GeoDataFrame) -> None:
    inner = shapely.MultiPolygon([block.to_crs(4326).geometry[i].buffer(-0.01) for i in (0, 11)])
    outer = shapely.GeometryCollection([shapely.GeometryCollection([shapely.affinity.translate(inner, 360)])])
    chosen = filter_aoi(block, gpd.GeoDataFrame(geometry=[outer], crs=4326))
    assert chosen["chip_id"].tolist() == block["chip_id"][[0, 11]].tolist()


def test_all_layers_of_a_file_are_used(block: gpd.GeoDataFrame, tmp_path: Path) -> None:
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


def scribble(west: float, seed: int) -> shapely.Polygon:
    points = np.random.default_rng(seed).random((70, 2))
    return shapely.Polygon(points + np.array([west, 38]))


@pytest.mark.parametrize("west", [-99, 261, -459])
def test_crossings_are_bounded_over_all_polygons(west: float) -> None:
    assert len(aoi_shapes(gpd.GeoDataFrame(geometry=[scribble(west, 1)], crs=4326)))
    many = gpd.GeoDataFrame(geometry=[scribble(west, seed) for seed in range(30)], crs=4326)
    with pytest.raises(InputError, match="outlines cross themselves more than 1,000 times"):
        aoi_shapes(many)


def test_too_many_overlapping_polygons_are_refused(
    block: gpd.GeoDataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aoi_module, "MAX_CANDIDATE_PAIRS", 10 * len(block))
    whole = shapely.box(*block.total_bounds)
    assert len(filter_aoi(block, gpd.GeoDataFrame(geometry=[whole] * 10, crs=5070))) == len(block)
    with pytest.raises(InputError, match="too many overlapping polygons; merge them into one"):
        filter_aoi(block, gpd.GeoDataFrame(geometry=[whole.buffer(i) for i in range(11)], crs=5070))
