"""The dataset sensor, ticked on a real instance over real tables."""

import json
import re
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest

from crop_assets.automation.sensors import dataset_sensor
from crop_assets.chip_grid import MAX_TILES
from crop_assets.partitions import CDL_YEAR, TILE
from crop_assets_tests.automation.test_sensors import ODD, skipped
from crop_assets_tests.forged import forge as forge_table
from crop_assets_tests.forged import table_of
from crop_assets_tests.small_world import DATASET, EAST, TILE_STAGES, TILES, WEST, YEAR, Graph, recipe
from resources.loopback import free_port
from resources.store import DatasetStore


class Years:
    """The dataset sensor over a graph's store, with the cursor that its last tick left."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.cursor: str | None = None

    def tick(self, root: str = "", **changes: object) -> dg.SensorResult:
        resources = {"recipe": recipe(**changes), "store": DatasetStore(root=root or str(self.graph.root))}
        context = dg.build_sensor_context(
            self.graph.instance, self.cursor, sensor_name="dataset_sensor", resources=resources
        )
        result = dataset_sensor(context)
        assert isinstance(result, dg.SensorResult)
        self.cursor = result.cursor or self.cursor
        return result


def assets_of(request: dg.RunRequest) -> set[str]:
    return {key.to_user_string() for key in request.asset_selection or ()}


def tiles_of(result: dg.SensorResult) -> set[str]:
    """The tiles of the backfill that was asked for."""
    (request,) = result.run_requests or []
    subset = request.asset_graph_subset
    assert subset is not None
    assert {key.to_user_string() for key in subset.asset_keys} == set(TILE_STAGES)
    keys = [pair.partition_key for pair in subset.iterate_asset_partitions()]
    assert len(keys) == len(TILE_STAGES) * len(set(keys))
    years, tiles = zip(*(str(key).split("|") for key in set(keys)), strict=True)
    assert set(years) == {str(YEAR)}
    return set(tiles)


def test_without_a_tile_map_there_is_nothing_to_do(graph: Graph) -> None:
    result = Years(graph).tick()
    assert not result.run_requests
    assert "no year has a tile map of this recipe yet" in str(result.skip_reason)


def test_a_tile_map_is_followed_by_its_tiles_and_these_by_the_dataset(labelled_graph: Graph) -> None:
    years = Years(labelled_graph)
    assert tiles_of(years.tick()) == set(TILES)
    assert set(labelled_graph.instance.get_dynamic_partitions(TILE)) == set(TILES)
    waiting = years.tick()
    assert not waiting.run_requests
    assert f"{YEAR}: 2 of 2 tiles must be made" in str(waiting.skip_reason), "nothing has happened since"

    assert labelled_graph.run("tiles_job", tiles=[WEST]).success
    assert f"waiting for 1 of 2 tiles ({EAST})" in str(years.tick().skip_reason)
    assert labelled_graph.run("tiles_job", tiles=[EAST]).success
    (request,) = years.tick().run_requests or []
    assert request.partition_key == str(YEAR)
    assert assets_of(request) == set(DATASET)
    assert not years.tick().run_requests
    assert labelled_graph.run("dataset_job").success

    # one tile is made again, of other chips
    changed = {"max_bad_percent": 50.0}
    assert tiles_of(years.tick(**changed)) == set(TILES)
    assert labelled_graph.run("tiles_job", recipe=recipe(**changed)).success
    (again,) = years.tick(**changed).run_requests or []
    assert assets_of(again) == set(DATASET)
    assert again.run_key != request.run_key


def test_tiles_wait_for_the_quality_of_labels(labelled_graph: Graph) -> None:
    table = labelled_graph.root / labelled_graph.layout.table("label_quality")
    table.unlink()
    years = Years(labelled_graph)
    # as if the run that makes it were still at it
    labelled_graph.instance.report_runless_asset_event(
        dg.AssetMaterialization("tile_map", partition=str(YEAR))
    )
    assert not years.tick().run_requests
    assert labelled_graph.run("labels_job").success
    assert table.exists()
    assert tiles_of(years.tick()) == set(TILES)


def test_a_store_that_cannot_be_reached_is_looked_at_again(
    labelled_graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = f"127.0.0.1:{free_port()}"
    settings = {
        "AWS_ENDPOINT_URL": f"http://{server}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
    }
    for name, value in {**settings, "AWS_MAX_ATTEMPTS": "1", "AWS_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    years = Years(labelled_graph)
    for _ in range(2):
        away = years.tick(root="s3://crops/data")
        assert not away.run_requests
        assert "the look failed: s3://crops/data/training_datasets/small/2022/" in str(away.skip_reason)
        assert f"{server} cannot be reached; check the network and AWS_ENDPOINT_URL" in str(away.skip_reason)
    assert tiles_of(years.tick()) == set(TILES)


def test_what_a_person_has_made_already_is_not_asked_for(finished_graph: Graph) -> None:
    years = Years(finished_graph)
    assert finished_graph.run("labels_job").success
    (request,) = years.tick().run_requests or []
    assert assets_of(request) == set(DATASET)


def test_a_recipe_that_goes_back_to_what_it_was_is_asked_for_by_another_key(finished_graph: Graph) -> None:
    years = Years(finished_graph)
    keys = []
    for seed in (42, 43, 42):
        assert finished_graph.run("labels_job", recipe=recipe(seed=seed)).success
        (request,) = years.tick(seed=seed).run_requests or []
        keys.append(request.run_key)
    assert len(set(keys)) == 3


def test_a_tile_map_that_is_damaged_is_told_and_stops_no_other_year(finished_graph: Graph) -> None:
    assert finished_graph.run("labels_job").success
    # and what is no year is left out
    finished_graph.instance.add_dynamic_partitions("cdl_year", ["2021", "²022", "٢٠٢٢"])
    other = finished_graph.root / "training_datasets/small/2021/tables/tile_map.parquet"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"PAR1")
    years = Years(finished_graph)
    (request,) = years.tick().run_requests or []
    assert request.partition_key == str(YEAR)
    assert "2021: " in json.loads(years.cursor or "{}")["told"]


def test_a_tile_that_is_damaged_waits_and_stops_no_other_year(finished_graph: Graph) -> None:
    table = finished_graph.dataset / f"tables/filtered_chips/{EAST}.parquet"
    table.write_bytes(table.read_bytes()[:100])
    assert finished_graph.run("labels_job").success
    assert tiles_of(Years(finished_graph).tick()) == {EAST}


def test_a_year_without_new_events_is_not_read_again(finished_graph: Graph) -> None:
    finished_graph.instance.add_dynamic_partitions(CDL_YEAR, ["2021"])
    forge(finished_graph.root, 2021, pa.array([""]))
    assert finished_graph.run("labels_job").success
    years = Years(finished_graph)
    (request,) = years.tick().run_requests or []
    assert request.partition_key == str(YEAR)
    told = f"{YEAR}: all 2 tiles are done, and the dataset was requested; 2021: no tiles"
    assert finished_graph.run("tiles_job", tiles=[WEST]).success
    assert set(skipped(years.tick()).split("; ")) == set(told.split("; "))
    # a table of 2021 that cannot be read, and of which there is no event
    forge(finished_graph.root, 2021, None)
    assert finished_graph.run("tiles_job", tiles=[WEST]).success
    assert set(skipped(years.tick()).split("; ")) == set(told.split("; "))
    event = dg.AssetMaterialization("tile_map", partition="2021")
    finished_graph.instance.report_runless_asset_event(event)
    assert (
        "2021: " in skipped(years.tick()) and "2021: no tiles" not in json.loads(years.cursor or "")["told"]
    )


def test_a_tick_ends_in_time_and_the_next_one_looks_at_the_other_years(
    finished_graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert finished_graph.run("labels_job").success
    finished_graph.instance.add_dynamic_partitions(CDL_YEAR, ["2020", "2021"])
    for year in (2020, 2021):
        forge(finished_graph.root, year, pa.array([""]))
    monkeypatch.setattr("crop_assets.automation.sensors._LOOK_SECONDS", 0)
    years, launched = Years(finished_graph), []
    for later in (2, 1, 0):
        launched += [request.partition_key for request in years.tick().run_requests or []]
        told = json.loads(years.cursor or "")["told"]
        left = told.partition("the next look is at ")[2]
        assert len(left.split(", ")) == later if later else not left
    assert launched == [str(YEAR)]
    assert "2020: no tiles" in told and "2021: no tiles" in told
    assert "nothing has changed since" in skipped(years.tick())


ODD_SEEN: list[dict[str, Any]] = [
    {"seen": 5},
    {"seen": [{}]},
    {"told": ["x"]},
    {"asked": 5},
    {"asked": {"2022": 3}},
    {"looks": {"2022": 3}},
    {"looks": {"2022": {"recipe": "x", "event": "1"}}},
    {"looks": {"2022": {"recipe": "x", "event": -1}}},
    {"looks": {"2022": {"recipe": "x", "event": 1, "told": "x" * 2000}}},
    {"asked": {"2022": {"tiles": 3}}},
    {"asked": {"x": {}}},
    {"count": "x"},
    {"count": -1},
    {"count": 1.5},
    {"count": 10**30},
]


@pytest.mark.parametrize("cursor", [*ODD, *map(json.dumps, ODD_SEEN)], ids=lambda cursor: str(cursor)[:40])
def test_an_invalid_cursor_is_reset(graph: Graph, cursor: str) -> None:
    years = Years(graph)
    years.cursor = cursor
    words = skipped(years.tick())
    assert words == (
        "the cursor is not valid for this sensor and was reset; no year has a tile map of this recipe yet"
    )
    assert skipped(years.tick()).startswith("no year has a tile map")


def test_what_was_asked_for_before_the_cursor_was_lost_is_asked_for_by_another_key(
    finished_graph: Graph,
) -> None:
    years = Years(finished_graph)
    assert finished_graph.run("labels_job").success
    keys = []
    for cursor in (None, "[" * 1000):
        years.cursor = cursor
        (request,) = years.tick().run_requests or []
        keys.append(request.run_key)
    assert len(set(keys)) == 2


def test_what_a_cursor_says_is_short_and_on_one_line_and_its_years_are_of_the_cdl(
    labelled_graph: Graph,
) -> None:
    years = Years(labelled_graph)
    years.tick()
    known = json.loads(years.cursor or "")
    known["told"] = "x\x1b\n" * 10_000
    years.cursor = json.dumps(known)
    words = skipped(years.tick())
    assert len(words) <= 4000 and words.isprintable() and words.endswith("nothing has changed since")
    known |= {"seen": [], "asked": {str(year): {} for year in range(1000, 10_000)}}
    years.cursor = json.dumps(known)
    years.tick()
    assert len(json.loads(years.cursor)["asked"]) <= 104


def forge(root: Path, year: int, tiles: pa.Array | None, more: dict[str, Any] | None = None) -> None:
    """A tile map and labels of a shared store, as anybody who may write there can make them up."""
    table = pa.table({"x": [1]}) if tiles is None else table_of("tile_map", tile=tiles)
    tables = root / f"training_datasets/small/{year}/tables"
    forge_table(tables / "tile_map.parquet", table, {"fields": {}} | (more or {}))
    forge_table(tables / "label_quality.parquet", table_of("label_quality"), {"fields": {}})


SQUARES = [
    f"{zone}S{column}{row}"
    for zone in range(11, 20)
    for column in "ABCDEFGH"
    for row in "ABCDEFGHJKLMNPQRSTUV"
]
FORGED = {
    "many": pa.array([*SQUARES, *(name.replace("S", "T", 1) for name in SQUARES)]),
    "path": pa.array(["../../x"]),
    "other digits": pa.array(["1\u0664SMG"]),
    "no letter": pa.array(["14SMI"]),
    "line": pa.array(["14SMG\n"]),
    "key": pa.array(["2022|14SMG"]),
    "long": pa.array(["x" * 10_000_000]),
    "control": pa.array(["\x1b[2J\u202e\0"]),
    "null": pa.array([None, "14SMG"]),
    "numbers": pa.array([1, 2]),
    "lists": pa.array([["14SMG"]]),
    "bytes": pa.array([b"14SMG"]),
    "none": None,
}


@pytest.mark.parametrize("tiles", FORGED.values(), ids=FORGED)
def test_a_tile_map_that_is_made_up_adds_no_partition_and_stops_no_other_year(
    labelled_graph: Graph, tiles: pa.Array | None
) -> None:
    assert len(FORGED["many"]) > MAX_TILES
    labelled_graph.instance.add_dynamic_partitions(CDL_YEAR, ["2021"])
    forge(labelled_graph.root, 2021, tiles)
    years = Years(labelled_graph)
    assert tiles_of(years.tick()) == set(TILES)
    assert set(labelled_graph.instance.get_dynamic_partitions(TILE)) == set(TILES)
    told = json.loads(years.cursor or "")["told"]
    assert re.search("; 2021: .*tile.map.*; materialize (tile_map|its asset) again", told)
    assert len(told) < 1000 and told.isprintable()


def test_the_tiles_of_all_years_together_are_bounded(graph: Graph) -> None:
    years = Years(graph)
    for year, band in ((2020, "R"), (2021, "S"), (2022, "T")):
        graph.instance.add_dynamic_partitions(CDL_YEAR, [str(year)])
        forge(graph.root, year, pa.array([name.replace("S", band, 1) for name in SQUARES[:900]]))
    years.tick()
    assert len(graph.instance.get_dynamic_partitions(TILE)) <= MAX_TILES
    assert "more would exceed the limit of 2,000; delete those" in json.loads(years.cursor or "")["told"]


@pytest.mark.parametrize("record", [{"tiles": {"chips": {"../x": "1"}}}, {"upstream": {"../../../x": "1"}}])
def test_a_record_that_names_paths_stops_no_other_year(labelled_graph: Graph, record: dict[str, Any]) -> None:
    labelled_graph.instance.add_dynamic_partitions(CDL_YEAR, ["2021"])
    forge(labelled_graph.root, 2021, pa.array(["14SMG"]), record)
    years = Years(labelled_graph)
    assert tiles_of(years.tick()) == set(TILES)


def test_a_folder_in_place_of_a_table_stops_no_other_year(labelled_graph: Graph) -> None:
    labelled_graph.instance.add_dynamic_partitions(CDL_YEAR, ["2021"])
    (labelled_graph.root / "training_datasets/small/2021/tables/tile_map.parquet").mkdir(parents=True)
    assert tiles_of(Years(labelled_graph).tick()) == set(TILES)
