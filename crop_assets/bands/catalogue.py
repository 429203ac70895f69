"""Requests the items of the catalogue of CIDs once, and caches them in the store."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from crop_assets.hls import collection_of
from resources.response_cache import read_response, write_response
from resources.stac import SET_ASIDE, IpfsStac
from resources.store import DatasetStore


def catalogue_items(
    scene_ids: Sequence[str], tile: str, catalogue: IpfsStac, store: DatasetStore, log: Callable[[str], None]
) -> list[dict[str, Any]]:
    """The catalogue's items of these scenes of a tile, followed by the malformed ones. An empty list if there is no
    catalogue.

    Cached items come from the store, unless `refresh` is set. Items that the catalogue did not have, or that were
    malformed, are requested every time, because they may have been published since. Raises UnavailableError and
    IntegrityError.
    """
    if not catalogue.url:
        return []
    name = f"answers/{tile}-cids-{hashlib.sha256(catalogue.url.encode()).hexdigest()[:16]}.json.gz"
    known: dict[str, dict[str, Any]] = {}
    if not catalogue.is_file:
        known = read_response(store, name, _are_items, log) or {}
    wanted = sorted(set(scene_ids) - (set() if catalogue.refresh else set(known)))
    unread: list[dict[str, Any]] = []
    if wanted:
        found = catalogue.items(wanted, sorted(set(map(collection_of, wanted))))
        unread = [item for item in found if SET_ASIDE in item]
        for item in unread:
            log(f"the IPFS catalogue's {item['id']} {item[SET_ASIDE]}; it is left out")
        found = [item for item in found if item["id"] in wanted and SET_ASIDE not in item]
        known |= {item["id"]: item for item in found}
        if found and not catalogue.is_file:
            complete = {
                scene_id: item for scene_id, item in known.items() if isinstance(item.get("assets"), dict)
            }
            write_response(store, name, complete)
    return [known[scene_id] for scene_id in sorted(set(scene_ids)) if scene_id in known] + unread


def _are_items(kept: dict[str, Any]) -> bool:
    """Whether a cached answer maps ids to items."""
    return all(isinstance(item, dict) and item.get("id") == name for name, item in kept.items())
