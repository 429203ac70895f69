"""Counts the chip boxes, chips and HLS tiles inside an area of interest, fast enough to follow a drawing."""

from dataclasses import dataclass
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray

from crop_assets.errors import InputError
from crop_assets.labels.aoi import aoi_shapes, filter_aoi, touched
from crop_assets.labels.sampling import read_chip_geojson, weighed_boxes
from crop_assets.layout import Layout, tile_grid_table
from crop_assets.polygons import join
from crop_assets.recipe import DatasetRecipe
from crop_assets.schemas import CANDIDATE_CHIPS, CHIP_BBOXES, TILE_GRID
from crop_assets.stored import not_stored
from crop_assets.tiles.mapping import map_chips
from resources.store import DatasetStore
from resources.tables import read_table

_AREA_STEP_DEGREES = 0.1
_MAX_AREA_STEPS = 1_000_000


@dataclass(frozen=True)
class Count:
    """The content of an area of interest."""

    boxes: int
    """Chip boxes that intersect the area and have no no-data pixels."""
    rich: int
    """Boxes with at least `min_classes` classes."""
    chips: int
    """Maximum number of chips that the recipe can choose."""
    tiles: list[str]
    """Names of the HLS tiles of the boxes."""
    km2: float
    """Area in square kilometres."""
    repaired: int
    """Polygons that intersect themselves; they are counted in their repaired form, which the graph uses too."""


@dataclass(frozen=True)
class Area:
    """The chip boxes that an area of interest can contain.

    `boxes` has chip_id, row, col, classes and weight of the boxes, and their squares in EPSG:4326, indexed by `tree`.
    `tile_of_box` is an index into `tiles`, int[n], -1 for a box without a tile. `tiles` are the rows of the tile grid
    that the boxes need. `chosen` is the table of chips that were already chosen, or None.
    """

    recipe: DatasetRecipe
    boxes: gpd.GeoDataFrame
    tree: shapely.STRtree
    tiles: gpd.GeoDataFrame
    tile_of_box: NDArray[np.intp]
    chosen: pd.DataFrame | None

    @property
    def rule(self) -> str:
        """A description of how the recipe chooses chips."""
        if self.recipe.chip_boxes:
            return f"the boxes of {self.recipe.chip_boxes}"
        least = f", {self.recipe.min_classes} classes or more" if self.recipe.sampling == "evenness" else ""
        return f"{self.recipe.chips:,} chips by {self.recipe.sampling}{least}"

    def count(self, aoi: gpd.GeoDataFrame) -> Count:
        """Count what is inside `aoi`, polygons in EPSG:4326, by the rules of `filter_aoi`. It may be empty.

        Raises InputError if a polygon cannot be cut at the antimeridian.
        """
        shapes = aoi_shapes(aoi)
        hits = touched(self.tree, shapes)
        rich = int((self.boxes["weight"].to_numpy()[hits] > 0).sum())
        if self.recipe.chip_boxes:
            chips = len(hits)
        else:
            chips = min(self.recipe.chips, rich if self.recipe.sampling == "evenness" else len(hits))
        tiles = np.unique(self.tile_of_box[hits])
        return Count(
            boxes=len(hits),
            rich=rich,
            chips=chips,
            tiles=self.tiles["tile"].to_numpy(dtype=object)[tiles[tiles >= 0]].tolist(),
            km2=_square_kilometres(shapes),
            repaired=int((~shapely.is_valid(aoi.geometry.to_numpy())).sum()),
        )

    def require_boxes(self, aoi: gpd.GeoDataFrame) -> None:
        """Raise the same InputError as the graph if `aoi` (EPSG:4326) has no polygon or touches no box."""
        if touched(self.tree, aoi_shapes(aoi)).size == 0:
            filter_aoi(self.boxes, aoi)


def load_area(store: DatasetStore, layout: Layout, recipe: DatasetRecipe) -> Area:
    """The chip boxes of a dataset and year that the recipe can choose, regardless of its `aoi`.

    Raises InputError if a table is missing.
    """
    for name in (layout.table("candidate_chips"), tile_grid_table()):
        if not store.exists(name):
            raise InputError(
                f"{not_stored(store, f'table {name}', layout.dataset)}; or launch labels_job for "
                f"{layout.year} first"
            )
    landscape = weighed_boxes(
        read_table(store, layout.table("candidate_chips"), CANDIDATE_CHIPS), recipe.min_classes
    )
    if recipe.chip_boxes:
        boxes = read_chip_geojson(recipe.chip_boxes, landscape)
    else:
        boxes = landscape[landscape["class_0"] == 0].reset_index(drop=True)
    if boxes.empty:
        raise InputError(
            f"every box of {layout.table('candidate_chips')} has no-data pixels; use a larger CDL raster"
        )
    grid = read_table(store, tile_grid_table(), TILE_GRID)
    mapped = map_chips(boxes, grid, recipe.tile_rule, recipe.outside_chips)
    codes, names = pd.factorize(mapped["tile"], sort=True)
    tiles = gpd.GeoDataFrame(grid.set_index("tile").loc[names].reset_index())
    # drop the pixels per class: they are no longer needed, and a third of the memory
    boxes = boxes[["chip_id", "row", "col", "classes", "weight", "geometry"]].to_crs(4326)
    chosen = layout.table("chip_bboxes")
    return Area(
        recipe,
        boxes,
        shapely.STRtree(boxes.geometry.to_numpy()),
        tiles,
        codes,
        read_table(store, chosen, CHIP_BBOXES) if store.exists(chosen) else None,
    )


def tiles_geojson(tiles: gpd.GeoDataFrame) -> dict[str, Any]:
    """The outlines and names of tiles, as a GeoJSON FeatureCollection."""
    outlines: dict[str, Any] = gpd.GeoDataFrame(tiles[["tile", "geometry"]]).to_geo_dict()
    return outlines


def _square_kilometres(shapes: NDArray[np.object_]) -> float:
    """The area of the union of polygons in EPSG:4326 whose edges are straight in degrees."""
    # EPSG:5070 preserves areas, but edges that are straight in degrees are curved in it
    union = join(shapes)
    step = max(_AREA_STEP_DEGREES, shapely.length(union) / _MAX_AREA_STEPS)
    union = shapely.segmentize(union, step)
    return float(gpd.GeoSeries([union], crs=4326).to_crs(5070).area.iloc[0] / 1e6)
