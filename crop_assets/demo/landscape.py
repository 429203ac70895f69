"""A synthetic Cropland Data Layer of south-central Kansas, generated from a seed."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from crop_assets.chip_grid import CHIP_SIZE, CRS, RESOLUTION, chip_blocks
from crop_assets.crs import require_proj
from resources.geodata import create_raster

FIRST_ROW, FIRST_COL = 230, 307
"""Position of the landscape on the chip grid: 50 chips on both sides of the line between tiles 14SMG and 14SNG."""

_SECTION = 1609.344 / RESOLUTION
"""Side of a survey section, one mile, in pixels."""

_TILT = np.deg2rad(1.87)
"""Meridian convergence of EPSG:5070 at 99.1 W: section lines run along meridians, not grid columns."""

# CDL codes by name, after the legend that NASS publishes with the CDL.
_CORN, _COTTON, _SORGHUM, _SOYBEANS, _SUNFLOWER = 1, 2, 4, 5, 6
_WHEAT, _DOUBLE_CROP, _OATS, _ALFALFA, _HAY, _FALLOW = 24, 26, 28, 36, 37, 61
_WATER, _OPEN_SPACE, _LOW, _MEDIUM, _HIGH, _BARREN = 111, 121, 122, 123, 124, 131
_DECIDUOUS, _SHRUB, _GRASS, _WOODY_WETLAND, _WETLAND, _TRITICALE = 141, 152, 176, 190, 195, 205

_PALETTE = {
    _CORN: (255, 211, 0),
    _COTTON: (255, 37, 37),
    _SORGHUM: (255, 158, 9),
    _SOYBEANS: (37, 111, 0),
    _SUNFLOWER: (255, 255, 0),
    _WHEAT: (166, 111, 0),
    _DOUBLE_CROP: (111, 111, 0),
    _OATS: (160, 88, 137),
    _ALFALFA: (255, 166, 226),
    _HAY: (166, 241, 139),
    _FALLOW: (190, 190, 120),
    _WATER: (73, 111, 162),
    _OPEN_SPACE: (153, 153, 153),
    _LOW: (153, 153, 153),
    _MEDIUM: (153, 153, 153),
    _HIGH: (153, 153, 153),
    _BARREN: (204, 190, 162),
    _DECIDUOUS: (147, 204, 147),
    _SHRUB: (198, 213, 158),
    _GRASS: (232, 255, 190),
    _WOODY_WETLAND: (124, 175, 175),
    _WETLAND: (124, 175, 175),
    _TRITICALE: (213, 158, 188),
}

_DRYLAND = {
    _WHEAT: 0.36,
    _SORGHUM: 0.17,
    _COTTON: 0.1,
    _SOYBEANS: 0.08,
    _FALLOW: 0.09,
    _HAY: 0.05,
    _DOUBLE_CROP: 0.05,
    _CORN: 0.03,
    _ALFALFA: 0.03,
    _TRITICALE: 0.02,
    _OATS: 0.01,
    _SUNFLOWER: 0.01,
}
_IRRIGATED = {_CORN: 0.42, _SOYBEANS: 0.25, _ALFALFA: 0.13, _COTTON: 0.08, _WHEAT: 0.12}
_PIVOT_CORNERS = {_GRASS: 0.5, _SORGHUM: 0.2, _FALLOW: 0.3}

_TOWN_RINGS = ((1.0, _OPEN_SPACE, 0.6), (0.95, _LOW, 0.75), (0.5, _MEDIUM, 0.6), (0.25, _HIGH, 0.5))
"""Distance from a town's centre in multiples of its radius, the code, and the share of pixels within with this code."""

Codes = npt.NDArray[np.uint8]
Reals = npt.NDArray[np.float64]


def draw_landscape(chips_high: int = 5, chips_wide: int = 10, seed: int = 2022) -> Codes:
    """CDL codes of a landscape of complete 224 px chips, uint8, (224 * chips_high, 224 * chips_wide).

    If it has at least 2 x 5 chips, one chip is open range and one is a lake, both with few classes, and the upper right
    corner is outside the release's area and has code 0, the CDL's no-data.
    """
    rng = np.random.default_rng(seed)
    shape = (CHIP_SIZE * chips_high, CHIP_SIZE * chips_wide)
    codes = _farmland(rng, shape)
    _cover_with_range(rng, codes)
    if chips_high >= 2 and chips_wide >= 5:
        _cover_disc(rng, codes, CHIP_SIZE * (chips_high - 0.5), CHIP_SIZE * 2.5)
    _carve_waters(rng, codes)
    _build_roads(rng, codes)
    _build_towns(rng, codes)
    _misclassify(rng, codes)
    if chips_high >= 2 and chips_wide >= 5:
        _flood(rng, codes, CHIP_SIZE * 1.5, CHIP_SIZE * (chips_wide - 2.5))
        rows, cols = np.ogrid[: shape[0], : shape[1]]
        codes[rows + 0.6 * (shape[1] - cols) < 130] = 0
    return codes


def write_landscape(path: Path, codes: Codes, first_row: int = FIRST_ROW, first_col: int = FIRST_COL) -> None:
    """Write CDL codes in the format of a release: EPSG:5070, 30 m, uint8, 256-entry palette, no nodata value.

    The raster's upper-left corner is that of chip `first_row`, `first_col` on the national chip grid.
    """
    require_proj()
    profile: dict[str, Any] = {
        "driver": "GTiff",
        "dtype": "uint8",
        "count": 1,
        "height": codes.shape[0],
        "width": codes.shape[1],
        "crs": CRS,
        "transform": chip_blocks(range(first_row, first_row + 1), range(first_col, first_col + 1)).transform,
        "tiled": True,
        "blockxsize": 256,
        "blockysize": 256,
        "compress": "deflate",
        "photometric": "palette",
    }
    with create_raster(path, **profile) as raster:
        raster.write(codes, 1)
        raster.write_colormap(1, {code: (*_PALETTE.get(code, (0, 0, 0)), 255) for code in range(256)})


def smooth_surface(rng: np.random.Generator, shape: tuple[int, ...], size: float) -> Reals:
    """A random surface with mean 0, standard deviation 1 and features about `size` pixels across."""
    coarse = max(1, int(size // 4))
    small = tuple(-(-n // coarse) + 1 for n in shape)
    surface = ndimage.gaussian_filter(rng.standard_normal(small), size / coarse / 2, mode="wrap")
    surface = (surface - surface.mean()) / surface.std()
    at = np.meshgrid(*(np.arange(n) / coarse for n in shape), indexing="ij")
    return np.asarray(ndimage.map_coordinates(surface, at, order=1), dtype=np.float64)


def _choose(rng: np.random.Generator, shape: tuple[int, ...], weights: dict[int, float]) -> Codes:
    chances = np.array(list(weights.values()))
    return rng.choice(np.array(list(weights), dtype=np.uint8), size=shape, p=chances / chances.sum())


def _sections(shape: tuple[int, int]) -> tuple[Reals, Reals]:
    """Survey coordinates of each pixel in sections, counted east and south from a corner outside."""
    rows, cols = np.meshgrid(np.arange(shape[0]), np.arange(shape[1]), indexing="ij")
    east = (cols * np.cos(_TILT) + rows * np.sin(_TILT)) / _SECTION + 0.3
    south = (rows * np.cos(_TILT) - cols * np.sin(_TILT)) / _SECTION + 2.6
    return east, south


def _farmland(rng: np.random.Generator, shape: tuple[int, int]) -> Codes:
    """Fields with one crop each: sections are split in six ways, and pivots irrigate quarter sections."""
    east, south = _sections(shape)
    column, row = east.astype(np.intp), south.astype(np.intp)
    sections = (int(row.max()) + 1, int(column.max()) + 1)

    splits = np.array([(1, 1), (2, 1), (1, 2), (2, 2), (4, 2), (2, 4)])
    split = splits[rng.choice(len(splits), size=sections, p=[0.05, 0.13, 0.13, 0.42, 0.15, 0.12])]
    irrigated = smooth_surface(rng, sections, 6) + 0.5 * rng.standard_normal(sections) > 0.6
    split[irrigated] = 2, 2

    dry = _choose(rng, (*sections, 8), _DRYLAND)
    wet = _choose(rng, (*sections, 8), _IRRIGATED)
    corners = _choose(rng, sections, _PIVOT_CORNERS)

    across, down = split[row, column, 0], split[row, column, 1]
    x, y = (east - column) * across, (south - row) * down
    field = x.astype(np.intp) + across * y.astype(np.intp)
    circle = np.hypot(x % 1 - 0.5, y % 1 - 0.5) < 0.48
    watered = np.where(circle, wet[row, column, field], corners[row, column])
    return np.where(irrigated[row, column], watered, dry[row, column, field]).astype(np.uint8)


def _cover_with_range(rng: np.random.Generator, codes: Codes) -> None:
    """Quarter sections of grass on rough ground, with shrubs and trees in the draws."""
    east, south = _sections(codes.shape)
    x, y = (2 * east).astype(np.intp), (2 * south).astype(np.intp)
    quarters = (int(y.max()) + 1, int(x.max()) + 1)
    rough = smooth_surface(rng, quarters, 7) + 0.6 * rng.standard_normal(quarters) > 1.05
    _grow_grass(rng, codes, rough[y, x])


def _cover_disc(rng: np.random.Generator, codes: Codes, row: float, col: float) -> None:
    """Open range over the chip around (row, col), and a little beyond it."""
    rows, cols = np.ogrid[: codes.shape[0], : codes.shape[1]]
    edge = 0.72 * CHIP_SIZE + 8 * smooth_surface(rng, codes.shape, 60)
    _grow_grass(rng, codes, np.hypot(rows - row, cols - col) < edge)


def _grow_grass(rng: np.random.Generator, codes: Codes, where: npt.NDArray[np.bool_]) -> None:
    draws = smooth_surface(rng, codes.shape, 24)
    codes[where] = _GRASS
    codes[where & (draws > 1.4)] = _SHRUB
    codes[where & (draws > 2.1)] = _DECIDUOUS


def _carve_waters(rng: np.random.Generator, codes: Codes) -> None:
    """A river with its woods and wetlands, side streams, ponds and marshes."""
    height, width = codes.shape
    rows, cols = np.mgrid[:height, :width]
    patches = smooth_surface(rng, codes.shape, 18)
    along = np.arange(width)

    def bend(size: float, reach: float) -> Reals:
        return reach * smooth_surface(rng, (width,), size)

    river = height * 0.42 + 0.06 * along + bend(420, 70) + bend(90, 14) + bend(30, 3)
    away = np.abs(rows - river[cols])
    codes[(away < 26) & (patches > 0.9)] = _WETLAND
    codes[(away < 17) & (patches > -0.5)] = _DECIDUOUS
    codes[(away < 11) & (patches < -0.9)] = _WOODY_WETLAND
    codes[away < 2.2 + 0.8 * patches] = _WATER

    for share in (0.12, 0.3, 0.52, 0.71, 0.9):
        down = np.arange(height)
        bends = 45 * smooth_surface(rng, (height,), 260) + 7 * smooth_surface(rng, (height,), 40)
        stream = width * share + 0.25 * down + bends
        beside = np.abs(cols - stream[rows])
        codes[(beside < 5 + 2 * patches) & (patches > -0.6)] = _DECIDUOUS
        codes[(beside < 2.5) & (patches < -0.3)] = _WOODY_WETLAND
        codes[(beside < 0.8) & (patches > 0.8)] = _WATER

    for _ in range(int(codes.size / CHIP_SIZE**2 * 3)):
        middle_row, middle_col = rng.integers(height), rng.integers(width)
        radius = rng.uniform(2, 9)
        part = (
            slice(max(0, middle_row - 30), middle_row + 30),
            slice(max(0, middle_col - 30), middle_col + 30),
        )
        away = np.hypot(rows[part] - middle_row, cols[part] - middle_col) + 1.5 * patches[part]
        codes[part][away < radius * 1.8] = _WETLAND
        codes[part][away < radius] = _WATER


def _build_roads(rng: np.random.Generator, codes: Codes) -> None:
    """Roads along most section lines, and every sixth of them a highway."""
    for position, other in (_sections(codes.shape), _sections(codes.shape)[::-1]):
        line, stretch = np.rint(position).astype(np.intp), other.astype(np.intp)
        paved = rng.random((int(line.max()) + 1, int(stretch.max()) + 1)) < 0.62
        away = np.abs(position - line) * _SECTION
        dry = (codes != _WATER) & (codes != 0)
        codes[(away < 0.5) & paved[line, stretch] & dry] = _OPEN_SPACE
        codes[(away < 1.0) & (line % 6 == 3)] = _LOW


def _build_towns(rng: np.random.Generator, codes: Codes) -> None:
    height, width = codes.shape
    rows, cols = np.mgrid[:height, :width]
    grain = rng.random(codes.shape)
    shape = smooth_surface(rng, codes.shape, 20)
    for _ in range(max(2, round(codes.size / CHIP_SIZE**2 / 4))):
        away = np.hypot(rows - rng.uniform(0, height), cols - rng.uniform(0, width))
        away = away / rng.uniform(10, 34) + 0.25 * shape
        for reach, code, share in _TOWN_RINGS:
            codes[(away < reach) & (grain < share)] = code
        codes[(away > 1) & (away < 1.08) & (shape > 1)] = _BARREN


def _flood(rng: np.random.Generator, codes: Codes, row: float, col: float) -> None:
    """A reservoir over the chip around (row, col), with a strip of marsh on its shore."""
    rows, cols = np.ogrid[: codes.shape[0], : codes.shape[1]]
    away = np.hypot((rows - row) * 1.05, cols - col) + 9 * smooth_surface(rng, codes.shape, 50)
    codes[away < 0.76 * CHIP_SIZE] = _GRASS
    codes[away < 0.66 * CHIP_SIZE] = _WETLAND
    codes[away < 0.62 * CHIP_SIZE] = _WATER


def _misclassify(rng: np.random.Generator, codes: Codes) -> None:
    """One in 80 pixels of the fields gets the class of a nearby pixel, to imitate a classifier's errors."""
    shift = rng.integers(-25, 26, size=2)
    specks = (rng.random(codes.shape) < 1 / 80) & ~np.isin(codes, (_WATER, _GRASS, _SHRUB, _DECIDUOUS))
    codes[specks] = np.roll(codes, tuple(shift), (0, 1))[specks]
