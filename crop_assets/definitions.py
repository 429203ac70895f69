"""The code location: gathers assets, jobs and resources; nothing else.

Belongs here: what Dagster loads. Does not: any logic.
"""

import copy
import logging
import os
from collections.abc import Mapping
from typing import Any

import dagster as dg
from pydantic import create_model

from crop_assets.automation.jobs import JOBS
from crop_assets.automation.sensors import SENSORS
from crop_assets.bands.assets import (
    band_cids,
    cid_retrievability,
    downloaded_bands,
    downloaded_fmasks,
    missing_cids,
    tile_payloads,
)
from crop_assets.chips.assets import chip_quality, chips, filtered_chips, reprojected_tiles
from crop_assets.dataset.assets import (
    band_stats,
    class_distribution,
    class_weights,
    published_dataset,
    splits,
)
from crop_assets.errors import InputError
from crop_assets.labels.assets import candidate_chips, cdl, chip_bboxes
from crop_assets.recipe import load_recipe
from crop_assets.scenes.assets import scene_metadata, selected_scenes
from crop_assets.tile_assets import tile_assets
from crop_assets.tiles.assets import tile_grid, tile_map
from crop_assets.variables import unknown_variables
from resources.cdl import CdlReleases
from resources.downloads import Downloads
from resources.earthdata import LpDaac
from resources.ipfs.resource import IpfsContent
from resources.machine import Machine
from resources.mirror import BandMirror
from resources.stac import IpfsStac, SceneStac
from resources.store import DatasetStore
from resources.tile_grid import TileGridSource

TILE_STAGES = (
    scene_metadata,
    selected_scenes,
    band_cids,
    downloaded_fmasks,
    chip_quality,
    downloaded_bands,
    reprojected_tiles,
    chips,
    filtered_chips,
    cid_retrievability,
)
YEAR_ASSETS = (
    cdl,
    candidate_chips,
    tile_grid,
    chip_bboxes,
    tile_map,
    tile_payloads,
    missing_cids,
    splits,
    band_stats,
    class_weights,
    class_distribution,
    published_dataset,
)

TILES_PER_RUN = 16


def environment_resources() -> dict[str, Any]:
    """The resources as the environment configures them; the README lists the variables.

    A variable that is unset leaves the resource's own default, which is the real service. Raises InputError
    where the recipe file or a number is wrong.
    """
    data = os.environ.get("CROP_ASSETS_DATA", "data")
    cdl = "data/cdl" if "://" in data else f"{data}/cdl"
    return {
        "recipe": load_recipe(os.environ.get("CROP_ASSETS_RECIPE", "")),
        "store": DatasetStore(root=data),
        "cdl_releases": CdlReleases(
            source=os.environ.get("CROP_ASSETS_CDL", cdl),
            **_set(index="CROP_ASSETS_CDL_INDEX"),
            **_set_list(hosts="CROP_ASSETS_CDL_HOSTS"),
        ),
        "tile_grid_source": TileGridSource(path=os.environ.get("CROP_ASSETS_TILE_GRID", "")),
        "stac": SceneStac(
            **_set(url="CROP_ASSETS_STAC_URL", granule_search="CROP_ASSETS_GRANULE_SEARCH"),
            **_set_list(metadata_hosts="CROP_ASSETS_METADATA_HOSTS"),
        ),
        "ipfs_stac": IpfsStac(**_set(url="CROP_ASSETS_IPFS_STAC_URL")),
        "ipfs": IpfsContent(
            **_set(kubo_api="CROP_ASSETS_KUBO_API"), **_set_list(gateways="CROP_ASSETS_IPFS_GATEWAYS")
        ),
        # an EnvVar, so that the token itself never becomes part of a configuration that the UI shows
        "lp_daac": LpDaac(
            token=dg.EnvVar("EARTHDATA_TOKEN") if os.environ.get("EARTHDATA_TOKEN") else "",
            **_set_list(hosts="CROP_ASSETS_LP_DAAC_HOSTS"),
        ),
        "mirror": BandMirror(**_set(folder="CROP_ASSETS_BANDS")),
        "downloads": Downloads(),
        "machine": Machine(workers=_count("CROP_ASSETS_WORKERS")),
    }


def _set(**variables: str) -> dict[str, Any]:
    return {field: os.environ[name] for field, name in variables.items() if name in os.environ}


def _set_list(**variables: str) -> dict[str, Any]:
    found = _set(**variables).items()
    return {field: [part.strip() for part in text.split(",") if part.strip()] for field, text in found}


def _count(variable: str) -> int:
    text = os.environ.get(variable) or "0"
    if not text.isdecimal():
        raise InputError(f"{variable} is {text!r}, and must be a whole number, or unset")
    return int(text)


def build_defs(
    resources: Mapping[str, dg.ConfigurableResource[Any]], tiles_per_run: int = TILES_PER_RUN
) -> dg.Definitions:
    """The whole code location over these resources; a backfill takes at most `tiles_per_run` tiles in a run."""
    return dg.Definitions(
        assets=[*YEAR_ASSETS, tile_assets(TILE_STAGES, tiles_per_run)],
        jobs=JOBS,
        sensors=SENSORS,
        resources={key: _with_own_defaults(resource) for key, resource in resources.items()},
        executor=dg.in_process_executor,
    )


def _with_own_defaults(resource: dg.ConfigurableResource[Any]) -> dg.ConfigurableResource[Any]:
    """The resource, its values being the defaults of its class.

    Dagster completes a configuration that names some fields from the class: a run that sets the recipe's
    `seed` alone would get the default dataset, and one that sets `stac.refresh` the real catalogue.
    """
    kind, fields = type(resource), {}
    for name, field in kind.model_fields.items():
        fields[name] = (field.annotation, copy.copy(field))
        fields[name][1].default = getattr(resource, name)
    model = create_model(kind.__name__, __base__=kind, __module__=kind.__module__, **fields)  # type: ignore[call-overload]
    return model(**{name: getattr(resource, name) for name in fields})  # type: ignore[no-any-return]


@dg.definitions
def defs() -> dg.Definitions:
    for name in unknown_variables(os.environ):
        logging.getLogger(__name__).warning(f"the variable {name} is not read by anything")
    return build_defs(environment_resources(), _count("CROP_ASSETS_TILES_PER_RUN") or TILES_PER_RUN)
