"""Tables with the record of their own rows, as whoever may write to a shared store can make them."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from crop_assets.hls import BANDS, POSITIONS, QA_BAND
from crop_assets.schemas import SCHEMAS
from resources.tables import Column, content_hash


def forge(
    path: Path, table: pa.Table, record: dict[str, Any] | None = None, geo: bytes | None = None
) -> None:
    """Write a table; `record` is what it tells beside its hash, which a table with a column twice has not."""
    twice = len(set(table.column_names)) < table.num_columns
    told = {"data_version": "" if twice else content_hash(table)} | (record or {})
    metadata = {b"crop_assets": json.dumps(told).encode()} | ({} if geo is None else {b"geo": geo})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata(metadata), path)


_TEXTS = (
    "",
    "14SMG",
    "chip_000_000",
    "a" * 64,
    "HLS.S30.T14SMG.2022111T172020.v2.0",
    "training_datasets/small/2022/a.tif",
    "chips_filtered/chip_000_000_merged.tif",
    "chips_filtered/chip_000_000.mask.tif",
    "exports/train_ids.txt",
    "stac/collection.json",
    "viewer/index.html",
    "x",
)


def table_of(asset: str, **columns: pa.Array) -> pa.Table:
    """A table that an asset could make: the columns that are given, and others of the first valid value."""
    schema = SCHEMAS[asset]
    files = [(p, b) for p in POSITIONS for b in BANDS if asset != "downloaded_fmasks" or b == QA_BAND]
    if schema.key != ("position", "band"):
        files = []
    rows = len(next(iter(columns.values()))) if columns else max(len(files), 1)
    values = {
        column.name: pa.array([_value(column)] * rows, _plain(column.type)).cast(column.type)
        for column in schema.columns
    }
    # no two rows are of one chip, scene or file
    if "chip_id" in schema.key:
        values["chip_id"] = pa.array([f"chip_{row:03d}_000" for row in range(rows)])
    if "scene_id" in schema.key:
        values["scene_id"] = pa.array(
            [f"HLS.S30.T14SMG.2022{row + 1:03d}T172020.v2.0" for row in range(rows)]
        )
    if rows == len(files):
        values["position"], values["band"] = map(pa.array, zip(*files, strict=True))
    if "kept" in values:
        values["reason"] = pa.array(["bad_quality"] * rows)
    return pa.table(values | columns)


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type of what `_value` gives for a column of this type."""
    return kind if pa.types.is_string(kind) or pa.types.is_list(kind) else pa.int32()


def _value(column: Column) -> Any:
    if pa.types.is_string(column.type):
        return next(text for text in (*column.words, *_TEXTS) if not column.invalid(pd.Series([text]))[0])
    return [] if pa.types.is_list(column.type) else int(max(column.low or 0, 0))
