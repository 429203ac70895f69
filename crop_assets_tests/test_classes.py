import csv
import re
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from crop_assets import classes
from crop_assets.classes import (
    CDL_CLASSES,
    CLASS_COLOURS,
    CLASS_COLUMNS,
    CLASSES,
    UNKNOWN,
    class_colormap,
    lookup_table,
    reclassify,
)
from crop_assets.errors import InputError


def test_thirteen_classes_after_no_data_in_the_order_of_the_specification() -> None:
    assert len(CLASSES) == 14
    assert CLASSES[0] == "No Data"
    assert (CLASSES[1], CLASSES[3], CLASSES[6], CLASSES[10], CLASSES[13]) == (
        "Natural Vegetation",
        "Corn",
        "Developed/Barren",
        "Fallow/Idle Cropland",
        "Other",
    )


def test_codes_map_as_in_the_published_table(real: Path) -> None:
    with (real / "tables" / "cdl_total_dst.csv").open(newline="") as file:
        published = {int(row["old_class_value"]): int(row["new_class_value"]) for row in csv.DictReader(file)}
    assert {0: 0, **published} == CDL_CLASSES


def test_lookup_table_marks_codes_that_the_cdl_lacks() -> None:
    table = lookup_table()
    assert (table.dtype, table.shape) == (np.uint8, (256,))
    assert {code for code in range(256) if table[code] == UNKNOWN} == set(range(256)) - set(CDL_CLASSES)


@pytest.mark.parametrize(("unknown_codes", "value"), [("refuse", UNKNOWN), ("other", 13), ("nodata", 0)])
def test_codes_without_a_class_get_the_class_of_the_recipe(unknown_codes: str, value: int) -> None:
    plain, table = lookup_table(), lookup_table(61, unknown_codes)
    unlike = set(np.flatnonzero(plain != table).tolist())
    assert unlike - {61} == (set() if value == UNKNOWN else set(range(256)) - set(CDL_CLASSES))
    assert (table[[40, 255, 90]] == value).all()
    assert table[61] == 0, "a tagged nodata value is class 0 though it is a code"
    for odd in (None, -9999, 256, float("nan"), 60.5):
        np.testing.assert_array_equal(lookup_table(odd), plain)


@given(nps.arrays(np.uint8, nps.array_shapes(max_dims=2), elements=st.sampled_from(sorted(CDL_CLASSES))))
def test_reclassify_keeps_the_shape_and_takes_each_code_to_its_class(codes: np.ndarray) -> None:
    classes = reclassify(codes, "codes", lookup_table())
    assert (classes.dtype, classes.shape) == (np.uint8, codes.shape)
    assert classes.ravel().tolist() == [CDL_CLASSES[code] for code in codes.ravel().tolist()]


def test_real_cdl_is_reclassified_pixel_for_pixel(real: Path) -> None:
    with rasterio.open(real / "cdl" / "2021_30m_cdls.tif") as raster:
        codes = raster.read(1)
    by_dict = np.array([CDL_CLASSES[code] for code in codes.ravel().tolist()], np.uint8)
    np.testing.assert_array_equal(reclassify(codes, "2021", lookup_table()), by_dict.reshape(codes.shape))


def test_the_error_of_an_unknown_code_has_its_source_and_position() -> None:
    codes = np.full((4, 5), 1, np.uint8)
    codes[2, 3] = codes[3, 0] = 40
    codes[3, 4] = 255
    expected = (
        "2022.tif, chip_001_002: CDL code 40 at (row, column) (2, 3) has no class "
        "(3 pixels have such codes: 40, 255)"
    )
    with pytest.raises(InputError, match=re.escape(expected)):
        reclassify(codes, "2022.tif, chip_001_002", lookup_table())


def test_palette_is_distinct_and_fits_matplotlib_and_geotiff(tmp_path: Path) -> None:
    colours = class_colormap()
    assert sorted(colours) == list(range(14))
    assert colours[3] == (255, 212, 0, 255)
    rgb = np.array([colours[value][:3] for value in range(14)], dtype=int)
    apart = np.abs(rgb[:, None] - rgb[None]).sum(axis=2) + 1000 * np.eye(14, dtype=int)
    assert apart.min() > 60
    assert all(re.fullmatch("#[0-9a-f]{6}", colour) for colour in CLASS_COLOURS)

    path = tmp_path / "mask.tif"
    profile = {"driver": "GTiff", "count": 1, "width": 16, "height": 16, "dtype": "uint8"}
    place = {"crs": "EPSG:5070", "transform": Affine(30, 0, 0, 0, -30, 0)}
    with rasterio.open(path, "w", **profile, **place) as raster:
        raster.write(np.zeros((1, 16, 16), np.uint8))
        raster.write_colormap(1, colours)
    with rasterio.open(path) as raster:
        assert {value: raster.colormap(1)[value] for value in colours} == colours
        assert raster.nodata is None


def test_class_columns_are_defined_once() -> None:
    assert (CLASS_COLUMNS[0], CLASS_COLUMNS[13], len(CLASS_COLUMNS)) == ("class_0", "class_13", len(CLASSES))
    package = Path(classes.__file__).parent
    assert [p.name for p in package.rglob("*.py") if "class_{" in p.read_text()] == ["classes.py"]
