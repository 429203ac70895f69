"""The names of all files of a dataset, relative to the store's root.

Names from outside, such as scene ids, are checked so that they cannot lead to other paths.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from crop_assets.chip_grid import is_chip_id
from crop_assets.errors import InputError
from crop_assets.hls import TILE, file_band, is_scene_id, is_tile

_BAND = re.compile(r"[A-Za-z0-9]{2,8}")
_YEAR = re.compile(r"[1-9]\d{3}", re.ASCII)
_MAX_NAMED = 100
PICTURE_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "svg": "image/svg+xml"}
"""Media types of pictures by the suffix of their files."""
PICTURE = (
    rf"training_datasets/[\w-][\w.-]*/[1-9][0-9]{{3}}/pictures/[a-z_]+(/{TILE})?/[a-z_]+"
    rf"\.(?P<kind>{'|'.join(PICTURE_TYPES)})"
)
"""Regular expression of the name in the store of a picture that the Dagster UI shows."""


def parse_year(text: str) -> int | None:
    """The CDL year of a partition key or folder name; None if it is not a year.

    Only one spelling of each year is valid, because each year has one folder.
    """
    return int(text) if _YEAR.fullmatch(text) else None


def _checked(is_one: Callable[[str], object], name: str, what: str) -> str:
    if not is_one(name):
        raise InputError(f"{name[:_MAX_NAMED]!r} is not the name of a {what}")
    return name


@dataclass(frozen=True)
class Layout:
    """The files of one dataset and CDL year, as POSIX paths relative to the store's root."""

    dataset: str
    year: int

    @property
    def root(self) -> str:
        return f"training_datasets/{self.dataset}/{self.year}"

    def file(self, name: str) -> str:
        """A file or folder at the top of the dataset folder."""
        return f"{self.root}/{name}"

    def table(self, asset: str, tile: str | None = None) -> str:
        if tile is None:
            return f"{self.root}/tables/{asset}.parquet"
        return f"{self.root}/tables/{asset}/{_checked(is_tile, tile, 'tile')}.parquet"

    def band(self, scene_id: str, band: str) -> str:
        """A band file as downloaded: tiles/<scene id>/<scene id>.<band>.tif."""
        return f"{self.root}/tiles/{self.scene_file(scene_id, band)}"

    def reprojected(self, scene_id: str, band: str) -> str:
        return f"{self.root}/tiles_reprojected/{self.scene_file(scene_id, band)}"

    def merged(self, chip_id: str, folder: str = "chips") -> str:
        return f"{self.root}/{folder}/{_checked(is_chip_id, chip_id, 'chip')}_merged.tif"

    def mask(self, chip_id: str, folder: str = "chips") -> str:
        return f"{self.root}/{folder}/{_checked(is_chip_id, chip_id, 'chip')}.mask.tif"

    def fmask(self, chip_id: str) -> str:
        return f"{self.root}/chips_fmask/{_checked(is_chip_id, chip_id, 'chip')}_Fmask.tif"

    def pictures(self, asset: str, tile: str | None = None) -> str:
        """The folder of the pictures that the Dagster UI shows of an asset: pictures/<asset>[/<tile>]."""
        return f"{self.root}/pictures/{asset}" + (f"/{tile}" if tile else "")

    @staticmethod
    def scene_file(scene_id: str, band: str) -> str:
        """<scene id>/<scene id>.<band>.tif.

        Raises InputError if the scene id or the band is invalid, so that no id from a catalogue leads out of its
        folder.
        """
        scene = _checked(is_scene_id, scene_id, "scene")
        return f"{scene}/{scene}.{file_band(scene, _checked(_BAND.fullmatch, band, 'band'))}.tif"


def tile_grid_table() -> str:
    """The Sentinel-2 tile grid, shared by all datasets of a store."""
    return "tile_grid.parquet"
