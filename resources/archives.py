"""Zip archives from outside: what may be taken out of one.

Belongs here: names, sizes and checksums of members. Does not: what the members are.
"""

import contextlib
import errno
import io
import lzma
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from resources.errors import DamagedError, IntegrityError

_MOST_TIMES_SMALLER = 200
"""Deflate's limit is 1,032; an uncompressed raster of few classes comes to some 50."""
_UNHEEDED_BYTES = 1 << 20
MAX_MEMBERS = 1000
"""A release has some ten, and a KMZ its pictures."""
_MAX_DIRECTORY_BYTES = 1 << 20
_PIECE = 1 << 20
_METHODS = {
    **dict.fromkeys((*range(1, 6), 10, 16, 18, 20, 94, 96, 97), "a rare method"),
    6: "Implode",
    9: "Deflate64",
    12: "bzip2",
    14: "LZMA",
    19: "LZ77",
    93: "Zstandard",
    95: "XZ",
    98: "PPMd",
    99: "AES encryption",
}
"""The methods of the format (APPNOTE.TXT, 4.4.5) that Python does not have, or not in every build."""
_END = struct.Struct("<4sH16x")
_MOST_END_BYTES = _END.size + 0xFFFF


def members(path: Path, max_bytes: int) -> list[zipfile.ZipInfo]:
    """The files of a zip, none of which leads out of a folder, and which together unpack to `max_bytes` at most.

    Raises DamagedError for what is no zip or is cut short, and IntegrityError for what is unsafe, a part of several, or
    has more than `MAX_MEMBERS`.
    """
    _require_one_part(path)
    with _opened(path) as archive:
        listed = archive.infolist()
    if len(listed) > MAX_MEMBERS:
        raise IntegrityError(f"{path} has {len(listed):,} members; the most is {MAX_MEMBERS:,}")
    # not `is_dir`, which fails for an empty name
    found = [member for member in listed if not member.filename.endswith("/")]
    for member in found:
        name = PurePosixPath(member.filename)
        if (
            not name.name
            or name.is_absolute()
            or ".." in name.parts
            or "\\" in member.filename
            or ":" in member.filename
        ):
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


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    with contextlib.ExitStack() as stack:
        with _damage_told(f"{path} is not a zip archive, or not all of one"):
            archive = stack.enter_context(zipfile.ZipFile(stack.enter_context(_File(path))))
        yield archive


class _File(io.FileIO):
    """A file of which no more is read at once than a directory of `MAX_MEMBERS` may have.

    zipfile reads the whole directory, and makes an object of each entry: some 20 times its bytes.
    """

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > _MAX_DIRECTORY_BYTES:
            raise IntegrityError(
                f"{self.name} has a list of members of {size:,} bytes, as of more than {MAX_MEMBERS:,} members"
            )
        return super().read(-1 if size is None else size)


def unpack(path: Path, member: zipfile.ZipInfo, target: Path, progress: Callable[[int], None]) -> None:
    """Write one member to `target`; `progress` gets the bytes written so far.

    Raises DamagedError where its bytes are not those that the archive's checksum is of, and IntegrityError where they
    are encrypted or compressed in a way that Python does not know.
    """
    problem = f"{path}: {member.filename} cannot be unpacked"
    with contextlib.ExitStack() as stack:
        archive = stack.enter_context(_opened(path))
        with _damage_told(problem):
            try:
                source = stack.enter_context(archive.open(member))
            except (NotImplementedError, RuntimeError) as error:
                if not member.flag_bits & 1 and member.compress_type not in (0, 8, *_METHODS):
                    raise DamagedError(f"{problem}: {error}") from None
                method = _METHODS.get(member.compress_type)
                why = f"it is compressed by {method}" if method else str(error)
                raise IntegrityError(f"{problem} by Python: {why}") from None
        file = stack.enter_context(target.open("wb"))
        while True:
            with _damage_told(problem):
                piece = source.read(_PIECE)
            if not piece:
                return
            file.write(piece)
            progress(file.tell())


def _require_one_part(path: Path) -> None:
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - _MOST_END_BYTES, 0))
        tail = file.read()
    start = tail.rfind(b"PK\5\6")
    if start < 0 or len(tail) - start < _END.size:
        return
    _, number = _END.unpack_from(tail, start)
    # 0xFFFF stands for the number in the record of large archives
    if number not in (0, 0xFFFF):
        raise IntegrityError(f"{path} is part {number + 1} of a zip archive in several")


@contextlib.contextmanager
def _damage_told(problem: str) -> Iterator[None]:
    """Turn what zipfile raises for damaged bytes into DamagedError, and for what it does not know into IntegrityError.

    Of OSErrors those are meant that come of seeking to wrong places; a disk that fails is another matter.
    """
    try:
        yield
    except NotImplementedError as error:
        raise IntegrityError(f"{problem}: {error}") from None
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError) as error:
        kind = IntegrityError if "multiple disks" in str(error) else DamagedError
        raise kind(f"{problem}: {error}") from None
    except OSError as error:
        if error.errno not in (errno.EINVAL, None):
            raise
        raise DamagedError(f"{problem}: {error}") from None
