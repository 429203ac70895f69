import io
import math
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from crop_assets.chips.clip import Chip
from crop_assets.chips.composites import composites
from crop_assets.chips.plots import (
    KEPT_COLOUR,
    MAX_SHOWN,
    REJECTED_COLOUR,
    Thumbnail,
    Verdict,
    cell_corner,
    chip_picture,
    contact_sheet,
    read_thumbnail,
    sheet_shape,
    thumbnail,
)
from crop_assets.chips.quality import BAD_QUALITY, NA_PIXELS, NO_SCENES, figure_text
from crop_assets.classes import class_colormap
from crop_assets_tests.drawn import recorded_texts

REASONS = ["", "bad_quality 12.4 %", "na_pixels 1,234 pixels", "too_few_scenes 2 fit scenes", ""]
DATES = ("2022-03-13", "2022-06-11", "2022-09-19")


def some_chip(seed: int = 1) -> Chip:
    rng = np.random.default_rng(seed)
    # fields of 56 x 56 pixels, as a JPEG keeps them
    image = np.kron(rng.integers(300, 4000, (18, 4, 4)), np.ones((56, 56))).astype(np.int16)
    mask = np.kron(rng.integers(0, 14, (4, 4)), np.ones((56, 56))).astype(np.uint8)
    nothing = np.zeros((3, 224, 224), np.uint8)
    return Chip(image, mask, nothing, nothing.astype(bool))


def verdicts(count: int) -> list[Verdict]:
    """Chips of which every fifth has too few scenes, and so no picture."""
    small = thumbnail(some_chip())
    whys = [REASONS[n % len(REASONS)] for n in range(count)]
    return [
        Verdict(f"chip_230_{300 + n}", why, None if why.startswith(NO_SCENES) else small)
        for n, why in enumerate(whys)
    ]


def pixels(jpeg: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB")).astype(int)


def is_colour(found: np.ndarray, colour: tuple[int, ...], within: int = 24) -> bool:
    return bool((abs(found - np.array(colour)) <= within).all())


@pytest.mark.parametrize("count", [1, 8, 64, 65])
def test_every_chip_is_framed_by_its_verdict(count: int) -> None:
    chips = verdicts(count)
    jpeg = contact_sheet("14SMG", chips)
    assert contact_sheet("14SMG", chips) == jpeg
    sheet, shown = pixels(jpeg), min(count, MAX_SHOWN)
    columns, rows = sheet_shape(shown)
    assert columns * rows >= shown > columns * (rows - 1)
    height, width = sheet.shape[:2]
    (left, top), (right, below) = cell_corner(0, shown), (196, 170)
    assert width == 10 + max(columns, 2) * right
    assert height == top + rows * below
    assert width <= 1000
    for at, chip in enumerate(chips[:shown]):
        left, top = cell_corner(at, shown)
        colour = REJECTED_COLOUR if chip.why else KEPT_COLOUR
        for y, x in (
            (top + 1, left + 90),
            (top + 158, left + 90),
            (top + 70, left + 1),
            (top + 70, left + 184),
        ):
            assert is_colour(sheet[y, x], colour), (chip, x, y)
        # inside of the frame: the date in colour and the mask, or nothing
        inner = sheet[top + 7 : top + 119, left + 7 : left + 119]
        mask = sheet[top + 7 : top + 63, left + 123 : left + 179]
        if chip.thumbnail is None:
            assert is_colour(inner[:40], (235, 235, 235))
            # a JPEG smears the frame and the cross
            assert is_colour(mask[8:45, 8:45], (255, 255, 255))
        else:
            middles = slice(14, None, 28)
            assert abs(inner[middles, middles] - chip.thumbnail.colour[middles, middles]).max() < 24
            classes = chip.thumbnail.mask[7::14, 7::14]
            palette = np.array([class_colormap()[c][:3] for c in range(14)])
            assert abs(mask[7::14, 7::14] - palette[classes]).max() < 24
        # a tick comes down to its foot in the left third, a cross goes through the middle
        sign = sheet[top + 71 : top + 101, left + 136 : left + 166]
        assert is_colour(sign[15, 15], colour, 60) == bool(chip.why)
        assert (abs(sign - np.array(colour)).max(axis=-1) < 60).sum() > 80
    assert cell_corner(shown - 1, shown)[1] + below == height


@pytest.mark.parametrize(
    ("count", "words"),
    [(1, "14SMG: 1 of 1 chip kept;"), (8, "14SMG: 3 of 8 chips kept; true colour of the middle date, mask")],
)
def test_the_heading_counts_the_chips(count: int, words: str) -> None:
    assert drawn(verdicts(count))[0][0].startswith(words)


def test_a_sheet_of_many_chips_states_how_many_it_shows() -> None:
    texts = [text for text, _, _ in drawn(verdicts(65))]
    assert (
        texts[0] == "14SMG: 26 of 65 chips kept; true colour of the middle date, mask; the first 64 are shown"
    )
    assert "chip_230_363" in texts and "chip_230_364" not in texts
    assert drawn(verdicts(64))[0][0].endswith("mask")


def drawn(chips: list[Verdict]) -> list[tuple[str, tuple[float, float, float, float], tuple[int, int]]]:
    """The texts of a contact sheet, with their edges, and the size of the sheet."""
    with recorded_texts() as found:
        contact_sheet("14SMG", chips)
    return found


@pytest.mark.parametrize("count", [1, 8, 65])
@pytest.mark.parametrize(
    "why", ["bad_quality 12.35 %", "a_reason_that_is_long " * 9, "W" * 200, "min_purity 61.2 %"]
)
def test_the_reasons_stay_inside_of_their_frames(count: int, why: str) -> None:
    chips = [replace(chip, why=why) for chip in verdicts(count)]
    texts = drawn(chips)
    shown = min(count, MAX_SHOWN)
    for text, (left, top, right, bottom), (width, height) in texts:
        assert min(left, top) >= 0 and right <= width and bottom <= height, text
    reasons = [found for found in texts if found[0].rstrip("…") and why.startswith(found[0].rstrip("…"))]
    assert len(reasons) == shown
    for at, (text, (left, _, right, bottom), _) in enumerate(reasons):
        corner = cell_corner(at, shown)
        assert corner[0] + 3 <= left and right <= corner[0] + 182, text
        assert bottom <= corner[1] + 155
    assert (reasons[0][0] == why) == (len(why) < 30)


def test_figures_have_units() -> None:
    assert figure_text(BAD_QUALITY, 12.346) == "12.35 %"
    assert figure_text(BAD_QUALITY, 100.0) == "100 %"
    assert figure_text(NA_PIXELS, 50176.0) == "50,176 pixels"
    assert figure_text(NO_SCENES, 2.0) == "2 fit scenes"
    assert figure_text(NO_SCENES, math.nan) == ""
    assert figure_text("another", 0.25) == "0.25"


def test_a_thumbnail_is_the_middle_date_in_true_colour() -> None:
    chip = some_chip()
    small = thumbnail(chip)
    assert (small.colour.shape, small.mask.shape) == ((112, 112, 3), (56, 56))
    whole = composites(chip.image, "true_colour")[1]
    assert abs(small.colour.astype(int) - whole[::2, ::2]).max() <= 6
    np.testing.assert_array_equal(small.mask, chip.mask[::4, ::4])
    assert small.colour.base is None or small.colour.base.nbytes < 200_000


def test_what_is_no_chip_has_no_thumbnail(tmp_path) -> None:
    missing, text = str(tmp_path / "missing.tif"), tmp_path / "text.tif"
    text.write_text("no raster")
    assert read_thumbnail(missing, missing) is None
    assert read_thumbnail(str(text), str(text)) is None


def test_the_picture_of_a_chip_has_both_composites_and_the_mask() -> None:
    chip = some_chip()
    jpeg = chip_picture(chip, "chip_230_307", DATES)
    assert chip_picture(chip, "chip_230_307", DATES) == jpeg
    picture = pixels(jpeg)
    assert picture.shape == (526, 946, 3)
    middles = slice(28, None, 56)
    for top, kind in ((41, "true_colour"), (292, "near_infrared")):
        for date, expected in enumerate(composites(chip.image, kind)):
            left = 10 + 234 * date
            found = picture[top : top + 224, left : left + 224]
            assert abs(found[middles, middles] - expected[middles, middles]).max() < 24, (kind, date)
    palette = np.array([class_colormap()[c][:3] for c in range(14)])
    mask = picture[41:265, 712:936]
    assert abs(mask[middles, middles] - palette[chip.mask[middles, middles]]).max() < 24
    for line, c in enumerate(np.unique(chip.mask)):
        assert is_colour(picture[292 + 15 * line + 7, 717], tuple(palette[c]))


def test_the_texts_of_the_picture_of_a_chip_stay_apart() -> None:
    chip = some_chip()
    all_classes = np.repeat(np.arange(14, dtype=np.uint8), 224 * 16).reshape(224, 224)
    with recorded_texts() as texts:
        chip_picture(replace(chip, mask=all_classes), "chip_1234_1234", DATES)
    assert len(texts) == 1 + 6 + 1 + 2 * 14
    rectangles = [edges for _, edges, _ in texts]
    for one, (left, top, right, bottom) in enumerate(rectangles):
        assert 0 <= left < right <= 946 and 0 <= top < bottom <= 526
        for other in rectangles[one + 1 :]:
            apart = right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top
            assert apart, (texts[one], other)


def test_a_mask_with_other_values_than_classes_is_drawn() -> None:
    small = thumbnail(some_chip())
    forged = Thumbnail(small.colour, np.full((56, 56), 200, np.uint8))
    left, top = cell_corner(0, 1)
    sheet = pixels(contact_sheet("14SMG", [Verdict("chip_230_300", "", forged)]))
    assert is_colour(sheet[top + 20 : top + 50, left + 130 : left + 170], (0, 0, 0))
