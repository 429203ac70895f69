import json
from pathlib import Path

import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.geometry import shape

from crop_assets.chip_grid import (
    chip_blocks,
    chip_cover,
    chip_geobox,
    chip_id,
    chip_position,
    chip_window,
    positions_in,
)
from crop_assets.layout import Layout, tile_grid_table

LAYOUT = Layout("multi_temporal_crop_classification", 2022)
ROOT = "training_datasets/multi_temporal_crop_classification/2022"
SCENE = "HLS.S30.T13TDE.2022111T174859.v2.0"

# hypothesis' limit of 200 ms is passed on a busy machine
unhurried = settings(deadline=None)

# The national CDL raster has some 431 x 687 chips; what users clip may reach beyond it.
ROWS, COLS = st.integers(0, 1200), st.integers(0, 1200)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (LAYOUT.root, ""),
        (LAYOUT.table("splits"), "/tables/splits.parquet"),
        (LAYOUT.table("chips", "13TDE"), "/tables/chips/13TDE.parquet"),
        (LAYOUT.band(SCENE, "B02"), f"/tiles/{SCENE}/{SCENE}.B02.tif"),
        (LAYOUT.band(SCENE, "Fmask"), f"/tiles/{SCENE}/{SCENE}.Fmask.tif"),
        (LAYOUT.reprojected(SCENE, "B8A"), f"/tiles_reprojected/{SCENE}/{SCENE}.B8A.tif"),
        (LAYOUT.merged("chip_257_266"), "/chips/chip_257_266_merged.tif"),
        (LAYOUT.mask("chip_257_266"), "/chips/chip_257_266.mask.tif"),
        (LAYOUT.fmask("chip_257_266"), "/chips_fmask/chip_257_266_Fmask.tif"),
        (LAYOUT.merged("chip_257_266", "chips_filtered"), "/chips_filtered/chip_257_266_merged.tif"),
        (LAYOUT.mask("chip_257_266", "chips_filtered"), "/chips_filtered/chip_257_266.mask.tif"),
        (LAYOUT.file("tile_payloads.json"), "/tile_payloads.json"),
        (LAYOUT.file("band_stats"), "/band_stats"),
    ],
)
def test_names_are_as_specified(name: str, expected: str) -> None:
    assert name == ROOT + expected


def test_the_tile_grid_belongs_to_no_dataset() -> None:
    assert tile_grid_table() == "tile_grid.parquet"


def test_scene_files_are_named_alike_in_every_folder() -> None:
    assert Layout.scene_file(SCENE, "B02") == f"{SCENE}/{SCENE}.B02.tif"
    assert Layout.scene_file("HLS.L30.T15UWP.2024042T165831.v2.0", "B05").endswith(".v2.0.B05.tif")
    assert Layout.scene_file("HLS.S30.T29QND.2019182.v1.5", "B02").endswith(".v1.5.B02.tif")


@pytest.mark.parametrize(
    "scene",
    [
        "",
        "..",
        "../../etc/passwd",
        f"../{SCENE}",
        f"{SCENE}/..",
        f"{SCENE}\n",
        f" {SCENE}",
        f"{SCENE}.B02",
        f"{SCENE}\0",
        SCENE.replace(".", "/"),
        SCENE.replace("S30", "X30"),
        SCENE.replace("T13TDE", "13TDE"),
        SCENE.replace("13TDE", "13tde"),
        SCENE.replace("13TDE", "13TDI"),
        SCENE.replace("2022111", "20221"),
        SCENE.replace("1", "\N{ARABIC-INDIC DIGIT ONE}"),
        SCENE.lower(),
        "LC09_L1TP_015033_20221015_20221015_02_T1",
    ],
)
def test_an_invalid_scene_id_does_not_become_a_path(scene: str) -> None:
    for name in (LAYOUT.band, LAYOUT.reprojected, LAYOUT.scene_file):
        with pytest.raises(ValueError, match="is not the name of a scene"):
            name(scene, "B02")


@pytest.mark.parametrize("band", ["", "B", "B02/../x", "../B02", "B02.tif", "B02\n", "B 02", "B02B02B02"])
def test_an_invalid_band_does_not_become_a_path(band: str) -> None:
    for name in (LAYOUT.band, LAYOUT.reprojected):
        with pytest.raises(ValueError, match="is not the name of a band"):
            name(SCENE, band)


NO_CHIPS = [
    "",
    "chip",
    "chip_1_2",
    "chip_257_266_merged",
    "chip_257_266\n",
    "chip_257_-66",
    "chip_-01_005",
    "../chip_257_266",
    "chip_257/266",
    "CHIP_257_266",
    # other spellings of a chip that has a name
    "chip_0257_266",
    "chip_257_0266",
    "chip_\N{DEVANAGARI DIGIT TWO}57_266",
]


@pytest.mark.parametrize("chip", NO_CHIPS)
def test_an_invalid_chip_id_is_refused(chip: str) -> None:
    for name in (LAYOUT.merged, LAYOUT.mask, LAYOUT.fmask):
        with pytest.raises(ValueError, match="is not the name of a chip"):
            name(chip)
    for at in (chip_position, chip_geobox):
        with pytest.raises(ValueError, match="is not a chip id such as chip_257_266"):
            at(chip)


@pytest.mark.parametrize(
    "tile", ["", "T13TDE", "13TD", "13tde", "13TDE/", "../13TDE", "13ADE", "13TDE\n", "61SNH", "14SMI"]
)
def test_an_invalid_tile_does_not_become_a_path(tile: str) -> None:
    with pytest.raises(ValueError, match="is not the name of a tile"):
        LAYOUT.table("chips", tile)


@unhurried
@given(ROWS, COLS)
def test_a_chip_id_contains_its_position(row: int, col: int) -> None:
    chip = chip_id(row, col)
    assert chip_position(chip) == (row, col)
    assert LAYOUT.mask(chip) == f"{ROOT}/chips/{chip}.mask.tif"


@unhurried
@given(st.from_regex(r"chip_\d{3,5}_\d{3,5}", fullmatch=True))
def test_a_chip_has_one_id(text: str) -> None:
    try:
        assert chip_id(*chip_position(text)) == text
    except ValueError:
        with pytest.raises(ValueError, match="is not the name of a chip"):
            LAYOUT.mask(text)


@unhurried
@given(ROWS, COLS)
def test_the_corners_of_a_chip(row: int, col: int) -> None:
    box = chip_geobox(chip_id(row, col))
    left, bottom, right, top = box.boundingbox
    assert (left, top) == (6720 * col - 2356095, 3172605 - 6720 * row)
    assert (right - left, top - bottom) == (6720, 6720)
    assert (box.width, box.height, box.crs) == (224, 224, "EPSG:5070")


def test_chips_are_where_the_published_ones_are(real: Path) -> None:
    features = json.loads((real / "tables" / "chip_bbox_5070.geojson").read_text())["features"]
    assert len(features) == 2000
    for feature in features:
        box = chip_geobox(feature["properties"]["id"])
        assert tuple(box.boundingbox) == shape(feature["geometry"]).bounds


@unhurried
@given(ROWS, COLS, st.integers(1, 5), st.integers(1, 5))
def test_a_block_of_chips_is_the_union_of_its_chips(row: int, col: int, height: int, width: int) -> None:
    rows, cols = range(row, row + height), range(col, col + width)
    block = chip_blocks(rows, cols)
    assert (block.height, block.width) == (224 * height, 224 * width)
    for i in (0, height - 1):
        for j in (0, width - 1):
            part = block[224 * i : 224 * (i + 1), 224 * j : 224 * (j + 1)]
            assert part == chip_geobox(chip_id(rows[i], cols[j]))


X, Y = st.integers(-2356095, 2258235), st.integers(276915, 3172605)


@unhurried
@given(X, X, Y, Y)
def test_the_cover_of_an_area_is_as_small_as_possible(x0: int, x1: int, y0: int, y1: int) -> None:
    left, right, bottom, top = min(x0, x1), max(x0, x1), min(y0, y1), max(y0, y1)
    rows, cols = chip_cover(left, bottom, right, top)
    assert 0 <= (3172605 - 6720 * rows.start) - top < 6720
    assert 0 <= bottom - (3172605 - 6720 * rows.stop) < 6720
    assert 0 <= left - (6720 * cols.start - 2356095) < 6720
    assert 0 <= (6720 * cols.stop - 2356095) - right < 6720


@unhurried
@given(ROWS, COLS, st.integers(1, 5), st.integers(1, 5))
def test_complete_chips_are_covered_by_themselves(row: int, col: int, height: int, width: int) -> None:
    rows, cols = range(row, row + height), range(col, col + width)
    assert chip_cover(*chip_blocks(rows, cols).boundingbox) == (rows, cols)


@unhurried
@given(ROWS, COLS, st.integers(1, 6719), st.integers(1, 6719))
def test_a_point_in_a_chip_is_covered_by_that_chip(row: int, col: int, right: int, down: int) -> None:
    x, y = 6720 * col - 2356095 + right, 3172605 - 6720 * row - down
    assert chip_cover(x, y, x, y) == (range(row, row + 1), range(col, col + 1))


# scenes by others lie west, north and far east of the national raster
ANY_ROW, ANY_COL = st.integers(-500, 1200), st.integers(-500, 2000)


@unhurried
@given(ANY_ROW, ANY_COL, st.integers(0, 500), st.integers(0, 500), ANY_ROW, ANY_COL)
def test_the_window_of_a_chip_is_its_position_in_any_raster(
    row: int, col: int, down: int, right: int, chip_row: int, chip_col: int
) -> None:
    raster = chip_blocks(range(row, row + 3), range(col, col + 3))[down:, right:]
    window = chip_window(raster.affine, chip_row, chip_col)
    assert (window.width, window.height) == (224, 224)
    left, top = raster.affine @ (window.col_off, window.row_off)
    assert (left, top) == (6720 * chip_col - 2356095, 3172605 - 6720 * chip_row)


def test_windows_tolerate_rounding_of_a_transform() -> None:
    exact = chip_blocks(range(223, 224), range(337, 338)).affine
    for shift in (-1e-4, 1e-4):
        window = chip_window(exact.translation(shift, shift) @ exact, 223, 337)
        assert (window.col_off, window.row_off) == (0, 0)


def test_the_windows_of_the_real_cdl_begin_at_the_corners_of_its_chips(real: Path) -> None:
    with rasterio.open(real / "cdl" / "2021_30m_cdls.tif") as raster:
        window = chip_window(raster.transform, 202, 336)
        assert tuple(raster.window_bounds(window)) == tuple(chip_geobox("chip_202_336").boundingbox)
        assert raster.read(1, window=window).shape == (224, 224)


@unhurried
@given(ANY_ROW, ANY_COL, st.integers(1, 5), st.integers(1, 5))
def test_the_positions_in_a_block_are_its_chips_row_by_row(
    row: int, col: int, height: int, width: int
) -> None:
    grid = chip_blocks(range(row, row + height), range(col, col + width))
    assert positions_in(grid) == [(r, c) for r in range(row, row + height) for c in range(col, col + width)]
    windows = [chip_window(grid.affine, *position) for position in positions_in(grid)]
    assert [(window.row_off // 224, window.col_off // 224) for window in windows] == [
        (r, c) for r in range(height) for c in range(width)
    ]
