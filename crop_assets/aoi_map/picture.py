"""Renders chip boxes as Web Mercator map tiles of 256 x 256 pixels."""

import io
import math

import numpy as np
import pandas as pd
import pyproj
from numpy.typing import NDArray
from PIL import Image

from crop_assets.chip_grid import CHIP_METRES, GRID_COLS, GRID_ROWS, ORIGIN_X, ORIGIN_Y

MIN_ZOOM, MAX_ZOOM = 3, 18
CHOSEN_COLOUR = "#c2187a"

_SIDE = 256
_NODES = 33
"""Points along each side of a map tile that are projected; the rest is interpolated, with an error below a tenth of a
pixel at zoom 3."""
_MERCATOR_METRES = 2 * math.pi * 6378137.0
_FEW, _SOME, _MANY = (np.array(colour) for colour in ((244, 238, 190), (104, 184, 146), (13, 76, 98)))
_OPAQUE = 165
_MIN_OUTLINED_SIDE = 6.0
"""Boxes with sides of at least this many pixels have outlines."""


def class_colours() -> list[str]:
    """CSS colours of boxes with 1 to 13 classes, light to dark."""
    return ["#" + "".join(f"{part:02x}" for part in colour) for colour in _palette()[1:14].tolist()]


class ChipPicture:
    """Draws map tiles of chip boxes, coloured by their number of classes; chosen ones are outlined."""

    def __init__(self, boxes: pd.DataFrame, chosen: pd.DataFrame | None) -> None:
        """`boxes` and `chosen` are frames of chip boxes with row, col and classes."""
        self._palette = _palette()
        # a border of empty cells stands for everything off the grid
        self._cells = np.zeros((GRID_ROWS + 2, GRID_COLS + 2), dtype=np.uint8)
        # a box with 0 classes is shown too
        self._cells[boxes["row"] + 1, boxes["col"] + 1] = np.maximum(boxes["classes"], 1)
        self._chosen = np.zeros(self._cells.shape, dtype=bool)
        if chosen is not None:
            self._chosen[chosen["row"] + 1, chosen["col"] + 1] = True
        self._to_conus = pyproj.Transformer.from_crs(3857, 5070, always_xy=True)

    def png(self, zoom: int, x: int, y: int) -> bytes:
        """The map tile at column `x` and row `y` from the upper left; `zoom` is from `MIN_ZOOM` to `MAX_ZOOM`."""
        east, south, side = self._grid_coordinates(zoom, x, y)
        col, row = (np.floor(coordinates).astype(np.int64) for coordinates in (east, south))
        cell = np.clip(row, -1, GRID_ROWS) + 1, np.clip(col, -1, GRID_COLS) + 1
        classes, chosen = self._cells[cell], self._chosen[cell]
        pixels = np.empty((_SIDE, _SIDE, 4), dtype=np.uint8)
        pixels[..., :3] = self._palette[classes]
        opacity = np.where(classes > 0, float(_OPAQUE), 0.0)
        if side < _MIN_OUTLINED_SIDE:
            pixels[chosen, :3] = _rgb(CHOSEN_COLOUR)
            opacity[chosen] = 255
        else:
            # distance to the nearest edge of the box, in pixels
            edge = side * np.minimum(0.5 - abs(east - col - 0.5), 0.5 - abs(south - row - 0.5))
            opacity *= np.clip(edge + 0.4, 0.35, 1)
            outline = chosen & (edge < np.clip(side / 7, 1.5, 4))
            pixels[outline, :3] = _rgb(CHOSEN_COLOUR)
            opacity[outline] = 255
        pixels[..., 3] = opacity
        file = io.BytesIO()
        Image.fromarray(pixels, "RGBA").save(file, "PNG", compress_level=1)
        return file.getvalue()

    def _grid_coordinates(
        self, zoom: int, x: int, y: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
        """Column and row on the chip grid of each pixel's centre, float64[256, 256], and a box's side in pixels."""
        nodes = np.linspace(0, 1, _NODES)
        east, south = np.meshgrid((x + nodes) / 2**zoom - 0.5, (y + nodes) / 2**zoom - 0.5)
        conus = self._to_conus.transform(east * _MERCATOR_METRES, -south * _MERCATOR_METRES)
        # coordinates outside the projection are far off the grid
        conus_x, conus_y = (np.nan_to_num(part, posinf=1e9) for part in conus)
        positions = (np.arange(_SIDE) + 0.5) / _SIDE * (_NODES - 1)
        weights = np.maximum(0, 1 - abs(positions[:, None] - np.arange(_NODES)))
        cols = weights @ ((conus_x - ORIGIN_X) / CHIP_METRES) @ weights.T
        rows = weights @ ((ORIGIN_Y - conus_y) / CHIP_METRES) @ weights.T
        middle = _SIDE // 2
        step = math.hypot(
            cols[middle, middle] - cols[middle, middle - 1], rows[middle, middle] - rows[middle, middle - 1]
        )
        return cols, rows, 1 / step if step else math.inf


def _palette() -> NDArray[np.uint8]:
    """The colour for each number of classes, uint8[256, 3]; 0 stands for no box, and is transparent."""
    share = np.clip((np.arange(256) - 1) / 12, 0, 1)[:, None]
    first, second = np.minimum(2 * share, 1), np.maximum(2 * share - 1, 0)
    colours = _FEW + (_SOME - _FEW) * first + (_MANY - _SOME) * second
    palette: NDArray[np.uint8] = np.rint(colours).astype(np.uint8)
    return palette


def _rgb(colour: str) -> list[int]:
    return list(bytes.fromhex(colour[1:]))
