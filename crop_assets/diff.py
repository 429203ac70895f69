"""What differs between two datasets, or between a dataset and the tables that were published of one.

Nothing is written to either. `read_side` reads what a side has, `compare` compares what both have.
"""

import contextlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rasterio.errors import RasterioError

from crop_assets.chip_grid import CHIP_SIZE, is_chip_id
from crop_assets.chips.quality import BAD_QUALITY, NA_PIXELS, NO_SCENES
from crop_assets.dataset.splits import OF_SPLIT, parse_ids
from crop_assets.description.fingerprint import FILE
from crop_assets.errors import InputError
from crop_assets.hls import POSITIONS, REFLECTANCE_BANDS
from crop_assets.layout import Layout, parse_year
from crop_assets.scenes.scene_list import parse_scene_list
from crop_assets.schemas import SCHEMAS, tile_names
from resources.errors import IntegrityError, NotFoundError
from resources.geodata import open_geotiff
from resources.json_values import number, parse
from resources.parallel import in_parallel
from resources.plain_text import plain_text
from resources.store import DatasetStore
from resources.tables import read_table

_DATASET = re.compile(r"(?P<root>.*?)/?training_datasets/(?P<name>[^/]+)/(?P<year>[^/]+)/?", re.DOTALL)
_NAMED = re.compile(r"(?P<name>[A-Za-z0-9_-][A-Za-z0-9._-]{0,99})/(?P<year>[0-9]{4})")
_TRACKER = "chip_tracker.csv"
_SCENE_LISTS = ("selected_tiles.csv", "selected_scenes.csv", "selected_scenes_published.csv")
_MAX_FILE = 64 << 20
_MAX_JSON = 4 << 20
_AT_ONCE = 64
"""Chips whose pixels are compared before the next ones are read."""
_IMAGE_BANDS = [f"{position} {band}" for position in POSITIONS for band in REFLECTANCE_BANDS]
_PUBLISHED_LIMIT = 5
"""A chip of the published tracker is kept below this percentage of bad pixels, and without missing ones."""
NOT_A_BOX = "no chip box"
_UNKNOWN = "not listed"


@dataclass(frozen=True)
class Side:
    """What is known of a dataset; None where the dataset, or the published tables, do not have it.

    `splits` has the split of each chip, "" if unknown; `why` why a chip box is not in the dataset; `scenes` the scene
    ids of each tile by position, `dates` the days of each chip, `files` the checksums of image and mask of each chip.
    """

    name: str
    splits: Mapping[str, str]
    why: Mapping[str, str] | None = None
    boxes_known: bool = False
    recipe: Mapping[str, Any] | None = None
    fingerprint: str = ""
    scenes: Mapping[str, Mapping[str, str]] | None = None
    dates: Mapping[str, Sequence[str]] | None = None
    files: Mapping[str, tuple[str, str]] | None = None
    statistics: Mapping[str, float] | None = None
    class_weights: Mapping[str, float] | None = None
    class_shares: Mapping[str, float] | None = None
    store: DatasetStore | None = None
    paths: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """The names in the store of image and mask of each chip."""


def read_side(place: str, data: str, pool: Executor) -> Side:
    """What `place` has: the folder of a dataset and year, `<dataset>/<year>` in the store `data`, or a folder or file
    of published tables. Raises InputError if it is none of these, and the errors of `read_table`.
    """
    local = Path(place)
    if "://" not in place and local.exists():
        resolved = str(local.resolve())
        if found := _DATASET.fullmatch(resolved):
            return _dataset(
                DatasetStore(root=found["root"] or "/"), found["name"], found["year"], place, pool
            )
        return _published(local)
    if found := _DATASET.fullmatch(place):
        return _dataset(DatasetStore(root=found["root"] or "."), found["name"], found["year"], place, pool)
    if found := _NAMED.fullmatch(place):
        return _dataset(DatasetStore(root=data), found["name"], found["year"], place, pool)
    raise InputError(
        f"{plain_text(place, 300)} is neither a dataset (…/training_datasets/NAME/YEAR, or NAME/YEAR in --data) nor a "
        "folder or file of published tables"
    )


def _dataset(store: DatasetStore, name: str, year_text: str, place: str, pool: Executor) -> Side:
    year = parse_year(year_text)
    if year is None:
        raise InputError(f"{plain_text(place, 300)}: {plain_text(year_text, 20)} is not a year")
    layout = Layout(name, year)

    def table(asset: str) -> pd.DataFrame | None:
        with contextlib.suppress(NotFoundError):
            return read_table(store, layout.table(asset), SCHEMAS[asset])
        return None

    chips = table("splits")
    if chips is None:
        raise InputError(
            f"{plain_text(place, 300)} has no table splits ({layout.table('splits')}): the dataset is not finished"
        )
    tile_map, statistics, weights = table("tile_map"), table("band_stats"), table("class_weights")
    described = _described(store, layout)
    columns = [f"{position}_date" for position in POSITIONS]
    return Side(
        name=place,
        splits=_by_chip(chips, "split"),
        why=_ledger(store, layout),
        boxes_known=True,
        recipe=described and {**described["recipe"], "year": year, "CDL raster": described["cdl_sha256"]},
        fingerprint=described["fingerprint"] if described else "",
        scenes=None if tile_map is None else _scenes(store, layout, tile_names(tile_map), pool),
        dates={
            chip: [str(day) for day in days]
            for chip, *days in chips[["chip_id", *columns]].itertuples(index=False, name=None)
        },
        files=dict(
            zip(chips["chip_id"], zip(chips["merged_sha256"], chips["mask_sha256"], strict=True), strict=True)
        ),
        statistics=None
        if statistics is None
        else {
            f"{row['band']} {figure}": float(row[figure])
            for row in statistics.to_dict("records")
            for figure in ("mean", "std", "min", "max")
        },
        class_weights=None
        if weights is None
        else dict(zip(weights["name"], weights["weight"].astype(float), strict=True)),
        class_shares=_class_shares(table("class_distribution")),
        store=store,
        paths=dict(
            zip(chips["chip_id"], zip(chips["merged_path"], chips["mask_path"], strict=True), strict=True)
        ),
    )


def _by_chip(chips: pd.DataFrame, column: str) -> dict[str, str]:
    return dict(zip(chips["chip_id"], chips[column], strict=True))


def _described(store: DatasetStore, layout: Layout) -> dict[str, Any] | None:
    """The content of dataset.json; None if there is none. Raises IntegrityError if it is not valid."""
    try:
        found = parse(store.read_bytes(layout.file(FILE), _MAX_JSON))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        found = None
    if (
        not isinstance(found, dict)
        or not isinstance(found.get("recipe"), dict)
        or not all(isinstance(found.get(key), str) for key in ("fingerprint", "cdl_sha256"))
    ):
        raise IntegrityError(
            f"{layout.file(FILE)} has no fingerprint and recipe; materialize fingerprint again"
        )
    return found


def _ledger(store: DatasetStore, layout: Layout) -> dict[str, str] | None:
    try:
        data = store.read_bytes(layout.file("rejected_chips.csv"), _MAX_FILE)
    except FileNotFoundError:
        return None
    rows = _csv(data, layout.file("rejected_chips.csv"), ("chip_id", "reason", "figure", "detail"))
    return {
        row["chip_id"]: " ".join(filter(None, (row["reason"], row["figure"], row["detail"])))
        for row in rows.to_dict("records")
    }


def _scenes(
    store: DatasetStore, layout: Layout, tiles: Sequence[str], pool: Executor
) -> dict[str, dict[str, str]]:
    def read(tile: str) -> dict[str, str]:
        with contextlib.suppress(NotFoundError):
            name = layout.table("selected_scenes", tile)
            table = read_table(store, name, SCHEMAS["selected_scenes"])
            chosen = table[table["position"] != ""]
            return dict(zip(chosen["position"], chosen["scene_id"], strict=True))
        return {}

    found = zip(tiles, in_parallel(pool, read, tiles), strict=True)
    return {tile: scenes for tile, scenes in found if scenes}


def _class_shares(classes: pd.DataFrame | None) -> dict[str, float] | None:
    if classes is None:
        return None
    pixels = classes.groupby("split")["pixels"].transform("sum")
    shares = (classes["pixels"] / pixels).fillna(0)
    names = [f"{split} {name}" for split, name in zip(classes["split"], classes["name"], strict=True)]
    return dict(zip(names, map(float, shares), strict=True))


def _published(place: Path) -> Side:
    """What a folder of published tables, or one of them, has. Raises InputError if it has none, or they are invalid."""
    files = {path.name: path for path in ([place] if place.is_file() else place.iterdir()) if path.is_file()}
    where = plain_text(str(place), 300)
    splits: dict[str, str] = {}
    for split, named in OF_SPLIT.items():
        if ids_in := next((name for name in (*named.lists, named.ids) if name in files), None):
            ids = parse_ids(_read(files[ids_in]).decode(errors="replace"), files[ids_in])
            if twice := sorted(set(ids) & set(splits)):
                raise InputError(f"{where}: {twice[0]} is both for {splits[twice[0]]} and for {split}")
            splits |= dict.fromkeys(ids, split)
    tracked = _tracker(files[_TRACKER]) if _TRACKER in files else None
    listed = next((name for name in _SCENE_LISTS if name in files), None)
    if not splits and tracked is None:
        names = ", ".join([_TRACKER, *(name for one in OF_SPLIT.values() for name in (*one.lists, one.ids))])
        raise InputError(
            f"{where} is not a dataset (…/training_datasets/NAME/YEAR), and has no table of chips: {names}"
        )
    why, dates = None, None
    if tracked is not None:
        splits = splits or dict.fromkeys(tracked.loc[tracked["why"] == "", "chip_id"], "")
        why = {
            chip: reason or "kept, and in no list of ids"
            for chip, reason in zip(tracked["chip_id"], tracked["why"], strict=True)
            if chip not in splits
        }
        days = ["first_image_date", "second_image_date", "third_image_date"]
        dates = {
            chip: list(found)
            for chip, *found in tracked[["chip_id", *days]].itertuples(index=False, name=None)
        }
    scenes = None
    if listed:
        by_tile = parse_scene_list(_read(files[listed]), str(files[listed]))
        scenes = {
            tile: dict(zip(POSITIONS, (scene.scene_id for scene in found), strict=True))
            for tile, found in by_tile.items()
            if len(found) == len(POSITIONS)
        }
    return Side(
        name=str(place),
        splits=splits,
        why=why,
        boxes_known=tracked is not None,
        scenes=scenes,
        dates=dates,
    )


def _tracker(path: Path) -> pd.DataFrame:
    """The rows of chip_tracker.csv, with `why` a chip was not kept."""
    days = ("first_image_date", "second_image_date", "third_image_date")
    rows = _csv(_read(path), str(path), ("chip_id", "bad_pct_max", "na_count", *days))
    why = [
        _why_rejected(path, percent, count)
        for percent, count in zip(rows["bad_pct_max"], rows["na_count"], strict=True)
    ]
    return rows.assign(why=why)


def _why_rejected(path: Path, bad_percent: str, na_count: str) -> str:
    if not bad_percent and not na_count:
        # the published scripts left these chips without scenes
        return NO_SCENES
    percent, count = number(bad_percent, 0, 100), number(na_count, 0, 1e9)
    if percent is None or count is None:
        wrong = plain_text(repr(bad_percent if percent is None else na_count), 80)
        raise InputError(f"{path}: bad_pct_max or na_count is {wrong}, which is not a number")
    if percent >= _PUBLISHED_LIMIT:
        return f"{BAD_QUALITY} {percent:.6g}"
    return f"{NA_PIXELS} {count:g}" if count else ""


def _csv(data: bytes, name: str, columns: Sequence[str]) -> pd.DataFrame:
    """The columns of a CSV as text, with a valid chip id in each row. Raises InputError."""
    try:
        rows = pd.read_csv(BytesIO(data), dtype=str, keep_default_na=False)
    except ValueError as error:
        raise InputError(f"{name} is not a CSV: {plain_text(str(error), 200)}") from None
    if missing := [column for column in columns if column not in rows.columns]:
        raise InputError(f"{name} has no column {missing[0]}")
    rows["chip_id"] = [id if id.startswith("chip_") else f"chip_{id}" for id in rows["chip_id"]]
    if invalid := [id for id in rows["chip_id"] if not is_chip_id(id)]:
        raise InputError(f"{name}: {plain_text(repr(invalid[0]), 80)} is not a chip id")
    if (twice := rows["chip_id"].duplicated()).any():
        raise InputError(f"{name} has {rows.loc[twice, 'chip_id'].iloc[0]} twice")
    return rows


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(_MAX_FILE + 1)
    if len(data) > _MAX_FILE:
        raise InputError(f"{path} is larger than {_MAX_FILE:,} bytes")
    return data


def compare(
    a: Side,
    b: Side,
    pool: Executor,
    with_pixels: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """The differences as JSON values, and in `not_compared` what one side lacks; `same` if there are no differences.

    The names of the datasets are not compared. `progress` gets the number of chips whose pixels have been compared, and
    how many there are.
    """
    both = sorted(set(a.splits) & set(b.splits))
    lacking: list[str] = []

    def have(what: str, of_a: object, of_b: object) -> bool:
        without = [name for name, found in (("A", of_a), ("B", of_b)) if found is None]
        if without:
            lacking.append(f"{what}: not in {' and '.join(without)}")
        return not without

    found: dict[str, Any] = {
        "only_a": _only(a, b),
        "only_b": _only(b, a),
        "split": [],
        "recipe": [],
        "scenes": [],
        "dates": [],
        "files": [],
        "statistics": [],
        "class_weights": [],
        "class_shares": [],
    }
    with_split = [chip for chip in both if a.splits[chip] and b.splits[chip]]
    if both and not with_split:
        lacking.append("splits: the lists of chips do not have them")
    found["split"] = _changed("chip_id", a.splits, b.splits, with_split)
    if have("recipe", a.recipe, b.recipe):
        assert a.recipe is not None and b.recipe is not None
        fields = sorted({*a.recipe, *b.recipe} - {"dataset"})
        found["recipe"] = _changed("field", a.recipe, b.recipe, fields)
    if have("scenes", a.scenes, b.scenes):
        assert a.scenes is not None and b.scenes is not None
        found["scenes"] = _scene_changes(a.scenes, b.scenes)
    if have("dates", a.dates, b.dates):
        assert a.dates is not None and b.dates is not None
        found["dates"] = _changed(
            "chip_id", a.dates, b.dates, [chip for chip in both if chip in a.dates and chip in b.dates]
        )
    if have("images and masks", a.files, b.files):
        assert a.files is not None and b.files is not None
        found["files"] = [
            {"chip_id": chip, "image": a.files[chip][0] != b.files[chip][0], "mask": mask}
            for chip in both
            if a.files[chip] != b.files[chip]
            for mask in [a.files[chip][1] != b.files[chip][1]]
        ]
        if with_pixels:
            found["pixels"] = _pixels(a, b, found["files"], pool, progress)
        else:
            lacking.append("pixels: --no-pixels")
    for name in ("statistics", "class_weights", "class_shares"):
        of_a, of_b = getattr(a, name), getattr(b, name)
        if have(name.replace("_", " "), of_a, of_b):
            found[name] = _changed("name", of_a, of_b, sorted({*of_a, *of_b}))
    return {
        "same": not any(found.values()),
        "a": _summary(a),
        "b": _summary(b),
        "chips_in_both": len(both),
        "not_compared": lacking,
        "differences": found,
    }


def _summary(side: Side) -> dict[str, Any]:
    return {"name": side.name, "chips": len(side.splits), "fingerprint": side.fingerprint}


def _only(side: Side, other: Side) -> list[dict[str, str]]:
    """The chips that only `side` has, and why the other does not have them."""
    unknown = NOT_A_BOX if other.boxes_known and other.why is not None else _UNKNOWN
    why = other.why or {}
    return [
        {"chip_id": chip, "split": side.splits[chip], "why": why.get(chip, unknown)}
        for chip in sorted(set(side.splits) - set(other.splits))
    ]


def _changed(
    key: str, a: Mapping[str, Any], b: Mapping[str, Any], names: Iterable[str]
) -> list[dict[str, Any]]:
    return [{key: name, "a": a.get(name), "b": b.get(name)} for name in names if a.get(name) != b.get(name)]


def _scene_changes(
    a: Mapping[str, Mapping[str, str]], b: Mapping[str, Mapping[str, str]]
) -> list[dict[str, Any]]:
    """By tile and position; a tile whose scenes only one side has is in there with None for the other."""
    return [
        {"tile": tile, "position": position, "a": of_a, "b": of_b}
        for tile in sorted({*a, *b})
        for position in POSITIONS
        for of_a, of_b in [(a.get(tile, {}).get(position), b.get(tile, {}).get(position))]
        if of_a != of_b
    ]


def _pixels(
    a: Side,
    b: Side,
    files: Sequence[Mapping[str, Any]],
    pool: Executor,
    progress: Callable[[int, int], None] | None,
) -> list[dict[str, Any]]:
    """How many pixels differ in each band of each image, and in each mask, whose files differ, and by how much."""

    def of_chip(changed: Mapping[str, Any]) -> list[dict[str, Any]]:
        chip = changed["chip_id"]
        rows = []
        for kind, (name_a, name_b) in enumerate(zip(a.paths[chip], b.paths[chip], strict=True)):
            if changed["image" if kind == 0 else "mask"]:
                rows += _band_changes(chip, ["mask"] if kind else _IMAGE_BANDS, a, name_a, b, name_b)
        return rows

    found: list[dict[str, Any]] = []
    for start in range(0, len(files), _AT_ONCE):
        for rows in in_parallel(pool, of_chip, files[start : start + _AT_ONCE]):
            found += rows
        if progress:
            progress(min(start + _AT_ONCE, len(files)), len(files))
    return found


def _band_changes(
    chip: str, bands: Sequence[str], a: Side, name_a: str, b: Side, name_b: str
) -> list[dict[str, Any]]:
    pixels = []
    for side, name in ((a, name_a), (b, name_b)):
        assert side.store is not None
        try:
            with side.store.local(name, _MAX_FILE) as path, open_geotiff(path) as raster:
                # a header may claim any size
                if (raster.count, raster.width, raster.height) != (len(bands), CHIP_SIZE, CHIP_SIZE):
                    raise IntegrityError(
                        f"{name} of {side.name} has {raster.count} bands of {raster.width} x {raster.height} pixels, "
                        f"not {len(bands)} of {CHIP_SIZE} x {CHIP_SIZE}"
                    )
                pixels.append(raster.read().astype(np.int32))
        except FileNotFoundError:
            raise InputError(f"{name} of {side.name} is missing; run crop-assets verify") from None
        except RasterioError as error:
            raise IntegrityError(f"{name} of {side.name} cannot be read: {error}") from None
    by = np.abs(pixels[0] - pixels[1])
    return [
        {
            "chip_id": chip,
            "band": band,
            "pixels": int((change > 0).sum()),
            # the numbers of classes have no distance
            "largest": None if band == "mask" else int(change.max()),
            "mean": None if band == "mask" else float(change[change > 0].mean()),
        }
        for band, change in zip(bands, by, strict=True)
        if change.any()
    ]


_TITLES = {
    "recipe": "recipe fields differ",
    "only_a": "chips only in A",
    "only_b": "chips only in B",
    "split": "chips changed their split",
    "scenes": "scenes of tiles differ",
    "dates": "chips have other dates",
    "files": "chips have another image or mask",
    "pixels": "bands and masks of chips have other pixels",
    "statistics": "band statistics differ",
    "class_weights": "class weights differ",
    "class_shares": "class shares differ",
}


def report_lines(found: Mapping[str, Any], limit: int) -> list[str]:
    """The report as lines of plain text, with at most `limit` lines of each kind of difference."""
    lines = []
    for letter in ("a", "b"):
        side = found[letter]
        known = f", fingerprint {side['fingerprint'][:16]}" if side["fingerprint"] else ""
        lines.append(f"{letter.upper()}: {side['name']}: {side['chips']:,} chips{known}")
    lines.append(f"{found['chips_in_both']:,} chips are in both")
    for kind, title in _TITLES.items():
        rows = found["differences"].get(kind, [])
        if rows:
            lines.append(f"{len(rows):,} {title}:")
            lines += [f"  {_line(row)}" for row in rows[:limit]]
            if len(rows) > limit:
                lines.append(f"  and {len(rows) - limit:,} more")
    lines += [f"not compared: {what}" for what in found["not_compared"]]
    if found["same"]:
        lines.append("no differences")
    return [plain_text(line[:2], 2) + plain_text(line[2:]) for line in lines]


def _line(row: Mapping[str, Any]) -> str:
    if "why" in row:
        split = f" ({row['split']})" if row["split"] else ""
        return f"{row['chip_id']}{split}: {row['why']}"
    if "largest" in row:
        by = (
            ""
            if row["largest"] is None
            else f", by {row['mean']:.4g} on average and {row['largest']:,} at most"
        )
        return f"{row['chip_id']} {row['band']}: {row['pixels']:,} pixels{by}"
    if "image" in row:
        return f"{row['chip_id']}: {' and '.join(kind for kind in ('image', 'mask') if row[kind])}"
    *names, a, b = row.values()
    return f"{' '.join(map(str, names))}: {_shown(a)} -> {_shown(b)}"


def _shown(value: object) -> str:
    if value is None:
        return "none"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
