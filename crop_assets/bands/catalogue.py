"""The items of the catalogue that tells CIDs: asked for once, and kept in the store.

Belongs here: which items are known already. Does not: how a catalogue is asked (`resources.stac`), nor what its items
say (`cids`).
"""

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
    """The catalogue's items of these scenes of a tile, then the items that came without an id; none where there is no
    catalogue.

    Items that it gave before come from the store, unless they are to be asked for anew (`refresh`). What it did not
    have, or not in the form of an item, is asked for each time, for it may have been published since. Raises
    UnavailableError, IntegrityError.
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
    """Whether a kept answer has items by their ids."""
    return all(isinstance(item, dict) and item.get("id") == name for name, item in kept.items())
