"""Renders the pictures of chips, and puts them into the scripts that the page loads."""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rasterio.errors import RasterioError

from crop_assets.chips.composites import COMPOSITES, composites
from crop_assets.classes import CLASS_COLOURS
from crop_assets.errors import InputError
from crop_assets.hls import ADJACENT, CLOUD, QA_NODATA, SHADOW, SNOW, WATER
from resources.geodata import open_geotiff
from resources.object_store import translated

SIDE = 160
"""Pixels on each side of a picture of a chip of 224 x 224: the pictures of a chip of the demo take 22 kB, and 34 kB
with 224 pixels."""
CHIPS_PER_PACK = 100

FMASK_LEGEND = (
    ("clear", "#f0f0f0"),
    ("water", "#0072b2"),
    ("snow or ice", "#56b4e9"),
    ("cloud", "#e69f00"),
    ("cloud shadow", "#5b3f8c"),
    ("adjacent to cloud or shadow", "#f2dc8c"),
    ("missing", "#000000"),
)
"""What a pixel of Fmask is shown as, by value, with colours that people with colour blindness can distinguish too
(after Okabe and Ito)."""
_BY_PRIORITY = ((WATER, 1), (ADJACENT, 5), (SNOW, 2), (SHADOW, 4), (CLOUD, 3))
"""Fmask bits and their values in the legend; later ones hide earlier ones."""
_QUALITIES = (60, 40, 20, 5)
"""Of WebP, whose composites take three quarters of the bytes of JPEG's (on the demo): the first with which the pictures
of a chip fit into `_MAX_CHARACTERS`."""
_MAX_CHARACTERS = 28_000
"""Of the pictures of a chip, so that 5,000 chips take 140 MB."""

Pictures = dict[str, str]
"""The pictures of a chip as data URLs: true_colour, near_infrared, mask and fmask."""


def _fmask_table() -> NDArray[np.uint8]:
    table = np.zeros(256, np.uint8)
    for bit, value in _BY_PRIORITY:
        table[(np.arange(256) & bit) != 0] = value
    table[QA_NODATA] = 6
    return table


_FMASK_TABLE = _fmask_table()


def fmask_values(fmask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The value in `FMASK_LEGEND` of each Fmask pixel, in any shape: of several bits, the first of cloud, shadow, snow,
    adjacent and water.
    """
    values: NDArray[np.uint8] = _FMASK_TABLE[fmask]
    return values


def read_pictures(image: str, mask: str, fmask: str) -> Pictures:
    """The pictures of a chip from its merged image, mask and Fmask, given as paths for GDAL. Raises InputError if one
    cannot be read.
    """
    read = []
    for path in (image, mask, fmask):
        try:
            with translated(path), open_geotiff(path) as raster:
                read.append(raster.read())
        except RasterioError as error:
            raise InputError(
                f"{Path(path).name} cannot be read ({error}); materialize its tile again"
            ) from error
    return chip_pictures(read[0], read[1][0], read[2])


def chip_pictures(image: NDArray[np.int16], mask: NDArray[np.uint8], fmask: NDArray[np.uint8]) -> Pictures:
    """The pictures of a chip.

    `image` is the merged chip, int16 (18, rows, columns); `mask` its classes, uint8 (rows, columns); `fmask` is uint8
    (3, rows, columns). The dates of a picture are side by side.
    """
    exact = {
        "mask": _palette(mask[None], CLASS_COLOURS),
        "fmask": _palette(fmask_values(fmask), [colour for _, colour in FMASK_LEGEND]),
    }
    left = _MAX_CHARACTERS - sum(map(len, exact.values()))
    strips = [_strip(composites(image, kind)) for kind in COMPOSITES]
    for quality in _QUALITIES:
        lossy = [_url(strip, "webp", quality=quality, method=4) for strip in strips]
        if sum(map(len, lossy)) <= left:
            break
    return {**dict(zip(COMPOSITES, lossy, strict=True)), **exact}


def _strip(dates: NDArray[np.uint8]) -> Image.Image:
    # each date alone, so that no colour runs over into the next
    resized = [np.asarray(Image.fromarray(date).resize((SIDE, SIDE), Image.Resampling.BOX)) for date in dates]
    return Image.fromarray(np.concatenate(resized, axis=1))


def _palette(dates: NDArray[np.uint8], colours: Sequence[str]) -> str:
    """Values as an image of their colours, without loss: nearest pixels, and the bytes of a palette."""
    rows, cols = (np.arange(SIDE) * size // SIDE for size in dates.shape[1:])
    picture = Image.fromarray(np.concatenate([date[np.ix_(rows, cols)] for date in dates], axis=1))
    picture.putpalette(bytes.fromhex("".join(colour.removeprefix("#") for colour in colours)))
    return _url(picture, "png", optimize=True)


def _url(picture: Image.Image, kind: Literal["webp", "png"], **options: Any) -> str:
    encoded = io.BytesIO()
    picture.save(encoded, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(encoded.getvalue()).decode()}"


def pack_name(number: int) -> str:
    """The name of a pack, relative to the page."""
    return f"packs/{number:04d}.js"


def pack_text(number: int, pictures: Mapping[str, Pictures]) -> str:
    """The script with the pictures of chips, by chip id."""
    return f"cropViewer.pack({number}, {script_json(pictures)})\n"


def script_json(value: Any) -> str:
    """A value as JSON in ASCII that cannot end the script element that it is in."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
