"""Checks CDL rasters on disk, and counts the pixels of each class in each chip box."""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyproj
import rasterio
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from pyproj.exceptions import ProjError
from rasterio.errors import RasterioError
from rasterio.windows import Window

from crop_assets.chip_grid import (
    CHIP_SIZE,
    CRS,
    GRID_COLS,
    GRID_ROWS,
    ORIGIN_X,
    ORIGIN_Y,
    RESOLUTION,
    crs_text,
    raster_geobox,
    same_pixels,
    transformer,
    wkt,
)
from crop_assets.classes import CLASSES, UNKNOWN, UNKNOWN_ADVICE, lookup_table
from crop_assets.crs import require_place, require_proj
from crop_assets.errors import InputError
from resources.geodata import open_raster
from resources.plain_text import shell_file

if TYPE_CHECKING:
    import pandas as pd

_MAX_COLS, _MAX_ROWS = 160_000, 100_000
"""The national raster has 153,811 columns and 96,523 rows."""
STRIPS_PER_TASK = 8
COLS_PER_READ = 128
_CODES = (
    "a CDL raster has one band of uint8 codes. Use the *_30m_cdls.tif of the release, not its confidence or frequency "
    "layer"
)
_MAX_EXAMPLES = 3
"""Pixels with an unknown code that an error lists."""
_CodedPixel = tuple[int, int, int]
"""A code, and its row and column in the raster."""


@dataclass(frozen=True)
class CdlRaster:
    """A raster that passed `check_cdl`: uint8 codes, EPSG:5070, 30 m, on the national grid.

    `transform` is the national grid's; the one in the file may differ by rounding.
    """

    path: str
    transform: Affine
    width: int
    height: int
    nodata: float | None = None
    unknown_codes: str = "refuse"

    @property
    def table(self) -> NDArray[np.uint8]:
        """Class by code: uint8[256]; 0 for the nodata value of the file, and by `unknown_codes` for unknown codes."""
        return lookup_table(self.nodata, self.unknown_codes)

    @property
    def _left(self) -> int:
        """Pixels from the national origin to the raster's left edge."""
        return round((self.transform.c - ORIGIN_X) / RESOLUTION)

    @property
    def _top(self) -> int:
        """Pixels from the national origin down to the raster's upper edge."""
        return round((ORIGIN_Y - self.transform.f) / RESOLUTION)

    @property
    def chip_rows(self) -> range:
        """Rows of the national chip grid that are completely inside the raster."""
        return _complete_chips(self._top, self.height, GRID_ROWS)

    @property
    def chip_cols(self) -> range:
        """Columns of the national chip grid that are completely inside the raster."""
        return _complete_chips(self._left, self.width, GRID_COLS)

    def window(self, row: int, cols: range) -> Window:
        """The window of the chips of one row and adjacent `cols` in the raster, in pixels."""
        return Window(
            cols.start * CHIP_SIZE - self._left,
            row * CHIP_SIZE - self._top,
            len(cols) * CHIP_SIZE,
            CHIP_SIZE,
        )


@dataclass(frozen=True)
class ChipHistograms:
    """Pixels per class of the n chip boxes of a CDL raster, in row-major order."""

    rows: NDArray[np.int32]
    """int32[n], rows of the national chip grid."""
    cols: NDArray[np.int32]
    """int32[n], columns of the national chip grid."""
    counts: NDArray[np.int32]
    """int32[n, 14], pixels by class value; each row adds up to 224 * 224."""
    codes: NDArray[np.int64]
    """int64[256], pixels by CDL code in all boxes."""
    unknown: str = ""
    """The number of pixels of each code without a class, as text; empty if there are none."""


def raster_digest(cdl: "pd.DataFrame") -> str:
    """The checksum of the year's raster, from the table of the asset `cdl`."""
    return str(cdl.iloc[0]["sha256"])


def check_cdl(path: str | Path, unknown_codes: str = "refuse", pixels: str = _CODES) -> CdlRaster:
    """Open a CDL raster and make sure that its pixels are on the national grid.

    `path` is a local file or any path that GDAL opens; `unknown_codes` is the recipe's. `pixels` describes in errors
    what the raster must have, if not codes. Raises InputError, with advice
    how to fix it, if the file is unreadable, has more than one band, is not uint8, is not in EPSG:5070 (an equivalent
    CRS without a code is fine) or not at 30 m, or is off the national grid by more than a tenth of a pixel.
    """
    name = str(path)
    if name.lower().endswith(".zip"):
        raise InputError(f"{name} is an archive; unpack it and give the GeoTIFF inside")
    require_proj()
    try:
        with open_raster(Path(name)) as raster:
            grid = _national_grid(name, raster, pixels)
            # the block of the last pixel is at the end of the file, which is missing after a broken download
            for row, col in ((0, 0), (raster.height - 1, raster.width - 1)):
                raster.read(1, window=Window(col, row, 1, 1))
            return CdlRaster(name, grid.affine, raster.width, raster.height, raster.nodata, unknown_codes)
    except (RasterioError, ProjError) as error:
        raise unreadable(name, error) from None


def chip_histograms(
    cdl: CdlRaster, pool: Executor, progress: Callable[[int], None] | None = None
) -> ChipHistograms:
    """Count the classes in every box of the national chip grid that is completely inside `cdl`.

    `progress` is called with the number of finished chip rows, from the calling thread. Memory does not depend on the
    size of the raster: about 60 MB per thread of `pool`, plus GDAL's block cache. Raises InputError if the file cannot
    be read, or has codes without a class and `unknown_codes` is 'refuse'; the message counts and locates them.
    """
    rows, cols = cdl.chip_rows, cdl.chip_cols
    counts = np.zeros((len(rows), len(cols), len(CLASSES)), np.int32)
    codes = np.zeros(256, np.int64)

    examples: list[_CodedPixel] = []

    def scan(strips: range) -> tuple[range, NDArray[np.int32], NDArray[np.int64], list[_CodedPixel]]:
        try:
            # one handle per task: GDAL datasets must not be shared between threads
            with open_raster(Path(cdl.path)) as raster:
                return strips, *_scan(cdl, raster, strips, cols)
        except RasterioError as error:
            raise unreadable(cdl.path, error) from None

    tasks = [rows[i : i + STRIPS_PER_TASK] for i in range(0, len(rows), STRIPS_PER_TASK)] if cols else []
    for strips, strip_counts, strip_codes, strip_examples in pool.map(scan, tasks):
        counts[strips.start - rows.start : strips.stop - rows.start] = strip_counts
        codes += strip_codes
        examples += strip_examples
        if progress:
            progress(strips.stop - rows.start)
    _refuse_unknown(cdl, codes, examples)
    return ChipHistograms(
        rows=np.repeat(np.arange(rows.start, rows.stop, dtype=np.int32), len(cols)),
        cols=np.tile(np.arange(cols.start, cols.stop, dtype=np.int32), len(rows)),
        counts=counts.reshape(-1, len(CLASSES)),
        codes=codes,
        unknown=_counted(cdl, codes),
    )


def check_codes(cdl: CdlRaster, pool: Executor, progress: Callable[[int], None] | None = None) -> None:
    """Read the complete raster. Raises InputError as `chip_histograms` does.

    `progress` is called with the percentage done.
    """
    codes, examples = np.zeros(256, np.int64), list[_CodedPixel]()
    starts = range(0, cdl.height, 2 * CHIP_SIZE)

    def check(start: int) -> tuple[NDArray[np.int64], list[_CodedPixel]]:
        window = Window(0, start, cdl.width, min(2 * CHIP_SIZE, cdl.height - start))
        try:
            with open_raster(Path(cdl.path)) as raster:
                pixels = raster.read(1, window=window)
        except RasterioError as error:
            raise unreadable(cdl.path, error) from None
        return np.bincount(pixels.ravel(), minlength=256), _unknown_pixels(cdl, pixels, start, 0)

    for done, (found, where) in enumerate(pool.map(check, starts), start=1):
        codes += found
        examples += where
        if progress:
            progress(100 * done // len(starts))
    _refuse_unknown(cdl, codes, examples)


def _scan(
    cdl: CdlRaster, raster: rasterio.DatasetReader, strips: range, cols: range
) -> tuple[NDArray[np.int32], NDArray[np.int64], list[_CodedPixel]]:
    table, examples = cdl.table, list[_CodedPixel]()
    members = (table[:, None] == np.arange(len(CLASSES))).astype(np.float64)
    counts = np.empty((len(strips), len(cols), len(CLASSES)), np.int32)
    codes = np.zeros(256, np.int64)
    for row in strips:
        for part in _parts(cols):
            pixels = raster.read(1, window=cdl.window(row, part))
            chips = pixels.reshape(CHIP_SIZE, len(part), CHIP_SIZE).swapaxes(0, 1)
            by_code = np.zeros((len(part), 256), np.int64)
            by_code[:, 0] = CHIP_SIZE**2
            # nearly half of the national raster is 0, which bincount is slowest at. A chip's 400 kB of indices fit
            # into the processor's cache: one bincount per chip takes a third of the time of one bincount over
            # (chip, code) for the complete strip
            for at in np.flatnonzero(pixels.any(axis=0).reshape(len(part), CHIP_SIZE).any(axis=1)):
                by_code[at] = np.bincount(chips[at].ravel(), minlength=256)
            if by_code[:, table == UNKNOWN].any() and len(examples) < _MAX_EXAMPLES:
                window = cdl.window(row, part)
                examples += _unknown_pixels(cdl, pixels, window.row_off, window.col_off)
            codes += by_code.sum(axis=0)
            first = part.start - cols.start
            counts[row - strips.start, first : first + len(part)] = by_code @ members
    return counts, codes, examples


def _unknown_pixels(cdl: CdlRaster, pixels: NDArray[np.uint8], top: int, left: int) -> list[_CodedPixel]:
    """The first pixels whose codes must be refused; `pixels` start at row `top` and column `left` of the raster."""
    at = np.argwhere(cdl.table[pixels] == UNKNOWN)[:_MAX_EXAMPLES]
    return [(int(pixels[row, col]), top + int(row), left + int(col)) for row, col in at]


def _refuse_unknown(cdl: CdlRaster, codes: NDArray[np.int64], examples: list[_CodedPixel]) -> None:
    if not examples:
        return
    some = []
    for code, row, col in examples[:_MAX_EXAMPLES]:
        x, y = cdl.transform @ (col + 0.5, row + 0.5)
        lon, lat = transformer(CRS, "EPSG:4326").transform(x, y)
        some.append(
            f"{code} at ({x:.0f}, {y:.0f}), {abs(lat):.5f} {'NS'[lat < 0]} {abs(lon):.5f} {'EW'[lon < 0]}"
        )
    raise InputError(
        f"{cdl.path} has codes without a class: {_counted(cdl, codes)}; such as {'; '.join(some)} ({CRS}); "
        f"{UNKNOWN_ADVICE}"
    )


def _counted(cdl: CdlRaster, codes: NDArray[np.int64]) -> str:
    """The number of pixels of each code without a class, as text."""
    found = np.flatnonzero((codes > 0) & (lookup_table(cdl.nodata) == UNKNOWN))
    return ", ".join(
        f"{codes[code]:,} pixel{'s' if codes[code] > 1 else ''} of code {code}" for code in found
    )


def _parts(cols: range) -> Iterator[range]:
    for start in range(0, len(cols), COLS_PER_READ):
        yield cols[start : start + COLS_PER_READ]


def _complete_chips(offset: int, size: int, limit: int) -> range:
    """Chips completely inside the pixels `offset` to `offset + size`, among the first `limit`."""
    first = max(0, -(-offset // CHIP_SIZE))
    return range(first, max(first, min(limit, (offset + size) // CHIP_SIZE)))


def _national_grid(name: str, raster: rasterio.DatasetReader, pixels: str) -> GeoBox:
    """The part of the national grid that a raster's pixels match. Raises InputError if there is none."""
    if raster.count != 1 or raster.dtypes[0] != "uint8":
        raise InputError(f"{name} has {raster.count} band(s) of {raster.dtypes[0]}; {pixels}")
    edit = f"if it is EPSG:5070, run: gdal_edit.py -a_srs EPSG:5070 {shell_file(name)}"
    if raster.crs is None:
        raise InputError(f"{name} has no CRS; {edit}")
    crs = pyproj.CRS.from_wkt(raster.crs.to_wkt())
    require_place(crs, name, edit)
    if raster.width > _MAX_COLS or raster.height > _MAX_ROWS:
        raise InputError(
            f"{name} has {raster.width:,} x {raster.height:,} pixels, more than the national raster; "
            "check that it is the national release at 30 m"
        )
    found, affine = raster_geobox(raster), raster.transform
    x, y = transformer(wkt(found), CRS).transform(affine.c, affine.f)
    if math.isfinite(x) and math.isfinite(y):
        left, down = (RESOLUTION * round(metres / RESOLUTION) for metres in (x - ORIGIN_X, ORIGIN_Y - y))
        corner = Affine(RESOLUTION, 0, ORIGIN_X + left, 0, -RESOLUTION, ORIGIN_Y - down)
        if same_pixels(found, grid := GeoBox(found.shape, corner, CRS)):
            return grid
    if not same_pixels(found, GeoBox(found.shape, affine, CRS)):
        raise InputError(f"{name} is in {crs_text(crs)}, not EPSG:5070; run: {_gdalwarp(name, raster)}")
    if not same_pixels(
        found, GeoBox(found.shape, Affine(RESOLUTION, 0, affine.c, 0, -RESOLUTION, affine.f), CRS)
    ):
        raise InputError(
            f"{name} has pixels of {affine.a:.12g} x {-affine.e:.12g} m, not 30 x 30 m north up; "
            f"use the 30 m release, or run: {_gdalwarp(name, raster)}"
        )
    raise InputError(
        f"{name}: its corner ({affine.c}, {affine.f}) is not a whole number of pixels "
        f"from the national CDL's ({ORIGIN_X}, {ORIGIN_Y}); run: {_gdalwarp(name, raster)}"
    )


def _gdalwarp(name: str, raster: rasterio.DatasetReader) -> str:
    """The gdalwarp command that resamples `raster` to the national CDL grid."""
    to_conus = pyproj.Transformer.from_crs(raster.crs.to_wkt(), 5070, always_xy=True)
    cols = np.array([0, raster.width, 0, raster.width])
    rows = np.array([0, 0, raster.height, raster.height])
    affine = raster.transform
    x, y = affine.a * cols + affine.b * rows + affine.c, affine.d * cols + affine.e * rows + affine.f
    left, bottom, right, top = to_conus.transform_bounds(x.min(), y.min(), x.max(), y.max())
    if not all(map(math.isfinite, (left, bottom, right, top))):
        extent = ""
    else:
        # not -tap: the national grid's lines are not at multiples of 30
        edges = (
            ORIGIN_X + RESOLUTION * math.floor((left - ORIGIN_X) / RESOLUTION),
            ORIGIN_Y - RESOLUTION * math.ceil((ORIGIN_Y - bottom) / RESOLUTION),
            ORIGIN_X + RESOLUTION * math.ceil((right - ORIGIN_X) / RESOLUTION),
            ORIGIN_Y - RESOLUTION * math.floor((ORIGIN_Y - top) / RESOLUTION),
        )
        extent = f"-te {' '.join(map(str, edges))} "
    files = f"{shell_file(name)} {shell_file(f'{Path(name).stem}_5070.tif')}"
    return f"gdalwarp -t_srs EPSG:5070 -r near -tr {RESOLUTION} {RESOLUTION} {extent}{files}"


def unreadable(name: str, error: Exception) -> InputError:
    # rasterio only reports that a read failed; GDAL's message, its cause, has the reason
    reason = str(error.__cause__ or error).rstrip(".")
    return InputError(
        f"{name} cannot be read: {reason}. If the file exists, it is damaged or truncated: fetch it again"
    )
