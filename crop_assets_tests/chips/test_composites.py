import numpy as np
import pytest

from crop_assets.chips.composites import COMPOSITES, Composite, composites
from crop_assets.hls import NODATA, REFLECTANCE_BANDS

KINDS: list[Composite] = list(COMPOSITES)


def chip(values: np.ndarray | int = 1000) -> np.ndarray:
    return np.full((18, 224, 224), values, np.int16)


def random_chip() -> np.ndarray:
    return np.random.default_rng(3).integers(200, 4000, (18, 224, 224)).astype(np.int16)


@pytest.mark.parametrize(
    ("kind", "bands", "together"),
    [("true_colour", "B04 B03 B02", True), ("near_infrared", "B8A B04 B03", False)],
)
def test_red_green_and_blue_are_those_bands_stretched(kind: Composite, bands: str, together: bool) -> None:
    image = random_chip()
    image[6:12] //= 4
    if not together:
        image[REFLECTANCE_BANDS.index("B8A") :: 6] *= 3
    found = composites(image, kind)
    assert (found.shape, found.dtype) == ((3, 224, 224, 3), np.uint8)
    for date in range(3):
        shown = np.stack([image[6 * date + REFLECTANCE_BANDS.index(band)] for band in bands.split()], axis=-1)
        low, high = np.percentile(shown, (2, 98), axis=None if together else (0, 1))
        expected = np.clip((shown - low) * 255 / (high - low), 0, 255)
        # percentiles are of every fourth row and column
        assert abs(found[date] - expected).max() < 4
        dark, bright = (found[date] == 0).mean(), (found[date] == 255).mean()
        assert 0.01 < dark < 0.03 and 0.01 < bright < 0.03, "so the date uses all of the range"


@pytest.mark.parametrize("kind", KINDS)
def test_missing_pixels_are_black_and_change_no_other(kind: Composite) -> None:
    image = random_chip()
    whole = composites(image, kind)
    # between the pixels that percentiles are of
    image[REFLECTANCE_BANDS.index("B03"), 1:4] = NODATA
    found = composites(image, kind)
    assert not found[0, 1:4].any()
    found[0, 1:4] = whole[0, 1:4]
    np.testing.assert_array_equal(found, whole)


@pytest.mark.parametrize("kind", KINDS)
def test_a_flat_chip_is_grey_and_faint_noise_stays_faint(kind: Composite) -> None:
    assert set(np.unique(composites(chip(1234), kind))) <= {127, 128}
    noise = chip(1234) + np.random.default_rng(1).integers(-5, 6, (18, 224, 224)).astype(np.int16)
    found = composites(noise, kind).astype(int)
    assert found.max() - found.min() <= 6


@pytest.mark.parametrize("place", [(0, 0), (101, 103)], ids=["in the sample", "beside it"])
@pytest.mark.parametrize("kind", KINDS)
def test_one_valid_pixel_is_seen(kind: Composite, place: tuple[int, int]) -> None:
    image = chip(NODATA)
    image[(slice(None), *place)] = 1500
    found = composites(image, kind)
    for date in found:
        assert set(date[place]) <= {127, 128}
        assert np.count_nonzero(date) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_dates_without_a_pixel_are_black(kind: Composite) -> None:
    assert not composites(chip(NODATA), kind).any()
    image = random_chip()
    image[6 + REFLECTANCE_BANDS.index("B04")] = NODATA
    found = composites(image, kind)
    assert not found[1].any()
    assert found[0].any() and found[2].any()
