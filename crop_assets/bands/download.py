"""Getting one band file into the store, from wherever it can be had, and saying how far it is verified.

Belongs here: the order of sources and what counts as verified. Does not: any source's protocol.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from crop_assets.bands.files import check_band, matches_cid
from resources.earthdata import LpDaac
from resources.errors import IntegrityError, NotFoundError, ResourceError
from resources.ipfs.resource import IpfsContent
from resources.mirror import BandMirror
from resources.store import DatasetStore

# A deflated HLS band is some 15 to 20 MB; a file ten times as large is not one.
MAX_BAND_BYTES = 256 << 20


@dataclass(frozen=True)
class BandFile:
    """A needed file: where it goes, and what is known of where it comes from."""

    name: str
    scene_file: str
    band: str
    cid: str
    http: str


@dataclass(frozen=True)
class Obtained:
    """How a file came: `verified` says that its bytes are those that the CID promises, else `note` why not."""

    source: str
    verified: bool
    note: str


def obtain_band(
    file: BandFile,
    store: DatasetStore,
    mirror: BandMirror,
    ipfs: IpfsContent,
    lp_daac: LpDaac,
    log: Callable[[str], None],
) -> Obtained:
    """Make sure that the store has the file, whole; fetch it if need be.

    In this order: the file in the store, the mirror folder, IPFS by CID, LP DAAC. A file is adopted if it
    matches its CID; without a CID, if it is a readable raster of the band's type. Raises
    ResourceError that tells what each source said; the store keeps what it had.
    """
    said: list[str] = []
    if store.exists(file.name):
        with store.local(file.name) as local:
            adopted = _adopt(local, file, "already in the store", said)
        if adopted:
            return adopted
        log(f"{said[-1]}; fetching it again")
    if candidate := mirror.find(file.scene_file):
        adopted = _adopt(candidate, file, "mirror", said)
        if adopted:
            with store.writing(file.name) as local:
                local.write_bytes(candidate.read_bytes())
            return adopted
        log(said[-1])
    if file.cid:
        try:
            with store.writing(file.name) as local:
                retrieved = ipfs.fetch(file.cid, local, MAX_BAND_BYTES, log)
                check_band(local, file.band)
            return Obtained(retrieved.source, True, "")
        except ResourceError as error:
            said.append(f"IPFS: {error}")
            log(said[-1])
    if file.http:
        try:
            with store.writing(file.name) as local:
                lp_daac.fetch(file.http, local, MAX_BAND_BYTES)
                check_band(local, file.band)
                verified = bool(file.cid) and matches_cid(local, file.cid)
            return Obtained(file.http, verified, "" if verified else _unverified(file))
        except ResourceError as error:
            said.append(f"LP DAAC: {error}")
    if not said:
        said.append("neither a CID nor a link is known")
    failed = f"{file.scene_file.rsplit('/', 1)[-1]} could not be had: " + "; ".join(said)
    raise (NotFoundError if not file.cid and not file.http else ResourceError)(failed)


def _adopt(path: Path, file: BandFile, source: str, said: list[str]) -> Obtained | None:
    """The file at `path` as an obtained one if it checks out, else None and a line in `said`."""
    try:
        if file.cid and matches_cid(path, file.cid):
            return Obtained(source, True, "")
        if file.cid:
            said.append(f"{source}: {path.name} does not match {file.cid}")
            return None
        check_band(path, file.band)
        return Obtained(source, False, _unverified(file))
    except IntegrityError as error:
        said.append(f"{source}: {error}")
        return None


def _unverified(file: BandFile) -> str:
    if not file.cid:
        return "no CID is known to check it against"
    return "its CID is of a layout that cannot be told from the file"
