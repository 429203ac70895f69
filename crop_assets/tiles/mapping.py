"""Finds the HLS tile of each chip box."""

from functools import lru_cache
from typing import Any, Literal

import geopandas as gpd
import numpy as np
import pandas as pd
import pyproj
import shapely
from numpy.typing import NDArray

from crop_assets.chip_grid import CHIP_METRES, GRID_COLS, GRID_ROWS, ORIGIN_X, ORIGIN_Y
from crop_assets.errors import InputError
from crop_assets.tiles.grid import hls_tile_bounds


def map_chips(
    boxes: gpd.GeoDataFrame,
    grid: gpd.GeoDataFrame,
    rule: Literal["projected", "degrees"],
    outside: Literal["drop", "reassign"] = "drop",
) -> pd.DataFrame:
    """The tile whose centroid is nearest to each box's centre, one row per box in the same order.

    `rule` measures distances in EPSG:5070 ('projected', the specification) or in degrees as plane
    coordinates ('degrees', the published dataset). Of equally near tiles the first by name is taken. A box
    that does not overlap the nearest tile has none ('drop'), or gets the tile with the largest margin among
    those that contain its centre ('reassign').

    Columns: chip_id (str); chip_x and chip_y (float64, longitude and latitude of the centre);
    tile (str, missing if the box does not overlap the nearest tile, so that no chip is made from a
    distant one); distance_m (float64, centre to tile centroid in EPSG:5070); contained (bool, the box is
    completely inside the tile's HLS raster); margin_m (float64, minimum distance from the box's corners to
    the raster's edge in the tile's UTM zone, negative if one is outside; an edge of the box bows by at
    most 0.4 m between its corners); finding (str, why a box is not contained, else empty).

    Raises InputError if no tile of the grid has a centroid.
    """
    grid = grid.sort_values("tile", ignore_index=True)
    keys = ["x", "y"] if rule == "projected" else ["lon", "lat"]
    usable = np.flatnonzero(np.isfinite(grid[keys].to_numpy()).all(axis=1))
    if usable.size == 0:
        raise InputError(f"the tile grid of {len(grid)} tiles has none with a centroid to measure from")
    nearest = usable[_nearest(boxes[keys].to_numpy(), grid[keys].to_numpy()[usable])]

    centres = boxes[["x", "y"]].to_numpy()
    cells = boxes[["row", "col"]].to_numpy(np.int64)
    margin, overlaps = _margins(cells, grid, nearest)
    if outside == "reassign":
        for i in np.flatnonzero(~overlaps):
            containing = np.flatnonzero(
                grid.contains(shapely.Point(boxes["lon"].iloc[i], boxes["lat"].iloc[i]))
            )
            if len(containing):
                depths, met = _margins(np.repeat(cells[[i]], len(containing), axis=0), grid, containing)
                deepest = depths.argmax()
                nearest[i], margin[i], overlaps[i] = containing[deepest], depths[deepest], met[deepest]
    with np.errstate(invalid="ignore"):
        distance = np.hypot(*(centres - grid[["x", "y"]].to_numpy()[nearest]).T)
    names = grid["tile"].to_numpy(dtype=object)[nearest]
    contained = margin >= 0
    return pd.DataFrame(
        {
            "chip_id": pd.Series(boxes["chip_id"].to_numpy(dtype=object), dtype="str"),
            "chip_x": boxes["lon"].to_numpy(),
            "chip_y": boxes["lat"].to_numpy(),
            "tile": pd.Series(np.where(overlaps, names, None), dtype="str"),
            "distance_m": distance,
            "contained": contained,
            "margin_m": margin,
            "finding": pd.Series(_findings(names, contained, overlaps, margin, distance), dtype="str"),
        }
    )


def _nearest(points: NDArray[np.float64], centroids: NDArray[np.float64]) -> NDArray[np.intp]:
    """Index of the nearest centroid to each point; of equally near ones the smallest index."""
    targets: Any = shapely.points(centroids)
    point, centroid = shapely.STRtree(targets).query_nearest(shapely.points(points), all_matches=True)
    nearest = np.full(len(points), len(centroids))
    np.minimum.at(nearest, point, centroid)
    return nearest


def _margins(
    cells: NDArray[np.int64], grid: gpd.GeoDataFrame, nearest: NDArray[np.intp]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The margin of each box inside its tile's HLS raster, in metres, and whether it overlaps the raster at all.

    `cells` is [n, 2], the boxes' rows and columns.
    """
    tiles, tile_of_box = np.unique(nearest, return_inverse=True)
    rasters = [
        hls_tile_bounds(tile, polygon)
        for tile, polygon in zip(
            grid["tile"].to_numpy(dtype=object)[tiles], grid.geometry.to_numpy()[tiles], strict=True
        )
    ]
    zone = np.array([raster.epsg for raster in rasters], dtype=np.int64)[tile_of_box]
    edges = np.array([raster[1:] for raster in rasters], dtype=np.float64).reshape(-1, 4)[tile_of_box]
    x, y = np.empty((2, len(cells), 4))
    for epsg in np.unique(zone):
        here = zone == epsg
        x[here], y[here] = _corners(cells[here], int(epsg))
    left, bottom, right, top = edges[:, :, None].swapaxes(0, 1)
    inside = np.stack([x - left, y - bottom, right - x, top - y])
    overlaps = (inside.max(axis=2) > 0).all(axis=0)
    margin: NDArray[np.float64] = inside.min(axis=(0, 2))
    return margin, overlaps


def _corners(cells: NDArray[np.int64], epsg: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The four corners of boxes in a UTM zone, x and y as [n, 4]. A corner that boxes share is projected once."""
    across = GRID_COLS + 1
    corners = cells[:, :1] * across + cells[:, 1:] + [0, 1, across + 1, across]
    used = np.zeros((GRID_ROWS + 1) * across, bool)
    used[corners] = True
    row, col = np.divmod(np.flatnonzero(used), across)
    x, y = _to_utm(epsg).transform(ORIGIN_X + CHIP_METRES * col, ORIGIN_Y - CHIP_METRES * row)
    index = np.cumsum(used) - 1
    return x[index[corners]], y[index[corners]]


@lru_cache
def _to_utm(epsg: int) -> pyproj.Transformer:
    return pyproj.Transformer.from_crs(5070, epsg, always_xy=True)


def _findings(
    names: NDArray[np.object_],
    contained: NDArray[np.bool_],
    overlaps: NDArray[np.bool_],
    margin: NDArray[np.float64],
    distance: NDArray[np.float64],
) -> NDArray[np.object_]:
    findings = np.full(len(names), "", dtype=object)
    for i in np.flatnonzero(~contained):
        if overlaps[i]:
            findings[i] = f"reaches {-margin[i]:.0f} m beyond its tile {names[i]}"
        else:
            findings[i] = (
                f"lies wholly outside the nearest tile {names[i]}, whose centre is "
                f"{distance[i] / 1000:.0f} km away; the tile grid lacks the tile of this place"
            )
    return findings
