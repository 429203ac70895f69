"""STAC catalogues: a STAC API, or an ItemCollection in a local file.

Belongs here: searching items completely and politely, and reading the documents that items link to.
Does not: what the items mean (`crop_assets.scenes`, `crop_assets.bands`).
"""

import datetime as dt
import json
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import dagster as dg
import requests
from pydantic import Field, PrivateAttr
from pystac.errors import STACTypeError
from pystac_client import Client
from pystac_client.errors import ClientTypeError
from pystac_client.exceptions import APIError
from pystac_client.stac_api_io import StacApiIO
from shapely.errors import ShapelyError
from shapely.geometry import box, shape

from resources.errors import IntegrityError, NotFoundError, UnavailableError
from resources.http import get_bytes, new_session, require_host, retry_rule

Item = dict[str, Any]

_PAGE = 100
_IDS_PER_SEARCH = 50
_MAX_DOCUMENT_BYTES = 4 << 20
_MAX_COLLECTION_BYTES = 1 << 30
_MALFORMED = (AttributeError, KeyError, TypeError, ValueError)
"""What a look into JSON of another shape raises."""


class _StacCatalogue(dg.ConfigurableResource):  # type: ignore[type-arg]
    collection: str = Field(default="HLSS30_2.0", description="The collection that holds the scenes.")
    refresh: bool = Field(
        default=False,
        description="Ask again, even where an earlier answer is stored and nothing else changed.",
    )
    timeout_seconds: float = Field(default=60, description="Most seconds to wait for an answer to begin.")
    attempts: int = Field(default=6, description="Tries of a request that fails with 408, 429 or 5xx.")
    _local: threading.local = PrivateAttr(default_factory=threading.local)

    @property
    def address(self) -> str:
        """The catalogue's URL or path; each catalogue declares a `url` field with its own default."""
        return str(getattr(self, "url"))  # noqa: B009

    @property
    def is_file(self) -> bool:
        return urlsplit(self.address).scheme not in ("http", "https")

    def search(self, bbox: tuple[float, float, float, float], start: dt.date, end: dt.date) -> list[Item]:
        """All items that touch `bbox` (west, south, east, north, degrees) from `start` to `end`, both included.

        Each item comes once, sorted by id, however often the server repeats it. The search is by bbox
        because CMR-STAC answers 500 to polygons that are not axis-aligned. Raises UnavailableError
        where the catalogue keeps failing, IntegrityError where it is none: a partial answer is never
        returned.
        """
        if self.is_file:
            area = box(*bbox)
            return self._in_file(
                lambda item: start <= _day(item) <= end and bool(shape(item["geometry"]).intersects(area))
            )
        return self._ask(bbox=bbox, datetime=f"{start}T00:00:00Z/{end}T23:59:59Z")

    def items(self, ids: Sequence[str]) -> list[Item]:
        """The items of these ids that the catalogue has, each once, sorted by id. Raises as `search`."""
        wanted = sorted(set(ids))
        if self.is_file:
            return self._in_file(lambda item: item["id"] in wanted)
        found: list[Item] = []
        for at in range(0, len(wanted), _IDS_PER_SEARCH):
            found += self._ask(ids=wanted[at : at + _IDS_PER_SEARCH])
        return [item for item in found if item["id"] in wanted]

    def _ask(self, **query: Any) -> list[Item]:
        try:
            search = self._client().search(collections=[self.collection], limit=_PAGE, **query)
            return _once(search.items_as_dicts())
        except (APIError, requests.RequestException) as error:
            raise UnavailableError(
                f"the STAC catalogue {self.address} did not answer after {self.attempts} tries: {error}; "
                "materialize this tile again later"
            ) from error
        except (ClientTypeError, STACTypeError, *_MALFORMED) as error:
            raise IntegrityError(
                f"{self.address} did not answer as a STAC catalogue does: {error!r}; check the address"
            ) from error

    def _client(self) -> Client:
        # one session a thread: requests' sessions are not safe to share
        if not hasattr(self._local, "client"):
            io = StacApiIO(max_retries=retry_rule(self.attempts), timeout=self.timeout_seconds)
            self._local.client = Client.open(self.address, stac_io=io)
        client: Client = self._local.client
        return client

    def _in_file(self, wanted: Callable[[Item], bool]) -> list[Item]:
        path = Path(self.address)
        if not path.is_file():
            raise NotFoundError(
                f"the STAC ItemCollection {path} is not there; give a file or an http(s) address"
            )
        if path.stat().st_size > _MAX_COLLECTION_BYTES:
            raise IntegrityError(f"{path} is larger than {_MAX_COLLECTION_BYTES:,} bytes; split it by tile")
        try:
            return _once(item for item in json.loads(path.read_bytes())["features"] if wanted(item))
        except (ShapelyError, *_MALFORMED) as error:
            raise IntegrityError(f"{path} is not a STAC ItemCollection: {error!r}") from error


class SceneStac(_StacCatalogue):
    """The catalogue of the scenes themselves, with their cloud cover and links: CMR-STAC by default."""

    url: str = Field(
        default="https://cmr.earthdata.nasa.gov/stac/LPCLOUD",
        description="Address of a STAC API, or path of an ItemCollection file.",
    )
    metadata_hosts: list[str] = Field(
        default=["cmr.earthdata.nasa.gov"],
        description="Hosts besides the catalogue's own whose metadata documents may be read.",
    )

    def document(self, url: str) -> bytes:
        """A granule's metadata document, at most 4 MiB.

        Raises IntegrityError for a host that is not configured, NotFoundError, UnavailableError.
        """
        own = urlsplit(self.address).hostname
        require_host(url, {*self.metadata_hosts, *([own] if own else [])})
        if not hasattr(self._local, "session"):
            self._local.session = new_session(self.attempts)
        return get_bytes(self._local.session, url, self.timeout_seconds, _MAX_DOCUMENT_BYTES)


class IpfsStac(_StacCatalogue):
    """The catalogue that tells the CID of each band file: the EASIER STAC by default."""

    url: str = Field(
        default="https://stac.easierdata.info",
        description="Address of a STAC API, path of an ItemCollection file, or empty for none.",
    )


def _once(items: Iterable[Item]) -> list[Item]:
    found: dict[str, Item] = {}
    repeats = 0
    for item in items:
        repeats += item["id"] in found
        if repeats > 10 * _PAGE:
            raise UnavailableError("the STAC catalogue repeats its pages without end; try again later")
        found.setdefault(item["id"], item)
    return [found[key] for key in sorted(found)]


def _day(item: Item) -> dt.date:
    properties = item["properties"]
    return dt.date.fromisoformat(str(properties.get("datetime") or properties["start_datetime"])[:10])
