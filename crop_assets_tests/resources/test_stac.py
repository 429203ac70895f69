import datetime as dt
import json
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from urllib3.util import Retry

from crop_assets.demo.scenes import Scene
from crop_assets.demo.server import PAGE, WorldServer, serve
from crop_assets.demo.world import World
from crop_assets_tests.resources.loopback import dripping
from resources import http
from resources import stac as stac_module
from resources.errors import IntegrityError, NotFoundError, SlowError, UnavailableError
from resources.json_values import parse, size, values_in
from resources.stac import SET_ASIDE, IpfsStac, SceneStac

SEASON = (dt.date(2022, 3, 1), dt.date(2022, 9, 30))
KANSAS = (-98.0, 37.0, -97.0, 38.0)
ANYWHERE = (-180.0, -90.0, 180.0, 90.0)


def scene(day: dt.datetime, tile: str = "14SMG", west: float = -97.5) -> Scene:
    ring = ((west, 37.2), (west + 0.5, 37.2), (west + 0.5, 37.8), (west, 37.8), (west, 37.2))
    name = f"HLS.S30.T{tile}.{day:%Y%jT%H%M%S}.v2.0"
    return Scene(name, tile, 32614, 399960.0, 4200000.0, day, 3, 97, ring, {})


SCENES = tuple(
    sorted(
        [
            *(scene(dt.datetime(2022, 3, 1, tzinfo=dt.UTC) + dt.timedelta(days=9 * n)) for n in range(23)),
            scene(dt.datetime(2022, 2, 28, 23, 59, 59, tzinfo=dt.UTC)),
            scene(dt.datetime(2022, 9, 30, 23, 59, 59, tzinfo=dt.UTC)),
            scene(dt.datetime(2022, 10, 1, tzinfo=dt.UTC)),
            scene(dt.datetime(2022, 6, 1, tzinfo=dt.UTC), "13SGB", -103.5),
        ],
        key=lambda scene: scene.scene_id,
    )
)
EXPECTED = [s.scene_id for s in SCENES if s.tile == "14SMG" and SEASON[0] <= s.sensed.date() <= SEASON[1]]


@pytest.fixture(scope="module")
def catalogues(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorldServer]:
    """The demo's catalogues over scenes that have no files: more than two pages of them."""
    folder = tmp_path_factory.mktemp("world")
    world = World(folder, 2022, folder / "cdl.tif", ("13SGB", "14SMG"), SCENES, "none")
    with serve(world) as running:
        yield running


def ids(items: list[dict[str, Any]]) -> list[str]:
    return [item["id"] for item in items]


def test_a_search_gives_all_pages_sorted(catalogues: WorldServer) -> None:
    found = SceneStac(url=catalogues.stac_url).search(KANSAS, *SEASON)
    assert ids(found) == EXPECTED
    assert len(found) == 24 > 2 * PAGE
    assert found[0]["properties"]["eo:cloud_cover"] == 3


def test_both_days_of_the_season_are_included(catalogues: WorldServer) -> None:
    stac = SceneStac(url=catalogues.stac_url)
    assert ids(stac.search(KANSAS, SEASON[1], SEASON[1])) == ["HLS.S30.T14SMG.2022273T235959.v2.0"]
    assert ids(stac.search(KANSAS, SEASON[0], SEASON[0])) == ["HLS.S30.T14SMG.2022060T000000.v2.0"]
    assert stac.search(KANSAS, dt.date(2021, 1, 1), dt.date(2021, 12, 31)) == []


def test_items_by_id_are_those_that_there_are(catalogues: WorldServer) -> None:
    wanted = [s.scene_id for s in SCENES[:12]]
    stac = IpfsStac(url=catalogues.ipfs_stac_url)
    asked = [*reversed(wanted), wanted[0], "HLS.S30.T14SMG.2022999T000000.v2.0"]
    assert ids(stac.items(asked)) == wanted
    assert stac.items([]) == []


def test_more_ids_than_fit_into_a_search_come_all_the_same(catalogues: WorldServer) -> None:
    missing = [f"HLS.S30.T14SMG.2021{day:03d}T000000.v2.0" for day in range(1, 120)]
    stac = SceneStac(url=catalogues.stac_url)
    assert ids(stac.items([*missing, *(s.scene_id for s in SCENES)])) == [s.scene_id for s in SCENES]


def test_a_collection_that_is_not_there_has_no_items(catalogues: WorldServer) -> None:
    assert SceneStac(url=catalogues.stac_url).search(KANSAS, *SEASON, ["HLSL30_2.0"]) == []


def test_the_document_of_an_item_is_read_from_the_catalogues_own_host(catalogues: WorldServer) -> None:
    stac = SceneStac(url=catalogues.stac_url)
    (item,) = stac.items([SCENES[0].scene_id])
    (link,) = [link["href"] for link in item["links"] if link["href"].endswith(".umm_json")]
    assert json.loads(stac.document(link))["umm"]["GranuleUR"] == SCENES[0].scene_id


@pytest.mark.parametrize(
    ("start", "drop", "said"),
    [
        (b"", b"", "is too slow"),
        (b"HTTP/1.1 20", b"0", "is too slow"),
        (b"HTTP/1.1 200 OK\r\nX-Long: ", b"x", "is too slow"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;x=", b"y", "is too slow"),
        (b"HTTP/1.1 503 Busy\r\nTransfer-Encoding: chunked\r\n\r\n1;x=", b"y", "answered 503"),
    ],
    ids=["silent", "status", "header", "chunk", "words"],
)
@pytest.mark.parametrize("what", ["search", "granules", "document"])
def test_a_catalogue_whose_answer_drips_is_given_up_after_its_attempts(
    what: str, start: bytes, drop: bytes, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "WORDS_SECONDS", 0.3)
    retries = Retry(1, status_forcelist=[503], raise_on_status=False, allowed_methods=None)
    monkeypatch.setattr(http, "retry_rule", lambda attempts: retries)
    with dripping(start, drop) as (address, asked):
        stac = SceneStac(url=address, granule_search=f"{address}/granules", attempts=2, timeout_seconds=0.3)
        ask = {
            "search": lambda: stac.search(KANSAS, *SEASON),
            "granules": lambda: stac.granules("HLSS30", "14SMG", *SEASON),
            "document": lambda: stac.document(f"{address}/a.umm_json"),
        }
        with pytest.raises(UnavailableError, match=said) as error:
            ask[what]()
        # pystac-client's errors are put into the search's own words
        assert isinstance(error.value, SlowError if what != "search" and "slow" in said else UnavailableError)
        assert len(asked) <= 2


@dataclass
class Faulty:
    """A STAC API whose search answers by a script; its last answer is repeated for ever."""

    address: str
    script: list[tuple[int, dict[str, str], Any]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def says(self, *answers: tuple[int, dict[str, str], Any]) -> SceneStac:
        self.script = list(answers)
        return SceneStac(url=f"{self.address}/stac", attempts=2, timeout_seconds=5)

    def page(self, *names: str, next_page: bool = False) -> tuple[int, dict[str, str], Any]:
        links = [{"rel": "next", "href": f"{self.address}/stac/search?page=2", "method": "GET"}]
        features = [{"type": "Feature", "id": name} for name in names]
        return 200, {}, {"type": "FeatureCollection", "features": features, "links": links * next_page}


@pytest.fixture
def faulty() -> Iterator[Faulty]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.split("?")[0] in ("/stac", "/stac/"):
                self._send(200, {}, landing)
                return
            server.asked.append(self.path)
            self._send(*(server.script.pop(0) if len(server.script) > 1 else server.script[0]))

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def _send(self, status: int, headers: dict[str, str], body: Any) -> None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server = Faulty(f"http://127.0.0.1:{listener.server_port}")
    root = f"{server.address}/stac"
    landing = {
        "type": "Catalog",
        "stac_version": "1.0.0",
        "id": "LPCLOUD",
        "description": "x",
        "conformsTo": [
            "https://api.stacspec.org/v1.0.0/core",
            "https://api.stacspec.org/v1.0.0/item-search",
        ],
        "links": [
            {"rel": "self", "href": root},
            {"rel": "root", "href": root},
            {"rel": "search", "href": f"{root}/search", "method": "POST", "type": "application/geo+json"},
        ],
    }
    threading.Thread(target=listener.serve_forever, args=(0.05,), daemon=True).start()
    yield server
    listener.shutdown()
    listener.server_close()


def test_an_item_that_is_on_several_pages_comes_once(faulty: Faulty) -> None:
    stac = faulty.says(
        faulty.page("b", "a", "b", next_page=True), faulty.page("a", "c", next_page=True), faulty.page("b")
    )
    assert ids(stac.search(ANYWHERE, *SEASON)) == ["a", "b", "c"]
    assert len(faulty.asked) == 3


def test_a_server_that_repeats_its_pages_is_left_in_the_end(faulty: Faulty) -> None:
    stac = faulty.says(faulty.page(*(f"item-{n}" for n in range(100)), next_page=True))
    with pytest.raises(UnavailableError, match="repeats its pages endlessly"):
        stac.search(ANYWHERE, *SEASON)
    assert len(faulty.asked) < 20


def test_an_empty_page_is_the_last(faulty: Faulty) -> None:
    stac = faulty.says(faulty.page("a", next_page=True), faulty.page(next_page=True))
    assert ids(stac.search(ANYWHERE, *SEASON)) == ["a"]


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_search_goes_on_after_a_passing_failure(faulty: Faulty, status: int) -> None:
    busy = (status, {"Retry-After": "0"}, {"description": "Oops! Something has gone wrong"})
    stac = faulty.says(busy, faulty.page("a", next_page=True), busy, faulty.page("b"))
    assert ids(stac.search(ANYWHERE, *SEASON)) == ["a", "b"]
    assert len(faulty.asked) == 4


def test_the_server_decides_when_it_is_asked_again(faulty: Faulty) -> None:
    stac = faulty.says((429, {"Retry-After": "1"}, {}), faulty.page("a"))
    started = dt.datetime.now(tz=dt.UTC)
    assert ids(stac.search(ANYWHERE, *SEASON)) == ["a"]
    assert (dt.datetime.now(tz=dt.UTC) - started).total_seconds() >= 1


def test_a_lasting_failure_names_the_address_and_gives_no_partial_answer(faulty: Faulty) -> None:
    stac = faulty.says(faulty.page("a", next_page=True), (500, {}, {}))
    with pytest.raises(UnavailableError) as error:
        stac.search(ANYWHERE, *SEASON)
    assert f"the STAC catalogue {faulty.address}/stac did not answer after 2 tries" in str(error.value)
    assert "answered 500" in str(error.value)
    assert len(faulty.asked) == 3


def test_a_catalogue_that_is_not_there_is_unavailable() -> None:
    stac = SceneStac(url="http://127.0.0.1:1/stac", attempts=1)
    with pytest.raises(UnavailableError, match=r"http://127\.0\.0\.1:1/stac did not answer"):
        stac.search(ANYWHERE, *SEASON)


@pytest.mark.parametrize(
    "body",
    [b"<html>down for maintenance</html>", b"", b"[]", b"{}", b'{"features": null}', b'{"features": {}}'],
)
def test_an_answer_that_is_no_item_collection_is_refused(faulty: Faulty, body: bytes) -> None:
    stac = faulty.says((200, {"Content-Type": "application/geo+json"}, body))
    with pytest.raises(IntegrityError, match=f"{faulty.address}/stac did not answer like a STAC catalogue"):
        stac.search(ANYWHERE, *SEASON)


@pytest.mark.parametrize("body", [b"<html>sign in</html>", b"{}", b'{"type": "Catalog"}'])
def test_an_address_of_something_else_is_refused(faulty: Faulty, body: bytes) -> None:
    faulty.says((200, {}, body))
    with pytest.raises(
        IntegrityError, match=f"{faulty.address}/elsewhere did not answer .*check the address"
    ):
        SceneStac(url=f"{faulty.address}/elsewhere", attempts=1).search(ANYWHERE, *SEASON)


def test_documents_are_bounded(faulty: Faulty) -> None:
    url = f"{faulty.address}/concepts/G1.umm_json"
    stac = faulty.says((200, {}, b" " * (256 << 10)), (200, {}, b" " * ((256 << 10) + 1)))
    assert len(stac.document(url)) == 256 << 10
    with pytest.raises(IntegrityError, match=f"{url} answered more than 262,144 bytes"):
        stac.document(url)


def test_what_there_really_is_has_a_tenth_of_what_is_read_at_most(real: Path) -> None:
    paths = list((real / "stac").iterdir())
    assert {path.suffix for path in paths} >= {".json"}
    for path in paths:
        data = path.read_bytes()
        assert len(data) < (256 << 10) / 4
        if path.suffix == ".json":
            values, characters = size(json.loads(data))
            assert values <= 1 + values_in(data) < 10_000 / 10
            assert characters < len(data)


def test_a_document_that_is_not_there_is_not_asked_for_again(faulty: Faulty) -> None:
    url = f"{faulty.address}/concepts/G1.umm_json"
    stac = faulty.says((404, {}, b""))
    with pytest.raises(NotFoundError, match=f"{url} answered 404"):
        stac.document(url)
    assert len(faulty.asked) == 1


def test_a_document_is_asked_for_again_after_a_failure(faulty: Faulty) -> None:
    stac = faulty.says((503, {"Retry-After": "0"}, b""), (200, {}, b"{}"))
    assert stac.document(f"{faulty.address}/concepts/G1.umm_json") == b"{}"
    faulty.says((500, {}, b""))
    with pytest.raises(UnavailableError, match="answered 500"):
        stac.document(f"{faulty.address}/concepts/G1.umm_json")


@pytest.mark.parametrize(
    "url",
    ["http://localhost/a.umm_json", "https://evil.example/a.umm_json", "https://127.0.0.1.evil.example/a"],
)
def test_documents_of_other_hosts_are_refused(faulty: Faulty, url: str) -> None:
    stac = SceneStac(url=f"{faulty.address}/stac", metadata_hosts=["cmr.earthdata.nasa.gov"])
    with pytest.raises(
        IntegrityError, match=r"configured hosts \(127\.0\.0\.1:\d+, cmr\.earthdata\.nasa\.gov\)"
    ):
        stac.document(url)


def test_documents_of_a_configured_host_may_be_read(faulty: Faulty) -> None:
    faulty.says((200, {}, b"{}"))
    stac = SceneStac(url="items.json", metadata_hosts=["127.0.0.1"], attempts=1)
    assert stac.document(f"{faulty.address}/concepts/G1.umm_json") == b"{}"


def item(name: str, day: str, west: float, **properties: Any) -> dict[str, Any]:
    ring = [[west, 37], [west + 1, 37], [west + 1, 38], [west, 38], [west, 37]]
    return {
        "type": "Feature",
        "id": name,
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"datetime": f"{day}T17:22:21.493000Z", **properties},
    }


WriteCollection = Callable[[Any], Path]


@pytest.fixture
def write_collection(tmp_path: Path) -> WriteCollection:
    def write(content: Any) -> Path:
        path = tmp_path / "items.json"
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return path

    return write


def test_a_file_is_searched_by_place_and_day(write_collection: WriteCollection) -> None:
    items = [
        item("late", "2022-10-01", -98),
        item("last", "2022-09-30", -98),
        item("first", "2022-03-01", -97.5),
        item("early", "2022-02-28", -98),
        item("elsewhere", "2022-06-01", -96),
        item("beside", "2022-06-01", -99),
        item("interval", "x", -98, datetime=None, start_datetime="2022-06-01T00:00:00Z"),
        item("first", "2022-03-01", -97.5),
    ]
    path = write_collection({"type": "FeatureCollection", "features": items})
    stac = SceneStac(url=str(path))
    # what only touches the area counts, as it does for a STAC API
    assert ids(stac.search((-98, 37, -97, 38), *SEASON)) == ["beside", "first", "interval", "last"]
    assert ids(stac.items(["late", "first", "none", "late"])) == ["first", "late"]


def test_a_file_of_many_repeats_gives_each_once(write_collection: WriteCollection) -> None:
    path = write_collection({"features": [item(name, "2022-06-01", -98) for name in "ab"] * 400})
    assert ids(SceneStac(url=str(path)).search(KANSAS, *SEASON)) == ["a", "b"]
    elsewhere = [item("c", "2022-06-01", -60)] * 1200
    path = write_collection({"features": [*elsewhere, item("a", "2022-06-01", -98)]})
    assert ids(SceneStac(url=str(path)).search(KANSAS, *SEASON)) == ["a"]


def test_a_file_is_parsed_once_for_all_tiles(
    write_collection: WriteCollection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 490 tiles parsing it for each took minutes."""
    places = [-124 + 0.1 * n for n in range(490)]
    items = [
        item(f"{n}-{day}", f"2022-0{day}-01", west) for n, west in enumerate(places) for day in (2, 5, 7)
    ]
    path = write_collection({"features": items})
    parsed: list[int] = []

    def counting(data: bytes, max_values: int) -> Any:
        parsed.append(len(data))
        return parse(data, max_values)

    monkeypatch.setattr(stac_module, "parse", counting)
    stac = SceneStac(url=str(path))

    def ask(tile: int) -> tuple[list[str], list[str]]:
        west = places[tile] + 0.01
        found = ids(stac.search((west, 37.4, west + 0.02, 37.6), *SEASON))
        return found, ids(stac.items([f"{tile}-5", f"{tile}-2", "none"]))

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(490)))
    assert parsed == [path.stat().st_size]
    for tile, (found, named) in enumerate(answers):
        # items are 1 degree wide, so that those of nine tiles before reach here too
        near = [
            n for n in range(490) if places[n] <= places[tile] + 0.03 and places[n] + 1 >= places[tile] + 0.01
        ]
        assert len(near) == min(tile, 9) + 1
        assert found == sorted(f"{n}-{day}" for n in near for day in (5, 7))
        assert named == [f"{tile}-2", f"{tile}-5"]


def test_a_file_may_change_between_searches(write_collection: WriteCollection) -> None:
    path = write_collection({"features": []})
    stac = SceneStac(url=str(path))
    assert stac.search(KANSAS, *SEASON) == []
    write_collection({"features": [item("a", "2022-06-01", -98)]})
    assert ids(stac.search(KANSAS, *SEASON)) == ["a"]


def test_a_real_item_is_found_in_a_file(real: Path, write_collection: WriteCollection) -> None:
    document = json.loads((real / "stac" / "HLS.S30.T14SMF.2021062T172221.v2.0.stac.json").read_text())
    path = write_collection({"type": "FeatureCollection", "features": [document]})
    west, south, east, north = document["bbox"]
    stac = SceneStac(url=str(path))
    day = dt.date(2021, 3, 3)
    assert stac.search((west, south, east, north), day, day) == [document]
    assert stac.search((east + 1, south, east + 2, north), day, day) == []
    assert stac.items([document["id"]]) == [document]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"<html></html>",
        b"[]",
        b"null",
        b"{}",
        {"features": None},
        {"features": {"a": 1}},
    ],
)
def test_a_malformed_file_is_named(write_collection: WriteCollection, content: Any) -> None:
    path = write_collection(content)
    with pytest.raises(IntegrityError, match=f"{path} is not a STAC ItemCollection"):
        SceneStac(url=str(path)).search(KANSAS, *SEASON)


def test_what_is_no_item_in_a_file_is_named_by_its_place_and_the_others_are_found(
    write_collection: WriteCollection,
) -> None:
    good = [item(name, "2022-06-01", -98) for name in ("x", "y", "z")]
    no_items = ["a", None, 5, {"type": "Feature"}, good[0] | {"id": 3}]
    unknown = [
        {"id": "no properties"},
        item("no day", "some day", -98),
        item("no shape", "2022-06-01", -98) | {"geometry": {"type": "Blob"}},
        item("nothing", "2022-06-01", -98) | {"geometry": None},
        item("empty", "2022-06-01", -98) | {"geometry": {"type": "Polygon", "coordinates": []}},
        item("null", "2022-06-01", -98) | {"properties": None},
    ]
    elsewhere = [
        item("late", "2022-10-01", -98) | {"geometry": None},
        item("far", "some day", -60),
    ]
    path = write_collection({"features": [good[0], *no_items, *unknown, good[1], *elsewhere, good[2]]})
    found = SceneStac(url=str(path)).search(KANSAS, *SEASON)
    places = [f"item {place} of the answer" for place in range(2, 7)]
    assert sorted(ids(found)) == sorted([*places, *(one["id"] for one in unknown), "x", "y", "z"])
    assert {one["id"]: one[SET_ASIDE] for one in found if SET_ASIDE in one} == dict(
        zip(
            places,
            (
                "is not an item but 'a'",
                "is not an item but None",
                "is not an item but 5",
                "has no id",
                "has 3 for an id",
            ),
            strict=True,
        )
    )


@pytest.mark.parametrize("told", [{"numberMatched": 3}, {"context": {"matched": 90}}])
def test_a_file_that_is_one_page_of_several_is_refused(
    write_collection: WriteCollection, told: dict[str, Any]
) -> None:
    two = [item(name, "2022-06-01", -98) for name in "ab"]
    path = write_collection({"features": two} | told)
    with pytest.raises(IntegrityError, match=f"{path} has 2 of the (3|90) items that its catalogue matched"):
        SceneStac(url=str(path)).search(KANSAS, *SEASON)


PARTIAL: list[dict[str, Any]] = [
    {"numberMatched": 4},
    {"numberMatched": "4"},
    {"numberMatched": 4.0},
    {"context": {"matched": 4}},
    {"context": {"matched": 4}, "numberMatched": 2},
    {"context": {"matched": 2}, "numberMatched": 1000},
]


@pytest.mark.parametrize("told", PARTIAL, ids=str)
@pytest.mark.parametrize("on", [0, 1, 2])
def test_fewer_items_than_were_matched_are_no_answer(faulty: Faulty, told: dict[str, Any], on: int) -> None:
    """Told on any page, of which the last has no link to another, or no item."""
    pages = [faulty.page("a", "b", next_page=True), faulty.page("b", "c", next_page=on == 2), faulty.page()]
    pages[on][2].update(told)
    stac = faulty.says(*pages)
    with pytest.raises(
        UnavailableError, match=r"matched (4|1000) items and returned 3; materialize this tile again"
    ):
        stac.search(ANYWHERE, *SEASON)


@pytest.mark.parametrize("told", [{"numberMatched": 9}, {"context": {"matched": 9}}])
def test_an_empty_page_of_something_is_no_answer(faulty: Faulty, told: dict[str, Any]) -> None:
    status, headers, body = faulty.page()
    with pytest.raises(UnavailableError, match="matched 9 items and returned 0"):
        faulty.says((status, headers, body | told)).search(ANYWHERE, *SEASON)


@pytest.mark.parametrize(
    "told",
    [{"numberMatched": n} for n in (0, 1, 3, -1, None, "some", True, 1e400, float("nan"), [])]
    + [{"context": odd} for odd in (None, 5, [], {}, {"matched": None}, {"matched": 2})]
    + [{"links": odd} for odd in (None, 5, [None], [{"rel": "prev"}], {})],
    ids=str,
)
def test_a_number_that_says_nothing_loses_no_item(faulty: Faulty, told: dict[str, Any]) -> None:
    status, headers, body = faulty.page("a", "b", "c")
    assert ids(faulty.says((status, headers, body | told)).search(ANYWHERE, *SEASON)) == ["a", "b", "c"]


def test_items_without_an_id_count_each(faulty: Faulty) -> None:
    (status, headers, first), (_, _, second) = faulty.page("a", next_page=True), faulty.page("b")
    first["features"] += [None, None, {}]
    second["features"] += [None, {"id": 5}, {"id": 5}]
    stac = faulty.says((status, headers, first | {"numberMatched": 8}), (status, headers, second))
    found = stac.search(ANYWHERE, *SEASON)
    assert ids(found) == ["a", "b", *(f"item {place} of the answer" for place in (2, 3, 4, 6, 7, 8))]
    stac = faulty.says((status, headers, first | {"numberMatched": 9}), (status, headers, second))
    with pytest.raises(UnavailableError, match="matched 9 items and returned 8"):
        stac.search(ANYWHERE, *SEASON)


LARGE: dict[str, tuple[dict[str, Any], str]] = {
    "values": ({"x": [{"": 0}] * 6000}, "has 12,00[0-9] values, and 10,000 are the most"),
    "geometry": ({"geometry": {"coordinates": [[[0, 0]] * 9000]}}, "has 27,00[0-9] values"),
    "keys": ({"properties": {"k" * 200_000: 1, "l" * 200_000: 1}}, "has 400,0[0-9]+ characters, and 262,144"),
    "text": ({"assets": {"B02": {"href": "x" * 300_000}}}, "has 300,0[0-9]+ characters"),
}


@pytest.mark.parametrize("what", LARGE)
def test_an_item_that_is_far_larger_than_any_is_set_aside_by_name(faulty: Faulty, what: str) -> None:
    extra, why = LARGE[what]
    status, headers, body = faulty.page("a", "b", "c")
    body["features"][1] |= extra
    stac = faulty.says((status, headers, body))
    for found in (stac.search(ANYWHERE, *SEASON), stac.items(["a", "b", "c"])):
        assert ids(found) == ["a", "b", "c"]
        assert re.match(why, found[1][SET_ASIDE])
        assert found[1].keys() == {"id", SET_ASIDE}
        assert SET_ASIDE not in found[0]


def test_an_id_that_is_far_longer_than_any_is_none(faulty: Faulty) -> None:
    found = faulty.says(faulty.page("a", "b" * 201)).search(ANYWHERE, *SEASON)
    assert found[1] == {"id": "item 2 of the answer", SET_ASIDE: "has an id of 201 characters"}


@pytest.mark.parametrize("what", ["values", "text"])
def test_a_granule_record_that_is_far_larger_than_any_is_set_aside_by_name(faulty: Faulty, what: str) -> None:
    extra, why = LARGE[what]
    records = [{"umm": {"GranuleUR": name}} for name in "ab"]
    records[0]["umm"] |= extra
    faulty.says((200, {}, {"hits": 2, "items": records}))
    stac = SceneStac(url=f"{faulty.address}/stac", granule_search=f"{faulty.address}/search", attempts=1)
    large, small = stac.granules("HLSS30", "14SMG", *SEASON) or []
    assert large["umm"] == {"GranuleUR": "a"}
    assert re.match(why, large[SET_ASIDE])
    assert small == records[1]


def test_items_of_one_id_in_two_collections_count_as_two(faulty: Faulty) -> None:
    status, headers, body = faulty.page()
    body["features"] = [{"id": "a", "collection": name} for name in ("HLSS30_2.0", "HLSS30_2.0_IPFS")]
    body["numberMatched"] = 2
    assert ids(faulty.says((status, headers, body)).search(ANYWHERE, *SEASON)) == ["a"]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for url in (str(tmp_path / "none.json"), str(tmp_path)):
        with pytest.raises(NotFoundError, match=f"ItemCollection {url} does not exist"):
            IpfsStac(url=url).items(["a"])
