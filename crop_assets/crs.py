"""Checks of coordinate reference systems: whether one is tied to the Earth, and whether PROJ works."""

import os

import numpy as np
import pyproj
import rasterio
from numpy.typing import NDArray
from pyproj.exceptions import ProjError
from rasterio.errors import CRSError

from crop_assets.chip_grid import CHIP_METRES, CRS, GRID_COLS, GRID_ROWS, ORIGIN_X, ORIGIN_Y
from crop_assets.errors import InputError

LATITUDE_FIRST = "latitude before longitude"
_CONUS = (ORIGIN_X, ORIGIN_Y - CHIP_METRES * GRID_ROWS, ORIGIN_X + CHIP_METRES * GRID_COLS, ORIGIN_Y)
_WEB_MERCATOR = (-14.1e6, 2.7e6, -7.3e6, 6.5e6)
_UTM = (100e3, 2.7e6, 900e3, 5.5e6)
"""Bounds of the contiguous states in metres."""


def require_proj() -> None:
    """Raise InputError if PROJ cannot look up EPSG:5070, for example because it uses the database of another program.

    rasterio would then read the CRS of a raster as a local one, without an error.
    """
    try:
        rasterio.CRS.from_epsg(5070)
        pyproj.CRS.from_epsg(5070)
    except (CRSError, ProjError) as error:
        names = [name for name in ("PROJ_DATA", "PROJ_LIB") if os.environ.get(name)]
        given = " and ".join(f"{name} is {os.environ[name]}" for name in names)
        cause = (
            f"{given}, which does not fit the PROJ of rasterio: unset {' and '.join(names)}"
            if names
            else "install rasterio and pyproj again"
        )
        raise InputError(f"PROJ cannot look up {CRS} ({error}); {cause}") from None


def require_place(crs: pyproj.CRS, what: str, advice: str) -> None:
    """Raise InputError if a CRS is not tied to the Earth, such as a local or engineering CRS."""
    if not crs.is_geographic and not crs.is_projected:
        raise InputError(
            f"{what} is in {crs.name!r} ({crs.type_name}), which does not say where on Earth a place is; {advice}"
        )


def looks_like(bounds: NDArray[np.float64]) -> str:
    """What coordinates with these bounds (left, bottom, right, top) could be if they are not degrees; "" if unknown."""
    for crs, (left, bottom, right, top) in (
        ("metres of EPSG:5070", _CONUS),
        ("metres of EPSG:3857", _WEB_MERCATOR),
        ("metres of a UTM zone", _UTM),
        (LATITUDE_FIRST, (-90, -180, 90, 180)),
    ):
        if left <= bounds[0] and bottom <= bounds[1] and bounds[2] <= right and bounds[3] <= top:
            return crs
    return ""
