"""What a table records of how it was made is not trusted to be a record."""

from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from crop_assets.layout import Layout
from crop_assets.lineage import Lineage
from crop_assets.recipe import DatasetRecipe
from crop_assets.year_assets import whole_table
from resources.store import DatasetStore
from resources.tables import Column, TableSchema, write_table

SCHEMA = TableSchema((Column("tile", pa.string(), ""),))


@pytest.fixture
def store(tmp_path: Path) -> DatasetStore:
    return DatasetStore(root=str(tmp_path))


def write(store: DatasetStore, asset: str, record: dict[str, Any]) -> str:
    name = Layout("small", 2022).table(asset)
    return write_table(store, name, pd.DataFrame({"tile": ["14SMG"]}), SCHEMA, record).data_version


def stale(store: DatasetStore, asset: str = "cdl") -> str:
    return Lineage(store, Layout("small", 2022), DatasetRecipe()).stale_because(asset, None)


def test_a_table_that_was_made_of_what_is_there_is_current(store: DatasetStore) -> None:
    version = write(store, "cdl", {"fields": {}, "upstream": {}})
    write(store, "chip_bboxes", {"upstream": {"cdl": version}, "tile_upstream": []})
    assert stale(store, "chip_bboxes") == ""


@pytest.mark.parametrize(
    ("record", "named"),
    [
        ({"fields": []}, "fields"),
        ({"fields": {"no_field": 1}}, "another recipe"),
        ({"fields": {"__class__": 1}}, "another recipe"),
        ({"upstream": "cdl"}, "upstream"),
        ({"upstream": {"cdl": 3}}, "upstream.cdl"),
        ({"tile_upstream": {"cdl": ""}}, "tile_upstream"),
        ({"tiles": {"cdl": ["14SMG"]}}, "tiles.cdl"),
    ],
)
def test_a_record_of_another_shape_makes_a_table_out_of_date(
    store: DatasetStore, record: dict[str, Any], named: str
) -> None:
    write(store, "cdl", record)
    assert named in stale(store)
    assert stale(store).endswith("materialize cdl again")


def test_a_table_that_was_made_of_itself_is_out_of_date(store: DatasetStore) -> None:
    version = write(store, "cdl", {})
    write(store, "cdl", {"upstream": {"cdl": version}})
    assert "made from itself" in stale(store)
    write(store, "chip_bboxes", {"upstream": {"cdl": version}})
    write(store, "cdl", {"upstream": {"chip_bboxes": version}})
    assert "made from itself" in stale(store)


def test_a_chain_of_tables_without_end_is_out_of_date(store: DatasetStore) -> None:
    version = write(store, "cdl", {})
    for at in range(120):
        write(store, f"a{at}", {"upstream": {f"a{at + 1}": version}})
    assert "a49 was made from tables of tables without end; materialize a49 again" in stale(store, "a0")


@pytest.mark.parametrize("file", ["a/folder", "../outside", "/etc/passwd", "x" * 5_000, "no/such"])
def test_a_table_that_names_no_file_of_the_store_is_made_again(store: DatasetStore, file: str) -> None:
    store.write_bytes("a/folder/file", b"x")
    write(store, "cdl", {"identity": "x", "files": {file: "0" * 64}})
    said: list[str] = []
    assert whole_table(store, Layout("small", 2022).table("cdl"), "x", said.append) is None
    assert said[0].endswith(("making it again", "making them again"))
