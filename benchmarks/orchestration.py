"""A 16-tile backfill through Dagster as a user runs it, and the same stages by themselves.

The world is small, so that Dagster's part shows: one chip a tile, bands cut to 512 x 512 pixels around it. All else is
what production does: the catalogues, the gateway and the metadata documents are served on loopback, and the backfill
is launched as the UI's button does, for the daemon of `dagster dev` to run.
"""

import contextlib
import datetime as dt
import hashlib
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import numpy as np
import pyproj
import rasterio
import requests
import shapely
from affine import Affine
from pydantic import TypeAdapter
from rasterio.windows import Window

from benchmarks.world import write_cdl
from crop_assets.chip_grid import CHIP_METRES, ORIGIN_X, ORIGIN_Y, chip_id
from crop_assets.definitions import build_defs, environment_resources
from crop_assets.demo.run import DAGSTER_YAML, server_environment
from crop_assets.demo.scenes import DemoFile, Scene
from crop_assets.demo.server import WorldServer, serve
from crop_assets.demo.world import World
from crop_assets.graph.lineage import Lineage
from crop_assets.graph.services import services_of
from crop_assets.graph.tiles import TileWork, make_tile
from crop_assets.hls import HLS_SIZE, QA_BAND, REFLECTANCE_BANDS
from crop_assets.labels.cdl import check_cdl, chip_histograms
from crop_assets.labels.sampling import candidate_boxes, weighed_boxes, write_chip_geojson
from crop_assets.layout import Layout
from crop_assets.partitions import CDL_YEAR, TILE
from crop_assets.stages import TILE_STAGES
from crop_assets.tiles.grid import hls_tile_bounds, official_grid_path, read_tile_grid
from resources.ipfs.unixfs import file_cid
from resources.loopback import free_port
from resources.machine import Machine
from resources.stop import StoppablePool

YEAR = 2022
TILES = [f"14S{column}{row}" for column in "LMNP" for row in "FGHJ"]
_SIZE = 512
_DAYS = (77, 157, 267)
_START_SECONDS, _MAX_SECONDS = 90, 300
_BACKFILL = """
mutation($params: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $params) {
  ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }"""
_RUNS = """
query($id: String!) { runsOrError(filter: {tags: [{key: "dagster/backfill", value: $id}]}) {
  ... on Runs { results { status creationTime startTime endTime } } } }"""

Work = Iterator[Callable[[], object]]


def _cdl(root: Path) -> Path:
    return root / f"{YEAR}_30m_cdls.tif"


def make_world(root: Path) -> None:
    """Scenes and a CDL for a chip in the middle of each tile, and a store with the labels of the year."""
    grid = read_tile_grid(official_grid_path()).set_index("tile")
    to_albers = pyproj.Transformer.from_crs(4326, 5070, always_xy=True)
    cells = {}
    for tile in TILES:
        x, y = to_albers.transform(grid["lon"][tile], grid["lat"][tile])
        cells[tile] = int((ORIGIN_Y - y) // CHIP_METRES), int((x - ORIGIN_X) // CHIP_METRES)
    rows, cols = zip(*cells.values(), strict=True)
    write_cdl(_cdl(root), range(min(rows), max(rows) + 1), range(min(cols), max(cols) + 1))
    scenes = [
        _scene(root, tile, day, grid.geometry[tile], cell) for tile, cell in cells.items() for day in _DAYS
    ]
    (root / "scenes.json").write_bytes(TypeAdapter(list[Scene]).dump_json(scenes))
    with Machine().pool() as pool:
        boxes = weighed_boxes(candidate_boxes(chip_histograms(check_cdl(_cdl(root)), pool)), 1)
    chosen = [chip_id(*cell) for cell in cells.values()]
    write_chip_geojson(boxes[boxes["chip_id"].isin(chosen)], root / "chips.geojson", "EPSG:4326")
    (root / "recipe.yaml").write_text(f"dataset: benchmark\nchip_boxes: {root / 'chips.geojson'}\n")
    (root / "home").mkdir()
    shutil.copyfile(DAGSTER_YAML, root / "home" / "dagster.yaml")
    with _served(root), dg.DagsterInstance.get() as instance:
        instance.add_dynamic_partitions(CDL_YEAR, [str(YEAR)])
        job = build_defs(environment_resources()).resolve_job_def("labels_job")
        quiet = {"loggers": {"console": {"config": {"log_level": "ERROR"}}}}
        job.execute_in_process(instance=instance, partition_key=str(YEAR), run_config=quiet)
        assert sorted(instance.get_dynamic_partitions(TILE)) == sorted(TILES)
    (root / "data").rename(root / "labelled")


def _scene(root: Path, tile: str, day: int, outline: shapely.Polygon, cell: tuple[int, int]) -> Scene:
    epsg, left, _, _, top = hls_tile_bounds(tile, outline)
    row, col = cell
    middle = ORIGIN_X + CHIP_METRES * (col + 0.5), ORIGIN_Y - CHIP_METRES * (row + 0.5)
    east, north = pyproj.Transformer.from_crs(5070, epsg, always_xy=True).transform(*middle)
    around = Window((east - left) // 30 - _SIZE // 2, (top - north) // 30 - _SIZE // 2, _SIZE, _SIZE)
    name = f"HLS.S30.T{tile}.{YEAR}{day:03d}T172020.v2.0"
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]))
    files = {}
    for band in (*REFLECTANCE_BANDS, QA_BAND):
        path = root / "scenes" / name / f"{name}.{band}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        kind: Any = ("uint8", 255) if band == QA_BAND else ("int16", -9999)
        pixels = rng.integers(64, 65 if band == QA_BAND else 3000, (_SIZE, _SIZE)).astype(kind[0])
        with rasterio.open(
            path,
            "w",
            driver="GTiff",
            dtype=kind[0],
            nodata=kind[1],
            count=1,
            width=HLS_SIZE,
            height=HLS_SIZE,
            crs=f"EPSG:{epsg}",
            transform=Affine(30, 0, left, 0, -30, top),
            tiled=True,
            compress="deflate",
            # pixels around the chips, and nothing elsewhere
            sparse_ok=True,
        ) as raster:
            raster.write(pixels, 1, window=around)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        files[band] = DemoFile(path.stat().st_size, digest, file_cid(path))
    sensed = dt.datetime(YEAR, 1, 1, 17, 20, 20, tzinfo=dt.UTC) + dt.timedelta(days=day - 1)
    ring = tuple(map(tuple, shapely.get_coordinates(outline).tolist()))
    return Scene(name, tile, epsg, left, top, sensed, 1, 100, ring, files)


@contextlib.contextmanager
def _served(root: Path) -> Iterator[None]:
    """Serve the world from a process of its own, with this one's environment pointing at it."""
    command = [sys.executable, "-m", "benchmarks.orchestration", str(root)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        server = WorldServer(process.stdout.readline().strip())
        folders = {"DAGSTER_HOME": root / "home", "CROP_ASSETS_DATA": root / "data"}
        files = {"CROP_ASSETS_RECIPE": root / "recipe.yaml", "CROP_ASSETS_CDL": _cdl(root)}
        os.environ.update(server_environment(server) | {k: str(v) for k, v in (folders | files).items()})
        yield
    finally:
        # under nohup or a batch system the signal to terminate may be ignored
        process.kill()
        process.wait()


def _fresh_store(root: Path) -> None:
    shutil.rmtree(root / "data", ignore_errors=True)
    shutil.copytree(root / "labelled", root / "data")


@contextlib.contextmanager
def bare(root: Path) -> Work:
    """The stages alone, as many tiles at once as a run has."""
    with _served(root):
        resources = environment_resources()
        names = frozenset(one.name for one in TILE_STAGES)
        services = services_of(
            SimpleNamespace(**resources), frozenset().union(*(one.services for one in TILE_STAGES))
        )
        store, of_recipe, machine = (resources[name] for name in ("store", "recipe", "machine"))
        work_of_tiles = TileWork(TILE_STAGES, names, names, store, of_recipe, machine, services)
        keys = [dg.MultiPartitionKey({CDL_YEAR: str(YEAR), TILE: tile}) for tile in TILES]

        def work() -> None:
            _fresh_store(root)
            said: queue.SimpleQueue[Any] = queue.SimpleQueue()
            of_year = Lineage(store, Layout(of_recipe.dataset, YEAR), of_recipe)
            with machine.pool() as pool, StoppablePool(machine.threads) as tiles:
                for key in keys:
                    tiles.submit(make_tile, key, work_of_tiles, of_year, said.put, pool)
            assert len(list((root / "data").rglob("chips_filtered/*_merged.tif"))) == len(TILES)

        yield work


@contextlib.contextmanager
def through_dagster(root: Path) -> Work:
    """A backfill of all tiles, launched over GraphQL as the UI does, run by the daemon."""
    with _served(root):
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "dagster", "dev", "-m", "crop_assets.definitions", "-p", str(port)]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen([*command, "-h", "127.0.0.1"], **quiet)  # type: ignore[call-overload]
        try:
            _wait(lambda: _ask(url, "{version}"), _START_SECONDS)
            yield lambda: _backfill(root, url)
        finally:
            process.terminate()
            process.wait()


def _backfill(root: Path, url: str) -> dict[str, float]:
    """Run a backfill to the end of its last run; the seconds of its parts."""
    _fresh_store(root)
    params = {
        "assetSelection": [{"path": [stage.name]} for stage in TILE_STAGES],
        "partitionNames": [f"{YEAR}|{tile}" for tile in TILES],
    }
    launched = time.time()
    backfill = _ask(url, _BACKFILL, params=params)["launchPartitionBackfill"]["backfillId"]

    def ended() -> list[dict[str, Any]]:
        runs: list[dict[str, Any]] = _ask(url, _RUNS, id=backfill)["runsOrError"]["results"]
        return runs if all(run["endTime"] for run in runs) else []

    runs = _wait(ended, _MAX_SECONDS)
    assert {run["status"] for run in runs} == {"SUCCESS"}
    assert len(list((root / "data").rglob("chips_filtered/*_merged.tif"))) == len(TILES)
    created, started = (min(run[name] for run in runs) for name in ("creationTime", "startTime"))
    return {
        "daemon_notices": created - launched,
        "runs_start": started - created,
        "runs_last": max(run["endTime"] for run in runs) - started,
    }


def _ask(url: str, query: str, **variables: Any) -> Any:
    answer = requests.post(f"{url}/graphql", json={"query": query, "variables": variables}, timeout=30)
    return answer.json()["data"]


def _wait(found: Callable[[], Any], seconds: float) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(requests.RequestException, KeyError):
            if result := found():
                return result
        time.sleep(0.2)
    raise TimeoutError(f"waited {seconds} s in vain")


def _serve(root: Path) -> None:
    scenes = TypeAdapter(tuple[Scene, ...]).validate_json((root / "scenes.json").read_bytes())
    world = World(root, YEAR, _cdl(root), tuple(TILES), scenes, "benchmark")
    with serve(world) as server:
        print(server.base_url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
