"""Zip archives from outside: what may be taken out of one.

Belongs here: names, sizes and checksums of members. Does not: what the members are.
"""

import contextlib
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from resources.errors import IntegrityError

_MOST_TIMES_SMALLER = 200
"""Deflate's limit is 1,032; an uncompressed raster of few classes comes to some 50."""
_UNHEEDED_BYTES = 1 << 20
_PIECE = 1 << 20


def members(path: Path, max_bytes: int) -> list[zipfile.ZipInfo]:
    """The files of a zip, none of which leads out of a folder, and which together unpack to `max_bytes` at most.

    Raises IntegrityError for what is no zip, is cut short, or is unsafe.
    """
    with _damage_told(f"{path} is not a zip archive, or not all of one"), zipfile.ZipFile(path) as archive:
        found = [member for member in archive.infolist() if not member.is_dir()]
    for member in found:
        name = PurePosixPath(member.filename)
        if name.is_absolute() or ".." in name.parts or "\\" in member.filename or ":" in member.filename:
            raise IntegrityError(f"{path} holds a member with the unsafe name {member.filename!r}")
        if member.file_size > _UNHEEDED_BYTES + _MOST_TIMES_SMALLER * member.compress_size:
            raise IntegrityError(
                f"{path}: {member.filename} would unpack {member.compress_size:,} bytes to {member.file_size:,}, "
                f"more than {_MOST_TIMES_SMALLER} times as many, as archives do that are made to fill a disk"
            )
    size = sum(member.file_size for member in found)
    if size > max_bytes:
        raise IntegrityError(
            f"{path} unpacks to {size / 2**30:.1f} GiB; the most is {max_bytes / 2**30:.1f} GiB"
        )
    return found


def unpack(path: Path, member: zipfile.ZipInfo, target: Path, progress: Callable[[int], None]) -> None:
    """Write one member to `target`; `progress` gets the bytes written so far.

    Raises IntegrityError where its bytes are not those that the archive's checksum is of.
    """
    problem = f"{path}: {member.filename} cannot be unpacked"
    with contextlib.ExitStack() as stack:
        with _damage_told(problem):
            archive = stack.enter_context(zipfile.ZipFile(path))
            source = stack.enter_context(archive.open(member))
        file = stack.enter_context(target.open("wb"))
        while True:
            with _damage_told(problem):
                piece = source.read(_PIECE)
            if not piece:
                return
            file.write(piece)
            progress(file.tell())


@contextlib.contextmanager
def _damage_told(problem: str) -> Iterator[None]:
    """Turn what zipfile raises for damaged bytes into IntegrityError; an OSError too, for it seeks to wrong places."""
    try:
        yield
    except (
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        EOFError,
        NotImplementedError,
        RuntimeError,
        ValueError,
        OSError,
    ) as error:
        raise IntegrityError(f"{problem}: {error}") from None
