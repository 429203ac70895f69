"""Making sure of a raster that was just written.

Belongs here: what GDAL leaves unsaid. Does not: what is in a raster.
"""

import errno
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

_OFFSETS, _SIZES = {273, 324}, {279, 325}
"""TIFF 6.0: the tags that say where strips or tiles lie, and how many bytes they have."""
_KINDS: dict[int, np.dtype[Any]] = {3: np.dtype("<u2"), 4: np.dtype("<u4")}


def require_whole(path: Path, blocks: int) -> None:
    """Raise OSError unless a closed GeoTIFF holds so many blocks, over all bands, and all of them lie within the file.

    GDAL writes most of a small file when it closes it, and rasterio says nothing of what fails then, as on a full
    disk (measured with rasterio 1.4.4). The TIFF directory is read here, for to open each file once more takes GDAL
    a tenth of all the time that a tile needs. Little-endian classic TIFF alone, as GDAL writes below 4 GB.
    """
    with path.open("rb") as file:
        try:
            offsets, sizes = _block_places(file)
            stored = offsets > 0
            whole = stored.sum() == blocks and (offsets + sizes)[stored].max(initial=0) <= path.stat().st_size
        except (struct.error, KeyError, ValueError, StopIteration):
            whole = False
    if not whole:
        raise OSError(errno.ENOSPC, "the file was not written whole; see that the disk has room", path.name)


def _block_places(file: BinaryIO) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Offsets and sizes of the blocks by the first directory of a TIFF; 0 for a block that is not stored."""
    mark, directory = struct.unpack("<4sI", file.read(8))
    if mark != b"II*\0":
        raise ValueError(f"{mark!r} begins no little-endian TIFF")
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
