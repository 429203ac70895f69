from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.enums import ColorInterp

from crop_assets.chip_grid import chip_blocks, chip_geobox, raster_geobox
from crop_assets.chips.clip import Chip, TileReader, chip_facts, chip_files
from crop_assets.classes import CDL_CLASSES, class_colormap
from crop_assets.errors import InputError
from crop_assets.hls import POSITIONS, QA_BAND, REFLECTANCE_BANDS
from crop_assets_tests.chips.test_warp import write

GRID = chip_blocks(range(223, 225), range(337, 340))
"""The grid of the reprojected rasters; the CDL has one more row of chips."""
CDL_GRID = chip_blocks(range(222, 225), range(337, 340))
CHIPS = ["chip_223_337", "chip_224_339", "chip_223_338"]
DATES = ["2022-04-21", "2022-06-20", "2022-09-03"]
BANDS = (*REFLECTANCE_BANDS, QA_BAND)
Tile = dict[tuple[str, str], np.ndarray]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture
def tile(rng: np.random.Generator) -> Tile:
    """Bands with some negative and some missing pixels; what is missing differs from band to band."""
    bands: Tile = {}
    for position in POSITIONS:
        for band in BANDS:
            values = rng.integers(-300, 5000, GRID.shape).astype(np.int16)
            if band == QA_BAND:
                values = rng.choice([0, 2, 8, 64, 96], GRID.shape).astype(np.uint8)
            values[rng.random(GRID.shape) < 0.002] = 255 if band == QA_BAND else -9999
            bands[position, band] = values
    return bands


@pytest.fixture
def codes(rng: np.random.Generator) -> np.ndarray:
    return rng.choice(list(CDL_CLASSES), CDL_GRID.shape).astype(np.uint8)


def write_tile(folder: Path, tile: Tile) -> dict[tuple[str, str], str]:
    return {
        (position, band): str(
            write(
                folder / f"{position}.{band}.tif",
                values,
                GRID,
                255 if band == QA_BAND else -9999,
                tiled=True,
                blockxsize=224,
                blockysize=224,
                compress="zstd",
            )
        )
        for (position, band), values in tile.items()
    }


def write_cdl(folder: Path, codes: np.ndarray, grid: GeoBox = CDL_GRID) -> str:
    return str(write(folder / "2022_30m_cdls.tif", codes, grid, None))


def local(bands: dict[tuple[str, str], str]) -> dict[tuple[str, str], AbstractContextManager[Path]]:
    return {band: nullcontext(Path(path)) for band, path in bands.items()}


def read(
    folder: Path, tile: Tile, codes: np.ndarray, chips: Sequence[str], pool: Executor, grid: GeoBox = CDL_GRID
) -> list[Chip]:
    with TileReader(local(write_tile(folder, tile)), write_cdl(folder, codes, grid)) as reader:
        return reader.read(chips, pool)


def part(values: np.ndarray, grid: GeoBox, chip: str) -> np.ndarray:
    left, top = ~grid.affine @ chip_geobox(chip).affine @ (0, 0)
    return values[round(top) : round(top) + 224, round(left) : round(left) + 224]


def test_a_chip_has_its_part_of_every_raster(
    tmp_path: Path, tile: Tile, codes: np.ndarray, pool: Executor
) -> None:
    made = read(tmp_path, tile, codes, CHIPS, pool)
    assert len(made) == len(CHIPS)
    for name, chip in zip(CHIPS, made, strict=True):
        assert (chip.image.dtype, chip.mask.dtype, chip.fmask.dtype) == ("int16", "uint8", "uint8")
        assert chip.image.shape == (18, 224, 224)
        in_order = [
            part(tile[position, band], GRID, name) for position in POSITIONS for band in REFLECTANCE_BANDS
        ]
        for ours, values in zip(chip.image, in_order, strict=True):
            np.testing.assert_array_equal(ours, np.where(values == -9999, -9999, np.maximum(values, 0)))
        np.testing.assert_array_equal(
            chip.fmask, [part(tile[position, QA_BAND], GRID, name) for position in POSITIONS]
        )
        classes = [[CDL_CLASSES[int(code)] for code in row] for row in part(codes, CDL_GRID, name)]
        np.testing.assert_array_equal(chip.mask, classes)


def test_a_pixel_is_missing_on_a_date_that_lacks_a_band_or_its_fmask(
    tmp_path: Path, tile: Tile, codes: np.ndarray, pool: Executor
) -> None:
    (chip,) = read(tmp_path, tile, codes, CHIPS[:1], pool)
    on_any = np.zeros((224, 224), bool)
    for at, position in enumerate(POSITIONS):
        missing = np.zeros((224, 224), bool)
        for band in BANDS:
            missing |= part(tile[position, band], GRID, CHIPS[0]) == (255 if band == QA_BAND else -9999)
        np.testing.assert_array_equal(chip.missing[at], missing)
        on_any |= missing
    facts = chip_facts(chip)
    assert 0 < facts["na_count"] == on_any.sum()


def test_negatives_become_zero_and_are_not_missing(
    tmp_path: Path, tile: Tile, codes: np.ndarray, pool: Executor
) -> None:
    for (_, band), values in tile.items():
        values[:] = 0 if band == QA_BAND else 100
    tile["middle", "B03"][0, :4] = [-1, -9998, -9999, -32768]
    tile["last", QA_BAND][0, 4] = 255
    (chip,) = read(tmp_path, tile, codes, CHIPS[:1], pool)
    assert chip.image[6 + 1, 0, :5].tolist() == [0, 0, -9999, 0, 100]
    assert [tuple(at) for at in np.argwhere(chip.missing)] == [(1, 0, 2), (2, 0, 4)]
    assert chip_facts(chip)["na_count"] == 2


def test_facts_count_classes_and_fmask_values(
    tmp_path: Path, tile: Tile, codes: np.ndarray, pool: Executor
) -> None:
    (chip,) = read(tmp_path, tile, codes, CHIPS[:1], pool)
    facts = chip_facts(chip)
    assert [facts[f"class_{c}"] for c in range(14)] == [(chip.mask == c).sum() for c in range(14)]
    for position, fmask in zip(POSITIONS, chip.fmask, strict=True):
        bad, fill = (fmask == 2) | (fmask == 8), fmask == 255
        assert facts[f"cloud_{position}"] == (fmask == 2).sum()
        assert facts[f"shadow_{position}"] == (fmask == 8).sum()
        assert facts[f"valid_{position}"] == (~bad & ~fill).sum()
        assert facts[f"fill_{position}"] == fill.sum() > 0


@pytest.mark.parametrize("threads", [1, 4])
def test_chips_do_not_depend_on_threads_or_on_what_else_is_read(
    tmp_path: Path, tile: Tile, codes: np.ndarray, pool: Executor, threads: int
) -> None:
    together = read(tmp_path, tile, codes, CHIPS, pool)
    with (
        ThreadPoolExecutor(threads) as others,
        TileReader(local(write_tile(tmp_path, tile)), write_cdl(tmp_path, codes)) as reader,
    ):
        alone = [reader.read([chip], others)[0] for chip in CHIPS]
    for one, other in zip(together, alone, strict=True):
        for name in ("image", "mask", "fmask", "missing"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.fixture
def written(tmp_path: Path, tile: Tile, codes: np.ndarray, pool: Executor) -> tuple[Chip, dict[str, Path]]:
    (chip,) = read(tmp_path, tile, codes, CHIPS[:1], pool)
    paths = {name: tmp_path / f"{name}.tif" for name in ("merged", "mask", "fmask")}
    tags = {"TILE": "14SPJ", "SCENES": "a b c"}
    for name, pieces in chip_files(chip, CHIPS[0], DATES, tags).items():
        paths[name].write_bytes(b"".join(pieces))
    return chip, paths


def test_written_files_hold_the_chip_on_its_grid(written: tuple[Chip, dict[str, Path]]) -> None:
    chip, paths = written
    pixels = {"merged": chip.image, "mask": chip.mask[np.newaxis], "fmask": chip.fmask}
    for name, values in pixels.items():
        with rasterio.open(paths[name]) as raster:
            np.testing.assert_array_equal(raster.read(), values)
            assert raster.dtypes == (values.dtype,) * len(values)
            assert (raster.crs, raster_geobox(raster)) == ("EPSG:5070", chip_geobox(CHIPS[0]))
            assert raster.tags()["TILE"] == "14SPJ"
            assert raster.tags()["SCENES"] == "a b c"
    assert not list(paths["mask"].parent.glob("*.aux.xml"))


def test_the_image_and_the_fmask_name_date_and_band_and_tag_their_nodata(
    written: tuple[Chip, dict[str, Path]],
) -> None:
    _, paths = written
    with rasterio.open(paths["merged"]) as raster:
        assert raster.descriptions[:3] == ("2022-04-21_B02", "2022-04-21_B03", "2022-04-21_B04")
        assert raster.descriptions == tuple(f"{date}_{band}" for date in DATES for band in REFLECTANCE_BANDS)
        assert raster.nodatavals == (-9999,) * 18
        assert ColorInterp.alpha not in raster.colorinterp
    with rasterio.open(paths["fmask"]) as raster:
        assert raster.descriptions == tuple(f"{date}_Fmask" for date in DATES)
        assert raster.nodatavals == (255,) * 3
        assert ColorInterp.alpha not in raster.colorinterp


def test_the_mask_has_a_palette_and_no_nodata_tag(written: tuple[Chip, dict[str, Path]]) -> None:
    with rasterio.open(written[1]["mask"]) as raster:
        assert raster.nodata is None
        assert raster.descriptions == ("class",)
        assert raster.colorinterp == (ColorInterp.palette,)
        colours = raster.colormap(1)
    assert {value: colours[value] for value in range(14)} == class_colormap()


@pytest.mark.parametrize(
    "chip", ["chip_222_336", "chip_225_338", "chip_221_340", "chip_400_600", "chip_000_000", "chip_223_340"]
)
def test_a_chip_beyond_the_cdl_is_an_error_that_names_both(
    tmp_path: Path, codes: np.ndarray, pool: Executor, chip: str
) -> None:
    with (
        TileReader({}, write_cdl(tmp_path, codes)) as reader,
        pytest.raises(InputError, match=rf"{chip} is not inside 2022_30m_cdls\.tif"),
    ):
        reader.read(["chip_223_337", chip], pool)


def test_a_chip_that_the_cdl_cuts_off_is_an_error_that_names_both(
    tmp_path: Path, codes: np.ndarray, pool: Executor
) -> None:
    with (
        TileReader({}, write_cdl(tmp_path, codes[:-1, :-100], CDL_GRID[:-1, :-100])) as reader,
        pytest.raises(InputError, match=r"chip_224_337 is not inside 2022_30m_cdls\.tif"),
    ):
        reader.read(["chip_224_337"], pool)


def test_a_chip_beyond_the_reprojected_rasters_is_an_error_that_names_both(
    tmp_path: Path, tile: Tile, codes: np.ndarray, pool: Executor
) -> None:
    with pytest.raises(InputError, match=r"chip_222_337 is not inside first\.B02\.tif"):
        read(tmp_path, tile, codes, ["chip_222_337"], pool)


@pytest.mark.parametrize(("chip", "asset"), [("chip_222_337", "reprojected_tiles"), ("chip_221_337", "cdl")])
def test_the_error_of_a_chip_outside_a_raster_says_what_to_materialize(
    tmp_path: Path, tile: Tile, codes: np.ndarray, pool: Executor, chip: str, asset: str
) -> None:
    with pytest.raises(InputError, match=f"materialize {asset}"):
        read(tmp_path, tile, codes, [chip], pool)


def test_a_code_without_a_class_is_an_error_that_names_the_cdl_and_the_chip(
    tmp_path: Path, tile: Tile, codes: np.ndarray, pool: Executor
) -> None:
    codes[224 + 10, 20] = 99
    with pytest.raises(InputError, match=r"2022_30m_cdls\.tif, chip_223_337: CDL code 99 at .*\(10, 20\)"):
        read(tmp_path, tile, codes, CHIPS, pool)


@pytest.mark.parametrize(("unknown_codes", "value"), [("other", 13), ("nodata", 0)])
def test_a_code_without_a_class_gets_the_class_of_the_recipe(
    tmp_path: Path, codes: np.ndarray, pool: Executor, unknown_codes: str, value: int
) -> None:
    codes[224 + 10, 20], codes[224 + 11, 20] = 99, 250
    path = str(write(tmp_path / "2022_30m_cdls.tif", codes, CDL_GRID, 250))
    with TileReader({}, path, unknown_codes) as reader:
        (chip,) = reader.read(["chip_223_337"], pool)
    # 250 has a class, and is the raster's nodata
    assert (chip.mask[10, 20], chip.mask[11, 20]) == (value, 0)


def spoil(path: str) -> None:
    """Flip bytes at the start of the block of the first chip."""
    with rasterio.open(path) as raster:
        offset = int(raster.get_tag_item("BLOCK_OFFSET_0_0", "TIFF", bidx=1))
    data = bytearray(Path(path).read_bytes())
    data[offset : offset + 50] = bytes(byte ^ 0xFF for byte in data[offset : offset + 50])
    Path(path).write_bytes(data)


@pytest.mark.parametrize(("position", "band"), [("first", "B02"), ("middle", "B12"), ("last", QA_BAND)])
def test_a_corrupt_block_is_an_error_that_names_the_file_and_what_to_materialize(
    tmp_path: Path, tile: Tile, codes: np.ndarray, pool: Executor, position: str, band: str
) -> None:
    bands, cdl = write_tile(tmp_path, tile), write_cdl(tmp_path, codes)
    spoil(bands[position, band])
    with (
        TileReader(local(bands), cdl) as reader,
        pytest.raises(
            InputError, match=rf"{position}\.{band}\.tif cannot be read.*materialize reprojected_tiles"
        ),
    ):
        reader.read(CHIPS, pool)


def test_a_chip_next_to_a_corrupt_block_is_read(
    tmp_path: Path, tile: Tile, codes: np.ndarray, pool: Executor
) -> None:
    bands, cdl = write_tile(tmp_path, tile), write_cdl(tmp_path, codes)
    spoil(bands["first", "B02"])
    with TileReader(local(bands), cdl) as reader:
        (chip,) = reader.read(CHIPS[1:2], pool)
    np.testing.assert_array_equal(chip.fmask[0], part(tile["first", QA_BAND], GRID, CHIPS[1]))


def test_a_missing_raster_is_an_error_that_names_it(
    tmp_path: Path, tile: Tile, codes: np.ndarray, pool: Executor
) -> None:
    bands, cdl = write_tile(tmp_path, tile), write_cdl(tmp_path, codes)
    Path(bands["last", "B11"]).unlink()
    with (
        TileReader(local(bands), cdl) as reader,
        pytest.raises(
            InputError, match=r"last\.B11\.tif cannot be read.*materialize reprojected_tiles again"
        ),
    ):
        reader.read(CHIPS, pool)


def test_a_cdl_in_another_unit_gives_the_same_mask(tmp_path: Path, codes: np.ndarray, pool: Executor) -> None:
    feet = rasterio.CRS.from_string(
        "+proj=aea +lat_0=23 +lon_0=-96 +lat_1=29.5 +lat_2=45.5 +datum=NAD83 +units=us-ft"
    )
    grid = GeoBox(CDL_GRID.shape, Affine.scale(3937 / 1200) @ CDL_GRID.affine, feet.to_wkt())
    names = ["chip_223_337", "chip_224_339"]
    with TileReader({}, write_cdl(tmp_path, codes, grid)) as reader:
        found = [chip.mask for chip in reader.read(names, pool)]
    with TileReader({}, write_cdl(tmp_path, codes)) as reader:
        np.testing.assert_array_equal(found, [chip.mask for chip in reader.read(names, pool)])


def test_a_truncated_cdl_is_an_error_that_names_it(tmp_path: Path, codes: np.ndarray) -> None:
    path = Path(write_cdl(tmp_path, codes))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    with pytest.raises(InputError, match=r"2022_30m_cdls\.tif cannot be read.*fetch it again"):
        TileReader({}, str(path))


def test_the_mask_of_the_real_cdl_has_the_classes_of_its_codes(real: Path, pool: Executor) -> None:
    path = real / "cdl" / "2021_30m_cdls.tif"
    with TileReader({}, str(path)) as reader:
        (chip,) = reader.read(["chip_202_336"], pool)
    with rasterio.open(path) as raster:
        codes = part(raster.read(1), raster_geobox(raster), "chip_202_336")
    assert len(np.unique(codes)) > 5
    np.testing.assert_array_equal(chip.mask, np.vectorize(CDL_CLASSES.get)(codes))
