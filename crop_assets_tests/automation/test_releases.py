from crop_assets.automation.releases import release_changes
from resources.cdl import Release


def release(year: int, version: str) -> Release:
    return Release(year, version, f"https://nass.example/{year}_30m_cdls.zip", 1)


def test_to_the_first_look_nothing_is_new() -> None:
    changes = release_changes(None, [release(2022, "b"), release(2021, "a")])
    assert changes.known == {2021: "a", 2022: "b"}
    assert changes.new == changes.again == []


def test_a_year_that_was_not_there_is_new() -> None:
    changes = release_changes({2021: "a"}, [release(2023, "c"), release(2021, "a"), release(2022, "b")])
    assert changes.new == [release(2022, "b"), release(2023, "c")]
    assert changes.again == []
    assert changes.known == {2021: "a", 2022: "b", 2023: "c"}


def test_a_year_with_another_version_is_released_again() -> None:
    changes = release_changes({2021: "a", 2022: "b"}, [release(2021, "a2"), release(2022, "b")])
    assert changes.again == [release(2021, "a2")]
    assert changes.new == []
    assert changes.known == {2021: "a2", 2022: "b"}


def test_a_year_that_is_not_listed_for_a_while_is_neither_lost_nor_new() -> None:
    changes = release_changes({2021: "a", 2022: "b"}, [release(2022, "b")])
    assert (changes.new, changes.again, changes.known) == ([], [], {2021: "a", 2022: "b"})
    changes = release_changes(changes.known, [release(2021, "a"), release(2022, "b")])
    assert (changes.new, changes.again) == ([], [])


def test_after_a_first_look_at_nothing_everything_is_new() -> None:
    assert release_changes({}, [release(2021, "a")]).new == [release(2021, "a")]
    assert release_changes(None, []).known == {}
