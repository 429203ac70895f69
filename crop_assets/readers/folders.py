"""The folders and lists of chips by split, as TerraTorch's MultiTemporalCropClassification expects them."""

from concurrent.futures import Executor

import pandas as pd

from crop_assets.dataset.splits import LISTS, OF_SPLIT, TEST
from crop_assets.hls import POSITIONS
from crop_assets.layout import Layout
from resources.parallel import in_parallel
from resources.store import DatasetStore


def write_folders(
    store: DatasetStore, layout: Layout, splits: pd.DataFrame, pool: Executor
) -> tuple[pd.DataFrame, list[str]]:
    """Make each split's folder hold exactly its chips, as hard links or copies of those in chips_filtered.

    Returns the chips with the paths of their files there, in the order of `splits`, and the names of files that did not
    belong there and are removed. The lists are removed first, and the caller writes them last, because readers open
    nothing without them.
    """
    for name in LISTS:
        store.remove(layout.file(name))
    chips = splits[["chip_id", "split", *(f"{position}_date" for position in POSITIONS)]].copy()
    folders = [OF_SPLIT[split].folder for split in splits["split"]]
    copies = []
    for kind, name_of in (("merged", layout.merged), ("mask", layout.mask)):
        chips[f"{kind}_path"] = list(map(name_of, splits["chip_id"], folders))
        copies += list(zip(splits[f"{kind}_path"], chips[f"{kind}_path"], strict=True))
    found = {name for files in OF_SPLIT.values() for name in store.names(layout.file(files.folder))}
    removed = sorted(found - {name for _, name in copies})
    for name in removed:
        store.remove(name)
    in_parallel(pool, lambda pair: store.copy_file(*pair), copies)
    return chips, removed


def list_texts(chips: pd.DataFrame) -> dict[str, str]:
    """The text of each list by its name: the sorted ids of a split, without a blank line.

    There is no list for testing if no chip tests.
    """
    texts: dict[str, str] = {}
    for split, files in OF_SPLIT.items():
        ids = sorted(chips.loc[chips["split"] == split, "chip_id"])
        if ids or split != TEST:
            texts |= dict.fromkeys(files.lists, "".join(f"{chip}\n" for chip in ids))
    return texts
