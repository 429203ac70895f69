"""The verifying walk: from a trusted CID and untrusted streams to a file whose every byte is checked.

Belongs here: which block must come next, that it is the right one, and going on where an earlier stream
ended. Does not: HTTP, sources and retries (`resources.ipfs.nodes`, `resources.sources`).
"""

import contextlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType

from resources.errors import CutShortError, IntegrityError, NotFoundError, ResourceError
from resources.ipfs.car import MAX_SECTION, read_car
from resources.ipfs.cid import Cid
from resources.ipfs.unixfs import FileNode, decode_file_node
from resources.pace import Pace, longest_seconds
from resources.partials import move

MAX_NODES = 1 << 18
"""Nodes of a file's tree: 64 GiB in leaves of 256 KiB. Bounds the work and the memory (some 60 MB) that a
hostile tree, for example one of empty leaves, can cause."""

_SPARE = 16 << 20
"""Bytes that a stream may hold beyond twice the file: nodes of the tree, and what was sent before."""
_SPARE_BLOCKS = 1024
_SMALL_BLOCK = 1024
"""Bytes of the blocks that may wait for their turn, on the average: those of files have 256 KiB and more."""
_PIECE = 1 << 20


class Retrieval:
    """A file on its way: its verified beginning in `path`, and what must come next.

    Beside it lies `<path>.tree` with the inner blocks of the file's tree. Both stay when the walk ends early, and
    the next Retrieval of that path checks them against the CID and goes on behind what is right. Memory is
    bounded by one block and MAX_NODES, not by the size of the file. Only one may be open for a path at a time.
    """

    def __init__(
        self, root: Cid, path: Path, max_bytes: int, progress: Callable[[int], None] | None = None
    ) -> None:
        """`max_bytes` bounds the file; `progress` gets the bytes of the file that each block adds."""
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
        self._go_over_what_is_there()
        self._progress = progress

    def __enter__(self) -> "Retrieval":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the files, and remove them where nothing is in them."""
        self._files.close()
        if not self.whole and not self.at:
            _tree_of(self._path).unlink()
            self._path.unlink()

    def move_to(self, destination: Path) -> None:
        """Put the file, which is whole and closed, in the place of another."""
        move(self._path, destination)
        _tree_of(self._path).unlink()

    @property
    def whole(self) -> bool:
        return not self._expected

    def feed(self, pieces: Iterable[bytes], patience: float = 60.0) -> int:
        """Go on with a CAR that arrives in `pieces`; returns the bytes of the file, which is whole then.

        Blocks may come in any order, once or repeatedly; what was verified before may come again or be left
        out. A block ahead of its turn waits on disk. What follows the last block is not read. Raises
        IntegrityError where a block is not what its CID says, the tree is malformed, its sizes do not add
        up, the file is larger than allowed, or the stream holds something else; CutShortError where it
        ends early; NotFoundError where it ends without a block; SlowError as `Pace` with `patience`, where blocks
        count that are new or come for the first time.
        """
        aside = self._path.with_name(f"{self._path.name}.aside")
        pace = Pace(patience, longest_seconds(self._max_bytes))
        with _Stream(pieces, aside, self._seen, pace) as stream:
            while self._expected:
                cid, _ = self._expected[-1]
                if self._repeat():
                    continue
                size = self._max_bytes if self._size is None else self._size
                # gateways leave identity blocks out, as the CID itself holds the bytes
                block = cid.digest if cid.hash_name == "identity" else stream.find(cid, 2 * size + _SPARE)
                if block is None:
                    raise self._missing(stream)
                self._accept(block)
        return self.at

    def _open(self, path: Path) -> int:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        self._files.callback(os.close, file)
        return file

    def _go_over_what_is_there(self) -> None:
        """Walk over what an earlier walk left, as far as it is right, and cut off the rest."""
        # what is wrong with the tree itself is told when the stream sends it
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
        """Take the verified block of the CID that was expected next."""
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
        """Write what was written before once more, where that is expected next."""
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
        """The root has no promised size; as all others keep theirs, its own bounds the whole file."""
        if promised is None and size > self._max_bytes:
            raise IntegrityError(f"the file has {size} bytes, more than the {self._max_bytes} allowed")
        if promised is not None and size != promised:
            raise IntegrityError(f"block {cid} holds {size} bytes of the file, its parent says {promised}")

    def _missing(self, stream: "_Stream") -> ResourceError:
        cid, _ = self._expected[-1]
        if not stream.began:
            # what a node sends that has announced a CAR before it found out that it has no block
            return NotFoundError(f"the CAR of {self._root} holds no block")
        pending = {_key(expected) for expected, _ in self._expected}
        stranger = next((sent for key, sent in stream.waiting.items() if key not in pending), None)
        if stranger:
            return IntegrityError(
                f"expected block {cid} at byte {self.at} of the file, but {stranger} was sent"
            )
        return CutShortError(f"the stream ended at byte {self.at} of the file, before block {cid}")


class _Stream:
    """The blocks of one CAR, to be asked for by CID. Those that come ahead of their turn wait in a file."""

    def __init__(self, pieces: Iterable[bytes], aside: Path, seen: set[bytes], pace: Pace) -> None:
        self.waiting: dict[bytes, Cid] = {}
        self.began = False
        self._sections = read_car(pieces)
        self._aside = aside
        # a killed process may have left one, with who knows what in it
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
        """The verified block of `cid`, or None where the stream does not have it.

        `most_extra` bounds the bytes of all other blocks that are gone over. Raises IntegrityError.
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
            # a block of no bytes has a name all the same
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
    """What names the bytes of a block, in whatever version and codec of a CID."""
    return cid.hash_name.encode() + cid.digest


def _place_key(cid: Cid) -> bytes:
    # a block of the tree may be a raw leaf elsewhere in it
    return cid.codec.encode() + _key(cid)


def _tree_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.tree")


def _write(file: int, data: bytes, at: int) -> None:
    """Write all of `data` at a place; raises OSError where the disk is full."""
    while data:
        written = os.pwrite(file, data, at)
        data, at = data[written:], at + written
