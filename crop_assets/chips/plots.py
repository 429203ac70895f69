"""Previews of chips."""

import functools
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from crop_assets.chip_grid import CHIP_SIZE
from crop_assets.chips.clip import Chip
from crop_assets.classes import CLASSES, class_colormap
from crop_assets.hls import REFLECTANCE_BANDS

_RED_GREEN_BLUE = [2, 1, 0]
# reflectance x 10,000 shown at full brightness: that of bright soil; clouds are brighter
_WHITE = 3000
_GAP, _TITLE, _LEGEND, _LINE = 10, 42, 190, 15


def chip_picture(chip: Chip, chip_id: str, dates: Sequence[str]) -> bytes:
    """The three dates of a chip in natural colour, its mask and a legend, side by side, as a JPEG of about 70 kB.

    Drawn by Pillow, because a matplotlib figure takes longer than all other work on a tile, and saved as a JPEG because
    there is one for each tile.
    """
    panels = [(date, _natural_colour(chip, at)) for at, date in enumerate(dates)]
    palette = np.array([class_colormap()[c][:3] for c in range(len(CLASSES))], np.uint8)
    panels.append(("classes", palette[chip.mask]))
    step = CHIP_SIZE + _GAP
    picture = Image.new("RGB", (_GAP + step * len(panels) + _LEGEND, _TITLE + CHIP_SIZE + _GAP), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((_GAP, 4), chip_id, "black", _font(14))
    for at, (title, pixels) in enumerate(panels):
        draw.text((_GAP + step * at, _TITLE - 17), title, "black", _font(12))
        picture.paste(Image.fromarray(pixels), (_GAP + step * at, _TITLE))
    left = _GAP + step * len(panels)
    for line, c in enumerate(np.unique(chip.mask)):
        top = _TITLE + line * _LINE
        draw.rectangle((left, top + 2, left + 10, top + 12), tuple(int(v) for v in palette[c]))
        draw.text((left + 16, top), CLASSES[c], "black", _font(11))
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=90, subsampling=0)
    return out.getvalue()


def _natural_colour(chip: Chip, date: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Bands B04, B03, B02 of one date as uint8 (224, 224, 3); missing pixels are black."""
    bands = chip.image.reshape(-1, len(REFLECTANCE_BANDS), CHIP_SIZE, CHIP_SIZE)[date, _RED_GREEN_BLUE]
    scaled = bands.clip(0, _WHITE).astype(np.uint32) * 255 // _WHITE
    return np.moveaxis(scaled.astype(np.uint8), 0, -1)


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
