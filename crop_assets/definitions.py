"""The code location that Dagster loads: assets, jobs, sensors and resources, without any logic."""

import logging
import os
from collections.abc import Mapping
from typing import Any

import dagster as dg
from pydantic import ValidationError

from crop_assets.automation.jobs import JOBS
from crop_assets.automation.sensors import SENSORS
from crop_assets.errors import InputError, problems
from crop_assets.graph.tiles import tile_assets
from crop_assets.graph.years import lineages, year_asset
from crop_assets.launchpad import launchable
from crop_assets.recipe import load_recipe
from crop_assets.stages import STAGES, TILE_STAGES
from crop_assets.variables import FIELDS, RECIPE, unknown_variables
from resources.cdl import CdlReleases
from resources.downloads import Downloads
from resources.earthdata import LpDaac
from resources.ipfs.resource import IpfsContent
from resources.machine import MAX_WORKERS, Machine
from resources.mirror import BandMirror
from resources.settings import Settings
from resources.stac import IpfsStac, SceneStac
from resources.store import DatasetStore
from resources.tile_grid import TileGridSource

LOCATION = "crop_assets.definitions"
"""The name of the code location, as in workspace.yaml."""
TILES_PER_RUN = 16
_MAX_TILES_PER_RUN = 100_000


def environment_resources() -> dict[str, Any]:
    """The resources as the environment configures them; docs/operating.md lists the variables.

    If a variable is unset, the resource has its default, which is the real service. Raises InputError if the
    recipe file or a variable is invalid.
    """
    data = os.environ.get("CROP_ASSETS_DATA", "data")
    cdl = "data/cdl" if "://" in data else f"{data}/cdl"
    return {
        "recipe": load_recipe(os.environ.get(RECIPE, "")),
        "store": _of_environment("store", DatasetStore),
        "cdl_releases": _of_environment("cdl_releases", CdlReleases, source=cdl),
        "tile_grid_source": _of_environment("tile_grid_source", TileGridSource),
        "stac": _of_environment("stac", SceneStac),
        "ipfs_stac": _of_environment("ipfs_stac", IpfsStac),
        "ipfs": _of_environment("ipfs", IpfsContent),
        "lp_daac": _of_environment("lp_daac", LpDaac),
        "mirror": _of_environment("mirror", BandMirror),
        "downloads": Downloads(),
        "machine": Machine(workers=_count("CROP_ASSETS_WORKERS", MAX_WORKERS)),
    }


def _of_environment(key: str, kind: type[Settings], **values: Any) -> Settings:
    """A resource with `values`, or those of its variables. Raises InputError that names an invalid variable."""
    for name, field in kind.model_fields.items():
        text = os.environ.get(FIELDS.get(f"{key}.{name}", ""))
        if text is not None and field.annotation is str:
            values[name] = text
        elif text is not None:
            values[name] = [part.strip() for part in text.split(",") if part.strip()]
    try:
        return kind(**values)
    except ValidationError as error:
        wrong = [f"{FIELDS[f'{key}.{name}']}: {message}" for name, message in problems(error, kind).items()]
        raise InputError("; ".join(wrong)) from None


def _count(variable: str, maximum: int) -> int:
    text = os.environ.get(variable) or "0"
    # Python's numbers may have digits of any script
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) <= maximum):
        raise InputError(f"{variable} is {text!r}, and must be a whole number up to {maximum:,}, or unset")
    return int(text)


def build_defs(resources: Mapping[str, Settings], tiles_per_run: int = TILES_PER_RUN) -> dg.Definitions:
    """The whole code location over these resources; a backfill takes at most `tiles_per_run` tiles in a run."""
    stage_jobs = {stage.name: stage.job for stage in STAGES.values()}
    return dg.Definitions(
        assets=[
            *(year_asset(stage, stage_jobs) for stage in STAGES.values() if stage.scope != "tile"),
            tile_assets(TILE_STAGES, tiles_per_run),
        ],
        jobs=JOBS,
        sensors=SENSORS,
        resources={
            **{key: launchable(key, resource) for key, resource in resources.items()},
            "lineages": lineages,
            # the assets write their own files; Dagster's default would let a run name a folder
            "io_manager": dg.mem_io_manager,
        },
        executor=dg.in_process_executor,
    )


def tiles_per_run() -> int:
    """The maximum number of tiles per run of a backfill, as the environment configures it."""
    return _count("CROP_ASSETS_TILES_PER_RUN", _MAX_TILES_PER_RUN) or TILES_PER_RUN


@dg.definitions
def defs() -> dg.Definitions:
    for name in unknown_variables(os.environ):
        logging.getLogger(__name__).warning(f"nothing reads the variable {name}")
    return build_defs(environment_resources(), tiles_per_run())
