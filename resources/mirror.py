"""A local folder of band files that a user already has.

Belongs here: finding a file by its name. Does not: deciding whether it may be used (`crop_assets.bands`).
"""

from pathlib import Path

import dagster as dg
from pydantic import Field


class BandMirror(dg.ConfigurableResource):  # type: ignore[type-arg]
    """A folder with <scene id>/<scene id>.<band>.tif, or the files side by side."""

    folder: str = Field(default="", description="Path of the folder, or empty for none.")

    def find(self, scene_file: str) -> Path | None:
        """The local file for `<scene id>/<file name>`, or None."""
        if not self.folder:
            return None
        for candidate in (Path(self.folder) / scene_file, Path(self.folder) / Path(scene_file).name):
            if candidate.is_file():
                return candidate
        return None
