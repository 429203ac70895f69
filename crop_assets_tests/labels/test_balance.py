import itertools
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from crop_assets.classes import CLASS_COLUMNS, CLASSES
from crop_assets.labels.balance import Balance, choose_balanced, distance, target_shares
from crop_assets.labels.cdl import check_cdl, chip_histograms
from crop_assets.labels.sampling import (
    candidate_boxes,
    choose_boxes,
    compare_choices,
    weighed_boxes,
)
from crop_assets_tests.labels.conftest import PIXELS, boxes_of

UNIFORM = (1 / 13,) * 13
FREE = Balance(max_per_block=10_000)


def landscape(boxes: int, seed: int = 0) -> NDArray[np.int32]:
    """Pixels by class, [boxes, 13], of boxes with a few common and some rare classes."""
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.geomspace(1, 0.02, 13), boxes)
    counts = np.floor(shares * PIXELS).astype(np.int32)
    counts[:, 0] += PIXELS - counts.sum(axis=1)
    return counts


def places(boxes: int, across: int = 600) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    rows, cols = np.divmod(np.arange(boxes), across)
    return rows, cols


def squared(counts: NDArray[np.int32], chosen: NDArray[np.intp]) -> float:
    shares = counts[chosen].sum(axis=0) / (len(chosen) * PIXELS)
    return float(((shares - 1 / 13) ** 2).sum())


def test_of_boxes_with_one_class_each_every_class_is_taken_as_often() -> None:
    counts = np.repeat(np.eye(13, dtype=np.int32) * PIXELS, [100, 50, *[3] * 11], axis=0)
    chosen = choose_balanced(counts, *places(len(counts)), 26, FREE)
    assert counts[chosen].sum(axis=0).tolist() == [2 * PIXELS] * 13


def test_what_is_rare_is_taken_whole_and_the_rest_shared_out() -> None:
    counts = np.repeat(np.eye(13, dtype=np.int32) * PIXELS, [100, *[10] * 11, 1], axis=0)
    chosen = choose_balanced(counts, *places(len(counts)), 61, FREE)
    assert counts[chosen].sum(axis=0).tolist() == [5 * PIXELS] * 12 + [PIXELS]


def test_a_target_is_followed() -> None:
    counts = np.repeat(np.eye(13, dtype=np.int32) * PIXELS, 40, axis=0)
    target = target_shares({"Corn": 6, "Open Water": 0}, CLASSES[1:])
    assert sum(target) == pytest.approx(1)
    chosen = choose_balanced(counts, *places(len(counts)), 34, Balance(target, max_per_block=10_000))
    expected = [2 * PIXELS] * 13
    expected[2], expected[6] = 12 * PIXELS, 0
    assert counts[chosen].sum(axis=0).tolist() == expected


@pytest.mark.parametrize("seed", range(8))
def test_a_small_choice_is_about_as_good_as_the_best_of_all_choices(seed: int) -> None:
    counts = landscape(16, seed)
    best = min(squared(counts, np.array(some)) for some in itertools.combinations(range(16), 6))
    every = [squared(counts, np.array(some)) for some in itertools.combinations(range(16), 6)]
    ours = squared(counts, choose_balanced(counts, *places(16), 6, FREE))
    assert ours <= best * 1.1
    assert ours < np.quantile(every, 0.001)


def test_no_mixture_of_boxes_is_much_nearer_to_the_target_than_the_choice() -> None:
    counts = landscape(20_000)
    chips = 5000
    chosen = choose_balanced(counts, *places(len(counts)), chips, FREE)
    # the objective is convex: its gradient at the choice bounds what any mixture of as many boxes can reach
    gradient = counts[chosen].sum(axis=0) / (chips * PIXELS) - 1 / 13
    lowest = np.sort(counts @ gradient)[:chips].sum() / (chips * PIXELS)
    here = (counts[chosen] @ gradient).sum() / (chips * PIXELS)
    assert squared(counts, chosen) - 2 * (here - lowest) > 0.9 * squared(counts, chosen)


def test_the_choice_depends_neither_on_the_order_of_the_boxes_nor_on_chance() -> None:
    counts, (rows, cols) = landscape(3000), places(3000)
    chosen = choose_balanced(counts, rows, cols, 100, Balance())
    order = np.random.default_rng(5).permutation(3000)
    again = choose_balanced(counts[order], rows[order], cols[order], 100, Balance())
    assert set(order[again]) == set(chosen)
    assert chosen.tolist() == sorted(chosen.tolist())
    assert len(set(chosen)) == 100


def test_the_seed_decides_between_equal_boxes() -> None:
    counts = np.repeat(np.eye(13, dtype=np.int32) * PIXELS, 40, axis=0)
    one, other = (choose_balanced(counts, *places(520), 13, Balance(seed=seed)) for seed in (1, 2))
    assert set(one) != set(other)
    assert counts[one].sum(axis=0).tolist() == counts[other].sum(axis=0).tolist()


def test_no_block_gives_more_than_its_share_unless_the_chips_would_be_too_few() -> None:
    rare = landscape(4096)
    rare[:64] = np.eye(13, dtype=np.int32)[12] * PIXELS
    rows, cols = np.divmod(np.arange(4096), 64)
    rows[:64], cols[:64] = np.divmod(np.arange(64), 8)
    rows[64:] += 8

    def most(chips: int, limit: int) -> int:
        chosen = choose_balanced(rare, rows, cols, chips, Balance(max_per_block=limit))
        assert len(set(chosen)) == chips
        blocks = rows[chosen] // 8 * 1000 + cols[chosen] // 8
        return int(np.unique(blocks, return_counts=True)[1].max())

    assert most(200, 10_000) > 8
    assert most(200, 4) == 4
    # 65 blocks with 3 boxes each are too few
    assert most(200, 1) == 4


def test_with_fewer_boxes_than_chips_all_are_taken() -> None:
    assert choose_balanced(landscape(5), *places(5), 9, FREE).tolist() == [0, 1, 2, 3, 4]
    assert choose_balanced(landscape(0), *places(0), 9, FREE).tolist() == []


def test_distance_is_the_share_of_pixels_in_the_wrong_class() -> None:
    assert distance(np.full(13, 7), UNIFORM) == pytest.approx(0)
    assert distance(np.eye(13, dtype=np.int64)[0], UNIFORM) == pytest.approx(12 / 13)
    assert distance(np.array([3, 1, *[0] * 11]), (0.5, 0.5, *[0.0] * 11)) == pytest.approx(0.25)
    assert distance(np.zeros(13, np.int64), UNIFORM) == pytest.approx(0.5)


def test_boxes_with_no_data_are_not_chosen_and_the_order_is_the_grids() -> None:
    counts = np.zeros((6, 14), np.int32)
    counts[:, 1:] = landscape(6)
    counts[2, 0], counts[2, 1] = 1, counts[2, 1] - 1
    boxes = boxes_of([(9, 1), (8, 1), (7, 1), (6, 1), (5, 1), (4, 1)], counts)
    chosen = choose_boxes(boxes, "balanced", 4)
    assert len(chosen) == 4
    assert "chip_007_001" not in set(chosen["chip_id"])
    assert chosen["chip_id"].tolist() == sorted(chosen["chip_id"])


def test_of_a_real_release_balanced_chips_are_nearer_to_the_target_than_even_ones(real: Path, pool) -> None:  # type: ignore[no-untyped-def]
    candidates = candidate_boxes(chip_histograms(check_cdl(real / "cdl/2021_30m_cdls.tif"), pool))
    boxes = weighed_boxes(candidates, 1)
    choices = {name: choose_boxes(boxes, name, 6) for name in ("evenness", "balanced")}  # type: ignore[arg-type]
    told = compare_choices({**choices, "all boxes": boxes}, Balance()).set_index("choice")
    assert told.loc["balanced", "distance_from_target"] < told.loc["evenness", "distance_from_target"]
    assert told.loc["evenness", "distance_from_target"] < told.loc["all boxes", "distance_from_target"]
    pixels = choices["balanced"][CLASS_COLUMNS[1:]].sum()
    assert told.loc["balanced", "its_percent"] == pytest.approx(100 * pixels.min() / pixels.sum(), abs=0.01)
    assert told["chips"].tolist() == [6, 6, len(boxes)]
