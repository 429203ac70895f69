"""Typed Parquet and GeoParquet tables in the dataset store, with a content hash and provenance."""

import contextlib
import hashlib
import io
import json
import re
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from resources.errors import IntegrityError, NotFoundError, UnsafeNameError
from resources.parquet import MAX_FILE_BYTES, TAIL_BYTES, Parquet, footer_of
from resources.plain_text import plain_text
from resources.store import DatasetStore

_PROVENANCE = b"crop_assets"
_TAILS = ((TAIL_BYTES, 512), (16 * TAIL_BYTES, 32))
"""Bytes that are read at the ends of tables, and how many tables' are in memory at once; then, of longer footers."""
_MAX_FOOTERS = 100_000
"""About 100 MB: ten years of 1,000 tiles."""
_footers: "dict[str, tuple[str, _Footer]]" = {}
"""Footers of objects that this process has read, with their ETags, by root and name."""
_remembering = threading.Lock()


@dataclass(frozen=True)
class Column:
    """A column of a table: its name, Arrow type, and what it means (unit, CRS, nodata).

    A value may be missing where the column is `optional`, and a float, as NaN, where it has no bounds. Texts are among
    `words`, if there are any, or match all of `pattern`, a regular expression; numbers are from `low` to `high`. The
    same holds for the items of a list.
    """

    name: str
    type: pa.DataType
    description: str
    optional: bool = False
    words: tuple[str, ...] = ()
    pattern: str = ""
    low: float | None = None
    high: float | None = None

    def invalid(self, values: pd.Series) -> NDArray[np.bool_]:
        """Which values are invalid, bool of their shape; missing ones are, unless they are allowed."""
        if self.low is not None or self.high is not None:
            numbers = values.to_numpy(np.float64, na_value=np.nan)
            low, high = (
                (-np.inf if self.low is None else self.low),
                (np.inf if self.high is None else self.high),
            )
            valid = (numbers >= low) & (numbers <= high)
            return np.asarray(~(valid | (np.isnan(numbers) if self.optional else False)), dtype=bool)
        if self.words or self.pattern:
            return np.fromiter((not self._accepts(value) for value in values), bool, len(values))
        return np.zeros(len(values), bool)

    def _accepts(self, value: Any) -> bool:
        if isinstance(value, str):
            return (
                value in self.words if self.words else re.fullmatch(self.pattern, value, re.ASCII) is not None
            )
        if pa.types.is_list(self.type) and isinstance(value, list | np.ndarray):
            return all(isinstance(item, str) and self._accepts(item) for item in value)
        return self.optional


@dataclass(frozen=True)
class TableSchema:
    """The columns of a table, in order; `geometry_crs` is the CRS of its geometry column, if it has one.

    No two rows have the same values in the columns of `key`, which others are joined by. `rule` returns what is wrong
    with the rows together, "" if nothing is.
    """

    columns: tuple[Column, ...]
    geometry_crs: str | None = None
    key: tuple[str, ...] = ()
    rule: Callable[[pd.DataFrame], str] | None = None

    def arrow(self) -> pa.Schema:
        return pa.schema([pa.field(c.name, c.type) for c in self.columns])

    def required(self) -> list[str]:
        """Names of the columns in which no value may be missing, the geometry among them."""
        names = [c.name for c in self.columns if not c.optional and not pa.types.is_floating(c.type)]
        return [*names, "geometry"] if self.geometry_crs else names

    def require_valid(self, frame: pd.DataFrame) -> None:
        """Raise IntegrityError if values are missing or invalid, a key occurs twice, or the rows break the rule."""
        if missing := [column for column in self.required() if frame[column].isna().any()]:
            raise IntegrityError(f"values of {', '.join(missing)} are missing")
        for column in self.columns:
            invalid = column.invalid(frame[column.name])
            if invalid.any():
                value = plain_text(repr(frame[column.name].to_numpy(object)[invalid][0]), 60)
                raise IntegrityError(f"{column.name} {value} is invalid ({column.description})")
        if self.key and (twice := frame.duplicated(list(self.key))).any():
            values = plain_text(repr(tuple(frame.loc[twice, list(self.key)].iloc[0])), 100)
            raise IntegrityError(f"{' and '.join(self.key)} {values} occur twice")
        if self.rule and (why := self.rule(frame)):
            raise IntegrityError(why)

    def empty(self) -> pd.DataFrame:
        """A table without rows."""
        frame: pd.DataFrame = self.arrow().empty_table().to_pandas()
        if self.geometry_crs:
            frame = gpd.GeoDataFrame(frame, geometry=gpd.GeoSeries([], crs=self.geometry_crs))
        return frame


@dataclass(frozen=True)
class StoredTable:
    """A table as written: its name, rows, content hash, and the provenance given with it."""

    name: str
    rows: int
    data_version: str
    provenance: dict[str, Any]


def write_table(
    store: DatasetStore,
    name: str,
    frame: pd.DataFrame,
    schema: TableSchema,
    provenance: Mapping[str, Any],
) -> StoredTable:
    """Write a table atomically, cast to `schema`, with its provenance in the file's metadata.

    The same content gives the same bytes. Raises IntegrityError if a column is missing, unknown, or not of its type,
    `schema.require_valid` does, or the geometry is in another CRS.
    """
    table = _to_arrow(name, frame, schema)
    version = content_hash(table)
    record = {**provenance, "data_version": version}
    metadata = {**(table.schema.metadata or {}), _PROVENANCE: json.dumps(record, sort_keys=True).encode()}
    with store.writing(name) as path:
        pq.write_table(
            table.replace_schema_metadata(metadata), path, compression="zstd", write_page_checksum=True
        )
    return StoredTable(name, table.num_rows, version, record)


def read_table(store: DatasetStore, name: str, schema: TableSchema) -> pd.DataFrame:
    """Read a table, as a GeoDataFrame if it has geometry. Raises the errors of `read_version`."""
    return read_version(store, name, schema)[0]


def read_version(store: DatasetStore, name: str, schema: TableSchema) -> tuple[pd.DataFrame, str]:
    """A table as `read_table` returns it, and its content hash.

    Raises NotFoundError; IntegrityError if it is damaged, does not match its schema, would fill the memory, or records
    the content hash of other rows.
    """
    try:
        file = Parquet(_bytes(store, name))
        _require_columns(file, schema)
        frame = file.frame()
        schema.require_valid(frame)
        if isinstance(frame, gpd.GeoDataFrame) and frame.crs != schema.geometry_crs:
            name_of_crs = frame.crs.name if frame.crs else "no CRS"
            raise IntegrityError(f"its geometry is in {name_of_crs:.80}, not {schema.geometry_crs}")
        # pages have checksums and the footer, with the names and types of columns, has none
        version = content_hash(frame)
        if version != _record(file.metadata.get(_PROVENANCE, b""))["data_version"]:
            raise IntegrityError("its rows are not those that were written")
        return frame, version
    except (IntegrityError, UnsafeNameError) as error:
        raise IntegrityError(f"table {name} cannot be read ({error}); materialize its asset again") from error


def stored_table(store: DatasetStore, name: str) -> StoredTable | None:
    """What is recorded of a table, from the file's footer; None if there is no such file.

    Raises IntegrityError if the file is not a table of this store, OSError if it cannot be read.
    """

    def tail(count: int) -> tuple[bytes, int]:
        found = store.tail(name, count)
        return found.data, found.size

    try:
        return _of_footer(name, tail)
    except FileNotFoundError:
        return None
    except UnsafeNameError as error:
        raise IntegrityError(f"{name} cannot be used ({error}); materialize its asset again") from error
    except IntegrityError as error:
        raise IntegrityError(
            f"{name} is damaged, or no table of this store ({error}); materialize its asset again"
        ) from error
    except OSError as error:
        raise OSError(error.errno, f"{name} cannot be read: {error.strerror}") from error


def stored_tables(store: DatasetStore, names: Collection[str]) -> dict[str, StoredTable | None]:
    """`stored_table` of many tables by name, without `files`; those that cannot be read are left out.

    Not for a local store: folders are listed, and a footer is read only if its object has another ETag than when this
    process last read it; many are read at a time.
    """
    found: dict[str, StoredTable | None] = {}
    etags: dict[str, str] = {}
    for folder in {name.rpartition("/")[0] for name in names}:
        etags |= store.etags(folder)
    changed = []
    for name in names:
        known = _footers.get(f"{store.root}/{name}") if etags.get(name) else None
        if name not in etags:
            found[name] = None
        elif known is not None and known[0] == etags[name]:
            found[name] = known[1].table(name)
        else:
            changed.append(name)
    for count, at_once in _TAILS:
        for start in range(0, len(changed), at_once):
            tails = store.tails(changed[start : start + at_once], count)
            for name, tail in tails.items():
                # one that is damaged, or still longer, is read again by who needs it
                with contextlib.suppress(IntegrityError):
                    table = _of_footer(name, lambda _, tail=tail: (tail.data, tail.size))  # type: ignore[misc]
                    footer = _Footer.of(table)
                    found[name] = footer.table(name)
                    _remember(f"{store.root}/{name}", tail.etag, footer)
        changed = [name for name in changed if name not in found]
    return found


@dataclass(frozen=True)
class _Footer:
    """What is kept in memory of a footer: the record without `files`, as JSON, which takes less room than objects."""

    rows: int
    record: bytes

    @classmethod
    def of(cls, table: StoredTable) -> "_Footer":
        short = {key: value for key, value in table.provenance.items() if key != "files"}
        return cls(table.rows, json.dumps(short).encode())

    def table(self, name: str) -> StoredTable:
        record = json.loads(self.record)
        return StoredTable(name, self.rows, record["data_version"], record)


def _remember(place: str, etag: str, footer: _Footer) -> None:
    with _remembering:
        _footers.pop(place, None)
        _footers[place] = etag, footer
        if len(_footers) > _MAX_FOOTERS:
            # the one that was read first
            del _footers[next(iter(_footers))]


def _of_footer(name: str, tail: Callable[[int], tuple[bytes, int]]) -> StoredTable:
    footer = footer_of(tail)
    record = _record((footer.metadata or {}).get(_PROVENANCE, b""))
    return StoredTable(name, footer.num_rows, record["data_version"], record)


def content_hash(table: pa.Table | pd.DataFrame) -> str:
    """The first 16 hex digits of the SHA-256 of a table's columns and values; metadata and row index do not matter.

    A table and the frame read from it have the same hash.
    """
    if isinstance(table, pa.Table):
        table = table.replace_schema_metadata(None).to_pandas()
    if isinstance(table, gpd.GeoDataFrame):
        table = pd.DataFrame(table.to_wkb())
    table = pa.Table.from_pandas(table, preserve_index=False)
    # text is large_string or string by what pandas held it in
    schema = pa.schema(
        [pa.field(f.name, pa.string() if pa.types.is_large_string(f.type) else f.type) for f in table.schema]
    )
    table = table.replace_schema_metadata(None).cast(schema)
    table = table.combine_chunks()
    if len(table):
        # of a part of a longer column the stream would have bytes of what follows; joined to nothing it is copied
        copied = [
            pa.concat_arrays([column.chunk(0), column.chunk(0).slice(0, 0)]) for column in table.columns
        ]
        table = pa.table(copied, schema)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_table(table)
    return hashlib.sha256(sink.getvalue()).hexdigest()[:16]


def _record(text: bytes) -> dict[str, Any]:
    """The provenance in a table's metadata. Raises IntegrityError if it is invalid."""
    try:
        record: dict[str, Any] = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"what is recorded of it is no JSON: {error!r:.200}") from None
    named = record.get("files", {}) if isinstance(record, dict) else None
    if not isinstance(named, dict) or not isinstance(record.get("data_version"), str):
        raise IntegrityError("what is recorded of it is not what this project records")
    if not all(isinstance(digest, str) for digest in named.values()):
        raise IntegrityError("what is recorded of its files is no checksum of each")
    return record


def _bytes(store: DatasetStore, name: str) -> bytes:
    try:
        return store.read_bytes(name, MAX_FILE_BYTES)
    except FileNotFoundError:
        raise NotFoundError(f"there is no table {name}; materialize its asset first") from None


def _require_columns(file: Parquet, schema: TableSchema) -> None:
    expected = schema.arrow()
    if schema.geometry_crs:
        expected = expected.append(pa.field("geometry", pa.binary()))
    if (b"geo" in file.metadata) != bool(schema.geometry_crs):
        raise IntegrityError(f"it has {'no' if schema.geometry_crs else 'a'} geometry")
    if file.schema.remove_metadata() != expected:
        found = [f"{field.name} {field.type}" for field in file.schema if field not in list(expected)]
        lacking = [f"{field.name} {field.type}" for field in expected if field not in list(file.schema)]
        raise IntegrityError(
            f"its columns are not those of this table: missing {_few(lacking)}, unknown {_few(found)}"
        )


def _few(names: list[str]) -> str:
    return ", ".join(name[:80] for name in names[:5]) + (", …" if len(names) > 5 else "") or "none"


def _to_arrow(name: str, frame: pd.DataFrame, schema: TableSchema) -> pa.Table:
    expected = [c.name for c in schema.columns] + (["geometry"] if schema.geometry_crs else [])
    if set(frame.columns) != set(expected):
        missing, unknown = set(expected) - set(frame.columns), set(frame.columns) - set(expected)
        raise IntegrityError(f"table {name}: columns missing {sorted(missing)}, unknown {sorted(unknown)}")
    plain = pd.DataFrame(frame[[c.name for c in schema.columns]])
    try:
        table = pa.Table.from_pandas(plain, schema=schema.arrow(), preserve_index=False)
    except pa.ArrowException as error:
        raise IntegrityError(f"table {name}: {error}") from error
    table = table.replace_schema_metadata(None)
    try:
        schema.require_valid(frame)
    except IntegrityError as error:
        raise IntegrityError(f"table {name}: {error}") from None
    if not schema.geometry_crs:
        return table
    crs = getattr(frame.geometry, "crs", None)
    if crs is not None and crs != schema.geometry_crs:
        raise IntegrityError(f"table {name}: the geometry is in {crs.to_string()}, not {schema.geometry_crs}")
    buffer = io.BytesIO()
    gpd.GeoDataFrame(geometry=frame.geometry.to_numpy(), crs=schema.geometry_crs).to_parquet(buffer)
    geometry = pq.read_table(buffer)
    table = table.append_column(geometry.schema.field("geometry"), geometry.column("geometry"))
    return table.replace_schema_metadata({b"geo": geometry.schema.metadata[b"geo"]})
