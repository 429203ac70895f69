"""Multibase: bytes as text whose first character names the base, as in a CID of version 1."""

import re
from string import ascii_lowercase, ascii_uppercase, digits

_BASE58 = re.sub("[0OIl]", "", digits + ascii_uppercase + ascii_lowercase)
_BASE32 = ascii_lowercase + "234567"
_BASE32_HEX = digits + ascii_lowercase[:22]
_BASE64 = ascii_uppercase + ascii_lowercase + digits

_NUMBERS = {
    "9": digits,
    "k": digits + ascii_lowercase,
    "K": digits + ascii_uppercase,
    "z": _BASE58,
    "Z": re.sub("[0OIl]", "", digits + ascii_lowercase + ascii_uppercase),
}
"""Alphabets of the bases in which the bytes are one large number."""

_BITS = {
    "0": ("01", 1),
    "7": ("01234567", 8),
    "f": ("0123456789abcdef", 1),
    "F": ("0123456789ABCDEF", 1),
    "b": (_BASE32, 1),
    "B": (_BASE32.upper(), 1),
    "c": (_BASE32, 8),
    "C": (_BASE32.upper(), 8),
    "v": (_BASE32_HEX, 1),
    "V": (_BASE32_HEX.upper(), 1),
    "t": (_BASE32_HEX, 8),
    "T": (_BASE32_HEX.upper(), 8),
    "h": ("ybndrfg8ejkmcpqxot1uwisza345h769", 1),
    "m": (_BASE64 + "+/", 1),
    "M": (_BASE64 + "+/", 4),
    "u": (_BASE64 + "-_", 1),
    "U": (_BASE64 + "-_", 4),
}
"""Alphabets of the bases in which each digit is some bits, and to how many characters `=` pads the text."""

_CONSONANTS, _VOWELS = "bdfghjklmnprstvz", "aiou"
_PROQUINT = re.compile("ro(-{0}{1}{0}{1}{0})*(-{0}{1}{0})?".format(f"[{_CONSONANTS}]", f"[{_VOWELS}]"))


def decode(text: str) -> bytes:
    """The bytes that `text` spells. Raises ValueError unless it is their canonical spelling in its base."""
    prefix, spelled = text[:1], text[1:]
    if prefix in _NUMBERS:
        alphabet = _NUMBERS[prefix]
        value = 0
        for digit in spelled:
            value = value * len(alphabet) + _index(digit, alphabet)
        zeros = len(spelled) - len(spelled.lstrip(alphabet[0]))
        return bytes(zeros) + value.to_bytes((value.bit_length() + 7) // 8, "big")
    if prefix in _BITS:
        alphabet, block = _BITS[prefix]
        unpadded = spelled.rstrip("=")
        if len(spelled) != -(-len(unpadded) // block) * block:
            raise ValueError("its padding is wrong")
        width = len(alphabet).bit_length() - 1
        return _from_bits("".join(f"{_index(digit, alphabet):0{width}b}" for digit in unpadded), width)
    if prefix == "p":
        if not _PROQUINT.fullmatch(spelled):
            raise ValueError("it is not made of proquints")
        letters = spelled[2:].replace("-", "")
        return _from_bits(
            "".join(
                f"{_VOWELS.find(c):02b}" if c in _VOWELS else f"{_CONSONANTS.find(c):04b}" for c in letters
            ),
            4,
        )
    if prefix == "\0":
        return spelled.encode()
    raise ValueError(f"{prefix!r} is not the prefix of a multibase")


def encode_base58(data: bytes) -> str:
    """`data` in base58btc, without a prefix."""
    value = int.from_bytes(data, "big")
    reverse = ""
    while value:
        value, digit = divmod(value, len(_BASE58))
        reverse += _BASE58[digit]
    zeros = len(data) - len(data.lstrip(b"\0"))
    return _BASE58[0] * zeros + reverse[::-1]


def _index(digit: str, alphabet: str) -> int:
    index = alphabet.find(digit)
    if index < 0:
        raise ValueError(f"{digit!r} is not a digit of its base")
    return index


def _from_bits(bits: str, width: int) -> bytes:
    """The bytes of a text of 0 and 1. Fewer than `width` bits may follow the last byte, all of them 0."""
    size, spare = divmod(len(bits), 8)
    if spare >= width or "1" in bits[size * 8 :]:
        raise ValueError("it ends within a byte")
    return int(bits[: size * 8] or "0", 2).to_bytes(size, "big")
