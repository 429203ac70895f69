"""Where the rasters of Cropland Data Layer releases are found.

Belongs here: finding a year's file. Does not: what a CDL raster must be like (`crop_assets.labels.cdl`).
"""

from pathlib import Path

import dagster as dg
from pydantic import Field

from resources.errors import NotFoundError

RELEASES = "https://www.nass.usda.gov/Research_and_Science/Cropland/Release/"


class CdlReleases(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The CDL rasters of all years, as local files."""

    source: str = Field(
        default="data/cdl",
        description="A folder of <year>_30m_cdls.tif files, one such file, or a path with {year} in it.",
    )

    def find(self, year: int) -> Path:
        """The raster of a year. Raises NotFoundError that says where to get it and where to put it."""
        path = Path(self.source.replace("{year}", str(year)))
        if path.is_dir():
            path = path / f"{year}_30m_cdls.tif"
        if not path.is_file():
            raise NotFoundError(
                f"there is no CDL raster of {year} at {path}; download {year}_30m_cdls.zip from {RELEASES}, "
                "unpack its GeoTIFF there, or set CROP_ASSETS_CDL to where it is"
            )
        if path.suffix.lower() in (".tif", ".tiff") and str(year) not in path.name:
            raise NotFoundError(
                f"{path} does not carry {year} in its name, so it may be another year's release; "
                f"name it {year}_30m_cdls.tif, or materialize the partition of its year"
            )
        return path

    def find_same(self, year: int, size: int) -> Path:
        """The raster that the asset `cdl` described, by its size in bytes.

        Raises NotFoundError where there is none, or another one now.
        """
        path = self.find(year)
        if path.stat().st_size != size:
            raise NotFoundError(f"{path} is not the file that cdl described any more; materialize cdl again")
        return path
