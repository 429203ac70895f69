import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy
from dagster._core.storage.partition_status_cache import AssetPartitionStatus

from crop_assets.graph.years import failed_because
from crop_assets.partitions import CDL_YEAR, TILE, year_tile_partitions
from crop_assets_tests.small_world import (
    CHIPS,
    DATASET,
    EAST,
    KEPT,
    MIDDLE,
    REJECTED,
    SOUTH,
    THREE_TILES,
    TILE_STAGES,
    WEST,
    YEAR,
    Finished,
    Graph,
    Run,
    Served,
    Setting,
    Traffic,
    digests,
    ledger,
    new_graph,
    recipe,
)
from resources.downloads import Downloads
from resources.earthdata import LpDaac
from resources.stac import SceneStac


def stages_of(run: Run, tile: str) -> list[str]:
    return [stage for stage, partition in run.made if partition == f"{YEAR}|{tile}"]


@pytest.fixture(scope="module")
def labelled_three(
    setting: Setting, served: Served, three_tiles: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A store with the labels of the three tiles alone; nobody changes it."""
    root = tmp_path_factory.mktemp("labelled_three")
    with new_graph(root, setting, served.server) as graph:
        assert graph.run("labels_job", **three_tiles).success
    return root


@pytest.fixture
def graph_of_three(graph: Graph, labelled_three: Path) -> Graph:
    shutil.copytree(labelled_three, graph.root)
    return graph


@pytest.fixture
def spoilt_file(traffic: Traffic, setting: Setting) -> str:
    """The name of a file of the eastern tile that comes with wrong bytes from IPFS, and not at all from LP DAAC."""
    scene = setting.scene(EAST, MIDDLE[EAST])
    traffic.corrupt.add(scene.files["B8A"].cid)
    return scene.file_name("B8A")


def test_a_catalogue_that_fails_for_one_tile_stops_that_tile_alone(
    finished_graph: Graph, finished: Finished, served: Served, traffic: Traffic
) -> None:
    before = digests(finished_graph.root)
    west_edge = str(finished.graph.table("tile_map").set_index("tile").loc[EAST, "tile_west"].iloc[0])
    traffic.broken["/cmr/stac/search"] = 503
    traffic.only = west_edge.encode()
    again = SceneStac(url=served.server.stac_url, attempts=2, refresh=True)
    run = finished_graph.run("tiles_job", stac=again)
    assert not run.success
    assert stages_of(run, WEST) == list(TILE_STAGES)
    assert stages_of(run, EAST) == []
    assert run.redone == {("scene_metadata", f"{YEAR}|{WEST}")}
    for told in (
        "Failure: the STAC catalogue",
        f"({EAST} at scene_metadata). 1 of 2 tiles failed; the other one is done.",
        "did not answer after 2 tries",
        "materialize this tile again later",
    ):
        assert told in run.failure
    # the catalogue has another address, so that its answer for the western tile is a new one
    after = digests(finished_graph.root)
    assert {name: digest for name, digest in after.items() if name in before} == before
    assert [name[:14] for name in set(after) - set(before)] == [f"answers/{WEST}-"]


def test_a_file_that_cannot_be_had_stops_its_tile_and_the_dataset_says_so(
    labelled_graph: Graph, finished: Finished, traffic: Traffic, spoilt_file: str
) -> None:
    graph = labelled_graph
    run = graph.run("tiles_job")
    assert not run.success
    for told in (
        f"(1 of 18 files are missing) ({EAST} at downloaded_bands). 1 of 2 tiles failed; the other one is done.",
        f"Failure: {spoilt_file} could not be had by its CID ",
        "Nothing that fits was sent",
        "LP DAAC: ",
        "answered 401: not allowed with these credentials: log in with a bearer token; set EARTHDATA_TOKEN",
    ):
        assert told in run.failure
    assert stages_of(run, WEST) == list(TILE_STAGES)
    at = TILE_STAGES.index("downloaded_bands")
    assert stages_of(run, EAST) == list(TILE_STAGES[:at])
    for stage in TILE_STAGES[at:]:
        key = run.made[stage, f"{YEAR}|{WEST}"].asset_key
        assert graph.instance.get_materialized_partitions(key) == {f"{YEAR}|{WEST}"}
    kept_west = sorted(set(KEPT) & set(CHIPS[WEST]))

    dataset = graph.run("dataset_job", recipe=recipe(max_missing_tiles=1))
    assert dataset.success, dataset.failure
    check = dataset.checks["splits", "every_tile_is_in"]
    assert (check.passed, check.severity.value) == (False, "WARN")
    missing = str(check.metadata["missing"].value)
    assert missing.startswith(f"- **{EAST}**: failed at downloaded_bands: {spoilt_file} ")
    assert sorted(graph.table("splits")["chip_id"]) == kept_west
    rows = {row["chip_id"]: row for row in ledger(graph)}
    assert {name: row["reason"] for name, row in rows.items()} == {
        **{chip_id: reason for chip_id, reason in REJECTED.items() if chip_id in CHIPS[WEST]},
        **dict.fromkeys(CHIPS[EAST], "tile_missing"),
    }
    (detail,) = {rows[chip_id]["detail"] for chip_id in CHIPS[EAST]}
    assert detail.startswith(f"failed at downloaded_bands: {spoilt_file} ")
    assert "answered 401: not allowed with these credentials" in detail

    traffic.clear()
    run = graph.run("tiles_job")
    assert run.success, run.failure
    assert run.redone == {(stage, f"{YEAR}|{EAST}") for stage in TILE_STAGES[at:]}
    assert [asked.path.split("/")[1] for asked in traffic.asked] == ["ipfs"], "the other 17 files are there"
    dataset = graph.run("dataset_job")
    assert dataset.redone == {(asset, str(YEAR)) for asset in DATASET if asset != "tile_payloads"}
    assert dataset.checks["splits", "every_tile_is_in"].passed
    assert digests(graph.root) == digests(finished.graph.root)


def test_a_dataset_is_not_made_without_a_tile_that_nobody_allowed_to_be_missing(
    graph_of_three: Graph, traffic: Traffic, three_tiles: dict[str, Any]
) -> None:
    graph = graph_of_three
    assert graph.table("tile_map").groupby("tile")["chip_id"].agg(sorted).to_dict() == THREE_TILES
    traffic.broken["/cmr/search"] = traffic.broken["/cmr/stac"] = 503
    graph.run("tiles_job", tiles=[SOUTH], **three_tiles)
    traffic.clear()
    assert graph.run("tiles_job", **three_tiles).success
    before = digests(graph.root)

    run = graph.run("dataset_job", **three_tiles)
    assert not run.success
    assert run.made == {}
    for asset in ("splits", "tile_payloads"):
        check = run.checks[asset, "every_tile_is_in"]
        assert (check.passed, check.severity.value) == (False, "ERROR")
        assert check.metadata["tiles_missing"].value == 1
        assert str(check.metadata["missing"].value).startswith(f"- **{SOUTH}**: failed at scene_metadata: ")
        assert (
            f"{asset} {YEAR}: 1 of 3 tiles is missing, and max_missing_tiles allows 0. {SOUTH}: "
            in run.failure
        )
    assert "failed at scene_metadata: " in run.failure
    assert (
        f"Nothing was written. Backfill tiles_job over these tiles of {YEAR}, or set max_missing_tiles: 1 "
        in (run.failure)
    )
    assert digests(graph.root) == before

    allowed = three_tiles["recipe"].model_copy(update={"max_missing_tiles": 1})
    run = graph.run("dataset_job", **three_tiles | {"recipe": allowed})
    assert run.success, run.failure
    for asset in ("splits", "tile_payloads"):
        check = run.checks[asset, "every_tile_is_in"]
        assert (check.passed, check.severity.value) == (False, "WARN")
    assert set(graph.table("splits")["tile"]) == {WEST, EAST}
    missing = {row["chip_id"]: row for row in ledger(graph) if row["reason"] == "tile_missing"}
    assert sorted(missing) == THREE_TILES[SOUTH]
    assert all(row["detail"].startswith("failed at scene_metadata: ") for row in missing.values())

    # one more is missing than is allowed, and the dataset of before stays as it is
    before = digests(graph.root)
    (graph.root / graph.layout.table("filtered_chips", EAST)).unlink()
    run = graph.run("dataset_job", **three_tiles | {"recipe": allowed})
    assert not run.success
    assert "2 of 3 tiles are missing, and max_missing_tiles allows 1" in run.failure
    assert f"The splits of an earlier run is still in {graph.layout.root}" in run.failure
    run = graph.run("dataset_job", stages=["band_stats"], **three_tiles | {"recipe": allowed})
    assert f"band_stats {YEAR}: splits was made from filtered_chips of {EAST}, but now " in run.failure
    assert digests(graph.root).items() <= before.items()


def attempts(run: Run) -> int:
    """How often the step of the tiles was worked on."""
    logs = run.instance.all_logs(run.result.run_id, dg.DagsterEventType.STEP_UP_FOR_RETRY)
    return 1 + len(logs)


def chips_in(graph: Graph) -> set[str]:
    return {path.name.removesuffix("_merged.tif") for path in (graph.dataset / "chips").glob("*_merged.tif")}


RETRIED = Downloads(attempts=1, tile_retries=2, tile_pause_seconds=0)


@pytest.mark.parametrize(("wrong", "tries"), [(1, 2), (2, 3)])
def test_a_file_that_comes_in_a_later_attempt_leaves_nothing_out(
    labelled_graph: Graph, finished: Finished, setting: Setting, traffic: Traffic, wrong: int, tries: int
) -> None:
    cid = setting.scene(EAST, MIDDLE[EAST]).files["B8A"].cid
    traffic.broken[f"/ipfs/{cid}"], traffic.broken["/lpdaac/"] = 503, 503
    traffic.times[f"/ipfs/{cid}"] = wrong
    run = labelled_graph.run("tiles_job", downloads=RETRIED)
    assert run.success, run.failure
    assert attempts(run) == tries
    assert sum(asked.path == f"/ipfs/{cid}" for asked in traffic.asked) == tries
    assert set(run.made) == {(s, f"{YEAR}|{t}") for s in TILE_STAGES for t in (WEST, EAST)}
    assert digests(labelled_graph.dataset / "chips") == digests(finished.graph.dataset / "chips")


def test_a_file_that_never_comes_is_asked_for_a_bounded_number_of_times(
    labelled_graph: Graph, setting: Setting, traffic: Traffic
) -> None:
    scene = setting.scene(EAST, MIDDLE[EAST])
    traffic.broken[f"/ipfs/{scene.files['Fmask'].cid}"], traffic.broken["/lpdaac/"] = 503, 503
    run = labelled_graph.run("tiles_job", downloads=RETRIED)
    assert not run.success
    assert attempts(run) == 3
    last = run.failure.splitlines()
    assert any(line.startswith(f"{scene.file_name('Fmask')} could not be had by its CID ") for line in last)
    assert f"({EAST} at downloaded_fmasks). 1 of 2 tiles failed; the other one is done." in run.failure
    assert chips_in(labelled_graph) == set(CHIPS[WEST])
    made = set(TILE_STAGES[: TILE_STAGES.index("downloaded_fmasks")])
    assert set(stages_of(run, EAST)) == made
    for stage in TILE_STAGES:
        status = labelled_graph.instance.get_status_by_partition(
            dg.AssetKey(stage), [f"{YEAR}|{WEST}", f"{YEAR}|{EAST}"], year_tile_partitions
        )
        assert status is not None
        assert status[f"{YEAR}|{WEST}"] == AssetPartitionStatus.MATERIALIZED
        expected = AssetPartitionStatus.MATERIALIZED if stage in made else AssetPartitionStatus.FAILED
        assert status[f"{YEAR}|{EAST}"] == expected


@pytest.mark.parametrize("status", [400, 401, 404])
def test_what_no_later_attempt_changes_is_tried_once(
    labelled_graph: Graph, setting: Setting, traffic: Traffic, status: int
) -> None:
    cid = setting.scene(EAST, MIDDLE[EAST]).files["B8A"].cid
    traffic.broken[f"/ipfs/{cid}"], traffic.broken["/lpdaac/"] = status, status
    run = labelled_graph.run("tiles_job", tiles=[EAST], downloads=RETRIED)
    assert not run.success
    assert attempts(run) == 1
    assert "This was the only tile of the run." in run.failure


def test_of_three_tiles_those_alone_are_worked_on_again_whose_cause_may_pass(
    graph_of_three: Graph, setting: Setting, traffic: Traffic, three_tiles: dict[str, Any]
) -> None:
    """The eastern tile's file comes in the second attempt, the western one's never does, as it is wrong."""
    graph = graph_of_three
    east = setting.scene(EAST, MIDDLE[EAST]).files["Fmask"].cid
    west = setting.scene(WEST, MIDDLE[WEST]).files["Fmask"].cid
    traffic.broken[f"/ipfs/{east}"], traffic.broken["/lpdaac/"] = 503, 503
    traffic.times[f"/ipfs/{east}"] = 1
    traffic.corrupt.add(west)
    lp_daac = LpDaac(hosts=["nowhere.invalid"])
    run = graph.run("tiles_job", tiles=sorted(THREE_TILES), downloads=RETRIED, lp_daac=lp_daac, **three_tiles)
    assert not run.success
    assert attempts(run) == 2
    assert f"({WEST} at downloaded_fmasks). 1 of 3 tiles failed; the other 2 are done." in run.failure
    assert f"{EAST} at " not in run.failure.splitlines()[-1]
    assert sum(asked.path == f"/ipfs/{west}" for asked in traffic.asked) == 1
    assert chips_in(graph) == set(THREE_TILES[EAST])
    events = run.instance.all_logs(run.result.run_id, dg.DagsterEventType.ASSET_MATERIALIZATION)
    made = [e.asset_materialization for e in events if e.asset_materialization]
    south = [m.asset_key.to_user_string() for m in made if m.partition == f"{YEAR}|{SOUTH}"]
    assert south == list(TILE_STAGES), "it was done, and is not done twice"


def test_a_tile_that_the_second_attempt_made_is_not_worked_on_in_the_third(
    labelled_graph: Graph, setting: Setting, traffic: Traffic
) -> None:
    traffic.broken["/lpdaac/"] = 503
    for tile, wrong in ((WEST, 1), (EAST, 2)):
        cid = setting.scene(tile, MIDDLE[tile]).files["Fmask"].cid
        traffic.broken[f"/ipfs/{cid}"], traffic.times[f"/ipfs/{cid}"] = 503, wrong
    run = labelled_graph.run("tiles_job", downloads=RETRIED)
    assert run.success, run.failure
    assert attempts(run) == 3
    assert chips_in(labelled_graph) == {*CHIPS[WEST], *CHIPS[EAST]}
    events = run.instance.all_logs(run.result.run_id, dg.DagsterEventType.ASSET_MATERIALIZATION)
    made = [
        (e.asset_materialization.asset_key.to_user_string(), e.asset_materialization.partition)
        for e in events
        if e.asset_materialization
    ]
    times = {tile: made.count(("filtered_chips", f"{YEAR}|{tile}")) for tile in (WEST, EAST)}
    assert times == {WEST: 1, EAST: 1}


def test_a_tile_that_fails_later_on_keeps_what_it_had(
    finished_graph: Graph, finished: Finished, traffic: Traffic, spoilt_file: str
) -> None:
    damaged = next(finished_graph.dataset.rglob(f"tiles/*/{spoilt_file}"))
    damaged.write_bytes(b"damaged")
    run = finished_graph.run("tiles_job")
    assert f"{EAST} at downloaded_bands" in run.failure
    after = digests(finished_graph.root)
    before = digests(finished.graph.root)
    assert {name for name in before if after.get(name) != before[name]} == {
        damaged.relative_to(finished_graph.root).as_posix()
    }
    assert {name for name in set(after) - set(before) if not name.startswith(".partial-")} == set()


def test_the_causes_of_many_missing_tiles_take_few_queries() -> None:
    tiles = [f"{zone:02d}S{column}{row}" for zone in range(10, 20) for column in "ABCDE" for row in "FGHJKL"]
    assert len(tiles) == 300
    late, early, twice = tiles[:3]
    with dg.DagsterInstance.ephemeral() as instance:

        def failed(tile: str, cause: str) -> None:
            why = {"failed": f"failed at chips: {cause}"}
            observed = dg.AssetObservation("filtered_chips", partition=f"{YEAR}|{tile}", metadata=why)
            instance.report_runless_asset_event(observed)

        def made(tile: str) -> None:
            event = dg.AssetMaterialization("filtered_chips", partition=f"{YEAR}|{tile}")
            instance.report_runless_asset_event(event)

        for tile in (early, twice):
            made(tile)
        failed(twice, "no room")
        for tile in tiles[:-1]:
            failed(tile, f"{tile} is away")
        made(late)
        statements: list[str] = []

        def count(_connection: object, _cursor: object, statement: str, *_: object) -> None:
            statements.append(statement)

        sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", count)
        try:
            causes = failed_because(instance, "filtered_chips", YEAR, tiles)
        finally:
            sqlalchemy.event.remove(sqlalchemy.Engine, "before_cursor_execute", count)
    assert causes == {tile: f"failed at chips: {tile} is away" for tile in tiles[1:-1]}
    assert 0 < sum("FROM event_logs" in statement for statement in statements) < 10


@pytest.mark.parametrize("deleted", [(TILE, EAST), (TILE, WEST), (CDL_YEAR, str(YEAR))])
def test_a_partition_that_is_deleted_during_the_run_takes_no_tile_along(
    graph_of_three: Graph, traffic: Traffic, three_tiles: dict[str, Any], deleted: tuple[str, str]
) -> None:
    graph = graph_of_three
    traffic.silent.add("/cmr/")

    def delete() -> None:
        while not traffic.asked:
            time.sleep(0.05)
        graph.instance.delete_dynamic_partition(*deleted)
        traffic.clear()

    with ThreadPoolExecutor(1) as thread:
        deleting = thread.submit(delete)
        run = graph.run("tiles_job", tiles=sorted(THREE_TILES), **three_tiles)
        deleting.result()
    assert run.success, run.failure
    assert deleted[1] not in graph.instance.get_dynamic_partitions(deleted[0])
    assert set(run.made) == {(stage, f"{YEAR}|{tile}") for stage in TILE_STAGES for tile in THREE_TILES}
    chips = {path.name for path in (graph.dataset / "chips").glob("*_merged.tif")}
    assert chips == {f"{chip}_merged.tif" for tile in (WEST, EAST) for chip in THREE_TILES[tile]}


def test_a_cause_that_somebody_made_up_is_short_and_on_one_line(finished_graph: Graph) -> None:
    words = "failed at chips: \x1b[31m\n" + "x" * 1_000_000
    finished_graph.instance.report_runless_asset_event(
        dg.AssetObservation("filtered_chips", partition=f"{YEAR}|{EAST}", metadata={"failed": words})
    )
    (finished_graph.dataset / f"tables/filtered_chips/{EAST}.parquet").unlink()
    causes = failed_because(finished_graph.instance, "filtered_chips", YEAR, [EAST])
    assert len(causes[EAST]) <= 4000 and causes[EAST].isprintable()
    run = finished_graph.run("dataset_job", recipe=recipe(max_missing_tiles=1))
    assert run.success, run.failure
    ledger = (finished_graph.dataset / "rejected_chips.csv").read_text()
    assert len(max(ledger.splitlines(), key=len)) < 5000 and "\x1b" not in ledger
