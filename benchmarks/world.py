"""What is measured on: a full-size tile, a CDL raster, and finished chips, the same on each machine."""

import datetime as dt
import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.windows import Window
from scipy import ndimage

from crop_assets.chip_grid import CHIP_SIZE, CRS, chip_blocks, chip_id
from crop_assets.chips.clip import Chip, chip_files
from crop_assets.classes import CDL_CLASSES
from crop_assets.hls import POSITIONS, QA_BAND, REFLECTANCE_BANDS
from crop_assets.layout import Layout

YEAR, TILE, DATASET = 2022, "14SNG", "benchmark"
SIZE = 3660
# random ones of the tile's 226: a dataset of the published size has few neighbours
CHIPS = [
    *(chip_id(226, 314), chip_id(226, 320), chip_id(227, 312), chip_id(229, 325)),
    *(chip_id(230, 319), chip_id(233, 318), chip_id(235, 316), chip_id(238, 317)),
]
_SCENES = [f"HLS.S30.T{TILE}.{YEAR}{day:03d}T172020.v2.0" for day in (77, 157, 267)]
_FRAME = {"crs": "EPSG:32614", "transform": Affine(30, 0, 499980, 0, -30, 4200000)}
# the tile, and its neighbours on all sides
_CDL_ROWS, _CDL_COLS = range(212, 250), range(294, 332)
# of the noise of a sensor, in 0.0001 of reflectance: with it a band has the 15 to 20 MB of a real one
_GRAIN = 30
_FIELD, _SPECKLE = 14, 0.04


@dataclass(frozen=True)
class TileWorld:
    """Where the inputs of one tile lie below `root`."""

    root: Path

    @property
    def cdl(self) -> Path:
        return self.root / f"{YEAR}_30m_cdls.tif"

    @property
    def store(self) -> Path:
        return self.root / "store"

    @cached_property
    def downloaded_bands(self) -> pd.DataFrame:
        """The columns of the asset of that name which the reprojection reads."""
        layout = Layout(DATASET, YEAR)
        rows = [
            {
                "scene_id": scene,
                "position": position,
                "date": dt.datetime.strptime(scene.split(".")[3][:7], "%Y%j").date(),
                "band": band,
                "path": layout.band(scene, band),
                "sha256": hashlib.sha256(f"{scene} {band}".encode()).hexdigest(),
            }
            for scene, position in zip(_SCENES, POSITIONS, strict=True)
            for band in (*REFLECTANCE_BANDS, QA_BAND)
        ]
        return pd.DataFrame(rows)

    def source(self, row: dict[Any, Any]) -> Path:
        return self.store / str(row["path"])


def make_tile_world(root: Path, detail: float = 1) -> TileWorld:
    """Write a tile; `detail` scales the contrast and the noise of the bands, and with them the sizes of their files."""
    world = TileWorld(root)
    root.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    land = _surface(rng, (SIZE, SIZE), 40, 600) + _surface(rng, (SIZE, SIZE), 4, 250)
    land = 2000 + detail * land
    seeds = rng.integers(0, 2**32, len(world.downloaded_bands))
    with ThreadPoolExecutor(2) as pool:
        rows = world.downloaded_bands.to_dict("records")
        write = partial(_write_band, land=land, grain=detail * _GRAIN)
        list(pool.map(lambda row, seed: write(world.source(row), row["band"], seed=seed), rows, seeds))
    write_cdl(world.cdl, _CDL_ROWS, _CDL_COLS)
    return world


def _surface(
    rng: np.random.Generator, shape: tuple[int, int], width: float, height: float
) -> NDArray[np.float32]:
    surface: NDArray[np.float32] = ndimage.gaussian_filter(
        rng.standard_normal(shape, dtype=np.float32), width
    )
    surface *= np.float32(height / surface.std())
    return surface


def _write_band(path: Path, band: str, land: NDArray[np.float32], grain: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    if band == QA_BAND:
        # low aerosol, some average, and a few per cent of cloud in patches
        coarse = ndimage.gaussian_filter(rng.standard_normal((SIZE // 4, SIZE // 4)), 6)
        haze = ndimage.gaussian_filter(rng.standard_normal((SIZE // 4, SIZE // 4)), 2)
        qa = np.where(haze > 0.05, 128, 64).astype(np.uint8) | np.where(coarse > 0.075, 2, 0).astype(np.uint8)
        values = qa.repeat(4, axis=0).repeat(4, axis=1)
        kind = {"dtype": "uint8", "nodata": 255}
    else:
        noise = rng.standard_normal((SIZE, SIZE), dtype=np.float32) * grain
        values = (land * rng.uniform(0.5, 1.5) + noise).clip(1, 9999).astype(np.int16)
        kind = {"dtype": "int16", "nodata": -9999}
    path.parent.mkdir(parents=True, exist_ok=True)
    # as HLS v2.0, whose overviews take a third of the bytes
    form = {"driver": "COG", "blocksize": 256, "compress": "deflate", "predictor": 2}
    with rasterio.open(path, "w", count=1, width=SIZE, height=SIZE, **form, **kind, **_FRAME) as raster:
        raster.write(values, 1)


def write_cdl(path: Path, rows: range, cols: range) -> None:
    """A CDL raster of whole chips: square fields of random crops with a speckle, tiled and compressed as GIS people
    keep an unpacked release.
    """
    rng = np.random.default_rng(1)
    box = chip_blocks(rows, cols)
    codes = np.array([code for code in CDL_CLASSES if code], np.uint8)
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 1, "crs": CRS, "transform": box.affine}
    tiles = {"tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "lzw", "num_threads": 2}
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(path, "w", height=box.shape[0], width=box.shape[1], **profile, **tiles) as raster:
        for top in range(0, box.shape[0], CHIP_SIZE * 8):
            height = min(CHIP_SIZE * 8, box.shape[0] - top)
            fields = rng.choice(codes, (height // _FIELD, box.shape[1] // _FIELD))
            pixels = fields.repeat(_FIELD, axis=0).repeat(_FIELD, axis=1)
            speckled = rng.random(pixels.shape, dtype=np.float32) < _SPECKLE
            pixels[speckled] = rng.choice(codes, int(speckled.sum()))
            raster.write(pixels, 1, window=Window(0, top, pixels.shape[1], height))


def write_chips(folder: Path, count: int) -> list[str]:
    """Merged images of chips, 18 bands of int16, as the project writes them."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(2)
    land = _surface(rng, (CHIP_SIZE, CHIP_SIZE), 8, 800)
    paths = []
    for at in range(count):
        name = chip_id(at // 100, at % 100)
        noise = rng.standard_normal((18, CHIP_SIZE, CHIP_SIZE), dtype=np.float32) * _GRAIN
        image = (2500 + land * rng.uniform(0.2, 1.5, (18, 1, 1)) + noise).clip(0, 9999).astype(np.int16)
        flat = np.zeros((3, CHIP_SIZE, CHIP_SIZE), np.uint8)
        chip = Chip(image, flat[0], flat, flat.astype(bool))
        paths.append(folder / f"{name}_merged.tif")
        files = chip_files(chip, name, ["2022-03-18", "2022-06-06", "2022-09-24"], {})
        paths[-1].write_bytes(b"".join(files["merged"]))
    return [str(path) for path in paths]
