import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from crop_assets_tests.resources.gateways import World
from crop_assets_tests.resources.loopback import serving
from resources import sources as sources_module
from resources.ipfs.unixfs import file_cid
from resources.resume import PartialFiles


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("served")
    path = folder / "B02.tif"
    path.write_bytes(hashlib.shake_256(b"one band").digest(700_000))
    files = {file_cid(path): path}
    for i in range(8):
        other = folder / f"{i}.tif"
        other.write_bytes(hashlib.shake_256(bytes([i])).digest(300_000 + i))
        files[file_cid(other)] = other
    world = World(files)
    with serving(world.app()) as world.address:
        yield world


@pytest.fixture
def world(servers: World) -> World:
    """Gateways and nodes on loopback that have been asked nothing yet."""
    servers.forget()
    return servers


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "B02.tif"


@pytest.fixture
def partials(tmp_path: Path) -> PartialFiles:
    return PartialFiles(tmp_path / "partials")


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources_module, "BACKOFF_SECONDS", 0.01)


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the system's temporary files, empty at first."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder
