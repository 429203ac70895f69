"""Reads the bands of a tile's scenes, and writes them on the CDL grid; `warp` has the arithmetic."""

import contextlib
import functools
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import rasterio
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio.enums import ColorInterp
from rasterio.errors import RasterioError
from rasterio.windows import Window

from crop_assets.chip_grid import (
    CHIP_SIZE,
    CRS,
    chip_blocks,
    chip_cover,
    chip_position,
    chip_window,
    grid_text,
    positions_in,
    raster_geobox,
    same_pixels,
    transformer,
    wkt,
)
from crop_assets.chips.rasters import require_complete
from crop_assets.chips.warp import (
    SourcePixels,
    bilinear,
    nearest,
    source_pixels,
)
from crop_assets.errors import InputError
from crop_assets.hls import NODATA, QA_BAND, QA_NODATA, fill_of
from crop_assets.parallel import in_parallel
from resources.geodata import create_raster, open_geotiff
from resources.store import sha256_of

_CHIPS_ACROSS, _MAX_CHIPS_ACROSS = 17, 200
"""Chips of 6,720 m in an HLS tile of 109,800 m. Far from the United States, EPSG:5070 stretches a tile to over a
hundred chips."""
_BLOCKS_AT_ONCE = 16
"""Blocks whose weights are in memory at once, at 3 MB each."""


def tile_geobox(sources: Sequence[GeoBox], chips: Sequence[str]) -> GeoBox:
    """The grid of a tile's reprojected rasters: complete chips that cover the scenes and all of `chips`.

    Raises InputError if the chips are too far apart for a tile.
    """
    at = [chip_position(chip) for chip in chips]
    for source in sources:
        bounds = transformer(wkt(source), CRS).transform_bounds(*source.boundingbox.bbox, densify_pts=51)
        rows, cols = chip_cover(*bounds)
        at += [(rows.start, cols.start), (rows.stop - 1, cols.stop - 1)]
    all_rows, all_cols = zip(*at, strict=True)
    rows, cols = range(min(all_rows), max(all_rows) + 1), range(min(all_cols), max(all_cols) + 1)
    if max(len(rows), len(cols)) > _MAX_CHIPS_ACROSS:
        raise InputError(
            f"the chips of the tile are up to {max(len(rows), len(cols)):,} chips apart, but a tile is only "
            f"{_CHIPS_ACROSS} chips wide; materialize tile_map again"
        )
    return chip_blocks(rows, cols)


def fill_value(raster: rasterio.DatasetReader, band: str, version: str) -> float:
    """The nodata value of the file, or else the fill value of its HLS version."""
    return float(fill_of(band, version) if raster.nodata is None else raster.nodata)


@dataclass(frozen=True)
class ReprojectionJob:
    """One band to reproject: its scene, name and HLS version, and context managers for the local file to read and the
    one to write, such as those of the dataset store.
    """

    scene: str
    band: str
    version: str
    source: contextlib.AbstractContextManager[Path]
    destination: contextlib.AbstractContextManager[Path]


@dataclass(frozen=True)
class Reprojection:
    """The grid of a tile's reprojected rasters, and of each the number of blocks stored, its bytes and its SHA-256."""

    grid: GeoBox
    blocks: list[int]
    bytes: list[int]
    sha256: list[str]


def reproject_bands(
    files: Sequence[ReprojectionJob],
    chips: Sequence[str],
    tags: Mapping[str, str],
    pool: Executor,
    whole_tile: bool = False,
) -> Reprojection:
    """Reproject the bands of one tile to the CDL grid: the blocks under `chips`, or the `whole_tile`.

    Each destination is a sparse GeoTIFF in EPSG:5070, compressed with Zstandard, whose 224 x 224 blocks are the
    chips: int16 with nodata -9999; Fmask is uint8 with nodata 255. Blocks without data, or that were not computed, are
    not stored and read as nodata. Blocks and bands are distributed over `pool`. Raises InputError, naming the file, if
    a band cannot be read or is on another grid than the other bands of its scene; OSError if a file cannot be written
    completely.
    """
    with contextlib.ExitStack() as stack:
        bands = [stack.enter_context(_Band(file)) for file in files]
        # the scenes of a tile may have different grids, for example if one is cropped; the bands of a scene must not
        leaders = {band.file.scene: band for band in reversed(bands)}
        boxes = list(dict.fromkeys(leader.box for leader in leaders.values()))
        grid = tile_geobox(boxes, chips)
        blocks = positions_in(grid) if whole_tile else sorted(map(chip_position, chips))
        for start in range(0, len(blocks), _BLOCKS_AT_ONCE):
            some = blocks[start : start + _BLOCKS_AT_ONCE]
            last = start + _BLOCKS_AT_ONCE >= len(blocks)
            windows = [chip_window(grid.affine, *at) for at in some]
            targets = [chip_blocks(range(row, row + 1), range(col, col + 1)) for row, col in some]
            pixels_by_grid = {
                box: in_parallel(pool, functools.partial(source_pixels, source=box), targets) for box in boxes
            }
            jobs = [
                (band, leader, list(zip(windows, pixels_by_grid[leader.box], strict=True)), last)
                for band in bands
                for leader in [leaders[band.file.scene]]
            ]
            in_parallel(pool, lambda job: job[0].reproject(grid, tags, *job[1:]), jobs)
    return Reprojection(
        grid, [band.stored for band in bands], [band.bytes for band in bands], [band.sha256 for band in bands]
    )


class _Band:
    """One band being reprojected: the first thread that needs its files opens them, and the last one closes them.

    A context manager: the destination is discarded after an error, and kept otherwise.
    """

    def __init__(self, file: ReprojectionJob) -> None:
        self.file = file
        self._open = contextlib.ExitStack()
        self._source: rasterio.DatasetReader | None = None
        self._target: rasterio.io.DatasetWriter | None = None
        self.stored = self.bytes = 0
        self.sha256 = ""

    def __enter__(self) -> "_Band":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.__exit__(kind, error, trace)

    @property
    def source(self) -> rasterio.DatasetReader:
        if self._source is None:
            path = self._open.enter_context(self.file.source)
            try:
                # `with` would tie the raster to the thread that opened it
                self._source = self._open.enter_context(contextlib.closing(open_geotiff(path)))
            except RasterioError as error:
                raise InputError(
                    f"{path.name} cannot be opened ({error}); delete it and materialize downloaded_bands again"
                ) from error
            if self._source.crs is None:
                raise InputError(f"{path.name} has no coordinate reference system")
        return self._source

    @functools.cached_property
    def box(self) -> GeoBox:
        return raster_geobox(self.source)

    @property
    def name(self) -> str:
        return Path(self.source.name).name

    def reproject(
        self,
        grid: GeoBox,
        tags: Mapping[str, str],
        leader: "_Band",
        blocks: Iterable[tuple[Window, SourcePixels | None]],
        last: bool,
    ) -> None:
        """Compute blocks, and write those with data."""
        if not same_pixels(self.box, leader.box):
            raise InputError(
                f"{self.name} has {grid_text(self.box)}, but {leader.name} of the same scene has "
                f"{grid_text(leader.box)}; delete the wrong one and materialize downloaded_bands again"
            )
        target = self._target_on(grid, tags)
        for window, at in blocks:
            # skip empty blocks, as GDAL does in a sparse file
            if at is not None and ((pixels := self._warp(at)) != target.nodata).any():
                target.write(pixels, 1, window=window)
                self.stored += 1
        if last:
            # closing compresses most blocks, so do it in a thread of the pool
            target.close()
            path = Path(target.name)
            require_complete(path, self.stored)
            self.bytes, self.sha256 = path.stat().st_size, sha256_of(path)
            self._open.close()

    def _warp(self, at: SourcePixels) -> NDArray[Any]:
        try:
            values = self.source.read(1, window=at.window)
        except RasterioError as error:
            raise InputError(
                f"{self.name} cannot be read ({error}); delete it and materialize downloaded_bands again"
            ) from error
        if self.file.band == QA_BAND:
            return nearest(values, at)
        return bilinear(values, at, fill_value(self.source, self.file.band, self.file.version))

    def _target_on(self, grid: GeoBox, tags: Mapping[str, str]) -> rasterio.io.DatasetWriter:
        if self._target is None:
            is_qa = self.file.band == QA_BAND
            target = create_raster(
                self._open.enter_context(self.file.destination),
                dtype="uint8" if is_qa else "int16",
                nodata=QA_NODATA if is_qa else NODATA,
                count=1,
                height=grid.shape[0],
                width=grid.shape[1],
                crs=CRS,
                transform=grid.affine,
                tiled=True,
                blockxsize=CHIP_SIZE,
                blockysize=CHIP_SIZE,
                # an intermediate result: Zstandard takes a fifth of the time of deflate, at the same size
                compress="zstd",
                zstd_level=1,
                predictor=1 if is_qa else 2,
                sparse_ok=True,
            )
            self._target = self._open.enter_context(contextlib.closing(target))
            target.update_tags(**tags)
            target.set_band_description(1, self.file.band)
            target.colorinterp = [ColorInterp.gray]
        return self._target
