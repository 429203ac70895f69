"""DatasetRecipe: every choice that changes the bytes of a dataset, and its fingerprint.

Paths, servers and speed are settings of the clients in `resources/`.
"""

import datetime as dt
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from crop_assets.classes import CLASSES
from crop_assets.errors import InputError, problems
from crop_assets.suggest import with_suggestions
from resources.addresses import require_local_or_s3
from resources.object_store import translated
from resources.plain_text import plain_text
from resources.settings import Settings

_SPLIT_FILES = ("train_ids", "validation_ids", "test_ids")
PATHS = {"aoi", "chip_boxes", "confidence_raster", "scene_list", "cid_list", *_SPLIT_FILES}
"""The fields that name a file."""
_MAX_PATH = 4096
_MAX_CHARACTERS = 1_000_000
_MAX_NAMED_FILE = 256 << 20
_DATASET = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")
"""A dataset's name is that of a folder in any kind of store, and part of addresses and logs."""


class DatasetRecipe(Settings):
    """The choices behind one dataset; the defaults are the specification's.

    The published dataset departs from the written specification in `min_classes`, `tile_rule`, `middle_scene`,
    `qa_rule`, `max_na_pixels` and `statistics_over`. Its boxes, scenes, CIDs and split are not chosen but given:
    `chip_boxes`, `scene_list`, `cid_list`, and `split` with `train_ids` and `validation_ids`; `max_touching` must allow
    that so many of its chips touch each other. `recipes/published.yaml` has all of them, with the reasons.
    """

    dataset: str = Field(
        default="multi_temporal_crop_classification",
        description="Name of the dataset: the folder under training_datasets/.",
    )
    chips: int = Field(
        default=5000, ge=1, le=10_000_000, description="How many chip boxes to choose from the CDL release."
    )
    sampling: Literal["evenness", "balanced", "all"] = Field(
        default="evenness",
        description="How chip boxes are chosen: 'evenness' ranks them by class evenness and takes the best `chips` "
        "(specification); 'balanced' takes those that together come nearest to `class_target`, spread over the "
        "country; 'all' takes every box without no-data, in grid order, up to `chips`.",
    )
    min_classes: int = Field(
        default=8,
        ge=1,
        le=13,
        description="Fewest of the 13 classes that a chip box must hold under 'evenness': 8 (specification), or 1 "
        "(published).",
    )
    class_target: dict[str, Annotated[float, Field(ge=0, le=1_000_000)]] = Field(
        default={},
        max_length=len(CLASSES),
        description="What 'balanced' aims at: the weight of a class by its name, 1 for each that is not named; by "
        "default every class has the same share of the pixels.",
    )
    max_per_block: int = Field(
        default=8,
        ge=1,
        le=1_000_000,
        description="Most chips that 'balanced' takes from one block, unless that leaves too few.",
    )
    sampling_seed: int = Field(
        default=42, ge=0, le=2**31 - 1, description="Decides between equally good chips under 'balanced'."
    )
    block_chips: int = Field(
        default=8,
        ge=1,
        le=1000,
        description="Side of the blocks of chips over which 'balanced' spreads, and which spatial splits keep "
        "together; a chip is 6.72 km wide.",
    )
    chip_boxes: str = Field(
        default="",
        max_length=_MAX_PATH,
        description="Path of an existing chip GeoJSON to use instead of choosing boxes, such as the published one.",
    )
    unknown_codes: Literal["refuse", "other", "nodata"] = Field(
        default="refuse",
        description="What becomes of CDL codes that no class has, such as 40: 'refuse' stops with their number and "
        "places; their pixels are of class 13 as 'other', or of class 0 as 'nodata'.",
    )
    confidence_raster: str = Field(
        default="",
        max_length=_MAX_PATH,
        description="Path of the confidence layer of the CDL, a local raster on the CDL's grid, in a recipe file "
        "relative to it; `{year}` in it is the year. Without it, the confidence of labels is not known.",
    )
    min_purity: float = Field(
        default=0.0,
        ge=0,
        le=100,
        allow_inf_nan=False,
        description="Least purity of the labels of a chip, percent: its pixels whose class is the most frequent among "
        "their neighbours. 0 keeps all.",
    )
    min_confidence: float = Field(
        default=0.0,
        ge=0,
        le=100,
        allow_inf_nan=False,
        description="Least mean confidence of the labels of a chip by `confidence_raster`, percent. 0 keeps all.",
    )
    aoi: str = Field(
        default="",
        max_length=_MAX_PATH,
        description="Path of a vector file, in a recipe file relative to it; only chip boxes that touch its area are "
        "used.",
    )
    tile_rule: Literal["projected", "degrees"] = Field(
        default="projected",
        description="Nearest tile centroid in EPSG:5070 ('projected', specification) or in degrees "
        "('degrees', as the published dataset).",
    )
    outside_chips: Literal["drop", "reassign"] = Field(
        default="drop",
        description="What becomes of a chip box that lies wholly outside its nearest tile: no chip is made of it "
        "('drop'), or it goes to the tile that holds its centre ('reassign').",
    )
    season_start: str = Field(default="03-01", description="First day of the season, MM-DD.")
    season_end: str = Field(default="09-30", description="Last day of the season, MM-DD.")
    max_cloud_cover: int = Field(
        default=5, ge=0, le=100, description="Most cloud cover of a scene, in percent."
    )
    coverage_ladder: list[Annotated[int, Field(ge=0, le=100)]] = Field(
        default=[100, 90, 80, 70, 60, 50],
        min_length=1,
        max_length=101,
        description="Least spatial coverage in percent, lowered step by step until three scenes qualify.",
    )
    sensors: list[Literal["S30", "L30"]] = Field(
        default=["S30"],
        min_length=1,
        max_length=2,
        description="HLS products that scenes are chosen from: 'S30' (Sentinel-2), and 'L30' (Landsat) as well to fill "
        "a season with few scenes.",
    )
    scene_list: str = Field(
        default="",
        max_length=_MAX_PATH,
        description="Path of a CSV of the scenes to use, in a recipe file relative to it, with a column `title_id` or "
        "`scene_id`, or the links of the published selected_tiles.csv: first, middle and last are a tile's three by "
        "date. No catalogue of scenes is asked then, and the other rules about scenes are not used.",
    )
    scene_rule: Literal["first_middle_last", "season_spread", "clearest"] = Field(
        default="first_middle_last",
        description="'first_middle_last' fit scene of the season (specification); 'season_spread': the three that "
        "are jointly clearest over the tile's chips and spread over the season, by cloud cover and footprint of the "
        "complete scenes; 'clearest': the same by the Fmask of `max_candidates` scenes over the chips, which are "
        "downloaded for it.",
    )
    max_candidates: int = Field(
        default=24,
        ge=3,
        le=100,
        description="Most scenes of a tile whose Fmask files are downloaded and measured under 'clearest'.",
    )
    min_gap_days: int = Field(
        default=20,
        ge=0,
        le=150,
        description="Fewest days between two scenes of a chip under 'season_spread' and 'clearest'.",
    )
    middle_scene: Literal["lower", "upper"] = Field(
        default="lower",
        description="Middle of an even number of scenes: 'lower' (specification) or 'upper' (published).",
    )
    coverage: Literal["chips", "full"] = Field(
        default="chips",
        description="What is reprojected: the blocks under 'chips', or the 'full' tile, for a look around "
        "the chips; the chips are the same.",
    )
    sources: list[Literal["mirror", "kubo", "gateways", "ipfs_cli", "lp_daac"]] = Field(
        default=["mirror", "kubo", "gateways", "lp_daac"],
        min_length=1,
        max_length=5,
        description="Where band files come from, in the order in which they are asked: the 'mirror' folder, a 'kubo' "
        "node, IPFS 'gateways', the `ipfs` command ('ipfs_cli'), 'lp_daac' by HTTPS.",
    )
    fetch: Literal["auto", "blocks", "files"] = Field(
        default="auto",
        description="What is fetched of a band file: the 'blocks' under the chips, or complete 'files'; 'auto' takes "
        "blocks where they save a fifth of the bytes and a megabyte a file. The chips are the same. Fmask files are "
        "always complete.",
    )
    cid_list: str = Field(
        default="",
        max_length=_MAX_PATH,
        description="Path of a JSON of CIDs, in a recipe file relative to it: a list of {filename, cid}, or a "
        "tile_payloads.json. No catalogue of CIDs is asked then.",
    )
    fmask_first: bool = Field(
        default=True,
        description="Fetch a tile's Fmask files first, and its bands only if a chip can still be kept.",
    )
    qa_rule: Literal["class", "value", "total"] = Field(
        default="class",
        description="Share of bad pixels per date: 'class' takes the worst of cloud, cloud shadow and "
        "snow/ice; 'value' the most frequent invalid Fmask value (published); 'total' all bad pixels.",
    )
    max_bad_percent: float = Field(
        default=5.0,
        ge=0,
        le=100,
        allow_inf_nan=False,
        description="Most bad pixels of a chip on any date, percent.",
    )
    max_na_pixels: int = Field(
        default=0,
        ge=0,
        le=224 * 224,
        description="Most missing pixels of a chip in any band and date: 0 (specification), or 50176 "
        "for any number (published).",
    )
    max_missing_tiles: int = Field(
        default=0,
        ge=0,
        le=100_000,
        description="How many tiles of a year its dataset may lack. With more missing, dataset_job fails and names "
        "them; with fewer, their chips are in rejected_chips.csv with the reason.",
    )
    split: Literal["random", "blocks", "files"] = Field(
        default="random",
        description="How chips are split: 'random' by a seeded hash of the id (specification); 'blocks' keeps blocks "
        "of `block_chips` together, so that no validation or test chip touches a training chip; 'files' as in "
        "`train_ids`, `validation_ids` and `test_ids`.",
    )
    train_share: float = Field(
        default=0.8, gt=0, lt=1, allow_inf_nan=False, description="Share of the chips that train."
    )
    test_share: float = Field(
        default=0.0,
        ge=0,
        le=0.9,
        allow_inf_nan=False,
        description="Share of the chips that test; what trains neither nor tests validates.",
    )
    whole_tiles: bool = Field(
        default=False,
        description="With the split 'blocks': keep whole tiles together, so that no validation or test chip shares a "
        "tile with a training chip.",
    )
    seed: int = Field(default=42, ge=-(2**63), le=2**63 - 1, description="Seed of the split.")
    train_ids: str = Field(
        default="",
        max_length=_MAX_PATH,
        description="With the split 'files': path of a list of the ids that train, in a recipe file relative to it.",
    )
    validation_ids: str = Field(
        default="", max_length=_MAX_PATH, description="The same for the ids that validate."
    )
    test_ids: str = Field(
        default="", max_length=_MAX_PATH, description="The same for the ids that test; may be empty."
    )
    max_touching: float = Field(
        default=0,
        ge=0,
        le=100,
        allow_inf_nan=False,
        description="Most validation and test chips that may touch a training chip, percent; with more, a check of "
        "`splits` warns.",
    )
    statistics_over: Literal["train", "kept"] = Field(
        default="train",
        description="Chips that band statistics and class weights are taken over: those that train, or "
        "all that are kept (as the published dataset, which lets validation pixels into training).",
    )
    band_values_binary: bool = Field(
        default=True, description="Also write every pixel value of each band as a binary .npy file."
    )
    exports: list[Literal["parquet", "npy"]] = Field(
        default=[],
        max_length=2,
        description="Copies of the dataset in other forms, each as large as the dataset or larger: 'parquet' with the "
        "bytes of images and masks, 'npy' arrays that numpy maps into memory.",
    )

    @field_validator("dataset")
    @classmethod
    def _dataset_is_a_folder_name(cls, value: str) -> str:
        if not _DATASET.fullmatch(value):
            raise ValueError(
                f"dataset {plain_text(repr(value), 200)} must be letters, digits, '-', '_' or '.', not starting with "
                "'.': ASCII, 100 characters at most"
            )
        return value

    _are_places = field_validator(*PATHS)(require_local_or_s3)

    @field_validator("season_start", "season_end")
    @classmethod
    def _is_month_day(cls, value: str) -> str:
        try:
            # fromisoformat takes weeks as well, such as 2020-W10
            if not re.fullmatch("[0-9]{2}-[0-9]{2}", value):
                raise ValueError
            # a leap year, so that 02-29 is a day
            dt.date.fromisoformat(f"2020-{value}")
        except ValueError:
            raise ValueError(f"{value!r} is not a day written as MM-DD, for example 03-01") from None
        return value

    @field_validator("coverage_ladder")
    @classmethod
    def _is_a_descending_ladder(cls, value: list[int]) -> list[int]:
        if value != sorted(set(value), reverse=True):
            raise ValueError(f"coverage_ladder {value} must fall, as 100, 90, 80")
        return value

    @field_validator("sensors", "sources", "exports")
    @classmethod
    def _names_each_once(cls, value: list[str]) -> list[str]:
        if len(set(value)) < len(value):
            raise ValueError(f"{value} must name each one once")
        return value

    @field_validator("class_target")
    @classmethod
    def _weighs_classes(cls, value: dict[str, float]) -> dict[str, float]:
        if unknown := set(value) - set(CLASSES[1:]):
            raise ValueError(
                f"no class is called {with_suggestions(sorted(unknown), CLASSES[1:])}; "
                f"the classes are {', '.join(CLASSES[1:])}"
            )
        if len(value) == len(CLASSES) - 1 and not any(value.values()):
            raise ValueError("every class weighs 0; at least one must count")
        return value

    @model_validator(mode="after")
    def _is_a_season(self) -> "DatasetRecipe":
        if self.season_start > self.season_end:
            raise ValueError(
                f"season_start: the season starts on {self.season_start}, after its end on "
                f"{self.season_end}; a season lies within one calendar year"
            )
        return self

    @model_validator(mode="after")
    def _knows_the_confidence(self) -> "DatasetRecipe":
        if "://" in self.confidence_raster:
            raise ValueError("confidence_raster: must be a local file; download it, and give its path")
        if self.min_confidence and not self.confidence_raster:
            raise ValueError(
                "min_confidence: needs confidence_raster, the path of the CDL's confidence layer; without one, leave "
                "min_confidence at 0"
            )
        return self

    @model_validator(mode="after")
    def _is_a_split(self) -> "DatasetRecipe":
        if self.train_share + self.test_share >= 1:
            raise ValueError(
                f"test_share: {self.train_share} train and {self.test_share} test, which leaves none to validate"
            )
        given = [name for name in _SPLIT_FILES if getattr(self, name)]
        if self.split == "files" and not {"train_ids", "validation_ids"} <= set(given):
            raise ValueError("split: 'files' needs train_ids and validation_ids")
        if self.split != "files" and given:
            raise ValueError(
                f"{given[0]}: lists of ids are used by the split 'files', and not by {self.split!r}"
            )
        if self.split != "blocks" and self.whole_tiles:
            raise ValueError(
                f"whole_tiles: tiles are kept together by the split 'blocks', and not by {self.split!r}"
            )
        return self

    @property
    def measures_candidates(self) -> bool:
        """Whether the Fmask of candidate scenes decides which scenes are selected."""
        return self.scene_rule == "clearest" and not self.scene_list

    def season(self, year: int) -> tuple[dt.date, dt.date]:
        """First and last day of the season of `year`, both included.

        Raises InputError if the year has no such day (02-29).
        """
        try:
            start, end = (
                dt.date.fromisoformat(f"{year}-{day}") for day in (self.season_start, self.season_end)
            )
        except ValueError:
            raise InputError(
                f"{year} has no {self.season_start} or {self.season_end}; change season_start or season_end"
            ) from None
        return start, end

    def values(self, fields: Iterable[str] | None = None) -> dict[str, Any]:
        """The named fields, or all, as plain JSON values in the order of their names.

        Only the name of a file is included; the assets that read it identify its content.
        """
        names = sorted(type(self).model_fields if fields is None else fields)
        values = {name: getattr(self, name) for name in names}
        return {name: Path(value).name if name in PATHS else value for name, value in values.items()}

    def fingerprint(self) -> str:
        """SHA-256 of all fields, 16 hex digits: datasets with the same fingerprint follow the same recipe."""
        return _fingerprint(self.values())


def _fingerprint(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def read_named_file(path: str) -> bytes:
    """The content of a file that a recipe names, local or in an object store.

    Raises InputError if it cannot be read or has more than 256 MiB.
    """
    from upath import UPath

    try:
        with translated(path), UPath(path).open("rb") as file:
            data: bytes = file.read(_MAX_NAMED_FILE + 1)
    except OSError as error:
        raise InputError(f"cannot read {path}, which the recipe names: {error.strerror or error}") from None
    if len(data) > _MAX_NAMED_FILE:
        raise InputError(f"{path}, which the recipe names, has more than {_MAX_NAMED_FILE:,} bytes")
    return data


_Parsed = TypeVar("_Parsed")


class RecipeFiles:
    """The files that a recipe names, each read and parsed once for all tiles of a run."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._parsed: dict[tuple[str, Any], Any] = {}

    def parsed(self, path: str, parse: Callable[[bytes, str], _Parsed]) -> _Parsed:
        """What `parse` makes of the content and the path of a file; nobody may change it. Raises InputError."""
        with self._lock:
            if (path, parse) not in self._parsed:
                self._parsed[path, parse] = parse(read_named_file(path), path)
            found: _Parsed = self._parsed[path, parse]
            return found


def _read_yaml(path: str) -> Any:
    try:
        with Path(path).open() as file:
            text = file.read(_MAX_CHARACTERS + 1)
        if len(text) > _MAX_CHARACTERS:
            raise InputError(f"recipe {path} has more than {_MAX_CHARACTERS:,} characters, and is no recipe")
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, AttributeError, TypeError, LookupError, RecursionError) as error:
        # constructors raise errors of their own if a value does not fit its tag, such as a date in month 13
        raise InputError(f"recipe {path} is not YAML: {error}") from None


def load_recipe(path: str) -> DatasetRecipe:
    """The recipe in a YAML file of `field: value` lines, or the default recipe if `path` is empty.

    Raises InputError that names the file and the field.
    """
    if not path:
        return DatasetRecipe()
    try:
        values = _read_yaml(path) or {}
        if not isinstance(values, dict):
            raise InputError(f"recipe {path}: expected 'field: value' lines, found {type(values).__name__}")
        unknown = sorted(str(name) for name in set(values) - set(DatasetRecipe.model_fields))
        if unknown:
            raise InputError(
                f"recipe {path}: no field is called {with_suggestions(unknown, DatasetRecipe.model_fields)}; "
                f"the fields are {', '.join(sorted(DatasetRecipe.model_fields))}"
            )
        for name in PATHS & set(values):
            if isinstance(values[name], str) and values[name] and "://" not in values[name]:
                # relative to the recipe, wherever Dagster runs
                values[name] = str(Path(path).absolute().parent / values[name])
        return DatasetRecipe(**values)
    except FileNotFoundError:
        raise InputError(f"recipe {path}: no such file; correct CROP_ASSETS_RECIPE or --recipe") from None
    except OSError as error:
        raise InputError(
            f"recipe {path} cannot be read: {error.strerror}; correct CROP_ASSETS_RECIPE or --recipe"
        ) from None
    except ValidationError as error:
        wrong = problems(error, DatasetRecipe)
        words = "; ".join(f"{name or 'recipe'}: {message}" for name, message in wrong.items())
        raise InputError(f"recipe {path}: {words}") from None
