"""Services of stages: the Dagster resources behind their parameters."""

from collections.abc import Iterable
from typing import Any

from resources.sources import Sources

_COMBINED = {"sources": ("downloads", "ipfs", "lp_daac", "mirror")}
"""Services that combine several resources; any other service is the resource with its name."""


def resource_keys(services: Iterable[str]) -> set[str]:
    """The keys of the Dagster resources behind services, and of those that every stage uses."""
    return {"recipe", "store"}.union(*(_COMBINED.get(name, (name,)) for name in services))


def services_of(resources: Any, names: Iterable[str]) -> dict[str, Any]:
    """The services with these names, given the resources as attributes."""
    return {name: sources_of(resources) if name == "sources" else getattr(resources, name) for name in names}


def sources_of(resources: Any) -> Sources:
    """The sources of files in the order of the recipe, with the limits of `downloads`."""
    found: Sources = resources.downloads.of(
        resources.recipe.sources, resources.ipfs, resources.lp_daac, resources.mirror
    )
    return found
