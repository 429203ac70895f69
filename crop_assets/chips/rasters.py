"""Reads windows of one-band GeoTIFFs, and encodes the blocks of the files that are written.

Both work on compressed blocks, without GDAL, which takes about twice as long to decode a block and four times as long
to write a file of a few.
"""

import contextlib
import functools
import os
import re
import tempfile
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import imagecodecs
import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio.errors import RasterioIOError
from rasterio.windows import Window

from crop_assets.chip_grid import CHIP_SIZE, CRS, RESOLUTION, raster_geobox
from resources.errors import IntegrityError
from resources.geodata import create_raster, open_geotiff
from resources.tiff import DECODERS, ZSTD, Form, Layout, Tag, georeference, read_layout

_NUMBER = re.compile(r"-?\d{1,9}(\.0*)?")
_MAX_DECODED_BYTES = 4 << 20
"""Of the blocks that a raster keeps decoded: 32 of HLS, which are the two rows of blocks under a row of chips."""


@dataclass(frozen=True)
class Block:
    """The pixels of a chip in one band (224 x 224), and the same as `encode` returns them, if at hand."""

    pixels: NDArray[Any]
    encoded: bytes | None


class BlockReader:
    """A local GeoTIFF of one band, open for reading. For one thread at a time; `close` it.

    Files in another layout or compression than those of HLS and of this project are read by GDAL, with the same result.
    `grids` remembers the grids of files that GDAL has opened by their georeference, which it reads for other files
    with the same only once. Raises RasterioError if the file cannot be opened.
    """

    def __init__(self, path: Path, grids: dict[Hashable, GeoBox | None]) -> None:
        # it loads pandas
        from crop_assets.bands.blocks import fetched_blocks

        self.name = path.name
        self.nodata: float | None
        self.grid: GeoBox | None
        self.block_shape = (0, 0)
        self.fetched: frozenset[int] | None = None
        """The numbers of the blocks that a partial file has."""
        self._raster: rasterio.DatasetReader | None = None
        self._decoded: dict[int, NDArray[Any]] = {}
        self._layout: Layout | None = None
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError, IntegrityError, ValueError):
                self._file = stack.enter_context(path.open("rb", buffering=0))
                layout = read_layout(self._at, path.stat().st_size)
                self.block_shape, self.fetched = layout.form.block_shape, fetched_blocks(layout.text)
                if layout.form.compression in DECODERS:
                    self.nodata, self._layout = _nodata(layout.form), layout
            if self._layout is None:
                self._raster = stack.enter_context(contextlib.closing(open_geotiff(path)))
                self.nodata, self.grid = self._raster.nodata, _grid(self._raster)
            else:
                key = self._layout.form.shape, self._layout.form.georeference
                if key not in grids:
                    with open_geotiff(path) as raster:
                        grids[key] = _grid(raster)
                self.grid = grids[key]
            self._open = stack.pop_all()

    def close(self) -> None:
        self._open.close()
        self._decoded.clear()

    def read(self, window: Window) -> NDArray[Any]:
        """The pixels of a window inside the raster. Blocks that are not stored are nodata, or else 0.

        Raises RasterioError if a block cannot be decoded.
        """
        if self._layout is None:
            assert self._raster
            pixels: NDArray[Any] = self._raster.read(1, window=window)
            return pixels
        form = self._layout.form
        height, width = form.block_shape
        top, left = window.row_off, window.col_off
        bottom, right = top + window.height, left + window.width
        pixels = np.empty((window.height, window.width), form.dtype)
        for row in range(top // height, -(-bottom // height)):
            for col in range(left // width, -(-right // width)):
                start_row, start_col = max(top, row * height), max(left, col * width)
                stop_row, stop_col = min(bottom, (row + 1) * height), min(right, (col + 1) * width)
                pixels[start_row - top : stop_row - top, start_col - left : stop_col - left] = self._block(
                    self._layout, row, col
                )[
                    start_row - row * height : stop_row - row * height,
                    start_col - col * width : stop_col - col * width,
                ]
        return pixels

    def read_block(self, window: Window) -> Block:
        """The chip in a window inside the raster. Raises RasterioError if it cannot be decoded."""
        encoded = None
        if self._layout is not None:
            form = self._layout.form
            row, col = window.row_off // CHIP_SIZE, window.col_off // CHIP_SIZE
            if (
                (form.block_shape, form.compression) == ((CHIP_SIZE, CHIP_SIZE), ZSTD)
                and form.predictor == _predictor(form.dtype)
                and (row * CHIP_SIZE, col * CHIP_SIZE) == (window.row_off, window.col_off)
            ):
                encoded = self._stored(self._layout, row * form.blocks_across + col) or None
        return Block(self.read(window), encoded)

    def _at(self, start: int, stop: int) -> bytes:
        return os.pread(self._file.fileno(), stop - start, start)

    def _stored(self, layout: Layout, index: int) -> bytes:
        """The bytes of a block; none if it is not stored."""
        offset, count = int(layout.offsets[index]), int(layout.counts[index])
        return self._at(offset, offset + count) if count else b""

    def _block(self, layout: Layout, row: int, col: int) -> NDArray[Any]:
        form = layout.form
        index = row * form.blocks_across + col
        if index in self._decoded:
            return self._decoded[index]
        height, width = form.block_shape
        if not form.tiled:
            height = min(height, form.shape[0] - row * height)
        try:
            pixels = self._decode(form, self._stored(layout, index), height, width)
        except (OSError, RuntimeError, ValueError) as error:
            raise RasterioIOError(f"its block in row {row} and column {col} is damaged: {error}") from None
        while self._decoded and (len(self._decoded) + 1) * pixels.nbytes > _MAX_DECODED_BYTES:
            del self._decoded[next(iter(self._decoded))]
        self._decoded[index] = pixels
        return pixels

    def _decode(self, form: Form, data: bytes, height: int, width: int) -> NDArray[Any]:
        if not data:
            return np.full((height, width), self.nodata or 0, form.dtype)
        size = height * width * np.dtype(form.dtype).itemsize
        decoded = DECODERS[form.compression](data, out=size)
        if len(decoded) != size:
            raise ValueError(f"it has {len(decoded):,} of {size:,} bytes")
        pixels: NDArray[Any] = np.frombuffer(decoded, form.dtype).reshape(height, width)
        return imagecodecs.delta_decode(pixels, axis=-1) if form.predictor == 2 else pixels


def _grid(raster: rasterio.DatasetReader) -> GeoBox | None:
    return raster_geobox(raster) if raster.crs else None


def _nodata(form: Form) -> float | None:
    """The nodata value of a file, None if it has none. Raises ValueError for one that GDAL may read in another way."""
    if not form.nodata:
        return None
    limits = np.iinfo(form.dtype)
    if not _NUMBER.fullmatch(form.nodata) or not limits.min <= float(form.nodata) <= limits.max:
        raise ValueError(f"{form.nodata} is no {form.dtype}")
    return float(form.nodata)


def _predictor(dtype: str) -> int:
    return 1 if dtype == "uint8" else 2


def encode(pixels: NDArray[Any]) -> bytes:
    """A block of a file of `written_form`."""
    # an intermediate result: Zstandard takes a fifth of the time of deflate, at the same size, and a higher level does
    # not make reflectance smaller (measured on HLS bands)
    differences = imagecodecs.delta_encode(pixels, axis=-1) if _predictor(pixels.dtype.name) == 2 else pixels
    # it takes an array too
    return bytes(imagecodecs.zstd_encode(cast("bytes", differences), level=1))


@functools.lru_cache(maxsize=8)
def encode_empty(dtype: str, nodata: int) -> bytes:
    """The block of a chip that is nodata."""
    return encode(np.full((CHIP_SIZE, CHIP_SIZE), nodata, dtype))


def written_form(
    shape: tuple[int, int],
    corner: tuple[float, float],
    dtype: str,
    nodata: int | None,
    tags: Mapping[str, str],
    descriptions: tuple[str, ...],
    **other: Any,
) -> Form:
    """The form of a file in EPSG:5070 with blocks of 224 x 224 pixels, from its upper left corner; `other` are fields
    of a `Form`.
    """
    return Form(
        shape,
        (CHIP_SIZE, CHIP_SIZE),
        dtype,
        **({"compression": ZSTD, "predictor": _predictor(dtype)} | other),
        count=len(descriptions),
        nodata="" if nodata is None else str(nodata),
        georeference=georeference(_crs_tags(), *corner, RESOLUTION),
        metadata=tags,
        descriptions=descriptions,
    )


@functools.cache
def _crs_tags() -> tuple[Tag, ...]:
    """The tags by which GDAL describes EPSG:5070."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "crs.tif"
        affine = Affine.scale(RESOLUTION, -RESOLUTION)
        create_raster(path, width=1, height=1, count=1, dtype="uint8", crs=CRS, transform=affine).close()
        data = path.read_bytes()
    return read_layout(lambda start, stop: data[start:stop], len(data)).form.georeference
