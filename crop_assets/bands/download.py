"""Brings one band file into the store from any source, and verifies it."""

import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path

from rasterio.errors import RasterioError

from crop_assets.bands.blocks import BlockSelection, Grids, PartialFile, read_partial
from crop_assets.bands.files import check_band
from crop_assets.hls import parse_scene_id
from resources.errors import IntegrityError, UnsafeNameError
from resources.ipfs.unixfs import matches_cid
from resources.sources import FetchResult, FileRequest, Sources
from resources.store import DatasetStore, sha256_of

IN_STORE = "already in the store"
NO_CID = "no CID is known to check it against"
UNKNOWN_LAYOUT = "its CID is of a layout that cannot be told from the file"
NO_LINKS = "its blocks are not checked, because no source has the links of its CID"


@dataclass(frozen=True)
class BandRequest:
    """A needed file: its name in the store, and where it may come from.

    `scene_file` is `<scene id>/<file name>`; `cid` and `http` are "" if unknown.
    """

    name: str
    scene_file: str
    band: str
    cid: str
    http: str
    max_bytes: int

    @property
    def tile(self) -> str:
        return parse_scene_id(self.scene_file.split("/")[0]).tile


@dataclass(frozen=True)
class StoredBand:
    """Where a file came from; `verified` means that its bytes match its CID, otherwise `note` says why not.

    `bytes` is its size, `sha256` the checksum of its bytes in hex. `blocks` is the number of those of a partial file, 0
    for a complete one, and `complete_bytes` the size of the complete file.
    """

    source: str
    verified: bool
    note: str
    bytes: int
    sha256: str
    blocks: int
    complete_bytes: int


@dataclass(frozen=True)
class Blocks:
    """What to fetch of a file instead of all: the blocks under `chips`, or all blocks if it is None.

    `pool` has the threads that send requests; `grids` is for all files of a tile.
    """

    chips: Sequence[str] | None
    pool: Executor
    grids: Grids = field(default_factory=Grids)


def fetch_band(
    file: BandRequest,
    store: DatasetStore,
    sources: Sources,
    log: Callable[[str], None],
    progress: Callable[[int], None] | None = None,
    listed: bool = True,
    blocks: Blocks | None = None,
    recorded: str = "",
) -> StoredBand:
    """Make sure that the store has the file, or its `blocks`; fetch what is missing or invalid from one of `sources`.

    A complete file, or a partial one that has the blocks, is used as it is, and blocks of a partial file are not
    fetched again. A file must be on the grid of its tile. In the store, and from any source other than IPFS, it must
    match its CID, or without a CID be a readable raster of the band's type. A partial file cannot be checked against
    the CID of the complete one, so it must be the one that was written here: `recorded` is its SHA-256 by an earlier
    table, or "". `listed` is whether the store may have the file.

    Raises ResourceError with the answer of each source, and then leaves the store unchanged.
    """
    found: PartialFile | None = None
    try:
        if not listed:
            raise FileNotFoundError(file.name)
        with store.local(file.name, file.max_bytes) as local:
            partial, problem = _found(local, file, {recorded, store.partials.recall(file.name)})
            if not problem and partial is None:
                return _stored(IN_STORE, bool(file.cid), file, local)
            if not problem and blocks and partial and partial.has(local, blocks.chips):
                return _stored(IN_STORE, partial.verified, file, local, partial)
        if problem:
            log(f"{IN_STORE}: {problem}; fetching it again")
        else:
            found = partial
            log(f"{IN_STORE}: {file.scene_file} has not all that is needed; fetching the rest")
    except FileNotFoundError:
        pass
    except IntegrityError as error:
        log(f"{IN_STORE}: {error}; fetching it again")
    except UnsafeNameError as error:
        log(f"{error}; fetching it")

    def check(path: Path, got: FetchResult) -> None:
        check_band(path, file.band, file.tile, every_block=not got.verified)
        if not got.in_parts and read_partial(path):
            raise IntegrityError("has only some blocks of another file")

    wanted = FileRequest(file.scene_file, file.cid, file.http, file.max_bytes)
    with store.writing(file.name) as local:
        selection = None
        if blocks:
            selection = BlockSelection(
                blocks.pool, local, file.scene_file, file.band, blocks.chips, blocks.grids, found
            )
        got = sources.obtain(wanted, local, store.partials, check, log, progress, selection)
        if not (selection and got.in_parts):
            return _stored(got.source, got.verified, file, local)
        made = _stored(got.source, got.verified, file, local, selection.made)
        # before the file is there, in case the process is killed before a table records it
        store.partials.remember(file.name, made.sha256)
        return made


def _stored(
    source: str, verified: bool, file: BandRequest, path: Path, partial: PartialFile | None = None
) -> StoredBand:
    size = path.stat().st_size
    blocks, complete = (len(partial.blocks), partial.size) if partial else (0, size)
    # of a file whose blocks came at several times, all must be verified
    verified = verified and (partial is None or partial.verified)
    note = "" if verified else NO_CID if not file.cid else NO_LINKS if partial else UNKNOWN_LAYOUT
    return StoredBand(source, verified, note, size, sha256_of(path), blocks, complete)


def _found(path: Path, file: BandRequest, recorded: set[str]) -> tuple[PartialFile | None, str]:
    """The partial file in the store, None for a complete one; and why the file cannot be used, or ""."""
    partial = None
    try:
        # what is no GeoTIFF is described by check_band
        with contextlib.suppress(RasterioError):
            partial = read_partial(path)
        if partial and sha256_of(path) not in recorded:
            return None, f"{path.name} has only some blocks of a file, and was not written by an earlier run"
        verified = partial.verified if partial else bool(file.cid)
        same = partial.version == file.cid if partial else not file.cid or matches_cid(path, file.cid)
        if file.cid and verified and not same:
            return None, f"{path.name} does not match {file.cid}"
        check_band(path, file.band, file.tile, every_block=not verified)
    except IntegrityError as error:
        return None, f"{path.name} {error}"
    return partial, ""
