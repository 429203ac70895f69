"""The dataset sensor, ticked on a real instance over real tables."""

import json

import dagster as dg
import pytest

from crop_assets.automation.sensors import dataset_sensor
from crop_assets.partitions import TILE
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
    assert f"{YEAR}: 2 of 2 tiles are to be made" in str(waiting.skip_reason), "nothing has happened since"

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
