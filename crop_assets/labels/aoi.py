"""An area of interest: reading one, and which chip boxes it touches.

Belongs here: any vector file, in any CRS, with whatever polygons people draw. Does not: drawing one on a map
(`crop_assets.aoi_map`).
"""

import io
from pathlib import Path

import antimeridian
import geopandas as gpd
import numpy as np
import pyogrio
import shapely
from numpy.typing import NDArray
from shapely.errors import ShapelyError
from upath import UPath

from crop_assets.errors import InputError


def read_aoi(path: str | Path) -> gpd.GeoDataFrame:
    """An area of interest from any vector file that GDAL reads, a local one or one file of an object store (s3://...).

    GeoJSON is in EPSG:4326 unless it says otherwise.
    Raises InputError for a file that is not there, is not a vector file, or has no CRS.
    """
    try:
        # a shapefile is several files, which GDAL finds by their path alone
        source = io.BytesIO(UPath(path).read_bytes()) if "://" in str(path) else path
        aoi = pyogrio.read_dataframe(source, columns=[])
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, ShapelyError, OSError) as error:
        raise InputError(f"AOI {path} cannot be read: {error}") from None
    if not isinstance(aoi, gpd.GeoDataFrame):
        raise InputError(f"AOI {path} has no geometry; give a file of polygons")
    if aoi.crs is None:
        raise InputError(
            f"AOI {path} has no CRS; save it as GeoJSON in EPSG:4326, or with its CRS as GeoPackage"
        )
    return aoi


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
    """The valid geometries of an area of interest in its CRS; in degrees, none of them crosses the antimeridian."""
    shapes = aoi.geometry[~(aoi.geometry.isna() | aoi.geometry.is_empty)]
    parts = shapes.force_2d().explode(ignore_index=True).to_numpy()
    if aoi.crs is not None and aoi.crs.is_geographic:
        parts = np.array([_cut(part) for part in parts], dtype=object)
    valid: NDArray[np.object_] = shapely.make_valid(parts)
    return valid[~shapely.is_empty(valid)]


def touched(tree: shapely.STRtree, shapes: NDArray[np.object_]) -> NDArray[np.intp]:
    """Indices, ascending, of the geometries of `tree` that share a point with one of `shapes`."""
    hits: NDArray[np.intp] = np.unique(tree.query(shapes, predicate="intersects")[1])
    return hits


def _cut(shape: shapely.Geometry) -> shapely.Geometry:
    left, _, right, _ = shapely.bounds(shape)
    if not isinstance(shape, shapely.Polygon) or (left >= -180 and right <= 180 and right - left <= 180):
        return shape
    try:
        return antimeridian.fix_polygon(shape, fix_winding=True, great_circle=False)
    except (ValueError, ShapelyError) as error:
        raise InputError(
            f"a polygon of the AOI from longitude {left:.6g} to {right:.6g} cannot be cut at the antimeridian: {error}"
        ) from None


def _short(aoi: gpd.GeoDataFrame) -> str:
    code = aoi.crs.to_epsg()
    return f"EPSG:{code}" if code else f"the CRS {aoi.crs.name!r}"


def _rounded(bounds: NDArray[np.float64]) -> str:
    return f"({', '.join(f'{value:.7g}' for value in bounds)})"
