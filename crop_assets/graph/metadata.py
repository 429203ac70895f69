"""Metadata and errors of a stage for the Dagster UI, of limited length; text from outside in them is escaped."""

import base64
import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, ParamSpec, TypeVar

import dagster as dg
import numpy as np
import pandas as pd

from crop_assets.errors import InputError
from crop_assets.layout import PICTURE_TYPES
from resources.errors import ResourceError
from resources.plain_text import markdown_text, plain_text
from resources.store import DatasetStore
from resources.tables import StoredTable, TableSchema

_Parameters = ParamSpec("_Parameters")
_Made = TypeVar("_Made")

OWNERS = ("team:crop-assets",)

_MAX_CELL = 500
"""Maximum characters of one text in a table or list in the UI."""
_MAX_INLINE_BYTES = 10_000
IN_UNITS = "in_units"
"""Metadata: the numbers of the other metadata with their units. They stay numbers, which Dagster plots."""
_UNITS = {"bytes": "B", "seconds": "s", "percent": "%", "cover": "%", "coverage": "%", "m": "m"}
"""Units of metadata and of columns, by the last word of the name."""
_MIN_SEPARATED = 10_000
"""Smallest number with separators. Years have none."""
_MAX_SHOWN = 1e18


def bounded_errors(function: Callable[_Parameters, _Made]) -> Callable[_Parameters, _Made]:
    """Wrap the function of an asset or sensor so that all its errors are on one line and of limited length."""

    @functools.wraps(function)
    def bounded(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Made:
        try:
            return function(*args, **kwargs)
        except (InputError, ResourceError) as error:
            # without its causes, because it quotes them
            raise error from None
        except Exception as error:
            if all(plain_text(text) == text for text in _texts(error)):
                raise
            message = plain_text(f"{type(error).__name__}: {error}")
            raise RuntimeError(message).with_traceback(error.__traceback__) from None

    return bounded


def _texts(error: BaseException | None) -> Iterator[str]:
    """The texts of an error and of its causes."""
    while error is not None:
        yield str(error)
        error = error.__cause__ or error.__context__


def column_schema(schema: TableSchema) -> dg.TableSchema:
    columns = [dg.TableColumn(c.name, str(c.type), description=c.description) for c in schema.columns]
    if schema.geometry_crs:
        columns.append(dg.TableColumn("geometry", "geometry", description=schema.geometry_crs))
    return dg.TableSchema(columns=columns)


def latest_record(
    instance: dg.DagsterInstance, asset: str, partition: str | None
) -> dg.EventLogRecord | None:
    """The event log's record of an asset's latest materialization, of a partition if it has partitions."""
    partitions = None if partition is None else [partition]
    where = dg.AssetRecordsFilter(asset_key=dg.AssetKey(asset), asset_partitions=partitions)
    records = instance.fetch_materializations(where, limit=1).records
    return records[0] if records else None


def earlier_metadata(
    instance: dg.DagsterInstance, asset: str, partition: str | None, stored: StoredTable
) -> dict[str, Any]:
    """Metadata of an asset's latest materialization, so that an unchanged result keeps its previews.

    Empty if that materialization made another table, as of another recipe or dataset.
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
    """The metadata with texts on one line and of limited length, and with `IN_UNITS` if it has such numbers."""
    found = {name: plain_text(value) if isinstance(value, str) else value for name, value in metadata.items()}
    # what an earlier event had
    found.pop(IN_UNITS, None)
    texts = []
    for name, value in found.items():
        number = getattr(value, "value", value)
        text = with_unit(name, number)
        # `seconds` 0.4 is readable as it is
        if text and text.split()[0] != str(number):
            texts.append(f"{name.removeprefix('dagster/')} {text}")
    return found | ({IN_UNITS: plain_text(", ".join(texts))} if texts else {})


def with_unit(name: str, value: Any) -> str | None:
    """A number with the unit that the end of its name gives, and with separators; None if it has neither.

    `bytes` 53,211,456 is "53.2 MB", `seconds` 0.412 "0.412 s", `cloud_cover` 12.34 "12.34 %", `margin_m` 12000.0
    "12,000 m" and `chips` 12000 "12,000".
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # an event that others reported may have any number
    if not abs(value) <= _MAX_SHOWN:
        return None
    unit, is_whole = _UNITS.get(name.rsplit("_", 1)[-1], ""), value == int(value)
    if unit == "B":
        return _bytes_text(float(value))
    if not unit and (abs(value) < _MIN_SEPARATED or not is_whole):
        return None
    text = f"{int(value):,}" if is_whole else f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{text} {unit}".rstrip()


def _bytes_text(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        # 999.5 would be 1e+03
        if abs(count) < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB" if abs(count) < 999.5 else f"{count:,.0f} TB"


def markdown(frame: pd.DataFrame, rows: int = 50) -> dg.MarkdownMetadataValue:
    """The first rows of a table as Markdown for the Dagster UI, with units and separators."""
    head = frame.head(rows)
    lines = ["| " + " | ".join(map(str, head.columns)) + " |", "|" + " --- |" * len(head.columns)]
    # by column, because the array of a table of integers and floats has floats only
    columns = [[_cell(str(name), value) for value in column] for name, column in head.items()]
    lines += ["| " + " | ".join(cells) + " |" for cells in zip(*columns, strict=True)]
    if len(frame) > rows:
        lines.append(f"\n… and {len(frame) - rows:,} more")
    return dg.MetadataValue.md("\n".join(lines))


def _cell(column: str, value: Any) -> str:
    if pd.isna(value):
        return ""
    text = with_unit(column, value)
    return plain(str(value)) if text is None else text


def plain(text: str) -> str:
    """Text from outside, such as a server's message, escaped for Markdown and of the length of a cell in the UI."""
    return markdown_text(text, _MAX_CELL)


@dataclass(frozen=True)
class Picture:
    """A picture of a stage's metadata, for the Dagster UI."""

    data: bytes
    alt: str
    kind: Literal["png", "jpeg", "svg"] = "png"


def store_pictures(metadata: Mapping[str, Any], store: DatasetStore, folder: str) -> dict[str, Any]:
    """The metadata with each picture as Markdown: inline up to 10 kB, else as a file in the store named like its entry.

    Events stay in Dagster's database for good, and each run adds one. `crop-assets ui` and `dev` serve the file at the
    address in the Markdown (`crop_assets.ui`), unless a later run has replaced it.
    """
    found = dict(metadata)
    for name, picture in metadata.items():
        if not isinstance(picture, Picture):
            continue
        if len(picture.data) <= _MAX_INLINE_BYTES:
            data, path = base64.b64encode(picture.data).decode(), ""
            source = f"data:{PICTURE_TYPES[picture.kind]};base64,{data}"
        else:
            file = f"{folder}/{name}.{picture.kind}"
            store.write_bytes(file, picture.data)
            source = f"/{file}?sha256={hashlib.sha256(picture.data).hexdigest()}"
            path = f"\n\n`{store.path(file)}`"
        found[name] = dg.MetadataValue.md(f"![{picture.alt}]({source}){path}")
    return found
