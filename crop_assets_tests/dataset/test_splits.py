"""Splits: who is in which, how near validation and test lie to training, and what keeps them apart costs."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crop_assets.chip_grid import chip_id, chip_position
from crop_assets.classes import CLASS_COLUMNS
from crop_assets.dataset.splits import (
    BUFFER,
    LEAKAGE,
    SPLIT_NAMES,
    TEST,
    TRAIN,
    UNASSIGNED,
    VALIDATION,
    Shares,
    block_split,
    leakage,
    leakage_report,
    parse_ids,
    random_split,
    split_by_files,
)
from crop_assets.errors import InputError

cells = st.tuples(st.integers(0, 39), st.integers(0, 39))
some_cells = st.sets(cells, max_size=120)
shares = st.sampled_from([Shares(0.8, 0), Shares(0.7, 0.15), Shares(0.5, 0.25)])
seeds = st.integers(0, 3)


def boxes_at(places: "set[tuple[int, int]] | list[tuple[int, int]]", block_chips: int = 8) -> pd.DataFrame:
    """Chip boxes with as many pixels of each class as their place says; tiles of 16 chips, with blocks across them."""
    rows = np.array([row for row, _ in places], dtype=int)
    cols = np.array([col for _, col in places], dtype=int)
    boxes = pd.DataFrame(
        {
            "chip_id": [chip_id(row, col) for row, col in places],
            "row": rows,
            "col": cols,
            "tile": [f"{(row + 5) // 16}_{(col + 5) // 16}" for row, col in places],
            "block": [f"{row // block_chips}_{col // block_chips}" for row, col in places],
        }
    )
    for number, name in enumerate(CLASS_COLUMNS):
        boxes[name] = (rows * 37 + cols * 11 + number * 5) % 97 * (number % 5)
    return boxes


def leaks(chips: pd.DataFrame) -> pd.DataFrame:
    """What `leakage` finds, by looking at each pair."""
    at = [chip_position(chip) for chip in chips["chip_id"]]
    rows = []
    for (row, col), one in zip(at, chips.itertuples(), strict=True):
        near = dict.fromkeys(LEAKAGE, False)
        for (other_row, other_col), other in zip(at, chips.itertuples(), strict=True):
            if one.split == TRAIN or other.split != TRAIN:
                continue
            steps = abs(row - other_row), abs(col - other_col)
            near["touches_train"] |= max(steps) <= 1
            near["borders_train"] |= sum(steps) <= 1
            near["in_train_tile"] |= one.tile == other.tile
            near["in_train_block"] |= one.block == other.block
        rows.append(near)
    return pd.DataFrame(rows, columns=list(LEAKAGE), index=chips.index, dtype=bool)


@given(some_cells, shares, seeds)
def test_at_random_a_chip_stays_where_it_is_whoever_comes_and_goes(places, share, seed) -> None:
    ids = [chip_id(*place) for place in sorted(places)]
    alone = {chip: random_split([chip], share, seed)[0] for chip in ids}
    assert dict(zip(ids, random_split(ids, share, seed), strict=True)) == alone
    assert set(alone.values()) <= set(share.by_split)


@pytest.mark.parametrize("share", [Shares(0.8, 0), Shares(0.7, 0.15), Shares(0.01, 0.98)])
def test_at_random_the_shares_are_met_as_by_a_draw(share: Shares) -> None:
    ids = [chip_id(n // 600, n % 600) for n in range(5000)]
    for seed in range(5):
        split = random_split(ids, share, seed)
        for name, wanted in share.by_split.items():
            spread = np.sqrt(5000 * wanted * (1 - wanted))
            assert abs((split == name).sum() - 5000 * wanted) < 4 * spread
    assert (random_split(ids, share, 1) != random_split(ids, share, 2)).any()


def test_a_split_at_random_is_the_same_on_any_machine() -> None:
    ids = [chip_id(257, col) for col in range(260, 268)]
    drawn = random_split(ids, Shares(0.5, 0.25), 42)
    assert list(drawn) == [TRAIN, TEST, TRAIN, TRAIN, TEST, VALIDATION, TRAIN, TEST]


@settings(max_examples=100)
@given(some_cells, shares, seeds, st.sampled_from(["block", "tile"]))
def test_blocks_stay_together_and_nothing_touches_training(places, share, seed, whole) -> None:
    boxes = boxes_at(sorted(places))
    split = block_split(boxes, share, seed, whole)
    assert set(split) <= {*share.by_split, BUFFER}
    chips = boxes.assign(split=split)
    # the buffer is of training
    owners = chips.assign(split=chips["split"].replace(BUFFER, TRAIN))
    assert (owners.groupby(whole)["split"].nunique() == 1).all()
    left = chips[chips["split"] != BUFFER]
    found = leakage(left)
    assert not found["touches_train"].any() and not found["borders_train"].any()
    assert not found[{"block": "in_train_block", "tile": "in_train_tile"}[whole]].any()
    # no chip is in the buffer that need not be
    for chip in chips.loc[chips["split"] == BUFFER, "chip_id"]:
        back = pd.concat([left, chips[chips["chip_id"] == chip].assign(split=TRAIN)])
        assert leaks(back)["touches_train"].any()


@given(some_cells, shares, seeds, st.randoms(use_true_random=False))
def test_blocks_depend_neither_on_order_nor_on_the_machine(places, share, seed, random) -> None:
    boxes = boxes_at(sorted(places))
    order = list(range(len(boxes)))
    random.shuffle(order)
    split = block_split(boxes, share, seed)
    assert list(block_split(boxes.iloc[order], share, seed)) == list(split[order])


@given(some_cells, st.data())
def test_leakage_is_what_a_look_at_each_pair_finds(places, data) -> None:
    split = data.draw(st.lists(st.sampled_from(SPLIT_NAMES), min_size=len(places), max_size=len(places)))
    chips = boxes_at(sorted(places)).assign(split=split)
    pd.testing.assert_frame_equal(leakage(chips), leaks(chips))


def test_the_last_chip_of_a_row_does_not_touch_the_first_of_the_next() -> None:
    chips = boxes_at([(10, 685), (11, 0)]).assign(split=[TRAIN, VALIDATION])
    assert not leakage(chips)["touches_train"].any()


def test_shares_and_classes_are_met_by_blocks_of_a_clustered_choice() -> None:
    """5,000 chips in clusters, each class in a region of its own: the hardest for whole blocks."""
    rng = np.random.default_rng(0)
    centres = rng.integers([20, 20], [400, 660], (300, 2))
    spots = (centres[rng.integers(0, 300, 30_000)] + rng.normal(0, 4, (30_000, 2))).astype(int)
    places = sorted({(int(r), int(c)) for r, c in spots if 0 <= r < 430 and 0 <= c < 686})[::3][:5000]
    boxes = boxes_at(places)
    for number, name in enumerate(CLASS_COLUMNS):
        boxes[name] = (50_000 * np.exp(-(((boxes["col"] - 50 * number) / 60) ** 2))).astype(int)
    for share in (Shares(0.8, 0), Shares(0.7, 0.15)):
        split = block_split(boxes, share, 42)
        chips = boxes.assign(split=pd.Series(split).replace(BUFFER, TRAIN))
        pixels = chips.groupby("split")[CLASS_COLUMNS[1:]].sum()
        for name, wanted in share.by_split.items():
            assert abs((chips["split"] == name).mean() - wanted) < 0.005
            assert (abs(pixels.loc[name] / pixels.sum() - wanted) < 0.03).all()
        assert (split == BUFFER).mean() < 0.12


@pytest.mark.parametrize("whole", ["block", "tile"])
def test_no_chip_one_chip_one_block_and_one_class(whole: str) -> None:
    assert list(block_split(boxes_at([]), Shares(0.8, 0), 1, whole)) == []
    assert list(block_split(boxes_at([(3, 3)]), Shares(0.8, 0), 1, whole)) == [TRAIN]
    assert set(block_split(boxes_at([(0, 0), (0, 1), (1, 0)]), Shares(0.6, 0.2), 1, whole)) == {TRAIN}
    one_class = boxes_at([(row, col) for row in range(0, 32, 2) for col in range(0, 32, 2)])
    one_class[CLASS_COLUMNS] = 0
    one_class["class_5"] = 50_176
    # 16 blocks of 16 chips that do not touch
    for boxes in (one_class, one_class.assign(class_5=0)):
        split = block_split(boxes, Shares(0.6, 0.2), 1, "block")
        counts = dict(zip(*np.unique(split.astype(str), return_counts=True), strict=True))
        assert set(counts) == {TRAIN, VALIDATION, TEST}
        assert [counts[TRAIN], counts[VALIDATION], counts[TEST]] == pytest.approx([154, 51, 51], abs=16)


def test_the_report_counts_each_split_that_has_chips() -> None:
    chips = boxes_at([(0, 0), (0, 1), (1, 1), (30, 30)]).assign(split=[TRAIN, VALIDATION, VALIDATION, TEST])
    report = leakage_report(pd.concat([chips, leakage(chips)], axis=1))
    assert report.to_dict("list") == {
        "split": [VALIDATION, TEST],
        "chips": [2, 1],
        "touches_train": [100, 0],
        "borders_train": [50, 0],
        "in_train_tile": [100, 0],
        "in_train_block": [100, 0],
    }
    everything = chips.assign(split=TRAIN)
    assert leakage_report(pd.concat([everything, leakage(everything)], axis=1)).empty


def test_two_thousand_published_chips_leak_at_random_and_not_by_blocks(real: Path) -> None:
    published = pd.read_csv(real / "tables" / "chip_tracker.csv")
    boxes = boxes_at([chip_position(chip) for chip in published["chip_id"]]).assign(tile=published["tile"])
    kept = ((published["bad_pct_max"] < 5) & (published["na_count"] == 0)).to_numpy()

    def percents(split: np.ndarray) -> list[float]:  # type: ignore[type-arg]
        chips = boxes.assign(split=split)[kept & np.isin(split, SPLIT_NAMES)]
        report = leakage_report(pd.concat([chips, leakage(chips)], axis=1))
        return [round(float(report[name][0]), 1) for name in LEAKAGE]

    assert percents(random_split(boxes["chip_id"], Shares(0.8, 0), 42)) == [55.1, 42.9, 91.4, 81.4]
    by_blocks = block_split(boxes, Shares(0.8, 0), 42)
    assert percents(by_blocks)[:2] == [0, 0]
    assert percents(by_blocks)[3] == 0
    assert (by_blocks == BUFFER).sum() < 80
    by_tiles = block_split(boxes, Shares(0.8, 0), 42, "tile")
    assert percents(by_tiles)[:3] == [0, 0, 0]
    assert (by_tiles == BUFFER).sum() < 80


def test_files_say_who_is_where() -> None:
    ids = [chip_id(1, col) for col in range(5)]
    files = {TRAIN: ids[:2], VALIDATION: [ids[2]], TEST: [chip_id(9, 9)]}
    assert list(split_by_files(ids, files)) == [TRAIN, TRAIN, VALIDATION, UNASSIGNED, UNASSIGNED]
    with pytest.raises(InputError, match=r"^chip_001_002 is in the files of validation and of test"):
        split_by_files(ids, {TRAIN: ids[:2], VALIDATION: ids[2:3], TEST: ids[2:3]})
    with pytest.raises(
        InputError, match=r"^chip_001_000, .* and 2 more are in the files of train and of test"
    ):
        many = [chip_id(1, col) for col in range(7)]
        split_by_files(ids, {TRAIN: many, TEST: many[::-1]})


@pytest.mark.parametrize(
    "text",
    [
        "ids\n257_266\n003_1000\n",
        "chip_257_266\nchip_003_1000",
        '"id","tile"\r\n"257_266","13TDE"\r\n"chip_003_1000","13TDE"\r\n\r\n',
        "\ufeff,ids\n0,257_266\n1,003_1000\n",
        "257_266\n\n003_1000\n",
    ],
)
def test_lists_of_ids_are_read_as_others_write_them(text: str) -> None:
    assert parse_ids(text, "train_ids.csv") == ["chip_257_266", "chip_003_1000"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ids\n257_266\n25_266\n", "no chip id such as 257_266 in line 3: '25_266'"),
        ("ids\n257_266_1\n", "in line 2"),
        ("ids\nchip_257_266_merged.tif\n", "in line 2"),
        ("", "has no chip ids"),
        ("ids\n", "has no chip ids"),
        ("\x00\x01", "has no chip ids"),
    ],
)
def test_lists_that_are_none_are_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_ids(text, "train_ids.csv")
