"""A stand-in for CMR-STAC and CMR's granule search on loopback, with their habits and their bad days.

It does what these services were seen to do.
"""

import datetime as dt
import json
import random
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

BANDS = ("B02", "B03", "B04", "B8A", "B11", "B12", "Fmask")
SEARCH = "/search/granules.umm_json"
SEASON = (dt.date(2022, 3, 1), dt.date(2022, 9, 30))
_FIRST = dt.date(2022, 2, 20)


def scene_ids(tile: str, count: int) -> list[str]:
    """Ids of a tile's scenes, two days apart; some lie before and behind the season."""
    days = [(_FIRST + dt.timedelta(days=2 * number)).timetuple().tm_yday for number in range(count)]
    return [f"HLS.S30.T{tile}.2022{day:03d}T172020.v2.0" for day in days]


def day_of(scene_id: str) -> dt.date:
    return dt.datetime.strptime(scene_id.split(".")[3][:7], "%Y%j").date()


@dataclass(eq=False)
class Cmr:
    """The archive: every tile with its place (west, south, in degrees; one degree wide) and number of scenes."""

    tiles: dict[str, tuple[float, float]]
    scenes: int
    address: str = ""
    page: int = 100
    granules: int = 2000
    """Granules that the search gives at once, at most."""
    failing: float = 0.0
    """Share of the requests that are answered by 503."""
    busy: int = 0
    """Requests that are answered by 429 first."""
    pause: int = 0
    """Seconds that these answers, and those by 503, ask for."""
    repeats: bool = False
    """Whether each page begins with the last item of the one before."""
    without_search: bool = False
    forgets: set[str] = field(default_factory=set)
    """Scenes that the STAC catalogue lacks."""
    spoilt: dict[str, Any] = field(default_factory=dict)
    """What the STAC catalogue gives in the place of a scene's item."""
    one_page: bool = False
    """Whether the STAC catalogue links to no second page."""
    hits: Any = None
    """The number of granules that the search tells instead of the true one."""
    asked: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)
    luck: random.Random = field(default_factory=lambda: random.Random(0))

    @property
    def stac(self) -> str:
        return f"{self.address}/stac/LPCLOUD"

    @property
    def search(self) -> str:
        return f"{self.address}{SEARCH}"

    def bbox(self, tile: str) -> tuple[float, float, float, float]:
        west, south = self.tiles[tile]
        return west, south, west + 1, south + 1

    def in_season(self, tile: str) -> list[str]:
        return [name for name in scene_ids(tile, self.scenes) if SEASON[0] <= day_of(name) <= SEASON[1]]

    @cache  # noqa: B019 - one archive a test
    def item(self, scene_id: str) -> dict[str, Any]:
        west, south, east, north = self.bbox(scene_id.split(".")[2][1:])
        ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
        base = "https://data.lpdaac.earthdatacloud.nasa.gov/lp-prod-protected/HLSS30.020"
        document = f"{self.address}/search/concepts/{scene_id}.umm_json"
        return {
            "type": "Feature",
            "stac_version": "1.0.0",
            "id": scene_id,
            "collection": "HLSS30_2.0",
            "bbox": [west, south, east, north],
            "geometry": {"type": "Polygon", "coordinates": [ring]},
            "properties": {
                "datetime": f"{day_of(scene_id)}T17:31:44.493Z",
                "eo:cloud_cover": hash_of(scene_id),
            },
            "links": [{"rel": "via", "href": document}],
            "assets": {band: {"href": f"{base}/{scene_id}/{scene_id}.{band}.tif"} for band in BANDS},
        }

    def record(self, scene_id: str) -> dict[str, Any]:
        attributes = {"SPATIAL_COVERAGE": "95", "CLOUD_COVERAGE": str(hash_of(scene_id))}
        listed = [{"Name": name, "Values": [value]} for name, value in attributes.items()]
        return {"meta": {}, "umm": {"GranuleUR": scene_id, "AdditionalAttributes": listed, "RelatedUrls": []}}

    def items(self, query: dict[str, Any]) -> dict[str, Any]:
        if "intersects" in query:
            raise ValueError("Oops! Something has gone wrong. We have been alerted")
        if "ids" in query:
            found = list(query["ids"])
        else:
            # neighbours come along, and a cloud filter is one that was not understood
            west, south, east, north = map(float, query["bbox"])
            start, end = (dt.date.fromisoformat(day[:10]) for day in query["datetime"].split("/"))
            near = [
                tile
                for tile, (x, y) in self.tiles.items()
                if x <= east and x + 1 >= west and y <= north and y + 1 >= south
            ]
            names = [name for tile in near for name in scene_ids(tile, self.scenes)]
            found = [name for name in names if start <= day_of(name) <= end]
        found = [name for name in found if name not in self.forgets]
        at = int(query.get("token", 0))
        size = min(self.page, int(query.get("limit", self.page)))
        page = found[max(0, at - 1) if self.repeats else at : at + size]
        links = []
        if at + size < len(found) and not self.one_page:
            body = query | {"token": at + size}
            links = [{"rel": "next", "href": f"{self.stac}/search", "method": "POST", "body": body}]
        items = [self.spoilt[name] if name in self.spoilt else self.item(name) for name in page]
        answer = {"type": "FeatureCollection", "features": items, "links": links}
        return answer | {"numberMatched": len(found), "numberReturned": len(page)}

    def landing(self) -> dict[str, Any]:
        search = {
            "rel": "search",
            "href": f"{self.stac}/search",
            "method": "POST",
            "type": "application/geo+json",
        }
        root = [{"rel": rel, "href": self.stac} for rel in ("self", "root")]
        conforms = [f"https://api.stacspec.org/v1.0.0/{name}" for name in ("core", "item-search")]
        return {
            "type": "Catalog",
            "stac_version": "1.0.0",
            "id": "LPCLOUD",
            "description": "-",
            "conformsTo": conforms,
            "links": [*root, search],
        }

    def fault(self, path: str) -> int:
        with self.lock:
            self.asked[path] += 1
            if self.busy:
                self.busy -= 1
                return 429
            if path == SEARCH and self.without_search:
                return 404
            return 503 if self.luck.random() < self.failing else 0


def hash_of(scene_id: str) -> int:
    """A cloud cover from 0 to 99, the same on any machine."""
    return sum(scene_id.encode()) % 100


@contextmanager
def serving(cmr: Cmr) -> Iterator[Cmr]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self, status: int, body: Any, **headers: str) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            if status := cmr.fault(parts.path):
                self._answer(status, {"description": "Oops!"}, Retry_After=str(cmr.pause))
            elif parts.path == SEARCH:
                query = parse_qs(parts.query)
                tile = query["attribute[]"][0].removeprefix("string,MGRS_TILE_ID,")
                names = cmr.in_season(tile) if tile in cmr.tiles else []
                at = int(self.headers.get("CMR-Search-After", 0))
                page = names[at : at + min(int(query["page_size"][0]), cmr.granules)]
                more = {"CMR_Search_After": str(at + len(page))} if page else {}
                hits = len(names) if cmr.hits is None else cmr.hits
                self._answer(200, {"hits": hits, "items": [cmr.record(name) for name in page]}, **more)
            elif parts.path.startswith("/search/concepts/"):
                name = parts.path.rsplit("/", 1)[1].removesuffix(".umm_json")
                self._answer(200, cmr.record(name)["umm"])
            else:
                self._answer(200, cmr.landing())

        def do_POST(self) -> None:
            query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if status := cmr.fault(urlsplit(self.path).path):
                self._answer(status, {"description": "Oops!"}, Retry_After=str(cmr.pause))
                return
            try:
                self._answer(200, cmr.items(query))
            except ValueError as error:
                self._answer(500, {"description": str(error)})

        def log_message(self, *arguments: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

    with Server(("127.0.0.1", 0), Handler) as listener:
        cmr.address = f"http://127.0.0.1:{listener.server_port}"
        threading.Thread(target=listener.serve_forever, args=(0.05,), daemon=True).start()
        yield cmr
        listener.shutdown()
