"""What the Dagster UI shows of a tile beside its table: checks and pictures."""

import hashlib
import io
import re
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
import pytest
import requests
from PIL import Image
from starlette.applications import Starlette

from crop_assets.chips.plots import KEPT_COLOUR, REJECTED_COLOUR, cell_corner
from crop_assets.definitions import build_defs
from crop_assets.graph.metadata import IN_UNITS, Picture, markdown, shown, store_pictures, with_unit
from crop_assets.layout import PICTURE_TYPES
from crop_assets.partitions import TILE
from crop_assets.ui import picture_route
from crop_assets_tests.resources.loopback import serving
from crop_assets_tests.small_world import (
    EAST,
    SOUTH,
    TILES,
    WEST,
    YEAR,
    Finished,
    Graph,
    Run,
    digests,
)
from resources.store import DatasetStore

EMPTY = "14SPG"
CHECK = dg.AssetCheckKey(dg.AssetKey("filtered_chips"), "any_chip_is_kept")


def results(graph: Graph, run_id: str) -> dict[str, dg.AssetCheckEvaluation]:
    """The results of the check in a run, by tile."""
    logs = graph.instance.all_logs(run_id, dg.DagsterEventType.ASSET_CHECK_EVALUATION)
    found = [log.dagster_event.asset_check_evaluation_data for log in logs if log.dagster_event]
    assert {one.asset_check_key for one in found} == {CHECK}
    assert len(found) == len({one.partition for one in found})
    return {str(one.partition).removeprefix(f"{YEAR}|"): one for one in found}


def test_each_tile_has_a_result_of_its_own(graph: Graph, three_tiles: dict[str, Any]) -> None:
    assert graph.run("labels_job", **three_tiles).success
    made = graph.run("tiles_job", [SOUTH, WEST, EAST, EMPTY], **three_tiles)
    assert made.success, made.failure
    again = graph.run("tiles_job", [SOUTH, WEST, EAST, EMPTY], **three_tiles)
    assert again.success and not again.redone
    for run in (made, again):
        found = results(graph, run.result.run_id)
        assert {tile: one.passed for tile, one in found.items()} == {
            SOUTH: False,
            WEST: True,
            EAST: True,
            EMPTY: True,
        }
        counts = {tile: {n: v.value for n, v in one.metadata.items()} for tile, one in found.items()}
        assert counts[SOUTH] == {"kept": 0, "too_few_scenes": 2}
        for tile in (WEST, EAST):
            table = graph.table("filtered_chips", tile)
            assert counts[tile]["kept"] == table["kept"].sum() > 0
        assert {one.severity for one in found.values()} == {dg.AssetCheckSeverity.WARN}


def test_a_check_is_executed_without_its_asset(finished_graph: Graph) -> None:
    before = digests(finished_graph.root)
    job = dg.define_asset_job("check", dg.AssetSelection.checks(CHECK))
    defs = dg.Definitions.merge(build_defs(finished_graph.resources), dg.Definitions(jobs=[job]))
    finished_graph.instance.add_dynamic_partitions(TILE, [WEST, EAST, SOUTH])

    def execute(first: str, last: str) -> Run:
        keys = {"start": f"{YEAR}|{first}", "end": f"{YEAR}|{last}"}
        tags = {f"dagster/asset_partition_range_{name}": key for name, key in keys.items()}
        result = defs.resolve_job_def("check").execute_in_process(
            instance=finished_graph.instance, raise_on_error=False, tags=tags
        )
        return Run(result, finished_graph.instance)

    run = execute(WEST, EAST)
    assert run.success and not run.made
    found = results(finished_graph, run.result.run_id)
    kept = {tile: int(finished_graph.table("filtered_chips", tile)["kept"].sum()) for tile in (WEST, EAST)}
    assert {tile: one.metadata["kept"].value for tile, one in found.items()} == kept
    assert digests(finished_graph.root) == before
    # a tile that was never made has nothing to check
    run = execute(SOUTH, SOUTH)
    assert not run.success
    assert "filtered_chips/14SMF.parquet; materialize its asset first" in run.failure


def test_events_hold_no_large_picture_and_the_store_does(finished: Finished) -> None:
    store = DatasetStore(root=str(finished.graph.root))
    stored = {}
    for run in finished.runs.values():
        for (asset, partition), event in run.made.items():
            for name, value in event.metadata.items():
                if isinstance(value, dg.MarkdownMetadataValue) and (text := value.md_str):
                    assert len(text) < 15_000, (asset, name)
                    if match := re.match(r"!\[.*\]\(/(\S+)\?sha256=(\w+)\)", text):
                        stored[asset, partition, name] = match
    assert {(asset, name) for asset, _, name in stored} >= {("chips", "chip"), ("chip_bboxes", "map")}
    for tile in TILES:
        assert f"pictures/chips/{tile}/chip.jpeg" in stored["chips", f"{YEAR}|{tile}", "chip"][1]
    for match in stored.values():
        assert hashlib.sha256(store.read_bytes(match[1])).hexdigest() == match[2]


def verdicts_on(sheet: bytes, chips: int) -> list[bool | None]:
    """Whether each chip of a contact sheet is in the frame of kept chips; None in another frame or none."""
    pixels = np.asarray(Image.open(io.BytesIO(sheet)).convert("RGB")).astype(int)
    colours = {KEPT_COLOUR: True, REJECTED_COLOUR: False}
    found = []
    for at in range(chips):
        left, top = cell_corner(at, chips)
        edge = pixels[top + 40 : top + 140, left + 1]
        found.append(next((kept for colour, kept in colours.items() if abs(edge - colour).max() < 24), None))
    return found


def test_each_tile_has_a_sheet_of_its_chips_with_their_verdicts(finished: Finished) -> None:
    seen = set()
    for tile in TILES:
        table = finished.graph.table("filtered_chips", tile)
        sheet = finished.graph.dataset / "pictures/filtered_chips" / tile / "contact_sheet.jpeg"
        assert verdicts_on(sheet.read_bytes(), len(table)) == list(table["kept"])
        seen |= set(table["kept"])
    assert seen == {True, False}


def test_the_sheets_of_several_tiles_stay_in_a_second_run(graph: Graph, three_tiles: dict[str, Any]) -> None:
    tiles = [SOUTH, WEST, EAST, EMPTY]
    assert graph.run("labels_job", **three_tiles).success
    runs = [graph.run("tiles_job", tiles, **three_tiles), graph.run("dataset_job", **three_tiles)]
    assert runs[0].success, runs[0].failure
    assert runs[1].success, runs[1].failure
    pictures = graph.dataset / "pictures"
    kept = set()
    for tile in tiles[:3]:
        table = graph.table("filtered_chips", tile)
        assert len(table) == 2
        sheet = (pictures / "filtered_chips" / tile / "contact_sheet.jpeg").read_bytes()
        assert verdicts_on(sheet, 2) == list(table["kept"])
        kept |= set(zip(table["kept"], table["reason"], strict=True))
    # the boxes of chips that were not made are blank
    assert kept == {(True, ""), (False, "too_few_scenes")}
    left, top = cell_corner(0, 2)
    south = (pictures / "filtered_chips" / SOUTH / "contact_sheet.jpeg").read_bytes()
    pixels = np.asarray(Image.open(io.BytesIO(south)).convert("RGB")).astype(int)
    assert abs(pixels[top + 10 : top + 45, left + 10 : left + 110] - 235).max() < 8
    assert not (pictures / "filtered_chips" / EMPTY).exists(), "a tile without chips has no sheet"
    before = digests(pictures)
    assert {"splits/map.png", "splits/funnel_chart.png"} <= {str(Path(name)) for name in before}
    again = [graph.run("tiles_job", tiles, **three_tiles), graph.run("dataset_job", **three_tiles)]
    assert not again[0].redone and not again[1].redone
    assert digests(pictures) == before
    for first, second in zip(runs, again, strict=True):
        for key, event in first.made.items():
            later = second.made[key].metadata
            for name, value in event.metadata.items():
                if isinstance(value, dg.MarkdownMetadataValue):
                    assert later[name] == value, (key, name)


def test_numbers_are_shown_with_their_units(finished: Finished) -> None:
    for tile in TILES:
        metadata = finished.runs["tiles_job"].made["downloaded_bands", f"{YEAR}|{tile}"].metadata
        size = metadata["bytes"].value
        bands = finished.graph.table("downloaded_bands", tile).query("band != 'Fmask'")
        assert isinstance(size, int) and size == bands["bytes"].sum()
        assert f"bytes {size / 1e6:.3g} MB" in str(metadata[IN_UNITS].value)
    check = finished.runs["dataset_job"].checks["splits", "few_chips_touch_training"]
    percent = check.metadata["touching_percent"].value
    assert isinstance(percent, float)
    # 100.0 is readable as it is
    assert percent == 100 or f"touching_percent {percent:.4g} %" in str(check.metadata[IN_UNITS].value)
    ledger = finished.runs["tiles_job"].made["filtered_chips", f"{YEAR}|{WEST}"].metadata["ledger"].value
    rejected = finished.graph.table("filtered_chips", WEST).query("reason == 'bad_quality'")
    assert len(rejected)
    for row in rejected.itertuples():
        assert f"| {row.chip_id} | bad_quality | {row.figure:.4g} % |" in str(ledger)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("bytes", 53_211_456, "53.2 MB"),
        ("bytes", 0, "0 B"),
        ("bytes", 999, "999 B"),
        ("bytes", 999_600, "1 MB"),
        ("fetched_bytes", 2_000_000_000_000, "2 TB"),
        ("bytes", 53_211_456.0, "53.2 MB"),
        ("cloud_cover", 12.3456, "12.35 %"),
        ("its_percent", 100.0, "100 %"),
        ("spatial_coverage", 7, "7 %"),
        ("seconds", 0.412, "0.412 s"),
        ("seconds", 5432.1, "5,432 s"),
        ("margin_m", -12345.0, "-12,345 m"),
        ("pixels", 3_311_616, "3,311,616"),
        ("chips", np.int64(12_000), "12,000"),
        ("chips", 5000, None),
        ("year", 2022, None),
        ("weight", 0.1234, None),
        ("weight", 12345.5, None),
        ("reused", True, None),
        ("bytes", "53", None),
        ("bytes", None, None),
        ("bytes", float("nan"), None),
        ("bytes", float("inf"), None),
        ("bytes", 10**400, None),
    ],
)
def test_the_name_of_a_number_gives_its_unit(name: str, value: object, text: str | None) -> None:
    assert with_unit(name, value) == text


def test_a_number_that_is_readable_is_not_repeated() -> None:
    assert IN_UNITS not in shown({"kept": 12, "seconds": 0.4, "limit_percent": 5, "reason": "none"})
    found = shown({"bytes": 53_211_456, "share_percent": 100 / 3, "dagster/row_count": 12_345, "n": "x"})
    assert found == {
        "bytes": 53_211_456,
        "share_percent": 100 / 3,
        "dagster/row_count": 12_345,
        "n": "x",
        IN_UNITS: "bytes 53.2 MB, share_percent 33.33 %, row_count 12,345",
    }
    earlier = {
        name: dg.MetadataValue.int(10_000_000) if name == "bytes" else dg.MetadataValue.text("old")
        for name in found
    }
    assert shown(earlier)[IN_UNITS] == "bytes 10 MB"


def test_tables_have_units_and_separators() -> None:
    frame = pd.DataFrame(
        {"year": [2022, 2023], "bytes": [53_211_456, 0], "chips": [12_345, 7], "its_percent": [1.5, None]}
    )
    assert markdown(frame).md_str == (
        "| year | bytes | chips | its_percent |\n| --- | --- | --- | --- |\n"
        "| 2022 | 53.2 MB | 12,345 | 1.5 % |\n| 2023 | 0 B | 7 |  |"
    )


def test_a_small_picture_is_inline(tmp_path: Path) -> None:
    store = DatasetStore(root=str(tmp_path))
    metadata = {"small": Picture(b"x" * 10_000, "small"), "large": Picture(b"x" * 10_001, "large"), "n": 1}
    found = store_pictures(metadata, store, "training_datasets/a/2022/pictures/chips")
    assert found["n"] == 1
    assert found["small"].md_str.startswith("![small](data:image/png;base64,")
    assert found["large"].md_str.startswith(
        "![large](/training_datasets/a/2022/pictures/chips/large.png?sha256="
    )
    assert [path.name for path in tmp_path.rglob("*.png")] == ["large.png"]


def test_the_server_gives_pictures_as_they_were_shown_and_nothing_else(tmp_path: Path) -> None:
    store = DatasetStore(root=str(tmp_path / "store"))
    folder = "training_datasets/a/2022/pictures"
    (tmp_path / "secret.png").write_bytes(b"secret")
    names = [
        f"{folder}/chips/{WEST}/chip.jpeg",
        f"{folder}/chip_bboxes/map.png",
        f"{folder}/selected_scenes/{WEST}/season.svg",
        "training_datasets/a/2022/tables/chips.parquet",
        "training_datasets/a/2022/chips/chip_232_310.png",
        f"{folder}/chips/page.xml",
        f"{folder}/chips/page.html",
    ]
    for name in names:
        store.write_bytes(name, name.encode())
    (tmp_path / "store" / folder / "chips/link.png").symlink_to(tmp_path / "secret.png")
    digest = {name: hashlib.sha256(name.encode()).hexdigest() for name in names}
    app = Starlette(routes=[picture_route(store)])
    with serving(app) as url:

        def get(path: str) -> requests.Response:
            # requests would resolve the dots
            request = requests.Request("GET", url).prepare()
            request.url = f"{url}{path}"
            with requests.Session() as session:
                return session.send(request, timeout=10)

        for name in names[:3]:
            answer = get(f"/{name}?sha256={digest[name]}")
            assert (answer.status_code, answer.content) == (200, name.encode())
            assert answer.headers["content-type"] == PICTURE_TYPES[name.rsplit(".", 1)[1]]
            # the file of another user of the store may have a script
            assert answer.headers["content-security-policy"] == "default-src 'none'; sandbox"
            for wrong in ("", "?sha256=", f"?sha256={'0' * 64}"):
                assert get(f"/{name}{wrong}").status_code == 404
        for name in names[3:]:
            assert get(f"/{name}?sha256={digest[name]}").status_code == 404
        secret = hashlib.sha256(b"secret").hexdigest()
        for path in (
            f"{folder}/chips/link.png",
            f"{folder}/chips/../../../../../../secret.png",
            f"{folder}/chips/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/secret.png",
            "training_datasets/../../secret.png",
        ):
            answer = get(f"/{path}?sha256={secret}")
            assert answer.status_code == 404
            assert answer.content != b"secret"
