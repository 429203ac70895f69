"""The jobs that people launch.

The stages determine the assets of a job. The dataset has its own job because a step downstream of a failed tile would
not run; it uses the finished tiles, and fails if more are missing than the recipe allows.
"""

import dagster as dg

from crop_assets.stages import STAGES, TILE_STAGES

_DESCRIPTIONS = {
    "labels_job": "Makes chip boxes and their tiles from a CDL release. Run it first, for a year.",
    "tiles_job": "Makes the good chips of tiles. Backfill it over the tiles of a year; one run makes several.",
    "dataset_job": "Makes splits, statistics, weights and charts from the good chips of a year's tiles.",
    "retrievability_job": "Checks whether the content of each CID of the tiles is available, without downloading it.",
    "missing_cids_job": "Writes missing_cids.json of a year from the results of retrievability_job.",
    "publish_job": "Publishes the finished dataset of a year to IPFS, through a Kubo node or as a CAR file.",
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
    dg.AssetSelection.assets("scene_metadata", "candidate_fmasks", "selected_scenes", "band_cids"),
    description="Queries the catalogues for tiles, without downloading anything but the Fmask files that "
    "`scene_rule: clearest` measures. Then run: crop-assets plan.",
)
MAIN_JOBS = (labels_job, tiles_job, dataset_job)
JOBS = (*MAIN_JOBS, plan_job, *_others)
