"""Releases of the Cropland Data Layer: those that the index of NASS lists, and rasters and archives of one's own.

Belongs here: the index, fetching an archive, and which files of a folder are one's own. Does not: what a CDL raster
must be like (`crop_assets.labels.cdl`), making one of an archive (`crop_assets.labels.release`), or what follows from
a new release (`crop_assets.automation`).
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
from resources.pace import until
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
"""Of the first CDL of any state."""
_MAX_LINKS = 1000
"""Links of a page to archives; NASS's has one for each year."""
_MAX_TAGS = 20_000
"""Of HTML on that page: what a page of a megabyte may have of them takes half a minute to read."""
_MAX_ETAG = 200
LOOK_SECONDS = 50.0
"""For a look at all releases, some thirty short requests: Dagster gives a sensor a minute."""
_FILE_SUFFIXES = {".tif", ".tiff", ".img", ".vrt", ".zip"}
_HASHING = threading.Lock()
_MOST_INDEX_BYTES = 1 << 20
MAX_ARCHIVE_BYTES = 20 << 30
"""Of one fetched archive; that of 30 m has 2 GB."""


@dataclass(frozen=True)
class Release:
    """A release of a year. `version` tells it from a later one of the same year
    (`same_release`); `place` is a URL or a local path;
    `size` is in bytes, 0 where that is not told.
    """

    year: int
    version: str
    place: str
    size: int

    @property
    def is_local(self) -> bool:
        return not is_url(self.place)


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
        description="Hosts, with all below them, that links of the page and redirects may lead to over https, beside "
        "the page's own.",
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
        """Whether releases come from the index where the folder has none."""
        return bool(self.index) and self._is_folder

    @property
    def _is_folder(self) -> bool:
        return Path(self.source).suffix.lower() not in _FILE_SUFFIXES and "{year}" not in self.source

    def _names(self, year: int) -> bool:
        """Whether the source says where a year's raster is: by its name, or a {year} in its folder's."""
        name = Path(self.source).name
        if self._is_folder or ("{year}" in self.source and "{year}" not in name):
            return True
        return year_of(name.replace("{year}", str(year))) == year

    def require_year(self, year: int) -> None:
        """Raise NotFoundError where the source is a file of another year, or of none, by its name."""
        if not self._names(year):
            path = Path(self.source.replace("{year}", str(year)))
            named = year_of(path.name)
            what = f"is the raster of {named} by its name" if named else "has no year in its name"
            raise NotFoundError(
                f"{path} {what}, and that of {year} is wanted (the first four-digit number counts); materialize the "
                f"partition of its year, or set CROP_ASSETS_CDL to a file such as {year}_30m_cdls{path.suffix.lower()}"
            )

    @property
    def _shared_folders(self) -> int:
        """How many folders of a raster's path may be others' to change: those with the year, and the one around."""
        parts = Path(self.source).parts
        named = [at for at, part in enumerate(parts) if "{year}" in part]
        return max(1, len(parts) - named[0]) if named else 1

    def raster_path(self, year: int) -> Path:
        """Where the raster of a year is, or will be.

        Raises UnsafeNameError where that, or its folder, is a link of another user's: they may be in a shared store.
        """
        path = Path(self.source.replace("{year}", str(year)))
        if self._is_folder:
            path /= f"{year}_30m_cdls.tif"
        elif path.suffix.lower() == ".zip":
            path = path.with_suffix(".tif")
        require_own_links(path, self._shared_folders)
        return path

    def archive_path(self, year: int) -> Path:
        """Where the archive of a year is that someone brought. Raises as `raster_path`."""
        path = Path(self.source.replace("{year}", str(year)))
        if path.suffix.lower() != ".zip":
            path = self.raster_path(year).with_suffix(".zip")
        require_own_links(path, self._shared_folders)
        return path

    def partials(self, year: int) -> PartialFiles:
        """Where what is not finished yet of a year's raster is kept."""
        return PartialFiles.below(self.raster_path(year).parent)

    def find(self, year: int) -> Path:
        """The raster of a year. Raises NotFoundError that says where to get it and where to put it."""
        self.require_year(year)
        path = self.raster_path(year)
        if not path.is_file():
            raise NotFoundError(
                f"there is no CDL raster of {year} at {path}; put {year}_30m_cdls.zip, or the GeoTIFF inside, there, "
                f"from {INDEX}, or set CROP_ASSETS_CDL to where it is"
            )
        return path

    def find_same(self, year: int, sha256: str) -> Path:
        """The raster that the asset `cdl` described, by its checksum.

        Raises NotFoundError where there is none, or another one now.
        """
        path = self.find(year)
        if raster_sha256(path) != sha256:
            raise NotFoundError(f"{path} is not the file that cdl described any more; materialize cdl again")
        return path

    def release(self, year: int) -> Release | None:
        """The archive of a year: one's own, or else the one of the index; None where neither is to be had.

        Raises NotFoundError where the index does not list the year, IntegrityError where it lists the year on hosts
        alone that are not configured, and otherwise as `releases`.
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
                    f"{self.index} lists no release of {year}, but those of {', '.join(map(str, sorted(listed)))}"
                )
            return self._release(session, year, listed[year])

    def releases(self, log: Callable[[str], None] = lambda _: None) -> list[Release]:
        """The latest release of each year: files of one's own, and of the other years what the index lists.

        A listed file that is not there (404) is no release yet; a year that is listed on hosts alone that are
        not configured is none, and logged, as is a file that is a link of another user's. Raises
        UnavailableError and the like where the index or a file of it does not answer, or all of them not within
        50 seconds; RefusedError where one of them redirects to a host that is not configured, and
        IntegrityError where the index lists nothing that is there or a file tells no version.
        """
        found = {release.year: release for release in self._own(log)}
        if not self.fetches:
            return [found[year] for year in sorted(found)]
        with (
            until(time.monotonic() + LOOK_SECONDS),
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
                f"none of the {len(listed)} files that {self.index} lists is there, such as {min(listed.values())}"
            )
        return [found[year] for year in sorted(found)]

    @contextlib.contextmanager
    def archive(self, release: Release, progress: Callable[[int], None]) -> Iterator[Path]:
        """The archive of a release as a local file, whole, and gone at the end of the block if it was fetched.

        A fetch goes on behind what an earlier one left. `progress` gets the bytes there are so far. Raises as
        `get_file`. After a DamagedError of the block the archive is fetched again next time; after others it stays.
        """
        if release.is_local:
            yield Path(release.place)
            return
        key = f"{release.place} {release.version}"
        with self.partials(release.year).holding(key) as path:
            whole = path.with_name(f"{path.name}.whole")
            if not whole.is_file():
                require_room(whole.parent, release.size - (path.stat().st_size if path.is_file() else 0))
                self._fetch(release.place, path, progress)
                path.replace(whole)
            # so that it is kept for as long as it is used
            os.utime(whole)
            try:
                if release.size not in (0, size := whole.stat().st_size):
                    raise DamagedError(f"{release.place} gave {size:,} bytes, and told of {release.size:,}")
                yield whole
            except DamagedError:
                whole.unlink()
                raise
            whole.unlink()

    def _fetch(self, url: str, path: Path, progress: Callable[[int], None]) -> None:
        def told(_: int) -> None:
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
            )(get_file, session, url, self.timeout, MAX_ARCHIVE_BYTES, path, None, told)

    def _may_redirect(self, url: str, target: str) -> bool:
        """True, or raises RefusedError that names both, and the hosts that are configured."""
        if not self._allows(url, target):
            old, new = read(url), read(target, plain_http=True)
            raise RefusedError(
                f"{old.scheme}://{old.host}{old.path} redirects to {new.scheme}://{new.place[:80]}, "
                f"which is not followed: {self._hosts_told()}"
            )
        return True

    def _allows(self, url: str, target: str) -> bool:
        return same_site(url, target) or leads_to(target, self.hosts)

    def _hosts_told(self) -> str:
        return (
            f"releases come over https from {', '.join(self.hosts) or 'no other host'}; if its owner publishes them, "
            "add it to CROP_ASSETS_CDL_HOSTS"
        )

    def _not_fetched(self, address: str) -> str:
        return f"{self.index} links to {address[:200]}, which is not fetched: {self._hosts_told()}"

    def _own(self, log: Callable[[str], None]) -> Iterator[Release]:
        problems = set()
        for year in _years():
            try:
                release = self._own_of(year)
            except UnsafeNameError as error:
                problems.add(str(error))
            else:
                if release:
                    yield release
        for problem in sorted(problems):
            log(problem)

    def _own_of(self, year: int) -> Release | None:
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
        """The address of each year's archive on the index; and one of each year that it lists on other hosts alone."""
        page, answer = ask(session, "GET", self.index, self.timeout, _MOST_INDEX_BYTES, page=True)
        text = page.decode(errors="replace")
        links = list(_year_links(text, answer.url))
        found = _firsts(link for link in links if self._allows(answer.url, link[1]))
        elsewhere = {year: address for year, address in _firsts(links).items() if year not in found}
        if elsewhere and not found:
            raise IntegrityError(self._not_fetched(elsewhere[max(elsewhere)]))
        if not found:
            raise IntegrityError(
                f"{self.index} has no link to a <year>_30m_cdls.zip; its page may have changed, and "
                "CROP_ASSETS_CDL_INDEX can name another that lists them"
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
                f"{shown(url)} tells no ETag, date or size, so that a new release of {year} could not be told"
            )
        return Release(year, version, url, size)


def _version(date: str, size: int, etag: str) -> str:
    """What tells a release from a later one: date and size, and the ETag where there is no date.

    ETags also change when a server moves, or by which of several servers answers.
    """
    try:
        date = email.utils.format_datetime(
            email.utils.parsedate_to_datetime(date).astimezone(UTC), usegmt=True
        )
    except (ValueError, OverflowError):
        date = ""
    return " ".join(filter(None, (date, str(size or ""), "" if date else etag)))


def same_release(known: str, version: str) -> bool:
    """Whether two versions of a year's raster are of one release.

    Another size is another release. Otherwise the dates decide; if one is missing, the ETags, weak or not; and if one
    of these is missing too, the size.
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
    """The years that a release may be of: it comes out in the year after."""
    return range(_FIRST_YEAR, datetime.now(UTC).year + 1)


def year_of(name: str) -> int | None:
    """The year that a file's name says: its first four-digit number; None without one.

    A longer run of digits is none: CDL_2021_clip_20220315112233_42.tif is of 2021.
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
    """The address of each year's <year>_30m_cdls.zip that an HTML page at `url` links to and may, by `allowed`.

    Of several links of a year the first that is allowed counts. Raises IntegrityError for a page that is no HTML, or
    has tags or links without end.
    """
    return _firsts(link for link in _year_links(page, url) if allowed(url, link[1]))


def _firsts(links: Iterable[tuple[int, str]]) -> dict[int, str]:
    found: dict[int, str] = {}
    for year, address in links:
        found.setdefault(year, address)
    return found


def _year_links(page: str, url: str) -> Iterator[tuple[int, str]]:
    """Year and address of each link of a page to an archive."""
    if (tags := page.count("<")) > _MAX_TAGS:
        raise IntegrityError(f"{shown(url)} has {tags:,} tags of HTML, and {_MAX_TAGS:,} are read at most")
    links = _Links()
    try:
        links.feed(page)
    except AssertionError as error:
        # what html.parser raises at some declarations
        raise IntegrityError(f"{shown(url)} is no page of HTML: {error}") from None
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
    """Where it is noted which release a raster was made of. A raster without is one's own."""
    return raster.with_suffix(".release.json")


def raster_files(path: Path) -> list[Path]:
    """A raster's files: `path`, then the others that its pixels, place and nodata are read from, sorted.

    These are the .ige with the pixels of an .img, the sources of a .vrt with theirs, an .aux.xml, a world file; an
    .ovr, whose pixels nothing here reads, is none. Raises NotFoundError for one that is no local file.
    """
    found = [path]
    for file in found:
        try:
            others = raster_sources(file)
        except SourceError as error:
            raise NotFoundError(str(error)) from None
        except RasterioError:
            # no raster by itself, such as an .ige; what is wrong with `path` is said by those who read it
            continue
        found += [other for other in others if other not in found and other.suffix.lower() != ".ovr"]
    for file in found:
        if not file.is_file():
            raise NotFoundError(
                f"{path} is read from {file}, which is no local file, so that a change of it could not be told; fetch "
                f"that, or make one file of it all: {translated(path)}"
            )
    return [path, *sorted(found[1:])]


def raster_sha256(path: Path) -> str:
    """The checksum of a raster's files: of one file its SHA-256, of several that of their names and checksums.

    A file is read once a process, unless it changes. Raises as `raster_files`.
    """
    digests = {file: file_sha256(file) for file in raster_files(path)}
    if len(digests) == 1:
        return digests[path]
    listed = "".join(f"{digest}  {file.name}\n" for file, digest in digests.items())
    return hashlib.sha256(listed.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    status = path.stat()
    # tiles of one run ask at once
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
