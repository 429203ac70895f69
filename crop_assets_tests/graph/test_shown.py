"""What the Dagster UI shows of a tile beside its table: checks and pictures."""

import hashlib
import re
from pathlib import Path
from typing import Any

import dagster as dg
import requests
from starlette.applications import Starlette

from crop_assets.definitions import build_defs
from crop_assets.graph.metadata import Picture, store_pictures
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
    shown = {}
    for run in finished.runs.values():
        for (asset, partition), event in run.made.items():
            for name, value in event.metadata.items():
                if isinstance(value, dg.MarkdownMetadataValue) and (text := value.md_str):
                    assert len(text) < 15_000, (asset, name)
                    if match := re.match(r"!\[.*\]\(/(\S+)\?sha256=(\w+)\)", text):
                        shown[asset, partition, name] = match
    assert {(asset, name) for asset, _, name in shown} >= {("chips", "chip"), ("chip_bboxes", "map")}
    for tile in TILES:
        assert f"pictures/chips/{tile}/chip.jpeg" in shown["chips", f"{YEAR}|{tile}", "chip"][1]
    for match in shown.values():
        assert hashlib.sha256(store.read_bytes(match[1])).hexdigest() == match[2]


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
