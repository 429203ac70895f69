"""CIDs from a list that the recipe names, such as `tile_payloads.json`, instead of a catalogue."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from crop_assets.errors import InputError
from crop_assets.hls import SCENE_ID, parse_scene_id
from resources.errors import IntegrityError
from resources.ipfs.cid import Cid
from resources.json_values import mapping, parse, text

_FILE = re.compile(rf"(?P<scene>{SCENE_ID})\.[A-Za-z0-9]{{2,8}}\.tif")
_MAX_VALUES = 2_000_000
"""About 400 MB at most. A file takes four, so this is fifty times the published dataset."""
_MAX_NAMED = 80
_FORMS = "a list of {filename, cid}, or an object of such lists by scene id, as in tile_payloads.json"


def parse_cid_list(data: bytes, path: str) -> dict[str, dict[str, str]]:
    """The CID of each file of a JSON, by tile and file name; files with an empty CID are left out.

    The JSON is a list of {filename, cid}, or an object with such a list for each scene id, as in `tile_payloads.json`.
    Raises InputError that names the file and the entry, also if two entries give one file different CIDs.
    """
    try:
        document = parse(data, _MAX_VALUES)
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}; it must be {_FORMS}") from None
    found: dict[str, dict[str, str]] = {}
    for where, scene_id, entry in _entries(document, path):
        tile, file = _named(entry, scene_id, where)
        if cid := text(entry.get("cid")).strip():
            try:
                cid = str(Cid.parse(cid))
            except IntegrityError as error:
                raise InputError(f"{where}: {file}: {error}; correct it, or leave the entry out") from None
            if found.setdefault(tile, {}).setdefault(file, cid) != cid:
                raise InputError(f"{where}: {file} has two CIDs, {found[tile][file]} and {cid}; leave one")
        elif entry.get("cid") != "":
            raise InputError(f"{where}: {file} has no cid; an unknown one is an empty text")
    if not found:
        raise InputError(f"{path} lists no CID; it must be {_FORMS}")
    return found


def _entries(document: Any, path: str) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Each entry, where it is, and the scene that it is listed under, "" if none."""
    by_scene = document if isinstance(document, dict) else {"": document}
    for scene_id, entries in by_scene.items():
        of_scene = f" of {scene_id[:_MAX_NAMED]!r}" if isinstance(document, dict) else ""
        if not isinstance(entries, list):
            raise InputError(f"{path}{of_scene and ','}{of_scene} is not a list; it must be {_FORMS}")
        for place, entry in enumerate(entries, start=1):
            yield f"{path}, entry {place}{of_scene}", scene_id, mapping(entry)


def _named(entry: Mapping[str, Any], scene_id: str, where: str) -> tuple[str, str]:
    """The tile and the name of the file of an entry. Raises InputError unless it is a file of an HLS scene."""
    file = text(entry.get("filename"))
    match = _FILE.fullmatch(file[: 2 * _MAX_NAMED])
    if match is None:
        raise InputError(
            f"{where}: filename {file[:_MAX_NAMED]!r} is not that of an HLS file, such as "
            "HLS.S30.T13TDE.2022111T174859.v2.0.B02.tif"
        )
    if scene_id and match["scene"] != scene_id:
        raise InputError(f"{where}: {file} is a file of another scene")
    try:
        return parse_scene_id(match["scene"]).tile, file
    except IntegrityError as error:
        raise InputError(f"{where}: {error}") from None
