"""Band files of which only the blocks under the chips are stored, as sparse GeoTIFFs that say so.

The blocks are those of the file at its source, as compressed there; overviews are left out.
"""

import hashlib
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
from affine import Affine
from odc.geo.geobox import GeoBox

from crop_assets.bands.files import check_band
from crop_assets.bands.transfer import expected_bytes
from crop_assets.chip_grid import RESOLUTION, raster_geobox
from crop_assets.coordinates import blocks_of_chips
from crop_assets.hls import HLS_SIZE, QA_BAND, fill_of, hls_bounds, parse_scene_id
from crop_assets.recipe import DatasetRecipe
from resources.errors import IntegrityError
from resources.file_system import no_follow
from resources.geodata import open_geotiff
from resources.parts import NotInPartsError, Range
from resources.tiff import HEAD_BYTES, Form, Layout, Read, read_layout, tiff_pieces

_OF, _BYTES, _VERSION = "PARTIAL_OF", "PARTIAL_BYTES", "PARTIAL_VERSION"
_VERIFIED, _BLOCKS, _SHA256 = "PARTIAL_VERIFIED", "PARTIAL_BLOCKS", "PARTIAL_SHA256"
_MAX_NUMBERS = 1 << 16
_NUMBERS = re.compile(rf'name="{_BLOCKS}">([0-9,-]+|none)<')
_OVERVIEWS = 0.34
"""Share of the bytes of an HLS v2.0 file that its overviews take (measured on two files)."""
_LEAF_BYTES = 262_144
"""Bytes of a leaf with Kubo's default chunker."""
_HLS_BLOCK = 256
_MIN_SAVING, _MIN_SHARE = 1 << 20, 0.2
"""What blocks must save of a file at least, in bytes and as a share, to be worth more requests."""


@dataclass(frozen=True)
class PartialFile:
    """A stored file that has only some blocks of the file `of`, of `size` bytes.

    `version` is the CID of that file, or the ETag of its server; `verified` is whether the blocks were checked against
    the CID. `blocks` are the compressed bytes of each block that was fetched, by its number; b"" if it is not stored in
    that file either.
    """

    of: str
    size: int
    version: str
    verified: bool
    form: Form
    blocks: Mapping[int, bytes]

    def has(self, path: Path, chips: Sequence[str] | None) -> bool:
        """Whether the blocks of `chips`, or all if it is None, are there. `path` is this file."""
        if chips is None:
            return len(self.blocks) == self.form.blocks
        with open_geotiff(path) as raster:
            box = raster_geobox(raster)
        return blocks_of_chips(tuple(chips), box, self.form.block_shape) <= self.blocks.keys()


def read_partial(path: Path) -> PartialFile | None:
    """A partial file of the store; None if it is a complete file.

    Raises IntegrityError if it is damaged, and RasterioIOError if it is no GeoTIFF.
    """
    with open_geotiff(path) as raster:
        tags = raster.tags()
    if _OF not in tags:
        return None
    data = path.read_bytes()
    layout = read_layout(lambda start, stop: data[start:stop], len(data))
    try:
        numbers = _numbers(tags[_BLOCKS])
        blocks = {n: data[layout.offsets[n] : layout.offsets[n] + layout.counts[n]] for n in numbers}
        partial = PartialFile(
            tags[_OF], int(tags[_BYTES]), tags[_VERSION], tags[_VERIFIED] == "yes", layout.form, blocks
        )
        damaged = _digest(blocks) != tags[_SHA256] or (layout.counts > 0).sum() > len(numbers)
    except (KeyError, ValueError, IndexError):
        damaged = True
    if damaged:
        raise IntegrityError("is a partial file whose blocks are not those that it names")
    return partial


def fetched_blocks(text: str) -> frozenset[int] | None:
    """The numbers of the blocks that a partial file has, from the XML of its metadata; None for a complete file."""
    match = _NUMBERS.search(text)
    return frozenset(_numbers(match[1])) if match else None


class Grids:
    """The grids of a tile's files, which are checked once for all files that are described alike."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: dict[tuple[Form, bool, str], GeoBox] = {}

    def of(self, form: Form, band: str, tile: str, scratch: Path) -> GeoBox:
        """The grid of a file, checked by `check_band`, which needs a file of this form at `scratch`."""
        key = replace(form, metadata=None, palette=None), band == QA_BAND, tile
        # else the threads of all files would check at once, one in the way of the other
        with self._lock:
            if key not in self._found:
                _write(scratch, form, {})
                check_band(scratch, band, tile, every_block=False)
                with open_geotiff(scratch) as raster:
                    self._found[key] = raster_geobox(raster)
            return self._found[key]


class BlockSelection:
    """The blocks of one band file under `chips`, or all if `chips` is None, as a `resources.parts.Selection`.

    Those of `stored`, a partial file of the same version, are not fetched again.
    """

    def __init__(
        self,
        pool: Executor,
        scratch: Path,
        scene_file: str,
        band: str,
        chips: Sequence[str] | None,
        grids: Grids,
        stored: PartialFile | None = None,
    ) -> None:
        """`scratch` is a file that may be overwritten; `scene_file` is `<scene id>/<file name>`."""
        self.pool = pool
        self.made: PartialFile | None = None
        """The partial file that was written last."""
        self._scratch, self._grids, self._stored = scratch, grids, stored
        scene_id, _, self._name = scene_file.partition("/")
        self._band, self._scene = band, parse_scene_id(scene_id)
        self._chips = None if chips is None else tuple(chips)
        self._layout: Layout
        self._blocks: list[int] = []
        self._have: Mapping[int, bytes] = {}

    def choose(self, read: Read, size: int, version: str) -> list[Range]:
        # of an earlier attempt, perhaps at another version
        self._have = {}
        try:
            layout = read_layout(read, size)
        except IntegrityError as error:
            # the complete file is checked by what GDAL can read
            raise NotInPartsError(f"its directory {error}") from None
        if _OF in layout.text:
            raise IntegrityError("has only some blocks of another file")
        form = replace(
            layout.form, nodata=layout.form.nodata or str(fill_of(self._band, self._scene.version))
        )
        box = self._grids.of(form, self._band, self._scene.tile, self._scratch)
        if self._chips is None:
            wanted = frozenset(range(layout.form.blocks))
        else:
            wanted = blocks_of_chips(self._chips, box, layout.form.block_shape)
        stored = self._stored
        if stored and (stored.version, stored.size) == (version, size) and _same(stored.form, form):
            self._have = stored.blocks
        if not layout.form.nodata and any(not layout.counts[n] for n in wanted):
            raise NotInPartsError(
                "some of its blocks are not stored, and it has no nodata value to read them as"
            )
        self._layout = replace(layout, form=form)
        self._blocks = sorted(wanted | set(self._have))
        return [self._range(n) for n in self._blocks if n not in self._have]

    def write(self, read: Read, destination: Path, version: str, verified: bool) -> None:
        blocks = {n: self._have[n] if n in self._have else read(*self._range(n)) for n in self._blocks}
        both = verified and (not self._have or (self._stored is not None and self._stored.verified))
        form, size = self._layout.form, self._layout.size
        tags = {
            _OF: self._name,
            _BYTES: str(size),
            _VERSION: version,
            _VERIFIED: "yes" if both else "no",
            _BLOCKS: _ranges(self._blocks),
            _SHA256: _digest(blocks),
        }
        _write(destination, replace(form, metadata=tags), blocks)
        self.made = PartialFile(self._name, size, version, both, form, blocks)

    def _range(self, number: int) -> Range:
        start = int(self._layout.offsets[number])
        return start, start + int(self._layout.counts[number])


def _same(one: Form, other: Form) -> bool:
    return replace(one, metadata=None) == replace(other, metadata=None)


def _write(path: Path, form: Form, blocks: Mapping[int, bytes]) -> None:
    with open(path, "wb", opener=no_follow) as file:
        file.writelines(tiff_pieces(form, [blocks.get(n) or None for n in range(form.blocks)]))


def _digest(blocks: Mapping[int, bytes]) -> str:
    digest = hashlib.sha256()
    for number in sorted(blocks):
        digest.update(b"%d %d\n" % (number, len(blocks[number])))
        digest.update(blocks[number])
    return digest.hexdigest()


def _ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers as text, such as 0-3,17; GDAL drops empty texts, so "none" for no number."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ",".join(f"{first}-{last}" if last > first else f"{first}" for first, last in found) or "none"


def _numbers(text: str) -> list[int]:
    """The reverse of `_ranges`. Raises ValueError for other texts, and for very many numbers."""
    found: list[int] = []
    for part in text.split(",") if text != "none" else ():
        first, _, last = part.partition("-")
        found += range(int(first), min(int(last or first), _MAX_NUMBERS) + 1)
        if len(found) > _MAX_NUMBERS:
            raise ValueError("too many blocks")
    return found


@dataclass(frozen=True)
class FetchChoice:
    """How the band files of a tile are fetched, with the bytes that blocks and complete files would take."""

    by_blocks: bool
    block_bytes: int
    file_bytes: int

    def __str__(self) -> str:
        blocks = f"blocks under the chips, {self.block_bytes / 1e6:,.0f} MB"
        files = f"complete files, {self.file_bytes / 1e6:,.0f} MB"
        return f"{blocks}, instead of {files}" if self.by_blocks else f"{files}, instead of {blocks}"


def choose_fetch(
    fetch: str, tile: str, chips: Sequence[str] | None, sizes: Sequence[int], by_cid: bool
) -> FetchChoice:
    """How to fetch files of these sizes in bytes for the chips of a tile, or for all of it if `chips` is None.

    `fetch` is that of the recipe: with auto, blocks are chosen if they save a fifth of the bytes and a megabyte a file.
    What they take is estimated from the layout of HLS v2.0, and with `by_cid` from leaves of Kubo's default size, each
    of which is fetched if it holds a part of a block under the chips.
    """
    epsg, left, _, _, top = hls_bounds(tile)
    affine = Affine(RESOLUTION, 0, left, 0, -RESOLUTION, top)
    box = GeoBox((HLS_SIZE, HLS_SIZE), affine, f"EPSG:{epsg}")
    side = -(-HLS_SIZE // _HLS_BLOCK)
    share = 1.0
    if chips is not None:
        share = len(blocks_of_chips(tuple(chips), box, (_HLS_BLOCK, _HLS_BLOCK))) / side**2
    files = sum(sizes)
    blocks = sum(_fetched(size, share, side**2, by_cid) for size in sizes)
    saved = files - blocks
    worth = saved >= _MIN_SHARE * files and saved >= _MIN_SAVING * len(sizes)
    return FetchChoice(fetch == "blocks" or (fetch == "auto" and chips is not None and worth), blocks, files)


def _fetched(size: int, share: float, blocks: int, by_cid: bool) -> int:
    """Bytes to fetch of a file for a share of its blocks."""
    pixels = (1 - _OVERVIEWS) * size
    if not by_cid:
        return round(min(size, HEAD_BYTES + share * pixels))
    # a leaf holds parts of so many blocks, which may lie anywhere in the file
    touched = 1 - (1 - share) ** (1 + _LEAF_BYTES * blocks / pixels) if pixels else 1.0
    return round(min(size, _LEAF_BYTES + touched * pixels))


def chips_to_fetch(recipe: DatasetRecipe, chips: Iterable[str]) -> list[str] | None:
    """The chips whose blocks are needed; None if all blocks are."""
    return None if recipe.coverage == "full" else sorted(chips)


def file_sizes(files: pd.DataFrame) -> list[int]:
    """Bytes of the files of `band_cids`, typical ones where they are unknown."""
    return [expected_bytes(*sizes) for sizes in zip(files["bytes"], files["max_bytes"], strict=True)]


def fetch_of(
    recipe: DatasetRecipe, tile: str, chips: Sequence[str] | None, files: pd.DataFrame
) -> FetchChoice:
    """How the files of `band_cids` are fetched for chips, or for the complete tile if `chips` is None."""
    sizes = file_sizes(files)
    by_cid = bool((files["cid"] != "").any()) and bool({"kubo", "gateways", "ipfs_cli"} & set(recipe.sources))
    return choose_fetch(recipe.fetch, tile, chips, sizes, by_cid)
