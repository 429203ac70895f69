"""Choosing chips and finding their tiles, for the whole country: this project, and what one would write instead.

The landscape is made up: 295,000 boxes whose classes go over into one another, some of them rare.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from crop_assets.chip_grid import CHIP_SIZE, GRID_COLS, GRID_ROWS
from crop_assets.classes import CLASS_COLUMNS
from crop_assets.labels.balance import Balance, choose_balanced, distance
from crop_assets.labels.cdl import ChipHistograms
from crop_assets.labels.sampling import candidate_boxes, weighed_boxes
from crop_assets.tiles.grid import official_grid_path, read_tile_grid
from crop_assets.tiles.mapping import map_chips

Work = Iterator[Callable[[], object]]

_CHIPS = 5000
_BALANCE = Balance()


def write_country(root: Path) -> None:
    """The candidates of a made-up country, and the tile grid, as tables."""
    root.mkdir(parents=True)
    rng = np.random.default_rng(0)
    common = np.array([3, 4, 1.5, 1.4, 0.8, 0.8, 0.6, 0.5, 0.3, 0.6, 0.12, 0.06, 0.8])
    shares = np.empty((GRID_ROWS, GRID_COLS, 13))
    for value in range(13):
        coarse = rng.normal(size=(GRID_ROWS // 20 + 2, GRID_COLS // 20 + 2))
        smooth = np.kron(coarse, np.ones((20, 20)))[:GRID_ROWS, :GRID_COLS]
        shares[..., value] = common[value] * np.exp(smooth + rng.normal(size=smooth.shape))
    shares /= shares.sum(axis=2, keepdims=True)
    counts = np.zeros((GRID_ROWS * GRID_COLS, 14), np.int32)
    counts[:, 1:] = np.floor(shares.reshape(-1, 13) * CHIP_SIZE**2)
    counts[:, 1] += CHIP_SIZE**2 - counts.sum(axis=1)
    rows, cols = np.divmod(np.arange(len(counts), dtype=np.int32), np.int32(GRID_COLS))
    candidate_boxes(ChipHistograms(rows, cols, counts, np.zeros(256, np.int64))).to_parquet(
        root / "chips.parquet"
    )
    read_tile_grid(official_grid_path()).to_parquet(root / "grid.parquet")


def _classes(root: Path) -> tuple[pd.DataFrame, NDArray[np.int32]]:
    boxes = pd.read_parquet(root / "chips.parquet")
    return boxes, boxes[CLASS_COLUMNS[1:]].to_numpy()


def _reached(counts: NDArray[np.int32], chosen: NDArray[np.intp]) -> dict[str, float]:
    return {"distance": distance(counts[chosen].sum(axis=0), _BALANCE.target)}


@contextlib.contextmanager
def choose_ours(root: Path) -> Work:
    """The project's balanced choice of 5,000 boxes."""
    boxes, counts = _classes(root)
    rows, cols = (boxes[name].to_numpy(np.int64) for name in ("row", "col"))
    yield lambda: _reached(counts, choose_balanced(counts, rows, cols, _CHIPS, _BALANCE))


@contextlib.contextmanager
def choose_greedy(root: Path) -> Work:
    """One box after the other, each the one that brings the sum nearest to the target, at most as many of a block."""
    boxes, counts = _classes(root)
    classes = counts.astype(np.float64)
    squares = (classes * classes).sum(axis=1)
    places = boxes[["row", "col"]] // _BALANCE.block_chips
    block = places.groupby(["row", "col"]).ngroup().to_numpy()

    def work() -> dict[str, float]:
        chosen: list[int] = []
        sums = np.zeros(13)
        left = np.ones(len(classes), bool)
        used = np.zeros(block.max() + 1, np.int64)
        for step in range(1, _CHIPS + 1):
            missing = np.asarray(_BALANCE.target) * step * CHIP_SIZE**2 - sums
            best = int(np.where(left, squares - 2 * (classes @ missing), np.inf).argmin())
            left[best] = False
            chosen.append(best)
            sums += classes[best]
            used[block[best]] += 1
            if used[block[best]] == _BALANCE.max_per_block:
                left[block == block[best]] = False
        return _reached(counts, np.array(chosen))

    yield work


@contextlib.contextmanager
def choose_evenness(root: Path) -> Work:
    """The published rule: the boxes that are the most even in themselves."""
    boxes, counts = _classes(root)

    def work() -> dict[str, float]:
        weight = weighed_boxes(boxes, 8)["weight"].to_numpy()
        return _reached(counts, np.argsort(-weight, kind="stable")[:_CHIPS])

    yield work


@contextlib.contextmanager
def tiles_ours(root: Path) -> Work:
    """The project's mapping, with what is known of each chip's place in its tile."""
    boxes = weighed_boxes(pd.read_parquet(root / "chips.parquet"), 8)
    grid = gpd.read_parquet(root / "grid.parquet")
    yield lambda: map_chips(boxes, grid, "projected")


@contextlib.contextmanager
def tiles_sjoin(root: Path) -> Work:
    """`GeoDataFrame.sjoin_nearest` of centres and centroids, and no more."""
    boxes = pd.read_parquet(root / "chips.parquet", columns=["x", "y"])
    grid = gpd.read_parquet(root / "grid.parquet")
    grid = grid[np.isfinite(grid["x"])]
    centres = gpd.GeoDataFrame(geometry=gpd.points_from_xy(boxes["x"], boxes["y"]), crs=5070)
    centroids = gpd.GeoDataFrame(grid[["tile"]], geometry=gpd.points_from_xy(grid["x"], grid["y"]), crs=5070)
    yield lambda: centres.sjoin_nearest(centroids)
