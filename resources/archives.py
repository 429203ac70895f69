"""Reading zip archives from outside safely: names, sizes and checksums of their members."""

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

_MAX_COMPRESSION_RATIO = 200
"""The limit of Deflate is 1,032; an uncompressed raster with few classes has about 50."""
_UNHEEDED_BYTES = 1 << 20
MAX_MEMBERS = 1000
"""A release has about ten; a KMZ contains its pictures."""
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
"""The compression methods (APPNOTE.TXT, 4.4.5) that Python does not support, at least not in every build."""
_END = struct.Struct("<4sH16x")
_MAX_END_BYTES = _END.size + 0xFFFF


def members(path: Path, max_bytes: int) -> list[zipfile.ZipInfo]:
    """The files in a zip. None has a path that leads out of a folder, and all unpack to at most `max_bytes`.

    Raises DamagedError if it is not a zip or is cut short, and IntegrityError if it is unsafe, is one of several parts,
    or has more than `MAX_MEMBERS` members.
    """
    _require_one_part(path)
    with _open(path) as archive:
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
            raise IntegrityError(f"{path} has a member with the unsafe name {member.filename!r}")
        if member.file_size > _UNHEEDED_BYTES + _MAX_COMPRESSION_RATIO * member.compress_size:
            raise IntegrityError(
                f"{path}: {member.filename} would unpack {member.compress_size:,} bytes to {member.file_size:,}, "
                f"more than {_MAX_COMPRESSION_RATIO} times as many; such archives are made to fill a disk"
            )
    size = sum(member.file_size for member in found)
    if size > max_bytes:
        raise IntegrityError(
            f"{path} unpacks to {size / 2**30:.1f} GiB; the most is {max_bytes / 2**30:.1f} GiB"
        )
    return found


@contextlib.contextmanager
def _open(path: Path) -> Iterator[zipfile.ZipFile]:
    with contextlib.ExitStack() as stack:
        with _translate_errors(f"{path} is not a zip archive, or is cut short"):
            archive = stack.enter_context(zipfile.ZipFile(stack.enter_context(_BoundedFile(path))))
        yield archive


class _BoundedFile(io.FileIO):
    """A file that limits a read to the size of a directory with `MAX_MEMBERS` entries.

    zipfile reads the entire directory, and makes an object of each entry: about 20 times its bytes.
    """

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > _MAX_DIRECTORY_BYTES:
            raise IntegrityError(
                f"{self.name} has a directory of {size:,} bytes, too large for {MAX_MEMBERS:,} members"
            )
        return super().read(-1 if size is None else size)


def unpack(path: Path, member: zipfile.ZipInfo, target: Path, progress: Callable[[int], None]) -> None:
    """Write one member to `target`; `progress` gets the bytes written so far.

    Raises DamagedError if its bytes do not match the archive's checksum, and IntegrityError if they are encrypted or
    compressed in a way that Python does not support.
    """
    problem = f"{path}: {member.filename} cannot be unpacked"
    with contextlib.ExitStack() as stack:
        archive = stack.enter_context(_open(path))
        with _translate_errors(problem):
            try:
                source = stack.enter_context(archive.open(member))
            except (NotImplementedError, RuntimeError) as error:
                if not member.flag_bits & 1 and member.compress_type not in (0, 8, *_METHODS):
                    raise DamagedError(f"{problem}: {error}") from None
                method = _METHODS.get(member.compress_type)
                why = f"it is compressed with {method}" if method else str(error)
                raise IntegrityError(f"{problem} by Python: {why}") from None
        file = stack.enter_context(target.open("wb"))
        while True:
            with _translate_errors(problem):
                piece = source.read(_PIECE)
            if not piece:
                return
            file.write(piece)
            progress(file.tell())


def _require_one_part(path: Path) -> None:
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - _MAX_END_BYTES, 0))
        tail = file.read()
    start = tail.rfind(b"PK\5\6")
    if start < 0 or len(tail) - start < _END.size:
        return
    _, number = _END.unpack_from(tail, start)
    # 0xFFFF stands for the number in the record of large archives
    if number not in (0, 0xFFFF):
        raise IntegrityError(f"{path} is part {number + 1} of a zip archive in several parts")


@contextlib.contextmanager
def _translate_errors(problem: str) -> Iterator[None]:
    """Turn the errors of zipfile into DamagedError for damaged bytes and IntegrityError for unsupported methods.

    This includes an OSError from seeking to an invalid offset, but not the failure of a disk.
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
