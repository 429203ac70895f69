import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import dagster as dg
import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
import yaml
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT
from typer.testing import CliRunner

from crop_assets.automation.jobs import MAIN_JOBS
from crop_assets.chip_grid import chip_geobox
from crop_assets.cli import app
from crop_assets.definitions import build_defs, environment_resources
from crop_assets.errors import InputError
from crop_assets.hls import REFLECTANCE_BANDS, file_band
from crop_assets.layout import Layout
from crop_assets.run.here import console
from crop_assets.schemas import SCHEMAS
from crop_assets_tests.demo.conftest import SmallWorld
from resources.store import DatasetStore
from resources.tables import read_table


def demo(world: SmallWorld, recipe: Path) -> str:
    """The output of `crop-assets demo` for the world of nine chips."""
    root = world.world.root.parent
    command = ["demo", "--root", str(root), "--cdl", str(world.world.cdl), "--recipe", str(recipe)]
    # the command points its own process at the world
    with mock.patch.dict(os.environ):
        shown = CliRunner().invoke(app, command)
    return f"{shown.exit_code}: {shown.output}"


def a_recipe(folder: Path, **fields: Any) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(fields))
    return path


RECIPES: dict[str, dict[str, Any]] = {
    "both": {"sensors": ["S30", "L30"], "sampling": "all", "chips": 4, "sources": ["mirror"]},
    "landsat": {"sensors": ["L30"], "chips": 4, "min_classes": 3, "sources": ["lp_daac"]},
    "spread": {
        "sensors": ["S30", "L30"],
        "scene_rule": "season_spread",
        "sampling": "balanced",
        "chips": 4,
        "class_target": {"Winter Wheat": 20},
    },
}
DATES = {
    "both": ("L30.T14SMG.2022064", "S30.T14SMG.2022162", "S30.T14SMG.2022262"),
    "landsat": ("L30.T14SMG.2022064", "L30.T14SMG.2022112", "L30.T14SMG.2022232"),
    "spread": ("S30.T14SMG.2022112", "S30.T14SMG.2022162", "L30.T14SMG.2022232"),
}


def test_other_recipes_can_be_used_on_the_world(small_world: SmallWorld, tmp_path: Path) -> None:
    root = small_world.world.root.parent
    assert not (root / "data").exists()
    store, chosen = DatasetStore(root=str(root / "data")), {}
    for name, fields in RECIPES.items():
        # with this seed, three of the four chips of each train
        shown = demo(small_world, a_recipe(tmp_path, dataset=name, seed=9, **fields))
        assert shown.startswith("0: "), shown
        layout = Layout(name, 2022)
        chosen[name] = list(read_table(store, layout.table("chip_bboxes"), SCHEMAS["chip_bboxes"])["chip_id"])
        selected = read_table(
            store, layout.table("selected_scenes", "14SMG"), SCHEMAS["selected_scenes"]
        ).set_index("position")
        scenes = [selected.loc[position, "scene_id"] for position in ("first", "middle", "last")]
        assert tuple(scene[4:22] for scene in scenes) == DATES[name]
        filtered = read_table(store, layout.table("filtered_chips", "14SMG"), SCHEMAS["filtered_chips"])
        assert set(filtered["chip_id"]) == set(chosen[name])
        files = {path.name for path in (root / "data" / layout.root / "chips").iterdir()}
        assert files == {f"{chip}{end}" for chip in chosen[name] for end in ("_merged.tif", ".mask.tif")}
        for chip_id in chosen[name]:
            with rasterio.open(root / "data" / layout.merged(chip_id)) as raster:
                assert np.abs(raster.read().astype(int) - warped(small_world, scenes, chip_id)).max() <= 1
    assert {name: {chip.removeprefix("chip_") for chip in chips} for name, chips in chosen.items()} == {
        "both": {"230_308", "230_309", "230_310", "231_308"},
        "landsat": {"230_308", "230_309", "231_310", "232_308"},
        "spread": {"230_309", "230_310", "231_310", "232_310"},
    }
    with dg.DagsterInstance.from_config(str(root / "dagster_home")) as instance:
        of_location = {".dagster/repository": "__repository__@crop_assets.definitions"}
        for job in ("labels_job", "tiles_job", "dataset_job"):
            runs = instance.get_runs(dg.RunsFilter(job_name=job, tags=of_location))
            assert [run.status for run in runs] == [dg.DagsterRunStatus.SUCCESS] * len(RECIPES)
        records = instance.fetch_materializations(dg.AssetKey("downloaded_bands"), limit=9).records
        sources = [str(record.asset_materialization.metadata["sources"].value) for record in records]  # type: ignore[union-attr]
    for words, source in zip(sources, ("http://127.0.0.1:", "LP DAAC", "mirror"), strict=True):
        assert source in words


def test_the_clearest_scenes_keep_more_chips_than_the_other_rules_choose(
    small_world: SmallWorld, tmp_path: Path
) -> None:
    store = DatasetStore(root=str(small_world.world.root.parent / "data"))
    kept, selected = {}, {}
    for rule in ("first_middle_last", "season_spread", "clearest"):
        shown = demo(small_world, a_recipe(tmp_path, dataset=rule, sampling="all", scene_rule=rule))
        assert shown.startswith("0: "), shown
        layout = Layout(rule, 2022)
        filtered = read_table(store, layout.table("filtered_chips", "14SMG"), SCHEMAS["filtered_chips"])
        kept[rule] = int(filtered["kept"].sum())
        selected[rule] = read_table(
            store, layout.table("selected_scenes", "14SMG"), SCHEMAS["selected_scenes"]
        ).query("position != ''")
    assert kept == {"first_middle_last": 7, "season_spread": 8, "clearest": 9}
    assert set(selected["clearest"]["chips_pass"]) == {9}
    assert set(selected["clearest"]["chips_pass_estimated"]) == {8}
    assert "9 of 9 chips pass, 8 with the three of season_spread" in selected["clearest"]["note"].iloc[0]


def test_ctrl_c_stops_the_demo_and_a_second_one_resumes(small_world: SmallWorld, tmp_path: Path) -> None:
    shutil.copytree(small_world.world.root, tmp_path / "world")
    recipe = a_recipe(tmp_path, dataset="cut", sampling="all", chips=4)
    arguments = ["--root", str(tmp_path), "--cdl", str(small_world.world.cdl), "--recipe", str(recipe)]
    command = [str(Path(sys.executable).with_name("crop-assets")), "demo", *arguments]
    lines = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        for line in process.stdout or ():
            lines.append(line)
            if "14SMG scene_metadata: " in line:
                # a terminal interrupts all processes of its foreground
                os.killpg(process.pid, signal.SIGINT)
    output = "".join(lines)
    assert process.returncode == 130, output
    assert lines[-1].startswith("Stopped. Run the same command again to resume")
    assert not re.search("Traceback|ERROR|WARNING|dataset_job", output), output
    statuses = {"labels_job": ["SUCCESS"], "tiles_job": ["CANCELED"], "dataset_job": []}
    assert runs_of(tmp_path) == statuses
    data = tmp_path / "data" / Layout("cut", 2022).root
    assert (data / "tables/scene_metadata/14SMG.parquet").is_file()
    assert not (data / "tables/filtered_chips/14SMG.parquet").exists()

    with mock.patch.dict(os.environ):
        shown = CliRunner().invoke(app, ["demo", *arguments])
    assert shown.exit_code == 0, shown.output
    assert re.search(r"14SMG: unchanged, nothing to do: scene_metadata,", shown.output)
    assert re.search(r"labels_job +done +0 tables made, ", shown.output)
    assert runs_of(tmp_path) == {job: [*before, "SUCCESS"] for job, before in statuses.items()}
    assert len(list((data / "chips").glob("*_merged.tif"))) == 4


def runs_of(root: Path) -> dict[str, list[str]]:
    """The results of the demo's runs of each job, in order."""
    with dg.DagsterInstance.from_config(str(root / "dagster_home")) as instance:
        return {
            job.name: [
                run.status.value
                for run in instance.get_runs(dg.RunsFilter(job_name=job.name), ascending=True)
            ]
            for job in MAIN_JOBS
        }


def warped(world: SmallWorld, scenes: list[str], chip_id: str) -> "np.ndarray[Any, Any]":
    """The 18 bands of a chip as GDAL makes them."""
    box, bands = chip_geobox(chip_id), []
    for scene in scenes:
        for band in REFLECTANCE_BANDS:
            path = world.world.scene_folder / scene / f"{scene}.{file_band(scene, band)}.tif"
            with (
                rasterio.open(path) as raster,
                WarpedVRT(
                    raster,
                    crs=box.crs.to_wkt(),
                    transform=box.transform,
                    width=224,
                    height=224,
                    resampling=Resampling.bilinear,
                    tolerance=1e-6,
                    XSCALE=1,
                    YSCALE=1,
                ) as there,
            ):
                bands.append(there.read(1).astype(int))
    return np.stack(bands)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"season_start": "10-01", "season_end": "12-31", "sensors": ["L30"]},
            "season_start and season_end: with this recipe, no tile of the demo's world has the three dates that a "
            "chip needs; its L30 scenes are from 2022-03-05 to 2022-08-20",
        ),
        ({"season_end": "04-01"}, "its S30 scenes are from 2022-03-13 to 2022-09-19"),
        ({"max_cloud_cover": 0, "sensors": ["L30"]}, "max_cloud_cover: with this recipe, no tile"),
        ({"max_cloud_cover": 0, "sensors": ["L30"]}, "its L30 scenes of the season have 0, 1, 2 % cloud"),
        (
            {"scene_rule": "season_spread", "min_gap_days": 85, "sensors": ["L30"]},
            "its L30 scenes that fit are from 2022-03-05, 2022-04-22, 2022-08-20",
        ),
        ({"season_start": "02-29"}, "2022 has no 02-29"),
        (
            {"sources": ["kubo", "ipfs_cli"]},
            "sources: kubo, ipfs_cli do not have the files of the demo's world",
        ),
        ({"aoi": "iowa.geojson"}, "aoi: the AOI touches no chip box: in EPSG:4326 the bounds of the AOI are"),
        (
            {"chip_boxes": "boxes.json"},
            "not completely inside the CDL raster: chip_257_266; the demo's world has the boxes ",
        ),
    ],
)
def test_the_error_of_a_recipe_that_does_not_suit_the_world_names_the_field(
    small_world: SmallWorld, tmp_path: Path, fields: dict[str, Any], said: str
) -> None:
    gpd.GeoSeries([shapely.box(-94, 42, -93, 43)], crs=4326).to_file(tmp_path / "iowa.geojson")
    ring = shapely.get_coordinates(chip_geobox("chip_257_266").boundingbox.polygon.geom).tolist()
    box = {
        "type": "Feature",
        "properties": {"id": "chip_257_266"},
        "geometry": {"type": "Polygon", "coordinates": [ring]},
    }
    crs = {"type": "name", "properties": {"name": "EPSG:5070"}}
    boxes = {"type": "FeatureCollection", "crs": crs, "features": [box]}
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    shown = demo(small_world, a_recipe(tmp_path, dataset="unfit", **fields))
    assert shown.startswith("2: ")
    assert said in shown
    assert "Traceback" not in shown
    assert not (small_world.world.root.parent / "data" / Layout("unfit", 2022).root).exists()


@pytest.mark.parametrize(("name", "year"), [("CDL_2019_clip_2023.tif", "2023"), ("mine.tif", "2022")])
def test_a_raster_of_another_year_is_refused_before_a_world_is_made(
    tmp_path: Path, name: str, year: str
) -> None:
    (tmp_path / name).touch()
    command = ["demo", "--root", str(tmp_path / "demo"), "--cdl", str(tmp_path / name), "--year", year]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2
    assert f"but {year} is needed" in result.output
    assert not (tmp_path / "demo" / "world").exists()


def test_to_dagster_the_demo_runs_the_jobs_of_the_code_location() -> None:
    location = build_defs(environment_resources())
    shown = dg.Definitions.merge(location, dg.Definitions(loggers={"console": console}))
    for job in MAIN_JOBS:
        snapshots = {defs.resolve_job_def(job.name).get_job_snapshot_id() for defs in (location, shown)}
        assert len(snapshots) == 1


def test_a_failed_step_is_shown_with_its_cause(capsys: pytest.CaptureFixture[str]) -> None:
    @dg.op
    def cdl(context: dg.OpExecutionContext) -> None:
        context.log.info("reading")
        raise InputError("2022_30m_cdls.tif cannot be read: it is cut short; fetch it again")

    @dg.job(logger_defs={"console": console}, executor_def=dg.in_process_executor)
    def labels() -> None:
        cdl()

    result = labels.execute_in_process(raise_on_error=False, run_config={"loggers": {"console": {}}})
    assert not result.success
    lines = [line.strip().partition(" ")[2] for line in capsys.readouterr().out.splitlines()]
    assert lines[:2] == [
        "cdl: reading",
        "ERROR: cdl: failed: 2022_30m_cdls.tif cannot be read: it is cut short; fetch it again",
    ]
