import contextlib
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import rasterio
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from rasterio.enums import ColorInterp
from rasterio.errors import RasterioError
from rasterio.windows import Window

from crop_assets.chip_grid import CRS, chip_blocks, chip_geobox, chip_window, raster_geobox
from crop_assets.chips.clip import Chip, chip_files
from crop_assets.chips.rasters import BlockReader, encode
from crop_assets.classes import class_colormap
from crop_assets.hls import NODATA, QA_NODATA, REFLECTANCE_BANDS
from crop_assets_tests.chips.test_warp import CHIP, SEEDS, utm_box, write
from resources.tiff import DEFLATE, Form, Layout, read_layout, tiff_pieces

SIDES = (16, 128, 224, 256, 512)
COMPRESSIONS = ("none", "lzw", "packbits", "deflate", "zstd")
DECODED_HERE = ("deflate", "zstd")
DATES = ["2022-04-21", "2022-06-20", "2022-09-03"]
TAGS = {"TILE": "14SPJ", "SCENES": "a b c", "CDL": "2022 <&\"'>"}
in_one_folder = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60
)


def layout_of(path: Path) -> Layout:
    data = path.read_bytes()
    return read_layout(lambda start, stop: data[start:stop], len(data))


def open_with(path: Path) -> contextlib.closing[BlockReader]:
    return contextlib.closing(BlockReader(path, {}))


@st.composite
def layouts(draw: st.DrawFn) -> dict[str, Any]:
    """Options by which GDAL writes a band."""
    compress = draw(st.sampled_from(COMPRESSIONS))
    options: dict[str, Any] = {"compress": compress, "sparse_ok": draw(st.booleans())}
    if compress in ("lzw", "deflate", "zstd"):
        options["predictor"] = draw(st.sampled_from([1, 2]))
    if draw(st.booleans()):
        options |= {"tiled": True, "blockxsize": draw(st.sampled_from(SIDES))}
        options["blockysize"] = draw(st.sampled_from(SIDES))
    elif draw(st.booleans()):
        options["blockysize"] = draw(st.integers(1, 400))
    if draw(st.booleans()):
        options["bigtiff"] = "yes"
    return options


def some_values(rng: np.random.Generator, shape: tuple[int, int], dtype: str, nodata: int) -> np.ndarray:
    """Reflectance or flags, with a part without data so that a sparse file lacks blocks."""
    values = np.cumsum(rng.integers(-30, 31, shape), axis=1).astype(dtype)
    top, left = rng.integers(0, shape[0]), rng.integers(0, shape[1])
    values[top:, left:] = nodata
    return values


@in_one_folder
@given(
    SEEDS,
    layouts(),
    st.tuples(st.integers(1, 600), st.integers(1, 600)),
    st.sampled_from([("int16", -9999), ("uint8", 255), ("uint16", 65535), ("int16", None), ("uint8", None)]),
    st.booleans(),
)
def test_a_window_of_a_file_in_any_layout_is_read_as_gdal_reads_it(
    tmp_path: Path,
    seed: int,
    options: dict[str, Any],
    shape: tuple[int, int],
    kind: tuple[str, int | None],
    overviews: bool,
) -> None:
    rng = np.random.default_rng(seed)
    dtype, nodata = kind
    box = GeoBox(shape, utm_box(CHIP).affine, "EPSG:32614")
    values = some_values(rng, shape, dtype, nodata or 0)
    path = write(tmp_path / "a.tif", values, box, nodata, **options)
    if overviews and max(shape) > 2:
        with rasterio.open(path, "r+") as raster:
            raster.build_overviews([2])
    grids: dict[Any, Any] = {}
    with contextlib.closing(BlockReader(path, grids)) as reader, rasterio.open(path) as raster:
        # only a file that GDAL does not read leaves its grid for others
        assert bool(grids) == (options["compress"] in DECODED_HERE)
        assert (reader.nodata, reader.grid, reader.name) == (raster.nodata, raster_geobox(raster), "a.tif")
        windows = [Window(0, 0, shape[1], shape[0])]
        for _ in range(5):
            (top, bottom), (left, right) = (sorted(rng.integers(0, size + 1, 2)) for size in shape)
            if top < bottom and left < right:
                windows.append(Window(int(left), int(top), int(right - left), int(bottom - top)))
        for window in windows:
            ours = reader.read(window)
            assert ours.dtype == dtype
            np.testing.assert_array_equal(ours, raster.read(1, window=window))


@pytest.mark.parametrize("nodata", ["nan", "-9999.5", "70000", "-1e3", "1_000", "x"])
def test_a_nodata_value_that_is_no_whole_number_of_the_type_is_read_as_gdal_reads_it(
    tmp_path: Path, nodata: str
) -> None:
    box = utm_box(CHIP, size=100)
    form = layout_of(write(tmp_path / "form.tif", np.zeros(box.shape, np.int16), box, 7, tiled=True)).form
    odd = Form(form.shape, form.block_shape, "int16", DEFLATE, nodata=nodata, georeference=form.georeference)
    (tmp_path / "a.tif").write_bytes(b"".join(tiff_pieces(odd, [None])))
    with open_with(tmp_path / "a.tif") as reader, rasterio.open(tmp_path / "a.tif") as raster:
        np.testing.assert_equal(reader.nodata, raster.nodata)
        window = Window(0, 0, 100, 100)
        np.testing.assert_array_equal(reader.read(window), raster.read(1, window=window))


def test_bands_of_one_scene_share_a_grid_and_others_do_not(tmp_path: Path) -> None:
    grids: dict[Any, Any] = {}
    boxes = [utm_box(CHIP), utm_box(CHIP), utm_box(CHIP, 32615), utm_box(CHIP, size=390)]
    found = []
    for at, box in enumerate(boxes):
        path = write(tmp_path / f"{at}.tif", np.zeros(box.shape, np.int16), box, -9999, compress="deflate")
        with contextlib.closing(BlockReader(path, grids)) as reader:
            found.append(reader.grid)
    assert found == boxes
    assert found[0] is found[1]
    assert len(grids) == 3


def replace_block(path: Path, index: int, block: bytes) -> None:
    """Replace a compressed block of a one-band file."""
    layout, data = layout_of(path), path.read_bytes()
    blocks: list[bytes | None] = [
        data[offset : offset + count] or None
        for offset, count in zip(layout.offsets, layout.counts, strict=True)
    ]
    blocks[index] = block
    path.write_bytes(b"".join(tiff_pieces(layout.form, blocks)))


Damage = Callable[[bytes], bytes]
DAMAGES: dict[str, Damage] = {
    "the beginning": lambda block: bytes(byte ^ 0xFF for byte in block[:20]) + block[20:],
    "the middle": lambda block: block[:200] + bytes(byte ^ 0xFF for byte in block[200:220]) + block[220:],
    "cut off": lambda block: block[: len(block) // 2],
    "too short": lambda block: zlib.compress(zlib.decompress(block)[:-2]),
    "too long": lambda block: zlib.compress(zlib.decompress(block) + b"\0\0"),
    "another checksum": lambda block: block[:-1] + bytes([block[-1] ^ 1]),
    "not compressed": lambda block: zlib.decompress(block),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_block_is_an_error_and_its_neighbours_are_read(tmp_path: Path, damage: str) -> None:
    box = utm_box(CHIP, size=400)
    values = np.random.default_rng(3).integers(0, 4000, box.shape).astype(np.int16)
    path = write(tmp_path / "a.tif", values, box, -9999, compress="deflate", tiled=True, blockxsize=128)
    layout, data = layout_of(path), path.read_bytes()
    index = layout.form.blocks_across + 1
    block = data[layout.offsets[index] : layout.offsets[index] + layout.counts[index]]
    replace_block(path, index, DAMAGES[damage](block))
    height, width = layout.form.block_shape
    with open_with(path) as reader:
        with pytest.raises(RasterioError, match="row 1 and column 1 is damaged"):
            reader.read(Window(width + 5, height + 5, 10, 10))
        others = Window(0, 0, box.shape[1], height)
        np.testing.assert_array_equal(reader.read(others), values[:height])


@pytest.mark.parametrize("pixels", [224 * 224 - 1, 224 * 224 + 1])
def test_a_zstandard_block_of_another_size_is_an_error(tmp_path: Path, pixels: int) -> None:
    box = chip_geobox(CHIP)
    sides = {"tiled": True, "blockxsize": 224, "blockysize": 224, "compress": "zstd"}
    path = write(tmp_path / "a.tif", np.ones(box.shape, np.uint8), box, 255, **sides)
    replace_block(path, 0, bytes(imagecodecs.zstd_encode(bytes(pixels), level=1)))
    with open_with(path) as reader, pytest.raises(RasterioError, match="damaged"):
        reader.read(Window(0, 0, 224, 224))


def test_blocks_that_were_dropped_from_memory_are_read_again(tmp_path: Path) -> None:
    box = utm_box(CHIP, size=3000)
    values = np.random.default_rng(4).integers(0, 4000, box.shape).astype(np.int16)
    path = write(
        tmp_path / "a.tif", values, box, -9999, compress="zstd", tiled=True, blockxsize=256, blockysize=256
    )
    with open_with(path) as reader:
        for _ in range(2):
            for row in range(0, 3000, 500):
                ours = reader.read(Window(0, row, 3000, 500))
                np.testing.assert_array_equal(ours, values[row : row + 500])


@pytest.mark.parametrize("dtype", ["int16", "uint8"])
def test_a_block_is_found_compressed_if_it_is_the_one_that_would_be_written(
    tmp_path: Path, dtype: str
) -> None:
    grid = chip_blocks(range(223, 225), range(337, 340))
    values = np.random.default_rng(5).integers(0, 200, grid.shape).astype(dtype)
    values[224:, 448:] = 201
    predictor = 2 if dtype == "int16" else 1
    alike = {"compress": "zstd", "predictor": predictor, "tiled": True, "blockxsize": 224, "blockysize": 224}
    others = {
        "deflated": alike | {"compress": "deflate"},
        "other blocks": alike | {"blockxsize": 112},
        "the other predictor": alike | {"predictor": 3 - predictor},
        "none": {"compress": "none"},
    }
    for name, options in {"alike": alike, **others}.items():
        path = write(tmp_path / f"{name}.tif", values, grid, 201, sparse_ok=True, **options)
        with open_with(path) as reader:
            for row, col in ((223, 337), (224, 338), (224, 339)):
                window = chip_window(grid.affine, row, col)
                block = reader.read_block(window)
                rows, cols = window.toslices()
                np.testing.assert_array_equal(block.pixels, values[rows, cols])
                # the last is not stored
                assert (block.encoded is not None) == (name == "alike" and (row, col) != (224, 339))
                if block.encoded:
                    assert imagecodecs.zstd_decode(block.encoded) == imagecodecs.zstd_decode(
                        encode(block.pixels)
                    )


def a_chip(rng: np.random.Generator) -> Chip:
    image = rng.integers(0, 5000, (18, 224, 224)).astype(np.int16)
    image[3] = NODATA
    image[5, :100] = NODATA
    fmask = rng.choice([0, 2, 64, 255], (3, 224, 224)).astype(np.uint8)
    fmask[1] = QA_NODATA
    mask = rng.integers(0, 14, (224, 224)).astype(np.uint8)
    return Chip(image, mask, fmask, np.zeros((3, 224, 224), bool))


def written_by_gdal(path: Path, values: np.ndarray, names: tuple[str, ...], **profile: Any) -> None:
    palette = profile.get("photometric") == "palette"
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        dtype=values.dtype,
        count=len(values),
        height=224,
        width=224,
        crs=CRS,
        transform=chip_geobox(CHIP).affine,
        blockysize=224,
        interleave="band",
        **profile,
    ) as raster:
        raster.write(values)
        raster.descriptions = names
        raster.update_tags(**TAGS)
        if palette:
            raster.write_colormap(1, class_colormap())
        else:
            raster.colorinterp = [ColorInterp.gray] + [ColorInterp.undefined] * (len(values) - 1)


def test_the_files_of_a_chip_are_as_gdal_writes_them(tmp_path: Path) -> None:
    chip = a_chip(np.random.default_rng(6))
    for name, pieces in chip_files(chip, CHIP, DATES, TAGS).items():
        (tmp_path / f"{name}.tif").write_bytes(b"".join(pieces))
    zstd, plain = {"compress": "zstd", "predictor": 2}, {"photometric": "minisblack"}
    bands = tuple(f"{date}_{band}" for date in DATES for band in REFLECTANCE_BANDS)
    fmasks = tuple(f"{date}_Fmask" for date in DATES)
    files = {
        "merged": (chip.image, bands, {"nodata": NODATA} | zstd | plain),
        "mask": (chip.mask[np.newaxis], ("class",), {"compress": "deflate", "photometric": "palette"}),
        "fmask": (chip.fmask, fmasks, {"nodata": QA_NODATA, "compress": "zstd"} | plain),
    }
    for name, (values, names, profile) in files.items():
        written_by_gdal(tmp_path / "gdal.tif", values, names, **profile)
        with rasterio.open(tmp_path / f"{name}.tif") as ours, rasterio.open(tmp_path / "gdal.tif") as theirs:
            np.testing.assert_array_equal(ours.read(), theirs.read())
            for what in ("profile", "crs", "transform", "descriptions", "nodatavals", "colorinterp"):
                assert getattr(ours, what) == getattr(theirs, what), (name, what)
            for band in (0, *ours.indexes):
                assert ours.tags(band) == theirs.tags(band)
                assert ours.tags(band, ns="IMAGE_STRUCTURE") == theirs.tags(band, ns="IMAGE_STRUCTURE")
            assert ours.tags()["CDL"] == TAGS["CDL"]
            if name == "mask":
                assert ours.colormap(1) == theirs.colormap(1)
        np.testing.assert_array_equal(
            np.squeeze(tifffile.imread(tmp_path / f"{name}.tif")), np.squeeze(values)
        )
