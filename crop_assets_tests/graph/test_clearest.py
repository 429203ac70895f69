"""`scene_rule: clearest` in the whole graph: which Fmask files are fetched, what is measured, and what is chosen."""

import signal
from concurrent.futures import Executor
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT

from crop_assets.chip_grid import chip_geobox
from crop_assets.demo.scenes import Scene
from crop_assets.hls import FMASK_COUNTS
from crop_assets.recipe import DatasetRecipe
from crop_assets.verify import verify_tables
from crop_assets_tests.graph.test_killed_runs import finished_files, run_and_die
from crop_assets_tests.graph.test_scenes import choice
from crop_assets_tests.small_world import (
    CHIPS,
    CLOUDY,
    EAST,
    FIRST,
    GAPPY,
    LAST,
    MIDDLE,
    SLIGHTLY_CLOUDY,
    SOUTH,
    SPARE_DAY,
    THREE_TILES,
    TILES,
    WEST,
    YEAR,
    Finished,
    Graph,
    Run,
    Served,
    Setting,
    Traffic,
    digests,
    recipe,
    write_three_tiles,
)
from resources.cdl import CdlReleases
from resources.earthdata import LpDaac
from resources.store import DatasetStore

ALL_THREE = {**CHIPS, SOUTH: THREE_TILES[SOUTH]}
LP_DAAC = LpDaac(hosts=["nowhere.invalid"])


def clearest(**changes: Any) -> DatasetRecipe:
    return recipe(scene_rule="clearest", **changes)


@pytest.fixture
def three(tmp_path: Path) -> dict[str, Any]:
    """Resources for six chips in each of two tiles, and two in a third without scenes."""
    folder = tmp_path / "three"
    folder.mkdir()
    cdl, boxes = write_three_tiles(folder, ALL_THREE)
    return {"cdl_releases": CdlReleases(source=str(cdl), index=""), "recipe": clearest(chip_boxes=str(boxes))}


def files_asked(traffic: Traffic, setting: Setting) -> list[tuple[str, str]]:
    """The tile and band of each file that was asked for, by CID or link."""
    of = {f"/ipfs/{file.cid}": (s.tile, band) for s in setting.world.scenes for band, file in s.files.items()}
    of |= {
        f"/lpdaac/{s.scene_id}/{s.file_name(band)}": (s.tile, band)
        for s in setting.world.scenes
        for band in s.files
    }
    return [of[asked.path] for asked in traffic.asked if asked.path in of]


def fmasks_asked(traffic: Traffic, setting: Setting) -> list[str]:
    return sorted(tile for tile, band in files_asked(traffic, setting) if band == "Fmask")


def chosen_days(graph: Graph, tile: str) -> list[int]:
    table = graph.table("selected_scenes", tile)
    return [date.timetuple().tm_yday for date in table.loc[table["position"] != "", "date"]]


def counted(setting: Setting, scene: Scene, chip_id: str) -> dict[str, int]:
    """The counts of a chip by GDAL's warp of the world's file and plain comparisons."""
    box = chip_geobox(chip_id)
    with (
        rasterio.open(setting.world.band_path(scene, "Fmask")) as raster,
        WarpedVRT(
            raster,
            crs=box.crs.to_wkt(),
            transform=box.transform,
            width=224,
            height=224,
            resampling=Resampling.nearest,
            nodata=255,
            tolerance=1e-6,
            XSCALE=1,
            YSCALE=1,
        ) as there,
    ):
        values = there.read(1)
    seen = values != 255
    cloud, shadow, snow = (seen & (values & bit > 0) for bit in (2, 8, 16))
    bad = [np.count_nonzero(values == value) for value in range(256) if value & (2 | 8 | 16)]
    return {
        "cloud": int(cloud.sum()),
        "shadow": int(shadow.sum()),
        "snow": int(snow.sum()),
        "bad": int((cloud | shadow | snow).sum()),
        "worst_value": max(bad),
        "fill": int((~seen).sum()),
    }


def run_tiles(graph: Graph, tiles: Any = TILES, **changes: Any) -> Run:
    run = graph.run("tiles_job", tiles=sorted(tiles), **changes)
    assert run.success, run.failure
    return run


def test_three_tiles_are_measured_from_an_empty_store_and_nothing_is_fetched_twice(
    graph: Graph, setting: Setting, traffic: Traffic, three: dict[str, Any], pool: Executor
) -> None:
    assert graph.run("labels_job", **three).success
    run = run_tiles(graph, ALL_THREE, **three)
    # the candidates are all scenes; the selected ones are not fetched again
    fmasks = fmasks_asked(traffic, setting)
    assert fmasks == sorted([WEST] * 3 + [EAST] * 4)
    assert graph.run("dataset_job", **three).success

    for tile, scenes in ((WEST, 3), (EAST, 4)):
        table = graph.table("candidate_fmasks", tile)
        assert len(table) == scenes * len(CHIPS[tile])
        assert table["verified"].all()
        assert set(table["problem"]) == {""}
        scene_of = {scene.scene_id: scene for scene in setting.world.scenes}
        for row in table.to_dict("records"):
            expected = counted(setting, scene_of[row["scene_id"]], row["chip_id"])
            assert {name: row[name] for name in FMASK_COUNTS} == expected, (row["scene_id"], row["chip_id"])
    west = graph.table("candidate_fmasks", WEST).set_index(["date", "chip_id"])
    days = {day: date for date in set(west.index.get_level_values(0)) for day in [date.timetuple().tm_yday]}
    assert west["cloud"][days[FIRST[WEST]], CLOUDY] > 2_508
    assert west["fill"][days[MIDDLE[WEST]], GAPPY] > 0
    assert 0 < west["cloud"][days[LAST[WEST]], SLIGHTLY_CLOUDY] < 2_508

    # as chip_quality counts for the scenes that were selected
    for tile in TILES:
        selected = graph.table("selected_scenes", tile).query("position != ''").set_index("position")
        early = graph.table("candidate_fmasks", tile).set_index(["scene_id", "chip_id"])
        late = graph.table("chip_quality", tile).set_index("chip_id")
        for position, scene_id in selected["scene_id"].items():
            for name in FMASK_COUNTS:
                assert dict(early[name][scene_id]) == dict(late[f"{name}_{position}"])
        passed = int((late["reason"] == "").sum())
        assert set(selected["chips_pass"]) == {passed}
        made = run.made["selected_scenes", f"{YEAR}|{tile}"].metadata
        assert made["chips_pass"].value == passed
    assert chosen_days(graph, EAST) == [FIRST[EAST], MIDDLE[EAST], SPARE_DAY]
    south = run.made["candidate_fmasks", f"{YEAR}|{SOUTH}"].metadata
    assert south["outcome"].value == "no scene of the season can be a candidate"

    tables = [graph.layout.table("candidate_fmasks", tile) for tile in sorted(ALL_THREE)]
    report = verify_tables(DatasetStore(root=str(graph.root)), tables, pool)
    assert (report.tables, report.files, report.bad_files) == (3, 7, [])

    traffic.clear()
    assert run_tiles(graph, ALL_THREE, **three).redone == set()
    assert traffic.asked == []


def test_no_more_candidates_are_fetched_than_the_recipe_allows(
    labelled_graph: Graph, setting: Setting, traffic: Traffic
) -> None:
    run = labelled_graph.run("plan_job", recipe=clearest(max_candidates=3))
    assert run.success, run.failure
    assert sorted(files_asked(traffic, setting)) == [(WEST, "Fmask")] * 3 + [(EAST, "Fmask")] * 3
    table = labelled_graph.table("selected_scenes", EAST)
    left = table[~table["scene_id"].isin(labelled_graph.table("candidate_fmasks", EAST)["scene_id"])]
    assert list(left["reason"]) == ["not among the candidates that were measured"]
    # one more is fetched for one more
    traffic.clear()
    assert labelled_graph.run("plan_job", recipe=clearest(max_candidates=4)).success
    assert files_asked(traffic, setting) == [(EAST, "Fmask")]


def test_other_rules_measure_nothing_and_are_not_made_again_for_it(
    finished_graph: Graph, finished: Finished, setting: Setting, traffic: Traffic
) -> None:
    for tile in TILES:
        assert finished.graph.table("candidate_fmasks", tile).empty
    assert run_tiles(finished_graph, recipe=recipe(max_candidates=5)).redone == set()
    before = digests(finished_graph.dataset)

    run = run_tiles(finished_graph, recipe=clearest())
    assert {tile for stage, tile in run.redone if stage == "candidate_fmasks"} == {
        f"{YEAR}|{tile}" for tile in TILES
    }
    # all but one are there already, and the selected ones are the same but for the last
    assert fmasks_asked(traffic, setting) == [EAST]
    assert {tile for tile, _ in files_asked(traffic, setting)} == {EAST}

    # of the QA rule, only the choice depends
    run = run_tiles(finished_graph, recipe=clearest(max_bad_percent=4.0))
    assert {stage for stage, _ in run.redone} >= {"selected_scenes", "filtered_chips"}
    assert "candidate_fmasks" not in {stage for stage, _ in run.redone}

    traffic.clear()
    run_tiles(finished_graph)
    assert files_asked(traffic, setting) == []
    chips = {name for name in before if name.startswith("chips")}
    after = digests(finished_graph.dataset)
    assert {name: after[name] for name in chips} == {name: before[name] for name in chips}
    for tile in TILES:
        assert finished_graph.table("candidate_fmasks", tile).empty
        assert choice(finished_graph, tile) == choice(finished.graph, tile)


def test_a_candidate_that_nobody_has_is_set_aside(
    labelled_graph: Graph, setting: Setting, traffic: Traffic
) -> None:
    lost = setting.scene(EAST, MIDDLE[EAST])
    traffic.broken[f"/ipfs/{lost.files['Fmask'].cid}"] = 404
    run = run_tiles(labelled_graph, recipe=clearest(), lp_daac=LP_DAAC)
    assert run.made["candidate_fmasks", f"{YEAR}|{EAST}"].metadata["set_aside"].value == 1
    table = labelled_graph.table("candidate_fmasks", EAST).set_index("scene_id")
    absent = table.loc[lost.scene_id]
    assert len(absent) == len(CHIPS[EAST])
    assert absent[[*FMASK_COUNTS, "path"]].isna().all(axis=None)
    assert absent["problem"].str.contains("could not be had by its CID").all()
    assert set(table.loc[table.index != lost.scene_id, "problem"]) == {""}
    assert chosen_days(labelled_graph, EAST) == [FIRST[EAST], SPARE_DAY, LAST[EAST]]
    reason = labelled_graph.table("selected_scenes", EAST).set_index("scene_id")["reason"][lost.scene_id]
    assert reason.startswith(f"its Fmask could not be measured: {lost.file_name('Fmask')} could not be had")
    assert len(labelled_graph.table("filtered_chips", EAST)) == len(CHIPS[EAST])
    measured = table.loc[setting.scene(EAST, SPARE_DAY).scene_id]
    assert len(measured) == len(CHIPS[EAST])
    assert measured[[*FMASK_COUNTS, "path"]].notna().all(axis=None)

    # asked for again on demand, and taken up
    traffic.clear()
    config = {"resources": {"ipfs_stac": {"config": {"refresh": True}}}}
    run_tiles(labelled_graph, recipe=clearest(), lp_daac=LP_DAAC, run_config=config)
    assert fmasks_asked(traffic, setting) == [EAST]
    assert chosen_days(labelled_graph, EAST) == [FIRST[EAST], MIDDLE[EAST], SPARE_DAY]


def test_wrong_bytes_set_a_candidate_aside_and_fewer_than_three_fail_the_tile(
    labelled_graph: Graph, setting: Setting, traffic: Traffic
) -> None:
    spare = setting.scene(EAST, SPARE_DAY)
    traffic.corrupt.add(spare.files["Fmask"].cid)
    west = setting.scene(WEST, MIDDLE[WEST])
    traffic.broken[f"/ipfs/{west.files['Fmask'].cid}"] = 404
    run = labelled_graph.run("tiles_job", recipe=clearest(), lp_daac=LP_DAAC)
    assert not run.success
    assert f"({WEST} at candidate_fmasks). 1 of 2 tiles failed; the other one is done." in run.failure
    assert f"{west.file_name('Fmask')} could not be had by its CID" in run.failure
    assert "(1 of 3 files are missing)" in run.failure
    assert chosen_days(labelled_graph, EAST) == [FIRST[EAST], MIDDLE[EAST], LAST[EAST]]
    table = labelled_graph.table("candidate_fmasks", EAST).set_index("scene_id")
    assert table.loc[spare.scene_id, "path"].isna().all()
    assert not (labelled_graph.root / labelled_graph.layout.band(spare.scene_id, "Fmask")).exists()


def test_a_source_that_may_have_it_later_fails_the_tile_and_the_next_run_resumes(
    labelled_graph: Graph, setting: Setting, traffic: Traffic
) -> None:
    spare = setting.scene(EAST, SPARE_DAY)
    traffic.broken[f"/ipfs/{spare.files['Fmask'].cid}"] = 503
    run = labelled_graph.run("tiles_job", recipe=clearest(), lp_daac=LP_DAAC)
    assert f"({EAST} at candidate_fmasks). 1 of 2 tiles failed; the other one is done." in run.failure
    assert len(labelled_graph.table("filtered_chips", WEST)) == len(CHIPS[WEST])
    traffic.clear()
    run_tiles(labelled_graph, recipe=clearest(), lp_daac=LP_DAAC)
    assert fmasks_asked(traffic, setting) == [EAST]
    assert chosen_days(labelled_graph, EAST) == [FIRST[EAST], MIDDLE[EAST], SPARE_DAY]


def test_a_file_that_no_source_has_does_not_hide_one_that_a_source_may_have_later(
    labelled_graph: Graph, setting: Setting, traffic: Traffic
) -> None:
    lost, spare = (setting.scene(EAST, day) for day in (MIDDLE[EAST], SPARE_DAY))
    traffic.broken[f"/ipfs/{lost.files['Fmask'].cid}"] = 404
    traffic.broken[f"/ipfs/{spare.files['Fmask'].cid}"] = 503
    run = labelled_graph.run("tiles_job", recipe=clearest(), lp_daac=LP_DAAC)
    assert f"({EAST} at candidate_fmasks). 1 of 2 tiles failed; the other one is done." in run.failure
    assert f"{spare.file_name('Fmask')} could not be had by its CID" in run.failure
    assert lost.file_name("Fmask") not in run.failure
    # that file is there again, and the other candidate is set aside
    del traffic.broken[f"/ipfs/{spare.files['Fmask'].cid}"]
    run_tiles(labelled_graph, recipe=clearest(), lp_daac=LP_DAAC)
    assert chosen_days(labelled_graph, EAST) == [FIRST[EAST], SPARE_DAY, LAST[EAST]]


def test_with_a_list_of_scenes_nothing_is_measured_and_a_list_of_cids_has_those_of_candidates(
    labelled_graph: Graph, finished: Finished, setting: Setting, traffic: Traffic, tmp_path: Path
) -> None:
    scenes = tmp_path / "scenes.csv"
    chosen = [name for tile in TILES for name in finished.graph.table("band_cids", tile)["scene_id"].unique()]
    scenes.write_text("scene_id\n" + "".join(f"{name}\n" for name in chosen))
    listed = clearest(scene_list=str(scenes))
    assert labelled_graph.run("plan_job", recipe=listed).success
    assert files_asked(traffic, setting) == []
    assert labelled_graph.table("candidate_fmasks", EAST).empty
    assert chosen_days(labelled_graph, EAST) == [FIRST[EAST], MIDDLE[EAST], LAST[EAST]]

    cids = tmp_path / "cids.json"
    cids.write_bytes((finished.graph.dataset / "tile_payloads.json").read_bytes())
    by_cids = clearest(cid_list=str(cids))
    traffic.clear()
    run = labelled_graph.run("plan_job", recipe=by_cids, lp_daac=LP_DAAC)
    assert run.success, run.failure
    assert not [asked for asked in traffic.asked if asked.path.startswith("/ipfs-stac")]
    # the list has no CID of the spare scene
    table = labelled_graph.table("candidate_fmasks", EAST).set_index("scene_id")
    spare = setting.scene(EAST, SPARE_DAY).scene_id
    assert table.loc[spare, "path"].isna().all()
    assert fmasks_asked(traffic, setting) == sorted([WEST] * 3 + [EAST] * 3)


def test_a_run_killed_while_it_fetches_candidates_ends_in_the_same_bytes(
    setting: Setting, served: Served, processes: ForkServerContext, labelled_graph: Graph, tmp_path: Path
) -> None:
    folder = labelled_graph.dataset / "tiles"
    home = tmp_path / "home"
    home.mkdir()
    process = processes.Process(
        target=run_and_die,
        args=("tiles_job", labelled_graph.root, home, setting, served.server, folder),
        kwargs={"recipe": clearest()},
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL, "the run had ended before it was killed"
    left = finished_files(folder)
    assert left and all(name.endswith(".Fmask.tif") for name in left)
    assert not list((labelled_graph.dataset / "tables").glob("candidate_fmasks/*"))
    run_tiles(labelled_graph, recipe=clearest())
    resumed = finished_files(labelled_graph.dataset)
    assert left.items() <= finished_files(folder).items()
    for table in (labelled_graph.dataset / "tables" / "candidate_fmasks").iterdir():
        table.unlink()
    run_tiles(labelled_graph, recipe=clearest())
    assert finished_files(labelled_graph.dataset) == resumed
