"""What the archive knows of a tile's season: asked once, and kept in the store.

Belongs here: which questions are asked, and keeping the whole answer. Does not: how a catalogue is asked
(`resources.stac`), nor what the answer means (`granules`).
"""

import datetime as dt
import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from crop_assets.scenes.granules import document_url, parse_scene_id
from resources.answers import read_answer, write_answer
from resources.errors import IntegrityError, NotFoundError
from resources.stac import SceneStac
from resources.store import DatasetStore

_DOCUMENTS_AT_ONCE = 8
_VERSION = 1
"""Part of an answer's name: raise it with any change of what is asked or kept."""


@dataclass(frozen=True)
class TileQuestion:
    """All scenes of a tile: `bbox` in degrees (west, south, east, north), both days included, sensors S30 and L30."""

    tile: str
    bbox: tuple[float, float, float, float]
    start: dt.date
    end: dt.date
    sensors: Sequence[str]


@dataclass(frozen=True)
class TileAnswer:
    """The STAC items of the tile, and their metadata documents (UMM-JSON or XML) by scene id, where they have one."""

    items: list[dict[str, Any]]
    documents: dict[str, str]
    asked: bool


def tile_answer(
    question: TileQuestion, stac: SceneStac, store: DatasetStore, log: Callable[[str], None]
) -> TileAnswer:
    """The answer to a question, from the store where the same catalogue has given it before, unless it is to be asked
    anew (`refresh`). Kept only when it is whole.

    With a granule search it takes one request for it, and one for each hundred scenes; without one, a search by the
    bounding box and a document for each scene that does not tell its coverage. Raises UnavailableError,
    IntegrityError.
    """
    name = _name(question, stac)
    if (
        not stac.refresh
        and not stac.is_file
        and (kept := read_answer(store, name, log, ["items", "documents"]))
    ):
        return TileAnswer(kept["items"], kept["documents"], asked=False)
    collections = [f"HLS{sensor}_2.0" for sensor in question.sensors]
    answer = _by_granules(question, stac, collections, log) or _by_place(question, stac, collections, log)
    if not stac.is_file:
        write_answer(store, name, {"items": answer.items, "documents": answer.documents})
    return answer


def _by_granules(
    question: TileQuestion, stac: SceneStac, collections: Sequence[str], log: Callable[[str], None]
) -> TileAnswer | None:
    """What the granule search tells of the tile, and the items of these granules; None where there is no search."""
    documents: dict[str, str] = {}
    try:
        for sensor in question.sensors:
            found = stac.granules(f"HLS{sensor}", question.tile, question.start, question.end)
            if found is None:
                return None
            records = [record for record in found if _in_season(record, question)]
            documents |= {str(record["umm"]["GranuleUR"]): json.dumps(record) for record in records}
    except IntegrityError as error:
        log(f"{error}; reading each granule's own document instead")
        return None
    items = stac.items(list(documents), collections)
    if missing := sorted(set(documents) - {item["id"] for item in items}):
        log(f"the STAC catalogue lacks {len(missing)} of {len(documents)} granules, such as {missing[0]}")
    return TileAnswer(items, documents, True)


def _by_place(
    question: TileQuestion, stac: SceneStac, collections: Sequence[str], log: Callable[[str], None]
) -> TileAnswer:
    """The items around the tile, whose neighbours' are left out, and the document of each that needs one."""

    def read(url: str) -> str:
        try:
            return stac.document(url).decode(errors="replace")
        except (NotFoundError, IntegrityError) as error:
            log(f"{error}; the scene's coverage stays unknown")
            return ""

    found = stac.search(question.bbox, question.start, question.end, collections)
    # what has no proper id is told of later
    items = [item for item in found if _may_be_of(item, question.tile)]
    urls = {str(item["id"]): url for item in items if (url := document_url(item))}
    with ThreadPoolExecutor(_DOCUMENTS_AT_ONCE) as pool:
        texts = dict(zip(urls, pool.map(read, urls.values()), strict=True))
    return TileAnswer(items, {name: text for name, text in texts.items() if text}, True)


def _may_be_of(item: dict[str, Any], tile: str) -> bool:
    try:
        return parse_scene_id(item["id"]).tile == tile
    except (IntegrityError, ValueError, KeyError):
        return True


def _in_season(record: dict[str, Any], question: TileQuestion) -> bool:
    try:
        return question.start <= parse_scene_id(record["umm"]["GranuleUR"]).sensed.date() <= question.end
    except (IntegrityError, ValueError):
        return False


def _name(question: TileQuestion, stac: SceneStac) -> str:
    asked = [
        _VERSION,
        stac.address,
        stac.search_address,
        question.tile,
        question.bbox,
        str(question.start),
        str(question.end),
        sorted(question.sensors),
    ]
    digest = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]
    return f"answers/{question.tile}-{question.start.year}-{digest}.json.gz"
