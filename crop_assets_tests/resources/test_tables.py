import datetime as dt
import io
import json
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crop_assets_tests.forged import forge as forge_table
from resources.errors import IntegrityError, NotFoundError
from resources.store import DatasetStore
from resources.tables import (
    Column,
    StoredTable,
    TableSchema,
    content_hash,
    read_table,
    stored_table,
    write_table,
)

NAME = "tables/scenes.parquet"
SCENES = TableSchema(
    (
        Column("scene_id", pa.string(), "HLS scene id", optional=True),
        Column("cloud", pa.int32(), "percent"),
        Column("share", pa.float64(), "0 to 1; missing where nothing was seen"),
        Column("date", pa.date32(), "day of sensing", optional=True),
        Column("selected", pa.bool_(), ""),
        Column("bands", pa.list_(pa.string()), ""),
    )
)
TILES = TableSchema((Column("tile", pa.string(), ""), Column("scenes", pa.int32(), "")), "EPSG:5070")
COUNTS = TableSchema((Column("n", pa.int64(), ""),))


@pytest.fixture
def store(tmp_path: Path) -> DatasetStore:
    return DatasetStore(root=str(tmp_path))


def scenes() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "scene_id": ["a", "b", None],
            "cloud": [0, 100, 5],
            "share": [0.25, None, 1.0],
            "date": [dt.date(2022, 3, 1), dt.date(2022, 9, 30), None],
            "selected": [True, False, True],
            "bands": [["B02", "Fmask"], [], ["B03"]],
        }
    )


def tiles() -> gpd.GeoDataFrame:
    return gpd.GeoDataFrame(
        {"tile": ["14SMF", "13TDE"], "scenes": [3, 0]},
        geometry=[shapely.box(0, 0, 30, 30), shapely.Point(1, 2)],
        crs="EPSG:5070",
    )


def test_what_is_written_can_be_read(store: DatasetStore) -> None:
    written = write_table(store, NAME, scenes(), SCENES, {"identity": "x", "files": {"a": "b"}})
    assert written == StoredTable(
        NAME,
        3,
        written.data_version,
        {"identity": "x", "files": {"a": "b"}, "data_version": written.data_version},
    )
    assert stored_table(store, NAME) == written
    read = read_table(store, NAME, SCENES)
    assert list(read.columns) == ["scene_id", "cloud", "share", "date", "selected", "bands"]
    assert read["cloud"].dtype == "int32"
    assert read["date"].tolist() == [dt.date(2022, 3, 1), dt.date(2022, 9, 30), None]
    assert [list(bands) for bands in read["bands"]] == [["B02", "Fmask"], [], ["B03"]]
    assert read.isna().sum().to_dict() == {
        **dict.fromkeys(read.columns, 0),
        "scene_id": 1,
        "share": 1,
        "date": 1,
    }


def test_columns_are_put_in_the_order_of_the_schema(store: DatasetStore) -> None:
    shuffled = scenes()[["bands", "date", "scene_id", "selected", "share", "cloud"]]
    version = write_table(store, NAME, shuffled, SCENES, {}).data_version
    assert version == write_table(store, NAME, scenes(), SCENES, {}).data_version
    assert list(read_table(store, NAME, SCENES).columns) == list(scenes().columns)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (scenes().drop(columns=["date", "cloud"]), r"missing \['cloud', 'date'\], unknown \[\]"),
        (scenes().assign(tile="14SMF"), r"missing \[\], unknown \['tile'\]"),
        (scenes().rename(columns={"cloud": "clouds"}), r"missing \['cloud'\], unknown \['clouds'\]"),
        (scenes().assign(cloud=0.5), "column cloud"),
        (scenes().assign(cloud=2**31), "column cloud"),
        (scenes().assign(cloud="few"), "column cloud"),
        (scenes().assign(scene_id=7), "column scene_id"),
        (scenes().assign(date="soon"), "column date"),
        (scenes().assign(selected="perhaps"), "column selected"),
        (scenes().assign(share=[1.0, 0.5, "half"]), "column share"),
        (scenes().assign(bands="B02"), "column bands"),
    ],
)
def test_a_frame_that_does_not_fit_the_schema_is_refused(
    store: DatasetStore, frame: pd.DataFrame, message: str
) -> None:
    old = write_table(store, NAME, scenes(), SCENES, {})
    with pytest.raises(IntegrityError, match=f"table {NAME}: .*{message}"):
        write_table(store, NAME, frame, SCENES, {})
    assert stored_table(store, NAME) == old


def test_geometry_is_geoparquet_with_its_crs(store: DatasetStore) -> None:
    write_table(store, NAME, tiles(), TILES, {"identity": "x"})
    for read in (gpd.read_parquet(store.gdal_path(NAME)), read_table(store, NAME, TILES)):
        assert isinstance(read, gpd.GeoDataFrame)
        assert read.crs == "EPSG:5070"
        assert read.geometry.to_list() == tiles().geometry.to_list()
        assert read["tile"].to_list() == ["14SMF", "13TDE"]
    geo = json.loads(pq.read_schema(store.gdal_path(NAME)).metadata[b"geo"])
    assert geo["primary_column"] == "geometry"
    assert geo["columns"]["geometry"]["encoding"] == "WKB"


def test_geometry_may_be_empty_and_not_missing(store: DatasetStore) -> None:
    frame = tiles().set_geometry([shapely.Point(1, 2), shapely.Point()], crs="EPSG:5070")
    write_table(store, NAME, frame, TILES, {})
    assert read_table(store, NAME, TILES).geometry.to_list() == frame.geometry.to_list()
    with pytest.raises(IntegrityError, match=f"table {NAME}: values of geometry are missing"):
        write_table(store, NAME, frame.set_geometry([None, shapely.Point()], crs="EPSG:5070"), TILES, {})


def test_a_table_without_the_geometry_that_its_schema_asks_for_is_refused(store: DatasetStore) -> None:
    with pytest.raises(IntegrityError, match=r"missing \['geometry'\]"):
        write_table(store, NAME, pd.DataFrame(tiles().drop(columns="geometry")), TILES, {})
    with pytest.raises(IntegrityError, match=r"unknown \['geometry'\]"):
        write_table(store, NAME, tiles(), TableSchema(TILES.columns), {})


def test_geometry_in_another_crs_is_refused(store: DatasetStore) -> None:
    with pytest.raises(IntegrityError, match="the geometry is in EPSG:4326, not EPSG:5070"):
        write_table(store, NAME, tiles().to_crs("EPSG:4326"), TILES, {})
    assert stored_table(store, NAME) is None


@pytest.mark.parametrize(("frame", "schema"), [(scenes(), SCENES), (tiles(), TILES)])
def test_the_same_content_gives_the_same_bytes(
    store: DatasetStore, frame: pd.DataFrame, schema: TableSchema
) -> None:
    write_table(store, "one", frame, schema, {"b": 1, "a": 2})
    write_table(store, "two", frame.set_axis(range(7, 7 + len(frame))), schema, {"a": 2, "b": 1})
    write_table(store, "three", read_table(store, "one", schema), schema, {"a": 2, "b": 1})
    assert store.read_bytes("one") == store.read_bytes("two") == store.read_bytes("three")


@pytest.mark.parametrize(
    ("frame", "schema"),
    [(scenes(), SCENES), (tiles(), TILES), (SCENES.empty(), SCENES), (TILES.empty(), TILES)],
    ids=["plain", "geometry", "empty", "empty geometry"],
)
def test_the_hash_before_writing_is_that_after_reading(
    store: DatasetStore, frame: pd.DataFrame, schema: TableSchema
) -> None:
    written = write_table(store, NAME, frame, schema, {"identity": "x"})
    read = read_table(store, NAME, schema)
    assert content_hash(read) == written.data_version
    assert content_hash(pq.read_table(store.gdal_path(NAME))) == written.data_version
    again = write_table(store, NAME, read, schema, {"identity": "another"})
    assert again.data_version == written.data_version


def test_the_hash_is_of_values_and_their_order_only(store: DatasetStore) -> None:
    write_table(store, NAME, tiles(), TILES, {})
    frame = read_table(store, NAME, TILES)
    version = content_hash(frame)
    named = frame.rename_axis("number").set_axis([7, 3])
    named.attrs["note"] = "metadata"
    assert content_hash(named) == version
    others = [
        frame.iloc[::-1],
        frame.iloc[:1],
        frame.assign(scenes=[3, 1]).astype({"scenes": "int32"}),
        frame.astype({"scenes": "int64"}),
        frame.rename(columns={"tile": "name"}),
        frame.set_geometry(frame.geometry.translate(1e-6)),
        frame.assign(tile=["14SMF", None]),
    ]
    hashes = {content_hash(other) for other in others}
    assert len(hashes) == len(others)
    assert version not in hashes


@pytest.mark.parametrize("schema", [SCENES, TILES])
def test_empty_tables(store: DatasetStore, schema: TableSchema) -> None:
    written = write_table(store, NAME, schema.empty(), schema, {"identity": "x"})
    assert (written.rows, stored_table(store, NAME)) == (0, written)
    read = read_table(store, NAME, schema)
    assert len(read) == 0
    assert list(read.columns) == list(schema.empty().columns)
    assert isinstance(read, gpd.GeoDataFrame) == (schema is TILES)
    assert getattr(read, "crs", None) == schema.geometry_crs


def test_rows_can_be_added_to_an_empty_table(store: DatasetStore) -> None:
    write_table(store, NAME, TILES.empty(), TILES, {})
    joined = pd.concat([read_table(store, NAME, TILES), tiles()])
    assert write_table(store, NAME, joined, TILES, {}).rows == 2


def test_a_missing_table_says_what_to_do(store: DatasetStore) -> None:
    assert stored_table(store, NAME) is None
    with pytest.raises(NotFoundError, match=f"no table {NAME}; materialize its asset first"):
        read_table(store, NAME, SCENES)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"<html>not a table</html>", b"PAR1" * 100])
def test_what_is_no_parquet_file_is_refused(store: DatasetStore, content: bytes) -> None:
    store.write_bytes(NAME, content)
    with pytest.raises(IntegrityError, match="materialize its asset again"):
        stored_table(store, NAME)
    with pytest.raises(IntegrityError, match=f"table {NAME} cannot be read .*; materialize its asset again"):
        read_table(store, NAME, SCENES)


@pytest.mark.parametrize(("frame", "schema"), [(scenes(), SCENES), (tiles(), TILES)])
def test_a_table_cut_short_is_refused(store: DatasetStore, frame: pd.DataFrame, schema: TableSchema) -> None:
    write_table(store, NAME, frame, schema, {})
    whole = store.read_bytes(NAME)
    for size in range(0, len(whole), 97):
        store.write_bytes(NAME, whole[:size])
        with pytest.raises(IntegrityError):
            stored_table(store, NAME)
        with pytest.raises(IntegrityError):
            read_table(store, NAME, schema)


def test_a_flipped_bit_in_the_values_is_noticed(store: DatasetStore) -> None:
    write_table(store, NAME, pd.DataFrame({"n": range(1000)}), COUNTS, {})
    whole = store.read_bytes(NAME)
    column = pq.ParquetFile(store.gdal_path(NAME)).metadata.row_group(0).column(0)
    values = range(4 + column.total_compressed_size - 400, 4 + column.total_compressed_size)
    for at in values[::20]:
        damaged = bytearray(whole)
        damaged[at] ^= 0x10
        store.write_bytes(NAME, bytes(damaged))
        with pytest.raises(IntegrityError, match="; materialize its asset again"):
            read_table(store, NAME, COUNTS)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_anywhere_is_an_integrity_error_at_worst(store: DatasetStore, data: st.DataObject) -> None:
    if not store.exists("whole"):
        write_table(store, "whole", tiles(), TILES, {"identity": "x"})
    damaged = bytearray(store.read_bytes("whole"))
    at = data.draw(st.integers(0, len(damaged) - 1))
    damaged[at] ^= data.draw(st.integers(1, 255))
    store.write_bytes(NAME, bytes(damaged))
    try:
        stored = stored_table(store, NAME)
        assert stored is not None
        assert stored.name == NAME
        assert len(read_table(store, NAME, TILES)) == 2
    except IntegrityError as error:
        assert NAME in str(error)


def test_a_table_by_others_has_no_record_and_is_refused(store: DatasetStore) -> None:
    with store.writing(NAME) as path:
        pd.DataFrame({"n": [1]}).to_parquet(path)
    with pytest.raises(IntegrityError, match="materialize its asset again"):
        stored_table(store, NAME)
    with pytest.raises(
        IntegrityError, match=r"what is recorded of it is no JSON.*materialize its asset again"
    ):
        read_table(store, NAME, COUNTS)


def forge(store: DatasetStore, table: pa.Table, geo: bytes | None = None) -> None:
    forge_table(Path(store.root, NAME), table, {"files": {}}, geo)


OTHERS: dict[str, tuple[pa.Table, str]] = {
    "another column": (pa.table({"x": ["14SMG"], "n": [1]}), "missing tile string, unknown x string"),
    "a column too many": (pa.table({"tile": ["14SMG"], "n": [1], "x": [1]}), "missing none, unknown x int64"),
    "a column too few": (pa.table({"tile": ["14SMG"]}), "missing n int64, unknown none"),
    "another order": (pa.table({"n": [1], "tile": ["14SMG"]}), "its columns are not those"),
    "a column twice": (
        pa.Table.from_arrays([pa.array(["a"]), pa.array([1]), pa.array([1])], names=["tile", "n", "n"]),
        "its columns are not those",
    ),
    "numbers for texts": (pa.table({"tile": [1], "n": [1]}), "missing tile string, unknown tile int64"),
    "texts for numbers": (pa.table({"tile": ["a"], "n": ["1"]}), "missing n int64, unknown n string"),
    "lists for texts": (pa.table({"tile": [["a"]], "n": [1]}), "missing tile string, unknown tile list"),
    "bytes for texts": (pa.table({"tile": [b"a"], "n": [1]}), "missing tile string, unknown tile binary"),
    "numbers of another size": (pa.table({"tile": ["a"], "n": pa.array([1], pa.int32())}), "unknown n int32"),
    "a text that is missing": (pa.table({"tile": ["a", None], "n": [1, 2]}), "values of tile are missing"),
    "a number that is missing": (pa.table({"tile": ["a", "b"], "n": [1, None]}), "values of n are missing"),
    "names without end": (
        pa.table({f"{i}" + "x" * 300_000: [1] for i in range(9)}),
        "missing tile string, n int64, unknown 0x{79}, 1x{79}, 2x{79}, 3x{79}, 4x{79}, …",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_table_whose_columns_are_not_those_of_its_schema_is_refused_and_made_again(
    store: DatasetStore, name: str
) -> None:
    table, message = OTHERS[name]
    forge(store, table)
    assert stored_table(store, NAME) is not None
    schema = TableSchema((Column("tile", pa.string(), ""), Column("n", pa.int64(), "")))
    with pytest.raises(IntegrityError, match=f"{message}.*; materialize its asset again") as error:
        read_table(store, NAME, schema)
    assert len(str(error.value)) < 1_000


def test_what_may_be_missing_may_be_missing_in_what_is_read(store: DatasetStore) -> None:
    table = pa.table({"tile": ["a", None], "n": pa.array([1, None], pa.int64()), "share": [0.5, None]})
    forge(store, table)
    columns = (
        Column("tile", pa.string(), "", optional=True),
        Column("n", pa.int64(), "", optional=True),
        Column("share", pa.float64(), ""),
    )
    assert read_table(store, NAME, TableSchema(columns))["tile"].isna().tolist() == [False, True]


def test_geometry_is_in_the_crs_of_the_schema_and_only_where_the_schema_has_it(store: DatasetStore) -> None:
    write_table(store, NAME, tiles(), TILES, {})
    table = pq.read_table(store.gdal_path(NAME))
    geo = table.schema.metadata[b"geo"]
    degrees = TableSchema(TILES.columns, "EPSG:4326")
    with pytest.raises(IntegrityError, match="its geometry is in NAD83 / Conus Albers, not EPSG:4326"):
        read_table(store, NAME, degrees)
    with pytest.raises(IntegrityError, match="it has a geometry"):
        read_table(store, NAME, TableSchema(TILES.columns))
    forge(store, table)
    with pytest.raises(IntegrityError, match="it has no geometry"):
        read_table(store, NAME, TILES)
    forge(store, table, geo.replace(b'"primary_column": "geometry"', b'"primary_column": "tile"    '))
    with pytest.raises(IntegrityError, match="name no geometry column"):
        read_table(store, NAME, TILES)


@pytest.mark.parametrize("rows", [slice(0, 5), slice(3, 17), slice(990, 1000), slice(0, 0), slice(0, 1000)])
def test_the_content_hash_is_of_the_rows_and_not_of_what_lay_beside_them(rows: slice) -> None:
    random = np.random.default_rng(1)
    everything = pd.DataFrame(
        {
            "text": [f"chip_{i}" * (i % 3 + 1) for i in range(1000)],
            "number": np.where(random.random(1000) < 0.2, np.nan, random.random(1000)),
            "count": np.arange(1000, dtype="int32"),
            "list": [[f"a{j}" for j in range(i % 4)] for i in range(1000)],
            "flag": random.random(1000) < 0.5,
        }
    )
    frame = everything.iloc[rows].reset_index(drop=True)
    whole = pa.Table.from_pandas(everything, preserve_index=False)
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), buffer)
    same = [
        frame,
        pa.Table.from_pandas(frame, preserve_index=False),
        whole.slice(rows.start, rows.stop - rows.start),
        pq.read_table(buffer).to_pandas(),
        pd.concat([frame.iloc[:2], frame.iloc[2:]]),
        frame.iloc[::-1].iloc[::-1],
    ]
    assert len({content_hash(table) for table in same}) == 1
    if len(frame):
        assert content_hash(frame.iloc[1:]) != content_hash(frame)
