"""Exact resampling of a scene's bands onto the CDL grid, chip block by chip block.

The source coordinate of every target pixel is computed exactly with pyproj, so a pixel has the same value
whatever window it is computed in; GDAL's default warp approximates coordinates per chunk. All
bands of a scene share one grid, so the coordinates of a chip are computed once for all of them.

Belongs here: coordinates, interpolation, and the sparse rasters of a tile. Does not: what chips are
made of (`clip`), quality (`quality`).
"""

import contextlib
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyproj
import rasterio
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio.enums import ColorInterp
from rasterio.errors import RasterioError
from rasterio.warp import transform_bounds
from rasterio.windows import Window

from crop_assets.errors import InputError
from crop_assets.grid import CHIP_SIZE, CRS, chip_blocks, chip_cover, chip_geobox, chip_position
from crop_assets.recipe import QA_BAND

NODATA = -9999
"""Fill of reflectance in HLS v2.0 (HLS user guide), and of every raster made here."""
QA_NODATA = 255
"""Fill of Fmask."""


@dataclass(frozen=True)
class SourcePixels:
    """Where the pixels of a target grid (h x w) lie in a source raster, computed once for all of its bands.

    `window` is the part of the source to read. `neighbours` are the four source pixels around each target pixel,
    as indices into the flattened window, intp (4, h, w), and `weights` their bilinear weights, float64
    (4, h, w), 0 for a neighbour beyond the source. `nearest` is the index of the nearest source pixel,
    intp (h, w), and `inside` whether it lies in the source.
    """

    window: Window
    neighbours: NDArray[np.intp]
    weights: NDArray[np.float64]
    nearest: NDArray[np.intp]
    inside: NDArray[np.bool_]


@functools.lru_cache(maxsize=64)
def _transformer(target_crs: str, source_crs: str) -> pyproj.Transformer:
    return pyproj.Transformer.from_crs(target_crs, source_crs, always_xy=True)


def source_coordinates(target: GeoBox, source: GeoBox) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rows and columns in `source` of the pixel centres of `target`, float64 (h, w), by pyproj.

    0.0 is the centre of the first pixel.
    """
    height, width = target.shape
    cols, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    x, y = _transformer(_wkt(target), _wkt(source)).transform(*(target.affine @ (cols, rows)))
    source_cols, source_rows = ~source.affine @ (x, y)
    return source_rows - 0.5, source_cols - 0.5


def source_pixels(target: GeoBox, source: GeoBox) -> SourcePixels | None:
    """Where each pixel centre of `target` lies in `source`; None where none is inside of it."""
    rows, cols = source_coordinates(target, source)
    row, down, top, window_height = _along(rows, source.shape[0])
    col, across, left, window_width = _along(cols, source.shape[1])
    if window_height <= 0 or window_width <= 0:
        return None
    neighbours, weights = [], []
    for step_down, row_weight in ((0, 1 - down), (1, down)):
        for step_across, col_weight in ((0, 1 - across), (1, across)):
            at, within = _index(row + step_down, col + step_across, window_height, window_width)
            neighbours.append(at)
            weights.append(np.where(within, row_weight * col_weight, 0.0))
    nearest_at, inside = _index(row + (down >= 0.5), col + (across >= 0.5), window_height, window_width)
    window = Window(left, top, window_width, window_height)
    return SourcePixels(window, np.stack(neighbours), np.stack(weights), nearest_at, inside)


def _wkt(box: GeoBox) -> str:
    assert box.crs is not None
    return str(box.crs.to_wkt())


def _along(
    coordinates: NDArray[np.float64], size: int
) -> tuple[NDArray[np.intp], NDArray[np.float64], int, int]:
    """On one axis: the pixel before each coordinate, counted from the window's start, the share of the way to the
    next, and the window's start and size (not above 0 where no coordinate is near the source).
    """
    whole = np.isfinite(coordinates).all()
    start = max(0, int(np.floor(coordinates.min()))) if whole else 0
    stop = min(size, int(np.floor(coordinates.max())) + 2) if whole else 0
    before = np.floor(coordinates) if whole else np.zeros_like(coordinates)
    return before.astype(np.intp) - start, coordinates - before, start, stop - start


def _index(
    row: NDArray[np.intp], col: NDArray[np.intp], height: int, width: int
) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Flat index of pixels in a window, 0 for those beyond it, and which are within."""
    within = (row >= 0) & (row < height) & (col >= 0) & (col < width)
    return np.where(within, row * width + col, 0), within


def bilinear(
    values: NDArray[np.int16], at: SourcePixels, fill: float, nodata: int = NODATA
) -> NDArray[np.int16]:
    """Bilinear interpolation of a source window at exact coordinates, rounded half up.

    A target pixel is data if its nearest source pixel is; it is then the mean of those of its four
    neighbours that are data, by their bilinear weights, so that fill never bleeds into data. Where all
    four are data that is plain bilinear interpolation. Elsewhere the result is `nodata`.
    """
    flat = values.ravel()
    around = flat.take(at.neighbours)
    weights = np.where(around == fill, 0.0, at.weights)
    weight = weights.sum(axis=0)
    is_data = at.inside & (flat.take(at.nearest) != fill)
    mean = (weights * around).sum(axis=0) / np.where(is_data, weight, 1.0)
    return np.where(is_data, np.floor(mean + 0.5), nodata).astype(np.int16)


def nearest(values: NDArray[np.uint8], at: SourcePixels, nodata: int = QA_NODATA) -> NDArray[np.uint8]:
    """The nearest source pixel; `nodata` outside of the source."""
    return np.where(at.inside, values.ravel().take(at.nearest), nodata).astype(np.uint8)


def tile_geobox(source: GeoBox, chips: Sequence[str]) -> GeoBox:
    """The grid of a tile's reprojected rasters: whole chips that cover the scene and all of `chips`."""
    rows, cols = chip_cover(*transform_bounds(_wkt(source), CRS, *source.boundingbox.bbox, densify_pts=51))
    at = [chip_position(chip) for chip in chips]
    all_rows, all_cols = [rows.start, rows.stop - 1], [cols.start, cols.stop - 1]
    all_rows += [row for row, _ in at]
    all_cols += [col for _, col in at]
    return chip_blocks(range(min(all_rows), max(all_rows) + 1), range(min(all_cols), max(all_cols) + 1))


def chip_window(grid: GeoBox, chip: str) -> Window:
    """The block of a chip in a raster on the CDL grid."""
    offset = ~grid.affine @ (chip_geobox(chip).affine @ (0, 0))
    return Window(round(offset[0]), round(offset[1]), CHIP_SIZE, CHIP_SIZE)


def raster_geobox(raster: rasterio.DatasetReader) -> GeoBox:
    return GeoBox(raster.shape, raster.transform, raster.crs.to_wkt())


def fill_value(raster: rasterio.DatasetReader, band: str, version: str) -> float:
    """The file's own nodata tag, else the fill of its HLS version (-1000 before v2.0, then -9999; Fmask 255)."""
    if raster.nodata is not None:
        return float(raster.nodata)
    if band == QA_BAND:
        return QA_NODATA
    return NODATA if version >= "2" else -1000


@dataclass(frozen=True)
class BandWarp:
    """One band to reproject: its local source file, local destination, band name, and HLS version."""

    source: Path
    destination: Path
    band: str
    version: str


def reproject_bands(bands: Sequence[BandWarp], chips: Sequence[str], tags: Mapping[str, str]) -> GeoBox:
    """Reproject the bands of one tile to the CDL grid, the blocks under `chips` alone.

    Each destination is a sparse deflated GeoTIFF in EPSG:5070 whose 224 x 224 blocks are the chips:
    int16 with nodata -9999, Fmask uint8 with nodata 255. Blocks that were not computed read as nodata.
    Returns the grid. Raises InputError that names the file where a band cannot be read.
    """
    with contextlib.ExitStack() as stack:
        sources = [stack.enter_context(_open(band.source)) for band in bands]
        boxes = [raster_geobox(raster) for raster in sources]
        grid = tile_geobox(boxes[0], chips)
        targets = [stack.enter_context(_create(band, grid, tags)) for band in bands]
        for chip in sorted(chips):
            at = {box: source_pixels(chip_geobox(chip), box) for box in dict.fromkeys(boxes)}
            for band, source, box, target in zip(bands, sources, boxes, targets, strict=True):
                # a block that the scene does not reach stays unwritten, and so reads as nodata
                if (pixels := at[box]) is not None:
                    target.write(_warp(band, source, pixels), 1, window=chip_window(grid, chip))
    return grid


def _warp(band: BandWarp, source: rasterio.DatasetReader, at: SourcePixels) -> NDArray[np.generic]:
    is_qa = band.band == QA_BAND
    try:
        values = source.read(1, window=at.window)
    except RasterioError as error:
        raise InputError(
            f"{band.source.name} cannot be read ({error}); delete it and materialize downloaded_bands again"
        ) from error
    if is_qa:
        return nearest(values, at)
    return bilinear(values, at, fill_value(source, band.band, band.version))


def _open(path: Path) -> rasterio.DatasetReader:
    try:
        raster = rasterio.open(path)
    except RasterioError as error:
        raise InputError(
            f"{path.name} cannot be opened ({error}); delete it and materialize downloaded_bands again"
        ) from error
    if raster.crs is None:
        raster.close()
        raise InputError(f"{path.name} has no coordinate reference system")
    return raster


def _create(band: BandWarp, grid: GeoBox, tags: Mapping[str, str]) -> rasterio.io.DatasetWriter:
    is_qa = band.band == QA_BAND
    target = rasterio.open(
        band.destination,
        "w",
        driver="GTiff",
        dtype="uint8" if is_qa else "int16",
        nodata=QA_NODATA if is_qa else NODATA,
        count=1,
        height=grid.shape[0],
        width=grid.shape[1],
        crs=CRS,
        transform=grid.affine,
        tiled=True,
        blockxsize=CHIP_SIZE,
        blockysize=CHIP_SIZE,
        compress="deflate",
        predictor=1 if is_qa else 2,
        sparse_ok=True,
    )
    target.update_tags(**tags)
    target.set_band_description(1, band.band)
    target.colorinterp = [ColorInterp.gray]
    return target
