"""Whether a stored table is still what the recipe and its inputs would make.

Each table's provenance holds the recipe fields that it was made with and the content hashes of what it was made
from. So a table that was made by another recipe, or from tables that have changed since, is told from a
current one, however far up the change lies, and the two are never mixed.

Belongs here: that judgement. Does not: making tables.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from pydantic import BaseModel, ValidationError

from crop_assets.hls import is_tile
from crop_assets.layout import Layout, tile_grid_table
from crop_assets.recipe import DatasetRecipe
from crop_assets.schemas import SCHEMAS
from resources.store import DatasetStore
from resources.tables import content_hash, read_table, stored_table

_MOST_STAGES = 50
_MAX_NAMED = 100


class _Made(BaseModel, strict=True):
    """What a table records of how it was made; the tile grid was made of no table."""

    fields: dict[str, Any] = {}
    upstream: dict[str, str] = {}
    tile_upstream: list[str] = []
    tiles: dict[str, dict[str, str]] = {}


@dataclass
class Lineage:
    """The stored tables of one dataset and year, under one recipe. What it has read it remembers."""

    store: DatasetStore
    layout: Layout
    recipe: DatasetRecipe
    _depth: int = 0
    _stale: dict[tuple[str, str | None], str] = field(default_factory=dict)
    _frames: dict[str, pd.DataFrame] = field(default_factory=dict)

    def table(self, asset: str, tile: str | None) -> str:
        return tile_grid_table() if asset == "tile_grid" else self.layout.table(asset, tile)

    def read(self, asset: str, tile: str | None) -> pd.DataFrame:
        """All rows of a table. Raises NotFoundError, IntegrityError."""
        return read_table(self.store, self.table(asset, tile), SCHEMAS[asset])

    def provenance(
        self, fields: Iterable[str], upstream: Iterable[str], tile: str | None, tile_assets: Iterable[str]
    ) -> dict[str, Any]:
        """What a table records of how it is made, from the `upstream` tables as they are now."""
        of_tile = set(tile_assets)
        return {
            "fields": self.recipe.values(fields),
            "upstream": {name: self.version(name, tile, name in of_tile) for name in upstream},
            "tile_upstream": sorted(of_tile.intersection(upstream)),
            "recipe_fingerprint": self.recipe.fingerprint(),
        }

    def version(self, asset: str, tile: str | None, per_tile: bool) -> str:
        """Content hash of a table, or of a tile's rows in a table of the year; "" where there is none."""
        stored = stored_table(self.store, self.table(asset, tile if per_tile else None))
        if stored is None:
            return ""
        return stored.data_version if per_tile or tile is None else content_hash(self.rows(asset, tile))

    def rows(self, asset: str, tile: str) -> pd.DataFrame:
        """The rows of a table of the year that belong to a tile; all where it does not tell tiles apart."""
        name = self.table(asset, None)
        if name not in self._frames:
            self._frames[name] = self.read(asset, None)
        frame = self._frames[name]
        return frame[frame["tile"] == tile].reset_index(drop=True) if "tile" in frame.columns else frame

    def stale_because(self, asset: str, tile: str | None) -> str:
        """Why a table is not what would be made now, and what to do; "" where it is.

        Raises IntegrityError where a table cannot be read.
        """
        if (asset, tile) not in self._stale:
            # holds until it is judged, should it turn out to be made from itself
            self._stale[asset, tile] = (
                f"{asset} was made from itself by its own record; materialize {asset} again"
            )
            self._depth += 1
            self._stale[asset, tile] = (
                self._judge(asset, tile)
                if self._depth < _MOST_STAGES
                else f"{asset} was made from tables of tables without end; materialize {asset} again"
            )
            self._depth -= 1
        return self._stale[asset, tile]

    def _judge(self, asset: str, tile: str | None) -> str:
        stored = stored_table(self.store, self.table(asset, tile))
        if stored is None:
            return (
                f"{asset} has not been materialized for {tile or self.layout.year}; materialize {asset} first"
            )
        try:
            made = _Made.model_validate(stored.provenance)
        except ValidationError as error:
            where = ".".join(map(str, error.errors()[0]["loc"]))[:_MAX_NAMED]
            return f"{asset} does not record in {where} what it was made from; materialize {asset} again"
        fields = made.fields
        now = self.recipe.values(set(fields) & set(DatasetRecipe.model_fields))
        changed = [name for name, value in fields.items() if name not in now or now[name] != value]
        if changed:
            named = ", ".join(name[:_MAX_NAMED] for name in changed[:5])
            return f"{asset} was made by another recipe ({named}); materialize {asset} again"
        if unknown := sorted({*made.upstream, *made.tiles} - set(SCHEMAS)):
            named = repr(unknown[0][:_MAX_NAMED])
            return f"{asset} was made from {named}, which is no asset; materialize {asset} again"
        for upstream, version in made.upstream.items():
            per_tile = upstream in made.tile_upstream
            if reason := self.stale_because(upstream, tile if per_tile else None):
                return reason
            if self.version(upstream, tile, per_tile) != version:
                return f"{asset} was made from another {upstream}; materialize {asset} again"
        for upstream, versions in made.tiles.items():
            for of_tile, version in versions.items():
                if not is_tile(of_tile):
                    named = repr(of_tile[:_MAX_NAMED])
                    return f"{asset} was made from {named}, which is no tile; materialize {asset} again"
                if reason := self.stale_because(upstream, of_tile):
                    return f"{asset} was made from {upstream} of {of_tile}, but now {reason}"
                if self.version(upstream, of_tile, per_tile=True) != version:
                    return f"{asset} was made from another {upstream} of {of_tile}; materialize {asset} again"
        return ""
