"""From the archive of a CDL release to the raster that everything else reads.

Belongs here: checking what is in an archive, and the tiled raster with overviews that is made of it. Does not: where
archives come from (`resources.cdl`), or what makes a raster a CDL (`cdl`).
"""

import json
import math
import zipfile
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath

import rasterio
import rasterio.shutil
from pydantic import TypeAdapter
from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioError

from crop_assets.chip_grid import CHIP_SIZE
from crop_assets.errors import InputError
from crop_assets.labels.cdl import check_cdl, check_codes
from crop_assets.progress import Progress
from resources.archives import members, unpack
from resources.cdl import CdlReleases, Release, file_sha256, raster_sha256, record_path, same_release
from resources.errors import (
    DamagedError,
    IntegrityError,
    ResourceError,
    TryAgainError,
    UnavailableError,
    UnsafeNameError,
)
from resources.file_system import flush, read_plain
from resources.geodata import open_raster, raster_sources
from resources.store import require_room

_MOST_UNPACKED_BYTES = 40 << 30
"""The national raster has 14.8 thousand million pixels of a byte; overviews and tables may come with it."""
_MOST_NOTE_BYTES = 1 << 16
_MEGABYTE = 1_000_000
_COG = {
    # a block is a chip, so that a scan for chips decodes each of them once
    "BLOCKSIZE": CHIP_SIZE,
    "COMPRESS": "ZSTD",
    # 3 % larger than by the default of 9, in two thirds of the time
    "LEVEL": 6,
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


@dataclass(frozen=True)
class YearRaster:
    """The raster of a year as a local file, and the release that it was made of, if it is not one's own."""

    path: Path
    sha256: str
    origin: Origin | None


_NOTES = TypeAdapter(list[Origin])


def obtain_raster(
    releases: CdlReleases,
    year: int,
    pool: Executor,
    say: Callable[[str], None],
    warn: Callable[[str], None],
    unknown_codes: str = "refuse",
) -> YearRaster:
    """The raster of a year: one's own, or that of the latest release, which is fetched and unpacked if it is new.

    Where the index does not answer, the release that was fetched before serves; a fetch that breaks off is an error,
    and goes on next time. An archive with the same bytes as before leaves the raster as it is. Of several runs that
    want a new release, one fetches it and the others wait.

    Raises InputError for a release that is no CDL, IntegrityError for an archive that is damaged or unsafe, and
    NotFoundError where there is no raster and none is listed, or the file that is named is another year's. Raises
    UnavailableError where a retry may help, and ForbiddenError.
    """
    releases.require_year(year)
    raster = releases.raster_path(year)
    there = _there(raster)
    if there is not None and there.origin is None:
        if record_path(raster).is_file():
            say(
                f"{raster} is not the raster that {record_path(raster).name} tells of, so it is taken as your own and "
                "no release is looked for; remove it to have the release"
            )
        return YearRaster(releases.find(year), there.sha256, None)
    release = _latest(releases, year, there, warn)
    if there is not None and (
        release is None or (there.origin and same_release(there.origin.version, release.version))
    ):
        return there
    if release is None:
        # there is none to be found, which it says with where it belongs
        return YearRaster(releases.find(year), "", None)
    with releases.partials(year).alone(f"{year}", say):
        before = _there(raster)
        if before is not None and (
            before.origin is None or same_release(before.origin.version, release.version)
        ):
            return before
        return _make_anew(releases, release, raster, before, pool, say, unknown_codes)


def _latest(
    releases: CdlReleases, year: int, there: YearRaster | None, warn: Callable[[str], None]
) -> Release | None:
    """The release that there should be; None where there is none, or none is to be had and a raster is there.

    Raises what `CdlReleases.release` raises, with what to do, where no raster is there.
    """
    try:
        return releases.release(year)
    except ResourceError as error:
        if there is None:
            # the kind stays, for it says whether a retry can help
            failed = type(error)(
                f"there is no CDL raster of {year} at {releases.raster_path(year)}, and none could be fetched: "
                f"{error}. Put {year}_30m_cdls.zip, or the GeoTIFF inside, there yourself"
                f"{', or try again later' if isinstance(error, UnavailableError) else ''}"
            )
            if isinstance(error, TryAgainError) and isinstance(failed, TryAgainError):
                failed.retry_after = error.retry_after
            raise failed from None
        warn(f"{error}; going on with the release that was fetched before")
        return None


def _make_anew(
    releases: CdlReleases,
    release: Release,
    raster: Path,
    before: YearRaster | None,
    pool: Executor,
    say: Callable[[str], None],
    unknown_codes: str,
) -> YearRaster:
    """Fetch and unpack a release in place of what is there."""
    say(f"{release.place} is {'another release than before' if before else 'new'}; taking it")
    earlier = before.origin if before else None
    with releases.archive(release, _megabytes(say, "MB fetched", release.size)) as archive:
        name = Path(release.place).name if release.is_local else release.place
        found = Origin(name, release.version, file_sha256(archive), earlier.raster_sha256 if earlier else "")
        if before and earlier and earlier.archive_sha256 == found.archive_sha256:
            say("its bytes are those of before; nothing to unpack")
            _note(releases, release.year, raster, found, None)
            return YearRaster(raster, before.sha256, found)
        with releases.partials(release.year).holding(f"the raster of {raster}") as path:
            new = path.with_name(f"{path.name}.tif")
            try:
                _make_raster(archive, release, new, raster, pool, say, unknown_codes)
                found = replace(found, raster_sha256=file_sha256(new))
                now = _there(raster)
                if now is not None and now != before:
                    say(f"{raster} was put there meanwhile; it is left as it is")
                    return now
                _note(releases, release.year, raster, found, earlier)
                _put(new, raster)
            finally:
                new.unlink(missing_ok=True)
    return YearRaster(raster, raster_sha256(raster), found)


def _make_raster(
    archive: Path,
    release: Release,
    raster: Path,
    target: Path,
    pool: Executor,
    say: Callable[[str], None],
    unknown_codes: str,
) -> None:
    """Unpack the archive of a release, check it, and write it to `raster` in blocks and with overviews.

    `target` is where it is put later, as errors say.
    """
    name = f"{release.year}_30m_cdls"
    unpacked = raster.with_name(f"{raster.name}.unpacked")
    parts: list[Path] = []
    try:
        found = _raster_members(archive, name)
        require_room(raster.parent, 2 * sum(member.file_size for member in found.values()))
        for suffix, member in found.items():
            # an .img finds its .ige by its own name where there is none by the name that it had
            parts.append(unpacked.with_name(f"{unpacked.name}{suffix}"))
            unpack(archive, member, parts[-1], _megabytes(say, "MB unpacked", member.file_size))
        unpacked, name = parts[0], f"{name}{parts[0].suffix}"
        if foreign := set(raster_sources(unpacked)) - set(parts):
            raise InputError(f"{name} is read from {min(foreign).name}, which the archive does not hold")
        cdl = check_cdl(unpacked, unknown_codes)
        if not (cdl.chip_rows and cdl.chip_cols):
            raise InputError(f"{name} holds no whole chip of the national grid; it is not a national release")
        check_codes(cdl, pool, Progress(say, 100, "% of the codes checked"))
        say("writing it in blocks, with overviews; some minutes for the whole country")
        # in a thread and with a handle of its own: GDAL does not let an interrupt through before it is done
        pool.submit(_write_cog, unpacked, raster).result()
        check_cdl(raster)
    except (RasterioError, CPLE_BaseError) as error:
        raise InputError(
            f"{release.place}: {name} cannot be read or converted: {error.__cause__ or error}"
        ) from None
    except DamagedError as error:
        raise DamagedError(
            f"{str(error).replace(str(archive), release.place)}. Nothing of it was used, and a raster of before is as "
            "it was; a new run takes the archive anew, and an empty CROP_ASSETS_CDL_INDEX keeps to what is there"
        ) from None
    except IntegrityError as error:
        kept = archive if release.is_local else f"{archive}, and is not fetched again unless you remove it"
        raise IntegrityError(
            f"{str(error).replace(str(archive), release.place)}. The archive stays at {kept}. Unpack it with 7-Zip or "
            f"unzip, and put {target.name} at {target}, or set CROP_ASSETS_CDL to the path of its .tif or .img"
        ) from None
    except InputError as error:
        told = str(error).replace(str(unpacked), name).replace(str(raster), name)
        raise InputError(f"{release.place}: {told}") from None
    finally:
        for part in parts:
            part.unlink(missing_ok=True)


def _write_cog(unpacked: Path, raster: Path) -> None:
    with open_raster(unpacked) as source:
        rasterio.shutil.copy(source, raster, driver="COG", **_COG)


def _raster_members(archive: Path, name: str) -> dict[str, zipfile.ZipInfo]:
    """The members of an archive that the raster consists of, by suffix, the one to open first.

    Its GeoTIFF, else its .img with the .ige that has the pixels where they do not fit into the .img.
    """
    held = members(archive, _MOST_UNPACKED_BYTES)
    for suffixes in ((".tif",), (".img", ".ige")):
        found = {
            suffix: [one for one in held if PurePosixPath(one.filename).name.lower() == f"{name}{suffix}"]
            for suffix in suffixes
        }
        first = found[suffixes[0]]
        if first:
            break
    if len(first) != 1 or any(len(others) > 1 for others in found.values()):
        listed = ", ".join(member.filename for member in held[:5]) or "nothing"
        raise IntegrityError(
            f"{archive} must hold one {name}.tif or .img, and holds {len(first)} ({listed}); if it has the raster in "
            f"another form, convert that to {name}.tif and put it where rasters of your own are looked for"
        )
    return {suffix: others[0] for suffix, others in found.items() if others}


def _there(raster: Path) -> YearRaster | None:
    """The raster that is there, if any, with what is noted of it; without for one of one's own.

    A note is written just before its raster, so it also holds what was noted of the raster before.
    """
    if not raster.is_file():
        return None
    digest = file_sha256(raster)
    try:
        noted = _NOTES.validate_json(read_plain(record_path(raster), _MOST_NOTE_BYTES))
    except (OSError, ValueError, IntegrityError, UnsafeNameError):
        noted = []
    return YearRaster(
        raster,
        raster_sha256(raster),
        next((origin for origin in noted if origin.raster_sha256 == digest), None),
    )


def _note(releases: CdlReleases, year: int, raster: Path, origin: Origin, earlier: Origin | None) -> None:
    record = record_path(raster)
    notes = [asdict(noted) for noted in (origin, earlier) if noted]
    with releases.partials(year).holding(f"the note of {raster}") as writing:
        writing.write_text(json.dumps(notes, indent=1) + "\n")
        _put(writing, record)


def _put(written: Path, target: Path) -> None:
    """Rename a file that was written, so that it is whole even after the power fails."""
    with written.open("rb+") as file:
        flush(file)
    written.replace(target)


def _megabytes(say: Callable[[str], None], what: str, total: int) -> Callable[[int], None]:
    report = Progress(say, math.ceil(total / _MEGABYTE), what)
    return lambda done: report(math.ceil(done / _MEGABYTE))
