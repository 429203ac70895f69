"""A local folder of files that a user already has.

Belongs here: finding a file by its name, and checking it against its CID. Does not: deciding whether one without a
CID may be used (`crop_assets.bands`).
"""

import errno
from collections.abc import Callable
from pathlib import Path

from pydantic import Field, field_validator

from resources.addresses import require_local
from resources.errors import IntegrityError, NotFoundError, ResourceError
from resources.file_system import copy_plain
from resources.ipfs.unixfs import matches_cid
from resources.partials import Partials
from resources.settings import Settings
from resources.sources import Wanted


class BandMirror(Settings):
    """A folder with <scene id>/<scene id>.<band>.tif, or the files side by side. It is only read."""

    folder: str = Field(default="", description="Path of the folder, or empty for none.")

    _is_local = field_validator("folder")(require_local)

    @property
    def name(self) -> str:
        return "mirror"

    @property
    def host(self) -> str:
        return ""

    @property
    def by_cid(self) -> bool:
        return False

    def offers(self, wanted: Wanted) -> bool:
        return bool(self.folder)

    def fetch(
        self,
        wanted: Wanted,
        destination: Path,
        partials: Partials,
        progress: Callable[[int], None],
        brief: bool = False,
    ) -> bool:
        """Copy the file; True where it has the CID. Raises NotFoundError, IntegrityError for one of another content."""
        try:
            path = self._find(wanted)
            copy_plain(path, destination)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise
            raise ResourceError(f"{wanted.file_name} cannot be copied: {error.strerror}") from None
        # the copy, for the folder may be somebody's who is filling it
        if wanted.cid and not matches_cid(destination, wanted.cid):
            raise IntegrityError(f"{path.name} does not match {wanted.cid}")
        return bool(wanted.cid)

    def _find(self, wanted: Wanted) -> Path:
        for path in (Path(self.folder) / wanted.name, Path(self.folder) / wanted.file_name):
            if path.is_file():
                if path.stat().st_size > wanted.max_bytes:
                    raise IntegrityError(f"{path.name} is larger than {wanted.max_bytes:,} bytes")
                return path
        raise NotFoundError(f"has no {wanted.file_name}")
