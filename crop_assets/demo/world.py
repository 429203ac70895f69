"""The demo's world: a CDL release, and every scene that a dataset of it needs, with trouble over some chips."""

import contextlib
import datetime as dt
import hashlib
import json
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import geopandas as gpd
import numpy as np
import pyproj
from pydantic import TypeAdapter, ValidationError

from crop_assets.demo.landscape import draw_landscape, write_landscape
from crop_assets.demo.scenes import Event, Scene, ScenePlan, TileFrame, render_scene
from crop_assets.errors import InputError
from crop_assets.labels.cdl import check_cdl, chip_histograms
from crop_assets.labels.sampling import candidate_boxes, choose_boxes, weighed_boxes
from crop_assets.tiles.grid import hls_tile_bounds, official_grid_path, read_tile_grid
from crop_assets.tiles.mapping import map_chips
from resources.cdl import raster_sha256
from resources.file_system import lock, no_follow
from resources.machine import Machine

VERSION = 2
"""Part of the fingerprint: raise it with any change that changes the bytes of a file."""

MAX_TILES = 6
_MAX_CHIPS = 300 * MAX_TILES
"""Six tiles cannot have more chips than this: neighbouring tiles are 100 km, or 15 chips, apart."""

_WORKERS = 2

Role = Literal["first", "middle", "last"]


@dataclass(frozen=True)
class World:
    """A finished world below `root`. `tiles` and `scenes` are sorted by name."""

    root: Path
    year: int
    cdl: Path
    tiles: tuple[str, ...]
    scenes: tuple[Scene, ...]
    fingerprint: str

    @property
    def scene_folder(self) -> Path:
        """The folder of the band files, <scene id>/<scene id>.<band>.tif."""
        return self.root / "scenes"

    def band_path(self, scene: Scene, band: str) -> Path:
        return self.scene_folder / scene.scene_id / scene.file_name(band)

    @property
    def files(self) -> dict[str, Path]:
        """The path of every band file by its CID."""
        return {
            file.cid: self.band_path(scene, band)
            for scene in self.scenes
            for band, file in scene.files.items()
        }


@dataclass(frozen=True)
class _Manifest:
    """The content of `world.json`, which is written last: if it exists, the world is finished."""

    fingerprint: str
    year: int
    tiles: tuple[str, ...]
    scenes: tuple[Scene, ...]


@dataclass(frozen=True)
class _Record:
    """The content of the file that is written when all files of a scene are there."""

    fingerprint: str
    scene: Scene


def build_world(
    root: Path, cdl: Path | None = None, year: int = 2022, progress: Callable[[str], None] = print
) -> World:
    """Build the world of `cdl`, or of a synthetic landscape in Kansas, below `root`, unless it is already there.

    Resumes an interrupted build; the same inputs give the same bytes in any order. Raises InputError if `cdl` is not a
    CDL raster, contains no complete chip, or needs more than six tiles.
    """
    root = root.absolute()
    source = hashlib.sha256(b"landscape").hexdigest()
    if cdl is not None:
        cdl = cdl.absolute()
        check_cdl(cdl, "other")
        source = raster_sha256(cdl)
    fingerprint = hashlib.sha256(json.dumps([VERSION, year, source]).encode()).hexdigest()[:16]
    raster = cdl or root / "cdl" / f"{year}_30m_cdls.tif"

    root.mkdir(parents=True, exist_ok=True)
    with _only_one_build(root):
        manifest = _read_manifest(root, fingerprint)
        if manifest and raster.is_file():
            world = World(root, year, raster, manifest.tiles, manifest.scenes, fingerprint)
            if all(_is_complete(world.scene_folder, scene) for scene in world.scenes):
                progress(f"{root}: nothing to do, all {len(world.scenes)} scenes exist")
                return world
        if cdl is None:
            progress("drawing the landscape")
            raster.parent.mkdir(exist_ok=True)
            writing = raster.with_name(".writing.tif")
            write_landscape(writing, draw_landscape())
            writing.replace(raster)
        plans = plan_scenes(raster, year)
        scenes = _make_scenes(root, raster, plans, fingerprint, progress)
        tiles = tuple(sorted({plan.frame.tile for plan in plans}))
        done = _Manifest(fingerprint, year, tiles, tuple(scenes))
        _write(root / "world.json", TypeAdapter(_Manifest).dump_json(done, indent=1))
        return World(root, year, raster, tiles, tuple(scenes), fingerprint)


@contextlib.contextmanager
def _only_one_build(root: Path) -> Iterator[None]:
    """Wait for another process that builds below `root`."""
    with open(root / ".lock", "w", opener=no_follow) as file:
        lock(file)
        yield


def _read_manifest(root: Path, fingerprint: str) -> _Manifest | None:
    try:
        manifest = TypeAdapter(_Manifest).validate_json((root / "world.json").read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    return manifest if manifest.fingerprint == fingerprint else None


def _write(path: Path, data: bytes) -> None:
    writing = path.with_name(f".writing-{path.name}")
    writing.unlink(missing_ok=True)
    # exclusive creation does not follow links
    with writing.open("xb") as file:
        file.write(data)
    writing.replace(path)


def _is_complete(folder: Path, scene: Scene) -> bool:
    paths = {folder / scene.scene_id / scene.file_name(band): file.size for band, file in scene.files.items()}
    return all(path.is_file() and path.stat().st_size == size for path, size in paths.items())


def _make_scenes(
    root: Path, cdl: Path, plans: list[ScenePlan], fingerprint: str, progress: Callable[[str], None]
) -> list[Scene]:
    """Render the missing scenes, two at a time; returns all scenes, sorted by id."""
    folder, records = root / "scenes", root / "records"
    folder.mkdir(exist_ok=True)
    records.mkdir(exist_ok=True)
    scenes: dict[str, Scene] = {}
    for plan in plans:
        with contextlib.suppress(FileNotFoundError, ValidationError):
            record = TypeAdapter(_Record).validate_json((records / f"{plan.scene_id}.json").read_bytes())
            if record.fingerprint == fingerprint and _is_complete(folder, record.scene):
                scenes[plan.scene_id] = record.scene
    if scenes:
        progress(f"{len(scenes)} of {len(plans)} scenes already exist")
    missing = [plan for plan in plans if plan.scene_id not in scenes]
    # not fork: the child of a process with threads may hang on a lock that a thread held
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(_WORKERS, len(missing) or 1), mp_context=context) as pool:
        made = [pool.submit(render_scene, plan, cdl, folder / plan.scene_id) for plan in missing]
        try:
            for future in made:
                scene = future.result()
                scenes[scene.scene_id] = scene
                done = TypeAdapter(_Record).dump_json(_Record(fingerprint, scene), indent=1)
                _write(records / f"{scene.scene_id}.json", done)
                progress(
                    f"scene {len(scenes)} of {len(plans)}: {scene.scene_id}, "
                    f"{scene.cloud_coverage} % cloud, {scene.spatial_coverage} % seen"
                )
        except BaseException:
            # otherwise the pool would finish all scenes after Ctrl-C or an error
            for child in multiprocessing.active_children():
                child.kill()
            raise
    return [scenes[name] for name in sorted(scenes)]


@dataclass(frozen=True)
class _Pass:
    """An overpass on a day of the year; a second granule of that day is `later` seconds later.

    `role` is the position that the default recipe selects the scene for. Landsat scenes are `L30`.
    """

    day: int
    clouds: float = 0.0
    overcast: bool = False
    seen: float = 1.0
    later: int = 0
    role: Role | None = None
    sensor: Literal["S30", "L30"] = "S30"


# Every fifth day from day 2: HLS.S30.T14SMF.2021062T172221 is on one of these days, and 365 is a multiple of 5.
# A share of clouds c gives a cloud_coverage of about 1.6 c, because shadows count too.
_ODD_PASSES = (
    _Pass(72, clouds=0.012, role="first"),
    _Pass(112),
    _Pass(137, clouds=0.004, seen=0.6),
    _Pass(162, clouds=0.021, role="middle"),
    _Pass(187, clouds=0.45, overcast=True),
    _Pass(212, clouds=0.006),
    _Pass(212, clouds=0.006, seen=0.95, later=10),
    _Pass(262, clouds=0.002, role="last"),
    # Landsat 8 and 9 pass every eighth day; on day 112, the S30 scene is the clearer one
    _Pass(64, sensor="L30"),
    _Pass(112, clouds=0.012, sensor="L30"),
    _Pass(232, clouds=0.004, sensor="L30"),
)
_EVEN_PASSES = (
    _Pass(77, clouds=0.004, role="first"),
    _Pass(117, clouds=0.018),
    _Pass(137, clouds=0.05),
    _Pass(157, role="middle"),
    _Pass(182, clouds=0.01, seen=0.6),
    _Pass(207, clouds=0.008),
    _Pass(242, clouds=0.025),
    _Pass(267, clouds=0.002, role="last"),
    _Pass(65, clouds=0.004, sensor="L30"),
    # on the day of a cloudy S30 scene
    _Pass(137, sensor="L30"),
    _Pass(233, clouds=0.008, sensor="L30"),
)

# In the order in which they are applied to a tile's chips; a tile with few chips gets only the first ones.
_TROUBLES: tuple[tuple[Role, Literal["cloud", "snow", "gap", "dead"]], ...] = (
    ("first", "cloud"),
    ("middle", "gap"),
    ("last", "cloud"),
    ("last", "dead"),
    ("middle", "cloud"),
    ("first", "snow"),
)
_CLOUD_OFFSET = (20, 27)
"""Offset in pixels from a chip's centre to its cloud, so that the shadow is also inside the chip."""
_RADIUS = {"cloud": 42, "snow": 40, "gap": 6, "dead": 3}
_SLIGHT_CLOUD = 26
"""A cloud of this radius covers about 4.3 % of a chip, and so does its shadow: together too much, but neither alone."""


def plan_scenes(cdl: Path, year: int) -> list[ScenePlan]:
    """Plan the scenes of all tiles that a dataset of `cdl` may need, sorted by id: eight S30 and three L30 per tile.

    Tiles alternate between an odd and an even number of scenes that qualify. At most a quarter of a tile's chips have
    trouble on a selected date. Raises the same InputErrors as `build_world`.
    """
    raster = check_cdl(cdl, "other")
    count = len(raster.chip_rows) * len(raster.chip_cols)
    if count == 0:
        raise InputError(
            f"{cdl} contains no complete chip of the national 224-pixel grid; use a clip of at least 448 x 448 pixels"
        )
    if count > _MAX_CHIPS:
        raise InputError(f"{cdl} has {count} chips, more than {MAX_TILES} tiles can have; use a smaller clip")
    with Machine().pool() as pool:
        boxes = weighed_boxes(candidate_boxes(chip_histograms(raster, pool)), 1)
    grid = read_tile_grid(official_grid_path())
    nearest = map_chips(boxes, grid, "projected")["tile"]
    by_degrees = map_chips(boxes, grid, "degrees")["tile"]
    tiles = sorted({*nearest.dropna(), *by_degrees.dropna()})
    if len(tiles) > MAX_TILES:
        raise InputError(
            f"{cdl} needs {len(tiles)} tiles ({', '.join(tiles[:8])} ...), but the demo supports at most "
            f"{MAX_TILES}; use a smaller clip"
        )
    chosen = choose_boxes(boxes.assign(tile=nearest), "all", len(boxes))
    plans: list[ScenePlan] = []
    for number, tile in enumerate(tiles):
        epsg, left, _, _, top = hls_tile_bounds(tile, grid.geometry[grid["tile"] == tile].iloc[0])
        frame = TileFrame(tile, epsg, left, top)
        troubles = _troubles(frame, chosen[chosen["tile"] == tile])
        passes = _EVEN_PASSES if number % 2 else _ODD_PASSES
        plans += [_scene_plan(frame, year, overpass, troubles) for overpass in passes]
    return sorted(plans, key=lambda plan: plan.scene_id)


def _scene_plan(frame: TileFrame, year: int, overpass: _Pass, troubles: dict[Role, list[Event]]) -> ScenePlan:
    # 10:44 local solar time at the zone's meridian, as for HLS.S30.T14SMF.2021062T172221
    meridian = frame.epsg % 100 * 6 - 183
    hour = dt.timedelta(hours=10.739 - meridian / 15)
    midnight = dt.datetime(year, 1, 1, tzinfo=dt.UTC) + dt.timedelta(days=overpass.day - 1)
    named = midnight + hour + dt.timedelta(seconds=overpass.later)
    sensed = named.replace(microsecond=493000)
    if overpass.sensor == "L30":
        named, sensed = (moment - dt.timedelta(minutes=6) for moment in (named, sensed))
    else:
        # the name has the time of a datatake's first line, some minutes before the tile is reached
        sensed += dt.timedelta(minutes=11, seconds=24)
    return ScenePlan(
        scene_id=f"HLS.{overpass.sensor}.T{frame.tile}.{year}{overpass.day:03d}T{named:%H%M%S}.v2.0",
        frame=frame,
        sensed=sensed,
        clouds=overpass.clouds,
        overcast=overpass.overcast,
        seen=overpass.seen,
        events=tuple(troubles[overpass.role]) if overpass.role else (),
    )


def _troubles(frame: TileFrame, chips: gpd.GeoDataFrame) -> dict[Role, list[Event]]:
    """The events over the chips of a tile in the selected scenes."""
    events: dict[Role, list[Event]] = {"first": [], "middle": [], "last": []}
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(frame.tile.encode()).digest()[:8]))
    x, y = rng.permutation(chips.sort_values("chip_id")[["x", "y"]].to_numpy()).T
    east, north = pyproj.Transformer.from_crs(5070, frame.epsg, always_xy=True).transform(x, y)
    centres = list(zip((frame.top - north) / 30, (east - frame.left) / 30, strict=True))
    struck = _TROUBLES[: len(centres) // 4]
    for (role, kind), (row, col) in zip(struck, centres, strict=False):
        down, right = _CLOUD_OFFSET if kind == "cloud" else (0, 0)
        events[role].append(Event(kind, row + down, col + right, _RADIUS[kind]))
    if len(centres) > 2 * len(_TROUBLES):
        row, col = centres[len(struck)]
        events["last"].append(Event("cloud", row + _CLOUD_OFFSET[0], col + _CLOUD_OFFSET[1], _SLIGHT_CLOUD))
    return events
