"""Whether a dataset is what its tables say: every file that they name, hashed again.

Belongs here: finding what is missing or changed. Does not: mending it; materializing the table's asset again does.
"""

import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

from crop_assets.layout import Layout
from crop_assets.parallel import in_parallel
from crop_assets.schemas import SCHEMAS, TILE_MAP
from resources.errors import IntegrityError, NotFoundError, UnsafeNameError
from resources.store import DatasetStore
from resources.tables import read_table, stored_table

_SUFFIX = ".parquet"


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


def dataset_tables(store: DatasetStore, layout: Layout) -> list[str]:
    """Names of the tables of a year's dataset: those of the year, and of the tiles in its tile map.

    What an earlier recipe left behind for other tiles is no part of the dataset, nor a table that no asset has.
    """
    folder = layout.file("tables")
    tiles = None
    if store.exists(layout.table("tile_map")):
        # a broken one is told of as a finding; all tables are gone through then
        with contextlib.suppress(IntegrityError):
            tiles = set(read_table(store, layout.table("tile_map"), TILE_MAP)["tile"])
    names: list[str] = []
    for entry in store.names(folder):
        if entry.endswith(_SUFFIX):
            names.append(entry)
            continue
        for name in store.names(entry):
            tile = name.rsplit("/", 1)[1].removesuffix(_SUFFIX)
            if name.endswith(_SUFFIX) and (tiles is None or tile in tiles):
                names.append(name)
    return [name for name in names if _asset(name) in SCHEMAS]


def _asset(name: str) -> str:
    """The asset whose table has this name: <asset>.parquet, or that of a tile, <asset>/<tile>.parquet."""
    return name.split("/tables/", 1)[1].removesuffix(_SUFFIX).split("/", 1)[0]


def verify_tables(
    store: DatasetStore, tables: Sequence[str], pool: Executor, progress: Callable[[int], None] | None = None
) -> Verified:
    """Hash again the rows of tables, and every file that they name. `progress` gets the number of tables done.

    Raises ResourceError where an object store cannot be asked: that says nothing of the files.
    """
    files, findings = 0, []
    for done, name in enumerate(tables, start=1):
        named, problems = _verify_table(store, name, pool)
        files += named
        findings += problems
        if progress:
            progress(done)
    return Verified(len(tables), files, findings)


def _verify_table(store: DatasetStore, name: str, pool: Executor) -> tuple[int, list[Finding]]:
    try:
        stored = stored_table(store, name)
        if stored is None:
            return 0, []
        read_table(store, name, SCHEMAS[_asset(name)])
    except (IntegrityError, NotFoundError) as error:
        return 0, [Finding(name, str(error))]
    except OSError as error:
        return 0, [Finding(name, f"cannot be read: {error}")]
    made = name.split("/tables/", 1)[1].removesuffix(_SUFFIX)

    def check(file: str) -> Finding | None:
        try:
            same = store.sha256(file) == stored.provenance["files"][file]
        except FileNotFoundError:
            return Finding(file, f"is missing; {made} names it")
        except UnsafeNameError as error:
            return Finding(file, str(error))
        except OSError as error:
            return Finding(file, f"cannot be read: {error}")
        return None if same else Finding(file, f"has changed since {made} was made")

    files = sorted(stored.provenance.get("files", {}))
    return len(files), [found for found in in_parallel(pool, check, files) if found]
