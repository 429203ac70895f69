"""What the per-year assets share: reading and writing a year's tables, and reuse of what is unchanged.

Belongs here: glue between Dagster, the recipe and the store. Does not: what any asset computes.
"""

import base64
import hashlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dagster as dg
import pandas as pd

from crop_assets.layout import Layout
from crop_assets.partitions import cdl_year_partitions, year_mapping, year_of
from crop_assets.recipe import DatasetRecipe
from resources.store import DatasetStore
from resources.tables import StoredTable, TableSchema, read_table, stored_table, write_table

OWNERS = ("team:crop-assets",)


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


def column_schema(schema: TableSchema) -> dg.TableSchema:
    columns = [dg.TableColumn(c.name, str(c.type), description=c.description) for c in schema.columns]
    if schema.geometry_crs:
        columns.append(dg.TableColumn("geometry", "geometry", description=schema.geometry_crs))
    return dg.TableSchema(columns=columns)


def identity_of(*parts: Any) -> str:
    """SHA-256 of JSON values, 16 hex digits: what a result was made from."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def files_are_whole(store: DatasetStore, files: Mapping[str, str]) -> bool:
    """Whether each file (name -> SHA-256) is there with that content."""
    return all(store.exists(name) and store.sha256(name) == digest for name, digest in files.items())


@dataclass
class YearRun:
    """One materialization of one per-year asset."""

    asset: str
    year: int
    recipe: DatasetRecipe
    store: DatasetStore
    context: dg.AssetExecutionContext
    schema: TableSchema
    _identity: str = ""
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

    def read(self, asset: str) -> pd.DataFrame:
        """The table of another asset of this year. Raises NotFoundError where it is not materialized."""
        return read_table(self.store, self.layout.table(asset))

    def version(self, asset: str) -> str:
        """Content hash of another asset's table of this year, or "" where there is none."""
        stored = stored_table(self.store, self.layout.table(asset))
        return stored.data_version if stored else ""

    def unchanged(
        self,
        *inputs: Any,
        fields: Sequence[str] = (),
        check_results: Sequence[dg.AssetCheckResult] | None = None,
    ) -> dg.MaterializeResult | None:  # type: ignore[type-arg]
        """The earlier result, where it was made from the same inputs and its files are whole; else None.

        `inputs` are JSON values that identify what the asset reads, `fields` the recipe's fields
        that it uses.
        """
        version = self.context.assets_def.get_asset_spec(self.context.asset_key).code_version
        self._identity = identity_of(self.asset, version, inputs, self.recipe.values(fields))
        stored = stored_table(self.store, self.layout.table(self.asset))
        if stored is None or stored.provenance.get("identity") != self._identity:
            return None
        if not files_are_whole(self.store, stored.provenance["files"]):
            self.context.log.warning(
                f"{self.asset} {self.year}: files are missing or changed; making them again"
            )
            return None
        self.context.log.info(f"{self.asset} {self.year}: unchanged, nothing to do ({stored.rows} rows)")
        earlier = earlier_metadata(self.context.instance, self.asset, self.context.partition_key)
        return self._result(stored, reused=True, metadata=earlier, check_results=check_results)

    def finish(
        self,
        frame: pd.DataFrame,
        metadata: Mapping[str, Any] | None = None,
        files: Iterable[str] = (),
        check_results: Sequence[dg.AssetCheckResult] | None = None,
    ) -> dg.MaterializeResult:  # type: ignore[type-arg]
        """Write the table and describe the materialization; `files` are the names it wrote beside."""
        provenance = {
            "identity": self._identity,
            "recipe": self.recipe.values(),
            "recipe_fingerprint": self.recipe.fingerprint(),
            "chip_recipe": self.recipe.chip_fingerprint(),
            "files": {name: self.store.sha256(name) for name in sorted(files)},
        }
        stored = write_table(self.store, self.layout.table(self.asset), frame, self.schema, provenance)
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
                **metadata,
                **table_metadata(self.store, stored, reused, time.monotonic() - self._started),
            },
            data_version=dg.DataVersion(stored.data_version),
            check_results=check_results,
        )


def earlier_metadata(instance: dg.DagsterInstance, asset: str, partition: str) -> dict[str, Any]:
    """Metadata of an asset's latest materialization, so that an unchanged result keeps its previews."""
    where = dg.AssetRecordsFilter(asset_key=dg.AssetKey(asset), asset_partitions=[partition])
    records = instance.fetch_materializations(where, limit=1).records
    found = records[0].asset_materialization if records else None
    return dict(found.metadata) if found else {}


def table_metadata(store: DatasetStore, stored: StoredTable, reused: bool, seconds: float) -> dict[str, Any]:
    return {
        "dagster/row_count": stored.rows,
        "reused": reused,
        "seconds": round(seconds, 3),
        "recipe_fingerprint": stored.provenance.get("recipe_fingerprint", ""),
        "table": dg.MetadataValue.path(str(store.path(stored.name))),
    }


def markdown(frame: pd.DataFrame, rows: int = 50) -> dg.MarkdownMetadataValue:
    """The first rows of a table as the Dagster UI shows it."""
    head = frame.head(rows)
    lines = ["| " + " | ".join(map(str, head.columns)) + " |", "|" + " --- |" * len(head.columns)]
    lines += ["| " + " | ".join("" if pd.isna(v) else str(v) for v in row) + " |" for row in head.to_numpy()]
    if len(frame) > rows:
        lines.append(f"\n… and {len(frame) - rows} more")
    return dg.MetadataValue.md("\n".join(lines))


def picture(png: bytes, alt: str) -> dg.MarkdownMetadataValue:
    """A PNG that the Dagster UI shows inline. Keep it small: it is stored with the event."""
    return dg.MetadataValue.md(f"![{alt}](data:image/png;base64,{base64.b64encode(png).decode()})")
