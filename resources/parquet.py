"""Parquet files from outside: how much one takes when it is read, before anything of it is.

Belongs here: bounds by what a file's footer and page headers say, which are what Arrow goes by. Does not: what is in a
table (`resources.tables`, and those who read areas and grids).
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

import geopandas as gpd
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from resources.errors import IntegrityError

MAX_FILE_BYTES = 512 << 20
"""The table of all 300,000 chip boxes of the country has some 30 MB."""
_MAX_READ_BYTES = 1 << 30
_MAX_FOOTER_BYTES = 16 << 20
_MAX_ENTRIES = 100_000
_VALUE_BYTES = 32
"""What a value takes at least once it is an object of Python."""
_PAGE_BYTES = 4 << 10
"""What a page counts for at least, so that there are not millions; writers fill them with a megabyte."""
_WIDTHS = (1, 4, 8, 12, 4, 8)
"""Bytes of a value of each physical type but for the last two, texts and those of fixed length."""
_TEXT = 6

# parquet.thrift: the row groups of a footer, the columns of one, and what is told of a column
_ROW_GROUPS, _COLUMNS, _COLUMN = 4, 1, 3
_TYPE, _PATH, _COUNT, _BYTES, _DATA_AT, _DICTIONARY_AT = 1, 3, 5, 7, 9, 11
# and what each kind of page has for the number of its values, and for their encoding
_SIZE, _COMPRESSED, _DICTIONARY_VALUES = (2,), (3,), (7, 1)
_VALUES, _ENCODINGS = ((5, 1), (8, 1)), ((5, 2), (8, 4))
_PLAIN, _DELTA_BYTE_ARRAY = 0, 7


def footer_of(file: IO[bytes]) -> pq.ParquetFile:
    """An open file with its footer read and nothing else.

    Raises IntegrityError for a file or a footer that is too large, and what Arrow raises for one that is damaged.
    """
    size = file.seek(0, io.SEEK_END)
    if size > MAX_FILE_BYTES:
        raise IntegrityError(f"it has {size:,} bytes; the most is {MAX_FILE_BYTES:,}")
    file.seek(0)
    return pq.ParquetFile(
        file, thrift_string_size_limit=_MAX_FOOTER_BYTES, thrift_container_size_limit=_MAX_ENTRIES
    )


def read_frame(data: bytes) -> pd.DataFrame:
    """The table in a Parquet file, a GeoDataFrame where it is GeoParquet.

    Raises IntegrityError where it is damaged, or takes more memory than `require_bounded` allows.
    """
    try:
        require_bounded(data)
        if b"geo" in (pq.read_schema(io.BytesIO(data)).metadata or {}):
            frame: pd.DataFrame = gpd.read_parquet(io.BytesIO(data), page_checksum_verification=True)
        else:
            frame = pq.read_table(io.BytesIO(data), page_checksum_verification=True).to_pandas()
    except IntegrityError:
        raise
    except Exception as error:  # damaged bytes make Arrow, pandas, pyproj and GEOS raise what they like
        raise IntegrityError(str(error) or repr(error)) from error
    return frame


def require_bounded(data: bytes, most: int = _MAX_READ_BYTES) -> None:
    """Raise IntegrityError for a Parquet file that takes more than `most` bytes when it is read.

    A few bytes can stand for gigabytes: pages of zeros, a million times the same long entry of a dictionary, values
    that repeat the beginning of the one before, lists of a billion nothings. So the headers of all pages are gone over,
    for a footer may lie, and how long the entries of dictionaries come to is counted before they are written out.
    Raises what Arrow raises for what is damaged.
    """
    footer = int.from_bytes(data[-8:-4], "little")
    if data[-4:] != b"PAR1" or footer > min(len(data), _MAX_FOOTER_BYTES):
        raise IntegrityError(
            f"it is no Parquet file, or its footer has more than {_MAX_FOOTER_BYTES:,} bytes"
        )
    metadata = footer_of(io.BytesIO(data)).metadata
    count = _Count(most)
    count.add(metadata.num_rows * _VALUE_BYTES)
    for group, chunks in enumerate(_column_chunks(data[-8 - footer : -8])):
        if len(chunks) != len(metadata.schema):
            raise IntegrityError("a row group has other columns than the file")
        for index, chunk in enumerate(chunks):
            count.add(_PAGE_BYTES)
            if chunk.values <= 0:
                # nothing of it is read, and the places that it names may be none
                continue
            is_text = chunk.kind == _TEXT
            width = _WIDTHS[chunk.kind] if 0 <= chunk.kind < _TEXT else metadata.schema.column(index).length
            repeats = _count_pages(data, chunk, max(width, 0), is_text, count)
            if is_text and repeats:
                count.add(_length_of_text(data, group, chunk.path, count.left))


@dataclass(frozen=True)
class _Chunk:
    """What the footer tells of one column of a row group."""

    kind: int
    path: str
    values: int
    size: int
    data_at: int
    dictionary_at: int


def _column_chunks(footer: bytes) -> list[list[_Chunk]]:
    """The columns of each row group, not by Arrow's own objects for them: of some damaged footers these abort the
    process ("Definition level histogram size mismatch", pyarrow 26).
    """
    try:
        groups = _struct(footer, 0)[0].get(_ROW_GROUPS, [])
        found = []
        for group in groups:
            told = [chunk[_COLUMN] for chunk in group[_COLUMNS]]
            found.append([_chunk(column) for column in told])
        return found
    except (IndexError, KeyError, TypeError, AttributeError, UnicodeDecodeError):
        raise IntegrityError("its footer does not tell where its columns are") from None


class _Count:
    def __init__(self, most: int) -> None:
        self.most = self.left = most

    def add(self, size: int) -> None:
        self.left -= size
        if size < 0 or self.left < 0:
            raise IntegrityError(
                f"reading it would take more than {self.most / 1e6:,.0f} MB, as of files that are made to fill a memory"
            )


def _chunk(column: dict[int, Any]) -> _Chunk:
    numbers = [column[field] for field in (_TYPE, _COUNT, _BYTES, _DATA_AT)] + [column.get(_DICTIONARY_AT, 0)]
    if not all(isinstance(number, int) for number in numbers):
        raise TypeError
    kind, values, size, data_at, dictionary_at = numbers
    return _Chunk(kind, b".".join(column[_PATH]).decode(), values, size, data_at, dictionary_at)


def _count_pages(data: bytes, chunk: _Chunk, width: int, is_text: bool, count: _Count) -> bool:
    """Count what the pages of a column take; whether it has a dictionary whose entries may be repeated."""
    at = chunk.data_at
    if 0 < chunk.dictionary_at < at:
        at = chunk.dictionary_at
    end = at + chunk.size
    if not 0 <= at <= end <= len(data):
        raise IntegrityError("a column lies beyond the end of the file")
    values, has_dictionary = 0, False
    while at < end:
        header, at = _page_header(data, at)
        size, compressed = header.get(_SIZE, -1), header.get(_COMPRESSED, -1)
        if size < 0 or not 0 <= compressed <= end - at:
            raise IntegrityError("a page has no size, or lies beyond the end of its column")
        at += compressed
        entries = header.get(_DICTIONARY_VALUES, 0)
        has_dictionary = has_dictionary or _DICTIONARY_VALUES in header
        here = sum(header.get(key, 0) for key in _VALUES)
        if here < 0 or entries < 0:
            raise IntegrityError("a page has fewer than no values")
        values += here
        count.add(max(size, _PAGE_BYTES) + entries * _VALUE_BYTES + here * max(width, _VALUE_BYTES))
        if is_text and _DELTA_BYTE_ARRAY in (header.get(key, _PLAIN) for key in _ENCODINGS):
            raise IntegrityError("text is written as its difference to the text before; write it as it is")
    # Arrow would look for the rest behind the column
    if values < chunk.values:
        raise IntegrityError(f"a column has {values:,} values, and its footer tells of {chunk.values:,}")
    return has_dictionary


def _length_of_text(data: bytes, group: int, path: str, most: int) -> int:
    """Bytes of the texts of a column that is read as dictionary and indices, which takes no more than its pages."""
    file = pq.ParquetFile(io.BytesIO(data), read_dictionary=[path], pre_buffer=False)
    table = file.read_row_group(group, columns=[path], use_threads=False)
    total = 0
    for column in table.columns:
        for array in column.chunks:
            for texts in _dictionaries(array):
                lengths = pc.binary_length(texts.dictionary).take(texts.indices)
                total += pc.sum(lengths).as_py() or 0
                if total > most:
                    return total
    return total


def _dictionaries(array: pa.Array) -> Iterator[pa.DictionaryArray]:
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if isinstance(array, pa.DictionaryArray):
        yield array
    elif isinstance(array, pa.MapArray):
        yield from _dictionaries(array.keys)
        yield from _dictionaries(array.items)
    elif isinstance(array, pa.StructArray):
        for index in range(array.type.num_fields):
            yield from _dictionaries(array.field(index))
    elif hasattr(array, "flatten"):
        yield from _dictionaries(array.flatten())


# Thrift's compact protocol, of which footers and page headers are structs.
# https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
_TRUE, _FALSE, _BYTE, _I32, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT, _UUID = (
    1,
    2,
    3,
    5,
    7,
    8,
    9,
    10,
    11,
    12,
    13,
)
_INTEGERS = (4, _I32, 6)
_FIXED = {_TRUE: 1, _FALSE: 1, _BYTE: 1, _DOUBLE: 8, _UUID: 16}
_MAX_DEPTH = 8


def _page_header(data: bytes, at: int) -> tuple[dict[tuple[int, ...], int], int]:
    """The integers of a page header, by their field numbers from the outside in; and where the page begins."""
    found: dict[tuple[int, ...], int] = {}

    def take(fields: dict[int, Any], path: tuple[int, ...]) -> None:
        for number, value in fields.items():
            if isinstance(value, dict):
                take(value, (*path, number))
            elif isinstance(value, int):
                found[*path, number] = value

    try:
        header, at = _struct(data, at)
    except IndexError:
        raise IntegrityError("a page header has no end") from None
    take(header, ())
    return found, at


def _struct(data: bytes, at: int, depth: int = 0) -> tuple[dict[int, Any], int]:
    """The fields of a struct by number, and where it ends: integers, bytes, lists, and structs. Raises IndexError."""
    if depth > _MAX_DEPTH:
        raise IntegrityError("a page header or footer is nested too deep")
    fields: dict[int, Any] = {}
    number = 0
    while head := data[at]:
        kind, at = head & 15, at + 1
        if head >> 4:
            number += head >> 4
        else:
            value, at = _varint(data, at)
            number = _signed(value, 32)
        if kind not in (_TRUE, _FALSE):
            fields[number], at = _value(data, at, kind, depth)
    return fields, at + 1


def _value(data: bytes, at: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in _INTEGERS:
        value, at = _varint(data, at)
        return _signed(value, 64 if kind == 6 else 32), at
    if kind == _BINARY:
        length, at = _varint(data, at)
        return data[at : at + length], at + length
    if kind == _STRUCT:
        return _struct(data, at, depth + 1)
    kinds: tuple[int, ...]
    if kind in (_LIST, _SET):
        size, kinds, at = data[at] >> 4, (data[at] & 15,), at + 1
        if size == 15:
            size, at = _varint(data, at)
    elif kind == _MAP:
        size, at = _varint(data, at)
        kinds = (data[at] >> 4, data[at] & 15) if size else (0, 0)
        at += 1 if size else 0
    elif kind in _FIXED:
        return None, at + _FIXED[kind]
    else:
        raise IntegrityError(f"a page header or footer has a field of the unknown kind {kind}")
    if depth > _MAX_DEPTH:
        raise IntegrityError("a page header or footer is nested too deep")
    values = []
    for _ in range(size):
        for one in kinds:
            value, at = _value(data, at, one, depth + 1)
            values.append(value)
        data[at - 1]
    return values, at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise IntegrityError("a page header has a number without an end")


def _signed(value: int, bits: int) -> int:
    """A zigzag number; of one of more bits Arrow takes the last of them, too."""
    value &= (1 << bits) - 1
    return (value >> 1) ^ -(value & 1)
