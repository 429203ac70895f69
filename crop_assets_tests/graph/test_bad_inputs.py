import itertools
import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import geopandas as gpd
import numpy as np
import pytest
import rasterio
from affine import Affine
from shapely.geometry import box, mapping

from crop_assets.chip_grid import chip_geobox
from crop_assets.errors import InputError
from crop_assets.hls import BANDS
from crop_assets.partitions import CDL_YEAR
from crop_assets.recipe import load_recipe
from crop_assets_tests.small_world import (
    CHIPS,
    EAST,
    FIRST,
    KEPT,
    LAST,
    MIDDLE,
    REJECTED,
    SPARE_DAY,
    THROUGH_DOWNLOAD,
    THROUGH_SELECTION,
    TILE_STAGES,
    TILES,
    WEST,
    YEAR,
    Finished,
    Graph,
    Served,
    Setting,
    Traffic,
    collection,
    digests,
    items_of,
    ledger,
    lines,
    recipe,
)
from resources.cdl import CdlReleases
from resources.earthdata import LpDaac
from resources.mirror import BandMirror
from resources.stac import IpfsStac, SceneStac

Spoil = Callable[[Path, Path], None]


def rewrite(**changes: Any) -> Spoil:
    def spoil(good: Path, bad: Path) -> None:
        with rasterio.open(good) as source, rasterio.open(bad, "w", **(source.profile | changes)) as target:
            target.write(source.read())

    return spoil


def cut(good: Path, bad: Path) -> None:
    data = good.read_bytes()
    bad.write_bytes(data[: len(data) // 2])


def with_an_unknown_code(good: Path, bad: Path) -> None:
    with rasterio.open(good) as source:
        codes = source.read(1)
        codes[400:402, 500:503] = 99
        with rasterio.open(bad, "w", **source.profile) as target:
            target.write(codes, 1)


BAD_RASTERS: dict[str, tuple[Spoil, str]] = {
    "another CRS": (
        rewrite(crs="EPSG:32614"),
        r"{path} is in EPSG:32614, not EPSG:5070; run: gdalwarp -t_srs EPSG:5070 .*{path}",
    ),
    "another resolution": (
        rewrite(transform=Affine(10, 0, -2356095, 0, -10, 3172605)),
        r"{path} has pixels of 10 x 10 m, not 30 x 30 m north up; use the 30 m release, or run: gdalwarp",
    ),
    "no raster": (
        lambda good, bad: bad.write_text("<html>please log in</html>") and None,
        r"{path} cannot be read: .*not recognized.*damaged or truncated: fetch it again",
    ),
    "a truncated raster": (cut, r"{path} cannot be read: .*damaged or truncated: fetch it again"),
    "an archive": (
        lambda good, bad: shutil.copy(good, bad.with_suffix(".zip")) and None,
        r"{path} is not a zip archive, or is cut short: .*It was not used",
    ),
}


@pytest.mark.parametrize("case", BAD_RASTERS)
def test_a_cdl_that_is_none_is_refused_and_nothing_is_lost(
    finished_graph: Graph, setting: Setting, tmp_path: Path, case: str
) -> None:
    spoil, message = BAD_RASTERS[case]
    before = digests(finished_graph.root)
    path = tmp_path / f"{YEAR}_30m_cdls.tif"
    spoil(setting.world.cdl, path)
    path = path if path.exists() else path.with_suffix(".zip")
    run = finished_graph.run("labels_job", cdl_releases=CdlReleases(source=str(path)))
    assert not run.success
    assert set(run.made) == {("tile_grid", None)}, "what follows the raster does not run"
    assert re.search(message.format(path=re.escape(str(path))), run.failure)
    assert digests(finished_graph.root) == before


def test_a_cdl_that_is_not_there_or_of_another_year_says_where_it_belongs(
    finished_graph: Graph, setting: Setting, tmp_path: Path
) -> None:
    run = finished_graph.run("labels_job", cdl_releases=CdlReleases(source=str(tmp_path), index=""))
    assert f"there is no CDL raster of {YEAR} at {tmp_path}/{YEAR}_30m_cdls.tif; put {YEAR}_" in run.failure
    assert "www.nass.usda.gov" in run.failure
    for name in (f"CDL_2019_clip_{YEAR}0315_{YEAR}.tif", "2019_30m_cdls.IMG"):
        other = tmp_path / name
        shutil.copy(setting.world.cdl, other)
        run = finished_graph.run("labels_job", cdl_releases=CdlReleases(source=str(other)))
        assert f"{other} is the raster of 2019 by its name, but {YEAR} is needed" in run.failure


def test_pixels_that_are_replaced_beside_their_header_are_noticed(
    finished_graph: Graph, setting: Setting, tmp_path: Path
) -> None:
    paths = [tmp_path / folder / f"{YEAR}_30m_cdls.img" for folder in ("before", "after")]
    with rasterio.open(setting.world.cdl) as source:
        codes, profile = source.read(1), source.profile
    for path, corn in zip(paths, (1, 5), strict=True):
        path.parent.mkdir()
        plain = {name: profile[name] for name in ("width", "height", "count", "dtype", "crs", "transform")}
        with rasterio.open(path, "w", driver="HFA", USE_SPILL="YES", **plain) as raster:
            raster.write(np.where(codes == 1, corn, codes), 1)
    releases = CdlReleases(source=str(paths[0]))
    labels = {"stages": ["cdl", "candidate_chips"], "cdl_releases": releases}
    before = {name for name, _ in finished_graph.run("labels_job", **labels).made}
    assert before == {"cdl", "candidate_chips"}
    corn = finished_graph.table("candidate_chips")["class_3"].sum()
    assert corn > 0
    shutil.copyfile(paths[1].with_suffix(".ige"), paths[0].with_suffix(".ige"))
    assert {name for name, _ in finished_graph.run("labels_job", **labels).made} == before
    assert finished_graph.table("candidate_chips")["class_3"].sum() == 0


def test_an_unknown_cdl_code_is_named_with_its_place(
    finished_graph: Graph, finished: Finished, setting: Setting, tmp_path: Path
) -> None:
    path = tmp_path / f"{YEAR}_30m_cdls.tif"
    with_an_unknown_code(setting.world.cdl, path)
    run = finished_graph.run("labels_job", cdl_releases=CdlReleases(source=str(path)))
    assert not run.success
    with rasterio.open(path) as raster:
        x, y = raster.xy(400, 500)
    told = f"{path} has codes without a class: 6 pixels of code 99; such as 99 at ({x:.0f}, {y:.0f}), "
    assert told in run.failure
    unlike = digests(finished_graph.root).items() ^ digests(finished.graph.root).items()
    assert {Path(name).name for name, _ in unlike} == {"cdl.parquet"}
    assert all(run.success for run in finished_graph.run_all())
    assert digests(finished_graph.root) == digests(finished.graph.root)


def test_an_unknown_cdl_code_is_of_the_class_that_the_recipe_says(
    labelled_graph: Graph, setting: Setting, tmp_path: Path
) -> None:
    path = tmp_path / f"{YEAR}_30m_cdls.tif"
    with_an_unknown_code(setting.world.cdl, path)
    before = labelled_graph.table("candidate_chips")
    for unknown_codes, class_ in (("other", "class_13"), ("nodata", "class_0")):
        run = labelled_graph.run(
            "labels_job",
            stages=["cdl", "candidate_chips"],
            cdl_releases=CdlReleases(source=str(path)),
            recipe=recipe(unknown_codes=unknown_codes),
        )
        assert run.success
        assert ("candidate_chips", str(YEAR)) in run.made
        metadata = run.made["candidate_chips", str(YEAR)].metadata
        assert (metadata["reused"].value, metadata["unknown_codes"].value) == (
            False,
            f"the raster has 6 pixels of code 99; the recipe turns them into '{unknown_codes}'",
        )
        after = labelled_graph.table("candidate_chips")
        assert after[class_].sum() - before[class_].sum() == 6


def test_a_dataset_never_mixes_two_releases_of_the_cdl(
    finished_graph: Graph, setting: Setting, tmp_path: Path
) -> None:
    corrected = CHIPS[EAST][1]
    path = tmp_path / f"{YEAR}_30m_cdls.tif"
    with rasterio.open(setting.world.cdl) as source:
        codes = source.read(1)
        corner = rasterio.windows.from_bounds(*chip_geobox(corrected).boundingbox.bbox, source.transform)
        row, col = round(corner.row_off), round(corner.col_off)
        codes[row : row + 100, col : col + 100] = 24
        with rasterio.open(path, "w", **source.profile) as target:
            target.write(codes, 1)
    release = CdlReleases(source=str(path))
    assert finished_graph.run("labels_job", cdl_releases=release).success
    assert finished_graph.run("tiles_job", tiles=[WEST], cdl_releases=release).success
    run = finished_graph.run("dataset_job", recipe=recipe(max_missing_tiles=1))
    assert run.success, run.failure
    check = run.checks["splits", "every_tile_is_in"]
    assert not check.passed
    missing = str(check.metadata["missing"].value)
    assert re.fullmatch(rf"- \*\*{EAST}\*\*: .*another label_quality.*; materialize .* again", missing)
    rejected = {row["chip_id"]: (row["reason"], row["detail"]) for row in ledger(finished_graph)}
    assert {rejected[chip_id] for chip_id in CHIPS[EAST]} == {("tile_missing", missing.split(": ")[1])}

    assert finished_graph.run("tiles_job", cdl_releases=release).success
    run = finished_graph.run("dataset_job")
    assert run.checks["splits", "every_tile_is_in"].passed
    assert sorted(finished_graph.table("splits")["chip_id"]) == KEPT
    with rasterio.open(finished_graph.dataset / "chips_filtered" / f"{corrected}.mask.tif") as mask:
        assert np.unique(mask.read(1)[:100, :100]).tolist() == [8]


def square(west: float, south: float, size: float) -> dict[str, Any]:
    east, north = west + size, south + size
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    geometry = {"type": "Polygon", "coordinates": [ring]}
    feature = {"type": "Feature", "properties": {}, "geometry": geometry}
    return {"type": "FeatureCollection", "features": [feature]}


def lost(graph: Graph, before: dict[str, str]) -> set[str]:
    """The files that are no more what they were, but for the last recipe that what is not chosen was asked for with."""
    after, unchosen = digests(graph.root), ("cdl", "candidate_chips")
    return {name for name in before if after.get(name) != before[name] and Path(name).stem not in unchosen}


def test_an_area_of_interest_without_chips_is_refused_with_both_extents(
    finished_graph: Graph, tmp_path: Path
) -> None:
    before = digests(finished_graph.root)
    aoi = tmp_path / "aoi.geojson"
    aoi.write_text(json.dumps(square(-90, 40, 0.1)))
    run = finished_graph.run("labels_job", recipe=recipe(aoi=str(aoi)))
    assert re.search(
        r"the AOI touches no chip box: in EPSG:4326 the bounds of the AOI are \(-90, 40, -89\.9, 40\.1\), "
        r"those of the 12 boxes \(-99\.11769, 37\.34075, -98\.804, 37\.52802\) \(left, bottom, right, top\)",
        run.failure,
    )
    missing = tmp_path / "not_there.geojson"
    run = finished_graph.run("labels_job", recipe=recipe(aoi=str(missing)))
    assert f"AOI {missing} cannot be read: {missing}: No such file or directory" in run.failure
    aoi.write_text("no vector file")
    run = finished_graph.run("labels_job", recipe=recipe(aoi=str(aoi)))
    assert f"AOI {aoi} cannot be read: " in run.failure
    aoi.write_text(json.dumps(square(-300000, 1600000, 7000)))
    run = finished_graph.run("labels_job", recipe=recipe(aoi=str(aoi)))
    assert "the coordinates of the AOI are not degrees" in run.failure
    assert "look like metres of EPSG:5070" in run.failure
    local = tmp_path / "aoi.gpkg"
    site = gpd.GeoDataFrame(geometry=[box(0, 0, 9, 9)], crs='LOCAL_CS["site",UNIT["metre",1]]')
    site.to_file(local)
    run = finished_graph.run("labels_job", recipe=recipe(aoi=str(local)))
    assert f"AOI {local} is in 'site' (Engineering CRS), which does not say where on Earth" in run.failure
    assert lost(finished_graph, before) == set()


def test_fewer_chips_than_are_wanted_are_explained(
    finished_graph: Graph, finished: Finished, tmp_path: Path
) -> None:
    everything = finished.graph.table("chip_bboxes").set_index("chip_id")
    west, least = everything.loc[CHIPS[WEST]], int(everything["classes"].median())
    aoi = tmp_path / "west.gpkg"
    gpd.GeoDataFrame(geometry=[west.union_all().buffer(-10)], crs=5070).to_file(aoi)
    rich = int((west["classes"] >= least).sum())
    run = finished_graph.run("labels_job", recipe=recipe(aoi=str(aoi), chips=9, min_classes=least))
    assert run.success, run.failure
    metadata = run.made["chip_bboxes", str(YEAR)].metadata
    counts = {name: metadata[name].value for name in ("wanted", "inside_the_aoi", "eligible", "chosen")}
    assert counts == {"wanted": 9, "inside_the_aoi": 6, "eligible": rich, "chosen": rich}
    assert "| are outside the aoi | 6 |\n| have no-data pixels | 0 |" in str(metadata["boxes"].value)
    why = str(metadata["why_fewer"].value)
    assert (
        f"{rich} of 9 requested chips were chosen. Of 12 boxes on the raster, 6 are outside the aoi, " in why
    )
    assert f"{6 - rich} have fewer than {least} classes, {rich} are eligible; widen the aoi" in why
    again = finished_graph.run("labels_job", recipe=recipe(aoi=str(aoi), chips=9, min_classes=least))
    assert ("chip_bboxes", str(YEAR)) not in again.redone
    for one in (run, again):
        logs = finished_graph.instance.all_logs(one.result.run_id)
        assert why in [entry.user_message for entry in logs if entry.level == logging.WARNING]

    run = finished_graph.run("labels_job", recipe=recipe(aoi=str(aoi), chips=5))
    metadata = run.made["chip_bboxes", str(YEAR)].metadata
    assert (metadata["chosen"].value, metadata["eligible"].value) == (5, 6)
    assert "why_fewer" not in metadata

    gpd.GeoDataFrame(geometry=[west.loc[west["classes"].idxmin()].geometry.buffer(-10)], crs=5070).to_file(
        aoi
    )
    run = finished_graph.run("labels_job", recipe=recipe(aoi=str(aoi), chips=5, min_classes=13))
    assert (
        "no chip box can be chosen: 0 of 5 requested chips were chosen. Of 12 boxes on the raster"
        in run.failure
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda features: features.append(features[2]), "an id that occurs twice: {third}"),
        (lambda features: features[2]["properties"].pop("id"), "no property 'id': feature 2"),
        (lambda features: features.clear(), "has no features"),
    ],
)
def test_a_chip_geojson_with_wrong_ids_is_refused(
    finished_graph: Graph, tmp_path: Path, change: Callable[[list[Any]], Any], message: str
) -> None:
    before = digests(finished_graph.root)
    document = json.loads((finished_graph.dataset / "chip_bbox.geojson").read_text())
    third = document["features"][2]["properties"]["id"]
    change(document["features"])
    path = tmp_path / "chips.geojson"
    path.write_text(json.dumps(document))
    run = finished_graph.run("labels_job", recipe=recipe(chip_boxes=str(path)))
    assert not run.success
    assert re.search(f"chip GeoJSON {re.escape(str(path))}:? {message.format(third=third)}", run.failure)
    assert lost(finished_graph, before) == set()


def test_chips_of_a_geojson_in_metres_within_a_closed_line_are_taken(
    finished_graph: Graph, finished: Finished, tmp_path: Path
) -> None:
    """As the published chips come without `crs`, and boundaries as lines."""
    document = json.loads((finished_graph.dataset / "chip_bbox_5070.geojson").read_text())
    del document["crs"]
    boxes, aoi = tmp_path / "chips.geojson", tmp_path / "aoi.geojson"
    boxes.write_text(json.dumps(document))
    west = finished.graph.table("chip_bboxes").set_index("chip_id").loc[CHIPS[WEST]].to_crs(4326)
    line = {
        "type": "LineString",
        "coordinates": mapping(west.union_all().buffer(-0.001).exterior)["coordinates"],
    }
    aoi.write_text(json.dumps(line))
    run = finished_graph.run("labels_job", recipe=recipe(aoi=str(aoi), chip_boxes=str(boxes)))
    assert run.success, run.failure
    assert sorted(finished_graph.table("tile_map")["chip_id"]) == CHIPS[WEST]


def test_a_chip_geojson_and_an_area_of_interest_choose_one_chip_which_cannot_train(
    finished_graph: Graph, finished: Finished, tmp_path: Path
) -> None:
    only = CHIPS[EAST][1]
    lon, lat = finished.graph.table("chip_bboxes").set_index("chip_id").loc[only, ["lon", "lat"]]
    aoi = tmp_path / "aoi.geojson"
    aoi.write_text(json.dumps(square(lon, lat, 0.001)))
    boxes = finished_graph.dataset / "chip_bbox.geojson"
    # with this seed, the chip validates
    chosen = recipe(aoi=str(aoi), chip_boxes=str(boxes), seed=4)
    run = finished_graph.run("labels_job", recipe=chosen)
    assert run.success, run.failure
    assert list(finished_graph.table("tile_map")["chip_id"]) == [only]

    assert finished_graph.run("tiles_job", tiles=[EAST], recipe=chosen).success
    run = finished_graph.run("dataset_job", recipe=chosen)
    assert (
        "no chip of 2022 is in the training split, and only 1 are kept; choose more chips or a larger train_share"
        in run.failure
    )
    assert lines(finished_graph, "val_ids.csv") == ["ids", only.removeprefix("chip_")]
    # readers must not find the lists of the dataset before
    assert not list(finished_graph.dataset.glob("*_data.txt"))
    assert {path.name[:12] for path in (finished_graph.dataset / "chips_filtered").iterdir()} == {only}


def test_a_tile_without_chips_gives_empty_tables_at_once(finished_graph: Graph, traffic: Traffic) -> None:
    before = digests(finished_graph.dataset)
    run = finished_graph.run("tiles_job", tiles=["14SMH"])
    assert run.success, run.failure
    assert traffic.asked == []
    for stage in TILE_STAGES:
        assert run.made[stage, f"{YEAR}|14SMH"].metadata["dagster/row_count"].value == 0
        table = finished_graph.table(stage, "14SMH")
        assert table.empty
        assert list(table.columns) == list(finished_graph.table(stage, WEST).columns)
    outcome = run.made["scene_metadata", f"{YEAR}|14SMH"].metadata["outcome"].value
    assert outcome == f"no chip box of {YEAR} is in this tile"
    new = digests(finished_graph.dataset).items() - before.items()
    assert {name for name, _ in new} == {f"tables/{stage}/14SMH.parquet" for stage in TILE_STAGES}
    assert finished_graph.run("dataset_job").redone == set()


def test_a_year_without_labels_says_what_to_run_first(finished_graph: Graph, traffic: Traffic) -> None:
    finished_graph.instance.add_dynamic_partitions(CDL_YEAR, ["2021", "latest", "²022"])
    run = finished_graph.run("tiles_job", year=2021)
    assert run.failure.count("tile_map has not been materialized for 2021; materialize tile_map first") >= 2
    assert run.made == {}
    assert traffic.asked == []
    for key in ("latest", "²022"):
        run = finished_graph.run("labels_job", year=key)  # type: ignore[arg-type]
        assert f"the partition {key!r} is not a CDL year; use a key such as 2022" in run.failure


def test_a_dataset_before_its_tiles_says_what_to_run_first(labelled_graph: Graph) -> None:
    before = digests(labelled_graph.root)
    run = labelled_graph.run("dataset_job")
    for asset in ("filtered_chips", "band_cids"):
        assert f"{asset} has not been materialized for {TILES[0]}; materialize {asset} first" in run.failure
    assert "splits 2022: none of 2 tiles is ready. " in run.failure
    assert digests(labelled_graph.root) == before


def test_a_season_without_scenes_is_told_of_every_chip(labelled_graph: Graph) -> None:
    winter = recipe(season_start="01-01", season_end="01-02")
    run = labelled_graph.run("tiles_job", recipe=winter)
    assert run.success, run.failure
    for tile in TILES:
        outcomes = [run.made[stage, f"{YEAR}|{tile}"].metadata for stage in TILE_STAGES]
        assert [found["outcome"].value for found in outcomes if "outcome" in found] == [
            "the catalogue has no scene of this tile in season",
            "fewer than three scenes are fit (0 of 0): no chip of this tile can be made",
            "no scene is selected",
            "no scene is selected",
            "no scene is selected",
            "6 chips without three scenes",
        ]
        rejected = labelled_graph.table("filtered_chips", tile)
        assert sorted(rejected["chip_id"]) == CHIPS[tile]
        assert set(rejected["reason"]) == {"too_few_scenes"}
        assert set(rejected["figure"]) == {0}
    run = labelled_graph.run("dataset_job", recipe=winter)
    assert not run.success
    assert "none of the 12 chip boxes of 2022 is kept: {'too_few_scenes': 12}" in run.failure
    rejected = {row["chip_id"]: row["reason"] for row in ledger(labelled_graph)}
    assert rejected == dict.fromkeys(CHIPS[WEST] + CHIPS[EAST], "too_few_scenes")


def test_a_day_that_the_year_lacks_is_named(labelled_graph: Graph) -> None:
    run = labelled_graph.run("tiles_job", recipe=recipe(season_start="02-29"))
    assert "Failure: 2022 has no 02-29 or 09-30; change season_start" in run.failure
    assert f"({WEST} at scene_metadata, {EAST} at scene_metadata). All 2 tiles" in run.failure


def test_a_tile_with_two_scenes_is_in_the_ledger_and_the_other_in_the_dataset(
    finished_graph: Graph, setting: Setting
) -> None:
    first_day = setting.scene(WEST, FIRST[WEST]).sensed.date()
    late = recipe(season_start=f"{first_day.replace(day=first_day.day + 1):%m-%d}")
    for run in finished_graph.run_all(recipe=late):
        assert run.success, run.failure
    assert finished_graph.table("splits")["chip_id"].isin(CHIPS[EAST]).all()
    rows = {row["chip_id"]: row for row in ledger(finished_graph)}
    assert {chip_id: row["reason"] for chip_id, row in rows.items()} == {
        **dict.fromkeys(CHIPS[WEST], "too_few_scenes"),
        **{chip_id: reason for chip_id, reason in REJECTED.items() if chip_id in CHIPS[EAST]},
    }
    assert {float(rows[chip_id]["figure"]) for chip_id in CHIPS[WEST]} == {2}
    left = {path.name[:12] for path in (finished_graph.dataset / "chips_filtered").iterdir()}
    assert left == set(KEPT) & set(CHIPS[EAST])


def test_a_scene_with_a_missing_band_is_passed_over(
    labelled_graph: Graph, served: Served, setting: Setting, tmp_path: Path
) -> None:
    items = items_of(served.server.stac_url)
    broken = setting.scene(EAST, MIDDLE[EAST]).scene_id
    for item in items:
        if item["id"] == broken:
            del item["assets"]["B11"], item["assets"]["Fmask"]
    catalogue = SceneStac(url=collection(tmp_path / "items.json", items), metadata_hosts=["127.0.0.1"])
    run = labelled_graph.run("tiles_job", tiles=[EAST], stages=THROUGH_SELECTION, stac=catalogue)
    assert run.success, run.failure
    assert set(run.made) == {(stage, f"{YEAR}|{EAST}") for stage in THROUGH_SELECTION}
    selected = labelled_graph.table("selected_scenes", EAST).set_index("scene_id")
    assert selected.loc[broken, "reason"] == "without B11 Fmask"
    assert {scene: at for scene, at in selected["position"].items() if at} == {
        setting.scene(EAST, day).scene_id: position
        for day, position in ((FIRST[EAST], "first"), (SPARE_DAY, "middle"), (LAST[EAST], "last"))
    }


def test_files_without_a_usable_cid_come_from_lp_daac_and_are_told_apart(
    labelled_graph: Graph,
    finished: Finished,
    served: Served,
    setting: Setting,
    traffic: Traffic,
    tmp_path: Path,
) -> None:
    scene = setting.scene(EAST, FIRST[EAST])
    items = items_of(served.server.ipfs_stac_url)
    (item,) = (item for item in items if item["id"] == scene.scene_id)
    del item["assets"]["B02"]["alternate"]
    item["assets"]["B03"]["alternate"] = {"IPFS": {"href": "ipfs://bafynotacid"}}
    item["assets"]["B04"]["alternate"] = {"IPFS": {"href": f"ipfs://{scene.files['B04'].cid}/B04.tif"}}
    del item["assets"]["B8A"]
    items = [item for item in items if item["id"] != setting.scene(EAST, LAST[EAST]).scene_id]
    traffic.clear()
    run = labelled_graph.run(
        "tiles_job",
        tiles=[EAST],
        stages=THROUGH_DOWNLOAD,
        ipfs_stac=IpfsStac(url=collection(tmp_path / "items.json", items)),
        lp_daac=LpDaac(token="letmein", hosts=["127.0.0.1"]),
    )
    assert run.success, run.failure
    cids = labelled_graph.table("band_cids", EAST)
    problems = cids[cids["position"] == "first"].set_index("band")["problem"]
    assert problems["B02"] == "the IPFS catalogue gives no IPFS address"
    assert problems["B03"].startswith("malformed CID: ")
    assert problems["B04"].endswith(
        f"directory {scene.files['B04'].cid}: the CID names a file, not a directory"
    )
    assert problems["B8A"] == "the IPFS catalogue does not list this band"
    assert set(cids[cids["position"] == "last"]["problem"]) == {"the IPFS catalogue does not have this scene"}
    downloaded = labelled_graph.table("downloaded_bands", EAST)
    unverified = downloaded[~downloaded["verified"]]
    assert len(unverified) == 4 + 7
    assert set(unverified["note"]) == {"no CID is known to check it against"}
    fetched = [asked for asked in traffic.asked if asked.path.startswith("/lpdaac/")]
    assert {asked.path.rsplit("/", 1)[-1] for asked in fetched} == {
        Path(path).name for path in unverified["path"]
    }
    assert {asked.authorization for asked in fetched} == {"Bearer letmein"}
    theirs = digests(finished.graph.dataset / "tiles")
    ours = digests(labelled_graph.dataset / "tiles")
    assert len(ours) == 21
    assert ours.items() <= theirs.items()


def test_files_of_another_tile_are_refused_by_name_and_cost_that_tile_alone(
    labelled_graph: Graph, finished: Finished, setting: Setting, tmp_path: Path
) -> None:
    mirror = tmp_path / "mirror"
    for tile, days in itertools.product(TILES, (FIRST, MIDDLE, LAST)):
        scene = setting.scene(tile, days[tile]).scene_id
        # the eastern tile's last scene has the files of the western's
        source = setting.scene(WEST, LAST[WEST]).scene_id if days is LAST else scene
        (mirror / scene).mkdir(parents=True)
        for band in BANDS:
            path = setting.world.scene_folder / source / f"{source}.{band}.tif"
            shutil.copy(path, mirror / scene / f"{scene}.{band}.tif")
    run = labelled_graph.run(
        "tiles_job",
        recipe=recipe(sources=["mirror"]),
        ipfs_stac=IpfsStac(url=""),
        mirror=BandMirror(folder=str(mirror)),
    )
    wrong = setting.scene(EAST, LAST[EAST]).scene_id
    assert f"({EAST} at downloaded_fmasks). 1 of 2 tiles failed; the other one is done." in run.failure
    assert re.search(
        rf"{wrong}\.Fmask\.tif could not be had.*: mirror: has 3660 x 3660 pixels of 30 x 30 from \(399960, 4200000\) "
        rf"in EPSG:32614, not the grid of tile {EAST}: .* from \(499980, 4200000\) in EPSG:32614; use",
        run.failure,
    )
    assert f"{setting.scene(EAST, FIRST[EAST]).scene_id}.Fmask.tif could" not in run.failure
    ours, theirs = labelled_graph.table("chips", WEST), finished.graph.table("chips", WEST)
    assert list(ours["na_count"]) == list(theirs["na_count"])


NONSENSE = [
    ({"dataset": "../x"}, "dataset '../x' must be letters, digits, '-', '_' or '.', not starting with '.'"),
    ({"chips": 0}, "chips is 0, and must be from 1 to 10,000,000"),
    ({"sampling": "best"}, "evenness.*all"),
    ({"min_classes": 14}, "min_classes is 14, and must be from 1 to 13"),
    ({"tile_rule": "near"}, "projected.*degrees"),
    ({"season_start": "3-1"}, "'3-1' is not a day written as MM-DD, for example 03-01"),
    ({"season_end": "W30"}, "'W30' is not a day written as MM-DD, for example 03-01"),
    ({"season_start": "10-01"}, "the season starts on 10-01, after its end on 09-30"),
    ({"max_cloud_cover": 101}, "max_cloud_cover is 101, and must be from 0 to 100"),
    ({"coverage_ladder": [50, 60]}, r"coverage_ladder \[50, 60\] must fall, as 100, 90, 80"),
    ({"coverage_ladder": []}, "coverage_ladder: List should have at least 1 item"),
    ({"coverage_ladder": [101]}, "coverage_ladder.0 is 101, and must be from 0 to 100"),
    (
        {"sensors": ["S3"]},
        r"sensors\.0: Input should be 'S30' or 'L30' \(did you mean 'S30'\?\)|sensors\[0\].* 'one of S30, L30'",
    ),
    ({"middle_scene": "centre"}, "lower.*upper"),
    ({"qa_rule": "none"}, "class.*value.*total"),
    ({"max_bad_percent": -1.0}, "max_bad_percent is -1.0, and must be from 0 to 100"),
    ({"max_bad_percent": float("nan")}, "max_bad_percent is nan, and must be from 0 to 100"),
    ({"max_na_pixels": -1}, "max_na_pixels is -1, and must be from 0 to 50,176"),
    ({"train_share": 1.0}, "train_share is 1.0, and must be between 0 and 1"),
    ({"seed": "x"}, "seed.*integer|seed.*Int"),
    ({"statistics_over": "all"}, "train.*kept"),
    ({"band_values_binary": "maybe"}, "band_values_binary.*(boolean|Bool)"),
    ({"aoi": 5}, "aoi.*(string|String)"),
    ({"chip_boxes": 5}, "chip_boxes.*(string|String)"),
    ({"chpis": 5}, "(?s)chpis.*chips"),
]


@pytest.mark.parametrize(("values", "message"), NONSENSE, ids=[str(values) for values, _ in NONSENSE])
def test_nonsense_in_a_recipe_file_is_refused_by_name(
    tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(values).replace("NaN", ".nan"))
    with pytest.raises(InputError, match=f"^recipe {re.escape(str(path))}: ") as error:
        load_recipe(str(path))
    assert re.search(message, str(error.value))
    assert next(iter(values)) in str(error.value) or "season" in str(error.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"- chips", "expected 'field: value' lines, found list"),
        (b"chips: [", "is not YAML: "),
        (b"\xff\xfe", "is not YAML: "),
    ],
)
def test_a_recipe_file_that_is_none_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(data)
    with pytest.raises(InputError, match=f"recipe {re.escape(str(path))}:? {message}"):
        load_recipe(str(path))


def test_a_recipe_that_cannot_be_read_names_the_variable(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file; correct CROP_ASSETS_RECIPE or --recipe"):
        load_recipe(str(tmp_path / "none.yaml"))
    with pytest.raises(InputError, match="cannot be read: Is a directory; correct CROP_ASSETS_RECIPE"):
        load_recipe(str(tmp_path))


def launchpad(**values: Any) -> dict[str, Any]:
    return {"resources": {"recipe": {"config": values}}}


def test_nonsense_in_the_launchpad_is_refused_by_name(finished_graph: Graph, traffic: Traffic) -> None:
    before = digests(finished_graph.root)
    for values, message in NONSENSE:
        try:
            run = finished_graph.run("labels_job", run_config=launchpad(**values))
        except dg.DagsterInvalidConfigError as error:
            assert re.search(message, str(error)), values
            assert "root:resources:recipe:config" in str(error)
        else:
            assert run.made == {}
            assert re.search(message, run.failure), values
    assert digests(finished_graph.root) == before


def test_the_launchpad_changes_a_field_and_keeps_the_others(
    finished_graph: Graph, finished: Finished
) -> None:
    run = finished_graph.run("dataset_job", run_config=launchpad(seed=43))
    assert run.success, run.failure
    by_launchpad = digests(finished_graph.dataset)
    assert by_launchpad != digests(finished.graph.dataset)
    run = finished_graph.run("dataset_job", recipe=recipe(seed=43))
    assert run.redone == set()
    assert digests(finished_graph.dataset) == by_launchpad
