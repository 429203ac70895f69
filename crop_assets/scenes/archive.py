"""Asks the archive for all scenes of a tile's season, and keeps complete answers in the store."""

import datetime as dt
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from crop_assets.hls import parse_scene_id, tile_in
from crop_assets.scenes.granules import document_url, parse_document, unusable
from resources.errors import IntegrityError, NotAFileError, NotFoundError, UnavailableError
from resources.json_values import text
from resources.pace import current_deadline, deadline
from resources.response_cache import read_response, write_response
from resources.stac import SET_ASIDE, Bounds, SceneStac, max_scenes
from resources.stop import StoppablePool
from resources.store import DatasetStore

_DOCUMENTS_AT_ONCE = 8
_MAX_SET_ASIDE = 300
"""Unusable items of a tile. With more, the address is probably not a catalogue of HLS scenes."""
MAX_TILE_SECONDS = 3600.0
"""Time limit for all requests of a tile; a season takes about ten seconds."""
_VERSION = 2
"""Part of an answer's file name: increase it with any change of the requests or of what is kept."""


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
    """The STAC items of the tile, and their metadata documents (UMM-JSON or XML) by scene id, if they have one.

    The items include those that cannot be used (`granules.unusable`). With one of these, or with a document that cannot
    be read, the answer is not `complete`.
    """

    items: list[dict[str, Any]]
    documents: dict[str, str]
    asked: bool
    complete: bool


def tile_answer(
    question: TileQuestion, stac: SceneStac, store: DatasetStore, log: Callable[[str], None]
) -> TileAnswer:
    """The answer to a question; from the store if the same catalogue has answered it before, unless `refresh` is set.

    Only complete answers are kept, so that corrections at the source are noticed. With a granule search this takes one
    request for the search, and one for each hundred scenes; without, a search by bounding box, and a document for each
    scene whose item lacks cloud cover or coverage. Raises UnavailableError, also if the catalogue lacks a granule that
    the granule search lists; IntegrityError.
    """
    name = _name(question, stac)
    if not stac.refresh and not stac.is_file and (kept := read_response(store, name, _is_complete, log)):
        return TileAnswer(kept["items"], kept["documents"], asked=False, complete=True)
    collections = [f"HLS{sensor}_2.0" for sensor in question.sensors]
    with deadline(time.monotonic() + MAX_TILE_SECONDS):
        answer = _by_granules(question, stac, collections, log) or _by_place(question, stac, collections, log)
    if answer.complete and not stac.is_file:
        write_response(store, name, {"items": answer.items, "documents": answer.documents})
    return answer


def _is_complete(kept: dict[str, Any]) -> bool:
    """Whether a kept answer is valid: usable items and their documents."""
    items, documents = kept.get("items"), kept.get("documents")
    return (
        isinstance(items, list)
        and all(isinstance(item, dict) and isinstance(item.get("id"), str) for item in items)
        and not any(map(unusable, items))
        and isinstance(documents, dict)
        and all(isinstance(document, str) for document in documents.values())
    )


def _by_granules(
    question: TileQuestion, stac: SceneStac, collections: Sequence[str], log: Callable[[str], None]
) -> TileAnswer | None:
    """The granules of the tile by the granule search, and their items; None if there is no granule search or it finds
    nothing.
    """
    documents: dict[str, str] = {}
    aside: list[dict[str, Any]] = []
    try:
        for sensor in question.sensors:
            found = stac.granules(f"HLS{sensor}", question.tile, question.start, question.end)
            if found is None:
                return None
            for record in found:
                granule = {"id": str(record["umm"]["GranuleUR"])}
                if why := text(record.get(SET_ASIDE)) or unusable(granule):
                    aside.append(granule | {SET_ASIDE: why})
                elif _is_asked_for(granule, question):
                    documents[granule["id"]] = json.dumps(record)
    except (IntegrityError, NotAFileError) as error:
        log(f"{error}; reading each granule's own document instead")
        return None
    if not documents:
        log(f"{stac.search_address} has no granule of {question.tile}; searching the STAC catalogue by place")
        return None
    found = stac.items(list(documents), collections)
    items = [item for item in found if item["id"] in documents and not unusable(item)]
    unread = [item for item in found if unusable(item) and not _is_of_another(item, question.tile)]
    missing = sorted(documents.keys() - {item["id"] for item in (*items, *unread)})
    # an unreadable item may be one of them, and must not fail the tile
    if len(missing) > sum(item["id"] not in documents for item in unread):
        raise UnavailableError(
            f"the STAC catalogue {stac.address} lacks {len(missing)} of the {len(documents)} granules of "
            f"{question.tile} that {stac.search_address} lists, such as {missing[0]}; materialize this tile again later"
        )
    aside += [
        *unread,
        *({"id": name, SET_ASIDE: "the catalogue has no readable item of it"} for name in missing),
    ]
    return _answer(question, stac, items, aside, documents)


def _by_place(
    question: TileQuestion, stac: SceneStac, collections: Sequence[str], log: Callable[[str], None]
) -> TileAnswer:
    """The items in the tile's bounding box, without those of its neighbours, and the documents that are needed."""
    bounds = Bounds(stac.address, len(collections) * max_scenes(question.start, question.end))
    current = current_deadline()

    def read(url: str) -> str:
        # raises once there are too many
        bounds.add(bytes=0)
        try:
            with deadline(current):
                data = stac.document(url)
        except (NotFoundError, IntegrityError, NotAFileError) as error:
            log(f"{error}; what only it reports about the scene stays unknown")
            return ""
        bounds.add(bytes=len(data))
        return data.decode(errors="replace")

    found = stac.search(question.bbox, question.start, question.end, collections)
    aside = [item for item in found if unusable(item) and not _is_of_another(item, question.tile)]
    items = [item for item in found if not unusable(item) and _is_asked_for(item, question)]
    bounds.add(records=len(items))
    urls = {str(item["id"]): url for item in items if (url := document_url(item))}
    with StoppablePool(_DOCUMENTS_AT_ONCE) as pool:
        texts = dict(zip(urls, pool.map(read, urls.values()), strict=True))
    return _answer(question, stac, items, aside, texts)


def _answer(
    question: TileQuestion,
    stac: SceneStac,
    items: list[dict[str, Any]],
    aside: list[dict[str, Any]],
    documents: dict[str, str],
) -> TileAnswer:
    """The answer. Raises IntegrityError if too many items cannot be used."""
    if len(aside) > _MAX_SET_ASIDE:
        raise IntegrityError(
            f"the STAC catalogue {stac.address} gives {len(aside):,} items of {question.tile} that cannot be used, "
            f"such as {aside[0]['id'][:80]}: {unusable(aside[0])}; at most {_MAX_SET_ASIDE} are set aside. Check "
            "that the address is a catalogue of HLS scenes, or try again later"
        )
    complete = not aside and all(map(_can_be_read, documents.values()))
    return TileAnswer([*items, *aside], documents, True, complete)


def _can_be_read(document: str) -> bool:
    try:
        parse_document(document.encode())
    except IntegrityError:
        return False
    return True


def _is_of_another(item: Mapping[str, Any], tile: str) -> bool:
    """Whether an unusable item's id names another tile."""
    return tile_in(item["id"]) not in (None, tile)


def _is_asked_for(item: Mapping[str, Any], question: TileQuestion) -> bool:
    """Whether a usable item is of the tile and, by its id, of the season."""
    name = parse_scene_id(item["id"])
    return name.tile == question.tile and question.start <= name.sensed.date() <= question.end


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
