"""The dataset card: every figure is that of a table, and no text from outside becomes more than text."""

import re

import numpy as np
import pandas as pd
import pytest
import yaml

from crop_assets.classes import CLASSES
from crop_assets.dataset.funnel import left_out, reject_ledger, yield_funnel
from crop_assets.description.card import card_text, fenced, markdown_table, number
from crop_assets.description.facts import CardTables
from crop_assets.hls import POSITIONS
from crop_assets.recipe import DatasetRecipe
from crop_assets_tests.description.frames import made_tables, with_changes
from crop_assets_tests.description.markdown import Card

TABLES = made_tables(48, test_share=0.2, train_share=0.6)
RECIPE = DatasetRecipe(dataset="made", seed=7, test_share=0.2, train_share=0.6)
EVIL = [
    "</script><script>alert(1)</script>",
    "a | b || c",
    "```\n# heading\n---\nlicense: mit",
    "[click](https://evil.example/) ![x](javascript:alert(1))",
    "https://evil.example/?a|b",
    "{{ 7 * 7 }} {% for %} $chips",
    "&#124; \\| `code` <!-- ",
    "\x1b[2J\u202e\r\n| x | y |",
    "x" * 100_000,
]


def numbers(values: "pd.Series[str]") -> list[float]:
    return [float(value.replace(",", "")) for value in values]


def require_figures(card: Card, tables: CardTables, recipe: DatasetRecipe) -> None:
    """Compare every figure of the card's tables with the tables of the stages, counted here again."""
    title = f"{recipe.dataset} 2022"
    splits, index = tables.splits, tables.chip_index
    names = [split for split in ("train", "validation", "test") if (splits["split"] == split).any()]

    overview = card.table(title).set_index("what")["value"]
    scenes = {scene for position in POSITIONS for scene in index[f"{position}_scene"]}
    days = sorted(day for position in POSITIONS for day in index[f"{position}_date"])
    assert numbers(overview[["chips", "chip boxes", "HLS tiles", "HLS scenes", "classes"]]) == [
        len(index),
        len(tables.tile_map),
        index["tile"].nunique(),
        len(scenes),
        sum((index[f"class_{value}_share"] > 0).any() for value in range(1, 14)),
    ]
    assert (overview["first day"], overview["last day"]) == (str(days[0]), str(days[-1]))
    assert numbers(overview[["data files", "bytes of data files"]]) == [
        len(tables.dataset_files),
        tables.dataset_files["bytes"].sum(),
    ]
    west, south, east, north = map(float, overview["west, south, east, north"].split(", "))
    corners = index.geometry.to_crs(4326).get_coordinates()
    assert [west, east] == pytest.approx([corners["x"].min(), corners["x"].max()], abs=2e-4)
    assert [south, north] == pytest.approx([corners["y"].min(), corners["y"].max()], abs=2e-4)
    assert west <= corners["x"].min() and east >= corners["x"].max()
    assert overview["fingerprint"] == tables.fingerprint["fingerprint"][0]

    classes = card.table("Classes")
    assert list(classes["name"]) == list(CLASSES)
    for split in names:
        found = tables.class_distribution[tables.class_distribution["split"] == split]
        percent = 100 * found["pixels"].to_numpy() / found["pixels"].sum()
        assert numbers(classes[f"{split} %"]) == pytest.approx(percent, abs=0.00501)
        assert numbers(classes[f"{split} chips"]) == list(found["chips"])
    assert numbers(classes["weight"]) == pytest.approx(list(tables.class_weights["weight"]), abs=0.0000501)

    table = card.table("Splits").set_index("split")
    assert list(table.index) == names
    for split in names:
        chips = splits[splits["split"] == split]
        assert numbers(table.loc[split]) == pytest.approx(
            [len(chips), 100 * len(chips) / len(splits), chips["tile"].nunique(), chips["block"].nunique()],
            abs=0.00501,
        )
    if names != ["train"]:
        leaks = card.table("Splits", 1).set_index("split")
        for split in names[1:]:
            chips = splits[splits["split"] == split]
            expected = [
                100 * chips[name].mean()
                for name in ("touches_train", "borders_train", "in_train_tile", "in_train_block")
            ]
            assert numbers(leaks.loc[split]) == pytest.approx([len(chips), *expected], abs=0.0501)

    quality = card.table("Quality").set_index("date")
    for position in POSITIONS:
        bad, dates = index[f"bad_percent_{position}"], index[f"{position}_date"]
        assert list(quality.loc[position, ["earliest", "latest"]]) == [str(dates.min()), str(dates.max())]
        assert numbers(quality.loc[position, ["mean", "median", "worst"]]) == pytest.approx(
            [bad.mean(), bad.median(), bad.max()], abs=0.00501
        )
    purity = card.table("Quality", 1).set_index("split")
    for split in names:
        ids = splits.loc[splits["split"] == split, "chip_id"]
        values = tables.label_quality.set_index("chip_id").loc[ids, "purity_percent"]
        assert numbers(purity.loc[split, ["mean", "median", "lowest", "highest"]]) == pytest.approx(
            [values.mean(), values.median(), values.min(), values.max()], abs=0.00501
        )
    found = tables.class_distribution
    found = found[found["clustering"].notna()]
    if len(found):
        together = card.table("Quality", 2)
        assert list(zip(together["split"], together["largest class"], strict=True)) == list(
            zip(found["split"], found["name"], strict=True)
        )
        assert numbers(together["chips"]) == list(found["dominated"])
        assert numbers(together["% of neighbours"]) == pytest.approx(
            list(100 * found["clustering"]), abs=0.0501
        )
        assert numbers(together["% by chance"]) == pytest.approx(
            list(100 * found["clustering_by_chance"]), abs=0.0501
        )

    funnel = card.table("From chip boxes to chips").set_index("step")
    assert int(funnel["chips"].iloc[0].replace(",", "")) == len(tables.tile_map)
    assert int(funnel["chips"].iloc[-1].replace(",", "")) == len(splits)
    assert len(tables.tile_map) - sum(numbers(funnel["lost"])) == len(splits)

    recipe_fields = yaml.safe_load(card.code("yaml")[0])
    assert recipe_fields == recipe.values()
    changed = card.table("Recipe").set_index("field")["value"]
    assert {name: yaml.safe_load(text) for name, text in changed.items()} == {
        name: value for name, value in recipe.values().items() if value != DatasetRecipe().values()[name]
    }
    provenance = card.table("Where it comes from").set_index("what")["value"]
    found = tables.fingerprint.iloc[0]
    assert list(provenance) == [
        *(found[name] for name in ("fingerprint", "recipe_sha256", "inputs_sha256", "outputs_sha256")),
        number(found["inputs"]),
        number(found["outputs"]),
        tables.cdl["sha256"][0],
    ]


def test_every_figure_is_that_of_a_table() -> None:
    card = Card(card_text(TABLES, RECIPE, 2022))
    require_figures(card, TABLES, RECIPE)
    assert card.sections == [
        *("Files", "Classes", "Splits", "Quality", "From chip boxes to chips", "Recipe", "Load it"),
        *("What the labels are", "Known limits", "Licences and citations", "Where it comes from"),
    ]
    assert f"{len(TABLES.chip_index)} image chips" in card.body
    others = TABLES.chip_index["class_13_share"].mean() * 100
    assert f"Class 13 (Other) has {others:.2f} percent" in card.body


def test_the_funnel_has_the_reasons_of_the_ledger() -> None:
    recipe = DatasetRecipe(dataset="made", split="blocks")
    dropped = TABLES.splits["chip_id"].iloc[:3]
    missing_tile = str(TABLES.tile_map["tile"].iloc[-1])
    tables = with_changes(
        TABLES,
        splits=TABLES.splits.iloc[3:].reset_index(drop=True),
        filtered_chips=TABLES.filtered_chips[TABLES.filtered_chips["tile"] != missing_tile],
        missing={missing_tile: "the catalogue answered 500"},
    )
    card = Card(card_text(tables, recipe, 2022))
    unused = TABLES.filtered_chips[TABLES.filtered_chips["chip_id"].isin(dropped)].assign(split="buffer")
    ledger = pd.concat(
        [reject_ledger(tables.tile_map, tables.filtered_chips, tables.missing), left_out(unused)]
    )
    expected = yield_funnel(tables.tile_map, ledger)
    found = card.table("From chip boxes to chips")
    assert list(found["step"]) == list(expected["step"])
    assert numbers(found["lost"]) == list(expected["lost"])
    assert list(found["why"]) == list(expected["why"])
    assert "training chips that touch a validation or test chip" in list(found["why"])
    (missing,) = card.table("From chip boxes to chips", 1).itertuples(index=False)
    boxes = (TABLES.tile_map["tile"] == missing_tile).sum()
    assert tuple(missing) == (missing_tile, str(boxes), "the catalogue answered 500")


@pytest.mark.parametrize("evil", EVIL, ids=range(len(EVIL)))
def test_hostile_texts_stay_texts(evil: str) -> None:
    cdl = TABLES.cdl.assign(file=evil, release=evil)
    tile = str(TABLES.tile_map["tile"].iloc[-1])
    filtered = TABLES.filtered_chips[TABLES.filtered_chips["tile"] != tile]
    tables = with_changes(TABLES, cdl=cdl, filtered_chips=filtered, missing={tile: evil})
    # a file that the recipe names may have any name that a file can have
    name = re.sub(r"[\0/]", "", evil)[:200]
    recipe = RECIPE.model_copy(update={"aoi": f"/folder/{name}"})
    harmless = with_changes(tables, cdl=TABLES.cdl.assign(file="a", release="b"), missing={tile: "a"})
    plain, card = (
        Card(card_text(*made, 2022))
        for made in ((harmless, recipe.model_copy(update={"aoi": "/a"})), (tables, recipe))
    )
    assert card.sections == plain.sections
    assert card.header == plain.header
    assert card.links == plain.links
    assert card.kinds <= plain.kinds | {"code_inline", "text_special"}
    assert not card.kinds & {"html_block", "html_inline"}
    assert len(card.code("python")) == len(plain.code("python"))
    assert yaml.safe_load(card.code("yaml")[0]) == recipe.values()
    assert len(card.text) < 30_000
    require_figures_of_shape(card, plain)
    card.text.encode()


def require_figures_of_shape(card: Card, plain: Card) -> None:
    for section in ("made 2022", "Classes", "From chip boxes to chips", "Recipe", "Where it comes from"):
        assert card.table(section).shape == plain.table(section).shape, section
    assert card.table("From chip boxes to chips", 1).shape == (1, 3)


@pytest.mark.parametrize("dataset", ["null", "---", "1e3", "-", "yes", "a" * 100, "_x_*"[:3]])
def test_a_dataset_of_any_name_has_a_header(dataset: str) -> None:
    card = Card(card_text(TABLES, RECIPE.model_copy(update={"dataset": dataset}), 2022))
    assert card.header["pretty_name"] == f"{dataset} 2022"
    assert card.table(f"{dataset} 2022").shape[0] > 10


def test_the_header_has_what_hugging_face_knows() -> None:
    header = Card(card_text(TABLES, RECIPE, 2022)).header
    assert set(header) == {
        *("pretty_name", "license", "license_name", "task_categories", "task_ids", "annotations_creators"),
        *("size_categories", "tags", "viewer"),
    }
    assert (header["license"], header["size_categories"], header["viewer"]) == ("other", ["n<1K"], False)
    names = [f"exports/{split}-00000-of-00001.parquet" for split in ("train", "validation", "test")]
    more = pd.DataFrame(
        {"file": names, "stage": "exports", "media_type": "x", "bytes": 1, "sha256": "0" * 64}
    )
    files = pd.concat([TABLES.dataset_files, more])
    header = Card(card_text(with_changes(TABLES, dataset_files=files), RECIPE, 2022)).header
    assert "viewer" not in header
    (config,) = header["configs"]
    assert config["data_files"] == [
        {"split": split, "path": f"exports/{split}-*.parquet"} for split in ("train", "validation", "test")
    ]


def test_landsat_and_confidence_are_named_where_there_are_some() -> None:
    text = card_text(TABLES, RECIPE, 2022)
    assert "HLSL30.002" not in text and "Confidence is" not in text
    assert "modified Copernicus Sentinel data 2022" in " ".join(text.split())
    index = TABLES.chip_index.assign(
        first_scene=TABLES.chip_index["first_scene"].str.replace(".S30.", ".L30."),
    )
    labels = TABLES.label_quality.assign(confidence_percent=np.linspace(50, 100, len(TABLES.label_quality)))
    card = Card(card_text(with_changes(TABLES, chip_index=index, label_quality=labels), RECIPE, 2022))
    assert card.table("made 2022").set_index("what")["value"]["sensors"] == "S30, L30"
    assert {"https://doi.org/10.5067/HLS/HLSS30.002", "https://doi.org/10.5067/HLS/HLSL30.002"} <= card.links
    assert "Confidence is the CDL's own" in card.body
    found = card.table("Quality", 1)
    kept = labels[labels["chip_id"].isin(TABLES.splits.loc[TABLES.splits["split"] == "train", "chip_id"])]
    row = found[(found["figure"] == "confidence") & (found["split"] == "train")].iloc[0]
    assert float(row["mean"]) == pytest.approx(kept["confidence_percent"].mean(), abs=0.00501)


def test_one_chip_and_classes_that_are_absent() -> None:
    tables = made_tables(1, classes=2)
    card = Card(card_text(tables, DatasetRecipe(dataset="made"), 2022))
    require_figures(card, tables, DatasetRecipe(dataset="made"))
    assert "1 image chip with crop labels" in card.body
    assert "All chips are for training." in card.body
    assert "No chip has Corn, Soybeans, Wetlands" in " ".join(card.body.split())
    assert numbers(card.table("made 2022").set_index("what").loc[["classes", "chips"], "value"]) == [2, 1]


def test_five_thousand_chips_have_a_card_that_can_be_read() -> None:
    tables = made_tables(5000)
    text = card_text(tables, DatasetRecipe(dataset="made"), 2022)
    assert len(text) < 20_000
    require_figures(Card(text), tables, DatasetRecipe(dataset="made"))
    assert Card(text).header["size_categories"] == ["1K<n<10K"]


def test_the_same_tables_have_the_same_card_in_any_order_of_rows() -> None:
    text = card_text(TABLES, RECIPE, 2022)
    assert card_text(made_tables(48, test_share=0.2, train_share=0.6), RECIPE, 2022) == text
    shuffled = with_changes(
        TABLES,
        downloaded_bands=TABLES.downloaded_bands.sample(frac=1, random_state=1),
        filtered_chips=TABLES.filtered_chips.sample(frac=1, random_state=1),
        dataset_files=TABLES.dataset_files.sample(frac=1, random_state=1),
    )
    assert card_text(shuffled, RECIPE, 2022) == text


def test_later_years_are_native_at_ten_metres() -> None:
    assert "made at 10 m; these masks are from its raster of 30 m" in card_text(TABLES, RECIPE, 2025)
    assert "The CDL of 2022 has pixels of 30 m" in card_text(TABLES, RECIPE, 2022)


def test_figures_and_blocks_of_code() -> None:
    assert [number(value) for value in (0, 1234567, 5.0, 0.126, np.int64(7))] == [
        "0",
        "1,234,567",
        "5",
        "0.13",
        "7",
    ]
    assert markdown_table(pd.DataFrame({"a": ["x|y", None], "b": [1, np.nan]})) == (
        "| a | b |\n|---|---|\n| x\\|y | 1 |\n|  |  |"
    )
    code = "a ``` b\n````\n"
    assert Card("---\n---\n" + fenced(code, "yaml")).code("yaml") == [code]
