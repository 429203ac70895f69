"""How every chart and picture of the project is drawn, the same on any machine.

Matplotlib is imported when something is drawn: it takes a second of the start of each run, and most draw nothing.

Belongs here: what makes a figure a PNG. Does not: any chart.
"""

import functools
import io
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, ParamSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_Parameters = ParamSpec("_Parameters")
# matplotlib's style is one for all threads
_STYLE = threading.RLock()


def png(draw: Callable[_Parameters, "Figure"]) -> Callable[_Parameters, bytes]:
    """Make a function that draws a figure one that returns it as PNG, whatever the user's matplotlibrc says.

    The same figure gives the same bytes: the file names no software and no time.
    """

    @functools.wraps(draw)
    def drawn(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> bytes:
        import matplotlib.style

        out = io.BytesIO()
        with _STYLE, matplotlib.style.context("default"):
            draw(*args, **kwargs).savefig(out, format="png", metadata={"Software": None})
        return out.getvalue()

    return drawn
