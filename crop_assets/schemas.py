"""The tables of a dataset: their columns, types and what these mean.

Belongs here: what each table is, in the order in which they are made. Does not: making them (`assets` of each stage),
nor reading and writing (`resources.tables`).
"""

from dataclasses import replace

import pyarrow as pa

from crop_assets.chip_grid import CRS
from crop_assets.chips.quality import COUNTS
from crop_assets.classes import CLASS_COLUMNS, CLASSES
from crop_assets.hls import BANDS
from crop_assets.scenes.selection import POSITIONS
from resources.tables import Column, TableSchema


def _optional(*columns: Column) -> tuple[Column, ...]:
    return tuple(replace(column, optional=True) for column in columns)


CDL = TableSchema(
    (
        Column("file", pa.string(), "name of the raster, EPSG:5070, 30 m, uint8 codes"),
        Column(
            "release", pa.string(), "archive that the raster was made of; empty for a raster of one's own"
        ),
        Column("bytes", pa.int64(), "size of the file, with those that its pixels are in"),
        Column("sha256", pa.string(), "checksum of the file, with those that its pixels are in"),
        Column("width", pa.int64(), "columns"),
        Column("height", pa.int64(), "rows"),
        Column("left", pa.float64(), "left edge in EPSG:5070, metres"),
        Column("top", pa.float64(), "upper edge in EPSG:5070, metres"),
    )
)

_CLASSES = tuple(
    Column(column, pa.int32(), f"pixels of class {name}")
    for column, name in zip(CLASS_COLUMNS, CLASSES, strict=True)
)
_PLACE_AND_CLASSES = (
    Column("chip_id", pa.string(), "chip_RRR_CCC on the national chip grid"),
    Column("row", pa.int32(), "row of the national chip grid"),
    Column("col", pa.int32(), "column of the national chip grid"),
    Column("x", pa.float64(), "centre in EPSG:5070, metres"),
    Column("y", pa.float64(), "centre in EPSG:5070, metres"),
    Column("lon", pa.float64(), "centre, degrees east"),
    Column("lat", pa.float64(), "centre, degrees north"),
    *_CLASSES,
    Column("classes", pa.int32(), "how many of the 13 classes the box holds"),
)

CANDIDATE_CHIPS = TableSchema(_PLACE_AND_CLASSES, key=("chip_id",))

CHIP_BBOXES = TableSchema(
    (
        *_PLACE_AND_CLASSES,
        Column("weight", pa.float64(), "evenness of the classes, 0 to 1"),
        Column(
            "block", pa.string(), "block of chips that the box lies in, for splits that keep blocks together"
        ),
        Column(
            "neighbours",
            pa.list_(pa.string()),
            "ids of the chip boxes that share an edge or a corner with it",
        ),
    ),
    geometry_crs=CRS,
    key=("chip_id",),
)

TILE_GRID = TableSchema(
    (
        Column("tile", pa.string(), "tile name, such as 13TDE"),
        Column("lon", pa.float64(), "centroid, degrees east"),
        Column("lat", pa.float64(), "centroid, degrees north"),
        Column("x", pa.float64(), "centroid in EPSG:5070, metres; inf where it has no place there"),
        Column("y", pa.float64(), "centroid in EPSG:5070, metres"),
        Column("minx", pa.float64(), "west edge, degrees; below -180 where the tile spans the antimeridian"),
        Column("miny", pa.float64(), "south edge, degrees"),
        Column("maxx", pa.float64(), "east edge, degrees; above 180 where the tile spans the antimeridian"),
        Column("maxy", pa.float64(), "north edge, degrees"),
    ),
    geometry_crs="EPSG:4326",
    key=("tile",),
)

TILE_MAP = TableSchema(
    (
        Column("chip_id", pa.string(), "chip id on the national chip grid"),
        Column("chip_x", pa.float64(), "centre of the chip, degrees east"),
        Column("chip_y", pa.float64(), "centre of the chip, degrees north"),
        Column("tile", pa.string(), "nearest HLS tile; empty where the chip lies wholly outside of it"),
        Column("distance_m", pa.float64(), "centre of the chip to the tile's centroid in EPSG:5070, metres"),
        Column("contained", pa.bool_(), "whether the whole chip lies inside the tile's HLS raster"),
        Column(
            "margin_m",
            pa.float64(),
            "least distance of the chip to the raster's edge, metres; negative outside",
        ),
        Column("finding", pa.string(), "why the chip is not contained"),
        *(
            Column(f"tile_{side}", pa.float64(), f"{side} edge of the tile, degrees")
            for side in ("west", "south", "east", "north")
        ),
    ),
    key=("chip_id",),
)

SCENE_COLUMNS = (
    Column("scene_id", pa.string(), "HLS scene id, such as HLS.S30.T13TDE.2022111T174859.v2.0"),
    Column("tile", pa.string(), "HLS tile, such as 13TDE"),
    Column("date", pa.date32(), "day of sensing (UTC)", optional=True),
    Column("cloud_cover", pa.float64(), "cloud cover of the whole scene, percent"),
    Column("spatial_coverage", pa.float64(), "share of the tile that the scene covers, percent"),
    Column(
        "chip_coverage",
        pa.float64(),
        "share of the area of the tile's chips in the scene's footprint, percent",
    ),
    Column("missing_bands", pa.string(), "needed bands that the catalogue does not list, space-separated"),
    Column(
        "problem",
        pa.string(),
        "what of the metadata was refused, or why an item of the catalogue is set aside; then it has no date",
    ),
)

SCENE_METADATA = TableSchema(
    (
        *SCENE_COLUMNS,
        Column(
            "granule_bytes", pa.int64(), "bytes of all files of the scene; 0 where the metadata do not say"
        ),
        *(Column(f"{band}_http", pa.string(), f"HTTPS link of {band}") for band in BANDS),
        *(Column(f"{band}_s3", pa.string(), f"S3 link of {band}") for band in BANDS),
    )
)

SELECTED_SCENES = TableSchema(
    (
        *SCENE_COLUMNS,
        Column("fit", pa.bool_(), "whether cloud cover, coverage and bands let the scene be selected"),
        Column("position", pa.string(), "first, middle or last; empty where not selected"),
        Column("reason", pa.string(), "why the scene is not selected; empty where it is"),
        Column("coverage_step", pa.float64(), "rung of the coverage ladder taken, percent"),
        Column(
            "clear_percent", pa.float64(), "estimate of the chips' pixels that are seen and clear, percent"
        ),
        Column("note", pa.string(), "why the scene was chosen, and what was the runner-up"),
    )
)

FILE_COLUMNS = (
    Column("scene_id", pa.string(), "HLS scene id"),
    Column("position", pa.string(), "first, middle or last"),
    Column("date", pa.date32(), "day of sensing (UTC)"),
    Column("band", pa.string(), "B02 B03 B04 B8A B11 B12 or Fmask"),
)

NAMED_FILE_COLUMNS = (
    *FILE_COLUMNS,
    Column("file", pa.string(), "file name"),
    Column("cid", pa.string(), "CID of the file's content; empty where none is known"),
)

BAND_CIDS = TableSchema(
    (
        *NAMED_FILE_COLUMNS,
        Column("problem", pa.string(), "why there is no CID"),
        Column("http", pa.string(), "HTTPS link to fall back on"),
        Column("bytes", pa.int64(), "size of the file by the catalogue; 0 where it does not tell"),
        Column("max_bytes", pa.int64(), "most bytes that the file may have by the metadata"),
    ),
    key=("position", "band"),
)

DOWNLOADED_BANDS = TableSchema(
    (
        *FILE_COLUMNS,
        Column("path", pa.string(), "file in the store"),
        Column("bytes", pa.int64(), "size of the file"),
        Column("sha256", pa.string(), "checksum of the file"),
        Column("cid", pa.string(), "CID of the file's content"),
        Column("verified", pa.bool_(), "whether the bytes are those that the CID promises"),
        Column("note", pa.string(), "why not verified"),
    ),
    key=("position", "band"),
)

TILE_PAYLOADS = TableSchema(
    (
        Column("tile", pa.string(), "HLS tile"),
        Column("scenes", pa.int32(), "scenes of the tile"),
        Column("files", pa.int32(), "files of the tile"),
        Column("without_cid", pa.int32(), "files without a CID"),
    )
)

CID_RETRIEVABILITY = TableSchema(
    (
        *NAMED_FILE_COLUMNS,
        Column("available", pa.bool_(), "whether somebody gave the CID's first block, verified"),
        Column("source", pa.string(), "who did; empty where nobody did"),
        Column("problem", pa.string(), "what each source said"),
    )
)

MISSING_CIDS = TableSchema(
    (
        *NAMED_FILE_COLUMNS,
        Column("tile", pa.string(), "HLS tile"),
        Column("problem", pa.string(), "what each source said"),
    )
)

_CHIP = Column("chip_id", pa.string(), "chip id on the national chip grid, such as chip_257_266")

PIXEL_COUNTS = tuple(
    Column(f"{count}_{position}", pa.int32(), f"{count} pixels by Fmask on the {position} date")
    for position in POSITIONS
    for count in COUNTS
)

_BAD_PERCENT = (
    *(Column(f"bad_percent_{p}", pa.float64(), f"bad pixels of the {p} date, percent") for p in POSITIONS),
    Column("bad_percent_max", pa.float64(), "worst of the three dates, percent"),
)

CHIP_QUALITY = TableSchema(
    (
        _CHIP,
        *PIXEL_COUNTS,
        Column("na_count", pa.int32(), "pixels that lack Fmask on any date"),
        *_BAD_PERCENT,
        Column(
            "reason", pa.string(), "why the chip cannot be kept, whatever its bands hold; empty where it may"
        ),
        Column("figure", pa.float64(), "the figure that decided: missing pixels, or percent"),
    ),
    key=("chip_id",),
)

REPROJECTED_TILES = TableSchema(
    (
        Column("scene_id", pa.string(), "HLS scene id"),
        Column("position", pa.string(), "first, middle or last"),
        Column("date", pa.date32(), "day of sensing (UTC)"),
        Column("band", pa.string(), "B02 B03 B04 B8A B11 B12 or Fmask"),
        Column(
            "path", pa.string(), "file in the store, EPSG:5070, 30 m, blocks of 224 x 224 on the chip grid"
        ),
        Column("bytes", pa.int64(), "size of the file"),
        Column("sha256", pa.string(), "checksum of the file"),
        Column("blocks", pa.int32(), "chip blocks that are stored"),
    ),
    key=("position", "band"),
)

_DATES = tuple(
    Column(f"{position}_date", pa.date32(), f"day of the {position} scene") for position in POSITIONS
)
_BANDS_MISSING = Column("na_count", pa.int32(), "pixels that lack a band or Fmask on any date")

CHIPS = TableSchema(
    (
        _CHIP,
        Column("outcome", pa.string(), "empty where the chip was made, else why not"),
        Column("fit_scenes", pa.int32(), "scenes of the tile that are fit to be selected"),
        # where the chip was made
        *_optional(
            *(
                Column(f"{name}_path", pa.string(), f"{name} file in the store")
                for name in ("merged", "mask", "fmask")
            ),
            *(
                Column(f"{name}_sha256", pa.string(), "checksum of the file")
                for name in ("merged", "mask", "fmask")
            ),
            *_DATES,
            *(
                Column(f"{position}_scene", pa.string(), f"id of the {position} scene")
                for position in POSITIONS
            ),
            *(
                Column(f"valid_{position}", pa.int32(), "pixels neither bad nor fill")
                for position in POSITIONS
            ),
            *PIXEL_COUNTS,
            _BANDS_MISSING,
            *_CLASSES,
        ),
    ),
    key=("chip_id",),
)

FILTERED_CHIPS = TableSchema(
    (
        _CHIP,
        *_BAD_PERCENT,
        *_optional(_BANDS_MISSING),
        Column("reason", pa.string(), "why the chip is rejected; empty where it is kept"),
        Column("figure", pa.float64(), "the figure that decided: fit scenes, missing pixels, or percent"),
        Column("kept", pa.bool_(), "whether the chip is part of the dataset"),
        Column("merged_path", pa.string(), "merged image in chips_filtered; empty where rejected"),
        Column("mask_path", pa.string(), "mask in chips_filtered; empty where rejected"),
        Column("merged_sha256", pa.string(), "checksum of the merged image"),
        Column("mask_sha256", pa.string(), "checksum of the mask"),
        # where the chip was made
        *_optional(*_DATES, *_CLASSES),
    ),
    key=("chip_id",),
)

SPLITS = TableSchema(
    (
        Column("chip_id", pa.string(), "chip id on the national chip grid"),
        Column("tile", pa.string(), "HLS tile"),
        Column("split", pa.string(), "train or validation"),
        Column("merged_path", pa.string(), "merged image in the store"),
        Column("mask_path", pa.string(), "mask in the store"),
        Column("merged_sha256", pa.string(), "checksum of the merged image"),
        Column("mask_sha256", pa.string(), "checksum of the mask"),
        *_DATES,
        *_CLASSES,
    ),
    key=("chip_id",),
)

BAND_STATS = TableSchema(
    (
        Column("band", pa.string(), "band, over the three dates"),
        Column("mean", pa.float64(), "mean, reflectance x 10,000"),
        Column("std", pa.float64(), "population standard deviation"),
        Column("min", pa.float64(), "value at 1.5 percent"),
        Column("max", pa.float64(), "value at 98.5 percent"),
        Column("pixels", pa.int64(), "values counted"),
    )
)

CLASS_WEIGHTS = TableSchema(
    (
        Column("class", pa.int32(), "class 0 to 13"),
        Column("name", pa.string(), "name of the class"),
        Column("pixels", pa.int64(), "pixels of the class"),
        Column("weight", pa.float64(), "balanced weight; the weights sum to 1"),
    )
)

CLASS_DISTRIBUTION = TableSchema(
    (
        Column("split", pa.string(), "train or validation"),
        Column("class", pa.int32(), "class 0 to 13"),
        Column("name", pa.string(), "name of the class"),
        Column("pixels", pa.int64(), "pixels of the class"),
        Column("chips", pa.int64(), "chips that hold the class"),
    )
)

PUBLISHED_DATASET = TableSchema(
    (
        Column("root_cid", pa.string(), "CID of the dataset's folder"),
        Column("to", pa.string(), "kubo or car"),
        Column("place", pa.string(), "RPC address of the node, or the CAR file in the store"),
        Column("files", pa.int64(), "files of the folder"),
        Column("bytes", pa.int64(), "bytes of these files"),
    )
)

SCHEMAS: dict[str, TableSchema] = {
    "cdl": CDL,
    "candidate_chips": CANDIDATE_CHIPS,
    "chip_bboxes": CHIP_BBOXES,
    "tile_grid": TILE_GRID,
    "tile_map": TILE_MAP,
    "scene_metadata": SCENE_METADATA,
    "selected_scenes": SELECTED_SCENES,
    "band_cids": BAND_CIDS,
    "downloaded_fmasks": DOWNLOADED_BANDS,
    "chip_quality": CHIP_QUALITY,
    "downloaded_bands": DOWNLOADED_BANDS,
    "tile_payloads": TILE_PAYLOADS,
    "cid_retrievability": CID_RETRIEVABILITY,
    "missing_cids": MISSING_CIDS,
    "reprojected_tiles": REPROJECTED_TILES,
    "chips": CHIPS,
    "filtered_chips": FILTERED_CHIPS,
    "splits": SPLITS,
    "band_stats": BAND_STATS,
    "class_weights": CLASS_WEIGHTS,
    "class_distribution": CLASS_DISTRIBUTION,
    "published_dataset": PUBLISHED_DATASET,
}
"""The table of each asset, by its name."""
