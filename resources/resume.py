"""Partial downloads, kept when a download is interrupted or its process is killed, so that it can be resumed.

Each is used by one process at a time. `resources.ipfs.retrieve` and `resources.http` write and check them.
"""

import contextlib
import hashlib
import os
import stat
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from resources.errors import IntegrityError, UnsafeNameError
from resources.file_system import (
    copy_plain,
    folder_below,
    is_abandoned,
    is_own_file,
    lock,
    no_follow,
    private_folder,
    read_plain,
    remove_abandoned,
)

_MAX_NOTE = 1000


class PartialFiles:
    """A folder of unfinished files, by a key that identifies their content. A file not touched for a week is removed.

    Only this user can write to the folder, and whatever else is in it, such as links, is removed. Methods raise
    UnsafeNameError if others could write to it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._notes_swept = False

    @classmethod
    def below(cls, folder: Path) -> "PartialFiles":
        """The unfinished files in a folder that several users may share: each user has a subfolder."""
        return cls(folder / f".partial-{os.getuid()}")

    @contextlib.contextmanager
    def holding(self, key: str) -> Iterator[Path]:
        """The path of the partial file of `key`, locked for the length of the block.

        If someone else has locked it, or the file system has no locks, the path is a new one and is removed at the end.
        Files beside it may be named `<path>.<what>`. Move the file away when it is complete; otherwise it is kept.
        """
        self._make_ready()
        path = self._folder / _name(key)
        with _locked(path.with_name(f"{path.name}.lock")) as alone:
            if alone:
                yield path
                return
            path = path.with_name(f"{path.name}-{uuid.uuid4().hex}")
            try:
                yield path
            finally:
                for left in self._folder.glob(f"{path.name}*"):
                    left.unlink(missing_ok=True)

    def remember(self, key: str, text: str) -> None:
        """Keep a short text for a week, where only this user can write."""
        self._make_ready()
        folder = self._folder / "notes"
        private_folder(folder)
        if not self._notes_swept:
            # once, as there may be thousands
            self._notes_swept = True
            with folder_below(folder, ()) as handle:
                remove_abandoned(handle, "")
        path = folder / _name(key)
        writing = path.with_name(f"{path.name}-{uuid.uuid4().hex}")
        writing.write_text(text)
        writing.replace(path)

    def recall(self, key: str) -> str:
        """What was kept by `remember`; "" if there is nothing."""
        with contextlib.suppress(OSError, UnicodeDecodeError, IntegrityError, UnsafeNameError):
            return read_plain(self._folder / "notes" / _name(key), _MAX_NOTE).decode()
        return ""

    @contextlib.contextmanager
    def alone(self, name: str, log: Callable[[str], None]) -> Iterator[None]:
        """Enter the block when no one else is in one of this name; a wait is logged."""
        self._make_ready()
        with open(self._folder / f"{name}.alone", "w", opener=no_follow) as file:
            try:
                lock(file, wait=False)
            except BlockingIOError:
                log(f"another run is working on {name}; waiting for it")
                lock(file)
            yield

    def _make_ready(self) -> None:
        private_folder(self._folder)
        for path in self._folder.iterdir():
            # another thread or process may have removed it
            with contextlib.suppress(FileNotFoundError):
                status = path.lstat()
                if stat.S_ISDIR(status.st_mode):
                    continue
                if not is_own_file(status):
                    path.unlink()
                elif is_abandoned(status):
                    # if it stays, it does no harm
                    with contextlib.suppress(OSError):
                        path.unlink()


def _name(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:32]


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Whether this block alone holds the lock file, which is removed at the end."""
    with open(path, "w", opener=no_follow) as file:
        held = False
        with contextlib.suppress(BlockingIOError):
            held = lock(file, wait=False)
            if not held:
                # without locks, nobody else removes it
                path.unlink(missing_ok=True)
        if not held:
            yield False
            return
        # its previous holder may have removed it since it was opened here
        alone = False
        with contextlib.suppress(FileNotFoundError):
            alone = path.stat().st_ino == os.fstat(file.fileno()).st_ino
        try:
            yield alone
        finally:
            if alone:
                path.unlink(missing_ok=True)


def move(path: Path, destination: Path) -> None:
    """Move a file, replacing another, also from another disk."""
    try:
        path.replace(destination)
    except OSError:
        copy_plain(path, destination)
        path.unlink()
