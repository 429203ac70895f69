"""The chart of a tile's season: which scenes there were, and which three were chosen."""

import datetime as dt
import html
import math
from collections import Counter

import pandas as pd

from crop_assets.scenes.selection import chosen_scenes

_WIDTH, _HEIGHT = 900, 300
# the edges of the plot; above it are the title, the labels and the scenes of unknown cloud cover, below it the months
_LEFT, _TOP, _RIGHT, _BOTTOM = 68, 90, 830, 270
_TITLE_Y, _LABEL_Y, _UNKNOWN_Y, _MONTH_Y = 16, 45, 72, 289
_RADIUS, _RING = 4.5, 8
# half of the length of a bar, which the disc or circle at the same position does not hide
_BAR = 10
# scenes at the same position are drawn side by side
_STEP = 10
_LIGHT, _DARK = (222, 235, 247), (8, 48, 107)
_UNKNOWN, _UNFIT, _CHOSEN, _LIMIT, _MEASURED = "#ffd666", "#aaa", "#d94801", "#6a3d9a", "#00796b"
_RING_STROKE = f' stroke="{_CHOSEN}" stroke-width="2"'
_GRID, _TEXT = "#e5e5e5", "#282828"
_CLOUD_TICKS = (0, 1, 5, 10, 20, 40, 60, 80, 100)
# the calendar module has them in the language of the machine
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def season_chart(
    table: pd.DataFrame, season: tuple[dt.date, dt.date], tile: str, max_cloud_cover: float | None = None
) -> bytes:
    """All scenes of a tile by date and cloud cover, with the chosen three marked, as an SVG of 900 x 300.

    `table` is the result of `select_scenes`, `spread_scenes` or `clearest_scenes`; its columns date, cloud_cover,
    spatial_coverage and measured_percent (percent, may be missing), fit and position are used. A bar marks what is not
    clear over the chips of a measured scene. `season` has the first and the last day. A line marks `max_cloud_cover`
    (percent).
    """
    # scenes that were set aside have no date
    table = table[table["date"].notna()]
    parts = [*_title(table, tile, season), *_axes(season, max_cloud_cover)]
    if table.empty:
        parts.append(_text((_LEFT + _RIGHT) / 2, (_TOP + _BOTTOM) / 2, "no scenes", "middle", 14, _UNFIT))
    else:
        parts += _dots(table, season)
    size = f'width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}"'
    style = f'font-family="Helvetica,Arial,sans-serif" font-size="11" fill="{_TEXT}"'
    white = '<rect width="100%" height="100%" fill="#fff"/>'
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>{white}{"".join(parts)}</svg>'
    return svg.encode()


def dot_position(
    date: dt.date, cloud_cover: float | None, season: tuple[dt.date, dt.date]
) -> tuple[int, int]:
    """The position (from the left, from the top) of a scene's dot.

    The height is proportional to the square root of the cloud cover (percent), because differences between clear scenes
    matter most. Scenes of unknown cloud cover have a row of their own, and scenes out of season are at its edge.
    """
    x = _across((date - season[0]).days + 0.5, season)
    return round(x), _UNKNOWN_Y if cloud_cover is None or pd.isna(cloud_cover) else _height(cloud_cover)


def coverage_colour(spatial_coverage: float | None) -> str:
    """The fill of a scene that covers so many percent of the tile: blue, darker with more; yellow if unknown."""
    if spatial_coverage is None or pd.isna(spatial_coverage):
        return _UNKNOWN
    share = min(max(spatial_coverage / 100, 0), 1)
    return "#" + "".join(
        f"{round(light + (dark - light) * share):02x}" for light, dark in zip(_LIGHT, _DARK, strict=True)
    )


def _across(days: float, season: tuple[dt.date, dt.date]) -> float:
    length = max((season[1] - season[0]).days + 1, 1)
    return _LEFT + min(max(days / length, 0), 1) * (_RIGHT - _LEFT)


def _height(cloud_cover: float) -> int:
    return round(_BOTTOM - math.sqrt(min(max(cloud_cover / 100, 0), 1)) * (_BOTTOM - _TOP))


def _dots(table: pd.DataFrame, season: tuple[dt.date, dt.date]) -> list[str]:
    """The scenes: those that are not fit as circles, below the fit ones as discs, below the chosen ones with a ring."""
    rows = table.assign(chosen=table["position"] != "").sort_values(["chosen", "fit"], kind="stable")
    places = [dot_position(*at, season) for at in zip(rows["date"], rows["cloud_cover"], strict=True)]
    circles: list[str] = []
    discs: list[str] = []
    bars: list[str] = []
    left = Counter(places)
    columns = ["chosen", "fit", "spatial_coverage", "measured_percent"]
    for (x, y), chosen, fit, coverage, measured in zip(
        places, *(rows[name] for name in columns), strict=True
    ):
        # the last of several at one position is drawn there, the others on its right
        left[x, y] -= 1
        x += min(left[x, y], 4) * _STEP
        if pd.notna(measured):
            over_chips = _height(100 - measured)
            bars.append(f"M{x} {y}V{over_chips}M{x - _BAR} {over_chips}H{x + _BAR}")
        if chosen:
            discs.append(_disc(x, y, _RING, "#fff", _RING_STROKE))
        if fit:
            discs.append(_disc(x, y, _RADIUS, coverage_colour(coverage)))
        else:
            circles.append(_disc(x, y, _RADIUS))
    unknown = (
        _text(_LEFT - 12, _UNKNOWN_Y, "unknown", "end") if any(y == _UNKNOWN_Y for _, y in places) else ""
    )
    return [
        *_labels(chosen_scenes(table), season),
        unknown,
        f'<path d="{"".join(bars)}" fill="none" stroke="{_MEASURED}"/>' if bars else "",
        f'<g fill="none" stroke="{_UNFIT}">{"".join(circles)}</g>',
        f'<g stroke="{_hex(_DARK)}">{"".join(discs)}</g>',
    ]


def _title(table: pd.DataFrame, tile: str, season: tuple[dt.date, dt.date]) -> list[str]:
    """What the chart shows on the left, and the legend from the right."""
    fit = 0 if table.empty else int(table["fit"].sum())
    measured = bool(table["measured_percent"].notna().any())
    title = f"{tile} {season[0].year}: cloud cover of {len(table)} scenes, {fit} of them fit"
    if measured:
        # beside a longer legend
        title = f"{tile} {season[0].year}: clouds of {len(table)} scenes, {fit} fit"
    parts = [_text(8, _TITLE_Y, title, size=14)]
    right = _WIDTH - 8.0

    def add(words: str, fill: str, more: str) -> None:
        nonlocal right
        parts.append(_text(right, _TITLE_Y, words, "end"))
        right -= _length(words) + 13
        parts.append(_disc(right, _TITLE_Y, _RADIUS, fill, more))
        right -= 18

    if measured:
        parts.append(_text(right, _TITLE_Y, "over the chips", "end"))
        right -= _length("over the chips") + 6
        parts.append(f'<path d="M{right - 2 * _BAR:g} {_TITLE_Y}h{2 * _BAR}" stroke="{_MEASURED}"/>')
        right -= 2 * _BAR + 12
    add("chosen", "#fff", _RING_STROKE)
    add("not fit", "none", f' stroke="{_UNFIT}"')
    if not table.empty and (table["fit"] & table["spatial_coverage"].isna()).any():
        add("coverage unknown", _UNKNOWN, f' stroke="{_hex(_DARK)}"')
    parts.append(_text(right, _TITLE_Y, "100 % of the tile", "end"))
    right -= _length("100 % of the tile") + 56
    stops = f'<stop stop-color="{_hex(_LIGHT)}"/><stop offset="1" stop-color="{_hex(_DARK)}"/>'
    parts.append(f'<linearGradient id="c">{stops}</linearGradient>')
    parts.append(f'<rect x="{right:g}" y="{_TITLE_Y - 5}" width="50" height="10" fill="url(#c)"/>')
    parts.append(_text(right - 6, _TITLE_Y, "covers 0", "end"))
    return parts


def _axes(season: tuple[dt.date, dt.date], max_cloud_cover: float | None) -> list[str]:
    lines = [f"M{_LEFT} {_height(percent)}H{_RIGHT}" for percent in _CLOUD_TICKS]
    parts = [_text(_LEFT - 12, _height(percent), f"{percent} %", "end") for percent in _CLOUD_TICKS]
    day = season[0]
    while day <= season[1]:
        following = (day.replace(day=1) + dt.timedelta(32)).replace(day=1)
        left, right = (_across((at - season[0]).days, season) for at in (day, following))
        lines.append(f"M{left:g} {_TOP}V{_BOTTOM}")
        month = _MONTHS[day.month - 1]
        if _length(month) < right - left:
            parts.append(_text((left + right) / 2, _MONTH_Y, month, "middle", 12))
        day = following
    lines.append(f"M{_RIGHT} {_TOP}V{_BOTTOM}")
    parts.insert(0, f'<path d="{"".join(lines)}" stroke="{_GRID}"/>')
    if max_cloud_cover is not None:
        y = _height(max_cloud_cover)
        parts.append(f'<path d="M{_LEFT} {y}H{_RIGHT}" stroke="{_LIMIT}"/>')
        parts.append(_text(_RIGHT + 8, y, f"max {max_cloud_cover:.3g} %", fill=_LIMIT))
    return parts


def _labels(chosen: pd.DataFrame, season: tuple[dt.date, dt.date]) -> list[str]:
    """Position and date of the chosen scenes in a row above the plot, with lines to their dots."""
    scenes = [
        (dot_position(row["date"], row["cloud_cover"], season), f"{row['position']} {row['date']}")
        for _, row in chosen.iterrows()
    ]
    widths = [_length(words, 12) + 14 for _, words in scenes]
    parts, edge = [], 4.0
    for number, (((x, y), words), width) in enumerate(zip(scenes, widths, strict=True)):
        # as near to its dot as the labels on both sides allow
        left = min(max(x - width / 2, edge), _WIDTH - 4 - sum(widths[number:]))
        edge, middle = left + width, left + width / 2
        line = f"M{middle:g} {_LABEL_Y + 9}L{x} {_LABEL_Y + 19}V{y}"
        parts.append(f'<path d="{line}" fill="none" stroke="{_CHOSEN}"/>')
        parts.append(_text(middle, _LABEL_Y, words, "middle", 12, _CHOSEN))
    return parts


def _disc(x: float, y: float, radius: float, fill: str = "", more: str = "") -> str:
    if fill:
        more = f' fill="{fill}"{more}'
    return f'<circle cx="{x:g}" cy="{y:g}" r="{radius:g}"{more}/>'


def _text(x: float, y: float, words: str, anchor: str = "", size: int = 11, fill: str = "") -> str:
    more = f' text-anchor="{anchor}"' if anchor else ""
    more += f' font-size="{size}"' if size != 11 else ""
    more += f' fill="{fill}"' if fill else ""
    # the middle of a line of digits and capitals is some 0.36 of its size above its baseline
    return f'<text x="{x:g}" y="{y + 0.36 * size:g}"{more}>{html.escape(words)}</text>'


def _length(words: str, size: int = 11) -> float:
    """How wide a text is, near enough: Helvetica's letters are 0.55 of their size on average."""
    return 0.55 * size * len(words)


def _hex(colour: tuple[int, int, int]) -> str:
    return "#" + "".join(f"{part:02x}" for part in colour)
