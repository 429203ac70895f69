"""Parquet files from outside: how much one takes when it is read, before anything of it is.

Belongs here: bounds by what a file's footer and page headers say, which are what Arrow goes by. Does not: what is in a
table (`resources.tables`, and those who read areas and grids).
"""

import io
from collections.abc import Iterator
from typing import IO

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
_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8}

# parquet.thrift: what each kind of page has for the number of its values, and for their encoding
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
    for group in range(metadata.num_row_groups):
        held = metadata.row_group(group)
        for index in range(held.num_columns):
            chunk, column = held.column(index), metadata.schema.column(index)
            count.add(_PAGE_BYTES)
            if chunk.num_values <= 0:
                # nothing of it is read, and the places that it names may be none
                continue
            is_text = chunk.physical_type == "BYTE_ARRAY"
            width = _WIDTHS.get(chunk.physical_type, column.length)
            repeats = _count_pages(data, chunk, max(width, 0), is_text, count)
            if is_text and repeats:
                count.add(_length_of_text(data, group, chunk.path_in_schema, count.left))


class _Count:
    def __init__(self, most: int) -> None:
        self.most = self.left = most

    def add(self, size: int) -> None:
        self.left -= size
        if size < 0 or self.left < 0:
            raise IntegrityError(
                f"reading it would take more than {self.most / 1e6:,.0f} MB, as of files that are made to fill a memory"
            )


def _count_pages(
    data: bytes, chunk: pq.ColumnChunkMetaData, width: int, is_text: bool, count: _Count
) -> bool:
    """Count what the pages of a column take; whether it has a dictionary whose entries may be repeated."""
    at = chunk.data_page_offset
    if chunk.dictionary_page_offset and 0 < chunk.dictionary_page_offset < at:
        at = chunk.dictionary_page_offset
    end = at + chunk.total_compressed_size
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
    if values < chunk.num_values:
        raise IntegrityError(f"a column has {values:,} values, and its footer tells of {chunk.num_values:,}")
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


# Thrift's compact protocol, of which page headers are structs: Arrow does not give them out.
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
    """The 32-bit integers of a page header, by their field numbers from the outside in; and where the page begins."""
    found: dict[tuple[int, ...], int] = {}
    try:
        return found, _struct(data, at, (), found)
    except IndexError:
        raise IntegrityError("a page header has no end") from None


def _struct(data: bytes, at: int, path: tuple[int, ...], found: dict[tuple[int, ...], int]) -> int:
    if len(path) > _MAX_DEPTH:
        raise IntegrityError("a page header is nested too deep")
    number = 0
    while head := data[at]:
        kind, at = head & 15, at + 1
        if head >> 4:
            number += head >> 4
        else:
            value, at = _varint(data, at)
            number = _signed(value)
        if kind in (_TRUE, _FALSE):
            continue
        if kind == _I32:
            value, at = _varint(data, at)
            found[*path, number] = _signed(value)
        else:
            at = _skip(data, at, kind, (*path, number), found)
    return at + 1


def _skip(data: bytes, at: int, kind: int, path: tuple[int, ...], found: dict[tuple[int, ...], int]) -> int:
    """Where a value ends; the integers of a struct are taken along."""
    if kind in _INTEGERS:
        return _varint(data, at)[1]
    if kind == _BINARY:
        length, at = _varint(data, at)
        return at + length
    if kind == _STRUCT:
        return _struct(data, at, path, found)
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
        return at + _FIXED[kind]
    else:
        raise IntegrityError(f"a page header has a field of the unknown kind {kind}")
    if len(path) > _MAX_DEPTH:
        raise IntegrityError("a page header is nested too deep")
    for _ in range(size):
        for one in kinds:
            # what is in a list is no field of the header
            at = _skip(data, at, one, (*path, -1), {})
        data[at - 1]
    return at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise IntegrityError("a page header has a number without an end")


def _signed(value: int) -> int:
    """A zigzag number of 32 bits; of a longer one Arrow takes the last of them, too."""
    value &= 0xFFFFFFFF
    return (value >> 1) ^ -(value & 1)
