"""What others plant in a folder that they share with the store leads no read and no write astray."""

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from crop_assets_tests.resources.gateways import World
from resources.cdl import CdlReleases
from resources.errors import ResourceError, UnsafeNameError
from resources.ipfs.cid import Cid
from resources.ipfs.retrieve import Retrieval
from resources.mirror import BandMirror
from resources.partials import Partials, move
from resources.sources import Wanted
from resources.store import DatasetStore

NAME = "training_datasets/a/2022/chips/chip_1.tif"
SECRET = b"ssh-ed25519 the operator's own"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder of the operator, with a file that nobody else may change."""
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "authorized_keys").write_bytes(SECRET)
    return folder


@pytest.fixture
def store(tmp_path: Path) -> DatasetStore:
    store = DatasetStore(root=str(tmp_path / "store"))
    store.write_bytes(NAME, b"a chip")
    return store


@pytest.fixture
def partials(store: DatasetStore) -> Partials:
    with store.partials.holding("another"):
        return store.partials


def own(store: DatasetStore) -> Path:
    return Path(store.root) / f".partial-{os.getuid()}"


def untouched(home: Path) -> bool:
    return {path.name: path.read_bytes() for path in home.iterdir()} == {"authorized_keys": SECRET}


READS: list[Callable[[DatasetStore, str], object]] = [
    lambda store, name: store.read_bytes(name),
    lambda store, name: store.reading(name).__enter__(),
    lambda store, name: store.local(name).__enter__(),
    lambda store, name: store.gdal_path(name),
    lambda store, name: store.sha256(name),
    lambda store, name: store.size(name),
    lambda store, name: store.exists(name),
    lambda store, name: store.copy_file(name, "copy.tif"),
]


@pytest.mark.parametrize("depth", range(1, 6))
@pytest.mark.parametrize("read", READS)
def test_no_part_of_a_name_that_is_read_may_be_a_link(
    store: DatasetStore, home: Path, depth: int, read: Callable[[DatasetStore, str], object]
) -> None:
    at = Path(store.root).joinpath(*Path(NAME).parts[:depth])
    at.rename(home.parent / "moved")
    at.symlink_to(home.parent / "moved")
    with pytest.raises(UnsafeNameError, match=f"{at.name} is a symbolic link, which is not followed"):
        read(store, NAME)


@pytest.mark.parametrize("depth", range(1, 5))
def test_nothing_is_written_removed_or_listed_through_a_link(
    store: DatasetStore, home: Path, depth: int
) -> None:
    at = Path(store.root).joinpath(*Path(NAME).parts[:depth])
    at.rename(home.parent / "moved")
    at.symlink_to(home)
    inside = "/".join(Path(NAME).parts[:depth])
    for act in (
        lambda: store.write_bytes(f"{inside}/authorized_keys", b"evil"),
        lambda: store.write_bytes(f"{inside}/new/folder/file", b"evil"),
        lambda: store.remove(f"{inside}/authorized_keys"),
        lambda: store.names(inside),
    ):
        with pytest.raises(UnsafeNameError, match="remove it, or put what it leads to in its place"):
            act()
    assert untouched(home)


@pytest.mark.parametrize("kind", ["symbolic", "hard", "dangling"])
def test_a_file_takes_the_place_of_a_link_and_leaves_what_that_led_to(
    store: DatasetStore, home: Path, kind: str
) -> None:
    at = Path(store.root) / NAME
    at.unlink()
    if kind == "hard":
        at.hardlink_to(home / "authorized_keys")
    else:
        at.symlink_to(home / ("authorized_keys" if kind == "symbolic" else "new"))
    store.write_bytes(NAME, b"a new chip")
    assert untouched(home)
    assert stat.S_ISREG(at.lstat().st_mode)
    assert store.read_bytes(NAME) == b"a new chip"


def test_a_link_that_takes_the_place_of_a_file_on_its_way_is_refused(store: DatasetStore, home: Path) -> None:
    with pytest.raises(UnsafeNameError, match="symbolic link"), store.writing(NAME) as local:
        local.unlink()
        local.symlink_to(home / "authorized_keys")
    assert store.read_bytes(NAME) == b"a chip"
    assert untouched(home)


def test_a_link_that_takes_the_place_of_a_folder_meanwhile_is_refused(
    store: DatasetStore, home: Path
) -> None:
    folder = (Path(store.root) / NAME).parent
    with pytest.raises((UnsafeNameError, FileNotFoundError)), store.writing(NAME) as local:
        local.write_bytes(b"evil")
        folder.rename(home.parent / "moved")
        folder.symlink_to(home)
    assert untouched(home)


@pytest.mark.parametrize("other_disk", [False, True])
def test_a_download_is_not_written_through_a_link_to_where_it_goes(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, other_disk: bool
) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.EXDEV, "another disk")

    if other_disk:
        monkeypatch.setattr(Path, "replace", refused)
    download, place = tmp_path / "download", tmp_path / "place"
    download.write_bytes(b"evil")
    place.symlink_to(home / "authorized_keys")
    with pytest.raises(OSError, match="symbolic links") if other_disk else contextlib.nullcontext():
        move(download, place)
    mirror = BandMirror(folder=str(tmp_path / "mirror"))
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / "a.tif").write_bytes(b"evil")
    copied = tmp_path / "copied"
    copied.symlink_to(home / "authorized_keys")
    with pytest.raises(ResourceError, match="symbolic links"):
        mirror.fetch(Wanted("a/a.tif", "", "", 9), copied, Partials(tmp_path / "partials"), lambda _: None)
    assert untouched(home)


@pytest.mark.parametrize("read", READS)
def test_a_pipe_in_the_place_of_a_file_holds_nobody_up(
    store: DatasetStore, read: Callable[[DatasetStore, str], object]
) -> None:
    at = Path(store.root) / NAME
    at.unlink()
    os.mkfifo(at)
    failed: list[str] = []

    def run() -> None:
        try:
            read(store, NAME)
        except UnsafeNameError as error:
            failed.append(str(error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(60)
    assert len(failed) == 1
    assert "is neither a file nor a folder; remove it" in failed[0]


def test_a_sweep_removes_a_link_and_not_what_it_leads_to(store: DatasetStore, home: Path) -> None:
    os.utime(home / "authorized_keys", (0, 0))
    link = (Path(store.root) / NAME).parent / f".writing-elsewhere-1-{'0' * 32}.tif"
    link.symlink_to(home / "authorized_keys")
    os.utime(link, (0, 0), follow_symlinks=False)
    DatasetStore(root=store.root).write_bytes(NAME, b"x")
    assert not link.is_symlink()
    assert untouched(home)


def test_the_root_itself_may_be_a_link_to_another_disk(tmp_path: Path) -> None:
    (tmp_path / "disk" / "data").mkdir(parents=True)
    (tmp_path / "data").symlink_to(tmp_path / "disk" / "data")
    for root in (tmp_path / "data", tmp_path / "data" / "below"):
        store = DatasetStore(root=str(root))
        store.write_bytes("a/b.txt", b"x")
        assert store.read_bytes("a/b.txt") == b"x"
        assert store.names("a") == ["a/b.txt"]
        store.copy_file("a/b.txt", "a/c.txt")
        with store.partials.holding("key") as path:
            path.write_bytes(b"begun")
    assert (tmp_path / "disk" / "data" / "below" / "a" / "c.txt").read_bytes() == b"x"


# Partial files


def in_folder(store: DatasetStore) -> None:
    with store.partials.holding("key") as path:
        path.write_bytes(b"begun")


def alone(store: DatasetStore) -> None:
    with store.partials.alone("2022", print):
        pass


@pytest.mark.parametrize("use", [in_folder, alone])
def test_a_link_in_the_place_of_the_folder_of_partial_files_is_refused(
    store: DatasetStore, home: Path, use: Callable[[DatasetStore], None]
) -> None:
    own(store).symlink_to(home)
    with pytest.raises(UnsafeNameError, match="remove it, for it holds unfinished files only"):
        use(store)
    assert untouched(home)


@pytest.mark.parametrize("use", [in_folder, alone])
@pytest.mark.parametrize("mode", [0o777, 0o775, 0o722, 0o1777])
def test_a_folder_of_partial_files_that_others_may_write_to_is_refused(
    store: DatasetStore, use: Callable[[DatasetStore], None], mode: int
) -> None:
    own(store).mkdir()
    own(store).chmod(mode)
    with pytest.raises(UnsafeNameError, match="belongs to others"):
        use(store)
    own(store).rmdir()
    use(store)
    assert stat.S_IMODE(own(store).stat().st_mode) == 0o700


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make a folder somebody else's")
def test_a_folder_of_partial_files_that_belongs_to_somebody_else_is_refused(store: DatasetStore) -> None:
    own(store).mkdir(mode=0o700)
    os.chown(own(store), 12345, 12345)
    with pytest.raises(UnsafeNameError, match="belongs to others"):
        in_folder(store)


def test_a_folder_of_partial_files_that_others_may_only_read_is_closed_to_them(store: DatasetStore) -> None:
    own(store).mkdir(mode=0o755)
    (own(store) / "kept").write_bytes(b"begun")
    in_folder(store)
    assert stat.S_IMODE(own(store).stat().st_mode) == 0o700
    assert (own(store) / "kept").read_bytes() == b"begun"


def test_users_who_share_a_store_have_folders_of_their_own(
    store: DatasetStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_folder(store)
    mine = own(store)
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    with pytest.raises(UnsafeNameError, match="54321 belongs to others"):
        in_folder(DatasetStore(root=store.root))
    assert own(store) != mine


@pytest.mark.parametrize("kind", ["symbolic", "hard"])
@pytest.mark.parametrize("suffix", ["", ".lock", ".tree", ".aside", ".etag", ".tif", ".whole"])
def test_links_among_partial_files_are_removed(
    store: DatasetStore, partials: Partials, home: Path, kind: str, suffix: str
) -> None:
    with partials.holding("key") as path:
        planted = path.with_name(f"{path.name}{suffix}")
    plant = planted.symlink_to if kind == "symbolic" else planted.hardlink_to
    plant(home / "authorized_keys")
    with partials.holding("key") as path:
        assert path.with_name(f"{path.name}{suffix}").exists() == (suffix == ".lock")
        path.with_name(f"{path.name}{suffix}").write_bytes(b"evil")
    assert untouched(home)


@pytest.mark.parametrize("kind", ["symbolic", "hard"])
def test_a_link_in_the_place_of_what_one_run_waits_for_is_removed(
    store: DatasetStore, partials: Partials, home: Path, kind: str
) -> None:
    planted = own(store) / "2022.alone"
    plant = planted.symlink_to if kind == "symbolic" else planted.hardlink_to
    plant(home / "authorized_keys")
    alone(store)
    assert untouched(home)


@pytest.mark.parametrize("suffix", ["", ".tree"])
def test_a_retrieval_follows_no_link(world: World, tmp_path: Path, home: Path, suffix: str) -> None:
    path = tmp_path / "partial"
    path.with_name(f"partial{suffix}").symlink_to(home / "authorized_keys")
    with pytest.raises(OSError, match="symbolic links"):
        Retrieval(Cid.parse(next(iter(world.files))), path, 1 << 20)
    assert untouched(home)


def test_releases_have_their_own_folder_of_partial_files(tmp_path: Path, home: Path) -> None:
    folder = tmp_path / "cdl"
    folder.mkdir()
    (folder / f".partial-{os.getuid()}").symlink_to(home)
    with (
        pytest.raises(UnsafeNameError, match="belongs to others"),
        CdlReleases(source=str(folder)).partials(2022).holding("key"),
    ):
        pass
    assert untouched(home)
