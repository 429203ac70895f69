"""The pictures of chips, decoded again."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from crop_assets.chips.composites import COMPOSITES, composites
from crop_assets.classes import CLASS_COLOURS
from crop_assets.errors import InputError
from crop_assets.viewer.packs import (
    FMASK_LEGEND,
    SIDE,
    chip_pictures,
    fmask_values,
    pack_text,
    read_pictures,
    script_json,
)

HOSTILE = "</script><script>alert(1)//\u2028\u2029\"'\\<!-- &amp; \x00\ud800é"


def decoded(url: str) -> NDArray[np.uint8]:
    data = base64.b64decode(url.split(",", 1)[1], validate=True)
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def chip(seed: int) -> tuple[NDArray[np.int16], NDArray[np.uint8], NDArray[np.uint8]]:
    """A chip of fields of 32 pixels with a texture, and every class and Fmask value."""
    random = np.random.default_rng(seed)
    fields = random.integers(300, 4000, (1, 7, 7)).repeat(32, 1).repeat(32, 2)
    image = fields * np.linspace(0.6, 1.4, 18)[:, None, None] + random.normal(0, 60, (18, 224, 224))
    mask = random.integers(0, 14, (224, 224), np.uint8)
    return image.astype(np.int16), mask, random.integers(0, 256, (3, 224, 224)).astype(np.uint8)


def rgb(colours: list[str]) -> NDArray[np.uint8]:
    return np.array([[int(colour[at : at + 2], 16) for at in (1, 3, 5)] for colour in colours], np.uint8)


def test_mask_and_fmask_are_exact_and_the_composites_nearly_so() -> None:
    image, mask, fmask = chip(1)
    mask = mask // 14 + 3
    fmask = (fmask > 200).astype(np.uint8) * 2
    fmask[1, :50] = 255
    image[:6, :80, :80] = -9999
    pictures = chip_pictures(image, mask, fmask)
    at = [int(pixel * 224 / SIDE) for pixel in range(SIDE)]
    np.testing.assert_array_equal(decoded(pictures["mask"]), rgb(list(CLASS_COLOURS))[mask[at][:, at]])
    colours = rgb([colour for _, colour in FMASK_LEGEND])
    shown = decoded(pictures["fmask"])
    for date in range(3):
        strip = shown[:, date * SIDE : (date + 1) * SIDE]
        values = fmask[date][at][:, at]
        expected = np.where(values == 255, 6, np.where(values == 2, 3, 0))
        np.testing.assert_array_equal(strip, colours[expected])
    for kind in COMPOSITES:
        strip = decoded(pictures[kind])
        assert strip.shape == (SIDE, 3 * SIDE, 3)
        for date, expected in enumerate(composites(image, kind)):
            small = Image.fromarray(expected).resize((SIDE, SIDE), Image.Resampling.BOX)
            there = strip[:, date * SIDE : (date + 1) * SIDE].astype(int)
            assert np.abs(there - np.asarray(small)).mean() < 12
    assert decoded(pictures["true_colour"])[: SIDE // 4, : SIDE // 4].max() < 10, "missing pixels are black"


def test_of_several_fmask_bits_the_worst_is_shown() -> None:
    names = [name for name, _ in FMASK_LEGEND]
    for value, found in enumerate(fmask_values(np.arange(256, dtype=np.uint8))):
        if value == 255:
            expected = "missing"
        elif value & 2:
            expected = "cloud"
        elif value & 8:
            expected = "cloud shadow"
        elif value & 16:
            expected = "snow or ice"
        elif value & 4:
            expected = "adjacent to cloud or shadow"
        else:
            expected = "water" if value & 32 else "clear"
        assert names[found] == expected, value


def test_the_same_chip_has_the_same_bytes() -> None:
    assert chip_pictures(*chip(2)) == chip_pictures(*chip(2))


@pytest.mark.parametrize("deviation", [20, 100, 400])
def test_pictures_of_any_texture_fit_into_the_room_of_a_chip(deviation: int) -> None:
    image, mask, fmask = chip(3)
    noise = np.random.default_rng(4).normal(0, deviation, image.shape)
    # classes and Fmask in pieces of 4 x 4 pixels
    mask, fmask = mask[::4, ::4].repeat(4, 0).repeat(4, 1), fmask[:, ::8, ::8].repeat(8, 1).repeat(8, 2)
    pictures = chip_pictures((image + noise).astype(np.int16), mask, fmask)
    assert sum(map(len, pictures.values())) <= 30_000


def test_hostile_texts_stay_inside_their_script() -> None:
    value = {HOSTILE: [HOSTILE, 1.5, None]}
    text = script_json(value)
    assert json.loads(text) == value
    assert not set(text) & set("<>&\u2028\u2029\n\r\x00")
    assert text.isascii()
    name, _, rest = pack_text(3, {HOSTILE: {"mask": "data:"}}).partition("(")
    assert name == "cropViewer.pack"
    assert json.loads(f"[{rest.removesuffix(');' + chr(10)).removesuffix(')' + chr(10))}]")[0] == 3


def test_a_file_that_is_no_raster_is_named(tmp_path: Path) -> None:
    path = tmp_path / "chip_001_001_merged.tif"
    path.write_bytes(b"no raster")
    with pytest.raises(InputError, match=r"^chip_001_001_merged\.tif cannot be read .* materialize its tile"):
        read_pictures(str(path), str(path), str(path))
