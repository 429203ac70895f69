"""Selects the three scenes of a tile.

`select_scenes` selects the first, middle and last fit scene, as the specification requires; `spread_scenes` selects the
three that are jointly best for the tile's chips by figures of the complete scenes, and `clearest_scenes` by the Fmask
of `candidate_scenes` over the chips.
"""

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from crop_assets.chip_grid import CHIP_SIZE
from crop_assets.hls import FMASK_COUNTS, POSITIONS, QA_COUNTS, QaRule

# three evenly spaced dates: the middle of each third of the season, in sixths of it
_IDEAL_SIXTHS = (1, 3, 5)
_PERCENTS = ("cloud_cover", "spatial_coverage", "chip_coverage")
_ANOTHER = "another scene of that day"
_PIXELS = CHIP_SIZE**2


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
    search = _Search.of(fit, season, min_gap_days)
    # integers, so that equal triples tie on any machine: hundredths of a percent
    clear = (fit["clear_percent"] * 100).round().to_numpy(np.int64)
    ranked, with_it = search.best(
        lambda first, middle, last: (
            clear[middle] * clear[first, None] * clear[last] * search.evenness(first, middle, last)
        )
    )
    if not ranked:
        table.loc[fit.index, "reason"] = search.no_three()
        return table
    best, unit = ranked[0], 9e10 * search.length
    table.loc[fit.index, "reason"] = [_outdone(int(score), best.score, unit, search.gap) for score in with_it]
    facts = [f"clear over {clear[at] / 100:g} % of the chips" for at in best.scenes]
    _place(table, fit, search, ranked, facts, unit)
    return table


def candidate_scenes(
    scenes: pd.DataFrame,
    max_candidates: int,
    max_cloud_cover: float,
    min_gap_days: int,
    season: tuple[dt.date, dt.date],
) -> pd.DataFrame:
    """The scenes that are worth measuring for `clearest_scenes`, by date and id: scene_id and date.

    Arguments are those of `spread_scenes`. A candidate has all bands, a date in `season`, and by the estimate of
    `spread_scenes` a clear percentage above 0. `max_cloud_cover` excludes none, because a scene that is cloudy
    elsewhere may be clear over the chips. One scene a day is a candidate, the clearest by the estimate, then the first
    by id. The three scenes of `spread_scenes` come first, so that the gain over them is known; then the clearest of
    each third of the season in turn, so that no third is without candidates that has any.
    """
    estimated = spread_scenes(scenes, max_cloud_cover, min_gap_days, season)
    table = _distinct(scenes).assign(others=(estimated["position"] == "").to_numpy())
    possible = table[np.array([not why for why in _no_candidates(table, season)], bool)]
    order = ["others", "clear_percent", "date", "scene_id"]
    ascending = [True, False, True, True]
    possible = possible.loc[_one_a_day(possible, order, ascending)].sort_values(order, ascending=ascending)
    length = (season[1] - season[0]).days + 1
    third = [3 * (date - season[0]).days // length for date in possible["date"]]
    turn = possible.groupby(third).cumcount().where(possible["others"], -1)
    chosen = possible.assign(turn=turn).sort_values(["turn", *order], ascending=[True, *ascending])
    return chosen.head(max_candidates).sort_values(["date", "scene_id"])[["scene_id", "date"]]


@dataclass(frozen=True)
class QaLimits:
    """Which chips the recipe keeps: its fields `qa_rule`, `max_bad_percent` and `max_na_pixels`."""

    rule: QaRule
    max_bad_percent: float
    max_na_pixels: int


def clearest_scenes(
    scenes: pd.DataFrame,
    fmasks: pd.DataFrame,
    qa: QaLimits,
    max_cloud_cover: float,
    min_gap_days: int,
    season: tuple[dt.date, dt.date],
) -> pd.DataFrame:
    """The three scenes that leave most of the tile's chips, by the Fmask of candidates over them.

    `scenes`, `max_cloud_cover`, `min_gap_days` and `season` are those of `spread_scenes`; `fmasks` has a row for each
    of `candidate_scenes` and chip, with the columns of CANDIDATE_FMASKS. A scene is fit if it was measured and any
    pixel of the chips is covered and clear. A chip passes with three scenes if `qa` keeps it by their Fmask; its
    missing pixels on the three dates are added, so that a pixel that is missing on two of them counts twice.

    Of all triples of fit scenes that are at least `min_gap_days` apart, those with which most chips pass are compared.
    The one with the highest score is selected; of equal scores, the earliest by date and then id:

        score (0 to 100) = 100 * clear * evenness
        clear    = mean over the chips of the product of the three clear shares, 0 for a chip that does not pass
        evenness = as in `spread_scenes`

    If no chip passes with any three, `clear` is the mean over all chips. Chips come before evenness, because
    `min_gap_days` says how close dates may be, and nothing else says how many chips evenness is worth.

    Returns the rows and columns of `select_scenes`. Scenes that were measured have measured_percent, the share of the
    chips' pixels that are covered and clear, and chips_clear, how many chips pass on this date. Selected scenes have
    chips_pass, how many chips pass with the three, and chips_pass_estimated, how many pass with the three of
    `spread_scenes`, which is missing if there are no such three or not all were measured. The result depends neither on
    the order of the rows nor on duplicates of scenes.
    """
    estimated = spread_scenes(scenes, max_cloud_cover, min_gap_days, season)
    table = _distinct(scenes)
    chips = _Chips.of(fmasks[fmasks["problem"] == ""], qa)
    number = {scene_id: at for at, scene_id in enumerate(chips.scenes)}
    problems = dict(zip(fmasks["scene_id"], fmasks["problem"], strict=True))
    days = set(fmasks["date"])
    measured = table["scene_id"].isin(chips.scenes)
    at = np.array([number[scene_id] for scene_id in table["scene_id"][measured]], np.intp)
    clear = chips.clear[at].sum(axis=1)
    table.loc[measured, "measured_percent"] = (clear * 100 / (_PIXELS * max(chips.count, 1))).round(2)
    table.loc[measured, "chips_clear"] = chips.pass_alone[at].sum(axis=1)
    for row, why in zip(table.index, _no_candidates(table, season), strict=True):
        scene_id = table["scene_id"][row]
        if not why and scene_id not in problems:
            why = _ANOTHER if table["date"][row] in days else "not among the candidates that were measured"
        elif not why and problems[scene_id]:
            why = f"its Fmask could not be measured: {problems[scene_id]}"
        elif not why and not chips.clear[number[scene_id]].any():
            why = "nothing of the chips is clear by its Fmask"
        table.loc[row, "reason"] = why
    table["fit"] = table["reason"] == ""
    fit = table[table["fit"]]
    if len(fit) < len(POSITIONS):
        table.loc[fit.index, "reason"] = f"only {len(fit)} of 3 scenes are fit"
        return table
    search = _Search.of(fit, season, min_gap_days)
    fit_chips = chips.of_scenes([number[scene_id] for scene_id in fit["scene_id"]])
    spread = [number[scene] for scene in chosen_scenes(estimated)["scene_id"] if scene in number]
    before = chips.passing(*spread) if len(spread) == len(POSITIONS) else None
    ranked, most_with = search.best(lambda *three: fit_chips.passing_with(*three).sum(axis=2))
    if not ranked:
        table.loc[fit.index, "reason"] = search.no_three()
        return table
    most = ranked[0].score
    clear_with = fit_chips.clear_with(most)
    ranked, with_it = search.best(
        lambda first, middle, last: clear_with(first, middle, last) * search.evenness(first, middle, last)
    )
    best, unit = ranked[0], 1e10 * 9 * search.length * fit_chips.count
    table.loc[fit.index, "reason"] = [
        f"chips that pass with it: at most {few}, and {most} with those taken"
        if _TOO_CLOSE < few < most
        else _outdone(int(score), best.score, unit, search.gap)
        for few, score in zip(most_with, with_it, strict=True)
    ]
    selected = fit.index[list(best.scenes)]
    table.loc[selected, "chips_pass"] = most
    than = "season_spread has no three that were measured"
    if before is not None:
        table.loc[selected, "chips_pass_estimated"] = before
        than = f"{before} with the three of season_spread"
    facts = [
        f"clear over {table['measured_percent'][row]:g} % of the chips by Fmask, estimated "
        f"{table['clear_percent'][row]:g} %"
        for row in selected
    ]
    outcome = f"{most} of {fit_chips.count} chips pass, {than}; "
    _place(table, fit, search, ranked, facts, unit, "with no other three do as many chips pass", outcome)
    return table


@dataclass(frozen=True)
class _Chips:
    """The chips of a tile in measured scenes, by id of both: arrays [scenes, chips] of whether few enough pixels are
    bad, and of the clear and the missing pixels.
    """

    scenes: list[str]
    good: NDArray[np.bool_]
    clear: NDArray[np.int64]
    fill: NDArray[np.int64]
    max_fill: int

    @classmethod
    def of(cls, fmasks: pd.DataFrame, qa: QaLimits) -> "_Chips":
        fmasks = fmasks.sort_values(["scene_id", "chip_id"])
        scenes = list(fmasks["scene_id"].unique())
        shape = len(scenes), fmasks["chip_id"].nunique()
        counts = {name: fmasks[name].to_numpy(np.int64).reshape(shape) for name in FMASK_COUNTS}
        bad = np.max([counts[name] for name in QA_COUNTS[qa.rule]], axis=0)
        # as `judge_chips` does, to the last bit
        good = bad.astype(np.float64) * 100 / _PIXELS <= qa.max_bad_percent
        return cls(scenes, good, _PIXELS - counts["bad"] - counts["fill"], counts["fill"], qa.max_na_pixels)

    def of_scenes(self, numbers: list[int]) -> "_Chips":
        scenes = [self.scenes[number] for number in numbers]
        return _Chips(scenes, self.good[numbers], self.clear[numbers], self.fill[numbers], self.max_fill)

    @property
    def count(self) -> int:
        return int(self.good.shape[1])

    @property
    def pass_alone(self) -> NDArray[np.bool_]:
        return self.good & (self.fill <= self.max_fill)

    def passing(self, first: int, middle: int, last: int) -> int:
        """How many chips pass with three scenes."""
        return int(self.passing_with(slice(first, first + 1), middle, slice(last, last + 1)).sum())

    def passing_with(self, first: slice, middle: int, last: slice) -> NDArray[np.int64]:
        """1 for a chip that passes with a first, a middle and a last scene, or 0: [first, last, chips]."""
        good: NDArray[np.bool_] = self.good[first, None] & self.good[middle] & self.good[None, last]
        if self.max_fill < _PIXELS:
            good &= self.fill[first, None] + self.fill[middle] + self.fill[None, last] <= self.max_fill
        return good.astype(np.int64)

    def clear_with(self, most: int) -> Callable[[slice, int, slice], NDArray[np.int64]]:
        """A function of first scenes, a middle and last scenes that returns, [first, last], the product of the three
        clear shares in 1e-12, summed over the chips that pass, or over all chips if `most` is 0; negative where fewer
        than `most` pass.
        """
        # hundredths of a percent: for 335 chips, the most that touch a tile, and a season of a year the score is below
        # 2 ** 60
        share = (self.clear * 10_000 + _PIXELS // 2) // _PIXELS

        def clear(first: slice, middle: int, last: slice) -> NDArray[np.int64]:
            passing = self.passing_with(first, middle, last)
            product = share[first, None] * share[middle] * share[None, last]
            found = (product * passing if most else product).sum(axis=2)
            return np.where(passing.sum(axis=2) < most, -1, found)

        return clear


class _Triple(NamedTuple):
    score: int
    scenes: tuple[int, int, int]


_TOO_CLOSE = -1
"""Instead of the best score with a scene: no three with it keep the gap, or none that do have a score."""


@dataclass(frozen=True)
class _Search:
    """Fit scenes in order of their days, counted from the first day of a season of `length` days.

    `off`, [3, scenes], is the distance from the three ideal dates in sixths of a day.
    """

    days: NDArray[np.int64]
    off: NDArray[np.int64]
    length: int
    gap: int

    @classmethod
    def of(cls, fit: pd.DataFrame, season: tuple[dt.date, dt.date], min_gap_days: int) -> "_Search":
        days = np.array([(date - season[0]).days for date in fit["date"]], np.int64)
        length = (season[1] - season[0]).days + 1
        off = np.abs(6 * days + 3 - length * np.array(_IDEAL_SIXTHS)[:, None])
        # with a gap of 0 a scene could follow itself
        return cls(days, off, length, max(min_gap_days, 1))

    def evenness(self, first: slice, middle: int, last: slice) -> NDArray[np.int64]:
        """The evenness of first and last scenes with a middle one, [first, last], in 1 / (9 * length)."""
        # above 0: three dates at one end of the season are off by less than 9 x its length
        even: NDArray[np.int64] = (
            9 * self.length - self.off[1, middle] - self.off[0, first, None] - self.off[2, last]
        )
        return even

    def best(
        self, score: Callable[[slice, int, slice], NDArray[np.int64]]
    ) -> tuple[list[_Triple], NDArray[np.int64]]:
        """The best and second-best triple that keep the gap, and the highest score with each scene, or `_TOO_CLOSE`.

        `score` gets first scenes, a middle one and last scenes, and returns [first, last], negative for triples that
        have none. All first and last scenes for one middle scene are compared at once, so memory grows with the square
        of the number of scenes, not with its cube.
        """
        best: list[_Triple] = []
        with_it = np.full(len(self.days), _TOO_CLOSE, np.int64)
        ends = np.searchsorted(self.days, self.days - self.gap, "right")
        starts = np.searchsorted(self.days, self.days + self.gap, "left")
        for middle, (end, start) in enumerate(zip(ends, starts, strict=True)):
            if end == 0 or start == len(self.days):
                continue
            scores = np.maximum(score(slice(0, end), middle, slice(start, None)), _TOO_CLOSE)
            with_it[middle] = max(with_it[middle], scores.max())
            with_it[:end] = np.maximum(with_it[:end], scores.max(axis=1))
            with_it[start:] = np.maximum(with_it[start:], scores.max(axis=0))
            for _ in range(min(2, scores.size)):
                first, last = np.unravel_index(scores.argmax(), scores.shape)
                if scores[first, last] < 0:
                    break
                best.append(_Triple(int(scores[first, last]), (int(first), middle, int(start + last))))
                scores[first, last] = _TOO_CLOSE
        return sorted(best, key=lambda triple: (-triple.score, triple.scenes))[:2], with_it

    def no_three(self) -> str:
        widest = int(np.minimum(self.days - self.days[0], self.days[-1] - self.days).max())
        return (
            f"no three of the {len(self.days)} fit scenes keep a gap of {self.gap} days: "
            f"the largest possible is {widest}"
        )


def _place(
    table: pd.DataFrame,
    fit: pd.DataFrame,
    search: _Search,
    ranked: list[_Triple],
    facts: Sequence[str],
    unit: float,
    alone: str = "no other three keep the gap",
    outcome: str = "",
) -> None:
    """Give the scenes of the best triple their positions, and notes with a fact of each and the runner-up; `alone` if
    there is none.
    """
    best, runner_up = ranked[0], alone
    if len(ranked) > 1:
        dates = ", ".join(str(fit["date"].iloc[at]) for at in ranked[1].scenes)
        runner_up = f"next best: {dates} with {ranked[1].score / unit:.2f}"
    for position, sixths, at, apart, fact in zip(
        POSITIONS, _IDEAL_SIXTHS, best.scenes, search.off, facts, strict=True
    ):
        note = (
            f"{fact}, {apart[at] / 6:.0f} days from {sixths}/6 of the season; {outcome}"
            f"the three score {best.score / unit:.2f} of 100; {runner_up}"
        )
        table.loc[fit.index[at], ["position", "reason", "note"]] = [position, "", note]


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
    table["measured_percent"] = float("nan")
    for counted in ("chips_clear", "chips_pass", "chips_pass_estimated"):
        table[counted] = pd.array([pd.NA] * len(table), "Int32")
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


def _no_candidates(table: pd.DataFrame, season: tuple[dt.date, dt.date]) -> list[str]:
    """Why each scene is not worth measuring; "" if it is."""
    return [_unfit(row, 100, "chip_coverage") or _useless(row, season) for _, row in table.iterrows()]


def _useless(row: pd.Series, season: tuple[dt.date, dt.date]) -> str:
    if not season[0] <= row["date"] <= season[1]:
        return "not in the season"
    return "" if row["clear_percent"] > 0 else "nothing of the chips is clear"


def _outdone(score: int, best: int, unit: float, gap: int) -> str:
    if score == _TOO_CLOSE:
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
