"""Verified, resumable retrieval: builds a file from untrusted streams of blocks, given its trusted CID."""

import contextlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType

from resources.errors import CutShortError, IntegrityError, NotFoundError, ResourceError
from resources.ipfs.car import MAX_SECTION, read_car
from resources.ipfs.cid import Cid
from resources.ipfs.unixfs import FileNode, decode_file_node
from resources.pace import Pace, max_seconds
from resources.resume import move

MAX_NODES = 1 << 18
"""Nodes of a file's tree: 64 GiB in leaves of 256 KiB. Limits the work and the memory (some 60 MB) that a hostile
tree can cause, for example one of empty leaves."""

_SPARE = 16 << 20
"""Bytes that a stream may have beyond twice the file, for nodes of the tree and repeated blocks."""
_SPARE_BLOCKS = 1024
_SMALL_BLOCK = 1024
"""Least average bytes of blocks that come early and wait on disk; blocks of files have 256 KiB and more."""
_PIECE = 1 << 20


class Retrieval:
    """A file being retrieved: its verified beginning in `path`, and the blocks expected next.

    `<path>.tree` beside it has the inner blocks of the file's tree. Both are kept if the retrieval is interrupted, and
    the next Retrieval of that path verifies them by the CID and resumes after the verified part. Memory is bounded by
    one block and MAX_NODES, not by the size of the file. Only one may be open for a path at a time.
    """

    def __init__(
        self, root: Cid, path: Path, max_bytes: int, progress: Callable[[int], None] | None = None
    ) -> None:
        """`max_bytes` limits the file; `progress` gets the bytes of the file that each block adds."""
        self.at = 0
        """Bytes of the file that are verified and written."""
        self._root = root
        self._path = path
        self._max_bytes = max_bytes
        self._progress: Callable[[int], None] | None = None
        self._size: int | None = None
        self._expected: list[tuple[Cid, int | None]] = [(root, None)]
        self._places: dict[bytes, tuple[int, int]] = {}
        self._seen: set[bytes] = set()
        self._nodes = 1
        self._tree_at = 0
        self._files = contextlib.ExitStack()
        self._out = self._open(path)
        self._tree = self._open(_tree_of(path))
        self._verify_existing()
        self._progress = progress

    def __enter__(self) -> "Retrieval":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the files, and remove them if they are empty."""
        self._files.close()
        if not self.whole and not self.at:
            _tree_of(self._path).unlink()
            self._path.unlink()

    def move_to(self, destination: Path) -> None:
        """Move the file, which must be complete and closed, to `destination`, replacing any file there."""
        move(self._path, destination)
        _tree_of(self._path).unlink()

    @property
    def whole(self) -> bool:
        return not self._expected

    def feed(self, pieces: Iterable[bytes], patience: float = 60.0) -> int:
        """Complete the file from a CAR that arrives in `pieces`; returns the size of the file in bytes.

        Blocks may come in any order, once or repeatedly; those already verified may be left out. A block that comes
        early waits on disk. The stream is not read beyond the last block that is needed.

        Raises IntegrityError if a block does not match its CID, the tree is malformed, its sizes do not add up, the
        file is larger than allowed, or the stream has blocks of something else; CutShortError if it ends early;
        NotFoundError if it has no block at all; SlowError like `Pace` with `patience`, where repeated blocks do not
        count.
        """
        aside = self._path.with_name(f"{self._path.name}.aside")
        pace = Pace(patience, max_seconds(self._max_bytes))
        with _Stream(pieces, aside, self._seen, pace) as stream:
            while self._expected:
                cid, _ = self._expected[-1]
                if self._repeat():
                    continue
                size = self._max_bytes if self._size is None else self._size
                # gateways omit identity blocks, as the CID itself has the bytes
                block = cid.digest if cid.hash_name == "identity" else stream.find(cid, 2 * size + _SPARE)
                if block is None:
                    raise self._missing(stream)
                self._accept(block)
        return self.at

    def _open(self, path: Path) -> int:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        self._files.callback(os.close, file)
        return file

    def _verify_existing(self) -> None:
        """Verify the files of an earlier retrieval, and truncate them after the verified part."""
        # errors in the tree itself are reported when the stream sends it
        with contextlib.suppress(IntegrityError):
            while self._expected:
                if self._repeat():
                    continue
                cid, size = self._expected[-1]
                block = self._leaf_there(size) if cid.codec == "raw" else self._tree_block_there()
                if not block or not cid.matches(block):
                    break
                self._accept(block)
        os.truncate(self._out, self.at)
        os.truncate(self._tree, self._tree_at)

    def _leaf_there(self, size: int | None) -> bytes:
        size = os.fstat(self._out).st_size if size is None else size
        return os.pread(self._out, size, self.at) if size <= MAX_SECTION else b""

    def _tree_block_there(self) -> bytes:
        length = int.from_bytes(os.pread(self._tree, 4, self._tree_at))
        return os.pread(self._tree, length, self._tree_at + 4) if length <= MAX_SECTION else b""

    def _accept(self, block: bytes) -> None:
        """Write the verified block of the CID that was expected next."""
        cid, promised = self._expected[-1]
        node = FileNode(block, (), len(block)) if cid.codec == "raw" else decode_file_node(block)
        self._check_size(cid, node.size, promised)
        self._nodes += len(node.links)
        if self._nodes > MAX_NODES:
            raise IntegrityError(f"the tree of {self._root} has more than {MAX_NODES} nodes")
        if promised is None:
            self._size = node.size
        _write(self._out, node.data, self.at)
        if cid.codec != "raw":
            _write(self._tree, len(block).to_bytes(4) + block, self._tree_at)
            self._tree_at += 4 + len(block)
        self._places[_place_key(cid)] = (self.at, node.size)
        self._seen.add(_key(cid))
        self.at += len(node.data)
        self._expected.pop()
        self._expected.extend((link.cid, link.size) for link in reversed(node.links))
        self._tell(len(node.data))

    def _repeat(self) -> bool:
        """Copy the next expected part of the tree from earlier in the file, if it was written there."""
        cid, promised = self._expected[-1]
        if _place_key(cid) not in self._places:
            return False
        start, length = self._places[_place_key(cid)]
        self._check_size(cid, length, promised)
        for offset in range(start, start + length, _PIECE):
            piece = os.pread(self._out, min(_PIECE, start + length - offset), offset)
            _write(self._out, piece, self.at)
            self.at += len(piece)
        self._expected.pop()
        self._tell(length)
        return True

    def _tell(self, count: int) -> None:
        if self._progress:
            self._progress(count)

    def _check_size(self, cid: Cid, size: int, promised: int | None) -> None:
        """Raise IntegrityError for a wrong size. Only the root has no promised size, and its size is the file's."""
        if promised is None and size > self._max_bytes:
            raise IntegrityError(f"the file has {size} bytes, more than the {self._max_bytes} allowed")
        if promised is not None and size != promised:
            raise IntegrityError(f"block {cid} holds {size} bytes of the file, its parent says {promised}")

    def _missing(self, stream: "_Stream") -> ResourceError:
        cid, _ = self._expected[-1]
        if not stream.began:
            # a node may start a CAR before it finds out that it does not have the block
            return NotFoundError(f"the CAR of {self._root} holds no block")
        pending = {_key(expected) for expected, _ in self._expected}
        stranger = next((sent for key, sent in stream.waiting.items() if key not in pending), None)
        if stranger:
            return IntegrityError(
                f"expected block {cid} at byte {self.at} of the file, but {stranger} was sent"
            )
        return CutShortError(f"the stream ended at byte {self.at} of the file, before block {cid}")


class _Stream:
    """Looks up the blocks of one CAR by CID. Those that come early wait in a file."""

    def __init__(self, pieces: Iterable[bytes], aside: Path, seen: set[bytes], pace: Pace) -> None:
        self.waiting: dict[bytes, Cid] = {}
        self.began = False
        self._sections = read_car(pieces)
        self._aside = aside
        # a killed process may have left one
        aside.unlink(missing_ok=True)
        self._seen = seen
        self._pace = pace
        self._again: set[bytes] = set()
        self._places: dict[bytes, tuple[int, int]] = {}
        self._end = 0
        self._extra = 0

    def __enter__(self) -> "_Stream":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._aside.unlink(missing_ok=True)

    def find(self, cid: Cid, most_extra: int) -> bytes | None:
        """The verified block of `cid`, or None if the stream does not have it.

        `most_extra` limits the bytes of all other blocks. Raises IntegrityError.
        """
        wanted = _key(cid)
        if wanted in self._places:
            del self.waiting[wanted]
            start, length = self._places[wanted]
            with self._aside.open("rb") as file:
                return os.pread(file.fileno(), length, start)
        for sent, block in self._sections:
            self.began = True
            key = _key(sent)
            if key == wanted or key not in self._seen:
                if not sent.matches(block):
                    raise IntegrityError(f"the bytes sent as block {sent} are not that block")
                if key == wanted:
                    self._pace.add(len(block))
                    return block
            self._pace.add(0 if key in self._again or key in self._places else len(block))
            if key in self._seen:
                self._again.add(key)
            # an empty block still has a CID
            self._extra += len(block) + len(bytes(sent))
            most_places = min(MAX_NODES, _SPARE_BLOCKS + most_extra // _SMALL_BLOCK)
            if self._extra > most_extra or len(self._places) >= most_places:
                raise IntegrityError(
                    f"the stream holds much more than the file; {sent} was sent again or needlessly"
                )
            if key not in self._seen and key not in self._places:
                self._set_aside(sent, block)
        return None

    def _set_aside(self, cid: Cid, block: bytes) -> None:
        with self._aside.open("ab") as file:
            file.write(block)
        self._places[_key(cid)] = (self._end, len(block))
        self.waiting[_key(cid)] = cid
        self._end += len(block)


def _key(cid: Cid) -> bytes:
    """Identifies the bytes of a block, whatever the version and codec of its CID."""
    return cid.hash_name.encode() + cid.digest


def _place_key(cid: Cid) -> bytes:
    # the same bytes may be a raw leaf elsewhere in the tree
    return cid.codec.encode() + _key(cid)


def _tree_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.tree")


def _write(file: int, data: bytes, at: int) -> None:
    """Write all of `data` at offset `at`. Raises OSError, for example if the disk is full."""
    while data:
        written = os.pwrite(file, data, at)
        data, at = data[written:], at + written
