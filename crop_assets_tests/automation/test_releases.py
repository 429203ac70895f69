import itertools

import pytest

from crop_assets.automation.releases import look_is_due, release_changes
from resources.cdl import Release


def release(year: int, version: str) -> Release:
    return Release(year, version, f"https://nass.example/{year}_30m_cdls.zip", 1)


YEARS = range(1997, 2026)


def test_nothing_is_new_on_the_first_look() -> None:
    changes = release_changes(None, [release(2022, "b"), release(2021, "a")], YEARS)
    assert changes.known == {2021: "a", 2022: "b"}
    assert changes.new == changes.again == []


def test_an_unknown_year_is_new() -> None:
    changes = release_changes(
        {2021: "a"}, [release(2023, "c"), release(2021, "a"), release(2022, "b")], YEARS
    )
    assert changes.new == [release(2023, "c"), release(2022, "b")]
    assert changes.again == []
    assert changes.known == {2021: "a", 2022: "b", 2023: "c"}


def test_a_year_with_another_version_is_released_again() -> None:
    changes = release_changes({2021: "a", 2022: "b"}, [release(2021, "a2"), release(2022, "b")], YEARS)
    assert changes.again == [release(2021, "a2")]
    assert changes.new == []
    assert changes.known == {2021: "a2", 2022: "b"}


def test_a_year_that_is_not_listed_for_a_while_is_neither_lost_nor_new() -> None:
    changes = release_changes({2021: "a", 2022: "b"}, [release(2022, "b")], YEARS)
    assert (changes.new, changes.again, changes.known) == ([], [], {2021: "a", 2022: "b"})
    changes = release_changes(changes.known, [release(2021, "a"), release(2022, "b")], YEARS)
    assert (changes.new, changes.again) == ([], [])


def test_everything_is_new_after_an_empty_first_look() -> None:
    assert release_changes({}, [release(2021, "a")], YEARS).new == [release(2021, "a")]
    assert release_changes(None, [], YEARS).known == {}


def test_all_years_are_launched_eventually_a_few_per_look() -> None:
    known = dict.fromkeys(range(2008, 2020), "a")
    listed = [release(year, "b") for year in range(2008, 2022)]
    partitions = [2009, 2010, 2012, 2015, 2030]
    looked = []
    for _ in range(4):
        changes = release_changes(known, listed, partitions, 2)
        known = changes.known
        looked.append([found.year for found in (*changes.new, *changes.again)])
        unused = [found.year for found in changes.unused]
        assert unused == ([2019, 2018, 2017, 2016, 2014, 2013, 2011, 2008] if len(looked) == 1 else [])
    assert looked == [[2021, 2020], [2015, 2012], [2010, 2009], []]
    assert known == dict.fromkeys(range(2008, 2022), "b")


def looks(since: float, ticks: list[float]) -> list[float]:
    """The ticks at which a look is due if none succeeds."""
    return [now for last, now in itertools.pairwise(ticks) if look_is_due(now, last, since)]


def test_a_failed_look_is_repeated_after_a_minute_and_then_less_often() -> None:
    every_minute = [60.0 * minute for minute in range(-3, 70)]
    assert looks(0, every_minute) == [60 * minute for minute in (0, 1, 2, 4, 8, 15, 30, 45, 60)]


@pytest.mark.parametrize("seconds", [61, 64.9, 75])
def test_no_look_is_skipped_if_ticks_are_late(seconds: float) -> None:
    ticks = [number * seconds - 30 for number in range(200)]
    found = looks(0, ticks)
    for minutes in (0, 1, 2, 4, 8, 15, 30, 45, 60, 75):
        assert any(0 <= tick - 60 * minutes < seconds for tick in found)


def test_a_look_that_became_due_during_downtime_is_made_once() -> None:
    assert looks(0, [-600.0, 86_400.0, 86_460.0, 86_520.0]) == [86_400]
    assert looks(1000, [-600.0, 900.0]) == []
