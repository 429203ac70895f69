"""Charts of the yield funnel and of band values, and a map of the splits, as PNG."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from crop_assets.chip_grid import CHIP_METRES, ORIGIN_X, ORIGIN_Y, chip_position
from crop_assets.dataset.splits import TEST, TRAIN, VALIDATION
from crop_assets.dataset.statistics import Counts, percentile
from crop_assets.figures import kilometres, png, whole_numbers
from crop_assets.hls import POSITIONS, REFLECTANCE_BANDS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BAR = "#4c78a8"
_VALUES = np.arange(-32768, 32768)
_WHY_WIDTH = 46
"""Characters of a line of the reasons beside the funnel."""
_NOT_IN_DATASET = "not in the dataset"
SPLIT_COLOURS = {TRAIN: "#0072b2", VALIDATION: "#e69f00", TEST: "#cc79a7"}
"""Of the palette by Okabe and Ito, which colour-blind people can distinguish."""
REJECTED_COLOUR = "#999999"
_MIN_EXTENT = 12 * CHIP_METRES
_MIN_CHIP_POINTS = 2.5
"""Smallest side of a chip on the map of the splits: on a map of the contiguous US, a chip would be half a point."""


@png
def funnel_png(funnel: pd.DataFrame) -> "Figure":
    """The steps from chip boxes to kept chips, one bar per step, and beside them the chips lost and why."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.42 * len(funnel) + 0.7), dpi=80, layout="constrained")
    axes, beside = figure.subplots(1, 2, width_ratios=(3, 2), sharey=True)
    steps = funnel.iloc[::-1]
    places = np.arange(len(steps))
    bars = axes.barh(places, steps["chips"], color=_BAR)
    axes.bar_label(bars, labels=[f"{chips:,}" for chips in steps["chips"]], padding=3, fontsize=8)
    axes.set_yticks(
        places, [_lines(step, _WHY_WIDTH // 2) for step in steps["step"]], fontsize=8, parse_math=False
    )
    axes.set_xlim(0, max(int(funnel["chips"].max()), 1) * 1.2)
    whole_numbers(axes.xaxis)
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlabel("chips", fontsize=8)
    beside.set_axis_off()
    for place, lost, why in zip(places, steps["lost"], steps["why"], strict=True):
        if lost:
            words = _lines(f"\N{MINUS SIGN}{lost:,}: {why}", _WHY_WIDTH)
            beside.text(0, place, words, fontsize=8, va="center", parse_math=False)
    return figure


@png
def split_map_png(chips: Mapping[str, Sequence[str]], rejected: Sequence[str]) -> "Figure":
    """A map in EPSG:5070 of the chips of each split, by their ids; those that are not in the dataset are outlined."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(10, 6.5), layout="constrained")
    axes = figure.add_subplot()
    kilometres(axes)
    corners = {name: _corners(ids) for name, ids in (*chips.items(), (_NOT_IN_DATASET, rejected)) if len(ids)}
    together = np.concatenate(list(corners.values())) if corners else np.zeros((1, 2))
    low, high = together.min(axis=0), together.max(axis=0) + CHIP_METRES
    middle, half = (low + high) / 2, np.maximum(high - low, _MIN_EXTENT) / 2 * 1.04
    axes.set_xlim(middle[0] - half[0], middle[0] + half[0])
    axes.set_ylim(middle[1] - half[1], middle[1] + half[1])
    axes.set_title("chips by split (EPSG:5070, km)", fontsize=10)
    # the size of a chip on the map is known once the figure is laid out, with its legend
    drawn = [name for name in (*SPLIT_COLOURS, _NOT_IN_DATASET) if name in corners]
    colours = {name: SPLIT_COLOURS.get(name, REJECTED_COLOUR) for name in drawn}
    faces = {**colours, _NOT_IN_DATASET: "none"}
    handles = [
        Line2D(
            [],
            [],
            marker="s",
            ls="",
            mfc=faces[name],
            mec=colours[name],
            label=f"{name}: {len(corners[name]):,}",
        )
        for name in drawn
    ]
    figure.legend(handles=handles, fontsize=8, ncols=len(handles), loc="outside lower center")
    figure.draw_without_rendering()
    metres_wide = float(np.diff(axes.get_xlim())[0])
    side = 72 / figure.dpi * CHIP_METRES * axes.bbox.width / metres_wide
    for name in reversed(drawn):
        x, y = (corners[name] + CHIP_METRES / 2).T
        edge = "white" if name in SPLIT_COLOURS and side > 3 * _MIN_CHIP_POINTS else colours[name]
        area = max(side, _MIN_CHIP_POINTS) ** 2
        axes.scatter(x, y, area, marker="s", facecolors=faces[name], edgecolors=edge, linewidths=0.5)
    return figure


def _lines(text: str, width: int) -> str:
    """The text on up to two lines of so many characters."""
    return "\n".join(textwrap.wrap(text, width, max_lines=2, placeholder="…"))


def _corners(chip_ids: Sequence[str]) -> NDArray[np.float64]:
    """The lower left corners of chips in EPSG:5070, (n, 2)."""
    places = np.array([chip_position(chip) for chip in chip_ids], np.float64).reshape(-1, 2)
    return np.column_stack(
        [ORIGIN_X + CHIP_METRES * places[:, 1], ORIGIN_Y - CHIP_METRES * (places[:, 0] + 1)]
    )


_BINS = 80
_SHOWN_PERCENT = 0.5
"""Share of the values left out at either end of the axis; a few bright pixels would make it ten times as long."""


@png
def band_histograms_png(counts: Counts, title: str) -> "Figure":
    """How values of each band are distributed, a line per date. `counts` is int64 (3 dates, 6 bands, 65536)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), dpi=80, layout="constrained")
    for band, (name, axes) in enumerate(zip(REFLECTANCE_BANDS, figure.subplots(2, 3).flat, strict=True)):
        of_band = counts[:, band]
        together = of_band.sum(axis=0)
        low, high = (percentile(together, percent) for percent in (_SHOWN_PERCENT, 100 - _SHOWN_PERCENT))
        # not narrower than a bin for each value
        edges = np.linspace(low, max(high, low + _BINS), _BINS + 1)
        for position, of_date in zip(POSITIONS, of_band, strict=True):
            shares, _ = np.histogram(_VALUES, edges, weights=of_date / max(1, of_date.sum()))
            axes.stairs(shares * 100, edges, label=position)
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.set_ylim(bottom=0)
        whole_numbers(axes.xaxis)
    lines, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(lines, names, fontsize=7, loc="outside upper right", ncols=len(names))
    figure.suptitle(title, fontsize=10)
    figure.supxlabel("reflectance x 10,000", fontsize=8)
    figure.supylabel("percent of pixels", fontsize=8)
    return figure
