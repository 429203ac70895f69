import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import rasterio
import shapely
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps
from rasterio.windows import from_bounds

from crop_assets.chip_grid import GRID_COLS, GRID_ROWS, chip_position
from crop_assets.classes import CLASS_COLUMNS
from crop_assets.errors import InputError
from crop_assets.labels.balance import Balance
from crop_assets.labels.cdl import check_cdl, chip_histograms
from crop_assets.labels.sampling import (
    ChoiceReport,
    candidate_boxes,
    choose_boxes,
    evenness,
    read_chip_geojson,
    report_choice,
    weighed_boxes,
    write_chip_geojson,
)
from crop_assets_tests.labels.conftest import PIXELS, boxes_of


def published_features(real: Path, name: str) -> list[dict[str, Any]]:
    features: list[dict[str, Any]] = json.loads((real / "tables" / name).read_text())["features"]
    return features


def boxes_of_features(features: list[dict[str, Any]]) -> gpd.GeoDataFrame:
    return boxes_of([chip_position(feature["properties"]["id"]) for feature in features])


def test_boxes_have_the_promised_columns(block: gpd.GeoDataFrame) -> None:
    assert list(block.columns) == [
        *("chip_id", "row", "col", "x", "y", "lon", "lat"),
        *CLASS_COLUMNS,
        *("classes", "weight", "geometry"),
    ]
    assert block.crs.to_epsg() == 5070
    integers = ["row", "col", *CLASS_COLUMNS, "classes"]
    assert all(block[name].dtype == np.int32 for name in integers)
    assert all(block[name].dtype == np.float64 for name in ("x", "y", "lon", "lat", "weight"))


def test_corners_and_centres_of_the_published_boxes_follow_from_their_ids(real: Path) -> None:
    features = published_features(real, "chip_bbox_5070.geojson")
    boxes = boxes_of_features(features)
    assert len(boxes) == 2000
    published = [shapely.geometry.shape(feature["geometry"]).bounds for feature in features]
    np.testing.assert_array_equal(boxes.geometry.bounds.to_numpy(), published)
    centres = [feature["properties"]["center"] for feature in features]
    np.testing.assert_array_equal(boxes[["x", "y"]].to_numpy(), centres)


def test_degrees_of_the_published_boxes_are_the_projected_centre(real: Path) -> None:
    published = pd.read_csv(real / "tables" / "chip_df.csv")
    boxes = boxes_of([chip_position(name) for name in published["chip_id"]])
    np.testing.assert_allclose(boxes[["lon", "lat"]], published[["chip_x", "chip_y"]], rtol=0, atol=1e-12)

    features = published_features(real, "chip_bbox.geojson")
    centres = [feature["properties"]["center"] for feature in features]
    np.testing.assert_allclose(
        boxes_of_features(features)[["lon", "lat"]].to_numpy(), centres, rtol=0, atol=1e-12
    )


@pytest.mark.parametrize(
    ("name", "crs"), [("chip_bbox_5070.geojson", "EPSG:5070"), ("chip_bbox.geojson", "EPSG:4326")]
)
def test_published_geojson_is_read_and_written_back(real: Path, tmp_path: Path, name: str, crs: Any) -> None:
    features = published_features(real, name)
    boxes = read_chip_geojson(real / "tables" / name, boxes_of_features(features[::-1]))
    assert boxes["chip_id"].tolist() == [feature["properties"]["id"] for feature in features]
    write_chip_geojson(boxes, tmp_path / "a.geojson", crs)
    write_chip_geojson(boxes, tmp_path / "b.geojson", crs)
    assert (tmp_path / "a.geojson").read_bytes() == (tmp_path / "b.geojson").read_bytes()

    published = json.loads((real / "tables" / name).read_text())
    written = json.loads((tmp_path / "a.geojson").read_text())
    assert {key: written[key] for key in ("type", "name", "crs")} == {
        key: published[key] for key in ("type", "name", "crs")
    }
    for ours, theirs in zip(written["features"], published["features"], strict=True):
        assert ours.keys() == theirs.keys()
        assert ours["properties"].keys() == theirs["properties"].keys()
        assert ours["properties"]["id"] == theirs["properties"]["id"]
        assert ours["properties"]["center"] == pytest.approx(theirs["properties"]["center"], rel=0, abs=1e-12)
        assert ours["geometry"]["type"] == theirs["geometry"]["type"]
        np.testing.assert_allclose(
            ours["geometry"]["coordinates"], theirs["geometry"]["coordinates"], rtol=0, atol=1e-12
        )


@given(nps.arrays(np.int32, (3, 13), elements=st.integers(0, 4000)), st.integers(1, 13))
def test_evenness_is_the_published_formula(counts: np.ndarray, min_classes: int) -> None:
    for row, weight in zip(counts.tolist(), evenness(counts, min_classes), strict=True):
        if sum(value > 0 for value in row) < min_classes:
            assert weight == 0
        else:
            assert weight == pytest.approx(1 - (max(row) - min(row)) / sum(row))


def test_the_real_release_is_ranked_as_in_the_published_rule_and_table(
    real: Path, pool: ThreadPoolExecutor
) -> None:
    published = pd.read_csv(real / "tables" / "cdl_total_dst.csv")
    class_of = dict(zip(published["old_class_value"], published["new_class_value"], strict=True))
    weights = {}
    with rasterio.open(real / "cdl" / "2021_30m_cdls.tif") as cdl:
        for row, col in itertools.product(range(201, 205), range(335, 339)):
            left, top = 6720 * col - 2356095, 3172605 - 6720 * row
            box = (left, top - 6720, left + 6720, top)
            codes, times = np.unique(cdl.read(1, window=from_bounds(*box, cdl.transform)), return_counts=True)
            pixels = dict.fromkeys(range(1, 14), 0)
            for code, count in zip(codes.tolist(), times.tolist(), strict=True):
                pixels[class_of[code]] += count
            assert sum(pixels.values()) == PIXELS
            spread = max(pixels.values()) - min(pixels.values())
            if sum(count > 0 for count in pixels.values()) >= 8:
                weights[f"chip_{row}_{col}"] = 1 - spread / PIXELS
    ranks = sorted(weights, key=lambda name: (-weights[name], name))

    histograms = chip_histograms(check_cdl(real / "cdl" / "2021_30m_cdls.tif"), pool)
    chosen = choose_boxes(weighed_boxes(candidate_boxes(histograms), 8), "evenness", 100)
    assert chosen["chip_id"].tolist() == ranks
    assert 5 < len(ranks) <= 16
    np.testing.assert_allclose(chosen["weight"], [weights[name] for name in ranks], rtol=1e-12)


def test_evenness_of_single_perfect_and_empty_boxes() -> None:
    counts = np.zeros((3, 13), np.int32)
    counts[0, 2] = PIXELS
    counts[1] = 3859
    assert evenness(counts, 1).tolist() == [0, 1, 0]


def test_choice_ranks_by_weight_then_id_and_skips_no_data() -> None:
    even = [0] + [3000] * 12 + [14176]
    dull = [0, 40176] + [0] * 11 + [10000]
    holed = [1] + [3859] * 12 + [3867]
    boxes = boxes_of([(9, 9), (5, 5), (4, 4), (3, 3), (2, 2)], [dull, even, even, holed, dull], min_classes=2)
    assert choose_boxes(boxes, "evenness", 10)["chip_id"].tolist() == [
        *("chip_004_004", "chip_005_005"),
        *("chip_002_002", "chip_009_009"),
    ]
    assert choose_boxes(boxes, "evenness", 1)["chip_id"].tolist() == ["chip_004_004"]
    assert choose_boxes(boxes, "all", 3)["chip_id"].tolist() == [
        *("chip_002_002", "chip_004_004", "chip_005_005"),
    ]
    shuffled = boxes.sample(frac=1, random_state=1)
    pd.testing.assert_frame_equal(choose_boxes(boxes, "evenness", 10), choose_boxes(shuffled, "evenness", 10))


def test_boxes_with_too_few_classes_are_not_chosen(block: gpd.GeoDataFrame) -> None:
    assert choose_boxes(boxes_of([(1, 1)], min_classes=8), "evenness", 5).empty
    assert len(choose_boxes(block, "all", 100)) == 12


def test_no_boxes_at_all() -> None:
    none = boxes_of([], np.zeros((0, 14)))
    assert none.empty
    assert none.crs.to_epsg() == 5070
    assert choose_boxes(none, "evenness", 5).empty


def counts_of(classes: int, no_data: int = 0) -> list[int]:
    """Pixels of a box with this number of classes, all with different counts."""
    pixels = [no_data, *range(100, 100 + classes), *[0] * (13 - classes)]
    return [no_data, PIXELS - sum(pixels) + 100, *pixels[2:]]


# two blocks of 8 x 8 chips, and a single box in a third
CELLS = [
    *((row, col) for row in (0, 1) for col in range(8)),
    *((row, col) for row in (0, 1) for col in (8, 9)),
    (0, 16),
]
CLASSES_OF = [9] * 5 + [8] * 4 + [5] * 4 + [1] * 3 + [9] * 4 + [9]


def reported(
    strategy: Any, chips: int, min_classes: int = 8, left_of: int = 99, **balance: Any
) -> ChoiceReport:
    """The report for 21 boxes west of a column of the grid; the first two have no-data pixels."""
    counts = [counts_of(classes, 3 if i < 2 else 0) for i, classes in enumerate(CLASSES_OF)]
    boxes = boxes_of(CELLS, counts, min_classes)
    inside = boxes[boxes["col"] < left_of]
    chosen = choose_boxes(inside, strategy, chips, Balance(**balance))
    return report_choice(boxes, inside, len(chosen), strategy, chips, min_classes, Balance(**balance))


def test_the_report_explains_why_fewer_chips_were_chosen_than_requested() -> None:
    report = reported("evenness", 50, left_of=9)
    assert dict(report.table.itertuples(index=False)) == {
        "requested": 50,
        "on the raster": 21,
        "are outside the aoi": 3,
        "have no-data pixels": 2,
        "have fewer than 8 classes": 7,
        "have a single class (evenness 0)": 0,
        "eligible": 9,
        "chosen": 9,
    }
    assert report.why_fewer == (
        "9 of 50 requested chips were chosen. Of 21 boxes on the raster, 3 are outside the aoi, 2 have no-data pixels, "
        "7 have fewer than 8 classes, 9 are eligible; widen the aoi, or lower min_classes, or use sampling 'balanced' "
        "or 'all', or use a larger CDL raster, or request fewer chips"
    )


@pytest.mark.parametrize(
    ("strategy", "min_classes", "left_of", "counts"),
    [
        (
            "evenness",
            1,
            99,
            {"have fewer than 1 classes": 0, "have a single class (evenness 0)": 3, "eligible": 16},
        ),
        ("evenness", 9, 9, {"have fewer than 9 classes": 11, "are outside the aoi": 3, "eligible": 5}),
        ("balanced", 8, 8, {"are outside the aoi": 5, "have no-data pixels": 2, "eligible": 14}),
        ("all", 8, 99, {"are outside the aoi": 0, "have no-data pixels": 2, "eligible": 19}),
        ("all", 8, 1, {"are outside the aoi": 19, "have no-data pixels": 1, "eligible": 1}),
    ],
)
def test_each_box_is_counted_for_one_reason(
    strategy: str, min_classes: int, left_of: int, counts: dict[str, int]
) -> None:
    report = reported(strategy, 30, min_classes, left_of)
    table = dict(report.table.itertuples(index=False))
    assert counts.items() <= table.items()
    assert table["chosen"] == table["eligible"]
    wanted, boxes, *reasons, eligible, _ = report.table["boxes"]
    assert (wanted, boxes - sum(reasons)) == (30, eligible)


def test_a_choice_of_enough_chips_needs_no_reason() -> None:
    assert reported("evenness", 9).why_fewer == ""
    assert reported("all", 5).why_fewer == ""


def test_blocks_with_more_than_max_per_block_are_reported() -> None:
    assert reported("balanced", 11, max_per_block=4).why_crowded == (
        "max_per_block 4 would allow only 9 of 11 chips, so some blocks have more"
    )
    assert reported("balanced", 9, max_per_block=4).why_crowded == ""
    assert reported("evenness", 9, max_per_block=1).why_crowded == ""


def test_boxes_from_a_file_may_have_no_data() -> None:
    boxes = boxes_of(CELLS[:6], [counts_of(9, 3 * (i < 2)) for i in range(6)])
    report = report_choice(boxes, boxes.iloc[1:5], 4, "chip_boxes", 6, 8, Balance())
    assert dict(report.table.itertuples(index=False)) == {
        "requested": 6,
        "in the file of chip_boxes": 6,
        "are outside the aoi": 2,
        "have no-data pixels, but are used anyway": 1,
        "eligible": 4,
        "chosen": 4,
    }
    assert report.why_fewer == (
        "4 of 6 requested chips were chosen. Of 6 boxes in the file of chip_boxes, 2 are outside the aoi, "
        "4 are eligible; widen the aoi"
    )


def document(boxes: gpd.GeoDataFrame, tmp_path: Path, crs: Any = "EPSG:5070") -> dict[str, Any]:
    path = tmp_path / "chips.geojson"
    write_chip_geojson(boxes, path, crs)
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def test_geojson_without_crs_is_in_degrees(block: gpd.GeoDataFrame, tmp_path: Path) -> None:
    content = document(block, tmp_path, "EPSG:4326")
    del content["crs"]
    path = tmp_path / "chips.geojson"
    path.write_text(json.dumps(content))
    pd.testing.assert_frame_equal(read_chip_geojson(path, block), block)


@pytest.mark.parametrize("crs", [None, "EPSG:4326", "urn:ogc:def:crs:OGC:1.3:CRS84"])
def test_a_chip_geojson_in_metres_needs_no_crs(real: Path, tmp_path: Path, crs: str | None) -> None:
    features = published_features(real, "chip_bbox_5070.geojson")[:300]
    content = {"features": features} | ({"crs": {"properties": {"name": crs}}} if crs else {})
    path = tmp_path / "chips.geojson"
    path.write_text(json.dumps(content))
    boxes = boxes_of([chip_position(feature["properties"]["id"]) for feature in features])
    pd.testing.assert_frame_equal(read_chip_geojson(path, boxes), boxes)
    # metres of another CRS are not
    for feature in features:
        shape = shapely.geometry.shape(feature["geometry"])
        feature["geometry"] = shapely.geometry.mapping(gpd.GeoSeries([shape], crs=5070).to_crs(3857)[0])
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="square of its id, with coordinates read as metres of EPSG:5070: "):
        read_chip_geojson(path, boxes)


@pytest.mark.parametrize(
    "crs",
    [
        "urn:ogc:def:crs:EPSG:6.9:5070",
        "ESRI:102039",
        "EPSG:32614",
        "EPSG:3857",
        "EPSG:4269",
        "urn:ogc:def:crs:OGC::CRS84",
    ],
)
def test_chip_boxes_may_be_in_any_crs(block: gpd.GeoDataFrame, tmp_path: Path, crs: str) -> None:
    content = document(block, tmp_path)
    for feature, shape in zip(content["features"], block.geometry.to_crs(crs), strict=True):
        feature["geometry"] = shapely.geometry.mapping(shape)
    content["crs"]["properties"]["name"] = crs
    path = tmp_path / "chips.geojson"
    path.write_text(json.dumps(content))
    pd.testing.assert_frame_equal(read_chip_geojson(path, block), block)
    content["crs"]["properties"]["name"] = "EPSG:32613"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="more than 3 m from the square of its id"):
        read_chip_geojson(path, block)


@given(
    st.lists(st.tuples(st.integers(0, GRID_ROWS - 1), st.integers(0, GRID_COLS - 1)), min_size=1, unique=True)
)
def test_any_boxes_survive_a_round_trip(tmp_path_factory: Any, cells: list[tuple[int, int]]) -> None:
    path = tmp_path_factory.mktemp("chips") / "chips.geojson"
    boxes = boxes_of(cells)
    for crs in ("EPSG:4326", "EPSG:5070"):
        write_chip_geojson(boxes, path, crs)  # type: ignore[arg-type]
        pd.testing.assert_frame_equal(read_chip_geojson(path, boxes), boxes)


def _double(features: list[dict[str, Any]]) -> None:
    features.append(features[0])


def _nameless(features: list[dict[str, Any]]) -> None:
    del features[2]["properties"]["id"]


def _no_properties(features: list[dict[str, Any]]) -> None:
    features[2]["properties"] = None


def _off_grid(features: list[dict[str, Any]]) -> None:
    features[0]["properties"]["id"] = "chip_430_000"
    features[1]["properties"]["id"] = "chip_0230_307"


def _moved(features: list[dict[str, Any]]) -> None:
    for feature in features:
        for point in feature["geometry"]["coordinates"][0][0]:
            point[0] += 15


def _no_geometry(features: list[dict[str, Any]]) -> None:
    features[3]["geometry"] = None
    features[4]["geometry"] = {"type": "Polygon", "coordinates": "x"}


def _elsewhere(features: list[dict[str, Any]]) -> None:
    for i, feature in enumerate(features):
        feature["properties"]["id"] = f"chip_001_{i:03d}"
        left, top = 6720 * i - 2356095, 3172605 - 6720
        feature["geometry"] = shapely.geometry.mapping(shapely.box(left, top - 6720, left + 6720, top))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_double, "an id that occurs twice: chip_230_307$"),
        (_nameless, "no property 'id': feature 2$"),
        (_no_properties, "no property 'id': feature 2$"),
        (_off_grid, "row below 430 and column below 686: chip_430_000, chip_0230_307$"),
        (_moved, r"more than 3 m from the square .*: chip_230_307(, chip_\d+_\d+){4} and 7 more$"),
        (_no_geometry, "no readable geometry: chip_230_310, chip_231_307$"),
        (_elsewhere, "not completely inside the CDL raster: chip_001_000"),
    ],
)
def test_bad_chip_geojson_is_refused(
    block: gpd.GeoDataFrame, tmp_path: Path, spoil: Any, message: str
) -> None:
    content = document(block, tmp_path)
    spoil(content["features"])
    path = tmp_path / "chips.geojson"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        read_chip_geojson(path, block)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a FeatureCollection"),
        ('{"features": [1]}', "is not a FeatureCollection"),
        ('{"features": []}', "has no features"),
        (
            '{"features": [{}], "crs": {"properties": {"name": "EPSG:5700000"}}}',
            "its CRS is EPSG:5700000, which",
        ),
        (
            '{"features": [{}], "crs": "EPSG:5070"}',
            'its CRS is "EPSG:5070", which is not a code that .*; save it in',
        ),
        ('{"features": [{}], "crs": {"type": "link"}}', 'its CRS is {"type": "link"}'),
    ],
)
def test_a_file_that_is_not_a_chip_geojson_is_refused(
    block: gpd.GeoDataFrame, tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "chips.geojson").write_text(text)
    with pytest.raises(InputError, match=message):
        read_chip_geojson(tmp_path / "chips.geojson", block)
    with pytest.raises(InputError, match="No such file"):
        read_chip_geojson(tmp_path / "nowhere.geojson", block)
