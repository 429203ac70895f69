"""The tables of a dataset, in the order in which they are made: their columns, types and meaning."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pandas as pd
import pyarrow as pa

from crop_assets.chip_grid import (
    CHIP_ID,
    CHIP_METRES,
    CHIP_SIZE,
    CRS,
    GRID_COLS,
    GRID_ROWS,
    MAX_TILES,
    ORIGIN_X,
    ORIGIN_Y,
)
from crop_assets.classes import CLASS_COLUMNS, CLASSES
from crop_assets.hls import BANDS, FMASK_COUNTS, POSITIONS, QA_BAND, REFLECTANCE_BANDS, SCENE_ID, TILE
from resources.tables import Column, TableSchema

_TILE_OR_NONE = f"({TILE})?"
_SHA256 = "[0-9a-f]{64}"
_FILE = r"training_datasets/([\w-][\w.-]*/)+[\w-][\w.-]*"
"""The name in the store of a file of a dataset."""
_CID_OR_NONE = "[0-9A-Za-z]*"
_LINK_OR_NONE = r"(https?://[!-~]+)?"
_PIXELS = CHIP_SIZE**2


def _optional(*columns: Column) -> tuple[Column, ...]:
    return tuple(replace(column, optional=True) for column in columns)


def _percent(name: str, description: str) -> Column:
    return Column(name, pa.float64(), description, optional=True, low=0, high=100)


def _count(name: str, description: str, type: pa.DataType, high: float | None = None) -> Column:
    return Column(name, type, description, low=0, high=high)


def _one_raster(cdl: pd.DataFrame) -> str:
    return "" if len(cdl) == 1 else f"it has {len(cdl)} rows, and a year has one raster"


def _few_tiles(tile_map: pd.DataFrame) -> str:
    found = tile_map["tile"].nunique()
    return (
        f"it names {found:,} tiles, and the chip grid touches {MAX_TILES:,} at most"
        if found > MAX_TILES
        else ""
    )


def _three_or_none(scenes: pd.DataFrame) -> str:
    chosen = scenes[scenes["position"] != ""]
    if len(chosen) and sorted(chosen["position"]) != sorted(POSITIONS):
        return f"{len(chosen)} of its scenes have a position, and not one each of first, middle and last"
    return "a selected scene has no date" if chosen["date"].isna().any() else ""


def _every_chip_of_candidates(candidates: pd.DataFrame) -> str:
    if candidates.empty:
        return ""
    if candidates.groupby("scene_id")["chip_id"].agg(frozenset).nunique() > 1:
        return "its candidates have not all the same chips"
    measured = candidates[candidates["problem"] == ""]
    if measured[[*FMASK_COUNTS, "path", "sha256"]].isna().any(axis=None):
        return "counts or the file of a measured candidate are missing"
    if (measured["bad"] + measured["fill"] > _PIXELS).any():
        return "a chip has more bad and missing pixels than pixels"
    return ""


def _files_of(*choices: Sequence[str]) -> Callable[[pd.DataFrame], str]:
    """The rule of a table of files: it is empty, or has the bands of one of `choices` for each of three scenes."""

    def rule(files: pd.DataFrame) -> str:
        found = set(zip(files["position"], files["band"], strict=True))
        if not found or any(found == {(p, band) for p in POSITIONS for band in bands} for bands in choices):
            return ""
        return f"its {len(found)} files are not those of three scenes"

    return rule


def _facts_where_made(chips: pd.DataFrame) -> str:
    made = chips[chips["outcome"] == ""]
    return "facts of a chip that was made are missing" if made.isna().any(axis=None) else ""


def _files_where_kept(chips: pd.DataFrame) -> str:
    kept = chips["kept"]
    if (kept != (chips["reason"] == "")).any():
        return "a chip is kept and rejected"
    if (chips.loc[kept, ["merged_path", "mask_path", "merged_sha256", "mask_sha256"]] == "").any(axis=None):
        return "files of a kept chip are missing"
    facts = [*(f"{position}_date" for position in POSITIONS), *CLASS_COLUMNS]
    return "facts of a kept chip are missing" if chips.loc[kept, facts].isna().any(axis=None) else ""


CDL = TableSchema(
    (
        Column("file", pa.string(), "name of the raster, EPSG:5070, 30 m, uint8 codes"),
        Column("release", pa.string(), "archive that the raster was made from; empty for a local raster"),
        _count("bytes", "size of the file, including other files with its pixels", pa.int64()),
        Column(
            "sha256",
            pa.string(),
            "checksum of the file, including other files with its pixels",
            pattern=_SHA256,
        ),
        Column("width", pa.int64(), "columns", low=1),
        Column("height", pa.int64(), "rows", low=1),
        Column("left", pa.float64(), "left edge in EPSG:5070, metres", low=-1e7, high=1e7),
        Column("top", pa.float64(), "upper edge in EPSG:5070, metres", low=-1e7, high=1e7),
    ),
    rule=_one_raster,
)

_CHIP = Column(
    "chip_id", pa.string(), "chip id on the national chip grid, such as chip_257_266", pattern=CHIP_ID
)
_TILE = Column("tile", pa.string(), "HLS tile, such as 13TDE", pattern=TILE)
_CLASSES = tuple(
    _count(column, f"pixels of class {name}", pa.int32(), _PIXELS)
    for column, name in zip(CLASS_COLUMNS, CLASSES, strict=True)
)
_PLACE_AND_CLASSES = (
    _CHIP,
    _count("row", "row of the national chip grid", pa.int32(), GRID_ROWS - 1),
    _count("col", "column of the national chip grid", pa.int32(), GRID_COLS - 1),
    Column(
        "x",
        pa.float64(),
        "centre in EPSG:5070, metres",
        low=ORIGIN_X,
        high=ORIGIN_X + GRID_COLS * CHIP_METRES,
    ),
    Column(
        "y",
        pa.float64(),
        "centre in EPSG:5070, metres",
        low=ORIGIN_Y - GRID_ROWS * CHIP_METRES,
        high=ORIGIN_Y,
    ),
    Column("lon", pa.float64(), "centre, degrees east", low=-180, high=180),
    Column("lat", pa.float64(), "centre, degrees north", low=-90, high=90),
    *_CLASSES,
    _count("classes", "how many of the 13 classes the box has", pa.int32(), 13),
)

_BLOCK = Column(
    "block", pa.string(), "block of chips that contains the box, for splits that keep blocks together"
)

CANDIDATE_CHIPS = TableSchema(_PLACE_AND_CLASSES, key=("chip_id",))

CHIP_BBOXES = TableSchema(
    (
        *_PLACE_AND_CLASSES,
        Column("weight", pa.float64(), "evenness of the classes, 0 to 1", low=0, high=1),
        _BLOCK,
        Column(
            "neighbours",
            pa.list_(pa.string()),
            "ids of the chip boxes that share an edge or a corner with this box",
            pattern=CHIP_ID,
        ),
    ),
    geometry_crs=CRS,
    key=("chip_id",),
)

_LABELS = (
    _percent(
        "purity_percent",
        "pixels whose class is the most frequent among their neighbours in 3 x 3 pixels, percent; missing if the "
        "chip has no labels",
    ),
    _percent(
        "confidence_percent", "mean confidence of the CDL, percent; missing without a confidence raster"
    ),
)

LABEL_QUALITY = TableSchema(
    (
        _CHIP,
        Column(
            "tile", pa.string(), "HLS tile, as in tile_map; empty if the chip has none", pattern=_TILE_OR_NONE
        ),
        *_LABELS,
    ),
    key=("chip_id",),
)

TILE_GRID = TableSchema(
    (
        _TILE,
        Column("lon", pa.float64(), "centroid, degrees east", low=-180, high=180),
        Column("lat", pa.float64(), "centroid, degrees north", low=-90, high=90),
        Column("x", pa.float64(), "centroid in EPSG:5070, metres; inf if it cannot be projected"),
        Column("y", pa.float64(), "centroid in EPSG:5070, metres"),
        Column(
            "minx",
            pa.float64(),
            "west edge, degrees; below -180 if the tile spans the antimeridian",
            low=-360,
            high=360,
        ),
        Column("miny", pa.float64(), "south edge, degrees", low=-90, high=90),
        Column(
            "maxx",
            pa.float64(),
            "east edge, degrees; above 180 if the tile spans the antimeridian",
            low=-360,
            high=360,
        ),
        Column("maxy", pa.float64(), "north edge, degrees", low=-90, high=90),
    ),
    geometry_crs="EPSG:4326",
    key=("tile",),
)

TILE_MAP = TableSchema(
    (
        _CHIP,
        Column("chip_x", pa.float64(), "centre of the chip, degrees east", low=-180, high=180),
        Column("chip_y", pa.float64(), "centre of the chip, degrees north", low=-90, high=90),
        Column(
            "tile",
            pa.string(),
            "nearest HLS tile, such as 13TDE; empty if the chip is completely outside it",
            pattern=_TILE_OR_NONE,
        ),
        Column(
            "distance_m",
            pa.float64(),
            "distance from the centre of the chip to the tile's centroid in EPSG:5070, metres",
        ),
        Column("contained", pa.bool_(), "whether the chip is completely inside the tile's HLS raster"),
        Column(
            "margin_m",
            pa.float64(),
            "smallest distance from the chip to the raster's edge, metres; negative outside",
        ),
        Column("finding", pa.string(), "why the chip is not contained"),
        *(
            Column(f"tile_{side}", pa.float64(), f"{side} edge of the tile, degrees")
            for side in ("west", "south", "east", "north")
        ),
    ),
    key=("chip_id",),
    rule=_few_tiles,
)

SCENE_COLUMNS = (
    Column("scene_id", pa.string(), "HLS scene id, such as HLS.S30.T13TDE.2022111T174859.v2.0"),
    _TILE,
    Column("date", pa.date32(), "day of sensing (UTC)", optional=True),
    _percent("cloud_cover", "cloud cover of the complete scene, percent"),
    _percent("spatial_coverage", "share of the tile that the scene covers, percent"),
    _percent("chip_coverage", "share of the area of the tile's chips inside the scene's footprint, percent"),
    Column("missing_bands", pa.string(), "needed bands that the catalogue does not list, space-separated"),
    Column(
        "problem",
        pa.string(),
        "which metadata were rejected, or why an item of the catalogue was set aside, which then has no date",
    ),
)

SCENE_METADATA = TableSchema(
    (
        *SCENE_COLUMNS,
        _count("granule_bytes", "bytes of all files of the scene; 0 if the metadata do not say", pa.int64()),
        *(
            Column(f"{band}_http", pa.string(), f"HTTPS link of {band}", pattern=_LINK_OR_NONE)
            for band in BANDS
        ),
        *(Column(f"{band}_s3", pa.string(), f"S3 link of {band}") for band in BANDS),
    ),
)

_CID = Column("cid", pa.string(), "CID of the file's content; empty if unknown", pattern=_CID_OR_NONE)
_STORED_FILE = (
    Column("path", pa.string(), "file in the store", pattern=_FILE),
    _count("bytes", "size of the file", pa.int64()),
    Column("sha256", pa.string(), "checksum of the file", pattern=_SHA256),
)

CANDIDATE_FMASKS = TableSchema(
    (
        Column("scene_id", pa.string(), "HLS scene id of the candidate", pattern=SCENE_ID),
        Column("date", pa.date32(), "day of sensing (UTC)"),
        _CHIP,
        *_optional(
            *(
                _count(name, f"{name} pixels of the chip by Fmask", pa.int32(), _PIXELS)
                for name in FMASK_COUNTS
            )
        ),
        Column("problem", pa.string(), "why the candidate could not be measured; empty if it was"),
        *_optional(*_STORED_FILE),
        _CID,
        Column("verified", pa.bool_(), "whether the bytes match the CID"),
    ),
    key=("scene_id", "chip_id"),
    rule=_every_chip_of_candidates,
)

SELECTED_SCENES = TableSchema(
    (
        *SCENE_COLUMNS,
        Column("fit", pa.bool_(), "whether cloud cover, coverage and bands allow the scene to be selected"),
        Column(
            "position", pa.string(), "first, middle or last; empty if not selected", words=("", *POSITIONS)
        ),
        Column("reason", pa.string(), "why the scene is not selected; empty if it is"),
        _percent("coverage_step", "step of the coverage ladder that was used, percent"),
        _percent("clear_percent", "estimated share of the chips' pixels that are covered and clear, percent"),
        _percent(
            "measured_percent",
            "share of the chips' pixels that are covered and clear by Fmask, percent; missing if not measured",
        ),
        *_optional(
            _count(
                "chips_clear", "chips that pass the QA rule on this date by the measured Fmask", pa.int32()
            ),
            _count("chips_pass", "chips that pass it on all three selected dates", pa.int32()),
            _count(
                "chips_pass_estimated",
                "chips that would pass it with the three scenes of `season_spread`, which are chosen by scene-wide "
                "figures",
                pa.int32(),
            ),
        ),
        Column("note", pa.string(), "why the scene was chosen, and the runner-up"),
    ),
    key=("scene_id",),
    rule=_three_or_none,
)

FILE_COLUMNS = (
    Column("scene_id", pa.string(), "HLS scene id", pattern=SCENE_ID),
    Column("position", pa.string(), "first, middle or last", words=POSITIONS),
    Column("date", pa.date32(), "day of sensing (UTC)"),
    Column("band", pa.string(), "B02 B03 B04 B8A B11 B12 or Fmask", words=BANDS),
)
NAMED_FILE_COLUMNS = (
    *FILE_COLUMNS,
    Column("file", pa.string(), "file name"),
    _CID,
)

BAND_CIDS = TableSchema(
    (
        *NAMED_FILE_COLUMNS,
        Column("problem", pa.string(), "why there is no CID"),
        Column("http", pa.string(), "HTTPS link as a fallback", pattern=_LINK_OR_NONE),
        _count("bytes", "size of the file by the catalogue; 0 if unknown", pa.int64()),
        _count("max_bytes", "maximum size of the file by the metadata", pa.int64()),
    ),
    key=("position", "band"),
    rule=_files_of(BANDS),
)

DOWNLOADED_BANDS = TableSchema(
    (
        *FILE_COLUMNS,
        *_STORED_FILE,
        _CID,
        Column("verified", pa.bool_(), "whether the bytes match the CID"),
        Column("note", pa.string(), "why the file is not verified"),
        _count("blocks", "blocks of a partial file; 0 if the file is complete", pa.int32()),
        _count("complete_bytes", "size of the complete file in bytes", pa.int64()),
    ),
    key=("position", "band"),
    rule=_files_of(BANDS, [QA_BAND]),
)

DOWNLOADED_FMASKS = replace(DOWNLOADED_BANDS, rule=_files_of([QA_BAND]))

TILE_PAYLOADS = TableSchema(
    (
        _TILE,
        _count("scenes", "scenes of the tile", pa.int32()),
        _count("files", "files of the tile", pa.int32()),
        _count("without_cid", "files without a CID", pa.int32()),
    )
)

CID_RETRIEVABILITY = TableSchema(
    (
        *NAMED_FILE_COLUMNS,
        Column("available", pa.bool_(), "whether a source returned the CID's first block, verified"),
        Column("source", pa.string(), "that source; empty if there is none"),
        Column("problem", pa.string(), "the answer of each source"),
    )
)

MISSING_CIDS = TableSchema(
    (
        *NAMED_FILE_COLUMNS,
        _TILE,
        Column("problem", pa.string(), "the answer of each source"),
    )
)

PIXEL_COUNTS = tuple(
    _count(f"{count}_{position}", f"{count} pixels by Fmask on the {position} date", pa.int32(), _PIXELS)
    for position in POSITIONS
    for count in FMASK_COUNTS
)

_BAD_PERCENT = (
    *(_percent(f"bad_percent_{p}", f"bad pixels of the {p} date, percent") for p in POSITIONS),
    _percent("bad_percent_max", "worst of the three dates, percent"),
)

CHIP_QUALITY = TableSchema(
    (
        _CHIP,
        *PIXEL_COUNTS,
        _count("na_count", "pixels without Fmask on any date", pa.int32(), _PIXELS),
        *_BAD_PERCENT,
        Column(
            "reason", pa.string(), "why the chip cannot be kept, regardless of its bands; empty if it can"
        ),
        Column("figure", pa.float64(), "the number that decided: missing pixels, or percent"),
    ),
    key=("chip_id",),
)

REPROJECTED_TILES = TableSchema(
    (
        *FILE_COLUMNS,
        Column(
            "path",
            pa.string(),
            "file in the store, EPSG:5070, 30 m, blocks of 224 x 224 on the chip grid",
            pattern=_FILE,
        ),
        *_STORED_FILE[1:],
        _count("blocks", "chip blocks that are stored", pa.int32()),
    ),
    key=("position", "band"),
    rule=_files_of(BANDS),
)

_DATES = tuple(
    Column(f"{position}_date", pa.date32(), f"day of the {position} scene") for position in POSITIONS
)
_BANDS_MISSING = _count("na_count", "pixels without a band or Fmask on any date", pa.int32(), _PIXELS)

CHIPS = TableSchema(
    (
        _CHIP,
        Column("outcome", pa.string(), "empty if the chip was made, otherwise why not"),
        _count("fit_scenes", "scenes of the tile that are fit to be selected", pa.int32()),
        # if the chip was made
        *_optional(
            *(
                Column(f"{name}_path", pa.string(), f"{name} file in the store", pattern=_FILE)
                for name in ("merged", "mask", "fmask")
            ),
            *(
                Column(f"{name}_sha256", pa.string(), "checksum of the file", pattern=_SHA256)
                for name in ("merged", "mask", "fmask")
            ),
            *_DATES,
            *(
                Column(f"{position}_scene", pa.string(), f"id of the {position} scene", pattern=SCENE_ID)
                for position in POSITIONS
            ),
            *(
                _count(f"valid_{position}", "pixels neither bad nor fill", pa.int32(), _PIXELS)
                for position in POSITIONS
            ),
            *PIXEL_COUNTS,
            _BANDS_MISSING,
            *_CLASSES,
        ),
    ),
    key=("chip_id",),
    rule=_facts_where_made,
)

FILTERED_CHIPS = TableSchema(
    (
        _CHIP,
        *_BAD_PERCENT,
        *_optional(_BANDS_MISSING),
        Column("reason", pa.string(), "why the chip is rejected; empty if it is kept"),
        Column("figure", pa.float64(), "the number that decided: fit scenes, missing pixels, or percent"),
        Column("kept", pa.bool_(), "whether the chip is part of the dataset"),
        *(
            Column(
                f"{name}_path",
                pa.string(),
                f"{what} in chips_filtered; empty if rejected",
                pattern=f"({_FILE})?",
            )
            for name, what in (("merged", "merged image"), ("mask", "mask"))
        ),
        Column("merged_sha256", pa.string(), "checksum of the merged image", pattern=f"({_SHA256})?"),
        Column("mask_sha256", pa.string(), "checksum of the mask", pattern=f"({_SHA256})?"),
        # if the chip was made
        *_optional(*_DATES, *_CLASSES),
    ),
    key=("chip_id",),
    rule=_files_where_kept,
)

_SPLIT = Column("split", pa.string(), "train, validation or test", words=("train", "validation", "test"))

_LEAKAGE = (
    Column("touches_train", pa.bool_(), "not for training, and touches a training chip (8 neighbours)"),
    Column("borders_train", pa.bool_(), "not for training, and shares an edge with a training chip"),
    Column("in_train_tile", pa.bool_(), "not for training, and shares its tile with a training chip"),
    Column("in_train_block", pa.bool_(), "not for training, and shares its block with a training chip"),
)

SPLITS = TableSchema(
    (
        _CHIP,
        _TILE,
        _SPLIT,
        _BLOCK,
        *_LEAKAGE,
        Column("merged_path", pa.string(), "merged image in the store", pattern=_FILE),
        Column("mask_path", pa.string(), "mask in the store", pattern=_FILE),
        Column("merged_sha256", pa.string(), "checksum of the merged image", pattern=_SHA256),
        Column("mask_sha256", pa.string(), "checksum of the mask", pattern=_SHA256),
        *_DATES,
        *_CLASSES,
    ),
    key=("chip_id",),
)

_INDEX_DATES = tuple(
    column
    for position in POSITIONS
    for column in (
        Column(f"{position}_date", pa.date32(), f"day of the {position} scene"),
        Column(f"{position}_scene", pa.string(), f"id of the {position} scene", pattern=SCENE_ID),
        Column(
            f"{position}_cids",
            pa.list_(pa.string()),
            "CIDs of its files B02 B03 B04 B8A B11 B12; empty if unknown",
            pattern=_CID_OR_NONE,
        ),
        Column(f"{position}_verified", pa.bool_(), "whether the bytes of all six match their CIDs"),
        _percent(f"bad_percent_{position}", f"bad pixels of the {position} date, percent"),
    )
)

CHIP_INDEX = TableSchema(
    (
        _CHIP,
        _SPLIT,
        _TILE,
        _BLOCK,
        *_LEAKAGE,
        Column("lon", pa.float64(), "centre, degrees east", low=-180, high=180),
        Column("lat", pa.float64(), "centre, degrees north", low=-90, high=90),
        *_INDEX_DATES,
        _BANDS_MISSING,
        Column("cdl_file", pa.string(), "name of the CDL raster that the mask is from"),
        Column("cdl_release", pa.string(), "archive that the raster was made from; empty for a local raster"),
        Column("cdl_sha256", pa.string(), "checksum of the raster", pattern=_SHA256),
        *(
            Column(f"{column}_share", pa.float64(), f"share of the pixels that are {name}", low=0, high=1)
            for column, name in zip(CLASS_COLUMNS, CLASSES, strict=True)
        ),
        *_LABELS,
        Column(
            "image",
            pa.string(),
            "image of 18 bands, in the dataset's folder",
            pattern=rf"chips_filtered/{CHIP_ID}_merged\.tif",
        ),
        Column("image_sha256", pa.string(), "checksum of the image", pattern=_SHA256),
        Column(
            "mask",
            pa.string(),
            "mask of the classes, in the dataset's folder",
            pattern=rf"chips_filtered/{CHIP_ID}\.mask\.tif",
        ),
        Column("mask_sha256", pa.string(), "checksum of the mask", pattern=_SHA256),
    ),
    geometry_crs=CRS,
    key=("chip_id",),
)

READER_LAYOUT = TableSchema(
    (
        _CHIP,
        _SPLIT,
        *_DATES,
        *(
            Column(f"{name}_path", pa.string(), f"{what} in the folder of its split", pattern=_FILE)
            for name, what in (("merged", "merged image"), ("mask", "mask"))
        ),
    ),
    key=("chip_id",),
)

EXPORTS = TableSchema(
    (
        Column("form", pa.string(), "parquet or npy", words=("parquet", "npy")),
        _SPLIT,
        Column("file", pa.string(), "file, in the dataset's folder", pattern=r"exports/[\w.-]+"),
        _count("chips", "chips of the file", pa.int64()),
        _count("bytes", "size of the file", pa.int64()),
    )
)

BAND_STATS = TableSchema(
    (
        Column("band", pa.string(), "band, over the three dates", words=REFLECTANCE_BANDS),
        Column("mean", pa.float64(), "mean, reflectance x 10,000", low=-32768, high=32767),
        Column("std", pa.float64(), "population standard deviation", low=0, high=32768),
        Column("min", pa.float64(), "value at 1.5 percent", low=-32768, high=32767),
        Column("max", pa.float64(), "value at 98.5 percent", low=-32768, high=32767),
        _count("pixels", "values counted", pa.int64()),
    )
)

_CLASS = (
    _count("class", "class 0 to 13", pa.int32(), len(CLASSES) - 1),
    Column("name", pa.string(), "name of the class", words=CLASSES),
    _count("pixels", "pixels of the class", pa.int64()),
)

CLASS_WEIGHTS = TableSchema(
    (
        *_CLASS,
        Column("weight", pa.float64(), "balanced weight; the weights sum to 1", low=0, high=1),
    )
)

CLASS_DISTRIBUTION = TableSchema(
    (
        _SPLIT,
        *_CLASS,
        _count("chips", "chips with the class", pa.int64()),
        _count("dominated", "chips whose largest class it is", pa.int64()),
        *(
            Column(name, pa.float64(), description, optional=True, low=0, high=1)
            for name, description in (
                (
                    "clustering",
                    "share of the chips next to those that it dominates that it dominates as well; missing below "
                    "two such chips",
                ),
                ("clustering_by_chance", "what `clustering` would be if the chips were shuffled"),
            )
        ),
    )
)

VIEWER = TableSchema(
    (
        Column("file", pa.string(), "file, in the dataset's folder", pattern=r"viewer/[\w./-]+"),
        _count("chips", "chips whose pictures the file has; 0 for other files", pa.int64()),
        _count("bytes", "size of the file", pa.int64()),
    ),
    key=("file",),
)

_HASH = Column("sha256", pa.string(), "checksum of the file", pattern=_SHA256)

DATASET_FILES = TableSchema(
    (
        Column("file", pa.string(), "file, relative to the dataset's folder", pattern=r"[\w-][\w./-]*"),
        Column("stage", pa.string(), "the asset that wrote it"),
        Column("media_type", pa.string(), "media type, such as image/tiff"),
        _count("bytes", "size of the file", pa.int64()),
        _HASH,
    ),
    key=("file",),
)

FINGERPRINT = TableSchema(
    (
        Column("fingerprint", pa.string(), "hash of the recipe, inputs and outputs", pattern=_SHA256),
        *(
            Column(f"{name}_sha256", pa.string(), f"hash of the {name}", pattern=_SHA256)
            for name in ("recipe", "inputs", "outputs")
        ),
        _count(
            "inputs", "inputs: CDL raster, tile grid, band files, and lists that the recipe names", pa.int64()
        ),
        _count("outputs", "output files", pa.int64()),
    )
)

STAC_CATALOGUE = TableSchema(
    (
        Column("file", pa.string(), "file, in the dataset's folder", pattern=r"stac/[\w./-]+"),
        Column(
            "kind", pa.string(), "collection, item or geoparquet", words=("collection", "item", "geoparquet")
        ),
        _count("bytes", "size of the file", pa.int64()),
        _HASH,
    ),
    key=("file",),
)

_DESCRIPTION = (
    Column("file", pa.string(), "file, in the dataset's folder", pattern=r"[\w-][\w./-]*"),
    _count("bytes", "size of the file", pa.int64()),
    _HASH,
)

DATASET_CARD = TableSchema(_DESCRIPTION, key=("file",))

CROISSANT = TableSchema(_DESCRIPTION, key=("file",))

PUBLISHED_DATASET = TableSchema(
    (
        Column("root_cid", pa.string(), "CID of the dataset's folder"),
        Column("to", pa.string(), "kubo or car", words=("kubo", "car")),
        Column("place", pa.string(), "RPC address of the node, or the CAR file in the store"),
        _count("files", "files of the folder", pa.int64()),
        _count("bytes", "bytes of these files", pa.int64()),
    )
)

SCHEMAS: dict[str, TableSchema] = {
    "cdl": CDL,
    "candidate_chips": CANDIDATE_CHIPS,
    "chip_bboxes": CHIP_BBOXES,
    "tile_grid": TILE_GRID,
    "tile_map": TILE_MAP,
    "label_quality": LABEL_QUALITY,
    "scene_metadata": SCENE_METADATA,
    "candidate_fmasks": CANDIDATE_FMASKS,
    "selected_scenes": SELECTED_SCENES,
    "band_cids": BAND_CIDS,
    "downloaded_fmasks": DOWNLOADED_FMASKS,
    "chip_quality": CHIP_QUALITY,
    "downloaded_bands": DOWNLOADED_BANDS,
    "tile_payloads": TILE_PAYLOADS,
    "cid_retrievability": CID_RETRIEVABILITY,
    "missing_cids": MISSING_CIDS,
    "reprojected_tiles": REPROJECTED_TILES,
    "chips": CHIPS,
    "filtered_chips": FILTERED_CHIPS,
    "splits": SPLITS,
    "chip_index": CHIP_INDEX,
    "reader_layout": READER_LAYOUT,
    "exports": EXPORTS,
    "band_stats": BAND_STATS,
    "class_weights": CLASS_WEIGHTS,
    "class_distribution": CLASS_DISTRIBUTION,
    "viewer": VIEWER,
    "fingerprint": FINGERPRINT,
    "dataset_files": DATASET_FILES,
    "stac_catalogue": STAC_CATALOGUE,
    "dataset_card": DATASET_CARD,
    "croissant": CROISSANT,
    "published_dataset": PUBLISHED_DATASET,
}
"""The table of each asset, by its name."""


def tile_names(tile_map: pd.DataFrame) -> list[str]:
    """The tiles of a tile map, sorted, without the "" of chips that have none."""
    return sorted({*tile_map["tile"]} - {""})
