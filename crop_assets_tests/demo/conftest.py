import functools
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from crop_assets.demo import world as world_module
from crop_assets.demo.landscape import FIRST_COL, FIRST_ROW, draw_landscape, write_landscape
from crop_assets.demo.server import WorldServer, serve
from crop_assets.demo.world import World, build_world


@dataclass(frozen=True)
class SmallWorld:
    """A finished world of nine chips in the tile 14SMG, and the messages of its build."""

    world: World
    said: list[str]


@pytest.fixture(scope="session", autouse=True)
def one_reading_of_the_grid() -> Iterator[None]:
    """Parse the official grid only once, which takes about 5 s."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world_module, "read_tile_grid", functools.cache(world_module.read_tile_grid))
        yield


@pytest.fixture(scope="session")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> SmallWorld:
    folder = tmp_path_factory.mktemp("small_world")
    cdl = folder / "2022_30m_cdls.tif"
    write_landscape(cdl, draw_landscape(3, 3, seed=7), FIRST_ROW, FIRST_COL + 1)
    said: list[str] = []
    return SmallWorld(build_world(folder / "world", cdl, 2022, said.append), said)


@pytest.fixture(scope="session")
def server(small_world: SmallWorld) -> Iterator[WorldServer]:
    with serve(small_world.world) as running:
        yield running
