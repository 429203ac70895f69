import io
import json
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import rasterio
import yaml
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st

from crop_assets.dataset import statistics
from crop_assets.dataset.statistics import (
    BandStatistics,
    band_statistics,
    count_values,
    measure_bands,
    statistics_texts,
)
from crop_assets.errors import InputError
from crop_assets.hls import REFLECTANCE_BANDS

VALUES = 3 * 224 * 224
"""Values of one band in one chip."""
COUNT = 35
"""More than two tasks of 16 chips, and not a multiple of 16."""


def write_image(path: Path, values: np.ndarray) -> str:
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=18,
        height=224,
        width=224,
        dtype="int16",
        nodata=-9999,
        crs="EPSG:5070",
        transform=Affine(30, 0, 0, 0, -30, 0),
        interleave="band",
    ) as raster:
        raster.write(values)
    return str(path)


def image(rng: np.random.Generator, missing: float) -> np.ndarray:
    values = rng.gamma(4, 500, (18, 224, 224)).astype(np.int16)
    values[rng.random(values.shape) < missing] = -9999
    return values


@pytest.fixture(scope="module")
def chips(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], np.ndarray]:
    """Paths of images, and their values by band: int16 (6, chips, 3, 224, 224)."""
    folder, rng = tmp_path_factory.mktemp("chips"), np.random.default_rng(3)
    paths, values = [], []
    for number in range(COUNT):
        pixels = image(rng, missing=0.02 * (number % 3))
        paths.append(write_image(folder / f"chip_{number:03d}_000_merged.tif", pixels))
        values.append(pixels.reshape(3, 6, 224, 224))
    return paths, np.stack(values).transpose(2, 0, 1, 3, 4)


def measured(paths: Sequence[str], pool: Executor, files: Sequence[Path] = ()) -> list[BandStatistics]:
    """The statistics of each band over the three dates."""
    counts = measure_bands(paths, ["train"] * len(paths), pool, files, ["train"])["train"]
    return [band_statistics(band) for band in counts.sum(axis=0)]


def assert_numpys(ours: Sequence[BandStatistics], values: np.ndarray) -> None:
    assert len(ours) == len(REFLECTANCE_BANDS)
    for band, of_band in zip(ours, values, strict=True):
        data = of_band[of_band != -9999]
        assert band.pixels == data.size
        assert band.mean == pytest.approx(data.mean(dtype=float), rel=1e-12)
        assert band.std == pytest.approx(data.std(dtype=float), rel=1e-9)
        assert [band.minimum, band.maximum] == pytest.approx(np.percentile(data, [1.5, 98.5]), rel=1e-12)


@pytest.mark.parametrize("count", [1, 2, 16, 17, COUNT])
def test_statistics_are_numpys_on_all_values(
    chips: tuple[list[str], np.ndarray], pool: Executor, count: int
) -> None:
    paths, values = chips
    assert_numpys(measured(paths[:count], pool), values[:, :count])


def test_threads_and_the_split_into_tasks_change_nothing(
    chips: tuple[list[str], np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, _ = chips
    seen = []
    for threads, at_once in [(1, 16), (2, 16), (4, 16), (4, 1), (2, 7), (1, 100)]:
        monkeypatch.setattr(statistics, "CHIPS_PER_TASK", at_once)
        files = [tmp_path / f"{band}.npy" for band in REFLECTANCE_BANDS]
        with ThreadPoolExecutor(threads) as pool:
            found = measured(paths, pool, files)
        seen.append((found, [file.read_bytes() for file in files]))
    assert all(result == seen[0] for result in seen)


def test_the_order_of_images_does_not_change_statistics(
    chips: tuple[list[str], np.ndarray], pool: Executor
) -> None:
    paths, _ = chips
    assert measured(paths[::-1], pool) == measured(paths, pool)


@pytest.mark.parametrize("count", [1, 17, COUNT])
def test_binaries_have_every_value_in_order_and_can_be_mapped(
    chips: tuple[list[str], np.ndarray], tmp_path: Path, pool: Executor, count: int
) -> None:
    paths, values = chips
    files = [tmp_path / f"{band}.npy" for band in REFLECTANCE_BANDS]
    measured(paths[:count], pool, files)
    for file, of_band in zip(files, values, strict=True):
        mapped = np.load(file, mmap_mode="r")
        assert isinstance(mapped, np.memmap)
        assert (mapped.dtype, mapped.shape) == (np.int16, (count * VALUES,))
        np.testing.assert_array_equal(mapped, of_band[:count].ravel())


def test_progress_ends_with_all_chips(chips: tuple[list[str], np.ndarray], pool: Executor) -> None:
    done: list[int] = []
    measure_bands(chips[0], [""] * len(chips[0]), pool, progress=done.append)
    assert done == sorted(done)
    assert done[-1] == len(chips[0])


def test_a_band_without_data_is_an_error(tmp_path: Path, pool: Executor) -> None:
    values = np.full((18, 224, 224), 500, np.int16)
    values[2::6] = -9999
    with pytest.raises(ValueError, match="all pixels of a band are missing"):
        measured([write_image(tmp_path / "a.tif", values)], pool)
    assert measure_bands([], [], pool) == {}


@pytest.mark.parametrize("at", [0, 20, COUNT - 1])
@pytest.mark.parametrize("data", [b"no raster", b"", None])
def test_an_image_that_cannot_be_read_is_an_error_that_names_it(
    chips: tuple[list[str], np.ndarray], tmp_path: Path, pool: Executor, at: int, data: bytes | None
) -> None:
    bad = tmp_path / "chip_999_999_merged.tif"
    if data is not None:
        bad.write_bytes(data)
    paths = [*chips[0][:at], str(bad), *chips[0][at + 1 :]]
    with pytest.raises(
        InputError, match=r"chip_999_999_merged\.tif cannot be read .*; materialize its tile again"
    ):
        measured(paths, pool)


def test_a_truncated_image_is_an_error_that_names_it(
    chips: tuple[list[str], np.ndarray], tmp_path: Path, pool: Executor
) -> None:
    bad = tmp_path / "chip_999_999_merged.tif"
    data = Path(chips[0][0]).read_bytes()
    bad.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"chip_999_999_merged\.tif cannot be read"):
        measured([chips[0][1], str(bad)], pool)


def test_nothing_is_written_after_an_error(chips: tuple[list[str], np.ndarray], tmp_path: Path) -> None:
    """The first task fails at once, while the second still reads; the files that are opened next must stay empty."""
    paths = [str(tmp_path / "none.tif"), *chips[0][:31]]
    files = [tmp_path / f"{band}.npy" for band in REFLECTANCE_BANDS]
    later = [tmp_path / f"later {number}" for number in range(6)]
    with ExitStack() as stack, ThreadPoolExecutor(2) as pool:
        with pytest.raises(InputError, match=r"none\.tif"):
            measured(paths, pool, files)
        for path in later:
            stack.enter_context(path.open("wb"))
        pool.shutdown(wait=True)
        assert [path.stat().st_size for path in later] == [0] * 6


pieces = st.lists(st.lists(st.integers(-32768, 32767), max_size=50), min_size=1, max_size=5)


def counted(values: Sequence[int]) -> np.ndarray:
    return count_values(np.array(values, np.int16))


@settings(max_examples=20)
@given(pieces)
def test_counts_of_pieces_add_up_to_those_of_the_whole(values: list[list[int]]) -> None:
    whole = counted([value for piece in values for value in piece])
    np.testing.assert_array_equal(sum(map(counted, values)), whole)


def test_extremes_of_int16_are_counted() -> None:
    found = band_statistics(counted([-32768, 32767, -9999]))
    assert (found.pixels, found.mean, found.std) == (2, -0.5, 32767.5)


def test_each_split_and_date_has_its_own_statistics_and_binaries_have_the_chosen_splits(
    chips: tuple[list[str], np.ndarray], pool: Executor, tmp_path: Path
) -> None:
    paths, values = chips
    splits = [("train", "validation", "train", "test", "train")[number % 5] for number in range(COUNT)]
    of_split = {split: np.array(splits) == split for split in ("train", "validation", "test")}
    files = [tmp_path / f"{band}.npy" for band in REFLECTANCE_BANDS]
    counts = measure_bands(paths, splits, pool, files, ["train", "test"])
    for split, chosen in of_split.items():
        for date in range(3):
            ours = [band_statistics(band) for band in counts[split][date]]
            assert_numpys(ours, values[:, chosen, date])
    for file, of_band in zip(files, values, strict=True):
        expected = of_band[of_split["train"] | of_split["test"]]
        np.testing.assert_array_equal(np.load(file), expected.ravel())

    numbers = {split: int(chosen.sum()) for split, chosen in of_split.items()}
    texts = statistics_texts(counts, ["train"], numbers)
    document = json.loads(texts["statistics.json"])
    trained = values[:, of_split["train"]]
    for at, band in enumerate(REFLECTANCE_BANDS):
        known = np.ma.masked_equal(trained[at], -9999)
        assert document["bands"][band]["mean"] == pytest.approx(float(known.mean()))
        assert document["splits"]["train"]["bands"][band] == document["bands"][band]
        last = np.ma.masked_equal(values[at][of_split["test"], 2], -9999)
        found = document["splits"]["test"]["bands"][band]["dates"]["last"]
        assert (found["mean"], found["std"]) == pytest.approx((float(last.mean()), float(last.std())))
        assert found["pixels"] == last.count()
    assert {split: part["chips"] for split, part in document["splits"].items()} == numbers
    # in the order of the file's 18 bands
    by_date = [float(line) for line in texts["means_by_date.txt"].splitlines()]
    expected = [
        np.ma.masked_equal(trained[band, :, date], -9999).mean() for date in range(3) for band in range(6)
    ]
    assert by_date == pytest.approx([float(mean) for mean in expected], abs=1e-6)
    assert np.genfromtxt(io.StringIO(texts["stds.txt"])).shape == (6,)
    # as it stands in a configuration of the Clark baseline
    stats = yaml.safe_load(texts["global_stats.txt"])
    assert list(stats) == ["min", "max", "mean", "std"]
    assert stats["mean"] == pytest.approx(
        [document["bands"][band]["mean"] for band in REFLECTANCE_BANDS], abs=1e-6
    )
    assert stats["max"] == pytest.approx(
        [document["bands"][band]["max"] for band in REFLECTANCE_BANDS], abs=1e-6
    )


def test_a_split_without_values_on_a_date_has_no_statistics_there(tmp_path: Path, pool: Executor) -> None:
    values = np.full((18, 224, 224), 500, np.int16)
    values[6:12] = -9999
    paths = [
        write_image(tmp_path / "a.tif", np.full_like(values, 700)),
        write_image(tmp_path / "b.tif", values),
    ]
    counts = measure_bands(paths, ["train", "validation"], pool)
    document = json.loads(
        statistics_texts(counts, ["train"], {"train": 1, "validation": 1})["statistics.json"]
    )
    dates = document["splits"]["validation"]["bands"]["B04"]["dates"]
    assert dates["middle"] == {"mean": None, "std": None, "min": None, "max": None, "pixels": 0}
    assert (dates["first"]["mean"], document["bands"]["B04"]["mean"]) == (500, 700)
    with pytest.raises(InputError, match="all pixels of a band are missing"):
        statistics_texts(counts, ["validation"], {"train": 1, "validation": 1})
