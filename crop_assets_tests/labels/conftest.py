from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from numpy.typing import NDArray

from crop_assets.grid import ORIGIN_X, ORIGIN_Y

WriteCdl = Callable[..., Path]


@pytest.fixture
def write_cdl(tmp_path: Path) -> WriteCdl:
    """Writes codes as a CDL raster whose corner lies (col, row) pixels from the national origin."""

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
