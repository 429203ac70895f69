"""The stored tables of a dataset and year, and whether each is still what the recipe and its inputs would make.

Each table records the recipe fields it was made with and the content hashes of its inputs. So a table that was made by
another recipe, or from tables that have changed since, is recognized as stale, however far upstream the change is.
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
from resources.tables import StoredTable, content_hash, read_version, stored_table, stored_tables, write_table

_MAX_STAGES = 50
_MAX_NAMED = 100


class _Made(BaseModel, strict=True):
    """What a table records of how it was made; the tile grid has no upstream tables."""

    fields: dict[str, Any] = {}
    upstream: dict[str, str] = {}
    tile_upstream: list[str] = []
    tiles: dict[str, dict[str, str]] = {}


@dataclass
class Lineage:
    """The stored tables of one dataset and year, under one recipe. Each table is read once.

    Each tile of a run has its own, in a thread of its own, and shares the tables of the year through `of_year`.
    """

    store: DatasetStore
    layout: Layout
    recipe: DatasetRecipe
    of_year: "Lineage | None" = None
    _lock: "threading.RLock" = field(default_factory=threading.RLock)
    _stale: dict[tuple[str, str | None], str] = field(default_factory=dict)
    _stored: dict[tuple[str, str | None], StoredTable | None] = field(default_factory=dict)
    _frames: dict[tuple[str, str | None], pd.DataFrame] = field(default_factory=dict)
    _places: dict[str, dict[Any, Any]] = field(default_factory=dict)
    _row_versions: dict[tuple[str, str], str] = field(default_factory=dict)
    _of_tiles: dict[tuple[str, str], tuple[str, str]] = field(default_factory=dict)
    _ahead: dict[str, StoredTable | None] = field(default_factory=dict)

    def table(self, asset: str, tile: str | None) -> str:
        """The name of a table in the store."""
        return tile_grid_table() if asset == "tile_grid" else self.layout.table(asset, tile)

    def read(self, asset: str, tile: str | None) -> pd.DataFrame:
        """All rows of a table. Raises NotFoundError; IntegrityError, also if another run has written it meanwhile."""
        return self._frame(asset, tile).copy()

    def _frame(self, asset: str, tile: str | None) -> pd.DataFrame:
        """As `read`, but remembered: nobody may change it."""
        holder = self._holder(tile)
        with holder._lock:
            if (asset, tile) not in holder._frames:
                stored = holder._stored.get((asset, tile))
                holder._frames[asset, tile] = self._read(asset, tile, stored.data_version if stored else None)
            return holder._frames[asset, tile]

    def _read(self, asset: str, tile: str | None, version: str | None) -> pd.DataFrame:
        name = self.table(asset, tile)
        frame, found = read_version(self.store, name, SCHEMAS[asset])
        if version is not None and found != version:
            raise IntegrityError(f"{name} was written by another run meanwhile; launch this run again")
        return frame

    def stored(self, asset: str, tile: str | None) -> StoredTable | None:
        """What is recorded of a table, None if there is none. Raises IntegrityError if the table is damaged."""
        with self._holder(tile)._lock:
            found = self._holder(tile)._stored
            if (asset, tile) not in found:
                found[asset, tile] = stored_table(self.store, self.table(asset, tile))
            return found[asset, tile]

    def read_ahead(self, asset: str, tiles: Iterable[str]) -> None:
        """Read at once what `of_tile` and `stale_because` need of a table of each tile and of those that it was made
        from, because each takes a request to an object store. Changes nothing in what they return, and a local store
        is not read.
        """
        if self.store.is_local:
            return
        names = {tile: self.table(asset, tile) for tile in tiles}
        waiting = {asset: names}
        for _ in range(_MAX_STAGES):
            wanted = {name for of_tiles in waiting.values() for name in of_tiles.values()} - set(self._ahead)
            if not wanted:
                return
            self._ahead |= stored_tables(self.store, sorted(wanted))
            upstream: dict[str, dict[str, str]] = {}
            for of_tiles in waiting.values():
                for tile, name in of_tiles.items():
                    found = self._ahead.get(name)
                    for other in _tile_upstream(found) if found else ():
                        upstream.setdefault(other, {})[tile] = self.table(other, tile)
            waiting = upstream

    def _record_of(self, asset: str, tile: str | None) -> StoredTable | None:
        """As `stored`, perhaps without the names of files."""
        year = self._holder(None)
        name = self.table(asset, tile)
        if tile is not None and (asset, tile) not in self._stored and name in year._ahead:
            return year._ahead[name]
        return self.stored(asset, tile)

    def rows(self, asset: str, tile: str) -> pd.DataFrame:
        """The rows of a table of the year that belong to a tile; all rows if it has no column `tile`."""
        holder = self._holder(None)
        with holder._lock:
            frame = self._frame(asset, None)
            if "tile" not in frame.columns:
                return frame.copy()
            if asset not in holder._places:
                holder._places[asset] = frame.groupby("tile").indices
            rows: pd.DataFrame = frame.iloc[holder._places[asset].get(tile, [])]
            return rows.reset_index(drop=True)

    def version(self, asset: str, tile: str | None, per_tile: bool) -> str:
        """Content hash of a table, or of a tile's rows in a table of the year; "" if there is no such table."""
        stored = self._record_of(asset, tile if per_tile else None)
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

        `tile_assets` are those with a table for each tile; `tiles` are the content hashes, by asset and tile, of the
        tables of all tiles. `identified` are JSON values that identify all other inputs.
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
        """The stored table, with an up-to-date record, if its inputs and files are unchanged; None if they are not."""
        name = self.table(asset, tile)
        try:
            stored = self.stored(asset, tile)
            if stored is None or stored.provenance.get("identity") != record["identity"]:
                return None
            # a table that cannot be read is of no use downstream
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
        """Write a table, which is current from then on. Raises IntegrityError if it does not match its schema."""
        stored = write_table(self.store, self.table(asset, tile), frame, SCHEMAS[asset], record)
        holder = self._holder(tile)
        with holder._lock:
            if (asset, tile) in holder._stale:
                # others may have been judged by it
                holder._stale.clear()
                holder._of_tiles.clear()
                holder._ahead.clear()
            holder._frames.pop((asset, tile), None)
            holder._places.pop(asset, None)
            holder._row_versions.clear()
            holder._stored[asset, tile] = stored
            holder._stale[asset, tile] = ""
        return stored

    def stale_because(self, asset: str, tile: str | None) -> str:
        """Why a table differs from what would be made now, and what to do; "" if it does not.

        Raises IntegrityError if a table cannot be read.
        """
        return self._stale_because(asset, tile, 1)

    def of_tile(self, asset: str, tile: str) -> tuple[str, str]:
        """`stale_because` and the content hash of a tile's table; its rows and record are not kept in memory, as there
        may be thousands of tiles. For the lineage of a year.
        """
        return self._of_tile(asset, tile, 1)

    def read_tile(self, asset: str, tile: str) -> pd.DataFrame:
        """All rows of the tile's table that `of_tile` returned the hash of, not kept either. Raises as `read`."""
        return self._read(asset, tile, self.of_tile(asset, tile)[1])

    def _stale_because(self, asset: str, tile: str | None, depth: int) -> str:
        holder = self._holder(tile)
        with holder._lock:
            if (asset, tile) not in holder._stale:
                # until it is judged, in case it turns out to be made from itself
                holder._stale[asset, tile] = _made_from_itself(asset)
                try:
                    holder._stale[asset, tile] = holder._judge(asset, tile, depth)
                except BaseException:
                    del holder._stale[asset, tile]
                    raise
            return holder._stale[asset, tile]

    def _of_tile(self, asset: str, tile: str, depth: int) -> tuple[str, str]:
        year = self._holder(None)
        with year._lock:
            if (asset, tile) not in year._of_tiles:
                year._of_tiles[asset, tile] = _made_from_itself(asset), ""
                try:
                    one = Lineage(self.store, self.layout, self.recipe, year)
                    reason = one._stale_because(asset, tile, depth)
                    year._of_tiles[asset, tile] = reason, one.version(asset, tile, per_tile=True)
                    for (upstream, of_tile), of_upstream in one._stale.items():
                        if of_tile is not None:
                            # another stage may read it too
                            known = of_upstream, one.version(upstream, tile, per_tile=True)
                            year._of_tiles.setdefault((upstream, of_tile), known)
                except BaseException:
                    del year._of_tiles[asset, tile]
                    raise
            return year._of_tiles[asset, tile]

    def _holder(self, tile: str | None) -> "Lineage":
        """The lineage that remembers what is read of a table."""
        return self.of_year if self.of_year is not None and tile is None else self

    def _are_unchanged(self, files: Mapping[str, str]) -> bool:
        """Whether the store has all of these files, and each with its SHA-256."""
        try:
            return all(self.store.sha256(file) == digest for file, digest in files.items())
        except FileNotFoundError:
            return False

    def _judge(self, asset: str, tile: str | None, depth: int) -> str:
        if depth >= _MAX_STAGES:
            return (
                f"{asset} was made from a chain of more than {_MAX_STAGES} tables; materialize {asset} again"
            )
        stored = self._record_of(asset, tile)
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
        limited = self.recipe.min_purity or self.recipe.min_confidence
        if limited and asset in ("chip_quality", "filtered_chips") and "label_quality" not in made.upstream:
            # a table from before there were such limits records neither them nor this input
            return f"{asset} was made without label_quality; materialize {asset} again"
        for upstream, version in made.upstream.items():
            per_tile = upstream in made.tile_upstream
            if reason := self._stale_because(upstream, tile if per_tile else None, depth + 1):
                return reason
            if self.version(upstream, tile, per_tile) != version:
                return f"{asset} was made from another {upstream}; materialize {asset} again"
        for upstream, versions in made.tiles.items():
            for of_tile, version in versions.items():
                if not is_tile(of_tile):
                    named = repr(of_tile[:_MAX_NAMED])
                    return f"{asset} was made from {named}, which is no tile; materialize {asset} again"
                reason, found = self._of_tile(upstream, of_tile, depth + 1)
                if reason:
                    return f"{asset} was made from {upstream} of {of_tile}, but now {reason}"
                if found != version:
                    return f"{asset} was made from another {upstream} of {of_tile}; materialize {asset} again"
        return ""


def _tile_upstream(stored: StoredTable) -> Iterable[str]:
    """The tables of the same tile that a table was made from, by its record, which others may have written."""
    named = stored.provenance.get("tile_upstream")
    return (
        [name for name in named if isinstance(name, str) and name in SCHEMAS]
        if isinstance(named, list)
        else []
    )


def _made_from_itself(asset: str) -> str:
    return f"{asset} was made from itself by its own record; materialize {asset} again"
