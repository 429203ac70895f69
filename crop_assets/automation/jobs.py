"""The jobs that people launch: labels of a year, tiles, and the dataset of a year.

Belongs here: which assets go together. Does not: the assets. The dataset has a job of its own because
a step downstream of a failed tile would not run; it reads the tiles that are there, and fails if more are
missing than the recipe allows.
"""

import dagster as dg

LABELS = dg.AssetSelection.assets("cdl", "candidate_chips", "tile_grid", "chip_bboxes", "tile_map")
TILE_ASSETS = (
    "scene_metadata",
    "selected_scenes",
    "band_cids",
    "downloaded_fmasks",
    "chip_quality",
    "downloaded_bands",
    "reprojected_tiles",
    "chips",
    "filtered_chips",
)
TILES = dg.AssetSelection.assets(*TILE_ASSETS)
DATASET_ASSETS = ("tile_payloads", "splits", "band_stats", "class_weights", "class_distribution")
DATASET = dg.AssetSelection.assets(*DATASET_ASSETS)

labels_job = dg.define_asset_job(
    "labels_job", LABELS, description="A CDL release -> chip boxes and their tiles. Run it for a year first."
)
tiles_job = dg.define_asset_job(
    "tiles_job",
    TILES,
    description="Tiles -> good chips. Backfill it over the tiles of a year; several go in one run.",
)
dataset_job = dg.define_asset_job(
    "dataset_job",
    DATASET,
    description="The good chips of a year's tiles -> splits, statistics, weights, charts.",
)
retrievability_job = dg.define_asset_job(
    "retrievability_job",
    dg.AssetSelection.assets("cid_retrievability"),
    description="Whether the content of each CID of the tiles can be had, without downloading it.",
)
missing_cids_job = dg.define_asset_job(
    "missing_cids_job",
    dg.AssetSelection.assets("missing_cids"),
    description="missing_cids.json of a year, from what retrievability_job found.",
)
publish_job = dg.define_asset_job(
    "publish_job",
    dg.AssetSelection.assets("published_dataset"),
    description="The finished dataset of a year to IPFS: into a Kubo node, or into a CAR file.",
)
plan_job = dg.define_asset_job(
    "plan_job",
    dg.AssetSelection.assets("scene_metadata", "selected_scenes", "band_cids"),
    description="What the catalogues know of tiles, without downloading anything; then run: crop-assets plan.",
)
MAIN_JOBS = (labels_job, tiles_job, dataset_job)
JOBS = (*MAIN_JOBS, plan_job, retrievability_job, missing_cids_job, publish_job)
