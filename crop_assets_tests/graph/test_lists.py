"""A dataset from its own tables: scenes and CIDs from lists, with no catalogue to ask."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from crop_assets.bands import tile_files
from crop_assets.recipe import DatasetRecipe
from crop_assets.scenes import assets as scenes
from crop_assets_tests.small_world import (
    CHIPS,
    EAST,
    MIDDLE,
    SPARE_DAY,
    THROUGH_CIDS,
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
    recipe,
)
from resources import stac as stac_module
from resources.stac import IpfsStac, SceneStac

NOWHERE = {
    "stac": SceneStac(url="http://127.0.0.1:1/stac", granule_search="http://127.0.0.1:1/search", attempts=1),
    "ipfs_stac": IpfsStac(url="http://127.0.0.1:1/stac", attempts=1),
}
"""Catalogues that cannot be reached."""


class Lists:
    """The tables of an earlier run as lists, and the recipe that names them."""

    def __init__(self, folder: Path, earlier: Graph) -> None:
        self.scenes, self.cids = folder / "selected_tiles.csv", folder / "cids.json"
        tables = [earlier.table("selected_scenes", tile) for tile in TILES]
        self.chosen = pd.concat([table[table["position"] != ""] for table in tables])
        self.write_scenes(list(self.chosen["scene_id"]))
        self.cids.write_bytes((earlier.dataset / "tile_payloads.json").read_bytes())
        self.recipe: DatasetRecipe = recipe(
            scene_list=str(self.scenes),
            cid_list=str(self.cids),
            split="files",
            train_ids=str(earlier.dataset / "train_ids.csv"),
            validation_ids=str(earlier.dataset / "val_ids.csv"),
        )

    def write_scenes(self, names: list[str]) -> None:
        self.scenes.write_text("title_id,note\n" + "".join(f"{name},x\n" for name in names))

    def named(self, tile: str) -> list[str]:
        return [name for name in self.chosen["scene_id"] if f".T{tile}." in name]


@pytest.fixture
def lists(tmp_path: Path, finished: Finished) -> Lists:
    return Lists(tmp_path, finished.graph)


def counted(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[str]:
    """The files that a parser was called for, from now on."""
    parser: Callable[[bytes, str], Any] = getattr(module, name)
    calls: list[str] = []

    def counting(data: bytes, path: str) -> Any:
        calls.append(path)
        return parser(data, path)

    monkeypatch.setattr(module, name, counting)
    return calls


def redone(run: Any, tile: str) -> set[str]:
    return {stage for stage, partition in run.redone if partition == f"{YEAR}|{tile}"}


def test_a_dataset_is_made_again_from_its_own_tables_without_a_catalogue(
    labelled_graph: Graph,
    finished: Finished,
    lists: Lists,
    traffic: Traffic,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parsed = [
        counted(monkeypatch, scenes, "parse_scene_list"),
        counted(monkeypatch, tile_files, "parse_cid_list"),
    ]
    for job in ("tiles_job", "dataset_job"):
        run = labelled_graph.run(job, recipe=lists.recipe, **NOWHERE)
        assert run.success, run.failure
    assert parsed == [[str(lists.scenes)], [str(lists.cids)]], "once for all tiles"
    assert {asked.path.split("/")[1] for asked in traffic.asked} == {"ipfs"}

    ours, theirs = digests(labelled_graph.dataset), digests(finished.graph.dataset)
    chips = [name for name in theirs if name.startswith(("chips/", "chips_fmask/", "chips_filtered/"))]
    assert len(chips) > 3 * len(CHIPS[WEST])
    of_split = ["train_ids.csv", "train_data.txt", "val_ids.csv", "validation_data.txt", "chips_df.csv"]
    others = ["tile_payloads.json", "rejected_chips.csv", "global_stats.txt", "class_weights.csv"]
    for name in (*chips, *of_split, *others):
        assert ours[name] == theirs[name], name
    kept, given = ({name for name in files if not name.startswith("pictures/")} for files in (ours, theirs))
    assert kept == given
    for tile in TILES:
        selected = labelled_graph.table("selected_scenes", tile)
        assert list(selected["position"]) == ["first", "middle", "last"]
        assert list(selected["scene_id"]) == lists.named(tile)
        downloaded = labelled_graph.table("downloaded_bands", tile)
        assert len(downloaded) == 21 and downloaded["verified"].all()


def test_what_changes_in_a_list_remakes_the_tiles_that_it_concerns(
    finished_graph: Graph, lists: Lists, setting: Setting, served: Served
) -> None:
    def run_tiles() -> Any:
        run = finished_graph.run("tiles_job", recipe=lists.recipe, **NOWHERE)
        assert run.success, run.failure
        return run

    # tables that were made from a catalogue are not those of the list
    run = finished_graph.run("dataset_job", recipe=lists.recipe)
    assert "_list); materialize " in run.failure
    run = run_tiles()
    for tile in TILES:
        assert {"scene_metadata", "selected_scenes", "band_cids"} <= redone(run, tile)
        # of the same files; tables of chips name the scenes and how many were fit
        assert not redone(run, tile) & {"reprojected_tiles", "chip_quality"}
    assert run_tiles().redone == set()

    # another form of the list, with more CIDs of one tile
    items = [item for item in items_of(served.server.ipfs_stac_url) if item["id"]]
    entries = []
    for item in items:
        for band, asset in item["assets"].items():
            alternate = asset.get("alternate", {})
            href = alternate.get("ipfs", alternate.get("IPFS", {})).get("href", "")
            name = f"{item['id']}.{band}.tif"
            entries.append({"filename": name, "cid": href.removeprefix("ipfs://").rstrip("/")})
    assert len(entries) == 49
    lists.cids.write_text(json.dumps(entries[::-1]))
    run = run_tiles()
    assert redone(run, WEST) == set()
    assert redone(run, EAST) == {"band_cids"}

    # another scene of that tile
    middle, spare = (setting.scene(EAST, day).scene_id for day in (MIDDLE[EAST], SPARE_DAY))
    first, last = (name for name in lists.named(EAST) if name != middle)
    lists.write_scenes([last, spare, *lists.named(WEST), first])
    run = run_tiles()
    assert redone(run, WEST) == set()
    assert {"selected_scenes", "band_cids", "downloaded_bands", "chips"} <= redone(run, EAST)
    selected = finished_graph.table("selected_scenes", EAST)
    assert list(selected["scene_id"]) == [first, spare, last]
    assert set(selected["note"]) == {"in selected_tiles.csv"}

    # and one scene less: its chips cannot be made, and the ledger says why
    lists.write_scenes([*lists.named(WEST), first, last, last])
    run = run_tiles()
    assert redone(run, WEST) == set()
    outcome = run.made["selected_scenes", f"{YEAR}|{EAST}"].metadata["outcome"].value
    assert outcome == "only 2 of 3 scenes are in selected_tiles.csv: no chip of this tile can be made"
    assert finished_graph.run("dataset_job", recipe=lists.recipe).success
    reasons = {row["chip_id"]: row["reason"] for row in ledger(finished_graph)}
    assert {reasons[chip] for chip in CHIPS[EAST]} == {"too_few_scenes"}
    assert "too_few_scenes" not in {reasons.get(chip) for chip in CHIPS[WEST]}


def test_a_file_without_a_cid_in_the_list_is_reported_and_keeps_its_link(
    labelled_graph: Graph, lists: Lists
) -> None:
    payloads = json.loads(lists.cids.read_text())
    first = lists.named(WEST)[0]
    del payloads[first]
    lists.cids.write_text(json.dumps(payloads))
    run = labelled_graph.run("tiles_job", stages=THROUGH_CIDS, recipe=lists.recipe, **NOWHERE)
    assert run.success, run.failure
    cids = labelled_graph.table("band_cids", WEST)
    without = cids[cids["cid"] == ""]
    assert list(without["scene_id"]) == [first] * 7
    assert set(without["problem"]) == {"cids.json has no CID of this file"}
    assert (
        without["http"].str.startswith("https://data.lpdaac.earthdatacloud.nasa.gov/lp-prod-protected/").all()
    )
    assert (labelled_graph.table("band_cids", EAST)["cid"] != "").all()


def test_two_scenes_of_a_day_fail_their_tile_and_a_malformed_list_all(
    labelled_graph: Graph, lists: Lists
) -> None:
    twin = lists.named(EAST)[0].replace("S30", "L30")
    lists.write_scenes([*lists.named(WEST), *lists.named(EAST)[:2], twin])

    def run_tiles() -> Any:
        return labelled_graph.run(
            "tiles_job",
            stages=THROUGH_CIDS,
            recipe=lists.recipe,
            **NOWHERE,
        )

    run = run_tiles()
    assert f"{lists.scenes} lists two scenes of {EAST} of one day (lines 5, 6, 7)" in run.failure
    assert f"({EAST} at scene_metadata). 1 of 2 tiles failed; the other one is done." in run.failure
    assert len(labelled_graph.table("band_cids", WEST)) == 21

    lists.write_scenes([*lists.named(WEST), *lists.named(EAST), "../elsewhere"])
    run = run_tiles()
    assert f"{lists.scenes}, line 8: '../elsewhere' is not an HLS scene id" in run.failure
    assert "All 2 tiles of the run failed" in run.failure
    lists.write_scenes(lists.named(WEST) + lists.named(EAST))
    lists.cids.unlink()
    run = run_tiles()
    assert f"cannot read {lists.cids}, which the recipe names: No such file" in run.failure


def test_a_catalogue_in_a_file_is_parsed_once_for_all_tiles(
    labelled_graph: Graph,
    finished: Finished,
    served: Served,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of_cids = items_of(served.server.ipfs_stac_url)
    coverage = {
        row["scene_id"]: row["spatial_coverage"]
        for tile in TILES
        for row in finished.graph.table("scene_metadata", tile).to_dict("records")
    }
    of_scenes = items_of(served.server.stac_url)
    for item in of_scenes:
        item["properties"]["spatial_coverage"] = coverage[item["id"]]
    files = [collection(tmp_path / name, items) for name, items in (("a", of_scenes), ("b", of_cids))]
    sizes: list[int] = []
    parse = stac_module.parse

    def counting(data: bytes, *limits: int) -> Any:
        sizes.append(len(data))
        return parse(data, *limits)

    monkeypatch.setattr(stac_module, "parse", counting)
    run = labelled_graph.run(
        "tiles_job",
        stages=THROUGH_CIDS,
        stac=SceneStac(url=files[0]),
        ipfs_stac=IpfsStac(url=files[1]),
    )
    assert run.success, run.failure
    assert sorted(sizes) == sorted(Path(file).stat().st_size for file in files)
    for tile in TILES:
        ours, theirs = (graph.table("band_cids", tile) for graph in (labelled_graph, finished.graph))
        assert len(ours) == 21
        assert list(ours["cid"]) == list(theirs["cid"])
