"""What follows from the CDL releases that there are now.

Belongs here: the decision. Does not: looking for releases (`resources.cdl`), or acting on the decision (`sensors`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from resources.cdl import Release


@dataclass(frozen=True)
class ReleaseChanges:
    """`known` is the version of each year to be remembered; `new` and `again` are releases to be worked on."""

    known: dict[int, str]
    new: list[Release]
    again: list[Release]


def release_changes(known: Mapping[int, str] | None, releases: Iterable[Release]) -> ReleaseChanges:
    """Compare the releases with the versions known so far; None is the first look, to which nothing is new.

    A year that is not among the releases any more stays known, so that a page with a gap does not make it new later.
    """
    found = sorted(releases, key=lambda release: release.year)
    before = {release.year: release.version for release in found} if known is None else known
    return ReleaseChanges(
        known={**before, **{release.year: release.version for release in found}},
        new=[release for release in found if release.year not in before],
        again=[release for release in found if before.get(release.year, release.version) != release.version],
    )
