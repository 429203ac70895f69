"""Cuts chips from the reprojected bands and the CDL raster, and encodes the merged image, the mask and the Fmask."""

import contextlib
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import rasterio
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio.errors import RasterioError
from rasterio.windows import Window

from crop_assets.chip_grid import CHIP_SIZE, chip_geobox, chip_position, chip_window
from crop_assets.chips.quality import quality_counts
from crop_assets.chips.rasters import Block, BlockReader, encode, encode_empty, written_form
from crop_assets.classes import CLASS_COLUMNS, class_colormap, reclassify
from crop_assets.errors import InputError
from crop_assets.hls import NODATA, POSITIONS, QA_BAND, QA_NODATA, REFLECTANCE_BANDS
from crop_assets.labels.cdl import check_cdl
from resources.geodata import open_raster
from resources.parallel import in_parallel
from resources.tiff import DEFLATE, Form, tiff_pieces

_IMAGE_BANDS = len(POSITIONS) * len(REFLECTANCE_BANDS)
_DEFLATE_LEVEL = 6
Band = tuple[str, str]
"""A position and a band."""


@dataclass(frozen=True)
class Chip:
    """The pixels of one chip.

    `image` is int16 (18, 224, 224), reflectance x 10,000 in time-major order, -9999 if missing, otherwise not
    negative; `mask` is uint8 (224, 224), classes 0 to 13; `fmask` is uint8 (3, 224, 224), 255 = fill; `missing` marks
    the pixels of each date without a value in some band or in Fmask, bool (3, 224, 224). `encoded` are the bands of
    the image and of the Fmask as they are written, None for those that are not at hand.
    """

    image: NDArray[np.int16]
    mask: NDArray[np.uint8]
    fmask: NDArray[np.uint8]
    missing: NDArray[np.bool_]
    encoded: list[bytes | None] = field(
        default_factory=lambda: [None] * (_IMAGE_BANDS + len(POSITIONS)), compare=False
    )


def _nothing(band: Band, chip_id: str) -> Block | None:
    return None


class TileReader(contextlib.ExitStack):
    """The rasters of one tile: the reprojected bands of its three dates by (position, band), and the CDL raster.

    A context manager: each raster is opened once, by the first thread that reads it, and closed at the end.
    """

    def __init__(
        self,
        bands: Mapping[Band, contextlib.AbstractContextManager[Path]],
        cdl: str,
        unknown_codes: str = "refuse",
        known: Callable[[Band, str], Block | None] = _nothing,
    ) -> None:
        """`bands` are context managers for local files, and `cdl` is a path. What is `known` of a band in a chip is not
        read. Raises InputError if `cdl` is not a CDL raster (see `check_cdl`).
        """
        super().__init__()
        self._bands = bands
        self._cdl = check_cdl(cdl, unknown_codes)
        self._known = known
        self._readers: dict[Band, BlockReader] = {}
        self._grids: dict[Hashable, GeoBox | None] = {}
        self._cdl_raster: rasterio.DatasetReader | None = None

    def read(self, chip_ids: Sequence[str], pool: Executor) -> list[Chip]:
        """Read chips. Each raster is read by only one thread of `pool` at a time.

        Raises InputError for a CDL code without a class, and if a raster cannot be read.
        """
        count = len(chip_ids)
        images = np.empty((count, len(POSITIONS), len(REFLECTANCE_BANDS), CHIP_SIZE, CHIP_SIZE), np.int16)
        fmasks = np.empty((count, len(POSITIONS), CHIP_SIZE, CHIP_SIZE), np.uint8)
        codes = np.empty((count, CHIP_SIZE, CHIP_SIZE), np.uint8)
        encoded: list[list[bytes | None]] = [[None] * (_IMAGE_BANDS + len(POSITIONS)) for _ in chip_ids]

        def read(band: Band | None) -> None:
            if band is None:
                self._read_cdl(codes, chip_ids)
                return
            at, is_qa = POSITIONS.index(band[0]), band[1] == QA_BAND
            index = 0 if is_qa else REFLECTANCE_BANDS.index(band[1])
            out = fmasks[:, at] if is_qa else images[:, at, index]
            place = _IMAGE_BANDS + at if is_qa else at * len(REFLECTANCE_BANDS) + index
            for i, block in enumerate(self._blocks(band, chip_ids)):
                out[i], encoded[i][place] = block.pixels, block.encoded

        in_parallel(pool, read, [None, *self._bands])
        table = self._cdl.table

        def chip(i: int) -> Chip:
            mask = reclassify(codes[i], f"{Path(self._cdl.path).name}, {chip_ids[i]}", table)
            return _chip(images[i], mask, fmasks[i], encoded[i])

        return in_parallel(pool, chip, range(count))

    def _read_cdl(self, codes: NDArray[np.uint8], chip_ids: Sequence[str]) -> None:
        path = Path(self._cdl.path)
        with _translate_errors(path.name, "cdl"):
            if self._cdl_raster is None:
                # `with` would tie the raster to the thread that opened it
                self._cdl_raster = self.enter_context(contextlib.closing(open_raster(path)))
            shape = self._cdl_raster.shape
            for chip_id, out in zip(chip_ids, codes, strict=True):
                window = chip_window(self._cdl.transform, *chip_position(chip_id))
                _require_inside(window, shape, chip_id, path.name, "cdl")
                out[:] = self._cdl_raster.read(1, window=window)

    def _blocks(self, band: Band, chip_ids: Sequence[str]) -> Iterator[Block]:
        for chip_id in chip_ids:
            known = self._known(band, chip_id)
            if known is not None:
                yield known
                continue
            if band not in self._readers:
                path = self.enter_context(self._bands[band])
                with _translate_errors(path.name, "reprojected_tiles"):
                    reader = self.enter_context(contextlib.closing(BlockReader(path, self._grids)))
                self._readers[band] = reader
            reader = self._readers[band]
            if reader.grid is None:
                raise InputError(
                    f"{reader.name} has no coordinate reference system; materialize reprojected_tiles again"
                )
            window = chip_window(reader.grid.affine, *chip_position(chip_id))
            _require_inside(window, reader.grid.shape, chip_id, reader.name, "reprojected_tiles")
            with _translate_errors(reader.name, "reprojected_tiles"):
                block = reader.read_block(window)
            yield block


@contextlib.contextmanager
def _translate_errors(name: str, asset: str) -> Iterator[None]:
    try:
        yield
    except RasterioError as error:
        raise InputError(f"{name} cannot be read ({error}); materialize {asset} again") from error


def _require_inside(window: Window, shape: Sequence[int], chip_id: str, name: str, asset: str) -> None:
    (top, bottom), (left, right) = window.toranges()
    if min(top, left) < 0 or bottom > shape[0] or right > shape[1]:
        raise InputError(f"{chip_id} is not inside {name}; materialize {asset} again")


def _chip(
    image: NDArray[np.int16],
    mask: NDArray[np.uint8],
    fmask: NDArray[np.uint8],
    encoded: list[bytes | None],
) -> Chip:
    missing = fmask == QA_NODATA
    bands = image.reshape(-1, CHIP_SIZE, CHIP_SIZE)
    for at, pixels in enumerate(bands):
        if pixels.min() >= 0:
            continue
        without = pixels == NODATA
        missing[at // len(REFLECTANCE_BANDS)] |= without
        # atmospheric correction leaves some dark pixels below zero; they are zero in the published chips
        below = (pixels < 0) & ~without
        if below.any():
            pixels[below] = 0
            encoded[at] = None
    return Chip(bands, mask, fmask, missing, encoded)


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


def chip_files(
    chip: Chip, chip_id: str, dates: Sequence[str], tags: Mapping[str, str]
) -> dict[str, Iterator[bytes]]:
    """The pieces of the files of a chip, GeoTIFFs in EPSG:5070: `merged`, `mask` and `fmask`.

    The merged image has nodata -9999, and its bands have descriptions such as 2022-04-21_B02. The mask has the
    palette of the 13 classes, but no nodata value, because readers would mask class 0.
    """
    affine = chip_geobox(chip_id).affine
    place = (CHIP_SIZE, CHIP_SIZE), (affine.c, affine.f)
    merged = tuple(f"{date}_{band}" for date in dates for band in REFLECTANCE_BANDS)
    fmask = tuple(f"{date}_Fmask" for date in dates)
    image, qa = (
        [done or _encoded(pixels, nodata) for pixels, done in zip(bands, encoded, strict=True)]
        for bands, encoded, nodata in (
            (chip.image, chip.encoded[:_IMAGE_BANDS], NODATA),
            (chip.fmask, chip.encoded[_IMAGE_BANDS:], QA_NODATA),
        )
    )
    mask = bytes(imagecodecs.deflate_encode(chip.mask.tobytes(), level=_DEFLATE_LEVEL))
    files: dict[str, tuple[Form, Sequence[bytes]]] = {
        "merged": (written_form(*place, "int16", NODATA, tags, merged, tiled=False), image),
        "mask": (
            written_form(
                *(*place, "uint8", None, tags, ("class",)),
                tiled=False,
                compression=DEFLATE,
                palette=class_colormap(),
            ),
            [mask],
        ),
        "fmask": (written_form(*place, "uint8", QA_NODATA, tags, fmask, tiled=False), qa),
    }
    return {name: tiff_pieces(form, blocks) for name, (form, blocks) in files.items()}


def _encoded(pixels: NDArray[Any], nodata: int) -> bytes:
    # blocks without data are not stored in the reprojected rasters
    if (pixels == nodata).all():
        return encode_empty(pixels.dtype.name, nodata)
    return encode(pixels)
