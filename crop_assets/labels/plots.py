"""Charts of class shares and maps of the chosen chips, as PNG."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray

from crop_assets.chip_grid import CHIP_METRES, ORIGIN_X, ORIGIN_Y
from crop_assets.classes import CLASS_COLOURS, CLASS_COLUMNS, CLASSES
from crop_assets.figures import counted, kilometres, png, whole_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

_BEHIND_LABEL = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
_CHOICE_COLOURS = ("#b8bec6", "#4c78a8", "#f2a541", "#7b9e6b")


@png
def class_histogram_png(counts: NDArray[np.int64], title: str = "") -> "Figure":
    """A bar chart of the share of each class, as PNG.

    `counts`, [14], are the pixels per class; class 0 is left out.
    """
    from matplotlib.figure import Figure

    shares = _percents(counts)
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title)
    bars = axes.bar(CLASSES[1:], shares, color=CLASS_COLOURS[1:], edgecolor="#333333", linewidth=0.5)
    axes.bar_label(bars, fmt="%.1f", fontsize=8)
    axes.margins(y=0.1)
    axes.set_ylabel("share of pixels, %")
    axes.tick_params(axis="x", labelrotation=40, labelsize=8)
    for label in axes.get_xticklabels():
        label.set_horizontalalignment("right")
    return figure


@png
def label_quality_png(labels: pd.DataFrame) -> "Figure":
    """Histograms of the purity of chips and, where it is known, of their mean confidence, side by side, as PNG.

    `labels` has purity_percent and confidence_percent. Bins are 2 percent wide; lines mark the means.
    """
    from matplotlib.figure import Figure

    names = {"purity_percent": "purity", "confidence_percent": "mean confidence"}
    known = {name: values for name in names if len(values := labels[name].dropna())}
    figure = Figure(figsize=(max(len(known), 1) * 5, 3.5), layout="constrained")
    panels = figure.subplots(1, max(len(known), 1), squeeze=False)[0]
    for axes, (name, values) in zip(panels, known.items(), strict=False):
        axes.hist(
            values, bins=np.arange(0, 102, 2).tolist(), color="#4c78a8", edgecolor="white", linewidth=0.3
        )
        mean = float(values.mean())
        axes.axvline(mean, color="#d62728", linewidth=1.5)
        axes.set_title(f"{names[name]}: {mean:.1f} % on average, {counted(len(values), 'chip')}", fontsize=10)
        axes.set_xlim(0, 100)
        axes.set_xlabel(f"{names[name]} of a chip, %")
        axes.set_ylabel("chips")
        whole_numbers(axes.yaxis)
    return figure


@png
def choices_png(choices: Mapping[str, NDArray[np.int64]], target: Sequence[float]) -> "Figure":
    """A bar chart of the class shares of several choices of chips, side by side, with marks at the target.

    `choices` has the pixels per class, [14], of each choice by its name; class 0 is left out.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(CLASSES) - 1)
    width = 0.8 / len(choices)
    for number, (name, counts) in enumerate(choices.items()):
        shares = _percents(counts)
        bars = axes.bar(
            places + (number + 0.5) * width - 0.4, shares, width, color=_CHOICE_COLOURS[number], label=name
        )
        labels = [f"{share:.0f}" if share else "" for share in shares]
        # upright, because "100" is wider than a bar, and in front of the mark at the target
        axes.bar_label(bars, labels=labels, fontsize=7, padding=2, rotation=90, zorder=3, bbox=_BEHIND_LABEL)
    axes.margins(y=0.15)
    wanted = [100 * share for share in target]
    axes.hlines(wanted, places - 0.45, places + 0.45, colors="#d62728", linewidths=1.5, label="target")
    axes.set_xticks(places, CLASSES[1:], rotation=40, fontsize=8, ha="right")
    axes.set_ylabel("share of pixels, %")
    # inside the axes, matplotlib searches for the best position, and warns if that takes over a second
    figure.legend(fontsize=8, ncols=len(choices) + 1, loc="outside upper center")
    return figure


@png
def choice_maps_png(choices: Mapping[str, gpd.GeoDataFrame], landscape: pd.DataFrame) -> "Figure":
    """Maps in EPSG:5070, side by side, of the chips of several choices on top of all boxes.

    A chip has the colour of its largest class. `choices` are frames of chip boxes by name; `landscape` has `row`, `col`
    and `class_0` of all boxes, and those without no-data pixels are grey.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6 * len(choices), 4.8), layout="constrained")
    rows, cols = landscape["row"].to_numpy(), landscape["col"].to_numpy()
    held = np.zeros((rows.max() - rows.min() + 1, cols.max() - cols.min() + 1))
    held[rows - rows.min(), cols - cols.min()] = 0.12 * (landscape["class_0"] == 0)
    left, right = (ORIGIN_X + CHIP_METRES * int(col) for col in (cols.min(), cols.max() + 1))
    top, bottom = (ORIGIN_Y - CHIP_METRES * int(row) for row in (rows.min(), rows.max() + 1))
    shown: set[int] = set()
    panels = figure.subplots(1, len(choices), squeeze=False)[0]
    for axes, (name, boxes) in zip(panels, choices.items(), strict=True):
        axes.imshow(held, cmap="Greys", vmin=0, vmax=1, extent=(left, right, bottom, top))
        shown.update(_draw_chips(axes, boxes).tolist())
        kilometres(axes)
        axes.set_title(f"{name}: {counted(len(boxes), 'chip')}", fontsize=10)
    if shown:
        title = "largest class of a chosen chip; boxes that are not chosen are grey (EPSG:5070, km)"
        handles = _class_patches(shown)
        figure.legend(
            handles=handles,
            title=title,
            title_fontsize=8,
            fontsize=7,
            ncols=3 * len(choices) + 1,
            loc="outside lower center",
        )
    return figure


@png
def chip_map_png(boxes: gpd.GeoDataFrame, tiles: gpd.GeoDataFrame) -> "Figure":
    """A map in EPSG:5070 of chip boxes, coloured by their largest class, on tile outlines, as PNG.

    `boxes` is a frame of chip boxes; `tiles` is any frame of polygons with a CRS, such as the rows
    of the tile grid with the tiles of these boxes.
    """
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6.5), layout="constrained")
    axes = figure.add_subplot()
    outlines = [shapely.get_coordinates(shape) for shape in tiles.geometry.to_crs(5070)]
    axes.add_collection(LineCollection(outlines, colors="#9aa5b1", linewidths=0.4))
    largest = _draw_chips(axes, boxes)
    axes.autoscale_view()
    kilometres(axes)
    axes.set_title(
        f"{counted(len(boxes), 'chip')}, {counted(len(tiles), 'tile')} (EPSG:5070, km)", fontsize=10
    )
    if len(largest):
        handles = _class_patches(set(largest.tolist()))
        # not over chips
        figure.legend(
            handles=handles, fontsize=8, loc="outside right upper", title="largest class", title_fontsize=8
        )
    return figure


def _percents(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Shares of classes 1 to 13 in percent, from the pixels per class, [14]; class 0 does not count."""
    return 100 * counts[1:] / max(int(counts[1:].sum()), 1)


def _draw_chips(axes: "Axes", boxes: gpd.GeoDataFrame) -> NDArray[np.intp]:
    """Draw the squares in the colour of their largest class, and return these classes: [n], 1 to 13."""
    from matplotlib.collections import PolyCollection

    counts = boxes[CLASS_COLUMNS[1:]].to_numpy()
    largest = counts.argmax(axis=1) + 1 if len(counts) else np.empty(0, np.intp)
    colours = [CLASS_COLOURS[value] for value in largest]
    squares = [shapely.get_coordinates(shape) for shape in boxes.geometry]
    # an edge of the same colour keeps a chip visible if it is smaller than a pixel of the picture
    axes.add_collection(PolyCollection(squares, facecolors=colours, edgecolors=colours, linewidths=1.2))
    return largest


def _class_patches(values: set[int]) -> "list[Patch]":
    """Legend entries of these classes."""
    from matplotlib.patches import Patch

    return [Patch(color=CLASS_COLOURS[value], label=CLASSES[value]) for value in sorted(values)]
