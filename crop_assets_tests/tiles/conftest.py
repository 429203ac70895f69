from pathlib import Path

import geopandas as gpd
import pytest

from crop_assets.tiles.grid import official_grid_path, read_tile_grid


@pytest.fixture(scope="session")
def real() -> Path:
    """Real data by others, beside the repository; never part of it."""
    folder = Path(__file__).resolve().parents[3] / "shared" / "real"
    if not folder.is_dir():
        pytest.skip(f"the real data are not at {folder}")
    return folder


@pytest.fixture(scope="session")
def official_grid() -> gpd.GeoDataFrame:
    """The official grid, parsed once: it takes some 5 s."""
    return read_tile_grid(official_grid_path())
