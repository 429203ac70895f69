import io
import itertools
import time

import geopandas as gpd
import matplotlib.image
import numpy as np
import pytest
import shapely

from crop_assets.classes import CLASS_COLUMNS
from crop_assets.labels.cdl import ChipHistograms
from crop_assets.labels.plots import chip_map_png, choice_maps_png, choices_png, class_histogram_png
from crop_assets.labels.sampling import candidate_boxes, weighed_boxes
from crop_assets_tests.drawn import figure_of, texts_of
from crop_assets_tests.labels.conftest import boxes_of


def _height_width(png: bytes) -> tuple[int, int]:
    image = matplotlib.image.imread(io.BytesIO(png))
    return image.shape[0], image.shape[1]


def test_class_histogram_is_a_png_even_of_nothing() -> None:
    counts = np.arange(14, dtype=np.int64) * 1000
    assert _height_width(class_histogram_png(counts)) == (400, 800)
    assert class_histogram_png(counts) == class_histogram_png(counts)
    assert _height_width(class_histogram_png(np.zeros(14, np.int64))) == (400, 800)


def test_choices_are_shown_side_by_side_even_of_nothing() -> None:
    counts = np.zeros((6, 14), np.int32)
    counts[range(6), [3, 4, 5, 6, 3, 0]] = 224 * 224
    landscape = boxes_of([(230, col) for col in range(300, 306)], counts)
    choices = {"evenness": landscape.iloc[:2], "balanced": landscape.iloc[2:4]}
    both, one = choice_maps_png(choices, landscape), choice_maps_png({"all": landscape}, landscape)
    assert _height_width(both) == (480, 1200)
    assert _height_width(one) == (480, 600)
    assert choice_maps_png(choices, landscape) == both
    assert _height_width(choice_maps_png({"none": landscape.iloc[:0]}, landscape)) == (480, 600)

    pixels = {name: boxes[CLASS_COLUMNS].sum().to_numpy() for name, boxes in choices.items()}
    bars = choices_png(pixels, (1 / 13,) * 13)
    assert _height_width(bars) == (400, 1000)
    assert choices_png({**pixels, "balanced": np.zeros(14, np.int64)}, (1 / 13,) * 13) != bars


def test_charts_are_drawn_on_a_slow_machine_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """matplotlib warns of a legend whose place takes more than a second to find, and a warning is an error here."""
    seconds = itertools.count(step=10.0)
    monkeypatch.setattr(time, "perf_counter", lambda: next(seconds))
    counts = np.zeros((2, 14), np.int32)
    counts[[0, 1], [3, 4]] = 224 * 224
    landscape = boxes_of([(230, 300), (230, 301)], counts)
    tiles = gpd.GeoDataFrame(geometry=[shapely.box(-99, 38, -98, 39)], crs=4326)
    class_histogram_png(counts.sum(axis=0))
    choices_png({"evenness": counts[0], "balanced": counts[1]}, (1 / 13,) * 13)
    choice_maps_png({"evenness": landscape}, landscape)
    chip_map_png(landscape, tiles)


def test_chip_map_is_a_png_even_of_nothing() -> None:
    counts = np.zeros((3, 14), np.int32)
    counts[[0, 1, 2], [3, 4, 3]] = 224 * 224
    cells = np.array([230, 231, 232], np.int32)
    boxes = weighed_boxes(candidate_boxes(ChipHistograms(cells, cells, counts, np.zeros(256, np.int64))), 1)
    tiles = gpd.GeoDataFrame(geometry=[shapely.box(-99, 38, -98, 39)], crs=4326)
    assert _height_width(chip_map_png(boxes, tiles)) == (650, 1000)
    assert _height_width(chip_map_png(boxes.iloc[:0], tiles.iloc[:0])) == (650, 1000)


def boxes_with_classes(chips: int) -> gpd.GeoDataFrame:
    """Chips side by side, or else all over the contiguous US, of all classes in turn."""
    counts = np.zeros((chips, 14), np.int32)
    counts[range(chips), [1 + n % 13 for n in range(chips)]] = 224 * 224
    places = np.random.default_rng(1).choice(400 * 680, chips, replace=False)
    if chips <= 36:
        return boxes_of([(230 + n // 6, 300 + n % 6) for n in range(chips)], counts)
    return boxes_of([(10 + int(at) // 680, 3 + int(at) % 680) for at in places], counts)


@pytest.mark.parametrize("chips", [1, 36, 5000])
def test_the_labels_of_maps_stay_apart_and_the_legend_is_beside_the_chips(chips: int) -> None:
    boxes = boxes_with_classes(chips)
    around = gpd.GeoSeries([shapely.box(*boxes.total_bounds)], crs=5070).to_crs(4326)
    tiles = gpd.GeoDataFrame(geometry=around)
    half = boxes.iloc[: max(1, chips // 2)]
    several = {"evenness": half, "balanced": half, "chip_boxes": boxes}
    words = f"{chips:,} chip" + ("s" if chips > 1 else "")
    for figure, title in (
        (figure_of(chip_map_png, boxes, tiles), f"{words}, 1 tile (EPSG:5070, km)"),
        (figure_of(choice_maps_png, {"chip_boxes": boxes}, boxes), f"chip_boxes: {words}"),
        (figure_of(choice_maps_png, several, boxes), f"chip_boxes: {words}"),
    ):
        assert any(text.startswith(title) for text in texts_of(figure))
        (legend,) = figure.legends
        assert figure.bbox.padded(1).contains(*legend.get_window_extent().min)
        assert figure.bbox.padded(1).contains(*legend.get_window_extent().max)
        for axes in figure.axes:
            assert not legend.get_window_extent().overlaps(axes.get_window_extent())


@pytest.mark.parametrize("shares", [[1] * 13, [0, 0, 1, *[0] * 10], [100, 99, 98, *range(10)]], ids=str)
def test_the_labels_of_class_shares_stay_apart(shares: list[int]) -> None:
    counts = np.array([0, *shares], np.int64) * 50_176
    choices = dict.fromkeys(("all boxes", "chip_boxes", "evenness", "balanced"), counts)
    texts_of(figure_of(choices_png, choices, (1 / 13,) * 13))
    texts_of(figure_of(class_histogram_png, counts, "validation: 5,000 chips of 2022"))
