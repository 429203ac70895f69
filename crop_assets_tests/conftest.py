import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import settings

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
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")


@pytest.fixture(scope="session")
def real() -> Path:
    """Real data by others, beside the repository; never part of it."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "real"
    if not folder.is_dir():
        pytest.skip(f"the real data by others are not at {folder}")
    return folder


@pytest.fixture(scope="session")
def pool() -> Iterator[ThreadPoolExecutor]:
    """Threads for the functions that share their work out."""
    with ThreadPoolExecutor(2) as threads:
        yield threads


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of a folder on one worker, so that what they share is made once; of those that mostly wait for
    daemons, the tests of a file."""
    for item in items:
        group = item.path.parent.name
        if group in ("automation", "browser"):
            group += f"/{item.path.name}"
        item.add_marker(pytest.mark.xdist_group(group))
