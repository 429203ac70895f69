from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio

from crop_assets.chips.quality import bad_percent, figure_text, judge_chips, quality_counts
from crop_assets.hls import POSITIONS

PIXELS = 224 * 224
PUBLISHED_VALID = [0, 4, 32, 36, 64, 68, 96, 100, 128, 132, 160, 164, 192, 196, 224, 228]


def test_bad_values_are_those_missing_from_the_published_list() -> None:
    # bit 0 is unused, and set in no published value
    for value in range(0, 255, 2):
        assert quality_counts(np.array([value], np.uint8))["bad"] == (value not in PUBLISHED_VALID)


def test_counts_of_a_real_fmask_agree_with_a_plain_count(real: Path) -> None:
    with rasterio.open(real / "hls/HLS.L30.T15UWP.2024283T165135.v2.0.Fmask.tif") as raster:
        fmask = raster.read(1)
    counts = quality_counts(fmask)
    data = fmask[fmask != 255]
    assert counts["cloud"] == int(((data & 2) > 0).sum())
    assert counts["shadow"] == int(((data & 8) > 0).sum())
    assert counts["snow"] == int(((data & 16) > 0).sum())
    assert counts["bad"] == int((~np.isin(data, PUBLISHED_VALID)).sum())
    assert counts["fill"] == int((fmask == 255).sum()) > 0
    values, number = np.unique(fmask[~np.isin(fmask, PUBLISHED_VALID)], return_counts=True)
    assert counts["worst_value"] == number.max()
    assert 255 in values


def test_the_three_rules_differ_where_they_should() -> None:
    fmask = np.zeros((224, 224), np.uint8)
    fmask.ravel()[:1000] = 2
    fmask.ravel()[1000:1900] = 66
    fmask.ravel()[1900:2700] = 8
    chips = pd.DataFrame([{f"{k}_first": v for k, v in quality_counts(fmask).items()}])
    percent = {rule: bad_percent(chips, "first", rule).iloc[0] for rule in ("class", "value", "total")}
    assert percent["class"] == pytest.approx(1900 / PIXELS * 100)
    assert percent["value"] == pytest.approx(1000 / PIXELS * 100)
    assert percent["total"] == pytest.approx(2700 / PIXELS * 100)


def test_2000_published_chips_are_kept_and_dropped_as_published(real: Path) -> None:
    tracker = pd.read_csv(real / "tables/chip_tracker.csv")
    # 42 chips of tiles without three scenes have no figures
    unmade = tracker["na_count"].isna()
    outcome = unmade.map({True: "too_few_scenes", False: ""})
    chips = pd.DataFrame({"chip_id": tracker["chip_id"], "outcome": outcome, "fit_scenes": 3})
    for position, published in zip(POSITIONS, ("first", "second", "third"), strict=True):
        pixels = tracker[f"bad_pct_{published}"] * PIXELS / 100
        np.testing.assert_allclose(pixels, pixels.round(), atol=1e-6)
        chips[f"worst_value_{position}"] = pixels.round()
    chips["na_count"] = tracker["na_count"]
    table = judge_chips(chips, "value", 5, 0)
    expected = (tracker["bad_pct_max"] < 5) & (tracker["na_count"] == 0)
    assert (len(table), unmade.sum()) == (2000, 42)
    assert table["kept"].tolist() == expected.tolist()
    assert table["kept"].sum() > 1000
    assert ((table["reason"] == "") == table["kept"]).all()


def test_every_chip_is_kept_or_has_a_reason_and_a_number() -> None:
    counts = {f"{n}_{p}": 0 for p in POSITIONS for n in ("cloud", "shadow", "snow", "bad", "worst_value")}
    limit = int(PIXELS * 0.05)
    rows = [
        {"chip_id": "good", "outcome": "", "fit_scenes": 5, "na_count": 0, **counts, "cloud_last": limit},
        {
            "chip_id": "cloudy",
            "outcome": "",
            "fit_scenes": 5,
            "na_count": 0,
            **counts,
            "cloud_last": limit + 1,
        },
        {"chip_id": "edge", "outcome": "", "fit_scenes": 5, "na_count": 1, **counts},
        {"chip_id": "alone", "outcome": "too_few_scenes", "fit_scenes": 2},
    ]
    table = judge_chips(pd.DataFrame(rows), "class", 5, 0).set_index("chip_id")
    assert list(table["kept"]) == [True, False, False, False]
    assert list(table["reason"]) == ["", "bad_quality", "na_pixels", "too_few_scenes"]
    assert table["figure"]["cloudy"] == pytest.approx((limit + 1) / PIXELS * 100)
    assert (table["figure"]["edge"], table["figure"]["alone"]) == (1, 2)


def test_labels_decide_first_and_only_below_a_limit_that_is_set() -> None:
    counts = {f"{n}_{p}": 0 for p in POSITIONS for n in ("cloud", "shadow", "snow", "bad", "worst_value")}
    made = {"outcome": "", "fit_scenes": 3, "na_count": 0, **counts}
    rows = [
        {**made, "chip_id": "limit", "purity_percent": 85.3, "confidence_percent": 60.0},
        {**made, "chip_id": "below", "purity_percent": np.nextafter(85.3, 0), "confidence_percent": 99.0},
        {**made, "chip_id": "unsure", "purity_percent": 99.0, "confidence_percent": 59.9},
        {**made, "chip_id": "both", "purity_percent": 1.0, "confidence_percent": 1.0},
        {**made, "chip_id": "unknown", "purity_percent": 99.0, "confidence_percent": np.nan},
        {**made, "chip_id": "blank", "purity_percent": np.nan, "confidence_percent": np.nan},
        {**made, "chip_id": "gappy", "purity_percent": 99.0, "confidence_percent": 99.0, "na_count": 7},
        {"chip_id": "alone", "outcome": "too_few_scenes", "fit_scenes": 2, "purity_percent": 3.0},
        {**made, "chip_id": "late", "outcome": "bands_not_fetched", "purity_percent": 5.0},
    ]
    chips = pd.DataFrame(rows)
    impure, unsure = "impure_labels", "low_confidence"
    both = judge_chips(chips, "class", 5, 0, 85.3, 60)
    reasons = ["", impure, unsure, impure, unsure, impure, "na_pixels", impure, impure]
    assert list(both["reason"]) == reasons
    assert list(both["kept"]) == [reason == "" for reason in reasons]
    expected = [np.nan, chips["purity_percent"][1], 59.9, 1, np.nan, np.nan, 7, 3, 5]
    np.testing.assert_array_equal(both["figure"], expected)
    one = judge_chips(chips, "class", 5, 0, min_confidence=60)
    assert list(one["reason"]) == ["", "", unsure, unsure, unsure, unsure, "na_pixels", unsure, unsure]
    # without limits, figures of labels are not needed, and change nothing
    without = chips.drop(columns=["purity_percent", "confidence_percent"])
    off = judge_chips(without, "class", 5, 0)
    assert list(off["reason"]) == ["", "", "", "", "", "", "na_pixels", "too_few_scenes", "bands_not_fetched"]
    pd.testing.assert_frame_equal(off, judge_chips(chips, "class", 5, 0, 0, 0))
    assert figure_text(impure, 84.256) == "84.26 %"
    assert figure_text(unsure, 59.9) == "59.9 %"
    assert figure_text(unsure, np.nan) == ""
