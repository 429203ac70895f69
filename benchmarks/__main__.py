"""Reprojection of one tile: this project's exact warp of the chips' blocks against GDAL's warp of the full tile.

Both make seven bands on the CDL grid from the same files; the table shows seconds and the ratio.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from rasterio.enums import Resampling
from rasterio.warp import calculate_default_transform, reproject

from crop_assets.chips.warp import BandWarp, reproject_bands
from crop_assets.grid import CRS, chip_id
from crop_assets.recipe import QA_BAND, REFLECTANCE_BANDS

_REPEATS = 3
# eight chips well inside tile 14SNG
_CHIPS = [chip_id(row, col) for row in (231, 233) for col in (312, 313, 314, 315)]


def write_scene(folder: Path) -> dict[str, Path]:
    """One full HLS scene of random reflectance: seven deflated files of 3660 x 3660 pixels."""
    rng = np.random.default_rng(0)
    profile = {
        "driver": "GTiff",
        "count": 1,
        "width": 3660,
        "height": 3660,
        "crs": "EPSG:32614",
        "transform": Affine(30, 0, 499980, 0, -30, 4200000),
        "tiled": True,
        "blockxsize": 256,
        "blockysize": 256,
        "compress": "deflate",
    }
    files = {}
    for band in (*REFLECTANCE_BANDS, QA_BAND):
        dtype, nodata, high = ("uint8", 255, 64) if band == QA_BAND else ("int16", -9999, 4000)
        files[band] = folder / f"{band}.tif"
        with rasterio.open(files[band], "w", dtype=dtype, nodata=nodata, **profile) as raster:
            raster.write(rng.integers(0, high, (3660, 3660)).astype(dtype), 1)
    return files


def ours(files: dict[str, Path], out: Path) -> None:
    reproject_bands(
        [BandWarp(path, out / f"ours_{band}.tif", band, "2.0") for band, path in files.items()], _CHIPS, {}
    )


def full_tile(files: dict[str, Path], out: Path) -> None:
    for band, path in files.items():
        with rasterio.open(path) as source:
            transform, width, height = calculate_default_transform(
                source.crs, CRS, source.width, source.height, *source.bounds, resolution=30
            )
            profile = {**source.profile, "crs": CRS, "transform": transform, "width": width, "height": height}
            resampling = Resampling.nearest if band == QA_BAND else Resampling.bilinear
            with rasterio.open(out / f"full_{band}.tif", "w", **profile) as target:
                reproject(rasterio.band(source, 1), rasterio.band(target, 1), resampling=resampling)


def median_seconds(work: Callable[[dict[str, Path], Path], None], files: dict[str, Path], out: Path) -> float:
    seconds = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        work(files, out)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = write_scene(folder)
        measured = {work.__name__: median_seconds(work, files, folder) for work in (ours, full_tile)}
    print(f"{'reprojection of 7 bands, 8 chips':<36}{'seconds':>10}{'ratio':>8}")
    for name, seconds in measured.items():
        print(f"{name:<36}{seconds:>10.2f}{seconds / measured['ours']:>8.1f}")


if __name__ == "__main__":
    main()
