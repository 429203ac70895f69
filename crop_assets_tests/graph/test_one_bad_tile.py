import pytest

from crop_assets_tests.graph.conftest import (
    CHIPS,
    DATASET,
    EAST,
    KEPT,
    MIDDLE,
    REJECTED,
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
)
from resources.stac import SceneStac


def stages_of(run: Run, tile: str) -> list[str]:
    return [stage for stage, partition in run.made if partition == f"{YEAR}|{tile}"]


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
        f"1 of 2 tiles failed; the others are done. {EAST} at scene_metadata: the STAC catalogue",
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
        f"1 of 2 tiles failed; the others are done. {EAST} at downloaded_bands: 1 of 18 files are missing. "
        f"{spoilt_file} could not be had by its CID ",
        "Nothing that fits was sent",
        "LP DAAC: ",
        "answered 401: not allowed with these credentials; set EARTHDATA_TOKEN",
    ):
        assert told in run.failure
    assert stages_of(run, WEST) == list(TILE_STAGES)
    at = TILE_STAGES.index("downloaded_bands")
    assert stages_of(run, EAST) == list(TILE_STAGES[:at])
    for stage in TILE_STAGES[at:]:
        key = run.made[stage, f"{YEAR}|{WEST}"].asset_key
        assert graph.instance.get_materialized_partitions(key) == {f"{YEAR}|{WEST}"}
    kept_west = sorted(set(KEPT) & set(CHIPS[WEST]))

    dataset = graph.run("dataset_job")
    assert dataset.success, dataset.failure
    (check,) = dataset.result.get_asset_check_evaluations()
    assert (check.check_name, check.passed, check.severity.value) == ("every_tile_is_in", False, "WARN")
    missing = str(check.metadata["missing"].value)
    assert missing.startswith(f"- **{EAST}**: filtered_chips has not been materialized")
    assert sorted(graph.table("splits")["chip_id"]) == kept_west
    rows = {row["chip_id"]: row for row in ledger(graph)}
    assert {name: row["reason"] for name, row in rows.items()} == {
        **{chip_id: reason for chip_id, reason in REJECTED.items() if chip_id in CHIPS[WEST]},
        **dict.fromkeys(CHIPS[EAST], "tile_missing"),
    }
    assert {rows[chip_id]["detail"] for chip_id in CHIPS[EAST]} == {missing.split(": ")[1]}

    traffic.clear()
    run = graph.run("tiles_job")
    assert run.success, run.failure
    assert run.redone == {(stage, f"{YEAR}|{EAST}") for stage in TILE_STAGES[at:]}
    assert [asked.path.split("/")[1] for asked in traffic.asked] == ["ipfs"], "the other 17 files are there"
    dataset = graph.run("dataset_job")
    assert dataset.redone == {(asset, str(YEAR)) for asset in DATASET if asset != "tile_payloads"}
    (check,) = dataset.result.get_asset_check_evaluations()
    assert check.passed
    assert digests(graph.root) == digests(finished.graph.root)


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
    assert {name for name in set(after) - set(before) if not name.startswith(".partial/")} == set()
