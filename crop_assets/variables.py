"""The environment variables of this project: the field that each one sets, and misspelt names."""

from collections.abc import Iterable

from crop_assets.suggest import did_you_mean

PREFIX = "CROP_ASSETS_"
RECIPE = "CROP_ASSETS_RECIPE"
FIELDS = {
    "recipe.aoi": RECIPE,
    "recipe.confidence_raster": RECIPE,
    "recipe.chip_boxes": RECIPE,
    "recipe.scene_list": RECIPE,
    "recipe.cid_list": RECIPE,
    "recipe.train_ids": RECIPE,
    "recipe.validation_ids": RECIPE,
    "recipe.test_ids": RECIPE,
    "store.root": "CROP_ASSETS_DATA",
    "cdl_releases.source": "CROP_ASSETS_CDL",
    "cdl_releases.index": "CROP_ASSETS_CDL_INDEX",
    "cdl_releases.hosts": "CROP_ASSETS_CDL_HOSTS",
    "tile_grid_source.path": "CROP_ASSETS_TILE_GRID",
    "stac.url": "CROP_ASSETS_STAC_URL",
    "stac.granule_search": "CROP_ASSETS_GRANULE_SEARCH",
    "stac.metadata_hosts": "CROP_ASSETS_METADATA_HOSTS",
    "ipfs_stac.url": "CROP_ASSETS_IPFS_STAC_URL",
    "ipfs.kubo_api": "CROP_ASSETS_KUBO_API",
    "ipfs.gateways": "CROP_ASSETS_IPFS_GATEWAYS",
    "ipfs.command": "CROP_ASSETS_IPFS_COMMAND",
    "lp_daac.token": "EARTHDATA_TOKEN",
    "lp_daac.hosts": "CROP_ASSETS_LP_DAAC_HOSTS",
    "lp_daac.storage_hosts": "CROP_ASSETS_LP_DAAC_STORAGE_HOSTS",
    "lp_daac.login_host": "CROP_ASSETS_EARTHDATA_HOST",
    "mirror.folder": "CROP_ASSETS_BANDS",
}
"""The variable of each resource field that is a path, an address, a host, a token or a command. No run sets these."""
VARIABLES = {"CROP_ASSETS_TILES_PER_RUN", "CROP_ASSETS_WORKERS"} | set(FIELDS.values()) - {"EARTHDATA_TOKEN"}


def unknown_variables(environment: Iterable[str]) -> list[str]:
    """The variables with this project's prefix that nothing reads, each with a suggestion."""
    unknown = sorted(name for name in environment if name.startswith(PREFIX) and name not in VARIABLES)
    known = sorted(name.removeprefix(PREFIX) for name in VARIABLES)
    return [f"{name}{did_you_mean(name.removeprefix(PREFIX), known, PREFIX)}" for name in unknown]
