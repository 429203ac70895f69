"""One chip from the reprojected bands and the CDL: the merged image, the mask, the Fmask bands.

Belongs here: assembling and writing chips. Does not: reprojection (`warp`), judging quality (`quality`).
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import ColorInterp
from rasterio.windows import Window

from crop_assets.chips.quality import quality_counts
from crop_assets.chips.warp import NODATA, QA_NODATA, chip_window, raster_geobox
from crop_assets.errors import InputError
from crop_assets.grid import CHIP_SIZE, CRS, chip_geobox
from crop_assets.labels.classes import CLASSES, class_colormap, reclassify
from crop_assets.recipe import REFLECTANCE_BANDS
from crop_assets.scenes.selection import POSITIONS


@dataclass(frozen=True)
class Chip:
    """The pixels of one chip.

    `image` is int16 (18, 224, 224), reflectance x 10,000 in time-major order, -9999 where missing and
    never negative elsewhere; `mask` uint8 (224, 224), classes 0..13; `fmask` uint8 (3, 224, 224), 255 = fill;
    `missing` the pixels of each date that lack a band or their Fmask, bool (3, 224, 224).
    """

    image: NDArray[np.int16]
    mask: NDArray[np.uint8]
    fmask: NDArray[np.uint8]
    missing: NDArray[np.bool_]


class TileReader:
    """The open rasters of one tile: the reprojected bands of its three dates, and the CDL."""

    def __init__(
        self,
        bands: Mapping[tuple[str, str], rasterio.DatasetReader],
        cdl: rasterio.DatasetReader,
    ) -> None:
        self._bands = bands
        self._cdl = cdl
        self._grid = raster_geobox(next(iter(bands.values())))

    def read(self, chip_id: str) -> Chip:
        """Read one chip. Raises InputError for a CDL code without a class, or a raster that cannot be read."""
        window = chip_window(self._grid, chip_id)
        bands = [self._band(position, band, window) for position in POSITIONS for band in REFLECTANCE_BANDS]
        image = np.stack(bands).astype(np.int16)
        fmask = np.stack([self._band(position, "Fmask", window) for position in POSITIONS])
        per_date = image.reshape(len(POSITIONS), len(REFLECTANCE_BANDS), CHIP_SIZE, CHIP_SIZE)
        missing = (per_date == NODATA).any(axis=1) | (fmask == QA_NODATA)
        # atmospheric correction leaves some dark pixels below zero; the published chips hold zero there
        image = np.where((image < 0) & (image != NODATA), np.int16(0), image)
        return Chip(image, self._mask(chip_id), fmask, missing)

    def _band(self, position: str, band: str, window: Window) -> NDArray[Any]:
        raster = self._bands[position, band]
        try:
            values: NDArray[Any] = raster.read(1, window=window)
        except rasterio.errors.RasterioError as error:
            raise InputError(
                f"{raster.name} cannot be read ({error}); materialize reprojected_tiles again"
            ) from error
        return values

    def _mask(self, chip_id: str) -> NDArray[np.uint8]:
        offset = ~self._cdl.transform @ (chip_geobox(chip_id).affine @ (0, 0))
        window = Window(round(offset[0]), round(offset[1]), CHIP_SIZE, CHIP_SIZE)
        codes = self._cdl.read(1, window=window)
        if codes.shape != (CHIP_SIZE, CHIP_SIZE):
            raise InputError(f"{chip_id} does not lie within {Path(self._cdl.name).name}")
        return reclassify(codes, f"{Path(self._cdl.name).name}, {chip_id}")


@contextlib.contextmanager
def open_tile(bands: Mapping[tuple[str, str], str], cdl: str) -> Iterator[TileReader]:
    """Open a tile's rasters for reading: (position, band) -> GDAL path, and the CDL's path."""
    with contextlib.ExitStack() as stack:
        try:
            opened = {key: stack.enter_context(rasterio.open(path)) for key, path in bands.items()}
        except rasterio.errors.RasterioError as error:
            raise InputError(f"{error}; materialize reprojected_tiles again") from error
        try:
            yield TileReader(opened, stack.enter_context(rasterio.open(cdl)))
        except rasterio.errors.RasterioIOError as error:
            raise InputError(f"{cdl} cannot be read ({error}); materialize cdl again") from error


def chip_facts(chip: Chip) -> dict[str, Any]:
    """What the table says of a chip: counts per date, pixels missing on any date, and class counts."""
    facts: dict[str, Any] = {}
    for at, position in enumerate(POSITIONS):
        counts = quality_counts(chip.fmask[at])
        facts[f"valid_{position}"] = CHIP_SIZE**2 - counts["bad"] - counts["fill"]
        facts.update({f"{name}_{position}": count for name, count in counts.items()})
    facts["na_count"] = int(chip.missing.any(axis=0).sum())
    facts.update(
        {f"class_{c}": int(n) for c, n in enumerate(np.bincount(chip.mask.ravel(), minlength=len(CLASSES)))}
    )
    return facts


def write_chip(
    chip: Chip,
    chip_id: str,
    merged: Path,
    mask: Path,
    fmask: Path,
    dates: Sequence[str],
    tags: Mapping[str, str],
) -> None:
    """Write the merged image, the mask and the Fmask bands as deflated GeoTIFFs in EPSG:5070.

    The merged image is tagged with nodata -9999 and its bands are described as 2022-04-21_B02; the mask
    carries the palette of the 13 classes and no nodata tag, for readers take a tagged 0 for missing.
    """
    names = [f"{date}_{band}" for date in dates for band in REFLECTANCE_BANDS]
    _write(merged, chip_id, chip.image, names, tags, nodata=NODATA, predictor=2)
    _write(mask, chip_id, chip.mask[np.newaxis], ["class"], tags, colormap=class_colormap())
    _write(fmask, chip_id, chip.fmask, [f"{date}_Fmask" for date in dates], tags, nodata=QA_NODATA)


def _write(
    path: Path,
    chip_id: str,
    values: NDArray[Any],
    descriptions: Sequence[str],
    tags: Mapping[str, str],
    nodata: int | None = None,
    predictor: int = 1,
    colormap: dict[int, tuple[int, int, int, int]] | None = None,
) -> None:
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        dtype=values.dtype,
        nodata=nodata,
        count=len(values),
        height=CHIP_SIZE,
        width=CHIP_SIZE,
        crs=CRS,
        transform=chip_geobox(chip_id).affine,
        compress="deflate",
        predictor=predictor,
        interleave="band",
        photometric="palette" if colormap else "minisblack",
    ) as raster:
        raster.write(values)
        raster.descriptions = tuple(descriptions)
        raster.update_tags(**tags)
        if colormap:
            raster.write_colormap(1, colormap)
        else:
            raster.colorinterp = [ColorInterp.gray] + [ColorInterp.undefined] * (len(values) - 1)
