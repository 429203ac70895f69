"""Selects the three scenes of a tile.

`select_scenes` selects the first, middle and last fit scene, as the specification requires; `spread_scenes` selects the
three that are jointly best for the tile's chips.
"""

import datetime as dt
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from crop_assets.hls import POSITIONS

# three evenly spaced dates: the middle of each third of the season, in sixths of it
_IDEAL_SIXTHS = (1, 3, 5)
_PERCENTS = ("cloud_cover", "spatial_coverage", "chip_coverage")
_ANOTHER = "another scene of that day"


def select_scenes(
    scenes: pd.DataFrame,
    max_cloud_cover: float,
    coverage_ladder: Sequence[float],
    middle: Literal["lower", "upper"],
) -> pd.DataFrame:
    """The first, middle and last fit scene by date, and for every other scene the reason why it was not selected.

    `scenes` has the columns scene_id, date, cloud_cover and spatial_coverage (percent, may be
    missing), missing_bands, and may have chip_coverage, the percentage of the area of the tile's chips
    that the scene covers, and problem, what is wrong with its metadata. A percentage outside 0 to 100
    is unknown. A scene is fit with at most `max_cloud_cover` and at least the coverage of the highest
    rung of `coverage_ladder` on which scenes of three days are fit. Only one scene of a day is fit: the
    one with the highest coverage, then the least cloud, then the first id. With an even number of fit
    scenes, the lower or the upper of the two middle ones is selected: the specification requires the
    lower, the published dataset has the upper.

    Returns one row per distinct scene_id, by date and id, with the columns fit (bool), position (first,
    middle, last or ""), reason ("" if selected), coverage_step (the rung used, missing if fewer than
    three scenes are fit on the lowest), clear_percent (as in `spread_scenes`, missing without
    chip_coverage) and note (which of how many fit scenes this is and on which rung; "" if not selected).
    The result depends neither on the order of the rows nor on duplicates.
    """
    table = _distinct(scenes)
    # a comparison with a missing value is false, so a scene with unknown cloud or coverage is never fit
    clear = (table["cloud_cover"] <= max_cloud_cover) & (table["missing_bands"] == "")
    # the scene with the highest coverage is on every rung on which another of its day is
    best = _one_a_day(table[clear], ["spatial_coverage", "cloud_cover", "scene_id"], [False, True, True])
    another = clear & ~table.index.isin(best)
    clear &= ~another
    step, fit = coverage_ladder[-1], clear & (table["spatial_coverage"] >= coverage_ladder[-1])
    for rung in coverage_ladder:
        on_rung = clear & (table["spatial_coverage"] >= rung)
        if on_rung.sum() >= len(POSITIONS):
            step, fit = rung, on_rung
            break
    table["fit"] = fit
    table["reason"] = [
        _unfit(row, max_cloud_cover, "spatial_coverage") or (_ANOTHER if other else _too_little(row, step))
        for (_, row), other in zip(table.iterrows(), another, strict=True)
    ]
    chosen = list(table.index[fit])
    if len(chosen) < len(POSITIONS):
        table.loc[fit, "reason"] = f"only {len(chosen)} of 3 scenes are fit at coverage {step:g}"
        return table
    half = (len(chosen) - 1) // 2 if middle == "lower" else len(chosen) // 2
    table["coverage_step"] = float(step)
    table.loc[fit, "reason"] = "neither first, middle nor last"
    for position, at in zip(POSITIONS, (0, half, len(chosen) - 1), strict=True):
        note = f"number {at + 1} of {len(chosen)} fit scenes by date, at coverage {step:g}"
        table.loc[chosen[at], ["position", "reason", "note"]] = [position, "", note]
    return table


def listed_scenes(scenes: pd.DataFrame, name: str) -> pd.DataFrame:
    """The scenes of a list as first, middle and last by date; none is selected if there are fewer than three.

    `scenes` has the columns of `select_scenes`, at most three rows, and one for each day; `name` is that of the list,
    for reasons and notes. Returns the rows and columns of `select_scenes`; coverage_step is missing.
    """
    table = _distinct(scenes)
    table["fit"] = True
    if len(table) < len(POSITIONS):
        table["reason"] = f"only {len(table)} of 3 scenes are in {name}"
    else:
        table["position"], table["note"] = list(POSITIONS), f"in {name}"
    return table


def spread_scenes(
    scenes: pd.DataFrame, max_cloud_cover: float, min_gap_days: int, season: tuple[dt.date, dt.date]
) -> pd.DataFrame:
    """The three scenes that are jointly best for the tile's chips, and for every other the reason against it.

    `scenes` has the columns of `select_scenes`, with chip_coverage. The clear percentage of the chips' area
    is estimated before any file is fetched, as chip_coverage * (1 - cloud_cover / 100), to two decimals. A
    scene is fit with at most `max_cloud_cover`, all bands, a date in `season` (first and last day, both
    included) and a clear percentage above 0; with unknown cloud cover or chip coverage it is not. Only the
    clearest scene of a day is fit, then the first by id.

    Of all triples of fit scenes that are at least `min_gap_days` apart, the one with the highest score is
    selected; of equal scores, the earliest by date and then id:

        score (0 to 100) = 100 * clear * evenness
        clear    = product of the three clear shares
        evenness = 1 - 2 * mean distance of the dates from 1/6, 3/6 and 5/6 of the season, in seasons

    `clear` is the share of the chips' area that is clear on all three dates if clouds and edges fall
    independently of each other: a chip needs all three. `evenness` is 1 with a date in the middle of
    each third of the season, and falls to 0 towards three dates at one end of it. The product weighs
    both without another parameter: a date that is off by a quarter of the season costs as much as a
    scene that misses a sixth of the chips.

    Returns the rows and columns of `select_scenes`. coverage_step is missing; clear_percent is the
    estimate (missing if unknown); reason has the score of the best triple with the scene; note has the
    reason why a scene was selected, and the second-best triple. If no three scenes keep the gap, none is
    selected. The result depends neither on the order of the rows nor on duplicates.
    """
    table = _distinct(scenes)
    table["reason"] = [
        _unfit(row, max_cloud_cover, "chip_coverage") or _useless(row, season) for _, row in table.iterrows()
    ]
    useful = table[table["reason"] == ""]
    clearest = _one_a_day(useful, ["clear_percent", "scene_id"], [False, True])
    table.loc[table.index.isin(useful.index.difference(clearest)), "reason"] = _ANOTHER
    table["fit"] = table["reason"] == ""
    fit = table[table["fit"]]
    if len(fit) < len(POSITIONS):
        table.loc[fit.index, "reason"] = f"only {len(fit)} of 3 scenes are fit"
        return table
    days = np.array([(date - season[0]).days for date in fit["date"]], np.int64)
    length = (season[1] - season[0]).days + 1
    # with a gap of 0 a scene could follow itself
    gap = max(min_gap_days, 1)
    # integers, so that equal triples tie on any machine: hundredths of a percent and sixths of a day
    clear = (fit["clear_percent"] * 100).round().to_numpy(np.int64)
    off = np.abs(6 * days + 3 - length * np.array(_IDEAL_SIXTHS)[:, None])
    ranked, with_it = _best_triples(days, clear, off, length, gap)
    if not ranked:
        widest = int(np.minimum(days - days[0], days[-1] - days).max())
        table.loc[fit.index, "reason"] = (
            f"no three of the {len(fit)} fit scenes keep a gap of {gap} days: the largest possible is {widest}"
        )
        return table
    best, unit = ranked[0], 9e10 * length
    table.loc[fit.index, "reason"] = [_outdone(int(score), best.score, unit, gap) for score in with_it]
    runner_up = "no other three keep the gap"
    if len(ranked) > 1:
        dates = ", ".join(str(fit["date"].iloc[at]) for at in ranked[1].scenes)
        runner_up = f"next best: {dates} with {ranked[1].score / unit:.2f}"
    for position, sixths, at, apart in zip(POSITIONS, _IDEAL_SIXTHS, best.scenes, off, strict=True):
        note = (
            f"clear over {clear[at] / 100:g} % of the chips, {apart[at] / 6:.0f} days from {sixths}/6 of the season; "
            f"the three score {best.score / unit:.2f} of 100; {runner_up}"
        )
        table.loc[fit.index[at], ["position", "reason", "note"]] = [position, "", note]
    return table


class _Triple(NamedTuple):
    score: int
    scenes: tuple[int, int, int]


def _best_triples(
    days: NDArray[np.int64], clear: NDArray[np.int64], off: NDArray[np.int64], length: int, gap: int
) -> tuple[list[_Triple], NDArray[np.int64]]:
    """The best and second-best triple that keep the gap, and the highest score with each scene, or 0.

    Scenes are in order of `days`; `clear` is in hundredths of a percent, and `off`, [3, scenes], is the
    distance from the three ideal dates in sixths of a day. A score has the unit 1 / (9e10 * `length`); the
    largest is about 4e15. All first and last scenes for one middle scene are compared at once, so memory
    grows with the square of the number of scenes, not with its cube.
    """
    best: list[_Triple] = []
    with_it = np.zeros(len(days), np.int64)
    ends, starts = np.searchsorted(days, days - gap, "right"), np.searchsorted(days, days + gap, "left")
    for middle, (end, start) in enumerate(zip(ends, starts, strict=True)):
        if end == 0 or start == len(days):
            continue
        # three dates at one end of the season are off by 9 x its length
        evenness = 9 * length - off[1, middle] - off[0, :end, None] - off[2, start:]
        scores = clear[middle] * clear[:end, None] * clear[start:] * evenness
        with_it[middle] = max(with_it[middle], scores.max())
        with_it[:end] = np.maximum(with_it[:end], scores.max(axis=1))
        with_it[start:] = np.maximum(with_it[start:], scores.max(axis=0))
        for _ in range(min(2, scores.size)):
            first, last = np.unravel_index(scores.argmax(), scores.shape)
            best.append(_Triple(int(scores[first, last]), (int(first), middle, int(start + last))))
            scores[first, last] = -1
    return sorted(best, key=lambda triple: (-triple.score, triple.scenes))[:2], with_it


def _distinct(scenes: pd.DataFrame) -> pd.DataFrame:
    """One row per scene, by date and id, with clear_percent and nothing selected yet."""
    known = [column for column in _PERCENTS if column in scenes]
    # by all columns that a rule reads, so that the choice among duplicates does not depend on their order
    by = ["date", "scene_id", *known, "missing_bands", "problem"]
    table = scenes if "problem" in scenes else scenes.assign(problem="")
    table = table.astype(dict.fromkeys(known, float)).sort_values(by).drop_duplicates("scene_id")
    table = table.reset_index(drop=True)
    for column in known:
        wrong = table[column].notna() & ~table[column].between(0, 100)
        why = [f"{column.replace('_', ' ')} {value:g} is not from 0 to 100" for value in table[column][wrong]]
        earlier = table["problem"][wrong]
        table.loc[wrong, "problem"] = [f"{a}; {b}" if a else b for a, b in zip(earlier, why, strict=True)]
        table.loc[wrong, column] = float("nan")
    table["position"], table["reason"], table["note"] = "", "", ""
    table["coverage_step"], table["clear_percent"] = float("nan"), float("nan")
    if "chip_coverage" in table:
        table["clear_percent"] = (table["chip_coverage"] * (1 - table["cloud_cover"] / 100)).round(2)
    return table


def _one_a_day(scenes: pd.DataFrame, by: list[str], ascending: list[bool]) -> "pd.Index[int]":
    """The first row of each day in the order of these columns."""
    return scenes.sort_values(by, ascending=ascending).drop_duplicates("date").index


def _unfit(row: pd.Series, max_cloud_cover: float, coverage: str) -> str:
    if pd.isna(row["date"]):
        return str(row["problem"])
    if row["missing_bands"]:
        return f"without {row['missing_bands']}"
    if pd.isna(row["cloud_cover"]) or pd.isna(row[coverage]):
        unknown = f"cloud cover or {coverage.replace('_', ' ')} unknown"
        return f"{unknown}: {row['problem']}" if row["problem"] else unknown
    if row["cloud_cover"] > max_cloud_cover:
        return f"cloud cover {row['cloud_cover']:g} > {max_cloud_cover:g}"
    return ""


def _too_little(row: pd.Series, coverage: float) -> str:
    if row["spatial_coverage"] < coverage:
        return f"spatial coverage {row['spatial_coverage']:g} < {coverage:g}"
    return ""


def _useless(row: pd.Series, season: tuple[dt.date, dt.date]) -> str:
    if not season[0] <= row["date"] <= season[1]:
        return "not in the season"
    return "" if row["clear_percent"] > 0 else "nothing of the chips is clear"


def _outdone(score: int, best: int, unit: float, gap: int) -> str:
    if score == 0:
        return f"no three scenes with it keep a gap of {gap} days"
    if score == best:
        return f"the best three with it score {score / unit:.2f} too, but come later by date or id"
    return f"the best three with it score {score / unit:.2f}, those taken {best / unit:.2f}"


def chosen_scenes(selected: pd.DataFrame) -> pd.DataFrame:
    """The selected scenes in a result of `select_scenes` or `spread_scenes`, as first, middle, last; possibly none."""
    chosen = selected[selected["position"] != ""]
    return (
        chosen.set_index("position")
        .reindex([p for p in POSITIONS if p in set(chosen["position"])])
        .reset_index()
    )
