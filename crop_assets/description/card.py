"""The dataset card: `README.md` with the header that Hugging Face reads, filled in from `templates/README.md`."""

import json
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

import jinja2
import pandas as pd
import yaml

from crop_assets.chip_grid import CRS
from crop_assets.classes import CDL_CLASSES, CLASSES
from crop_assets.dataset.funnel import left_out, reject_ledger, yield_funnel
from crop_assets.dataset.splits import BUFFER, LEAKAGE, SPLIT_NAMES, UNASSIGNED, leakage_report
from crop_assets.description import facts
from crop_assets.description.facts import CARD, CROISSANT, FILES, CardTables
from crop_assets.hls import POSITIONS, REFLECTANCE_BANDS
from crop_assets.recipe import DatasetRecipe
from resources.plain_text import markdown_text

_TEMPLATES = Path(__file__).with_name("templates")
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
OTHER = 13
"""The class of all CDL codes without a class of their own."""
_MAX_CELL = 300
_MAX_MISSING = 20
_EXPORTS = (".parquet", "_images.npy")
"""The ends of the names of exports that a line of the card loads."""
_CHARTS = {"training_dst.png": "training", "validation_dst.png": "validation", "test_dst.png": "test"}
_GIVEN = {
    "chip_boxes": "chip boxes",
    "scene_list": "scenes",
    "cid_list": "CIDs",
    "train_ids": "the training split",
    "validation_ids": "the validation split",
    "test_ids": "the test split",
}
_FILES = {
    "chips_filtered/": "all chips: `chip_RRR_CCC_merged.tif` (18 bands) and `chip_RRR_CCC.mask.tif`",
    "training_chips/": "the chips that train",
    "validation_chips/": "the chips that validate",
    "test_chips/": "the chips that test",
    "chips.parquet": "all that is known of each chip (GeoParquet)",
    "chips_df.csv": "dates, split, tile and place of each chip",
    "training_data.txt": "ids of the training chips; the other splits have such lists too",
    "means.txt": "six numbers over the training chips, for normalisation; `stds.txt` as well",
    "statistics.json": "statistics for each band, date and split",
    "class_weights.txt": "weights of classes 1 to 13",
    "classes.json": "value, label, name and colour of each class",
    "rejected_chips.csv": "chip boxes that are not in the dataset, with the reason",
    "terratorch.yaml": "for TerraTorch; with dates and places `terratorch_tl.yaml`",
    "clark_config.yaml": "for the baseline of Clark University",
    "exports/": "the dataset in other forms",
    "viewer/": "a map of the chips and pictures of each: open `viewer/index.html` in a browser",
    "stac/": "a static STAC catalogue",
}


def card_text(tables: CardTables, recipe: DatasetRecipe, year: int) -> str:
    """The text of README.md. The same tables and recipe give the same text.

    Texts from outside, such as the name of a CDL release or why a tile is missing, are escaped for Markdown.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Markdown: what comes from outside is escaped by `markdown_text`
        autoescape=False,  # noqa: S701
        keep_trailing_newline=True,
    )
    environment.filters["number"] = number
    environment.globals["counted"] = counted
    return environment.get_template(CARD).render(_values(tables, recipe, year))


def number(value: float) -> str:
    """A number for people: 12,345, or two decimals at most."""
    if float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:,.2f}"


def counted(count: int, noun: str) -> str:
    """A number of things: 1 chip, 12,345 chips."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def markdown_table(frame: pd.DataFrame) -> str:
    """A table in Markdown; texts are escaped, numbers as `number` writes them, and missing values empty."""
    lines = ["| " + " | ".join(map(str, frame.columns)) + " |", "|" + "---|" * len(frame.columns)]
    lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in frame.itertuples(index=False)]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, _Markdown):
        return str(value)
    if isinstance(value, str):
        return markdown_text(value, _MAX_CELL)
    return "" if pd.isna(value) else number(value)


class _Markdown(str):
    """A text that is Markdown already."""


def fenced(text: str, language: str) -> str:
    """A block of code that the text cannot end."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}{fence}"


def _values(tables: CardTables, recipe: DatasetRecipe, year: int) -> dict[str, Any]:
    chips = tables.chip_index
    names = {*tables.dataset_files["file"], *tables.stac_catalogue["file"], CARD, CROISSANT, FILES}
    stac = tables.stac_catalogue.groupby("kind")["file"].min()
    bands = facts.bands_of(tables)
    pixels = facts.class_pixels(tables.class_distribution)
    exports = {
        end: sorted(n for n in names if n.startswith("exports/") and n.endswith(end)) for end in _EXPORTS
    }
    title = f"{recipe.dataset} {year}"
    return {
        "header": _header(title, len(chips), exports[".parquet"]),
        "title": markdown_text(title),
        "year": year,
        "chips": len(chips),
        "files": names,
        "bands": ", ".join(REFLECTANCE_BANDS),
        "overview": markdown_table(_overview(tables, pixels)),
        "file_table": markdown_table(_file_rows(names)),
        "class_table": markdown_table(_class_rows(tables)),
        "charts": [(name, split) for name, split in _CHARTS.items() if name in names],
        "absent": ", ".join(CLASSES[c] for c in range(1, len(CLASSES)) if pixels[c] == 0),
        "split_table": markdown_table(_split_rows(tables.splits)),
        "leakage_table": _leakage_table(tables.splits),
        "qa_rule": recipe.qa_rule,
        "max_bad_percent": recipe.max_bad_percent,
        "quality_table": markdown_table(_quality_rows(chips)),
        "missing_pixels": int((chips["na_count"] > 0).sum()),
        "verified": int(bands["verified"].sum()),
        "bands_read": len(bands),
        "purity_table": _purity_table(tables),
        "clustering_table": _clustering_table(tables),
        "has_confidence": bool(_of_chips(tables)["confidence_percent"].notna().any()),
        "funnel_table": markdown_table(_funnel_rows(tables, recipe)),
        "missing_table": _missing_table(tables),
        "changed_table": _changed_table(recipe),
        "recipe": fenced(yaml.safe_dump(recipe.values(), sort_keys=True), "yaml"),
        "stac_collection": stac.get("collection", ""),
        "stac_table": stac.get("geoparquet", ""),
        "parquet_exports": exports[".parquet"],
        "array_exports": exports["_images.npy"],
        "cdl_page": facts.CDL_PAGE,
        "cdl_metadata_page": facts.CDL_METADATA_PAGE,
        "lp_daac_policy": facts.LP_DAAC_POLICY,
        "products": [facts.HLS_PRODUCTS[sensor] for sensor in facts.sensors(chips)],
        "sentinel": "S30" in facts.sensors(chips),
        "published_doi": facts.PUBLISHED_DOI,
        "date_spread": _date_spread(chips),
        "other_percent": _percent(pixels[OTHER], pixels.sum()),
        "other_codes": sum(value == OTHER for value in CDL_CLASSES.values()),
        "sampling": facts.sampling(recipe),
        "given": " and ".join(what for field, what in _GIVEN.items() if getattr(recipe, field)),
        "provenance": markdown_table(_provenance_rows(tables)),
    }


def _header(title: str, chips: int, exports: list[str]) -> str:
    """The YAML header that Hugging Face reads; it names data files only if there are some that it can load."""
    values: dict[str, Any] = {
        "pretty_name": title,
        "license": "other",
        "license_name": "public-domain-sources",
        "task_categories": ["image-segmentation"],
        "task_ids": ["semantic-segmentation"],
        "annotations_creators": ["machine-generated"],
        "size_categories": [next((size for limit, size in _SIZES if chips < limit), "1M<n<10M")],
        "tags": [
            "remote-sensing",
            "earth-observation",
            "geospatial",
            "crop-type",
            "land-cover",
            "multi-temporal",
            "harmonized-landsat-sentinel-2",
            "cropland-data-layer",
        ],
    }
    if exports:
        splits = dict.fromkeys(PurePosixPath(name).name.split("-")[0] for name in exports)
        files = [
            {"split": split, "path": f"exports/{split}-*.parquet"} for split in SPLIT_NAMES if split in splits
        ]
        values["configs"] = [{"config_name": "default", "data_files": files}]
    else:
        # it would show the charts
        values["viewer"] = False
    return yaml.safe_dump(values, sort_keys=False)


def _rows(rows: Iterable[tuple[Any, ...]], *columns: str) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=pd.Index(columns), dtype=object)


def _percent(part: float, total: float) -> str:
    return f"{100 * part / total:.2f}" if total else ""


def _overview(tables: CardTables, pixels: "pd.Series[int]") -> pd.DataFrame:
    chips, cdl = tables.chip_index, tables.cdl.iloc[0]
    west, south, east, north = facts.bounding_box(chips)
    first, last = facts.dates(chips)
    rows = [
        ("chips", len(chips)),
        ("chip boxes", len(tables.tile_map)),
        ("HLS tiles", chips["tile"].nunique()),
        ("HLS scenes", len(facts.scenes(chips))),
        ("sensors", ", ".join(facts.sensors(chips))),
        ("first day", str(first)),
        ("last day", str(last)),
        ("west, south, east, north", f"{west:.4f}, {south:.4f}, {east:.4f}, {north:.4f}"),
        ("grid", f"{CRS}, 30 m, chips of 224 x 224 on the national chip grid"),
        ("classes", int((pixels[1:] > 0).sum())),
        ("labels", str(cdl["file"])),
        ("CDL release", str(cdl["release"]) or "a local raster"),
        ("data files", len(tables.dataset_files)),
        ("bytes of data files", int(tables.dataset_files["bytes"].sum())),
        ("fingerprint", str(tables.fingerprint.iloc[0]["fingerprint"])),
    ]
    return _rows(rows, "what", "value")


def _file_rows(names: set[str]) -> pd.DataFrame:
    folders = {f"{PurePosixPath(name).parts[0]}/" for name in names if "/" in name}
    rows = [
        (_Markdown(f"`{name}`"), _Markdown(text))
        for name, text in _FILES.items()
        if name in names or name in folders
    ]
    return _rows(rows, "file", "contents")


def _splits_of(frame: pd.DataFrame) -> list[str]:
    return [split for split in SPLIT_NAMES if (frame["split"] == split).any()]


def _class_rows(tables: CardTables) -> pd.DataFrame:
    distribution = tables.class_distribution
    table = tables.class_weights[["class", "name"]].copy().astype(object)
    for split in _splits_of(tables.splits):
        of_split = distribution[distribution["split"] == split].set_index("class")
        total = of_split["pixels"].sum()
        table[f"{split} %"] = [_percent(of_split["pixels"][value], total) for value in table["class"]]
        table[f"{split} chips"] = [int(of_split["chips"][value]) for value in table["class"]]
    table["weight"] = [f"{weight:.4f}" for weight in tables.class_weights["weight"]]
    return table


def _split_rows(splits: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for split in _splits_of(splits):
        chips = splits[splits["split"] == split]
        rows.append(
            (
                split,
                len(chips),
                _percent(len(chips), len(splits)),
                chips["tile"].nunique(),
                chips["block"].nunique(),
            )
        )
    return _rows(rows, "split", "chips", "% of chips", "tiles", "blocks")


def _leakage_table(splits: pd.DataFrame) -> str:
    report = leakage_report(splits)
    if report.empty:
        return ""
    named = dict(
        zip(
            LEAKAGE,
            (
                "touch one at an edge or corner",
                "share an edge with one",
                "share a tile with one",
                "share a block with one",
            ),
            strict=True,
        )
    )
    for column in LEAKAGE:
        report[column] = [f"{value:.1f}" for value in report[column]]
    return markdown_table(report.rename(columns=named))


def _summary(values: "pd.Series[float]") -> tuple[str, ...]:
    return tuple(f"{value:.2f}" for value in (values.mean(), values.median(), values.min(), values.max()))


def _quality_rows(chips: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for position in POSITIONS:
        days = chips[f"{position}_date"]
        mean, median, _, worst = _summary(chips[f"bad_percent_{position}"])
        rows.append((position, str(days.min()), str(days.max()), mean, median, worst))
    return _rows(rows, "date", "earliest", "latest", "mean", "median", "worst")


def _of_chips(tables: CardTables) -> pd.DataFrame:
    """The rows of `label_quality` of the dataset's chips."""
    labels = tables.label_quality
    return labels[labels["chip_id"].isin(tables.chip_index["chip_id"])]


def _purity_table(tables: CardTables) -> str:
    labels = _of_chips(tables).merge(tables.splits[["chip_id", "split"]], on="chip_id")
    rows = []
    for column, name in (("purity_percent", "purity"), ("confidence_percent", "confidence")):
        if labels[column].notna().any():
            for split in _splits_of(tables.splits):
                rows.append((name, split, *_summary(labels.loc[labels["split"] == split, column])))
    return (
        markdown_table(_rows(rows, "figure", "split", "mean", "median", "lowest", "highest")) if rows else ""
    )


def _clustering_table(tables: CardTables) -> str:
    """The classes that dominate two or more chips of a split; empty if there are none."""
    found = tables.class_distribution
    found = found[found["clustering"].notna()]
    rows = [
        (split, name, dominated, *(f"{100 * share:.1f}" for share in shares))
        for split, name, dominated, *shares in found[
            ["split", "name", "dominated", "clustering", "clustering_by_chance"]
        ].itertuples(index=False)
    ]
    columns = ("split", "largest class", "chips", "% of neighbours", "% by chance")
    return markdown_table(_rows(rows, *columns)) if rows else ""


def _funnel_rows(tables: CardTables, recipe: DatasetRecipe) -> pd.DataFrame:
    filtered = tables.filtered_chips
    ledger = reject_ledger(tables.tile_map, filtered, tables.missing)
    unused = filtered[filtered["kept"] & ~filtered["chip_id"].isin(tables.splits["chip_id"])]
    reason = BUFFER if recipe.split == "blocks" else UNASSIGNED
    ledger = pd.concat(
        [part for part in (ledger, left_out(unused.assign(split=reason))) if len(part)] or [ledger]
    )
    return yield_funnel(tables.tile_map, ledger)


def _missing_table(tables: CardTables) -> str:
    if not tables.missing:
        return ""
    boxes = tables.tile_map["tile"].value_counts()
    rows = [(tile, int(boxes.get(tile, 0)), why) for tile, why in sorted(tables.missing.items())]
    more = f"\n\nand {len(rows) - _MAX_MISSING} more." if len(rows) > _MAX_MISSING else ""
    return markdown_table(_rows(rows[:_MAX_MISSING], "tile", "chip boxes", "why")) + more


def _changed_table(recipe: DatasetRecipe) -> str:
    defaults = DatasetRecipe().values()
    rows = [
        (name, _shown(value), _shown(defaults[name]))
        for name, value in recipe.values().items()
        if value != defaults[name]
    ]
    return markdown_table(_rows(rows, "field", "value", "default")) if rows else ""


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _date_spread(chips: pd.DataFrame) -> str:
    spans = {
        position: (chips[f"{position}_date"].max() - chips[f"{position}_date"].min()).days
        for position in POSITIONS
    }
    return ", ".join(f"the {position} by up to {counted(days, 'day')}" for position, days in spans.items())


def _provenance_rows(tables: CardTables) -> pd.DataFrame:
    found, cdl = tables.fingerprint.iloc[0], tables.cdl.iloc[0]
    rows = [
        ("fingerprint", str(found["fingerprint"])),
        ("hash of the recipe", str(found["recipe_sha256"])),
        ("hash of the inputs", str(found["inputs_sha256"])),
        ("hash of the outputs", str(found["outputs_sha256"])),
        ("inputs", int(found["inputs"])),
        ("outputs", int(found["outputs"])),
        ("SHA-256 of the CDL raster", str(cdl["sha256"])),
    ]
    return _rows(rows, "what", "value")
