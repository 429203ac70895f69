"""Chip boxes: choosing which squares of the national chip grid become chips, and reading and writing them as GeoJSON.

A frame of chip boxes is a GeoDataFrame in EPSG:5070 whose geometry is the exact square, with the
columns chip_id (str), row and col (int32), x and y (float64, centre in EPSG:5070), lon and lat
(float64, the same point in EPSG:4326), class_0 to class_13 (int32, pixels per class), classes
(int32, how many of the 13 occur) and weight (float64, see `evenness`). Candidates, the boxes to choose
from, have neither weight nor geometry.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import geopandas as gpd
import numpy as np
import pandas as pd
import pyproj
import shapely
from numpy.typing import NDArray
from shapely.errors import ShapelyError

from crop_assets.chip_grid import (
    CHIP_METRES,
    CRS,
    GRID_COLS,
    GRID_ROWS,
    ORIGIN_X,
    ORIGIN_Y,
    RESOLUTION,
    TOLERANCE,
    chip_id,
    chip_position,
    crs_text,
    transformer,
)
from crop_assets.classes import CLASS_COLUMNS, CLASSES
from crop_assets.crs import require_place
from crop_assets.errors import InputError
from crop_assets.labels.balance import Balance, choose_balanced, distance
from crop_assets.labels.cdl import ChipHistograms
from resources.errors import IntegrityError
from resources.geojson import named_crs
from resources.json_values import MALFORMED, mapping, parse

Strategy = Literal["evenness", "balanced", "all"]

_MAX_OFFSET_M = TOLERANCE * RESOLUTION
_SAVE_IT = "save it in EPSG:4326 or EPSG:5070"
_MAX_VALUES = 50_000_000
"""A file of all 295,000 boxes of the country has a fifth of this."""


def evenness(counts: NDArray[np.int32], min_classes: int) -> NDArray[np.float64]:
    """How evenly the 13 classes share each box: float64[n], from 0 to 1.

    `counts` is [n, 13], the pixels of classes 1 to 13. The weight is 1 - (max - min) / sum, and 0
    for a box with fewer than `min_classes` classes: the rule documented for the published dataset.
    (Its code assigns the 0 to a misspelt variable, so it does not enforce a minimum: it is equivalent to
    `min_classes=1`.)
    """
    total = counts.sum(axis=1)
    spread = counts.max(axis=1) - counts.min(axis=1)
    weight: NDArray[np.float64] = 1 - spread / np.maximum(total, 1)
    weight[(counts > 0).sum(axis=1) < max(min_classes, 1)] = 0
    return weight


def candidate_boxes(histograms: ChipHistograms) -> pd.DataFrame:
    """Candidates: every box of the histograms, in their order, with position and classes."""
    rows, cols, counts = histograms.rows, histograms.cols, histograms.counts
    x = ORIGIN_X + CHIP_METRES * (cols + 0.5)
    y = ORIGIN_Y - CHIP_METRES * (rows + 0.5)
    lon, lat = transformer(CRS, "EPSG:4326").transform(x, y)
    return pd.DataFrame(
        {
            "chip_id": pd.Series(
                [chip_id(row, col) for row, col in zip(rows, cols, strict=True)], dtype="str"
            ),
            "row": rows,
            "col": cols,
            "x": x,
            "y": y,
            "lon": lon,
            "lat": lat,
            **{name: counts[:, value] for value, name in enumerate(CLASS_COLUMNS)},
            "classes": (counts[:, 1:] > 0).sum(axis=1).astype(np.int32),
        }
    )


def weighed_boxes(candidates: pd.DataFrame, min_classes: int) -> gpd.GeoDataFrame:
    """Candidates as a frame of chip boxes, with weights and squares."""
    x, y = candidates["x"].to_numpy(), candidates["y"].to_numpy()
    half = CHIP_METRES / 2
    weight = evenness(candidates[CLASS_COLUMNS[1:]].to_numpy(), min_classes)
    squares = shapely.box(x - half, y - half, x + half, y + half)
    return gpd.GeoDataFrame(candidates.assign(weight=weight), geometry=squares, crs=5070)


def choose_boxes(
    boxes: gpd.GeoDataFrame,
    strategy: Strategy,
    chips: int,
    balance: Balance = Balance(),  # noqa: B008 - it is frozen
) -> gpd.GeoDataFrame:
    """Choose at most `chips` boxes, without pixels of class 0.

    'evenness' takes the boxes of the greatest weight, ties in the order of ids, and none of weight 0; 'balanced' takes
    those that together come closest to the target of `balance`, in grid order; 'all' takes the first in grid order.
    The same boxes give the same choice.
    """
    without_gaps = boxes[boxes["class_0"] == 0]
    if strategy == "evenness":
        eligible = without_gaps[without_gaps["weight"] > 0]
        ranked = eligible.sort_values(["weight", "chip_id"], ascending=[False, True])
    else:
        ranked = without_gaps.sort_values(["row", "col"])
    if strategy == "balanced":
        rows, cols = (ranked[name].to_numpy(np.int64) for name in ("row", "col"))
        counts = ranked[CLASS_COLUMNS[1:]].to_numpy()
        ranked = ranked.iloc[choose_balanced(counts, rows, cols, chips, balance)]
    return ranked.head(chips).reset_index(drop=True)


@dataclass(frozen=True)
class ChoiceReport:
    """How many chips were requested and chosen, and why the other boxes were not. Each box counts once."""

    strategy: str
    """'evenness', 'balanced' or 'all'; 'chip_boxes' if a file lists the boxes."""
    wanted: int
    boxes: int
    """Boxes on the raster, or in the file."""
    outside: int
    """Boxes outside the area of interest."""
    no_data: int
    """Boxes inside with pixels of class 0; allowed for boxes from a file."""
    few_classes: int
    """Other boxes with fewer than `min_classes` classes, with 'evenness'."""
    uneven: int
    """Other boxes with a single class, which get the weight 0 with 'evenness'."""
    chosen: int
    min_classes: int
    max_per_block: int
    within_limit: int
    """Chips that can be chosen with at most `max_per_block` per block, with 'balanced'."""

    @property
    def inside(self) -> int:
        return self.boxes - self.outside

    @property
    def eligible(self) -> int:
        """Boxes that may become chips."""
        return self.boxes - sum(count for _, count in self._reasons)

    @property
    def table(self) -> pd.DataFrame:
        """The counts as a table: what, boxes."""
        steps = [("requested", self.wanted), (self._where, self.boxes), *self._reasons]
        if self.strategy == "chip_boxes":
            steps.append(("have no-data pixels, but are used anyway", self.no_data))
        steps += [("eligible", self.eligible), ("chosen", self.chosen)]
        return pd.DataFrame(steps, columns=["what", "boxes"])

    @property
    def why_fewer(self) -> str:
        """Why fewer chips were chosen than requested, and what to change; "" if enough were chosen."""
        if self.chosen >= self.wanted:
            return ""
        reasons = [f"{count:,} {reason}" for reason, count in self._reasons if count]
        sampled = self.strategy != "chip_boxes"
        advice = [
            (self.outside > 0, "widen the aoi"),
            (self.few_classes + self.uneven > 0, "lower min_classes, or use sampling 'balanced' or 'all'"),
            (sampled, "use a larger CDL raster"),
            (sampled and self.chosen > 0, "request fewer chips"),
        ]
        return (
            f"{self.chosen:,} of {self.wanted:,} requested chips were chosen. Of {self.boxes:,} boxes {self._where}, "
            f"{', '.join([*reasons, f'{self.eligible:,} are eligible'])}; "
            f"{', or '.join(text for fits, text in advice if fits)}"
        )

    @property
    def why_crowded(self) -> str:
        """Why some blocks have more chips than `max_per_block`; "" if none has."""
        if self.strategy != "balanced" or self.chosen <= self.within_limit:
            return ""
        return (
            f"max_per_block {self.max_per_block} would allow only {self.within_limit:,} of {self.chosen:,} chips, so "
            "some blocks have more"
        )

    @property
    def _where(self) -> str:
        return "in the file of chip_boxes" if self.strategy == "chip_boxes" else "on the raster"

    @property
    def _reasons(self) -> list[tuple[str, int]]:
        """Why boxes are not eligible, and how many."""
        reasons = [("are outside the aoi", self.outside)]
        if self.strategy != "chip_boxes":
            reasons.append(("have no-data pixels", self.no_data))
        if self.strategy == "evenness":
            reasons.append((f"have fewer than {self.min_classes} classes", self.few_classes))
            reasons.append(("have a single class (evenness 0)", self.uneven))
        return reasons


def report_choice(
    boxes: pd.DataFrame,
    inside: pd.DataFrame,
    chosen: int,
    strategy: str,
    wanted: int,
    min_classes: int,
    balance: Balance,
) -> ChoiceReport:
    """Count what happened to `boxes`; only those `inside` the area of interest could be chosen."""
    gaps = inside["class_0"] > 0
    free = inside[~gaps]
    few = uneven = 0
    if strategy == "evenness":
        few = int((free["classes"] < min_classes).sum())
        uneven = int((free["weight"] == 0).sum()) - few
    in_blocks = free.groupby([free["row"] // balance.block_chips, free["col"] // balance.block_chips]).size()
    return ChoiceReport(
        strategy=strategy,
        wanted=wanted,
        boxes=len(boxes),
        outside=len(boxes) - len(inside),
        no_data=int(gaps.sum()),
        few_classes=few,
        uneven=uneven,
        chosen=chosen,
        min_classes=min_classes,
        max_per_block=balance.max_per_block,
        within_limit=int(in_blocks.clip(upper=balance.max_per_block).sum()),
    )


def with_surroundings(boxes: gpd.GeoDataFrame, block_chips: int) -> gpd.GeoDataFrame:
    """Boxes with two more columns for spatial splits: `block` (str, its block of `block_chips` x `block_chips` chips of
    the national chip grid) and `neighbours` (list of str, sorted ids of the boxes that share an edge or a corner).
    """
    squares = boxes.geometry.to_numpy()
    of, touching = shapely.STRtree(squares).query(squares, predicate="touches")
    ids = boxes["chip_id"].to_numpy(dtype=object)
    neighbours: list[list[str]] = [[] for _ in ids]
    for box, neighbour in zip(of, touching, strict=True):
        neighbours[box].append(ids[neighbour])
    blocks = boxes[["row", "col"]] // block_chips
    names = [f"block_{row:03d}_{col:03d}" for row, col in blocks.itertuples(index=False)]
    return boxes.assign(block=names, neighbours=[sorted(names) for names in neighbours])


def compare_choices(choices: Mapping[str, pd.DataFrame], balance: Balance) -> pd.DataFrame:
    """Compare how good a dataset each of the named frames of chip boxes would make, one row per frame.

    Columns: choice, chips, distance_from_target (0 to 1, see `balance.distance`), scarcest_class, its_percent (its
    share), classes_a_chip (mean), and blocks (blocks with a chip).
    """
    rows = []
    for name, boxes in choices.items():
        pixels = boxes[CLASS_COLUMNS[1:]].sum().to_numpy(np.int64)
        wanted = np.flatnonzero(np.asarray(balance.target))
        scarcest = int(wanted[pixels[wanted].argmin()])
        blocks = boxes[["row", "col"]] // balance.block_chips
        rows.append(
            {
                "choice": name,
                "chips": len(boxes),
                "distance_from_target": round(distance(pixels, balance.target), 4),
                "scarcest_class": CLASSES[scarcest + 1],
                "its_percent": round(100 * pixels[scarcest] / max(pixels.sum(), 1), 2),
                "classes_a_chip": round(boxes["classes"].mean(), 1),
                "blocks": len(blocks.drop_duplicates()),
            }
        )
    return pd.DataFrame(rows)


def read_chip_geojson(path: str | Path, boxes: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """The chip boxes listed in a GeoJSON, in its order, with the columns of `boxes`.

    `boxes` are all boxes of the CDL raster. The GeoJSON is in the CRS of its `crs` member, or else in EPSG:4326; if
    the coordinates cannot be degrees, they are assumed to be metres in EPSG:5070, and the check against the grid
    confirms it. Each feature has a property `id` and the box as a polygon.

    Raises InputError, naming up to five features, if an id is missing, duplicate or not on the national chip grid, if
    a geometry is more than a tenth of a pixel from the square of its id, or if a box is not inside the CDL raster.
    """
    features, crs = _features(path)
    ids = [str(mapping(feature.get("properties")).get("id") or "") for feature in features]
    _refuse(path, "no property 'id'", [f"feature {i}" for i, name in enumerate(ids) if not name])
    _refuse(path, "an id that occurs twice", [name for name, times in Counter(ids).items() if times > 1])
    cells = [_cell(name) for name in ids]
    _refuse(
        path,
        f"an id that is not chip_RRR_CCC with row below {GRID_ROWS} and column below {GRID_COLS}",
        [name for name, cell in zip(ids, cells, strict=True) if cell is None],
    )
    rows, cols = np.array(cells, dtype=np.int64).T
    left, top = ORIGIN_X + CHIP_METRES * cols, ORIGIN_Y - CHIP_METRES * rows
    squares = shapely.box(left, top - CHIP_METRES, left + CHIP_METRES, top)
    shapes = _shapes(path, ids, features)
    if crs.is_geographic and not _may_be_degrees(shapes):
        crs = pyproj.CRS(CRS)
    to_conus = transformer(crs.to_wkt(), CRS)
    projected = shapely.transform(
        shapes, lambda points: np.column_stack(to_conus.transform(points[:, 0], points[:, 1]))
    )
    # coordinates that cannot be transformed to EPSG:5070 are infinite
    with np.errstate(invalid="ignore"):
        apart = ~(shapely.hausdorff_distance(projected, squares) <= _MAX_OFFSET_M)
    read_as = "longitude and latitude" if crs.is_geographic else f"metres of {crs_text(crs)}"
    _refuse(
        path,
        f"a geometry more than {_MAX_OFFSET_M:g} m from the square of its id, with coordinates read as {read_as}",
        [name for name, bad in zip(ids, apart, strict=True) if bad],
    )
    index = {name: i for i, name in enumerate(boxes["chip_id"])}
    _refuse(
        path,
        "a box that is not completely inside the CDL raster",
        [name for name in ids if name not in index],
    )
    return boxes.iloc[[index[name] for name in ids]].reset_index(drop=True)


def write_chip_geojson(
    boxes: gpd.GeoDataFrame, path: str | Path, crs: Literal["EPSG:4326", "EPSG:5070"]
) -> None:
    """Write the boxes in the format of the published dataset: `id`, `center` and a MultiPolygon of four corners.

    Corners run counterclockwise from the upper left, and `center` is the box's centre in the same
    CRS. The same boxes give the same bytes.
    """
    left = boxes["x"].to_numpy() - CHIP_METRES / 2
    top = boxes["y"].to_numpy() + CHIP_METRES / 2
    x = np.column_stack([left, left, left + CHIP_METRES, left + CHIP_METRES, left])
    y = np.column_stack([top, top - CHIP_METRES, top - CHIP_METRES, top, top])
    centres = boxes[["x", "y"]].to_numpy()
    if crs == "EPSG:4326":
        x, y = transformer(CRS, "EPSG:4326").transform(x, y)
        centres = boxes[["lon", "lat"]].to_numpy()
    rings = np.stack([x, y], axis=-1).tolist()
    features = [
        json.dumps(
            {
                "type": "Feature",
                "properties": {"id": name, "center": centre},
                "geometry": {"type": "MultiPolygon", "coordinates": [[ring]]},
            }
        )
        for name, centre, ring in zip(boxes["chip_id"], centres.tolist(), rings, strict=True)
    ]
    urn = f"urn:ogc:def:crs:{crs.replace(':', '::')}"
    head = {
        "type": "FeatureCollection",
        "name": "chips",
        "crs": {"type": "name", "properties": {"name": urn}},
    }
    body = ",\n".join(features)
    Path(path).write_text(f'{json.dumps(head)[:-1]}, "features": [\n{body}\n]}}\n', encoding="utf-8")


def _cell(name: str) -> tuple[int, int] | None:
    try:
        row, col = chip_position(name)
    except ValueError:
        return None
    in_grid = row < GRID_ROWS and col < GRID_COLS and name == chip_id(row, col)
    return (row, col) if in_grid else None


def _features(path: str | Path) -> tuple[list[dict[str, Any]], pyproj.CRS]:
    """The features of a chip GeoJSON, and its CRS."""
    try:
        document = parse(Path(path).read_bytes(), _MAX_VALUES)
    except OSError as error:
        raise InputError(f"chip GeoJSON {path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"chip GeoJSON {path} is not JSON: {error}") from None
    features = document.get("features") if isinstance(document, dict) else None
    if not isinstance(features, list) or not all(isinstance(feature, dict) for feature in features):
        raise InputError(f"chip GeoJSON {path} is not a FeatureCollection")
    if not features:
        raise InputError(f"chip GeoJSON {path} has no features")
    try:
        found = named_crs(document.get("crs"))
    except IntegrityError as error:
        raise InputError(f"chip GeoJSON {path}: {error}; {_SAVE_IT}") from None
    require_place(found, f"chip GeoJSON {path}", _SAVE_IT)
    return features, found


def _shapes(path: str | Path, ids: list[str], features: list[dict[str, Any]]) -> NDArray[np.object_]:
    """The geometries of the features, as in the file."""
    shapes = np.empty(len(features), dtype=object)
    broken = []
    for i, feature in enumerate(features):
        try:
            shapes[i] = shapely.force_2d(shapely.geometry.shape(feature["geometry"]))
        except (ShapelyError, *MALFORMED):
            broken.append(ids[i])
    _refuse(path, "no readable geometry", broken)
    return shapes


def _may_be_degrees(shapes: NDArray[np.object_]) -> bool:
    return bool((np.abs(shapely.get_coordinates(shapes)) <= [360, 90]).all())


def _refuse(path: str | Path, problem: str, names: list[str]) -> None:
    if names:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        raise InputError(f"chip GeoJSON {path}: {problem}: {', '.join(names[:5])}{more}")
