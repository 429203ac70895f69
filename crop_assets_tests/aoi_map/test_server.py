import dataclasses
import http.client
import io
import json
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import uvicorn
from PIL import Image

from crop_assets.aoi_map.area import Area, Count
from crop_assets.aoi_map.server import DEFAULT_PORT, AoiFile, AoiPage, check_base_map
from crop_assets.errors import InputError
from crop_assets.labels.aoi import filter_aoi, read_aoi
from crop_assets.local_server import listen
from crop_assets_tests.aoi_map.conftest import LAYOUT, collection, landscape, rectangle
from resources.store import DatasetStore

NEW = {"If-None-Match": "*"}
INSIDE = json.dumps(collection(rectangle(-99.5, 37.5, -99, 38)))
OTHER = json.dumps(collection(rectangle(-99.2, 37.6, -99, 37.9)))


@pytest.fixture
def told() -> list[Count]:
    return []


class Client:
    """Sends a request like the page, with its origin and content type unless `headers` override them."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._usual = {"Origin": f"http://127.0.0.1:{port}", "Content-Type": "application/geo+json"}

    def ask(self, method: str, path: str, data: Any = None, headers: Any = None) -> requests.Response:
        sent = self._usual | (headers or {})
        return requests.request(
            method, f"http://127.0.0.1:{self.port}{path}", data=data, headers=sent, timeout=20
        )

    def get(self, path: str, headers: Any = None) -> requests.Response:
        return self.ask("GET", path, None, headers)

    def count(self, data: Any, headers: Any = None) -> requests.Response:
        return self.ask("POST", "/count", data, headers)

    def save(self, data: Any, headers: Any = None) -> requests.Response:
        return self.ask("PUT", "/aoi", data, headers)


@pytest.fixture
def client(area: Area, store: DatasetStore, told: list[Count]) -> Iterator[Client]:
    base_map = "https://{s}.tiles.example.org/{z}/{x}/{y}.png"
    page = AoiPage(area, LAYOUT, AoiFile.of(store, "aoi.geojson"), base_map, told.append)
    with listen(0) as listener:
        server = uvicorn.Server(uvicorn.Config(page.app(), log_level="warning", lifespan="off", ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        deadline = time.monotonic() + 20
        while not server.started:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield Client(listener.getsockname()[1])
        server.should_exit = True
        thread.join()


def test_the_page_and_leaflet_are_served(client: Client) -> None:
    assert '<script defer src="aoi.js">' in client.get("/").text
    assert client.get("/aoi.js").headers["content-type"].startswith("text/javascript")
    assert "Leaflet 1.9" in client.get("/leaflet/leaflet.js").text[:200]
    policy = client.get("/").headers["content-security-policy"]
    assert "img-src 'self' data: https://*.tiles.example.org;" in policy and "script-src 'self';" in policy


def test_the_page_gets_a_description_of_the_area(client: Client, area: Area, store: DatasetStore) -> None:
    page = client.get("/area.json").json()
    (south, west), (north, east) = page.pop("bounds")
    assert [west, south, east, north] == pytest.approx(list(area.boxes.total_bounds))
    names = [feature["properties"]["tile"] for feature in page.pop("tiles")["features"]]
    assert names == sorted(set(names)) and "14SMG" in names and len(names) < 12
    assert (page["year"], page["boxes"], page["path"]) == (2022, 580, f"{store.root}/aoi.geojson")
    assert len(page["class_colours"]) == 13


def test_map_tiles_are_limited(client: Client) -> None:
    far = f"5/{'9' * 5000}/0.png"
    for address in ("2/0/0.png", "19/0/0.png", "5/32/0.png", "5/0/32.png", "5/0/-1.png", "5/1/1", far, "x"):
        assert client.get(f"/chips/{address}").status_code == 404, address
    answer = client.get("/chips/6/14/24.png")
    assert answer.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(answer.content)).getextrema()[3][1] > 0  # type: ignore[index]


def test_counts_are_returned(client: Client, store: DatasetStore) -> None:
    count = client.count(INSIDE).json()
    assert count["boxes"] > count["rich"] > 0 and count["tiles"] and count["km2"] > 2000
    assert client.count(json.dumps(collection())).json()["boxes"] == 0
    assert not store.exists("aoi.geojson")


def test_a_saved_area_has_the_counts_of_the_page(
    client: Client, store: DatasetStore, told: list[Count]
) -> None:
    assert client.get("/aoi").status_code == 204
    live = client.count(INSIDE).json()
    answer = client.save(INSIDE, NEW)
    assert answer.status_code == 200
    assert answer.json() == {"path": f"{store.root}/aoi.geojson", **live}
    assert len(filter_aoi(landscape(store), read_aoi(answer.json()["path"]))) == live["boxes"]
    assert [dataclasses.asdict(count) for count in told] == [live]
    again = client.get("/aoi")
    assert again.headers["etag"] == answer.headers["etag"]
    assert again.content == store.read_bytes("aoi.geojson")


def test_saving_the_same_gives_the_same_bytes(client: Client, store: DatasetStore) -> None:
    first = client.save(INSIDE, NEW)
    data = store.read_bytes("aoi.geojson")
    second = client.save(INSIDE, {"If-Match": first.headers["etag"]})
    assert second.status_code == 200 and second.headers["etag"] == first.headers["etag"]
    assert store.read_bytes("aoi.geojson") == data


def test_a_file_changed_meanwhile_is_not_overwritten(
    client: Client, store: DatasetStore, told: list[Count]
) -> None:
    tag = client.save(INSIDE, NEW).headers["etag"]
    store.write_bytes("aoi.geojson", b"what another program wrote")
    for condition in ({"If-Match": tag}, {"If-None-Match": "*"}):
        refused = client.save(OTHER, condition)
        assert refused.status_code == 412 and "has changed since" in refused.json()["error"]
        assert store.read_bytes("aoi.geojson") == b"what another program wrote"
    anyway = client.save(OTHER, {"If-Match": refused.headers["etag"]})
    assert anyway.status_code == 200 and len(told) == 2
    store.remove("aoi.geojson")
    gone = client.save(OTHER, {"If-Match": anyway.headers["etag"]})
    assert gone.status_code == 412 and "etag" not in gone.headers


def test_saving_needs_a_precondition(client: Client, store: DatasetStore) -> None:
    assert client.save(INSIDE).status_code == 428
    assert not store.exists("aoi.geojson")


def test_of_two_that_save_at_once_one_wins(client: Client) -> None:
    with ThreadPoolExecutor(8) as pool:
        saves = pool.map(lambda _: client.save(INSIDE, NEW).status_code, range(8))
    assert sorted(saves) == [200] + 7 * [412]


def test_an_area_without_boxes_is_refused_with_the_message_of_the_graph(
    client: Client, store: DatasetStore
) -> None:
    away = collection(rectangle(10, 50, 11, 51))
    for document in (collection(), away):
        answer = client.save(json.dumps(document), NEW)
        path = Path(store.root) / "there.geojson"
        path.write_text(json.dumps(document))
        with pytest.raises(InputError) as error:
            filter_aoi(landscape(store), read_aoi(path))
        assert (answer.status_code, answer.json()) == (422, {"error": str(error.value)})
    assert not store.exists("aoi.geojson")


def test_a_polygon_that_crosses_itself_is_saved_as_drawn(client: Client, store: DatasetStore) -> None:
    bow_tie = [(-99.5, 37.5), (-99, 38), (-99, 37.5), (-99.5, 38), (-99.5, 37.5)]
    answer = client.save(json.dumps(collection(bow_tie)), NEW).json()
    assert answer["repaired"] == 1
    aoi = read_aoi(answer["path"])
    assert not aoi.geometry[0].is_valid
    assert len(filter_aoi(landscape(store), aoi)) == answer["boxes"] > 0


def test_other_origins_are_refused(client: Client, store: DatasetStore) -> None:
    refused: list[tuple[dict[str, str], int]] = [
        ({"Host": "evil.example"}, 400),
        ({"Host": "evil.example", "Origin": "http://evil.example"}, 400),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:9999"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": ""}, 403),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
    ]
    for headers, status in refused:
        assert client.save(INSIDE, NEW | headers).status_code == status, headers
        assert client.count(INSIDE, headers).status_code == status, headers
    assert not store.exists("aoi.geojson")


def test_a_foreign_host_name_gets_nothing(client: Client) -> None:
    for path in ("/", "/aoi", "/area.json", "/leaflet/leaflet.js"):
        assert client.get(path, headers={"Host": "evil.example:8350"}).status_code == 400
    assert client.get("/area.json", headers={"Host": "localhost:8350"}).status_code == 200


def test_no_path_leads_out_of_the_page(client: Client) -> None:
    for path in ("/../server.py", "/%2e%2e/server.py", "/leaflet/%2e%2e/__init__.py", "//etc/passwd"):
        # requests would make the path shorter
        asked = http.client.HTTPConnection("127.0.0.1", client.port, timeout=20)
        asked.request("GET", path)
        assert asked.getresponse().status == 404, path
        asked.close()


def test_a_drawing_that_is_too_large_or_invalid_is_refused(client: Client) -> None:
    for body, words in ((b" " * 4_100_000, "too many"), (b"{", "not JSON"), (b"[]", "FeatureCollection")):
        for answer in (
            client.count(body),
            client.save(body, NEW),
        ):
            assert answer.status_code == 422 and words in answer.json()["error"]


def test_a_store_that_disappeared_is_reported(client: Client, store: DatasetStore, told: list[Count]) -> None:
    shutil.rmtree(store.root)
    Path(store.root).write_text("a file in the folder's place")
    answer = client.save(INSIDE, NEW)
    assert answer.status_code == 500 and "cannot be written" in answer.json()["error"]
    assert not told
    with pytest.raises(InputError, match=r"aoi\.geojson cannot be read: Not a directory"):
        AoiFile.of(store, "aoi.geojson")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "aoi",
        "aoi.shp",
        "../aoi.geojson",
        "a/b.geojson",
        ".aoi.json",
        "a\\b.json",
        "aoi.geojson\n",
        "ä.json",
    ],
)
def test_only_a_plain_file_name_is_accepted(store: DatasetStore, name: str) -> None:
    with pytest.raises(InputError, match="must be a plain file name"):
        AoiFile.of(store, name)
    assert AoiFile.of(store, "corn-belt_2.json").name == "corn-belt_2.json"


@pytest.mark.parametrize("content", [b"no map", b'{"type": "Point", "coordinates": [1, 2]}'])
def test_a_file_that_cannot_be_edited_is_not_overwritten(store: DatasetStore, content: bytes) -> None:
    store.write_bytes("mine.json", content)
    with pytest.raises(InputError, match=r"mine\.json cannot be edited here: .*; choose another --name"):
        AoiFile.of(store, "mine.json")
    assert store.read_bytes("mine.json") == content


@pytest.mark.parametrize("kind", ["large", "folder", "link"])
def test_a_file_that_grows_beyond_a_drawing_is_not_read(store: DatasetStore, kind: str) -> None:
    file = AoiFile.of(store, "mine.json")
    at = Path(store.root) / "mine.json"
    if kind == "folder":
        at.mkdir()
    elif kind == "link":
        at.symlink_to("/dev/zero")
    else:
        with at.open("wb") as grown:
            grown.truncate(1 << 40)
    for act in (file.read, file.tag, lambda: AoiFile.of(store, "mine.json")):
        with pytest.raises(InputError, match=r"mine\.json cannot be edited here: .*; choose another --name"):
            act()


def test_a_file_in_another_crs_is_named(store: DatasetStore) -> None:
    landscape(store).head(2)[["geometry"]].to_file(Path(store.root) / "albers.geojson", engine="pyogrio")
    with pytest.raises(InputError, match=r"albers\.geojson cannot be edited here: it is in the CRS .*5070"):
        AoiFile.of(store, "albers.geojson")


def test_base_map_addresses() -> None:
    assert check_base_map("") == ""
    assert (
        check_base_map("https://tile.openstreetmap.org/{z}/{x}/{y}.png") == "https://tile.openstreetmap.org"
    )
    assert check_base_map("http://127.0.0.1:80/w?t={z}/{y}/{x}") == "http://127.0.0.1:80"
    assert check_base_map("https://{s}.a.example/{z}/{x}/{y}.png") == "https://*.a.example"
    for bad in (
        "file:///{z}/{x}/{y}",
        "https://a b/{z}/{x}/{y}",
        "https://a;script-src/{z}/{x}/{y}",
        "https://a\\b/{z}/{x}/{y}",
        "https://me:pw@a.example/{z}/{x}/{y}",
        "https://{z}.a.example/{x}/{y}",
        "http://a.example/{z}/{x}/{y}",
        "https://a/{z}/{x}",
    ):
        with pytest.raises(InputError, match="--base-map"):
            check_base_map(bad)


def test_a_port_in_use_is_an_error_but_the_default_port_has_a_fallback() -> None:
    with listen(0) as taken:
        port = taken.getsockname()[1]
        assert taken.getsockname()[0] == "127.0.0.1"
        with pytest.raises(
            InputError, match=f"port {port} of 127.0.0.1 cannot be used: Address already in use"
        ):
            listen(port)
    # whoever has 8350, this test or another program
    with listen(None, DEFAULT_PORT) as one, listen(None, DEFAULT_PORT) as other:
        assert isinstance(one, socket.socket) and one.getsockname() != other.getsockname()


@pytest.mark.parametrize("what", ["a scribble", "two combs", "a thousand strips", "far away"])
def test_a_drawing_that_takes_minutes_is_refused_at_once(client: Client, what: str) -> None:
    random = np.random.default_rng(1)
    scribble = [(-99 + x, 37 + y) for x, y in random.random((300, 2)).tolist()]
    comb = [(-99 + tooth / 500, 37 + (tooth % 4 in (1, 2))) for tooth in range(1500)]
    rows = [rectangle(-170, 30 + row / 100, 0, 30.005 + row / 100) for row in range(1000)]
    polygons = {
        "a scribble": [scribble],
        "two combs": [comb, [(-99 + (y - 37), 37 + (x + 99) / 3) for x, y in comb]],
        "a thousand strips": rows,
        "far away": [rectangle(1e8, 37, 1e8 + 1, 38)],
    }[what]
    closed = [polygon if polygon[0] == polygon[-1] else [*polygon, polygon[0]] for polygon in polygons]
    answer = client.count(json.dumps(collection(*closed)))
    told = {
        "a scribble": "outlines cross themselves more than 1,000 times",
        "two combs": "outlines cross",
        "far away": "is not a longitude and a latitude",
    }
    if what in told:
        assert (answer.status_code, told[what] in answer.json()["error"]) == (422, True), answer.text
    else:
        assert answer.json()["boxes"] > 0, answer.text
