"""`spread_scenes`: the three scenes that are jointly best for a tile's chips."""

import datetime as dt
import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crop_assets.hls import POSITIONS
from crop_assets.scenes.selection import chosen_scenes, select_scenes, spread_scenes
from crop_assets_tests.golden import published_scenes

SEASON = (dt.date(2022, 3, 1), dt.date(2022, 9, 30))
# days of 2022 in the middle of each third of the season of 214 days
IDEAL = ("2022-04-05", "2022-06-16", "2022-08-26")


def scenes(*rows: tuple[str, float | None, float | None]) -> pd.DataFrame:
    """Scenes s0, s1, … from (date, cloud cover, chip coverage)."""
    return pd.DataFrame(
        {
            "scene_id": [f"s{i}" for i in range(len(rows))],
            "date": [dt.date.fromisoformat(day) for day, _, _ in rows],
            "cloud_cover": [cloud for _, cloud, _ in rows],
            "spatial_coverage": 100.0,
            "missing_bands": "",
            "chip_coverage": [coverage for _, _, coverage in rows],
        }
    )


def spread(frame: pd.DataFrame, gap: int = 20) -> pd.DataFrame:
    return spread_scenes(frame, 5, gap, SEASON)


def chosen(table: pd.DataFrame) -> list[str]:
    return list(chosen_scenes(table)["scene_id"])


def ranking(frame: pd.DataFrame, gap: int) -> list[tuple[float, list[str]]]:
    """All triples of a few scenes that keep the gap, best first, after the score's definition in whole numbers."""
    length = (SEASON[1] - SEASON[0]).days + 1
    fit = []
    for row in frame.itertuples():
        if row.cloud_cover <= 5 and row.chip_coverage > 0:
            # the clear share in hundredths of a percent, and the middle of the day in sixths of a day
            clear, at = (
                round(row.chip_coverage * (100 - row.cloud_cover)),
                6 * (row.date - SEASON[0]).days + 3,
            )
            fit.append((row.date, row.scene_id, clear, at))
    # the clearest of each day
    fit.sort(key=lambda scene: (scene[0], -scene[2], scene[1]))
    fit = [next(of_day) for _, of_day in itertools.groupby(fit, key=lambda scene: scene[0])]
    ranked = []
    for three in itertools.combinations(fit, 3):
        dates = [date for date, *_ in three]
        if min((b - a).days for a, b in itertools.pairwise(dates)) < gap:
            continue
        off = sum(abs(at - length * sixth) for (*_, at), sixth in zip(three, (1, 3, 5), strict=True))
        score = three[0][2] * three[1][2] * three[2][2] * (9 * length - off)
        ranked.append((-score, dates, [name for _, name, *_ in three]))
    return [(-score / (9e10 * length), names) for score, _, names in sorted(ranked)]


# whole percents that repeat, for ties; days that repeat
days = st.dates(*SEASON).map(str) | st.sampled_from([*IDEAL, "2022-04-06", "2022-06-15"])
percents = st.sampled_from([0, 50, 99, 100]) | st.integers(0, 100)
many_scenes = st.lists(st.tuples(days, st.integers(0, 7), percents), max_size=14)
gaps = st.integers(0, 80)


@given(many_scenes, gaps)
def test_it_is_the_triple_that_brute_force_finds(rows, gap) -> None:
    frame = scenes(*rows)
    table = spread(frame, gap)
    ranked = ranking(frame, gap)
    assert chosen(table) == (ranked[0][1] if ranked else [])
    dates = list(chosen_scenes(table)["date"])
    assert all((b - a).days >= max(gap, 1) for a, b in itertools.pairwise(dates))
    assert set(table.loc[table["position"] != "", "position"]) in (set(), set(POSITIONS))


@given(many_scenes, gaps)
def test_reasons_and_notes_have_the_scores_that_brute_force_finds(rows, gap) -> None:
    frame = scenes(*rows)
    table = spread(frame, gap)
    ranked = ranking(frame, gap)
    if not ranked:
        return
    assert table["fit"].sum() >= 3
    for row in table[table["fit"]].itertuples():
        best = next((score for score, names in ranked if row.scene_id in names), None)
        if row.position:
            assert f"the three score {ranked[0][0]:.2f} of 100" in row.note
            assert row.note.endswith(
                f"with {ranked[1][0]:.2f}" if len(ranked) > 1 else "no other three keep the gap"
            )
        elif best is None:
            assert row.reason.startswith("no three scenes with it")
        else:
            assert row.reason.startswith(f"the best three with it score {best:.2f}")


@given(many_scenes, gaps, st.randoms(use_true_random=False))
def test_it_depends_neither_on_order_nor_on_duplicates(rows, gap, random) -> None:
    frame = scenes(*rows)
    shuffled = pd.concat([frame, frame.sample(frac=0.5, random_state=1)])
    order = list(range(len(shuffled)))
    random.shuffle(order)
    pd.testing.assert_frame_equal(spread(shuffled.iloc[order], gap), spread(frame, gap))


unfit = {
    "cloudy": {"cloud_cover": 5.01},
    "cloud cover unknown": {"cloud_cover": None},
    "chip coverage unknown": {"chip_coverage": None},
    "beside the chips": {"chip_coverage": 0.0},
    "without a band": {"missing_bands": "B11"},
    "out of season": {"date": dt.date(2022, 2, 28)},
}


@given(many_scenes, gaps, days, st.sampled_from(sorted(unfit)))
def test_a_scene_that_is_not_fit_changes_nothing_else(rows, gap, day, why) -> None:
    frame = scenes(*rows)
    useless = scenes((day, 0.0, 100.0)).assign(scene_id="useless", **unfit[why])
    before, after = spread(frame, gap), spread(pd.concat([frame, useless]), gap)
    assert not after.loc[after["scene_id"] == "useless", "fit"].any()
    rest = after[after["scene_id"] != "useless"].reset_index(drop=True)
    pd.testing.assert_frame_equal(rest, before, check_dtype=False)


@given(many_scenes, gaps, st.data())
def test_without_scenes_that_are_not_chosen_the_same_are_chosen(rows, gap, data) -> None:
    frame = scenes(*rows)
    ours = chosen(spread(frame, gap))
    others = sorted(set(frame["scene_id"]) - set(ours))
    gone = data.draw(st.sets(st.sampled_from(others))) if others else set()
    assert chosen(spread(frame[~frame["scene_id"].isin(gone)], gap)) == ours


@given(many_scenes, gaps)
def test_every_scene_has_either_a_note_or_a_reason(rows, gap) -> None:
    table = spread(scenes(*rows), gap)
    taken = table["position"] != ""
    assert ((table["note"] != "") == taken).all()
    assert ((table["reason"] == "") == taken).all()
    assert table["coverage_step"].isna().all()
    assert table.loc[taken, "fit"].all()


def test_three_clear_scenes_on_the_ideal_days_score_nearly_100() -> None:
    table = spread(scenes(*((day, 0, 100) for day in IDEAL)))
    assert chosen(table) == ["s0", "s1", "s2"]
    assert list(table["note"]) == [
        f"clear over 100 % of the chips, 0 days from {sixths}/6 of the season; the three score 99.74 of 100; "
        "no other three keep the gap"
        for sixths in (1, 3, 5)
    ]


def test_notes_and_reasons_tell_the_scores() -> None:
    table = spread(
        scenes(
            (IDEAL[0], 0, 100),
            ("2022-04-10", 4, 50),
            (IDEAL[1], 0, 100),
            (IDEAL[2], 0, 90),
            ("2022-08-27", 0, 90),
            ("2022-08-30", 5, 100),
            ("2022-09-30", 0, 100),
        )
    ).set_index("scene_id")
    # 0.95 for clouds costs less than 0.9 for coverage, and four days more than none
    assert table["position"]["s5"] == "last"
    assert table["clear_percent"].tolist() == [100, 48, 100, 90, 90, 95, 100]
    # from the middle of a day to 1/6, 3/6 and 5/6 of 214 days
    score = 95 * (1 - 2 / 3 * (1 / 6 + 1 / 2 + 25 / 6) / 214)
    assert table["note"]["s5"] == (
        f"clear over 95 % of the chips, 4 days from 5/6 of the season; the three score {score:.2f} of 100; "
        "next best: 2022-04-05, 2022-06-16, 2022-08-26 with 89.77"
    )
    assert table["reason"]["s3"] == f"the best three with it score 89.77, those taken {score:.2f}"
    assert table["reason"]["s1"].startswith("the best three with it score 44.")


def test_a_tie_goes_to_the_earliest_date_and_then_id() -> None:
    # 2022-06-15 and 06-16 lie equally far from the middle of the season
    rows = scenes(
        (IDEAL[0], 0, 90), (IDEAL[1], 0, 90), ("2022-06-15", 0, 90), (IDEAL[2], 0, 90), (IDEAL[0], 0, 90)
    )
    table = spread(rows)
    assert chosen(table) == ["s0", "s2", "s3"]
    assert "come later by date or id" in table.set_index("scene_id")["reason"]["s1"]
    assert table.set_index("scene_id")["reason"]["s4"] == "another scene of that day"
    # the same product in another order of its factors
    rows = scenes(
        (IDEAL[0], 3, 97), (IDEAL[0], 1, 89), (IDEAL[1], 3, 97), (IDEAL[1], 1, 89), (IDEAL[2], 1, 89)
    )
    assert chosen(spread(rows)) == ["s0", "s2", "s4"]


def test_without_three_fit_scenes_nothing_is_chosen() -> None:
    table = spread(scenes((IDEAL[0], 0, 100), (IDEAL[1], 0, 100), (IDEAL[2], 6, 100)))
    assert chosen(table) == []
    assert list(table["reason"]) == ["only 2 of 3 scenes are fit"] * 2 + ["cloud cover 6 > 5"]
    assert spread(scenes()).empty
    assert set(spread(scenes()).columns) == set(select_scenes(scenes(), 5, [100], "lower").columns)


def test_where_no_three_keep_the_gap_the_largest_gap_is_told() -> None:
    rows = scenes(
        ("2022-04-01", 0, 100), ("2022-04-11", 0, 100), ("2022-04-16", 0, 100), ("2022-04-27", 0, 100)
    )
    table = spread(rows)
    assert chosen(table) == []
    assert set(table["reason"]) == {
        "no three of the 4 fit scenes keep a gap of 20 days: the largest possible is 11"
    }
    assert table["fit"].all()
    assert len(chosen(spread(rows, 11))) == 3


def test_of_one_day_the_clearest_scene_alone_is_fit() -> None:
    two_days = scenes(
        ("2022-04-01", 2, 98), ("2022-04-01", 0, 97), ("2022-04-16", 0, 100), ("2022-04-16", 6, 100)
    )
    table = spread(two_days, 0).set_index("scene_id")
    assert table["reason"].to_dict() == {
        "s0": "another scene of that day",
        "s1": "only 2 of 3 scenes are fit",
        "s2": "only 2 of 3 scenes are fit",
        "s3": "cloud cover 6 > 5",
    }
    assert list(table["fit"]) == [False, True, True, False]


def test_a_scene_too_close_to_all_others_says_so() -> None:
    rows = scenes((IDEAL[0], 0, 90), (IDEAL[1], 0, 90), ("2022-08-01", 0, 100), (IDEAL[2], 0, 90))
    reason = spread(rows, 60).set_index("scene_id")["reason"]["s2"]
    assert reason == "no three scenes with it keep a gap of 60 days"


def test_what_is_unknown_or_of_no_use_is_not_fit() -> None:
    frame = pd.concat(
        [scenes((IDEAL[0], 0.0, 100.0)).assign(scene_id=why, **column) for why, column in unfit.items()]
    )
    table = spread(frame).set_index("scene_id")
    assert not table["fit"].any()
    assert table["reason"].to_dict() == {
        "cloudy": "cloud cover 5.01 > 5",
        "cloud cover unknown": "cloud cover or chip coverage unknown",
        "chip coverage unknown": "cloud cover or chip coverage unknown",
        "beside the chips": "nothing of the chips is clear",
        "without a band": "without B11",
        "out of season": "not in the season",
    }
    assert table["clear_percent"].isna().sum() == 2


@pytest.mark.parametrize("cloud", [None, float("nan")])
def test_a_tile_of_which_no_cloud_cover_is_known(cloud: float | None) -> None:
    assert not spread(scenes(*((day, cloud, 100) for day in IDEAL)))["fit"].any()


def test_a_long_season_has_three_scenes() -> None:
    random = np.random.default_rng(1)
    dates = [str(SEASON[0] + dt.timedelta(int(day))) for day in random.integers(0, 214, 300)]
    frame = scenes(*((day, 0, share) for day, share in zip(dates, random.integers(1, 101, 300), strict=True)))
    assert len(chosen(spread(frame, 1))) == 3


def test_19_real_tiles_get_what_brute_force_finds() -> None:
    candidates = published_scenes()
    # the chips' own share is not in this table
    frame = candidates.assign(chip_coverage=candidates["spatial_coverage"])
    without = set()
    for tile, rows in frame.groupby("tile"):
        ranked = ranking(rows, 20)
        assert chosen(spread(rows)) == (ranked[0][1] if ranked else [])
        if not chosen(spread(rows)):
            without.add(tile)
    assert len(without) < 5
