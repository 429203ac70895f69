"""Reads the Sentinel-2 tile grid, and computes the HLS raster of each tile from its polygon."""

import importlib.util
import math
from functools import lru_cache
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pyproj
import shapely
from numpy.typing import NDArray
from pyproj.exceptions import ProjError
from shapely.errors import ShapelyError

from crop_assets.crs import require_place
from crop_assets.errors import InputError
from crop_assets.hls import SQUARE_METRES, HlsBounds, is_tile, square_bounds
from crop_assets.polygons import join, make_valid
from resources.errors import IntegrityError
from resources.parquet import MAX_FILE_BYTES, Parquet
from resources.plain_text import plain_text
from resources.vectors import Vector, open_vector

_NAME_COLUMNS = ("tile", "name", "tile_id", "tileid", "tile_name", "mgrs", "mgrs_tile")
_MAX_ARCHIVE_BYTES = 1 << 30
_MAX_CROSSINGS = 100
"""Crossings of the outlines of a tile's pieces, which share an edge."""


def official_grid_path() -> Path:
    """The zipped KML of the official grid (56,686 tiles) in the installed package `s2tiling`.

    Raises InputError if the package, or the file in it, is missing.
    """
    spec = importlib.util.find_spec("s2tiling")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "data" / "s2_tiling.zip"
        if path.is_file():
            return path
    raise InputError(
        "the package s2tiling, which contains the official tile grid, is not installed or lacks "
        "data/s2_tiling.zip; install s2tiling, or name a tile grid file"
    )


def read_tile_grid(path: str | Path) -> gpd.GeoDataFrame:
    """A tile grid as a frame of tiles, sorted by name.

    Columns: tile (str, such as 13TDE), lon and lat (float64, centroid of the polygon in degrees), x
    and y (float64, the same in EPSG:5070; inf if it cannot be projected), minx,
    miny, maxx, maxy (float64, bounds of the polygon in degrees) and geometry (Polygon, EPSG:4326).

    A tile across the antimeridian, which the official grid has in two pieces, becomes one polygon with
    continuous longitudes: its `lon` is from -180 to below 180 as for any tile, and either `minx` is
    below -180 or `maxx` is above 180, so that maxx - minx is the tile's width.

    Reads the vector files of `resources.vectors`, also in a KMZ or zip, and GeoParquet. The name of a
    tile must be in a column called Name, tile, tile_id or the like. Raises InputError if the file
    cannot be read, an archive is unsafe or larger than 1 GiB unpacked, the CRS is missing, or names or
    polygons are not valid tiles.
    """
    features = _read_features(Path(path))
    # they may be numbers or missing
    names = np.array([str(name) for name in features["tile"]], dtype=object)
    _refuse(path, "names that are not valid for a tile", [name for name in names if not is_tile(name)])
    unique, times = np.unique(names.astype(str), return_counts=True)
    _refuse(path, "tiles that occur twice", unique[times > 1].tolist())
    try:
        polygons = _polygons(path, names, features.geometry.to_crs(4326).to_numpy())
    except (ShapelyError, ProjError) as error:
        raise InputError(f"tile grid {path} has polygons that cannot be used: {error}") from None
    centroids = shapely.get_coordinates(shapely.centroid(polygons))
    lon, lat = centroids[:, 0], centroids[:, 1]
    x, y = pyproj.Transformer.from_crs(4326, 5070, always_xy=True).transform(lon, lat)
    bounds = shapely.bounds(polygons)
    frame = gpd.GeoDataFrame(
        {
            "tile": pd.Series(names, dtype="str"),
            "lon": lon,
            "lat": lat,
            "x": x,
            "y": y,
            "minx": bounds[:, 0],
            "miny": bounds[:, 1],
            "maxx": bounds[:, 2],
            "maxy": bounds[:, 3],
        },
        geometry=polygons,
        crs=4326,
    )
    return frame.sort_values("tile", ignore_index=True)


def hls_tile_bounds(tile: str, polygon: shapely.Polygon) -> HlsBounds:
    """The bounds of the HLS rasters of a tile, given its polygon in the grid (EPSG:4326).

    HLS lays the tile of the 100 km square with south-west corner (E0, N0) from
    floor(E0 / 60) * 60 eastward and from ceil((N0 + 100000) / 60) * 60 southward, 109,800 m each
    way: confirmed for every tile over CONUS. The tile's name gives the UTM zone, and the polygon's
    north-west corner gives the square; in the official grid it is less than 40 m from the square's.
    Southern tiles are in the zone's northern CRS (EPSG:326xx), with negative northings.

    Raises InputError if the name is not valid for a tile, or the polygon's corner is not near one of a 100 km square.
    """
    points = shapely.get_coordinates(polygon)
    if not is_tile(tile) or not len(points) or not np.isfinite(points).all():
        raise InputError(
            f"the tile grid has {plain_text(repr(tile), 60)} with {len(points)} vertices, which is not a valid tile; "
            "materialize tile_grid again"
        )
    epsg = 32600 + int(tile[:2])
    east, north = _to_utm(epsg).transform(points[:, 0], points[:, 1])
    west_edge, north_edge = float(np.min(east)), float(np.max(north))
    if not math.isfinite(west_edge + north_edge):
        raise InputError(
            f"tile {tile}: its polygon cannot be projected to EPSG:{epsg}; use the official Sentinel-2 tile grid"
        )
    square_left = SQUARE_METRES * round(west_edge / SQUARE_METRES)
    square_top = SQUARE_METRES * round(north_edge / SQUARE_METRES)
    # a tile cut at the antimeridian has vertices within its edges, which bow by up to 1,890 m (01CDH)
    if max(abs(west_edge - square_left), abs(north_edge - square_top)) > 5000:
        raise InputError(
            f"tile {tile}: its polygon's north-west corner is ({west_edge:.0f}, {north_edge:.0f}) "
            f"in EPSG:{epsg}, not near a corner of the 100 km grid; use the official Sentinel-2 tile grid"
        )
    return square_bounds(epsg, square_left, square_top)


@lru_cache
def _to_utm(epsg: int) -> pyproj.Transformer:
    return pyproj.Transformer.from_crs(4326, epsg, always_xy=True)


def _read_features(path: Path) -> gpd.GeoDataFrame:
    """The features of a grid file, with their names in a column `tile`."""
    if not path.is_file():
        raise InputError(f"tile grid {path}: no such file")
    try:
        if path.suffix.lower() == ".parquet":
            if (size := path.stat().st_size) > MAX_FILE_BYTES:
                raise InputError(f"tile grid {path} has {size:,} bytes; the most is {MAX_FILE_BYTES:,}")
            file = Parquet(path.read_bytes())
            features = file.frame([_name_column(path, file.schema.names)])
        else:
            with open_vector(path, _MAX_ARCHIVE_BYTES) as vector:
                features = _features(path, vector)
    except InputError:
        raise
    except (IntegrityError, ProjError, ValueError, OSError) as error:
        raise InputError(f"tile grid {path} cannot be read: {error}") from None
    if not isinstance(features, gpd.GeoDataFrame) or features.empty:
        raise InputError(f"tile grid {path} has no polygons")
    if features.crs is None:
        raise InputError(f"tile grid {path} has no CRS; save it as GeoJSON or GeoPackage in EPSG:4326")
    require_place(features.crs, f"tile grid {path}", "save it as GeoJSON or GeoPackage in EPSG:4326")
    column = _name_column(path, features.columns)
    return features[[column, features.geometry.name]].rename(columns={column: "tile"})


def _features(path: Path, vector: Vector) -> gpd.GeoDataFrame | pd.DataFrame:
    layers = list(vector.layers())
    # the official KML has a second layer, Info, without tiles
    if not layers:
        raise InputError(f"tile grid {path} has no polygons")
    layer = "Features" if "Features" in layers else layers[0]
    if layer != "Features" and len(layers) > 1:
        raise InputError(
            f"tile grid {path} has several layers ({', '.join(layers[:5])}); keep only the one with the tiles"
        )
    return vector.read(layer, [_name_column(path, vector.columns(layer))])


def _name_column(path: Path, columns: "NDArray[np.object_] | list[str]") -> str:
    by_lower = {str(column).lower(): str(column) for column in columns}
    for name in _NAME_COLUMNS:
        if name in by_lower:
            return by_lower[name]
    raise InputError(
        f"tile grid {path} has no column of tile names; it has {', '.join(map(str, columns)) or 'none'}, "
        f"and one must be called {', '.join(_NAME_COLUMNS)}"
    )


def _polygons(
    path: str | Path, names: NDArray[np.object_], geometries: NDArray[np.object_]
) -> NDArray[np.object_]:
    """One polygon per tile, with a centroid from -180 to below 180 degrees."""
    parts, tiles = shapely.get_parts(shapely.force_2d(geometries), return_index=True)
    parts, nested = shapely.get_parts(parts, return_index=True)
    tiles = tiles[nested]
    is_polygon = (shapely.get_type_id(parts) == shapely.GeometryType.POLYGON) & ~shapely.is_empty(parts)
    parts, tiles = parts[is_polygon], tiles[is_polygon]
    pieces = np.bincount(tiles, minlength=len(names))
    _refuse(path, "tiles without a polygon", names[pieces == 0].tolist())
    # a comparison with NaN is false
    on_earth = (np.abs(shapely.bounds(parts)) <= [360, 90, 360, 90]).all(axis=1)
    _refuse(
        path,
        "tiles with coordinates that are not degrees",
        np.unique(names[tiles[~on_earth]].astype(str)).tolist(),
    )

    polygons = np.empty(len(names), dtype=object)
    polygons[tiles] = parts
    bounds = shapely.bounds(parts)
    left = np.full(len(names), np.inf)
    right = np.full(len(names), -np.inf)
    np.minimum.at(left, tiles, bounds[:, 0])
    np.maximum.at(right, tiles, bounds[:, 2])
    across = right - left > 180
    for i in np.flatnonzero(across | (pieces > 1)):
        mine = parts[tiles == i]
        if across[i]:
            mine = np.array([_unwrapped(part) for part in mine], dtype=object)
        try:
            polygons[i] = join(make_valid(mine, _MAX_CROSSINGS), _MAX_CROSSINGS)
        except InputError as error:
            raise InputError(f"tile grid {path}: the pieces of {names[i]}: {error}") from None
    _refuse(
        path,
        "tiles in several pieces that do not touch",
        names[shapely.get_type_id(polygons) != shapely.GeometryType.POLYGON].tolist(),
    )
    lon = shapely.get_x(shapely.centroid(polygons))
    for i in np.flatnonzero((lon < -180) | (lon >= 180)):
        polygons[i] = _shifted(polygons[i], -360 * math.floor((lon[i] + 180) / 360))
    return polygons


def _unwrapped(polygon: shapely.Polygon) -> shapely.Polygon:
    """The polygon with 360 added to its negative longitudes."""
    return shapely.transform(polygon, lambda points: points + np.where(points[:, :1] < 0, [360.0, 0.0], 0.0))


def _shifted(polygon: shapely.Polygon, degrees: float) -> shapely.Polygon:
    return shapely.transform(polygon, lambda points: points + np.array([degrees, 0.0]))


def _refuse(path: str | Path, problem: str, names: list[str]) -> None:
    if names:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        raise InputError(f"tile grid {path}: {problem}: {', '.join(names[:5])}{more}")
