"""Assigns chips to training and validation."""

import hashlib
from collections.abc import Iterable

import pandas as pd

TRAIN, VALIDATION = "train", "validation"


def split_chips(chip_ids: Iterable[str], train_share: float, seed: int) -> pd.DataFrame:
    """Assign each chip to train or validation; columns chip_id and split, sorted by chip_id.

    Chips are ranked by the SHA-256 of seed and id, and the first floor(train_share * n) are for training. So the
    split depends only on the set of ids and the seed, and is the same on any machine and with any version.
    """
    ids = sorted(set(chip_ids))
    ranked = sorted(ids, key=lambda chip_id: hashlib.sha256(f"{seed}:{chip_id}".encode()).digest())
    train = set(ranked[: int(train_share * len(ids))])
    return pd.DataFrame(
        {"chip_id": ids, "split": [TRAIN if chip_id in train else VALIDATION for chip_id in ids]}, dtype=str
    )
