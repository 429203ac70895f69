"""Where the texts of a picture are drawn."""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import matplotlib.style
import pytest
import shapely
import shapely.affinity
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import ImageDraw

_ROUNDING = 1.0
"""Pixels by which a text may reach into another, because extents are whole pixels."""


def figure_of(drawing: Callable[..., bytes], *args: Any) -> Figure:
    """The figure that a function with the decorator `png` draws, laid out."""
    with matplotlib.style.context("default"):
        figure: Figure = drawing.__wrapped__(*args)  # type: ignore[attr-defined]
        figure.draw_without_rendering()
    return figure


def texts_of(figure: Figure) -> dict[str, shapely.Polygon]:
    """The rectangle of each text in pixels; texts that occur more than once are numbered. Raises AssertionError if a
    text runs out of the figure or into another.
    """
    drawn: list[Text] = []
    draw = Text.draw

    def recorded(text: Text, *args: Any, **kwargs: Any) -> None:
        drawn.append(text)
        draw(text, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, matplotlib.style.context("default"):
        # labels of ticks beyond an axis are there, but are not drawn
        patch.setattr(Text, "draw", recorded)
        figure.draw_without_rendering()
        found = {}
        for text in drawn:
            if text.get_visible() and text.get_text().strip():
                found[f"{text.get_text()} #{len(found)}"] = _rectangle(text)
    inside = shapely.box(*figure.bbox.extents).buffer(_ROUNDING)
    for name, rectangle in found.items():
        assert inside.covers(rectangle), f"{name} runs out of the figure"
    for (one, here), (other, there) in itertools.combinations(found.items(), 2):
        assert not here.buffer(-_ROUNDING).intersects(there.buffer(-_ROUNDING)), f"{one} is over {other}"
    assert found
    return found


def _rectangle(text: Text) -> shapely.Polygon:
    """The rectangle of a text, turned as it is."""
    around = text.get_window_extent()
    angle = text.get_rotation()
    text.set_rotation(0)
    level = text.get_window_extent()
    text.set_rotation(angle)
    (x, y), width, height = (around.min + around.max) / 2, level.width, level.height
    box = shapely.box(x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    return shapely.affinity.rotate(box, angle, origin=(x, y))


@contextlib.contextmanager
def recorded_texts() -> Iterator[list[tuple[str, tuple[float, float, float, float], tuple[int, int]]]]:
    """The texts that Pillow draws meanwhile: their words, their edges (left, top, right, bottom), and the size of the
    picture.
    """
    found: list[tuple[str, tuple[float, float, float, float], tuple[int, int]]] = []
    draw = ImageDraw.ImageDraw.text

    def recorded(
        self: ImageDraw.ImageDraw, xy: Any, text: str, fill: Any, font: Any, anchor: str | None = None
    ) -> None:
        found.append((text, self.textbbox(xy, text, font, anchor), self.im.size))
        draw(self, xy, text, fill, font, anchor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageDraw.ImageDraw, "text", recorded)
        yield found
