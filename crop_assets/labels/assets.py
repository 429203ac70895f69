"""Stages from a CDL raster to chip boxes: `cdl`, `candidate_chips`, `chip_bboxes`; and `label_quality` of these."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import geopandas as gpd
import pandas as pd

from crop_assets.classes import CLASS_COLUMNS, CLASSES
from crop_assets.errors import InputError
from crop_assets.graph.metadata import Picture, markdown
from crop_assets.graph.stage import Made, Source, YearRun, stage
from crop_assets.labels.aoi import aoi_checksum, filter_aoi, inside_aoi, read_aoi
from crop_assets.labels.balance import Balance, target_shares
from crop_assets.labels.cdl import CdlRaster, check_cdl, chip_histograms, raster_digest
from crop_assets.labels.plots import choice_maps_png, choices_png, class_histogram_png, label_quality_png
from crop_assets.labels.quality import check_confidence, measure_labels, require_chips
from crop_assets.labels.release import obtain_raster
from crop_assets.labels.sampling import (
    ChoiceReport,
    Strategy,
    candidate_boxes,
    choose_boxes,
    compare_choices,
    read_chip_geojson,
    report_choice,
    weighed_boxes,
    with_surroundings,
    write_chip_geojson,
)
from crop_assets.progress import Progress
from crop_assets.recipe import DatasetRecipe, read_named_file
from crop_assets.schemas import CANDIDATE_CHIPS, CDL, CHIP_BBOXES, LABEL_QUALITY
from resources.cdl import CdlReleases, raster_files, raster_sha256
from resources.errors import TryAgainError
from resources.machine import Machine

_WHY = ("why_fewer", "why_crowded")
"""The warnings of a `ChoiceReport`; the metadata have the same names."""


def _raster(run: YearRun, cdl_releases: CdlReleases, machine: Machine) -> Source:
    with machine.pool() as pool:
        made = obtain_raster(cdl_releases, run.year, pool, run.log, run.warn, run.recipe.unknown_codes)
    raster, origin = check_cdl(made.path.resolve()), made.origin
    row = {"file": made.path.name, "release": origin.release if origin else "", "sha256": made.sha256}
    chips = len(raster.chip_rows) * len(raster.chip_cols)
    metadata = {"path": dg.MetadataValue.path(raster.path), "chips_on_the_grid": chips}
    if origin:
        metadata |= {"release_version": origin.version, "release_sha256": origin.archive_sha256}
    size = {
        "bytes": sum(file.stat().st_size for file in raster_files(made.path)),
        "width": raster.width,
        "height": raster.height,
    }
    table = pd.DataFrame([{**row, **size, "left": raster.transform.c, "top": raster.transform.f}])
    return Source(table, row, metadata)


@stage("labels", CDL, kinds={"geotiff"}, code_version="2", source=_raster)
def cdl(run: YearRun, source: pd.DataFrame) -> Made:
    """The Cropland Data Layer raster of the year: a local raster, or the release that NASS lists, downloaded and
    converted to a tiled GeoTIFF with overviews. It is checked (EPSG:5070, 30 m, national grid) and identified by its
    checksum.
    """
    return Made(source, {"raster": markdown(source.T.reset_index())})


@stage(
    "labels",
    CANDIDATE_CHIPS,
    kinds={"parquet"},
    fields=["unknown_codes"],
    code_version="2",
    warnings=["unknown_codes"],
)
def candidate_chips(run: YearRun, cdl: pd.DataFrame, cdl_releases: CdlReleases, machine: Machine) -> Made:
    """Every 224 x 224 box of the national chip grid inside the raster, with its pixels per class. The raster is read
    only once; chips can then be chosen again and again without it.
    """
    digest, unknown_codes = raster_digest(cdl), run.recipe.unknown_codes
    raster = check_cdl(cdl_releases.find_same(run.year, digest), unknown_codes)
    report = Progress(run.log, len(raster.chip_rows), "chip rows scanned")
    with machine.pool() as pool:
        histograms = chip_histograms(raster, pool, report)
    table = candidate_boxes(histograms)
    # threads opened the file at different times: make sure that nobody replaced it meanwhile
    cdl_releases.find_same(run.year, digest)
    histogram = Picture(class_histogram_png(table[CLASS_COLUMNS].sum().to_numpy()), "classes")
    metadata = {"with_no_data": int((table["class_0"] > 0).sum()), "class_histogram": histogram}
    if histograms.unknown:
        metadata["unknown_codes"] = (
            f"the raster has {histograms.unknown}; the recipe turns them into {unknown_codes!r}"
        )
    return Made(table, metadata)


def _area(run: YearRun) -> Source:
    aoi = read_aoi(run.recipe.aoi) if run.recipe.aoi else None
    # the polygons identify an area, not the file that they come from
    return Source(aoi, [_checksum(run.recipe.chip_boxes), "" if aoi is None else aoi_checksum(aoi)])


def _choice_fields(recipe: DatasetRecipe) -> list[str]:
    fields = ["chips", "sampling", "min_classes", "chip_boxes", "aoi", "block_chips"]
    balanced = ["class_target", "max_per_block", "sampling_seed"]
    return fields + (balanced if recipe.sampling == "balanced" else [])


@stage(
    "labels",
    CHIP_BBOXES,
    kinds={"geoparquet", "geojson"},
    fields=_choice_fields,
    code_version="3",
    source=_area,
    warnings=_WHY,
)
def chip_bboxes(run: YearRun, candidate_chips: pd.DataFrame, source: gpd.GeoDataFrame | None) -> Made:
    """The chosen 224 x 224 chip boxes on the national chip grid, with their pixels per class; also written as
    `chip_bbox.geojson` (EPSG:4326) and `chip_bbox_5070.geojson`.
    """
    recipe = run.recipe
    landscape = weighed_boxes(candidate_chips, recipe.min_classes)
    choice = _choose(recipe, landscape, source)
    chosen = with_surroundings(choice.chosen, recipe.block_chips)
    files = []
    for name, crs in (("chip_bbox.geojson", "EPSG:4326"), ("chip_bbox_5070.geojson", "EPSG:5070")):
        files.append(run.layout.file(name))
        with run.store.writing(files[-1]) as path:
            write_chip_geojson(chosen, path, crs)  # type: ignore[arg-type]
    pictures = _pictures(landscape, choice, _balance(recipe))
    return Made(chosen, _counts(choice.report) | pictures, files)


def _balance(recipe: DatasetRecipe) -> Balance:
    target = target_shares(recipe.class_target, CLASSES[1:])
    return Balance(target, recipe.block_chips, recipe.max_per_block, recipe.sampling_seed)


@dataclass(frozen=True)
class _Choice:
    """The chip boxes `inside` the area of interest, and the `chosen` ones among them.

    `choices` also has what 'evenness' and 'balanced' would choose, for comparison; its keys are the strategies.
    """

    inside: gpd.GeoDataFrame
    choices: dict[str, gpd.GeoDataFrame]
    report: ChoiceReport

    @property
    def chosen(self) -> gpd.GeoDataFrame:
        return self.choices[self.report.strategy]


def _choose(recipe: DatasetRecipe, landscape: gpd.GeoDataFrame, aoi: gpd.GeoDataFrame | None) -> _Choice:
    """Raises InputError if the recipe chooses no box, or the area of interest touches none."""
    boxes, balance = landscape, _balance(recipe)
    if recipe.chip_boxes:
        boxes = read_chip_geojson(recipe.chip_boxes, landscape)
    inside = boxes if aoi is None else boxes[inside_aoi(boxes, aoi)].reset_index(drop=True)
    if aoi is not None and inside.empty:
        # raises, with the bounds of both
        filter_aoi(boxes if recipe.chip_boxes else boxes[boxes["class_0"] == 0], aoi)
    if recipe.chip_boxes:
        how, wanted, choices = "chip_boxes", len(boxes), {"chip_boxes": inside}
    else:
        strategies: dict[Strategy, None] = dict.fromkeys((recipe.sampling, "evenness", "balanced"))
        choices = {str(name): choose_boxes(inside, name, recipe.chips, balance) for name in strategies}
        how, wanted = recipe.sampling, recipe.chips
    report = report_choice(boxes, inside, len(choices[how]), how, wanted, recipe.min_classes, balance)
    if not report.chosen:
        raise InputError(f"no chip box can be chosen: {report.why_fewer}")
    return _Choice(inside, choices, report)


def _counts(report: ChoiceReport) -> dict[str, Any]:
    """Metadata: how many chips were chosen, and why not more."""
    found: dict[str, Any] = {
        "wanted": report.wanted,
        "inside_the_aoi": report.inside,
        "eligible": report.eligible,
        "chosen": report.chosen,
        "boxes": markdown(report.table),
    }
    return found | {name: why for name in _WHY if (why := getattr(report, name))}


def _pictures(landscape: gpd.GeoDataFrame, choice: _Choice, balance: Balance) -> dict[str, Any]:
    """Metadata: how good a dataset the choice makes, compared with the other strategies."""
    inside, choices = choice.inside, choice.choices
    pixels = {name: boxes[CLASS_COLUMNS].sum().to_numpy() for name, boxes in choices.items()}
    everything = {"all boxes": inside[CLASS_COLUMNS].sum().to_numpy()}
    return {
        "choices": markdown(compare_choices({**choices, "all boxes": inside}, balance)),
        "distance_from_target": "share of pixels that would need another class to match the target; 0 is best",
        "classes": Picture(choices_png(everything | pixels, balance.target), "classes"),
        "map": Picture(choice_maps_png(choices, landscape), "map of the chosen chips"),
        "richest": markdown(_richest(choice.chosen), rows=10),
    }


def _richest(boxes: gpd.GeoDataFrame) -> pd.DataFrame:
    ranked = boxes.sort_values(["weight", "chip_id"], ascending=[False, True])
    return pd.DataFrame(ranked[["chip_id", "lon", "lat", "classes", "weight"]].round(4))


def _confidence(run: YearRun) -> Source:
    path = run.recipe.confidence_raster
    if not path:
        return Source(None, "")
    raster = check_confidence(path, run.year)
    digest = raster_sha256(Path(raster.path))
    return Source((raster, digest), digest, {"confidence_raster": dg.MetadataValue.path(raster.path)})


@stage(
    "labels",
    LABEL_QUALITY,
    kinds={"parquet"},
    fields=["unknown_codes", "confidence_raster"],
    source=_confidence,
)
def label_quality(
    run: YearRun,
    tile_map: pd.DataFrame,
    cdl: pd.DataFrame,
    source: tuple[CdlRaster, str] | None,
    cdl_releases: CdlReleases,
    machine: Machine,
) -> Made:
    """How good the labels of each chip box are: their purity, which is the share of pixels that agree with the majority
    of their 3 x 3 neighbours, and with the recipe's `confidence_raster` the mean confidence of the CDL.
    """
    # with its tile, so that a tile depends on its own chips alone
    places = tile_map[["chip_id", "tile"]].sort_values("chip_id", ignore_index=True)
    ids, digest = list(places["chip_id"]), raster_digest(cdl)
    raster = check_cdl(cdl_releases.find_same(run.year, digest), run.recipe.unknown_codes)
    confidence = source[0] if source else None
    if confidence:
        require_chips(confidence, ids)
    with machine.pool() as pool:
        measured = measure_labels(
            raster, confidence, ids, pool, Progress(run.log, len(ids), "chips with measured labels")
        )
    # the files were open for a while: make sure that nobody replaced them meanwhile
    cdl_releases.find_same(run.year, digest)
    if source and raster_sha256(Path(source[0].path)) != source[1]:
        raise TryAgainError(f"{source[0].path} was replaced while it was read; launch this run again")
    table = places.merge(measured, on="chip_id")
    return Made(table, _label_figures(table))


def _label_figures(table: pd.DataFrame) -> dict[str, Any]:
    """Metadata: mean, quartiles and chart of both figures, and the chips with the least pure labels."""
    figures = table[["purity_percent", "confidence_percent"]].dropna(axis=1, how="all")
    found: dict[str, Any] = {
        f"mean_{name}": round(float(figures[name].mean()), 2) for name in figures if len(table)
    }
    if figures.empty:
        return found
    summary = figures.describe().loc[["mean", "min", "25%", "50%", "75%", "max"]]
    lowest = table.sort_values(["purity_percent", "chip_id"]).drop(columns="tile")
    return found | {
        "summary": markdown(summary.round(2).rename_axis("figure").reset_index()),
        "histogram": Picture(label_quality_png(table), "quality of labels"),
        "least_pure": markdown(lowest.round(2), rows=10),
    }


def _checksum(path: str) -> str:
    return hashlib.sha256(read_named_file(path)).hexdigest() if path else ""
