"""From the archive of a CDL release to the raster that everything else reads.

Belongs here: checking what is in an archive, and the tiled raster with overviews that is made of it. Does not: where
archives come from (`resources.cdl`), or what makes a raster a CDL (`cdl`).
"""

import hashlib
import json
import math
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath

import rasterio.shutil
from rasterio.errors import RasterioError

from crop_assets.errors import InputError
from crop_assets.grid import CHIP_SIZE
from crop_assets.labels.cdl import check_cdl, check_codes
from crop_assets.progress import Progress
from resources.archives import members, unpack
from resources.cdl import CdlReleases, Release, record_path
from resources.errors import IntegrityError, NotFoundError, ResourceError
from resources.store import require_room

_MOST_UNPACKED_BYTES = 40 << 30
"""The national raster has 14.8 thousand million pixels of a byte; overviews and tables may come with it."""
_MEGABYTE = 1_000_000
_COG = {
    # a block is a chip, so that a scan for chips decodes each of them once
    "BLOCKSIZE": CHIP_SIZE,
    "COMPRESS": "ZSTD",
    "OVERVIEWS": "IGNORE_EXISTING",
    "OVERVIEW_RESAMPLING": "NEAREST",
    "BIGTIFF": "IF_SAFER",
    "NUM_THREADS": "ALL_CPUS",
}


@dataclass(frozen=True)
class Origin:
    """Which release a raster was made of: noted beside it, so that a new release is told, and a file of one's own."""

    release: str
    """URL of the archive, or the name of a local one."""
    version: str
    archive_sha256: str
    raster_sha256: str
    replaces_sha256: str
    """Checksum of the raster that was there before, and still is where the work was stopped between note and raster."""


@dataclass(frozen=True)
class YearRaster:
    """The raster of a year as a local file, and the release that it was made of, if it is not one's own."""

    path: Path
    sha256: str
    origin: Origin | None


def obtain_raster(
    releases: CdlReleases, year: int, pool: Executor, say: Callable[[str], None], warn: Callable[[str], None]
) -> YearRaster:
    """The raster of a year: one's own, or that of the latest release, which is fetched and unpacked if it is new.

    Where the index does not answer, the release that was fetched before serves. An archive with the same bytes as
    before leaves the raster as it is. Raises InputError for a release that is no CDL, IntegrityError for an archive
    that is damaged or unsafe, NotFoundError where there is no raster and none can be had.
    """
    raster = releases.raster_path(year)
    digest = _sha256(raster) if raster.is_file() else ""
    origin = _origin(raster, digest)
    if digest and origin is None:
        return YearRaster(releases.find(year), digest, None)
    made = YearRaster(raster, digest, origin)
    whole = origin is not None and origin.raster_sha256 == digest
    try:
        release = releases.release(year)
    except ResourceError as error:
        if not whole:
            raise NotFoundError(
                f"there is no CDL raster of {year} at {raster}, and none could be fetched: {error}. "
                f"Put {year}_30m_cdls.zip, or the GeoTIFF inside, there yourself, or try again later"
            ) from None
        warn(f"{error}; going on with the release that was fetched before")
        return made
    if release is None:
        return YearRaster(releases.find(year), digest, origin)
    if origin and whole and origin.version == release.version:
        return made
    say(f"{release.place} is {'another release than before' if origin else 'new'}; taking it")
    with releases.archive(release, _megabytes(say, "MB fetched", release.size)) as archive:
        name = Path(release.place).name if release.is_local else release.place
        found = Origin(name, release.version, _sha256(archive), digest, digest)
        if origin and whole and origin.archive_sha256 == found.archive_sha256:
            say("its bytes are those of before; nothing to unpack")
            _note(raster, found)
            return YearRaster(raster, digest, found)
        with releases.partials(year).holding(f"the raster of {raster}") as path:
            new = path.with_name(f"{path.name}.tif")
            try:
                _make_raster(archive, release, new, pool, say)
                found = replace(found, raster_sha256=_sha256(new))
                _note(raster, found)
                new.replace(raster)
            finally:
                new.unlink(missing_ok=True)
    return YearRaster(raster, found.raster_sha256, found)


def _make_raster(
    archive: Path, release: Release, raster: Path, pool: Executor, say: Callable[[str], None]
) -> None:
    """Unpack the archive of a release to `raster`, in blocks and with overviews, and check it."""
    name = f"{release.year}_30m_cdls.tif"
    found = members(archive, _MOST_UNPACKED_BYTES)
    wanted = [member for member in found if PurePosixPath(member.filename).name.lower() == name]
    if len(wanted) != 1:
        held = ", ".join(member.filename for member in found[:5]) or "nothing"
        raise IntegrityError(
            f"{release.place} must hold one {name}, and holds {len(wanted)} ({held}); if it has the raster in another "
            f"form, convert that to {name} and put it where rasters of one's own are looked for"
        )
    require_room(raster.parent, 2 * wanted[0].file_size)
    unpacked = raster.with_name(f"{raster.name}.unpacked")
    try:
        unpack(archive, wanted[0], unpacked, _megabytes(say, "MB unpacked", wanted[0].file_size))
        check_cdl(unpacked)
        say("writing it in blocks, with overviews; a few minutes for the whole country")
        rasterio.shutil.copy(unpacked, raster, driver="COG", **_COG)
        check_codes(check_cdl(raster), pool, Progress(say, 100, "% of the codes checked"))
    except RasterioError as error:
        raise InputError(f"{release.place}: {name} cannot be converted: {error.__cause__ or error}") from None
    except InputError as error:
        told = str(error).replace(str(unpacked), name).replace(str(raster), name)
        raise InputError(f"{release.place}: {told}") from None
    finally:
        unpacked.unlink(missing_ok=True)


def _origin(raster: Path, digest: str) -> Origin | None:
    """What is noted of a raster with this checksum; None for a raster of one's own, and where there is no note."""
    try:
        origin = Origin(**json.loads(record_path(raster).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
    return origin if digest in ("", origin.raster_sha256, origin.replaces_sha256) else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _note(raster: Path, origin: Origin) -> None:
    record = record_path(raster)
    writing = record.with_name(f".writing-{record.name}")
    writing.write_text(json.dumps(asdict(origin), indent=1) + "\n")
    writing.replace(record)


def _megabytes(say: Callable[[str], None], what: str, total: int) -> Callable[[int], None]:
    report = Progress(say, math.ceil(total / _MEGABYTE), what)
    return lambda done: report(math.ceil(done / _MEGABYTE))
