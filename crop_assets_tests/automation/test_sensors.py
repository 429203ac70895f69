"""The release sensor, evaluated on a real instance with a real release page."""

import json
import math
import re
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest

from crop_assets.automation import sensors as sensors_module
from crop_assets.automation.sensors import cdl_release_sensor
from crop_assets.partitions import CDL_YEAR
from crop_assets_tests.resources.nass import Nass
from crop_assets_tests.resources.nass import nass as nass
from resources.cdl import CdlReleases


class Releases:
    """The release sensor with a release page, and the cursor of its last tick."""

    def __init__(self, nass: Nass, folder: Path, instance: dg.DagsterInstance) -> None:
        self._nass, self._folder, self.instance = nass, folder, instance
        self.cursor: str | None = None

    @property
    def resource(self) -> CdlReleases:
        return self._nass.releases(self._folder, attempts=1)

    def tick(self) -> dg.SensorResult:
        """A look, as in a preview in the UI."""
        context = dg.build_sensor_context(
            self.instance,
            self.cursor,
            sensor_name="cdl_release_sensor",
            resources={"cdl_releases": self.resource},
        )
        result = cdl_release_sensor(context)
        assert isinstance(result, dg.SensorResult)
        self.cursor = result.cursor
        return result


@pytest.fixture
def releases(nass: Nass, tmp_path: Path) -> Iterator[Releases]:
    nass.put(2021, b"one")
    nass.put(2022, b"two")
    with dg.DagsterInstance.ephemeral() as instance:
        yield Releases(nass, tmp_path / "cdl", instance)


def skipped(result: dg.SensorResult) -> str:
    return str(getattr(result.skip_reason, "skip_message", result.skip_reason))


def asked(result: dg.SensorResult) -> list[str | None]:
    return [request.partition_key for request in result.run_requests or []]


def added(result: dg.SensorResult) -> list[str]:
    keys: list[str] = []
    for request in result.dynamic_partitions_requests or []:
        assert request.partitions_def_name == CDL_YEAR
        keys += request.partition_keys
    return keys


def test_the_first_tick_records_the_releases_and_launches_nothing(releases: Releases) -> None:
    first = releases.tick()
    assert asked(first) == added(first) == []
    assert json.loads(first.cursor or "")["versions"].keys() == {"2021", "2022"}
    assert "first look: releases recorded: 2 of 2021 to 2022; nothing is launched" in str(first.skip_reason)
    assert "no change: 2 of 2021 to 2022" in str(releases.tick().skip_reason)
    assert asked(releases.tick()) == []


def test_a_new_year_becomes_a_partition_and_a_run_of_the_labels(releases: Releases, nass: Nass) -> None:
    releases.tick()
    address = nass.put(2023, b"three")
    result = releases.tick()
    assert asked(result) == added(result) == ["2023"]
    (request,) = result.run_requests or []
    assert request.tags["cdl_release"] == address
    assert cdl_release_sensor.job_name == "labels_job"
    assert asked(releases.tick()) == []


def test_a_year_that_is_released_again_is_launched_with_another_key(releases: Releases, nass: Nass) -> None:
    releases.tick()
    nass.put(2023, b"three")
    new = releases.tick()
    (first,) = new.run_requests or []
    releases.instance.add_dynamic_partitions(CDL_YEAR, added(new))
    nass.put(2023, b"three, mended")
    result = releases.tick()
    assert asked(result) == added(result) == ["2023"]
    (second,) = result.run_requests or []
    assert first.run_key != second.run_key
    assert first.run_key is not None
    assert first.run_key.startswith("cdl-2023-")


def test_years_whose_etags_alone_changed_are_not_released_again(releases: Releases, nass: Nass) -> None:
    for year in range(2008, 2025):
        nass.put(year, b"archive of %d" % year)
    nass.dates = dict.fromkeys(nass.archives, "Fri, 27 Jan 2023 15:04:05 GMT")
    releases.instance.add_dynamic_partitions(CDL_YEAR, [str(year) for year in range(2010, 2025)])
    assert asked(releases.tick()) == []
    for server in ("a", "b"):
        nass.etags = {path: f'"{server}-{path[-18:-14]}"' for path in nass.archives}
        assert asked(releases.tick()) == []
    # a later date on six, of the same size: two of them are no partitions
    for year in (2008, 2009, 2011, 2012, 2013, 2014):
        nass.dates[f"/Release/datasets/{year}_30m_cdls.zip"] = "Wed, 01 Feb 2023 15:04:05 GMT"
    assert asked(releases.tick()) == ["2014", "2013", "2012"]
    assert asked(releases.tick()) == ["2011"]
    assert asked(releases.tick()) == []


def test_a_year_that_is_not_a_partition_is_not_launched_again(releases: Releases, nass: Nass) -> None:
    releases.instance.add_dynamic_partitions(CDL_YEAR, ["2021"])
    releases.tick()
    nass.put(2022, b"two, mended")
    result = releases.tick()
    assert asked(result) == added(result) == []
    assert "released again: 2022; nothing is launched" in str(result.skip_reason)
    assert "no change" in str(releases.tick().skip_reason)


@pytest.mark.parametrize("failure", ["the page", "a file", "another page"])
def test_a_look_that_fails_changes_nothing(releases: Releases, nass: Nass, failure: str) -> None:
    releases.tick()
    before = json.loads(releases.cursor or "")
    nass.put(2023, b"three")
    cause = "answered 50"
    if failure == "the page":
        nass.broken["/Release/index.php"] = 500
    elif failure == "a file":
        nass.broken["/Release/datasets/2021_30m_cdls.zip"] = 503
    else:
        nass.page, cause = "<html>We have moved</html>", "has no link to a <year>_30m_cdls.zip"
    for _ in range(2):
        result = releases.tick()
        assert asked(result) == added(result) == []
        assert "the look failed: http://127.0.0.1:" in str(result.skip_reason)
        assert cause in str(result.skip_reason)
        assert cause in json.loads(result.cursor or "")["problem"]
    assert {name: json.loads(releases.cursor or "")[name] for name in before} == before
    nass.broken.clear()
    nass.page = None
    assert asked(releases.tick()) == ["2023"]


def test_a_year_that_is_reverted_is_launched_again(releases: Releases, nass: Nass) -> None:
    releases.instance.add_dynamic_partitions(CDL_YEAR, ["2022"])
    releases.tick()
    keys = set()
    for archive in (b"two, mended", b"two"):
        nass.put(2022, archive)
        (request,) = releases.tick().run_requests or []
        keys.add(request.run_key)
    assert len(keys) == 2


def test_another_index_counts_as_a_first_look(releases: Releases, nass: Nass, tmp_path: Path) -> None:
    context = dg.build_sensor_context(
        releases.instance,
        None,
        sensor_name="cdl_release_sensor",
        resources={"cdl_releases": nass.releases(tmp_path / "cdl", index="")},
    )
    offline = cdl_release_sensor(context)
    assert isinstance(offline, dg.SensorResult)
    releases.cursor = offline.cursor
    assert asked(releases.tick()) == [], "years that were there all along are not new"
    nass.put(2023, b"three")
    assert asked(releases.tick()) == ["2023"]


def test_a_page_whose_files_are_all_gone_is_an_error(releases: Releases, nass: Nass) -> None:
    for path in nass.archives:
        nass.broken[path] = 404
    assert re.search(r"none of the 2 files that .* lists exists", str(releases.tick().skip_reason))


def test_a_first_look_that_fails_in_part_does_not_count(releases: Releases, nass: Nass) -> None:
    nass.broken["/Release/datasets/2021_30m_cdls.zip"] = 500
    assert "2021_30m_cdls.zip answered 500" in str(releases.tick().skip_reason)
    nass.broken.clear()
    assert asked(releases.tick()) == [], "2021 was there from the first, and is not new"


ODD = [
    "2022-11-24",
    "[]",
    '"x"',
    "null",
    "1e400",
    "NaN",
    "[[1, 2]]",
    "[" * 100_000,
    '{"a":' * 100_000,
    "x" * 1_000_001,
    "1" * 5000,
    "\x1b[2J\n\u202e",
]
ODD_LOOKS = [
    {"versions": 5},
    {"versions": {"x": 1}},
    {"versions": {"2022": 1}},
    {"versions": {"x": "1"}},
    {"versions": {"\u0662\u0660\u0662\u0662": "1"}},
    {"versions": {"2022": "x" * 1001}},
    {"versions": [["2022", "1"]]},
    {"versions": {}, "looked": "a"},
    {"versions": {}, "looked": True},
    {"versions": {}, "looked": [1]},
    {"versions": {}, "looked": -1},
    {"versions": {}, "looked": math.inf},
    {"versions": {}, "looked": math.nan},
    {"versions": {}, "problem": 5},
]


@pytest.mark.parametrize("cursor", [*ODD, *ODD_LOOKS], ids=lambda cursor: str(cursor)[:40])
def test_an_invalid_cursor_is_reset(releases: Releases, nass: Nass, cursor: str | dict[str, Any]) -> None:
    place = f"{releases.resource.source} {releases.resource.index}"
    releases.cursor = cursor if isinstance(cursor, str) else json.dumps({"place": place, **cursor})
    first = releases.tick()
    assert asked(first) == added(first) == []
    assert skipped(first).startswith("the cursor is not valid for this sensor and was reset; ")
    assert "first look: releases recorded: 2 of 2021 to 2022" in skipped(first)
    nass.put(2023, b"three")
    assert asked(releases.tick()) == ["2023"]


def test_a_cursor_that_cannot_be_read_stays_until_a_look_succeeds(releases: Releases, nass: Nass) -> None:
    releases.cursor = "[" * 100_000
    nass.broken["/Release/index.php"] = 503
    for begun in (
        "the cursor is not valid for this sensor and was reset; the look failed: ",
        "the look",
    ):
        words = skipped(releases.tick())
        assert words.startswith(begun) and len(words) <= 4000
    nass.broken.clear()
    assert "first look" in skipped(releases.tick())


def test_a_cursor_of_any_number_of_years_is_bounded(releases: Releases, nass: Nass) -> None:
    releases.tick()
    known = json.loads(releases.cursor or "")
    known["versions"] = {str(year): "1" for year in range(1000, 10_000)} | known["versions"]
    releases.cursor = json.dumps(known)
    nass.put(2023, b"three")
    releases.tick()
    assert len(json.loads(releases.cursor)["versions"]) <= 104


def test_a_look_in_the_future_does_not_delay_the_next_one(releases: Releases) -> None:
    releases.tick()
    known = json.loads(releases.cursor or "")
    for looked in (time.time() + 1e7, 1e18, 1e300):
        context = dg.SensorEvaluationContext(
            instance_ref=None,
            instance=releases.instance,
            cursor=json.dumps(known | {"looked": looked}),
            sensor_name="cdl_release_sensor",
            last_tick_completion_time=time.time() - 1000,
            last_sensor_start_time=time.time() - 10_000,
            resources={"cdl_releases": releases.resource},  # type: ignore[dict-item]
        )
        result = cdl_release_sensor(context)
        assert isinstance(result, dg.SensorResult)
        assert "no change: 2 of 2021 to 2022" in skipped(result)


def test_the_page_is_looked_at_every_hour_and_sooner_after_a_failure(
    releases: Releases, nass: Nass, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ticks of the daemon during seven hours; some do not reach the sensor."""
    clock = [1_700_000_000.0]
    monkeypatch.setattr(sensors_module, "time", SimpleNamespace(time=lambda: clock[0]))
    start, last = clock[0], None
    looked_at: list[int] = []
    skipped: list[str] = []
    for tick in range(400):
        clock[0] = start + tick * 64
        minutes = tick * 64 // 60
        if 100 <= minutes < 160:
            nass.broken["/Release/index.php"] = 503
        else:
            nass.broken.clear()
        if minutes == 240:
            nass.put(2023, b"three")
        context = dg.SensorEvaluationContext(
            instance_ref=None,
            instance=releases.instance,
            cursor=releases.cursor,
            sensor_name="cdl_release_sensor",
            last_tick_completion_time=last,
            last_sensor_start_time=start,
            resources={"cdl_releases": releases.resource},  # type: ignore[dict-item]
        )
        last = clock[0]
        if tick == 0:
            continue  # the code server was not there yet
        before = len(nass.asked_for("GET"))
        result = cdl_release_sensor(context)
        assert isinstance(result, dg.SensorResult)
        releases.cursor = result.cursor
        looked = len(nass.asked_for("GET")) > before
        assert ("the look failed: " in str(result.skip_reason)) == (looked and bool(nass.broken))
        skipped += [str(result.skip_reason)] * (not looked)
        assert not asked(result) or 240 <= minutes < 320
        looked_at += [minutes] * (len(nass.asked_for("GET")) - before)
    assert looked_at == [1, 61, 122, 123, 124, 125, 130, 137, 152, 167, 228, 289, 349, 410]
    told = "\n".join(skipped)
    assert "last look at 22:14 UTC; the next one is due at 23:14 UTC" in told
    assert re.search(r"the last look failed: .* answered 503.*; the next one is within 15 minutes", told)
    assert "problem" not in json.loads(releases.cursor or "")
    assert json.loads(releases.cursor or "")["versions"].keys() == {"2021", "2022", "2023"}
