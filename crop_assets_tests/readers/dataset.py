"""A dataset as rasterio reads it, which readers are compared with."""

import csv
import datetime as dt
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from rasterio.warp import transform

SPLITS = {"train": "train_ids.csv", "validation": "val_ids.csv", "test": "test_ids.csv"}
"""The splits that a dataset may have, and their lists of ids."""


@dataclass(frozen=True)
class Dataset:
    """A dataset folder, and the chip ids of each split with chip_, sorted."""

    folder: Path
    splits: dict[str, list[str]]

    def image(self, chip: str) -> np.ndarray:
        """Float32 (6 bands, 3 dates, 224, 224), NaN where there is no data: [b, t] is band 6 t + b of the file."""
        with rasterio.open(self.folder / f"chips_filtered/{chip}_merged.tif") as raster:
            bands = raster.read(masked=True).astype(np.float32).filled(np.nan)
        return np.stack([bands[b::6] for b in range(6)])

    def mask(self, chip: str) -> np.ndarray:
        """Int64 (224, 224) from 0 (no data) to 13."""
        with rasterio.open(self.folder / f"chips_filtered/{chip}.mask.tif") as raster:
            return raster.read(1).astype(np.int64)

    def dates(self) -> dict[str, list[list[int]]]:
        """Year and day of the year from 0 of the three dates of each chip."""
        found = {}
        with (self.folder / "chips_df.csv").open(newline="") as file:
            for row in csv.DictReader(file):
                days = [dt.date.fromisoformat(row[f"{at}_img_date"]) for at in ("first", "middle", "last")]
                found[row["chip_id"]] = [[day.year, day.timetuple().tm_yday - 1] for day in days]
        return found

    def place(self, chip: str) -> tuple[float, float]:
        """Latitude and longitude of the centre."""
        with rasterio.open(self.folder / f"chips_filtered/{chip}_merged.tif") as raster:
            x, y = raster.transform @ (raster.width / 2, raster.height / 2)
            lons, lats = transform(raster.crs, "EPSG:4326", [x], [y])
        return lats[0], lons[0]


def open_dataset(folder: Path) -> Dataset:
    """Raises AssertionError if training or validation has no chips."""
    splits = {}
    for split, name in SPLITS.items():
        if (folder / name).exists():
            lines = (folder / name).read_text().split()
            splits[split] = sorted(f"chip_{line}" for line in lines if line != "ids")
    assert splits["train"] and splits["validation"], splits
    return Dataset(folder, splits)
