"""How many requests the tiles of a run, and a look at many tiles, make to an object store."""

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import rasterio
import s3fs
from moto.server import DomainDispatcherApplication, create_backend_app
from typer.testing import CliRunner
from werkzeug.serving import make_server

from crop_assets.automation.years import year_state
from crop_assets.cli import app
from crop_assets.schemas import SCHEMAS
from crop_assets.stages import STAGES
from crop_assets.verify import verify_tables
from crop_assets_tests.graph.many_tiles import (
    FILES,
    lineage_of,
    names_of_tiles,
    other_rows,
    write,
    write_year,
)
from crop_assets_tests.small_world import CHIPS, KEPT, LABELS, TILE_STAGES, TILES, Graph, digests
from resources.store import DatasetStore
from resources.tables import read_table, write_table

BUCKET = "counted-crops"
OF_A_TILE, OF_A_CHIP, OF_A_TABLE = 85, 5, 3
"""Most requests: 400 for the 63 chips of a tile, whose store was empty. A chip has five files."""


class Server:
    """An S3 server that counts requests by method and path."""

    def __init__(self) -> None:
        self._moto = DomainDispatcherApplication(create_backend_app)
        self.asked: Counter[tuple[str, str]] = Counter()

    def __call__(self, environ: dict[str, Any], start: Any) -> Any:
        self.asked[environ["REQUEST_METHOD"], environ["PATH_INFO"]] += 1
        return self._moto(environ, start)

    def of(self, method: str) -> dict[str, int]:
        """Requests of a method by path."""
        return {path: count for (asked, path), count in self.asked.items() if asked == method}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    server = Server()
    http = make_server("127.0.0.1", 0, server, threaded=True)
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{http.server_port}",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    yield server
    s3fs.S3FileSystem.clear_instance_cache()
    http.shutdown()
    thread.join()
    http.server_close()


def test_a_tile_is_made_by_few_requests_and_reused_by_fewer(
    labelled_graph: Graph, server: Server, pool: Executor
) -> None:
    elsewhere = s3fs.S3FileSystem(skip_instance_cache=True)
    elsewhere.makedirs(BUCKET, exist_ok=True)
    elsewhere.put(str(labelled_graph.root), f"{BUCKET}/data", recursive=True)
    before = set(digests(labelled_graph.root))
    store = DatasetStore(root=f"s3://{BUCKET}/data")

    server.asked.clear()
    assert labelled_graph.run("tiles_job", store=store).success
    chips = sum(len(CHIPS[tile]) for tile in TILES)
    assert server.asked.total() <= len(TILES) * OF_A_TILE + chips * OF_A_CHIP
    written = server.of("PUT")
    assert set(written.values()) == {1}
    # what the run itself has written is not read
    assert not {path for path in server.of("GET") if path.endswith(".tif")}
    assert not server.of("HEAD")
    found = elsewhere.find(f"{BUCKET}/data")
    assert {f"/{path}" for path in found} == {*written, *(f"/{BUCKET}/data/{name}" for name in before)}

    layout = labelled_graph.layout
    tables = [layout.table(stage, tile) for stage in TILE_STAGES for tile in TILES]
    verified = verify_tables(store, tables, pool)
    assert (verified.bad_files, verified.tables) == ([], len(tables))
    kept: list[str] = []
    for tile in TILES:
        judged = read_table(store, layout.table("filtered_chips", tile), SCHEMAS["filtered_chips"])
        kept += list(judged.loc[judged["kept"], "chip_id"])
    assert sorted(kept) == KEPT

    server.asked.clear()
    again = labelled_graph.run("tiles_job", store=store)
    assert again.success
    assert not again.redone
    assert not server.of("PUT")
    read = {path: count for path, count in server.of("GET").items() if path.endswith(".tif")}
    assert set(read) == {path for path in written if path.endswith(".tif")}
    assert set(read.values()) == {1}
    assert server.asked.total() <= sum(read.values()) + len(TILES) * OF_A_TABLE * len(TILE_STAGES)


def _write_damaged(store: DatasetStore, name: str) -> None:
    data = store.read_bytes(name)
    store.write_bytes(name, data[:-40] + b"\xff" * 32 + data[-8:])


def _write_record(store: DatasetStore, name: str, record: dict[str, Any]) -> None:
    stage = "filtered_chips"
    write_table(store, name, SCHEMAS[stage].empty(), SCHEMAS[stage], record)


def _spoil(store: DatasetStore) -> dict[str, Callable[[str], object]]:
    """What others may do to the tables of a tile, by what it is."""
    year = lineage_of(store)

    def table(asset: str, tile: str) -> str:
        return year.table(asset, tile)

    def make(asset: str, tile: str, frame: pd.DataFrame | None = None, **changes: object) -> None:
        write(lineage_of(store, lineage_of(store), **changes), STAGES[asset], tile, frame)

    def of_itself(tile: str) -> None:
        version = lineage_of(store).version("filtered_chips", tile, per_tile=True)
        named = {"upstream": {"filtered_chips": version}, "tile_upstream": ["filtered_chips"]}
        _write_record(store, table("filtered_chips", tile), named)

    odd = {"tile_upstream": [3, ["chips"], "no_stage", "chips"], "upstream": {"chips": "0"}}
    return {
        "missing": lambda tile: store.remove(table("filtered_chips", tile)),
        "missing upstream": lambda tile: store.remove(table("selected_scenes", tile)),
        "other rows upstream": lambda tile: make("band_cids", tile, other_rows("band_cids")),
        "another recipe": lambda tile: make("filtered_chips", tile, max_bad_percent=50.0),
        "another recipe upstream": lambda tile: make("reprojected_tiles", tile, coverage="full"),
        "damaged": lambda tile: _write_damaged(store, table("filtered_chips", tile)),
        "damaged upstream": lambda tile: _write_damaged(store, table("scene_metadata", tile)),
        "empty": lambda tile: store.write_bytes(table("chips", tile), b""),
        "no table": lambda tile: store.write_bytes(table("chips", tile), b"PAR1" * 20),
        "no record": lambda tile: _write_record(store, table("filtered_chips", tile), odd),
        "of itself": of_itself,
    }


def test_many_tiles_are_judged_together_as_each_is_alone(server: Server, tmp_path: Path) -> None:
    elsewhere = s3fs.S3FileSystem(skip_instance_cache=True)
    elsewhere.makedirs(BUCKET, exist_ok=True)
    local, store = DatasetStore(root=str(tmp_path)), DatasetStore(root=f"s3://{BUCKET}/judged")
    kinds = list(_spoil(local))
    good, long, *others = tiles = names_of_tiles(len(kinds) + 2)
    write_year(local, tiles)
    elsewhere.put(f"{tmp_path}/", f"{BUCKET}/judged", recursive=True)
    server.asked.clear()
    assert year_state(lineage_of(store)) == year_state(lineage_of(local))
    assert not server.of("HEAD")
    assert sum(server.of("GET").values()) <= len(TILE_STAGES) * (len(tiles) + 1) + len(LABELS) * 2

    # with a footer that takes more than one look
    many = {f"{name}.{number}": digest for name, digest in FILES.items() for number in range(30)}
    for one in (local, store):
        write(lineage_of(one, lineage_of(one)), STAGES["filtered_chips"], long, files=many)
        for tile, spoil in zip(others, _spoil(one).values(), strict=True):
            spoil(tile)
    expected = year_state(lineage_of(local))
    assert expected is not None
    assert (set(expected.done), set(expected.waiting)) == ({good, long}, set(others))
    for _ in range(2):
        server.asked.clear()
        assert year_state(lineage_of(store)) == expected
    # those that were read before are known by their ETags
    assert not [path for path in server.of("GET") if path.endswith((f"/{good}.parquet", f"/{long}.parquet"))]
    # another recipe is judged by the same footers
    changed: dict[str, object] = {"max_bad_percent": 50.0}
    assert year_state(lineage_of(store, **changed)) == year_state(lineage_of(local, **changed))

    # put right, all are current
    write_year(local, tiles)
    elsewhere.put(f"{tmp_path}/", f"{BUCKET}/judged", recursive=True)
    state = year_state(lineage_of(store))
    assert state == year_state(lineage_of(local))
    assert state is not None
    assert set(state.done) == set(tiles)


def test_a_dataset_is_described_and_compared_by_few_requests(finished_graph: Graph, server: Server) -> None:
    local = {name: finished_graph.table(name) for name in ("fingerprint", "dataset_files")}
    elsewhere = s3fs.S3FileSystem(skip_instance_cache=True)
    elsewhere.makedirs(BUCKET, exist_ok=True)
    for name in local:
        (finished_graph.root / finished_graph.layout.table(name)).unlink()
    (finished_graph.dataset / "dataset.json").unlink()
    for place in ("described", "compared"):
        elsewhere.put(f"{finished_graph.root}/", f"{BUCKET}/{place}", recursive=True)
    store = DatasetStore(root=f"s3://{BUCKET}/described")
    server.asked.clear()
    run = finished_graph.run("dataset_job", stages=["fingerprint", "dataset_files"], store=store)
    assert run.success, run.failure
    for name, table in local.items():
        found = read_table(store, finished_graph.layout.table(name), SCHEMAS[name])
        pd.testing.assert_frame_equal(found, table)
    assert run.checks["dataset_files", "files_are_as_written"].passed
    assert not server.of("HEAD")
    # the check reads each file of this small dataset once
    read = {path: count for path, count in server.of("GET").items() if path.endswith(".tif")}
    assert set(read.values()) == {1}
    assert len(read) == 4 * len(KEPT)

    # the other store has no fingerprint, and one mask that was made again
    server.asked.clear()
    folder = finished_graph.layout.root
    shown = CliRunner().invoke(
        app, ["diff", f"s3://{BUCKET}/described/{folder}", f"s3://{BUCKET}/compared/{folder}"]
    )
    assert shown.exit_code == 0, shown.output
    assert "not compared: recipe: not in B" in shown.output
    assert not server.of("PUT")
    assert not server.of("DELETE")
    assert not {path for path in server.of("GET") if path.endswith(".tif")}

    gone, edited = KEPT[0], KEPT[1]
    other = DatasetStore(root=f"s3://{BUCKET}/compared")
    mask = finished_graph.layout.mask(edited, "chips_filtered")
    with other.local(mask) as path, rasterio.open(path) as raster:
        pixels, profile = raster.read(), raster.profile
    pixels[0, :2, :3] = np.where(pixels[0, :2, :3] == 1, 2, 1)
    with other.writing(mask) as path, rasterio.open(path, "w", **profile) as raster:
        raster.write(pixels)
    name = finished_graph.layout.table("splits")
    chips = read_table(other, name, SCHEMAS["splits"])
    chips.loc[chips["chip_id"] == edited, "mask_sha256"] = other.sha256(mask)
    write_table(other, name, chips[chips["chip_id"] != gone], SCHEMAS["splits"], {})
    server.asked.clear()
    places = [f"s3://{BUCKET}/{place}/{folder}" for place in ("described", "compared")]
    shown = CliRunner().invoke(app, ["diff", *places, "--json"])
    found = {kind: rows for kind, rows in json.loads(shown.stdout)["differences"].items() if rows}
    assert shown.exit_code == 1
    assert found["pixels"] == [
        {"chip_id": edited, "band": "mask", "pixels": 6, "largest": None, "mean": None}
    ]
    assert [row["chip_id"] for row in found["only_a"]] == [gone]
    assert set(found) == {"pixels", "files", "only_a"}
    read = {path: count for path, count in server.of("GET").items() if path.endswith(".tif")}
    assert read == {f"/{BUCKET}/{place}/{mask}": 1 for place in ("described", "compared")}
