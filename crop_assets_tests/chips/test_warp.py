import contextlib
import math
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT

from crop_assets.chip_grid import CRS, chip_blocks, chip_geobox, raster_geobox
from crop_assets.chips.warp import SourcePixels, bilinear, nearest, source_coordinates, source_pixels

CHIP = "chip_223_337"
TIE = 1e-6
"""Tolerance between our coordinates or means and others'; this close to a half, either rounding is right."""
SEEDS = st.integers(0, 2**32 - 1)

UTM_WITHOUT_AUTHORITY = (
    'PROJCS["UTM Zone {zone}, Northern Hemisphere",GEOGCS["Unknown datum based upon the WGS 84 ellipsoid",'
    'DATUM["Not_specified_based_on_WGS_84_spheroid",SPHEROID["WGS 84",6378137,298.257223563]],'
    'PRIMEM["Greenwich",0],UNIT["degree",0.0174532925199433]],PROJECTION["Transverse_Mercator"],'
    'PARAMETER["latitude_of_origin",0],PARAMETER["central_meridian",{meridian}],'
    'PARAMETER["scale_factor",0.9996],PARAMETER["false_easting",500000],PARAMETER["false_northing",0],'
    'UNIT["metre",1],AXIS["Easting",EAST],AXIS["Northing",NORTH]]'
)


def without_authority(zone: int) -> str:
    return UTM_WITHOUT_AUTHORITY.format(zone=zone, meridian=6 * zone - 183)


def block(row: int, col: int) -> GeoBox:
    return chip_blocks(range(row, row + 1), range(col, col + 1))


def block_at(lon: float, lat: float) -> GeoBox:
    x, y = pyproj.Transformer.from_crs(4326, CRS, always_xy=True).transform(lon, lat)
    return block(math.floor((3172605 - y) / 6720), math.floor((x + 2356095) / 6720))


def around(
    target: GeoBox, crs: int | str, size: int = 400, shift: tuple[float, float] = (0, 0), snap: int = 60
) -> GeoBox:
    """A 30 m grid of `size` pixels about the middle of `target`, moved by `shift` metres off the multiples of
    `snap`.
    """
    left, bottom, right, top = target.boundingbox.bbox
    x, y = pyproj.Transformer.from_crs(CRS, crs, always_xy=True).transform(
        (left + right) / 2, (bottom + top) / 2
    )
    corner = (
        round((x - size * 15) / snap) * snap + shift[0],
        round((y + size * 15) / snap) * snap + shift[1],
    )
    return GeoBox(
        (size, size),
        Affine(30, 0, corner[0], 0, -30, corner[1]),
        f"EPSG:{crs}" if isinstance(crs, int) else crs,
    )


def utm_box(chip: str, epsg: int = 32614, size: int = 400) -> GeoBox:
    """A 30 m UTM grid around a chip."""
    return around(chip_geobox(chip), epsg, size)


def write(path: Path, values: np.ndarray, box: GeoBox, nodata: float | None, **profile: Any) -> Path:
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=1,
        dtype=values.dtype,
        crs=box.crs.to_wkt() if box.crs else None,
        nodata=nodata,
        height=values.shape[0],
        width=values.shape[1],
        transform=box.affine,
        **profile,
    ) as r:
        r.write(values, 1)
    return path


@contextlib.contextmanager
def room_for(size: int) -> Iterator[None]:
    """A disk that is full as soon as a file has `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def read_at(values: np.ndarray, at: SourcePixels | None) -> np.ndarray:
    assert at is not None
    window = at.window
    return values[
        window.row_off : window.row_off + window.height, window.col_off : window.col_off + window.width
    ]


def pyproj_coordinates(target: GeoBox, source: GeoBox) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    cols, rows = np.meshgrid(np.arange(target.shape[1]) + 0.5, np.arange(target.shape[0]) + 0.5)
    x, y = target.affine @ (cols, rows)
    transform = pyproj.Transformer.from_crs(CRS, source.crs.to_wkt(), always_xy=True).transform
    source_cols, source_rows = ~source.affine @ transform(x, y)
    return source_rows - 0.5, source_cols - 0.5


def reference(values: np.ndarray, row: float, col: float, fill: float) -> float | None:
    """The mean at one coordinate by the literal rule, unrounded; None if it is fill."""

    def pixel(r: int, c: int) -> float | None:
        if not (0 <= r < values.shape[0] and 0 <= c < values.shape[1]) or values[r, c] == fill:
            return None
        return float(values[r, c])

    if pixel(math.floor(row + 0.5), math.floor(col + 0.5)) is None:
        return None
    total = weights = 0.0
    for r in (math.floor(row), math.floor(row) + 1):
        for c in (math.floor(col), math.floor(col) + 1):
            value = pixel(r, c)
            if value is not None:
                weight = (1 - abs(row - r)) * (1 - abs(col - c))
                total += weight * value
                weights += weight
    return total / weights


def near_a_half(value: float | None) -> bool:
    return value is not None and abs(value % 1 - 0.5) < TIE


def is_tie(values: np.ndarray, row: float, col: float, fill: float) -> bool:
    return near_a_half(row) or near_a_half(col) or near_a_half(reference(values, row, col, fill))


def assert_equal_but_for_ties(
    ours: np.ndarray, theirs: np.ndarray, values: np.ndarray, rows: np.ndarray, cols: np.ndarray, fill: float
) -> None:
    for at in map(tuple, np.argwhere(ours != theirs)):
        assert is_tie(values, rows[at], cols[at], fill), (at, ours[at], theirs[at])


def four_are_data(values: np.ndarray, rows: np.ndarray, cols: np.ndarray, fill: float) -> np.ndarray:
    data = np.zeros((values.shape[0] + 2, values.shape[1] + 2), bool)
    data[1:-1, 1:-1] = values != fill
    row = np.floor(rows).clip(-1, values.shape[0] - 1).astype(int) + 1
    col = np.floor(cols).clip(-1, values.shape[1] - 1).astype(int) + 1
    within = (rows >= 0) & (rows < values.shape[0] - 1) & (cols >= 0) & (cols < values.shape[1] - 1)
    return within & data[row, col] & data[row + 1, col] & data[row, col + 1] & data[row + 1, col + 1]


def gdal_exact(path: Path, target: GeoBox, resampling: Resampling, nodata: float | None = None) -> np.ndarray:
    """GDAL's own warp without its approximations."""
    with (
        rasterio.open(path) as raster,
        WarpedVRT(
            raster,
            crs=CRS,
            transform=target.affine,
            width=target.shape[1],
            height=target.shape[0],
            resampling=resampling,
            tolerance=1e-6,
            nodata=nodata,
            XSCALE="1",
            YSCALE="1",
        ) as vrt,
    ):
        return vrt.read(1)


Pattern = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]


def half_plane(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    angle = rng.uniform(0, 2 * np.pi)
    rows, cols = np.indices(shape)
    side: np.ndarray = (rows - shape[0] / 2) * np.sin(angle) + (cols - shape[1] / 2) * np.cos(angle) > 0
    return side


FILL_PATTERNS: dict[str, Pattern] = {
    "no fill": lambda rng, shape: np.zeros(shape, bool),
    "holes": lambda rng, shape: rng.random(shape) < 0.3,
    "half a plane": half_plane,
    "single fill pixels": lambda rng, shape: rng.random(shape) < 0.01,
    "single data pixels": lambda rng, shape: rng.random(shape) > 0.01,
    "all fill": lambda rng, shape: np.ones(shape, bool),
}


def random_values(seed: int, shape: tuple[int, int], pattern: str, fill: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.integers(-500, 12000, shape).astype(np.int16)
    values[FILL_PATTERNS[pattern](rng, shape)] = fill
    return values


@st.composite
def northern_pairs(draw: st.DrawFn) -> tuple[GeoBox, int]:
    """A chip of the national grid, and its UTM zone or a neighbouring one."""
    target = block(draw(st.integers(0, 430)), draw(st.integers(0, 686)))
    left, bottom, _, _ = target.boundingbox.bbox
    lon, _ = pyproj.Transformer.from_crs(CRS, 4326, always_xy=True).transform(left, bottom)
    zone = math.floor((lon + 180) / 6) + 1 + draw(st.sampled_from([0, 0, -1, 1]))
    return target, min(19, max(10, zone))


shifts = st.tuples(st.floats(-3000, 3000), st.floats(-3000, 3000))


@settings(max_examples=20)
@given(northern_pairs(), shifts, st.integers(1, 300))
def test_coordinates_are_pyprojs_in_every_zone(
    pair: tuple[GeoBox, int], shift: tuple[float, float], size: int
) -> None:
    target, zone = pair
    source = around(target, 32600 + zone, size, shift)
    np.testing.assert_allclose(
        source_coordinates(target, source), pyproj_coordinates(target, source), rtol=0, atol=1e-6
    )


@settings(max_examples=20)
@given(
    st.integers(10, 19),
    st.floats(-3, 3),
    st.floats(-35, -1),
    st.sampled_from([32600, 32700]),
    st.integers(1, 300),
)
def test_coordinates_are_pyprojs_in_the_south(
    zone: int, off_meridian: float, lat: float, numbering: int, size: int
) -> None:
    """HLS gives southern tiles a northern zone and negative northings; others give them a southern zone."""
    target = block_at(6 * zone - 183 + off_meridian, lat)
    source = around(target, numbering + zone, size)
    assert (source.boundingbox.top < 0) == (numbering == 32600) or source.boundingbox.top < 30 * size
    np.testing.assert_allclose(
        source_coordinates(target, source), pyproj_coordinates(target, source), rtol=0, atol=1e-6
    )


@settings(max_examples=10)
@given(
    northern_pairs(),
    st.sampled_from([without_authority, "+proj=utm +zone={} +ellps=WGS84 +units=m +no_defs".format]),
)
def test_a_crs_without_an_epsg_code_has_the_coordinates_of_its_twin(
    pair: tuple[GeoBox, int], definition: Callable[[int], str]
) -> None:
    target, zone = pair
    source, twin = around(target, definition(zone)), around(target, 32600 + zone)
    ours = source_coordinates(target, source)
    np.testing.assert_allclose(ours, pyproj_coordinates(target, source), rtol=0, atol=1e-6)
    np.testing.assert_allclose(
        ours[0] - (twin.affine.f - source.affine.f) / -30,
        source_coordinates(target, twin)[0],
        rtol=0,
        atol=1e-6,
    )


def test_coordinates_of_a_complete_tile_are_pyprojs() -> None:
    target = chip_blocks(range(223, 240), range(337, 354))
    source = around(target, 32614, 3660)
    ours = source_coordinates(target, source)
    step = 77
    thinned = GeoBox(
        tuple(math.ceil(size / step) for size in target.shape),
        target.affine @ Affine.translation(0.5, 0.5) @ Affine.scale(step) @ Affine.translation(-0.5, -0.5),
        CRS,
    )
    theirs = pyproj_coordinates(thinned, source)
    np.testing.assert_allclose([axis[::step, ::step] for axis in ours], theirs, rtol=0, atol=1e-6)


@settings(max_examples=30)
@given(
    st.sampled_from([32613, 32614, 32615]),
    st.integers(0, 190),
    st.integers(0, 190),
    st.integers(1, 34),
    st.integers(1, 34),
    st.sampled_from(list(FILL_PATTERNS)),
    st.tuples(st.integers(0, 260), st.integers(0, 260), st.integers(60, 400), st.integers(60, 400)),
    SEEDS,
)
def test_any_window_has_the_pixels_of_the_complete_grid(
    epsg: int,
    row: int,
    col: int,
    height: int,
    width: int,
    pattern: str,
    crop: tuple[int, int, int, int],
    seed: int,
) -> None:
    """Holds for any fill, and for a source that ends anywhere in the chip."""
    whole = chip_geobox(CHIP)
    top, left, rows, cols = crop
    source = utm_box(CHIP, epsg)[top : top + rows, left : left + cols]
    values = random_values(seed, source.shape, pattern, -9999)
    part = whole[row : row + height, col : col + width]
    at_whole, at_part = source_pixels(whole, source), source_pixels(part, source)

    def pixels(at: SourcePixels | None, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        if at is None:
            return np.full(shape, -9999), np.full(shape, 255)
        return bilinear(read_at(values, at), at, -9999), nearest(read_at(values.astype(np.uint8), at), at)

    inside = np.s_[row : row + height, col : col + width]
    at_rows, at_cols = pyproj_coordinates(part, source)
    for ours, of_whole in zip(pixels(at_part, part.shape), pixels(at_whole, whole.shape), strict=True):
        assert_equal_but_for_ties(ours, of_whole[inside], values, at_rows, at_cols, -9999)


@settings(max_examples=25)
@given(
    st.integers(0, 200),
    st.integers(0, 200),
    st.sampled_from(list(FILL_PATTERNS)),
    st.sampled_from([-9999, -1000]),
    st.tuples(st.integers(0, 200), st.integers(0, 200)),
    SEEDS,
)
def test_a_pixel_is_the_mean_of_its_neighbours_with_data_if_the_nearest_has_data(
    row: int, col: int, pattern: str, fill: int, crop: tuple[int, int], seed: int
) -> None:
    target = chip_geobox(CHIP)[row : row + 20, col : col + 20]
    source = utm_box(CHIP)[crop[0] : crop[0] + 200, crop[1] : crop[1] + 200]
    values = random_values(seed, source.shape, pattern, fill)
    rows, cols = pyproj_coordinates(target, source)
    expected = np.full(target.shape, -9999)
    for at in np.ndindex(*target.shape):
        mean = reference(values, rows[at], cols[at], fill)
        if mean is not None:
            expected[at] = math.floor(mean + 0.5)
    at = source_pixels(target, source)
    if at is None:
        assert (expected == -9999).all()
        return
    ours = bilinear(read_at(values, at), at, fill)
    assert ours.dtype == np.int16
    assert_equal_but_for_ties(ours, expected, values, rows, cols, fill)


@pytest.mark.parametrize("side", range(4))
@pytest.mark.parametrize("beyond", [-1, 0, 1, 2])
def test_a_source_may_end_at_the_last_pixel_of_a_chip(
    rng: np.random.Generator, side: int, beyond: int
) -> None:
    target, source = chip_geobox(CHIP)[:20, :20], utm_box(CHIP)
    rows, cols = pyproj_coordinates(target, source)
    top, left = math.floor(rows.min()), math.floor(cols.min())
    bottom, right = math.floor(rows.max()) + 1, math.floor(cols.max()) + 1
    ends = [
        np.s_[: bottom + beyond, :],
        np.s_[top - beyond :, :],
        np.s_[:, : right + beyond],
        np.s_[:, left - beyond :],
    ]
    source = source[ends[side]]
    values = rng.integers(0, 12000, source.shape).astype(np.int16)
    rows, cols = pyproj_coordinates(target, source)
    means = [reference(values, row, col, -9999) for row, col in zip(rows.flat, cols.flat, strict=True)]
    expected = np.array([-9999 if mean is None else math.floor(mean + 0.5) for mean in means])
    at = source_pixels(target, source)
    ours = bilinear(read_at(values, at), at, -9999)
    assert_equal_but_for_ties(ours, expected.reshape(target.shape), values, rows, cols, -9999)


def test_fill_next_to_four_neighbours_with_data_changes_nothing(rng: np.random.Generator) -> None:
    target, source = chip_geobox(CHIP), utm_box(CHIP)
    values = rng.integers(0, 4000, source.shape).astype(np.int16)
    with_holes = np.where(rng.random(source.shape) < 0.05, np.int16(-9999), values)
    at = source_pixels(target, source)
    plain, ours = (bilinear(read_at(v, at), at, -9999) for v in (values, with_holes))
    four = four_are_data(with_holes, *pyproj_coordinates(target, source), fill=-9999)
    assert 0.7 < four.mean() < 0.9
    np.testing.assert_array_equal(ours[four], plain[four])
    assert (ours[~four] != plain[~four]).any()


@settings(max_examples=10)
@given(st.integers(0, 200), st.integers(0, 200), SEEDS)
def test_the_nearest_pixel_is_the_one_that_contains_the_coordinate(row: int, col: int, seed: int) -> None:
    target, source = chip_geobox(CHIP)[row:, col:], utm_box(CHIP, size=150)
    values = np.random.default_rng(seed).integers(0, 255, source.shape).astype(np.uint8)
    rows, cols = pyproj_coordinates(target, source)
    at_row, at_col = np.floor(rows + 0.5).astype(int), np.floor(cols + 0.5).astype(int)
    inside = (at_row >= 0) & (at_row < 150) & (at_col >= 0) & (at_col < 150)
    expected = np.where(inside, values[at_row.clip(0, 149), at_col.clip(0, 149)], 255)
    at = source_pixels(target, source)
    ours = np.full(target.shape, 255) if at is None else nearest(read_at(values, at), at)
    assert_equal_but_for_ties(ours, expected, values, rows, cols, -1)


@pytest.mark.parametrize("epsg", [32613, 32614, 32615])
def test_bilinear_and_nearest_agree_with_gdals_exact_warp(
    tmp_path: Path, rng: np.random.Generator, epsg: int
) -> None:
    target, source = chip_geobox(CHIP), utm_box(CHIP, epsg)
    smooth = np.add.outer(np.arange(400) * 7, np.arange(400) * 3)
    values = (smooth + rng.integers(0, 500, source.shape)).astype(np.int16)
    path = write(tmp_path / "band.tif", values, source, None)
    at = source_pixels(target, source)
    difference = np.abs(
        bilinear(read_at(values, at), at, -9999).astype(int) - gdal_exact(path, target, Resampling.bilinear)
    )
    assert difference.max() <= 1
    assert (difference == 0).mean() > 0.99
    fmask = values.astype(np.uint8)
    theirs = gdal_exact(write(tmp_path / "f.tif", fmask, source, 255), target, Resampling.nearest, 255)
    rows, cols = pyproj_coordinates(target, source)
    assert_equal_but_for_ties(nearest(read_at(fmask, at), at), theirs, fmask, rows, cols, 255)


def test_with_fill_agrees_with_gdals_exact_warp_wherever_all_four_neighbours_have_data(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    target, source = chip_geobox(CHIP), utm_box(CHIP, size=150)
    values = random_values(3, source.shape, "holes", -1000)
    theirs = gdal_exact(
        write(tmp_path / "band.tif", values, source, -1000), target, Resampling.bilinear, -1000
    )
    at = source_pixels(target, source)
    ours = bilinear(read_at(values, at), at, -1000)
    four = four_are_data(values, *pyproj_coordinates(target, source), fill=-1000)
    assert four.sum() > 1000
    assert np.abs(ours[four].astype(int) - theirs[four]).max() <= 1


def test_fill_never_bleeds_into_data(rng: np.random.Generator) -> None:
    target, source = chip_geobox(CHIP), utm_box(CHIP)
    values = rng.integers(1000, 1100, source.shape).astype(np.int16)
    values[rng.random(source.shape) < 0.3] = -1000
    at = source_pixels(target, source)
    ours = bilinear(read_at(values, at), at, -1000)
    assert set(np.unique(ours[ours < 1000])) == {-9999}
    assert ours.max() < 1100
    near = nearest((read_at(values, at) == -1000).astype(np.uint8), at)
    np.testing.assert_array_equal(ours == -9999, near == 1)


@pytest.mark.parametrize("value", [-32768, -1, 0, 16000, 32767])
def test_a_constant_stays_what_it_is(value: int) -> None:
    source = utm_box(CHIP, size=100)
    at = source_pixels(chip_geobox(CHIP), source)
    ours = bilinear(read_at(np.full(source.shape, value, np.int16), at), at, -9999)
    assert set(np.unique(ours)) == {value, -9999}


def test_pixels_outside_the_scene_are_nodata() -> None:
    source = utm_box(CHIP, size=60)
    values = np.full(source.shape, 500, np.int16)
    at = source_pixels(chip_geobox(CHIP), source)
    ours = bilinear(read_at(values, at), at, -9999)
    assert set(np.unique(ours)) == {-9999, 500}


@pytest.mark.parametrize(
    ("target", "epsg"),
    [
        (block(100, 100), 32614),
        (block(223, 340), 32614),
        (block(-106, 1538), 32614),
        (block(-400, 337), 32660),
    ],
)
def test_a_chip_outside_the_scene_or_on_the_far_side_of_the_earth_has_no_source_pixels(
    target: GeoBox, epsg: int
) -> None:
    source = utm_box(CHIP)
    assert source_pixels(target, GeoBox(source.shape, source.affine, f"EPSG:{epsg}")) is None


def test_the_real_v15_scene_is_warped_with_its_own_fill(real: Path) -> None:
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


def test_chip_blocks_are_on_the_national_grid() -> None:
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
