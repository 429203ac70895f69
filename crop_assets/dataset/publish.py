"""Which files of a year make up the published dataset.

Belongs here: that choice. Does not: how they become blocks (`resources.ipfs.directory`), nor where these go.
"""

from collections.abc import Sequence
from pathlib import PurePosixPath

import pandas as pd

from crop_assets.layout import Layout
from resources.errors import IntegrityError
from resources.store import DatasetStore
from resources.tables import stored_table

_LEFT_OUT = ".npy"
"""Band values are as large as the chips, and made from them again."""


def published_names(
    store: DatasetStore, layout: Layout, splits: pd.DataFrame, tables: Sequence[str]
) -> dict[str, str]:
    """Name in the published folder -> name in the store: the kept chips, and the files that `tables` name.

    Names are those below the year's dataset folder, such as chips_filtered/chip_257_266_merged.tif. Raises
    IntegrityError where a table names a file that lies elsewhere, as others may have made it say.
    """
    names = [*splits["merged_path"], *splits["mask_path"]]
    for table in tables:
        stored = stored_table(store, layout.table(table))
        names += stored.provenance.get("files", {}) if stored else ()
    if foreign := [name for name in names if not _lies_below(layout.root, name)]:
        raise IntegrityError(
            f"{foreign[0]!r:.200} is named by a table of {layout.root} and lies elsewhere; materialize splits and what "
            "follows from it again"
        )
    return {
        name.removeprefix(f"{layout.root}/"): name for name in sorted(names) if not name.endswith(_LEFT_OUT)
    }


def _lies_below(root: str, name: str) -> bool:
    path = PurePosixPath(name)
    return str(path) == name and ".." not in path.parts and PurePosixPath(root) in path.parents
