"""Renders matplotlib figures as PNG, the same on any machine.

Matplotlib is imported only when something is drawn: the import takes a second, and most runs draw nothing.
"""

import functools
import io
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, ParamSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

_Parameters = ParamSpec("_Parameters")
# all threads share matplotlib's style
_STYLE = threading.RLock()


def png(draw: Callable[_Parameters, "Figure"]) -> Callable[_Parameters, bytes]:
    """Decorator: the function draws a figure, and the decorated function returns it as PNG, ignoring matplotlibrc.

    The same figure gives the same bytes: the file contains neither software nor time.
    """

    @functools.wraps(draw)
    def drawn(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> bytes:
        import matplotlib.style

        out = io.BytesIO()
        with _STYLE, matplotlib.style.context("default"):
            draw(*args, **kwargs).savefig(out, format="png", metadata={"Software": None})
        return out.getvalue()

    return drawn


def kilometres(axes: "Axes") -> None:
    """Make axes in metres a map with both scales alike, labelled in kilometres."""
    axes.set_aspect("equal")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value / 1000:,.6g}")
    axes.tick_params(labelsize=8)


def whole_numbers(axis: "Axis") -> None:
    """Mark an axis of counts at a few whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(5, integer=True))
    axis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def counted(count: int, thing: str) -> str:
    """The number of things in words, such as "1 chip" and "5,000 chips"."""
    return f"{count:,} {thing}" + ("" if count == 1 else "s")
