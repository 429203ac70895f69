"""The quality of labels over the graph, from an empty store, with three tiles and two years."""

from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from crop_assets.classes import CDL_CLASSES
from crop_assets.demo.landscape import write_landscape
from crop_assets_tests.labels.test_quality import slow_purity, write_confidence
from crop_assets_tests.small_world import (
    EAST,
    SOUTH,
    THREE_TILES,
    WEST,
    YEAR,
    Graph,
    Run,
    Traffic,
    ledger,
    recipe,
    write_three_tiles,
)
from resources.cdl import CdlReleases
from resources.earthdata import LpDaac
from resources.stac import IpfsStac

ROW, COL = 231, 309
(PURE, MIXED), NOISY, FAR = (THREE_TILES[tile] for tile in (WEST, EAST, SOUTH))
NOISE = {PURE: 0.0, MIXED: 0.15, **dict.fromkeys(NOISY, 0.9), **dict.fromkeys(FAR, 0.05)}
CHIPS = sorted(NOISE)


def part(pixels: NDArray[np.uint8], chip: str) -> NDArray[np.uint8]:
    """The pixels of a chip, as a view."""
    row, col = (int(text) for text in chip.split("_")[1:])
    return pixels[(row - ROW) * 224 : (row - ROW + 1) * 224, (col - COL) * 224 : (col - COL + 1) * 224]


class Rasters:
    """A CDL raster of each of two years, whose chips have more or less noise, and confidence layers."""

    def __init__(self, folder: Path) -> None:
        national, self.boxes = write_three_tiles(folder)
        national.unlink()
        self.folder = folder
        self.codes: dict[int, NDArray[np.uint8]] = {}
        self.confidence: dict[int, NDArray[np.uint8]] = {}
        for year in (YEAR - 1, YEAR):
            rng = np.random.default_rng(year)
            codes = np.tile(np.array([1, 5], np.uint8), (16 * 224, 6 * 112))
            codes[:] = np.repeat(codes[:, :12], 112, axis=1)
            confidence = rng.integers(85, 96, codes.shape).astype(np.uint8)
            for chip, share in NOISE.items():
                other = rng.choice(np.array([1, 5, 24, 36, 111, 176], np.uint8), (224, 224))
                np.copyto(part(codes, chip), other, where=rng.random((224, 224)) < share)
            part(confidence, MIXED)[:112] = 20
            part(confidence, PURE)[:50] = 255
            part(confidence, PURE)[50:60] = 0
            write_landscape(folder / f"{year}_30m_cdls.tif", codes, first_row=ROW, first_col=COL)
            write_confidence(folder / f"{year}_confidence.tif", confidence, COL * 224, ROW * 224)
            self.codes[year], self.confidence[year] = codes, confidence

    def recipe(self, **changes: Any) -> Any:
        return recipe(chip_boxes=str(self.boxes), **changes)

    def resources(self, **changes: Any) -> dict[str, Any]:
        """Files come by name, so that requests show which they are."""
        return {
            "cdl_releases": CdlReleases(source=str(self.folder), index=""),
            "recipe": self.recipe(**changes),
            "ipfs_stac": IpfsStac(url=""),
            "lp_daac": LpDaac(token="letmein", hosts=["127.0.0.1"]),
        }

    def purity(self, year: int, chip: str) -> float:
        return slow_purity(np.vectorize(CDL_CLASSES.get)(part(self.codes[year], chip)).astype(np.uint8))


@pytest.fixture(scope="module")
def rasters(tmp_path_factory: pytest.TempPathFactory) -> Rasters:
    return Rasters(tmp_path_factory.mktemp("rasters"))


def run_all(graph: Graph, rasters: Rasters, **changes: Any) -> dict[str, Run]:
    tiles = sorted(THREE_TILES)
    resources = rasters.resources(**changes)
    return {
        job: graph.run(job, tiles=tiles, **resources) for job in ("labels_job", "tiles_job", "dataset_job")
    }


def files_asked(traffic: Traffic) -> set[str]:
    return {asked.path.rsplit("/", 1)[-1] for asked in traffic.asked if asked.path.startswith("/lpdaac/")}


def test_two_years_are_each_measured_on_their_own_rasters(graph: Graph, rasters: Rasters) -> None:
    graph.instance.add_dynamic_partitions("cdl_year", [str(YEAR - 1)])
    layer = str(rasters.folder / "{year}_confidence.tif")
    for year in (YEAR - 1, YEAR):
        run = graph.run("labels_job", year=year, **rasters.resources(confidence_raster=layer))
        assert run.success, run.failure
        path = graph.root / f"training_datasets/small/{year}/tables/label_quality.parquet"
        table = pd.read_parquet(path).set_index("chip_id")
        assert list(table.index) == CHIPS
        assert {tile: sorted(of.index) for tile, of in table.groupby("tile")} == THREE_TILES
        for chip, row in table.iterrows():
            assert row["purity_percent"] == rasters.purity(year, str(chip))
            values = part(rasters.confidence[year], str(chip)).astype(float)
            assert row["confidence_percent"] == pytest.approx(values[values <= 100].mean())
        assert table["purity_percent"][PURE] == 100
        assert table.loc[NOISY, "purity_percent"].max() < 60 < table["purity_percent"][MIXED] < 99.9
        made = run.made["label_quality", str(year)].metadata
        assert made["mean_purity_percent"].value == pytest.approx(table["purity_percent"].mean(), abs=0.01)
        lowest = made["least_pure"].value.splitlines()[2:4]
        assert [line.split("|")[1].strip() for line in lowest] == list(
            table["purity_percent"].sort_values().index[:2]
        )
        assert (path.parents[1] / "pictures/label_quality/histogram.png").read_bytes().startswith(b"\x89PNG")

    again = graph.run("labels_job", **rasters.resources(confidence_raster=layer))
    assert again.redone == set()
    without = graph.run("labels_job", **rasters.resources())
    assert {asset for asset, _ in without.redone} == {"label_quality"}
    assert graph.table("label_quality")["confidence_percent"].isna().all()


def test_a_limit_removes_the_chips_below_it_before_their_bands_are_downloaded(
    graph: Graph, rasters: Rasters, traffic: Traffic
) -> None:
    runs = run_all(graph, rasters, min_purity=60.0)
    for run in runs.values():
        assert run.success, run.failure
    asked = files_asked(traffic)
    assert len([name for name in asked if WEST in name]) == 21
    eastern = [name for name in asked if EAST in name]
    assert len(eastern) == 3
    assert all(name.endswith(".Fmask.tif") for name in eastern)
    assert list(graph.table("chip_quality", EAST)["reason"]) == ["impure_labels"] * 2
    assert set(graph.table("chips", EAST)["outcome"]) == {"bands_not_fetched"}

    rejected = {row["chip_id"]: row for row in ledger(graph)}
    reasons = {chip: row["reason"] for chip, row in rejected.items()}
    assert reasons == {**dict.fromkeys(NOISY, "impure_labels"), **dict.fromkeys(FAR, "too_few_scenes")}
    for chip in NOISY:
        assert float(rejected[chip]["figure"]) == pytest.approx(rasters.purity(YEAR, chip), rel=1e-5)
    shown = runs["tiles_job"].made["filtered_chips", f"{YEAR}|{EAST}"].metadata["ledger"].value
    assert f"| impure_labels | {rasters.purity(YEAR, NOISY[0]):.4g} % |" in shown
    funnel = runs["dataset_job"].made["splits", str(YEAR)].metadata["funnel"].value.splitlines()
    steps = [[cell.strip() for cell in line.split("|")[1:4]] for line in funnel[2:]]
    assert ["pure labels", "4", "2"] in steps
    assert steps[-1] == ["kept", "2", "0"]
    assert not any(step == "confident labels" for step, *_ in steps)

    index = gpd.read_parquet(graph.dataset / "chips.parquet").set_index("chip_id")
    assert list(index.index) == sorted((PURE, MIXED))
    for chip, row in index.iterrows():
        assert row["purity_percent"] == rasters.purity(YEAR, str(chip))
        assert np.isnan(row["confidence_percent"])

    # without the limit the chips are back, and only their bands are fetched
    traffic.clear()
    again = run_all(graph, rasters)
    for run in again.values():
        assert run.success, run.failure
    assert again["labels_job"].redone == set()
    assert {name.rsplit(".", 2)[1] for name in files_asked(traffic)} == {
        *("B02", "B03", "B04", "B8A", "B11", "B12")
    }
    assert {row["chip_id"] for row in ledger(graph)} == set(FAR)


def test_chips_of_low_confidence_are_removed_with_their_figure(graph: Graph, rasters: Rasters) -> None:
    layer = str(rasters.folder / f"{YEAR}_confidence.tif")
    runs = run_all(graph, rasters, min_confidence=60, confidence_raster=layer)
    for run in runs.values():
        assert run.success, run.failure
    rejected = {row["chip_id"]: row for row in ledger(graph)}
    assert {chip: row["reason"] for chip, row in rejected.items()} == {
        MIXED: "low_confidence",
        **dict.fromkeys(FAR, "too_few_scenes"),
    }
    mean = part(rasters.confidence[YEAR], MIXED).mean()
    assert float(rejected[MIXED]["figure"]) == pytest.approx(mean, rel=1e-5)
    index = gpd.read_parquet(graph.dataset / "chips.parquet")
    assert sorted(index["chip_id"]) == sorted((PURE, *NOISY))
    assert index["confidence_percent"].between(70, 100).all()
    table = graph.table("class_distribution")
    assert table.groupby("split")["dominated"].sum().to_dict() == index.groupby("split").size().to_dict()

    again = graph.run("labels_job", **rasters.resources(min_confidence=60, confidence_raster=layer))
    assert again.redone == set()


def test_a_layer_that_does_not_fit_stops_label_quality_alone(
    graph: Graph, rasters: Rasters, tmp_path: Path
) -> None:
    small = tmp_path / "small.tif"
    write_confidence(small, np.full((10 * 224, 6 * 224), 90, np.uint8), COL * 224, ROW * 224)
    run = graph.run("labels_job", **rasters.resources(confidence_raster=str(small)))
    assert "does not cover 2 of 6 chips: chip_246_310, chip_246_311; use a confidence layer of" in run.failure
    assert "tile_map" in {asset for asset, _ in run.made}
    run = graph.run("labels_job", **rasters.resources(confidence_raster=str(tmp_path / "none.tif")))
    assert f"confidence_raster {tmp_path}/none.tif: no such file" in run.failure
    # and tiles say what to do first
    run = graph.run("tiles_job", tiles=[WEST], **rasters.resources())
    assert "label_quality has not been materialized for 2022; materialize label_quality first" in run.failure

    far = tmp_path / "layer.tif"
    write_confidence(far, rasters.confidence[YEAR], COL * 224, ROW * 224)
    fits = rasters.resources(confidence_raster=str(far))
    assert graph.run("labels_job", **fits).success
    first = graph.table("label_quality")
    write_confidence(far, rasters.confidence[YEAR] // 2, COL * 224, ROW * 224)
    run = graph.run("labels_job", **fits)
    assert {asset for asset, _ in run.redone} == {"label_quality"}
    second = graph.table("label_quality")
    assert (second["confidence_percent"] < first["confidence_percent"]).all()
    assert list(second["purity_percent"]) == list(first["purity_percent"])
