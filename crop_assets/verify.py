"""Checks a dataset against its tables by hashing every file again.

Materializing the asset again fixes what is missing or changed.
"""

import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

from crop_assets.description.files import WALKED_FOLDERS
from crop_assets.layout import Layout
from crop_assets.schemas import SCHEMAS, TILE_MAP
from resources.errors import IntegrityError, NotFoundError, UnsafeNameError
from resources.parallel import in_parallel
from resources.store import DatasetStore
from resources.tables import read_table, stored_table

_SUFFIX = ".parquet"


@dataclass(frozen=True)
class BadFile:
    """A file of the store that does not match its table, or an invalid table."""

    file: str
    problem: str


@dataclass(frozen=True)
class VerificationReport:
    """The number of tables and files checked, and those that are wrong. Of `files`, `partial` are band files that have
    only the blocks under the chips.
    """

    tables: int
    files: int
    partial: int
    bad_files: list[BadFile]
    named: frozenset[str] = frozenset()
    """The names of the files."""


def dataset_tables(store: DatasetStore, layout: Layout) -> list[str]:
    """Names of the tables of a year's dataset: those of the year, and those of the tiles in its tile map.

    Tables of other tiles, left behind by an earlier recipe, and tables that belong to no asset are not included.
    """
    folder = layout.file("tables")
    tiles = None
    if store.exists(layout.table("tile_map")):
        # a damaged tile map is reported later; then all tables are checked
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
    """The asset of a table with this name: <asset>.parquet, or for a tile <asset>/<tile>.parquet."""
    return name.split("/tables/", 1)[1].removesuffix(_SUFFIX).split("/", 1)[0]


def verify_tables(
    store: DatasetStore, tables: Sequence[str], pool: Executor, progress: Callable[[int], None] | None = None
) -> VerificationReport:
    """Hash the rows of tables, and every file that they name, again. `progress` gets the number of tables done.

    Raises ResourceError if an object store is not available, because then nothing is known about the files.
    """
    files, partial, bad_files = 0, 0, []
    known: set[str] = set()
    for done, name in enumerate(tables, start=1):
        named, in_blocks, bad = _verify_table(store, name, pool)
        known.update(named)
        files += len(named)
        partial += in_blocks
        bad_files += bad
        if progress:
            progress(done)
    return VerificationReport(len(tables), files, partial, bad_files, frozenset(known))


def unknown_files(store: DatasetStore, layout: Layout, verified: VerificationReport) -> list[BadFile]:
    """The files in folders which readers walk that none of the tables names, after `verify_tables` of all tables.

    None if a table could not be read, because the files that it names are unknown then.
    """
    if any(bad.file.startswith(layout.file("tables/")) for bad in verified.bad_files):
        return []
    return [
        BadFile(name, "belongs to no asset, and readers that walk the folder take it; remove it")
        for folder in WALKED_FOLDERS
        for name in store.names(layout.file(folder))
        if name not in verified.named
    ]


def _verify_table(store: DatasetStore, name: str, pool: Executor) -> tuple[list[str], int, list[BadFile]]:
    """The files of a table, how many of them are partial, and those that are wrong."""
    try:
        stored = stored_table(store, name)
        if stored is None:
            return [], 0, []
        frame = read_table(store, name, SCHEMAS[_asset(name)])
    except (IntegrityError, NotFoundError) as error:
        return [], 0, [BadFile(name, str(error))]
    except OSError as error:
        return [], 0, [BadFile(name, f"cannot be read: {error}")]
    made = name.split("/tables/", 1)[1].removesuffix(_SUFFIX)

    def check(file: str) -> BadFile | None:
        try:
            same = store.sha256(file) == stored.provenance["files"][file]
        except FileNotFoundError:
            return BadFile(file, f"is missing; {made} refers to it")
        except UnsafeNameError as error:
            return BadFile(file, str(error))
        except OSError as error:
            return BadFile(file, f"cannot be read: {error}")
        return None if same else BadFile(file, f"has changed since {made} was made")

    files = sorted(stored.provenance.get("files", {}))
    partial = int((frame["blocks"] > 0).sum()) if _asset(name) == "downloaded_bands" else 0
    return files, partial, [found for found in in_parallel(pool, check, files) if found]
