"""Previews of chips: the picture of one, and the contact sheet of a tile.

Drawn by Pillow, because a matplotlib figure takes longer than all other work on a tile, and saved as JPEG because there
is one of each for each tile.
"""

import functools
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from rasterio.errors import RasterioError

from crop_assets.chip_grid import CHIP_SIZE
from crop_assets.chips.clip import Chip
from crop_assets.chips.composites import COMPOSITES, composites, stretched
from crop_assets.classes import CLASSES, class_colormap
from crop_assets.figures import counted
from crop_assets.hls import POSITIONS, REFLECTANCE_BANDS
from resources.geodata import open_geotiff

Colour = tuple[int, int, int]
_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_GAP, _TITLE, _HEADING, _LINE = 10, 24, 17, 15

MAX_SHOWN = 64
"""Chips on a contact sheet; of a tile with more, the first by id."""
KEPT_COLOUR: Colour = (0, 114, 178)
REJECTED_COLOUR: Colour = (213, 94, 0)
"""Blue and vermilion of the palette by Okabe and Ito, which colour-blind people can distinguish."""
_BLANK = (235, 235, 235)
# of a chip of 224 x 224, every second pixel in colour and every fourth of its mask
_EVERY, _EVERY_OF_MASK = 2, 4
_THUMBNAIL, _SMALL_MASK = CHIP_SIZE // _EVERY, CHIP_SIZE // _EVERY_OF_MASK
_FRAME, _INNER, _SIGN = 3, 4, 30
_CELL = 2 * _FRAME + 3 * _INNER + _THUMBNAIL + _SMALL_MASK, 2 * _FRAME + 3 * _INNER + _THUMBNAIL + 2 * _LINE
# as many as fit beside the UI's lists
_MAX_COLUMNS = 5
# of a merged chip, counted from 0
_SHOWN_DATE = POSITIONS.index("middle")
_SHOWN_BANDS = [
    _SHOWN_DATE * len(REFLECTANCE_BANDS) + REFLECTANCE_BANDS.index(b) for b in COMPOSITES["true_colour"]
]


@dataclass(frozen=True)
class Thumbnail:
    """A small picture of a chip: `colour` is uint8 (112, 112, 3), `mask` are classes, uint8 (56, 56)."""

    colour: NDArray[np.uint8]
    mask: NDArray[np.uint8]


@dataclass(frozen=True)
class Verdict:
    """A chip on a contact sheet: kept, or else `why` not. It is blank without a thumbnail."""

    chip_id: str
    why: str
    thumbnail: Thumbnail | None

    @property
    def kept(self) -> bool:
        return not self.why


def chip_picture(chip: Chip, chip_id: str, dates: Sequence[str]) -> bytes:
    """The three dates of a chip in true colour, below them in near infrared, and its mask with a legend below, as a
    JPEG of about 170 kB.
    """
    step = CHIP_SIZE + _GAP
    row = _HEADING + step
    picture = Image.new("RGB", (_GAP + step * (len(dates) + 1), _TITLE + 2 * row), "white")
    draw = ImageDraw.Draw(picture)
    draw.text(
        (_GAP, 4), f"{chip_id}: each date stretched for itself, missing pixels black", "black", _font(13)
    )

    def panel(across: int, down: int, heading: str, pixels: NDArray[np.uint8]) -> None:
        left, top = _GAP + step * across, _TITLE + row * down
        draw.text((left, top), heading, "black", _font(12))
        picture.paste(Image.fromarray(pixels), (left, top + _HEADING))

    for down, kind in enumerate(COMPOSITES):
        for across, (date, pixels) in enumerate(zip(dates, composites(chip.image, kind), strict=True)):
            panel(across, down, f"{date}, {kind.replace('_', ' ')}", pixels)
    panel(len(dates), 0, "classes", _palette()[chip.mask])
    left = _GAP + step * len(dates)
    counts = np.bincount(chip.mask.ravel(), minlength=len(CLASSES))
    for line, c in enumerate(np.flatnonzero(counts)):
        top = _TITLE + row + _HEADING + line * _LINE
        draw.rectangle((left, top + 2, left + 10, top + 12), tuple(_palette()[c].tolist()))
        share = f"{100 * counts[c] / chip.mask.size:.1f} %"
        draw.text((left + 16, top), CLASSES[c], "black", _font(11))
        draw.text((left + CHIP_SIZE, top), share, "black", _font(11), "ra")
    return _jpeg(picture)


def thumbnail(chip: Chip) -> Thumbnail:
    """The thumbnail of a chip."""
    return _thumbnail(chip.image[_SHOWN_BANDS], chip.mask)


def read_thumbnail(merged: str, mask: str) -> Thumbnail | None:
    """The thumbnail of the files of a chip, by GDAL's names; None if they cannot be read or are not of a chip."""
    try:
        with open_geotiff(merged) as image, open_geotiff(mask) as classes:
            if image.count <= max(_SHOWN_BANDS) or {image.shape, classes.shape} != {(CHIP_SIZE, CHIP_SIZE)}:
                return None
            bands = image.read([band + 1 for band in _SHOWN_BANDS], out_dtype="int16")
            return _thumbnail(bands, classes.read(1, out_dtype="uint8"))
    except RasterioError:
        return None


def _thumbnail(bands: NDArray[np.int16], mask: NDArray[np.uint8]) -> Thumbnail:
    # the view would keep the pixels that it is made from
    small_mask = mask[::_EVERY_OF_MASK, ::_EVERY_OF_MASK].copy()
    return Thumbnail(stretched(bands[:, ::_EVERY, ::_EVERY]), small_mask)


def contact_sheet(tile: str, chips: Sequence[Verdict]) -> bytes:
    """The chips of a tile in true colour on the middle date, with their masks, framed in blue with a tick if they are
    kept and else in vermilion with a cross, above the reason; as a JPEG of some 10 kB a chip. `chips` are all of the
    tile, of which the first `MAX_SHOWN` are drawn.
    """
    shown = chips[:MAX_SHOWN]
    columns, rows = sheet_shape(len(shown))
    width, height = _CELL
    # a sheet of one chip has room for its heading
    size = _GAP + max(columns, 2) * (width + _GAP), _TITLE + rows * (height + _GAP)
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    kept = sum(chip.kept for chip in chips)
    heading = f"{tile}: {kept:,} of {counted(len(chips), 'chip')} kept; true colour of the middle date, mask"
    if len(chips) > len(shown):
        heading = f"{heading}; the first {len(shown)} are shown"
    draw.text((_GAP, 4), fitted(heading, _font(13), size[0] - 2 * _GAP), "black", _font(13))
    for at, chip in enumerate(shown):
        _draw_cell(picture, draw, cell_corner(at, len(shown)), chip)
    return _jpeg(picture)


def sheet_shape(chips: int) -> tuple[int, int]:
    """Columns and rows of a contact sheet."""
    columns = min(_MAX_COLUMNS, max(1, math.ceil(math.sqrt(chips * 1.5))))
    return columns, math.ceil(chips / columns)


def cell_corner(at: int, chips: int) -> tuple[int, int]:
    """The pixel (from the left, from the top) of the upper left corner of a chip's frame on a sheet of so many."""
    down, across = divmod(at, sheet_shape(chips)[0])
    return _GAP + across * (_CELL[0] + _GAP), _TITLE + down * (_CELL[1] + _GAP)


def fitted(text: str, font: _Font, width: int) -> str:
    """The text, cut at its end so that it is not wider than so many pixels."""
    if font.getlength(text) <= width:
        return text
    # the width grows with the length
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if font.getlength(f"{text[:middle]}…") <= width else (low, middle - 1)
    return f"{text[:low]}…"


def _draw_cell(
    picture: Image.Image, draw: ImageDraw.ImageDraw, corner: tuple[int, int], chip: Verdict
) -> None:
    left, top = corner
    right, bottom = left + _CELL[0] - 1, top + _CELL[1] - 1
    colour = KEPT_COLOUR if chip.kept else REJECTED_COLOUR
    draw.rectangle((left, top, right, bottom), "white", colour, _FRAME)
    inner_left, inner_top = left + _FRAME + _INNER, top + _FRAME + _INNER
    beside = inner_left + _THUMBNAIL + _INNER
    if chip.thumbnail is None:
        edge = (inner_left, inner_top, inner_left + _THUMBNAIL - 1, inner_top + _THUMBNAIL - 1)
        draw.rectangle(edge, _BLANK)
        draw.text(
            (inner_left + _THUMBNAIL / 2, inner_top + _THUMBNAIL / 2), "no picture", "black", _font(12), "mm"
        )
    else:
        picture.paste(Image.fromarray(chip.thumbnail.colour), (inner_left, inner_top))
        picture.paste(Image.fromarray(_palette()[chip.thumbnail.mask]), (beside, inner_top))
    _draw_sign(draw, beside + (_SMALL_MASK - _SIGN) // 2, inner_top + _SMALL_MASK + 2 * _INNER, chip.kept)
    below = inner_top + _THUMBNAIL + _INNER
    room = _CELL[0] - 2 * (_FRAME + _INNER)
    for line, text in enumerate((chip.chip_id, chip.why or "kept")):
        draw.text((inner_left, below + line * _LINE), fitted(text, _font(11), room), "black", _font(11))


def _draw_sign(draw: ImageDraw.ImageDraw, left: int, top: int, kept: bool) -> None:
    """A tick or a cross; the font has neither."""
    end = _SIGN - 1
    if kept:
        tick = [(left, top + end // 2), (left + end // 3, top + end), (left + end, top)]
        draw.line(tick, KEPT_COLOUR, 5, "curve")
        return
    draw.line((left, top, left + end, top + end), REJECTED_COLOUR, 5)
    draw.line((left, top + end, left + end, top), REJECTED_COLOUR, 5)


def _jpeg(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=85, subsampling=0)
    return out.getvalue()


@functools.cache
def _palette() -> NDArray[np.uint8]:
    """The colours of all values of a uint8; what is no class is black."""
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(CLASSES)] = [class_colormap()[c][:3] for c in range(len(CLASSES))]
    return colours


@functools.cache
def _font(size: int) -> _Font:
    return ImageFont.load_default(size)
