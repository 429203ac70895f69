"""What others plant in a folder that they share with the store leads no read and no write astray."""

import contextlib
import errno
import os
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from crop_assets_tests.resources.gateways import World
from resources import store as store_module
from resources.cdl import CdlReleases
from resources.errors import IntegrityError, ResourceError, UnsafeNameError
from resources.ipfs.cid import Cid
from resources.ipfs.directory import FolderDag
from resources.ipfs.retrieve import Retrieval
from resources.mirror import BandMirror
from resources.resume import PartialFiles, move
from resources.sources import FileRequest
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
def partials(store: DatasetStore) -> PartialFiles:
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
        mirror.fetch(
            FileRequest("a/a.tif", "", "", 9), copied, PartialFiles(tmp_path / "partials"), lambda _: None
        )
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


def a_week_later(patch: pytest.MonkeyPatch) -> None:
    """Set the clock forward by a week and a minute."""
    now = time.time()
    patch.setattr(time, "time", lambda: now + 7 * 24 * 3600 + 60)


def test_a_sweep_removes_a_link_and_not_what_it_leads_to(
    store: DatasetStore, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = own(store) / "writing" / f".writing-{'0' * 32}.tif"
    link.symlink_to(home / "authorized_keys")
    a_week_later(monkeypatch)
    DatasetStore(root=store.root).write_bytes(NAME, b"x")
    assert not link.is_symlink()
    assert untouched(home)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_others_cannot_put_anything_where_a_file_is_written() -> None:
    def planted(path: Path) -> bool:
        done = subprocess.run(
            ["ln", "-s", "/etc/passwd", str(path)], user=12345, capture_output=True, text=True
        )
        assert done.returncode == 0 or "Permission denied" in done.stderr
        return done.returncode == 0

    with tempfile.TemporaryDirectory() as root:
        store = DatasetStore(root=root)
        store.write_bytes(NAME, b"a chip")
        shared = Path(root)
        for part in ("", *Path(NAME).parts[:-1]):
            shared /= part
            shared.chmod(0o777)
        assert planted(shared / "beside"), "they share the folder"
        for name in (NAME, "new/folder/of.tif", "top.tif"):
            with store.writing(name) as local:
                assert not planted(local.with_name(f"{local.name}.aux.xml"))
                assert not planted(local.parent.with_name("others"))
            assert store.exists(name)


@pytest.mark.parametrize("damaged", [False, True])
def test_a_folder_of_the_store_may_be_another_disk(
    store: DatasetStore, home: Path, monkeypatch: pytest.MonkeyPatch, damaged: bool
) -> None:
    rename = os.replace

    def replace(source: str | Path, target: str, **handles: int) -> None:
        if "src_dir_fd" not in handles or damaged:
            raise OSError(errno.EXDEV if "src_dir_fd" not in handles else errno.EIO, "another disk")
        rename(source, target, **handles)

    monkeypatch.setattr(os, "replace", replace)
    folder = (Path(store.root) / NAME).parent
    abandoned = folder / f".writing-{'0' * 32}"
    abandoned.symlink_to(home / "authorized_keys")
    a_week_later(monkeypatch)
    with pytest.raises(OSError, match="another disk") if damaged else contextlib.nullcontext():
        store.write_bytes(NAME, b"a new chip")
    assert store.read_bytes(NAME) == (b"a chip" if damaged else b"a new chip")
    assert [path.name for path in folder.iterdir()] == [Path(NAME).name]
    assert list((own(store) / "writing").iterdir()) == []
    assert untouched(home)


def test_a_link_in_the_place_of_a_swept_folder_of_another_disk_leads_no_sweep_astray(
    store: DatasetStore, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = (Path(store.root) / NAME).parent
    (home / ".writing-mine").write_bytes(b"old")

    def replace(source: str | Path, target: str, **handles: int) -> None:
        folder.rename(home.parent / "moved")
        folder.symlink_to(home)
        raise OSError(errno.EXDEV, "another disk")

    monkeypatch.setattr(os, "replace", replace)
    a_week_later(monkeypatch)
    with pytest.raises(UnsafeNameError, match="is a file or a link, and a folder belongs there"):
        store.write_bytes(NAME, b"a new chip")
    assert (home / ".writing-mine").read_bytes() == b"old"


@pytest.mark.parametrize("content", [False, True])
def test_a_folder_in_the_place_of_a_file_is_told_and_stays(store: DatasetStore, content: bool) -> None:
    at = Path(store.root) / NAME
    at.unlink()
    at.mkdir()
    if content:
        (at / "kept").write_bytes(b"x")
    assert not store.exists(NAME)
    store.remove(NAME)
    for act in (
        lambda: store.read_bytes(NAME),
        lambda: store.read_bytes(NAME, 1 << 20),
        lambda: store.sha256(NAME),
        lambda: store.copy_file(NAME, "copy.tif"),
        lambda: store.write_bytes(NAME, b"x"),
    ):
        with pytest.raises(UnsafeNameError, match="is a folder, and a file belongs there; remove it"):
            act()
    assert [path.name for path in at.iterdir()] == ["kept"] * content


@pytest.mark.parametrize("depth", range(1, 5))
def test_a_file_in_the_place_of_a_folder_is_told_and_stays(store: DatasetStore, depth: int) -> None:
    at = Path(store.root).joinpath(*Path(NAME).parts[:depth])
    at.rename(Path(store.root).parent / "moved")
    at.write_bytes(b"a file")
    acts: list[Callable[[DatasetStore, str], object]] = [
        *READS,
        lambda store, name: store.write_bytes(name, b"x"),
        lambda store, name: store.remove(name),
    ]
    for act in acts:
        with pytest.raises(
            UnsafeNameError, match=f"{at.name} is a file.*, and a folder belongs there; remove it"
        ):
            act(store, NAME)
    assert at.read_bytes() == b"a file"
    assert list((own(store) / "writing").iterdir()) == []


def test_a_pipe_that_takes_the_place_of_a_file_after_it_was_looked_at_holds_nobody_up(
    store: DatasetStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = Path(store.root) / NAME
    at.unlink()
    os.mkfifo(at)
    monkeypatch.setattr(store_module, "require_no_links", lambda root, parts: None)
    with pytest.raises(UnsafeNameError, match="is no file; remove it"):
        store.read_bytes(NAME)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder another group")
def test_a_file_has_the_group_of_a_folder_that_hands_it_on(store: DatasetStore) -> None:
    folder = (Path(store.root) / NAME).parent
    os.chown(folder, -1, 12345)
    folder.chmod(0o2775)
    store.write_bytes(NAME, b"a new chip")
    assert (folder / Path(NAME).name).stat().st_gid == 12345


def test_a_file_of_absurd_size_is_not_hashed(store: DatasetStore) -> None:
    with (Path(store.root) / NAME).open("wb") as file:
        file.truncate(8 << 40)
    with pytest.raises(IntegrityError, match="8,796,093,022,208 bytes; the most is"):
        store.sha256(NAME)


def test_what_is_published_follows_no_link(store: DatasetStore, home: Path) -> None:
    (Path(store.root) / "b.tif").write_bytes(b"a chip")
    dag = FolderDag({"b.tif": Path(store.root) / "b.tif"})
    (Path(store.root) / "b.tif").unlink()
    (Path(store.root) / "b.tif").symlink_to(home / "authorized_keys")
    with pytest.raises(OSError, match="symbolic links"):
        list(dag.blocks())
    with pytest.raises(OSError, match="symbolic links"):
        FolderDag({"b.tif": Path(store.root) / "b.tif"})


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


def write(store: DatasetStore) -> None:
    store.write_bytes(NAME, b"x")


def write_elsewhere(store: DatasetStore) -> None:
    with store.writing("top.tif") as path:
        path.write_bytes(b"x")


USES = [in_folder, alone, write, write_elsewhere]


@pytest.fixture
def bare(tmp_path: Path) -> DatasetStore:
    """A store in which nobody has written yet."""
    store = DatasetStore(root=str(tmp_path / "store"))
    Path(store.root).mkdir()
    return store


@pytest.mark.parametrize("use", USES)
def test_a_link_in_the_place_of_the_folder_of_partial_files_is_refused(
    bare: DatasetStore, home: Path, use: Callable[[DatasetStore], None]
) -> None:
    own(bare).symlink_to(home)
    with pytest.raises(UnsafeNameError, match="remove it: it holds only unfinished files"):
        use(bare)
    assert untouched(home)


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("mode", [0o777, 0o775, 0o722, 0o1777])
def test_a_folder_of_partial_files_that_others_may_write_to_is_refused(
    bare: DatasetStore, use: Callable[[DatasetStore], None], mode: int
) -> None:
    own(bare).mkdir()
    own(bare).chmod(mode)
    with pytest.raises(UnsafeNameError, match="belongs to others"):
        use(bare)
    own(bare).rmdir()
    use(bare)
    assert stat.S_IMODE(own(bare).stat().st_mode) == 0o700


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make a folder somebody else's")
def test_a_folder_of_partial_files_that_belongs_to_somebody_else_is_refused(bare: DatasetStore) -> None:
    own(bare).mkdir(mode=0o700)
    os.chown(own(bare), 12345, 12345)
    with pytest.raises(UnsafeNameError, match="belongs to others"):
        in_folder(bare)


def test_a_folder_of_partial_files_that_others_may_only_read_is_closed_to_them(bare: DatasetStore) -> None:
    own(bare).mkdir(mode=0o755)
    (own(bare) / "kept").write_bytes(b"begun")
    in_folder(bare)
    assert stat.S_IMODE(own(bare).stat().st_mode) == 0o700
    assert (own(bare) / "kept").read_bytes() == b"begun"


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
    store: DatasetStore, partials: PartialFiles, home: Path, kind: str, suffix: str
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
    store: DatasetStore, partials: PartialFiles, home: Path, kind: str
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


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make a link somebody else's")
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_no_folder_of_a_path_with_the_year_in_it_may_be_a_link_of_others(tmp_path: Path, depth: int) -> None:
    path = tmp_path / "cdl" / "2022" / "raster" / "cdl.tif"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x")
    releases = CdlReleases(source=str(tmp_path / "cdl" / "{year}" / "raster" / "cdl.tif"))
    assert releases.raster_path(2022) == path
    at = path.parents[depth]
    at.rename(tmp_path / "moved")
    at.symlink_to(tmp_path / "moved")
    assert releases.raster_path(2022) == path
    os.lchown(at, 12345, 12345)
    with pytest.raises(UnsafeNameError, match=f"{at} is a symbolic link of another user"):
        releases.raster_path(2022)
