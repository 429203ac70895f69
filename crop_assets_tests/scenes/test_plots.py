import datetime as dt
import io
import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from crop_assets.hls import POSITIONS
from crop_assets.scenes.plots import coverage_colour, dot_position, season_picture
from crop_assets.scenes.selection import chosen_scenes, select_scenes, spread_scenes

SEASON = (dt.date(2022, 3, 1), dt.date(2022, 9, 30))
LADDER = [100, 90, 80, 70, 60, 50]
ORANGE, PURPLE, GREY, WHITE = (217, 72, 1), (106, 61, 154), (170, 170, 170), (255, 255, 255)


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


def pixels(png: bytes) -> NDArray[np.uint8]:
    """The picture as an array, after a look at what holds for every one."""
    image = Image.open(io.BytesIO(png))
    assert (image.format, image.size, image.mode) == ("PNG", (900, 300), "RGB")
    array = np.asarray(image)
    for edge in (array[:3], array[-3:], array[:, :3], array[:, -3:]):
        assert (edge == 255).all(), "something runs out of the picture"
    return array


def like(array: NDArray[np.uint8], colour: tuple[int, int, int]) -> NDArray[np.bool_]:
    """Pixels of about this colour; thin strokes are mixed with white."""
    return (np.abs(array.astype(int) - colour) < 60).all(axis=-1)


def test_chosen_dots_are_where_their_dates_and_clouds_are() -> None:
    table = selected(
        ("2022-03-01", 0.0, 100.0),
        ("2022-06-16", 2.0, 92.0),
        ("2022-09-30", 5.0, 95.0),
        ("2022-05-01", 40.0, 100.0),
    )
    array = pixels(season_picture(table, SEASON, "13TDE"))
    dots = []
    for row in chosen_scenes(table).itertuples():
        x, y = dot_position(row.date, row.cloud_cover, SEASON)
        assert tuple(array[y, x]) == coverage_colour(row.spatial_coverage)
        # white, then a ring, all around
        for way in ((0, 1), (1, 0), (-1, 0)):
            assert tuple(array[y + 6 * way[1], x + 6 * way[0]]) == WHITE
            assert tuple(array[y + 8 * way[1], x + 8 * way[0]]) == ORANGE
        dots.append((x, y))
    (x, y), others = dots[0], dots[1:]
    # the plot is 762 wide and 180 high: a day is 762 / 214, 5 % of clouds are the root of 0.05 of the height
    assert [(a - x, y - b) for a, b in others] == [(381, 25), (758, 40)]
    x, y = dot_position(dt.date(2022, 5, 1), 40, SEASON)
    assert tuple(array[y, x]) == (229, 229, 229), "a scene that is not fit is hollow: the grid shows"
    assert tuple(array[y - 4, x]) == GREY


def test_what_covers_more_is_darker_and_what_is_unknown_is_not_blue() -> None:
    brightness = [sum(coverage_colour(percent)) for percent in range(0, 101, 10)]
    assert brightness == sorted(set(brightness), reverse=True)
    red, _, blue = coverage_colour(None)
    assert red > blue
    assert coverage_colour(float("nan")) == coverage_colour(None)


def test_the_line_of_the_limit_is_there_only_if_it_is_given() -> None:
    table = selected(("2022-04-01", 1.0, 100.0))
    without, with_limit = (pixels(season_picture(table, SEASON, "13TDE", limit)) for limit in (None, 5))
    assert not (without == PURPLE).all(axis=-1).any()
    _, y = dot_position(SEASON[0], 5, SEASON)
    assert (with_limit[y, 70:828] == PURPLE).all()


def test_the_same_table_gives_the_same_bytes() -> None:
    table = selected(("2022-04-01", 1.0, 100.0), ("2022-05-01", 1.0, 100.0), ("2022-06-01", 1.0, 100.0))
    first = season_picture(table, SEASON, "13TDE", 5)
    assert season_picture(table.copy(), SEASON, "13TDE", 5) == first
    assert season_picture(table, SEASON, "13TDF", 5) != first


def test_a_season_without_scenes_and_one_without_a_choice() -> None:
    empty = pixels(season_picture(selected(), SEASON, "13TDE", 5))
    assert not like(empty[30:], ORANGE).any()
    nothing_fit = pixels(season_picture(selected(("2022-04-01", 60.0, 100.0)), SEASON, "13TDE", 5))
    assert not like(nothing_fit[30:], ORANGE).any()
    assert (empty != nothing_fit).any()


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
    row = like(pixels(season_picture(table, season, "13TDE", 5))[38:52], ORANGE).any(axis=0)
    # within a label the largest blank is narrower than between two
    columns = np.flatnonzero(row)
    assert sum(b - a > 10 for a, b in itertools.pairwise(columns)) == 2


def test_scenes_of_one_day_and_unknown_clouds_are_all_seen() -> None:
    alone = ("2022-04-10", 20.0, 100.0)
    one, two, three = (
        np.count_nonzero(like(pixels(season_picture(table, SEASON, "13TDE"))[60:275], GREY))
        for table in (selected(alone), selected(alone, alone), selected(alone, alone, alone))
    )
    assert one < two < three
    unknown = selected(("2022-05-01", None, 100.0), ("2022-06-01", 50.0, 100.0))
    array = pixels(season_picture(unknown, SEASON, "13TDE"))
    x, y = dot_position(dt.date(2022, 5, 1), None, SEASON)
    assert tuple(array[y - 4, x]) == GREY
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
        pixels(season_picture(table, SEASON, "13TDE", limit))


def test_a_picture_of_a_long_season_stays_small() -> None:
    random = np.random.default_rng(1)
    dates = [str(SEASON[0] + dt.timedelta(int(day))) for day in random.integers(0, 214, 150)]
    table = selected(
        *((day, float(c), float(k)) for day, (c, k) in zip(dates, random.random((150, 2)) * 100, strict=True))
    )
    assert len(season_picture(table, SEASON, "13TDE", 5)) < 40_000
