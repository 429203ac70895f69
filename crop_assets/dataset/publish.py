"""Decides which files of a year make up the published dataset."""

from collections.abc import Sequence
from pathlib import PurePosixPath

import pandas as pd

from crop_assets.layout import Layout
from resources.errors import IntegrityError
from resources.store import DatasetStore
from resources.tables import stored_table

_LEFT_OUT = ".npy"
"""Binaries of band values are as large as the chips, and can be made from them."""


def published_names(
    store: DatasetStore, layout: Layout, splits: pd.DataFrame, tables: Sequence[str]
) -> dict[str, str]:
    """Name in the published folder -> name in the store: the kept chips, and the files that `tables` name.

    Names are relative to the dataset folder of the year, such as chips_filtered/chip_257_266_merged.tif. Raises
    IntegrityError if a table, perhaps manipulated, names a file outside that folder.
    """
    names = [*splits["merged_path"], *splits["mask_path"]]
    for table in tables:
        stored = stored_table(store, layout.table(table))
        names += stored.provenance.get("files", {}) if stored else ()
    if foreign := [name for name in names if not _is_below(layout.root, name)]:
        raise IntegrityError(
            f"a table of {layout.root} names {foreign[0]!r:.200}, which is outside that folder; materialize splits and "
            "everything downstream again"
        )
    return {
        name.removeprefix(f"{layout.root}/"): name for name in sorted(names) if not name.endswith(_LEFT_OUT)
    }


def _is_below(root: str, name: str) -> bool:
    path = PurePosixPath(name)
    return str(path) == name and ".." not in path.parts and PurePosixPath(root) in path.parents
