import copy
import json
from pathlib import Path
from typing import Any

import pytest
import shapely

from crop_assets.aoi_map.drawing import MAX_BYTES, MAX_VERTICES, read_drawing
from crop_assets.errors import InputError
from crop_assets.labels.aoi import read_aoi
from crop_assets_tests.aoi_map.conftest import collection, rectangle


def encoded(document: Any) -> bytes:
    return json.dumps(document).encode()


def test_the_same_drawing_gives_the_same_bytes_which_read_as_it() -> None:
    square = collection(rectangle(-99.123456789, 38, -98, 39.00000001))
    data = read_drawing(encoded(square)).to_bytes()
    assert (
        data
        == read_drawing(json.dumps(square, indent=3).encode()).to_bytes()
        == read_drawing(data).to_bytes()
    )
    ring = json.loads(data)["features"][0]["geometry"]["coordinates"][0]
    assert ring[0] == [-99.1234568, 38.0] and ring[2] == [-98.0, 39.0]


def test_rings_are_oriented_as_in_rfc_7946() -> None:
    outer, hole = rectangle(-100, 37, -98, 39), rectangle(-99.5, 37.5, -98.5, 38.5)
    drawn = collection(outer[::-1])
    drawn["features"][0]["geometry"]["coordinates"].append([list(position) for position in hole])
    rings = json.loads(read_drawing(encoded(drawn)).to_bytes())["features"][0]["geometry"]["coordinates"]
    assert [shapely.LinearRing(ring).is_ccw for ring in rings] == [True, False]
    assert shapely.Polygon(rings[0], rings[1:]).area == 3


def test_several_polygons_properties_and_heights_are_read(tmp_path: Path) -> None:
    document = {
        "type": "FeatureCollection",
        "crs": {"type": "name", "properties": {"name": "urn:ogc:def:crs:OGC:1.3:CRS84"}},
        "features": [
            {
                "type": "Feature",
                "properties": {"county": "Saline"},
                "geometry": {
                    "type": "MultiPolygon",
                    "coordinates": [
                        [[[*xy, 12.5] for xy in rectangle(w, 38, w + 1, 39)]] for w in (-99, -97)
                    ],
                },
            }
        ],
    }
    drawing = read_drawing(encoded(document))
    assert drawing.features[0]["properties"] == {"county": "Saline"}
    path = tmp_path / "aoi.geojson"
    path.write_bytes(drawing.to_bytes())
    read = read_aoi(path)
    assert read.crs.to_epsg() == 4326
    assert read.geometry[0].equals(drawing.frame().geometry[0]) and read.geometry[0].area == 2


def test_a_collection_may_be_empty() -> None:
    drawing = read_drawing(encoded(collection()))
    assert len(drawing.frame()) == 0 and drawing.frame().crs.to_epsg() == 4326


def test_a_polygon_that_crosses_itself_is_kept_as_drawn() -> None:
    bow_tie = [(-99, 38), (-98, 39), (-98, 38), (-99, 39), (-99, 38)]
    (shape,) = read_drawing(encoded(collection(bow_tie))).frame().geometry
    assert not shape.is_valid and set(shape.exterior.coords) == set(bow_tie)


def changed(path: str, value: Any) -> dict[str, Any]:
    """A valid collection with one change."""
    document: Any = copy.deepcopy(collection(rectangle(-99, 38, -98, 39)))
    *way, last = path.split(".")
    place = document
    for step in way:
        place = place[int(step) if step.isdecimal() else step]
    place[int(last) if last.isdecimal() else last] = value
    result: dict[str, Any] = document
    return result


RING = "features.0.geometry.coordinates.0"


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ([1], "not a GeoJSON FeatureCollection"),
        (changed("type", "Feature"), "not a GeoJSON FeatureCollection"),
        (changed("features", {}), "not a GeoJSON FeatureCollection"),
        (changed("crs", {"type": "name", "properties": {"name": "EPSG:5070"}}), "in the CRS 'EPSG:5070'"),
        (changed("crs", "EPSG:4326"), "in the CRS None"),
        (changed("features.0", None), "feature 1 is not a Polygon"),
        (changed("features.0.geometry", None), "feature 1 is not a Polygon"),
        (changed("features.0.geometry.type", "Point"), "feature 1 is not a Polygon"),
        (changed("features.0.properties", [1]), "its properties are not an object"),
        (changed("features.0.properties", {"a": float("nan")}), "feature 1 cannot be used"),
        (changed("features.0.geometry.coordinates", []), "not a list of coordinates"),
        (changed("features.0.geometry", {"type": "Polygon"}), "feature 1 cannot be used: 'coordinates'"),
        (changed(RING, [[-99, 38], [-98, 38], [-99, 38]]), "four positions"),
        (changed(f"{RING}.0", [-99, 38.5]), "end where it starts"),
        (changed(f"{RING}.1", [-98]), "feature 1 cannot be used"),
        (changed(f"{RING}.1", ["-98", 38]), "not a longitude"),
        (changed(f"{RING}.1", [True, 38]), "not a longitude"),
        (changed(f"{RING}.1", [float("nan"), 38]), "not a longitude"),
        (changed(f"{RING}.1", [float("inf"), 38]), "not a longitude"),
        (changed(f"{RING}.1", [10**400, 38]), "not a longitude"),
        (changed(f"{RING}.1", [-2_356_095.0, 3_172_605.0]), "not a longitude"),
    ],
)
def test_geojson_that_is_not_a_drawing_is_refused(document: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        read_drawing(encoded(document))


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe\x00", b"[" * 200_000])
def test_a_file_that_is_not_json_is_refused(data: bytes) -> None:
    with pytest.raises(InputError, match="it is not JSON"):
        read_drawing(data)


def test_size_is_bounded() -> None:
    with pytest.raises(InputError, match="bytes of GeoJSON are too many"):
        read_drawing(b" " * (MAX_BYTES + 1))
    many = [(-99 + i * 1e-5, 38.0) for i in range(MAX_VERTICES)]
    with pytest.raises(InputError, match="10,001 vertices are too many"):
        read_drawing(encoded(collection([*many, many[0]])))
    assert read_drawing(encoded(collection([*many[:-1], many[0]])))
