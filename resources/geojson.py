"""Reads GeoJSON without GDAL, which connects to any host that a `crs` member names, and assumes degrees if it does not
know the name of a CRS.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyproj
import shapely
from pyproj.exceptions import ProjError
from shapely.errors import ShapelyError

from resources.errors import IntegrityError
from resources.json_values import MALFORMED, mapping, objects, parse, text

MAX_VALUES = 10_000_000
"""Values in a document: about three million vertices."""
MAX_PARTS = 500_000
"""Parts of all geometries: one may have only three bytes, and takes a kilobyte of memory."""
_CRS_NAME = re.compile(
    r"(?:urn:(?:x-)?ogc:def:crs:|https?://www\.opengis\.net/def/crs/)?"
    r"(?P<authority>EPSG|ESRI|OGC)[:/](?:[\d.]*[:/])?(?P<code>[A-Za-z0-9]{1,20})",
    re.ASCII | re.IGNORECASE,
)
_LON_LAT = {("OGC", "CRS84"), ("EPSG", "4326")}
_GEOMETRIES = (
    "Point",
    "LineString",
    "Polygon",
    "MultiPoint",
    "MultiLineString",
    "MultiPolygon",
    "GeometryCollection",
)


class GeoJson:
    """A FeatureCollection, a Feature or a geometry, as one layer. Its CRS is EPSG:4326 unless a `crs` member names one.

    Raises IntegrityError if it is not GeoJSON, or its CRS is not given by an authority and a code.
    """

    def __init__(self, data: bytes, name: str) -> None:
        try:
            document = mapping(parse(data.decode("utf-8-sig"), MAX_VALUES))
        except ValueError as error:
            raise IntegrityError(f"it is not GeoJSON: {error}") from None
        self._name = name
        self._features = _features(document)
        self._crs = named_crs(document.get("crs"))

    def layers(self) -> dict[str, str | None]:
        return {self._name: "Unknown"}

    def columns(self, layer: str) -> list[str]:
        return list(dict.fromkeys(name for one in self._features for name in mapping(one.get("properties"))))

    def read(self, layer: str, columns: Sequence[str] = ()) -> gpd.GeoDataFrame:
        properties = [mapping(one.get("properties")) for one in self._features]
        if (parts := sum(_parts(one.get("geometry")) for one in self._features)) > MAX_PARTS:
            raise IntegrityError(f"its geometries have {parts:,} parts; the most is {MAX_PARTS:,}")
        shapes = [_shape(number, one.get("geometry")) for number, one in enumerate(self._features, start=1)]
        return gpd.GeoDataFrame(
            {name: pd.Series([one.get(name) for one in properties], dtype=object) for name in columns},
            geometry=np.array(shapes, dtype=object),
            crs=self._crs,
        )


def named_crs(member: Any) -> pyproj.CRS:
    """The CRS of a `crs` member, by its code of EPSG, ESRI or OGC; EPSG:4326 if there is no such member.

    Raises IntegrityError for anything else: PROJ also accepts paths, and parameters that name files.
    """
    if not member:
        return pyproj.CRS.from_epsg(4326)
    name = mapping(mapping(member).get("properties")).get("name")
    found = _CRS_NAME.fullmatch(name) if isinstance(name, str) else None
    if found:
        authority, code = found["authority"].upper(), found["code"].upper()
        try:
            return pyproj.CRS.from_authority(
                *("EPSG", "4326") if (authority, code) in _LON_LAT else (authority, code)
            )
        except ProjError:
            pass
    shown = name if isinstance(name, str) else json.dumps(member)
    raise IntegrityError(f"its CRS is {shown[:200]}, which is not a code that PROJ knows, such as EPSG:4326")


def _features(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    kind = document.get("type")
    if kind in _GEOMETRIES:
        return [{"geometry": document}]
    if kind == "Feature":
        return [document]
    features = document.get("features")
    if kind != "FeatureCollection" or not isinstance(features, list):
        raise IntegrityError("it is not GeoJSON, such as a FeatureCollection")
    return [mapping(feature) for feature in features]


def _parts(geometry: Any) -> int:
    """The number of parts in a geometry."""
    found = mapping(geometry)
    coordinates = found.get("coordinates")
    several = (
        len(coordinates)
        if isinstance(coordinates, list) and text(found.get("type")).lower().startswith("multi")
        else 0
    )
    return several + sum(1 + _parts(one) for one in objects(found.get("geometries")))


def _shape(number: int, geometry: Any) -> shapely.Geometry | None:
    if geometry is None:
        return None
    try:
        return shapely.geometry.shape(geometry)
    except (ShapelyError, *MALFORMED) as error:
        raise IntegrityError(f"the geometry of feature {number} cannot be read: {error}") from None
