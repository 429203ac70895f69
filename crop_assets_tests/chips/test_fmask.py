"""Many Fmask files are counted under the chips of a tile, a few at a time."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine

from crop_assets.chips.fmask import count_fmasks, read_fmasks
from crop_assets.chips.quality import quality_counts
from crop_assets.hls import HLS_SIZE, hls_bounds

TILE = "14SMG"
# more than are in memory at once; the last one is far outside the tile
CHIPS = [*(f"chip_{row}_{col}" for row in range(232, 237) for col in range(308, 312)), "chip_100_100"]


def write_fmask(path: Path, seed: int) -> Path:
    epsg, left, _, _, top = hls_bounds(TILE)
    random = np.random.default_rng(seed)
    # clear, water, cloud, shadow, snow, cloud and shadow, fill
    coarse = random.choice(np.array([64, 96, 66, 72, 80, 74, 255], np.uint8), (61, 61))
    values = coarse.repeat(60, axis=0).repeat(60, axis=1)
    profile = {"driver": "GTiff", "width": HLS_SIZE, "height": HLS_SIZE, "count": 1, "dtype": "uint8"}
    affine = Affine(30, 0, left, 0, -30, top)
    with rasterio.open(
        path,
        "w",
        **profile,
        crs=f"EPSG:{epsg}",
        transform=affine,
        nodata=255,
        tiled=True,
        blockxsize=256,
        blockysize=256,
        compress="deflate",
    ) as raster:
        raster.write(values, 1)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("fmasks")
    return [write_fmask(folder / f"{seed}.Fmask.tif", seed) for seed in range(5)]


class Opened:
    """How many files are open, and how many were at once."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def __call__(self, path: Path) -> Iterator[Path]:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        yield path
        with self._lock:
            self.now -= 1


def local(
    paths: list[Path], opened: Opened | None = None
) -> list[Callable[[], AbstractContextManager[Path]]]:
    return [partial(opened or Opened(), path) for path in paths]


def test_the_counts_are_those_of_the_pixels_that_are_read_of_selected_scenes(
    files: list[Path], pool: Executor
) -> None:
    opened = Opened()
    found = count_fmasks(local(files, opened), CHIPS, pool)
    blocks = read_fmasks({path.name: path for path in files}, CHIPS, pool).blocks
    assert found == [[quality_counts(pixels) for pixels in blocks[path.name]] for path in files]
    # the tests' pool has two threads
    assert (opened.now, opened.most <= 2) == (0, True)
    assert found[0][-1] == dict.fromkeys(found[0][-1], 0) | {"fill": 224 * 224, "worst_value": 224 * 224}
    assert len({tuple(counts.values()) for of_file in found for counts in of_file}) > 50


def test_a_file_that_cannot_be_read_says_so_and_the_others_are_counted(
    files: list[Path], pool: Executor, tmp_path: Path
) -> None:
    no_raster, damaged = tmp_path / "text.Fmask.tif", tmp_path / "damaged.Fmask.tif"
    no_raster.write_text("<html>log in</html>")
    data = bytearray(files[0].read_bytes())
    # blocks, and neither the directory at the start nor the end
    quarter = len(data) // 4
    data[quarter : 3 * quarter] = bytes(2 * quarter)
    damaged.write_bytes(data)
    first, *others, last = count_fmasks(local([files[1], no_raster, damaged, files[2]]), CHIPS, pool)
    assert [first, last] == count_fmasks(local([files[1], files[2]]), CHIPS, pool)
    for path, why in zip((no_raster, damaged), others, strict=True):
        assert isinstance(why, str)
        assert why.startswith(f"{path.name} cannot be read (")


def test_no_files_and_no_chips(files: list[Path], pool: Executor) -> None:
    assert count_fmasks([], CHIPS, pool) == []
    assert count_fmasks(local(files[:2]), [], pool) == [[], []]
