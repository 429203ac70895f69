import json
import struct
import sys
import zipfile
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import rasterio
import shapely
import shapely.affinity
from hypothesis import given
from hypothesis import strategies as st

from crop_assets.chip_grid import CHIP_METRES, GRID_COLS, GRID_ROWS, MAX_TILES, ORIGIN_X, ORIGIN_Y
from crop_assets.errors import InputError
from crop_assets.hls import hls_bounds
from crop_assets.schemas import tile_names
from crop_assets.tiles import grid as grid_module
from crop_assets.tiles.grid import (
    hls_tile_bounds,
    official_grid_path,
    read_tile_grid,
)

COLUMNS = ["tile", "lon", "lat", "x", "y", "minx", "miny", "maxx", "maxy", "geometry"]
SQUARE = shapely.Polygon([(-99, 39), (-98, 39), (-98, 38), (-99, 38)])
KML = """<?xml version="1.0" encoding="UTF-8"?>
<kml xmlns="http://www.opengis.net/kml/2.2"><Document><Placemark><name>14SNH</name><MultiGeometry>
<Polygon><outerBoundaryIs><LinearRing><coordinates>-99,39,0 -98,39,0 -98,38,0 -99,38,0 -99,39,0
</coordinates></LinearRing></outerBoundaryIs></Polygon><Point><coordinates>-98.5,38.5,0</coordinates></Point>
</MultiGeometry></Placemark></Document></kml>
"""


def collection(**geometries: shapely.Geometry) -> str:
    features = [
        {"type": "Feature", "properties": {"Name": name}, "geometry": shapely.geometry.mapping(geometry)}
        for name, geometry in geometries.items()
    ]
    return json.dumps({"type": "FeatureCollection", "features": features})


@pytest.fixture
def geojson(tmp_path: Path) -> Any:
    def write(**geometries: shapely.Geometry) -> Path:
        path = tmp_path / "grid.geojson"
        path.write_text(collection(**geometries))
        return path

    return write


def test_finding_the_official_grid_does_not_import_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "s2tiling", raising=False)
    assert official_grid_path().is_file()
    assert "s2tiling" not in sys.modules


def test_missing_package_is_an_input_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="s2tiling"):
        official_grid_path()


def test_the_chip_grid_touches_fewer_tiles_than_any_tile_map_may_name(
    official_grid: gpd.GeoDataFrame,
) -> None:
    height, width = CHIP_METRES * GRID_ROWS, CHIP_METRES * GRID_COLS
    area = shapely.box(ORIGIN_X, ORIGIN_Y - height, ORIGIN_X + width, ORIGIN_Y)
    area = gpd.GeoSeries([area.segmentize(10_000)], crs=5070).to_crs(4326).iloc[0]
    touched = official_grid["tile"][official_grid.intersects(area)]
    assert len(touched) == 1572 < MAX_TILES
    assert tile_names(pd.DataFrame({"tile": ["", *touched, touched.iloc[0]]})) == sorted(touched)


def test_official_grid_has_every_tile_once(official_grid: gpd.GeoDataFrame) -> None:
    assert list(official_grid.columns) == COLUMNS
    assert len(official_grid) == 56_686
    assert official_grid["tile"].is_unique
    assert official_grid["tile"].is_monotonic_increasing
    assert official_grid.crs.to_epsg() == 4326
    assert (official_grid.geometry.geom_type == "Polygon").all()
    assert np.isfinite(official_grid[COLUMNS[1:-1]].to_numpy()).all()
    assert official_grid["lon"].between(-180, 180, inclusive="left").all()
    assert ((official_grid["maxx"] - official_grid["minx"]) < 11).all()
    assert (official_grid["minx"] < official_grid["lon"]).all()
    assert (official_grid["lon"] < official_grid["maxx"]).all()


def test_tiles_in_one_piece_have_the_plain_centroid_in_degrees(official_grid: gpd.GeoDataFrame) -> None:
    across = (official_grid["minx"] < -180) | (official_grid["maxx"] > 180)
    assert across.sum() == 298
    plain = official_grid[~across]
    centroids = shapely.get_coordinates(shapely.centroid(plain.geometry.to_numpy()))
    np.testing.assert_array_equal(plain[["lon", "lat"]].to_numpy(), centroids)
    tile = official_grid.set_index("tile").loc["11SPS"]
    assert (tile["lon"], tile["lat"]) == pytest.approx((-115.343, 32.933), abs=0.001)


def test_tile_across_the_antimeridian_has_its_true_centroid(official_grid: gpd.GeoDataFrame) -> None:
    tile = official_grid.set_index("tile").loc["01SBS"]
    assert (tile["lon"], tile["lat"]) == pytest.approx((-179.62, 32.916), abs=0.01)
    assert (tile["minx"], tile["maxx"]) == pytest.approx((-180.2255, -179.0232), abs=1e-4)
    assert tile["x"] < -6_000_000


@given(st.integers(-3600, 3600), st.integers(1, 60), st.integers(-60, 60), st.booleans())
def test_centroid_does_not_depend_on_where_the_antimeridian_cuts(
    tmp_path_factory: pytest.TempPathFactory, west: int, width: int, south: int, in_pieces: bool
) -> None:
    left, right = west / 20, west / 20 + width / 10
    box = shapely.box(left, south, right, south + 1)
    if in_pieces:
        turns = [(shapely.box(edge, -90, edge + 360, 90), edge + 180) for edge in (-540, -180, 180)]
        parts = [
            shapely.affinity.translate(shapely.intersection(box, world), -degrees) for world, degrees in turns
        ]
        box = shapely.MultiPolygon([part for part in parts if part.area > 0])
    path = tmp_path_factory.mktemp("grid") / "grid.geojson"
    path.write_text(collection(**{"01SBS": box}))
    tile = read_tile_grid(path).iloc[0]
    lon = (left + right) / 2
    assert tile["lon"] == pytest.approx((lon + 180) % 360 - 180, abs=1e-9)
    assert tile["lat"] == pytest.approx(south + 0.5, abs=1e-9)
    assert tile["maxx"] - tile["minx"] == pytest.approx(width / 10, abs=1e-9)
    assert tile["minx"] < tile["lon"] < tile["maxx"]


@pytest.mark.parametrize(
    "name", ["grid.kml", "grid.kmz", "grid.zip", "grid.geojson", "grid.gpkg", "grid.parquet"]
)
def test_every_form_of_grid_gives_the_same_tiles(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    frame = gpd.GeoDataFrame({"TILE_ID": ["14SNH"]}, geometry=[SQUARE], crs=4326)
    match path.suffix:
        case ".kml":
            path.write_text(KML)
        case ".kmz" | ".zip":
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("read me.txt", "a grid")
                archive.writestr("some folder/doc.kml", KML)
        case ".geojson":
            path.write_text(collection(**{"14SNH": SQUARE}))
        case ".gpkg":
            frame.to_crs(3857).to_file(path)
        case ".parquet":
            frame.to_parquet(path)
    grid = read_tile_grid(path)
    assert list(grid.columns) == COLUMNS
    assert grid["tile"].tolist() == ["14SNH"]
    np.testing.assert_allclose(grid.geometry[0].bounds, (-99, 38, -98, 39), rtol=0, atol=1e-9)
    assert (grid["lon"][0], grid["lat"][0]) == pytest.approx((-98.5, 38.5))
    assert (grid["x"][0], grid["y"][0]) == pytest.approx((-216_000, 1_720_000), abs=5_000)


def test_stored_grid_reads_back_the_same(official_grid: gpd.GeoDataFrame, tmp_path: Path) -> None:
    some = official_grid.iloc[::2000].reset_index(drop=True)
    some.to_parquet(tmp_path / "tile_grid.parquet")
    pd.testing.assert_frame_equal(read_tile_grid(tmp_path / "tile_grid.parquet"), some)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"../grid.kml": KML}, r"unsafe name '\.\./grid\.kml'"),
        ({"/etc/grid.kml": KML}, "unsafe name '/etc/grid.kml'"),
        ({"a\\grid.kml": KML}, "unsafe name"),
        ({"c:/grid.kml": KML}, "unsafe name"),
        ({"a.kml": KML, "b.geojson": "{}"}, r"one vector file, found 2: a\.kml, b\.geojson"),
        ({"read me.txt": "nothing"}, "one vector file, found 0: none"),
    ],
)
def test_unsafe_or_ambiguous_archive_is_refused(
    tmp_path: Path, members: dict[str, str], message: str
) -> None:
    path = tmp_path / "grid.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(InputError, match=message):
        read_tile_grid(path)


def test_archive_that_unpacks_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "grid.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("grid.kml", KML)
    data = bytearray(path.read_bytes())
    # the directory says that the file has a byte more than a GiB, compressed or not
    struct.pack_into("<II", data, data.index(b"PK\1\2") + 20, 2**30 + 1, 2**30 + 1)
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"unpacks to 1\.0 GiB; the most is 1\.0 GiB"):
        read_tile_grid(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("grid.zip", b"PK no zip", "is not a zip archive"),
        ("grid.kml", b"<html/>", "cannot be read"),
        ("grid.parquet", b"PAR1", "cannot be read"),
        ("grid.csv", b"tile\n14SNH\n", r"is not a \.geojson, .* or \.parquet file; save it as one"),
        (
            "grid.geojson",
            b'{"type": "FeatureCollection", "features": []}',
            "no column of tile names|no polygons",
        ),
    ],
)
def test_unreadable_file_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        read_tile_grid(tmp_path / name)
    assert name in str(error.value)
    with pytest.raises(InputError, match="no such file"):
        read_tile_grid(tmp_path / "nowhere.kml")


def test_file_with_other_columns_layers_or_no_crs_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "grid.gpkg"
    frame = gpd.GeoDataFrame({"square": ["14SNH"]}, geometry=[SQUARE], crs=4326)
    frame.to_file(path, layer="one")
    with pytest.raises(InputError, match="no column of tile names; it has square"):
        read_tile_grid(path)
    frame.to_file(path, layer="two")
    with pytest.raises(InputError, match=r"several layers \(one, two\)"):
        read_tile_grid(path)
    path = tmp_path / "grid.parquet"
    gpd.GeoDataFrame({"tile": ["14SNH"]}, geometry=[SQUARE]).to_parquet(path)
    with pytest.raises(InputError, match="has no CRS"):
        read_tile_grid(path)
    local = 'LOCAL_CS["site",UNIT["metre",1]]'
    gpd.GeoDataFrame({"tile": ["14SNH"]}, geometry=[SQUARE], crs=local).to_parquet(path)
    with pytest.raises(
        InputError, match=r"grid\.parquet is in 'site' \(Engineering CRS\), .* where on Earth"
    ):
        read_tile_grid(path)


def test_names_and_shapes_that_are_no_tiles_are_refused(geojson: Any, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"names that are not valid for a tile: 61SNH, 14SNI, corn, 1\u0664SNH$"
    ):
        names = ("61SNH", "14SNH", "14SNI", "corn", "1\u0664SNH")
        read_tile_grid(geojson(**dict.fromkeys(names, SQUARE)))
    with pytest.raises(InputError, match=r"tiles without a polygon: 14SNH$"):
        read_tile_grid(geojson(**{"14SNH": SQUARE.centroid, "14SNG": SQUARE}))
    apart = shapely.MultiPolygon([SQUARE, shapely.transform(SQUARE, lambda points: points + 5)])
    with pytest.raises(InputError, match=r"several pieces that do not touch: 14SNH$"):
        read_tile_grid(geojson(**{"14SNH": apart}))
    twice = gpd.GeoDataFrame({"tile": ["14SNH"] * 2}, geometry=[SQUARE] * 2, crs=4326)
    twice.to_parquet(tmp_path / "grid.parquet")
    with pytest.raises(InputError, match=r"tiles that occur twice: 14SNH$"):
        read_tile_grid(tmp_path / "grid.parquet")


def test_a_tile_of_pieces_that_cross_without_end_is_refused(geojson: Any) -> None:
    comb = shapely.union_all(
        [
            shapely.box(-99, 38, -98, 38.1),
            *(shapely.box(-99 + i / 20, 38, -98.97 + i / 20, 39) for i in range(20)),
        ]
    )
    turned = shapely.transform(comb, lambda points: points[:, ::-1] + np.array([-137.0, 137.0]))
    many = shapely.MultiPolygon([comb, turned])
    assert shapely.is_valid(comb)
    with pytest.raises(
        InputError, match=r"the pieces of 14SNH: outlines cross one another more than 100 times"
    ):
        read_tile_grid(geojson(**{"14SNH": many, "14SNG": SQUARE}))
    scribble = shapely.Polygon(np.random.default_rng(1).random((300, 2)) + np.array([-99, 38]))
    with pytest.raises(
        InputError, match=r"the pieces of 14SNH: outlines cross themselves more than 100 times"
    ):
        read_tile_grid(geojson(**{"14SNH": shapely.MultiPolygon([SQUARE, scribble])}))


@pytest.mark.parametrize(
    "name", ["HLS.S30.T13RCN.2024128T173909.v2.0.Fmask.tif", "HLS.L30.T15UWP.2024283T165135.v2.0.Fmask.tif"]
)
def test_bounds_are_those_of_real_hls_rasters(official_grid: gpd.GeoDataFrame, real: Path, name: str) -> None:
    tile = name.split(".")[2].removeprefix("T")
    bounds = hls_tile_bounds(tile, official_grid.set_index("tile").geometry[tile])
    with rasterio.open(real / "hls" / name) as raster:
        assert bounds.epsg == raster.crs.to_epsg()
        assert tuple(bounds[1:]) == tuple(raster.bounds)
        assert (raster.width, raster.height) == (3660, 3660)


def test_bounds_of_all_tiles_lie_on_the_grid_polygon(official_grid: gpd.GeoDataFrame) -> None:
    """Every tile obeys the rule; where the polygon is whole, the rule gives the polygon itself."""
    tiles, polygons = official_grid["tile"].tolist(), official_grid.geometry.to_numpy()
    for tile, polygon in zip(tiles[::7], polygons[::7], strict=True):
        bounds = hls_tile_bounds(tile, polygon)
        assert bounds.epsg == 32600 + int(tile[:2])
        assert bounds.left % 60 == 0
        assert bounds.top % 60 == 0
        assert (bounds.right - bounds.left, bounds.top - bounds.bottom) == (109_800, 109_800)
        if polygon.bounds[0] > -180 and polygon.bounds[2] < 180:
            points = shapely.get_coordinates(polygon)
            east, north = grid_module._to_utm(bounds.epsg).transform(points[:, 0], points[:, 1])
            outline = (east.min(), north.min(), east.max(), north.max())
            assert outline == pytest.approx(bounds[1:], rel=0, abs=0.1)


def test_southern_tile_is_in_a_northern_zone(official_grid: gpd.GeoDataFrame) -> None:
    bounds = hls_tile_bounds("22KGG", official_grid.set_index("tile").geometry["22KGG"])
    assert bounds.epsg == 32622
    assert bounds.top < 0


def test_the_name_of_a_tile_gives_the_bounds_that_its_polygon_gives(official_grid: gpd.GeoDataFrame) -> None:
    tiles, polygons = official_grid["tile"].tolist(), official_grid.geometry.to_numpy()
    for tile, polygon in zip(tiles[::11], polygons[::11], strict=True):
        assert hls_bounds(tile) == hls_tile_bounds(tile, polygon)
    for tile in ("14SNH", "01CDH", "22KGG", "33XWH"):
        assert hls_bounds(tile) == hls_tile_bounds(tile, polygons[tiles.index(tile)])


def test_polygon_off_the_100_km_grid_is_refused() -> None:
    with pytest.raises(InputError, match=r"tile 14SNH: .*not near a corner of the 100 km grid"):
        hls_tile_bounds("14SNH", SQUARE)
