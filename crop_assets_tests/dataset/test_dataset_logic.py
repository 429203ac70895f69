import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crop_assets.dataset.funnel import reject_ledger, yield_funnel
from crop_assets.dataset.splits import split_chips
from crop_assets.dataset.statistics import BandHistogram
from crop_assets.dataset.weights import class_weights

chip_sets = st.sets(st.integers(0, 999).map(lambda n: f"chip_100_{n:03d}"), max_size=60)


@given(chip_sets, st.integers(0, 5), st.randoms(use_true_random=False))
def test_a_split_depends_only_on_the_set_and_the_seed(ids, seed, random) -> None:
    shuffled = list(ids)
    random.shuffle(shuffled)
    split = split_chips(shuffled, 0.8, seed)
    pd.testing.assert_frame_equal(split, split_chips(sorted(ids) * 2, 0.8, seed))
    assert (split["split"] == "train").sum() == int(0.8 * len(ids))
    assert set(split["chip_id"]) == ids


def test_the_published_shares_and_another_seed() -> None:
    ids = [f"chip_{n // 600:03d}_{n % 600:03d}" for n in range(3854)]
    split = split_chips(ids, 0.8, 42)
    assert split["split"].value_counts().to_dict() == {"train": 3083, "validation": 771}
    assert (split["split"] != split_chips(ids, 0.8, 43)["split"]).any()


int16 = st.lists(st.integers(-9999, 16000), min_size=1, max_size=300)


@given(st.lists(int16, min_size=1, max_size=4))
def test_statistics_of_any_pieces_are_numpys(pieces) -> None:
    values = np.array([v for piece in pieces for v in piece], np.int16)
    values = values[values != -9999]
    histogram = BandHistogram()
    for piece in pieces:
        histogram.add(np.array(piece, np.int16), -9999)
    if values.size == 0:
        with pytest.raises(ValueError, match="all pixels of a band are missing"):
            histogram.statistics()
        return
    ours = histogram.statistics()
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
