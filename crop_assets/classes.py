"""The 13 crop classes: their names, colours and columns, and the class of each CDL code."""

import numpy as np
from numpy.typing import NDArray

from crop_assets.errors import InputError

UNKNOWN = 255
"""What `lookup_table` holds for a code that has no class, such as 40, which the CDL's palette has and no legend."""

UNKNOWN_CODES = {"refuse": UNKNOWN, "other": 13, "nodata": 0}
"""What the recipe's `unknown_codes` makes of these codes."""

UNKNOWN_ADVICE = (
    "check that the raster is an unaltered CDL release; if it is, unknown_codes in the recipe makes such pixels "
    "'other' or 'nodata'"
)

CLASSES = (
    "No Data",
    "Natural Vegetation",
    "Forest",
    "Corn",
    "Soybeans",
    "Wetlands",
    "Developed/Barren",
    "Open Water",
    "Winter Wheat",
    "Alfalfa",
    "Fallow/Idle Cropland",
    "Cotton",
    "Sorghum",
    "Other",
)
"""Names of the classes by value, 0 to 13, as the specification gives them."""

CLASS_COLUMNS = [f"class_{value}" for value in range(len(CLASSES))]
"""Columns of tables that hold the pixels of each class, class_0 to class_13."""

CLASS_COLOURS = (
    "#000000",
    "#c3d69b",
    "#1b6b3a",
    "#ffd400",
    "#5fbf2f",
    "#6fb7a7",
    "#8c8c8c",
    "#2b6cd4",
    "#a87000",
    "#e86fb7",
    "#c99a6b",
    "#e5262b",
    "#ff8c1a",
    "#7a3fa0",
)
"""Colours by class value, 0 to 13: what matplotlib and HTML take."""

_CODES: dict[int, tuple[int, ...]] = {
    0: (0,),
    1: (37, 152, 176),
    2: (141, 142, 143),
    3: (1,),
    4: (5,),
    5: (190, 195),
    6: (121, 122, 123, 124, 131),
    7: (111,),
    8: (24,),
    9: (36,),
    10: (61,),
    11: (2,),
    12: (4,),
    13: (
        *(3, 6, 10, 11, 12, 13, 14),
        *(21, 22, 23, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 38, 39),
        *range(41, 61),
        *range(62, 73),
        *(74, 75, 76, 77, 81, 82, 83, 87, 88, 92, 112),
        *range(204, 251),
        254,
    ),
}

CDL_CLASSES = {code: value for value, codes in _CODES.items() for code in codes}
"""Class of each CDL code.

Codes 1 to 254 follow the published dataset's table, which sends everything without a class of its
own to 13, the pre-2008 land covers 62 to 88 included. Code 0, the CDL's background, is class 0.
"""


def lookup_table(nodata: float | None = None, unknown_codes: str = "refuse") -> NDArray[np.uint8]:
    """Class by CDL code: uint8[256]; 0 for `nodata`, a raster's tag; by `unknown_codes` where the CDL has no such code,
    which under 'refuse' is `UNKNOWN` (255).
    """
    table = np.full(256, UNKNOWN_CODES[unknown_codes], np.uint8)
    table[list(CDL_CLASSES)] = list(CDL_CLASSES.values())
    # GDAL tags any number, such as -9999
    if nodata is not None and nodata in range(256):
        table[int(nodata)] = 0
    return table


def reclassify(codes: NDArray[np.uint8], source: str, table: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The class of each CDL code by a `lookup_table`: uint8 0 to 13, in the shape of `codes`.

    `source` says in an error where the codes are from. Raises InputError for a code without a class, with the code,
    how often it occurs and the first place of it.
    """
    classes: NDArray[np.uint8] = table[codes]
    unknown = classes == UNKNOWN
    if unknown.any():
        first = tuple(int(i) for i in np.argwhere(unknown)[0])
        raise InputError(
            f"{source}: CDL code {codes[first]} at (row, column) {first} has no class "
            f"({np.count_nonzero(unknown)} pixels hold such codes: "
            f"{', '.join(map(str, np.unique(codes[unknown])))}); {UNKNOWN_ADVICE}"
        )
    return classes


def class_colormap() -> dict[int, tuple[int, int, int, int]]:
    """RGBA, 0 to 255, by class value: what rasterio's `write_colormap` takes."""
    rgb = (bytes.fromhex(colour.removeprefix("#")) for colour in CLASS_COLOURS)
    return {value: (red, green, blue, 255) for value, (red, green, blue) in enumerate(rgb)}
