"""Definitions of HLS: bands, Fmask bits, fill values, scene ids, tile names, and the grid of a tile's rasters."""

import datetime as dt
import re
from dataclasses import dataclass
from typing import Literal, NamedTuple

from crop_assets.errors import InputError
from resources.errors import IntegrityError

REFLECTANCE_BANDS = ("B02", "B03", "B04", "B8A", "B11", "B12")
"""Blue, green, red, narrow near infrared and two short-wave infrared bands, by their S30 names."""
QA_BAND = "Fmask"
BANDS = (*REFLECTANCE_BANDS, QA_BAND)
"""The files of a scene that chips are made from."""
_L30_BANDS = {"B8A": "B05", "B11": "B06", "B12": "B07"}
"""Landsat's names of the bands with different names (HLS v2.0 user guide, table 3)."""

CLOUD, ADJACENT, SHADOW, SNOW, WATER = 1 << 1, 1 << 2, 1 << 3, 1 << 4, 1 << 5
AEROSOL_LOW, AEROSOL_AVERAGE, AEROSOL_HIGH = 1 << 6, 2 << 6, 3 << 6
"""Bits of an Fmask value (HLS v2.0 user guide, table 9); bits 6 and 7 hold the aerosol level."""

FMASK_COUNTS = ("cloud", "shadow", "snow", "bad", "worst_value", "fill")
"""Counts of the Fmask pixels of a chip and date (`crop_assets.chips.quality.quality_counts`)."""

QaRule = Literal["class", "value", "total"]
QA_COUNTS: dict[QaRule, tuple[str, ...]] = {
    "class": ("cloud", "shadow", "snow"),
    "value": ("worst_value",),
    "total": ("bad",),
}
"""The counts that a QA rule of the recipe looks at; the largest is the number of bad pixels of a chip and date."""

POSITIONS = ("first", "middle", "last")
"""The three scenes of a season that chips are made from, by date."""

NODATA = -9999
"""Fill of reflectance in HLS v2.0 (HLS user guide), and of every raster made here."""
NODATA_BEFORE_V2 = -1000
"""Fill of reflectance in HLS v1."""
QA_NODATA = 255
"""Fill of Fmask."""

TILE = "(?:0[1-9]|[1-5][0-9]|60)[C-HJ-NP-X][A-HJ-NP-Z][A-HJ-NP-V]"
"""Regular expression of the name of a tile, such as 13TDE: UTM zone, latitude band, and the column and row of a
100 km square; MGRS has no letters I and O."""
_TILE_NAME = re.compile(TILE)
_TILE_IN_TEXT = re.compile(rf"\bT({TILE})\b", re.ASCII)
SCENE_ID = (
    rf"HLS\.(?P<sensor>[SL]30)\.T(?P<tile>{TILE})\.(?P<day>[0-9]{{7}})(T(?P<time>[0-9]{{6}}))?"
    r"\.v(?P<version>[0-9]\.[0-9])"
)
"""Regular expression of a scene id such as HLS.S30.T13TDE.2022111T174859.v2.0 (HLS user guide, section 6)."""
_SCENE_ID = re.compile(SCENE_ID)

HLS_SIZE = 3660
"""Pixels of 30 m on each side of a tile's HLS rasters."""
_HLS_METRES = 30 * HLS_SIZE
SQUARE_METRES = 100_000
"""Side of the MGRS square that a tile is named after."""
_LATITUDE_BANDS, _ROWS = "CDEFGHJKLMNPQRSTUVWX", "ABCDEFGHJKLMNPQRSTUV"
_COLUMNS = ("STUVWXYZ", "ABCDEFGH", "JKLMNPQR")
_DEGREE_M = 110_900
"""Northing of a degree of latitude, precise enough to distinguish rows 2,000 km apart."""


def fill_of(band: str, version: str) -> int:
    """The fill value of a band's files of an HLS version: -1000 before v2.0, -9999 since; Fmask 255."""
    if band == QA_BAND:
        return QA_NODATA
    return NODATA if version >= "2" else NODATA_BEFORE_V2


def file_band(scene_id: str, band: str) -> str:
    """The name of a band in the files of a scene: in L30 files, B8A is B05, B11 is B06 and B12 is B07."""
    return _L30_BANDS.get(band, band) if scene_id.startswith("HLS.L30.") else band


def is_tile(name: str) -> bool:
    """Whether this is a valid name of a tile, such as 13TDE."""
    return _TILE_NAME.fullmatch(name) is not None


def tile_in(text: str) -> str | None:
    """The first tile in a text, in the form of scene ids, such as 13TDE in T13TDE; None if there is none."""
    return match[1] if (match := _TILE_IN_TEXT.search(text)) else None


def is_scene_id(name: str) -> bool:
    """Whether this is a valid scene id."""
    return _SCENE_ID.fullmatch(name) is not None


@dataclass(frozen=True)
class SceneName:
    """The parts of a scene id such as HLS.S30.T13TDE.2022111T174859.v2.0 (HLS user guide, section 6)."""

    sensor: str
    tile: str
    sensed: dt.datetime
    version: str


def parse_scene_id(scene_id: str) -> SceneName:
    """Parse a scene id. Raises IntegrityError if it is invalid, including days that its year does not have."""
    match = _SCENE_ID.fullmatch(str(scene_id))
    if not match:
        raise IntegrityError(
            f"{scene_id!r} is not an HLS scene id such as HLS.S30.T13TDE.2022111T174859.v2.0"
        )
    try:
        sensed = dt.datetime.strptime(match["day"] + (match["time"] or "000000"), "%Y%j%H%M%S")
    except ValueError:
        raise IntegrityError(f"{scene_id!r} has an invalid day or time") from None
    # strptime turns day 366 of a common year into the first day of the next year
    if f"{sensed:%Y%j}" != match["day"]:
        raise IntegrityError(
            f"{scene_id!r} has day {match['day'][4:]}, which does not exist in {match['day'][:4]}"
        )
    sensed = sensed.replace(tzinfo=dt.UTC)
    return SceneName(match["sensor"], match["tile"], sensed, match["version"])


def collection_of(scene_id: str) -> str:
    """The STAC collection of a scene, as CMR-STAC and the EASIER STAC name it, such as HLSS30_2.0."""
    name = parse_scene_id(scene_id)
    return f"HLS{name.sensor}_{name.version}"


class HlsBounds(NamedTuple):
    """The rectangle of a tile's HLS rasters: 3660 x 3660 pixels of 30 m, in metres of `epsg`."""

    epsg: int
    left: float
    bottom: float
    right: float
    top: float


def hls_bounds(tile: str) -> HlsBounds:
    """The bounds of the HLS rasters of a tile, derived from its name; they equal those of `hls_tile_bounds` for each
    tile of the official grid.

    The name is that of a 100 km square of MGRS: the UTM zone, a band of 8 degrees of latitude, the letter of its
    column, which repeats every three zones, and the letter of its row, which repeats every 2,000 km.

    Raises InputError if there is no square with this name.
    """
    if not is_tile(tile) or tile[3] not in _COLUMNS[int(tile[:2]) % 3]:
        raise InputError(f"tile {tile}: there is no 100 km square with this name")
    zone, band, column, row = int(tile[:2]), tile[2], tile[3], tile[4]
    left = 1 + _COLUMNS[zone % 3].index(column)
    # rows begin five letters later in even zones
    letter = (_ROWS.index(row) - (0 if zone % 2 else 5)) % len(_ROWS)
    latitude = 8 * _LATITUDE_BANDS.index(band) - 80 + (6 if band == "X" else 4)
    # the row with this letter that is nearest to the middle of the band
    bottom = letter + len(_ROWS) * round((latitude * _DEGREE_M / SQUARE_METRES - 0.5 - letter) / len(_ROWS))
    return square_bounds(32600 + zone, left * SQUARE_METRES, (bottom + 1) * SQUARE_METRES)


def square_bounds(epsg: int, square_left: int, square_top: int) -> HlsBounds:
    """The bounds of the HLS rasters of a 100 km square, given its upper left corner in metres of `epsg`."""
    left = float(60 * (square_left // 60))
    top = float(-60 * (-square_top // 60))
    return HlsBounds(epsg, left, top - _HLS_METRES, left + _HLS_METRES, top)
