"""How many requests, attempts and retries downloads may take, whatever their source (`resources.sources`)."""

from collections.abc import Sequence

from pydantic import Field

from resources.earthdata import LpDaac
from resources.ipfs.resource import IpfsContent
from resources.mirror import BandMirror
from resources.settings import Settings
from resources.sources import Memory, Source, Sources


class Downloads(Settings):
    """Limits on downloads, over all sources and all tiles of a run, and on retries of tiles."""

    per_host: int = Field(default=4, ge=1, le=64, description="Most files from one host at once.")
    ranges_per_host: int = Field(
        default=16,
        ge=1,
        le=64,
        description="Most ranges of files from one host at once; `per_host` after the host has said that it is busy.",
    )
    attempts: int = Field(
        default=4,
        ge=1,
        le=20,
        description="How often all sources are tried before a file is given up.",
    )
    tile_retries: int = Field(
        default=2,
        ge=0,
        le=5,
        description="How often a run retries tiles that failed for a transient reason: a server that cannot be "
        "reached, keeps failing, or is too slow.",
    )
    tile_pause_seconds: float = Field(
        default=60,
        ge=0,
        le=600,
        allow_inf_nan=False,
        description="Pause before the first of these retries; each later one is twice as long.",
    )

    def of(self, order: Sequence[str], ipfs: IpfsContent, lp_daac: LpDaac, mirror: BandMirror) -> Sources:
        """The sources of these kinds, in their order: mirror, kubo, gateways, ipfs_cli, lp_daac.

        Raises ValueError if an address is invalid.
        """
        found: list[Source] = []
        for kind in order:
            if kind == "mirror":
                found.append(mirror)
            elif kind == "lp_daac":
                found.append(lp_daac)
            else:
                found += ipfs.sources(kind)
        return Sources(found, self.attempts, Memory(self.per_host, self.ranges_per_host))
