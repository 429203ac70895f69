"""The quality of labels: purity against a slow count, confidence, and clustering against all pairs."""

import math
from collections import Counter
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from crop_assets.chip_grid import ORIGIN_X, ORIGIN_Y, chip_geobox, chip_id, chip_position
from crop_assets.classes import CDL_CLASSES
from crop_assets.errors import InputError
from crop_assets.labels.cdl import check_cdl
from crop_assets.labels.quality import (
    NEIGHBOURS,
    check_confidence,
    clustering,
    largest_classes,
    mean_confidence,
    measure_labels,
    purity_percent,
    require_chips,
)
from crop_assets_tests.labels.conftest import WriteCdl

ROW, COL = 230, 340


def slow_purity(classes: NDArray[np.uint8]) -> float:
    agree = total = 0
    height, width = classes.shape
    for row in range(height):
        for col in range(width):
            around = Counter(
                int(classes[r, c])
                for r in range(max(row - 1, 0), min(row + 2, height))
                for c in range(max(col - 1, 0), min(col + 2, width))
                if (r, c) != (row, col) and classes[r, c]
            )
            if not classes[row, col] or not around:
                continue
            total += 1
            agree += around[int(classes[row, col])] == max(around.values())
    return 100 * agree / total if total else math.nan


SMALL = st.tuples(st.integers(1, 9), st.integers(1, 9))


@given(st.integers(0, 13).flatmap(lambda most: arrays.arrays(np.uint8, SMALL, elements=st.integers(0, most))))
def test_purity_is_that_of_a_slow_count(classes: NDArray[np.uint8]) -> None:
    np.testing.assert_equal(purity_percent(classes), slow_purity(classes))


def test_purity_of_plain_cases() -> None:
    field = np.full((224, 224), 3, np.uint8)
    assert purity_percent(field) == 100
    # two fields: at their edge each pixel has five neighbours of eight in its own
    field[:, 112:] = 8
    assert purity_percent(field) == 100
    # one pixel alone disagrees; its neighbours do not
    field[50, 50] = 7
    assert purity_percent(field) == pytest.approx(100 * (1 - 1 / 224**2))
    # a pixel has four neighbours of either class, of which a tie is in its favour, but for those at the edges
    board = (np.indices((224, 224)).sum(axis=0) % 2 + 1).astype(np.uint8)
    assert purity_percent(board) == slow_purity(board) == pytest.approx(100 * (222**2 + 0) / 224**2)
    assert math.isnan(purity_percent(np.zeros((224, 224), np.uint8)))


@given(
    arrays.arrays(np.uint8, (5, 7), elements=st.integers(0, 2)),
    arrays.arrays(np.uint8, (5, 7)),
    st.none() | st.integers(0, 255),
)
def test_confidence_is_the_mean_over_what_is_known(
    classes: NDArray[np.uint8], confidence: NDArray[np.uint8], nodata: float | None
) -> None:
    pairs = zip(classes.ravel().tolist(), confidence.ravel().tolist(), strict=True)
    known = [value for label, value in pairs if label and value <= 100 and value != nodata]
    expected = sum(known) / len(known) if known else math.nan
    np.testing.assert_equal(mean_confidence(confidence, classes, nodata), expected)


def write_confidence(path: Path, values: NDArray[Any], col: float, row: float, **profile: Any) -> Path:
    """Writes a raster whose corner is (col, row) pixels from the national origin."""
    corner = Affine(30, 0, ORIGIN_X + 30 * col, 0, -30, ORIGIN_Y - 30 * row)
    size = {"count": 1, "height": values.shape[0], "width": values.shape[1], "dtype": values.dtype}
    profile = {"crs": "EPSG:5070", "transform": corner, **size, **profile}
    with rasterio.open(path, "w", driver="GTiff", **profile) as raster:
        raster.write(values, 1)
    return path


def test_chips_of_a_raster_are_measured_each(write_cdl: WriteCdl, tmp_path: Path, pool: Executor) -> None:
    rng = np.random.default_rng(5)
    # neither raster begins on the chip grid, and each has another corner
    codes = rng.choice(np.array([0, 1, 5, 176, 40], np.uint8), (700, 900))
    cdl = check_cdl(write_cdl(codes, col=COL * 224 - 9, row=ROW * 224 - 7), "other")
    values = rng.integers(0, 256, (800, 950)).astype(np.uint8)
    path = write_confidence(tmp_path / f"{2022}.tif", values, COL * 224 - 31, ROW * 224 - 40, nodata=77)
    confidence = check_confidence(str(tmp_path / "{year}.tif"), 2022)
    assert confidence.path == str(path)
    # out of order, and more than are read at once
    ids = [chip_id(ROW + i, COL + j) for i in (2, 0, 1) for j in (1, 0, 2)] * 8
    done: list[int] = []
    table = measure_labels(cdl, confidence, ids, pool, done.append)
    assert list(table["chip_id"]) == ids
    assert done == [64, 72]
    for one in table.head(9).itertuples():
        row, col = (
            (at - first) * 224 for at, first in zip(chip_position(one.chip_id), (ROW, COL), strict=True)
        )
        part = codes[7 + row : 231 + row, 9 + col : 233 + col]
        classes = np.vectorize(lambda code: CDL_CLASSES.get(int(code), 13))(part).astype(np.uint8)
        assert one.purity_percent == slow_purity(classes)
        sure = values[40 + row : 264 + row, 31 + col : 255 + col]
        known = sure[(classes > 0) & (sure <= 100) & (sure != 77)]
        assert one.confidence_percent == pytest.approx(known.mean(dtype=float))
    without = measure_labels(cdl, None, ids[:3], pool)
    assert list(without["purity_percent"]) == list(table["purity_percent"][:3])
    assert without["confidence_percent"].isna().all()
    assert measure_labels(cdl, None, [], pool).empty
    with pytest.raises(InputError, match=r"CDL code 40 .* has no class"):
        measure_labels(check_cdl(cdl.path), None, ids, pool)


def test_the_real_clip_is_purer_than_noise_and_less_pure_than_a_field(real: Path, pool: Executor) -> None:
    cdl = check_cdl(real / "cdl" / "2021_30m_cdls.tif")
    ids = [chip_id(row, col) for row in cdl.chip_rows for col in cdl.chip_cols]
    table = measure_labels(cdl, None, ids, pool)
    assert len(table) == 16
    assert table["purity_percent"].between(60, 100, inclusive="left").all()
    with rasterio.open(cdl.path) as raster:
        codes = raster.read(1)
    corner = chip_geobox(ids[5]).affine
    left, top = int(corner.c + 106095) // 30, int(1822605 - corner.f) // 30
    classes = np.vectorize(CDL_CLASSES.get)(codes[top : top + 224, left : left + 224]).astype(np.uint8)
    assert table["purity_percent"][5] == slow_purity(classes)


def test_a_confidence_raster_that_does_not_fit_is_refused_with_advice(tmp_path: Path) -> None:
    values, at = np.full((448, 448), 80, np.uint8), (COL * 224, ROW * 224)

    def refused(name: str, message: str, kind: Any = np.uint8, **profile: Any) -> None:
        path = write_confidence(tmp_path / name, values.astype(kind), *at, **profile)
        with pytest.raises(InputError, match=message):
            check_confidence(str(path), 2022)

    refused("float.tif", "1 band.* of float32; a confidence raster has one band of uint8", np.float32)
    refused("utm.tif", "is in EPSG:32614.*, not EPSG:5070; run: gdalwarp", crs="EPSG:32614")
    refused("none.tif", "has no CRS; if it is EPSG:5070, run: gdal_edit", crs=None)
    ten = Affine(10, 0, ORIGIN_X, 0, -10, ORIGIN_Y)
    refused("ten.tif", "pixels of 10 x 10 m, not 30 x 30 m", transform=ten)
    off = Affine(30, 0, ORIGIN_X + 10, 0, -30, ORIGIN_Y)
    refused("off.tif", "not a whole number of pixels from the national CDL's", transform=off)
    refused("2021_confidence.tif", "is of 2021 by its name, and not of 2022; .*{year}")
    with pytest.raises(InputError, match=r"2023.tif: no such file; correct the path in the recipe"):
        check_confidence(str(tmp_path / "{year}.tif"), 2023)
    (tmp_path / "text.tif").write_text("no raster")
    with pytest.raises(InputError, match=r"text.tif cannot be read"):
        check_confidence(str(tmp_path / "text.tif"), 2022)
    fits = check_confidence(str(write_confidence(tmp_path / "fits.tif", values, *at)), 2022)
    ids = [chip_id(ROW + i, COL + j) for i in range(3) for j in range(3)]
    require_chips(fits, [one for one in ids if one[-1] in "01" and one[6] in "01"])
    with pytest.raises(InputError, match=r"does not cover 5 of 9 chips: chip_230_342, .*same extent"):
        require_chips(fits, ids)
    with pytest.raises(InputError, match=r"does not cover 6 of 6 chips: .* and 1 more"):
        require_chips(fits, [chip_id(ROW - 1, col) for col in range(6)])


def slow_clustering(ids: list[str], classes: NDArray[np.intp], of: int) -> float:
    places = np.array([chip_position(name) for name in ids])
    shares = []
    for one in np.flatnonzero(classes == of):
        others = np.delete(np.arange(len(ids)), one)
        squares = ((places[others] - places[one]) ** 2).sum(axis=1)
        near = others[squares <= np.sort(squares)[:NEIGHBOURS][-1]]
        shares.append((classes[near] == of).mean())
    return float(np.mean(shares))


@given(st.data())
def test_clustering_is_that_of_all_pairs_in_any_order(data: st.DataObject) -> None:
    cells = data.draw(
        st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=30, unique=True)
    )
    ids = [chip_id(row, col) for row, col in cells]
    classes = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(ids), max_size=len(ids))))
    table = clustering(ids, classes)
    assert list(table["dominated"]) == np.bincount(classes, minlength=14).tolist()
    for of, row in table.iterrows():
        if row["dominated"] < 2:
            assert row[["clustering", "clustering_by_chance"]].isna().all()
        else:
            assert row["clustering"] == pytest.approx(slow_clustering(ids, classes, int(of)))
            assert row["clustering_by_chance"] == (row["dominated"] - 1) / (len(ids) - 1)
    order = data.draw(st.permutations(range(len(ids))))
    shuffled = clustering([ids[i] for i in order], classes[list(order)])
    np.testing.assert_allclose(shuffled.to_numpy(float), table.to_numpy(float), rtol=1e-12)


def test_clustering_of_5000_chips_of_none_and_of_one() -> None:
    ids = [chip_id(row, col) for row in range(100, 150) for col in range(200, 300)]
    halves = np.where(np.arange(5000) % 100 < 50, 3, 4)
    table = clustering(ids, halves)
    assert (table.loc[[3, 4], "clustering"] > 0.97).all()
    assert table.loc[[3, 4], "clustering_by_chance"].tolist() == [2499 / 4999] * 2
    assert table.drop(index=[3, 4])["clustering"].isna().all()
    shuffled = clustering(ids, np.random.default_rng(1).permutation(halves))
    assert shuffled.loc[[3, 4], "clustering"].tolist() == pytest.approx([0.5, 0.5], abs=0.02)
    one_class = clustering(ids, np.full(5000, 7))
    assert one_class.loc[7].tolist() == [5000, 1, 1]
    for few in ([], ids[:1]):
        table = clustering(few, np.full(len(few), 3))
        assert table["dominated"].sum() == len(few)
        assert table["clustering"].isna().all()


def test_the_largest_class_is_no_gap_and_the_lower_of_equals() -> None:
    counts = np.zeros((4, 14), np.int64)
    counts[0, [0, 5]] = 50_000, 176
    counts[1, [3, 9]] = 25_088
    counts[2, 0] = 50_176
    counts[3, 13] = 50_176
    assert largest_classes(counts).tolist() == [5, 3, 0, 13]
    assert largest_classes(counts[:0]).tolist() == []
