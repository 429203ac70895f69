import datetime as dt
import itertools
import re
from dataclasses import dataclass
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crop_assets.hls import POSITIONS
from crop_assets.scenes.plots import coverage_colour, dot_position, season_chart
from crop_assets.scenes.selection import chosen_scenes, select_scenes, spread_scenes

SEASON = (dt.date(2022, 3, 1), dt.date(2022, 9, 30))
LADDER = [100, 90, 80, 70, 60, 50]
ORANGE, PURPLE, GREY = "#d94801", "#6a3d9a", "#aaa"


def scenes(*rows: tuple[str, float | None, float | None]) -> pd.DataFrame:
    """Scenes s0, s1, … from (date, cloud cover, coverage of the tile and of its chips)."""
    return pd.DataFrame(
        {
            "scene_id": [f"s{i}" for i in range(len(rows))],
            "date": [dt.date.fromisoformat(day) for day, _, _ in rows],
            "cloud_cover": [cloud for _, cloud, _ in rows],
            "spatial_coverage": [coverage for _, _, coverage in rows],
            "missing_bands": "",
            "chip_coverage": [coverage for _, _, coverage in rows],
        }
    )


def selected(*rows: tuple[str, float | None, float | None]) -> pd.DataFrame:
    return select_scenes(scenes(*rows), 5, LADDER, "lower")


@dataclass(frozen=True)
class Chart:
    """A chart as read back from its SVG."""

    root: ElementTree.Element

    @classmethod
    def read(cls, svg: bytes) -> "Chart":
        """Reads a chart, and checks that everything in it is inside of its 900 x 300."""
        chart = cls(ElementTree.fromstring(svg))
        assert (chart.root.get("width"), chart.root.get("height")) == ("900", "300")
        assert chart.texts
        assert chart.elements("path")
        for x, y, radius in chart.circles:
            assert radius < x < 900 - radius and radius < y < 300 - radius
        for left, right, y in chart.texts.values():
            assert 0 <= left < right <= 900 and 8 < y < 298
        for path in chart.elements("path"):
            assert all(0 <= float(number) <= 900 for number in re.findall(r"[\d.]+", path.attrib["d"]))
        return chart

    def elements(self, tag: str) -> list[ElementTree.Element]:
        return list(self.root.iter(f"{{http://www.w3.org/2000/svg}}{tag}"))

    @property
    def circles(self) -> list[tuple[float, float, float]]:
        return [(number(e, "cx"), number(e, "cy"), number(e, "r")) for e in self.elements("circle")]

    @property
    def texts(self) -> dict[str, tuple[float, float, float]]:
        """Left and right edge and baseline of each text, by an estimate of its width."""
        found = {}
        for element in self.elements("text"):
            words = element.text or ""
            width = 0.5 * len(words) * float(element.get("font-size", 11))
            share = {"end": 1.0, "middle": 0.5}.get(element.get("text-anchor", ""), 0.0)
            left = number(element, "x") - share * width
            found[words] = (left, left + width, number(element, "y"))
        return found

    def marks(self, x: float, y: float) -> list[tuple[str | None, str | None]]:
        """Fill and stroke of the circles around a point in the order of drawing; those of their group if they have
        none.
        """
        groups = {circle: group for group in self.elements("g") for circle in group}
        return [
            (e.get("fill") or groups[e].get("fill"), e.get("stroke") or groups[e].get("stroke"))
            for e in self.elements("circle")
            if (number(e, "cx"), number(e, "cy")) == (x, y)
        ]


def number(element: ElementTree.Element, name: str) -> float:
    return float(element.attrib[name])


def test_chosen_dots_are_where_their_dates_and_clouds_are() -> None:
    table = selected(
        ("2022-03-01", 0.0, 100.0),
        ("2022-06-16", 2.0, 92.0),
        ("2022-09-30", 5.0, 95.0),
        ("2022-05-01", 40.0, 100.0),
    )
    chart = Chart.read(season_chart(table, SEASON, "13TDE"))
    dots = []
    for row in chosen_scenes(table).itertuples():
        x, y = dot_position(row.date, row.cloud_cover, SEASON)
        ring, disc = chart.marks(x, y)
        assert ring == ("#fff", ORANGE)
        assert disc == (coverage_colour(row.spatial_coverage), "#08306b")
        dots.append((x, y))
    (x, y), others = dots[0], dots[1:]
    # the plot is 762 wide and 180 high: a day is 762 / 214, 5 % of clouds are the root of 0.05 of the height
    assert [(a - x, y - b) for a, b in others] == [(381, 25), (758, 40)]
    x, y = dot_position(dt.date(2022, 5, 1), 40, SEASON)
    assert chart.marks(x, y) == [("none", GREY)], "a scene that is not fit is hollow"


def test_what_covers_more_is_darker_and_what_is_unknown_is_not_blue() -> None:
    brightness = [sum(bytes.fromhex(coverage_colour(percent)[1:])) for percent in range(0, 101, 10)]
    assert brightness == sorted(set(brightness), reverse=True)
    red, _, blue = bytes.fromhex(coverage_colour(None)[1:])
    assert red > blue
    assert coverage_colour(float("nan")) == coverage_colour(None)


def test_the_line_of_the_limit_is_there_only_if_it_is_given() -> None:
    table = selected(("2022-04-01", 1.0, 100.0))
    without, with_limit = (Chart.read(season_chart(table, SEASON, "13TDE", limit)) for limit in (None, 5))
    lines = [
        [e.get("d") for e in chart.elements("path") if e.get("stroke") == PURPLE]
        for chart in (without, with_limit)
    ]
    assert lines == [[], [f"M68 {dot_position(SEASON[0], 5, SEASON)[1]}H830"]]
    assert with_limit.texts.keys() - without.texts.keys() == {"max 5 %"}


def test_bars_show_what_was_measured_over_the_chips() -> None:
    table = selected(("2022-04-01", 60.0, 100.0), ("2022-05-01", 1.0, 100.0), ("2022-06-01", None, 100.0))
    chart = season_chart(table, SEASON, "13TDE")
    assert b"over the chips" not in chart
    table["measured_percent"] = [99.0, float("nan"), 80.0]
    chart = Chart.read(season_chart(table, SEASON, "13TDE"))
    assert "over the chips" in chart.texts
    _, bars = [e.attrib["d"] for e in chart.elements("path") if e.get("stroke") == "#00796b"]
    expected = []
    for day, cloud, over_chips in ((dt.date(2022, 4, 1), 60, 1), (dt.date(2022, 6, 1), None, 20)):
        (x, y), (_, measured) = (dot_position(day, percent, SEASON) for percent in (cloud, over_chips))
        expected.append(f"M{x} {y}V{measured}M{x - 10} {measured}H{x + 10}")
    assert sorted(re.findall("M[^M]*M[^M]*", bars)) == sorted(expected)


def test_the_same_table_gives_the_same_bytes() -> None:
    table = selected(("2022-04-01", 1.0, 100.0), ("2022-05-01", 1.0, 100.0), ("2022-06-01", 1.0, 100.0))
    first = season_chart(table, SEASON, "13TDE", 5)
    assert season_chart(table.copy(), SEASON, "13TDE", 5) == first
    assert season_chart(table, SEASON, "13TDF", 5) != first


def test_a_season_without_scenes_and_one_without_a_choice() -> None:
    empty = Chart.read(season_chart(selected(), SEASON, "13TDE", 5))
    assert "no scenes" in empty.texts
    nothing_fit = Chart.read(season_chart(selected(("2022-04-01", 60.0, 100.0)), SEASON, "13TDE", 5))
    assert "no scenes" not in nothing_fit.texts
    assert len(nothing_fit.circles) == len(empty.circles) + 1
    for chart in (empty, nothing_fit):
        assert [e for e in chart.elements("path") if e.get("stroke") == ORANGE] == []


@pytest.mark.parametrize(
    "season", [SEASON, (SEASON[0], SEASON[0]), (dt.date(2022, 1, 1), dt.date(2022, 12, 31))]
)
@pytest.mark.parametrize(
    "days",
    [
        ("2022-03-01", "2022-03-02", "2022-03-03"),
        ("2022-09-28", "2022-09-29", "2022-09-30"),
        ("2022-06-01", "2022-06-05", "2022-06-09"),
        ("2022-03-01", "2022-09-29", "2022-09-30"),
    ],
)
def test_labels_of_close_dates_stand_side_by_side(days, season) -> None:
    table = selected(*((day, 0.0, 100.0) for day in days))
    assert list(chosen_scenes(table)["position"]) == list(POSITIONS)
    texts = Chart.read(season_chart(table, season, "13TDE", 5)).texts
    labels = [texts[f"{position} {day}"] for position, day in zip(POSITIONS, days, strict=True)]
    for (_, right, _), (left, _, _) in itertools.pairwise(labels):
        assert right + 5 < left
    assert len({y for _, _, y in labels}) == 1


def test_scenes_of_one_day_and_unknown_clouds_are_all_seen() -> None:
    alone = ("2022-04-10", 20.0, 100.0)
    x, y = dot_position(dt.date(2022, 4, 10), 20, SEASON)
    for count in (1, 2, 3):
        chart = Chart.read(season_chart(selected(*[alone] * count), SEASON, "13TDE"))
        assert [len(chart.marks(x + 10 * at, y)) for at in range(4)] == [1] * count + [0] * (4 - count)
    unknown = selected(("2022-05-01", None, 100.0), ("2022-06-01", 50.0, 100.0))
    chart = Chart.read(season_chart(unknown, SEASON, "13TDE"))
    x, y = dot_position(dt.date(2022, 5, 1), None, SEASON)
    assert chart.marks(x, y) == [("none", GREY)]
    assert "unknown" in chart.texts
    assert y < dot_position(dt.date(2022, 5, 1), 100, SEASON)[1] - 10


percents = st.none() | st.floats(0, 100)
days = st.dates(*SEASON).map(str)


@settings(max_examples=40)
@given(st.lists(st.tuples(days, percents, percents), max_size=30), st.sampled_from([None, 0, 5, 12.5, 100]))
def test_nothing_runs_out_of_any_picture(rows, limit) -> None:
    for table in (
        select_scenes(scenes(*rows), limit or 5, LADDER, "lower"),
        spread_scenes(scenes(*rows), limit or 5, 10, SEASON),
    ):
        Chart.read(season_chart(table, SEASON, "13TDE", limit))
        Chart.read(season_chart(table.assign(measured_percent=100.0), SEASON, "13TDE", limit))


def test_a_picture_of_a_long_season_stays_small() -> None:
    random = np.random.default_rng(1)
    dates = [str(SEASON[0] + dt.timedelta(int(day))) for day in random.integers(0, 214, 150)]
    table = selected(
        *((day, float(c), float(k)) for day, (c, k) in zip(dates, random.random((150, 2)) * 100, strict=True))
    )
    assert len(season_chart(table, SEASON, "13TDE", 5)) < 10_000
