"""Reads the bands of a tile's scenes, and writes them on the CDL grid; `warp` has the arithmetic."""

import contextlib
import tempfile
from collections.abc import Callable, Hashable, Iterator, Mapping, MutableMapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio.errors import RasterioError

from crop_assets.chip_grid import (
    CRS,
    chip_blocks,
    chip_cover,
    chip_position,
    grid_text,
    positions_in,
    same_pixels,
    transformer,
    wkt,
)
from crop_assets.chips.rasters import Block, BlockReader, encode, written_form
from crop_assets.chips.warp import (
    SourcePixels,
    bilinear,
    nearest,
    source_pixels,
)
from crop_assets.coordinates import blocks_of_chips
from crop_assets.errors import InputError
from crop_assets.hls import NODATA, QA_BAND, QA_NODATA, fill_of
from resources.parallel import in_parallel
from resources.tiff import Form, tiff_pieces

_CHIPS_ACROSS, _MAX_CHIPS_ACROSS = 17, 200
"""Chips of 6,720 m in an HLS tile of 109,800 m. Far from the United States, EPSG:5070 stretches a tile to over a
hundred chips."""
_BLOCKS_AT_ONCE = 16
"""Blocks whose weights are in memory at once, at 3 MB each."""
_SPOOLED_BYTES = 2 << 20
"""Compressed blocks of a band that are kept in memory; the rest is in a temporary file until the band is written."""


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


def fill_value(nodata: float | None, band: str, version: str) -> float:
    """The nodata value of the file, or else the fill value of its HLS version."""
    return float(fill_of(band, version) if nodata is None else nodata)


@dataclass(frozen=True)
class ReprojectionJob:
    """One band to reproject: its scene, name and HLS version; a context manager for the local file to read, and its
    name and SHA-256 in the store; and a function that writes the pieces of the new file, and returns its size and
    SHA-256.
    """

    scene: str
    band: str
    version: str
    source: contextlib.AbstractContextManager[Path]
    write: Callable[[Iterator[bytes]], tuple[int, str]]
    identity: tuple[str, str] = ("", "")


@dataclass(frozen=True)
class Reprojection:
    """The grid of a tile's reprojected rasters, and of each the number of blocks stored, its bytes, its SHA-256, and
    the blocks of the first chips by chip, without those that are not stored.
    """

    grid: GeoBox
    blocks: list[int]
    bytes: list[int]
    sha256: list[str]
    first: list[dict[str, Block]]


def reproject_bands(
    files: Sequence[ReprojectionJob],
    chips: Sequence[str],
    tags: Mapping[str, str],
    pool: Executor,
    writers: Executor,
    known: MutableMapping[Hashable, Any],
    whole_tile: bool = False,
    folder: Path | None = None,
) -> Reprojection:
    """Reproject the bands of one tile to the CDL grid: the blocks under `chips`, or the `whole_tile`.

    Each destination is a sparse GeoTIFF in EPSG:5070, compressed with Zstandard, whose 224 x 224 blocks are the
    chips: int16 with nodata -9999; Fmask is uint8 with nodata 255. Blocks without data, or that were not computed, are
    not stored and read as nodata. Blocks and bands are distributed over `pool`, and files over `writers`; temporary
    files, which large tiles need, are in `folder`. What an earlier stage has `known` is taken from there: source pixels
    by chip and grid, and blocks of Fmask by the name and SHA-256 of the file and the chip. Raises InputError, naming
    the file, if a band cannot be read or is on another grid than the other bands of its scene; OSError if a file cannot
    be written completely.
    """
    with contextlib.ExitStack() as stack:
        grids: dict[Hashable, GeoBox | None] = {}
        bands = [stack.enter_context(_Band(file, grids, folder)) for file in files]
        # the scenes of a tile may have different grids, for example if one is cropped; the bands of a scene must not
        leaders = {band.file.scene: band for band in reversed(bands)}
        boxes = list(dict.fromkeys(leader.box for leader in leaders.values()))
        grid = tile_geobox(boxes, chips)
        in_parallel(pool, lambda band: band.require_blocks(None if whole_tile else chips), bands)
        names = {chip_position(chip): chip for chip in chips}
        blocks = positions_in(grid) if whole_tile else sorted(names)
        first = dict(sorted(names.items())[:_BLOCKS_AT_ONCE])

        def pixels(at: tuple[tuple[int, int], GeoBox]) -> SourcePixels | None:
            (row, col), box = at
            found: SourcePixels | None = known.pop((names.get((row, col)), box), None)
            return found or source_pixels(chip_blocks(range(row, row + 1), range(col, col + 1)), box)

        for start in range(0, len(blocks), _BLOCKS_AT_ONCE):
            some = blocks[start : start + _BLOCKS_AT_ONCE]
            found = in_parallel(pool, pixels, [(at, box) for box in boxes for at in some])
            # a grid takes long to hash
            by_grid = {box: found[i * len(some) :][: len(some)] for i, box in enumerate(boxes)}

            def reproject(band: _Band) -> None:
                leader = leaders[band.file.scene]
                band.require_grid(leader)
                for at, source in zip(some, by_grid[leader.box], strict=True):  # noqa: B023
                    done = known.pop((*band.file.identity, names.get(at)), None)
                    band.add(at, done, source, first.get(at))
                if some[-1] == blocks[-1]:  # noqa: B023
                    band.finish(grid, tags, writers)

            in_parallel(pool, reproject, bands)
        written = [band.written() for band in bands]
    return Reprojection(
        grid,
        [len(band.places) for band in bands],
        [size for size, _ in written],
        [digest for _, digest in written],
        [band.first for band in bands],
    )


class _Band:
    """One band being reprojected: the first thread that needs its file opens it, and the last one closes it.

    A context manager. The compressed blocks are kept, in memory or a temporary file, until all are there.
    """

    def __init__(
        self, file: ReprojectionJob, grids: dict[Hashable, GeoBox | None], folder: Path | None
    ) -> None:
        self.file = file
        self.places: dict[tuple[int, int], tuple[int, int]] = {}
        self.first: dict[str, Block] = {}
        self._grids = grids
        self._is_qa = file.band == QA_BAND
        self._nodata = QA_NODATA if self._is_qa else NODATA
        self._open = contextlib.ExitStack()
        self._source: BlockReader | None = None
        self._written: Future[tuple[int, str]] | None = None
        # closed by the band
        self._blocks = tempfile.SpooledTemporaryFile(_SPOOLED_BYTES, dir=str(folder) if folder else None)  # noqa: SIM115

    def __enter__(self) -> "_Band":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.__exit__(kind, error, trace)
        self._blocks.close()

    @property
    def source(self) -> BlockReader:
        if self._source is None:
            path = self._open.enter_context(self.file.source)
            try:
                # `with` would tie the raster to the thread that opened it
                self._source = self._open.enter_context(contextlib.closing(BlockReader(path, self._grids)))
            except RasterioError as error:
                raise InputError(
                    f"{path.name} cannot be opened ({error}); delete it and materialize downloaded_bands again"
                ) from error
        return self._source

    @property
    def box(self) -> GeoBox:
        if self.source.grid is None:
            raise InputError(f"{self.source.name} has no coordinate reference system")
        return self.source.grid

    def require_grid(self, leader: "_Band") -> None:
        """Raise InputError unless the band has the grid of another band of its scene."""
        if not same_pixels(self.box, leader.box):
            raise InputError(
                f"{self.source.name} has {grid_text(self.box)}, but {leader.source.name} of the same scene has "
                f"{grid_text(leader.box)}; delete the wrong one and materialize downloaded_bands again"
            )

    def require_blocks(self, chips: Sequence[str] | None) -> None:
        """Raise InputError if this is a partial file without all blocks under `chips`, or all if it is None."""
        if self.source.fetched is None:
            return
        shape = self.source.block_shape
        wanted = blocks_of_chips(tuple(chips), self.box, shape) if chips is not None else None
        if wanted is None:
            rows, cols = self.box.shape
            wanted = frozenset(range(-(-rows // shape[0]) * -(-cols // shape[1])))
        if missing := wanted - self.source.fetched:
            raise InputError(
                f"{self.source.name} lacks {len(missing)} of {len(wanted)} blocks that the chips are made of; "
                "delete it and materialize downloaded_bands again"
            )

    def add(
        self,
        position: tuple[int, int],
        known: NDArray[Any] | None,
        at: SourcePixels | None,
        kept_as: str | None,
    ) -> None:
        """Compute a block, unless it is known, and keep it if it has data; in memory too, if `kept_as` is a chip."""
        # skip empty blocks, as GDAL does in a sparse file
        if at is None or not ((pixels := self._warp(at) if known is None else known) != self._nodata).any():
            return
        encoded = encode(pixels)
        self.places[position] = self._blocks.tell(), len(encoded)
        self._blocks.write(encoded)
        if kept_as:
            self.first[kept_as] = Block(pixels, encoded)

    def _warp(self, at: SourcePixels) -> NDArray[Any]:
        try:
            values = self.source.read(at.window)
        except RasterioError as error:
            raise InputError(
                f"{self.source.name} cannot be read ({error}); delete it and materialize downloaded_bands again"
            ) from error
        if self._is_qa:
            return nearest(values, at)
        return bilinear(values, at, fill_value(self.source.nodata, self.file.band, self.file.version))

    def finish(self, grid: GeoBox, tags: Mapping[str, str], writers: Executor) -> None:
        """Begin to write the file."""
        corner = grid.affine.c, grid.affine.f
        dtype = "uint8" if self._is_qa else "int16"
        form = written_form(
            (grid.shape[0], grid.shape[1]), corner, dtype, self._nodata, tags, (self.file.band,)
        )
        self._written = writers.submit(self._write, form, positions_in(grid))
        self._open.close()

    def _write(self, form: Form, positions: Sequence[tuple[int, int]]) -> tuple[int, str]:
        places = [self.places.get(position, (0, 0)) for position in positions]
        return self.file.write(tiff_pieces(form, _Blocks(self._blocks, places)))

    def written(self) -> tuple[int, str]:
        """Bytes and SHA-256 of the file, which is written when this returns."""
        assert self._written
        return self._written.result()


class _Blocks(Sequence[bytes | None]):
    """Compressed blocks in a file, by their offsets and sizes, each read when it is needed; None if the size is 0."""

    def __init__(self, file: IO[bytes], places: Sequence[tuple[int, int]]) -> None:
        self._file, self._places = file, places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Any) -> Any:
        start, size = self._places[index]
        self._file.seek(start)
        return self._file.read(size) or None
