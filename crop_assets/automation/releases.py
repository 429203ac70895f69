"""Decides when to look for CDL releases, and what to launch for those that were found."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from resources.cdl import Release, same_release

LOOK_SECONDS = 3600
RETRY_MINUTES = 15
_FIRST_LOOKS = (0, 1, 2, 4, 8)
"""Minutes after which the first looks are due; later ones are due every RETRY_MINUTES."""
MAX_RUNS_PER_LOOK = 3
"""A run downloads 2 GB; all years together are 34 GB."""


@dataclass(frozen=True)
class ReleaseChanges:
    """`known` has the version of each year to remember; `new` and `again` are releases to launch runs for.

    `later` are left for the next look, and not remembered until then; `unused` were released again, but their years are
    not partitions.
    """

    known: dict[int, str]
    new: list[Release]
    again: list[Release]
    later: list[Release]
    unused: list[Release]


def release_changes(
    known: Mapping[int, str] | None,
    releases: Iterable[Release],
    partitions: Collection[int],
    max_runs: int = MAX_RUNS_PER_LOOK,
) -> ReleaseChanges:
    """Compare the releases with the known versions. None stands for the first look, when nothing counts as new.

    A year that is no longer listed stays known, so that it does not count as new when it is listed again. `partitions`
    are the years to run again when they are released again. `new` and `again` have at most `max_runs` releases
    together: new years come first, and later years before earlier ones.
    """
    found = sorted(releases, key=lambda release: release.year, reverse=True)
    before = {release.year: release.version for release in found} if known is None else known
    new = [release for release in found if release.year not in before]
    changed = [
        release
        for release in found
        if release.year in before and not same_release(before[release.year], release.version)
    ]
    again = [release for release in changed if release.year in partitions]
    later = [*new, *again][max_runs:]
    return ReleaseChanges(
        known={**before, **{release.year: release.version for release in found if release not in later}},
        new=new[:max_runs],
        again=again[: max(max_runs - len(new), 0)],
        later=later,
        unused=[release for release in changed if release not in again],
    )


def look_is_due(now: float, last_tick: float, since: float) -> bool:
    """Whether to look for releases at this tick of the sensor. A look is needed from `since` on; times are Unix times.

    Until one succeeds, looks are due _FIRST_LOOKS minutes after `since`, and then every RETRY_MINUTES minutes, each at
    the first tick after that time. So nothing about failed looks has to be stored.
    """
    return _looks_due(now - since) > _looks_due(last_tick - since)


def _looks_due(seconds: float) -> int:
    """The number of looks due within some seconds after the first."""
    if seconds < 0:
        return 0
    minutes = seconds / 60
    return sum(minutes >= due for due in _FIRST_LOOKS) + int(minutes // RETRY_MINUTES)
