"""The folder `viewer/` of a dataset: its data against the tables, and its pictures against the chips."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import rasterio

from crop_assets.chip_grid import chip_outline
from crop_assets.classes import CLASS_COLOURS, CLASS_COLUMNS
from crop_assets.hls import POSITIONS
from crop_assets.viewer import assets, facts
from crop_assets.viewer.facts import facts_text, viewer_facts
from crop_assets.viewer.packs import SIDE, chip_pictures, pack_text
from crop_assets_tests.small_world import (
    CHIPS,
    EAST,
    KEPT,
    REJECTED,
    SOUTH,
    THREE_TILES,
    TILES,
    WEST,
    Finished,
    Graph,
    digests,
    recipe,
)
from crop_assets_tests.viewer.test_packs import HOSTILE, decoded, rgb


def content(script: Path, call: str) -> Any:
    """The JSON in a script of one call."""
    match = re.fullmatch(rf"cropViewer\.{call}\((?:(\d+), )?(.*)\)\n", script.read_text(), re.DOTALL)
    assert match
    return json.loads(match[2])


def tables(graph: Graph, tiles: Any = TILES) -> dict[str, Any]:
    """The arguments of `viewer_facts` from the tables of a graph."""

    def all_of(name: str) -> pd.DataFrame:
        return pd.concat([graph.table(name, tile).assign(tile=tile) for tile in tiles], ignore_index=True)

    return {
        "dataset": "small",
        "year": 2022,
        "splits": graph.table("splits"),
        "boxes": pd.DataFrame(graph.table("chip_bboxes")),
        "tile_map": graph.table("tile_map"),
        "filtered": all_of("filtered_chips"),
        "bands": all_of("downloaded_bands"),
        "missing": {},
        "in_no_split": "buffer",
        "pictured": [],
    }


def require_as_the_tables(graph: Graph, chips_of: dict[str, list[str]]) -> dict[str, Any]:
    """Check data.js and the packs against the tables and chips; returns the columns by chip."""
    folder = graph.dataset / "viewer"
    data = content(folder / "data.js", "load")
    columns = data["columns"]
    assert {len(values) for values in columns.values()} == {sum(map(len, chips_of.values()))}
    assert columns["id"] == sorted(columns["id"])
    of = {
        chip: {name: values[at] for name, values in columns.items()} for at, chip in enumerate(columns["id"])
    }
    tile_of = {chip: tile for tile, chips in chips_of.items() for chip in chips}
    assert {chip: facts["tile"] for chip, facts in of.items()} == tile_of
    assert set(data["tiles"]) == set(chips_of)
    splits = graph.table("splits").set_index("chip_id")["split"].to_dict()
    assert {chip: facts["split"] for chip, facts in of.items() if facts["split"]} == splits
    boxes = graph.table("chip_bboxes").set_index("chip_id")
    made = 0
    for tile, chips in chips_of.items():
        judged = graph.table("filtered_chips", tile).set_index("chip_id")
        clipped = graph.table("chips", tile).set_index("chip_id")
        bands = graph.table("downloaded_bands", tile)
        for chip in chips:
            found = of[chip]
            assert found["reason"] == judged.loc[chip, "reason"]
            assert (found["reason"] == "") == (found["split"] != "")
            pixels = boxes.loc[chip, CLASS_COLUMNS].astype(int)
            np.testing.assert_allclose(found["shares"], pixels / 501.76, atol=0.051)
            assert pixels.iloc[found["dominant"]] == pixels.max()
            corners = np.array(chip_outline(chip).exterior.coords)[:4, ::-1]
            np.testing.assert_allclose(found["corners"], corners, atol=1e-5)
            if clipped.loc[chip, "outcome"]:
                assert found["pack"] == -1
                assert found["scenes"] is None and found["dates"] is None
                continue
            made += 1
            for at, position in enumerate(POSITIONS):
                scene = data["scenes"][found["scenes"][at]]
                assert scene["id"] == clipped.loc[chip, f"{position}_scene"]
                day = clipped.loc[chip, f"{position}_date"].isoformat()
                assert scene["date"] == found["dates"][at] == day
                rows = bands[bands["position"] == position]
                assert {tuple(file) for file in scene["files"]} == {
                    *zip(rows["band"], rows["cid"], rows["verified"], strict=True)
                }
                assert found["bad"][at] == pytest.approx(
                    judged.loc[chip, f"bad_percent_{position}"], abs=0.006
                )
            assert found["missing"] == judged.loc[chip, "na_count"]
            pictures = content(folder / data["packs"][found["pack"]], "pack")[chip]
            require_pictures(graph, chip, pictures)
    listed = graph.table("viewer").set_index("file")
    packs = {f"viewer/{name}" for name in data["packs"]}
    assert listed["chips"].sum() == made
    assert {name for name in listed.index if listed["chips"][name]} == packs
    there = {f"viewer/{path.relative_to(folder).as_posix()}" for path in folder.rglob("*") if path.is_file()}
    assert there == set(listed.index)
    assert there - packs >= {
        f"viewer/{name}"
        for name in (
            *("index.html", "viewer.js", "viewer.css", "data.js"),
            *("leaflet/leaflet.js", "leaflet/leaflet.css", "leaflet/LICENSE"),
        )
    }
    for name, size in listed["bytes"].items():
        assert (graph.dataset / str(name)).stat().st_size == size
    return of


def require_pictures(graph: Graph, chip: str, pictures: dict[str, str]) -> None:
    with rasterio.open(graph.dataset / f"chips/{chip}.mask.tif") as raster:
        mask = raster.read(1)
    at = [int(pixel * 224 / SIDE) for pixel in range(SIDE)]
    np.testing.assert_array_equal(decoded(pictures["mask"]), rgb(list(CLASS_COLOURS))[mask[at][:, at]])
    with (
        rasterio.open(graph.dataset / f"chips/{chip}_merged.tif") as image,
        rasterio.open(graph.dataset / f"chips_fmask/{chip}_Fmask.tif") as fmask,
    ):
        assert pictures == chip_pictures(image.read(), mask, fmask.read())


def test_every_chip_box_is_there_as_in_the_tables(finished: Finished) -> None:
    of = require_as_the_tables(finished.graph, CHIPS)
    assert {chip: facts["reason"] for chip, facts in of.items() if facts["reason"]} == REJECTED
    assert sorted(chip for chip, facts in of.items() if not facts["reason"]) == KEPT
    assert re.fullmatch(r"\d+\.\d % bad pixels", of[CHIPS[WEST][0]]["detail"])
    assert re.fullmatch(r"\d+ missing pixels", of[CHIPS[WEST][2]]["detail"])
    page = (finished.graph.dataset / "viewer/index.html").read_text()
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", page), "it loads nothing from a network"
    named = re.findall(r"(?:src|href)=\"([^\"#]+)\"", page)
    assert named
    for name in {*named} - {"data:,"}:
        assert (finished.graph.dataset / "viewer" / name).is_file(), name


def test_three_tiles_and_then_fewer_chips(
    graph: Graph, three_tiles: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (assets, facts):
        monkeypatch.setattr(module, "CHIPS_PER_PACK", 1)
    every = [WEST, EAST, SOUTH]

    def run(tiles: list[str], resources: dict[str, Any]) -> None:
        for job in ("labels_job", "tiles_job", "dataset_job"):
            done = graph.run(job, tiles=sorted(tiles), **resources)
            assert done.success, done.failure

    run(every, three_tiles)
    of = require_as_the_tables(graph, THREE_TILES)
    packs = graph.dataset / "viewer/packs"
    assert sorted(path.name for path in packs.iterdir()) == [f"000{number}.js" for number in range(4)]
    for chip in THREE_TILES[SOUTH]:
        assert (of[chip]["reason"], of[chip]["detail"]) == ("too_few_scenes", "0 fit scenes")

    boxes = json.loads(Path(three_tiles["recipe"].chip_boxes).read_text())
    one = THREE_TILES[WEST][0]
    boxes["features"] = [found for found in boxes["features"] if found["properties"]["id"] == one]
    (fewer := tmp_path / "fewer.geojson").write_text(json.dumps(boxes))
    run([WEST], three_tiles | {"recipe": recipe(chip_boxes=str(fewer), statistics_over="kept")})
    require_as_the_tables(graph, {WEST: [one]})
    assert [path.name for path in packs.iterdir()] == ["0000.js"]


def test_a_damaged_file_is_made_again_with_the_same_bytes(finished_graph: Graph) -> None:
    before = digests(finished_graph.root)
    (finished_graph.dataset / "viewer/packs/0000.js").write_text("alert(1)")
    run = finished_graph.run("dataset_job")
    assert run.success, run.failure
    assert {asset for asset, _ in run.redone} == {"viewer"}
    assert digests(finished_graph.root) == before


def test_a_chip_without_a_tile_and_those_of_a_missing_one(finished: Finished) -> None:
    given = tables(finished.graph)
    west, east = CHIPS[WEST], CHIPS[EAST]
    tile_map, filtered = given["tile_map"].copy(), given["filtered"]
    outside = tile_map["chip_id"] == west[3]
    tile_map.loc[outside, ["tile", "finding"]] = ["", "it lies 12 m outside"]
    given |= {
        "tile_map": tile_map,
        "filtered": filtered[~filtered["chip_id"].isin([west[3], *east])],
        "bands": given["bands"][given["bands"]["tile"] == WEST],
        "splits": given["splits"][~given["splits"]["chip_id"].isin([west[3], west[4], *east])],
        # tables hold UTF-8
        "missing": {EAST: (hostile := HOSTILE.replace("\ud800", ""))},
    }
    found = viewer_facts(**given)
    columns = pd.DataFrame(found["columns"]).set_index("id")
    assert columns.loc[west[3], ["tile", "reason", "detail"]].tolist() == [
        "",
        "no_tile",
        "it lies 12 m outside",
    ]
    assert columns.loc[west[3], "scenes"] is None
    assert (columns.loc[east, "reason"] == "tile_missing").all()
    assert (columns.loc[east, "detail"] == hostile).all()
    assert columns.loc[west[4], ["reason", "split"]].tolist() == ["buffer", ""], "it is kept, but in no split"
    text = facts_text(found)
    assert json.loads(text.removeprefix("cropViewer.load(").removesuffix(")\n")) == found
    assert not set(text[:-1]) & set("<>&\u2028\u2029\n")


def test_label_quality_is_shown_where_it_is_known(finished: Finished) -> None:
    chip, other = CHIPS[WEST][:2]
    quality = pd.DataFrame(
        {"chip_id": [other, chip], "purity_percent": [88.126, 90], "confidence_percent": [None, 71.5]}
    )
    columns = viewer_facts(**tables(finished.graph), quality=quality)["columns"]
    assert columns["id"][:2] == [chip, other]
    assert columns["purity"][:3] == [90, 88.13, None]
    assert columns["confidence"][:3] == [71.5, None, None]
    assert viewer_facts(**tables(finished.graph))["columns"]["purity"] == [None] * 12


def test_no_pixel_of_most_classes(finished: Finished) -> None:
    given = tables(finished.graph)
    given["boxes"][CLASS_COLUMNS] = 0
    given["boxes"]["class_4"] = 224**2
    columns = viewer_facts(**given)["columns"]
    assert columns["dominant"] == [4] * 12
    assert columns["shares"] == [[100.0 if value == 4 else 0.0 for value in range(14)]] * 12


def test_five_thousand_chips_take_less_than_150_megabytes(finished: Finished) -> None:
    graph = finished.graph
    pictures = list(content(graph.dataset / "viewer/packs/0000.js", "pack").values())
    packs = [
        pack_text(number, {f"chip_{number:03d}_{at:03d}": pictures[at % len(pictures)] for at in range(100)})
        for number in range(50)
    ]
    folder = sum(path.stat().st_size for path in (graph.dataset / "viewer").rglob("*") if path.is_file())
    data = (graph.dataset / "viewer/data.js").stat().st_size
    assert folder + sum(map(len, packs)) + data / 12 * 5000 < 150e6
