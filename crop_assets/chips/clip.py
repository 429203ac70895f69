"""Cuts chips from the reprojected bands and the CDL raster, and writes the merged image, the mask and the Fmask."""

import contextlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import ColorInterp
from rasterio.errors import RasterioError

from crop_assets.chip_grid import CHIP_SIZE, CRS, chip_geobox, chip_position, chip_window
from crop_assets.chips.quality import quality_counts
from crop_assets.chips.rasters import require_complete
from crop_assets.classes import CLASS_COLUMNS, class_colormap, reclassify
from crop_assets.errors import InputError
from crop_assets.hls import NODATA, POSITIONS, QA_BAND, QA_NODATA, REFLECTANCE_BANDS
from crop_assets.labels.cdl import check_cdl
from crop_assets.parallel import in_parallel
from resources.geodata import create_raster, open_geotiff, open_raster
from resources.object_store import translated


@dataclass(frozen=True)
class Chip:
    """The pixels of one chip.

    `image` is int16 (18, 224, 224), reflectance x 10,000 in time-major order, -9999 if missing, otherwise not
    negative; `mask` is uint8 (224, 224), classes 0 to 13; `fmask` is uint8 (3, 224, 224), 255 = fill; `missing` marks
    the pixels of each date without a value in some band or in Fmask, bool (3, 224, 224).
    """

    image: NDArray[np.int16]
    mask: NDArray[np.uint8]
    fmask: NDArray[np.uint8]
    missing: NDArray[np.bool_]


class TileReader(contextlib.ExitStack):
    """The rasters of one tile: the reprojected bands of its three dates by (position, band), and the CDL raster.

    A context manager: each raster is opened once, by the first thread that reads it, and closed at the end.
    """

    def __init__(self, bands: Mapping[tuple[str, str], str], cdl: str, unknown_codes: str = "refuse") -> None:
        """`bands` and `cdl` are paths for GDAL. Raises InputError if `cdl` is not a CDL raster (see `check_cdl`)."""
        super().__init__()
        self._bands = bands
        self._cdl = check_cdl(cdl, unknown_codes)
        self._rasters: dict[str, rasterio.DatasetReader] = {}

    def read(self, chip_ids: Sequence[str], pool: Executor) -> list[Chip]:
        """Read chips. Each raster is read by only one thread of `pool` at a time.

        Raises InputError for a CDL code without a class, and if a raster cannot be read.
        """
        count = len(chip_ids)
        images = np.empty((count, len(POSITIONS), len(REFLECTANCE_BANDS), CHIP_SIZE, CHIP_SIZE), np.int16)
        fmasks = np.empty((count, len(POSITIONS), CHIP_SIZE, CHIP_SIZE), np.uint8)
        codes = np.empty((count, CHIP_SIZE, CHIP_SIZE), np.uint8)
        jobs: list[tuple[str, str, NDArray[Any]]] = [(self._cdl.path, "cdl", codes)]
        for (position, band), path in self._bands.items():
            at = POSITIONS.index(position)
            out = fmasks[:, at] if band == QA_BAND else images[:, at, REFLECTANCE_BANDS.index(band)]
            jobs.append((path, "reprojected_tiles", out))
        in_parallel(pool, lambda job: self._read_blocks(*job, chip_ids), jobs)

        table = self._cdl.table

        def chip(i: int) -> Chip:
            mask = reclassify(codes[i], f"{Path(self._cdl.path).name}, {chip_ids[i]}", table)
            return _chip(images[i], mask, fmasks[i])

        return in_parallel(pool, chip, range(count))

    def _read_blocks(self, path: str, asset: str, out: NDArray[Any], chip_ids: Sequence[str]) -> None:
        try:
            with translated(path):
                if path not in self._rasters:
                    # `with` would tie the raster to the thread that opened it
                    raster = open_raster(Path(path)) if asset == "cdl" else open_geotiff(path)
                    self._rasters[path] = self.enter_context(contextlib.closing(raster))
                raster = self._rasters[path]
                transform = self._cdl.transform if asset == "cdl" else raster.transform
                for chip_id, block in zip(chip_ids, out, strict=True):
                    values = raster.read(1, window=chip_window(transform, *chip_position(chip_id)))
                    if values.shape != block.shape:
                        raise InputError(
                            f"{chip_id} is not inside {Path(path).name}; materialize {asset} again"
                        )
                    block[:] = values
        except RasterioError as error:
            raise InputError(
                f"{Path(path).name} cannot be read ({error}); materialize {asset} again"
            ) from error


def _chip(image: NDArray[np.int16], mask: NDArray[np.uint8], fmask: NDArray[np.uint8]) -> Chip:
    missing = (image == NODATA).any(axis=1) | (fmask == QA_NODATA)
    # atmospheric correction leaves some dark pixels below zero; they are zero in the published chips
    image[(image < 0) & (image != NODATA)] = 0
    return Chip(image.reshape(-1, CHIP_SIZE, CHIP_SIZE), mask, fmask, missing)


def chip_facts(chip: Chip) -> dict[str, Any]:
    """The columns of a chip in the table: counts per date, pixels missing on any date, and class counts."""
    facts: dict[str, Any] = {}
    for at, position in enumerate(POSITIONS):
        counts = quality_counts(chip.fmask[at])
        facts[f"valid_{position}"] = CHIP_SIZE**2 - counts["bad"] - counts["fill"]
        facts.update({f"{name}_{position}": count for name, count in counts.items()})
    facts["na_count"] = int(chip.missing.any(axis=0).sum())
    pixels = np.bincount(chip.mask.ravel(), minlength=len(CLASS_COLUMNS)).tolist()
    facts.update(zip(CLASS_COLUMNS, pixels, strict=True))
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

    The merged image has nodata -9999, and its bands have descriptions such as 2022-04-21_B02. The mask has the
    palette of the 13 classes, but no nodata value, because readers would mask class 0. Raises OSError if a file cannot
    be written completely.
    """
    names = [f"{date}_{band}" for date in dates for band in REFLECTANCE_BANDS]
    # a higher level does not make reflectance smaller (measured on HLS bands)
    _write(
        merged, chip_id, chip.image, names, tags, nodata=NODATA, predictor=2, compress="zstd", zstd_level=1
    )
    _write(mask, chip_id, chip.mask[np.newaxis], ["class"], tags, colormap=class_colormap())
    _write(fmask, chip_id, chip.fmask, [f"{date}_Fmask" for date in dates], tags, nodata=QA_NODATA)


def _write(
    path: Path,
    chip_id: str,
    values: NDArray[Any],
    descriptions: Sequence[str],
    tags: Mapping[str, str],
    nodata: int | None = None,
    colormap: dict[int, tuple[int, int, int, int]] | None = None,
    **compression: Any,
) -> None:
    with create_raster(
        path,
        dtype=values.dtype,
        nodata=nodata,
        count=len(values),
        height=CHIP_SIZE,
        width=CHIP_SIZE,
        crs=CRS,
        transform=chip_geobox(chip_id).affine,
        blockysize=CHIP_SIZE,
        **({"compress": "deflate"} | compression),
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
    require_complete(path, len(values))
