"""Pictures of chips.

Belongs here: rendering chips to PNG. Does not: charts (`crop_assets.dataset.plots`) or maps
(`crop_assets.labels.plots`).
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from crop_assets.chips.clip import Chip
from crop_assets.chips.warp import NODATA
from crop_assets.drawing import png
from crop_assets.labels.classes import CLASSES, class_colormap
from crop_assets.recipe import REFLECTANCE_BANDS

_RED_GREEN_BLUE = (2, 1, 0)
# reflectance x 10,000 that shows as full brightness: bright soil, below clouds
_WHITE = 3000


@png
def chip_png(chip: Chip, chip_id: str, dates: Sequence[str]) -> Figure:
    """The three dates of a chip in natural colour beside its mask, as a PNG of some 900 x 250 pixels."""
    figure = Figure(figsize=(11.5, 3.0), dpi=80, layout="constrained")
    panels = figure.subplots(1, len(dates) + 1)
    for at, (panel, date) in enumerate(zip(panels[:-1], dates, strict=True)):
        bands = [chip.image[at * len(REFLECTANCE_BANDS) + band] for band in _RED_GREEN_BLUE]
        picture = np.dstack(bands).astype(float)
        picture[picture == NODATA] = 0
        panel.imshow(np.clip(picture / _WHITE, 0, 1), interpolation="nearest")
        panel.set_title(str(date))
    colours = [np.array(class_colormap()[c][:3]) / 255 for c in range(len(CLASSES))]
    panels[-1].imshow(
        chip.mask, cmap=ListedColormap(colours), vmin=-0.5, vmax=len(CLASSES) - 0.5, interpolation="nearest"
    )
    panels[-1].set_title("classes")
    present = np.unique(chip.mask)
    handles = [panels[-1].plot([], [], "s", color=colours[c], label=CLASSES[c])[0] for c in present]
    figure.legend(handles=handles, loc="outside right center", fontsize=7)
    figure.suptitle(chip_id)
    for panel in panels:
        panel.set_axis_off()
    return figure
