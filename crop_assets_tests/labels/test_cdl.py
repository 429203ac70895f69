import re
from concurrent.futures import Executor
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st

from crop_assets.chip_grid import GRID_COLS, GRID_ROWS, ORIGIN_X, ORIGIN_Y, chip_geobox, chip_id
from crop_assets.classes import CDL_CLASSES
from crop_assets.errors import InputError
from crop_assets.labels import cdl as cdl_module
from crop_assets.labels.cdl import CdlRaster, check_cdl, check_codes, chip_histograms
from crop_assets_tests.labels.conftest import WriteCdl

GRASS = np.full((30, 40), 176, np.uint8)


def test_real_clip_is_a_cdl_with_sixteen_complete_chips(real: Path) -> None:
    cdl = check_cdl(real / "cdl" / "2021_30m_cdls.tif")
    assert (cdl.width, cdl.height, cdl.chip_rows, cdl.chip_cols) == (
        *(1000, 1000),
        *(range(201, 205), range(335, 339)),
    )


def test_histograms_of_the_real_clip_equal_a_naive_count(real: Path, pool: Executor) -> None:
    path = real / "cdl" / "2021_30m_cdls.tif"
    seen: list[int] = []
    histograms = chip_histograms(check_cdl(path), pool, progress=seen.append)
    all_codes = np.zeros(256, int)
    with rasterio.open(path) as raster:
        codes = raster.read(1)
        for i, (row, col) in enumerate(zip(histograms.rows, histograms.cols, strict=True)):
            corner = chip_geobox(chip_id(row, col)).affine
            left, top = int(corner.c + 106095) // 30, int(1822605 - corner.f) // 30
            chip = codes[top : top + 224, left : left + 224]
            expected = np.zeros(14, int)
            for code, times in zip(*np.unique(chip, return_counts=True), strict=True):
                expected[CDL_CLASSES[int(code)]] += times
                all_codes[code] += times
            np.testing.assert_array_equal(histograms.counts[i], expected)
    assert len(histograms.rows) == 16
    assert (histograms.counts.sum(axis=1) == 224 * 224).all()
    np.testing.assert_array_equal(histograms.codes, all_codes)
    assert seen[-1] == 4


@pytest.mark.parametrize(("strips", "cols"), [(1, 1), (2, 2), (8, 128)])
def test_histograms_do_not_depend_on_how_the_raster_is_cut(
    write_cdl: WriteCdl, monkeypatch: pytest.MonkeyPatch, strips: int, cols: int, pool: Executor
) -> None:
    monkeypatch.setattr(cdl_module, "STRIPS_PER_TASK", strips)
    monkeypatch.setattr(cdl_module, "COLS_PER_READ", cols)
    codes = np.random.default_rng(7).choice(np.array([1, 5, 111, 176], np.uint8), (224 * 3 + 5, 224 * 3 + 9))
    path = write_cdl(codes, col=224 * 7 - 6, row=224 * 4 - 2, tiled=True, blockxsize=256, blockysize=256)
    histograms = chip_histograms(check_cdl(path), pool)
    assert histograms.rows.tolist() == [4, 4, 4, 5, 5, 5, 6, 6, 6]
    assert histograms.cols.tolist() == [7, 8, 9, 7, 8, 9, 7, 8, 9]
    chips = codes[2:674, 6:678].reshape(3, 224, 3, 224).swapaxes(1, 2).reshape(9, -1)
    for code, value in ((1, 3), (5, 4), (111, 7), (176, 1)):
        np.testing.assert_array_equal(histograms.counts[:, value], (chips == code).sum(axis=1))


@given(
    *(st.integers(-3000, 200_000), st.integers(1, 3000)),
    *(st.integers(-3000, 110_000), st.integers(1, 3000)),
)
def test_chip_rows_and_cols_are_completely_inside(left: int, width: int, top: int, height: int) -> None:
    corner = Affine(30, 0, ORIGIN_X + 30 * left, 0, -30, ORIGIN_Y - 30 * top)
    cdl = CdlRaster("", corner, width, height)
    rows, cols = range(GRID_ROWS), range(GRID_COLS)
    assert list(cdl.chip_rows) == [r for r in rows if top <= 224 * r and 224 * (r + 1) <= top + height]
    assert list(cdl.chip_cols) == [c for c in cols if left <= 224 * c and 224 * (c + 1) <= left + width]


def test_raster_smaller_than_a_chip_has_no_histograms(write_cdl: WriteCdl, pool: Executor) -> None:
    histograms = chip_histograms(check_cdl(write_cdl(GRASS)), pool)
    assert (histograms.rows.shape, histograms.counts.shape) == ((0,), (0, 14))


def test_equal_crs_without_a_code_is_accepted(write_cdl: WriteCdl) -> None:
    nameless = (
        'PROJCS["unnamed",GEOGCS["unknown",DATUM["unknown",SPHEROID["GRS 1980",6378137,298.257222101]],'
        'PRIMEM["Greenwich",0],UNIT["degree",0.0174532925199433]],PROJECTION["Albers_Conic_Equal_Area"],'
        'PARAMETER["latitude_of_center",23],PARAMETER["longitude_of_center",-96],'
        'PARAMETER["standard_parallel_1",45.5],PARAMETER["standard_parallel_2",29.5],'
        'PARAMETER["false_easting",0],PARAMETER["false_northing",0],UNIT["metre",1]]'
    )
    path = write_cdl(GRASS, crs=rasterio.CRS.from_wkt(nameless))
    with rasterio.open(path) as raster:
        assert raster.crs.to_epsg() is None
    assert check_cdl(path).width == 40


NATIONAL = Affine(30, 0, ORIGIN_X, 0, -30, ORIGIN_Y)


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        ("EPSG:5070", Affine(30.00000000000029, 0, ORIGIN_X, 0, -29.999999999999, ORIGIN_Y)),
        ("EPSG:5070", Affine(30, 1e-9, ORIGIN_X + 1.5, -1e-9, -30, ORIGIN_Y - 2.5)),
        ("ESRI:102039", NATIONAL),
        ("+proj=aea +lat_0=23 +lon_0=-96 +lat_1=45.5 +lat_2=29.5 +ellps=WGS84", NATIONAL),
        (
            "+proj=aea +lat_0=23 +lon_0=-96 +lat_1=29.5 +lat_2=45.5 +x_0=5e6 +datum=NAD83",
            Affine.translation(5e6, 0) @ NATIONAL,
        ),
    ],
)
def test_an_equivalent_description_of_the_grid_is_accepted(
    write_cdl: WriteCdl, crs: str, transform: Affine
) -> None:
    path = write_cdl(GRASS, crs=crs, transform=transform @ Affine.translation(224 * 300 - 3, 224 * 200 - 5))
    cdl = check_cdl(path)
    assert cdl.transform == NATIONAL @ Affine.translation(224 * 300 - 3, 224 * 200 - 5)


@pytest.mark.parametrize(
    "crs",
    [
        "EPSG:32614",
        "EPSG:4326",
        "ESRI:102008",
        "+proj=aea +lat_0=23 +lon_0=-96 +lat_1=29.5 +lat_2=45 +ellps=GRS80 +units=m",
        "+proj=aea +lat_0=23 +lon_0=-96 +lat_1=29.5 +lat_2=45.5 +ellps=clrk66 +units=m",
    ],
)
def test_other_crs_is_refused(write_cdl: WriteCdl, crs: str) -> None:
    corner = Affine(1e-4, 0, -99, 0, -1e-4, 38) if crs == "EPSG:4326" else Affine(30, 0, 6e5, 0, -30, 4e6)
    path = write_cdl(GRASS, crs=crs, transform=corner)
    with pytest.raises(InputError, match="not EPSG:5070; run: gdalwarp -t_srs EPSG:5070 -r near -tr 30 30"):
        check_cdl(path)


def test_advised_gdalwarp_puts_the_raster_on_the_national_grid(write_cdl: WriteCdl) -> None:
    path = write_cdl(GRASS, col=0.5)
    with pytest.raises(InputError, match="not a whole number of pixels") as error:
        check_cdl(path)
    extent = re.search(r"-te (\S+) (\S+) (\S+) (\S+)", str(error.value))
    assert extent
    left, bottom, right, top = map(int, extent.groups())
    assert ((left - ORIGIN_X) % 30, (ORIGIN_Y - top) % 30) == (0, 0)
    assert (right - left, top - bottom) == (30 * 41, 30 * 30)


@pytest.mark.parametrize(
    ("codes", "profile", "message"),
    [
        (GRASS.astype(np.int16), {}, r"1 band\(s\) of int16; a CDL raster has one band of uint8"),
        (np.stack([GRASS, GRASS]), {}, r"2 band\(s\) of uint8"),
        (
            GRASS,
            {"crs": 'LOCAL_CS["NAD83 / Conus Albers",UNIT["metre",1]]'},
            r"is in 'NAD83 / Conus Albers' \(Engineering CRS\), .*; if it is EPSG:5070, run: gdal_edit.py -a_srs",
        ),
        (GRASS, {"crs": None}, "has no CRS; if it is EPSG:5070, run: gdal_edit.py -a_srs EPSG:5070"),
        (GRASS, {"transform": Affine(10, 0, ORIGIN_X, 0, -10, ORIGIN_Y)}, "pixels of 10 x 10 m"),
        (GRASS, {"transform": Affine(30, 1, ORIGIN_X, 1, -30, ORIGIN_Y)}, "north up"),
        (
            GRASS,
            {"transform": Affine(30, 0, ORIGIN_X, 0, 30, ORIGIN_Y)},
            "pixels of 30 x -30 m, not .* north up",
        ),
        (GRASS, {"transform": Affine(30.2, 0, ORIGIN_X, 0, -30.2, ORIGIN_Y)}, r"pixels of 30\.2 x 30\.2 m"),
        (
            GRASS,
            {"transform": Affine(30, 0, ORIGIN_X + 4, 0, -30, ORIGIN_Y)},
            "corner .* is not a whole number",
        ),
    ],
)
def test_a_raster_that_is_not_a_cdl_is_refused(
    write_cdl: WriteCdl, codes: np.ndarray, profile: dict[str, object], message: str
) -> None:
    path = write_cdl(codes, **profile)
    with pytest.raises(InputError, match=message) as error:
        check_cdl(path)
    assert str(path) in str(error.value)


def test_missing_zipped_and_foreign_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.tif cannot be read: .*No such file"):
        check_cdl(tmp_path / "nowhere.tif")
    with pytest.raises(InputError, match="is an archive; unpack it"):
        check_cdl("2022_30m_cdls.zip")
    (tmp_path / "page.tif").write_text("<html>not found</html>")
    with pytest.raises(InputError, match=r"page\.tif cannot be read"):
        check_cdl(tmp_path / "page.tif")


def test_raster_cut_short_is_refused(write_cdl: WriteCdl) -> None:
    codes = np.random.default_rng(3).choice(np.array([1, 5], np.uint8), (700, 700))
    path = write_cdl(codes)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(InputError, match=r"2022_30m_cdls\.tif cannot be read: .*fetch it again"):
        check_cdl(path)


def test_raster_damaged_in_the_middle_is_refused_by_the_scan(write_cdl: WriteCdl, pool: Executor) -> None:
    codes = np.random.default_rng(3).choice(np.array([1, 5], np.uint8), (700, 700))
    path = write_cdl(codes)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 3000] = bytes(3000)
    path.write_bytes(content)
    cdl = check_cdl(path)
    with pytest.raises(InputError, match=r"2022_30m_cdls\.tif cannot be read: .*fetch it again"):
        chip_histograms(cdl, pool)


@pytest.fixture
def with_unknown_codes(write_cdl: WriteCdl) -> Path:
    """Two by two chips of corn, in them four pixels of 40, two of 93, and three of the tagged 255."""
    codes = np.full((448, 448), 1, np.uint8)
    codes[230, 5:8] = codes[400, 400] = 40
    codes[10, 300:302] = 93
    codes[100, 100:103] = 255
    return write_cdl(codes, col=224 * 300, row=224 * 100, nodata=255)


def test_unknown_codes_are_reported_with_number_and_places(with_unknown_codes: Path, pool: Executor) -> None:
    cdl = check_cdl(with_unknown_codes)
    # two degrees west of the central meridian of EPSG:5070 and more; of 255, which is tagged, no word
    told = (
        "2022_30m_cdls.tif has codes without a class: 4 pixels of code 40, 2 pixels of code 93; such as "
        f"93 at ({ORIGIN_X + 30 * (67200 + 300) + 15}, {ORIGIN_Y - 30 * (22400 + 10) - 15}), "
    )
    for ask in (lambda: chip_histograms(cdl, pool), lambda: check_codes(cdl, pool)):
        with pytest.raises(InputError, match=re.escape(told)) as error:
            ask()
        assert re.search(r"\d+\.\d{5} N \d+\.\d{5} W; .*unknown_codes in the recipe", str(error.value))


@pytest.mark.parametrize(("unknown_codes", "value"), [("other", 13), ("nodata", 0)])
def test_unknown_codes_are_counted_as_the_recipe_says(
    with_unknown_codes: Path, pool: Executor, unknown_codes: str, value: int
) -> None:
    cdl = check_cdl(with_unknown_codes, unknown_codes)
    check_codes(cdl, pool)
    found = chip_histograms(cdl, pool)
    assert found.unknown == "4 pixels of code 40, 2 pixels of code 93"
    expected = np.zeros((4, 14), int)
    expected[:, value] = [0, 2, 3, 1]
    expected[0, 0] += 3
    expected[:, 3] = 224 * 224 - expected.sum(axis=1)
    np.testing.assert_array_equal(found.counts, expected)
