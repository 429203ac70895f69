import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling

from crop_assets.chip_grid import (
    chip_geobox,
    chip_id,
    chip_position,
    chip_window,
    positions_in,
    raster_geobox,
)
from crop_assets.chips import reproject
from crop_assets.chips.rasters import BlockReader
from crop_assets.chips.reproject import Reprojection, ReprojectionJob, fill_value
from crop_assets.chips.warp import bilinear, nearest, source_pixels
from crop_assets.errors import InputError
from crop_assets_tests.chips.test_warp import (
    CHIP,
    assert_equal_but_for_ties,
    block,
    four_are_data,
    gdal_exact,
    pyproj_coordinates,
    read_at,
    room_for,
    utm_box,
    without_authority,
    write,
)
from resources.store import DatasetStore

SCENE = "a scene"
NEIGHBOURS = [chip_id(row, col) for row in range(221, 226) for col in range(335, 340)]
REAL_V15 = "HLS.S30.T29QND.2019182.v1.5"
REAL_FMASKS = [
    "HLS.S30.T13RCN.2024128T173909.v2.0.Fmask.tif",
    "HLS.L30.T15UWP.2024283T165135.v2.0.Fmask.tif",
    f"{REAL_V15}/{REAL_V15}.Fmask.tif",
]


def band_file(
    band: str, source: Path, destination: Path, scene: str = SCENE, version: str = "2.0"
) -> ReprojectionJob:
    return ReprojectionJob(scene, band, version, nullcontext(source), partial(write_pieces, destination))


def write_pieces(path: Path, pieces: Iterable[bytes]) -> tuple[int, str]:
    data = b"".join(pieces)
    path.write_bytes(data)
    return len(data), hashlib.sha256(data).hexdigest()


def destination_of(file: ReprojectionJob) -> Path:
    assert isinstance(file.write, partial)
    path: Path = file.write.args[0]
    return path


def reproject_bands(
    files: Sequence[ReprojectionJob],
    chips: Sequence[str],
    tags: Mapping[str, str],
    pool: Executor,
    whole_tile: bool = False,
) -> Reprojection:
    """The reprojection of a stage that was handed over nothing."""
    return reproject.reproject_bands(files, chips, tags, pool, pool, {}, whole_tile)


def reflectance(rng: np.random.Generator, box: GeoBox) -> np.ndarray:
    """Random values with holes of fill."""
    values = rng.integers(-200, 4000, box.shape).astype(np.int16)
    values[rng.random(box.shape) < 0.01] = -9999
    return values


def stored_blocks(path: Path) -> set[tuple[int, int]]:
    """Row and column of each chip that a reprojected raster has in its file."""
    with rasterio.open(path) as raster:
        positions = positions_in(raster_geobox(raster))
        top, left = positions[0]
        return {
            (row, col)
            for row, col in positions
            if raster.get_tag_item(f"BLOCK_OFFSET_{col - left}_{row - top}", "TIFF", bidx=1)
        }


def read_block(path: Path, row: int, col: int) -> np.ndarray:
    with rasterio.open(path) as raster:
        return raster.read(1, window=chip_window(raster.transform, row, col))


def expected_block(values: np.ndarray, source: GeoBox, row: int, col: int, fill: int = -9999) -> np.ndarray:
    at = source_pixels(block(row, col), source)
    if at is None:
        return np.full((224, 224), -9999)
    return bilinear(read_at(values, at), at, fill)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def test_a_tile_is_a_sparse_raster_whose_blocks_are_chips(
    tmp_path: Path, rng: np.random.Generator, pool: Executor
) -> None:
    source = utm_box(CHIP, size=900)
    values = rng.integers(0, 4000, source.shape).astype(np.int16)
    bands = [
        band_file("B02", write(tmp_path / "a.B02.tif", values, source, -9999), tmp_path / "B02.tif"),
        band_file(
            "Fmask", write(tmp_path / "a.Fmask.tif", values.astype(np.uint8), source, 255), tmp_path / "F.tif"
        ),
    ]
    made = reproject_bands(bands, [CHIP], {"TILE": "14SPJ"}, pool)
    assert made.blocks == [1, 1]
    at = source_pixels(chip_geobox(CHIP), source)
    with rasterio.open(tmp_path / "B02.tif") as raster:
        assert raster.crs.to_epsg() == 5070
        assert raster.block_shapes == [(224, 224)]
        assert (raster.nodata, raster.dtypes[0]) == (-9999, "int16")
        assert raster_geobox(raster) == made.grid
        block = raster.read(1, window=chip_window(raster.transform, 223, 337))
        np.testing.assert_array_equal(block, bilinear(read_at(values, at), at, -9999))
        everything = raster.read(1)
        assert (everything != -9999).sum() <= 224 * 224
    assert (tmp_path / "B02.tif").stat().st_size < 2 * 224 * 224 * 2


@pytest.mark.parametrize(("band", "dtype", "nodata"), [("B8A", "int16", -9999), ("Fmask", "uint8", 255)])
def test_a_file_has_descriptive_tags(
    tmp_path: Path, rng: np.random.Generator, pool: Executor, band: str, dtype: str, nodata: int
) -> None:
    source = utm_box(CHIP, size=900)
    path = write(tmp_path / "a.tif", rng.integers(0, 250, source.shape).astype(dtype), source, nodata)
    made = reproject_bands([band_file(band, path, tmp_path / "o.tif")], [CHIP], {"TILE": "14SPJ"}, pool)
    with rasterio.open(tmp_path / "o.tif") as raster:
        assert (raster.driver, raster.count, raster.dtypes) == ("GTiff", 1, (dtype,))
        assert (raster.crs, raster.res, raster.shape) == ("EPSG:5070", (30, 30), made.grid.shape)
        assert (raster.block_shapes, raster.nodata) == ([(224, 224)], nodata)
        assert (raster.descriptions, raster.tags()["TILE"]) == ((band,), "14SPJ")
        assert ((raster.transform.c + 2356095) % 6720, (3172605 - raster.transform.f) % 6720) == (0, 0)
        assert all(size % 224 == 0 for size in raster.shape)
    assert stored_blocks(tmp_path / "o.tif") == {chip_position(CHIP)}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tif", "o.tif"]


def test_chips_and_complete_tile_have_the_same_pixels_in_common_blocks(
    tmp_path: Path, rng: np.random.Generator, pool: Executor
) -> None:
    source = utm_box(CHIP, size=700)
    path = write(tmp_path / "a.tif", reflectance(rng, source), source, -9999)
    some = ["chip_222_336", CHIP, "chip_224_338"]
    reproject_bands([band_file("B02", path, tmp_path / "some.tif")], some, {}, pool)
    reproject_bands([band_file("B02", path, tmp_path / "all.tif")], some, {}, pool, whole_tile=True)
    assert stored_blocks(tmp_path / "some.tif") == set(map(chip_position, some))
    for at in map(chip_position, some):
        of_some, of_all = (read_block(tmp_path / name, *at) for name in ("some.tif", "all.tif"))
        np.testing.assert_array_equal(of_some, of_all)
        assert (of_some != -9999).any()


@pytest.mark.parametrize("size", [20, 224, 700])
def test_a_complete_tile_stores_exactly_the_blocks_that_the_scene_reaches(
    tmp_path: Path, pool: Executor, size: int
) -> None:
    source = utm_box(CHIP, 32613, size)
    path = write(tmp_path / "a.tif", np.full(source.shape, 500, np.int16), source, -9999)
    made = reproject_bands([band_file("B02", path, tmp_path / "o.tif")], [], {}, pool, whole_tile=True)
    reached = set()
    for position in positions_in(made.grid):
        rows, cols = pyproj_coordinates(block(*position), source)
        if ((rows >= -0.5) & (rows < size - 0.5) & (cols >= -0.5) & (cols < size - 0.5)).any():
            reached.add(position)
    assert stored_blocks(tmp_path / "o.tif") == reached
    assert made.blocks == [len(reached)]


def test_blocks_are_counted_as_they_are_stored(tmp_path: Path, pool: Executor) -> None:
    source = utm_box(CHIP, size=700)
    values = np.full(source.shape, -9999, np.int16)
    values[340:360, 340:360] = 500
    path = write(tmp_path / "a.tif", values, source, -9999)
    made = reproject_bands([band_file("B02", path, tmp_path / "o.tif")], [], {}, pool, whole_tile=True)
    assert made.blocks == [len(stored_blocks(tmp_path / "o.tif"))]


def test_a_raster_covers_the_chips_that_no_scene_reaches(tmp_path: Path, pool: Executor) -> None:
    source = utm_box(CHIP, size=100)
    path = write(tmp_path / "a.tif", np.full(source.shape, 500, np.int16), source, -9999)
    far = "chip_230_345"
    made = reproject_bands([band_file("B02", path, tmp_path / "o.tif")], [CHIP, far], {}, pool)
    assert made.blocks == [1]
    assert (read_block(tmp_path / "o.tif", *chip_position(far)) == -9999).all()


def test_each_scene_of_a_tile_has_the_pixels_of_its_own_grid(
    tmp_path: Path, rng: np.random.Generator, pool: Executor
) -> None:
    full = utm_box(CHIP, size=700)
    by_pieces = Affine.translation(0.25, -0.4)
    boxes = {
        "full": full,
        "cropped": full[100:420, 200:560],
        "shifted": GeoBox(full.shape, full.affine @ by_pieces, full.crs),
        "another zone": utm_box(CHIP, 32615, 500),
        "without authority": GeoBox(full.shape, full.affine, without_authority(14)),
    }
    values = {scene: reflectance(rng, box) for scene, box in boxes.items()}
    files = [
        band_file(
            band,
            write(tmp_path / f"{scene}.{band}.tif", pixels, boxes[scene], -9999),
            tmp_path / f"{scene} {band}",
            scene,
        )
        for scene, pixels in values.items()
        for band, pixels in (("B02", pixels), ("B03", pixels // 2))
    ]
    chips = [CHIP, "chip_222_337", "chip_223_336"]
    made = reproject_bands(files, chips, {}, pool)
    for file in files:
        with rasterio.open(file.source.__enter__()) as raster:
            pixels, box = raster.read(1), raster_geobox(raster)
        for at in map(chip_position, chips):
            ours = read_block(destination_of(file), *at)
            np.testing.assert_array_equal(ours, expected_block(pixels, box, *at))
    assert all(count >= 1 for count in made.blocks)


@pytest.mark.parametrize(
    ("tag", "band", "version", "fill"),
    [
        (-1000, "B02", "2.0", -1000),
        (-9999, "B02", "1.5", -9999),
        (None, "B02", "1.5", -1000),
        (None, "B02", "2.0", -9999),
        (None, "Fmask", "1.5", 255),
    ],
)
def test_fill_is_from_the_file_or_else_from_its_version(
    tmp_path: Path, tag: int | None, band: str, version: str, fill: int
) -> None:
    source = utm_box(CHIP, size=10)
    path = write(tmp_path / "a.tif", np.zeros(source.shape, np.int16), source, tag)
    with closing(BlockReader(path, {})) as raster:
        assert fill_value(raster.nodata, band, version) == fill


def test_an_untagged_v15_band_is_filled_with_minus_1000(
    tmp_path: Path, rng: np.random.Generator, pool: Executor
) -> None:
    source = utm_box(CHIP)
    values = reflectance(rng, source)
    values[values == -9999] = -1000
    path = write(tmp_path / "a.tif", values, source, None)
    reproject_bands([band_file("B02", path, tmp_path / "o.tif", version="1.5")], [CHIP], {}, pool)
    ours = read_block(tmp_path / "o.tif", *chip_position(CHIP))
    np.testing.assert_array_equal(ours, expected_block(values, source, *chip_position(CHIP), fill=-1000))
    assert (ours == -9999).any()
    assert ours[ours != -9999].min() > -1000


@pytest.fixture(scope="module")
def many_bands(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str, Path]]:
    """Scene, band and path of six bands of two scenes, each of which reaches more than 16 chips."""
    folder = tmp_path_factory.mktemp("bands")
    rng = np.random.default_rng(1)
    bands = []
    for scene, size in (("first", 850), ("last", 700)):
        source = utm_box(CHIP, size=size)
        for band in ("B02", "B8A", "Fmask"):
            values = reflectance(rng, source).astype(np.uint8 if band == "Fmask" else np.int16)
            fill = 255 if band == "Fmask" else -9999
            path = write(
                folder / f"{scene}.{band}.tif", values, source, fill, tiled=True, compress="deflate", zlevel=1
            )
            bands.append((scene, band, path))
    return bands


def digests(bands: Sequence[tuple[str, str, Path]], folder: Path, threads: int, **env: Any) -> list[str]:
    files = [band_file(band, path, folder / path.name, scene) for scene, band, path in bands]
    with rasterio.Env(**env), ThreadPoolExecutor(threads) as pool:
        reproject_bands(files, NEIGHBOURS, {"TILE": "14SPJ"}, pool, whole_tile=True)
    return [hashlib.sha256((folder / path.name).read_bytes()).hexdigest() for _, _, path in bands]


def test_the_bytes_of_files_do_not_depend_on_threads_or_gdals_cache(
    tmp_path: Path, many_bands: list[tuple[str, str, Path]]
) -> None:
    made = {}
    for threads, cache in [(1, 64 << 20), (2, 64 << 20), (4, 64 << 20), (1, 200_000), (4, 200_000)]:
        folder = tmp_path / f"{threads} {cache}"
        folder.mkdir()
        made[threads, cache] = digests(many_bands, folder, threads, GDAL_CACHEMAX=cache)
    assert len(stored_blocks(tmp_path / "4 200000" / "last.B02.tif")) > 16
    assert dict.fromkeys(made, made[1, 64 << 20]) == made


def test_the_blocks_of_every_batch_are_right(tmp_path: Path, many_bands: list[tuple[str, str, Path]]) -> None:
    digests(many_bands, tmp_path, 2, GDAL_CACHEMAX=200_000)
    for _, band, path in many_bands[:1] + many_bands[-1:]:
        with rasterio.open(path) as raster:
            values, source = raster.read(1), raster_geobox(raster)
        for position in sorted(stored_blocks(tmp_path / path.name)):
            at = source_pixels(block(*position), source)
            assert at is not None
            pixels = read_at(values, at)
            expected = nearest(pixels, at) if band == "Fmask" else bilinear(pixels, at, -9999)
            np.testing.assert_array_equal(read_block(tmp_path / path.name, *position), expected)


@pytest.mark.parametrize("name", REAL_FMASKS)
def test_a_real_fmask_agrees_with_gdals_exact_warp(
    real: Path, tmp_path: Path, pool: Executor, name: str
) -> None:
    made = reproject_bands(
        [band_file("Fmask", real / "hls" / name, tmp_path / "o.tif")], [], {}, pool, whole_tile=True
    )
    with rasterio.open(real / "hls" / name) as raster:
        values, source = raster.read(1), raster_geobox(raster)
    stored = sorted(stored_blocks(tmp_path / "o.tif"))
    assert stored[0] in positions_in(made.grid)
    for position in [stored[0], stored[-1], *stored[1 :: len(stored) // 3]]:
        target = block(*position)
        theirs = gdal_exact(real / "hls" / name, target, Resampling.nearest, 255)
        ours = read_block(tmp_path / "o.tif", *position)
        assert_equal_but_for_ties(ours, theirs, values, *pyproj_coordinates(target, source), fill=255)


@pytest.mark.parametrize("band", ["B12"])
def test_the_real_v15_scene_agrees_with_gdals_exact_warp(
    real: Path, tmp_path: Path, pool: Executor, band: str
) -> None:
    """It is in West Africa, where rows of chips are negative and columns exceed 1000."""
    path = real / "hls" / REAL_V15 / f"{REAL_V15}.{band}.tif"
    reproject_bands([band_file(band, path, tmp_path / "o.tif", version="1.5")], [], {}, pool, whole_tile=True)
    with rasterio.open(path) as raster:
        values, source = raster.read(1), raster_geobox(raster)
    stored = sorted(stored_blocks(tmp_path / "o.tif"))
    assert stored[0][0] < 0
    assert stored[0][1] > 1000
    compared = 0
    for position in stored:
        target = block(*position)
        theirs = gdal_exact(path, target, Resampling.bilinear, -1000)
        ours = read_block(tmp_path / "o.tif", *position)
        rows, cols = pyproj_coordinates(target, source)
        four = four_are_data(values, rows, cols, -1000)
        assert np.abs(ours[four].astype(int) - theirs[four]).max(initial=0) <= 1
        data = values[np.floor(rows + 0.5).astype(int), np.floor(cols + 0.5).astype(int)] != -1000
        np.testing.assert_array_equal(ours != -9999, data)
        compared += four.sum()
    assert compared > 20_000


def test_all_bands_of_the_real_v15_scene_have_the_same_grid(
    real: Path, tmp_path: Path, pool: Executor
) -> None:
    folder = real / "hls" / REAL_V15
    files = [
        band_file(band, folder / f"{REAL_V15}.{band}.tif", tmp_path / f"{band}.tif", version="1.5")
        for band in ("B02", "B03", "B04", "B8A", "B11", "B12", "Fmask")
    ]
    made = reproject_bands(files, ["chip_000_1545"], {}, pool)
    for file in files:
        with rasterio.open(destination_of(file)) as raster:
            assert raster_geobox(raster) == made.grid


Spoil = Callable[[Path, np.ndarray, GeoBox], None]


def truncated(path: Path, values: np.ndarray, box: GeoBox) -> None:
    write(path, values, box, -9999)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])


def damage_a_block(path: Path, values: np.ndarray, box: GeoBox, share: float) -> None:
    """Flip twenty bytes at some share of the way into the second block of the second row."""
    write(path, values, box, -9999, compress="deflate", tiled=True, blockxsize=128, blockysize=128)
    with rasterio.open(path) as raster:
        offset, size = (
            int(raster.get_tag_item(f"BLOCK_{key}_1_1", "TIFF", bidx=1)) for key in ("OFFSET", "SIZE")
        )
    data = bytearray(path.read_bytes())
    start = offset + int(size * share)
    data[start : start + 20] = bytes(byte ^ 0xFF for byte in data[start : start + 20])
    path.write_bytes(data)


def with_a_corrupt_block(path: Path, values: np.ndarray, box: GeoBox) -> None:
    damage_a_block(path, values, box, 0)


def of_another_shape(path: Path, values: np.ndarray, box: GeoBox) -> None:
    write(path, values[:-1], box[:-1], -9999)


def shifted(path: Path, values: np.ndarray, box: GeoBox) -> None:
    write(path, values, GeoBox(box.shape, box.affine @ Affine.translation(0.5, 0), box.crs), -9999)


def in_another_zone(path: Path, values: np.ndarray, box: GeoBox) -> None:
    write(path, values, GeoBox(box.shape, box.affine, "EPSG:32615"), -9999)


def without_crs(path: Path, values: np.ndarray, box: GeoBox) -> None:
    write(path, values, GeoBox(box.shape, box.affine, None), -9999)


def no_raster(path: Path, values: np.ndarray, box: GeoBox) -> None:
    path.write_text("<html>Please log in</html>")


def empty(path: Path, values: np.ndarray, box: GeoBox) -> None:
    path.write_bytes(b"")


def missing(path: Path, values: np.ndarray, box: GeoBox) -> None:
    path.unlink(missing_ok=True)


BAD_BANDS: list[tuple[Spoil, str]] = [
    (truncated, "cannot be read"),
    (with_a_corrupt_block, "cannot be read"),
    (of_another_shape, "has 399 x 400 pixels of 30 x 30 .* of the same scene has 400 x 400"),
    (
        shifted,
        r"has .* from \(668235, 4221000\) in EPSG:32614, but .* of the same scene .* from \(668220, 4221000\)",
    ),
    (in_another_zone, r"has .*32615.* of the same scene .*32614"),
    (without_crs, "has no coordinate reference system"),
    (no_raster, "cannot be opened"),
    (empty, "cannot be opened"),
    (missing, "cannot be opened"),
]


def test_bands_on_equivalent_grids_have_the_same_pixels(
    tmp_path: Path, rng: np.random.Generator, pool: Executor
) -> None:
    source = utm_box(CHIP)
    a, values = source.affine, reflectance(rng, source)
    zone = rasterio.CRS.from_string(
        "+proj=tmerc +lat_0=0 +lon_0=-99 +k=0.9996 +x_0=500000 +y_0=0 +ellps=WGS84"
    )
    boxes = {
        "B02": source,
        "B03": GeoBox(
            source.shape, Affine(30.00000000000029, 0, a.c, 0, -30.00000000000029, a.f + 1e-6), source.crs
        ),
        "B04": GeoBox(source.shape, a, without_authority(14)),
        "B8A": GeoBox(source.shape, a, zone.to_wkt()),
        "B11": GeoBox(source.shape, a, "EPSG:26914"),
        # the southern zone of the same meridian counts from 10,000 km further south
        "B12": GeoBox(source.shape, Affine(30, 0, a.c, 0, -30, a.f + 10_000_000), "EPSG:32714"),
    }
    files = [
        band_file(band, write(tmp_path / f"a.{band}.tif", values, box, -9999), tmp_path / f"{band}.tif")
        for band, box in boxes.items()
    ]
    made = reproject_bands(files, [CHIP], {}, pool)
    assert made.blocks == [1] * 6
    expected = read_block(tmp_path / "B02.tif", *chip_position(CHIP))
    assert (expected != -9999).any()
    for band in boxes:
        np.testing.assert_array_equal(read_block(tmp_path / f"{band}.tif", *chip_position(CHIP)), expected)


@pytest.mark.parametrize(("spoil", "message"), BAD_BANDS)
def test_a_bad_band_is_an_error_that_names_the_file_and_leaves_no_output(
    tmp_path: Path, rng: np.random.Generator, pool: Executor, spoil: Spoil, message: str
) -> None:
    store = DatasetStore(root=str(tmp_path / "store"))
    source = utm_box(CHIP)
    values = reflectance(rng, source)
    paths = {band: tmp_path / f"a.{band}.tif" for band in ("B02", "B03", "B04", "B8A")}
    for path in paths.values():
        write(path, values, source, -9999)
    spoil(paths["B03"], values, source)
    files = [
        ReprojectionJob(
            SCENE, band, "2.0", nullcontext(path), partial(store.write_pieces, f"tiles/{band}.tif")
        )
        for band, path in paths.items()
    ]
    with pytest.raises(InputError, match=rf"a\.B03\.tif {message}"):
        reproject_bands(files, NEIGHBOURS, {}, pool)
    left = {path.name for path in (tmp_path / "store").rglob("*") if path.is_file()}
    assert left <= {"B02.tif", "B04.tif", "B8A.tif"}


@pytest.mark.parametrize(("spoil", "message"), [bad for bad in BAD_BANDS if "same scene" not in bad[1]])
def test_a_bad_first_band_of_a_scene_is_an_error_that_names_the_file(
    tmp_path: Path, rng: np.random.Generator, pool: Executor, spoil: Spoil, message: str
) -> None:
    store = DatasetStore(root=str(tmp_path / "store"))
    source = utm_box(CHIP)
    spoil(tmp_path / "broken.B02.tif", reflectance(rng, source), source)
    file = ReprojectionJob(
        SCENE,
        "B02",
        "2.0",
        nullcontext(tmp_path / "broken.B02.tif"),
        partial(store.write_pieces, "tiles/B02.tif"),
    )
    with pytest.raises(InputError, match=rf"broken\.B02\.tif {message}"):
        reproject_bands([file], [CHIP], {}, pool)
    assert not [path for path in (tmp_path / "store").rglob("*") if path.is_file()]


def test_a_failed_band_keeps_the_file_of_an_earlier_run(
    tmp_path: Path, rng: np.random.Generator, pool: Executor
) -> None:
    store = DatasetStore(root=str(tmp_path / "store"))
    store.write_bytes("tiles/B02.tif", b"earlier")
    source = utm_box(CHIP)
    truncated(tmp_path / "a.tif", reflectance(rng, source), source)
    file = ReprojectionJob(
        SCENE, "B02", "2.0", nullcontext(tmp_path / "a.tif"), partial(store.write_pieces, "tiles/B02.tif")
    )
    with pytest.raises(InputError, match=r"a\.tif"):
        reproject_bands([file], [CHIP], {}, pool)
    assert store.read_bytes("tiles/B02.tif") == b"earlier"
    assert [path.name for path in (tmp_path / "store" / "tiles").iterdir()] == ["B02.tif"]


@pytest.mark.parametrize("short_by", [1, 200, 40_000])
@pytest.mark.parametrize("whole_tile", [False, True])
def test_a_full_disk_is_an_error_that_leaves_no_file(
    tmp_path: Path, rng: np.random.Generator, pool: Executor, short_by: int, whole_tile: bool
) -> None:
    source = utm_box(CHIP, size=500)
    path = write(tmp_path / "a.tif", reflectance(rng, source), source, -9999)
    reproject_bands([band_file("B02", path, tmp_path / "whole.tif")], [CHIP], {}, pool, whole_tile)
    store = DatasetStore(root=str(tmp_path / "store"))
    file = ReprojectionJob(
        SCENE, "B02", "2.0", nullcontext(path), partial(store.write_pieces, "tiles/B02.tif")
    )
    with (
        pytest.raises(OSError, match="File too large"),
        room_for((tmp_path / "whole.tif").stat().st_size - short_by),
    ):
        reproject_bands([file], [CHIP], {}, pool, whole_tile)
    assert not [path for path in (tmp_path / "store").rglob("*") if path.is_file()]


def test_only_the_blocks_that_are_read_need_to_be_intact(
    tmp_path: Path, rng: np.random.Generator, pool: Executor
) -> None:
    source = utm_box(CHIP, size=900)
    with_a_corrupt_block(tmp_path / "a.tif", reflectance(rng, source), source)
    reproject_bands([band_file("B02", tmp_path / "a.tif", tmp_path / "o.tif")], [CHIP], {}, pool)
    assert stored_blocks(tmp_path / "o.tif") == {chip_position(CHIP)}
