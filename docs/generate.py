"""The recipe and asset references, written from the code: `python docs/generate.py`."""

import typing
from pathlib import Path
from typing import Any, Literal

import dagster as dg
from pydantic_core import PydanticUndefined

from crop_assets.definitions import build_defs, environment_resources
from crop_assets.errors import item_type, number_range
from crop_assets.recipe import DatasetRecipe

REFERENCE = Path(__file__).parent / "reference"
RECIPE = """# Recipe

A recipe holds every choice that shapes a dataset. The launchpad shows the fields of the resource `recipe`. To keep your
choices, put them into a YAML file and name it in `CROP_ASSETS_RECIPE`; a field that is not given has its default, the
specification's choice where it makes one.

```yaml
dataset: corn-belt-2022
chips: 2000
sampling: balanced
aoi: corn-belt.geojson   # relative to this file
scene_rule: season_spread
sensors: [S30, L30]
```

| field | meaning |
|---|---|
"""
ASSETS = """# Assets

Every asset is a Parquet table; its rows name the files that belong to them. Inputs are other assets.
"""


def recipe_reference() -> str:
    """A table of the recipe's fields: meaning, type and default."""
    rows = [
        f"| `{name}` | {_cell(field.description)} "
        f"({_type(field.annotation, field.metadata)}, default: {_default(field.default)}) |\n"
        for name, field in DatasetRecipe.model_fields.items()
    ]
    return RECIPE + "".join(rows)


def asset_reference() -> str:
    """A section for each asset, in the order of the flow: description, partitions, inputs and columns."""
    graph = build_defs(environment_resources()).resolve_asset_graph()
    order = {key: position for position, key in enumerate(graph.toposorted_asset_keys)}
    text = ASSETS
    for group in dict.fromkeys(graph.get(key).group_name for key in order):
        text += f"\n## {group.capitalize()}\n"
        for key in sorted(order, key=order.__getitem__):
            node = graph.get(key)
            if node.group_name != group:
                continue
            inputs = ", ".join(
                f"[{parent.to_user_string()}](#{parent.to_user_string()})"
                for parent in sorted(node.parent_keys, key=order.__getitem__)
            )
            text += f"\n### `{key.to_user_string()}`\n\n{_description(node.description)}\n\n"
            text += f"Partitions: {_partitions(node.partitions_def)}. Inputs: {inputs or 'none'}.\n\n"
            schema = node.metadata["dagster/column_schema"]
            assert isinstance(schema, dg.TableSchema)
            text += "| column | type | meaning |\n|---|---|---|\n"
            text += "".join(f"| `{c.name}` | {c.type} | {_cell(c.description)} |\n" for c in schema.columns)
    return text


def _type(annotation: Any, metadata: list[Any]) -> str:
    kind = typing.get_origin(annotation)
    if kind is Literal:
        return " or ".join(f"`{value}`" for value in typing.get_args(annotation))
    if kind in (list, dict):
        return ("list of " if kind is list else "map of names to ") + _type(*item_type(annotation))
    return f"{annotation.__name__} {number_range(metadata)}".strip()


def _default(value: Any) -> str:
    return "required" if value is PydanticUndefined else f"`{value}`" if value != "" else "none"


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


def _description(text: str | None) -> str:
    # Dagster adds the partitions of a multi-asset to its description
    return " ".join((text or "").split("Multi-partitioned")[0].split())


def _partitions(partitions: dg.PartitionsDefinition[Any] | None) -> str:
    if partitions is None:
        return "none"
    return "year and tile" if isinstance(partitions, dg.MultiPartitionsDefinition) else "year"


def main() -> None:
    REFERENCE.mkdir(exist_ok=True)
    (REFERENCE / "recipe.md").write_text(recipe_reference())
    (REFERENCE / "assets.md").write_text(asset_reference())


if __name__ == "__main__":
    main()
