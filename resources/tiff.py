"""Reads and writes the structure of TIFF files, without GDAL: where their blocks are, and files of compressed blocks.

GDAL and tifffile decode pixels; this module moves blocks, strips or tiles, from one file to another as they are. It
reads the directory of a file of which only some bytes are there, and trusts none of it (TIFF 6.0, BigTIFF, GeoTIFF 1.1,
and GDAL's tags 42112 and 42113).
"""

import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from resources.errors import IntegrityError

HEAD_BYTES = 16_384
"""Bytes that are read first: HLS v2.0 has its directory, with the offsets of 225 blocks, in the first 5,000."""
DEFLATE, ZSTD = 8, 50_000
_NONE = 1
DECODERS: Mapping[int, Callable[..., Any]] = {
    DEFLATE: imagecodecs.deflate_decode,
    32_946: imagecodecs.deflate_decode,
    ZSTD: imagecodecs.zstd_decode,
}
"""By the number of the compression; each takes the bytes of a block, and its size when decoded as `out`."""
_COMPRESSIONS = (_NONE, 5, DEFLATE, 32_773, 32_946, ZSTD)
"""None, LZW, Deflate, PackBits, Deflate by its old number, and Zstandard: those that `resources.geodata` reads."""
_WITH_PREDICTOR = (5, DEFLATE, 32_946, ZSTD)
"""With others libtiff takes no notice of the predictor."""
_NUMBER = re.compile(rb"[-+]?\d+(\.\d*)?([eE][-+]?\d{1,3})?|nan", re.ASCII)
_NOT_IN_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_MAX_ENTRIES = 256
_MAX_BLOCKS = 1 << 16
_MAX_DIRECTORY_BYTES = 2 << 20
_MAX_BLOCK_BYTES = 8 << 20
_MAX_DECODED_BYTES = 64 << 20
_MAX_GEO_BYTES = 64 << 10
_MAX_SIDE = 1 << 20

_BYTE, _ASCII, _SHORT, _LONG, _DOUBLE, _LONG8 = 1, 2, 3, 4, 12, 16
_SIZES = {_BYTE: 1, _ASCII: 1, _SHORT: 2, _LONG: 4, _DOUBLE: 8, _LONG8: 8}
_INTEGERS = {_BYTE: "<u1", _SHORT: "<u2", _LONG: "<u4", _LONG8: "<u8"}
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER = 256, 257, 258, 259, 262, 266
_STRIP_OFFSETS, _SAMPLES, _ROWS_PER_STRIP, _STRIP_BYTES, _PLANAR = 273, 277, 278, 279, 284
_PREDICTOR, _COLOR_MAP, _TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_BYTES = 317, 320, 322, 323, 324, 325
_EXTRA_SAMPLES, _SAMPLE_FORMAT = 338, 339
_GEOREFERENCE = (33_550, 33_922, 34_264, 34_735, 34_736, 34_737)
_PIXEL_SCALE, _TIEPOINT, _TRANSFORMATION = 33_550, 33_922, 34_264
_METADATA, _NODATA = 42_112, 42_113
_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3
_MIN_IS_BLACK, _PALETTE = 1, 3
_DTYPES = {(8, _UNSIGNED): "uint8", (16, _UNSIGNED): "uint16", (16, _SIGNED): "int16"}

Read = Callable[[int, int], bytes]
"""The bytes of a file from a start to a stop."""


@dataclass(frozen=True)
class Tag:
    """One entry of a directory: the number of values, and their bytes, little-endian."""

    code: int
    kind: int
    count: int
    data: bytes


@dataclass(frozen=True)
class Form:
    """What a TIFF says about its blocks: all that is needed to decode them, and where they lie on Earth.

    Blocks are numbered row by row, and band by band: `block_shape` of (rows, columns) pixels each, of one band.
    `tiled` is False for strips, whose last one may be lower. `nodata` is GDAL's text, "" for none; `georeference` are
    the tags of GeoTIFF; `metadata` are GDAL's items, and `descriptions` those of the bands. With `palette`, colours by
    value, the file has one band of bytes.
    """

    shape: tuple[int, int]
    block_shape: tuple[int, int]
    dtype: str
    compression: int
    predictor: int = 1
    tiled: bool = True
    count: int = 1
    nodata: str = ""
    georeference: tuple[Tag, ...] = ()
    metadata: Mapping[str, str] | None = None
    descriptions: tuple[str, ...] = ()
    palette: Mapping[int, tuple[int, int, int, int]] | None = None

    @property
    def blocks_across(self) -> int:
        return -(-self.shape[1] // self.block_shape[1])

    @property
    def blocks_down(self) -> int:
        return -(-self.shape[0] // self.block_shape[0])

    @property
    def blocks(self) -> int:
        """The number of blocks of all bands."""
        return self.count * self.blocks_down * self.blocks_across


@dataclass(frozen=True)
class Layout:
    """The first image of a TIFF file of `size` bytes, and where its blocks are: int64 (blocks,), both 0 for a block
    that is not stored. `text` is the XML of GDAL's metadata as it stands there, unparsed.
    """

    form: Form
    size: int
    offsets: NDArray[np.int64]
    counts: NDArray[np.int64]
    text: str = ""


class _Directory:
    """The entries of the first directory of a file, read by need."""

    def __init__(self, read: Read, size: int) -> None:
        self._read, self._size = read, size
        self._budget = _MAX_DIRECTORY_BYTES
        self._pieces: list[tuple[int, bytes]] = []
        start = self.at(0, min(16, size))
        if start[:4] == b"II*\0":
            wide, at = False, struct.unpack("<I", start[4:8].ljust(4, b"\0"))[0]
        elif start[:8] == b"II+\0\x08\0\0\0":
            wide, at = True, struct.unpack("<Q", start[8:16].ljust(8, b"\0"))[0]
        else:
            raise IntegrityError(f"begins with {start[:8]!r}, and not as a little-endian TIFF")
        self._inline = 8 if wide else 4
        counter, entry = ("<Q", "<HHQ8s") if wide else ("<H", "<HHI4s")
        (number,) = struct.unpack(counter, self.at(at, struct.calcsize(counter)))
        if not 0 < number <= _MAX_ENTRIES:
            raise IntegrityError(f"has a directory of {number} entries")
        listed = self.at(at + struct.calcsize(counter), number * struct.calcsize(entry))
        self._entries = {code: rest for code, *rest in struct.iter_unpack(entry, listed)}
        if len(self._entries) != number:
            # GDAL takes the first
            raise IntegrityError("has a tag twice")

    def __contains__(self, code: int) -> bool:
        return code in self._entries

    def at(self, start: int, count: int) -> bytes:
        """`count` bytes at an offset. Raises IntegrityError if the file does not have them."""
        if start + count > self._size:
            raise IntegrityError(f"has a part of its directory after its end, at byte {start:,}")
        for begin, piece in self._pieces:
            if begin <= start and start + count <= begin + len(piece):
                return piece[start - begin : start - begin + count]
        stop = min(start + max(count, HEAD_BYTES), self._size)
        self._budget -= stop - start
        if self._budget < 0:
            raise IntegrityError(f"has a directory of more than {_MAX_DIRECTORY_BYTES:,} bytes")
        piece = self._read(start, stop)
        if len(piece) != stop - start:
            raise IntegrityError(f"has {len(piece)} of {stop - start} bytes at byte {start:,}")
        self._pieces.append((start, piece))
        return piece[:count]

    def tag(self, code: int, max_bytes: int) -> Tag | None:
        if code not in self._entries:
            return None
        kind, count, value = self._entries[code]
        size = count * _SIZES.get(kind, 0)
        if not 0 < size <= max_bytes:
            raise IntegrityError(f"has tag {code} with {count:,} values of kind {kind}")
        data = value[:size] if size <= self._inline else self.at(int.from_bytes(value, "little"), size)
        return Tag(code, kind, count, data)

    def numbers(self, code: int, most: int = 1) -> NDArray[np.int64] | None:
        tag = self.tag(code, most * 8)
        if tag is None:
            return None
        if tag.kind not in _INTEGERS:
            raise IntegrityError(f"has tag {code} of kind {tag.kind}, which is no whole number")
        values: NDArray[np.int64] = np.frombuffer(tag.data, _INTEGERS[tag.kind]).astype(np.int64)
        return values

    def number(self, code: int, default: int | None = None) -> int:
        """The value of a tag. Raises IntegrityError if it is missing and has no `default`, or has several values."""
        found = self.numbers(code)
        if found is None:
            if default is None:
                raise IntegrityError(f"lacks tag {code}")
            return default
        if len(found) > 1:
            raise IntegrityError(f"has tag {code} with {len(found)} values")
        return int(found[0])


def read_layout(read: Read, size: int) -> Layout:
    """The layout of a file of `size` bytes, of which `read` fetches the parts that are needed: first HEAD_BYTES.

    Raises IntegrityError if it is not a little-endian TIFF of one band of 8 or 16 bits in a general compression, if a
    tag is missing, and unless all blocks lie within the file, do not overlap, and are of plausible sizes.
    """
    directory = _Directory(read, size)
    form = _form(directory)
    names = (_TILE_OFFSETS, _TILE_BYTES) if form.tiled else (_STRIP_OFFSETS, _STRIP_BYTES)
    offsets, counts = (directory.numbers(code, _MAX_BLOCKS) for code in names)
    if offsets is None or counts is None:
        raise IntegrityError(f"lacks tag {names[offsets is not None]}")
    if not len(offsets) == len(counts) == form.blocks:
        raise IntegrityError(
            f"has {len(offsets)} offsets and {len(counts)} sizes of blocks, and {form.blocks} blocks"
        )
    _require_apart(offsets, counts, size)
    if form.compression == _NONE:
        _require_full(form, counts)
    metadata = directory.tag(_METADATA, _MAX_GEO_BYTES)
    text = metadata.data.decode(errors="replace") if metadata else ""
    return Layout(form, size, offsets, counts, text)


def _form(directory: _Directory) -> Form:
    height, width = directory.number(_HEIGHT), directory.number(_WIDTH)
    strips, tiles = (_STRIP_OFFSETS, _STRIP_BYTES), (_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_BYTES)
    tiled = any(code in directory for code in tiles)
    if tiled and any(code in directory for code in strips):
        raise IntegrityError("has both strips and tiles")
    if tiled:
        block = directory.number(_TILE_HEIGHT), directory.number(_TILE_WIDTH)
    else:
        block = min(directory.number(_ROWS_PER_STRIP, height), height), width
    if not (
        0 < height <= _MAX_SIDE and 0 < width <= _MAX_SIDE and min(block) > 0 and max(block) <= _MAX_SIDE
    ):
        raise IntegrityError(f"has {height} x {width} pixels in blocks of {block[0]} x {block[1]}")
    bands = directory.number(_SAMPLES, 1)
    if bands != 1:
        raise IntegrityError(f"has {bands} bands")
    kind = directory.number(_BITS, 1), directory.number(_SAMPLE_FORMAT, _UNSIGNED)
    if kind not in _DTYPES:
        raise IntegrityError(f"has {kind[0]} bits of format {kind[1]}")
    if block[0] * block[1] * kind[0] // 8 > _MAX_DECODED_BYTES:
        raise IntegrityError(f"has blocks of {block[0]} x {block[1]} pixels")
    # without its tag libtiff takes a file for uncompressed, but every writer writes it
    compression, predictor = directory.number(_COMPRESSION), directory.number(_PREDICTOR, 1)
    predicted = predictor == 1 or (predictor == 2 and compression in _WITH_PREDICTOR)
    if compression not in _COMPRESSIONS or not predicted or directory.number(_FILL_ORDER, 1) != 1:
        raise IntegrityError(f"has the compression {compression} with predictor {predictor}")
    geo = tuple(tag for code in _GEOREFERENCE if (tag := directory.tag(code, _MAX_GEO_BYTES)))
    return Form(
        (height, width),
        block,
        _DTYPES[kind],
        compression,
        predictor,
        tiled,
        nodata=_nodata(directory.tag(_NODATA, 100)),
        georeference=geo,
    )


def _nodata(tag: Tag | None) -> str:
    """GDAL's text of nodata, "" without the tag. Raises IntegrityError if it is not a number."""
    if tag is None:
        return ""
    text = tag.data.rstrip(b"\0 ").strip(b" ")
    if tag.kind != _ASCII or not _NUMBER.fullmatch(text):
        raise IntegrityError(f"has the nodata {text!r}")
    return text.decode()


def _require_apart(offsets: NDArray[np.int64], counts: NDArray[np.int64], size: int) -> None:
    stored = counts > 0
    if (offsets[~stored] != 0).any() or (offsets[stored] < 8).any() or (counts < 0).any():
        raise IntegrityError("has blocks without a place or without bytes")
    if counts.max(initial=0) > _MAX_BLOCK_BYTES:
        raise IntegrityError(f"has a block of {counts.max():,} bytes")
    if offsets.max(initial=0) > size:
        # and a sum with the greatest offsets would be negative
        raise IntegrityError("is truncated: some of its blocks are after its end")
    order = np.argsort(offsets[stored])
    starts, stops = offsets[stored][order], (offsets + counts)[stored][order]
    if stops.max(initial=0) > size:
        raise IntegrityError("is truncated: some of its blocks are after its end")
    if (starts[1:] < stops[:-1]).any():
        raise IntegrityError("has blocks that overlap")


def _require_full(form: Form, counts: NDArray[np.int64]) -> None:
    """Raises IntegrityError if uncompressed blocks have fewer bytes than their pixels: GDAL reads on in the file. It
    writes more for a last strip without data.
    """
    rows = np.full(form.blocks, form.block_shape[0])
    if not form.tiled:
        rows[-1] = form.shape[0] - (form.blocks - 1) * form.block_shape[0]
    full = rows * form.block_shape[1] * np.dtype(form.dtype).itemsize
    if ((counts < full) & (counts > 0)).any():
        raise IntegrityError("has uncompressed blocks with fewer bytes than their pixels")


def georeference(tags: Sequence[Tag], left: float, top: float, resolution: float) -> tuple[Tag, ...]:
    """The GeoTIFF tags of another raster of the same CRS: north up, of square pixels, from its upper left corner."""
    scale = Tag(_PIXEL_SCALE, _DOUBLE, 3, struct.pack("<3d", resolution, resolution, 0))
    tie = Tag(_TIEPOINT, _DOUBLE, 6, struct.pack("<6d", 0, 0, 0, left, top, 0))
    return scale, tie, *(tag for tag in tags if tag.code not in (_PIXEL_SCALE, _TIEPOINT, _TRANSFORMATION))


def tiff_pieces(form: Form, blocks: Sequence[bytes | None]) -> Iterator[bytes]:
    """A TIFF file with these compressed blocks: first its directory, then the blocks in their order.

    A block that is None is not stored; GDAL reads it as nodata. Raises ValueError if their number is not that of
    `form`, or for 4 GiB and more.
    """
    if len(blocks) != form.blocks:
        raise ValueError(f"{len(blocks)} blocks for {form.blocks}")
    counts = np.array([len(block or b"") for block in blocks], np.int64)
    empty = _head(form, np.zeros(len(blocks), np.int64), counts)
    ends = len(empty) + np.cumsum(counts)
    if ends[-1] > 0xFFFFFFFF:
        raise ValueError("a TIFF has less than 4 GiB")
    yield _head(form, np.where(counts > 0, ends - counts, 0), counts)
    yield from filter(None, blocks)


def _head(form: Form, offsets: NDArray[np.int64], counts: NDArray[np.int64]) -> bytes:
    """The header, the first directory and its values."""
    dtype = np.dtype(form.dtype)
    sample = {"u": _UNSIGNED, "i": _SIGNED, "f": _FLOAT}[dtype.kind]
    (height, width), (block_height, block_width) = form.shape, form.block_shape
    tags = [
        _shorts(_BITS, [dtype.itemsize * 8] * form.count),
        _shorts(_COMPRESSION, [form.compression]),
        _shorts(_PHOTOMETRIC, [_PALETTE if form.palette else _MIN_IS_BLACK]),
        _shorts(_SAMPLES, [form.count]),
        _shorts(_PLANAR, [2 if form.count > 1 else 1]),
        _shorts(_SAMPLE_FORMAT, [sample] * form.count),
        _longs(_WIDTH, [width]),
        _longs(_HEIGHT, [height]),
        _longs(_TILE_OFFSETS if form.tiled else _STRIP_OFFSETS, offsets),
        _longs(_TILE_BYTES if form.tiled else _STRIP_BYTES, counts),
        *form.georeference,
    ]
    if form.tiled:
        tags += [_longs(_TILE_WIDTH, [block_width]), _longs(_TILE_HEIGHT, [block_height])]
    else:
        tags += [_longs(_ROWS_PER_STRIP, [block_height])]
    if form.predictor != 1:
        tags.append(_shorts(_PREDICTOR, [form.predictor]))
    if form.count > 1:
        tags.append(_shorts(_EXTRA_SAMPLES, [0] * (form.count - 1)))
    if form.palette:
        tags.append(_shorts(_COLOR_MAP, _colors(form.palette)))
    if items := _items(form):
        tags.append(_text(_METADATA, items))
    if form.nodata:
        tags.append(_text(_NODATA, form.nodata))
    tags.sort(key=lambda tag: tag.code)
    at = 8 + 2 + 12 * len(tags) + 4
    entries, values = [], []
    for tag in tags:
        value = tag.data
        if len(value) > 4:
            values.append(tag.data + b"\0" * (len(tag.data) % 2))
            value = struct.pack("<I", at)
            at += len(values[-1])
        entries.append(struct.pack("<HHI4s", tag.code, tag.kind, tag.count, value))
    return b"".join([b"II*\0\x08\0\0\0", struct.pack("<H", len(tags)), *entries, b"\0\0\0\0", *values])


def _shorts(code: int, values: Sequence[int]) -> Tag:
    return Tag(code, _SHORT, len(values), np.asarray(values, "<u2").tobytes())


def _longs(code: int, values: Sequence[int] | NDArray[np.int64]) -> Tag:
    return Tag(code, _LONG, len(values), np.asarray(values, "<u4").tobytes())


def _text(code: int, text: str) -> Tag:
    data = text.encode() + b"\0"
    return Tag(code, _ASCII, len(data), data)


def _colors(palette: Mapping[int, tuple[int, int, int, int]]) -> list[int]:
    """All red values, then green, then blue, of 16 bits."""
    return [257 * palette.get(value, (0, 0, 0, 255))[channel] for channel in range(3) for value in range(256)]


def _items(form: Form) -> str:
    """GDAL's metadata and band descriptions, in its XML. GDAL escapes values twice, and leaves out characters that XML
    does not have.
    """
    lines = [
        f"  <Item name={quoteattr(name)}>{escape(escape(value))}</Item>\n"
        for name, value in (form.metadata or {}).items()
    ]
    lines += [
        f'  <Item name="DESCRIPTION" sample="{band}" role="description">{escape(escape(text))}</Item>\n'
        for band, text in enumerate(form.descriptions)
    ]
    return _NOT_IN_XML.sub("", f"<GDALMetadata>\n{''.join(lines)}</GDALMetadata>\n") if lines else ""
