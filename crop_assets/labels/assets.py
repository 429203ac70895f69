"""A CDL release -> chip boxes: `cdl`, `chip_bboxes`.

Belongs here: the glue between the graph and the label logic. Does not: the logic (`cdl`, `classes`, `sampling`).
"""

import hashlib
from pathlib import Path

import dagster as dg
import geopandas as gpd
import pandas as pd
import pyarrow as pa

from crop_assets.errors import InputError
from crop_assets.grid import CRS
from crop_assets.labels.cdl import check_cdl, chip_histograms
from crop_assets.labels.classes import CLASSES
from crop_assets.labels.plots import class_histogram_png
from crop_assets.labels.sampling import (
    CLASS_COLUMNS,
    chip_boxes,
    choose_boxes,
    filter_aoi,
    read_aoi,
    read_chip_geojson,
    write_chip_geojson,
)
from crop_assets.progress import Progress
from crop_assets.recipe import DatasetRecipe
from crop_assets.year_assets import YearRun, markdown, picture, year_asset
from resources.cdl import CdlReleases
from resources.machine import Machine
from resources.store import DatasetStore
from resources.tables import Column, TableSchema

CDL = TableSchema(
    (
        Column("file", pa.string(), "name of the raster, EPSG:5070, 30 m, uint8 codes"),
        Column("bytes", pa.int64(), "size of the file"),
        Column("sha256", pa.string(), "checksum of the file"),
        Column("width", pa.int64(), "columns"),
        Column("height", pa.int64(), "rows"),
        Column("left", pa.float64(), "left edge in EPSG:5070, metres"),
        Column("top", pa.float64(), "upper edge in EPSG:5070, metres"),
    )
)
CHIP_BBOXES = TableSchema(
    (
        Column("chip_id", pa.string(), "chip_RRR_CCC on the national chip grid"),
        Column("row", pa.int32(), "row of the national chip grid"),
        Column("col", pa.int32(), "column of the national chip grid"),
        Column("x", pa.float64(), "centre in EPSG:5070, metres"),
        Column("y", pa.float64(), "centre in EPSG:5070, metres"),
        Column("lon", pa.float64(), "centre, degrees east"),
        Column("lat", pa.float64(), "centre, degrees north"),
        *(Column(f"class_{c}", pa.int32(), f"pixels of class {name}") for c, name in enumerate(CLASSES)),
        Column("classes", pa.int32(), "how many of the 13 classes the box holds"),
        Column("weight", pa.float64(), "evenness of the classes, 0 to 1"),
    ),
    geometry_crs=CRS,
)


@dg.asset(**year_asset("labels", CDL, {"geotiff"}))
def cdl(
    context: dg.AssetExecutionContext, recipe: DatasetRecipe, store: DatasetStore, cdl_releases: CdlReleases
) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """The Cropland Data Layer raster of the year: found, checked (EPSG:5070, 30 m, national grid), and
    described by its checksum.
    """
    run = YearRun.of(context, recipe, store, CDL)
    path = cdl_releases.find(run.year).resolve()
    raster = check_cdl(path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if done := run.unchanged(path.name, digest):
        return done
    edges = {"left": raster.transform.c, "top": raster.transform.f}
    row = {"file": path.name, "bytes": path.stat().st_size, "sha256": digest}
    table = pd.DataFrame([{**row, "width": raster.width, "height": raster.height, **edges}])
    chips = len(raster.chip_rows) * len(raster.chip_cols)
    metadata = {"path": dg.MetadataValue.path(str(path)), "chips_on_the_grid": chips}
    return run.finish(table, {**metadata, "release": markdown(table.T.reset_index())})


@dg.asset(**year_asset("labels", CHIP_BBOXES, {"geoparquet", "geojson"}, deps=["cdl"]))
def chip_bboxes(
    context: dg.AssetExecutionContext,
    recipe: DatasetRecipe,
    store: DatasetStore,
    cdl_releases: CdlReleases,
    machine: Machine,
) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """The chosen 224 x 224 chip boxes on the national chip grid, with the pixels of each class; also as
    `chip_bbox.geojson` (EPSG:4326) and `chip_bbox_5070.geojson`.
    """
    run = YearRun.of(context, recipe, store, CHIP_BBOXES)
    release = run.read("cdl").iloc[0]
    fields = ["chips", "sampling", "min_classes", "chip_boxes", "aoi"]
    inputs = [release["sha256"], _checksum(recipe.chip_boxes), _checksum(recipe.aoi)]
    if done := run.unchanged(inputs, upstream=["cdl"], fields=fields):
        return done
    raster = check_cdl(cdl_releases.find_same(run.year, release["bytes"]))
    report = Progress(context.log.info, len(raster.chip_rows), "chip rows scanned")
    with machine.pool() as pool:
        landscape = chip_boxes(chip_histograms(raster, pool, report), recipe.min_classes)
    chosen = _choose(recipe, landscape)
    files = []
    for name, crs in (("chip_bbox.geojson", "EPSG:4326"), ("chip_bbox_5070.geojson", "EPSG:5070")):
        files.append(run.layout.file(name))
        with store.writing(files[-1]) as path:
            write_chip_geojson(chosen, path, crs)  # type: ignore[arg-type]
    histogram = picture(class_histogram_png(chosen[CLASS_COLUMNS].sum().to_numpy()), "classes")
    metadata = {
        "boxes_on_the_raster": len(landscape),
        "with_no_data": int((landscape["class_0"] > 0).sum()),
        "class_histogram": histogram,
        "richest": markdown(chosen[["chip_id", "lon", "lat", "classes", "weight"]].round(4), rows=10),
    }
    return run.finish(chosen, metadata, files)


def _choose(recipe: DatasetRecipe, landscape: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """The boxes of the recipe. Raises InputError where there are none."""
    boxes = read_chip_geojson(recipe.chip_boxes, landscape) if recipe.chip_boxes else landscape
    if recipe.aoi:
        boxes = filter_aoi(boxes, read_aoi(recipe.aoi))
    if not recipe.chip_boxes:
        boxes = choose_boxes(boxes, recipe.sampling, recipe.chips)
    if boxes.empty:
        raise InputError(
            f"no chip box can be chosen from {len(landscape)}: under sampling 'evenness' a box needs at least "
            f"{recipe.min_classes} classes and no no-data; lower min_classes or use sampling 'all'"
        )
    return boxes


def _checksum(path: str) -> str:
    """SHA-256 of a file that the recipe names, "" for none. Raises InputError where it is not there."""
    if not path:
        return ""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"{path}, which the recipe names, cannot be read: {error.strerror}") from None
