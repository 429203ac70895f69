"""The dataset store: named files below one root, on a disk or in an object store, with atomic writes.

`crop_assets.layout` names the files of a dataset.
"""

import asyncio
import contextlib
import errno
import functools
import hashlib
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from fsspec.asyn import sync
from fsspec.callbacks import Callback
from fsspec.exceptions import FSTimeoutError
from pydantic import Field, PrivateAttr, field_validator
from upath import UPath

from resources.addresses import require_local_or_s3
from resources.errors import IntegrityError, SlowError, UnsafeNameError
from resources.file_system import (
    flush,
    folder_below,
    is_abandoned,
    no_follow,
    private_folder,
    remove_abandoned,
    require_no_links,
)
from resources.object_store import translated
from resources.resume import PartialFiles
from resources.settings import Settings

_CHUNK = 1 << 20
_TEMPORARY = ".writing-"
_SCRATCH = ".scratch-"
_PARTS_AT_ONCE = 2
"""Parts of a large upload that are in memory at once, at 50 MB each."""
_READS_AT_ONCE = 32
_UPLOAD_SECONDS, _SLOWEST_UPLOAD = 120.0, 100_000.0
"""Seconds, and bytes a second, that an upload may take at most."""
_MAX_HASHED_BYTES = (1 << 40) - 1
_MAX_COPIED_BYTES = 256 << 20
"""An object of more bytes is hashed in pieces, as there may be no room for a copy."""
_MAX_NAME, _MAX_PATH = 255, 1024
"""Most bytes of a name in a file system, and of a key in an object store."""
_NOT_IN_NAMES = frozenset(":\\\0")


@dataclass(frozen=True)
class Tail:
    """The last bytes of a file, and its size; of an object, also its ETag, which differs if its bytes do."""

    data: bytes
    size: int
    etag: str = ""


class DatasetStore(Settings):
    """All files of all datasets, named by POSIX paths relative to `root`.

    Writes are atomic: a file is written in a folder that only this user can write to, then renamed (local disk) or
    uploaded (object store), in one request or, from 100 MB, in parts that become an object when all have arrived. What
    a killed process leaves on this machine is removed a week later, by the next write of this user; parts of an upload
    are left to the object store. On a local disk no link below the root is followed, because others may share the
    disk: reading a link raises UnsafeNameError, and writing replaces it. A folder in place of a file, or a file in
    place of a folder, raises UnsafeNameError too. Methods that ask an object store raise the errors of
    `resources.object_store.translated`.
    """

    root: str = Field(
        default="data", description="A local folder, or an object store URL such as s3://bucket/prefix."
    )
    _is_a_place = field_validator("root")(require_local_or_s3)
    _swept: set[Path] = PrivateAttr(default_factory=set)
    _scratch: Path | None = PrivateAttr(default=None)
    _copies: dict[str, Path] = PrivateAttr(default_factory=dict)

    def path(self, name: str) -> UPath:
        """The path of `name` below the root. Raises UnsafeNameError if the name leads out of it, or over a link.

        A colon is no part of a name: fsspec and GDAL take what stands before it for a protocol.
        """
        return self._checked(name, len)

    def _target(self, name: str) -> UPath:
        """The path of a file that will be replaced, whatever it is; its folders are checked as in `path`."""
        return self._checked(name, lambda parts: len(parts) - 1)

    def _checked(self, name: str, count: Callable[[Sequence[str]], int]) -> UPath:
        parts = _parts(name)
        if self.is_local:
            require_no_links(self._local_root, parts[: count(parts)])
        return self._place.joinpath(*parts)

    @cached_property
    def _local_root(self) -> Path:
        return Path(self._place.path)

    @cached_property
    def _place(self) -> UPath:
        # a cached listing would hide what other machines have written since
        return UPath(self.root) if self.is_local else UPath(self.root, use_listings_cache=False)

    @cached_property
    def is_local(self) -> bool:
        return UPath(self.root).protocol in ("", "file")

    def gdal_path(self, name: str) -> str:
        """The name by which GDAL opens the file: a local path, or one in /vsis3/ and the like."""
        path = self.path(name)
        if self.is_local:
            return path.path
        return f"/vsi{path.protocol}/{path.path}"

    @contextlib.contextmanager
    def scratch(self) -> Iterator["DatasetStore"]:
        """This store, which until the block ends keeps local copies of the objects that are written or read through
        it, and reads them from there: changes that others make meanwhile are not noticed. A local store keeps none.

        The copies take as much room in the temporary folder as these objects.
        """
        if self.is_local:
            yield self
            return
        outer = self._own_temporary
        for left in outer.glob(f"{_SCRATCH}*"):
            with contextlib.suppress(FileNotFoundError):
                if is_abandoned(left.lstat()):
                    shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=outer, ignore_cleanup_errors=True) as folder:
            store = type(self)(**self.model_dump())
            store._scratch = Path(folder)
            yield store

    def _new_copy(self, name: str) -> Path:
        """A path in the scratch folder for a copy of `name`, with the same last part."""
        assert self._scratch
        folder = self._scratch / uuid.uuid4().hex
        folder.mkdir()
        return folder / PurePosixPath(name).name

    def exists(self, name: str) -> bool:
        path = self.path(name)
        if self.is_local:
            return path.is_file()
        # s3fs takes a missing bucket for a missing file
        try:
            with translated(str(path)):
                path.stat()
        except FileNotFoundError:
            return False
        return True

    def size(self, name: str) -> int:
        path = self.path(name)
        with translated(str(path)):
            return int(path.stat().st_size)

    def read_bytes(self, name: str, max_bytes: int | None = None) -> bytes:
        """The bytes of a file. Raises IntegrityError if there are more than `max_bytes`."""
        if not self.is_local:
            with self.local(name, max_bytes) as copy:
                return copy.read_bytes()
        if max_bytes is not None:
            require_size(name, self.size(name), max_bytes)
        with self.reading(name) as file:
            found = file.read() if max_bytes is None else file.read(max_bytes + 1)
        if max_bytes is not None:
            require_size(name, len(found), max_bytes)
        return found

    @contextlib.contextmanager
    def reading(self, name: str) -> Iterator[IO[bytes]]:
        """A file open for reading. Raises FileNotFoundError if there is none."""
        path = self.path(name)
        if self.is_local:
            *folders, last = PurePosixPath(name).parts
            with folder_below(self._local_root, folders) as folder:
                # without O_NONBLOCK, opening a pipe would wait for a writer
                handle = no_follow(last, os.O_RDONLY | os.O_NONBLOCK, folder)
            mode = os.fstat(handle).st_mode
            if not stat.S_ISREG(mode):
                os.close(handle)
                raise (
                    _is_a_folder(path)
                    if stat.S_ISDIR(mode)
                    else UnsafeNameError(f"{path} is no file; remove it")
                )
            local = os.fdopen(handle, "rb")
            with local:
                yield local
            return
        if copy := self._copies.get(name):
            with copy.open("rb") as file:
                yield file
            return
        with translated(str(path)), path.open("rb") as file:
            yield file

    def sha256(self, name: str) -> str:
        """SHA-256 of a file in hex. Raises IntegrityError if it has a terabyte or more."""
        if not self.is_local:
            with contextlib.suppress(IntegrityError), self.local(name, _MAX_COPIED_BYTES) as copy:
                return sha256_of(copy)
        require_size(name, self.size(name), _MAX_HASHED_BYTES)
        digest = hashlib.sha256()
        with self.reading(name) as file:
            while piece := file.read(_CHUNK):
                digest.update(piece)
        return digest.hexdigest()

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """A local path to write to, which becomes `name` when the block ends without an error.

        The path has the suffix of `name`. After an error, nothing is written.
        """
        target = self._target(name)
        folder = self.writing_folder
        local = folder / _temporary_name(PurePosixPath(name).suffix)
        self._sweep(folder)
        local.touch(exist_ok=False)
        try:
            yield local
            # the block may have put another file there, but no link
            require_no_links(folder, [local.name])
            # opened for reading, because a hard link to another file of the store may not be writable
            with open(local, "rb", opener=no_follow) as file:
                flush(file)
            if self.is_local:
                self._rename(local, name)
            else:
                with translated(str(target)):
                    _upload(target, local)
                if self._scratch:
                    copy = self._new_copy(name)
                    local.rename(copy)
                    self._copies[name] = copy
        finally:
            local.unlink(missing_ok=True)

    def _rename(self, local: Path, name: str) -> None:
        """Move a file to `name` without following links; onto another disk, which may be mounted there, by a copy."""
        *folders, last = PurePosixPath(name).parts
        place = self._local_root
        with folder_below(place, folders, make=True) as folder:
            status = os.fstat(folder)
            if status.st_mode & stat.S_ISGID:
                # as if the file had been made there
                with contextlib.suppress(OSError):
                    os.chown(local, -1, status.st_gid, follow_symlinks=False)
            try:
                try:
                    os.replace(local, last, dst_dir_fd=folder)
                except OSError as error:
                    if error.errno != errno.EXDEV:
                        raise
                    self._sweep(place, folders)
                    _copy_and_rename(local, last, folder)
            except IsADirectoryError:
                raise _is_a_folder(place / name) from None

    def _sweep(self, root: Path, parts: Sequence[str] = ()) -> None:
        """Remove abandoned temporary files from a folder below `root`; once only, because it may hold many files."""
        path = root.joinpath(*parts)
        if path in self._swept:
            return
        self._swept.add(path)
        # one that others share may not be listed by everybody
        with contextlib.suppress(OSError), folder_below(root, parts) as folder:
            remove_abandoned(folder, _TEMPORARY)

    @contextlib.contextmanager
    def local(self, name: str, max_bytes: int | None = None) -> Iterator[Path]:
        """A local path to read `name` from: the file itself, or a copy that is removed when the block ends.

        With `max_bytes`, raises FileNotFoundError if there is no such file, and IntegrityError if it has more bytes.
        """
        if self.is_local:
            if max_bytes is not None:
                if not self.exists(name):
                    raise FileNotFoundError(name)
                require_size(name, self.size(name), max_bytes)
            yield Path(self.path(name).path)
            return
        if found := self._copies.get(name):
            if max_bytes is not None:
                require_size(name, found.stat().st_size, max_bytes)
            yield found
        elif self._scratch:
            copy = self._new_copy(name)
            self._download(name, copy, max_bytes)
            self._copies[name] = copy
            yield copy
        else:
            with tempfile.TemporaryDirectory() as folder:
                copy = Path(folder) / PurePosixPath(name).name
                self._download(name, copy, max_bytes)
                yield copy

    def _download(self, name: str, copy: Path, max_bytes: int | None) -> None:
        path = self.path(name)
        try:
            with translated(str(path)):
                path.fs.get_file(path.path, str(copy), callback=_Limit(name, max_bytes))
        except BaseException:
            copy.unlink(missing_ok=True)
            raise

    def tail(self, name: str, count: int) -> Tail:
        """The last `count` bytes of a file, or all if it has fewer. Raises FileNotFoundError if there is none."""
        if self.is_local or name in self._copies:
            with self.reading(name) as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - count))
                return Tail(file.read(count), size)
        path = self.path(name)
        with translated(str(path)):
            return cast(Tail, sync(path.fs.loop, _tail_of_object, path.fs, path.path, count))

    def tails(self, names: Sequence[str], count: int) -> dict[str, Tail]:
        """`tail` of objects by name, many at a time, without those that cannot be read. Not for a local store."""
        paths = {name: self.path(name).path for name in names}
        fs = self._place.fs
        return cast(dict[str, Tail], sync(fs.loop, _tails_of_objects, fs, paths, count))

    def etags(self, folder: str) -> dict[str, str]:
        """The ETags of the objects in a folder by name. Not for a local store."""
        path = self.path(folder)
        try:
            with translated(str(path)):
                listed = path.fs.ls(path.path, detail=True)
        except FileNotFoundError:
            return {}
        files = [entry for entry in listed if entry["type"] == "file"]
        return {f"{folder}/{PurePosixPath(file['name']).name}": str(file.get("ETag", "")) for file in files}

    def sizes(self, folder: str) -> dict[str, int]:
        """The bytes of the files directly in a folder, by their name there, from one listing; links are left out."""
        path = self.path(folder)
        if self.is_local:
            try:
                with os.scandir(path.path) as entries:
                    return {
                        entry.name: entry.stat(follow_symlinks=False).st_size
                        for entry in entries
                        if entry.is_file(follow_symlinks=False)
                    }
            except (FileNotFoundError, NotADirectoryError):
                return {}
        try:
            with translated(str(path)):
                listed = path.fs.ls(path.path, detail=True)
        except FileNotFoundError:
            return {}
        files = [entry for entry in listed if entry["type"] == "file"]
        return {PurePosixPath(file["name"]).name: int(file["size"]) for file in files}

    def write_pieces(self, name: str, pieces: Iterable[bytes]) -> tuple[int, str]:
        """Write a file piece by piece, as `writing` does; returns its size and its SHA-256 in hex."""
        digest = hashlib.sha256()
        size = 0
        with self.writing(name) as local, open(local, "wb", _CHUNK, opener=no_follow) as file:
            for piece in pieces:
                file.write(piece)
                digest.update(piece)
                size += len(piece)
        return size, digest.hexdigest()

    def write_bytes(self, name: str, data: bytes) -> None:
        with self.writing(name) as local, open(local, "wb", opener=no_follow) as file:
            file.write(data)

    def copy_file(self, source: str, name: str) -> None:
        """Copy a file; on a local disk as a hard link, which takes no room, in an object store by the server.

        Files of the store are replaced and never changed in place, so the copy does not change with the original.
        """
        if not self.is_local:
            path, target = self.path(source), self._target(name)
            with translated(str(path)):
                # servers refuse to copy an object onto itself
                if path != target:
                    # cp_file asks for the size first, because more than 5 GB cannot be copied like this
                    bucket, _, key = path.path.partition("/")
                    to, _, name_there = target.path.partition("/")
                    origin = {"Bucket": bucket, "Key": key}
                    path.fs.call_s3("copy_object", Bucket=to, Key=name_there, CopySource=origin)
            self._copies.pop(name, None)
            return
        with self.writing(name) as local:
            local.unlink()
            with contextlib.suppress(OSError):
                os.link(self.path(source).path, local)
                return
            with self.reading(source) as file, open(local, "wb", opener=no_follow) as out:
                shutil.copyfileobj(file, out, _CHUNK)

    @cached_property
    def partials(self) -> PartialFiles:
        """Where unfinished downloads are kept: below a local root, else in this machine's temporary folder."""
        if self.is_local:
            return PartialFiles.below(self._local_root)
        return PartialFiles(self._own_temporary)

    @property
    def writing_folder(self) -> Path:
        """The folder in which files are written: on the disk of a local root, so that they can be renamed."""
        if not self.is_local:
            return self._own_temporary
        outer = self._local_root / f".partial-{os.getuid()}"
        private_folder(outer)
        private_folder(outer / "writing")
        return outer / "writing"

    @property
    def _own_temporary(self) -> Path:
        """This user's own folder in this machine's folder for temporary files."""
        folder = Path(tempfile.gettempdir()) / f"crop-assets-{os.getuid()}"
        private_folder(folder)
        return folder

    def require_room(self, count: int) -> None:
        """Raise OSError if the disk of a local store, or of the temporary folder, has no room for `count` bytes."""
        require_room(self._local_root if self.is_local else Path(tempfile.gettempdir()), count)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there. A folder in its place stays."""
        path = self.path(name)
        if not self.is_local:
            with contextlib.suppress(FileNotFoundError), translated(str(path)):
                path.fs.rm_file(path.path)
            self._copies.pop(name, None)
        elif path.is_file():
            *folders, last = PurePosixPath(name).parts
            with (
                contextlib.suppress(FileNotFoundError, IsADirectoryError),
                folder_below(self._local_root, folders) as folder,
            ):
                os.unlink(last, dir_fd=folder)

    def usage(self, folder: str) -> dict[str, tuple[int, int]]:
        """Files and bytes of each folder directly in `folder`; "" are those of the files directly in it.

        A file with several hard links, below a local root, counts as one file of the first folder that has it.
        """
        path = self.path(folder)
        sizes: Iterator[tuple[str, int]]
        if self.is_local:
            sizes = _sizes_below(Path(path.path))
        else:
            prefix = path.path.rstrip("/") + "/"
            with translated(str(path)):
                found = path.fs.find(path.path, detail=True)
            sizes = ((key.removeprefix(prefix), int(info["size"])) for key, info in found.items())
        counted: dict[str, tuple[int, int]] = {}
        for name, size in sizes:
            first = name.partition("/")[0] if "/" in name else ""
            files, count = counted.get(first, (0, 0))
            counted[first] = files + 1, count + size
        return dict(sorted(counted.items()))

    def names(self, folder: str) -> list[str]:
        """Sorted names of the files and folders in `folder`, relative to the root; none if it is not a folder.

        What others put there under a name that `path` refuses is left out.
        """
        path = self.path(folder)
        if self.is_local:
            found = [entry.name for entry in path.iterdir()] if path.is_dir() else []
        else:
            try:
                with translated(str(path)):
                    # a file, or an empty object for the folder itself, is listed by its own name
                    listed = [str(entry).rstrip("/") for entry in path.fs.ls(path.path, detail=False)]
            except FileNotFoundError:
                listed = []
            found = [PurePosixPath(entry).name for entry in listed if entry != path.path.rstrip("/")]
        names = (f"{folder}/{name}" for name in found if not name.startswith(_TEMPORARY))
        return sorted(name for name in names if _is_name(name))


def _sizes_below(folder: Path) -> Iterator[tuple[str, int]]:
    """The names of the files below a folder, relative to it, and their bytes; links are left out."""
    seen: set[int] = set()
    for where, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            with contextlib.suppress(FileNotFoundError):
                status = os.lstat(f"{where}/{name}")
                if stat.S_ISREG(status.st_mode) and status.st_ino not in seen:
                    seen.add(status.st_ino)
                    yield f"{where}/{name}"[len(str(folder)) + 1 :], status.st_size


def _parts(name: str) -> tuple[str, ...]:
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or set(name) & _NOT_IN_NAMES or ".." in parts:
        raise UnsafeNameError(f"{name!r:.200} is not a name below the store's root")
    try:
        longest = max(len(os.fsencode(part)) for part in parts)
    except UnicodeEncodeError:
        raise UnsafeNameError(f"{name!r:.200} cannot be a name in a file system") from None
    if longest > _MAX_NAME or len(name) > _MAX_PATH:
        raise UnsafeNameError(f"{name!r:.200} is longer than names of files may be")
    return parts


def _is_name(name: str) -> bool:
    try:
        return bool(_parts(name))
    except UnsafeNameError:
        return False


def _upload(target: UPath, local: Path) -> None:
    """Upload a file. Raises SlowError if the object store takes it slower than any that is of use.

    s3fs would wait for ever for a server that keeps the connection open and reads nothing more.
    """
    size = local.stat().st_size
    seconds = _UPLOAD_SECONDS + size / _SLOWEST_UPLOAD
    fs, options = target.fs, {"max_concurrency": _PARTS_AT_ONCE}
    try:
        sync(fs.loop, fs._put_file, str(local), target.path, timeout=seconds, **options)
    except FSTimeoutError:
        raise SlowError(
            f"{target}: the object store did not take {size:,} bytes in {seconds:.0f} s; try again later"
        ) from None


async def _tail_of_object(fs: Any, path: str, count: int) -> Tail:
    bucket, _, key = path.partition("/")
    try:
        found = await fs._call_s3("get_object", Bucket=bucket, Key=key, Range=f"bytes=-{count}")
    except OSError as error:
        # an empty object has no last bytes
        if getattr(error.__cause__, "response", {}).get("Error", {}).get("Code") == "InvalidRange":
            return Tail(b"", 0)
        raise
    if found["ContentLength"] > count:
        raise IntegrityError(f"{path}: the object store ignored that {count:,} bytes were requested")
    async with found["Body"] as body:
        data = await body.read()
    size = str(found.get("ContentRange", "")).rpartition("/")[2]
    return Tail(data, int(size) if size.isdecimal() else len(data), str(found.get("ETag", "")))


async def _tails_of_objects(fs: Any, paths: Mapping[str, str], count: int) -> dict[str, Tail]:
    waiting, found = iter(paths.items()), {}

    async def read() -> None:
        for name, path in waiting:
            with contextlib.suppress(OSError, IntegrityError):
                found[name] = await _tail_of_object(fs, path, count)

    await asyncio.gather(*(read() for _ in range(_READS_AT_ONCE)))
    return found


class _Limit(Callback):  # type: ignore[misc]
    """Refuses a file that has more than `max_bytes` bytes as soon as its size is known."""

    def __init__(self, name: str, max_bytes: int | None) -> None:
        super().__init__()
        self._name, self._max_bytes = name, max_bytes

    def set_size(self, size: int | None) -> None:
        if self._max_bytes is not None:
            require_size(self._name, size or 0, self._max_bytes)


def require_size(name: str, size: int, max_bytes: int) -> None:
    """Raise IntegrityError if a file has more than `max_bytes` bytes."""
    if size > max_bytes:
        raise IntegrityError(f"{name} has {size:,} bytes; the most is {max_bytes:,}")


def sha256_of(path: Path) -> str:
    """SHA-256 of a local file's bytes in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_a_folder(path: object) -> UnsafeNameError:
    return UnsafeNameError(f"{path} is a folder, and a file belongs there; remove it")


def _temporary_name(suffix: str) -> str:
    return f"{_TEMPORARY}{uuid.uuid4().hex}{suffix}"


def _copy_and_rename(local: Path, name: str, folder: int) -> None:
    """Like `os.replace`, but from another disk; `folder` is a handle."""
    writing = _temporary_name("")
    try:
        with (
            local.open("rb") as file,
            open(writing, "xb", opener=functools.partial(no_follow, folder=folder)) as out,
        ):
            shutil.copyfileobj(file, out, _CHUNK)
            out.flush()
            flush(out)
        os.replace(writing, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(writing, dir_fd=folder)
        raise


def require_room(folder: Path, count: int) -> None:
    """Raise OSError if the disk of a folder, which need not exist yet, has no room for `count` bytes."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < count:
        raise OSError(
            errno.ENOSPC,
            f"{folder} has {free / 1e6:,.0f} MB free, and {count / 1e6:,.0f} MB are needed; make room",
        )
