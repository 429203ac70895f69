"""Scenes from a list that the recipe names, such as the published `selected_tiles.csv`, instead of a catalogue."""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from crop_assets.errors import InputError
from crop_assets.hls import POSITIONS, SCENE_ID, SceneName, parse_scene_id
from crop_assets.scenes.granules import lp_daac_links
from resources.errors import IntegrityError
from resources.json_values import number

_ID_COLUMNS = ("title_id", "scene_id")
_LINKS_COLUMN = "http_links"
"""The published list has no column of ids; they are in the links of its files."""
_CLOUD_COLUMNS = ("cloud_cover",)
_COVERAGE_COLUMNS = ("spatial_coverage", "spatial_cover")
_SCENE_IN_LINK = re.compile(rf"/({SCENE_ID})/")
_MAX_BYTES = 16 << 20
"""The published list has 2.7 MB. A heading of nothing but commas takes twenty times as much memory."""
_MAX_LINES = 200_000
"""The published list has 1,434."""
_MAX_NAMED = 80
_SHORTEN = "leave the scenes that are used"


@dataclass(frozen=True)
class ListedScene:
    """A scene of a list; `line` is the number of its line. Cloud cover and coverage (percent) are None if not given."""

    scene_id: str
    name: SceneName
    cloud_cover: float | None
    spatial_coverage: float | None
    line: int


SceneList = Mapping[str, Sequence[ListedScene]]
"""The scenes of each tile, in the order of their dates."""


def parse_scene_list(data: bytes, path: str) -> SceneList:
    """The scenes of a CSV with a heading; each scene once, even if it is in several lines.

    The scene id is in the column `title_id` or `scene_id`, or else in the links of `http_links`, as in the published
    list. The columns `cloud_cover`, and `spatial_coverage` or `spatial_cover` (percent), are optional, and so is
    `tile_id`, which must be the scene's. Others are ignored.

    Raises InputError that names the file and the line.
    """
    if len(data) > _MAX_BYTES:
        raise InputError(f"{path} is larger than {_MAX_BYTES:,} bytes; {_SHORTEN}")
    try:
        lines = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
        columns = [name.strip() for name in lines.fieldnames or ()]
        ids = next((name for name in (*_ID_COLUMNS, _LINKS_COLUMN) if name in columns), None)
        if ids is None:
            raise InputError(
                f"{path} has no column {', '.join(_ID_COLUMNS)} or {_LINKS_COLUMN} with the HLS scenes; its heading is "
                f"{','.join(columns)[:_MAX_NAMED]!r}"
            )
        lines.fieldnames = columns
        found: dict[str, ListedScene] = {}
        for number_of_lines, line in enumerate(lines, start=1):
            if number_of_lines > _MAX_LINES:
                raise InputError(f"{path} has more than {_MAX_LINES:,} lines; {_SHORTEN}")
            scene = _scene(line, ids, lines.line_num, path)
            found.setdefault(scene.scene_id, scene)
    except UnicodeDecodeError:
        raise InputError(f"{path} is not a CSV in UTF-8; save it as one") from None
    except csv.Error as error:
        raise InputError(f"{path} is not a CSV: {error}, in line {lines.reader.line_num}") from None
    if not found:
        raise InputError(f"{path} lists no scene")
    by_tile: dict[str, list[ListedScene]] = {}
    for scene in sorted(found.values(), key=lambda scene: (scene.name.sensed, scene.scene_id)):
        by_tile.setdefault(scene.name.tile, []).append(scene)
    return by_tile


def _scene(line: Mapping[str | Any, Any], ids: str, number_of_line: int, path: str) -> ListedScene:
    where = f"{path}, line {number_of_line}"
    if None in line or None in line.values():
        raise InputError(f"{where}: it has more or fewer fields than the heading")
    text = line[ids].strip()
    if ids == _LINKS_COLUMN:
        named = sorted({match[1] for match in _SCENE_IN_LINK.finditer(text)})
        if len(named) != 1:
            what = f"those of {', '.join(named[:3])}" if named else "none of an HLS scene"
            raise InputError(f"{where}: the links of {ids} must be of one HLS scene, and are {what}")
        text = named[0]
    try:
        name = parse_scene_id(text[: 2 * _MAX_NAMED])
    except IntegrityError as error:
        raise InputError(f"{where}: {error}; correct {ids}") from None
    tile = line.get("tile_id", "").strip()
    if tile not in ("", name.tile, f"T{name.tile}"):
        raise InputError(f"{where}: tile_id is {tile[:_MAX_NAMED]!r}, and {text} is a scene of {name.tile}")
    cloud, coverage = (_percent(line, columns, where) for columns in (_CLOUD_COLUMNS, _COVERAGE_COLUMNS))
    return ListedScene(text, name, cloud, coverage, number_of_line)


def _percent(line: Mapping[str, str], columns: Sequence[str], where: str) -> float | None:
    for column in columns:
        if text := line.get(column, "").strip():
            value = number(text, 0, 100)
            if value is None:
                raise InputError(f"{where}: {column} is {text[:_MAX_NAMED]!r}, and must be from 0 to 100")
            return value
    return None


def scenes_of_tile(scenes: SceneList, tile: str, year: int, path: str) -> list[ListedScene]:
    """The listed scenes of a tile in a year, by date: three, or fewer if the list has no more.

    Raises InputError if it has more than three, or two of one day, because none of them is first, middle or last then.
    """
    found = [scene for scene in scenes.get(tile, ()) if scene.name.sensed.year == year]
    lines = ", ".join(map(str, sorted(scene.line for scene in found)[:5]))
    if len(found) > len(POSITIONS):
        raise InputError(
            f"{path} lists {len(found)} scenes of {tile} in {year} (lines {lines}{' …' if len(found) > 5 else ''}); "
            "leave the three that are used"
        )
    if len({scene.name.sensed.date() for scene in found}) < len(found):
        raise InputError(
            f"{path} lists two scenes of {tile} of one day (lines {lines}); leave one of each day"
        )
    return found


def listed_rows(scenes: Sequence[ListedScene]) -> pd.DataFrame:
    """The rows of `scene_metadata` for listed scenes. The links are those of LP DAAC, which follow from the ids; sizes
    and what the scenes cover of the chips are unknown.
    """
    return pd.DataFrame(
        {
            "scene_id": scene.scene_id,
            "tile": scene.name.tile,
            "date": scene.name.sensed.date(),
            "cloud_cover": scene.cloud_cover,
            "spatial_coverage": scene.spatial_coverage,
            "chip_coverage": None,
            "granule_bytes": 0,
            "missing_bands": "",
            "problem": "",
            **lp_daac_links(scene.scene_id),
        }
        for scene in scenes
    )
