"""The files that make up a dataset, by what the stages record, and those that are published."""

from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

from crop_assets.layout import Layout
from resources.errors import IntegrityError
from resources.store import DatasetStore
from resources.tables import stored_table

_BAND_VALUES = "band_stats"
"""Its binaries are as large as the chips and can be made from them: nobody who gets the dataset needs them."""


def recorded_files(store: DatasetStore, layout: Layout, stages: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Stage and SHA-256 of each file that the tables of year stages record, by its name in the dataset's folder.

    Binaries of band values are left out. A stage without a table has no files. Raises IntegrityError if a table,
    perhaps manipulated, names a file outside the folder.
    """
    found: dict[str, tuple[str, str]] = {}
    for stage in stages:
        stored = stored_table(store, layout.table(stage))
        for name, digest in (stored.provenance.get("files", {}) if stored else {}).items():
            if stage != _BAND_VALUES or not name.endswith(".npy"):
                found[name_in_dataset(layout, name)] = stage, digest
    return dict(sorted(found.items()))


def name_in_dataset(layout: Layout, name: str) -> str:
    """A name in the store, relative to the dataset's folder, such as chips_filtered/chip_257_266_merged.tif.

    Raises IntegrityError if it is outside that folder.
    """
    path = PurePosixPath(name)
    if str(path) != name or ".." in path.parts or PurePosixPath(layout.root) not in path.parents:
        raise IntegrityError(
            f"a table of {layout.root} names {name!r:.200}, which is outside that folder; materialize splits and "
            "everything downstream again"
        )
    return name.removeprefix(f"{layout.root}/")


def published_names(
    layout: Layout, files: Iterable[str], later: Mapping[str, tuple[str, str]]
) -> dict[str, str]:
    """Name in the published folder -> name in the store: `files` of the table dataset_files, and those `later` ones
    that describe the dataset. Raises IntegrityError if one is outside the dataset's folder.
    """
    names = sorted({*files, *later})
    return {name_in_dataset(layout, layout.file(name)): layout.file(name) for name in names}
