"""Unsigned LEB128 integers (varints), as in CIDs, CAR files and protobuf."""

from resources.errors import IntegrityError

_MAX_BYTES = 9
"""The multiformats specification's limit: 63 bits."""


def encode(value: int) -> bytes:
    """`value`, from 0 to 2**63 - 1, in as few bytes as possible."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def decode(data: bytes, at: int = 0) -> tuple[int, int]:
    """The integer at offset `at` of `data`, and the offset after it.

    Raises IntegrityError if `data` ends inside it, if it is longer than 9 bytes, or if it is padded with zeros,
    which would give one number several encodings.
    """
    value = 0
    for index, byte in enumerate(data[at : at + _MAX_BYTES]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            if byte == 0 and index:
                raise IntegrityError(f"the integer at byte {at} is padded with zeros")
            return value, at + index + 1
    raise IntegrityError(f"the integer at byte {at} has no end within {_MAX_BYTES} bytes")
