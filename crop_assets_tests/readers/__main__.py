"""Read a dataset with real readers: `python -m crop_assets_tests.readers DATASET REPORT`."""

import importlib.metadata
import os
import platform
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import geopandas as gpd

from crop_assets_tests.readers import clark, with_terratorch
from crop_assets_tests.readers.dataset import Dataset, open_dataset

INTRODUCTION = """# Readers: what they read

Written by `make readers`, which loads the demo's dataset as [Load the dataset](loading.md) describes, compares each
chip with what rasterio reads, and trains on it. It fails if anything differs.

"""
PACKAGES = ("terratorch", "torch", "torchgeo", "lightning", "rasterio", "geopandas", "numpy")


def main(folder: Path, report: Path) -> None:
    sys.dont_write_bytecode = True
    warnings.simplefilter("ignore")
    report = report.resolve()
    os.chdir(folder)
    # for crop_datamodule.py; python -m has the folder of the project
    sys.path.insert(0, str(Path.cwd()))
    dataset = open_dataset(Path())
    config = clark.configuration(Path())
    sections = {
        "TerraTorch: `terratorch.yaml`": [
            *with_terratorch.read(dataset, "terratorch.yaml"),
            *with_terratorch.train("terratorch.yaml"),
        ],
        "TerraTorch with dates and places: `terratorch_tl.yaml`": [
            *with_terratorch.read(dataset, "terratorch_tl.yaml"),
            *with_terratorch.train("terratorch_tl.yaml"),
        ],
        "The rules of Clark's loader: `clark_config.yaml`": [
            *clark.read(dataset, config),
            *clark.train(config),
        ],
    }
    if Path("chips.parquet").exists():
        sections["geopandas: `chips.parquet`"] = read_geoparquet(dataset)
    sections["The lines in the guide"] = run_guide(dataset, report.parent / "loading.md")
    report.write_text(INTRODUCTION + versions() + "".join(map(section, sections, sections.values())))
    print(f"wrote {report}")


def read_geoparquet(dataset: Dataset) -> list[str]:
    chips = gpd.read_parquet("chips.parquet").set_index("chip_id")
    for split, ids in dataset.splits.items():
        assert sorted(chips.index[chips["split"] == split]) == ids, split
    assert chips.index.is_unique
    assert chips.crs is not None and chips.crs.to_epsg() == 5070, chips.crs
    assert set(chips.geom_type) == {"Polygon"}, set(chips.geom_type)
    return [f"{len(chips)} chips with the split of each and a polygon in {chips.crs.name}"]


def run_guide(dataset: Dataset, guide: Path) -> list[str]:
    """Run the Python lines of the guide that need nothing but this folder."""
    blocks = {}
    for part in guide.read_text().split("\n## ")[1:]:
        title, _, text = part.partition("\n")
        blocks[title] = "".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    names = ["TerraTorch with dates and places", "PyTorch and rasterio"]
    names += ["geopandas"] if Path("chips.parquet").exists() else []
    found: dict[str, Any] = {"__name__": "guide"}
    for name in names:
        exec(blocks[name], found)
    assert found["batch"]["image"].shape == (4, 6, 3, 224, 224)
    chips = found["Chips"](".", "validation")
    assert len(chips) == len(dataset.splits["validation"])
    assert {tuple(image.shape) for image, _ in chips} == {(18, 224, 224)}
    return [f"run: {', '.join(names)}"]


def versions() -> str:
    found = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    return f"Python {platform.python_version()}, {found}; on the CPU.\n"


def section(title: str, lines: list[str]) -> str:
    return f"\n## {title}\n\n" + "".join(f"- {line}\n" for line in lines)


main(Path(sys.argv[1]), Path(sys.argv[2]))
