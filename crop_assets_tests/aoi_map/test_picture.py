import io
import math

import numpy as np
import pyproj
import pytest
from numpy.typing import NDArray
from PIL import Image

from crop_assets.aoi_map.area import Area
from crop_assets.aoi_map.picture import CHOSEN_COLOUR, MAX_ZOOM, MIN_ZOOM, ChipPicture, class_colours
from crop_assets.labels.sampling import choose_boxes
from crop_assets_tests.aoi_map.conftest import candidates, number_of_classes
from crop_assets_tests.labels.conftest import boxes_of


@pytest.fixture(scope="module")
def picture(area: Area) -> ChipPicture:
    return ChipPicture(area.boxes, area.chosen)


def pixels(picture: ChipPicture, zoom: int, x: int, y: int) -> NDArray[np.uint8]:
    image = Image.open(io.BytesIO(picture.png(zoom, x, y)))
    assert (image.size, image.mode) == ((256, 256), "RGBA")
    return np.asarray(image)


def at(picture: ChipPicture, zoom: int, lon: float, lat: float) -> tuple[str, int]:
    """Colour and opacity of the map at a position."""
    x = (lon + 180) / 360 * 2**zoom
    y = (1 - math.asinh(math.tan(math.radians(lat))) / math.pi) / 2 * 2**zoom
    shown = pixels(picture, zoom, int(x), int(y))[int(y % 1 * 256), int(x % 1 * 256)].tolist()
    return "#" + bytes(shown[:3]).hex(), shown[3]


@pytest.mark.parametrize("zoom", [8, 10, 13, MAX_ZOOM])
def test_the_middle_of_a_box_has_the_colour_of_its_classes(
    picture: ChipPicture, area: Area, zoom: int
) -> None:
    table = candidates().set_index(["row", "col"])
    for cell in ((220, 300), (225, 314), (239, 329)):
        box = table.loc[cell]
        colour, opacity = at(picture, zoom, box["lon"], box["lat"])
        assert colour == class_colours()[number_of_classes(*cell) - 1]
        assert opacity > 100


@pytest.mark.parametrize("zoom", [9, 12])
def test_a_box_is_drawn_exactly_to_its_corners(zoom: int) -> None:
    alone = boxes_of([(225, 314)])
    picture = ChipPicture(alone, None)
    to_lonlat = pyproj.Transformer.from_crs(5070, 4326, always_xy=True)
    x, y = alone["x"][0], alone["y"][0]
    pixel = 156543.04 / 2**zoom
    for side in ((-1, -1), (-1, 1), (1, -1), (1, 1), (0, 1), (1, 0)):
        for reach, is_seen in ((3360 - 2 * pixel, True), (3360 + 2 * pixel, False)):
            lon, lat = to_lonlat.transform(x + side[0] * reach, y + side[1] * reach)
            assert (at(picture, zoom, lon, lat)[1] > 0) == is_seen


def test_chosen_chips_are_outlined_or_filled_at_small_scales(picture: ChipPicture, area: Area) -> None:
    assert area.chosen is not None and len(area.chosen) == 5
    box = area.chosen.iloc[0]
    assert at(picture, 4, box["lon"], box["lat"]) == (CHOSEN_COLOUR, 255)
    assert at(picture, 11, box["lon"], box["lat"])[0] == class_colours()[box["classes"] - 1]
    to_lonlat = pyproj.Transformer.from_crs(5070, 4326, always_xy=True)
    edge = to_lonlat.transform(box["x"] - 3360 + 100, box["y"])
    assert at(picture, 11, *edge) == (CHOSEN_COLOUR, 255)


def test_boxes_with_no_data_and_areas_without_boxes_are_transparent(picture: ChipPicture) -> None:
    no_data = candidates().set_index(["row", "col"]).loc[(230, 303)]
    assert at(picture, 10, no_data["lon"], no_data["lat"])[1] == 0
    for address in ((MIN_ZOOM, 0, 0), (MIN_ZOOM, 7, 7), (5, 16, 12), (10, 0, 1023), (10, 1023, 0)):
        assert not pixels(picture, *address)[..., 3].any()


def test_tiles_of_a_zoom_fit_together(picture: ChipPicture) -> None:
    """A tile has the same pixels as its four quarters at the next zoom."""
    zoom, x, y = 8, 57, 98
    parts = [[pixels(picture, zoom + 1, 2 * x + i, 2 * y + j)[..., :3] for i in (0, 1)] for j in (0, 1)]
    nearer = np.vstack([np.hstack(row) for row in parts])
    whole = pixels(picture, zoom, x, y)
    assert whole[..., 3].any()
    same = (nearer[::2, ::2] == whole[..., :3]).all(axis=2)
    # but for those that an outline or an edge of a box falls on
    assert same.mean() > 0.85


def test_there_are_thirteen_colours_from_light_to_dark() -> None:
    colours = class_colours()
    light = [sum(bytes.fromhex(colour[1:])) for colour in colours]
    assert len(set(colours)) == 13 and light == sorted(light, reverse=True)


def test_a_single_chosen_chip_is_visible_at_small_scales() -> None:
    boxes = boxes_of([(row, col) for row in range(200, 240) for col in range(300, 340)])
    chosen = choose_boxes(boxes, "all", 1)
    seen = pixels(ChipPicture(boxes, chosen), 6, 14, 24)[..., :3].reshape(-1, 3).tolist()
    assert list(bytes.fromhex(CHOSEN_COLOUR[1:])) in seen
