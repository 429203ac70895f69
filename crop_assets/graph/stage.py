"""The declaration of a stage."""

import contextlib
import inspect
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any, Literal

import geopandas as gpd
import pandas as pd
from pydantic import BaseModel

from crop_assets.layout import Layout
from crop_assets.recipe import DatasetRecipe, RecipeFiles
from resources.errors import TryAgainError
from resources.store import DatasetStore
from resources.tables import TableSchema

Scope = Literal["store", "year", "tile"]
_LABELS = ("labels", "tiles")
"""The groups of stages that run before the tile stages."""


@dataclass(frozen=True)
class Run:
    """One materialization of a stage that all datasets of a store share."""

    store: DatasetStore
    recipe: DatasetRecipe
    log: Callable[[str], None]
    warn: Callable[[str], None]


@dataclass(frozen=True)
class YearRun(Run):
    """One materialization of a stage for a CDL year."""

    year: int

    @property
    def layout(self) -> Layout:
        return Layout(self.recipe.dataset, self.year)

    def write_text(self, name: str, text: str) -> str:
        """Write a file at the top of the dataset folder; returns its name in the store."""
        file = self.layout.file(name)
        self.store.write_bytes(file, text.encode())
        return file


@dataclass(frozen=True)
class TileRun(YearRun):
    """One materialization of a stage for a tile of a CDL year; `pool` and `files` are shared by the tiles of a run.

    `handover` is what a stage has kept in memory for a later one of the same tile, which takes it out. A key has all
    that the value depends on, as the name and SHA-256 of a file, so that a stage that finds another file in the store,
    or nothing here, reads its files.
    """

    tile: str
    pool: Executor
    files: RecipeFiles = field(default_factory=RecipeFiles)
    handover: dict[Hashable, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class AllTiles:
    """The tables of a tile stage over all tiles of a year's tile map, with a column `tile`.

    `versions` are the content hashes by tile. `missing` names the tiles without a current table, and why.
    """

    frame: pd.DataFrame
    versions: dict[str, str]
    missing: dict[str, str]


@dataclass(frozen=True)
class Made:
    """The result of a stage: its table, metadata for the UI, and the names of the files in the table.

    `files` may be their SHA-256 by name, if known.
    """

    frame: pd.DataFrame
    metadata: Mapping[str, Any] = field(default_factory=dict)
    files: Iterable[str] | Mapping[str, str] = ()

    def digests(self, store: DatasetStore) -> dict[str, str]:
        """SHA-256 of each file, by name; computed from the store if it is not known."""
        known = self.files if isinstance(self.files, Mapping) else {}
        return {name: known.get(name) or store.sha256(name) for name in sorted(self.files)}


@contextlib.contextmanager
def alone(layout: Layout) -> Iterator[None]:
    """Raise TryAgainError if a file of the dataset that the block reads or has written is removed by another run."""
    try:
        yield
    except FileNotFoundError as error:
        if layout.root not in str(error):
            raise
        name = f"{layout.root}{str(error).rpartition(layout.root)[2]}".strip("'")
        raise TryAgainError(
            f"{name} was removed by another run of this year meanwhile; launch this run again"
        ) from None


@dataclass(frozen=True)
class Source:
    """What a stage reads besides tables. `identity` (JSON values) changes if and only if its content does; that of a
    tile stage, if what concerns the tile does.
    """

    value: Any
    identity: Any
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Finding:
    """The result of a check."""

    passed: bool
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Check:
    """A check of a stage's table of one tile or year, made or reused, with severity WARN.

    `function` takes the table, the tables of all tiles that a year stage was made from, by stage, and the run.
    """

    name: str
    description: str
    function: Callable[[pd.DataFrame, Mapping[str, AllTiles], Any], Finding]


@dataclass(frozen=True)
class Stage:
    """A declared stage. Calling it calls the function that it was declared with."""

    function: Callable[..., Made]
    group: str
    schema: TableSchema
    kinds: frozenset[str]
    fields: Sequence[str] | Callable[[DatasetRecipe], Sequence[str]]
    code_version: str
    source: Callable[..., Source] | None
    again: Callable[..., bool]
    checks: tuple[Check, ...]
    then: Callable[[Any, pd.DataFrame], None] | None
    warnings: tuple[str, ...]
    job: str
    scope: Scope
    tables: tuple[str, ...]
    """The stages whose tables are inputs: the table of the same tile or year, or a tile's rows in the year's table."""
    all_tiles: tuple[str, ...]
    """The tile stages whose tables of all tiles are inputs."""
    services: frozenset[str]
    config: type[BaseModel] | None

    @property
    def name(self) -> str:
        return self.function.__name__

    @property
    def upstream(self) -> tuple[str, ...]:
        """The stages whose tables are inputs, except those in `all_tiles`; these need the year's tile map instead."""
        implied = ("tile_map",) if self.all_tiles and "tile_map" not in self.tables else ()
        return (*self.tables, *implied)

    def recipe_fields(self, recipe: DatasetRecipe) -> Sequence[str]:
        return self.fields(recipe) if callable(self.fields) else self.fields

    def __call__(self, *args: Any, **kwargs: Any) -> Made:
        return self.function(*args, **kwargs)


def stage(
    group: str,
    schema: TableSchema,
    *,
    kinds: Iterable[str] = (),
    fields: Sequence[str] | Callable[[DatasetRecipe], Sequence[str]] = (),
    code_version: str = "1",
    source: Callable[..., Source] | None = None,
    again: Callable[..., bool] = lambda: False,
    checks: Sequence[Check] = (),
    then: Callable[[Any, pd.DataFrame], None] | None = None,
    warnings: Sequence[str] = (),
    job: str = "",
) -> Callable[[Callable[..., Made]], Stage]:
    """Declare a stage by a function. The type of its first parameter, `TileRun`, `YearRun` or `Run`, is the scope.

    The other parameters must have annotations:

    - a DataFrame or GeoDataFrame is the table of the stage with that name. A tile stage gets the table of its own tile
      from another tile stage, and from a year stage the rows of its tile, or all rows if the table has no tiles;
    - `AllTiles` are the tables of the tile stage with that name, over all tiles of the year;
    - `source` is what the function `source` returns;
    - `config` is the configuration of a run, a `dg.Config`;
    - any other is the service with that name (`crop_assets.graph.services`).

    An earlier result is reused if its inputs, the recipe's `fields`, the identity of the source, the configuration
    and the code version are the same and its files are unchanged. `fields` may depend on the recipe.

    `source`, `again` and `then` are called each time: `source` finds what else is read; `again` returns whether to make
    the table although nothing has changed. Their parameters have the same names as the stage's. `then` gets the Dagster
    instance and the table. Texts of the metadata that are named in `warnings` are also logged as warnings. `job` is the
    job that makes the table; by default labels_job, tiles_job or dataset_job.
    """

    def declare(function: Callable[..., Made]) -> Stage:
        parameters = _annotations(function)
        run, *named = parameters.items()
        if run[1] not in (TileRun, YearRun, Run):
            raise TypeError(f"{function.__name__}: its first parameter must be a TileRun, a YearRun or a Run")
        for name, kind in named:
            if kind is inspect.Parameter.empty:
                raise TypeError(f"{function.__name__}: its parameter {name} must have an annotation")
        others = [(name, kind) for name, kind in named if name not in ("source", "config")]
        scope: Scope = "tile" if run[1] is TileRun else "year" if run[1] is YearRun else "store"
        tables = [name for name, kind in others if kind in (pd.DataFrame, gpd.GeoDataFrame)]
        all_tiles = [name for name, kind in others if kind is AllTiles]
        services = {name for name, _ in others} - {*tables, *all_tiles}
        for other in (source, again):
            services |= set(_annotations(other)) - {"run", "config"} if other else set()
        default = "labels_job" if group in _LABELS else "dataset_job"
        return Stage(
            function,
            group,
            schema,
            frozenset(kinds),
            fields,
            code_version,
            source,
            again,
            tuple(checks),
            then,
            tuple(warnings),
            job or ("tiles_job" if scope == "tile" else default),
            scope,
            tuple(tables),
            tuple(all_tiles),
            frozenset(services),
            parameters.get("config"),
        )

    return declare


def call(function: Callable[..., Any], known: Mapping[str, Any]) -> Any:
    """Call a function with the known values that its parameters name."""
    return function(**{name: known[name] for name in inspect.signature(function).parameters})


def _annotations(function: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(function, eval_str=True).parameters
    return {name: parameter.annotation for name, parameter in parameters.items()}
