"""Tables of a shared store that are sound Parquet with a right hash, and not what their asset makes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

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
from crop_assets.dataset.publish import published_names
from crop_assets.dataset.statistics import measure_bands
from crop_assets.dataset.weights import class_weights
from crop_assets.errors import InputError
from crop_assets.graph.lineage import Lineage
from crop_assets.labels.cdl import raster_digest
from crop_assets.layout import Layout
from crop_assets.plan import make_plan
from crop_assets.recipe import DatasetRecipe
from crop_assets.scenes.selection import chosen_scenes
from crop_assets.schemas import SCHEMAS
from crop_assets.stages import STAGES, TILE_STAGES
from crop_assets.tiles.grid import hls_tile_bounds
from crop_assets.tiles.mapping import map_chips
from crop_assets.verify import dataset_tables, verify_tables
from crop_assets_tests.forged import forge as forge_table
from crop_assets_tests.forged import table_of
from resources.errors import IntegrityError
from resources.machine import Machine
from resources.store import DatasetStore
from resources.tables import read_table, write_table

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
def test_a_table_that_is_not_what_its_asset_makes_is_refused_in_short(store: DatasetStore, name: str) -> None:
    with pytest.raises(IntegrityError, match="; materialize its asset again") as error:
        READS[name](store)
    assert len(str(error.value)) < 1_000


def test_verify_names_each_of_them(store: DatasetStore) -> None:
    tables = dataset_tables(store, LAYOUT)
    with Machine().pool() as pool:
        verified = verify_tables(store, tables, pool)
    assert {finding.file for finding in verified.findings} == set(tables)
    assert len(tables) > len(SCHEMAS)
    assert all(len(finding.problem) < 1_000 for finding in verified.findings)


def test_each_of_them_is_made_again(store: DatasetStore) -> None:
    for asset in SCHEMAS:
        said: list[str] = []
        lineage = Lineage(store, LAYOUT, RECIPE)
        assert lineage.unchanged(asset, None, {"identity": "x"}, said.append) is None
        (why,) = said
        assert why.endswith("making it again")
        assert len(why) < 1_000


@pytest.mark.parametrize("tile", ["../../../etc", "14SMG\0\x1b[31m", HUGE, "²4SMG", "14SMG "])
def test_a_tile_map_of_the_right_columns_that_names_no_tiles_is_refused_in_short(
    tmp_path: Path, tile: str
) -> None:
    store = DatasetStore(root=str(tmp_path))
    forge(store, LAYOUT.table("tile_map"), table_of("tile_map", tile=pa.array([tile])))
    for name in ("plan", "the sensor"):
        with pytest.raises(IntegrityError, match="which is no tile; materialize tile_map again") as error:
            READS[name](store)
        assert len(str(error.value)) < 1_000
    assert dataset_tables(store, LAYOUT) == [LAYOUT.table("tile_map")]
    shown = CliRunner().invoke(app, ["plan", "--data", str(tmp_path), "--dataset", "small"])
    assert shown.exit_code == 2
    assert "which is no tile" in shown.output
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
def test_a_name_that_leads_elsewhere_is_an_error_of_an_input_and_repeated_in_short(
    act: Callable[[str], object],
) -> None:
    for text in ("../../etc", HUGE):
        with pytest.raises(InputError, match="is not the name of a") as error:
            act(text)
        assert len(str(error.value)) < 200


@pytest.mark.parametrize("table", [pa.table({"x": [1]}), table_of("band_cids"), table_of("selected_scenes")])
def test_a_plan_goes_on_with_the_other_tiles(tmp_path: Path, table: pa.Table) -> None:
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
def test_what_lies_outside_the_dataset_is_not_published(tmp_path: Path, name: str, where: str) -> None:
    store = DatasetStore(root=str(tmp_path))
    chip = LAYOUT.merged("chip_232_310")
    splits = pd.DataFrame({"merged_path": [chip], "mask_path": [LAYOUT.mask("chip_232_310")]})
    files = {LAYOUT.file("chips.csv"): "0"}
    if where == "files":
        files[name] = "0"
    else:
        splits.loc[1] = [chip, chip]
        splits.loc[1, where] = name
    forge_table(tmp_path / LAYOUT.table("splits"), table_of("splits"), {"files": files})
    with pytest.raises(IntegrityError, match=f"'{name}' is named by a table of .* and lies elsewhere"):
        published_names(store, LAYOUT, splits, ["splits"])
    kept = splits[~splits.isin([name]).any(axis=1)]
    forge_table(
        tmp_path / LAYOUT.table("splits"), table_of("splits"), {"files": {LAYOUT.file("chips.csv"): "0"}}
    )
    assert set(published_names(store, LAYOUT, kept, ["splits"])) == {
        "chips.csv",
        "chips/chip_232_310_merged.tif",
        "chips/chip_232_310.mask.tif",
    }


@pytest.mark.parametrize("asset", [name for name, schema in SCHEMAS.items() if schema.key])
def test_a_table_with_a_key_twice_is_refused_in_reading_and_writing(tmp_path: Path, asset: str) -> None:
    store, schema = DatasetStore(root=str(tmp_path)), SCHEMAS[asset]
    one = table_of(asset)
    if schema.geometry_crs:
        frame = gpd.GeoDataFrame(one.to_pandas(), geometry=[shapely.box(0, 0, 1, 1)], crs=schema.geometry_crs)
    else:
        frame = one.to_pandas()
    write_table(store, "t.parquet", frame, schema, {})
    assert len(read_table(store, "t.parquet", schema)) == 1
    twice = pd.concat([frame, frame], ignore_index=True)
    with pytest.raises(IntegrityError, match=f"{schema.key[0]}.* occur twice"):
        write_table(store, "t.parquet", twice, schema, {})
    write_table(store, "t.parquet", twice, replace(schema, key=()), {})
    with pytest.raises(IntegrityError, match=f"{schema.key[0]}.* occur twice.*; materialize its asset again"):
        read_table(store, "t.parquet", schema)


def test_chips_that_lie_further_apart_than_a_tile_is_wide_make_no_raster() -> None:
    with pytest.raises(InputError, match="lie 1,001 chips apart, and a tile is 17 wide"):
        tile_geobox([], ["chip_000_000", "chip_000_1000"])
    with pytest.raises(InputError, match="is not a chip id"):
        chip_geobox(f"chip_{'9' * 400}_000")


@pytest.mark.parametrize("position", [["first", "first"], ["first", "spring"], ["x" * 10_000]])
def test_positions_that_are_none_are_refused_in_short(position: list[str]) -> None:
    with pytest.raises(InputError, match="; materialize selected_scenes again") as error:
        chosen_scenes(pd.DataFrame({"position": position}))
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("column", "value"), [("row", 2**31 - 1), ("col", -5000), ("x", np.nan), ("lat", np.inf)]
)
def test_chip_boxes_that_are_nowhere_are_refused(column: str, value: float) -> None:
    boxes = table_of("chip_bboxes", row=pa.array([100, 101], pa.int32())).to_pandas()
    boxes[column] = boxes[column].astype(np.float64)
    boxes.loc[1, column] = value
    grid = gpd.GeoDataFrame(
        table_of("tile_grid").to_pandas(), geometry=[shapely.box(-99, 38, -98, 39)], crs=4326
    )
    with pytest.raises(
        InputError, match="1 chip boxes are not on the national chip grid, such as 'chip_001_000'"
    ):
        map_chips(boxes, grid, "projected", "drop")


@pytest.mark.parametrize("tile", ["xxTDE", "", "99TDE", "14SMI"])
def test_a_tile_that_is_none_has_no_bounds(tile: str) -> None:
    with pytest.raises(InputError, match="which is no tile, or lies nowhere; materialize tile_grid again"):
        hls_tile_bounds(tile, shapely.box(-99, 38, -98, 39))


@pytest.mark.parametrize(
    "polygon",
    [shapely.Polygon(), shapely.Polygon([(0, 0), (np.inf, 0), (1, 1)]), shapely.box(-98, 200, -97, 300)],
)
def test_a_tile_that_lies_nowhere_has_no_bounds(polygon: shapely.Polygon) -> None:
    with pytest.raises(InputError, match=r"lies nowhere|has no place in EPSG:32614|not near a corner"):
        hls_tile_bounds("14SMG", polygon)


@pytest.mark.parametrize("pixels", [[9, *[0] * 13], [0, -5, *[3] * 12]])
def test_counts_that_are_none_give_no_weights(pixels: list[int]) -> None:
    with pytest.raises(InputError, match="cannot be weighed"):
        class_weights(pixels)


@pytest.mark.parametrize(
    ("dtype", "value", "why"),
    [("int16", -9999, "every one of a band is missing"), ("uint8", 1, "is of uint8, and not of int16")],
)
def test_images_of_nothing_or_of_another_type_give_no_statistics(
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
        measure_bands([str(path)], pool)


@pytest.mark.parametrize("rows", [0, 2])
def test_a_year_has_one_raster(rows: int) -> None:
    one = table_of("cdl", sha256=pa.array(["a" * 64])).to_pandas()
    assert raster_digest(one) == "a" * 64
    with pytest.raises(
        InputError, match=f"cdl has {rows} rows, and a year has one raster; materialize cdl again"
    ):
        raster_digest(pd.concat([one, one]).head(rows))


def test_every_asset_has_its_table_among_the_schemas() -> None:
    assert {name: one.schema for name, one in STAGES.items()} == SCHEMAS
