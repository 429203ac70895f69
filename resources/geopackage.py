"""Reads GeoPackages (OGC 12-128r18) as SQLite databases, without GDAL.

A database may contain code that runs when it is read: views, triggers, generated columns, virtual tables. Here only the
stored columns of plain tables are read.
"""

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import geopandas as gpd
import pandas as pd
import pyproj
from pyproj.exceptions import ProjError

from resources.errors import IntegrityError
from resources.wkb import read_wkb

MAX_FEATURES = 1_000_000
_STEPS_AT_ONCE = 100_000
MAX_STEPS = 200_000_000
"""Steps of SQLite's virtual machine; a row of a layer takes fewer than five."""
_ENVELOPES = (0, 32, 48, 48, 64)
"""Bytes before the geometry by the envelope indicator (2.1.3.1.1)."""


class GeoPackage:
    """The layers of a GeoPackage that have features, as GDAL reads them.

    Its methods raise IntegrityError if it is damaged or a layer is not a plain table.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        for suffix in ("-wal", "-journal"):
            beside = path.with_name(f"{path.name}{suffix}")
            if beside.is_file() and beside.stat().st_size:
                raise IntegrityError(
                    f"{path} is open in another program, or was not closed: there is {beside.name}; close it there"
                )

    def layers(self) -> dict[str, str | None]:
        with self._open() as database:
            listed = database.rows("gpkg_contents", ["table_name", "data_type"])
            kinds = dict(database.rows("gpkg_geometry_columns", ["table_name", "geometry_type_name"]))
        return {str(name): str(kinds.get(name)) for name, kind in listed if kind == "features"}

    def columns(self, layer: str) -> list[str]:
        with self._open() as database:
            geometry, _ = _geometry_column(database, layer)
            return [name for name, is_id in database.columns(layer).items() if name != geometry and not is_id]

    def read(self, layer: str, columns: Sequence[str] = ()) -> gpd.GeoDataFrame:
        with self._open() as database:
            geometry, srs = _geometry_column(database, layer)
            rows = database.rows(layer, [geometry, *columns])
            crs = _crs(database, srs)
        shapes = read_wkb([_wkb(row[0]) for row in rows])
        values = {
            name: pd.Series([row[at] for row in rows], dtype=object) for at, name in enumerate(columns, 1)
        }
        return gpd.GeoDataFrame(values, geometry=shapes, crs=crs)

    @contextlib.contextmanager
    def _open(self) -> Iterator["_PlainTables"]:
        # immutable: without reading other files next to it
        address = f"file:{quote(str(self._path.absolute()))}?mode=ro&immutable=1"
        try:
            with contextlib.closing(sqlite3.connect(address, uri=True)) as database:
                yield _PlainTables(database, self._path.stat().st_size)
        except (sqlite3.Error, sqlite3.Warning) as error:
            raise IntegrityError(f"{self._path} cannot be read as a GeoPackage: {error}") from None


class _PlainTables:
    """A database of which only the stored columns of plain tables are read, so that none of its code runs.

    Its methods raise IntegrityError for other tables and columns, and sqlite3.Error.
    """

    def __init__(self, database: sqlite3.Connection, size: int) -> None:
        self._database = database
        self._left_bytes = 2 * size + 1_000_000
        self._left_steps = MAX_STEPS
        database.text_factory = lambda data: data.decode(errors="replace")
        database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, max(size, 1_000_000))
        database.execute("PRAGMA trusted_schema = OFF")
        database.execute("PRAGMA cell_size_check = ON")
        database.set_progress_handler(self._stops, _STEPS_AT_ONCE)
        database.set_authorizer(_may)

    def columns(self, table: str) -> dict[str, bool]:
        """The stored columns of a table, and whether each is the row id."""
        found = self._run(
            "SELECT type, sql FROM sqlite_master WHERE name = ? COLLATE NOCASE AND type IN ('table', 'view')",
            table,
        )
        if len(found) != 1 or found[0][0] != "table" or not str(found[0][1]).startswith("CREATE TABLE "):
            raise IntegrityError(f"it has no plain table {table!r}; save it again with its layers as tables")
        return {
            str(name): bool(key) and str(kind).upper() == "INTEGER"
            for _, name, kind, _, _, key, hidden in self._run(f"PRAGMA table_xinfo({_quoted(table)})")
            if not hidden
        }

    def rows(self, table: str, columns: Sequence[str]) -> list[tuple[Any, ...]]:
        if missing := set(columns) - self.columns(table).keys():
            raise IntegrityError(f"its table {table!r} has no stored column {min(missing)!r}")
        # the names come from the file, and are quoted
        return self._run(f"SELECT {', '.join(map(_quoted, columns))} FROM {_quoted(table)}")  # noqa: S608

    def _run(self, query: str, *values: str) -> list[tuple[Any, ...]]:
        found = []
        for row in self._database.execute(query, values):
            found.append(row)
            # a damaged file may refer to a page, and so its rows, several times
            self._left_bytes -= sum(len(value) for value in row if isinstance(value, bytes | str))
            if self._left_bytes < 0 or len(found) > MAX_FEATURES:
                raise IntegrityError(
                    f"it has more than {MAX_FEATURES:,} features, or they have more bytes than the file"
                )
        return found

    def _stops(self) -> bool:
        self._left_steps -= _STEPS_AT_ONCE
        return self._left_steps < 0


def _may(action: int, first: str | None, second: str | None, schema: str | None, source: str | None) -> int:
    """Whether SQLite may do something; `source` is the view or trigger that requires it."""
    plain = action in (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ)
    columns = action == sqlite3.SQLITE_PRAGMA and first == "table_xinfo"
    return sqlite3.SQLITE_OK if (plain or columns) and source is None else sqlite3.SQLITE_DENY


def _geometry_column(database: _PlainTables, layer: str) -> tuple[str, Any]:
    """The geometry column of a layer, and the id of its CRS."""
    listed = database.rows("gpkg_geometry_columns", ["table_name", "column_name", "srs_id"])
    found = [(str(column), srs) for name, column, srs in listed if name == layer]
    if len(found) != 1:
        raise IntegrityError(f"its layer {layer!r} has {len(found)} geometry columns")
    return found[0]


def _crs(database: _PlainTables, srs: Any) -> pyproj.CRS | None:
    """A CRS by its id: by its code, or else by its definition. None if it is unknown: -1 and 0 (1.1.2.1.2), or a name
    by which GDAL marks an undefined one.
    """
    table = "gpkg_spatial_ref_sys"
    known = ["srs_id", "organization", "organization_coordsys_id", "definition"]
    # in WKT2, for what the first definition cannot express (the extension crs_wkt)
    newer = [name for name in database.columns(table) if name == "definition_12_063"]
    found = [row[1:] for row in database.rows(table, known + newer) if row[0] == srs]
    if srs in (-1, 0) or not found:
        return None
    authority, code, *definitions = found[0]
    with contextlib.suppress(ProjError):
        if str(authority).upper() in ("EPSG", "ESRI"):
            return pyproj.CRS.from_authority(str(authority).upper(), str(code))
    for definition in reversed(definitions):
        with contextlib.suppress(ProjError):
            crs = pyproj.CRS.from_wkt(str(definition))
            return None if crs.name.startswith("Undefined") else crs
    return None


def _wkb(value: object) -> bytes | None:
    if value is None:
        return None
    if not isinstance(value, bytes) or value[:3] != b"GP\0" or len(value) < 8:
        raise IntegrityError("a geometry is not in the format of GeoPackage")
    flags = value[3]
    envelope = flags >> 1 & 7
    if flags & 0x20 or envelope >= len(_ENVELOPES):
        raise IntegrityError("a geometry is in the format of an extension of GeoPackage")
    return value[8 + _ENVELOPES[envelope] :]


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
