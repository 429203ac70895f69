"""What a table records of how it was made is not trusted to be a record."""

import hashlib
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from crop_assets.graph.lineage import Lineage
from crop_assets.layout import Layout
from crop_assets.recipe import DatasetRecipe
from crop_assets.schemas import LABEL_QUALITY
from crop_assets_tests.forged import forge, table_of
from resources.store import DatasetStore
from resources.tables import Column, TableSchema, write_table

SCHEMA = TableSchema((Column("tile", pa.string(), ""),))


@pytest.fixture
def store(tmp_path: Path) -> DatasetStore:
    return DatasetStore(root=str(tmp_path))


def write(store: DatasetStore, asset: str, record: dict[str, Any], tile: str | None = None) -> str:
    name = Layout("small", 2022).table(asset, tile)
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


@pytest.mark.parametrize("asset", ["chip_quality", "filtered_chips"])
@pytest.mark.parametrize("limit", ["min_purity", "min_confidence"])
def test_a_table_from_before_the_limits_of_labels_is_out_of_date_under_one(
    store: DatasetStore, asset: str, limit: str
) -> None:
    write(store, asset, {"fields": {"max_bad_percent": 5.0}}, "14SMG")
    limited = DatasetRecipe(confidence_raster="confidence.tif", **{limit: 80.0})
    for recipe, reason in (
        (DatasetRecipe(), ""),
        (limited, f"{asset} was made without label_quality; materialize {asset} again"),
    ):
        year = Lineage(store, Layout("small", 2022), recipe)
        assert year.of_tile(asset, "14SMG")[0] == reason
    rows = pd.DataFrame({"chip_id": ["chip_233_310"], "tile": ["14SMG"], "purity_percent": [90.0]})
    name = Layout("small", 2022).table("label_quality")
    write_table(store, name, rows.assign(confidence_percent=90.0), LABEL_QUALITY, {})
    year = Lineage(store, Layout("small", 2022), limited)
    version = Lineage(store, year.layout, limited, year).version("label_quality", "14SMG", per_tile=False)
    upstream = {"upstream": {"label_quality": version}, "tile_upstream": []}
    write(store, asset, {"fields": {limit: 80.0}, **upstream}, "14SMG")
    assert Lineage(store, year.layout, limited).of_tile(asset, "14SMG")[0] == ""


def test_a_table_that_was_made_of_itself_is_out_of_date(store: DatasetStore) -> None:
    version = write(store, "cdl", {})
    write(store, "cdl", {"upstream": {"cdl": version}})
    assert "made from itself" in stale(store)
    write(store, "chip_bboxes", {"upstream": {"cdl": version}})
    write(store, "cdl", {"upstream": {"chip_bboxes": version}})
    assert "made from itself" in stale(store)


def test_a_chain_of_tables_without_end_is_out_of_date(store: DatasetStore) -> None:
    version = write(store, "cdl", {})
    tiles = [f"14S{a}{b}" for a in "ABCDEFGH" for b in "ABCDEFGH"]
    for tile, other in pairwise(tiles):
        write(store, "chips", {"tiles": {"chips": {other: version}}}, tile)
    write(store, "splits", {"tiles": {"chips": {tiles[0]: version}}})
    assert "chips was made from a chain of more than 50 tables; materialize chips again" in stale(
        store, "splits"
    )


@pytest.mark.parametrize(
    ("record", "named"),
    [
        ({"upstream": {"../../x": ""}}, "cdl was made from '../../x', which is no asset"),
        ({"upstream": {"no_asset": ""}}, "cdl was made from 'no_asset', which is no asset"),
        ({"upstream": {"x" * 1_000_000: ""}}, "cdl was made from 'x{100}', which is no asset"),
        ({"tiles": {"../../x": {}}}, "cdl was made from '../../x', which is no asset"),
        ({"tiles": {"chips": {"../../x": ""}}}, "cdl was made from '../../x', which is no tile"),
        ({"tiles": {"chips": {"x" * 1_000_000: ""}}}, "cdl was made from 'x{100}', which is no tile"),
        ({"fields": {"x" * 1_000_000: 1}}, r"cdl was made by another recipe \(x{100}\)"),
        ({"tiles": {"x" * 1_000_000: 3}}, "cdl does not record in tiles.x{94} what"),
    ],
)
def test_what_a_record_names_is_looked_at_and_repeated_in_short(
    store: DatasetStore, record: dict[str, Any], named: str
) -> None:
    write(store, "cdl", record)
    assert re.fullmatch(f"{named}.*; materialize cdl again", stale(store))


@pytest.mark.parametrize("file", ["a/folder", "../outside", "/etc/passwd", "x" * 5_000, "no/such"])
def test_a_table_that_names_no_file_of_the_store_is_made_again(store: DatasetStore, file: str) -> None:
    store.write_bytes("a/folder/file", b"x")
    layout = Layout("small", 2022)
    for names, whole in (
        ({"a/folder/file": hashlib.sha256(b"x").hexdigest()}, True),
        ({file: "0" * 64}, False),
    ):
        forge(Path(store.root, layout.table("cdl")), table_of("cdl"), {"identity": "x", "files": names})
        said: list[str] = []
        found = Lineage(store, layout, DatasetRecipe()).unchanged("cdl", None, {"identity": "x"}, said.append)
        assert (found is not None) == whole
        assert [text.endswith(("making it again", "making them again")) for text in said] == [True] * (
            not whole
        )
