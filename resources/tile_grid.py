"""The file of the Sentinel-2 tile grid, as a Dagster resource."""

from pydantic import Field, field_validator

from resources.addresses import require_local
from resources.settings import Settings


class TileGridSource(Settings):
    """The file of the tile grid."""

    path: str = Field(
        default="",
        description="A KML, KMZ, GeoJSON, GeoPackage, shapefile, FlatGeobuf or GeoParquet file with a name column, or "
        "a zip of one; empty for the official grid that comes with the installation.",
    )

    _is_local = field_validator("path")(require_local)
