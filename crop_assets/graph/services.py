"""The services that stages use, by the names of their parameters."""

from collections.abc import Iterable
from typing import Any

from resources.sources import Sources

_MADE_OF = {"sources": ("downloads", "ipfs", "lp_daac", "mirror")}
"""Services that are made of several resources; every other is the resource of its name."""


def resource_keys(services: Iterable[str]) -> set[str]:
    """The keys of the Dagster resources behind services, and of those that every stage has."""
    return {"recipe", "store"}.union(*(_MADE_OF.get(name, (name,)) for name in services))


def services_of(resources: Any, names: Iterable[str]) -> dict[str, Any]:
    """The services of these names, given the resources as attributes."""
    return {name: sources_of(resources) if name == "sources" else getattr(resources, name) for name in names}


def sources_of(resources: Any) -> Sources:
    """The sources of files in the order of the recipe, with the bounds that `downloads` sets."""
    found: Sources = resources.downloads.of(
        resources.recipe.sources, resources.ipfs, resources.lp_daac, resources.mirror
    )
    return found
