"""Locks and flushes, which some file systems of clusters and object stores lack.

Belongs here: going on without them, and one warning about it. Does not: what is locked or written.
"""

import errno
import fcntl
import logging
import os
import threading
from typing import IO, Any

_UNSUPPORTED = frozenset({errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOLCK})
_warned: set[str] = set()
_warning = threading.Lock()


def lock(file: IO[Any], wait: bool = True) -> bool:
    """Lock an open file until it is closed; False where its file system has no locks, which is logged once.

    Raises BlockingIOError where another holds the lock and `wait` is false.
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
    """Flush a written file to the disk; that its file system cannot do that is logged once.

    Raises OSError where the disk fails or is full.
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


def _warn_once(kind: str, message: str) -> None:
    with _warning:
        if kind in _warned:
            return
        _warned.add(kind)
    logging.getLogger(__name__).warning(message)
