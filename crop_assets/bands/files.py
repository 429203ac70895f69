"""Checks that a local file is the band that its name promises."""

import contextlib
import os
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj.exceptions import ProjError
from rasterio.errors import RasterioError

from crop_assets.chip_grid import RESOLUTION, grid_text, raster_geobox, same_pixels
from crop_assets.hls import HLS_SIZE, QA_BAND, hls_bounds
from resources.errors import IntegrityError
from resources.geodata import open_geotiff
from resources.tiff import DECODERS, read_layout
from resources.words import MAX_BYTES, document

_MAX_BLOCK_BYTES = 2 << 20
"""HLS v2.0 has blocks of 128 KiB; this is a block of 1024 x 1024 reflectances. A chip needs about four blocks."""


def check_band(path: Path, band: str, tile: str, every_block: bool = True) -> None:
    """Raise IntegrityError unless the file is a complete one-band raster of the band's type on the tile's HLS grid.

    Reflectance is int16, Fmask uint8 (HLS v2.0 user guide). The grid may be described differently if its pixels are in
    the same positions, to a tenth of a pixel. `every_block` decodes all blocks to find damaged bytes; if the bytes
    match a CID, it is enough that no block ends after the end of the file.
    """
    expected = "uint8" if band == QA_BAND else "int16"
    try:
        with open_geotiff(path) as raster:
            if raster.count != 1 or raster.dtypes[0] != expected:
                raise IntegrityError(
                    f"has {raster.count} band(s) of {raster.dtypes[0]}; {band} has one of {expected}"
                )
            if raster.crs is None or not (raster.crs.is_projected or raster.crs.is_geographic):
                raise IntegrityError("has no coordinate reference system that is tied to the Earth")
            _require_grid(raster, tile)
            rows, cols = raster.block_shapes[0]
            if rows * cols * np.dtype(expected).itemsize > _MAX_BLOCK_BYTES:
                raise IntegrityError(
                    f"has blocks of {cols:,} x {rows:,} pixels, far larger than those of HLS"
                )
            size = path.stat().st_size
            sound = _sound_blocks(path) if every_block else frozenset()
            for number, ((row, col), window) in enumerate(raster.block_windows(1)):
                if every_block:
                    if number not in sound:
                        raster.read(1, window=window)
                elif _block_end(raster, row, col) > size:
                    raise IntegrityError("is truncated: some of its blocks are after its end")
    except (RasterioError, ProjError) as error:
        with path.open("rb") as file:
            if found := document(file.read(MAX_BYTES)):
                raise IntegrityError(f"is {found}, not a raster") from None
        raise IntegrityError(
            f"cannot be read as a raster: {str(error).replace(str(path), path.name)}"
        ) from error


def _sound_blocks(path: Path) -> frozenset[int]:
    """The numbers of the blocks, row by row, that are absent or can be decoded in half of the time that GDAL takes."""
    sound = set()
    with contextlib.suppress(IntegrityError), path.open("rb") as file:

        def read(start: int, stop: int) -> bytes:
            return os.pread(file.fileno(), stop - start, start)

        layout = read_layout(read, path.stat().st_size)
        form, decode = layout.form, DECODERS.get(layout.form.compression)
        size = form.block_shape[0] * form.block_shape[1] * np.dtype(form.dtype).itemsize
        for number, (start, count) in enumerate(zip(layout.offsets, layout.counts, strict=True)):
            if not count:
                sound.add(number)
            elif decode and size <= _MAX_BLOCK_BYTES:
                # GDAL decides about others, such as a last strip, which is lower
                with contextlib.suppress(RuntimeError, ValueError):
                    if len(decode(read(int(start), int(start + count)), out=size)) == size:
                        sound.add(number)
    return frozenset(sound)


def _require_grid(raster: rasterio.DatasetReader, tile: str) -> None:
    epsg, left, _, _, top = hls_bounds(tile)
    affine = Affine(RESOLUTION, 0, left, 0, -RESOLUTION, top)
    found, expected = raster_geobox(raster), GeoBox((HLS_SIZE, HLS_SIZE), affine, f"EPSG:{epsg}")
    if not same_pixels(found, expected):
        raise IntegrityError(
            f"has {grid_text(found)}, not the grid of tile {tile}: {grid_text(expected)}; "
            "use the complete file of this tile"
        )


def _block_end(raster: rasterio.DatasetReader, row: int, col: int) -> int:
    """The offset of the end of a block in a GeoTIFF; 0 if the block is not stored."""
    where = (raster.get_tag_item(f"BLOCK_{what}_{col}_{row}", "TIFF", bidx=1) for what in ("OFFSET", "SIZE"))
    return sum(int(value or 0) for value in where)
