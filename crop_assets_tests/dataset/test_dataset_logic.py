import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crop_assets.dataset.funnel import reject_ledger, yield_funnel
from crop_assets.dataset.statistics import band_statistics, count_values
from crop_assets.dataset.weights import class_weights

int16 = st.lists(st.integers(-9999, 16000), min_size=1, max_size=300)


@given(st.lists(int16, min_size=1, max_size=4))
def test_statistics_of_any_pieces_are_numpys(pieces) -> None:
    values = np.array([v for piece in pieces for v in piece], np.int16)
    values = values[values != -9999]
    counts = sum(count_values(np.array(piece, np.int16)) for piece in pieces)
    if values.size == 0:
        with pytest.raises(ValueError, match="all pixels of a band are missing"):
            band_statistics(counts)
        return
    ours = band_statistics(counts)
    assert ours.pixels == values.size
    assert ours.mean == pytest.approx(values.mean(dtype=float))
    assert ours.std == pytest.approx(values.std(dtype=float))
    assert ours.minimum == pytest.approx(np.percentile(values, 1.5))
    assert ours.maximum == pytest.approx(np.percentile(values, 98.5))


def test_weights_are_balanced_and_sum_to_one_even_without_a_class() -> None:
    pixels = [500, 100, 200, 400, 0, *[100] * 9]
    weights = class_weights(pixels)
    assert weights.sum() == pytest.approx(1)
    assert weights[0] == weights[4] == 0
    assert weights[1] == pytest.approx(2 * weights[2]) == pytest.approx(4 * weights[3])
    with pytest.raises(ValueError, match="no pixel"):
        class_weights([10] + [0] * 13)


def tile_map() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "chip_id": ["a", "b", "c", "d", "e"],
            "tile": ["14SPJ", "14SPJ", "14SPJ", "14SQJ", ""],
            "margin_m": [1.0, 1, 1, 1, -9000],
            "finding": ["", "", "", "", "lies outside"],
            "contained": [True, True, True, True, False],
        }
    )


def filtered() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "chip_id": ["a", "b", "c"],
            "tile": "14SPJ",
            "kept": [True, False, False],
            "reason": ["", "bad_quality", "na_pixels"],
            "figure": [np.nan, 7.5, 12],
        }
    )


def test_every_chip_box_is_in_the_dataset_or_in_the_ledger() -> None:
    ledger = reject_ledger(tile_map(), filtered(), {"14SQJ": "downloaded_bands failed"})
    assert dict(zip(ledger["chip_id"], ledger["reason"], strict=True)) == {
        "b": "bad_quality",
        "c": "na_pixels",
        "d": "tile_missing",
        "e": "no_tile",
    }
    funnel = yield_funnel(tile_map(), ledger).set_index("step")
    assert list(funnel["chips"]) == [5, 4, 3, 3, 2, 1]


def test_a_lost_chip_and_a_duplicate_chip_are_errors() -> None:
    with pytest.raises(ValueError, match="do not match"):
        reject_ledger(tile_map(), filtered(), {})
    twice = pd.concat([filtered(), filtered().head(1)])
    with pytest.raises(ValueError, match="do not match"):
        reject_ledger(tile_map(), twice, {"14SQJ": "failed"})
