"""Validates a drawn area, GeoJSON from the page or a file, and serializes it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import geopandas as gpd
import shapely

from crop_assets.errors import InputError

MAX_BYTES = 4_000_000
MAX_VERTICES = 10_000

_DIGITS = 7
"""Decimal places of coordinates in degrees: 1 cm."""
_LONLAT_CRS = {
    "EPSG:4326",
    "urn:ogc:def:crs:EPSG::4326",
    "urn:ogc:def:crs:OGC:1.3:CRS84",
    "urn:ogc:def:crs:OGC::CRS84",
}

Ring = list[list[float]]


@dataclass(frozen=True)
class Drawing:
    """GeoJSON features of Polygons and MultiPolygons in longitude and latitude (WGS 84) by RFC 7946, with outer rings
    counterclockwise, holes clockwise, and coordinates of seven decimals. Properties are kept.
    """

    features: list[dict[str, Any]]

    def frame(self) -> gpd.GeoDataFrame:
        """The polygons in EPSG:4326, one row per feature, exactly as `read_aoi` reads them from the saved file."""
        shapes = [shapely.geometry.shape(feature["geometry"]) for feature in self.features]
        return gpd.GeoDataFrame(geometry=shapes, crs=4326)

    def to_bytes(self) -> bytes:
        """A FeatureCollection, one feature per line. The same drawing gives the same bytes."""
        body = ",\n".join(json.dumps(feature) for feature in self.features)
        return f'{{"type": "FeatureCollection", "features": [\n{body}\n]}}\n'.encode()


def read_drawing(data: bytes) -> Drawing:
    """Read a drawing from a GeoJSON FeatureCollection, which may be empty.

    Raises InputError if it is not a FeatureCollection, is in another CRS, has anything but polygons, or exceeds
    `MAX_BYTES` or `MAX_VERTICES`. Self-intersecting polygons are allowed, and are repaired when they are used.
    """
    if len(data) > MAX_BYTES:
        raise InputError(f"{len(data):,} bytes of GeoJSON are too many; the limit is {MAX_BYTES:,}")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"it is not JSON: {error}") from None
    features = document.get("features") if isinstance(document, dict) else None
    if not isinstance(features, list) or document.get("type") != "FeatureCollection":
        raise InputError("it is not a GeoJSON FeatureCollection")
    crs = document.get("crs")
    if crs is not None:
        properties = crs.get("properties") if isinstance(crs, dict) else None
        name = properties.get("name") if isinstance(properties, dict) else None
        if name not in _LONLAT_CRS:
            raise InputError(f"it is in the CRS {name!r}; it must be in longitude and latitude (EPSG:4326)")
    drawing = Drawing([_feature(number, feature) for number, feature in enumerate(features, start=1)])
    vertices = sum(len(ring) for feature in drawing.features for ring in _rings(feature["geometry"]))
    if vertices > MAX_VERTICES:
        raise InputError(f"{vertices:,} vertices are too many; the limit is {MAX_VERTICES:,}")
    return drawing


def _feature(number: int, feature: Any) -> dict[str, Any]:
    geometry = feature.get("geometry") if isinstance(feature, dict) else None
    if not isinstance(geometry, dict) or geometry.get("type") not in ("Polygon", "MultiPolygon"):
        raise InputError(f"feature {number} is not a Polygon or MultiPolygon")
    kind = geometry["type"]
    properties = feature.get("properties") or {}
    try:
        if not isinstance(properties, dict):
            raise ValueError("its properties are not an object")
        # Python reads and writes NaN and Infinity, but they are not JSON
        json.dumps(properties, allow_nan=False)
        read = _polygon if kind == "Polygon" else lambda polygons: [_polygon(one) for one in _list(polygons)]
        coordinates = read(geometry["coordinates"])
    except (KeyError, ValueError, RecursionError) as error:
        raise InputError(f"feature {number} cannot be used: {error}") from None
    return {
        "type": "Feature",
        "properties": properties,
        "geometry": {"type": kind, "coordinates": coordinates},
    }


def _polygon(rings: Any) -> list[Ring]:
    read = [_ring(ring) for ring in _list(rings)]
    for index, ring in enumerate(read):
        # the first ring is the outer one
        if shapely.is_ccw(shapely.linearrings(ring)) == bool(index):
            ring.reverse()
    return read


def _ring(positions: Any) -> Ring:
    ring = [_position(position) for position in _list(positions)]
    if len(ring) < 4 or ring[0] != ring[-1]:
        raise ValueError("a ring must have at least four positions and end where it starts")
    return ring


def _position(position: Any) -> list[float]:
    lon, lat = _list(position)[:2]
    for value, limit in ((lon, 360), (lat, 90)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not -limit <= value <= limit:
            raise ValueError(f"{str(position)[:60]} is not a longitude and a latitude")
    # adding 0 turns -0.0 into 0.0
    return [round(float(lon), _DIGITS) + 0.0, round(float(lat), _DIGITS) + 0.0]


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{str(value)[:60]} is not a list of coordinates")
    return value


def _rings(geometry: dict[str, Any]) -> Iterator[Ring]:
    polygons = [geometry["coordinates"]] if geometry["type"] == "Polygon" else geometry["coordinates"]
    for polygon in polygons:
        yield from polygon
