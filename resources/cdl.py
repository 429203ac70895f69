"""Releases of the Cropland Data Layer: those listed on the index page of NASS, and local rasters and archives.

`crop_assets.labels` checks rasters and unpacks archives; `crop_assets.automation` acts on new releases.
"""

import contextlib
import email.utils
import functools
import hashlib
import html.parser
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import requests
import tenacity
from pydantic import Field, field_validator
from rasterio.errors import RasterioError

from resources import stop
from resources.addresses import (
    AddressError,
    configured,
    is_url,
    join,
    leads_to,
    read,
    require_local,
    same_site,
    shown,
)
from resources.errors import (
    DamagedError,
    IntegrityError,
    NotFoundError,
    RefusedError,
    TryAgainError,
    UnsafeNameError,
)
from resources.file_system import require_own_links
from resources.geodata import SourceError, raster_sources, translated
from resources.http import ask, get_file, new_session
from resources.json_values import count
from resources.pace import deadline
from resources.plain_text import plain_text
from resources.resume import PartialFiles
from resources.settings import Attempts, Settings, TimeoutSeconds
from resources.store import require_room

INDEX = "https://www.nass.usda.gov/Research_and_Science/Cropland/Release/"

_ARCHIVE = re.compile(r"\d{4}_30m_cdls\.zip", re.ASCII)
_YEAR = re.compile(r"(?<!\d)\d{4}(?!\d)", re.ASCII)
_VERSION = re.compile(
    r"(?P<date>\w{3}, .{20} GMT)? ?(?P<size>[1-9]\d*(?!\S))? ?(?P<etag>.*)", re.ASCII | re.DOTALL
)
_FIRST_YEAR = 1997
"""The year of the first CDL of any state."""
_MAX_LINKS = 1000
"""Links to archives on a page; the page of NASS has one for each year."""
_MAX_TAGS = 20_000
"""HTML tags on that page. Parsing as many as fit in a megabyte would take half a minute."""
_MAX_ETAG = 200
LOOK_SECONDS = 50.0
"""Time limit for checking all releases, with about thirty short requests: a Dagster sensor times out after a minute."""
_FILE_SUFFIXES = {".tif", ".tiff", ".img", ".vrt", ".zip"}
_HASHING = threading.Lock()
_MAX_INDEX_BYTES = 1 << 20
MAX_ARCHIVE_BYTES = 20 << 30
"""Limit on a downloaded archive; the archive of 30 m has 2 GB."""


@dataclass(frozen=True)
class Release:
    """A release of a year. `version` distinguishes it from a later one of the same year (`same_release`); `location` is
    a URL or a local path; `size` is in bytes, 0 if unknown.
    """

    year: int
    version: str
    location: str
    size: int

    @property
    def is_local(self) -> bool:
        return not is_url(self.location)


class CdlReleases(Settings):
    """The CDL rasters of all years."""

    source: str = Field(
        default="data/cdl",
        description="A folder of <year>_30m_cdls.tif or .zip files, into which releases are fetched; or one such file, "
        "or a path with {year} in it, and nothing is fetched.",
    )
    index: str = Field(
        default=INDEX,
        description="Address of the page that lists the releases' archives; empty for no network.",
    )
    hosts: list[str] = Field(
        default=["nass.usda.gov"],
        description="Hosts, including their subdomains, that links on the page and redirects may lead to over https, "
        "besides the page's own host.",
    )
    attempts: Attempts = 4
    timeout: TimeoutSeconds = 60

    _is_local = field_validator("source")(require_local)

    @field_validator("index")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        if value:
            try:
                configured(value)
            except AddressError as error:
                raise ValueError(
                    f"the index of CDL releases must be an https address, or empty for none: {error}; "
                    "correct CROP_ASSETS_CDL_INDEX"
                ) from None
        return value

    @property
    def fetches(self) -> bool:
        """Whether releases that are not in the folder are fetched from the index."""
        return bool(self.index) and self._is_folder

    @property
    def _is_folder(self) -> bool:
        return Path(self.source).suffix.lower() not in _FILE_SUFFIXES and "{year}" not in self.source

    def _names(self, year: int) -> bool:
        """Whether the source gives the location of a year's raster, by the file's name or a {year} in a folder's."""
        name = Path(self.source).name
        if self._is_folder or ("{year}" in self.source and "{year}" not in name):
            return True
        return year_of(name.replace("{year}", str(year))) == year

    def require_year(self, year: int) -> None:
        """Raise NotFoundError if the source is a file with another year, or none, in its name."""
        if not self._names(year):
            path = Path(self.source.replace("{year}", str(year)))
            named = year_of(path.name)
            what = f"is the raster of {named} by its name" if named else "has no year in its name"
            raise NotFoundError(
                f"{path} {what}, but {year} is needed (the first four-digit number counts); materialize the "
                f"partition of its year, or set CROP_ASSETS_CDL to a file such as {year}_30m_cdls{path.suffix.lower()}"
            )

    @property
    def _shared_folders(self) -> int:
        """How many folders of a raster's path other users may change: those with the year, and their parent."""
        parts = Path(self.source).parts
        named = [at for at, part in enumerate(parts) if "{year}" in part]
        return max(1, len(parts) - named[0]) if named else 1

    def raster_path(self, year: int) -> Path:
        """The path of a year's raster, which may not exist yet.

        Raises UnsafeNameError if the file or its folder is another user's link: the store may be shared.
        """
        path = Path(self.source.replace("{year}", str(year)))
        if self._is_folder:
            path /= f"{year}_30m_cdls.tif"
        elif path.suffix.lower() == ".zip":
            path = path.with_suffix(".tif")
        require_own_links(path, self._shared_folders)
        return path

    def archive_path(self, year: int) -> Path:
        """The path of a year's archive, if a user supplies one. Raises as `raster_path`."""
        path = Path(self.source.replace("{year}", str(year)))
        if path.suffix.lower() != ".zip":
            path = self.raster_path(year).with_suffix(".zip")
        require_own_links(path, self._shared_folders)
        return path

    def partials(self, year: int) -> PartialFiles:
        """The unfinished downloads of a year's raster."""
        return PartialFiles.below(self.raster_path(year).parent)

    def find(self, year: int) -> Path:
        """The raster of a year. Raises NotFoundError, with where to get it and where to put it."""
        self.require_year(year)
        path = self.raster_path(year)
        if not path.is_file():
            raise NotFoundError(
                f"there is no CDL raster of {year} at {path}; put {year}_30m_cdls.zip from {INDEX}, or the GeoTIFF "
                f"inside it, there, or set CROP_ASSETS_CDL to its path"
            )
        return path

    def find_same(self, year: int, sha256: str) -> Path:
        """The raster that the asset `cdl` described, by its checksum.

        Raises NotFoundError if it does not exist or has changed.
        """
        path = self.find(year)
        if raster_sha256(path) != sha256:
            raise NotFoundError(f"{path} is no longer the file that cdl described; materialize cdl again")
        return path

    def release(self, year: int) -> Release | None:
        """The archive of a year: the local one, or else the one on the index; None if there is no local one and nothing
        is fetched.

        Raises NotFoundError if the index does not list the year, IntegrityError if it lists the year only on hosts that
        are not configured, and otherwise as `releases`.
        """
        self.require_year(year)
        archive = self.archive_path(year)
        if archive.is_file():
            return _local(year, archive)
        if not self.fetches:
            return None
        with new_session(self.attempts, self._may_redirect) as session:
            listed, elsewhere = self._listed(session)
            if year in elsewhere:
                raise IntegrityError(self._not_fetched(elsewhere[year]))
            if year not in listed:
                raise NotFoundError(
                    f"{self.index} lists no release of {year}, only of {', '.join(map(str, sorted(listed)))}"
                )
            return self._release(session, year, listed[year])

    def releases(self, log: Callable[[str], None] = lambda _: None) -> list[Release]:
        """The latest release of each year: local files, and for other years those that the index lists.

        A listed file that does not exist (404) is left out. So is a year that is listed only on hosts that are not
        configured, and a file that is another user's link; both are logged. Raises UnavailableError and its subclasses
        if the index or a file does not answer, or checking all of them takes more than 50 seconds; RefusedError if one
        redirects to a host that is not configured; IntegrityError if no listed file exists, or a file has no version.
        """
        found = {release.year: release for release in self._local_releases(log)}
        if not self.fetches:
            return [found[year] for year in sorted(found)]
        with (
            deadline(time.monotonic() + LOOK_SECONDS),
            new_session(self.attempts, self._may_redirect) as session,
        ):
            listed, elsewhere = self._listed(session)
            for year in sorted(elsewhere.keys() - found.keys()):
                log(self._not_fetched(elsewhere[year]))
            for year in listed.keys() - found.keys():
                with contextlib.suppress(NotFoundError):
                    found[year] = self._release(session, year, listed[year])
        if not found:
            raise IntegrityError(
                f"none of the {len(listed)} files that {self.index} lists exists, such as {min(listed.values())}"
            )
        return [found[year] for year in sorted(found)]

    @contextlib.contextmanager
    def archive(self, release: Release, progress: Callable[[int], None]) -> Iterator[Path]:
        """The complete archive of a release as a local file; a fetched one is deleted at the end of the block.

        Resumes a partial download. `progress` gets the bytes so far. Raises as `get_file`. If the block raises
        DamagedError, the archive is fetched again next time; after other errors it is kept.
        """
        if release.is_local:
            yield Path(release.location)
            return
        key = f"{release.location} {release.version}"
        with self.partials(release.year).holding(key) as path:
            complete = path.with_name(f"{path.name}.whole")
            if not complete.is_file():
                require_room(complete.parent, release.size - (path.stat().st_size if path.is_file() else 0))
                self._fetch(release.location, path, progress)
                path.replace(complete)
            # files that are not used for a while are removed
            os.utime(complete)
            try:
                if release.size not in (0, size := complete.stat().st_size):
                    raise DamagedError(
                        f"{release.location} sent {size:,} bytes instead of the {release.size:,} that it announced"
                    )
                yield complete
            except DamagedError:
                complete.unlink()
                raise
            complete.unlink()

    def _fetch(self, url: str, path: Path, progress: Callable[[int], None]) -> None:
        def report(_: int) -> None:
            progress(path.stat().st_size)

        backoff = tenacity.wait_random_exponential(multiplier=1, max=30)

        def pause(state: tenacity.RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            return max(backoff(state), getattr(error, "retry_after", 0.0))

        with new_session(1, self._may_redirect) as session:
            tenacity.Retrying(
                stop=tenacity.stop_after_attempt(self.attempts),
                wait=pause,
                sleep=stop.pause,
                retry=tenacity.retry_if_exception_type(TryAgainError),
                reraise=True,
            )(get_file, session, url, self.timeout, MAX_ARCHIVE_BYTES, path, None, report)

    def _may_redirect(self, url: str, target: str) -> bool:
        """True, or raises RefusedError, which names both addresses and the configured hosts."""
        if not self._allows(url, target):
            old, new = read(url), read(target, plain_http=True)
            raise RefusedError(
                f"{old.scheme}://{old.host}{old.path} redirects to {new.scheme}://{new.place[:80]}, "
                f"which is not followed: {self._allowed_hosts()}"
            )
        return True

    def _allows(self, url: str, target: str) -> bool:
        return same_site(url, target) or leads_to(target, self.hosts)

    def _allowed_hosts(self) -> str:
        return (
            f"releases come over https from {', '.join(self.hosts) or 'no other host'}; if its owner publishes them, "
            "add it to CROP_ASSETS_CDL_HOSTS"
        )

    def _not_fetched(self, address: str) -> str:
        return f"{self.index} links to {address[:200]}, which is not fetched: {self._allowed_hosts()}"

    def _local_releases(self, log: Callable[[str], None]) -> Iterator[Release]:
        problems = set()
        for year in _years():
            try:
                release = self._local_release(year)
            except UnsafeNameError as error:
                problems.add(str(error))
            else:
                if release:
                    yield release
        for problem in sorted(problems):
            log(problem)

    def _local_release(self, year: int) -> Release | None:
        if not self._names(year):
            return None
        raster, archive = self.raster_path(year), self.archive_path(year)
        made = record_path(raster).is_file()
        if raster.is_file() and not made:
            return _local(year, raster)
        if archive.is_file():
            return _local(year, archive)
        return _local(year, raster) if raster.is_file() and not self.fetches else None

    def _listed(self, session: requests.Session) -> tuple[dict[int, str], dict[int, str]]:
        """The address of each year's archive on the index; and one for each year that it lists only on other hosts."""
        page, answer = ask(session, "GET", self.index, self.timeout, _MAX_INDEX_BYTES, page=True)
        text = page.decode(errors="replace")
        links = list(_year_links(text, answer.url))
        found = _firsts(link for link in links if self._allows(answer.url, link[1]))
        elsewhere = {year: address for year, address in _firsts(links).items() if year not in found}
        if elsewhere and not found:
            raise IntegrityError(self._not_fetched(elsewhere[max(elsewhere)]))
        if not found:
            raise IntegrityError(
                f"{self.index} has no link to a <year>_30m_cdls.zip; if the page has moved, set CROP_ASSETS_CDL_INDEX "
                "to its new address"
            )
        return found, elsewhere

    def _release(self, session: requests.Session, year: int, url: str) -> Release:
        _, answer = ask(session, "HEAD", url, self.timeout, 0, {"Accept-Encoding": "identity"})
        headers = answer.headers
        size = count(headers.get("Content-Length")) or 0
        version = _version(
            headers.get("Last-Modified", ""), size, plain_text(headers.get("ETag", "")[:_MAX_ETAG], _MAX_ETAG)
        )
        if not version:
            raise IntegrityError(
                f"{shown(url)} has no ETag, date or size, so a new release of {year} could not be detected"
            )
        return Release(year, version, url, size)


def _version(date: str, size: int, etag: str) -> str:
    """What distinguishes a release from a later one: date and size, with the ETag if there is no date.

    ETags also change if a server moves, and may differ between the servers of one host.
    """
    try:
        date = email.utils.format_datetime(
            email.utils.parsedate_to_datetime(date).astimezone(UTC), usegmt=True
        )
    except (ValueError, OverflowError):
        date = ""
    return " ".join(filter(None, (date, str(size or ""), "" if date else etag)))


def same_release(known: str, version: str) -> bool:
    """Whether two versions of a year's raster are the same release.

    A different size is a different release. Otherwise the dates decide; if one is missing, the ETags, weak or not; if
    one of these is missing too, the size.
    """
    if known == version:
        return True
    old, new = _VERSION.fullmatch(known), _VERSION.fullmatch(version)
    if not old or not new or (old["size"] and new["size"] and old["size"] != new["size"]):
        return False
    if old["date"] and new["date"]:
        return old["date"] == new["date"]
    if old["etag"] and new["etag"]:
        return _opaque(old["etag"]) == _opaque(new["etag"])
    return bool(old["size"] and new["size"])


def _opaque(etag: str) -> str:
    return etag.removeprefix("W/").strip('"')


def _years() -> range:
    """The possible years of a release; one comes out in the following year."""
    return range(_FIRST_YEAR, datetime.now(UTC).year + 1)


def year_of(name: str) -> int | None:
    """The year in a file's name: its first four-digit number; None if it has none.

    Longer runs of digits do not count: CDL_2021_clip_20220315112233_42.tif is of 2021.
    """
    found = _YEAR.search(name)
    return int(found[0]) if found else None


class _Links(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.base = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for value in (value for name, value in attrs if name == "href" and value):
            if tag == "a":
                self.found.append(value)
            elif tag == "base":
                self.base = self.base or value


def archive_links(page: str, url: str, allowed: Callable[[str, str], bool] = same_site) -> dict[int, str]:
    """The address of each year's <year>_30m_cdls.zip that an HTML page at `url` links to, if `allowed` permits it.

    The first permitted link of a year counts. Raises IntegrityError if the page is not HTML, or has too many tags or
    links.
    """
    return _firsts(link for link in _year_links(page, url) if allowed(url, link[1]))


def _firsts(links: Iterable[tuple[int, str]]) -> dict[int, str]:
    found: dict[int, str] = {}
    for year, address in links:
        found.setdefault(year, address)
    return found


def _year_links(page: str, url: str) -> Iterator[tuple[int, str]]:
    """Year and address of each link to an archive on a page."""
    if (tags := page.count("<")) > _MAX_TAGS:
        raise IntegrityError(f"{shown(url)} has {tags:,} HTML tags; the most is {_MAX_TAGS:,}")
    links = _Links()
    try:
        links.feed(page)
    except AssertionError as error:
        # html.parser raises it for some declarations
        raise IntegrityError(f"{shown(url)} is not an HTML page: {error}") from None
    archives = [link for link in links.found if "_30m_cdls.zip" in link]
    if len(archives) > _MAX_LINKS:
        raise IntegrityError(f"{shown(url)} has more than {_MAX_LINKS:,} links to archives")
    try:
        base = join(url, links.base.strip()).url
    except AddressError:
        return
    for link in archives:
        with contextlib.suppress(AddressError):
            address = join(base, link.strip())
            name = address.path.rsplit("/", 1)[-1]
            year = year_of(name) if _ARCHIVE.fullmatch(name) else None
            if year and year in _years():
                yield year, address.url


def record_path(raster: Path) -> Path:
    """The file that records which release a raster was made from. A raster without one is the user's own."""
    return raster.with_suffix(".release.json")


def raster_files(path: Path) -> list[Path]:
    """A raster's files: `path`, then the others that its pixels, georeference and nodata value are read from, sorted.

    These are the .ige with the pixels of an .img, the sources of a .vrt and their files, an .aux.xml, and a world file.
    An .ovr does not count, because its pixels are not read. Raises NotFoundError if one is not a local file.
    """
    found = [path]
    for file in found:
        try:
            others = raster_sources(file)
        except SourceError as error:
            raise NotFoundError(str(error)) from None
        except RasterioError:
            # not a raster by itself, such as an .ige; what is wrong with `path` is reported when it is read
            continue
        found += [other for other in others if other not in found and other.suffix.lower() != ".ovr"]
    for file in found:
        if not file.is_file():
            raise NotFoundError(
                f"{path} is read from {file}, which is not a local file, so a change could not be detected; fetch it, "
                f"or convert everything to one file: {translated(path)}"
            )
    return [path, *sorted(found[1:])]


def raster_sha256(path: Path) -> str:
    """The checksum of a raster's files: the SHA-256 of one file, or of the names and checksums of several.

    Each process reads a file once, unless it changes. Raises as `raster_files`.
    """
    digests = {file: file_sha256(file) for file in raster_files(path)}
    if len(digests) == 1:
        return digests[path]
    listed = "".join(f"{digest}  {file.name}\n" for file, digest in digests.items())
    return hashlib.sha256(listed.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    status = path.stat()
    # the tiles of a run ask at the same time
    with _HASHING:
        return _sha256_of(path.absolute(), status.st_ino, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=1024)
def _sha256_of(path: Path, inode: int, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _local(year: int, path: Path) -> Release:
    stats = [file.stat() for file in raster_files(path)]
    version, *others = (f"{status.st_size}-{status.st_mtime_ns}" for status in stats)
    if others:
        version += f"+{hashlib.sha256(' '.join(others).encode()).hexdigest()[:16]}"
    return Release(year, version, str(path), sum(status.st_size for status in stats))
