import geopandas as gpd
import pytest

from crop_assets.tiles.grid import official_grid_path, read_tile_grid


@pytest.fixture(scope="session")
def official_grid() -> gpd.GeoDataFrame:
    """The official grid, parsed once: it takes some 5 s."""
    return read_tile_grid(official_grid_path())
