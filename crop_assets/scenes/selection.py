"""Which scenes of a tile become its three dates.

Belongs here: the rules of the specification, on tables. Does not: where the scenes' metadata comes from.
"""

from collections.abc import Sequence
from typing import Literal

import pandas as pd

POSITIONS = ("first", "middle", "last")


def select_scenes(
    scenes: pd.DataFrame,
    max_cloud_cover: float,
    coverage_ladder: Sequence[float],
    middle: Literal["lower", "upper"],
) -> pd.DataFrame:
    """The first, middle and last fit scene by date, and for every other scene the reason against it.

    `scenes` has the columns scene_id, date, cloud_cover and spatial_coverage (percent, may be
    missing) and missing_bands. A scene is fit with at most `max_cloud_cover` and at least the
    coverage of the highest rung of `coverage_ladder` on which three scenes are fit. Of an even number
    of fit scenes the lower or the upper of the two in the middle is taken: the specification asks for
    the lower, the published dataset has the upper.

    Returns one row per distinct scene_id, by date and id, with the columns fit (bool), position (first,
    middle, last or ""), reason ("" where selected) and coverage_step (the rung taken, missing where fewer
    than three scenes are fit on the lowest). The result does not depend on the order of the rows, nor
    on duplicates.
    """
    table = scenes.drop_duplicates("scene_id").sort_values(["date", "scene_id"], ignore_index=True).copy()
    table["position"], table["reason"], table["coverage_step"] = "", "", float("nan")
    # a comparison with a missing value is false, so a scene of unknown cloud or coverage is never fit
    clear = (table["cloud_cover"] <= max_cloud_cover) & (table["missing_bands"] == "")
    step, fit = coverage_ladder[-1], clear & (table["spatial_coverage"] >= coverage_ladder[-1])
    for rung in coverage_ladder:
        on_rung = clear & (table["spatial_coverage"] >= rung)
        if on_rung.sum() >= len(POSITIONS):
            step, fit = rung, on_rung
            break
    table["fit"] = fit
    table["reason"] = [_reason(row, max_cloud_cover, step) for _, row in table.iterrows()]
    chosen = list(table.index[fit])
    if len(chosen) < len(POSITIONS):
        table.loc[fit, "reason"] = f"only {len(chosen)} of 3 scenes are fit at coverage {step:g}"
        return table
    half = (len(chosen) - 1) // 2 if middle == "lower" else len(chosen) // 2
    table["coverage_step"] = float(step)
    table.loc[fit, "reason"] = "neither first, middle nor last"
    for position, index in zip(POSITIONS, (chosen[0], chosen[half], chosen[-1]), strict=True):
        table.loc[index, ["position", "reason"]] = [position, ""]
    return table


def _reason(row: pd.Series, max_cloud_cover: float, coverage: float) -> str:
    if row["missing_bands"]:
        return f"without {row['missing_bands']}"
    if pd.isna(row["cloud_cover"]) or pd.isna(row["spatial_coverage"]):
        return "cloud cover or spatial coverage unknown"
    if row["cloud_cover"] > max_cloud_cover:
        return f"cloud cover {row['cloud_cover']:g} > {max_cloud_cover:g}"
    if row["spatial_coverage"] < coverage:
        return f"spatial coverage {row['spatial_coverage']:g} < {coverage:g}"
    return ""


def chosen_scenes(selected: pd.DataFrame) -> pd.DataFrame:
    """The three scenes of a table of `select_scenes` in the order first, middle, last; empty where there are none."""
    chosen = selected[selected["position"] != ""]
    return (
        chosen.set_index("position")
        .reindex([p for p in POSITIONS if p in set(chosen["position"])])
        .reset_index()
    )
