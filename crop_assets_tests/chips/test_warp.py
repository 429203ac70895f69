from pathlib import Path

import numpy as np
import pyproj
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from rasterio.vrt import WarpedVRT

from crop_assets.chips.reproject import raster_geobox
from crop_assets.chips.warp import (
    bilinear,
    nearest,
    source_coordinates,
    source_pixels,
)
from crop_assets.grid import CRS, chip_blocks, chip_geobox

CHIP = "chip_223_337"


def utm_box(chip: str, epsg: int = 32614, size: int = 400) -> GeoBox:
    """A 30 m UTM grid around a chip."""
    left, bottom, right, top = chip_geobox(chip).boundingbox.bbox
    x, y = pyproj.Transformer.from_crs(CRS, epsg, always_xy=True).transform(
        (left + right) / 2, (bottom + top) / 2
    )
    corner = (round((x - size * 15) / 60) * 60, round((y + size * 15) / 60) * 60)
    return GeoBox((size, size), Affine(30, 0, corner[0], 0, -30, corner[1]), f"EPSG:{epsg}")


def write(path: Path, values: np.ndarray, box: GeoBox, nodata: float | None) -> Path:
    profile = {
        "driver": "GTiff",
        "count": 1,
        "dtype": values.dtype,
        "crs": box.crs.to_wkt(),
        "nodata": nodata,
    }
    with rasterio.open(
        path, "w", height=values.shape[0], width=values.shape[1], transform=box.affine, **profile
    ) as r:
        r.write(values, 1)
    return path


def read_at(values: np.ndarray, at) -> np.ndarray:
    window = at.window
    return values[
        window.row_off : window.row_off + window.height, window.col_off : window.col_off + window.width
    ]


def test_coordinates_are_pyprojs(rng: np.random.Generator) -> None:
    target, source = chip_geobox(CHIP), utm_box(CHIP)
    rows, cols = source_coordinates(target, source)
    for row, col in rng.integers(0, 224, (50, 2)):
        x, y = target.affine @ (col + 0.5, row + 0.5)
        x, y = pyproj.Transformer.from_crs(CRS, 32614, always_xy=True).transform(x, y)
        source_col, source_row = ~source.affine @ (x, y)
        assert rows[row, col] == pytest.approx(source_row - 0.5, abs=1e-6)
        assert cols[row, col] == pytest.approx(source_col - 0.5, abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 190),
    st.integers(0, 190),
    st.integers(1, 34),
    st.integers(1, 34),
    st.integers(0, 2**32 - 1),
)
def test_any_window_has_the_pixels_of_the_whole(
    row: int, col: int, height: int, width: int, seed: int
) -> None:
    whole, source = chip_geobox(CHIP), utm_box(CHIP)
    values = np.random.default_rng(seed).integers(0, 4000, source.shape).astype(np.int16)
    values[values < 200] = -9999
    part = whole[row : row + height, col : col + width]
    at_whole, at_part = source_pixels(whole, source), source_pixels(part, source)
    full = bilinear(read_at(values, at_whole), at_whole, -9999)
    window = bilinear(read_at(values, at_part), at_part, -9999)
    np.testing.assert_array_equal(window, full[row : row + height, col : col + width])


@pytest.mark.parametrize("epsg", [32613, 32614, 32615])
def test_bilinear_and_nearest_agree_with_gdals_exact_warp(tmp_path: Path, rng, epsg: int) -> None:
    target, source = chip_geobox(CHIP), utm_box(CHIP, epsg)
    smooth = np.add.outer(np.arange(400) * 7, np.arange(400) * 3)
    values = (smooth + rng.integers(0, 500, source.shape)).astype(np.int16)
    path = write(tmp_path / "band.tif", values, source, None)
    exact = {"XSCALE": "1", "YSCALE": "1"}
    options = {
        "crs": CRS,
        "transform": target.affine,
        "width": 224,
        "height": 224,
        "tolerance": 1e-6,
        **exact,
    }
    at = source_pixels(target, source)
    with rasterio.open(path) as raster:
        with WarpedVRT(raster, resampling=rasterio.enums.Resampling.bilinear, **options) as vrt:
            gdal = vrt.read(1)
        with WarpedVRT(raster, resampling=rasterio.enums.Resampling.nearest, **options) as vrt:
            gdal_nearest = vrt.read(1)
    ours = bilinear(read_at(values, at), at, -9999)
    difference = np.abs(ours.astype(int) - gdal)
    assert difference.max() <= 1
    assert (difference == 0).mean() > 0.99
    fmask = values.astype(np.uint8)
    near = nearest(read_at(fmask, at), at)
    assert (near == gdal_nearest.astype(np.uint8)).mean() > 0.9999


def test_fill_never_bleeds_into_data(rng) -> None:
    target, source = chip_geobox(CHIP), utm_box(CHIP)
    values = rng.integers(1000, 1100, source.shape).astype(np.int16)
    values[rng.random(source.shape) < 0.3] = -1000
    at = source_pixels(target, source)
    ours = bilinear(read_at(values, at), at, -1000)
    assert set(np.unique(ours[ours < 1000])) == {-9999}
    assert ours.max() < 1100
    near = nearest((read_at(values, at) == -1000).astype(np.uint8), at)
    np.testing.assert_array_equal(ours == -9999, near == 1)


def test_pixels_outside_of_the_scene_are_nodata() -> None:
    source = utm_box(CHIP, size=60)
    values = np.full(source.shape, 500, np.int16)
    at = source_pixels(chip_geobox(CHIP), source)
    ours = bilinear(read_at(values, at), at, -9999)
    assert set(np.unique(ours)) == {-9999, 500}
    assert source_pixels(chip_geobox("chip_100_100"), source) is None


def test_the_real_v15_scene_goes_through_with_its_own_fill(real: Path, tmp_path: Path) -> None:
    """The scene lies in West Africa; a chip-like grid in its own zone stands for the CDL's."""
    folder = real / "hls/HLS.S30.T29QND.2019182.v1.5"
    with rasterio.open(folder / "HLS.S30.T29QND.2019182.v1.5.B04.tif") as raster:
        values, source = raster.read(1), raster_geobox(raster)
        assert raster.nodata == -1000
    rows, cols = np.nonzero(values != -1000)
    middle = len(rows) // 2
    window = source[rows[middle] - 100 : rows[middle] + 124, cols[middle] - 100 : cols[middle] + 124]
    target = GeoBox(window.shape, window.affine @ Affine.translation(0.3, 0.2), window.crs)
    at = source_pixels(target, source)
    ours = bilinear(read_at(values, at), at, -1000)
    assert -1000 not in np.unique(ours)
    assert (ours == -9999).any()
    assert (ours != -9999).any()


def test_chip_blocks_lie_on_the_national_grid() -> None:
    box = chip_blocks(range(223, 225), range(337, 340))
    assert box.shape == (448, 672)
    assert box.boundingbox.bbox == (
        -2356095 + 337 * 6720,
        3172605 - 225 * 6720,
        -2356095 + 340 * 6720,
        3172605 - 223 * 6720,
    )


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)
