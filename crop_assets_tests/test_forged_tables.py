"""Tables of a shared store that are sound Parquet with a right hash, and not what their asset makes."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import rasterio
import shapely
from affine import Affine
from typer.testing import CliRunner

from crop_assets.aoi_map.area import load_area
from crop_assets.automation.years import year_state
from crop_assets.chip_grid import chip_geobox
from crop_assets.chips.reproject import tile_geobox
from crop_assets.cli import app
from crop_assets.dataset.publish import published_names, recorded_files
from crop_assets.dataset.statistics import band_statistics, measure_bands
from crop_assets.dataset.weights import class_weights
from crop_assets.description.files import file_rows
from crop_assets.errors import InputError
from crop_assets.graph.lineage import Lineage
from crop_assets.hls import POSITIONS
from crop_assets.layout import Layout
from crop_assets.plan import make_plan
from crop_assets.recipe import DatasetRecipe
from crop_assets.schemas import SCHEMAS
from crop_assets.stages import STAGES, TILE_STAGES
from crop_assets.tiles.grid import hls_tile_bounds
from crop_assets.verify import dataset_tables, verify_tables
from crop_assets_tests.forged import forge as forge_table
from crop_assets_tests.forged import table_of
from resources.errors import IntegrityError
from resources.machine import Machine
from resources.store import DatasetStore
from resources.tables import Column, TableSchema, read_table, write_table

LAYOUT = Layout("small", 2022)
RECIPE = DatasetRecipe(dataset="small")
HUGE = "x" * 1_000_000
TABLES: dict[str, pa.Table] = {
    "no column of its own": pa.table({"x": [1]}),
    "no column": pa.table({}),
    "a tile that is missing": pa.table({"tile": ["14SMG", None]}),
    "numbers for tiles": pa.table({"tile": [1, 2]}),
    "lists for tiles": pa.table({"tile": [["a"], ["b"]]}),
    "paths for tiles": pa.table({"tile": ["../../../etc"]}),
    "a huge text for a tile": pa.table({"tile": [HUGE]}),
    "a huge name of a column": pa.table({HUGE[:300_000]: ["14SMG"]}),
}


def forge(store: DatasetStore, name: str, table: pa.Table) -> None:
    forge_table(Path(store.root, name), table, {"identity": "x", "files": {}})


@pytest.fixture(params=TABLES, scope="module")
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> DatasetStore:
    """A store whose tables are all the same forged one; nobody changes it."""
    store = DatasetStore(root=str(tmp_path_factory.mktemp("forged")))
    for asset in SCHEMAS:
        tiles = (None, "14SMG") if asset in {stage.name for stage in TILE_STAGES} else (None,)
        for tile in tiles:
            forge(store, Lineage(store, LAYOUT, RECIPE).table(asset, tile), TABLES[request.param])
    return store


READS: dict[str, Callable[[DatasetStore], object]] = {
    "plan": lambda store: make_plan(Lineage(store, LAYOUT, RECIPE), 20),
    "the sensor": lambda store: year_state(Lineage(store, LAYOUT, RECIPE)),
    "the area page": lambda store: load_area(store, LAYOUT, RECIPE),
    "the rows of a tile": lambda store: Lineage(store, LAYOUT, RECIPE).rows("tile_map", "14SMG"),
    "the version of the rows of a tile": lambda store: Lineage(store, LAYOUT, RECIPE).version(
        "tile_map", "14SMG", False
    ),
}


@pytest.mark.parametrize("name", READS)
def test_a_table_of_another_form_is_refused_with_a_short_message(store: DatasetStore, name: str) -> None:
    with pytest.raises(IntegrityError, match="; materialize its asset again") as error:
        READS[name](store)
    assert len(str(error.value)) < 1_000


def test_verify_names_each_of_them(store: DatasetStore) -> None:
    tables = dataset_tables(store, LAYOUT)
    with Machine().pool() as pool:
        report = verify_tables(store, tables, pool)
    assert {bad.file for bad in report.bad_files} == set(tables)
    assert len(tables) > len(SCHEMAS)
    assert all(len(bad.problem) < 1_000 for bad in report.bad_files)


def test_each_of_them_is_made_again(store: DatasetStore) -> None:
    for asset in SCHEMAS:
        said: list[str] = []
        lineage = Lineage(store, LAYOUT, RECIPE)
        assert lineage.unchanged(asset, None, {"identity": "x"}, said.append) is None
        (why,) = said
        assert why.endswith("making it again")
        assert len(why) < 1_000


CHECKED = [
    (asset, column)
    for asset, schema in SCHEMAS.items()
    for column in schema.columns
    if column.words or column.pattern or column.low is not None or column.high is not None
]
TEXTS = ["../../../etc", "14SMG\0\x1b[31m", HUGE, "²4SMG", "14SMG ", "chip_٠٠٠_000", "a" * 63, "first "]


def wrong_values(column: Column) -> list[Any]:
    """Values of the column's type that it may not have."""
    if pa.types.is_list(column.type) or pa.types.is_string(column.type):
        wrong = [
            text for text in TEXTS if column.words or re.fullmatch(column.pattern, text, re.ASCII) is None
        ]
        return [[text] for text in wrong] if pa.types.is_list(column.type) else wrong
    found = [bound + step for bound, step in ((column.low, -1), (column.high, 1)) if bound is not None]
    if pa.types.is_floating(column.type):
        return [*found, np.inf, *([] if column.optional else [np.nan])]
    return found


def frame_of(asset: str) -> pd.DataFrame:
    frame, crs = table_of(asset).to_pandas(), SCHEMAS[asset].geometry_crs
    if crs is None:
        return frame
    return gpd.GeoDataFrame(frame, geometry=[shapely.box(0, 0, 1, 1)] * len(frame), crs=crs)


@pytest.mark.parametrize("asset", dict.fromkeys(asset for asset, _ in CHECKED))
def test_a_value_that_makes_no_sense_is_refused_and_its_table_made_again(tmp_path: Path, asset: str) -> None:
    schema, frame = SCHEMAS[asset], frame_of(asset)
    for column in (column for name, column in CHECKED if name == asset):
        assert wrong_values(column)
        for value in wrong_values(column):
            values = pa.array([value, *frame[column.name][1:]], column.type).to_pandas()
            with pytest.raises(IntegrityError, match=rf"{column.name} .* is invalid \(") as error:
                schema.require_valid(frame.assign(**{column.name: values}))
            assert len(str(error.value)) < 500

    # the last of them, in a store
    wrong, tile = frame.assign(**{column.name: values}), "14SMG" if STAGES[asset].scope == "tile" else None
    store = DatasetStore(root=str(tmp_path))
    name = Lineage(store, LAYOUT, RECIPE).table(asset, tile)
    with pytest.raises(IntegrityError, match=rf"table {name}: {column.name} .* is invalid \("):
        write_table(store, name, wrong, schema, {})
    unchecked = [Column(column.name, column.type, "", optional=True) for column in schema.columns]
    plain = TableSchema(tuple(unchecked), schema.geometry_crs)
    write_table(store, name, wrong, plain, {"identity": "x", "files": {}})
    said: list[str] = []
    assert Lineage(store, LAYOUT, RECIPE).unchanged(asset, tile, {"identity": "x"}, said.append) is None
    assert re.search(rf"{column.name} .* is invalid \(.*; making it again", "".join(said))


def rows_of(asset: str, keep: Callable[[pd.DataFrame], pd.Series]) -> pd.DataFrame:
    frame = table_of(asset).to_pandas()
    return frame[keep(frame)].reset_index(drop=True)


WRONG_ROWS: dict[str, tuple[str, Callable[[], pd.DataFrame], str]] = {
    "no raster": ("cdl", lambda: rows_of("cdl", lambda cdl: cdl["bytes"] < 0), "it has 0 rows"),
    "two rasters": (
        "cdl",
        lambda: pd.concat([rows_of("cdl", lambda cdl: cdl["bytes"] == 0)] * 2),
        "it has 2 rows",
    ),
    "too many tiles": (
        "tile_map",
        lambda: table_of(
            "tile_map",
            tile=pa.array([f"{zone:02}S{a}{b}" for zone in range(1, 15) for a in "ABCDEFGH" for b in ROWS]),
        ).to_pandas(),
        "it names 2,240 tiles",
    ),
    "two scenes": (
        "selected_scenes",
        lambda: table_of("selected_scenes", position=pa.array(["first", "last", ""])).to_pandas(),
        "2 of its scenes have a position",
    ),
    "one position twice": (
        "selected_scenes",
        lambda: table_of("selected_scenes", position=pa.array(["first", "first", "last"])).to_pandas(),
        "3 of its scenes have a position",
    ),
    "a scene of no day": (
        "selected_scenes",
        lambda: table_of("selected_scenes", position=pa.array(POSITIONS)).to_pandas().assign(date=None),
        "a selected scene has no date",
    ),
    **{
        f"{asset} without a file": (
            asset,
            lambda asset=asset: rows_of(asset, lambda files: files.index != 3),  # type: ignore[misc]
            "its 20 files are not those of three scenes",
        )
        for asset in ("band_cids", "downloaded_bands", "reprojected_tiles")
    },
    "bands for Fmasks": ("downloaded_fmasks", table_of("downloaded_bands").to_pandas, "its 21 files are not"),
    "a chip made of nothing": (
        "chips",
        lambda: table_of("chips").to_pandas().assign(merged_path=None),
        "facts of a chip that was made are missing",
    ),
    "kept and rejected": (
        "filtered_chips",
        lambda: table_of("filtered_chips", kept=pa.array([True])).to_pandas(),
        "a chip is kept and rejected",
    ),
    "kept without files": (
        "filtered_chips",
        lambda: table_of("filtered_chips", kept=pa.array([True])).to_pandas().assign(reason=""),
        "files of a kept chip are missing",
    ),
}
ROWS = "ABCDEFGHJKLMNPQRSTUV"


@pytest.mark.parametrize("wrong", WRONG_ROWS)
def test_rows_that_make_no_sense_together_are_refused_and_their_table_made_again(
    tmp_path: Path, wrong: str
) -> None:
    asset, rows, why = WRONG_ROWS[wrong]
    store, tile = DatasetStore(root=str(tmp_path)), "14SMG" if STAGES[asset].scope == "tile" else None
    lineage, schema = Lineage(store, LAYOUT, RECIPE), SCHEMAS[asset]
    with pytest.raises(IntegrityError, match=why):
        write_table(store, lineage.table(asset, tile), rows(), schema, {})
    write_table(
        store, lineage.table(asset, tile), rows(), replace(schema, rule=None), {"identity": "x", "files": {}}
    )
    said: list[str] = []
    assert lineage.unchanged(asset, tile, {"identity": "x"}, said.append) is None
    assert re.search(f"{why}.*; making it again", "".join(said))


@pytest.mark.parametrize("asset", SCHEMAS)
def test_a_table_that_makes_sense_is_written_and_read(tmp_path: Path, asset: str) -> None:
    store, frame = DatasetStore(root=str(tmp_path)), frame_of(asset)
    write_table(store, "t.parquet", frame, SCHEMAS[asset], {})
    assert len(read_table(store, "t.parquet", SCHEMAS[asset])) == len(frame) > 0


def test_the_error_of_a_tile_map_with_invalid_tiles_is_short(tmp_path: Path) -> None:
    for tile in TEXTS:
        forge(
            DatasetStore(root=str(tmp_path)),
            LAYOUT.table("tile_map"),
            table_of("tile_map", tile=pa.array([tile])),
        )
        assert dataset_tables(DatasetStore(root=str(tmp_path)), LAYOUT) == [LAYOUT.table("tile_map")]
        shown = CliRunner().invoke(app, ["plan", "--data", str(tmp_path), "--dataset", "small"])
        assert shown.exit_code == 2
        assert "is invalid (nearest HLS tile" in " ".join(shown.output.split())
        assert len(shown.output) < 2_000


@pytest.mark.parametrize(
    "act",
    [
        lambda text: LAYOUT.table("chips", text),
        lambda text: LAYOUT.band(text, "B02"),
        lambda text: LAYOUT.band("HLS.S30.T14SMG.2022111T172020.v2.0", text),
        lambda text: LAYOUT.merged(text),
    ],
)
def test_a_name_that_leads_elsewhere_is_an_input_error_with_a_short_message(
    act: Callable[[str], object],
) -> None:
    for text in ("../../etc", HUGE):
        with pytest.raises(InputError, match="is not the name of a") as error:
            act(text)
        assert len(str(error.value)) < 200


@pytest.mark.parametrize("table", [pa.table({"x": [1]}), table_of("band_cids"), table_of("selected_scenes")])
def test_a_plan_continues_with_the_other_tiles(tmp_path: Path, table: pa.Table) -> None:
    store = DatasetStore(root=str(tmp_path))
    forge(store, LAYOUT.table("tile_map"), table_of("tile_map", tile=pa.array(["14SMG", "14SNG"])))
    for tile in ("14SMG", "14SNG"):
        for asset in ("selected_scenes", "band_cids"):
            forge(store, LAYOUT.table(asset, tile), table if tile == "14SMG" else table_of(asset))
    plan = make_plan(Lineage(store, LAYOUT, RECIPE), 20)
    assert plan.tiles["tile"].tolist() == ["14SMG", "14SNG"]
    assert plan.tiles["problem"].iloc[1] == "fewer than three scenes are fit (0 of 1)"


@pytest.mark.parametrize(
    "name",
    [
        "training_datasets/secret/2022/chips.csv",
        "aoi.geojson",
        "cdl/2022_30m_cdls.tif",
        f"{LAYOUT.root}/",
        f"{LAYOUT.root}//chips.csv",
        f"{LAYOUT.root}/./chips.csv",
        f"{LAYOUT.root}/chips.csv/",
        f"{LAYOUT.root}/../../secret/2022/chips.csv",
    ],
)
@pytest.mark.parametrize("where", ["merged_path", "mask_path", "files"])
def test_files_outside_the_dataset_are_not_published(tmp_path: Path, name: str, where: str) -> None:
    store = DatasetStore(root=str(tmp_path))
    chip = {"merged_path": LAYOUT.merged("chip_232_310"), "mask_path": LAYOUT.mask("chip_232_310")}
    files = {LAYOUT.file("chips.csv"): "0"}
    for file in (*chip.values(), *files):
        store.write_bytes(file, b"1")
    kept = pd.DataFrame([chip]).assign(merged_sha256="1", mask_sha256="2")

    def found(splits: pd.DataFrame, named: dict[str, str]) -> pd.DataFrame:
        forge_table(tmp_path / LAYOUT.table("splits"), table_of("splits"), {"files": named})
        return file_rows(store, LAYOUT, splits, recorded_files(store, LAYOUT, ["splits"]))

    with pytest.raises(IntegrityError, match=f"a table of .* names '{name}', which is outside that folder"):
        found(
            kept if where == "files" else kept.assign(**{where: name}),
            files | {name: "0"} if where == "files" else files,
        )
    assert list(found(kept, files)["file"]) == [
        "chips.csv",
        "chips/chip_232_310.mask.tif",
        "chips/chip_232_310_merged.tif",
    ]


@pytest.mark.parametrize("name", ["a/../../b.tif", "a//b.tif", "a/./b.tif", "..", "a/.."])
@pytest.mark.parametrize("where", ["files", "later"])
def test_names_of_dataset_files_that_lead_out_are_not_published(name: str, where: str) -> None:
    named = ["a.tif", name]
    files, later = (named, {}) if where == "files" else ([], dict.fromkeys(named, ("stac_catalogue", "0")))
    with pytest.raises(IntegrityError, match="outside that folder"):
        published_names(LAYOUT, files, later)
    assert published_names(LAYOUT, ["a.tif"], {"b": ("", "")}) == {
        "a.tif": LAYOUT.file("a.tif"),
        "b": LAYOUT.file("b"),
    }


@pytest.mark.parametrize("asset", [name for name, schema in SCHEMAS.items() if schema.key])
def test_a_table_with_a_key_twice_is_refused_in_reading_and_writing(tmp_path: Path, asset: str) -> None:
    store, schema = DatasetStore(root=str(tmp_path)), SCHEMAS[asset]
    frame = frame_of(asset)
    write_table(store, "t.parquet", frame, schema, {})
    twice = pd.concat([frame, frame], ignore_index=True)
    with pytest.raises(IntegrityError, match=f"{schema.key[0]}.* occur twice"):
        write_table(store, "t.parquet", twice, schema, {})
    write_table(store, "t.parquet", twice, replace(schema, key=(), rule=None), {})
    with pytest.raises(IntegrityError, match=f"{schema.key[0]}.* occur twice.*; materialize its asset again"):
        read_table(store, "t.parquet", schema)


def test_chips_further_apart_than_a_tile_give_no_raster() -> None:
    with pytest.raises(InputError, match="are up to 1,001 chips apart, but a tile is only 17 chips wide"):
        tile_geobox([], ["chip_000_000", "chip_000_1000"])
    with pytest.raises(InputError, match="is not a chip id"):
        chip_geobox(f"chip_{'9' * 400}_000")


@pytest.mark.parametrize("tile", ["xxTDE", "", "99TDE", "14SMI"])
def test_an_invalid_tile_has_no_bounds(tile: str) -> None:
    with pytest.raises(InputError, match="which is not a valid tile; materialize tile_grid again"):
        hls_tile_bounds(tile, shapely.box(-99, 38, -98, 39))


@pytest.mark.parametrize(
    "polygon",
    [shapely.Polygon(), shapely.Polygon([(0, 0), (np.inf, 0), (1, 1)]), shapely.box(-98, 200, -97, 300)],
)
def test_a_tile_without_a_square_has_no_bounds(polygon: shapely.Polygon) -> None:
    with pytest.raises(
        InputError, match=r"not a valid tile|cannot be projected to EPSG:32614|not near a corner"
    ):
        hls_tile_bounds("14SMG", polygon)


def test_counts_without_classes_give_no_weights() -> None:
    with pytest.raises(InputError, match="there are no class weights"):
        class_weights([9, *[0] * 13])


@pytest.mark.parametrize(
    ("dtype", "value", "why"),
    [("int16", -9999, "all pixels of a band are missing"), ("uint8", 1, "has the type uint8, not int16")],
)
def test_images_without_data_or_of_another_type_give_no_statistics(
    tmp_path: Path, dtype: str, value: int, why: str
) -> None:
    path = tmp_path / "chip_232_310_merged.tif"
    profile = {
        "driver": "GTiff",
        "count": 18,
        "height": 224,
        "width": 224,
        "dtype": dtype,
        "crs": "EPSG:5070",
    }
    with rasterio.open(path, "w", **profile, transform=Affine(30, 0, 0, 0, -30, 0)) as raster:
        raster.write(np.full((18, 224, 224), value, dtype))
    with Machine().pool() as pool, pytest.raises(InputError, match=why):
        band_statistics(measure_bands([str(path)], ["train"], pool)["train"].sum(axis=(0, 1)))


def test_every_asset_has_its_table_among_the_schemas() -> None:
    assert {name: one.schema for name, one in STAGES.items()} == SCHEMAS
