"""How good the labels of chips are: how pure, how certain by the CDL's own account, and how classes cluster."""

import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from rasterio.errors import RasterioError
from rasterio.windows import Window

from crop_assets.chip_grid import chip_position
from crop_assets.classes import CLASSES, reclassify
from crop_assets.errors import InputError
from crop_assets.labels.cdl import CdlRaster, check_cdl, unreadable
from resources.cdl import year_of
from resources.geodata import open_raster
from resources.parallel import in_parallel

if TYPE_CHECKING:
    import pandas as pd

NEIGHBOURS = 5
"""Nearest chips that the clustering of a chip is taken over, as in olmoearth_projects."""
_CHIPS_AT_ONCE = 64
"""Chips that are in memory at once, at 0.1 MB each."""
_ABOVE = 1e-6
"""Chips; distances on the chip grid are roots of integers, which differ by more."""
_PERCENTAGES = (
    "a confidence raster has one band of uint8 percentages. Use the confidence layer of the CDL release, or remove "
    "confidence_raster from the recipe"
)


def purity_percent(classes: NDArray[np.uint8]) -> float:
    """How many pixels agree with the majority of their neighbours, in percent of those that can be compared.

    `classes` is uint8[h, w], 0 to 13. The neighbours of a pixel are the up to eight others in the 3 x 3 pixels around
    it: those on the chip alone, without a margin. A pixel agrees if no class is more frequent among its neighbours than
    its own, so a tie is in its favour. Pixels of class 0 are no labels: they neither count nor are neighbours. Nor do
    pixels count that have no neighbours. NaN if no pixel counts.

    These are classes and not CDL codes, because masks have classes: between two crops that both are "Other" there is
    no edge that a model could learn.
    """
    own, most = np.zeros(classes.shape, np.uint8), np.zeros(classes.shape, np.uint8)
    for value in np.flatnonzero(np.bincount(classes.ravel(), minlength=len(CLASSES))[1:]) + 1:
        of_class = classes == value
        around = _neighbours(of_class)
        np.maximum(most, around, out=most)
        np.copyto(own, around, where=of_class)
    counted = (classes != 0) & (most > 0)
    total = np.count_nonzero(counted)
    return 100 * np.count_nonzero(counted & (own == most)) / total if total else float("nan")


def _neighbours(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The number of the up to eight pixels around each that are in the mask: uint8, in its shape."""
    padded = np.pad(mask.view(np.uint8), 1)
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    around: NDArray[np.uint8] = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] - mask.view(np.uint8)
    return around


def mean_confidence(
    confidence: NDArray[np.uint8], classes: NDArray[np.uint8], nodata: float | None = None
) -> float:
    """The mean confidence of the labels of a chip in percent; NaN if it is known for no pixel.

    `confidence` is uint8[h, w] of the CDL's confidence layer, and `classes` are those of the same pixels. Pixels of
    class 0 do not count, nor values above 100 or equal to `nodata`, that of the raster. A 0 elsewhere counts as 0: the
    layer is 0 outside the mapped area, where the class is 0 as well.
    """
    known = (classes != 0) & (confidence <= 100)
    if nodata is not None:
        known &= confidence != nodata
    total = np.count_nonzero(known)
    return int(confidence[known].sum(dtype=np.int64)) / total if total else float("nan")


def check_confidence(path: str, year: int) -> CdlRaster:
    """Open the confidence raster of a year, and make sure that its pixels are on the national grid.

    `{year}` in `path` is replaced. Raises InputError if there is no file, its name has another year, or as `check_cdl`.
    """
    file = Path(path.replace("{year}", str(year)))
    if not file.is_file():
        raise InputError(
            f"confidence_raster {file}: no such file; correct the path in the recipe, or remove it. NASS publishes the "
            "confidence layer beside each CDL release"
        )
    if (named := year_of(file.name)) not in (None, year):
        raise InputError(
            f"confidence_raster {file} is of {named} by its name, and not of {year}; use that of {year}, or write "
            "{year} for the year in the path if there are several"
        )
    return check_cdl(file.resolve(), pixels=_PERCENTAGES)


def require_chips(confidence: CdlRaster, ids: Sequence[str]) -> None:
    """Raise InputError if chips are not completely inside a confidence raster."""
    rows, cols = confidence.chip_rows, confidence.chip_cols
    outside = [name for name in ids if (at := chip_position(name))[0] not in rows or at[1] not in cols]
    if outside:
        more = f" and {len(outside) - 5:,} more" if len(outside) > 5 else ""
        raise InputError(
            f"confidence_raster {confidence.path} does not cover {len(outside):,} of {len(ids):,} chips: "
            f"{', '.join(outside[:5])}{more}; use a confidence layer of the same extent as the CDL raster"
        )


def measure_labels(
    cdl: CdlRaster,
    confidence: CdlRaster | None,
    ids: Sequence[str],
    pool: Executor,
    progress: Callable[[int], None] = lambda _: None,
) -> "pd.DataFrame":
    """Purity and mean confidence of each chip: chip_id, purity_percent, confidence_percent (NaN without a raster), in
    the order of `ids`.

    Each raster is opened once and read in this order, in memory that does not depend on the number of chips; sorted ids
    are fastest. Raises InputError if a raster cannot be read, or a CDL code has no class.
    """
    import pandas as pd

    def measure(chip: tuple[str, NDArray[np.uint8], NDArray[np.uint8] | None]) -> tuple[str, float, float]:
        name, codes, certain = chip
        classes = reclassify(codes, f"{cdl.path}, {name}", cdl.table)
        sure = float("nan")
        if confidence is not None and certain is not None:
            sure = mean_confidence(certain, classes, confidence.nodata)
        return name, purity_percent(classes), sure

    rows: list[tuple[str, float, float]] = []
    with contextlib.ExitStack() as stack:
        rasters = {
            one.path: stack.enter_context(open_raster(Path(one.path))) for one in (cdl, confidence) if one
        }

        def read(raster: CdlRaster, name: str) -> NDArray[np.uint8]:
            row, col = chip_position(name)
            window: Window = raster.window(row, range(col, col + 1))
            try:
                pixels: NDArray[np.uint8] = rasters[raster.path].read(1, window=window)
            except RasterioError as error:
                raise unreadable(raster.path, error) from None
            return pixels

        for start in range(0, len(ids), _CHIPS_AT_ONCE):
            chips = [
                (name, read(cdl, name), read(confidence, name) if confidence else None)
                for name in ids[start : start + _CHIPS_AT_ONCE]
            ]
            rows += in_parallel(pool, measure, chips)
            progress(len(rows))
    columns = ["chip_id", "purity_percent", "confidence_percent"]
    return pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(columns[1:], "float64"))


def largest_classes(counts: NDArray[np.integer]) -> NDArray[np.intp]:
    """The class of 1 to 13 with most pixels of each chip, the lower of equals; 0 if it has only class 0.

    `counts` is [n, 14], the pixels per class.
    """
    labels = counts[:, 1:]
    return np.where(labels.any(axis=1), labels.argmax(axis=1) + 1, 0)


def clustering(ids: Sequence[str], classes: NDArray[np.intp]) -> "pd.DataFrame":
    """How far chips of a class lie together, a row for each of the 14 classes: dominated, clustering,
    clustering_by_chance.

    `classes` has the class of each chip of `ids`, all different. `dominated` counts the chips of a class. `clustering`
    is the mean, over these, of the share of the nearest chips that have the class: the NEIGHBOURS nearest centres, and
    all others that are as near as the last of them, so that the order of chips does not matter; all others if there are
    fewer. `clustering_by_chance` is the expectation for shuffled classes: the share of the class among the others. Both
    are NaN for a class of fewer than two chips.

    After `spatial_clustering` of allenai/olmoearth_projects (olmoearth_projects/utils/label_quality), which is the
    accuracy of predicting a label by the most frequent one of its five nearest: shares of neighbours have an exact
    expectation, which a figure needs to mean something.
    """
    import pandas as pd

    number = np.bincount(classes, minlength=len(CLASSES))
    same = np.full(len(CLASSES), np.nan)
    chance = np.full(len(CLASSES), np.nan)
    several = number > 1
    if several.any():
        shares = _shares_of_neighbours(ids, classes)
        same[several] = (np.bincount(classes, shares, len(CLASSES))[several] / number[several]).clip(0, 1)
        chance[several] = (number[several] - 1) / (len(ids) - 1)
    return pd.DataFrame({"dominated": number, "clustering": same, "clustering_by_chance": chance})


def _shares_of_neighbours(ids: Sequence[str], classes: NDArray[np.intp]) -> NDArray[np.float64]:
    """The share of the nearest chips that have the class of the chip itself: [n]; there are two chips at least."""
    # scipy takes long to import, and this is the only use here
    from scipy.spatial import cKDTree

    places = np.array([chip_position(name) for name in ids], dtype=np.float64)
    tree = cKDTree(places)
    # the nearest is the chip itself
    distances, _ = tree.query(places, k=min(NEIGHBOURS + 1, len(ids)))
    near = tree.query_ball_point(places, distances[:, -1] + _ABOVE)
    sizes = np.array([len(found) for found in near])
    of = np.repeat(np.arange(len(ids)), sizes)
    equal = np.bincount(of, classes[np.concatenate(near)] == classes[of], len(ids))
    shares: NDArray[np.float64] = (equal - 1) / (sizes - 1)
    return shares
