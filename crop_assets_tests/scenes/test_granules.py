import contextlib
import datetime as dt
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import pytest
import shapely

from crop_assets.grid import chip_outline
from crop_assets.scenes import granules
from crop_assets.scenes.granules import collection_of, document_url, parse_document, parse_scene_id
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
Rows = tuple[pd.DataFrame, list[str]]


def scene_rows(
    items: Sequence[dict],
    tile: str,
    fetch: Callable[[str], bytes],
    records: Sequence[dict] = (),
    sensors: Sequence[str] = ("S30",),
) -> Rows:
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


def test_a_scene_id_is_read_and_anything_else_refused() -> None:
    name = parse_scene_id("HLS.S30.T13TDE.2022111T174859.v2.0")
    assert (name.sensor, name.tile, name.version) == ("S30", "13TDE", "2.0")
    assert name.sensed == dt.datetime(2022, 4, 21, 17, 48, 59, tzinfo=dt.UTC)
    assert parse_scene_id("HLS.S30.T29QND.2019182.v1.5").sensed.date() == dt.date(2019, 7, 1)
    for text in ("../../etc/passwd", "HLS.S30.T13TDE.2022111T174859.v2.0/..", "", "HLS.S30.T13TDE"):
        with pytest.raises(IntegrityError, match="not an HLS scene id"):
            parse_scene_id(text)


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

    rows, aside = scene_rows([real_item], "14SMF", fetch)
    row = rows.iloc[0]
    assert asked == ["https://cmr.earthdata.nasa.gov/search/concepts/G2157704078-LPCLOUD.umm_json"]
    assert (row["cloud_cover"], row["spatial_coverage"], row["missing_bands"]) == (0, 98, "")
    assert row["date"] == dt.date(2021, 3, 3)
    assert row["B8A_http"].endswith("HLS.S30.T14SMF.2021062T172221.v2.0.B8A.tif")
    assert row["B8A_s3"].startswith("s3://lp-prod-protected/HLSS30.020/")
    assert aside == []


def test_neighbours_are_left_out_and_strange_ids_named() -> None:
    items = [item("HLS.S30.T13TDE.2022111T174859.v2.0", spatial_coverage=100)]
    items += [
        item("HLS.S30.T13TEE.2022111T174859.v2.0", spatial_coverage=100),
        item("../evil", spatial_coverage=100),
    ]
    rows, aside = scene_rows(items, "13TDE", lambda url: pytest.fail("no document is needed"))
    assert list(rows["tile"]) == ["13TDE"]
    assert len(aside) == 1
    assert "../evil" in aside[0]


def test_a_scene_with_a_missing_band_names_it_and_one_without_document_has_no_coverage() -> None:
    scene = item("HLS.S30.T13TDE.2022111T174859.v2.0")
    del scene["assets"]["B11"]

    def fetch(url: str) -> bytes:
        raise NotFoundError(url)

    rows, _ = scene_rows([scene], "13TDE", fetch)
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
    rows, _ = scene_rows([item(scene_id)], "13TDE", no_document, [record(scene_id, "88", 224_507_670)])
    row = rows.iloc[0]
    assert (row["spatial_coverage"], row["cloud_cover"], row["granule_bytes"]) == (88, 3, 224_507_670)
    assert row["B02_s3"] == f"s3://lp/{scene_id}/{scene_id}.B02.tif"


def test_a_scene_that_the_granule_search_does_not_know_has_its_own_document_read() -> None:
    scene_id = "HLS.S30.T13TDE.2022111T174859.v2.0"
    other = record("HLS.S30.T13TDE.2022121T174859.v2.0", "88")
    document = json.dumps(record(scene_id, "77")["umm"]).encode()
    rows, _ = scene_rows([item(scene_id)], "13TDE", lambda url: document, [other])
    assert list(rows["spatial_coverage"]) == [77]


def test_a_landsat_scene_is_one_of_the_recipe_alone_and_has_names_of_its_own() -> None:
    scene = item("HLS.L30.T13TDE.2022112T174002.v2.0", spatial_coverage=100)
    for ours, theirs in (("B8A", "B05"), ("B11", "B06"), ("B12", "B07")):
        scene["assets"][theirs] = {"href": scene["assets"].pop(ours)["href"].replace(ours, theirs)}
    rows, aside = scene_rows([scene], "13TDE", no_document)
    assert rows.empty
    assert aside == []
    rows, _ = scene_rows([scene], "13TDE", no_document, sensors=["S30", "L30"])
    assert rows["missing_bands"][0] == ""
    assert rows["B8A_http"][0].endswith("HLS.L30.T13TDE.2022112T174002.v2.0.B05.tif")
    assert collection_of(scene["id"]) == "HLSL30_2.0"


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
        rows, _ = scene_rows([scene], "13TDE", no_document)
        assert rows["chip_coverage"][0] == pytest.approx(expected, abs=0.01)
    for nonsense in (None, {}, {"type": "Polygon", "coordinates": []}, {"type": "Nothing"}):
        scene["geometry"] = nonsense
        rows, _ = scene_rows([scene], "13TDE", no_document)
        assert not rows["chip_coverage"].fillna(0).any()
