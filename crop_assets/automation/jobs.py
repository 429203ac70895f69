"""The jobs that people launch: labels of a year, tiles, and the dataset of a year.

Which assets a job makes follows from their stages. The dataset has a job of its own because a step downstream of a
failed tile would not run; it reads the tiles that are there, and fails if more are missing than the recipe allows.
"""

import dagster as dg

from crop_assets.stages import STAGES, TILE_STAGES

_DESCRIPTIONS = {
    "labels_job": "A CDL release -> chip boxes and their tiles. Run it for a year first.",
    "tiles_job": "Tiles -> good chips. Backfill it over the tiles of a year; several go in one run.",
    "dataset_job": "The good chips of a year's tiles -> splits, statistics, weights, charts.",
    "retrievability_job": "Whether the content of each CID of the tiles can be had, without downloading it.",
    "missing_cids_job": "missing_cids.json of a year, from what retrievability_job found.",
    "publish_job": "The finished dataset of a year to IPFS: into a Kubo node, or into a CAR file.",
}


def _assets(job: str) -> list[str]:
    return [name for name, one in STAGES.items() if one.job == job]


if unknown := {one.job for one in STAGES.values()} - _DESCRIPTIONS.keys():
    raise TypeError(f"there is no job {min(unknown)}; describe it in _DESCRIPTIONS")
TILE_ASSETS = [one.name for one in TILE_STAGES if one.job == "tiles_job"]
DATASET_ASSETS = _assets("dataset_job")
TILES, DATASET = dg.AssetSelection.assets(*TILE_ASSETS), dg.AssetSelection.assets(*DATASET_ASSETS)
labels_job, tiles_job, dataset_job, *_others = (
    dg.define_asset_job(name, dg.AssetSelection.assets(*_assets(name)), description=text)
    for name, text in _DESCRIPTIONS.items()
)
plan_job = dg.define_asset_job(
    "plan_job",
    dg.AssetSelection.assets("scene_metadata", "selected_scenes", "band_cids"),
    description="What the catalogues know of tiles, without downloading anything; then run: crop-assets plan.",
)
MAIN_JOBS = (labels_job, tiles_job, dataset_job)
JOBS = (*MAIN_JOBS, plan_job, *_others)
