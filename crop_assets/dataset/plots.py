"""Charts of the yield funnel and of band values, as PNG."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from crop_assets.dataset.statistics import Counts, percentile
from crop_assets.figures import png
from crop_assets.hls import POSITIONS, REFLECTANCE_BANDS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BAR = "#4c78a8"
_VALUES = np.arange(-32768, 32768)


@png
def funnel_png(funnel: pd.DataFrame) -> "Figure":
    """The steps from chip boxes to kept chips, one bar per step."""
    from matplotlib.figure import Figure

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
    return figure


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
        edges = np.linspace(low, max(high, low + 1), _BINS + 1)
        for position, of_date in zip(POSITIONS, of_band, strict=True):
            shares, _ = np.histogram(_VALUES, edges, weights=of_date / max(1, of_date.sum()))
            axes.stairs(shares * 100, edges, label=position)
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.ticklabel_format(style="plain", axis="x")
    figure.axes[0].legend(fontsize=7)
    figure.suptitle(title, fontsize=10)
    figure.supxlabel("reflectance x 10,000", fontsize=8)
    figure.supylabel("percent of pixels", fontsize=8)
    return figure
