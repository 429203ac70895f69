"""Searches STAC catalogues: a STAC API, or an ItemCollection in a local file."""

import datetime as dt
import math
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import requests
from pydantic import Field, PrivateAttr, field_validator
from pystac import Link
from pystac.errors import STACError, STACTypeError
from pystac_client import Client
from pystac_client.errors import ClientTypeError
from pystac_client.exceptions import APIError, ParametersError
from pystac_client.stac_api_io import StacApiIO
from pystac_client.warnings import PystacClientWarning
from shapely import STRtree
from shapely.errors import ShapelyError
from shapely.geometry import Polygon, box, shape
from shapely.geometry.base import BaseGeometry

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
from resources.pace import deadline
from resources.settings import Attempts, Settings, TimeoutSeconds

Item = dict[str, Any]

SET_ASIDE = "crop_assets:set_aside"
"""The field with the reason why an item cannot be used, in the placeholder that replaces it."""

_PAGE = 100
_FOLLOWED_LINKS = ("search", "next")
_CMR_SEARCH = "https://cmr.earthdata.nasa.gov/search/granules.umm_json"
_GRANULES = 500
"""Records per request. A tile has about 200 of one collection in a year; CMR returns at most 2,000 at once."""
_SEARCH_AFTER = "CMR-Search-After"
_MAX_CATALOGUE_BYTES = 4 << 20
_MAX_PAGE_BYTES = 16 << 20
"""A hundred items have 0.7 MB, those of another mission 5 MB; 500 granule records have 8 MB."""
_MAX_PAGES = 500
_MAX_ANSWER_BYTES = 64 << 20
_MAX_ANSWER_VALUES = 2_000_000
"""About 300 MB at most. The items of a year, including those of neighbouring tiles, have a seventh of this."""
_MAX_ANSWER_SECONDS = 3600.0
_MAX_SCENES_A_DAY = 4
"""For a tile and one collection: a satellite passes once a day, and its scene may come in two parts."""
_MAX_TILES_AROUND = 10
"""How many times more items may touch a tile's bounding box than belong to the tile."""
_MAX_ITEM_VALUES = 10_000
"""An item has about 120, one of another mission 900."""
_MAX_ITEM_CHARACTERS = 256 << 10
"""An item has 7,000 in total, one of another mission 53,000."""
_MAX_ID_CHARACTERS = 200
_MAX_DOCUMENT_BYTES = 256 << 10
"""Documents of granules have 9 kB (XML) or 15 kB (UMM-JSON)."""
_MAX_COLLECTION_BYTES = 1 << 30
_MAX_COLLECTION_VALUES = 50_000_000


_CLIENT_ERRORS = (STACError, STACTypeError, APIError, ClientTypeError, ParametersError, PystacClientWarning)
"""The errors of pystac and pystac-client; the last is a warning that may be raised as an error."""


class _StacCatalogue(Settings):
    refresh: bool = Field(
        default=False,
        description="Ask again, even if an earlier answer is stored and nothing else changed.",
    )
    timeout_seconds: TimeoutSeconds = 60
    attempts: Attempts = 6
    requests_per_second: float = Field(
        default=10,
        ge=0.01,
        le=1_000_000,
        allow_inf_nan=False,
        description="Maximum requests per second, over all tiles of a run.",
    )
    _local: threading.local = PrivateAttr(default_factory=threading.local)
    _file: "_ItemFile | None" = PrivateAttr(default=None)
    _file_lock: Any = PrivateAttr(default_factory=threading.Lock)

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
        """The catalogue's URL or path; each subclass declares a `url` field with its own default."""
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

        Sorted by id, without duplicates. The search is by bbox because CMR-STAC answers 500 to polygons that are not
        axis-aligned. Items that were not asked for are left out, but not those whose date or footprint cannot be read.
        An item without an id is named by its position in the answer, with the reason in `SET_ASIDE`. Raises
        UnavailableError if the catalogue keeps failing or returns fewer items than it matched, IntegrityError if an
        answer is malformed: a partial result is never returned.
        """
        around = _MAX_TILES_AROUND * max_scenes(start, end) * len(collections)
        bounds = Bounds(self.address, around + _PAGE)
        if self.is_file:
            return _once(
                item for item in self._items_file().around(box(*bbox)) if _may_be_in(item, start, end)
            )
        moments = "/".join(_moments(start, end))
        with deadline(bounds.deadline):
            found = self._ask(bounds, collections=list(collections), bbox=bbox, datetime=moments)
        return [item for item in found if _may_be_in(item, start, end)]

    def items(self, ids: Sequence[str], collections: Sequence[str] = ("HLSS30_2.0",)) -> list[Item]:
        """The items with these ids that the catalogue has, each once, sorted by id. Other items that a server sends are
        included, because one may be a malformed item of these ids. Raises as `search`.
        """
        wanted = sorted(set(ids))
        if self.is_file:
            return _once(self._items_file().with_ids(wanted))
        bounds = Bounds(self.address, 2 * len(wanted) * len(collections) + _PAGE)
        found: list[Item] = []
        with deadline(bounds.deadline):
            for at in range(0, len(wanted), _PAGE):
                found += self._ask(bounds, collections=list(collections), ids=wanted[at : at + _PAGE])
        return _once(found)

    def _ask(self, bounds: "Bounds", **query: Any) -> list[Item]:
        """The items of one search, possibly one of several for the same question."""
        try:
            client, reader = self._client()
            reader.bounds = bounds
            return _once(client.search(limit=_PAGE, **query).items_as_dicts())
        except (NotAFileError, *_CLIENT_ERRORS, *MALFORMED) as error:
            why = str(error) if isinstance(error, NotAFileError) else repr(error)
            raise IntegrityError(
                f"{self.address} did not answer like a STAC catalogue: {why}; check the address, or try again later"
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
        # one session per thread: sessions of requests are not thread-safe
        if not hasattr(self._local, "client"):
            reader = _Io(self.address, self.attempts, self.timeout_seconds, self._limit)
            self._local.client = Client.open(self.address, stac_io=reader), reader
        client: tuple[Client, _Io] = self._local.client
        return client

    @cached_property
    def _limit(self) -> RateLimit:
        return RateLimit(self.requests_per_second)

    def _items_file(self) -> "_ItemFile":
        """The items of the file, parsed once for all threads, and again if the file has changed."""
        path = Path(self.address)
        if not path.is_file():
            raise NotFoundError(
                f"the STAC ItemCollection {shown(self.address)} does not exist; give a file or an http(s) address"
            )
        # a file that is replaced while it is read is read again next time
        stat = path.stat()
        if stat.st_size > _MAX_COLLECTION_BYTES:
            raise IntegrityError(f"{path} is larger than {_MAX_COLLECTION_BYTES:,} bytes; split it by tile")
        version = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        with self._file_lock:
            if self._file is None or self._file.version != version:
                self._file = None
                self._file = _ItemFile.of(_file_items(path), version)
            return self._file


class SceneStac(_StacCatalogue):
    """The catalogue of scenes, with their cloud cover and links: CMR-STAC by default."""

    url: str = Field(
        default="https://cmr.earthdata.nasa.gov/stac/LPCLOUD",
        description="Address of a STAC API, or path of an ItemCollection file.",
    )
    granule_search: str = Field(
        default="",
        description="Address of a granule search like CMR's, which returns all granules of a tile at once. "
        "If empty, CMR's own for CMR-STAC; with another catalogue each granule's document is read.",
    )
    metadata_hosts: list[str] = Field(
        default=["cmr.earthdata.nasa.gov"],
        description="Hosts, besides the catalogue's own, from which metadata documents may be read.",
    )

    @property
    def search_address(self) -> str:
        """The address of the granule search, or "" for none."""
        is_cmr = not self.is_file and read(self.address).host == read(_CMR_SEARCH).host
        return self.granule_search or (_CMR_SEARCH if is_cmr else "")

    def document(self, url: str) -> bytes:
        """A granule's metadata document, at most 256 KiB.

        Raises IntegrityError if the host is not configured, NotFoundError, UnavailableError.
        """
        own = [] if self.is_file else [read(self.address).place]
        require_host(url, {*self.metadata_hosts, *own})
        self._limit.wait()
        return get_bytes(self._session(), url, self.timeout_seconds, _MAX_DOCUMENT_BYTES)

    def granules(
        self, short_name: str, tile: str, start: dt.date, end: dt.date
    ) -> list[dict[str, Any]] | None:
        """The UMM-JSON records of all granules of a tile from `start` to `end`, in one request per 500.

        `short_name` is the collection's, such as HLSS30. Returns None if there is no granule search, as for a catalogue
        in a file. Of a record that is far too large only the name is kept, with the reason in `SET_ASIDE`. Raises
        UnavailableError, and IntegrityError if an answer is malformed: a partial result is never returned.
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
        bounds = Bounds(address, max_scenes(start, end))
        while True:
            self._limit.wait()
            with deadline(bounds.deadline):
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
                    f"{address} did not answer like a granule search: {error!r}; check the address"
                ) from error
            known = len(found)
            found |= records
            # it may differ between pages, because granules are added; a number that is too small does not end the loop
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
    """Makes the requests of pystac-client: only to the catalogue's own site, with limits on rates and answers."""

    def __init__(self, address: str, attempts: int, timeout: float, limit: RateLimit) -> None:
        super().__init__(timeout=timeout)
        self.session = new_session(attempts)
        self.bounds = Bounds(address, 0)
        """The limits of the current question."""
        self._address = address
        self._seconds = timeout
        self._limit = limit
        self._received = b""

    def read_text(self, source: Any, *args: Any, **kwargs: Any) -> str:
        """The text at an address or a link. pystac-client's own method also reads files, and uses the headers and the
        method that a link of the catalogue asks for.
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
                f"the catalogue {self._address} leads to {address.place}, which is another site; check its address"
            )
        self._limit.wait()
        method = (method or "GET").upper()
        in_body: dict[str, Any] = {"json" if method == "POST" else "parameters": parameters}
        max_bytes = _MAX_CATALOGUE_BYTES if href == self._address else _MAX_PAGE_BYTES
        self._received, _ = ask(self.session, method, href, self._seconds, max_bytes, headers, **in_body)
        return self._received.decode()

    def json_loads(self, txt: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """A page with only the links that may be followed: pystac would follow others by itself."""
        page = dict(parse(txt))
        if "links" in page:
            page["links"] = [link for link in objects(page["links"]) if link.get("rel") in _FOLLOWED_LINKS]
        return page

    def get_pages(
        self, url: str, method: str | None = None, parameters: dict[str, Any] | None = None
    ) -> Iterator[dict[str, Any]]:
        """The pages of a search; items without an id are named by their position. pystac-client's own method accepts an
        answer without a list of items as empty, and ends at the last page even if the server matched more items: here
        that raises UnavailableError.
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
    """The catalogue with the CIDs of the band files: the EASIER STAC by default."""

    url: str = Field(
        default="https://stac.easierdata.info",
        description="Address of a STAC API, path of an ItemCollection file, or empty for none.",
    )


@dataclass(frozen=True)
class _ItemFile:
    """The items of a file in their order, by id and by place; nobody may change them."""

    items: list[Item]
    by_id: dict[str, list[int]]
    footprints: list[BaseGeometry | None]
    """None if it cannot be read, or has no extent."""
    tree: STRtree
    anywhere: list[int]
    """The items without a footprint, among them placeholders of what is not an item."""
    version: tuple[int, ...]

    @classmethod
    def of(cls, items: list[Item], version: tuple[int, ...]) -> "_ItemFile":
        by_id: dict[str, list[int]] = {}
        for at, item in enumerate(items):
            by_id.setdefault(item["id"], []).append(at)
        footprints = [_footprint(item) for item in items]
        anywhere = [at for at, found in enumerate(footprints) if found is None]
        return cls(items, by_id, footprints, STRtree(np.array(footprints, dtype=object)), anywhere, version)

    def with_ids(self, ids: Iterable[str]) -> list[Item]:
        """The items with these ids, and all placeholders."""
        return self._at({at for name in ids for at in self.by_id.get(name, ())})

    def around(self, area: Polygon) -> list[Item]:
        """The items that touch an area or may do so, and all placeholders."""
        near = {int(at) for at in self.tree.query(area) if _may_touch(self.footprints[at], area)}
        return self._at(near.union(self.anywhere))

    def _at(self, places: set[int]) -> list[Item]:
        aside = (at for at in self.anywhere if SET_ASIDE in self.items[at])
        return [self.items[at] for at in sorted(places.union(aside))]


class Bounds:
    """Limits on all answers to one question together; thread-safe."""

    def __init__(self, address: str, max_records: int) -> None:
        self.deadline = time.monotonic() + _MAX_ANSWER_SECONDS
        self._address = address
        self._limits = {
            "records": max_records,
            "pages": _MAX_PAGES,
            "bytes": _MAX_ANSWER_BYTES,
            "values": _MAX_ANSWER_VALUES,
        }
        self._found = dict.fromkeys(self._limits, 0)
        self._lock = threading.Lock()

    @property
    def records(self) -> int:
        return self._found["records"]

    def add(self, **found: int) -> None:
        """Count records, pages, bytes or values. Raises IntegrityError if there are too many."""
        with self._lock:
            for what, number in found.items():
                self._found[what] += number
                self._require(what, self._found[what])

    def expect(self, records: int) -> None:
        """Raise IntegrityError if a server reports more records than there can be."""
        self._require("records", records)

    def _require(self, what: str, number: int) -> None:
        if number > self._limits[what]:
            raise IntegrityError(
                f"{shown(self._address)} answers with {number:,} {what}, but at most {self._limits[what]:,} can be "
                "right; check the address, and that the server does not ignore the ids, bbox, dates and attributes of "
                "a search"
            )


def max_scenes(start: dt.date, end: dt.date) -> int:
    """The maximum number of scenes of a tile in one collection from `start` to `end`, both included."""
    return _MAX_SCENES_A_DAY * ((end - start).days + 1)


def _features(page: Any) -> list[Any]:
    """The items of a page or a file. Raises ValueError if it is not an ItemCollection."""
    items = page["features"]
    if not isinstance(items, list):
        raise ValueError(f"features is {items!r:.40}, not a list")
    return items


def _file_items(path: Path) -> list[Item]:
    """The items of an ItemCollection file, with placeholders for what is not an item. Raises IntegrityError."""
    try:
        content = parse(path.read_bytes(), _MAX_COLLECTION_VALUES)
        items = _features(content)
    except MALFORMED as error:
        raise IntegrityError(f"{path} is not a STAC ItemCollection: {error!r}") from error
    if len(items) < (matched := _matched(content)):
        raise IntegrityError(
            f"{path} has {len(items)} of the {matched} items that its catalogue matched; save all its pages"
        )
    return [_named(item, place) for place, item in enumerate(items, 1)]


def _matched(page: Mapping[str, Any]) -> int:
    """The number of items that the server matched: `numberMatched`, or `context.matched` of older servers; 0 if
    unknown.
    """
    reported = page.get("numberMatched"), mapping(page.get("context")).get("matched")
    return max(count(number) or 0 for number in reported)


def _once(items: Iterable[Item]) -> list[Item]:
    """Each item once, by id."""
    found: dict[str, Item] = {}
    repeats = 0
    for item in items:
        repeats += item["id"] in found
        if repeats > 10 * _PAGE:
            raise UnavailableError("the STAC catalogue repeats its pages endlessly; try again later")
        found.setdefault(item["id"], item)
    return [found[key] for key in sorted(found)]


def _named(item: Any, place: int) -> Item:
    """The item, or a placeholder with the reason if it has no id or is far too large."""
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
    """A granule's name and record, or a placeholder for a record that is far too large."""
    name = str(record["umm"]["GranuleUR"])[:_MAX_ID_CHARACTERS]
    why = _excess(record)
    return name, {"umm": {"GranuleUR": name}, SET_ASIDE: why} if why else record


def _excess(value: Any) -> str:
    """Why an item or a record is too large; "" if it is not."""
    values, characters = size(value)
    if values > _MAX_ITEM_VALUES:
        return f"has {values:,} values, and {_MAX_ITEM_VALUES:,} are the most"
    if characters > _MAX_ITEM_CHARACTERS:
        return f"has {characters:,} characters, and {_MAX_ITEM_CHARACTERS:,} are the most"
    return ""


def _moments(start: dt.date, end: dt.date) -> tuple[str, str]:
    """Both complete days: the last second of a day has fractions, so scenes of the next midnight are removed later."""
    return f"{start}T00:00:00Z", f"{end + dt.timedelta(days=1)}T00:00:00Z"


def _may_be_in(item: Item, start: dt.date, end: dt.date) -> bool:
    """Whether an item is from these days, or its date cannot be read."""
    try:
        return start <= _day(item) <= end
    except MALFORMED:
        return True


def _footprint(item: Item) -> BaseGeometry | None:
    """The footprint of an item; None if it cannot be read, or has no finite extent."""
    try:
        footprint = shape(item["geometry"])
        # an empty shape has NaN for bounds
        return footprint if all(map(math.isfinite, footprint.bounds)) else None
    except (ShapelyError, *MALFORMED):
        return None


def _may_touch(footprint: BaseGeometry | None, area: Polygon) -> bool:
    """Whether a footprint touches an area, or cannot be compared with it."""
    try:
        return footprint is None or bool(footprint.intersects(area))
    except (ShapelyError, *MALFORMED):
        return True


def _day(item: Item) -> dt.date:
    properties = item["properties"]
    return dt.date.fromisoformat(str(properties.get("datetime") or properties["start_datetime"])[:10])
