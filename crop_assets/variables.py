"""The environment variables of this project, so that a misspelt one is noticed."""

from collections.abc import Iterable

from crop_assets.suggest import did_you_mean

PREFIX = "CROP_ASSETS_"
_NAMES = (
    "BANDS",
    "CDL",
    "CDL_HOSTS",
    "CDL_INDEX",
    "DATA",
    "GRANULE_SEARCH",
    "IPFS_GATEWAYS",
    "IPFS_STAC_URL",
    "KUBO_API",
    "LP_DAAC_HOSTS",
    "METADATA_HOSTS",
    "RECIPE",
    "STAC_URL",
    "TILES_PER_RUN",
    "TILE_GRID",
    "WORKERS",
)
VARIABLES = tuple(PREFIX + name for name in _NAMES)


def unknown_variables(environment: Iterable[str]) -> list[str]:
    """The variables that look like this project's and that nothing reads, each with what may have been meant."""
    unknown = sorted(name for name in environment if name.startswith(PREFIX) and name not in VARIABLES)
    return [f"{name}{did_you_mean(name.removeprefix(PREFIX), _NAMES, PREFIX)}" for name in unknown]
