from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from affine import Affine
from numpy.typing import NDArray

from crop_assets.chip_grid import ORIGIN_X, ORIGIN_Y
from crop_assets.labels.cdl import ChipHistograms
from crop_assets.labels.sampling import candidate_boxes, weighed_boxes

WriteCdl = Callable[..., Path]

PIXELS = 224 * 224


def boxes_of(cells: list[tuple[int, int]], counts: Any = None, min_classes: int = 1) -> gpd.GeoDataFrame:
    rows, cols = np.array(cells, dtype=np.int32).reshape(-1, 2).T
    if counts is None:
        counts = np.zeros((len(cells), 14), np.int32)
        counts[:, 3] = PIXELS
    histograms = ChipHistograms(rows, cols, np.asarray(counts, np.int32), np.zeros(256, np.int64))
    return weighed_boxes(candidate_boxes(histograms), min_classes)


@pytest.fixture
def block() -> gpd.GeoDataFrame:
    """A block of 3 x 4 boxes in Kansas."""
    return boxes_of([(row, col) for row in range(230, 233) for col in range(307, 311)])


@pytest.fixture
def write_cdl(tmp_path: Path) -> WriteCdl:
    """Writes codes as a CDL raster whose corner is (col, row) pixels from the national origin."""

    def write(codes: NDArray[Any], col: float = 0, row: float = 0, **profile: Any) -> Path:
        path = tmp_path / "2022_30m_cdls.tif"
        corner = Affine(30, 0, ORIGIN_X + 30 * col, 0, -30, ORIGIN_Y - 30 * row)
        bands = codes[np.newaxis] if codes.ndim == 2 else codes
        profile = {"crs": "EPSG:5070", "transform": corner, "compress": "deflate", **profile}
        count, height, width = bands.shape
        with rasterio.open(
            path, "w", driver="GTiff", count=count, height=height, width=width, dtype=bands.dtype, **profile
        ) as raster:
            raster.write(bands)
        return path

    return write
