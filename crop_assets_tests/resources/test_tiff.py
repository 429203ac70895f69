"""GDAL and tifffile write and read the files; the module does without both."""

import io
import struct
import tracemalloc
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import rasterio
import tifffile
from affine import Affine
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from resources.errors import IntegrityError
from resources.geodata import open_geotiff
from resources.tiff import DEFLATE, HEAD_BYTES, Form, Layout, Tag, georeference, read_layout, tiff_pieces

MIB = 1 << 20
PLACE = Affine(30, 0, -2356095, 0, -30, 3172605)
GEOREFERENCE = (33_550, 33_922, 34_264, 34_735, 34_736, 34_737)
COMPRESSIONS = ("none", "lzw", "deflate", "zstd", "packbits")
WITH_PREDICTOR = ("lzw", "deflate", "zstd")
SHORT, LONG, DOUBLE, LONG8 = 3, 4, 12, 16

Pixels = NDArray[Any]
in_one_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)


class Reads:
    """A file that notes what is read of it."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.asked: list[tuple[int, int]] = []

    def __call__(self, start: int, stop: int) -> bytes:
        assert 0 <= start < stop <= len(self.data)
        self.asked.append((start, stop))
        return self.data[start:stop]


def layout_of(data: bytes) -> Layout:
    """The layout of a file, by few reads of which the first is of HEAD_BYTES."""
    read = Reads(data)
    layout = read_layout(read, len(data))
    assert read.asked[0] == (0, min(HEAD_BYTES, len(data)))
    assert sum(stop - start for start, stop in read.asked) <= 3 * MIB
    return layout


def require_sound(layout: Layout, size: int) -> None:
    """All blocks are inside the file and apart, as Python's integers have it, and can be decoded in some memory."""
    places = sorted(zip(layout.offsets.tolist(), layout.counts.tolist(), strict=True))
    assert len(places) == layout.form.blocks
    end = 0
    for offset, count in places:
        if count == 0:
            assert offset == 0
            continue
        assert end <= offset <= offset + count <= size
        end = offset + count
    rows, cols = layout.form.block_shape
    assert min(rows, cols, *layout.form.shape) > 0
    assert rows * cols * np.dtype(layout.form.dtype).itemsize <= 64 * MIB


# Files that GDAL and tifffile write


@st.composite
def pixels(draw: st.DrawFn, dtypes: Sequence[str] = ("uint8", "int16", "uint16")) -> Pixels:
    """Noise with a part that is 0, so that sparse files leave out blocks."""
    dtype = np.dtype(draw(st.sampled_from(dtypes)))
    height, width = draw(st.integers(1, 700)), draw(st.integers(1, 700))
    noise = np.random.default_rng(draw(st.integers(0, 99)))
    values = noise.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, (height, width), endpoint=True).astype(
        dtype
    )
    values[draw(st.integers(0, height)) :, draw(st.integers(0, width)) :] = 0
    return values


@st.composite
def profiles(draw: st.DrawFn) -> dict[str, Any]:
    """Options of GDAL's drivers GTiff and COG."""
    driver = draw(st.sampled_from(["GTiff", "COG"]))
    compress = draw(st.sampled_from(COMPRESSIONS if driver == "GTiff" else COMPRESSIONS[:-1]))
    predictor = draw(st.integers(1, 2)) if compress in WITH_PREDICTOR else 1
    side = st.integers(8, 32).map(lambda sixteenths: 16 * sixteenths)
    profile: dict[str, Any] = {
        "driver": driver,
        "compress": compress,
        "bigtiff": draw(st.sampled_from(["YES", "NO"])),
        "sparse_ok": draw(st.booleans()),
    }
    if draw(st.booleans()):
        profile["nodata"] = draw(st.integers(0, 255))
    if driver == "COG":
        overviews = draw(st.sampled_from(["AUTO", "NONE"]))
        return profile | {
            "blocksize": draw(side),
            "overviews": overviews,
            "predictor": ["NO", "YES"][predictor - 1],
        }
    if compress in WITH_PREDICTOR:
        profile["predictor"] = predictor
    if draw(st.booleans()):
        return profile | {"tiled": True, "blockxsize": draw(side), "blockysize": draw(side)}
    return profile | {"tiled": False, "blockysize": draw(st.integers(1, 800))}


def written(path: Path, values: Pixels, pyramid: bool = False, **profile: Any) -> bytes:
    """A file by GDAL, in EPSG:5070."""
    height, width = values.shape
    place = {"crs": "EPSG:5070", "transform": PLACE, "dtype": values.dtype, "count": 1}
    profile = {"driver": "GTiff", **place, "width": width, "height": height, **profile}
    with rasterio.open(path, "w", **profile) as raster:
        raster.write(values, 1)
    if pyramid:
        with rasterio.open(path, "r+") as raster:
            raster.build_overviews([2, 4], Resampling.nearest)
    return path.read_bytes()


def require_as_tifffile(data: bytes) -> Layout:
    """The layout of a file, which is that which tifffile finds."""
    layout = layout_of(data)
    require_sound(layout, len(data))
    form = layout.form
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        page = tiff.pages[0]
        assert isinstance(page, tifffile.TiffPage)
        assert form.shape == (page.imagelength, page.imagewidth)
        assert np.dtype(form.dtype) == page.dtype
        assert (form.compression, form.predictor) == (page.compression, page.predictor)
        assert form.tiled == page.is_tiled
        strip = min(page.rowsperstrip, page.imagelength), page.imagewidth
        assert form.block_shape == ((page.tilelength, page.tilewidth) if page.is_tiled else strip)
        assert layout.offsets.tolist() == list(page.dataoffsets)
        assert layout.counts.tolist() == list(page.databytecounts)
        nodata = page.tags.get(42_113)
        assert form.nodata == (nodata.value.strip() if nodata else "")
        found = {tag.code: tag for tag in form.georeference}
        assert set(found) == {code for code in GEOREFERENCE if code in page.tags}
        for code, tag in found.items():
            theirs = page.tags[code]
            place = theirs.valueoffset
            assert (tag.kind, tag.count) == (theirs.dtype, theirs.count)
            assert tag.data == data[place : place + theirs.valuebytecount]
    return layout


@in_one_folder
@given(values=pixels(), profile=profiles(), overviews=st.booleans())
def test_a_file_by_gdal_is_read_as_tifffile_reads_it(
    tmp_path: Path, values: Pixels, profile: dict[str, Any], overviews: bool
) -> None:
    data = written(tmp_path / "a.tif", values, overviews and profile["driver"] == "GTiff", **profile)
    require_as_tifffile(data)


@dataclass
class Parts:
    """A file in parts: the kind, number and bytes of its tags, and its blocks."""

    tags: dict[int, tuple[int, int, bytes]]
    blocks: list[bytes]

    @classmethod
    def of(cls, data: bytes) -> "Parts":
        with tifffile.TiffFile(io.BytesIO(data)) as tiff:
            page = tiff.pages[0]
            assert isinstance(page, tifffile.TiffPage)
            tags = {
                tag.code: (tag.dtype, tag.count, data[tag.valueoffset : tag.valueoffset + tag.valuebytecount])
                for tag in page.tags
            }
            places = zip(page.dataoffsets, page.databytecounts, strict=True)
            return cls(tags, [data[offset : offset + count] for offset, count in places])

    @property
    def codes(self) -> tuple[int, int]:
        """The tags of the offsets and sizes of blocks."""
        return (324, 325) if 324 in self.tags else (273, 279)


@dataclass
class Written:
    """How a file is put together again: the directory before or after the blocks, these in any order, with gaps; tags
    that are not true, or left out."""

    wide: bool = False
    directory_last: bool = False
    order: str = "ascending"
    seed: int = 0
    gap: int = 0
    lies: dict[int, tuple[int, int, bytes] | None] = field(default_factory=dict)

    def file(self, parts: Parts) -> bytes:
        order = [index for index, block in enumerate(parts.blocks) if block]
        if self.order == "descending":
            order.reverse()
        elif self.order == "scattered":
            Random(self.seed).shuffle(order)
        luck = Random(self.seed)
        head = 16 if self.wide else 8
        length = len(self._directory(parts, [0] * len(parts.blocks), 0))
        body, offsets = [], [0] * len(parts.blocks)
        at = head if self.directory_last else head + length
        for index in order:
            gap = luck.randrange(self.gap + 1)
            body += [b"\xee" * gap, parts.blocks[index]]
            offsets[index] = at + gap
            at += gap + len(parts.blocks[index])
        start = at if self.directory_last else head
        directory = self._directory(parts, offsets, start)
        first = (
            struct.pack("<2sHHHQ", b"II", 43, 8, 0, start)
            if self.wide
            else struct.pack("<2sHI", b"II", 42, start)
        )
        return first + (b"".join(body) + directory if self.directory_last else directory + b"".join(body))

    def _directory(self, parts: Parts, offsets: list[int], start: int) -> bytes:
        kind, letter = (LONG8, "Q") if self.wide else (LONG, "I")
        counts = [len(block) for block in parts.blocks]
        at_code, size_code = parts.codes
        tags: dict[int, tuple[int, int, bytes] | None] = {
            **parts.tags,
            at_code: (kind, len(offsets), struct.pack(f"<{len(offsets)}{letter}", *offsets)),
            size_code: (LONG, len(counts), struct.pack(f"<{len(counts)}I", *counts)),
            **self.lies,
        }
        kept = sorted((code, tag) for code, tag in tags.items() if tag)
        inline, counter, entry, after = (8, "<Q", "<HHQ8s", "<Q") if self.wide else (4, "<H", "<HHI4s", "<I")
        at = start + struct.calcsize(counter) + len(kept) * struct.calcsize(entry) + struct.calcsize(after)
        entries, values = b"", b""
        for code, (kind, count, value) in kept:
            if len(value) > inline:
                values += value
                value = struct.pack(f"<{letter}", at + len(values) - len(value))
            entries += struct.pack(entry, code, kind, count, value)
        return struct.pack(counter, len(kept)) + entries + struct.pack(after, 0) + values


@st.composite
def arrangements(draw: st.DrawFn) -> Written:
    return Written(
        wide=draw(st.booleans()),
        directory_last=draw(st.booleans()),
        order=draw(st.sampled_from(["ascending", "descending", "scattered"])),
        seed=draw(st.integers(0, 99)),
        gap=draw(st.sampled_from([0, 5, 20_000])),
    )


@in_one_folder
@given(
    values=pixels(),
    tile=st.none() | st.tuples(*[st.integers(8, 32).map(lambda sixteenths: 16 * sixteenths)] * 2),
    rows=st.integers(1, 800),
    compression=st.sampled_from(COMPRESSIONS),
    predictor=st.booleans(),
    bigtiff=st.booleans(),
    arrangement=arrangements(),
)
def test_blocks_and_directory_are_found_wherever_they_are(
    values: Pixels,
    tile: tuple[int, int] | None,
    rows: int,
    compression: str,
    predictor: bool,
    bigtiff: bool,
    arrangement: Written,
) -> None:
    out = io.BytesIO()
    blocks = {"tile": tile} if tile else {"rowsperstrip": min(rows, len(values))}
    tifffile.imwrite(
        out,
        values,
        compression=compression if compression != "none" else None,
        predictor=predictor and compression in WITH_PREDICTOR,
        bigtiff=bigtiff,
        photometric="minisblack",
        metadata=None,
        **blocks,
    )
    require_as_tifffile(out.getvalue())
    moved = arrangement.file(Parts.of(out.getvalue()))
    layout = require_as_tifffile(moved)
    np.testing.assert_array_equal(tifffile.imread(io.BytesIO(moved)), values)
    assert [moved[offset : offset + count] for offset, count in places(layout)] == Parts.of(
        out.getvalue()
    ).blocks


def places(layout: Layout) -> Iterator[tuple[int, int]]:
    return zip(layout.offsets.tolist(), layout.counts.tolist(), strict=True)


def test_one_block_takes_one_read(tmp_path: Path) -> None:
    read = Reads(written(tmp_path / "a.tif", np.full((1, 1), 7, "uint8")))
    layout = read_layout(read, len(read.data))
    assert (layout.form.blocks, layout.counts.tolist()) == (1, [1])
    assert read.asked == [(0, len(read.data))]


@pytest.mark.parametrize(
    "name", ["HLS.L30.T15UWP.2024283T165135.v2.0.Fmask", "HLS.S30.T13RCN.2024128T173909.v2.0.Fmask"]
)
def test_a_real_file_of_version_2_takes_one_read(real: Path, name: str) -> None:
    read = Reads((real / f"hls/{name}.tif").read_bytes())
    form = read_layout(read, len(read.data)).form
    assert read.asked == [(0, HEAD_BYTES)]
    assert (form.shape, form.block_shape, form.dtype, form.nodata) == (
        (3660, 3660),
        (256, 256),
        "uint8",
        "255",
    )
    require_as_tifffile(read.data)


@pytest.mark.parametrize("band", ["B02", "B03", "B04", "B8A", "B11", "B12", "Fmask"])
def test_a_real_file_of_version_1_5_takes_two_reads(real: Path, band: str) -> None:
    name = "HLS.S30.T29QND.2019182.v1.5"
    read = Reads((real / f"hls/{name}/{name}.{band}.tif").read_bytes())
    form = read_layout(read, len(read.data)).form
    assert len(read.asked) == 2
    assert form.shape == (3660, 3660)
    require_as_tifffile(read.data)


# Partial files


HOSTILE = st.lists(
    st.sampled_from(
        [*"<>&\"'\n\r\t\\ ;=:é漢😀\x00\x01\x1f\x7f\ud800\ufffe", "]]>", "<![CDATA[", "&amp;", "</Item>", "\0"]
    )
    | st.text(max_size=3),
    max_size=12,
).map("".join)


def as_xml_has_it(text: str) -> str:
    """A text without what XML cannot have, and as GDAL reads it: without white space before it."""
    kept = [
        letter for letter in text if letter in "\t\n\r" or (letter >= " " and letter not in "\ufffe\uffff")
    ]
    return "".join(letter for letter in kept if not "\ud800" <= letter <= "\udfff").lstrip("\t\n\v\f\r ")


def is_divided(form: Form) -> bool:
    """Whether GDAL may show the only strip of a file as several: it does for some that are not compressed."""
    return form.compression == 1 and not form.tiled and form.blocks == 1


def require_partial(path: Path, original: bytes, chosen: Sequence[bool], texts: dict[str, str]) -> None:
    """A file of some blocks of another has the pixels of these, and nodata elsewhere."""
    layout = layout_of(original)
    nodata = layout.form.nodata or "77"
    form = replace(layout.form, nodata=nodata, metadata=texts)
    stored = [
        original[offset : offset + count] if take and count else None
        for take, (offset, count) in zip(chosen, places(layout), strict=True)
    ]
    path.write_bytes(b"".join(tiff_pieces(form, stored)))
    (path.parent / "original.tif").write_bytes(original)
    with open_geotiff(path.parent / "original.tif") as raster:
        values, profile, crs = raster.read(1), raster.profile, raster.crs
    mask = np.zeros(form.shape, bool)
    rows, cols = form.block_shape
    for index, block in enumerate(stored):
        top, left = index // form.blocks_across * rows, index % form.blocks_across * cols
        mask[top : top + rows, left : left + cols] = block is not None
    expected = np.where(mask, values, np.array(float(nodata)).astype(values.dtype))
    with open_geotiff(path) as raster:
        np.testing.assert_array_equal(raster.read(1), expected)
        assert raster.crs == crs
        assert (raster.transform, raster.dtypes[0]) == (profile["transform"], profile["dtype"])
        if not is_divided(form):
            assert raster.block_shapes == [form.block_shape]
        assert raster.nodata == float(nodata)
        assert raster.overviews(1) == []
        read = raster.tags()
        assert {name: read.get(name, "") for name in texts} == {
            name: as_xml_has_it(text) for name, text in texts.items()
        }
    # tifffile reads one uncompressed block from its offset, even if it is not there
    if form.compression != 1 or stored != [None]:
        np.testing.assert_array_equal(tifffile.imread(path), expected)
    again = require_as_tifffile(path.read_bytes())
    assert again.form == replace(form, metadata=None)
    assert [path.read_bytes()[offset : offset + count] for offset, count in places(again)] == [
        block or b"" for block in stored
    ]


@in_one_folder
@given(
    values=pixels(),
    profile=profiles(),
    share=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    seed=st.randoms(),
    texts=st.dictionaries(st.sampled_from(["SOURCE", "CID", "PARTIAL", 'a <b> & "c" é']), HOSTILE),
)
def test_some_blocks_of_a_file_are_a_file(
    tmp_path: Path,
    values: Pixels,
    profile: dict[str, Any],
    share: float,
    seed: Random,
    texts: dict[str, str],
) -> None:
    data = written(tmp_path / "a.tif", values, **profile)
    blocks = layout_of(data).form.blocks
    require_partial(tmp_path / "partial.tif", data, [seed.random() < share for _ in range(blocks)], texts)


def test_some_blocks_of_real_files_are_files(real: Path, tmp_path: Path) -> None:
    files = sorted((real / "hls").rglob("*.tif"))
    assert len(files) == 9
    for path in files:
        data = path.read_bytes()
        luck = Random(path.name)
        chosen = [luck.random() < 0.2 for _ in range(layout_of(data).form.blocks)]
        require_partial(tmp_path / path.name, data, chosen, {"SOURCE": path.name})


# Files as rasterio writes them


def described(path: Path) -> dict[str, Any]:
    """What rasterio and tifffile read of a file."""
    with open_geotiff(path) as raster:
        read = {
            "profile": dict(raster.profile),
            "colours": raster.colorinterp,
            "descriptions": raster.descriptions,
            "tags": raster.tags(),
            "band tags": [raster.tags(band) for band in raster.indexes],
            "structure": raster.tags(ns="IMAGE_STRUCTURE"),
            "pixels": raster.read().tolist(),
            "palette": raster.colormap(1) if raster.colorinterp[0].name == "palette" else None,
        }
    return read | {"by tifffile": tifffile.imread(path).tolist()}


def stored_blocks(path: Path) -> list[bytes | None]:
    return [block or None for block in Parts.of(path.read_bytes()).blocks]


@in_one_folder
@given(
    values=pixels(),
    count=st.integers(1, 18),
    profile=profiles().filter(lambda profile: profile["driver"] == "GTiff"),
    corner=st.tuples(st.integers(-3_000_000, 3_000_000), st.integers(-3_000_000, 3_000_000)),
    resolution=st.sampled_from([30, 10, 0.5]),
    texts=st.lists(HOSTILE.map(as_xml_has_it), min_size=18, max_size=18),
)
def test_a_file_of_several_bands_is_as_rasterio_writes_it(
    tmp_path: Path,
    values: Pixels,
    count: int,
    profile: dict[str, Any],
    corner: tuple[int, int],
    resolution: float,
    texts: list[str],
) -> None:
    small = values[:100, :100]
    left, top = corner
    theirs, ours = tmp_path / "theirs.tif", tmp_path / "ours.tif"
    options = profile | {
        "interleave": "band",
        "photometric": "minisblack",
        "crs": "EPSG:5070",
        "count": count,
    }
    place = Affine(resolution, 0, left, 0, -resolution, top)
    height, width = small.shape
    with rasterio.open(
        theirs, "w", width=width, height=height, dtype=small.dtype, transform=place, **options
    ) as raster:
        for band in raster.indexes:
            raster.write(np.roll(small, band), band)
            raster.set_band_description(band, texts[band - 1])
        raster.update_tags(DATE="2022-06-11", SOURCE=texts[0])
    model = layout_of(written(tmp_path / "model.tif", np.zeros((1, 1), "uint8"))).form
    form = replace(
        layout_of(written(tmp_path / "single.tif", small, **profile)).form,
        count=count,
        georeference=georeference(model.georeference, left, top, resolution),
        descriptions=tuple(texts[:count]),
        metadata={"DATE": "2022-06-11", "SOURCE": texts[0]},
    )
    assume(not is_divided(form))
    ours.write_bytes(b"".join(tiff_pieces(form, stored_blocks(theirs))))
    assert described(ours) == described(theirs)


@in_one_folder
@given(
    values=pixels(dtypes=["uint8"]),
    palette=st.dictionaries(
        st.integers(0, 255), st.tuples(*[st.integers(0, 255)] * 3, st.just(255)), min_size=1
    ),
    nodata=st.none() | st.integers(0, 255),
)
def test_a_palette_is_as_rasterio_writes_it(
    tmp_path: Path, values: Pixels, palette: dict[int, tuple[int, int, int, int]], nodata: int | None
) -> None:
    theirs, ours = tmp_path / "theirs.tif", tmp_path / "ours.tif"
    height, width = values.shape
    size = {"width": width, "height": height, "count": 1, "dtype": "uint8"}
    with rasterio.open(
        theirs, "w", compress="zstd", nodata=nodata, crs="EPSG:5070", transform=PLACE, **size
    ) as raster:
        raster.write(values, 1)
        raster.write_colormap(1, palette)
    form = replace(layout_of(theirs.read_bytes()).form, palette=palette)
    ours.write_bytes(b"".join(tiff_pieces(form, stored_blocks(theirs))))
    assert described(ours) == described(theirs)


def test_blocks_that_python_compresses_are_read(tmp_path: Path) -> None:
    values = np.random.default_rng(1).integers(-9999, 9999, (3, 224, 224)).astype("int16")
    blocks = [zlib.compress(part.tobytes()) for band in values for part in np.array_split(band, 7)]
    form = Form((224, 224), (32, 224), "int16", DEFLATE, tiled=False, count=3, nodata="-9999")
    path = tmp_path / "a.tif"
    path.write_bytes(b"".join(tiff_pieces(form, blocks)))
    with pytest.warns(NotGeoreferencedWarning), open_geotiff(path) as raster:
        np.testing.assert_array_equal(raster.read(), values)
    np.testing.assert_array_equal(tifffile.imread(path), values)


def test_a_transformation_matrix_gives_way_to_another_corner(tmp_path: Path) -> None:
    data = written(tmp_path / "a.tif", np.full((16, 16), 7, "uint8"), transform=Affine(3, 4, 5, -4, 3, 6))
    layout = layout_of(data)
    assert 34_264 in [tag.code for tag in layout.form.georeference]
    form = replace(layout.form, georeference=georeference(layout.form.georeference, 60, 90, 30))
    path = tmp_path / "moved.tif"
    path.write_bytes(b"".join(tiff_pieces(form, stored_blocks(tmp_path / "a.tif"))))
    with open_geotiff(path) as raster:
        assert raster.transform == Affine(30, 0, 60, 0, -30, 90)
    assert 34_264 not in Parts.of(path.read_bytes()).tags


def test_a_wrong_number_of_blocks_is_refused() -> None:
    form = Form((32, 32), (16, 16), "uint8", 1)
    for number in (0, 3, 5):
        with pytest.raises(ValueError, match=f"{number} blocks for 4"):
            list(tiff_pieces(form, [bytes(256)] * number))


# Lies


def longs(*values: int) -> tuple[int, int, bytes]:
    return LONG, len(values), struct.pack(f"<{len(values)}I", *values)


def longs8(*values: int) -> tuple[int, int, bytes]:
    return LONG8, len(values), struct.pack(f"<{len(values)}Q", *values)


@pytest.fixture(scope="module")
def tiled(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    """A file of four tiles."""
    values = np.arange(1024, dtype="int16").reshape(32, 32)
    tiles = {"tiled": True, "blockxsize": 16, "blockysize": 16, "compress": "deflate", "nodata": -9999}
    return Parts.of(written(tmp_path_factory.mktemp("tiled") / "a.tif", values, **tiles))


@pytest.fixture(scope="module")
def striped(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    """A file of four strips."""
    values = np.arange(1024, dtype="int16").reshape(32, 32)
    strips = {"tiled": False, "blockysize": 8, "compress": "deflate"}
    return Parts.of(written(tmp_path_factory.mktemp("striped") / "a.tif", values, **strips))


LIES: dict[str, dict[int, tuple[int, int, bytes] | None]] = {
    "no width": {256: None},
    "no height": {257: None},
    "no bits": {258: None},
    "no compression": {259: None},
    "no tile width": {322: None},
    "no tile height": {323: None},
    "no offsets": {324: None},
    "no sizes": {325: None},
    "width 0": {256: longs(0)},
    "height 0": {257: longs(0)},
    "width of 4 billion": {256: longs(0xFFFFFFFF)},
    "height of 4 billion": {257: longs(0xFFFFFFFF)},
    "width of 2^63": {256: longs8(1 << 63)},
    "width as a text": {256: (2, 2, b"9\0")},
    "width as a number of 8 bytes": {256: (DOUBLE, 1, struct.pack("<d", 32))},
    "width of no value": {256: (LONG, 0, b"")},
    "width of 2^32 - 1 values": {256: (LONG, 0xFFFFFFFF, bytes(4))},
    "width of two values": {256: longs(32, 32)},
    "another width": {256: longs(100)},
    "tiles of no width": {322: longs(0)},
    "tiles of 4 billion": {322: longs(0xFFFFFFFF)},
    "tiles of a million by a million": {
        322: longs(1 << 20),
        323: longs(1 << 20),
        324: longs(2000),
        325: longs(9),
    },
    "tiles of a million by a million, four": {256: longs(2), 322: longs(1), 323: longs(1 << 20)},
    "offsets as a text": {324: (2, 4, b"123\0")},
    "offsets as numbers of 8 bytes": {324: (DOUBLE, 4, bytes(32))},
    "offsets of an unknown kind": {324: (99, 4, bytes(16))},
    "no value of offsets": {324: (LONG, 0, b"")},
    "2^32 - 1 offsets": {324: (LONG, 0xFFFFFFFF, bytes(4))},
    "three offsets": {324: longs(1000, 1100, 1200)},
    "three offsets and sizes": {324: longs(1000, 1100, 1200), 325: longs(9, 9, 9)},
    "offsets in the header": {324: longs(0, 1, 2, 3), 325: longs(1, 1, 1, 1)},
    "offsets after the end": {324: longs(1000, 1100, 1200, 10_000_000)},
    "offset of 4 billion": {324: longs(1000, 1100, 1200, 0xFFFFFFFF)},
    "offset of 2^63": {324: longs8(1000, 1100, 1200, 1 << 63)},
    "offset of 2^63 - 1": {324: longs8(1000, 1100, 1200, (1 << 63) - 1)},
    "offset of 2^63 - 9, size 9": {324: longs8(1000, 1100, 1200, (1 << 63) - 9), 325: longs(9, 9, 9, 9)},
    "offset of 2^64 - 1": {324: longs8(1000, 1100, 1200, (1 << 64) - 1)},
    "offsets of 2^63 - 1 alone": {324: longs8(*[(1 << 63) - 1] * 4)},
    "blocks at one place": {324: longs(1000, 1000, 1000, 1000)},
    "blocks that overlap": {324: longs(1000, 1020, 1040, 1008), 325: longs(9, 9, 9, 9)},
    "a block with no place": {324: longs(1000, 1020, 1040, 0)},
    "a place without a block": {325: longs(9, 9, 9, 0)},
    "a size after the end": {325: longs(9, 9, 9, 1 << 20)},
    "a size of 4 billion": {325: longs(9, 9, 9, 0xFFFFFFFF)},
    "a size of 2^63": {325: longs8(9, 9, 9, 1 << 63)},
    "a size of 2^64 - 1": {325: longs8(9, 9, 9, (1 << 64) - 1)},
    "a size of 2^63 - 1": {325: longs8(9, 9, 9, (1 << 63) - 1)},
    "32 bits": {258: longs(32)},
    "bits of no value": {258: (SHORT, 0, b"")},
    "a number format": {339: longs(3)},
    "three bands": {277: longs(3)},
    "no band": {277: longs(0)},
    "JPEG": {259: longs(7)},
    "an unknown compression": {259: longs(65_000)},
    "predictor of numbers": {317: longs(3)},
    "predictor without a compression that has it": {259: longs(1), 317: longs(2)},
    "bits in another order": {266: longs(2)},
    "nodata that is no number": {42_113: (2, 6, b"dozen\0")},
    "nodata with an underscore": {42_113: (2, 4, b"1_0\0")},
    "nodata as numbers": {42_113: longs(5)},
    "nodata without a text": {42_113: (2, 1, b"\0")},
    "nodata of two texts": {42_113: (2, 4, b"1\x002\0")},
    "nodata of a megabyte": {42_113: (2, 1 << 20, b"9" * (1 << 20))},
    "a georeference of a megabyte": {34_737: (2, 1 << 20, b"9" * (1 << 20))},
    "a georeference of another kind": {33_550: (99, 3, bytes(24))},
    "strips and tiles": {273: longs(1000)},
}


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("lie", LIES)
def test_a_directory_that_lies_is_refused(tiled: Parts, lie: str, wide: bool) -> None:
    data = Written(wide=wide, lies=LIES[lie]).file(tiled) + bytes(4_000)
    assert layout_of(Written(wide=wide).file(tiled) + bytes(4_000)).form.blocks == 4
    with pytest.raises(IntegrityError):
        read_layout(Reads(data), len(data))


STRIP_LIES: dict[str, dict[int, tuple[int, int, bytes] | None]] = {
    "no offsets": {273: None},
    "no sizes": {279: None},
    "all rows in one strip": {278: None},
    "no row a strip": {278: longs(0)},
    "2^63 rows a strip": {278: longs8(1 << 63)},
    "rows as a text": {278: (2, 2, b"8\0")},
    "another number of rows": {278: longs(12)},
    "tiles that are strips": {322: longs(16), 323: longs(16)},
    "a tile height": {323: longs(16)},
    "sizes of tiles": {325: longs(9, 9, 9, 9)},
    "offsets of tiles": {324: longs(1000, 1100, 1200, 1300)},
    "no compression, and the sizes of another": {259: longs(1)},
}


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("lie", STRIP_LIES)
def test_strips_that_lie_are_refused(striped: Parts, lie: str, wide: bool) -> None:
    assert layout_of(Written(wide=wide).file(striped)).form.block_shape == (8, 32)
    data = Written(wide=wide, lies=STRIP_LIES[lie]).file(striped)
    with pytest.raises(IntegrityError):
        read_layout(Reads(data), len(data))


def test_a_tag_that_comes_twice_is_refused(tiled: Parts) -> None:
    data = Written().file(tiled)
    first = data.index(struct.pack("<HH", 256, tiled.tags[256][0]), 8)
    for code in (257, 258, 324):
        twice = data[:first] + struct.pack("<H", code) + data[first + 2 :]
        with pytest.raises(IntegrityError, match="twice"):
            read_layout(Reads(twice), len(twice))


@pytest.mark.parametrize("wide", [False, True])
def test_a_directory_in_a_wrong_place_is_refused(tiled: Parts, wide: bool) -> None:
    data = Written(wide=wide).file(tiled)
    place, letter, head = (8, "Q", 16) if wide else (4, "I", 8)
    size = len(data)
    for at in (
        0,
        1,
        2,
        place,
        place + 2,
        size - 1,
        size,
        size + 1,
        1 << 31,
        (1 << 32) - 1,
        (1 << 63),
        (1 << 64) - 1,
    ):
        if at < 1 << (64 if wide else 32):
            lying = data[:place] + struct.pack(f"<{letter}", at) + data[head:]
            with pytest.raises(IntegrityError):
                read_layout(Reads(lying), size)


@pytest.mark.parametrize("number", [0, 257, 0xFFFF, 1 << 32, (1 << 64) - 1])
def test_a_directory_of_no_or_very_many_entries_is_refused(tiled: Parts, number: int) -> None:
    for wide in (False, True):
        data = Written(wide=wide).file(tiled)
        if number <= 0xFFFF or wide:
            lying = (
                data[:16] + struct.pack("<Q", number) + data[24:]
                if wide
                else data[:8] + struct.pack("<H", number) + data[10:]
            )
            with pytest.raises(IntegrityError, match=f"directory of {number} entries"):
                read_layout(Reads(lying), len(lying))


def a_head(tmp_path: Path, wide: bool) -> bytes:
    """A file of 225 blocks and four overviews, as those of HLS."""
    values = np.zeros((3660, 3660), "int16")
    values[::300, ::300] = 9
    return written(
        tmp_path / "a.tif",
        values,
        driver="COG",
        blocksize=256,
        compress="deflate",
        predictor="YES",
        nodata=-9999,
        bigtiff="YES" if wide else "NO",
    )


def refused(read: Callable[[int, int], bytes], size: int) -> bool:
    try:
        read_layout(read, size)
    except IntegrityError as error:
        return bool(str(error))
    return False


@pytest.mark.parametrize("wide", [False, True])
def test_a_head_that_is_cut_anywhere_is_refused(tmp_path: Path, wide: bool) -> None:
    data = a_head(tmp_path, wide)
    layout = require_as_tifffile(data)
    first = min(int(layout.offsets.min()), HEAD_BYTES)
    assert first > 3_000
    # the first directory and its values take less than 6,000 bytes, those of the overviews the rest
    for end in [*range(6_000), *range(6_000, first, 97)]:
        assert refused(lambda start, stop, end=end: data[start : min(stop, end)], end)  # type: ignore[misc]
        assert refused(lambda start, stop, end=end: data[start : min(stop, end)], len(data))  # type: ignore[misc]
        # what was never written: it may be read if no tag that matters is there
        lost = data[:end] + bytes(first - end) + data[first:]
        try:
            found = read_layout(Reads(lost), len(lost))
        except IntegrityError:
            continue
        require_sound(found, len(lost))


@pytest.mark.parametrize("change", [-1, 1, 5_000, -16])
def test_an_answer_of_another_length_is_refused(tiled: Parts, change: int) -> None:
    data = Written().file(tiled) + bytes(HEAD_BYTES)

    def read(start: int, stop: int) -> bytes:
        return (data + bytes(5_000))[start : stop + change]

    with pytest.raises(IntegrityError):
        read_layout(read, len(data))
    with pytest.raises(IntegrityError):
        read_layout(lambda start, stop: b"", len(data))


VALUES = st.sampled_from(
    [0, 1, 2, 3, 7, 8, 9, 16, 255, 256, 65_535, 1 << 16, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1]
)
WIDE = (
    st.sampled_from([1 << 32, (1 << 53) + 1, (1 << 63) - 9, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]) | VALUES
)
CODES = [
    254,
    256,
    257,
    258,
    259,
    262,
    266,
    273,
    277,
    278,
    279,
    284,
    317,
    322,
    323,
    324,
    325,
    339,
    *GEOREFERENCE,
    42_113,
]
CLAIMS = st.none() | st.one_of(
    st.lists(VALUES, min_size=1, max_size=5).map(lambda values: longs(*values)),
    st.lists(WIDE, min_size=1, max_size=5).map(lambda values: longs8(*values)),
    st.tuples(st.integers(0, 20), WIDE.map(lambda count: min(count, 0xFFFFFFFF)), st.binary(max_size=40)),
)


@settings(max_examples=600)
@given(
    lies=st.dictionaries(st.sampled_from(CODES), CLAIMS, min_size=1, max_size=4),
    arrangement=arrangements(),
    strips=st.booleans(),
)
def test_no_claim_of_a_directory_leads_out_of_the_file(
    tiled: Parts,
    striped: Parts,
    lies: dict[int, tuple[int, int, bytes] | None],
    arrangement: Written,
    strips: bool,
) -> None:
    data = replace(arrangement, lies=lies).file(striped if strips else tiled)
    read = Reads(data)
    try:
        layout = read_layout(read, len(data))
    except IntegrityError as error:
        assert str(error)
    else:
        require_sound(layout, len(data))


TEXTS = st.sampled_from(
    [b"0\0", b"-9999\0", b"nan\0", b"5.5\0", b"1e3\0", b" 7 \0", b"99999\0", b"+3\0", b"7", b"inf\0", b".5\0"]
)
SMALL = st.sampled_from([0, 1, 2, 3, 4, 5, 8, 9, 16, 30, 31, 32, 33, 48, 255, 256, 32_773, 32_946, 50_000])
LIKELY = st.none() | st.one_of(
    st.lists(SMALL, min_size=1, max_size=4).map(lambda values: longs(*values)),
    st.lists(SMALL, min_size=1, max_size=4).map(lambda values: longs8(*values)),
    TEXTS.map(lambda text: (2, len(text), text)),
    st.lists(st.sampled_from([0.0, 1.0, 30.0, -30.0]), min_size=3, max_size=6).map(
        lambda values: (DOUBLE, len(values), struct.pack(f"<{len(values)}d", *values))
    ),
)


def as_gdal_reads(path: Path) -> tuple[list[list[int]], str, str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with open_geotiff(path) as raster:
            where = f"{raster.transform!r} {raster.crs} {raster.nodata} {raster.block_shapes} {raster.dtypes}"
            return raster.read(1).tolist(), where, str(raster.count)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=600)
@given(
    lies=st.dictionaries(
        st.sampled_from([*CODES, 255, 274, 280, 305, 320, 338, 347]), LIKELY, min_size=1, max_size=3
    ),
    arrangement=arrangements(),
    which=st.sampled_from(["tiled", "striped", "uncompressed", "lzw"]),
)
def test_where_gdal_reads_a_file_it_reads_its_blocks_in_the_same_way(
    tmp_path: Path,
    tiled: Parts,
    striped: Parts,
    lies: dict[int, tuple[int, int, bytes] | None],
    arrangement: Written,
    which: str,
) -> None:
    """What is refused here may be fetched as a complete file; what is not must have the same pixels."""
    parts = {"tiled": tiled, "striped": striped}.get(which)
    if parts is None:
        values = np.arange(1024, dtype="uint16").reshape(32, 32)
        options: dict[str, Any] = {"compress": "lzw", "predictor": 2} if which == "lzw" else {"nodata": 9}
        parts = Parts.of(written(tmp_path / "model.tif", values, blockysize=8, **options))
    data = replace(arrangement, lies=lies).file(parts)
    try:
        layout = read_layout(Reads(data), len(data))
    except IntegrityError:
        return
    original, copy = tmp_path / "original.tif", tmp_path / "copy.tif"
    original.write_bytes(data)
    copy.write_bytes(
        b"".join(tiff_pieces(layout.form, [data[at : at + count] or None for at, count in places(layout)]))
    )
    try:
        expected = as_gdal_reads(original)
    except RasterioError:
        return
    assert as_gdal_reads(copy) == expected


@settings(max_examples=300)
@given(head=st.binary(max_size=400), wide=st.booleans(), size=st.integers(0, 1 << 62))
def test_no_bytes_lead_out_of_a_file(head: bytes, wide: bool, size: int) -> None:
    """After the first bytes the file is zeros, or these again."""
    start = b"II+\0\x08\0\0\0" if wide else b"II*\0"

    def read(begin: int, end: int) -> bytes:
        assert 0 <= begin <= end <= size
        piece = (start + head)[begin:end]
        return piece + bytes(end - begin - len(piece))

    try:
        layout = read_layout(read, size)
    except IntegrityError:
        return
    require_sound(layout, size)


def test_tags_that_are_far_apart_take_little_memory(tiled: Parts) -> None:
    """Every tag claims all that it may have, at places of its own in a file of a terabyte."""
    size, entries, read = 1 << 40, b"", 0
    for number, code in enumerate(CODES):
        entries += struct.pack(
            "<HHQQ", code, LONG8, 1 << 16 if code in (273, 279, 324, 325) else 200, (number + 1) << 30
        )
    head = b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, len(CODES)) + entries

    def endless(start: int, stop: int) -> bytes:
        nonlocal read
        read += stop - start
        piece = head[start:stop]
        return piece + b"\x01" * (stop - start - len(piece))

    tracemalloc.start()
    try:
        with pytest.raises(IntegrityError):
            read_layout(endless, size)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert read <= 3 * MIB
    assert peak < 16 * MIB


def test_a_tag_has_its_bytes_as_the_file_does(tiled: Parts) -> None:
    tags = {tag.code: tag for tag in layout_of(Written().file(tiled)).form.georeference}
    assert tags[33_550] == Tag(33_550, DOUBLE, 3, struct.pack("<3d", 30, 30, 0))


def test_a_file_with_a_tag_twice_is_refused() -> None:
    data = b"".join(
        tiff_pieces(Form((16, 16), (16, 16), "int16", DEFLATE, predictor=2), [zlib.compress(bytes(512))])
    )
    at = data.index(struct.pack("<HHI", 317, SHORT, 1))
    before = data[at - 12 : at]
    (code,) = struct.unpack_from("<H", before)
    twice = data[: at - 12] + data[at : at + 12] + data[at:]
    assert code != 317
    with pytest.raises(IntegrityError, match="twice"):
        layout_of(twice)
