from concurrent.futures import Executor
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import rasterio

from crop_assets.chips.reproject import BandFile, raster_geobox, reproject_bands
from crop_assets.chips.warp import bilinear, source_pixels
from crop_assets.errors import InputError
from crop_assets.grid import chip_geobox, chip_window
from crop_assets_tests.chips.test_warp import CHIP, read_at, utm_box, write


def band_file(band: str, source: Path, destination: Path, scene: str = "a scene") -> BandFile:
    return BandFile(scene, band, "2.0", nullcontext(source), nullcontext(destination))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def test_a_tile_is_a_sparse_raster_whose_blocks_are_chips(tmp_path: Path, rng, pool: Executor) -> None:
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


def test_a_truncated_band_is_an_error_that_names_the_file(tmp_path: Path, rng, pool: Executor) -> None:
    source = utm_box(CHIP)
    path = write(
        tmp_path / "broken.B02.tif", rng.integers(0, 4000, source.shape).astype(np.int16), source, -9999
    )
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    with pytest.raises(InputError, match=r"broken\.B02\.tif"):
        reproject_bands([band_file("B02", path, tmp_path / "out.tif")], [CHIP], {}, pool)
