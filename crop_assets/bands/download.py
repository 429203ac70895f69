"""Brings one band file into the store from any source, and verifies it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from crop_assets.bands.files import check_band
from crop_assets.hls import parse_scene_id
from resources.errors import IntegrityError, UnsafeNameError
from resources.ipfs.unixfs import matches_cid
from resources.sources import FileRequest, Sources
from resources.store import DatasetStore, sha256_of

IN_STORE = "already in the store"
NO_CID = "no CID is known to check it against"
UNKNOWN_LAYOUT = "its CID is of a layout that cannot be told from the file"


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

    `bytes` is its size, `sha256` the checksum of its bytes in hex.
    """

    source: str
    verified: bool
    note: str
    bytes: int
    sha256: str


def fetch_band(
    file: BandRequest,
    store: DatasetStore,
    sources: Sources,
    log: Callable[[str], None],
    progress: Callable[[int], None] | None = None,
    listed: bool = True,
) -> StoredBand:
    """Make sure that the store has the complete file; fetch it from one of `sources` if it is missing or invalid.

    A file must be on the grid of its tile. In the store, and from any source other than IPFS, it must match its CID,
    or without a CID be a readable raster of the band's type. Raises ResourceError with the answer of each source, and
    then leaves the store unchanged. `listed` is whether the store may have the file.
    """
    try:
        if not listed:
            raise FileNotFoundError(file.name)
        with store.local(file.name, file.max_bytes) as local:
            problem = _problem(local, file)
            if not problem:
                return _stored(IN_STORE, bool(file.cid), "" if file.cid else NO_CID, local)
        log(f"{IN_STORE}: {problem}; fetching it again")
    except FileNotFoundError:
        pass
    except IntegrityError as error:
        log(f"{IN_STORE}: {error}; fetching it again")
    except UnsafeNameError as error:
        log(f"{error}; fetching it")

    def check(path: Path, verified: bool) -> None:
        check_band(path, file.band, file.tile, every_block=not verified)

    wanted = FileRequest(file.scene_file, file.cid, file.http, file.max_bytes)
    with store.writing(file.name) as local:
        got = sources.obtain(wanted, local, store.partials, check, log, progress)
        note = "" if got.verified else UNKNOWN_LAYOUT if file.cid else NO_CID
        return _stored(got.source, got.verified, note, local)


def _stored(source: str, verified: bool, note: str, path: Path) -> StoredBand:
    return StoredBand(source, verified, note, path.stat().st_size, sha256_of(path))


def _problem(path: Path, file: BandRequest) -> str:
    try:
        if file.cid and not matches_cid(path, file.cid):
            return f"{path.name} does not match {file.cid}"
        check_band(path, file.band, file.tile, every_block=not file.cid)
    except IntegrityError as error:
        return f"{path.name} {error}"
    return ""
