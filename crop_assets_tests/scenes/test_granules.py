import contextlib
import datetime as dt
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import shapely

from crop_assets.chip_grid import chip_outline
from crop_assets.hls import collection_of
from crop_assets.scenes import granules
from crop_assets.scenes.granules import document_url, parse_document
from resources.errors import IntegrityError, NotFoundError


def item(scene_id: str, **properties: object) -> dict:
    bands = ("B02", "B03", "B04", "B8A", "B11", "B12", "Fmask")
    base = "https://data.lpdaac.earthdatacloud.nasa.gov/lp-prod-protected/HLSS30.020"
    return {
        "id": scene_id,
        "properties": {"datetime": "2022-04-21T17:48:59Z", "eo:cloud_cover": 3, **properties},
        "assets": {band: {"href": f"{base}/{scene_id}/{scene_id}.{band}.tif"} for band in bands},
        "links": [{"rel": "via", "href": f"https://cmr.test/{scene_id}.umm_json"}],
    }


CHIPS = [chip_outline(f"chip_232_{col}") for col in (310, 311)]


def scene_rows(
    items: Sequence[dict],
    tile: str,
    fetch: Callable[[str], bytes],
    records: Sequence[dict] = (),
    sensors: Sequence[str] = ("S30",),
) -> pd.DataFrame:
    """With the documents that the items need, which `fetch` gives but for those among `records`."""
    documents = {record["umm"]["GranuleUR"]: json.dumps(record) for record in records}
    for one in items:
        url = document_url(one)
        if url and one["id"] not in documents:
            with contextlib.suppress(NotFoundError):
                documents[one["id"]] = fetch(url).decode()
    return granules.scene_rows(items, documents, tile, sensors, CHIPS)


def no_document(url: str) -> bytes:
    pytest.fail("no document is needed")


def test_real_umm_json_and_real_xml_are_read_by_attribute_name(real: Path) -> None:
    umm = parse_document((real / "stac/HLS.L30.T15UWP.2024042T165831.v2.0.umm.json").read_bytes())
    assert (umm.cloud_cover, umm.spatial_coverage) == (100, 55)
    assert sum(link.startswith("s3://") for link in umm.links) > 7
    xml = parse_document((real / "stac/HLS.S30.T13RCN.2024128T173909.v2.0.cmr.xml").read_bytes())
    assert xml.spatial_coverage is not None
    assert 0 <= xml.spatial_coverage <= 100


def test_a_real_cmr_item_becomes_a_row_with_both_kinds_of_links(real: Path) -> None:
    real_item = json.loads((real / "stac/HLS.S30.T14SMF.2021062T172221.v2.0.stac.json").read_text())
    document = json.dumps({"AdditionalAttributes": [{"Name": "SPATIAL_COVERAGE", "Values": ["98"]}]})
    asked = []

    def fetch(url: str) -> bytes:
        asked.append(url)
        return document.encode()

    rows = scene_rows([real_item], "14SMF", fetch)
    row = rows.iloc[0]
    assert asked == ["https://cmr.earthdata.nasa.gov/search/concepts/G2157704078-LPCLOUD.umm_json"]
    assert (row["cloud_cover"], row["spatial_coverage"], row["missing_bands"]) == (0, 98, "")
    assert row["date"] == dt.date(2021, 3, 3)
    assert row["B8A_http"].endswith("HLS.S30.T14SMF.2021062T172221.v2.0.B8A.tif")
    assert row["B8A_s3"].startswith("s3://lp-prod-protected/HLSS30.020/")
    assert row["problem"] == ""


def test_neighbours_are_left_out_and_strange_ids_named() -> None:
    items = [item("HLS.S30.T13TDE.2022111T174859.v2.0", spatial_coverage=100)]
    items += [
        item("HLS.S30.T13TEE.2022111T174859.v2.0", spatial_coverage=100),
        item("../evil", spatial_coverage=100),
    ]
    rows = scene_rows(items, "13TDE", no_document).set_index("scene_id")
    assert set(rows.index) == {items[0]["id"], "../evil"}
    assert rows.loc["../evil", "problem"].startswith("set aside: '../evil' is not an HLS scene id")
    assert rows.loc["../evil", ["date", "cloud_cover", "spatial_coverage"]].isna().all()


def test_a_scene_with_a_missing_band_names_it_and_one_without_document_has_no_coverage() -> None:
    scene = item("HLS.S30.T13TDE.2022111T174859.v2.0")
    del scene["assets"]["B11"]

    def fetch(url: str) -> bytes:
        raise NotFoundError(url)

    rows = scene_rows([scene], "13TDE", fetch)
    assert rows["missing_bands"][0] == "B11"
    assert rows["spatial_coverage"].isna().all()


def test_xml_that_would_expand_without_end_is_refused() -> None:
    bomb = b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;">]><a>&c;</a>'
    with pytest.raises(IntegrityError):
        parse_document(bomb)
    with pytest.raises(IntegrityError):
        parse_document(b"<html>Oops!")


def record(scene_id: str, coverage: str, size: int = 0) -> dict:
    attributes = {"CLOUD_COVERAGE": "7", "SPATIAL_COVERAGE": coverage}
    return {
        "umm": {
            "GranuleUR": scene_id,
            "AdditionalAttributes": [{"Name": name, "Values": [value]} for name, value in attributes.items()],
            "DataGranule": {"ArchiveAndDistributionInformation": [{"SizeInBytes": size}]},
            "RelatedUrls": [{"URL": f"s3://lp/{scene_id}/{scene_id}.B02.tif"}],
        }
    }


def test_what_the_granule_search_told_needs_no_document() -> None:
    scene_id = "HLS.S30.T13TDE.2022111T174859.v2.0"
    rows = scene_rows([item(scene_id)], "13TDE", no_document, [record(scene_id, "88", 224_507_670)])
    row = rows.iloc[0]
    assert (row["spatial_coverage"], row["cloud_cover"], row["granule_bytes"]) == (88, 3, 224_507_670)
    assert row["B02_s3"] == f"s3://lp/{scene_id}/{scene_id}.B02.tif"


def test_a_scene_that_the_granule_search_does_not_know_has_its_own_document_read() -> None:
    scene_id = "HLS.S30.T13TDE.2022111T174859.v2.0"
    other = record("HLS.S30.T13TDE.2022121T174859.v2.0", "88")
    document = json.dumps(record(scene_id, "77")["umm"]).encode()
    rows = scene_rows([item(scene_id)], "13TDE", lambda url: document, [other])
    assert list(rows["spatial_coverage"]) == [77]


def test_a_landsat_scene_is_one_of_the_recipe_alone_and_has_names_of_its_own() -> None:
    scene = item("HLS.L30.T13TDE.2022112T174002.v2.0", spatial_coverage=100)
    for ours, theirs in (("B8A", "B05"), ("B11", "B06"), ("B12", "B07")):
        scene["assets"][theirs] = {"href": scene["assets"].pop(ours)["href"].replace(ours, theirs)}
    assert scene_rows([scene], "13TDE", no_document).empty
    rows = scene_rows([scene], "13TDE", no_document, sensors=["S30", "L30"])
    assert rows["missing_bands"][0] == ""
    assert rows["B8A_http"][0].endswith("HLS.L30.T13TDE.2022112T174002.v2.0.B05.tif")
    assert collection_of(scene["id"]) == "HLSL30_2.0"


def test_a_footprint_that_takes_minutes_to_repair_is_unknown() -> None:
    scribble = shapely.Polygon(np.random.default_rng(1).random((300, 2)) - [99, -37])
    items = [item(f"HLS.S30.T13TDE.20221{day}1T174859.v2.0", spatial_coverage=100) for day in (1, 2, 3)]
    for scene, shape in zip(items, (scribble, shapely.box(-180, -90, 180, 90), scribble), strict=True):
        scene["geometry"] = shapely.geometry.mapping(shape)
    rows = scene_rows(items, "13TDE", no_document)
    assert rows["chip_coverage"].isna().tolist() == [True, False, True]


def test_the_share_of_the_chips_that_a_footprint_covers() -> None:
    west, south, east, north = shapely.MultiPolygon(CHIPS).bounds
    shapes = {
        100.0: shapely.box(west - 1, south - 1, east + 1, north + 1),
        0.0: shapely.box(west - 3, south, west - 2, north),
        50.0: CHIPS[0],
    }
    for expected, footprint in shapes.items():
        scene = item("HLS.S30.T13TDE.2022111T174859.v2.0", spatial_coverage=100)
        scene["geometry"] = shapely.geometry.mapping(footprint)
        rows = scene_rows([scene], "13TDE", no_document)
        assert rows["chip_coverage"][0] == pytest.approx(expected, abs=0.01)
    for nonsense in (None, {}, {"type": "Polygon", "coordinates": []}, {"type": "Nothing"}):
        scene["geometry"] = nonsense
        rows = scene_rows([scene], "13TDE", no_document)
        assert not rows["chip_coverage"].fillna(0).any()


SCENE = "HLS.S30.T13TDE.2022111T174859.v2.0"
NO_PERCENTAGES = [
    -9999,
    -1,
    100.5,
    255,
    float("nan"),
    float("inf"),
    10**400,
    "high",
    "NaN",
    "-9999",
    "1_5",
    "٤٢",
    True,
    [3],
    {},
]


@pytest.mark.parametrize("value", NO_PERCENTAGES, ids=lambda value: f"{value!r:.10}")
def test_a_percentage_of_an_item_that_is_none_is_refused_by_name(value: object) -> None:
    good = item(SCENE.replace("111", "121"), spatial_coverage=100)
    for what, field in (("cloud cover", "eo:cloud_cover"), ("spatial coverage", "spatial_coverage")):
        scene = item(SCENE, **{"spatial_coverage": 100, field: value}) | {"links": []}
        rows = scene_rows([scene, good], "13TDE", no_document).set_index("scene_id")
        row = rows.loc[SCENE]
        assert pd.isna(row[what.replace(" ", "_")])
        assert row["problem"] == f"{what} {value!r:.40} is not from 0 to 100"
        assert (rows.loc[good["id"], ["cloud_cover", "spatial_coverage"]] == [3, 100]).all()
        assert rows.loc[good["id"], "problem"] == ""


@pytest.mark.parametrize("value", [None, ""])
def test_a_percentage_that_is_not_given_is_unknown(value: object) -> None:
    scene = item(SCENE, **{"spatial_coverage": value, "eo:cloud_cover": value}) | {"links": None}
    row = scene_rows([scene], "13TDE", no_document).iloc[0]
    assert row[["cloud_cover", "spatial_coverage"]].isna().all()
    assert row["problem"] == ""


def test_what_an_item_says_wrongly_its_document_may_say() -> None:
    scene = item(SCENE, **{"eo:cloud_cover": -9999})
    row = scene_rows([scene], "13TDE", no_document, [record(SCENE, "88")]).iloc[0]
    assert (row["cloud_cover"], row["spatial_coverage"]) == (7, 88)
    assert row["problem"] == "cloud cover -9999 is not from 0 to 100"
    row = scene_rows([scene], "13TDE", no_document, [record(SCENE, "101")]).iloc[0]
    assert pd.isna(row["spatial_coverage"])
    assert row["problem"].endswith("to 100; spatial coverage '101' is not from 0 to 100")
    # what the item has of its own saves no request where the other is missing
    scene = item(SCENE, **{"eo:cloud_cover": None, "spatial_coverage": 96})
    row = scene_rows([scene], "13TDE", lambda url: json.dumps(record(SCENE, "88")).encode()).iloc[0]
    assert (row["cloud_cover"], row["spatial_coverage"]) == (7, 96)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([100_000_000, 20], 100_000_020),
        ([100_000_000, "20"], 100_000_020),
        ([100_000_000, None], 0),
        ([100_000_000, -1], 0),
        ([100_000_000, True], 0),
        ([float("nan")], 0),
        ([10**30], 0),
        ([1 << 39, 1 << 39, 1 << 39], 0),
        ([2.5], 0),
        ([[]], 0),
        ([], 0),
    ],
)
def test_the_size_of_a_granule_is_that_of_all_its_files_or_unknown(sizes: list, expected: int) -> None:
    found = record(SCENE, "88")
    found["umm"]["DataGranule"]["ArchiveAndDistributionInformation"] = [{"SizeInBytes": s} for s in sizes]
    row = scene_rows([item(SCENE)], "13TDE", no_document, [found]).iloc[0]
    assert (row["granule_bytes"], row["spatial_coverage"]) == (expected, 88)


ODD: list = [None, 5, "x", [], [None], [5], ["x"], {}, [{}], [{"Name": None}], {"a": None}]


@pytest.mark.parametrize("odd", ODD, ids=str)
@pytest.mark.parametrize(
    ("where", "lost"),
    [
        (("RelatedUrls",), set()),
        (("DataGranule",), {"granule_bytes"}),
        (("DataGranule", "ArchiveAndDistributionInformation"), {"granule_bytes"}),
        (("AdditionalAttributes",), {"spatial_coverage"}),
    ],
)
def test_an_odd_field_of_a_document_costs_its_own_value_alone(
    where: tuple[str, ...], lost: set[str], odd: object
) -> None:
    found = record(SCENE, "88", 1000)
    place = found["umm"]
    for name in where[:-1]:
        place = place[name]
    place[where[-1]] = odd
    row = scene_rows([item(SCENE)], "13TDE", no_document, [found]).iloc[0]
    expected = {"spatial_coverage": 88, "granule_bytes": 1000, "cloud_cover": 3, "missing_bands": ""}
    assert {name for name, value in expected.items() if row[name] != value} == lost
    assert row["B02_http"].endswith(f"{SCENE}.B02.tif")


def test_an_attribute_without_values_leaves_the_others() -> None:
    found = record(SCENE, "88")
    for odd in (
        {"Name": "A"},
        {"Name": "A", "Values": []},
        {"Name": "A", "Values": None},
        None,
        {"Values": ["1"]},
    ):
        found["umm"]["AdditionalAttributes"].insert(0, odd)
    assert scene_rows([item(SCENE)], "13TDE", no_document, [found])["spatial_coverage"][0] == 88


@pytest.mark.parametrize("field", ["properties", "assets", "links", "geometry", "collection", "bbox"])
@pytest.mark.parametrize("odd", [*ODD, "gone"], ids=str)
def test_an_odd_field_of_an_item_costs_no_other_scene_and_no_other_value(field: str, odd: object) -> None:
    others = [item(SCENE.replace("111", day), spatial_coverage=100) for day in ("101", "121")]
    scene = item(SCENE, spatial_coverage=97)
    scene[field] = odd
    if odd == "gone":
        del scene[field]
    rows = scene_rows([*others, scene], "13TDE", lambda url: json.dumps(record(SCENE, "88")).encode())
    assert list(rows["spatial_coverage"]) == [100, 88 if field == "properties" else 97, 100]
    assert list(rows["missing_bands"] == "") == [True, field != "assets", True]
    assert (rows["problem"] == "").all()
    assert rows["date"].notna().all()


@pytest.mark.parametrize(
    "asset", [None, "https://x/a.tif", [], {"href": None}, {"href": 5}, {"href": "http://[x"}]
)
def test_an_odd_asset_costs_its_own_link(asset: object) -> None:
    scene = item(SCENE, spatial_coverage=97)
    scene["assets"]["B03"] = asset
    row = scene_rows([scene], "13TDE", no_document).iloc[0]
    assert row["missing_bands"] == ("" if isinstance(asset, dict) else "B03")
    assert row["B03_s3"] == ""
    assert row["B02_s3"].startswith("s3://")


@pytest.mark.parametrize("coordinates", [[[[float("nan"), 1], [2, 1], [2, 2], [float("nan"), 1]]], [[]], "x"])
def test_a_footprint_that_is_none_leaves_the_share_of_the_chips_unknown(coordinates: object) -> None:
    scene = item(SCENE, spatial_coverage=97)
    scene["geometry"] = {"type": "Polygon", "coordinates": coordinates}
    row = scene_rows([scene], "13TDE", no_document).iloc[0]
    assert row["spatial_coverage"] == 97
    assert pd.isna(row["chip_coverage"])


@pytest.mark.parametrize("day", ["2021366", "2022000", "2022999", "0000001"])
def test_a_day_that_its_year_lacks_sets_an_item_aside(day: str) -> None:
    name = f"HLS.S30.T13TDE.{day}T174859.v2.0"
    rows = scene_rows([item(n, spatial_coverage=97) for n in (name, SCENE)], "13TDE", no_document)
    rows = rows.set_index("scene_id")
    assert rows.loc[name, "problem"].startswith("set aside: ")
    assert pd.isna(rows.loc[name, "date"])
    assert rows.loc[SCENE, "problem"] == ""


@pytest.mark.parametrize(
    "page", [b"<html><body>Oops</body></html>", b'{"errors": ["down"]}', b"{}", b"[]", b""]
)
def test_a_page_in_the_place_of_a_document_is_refused(page: bytes) -> None:
    with pytest.raises(IntegrityError, match="metadata document cannot be read"):
        parse_document(page)
