"""An area of interest: reading one, and which chip boxes it touches.

Belongs here: any vector file, in any CRS, with whatever polygons people draw. Does not: drawing one on a map
(`crop_assets.aoi_map`).
"""

import hashlib
import io
import math
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyogrio
import shapely
from numpy.typing import NDArray
from shapely import affinity
from shapely.errors import ShapelyError
from upath import UPath

from crop_assets.errors import InputError

_WORLD = shapely.box(-180, -90, 180, 90)


def read_aoi(path: str | Path) -> gpd.GeoDataFrame:
    """An area of interest from any vector file that GDAL reads, all of its layers, or from GeoParquet; a local one, or
    one file of an object store (s3://...).

    GeoJSON is in EPSG:4326 unless it says otherwise.
    Raises InputError for a file that is not there, is not a vector file, or has no CRS.
    """
    try:
        if str(path).lower().endswith(".parquet"):
            aoi = gpd.read_parquet(path)
        else:
            # a shapefile is several files, which GDAL finds by their path alone
            source = io.BytesIO(UPath(path).read_bytes()) if "://" in str(path) else path
            aoi = _layers(source)
    except (
        pyogrio.errors.DataSourceError,
        pyogrio.errors.DataLayerError,
        ShapelyError,
        OSError,
        KeyError,
        ValueError,
    ) as error:
        raise InputError(f"AOI {path} cannot be read: {error}") from None
    if aoi is None:
        raise InputError(f"AOI {path} has no geometry; give a file of polygons")
    if aoi.crs is None:
        raise InputError(
            f"AOI {path} has no CRS; save it as GeoJSON in EPSG:4326, or with its CRS as GeoPackage"
        )
    return aoi


def aoi_checksum(aoi: gpd.GeoDataFrame) -> str:
    """SHA-256 of an area's CRS and geometries, in hex, whatever file they were read from."""
    digest = hashlib.sha256(aoi.crs.to_wkt().encode())
    for shape in aoi.geometry:
        digest.update(shapely.to_wkb(shape, byte_order=1) if shape is not None else b"none")
    return digest.hexdigest()


def filter_aoi(boxes: gpd.GeoDataFrame, aoi: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """The boxes that share at least a point with an area of interest, in their order.

    `aoi` may be in any CRS, in which its edges are straight: the boxes are taken there by their corners, between which
    their own edges bow by under 2 m in degrees. Invalid polygons are repaired. In degrees, a polygon may cross the
    antimeridian: with longitudes beyond 180, or with an edge of more than 180 degrees, which goes the short way round.

    Raises InputError for an AOI without CRS or geometry, and for one that touches no box, with the bounds of both.
    """
    if aoi.crs is None:
        raise InputError("the AOI has no CRS; set the one that its coordinates are in")
    shapes = aoi_shapes(aoi)
    if shapes.size == 0:
        raise InputError("the AOI has no geometry; give at least one polygon")
    there = boxes.geometry.to_crs(aoi.crs)
    hits = touched(shapely.STRtree(there.to_numpy()), shapes)
    if hits.size == 0:
        lies, reach = _rounded(shapely.total_bounds(shapes)), _rounded(there.total_bounds)
        raise InputError(
            f"the AOI touches no chip box: in {_short(aoi)} the AOI lies within {lies}, "
            f"the {len(boxes)} boxes within {reach} (left, bottom, right, top)"
        )
    return boxes.iloc[hits].reset_index(drop=True)


def aoi_shapes(aoi: gpd.GeoDataFrame) -> NDArray[np.object_]:
    """The valid geometries of an area of interest in its CRS; in degrees, they lie from -180 to 180.

    Raises InputError for coordinates that are no numbers, and for a polygon around a pole.
    """
    parts: NDArray[np.object_] = shapely.force_2d(aoi.geometry.dropna().to_numpy())
    # collections may hold collections
    while (shapely.get_type_id(parts) > shapely.GeometryType.POLYGON).any():
        parts = shapely.get_parts(parts)
    parts = parts[~shapely.is_empty(parts)]
    if not np.isfinite(shapely.get_coordinates(parts)).all():
        raise InputError("the AOI has coordinates that are no finite numbers; draw or save it anew")
    if aoi.crs is not None and aoi.crs.is_geographic:
        pieces = [piece for part in parts for piece in _within_the_world(part)]
        parts = np.array(pieces, dtype=object)
    valid: NDArray[np.object_] = shapely.make_valid(parts)
    return valid[~shapely.is_empty(valid)]


def touched(tree: shapely.STRtree, shapes: NDArray[np.object_]) -> NDArray[np.intp]:
    """Indices, ascending, of the geometries of `tree` that share a point with one of `shapes`."""
    hits: NDArray[np.intp] = np.unique(tree.query(shapes, predicate="intersects")[1])
    return hits


def _layers(source: Any) -> gpd.GeoDataFrame | None:
    """The geometries of all layers in the CRS of the first; None where there are none."""
    names = [str(name) for name, kind in pyogrio.list_layers(source) if kind is not None]
    layers = [pyogrio.read_dataframe(source, layer=name, columns=[]) for name in names]
    if not layers:
        return None
    crs = layers[0].crs
    return gpd.GeoDataFrame(
        pd.concat([layer if layer.crs == crs else layer.to_crs(crs) for layer in layers]), crs=crs
    )


def _within_the_world(shape: shapely.Geometry) -> list[shapely.Geometry]:
    """A geometry in degrees as pieces from -180 to 180, however far round its longitudes are counted."""
    if isinstance(shape, shapely.Polygon):
        shape = _unrolled(shape)
    left, _, right, _ = shapely.bounds(shape)
    if left >= -180 and right <= 180:
        return [shape]
    turns = range(math.floor((left + 180) / 360), math.ceil((right + 180) / 360) + 1)
    whole = shapely.make_valid(shape)
    return [shapely.intersection(affinity.translate(whole, -360 * turn), _WORLD) for turn in turns]


def _unrolled(polygon: shapely.Polygon) -> shapely.Polygon:
    """The polygon with its longitudes counted on where an edge of more than 180 degrees goes the short way round.

    An edge of 360 degrees goes all the way round, as in a box of the whole world.
    """
    rings = [shapely.get_coordinates(ring) for ring in (polygon.exterior, *polygon.interiors)]
    if not any(_goes_short(ring).any() for ring in rings):
        return polygon
    for ring in rings:
        steps = np.where(_goes_short(ring), -360 * np.sign(np.diff(ring[:, 0])), 0)
        ring[1:, 0] += np.cumsum(steps)
        if ring[0, 0] != ring[-1, 0]:
            raise InputError("a polygon of the AOI goes round a pole; cut it at the antimeridian")
    shell, *holes = rings
    for hole in holes:
        hole[:, 0] += 360 * np.round((shell[:, 0].mean() - hole[:, 0].mean()) / 360)
    return shapely.Polygon(shell, holes)


def _goes_short(ring: NDArray[np.float64]) -> NDArray[np.bool_]:
    step = np.abs(np.diff(ring[:, 0]))
    short: NDArray[np.bool_] = (step > 180) & (step < 360)
    return short


def _short(aoi: gpd.GeoDataFrame) -> str:
    code = aoi.crs.to_epsg()
    return f"EPSG:{code}" if code else f"the CRS {aoi.crs.name!r}"


def _rounded(bounds: NDArray[np.float64]) -> str:
    return f"({', '.join(f'{value:.7g}' for value in bounds)})"
