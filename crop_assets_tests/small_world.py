"""A small world of two tiles, rendered once, and the graph over it, for tests of whole runs.

Its fixtures are those of every test; the root conftest takes them in.
"""

import asyncio
import contextlib
import csv
import datetime as dt
import hashlib
import json
import multiprocessing
import shutil
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from multiprocessing import forkserver
from multiprocessing.context import BaseContext, ForkServerContext
from pathlib import Path
from typing import Any

import dagster as dg
import geopandas as gpd
import numpy as np
import pandas as pd
import pyproj
import pytest
import rasterio
import requests
import shapely
from dagster._core.execution.execute_in_process_result import ExecuteInProcessResult
from rasterio.windows import Window
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from crop_assets.chip_grid import chip_geobox
from crop_assets.definitions import build_defs
from crop_assets.demo import server as server_module
from crop_assets.demo.landscape import draw_landscape, write_landscape
from crop_assets.demo.scenes import Event, Scene, ScenePlan, TileFrame, render_scene
from crop_assets.demo.server import WorldServer, serve
from crop_assets.demo.world import World
from crop_assets.layout import Layout
from crop_assets.partitions import CDL_YEAR, TILE
from crop_assets.recipe import DatasetRecipe
from crop_assets.schemas import SCHEMAS
from crop_assets.stages import STAGES
from crop_assets.tiles.grid import hls_tile_bounds
from crop_assets_tests.once import made_once
from resources.cdl import CdlReleases
from resources.downloads import Downloads
from resources.earthdata import LpDaac
from resources.ipfs.resource import IpfsContent
from resources.machine import Machine
from resources.mirror import BandMirror
from resources.stac import IpfsStac, SceneStac
from resources.store import DatasetStore
from resources.tables import read_table
from resources.tile_grid import TileGridSource

YEAR = 2022
WEST, EAST = TILES = ("14SMG", "14SNG")
CHIPS = {
    WEST: [f"chip_{row}_{col}" for row in (232, 233, 234) for col in (310, 311)],
    EAST: [f"chip_{row}_{col}" for row in (232, 233, 234) for col in (312, 313)],
}
CLOUDY, SLIGHTLY_CLOUDY, GAPPY = CHIPS[WEST][:3]
DEAD = CHIPS[EAST][0]
REJECTED = {CLOUDY: "bad_quality", GAPPY: "na_pixels", DEAD: "na_pixels"}
KEPT = sorted({*CHIPS[WEST], *CHIPS[EAST]} - set(REJECTED))

SOUTH = "14SMF"
"""A tile below the others; nothing is published for it."""
THREE_TILES = {WEST: CHIPS[WEST][3:5], EAST: CHIPS[EAST][2:4], SOUTH: ["chip_246_310", "chip_246_311"]}

LABELS, TILE_STAGES, DATASET = (
    tuple(name for name, one in STAGES.items() if one.job == job)
    for job in ("labels_job", "tiles_job", "dataset_job")
)
DESCRIPTION = tuple(name for name, one in STAGES.items() if one.group == "description")
THROUGH_SELECTION = TILE_STAGES[: TILE_STAGES.index("selected_scenes") + 1]
THROUGH_CIDS = TILE_STAGES[: TILE_STAGES.index("band_cids") + 1]
THROUGH_DOWNLOAD = TILE_STAGES[: TILE_STAGES.index("downloaded_bands") + 1]

# Days of the year of each tile's scenes: three, and four of which the third is passed over.
FIRST, MIDDLE, LAST = ({WEST: day, EAST: other_day} for day, other_day in ((72, 77), (162, 157), (262, 267)))
SPARE_DAY = 242


RECIPE = {"dataset": "small", "min_classes": 1, "seed": 2}
"""With this seed, seven of the nine kept chips train."""


def recipe(**changes: Any) -> DatasetRecipe:
    return DatasetRecipe(**{**RECIPE, **changes})


def _write_cdl(path: Path) -> None:
    """A raster whose edges lie off the chip grid, around the 3 x 4 chips of the tests."""
    whole = path.with_name("whole.tif")
    write_landscape(whole, draw_landscape(5, 6), first_row=231, first_col=309)
    with rasterio.open(whole) as source:
        window = Window(100, 50, 124 + 4 * 224 + 60, 174 + 3 * 224 + 9)
        profile = source.profile | {
            "width": window.width,
            "height": window.height,
            "transform": source.window_transform(window),
        }
        with rasterio.open(path, "w", **profile) as target:
            target.write(source.read(1, window=window), 1)
            target.write_colormap(1, source.colormap(1))
    whole.unlink()


def _event(kind: Any, chip_id: str, frame: TileFrame, radius: float, down: int = 0, right: int = 0) -> Event:
    left, bottom, right_edge, top = chip_geobox(chip_id).boundingbox.bbox
    to_utm = pyproj.Transformer.from_crs(5070, frame.epsg, always_xy=True)
    east, north = to_utm.transform((left + right_edge) / 2, (bottom + top) / 2)
    return Event(kind, (frame.top - north) / 30 + down, (east - frame.left) / 30 + right, radius)


def _plan(frame: TileFrame, day: int, *events: Event) -> ScenePlan:
    sensed = dt.datetime(YEAR, 1, 1, 17, 20, 20, tzinfo=dt.UTC) + dt.timedelta(days=day - 1)
    return ScenePlan(
        scene_id=f"HLS.S30.T{frame.tile}.{YEAR}{day:03d}T{sensed:%H%M%S}.v2.0",
        frame=frame,
        sensed=sensed,
        events=events,
    )


def _plans(grid: gpd.GeoDataFrame) -> list[ScenePlan]:
    frames = {}
    for tile in TILES:
        epsg, left, _, _, top = hls_tile_bounds(tile, grid.set_index("tile").geometry[tile])
        frames[tile] = TileFrame(tile, epsg, left, top)
    west, east = frames[WEST], frames[EAST]
    # clouds lie down and right of a chip's middle, so that their shadow is on the chip too
    return [
        _plan(west, FIRST[WEST], _event("cloud", CLOUDY, west, 42, 20, 27)),
        _plan(west, MIDDLE[WEST], _event("gap", GAPPY, west, 6)),
        _plan(west, LAST[WEST], _event("cloud", SLIGHTLY_CLOUDY, west, 26, 20, 27)),
        _plan(east, FIRST[EAST]),
        _plan(east, MIDDLE[EAST]),
        _plan(east, SPARE_DAY),
        _plan(east, LAST[EAST], _event("dead", DEAD, east, 3)),
    ]


@dataclass(frozen=True)
class Setting:
    """The made-up world of the tests, and the tiles around it cut from the official grid."""

    world: World
    grid: Path

    def scene(self, tile: str, day: int) -> Scene:
        (scene,) = (s for s in self.world.scenes if s.tile == tile and s.sensed.timetuple().tm_yday == day)
        return scene


def build_setting(root: Path, grid: gpd.GeoDataFrame, context: BaseContext) -> Setting:
    near = grid[grid["lon"].between(-101.5, -97) & grid["lat"].between(36, 39)]
    near[["tile", "geometry"]].to_parquet(root / "grid.parquet")
    cdl = root / f"{YEAR}_30m_cdls.tif"
    _write_cdl(cdl)
    plans = _plans(grid)
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        folders = [root / "scenes" / plan.scene_id for plan in plans]
        scenes = tuple(pool.map(render_scene, plans, [cdl] * len(plans), folders))
    return Setting(World(root, YEAR, cdl, TILES, scenes, "graph tests"), root / "grid.parquet")


@pytest.fixture(scope="session")
def processes() -> ForkServerContext:
    """Starts processes that have all imported already, from one that has no threads."""
    context = multiprocessing.get_context("forkserver")
    storages = ("runs.sqlite", "event_log.sqlite", "schedules.sqlite", "local_compute_log_manager")
    preloaded = [__name__, *(f"dagster._core.storage.{name}" for name in storages), "alembic.autogenerate"]
    context.set_forkserver_preload(preloaded)
    forkserver.ensure_running()
    return context


@pytest.fixture(scope="session")
def setting(
    processes: ForkServerContext, official_grid: gpd.GeoDataFrame, tmp_path_factory: pytest.TempPathFactory
) -> Setting:
    return made_once(
        tmp_path_factory, "graph_world", lambda root: build_setting(root, official_grid, processes)
    )


@dataclass(frozen=True)
class Asked:
    """A request that reached the world."""

    path: str
    body: bytes
    authorization: str


@dataclass
class Traffic:
    """What was asked of the world, and which answers are spoilt: `broken` maps a piece of the path to a
    status, `corrupt` holds pieces of the path whose answers have a bit flipped at the end. `only` narrows
    both to requests whose body holds these bytes. `silent` holds pieces of the path that are not answered, and
    `dripping` those that are answered a byte at a time, for as long as they are in there; `busy` those that are
    answered with 503 and a Retry-After of ten minutes.
    """

    asked: list[Asked] = field(default_factory=list)
    broken: dict[str, int] = field(default_factory=dict)
    times: dict[str, int] = field(default_factory=dict)
    corrupt: set[str] = field(default_factory=set)
    only: bytes = b""
    silent: set[str] = field(default_factory=set)
    dripping: set[str] = field(default_factory=set)
    busy: set[str] = field(default_factory=set)

    def clear(self) -> None:
        self.asked.clear()
        self.broken.clear()
        self.times.clear()
        self.corrupt.clear()
        self.silent.clear()
        self.dripping.clear()
        self.busy.clear()
        self.only = b""

    async def answer(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        path, body = request.url.path, await request.body()
        self.asked.append(Asked(path, body, request.headers.get("authorization", "")))
        while any(piece in path for piece in self.silent):
            await asyncio.sleep(0.05)
        if any(piece in path for piece in self.dripping):
            return StreamingResponse(self._drops(path), media_type="application/vnd.ipld.car")
        if any(piece in path for piece in self.busy):
            return Response("come back later", 503, {"Retry-After": "600"})
        if self.only in body:
            for piece, status in self.broken.items():
                if piece in path and self.times.get(piece, 1) > 0:
                    if piece in self.times:
                        self.times[piece] -= 1
                    return Response("out of order", status)
        answer = await call_next(request)
        if self.only not in body or not any(piece in path for piece in self.corrupt):
            return answer
        data = bytearray(b"".join([piece async for piece in answer.body_iterator]))  # type: ignore[attr-defined]
        data[-1] ^= 1
        return Response(bytes(data), answer.status_code, dict(answer.headers))

    async def _drops(self, path: str) -> AsyncIterator[bytes]:
        while any(piece in path for piece in self.dripping):
            yield b" "
            await asyncio.sleep(0.05)


@dataclass(frozen=True)
class Served:
    server: WorldServer
    traffic: Traffic


@pytest.fixture(scope="session")
def served(setting: Setting) -> Iterator[Served]:
    traffic = Traffic()
    create_app = server_module.create_app

    def create_watched_app(world: World) -> Any:
        return BaseHTTPMiddleware(create_app(world), traffic.answer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server_module, "create_app", create_watched_app)
        with serve(setting.world, 0) as server:
            yield Served(server, traffic)


@pytest.fixture
def traffic(served: Served) -> Iterator[Traffic]:
    served.traffic.clear()
    yield served.traffic
    served.traffic.clear()


def resources(root: Path, setting: Setting, server: WorldServer) -> dict[str, Any]:
    return {
        "recipe": recipe(),
        "store": DatasetStore(root=str(root)),
        "cdl_releases": CdlReleases(source=str(setting.world.cdl), index=""),
        "tile_grid_source": TileGridSource(path=str(setting.grid)),
        "stac": SceneStac(
            url=server.stac_url,
            granule_search=server.granule_search_url,
            attempts=2,
            requests_per_second=1000,
        ),
        "ipfs_stac": IpfsStac(url=server.ipfs_stac_url, attempts=2, requests_per_second=1000),
        "ipfs": IpfsContent(kubo_api="", gateways=[server.gateway_url]),
        "lp_daac": LpDaac(hosts=["127.0.0.1"]),
        "mirror": BandMirror(),
        "downloads": Downloads(attempts=2, tile_retries=0),
        "machine": Machine(),
    }


@dataclass(frozen=True)
class Graph:
    """The production graph over one store, with a Dagster instance of its own."""

    root: Path
    instance: dg.DagsterInstance
    resources: dict[str, Any]

    @property
    def layout(self) -> Layout:
        return Layout("small", YEAR)

    @property
    def dataset(self) -> Path:
        return self.root / self.layout.root

    def table(self, asset: str, tile: str | None = None) -> pd.DataFrame:
        return read_table(DatasetStore(root=str(self.root)), self.layout.table(asset, tile), SCHEMAS[asset])

    def run(
        self,
        job: str,
        tiles: Sequence[str] = TILES,
        stages: Sequence[str] = (),
        year: int = YEAR,
        run_config: dict[str, Any] | None = None,
        **changes: Any,
    ) -> "Run":
        """Run a job of the code location, or only `stages` of it.

        `changes` are resources in place of the usual ones.
        """
        where: dict[str, Any] = {"partition_key": str(year)}
        if job in ("tiles_job", "plan_job", "retrievability_job"):
            self.instance.add_dynamic_partitions(TILE, list(tiles))
            keys = self.instance.get_dynamic_partitions(TILE)
            assert [key for key in keys if key in tiles] == list(tiles), "a range runs in the order of keys"
            where = {
                "tags": {
                    "dagster/asset_partition_range_start": f"{year}|{tiles[0]}",
                    "dagster/asset_partition_range_end": f"{year}|{tiles[-1]}",
                }
            }
        defs = build_defs(self.resources | changes)
        config = {"loggers": {"console": {"config": {"log_level": "INFO"}}}, **(run_config or {})}
        result = defs.resolve_job_def(job).execute_in_process(
            instance=self.instance,
            raise_on_error=False,
            run_config=config,
            asset_selection=[dg.AssetKey(stage) for stage in stages] or None,
            **where,
        )
        return Run(result, self.instance)

    def run_all(self, **changes: Any) -> "list[Run]":
        return [self.run(job, **changes) for job in ("labels_job", "tiles_job", "dataset_job")]


@dataclass(frozen=True)
class Run:
    """How a run went."""

    result: ExecuteInProcessResult
    instance: dg.DagsterInstance

    @property
    def success(self) -> bool:
        return self.result.success

    @cached_property
    def made(self) -> dict[tuple[str, str | None], dg.AssetMaterialization]:
        """The materialization of each asset and partition."""
        # the result of a failed step lacks the events that it logged
        logs = self.instance.all_logs(self.result.run_id, dg.DagsterEventType.ASSET_MATERIALIZATION)
        found = [entry.asset_materialization for entry in logs]
        return {(m.asset_key.to_user_string(), m.partition): m for m in found if m}

    @cached_property
    def checks(self) -> dict[tuple[str, str], dg.AssetCheckEvaluation]:
        """The evaluation of each asset check, by asset and name."""
        logs = self.instance.all_logs(self.result.run_id, dg.DagsterEventType.ASSET_CHECK_EVALUATION)
        found = [entry.dagster_event.asset_check_evaluation_data for entry in logs if entry.dagster_event]
        return {(check.asset_key.to_user_string(), check.check_name): check for check in found}

    @property
    def redone(self) -> set[tuple[str, str | None]]:
        """The assets and partitions that were not simply found unchanged."""
        return {key for key, made in self.made.items() if not made.metadata["reused"].value}

    @property
    def failure(self) -> str:
        """All that the run's errors tell the user."""
        told = []
        for event in self.result.all_events:
            data: Any = event.event_specific_data
            if event.is_failure:
                error = data.error
                while error is not None:
                    told.append(error.message)
                    error = error.cause
                if event.is_step_failure and data.user_failure_data:
                    told.append(str(data.user_failure_data.description))
        return "\n".join(told)


@contextlib.contextmanager
def new_graph(
    root: Path, setting: Setting, server: WorldServer, instance: dg.DagsterInstance | None = None
) -> Iterator[Graph]:
    with instance or dg.DagsterInstance.ephemeral() as opened:
        opened.add_dynamic_partitions(CDL_YEAR, [str(YEAR)])
        yield Graph(root, opened, resources(root, setting, server))


@dataclass(frozen=True)
class Finished:
    """An undisturbed run of the whole graph; nobody changes its store."""

    graph: Graph
    runs: dict[str, Run]


@dataclass(frozen=True)
class Begun:
    """A graph that has run for its labels alone, and a copy of its store as it was then; nobody changes the copy."""

    graph: Graph
    run: Run
    copy: Path


@pytest.fixture(scope="session")
def begun(setting: Setting, served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Begun]:
    with new_graph(tmp_path_factory.mktemp("finished"), setting, served.server) as graph:
        run = graph.run("labels_job")
        assert run.success, run.failure
        copy = tmp_path_factory.mktemp("labelled") / "store"
        shutil.copytree(graph.root, copy)
        yield Begun(graph, run, copy)


@pytest.fixture(scope="session")
def labelled(begun: Begun) -> Path:
    """A store with the labels alone; nobody changes it."""
    return begun.copy


@pytest.fixture(scope="session")
def finished(begun: Begun) -> Finished:
    runs = {"labels_job": begun.run, **{job: begun.graph.run(job) for job in ("tiles_job", "dataset_job")}}
    for run in runs.values():
        assert run.success, run.failure
    return Finished(begun.graph, runs)


@pytest.fixture(scope="session")
def three_tiles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Resources for two chips in each of three tiles."""
    cdl, boxes = write_three_tiles(tmp_path_factory.mktemp("three_tiles"))
    return {"cdl_releases": CdlReleases(source=str(cdl), index=""), "recipe": recipe(chip_boxes=str(boxes))}


def write_three_tiles(folder: Path, chips_of: dict[str, list[str]] = THREE_TILES) -> tuple[Path, Path]:
    """A CDL raster and chip boxes for the chips of each of three tiles, by default two."""
    cdl, boxes = folder / f"{YEAR}_30m_cdls.tif", folder / "boxes.geojson"
    corn_and_soybeans = np.tile(np.array([1, 5], np.uint8), (16 * 224, 6 * 112))
    write_landscape(cdl, corn_and_soybeans, first_row=231, first_col=309)
    features = [
        {
            "properties": {"id": chip_id},
            "geometry": shapely.geometry.mapping(chip_geobox(chip_id).extent.geom),
        }
        for chips in chips_of.values()
        for chip_id in chips
    ]
    crs = {"properties": {"name": "EPSG:5070"}}
    boxes.write_text(json.dumps({"type": "FeatureCollection", "crs": crs, "features": features}))
    return cdl, boxes


@pytest.fixture
def graph(setting: Setting, served: Served, tmp_path: Path) -> Iterator[Graph]:
    """The graph over an empty store."""
    with new_graph(tmp_path / "store", setting, served.server) as graph:
        yield graph


@pytest.fixture
def labelled_graph(graph: Graph, labelled: Path) -> Graph:
    """The graph over a store with labels."""
    shutil.copytree(labelled, graph.root)
    return graph


@pytest.fixture
def finished_graph(graph: Graph, finished: Finished) -> Graph:
    """The graph over a copy of the finished store."""
    shutil.copytree(finished.graph.root, graph.root)
    return graph


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by its path there."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def times(folder: Path) -> dict[str, int]:
    return {
        path.relative_to(folder).as_posix(): path.stat().st_mtime_ns
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def lines(graph: Graph, name: str) -> list[str]:
    return (graph.dataset / name).read_text().splitlines()


def ledger(graph: Graph) -> list[dict[str, str]]:
    return list(csv.DictReader(lines(graph, "rejected_chips.csv")))


def items_of(url: str) -> list[dict[str, Any]]:
    """All items of the served catalogue, page by page."""
    items: list[dict[str, Any]] = []
    page: str | None = f"{url}/collections/HLSS30_2.0/items"
    while page:
        answer = requests.get(page, timeout=10).json()
        items += answer["features"]
        page = next((link["href"] for link in answer["links"] if link["rel"] == "next"), None)
    return items


def collection(path: Path, items: list[dict[str, Any]]) -> str:
    path.write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    return str(path)
