"""What the per-year assets share: reading and writing a year's tables, and reuse of what is unchanged.

Belongs here: glue between Dagster, the recipe and the store. Does not: what any asset computes.
"""

import base64
import contextlib
import functools
import hashlib
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, ParamSpec, TypeVar

import dagster as dg
import pandas as pd

from crop_assets.errors import InputError
from crop_assets.layout import Layout
from crop_assets.lineage import Lineage
from crop_assets.partitions import cdl_year_partitions, year_mapping, year_of
from crop_assets.recipe import DatasetRecipe
from crop_assets.schemas import SCHEMAS
from resources.errors import IntegrityError, ResourceError, UnsafeNameError
from resources.plain_text import plain_text
from resources.stop import uninterrupted
from resources.store import DatasetStore
from resources.tables import StoredTable, TableSchema, read_table, stored_table, write_table

_Parameters = ParamSpec("_Parameters")
_Made = TypeVar("_Made")

OWNERS = ("team:crop-assets",)

_MAX_CELL = 500
"""The most characters of one text in a table or list that the UI shows."""
_ADDRESS = re.compile(r"((?:[a-z][a-z0-9+.-]*://|www\.|mailto:|[\w.+-]+@)[^\s`]+)", re.I)
_MARKDOWN = re.compile(r"([\\`*\[\]<>|~])")


def year_asset(
    group: str,
    schema: TableSchema,
    kinds: Iterable[str],
    deps: Sequence[str] = (),
    tile_deps: Sequence[str] = (),
    code_version: str = "1",
) -> dict[str, Any]:
    """The arguments that `dg.asset` takes for a per-year asset of this project.

    `deps` are assets of the same year, `tile_deps` assets of the year's tiles.
    """
    return {
        "group_name": group,
        "kinds": {"python", *kinds},
        "owners": list(OWNERS),
        "code_version": code_version,
        "partitions_def": cdl_year_partitions,
        "deps": [*deps, *(dg.AssetDep(name, partition_mapping=year_mapping()) for name in tile_deps)],
        "metadata": {"dagster/column_schema": column_schema(schema)},
    }


def bounded_errors(function: Callable[_Parameters, _Made]) -> Callable[_Parameters, _Made]:
    """The function of an asset or sensor; its errors reach Dagster bounded and on one line, those of libraries too."""

    @functools.wraps(function)
    def bounded(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Made:
        try:
            return function(*args, **kwargs)
        except (InputError, ResourceError) as error:
            # without its causes, whose words it has
            raise error from None
        except Exception as error:
            if all(plain_text(text) == text for text in _texts(error)):
                raise
            words = plain_text(f"{type(error).__name__}: {error}")
            raise RuntimeError(words).with_traceback(error.__traceback__) from None

    return bounded


def _texts(error: BaseException | None) -> Iterator[str]:
    """The texts of an error and of what caused it."""
    while error is not None:
        yield str(error)
        error = error.__cause__ or error.__context__


def column_schema(schema: TableSchema) -> dg.TableSchema:
    columns = [dg.TableColumn(c.name, str(c.type), description=c.description) for c in schema.columns]
    if schema.geometry_crs:
        columns.append(dg.TableColumn("geometry", "geometry", description=schema.geometry_crs))
    return dg.TableSchema(columns=columns)


def identity_of(*parts: Any) -> str:
    """SHA-256 of JSON values, 16 hex digits: what a result was made from."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def whole_table(
    store: DatasetStore, name: str, schema: TableSchema, identity: str, warn: Callable[[str], None]
) -> StoredTable | None:
    """The table as stored, where it was made from what `identity` stands for and its files are whole; else None."""
    try:
        stored = stored_table(store, name)
        if stored is None or stored.provenance.get("identity") != identity:
            return None
        # what cannot be read is of no use to others
        read_table(store, name, schema)
        files = stored.provenance.get("files", {})
        whole = all(store.exists(file) and store.sha256(file) == digest for file, digest in files.items())
    except (IntegrityError, UnsafeNameError) as error:
        warn(f"{error}; making it again")
        return None
    if not whole:
        warn(f"files of {name} are missing or changed; making them again")
        return None
    return stored


def with_provenance(
    store: DatasetStore, stored: StoredTable, schema: TableSchema, provenance: Mapping[str, Any]
) -> StoredTable:
    """The table with today's provenance: a recipe may have changed in fields that do not change the table."""
    if all(stored.provenance.get(name) == value for name, value in provenance.items()):
        return stored
    files = {"files": stored.provenance.get("files", {})}
    return write_table(
        store, stored.name, read_table(store, stored.name, schema), schema, {**provenance, **files}
    )


@dataclass
class YearRun:
    """One materialization of one per-year asset."""

    asset: str
    year: int
    recipe: DatasetRecipe
    store: DatasetStore
    context: dg.AssetExecutionContext
    schema: TableSchema
    _provenance: dict[str, Any] = field(default_factory=dict)
    _started: float = field(default_factory=time.monotonic)

    @classmethod
    def of(
        cls,
        context: dg.AssetExecutionContext,
        recipe: DatasetRecipe,
        store: DatasetStore,
        schema: TableSchema,
    ) -> "YearRun":
        return cls(context.asset_key.to_user_string(), year_of(context), recipe, store, context, schema)

    @property
    def layout(self) -> Layout:
        return Layout(self.recipe.dataset, self.year)

    def log(self, text: str) -> None:
        """Tell the operator."""
        with uninterrupted():
            self.context.log.info(plain_text(text))

    def warn(self, text: str) -> None:
        """Tell the operator what may not be as it was meant."""
        with uninterrupted():
            self.context.log.warning(plain_text(text))

    def read(self, asset: str) -> pd.DataFrame:
        """The table of another asset of this year. Raises NotFoundError where it is not materialized."""
        return read_table(self.store, self.layout.table(asset), SCHEMAS[asset])

    def write_text(self, name: str, text: str) -> str:
        """Write a file at the top of the dataset folder; returns its name in the store."""
        file = self.layout.file(name)
        self.store.write_bytes(file, text.encode())
        return file

    def unchanged(
        self,
        *inputs: Any,
        upstream: Sequence[str] = (),
        fields: Sequence[str] = (),
        tiles: Mapping[str, Mapping[str, str]] | None = None,
        metadata: Mapping[str, Any] | None = None,
        check_results: Sequence[dg.AssetCheckResult] | None = None,
    ) -> dg.MaterializeResult | None:  # type: ignore[type-arg]
        """The earlier result, where it was made from the same inputs and its files are whole; else None.

        `upstream` names the tables of the year that the asset reads, `inputs` are JSON values that identify what
        else it reads, `fields` the recipe's fields that it uses. `tiles` are content hashes by asset and tile of the
        tile tables that it reads; they are inputs, and are kept with the table so that others can see when it is out
        of date. Raises InputError where an upstream table is missing, or is not what the recipe would make now.
        """
        lineage = Lineage(self.store, self.layout, self.recipe)
        for asset in upstream:
            if reason := lineage.stale_because(asset, None):
                raise InputError(f"{self.asset} {self.year}: {reason}")
        version = self.context.assets_def.get_asset_spec(self.context.asset_key).code_version
        self._provenance = lineage.provenance(fields, upstream, None, ())
        made_from = [self._provenance["fields"], self._provenance["upstream"]]
        self._provenance["tiles"] = {asset: dict(versions) for asset, versions in (tiles or {}).items()}
        read = [*self._provenance["tiles"].values(), *inputs]
        self._provenance["identity"] = identity_of(self.asset, version, read, made_from)
        name = self.layout.table(self.asset)
        stored = whole_table(self.store, name, self.schema, self._provenance["identity"], self.warn)
        if stored is None:
            return None
        self.log(f"{self.asset} {self.year}: unchanged, nothing to do ({stored.rows} rows)")
        stored = with_provenance(self.store, stored, self.schema, self._provenance)
        earlier = earlier_metadata(self.context.instance, self.asset, self.context.partition_key, stored)
        return self._result(stored, True, {**earlier, **(metadata or {})}, check_results)

    def finish(
        self,
        frame: pd.DataFrame,
        metadata: Mapping[str, Any] | None = None,
        files: Iterable[str] = (),
        check_results: Sequence[dg.AssetCheckResult] | None = None,
    ) -> dg.MaterializeResult:  # type: ignore[type-arg]
        """Write the table and describe the materialization; `files` are the names it wrote beside.

        Files that the earlier table named and this one does not are removed.
        """
        name = self.layout.table(self.asset)
        digests = {file: self.store.sha256(file) for file in sorted(files)}
        with contextlib.suppress(IntegrityError):
            earlier = stored_table(self.store, name)
            for file in set(earlier.provenance.get("files", {}) if earlier else ()) - set(digests):
                # others may have written what is recorded
                if file.startswith(f"{self.layout.root}/"):
                    with contextlib.suppress(UnsafeNameError):
                        self.store.remove(file)
        stored = write_table(self.store, name, frame, self.schema, {**self._provenance, "files": digests})
        return self._result(stored, reused=False, metadata=metadata or {}, check_results=check_results)

    def _result(
        self,
        stored: StoredTable,
        reused: bool,
        metadata: Mapping[str, Any],
        check_results: Sequence[dg.AssetCheckResult] | None = None,
    ) -> dg.MaterializeResult:  # type: ignore[type-arg]
        return dg.MaterializeResult(
            metadata={
                **shown(metadata),
                **table_metadata(self.store, stored, reused, time.monotonic() - self._started),
            },
            data_version=dg.DataVersion(stored.data_version),
            check_results=check_results,
        )


def latest_record(instance: dg.DagsterInstance, asset: str, partition: str) -> dg.EventLogRecord | None:
    """The event log's record of an asset's latest materialization for a partition."""
    where = dg.AssetRecordsFilter(asset_key=dg.AssetKey(asset), asset_partitions=[partition])
    records = instance.fetch_materializations(where, limit=1).records
    return records[0] if records else None


def earlier_metadata(
    instance: dg.DagsterInstance, asset: str, partition: str, stored: StoredTable
) -> dict[str, Any]:
    """Metadata of an asset's latest materialization, so that an unchanged result keeps its previews.

    Nothing where that one made another table, of another recipe or dataset.
    """
    record = latest_record(instance, asset, partition)
    found = record.asset_materialization if record else None
    if found is None or (found.tags or {}).get("dagster/data_version") != stored.data_version:
        return {}
    table = found.metadata.get("table")
    return dict(found.metadata) if table and str(table.value).endswith(stored.name) else {}


def table_metadata(store: DatasetStore, stored: StoredTable, reused: bool, seconds: float) -> dict[str, Any]:
    return {
        "dagster/row_count": stored.rows,
        "reused": reused,
        "seconds": round(seconds, 3),
        "recipe_fingerprint": stored.provenance.get("recipe_fingerprint", ""),
        "table": dg.MetadataValue.path(str(store.path(stored.name))),
    }


def shown(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata whose texts are bounded and on one line, whatever they repeat of the outside world."""
    return {name: plain_text(value) if isinstance(value, str) else value for name, value in metadata.items()}


def markdown(frame: pd.DataFrame, rows: int = 50) -> dg.MarkdownMetadataValue:
    """The first rows of a table as the Dagster UI shows it."""
    head = frame.head(rows)
    lines = ["| " + " | ".join(map(str, head.columns)) + " |", "|" + " --- |" * len(head.columns)]
    lines += [
        "| " + " | ".join("" if pd.isna(v) else plain(str(v)) for v in row) + " |" for row in head.to_numpy()
    ]
    if len(frame) > rows:
        lines.append(f"\n… and {len(frame) - rows} more")
    return dg.MetadataValue.md("\n".join(lines))


def plain(text: str) -> str:
    """Text from outside, such as a server's words, as Markdown that shows it as it is: no links, images or columns of
    Markdown come of it, and bare addresses are code, for the UI makes links of others.
    """
    parts = _ADDRESS.split(plain_text(" ".join(text.split()), _MAX_CELL))
    for number, part in enumerate(parts):
        if number % 2:
            # nothing is escaped in code but the end of a table's cell
            parts[number] = f"`{part.replace('|', '%7C')}`"
        else:
            parts[number] = _MARKDOWN.sub(r"\\\1", part)
    return "".join(parts)


def picture(image: bytes, alt: str, kind: Literal["png", "jpeg"] = "png") -> dg.MarkdownMetadataValue:
    """A picture that the Dagster UI shows inline. Keep it small: it is stored with the event."""
    return dg.MetadataValue.md(f"![{alt}](data:image/{kind};base64,{base64.b64encode(image).decode()})")
