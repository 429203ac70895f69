"""Structs in Thrift's compact protocol, the format of the footers and page headers of Parquet files.

Only the requested fields are parsed. Bytes that two readers could interpret in two ways are refused.

https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

from typing import Any, TypeAlias

from resources.errors import IntegrityError

I32, I64, BINARY = 5, 6, 8
_TRUE, _FALSE, _BYTE, _I16, _DOUBLE, _LIST, _SET, _MAP, _STRUCT, _UUID = 1, 2, 3, 4, 7, 9, 10, 11, 12, 13
_INTEGERS = (_I16, I32, I64)
_FIXED = {_TRUE: 1, _FALSE: 1, _BYTE: 1, _DOUBLE: 8, _UUID: 16}
_MAX_DEPTH = 16

Shape: TypeAlias = "int | dict[int, Shape] | list[Shape]"
"""How to read a value: its kind (`I32`, `I64`, `BINARY`), the fields of a struct by number, or [how to read each item]
of a list."""


def read_struct(
    data: bytes, at: int, wanted: dict[int, Shape], max_values: int
) -> tuple[dict[int, Any], int]:
    """The wanted fields that the struct at offset `at` has, and the offset of its end.

    Other fields are skipped. Raises IntegrityError if a field occurs twice or a wanted one is of another kind, which
    generated readers resolve differently; if the struct has more than `max_values` values; or if it does not end.
    """
    try:
        return _Reader(data, max_values).struct(at, wanted, 0)
    except IndexError:
        raise IntegrityError("a page header or footer has no end") from None


class _Reader:
    """Each method takes the offset of a value, and returns the offset of its end."""

    def __init__(self, data: bytes, max_values: int) -> None:
        self._data = data
        self._left = max_values

    def struct(self, at: int, wanted: dict[int, Shape], depth: int) -> tuple[dict[int, Any], int]:
        data = self._data
        found: dict[int, Any] = {}
        seen: set[int] = set()
        number = 0
        while head := data[at]:
            at += 1
            kind = head & 15
            if head >> 4:
                number += head >> 4
            else:
                value, at = self._varint(at)
                number = _signed(value, 32)
            # generated readers keep 16 bits of it
            if number in seen or not 0 < number < 1 << 15:
                raise IntegrityError("a page header or footer has a field twice, or one without a number")
            seen.add(number)
            if number in wanted:
                found[number], at = self._value(at, kind, wanted[number], depth)
            elif kind not in (_TRUE, _FALSE):
                at = self._skip(at, kind, depth)
        self._count(len(seen), depth)
        return found, at + 1

    def _value(self, at: int, kind: int, wanted: Shape, depth: int) -> tuple[Any, int]:
        expected = _LIST if isinstance(wanted, list) else _STRUCT if isinstance(wanted, dict) else wanted
        if kind != expected:
            raise IntegrityError("a page header or footer has a field of another kind than its own")
        if isinstance(wanted, dict):
            return self.struct(at, wanted, depth + 1)
        if isinstance(wanted, list):
            size, of, at = self._list(at, depth)
            values = []
            for _ in range(size):
                value, at = self._value(at, of, wanted[0], depth + 1)
                values.append(value)
            return values, at
        value, at = self._varint(at)
        if kind == BINARY:
            return self._data[at : at + value], self._beyond(at, value)
        return _signed(value, 32 if kind == I32 else 64), at

    def _skip(self, at: int, kind: int, depth: int) -> int:
        if kind in _INTEGERS:
            return self._varint(at)[1]
        if kind == BINARY:
            size, at = self._varint(at)
            return self._beyond(at, size)
        if kind == _STRUCT:
            return self.struct(at, {}, depth + 1)[1]
        if kind in (_LIST, _SET):
            size, of, at = self._list(at, depth)
            for _ in range(size):
                at = self._skip(at, of, depth + 1)
            return at
        if kind == _MAP:
            size, at = self._varint(at)
            self._count(2 * size, depth)
            kinds, at = (self._data[at], at + 1) if size else (0, at)
            for _ in range(size):
                at = self._skip(self._skip(at, kinds >> 4, depth + 1), kinds & 15, depth + 1)
            return at
        if kind not in _FIXED:
            raise IntegrityError(f"a page header or footer has a field of the unknown kind {kind}")
        return self._beyond(at, _FIXED[kind])

    def _list(self, at: int, depth: int) -> tuple[int, int, int]:
        """The number of values in a list, their kind, and the offset of the first."""
        head = self._data[at]
        size, at = (head >> 4, at + 1) if head >> 4 < 15 else self._varint(at + 1)
        self._count(size, depth)
        return size, head & 15, at

    def _count(self, values: int, depth: int) -> None:
        self._left -= values + 1
        if self._left < 0 or depth > _MAX_DEPTH:
            raise IntegrityError("a page header or footer has too many values, or is nested too deep")

    def _beyond(self, at: int, size: int) -> int:
        if at + size > len(self._data):
            raise IndexError
        return at + size

    def _varint(self, at: int) -> tuple[int, int]:
        byte = self._data[at]
        if byte < 128:
            return byte, at + 1
        value = byte & 127
        for shift in range(7, 70, 7):
            at += 1
            byte = self._data[at]
            value |= (byte & 127) << shift
            if byte < 128:
                return value, at + 1
        raise IntegrityError("a page header or footer has a number without an end")


def _signed(value: int, bits: int) -> int:
    """A zigzag number; generated readers also drop the bits above `bits`."""
    value &= (1 << bits) - 1
    return (value >> 1) ^ -(value & 1)
