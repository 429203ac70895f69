"""GeoPackages whose database brings what is run, and those that people have."""

import sqlite3
import struct
from contextlib import closing
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyogrio
import pytest
import shapely

import resources.geopackage
import resources.wkb
from crop_assets.errors import InputError
from crop_assets.labels.aoi import aoi_checksum, read_aoi
from crop_assets.tiles.grid import read_tile_grid
from resources.errors import IntegrityError
from resources.vectors import open_vector
from resources.wkb import read_wkb, require_shallow

SQUARE = shapely.box(-98.5, 37.5, -98, 38)
ENDLESS = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c)"
"""Alone it gives rows without end, and where x < 0 none, ever."""
NESTED = struct.pack("<BII", 1, 7, 1) * 100_000 + struct.pack("<BII", 1, 7, 0)
"""A collection in a collection in a collection: GEOS follows it until the stack is full."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "area.gpkg"
    gpd.GeoDataFrame({"name": ["14SNH"]}, geometry=[SQUARE], crs=4326).to_file(path, layer="area")
    return path


def up_to(rows: int) -> str:
    return ENDLESS.replace("FROM c)", f"FROM c LIMIT {rows})")


def change(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as database:
        for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            database.execute(f'DROP TRIGGER "{name}"')
        database.execute("DROP TABLE IF EXISTS gpkg_ogr_contents")
        database.execute("PRAGMA writable_schema = on")
        for statement in statements:
            database.execute(statement)
        database.commit()


def as_view(table: str, query: str) -> tuple[str, str]:
    return f"ALTER TABLE {table} RENAME TO stored", f"CREATE VIEW {table} AS {query}"


def generated(table: str, column: str, expression: str, columns: str) -> tuple[str, ...]:
    return (
        f"ALTER TABLE {table} RENAME TO stored",
        f"CREATE TABLE {table} ({columns}, {column} GENERATED ALWAYS AS ({expression}))",
        f"INSERT INTO {table} SELECT {columns} FROM stored",
    )


HOSTILE: dict[str, tuple[str, ...]] = {
    "a view": as_view("area", "SELECT * FROM stored"),
    "a view that never ends": as_view(
        "area", f"{ENDLESS} SELECT 1 AS fid, x AS geom, '14SNH' AS name FROM c WHERE x < 0"
    ),
    "a view without end": as_view(
        "area", f"{ENDLESS} SELECT x AS fid, (SELECT geom FROM stored) AS geom, '14SNH' AS name FROM c"
    ),
    "a view of no table": as_view("area", "SELECT 1 AS fid, zeroblob(1000000000) AS geom, '14SNH' AS name"),
    "a list of layers that never ends": as_view(
        "gpkg_contents", f"{ENDLESS} SELECT x AS table_name, 'features' AS data_type FROM c WHERE x < 0"
    ),
    "a list of geometries that never ends": as_view(
        "gpkg_geometry_columns",
        f"{ENDLESS} SELECT x AS table_name, x AS column_name, x AS srs_id FROM c WHERE x < 0",
    ),
    "a list of CRSs that never ends": as_view(
        "gpkg_spatial_ref_sys", f"{ENDLESS} SELECT x AS srs_id FROM c WHERE x < 0"
    ),
    "a generated name": generated("area", "name", "hex(zeroblob(100000000))", "fid, geom"),
    "a generated geometry": generated("area", "geom", "zeroblob(100000000)", "fid, name"),
    "a generated list of layers": generated(
        "gpkg_contents", "data_type", "replace(hex(zeroblob(1000000)), '0', 'features')", "table_name"
    ),
    "a table that another program makes": (
        "DROP TABLE area",
        "INSERT INTO sqlite_master VALUES "
        "('table', 'area', 'area', 0, 'CREATE VIRTUAL TABLE area USING VirtualOGR(''/etc/passwd'')')",
    ),
    "a search table": ("DROP TABLE area", "CREATE VIRTUAL TABLE area USING fts3(fid, geom, name)"),
    "a view that is said to be a table": (
        *as_view("area", f"{ENDLESS} SELECT 1 AS fid, x AS geom, '14SNH' AS name FROM c WHERE x < 0"),
        "UPDATE sqlite_master SET type = 'table' WHERE name = 'area'",
    ),
    "no such layer": ("UPDATE gpkg_contents SET table_name = 'sqlite_master'",),
    "a table of SQLite's own": (
        "UPDATE gpkg_contents SET table_name = 'json_each'",
        "UPDATE gpkg_geometry_columns SET table_name = 'json_each', column_name = 'value'",
    ),
    "no geometry": ("UPDATE area SET geom = 'GP'",),
    "geometries in geometries": (f"UPDATE area SET geom = x'{(b'GP' + bytes(6) + NESTED).hex()}'",),
}


REASONS = (
    "no plain table|no column of tile names|no stored column|not in the format of|32 deep|has 0 geometry columns"
    "|malformed database schema"
)


@pytest.mark.parametrize("kind", HOSTILE)
def test_of_a_database_nothing_is_run(path: Path, kind: str) -> None:
    change(path, *HOSTILE[kind])
    for read in (read_tile_grid, read_aoi):
        if read is read_aoi and kind == "a generated name":
            assert len(read_aoi(path)) == 1
            continue
        with pytest.raises(InputError, match=REASONS):
            read(path)


@pytest.mark.parametrize("suffix", ["-wal", "-journal"])
def test_what_another_program_has_open_is_refused(path: Path, suffix: str) -> None:
    beside = path.with_name(f"{path.name}{suffix}")
    beside.write_bytes(b"")
    assert len(read_aoi(path)) == 1
    beside.write_bytes(b"a page that would be rolled back, or forward")
    with pytest.raises(
        InputError, match=f"is open in another program, or was not closed: there is .*{suffix}; close it"
    ):
        read_aoi(path)
    assert beside.read_bytes().startswith(b"a page")
    # kept in that mode, and closed
    beside.unlink()
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA journal_mode = wal").fetchone() == ("wal",)
    assert len(read_aoi(path)) == 1


def test_rows_and_steps_are_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change(
        path,
        f"INSERT INTO area (geom, name) {up_to(40_000)} SELECT (SELECT geom FROM area LIMIT 1), x FROM c",
    )
    assert len(read_aoi(path)) == 40_001
    with monkeypatch.context() as patch:
        patch.setattr(resources.geopackage, "MAX_FEATURES", 40_000)
        with pytest.raises(InputError, match="has more than 40,000 features"):
            read_aoi(path)
    monkeypatch.setattr(resources.geopackage, "MAX_STEPS", 1000)
    with pytest.raises(InputError, match="cannot be read as a GeoPackage: interrupted"):
        read_aoi(path)


def test_what_geometries_take_is_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources.wkb, "MAX_BYTES", 10_000)
    empty = b"GP" + bytes(6) + struct.pack("<BII", 1, 6, 1000) + struct.pack("<BII", 1, 3, 0) * 1000
    change(path, f"UPDATE area SET geom = x'{empty.hex()}'")
    assert len(read_aoi(path)) == 1
    change(path, f"INSERT INTO area (geom, name) VALUES (x'{empty.hex()}', '14SNG')")
    with pytest.raises(InputError, match="geometries of 18,018 bytes are more than 10,000; simplify them"):
        read_aoi(path)


def test_a_page_that_is_there_many_times_is_not_read_so_often(path: Path) -> None:
    large = (b"GP" + bytes(6) + shapely.to_wkb(SQUARE.segmentize(0.01))).hex()
    change(path, f"INSERT INTO area (geom, name) {up_to(300)} SELECT x'{large}', x FROM c")
    with closing(sqlite3.connect(path)) as database:
        (page,) = database.execute("PRAGMA page_size").fetchone()
        (root,) = database.execute("SELECT rootpage FROM sqlite_master WHERE name = 'area'").fetchone()
    data = bytearray(path.read_bytes())
    start = (root - 1) * page
    (cells,) = struct.unpack_from(">H", data, start + 3)
    assert (data[start], cells > 100) == (5, True)
    first, second = (_children(data, start)[cell] for cell in (0, 1))
    # each child is the page above them all, as many floors high as SQLite goes
    path.write_bytes(_with_children(data, start, root))
    with pytest.raises(InputError, match="malformed"):
        read_aoi(path)
    # each is a page of which each child is the same one
    lower = (first - 1) * page
    data[lower : lower + page] = _with_children(data, start, second)[start : start + page]
    path.write_bytes(_with_children(data, start, first))
    with pytest.raises(InputError, match="or they have more bytes than the file"):
        read_aoi(path)


def _places(data: bytearray, page: int) -> list[int]:
    """Where the numbers of a page's children are, but for the last one."""
    (cells,) = struct.unpack_from(">H", data, page + 3)
    return [page + place for place in struct.unpack_from(f">{cells}H", data, page + 12)]


def _children(data: bytearray, page: int) -> list[int]:
    return [struct.unpack_from(">I", data, place)[0] for place in _places(data, page)]


def _with_children(data: bytearray, page: int, child: int) -> bytearray:
    changed = data.copy()
    for place in (*_places(data, page), page + 8):
        struct.pack_into(">I", changed, place, child)
    return changed


@pytest.mark.filterwarnings("ignore:'crs' was not provided")
def test_a_geopackage_is_read_as_gdal_reads_it(tmp_path: Path) -> None:
    path = tmp_path / 'a "b" 100%?#.gpkg'
    shapes = {
        "two": [SQUARE, shapely.MultiPolygon([SQUARE])],
        'a "name" with\' quotes': [shapely.Polygon([(0, 0, 5), (1, 0, 5), (1, 1, 5)]), None],
        "a collection": [shapely.GeometryCollection([SQUARE, shapely.Point(1, 2)]), shapely.Polygon()],
        "lines": [shapely.LineString([(0, 0), (1, 1)]), shapely.MultiPoint([(1, 2), (3, 4)])],
    }
    crs: dict[str, Any] = dict(zip(shapes, (5070, 4326, LAMBERT, None), strict=True))
    for name, some in shapes.items():
        frame = gpd.GeoDataFrame(
            {"Name": ["a", None], "n": [1, 2], "x": [0.5, np.nan]}, geometry=some, crs=crs[name]
        )
        frame.to_file(path, layer=name)
    # a table of QGIS without geometries
    pyogrio.write_dataframe(frame[["n"]], path, layer="layer_styles")
    with open_vector(path) as vector:
        assert set(vector.layers()) == set(shapes)
        for name in shapes:
            by_gdal = pyogrio.read_dataframe(path, layer=name)
            assert vector.columns(name) == [column for column in by_gdal if column != "geometry"]
            found = vector.read(name, ["n", "Name"])
            assert found["n"].tolist() == by_gdal["n"].tolist()
            assert found["Name"].tolist() == ["a", None]
            assert aoi_checksum(found.set_crs(4326, allow_override=True)) == aoi_checksum(
                by_gdal.set_crs(4326, allow_override=True)
            )
            assert found.crs == by_gdal.crs
        with pytest.raises(IntegrityError, match="has no stored column 'nowhere'"):
            vector.read("two", ["nowhere"])
        with pytest.raises(IntegrityError, match="its layer 'three' has 0 geometry columns"):
            vector.read("three")


LAMBERT = (
    'PROJCS["of a county",GEOGCS["NAD83",DATUM["North_American_Datum_1983",SPHEROID["GRS 1980",6378137,298.257222101]],'
    'PRIMEM["Greenwich",0],UNIT["degree",0.0174532925199433]],PROJECTION["Lambert_Conformal_Conic_1SP"],'
    'PARAMETER["latitude_of_origin",39],PARAMETER["central_meridian",-96],PARAMETER["scale_factor",1],'
    'PARAMETER["false_easting",0],PARAMETER["false_northing",0],UNIT["metre",1]]'
)


@pytest.mark.parametrize("flavor", ["iso", "extended"])
@pytest.mark.parametrize("order", [0, 1])
def test_binary_geometries_are_read_as_shapely_does(flavor: Any, order: int) -> None:
    texts = (
        "POINT (1 2)",
        "POINT Z (1 2 3)",
        "LINESTRING (0 0, 1 1)",
        "POLYGON ((0 0, 4 0, 4 4, 0 0), (2 1, 3 1, 3 2, 2 1))",
        "MULTIPOLYGON Z (((0 0 1, 1 0 1, 1 1 1, 0 0 1)), ((5 0 1, 6 0 1, 6 1 1, 5 0 1)))",
        "GEOMETRYCOLLECTION (POINT (1 2), GEOMETRYCOLLECTION (MULTIPOINT (1 2, 3 4), POLYGON EMPTY))",
        "GEOMETRYCOLLECTION EMPTY",
    )
    shapes = shapely.from_wkt(texts)
    values = [shapely.to_wkb(shape, flavor=flavor, byte_order=order) for shape in shapes]
    for value in values:
        require_shallow(value)
        for end in range(1, len(value)):
            with pytest.raises(IntegrityError, match="cut short"):
                require_shallow(value[:end])
    assert shapely.equals_exact(read_wkb([*values, None])[:-1], shapes).all()


def test_geometries_of_geoparquet_are_walked_through_as_well(tmp_path: Path) -> None:
    path = tmp_path / "area.parquet"
    gpd.GeoDataFrame({"tile": ["14SNH", "14SNG"]}, geometry=[SQUARE, None], crs=4326).to_parquet(path)
    assert read_aoi(path).geometry.tolist() == [SQUARE, None]
    table = pq.read_table(path)
    at = table.column_names.index("geometry")
    pq.write_table(table.set_column(at, table.field(at), pa.array([NESTED, None], pa.binary())), path)
    for read in (read_aoi, read_tile_grid):
        with pytest.raises(InputError, match="nested more than 32 deep"):
            read(path)


def test_binary_geometries_without_end_do_not_reach_geos() -> None:
    for kind in (4, 5, 6, 7):
        for head in (
            struct.pack("<BII", 1, kind, 1),
            struct.pack(">BII", 0, kind, 1),
            struct.pack("<BII", 1, 1000 + kind, 1),
        ):
            with pytest.raises(IntegrityError, match="more than 32 deep"):
                read_wkb([head * 100_000])
    curve = struct.pack("<BII", 1, 8, 3) + bytes(48)
    with pytest.raises(IntegrityError, match="Nonlinear geometry types"):
        read_wkb([curve])
    # codes and orders that readers take in several ways
    line = struct.pack("<I", 200) + bytes(200 * 32)
    for head in (
        b"\2\2\0\0\0",
        *(struct.pack("<BI", 1, code) for code in (0, 8, 2008, 4002, 1 << 29 | 2, 1 << 16 | 2)),
    ):
        with pytest.raises(IntegrityError, match=r"cannot be read|unsupported kind"):
            read_wkb([head + line])
