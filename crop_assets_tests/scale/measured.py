"""What `make scale` measures."""

import os
from dataclasses import dataclass, field

from crop_assets_tests.scale.clone import Counts


@dataclass(frozen=True)
class Query:
    """A query of a page: seconds of the first time, median seconds when it is repeated alone, bytes of the answer."""

    name: str
    first: float
    seconds: float
    answer_bytes: int


@dataclass(frozen=True)
class Look:
    """Seconds of the ticks of a first look at these years, and of a tick after an event of one year."""

    years: int
    first: list[float]
    later: float


@dataclass
class Measured:
    """What was measured, for the report. CPU seconds are by part; `again` are the wall seconds of a second backfill."""

    tiles: int
    seconds: float = 0
    cpu: dict[str, float] = field(default_factory=dict)
    idle: dict[str, float] = field(default_factory=dict)
    runs: int = 0
    counts: list[Counts] = field(default_factory=list)
    pages: list[dict[str, list[Query]]] = field(default_factory=list)
    again: list[float] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    partitions: int = 0
    few: int = 0
    postgres: str = ""
    load: list[float] = field(default_factory=lambda: [os.getloadavg()[0]])

    @property
    def tiles_made(self) -> int:
        """Tile partitions before the database was filled."""
        return 2 * self.tiles
