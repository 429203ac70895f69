"""A chart of the yield funnel, as PNG."""

from typing import TYPE_CHECKING

import pandas as pd

from crop_assets.figures import png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BAR = "#4c78a8"


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
