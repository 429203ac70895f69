"""Small Parquet files that would fill the memory are refused before they are read."""

import base64
import io
import json
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely

from crop_assets.errors import InputError
from crop_assets.labels.aoi import read_aoi
from crop_assets.tiles.grid import read_tile_grid
from crop_assets_tests.resources.footers import (
    BINARY,
    I32,
    I64,
    LIST,
    STRUCT,
    Field,
    Struct,
    columns,
    field,
    footer_of,
    groups,
    repaged,
    varint,
    with_footer,
    written,
)
from resources.errors import IntegrityError
from resources.parquet import Parquet
from resources.store import DatasetStore
from resources.tables import Column, TableSchema, read_table, stored_table

LIMIT = 64 << 20
LONG = "x" * 100_000


def parquet(table: pa.Table | dict[str, Any], **options: Any) -> bytes:
    table = table if isinstance(table, pa.Table) else pa.table(table)
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **{"compression": "zstd", **options})
    return buffer.getvalue()


def repeated(value: Any, kind: pa.DataType, rows: int = 5_000) -> pa.Table:
    """The same value in all rows, which need no memory of their own here."""
    indices = pa.array(np.zeros(rows, np.int32))
    return pa.table({"a": pa.DictionaryArray.from_arrays(indices, pa.array([value], kind))})


def nested(wrap: Callable[[pa.Array], pa.Array], rows: int = 2_000) -> pa.Table:
    indices = pa.array(np.zeros(rows, np.int32))
    return pa.table({"a": wrap(pa.DictionaryArray.from_arrays(indices, pa.array([LONG])))})


def offsets(rows: int, each: int) -> pa.Array:
    return pa.array(np.arange(0, rows * each + 1, each, dtype=np.int32))


BOMBS: dict[str, Callable[[], bytes]] = {
    "a long text in all rows": lambda: parquet(repeated(LONG, pa.string())),
    "long bytes in all rows": lambda: parquet(repeated(LONG.encode(), pa.binary())),
    "a long text in all rows of many groups": lambda: parquet(
        repeated(LONG, pa.string()), row_group_size=100
    ),
    "a long text in pages of version 2": lambda: parquet(
        repeated(LONG, pa.string()), data_page_version="2.0"
    ),
    "long values of a fixed size": lambda: parquet(
        {"a": pa.array([b"x" * 100_000] * 900, pa.binary(100_000))}
    ),
    "a list of long texts": lambda: parquet(
        nested(lambda texts: pa.ListArray.from_arrays(offsets(1, len(texts)), texts))
    ),
    "a structure of long texts": lambda: parquet(
        nested(lambda texts: pa.StructArray.from_arrays([texts], ["b"]))
    ),
    "a map of long texts": lambda: parquet(
        nested(
            lambda texts: pa.MapArray.from_arrays(
                offsets(len(texts), 1), pa.array(np.arange(len(texts))), texts
            )
        )
    ),
    "one long text of zeros": lambda: parquet({"a": [b"\0" * (80 << 20)]}, use_dictionary=False),
    "zeros by snappy": lambda: parquet(
        {"a": [b"\0" * (80 << 20)]}, use_dictionary=False, compression="snappy"
    ),
    "zeros by gzip": lambda: parquet({"a": [b"\0" * (80 << 20)]}, use_dictionary=False, compression="gzip"),
    "zeros by brotli": lambda: parquet(
        {"a": [b"\0" * (80 << 20)]}, use_dictionary=False, compression="brotli"
    ),
    "texts by their difference": lambda: parquet(
        {"a": [LONG + str(i) for i in range(1_000)]},
        use_dictionary=False,
        column_encoding={"a": "DELTA_BYTE_ARRAY"},
    ),
    "a number in all rows": lambda: parquet({"a": np.zeros(3_000_000, np.int64)}),
    "numbers by their difference": lambda: parquet(
        {"a": np.arange(3_000_000)}, use_dictionary=False, column_encoding={"a": "DELTA_BINARY_PACKED"}
    ),
    "nothing in all rows": lambda: parquet({"a": pa.nulls(3_000_000, pa.int8())}),
    "true in all rows": lambda: parquet({"a": pa.array(np.ones(3_000_000, bool))}),
    "a list of nothings": lambda: parquet(
        {"a": pa.ListArray.from_arrays(offsets(1, 3_000_000), pa.nulls(3_000_000, pa.int8()))}
    ),
    "groups without end": lambda: parquet({"a": np.zeros(10_000, np.int8)}, row_group_size=1),
    "pages without end": lambda: parquet(
        {"a": np.arange(20_000)}, data_page_size=1, write_batch_size=1, use_dictionary=False
    ),
    "columns without end": lambda: parquet({f"c{i}": [0] for i in range(9_000)}),
    "geometries that are the same one": lambda: geoparquet(500),
}


def geoparquet(rows: int) -> bytes:
    ring = shapely.Point(-99, 38).buffer(0.1, quad_segs=4_000)
    buffer = io.BytesIO()
    gpd.GeoDataFrame({"tile": ["14SMG"] * rows}, geometry=[ring] * rows, crs=4326).to_parquet(buffer)
    return buffer.getvalue()


@pytest.fixture(params=BOMBS)
def bomb(request: pytest.FixtureRequest) -> bytes:
    return BOMBS[request.param]()


def test_what_would_fill_the_memory_is_refused_before_it_is_read(bomb: bytes) -> None:
    pool = pa.default_memory_pool()
    before = max(pool.max_memory(), pool.bytes_allocated())
    with pytest.raises(
        IntegrityError, match=r"would take more than 67 MB|of the type|not one column|write it as PLAIN"
    ):
        Parquet(bomb).frame(most=LIMIT)
    assert pool.max_memory() < before + LIMIT


def test_a_bomb_is_small_and_the_same_table_fits_where_there_is_room() -> None:
    data = BOMBS["a long text in all rows"]()
    assert len(data) < 10_000
    assert len(Parquet(data).frame(most=2 << 30)) == 5_000
    with pytest.raises(IntegrityError, match="more than 400 MB"):
        Parquet(data).frame(most=400_000_000)


def test_the_usual_bound_refuses_three_gigabytes_in_kilobytes(tmp_path: Path) -> None:
    data = parquet(repeated("x" * 3_000, pa.string(), 1_000_000), write_statistics=False)
    assert len(data) < 50_000
    store = DatasetStore(root=str(tmp_path))
    store.write_bytes("tables/cdl.parquet", data)
    with pytest.raises(
        IntegrityError,
        match=r"table tables/cdl.parquet cannot be read \(reading it would take more than 1,074 MB.*; "
        "materialize its asset again",
    ):
        packed = pa.dictionary(pa.int32(), pa.string())
        read_table(store, "tables/cdl.parquet", TableSchema((Column("a", packed, ""),)))


def test_areas_and_tile_grids_are_bounded_as_tables_are(tmp_path: Path) -> None:
    path = tmp_path / "area.parquet"
    ring = shapely.Point(-99, 38).buffer(0.1, quad_segs=40)
    frame = gpd.GeoDataFrame({"tile": ["14SMG"]}, geometry=[ring], crs=4326)
    buffer = io.BytesIO()
    frame.to_parquet(buffer)
    many = pq.read_table(buffer).take(pa.array(np.zeros(100_000, np.int32)))
    path.write_bytes(parquet(many))
    assert path.stat().st_size < 300_000
    for read, what in ((read_aoi, "AOI"), (read_tile_grid, "tile grid")):
        with pytest.raises(
            InputError, match=rf"{what} .*area.parquet cannot be read: .*more than (1,074|50) MB"
        ):
            read(path)
    frame.to_parquet(path)
    assert len(read_aoi(path)) == 1


def relied_on(data: bytes) -> bytes:
    """The file, which Arrow still reads: with the lie in it, that is."""
    assert pq.read_table(io.BytesIO(data)).num_rows == ROWS
    return data


ROWS = 2_000


def pair() -> bytes:
    """A short text and a long one, each the same in all rows."""
    indices = pa.array(np.zeros(ROWS, np.int32))
    short, long = (pa.DictionaryArray.from_arrays(indices, pa.array([text])) for text in ("s", LONG[:9_000]))
    return parquet({"a": short, "t": long}, store_schema=False, write_statistics=False)


def told(change: Callable[[Struct, Struct], None], data: bytes | None = None) -> bytes:
    """The pair, with what the footer tells of the long text changed; the other struct is that of the short one."""
    body, footer = footer_of(data or pair())
    short, long = columns(footer)
    change(long, short)
    return with_footer(body, footer)


def also(number: int, kind: int, value: Any, before: bool = False) -> Callable[[Struct, Struct], None]:
    """A field that is there a second time."""

    def add(long: Struct, _: Struct) -> None:
        long.insert(long.index(field(long, number)) + (not before), Field(number, kind, value))

    return add


def put(number: int, value: Any, kind: int | None = None) -> Callable[[Struct, Struct], None]:
    def change(long: Struct, _: Struct) -> None:
        found = field(long, number)
        found.value, found.kind = value, kind or found.kind

    return change


def elsewhere(long: Struct, short: Struct) -> None:
    """The pages of the short text behind those of the long one, for readers that take the last of two fields."""
    for number in (7, 9, 11):
        also(number, I32, field(short, number).value)(long, short)


FOOTERS: dict[str, tuple[Callable[[], bytes], str]] = {
    "numbers in place of texts": (lambda: relied_on(told(put(1, 1))), "another one by its own record"),
    "the name of another column": (
        lambda: relied_on(told(put(3, (BINARY, [b"a"])))),
        "another one by its own record",
    ),
    "places given twice": (lambda: relied_on(told(elsewhere)), "a field twice"),
    **{
        f"field {number} twice": (lambda number=number: told(also(number, I64, 1)), "a field twice")
        for number in (1, 3, 5, 7, 9, 11)
    },
    **{
        f"field {number} of another kind before it": (
            lambda number=number, kind=kind: relied_on(told(also(number, kind, 1, before=True))),
            "a field of another kind|a field twice",
        )
        for number, kind in ((1, I64), (3, I32), (5, I32), (7, I32), (9, I32), (11, I32))
    },
    **{
        f"field {number} of another kind alone": (
            lambda number=number: told(put(number, 3, I32)),
            "a field of another kind|deserialize thrift",
        )
        for number in (5, 7, 9, 11)
    },
    "a field whose number is that of another in 16 bits": (
        lambda: told(lambda long, _: long.append(Field(65_536 + 9, I64, 4))),
        "without a number",
    ),
    "a name of numbers": (lambda: told(put(3, (I32, [1]))), "a field of another kind|deserialize thrift"),
    "other rows in a group": (lambda: grouped(3, ROWS - 1), "other numbers of rows"),
    "rows without end in a group": (lambda: grouped(3, 1 << 40), "other numbers of rows"),
    "less than no rows": (lambda: grouped(3, -1), "other numbers of rows"),
    "an encrypted column": (lambda: encrypted(), "is encrypted"),
    "a column too few": (lambda: fewer(), "other columns than the file"),
}


def grouped(number: int, value: int) -> bytes:
    body, footer = footer_of(pair())
    field(groups(footer)[0], number).value = value
    return with_footer(body, footer)


def encrypted() -> bytes:
    body, footer = footer_of(pair())
    field(groups(footer)[0], 1).value[1][1].append(Field(8, STRUCT, [Field(1, STRUCT, [])]))
    return with_footer(body, footer)


def fewer() -> bytes:
    body, footer = footer_of(pair())
    del field(groups(footer)[0], 1).value[1][1]
    return with_footer(body, footer)


@pytest.mark.parametrize("name", FOOTERS)
def test_a_footer_that_two_readers_could_read_in_two_ways_is_refused(name: str) -> None:
    make, message = FOOTERS[name]
    data = make()
    pool = pa.default_memory_pool()
    before = max(pool.max_memory(), pool.bytes_allocated())
    with pytest.raises(IntegrityError, match=message):
        Parquet(data).frame()
    assert pool.max_memory() <= before + LIMIT


def test_a_footer_as_its_writer_gave_it_is_read_after_it_was_taken_apart() -> None:
    data = told(lambda *_: None)
    assert data == pair()
    assert len(Parquet(data).frame()) == ROWS


def plain(**options: Any) -> bytes:
    return parquet({"a": ["x"] * 10}, use_dictionary=False, compression="none", store_schema=False, **options)


def a_billion(encoding: int) -> Callable[[Struct, bytes], bytes]:
    """A page that tells of a billion texts of no length."""

    def change(header: Struct, page: bytes) -> bytes:
        many = varint(1 << 30)
        lengths = many + varint(1) + many + b"\0" * 3
        page = levels(10) + lengths + (lengths if encoding == 7 else b"")
        field(header, 2).value = field(header, 3).value = len(page)
        field(header, 5, 2).value = encoding
        return page

    return change


def levels(count: int) -> bytes:
    """That so many values are none of them missing."""
    run = varint(count * 2) + b"\1"
    return len(run).to_bytes(4, "little") + run


def in_header(number: int, value: Any, kind: int | None = None) -> Callable[[Struct, bytes], bytes]:
    def change(header: Struct, page: bytes) -> bytes:
        found = field(header, number)
        found.value, found.kind = value, kind or found.kind
        return page

    return change


def added(*fields: Field, own: bool = False) -> Callable[[Struct, bytes], bytes]:
    def change(header: Struct, page: bytes) -> bytes:
        (field(header, 5).value if own else header).extend(fields)
        return page

    return change


def nothings(count: int) -> Field:
    return Field(15, LIST, (STRUCT, [[]] * count))


V2 = [Field(number, I32, 10) for number in range(1, 7)]
PAGES: dict[str, tuple[Callable[[], bytes], str]] = {
    "texts by their lengths": (lambda: repaged(plain(), a_billion(6)), "write it as PLAIN"),
    "texts by their difference": (lambda: repaged(plain(), a_billion(7)), "write it as PLAIN"),
    "an encoding of the years to come": (
        lambda: repaged(plain(), lambda h, p: setattr(field(h, 5, 2), "value", 99) or p),
        "write it as PLAIN",
    ),
    "a page of an index": (lambda: repaged(plain(), in_header(1, 1)), "neither of values nor a dictionary"),
    "a page of version 2 by the header of version 1": (
        lambda: repaged(plain(), in_header(1, 3)),
        "neither of values nor a dictionary",
    ),
    "headers of both versions": (
        lambda: repaged(plain(), added(Field(8, STRUCT, V2))),
        "neither of values nor a dictionary",
    ),
    "a size given twice": (lambda: repaged(plain(), added(Field(2, I32, 1))), "a field twice"),
    "a number of values given twice": (
        lambda: repaged(plain(), added(Field(1, I64, 1), own=True)),
        "a field twice",
    ),
    "a size of another kind": (lambda: repaged(plain(), in_header(2, 30, I64)), "of another kind"),
    "a header of nothings": (lambda: repaged(plain(), added(nothings(100_000))), "has too many values"),
    "a header of nothings in lists": (
        lambda: repaged(plain(), added(Field(14, LIST, (LIST, [(STRUCT, [[]] * 200)] * 500)))),
        "has too many values",
    ),
}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_header_that_tells_less_than_its_page_takes_is_refused(name: str) -> None:
    make, message = PAGES[name]
    data = make()
    pool = pa.default_memory_pool()
    before = max(pool.max_memory(), pool.bytes_allocated())
    with pytest.raises(IntegrityError, match=message):
        Parquet(data).frame()
    assert pool.max_memory() <= before + LIMIT


def test_a_page_as_its_writer_gave_it_is_read_from_another_place() -> None:
    assert Parquet(repaged(plain(), lambda _, page: page)).frame()["a"].tolist() == ["x"] * 10
    assert Parquet(repaged(plain(), added(nothings(1_000)))).frame()["a"].tolist() == ["x"] * 10


def test_a_footer_of_columns_that_tell_nothing_is_refused_before_arrow_reads_it(tmp_path: Path) -> None:
    body, footer = footer_of(plain())
    chunk = written([Field(2, I64, 4)])
    count = 50_000
    # the list by hand, as it would take long to make
    group = b"\x19\xfc" + varint(count) + chunk * count + b"\x16\x02\x16\x02\0"
    head = written(footer[:3])[:-1]
    data = with_footer(body, head + b"\x19\xac" + group * 10 + b"\0")
    store = DatasetStore(root=str(tmp_path))
    store.write_bytes("t.parquet", data)
    for act in (lambda: Parquet(data), lambda: stored_table(store, "t.parquet")):
        with pytest.raises(IntegrityError, match="too many values"):
            act()


def deep(depth: int) -> pa.Array:
    array = pa.array(np.zeros(1_000, np.int8))
    for _ in range(depth):
        array = pa.StructArray.from_arrays([array], ["a"])
    return array


OTHER_TYPES: dict[str, Callable[[], pa.Array]] = {
    "structures": lambda: deep(1),
    "structures in structures": lambda: deep(40),
    "lists of lists": lambda: pa.array([[["a"]]]),
    "lists of structures": lambda: pa.array([[{"a": 1}]]),
    "structures of lists": lambda: pa.array([{"a": [1]}]),
    "lists of one length": lambda: pa.array([[1, 2]], pa.list_(pa.int8(), 2)),
    "views of lists": lambda: pa.array([[1]], pa.list_view(pa.int8())),
    "maps": lambda: pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int8())),
    "bytes of one length": lambda: pa.array([b"ab"], pa.binary(2)),
    "short floats": lambda: pa.array(np.zeros(1, np.float16)),
    "decimals": lambda: pa.array([1], pa.int64()).cast(pa.decimal128(38, 2)),
    "views of texts": lambda: pa.array(["a"], pa.string_view()),
    "times of day": lambda: pa.array([1], pa.time32("s")),
}


@pytest.mark.parametrize("name", OTHER_TYPES)
@pytest.mark.parametrize("store_schema", [True, False])
def test_columns_of_types_that_no_table_has_are_refused_unless_others_are_read(
    name: str, store_schema: bool
) -> None:
    array = OTHER_TYPES[name]()
    table = pa.table({"tile": ["14SMG"] * len(array), "a": array})
    data = parquet(table, store_schema=store_schema)
    assert Parquet(data).frame(["tile"])["tile"].tolist() == ["14SMG"] * len(array)
    if store_schema or ("view" not in name and name != "lists of one length"):
        with pytest.raises(
            IntegrityError, match=r"the column a is of the type|the column a is not one column"
        ):
            Parquet(data).frame()


@pytest.mark.parametrize("names", [("a", "a"), ("a.b", "c"), ("a", "a.list.element"), ("", "."), ("a", "a.")])
def test_columns_whose_names_arrow_could_take_for_others_are_refused(names: tuple[str, str]) -> None:
    lists = pa.ListArray.from_arrays(offsets(1, 1), pa.array(["x"]))
    table = pa.Table.from_arrays([lists, pa.array([LONG])], names=names)
    with pytest.raises(IntegrityError, match="is not one column, or has a dot in its name"):
        Parquet(parquet(table)).frame()


def test_of_an_area_or_a_tile_grid_only_its_own_columns_are_read(tmp_path: Path) -> None:
    path = tmp_path / "area.parquet"
    frame = gpd.GeoDataFrame(
        {"tile": ["14SMG"], "deep": [{"a": {"b": 1}}]}, geometry=[shapely.box(-99, 38, -98, 39)], crs=4326
    )
    # pandas notes an index, which would be read along
    frame.set_index(pd.Index([{"a": 1}], name="index")).to_parquet(path)
    assert list(read_aoi(path).columns) == ["geometry"]
    assert read_tile_grid(path)["tile"].tolist() == ["14SMG"]


def test_geometry_that_is_not_in_wkb_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "area.parquet"
    frame = gpd.GeoDataFrame(geometry=[shapely.box(-99, 38, -98, 39)], crs=4326)
    frame.to_parquet(path, geometry_encoding="geoarrow")
    for read in (read_aoi, read_tile_grid):
        with pytest.raises(InputError, match=r"save it as GeoPackage, or in WKB|no column of tile names"):
            read(path)


def test_geometry_of_empty_parts_is_bounded_by_what_they_take() -> None:
    parts = 6_000_000
    wkb = b"\1\6\0\0\0" + parts.to_bytes(4, "little") + b"\1\3\0\0\0\0\0\0\0" * parts
    table = pa.table({"geometry": pa.array([wkb], pa.binary())})
    geo = {"version": "1.0.0", "primary_column": "geometry", "columns": {"geometry": {"encoding": "WKB"}}}
    data = parquet(table.replace_schema_metadata({b"geo": json.dumps(geo).encode()}))
    assert len(data) < 100_000
    with pytest.raises(IntegrityError, match="its geometry has more than 50 MB; simplify it"):
        Parquet(data).frame()


@pytest.mark.parametrize("data", [b"", b"PAR1", b"PAR1" * 3, b"\xff" * 100, b"PAR1\xff\xff\xff\x7fPAR1"])
def test_what_is_no_parquet_file_is_told(data: bytes) -> None:
    with pytest.raises(IntegrityError) as error:
        Parquet(data).frame()
    assert str(error.value)


def test_a_footer_or_a_file_beyond_all_measure_is_not_read(tmp_path: Path) -> None:
    store = DatasetStore(root=str(tmp_path))
    store.write_bytes("t.parquet", parquet({"a": [1]}))
    with store.reading("t.parquet") as file, (tmp_path / "huge.parquet").open("wb") as out:
        out.truncate(1 << 40)
        out.seek(1 << 40)
        out.write(file.read())
    for act in (
        lambda name: read_table(store, name, TableSchema(())),
        lambda name: stored_table(store, name),
    ):
        with pytest.raises(IntegrityError, match="bytes; the most is 536,870,912"):
            act("huge.parquet")


@pytest.mark.parametrize("page", ["1.0", "2.0"])
@pytest.mark.parametrize("compression", ["zstd", "snappy", "gzip", "none"])
def test_honest_tables_are_read(page: str, compression: str) -> None:
    frame = pd.DataFrame(
        {
            "text": [f"chip_{i}" for i in range(3_000)],
            "same": ["14SMG"] * 3_000,
            "none": pd.array([None] * 3_000, "string"),
            "list": [["a", "b"][: i % 3] for i in range(3_000)],
            "number": np.arange(3_000),
            "share": np.linspace(0, 1, 3_000),
        }
    )
    data = parquet(
        pa.Table.from_pandas(frame), data_page_version=page, compression=compression, row_group_size=1_111
    )
    read = Parquet(data).frame()
    assert len(read) == 3_000
    assert read["text"].tolist() == frame["text"].tolist()
    assert [list(value) for value in read["list"]] == frame["list"].tolist()
    assert len(Parquet(parquet(pa.Table.from_pandas(frame[:0]))).frame()) == 0


ABORTING = (
    r"""c-oa#TW{h<6dnl6BAQ6qYK@?ZDr6}rm6FulvSF32G<ITQ8rVQK*w9vyZy^r0@%j=VQKUZhq3?a^PuR!)us-&&Gh;&nNu<_7%$akJ"""
    r"""zwbMTIX0)TQ=}5q0kwZZr77?=0N=ii0{|w>t0XACN-`y~E0gaE1*i=5%{Izhr;=21V-IY_CzWh`!n}Ed6298PY3bO?%5OYCsHfDy"""
    r"""40Q{DwHS!4r9gZwb+7`$D-o^BxY^V!l1)Vh$bhY9ywCCG4yquV^wcZelBoosRyX6>n7j#2HZWCUvyqJ{Ad}8*<hBc7gIdj1L2^BZ"""
    r"""QmA+)o%s?&pTf_D)M9nHZB!7T;#liCS`IRAbIDu*q!A`YNz70bg7RxT^LMQ9d%W;h?Eh8sgy*{%OXkZ;CS6En{#-#x*`y=en(Sr&"""
    r"""NZiqet?82sbz}yX?a}Y^Ki$zo<U<zi%Jx8~xAU|uTRL*sfoY<h=gY2-whXaH4l=96)UjE-{{?MAybA)ZN3e@1mxgX?7mL17)`dTH"""
    r"""u#*mKLmg?Mg1~a7^ML2O*lFp$tjWHNTz9l?qg=xt;Q09`erKP)f23ql0xi?a3PRVCfRS>otNwrC#|7MP=N}l9rwqz742JFRRh|;e"""
    r"""-OCiXBH8y{LkWD+*SmXMqpQpQ$R&L+4aJq+DMoRovg?k<80SWJJ!52JZ)tCr*)7ud4`Ln#%ezG!1KCyB>3kI5hl7y)=k@pGf*gdf"""
    r"""4a4h42rG~sKpw&Y<OamYvJ3GsUXSMSqcIomXDB2t;FTpS0U6?jC1@(jXWt2y8T9Mjid1UdD92r2v75$6gH`lt!<EJAP`Dlq1iNvi"""
    r"""Sehvq<AGpRuN3hd=LDKK@lH5ssO8R;YPXROj-&mJ$_abI;khSpja#kW9b=rPRMc?1SE_lMSPZ0+$z$%mH0KO@V$sC8irw`T4)gV$"""
    r"""zBn05rDu5SJkrkJO65*ft>YLpG_mR+{9*r0z}zUeIM%y0MweJKtfj@M28sE7sdI(yXL@Hy>#=9_#p<<E>Ntv}60B~wQ$P7MFfNyL"""
    r"""t5cNE`|lolfnp(_C5v6J&)4R42-cDDl2)bE_}mv;Ow`w+BC*xSan#3Y7%Q4uogem)-g$4184qh#EZ*;9{anKcbC>&tw1xGKd+7J<"""
    r"""Nv%um*c?aqIEvjawYV30h0ca{*kfMS5cNgsFsfx5n$$5#Z;t&M@s}GWirt`olm04o(@-sbs)yWTUF4^#RVx#GyKky?%TY=dqPcn9"""
    r"""3z}SIBG}BLcB?y8OXiJ&F*)J(<oYORo;7L^_VA&O@|xk%hisD^b^O)5MKiXKM}#9o!p`Prc43n>u!RPriRT5S2=nlHG+AsL$LkQP"""
    r"""@Gt_OgLK+t^6C#m2<K+~C?aWxdf<l-Ae(n&_j928JF4UCkOxXWdSK+kM@eoQy&LiC@rTy{oTC2({{qusDv<"""
)
"""A file of two columns with a changed byte in its footer, packed: pyarrow 26 ends the process where it is asked for
metadata of a column."""


def test_a_footer_by_which_arrow_would_end_the_process_is_read_or_refused() -> None:
    data = zlib.decompress(base64.b85decode(ABORTING))
    program = (
        "import sys\n"
        "from resources.errors import IntegrityError\n"
        "from resources.parquet import Parquet\n"
        "try:\n"
        "    Parquet(sys.stdin.buffer.read()).frame()\n"
        "except IntegrityError as error:\n"
        "    print('refused', error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], input=data, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
