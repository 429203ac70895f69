import csv
import hashlib
import io
import itertools
import json
import re
from collections import Counter

import dagster as dg
import numpy as np
import pandas as pd
import pyproj
import pytest
import rasterio

from crop_assets.chip_grid import chip_geobox
from crop_assets.classes import class_colormap
from crop_assets.hls import POSITIONS
from crop_assets_tests.small_world import (
    CHIPS,
    DATASET,
    EAST,
    FIRST,
    KEPT,
    LABELS,
    LAST,
    MIDDLE,
    REJECTED,
    SLIGHTLY_CLOUDY,
    SPARE_DAY,
    TILE_STAGES,
    TILES,
    WEST,
    YEAR,
    Finished,
    Graph,
    Setting,
    Traffic,
    digests,
    ledger,
    lines,
    recipe,
    times,
)

BANDS = ("B02", "B03", "B04", "B8A", "B11", "B12")

# The published dataset's table, written out here again on purpose.
CLASS_OF_CODE = {
    0: 0,
    **dict.fromkeys((37, 152, 176), 1),
    **dict.fromkeys((141, 142, 143), 2),
    1: 3,
    5: 4,
    **dict.fromkeys((190, 195), 5),
    **dict.fromkeys((121, 122, 123, 124, 131), 6),
    111: 7,
    24: 8,
    36: 9,
    61: 10,
    2: 11,
    4: 12,
    **dict.fromkeys((6, 26, 28, 205), 13),
}


def chips_of(graph: Graph, folder: str, ending: str) -> list[str]:
    return sorted(path.name.removesuffix(ending) for path in (graph.dataset / folder).glob(f"*{ending}"))


def date(setting: Setting, tile: str, day: int) -> str:
    return setting.scene(tile, day).sensed.date().isoformat()


def test_every_asset_is_materialized_with_rows_and_a_data_version(finished: Finished) -> None:
    made = {key: found for run in finished.runs.values() for key, found in run.made.items()}
    assert set(made) == {
        ("tile_grid", None),
        *((asset, str(YEAR)) for asset in (*LABELS, *DATASET) if asset != "tile_grid"),
        *((stage, f"{YEAR}|{tile}") for stage in TILE_STAGES for tile in TILES),
    }
    rows = {key: found.metadata["dagster/row_count"].value for key, found in made.items()}
    expected = {
        ("cdl", None): 1,
        ("chip_bboxes", None): 12,
        ("tile_map", None): 12,
        ("scene_metadata", WEST): 3,
        ("selected_scenes", EAST): 4,
        ("band_cids", WEST): 21,
        ("downloaded_bands", EAST): 21,
        ("reprojected_tiles", WEST): 21,
        ("chips", EAST): 6,
        ("filtered_chips", WEST): 6,
        ("tile_payloads", None): 2,
        ("splits", None): len(KEPT),
        ("band_stats", None): 6,
        ("class_weights", None): 14,
        ("class_distribution", None): 28,
        ("chip_index", None): len(KEPT),
        ("reader_layout", None): len(KEPT),
        ("exports", None): 0,
        # a pack, four files of the page, three of Leaflet, and the data
        ("viewer", None): 9,
    }
    for (asset, tile), count in expected.items():
        assert rows[asset, f"{YEAR}|{tile}" if tile else str(YEAR)] == count, asset
    for (asset, partition), found in made.items():
        assert found.tags["dagster/data_version"], (asset, partition)
        assert found.metadata["reused"].value is False


def test_dagster_counts_every_partition_as_materialized(finished: Finished) -> None:
    instance = finished.graph.instance
    for stage in TILE_STAGES:
        key = finished.runs["tiles_job"].made[stage, f"{YEAR}|{WEST}"].asset_key
        assert instance.get_materialized_partitions(key) == {f"{YEAR}|{tile}" for tile in TILES}


def test_every_chip_lies_in_its_tile_and_every_tile_is_in_but_validation_touches_training(
    finished: Finished,
) -> None:
    checks = {key: check for run in finished.runs.values() for key, check in run.checks.items()}
    assert {key: check.passed for key, check in checks.items()} == {
        ("tile_map", "chips_lie_in_their_tile"): True,
        ("filtered_chips", "any_chip_is_kept"): True,
        ("splits", "every_tile_is_in"): True,
        ("splits", "few_chips_touch_training"): False,
        ("tile_payloads", "every_tile_is_in"): True,
        ("chip_index", "every_tile_is_in"): True,
        ("viewer", "every_tile_is_in"): True,
        ("reader_layout", "readers_find_what_the_tables_say"): True,
        ("fingerprint", "every_tile_is_in"): True,
        ("dataset_files", "files_are_as_written"): True,
        ("dataset_card", "every_tile_is_in"): True,
        ("croissant", "every_tile_is_in"): True,
        ("croissant", "descriptions_are_as_written"): True,
    }
    tile_map = finished.graph.table("tile_map")
    assert tile_map.groupby("tile")["chip_id"].agg(sorted).to_dict() == CHIPS


def test_the_scenes_are_those_of_the_specification(setting: Setting, finished: Finished) -> None:
    for tile in TILES:
        selected = finished.graph.table("selected_scenes", tile).set_index("position")
        for position, day in (("first", FIRST), ("middle", MIDDLE), ("last", LAST)):
            assert selected.loc[position, "scene_id"] == setting.scene(tile, day[tile]).scene_id
    spare = setting.scene(EAST, SPARE_DAY).scene_id
    east = finished.graph.table("selected_scenes", EAST).set_index("scene_id")
    assert east.loc[spare, "reason"] == "neither first, middle nor last"


def test_chips_filtered_holds_the_kept_pairs_and_nothing_else(finished: Finished) -> None:
    graph = finished.graph
    assert chips_of(graph, "chips_filtered", "_merged.tif") == KEPT
    assert chips_of(graph, "chips_filtered", ".mask.tif") == KEPT
    assert len(list((graph.dataset / "chips_filtered").iterdir())) == 2 * len(KEPT)
    every_chip = sorted([*CHIPS[WEST], *CHIPS[EAST]])
    assert chips_of(graph, "chips", "_merged.tif") == chips_of(graph, "chips", ".mask.tif") == every_chip
    assert chips_of(graph, "chips_fmask", "_Fmask.tif") == every_chip
    for name in chips_of(graph, "chips_filtered", ".tif"):
        original = graph.dataset / "chips" / f"{name}.tif"
        assert (graph.dataset / "chips_filtered" / f"{name}.tif").read_bytes() == original.read_bytes()


@pytest.mark.parametrize("tile", TILES)
def test_merged_chips_have_the_promised_form(setting: Setting, finished: Finished, tile: str) -> None:
    days = (FIRST[tile], MIDDLE[tile], LAST[tile])
    descriptions = tuple(f"{date(setting, tile, day)}_{band}" for day in days for band in BANDS)
    for chip_id in set(CHIPS[tile]) & set(KEPT):
        with rasterio.open(finished.graph.dataset / "chips_filtered" / f"{chip_id}_merged.tif") as raster:
            assert set(raster.dtypes) == {"int16"}
            assert (raster.count, raster.height, raster.width) == (18, 224, 224)
            assert raster.crs.to_epsg() == 5070
            assert raster.nodata == -9999
            assert raster.descriptions == descriptions
            row, col = map(int, chip_id.split("_")[1:])
            assert raster.transform[:6] == (30, 0, -2356095 + 6720 * col, 0, -30, 3172605 - 6720 * row)
            values = raster.read()
            assert values.min() >= 0
            assert len(np.unique(values)) > 100


def test_merged_chips_hold_the_reflectance_of_their_scene_and_band(
    setting: Setting, finished: Finished
) -> None:
    """Bilinear interpolation stays within the values around: GDAL's nearest pixel is never far off."""
    chip_id = CHIPS[EAST][3]
    box = chip_geobox(chip_id)
    with rasterio.open(finished.graph.dataset / "chips_filtered" / f"{chip_id}_merged.tif") as raster:
        chip = raster.read()
    options = {"crs": "EPSG:5070", "transform": box.affine, "width": 224, "height": 224}
    days = (FIRST[EAST], MIDDLE[EAST], LAST[EAST])
    for number, (day, band) in enumerate(itertools.product(days, BANDS)):
        path = setting.world.band_path(setting.scene(EAST, day), band)
        with (
            rasterio.open(path) as source,
            rasterio.vrt.WarpedVRT(
                source, resampling=rasterio.enums.Resampling.bilinear, **options
            ) as warped,
        ):
            apart = np.abs(warped.read(1).astype(int) - chip[number])
        # GDAL approximates coordinates, by some hundredths of a pixel
        assert np.percentile(apart, 95) <= 40, (day, band)


def test_masks_are_the_cdl_reclassified_pixel_for_pixel(setting: Setting, finished: Finished) -> None:
    seen: set[int] = set()
    with rasterio.open(setting.world.cdl) as cdl:
        for chip_id in KEPT:
            with rasterio.open(finished.graph.dataset / "chips_filtered" / f"{chip_id}.mask.tif") as raster:
                assert raster.dtypes == ("uint8",)
                assert raster.nodata is None
                assert raster.crs.to_epsg() == 5070
                assert {c: raster.colormap(1)[c] for c in range(14)} == class_colormap()
                mask = raster.read(1)
                codes = cdl.read(1, window=cdl.window(*raster.bounds))
            np.testing.assert_array_equal(mask, np.vectorize(CLASS_OF_CODE.__getitem__)(codes))
            seen |= set(np.unique(mask).tolist())
    assert len(seen) >= 8
    assert seen <= set(range(14))


def test_fmask_stacks_lie_beside_the_dataset_never_in_it(setting: Setting, finished: Finished) -> None:
    named_so = [path for path in finished.graph.dataset.rglob("chip_*") if "fmask" in path.name.lower()]
    assert {path.parent.name for path in named_so} == {"chips_fmask"}
    for chip_id, position, bit in (("chip_232_310", 0, 1), (SLIGHTLY_CLOUDY, 2, 3)):
        with rasterio.open(finished.graph.dataset / "chips_fmask" / f"{chip_id}_Fmask.tif") as raster:
            assert set(raster.dtypes) == {"uint8"}
            assert raster.descriptions[position].endswith("_Fmask")
            fmask = raster.read()
        share = [((date >> bit) & 1)[date != 255].mean() for date in fmask]
        assert share[position] > 0.02
        assert max(share[at] for at in range(3) if at != position) == 0


def test_every_chip_box_is_in_the_dataset_or_in_the_ledger_once(finished: Finished) -> None:
    graph = finished.graph
    rejected = ledger(graph)
    assert {row["chip_id"]: row["reason"] for row in rejected} == REJECTED
    split = graph.table("splits")
    everywhere = Counter([*split["chip_id"], *(row["chip_id"] for row in rejected)])
    assert everywhere == Counter(graph.table("chip_bboxes")["chip_id"])
    cloudy = next(row for row in rejected if row["reason"] == "bad_quality")
    assert 5 < float(cloudy["figure"]) < 30
    assert all(int(row["figure"]) > 0 for row in rejected if row["reason"] == "na_pixels")


def test_train_and_validation_files_agree_and_are_disjoint(finished: Finished) -> None:
    graph = finished.graph
    split = graph.table("splits").groupby("split")["chip_id"].agg(sorted)
    for name, ids_file, data_file in (
        ("train", "train_ids.csv", "train_data.txt"),
        ("validation", "val_ids.csv", "validation_data.txt"),
    ):
        chips = lines(graph, data_file)
        assert chips == split[name]
        assert lines(graph, ids_file) == ["ids", *(chip.removeprefix("chip_") for chip in chips)]
    assert not set(split["train"]) & set(split["validation"])
    assert len(split["train"]) == 7
    assert sorted(split["train"] + split["validation"]) == KEPT


def test_a_table_for_readers_has_the_dates_and_the_place_of_each_chip(
    setting: Setting, finished: Finished
) -> None:
    graph = finished.graph
    # dates as pandas and TerraTorch parse them
    table = pd.read_csv(graph.dataset / "chips_df.csv", parse_dates=[f"{p}_img_date" for p in POSITIONS])
    assert list(table["chip_id"]) == KEPT
    split = graph.table("splits")
    assert list(table["split"]) == list(split["split"]) and list(table["tile"]) == list(split["tile"])
    boxes = graph.table("chip_bboxes").set_index("chip_id")
    for row in table.itertuples():
        for position, day in zip(POSITIONS, (FIRST, MIDDLE, LAST), strict=True):
            found = getattr(row, f"{position}_img_date")
            assert (found.year, found.day_of_year) == (YEAR, day[row.tile])
        with rasterio.open(graph.dataset / "chips_filtered" / f"{row.chip_id}_merged.tif") as raster:
            x, y = raster.xy(111.5, 111.5)
        lon, lat = pyproj.Transformer.from_crs(5070, 4326, always_xy=True).transform(x, y)
        assert (row.lon, row.lat) == pytest.approx((lon, lat), abs=1e-5)
        assert (row.lon, row.lat) == pytest.approx((boxes.lon[row.chip_id], boxes.lat[row.chip_id]), abs=1e-6)


def test_band_statistics_are_numpys_over_the_train_chips(finished: Finished) -> None:
    graph = finished.graph
    chips = []
    for chip_id in lines(graph, "train_data.txt"):
        with rasterio.open(graph.dataset / "chips_filtered" / f"{chip_id}_merged.tif") as raster:
            chips.append(raster.read().reshape(3, 6, 224, 224))
    values = np.stack(chips)
    table = graph.table("band_stats").set_index("band")
    for number, band in enumerate(BANDS):
        pixels = values[:, :, number].astype(np.float64)
        row = table.loc[band]
        assert row["mean"] == pytest.approx(pixels.mean())
        assert row["std"] == pytest.approx(pixels.std())
        assert row["min"] == pytest.approx(np.percentile(pixels, 1.5))
        assert row["max"] == pytest.approx(np.percentile(pixels, 98.5))
        assert row["pixels"] == pixels.size
        np.testing.assert_array_equal(
            np.load(graph.dataset / "band_stats" / f"band_values_{number + 1}.npy"), pixels.ravel()
        )
        text = dict(line.split(": ") for line in lines(graph, f"band_stats/band_values_{number + 1}.txt"))
        assert float(text["Mean"]) == pytest.approx(pixels.mean())
    published = dict(line.split(": ", 1) for line in lines(graph, "global_stats.txt"))
    for name in ("min", "max", "mean", "std"):
        assert json.loads(published[name]) == pytest.approx(list(table[name]), abs=1e-6)
    # as TerraTorch reads them
    for name, column in (("means.txt", "mean"), ("stds.txt", "std")):
        assert np.genfromtxt(graph.dataset / name) == pytest.approx(table[column].to_numpy(), abs=1e-6)


def test_class_weights_are_balanced_over_the_train_chips_and_sum_to_one(finished: Finished) -> None:
    graph = finished.graph
    counts = np.zeros(14, int)
    for chip_id in lines(graph, "train_data.txt"):
        with rasterio.open(graph.dataset / "chips_filtered" / f"{chip_id}.mask.tif") as raster:
            counts += np.bincount(raster.read(1).ravel(), minlength=14)
    text = (graph.dataset / "class_weights.csv").read_text()
    weights = [float(row[1]) for row in csv.reader(io.StringIO(text))]
    assert sum(weights) == pytest.approx(1)
    assert [c for c, weight in enumerate(weights) if weight == 0] == [
        c for c in range(14) if c == 0 or counts[c] == 0
    ]
    products = [weight * count for weight, count in zip(weights, counts, strict=True) if weight]
    assert products == pytest.approx([products[0]] * len(products))
    assert list(np.genfromtxt(graph.dataset / "class_weights.txt")) == weights[1:]
    classes = json.loads((graph.dataset / "classes.json").read_text())
    assert [one["pixels"] for one in classes] == list(counts)
    assert [(one["value"], one["label"]) for one in classes] == [
        (0, None),
        *((c, c - 1) for c in range(1, 14)),
    ]
    assert (classes[2]["name"], classes[2]["color"]) == ("Forest", "#1b6b3a")


def test_the_charts_and_their_table_count_the_masks(finished: Finished) -> None:
    graph = finished.graph
    table = graph.table("class_distribution").set_index(["split", "class"])
    for split, data_file in (("train", "train_data.txt"), ("validation", "validation_data.txt")):
        assert table.loc[split, "pixels"].sum() == len(lines(graph, data_file)) * 224 * 224
    for name in ("training_dst.png", "validation_dst.png"):
        assert (graph.dataset / name).read_bytes().startswith(b"\x89PNG")


def test_tile_payloads_list_21_files_a_tile_by_their_cids(setting: Setting, finished: Finished) -> None:
    payloads = json.loads((finished.graph.dataset / "tile_payloads.json").read_text())
    assert set(payloads) == {
        setting.scene(tile, day[tile]).scene_id for tile in TILES for day in (FIRST, MIDDLE, LAST)
    }
    per_tile = Counter(scene.split(".")[2] for scene, files in payloads.items() for _ in files)
    assert per_tile == {f"T{tile}": 21 for tile in TILES}
    for tile in TILES:
        scene = setting.scene(tile, MIDDLE[tile])
        assert {entry["band_name"]: entry["cid"] for entry in payloads[scene.scene_id]} == {
            band: file.cid for band, file in scene.files.items()
        }


def test_downloads_are_the_worlds_files_verified(setting: Setting, finished: Finished) -> None:
    for tile in TILES:
        table = finished.graph.table("downloaded_bands", tile)
        assert len(table) == 21
        assert table["verified"].all()
        for row in table.itertuples():
            path = finished.graph.root / row.path
            file = next(s for s in setting.world.scenes if s.scene_id == row.scene_id).files[row.band]
            assert hashlib.sha256(path.read_bytes()).hexdigest() == file.sha256 == row.sha256
            assert path.parent.name == row.scene_id


def test_reprojected_tiles_hold_each_chip_in_a_block_of_its_own(finished: Finished) -> None:
    graph = finished.graph
    scene_id = graph.table("selected_scenes", WEST).set_index("position").loc["first", "scene_id"]
    path = graph.dataset / "tiles_reprojected" / scene_id / f"{scene_id}.B04.tif"
    with rasterio.open(path) as raster:
        assert (raster.crs.to_epsg(), raster.nodata, raster.block_shapes) == (5070, -9999, [(224, 224)])
        for chip_id in CHIPS[WEST]:
            with rasterio.open(graph.dataset / "chips" / f"{chip_id}_merged.tif") as chip:
                block = raster.read(1, window=raster.window(*chip.bounds))
                np.testing.assert_array_equal(block, chip.read(3))


def test_a_second_run_makes_nothing_and_says_so(finished_graph: Graph, traffic: Traffic) -> None:
    before = times(finished_graph.root)
    runs = finished_graph.run_all()
    made = {key: found for run in runs for key, found in run.made.items()}
    assert len(made) == len(LABELS) + len(DATASET) + len(TILE_STAGES) * len(TILES)
    assert {key for key, found in made.items() if found.metadata["reused"].value is not True} == set()
    assert times(finished_graph.root) == before
    assert traffic.asked == []


def test_another_seed_redoes_the_dataset_alone(
    finished_graph: Graph, finished: Finished, traffic: Traffic
) -> None:
    def rasters() -> dict[str, int]:
        # those of the splits are links
        return {
            name: at
            for name, at in times(finished_graph.dataset).items()
            if name.endswith(".tif") and not name.startswith(("training_", "validation_"))
        }

    before = rasters()
    labels, tiles, dataset = finished_graph.run_all(recipe=recipe(seed=43))
    assert labels.redone == tiles.redone == set()
    assert dataset.redone == {(asset, str(YEAR)) for asset in DATASET if asset != "tile_payloads"}
    assert traffic.asked == []
    assert rasters() == before != {}
    split = [lines(finished_graph, name) for name in ("train_data.txt", "validation_data.txt")]
    assert sorted(split[0] + split[1]) == KEPT
    assert split[0] != lines(finished.graph, "train_data.txt")


def test_another_qa_rule_redoes_the_filter_and_what_follows(finished_graph: Graph, traffic: Traffic) -> None:
    labels, tiles, dataset = finished_graph.run_all(recipe=recipe(qa_rule="total"))
    assert labels.redone == set()
    again = {(stage, f"{YEAR}|{tile}") for stage in ("chip_quality", "filtered_chips") for tile in TILES}
    # over the eastern tile there is no cloud, so that the rule makes no difference there
    assert tiles.redone == again | {("downloaded_bands", f"{YEAR}|{WEST}")}
    assert tiles.made["downloaded_bands", f"{YEAR}|{WEST}"].metadata["fetched_bytes"].value == 0
    assert dataset.redone == {(asset, str(YEAR)) for asset in DATASET if asset != "tile_payloads"}
    assert traffic.asked == []
    # cloud and shadow stay below 5 % each, but not together
    kept = [chip_id for chip_id in KEPT if chip_id != SLIGHTLY_CLOUDY]
    assert chips_of(finished_graph, "chips_filtered", "_merged.tif") == kept
    assert chips_of(finished_graph, "chips_filtered", ".mask.tif") == kept
    assert {row["chip_id"]: row["reason"] for row in ledger(finished_graph)} == {
        **REJECTED,
        SLIGHTLY_CLOUDY: "bad_quality",
    }


def test_the_dataset_of_another_recipe_waits_for_its_tiles(finished_graph: Graph) -> None:
    before = digests(finished_graph.root)
    run = finished_graph.run("dataset_job", recipe=recipe(qa_rule="total"))
    assert not run.success
    told = "splits 2022: none of 2 tiles is ready.*filtered_chips was made by another recipe .*materialize"
    assert re.search(told, run.failure)
    # the CIDs do not depend on the rule: their table stays, under the fingerprint of the recipe in force
    payloads = next(name for name in before if name.endswith("tables/tile_payloads.parquet"))
    assert {name for name, digest in digests(finished_graph.root).items() if before[name] != digest} == {
        payloads
    }


def test_damaged_files_are_noticed_and_made_again(finished_graph: Graph, traffic: Traffic) -> None:
    before = digests(finished_graph.root)
    cut, flipped, gone, emptied = (
        next(path for path in sorted((finished_graph.dataset / folder).rglob("*.tif")) if tile in path.name)
        for folder, tile in (
            ("tiles", WEST),
            ("tiles_reprojected", EAST),
            ("chips", CHIPS[EAST][1]),
            ("chips_filtered", KEPT[0]),
        )
    )
    cut.write_bytes(cut.read_bytes()[:-1000])
    data = bytearray(flipped.read_bytes())
    data[len(data) // 2] ^= 1
    flipped.write_bytes(data)
    gone.unlink()
    emptied.write_bytes(b"")

    run = finished_graph.run("tiles_job")
    assert run.success, run.failure
    west = f"{YEAR}|{WEST}"
    assert {stage for stage, partition in run.redone if partition == west} == {
        "downloaded_bands",
        "filtered_chips",
    }
    assert {stage for stage, partition in run.redone if partition != west} == {"reprojected_tiles", "chips"}
    assert digests(finished_graph.root) == before
    assert [asked.path.split("/")[1] for asked in traffic.asked] == ["ipfs"], "only the cut file is fetched"


@pytest.mark.parametrize(
    ("name", "made"),
    [
        # the lists of readers come after those of the split
        ("val_ids.csv", {"splits", "reader_layout"}),
        ("band_stats/band_values_2.npy", {"band_stats"}),
        ("class_weights.csv", {"class_weights"}),
        ("chips.parquet", {"chip_index"}),
        ("viewer/data.js", {"viewer"}),
    ],
)
def test_a_damaged_file_of_the_dataset_is_made_again(
    finished_graph: Graph, name: str, made: set[str]
) -> None:
    before = digests(finished_graph.root)
    (finished_graph.dataset / name).write_bytes(b"damaged")
    run = finished_graph.run("dataset_job")
    assert run.success
    assert {asset for asset, _ in run.redone} == made
    assert digests(finished_graph.root) == before


def test_a_damaged_table_is_made_again(finished_graph: Graph) -> None:
    before = digests(finished_graph.root)
    tables = finished_graph.dataset / "tables"
    (tables / "chips" / f"{WEST}.parquet").write_bytes(b"damaged")
    (tables / "tile_map.parquet").unlink()
    (tables / "band_stats.parquet").write_bytes((tables / "band_stats.parquet").read_bytes()[:-9])
    labels, tiles, dataset = finished_graph.run_all()
    assert labels.redone == {("tile_map", str(YEAR))}
    assert tiles.redone == {("chips", f"{YEAR}|{WEST}")}
    assert dataset.redone == {("band_stats", str(YEAR))}
    assert digests(finished_graph.root) == before


def test_a_stage_refuses_inputs_that_another_recipe_made(finished_graph: Graph) -> None:
    before = digests(finished_graph.root)
    stricter = finished_graph.run("tiles_job", stages=["filtered_chips"], recipe=recipe(max_cloud_cover=1))
    assert "selected_scenes was made by another recipe (max_cloud_cover)" in stricter.failure
    fewer = finished_graph.run("tiles_job", recipe=recipe(chips=5))
    assert "chip_bboxes was made by another recipe (chips)" in fewer.failure
    assert digests(finished_graph.root) == before


def input_events(graph: Graph, asset: str, partition: str) -> dict[str, int]:
    """Storage ids of the input events that an asset's latest materialization names, by input."""
    where = dg.AssetRecordsFilter(asset_key=dg.AssetKey(asset), asset_partitions=[partition])
    tags = graph.instance.fetch_materializations(where, limit=1).records[0].asset_materialization.tags
    prefix = "dagster/input_event_pointer/"
    return {key.removeprefix(prefix): int(value) for key, value in tags.items() if key.startswith(prefix)}


def test_dagster_is_told_which_event_each_tile_was_made_from(finished_graph: Graph) -> None:
    assert all(run.success for run in finished_graph.run_all())
    for tile in TILES:
        inputs = input_events(finished_graph, "chips", f"{YEAR}|{tile}")
        assert set(inputs) == {"reprojected_tiles", "selected_scenes", "tile_map", "cdl"}
        for asset, event in inputs.items():
            key = f"{YEAR}|{tile}" if asset in TILE_STAGES else str(YEAR)
            where = dg.AssetRecordsFilter(asset_key=dg.AssetKey(asset), asset_partitions=[key])
            assert (
                finished_graph.instance.fetch_materializations(where, limit=1).records[0].storage_id == event
            )
