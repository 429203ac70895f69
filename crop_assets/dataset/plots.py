"""Charts of a dataset.

Belongs here: class distributions and the yield funnel as PNG. Does not: counting.
"""

import io
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from crop_assets.labels.classes import CLASSES, class_colormap

_BAR = "#4c78a8"


def class_distribution_png(pixels: Sequence[int], title: str) -> bytes:
    """Share of each of the 13 classes in percent of the classified pixels, one bar a class in its colour."""
    counts = np.asarray(pixels[1:], dtype=float)
    shares = counts / max(counts.sum(), 1) * 100
    colours = [tuple(value / 255 for value in class_colormap()[c][:3]) for c in range(1, len(CLASSES))]
    figure = Figure(figsize=(9, 4.5), dpi=80, layout="constrained")
    axes = figure.subplots()
    bars = axes.bar(CLASSES[1:], shares, color=colours, edgecolor="black", linewidth=0.4)
    axes.bar_label(bars, fmt="%.1f", fontsize=8)
    axes.set_ylabel("share of pixels (%)")
    axes.set_title(title)
    axes.tick_params(axis="x", rotation=40)
    for label in axes.get_xticklabels():
        label.set_horizontalalignment("right")
    return _png(figure)


def funnel_png(funnel: pd.DataFrame) -> bytes:
    """The steps from chip boxes to kept chips, one bar a step."""
    figure = Figure(figsize=(8, 3), dpi=80, layout="constrained")
    axes = figure.subplots()
    steps = funnel.iloc[::-1]
    bars = axes.barh(steps["step"], steps["chips"], color=_BAR)
    labels = [
        f"{chips}" + (f"  (-{lost}: {why})" if lost else "")
        for chips, lost, why in zip(steps["chips"], steps["lost"], steps["why"], strict=True)
    ]
    axes.bar_label(bars, labels=labels, padding=3, fontsize=8)
    axes.set_xlim(0, max(int(funnel["chips"].max()), 1) * 1.6)
    axes.set_xlabel("chips")
    return _png(figure)


def _png(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()
