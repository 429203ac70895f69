import gc
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import geopandas as gpd
import pytest
from hypothesis import settings

from crop_assets.tiles.grid import official_grid_path, read_tile_grid
from crop_assets_tests.once import made_once
from crop_assets_tests.small_world import begun as begun
from crop_assets_tests.small_world import finished as finished
from crop_assets_tests.small_world import finished_graph as finished_graph
from crop_assets_tests.small_world import graph as graph
from crop_assets_tests.small_world import labelled as labelled
from crop_assets_tests.small_world import labelled_graph as labelled_graph
from crop_assets_tests.small_world import processes as processes
from crop_assets_tests.small_world import served as served
from crop_assets_tests.small_world import setting as setting
from crop_assets_tests.small_world import three_tiles as three_tiles
from crop_assets_tests.small_world import traffic as traffic

# a shell's background jobs ignore interrupts, and so would the servers of the tests: Dagster ends by them
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# a deadline would fail tests for what else the machine does
settings.register_profile("unhurried", deadline=None, max_examples=50)
settings.load_profile("unhurried")


@pytest.fixture(scope="session")
def real() -> Path:
    """Real data by others, beside the repository; never part of it."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "real"
    if not folder.is_dir():
        pytest.skip(f"the real data by others are not at {folder}")
    return folder


@pytest.fixture(scope="session")
def official_grid(tmp_path_factory: pytest.TempPathFactory) -> gpd.GeoDataFrame:
    """The official tile grid, parsed once: it takes some 5 s."""
    return made_once(tmp_path_factory, "official_grid", lambda _: read_tile_grid(official_grid_path()))


@pytest.fixture(scope="session")
def pool() -> Iterator[ThreadPoolExecutor]:
    """Threads for the functions that share their work out."""
    with ThreadPoolExecutor(2) as threads:
        yield threads


def pytest_collection_finish() -> None:
    """Spare the garbage collector what stays for good: it took a twelfth of the suite's time."""
    gc.collect()
    gc.freeze()


# first, for pytest-xdist reads the groups in the same hook
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of a folder on one worker, so that what they share is made once; those of whole runs, which take
    longest, a file at a time and first."""
    long = ("automation", "browser", "run", "national", "graph")
    items.sort(key=lambda item: [*long, item.path.parent.name].index(item.path.parent.name))
    for item in items:
        group = item.path.parent.name
        if group in long:
            group += f"/{item.path.name}"
        item.add_marker(pytest.mark.xdist_group(group))
