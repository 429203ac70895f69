"""The configuration files that models need to read a dataset, filled in from `templates/`."""

from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any

import yaml

from crop_assets.classes import CLASSES
from crop_assets.hls import REFLECTANCE_BANDS

CONFIGS = ("terratorch.yaml", "terratorch_tl.yaml", "crop_datamodule.py", "clark_config.yaml")
_TEMPLATES = Path(__file__).with_name("templates")


def config_texts(
    *,
    means: Sequence[float],
    stds: Sequence[float],
    minimums: Sequence[float],
    maximums: Sequence[float],
    class_weights: Sequence[float],
    has_test: bool,
) -> dict[str, str]:
    """The text of each file that belongs into the folder of a dataset so that models can read it, by its name.

    `terratorch.yaml` and, with dates and places, `terratorch_tl.yaml` and `crop_datamodule.py` are for TerraTorch;
    `clark_config.yaml` is for the baseline of Clark University. The statistics are in the units of the rasters
    (reflectance x 10,000), one for each of the six bands; `class_weights` are those of classes 1 to 13. Without a test
    split, models test on the validation split. Raises ValueError for another number of values.
    """
    for numbers in (means, stds, minimums, maximums):
        if len(numbers) != len(REFLECTANCE_BANDS):
            raise ValueError(f"{len(REFLECTANCE_BANDS)} bands have {len(numbers)} statistics")
    names = list(CLASSES[1:])
    if len(class_weights) != len(names):
        raise ValueError(f"{len(names)} classes have {len(class_weights)} weights")
    values = {
        "test_split": "test_data.txt" if has_test else "validation_data.txt",
        "test_ids": "test_ids.csv" if has_test else "val_ids.csv",
        "means": _numbers(means, 6),
        "stds": _numbers(stds, 6),
        "minimums": _numbers(minimums, 6),
        "maximums": _numbers(maximums, 6),
        "class_names": _yaml(names),
        "class_mapping": "\n".join(f"  {value}: {_yaml([name])[1:-1]}" for value, name in enumerate(CLASSES)),
        "class_weights": _numbers(class_weights),
    }
    return {name: Template((_TEMPLATES / name).read_text()).substitute(values) for name in CONFIGS}


def _numbers(values: Sequence[float], decimals: int | None = None) -> str:
    # PyYAML writes 1e-05 as 1.0e-05; as repr writes it, YAML readers take it for a string
    return _yaml([float(value) if decimals is None else round(float(value), decimals) for value in values])


def _yaml(values: Sequence[Any]) -> str:
    """A list on one line."""
    text: str = yaml.safe_dump(values, default_flow_style=True, width=float("inf"))
    return text.strip()
