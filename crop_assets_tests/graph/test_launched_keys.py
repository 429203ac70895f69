"""Which partitions a run of the tile stages works on, by the tags that each way of launching puts on it."""

import time

import pytest
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill

from crop_assets.definitions import build_defs
from crop_assets.partitions import CDL_YEAR, TILE
from crop_assets_tests.small_world import EAST, TILE_STAGES, TILES, WEST, YEAR, Graph, Run

START, END = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"


def launch(graph: Graph, tags: dict[str, str]) -> Run:
    graph.instance.add_dynamic_partitions(TILE, list(TILES))
    job = build_defs(graph.resources).resolve_job_def("plan_job")
    return Run(
        job.execute_in_process(instance=graph.instance, raise_on_error=False, tags=tags), graph.instance
    )


def tables(graph: Graph) -> set[str]:
    """The tiles that have a table of any stage."""
    return {
        path.stem for stage in TILE_STAGES for path in (graph.dataset / "tables" / stage).glob("*.parquet")
    }


@pytest.mark.parametrize(
    "tags",
    [
        {START: f"{YEAR}|{WEST}", END: f"{YEAR}|{EAST}"},
        # as runs of a backfill from a job's page have them: the dimensions of the backfill's first key as well
        {
            START: f"{YEAR}|{WEST}",
            END: f"{YEAR}|{EAST}",
            "dagster/partition/cdl_year": str(YEAR),
            "dagster/partition/tile": WEST,
        },
    ],
)
def test_a_range_counts_whatever_else_the_tags_say(labelled_graph: Graph, tags: dict[str, str]) -> None:
    assert tables(labelled_graph) == set()
    assert launch(labelled_graph, tags).success
    assert tables(labelled_graph) == {WEST, EAST}


@pytest.mark.parametrize(
    "tags",
    [
        {"dagster/partition": f"{YEAR}|{EAST}"},
        {"dagster/partition/cdl_year": str(YEAR), "dagster/partition/tile": EAST},
    ],
)
def test_one_tile_is_one_tile(labelled_graph: Graph, tags: dict[str, str]) -> None:
    assert launch(labelled_graph, tags).success
    assert tables(labelled_graph) == {EAST}


def test_a_range_that_holds_nothing_fails(labelled_graph: Graph) -> None:
    run = launch(labelled_graph, {START: f"{YEAR}|{EAST}", END: f"{YEAR}|{WEST}"})
    assert not run.success
    assert (
        f"this run names {YEAR}|{WEST}, {YEAR}|{EAST}, and Dagster planned it for none; nothing was made"
        in run.failure
    )
    assert tables(labelled_graph) == set()


def test_a_backfill_of_which_dagster_would_lose_runs_fails(labelled_graph: Graph) -> None:
    many = [f"{number:02d}SKA" for number in range(1, 54)]
    labelled_graph.instance.add_dynamic_partitions(CDL_YEAR, [str(YEAR - 1)])
    labelled_graph.instance.add_dynamic_partitions(TILE, [*TILES, *many])
    for name, years, fails in (("one", [YEAR], False), ("two", [YEAR, YEAR - 1], True)):
        names = [f"{year}|{tile}" for year in years for tile in (*TILES, *many)]
        labelled_graph.instance.add_backfill(
            PartitionBackfill(
                backfill_id=name,
                status=BulkActionStatus.REQUESTED,
                from_failure=False,
                tags={},
                backfill_timestamp=time.time(),
                partition_names=names,
            )
        )
        resources = build_defs(labelled_graph.resources, tiles_per_run=2)
        result = resources.resolve_job_def("plan_job").execute_in_process(
            instance=labelled_graph.instance,
            raise_on_error=False,
            tags={START: f"{YEAR}|{WEST}", END: f"{YEAR}|{EAST}", "dagster/backfill": name},
        )
        run = Run(result, labelled_graph.instance)
        assert run.success is not fails
        if fails:
            assert "takes 56 runs over 2 years, of which Dagster would leave some out" in run.failure
            assert run.made == {}
