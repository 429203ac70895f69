"""The national chip grid: chip ids, and the grids of chips and rasters on the CDL's pixels, as odc-geo GeoBoxes."""

import functools
import re

import numpy as np
import pyproj
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from odc.geo.gridspec import GridSpec
from odc.geo.types import XY, resxy_, xy_
from pyproj.exceptions import ProjError
from rasterio.windows import Window
from shapely import Polygon

from crop_assets.errors import InputError

CRS = "EPSG:5070"
RESOLUTION = 30
"""Metres per pixel of the CDL."""
ORIGIN_X, ORIGIN_Y = -2356095, 3172605
"""Upper-left corner of the national CDL raster in EPSG:5070, metres."""
CHIP_SIZE = 224
"""Pixels on each side of a chip."""
CHIP_METRES = CHIP_SIZE * RESOLUTION
"""Side of a chip in EPSG:5070."""
GRID_ROWS = 430
"""Complete chips in the 96,523 rows of the national CDL raster."""
GRID_COLS = 686
"""Complete chips in the 153,811 columns of the national CDL raster."""
TOLERANCE = 0.1
"""Two grids are the same if they differ by at most this many pixels; that allows for NAD 83 instead of WGS 84."""
MAX_TILES = 2000
"""Limit on the HLS tiles of a dataset; the chip grid touches 1,572 tiles of the official grid."""

# one spelling per chip: with 0257, chip 257 would have two file names
CHIP_ID = r"chip_([0-9]{3}|[1-9][0-9]{3})_([0-9]{3}|[1-9][0-9]{3})"
"""Regular expression of a chip id such as chip_257_266: row and column of the national chip grid."""
_CHIP_ID = re.compile(CHIP_ID)


def chip_id(row: int, col: int) -> str:
    return f"chip_{row:03d}_{col:03d}"


def is_chip_id(name: str) -> bool:
    return _CHIP_ID.fullmatch(name) is not None


def chip_position(chip: str) -> tuple[int, int]:
    """Row and column of a chip on the national chip grid. Raises InputError if the chip id is invalid."""
    match = _CHIP_ID.fullmatch(chip)
    if not match:
        raise InputError(f"{chip[:100]!r} is not a chip id such as chip_257_266")
    return int(match[1]), int(match[2])


@functools.cache
def _chip_grid() -> GridSpec:
    """The grid by (column, row). Created on first use, because it needs PROJ's database."""
    lower_left: XY[float] = xy_(ORIGIN_X, ORIGIN_Y - CHIP_METRES)
    return GridSpec(CRS, (CHIP_SIZE, CHIP_SIZE), resxy_(RESOLUTION, -RESOLUTION), lower_left, flipy=True)


def chip_blocks(rows: range, cols: range) -> GeoBox:
    """The grid of a rectangle of complete chips."""
    return _chip_grid()[cols.start, rows.start].crop((len(rows) * CHIP_SIZE, len(cols) * CHIP_SIZE))


def chip_geobox(chip: str) -> GeoBox:
    """The 224 x 224 grid of one chip."""
    row, col = chip_position(chip)
    return _chip_grid()[col, row]


def chip_outline(chip: str) -> Polygon:
    """The outline of a chip in degrees (EPSG:4326, longitude first) by its four corners, which is accurate to 2 m."""
    left, bottom, right, top = chip_geobox(chip).boundingbox.bbox
    lon, lat = transformer(CRS, "EPSG:4326").transform([left, right, right, left], [top, top, bottom, bottom])
    return Polygon(zip(lon, lat, strict=True))


def chip_cover(left: float, bottom: float, right: float, top: float) -> tuple[range, range]:
    """Rows and columns of the chips that cover an area given in EPSG:5070 metres."""
    rows = range(int((ORIGIN_Y - top) // CHIP_METRES), int(-((bottom - ORIGIN_Y) // CHIP_METRES)))
    cols = range(int((left - ORIGIN_X) // CHIP_METRES), int(-((ORIGIN_X - right) // CHIP_METRES)))
    return rows, cols


def positions_in(grid: GeoBox) -> list[tuple[int, int]]:
    """Row and column of each chip in a rectangle of complete chips, row by row."""
    first = chip_window(grid.affine, 0, 0)
    row, col = -first.row_off // CHIP_SIZE, -first.col_off // CHIP_SIZE
    rows, cols = (size // CHIP_SIZE for size in grid.shape)
    return [(row + r, col + c) for r in range(rows) for c in range(cols)]


def chip_window(transform: Affine, row: int, col: int) -> Window:
    """The window of the chip at a row and column in a raster on the CDL grid, in pixels."""
    left, top = round((transform.c - ORIGIN_X) / RESOLUTION), round((ORIGIN_Y - transform.f) / RESOLUTION)
    return Window(col * CHIP_SIZE - left, row * CHIP_SIZE - top, CHIP_SIZE, CHIP_SIZE)


def raster_geobox(raster: rasterio.DatasetReader) -> GeoBox:
    """The grid of an open raster that has a CRS."""
    return GeoBox(raster.shape, raster.transform, raster.crs.to_wkt())


def same_pixels(grid: GeoBox, expected: GeoBox) -> bool:
    """Whether two grids have the same shape, and the same pixel positions to within `TOLERANCE` pixels.

    How the CRS is written does not matter, nor does rounding. False if one CRS cannot be transformed to the other.
    """
    if grid == expected:
        return True
    if grid.shape != expected.shape:
        return False
    height, width = grid.shape
    # corners, middles of the edges, and the centre
    at = np.array(np.meshgrid(np.linspace(0, width, 3), np.linspace(0, height, 3)))
    try:
        x, y = transformer(wkt(grid), wkt(expected)).transform(*(grid.affine @ tuple(at)))
    except ProjError:
        return False
    # coordinates that cannot be transformed are infinite, and fail the comparison
    with np.errstate(invalid="ignore"):
        apart = np.abs(~expected.affine @ (x, y) - at)
    return bool((apart <= TOLERANCE).all())


def grid_text(grid: GeoBox) -> str:
    """A description of a grid for messages."""
    (height, width), affine, crs = grid.shape, grid.affine, grid.crs
    assert crs is not None
    pixels = f"{height} x {width} pixels of {affine.a:.12g} x {-affine.e:.12g}"
    return f"{pixels} from ({affine.c:.12g}, {affine.f:.12g}) in {crs_text(crs.proj)}"


def crs_text(crs: pyproj.CRS) -> str:
    """A description of a CRS for messages: its EPSG code, or its name if it has none."""
    return f"EPSG:{code}" if (code := crs.to_epsg()) else f"the CRS {crs.name!r}"


@functools.lru_cache(maxsize=64)
def transformer(from_crs: str, to_crs: str) -> pyproj.Transformer:
    """The transformer from one CRS to another, with x or longitude first in both."""
    return pyproj.Transformer.from_crs(from_crs, to_crs, always_xy=True)


def wkt(box: GeoBox) -> str:
    assert box.crs is not None
    return str(box.crs.to_wkt())
