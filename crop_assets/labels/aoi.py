"""Reads an area of interest from a vector file in any CRS, and finds the chip boxes that it touches."""

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
_MAX_TURNS = 5
"""Longitudes may wrap around the world this often; larger values are not degrees."""
_CLOSING_TOLERANCE = 1e-6
"""A line is closed if the gap between its ends is at most this fraction of its extent: coordinates get rounded and
reprojected."""
_POINT, _LINE, _RING, _POLYGON = range(4)
"""shapely's type ids of simple geometries."""
MAX_CANDIDATE_PAIRS = 20_000_000
"""Pairs of a box and a polygon whose bounds intersect: 80 polygons over each of the 250,000 boxes of the country."""
_SAVE_IT = "save it in the CRS that its coordinates are in, such as EPSG:4326"


def read_aoi(path: str | Path) -> gpd.GeoDataFrame:
    """Read all layers of an area of interest from GeoJSON, GeoPackage, a shapefile, FlatGeobuf or KML (also zipped), or
    from GeoParquet. The file may be local or in an object store (s3://...).

    GeoJSON is in EPSG:4326 unless it names another CRS.
    Raises InputError if the file does not exist, is not a vector file, has no CRS, or has a CRS that is not tied to
    the Earth.
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
    """SHA-256 of an area's CRS and geometries, in hex; it does not depend on the file format."""
    digest = hashlib.sha256(aoi.crs.to_wkt().encode())
    for shape in aoi.geometry:
        digest.update(shapely.to_wkb(shape, byte_order=1) if shape is not None else b"none")
    return digest.hexdigest()


def filter_aoi(boxes: gpd.GeoDataFrame, aoi: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """The boxes that intersect an area of interest (a shared point is enough), in their order.

    `aoi` may be in any CRS, and its edges are straight in that CRS. The corners of the boxes are transformed to it; in
    degrees, ignoring the curvature of their edges costs less than 2 m. Invalid polygons are repaired, and a closed line
    counts as a polygon. In degrees, a polygon may cross the antimeridian: its longitudes may exceed 180, and an edge of
    more than 180 degrees takes the short way round.

    Raises InputError if the AOI has no CRS or no area, if `aoi_shapes` rejects it, and if it touches no box. The
    message then shows the bounds of both.
    """
    there, shapes = _in_crs(boxes, aoi)
    tree = shapely.STRtree(there)
    hits = touched(tree, shapes)
    if hits.size == 0:
        bounds, reach = _rounded(shapely.total_bounds(shapes)), _rounded(shapely.total_bounds(there))
        raise InputError(
            f"the AOI touches no chip box: in {crs_text(aoi.crs)} the bounds of the AOI are {bounds}, "
            f"those of the {len(boxes)} boxes {reach} (left, bottom, right, top){_hint(aoi, shapes, tree)}"
        )
    return boxes.iloc[hits].reset_index(drop=True)


def inside_aoi(boxes: gpd.GeoDataFrame, aoi: gpd.GeoDataFrame) -> NDArray[np.bool_]:
    """Which boxes `filter_aoi` would return, bool[n]. Raises the same errors, but not if no box is touched."""
    there, shapes = _in_crs(boxes, aoi)
    inside = np.zeros(len(boxes), bool)
    inside[touched(shapely.STRtree(there), shapes)] = True
    return inside


def aoi_shapes(aoi: gpd.GeoDataFrame) -> NDArray[np.object_]:
    """The valid polygons of an area of interest, in its CRS; in degrees, between -180 and 180.

    A closed line, even one in several pieces, counts as a polygon. Polygons without an area are dropped.
    Raises InputError for points and open lines, for coordinates that are not finite or, in a geographic CRS, not
    degrees, for a polygon around a pole, and whenever `make_valid` does.
    """
    parts = _parts(shapely.force_2d(aoi.geometry.dropna().to_numpy()))
    if not np.isfinite(shapely.get_coordinates(parts)).all():
        raise InputError("the AOI has coordinates that are not finite; draw or save it again")
    geographic = aoi.crs is not None and aoi.crs.is_geographic
    if geographic:
        _require_degrees(aoi, parts)
    parts = _polygons(parts)
    if geographic:
        parts = np.array([_unrolled(part) for part in parts], dtype=object)
    valid = make_valid(parts)
    if geographic:
        valid = np.array([piece for shape in valid for piece in _wrapped_pieces(shape)], dtype=object)
    valid = _parts(valid)
    # a spike of a polygon, or one without an area, becomes a line
    polygons: NDArray[np.object_] = valid[shapely.get_type_id(valid) == _POLYGON]
    return polygons


def touched(tree: shapely.STRtree, shapes: NDArray[np.object_]) -> NDArray[np.intp]:
    """Indices, ascending, of the geometries of `tree` that intersect one of `shapes`.

    Raises InputError if so many shapes overlap that this would take minutes.
    """
    hit = np.zeros(len(tree.geometries), bool)
    pairs = 0
    for shape in shapes:
        near = tree.query(shape)
        pairs += len(near)
        if pairs > MAX_CANDIDATE_PAIRS:
            raise InputError("the AOI has too many overlapping polygons; merge them into one")
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
    """The path of the file, or of a temporary copy if it is in an object store."""
    with contextlib.ExitStack() as stack:
        if "://" in str(path):
            stack.enter_context(translated(str(path)))
        source = UPath(path)
        if source.is_file() and (size := source.stat().st_size) > MAX_FILE_BYTES:
            raise InputError(f"AOI {path} has {size:,} bytes; the limit is {MAX_FILE_BYTES:,}")
        if "://" not in str(path):
            yield Path(path)
            return
        copy = Path(stack.enter_context(tempfile.TemporaryDirectory()), source.name)
        copy.write_bytes(source.read_bytes())
        yield copy


def _layers(local: Path, path: str | Path) -> gpd.GeoDataFrame | None:
    """The geometries of all layers, in the CRS of the first that is not empty; None if the file has no geometries."""
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
            f"EPSG:5070 cannot be transformed to {crs_text(aoi.crs)} ({error}); {_SAVE_IT}"
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
    """Raise InputError if the coordinates cannot be degrees, as in a GeoJSON in metres that does not name its CRS."""
    if parts.size == 0:
        return
    bounds = shapely.total_bounds(parts)
    if (np.abs(bounds) <= [360 * _MAX_TURNS, 90, 360 * _MAX_TURNS, 90]).all():
        return
    look = looks_like(bounds)
    code = re.search("EPSG:[0-9]+", look)
    if look == LATITUDE_FIRST:
        advice = "save it with longitude before latitude"
    elif code:
        member = f'"crs": {{"type": "name", "properties": {{"name": "{code[0]}"}}}}'
        advice = f"if they are, add {member} to the GeoJSON at its top level, or save it in EPSG:4326"
    else:
        advice = _SAVE_IT
    raise InputError(
        f"the coordinates of the AOI are not degrees, although {crs_text(aoi.crs)}, the CRS of any GeoJSON that names "
        f"no other, has degrees: their bounds are {_rounded(bounds)} (left, bottom, right, top)"
        f"{f', and look like {look}' if look else ''}; {advice}"
    )


def _hint(aoi: gpd.GeoDataFrame, shapes: NDArray[np.object_], boxes: shapely.STRtree) -> str:
    """What is likely to be wrong with an AOI that touches no box."""
    if aoi.crs.is_geographic:
        swapped = shapely.transform(shapes, lambda points: points[:, ::-1])
        return "; it would with longitude before latitude" if touched(boxes, swapped).size else ""
    degrees = (np.abs(shapely.total_bounds(shapes)) <= [360, 90, 360, 90]).all()
    return "; its coordinates look like degrees: save it in EPSG:4326" if degrees else ""


def _parts(shapes: NDArray[np.object_]) -> NDArray[np.object_]:
    """The points, lines and polygons that are not empty, with nested collections taken apart."""
    while (shapely.get_type_id(shapes) > _POLYGON).any():
        shapes = shapely.get_parts(shapes)
    filled: NDArray[np.object_] = shapes[~shapely.is_empty(shapes)]
    return filled


def _polygons(parts: NDArray[np.object_]) -> NDArray[np.object_]:
    """The polygons, and those that closed lines outline. Raises InputError for points and open lines."""
    kinds = shapely.get_type_id(parts)
    rings, lines = _closed(parts[(kinds == _LINE) | (kinds == _RING)])
    more, lines = _closed(_parts(np.array([shapely.line_merge(shapely.MultiLineString(list(lines)))])))
    points = int((kinds == _POINT).sum())
    if points or len(lines):
        raise InputError(
            f"the AOI has geometries without an area (points: {points}, open lines: {len(lines)}); draw polygons, or "
            "lines that end where they start, and remove the rest"
        )
    return np.concatenate([parts[kinds == _POLYGON], rings, more])


def _closed(lines: NDArray[np.object_]) -> tuple[NDArray[np.object_], NDArray[np.object_]]:
    """The polygons of the lines that end where they start, and the other lines."""
    polygons, rest = [], []
    for line in lines:
        points = shapely.get_coordinates(line)
        gap = np.abs(points[-1] - points[0]).max()
        if len(points) >= 4 and gap <= _CLOSING_TOLERANCE * np.ptp(points, axis=0).max():
            polygons.append(shapely.Polygon([*points[:-1], points[0]]))
        else:
            rest.append(line)
    return np.array(polygons, dtype=object), np.array(rest, dtype=object)


def _wrapped_pieces(shape: shapely.Geometry) -> list[shapely.Geometry]:
    """A valid geometry in degrees, cut and wrapped to longitudes between -180 and 180."""
    left, _, right, _ = shapely.bounds(shape)
    if left >= -180 and right <= 180:
        return [shape]
    turns = range(math.floor((left + 180) / 360), math.ceil((right + 180) / 360) + 1)
    return [shapely.intersection(affinity.translate(shape, -360 * turn), _WORLD) for turn in turns]


def _unrolled(polygon: shapely.Polygon) -> shapely.Polygon:
    """The polygon with continuous longitudes: an edge of more than 180 degrees takes the short way round.

    An edge of 360 degrees goes all the way round, as in a box around the world.
    """
    rings = [shapely.get_coordinates(ring) for ring in (polygon.exterior, *polygon.interiors)]
    if not any(_goes_short(ring).any() for ring in rings):
        return polygon
    for ring in rings:
        steps = np.where(_goes_short(ring), -360 * np.sign(np.diff(ring[:, 0])), 0)
        ring[1:, 0] += np.cumsum(steps)
        if ring[0, 0] != ring[-1, 0]:
            raise InputError("a polygon of the AOI goes around a pole; cut it at the antimeridian")
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
