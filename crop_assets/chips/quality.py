"""Counts Fmask bits, and decides by the rules of the specification which chips are good enough."""

from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from crop_assets.chip_grid import CHIP_SIZE
from crop_assets.hls import CLOUD, POSITIONS, QA_NODATA, SHADOW, SNOW

if TYPE_CHECKING:
    import pandas as pd

QaRule = Literal["class", "value", "total"]

BAD_BITS = {"cloud": CLOUD, "shadow": SHADOW, "snow": SNOW}
_BAD = sum(BAD_BITS.values())

KEPT, NO_SCENES, NA_PIXELS, BAD_QUALITY = "", "too_few_scenes", "na_pixels", "bad_quality"
NOT_FETCHED = "bands_not_fetched"
"""Outcome of a chip that was not made because its Fmask already rules it out."""


def quality_counts(fmask: NDArray[np.uint8]) -> dict[str, int]:
    """Counts of the pixels of an Fmask array (any shape): cloud, shadow and snow (a pixel may be several of them), bad
    (any of them), the most frequent bad value, and fill.

    Fill has all bits set. It does not count as cloud, shadow, snow or bad, but it is a bad *value*, as in the
    published dataset.
    """
    histogram = np.bincount(fmask.ravel(), minlength=256)
    values = np.arange(256)
    data = values != QA_NODATA
    bad = (values & _BAD) != 0
    counts = {name: int(histogram[data & ((values & bit) != 0)].sum()) for name, bit in BAD_BITS.items()}
    return {
        **counts,
        "bad": int(histogram[data & bad].sum()),
        "worst_value": int(histogram[bad].max()),
        "fill": int(histogram[QA_NODATA]),
    }


def bad_percent(chips: "pd.DataFrame", position: str, rule: QaRule) -> "pd.Series":
    """Bad pixels of each chip on one date, in percent of 224 x 224 pixels, by a rule of the recipe.

    `class`: the worst of cloud, shadow and snow; `value`: the most frequent bad Fmask value; `total`: all bad pixels.
    NaN if the chip does not have this date.
    """
    columns = {
        "class": [f"{name}_{position}" for name in BAD_BITS],
        "value": [f"worst_value_{position}"],
        "total": [f"bad_{position}"],
    }[rule]
    return chips[columns].max(axis=1).astype("float64") * 100 / CHIP_SIZE**2


def judge_chips(
    chips: "pd.DataFrame", rule: QaRule, max_bad_percent: float, max_na_pixels: int
) -> "pd.DataFrame":
    """Keep or reject each chip, with the reason and the number that decided.

    A chip is kept if it was made (empty outcome), has at most `max_bad_percent` bad pixels on each date and at most
    `max_na_pixels` missing pixels. Returns chip_id, bad_percent_first, _middle, _last, bad_percent_max, na_count,
    kept, reason ("" if kept) and figure (fit scenes, missing pixels, or percent).
    """
    table = chips[["chip_id"]].copy()
    for position in POSITIONS:
        table[f"bad_percent_{position}"] = bad_percent(chips, position, rule)
    table["bad_percent_max"] = table[[f"bad_percent_{p}" for p in POSITIONS]].max(axis=1)
    table["na_count"] = chips["na_count"]
    few = chips["outcome"] == NO_SCENES
    missing = ~few & (chips["na_count"] > max_na_pixels)
    bad = ~few & ~missing & ~(table["bad_percent_max"] <= max_bad_percent)
    unmade = chips["outcome"] != ""
    table["reason"] = np.select(
        [few, missing, bad, unmade], [NO_SCENES, NA_PIXELS, BAD_QUALITY, chips["outcome"]], KEPT
    )
    table["figure"] = np.select(
        [few, missing, bad],
        [
            chips["fit_scenes"].astype("float64"),
            chips["na_count"].astype("float64"),
            table["bad_percent_max"],
        ],
        np.nan,
    )
    table["kept"] = table["reason"] == KEPT
    return table
