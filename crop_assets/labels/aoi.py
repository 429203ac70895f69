"""An area of interest: reading one, and which chip boxes it touches.

Belongs here: any vector file, in any CRS, with whatever polygons people draw. Does not: drawing one on a map
(`crop_assets.aoi_map`).
"""

import contextlib
import hashlib
import math
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray
from pyproj.exceptions import ProjError
from shapely import affinity
from shapely.errors import ShapelyError
from upath import UPath

from crop_assets.chip_grid import crs_text
from crop_assets.crs import LATITUDE_FIRST, looks_like, require_place
from crop_assets.errors import InputError
from crop_assets.polygons import make_valid
from resources.errors import IntegrityError
from resources.object_store import translated
from resources.parquet import MAX_FILE_BYTES, Parquet
from resources.vectors import open_vector

_WORLD = shapely.box(-180, -90, 180, 90)
_MOST_TURNS = 5
"""How often round the world longitudes may be counted; beyond it they are no degrees."""
_CLOSED = 1e-6
"""A line is closed if its ends are nearer than this share of its extent: coordinates are rounded, and reprojected."""
_POINT, _LINE, _RING, _POLYGON = range(4)
"""shapely's type ids of what a collection is made of."""
MAX_NEAR = 20_000_000
"""Pairs of a box and a polygon whose bounds share a point: 80 polygons over each of 250,000 boxes, all the country."""
_SAVE_IT = "save it in the CRS that its coordinates are in, such as EPSG:4326"


def read_aoi(path: str | Path) -> gpd.GeoDataFrame:
    """An area of interest from GeoJSON, GeoPackage, a shapefile, FlatGeobuf or KML (also zipped), all of its layers, or
    from GeoParquet; a local one, or one file of an object store (s3://...).

    GeoJSON is in EPSG:4326 unless it says otherwise.
    Raises InputError for a file that is not there, is not a vector file, has no CRS, or is in one that does not say
    where on Earth a place is.
    """
    try:
        with _local(path) as local:
            aoi = _geoparquet(local) if local.suffix.lower() == ".parquet" else _layers(local, path)
    except InputError:
        raise
    except (IntegrityError, ShapelyError, ProjError, OSError, KeyError, ValueError) as error:
        raise InputError(f"AOI {path} cannot be read: {error}") from None
    if aoi is None:
        raise InputError(f"AOI {path} has no geometry; give a file of polygons")
    if _has_geometry(aoi):
        _require_crs(aoi, f"AOI {path}")
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
    their own edges bow by under 2 m in degrees. Invalid polygons are repaired, and a closed line is its polygon. In
    degrees, a polygon may cross the antimeridian: with longitudes beyond 180, or with an edge of more than 180 degrees,
    which goes the short way round.

    Raises InputError for an AOI without CRS or area, for what `aoi_shapes` refuses, and for one that touches no box,
    with the bounds of both.
    """
    there, shapes = _in_crs(boxes, aoi)
    tree = shapely.STRtree(there)
    hits = touched(tree, shapes)
    if hits.size == 0:
        lies, reach = _rounded(shapely.total_bounds(shapes)), _rounded(shapely.total_bounds(there))
        raise InputError(
            f"the AOI touches no chip box: in {crs_text(aoi.crs)} the AOI lies within {lies}, "
            f"the {len(boxes)} boxes within {reach} (left, bottom, right, top){_hint(aoi, shapes, tree)}"
        )
    return boxes.iloc[hits].reset_index(drop=True)


def inside_aoi(boxes: gpd.GeoDataFrame, aoi: gpd.GeoDataFrame) -> NDArray[np.bool_]:
    """Which boxes `filter_aoi` would take, bool[n]; there may be none. Raises InputError otherwise as it does."""
    there, shapes = _in_crs(boxes, aoi)
    inside = np.zeros(len(boxes), bool)
    inside[touched(shapely.STRtree(there), shapes)] = True
    return inside


def aoi_shapes(aoi: gpd.GeoDataFrame) -> NDArray[np.object_]:
    """The polygons of an area of interest in its CRS, valid; in degrees, they lie from -180 to 180.

    A closed line is its polygon, also where it is in several pieces. Polygons without an area are left out.
    Raises InputError for points and open lines, for coordinates that are no numbers or, in a geographic CRS, no
    degrees, for a polygon around a pole, and as `make_valid`.
    """
    parts = _parts(shapely.force_2d(aoi.geometry.dropna().to_numpy()))
    if not np.isfinite(shapely.get_coordinates(parts)).all():
        raise InputError("the AOI has coordinates that are no finite numbers; draw or save it anew")
    geographic = aoi.crs is not None and aoi.crs.is_geographic
    if geographic:
        _require_degrees(aoi, parts)
    parts = _polygons(parts)
    if geographic:
        parts = np.array([_unrolled(part) for part in parts], dtype=object)
    valid = make_valid(parts)
    if geographic:
        valid = np.array([piece for shape in valid for piece in _within_the_world(shape)], dtype=object)
    valid = _parts(valid)
    # a spike of a polygon, or one without an area, becomes a line
    polygons: NDArray[np.object_] = valid[shapely.get_type_id(valid) == _POLYGON]
    return polygons


def touched(tree: shapely.STRtree, shapes: NDArray[np.object_]) -> NDArray[np.intp]:
    """Indices, ascending, of the geometries of `tree` that share a point with one of `shapes`.

    Raises InputError where so many of the shapes lie over one another that it would take minutes.
    """
    hit = np.zeros(len(tree.geometries), bool)
    looked_at = 0
    for shape in shapes:
        near = tree.query(shape)
        looked_at += len(near)
        if looked_at > MAX_NEAR:
            raise InputError("the AOI has too many polygons that lie over one another; join them into one")
        left = near[~hit[near]]
        shapely.prepare(shape)
        hit[left[shapely.intersects(shape, tree.geometries[left])]] = True
    return np.flatnonzero(hit)


def _geoparquet(local: Path) -> gpd.GeoDataFrame:
    frame = Parquet(local.read_bytes()).frame([])
    if not isinstance(frame, gpd.GeoDataFrame):
        raise InputError(f"AOI {local.name} is a Parquet file without geometry; give GeoParquet")
    return frame


@contextlib.contextmanager
def _local(path: str | Path) -> Iterator[Path]:
    """The file itself, or a copy of one in an object store."""
    with contextlib.ExitStack() as stack:
        if "://" in str(path):
            stack.enter_context(translated(str(path)))
        place = UPath(path)
        if place.is_file() and (size := place.stat().st_size) > MAX_FILE_BYTES:
            raise InputError(f"AOI {path} has {size:,} bytes; the most is {MAX_FILE_BYTES:,}")
        if "://" not in str(path):
            yield Path(path)
            return
        copy = Path(stack.enter_context(tempfile.TemporaryDirectory()), place.name)
        copy.write_bytes(place.read_bytes())
        yield copy


def _layers(local: Path, path: str | Path) -> gpd.GeoDataFrame | None:
    """The geometries of all layers in the CRS of the first that is not empty; None for a file without geometries."""
    with open_vector(local) as vector:
        names = [name for name, kind in vector.layers().items() if kind is not None]
        layers = [gpd.GeoDataFrame(vector.read(name)) for name in names]
    filled = {name: layer for name, layer in zip(names, layers, strict=True) if _has_geometry(layer)}
    if not filled:
        return layers[0] if layers else None
    for name, layer in filled.items():
        _require_crs(layer, f"AOI {path}" if len(names) == 1 else f"the layer {name!r} of AOI {path}")
    crs = next(iter(filled.values())).crs
    return gpd.GeoDataFrame(
        pd.concat([layer if layer.crs == crs else layer.to_crs(crs) for layer in filled.values()]), crs=crs
    )


def _in_crs(
    boxes: gpd.GeoDataFrame, aoi: gpd.GeoDataFrame
) -> tuple[NDArray[np.object_], NDArray[np.object_]]:
    """The squares of boxes in the CRS of an area of interest, and its polygons."""
    shapes = aoi_shapes(aoi)
    if shapes.size == 0:
        raise InputError("the AOI has no geometry with an area; give at least one polygon")
    _require_crs(aoi, "the AOI")
    try:
        there: NDArray[np.object_] = boxes.geometry.to_crs(aoi.crs).to_numpy()
    except ProjError as error:
        raise InputError(
            f"there is no way from EPSG:5070 to {crs_text(aoi.crs)} ({error}); {_SAVE_IT}"
        ) from None
    return there, shapes


def _has_geometry(aoi: gpd.GeoDataFrame) -> bool:
    shapes = aoi.geometry.to_numpy()
    return bool((~shapely.is_missing(shapes) & ~shapely.is_empty(shapes)).any())


def _require_crs(aoi: gpd.GeoDataFrame, what: str) -> None:
    if aoi.crs is None:
        raise InputError(f"{what} has no CRS; save it as GeoJSON in EPSG:4326, or with its CRS as GeoPackage")
    require_place(aoi.crs, what, _SAVE_IT)


def _require_degrees(aoi: gpd.GeoDataFrame, parts: NDArray[np.object_]) -> None:
    """Raise InputError for coordinates that cannot be degrees, as of a GeoJSON in metres that does not say so."""
    if parts.size == 0:
        return
    bounds = shapely.total_bounds(parts)
    if (np.abs(bounds) <= [360 * _MOST_TURNS, 90, 360 * _MOST_TURNS, 90]).all():
        return
    look = looks_like(bounds)
    code = re.search("EPSG:[0-9]+", look)
    if look == LATITUDE_FIRST:
        advice = "save it with longitude before latitude"
    elif code:
        member = f'"crs": {{"type": "name", "properties": {{"name": "{code[0]}"}}}}'
        advice = f"if they are, add {member} to a GeoJSON beside its features, or save it in EPSG:4326"
    else:
        advice = _SAVE_IT
    raise InputError(
        f"the coordinates of the AOI are not degrees, as they are in {crs_text(aoi.crs)} and in a GeoJSON that "
        f"names no CRS: they are within {_rounded(bounds)} (left, bottom, right, top)"
        f"{f', and look like {look}' if look else ''}; {advice}"
    )


def _hint(aoi: gpd.GeoDataFrame, shapes: NDArray[np.object_], boxes: shapely.STRtree) -> str:
    """What is likely to be wrong with an AOI that touches no box."""
    if aoi.crs.is_geographic:
        swapped = shapely.transform(shapes, lambda points: points[:, ::-1])
        return "; it would, with longitude before latitude" if touched(boxes, swapped).size else ""
    degrees = (np.abs(shapely.total_bounds(shapes)) <= [360, 90, 360, 90]).all()
    return "; its coordinates look like degrees: save it in EPSG:4326" if degrees else ""


def _parts(shapes: NDArray[np.object_]) -> NDArray[np.object_]:
    """Points, lines and polygons, of which collections and collections of collections consist; no empty ones."""
    while (shapely.get_type_id(shapes) > _POLYGON).any():
        shapes = shapely.get_parts(shapes)
    filled: NDArray[np.object_] = shapes[~shapely.is_empty(shapes)]
    return filled


def _polygons(parts: NDArray[np.object_]) -> NDArray[np.object_]:
    """Polygons, and those that closed lines go round. Raises InputError for points and for lines that stay open."""
    kinds = shapely.get_type_id(parts)
    rings, lines = _closed(parts[(kinds == _LINE) | (kinds == _RING)])
    more, lines = _closed(_parts(np.array([shapely.line_merge(shapely.MultiLineString(list(lines)))])))
    points = int((kinds == _POINT).sum())
    if points or len(lines):
        raise InputError(
            f"the AOI has geometries without an area (points: {points}, open lines: {len(lines)}); draw polygons, or "
            "lines that end where they start, and take out the rest"
        )
    return np.concatenate([parts[kinds == _POLYGON], rings, more])


def _closed(lines: NDArray[np.object_]) -> tuple[NDArray[np.object_], NDArray[np.object_]]:
    """The polygons of the lines that end where they start, and the other lines."""
    polygons, rest = [], []
    for line in lines:
        points = shapely.get_coordinates(line)
        gap = np.abs(points[-1] - points[0]).max()
        if len(points) >= 4 and gap <= _CLOSED * np.ptp(points, axis=0).max():
            polygons.append(shapely.Polygon([*points[:-1], points[0]]))
        else:
            rest.append(line)
    return np.array(polygons, dtype=object), np.array(rest, dtype=object)


def _within_the_world(shape: shapely.Geometry) -> list[shapely.Geometry]:
    """A valid geometry in degrees as pieces from -180 to 180, however far round its longitudes are counted."""
    left, _, right, _ = shapely.bounds(shape)
    if left >= -180 and right <= 180:
        return [shape]
    turns = range(math.floor((left + 180) / 360), math.ceil((right + 180) / 360) + 1)
    return [shapely.intersection(affinity.translate(shape, -360 * turn), _WORLD) for turn in turns]


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


def _rounded(bounds: NDArray[np.float64]) -> str:
    return f"({', '.join(f'{value:.7g}' for value in bounds)})"
