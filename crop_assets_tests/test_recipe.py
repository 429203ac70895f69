import datetime as dt
import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from crop_assets.classes import CLASSES
from crop_assets.errors import InputError
from crop_assets.hls import QA_BAND, REFLECTANCE_BANDS
from crop_assets.recipe import DatasetRecipe, load_recipe

Load = Callable[[str | bytes], DatasetRecipe]

ANOTHER: dict[str, Any] = {
    "dataset": "kansas",
    "chips": 200,
    "sampling": "all",
    "min_classes": 3,
    "class_target": {"Corn": 2.0, "Open Water": 0.0},
    "max_per_block": 16,
    "sampling_seed": 7,
    "block_chips": 10,
    "chip_boxes": "chip_bbox.geojson",
    "unknown_codes": "other",
    "confidence_raster": "confidence.tif",
    "min_purity": 80.5,
    "min_confidence": 60.5,
    "aoi": "kansas.geojson",
    "tile_rule": "degrees",
    "season_start": "04-01",
    "season_end": "10-31",
    "max_cloud_cover": 10,
    "coverage_ladder": [100, 50],
    "middle_scene": "upper",
    "coverage": "full",
    "fetch": "blocks",
    "sensors": ["S30", "L30"],
    "scene_list": "selected_tiles.csv",
    "cid_list": "tile_payloads.json",
    "scene_rule": "season_spread",
    "max_candidates": 12,
    "min_gap_days": 30,
    "outside_chips": "reassign",
    "sources": ["lp_daac", "ipfs_cli"],
    "fmask_first": False,
    "qa_rule": "value",
    "max_bad_percent": 4.5,
    "max_na_pixels": 7,
    "max_missing_tiles": 3,
    "split": "blocks",
    "train_share": 0.7,
    "test_share": 0.1,
    "whole_tiles": True,
    "seed": 43,
    "max_touching": 1.5,
    "statistics_over": "kept",
    "band_values_binary": False,
    "exports": ["npy"],
}
"""A value other than the default for every field but those of `OF_FILES`."""
OF_FILES = {
    "split": "files",
    "train_ids": "train_ids.csv",
    "validation_ids": "val_ids.csv",
    "test_ids": "test_ids.csv",
}


def changed(field: str) -> DatasetRecipe:
    """A recipe with another value of a field, and with the split that uses the field."""
    if field in OF_FILES.keys() - {"split"}:
        return DatasetRecipe(**OF_FILES | {field: f"other_{OF_FILES[field]}"})
    with_it: dict[str, Any] = {"split": "blocks"} if field == "whole_tiles" else {}
    if field == "min_confidence":
        with_it = {"confidence_raster": "confidence.tif"}
    return DatasetRecipe(**with_it, **{field: ANOTHER[field]})


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Loads a recipe from a file with this text."""

    def from_text(text: str | bytes) -> DatasetRecipe:
        path = tmp_path / "recipe.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_recipe(str(path))

    return from_text


def test_defaults_are_those_of_the_specification() -> None:
    recipe = DatasetRecipe()
    assert recipe.season(2022) == (dt.date(2022, 3, 1), dt.date(2022, 9, 30))
    # "Cloud cover of 5% or less"; "100% spatial coverage, and then decreases to 90%, 80%... 50%"
    assert recipe.max_cloud_cover == 5
    assert recipe.coverage_ladder == [100, 90, 80, 70, 60, 50]
    # "the lower of the two is selected for the middle scene"
    assert recipe.middle_scene == "lower"
    # "Exclude chips that have >5% image values for a single bad QA class", "1 or more NA Pixels"
    assert (recipe.qa_rule, recipe.max_bad_percent, recipe.max_na_pixels) == ("class", 5, 0)
    assert recipe.train_share == 0.8
    assert (recipe.chips, recipe.tile_rule, recipe.sampling) == (5000, "projected", "evenness")
    assert recipe.statistics_over == "train"
    assert (*REFLECTANCE_BANDS, QA_BAND) == ("B02", "B03", "B04", "B8A", "B11", "B12", "Fmask")


def test_paths_of_a_recipe_file_are_relative_to_it(load: Load, tmp_path: Path) -> None:
    recipe = load("aoi: kansas.geojson\nchip_boxes: /elsewhere/boxes.geojson\nscene_list: lists/scenes.csv\n")
    assert recipe.aoi == str(tmp_path / "kansas.geojson")
    assert recipe.chip_boxes == "/elsewhere/boxes.geojson"
    assert recipe.scene_list == str(tmp_path / "lists/scenes.csv")
    assert load("aoi: s3://bucket/aoi.geojson").aoi == "s3://bucket/aoi.geojson"
    assert load("aoi: ''").aoi == ""


def test_the_recipe_of_the_published_dataset_departs_where_its_documents_say() -> None:
    root = Path(__file__).parents[1]
    text = (root / "recipes/published.yaml").read_text()
    recipe = load_recipe(str(root / "recipes/published.yaml"))
    given = yaml.safe_load(text)
    default = DatasetRecipe().values()
    assert {name for name, value in recipe.values().items() if value != default[name]} == set(given)
    assert recipe.chip_boxes == str(root / "recipes/chip_bbox_task_1_5070.geojson")
    assert (recipe.tile_rule, recipe.middle_scene, recipe.qa_rule) == ("degrees", "upper", "value")
    assert (recipe.min_classes, recipe.max_na_pixels, recipe.statistics_over) == (1, 224 * 224, "kept")
    assert (recipe.split, recipe.train_ids, recipe.validation_ids) == (
        "files",
        str(root / "recipes/train_ids.csv"),
        str(root / "recipes/val_ids.csv"),
    )
    page = (root / "docs/published-dataset.md").read_text()
    for name in {*given, "cid_list"} - {"dataset"}:
        assert f"`{name}`" in str(DatasetRecipe.__doc__), name
        assert re.search(rf"^\| .*`{name}`.* \|$", page, re.MULTILINE), name
    # each field follows its reason
    for paragraph in text.split("\n\n")[2:]:
        assert paragraph.startswith("#"), paragraph


def test_without_a_file_the_recipe_is_the_default() -> None:
    assert load_recipe("").values() == DatasetRecipe().values()


def test_a_file_changes_the_fields_that_it_names(load: Load) -> None:
    lists = dict.fromkeys(OF_FILES.keys() - {"split"}, "")
    assert load(yaml.safe_dump(ANOTHER)).values() == ANOTHER | lists
    assert load("season_start: 04-01\nchips: 12  # few\n").values() == {
        **DatasetRecipe().values(),
        "season_start": "04-01",
        "chips": 12,
    }
    assert load("").values() == DatasetRecipe().values()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("chips: 0", "chips is 0, and must be from 1 to"),
        ("sensors: []", "sensors: List should have at least 1 item"),
        ("sensors: [S10]", r"sensors.0: Input should be 'S30' or 'L30'"),
        ("sensors: [S30, S30]", r"sensors: \['S30', 'S30'\] must name each one once"),
        (
            "class_target: {Maize: 2}",
            "class_target: no class is called Maize; the classes are Natural Vegetation",
        ),
        ("class_target: {Corn: -1}", "class_target.Corn is -1.0, and must be from 0 to 1,000,000"),
        ("class_target: {Corn: .inf}", "class_target.Corn is inf, and must be from 0 to 1,000,000"),
        ("class_target: {Corn: .nan}", "class_target.Corn is nan, and must be from 0 to 1,000,000"),
        ("class_target: {Corn: much}", "class_target.Corn: Input should be a valid number"),
        (
            f"class_target: {dict.fromkeys(CLASSES[1:], 0)}",
            "every class weighs 0; at least one must count",
        ),
        ("max_per_block: 0", "max_per_block is 0, and must be from 1 to"),
        ("block_chips: 0", "block_chips is 0, and must be from 1 to 1,000"),
        ("sampling_seed: -1", "sampling_seed is -1, and must be from 0 to"),
        ("min_gap_days: -1", "min_gap_days is -1, and must be from 0 to 150"),
        ("sources: []", "sources: List should have at least 1 item"),
        ("sources: [kubo, kubo]", "sources: .* must name each one once"),
        (
            "sources: [kubo, torrent]",
            "sources.1: Input should be 'mirror', 'kubo', 'gateways', 'ipfs_cli' or 'lp_daac'",
        ),
        ("chips: many", "chips: Input should be a valid integer"),
        ("chips: 10.5", "chips: Input should be a valid integer"),
        ("chips:", "chips: Input should be a valid integer"),
        ("min_classes: 14", "min_classes is 14, and must be from 1 to 13"),
        ("min_classes: 0", "min_classes is 0"),
        ("max_cloud_cover: 101", "max_cloud_cover is 101, and must be from 0 to 100"),
        ("max_cloud_cover: -1", "max_cloud_cover is -1"),
        ("max_bad_percent: -0.1", "max_bad_percent is -0.1, and must be from 0 to 100"),
        ("max_bad_percent: .nan", "max_bad_percent is nan"),
        ("max_bad_percent: .inf", "max_bad_percent is inf"),
        ("max_na_pixels: -1", "max_na_pixels is -1, and must be from 0 to 50,176"),
        ("max_na_pixels: 50177", "max_na_pixels is 50177"),
        (f"seed: 0x{'f' * 5000}", "seed must be from -9,223"),
        (f"max_na_pixels: 0x{'f' * 5000}", "max_na_pixels must be from 0 to 50,176"),
        ("train_share: 0", "train_share is 0.0, and must be between 0 and 1"),
        ("train_share: 1", "train_share is 1.0"),
        ("train_share: 80", "train_share is 80.0"),
        ("train_share: .nan", "train_share is nan"),
        ("season_start: 13-01", "season_start: '13-01' is not a day written as MM-DD"),
        ("season_end: 02-30", "season_end: '02-30' is not a day"),
        ("season_end: 9-30", "season_end: '9-30' is not a day"),
        ("season_start: March", "season_start: 'March' is not a day"),
        ("season_start: W10-1", "season_start: 'W10-1' is not a day"),
        ("season_start: 2022-03-01", "season_start: Input should be a valid string"),
        ("season_start: 10-01", "season_start: the season starts on 10-01, after its end on 09-30"),
        ("coverage_ladder: []", "coverage_ladder: List should have at least 1 item"),
        ("coverage_ladder: [90, 100]", r"coverage_ladder \[90, 100\] must fall"),
        ("coverage_ladder: [100, 100]", r"coverage_ladder \[100, 100\]"),
        ("coverage_ladder: [110, 90]", "coverage_ladder.0 is 110, and must be from 0 to 100"),
        ("coverage_ladder: [50, -1]", "coverage_ladder.1 is -1, and must be from 0 to 100"),
        ("coverage_ladder: 50", "coverage_ladder: Input should be a valid list"),
        ("coverage_ladder: [most]", "coverage_ladder.0: Input should be a valid integer"),
        ("sampling: random", "sampling: Input should be 'evenness', 'balanced' or 'all'"),
        ("tile_rule: nearest", "tile_rule: Input should be 'projected' or 'degrees'"),
        ("middle_scene: middle", "middle_scene: Input should be 'lower' or 'upper'"),
        ("qa_rule: worst", "qa_rule: Input should be 'class', 'value' or 'total'"),
        ("statistics_over: all", "statistics_over: Input should be 'train' or 'kept'"),
        ("seed: luck", "seed: Input should be a valid integer"),
        ("test_share: 0.2", "test_share: 0.8 train and 0.2 test, which leaves none to validate"),
        ("test_share: 1.2", "test_share is 1.2, and must be from 0 to 0.9"),
        (
            "split: blocks\ntrain_ids: a.csv",
            "train_ids: lists of ids are used by the split 'files', and not by 'blocks'",
        ),
        ("split: files\ntrain_ids: a.csv", "split: 'files' needs train_ids and validation_ids"),
        (
            "whole_tiles: true",
            "whole_tiles: tiles are kept together by the split 'blocks', and not by 'random'",
        ),
        ("split: files\ntrain_ids: http://h/a\nvalidation_ids: b", "train_ids: .* but as a local path"),
        ("max_touching: -1", "max_touching is -1"),
        ("band_values_binary: perhaps", "band_values_binary: Input should be a valid boolean"),
        ("dataset: ''", "dataset '' must be letters, digits"),
        ("dataset: ..", r"dataset '\.\.' must be letters"),
        ("dataset: ../other", "dataset '../other' must be letters"),
        ("dataset: a/b", "dataset 'a/b' must be letters"),
        ("dataset: .hidden", "dataset '.hidden' must be letters"),
        ('dataset: "a\\0b"', r"dataset 'a\\x00b' must be letters"),
        ("aoi: 5", "aoi: Input should be a valid string"),
        ("min_purity: -0.1", "min_purity is -0.1, and must be from 0 to 100"),
        ("min_purity: 100.5", "min_purity is 100.5, and must be from 0 to 100"),
        ("min_purity: .nan", "min_purity"),
        ("min_purity: high", "min_purity"),
        (
            "min_confidence: 60",
            "min_confidence: needs confidence_raster, the path of the CDL's confidence layer",
        ),
        ("min_confidence: .inf\nconfidence_raster: c.tif", "min_confidence"),
        ("confidence_raster: [c.tif]", "confidence_raster: Input should be a valid string"),
        ("confidence_raster: s3://bucket/c.tif", "confidence_raster: must be a local file"),
        ("confidence_raster: /vsicurl/http://a/c.tif", "confidence_raster"),
    ],
)
def test_a_nonsense_value_is_refused_by_file_and_field(load: Load, text: str, message: str) -> None:
    with pytest.raises(InputError, match=rf"recipe .*recipe\.yaml: .*{message}"):
        load(text)


def test_every_wrong_field_is_named_at_once(load: Load) -> None:
    with pytest.raises(InputError, match=r"sampling: .*; season_end: .*; qa_rule: "):
        load("qa_rule: worst\nsampling: random\nseason_end: never\n")


def test_limits_themselves_are_allowed(load: Load) -> None:
    recipe = load(
        "min_classes: 13\nmax_cloud_cover: 100\nmax_bad_percent: 100\nmax_na_pixels: 50176\nchips: 1\n"
        "season_start: 12-31\nseason_end: 12-31\ncoverage_ladder: [0]\n"
    )
    assert recipe.season(2021) == (dt.date(2021, 12, 31), dt.date(2021, 12, 31))


@pytest.mark.parametrize("text", ["chip: 200\nbands: [B02]", "bands: [B02]\nchip:\nseed: 1"])
def test_an_unknown_field_is_named_with_the_fields_that_there_are(load: Load, text: str) -> None:
    with pytest.raises(
        InputError,
        match=r"no field is called bands, chip \(did you mean 'chips'\?\); the fields are aoi, .*train_share",
    ):
        load(text)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("max_cloud_covr: 5", "max_cloud_cover"),
        ("Sampling: all", "sampling"),
        ("train-share: 0.7", "train_share"),
        ("sampling: balance", "balanced"),
        ("scene_rule: Season-Spread", "season_spread"),
        ("qa_rule: totl", "total"),
        ("coverage: chip", "chips"),
        ("sensors: [S30, l30]", "L30"),
        ("sources: [mirror, gateway]", "gateways"),
        ("class_target: {corn: 2}", "Corn"),
        ("class_target: {Corn: 2, Winter wheat: 3}", "Winter Wheat"),
        ("class_target: {Soy: 2}", "Soybeans"),
    ],
)
def test_what_was_meant_is_suggested(load: Load, text: str, meant: str) -> None:
    with pytest.raises(InputError, match=rf"\(did you mean '{meant}'\?\)"):
        load(text)


def test_a_field_that_is_no_word_is_unknown(load: Load) -> None:
    with pytest.raises(InputError, match="no field is called 2022, crops"):
        load("crops: 1\n2022: 1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("chips: [", "is not YAML"),
        ("a: b: c", "is not YAML"),
        (b"\xff\xfe\x00", "is not YAML"),
        ("!!python/object/apply:os.getcwd []", "is not YAML"),
        ("- chips", "expected 'field: value' lines, found list"),
        ("chips", "expected 'field: value' lines, found str"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(load: Load, text: str | bytes, message: str) -> None:
    with pytest.raises(InputError, match=rf"recipe .*recipe\.yaml:? {message}"):
        load(text)


def test_a_file_that_is_too_large_is_refused_before_it_is_parsed(load: Load) -> None:
    with pytest.raises(InputError, match=r"recipe .* has more than 1,000,000 characters"):
        load("chips: 1 # " + "x" * 1_000_000)


def test_a_small_file_of_many_references_is_refused_in_short(load: Load) -> None:
    lists = ["&a [x, x, x, x, x, x, x, x, x]"]
    for name, before in itertools.pairwise("abcdefghi"):
        lists.append(f"&{before} [{', '.join([f'*{name}'] * 9)}]")
    text = "".join(f"\n  - {one}" for one in lists)
    with pytest.raises(InputError, match="chips: Input should be a valid integer") as error:
        load(f"chips:{text}")
    assert len(str(error.value)) < 1000


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(InputError, match=f"recipe {re.escape(str(path))}.* correct CROP_ASSETS_RECIPE"):
            load_recipe(str(path))


def test_every_field_has_another_value_here() -> None:
    defaults = DatasetRecipe().values()
    assert ANOTHER.keys() | OF_FILES.keys() == defaults.keys()
    assert not [name for name, value in (OF_FILES | ANOTHER).items() if value == defaults[name]]


@pytest.mark.parametrize("field", ANOTHER | OF_FILES)
def test_the_fingerprint_tells_every_field(field: str) -> None:
    recipe = changed(field)
    without = DatasetRecipe(**OF_FILES if field in OF_FILES else {"split": recipe.split})
    if field == "split":
        without = DatasetRecipe()
    assert recipe.fingerprint() != without.fingerprint()


def test_of_a_file_only_the_name_is_part_of_the_recipe(tmp_path: Path) -> None:
    here, there = (DatasetRecipe(aoi=str(tmp_path / folder / "aoi.geojson")) for folder in ("here", "there"))
    assert here.fingerprint() == there.fingerprint() != DatasetRecipe().fingerprint()
    assert here.values(["aoi"]) == {"aoi": "aoi.geojson"}


def test_no_two_recipes_of_one_changed_field_share_a_fingerprint() -> None:
    fields = ANOTHER | OF_FILES
    assert len({changed(field).fingerprint() for field in fields}) == len(fields)


def test_the_fingerprint_is_of_values_not_of_how_they_are_written(
    load: Load,
) -> None:
    recipe = DatasetRecipe(**ANOTHER)
    assert re.fullmatch("[0-9a-f]{16}", recipe.fingerprint())
    backwards = yaml.safe_dump(dict(reversed(ANOTHER.items())), sort_keys=False)
    for text in (json.dumps(ANOTHER), yaml.safe_dump(ANOTHER), backwards):
        assert load(text).fingerprint() == recipe.fingerprint()
    assert load("max_bad_percent: 5").fingerprint() == load("max_bad_percent: 5.0").fingerprint()
    assert load("chips: 5000.0").fingerprint() == DatasetRecipe().fingerprint()


def test_a_leap_day_is_a_day_of_leap_years_only(load: Load) -> None:
    recipe = load("season_start: 02-29")
    assert recipe.season(2024)[0] == dt.date(2024, 2, 29)
    with pytest.raises(InputError, match=r"2023 has no 02-29 .*; change season_start or season_end"):
        recipe.season(2023)


def test_values_are_sorted_and_plain() -> None:
    recipe = DatasetRecipe(**ANOTHER)
    assert list(recipe.values()) == sorted(ANOTHER | OF_FILES)
    assert recipe.values(["seed", "chips"]) == {"chips": 200, "seed": 43}
    assert json.loads(json.dumps(recipe.values())) == recipe.values()
