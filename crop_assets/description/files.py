"""The files of a dataset that its recipients get, and whether they are as they were written."""

from collections.abc import Iterable, Mapping
from concurrent.futures import Executor
from pathlib import PurePosixPath

import pandas as pd

from crop_assets.dataset.publish import name_in_dataset
from crop_assets.dataset.splits import OF_SPLIT
from crop_assets.errors import InputError
from crop_assets.layout import PICTURE_TYPES, Layout
from resources.errors import UnsafeNameError
from resources.parallel import in_parallel
from resources.store import DatasetStore

_MEDIA_TYPES = {
    ".tif": "image/tiff",
    ".csv": "text/csv",
    ".txt": "text/plain",
    ".json": "application/json",
    ".geojson": "application/geo+json",
    ".parquet": "application/vnd.apache.parquet",
    ".yaml": "application/yaml",
    ".py": "text/x-python",
    ".md": "text/markdown",
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".webp": "image/webp",
    ".jpg": "image/jpeg",
    **{f".{suffix}": media_type for suffix, media_type in PICTURE_TYPES.items()},
}
_OTHER = "application/octet-stream"
SPLIT_FOLDERS = tuple(files.folder for files in OF_SPLIT.values())
"""Folders of which readers take each file, and which have no files but those of a dataset."""
_CHIPS = ("chips_filtered", *SPLIT_FOLDERS)
WALKED_FOLDERS = (*_CHIPS, "exports")
"""Folders of which readers take the files that they find. The first may also have chips that are in no split."""
_SAMPLED = 64
"""Images and masks that are hashed in an object store, where each must be downloaded."""


def file_rows(
    store: DatasetStore, layout: Layout, splits: pd.DataFrame, recorded: Mapping[str, tuple[str, str]]
) -> pd.DataFrame:
    """The table dataset_files: images and masks of `splits`, and the files that year stages have `recorded`.

    Checksums are those of the tables, and sizes are read from one listing of each folder. Raises InputError that names
    a file which is not there, IntegrityError if a table names one outside the dataset's folder.
    """
    chips = {
        name_in_dataset(layout, name): ("filtered_chips", digest)
        for kind in ("merged", "mask")
        for name, digest in zip(splits[f"{kind}_path"], splits[f"{kind}_sha256"], strict=True)
    }
    files = dict(sorted((chips | dict(recorded)).items()))
    sizes = _sizes(store, layout, files)
    if missing := [name for name in files if name not in sizes]:
        stage = files[missing[0]][0]
        more = f" and {len(missing) - 1:,} others are" if len(missing) > 1 else " is"
        raise InputError(f"{layout.file(missing[0])}{more} missing; materialize {stage} again")
    rows = [(name, stage, media_type(name), sizes[name], digest) for name, (stage, digest) in files.items()]
    return pd.DataFrame(rows, columns=["file", "stage", "media_type", "bytes", "sha256"])


def media_type(name: str) -> str:
    return _MEDIA_TYPES.get(PurePosixPath(name).suffix, _OTHER)


def file_problems(
    store: DatasetStore, layout: Layout, files: pd.DataFrame, pool: Executor
) -> list[tuple[str, str]]:
    """The `files` (file, stage, bytes, sha256) that are missing or changed, with what is wrong.

    All sizes are compared, and the checksums of all files; in an object store, those of all but images and masks, of
    which 64 are hashed.
    """
    columns = (files[name] for name in ("file", "stage", "bytes", "sha256"))
    recorded = {name: tuple(row) for name, *row in zip(*columns, strict=True)}
    sizes = _sizes(store, layout, recorded)
    problems: dict[str, str] = {}
    for name, (stage, size, _) in recorded.items():
        if name not in sizes:
            problems[name] = f"is missing; {stage} wrote it"
        elif sizes[name] != size:
            problems[name] = f"has {sizes[name]:,} bytes, and {stage} wrote {size:,}"
    hashed = [name for name in recorded if name not in problems]
    if not store.is_local:
        chips = [name for name in hashed if name.partition("/")[0] in _CHIPS]
        left_out = set(chips) - set(chips[:: max(1, len(chips) // _SAMPLED)])
        hashed = [name for name in hashed if name not in left_out]

    def is_unchanged(name: str) -> bool:
        try:
            return bool(store.sha256(layout.file(name)) == recorded[name][2])
        except (FileNotFoundError, UnsafeNameError):
            return False

    for name, same in zip(hashed, in_parallel(pool, is_unchanged, hashed), strict=True):
        if not same:
            problems[name] = f"has changed since {recorded[name][0]} wrote it"
    return sorted(problems.items())


def foreign_files(store: DatasetStore, layout: Layout, files: pd.DataFrame) -> list[tuple[str, str]]:
    """The files in the folders of splits that the table dataset_files does not have, with what is wrong."""
    known = set(files["file"])
    found = (
        name_in_dataset(layout, name) for folder in SPLIT_FOLDERS for name in store.names(layout.file(folder))
    )
    return [
        (name, "is not part of the dataset, and readers that walk the folder take it")
        for name in found
        if name not in known
    ]


def _sizes(store: DatasetStore, layout: Layout, files: Iterable[str]) -> dict[str, int]:
    """Bytes of all files in the folders of `files`, by name in the dataset's folder."""
    folders = {str(PurePosixPath(name).parent) for name in files}
    sizes: dict[str, int] = {}
    for folder in sorted(folders):
        where = layout.root if folder == "." else layout.file(folder)
        prefix = "" if folder == "." else f"{folder}/"
        sizes |= {f"{prefix}{name}": size for name, size in store.sizes(where).items()}
    return sizes
