"""Scenes in the whole graph: strategies, kept answers, the plan."""

import dataclasses
import datetime as dt
import itertools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import yaml
from typer.testing import CliRunner

from crop_assets.cli import app
from crop_assets.demo.server import serve
from crop_assets.hls import BANDS
from crop_assets_tests.small_world import (
    CHIPS,
    EAST,
    MIDDLE,
    RECIPE,
    SPARE_DAY,
    THROUGH_SELECTION,
    TILES,
    WEST,
    YEAR,
    Finished,
    Graph,
    Served,
    Setting,
    Traffic,
    collection,
    items_of,
    recipe,
)
from resources.mirror import BandMirror
from resources.stac import IpfsStac, SceneStac


def catalogue_requests(traffic: Traffic) -> list[str]:
    """But for the landing page, which each thread opens once."""
    paths = [asked.path for asked in traffic.asked]
    return [path for path in paths if path.startswith("/cmr/") and path not in ("/cmr/stac", "/cmr/stac/")]


def test_another_strategy_asks_the_catalogue_nothing_again(finished_graph: Graph, traffic: Traffic) -> None:
    spread = recipe(scene_rule="season_spread", min_gap_days=40)
    run = finished_graph.run("tiles_job", recipe=spread)
    assert run.success, run.failure
    assert catalogue_requests(traffic) == []
    for tile in TILES:
        table = finished_graph.table("selected_scenes", tile)
        chosen = table[table["position"] != ""]
        assert len(chosen) == 3
        assert chosen["note"].str.len().min() > 20
        assert (chosen["clear_percent"] > 50).all()
        days = list(chosen["date"])
        assert min(later - earlier for earlier, later in itertools.pairwise(days)) >= dt.timedelta(40)
        metadata = run.made["selected_scenes", f"{YEAR}|{tile}"].metadata
        assert str(metadata["season"].value).startswith(f"![season of {tile}](")
    assert finished_graph.run("dataset_job", recipe=spread).success


def test_a_gap_that_no_three_scenes_keep_is_told(finished_graph: Graph) -> None:
    run = finished_graph.run("tiles_job", recipe=recipe(scene_rule="season_spread", min_gap_days=150))
    assert run.success, run.failure
    outcome = run.made["selected_scenes", f"{YEAR}|{WEST}"].metadata["outcome"].value
    assert "lie 150 days apart: no chip can be made" in str(outcome)


def test_a_tile_that_is_made_again_asks_only_when_it_is_told_to(
    finished_graph: Graph, traffic: Traffic
) -> None:
    """A table that was lost is made of the answer that is kept."""
    (finished_graph.dataset / "tables" / "scene_metadata" / f"{WEST}.parquet").unlink()
    run = finished_graph.run("tiles_job")
    assert run.success, run.failure
    assert ("scene_metadata", f"{YEAR}|{WEST}") in run.redone
    assert catalogue_requests(traffic) == []
    config = {"resources": {"stac": {"config": {"refresh": True}}}}
    assert finished_graph.run("tiles_job", run_config=config).success
    assert len(catalogue_requests(traffic)) <= 3 * len(TILES)
    assert catalogue_requests(traffic)


@pytest.fixture
def command_line(monkeypatch: pytest.MonkeyPatch, labelled_graph: Graph) -> CliRunner:
    path = labelled_graph.root / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    monkeypatch.setenv("CROP_ASSETS_RECIPE", str(path))
    monkeypatch.setenv("CROP_ASSETS_DATA", str(labelled_graph.root))
    return CliRunner()


def test_the_plan_is_told_before_anything_is_downloaded(
    command_line: CliRunner, labelled_graph: Graph, traffic: Traffic
) -> None:
    early = command_line.invoke(app, ["plan", "--year", str(YEAR)])
    assert early.exit_code == 1
    assert f"{WEST}: {len(CHIPS[WEST])} chips, 0 fit scenes" in early.output
    assert "selected_scenes has not been materialized" in early.output
    assert "0 of 2 tiles can be made: 0 of 12 chips" in early.output

    assert labelled_graph.run("plan_job").success
    assert not [asked for asked in traffic.asked if asked.path.startswith(("/ipfs/", "/lpdaac/"))]
    told = command_line.invoke(app, ["plan", "--year", str(YEAR), "--every"])
    assert told.exit_code == 0, told.output
    assert f"{EAST}: 6 chips, " in told.output
    assert "21 files" in told.output
    assert "2 of 2 tiles can be made: 12 of 12 chips, 42 files to download" in told.output

    assert labelled_graph.run("tiles_job").success
    done = command_line.invoke(app, ["plan", "--year", str(YEAR)])
    assert "12 of 12 chips, 0 files to download, 0.0 GB" in done.output
    assert command_line.invoke(app, ["plan", "--year", "1999"]).exit_code == 2


def test_the_plan_names_tiles_that_would_fail(command_line: CliRunner, labelled_graph: Graph) -> None:
    short = recipe(season_end="05-31")
    path = labelled_graph.root / "recipe.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, "season_end": "05-31"}))
    assert labelled_graph.run("plan_job", recipe=short, ipfs_stac=IpfsStac(url="")).success
    told = command_line.invoke(app, ["plan", "--year", str(YEAR)])
    assert told.exit_code == 1
    assert "fewer than three scenes are fit" in told.output


def choice(graph: Graph, tile: str) -> dict[str, str]:
    table = graph.table("selected_scenes", tile)
    return {scene: at for scene, at in zip(table["scene_id"], table["position"], strict=True) if at}


def test_a_catalogue_that_lacks_granules_fails_its_tile_until_it_has_them(
    labelled_graph: Graph, finished: Finished, served: Served, setting: Setting
) -> None:
    lacking = setting.scene(EAST, MIDDLE[EAST]).scene_id
    scenes = tuple(scene for scene in setting.world.scenes if scene.scene_id != lacking)
    with serve(dataclasses.replace(setting.world, scenes=scenes), 0) as poor:
        stac = SceneStac(url=poor.stac_url, granule_search=served.server.granule_search_url, attempts=2)
        for _ in range(2):
            run = labelled_graph.run("tiles_job", stages=THROUGH_SELECTION, stac=stac)
            assert f"({EAST} at scene_metadata). 1 of 2 tiles failed; the other one is done." in run.failure
            assert f"lacks 1 of the 4 granules of {EAST} that " in run.failure
            assert f"lists, such as {lacking}; materialize this tile again later" in run.failure
        kept = [path.name.split("-")[0] for path in (labelled_graph.root / "answers").iterdir()]
        assert kept == [WEST]
    assert choice(labelled_graph, WEST) == choice(finished.graph, WEST)
    run = labelled_graph.run("tiles_job", stages=THROUGH_SELECTION)
    assert run.success, run.failure
    assert choice(labelled_graph, EAST) == choice(finished.graph, EAST)


def test_malformed_items_are_rows_with_a_reason_and_cost_no_tile(
    labelled_graph: Graph, finished: Finished, served: Served, setting: Setting, tmp_path: Path
) -> None:
    items = items_of(served.server.stac_url)
    spare = setting.scene(EAST, SPARE_DAY).scene_id
    for item in items:
        if item["id"] == spare:
            item |= {"properties": None, "assets": None}
    nameless = {key: value for key, value in items[0].items() if key != "id"}
    items = ["no item", *items[:3], nameless, *items[3:], items[0] | {"id": "../other"}]
    catalogue = SceneStac(url=collection(tmp_path / "items.json", items), metadata_hosts=["127.0.0.1"])
    run = labelled_graph.run("tiles_job", stages=THROUGH_SELECTION, stac=catalogue)
    assert run.success, run.failure
    for tile in TILES:
        assert choice(labelled_graph, tile) == choice(finished.graph, tile)
        aside = labelled_graph.table("selected_scenes", tile).set_index("scene_id")["reason"]
        assert {name: why[:45] for name, why in aside.items() if why.startswith("set aside")} == {
            "item 1 of the answer": "set aside: is not an item but 'no item'",
            "item 5 of the answer": "set aside: has no id",
            "../other": "set aside: '../other' is not an HLS scene id s"[:45],
        }
        metadata = run.made["scene_metadata", f"{YEAR}|{tile}"].metadata
        assert metadata["set_aside"].value == 3
    reasons = labelled_graph.table("selected_scenes", EAST).set_index("scene_id")["reason"]
    assert reasons[spare] == "without B02 B03 B04 B8A B11 B12 Fmask"


def test_a_figure_that_cannot_be_is_not_the_clearest(
    labelled_graph: Graph, served: Served, setting: Setting, tmp_path: Path
) -> None:
    items = items_of(served.server.stac_url)
    odd = setting.scene(EAST, MIDDLE[EAST]).scene_id
    for item in items:
        item["properties"]["spatial_coverage"] = 100
        if item["id"] == odd:
            item["properties"]["eo:cloud_cover"] = -9999
            item["links"] = []
    catalogue = SceneStac(url=collection(tmp_path / "items.json", items))
    for rule in ("first_middle_last", "season_spread"):
        run = labelled_graph.run(
            "tiles_job", stages=THROUGH_SELECTION, stac=catalogue, recipe=recipe(scene_rule=rule)
        )
        assert run.success, run.failure
        assert odd not in choice(labelled_graph, EAST)
        assert len(choice(labelled_graph, EAST)) == 3
        selected = labelled_graph.table("selected_scenes", EAST).set_index("scene_id")
        assert selected.loc[odd, "problem"] == "cloud cover -9999 is not from 0 to 100"
        assert selected.loc[odd, "problem"] in selected.loc[odd, "reason"]


def test_landsat_and_sentinel_of_one_day_are_one_date(
    labelled_graph: Graph, finished: Finished, served: Served, setting: Setting, tmp_path: Path
) -> None:
    items = items_of(served.server.stac_url)
    twins = []
    for item in items:
        item["properties"]["spatial_coverage"] = 100
        twin = as_landsat(item, setting, tmp_path / "mirror")
        # better for the first tile, and worse for the other
        cover = item["properties"]["eo:cloud_cover"]
        twin["properties"] = {
            **item["properties"],
            "eo:cloud_cover": max(cover - 0.5, 0) if WEST in item["id"] else cover + 0.5,
        }
        item["properties"]["eo:cloud_cover"] = cover + (0.5 if WEST in item["id"] else 0)
        twins.append(twin)
    catalogue = SceneStac(url=collection(tmp_path / "items.json", [*twins, *items]))
    both = recipe(sensors=["S30", "L30"])
    run = labelled_graph.run("tiles_job", stages=THROUGH_SELECTION, stac=catalogue, recipe=both)
    assert run.success, run.failure
    for tile, sensor in ((WEST, "L30"), (EAST, "S30")):
        theirs = {scene.replace("S30", sensor): at for scene, at in choice(finished.graph, tile).items()}
        assert choice(labelled_graph, tile) == theirs
        table = labelled_graph.table("selected_scenes", tile)
        losers = table[~table["scene_id"].str.contains(sensor)]
        assert set(losers["reason"]) == {"another scene of that day"}
        assert table["fit"].sum() == len(table) / 2


def as_landsat(item: dict[str, Any], setting: Setting, mirror: Path) -> dict[str, Any]:
    """An item as of L30, with its files in a mirror by Landsat's names of the bands."""
    theirs = {"B8A": "B05", "B11": "B06", "B12": "B07"}
    scene_id = item["id"].replace("HLS.S30.", "HLS.L30.")
    folder = mirror / scene_id
    folder.mkdir(parents=True)
    for band in BANDS:
        source = setting.world.scene_folder / item["id"] / f"{item['id']}.{band}.tif"
        shutil.copy(source, folder / f"{scene_id}.{theirs.get(band, band)}.tif")
    assets = {theirs.get(band, band): item["assets"][band] for band in BANDS}
    return item | {"id": scene_id, "assets": assets, "collection": "HLSL30_2.0"}


def test_landsat_fills_a_season_in_which_sentinel_lacks_a_scene(
    labelled_graph: Graph,
    finished: Finished,
    setting: Setting,
    served: Served,
    tmp_path: Path,
) -> None:
    middle = setting.scene(WEST, MIDDLE[WEST]).scene_id
    coverage = {scene.scene_id: scene.spatial_coverage for scene in setting.world.scenes}
    items, mirror = [], tmp_path / "mirror"
    for item in items_of(served.server.stac_url):
        item["properties"]["spatial_coverage"] = coverage[item["id"]]
        items.append(as_landsat(item, setting, mirror) if item["id"] == middle else item)
    services = {
        "stac": SceneStac(url=collection(tmp_path / "items.json", items)),
        "mirror": BandMirror(folder=str(mirror)),
    }
    sentinel = labelled_graph.run("tiles_job", tiles=[WEST], **services)
    assert sentinel.success, sentinel.failure
    assert middle not in set(labelled_graph.table("selected_scenes", WEST)["scene_id"])

    both = labelled_graph.run("tiles_job", tiles=[WEST], recipe=recipe(sensors=["S30", "L30"]), **services)
    assert both.success, both.failure
    selected = labelled_graph.table("selected_scenes", WEST).set_index("position")["scene_id"]
    assert selected["middle"] == middle.replace("S30", "L30")
    downloaded = labelled_graph.table("downloaded_bands", WEST)
    landsat = downloaded[downloaded["position"] == "middle"].set_index("band")["path"]
    assert landsat["B8A"].endswith(f"{selected['middle']}.B05.tif")
    for chip_id in CHIPS[WEST]:
        ours, theirs = (
            graph.dataset / "chips" / f"{chip_id}_merged.tif" for graph in (labelled_graph, finished.graph)
        )
        with rasterio.open(ours) as a, rasterio.open(theirs) as b:
            np.testing.assert_array_equal(a.read(), b.read())


def test_a_catalogue_of_ones_own_has_no_granule_search_but_its_own() -> None:
    assert SceneStac().search_address == "https://cmr.earthdata.nasa.gov/search/granules.umm_json"
    assert SceneStac(url="https://stac.example.org").search_address == ""
    own = SceneStac(url="https://stac.example.org", granule_search="https://search.example.org")
    assert own.search_address == "https://search.example.org"
