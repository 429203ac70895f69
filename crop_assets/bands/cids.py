"""The CID of each needed file, as catalogues with IPFS alternates write it.

Belongs here: reading CIDs out of STAC items. Does not: asking for items, or fetching content.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from crop_assets.recipe import QA_BAND, REFLECTANCE_BANDS
from resources.errors import ResourceError
from resources.ipfs.cid import cid_from_href


def cid_rows(scenes: pd.DataFrame, items: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One row per scene and needed file: scene_id, position, date, band, file, cid, problem, http.

    `scenes` has scene_id, position, date and the `<band>_http` links. Where no CID can be read, cid is ""
    and problem says why.
    """
    by_id = {item["id"]: item for item in items}
    rows = []
    for scene in scenes.to_dict("records"):
        for band in (*REFLECTANCE_BANDS, QA_BAND):
            cid, problem = _band_cid(by_id.get(scene["scene_id"]), band)
            rows.append(
                {
                    "scene_id": scene["scene_id"],
                    "position": scene["position"],
                    "date": scene["date"],
                    "band": band,
                    "file": f"{scene['scene_id']}.{band}.tif",
                    "cid": cid,
                    "problem": problem,
                    "http": scene[f"{band}_http"],
                }
            )
    return pd.DataFrame(rows)


def _band_cid(item: Mapping[str, Any] | None, band: str) -> tuple[str, str]:
    if item is None:
        return "", "the IPFS catalogue does not have this scene"
    asset = _mapping(item.get("assets")).get(band)
    if asset is None:
        return "", "the IPFS catalogue does not list this band"
    problem = "the IPFS catalogue gives no IPFS address"
    for href in _candidates(asset):
        try:
            cid, path = cid_from_href(href)
        except ResourceError as error:
            problem = f"malformed CID: {error}"
            continue
        if not path:
            return str(cid), ""
        problem = f"{href} is a path within {cid}, not a file of its own"
    return "", problem


def _candidates(asset: Any) -> list[str]:
    alternates = _mapping(_mapping(asset).get("alternate"))
    found = []
    for key in ("IPFS", "ipfs"):
        alternate = _mapping(alternates.get(key))
        found += [alternate[name] for name in ("href", "cid") if alternate.get(name)]
    if str(_mapping(asset).get("href", "")).startswith("ipfs://"):
        found.append(asset["href"])
    return [str(href) for href in found]


def _mapping(value: Any) -> Mapping[str, Any]:
    """The value, or nothing where a catalogue put something else in its place."""
    return value if isinstance(value, Mapping) else {}


def tile_payloads(cids: pd.DataFrame) -> dict[str, list[dict[str, str]]]:
    """Scene id -> its files with filename, cid and band_name, as `tile_payloads.json` lists them."""
    payloads: dict[str, list[dict[str, str]]] = {}
    for row in cids.sort_values(["scene_id", "band"]).to_dict("records"):
        entry = {"filename": row["file"], "cid": row["cid"], "band_name": row["band"]}
        payloads.setdefault(row["scene_id"], []).append(entry)
    return payloads
