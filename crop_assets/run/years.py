"""The jobs of a year in order: its labels, its tiles, its dataset."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from crop_assets.errors import InputError
from crop_assets.graph.lineage import Lineage
from crop_assets.layout import Layout
from crop_assets.recipe import DatasetRecipe
from crop_assets.schemas import tile_names
from crop_assets.status import tile_problem
from crop_assets.suggest import did_you_mean
from resources.store import DatasetStore

Until = Literal["labels", "tiles", "dataset"]
_NAMED = 5


@dataclass(frozen=True)
class Outcome:
    """How a job of a year ended. `made` and `reused` count its tables."""

    job: str
    year: int
    success: bool
    made: int
    reused: int
    seconds: float


@dataclass
class Stop:
    """Remembers the signal that stops a command, because an exception is lost if it is raised by a signal that comes
    while Python calls the finalizers of its garbage.
    """

    asked: bool = False

    def handle(self, number: int, frame: object) -> None:
        """The handler of the signal. Raises KeyboardInterrupt."""
        self.asked = True
        raise KeyboardInterrupt

    def check(self) -> None:
        """Raise KeyboardInterrupt if the signal has come."""
        if self.asked:
            raise KeyboardInterrupt


class Runner(Protocol):
    """Where jobs are executed."""

    def run_year(self, job: str, year: int) -> Outcome:
        """Execute a job for the partition of a year."""
        ...

    def run_tiles(self, year: int, tiles: Sequence[str]) -> Outcome:
        """Execute the tile stages of these tiles. A failed tile does not affect the others."""
        ...


@dataclass(frozen=True)
class Years:
    """The years to run, in this order, over one store and by one recipe.

    `tiles` are the only tiles to make; without any, all tiles of each year's tile map are made. `until` is the last
    job; after `tiles` that are not all tiles of a year, a dataset that may not be made without the others is left out.
    """

    store: DatasetStore
    recipe: DatasetRecipe
    years: Sequence[int]
    tiles: Sequence[str] = ()
    until: Until = "dataset"

    def run(self, runner: Runner, log: Callable[[str], None]) -> list[Outcome]:
        """The outcome of each job. A year ends with its failed labels; other years do not.

        Raises InputError if `tiles` names a tile without chips, or the labels were made in another store or by another
        recipe than this one.
        """
        return [outcome for year in self.years for outcome in self._run(runner, year, log)]

    def _run(self, runner: Runner, year: int, log: Callable[[str], None]) -> list[Outcome]:
        outcomes = [runner.run_year("labels_job", year)]
        if not outcomes[0].success or self.until == "labels":
            return outcomes
        tiles = self._tiles(year)
        if not tiles:
            log(f"{year}: no chip box is in any tile, so that there is nothing to make")
        else:
            outcomes.append(runner.run_tiles(year, tiles))
        if self.until == "tiles":
            return outcomes
        if self.tiles and (missing := self._missing(year, tiles)):
            some = ", ".join(list(missing)[:_NAMED]) + (", …" if len(missing) > _NAMED else "")
            log(
                f"the dataset of {year} is not made: {len(missing)} other tiles are missing ({some}), and the recipe's "
                f"max_missing_tiles is {self.recipe.max_missing_tiles}. Run it without --tiles to make them, or set "
                "max_missing_tiles for a dataset without them"
            )
            return outcomes
        return [*outcomes, runner.run_year("dataset_job", year)]

    def _lineage(self, year: int) -> Lineage:
        return Lineage(self.store, Layout(self.recipe.dataset, year), self.recipe)

    def _tiles(self, year: int) -> list[str]:
        lineage = self._lineage(year)
        if reason := lineage.stale_because("tile_map", None):
            raise InputError(
                f"labels_job of {year} is done, but not in {self.store.root} by this recipe: {reason}. The daemon must "
                "have the same CROP_ASSETS_DATA and CROP_ASSETS_RECIPE as this command"
            )
        found = tile_names(lineage.read("tile_map", None))
        if unknown := sorted(set(self.tiles) - set(found)):
            raise InputError(
                f"--tiles: {unknown[0]} has no chip box in {year}{did_you_mean(unknown[0], found)}; there are "
                f"{len(found)} tiles that do, such as {', '.join(found[:_NAMED])}"
            )
        return [tile for tile in found if not self.tiles or tile in self.tiles]

    def _missing(self, year: int, tiles: Sequence[str]) -> Mapping[str, str]:
        """The tiles that hinder the dataset, other than `tiles`, with the reasons; none if few enough are missing."""
        lineage = self._lineage(year)
        others = [tile for tile in tile_names(lineage.read("tile_map", None)) if tile not in tiles]
        missing = {tile: why for tile in others if (why := tile_problem(lineage, tile))}
        return missing if len(missing) > self.recipe.max_missing_tiles else {}


def log_outcomes(outcomes: Sequence[Outcome], log: Callable[[str], None]) -> None:
    """Log a line for each outcome."""
    years = len({outcome.year for outcome in outcomes}) > 1
    for one in outcomes:
        name = f"{one.year} {one.job}" if years else one.job
        work = f"{one.made} tables made, {one.reused} unchanged"
        log(f"{name:<12} {'done' if one.success else 'FAILED':<7} {work:<32} {one.seconds:6.1f} s")
    if not any(one.made for one in outcomes) and all(one.success for one in outcomes):
        log("Nothing has changed, so everything was reused.")
