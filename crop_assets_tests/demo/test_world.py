import datetime as dt
import hashlib
import json
import multiprocessing
import shutil
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import pytest
import rasterio
import requests
from pystac_client import Client
from rasterio.vrt import WarpedVRT

from crop_assets.chip_grid import chip_geobox
from crop_assets.classes import lookup_table
from crop_assets.demo.landscape import draw_landscape, write_landscape
from crop_assets.demo.run import default_recipe
from crop_assets.demo.scenes import Scene
from crop_assets.demo.server import PAGE, WorldServer, serve
from crop_assets.demo.world import World, build_world, plan_scenes
from crop_assets.errors import InputError
from crop_assets.hls import CLOUD, NODATA, QA_NODATA, SHADOW
from crop_assets.labels.cdl import check_cdl, chip_histograms
from crop_assets.labels.sampling import candidate_boxes, choose_boxes, weighed_boxes
from crop_assets_tests.demo.conftest import SmallWorld
from resources.ipfs.unixfs import file_cid

BANDS = {"B02", "B03", "B04", "B8A", "B11", "B12"}
LANDSAT_BANDS = {"B02", "B03", "B04", "B05", "B06", "B07"}
SENTINEL, LANDSAT = "HLSS30_2.0", "HLSL30_2.0"


def by(sensor: str, world: World) -> list[Scene]:
    return [scene for scene in world.scenes if scene.scene_id.startswith(f"HLS.{sensor}.")]


def read(world: World, scene: Scene, band: str) -> "np.ndarray[Any, Any]":
    with rasterio.open(world.band_path(scene, band)) as raster:
        pixels: np.ndarray[Any, Any] = raster.read(1)
        return pixels


def chip(world: World, scene: Scene, band: str, chip_id: str) -> "np.ndarray[Any, Any]":
    box = chip_geobox(chip_id)
    with (
        rasterio.open(world.band_path(scene, band)) as raster,
        WarpedVRT(raster, crs=box.crs.to_wkt(), transform=box.transform, width=224, height=224) as warped,
    ):
        pixels: np.ndarray[Any, Any] = warped.read(1)
        return pixels


@pytest.fixture(scope="module")
def landscape(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("landscape") / "2022_30m_cdls.tif"
    write_landscape(path, draw_landscape())
    return path


def test_landscape_is_a_cdl_raster_with_chips_of_every_sort(landscape: Path, pool: Executor) -> None:
    raster = check_cdl(landscape)
    counts = chip_histograms(raster, pool).counts
    classes = (counts[:, 1:] > 0).sum(axis=1)
    with rasterio.open(landscape) as source:
        assert source.nodata is None
        assert source.colormap(1)[1] == (255, 211, 0, 255)
        assert len(source.colormap(1)) == 256
    assert (len(raster.chip_rows), len(raster.chip_cols)) == (5, 10)
    assert (counts[:, 1:].sum(axis=0) > 0).all(), "all 13 classes are somewhere"
    assert (classes >= 8).sum() == 48
    assert (classes < 8).sum() == 2
    assert (counts[:, 0] > 0).sum() == 1


def test_the_demo_chooses_other_chips_by_evenness_than_balanced(landscape: Path, pool: Executor) -> None:
    wanted = default_recipe(None)
    boxes = weighed_boxes(candidate_boxes(chip_histograms(check_cdl(landscape), pool)), wanted["min_classes"])
    even, balanced = (
        set(choose_boxes(boxes, how, wanted["chips"])["chip_id"]) for how in ("evenness", "balanced")
    )
    assert len(even) == len(balanced) == 36
    assert len(even - balanced) == 6


def test_landscape_is_the_same_every_time(tmp_path: Path) -> None:
    for name in ("one.tif", "two.tif"):
        write_landscape(tmp_path / name, draw_landscape(2, 5))
    assert (tmp_path / "one.tif").read_bytes() == (tmp_path / "two.tif").read_bytes()
    assert not np.array_equal(draw_landscape(1, 1, seed=1), draw_landscape(1, 1, seed=2))


def test_plans_of_the_landscape(landscape: Path) -> None:
    plans = plan_scenes(landscape, 2022)
    assert {plan.frame.tile for plan in plans} == {"14SMG", "14SNG"}
    assert len({plan.scene_id for plan in plans}) == len(plans) == 22
    for tile, qualifying in (("14SMG", 5), ("14SNG", 6)):
        landsat = [plan for plan in plans if plan.scene_id.startswith(f"HLS.L30.T{tile}.")]
        assert len(landsat) == 3
        assert all(plan.sensed.strftime("T%H%M%S") in plan.scene_id for plan in landsat)
        mine = [plan for plan in plans if plan.scene_id.startswith(f"HLS.S30.T{tile}.")]
        good = [plan for plan in mine if plan.seen == 1 and plan.clouds < 0.03]
        assert len(good) == qualifying
        assert sum(bool(plan.events) for plan in good) == 3
        assert good[0].events and good[(qualifying - 1) // 2].events and good[-1].events
        assert all(dt.date(2022, 3, 1) <= plan.sensed.date() <= dt.date(2022, 9, 30) for plan in mine)


def test_small_world_has_a_season_of_one_tile(small_world: SmallWorld) -> None:
    world = small_world.world
    assert world.tiles == ("14SMG",)
    assert len(world.scenes) == 11
    assert len(world.files) == 11 * 7
    for scene in world.scenes:
        landsat = scene.scene_id.startswith("HLS.L30.")
        assert set(scene.files) == (LANDSAT_BANDS if landsat else BANDS) | {"Fmask"}
    scenes = by("S30", world)
    good = [s for s in scenes if s.cloud_coverage <= 5 and s.spatial_coverage == 100]
    assert len(good) == 5
    assert max(s.cloud_coverage for s in scenes) > 5
    assert min(s.spatial_coverage for s in scenes) == 60
    days = [s.sensed.date() for s in scenes]
    assert len(set(days)) == 7, "two granules of one day"
    assert len(set(days) & {s.sensed.date() for s in by("L30", world)}) == 1
    assert sum("scene" in line for line in small_world.said) == 11


def test_metadata_match_the_rasters(small_world: SmallWorld) -> None:
    world = small_world.world
    for scene in world.scenes:
        fmask = read(world, scene, "Fmask")
        seen = fmask != QA_NODATA
        hidden = (fmask & (CLOUD | SHADOW) != 0) & seen
        assert scene.spatial_coverage == round(100 * seen.mean())
        assert scene.cloud_coverage == round(100 * hidden.sum() / seen.sum())
        with rasterio.open(world.band_path(scene, "B04")) as raster:
            tags = raster.tags()
        assert tags["cloud_coverage"] == str(scene.cloud_coverage)
        assert tags["spatial_coverage"] == str(scene.spatial_coverage)
        assert dt.datetime.fromisoformat(tags["SENSING_TIME"]) == scene.sensed


def test_fmask_and_bands_are_filled_alike(small_world: SmallWorld) -> None:
    world = small_world.world
    scene = next(s for s in world.scenes if s.spatial_coverage == 60)
    unseen = read(world, scene, "Fmask") == QA_NODATA
    for band in BANDS:
        assert np.array_equal(read(world, scene, band) == NODATA, unseen)


def test_files_have_the_format_of_hls(small_world: SmallWorld, real: Path) -> None:
    world = small_world.world
    with rasterio.open(real / "hls/HLS.S30.T13RCN.2024128T173909.v2.0.Fmask.tif") as raster:
        wanted, wanted_layout = raster.profile, raster.tags(ns="IMAGE_STRUCTURE")
        wanted_overviews, wanted_tags = raster.overviews(1), raster.tags()
    files = [(by("S30", world)[0], band) for band in (*BANDS, "Fmask")]
    for scene, band in [*files, (by("L30", world)[0], "B07")]:
        with rasterio.open(world.band_path(scene, band)) as raster:
            profile, layout, tags = raster.profile, raster.tags(ns="IMAGE_STRUCTURE"), raster.tags()
            assert raster.overviews(1) == wanted_overviews
            # HLS bounds of the 100 km square at (400000, 4100000)
            assert raster.bounds == (399960, 4090200, 509760, 4200000)
        dtype, nodata = ("uint8", 255) if band == "Fmask" else ("int16", -9999)
        expected = wanted | {
            "dtype": dtype,
            "nodata": nodata,
            "crs": rasterio.CRS.from_epsg(32614),
            "transform": profile["transform"],
        }
        assert profile == expected
        assert layout == wanted_layout | {"LAYOUT": "COG"}
        shared = {
            "ACCODE",
            "cloud_coverage",
            "spatial_coverage",
            "SENSING_TIME",
            "NCOLS",
            "NROWS",
            "ULX",
            "ULY",
        }
        assert shared | {"_FillValue", "HLS_PROCESSING_TIME", "SPATIAL_RESOLUTION"} <= set(tags) & set(
            wanted_tags
        )
        assert ("Fmask bit description" in tags) == (band == "Fmask")
        assert ("add_offset" in tags, "scale_factor" in tags) == (band != "Fmask",) * 2


def test_crops_turn_green_in_their_season(small_world: SmallWorld) -> None:
    world = small_world.world
    clear = [s for s in by("S30", world) if s.cloud_coverage <= 5 and s.spatial_coverage == 100]
    with rasterio.open(world.cdl) as raster:
        classes = lookup_table()[raster.read(1, window=((0, 224), (0, 224)))]
    greenness: dict[int, list[float]] = {3: [], 7: [], 8: []}
    for scene in clear:
        red, nir = (chip(world, scene, band, "chip_230_308").astype(float) for band in ("B04", "B8A"))
        for value, values in greenness.items():
            here = (classes == value) & (red != NODATA)
            values.append(float(((nir - red) / (nir + red))[here].mean()))
    march, april, june, july, september = range(5)
    assert greenness[3][july] > 0.7 > greenness[3][april] + 0.3, "corn"
    assert greenness[8][april] > 0.6 > greenness[8][july] + 0.3, "winter wheat"
    assert max(greenness[7]) < 0.1, "water"
    assert greenness[3][march] < 0.4 and greenness[3][september] < 0.4 < greenness[3][june]


def test_trouble_strikes_few_chips(small_world: SmallWorld) -> None:
    world = small_world.world
    rows, cols = check_cdl(world.cdl).chip_rows, check_cdl(world.cdl).chip_cols
    clear = [s for s in by("S30", world) if s.cloud_coverage <= 5 and s.spatial_coverage == 100]
    cloudy, missing = set(), set()
    for scene in (clear[0], clear[2], clear[4]):
        for chip_id in (f"chip_{row:03d}_{col:03d}" for row in rows for col in cols):
            fmask = chip(world, scene, "Fmask", chip_id)
            if max(((fmask & bit != 0) & (fmask != QA_NODATA)).mean() for bit in (CLOUD, SHADOW)) > 0.05:
                cloudy.add(chip_id)
            if any((chip(world, scene, band, chip_id) == NODATA).any() for band in ("B04", "B11")):
                missing.add(chip_id)
    assert len(cloudy) == 1
    assert len(missing) == 1
    assert cloudy.isdisjoint(missing)


def test_cids_and_hashes_are_those_of_the_files(small_world: SmallWorld) -> None:
    world = small_world.world
    manifest = json.loads((world.root / "world.json").read_text())
    assert manifest["fingerprint"] == world.fingerprint
    assert len(manifest["scenes"]) == len(world.scenes)
    for cid, path in world.files.items():
        assert file_cid(path) == cid
    for scene in world.scenes:
        for band, file in scene.files.items():
            data = world.band_path(scene, band).read_bytes()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (file.size, file.sha256)


def test_a_second_build_does_nothing_and_an_interrupted_one_is_resumed(
    small_world: SmallWorld, tmp_path: Path
) -> None:
    world = small_world.world
    said: list[str] = []
    assert build_world(world.root, world.cdl, 2022, said.append) == world
    assert len(said) == 1 and "nothing to do" in said[0]

    torn = tmp_path / "world"
    shutil.copytree(world.root, torn)
    (torn / "world.json").unlink()
    lost = world.scenes[3]
    shutil.rmtree(torn / "scenes" / lost.scene_id)
    said.clear()
    again = build_world(torn, world.cdl, 2022, said.append)
    assert said[0] == "10 of 11 scenes already exist"
    assert sum(line.startswith("scene ") for line in said) == 1
    assert again.scenes == world.scenes, "the scene made anew has the same bytes"


def test_an_interrupted_build_finishes_no_other_scene(small_world: SmallWorld, tmp_path: Path) -> None:
    def interrupt(said: str) -> None:
        if said.startswith("scene 2 of"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_world(tmp_path, small_world.world.cdl, 2022, interrupt)
    assert multiprocessing.active_children() == []
    whole = [
        scene.scene_id
        for scene in small_world.world.scenes
        if all(
            (path := tmp_path / "scenes" / scene.scene_id / scene.file_name(band)).is_file()
            and path.stat().st_size == file.size
            for band, file in scene.files.items()
        )
    ]
    # the two of before, and what the two processes ended in the moment of the interrupt
    assert 2 <= len(whole) <= 4, whole


def test_rasters_that_cannot_be_served_are_refused(tmp_path: Path) -> None:
    tiny, long = tmp_path / "tiny.tif", tmp_path / "long.tif"
    codes = np.ones((100, 100), np.uint8)
    write_landscape(tiny, codes)
    with pytest.raises(InputError, match="no complete chip"):
        build_world(tmp_path / "world", tiny)
    write_landscape(long, np.ones((224, 224 * 120), np.uint8), 230, 280)
    with pytest.raises(InputError, match=r"needs \d+ tiles .* at most 6"):
        build_world(tmp_path / "world", long)
    with pytest.raises(InputError):
        build_world(tmp_path / "world", tmp_path / "absent.tif")


@pytest.mark.parametrize("kind", ["stac_url", "ipfs_stac_url"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_search_pages_through_the_whole_season(
    server: WorldServer, small_world: SmallWorld, kind: str, method: str
) -> None:
    client = Client.open(getattr(server, kind))
    search = client.search(
        method=method,
        collections=[SENTINEL],
        bbox=(-100.2, 36.9, -98.8, 38.0),
        datetime="2022-03-01T00:00:00Z/2022-09-30T23:59:59Z",
        limit=3,
    )
    pages = list(search.pages_as_dicts())
    assert [len(page["features"]) for page in pages] == [3, 3, 2]
    names = [s.scene_id for s in by("S30", small_world.world)]
    assert [f["id"] for page in pages for f in page["features"]] == names
    assert search.matched() == 8
    assert [item.id for item in search.items()] == names


def test_landsat_has_its_own_collection_and_band_names(server: WorldServer, small_world: SmallWorld) -> None:
    client = Client.open(server.stac_url)
    assert [collection.id for collection in client.get_collections()] == [SENTINEL, LANDSAT]
    items = list(client.search(collections=[LANDSAT]).items())
    assert [item.id for item in items] == [scene.scene_id for scene in by("L30", small_world.world)]
    assert all(set(item.assets) == LANDSAT_BANDS | {"Fmask", "metadata"} for item in items)
    assert client.search(collections=[SENTINEL, LANDSAT]).matched() == 11
    listed = requests.get(f"{server.stac_url}/collections/{LANDSAT}/items?limit=2", timeout=10).json()
    assert (listed["numberMatched"], len(listed["features"])) == (3, 2)
    one = f"{server.stac_url}/collections/%s/items/{items[0].id}"
    assert requests.get(one % LANDSAT, timeout=10).json()["id"] == items[0].id
    assert requests.get(one % SENTINEL, timeout=10).status_code == 404
    assert requests.get(f"{server.stac_url}/collections/HLSX30_2.0", timeout=10).status_code == 404
    season = {"temporal": "2022-03-01T00:00:00Z,2022-09-30T23:59:59Z", "page_size": "2000"}
    query = {"short_name": "HLSL30", "attribute[]": "string,MGRS_TILE_ID,14SMG", **season}
    found = requests.get(server.granule_search_url, params=query, timeout=10).json()
    assert [record["umm"]["GranuleUR"] for record in found["items"]] == [item.id for item in items]


def test_search_honours_ids_dates_areas_and_page_size(server: WorldServer, small_world: SmallWorld) -> None:
    scenes = by("S30", small_world.world)

    def ids(**query: Any) -> list[str]:
        query = {"collections": [SENTINEL]} | query
        answer = requests.post(f"{server.stac_url}/search", json=query, timeout=10)
        answer.raise_for_status()
        assert len(answer.json()["features"]) <= PAGE
        return [feature["id"] for feature in answer.json()["features"]]

    assert ids(ids=[scenes[2].scene_id]) == [scenes[2].scene_id]
    assert ids(limit=1) == [scenes[0].scene_id]
    assert ids(collections=["HLSX30_2.0"]) == []
    assert ids(bbox=[-90, 30, -89, 31]) == []
    assert ids(datetime="2022-06-01T00:00:00Z/2022-06-30T00:00:00Z") == [scenes[3].scene_id]
    assert ids(datetime="../2022-04-30T00:00:00Z") == [scenes[0].scene_id, scenes[1].scene_id]
    # east of the swath's edge on the day of partial coverage
    assert scenes[2].scene_id not in ids(bbox=[-99.1, 37.4, -99.0, 37.5])

    def square(tilt: float) -> dict[str, Any]:
        ring = [[-99.5, 37.2], [-99.2, 37.2 + tilt], [-99.2, 37.5 + tilt], [-99.5, 37.5], [-99.5, 37.2]]
        return {"type": "Polygon", "coordinates": [ring]}

    assert len(ids(intersects=square(0))) == 8
    tilted = requests.post(f"{server.stac_url}/search", json={"intersects": square(0.1)}, timeout=10)
    assert tilted.status_code == 500
    assert requests.get(f"{server.stac_url}/search?bbox=1,2", timeout=10).status_code == 400


def test_items_lead_to_metadata_and_files(server: WorldServer, small_world: SmallWorld) -> None:
    world = small_world.world
    item = next(Client.open(server.stac_url).search(ids=[world.scenes[5].scene_id]).items_as_dicts())
    scene = world.scenes[5]
    assert item["properties"]["eo:cloud_cover"] == scene.cloud_coverage
    assert "coverage" not in json.dumps(item).lower().replace("cloud_cover", "")
    west, south, east, north = item["bbox"]
    middle = pyproj.Transformer.from_crs(32614, 4326, always_xy=True).transform(454860, 4145100)
    assert west < middle[0] < east and south < middle[1] < north

    via = [link["href"] for link in item["links"] if link["rel"] == "via"]
    umm = requests.get(next(href for href in via if href.endswith(".umm_json")), timeout=10).json()["umm"]
    attributes = {a["Name"]: a["Values"][0] for a in umm["AdditionalAttributes"]}
    assert attributes["SPATIAL_COVERAGE"] == str(scene.spatial_coverage)
    assert attributes["CLOUD_COVERAGE"] == str(scene.cloud_coverage)
    assert attributes["MGRS_TILE_ID"] == "14SMG"
    assert {link["URL"].split(":")[0] for link in umm["RelatedUrls"]} == {"http", "s3"}
    assert all(requests.get(href, timeout=10).ok for href in via)
    xml = requests.get(item["assets"]["metadata"]["href"], timeout=10).text
    assert f"<Name>SPATIAL_COVERAGE</Name><Values><Value>{scene.spatial_coverage}</Value>" in xml

    href = item["assets"]["Fmask"]["href"]
    assert requests.get(href, timeout=10).status_code == 401
    answer = requests.get(href, headers={"Authorization": "Bearer token"}, timeout=10)
    assert hashlib.sha256(answer.content).hexdigest() == scene.files["Fmask"].sha256
    assert (
        requests.get(f"{server.base_url}/world.json", timeout=10).json()["fingerprint"] == world.fingerprint
    )


def test_ipfs_items_have_cids_in_several_forms(server: WorldServer, small_world: SmallWorld) -> None:
    forms = set()
    for item in Client.open(server.ipfs_stac_url).search(collections=[SENTINEL, LANDSAT]).items_as_dicts():
        scene = next(s for s in small_world.world.scenes if s.scene_id == item["id"])
        assert not [link for link in item["links"] if link["rel"] == "via"]
        for band, file in scene.files.items():
            alternate = item["assets"][band]["alternate"]
            (key,) = set(alternate) & {"IPFS", "ipfs"}
            href = alternate[key]["href"]
            assert href.rstrip("/") == f"ipfs://{file.cid}"
            forms.add((key, href.endswith("/")))
    assert forms == {("IPFS", False), ("ipfs", False), ("IPFS", True)}


def test_gateway_serves_the_files_blocks(server: WorldServer, small_world: SmallWorld) -> None:
    cid = small_world.world.scenes[0].files["Fmask"].cid
    answer = requests.get(f"{server.gateway_url}/ipfs/{cid}?format=raw", timeout=10)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "application/vnd.ipld.raw"


def test_a_taken_port_is_refused(server: WorldServer, small_world: SmallWorld) -> None:
    port = int(server.base_url.rsplit(":", 1)[1])
    assert port < 32768, "the demo takes the same one next time, so it is none that connections get"
    with pytest.raises(InputError, match=f"port {port}"), serve(small_world.world, port):
        pass
