"""Reads the CID and size of each needed file from STAC items with IPFS alternates."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from crop_assets.hls import BANDS, file_band
from resources.errors import IntegrityError, NotFoundError, UnsafeNameError
from resources.ipfs.cid import Cid, cid_from_href
from resources.json_values import count, mapping
from resources.stac import SET_ASIDE

Resolve = Callable[[Cid, Sequence[str]], Cid]

MAX_BAND_BYTES = 256 << 20
"""A deflated HLS band has 15 to 20 MB; a file ten times as large is not a band."""
_MIN_BAND_BYTES = 1 << 12
"""Even an empty HLS band is larger. A smaller size in the catalogue is wrong, and would reject every file."""
_MIN_GRANULE_BYTES = 1 << 20
"""If the metadata of a granule give a smaller size, they are wrong."""


def cid_rows(
    scenes: pd.DataFrame,
    items: Sequence[Mapping[str, Any]],
    resolve: Resolve,
    bands: Sequence[str] = BANDS,
) -> pd.DataFrame:
    """One row per scene and file of `bands`: scene_id, position, date, band, file, cid, problem, http, bytes,
    max_bytes.

    `scenes` has scene_id, position, date, granule_bytes and the `<band>_http` links. If no CID can be read, cid is ""
    and problem has the reason. `resolve` returns the CID of a file given by a path in a directory; its errors are
    raised, except NotFoundError and IntegrityError. `bytes` is 0 if the size is unknown.
    """
    by_id = {item["id"]: item for item in items}
    unread = [f"{item['id']} {item[SET_ASIDE]}" for item in items if SET_ASIDE in item]
    absent = "; ".join(["the IPFS catalogue does not have this scene", *unread[:3]])

    def find(scene_id: str, band: str) -> tuple[str, str, int]:
        item = by_id.get(scene_id)
        cid, problem = ("", absent) if item is None else _band_cid(item, band, resolve)
        return cid, problem, _file_size(item, band)

    return _rows(scenes, find, bands)


def listed_cid_rows(
    scenes: pd.DataFrame, cids: Mapping[str, str], name: str, bands: Sequence[str] = BANDS
) -> pd.DataFrame:
    """As `cid_rows`, with the CIDs by file name, from the list called `name`."""

    def find(scene_id: str, band: str) -> tuple[str, str, int]:
        cid = cids.get(_file_name(scene_id, band), "")
        return cid, "" if cid else f"{name} has no CID of this file", 0

    return _rows(scenes, find, bands)


def _rows(
    scenes: pd.DataFrame, find: Callable[[str, str], tuple[str, str, int]], bands: Sequence[str]
) -> pd.DataFrame:
    """The rows of `cid_rows`; `find` returns CID, problem and size of a scene's file, whose band is named as there."""
    rows = []
    for scene in scenes.to_dict("records"):
        for band in bands:
            named = file_band(scene["scene_id"], band)
            cid, problem, size = find(scene["scene_id"], named)
            rows.append(
                {
                    "scene_id": scene["scene_id"],
                    "position": scene["position"],
                    "date": scene["date"],
                    "band": band,
                    "file": _file_name(scene["scene_id"], named),
                    "cid": cid,
                    "problem": problem,
                    "http": scene[f"{band}_http"],
                    "bytes": size,
                    "max_bytes": size or max_file_bytes(scene["granule_bytes"]),
                }
            )
    return pd.DataFrame(rows)


def _file_name(scene_id: str, band: str) -> str:
    return f"{scene_id}.{band}.tif"


def max_file_bytes(granule_bytes: int) -> int:
    """The maximum size of a file in a granule of this size, which is 0 if unknown."""
    return min(granule_bytes, MAX_BAND_BYTES) if granule_bytes >= _MIN_GRANULE_BYTES else MAX_BAND_BYTES


def _file_size(item: Mapping[str, Any] | None, band: str) -> int:
    """The size in the catalogue (STAC file extension, file:size); 0 if it is missing or impossible for a band."""
    asset = mapping(mapping(mapping(item).get("assets")).get(band))
    size = count(asset.get("file:size"), MAX_BAND_BYTES) or 0
    return size if size >= _MIN_BAND_BYTES else 0


def _band_cid(item: Mapping[str, Any], band: str, resolve: Resolve) -> tuple[str, str]:
    asset = mapping(item.get("assets")).get(band)
    if asset is None:
        return "", "the IPFS catalogue does not list this band"
    problem = "the IPFS catalogue gives no IPFS address"
    for href in _candidates(asset):
        try:
            cid, path = cid_from_href(href)
        except (IntegrityError, UnsafeNameError) as error:
            problem = f"malformed CID: {error}"
            continue
        if not path:
            return str(cid), ""
        try:
            return str(resolve(cid, path)), ""
        except (IntegrityError, NotFoundError) as error:
            problem = f"{href[:200]} leads to no file: {error}"
    return "", problem


def _candidates(asset: Any) -> list[str]:
    alternates = mapping(mapping(asset).get("alternate"))
    found = []
    for key in ("IPFS", "ipfs"):
        alternate = mapping(alternates.get(key))
        found += [alternate[name] for name in ("href", "cid") if alternate.get(name)]
    if str(mapping(asset).get("href", "")).startswith("ipfs://"):
        found.append(asset["href"])
    return [str(href) for href in found]


def tile_payloads(cids: pd.DataFrame, more: Sequence[str] = ()) -> dict[str, list[dict[str, str]]]:
    """Scene id -> its files with filename, cid, band_name and `more` columns: the content of `tile_payloads.json`."""
    payloads: dict[str, list[dict[str, str]]] = {}
    for row in cids.sort_values(["scene_id", "band"]).to_dict("records"):
        entry = {"filename": row["file"], "cid": row["cid"], "band_name": row["band"]}
        payloads.setdefault(row["scene_id"], []).append(entry | {name: row[name] for name in more})
    return payloads
