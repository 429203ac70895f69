"""The 13 crop classes: their names, colours and columns, and the class of each CDL code."""

import numpy as np
from numpy.typing import NDArray

from crop_assets.errors import InputError

UNKNOWN = 255
"""The class in `lookup_table` of codes without a class, such as 40, which is in the CDL's palette but in no legend."""

UNKNOWN_CODES = {"refuse": UNKNOWN, "other": 13, "nodata": 0}
"""The class of these codes for each value of the recipe's `unknown_codes`."""

UNKNOWN_ADVICE = (
    "check that the raster is an unmodified CDL release; if it is, set unknown_codes in the recipe to turn such pixels "
    "into 'other' or 'nodata'"
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
"""Names of the classes by value, 0 to 13, from the specification."""

CLASS_COLUMNS = [f"class_{value}" for value in range(len(CLASSES))]
"""Columns of tables with the pixels of each class, class_0 to class_13."""

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
"""Colours by class value, 0 to 13, for matplotlib and HTML."""

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

Codes 1 to 254 follow the table of the published dataset, where everything without its own class is in class 13,
including the pre-2008 land covers 62 to 88. Code 0, the CDL's background, is class 0.
"""


def lookup_table(nodata: float | None = None, unknown_codes: str = "refuse") -> NDArray[np.uint8]:
    """Class by CDL code: uint8[256]. It is 0 for `nodata`, the raster's nodata value, and given by `unknown_codes` for
    codes that the CDL does not have (`UNKNOWN`, 255, for 'refuse').
    """
    table = np.full(256, UNKNOWN_CODES[unknown_codes], np.uint8)
    table[list(CDL_CLASSES)] = list(CDL_CLASSES.values())
    # GDAL allows any number, such as -9999
    if nodata is not None and nodata in range(256):
        table[int(nodata)] = 0
    return table


def reclassify(codes: NDArray[np.uint8], source: str, table: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The class of each CDL code by a `lookup_table`: uint8 0 to 13, in the shape of `codes`.

    `source` describes the origin of the codes in errors. Raises InputError for a code without a class; the message has
    the code, its number of pixels and its first position.
    """
    classes: NDArray[np.uint8] = table[codes]
    unknown = classes == UNKNOWN
    if unknown.any():
        first = tuple(int(i) for i in np.argwhere(unknown)[0])
        raise InputError(
            f"{source}: CDL code {codes[first]} at (row, column) {first} has no class "
            f"({np.count_nonzero(unknown)} pixels have such codes: "
            f"{', '.join(map(str, np.unique(codes[unknown])))}); {UNKNOWN_ADVICE}"
        )
    return classes


def class_colormap() -> dict[int, tuple[int, int, int, int]]:
    """RGBA, 0 to 255, by class value, for rasterio's `write_colormap`."""
    rgb = (bytes.fromhex(colour.removeprefix("#")) for colour in CLASS_COLOURS)
    return {value: (red, green, blue, 255) for value, (red, green, blue) in enumerate(rgb)}
