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
        Column("scene_id", pa.string(), "HLS scene id"),
        Column("cloud", pa.int32(), "percent"),
        Column("share", pa.float64(), "0 to 1; missing where nothing was seen"),
        Column("date", pa.date32(), "day of sensing"),
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
    read = read_table(store, NAME)
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
    assert list(read_table(store, NAME).columns) == list(scenes().columns)


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
    for read in (gpd.read_parquet(store.gdal_path(NAME)), read_table(store, NAME)):
        assert isinstance(read, gpd.GeoDataFrame)
        assert read.crs == "EPSG:5070"
        assert read.geometry.to_list() == tiles().geometry.to_list()
        assert read["tile"].to_list() == ["14SMF", "13TDE"]
    geo = json.loads(pq.read_schema(store.gdal_path(NAME)).metadata[b"geo"])
    assert geo["primary_column"] == "geometry"
    assert geo["columns"]["geometry"]["encoding"] == "WKB"


def test_geometry_may_be_missing(store: DatasetStore) -> None:
    frame = tiles().set_geometry([None, shapely.Point()], crs="EPSG:5070")
    write_table(store, NAME, frame, TILES, {})
    assert read_table(store, NAME).geometry.to_list() == [None, shapely.Point()]


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
    write_table(store, "three", read_table(store, "one"), schema, {"a": 2, "b": 1})
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
    read = read_table(store, NAME)
    assert content_hash(read) == written.data_version
    assert content_hash(pq.read_table(store.gdal_path(NAME))) == written.data_version
    again = write_table(store, NAME, read, schema, {"identity": "another"})
    assert again.data_version == written.data_version


def test_the_hash_is_of_values_and_their_order_only(store: DatasetStore) -> None:
    write_table(store, NAME, tiles(), TILES, {})
    frame = read_table(store, NAME)
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
    read = read_table(store, NAME)
    assert len(read) == 0
    assert list(read.columns) == list(schema.empty().columns)
    assert isinstance(read, gpd.GeoDataFrame) == (schema is TILES)
    assert getattr(read, "crs", None) == schema.geometry_crs


def test_rows_can_be_added_to_an_empty_table(store: DatasetStore) -> None:
    write_table(store, NAME, TILES.empty(), TILES, {})
    joined = pd.concat([read_table(store, NAME), tiles()])
    assert write_table(store, NAME, joined, TILES, {}).rows == 2


def test_a_missing_table_says_what_to_do(store: DatasetStore) -> None:
    assert stored_table(store, NAME) is None
    with pytest.raises(NotFoundError, match=f"no table {NAME}; materialize its asset first"):
        read_table(store, NAME)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"<html>not a table</html>", b"PAR1" * 100])
def test_what_is_no_parquet_file_is_refused(store: DatasetStore, content: bytes) -> None:
    store.write_bytes(NAME, content)
    with pytest.raises(IntegrityError, match="materialize its asset again"):
        stored_table(store, NAME)
    with pytest.raises(IntegrityError, match=f"table {NAME} cannot be read .*; materialize its asset again"):
        read_table(store, NAME)


@pytest.mark.parametrize(("frame", "schema"), [(scenes(), SCENES), (tiles(), TILES)])
def test_a_table_cut_short_is_refused(store: DatasetStore, frame: pd.DataFrame, schema: TableSchema) -> None:
    write_table(store, NAME, frame, schema, {})
    whole = store.read_bytes(NAME)
    for size in range(0, len(whole), 97):
        store.write_bytes(NAME, whole[:size])
        for read in (stored_table, read_table):
            with pytest.raises(IntegrityError):
                read(store, NAME)


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
            read_table(store, NAME)


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
        assert len(read_table(store, NAME)) == 2
    except IntegrityError as error:
        assert NAME in str(error)


def test_a_table_by_others_can_be_read_and_has_no_record(store: DatasetStore) -> None:
    with store.writing(NAME) as path:
        pd.DataFrame({"tile": ["14SMF"]}).to_parquet(path)
    with pytest.raises(IntegrityError, match="materialize its asset again"):
        stored_table(store, NAME)
    assert read_table(store, NAME)["tile"].to_list() == ["14SMF"]


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
