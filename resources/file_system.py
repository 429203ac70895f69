"""Locks and flushes, with one warning where a file system has none, as on some clusters; and reading and writing that
follow no links, in folders that others may write to.
"""

import contextlib
import errno
import fcntl
import logging
import os
import shutil
import stat
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from resources.errors import IntegrityError, UnsafeNameError

_UNSUPPORTED = frozenset({errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOLCK})
_FOLDER = os.O_DIRECTORY | getattr(os, "O_PATH", os.O_RDONLY)
_ABANDONED_SECONDS = 7 * 24 * 3600
"""Age of a temporary file that nobody comes back to. One in use is younger, because every write to it renews its time,
and no write waits for longer than minutes. In a week, a download of many gigabytes can still be resumed after days off.
"""
warned: set[str] = set()
"""What was logged already, once in a process: "locks", "flushes"."""
_warning = threading.Lock()


def lock(file: IO[Any], wait: bool = True) -> bool:
    """Lock an open file until it is closed; False if its file system has no locks, which is logged once.

    Raises BlockingIOError if someone else holds the lock and `wait` is false.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        _warn_once(
            "locks",
            f"the file system of {file.name} has no locks ({error.strerror}): never let two runs fetch the same CDL "
            "release or build the same demo at once; an interrupted download starts from the beginning",
        )
        return False
    return True


def flush(file: IO[Any]) -> None:
    """Flush a written file to the disk; if its file system cannot do that, it is logged once.

    Raises OSError if the disk fails or is full.
    """
    try:
        os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        _warn_once(
            "flushes",
            f"the file system of {file.name} cannot flush files to the disk ({error.strerror}): after a power "
            "failure run `crop-assets verify`",
        )


def private_folder(folder: Path) -> None:
    """Make a folder that only this user can read and write, if it does not exist.

    Raises UnsafeNameError if it belongs to someone else, others may write to it, or a link is in its place.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise UnsafeNameError(
            f"{folder} belongs to others, who could change what is in it, or is not a folder; remove it: it holds only "
            "unfinished files. If it comes back like this, its file system keeps no owners or permissions: "
            "mount that with this user as the owner and a umask of 077"
        )
    if status.st_mode & 0o077:
        folder.chmod(0o700)


def no_follow(path: str, flags: int, folder: int | None = None) -> int:
    """An `opener` of `open` that raises OSError (ELOOP) if the file is a link; `folder` is a handle."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666, dir_fd=folder)


def copy_plain(source: Path, destination: Path) -> None:
    """Copy a file's bytes. Raises OSError (ELOOP) if the destination is a link."""
    with source.open("rb") as file, open(destination, "wb", opener=no_follow) as out:
        shutil.copyfileobj(file, out, 1 << 20)


def read_plain(path: Path, max_bytes: int) -> bytes:
    """The bytes of a small local file.

    Raises OSError if it cannot be read or is a link, UnsafeNameError if it is not a file, and IntegrityError if it has
    more than `max_bytes`.
    """
    # without O_NONBLOCK, opening a pipe would wait for a writer
    with open(path, "rb", opener=lambda name, flags: no_follow(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise UnsafeNameError(f"{path} is no file; remove it")
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise IntegrityError(f"{path} has more than {max_bytes:,} bytes")
    return data


def is_own_file(status: os.stat_result) -> bool:
    """Whether the `lstat` of a file is that of a regular file of this user, without other hard links."""
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.getuid() and status.st_nlink == 1


def is_abandoned(status: os.stat_result) -> bool:
    """Whether a temporary file has not been touched for a week, by its `lstat`."""
    # not st_mtime: a hard link that was just made to an old file has the old file's
    return time.time() - status.st_ctime > _ABANDONED_SECONDS


def remove_abandoned(folder: int, prefix: str) -> None:
    """Remove the abandoned files of a folder, given by its handle, whose names begin with `prefix`.

    Folders stay. What cannot be removed is skipped. Raises OSError if the folder cannot be listed.
    """
    # a handle of `folder_below` leads to a folder, but does not list it
    listing = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=folder)
    try:
        with os.scandir(listing) as entries:
            for entry in entries:
                if entry.name.startswith(prefix):
                    with contextlib.suppress(OSError):
                        if is_abandoned(entry.stat(follow_symlinks=False)):
                            os.unlink(entry.name, dir_fd=listing)
    finally:
        os.close(listing)


@contextlib.contextmanager
def folder_below(root: Path, parts: Sequence[str], make: bool = False) -> Iterator[int]:
    """A handle of a folder below `root`, for `dir_fd` of the functions of `os`: nobody can put a link in its place.

    With `make`, missing folders below the root are made. Raises FileNotFoundError if the folder is missing, and
    UnsafeNameError if a part of its path is a link or a file.
    """
    handle = os.open(root, _FOLDER)
    try:
        for number, part in enumerate(parts, 1):
            if make:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, dir_fd=handle)
            try:
                inner = os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=handle)
            except OSError as error:
                if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                    raise
                place = root.joinpath(*parts[:number])
                raise UnsafeNameError(
                    f"{place} is a file or a link, and a folder belongs there; remove it"
                ) from None
            os.close(handle)
            handle = inner
        yield handle
    finally:
        os.close(handle)


def require_no_links(root: Path, parts: Sequence[str]) -> None:
    """Raise UnsafeNameError if a part of a path below `root` is a link, or neither a file nor a folder.

    All parts but the last must be folders. The root itself may be a link. Parts may be missing.
    """
    # not a Path, which takes most of the time of writing a small file
    path = str(root)
    for number, part in enumerate(parts, 1):
        path = f"{path}/{part}"
        try:
            mode = os.lstat(path).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return
        if stat.S_ISLNK(mode):
            raise UnsafeNameError(
                f"{path} is a symbolic link, which is not followed, as it could lead anywhere; remove it, or put what "
                f"it leads to in its place. Only {root} itself may be a link"
            )
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise UnsafeNameError(f"{path} is neither a file nor a folder; remove it")
        if stat.S_ISREG(mode) and number < len(parts):
            raise UnsafeNameError(f"{path} is a file, and a folder belongs there; remove it")


def require_own_links(path: Path, folders: int = 1) -> None:
    """Raise UnsafeNameError if a file, or one of the innermost `folders` of its path, is a link of another user.

    Links of this user and of root are followed, because a file of many gigabytes is put where there is room.
    """
    for place in (*reversed(list(path.parents)[:folders]), path):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            status = place.lstat()
            if stat.S_ISLNK(status.st_mode) and status.st_uid not in (0, os.getuid()):
                raise UnsafeNameError(
                    f"{place} is a symbolic link of another user, which is not followed, as it could lead anywhere; "
                    "remove it, or make it yourself"
                )


def _warn_once(kind: str, message: str) -> None:
    with _warning:
        if kind in warned:
            return
        warned.add(kind)
    logging.getLogger(__name__).warning(message)
