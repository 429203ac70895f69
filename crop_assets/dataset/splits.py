"""Assigns chips to training, validation and test, and measures how near these lie to training chips."""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from crop_assets.chip_grid import GRID_COLS, chip_position, is_chip_id
from crop_assets.classes import CLASS_COLUMNS
from crop_assets.errors import InputError

SPLIT_NAMES = TRAIN, VALIDATION, TEST = "train", "validation", "test"
BUFFER = "buffer"
"""Reason of a training chip that touches a validation or test chip, and is in no split for that."""
UNASSIGNED = "in_no_split"
"""Reason of a chip that the files of a given split do not name."""
TOUCHES, BORDERS, SAME_TILE, SAME_BLOCK = LEAKAGE = (
    "touches_train",
    "borders_train",
    "in_train_tile",
    "in_train_block",
)


class SplitFiles(NamedTuple):
    """Names in the dataset's folder: the list of a split's ids without `chip_`, below a heading; the folder of its
    chips; and the lists of its ids with `chip_`.
    """

    ids: str
    folder: str
    lists: tuple[str, ...]


OF_SPLIT = {
    # the specification's name, and TerraTorch's
    TRAIN: SplitFiles("train_ids.csv", "training_chips", ("train_data.txt", "training_data.txt")),
    VALIDATION: SplitFiles("val_ids.csv", "validation_chips", ("validation_data.txt",)),
    TEST: SplitFiles("test_ids.csv", "test_chips", ("test_data.txt",)),
}
LISTS = tuple(name for files in OF_SPLIT.values() for name in files.lists)
_NAMED = 5
_BY_DIRECTION = [(rows, cols) for rows in (-1, 0, 1) for cols in (-1, 0, 1) if (rows, cols) != (0, 0)]
_ID_IN_LINE = re.compile(r"(?:^|[,;\s\"'])(?:chip_)?([0-9]{3,4}_[0-9]{3,4})(?=$|[,;\s\"'])")


@dataclass(frozen=True)
class Shares:
    """The shares of chips that train and test; the rest validates."""

    train: float
    test: float

    @property
    def by_split(self) -> dict[str, float]:
        """Share of each split that has one."""
        shares = {TRAIN: self.train, VALIDATION: 1 - self.train - self.test, TEST: self.test}
        # 1 - 0.8 - 0.2 is not quite 0
        return {split: share for split, share in shares.items() if share > 1e-9}


def random_split(chip_ids: Iterable[str], shares: Shares, seed: int) -> NDArray[np.object_]:
    """The split of each chip, by a hash of seed and id alone: other chips change nothing.

    So the shares are those of a draw: of 5,000 chips, 80 % are 3,945 to 4,055 in 95 of 100 datasets, of 36 chips 24 to
    33. The same on any machine.
    """
    hashes = (hashlib.sha256(f"{seed}:{chip}".encode()).digest() for chip in chip_ids)
    drawn = np.array([int.from_bytes(digest[:6], "big") / 2**48 for digest in hashes])
    split = np.full(len(drawn), VALIDATION, dtype=object)
    split[drawn < shares.train] = TRAIN
    if shares.test:
        split[drawn >= 1 - shares.test] = TEST
    return split


def block_split(boxes: pd.DataFrame, shares: Shares, seed: int, whole: str = "block") -> NDArray[np.object_]:
    """The split of each chip box, or BUFFER: whole blocks are in one split, and no validation or test chip touches a
    training chip, at an edge or a corner.

    `boxes` has chip_id, row, col, class_0 to class_13 (pixels) and `whole`, the column whose values stay together:
    the block, or the tile, so that no validation or test chip shares a tile with a training chip. The result depends
    on the set of boxes and the seed, and not on which of them are made, so that new tiles move no chip.

    Blocks are assigned one after another, the largest first and equals in the order of a seeded hash, each to the
    split that then is nearest to its share of the chips and of the pixels of each class (iterative stratification:
    Sechidis, Tsoumakas, Vlahavas 2011, for sums in place of labels); then single blocks move as long as that brings
    the splits nearer to their shares. Training chips that touch another split are the buffer.
    """
    if boxes.empty:
        return np.empty(0, dtype=object)
    names, block = np.unique(boxes[whole].to_numpy(dtype=str), return_inverse=True)
    of_splits = shares.by_split
    amounts = _amounts(boxes, block, len(names))
    order = _largest_first(names, np.bincount(block), seed)
    at = _assigned(amounts, np.array(list(of_splits.values())), order)
    split = np.array(list(of_splits), dtype=object)[at[block]]
    trains = split == TRAIN
    rows, cols = boxes["row"].to_numpy(), boxes["col"].to_numpy()
    split[trains & _touching(rows, cols, ~trains, _BY_DIRECTION)] = BUFFER
    return split


def _amounts(boxes: pd.DataFrame, block: NDArray[np.intp], blocks: int) -> NDArray[np.float64]:
    """What each block has of all chips and of the pixels of each class, as shares of their totals, with weights.

    The chips weigh as much as all classes together.
    """
    parts = [np.ones(len(boxes)), *(boxes[name].to_numpy(dtype=float) for name in CLASS_COLUMNS[1:])]
    sums = np.stack([np.bincount(block, part, minlength=blocks) for part in parts], axis=1)
    totals = sums.sum(axis=0)
    found = totals > 0
    weights = np.ones(found.sum())
    weights[0] = max(1, found.sum() - 1)
    return np.asarray(sums[:, found] / totals[found] * np.sqrt(weights))


def _largest_first(names: NDArray[np.str_], sizes: NDArray[np.intp], seed: int) -> NDArray[np.intp]:
    hashes = [hashlib.sha256(f"{seed}:{name}".encode()).hexdigest() for name in names]
    return np.lexsort((np.array(hashes), -sizes))


def _assigned(
    amounts: NDArray[np.float64], shares: NDArray[np.float64], order: NDArray[np.intp]
) -> NDArray[np.intp]:
    """The split of each block, so that the splits come near to their shares of each amount."""
    aims = shares[:, None] * amounts.sum(axis=0)
    have = np.zeros_like(aims)
    at = np.full(len(amounts), -1)

    def costs(amount: NDArray[np.float64]) -> NDArray[np.float64]:
        """How much farther from its aims each split would be with this amount, relative to its share."""
        return np.asarray((amount * (2 * (have - aims) + amount)).sum(axis=1) / shares)

    for block in order:
        at[block] = costs(amounts[block]).argmin()
        have[at[block]] += amounts[block]
    moved = True
    while moved:
        moved = False
        for block in order:
            have[at[block]] -= amounts[block]
            cost = costs(amounts[block])
            best = int(cost.argmin())
            # not for a rounding error, which could go on for ever
            if cost[best] < cost[at[block]] - 1e-12:
                at[block], moved = best, True
            have[at[block]] += amounts[block]
    return at


def split_by_files(chip_ids: Sequence[str], files: Mapping[str, Sequence[str]]) -> NDArray[np.object_]:
    """The split of each chip by lists of ids, UNASSIGNED if none has it.

    Raises InputError if an id is in two lists.
    """
    of_id: dict[str, str] = {}
    for split, ids in files.items():
        if twice := sorted(one for one in set(ids) if of_id.get(one, split) != split):
            verb = "is" if len(twice) == 1 else "are"
            raise InputError(f"{some_ids(twice)} {verb} in the files of {of_id[twice[0]]} and of {split}")
        of_id |= dict.fromkeys(ids, split)
    return np.array([of_id.get(chip, UNASSIGNED) for chip in chip_ids], dtype=object)


def parse_ids(text: str, name: str | Path) -> list[str]:
    """The chip ids of a list such as train_ids.csv or training_data.txt, with chip_.

    One id a line, with or without chip_, perhaps beside other columns; the first line may be a heading. Raises
    InputError for a line without an id, and if there is none at all.
    """
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        match = _ID_IN_LINE.search(line)
        chip = f"chip_{match[1]}" if match else ""
        if is_chip_id(chip):
            found.append(chip)
        elif number > 1 and line.strip():
            raise InputError(f"{name} has no chip id such as 257_266 in line {number}: {line[:60]!r}")
    if not found:
        raise InputError(f"{name} has no chip ids")
    return found


def some_ids(ids: Sequence[str]) -> str:
    """The first ids, and how many more there are, for a message."""
    more = f" and {len(ids) - _NAMED:,} more" if len(ids) > _NAMED else ""
    return f"{', '.join(ids[:_NAMED])}{more}"


def leakage(chips: pd.DataFrame) -> pd.DataFrame:
    """Whether each validation and test chip touches a training chip (8 neighbours), borders on one (shares an edge: 4
    neighbours), or shares its tile or block with one; bool columns named by LEAKAGE. False for training chips.

    `chips` has chip_id, split, tile and block.
    """
    rows, cols = np.array([chip_position(chip) for chip in chips["chip_id"]], dtype=int).reshape(-1, 2).T
    trains = (chips["split"] == TRAIN).to_numpy()
    edges = [step for step in _BY_DIRECTION if 0 in step]
    found = {
        TOUCHES: _touching(rows, cols, trains, _BY_DIRECTION),
        BORDERS: _touching(rows, cols, trains, edges),
        SAME_TILE: chips["tile"].isin(chips.loc[trains, "tile"]).to_numpy(),
        SAME_BLOCK: chips["block"].isin(chips.loc[trains, "block"]).to_numpy(),
    }
    return pd.DataFrame({name: near & ~trains for name, near in found.items()}, index=chips.index)


def _touching(
    rows: NDArray[np.int_],
    cols: NDArray[np.int_],
    others: NDArray[np.bool_],
    steps: Iterable[tuple[int, int]],
) -> NDArray[np.bool_]:
    """Which cells of the chip grid have one of `others` a step away."""
    # a column more than the grid has, so that the last of a row is no neighbour of the first of the next
    cells = rows.astype(np.int64) * (GRID_COLS + 1) + cols
    near = np.zeros(len(cells), bool)
    for down, right in steps:
        near |= np.isin(cells + down * (GRID_COLS + 1) + right, cells[others])
    return near


def leakage_report(chips: pd.DataFrame) -> pd.DataFrame:
    """How many chips of validation and test are near to training, one row for each split that has chips.

    `chips` has split and the columns of `leakage`. Columns: split, chips, and for each of LEAKAGE the percentage.
    """
    others = chips[chips["split"] != TRAIN]
    shares = others.groupby("split")[list(LEAKAGE)].mean() * 100
    counts = others.groupby("split").size().rename("chips")
    report = pd.concat([counts, shares], axis=1).reindex([s for s in SPLIT_NAMES if s in counts.index])
    return report.rename_axis("split").reset_index()
