"""Whether readers find in a dataset's folder what its tables say, by the rules of these readers.

The rules are those of TerraTorch's datasets and of the Clark baseline's loader: globs, pairs by order, bands by
position. `make readers` runs the readers themselves, which take gigabytes to install.
"""

import datetime as dt
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rasterio.errors import RasterioError

from crop_assets.chip_grid import CHIP_SIZE, transformer
from crop_assets.classes import CLASSES
from crop_assets.dataset.splits import OF_SPLIT, SPLIT_NAMES, TRAIN, VALIDATION
from crop_assets.hls import POSITIONS, REFLECTANCE_BANDS
from crop_assets.layout import Layout
from resources.errors import ResourceError
from resources.geodata import open_geotiff
from resources.store import DatasetStore

BATCH = 32
"""Chips of each split that are read, spread over it."""
_MAX_TEXT = 64 << 20
_DEGREES = 1e-5
"""About a metre: places in chips_df.csv have six decimals."""
_DATE_COLUMNS = [f"{position}_img_date" for position in POSITIONS]
_ALL_READ, _SOME_READ = 0.01, 1.0
"""How far the mean of normalised training pixels may be from 0 if all chips are read, and for a part of them."""


def contract_problems(
    store: DatasetStore, layout: Layout, splits: pd.DataFrame, means_over: Sequence[str]
) -> list[str]:
    """What readers would find wrong in the dataset's folder; empty if nothing.

    For each split in the table `splits`: its folder has the images and masks of its chips and no others, so that they
    are paired by their order, and its lists name them, without a blank line. For some chips of each: image[band][date]
    is band 6 * date + band of the file; masks minus 1 are -1 to 12; chips_df.csv has the dates as readers parse them
    (year, day of the year from 0) and the centre as latitude and longitude. The pixels of the splits `means_over`,
    normalised by means.txt and stds.txt, have the mean 0.
    """
    problems: list[str] = []
    sums = np.zeros((2, len(REFLECTANCE_BANDS)))
    read = 0
    try:
        text = _text(store, layout, "chips_df.csv")
        facts = pd.read_csv(io.StringIO(text), dtype=dict.fromkeys(_DATE_COLUMNS, str))
        if facts["chip_id"].duplicated().any():
            raise ValueError("chips_df.csv has duplicate chips")
        facts = facts.set_index("chip_id")
        for name in _DATE_COLUMNS:
            # readers take numbers such as 20220313 for nanoseconds since 1970
            facts[name] = pd.to_datetime(facts[name], format="%Y-%m-%d")
        for split in (TRAIN, VALIDATION):
            if not (splits["split"] == split).any():
                problems.append(f"no chip is for {split}; readers open an empty split without an error")
        for split in [split for split in SPLIT_NAMES if (splits["split"] == split).any()]:
            chips = splits[splits["split"] == split]
            ids = sorted(chips["chip_id"])
            problems += _lists_problems(store, layout, split, ids)
            folder = OF_SPLIT[split].folder
            dates = chips.set_index("chip_id")[[f"{position}_date" for position in POSITIONS]]
            for at in np.unique(np.linspace(0, len(ids) - 1, BATCH).astype(int)):
                chip = ids[at]
                image = _Image.read(store.gdal_path(layout.merged(chip, folder)))
                found = [
                    *_image_problems(image, facts.loc[chip], list(dates.loc[chip])),
                    *_label_problems(store.gdal_path(layout.mask(chip, folder))),
                ]
                problems += [f"{chip}: {problem}" for problem in found]
                if split in means_over:
                    sums += image.sums
                    read += 1
        means, stds = (
            np.array(_text(store, layout, f"{name}.txt").split(), float) for name in ("means", "stds")
        )
        limit = _ALL_READ if read == splits["split"].isin(means_over).sum() else _SOME_READ
        problems += _mean_problems(sums[0] / sums[1], means, stds, limit)
    except (OSError, RasterioError, ResourceError, ValueError, KeyError) as error:
        problems.append(f"{type(error).__name__}: {error}")
    return problems


@dataclass(frozen=True)
class _Image:
    """An image as TerraTorch arranges it: (band, date, 224, 224), missing pixels 0."""

    names: list[list[str]]
    place: tuple[float, float]
    sums: NDArray[np.float64]
    """Sum and count of the pixels that are not missing, by band: (2, 6)."""

    @classmethod
    def read(cls, path: str) -> "_Image":
        with open_geotiff(path) as raster:
            values = raster.read()
            by_date = (len(POSITIONS), len(REFLECTANCE_BANDS))
            pixels = values.reshape(*by_date, *raster.shape).swapaxes(0, 1)
            names = np.array(raster.descriptions).reshape(by_date).T.tolist()
            bounds = raster.bounds
            x, y = (bounds.left + bounds.right) / 2, (bounds.bottom + bounds.top) / 2
            lon, lat = transformer(str(raster.crs), "EPSG:4326").transform(x, y)
            valid = pixels != raster.nodata
        sums = np.stack([np.where(valid, pixels, 0).sum(axis=(1, 2, 3)), valid.sum(axis=(1, 2, 3))])
        return cls(names, (lat, lon), sums.astype(float))


def _text(store: DatasetStore, layout: Layout, name: str) -> str:
    return store.read_bytes(layout.file(name), _MAX_TEXT).decode()


def _lists_problems(store: DatasetStore, layout: Layout, split: str, ids: list[str]) -> Iterator[str]:
    files = OF_SPLIT[split]
    for name in files.lists:
        lines = _text(store, layout, name).split("\n")
        if lines != [*ids, ""]:
            yield f"{name} has {len(lines) - 1} lines, which are not the {len(ids)} chips of {split}"
    names = [path.rsplit("/", 1)[1] for path in store.names(layout.file(files.folder))]
    for kind, suffix in (("images", "_merged.tif"), ("masks", ".mask.tif")):
        found = [name.removesuffix(suffix) for name in names if name.endswith(suffix)]
        if sorted(found) != ids:
            yield f"{files.folder} has {len(found)} {kind}, which are not those of the {len(ids)} chips of {split}"


def _image_problems(image: _Image, facts: pd.Series, dates: Sequence[dt.date]) -> Iterator[str]:
    expected = [[f"{date}_{band}" for date in dates] for band in REFLECTANCE_BANDS]
    if image.names != expected:
        yield f"its bands by band and date are {image.names}, not {expected}"
    days = [(date.year, date.timetuple().tm_yday - 1) for date in facts[_DATE_COLUMNS]]
    if days != [(date.year, date.timetuple().tm_yday - 1) for date in dates]:
        yield f"chips_df.csv has the dates {days}, as years and days from 0"
    if not np.allclose(image.place, facts[["lat", "lon"]].astype(float), rtol=0, atol=_DEGREES):
        yield f"chips_df.csv has latitude {facts['lat']} and longitude {facts['lon']}, not {image.place}"


def _label_problems(path: str) -> Iterator[str]:
    """What is wrong with a mask, which TerraTorch reads minus 1, after it has replaced a tagged nodata by -1."""
    with open_geotiff(path) as raster:
        values = raster.read(1)
        if raster.nodata is not None:
            yield f"its mask has the nodata value {raster.nodata}, which readers replace before they subtract 1"
    if values.shape != (CHIP_SIZE, CHIP_SIZE) or values.max() >= len(CLASSES):
        yield f"its mask has the shape {values.shape} and values up to {values.max()}"


def _mean_problems(
    found: NDArray[np.float64], means: NDArray[np.float64], stds: NDArray[np.float64], limit: float
) -> Iterator[str]:
    away = (found - means) / stds
    for band, mean in zip(REFLECTANCE_BANDS, away, strict=True):
        if not abs(mean) <= limit:
            yield f"the mean of {band}, normalised by means.txt and stds.txt, is {mean:.3f} and not 0"
