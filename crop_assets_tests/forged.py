"""Tables with the record of their own rows, as whoever may write to a shared store can make them."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from crop_assets.schemas import SCHEMAS
from resources.tables import content_hash


def forge(
    path: Path, table: pa.Table, record: dict[str, Any] | None = None, geo: bytes | None = None
) -> None:
    """Write a table; `record` is what it tells beside its hash, which a table with a column twice has not."""
    twice = len(set(table.column_names)) < table.num_columns
    told = {"data_version": "" if twice else content_hash(table)} | (record or {})
    metadata = {b"crop_assets": json.dumps(told).encode()} | ({} if geo is None else {b"geo": geo})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata(metadata), path)


def table_of(asset: str, **columns: pa.Array) -> pa.Table:
    """A table with the columns of an asset: those that are given, and others of nothing but "" and 0."""
    rows = len(next(iter(columns.values()))) if columns else 1
    values = {
        field.name: pa.array([""] * rows)
        if field.type == pa.string()
        else pa.array([[]] * rows, field.type)
        if pa.types.is_list(field.type)
        else pa.array([0] * rows, pa.int32()).cast(field.type)
        for field in SCHEMAS[asset].arrow()
    }
    # no two rows are of one chip
    if "chip_id" in values:
        values["chip_id"] = pa.array([f"chip_{row:03d}_000" for row in range(rows)])
    return pa.table(values | columns)
