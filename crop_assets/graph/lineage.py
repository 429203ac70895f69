"""The stored tables of a dataset and year, and whether each is still what the recipe and its inputs would make.

Each table records the recipe fields that it was made with and the content hashes of what it was made from. So a table
that was made by another recipe, or from tables that have changed since, is told from a current one, however far up the
change lies, and the two are never mixed.
"""

import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from pydantic import BaseModel, ValidationError

from crop_assets.hls import is_tile
from crop_assets.layout import Layout, tile_grid_table
from crop_assets.recipe import DatasetRecipe
from crop_assets.schemas import SCHEMAS
from resources.errors import IntegrityError, UnsafeNameError
from resources.store import DatasetStore
from resources.tables import StoredTable, content_hash, read_version, stored_table, write_table

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
    """The stored tables of one dataset and year, under one recipe. It reads each once.

    The tiles of a run have one each, in threads of their own, and share what they read of the year: `of_year`.
    """

    store: DatasetStore
    layout: Layout
    recipe: DatasetRecipe
    of_year: "Lineage | None" = None
    _lock: "threading.RLock" = field(default_factory=threading.RLock)
    _depth: int = 0
    _stale: dict[tuple[str, str | None], str] = field(default_factory=dict)
    _stored: dict[tuple[str, str | None], StoredTable | None] = field(default_factory=dict)
    _frames: dict[tuple[str, str | None], pd.DataFrame] = field(default_factory=dict)
    _row_versions: dict[tuple[str, str], str] = field(default_factory=dict)

    def table(self, asset: str, tile: str | None) -> str:
        """The name of a table in the store."""
        return tile_grid_table() if asset == "tile_grid" else self.layout.table(asset, tile)

    def read(self, asset: str, tile: str | None) -> pd.DataFrame:
        """All rows of a table. Raises NotFoundError; IntegrityError, also if another run has written it meanwhile."""
        with self._holder(tile)._lock:
            frames = self._holder(tile)._frames
            if (asset, tile) not in frames:
                name = self.table(asset, tile)
                frame, version = read_version(self.store, name, SCHEMAS[asset])
                stored = self._holder(tile)._stored.get((asset, tile))
                if stored is not None and stored.data_version != version:
                    raise IntegrityError(
                        f"{name} was written by another run meanwhile; launch this run again"
                    )
                frames[asset, tile] = frame
            return frames[asset, tile].copy()

    def stored(self, asset: str, tile: str | None) -> StoredTable | None:
        """What is recorded of a table, None where there is none. Raises IntegrityError."""
        with self._holder(tile)._lock:
            found = self._holder(tile)._stored
            if (asset, tile) not in found:
                found[asset, tile] = stored_table(self.store, self.table(asset, tile))
            return found[asset, tile]

    def rows(self, asset: str, tile: str) -> pd.DataFrame:
        """The rows of a table of the year that belong to a tile; all where it does not tell tiles apart."""
        frame = self.read(asset, None)
        return frame[frame["tile"] == tile].reset_index(drop=True) if "tile" in frame.columns else frame

    def version(self, asset: str, tile: str | None, per_tile: bool) -> str:
        """Content hash of a table, or of a tile's rows in a table of the year; "" where there is none."""
        stored = self.stored(asset, tile if per_tile else None)
        if stored is None:
            return ""
        if per_tile or tile is None:
            return stored.data_version
        holder = self._holder(None)
        with holder._lock:
            if (asset, tile) not in holder._row_versions:
                holder._row_versions[asset, tile] = content_hash(self.rows(asset, tile))
            return holder._row_versions[asset, tile]

    def record(
        self,
        fields: Iterable[str],
        upstream: Iterable[str],
        tile: str | None,
        tile_assets: Iterable[str],
        tiles: Mapping[str, Mapping[str, str]],
        identified: Any,
    ) -> dict[str, Any]:
        """What a table records of how it is made, from the `upstream` tables as they are now.

        `tile_assets` are those that have a table for each tile; `tiles` are the content hashes, by asset and tile, of
        tables of all tiles. `identified` are JSON values that tell apart what else it is made from.
        """
        of_tile = set(tile_assets)
        record: dict[str, Any] = {
            "fields": self.recipe.values(fields),
            "upstream": {name: self.version(name, tile, name in of_tile) for name in upstream},
            "tile_upstream": sorted(of_tile.intersection(upstream)),
            "tiles": {asset: dict(versions) for asset, versions in tiles.items()},
        }
        made_from = json.dumps([record, identified], sort_keys=True).encode()
        return record | {
            "identity": hashlib.sha256(made_from).hexdigest()[:16],
            "recipe_fingerprint": self.recipe.fingerprint(),
        }

    def unchanged(
        self, asset: str, tile: str | None, record: Mapping[str, Any], warn: Callable[[str], None]
    ) -> StoredTable | None:
        """The table as stored, with today's record, if it was made from the same and its files are unchanged."""
        name = self.table(asset, tile)
        try:
            stored = self.stored(asset, tile)
            if stored is None or stored.provenance.get("identity") != record["identity"]:
                return None
            # what cannot be read is of no use to others
            frame = self.read(asset, tile)
            files = stored.provenance.get("files", {})
            whole = self._are_unchanged(files)
        except (IntegrityError, UnsafeNameError) as error:
            warn(f"{error}; making it again")
            return None
        if not whole:
            warn(f"files of {name} are missing or changed; making them again")
            return None
        if any(stored.provenance.get(key) != value for key, value in record.items()):
            # a recipe may have changed in fields that do not change the table
            return self.write(asset, tile, frame, {**record, "files": files})
        return stored

    def write(
        self, asset: str, tile: str | None, frame: pd.DataFrame, record: Mapping[str, Any]
    ) -> StoredTable:
        """Write a table, which is current from then on. Raises IntegrityError for one that is not as its schema."""
        stored = write_table(self.store, self.table(asset, tile), frame, SCHEMAS[asset], record)
        holder = self._holder(tile)
        with holder._lock:
            holder._frames.pop((asset, tile), None)
            holder._stored[asset, tile] = stored
            holder._stale[asset, tile] = ""
        return stored

    def stale_because(self, asset: str, tile: str | None) -> str:
        """Why a table is not what would be made now, and what to do; "" where it is.

        Raises IntegrityError where a table cannot be read.
        """
        holder = self._holder(tile)
        if holder is not self:
            with holder._lock:
                return holder.stale_because(asset, tile)
        if (asset, tile) not in self._stale:
            # holds until it is judged, should it turn out to be made from itself
            self._stale[asset, tile] = (
                f"{asset} was made from itself by its own record; materialize {asset} again"
            )
            self._depth += 1
            try:
                self._stale[asset, tile] = (
                    self._judge(asset, tile)
                    if self._depth < _MOST_STAGES
                    else f"{asset} was made from tables of tables without end; materialize {asset} again"
                )
            except BaseException:
                del self._stale[asset, tile]
                raise
            finally:
                self._depth -= 1
        return self._stale[asset, tile]

    def _holder(self, tile: str | None) -> "Lineage":
        """Who remembers what is read of a table."""
        return self.of_year if self.of_year is not None and tile is None else self

    def _are_unchanged(self, files: Mapping[str, str]) -> bool:
        """Whether the store has all of these files, and each with its SHA-256."""
        try:
            return all(self.store.sha256(file) == digest for file, digest in files.items())
        except FileNotFoundError:
            return False

    def _judge(self, asset: str, tile: str | None) -> str:
        stored = self.stored(asset, tile)
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
