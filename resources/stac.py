"""STAC catalogues: a STAC API, or an ItemCollection in a local file. An item without an id is named by its place."""

import datetime as dt
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import requests
from pydantic import Field, PrivateAttr, field_validator
from pystac import Link
from pystac.errors import STACError, STACTypeError
from pystac_client import Client
from pystac_client.errors import ClientTypeError
from pystac_client.exceptions import APIError, ParametersError
from pystac_client.stac_api_io import StacApiIO
from pystac_client.warnings import PystacClientWarning
from shapely.errors import ShapelyError
from shapely.geometry import Polygon, box, shape

from resources.addresses import AddressError, configured, is_url, read, require_host, same_site, shown
from resources.errors import (
    IntegrityError,
    NotAFileError,
    NotFoundError,
    RefusedError,
    TryAgainError,
    UnavailableError,
)
from resources.http import RateLimit, ask, get_bytes, new_session
from resources.json_values import MALFORMED, count, mapping, objects, parse, size, text, values_in
from resources.pace import until
from resources.settings import Attempts, Settings, TimeoutSeconds

Item = dict[str, Any]

SET_ASIDE = "crop_assets:set_aside"
"""The field of what stands for an item that cannot be used: why not."""

_PAGE = 100
_FOLLOWED_LINKS = ("search", "next")
_CMR_SEARCH = "https://cmr.earthdata.nasa.gov/search/granules.umm_json"
_GRANULES = 500
"""Records of one request. A tile has some 200 of one collection in a year, and CMR gives 2,000 at once at most."""
_SEARCH_AFTER = "CMR-Search-After"
_MAX_CATALOGUE_BYTES = 4 << 20
_MAX_PAGE_BYTES = 16 << 20
"""A hundred items have 0.7 MB, of another mission 5 MB; 500 granule records have 8 MB."""
_MAX_PAGES = 500
_MAX_ANSWER_BYTES = 64 << 20
_MAX_ANSWER_VALUES = 2_000_000
"""Some 300 MB at most. The items of a year, with those of the tiles around, have a seventh of it."""
_MAX_ANSWER_SECONDS = 3600.0
_MAX_SCENES_A_DAY = 4
"""Of a tile in one collection: a satellite passes once a day, and what it saw may come in two parts."""
_MAX_TILES_AROUND = 10
"""How many times as many items may touch a tile's place as are its own."""
_MAX_ITEM_VALUES = 10_000
"""An item has some 120, of another mission 900."""
_MAX_ITEM_CHARACTERS = 256 << 10
"""An item has 7,000 in all, of another mission 53,000."""
_MAX_ID_CHARACTERS = 200
_MAX_DOCUMENT_BYTES = 256 << 10
"""Granules' documents have 9 kB (XML) and 15 kB (UMM-JSON)."""
_MAX_COLLECTION_BYTES = 1 << 30
_MAX_COLLECTION_VALUES = 50_000_000


_CLIENT_ERRORS = (STACError, STACTypeError, APIError, ClientTypeError, ParametersError, PystacClientWarning)
"""What pystac and pystac-client raise of their own; the last of them also as an error."""


class _StacCatalogue(Settings):
    refresh: bool = Field(
        default=False,
        description="Ask again, even where an earlier answer is stored and nothing else changed.",
    )
    timeout_seconds: TimeoutSeconds = 60
    attempts: Attempts = 6
    requests_per_second: float = Field(
        default=10,
        ge=0.01,
        le=1_000_000,
        allow_inf_nan=False,
        description="Most requests a second, over all tiles of a run.",
    )
    _local: threading.local = PrivateAttr(default_factory=threading.local)

    @field_validator("url", "granule_search", check_fields=False)
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        if is_url(value):
            try:
                configured(value)
            except AddressError as error:
                raise ValueError(
                    f"the address of a STAC catalogue or granule search must be https: {error}"
                ) from None
        return value

    @property
    def address(self) -> str:
        """The catalogue's URL or path; each catalogue declares a `url` field with its own default."""
        return str(getattr(self, "url"))  # noqa: B009

    @property
    def is_file(self) -> bool:
        return not is_url(self.address)

    def search(
        self,
        bbox: tuple[float, float, float, float],
        start: dt.date,
        end: dt.date,
        collections: Sequence[str] = ("HLSS30_2.0",),
    ) -> list[Item]:
        """All items that touch `bbox` (west, south, east, north, degrees) from `start` to `end`, both included.

        Each item comes once, sorted by id, however often the server repeats it. The search is by bbox
        because CMR-STAC answers 500 to polygons that are not axis-aligned. What a server sends beyond what it was
        asked for is left out; an item whose day or place cannot be read is not. What has no id is named by its place
        in the answer and says in `SET_ASIDE` why. Raises UnavailableError where the catalogue keeps failing or
        gives fewer items than it has matched, IntegrityError for a malformed answer: a partial one is never returned.
        """
        area = box(*bbox)
        around = _MAX_TILES_AROUND * most_scenes(start, end) * len(collections)
        bounds = Bounds(self.address, around + _PAGE)
        if self.is_file:
            return self._in_file(lambda item: _may_lie_in(item, start, end) and _may_touch(item, area))
        moments = "/".join(_moments(start, end))
        with until(bounds.until):
            found = self._ask(bounds, collections=list(collections), bbox=bbox, datetime=moments)
        return [item for item in found if _may_lie_in(item, start, end)]

    def items(self, ids: Sequence[str], collections: Sequence[str] = ("HLSS30_2.0",)) -> list[Item]:
        """The items of these ids that the catalogue has, each once, sorted by id. What a server sends beyond them comes
        too, for it may be one of them that is malformed. Raises as `search`.
        """
        wanted = sorted(set(ids))
        if self.is_file:
            return self._in_file(lambda item: item["id"] in wanted)
        bounds = Bounds(self.address, 2 * len(wanted) * len(collections) + _PAGE)
        found: list[Item] = []
        with until(bounds.until):
            for at in range(0, len(wanted), _PAGE):
                found += self._ask(bounds, collections=list(collections), ids=wanted[at : at + _PAGE])
        return _once(found)

    def _ask(self, bounds: "Bounds", **query: Any) -> list[Item]:
        """The items of one search, which may be one of several for the same question."""
        try:
            client, reader = self._client()
            reader.bounds = bounds
            return _once(client.search(limit=_PAGE, **query).items_as_dicts())
        except (NotAFileError, *_CLIENT_ERRORS, *MALFORMED) as error:
            why = str(error) if isinstance(error, NotAFileError) else repr(error)
            raise IntegrityError(
                f"{self.address} did not answer as a STAC catalogue does: {why}; check the address, or try again later"
            ) from error
        except RefusedError as error:
            raise RefusedError(
                f"the STAC catalogue {self.address} refuses: {error}; check the address"
            ) from error
        except UnavailableError as error:
            tried = f"did not answer after {self.attempts} tries"
            what = tried if isinstance(error, TryAgainError) else "gave no complete answer"
            raise UnavailableError(
                f"the STAC catalogue {self.address} {what}: {error}; materialize this tile again later"
            ) from error

    def _client(self) -> "tuple[Client, _Io]":
        # one session a thread: requests' sessions are not safe to share
        if not hasattr(self._local, "client"):
            reader = _Io(self.address, self.attempts, self.timeout_seconds, self._limit)
            self._local.client = Client.open(self.address, stac_io=reader), reader
        opened: tuple[Client, _Io] = self._local.client
        return opened

    @cached_property
    def _limit(self) -> RateLimit:
        return RateLimit(self.requests_per_second)

    def _in_file(self, wanted: Callable[[Item], bool]) -> list[Item]:
        path = Path(self.address)
        if not path.is_file():
            raise NotFoundError(
                f"the STAC ItemCollection {shown(self.address)} is not there; give a file or an http(s) address"
            )
        if path.stat().st_size > _MAX_COLLECTION_BYTES:
            raise IntegrityError(f"{path} is larger than {_MAX_COLLECTION_BYTES:,} bytes; split it by tile")
        try:
            content = parse(path.read_bytes(), _MAX_COLLECTION_VALUES)
            items = _features(content)
        except MALFORMED as error:
            raise IntegrityError(f"{path} is not a STAC ItemCollection: {error!r}") from error
        if len(items) < (matched := _matched(content)):
            raise IntegrityError(
                f"{path} holds {len(items)} of the {matched} items that its catalogue matched; save all pages of it"
            )
        named = (_named(item, place) for place, item in enumerate(items, 1))
        return _once(item for item in named if SET_ASIDE in item or wanted(item))


class SceneStac(_StacCatalogue):
    """The catalogue of the scenes themselves, with their cloud cover and links: CMR-STAC by default."""

    url: str = Field(
        default="https://cmr.earthdata.nasa.gov/stac/LPCLOUD",
        description="Address of a STAC API, or path of an ItemCollection file.",
    )
    granule_search: str = Field(
        default="",
        description="Address of a granule search like CMR's, which returns all granules of a tile at once. "
        "Empty for CMR's own where the catalogue is CMR-STAC; elsewhere each granule's document is read.",
    )
    metadata_hosts: list[str] = Field(
        default=["cmr.earthdata.nasa.gov"],
        description="Hosts besides the catalogue's own whose metadata documents may be read.",
    )

    @property
    def search_address(self) -> str:
        """The granule search that is asked, or "" for none."""
        is_cmr = not self.is_file and read(self.address).host == read(_CMR_SEARCH).host
        return self.granule_search or (_CMR_SEARCH if is_cmr else "")

    def document(self, url: str) -> bytes:
        """A granule's metadata document, at most 256 KiB.

        Raises IntegrityError for a host that is not configured, NotFoundError, UnavailableError.
        """
        own = [] if self.is_file else [read(self.address).place]
        require_host(url, {*self.metadata_hosts, *own})
        self._limit.wait()
        return get_bytes(self._session(), url, self.timeout_seconds, _MAX_DOCUMENT_BYTES)

    def granules(
        self, short_name: str, tile: str, start: dt.date, end: dt.date
    ) -> list[dict[str, Any]] | None:
        """The UMM-JSON records of all granules of a tile from `start` to `end`, by one request for up to 500.

        `short_name` is the collection's, such as HLSS30. None where there is no granule search, which is so for a
        catalogue in a file. Of a record that is far larger than any there is, its name is left, and `SET_ASIDE` says
        why. Raises UnavailableError, and IntegrityError for a malformed answer: a partial one is never returned.
        """
        address = self.search_address
        if self.is_file or not address:
            return None
        query = {
            "short_name": short_name,
            "version": "2.0",
            "temporal": ",".join(_moments(start, end)),
            "attribute[]": f"string,MGRS_TILE_ID,{tile}",
            "page_size": _GRANULES,
        }
        found: dict[str, dict[str, Any]] = {}
        after: dict[str, str] = {}
        total = 0
        bounds = Bounds(address, most_scenes(start, end))
        while True:
            self._limit.wait()
            with until(bounds.until):
                data, response = ask(
                    self._session(),
                    "GET",
                    address,
                    self.timeout_seconds,
                    _MAX_PAGE_BYTES,
                    {"Accept": "application/vnd.nasa.cmr.umm_results+json", **after},
                    query,
                )
            try:
                answer = parse(data)
                records = dict(map(_record, answer["items"]))
                hits = count(answer["hits"])
                if hits is None:
                    raise ValueError(f"hits is {answer['hits']!r:.40}")
            except MALFORMED as error:
                raise IntegrityError(
                    f"{address} did not answer as a granule search does: {error!r}; check the address"
                ) from error
            known = len(found)
            found |= records
            # pages may differ in it, as granules come in; a number that is too small ends nothing
            total = max(total, hits)
            bounds.add(pages=1, bytes=len(data), values=values_in(data), records=len(found) - known)
            bounds.expect(total)
            token = response.headers.get(_SEARCH_AFTER, "")
            if len(found) == total or not token or len(found) == known:
                break
            after = {_SEARCH_AFTER: token}
        if len(found) < total:
            raise UnavailableError(
                f"{address} reported {total} granules and returned {len(found)}; try again later"
            )
        return [found[name] for name in sorted(found)]

    def _session(self) -> requests.Session:
        if not hasattr(self._local, "session"):
            self._local.session = new_session(self.attempts)
        session: requests.Session = self._local.session
        return session


class _Io(StacApiIO):
    """What pystac-client asks by: only the catalogue's own site, at a bounded rate, bounded answers."""

    def __init__(self, address: str, attempts: int, timeout: float, limit: RateLimit) -> None:
        super().__init__(timeout=timeout)
        self.session = new_session(attempts)
        self.bounds = Bounds(address, 0)
        """Those of the question that is asked."""
        self._address = address
        self._seconds = timeout
        self._limit = limit
        self._received = b""

    def read_text(self, source: Any, *args: Any, **kwargs: Any) -> str:
        """What is at an address or a link. pystac-client's own also reads files, and sends the headers and by the
        method that a catalogue's link asks for.
        """
        if not isinstance(source, Link):
            return self.request(str(source), *args, **kwargs)
        link = source.to_dict()
        if str(link.get("method", "GET")).upper() != "POST":
            return self.request(str(link["href"]))
        given = mapping(kwargs.get("parameters")) if link.get("merge") else {}
        return self.request(str(link["href"]), "POST", parameters={**given, **mapping(link.get("body"))})

    def request(
        self,
        href: str,
        method: str | None = None,
        headers: dict[str, str] | None = None,
        parameters: dict[str, Any] | None = None,
    ) -> str:
        address = read(href)
        if not same_site(self._address, href):
            raise IntegrityError(
                f"the catalogue {self._address} leads to {address.place}, which is not its own site; check its address"
            )
        self._limit.wait()
        method = (method or "GET").upper()
        in_body: dict[str, Any] = {"json" if method == "POST" else "parameters": parameters}
        most = _MAX_CATALOGUE_BYTES if href == self._address else _MAX_PAGE_BYTES
        self._received, _ = ask(self.session, method, href, self._seconds, most, headers, **in_body)
        return self._received.decode()

    def json_loads(self, txt: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """A page, of whose links those are left that are followed here: pystac would follow others by itself."""
        page = dict(parse(txt))
        if "links" in page:
            page["links"] = [link for link in objects(page["links"]) if link.get("rel") in _FOLLOWED_LINKS]
        return page

    def get_pages(
        self, url: str, method: str | None = None, parameters: dict[str, Any] | None = None
    ) -> Iterator[dict[str, Any]]:
        """The pages of a search, whose items each have an id; what has none is named by its place. pystac-client's own
        takes an answer without items for an empty one, and the last page for the end even where the server says that
        it matched more: here that raises UnavailableError.
        """
        came: set[tuple[str, str]] = set()
        matched = 0
        target: str | Link = url
        while target:
            page = self.read_json(target, method=method, parameters=parameters)
            items = _features(page)
            before = self.bounds.records
            self.bounds.add(
                pages=1, bytes=len(self._received), values=values_in(self._received), records=len(items)
            )
            self._received = b""
            matched = max(matched, _matched(page))
            self.bounds.expect(matched)
            if not items:
                break
            named = [_named(item, place) for place, item in enumerate(items, before + 1)]
            page["features"] = named
            came.update((text(item.get("collection")), item["id"]) for item in named)
            yield page
            links = [link for link in objects(page.get("links")) if link.get("rel") == "next"]
            target = Link.from_dict(dict(links[0])) if links else ""
        if len(came) < matched:
            raise UnavailableError(f"it matched {matched} items and returned {len(came)}")


class IpfsStac(_StacCatalogue):
    """The catalogue with the CID of each band file: the EASIER STAC by default."""

    url: str = Field(
        default="https://stac.easierdata.info",
        description="Address of a STAC API, path of an ItemCollection file, or empty for none.",
    )


class Bounds:
    """What all answers to one question may have in all, counted by any thread."""

    def __init__(self, address: str, max_records: int) -> None:
        self.until = time.monotonic() + _MAX_ANSWER_SECONDS
        self._address = address
        self._most = {
            "records": max_records,
            "pages": _MAX_PAGES,
            "bytes": _MAX_ANSWER_BYTES,
            "values": _MAX_ANSWER_VALUES,
        }
        self._found = dict.fromkeys(self._most, 0)
        self._lock = threading.Lock()

    @property
    def records(self) -> int:
        return self._found["records"]

    def add(self, **found: int) -> None:
        """Count records, pages, bytes or values. Raises IntegrityError where these are too many."""
        with self._lock:
            for what, number in found.items():
                self._found[what] += number
                self._require(what, self._found[what])

    def expect(self, records: int) -> None:
        """Raise IntegrityError where a server reports more records than there can be."""
        self._require("records", records)

    def _require(self, what: str, number: int) -> None:
        if number > self._most[what]:
            raise IntegrityError(
                f"{shown(self._address)} answers with {number:,} {what}, where {self._most[what]:,} are the most "
                "that can be right; check the address, and that the server takes notice of the search's ids, bbox, "
                "dates and attributes"
            )


def most_scenes(start: dt.date, end: dt.date) -> int:
    """The most scenes of one collection that a tile can have from `start` to `end`, both included."""
    return _MAX_SCENES_A_DAY * ((end - start).days + 1)


def _features(page: Any) -> list[Any]:
    """The items of a page or a file. Raises ValueError where it is no ItemCollection."""
    items = page["features"]
    if not isinstance(items, list):
        raise ValueError(f"features is no list but {items!r:.40}")
    return items


def _matched(page: Mapping[str, Any]) -> int:
    """How many items the server has matched: `numberMatched`, or `context.matched` as older ones say; 0 for unknown."""
    reported = page.get("numberMatched"), mapping(page.get("context")).get("matched")
    return max(count(number) or 0 for number in reported)


def _once(items: Iterable[Item]) -> list[Item]:
    """Each item once, by id."""
    found: dict[str, Item] = {}
    repeats = 0
    for item in items:
        repeats += item["id"] in found
        if repeats > 10 * _PAGE:
            raise UnavailableError("the STAC catalogue repeats its pages without end; try again later")
        found.setdefault(item["id"], item)
    return [found[key] for key in sorted(found)]


def _named(item: Any, place: int) -> Item:
    """The item, or what stands for it where it has no id or is far larger than any item."""
    name = f"item {place} of the answer"
    if not isinstance(item, dict):
        why = f"is not an item but {item!r:.40}"
    elif not isinstance(item.get("id"), str) or not item["id"]:
        why = f"has {item['id']!r:.40} for an id" if "id" in item else "has no id"
    elif len(item["id"]) > _MAX_ID_CHARACTERS:
        why = f"has an id of {len(item['id']):,} characters"
    elif why := _excess(item):
        name = item["id"]
    else:
        return item
    return {"id": name, SET_ASIDE: why}


def _record(record: Any) -> tuple[str, dict[str, Any]]:
    """A granule's name and record, or what stands for one that is far larger than any."""
    name = str(record["umm"]["GranuleUR"])[:_MAX_ID_CHARACTERS]
    why = _excess(record)
    return name, {"umm": {"GranuleUR": name}, SET_ASIDE: why} if why else record


def _excess(value: Any) -> str:
    """What an item or a record has too much of."""
    values, characters = size(value)
    if values > _MAX_ITEM_VALUES:
        return f"has {values:,} values, and {_MAX_ITEM_VALUES:,} are the most"
    if characters > _MAX_ITEM_CHARACTERS:
        return f"has {characters:,} characters, and {_MAX_ITEM_CHARACTERS:,} are the most"
    return ""


def _moments(start: dt.date, end: dt.date) -> tuple[str, str]:
    """Both days whole: the last second of a day has fractions. What was taken at the very end is sorted out later."""
    return f"{start}T00:00:00Z", f"{end + dt.timedelta(days=1)}T00:00:00Z"


def _may_lie_in(item: Item, start: dt.date, end: dt.date) -> bool:
    """Whether a server's item is of these days, or of none that can be read."""
    try:
        return start <= _day(item) <= end
    except MALFORMED:
        return True


def _may_touch(item: Item, area: Polygon) -> bool:
    """Whether an item touches an area, or has no place that can be read."""
    try:
        footprint = shape(item["geometry"])
        # an empty shape has NaN for bounds
        return not all(map(math.isfinite, footprint.bounds)) or bool(footprint.intersects(area))
    except (ShapelyError, *MALFORMED):
        return True


def _day(item: Item) -> dt.date:
    properties = item["properties"]
    return dt.date.fromisoformat(str(properties.get("datetime") or properties["start_datetime"])[:10])
