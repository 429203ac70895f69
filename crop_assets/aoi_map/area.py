"""What lies inside an area of interest: chip boxes, the chips that can be chosen from them, HLS tiles.

Belongs here: counting as the graph would, fast enough for a page that asks while somebody draws. Does not: the rules
(`labels.aoi`, `labels.sampling`, `tiles.mapping`), nor the page (`server`).
"""

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
_MOST_AREA_STEPS = 1_000_000


@dataclass(frozen=True)
class Count:
    """What lies inside an area of interest."""

    boxes: int
    """Chip boxes that share a point with it, free of no-data."""
    rich: int
    """Those of them with at least `min_classes` classes."""
    chips: int
    """Chips that the recipe can choose from them at most."""
    tiles: list[str]
    """HLS tiles of the boxes, by name."""
    km2: float
    """Square kilometres that it covers."""
    repaired: int
    """Polygons that intersect themselves, which are counted as they are repaired when they are used."""


@dataclass(frozen=True)
class Area:
    """The chip boxes that an area of interest chooses among, and where they are.

    `boxes` has chip_id, row, col, classes and weight of the boxes, and their squares in EPSG:4326, which `tree` is
    over. `tile_of_box` is an index into `tiles`, int[n], -1 for a box without one. `tiles` is the part of the tile grid
    that the boxes need. `chosen` is the table of the chips that were chosen already, or None.
    """

    recipe: DatasetRecipe
    boxes: gpd.GeoDataFrame
    tree: shapely.STRtree
    tiles: gpd.GeoDataFrame
    tile_of_box: NDArray[np.intp]
    chosen: pd.DataFrame | None

    @property
    def rule(self) -> str:
        """How the recipe chooses, in words."""
        if self.recipe.chip_boxes:
            return f"the boxes of {self.recipe.chip_boxes}"
        least = f", {self.recipe.min_classes} classes or more" if self.recipe.sampling == "evenness" else ""
        return f"{self.recipe.chips:,} chips by {self.recipe.sampling}{least}"

    def count(self, aoi: gpd.GeoDataFrame) -> Count:
        """What lies inside `aoi`, polygons in EPSG:4326, by the rules of `filter_aoi`; 0 of everything for none.

        Raises InputError for polygons that cannot be cut at the antimeridian.
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
        """Raise the InputError that the graph would raise for an `aoi` (EPSG:4326) without polygon or box."""
        if touched(self.tree, aoi_shapes(aoi)).size == 0:
            filter_aoi(self.boxes, aoi)


def load_area(store: DatasetStore, layout: Layout, recipe: DatasetRecipe) -> Area:
    """The chip boxes of a dataset and year as the recipe chooses among them, but for its `aoi`.

    Raises InputError for a table that is not there.
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
            f"every box of {layout.table('candidate_chips')} holds no-data; use a larger CDL raster"
        )
    grid = read_table(store, tile_grid_table(), TILE_GRID)
    mapped = map_chips(boxes, grid, recipe.tile_rule, recipe.outside_chips)
    codes, names = pd.factorize(mapped["tile"], sort=True)
    tiles = gpd.GeoDataFrame(grid.set_index("tile").loc[names].reset_index())
    # the pixels of each class, which nothing here needs any more, are a third of it
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
    """The outlines of tiles with their names, as a GeoJSON FeatureCollection."""
    outlines: dict[str, Any] = gpd.GeoDataFrame(tiles[["tile", "geometry"]]).to_geo_dict()
    return outlines


def _square_kilometres(shapes: NDArray[np.object_]) -> float:
    """The area of polygons in EPSG:4326 together, their edges straight in degrees."""
    # EPSG:5070 keeps areas, but bends an edge that is straight in degrees
    whole = join(shapes)
    step = max(_AREA_STEP_DEGREES, shapely.length(whole) / _MOST_AREA_STEPS)
    whole = shapely.segmentize(whole, step)
    return float(gpd.GeoSeries([whole], crs=4326).to_crs(5070).area.iloc[0] / 1e6)
