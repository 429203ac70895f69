"""How far the datasets in a store are: the labels, tiles and dataset of each year, and what is missing and why."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import pandas as pd

from crop_assets.graph.lineage import Lineage
from crop_assets.schemas import tile_names
from resources.errors import IntegrityError, UnsafeNameError


@dataclass(frozen=True)
class YearStatus:
    """A year of a dataset. Reasons are "" for what is done."""

    year: int
    labels: str
    """Why the tile map is not current."""
    tiles: Mapping[str, str]
    """Why the filtered chips of each tile of the tile map are not current; a failed tile's cause."""
    dataset: str
    """Why the dataset is not current."""
    chips: Mapping[str, int] = field(default_factory=dict)
    """Chips of each split of a current dataset."""
    usage: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Files and bytes of each folder of the dataset; "" is the dataset's own folder."""

    @property
    def done(self) -> bool:
        return not (self.labels or self.dataset or any(self.tiles.values()))

    @property
    def missing(self) -> dict[str, str]:
        """The tiles that are not done, with the reasons."""
        return {tile: reason for tile, reason in self.tiles.items() if reason}


def tile_problem(lineage: Lineage, tile: str) -> str:
    """Why the filtered chips of a tile are not current, or cannot be read; "" if they are."""
    try:
        return lineage.of_tile("filtered_chips", tile)[0]
    except (IntegrityError, UnsafeNameError) as error:
        return str(error)


def year_status(
    lineage: Lineage,
    dataset_assets: Collection[str],
    failed_because: Callable[[int, Collection[str]], Mapping[str, str]],
) -> YearStatus:
    """The status of a year, by the recipe of `lineage`.

    `dataset_assets` are those of a year's dataset. `failed_because` returns, of some tiles of a year, those whose last
    run failed, with the causes.
    """
    year = lineage.layout.year
    usage = lineage.store.usage(lineage.layout.root)
    if labels := _problem(lineage, "tile_map") or _problem(lineage, "label_quality"):
        return YearStatus(year, labels, {}, "the labels come first", usage=usage)
    names = tile_names(lineage.read("tile_map", None))
    lineage.read_ahead("filtered_chips", names)
    tiles = {tile: tile_problem(lineage, tile) for tile in names}
    tiles |= failed_because(year, [tile for tile, reason in tiles.items() if reason])
    dataset = next((reason for name in dataset_assets if (reason := _problem(lineage, name))), "")
    counts = pd.Series(dtype=int) if dataset else lineage.read("splits", None)["split"].value_counts()
    chips = {str(split): int(count) for split, count in counts.items()}
    return YearStatus(year, "", tiles, dataset, chips, usage)


def _problem(lineage: Lineage, asset: str) -> str:
    try:
        return lineage.stale_because(asset, None)
    except (IntegrityError, UnsafeNameError) as error:
        return str(error)


def lines_of(status: YearStatus, at_most: int | None) -> list[str]:
    """A year's status for a person, with at most so many of its tiles; with None, all, also those that are done."""
    total, missing = len(status.tiles), status.missing
    labels = "labels done" if not status.labels else f"labels not done: {status.labels}"
    lines = [f"{status.year}  {labels}"]
    if not status.labels:
        lines.append(f"      tiles {total - len(missing)} of {total} done")
        shown = (
            {tile: reason or "done" for tile, reason in status.tiles.items()} if at_most is None else missing
        )
        lines += [f"        {tile}: {reason}" for tile, reason in list(shown.items())[:at_most]]
        if at_most is not None and len(missing) > at_most:
            lines.append(f"        and {len(missing) - at_most} more, which --every lists")
        chips = ", ".join(f"{count:,} {split}" for split, count in status.chips.items())
        lines.append(
            f"      dataset {f'not done: {status.dataset}' if status.dataset else f'done: {chips} chips'}"
        )
    files, size = (sum(one[place] for one in status.usage.values()) for place in (0, 1))
    largest = sorted(status.usage.items(), key=lambda one: -one[1][1])[:3]
    folders = ", ".join(f"{name or 'its own folder'} {megabytes(count)}" for name, (_, count) in largest)
    return [*lines, f"      {files:,} files, {megabytes(size)} ({folders})"]


def json_of(dataset: str, states: Sequence[YearStatus]) -> str:
    """The status of the years of a dataset for a program."""
    years = [asdict(state) | {"done": state.done} for state in states]
    for year in years:
        year["usage"] = {
            name: {"files": files, "bytes": size} for name, (files, size) in year["usage"].items()
        }
    return json.dumps({"dataset": dataset, "years": years}, indent=2)


def megabytes(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
