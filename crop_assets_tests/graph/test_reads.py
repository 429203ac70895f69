"""How often a run reads the tables of the store, which on an object store is a request each."""

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator
from typing import IO

import pytest

from crop_assets_tests.small_world import DATASET, TILE_STAGES, TILES, Graph
from resources.store import DatasetStore

COUNTED: Counter[str] = Counter()
_LOCK = threading.Lock()


class CountingStore(DatasetStore):
    """A store that counts how often each table is opened and found."""

    @contextlib.contextmanager
    def reading(self, name: str) -> Iterator[IO[bytes]]:
        with super().reading(name) as file:
            if "/tables/" in name:
                with _LOCK:
                    COUNTED[name.split("/tables/")[1]] += 1
            yield file


@pytest.fixture(autouse=True)
def _nothing_counted() -> None:
    COUNTED.clear()


def test_a_run_reads_a_table_of_the_year_once_and_one_of_a_tile_once(labelled_graph: Graph) -> None:
    store = CountingStore(root=str(labelled_graph.root))
    assert labelled_graph.run("tiles_job", store=store).success
    of_years = {name: count for name, count in COUNTED.items() if "/" not in name}
    of_tiles = {name: count for name, count in COUNTED.items() if "/" in name}
    # the record of how it was made, and the rows
    assert set(of_years) >= {"tile_map.parquet", "cdl.parquet"}
    assert max(of_years.values()) <= 2
    # what is read is what was written, by a later stage or a check
    assert set(of_tiles) == {f"{name}/{tile}.parquet" for name in TILE_STAGES for tile in TILES}
    assert max(of_tiles.values()) == 1

    # the steps of a run share what they read, and see what the earlier ones wrote
    COUNTED.clear()
    run = labelled_graph.run("dataset_job", store=store)
    assert run.success
    assert {asset for asset, _ in run.redone} == set(DATASET)
    assert {f"{name}/{tile}.parquet" for name in TILE_STAGES for tile in TILES} <= set(COUNTED)
    # downloaded_bands: its record, and its rows for each of the five stages that name scenes and CIDs
    assert max(COUNTED.values()) <= 6
    assert COUNTED.total() <= 84

    # and the next run judges again
    store.remove(labelled_graph.layout.table("filtered_chips", TILES[0]))
    assert (
        f"filtered_chips has not been materialized for {TILES[0]}"
        in labelled_graph.run("dataset_job", store=store).failure
    )


def test_a_run_that_reuses_all_reads_each_table_twice_at_most(labelled_graph: Graph) -> None:
    store = CountingStore(root=str(labelled_graph.root))
    assert labelled_graph.run("tiles_job", store=store).success
    COUNTED.clear()
    assert labelled_graph.run("tiles_job", store=store).success
    assert {f"{name}/{tile}.parquet" for name in TILE_STAGES for tile in TILES} <= set(COUNTED)
    assert max(COUNTED.values()) <= 2
