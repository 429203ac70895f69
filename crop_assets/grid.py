"""The national CDL grid and the chip grid on it.

Belongs here: where chips and rasters lie, as odc-geo GeoBoxes. Does not: what is in them.
"""

import functools

import pyproj
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.windows import Window
from shapely import Polygon

from crop_assets.layout import CHIP_ID

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
"""Whole chips in the 96,523 rows of the national CDL raster."""
GRID_COLS = 686
"""Whole chips in the 153,811 columns of the national CDL raster."""


def chip_id(row: int, col: int) -> str:
    return f"chip_{row:03d}_{col:03d}"


def chip_position(chip: str) -> tuple[int, int]:
    """Row and column of a chip on the national chip grid. Raises ValueError for anything but a chip id."""
    match = CHIP_ID.fullmatch(chip)
    if not match:
        raise ValueError(f"{chip!r} is not a chip id such as chip_257_266")
    return int(match[1]), int(match[2])


def chip_blocks(rows: range, cols: range) -> GeoBox:
    """The grid of a rectangle of whole chips."""
    transform = Affine(
        RESOLUTION,
        0,
        ORIGIN_X + cols.start * CHIP_METRES,
        0,
        -RESOLUTION,
        ORIGIN_Y - rows.start * CHIP_METRES,
    )
    return GeoBox((len(rows) * CHIP_SIZE, len(cols) * CHIP_SIZE), transform, CRS)


def chip_geobox(chip: str) -> GeoBox:
    """The 224 x 224 grid of one chip."""
    row, col = chip_position(chip)
    return chip_blocks(range(row, row + 1), range(col, col + 1))


def chip_outline(chip: str) -> Polygon:
    """The outline of a chip in degrees (EPSG:4326, longitude first) by its four corners; its edges bow by under 2 m."""
    left, bottom, right, top = chip_geobox(chip).boundingbox.bbox
    lon, lat = _to_degrees().transform([left, right, right, left], [top, top, bottom, bottom])
    return Polygon(zip(lon, lat, strict=True))


@functools.cache
def _to_degrees() -> pyproj.Transformer:
    return pyproj.Transformer.from_crs(CRS, "EPSG:4326", always_xy=True)


def chip_cover(left: float, bottom: float, right: float, top: float) -> tuple[range, range]:
    """Rows and columns of the chips that cover an area given in EPSG:5070 metres."""
    rows = range(int((ORIGIN_Y - top) // CHIP_METRES), int(-((bottom - ORIGIN_Y) // CHIP_METRES)))
    cols = range(int((left - ORIGIN_X) // CHIP_METRES), int(-((ORIGIN_X - right) // CHIP_METRES)))
    return rows, cols


def positions_in(grid: GeoBox) -> list[tuple[int, int]]:
    """Row and column of each chip of a rectangle of whole chips, row by row."""
    first = chip_window(grid.affine, 0, 0)
    row, col = -first.row_off // CHIP_SIZE, -first.col_off // CHIP_SIZE
    rows, cols = (size // CHIP_SIZE for size in grid.shape)
    return [(row + r, col + c) for r in range(rows) for c in range(cols)]


def chip_window(transform: Affine, row: int, col: int) -> Window:
    """Where the chip of a row and column lies in a raster on the CDL grid, in pixels."""
    left, top = round((transform.c - ORIGIN_X) / RESOLUTION), round((ORIGIN_Y - transform.f) / RESOLUTION)
    return Window(col * CHIP_SIZE - left, row * CHIP_SIZE - top, CHIP_SIZE, CHIP_SIZE)
