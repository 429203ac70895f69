"""What the archive knows of a tile's season: asked once, and kept in the store.

Belongs here: which questions are asked, and keeping the whole answer. Does not: how a catalogue is asked
(`resources.stac`), nor what the answer means (`granules`).
"""

import datetime as dt
import gzip
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from crop_assets.scenes.granules import parse_scene_id
from resources.errors import IntegrityError
from resources.stac import SceneStac
from resources.store import DatasetStore

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
    """STAC items by the catalogue, and UMM-JSON records by CMR's granule search, if there is one."""

    items: list[dict[str, Any]]
    records: list[dict[str, Any]]
    asked: bool


def tile_answer(
    question: TileQuestion, stac: SceneStac, store: DatasetStore, log: Callable[[str], None]
) -> TileAnswer:
    """The answer to a question, from the store where the same catalogue has given it before, unless it is to be asked
    anew (`refresh`). Kept only when it is whole.

    With a granule search it takes one request for it, and one for each hundred scenes. Raises UnavailableError,
    IntegrityError.
    """
    name = _name(question, stac)
    if not stac.refresh and not stac.is_file and store.exists(name):
        try:
            kept = json.loads(gzip.decompress(store.read_bytes(name)))
            return TileAnswer(kept["items"], kept["records"], asked=False)
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            log(f"the stored answer {name} is damaged ({type(error).__name__}); asking again")
    answer = _ask(question, stac, log)
    if not stac.is_file:
        data = json.dumps({"items": answer.items, "records": answer.records}, sort_keys=True).encode()
        store.write_bytes(name, gzip.compress(data, 6, mtime=0))
    return answer


def _ask(question: TileQuestion, stac: SceneStac, log: Callable[[str], None]) -> TileAnswer:
    collections = [f"HLS{sensor}_2.0" for sensor in question.sensors]
    records: list[dict[str, Any]] = []
    try:
        for sensor in question.sensors:
            found = stac.granules(f"HLS{sensor}", question.tile, question.start, question.end)
            if found is None:
                return TileAnswer(
                    stac.search(question.bbox, question.start, question.end, collections), [], True
                )
            records += [record for record in found if _in_season(record, question)]
    except IntegrityError as error:
        log(f"{error}; reading each granule's own document instead")
        return TileAnswer(stac.search(question.bbox, question.start, question.end, collections), [], True)
    ids = [str(record["umm"]["GranuleUR"]) for record in records]
    items = stac.items(ids, collections)
    if missing := sorted(set(ids) - {item["id"] for item in items}):
        log(f"the STAC catalogue lacks {len(missing)} of {len(ids)} granules, such as {missing[0]}")
    return TileAnswer(items, records, True)


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
