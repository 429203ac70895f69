"""Getting one band file into the store, from wherever it can be had, and saying how far it is verified.

Belongs here: what counts as verified, and when a file in the store is good enough. Does not: the sources
(`resources.sources`), nor any source's protocol.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from crop_assets.bands.files import check_band
from crop_assets.hls import parse_scene_id
from resources.errors import IntegrityError, UnsafeNameError
from resources.ipfs.unixfs import matches_cid
from resources.sources import FileRequest, Sources
from resources.store import DatasetStore

IN_STORE = "already in the store"
NO_CID = "no CID is known to check it against"
UNKNOWN_LAYOUT = "its CID is of a layout that cannot be told from the file"


@dataclass(frozen=True)
class BandFile:
    """A needed file: where it goes, and what is known of where it comes from.

    `scene_file` is `<scene id>/<file name>`; `cid` and `http` are "" where none is known.
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
class ObtainedBand:
    """How a file came: `verified` says that its bytes are those that the CID promises, else `note` why not."""

    source: str
    verified: bool
    note: str


def obtain_band(
    file: BandFile,
    store: DatasetStore,
    sources: Sources,
    log: Callable[[str], None],
    progress: Callable[[int], None] | None = None,
) -> ObtainedBand:
    """Make sure that the store has the file, whole; fetch it from one of `sources` if need be.

    A file is adopted, and what came from elsewhere than IPFS accepted, if it matches its CID; without a CID, if it is
    a readable raster of the band's type; on its tile's grid in either case. Raises ResourceError that tells what each
    source said; the store keeps what it had.
    """
    try:
        if store.exists(file.name):
            if (size := store.size(file.name)) > file.max_bytes:
                problem = f"{size:,} bytes, and the most is {file.max_bytes:,}"
            else:
                with store.local(file.name) as local:
                    problem = _problem(local, file)
            if not problem:
                return ObtainedBand(IN_STORE, bool(file.cid), "" if file.cid else NO_CID)
            log(f"{IN_STORE}: {problem}; fetching it again")
    except UnsafeNameError as error:
        log(f"{error}; fetching it")

    def check(path: Path, verified: bool) -> None:
        check_band(path, file.band, file.tile, every_block=not verified)

    wanted = FileRequest(file.scene_file, file.cid, file.http, file.max_bytes)
    with store.writing(file.name) as local:
        got = sources.obtain(wanted, local, store.partials, check, log, progress)
    note = "" if got.verified else UNKNOWN_LAYOUT if file.cid else NO_CID
    return ObtainedBand(got.source, got.verified, note)


def _problem(path: Path, file: BandFile) -> str:
    try:
        if file.cid and not matches_cid(path, file.cid):
            return f"{path.name} does not match {file.cid}"
        check_band(path, file.band, file.tile, every_block=not file.cid)
    except IntegrityError as error:
        return f"{path.name} {error}"
    return ""
