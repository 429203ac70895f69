"""One tile with eight chips, from band files to chips and their quality: this project, and what one would use instead.

Each contender reads the same 21 files of 3660 x 3660 pixels and the same CDL, and ends with an 18-band image and a
mask per chip on disk and the QA counts at hand.
"""

import contextlib
import datetime as dt
import multiprocessing
import shutil
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import odc.stac
import pandas as pd
import pyarrow as pa
import pystac
import rasterio
import rasterio.mask
import rioxarray
import shapely
import xarray as xr
from odc.geo.geobox import GeoBox

from benchmarks.world import CHIPS, TILE, YEAR, TileWorld
from crop_assets.chip_grid import CHIP_SIZE, chip_geobox
from crop_assets.chips.assets import chip_quality, chips, filtered_chips, reprojected_tiles
from crop_assets.chips.warp import source_pixels
from crop_assets.classes import CDL_CLASSES
from crop_assets.graph.stage import TileRun
from crop_assets.hls import QA_BAND, REFLECTANCE_BANDS
from crop_assets.recipe import DatasetRecipe
from crop_assets.schemas import LABEL_QUALITY
from resources.cdl import CdlReleases, raster_sha256
from resources.machine import Machine
from resources.store import DatasetStore

_TILES_A_TURN = 4
_VALID_QA = [value for value in range(255) if not value & 0b11010]
Work = Iterator[Callable[[], object]]


@contextlib.contextmanager
def ours(root: Path, workers: int = 0, dataset: str = "ours") -> Work:
    """The project's own asset functions, as a run calls them."""
    world = TileWorld(root)
    store, releases = DatasetStore(root=str(world.store)), CdlReleases(source=str(world.cdl))
    tile_map = pd.DataFrame({"chip_id": CHIPS})
    selected = world.downloaded_bands[["scene_id", "position", "date"]].drop_duplicates(ignore_index=True)
    selected = selected.assign(fit=True)
    fmasks = world.downloaded_bands[world.downloaded_bands["band"] == QA_BAND]
    release = pd.DataFrame([{"sha256": raster_sha256(world.cdl)}])
    choices = DatasetRecipe(dataset=dataset)

    # a run has one pool for all of its tiles
    with Machine(workers=workers).pool() as pool:

        def work() -> None:
            # what is handed over is of one tile
            run = TileRun(store, choices, lambda text: None, lambda text: None, YEAR, TILE, pool)
            quality = chip_quality(run, fmasks, tile_map, LABEL_QUALITY.empty()).frame
            bands = reprojected_tiles(run, world.downloaded_bands, tile_map).frame
            made = chips(run, bands, selected, tile_map, release, releases).frame
            # as a table has it that is read back
            made = pa.Table.from_pandas(made, chips.schema.arrow(), preserve_index=False).to_pandas()
            filtered_chips(run, made, quality, LABEL_QUALITY.empty())

        yield work


@contextlib.contextmanager
def over_floor(root: Path) -> Work:
    """This project and the floor in turns, so that both meet a machine's slow minutes."""
    with ours(root) as one, floor(root) as other:

        def work() -> dict[str, float]:
            seconds = []
            for each in (one, other):
                started = time.perf_counter()
                each()
                seconds.append(time.perf_counter() - started)
            return {"ours": seconds[0], "floor": seconds[1], "times": seconds[0] / seconds[1]}

        yield work


@contextlib.contextmanager
def two_runs(root: Path) -> Work:
    """Two runs of one thread at once, each in a process of its own that works on one tile after another."""
    context = multiprocessing.get_context("spawn")
    runs = []
    for number in range(2):
        here, there = context.Pipe()
        process = context.Process(target=_one_thread, args=(root, f"run{number}", there))
        process.start()
        runs.append((process, here))

    def work() -> dict[str, float]:
        started = time.perf_counter()
        for _, pipe in runs:
            pipe.send(True)
        for _, pipe in runs:
            pipe.recv()
        return {"tile": (time.perf_counter() - started) / (len(runs) * _TILES_A_TURN)}

    yield work
    for process, pipe in runs:
        pipe.send(False)
        process.join()


def _one_thread(root: Path, dataset: str, pipe: Connection) -> None:
    with ours(root, 1, dataset) as work:
        while pipe.recv():
            for _ in range(_TILES_A_TURN):
                work()
            pipe.send(True)


@contextlib.contextmanager
def floor(root: Path) -> Work:
    """Only reads and decodes the source blocks under the chips, in one thread."""
    world = TileWorld(root)
    files = [world.source(row) for row in world.downloaded_bands.to_dict("records")]
    with rasterio.open(files[0]) as raster:
        box = GeoBox(raster.shape, raster.transform, raster.crs.to_wkt())
    windows = [at.window for chip in sorted(CHIPS) if (at := source_pixels(chip_geobox(chip), box))]

    def work() -> None:
        for file in files:
            with rasterio.open(file) as raster:
                for window in windows:
                    raster.read(1, window=window)

    yield work


@contextlib.contextmanager
def reference(root: Path) -> Work:
    """The recipe that the published dataset was made by: each band reprojected whole to match the CDL of twice the
    tile's width, kept with LZW, cut out per chip by its polygon, QA in Python.
    """
    world, out = TileWorld(root), root / "reference"

    def work() -> None:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        with _open(world.cdl) as cdl:
            rows = world.downloaded_bands.to_dict("records")
            paths = {
                (row["position"], row["band"]): out / f"{row['position']}.{row['band']}.tif" for row in rows
            }
            match = None
            for row in rows:
                with _open(world.source(row)) as band:
                    if match is None:
                        # as far to each side of the tile's middle as the tile is wide
                        left, bottom, right, top = band.rio.transform_bounds(cdl.rio.crs)
                        x, y, side = (left + right) / 2, (bottom + top) / 2, max(right - left, top - bottom)
                        match = cdl.rio.clip_box(x - side, y - side, x + side, y + side)
                    how = rasterio.enums.Resampling[("nearest" if row["band"] == QA_BAND else "bilinear")]
                    matched = band.rio.reproject_match(match, resampling=how)
                    matched.rio.to_raster(paths[row["position"], row["band"]], compress="lzw")
        for chip in CHIPS:
            _reference_chip(world, out, paths, chip)

    yield work


def _open(path: Path) -> Any:
    return rioxarray.open_rasterio(path)


def _reference_chip(world: TileWorld, out: Path, paths: dict[tuple[str, str], Path], chip: str) -> None:
    shape = [shapely.box(*chip_geobox(chip).boundingbox.bbox)]
    bands = []
    for position in ("first", "middle", "last"):
        for band in REFLECTANCE_BANDS:
            with rasterio.open(paths[position, band]) as raster:
                pixels, transform = rasterio.mask.mask(raster, shape, crop=True)
                bands.append(pixels[0])
        with rasterio.open(paths[position, QA_BAND]) as raster:
            qa, _ = rasterio.mask.mask(raster, shape, crop=True)
        values, counts = np.unique(qa, return_counts=True)
        _ = [100 * n / CHIP_SIZE**2 for v, n in zip(values, counts, strict=True) if v not in _VALID_QA]
    image = np.stack(bands)
    _ = int((image == -9999).any(axis=0).sum())
    with rasterio.open(world.cdl) as raster:
        codes, _ = rasterio.mask.mask(raster, shape, crop=True)
    classes = np.vectorize(CDL_CLASSES.get)(codes[0]).astype(np.uint8)
    _save(out, chip, image.clip(0), classes, transform)


@contextlib.contextmanager
def odc_stac(root: Path) -> Work:
    """`odc.stac.load` of each chip's window, all bands and dates at once, on the chip's own grid."""
    world, out = TileWorld(root), root / "odc"
    items = [_item(world, str(scene), rows) for scene, rows in world.downloaded_bands.groupby("scene_id")]
    resampling = {"*": "bilinear", QA_BAND: "nearest"}

    def work() -> None:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        for chip in CHIPS:
            box = chip_geobox(chip)
            cube = odc.stac.load(
                items, bands=[*REFLECTANCE_BANDS, QA_BAND], geobox=box, resampling=resampling
            )
            image = np.concatenate([_time_major(cube, at) for at in range(len(items))])
            _ = [np.bincount(cube[QA_BAND].values[at].ravel(), minlength=256) for at in range(len(items))]
            _ = int((image == -9999).any(axis=0).sum())
            with rasterio.open(world.cdl) as raster:
                codes = raster.read(1, window=raster.window(*box.boundingbox.bbox))
            classes = np.vectorize(CDL_CLASSES.get)(codes).astype(np.uint8)
            _save(out, chip, image.clip(0), classes, box.affine)

    yield work


def _time_major(cube: xr.Dataset, at: int) -> Any:
    return np.stack([cube[band].values[at] for band in REFLECTANCE_BANDS])


def _item(world: TileWorld, scene: str, rows: pd.DataFrame) -> pystac.Item:
    day = dt.datetime.combine(rows["date"].iloc[0], dt.time(17), dt.UTC)
    item = pystac.Item(
        scene, shapely.geometry.mapping(shapely.box(-100, 36, -98, 38)), [-100, 36, -98, 38], day, {}
    )
    for row in rows.to_dict("records"):
        path = world.source(row)
        with rasterio.open(path) as raster:
            kind = {"data_type": raster.dtypes[0], "nodata": raster.nodata}
            place = {"proj:epsg": raster.crs.to_epsg(), "proj:shape": list(raster.shape)}
            place["proj:transform"] = list(raster.transform)[:6]
        extra = {"raster:bands": [kind], **place}
        item.add_asset(
            row["band"], pystac.Asset(str(path), media_type=pystac.MediaType.COG, extra_fields=extra)
        )
    extensions = ("projection/v1.1.0", "raster/v1.1.0")
    item.stac_extensions = [f"https://stac-extensions.github.io/{name}/schema.json" for name in extensions]
    return item


def _save(out: Path, chip: str, image: Any, classes: Any, transform: Any) -> None:
    form = {
        "driver": "GTiff",
        "width": CHIP_SIZE,
        "height": CHIP_SIZE,
        "crs": "EPSG:5070",
        "transform": transform,
    }
    with rasterio.open(
        out / f"{chip}_merged.tif", "w", count=18, dtype="int16", nodata=-9999, **form
    ) as raster:
        raster.write(image)
    with rasterio.open(out / f"{chip}.mask.tif", "w", count=1, dtype="uint8", **form) as raster:
        raster.write(classes, 1)
