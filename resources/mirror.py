"""A local folder of files that a user already has.

`crop_assets.bands` decides whether a file without a CID may be used.
"""

import errno
from collections.abc import Callable
from pathlib import Path

from pydantic import Field, field_validator

from resources.addresses import require_local
from resources.errors import IntegrityError, NotFoundError, ResourceError
from resources.file_system import copy_plain
from resources.ipfs.unixfs import matches_cid
from resources.parts import Turn, obtain_locally
from resources.resume import PartialFiles
from resources.settings import Settings
from resources.sources import FileRequest, PartsRequest
from resources.store import sha256_of


class BandMirror(Settings):
    """A folder with <scene id>/<scene id>.<band>.tif, or the files side by side. Nothing is written to it."""

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

    def offers(self, request: FileRequest) -> bool:
        return bool(self.folder)

    def fetch(
        self,
        request: FileRequest,
        destination: Path,
        partials: PartialFiles,
        progress: Callable[[int], None],
        brief: bool = False,
    ) -> bool:
        """Copy the file; True if it matches a CID. Raises NotFoundError, and IntegrityError if its content is wrong."""
        try:
            path = self._find(request)
            copy_plain(path, destination)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise
            raise ResourceError(f"{request.file_name} cannot be copied: {error.strerror}") from None
        # the copy is checked, because someone may be writing to the folder
        if request.cid and not matches_cid(destination, request.cid):
            raise IntegrityError(f"{path.name} does not match {request.cid}")
        return bool(request.cid)

    def fetch_parts(self, wanted: PartsRequest, destination: Path) -> bool:
        """What is selected of a copy, checked like those of `fetch`. Raises as `fetch` and `selection`."""
        file = wanted.file
        with wanted.partials.holding(f"mirror {file.name}") as path:
            try:
                verified = self.fetch(file, path, wanted.partials, wanted.progress)
                version = file.cid or f"sha256:{sha256_of(path)}"
                obtain_locally(wanted.selection, path, version, destination, verified)
            finally:
                path.unlink(missing_ok=True)
        return verified

    def tree(self, request: FileRequest, turn: Turn, brief: bool) -> None:
        return None

    def _find(self, request: FileRequest) -> Path:
        for path in (Path(self.folder) / request.name, Path(self.folder) / request.file_name):
            if path.is_file():
                if path.stat().st_size > request.max_bytes:
                    raise IntegrityError(f"{path.name} is larger than {request.max_bytes:,} bytes")
                return path
        raise NotFoundError(f"has no {request.file_name}")
