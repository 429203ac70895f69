"""Counts Fmask bits, and decides by the rules of the specification which chips are good enough."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from crop_assets.chip_grid import CHIP_SIZE
from crop_assets.hls import CLOUD, POSITIONS, QA_COUNTS, QA_NODATA, SHADOW, SNOW, QaRule

if TYPE_CHECKING:
    import pandas as pd

BAD_BITS = {"cloud": CLOUD, "shadow": SHADOW, "snow": SNOW}
_BAD = np.uint8(sum(BAD_BITS.values()))
_VALUES_WITH = {name: np.flatnonzero(np.arange(256) & bit) for name, bit in BAD_BITS.items()}

KEPT, NO_SCENES, NA_PIXELS, BAD_QUALITY = "", "too_few_scenes", "na_pixels", "bad_quality"
IMPURE_LABELS, LOW_CONFIDENCE = "impure_labels", "low_confidence"
NOT_FETCHED = "bands_not_fetched"
"""Outcome of a chip that was not made because its labels or its Fmask already rule it out."""


def quality_counts(fmask: NDArray[np.uint8]) -> dict[str, int]:
    """Counts of the pixels of an Fmask array (any shape): cloud, shadow and snow (a pixel may be several of them), bad
    (any of them), the most frequent bad value, and fill.

    Fill has all bits set. It does not count as cloud, shadow, snow or bad, but it is a bad *value*, as in the
    published dataset.
    """
    # all of these values have one of the bits, and few pixels have one of these values
    histogram = np.bincount(fmask[(fmask & _BAD) != 0], minlength=256)
    fill = int(histogram[QA_NODATA])
    return {
        **{name: int(histogram[values].sum()) - fill for name, values in _VALUES_WITH.items()},
        "bad": int(histogram.sum()) - fill,
        "worst_value": int(histogram.max()),
        "fill": fill,
    }


def bad_percent(chips: "pd.DataFrame", position: str, rule: QaRule) -> "pd.Series":
    """Bad pixels of each chip on one date, in percent of 224 x 224 pixels, by a rule of the recipe.

    `class`: the worst of cloud, shadow and snow; `value`: the most frequent bad Fmask value; `total`: all bad pixels.
    NaN if the chip does not have this date.
    """
    columns = [f"{name}_{position}" for name in QA_COUNTS[rule]]
    import pandas as pd

    # numpy, because pandas takes milliseconds for a few chips
    counts = chips[columns].to_numpy("float64", na_value=np.nan)
    return pd.Series(np.fmax.reduce(counts, axis=1) * 100 / CHIP_SIZE**2, chips.index)


def judge_chips(
    chips: "pd.DataFrame",
    rule: QaRule,
    max_bad_percent: float,
    max_na_pixels: int,
    min_purity: float = 0,
    min_confidence: float = 0,
) -> "pd.DataFrame":
    """Keep or reject each chip, with the reason and the number that decided.

    A chip is kept if its labels have a purity of at least `min_purity` and a mean confidence of at least
    `min_confidence`, it was made (empty outcome), and it has at most `max_bad_percent` bad pixels on each date and at
    most `max_na_pixels` missing pixels; the first of these that does not hold is the reason. A limit of 0 for labels
    is none; above 0, the columns purity_percent and confidence_percent are needed, and a missing value is too low.
    Returns chip_id, bad_percent_first, _middle, _last, bad_percent_max, na_count, kept, reason ("" if kept) and figure
    (percent, fit scenes, or missing pixels).
    """
    import pandas as pd

    columns = {f"bad_percent_{p}": bad_percent(chips, p, rule).to_numpy() for p in POSITIONS}
    worst = np.fmax.reduce(list(columns.values()))
    outcome = chips["outcome"].to_numpy(object)
    na_count, fit_scenes = (
        chips[name].to_numpy("float64", na_value=np.nan) for name in ("na_count", "fit_scenes")
    )
    purity, confidence = (
        chips[name].to_numpy("float64", na_value=np.nan) if limit > 0 else np.full(len(chips), np.inf)
        for name, limit in (("purity_percent", min_purity), ("confidence_percent", min_confidence))
    )
    # select takes the first that holds
    found = [
        (~(purity >= min_purity), IMPURE_LABELS, purity),
        (~(confidence >= min_confidence), LOW_CONFIDENCE, confidence),
        (outcome == NO_SCENES, NO_SCENES, fit_scenes),
        (na_count > max_na_pixels, NA_PIXELS, na_count),
        (~(worst <= max_bad_percent), BAD_QUALITY, worst),
        (outcome != "", outcome, np.nan),
    ]
    fails, reasons, figures = zip(*found, strict=True)
    reason = np.select(fails, reasons, KEPT)
    return pd.DataFrame(
        {
            "chip_id": chips["chip_id"],
            **columns,
            "bad_percent_max": worst,
            "na_count": chips["na_count"],
            "reason": reason,
            "figure": np.select(fails, figures, np.nan),
            "kept": reason == KEPT,
        }
    )


def figure_text(reason: str, figure: float) -> str:
    """The number that decided about a chip, with its unit: "12.4 %", "1,234 pixels", "2 fit scenes"; "" without one."""
    if figure != figure:
        return ""
    if reason in (BAD_QUALITY, IMPURE_LABELS, LOW_CONFIDENCE):
        return f"{figure:.4g} %"
    count = f"{figure:,.0f}"
    return {NA_PIXELS: f"{count} pixels", NO_SCENES: f"{count} fit scenes"}.get(reason, f"{figure:,.6g}")
