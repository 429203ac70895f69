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
        f"this run is for {YEAR}|{WEST}, {YEAR}|{EAST}, but Dagster planned it for none; nothing was made"
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
            assert "has 56 runs over 2 years, and Dagster would skip some of them" in run.failure
            assert run.made == {}


ODD = [
    "../x",
    "../../../x",
    "a\x1b[31m",
    "a\nb",
    "a\u202eb",
    "x" * 10_000,
    "1\u0664SMG",
    "",
    "14SMI",
    "14SMG\0",
]


def test_partitions_of_any_name_fail_by_themselves_and_become_no_paths(labelled_graph: Graph) -> None:
    graph = labelled_graph
    graph.instance.add_dynamic_partitions(TILE, [WEST, *ODD, EAST])
    around = set(graph.root.parent.iterdir())
    run = launch(graph, {START: f"{YEAR}|{WEST}", END: f"{YEAR}|{EAST}"})
    assert not run.success
    assert tables(graph) == {WEST, EAST}
    assert set(graph.root.parent.iterdir()) == around
    tile_files = {
        path.name[:5] for path in graph.root.rglob("*") if path.parent.name in (*TILE_STAGES, "answers")
    }
    assert tile_files == {WEST, EAST}
    assert "is not a CDL year and HLS tile, such as 2022|14SMG; delete it" in run.failure
    assert f"{len(ODD)} of {len(ODD) + 2} tiles failed; the other 2 are done" in run.failure
    (described,) = {
        event.step_failure_data.user_failure_data.description
        for event in run.result.all_events
        if event.is_step_failure and event.step_failure_data.user_failure_data
    }
    assert described is not None
    assert len(described) <= 4000 and described.isprintable()


@pytest.mark.parametrize(
    "year", ["../x", "\u0662\u0660\u0662\u0662", "a\x1b[31m", "x" * 10_000, "2022\n", ""]
)
@pytest.mark.parametrize("job", ["labels_job", "plan_job"])
def test_a_year_of_any_name_is_refused_in_short(labelled_graph: Graph, job: str, year: str) -> None:
    labelled_graph.instance.add_dynamic_partitions(CDL_YEAR, [year])
    labelled_graph.instance.add_dynamic_partitions(TILE, [WEST])
    key = f"{year}|{WEST}" if job == "plan_job" else year
    result = (
        build_defs(labelled_graph.resources)
        .resolve_job_def(job)
        .execute_in_process(
            instance=labelled_graph.instance, raise_on_error=False, tags={"dagster/partition": key}
        )
    )
    described = {
        event.step_failure_data.user_failure_data.description or ""
        for event in result.all_events
        if event.is_step_failure and event.step_failure_data.user_failure_data
    }
    assert described
    for words in described:
        assert "is not a CDL year" in words and len(words) < 1000 and words.isprintable()


def test_a_tile_with_the_sign_between_year_and_tile_is_named(labelled_graph: Graph) -> None:
    labelled_graph.instance.add_dynamic_partitions(TILE, ["2022|14SMG"])
    run = launch(labelled_graph, {"dagster/partition": f"{YEAR}|2022|14SMG"})
    assert "'2022|2022|14SMG' is not a CDL year and HLS tile" in run.failure
