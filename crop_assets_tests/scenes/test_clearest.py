"""`candidate_scenes` and `clearest_scenes`: three scenes by the Fmask of candidates over the chips."""

import datetime as dt
import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crop_assets.chips.quality import judge_chips
from crop_assets.hls import FMASK_COUNTS, POSITIONS
from crop_assets.scenes.selection import (
    QaLimits,
    candidate_scenes,
    chosen_scenes,
    clearest_scenes,
    select_scenes,
    spread_scenes,
)
from crop_assets_tests.scenes.test_spread import IDEAL, SEASON, scenes

PIXELS = 224 * 224
LENGTH = (SEASON[1] - SEASON[0]).days + 1
QA = QaLimits("class", 5.0, 0)
NOTHING = dict.fromkeys(FMASK_COUNTS, 0)


def fmasks(
    frame: pd.DataFrame, counts: dict[str, list[dict[str, int]]], problems: dict[str, str] | None = None
) -> pd.DataFrame:
    """The measured candidates: scene id -> counts of each chip; and those that could not be measured."""
    dates = dict(zip(frame["scene_id"], frame["date"], strict=True))
    chips = len(next(iter(counts.values()), [NOTHING]))
    ids = [f"chip_{number:03d}_000" for number in range(chips)]
    rows = [
        {**NOTHING, **of_chip, "scene_id": scene, "date": dates[scene], "chip_id": chip, "problem": ""}
        for scene, of_scene in counts.items()
        for chip, of_chip in zip(ids, of_scene, strict=True)
    ]
    rows += [
        {"scene_id": scene, "date": dates[scene], "chip_id": chip, "problem": why}
        for scene, why in (problems or {}).items()
        for chip in ids
    ]
    return pd.DataFrame(rows, columns=["scene_id", "date", "chip_id", *FMASK_COUNTS, "problem"])


def cloud(percent: float) -> dict[str, int]:
    pixels = round(PIXELS * percent / 100)
    return {"cloud": pixels, "bad": pixels, "worst_value": pixels}


def clearest(
    frame: pd.DataFrame, measured: pd.DataFrame, gap: int = 20, qa: QaLimits = QA, max_cloud: float = 5
) -> pd.DataFrame:
    return clearest_scenes(frame, measured, qa, max_cloud, gap, SEASON)


def chosen(table: pd.DataFrame) -> list[str]:
    return list(chosen_scenes(table)["scene_id"])


def passing(measured: pd.DataFrame, three: list[str], qa: QaLimits) -> pd.Series:
    """Whether each chip is kept with three scenes, as `filtered_chips` decides it; missing pixels are added."""
    wide = measured.pivot(index="chip_id", columns="scene_id", values=list(FMASK_COUNTS)).astype(int)
    facts = pd.DataFrame(
        {
            f"{name}_{position}": wide[name][scene]
            for position, scene in zip(POSITIONS, three, strict=True)
            for name in FMASK_COUNTS
        }
    ).reset_index()
    missing = np.minimum(sum(facts[f"fill_{position}"] for position in POSITIONS), PIXELS)
    facts = facts.assign(outcome="", fit_scenes=3, na_count=missing)
    return judge_chips(facts, qa.rule, qa.max_bad_percent, qa.max_na_pixels)["kept"]


def ranking(
    frame: pd.DataFrame, measured: pd.DataFrame, gap: int, qa: QaLimits
) -> list[tuple[float, list[str]]]:
    """The triples that keep the gap and let most chips pass, best first, by the score's definition."""
    dates = frame.drop_duplicates("scene_id").set_index("scene_id")["date"]
    shares = {}
    for scene, rows in measured.sort_values("chip_id").groupby("scene_id"):
        clear = PIXELS - rows["bad"].astype(int) - rows["fill"].astype(int)
        if clear.any():
            shares[scene] = [(int(pixels) * 10_000 + PIXELS // 2) // PIXELS for pixels in clear]
    order = sorted(shares, key=lambda scene: (dates[scene], scene))
    triples = []
    for three in itertools.combinations(order, 3):
        if min((dates[b] - dates[a]).days for a, b in itertools.pairwise(three)) >= max(gap, 1):
            kept = [bool(passes) for passes in passing(measured, list(three), qa)]
            triples.append((three, kept))
    most = max((sum(kept) for _, kept in triples), default=0)
    ranked = []
    for three, kept in triples:
        if sum(kept) < most:
            continue
        clear = sum(score_parts(shares, three, kept if most else [True] * len(kept)))
        middles = [6 * (dates[scene] - SEASON[0]).days + 3 for scene in three]
        off = sum(abs(at - LENGTH * sixth) for at, sixth in zip(middles, (1, 3, 5), strict=True))
        ranked.append((-clear * (9 * LENGTH - off), order.index(three[0]), list(three), len(kept)))
    ranked.sort(key=lambda row: (row[0], [order.index(scene) for scene in row[2]]))
    return [(-score / (9e10 * LENGTH * chips), names) for score, _, names, chips in ranked]


def score_parts(shares: dict[str, list[int]], three: tuple[str, ...], kept: list[bool]) -> list[int]:
    return [
        shares[three[0]][chip] * shares[three[1]][chip] * shares[three[2]][chip]
        for chip, passes in enumerate(kept)
        if passes
    ]


days = st.dates(*SEASON).map(str) | st.sampled_from([*IDEAL, "2022-04-06", "2022-06-15"])
# around the limit of 5 %, at the ends, and equal ones
bad_pixels = st.sampled_from([0, 0, 0, 2508, 2509, 30_000, PIXELS]) | st.integers(0, 5_000)


@st.composite
def worlds(draw: st.DrawFn) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scenes of a few days, and what was measured of all of them but some."""
    rows = draw(st.lists(st.tuples(days, st.integers(0, 30), st.integers(50, 100)), max_size=9))
    frame = scenes(*rows)
    chips = draw(st.integers(1, 3))
    counts: dict[str, list[dict[str, int]]] = {}
    problems = {}
    for scene in frame["scene_id"]:
        if draw(st.integers(0, 9)) == 0:
            problems[scene] = "no source has it"
            continue
        counts[scene] = []
        for _ in range(chips):
            cloudy, shadow = draw(bad_pixels), draw(st.sampled_from([0, 0, 100, 3_000]))
            bad = min(cloudy + shadow, PIXELS)
            fill = min(draw(st.sampled_from([0, 0, 0, 5, 20, PIXELS])), PIXELS - bad)
            worst = max(cloudy, shadow, fill)
            counts[scene].append(
                {"cloud": cloudy, "shadow": shadow, "snow": 0, "bad": bad, "worst_value": worst, "fill": fill}
            )
    return frame, fmasks(frame, counts, problems)


gaps = st.integers(0, 80)
limits = st.builds(
    QaLimits,
    st.sampled_from(["class", "value", "total"]),
    st.sampled_from([0.0, 5.0, 60.0, 100.0]),
    st.sampled_from([0, 10, PIXELS]),
)


def with_spread(frame: pd.DataFrame, measured: pd.DataFrame, gap: int, qa: QaLimits) -> int | None:
    """How many chips pass with the three of `season_spread`; None if there are none, or not all were measured."""
    three = chosen(spread_scenes(frame, 5, gap, SEASON))
    known = set(measured.loc[measured["problem"] == "", "scene_id"])
    if not three or not set(three) <= known:
        return None
    return int(passing(measured[measured["problem"] == ""], three, qa).sum())


@given(worlds(), gaps, limits)
def test_it_is_the_triple_that_brute_force_finds(world, gap, qa) -> None:
    frame, measured = world
    table = clearest(frame, measured, gap, qa)
    good = measured[measured["problem"] == ""]
    before = with_spread(frame, measured, gap, qa)
    ranked = ranking(frame, good, gap, qa)
    assert chosen(table) == (ranked[0][1] if ranked else [])
    selected = table[table["position"] != ""]
    assert ((table["note"] != "") == (table["position"] != "")).all()
    assert ((table["reason"] == "") == (table["position"] != "")).all()
    assert table.loc[table["position"] == "", ["chips_pass", "chips_pass_estimated"]].isna().all(axis=None)
    if not ranked:
        return
    after = int(passing(good, chosen(table), qa).sum())
    assert set(selected["chips_pass"]) == {after}
    assert after >= (before or 0)
    if before is None:
        assert selected["chips_pass_estimated"].isna().all()
    else:
        assert set(selected["chips_pass_estimated"]) == {before}
    for row in table[table["fit"]].itertuples():
        best = next((score for score, names in ranked if row.scene_id in names), None)
        if row.position:
            assert f"the three score {ranked[0][0]:.2f} of 100" in row.note
            alone = "with no other three do as many chips pass"
            assert row.note.endswith(f"with {ranked[1][0]:.2f}" if len(ranked) > 1 else alone)
        elif best is None:
            assert row.reason.startswith(("no three scenes with it", "chips that pass with it: at most "))
        else:
            assert row.reason.startswith(f"the best three with it score {best:.2f}")


@given(worlds(), gaps, limits, st.randoms(use_true_random=False))
def test_it_depends_neither_on_order_nor_on_duplicates(world, gap, qa, random) -> None:
    frame, measured = world
    twice = pd.concat([frame, frame.sample(frac=0.5, random_state=1)])
    rows, order = list(range(len(measured))), list(range(len(twice)))
    random.shuffle(rows)
    random.shuffle(order)
    pd.testing.assert_frame_equal(
        clearest(twice.iloc[order], measured.iloc[rows], gap, qa), clearest(frame, measured, gap, qa)
    )


@given(worlds(), limits)
def test_figures_of_each_scene_are_those_of_its_pixels(world, qa) -> None:
    frame, measured = world
    table = clearest(frame, measured, 20, qa).set_index("scene_id")
    for scene, rows in measured.groupby("scene_id"):
        if rows["problem"].iloc[0]:
            assert np.isnan(table["measured_percent"][scene])
            assert not table["fit"][scene]
            continue
        bad = rows[
            {"class": ["cloud", "shadow", "snow"], "value": ["worst_value"], "total": ["bad"]}[qa.rule]
        ]
        few = (bad.max(axis=1) * 100 / PIXELS <= qa.max_bad_percent) & (rows["fill"] <= qa.max_na_pixels)
        assert table["chips_clear"][scene] == few.sum()
        clear = 100 * (1 - (rows["bad"] + rows["fill"]).sum() / (PIXELS * len(rows)))
        assert table["measured_percent"][scene] == pytest.approx(clear, abs=0.0051)


def test_a_scene_that_is_cloudy_elsewhere_may_be_chosen() -> None:
    frame = scenes((IDEAL[0], 0, 100), (IDEAL[1], 1, 100), ("2022-06-20", 60, 100), (IDEAL[2], 0, 100))
    measured = fmasks(
        frame,
        {
            "s0": [cloud(0), cloud(0)],
            "s1": [cloud(0), cloud(6)],
            "s2": [cloud(0), cloud(0)],
            "s3": [cloud(0), cloud(1)],
        },
    )
    table = clearest(frame, measured).set_index("scene_id")
    assert list(table.index[table["position"] != ""]) == ["s0", "s2", "s3"]
    assert list(table["chips_clear"]) == [2, 1, 2, 2]
    assert list(table["measured_percent"]) == [100, 97, 100, 99.5]
    assert table["chips_pass"]["s2"] == 2
    assert table["chips_pass_estimated"]["s2"] == 1
    assert table["note"]["s2"].startswith(
        "clear over 100 % of the chips by Fmask, estimated 40 %, 4 days from 3/6 of the season; "
        "2 of 2 chips pass, 1 with the three of season_spread; the three score 98."
    )
    assert table["reason"]["s1"] == "chips that pass with it: at most 1, and 2 with those taken"


def test_chips_come_before_evenness_and_the_gap_decides_how_close_dates_may_be() -> None:
    close = ("2022-05-25", "2022-06-20", "2022-07-15")
    frame = scenes(*((day, 0, 100) for day in close), *((day, 50, 100) for day in IDEAL))
    clear, missed = [cloud(0)] * 10, [cloud(10)] + [cloud(0)] * 9
    measured = fmasks(frame, {f"s{number}": clear if number < 3 else missed for number in range(6)})
    table = clearest(frame, measured)
    assert chosen(table) == ["s0", "s1", "s2"]
    assert table["note"].max().endswith("; with no other three do as many chips pass")
    reasons = table.set_index("scene_id")["reason"]
    assert {reasons[f"s{number}"] for number in (3, 4, 5)} == {
        "chips that pass with it: at most 9, and 10 with those taken"
    }
    assert chosen(clearest(frame, measured, 50)) == ["s3", "s4", "s5"]
    # the three of season_spread are too cloudy, and there are none
    frame.loc[:2, "cloud_cover"] = 50
    table = clearest(frame, measured)
    assert table["chips_pass_estimated"].isna().all()
    assert "10 of 10 chips pass, season_spread has no three that were measured; " in table["note"].max()


def test_a_tie_goes_to_the_earliest_date_and_then_id() -> None:
    # 2022-06-15 and 06-16 are equally far from the middle of the season
    frame = scenes(
        (IDEAL[0], 0, 90), (IDEAL[1], 0, 90), ("2022-06-15", 0, 90), (IDEAL[2], 0, 90), (IDEAL[2], 0, 90)
    )
    table = clearest(frame, fmasks(frame, {f"s{number}": [cloud(1)] for number in range(4)}))
    assert chosen(table) == ["s0", "s2", "s3"]
    reasons = table.set_index("scene_id")["reason"]
    assert "come later by date or id" in reasons["s1"]
    assert reasons["s4"] == "another scene of that day"


def test_where_no_chip_passes_the_clearest_are_chosen() -> None:
    frame = scenes((IDEAL[0], 0, 100), ("2022-06-12", 0, 100), (IDEAL[1], 0, 100), (IDEAL[2], 0, 100))
    measured = fmasks(frame, {"s0": [cloud(40)], "s1": [cloud(10)], "s2": [cloud(50)], "s3": [cloud(20)]})
    table = clearest(frame, measured)
    assert chosen(table) == ["s0", "s1", "s3"]
    assert set(table["chips_pass"].dropna()) == {0}


def test_reasons_of_scenes_that_are_not_fit() -> None:
    frame = pd.concat(
        [
            scenes((IDEAL[0], 0, 100), (IDEAL[1], 0, 100), (IDEAL[2], 0, 100), ("2022-05-01", 0, 100)),
            scenes(("2022-05-02", 100, 100)).assign(scene_id="overcast"),
            scenes(("2022-05-03", 0, 100)).assign(scene_id="bandless", missing_bands="B11"),
            scenes(("2022-05-04", None, 100)).assign(scene_id="unknown"),
            scenes(("2022-02-04", 0, 100)).assign(scene_id="early"),
            scenes(("2022-05-05", 50, 100)).assign(scene_id="surplus"),
        ]
    )
    counts = {"s0": [cloud(0)], "s1": [cloud(0)], "s3": [cloud(100)]}
    table = clearest(frame, fmasks(frame, counts, {"s2": "404: nobody has it"}))
    assert chosen(table) == []
    assert table.set_index("scene_id")["reason"].to_dict() == {
        "early": "not in the season",
        "s0": "only 2 of 3 scenes are fit",
        "s1": "only 2 of 3 scenes are fit",
        "s2": "its Fmask could not be measured: 404: nobody has it",
        "s3": "nothing of the chips is clear by its Fmask",
        "overcast": "nothing of the chips is clear",
        "bandless": "without B11",
        "unknown": "cloud cover or chip coverage unknown",
        "surplus": "not among the candidates that were measured",
    }


def test_a_gap_that_no_three_keep() -> None:
    frame = scenes(("2022-04-01", 0, 100), ("2022-04-11", 0, 100), ("2022-04-25", 0, 100))
    measured = fmasks(frame, {f"s{number}": [cloud(0)] for number in range(3)})
    table = clearest(frame, measured)
    assert set(table["reason"]) == {
        "no three of the 3 fit scenes keep a gap of 20 days: the largest possible is 10"
    }
    assert len(chosen(clearest(frame, measured, 10))) == 3


def test_nothing_was_measured() -> None:
    for frame in (scenes(), scenes((IDEAL[0], 0, 100))):
        table = clearest(frame, fmasks(frame, {}))
        assert set(table.columns) == set(select_scenes(frame, 5, [100], "lower").columns)
        assert chosen(table) == []


def test_missing_pixels_of_three_dates_are_added() -> None:
    frame = scenes(*((day, 0, 100) for day in IDEAL))
    measured = fmasks(frame, {f"s{number}": [{"fill": 4}] for number in range(3)})
    assert set(clearest(frame, measured, qa=QaLimits("class", 5, 12))["chips_pass"]) == {1}
    assert set(clearest(frame, measured, qa=QaLimits("class", 5, 11))["chips_pass"]) == {0}


def test_a_hundred_candidates_of_a_full_tile() -> None:
    random = np.random.default_rng(5)
    dates = sorted(random.choice(214, 100, replace=False))
    frame = scenes(*((str(SEASON[0] + dt.timedelta(int(day))), 3, 100) for day in dates))
    bad = random.choice([0, 0, 0, 6], (100, 300))
    counts = {f"s{number}": [cloud(percent) for percent in bad[number]] for number in range(100)}
    measured = fmasks(frame, counts)
    table = clearest(frame, measured)
    three = chosen(table)
    good = bad == 0
    pass_with = lambda names: int(np.all([good[int(name[1:])] for name in names], axis=0).sum())  # noqa: E731
    assert set(table["chips_pass"].dropna()) == {pass_with(three)}
    # no other scene in place of one of them leaves more chips, or as many on more even dates
    score = float(
        table.loc[table["position"] == "first", "note"].iloc[0].split("the three score ")[1].split()[0]
    )
    for place, name in itertools.product(range(3), frame["scene_id"]):
        other = [*three[:place], name, *three[place + 1 :]]
        at = [dates[int(scene[1:])] for scene in other]
        if min(b - a for a, b in itertools.pairwise(at)) < 20:
            continue
        off = sum(abs(6 * day + 3 - LENGTH * sixth) for day, sixth in zip(at, (1, 3, 5), strict=True))
        even = 100 * pass_with(other) / 300 * (1 - off / (9 * LENGTH))
        assert pass_with(other) < pass_with(three) or even <= score + 0.005
    assert pass_with(three) > pass_with(chosen(spread_scenes(frame, 5, 20, SEASON)))


# candidates


def candidates(frame: pd.DataFrame, most: int = 24, gap: int = 20) -> list[str]:
    return list(candidate_scenes(frame, most, 5, gap, SEASON)["scene_id"])


many = st.lists(st.tuples(days, st.integers(0, 100), st.integers(0, 100)), max_size=40)


@given(many, st.integers(3, 30), gaps)
def test_candidates_are_few_usable_and_of_every_third(rows, most, gap) -> None:
    frame = scenes(*rows)
    found = candidates(frame, most, gap)
    usable = frame[(frame["cloud_cover"] < 100) & (frame["chip_coverage"] > 0)]
    # an estimate below 0.005 % is none
    usable = usable[(usable["chip_coverage"] * (1 - usable["cloud_cover"] / 100)).round(2) > 0]
    assert set(found) <= set(usable["scene_id"])
    taken = frame[frame["scene_id"].isin(found)]
    assert not taken["date"].duplicated().any()
    assert len(found) == min(most, usable["date"].nunique())
    third = lambda date: 3 * (date - SEASON[0]).days // LENGTH  # noqa: E731
    if most >= 6:
        assert set(map(third, taken["date"])) == set(map(third, usable["date"]))
    assert set(chosen(spread_scenes(frame, 5, gap, SEASON))) <= set(found)
    dates = frame.set_index("scene_id")["date"]
    assert found == sorted(found, key=lambda scene: (dates[scene], scene))


@given(many, st.integers(3, 20), st.randoms(use_true_random=False))
def test_candidates_depend_neither_on_order_nor_on_duplicates(rows, most, random) -> None:
    frame = scenes(*rows)
    order = [*range(len(frame)), *range(0, len(frame), 2)]
    random.shuffle(order)
    assert candidates(frame.iloc[order], most) == candidates(frame, most)


def test_the_clearest_of_each_third_come_in_turn() -> None:
    months = [("2022-03", 0), ("2022-06", 40), ("2022-08", 80)]
    rows = [(f"{month}-{day:02d}", least + day, 100) for month, least in months for day in (1, 3, 5, 7)]
    frame = scenes(*rows)
    # s0 to s3 are of March, s4 to s7 of June, s8 to s11 of August; none of season_spread, whose scenes are clear
    assert candidates(frame, 3) == ["s0", "s4", "s8"]
    assert candidates(frame, 7) == ["s0", "s1", "s2", "s4", "s5", "s8", "s9"]


def test_the_three_of_season_spread_are_candidates_in_place_of_clearer_ones_of_their_day() -> None:
    frame = scenes(
        *((day, 0, 90) for day in IDEAL),
        # by the estimate clearer, but above the limit of 5 % cloud cover
        *((day, 6, 100) for day in IDEAL),
    )
    assert candidates(frame) == ["s0", "s1", "s2"]
