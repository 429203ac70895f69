"""Small Parquet files that would fill the memory are refused before they are read."""

import base64
import io
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
from resources.errors import IntegrityError
from resources.parquet import read_frame, require_bounded
from resources.store import DatasetStore
from resources.tables import read_table, stored_table

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
    "groups without end": lambda: parquet({"a": np.zeros(20_000, np.int8)}, row_group_size=1),
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
    with pytest.raises(IntegrityError, match=r"would take more than 67 MB|write it as it is"):
        require_bounded(bomb, LIMIT)
    assert pool.max_memory() < before + LIMIT


def test_a_bomb_is_small_and_the_same_table_fits_where_there_is_room() -> None:
    data = BOMBS["a long text in all rows"]()
    assert len(data) < 10_000
    require_bounded(data, 600 << 20)
    with pytest.raises(IntegrityError, match="more than 400 MB"):
        require_bounded(data, 400_000_000)


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
        read_table(store, "tables/cdl.parquet")


def test_areas_and_tile_grids_are_bounded_as_tables_are(tmp_path: Path) -> None:
    path = tmp_path / "area.parquet"
    frame = gpd.GeoDataFrame({"tile": ["14SMG"]}, geometry=[shapely.box(-99, 38, -98, 39)], crs=4326)
    buffer = io.BytesIO()
    frame.to_parquet(buffer)
    small = pq.read_table(buffer)
    many = pa.concat_tables([small]).add_column(0, "note", pa.array(["x" * 3_000]).dictionary_encode())
    path.write_bytes(parquet(many.take(pa.array(np.zeros(400_000, np.int32)))))
    assert path.stat().st_size < 300_000
    for read, what in ((read_aoi, "AOI"), (read_tile_grid, "tile grid")):
        with pytest.raises(InputError, match=rf"{what} .*area.parquet cannot be read: .*more than 1,074 MB"):
            read(path)
    frame.to_parquet(path)
    assert len(read_aoi(path)) == 1


def varint(value: int, length: int = 0) -> bytes:
    """A zigzag varint as Thrift has it; with zeros behind it up to a length, which readers take as well."""
    value, out = value * 2, bytearray()
    while value >= 128 or len(out) + 1 < length:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def lying(data: bytes, told: dict[int, int]) -> bytes:
    """The file with other numbers in its footer."""
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    footer = data[start:]
    for old, new in told.items():
        spelled = varint(old)
        assert spelled in footer
        footer = footer.replace(spelled, varint(new, len(spelled)))
    return data[:start] + footer


def test_a_footer_that_lies_about_sizes_changes_nothing() -> None:
    data = parquet({"a": [b"\0" * (80 << 20)]}, use_dictionary=False)
    size = pq.read_metadata(io.BytesIO(data)).row_group(0).column(0).total_uncompressed_size
    false = lying(data, {size: 90})
    assert pq.read_metadata(io.BytesIO(false)).row_group(0).column(0).total_uncompressed_size == 90
    with pytest.raises(IntegrityError, match="would take more than 67 MB"):
        require_bounded(false, LIMIT)


@pytest.mark.parametrize("fewer", [1, 1_000])
def test_a_footer_that_lies_about_rows_changes_nothing(fewer: int) -> None:
    data = parquet(repeated(LONG, pa.string()))
    with pytest.raises(IntegrityError, match="would take more than 67 MB"):
        require_bounded(lying(data, {5_000: 5_000 - fewer}), LIMIT)


def test_a_footer_that_promises_more_values_than_there_are_is_refused() -> None:
    data = parquet({"a": np.arange(5_000)})
    with pytest.raises(IntegrityError, match="5,000 values, and its footer tells of 8,000"):
        require_bounded(lying(data, {5_000: 8_000}))


@pytest.mark.parametrize("data", [b"", b"PAR1", b"PAR1" * 3, b"\xff" * 100, b"PAR1\xff\xff\xff\x7fPAR1"])
def test_what_is_no_parquet_file_is_told(data: bytes) -> None:
    with pytest.raises(IntegrityError) as error:
        read_frame(data)
    assert str(error.value)


def test_a_footer_or_a_file_beyond_all_measure_is_not_read(tmp_path: Path) -> None:
    store = DatasetStore(root=str(tmp_path))
    store.write_bytes("t.parquet", parquet({"a": [1]}))
    with store.reading("t.parquet") as file, (tmp_path / "huge.parquet").open("wb") as out:
        out.truncate(1 << 40)
        out.seek(1 << 40)
        out.write(file.read())
    for act in (read_table, stored_table):
        with pytest.raises(IntegrityError, match="bytes; the most is 536,870,912"):
            act(store, "huge.parquet")


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
    read = read_frame(data)
    assert len(read) == 3_000
    assert read["text"].tolist() == frame["text"].tolist()
    assert [list(value) for value in read["list"]] == frame["list"].tolist()
    assert len(read_frame(parquet(pa.Table.from_pandas(frame[:0])))) == 0


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
        "from resources.parquet import read_frame\n"
        "try:\n"
        "    read_frame(sys.stdin.buffer.read())\n"
        "except IntegrityError as error:\n"
        "    print('refused', error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], input=data, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
