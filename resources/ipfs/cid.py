"""Content identifiers (CIDs), which name a block by its hash: as text, as bytes and in hrefs."""

import base64
import hashlib
import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote

from resources.errors import IntegrityError, UnsafeNameError
from resources.ipfs import multibase, varint

Codec = Literal["raw", "dag-pb"]
HashName = Literal["identity", "sha2-256"]

# Numbers of the multicodec table. All blocks of a UnixFS file have one of these two codecs.
_CODECS: dict[int, Codec] = {0x55: "raw", 0x70: "dag-pb"}
_HASHES: dict[int, HashName] = {0x00: "identity", 0x12: "sha2-256"}
_CODEC_NUMBERS = {name: number for number, name in _CODECS.items()}
_HASH_NUMBERS = {name: number for number, name in _HASHES.items()}

_SHA2_256_BYTES = 32
_MAX_IDENTITY_BYTES = 128
"""The longest identity CID that Kubo accepts."""
_MAX_TEXT = 2048
"""Enough for the longest identity CID in base 2. Limits the work that a hostile text can cause."""

_HREF_PREFIX = re.compile(r"(ipfs://(ipfs/)?|https?://[^/]+/ipfs/|/ipfs/)", re.IGNORECASE)
_HREF_JUNK = re.compile(r"[\s?#]")


@dataclass(frozen=True, slots=True)
class Cid:
    """The name of one block.

    `bytes` gives the binary form, `str` base58 for version 0 and base32 for version 1.
    """

    version: Literal[0, 1]
    codec: Codec
    hash_name: HashName
    digest: bytes

    @classmethod
    def parse(cls, text: str) -> "Cid":
        """The CID written as `text`: of version 0, or of version 1 in any multibase.

        Raises IntegrityError, quoting the text, if it is malformed or cannot verify a block of a file: the codec
        must be raw or dag-pb, and the hash sha2-256 or identity.
        """
        try:
            if len(text) > _MAX_TEXT:
                raise ValueError(f"longer than {_MAX_TEXT} characters")
            is_version_0 = len(text) == 46 and text.startswith("Qm")
            data = multibase.decode("z" + text if is_version_0 else text)
            if data.startswith(b"\x12") and not is_version_0:
                raise ValueError("version 0 has no multibase prefix")
            return cls.from_bytes(data)
        except (ValueError, IntegrityError) as error:
            raise IntegrityError(f"{text[:200]!r} is not a CID of a file's block: {error}") from None

    @classmethod
    def from_bytes(cls, data: bytes) -> "Cid":
        """The CID in the binary form `data`, with nothing after it. Raises IntegrityError like `parse`."""
        cid, length = cls.split(data)
        if length != len(data):
            raise IntegrityError(f"{len(data) - length} bytes follow the CID {cid}")
        return cid

    @classmethod
    def split(cls, data: bytes) -> tuple["Cid", int]:
        """The CID at the start of `data`, and its length in bytes. Raises IntegrityError like `parse`."""
        version: Literal[0, 1]
        if data[:2] == b"\x12\x20":
            version, codec, at = 0, 0x70, 0
        else:
            number, at = varint.decode(data)
            if number != 1:
                raise IntegrityError(f"CID version {number} is not known; 0 and 1 are")
            version = 1
            codec, at = varint.decode(data, at)
        hash_number, at = varint.decode(data, at)
        length, at = varint.decode(data, at)
        if codec not in _CODECS:
            raise IntegrityError(f"codec 0x{codec:x} is not one of a file; raw and dag-pb are")
        if hash_number not in _HASHES:
            raise IntegrityError(f"hash 0x{hash_number:x} cannot be verified here; sha2-256 and identity can")
        hash_name = _HASHES[hash_number]
        if hash_name == "identity" and length > _MAX_IDENTITY_BYTES:
            raise IntegrityError(f"an identity CID of {length} bytes is longer than {_MAX_IDENTITY_BYTES}")
        if hash_name == "sha2-256" and length != _SHA2_256_BYTES:
            raise IntegrityError(f"a sha2-256 digest of {length} bytes instead of {_SHA2_256_BYTES}")
        digest = bytes(data[at : at + length])
        if len(digest) != length:
            raise IntegrityError(f"the CID ends {length - len(digest)} bytes early")
        return cls(version, _CODECS[codec], hash_name, digest), at + length

    @classmethod
    def of(cls, block: bytes, codec: Codec, version: Literal[0, 1] = 1) -> "Cid":
        """The sha2-256 CID of `block`. Raises ValueError for version 0 with a codec other than dag-pb."""
        if version == 0 and codec != "dag-pb":
            raise ValueError(f"a CID of version 0 cannot have the codec {codec}")
        return cls(version, codec, "sha2-256", hashlib.sha256(block).digest())

    def same_block(self, other: "Cid") -> bool:
        """Whether both name the same bytes, whatever their versions."""
        return self.digest == other.digest and self.hash_name == other.hash_name

    def matches(self, block: bytes) -> bool:
        """Whether this CID is that of `block`."""
        return self.digest == (block if self.hash_name == "identity" else hashlib.sha256(block).digest())

    def __bytes__(self) -> bytes:
        prefix = b"" if self.version == 0 else bytes((1, _CODEC_NUMBERS[self.codec]))
        return (
            prefix + bytes((_HASH_NUMBERS[self.hash_name],)) + varint.encode(len(self.digest)) + self.digest
        )

    def __str__(self) -> str:
        if self.version == 0:
            return multibase.encode_base58(bytes(self))
        return "b" + base64.b32encode(bytes(self)).decode().lower().rstrip("=")


def cid_from_href(href: str) -> tuple[Cid, tuple[str, ...]]:
    """The CID in an href of a catalogue, and the path segments after it.

    Accepts `ipfs://CID/path`, `/ipfs/CID/path`, `https://gateway/ipfs/CID/path` and a bare CID. Ignores surrounding
    white space and everything from inner white space, `?` or `#` on. Raises IntegrityError if the CID is malformed
    and UnsafeNameError if a segment is not a plain file name; both quote the href.
    """
    text = _HREF_JUNK.split(href.strip(), maxsplit=1)[0]
    first, *rest = _HREF_PREFIX.sub("", text, count=1).split("/")
    segments = tuple(unquote(segment) for segment in rest if segment)
    for segment in segments:
        if segment in (".", "..") or "/" in segment or "\0" in segment:
            raise UnsafeNameError(
                f"href {href[:200]!r} has the path segment {segment!r}, which is no file name"
            )
    try:
        return Cid.parse(first), segments
    except IntegrityError as error:
        raise IntegrityError(f"href {href[:200]!r}: {error}") from None
