"""Parquet files from outside, read only after their footer and page headers, which Arrow relies on, show that they fit
into memory.
"""

import contextlib
import io
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import geopandas as gpd
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from resources import json_values
from resources.errors import IntegrityError
from resources.thrift import BINARY, I32, I64, Shape, read_struct
from resources.wkb import MAX_BYTES as MAX_WKB_BYTES
from resources.wkb import read_wkb

MAX_FILE_BYTES = 512 << 20
"""The table of all 300,000 chip boxes of the country has some 30 MB."""
MAX_READ_BYTES = 1 << 30
_MAX_FOOTER_BYTES = 16 << 20
_MAX_FOOTER_VALUES = 1_000_000
_SMALL_FOOTER_BYTES = 1 << 20
"""Arrow's objects take up to 230 times the bytes of a footer (of columns that say nothing of themselves)."""
_MAX_HEADER_VALUES = 10_000
_MAX_ENTRIES = 100_000
TAIL_BYTES = 64 << 10
"""What is read of a file at first: most footers are smaller."""

# what reading, to_pandas and a content hash take at once: of a value, of a text or what is in a list, and of a list or
# geometry; and how often the bytes of texts and geometries are held. Measured with pyarrow 26, pandas 3.1, GEOS 3.14
_VALUE_BYTES, _TEXT_BYTES, _OBJECT_BYTES = 32, 64, 128
_TEXT_TIMES, _WKB_TIMES = 3, 8
_PAGE_BYTES = 4 << 10
"""The least that a page counts for, so that there are not millions; writers put a megabyte into each."""

# parquet.thrift: the fields used of a footer, down to the columns of row groups, and of a page header
_TYPE, _PATH, _COUNT, _BYTES, _DATA_AT, _DICTIONARY_AT = 1, 3, 5, 7, 9, 11
_META: dict[int, Shape] = {
    _TYPE: I32,
    _PATH: [BINARY],
    _COUNT: I64,
    _BYTES: I64,
    _DATA_AT: I64,
    _DICTIONARY_AT: I64,
}
_GROUPS, _COLUMNS, _ROWS, _COLUMN, _SECRET, _SECRET_COLUMN = 4, 1, 3, 3, 8, 9
_CHUNK: dict[int, Shape] = {_COLUMN: _META, _SECRET: {}, _SECRET_COLUMN: BINARY}
_FOOTER: dict[int, Shape] = {_GROUPS: [{_COLUMNS: [_CHUNK], _ROWS: I64}]}
_PAGE, _SIZE, _COMPRESSED = 1, 2, 3
# of each kind of page: which field has its own header, and which of that the encoding
_DICTIONARY = 2
_PAGES = {0: (5, 2), _DICTIONARY: (7, 2), 3: (8, 4)}
_HEADER: dict[int, Shape] = {
    _PAGE: I32,
    _SIZE: I32,
    _COMPRESSED: I32,
    **{own: {1: I32, encoding: I32} for own, encoding in _PAGES.values()},
}
_TYPES = {"BOOLEAN": 0, "INT32": 1, "INT64": 2, "FLOAT": 4, "DOUBLE": 5, "BYTE_ARRAY": 6}
_TEXT = 6
_ENCODINGS = (0, 2, 3, 5, 8, 9)
"""PLAIN, PLAIN_DICTIONARY, RLE, DELTA_BINARY_PACKED, RLE_DICTIONARY, BYTE_STREAM_SPLIT."""
_OF_TEXT = (0, 2, 8)
"""Pages of the other text encodings hold their own count of values: 20 bytes can claim a billion empty ones."""


def footer_of(tail: Callable[[int], tuple[bytes, int]]) -> pq.FileMetaData:
    """The metadata in the footer of a file; `tail` returns the last bytes of it, that many, and its size.

    Raises IntegrityError if the file or its footer is damaged or too large, and what `tail` raises.
    """
    return _footer(tail)[1].metadata


class Parquet:
    """A Parquet file in memory, of which only the footer has been parsed.

    Raises IntegrityError if the footer is damaged or would fill the memory.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        footer, file = _footer(lambda count: (data[-count:], len(data)))
        with _damage():
            self.schema: pa.Schema = file.schema_arrow
            # Arrow leaves some out of its own schema, as of files that GDAL wrote
            self.metadata: dict[bytes, bytes] = file.metadata.metadata or {}
            self._rows: int = file.metadata.num_rows
            self._paths = [column.path for column in map(file.schema.column, range(len(file.schema)))]
            self._types = [
                column.physical_type for column in map(file.schema.column, range(len(file.schema)))
            ]
            self._groups = _groups(footer)

    def frame(self, columns: Collection[str] | None = None, most: int = MAX_READ_BYTES) -> pd.DataFrame:
        """The rows, with `columns` and the geometry only, or all columns; a GeoDataFrame if the file is GeoParquet.

        Raises IntegrityError if the file is damaged, has columns other than numbers, dates, texts and lists of these,
        or takes more than about `most` bytes to read.
        """
        with _damage():
            geometry = self._geometry()
            names = self.schema.names
            if columns is not None:
                names = [name for name in names if name in columns or (geometry and name == geometry[0])]
            self._require_bounded(names, geometry[0] if geometry else None, most)
            file = pq.ParquetFile(io.BytesIO(self._data), page_checksum_verification=True, pre_buffer=False)
            # what pandas noted of its own could ask for anything
            table = file.read(columns=names).replace_schema_metadata(None)
            frame: pd.DataFrame = table.to_pandas()
            if geometry:
                values = [None if pd.isna(value) else value for value in frame[geometry[0]]]
                frame[geometry[0]] = gpd.GeoSeries(read_wkb(values), frame.index, crs=geometry[1])
                frame = gpd.GeoDataFrame(frame, geometry=geometry[0])
            return frame

    def _geometry(self) -> tuple[str, Any] | None:
        """The name of the geometry column and its CRS, in a form that pyproj accepts; None if it is not GeoParquet."""
        if b"geo" not in self.metadata:
            return None
        geo = json_values.mapping(json_values.parse(self.metadata[b"geo"]))
        name = json_values.text(geo.get("primary_column"))
        column = json_values.mapping(json_values.mapping(geo.get("columns")).get(name))
        if name not in self.schema.names or column.get("encoding") != "WKB":
            raise IntegrityError(
                "its metadata name no geometry column in WKB; save it as GeoPackage, or in WKB"
            )
        return name, column.get("crs", "OGC:CRS84")

    def _require_bounded(self, names: list[str], geometry: str | None, most: int) -> None:
        """Raise IntegrityError if these columns take more than `most` bytes to read.

        A few bytes can expand to gigabytes: pages of zeros, a long dictionary entry repeated a million times, lists of
        a billion nulls. A footer may lie, so the headers of all pages are read, and the expanded length of dictionary
        entries is added up before they are expanded.
        """
        count = _Count(most)
        count.add(self._rows * _VALUE_BYTES)
        if sum(group.rows for group in self._groups) != self._rows:
            raise IntegrityError("its groups have other numbers of rows than the file")
        columns = self._columns(names)
        texts = [column.path for column in columns if column.kind == _TEXT]
        # a column of texts as dictionary and indices takes no more than its pages
        file = pq.ParquetFile(io.BytesIO(self._data), read_dictionary=texts, pre_buffer=False)
        wkb = 0
        for number, group in enumerate(self._groups):
            if len(group.chunks) != len(self._paths):
                raise IntegrityError("a row group has other columns than the file")
            lengths, repeating = {}, []
            for column in columns:
                plain, repeats = _count_pages(self._data, group, column, count)
                if column.is_list or column.name == geometry:
                    count.add(group.rows * _OBJECT_BYTES)
                lengths[column.name] = plain
                if repeats and column.kind == _TEXT:
                    repeating.append(column.name)
            if repeating:
                table = file.read_row_group(number, columns=repeating, use_threads=False)
                lengths |= {name: _length_of_texts(table.column(name)) for name in repeating}
            for name, length in lengths.items():
                count.add(length * (_WKB_TIMES if name == geometry else _TEXT_TIMES))
            wkb += lengths.get(geometry, 0) if geometry else 0
            if wkb > MAX_WKB_BYTES:
                raise IntegrityError(f"its geometry has more than {MAX_WKB_BYTES / 1e6:,.0f} MB; simplify it")

    def _columns(self, names: list[str]) -> list["_Column"]:
        found = []
        leaves: dict[str, list[int]] = {}
        for index, path in enumerate(self._paths):
            leaves.setdefault(path.split(".", 1)[0], []).append(index)
        for name, count in Counter(names).items():
            # Arrow looks for columns by names with dots between the parts
            if "." in name or count > 1 or len(leaves.get(name, ())) != 1:
                raise IntegrityError(f"the column {name} is not one column, or has a dot in its name")
            kind = self.schema.field(name).type
            is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
            (index,) = leaves[name]
            told = _TYPES.get(self._types[index])
            if told is None or not _is_plain(kind.value_type if is_list else kind):
                raise IntegrityError(f"the column {name} is of the type {kind}, which is not read here")
            found.append(_Column(name, index, self._paths[index], told, is_list))
        return found


@dataclass(frozen=True)
class _Column:
    """A column of Arrow's schema: its name and type, and its index among those in the footer."""

    name: str
    index: int
    path: str
    kind: int
    is_list: bool


@dataclass(frozen=True)
class _Chunk:
    """What the footer records of one column of a row group."""

    kind: int
    path: str
    values: int
    size: int
    data_at: int
    dictionary_at: int


@dataclass(frozen=True)
class _Group:
    rows: int
    chunks: list[_Chunk]


class _Count:
    def __init__(self, most: int) -> None:
        self.most = self.left = most

    def add(self, size: int) -> None:
        self.left -= size
        if size < 0 or self.left < 0:
            raise IntegrityError(
                f"reading it would take more than {self.most / 1e6:,.0f} MB, as of files that are made to fill a memory"
            )


@contextlib.contextmanager
def _damage() -> Iterator[None]:
    """Raise IntegrityError for damaged bytes, for which Arrow, pandas, pyproj and GEOS raise errors of many kinds."""
    try:
        yield
    except IntegrityError:
        raise
    except Exception as error:
        raise IntegrityError(str(error) or repr(error)) from error


def _footer(read_tail: Callable[[int], tuple[bytes, int]]) -> tuple[bytes, pq.ParquetFile]:
    """The footer of a file, and the same as parsed by Arrow."""
    tail, size = read_tail(TAIL_BYTES)
    if size > MAX_FILE_BYTES:
        raise IntegrityError(f"it has {size:,} bytes; the most is {MAX_FILE_BYTES:,}")
    length = int.from_bytes(tail[-8:-4], "little") + 8
    if tail[-4:] != b"PAR1" or length > min(size, _MAX_FOOTER_BYTES):
        raise IntegrityError(
            f"it is no Parquet file, or its footer has more than {_MAX_FOOTER_BYTES:,} bytes"
        )
    if length > len(tail):
        tail, _ = read_tail(length)
    footer = tail[-length:-8]
    if length > _SMALL_FOOTER_BYTES:
        read_struct(footer, 0, {}, _MAX_FOOTER_VALUES)
    with _damage():
        arrow = pq.ParquetFile(
            io.BytesIO(tail[-length:]),
            thrift_string_size_limit=_MAX_FOOTER_BYTES,
            thrift_container_size_limit=_MAX_ENTRIES,
        )
    return footer, arrow


def _groups(footer: bytes) -> list[_Group]:
    """The columns of each row group, without Arrow's objects for them: some damaged footers make these abort the
    process ("Definition level histogram size mismatch", pyarrow 26).
    """
    found, _ = read_struct(footer, 0, _FOOTER, _MAX_FOOTER_VALUES)
    try:
        return [
            _Group(group[_ROWS], [_chunk(chunk) for chunk in group[_COLUMNS]])
            for group in found.get(_GROUPS, [])
        ]
    except (KeyError, UnicodeDecodeError):
        raise IntegrityError("its footer does not tell where its columns are") from None


def _chunk(chunk: dict[int, Any]) -> _Chunk:
    if _SECRET in chunk or _SECRET_COLUMN in chunk:
        raise IntegrityError("a column is encrypted")
    told = chunk[_COLUMN]
    kind, values, size, data_at = (told[field] for field in (_TYPE, _COUNT, _BYTES, _DATA_AT))
    path = b".".join(told[_PATH]).decode()
    return _Chunk(kind, path, values, size, data_at, told.get(_DICTIONARY_AT, 0))


def _is_plain(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    of = pa.types
    return any(
        is_one(kind)
        for is_one in (
            *(of.is_null, of.is_boolean, of.is_integer, of.is_floating, of.is_date, of.is_timestamp),
            *(of.is_string, of.is_large_string, of.is_binary, of.is_large_binary),
        )
    )


def _count_pages(data: bytes, group: _Group, column: _Column, count: _Count) -> tuple[int, bool]:
    """Add up the memory that the pages of a column take.

    Returns the bytes of the texts that are stored plainly, and whether there is a dictionary, whose entries may be
    repeated.
    """
    chunk = group.chunks[column.index]
    if (chunk.kind, chunk.path) != (column.kind, column.path):
        raise IntegrityError(f"the column {column.name} is another one by its own record")
    if chunk.values < group.rows or group.rows < 0 or (chunk.values > group.rows and not column.is_list):
        raise IntegrityError(f"the column {column.name} has another number of values than rows")
    count.add(_PAGE_BYTES)
    if not chunk.values:
        # nothing of it is read, and the places that it names may be none
        return 0, False
    at = chunk.data_at
    if 0 < chunk.dictionary_at < at:
        at = chunk.dictionary_at
    end = at + chunk.size
    if not 0 <= at <= end <= len(data):
        raise IntegrityError("a column lies beyond the end of the file")
    count.add(chunk.size)
    is_text = column.kind == _TEXT
    each = _TEXT_BYTES if is_text or column.is_list else _VALUE_BYTES
    values, plain, has_dictionary = 0, 0, False
    while at < end:
        header, at = read_struct(data, at, _HEADER, _MAX_HEADER_VALUES)
        page, size, compressed = (header.get(field, -1) for field in (_PAGE, _SIZE, _COMPRESSED))
        if size < 0 or not 0 <= compressed <= end - at:
            raise IntegrityError("a page has no size, or lies beyond the end of its column")
        at += compressed
        own, encoding_at = _PAGES.get(page, (0, 0))
        if own not in header or any(other in header for other, _ in _PAGES.values() if other != own):
            raise IntegrityError("a page is neither of values nor a dictionary")
        here, encoding = header[own].get(1, -1), header[own].get(encoding_at, -1)
        if here < 0:
            raise IntegrityError("a page has fewer than no values")
        count.add(max(size, _PAGE_BYTES) + here * each)
        if page == _DICTIONARY:
            has_dictionary = True
            continue
        values += here
        if encoding not in (_OF_TEXT if is_text else _ENCODINGS):
            raise IntegrityError(
                f"the column {column.name} is written in an encoding that is not read here; write it as PLAIN"
            )
        if is_text and not encoding:
            plain += size
    # Arrow would look for the rest behind the column
    if values < chunk.values:
        raise IntegrityError(f"a column has {values:,} values, and its footer tells of {chunk.values:,}")
    return plain, has_dictionary


def _length_of_texts(column: pa.ChunkedArray) -> int:
    total = 0
    for array in column.chunks:
        texts = array if isinstance(array, pa.DictionaryArray) else array.flatten()
        if not isinstance(texts, pa.DictionaryArray):
            raise IntegrityError("a column of texts is not read as a dictionary")
        total += pc.sum(pc.binary_length(texts.dictionary).take(texts.indices)).as_py() or 0
    return total
