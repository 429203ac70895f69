import errno
import fcntl
import multiprocessing
import os
import shutil
import signal
import stat
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from multiprocessing.synchronize import Event
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from crop_assets_tests.resources.loopback import serving
from resources.errors import UnsafeNameError
from resources.http import get_file, new_session
from resources.resume import PartialFiles, move
from resources.store import DatasetStore

WEEK = 7 * 24 * 3600


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "below" / "partials"


@pytest.fixture
def partials(folder: Path) -> PartialFiles:
    return PartialFiles(folder)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def later(patch: pytest.MonkeyPatch, seconds: float) -> None:
    """Set the clock forward."""
    now = time.time()
    patch.setattr(time, "time", lambda: now + seconds)


# Paths


def test_what_is_left_of_a_file_is_there_the_next_time(folder: Path) -> None:
    with PartialFiles(folder).holding("https://example.org/a") as path:
        assert not path.exists()
        path.write_bytes(b"begin")
        path.with_name(f"{path.name}.tree").write_bytes(b"tree")
    with PartialFiles(folder).holding("https://example.org/a") as again:
        assert again == path
        assert again.read_bytes() == b"begin"
    assert names(folder) == {path.name, f"{path.name}.tree"}, "no lock is left over"


def test_keys_have_paths_of_their_own_that_no_key_can_lead_out_of(
    folder: Path, partials: PartialFiles
) -> None:
    keys = ["a", "b", "../a", "/etc/passwd", "a/b", "a" * 5000, "", "ä"]
    with ExitStack() as stack:
        paths = [stack.enter_context(partials.holding(key)) for key in keys]
        assert len(set(paths)) == len(keys)
        assert {path.parent for path in paths} == {folder}
    assert names(folder) == set()


def test_an_error_leaves_the_file_and_no_lock(folder: Path, partials: PartialFiles) -> None:
    with pytest.raises(ZeroDivisionError), partials.holding("a") as path:
        path.write_bytes(b"begin")
        raise ZeroDivisionError
    assert names(folder) == {path.name}


def test_nothing_is_made_before_it_is_needed(folder: Path) -> None:
    PartialFiles(folder)
    assert not folder.exists()


def test_a_file_that_was_moved_away_leaves_nothing(
    folder: Path, partials: PartialFiles, tmp_path: Path
) -> None:
    with partials.holding("a") as path:
        path.write_bytes(b"whole")
        move(path, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"whole"
    assert names(folder) == set()


def test_a_file_takes_the_place_of_another(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"new")
    (tmp_path / "b").write_bytes(b"old")
    move(tmp_path / "a", tmp_path / "b")
    assert names(tmp_path) == {"b"}
    assert (tmp_path / "b").read_bytes() == b"new"


def test_a_file_is_moved_to_another_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    (tmp_path / "a").write_bytes(b"new")
    (tmp_path / "b").write_bytes(b"older and longer")
    monkeypatch.setattr(Path, "replace", refused)
    move(tmp_path / "a", tmp_path / "b")
    assert names(tmp_path) == {"b"}
    assert (tmp_path / "b").read_bytes() == b"new"


# One at a time


def test_who_comes_second_has_a_path_of_its_own_that_goes_away(folder: Path, partials: PartialFiles) -> None:
    with partials.holding("a") as first:
        first.write_bytes(b"first")
        for other in (partials, PartialFiles(folder)):
            with other.holding("a") as second:
                assert second != first
                assert not second.exists(), "nothing of what the first has"
                second.write_bytes(b"second")
                second.with_name(f"{second.name}.tree").write_bytes(b"tree")
                second.with_name(f"{second.name}.etag").write_bytes(b"tag")
            assert names(folder) == {first.name, f"{first.name}.lock"}
        assert first.read_bytes() == b"first"
    assert names(folder) == {first.name}


def test_the_path_of_the_second_goes_away_after_an_error_and_after_a_move(
    folder: Path, partials: PartialFiles, tmp_path: Path
) -> None:
    with partials.holding("a"):
        with pytest.raises(ZeroDivisionError), partials.holding("a") as second:
            second.write_bytes(b"second")
            raise ZeroDivisionError
        with partials.holding("a") as second:
            second.write_bytes(b"second")
            move(second, tmp_path / "out")
    assert names(folder) == set()


def test_other_keys_are_not_waited_for(partials: PartialFiles) -> None:
    with partials.holding("a") as a, partials.holding("b") as b:
        a.write_bytes(b"a")
        b.write_bytes(b"b")
    with partials.holding("a") as a, partials.holding("b") as b:
        assert (a.read_bytes(), b.read_bytes()) == (b"a", b"b")


def test_no_two_threads_have_a_path_at_once(folder: Path) -> None:
    held: set[Path] = set()
    guard = threading.Lock()
    shared: set[Path] = set()

    def hold(number: int) -> None:
        for turn in range(100):
            with PartialFiles(folder).holding(f"{turn % 2}") as path:
                with guard:
                    if path in held:
                        shared.add(path)
                    held.add(path)
                path.write_bytes(b"x")
                with guard:
                    held.discard(path)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(hold, range(4)))
    assert not shared
    assert len(names(folder)) == 2, "what two keys have left"


@pytest.mark.parametrize("then", ["nothing", "the next holder's"])
def test_a_lock_that_its_holder_removed_meanwhile_gives_a_path_of_ones_own(
    folder: Path, partials: PartialFiles, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    really = fcntl.flock
    removed: list[Path] = []

    def late(file: Any, operation: int) -> None:
        """Another holder ends after the file was opened here, and before it is locked."""
        if not removed:
            removed.append(Path(file.name))
            removed[0].unlink()
            if then != "nothing":
                removed[0].touch()
        really(file, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with partials.holding("a") as path:
        path.write_bytes(b"of the late one")
        with partials.holding("a") as other:
            assert f"{other.name}.lock" == removed[0].name != f"{path.name}.lock", (
                "the key's own path is free"
            )
            other.write_bytes(b"of the next one")
        assert path.read_bytes() == b"of the late one"
    assert names(folder) == {other.name}


def _hold_for_ever(folder: Path, begun: Event) -> None:
    with PartialFiles(folder).holding("a") as path:
        path.write_bytes(b"of a process")
        begun.set()
        time.sleep(60)


@pytest.fixture
def holder(folder: Path) -> Iterator[int]:
    """The id of another process that holds the key `a`."""
    context = multiprocessing.get_context("fork")
    begun = context.Event()
    process = context.Process(target=_hold_for_ever, args=(folder, begun))
    process.start()
    try:
        assert begun.wait(20)
        yield process.pid or 0
    finally:
        process.kill()
        process.join()
        process.close()


# Python 3.12 warns of forks beside threads; the child only writes and sleeps
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_another_process_keeps_what_it_holds_until_it_is_killed(
    folder: Path, partials: PartialFiles, holder: int
) -> None:
    with partials.holding("a") as path:
        path.write_bytes(b"mine")
    assert len(names(folder)) == 2, "the file of the other process and its lock"

    os.kill(holder, signal.SIGKILL)
    os.waitid(os.P_PID, holder, os.WEXITED | os.WNOWAIT)
    with partials.holding("a") as path:
        assert path.read_bytes() == b"of a process"
    assert names(folder) == {path.name}


# Files that nobody comes back for


def test_what_nobody_has_touched_for_a_week_goes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "a folder").mkdir(parents=True)
    kept = {"old", "old.tree", "old.etag", "old.lock", "old.aside", "old-private"}
    for name in kept:
        (folder / name).write_bytes(b"x")
    for seconds, left in ((WEEK - 60, kept), (WEEK + 60, set())):
        with monkeypatch.context() as patch:
            later(patch, seconds)
            with PartialFiles(folder).holding("a"):
                pass
        assert names(folder) == {*left, "a folder"}


def test_a_file_that_was_touched_is_young_whatever_its_times_are_set_to(folder: Path) -> None:
    with PartialFiles(folder).holding("a") as path:
        path.write_bytes(b"old")
    os.utime(path, (0, 0))
    with PartialFiles(folder).holding("a") as path:
        assert path.read_bytes() == b"old"


def test_a_file_that_is_a_week_old_is_not_gone_on_with(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with PartialFiles(folder).holding("a") as path:
        path.write_bytes(b"old")
    later(monkeypatch, WEEK + 60)
    with PartialFiles(folder).holding("a") as path:
        assert not path.exists()


def test_a_file_that_cannot_be_removed_stops_nobody(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(parents=True)
    (folder / "old").write_bytes(b"x")

    def refused(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(path)

    later(monkeypatch, WEEK + 60)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refused)
        with PartialFiles(folder).alone("2022", print):
            pass
    assert names(folder) == {"old", "2022.alone"}


# Where a store has them


def place_of(store: DatasetStore) -> Path:
    with store.partials.holding("a") as path:
        return path.parent


def test_a_local_store_has_them_on_its_own_disk(tmp_path: Path, scratch: Path) -> None:
    assert (
        place_of(DatasetStore(root=str(tmp_path / "store"))) == tmp_path / "store" / f".partial-{os.getuid()}"
    )
    assert names(scratch) == set()


def test_a_store_that_a_url_names_has_them_in_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert (
        place_of(DatasetStore(root=f"file://{tmp_path}/store"))
        == tmp_path / "store" / f".partial-{os.getuid()}"
    )
    assert names(tmp_path / "here") == set()


def test_a_store_elsewhere_has_them_in_a_temporary_folder_of_its_user(scratch: Path) -> None:
    place = place_of(DatasetStore(root="s3://bucket/data"))
    assert place.parent == scratch
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert place_of(DatasetStore(root="s3://bucket/other")) == place


def own(scratch: Path) -> Path:
    return scratch / f"crop-assets-{os.getuid()}"


def test_a_temporary_folder_that_others_may_write_to_is_refused(scratch: Path) -> None:
    own(scratch).mkdir()
    for mode in (0o777, 0o770, 0o702, 0o1777):
        own(scratch).chmod(mode)
        with pytest.raises(UnsafeNameError, match="belongs to others"):
            DatasetStore(root="s3://bucket/data").partials  # noqa: B018
    own(scratch).chmod(0o755)
    assert place_of(DatasetStore(root="s3://bucket/data")) == own(scratch)


def test_a_link_in_the_place_of_the_temporary_folder_is_refused(scratch: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    own(scratch).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnsafeNameError, match="belongs to others"):
        DatasetStore(root="s3://bucket/data").partials  # noqa: B018
    assert names(tmp_path / "elsewhere") == set()


def test_a_temporary_folder_of_another_user_is_refused(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    own(scratch).mkdir(mode=0o700)
    with pytest.raises(UnsafeNameError, match="belongs to others"):
        DatasetStore(root="s3://bucket/data").partials  # noqa: B018


# What was kept of a download


@pytest.mark.parametrize(
    "note",
    [
        b"\xff\xfe",
        b'"a\r\nX-Evil: 1"',
        b"",
        b'W/"a"',
        b'"a" "b"',
        b'"' + b"a" * 100_000 + b'"',
        '"é"'.encode(),
    ],
    ids=range(7),
)
def test_a_damaged_note_of_a_version_costs_no_more_than_the_start(folder: Path, note: bytes) -> None:
    asked: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        asked.append(dict(scope["headers"]).get(b"range", b"").decode())
        await send({"type": "http.response.start", "status": 200, "headers": [(b"etag", b'"a"')]})
        await send({"type": "http.response.body", "body": b"the whole file"})

    folder.mkdir(parents=True)
    path = folder / "partial"
    path.write_bytes(b"the who")
    path.with_name("partial.etag").write_bytes(note)
    with serving(app) as address, new_session(1) as session:
        assert get_file(session, f"{address}/a.tif", 10, 1 << 20, path) == 14
    assert path.read_bytes() == b"the whole file"
    assert asked == [""]


# Room


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> dict[Path, int]:
    """Bytes that are free by the folder that is asked about."""
    room: dict[Path, int] = {}

    def usage(folder: Path) -> object:
        return SimpleNamespace(total=1 << 40, used=0, free=room[Path(folder)])

    monkeypatch.setattr(shutil, "disk_usage", usage)
    return room


def test_room_is_looked_for_on_the_disk_of_the_store(tmp_path: Path, free: dict[Path, int]) -> None:
    store = DatasetStore(root=str(tmp_path / "not" / "there" / "yet"))
    free[tmp_path] = 1_000_000
    store.require_room(0)
    store.require_room(1_000_000)
    with pytest.raises(OSError, match=r"has 1 MB free, and 2 MB are needed; make room") as error:
        store.require_room(2_000_000)
    assert error.value.errno == errno.ENOSPC
    assert str(tmp_path) in str(error.value)


def test_room_for_a_store_elsewhere_is_looked_for_where_files_are_on_their_way(
    scratch: Path, free: dict[Path, int]
) -> None:
    free[scratch] = 10
    DatasetStore(root="s3://bucket/data").require_room(10)
    with pytest.raises(OSError, match="make room"):
        DatasetStore(root="s3://bucket/data").require_room(11)


def test_room_of_a_relative_folder_is_that_of_the_current_one(
    tmp_path: Path, free: dict[Path, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    free[Path()] = 10
    DatasetStore(root="data").require_room(10)
    with pytest.raises(OSError, match="make room"):
        DatasetStore(root="data").require_room(11)


def test_room_is_asked_of_the_real_disk(tmp_path: Path) -> None:
    DatasetStore(root=str(tmp_path)).require_room(1)
    with pytest.raises(OSError, match="make room"):
        DatasetStore(root=str(tmp_path)).require_room(1 << 62)
