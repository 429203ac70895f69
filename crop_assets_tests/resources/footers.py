"""Parquet files with other footers and page headers than their writers gave them.

A struct of Thrift's compact protocol is a list of its fields in their order, so that a field may be there twice.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

I32, I64, BINARY, LIST, MAP, STRUCT = 5, 6, 8, 9, 11, 12
_BOOLEANS, _BYTE, _I16, _DOUBLE, _SET = (1, 2), 3, 4, 7, 10


@dataclass
class Field:
    """A field: of a struct the value is its fields, of a list its kind and values, of a boolean None."""

    number: int
    kind: int
    value: Any


Struct = list[Field]


def field(struct: Struct, *path: int) -> Field:
    """The field that is reached by these numbers, each of a field of the struct of the one before."""
    found = next(one for one in struct if one.number == path[0])
    return field(found.value, *path[1:]) if len(path) > 1 else found


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def zigzag(value: int) -> bytes:
    return varint(value * 2 if value >= 0 else -value * 2 - 1)


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at


def read_zigzag(data: bytes, at: int) -> tuple[int, int]:
    value, at = read_varint(data, at)
    return (value >> 1) ^ -(value & 1), at


def read_struct(data: bytes, at: int = 0) -> tuple[Struct, int]:
    fields, number = [], 0
    while head := data[at]:
        at += 1
        kind = head & 15
        if head >> 4:
            number += head >> 4
        else:
            number, at = read_zigzag(data, at)
        value = None
        if kind not in _BOOLEANS:
            value, at = _read(data, at, kind)
        fields.append(Field(number, kind, value))
    return fields, at + 1


def _read(data: bytes, at: int, kind: int) -> tuple[Any, int]:
    if kind in (_I16, I32, I64):
        return read_zigzag(data, at)
    if kind == BINARY:
        size, at = read_varint(data, at)
        return data[at : at + size], at + size
    if kind == STRUCT:
        return read_struct(data, at)
    if kind in (LIST, _SET):
        size, of, at = data[at] >> 4, data[at] & 15, at + 1
        if size == 15:
            size, at = read_varint(data, at)
        values = []
        for _ in range(size):
            value, at = (data[at], at + 1) if of in _BOOLEANS else _read(data, at, of)
            values.append(value)
        return (of, values), at
    size = {_BYTE: 1, _DOUBLE: 8}[kind]
    return data[at : at + size], at + size


def written(fields: Struct) -> bytes:
    out, before = b"", 0
    for one in fields:
        step = one.number - before
        out += bytes([step << 4 | one.kind]) if 0 < step < 16 else bytes([one.kind]) + zigzag(one.number)
        out += b"" if one.kind in _BOOLEANS else _written(one.kind, one.value)
        before = one.number
    return out + b"\0"


def _written(kind: int, value: Any) -> bytes:
    if kind in (_I16, I32, I64):
        return zigzag(value)
    if kind == BINARY:
        return varint(len(value)) + bytes(value)
    if kind == STRUCT:
        return written(value)
    if kind in (LIST, _SET):
        of, values = value
        head = (
            bytes([len(values) << 4 | of]) if len(values) < 15 else bytes([0xF0 | of]) + varint(len(values))
        )
        return head + b"".join(bytes([one]) if of in _BOOLEANS else _written(of, one) for one in values)
    return bytes(value)


def as_json(fields: Struct) -> list[Any]:
    """A struct as JSON has it, bytes as text of one character each."""
    return [[one.number, one.kind, _as_json(one.kind, one.value)] for one in fields]


def _as_json(kind: int, value: Any) -> Any:
    if kind == STRUCT:
        return as_json(value)
    if kind in (LIST, _SET):
        return [value[0], [_as_json(value[0], one) for one in value[1]]]
    return value.decode("latin-1") if isinstance(value, bytes) else value


def of_json(fields: Any) -> Struct:
    """The struct of what is as `as_json` gives it; what is no field of a struct, or no value, is left out."""
    found = []
    for one in fields if isinstance(fields, list) else []:
        with contextlib.suppress(TypeError, ValueError, LookupError, OverflowError):
            number, kind, value = one
            found.append(Field(int(number) & 0xFFFFFF, int(kind) & 15, _of_json(int(kind) & 15, value)))
    return found


def _of_json(kind: int, value: Any) -> Any:
    if kind == STRUCT:
        return of_json(value)
    if kind in (LIST, _SET):
        return int(value[0]) & 15, [_of_json(int(value[0]) & 15, one) for one in value[1]]
    if kind in _BOOLEANS:
        return 1
    return int(value) if kind in (_I16, I32, I64) else str(value).encode("latin-1")


def footer_of(data: bytes) -> tuple[bytes, Struct]:
    """What lies before the footer, and the footer."""
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    return data[:start], read_struct(data, start)[0]


def with_footer(body: bytes, footer: Struct | bytes) -> bytes:
    footer = footer if isinstance(footer, bytes) else written(footer)
    return body + footer + len(footer).to_bytes(4, "little") + b"PAR1"


def groups(footer: Struct) -> list[Struct]:
    found: list[Struct] = field(footer, 4).value[1]
    return found


def columns(footer: Struct) -> Iterator[Struct]:
    """What the footer tells of each column of each row group."""
    for group in groups(footer):
        for chunk in field(group, 1).value[1]:
            yield field(chunk, 3).value


def repaged(data: bytes, change: Any, column: int = 0) -> bytes:
    """The file with another first page of a column, by what `change` makes of its header, in place, and its bytes."""
    body, footer = footer_of(data)
    meta = list(columns(footer))[column]
    at = field(meta, 9).value
    header, start = read_struct(body, at)
    end = start + field(header, 3).value
    page = change(header, body[start:end])
    new = written(header) + page
    # at the end, where it takes the place of nothing
    field(meta, 9).value, field(meta, 7).value = len(body), len(new)
    meta[:] = [one for one in meta if one.number != 11]
    return with_footer(body + new, footer)
