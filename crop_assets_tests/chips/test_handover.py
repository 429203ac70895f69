"""The stages of a tile one after another in memory, and each of them from the files of the one before."""

import datetime as dt
import hashlib
import io
from collections.abc import Hashable
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import rasterio
from odc.geo.geobox import GeoBox
from PIL import Image

from crop_assets.chip_grid import chip_blocks, chip_id, chip_position, raster_geobox
from crop_assets.chips.assets import chip_quality, chips, filtered_chips, reprojected_tiles
from crop_assets.chips.plots import Thumbnail, cell_corner
from crop_assets.chips.warp import bilinear, nearest, source_pixels
from crop_assets.classes import CDL_CLASSES
from crop_assets.coordinates import blocks_of_chips
from crop_assets.errors import InputError
from crop_assets.graph.metadata import Picture
from crop_assets.graph.stage import TileRun
from crop_assets.hls import NODATA, POSITIONS, QA_BAND, QA_NODATA, REFLECTANCE_BANDS
from crop_assets.layout import Layout
from crop_assets.recipe import DatasetRecipe
from crop_assets.schemas import LABEL_QUALITY
from crop_assets_tests.chips.test_clip import part
from crop_assets_tests.chips.test_warp import CHIP, block, read_at, utm_box, write
from crop_assets_tests.small_world import digests
from resources.cdl import CdlReleases, raster_sha256
from resources.store import DatasetStore
from resources.tiff import read_layout, tiff_pieces

YEAR, TILE = 2022, "14SPJ"
OUTSIDE = "chip_230_345"
# more than a batch of 16, of which only the first is handed over
IDS = [*(chip_id(row, col) for row in range(221, 226) for col in range(335, 339)), OUTSIDE]
CDL_GRID = chip_blocks(range(221, 231), range(335, 346))
SCENES = [f"HLS.S30.T{TILE}.{YEAR}{day}T172020.v2.0" for day in ("077", "157", "267")]
LAYOUTS: list[dict[str, Any]] = [
    {"tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate", "predictor": 2},
    {"tiled": True, "blockxsize": 128, "blockysize": 512, "compress": "zstd", "sparse_ok": True},
    {"blockysize": 7, "compress": "deflate", "predictor": 2},
    {"compress": "lzw", "predictor": 2},
    {},
]


@dataclass(frozen=True)
class Tile:
    """The inputs of a tile's stages, and what its files hold."""

    bands: pd.DataFrame
    selected: pd.DataFrame
    cdl: pd.DataFrame
    releases: CdlReleases
    codes: np.ndarray
    pixels: dict[tuple[str, str], tuple[np.ndarray, GeoBox]]
    sources: Path

    @property
    def fmasks(self) -> pd.DataFrame:
        return self.bands[self.bands["band"] == QA_BAND].reset_index(drop=True)

    @property
    def tile_map(self) -> pd.DataFrame:
        return pd.DataFrame({"chip_id": IDS})

    @property
    def labels(self) -> pd.DataFrame:
        return LABEL_QUALITY.empty()

    def run(self, root: Path, pool: Executor, **recipe: Any) -> TileRun:
        """A run over a new store that has the band files."""
        store = DatasetStore(root=str(root))
        for path in self.bands["path"]:
            store.write_bytes(path, (self.sources / path).read_bytes())
        text: list[str] = []
        log = text.append
        return TileRun(store, DatasetRecipe(dataset="some", **recipe), log, log, YEAR, TILE, pool)

    def quality(self, run: TileRun) -> pd.DataFrame:
        return chip_quality(run, self.fmasks, self.tile_map, self.labels).frame

    def reprojected(self, run: TileRun) -> pd.DataFrame:
        return reprojected_tiles(run, self.bands, self.tile_map).frame

    def chips(self, run: TileRun, bands: pd.DataFrame) -> pd.DataFrame:
        made = chips(run, bands, self.selected, self.tile_map, self.cdl, self.releases).frame
        # as a table has it that is read back
        return made.astype({name: "int64" for name in made if name.startswith(("fit", "na_", "class_"))})


@pytest.fixture(scope="module")
def tile(tmp_path_factory: pytest.TempPathFactory) -> Tile:
    """Three scenes, each on a grid of its own, in many layouts, with holes, and with some bands below zero."""
    root = tmp_path_factory.mktemp("tile")
    rng = np.random.default_rng(11)
    full = utm_box(CHIP, size=1200)
    boxes = [full, full[100:900, 50:1100], utm_box(CHIP, 32615, 1100)]
    layout, rows, pixels = Layout("some", YEAR), [], {}
    for position, scene, box in zip(POSITIONS, SCENES, boxes, strict=True):
        for band in (*REFLECTANCE_BANDS, QA_BAND):
            is_qa = band == QA_BAND
            values = rng.integers(-200 if band in ("B02", "B11") else 0, 4000, box.shape).astype(np.int16)
            if is_qa:
                values = rng.choice([0, 2, 8, 64, 96], box.shape, p=[0.01, 0.01, 0.01, 0.9, 0.07])
                values = values.astype(np.uint8)
            fill = QA_NODATA if is_qa else NODATA
            values[rng.random(box.shape) < 1e-4] = fill
            if position == "last" or band == "B04":
                # a swath's edge, so that some blocks have no data
                values[:, box.shape[1] // 2 :] = fill
            path = root / layout.band(scene, band)
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path, values, box, fill, **LAYOUTS[len(rows) % len(LAYOUTS)])
            pixels[position, band] = values, box
            date = dt.datetime.strptime(scene.split(".")[3][:7], "%Y%j").date()
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            rows.append([scene, position, date, band, layout.band(scene, band), digest])
    bands = pd.DataFrame(rows, columns=["scene_id", "position", "date", "band", "path", "sha256"])
    selected = bands[["scene_id", "position", "date"]].drop_duplicates(ignore_index=True).assign(fit=True)
    codes = rng.choice(list(CDL_CLASSES), CDL_GRID.shape).astype(np.uint8)
    raster = write(root / "2022_30m_cdls.tif", codes, CDL_GRID, None)
    cdl = pd.DataFrame([{"sha256": raster_sha256(raster)}])
    return Tile(bands, selected, cdl, CdlReleases(source=str(raster)), codes, pixels, root)


@dataclass(frozen=True)
class Done:
    run: TileRun
    root: Path
    quality: pd.DataFrame
    bands: pd.DataFrame
    chips: pd.DataFrame
    sheet: Picture


@pytest.fixture(scope="module")
def at_once(tile: Tile, tmp_path_factory: pytest.TempPathFactory, pool: Executor) -> Done:
    """The stages of one run, which hand over."""
    root = tmp_path_factory.mktemp("at_once")
    run = tile.run(root, pool)
    quality = tile.quality(run)
    bands = tile.reprojected(run)
    made = tile.chips(run, bands)
    filtered = filtered_chips(run, made, quality, tile.labels)
    return Done(run, root, quality, bands, made, filtered.metadata["contact_sheet"])


def expected_block(tile: Tile, position: str, band: str, chip: str) -> np.ndarray:
    values, box = tile.pixels[position, band]
    is_qa = band == QA_BAND
    at = source_pixels(block(*chip_position(chip)), box)
    if at is None:
        return np.full((224, 224), QA_NODATA if is_qa else NODATA)
    return nearest(read_at(values, at), at) if is_qa else bilinear(read_at(values, at), at, NODATA)


def test_every_chip_has_the_pixels_of_its_scenes(tile: Tile, at_once: Done) -> None:
    table = at_once.chips.set_index("chip_id")
    assert list(table.index) == sorted(IDS)
    below_zero = 0
    for chip, row in table.iterrows():
        bands = [
            expected_block(tile, position, band, str(chip))
            for position in POSITIONS
            for band in REFLECTANCE_BANDS
        ]
        fmask = [expected_block(tile, position, QA_BAND, str(chip)) for position in POSITIONS]
        with rasterio.open(at_once.root / row["merged_path"]) as raster:
            image = raster.read()
            assert raster_geobox(raster) == block(*chip_position(str(chip)))
        np.testing.assert_array_equal(image, [np.where(b == NODATA, b, np.maximum(b, 0)) for b in bands])
        with rasterio.open(at_once.root / row["fmask_path"]) as raster:
            np.testing.assert_array_equal(raster.read(), fmask)
        with rasterio.open(at_once.root / row["mask_path"]) as raster:
            codes = part(tile.codes, CDL_GRID, str(chip))
            np.testing.assert_array_equal(raster.read(1), np.vectorize(CDL_CLASSES.get)(codes))
        missing = np.any([b == NODATA for b in bands] + [b == QA_NODATA for b in fmask], axis=0)
        assert row["na_count"] == missing.sum()
        assert [row[f"fill_{position}"] for position in POSITIONS] == [(b == QA_NODATA).sum() for b in fmask]
        below_zero += sum(((b < 0) & (b != NODATA)).any() for b in bands)
    assert below_zero > 20
    assert table.loc[OUTSIDE, "na_count"] == 224 * 224
    fmask_alone = at_once.quality.set_index("chip_id")
    for name in (f"{count}_{position}" for count in ("cloud", "shadow", "fill") for position in POSITIONS):
        assert fmask_alone[name].astype(int).to_dict() == table[name].astype(int).to_dict()


def test_what_is_handed_over_is_taken(at_once: Done) -> None:
    # the blocks of a band under a chip without any data are not stored, so that they are not handed over either
    assert not [key for key in at_once.run.handover if not isinstance(key[1], GeoBox)]


@pytest.mark.parametrize("coverage", ["chips", "full"])
def test_each_stage_alone_makes_the_same_files(
    tile: Tile, at_once: Done, tmp_path: Path, pool: Executor, coverage: str
) -> None:
    run = tile.run(tmp_path, pool, coverage=coverage)
    quality = tile.quality(run)
    bands = tile.reprojected(replace(run, handover={}))
    made = tile.chips(replace(run, handover={}), bands)
    filtered = filtered_chips(replace(run, handover={}), made, quality, tile.labels)
    assert filtered.metadata["contact_sheet"] == at_once.sheet
    pd.testing.assert_frame_equal(quality, at_once.quality)
    pd.testing.assert_frame_equal(made, at_once.chips)
    ours, theirs = digests(tmp_path), digests(at_once.root)
    if coverage == "full":
        of_tiles = f"{Layout('some', YEAR).root}/tiles_reprojected/"
        ours, theirs = (
            {name: digest for name, digest in found.items() if not name.startswith(of_tiles)}
            for found in (ours, theirs)
        )
    else:
        pd.testing.assert_frame_equal(bands, at_once.bands)
    assert ours == theirs


def test_files_with_only_the_blocks_under_the_chips_make_the_same_chips(
    tile: Tile, at_once: Done, tmp_path: Path, pool: Executor
) -> None:
    run = tile.run(tmp_path, pool)
    left_out = 0
    for row in tile.bands.itertuples():
        path, (_, box) = tmp_path / row.path, tile.pixels[row.position, row.band]
        data = path.read_bytes()
        layout = read_layout(lambda start, stop, data=data: data[start:stop], len(data))
        wanted = blocks_of_chips(tuple(IDS), box, layout.form.block_shape)
        places = zip(layout.offsets.tolist(), layout.counts.tolist(), strict=True)
        blocks = [data[at : at + size] if n in wanted else None for n, (at, size) in enumerate(places)]
        left_out += sum(block is None for block in blocks)
        path.write_bytes(b"".join(tiff_pieces(layout.form, [block or None for block in blocks])))
    assert left_out > 50
    tile.quality(run)
    tile.chips(run, tile.reprojected(run))
    made = {name: digest for name, digest in digests(tmp_path).items() if "/tiles/" not in name}
    assert len(made) == 21 + 3 * len(IDS)
    theirs = digests(at_once.root)
    assert made == {name: theirs[name] for name in made}


def test_checksums_and_sizes_in_the_tables_are_those_of_the_files(at_once: Done) -> None:
    store = at_once.run.store
    for path, size, digest in at_once.bands[["path", "bytes", "sha256"]].itertuples(index=False):
        assert (store.size(path), store.sha256(path)) == (size, digest)
    for name in ("merged", "mask", "fmask"):
        for path, digest in at_once.chips[[f"{name}_path", f"{name}_sha256"]].itertuples(index=False):
            assert store.sha256(path) == digest


def test_a_file_that_was_replaced_meanwhile_is_read_from_the_store(
    tile: Tile, at_once: Done, tmp_path: Path, pool: Executor
) -> None:
    run = tile.run(tmp_path, pool)
    tile.quality(run)
    bands = tile.reprojected(run)
    # B04 of the first date in place of B03
    first = bands["position"] == "first"
    here, other = (bands.index[first & (bands["band"] == band)][0] for band in ("B03", "B04"))
    run.store.write_bytes(bands.loc[here, "path"], run.store.read_bytes(bands.loc[other, "path"]))
    bands.loc[here, "sha256"] = bands.loc[other, "sha256"]
    made = tile.chips(run, bands).set_index("chip_id")
    with rasterio.open(tmp_path / made.loc[CHIP, "merged_path"]) as raster:
        np.testing.assert_array_equal(raster.read(2), raster.read(3))
        third = raster.read(3)
    with rasterio.open(at_once.root / made.loc[CHIP, "merged_path"]) as raster:
        np.testing.assert_array_equal(raster.read(3), third)
        assert (raster.read(2) != third).any()


def test_a_band_file_that_was_replaced_meanwhile_is_read_from_the_store(
    tile: Tile, at_once: Done, tmp_path: Path, pool: Executor
) -> None:
    run = tile.run(tmp_path, pool)
    tile.quality(run)
    bands = tile.bands.copy()
    at = bands.index[(bands["position"] == "first") & (bands["band"] == QA_BAND)][0]
    values, box = tile.pixels["first", QA_BAND]
    write(tmp_path / bands.loc[at, "path"], np.full_like(values, 8), box, QA_NODATA, compress="deflate")
    bands.loc[at, "sha256"] = "another"
    made = replace(tile, bands=bands).reprojected(run)
    chip = tile.chips(run, made).set_index("chip_id").loc[CHIP]
    assert chip["shadow_first"] == 224 * 224


def test_little_is_handed_over_of_a_large_tile(tile: Tile, tmp_path: Path, pool: Executor) -> None:
    run = tile.run(tmp_path, pool, coverage="full")
    tile.quality(run)
    bands = tile.reprojected(run)
    keys: list[tuple[Hashable, ...]] = list(run.handover)  # type: ignore[arg-type]
    blocks = [key for key in keys if len(key) == 3]
    assert {key[2] for key in blocks} == set(sorted(IDS)[:16])
    assert len(blocks) <= 16 * len(bands)
    assert bands["blocks"].max() > 16


def test_the_thumbnails_of_a_sheet_are_handed_over(
    tile: Tile, at_once: Done, tmp_path: Path, pool: Executor
) -> None:
    run = tile.run(tmp_path, pool)
    quality = tile.quality(run)
    made = tile.chips(run, tile.reprojected(run))
    thumbnails = {key: value for key, value in run.handover.items() if isinstance(value, Thumbnail)}
    assert len(thumbnails) == len(IDS)
    assert sum(small.colour.nbytes + small.mask.nbytes for small in thumbnails.values()) < 45_000 * len(IDS)
    # what is in memory is drawn, not the files, of which one is replaced and one is damaged
    first, second = made["merged_path"][:2]
    run.store.write_bytes(first, run.store.read_bytes(second))
    run.store.write_bytes(second, b"no raster")
    sheet = filtered_chips(run, made, quality, tile.labels).metadata["contact_sheet"]
    assert sheet == at_once.sheet
    # the files are read where another chip is meant
    other = made.assign(merged_sha256=["0" * 64, *made["merged_sha256"][1:]])
    run.handover.update(thumbnails)
    assert filtered_chips(run, other, quality, tile.labels).metadata["contact_sheet"] != at_once.sheet


def test_a_file_that_cannot_be_read_is_blank_on_the_sheet(
    tile: Tile, at_once: Done, tmp_path: Path, pool: Executor
) -> None:
    run = tile.run(tmp_path, pool)
    quality = tile.quality(run)
    made = tile.chips(run, tile.reprojected(run))
    run.store.write_bytes(made.loc[0, "mask_path"], b"no raster")
    sheet = filtered_chips(replace(run, handover={}), made, quality, tile.labels).metadata["contact_sheet"]
    left, top = cell_corner(0, len(IDS))
    pixels = np.asarray(Image.open(io.BytesIO(sheet.data)).convert("RGB")).astype(int)
    # above the words
    assert abs(pixels[top + 10 : top + 45, left + 10 : left + 110] - 235).max() < 8
    assert sheet != at_once.sheet


def test_a_damaged_band_is_an_error_that_names_it(tile: Tile, tmp_path: Path, pool: Executor) -> None:
    run = tile.run(tmp_path, pool)
    tile.quality(run)
    path = tmp_path / tile.bands.loc[0, "path"]
    with rasterio.open(path) as raster:
        offset = int(raster.get_tag_item("BLOCK_OFFSET_2_2", "TIFF", bidx=1))
    data = bytearray(path.read_bytes())
    data[offset + 5 : offset + 25] = bytes(byte ^ 0xFF for byte in data[offset + 5 : offset + 25])
    path.write_bytes(data)
    name = path.name.replace(".", r"\.")
    with pytest.raises(InputError, match=rf"{name} cannot be read \(.*materialize downloaded_bands again"):
        tile.reprojected(run)
    assert not (tmp_path / Layout("some", YEAR).reprojected(SCENES[0], "B02")).exists()
