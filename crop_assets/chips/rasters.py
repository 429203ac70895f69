"""Checks that a raster was written completely, which GDAL does not report."""

import errno
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

_OFFSETS, _SIZES = {273, 324}, {279, 325}
"""TIFF 6.0: the tags with the offsets and the byte counts of strips or tiles."""
_KINDS: dict[int, np.dtype[Any]] = {3: np.dtype("<u2"), 4: np.dtype("<u4")}


def require_complete(path: Path, blocks: int) -> None:
    """Raise OSError unless a closed GeoTIFF has this number of blocks over all bands, and all are inside the file.

    GDAL writes most of a small file when it closes it, and rasterio does not report if that fails, as on a full disk
    (measured with rasterio 1.4.4). This reads the TIFF directory itself, because opening each file again would take
    GDAL a tenth of the total time of a tile. Supports little-endian classic TIFF only, as GDAL writes below 4 GB.
    """
    with path.open("rb") as file:
        try:
            offsets, sizes = _block_ranges(file)
            stored = offsets > 0
            complete = (
                stored.sum() == blocks and (offsets + sizes)[stored].max(initial=0) <= path.stat().st_size
            )
        except (struct.error, KeyError, ValueError, StopIteration):
            complete = False
    if not complete:
        raise OSError(
            errno.ENOSPC, "the file was not written completely; check that the disk is not full", path.name
        )


def _block_ranges(file: BinaryIO) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Offsets and sizes of the blocks in the first directory of a TIFF; 0 for a block that is not stored."""
    mark, directory = struct.unpack("<4sI", file.read(8))
    if mark != b"II*\0":
        raise ValueError(f"{mark!r} is not the start of a little-endian TIFF")
    file.seek(directory)
    (count,) = struct.unpack("<H", file.read(2))
    entries = list(struct.iter_unpack("<HHI4s", file.read(12 * count)))
    return _values(file, entries, _OFFSETS), _values(file, entries, _SIZES)


def _values(file: BinaryIO, entries: list[tuple[int, int, int, bytes]], tags: set[int]) -> NDArray[np.int64]:
    _, kind, count, value = next(entry for entry in entries if entry[0] in tags)
    data = value
    if count * _KINDS[kind].itemsize > len(value):
        file.seek(int.from_bytes(value, "little"))
        data = file.read(count * _KINDS[kind].itemsize)
    values: NDArray[np.int64] = np.frombuffer(data, _KINDS[kind], count).astype(np.int64)
    return values
