"""Whether a dataset is what its tables say: every file that they name, hashed again.

Belongs here: finding what is missing or changed. Does not: mending it; materializing the table's asset again does.
"""

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass

from crop_assets.layout import Layout
from crop_assets.parallel import in_parallel
from resources.errors import IntegrityError
from resources.store import DatasetStore
from resources.tables import content_hash, read_table, stored_table


@dataclass(frozen=True)
class Finding:
    """A file of the store that is not as a table says, or a table that is none."""

    file: str
    problem: str


@dataclass(frozen=True)
class Verified:
    """What was looked at, and what is wrong with it."""

    tables: int
    files: int
    findings: list[Finding]


def dataset_years(store: DatasetStore, dataset: str) -> list[int]:
    """The years of a dataset in the store, in order."""
    folder = store.path(f"training_datasets/{dataset}")
    found = [path.name for path in folder.iterdir()] if folder.exists() else []
    return sorted(int(name) for name in found if name.isdecimal())


def verify_dataset(
    store: DatasetStore, layout: Layout, pool: Executor, progress: Callable[[int], None] | None = None
) -> Verified:
    """Hash again the rows of every table of a year's dataset, and every file that the tables name.

    The tables are those of the year and of the tiles in its tile map: what an earlier recipe left behind for other
    tiles is no part of the dataset. `progress` gets the number of tables done.
    """
    tables = _tables(store, layout)
    files, findings = 0, []
    for done, name in enumerate(tables, start=1):
        named, problems = _verify_table(store, name, pool)
        files += named
        findings += problems
        if progress:
            progress(done)
    return Verified(len(tables), files, findings)


def table_count(store: DatasetStore, layout: Layout) -> int:
    """How many tables `verify_dataset` goes through."""
    return len(_tables(store, layout))


def _tables(store: DatasetStore, layout: Layout) -> list[str]:
    folder = layout.file("tables")
    tiles = None
    if store.exists(layout.table("tile_map")):
        try:
            tiles = set(read_table(store, layout.table("tile_map"))["tile"])
        except IntegrityError:
            # it is told of as a finding; all tables are gone through then
            tiles = None
    names = [name for name in store.names(folder) if name.endswith(".parquet")]
    for asset in [name for name in store.names(folder) if not name.endswith(".parquet")]:
        of_tiles = [name for name in store.names(asset) if name.endswith(".parquet")]
        names += [
            name for name in of_tiles if tiles is None or name[: -len(".parquet")].rsplit("/", 1)[1] in tiles
        ]
    return names


def _verify_table(store: DatasetStore, name: str, pool: Executor) -> tuple[int, list[Finding]]:
    try:
        stored = stored_table(store, name)
        if stored is None:
            return 0, []
        if content_hash(read_table(store, name)) != stored.data_version:
            return 0, [Finding(name, "its rows are not those that were written")]
    except IntegrityError as error:
        return 0, [Finding(name, str(error))]
    asset = name.split("/tables/", 1)[1].removesuffix(".parquet")

    def check(file: str) -> Finding | None:
        try:
            same = store.sha256(file) == stored.provenance["files"][file]
        except FileNotFoundError:
            return Finding(file, f"is missing; {asset} names it")
        except OSError as error:
            return Finding(file, f"cannot be read: {error}")
        return None if same else Finding(file, f"has changed since {asset} was made")

    files = sorted(stored.provenance.get("files", {}))
    return len(files), [found for found in in_parallel(pool, check, files) if found]
