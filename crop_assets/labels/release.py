"""Converts the archive of a CDL release to a tiled GeoTIFF with overviews, the raster that everything else reads."""

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

_MAX_UNPACKED_BYTES = 40 << 30
"""The national raster has 14.8 billion pixels of one byte; overviews and tables may come with it."""
_MAX_RECORD_BYTES = 1 << 16
_MEGABYTE = 1_000_000
_COG = {
    # blocks match the chips of the national grid, so a scan decodes each block once
    "BLOCKSIZE": CHIP_SIZE,
    "COMPRESS": "ZSTD",
    # 3 % larger than with the default of 9, in two thirds of the time
    "LEVEL": 6,
    "OVERVIEWS": "IGNORE_EXISTING",
    "OVERVIEW_RESAMPLING": "NEAREST",
    "BIGTIFF": "IF_SAFER",
    "NUM_THREADS": "ALL_CPUS",
}


@dataclass(frozen=True)
class Origin:
    """The release that a raster was made from, recorded next to it to recognize new releases and local rasters."""

    release: str
    """URL of the archive, or the name of a local one."""
    version: str
    archive_sha256: str
    raster_sha256: str


@dataclass(frozen=True)
class YearRaster:
    """The raster of a year as a local file, and the release that it was made from; None if the user provided it."""

    path: Path
    sha256: str
    origin: Origin | None


_ORIGINS = TypeAdapter(list[Origin])


def obtain_raster(
    releases: CdlReleases,
    year: int,
    pool: Executor,
    log: Callable[[str], None],
    warn: Callable[[str], None],
    unknown_codes: str = "refuse",
) -> YearRaster:
    """The raster of a year: a local raster, or the latest release, which is downloaded and unpacked if it is new.

    If the index does not answer, the release that was downloaded earlier is used. An interrupted download raises an
    error, and the next call resumes it. If the archive is unchanged, so is the raster. If several runs need a new
    release, one downloads it and the others wait.

    Raises InputError if the release is not a CDL raster, IntegrityError if the archive is damaged or unsafe, and
    NotFoundError if there is no raster and none is listed, or the given file is for another year. Raises
    UnavailableError if a retry may help, and ForbiddenError.
    """
    releases.require_year(year)
    raster = releases.raster_path(year)
    current = _current_raster(raster)
    if current is not None and current.origin is None:
        if record_path(raster).is_file():
            log(
                f"{raster} is not the raster recorded in {record_path(raster).name}, so it counts as your own and no "
                "release is looked for; remove it to get the release"
            )
        return YearRaster(releases.find(year), current.sha256, None)
    release = _latest_release(releases, year, current, warn)
    if current is not None and (
        release is None or (current.origin and same_release(current.origin.version, release.version))
    ):
        return current
    if release is None:
        # raises, and the message says where the raster should be
        return YearRaster(releases.find(year), "", None)
    with releases.partials(year).alone(f"{year}", log):
        before = _current_raster(raster)
        if before is not None and (
            before.origin is None or same_release(before.origin.version, release.version)
        ):
            return before
        return _replace_raster(releases, release, raster, before, pool, log, unknown_codes)


def _latest_release(
    releases: CdlReleases, year: int, current: YearRaster | None, warn: Callable[[str], None]
) -> Release | None:
    """The release to use; None if there is none, or if it is not available and there is a current raster.

    Without a current raster, raises what `CdlReleases.release` raises, and adds what to do.
    """
    try:
        return releases.release(year)
    except ResourceError as error:
        if current is None:
            # keep the type: it decides whether a retry can help
            failed = type(error)(
                f"there is no CDL raster of {year} at {releases.raster_path(year)}, and none could be fetched: "
                f"{error}. Put {year}_30m_cdls.zip, or the GeoTIFF inside, there yourself"
                f"{', or try again later' if isinstance(error, UnavailableError) else ''}"
            )
            if isinstance(error, TryAgainError) and isinstance(failed, TryAgainError):
                failed.retry_after = error.retry_after
            raise failed from None
        warn(f"{error}; using the release that was downloaded earlier")
        return None


def _replace_raster(
    releases: CdlReleases,
    release: Release,
    raster: Path,
    before: YearRaster | None,
    pool: Executor,
    log: Callable[[str], None],
    unknown_codes: str,
) -> YearRaster:
    """Download and unpack a release, and replace the current raster, if any."""
    log(f"{release.location} is {'a newer release' if before else 'new'}; using it")
    earlier = before.origin if before else None
    with releases.archive(release, _megabytes(log, "MB downloaded", release.size)) as archive:
        name = Path(release.location).name if release.is_local else release.location
        found = Origin(name, release.version, file_sha256(archive), earlier.raster_sha256 if earlier else "")
        if before and earlier and earlier.archive_sha256 == found.archive_sha256:
            log("the archive is unchanged; nothing to unpack")
            _write_record(releases, release.year, raster, found, None)
            return YearRaster(raster, before.sha256, found)
        with releases.partials(release.year).holding(f"the raster of {raster}") as path:
            new = path.with_name(f"{path.name}.tif")
            try:
                _make_raster(archive, release, new, raster, pool, log, unknown_codes)
                found = replace(found, raster_sha256=file_sha256(new))
                now = _current_raster(raster)
                if now is not None and now != before:
                    log(f"{raster} appeared in the meantime and is kept")
                    return now
                _write_record(releases, release.year, raster, found, earlier)
                _move_into_place(new, raster)
            finally:
                new.unlink(missing_ok=True)
    return YearRaster(raster, raster_sha256(raster), found)


def _make_raster(
    archive: Path,
    release: Release,
    raster: Path,
    target: Path,
    pool: Executor,
    log: Callable[[str], None],
    unknown_codes: str,
) -> None:
    """Unpack the archive of a release, check it, and write it to `raster`, tiled and with overviews.

    `target` is its final path, for error messages.
    """
    name = f"{release.year}_30m_cdls"
    unpacked = raster.with_name(f"{raster.name}.unpacked")
    parts: list[Path] = []
    try:
        found = _raster_members(archive, name)
        require_room(raster.parent, 2 * sum(member.file_size for member in found.values()))
        for suffix, member in found.items():
            # if there is no .ige under the recorded name, GDAL looks for one named like the .img
            parts.append(unpacked.with_name(f"{unpacked.name}{suffix}"))
            unpack(archive, member, parts[-1], _megabytes(log, "MB unpacked", member.file_size))
        unpacked, name = parts[0], f"{name}{parts[0].suffix}"
        if foreign := set(raster_sources(unpacked)) - set(parts):
            raise InputError(f"{name} is read from {min(foreign).name}, which is not in the archive")
        cdl = check_cdl(unpacked, unknown_codes)
        if not (cdl.chip_rows and cdl.chip_cols):
            raise InputError(
                f"{name} contains no complete chip of the national grid; it is not a national release"
            )
        check_codes(cdl, pool, Progress(log, 100, "% of the codes checked"))
        log("writing a tiled raster with overviews; this takes some minutes for the national raster")
        # in another thread, because GDAL would hold back an interrupt until it is done
        pool.submit(_write_cog, unpacked, raster).result()
        check_cdl(raster)
    except (RasterioError, CPLE_BaseError) as error:
        raise InputError(
            f"{release.location}: {name} cannot be read or converted: {error.__cause__ or error}"
        ) from None
    except DamagedError as error:
        raise DamagedError(
            f"{str(error).replace(str(archive), release.location)}. It was not used, and an earlier raster is "
            "unchanged. Run again to download the archive again, or set CROP_ASSETS_CDL_INDEX to nothing to keep using "
            "the raster that is there"
        ) from None
    except IntegrityError as error:
        kept = archive if release.is_local else f"{archive}, and is not downloaded again unless you remove it"
        raise IntegrityError(
            f"{str(error).replace(str(archive), release.location)}. The archive stays at {kept}. Unpack it with 7-Zip "
            f"or unzip, and put {target.name} at {target}, or set CROP_ASSETS_CDL to the path of its .tif or .img"
        ) from None
    except InputError as error:
        message = str(error).replace(str(unpacked), name).replace(str(raster), name)
        raise InputError(f"{release.location}: {message}") from None
    finally:
        for part in parts:
            part.unlink(missing_ok=True)


def _write_cog(unpacked: Path, raster: Path) -> None:
    with open_raster(unpacked) as source:
        rasterio.shutil.copy(source, raster, driver="COG", **_COG)


def _raster_members(archive: Path, name: str) -> dict[str, zipfile.ZipInfo]:
    """The files of the raster in an archive, by suffix; the first is the one to open.

    They are a GeoTIFF, or else an .img, with an .ige for the pixels if they do not fit into the .img.
    """
    held = members(archive, _MAX_UNPACKED_BYTES)
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
            f"{archive} must contain one {name}.tif or .img, but contains {len(first)} ({listed}); if the raster is in "
            f"another format, convert it to {name}.tif and put it where local rasters are looked for"
        )
    return {suffix: others[0] for suffix, others in found.items() if others}


def _current_raster(raster: Path) -> YearRaster | None:
    """The raster at this path, if any, with its recorded origin; without an origin if the user put it there.

    The record is written just before the raster is replaced, so it has the origin of the previous raster as well.
    """
    if not raster.is_file():
        return None
    digest = file_sha256(raster)
    try:
        recorded = _ORIGINS.validate_json(read_plain(record_path(raster), _MAX_RECORD_BYTES))
    except (OSError, ValueError, IntegrityError, UnsafeNameError):
        recorded = []
    return YearRaster(
        raster,
        raster_sha256(raster),
        next((origin for origin in recorded if origin.raster_sha256 == digest), None),
    )


def _write_record(
    releases: CdlReleases, year: int, raster: Path, origin: Origin, earlier: Origin | None
) -> None:
    record = record_path(raster)
    origins = [asdict(one) for one in (origin, earlier) if one]
    with releases.partials(year).holding(f"the record of {raster}") as writing:
        writing.write_text(json.dumps(origins, indent=1) + "\n")
        _move_into_place(writing, record)


def _move_into_place(written: Path, target: Path) -> None:
    """Flush and rename a file, so that it is complete even after a power failure."""
    with written.open("rb+") as file:
        flush(file)
    written.replace(target)


def _megabytes(log: Callable[[str], None], what: str, total: int) -> Callable[[int], None]:
    report = Progress(log, math.ceil(total / _MEGABYTE), what)
    return lambda done: report(math.ceil(done / _MEGABYTE))
