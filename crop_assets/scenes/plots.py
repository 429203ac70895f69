"""The picture of a tile's season: which scenes there were, and which three were chosen."""

import datetime as dt
import functools
import io
import math
from collections import Counter

import pandas as pd
from PIL import Image, ImageDraw, ImageFont

from crop_assets.scenes.selection import chosen_scenes

Colour = tuple[int, int, int]

_WIDTH, _HEIGHT = 900, 300
# the edges of the plot; above it are the title, the labels and the scenes of unknown cloud cover, below it the months
_LEFT, _TOP, _RIGHT, _BOTTOM = 68, 90, 830, 270
_TITLE_Y, _LABEL_Y, _UNKNOWN_Y, _MONTH_Y = 16, 45, 72, 289
_RADIUS, _RING = 5, 9
# from one dot to the next of the same place, so that it shows beside a ring
_BESIDE = 10
# drawn larger and reduced, which smooths circles and slanted lines
_FINER = 2
_LIGHT, _DARK = (222, 235, 247), (8, 48, 107)
_UNKNOWN, _UNFIT = (255, 214, 102), (170, 170, 170)
_CHOSEN, _LIMIT = (217, 72, 1), (106, 61, 154)
_GRID, _TEXT, _WHITE = (229, 229, 229), (40, 40, 40), (255, 255, 255)
_CLOUD_TICKS = (0, 1, 5, 10, 20, 40, 60, 80, 100)
# the calendar module has them in the language of the machine
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def season_picture(
    table: pd.DataFrame, season: tuple[dt.date, dt.date], tile: str, max_cloud_cover: float | None = None
) -> bytes:
    """All scenes of a tile by date and cloud cover, the chosen three marked, as a PNG of 900 x 300 and some 20 kB.

    `table` is one of `select_scenes` or `spread_scenes`, of which it takes date, cloud_cover and
    spatial_coverage (percent, may be missing), fit and position. `season` has the first and the last day. At
    `max_cloud_cover` (percent) there is a line. Drawn by Pillow, for each tile has one, and a chart of
    matplotlib would take longer than to choose its scenes.
    """
    canvas = _Canvas()
    # what was set aside has no day
    table = table[table["date"].notna()]
    _title(canvas, table, tile, season)
    _axes(canvas, season, max_cloud_cover)
    if table.empty:
        canvas.text((_LEFT + _RIGHT) / 2, (_TOP + _BOTTOM) / 2, "no scenes", "mm", 14, _UNFIT)
        return canvas.png()
    # those that matter most are drawn last, over the others
    rows = table.assign(chosen=table["position"] != "").sort_values(["chosen", "fit"], kind="stable")
    _labels(canvas, chosen_scenes(table), season)
    places = [dot_position(*at, season) for at in zip(rows["date"], rows["cloud_cover"], strict=True)]
    if any(y == _UNKNOWN_Y for _, y in places):
        canvas.text(_LEFT - 12, _UNKNOWN_Y, "unknown", "rm")
    # of several in one place the last has it, and the others peep out on its right
    left = Counter(places)
    how = zip(rows["chosen"], rows["fit"], rows["spatial_coverage"], strict=True)
    for place, (chosen, fit, coverage) in zip(places, how, strict=True):
        left[place] -= 1
        x, y = place[0] + min(left[place], 4) * _BESIDE, place[1]
        if chosen:
            canvas.disc(x, y, _RING, _CHOSEN)
            canvas.disc(x, y, _RING - 2, _WHITE)
        if fit:
            canvas.disc(x, y, _RADIUS, _DARK)
            canvas.disc(x, y, _RADIUS - 1, coverage_colour(coverage))
        else:
            canvas.circle(x, y, _RADIUS - 1, _UNFIT)
    return canvas.png()


def dot_position(
    date: dt.date, cloud_cover: float | None, season: tuple[dt.date, dt.date]
) -> tuple[int, int]:
    """The pixel (from the left, from the top) on which the dot of a scene has its centre.

    The height goes with the square root of the cloud cover (percent), for which of the clear scenes is the
    clearest matters most; unknown cloud cover is on a row of its own. A scene out of season is at its edge.
    """
    x = _across((date - season[0]).days + 0.5, season)
    return round(x), _UNKNOWN_Y if cloud_cover is None or pd.isna(cloud_cover) else _height(cloud_cover)


def coverage_colour(spatial_coverage: float | None) -> Colour:
    """The fill of a scene that covers so many percent of the tile: blue, darker with more; yellow if unknown."""
    if spatial_coverage is None or pd.isna(spatial_coverage):
        return _UNKNOWN
    share = min(max(spatial_coverage / 100, 0), 1)
    red, green, blue = (
        round(light + (dark - light) * share) for light, dark in zip(_LIGHT, _DARK, strict=True)
    )
    return red, green, blue


def _across(days: float, season: tuple[dt.date, dt.date]) -> float:
    length = max((season[1] - season[0]).days + 1, 1)
    return _LEFT + min(max(days / length, 0), 1) * (_RIGHT - _LEFT)


def _height(cloud_cover: float) -> int:
    return round(_BOTTOM - math.sqrt(min(max(cloud_cover / 100, 0), 1)) * (_BOTTOM - _TOP))


def _title(canvas: "_Canvas", table: pd.DataFrame, tile: str, season: tuple[dt.date, dt.date]) -> None:
    """What is shown on the left, and the legend from the right."""
    fit = 0 if table.empty else int(table["fit"].sum())
    what = f"{tile} {season[0].year}: cloud cover of {len(table)} scenes, {fit} of them fit"
    canvas.text(8, _TITLE_Y, what, "lm", 14)
    y, right = _TITLE_Y, _WIDTH - 8.0

    def words(text: str) -> None:
        nonlocal right
        canvas.text(right, y, text, "rm")
        right -= canvas.length(text) + 12

    words("chosen")
    canvas.disc(right, y, _RADIUS, _CHOSEN)
    canvas.disc(right, y, _RADIUS - 2, _WHITE)
    right -= 20
    words("not fit")
    canvas.circle(right, y, _RADIUS - 1, _UNFIT)
    right -= 20
    if not table.empty and (table["fit"] & table["spatial_coverage"].isna()).any():
        words("coverage unknown")
        canvas.disc(right, y, _RADIUS, _DARK)
        canvas.disc(right, y, _RADIUS - 1, _UNKNOWN)
        right -= 20
    words("100 % of the tile")
    right += 6
    for percent in range(100, -1, -2):
        canvas.line([(right, y - 5), (right, y + 5)], coverage_colour(percent))
        right -= 1
    right -= 6
    words("covers 0")


def _axes(canvas: "_Canvas", season: tuple[dt.date, dt.date], max_cloud_cover: float | None) -> None:
    for percent in _CLOUD_TICKS:
        y = _height(percent)
        canvas.line([(_LEFT, y), (_RIGHT, y)], _GRID)
        canvas.text(_LEFT - 12, y, f"{percent} %", "rm")
    day = season[0]
    while day <= season[1]:
        following = (day.replace(day=1) + dt.timedelta(32)).replace(day=1)
        left, right = (_across((at - season[0]).days, season) for at in (day, following))
        canvas.line([(left, _TOP), (left, _BOTTOM)], _GRID)
        month = _MONTHS[day.month - 1]
        if canvas.length(month) < right - left:
            canvas.text((left + right) / 2, _MONTH_Y, month, "mm", 12)
        day = following
    canvas.line([(_RIGHT, _TOP), (_RIGHT, _BOTTOM)], _GRID)
    if max_cloud_cover is not None:
        y = _height(max_cloud_cover)
        canvas.line([(_LEFT, y), (_RIGHT, y)], _LIMIT)
        canvas.text(_RIGHT + 8, y, f"max {max_cloud_cover:.3g} %", "lm", 11, _LIMIT)


def _labels(canvas: "_Canvas", chosen: pd.DataFrame, season: tuple[dt.date, dt.date]) -> None:
    """The chosen scenes' position and date in a row above the plot, side by side, with lines to their dots."""
    scenes = [
        (dot_position(row["date"], row["cloud_cover"], season), f"{row['position']} {row['date']}")
        for _, row in chosen.iterrows()
    ]
    widths = [canvas.length(words, 12) + 14 for _, words in scenes]
    # each as near to its dot as those to the left of it let it, and as those to the right of it must fit
    at, edge = [], 4.0
    for number, ((x, _), width) in enumerate(zip((place for place, _ in scenes), widths, strict=True)):
        left = min(max(x - width / 2, edge), _WIDTH - 4 - sum(widths[number:]))
        at.append(left + width / 2)
        edge = left + width
    for ((x, y), words), middle in zip(scenes, at, strict=True):
        canvas.line([(middle, _LABEL_Y + 9), (x, _LABEL_Y + 19), (x, y)], _CHOSEN)
        canvas.text(middle, _LABEL_Y, words, "mm", 12, _CHOSEN)


class _Canvas:
    """Pillow's drawing in the picture's own pixels, which have their centres at whole numbers."""

    def __init__(self) -> None:
        self._image = Image.new("RGB", (_WIDTH * _FINER, _HEIGHT * _FINER), _WHITE)
        self._draw = ImageDraw.Draw(self._image)

    def line(self, points: list[tuple[float, float]], colour: Colour) -> None:
        # Pillow lays a line of even width right of and below its points: here on whole pixels, thus crisp
        self._draw.line([(x * _FINER, y * _FINER) for x, y in points], colour, _FINER)

    def disc(self, x: float, y: float, radius: float, colour: Colour) -> None:
        self._draw.ellipse(self._around(x, y, radius), colour)

    def circle(self, x: float, y: float, radius: float, colour: Colour) -> None:
        self._draw.ellipse(self._around(x, y, radius), outline=colour, width=_FINER)

    def text(
        self, x: float, y: float, words: str, anchor: str, size: int = 11, colour: Colour = _TEXT
    ) -> None:
        self._draw.text((x * _FINER, y * _FINER), words, colour, _font(size * _FINER), anchor)

    def length(self, words: str, size: int = 11) -> float:
        return self._draw.textlength(words, _font(size * _FINER)) / _FINER

    def png(self) -> bytes:
        out = io.BytesIO()
        self._image.reduce(_FINER).save(out, "PNG")
        return out.getvalue()

    def _around(self, x: float, y: float, radius: float) -> tuple[float, float, float, float]:
        left, top = (x - radius) * _FINER, (y - radius) * _FINER
        # Pillow draws the last pixel as well
        side = (2 * radius + 1) * _FINER - 1
        return left, top, left + side, top + side


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
