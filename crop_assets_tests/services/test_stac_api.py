"""This project's STAC client against a STAC API by others: what is loaded is found, all of it and nothing else."""

import datetime as dt
import hashlib
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from shapely.geometry import box, shape

from crop_assets_tests.services.conftest import StacApi
from resources.ipfs.cid import Cid
from resources.stac import IpfsStac, SceneStac

pytestmark = pytest.mark.xdist_group("services")

Item = dict[str, Any]
Bbox = tuple[float, float, float, float]

COLLECTION = "HLSS30_2.0"
WITH_CIDS = "HLSS30_2.0_IPFS"
FROM_EASIER = "landsat-c2l1"
TILE, FAR_TILE = "14SMF", "10TGK"
TILES = {
    TILE: (0.0, 0.0),
    "14SMG": (0.0, 0.9),
    "14SNF": (1.12, 0.0),
    "14SLF": (-1.12, 0.0),
    FAR_TILE: (-20.0, 8.0),
}
"""Tiles, each so many degrees east and north of the first; all but the last touch its bbox."""
FIRST, LAST = dt.date(2021, 3, 1), dt.date(2021, 9, 30)
EDGES = ("2021-02-28T23:59:59Z", "2021-03-01T00:00:00Z", "2021-09-30T23:59:59Z", "2021-10-01T00:00:00Z")
BANDS = ("B02", "B03", "B04", "B8A", "B11", "B12", "Fmask")
PAGE = 100


def name(tile: str, moment: dt.datetime) -> str:
    return f"HLS.S30.T{tile}.{moment:%Y%jT%H%M%S}.v2.0"


def written(item: Item, tile: str, moment: dt.datetime) -> Item:
    """A real item as that of another tile and time, with the names and links that such an item has."""
    scene = name(tile, moment)
    granule = f"G{int(hashlib.sha256(scene.encode()).hexdigest(), 16) % 10**10:010d}"
    text = json.dumps(item).replace(item["id"], scene).replace("G2157704078", granule)
    new: Item = json.loads(text.replace("HLSS30.v2.0", COLLECTION))
    when = f"{moment:%Y-%m-%dT%H:%M:%S.%f}Z"
    new["properties"] |= {
        "datetime": when,
        "start_datetime": when,
        "end_datetime": when,
        "eo:cloud_cover": int(granule[1:]) % 101,
    }
    east, north = TILES[tile]
    (ring,) = new["geometry"]["coordinates"]
    new["geometry"]["coordinates"] = [[[round(x + east, 7), round(y + north, 7)] for x, y in ring]]
    new["bbox"] = [round(degrees, 6) for degrees in shape(new["geometry"]).bounds]
    return new


def with_cids(item: Item) -> Item:
    """The item as the EASIER STAC has it: the bands that are needed, each with its CID and no other link."""
    assets = {}
    for band in BANDS:
        href = item["assets"][band]["href"]
        cid = Cid(0, "dag-pb", "sha2-256", hashlib.sha256(href.encode()).digest())
        s3 = href.replace("https://data.lpdaac.earthdatacloud.nasa.gov/", "s3://")
        alternate = {"s3": {"storage:platform": "AWS", "href": s3}, "IPFS": {"href": f"ipfs://{cid}"}}
        assets[band] = {**item["assets"][band], "alternate": alternate, "file:size": len(href) << 10}
    links = [link for link in item["links"] if link["rel"] != "via"]
    return {**item, "assets": assets, "links": links}


def ids(items: Iterable[Item]) -> list[str]:
    return [item["id"] for item in items]


def without_links(items: Iterable[Item]) -> list[Item]:
    return [{key: value for key, value in item.items() if key != "links"} for item in items]


def expected(items: Iterable[Item], bbox: Bbox, first: dt.date, last: dt.date) -> list[str]:
    """The ids of what a search must find."""
    area = box(*bbox)
    return sorted(
        item["id"]
        for item in items
        if first <= dt.datetime.fromisoformat(item["properties"]["datetime"]).date() <= last
        and shape(item["geometry"]).intersects(area)
    )


@pytest.fixture(scope="module")
def scenes(real: Path) -> list[Item]:
    """Scenes of five tiles, of the season and of some days before and after it, sorted by id."""
    document = json.loads((real / "stac" / "HLS.S30.T14SMF.2021062T172221.v2.0.stac.json").read_text())
    begin = dt.datetime(2021, 2, 15, 17, 22, 21, 493000, dt.UTC)
    # scenes of the same time are on both sides of a page's end, where the order of a search must not be by time alone
    items = [
        written(document, tile, begin + dt.timedelta(day))
        for tile in TILES
        for day in range(0, 240, 10 if tile == FAR_TILE else 3)
    ]
    items += [written(document, TILE, dt.datetime.fromisoformat(edge)) for edge in EDGES]
    return sorted(items, key=lambda item: str(item["id"]))


@pytest.fixture(scope="module")
def bbox(scenes: list[Item]) -> Bbox:
    """That of the tile, which its neighbours' scenes touch as well."""
    west, south, east, north = next(item["bbox"] for item in scenes if f".T{TILE}." in item["id"])
    return west, south, east, north


@pytest.fixture(scope="module")
def api(stac_api: StacApi, scenes: list[Item]) -> StacApi:
    shuffled = random.Random(1).sample(scenes, len(scenes))
    stac_api.load(COLLECTION, shuffled)
    stac_api.load(WITH_CIDS, [with_cids(item) for item in shuffled if f".T{TILE}." in item["id"]])
    return stac_api


def test_a_search_finds_all_that_there_is_once(api: StacApi, scenes: list[Item], bbox: Bbox) -> None:
    found = SceneStac(url=api.url).search(bbox, FIRST, LAST)
    assert ids(found) == expected(scenes, bbox, FIRST, LAST)
    assert len(found) == len(set(ids(found))) > 2 * PAGE
    assert {scene.split(".")[2] for scene in ids(found)} == {f"T{tile}" for tile in TILES if tile != FAR_TILE}
    assert len(scenes) > len(found)


def test_items_come_as_they_were_loaded(api: StacApi, scenes: list[Item], bbox: Bbox) -> None:
    found = {item["id"]: item for item in SceneStac(url=api.url).search(bbox, FIRST, LAST)}
    loaded = [{**item, "collection": COLLECTION} for item in scenes if item["id"] in found]
    assert without_links(found[item["id"]] for item in loaded) == without_links(loaded)
    # a server gives its own links for itself, and those of others as they are
    for item in loaded:
        via = [link for link in item["links"] if link["rel"] == "via"]
        assert [link for link in found[item["id"]]["links"] if link["rel"] == "via"] == via
        assert len(via) == 2


@pytest.mark.parametrize(
    ("first", "last", "edges"),
    [
        (FIRST, FIRST, EDGES[1:2]),
        (LAST, LAST, EDGES[2:3]),
        (FIRST - dt.timedelta(1), FIRST, EDGES[:2]),
        (LAST + dt.timedelta(1), LAST + dt.timedelta(1), EDGES[3:]),
        (FIRST + dt.timedelta(1), LAST - dt.timedelta(1), ()),
        (FIRST, LAST, EDGES[1:3]),
    ],
)
def test_both_days_of_a_season_are_included(
    api: StacApi, scenes: list[Item], bbox: Bbox, first: dt.date, last: dt.date, edges: tuple[str, ...]
) -> None:
    found = ids(SceneStac(url=api.url).search(bbox, first, last))
    assert found == expected(scenes, bbox, first, last)
    edge_ids = [name(TILE, dt.datetime.fromisoformat(edge)) for edge in EDGES]
    assert [edge for edge, scene in zip(EDGES, edge_ids, strict=True) if scene in found] == [*edges]


def test_the_api_finds_what_the_same_items_in_a_file_give(
    api: StacApi, scenes: list[Item], bbox: Bbox, tmp_path: Path
) -> None:
    path = tmp_path / "items.json"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": scenes}))
    west, south, east, north = bbox
    (ring,) = next(item for item in scenes if f".T{TILE}." in item["id"])["geometry"]["coordinates"]
    (x, y), (far_x, _), *_ = ring
    something: list[Bbox] = [
        bbox,
        (-180, -90, 180, 90),
        ((west + east) / 2, (south + north) / 2, (west + east) / 2 + 1e-6, (south + north) / 2 + 1e-6),
        (far_x + 0.2, south, far_x + 5, north + 5),
        # only the corner of a scene
        (x - 0.01, y - 0.01, x, y),
    ]
    nothing: list[Bbox] = [
        (x - 0.01, y - 0.01, x - 1e-7, y - 1e-7),
        # of the bbox of a scene, but not of the scene
        (west, south, west + 0.001, south + 0.001),
    ]
    for area in something + nothing:
        found = ids(SceneStac(url=api.url).search(area, FIRST, LAST))
        assert found == ids(SceneStac(url=str(path)).search(area, FIRST, LAST))
        assert found == expected(scenes, area, FIRST, LAST)
        assert bool(found) == (area in something)


def test_ids_are_found_by_the_hundred(api: StacApi, scenes: list[Item]) -> None:
    wanted = ids(scenes)[::-1][:230]
    missing = [scene.replace(".2021", ".2020") for scene in wanted]
    asked = [scene for pair in zip(wanted, missing, strict=True) for scene in pair]
    found = SceneStac(url=api.url).items([*asked, *wanted[:50]])
    assert ids(found) == sorted(wanted)
    assert SceneStac(url=api.url).items(missing[:120]) == []
    assert SceneStac(url=api.url).items([]) == []


def test_nothing_is_found_where_there_is_nothing(api: StacApi, bbox: Bbox) -> None:
    stac = SceneStac(url=api.url)
    assert stac.search((10.0, 50.0, 11.0, 51.0), FIRST, LAST) == []
    assert stac.search(bbox, dt.date(2019, 1, 1), dt.date(2019, 12, 31)) == []


def test_a_collection_that_is_not_there_has_no_items(api: StacApi, scenes: list[Item], bbox: Bbox) -> None:
    stac = SceneStac(url=api.url)
    assert stac.search(bbox, FIRST, LAST, ("HLSL30_2.0",)) == []
    assert stac.items(ids(scenes)[:5], ("HLSL30_2.0",)) == []
    assert ids(stac.items(ids(scenes)[:5], ("HLSL30_2.0", COLLECTION))) == ids(scenes)[:5]


def test_the_cids_of_a_collection_come_with_its_items(api: StacApi, scenes: list[Item]) -> None:
    stac = IpfsStac(url=api.url)
    loaded = [{**with_cids(item), "collection": WITH_CIDS} for item in scenes if f".T{TILE}." in item["id"]]
    found = stac.items(ids(scenes), (WITH_CIDS,))
    assert without_links(found) == without_links(loaded)
    assert found[0]["assets"]["B02"]["alternate"]["IPFS"]["href"].startswith("ipfs://Qm")
    # the items of the same ids in the other collection have none
    assert "alternate" not in stac.items(ids(loaded)[:1])[0]["assets"]["B02"]


def test_real_items_with_cids_come_as_they_were_loaded(api: StacApi, real: Path) -> None:
    paths = sorted((real / "stac").glob("LC09_*_stac.json"))
    loaded = [json.loads(path.read_text()) for path in paths]
    api.load(FROM_EASIER, loaded)
    found = IpfsStac(url=api.url).items(ids(loaded), (FROM_EASIER,))
    assert len(found) == 2
    assert without_links(found) == without_links(loaded)


def test_an_item_that_is_loaded_again_is_found_as_it_is_now(api: StacApi, scenes: list[Item]) -> None:
    old = next(item for item in scenes if f".T{FAR_TILE}." in item["id"])
    stac = SceneStac(url=api.url)
    changed = {**old, "properties": {**old["properties"], "eo:cloud_cover": 0.5}}
    try:
        api.load(COLLECTION, [changed])
        (found,) = stac.items([old["id"]])
        assert found["properties"] == changed["properties"]
    finally:
        api.load(COLLECTION, [old])
    assert len(stac.items(ids(scenes))) == len(scenes)
