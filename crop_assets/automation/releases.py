"""When to look for CDL releases, and what follows from those that there are now.

Belongs here: the decisions. Does not: looking for releases (`resources.cdl`), or acting on the decision (`sensors`).
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from resources.cdl import Release, same_release

LOOK_SECONDS = 3600
RETRY_MINUTES = 15
_FIRST_LOOKS = (0, 1, 2, 4, 8)
"""Minutes after which looks are due before those at every RETRY_MINUTES."""
MAX_RUNS_PER_LOOK = 3
"""A run fetches 2 GB; all years at once are 34 GB."""


@dataclass(frozen=True)
class ReleaseChanges:
    """`known` is the version of each year to be remembered; `new` and `again` are releases to be worked on.

    `later` waits for the next look, and is not remembered until then; `unused` was released again, and its year is not
    a partition.
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
    """Compare the releases with the versions known so far; None is the first look, to which nothing is new.

    A year that is not among the releases any more stays known, so that a page with a gap does not make it new later.
    `partitions` are the years that are worked on when they are released again. Together `new` and `again` are
    `max_runs` at most: new years first, the latest of them first, as in `again`.
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
    """Whether to look now, at a tick of the sensor. A look is wanted from `since` on; the times are Unix times.

    As long as none succeeds, looks are due _FIRST_LOOKS minutes after `since`, and then every RETRY_MINUTES minutes:
    one is due at the first tick after each of these times. So nothing about failed looks has to be stored.
    """
    return _looks_due(now - since) > _looks_due(last_tick - since)


def _looks_due(seconds: float) -> int:
    """How many looks are due until some seconds after the first."""
    if seconds < 0:
        return 0
    minutes = seconds / 60
    return sum(minutes >= due for due in _FIRST_LOOKS) + int(minutes // RETRY_MINUTES)
