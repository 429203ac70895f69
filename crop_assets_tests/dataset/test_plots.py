import io
from typing import Any

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from crop_assets.chip_grid import chip_id
from crop_assets.chips.quality import BAD_QUALITY, IMPURE_LABELS, LOW_CONFIDENCE, NA_PIXELS, NO_SCENES
from crop_assets.dataset.funnel import NO_TILE, TILE_MISSING, yield_funnel
from crop_assets.dataset.plots import (
    REJECTED_COLOUR,
    SPLIT_COLOURS,
    band_histograms_png,
    funnel_png,
    split_map_png,
)
from crop_assets.dataset.splits import BUFFER, TEST, TRAIN, UNASSIGNED, VALIDATION
from crop_assets_tests.drawn import figure_of, texts_of

LONG = {
    "step": "steps of many and long words " * 3,
    "why": "a long $reason_{1}$ with signs & <b>tags</b> " * 6,
}


def funnel(chips: int, reasons: tuple[str, ...]) -> pd.DataFrame:
    """A twelfth of the chips is lost for each reason, at least one."""
    lost = [reason for reason in reasons for _ in range(max(1, chips // 12))]
    boxes = pd.DataFrame({"chip_id": [f"chip_{n}" for n in range(chips)]})
    return yield_funnel(boxes, pd.DataFrame({"reason": pd.Series(lost, dtype=object)}))


@pytest.mark.parametrize(
    ("chips", "reasons"),
    [
        (1, ()),
        (1, (BAD_QUALITY,)),
        (36, (NO_TILE, TILE_MISSING, NO_SCENES, NA_PIXELS, BAD_QUALITY, BUFFER, UNASSIGNED)),
        (5000, (NO_TILE, TILE_MISSING, NO_SCENES, NA_PIXELS, BAD_QUALITY, BUFFER, UNASSIGNED)),
        (600, (NO_TILE, IMPURE_LABELS, LOW_CONFIDENCE, NO_SCENES, NA_PIXELS, BAD_QUALITY, UNASSIGNED)),
    ],
)
def test_the_labels_of_the_funnel_stay_apart(chips: int, reasons: tuple[str, ...]) -> None:
    table = funnel(chips, reasons)
    texts = texts_of(figure_of(funnel_png, table))
    shown = " ".join(texts).replace("\n", " ")
    for step, left, lost, why in table.itertuples(index=False):
        assert step in shown
        assert f"{left:,}" in shown
        if lost:
            assert f"\N{MINUS SIGN}{lost:,}: {why}" in shown


def test_long_words_are_cut_in_the_funnel() -> None:
    table = funnel(36, (NO_TILE, TILE_MISSING, NO_SCENES, NA_PIXELS, BAD_QUALITY, BUFFER, UNASSIGNED))
    large = table.assign(**LONG, chips=table["chips"] * 1_000_000, lost=table["lost"] * 1_000_000)
    texts = texts_of(figure_of(funnel_png, large))
    assert sum(name.startswith("\N{MINUS SIGN}3,000,000: a long $reason_{1}$") for name in texts) == 7
    texts_of(figure_of(funnel_png, large.assign(step="x" * 300, why="y" * 300)))


def test_texts_that_are_cut_or_overlap_are_found() -> None:
    cut, over = Figure(), Figure()
    cut.text(0.9, 0.5, "out of the figure")
    with pytest.raises(AssertionError, match="out of the figure #0 runs out"):
        texts_of(cut)
    over.text(0.3, 0.5, "some words")
    over.text(0.35, 0.5, "other words")
    with pytest.raises(AssertionError, match="some words #0 is over other words #1"):
        texts_of(over)


def spread(chips: int) -> list[str]:
    """Chips side by side, or else all over the contiguous US."""
    if chips <= 36:
        return [chip_id(230 + n // 6, 300 + n % 6) for n in range(chips)]
    places = np.random.default_rng(1).choice(400 * 680, chips, replace=False)
    return [chip_id(10 + int(at) // 680, 3 + int(at) % 680) for at in places]


def split_map(shares: dict[str, int]) -> tuple[dict[str, list[str]], list[str]]:
    """So many chips by split; those of "rejected" are in none."""
    ids = iter(spread(sum(shares.values())))
    found = {name: [next(ids) for _ in range(count)] for name, count in shares.items()}
    return found, found.pop("rejected", [])


def pixels_of(png: bytes, colour: str) -> int:
    image = (matplotlib.image.imread(io.BytesIO(png))[..., :3] * 255).round().astype(int)
    wanted = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
    return int((abs(image - wanted).max(axis=-1) <= 2).sum())


@pytest.mark.parametrize(
    "shares",
    [
        {TRAIN: 1},
        {TEST: 1},
        {TRAIN: 22, VALIDATION: 9, "rejected": 5},
        {TRAIN: 20, VALIDATION: 6, TEST: 6, "rejected": 4},
        {TRAIN: 3083, VALIDATION: 771, "rejected": 1146},
        {TRAIN: 3000, VALIDATION: 500, TEST: 354, "rejected": 1146},
    ],
    ids=str,
)
def test_the_map_has_the_colour_of_each_split_that_has_chips(shares: dict[str, int]) -> None:
    chips, rejected = split_map(shares)
    png = split_map_png(chips, rejected)
    assert split_map_png(chips, rejected) == png
    for name, colour in {**SPLIT_COLOURS, "rejected": REJECTED_COLOUR}.items():
        found = pixels_of(png, colour)
        if name == "rejected":
            # the axes and letters have greys too
            continue
        # the mark in the legend is of 8 x 8 pixels
        assert (found > 100) == (name in shares), name
        assert found == 0 or name in shares, name
    legend = texts_of(figure_of(split_map_png, chips, rejected))
    for name, count in shares.items():
        label = f"{'not in the dataset' if name == 'rejected' else name}: {count:,}"
        assert any(text.startswith(label) for text in legend), label


def test_each_chip_is_seen_on_a_map_of_the_country() -> None:
    chips, _ = split_map({TRAIN: 5000})
    few = {TRAIN: chips[TRAIN][1:], VALIDATION: chips[TRAIN][:1]}
    png = split_map_png(few, [])
    legend = pixels_of(split_map_png({VALIDATION: []}, []), SPLIT_COLOURS[VALIDATION])
    assert legend == 0, "a split without chips has no mark"
    # a mark of 6 points in the legend, and the chip of at least 2 x 2 pixels
    alone = pixels_of(png, SPLIT_COLOURS[VALIDATION])
    assert alone >= 8 * 8 + 4


@pytest.mark.parametrize(
    "shares", [{TRAIN: 1}, {TRAIN: 20, VALIDATION: 6, TEST: 6, "rejected": 4}, {TRAIN: 5000}], ids=str
)
def test_chips_are_where_they_are_on_the_map_and_the_legend_is_beside_it(shares: dict[str, int]) -> None:
    chips, rejected = split_map(shares)
    figure = figure_of(split_map_png, chips, rejected)
    (axes,) = figure.axes
    (legend,) = figure.legends
    assert not legend.get_window_extent().overlaps(axes.get_window_extent())
    shown: Any = np.concatenate([marks.get_offsets() for marks in axes.collections])
    ids = [chip for some in (*chips.values(), rejected) for chip in some]
    middles = {
        (-2356095 + 6720 * (int(chip.split("_")[2]) + 0.5), 3172605 - 6720 * (int(chip.split("_")[1]) + 0.5))
        for chip in ids
    }
    assert {tuple(place) for place in shown.tolist()} == middles
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    assert all(
        left <= x - 3360 and x + 3360 <= right and bottom <= y - 3360 and y + 3360 <= top for x, y in middles
    )
    assert right - left >= 10 * 6720


@pytest.mark.parametrize("values", [[12345], [-300, 500, 900, 12000], list(range(0, 32000, 7))], ids=len)
def test_the_labels_of_band_histograms_stay_apart(values: list[int]) -> None:
    counts = np.zeros((3, 6, 65536), np.int64)
    counts[:, :, np.array(values) + 32768] = 1
    title = "train and validation and test: 5,000 chips of 2022"
    assert any(text.startswith(title) for text in texts_of(figure_of(band_histograms_png, counts, title)))
