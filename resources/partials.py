"""Files that are on their way, kept when a download breaks off or its process is killed.

Belongs here: where they lie, and that one process works on each. Does not: what is in them, and whether it is right
(`resources.ipfs.retrieve`, `resources.http`).
"""

import contextlib
import hashlib
import os
import stat
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from resources.file_system import copy_plain, is_abandoned, is_own_file, lock, no_follow, private_folder


class Partials:
    """A folder of unfinished files, by a key that tells their content. Those that nobody has touched for a week go.

    The folder is this user's alone, and what is in it but his own files is removed: links would lead elsewhere. Where
    others could put something into it, UnsafeNameError is raised.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @classmethod
    def below(cls, folder: Path) -> "Partials":
        """Those of a folder that several users may share: each has a place of his own."""
        return cls(folder / f".partial-{os.getuid()}")

    @contextlib.contextmanager
    def holding(self, key: str) -> Iterator[Path]:
        """A path for the file of `key`, with what is there of it from before; no one else has it meanwhile.

        Where someone else has it, or the file system has no locks, the path is a new one and is removed at the end.
        Files beside it may be named `<path>.<what>`. Move the file away when it is whole; else it stays.
        """
        self._make_ready()
        path = self._folder / hashlib.sha256(key.encode()).hexdigest()[:32]
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

    @contextlib.contextmanager
    def alone(self, name: str, say: Callable[[str], None]) -> Iterator[None]:
        """Hold the block until no one else is in one of this name; `say` is told where that takes a while."""
        self._make_ready()
        with open(self._folder / f"{name}.alone", "w", opener=no_follow) as file:
            try:
                lock(file, wait=False)
            except BlockingIOError:
                say(f"another run is at {name} already; waiting for it")
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
                    # one that stays does no harm
                    with contextlib.suppress(OSError):
                        path.unlink()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Whether this block alone holds the lock file, which is removed at its end."""
    with open(path, "w", opener=no_follow) as file:
        held = False
        with contextlib.suppress(BlockingIOError):
            held = lock(file, wait=False)
            if not held:
                # without locks there is nobody who would remove it
                path.unlink(missing_ok=True)
        if not held:
            yield False
            return
        # whoever held it before may have removed it since it was opened here
        alone = False
        with contextlib.suppress(FileNotFoundError):
            alone = path.stat().st_ino == os.fstat(file.fileno()).st_ino
        try:
            yield alone
        finally:
            if alone:
                path.unlink(missing_ok=True)


def move(path: Path, destination: Path) -> None:
    """Put a file in the place of another, from whatever disk."""
    try:
        path.replace(destination)
    except OSError:
        copy_plain(path, destination)
        path.unlink()
