"""Thirty tiles of two chips each, with three scenes a tile whose files hold no more than what the chips need."""

import datetime as dt
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import rasterio
import requests
import shapely
import yaml
from rasterio.windows import Window, from_bounds

from crop_assets.chip_grid import CHIP_METRES, CHIP_SIZE, CRS, ORIGIN_X, ORIGIN_Y, chip_geobox, chip_id
from crop_assets.demo.scenes import DemoFile, Scene, TileFrame
from crop_assets.demo.server import serve
from crop_assets.demo.world import World
from crop_assets.hls import HLS_SIZE, NODATA, QA_BAND, QA_NODATA, REFLECTANCE_BANDS, file_band
from crop_assets.tiles.grid import hls_tile_bounds, official_grid_path, read_tile_grid
from crop_assets.tiles.mapping import map_chips
from resources.ipfs.unixfs import file_cid

YEAR = 2022
DATASET = "distributed"
DAYS = (72, 162, 262)
_CENTRE = (-98.5, 38.0)
_CLEAR = 64
"""Fmask: no cloud, low aerosol."""
_CORN, _SOYBEANS, _WHEAT = 1, 5, 24
_NOWHERE = "http://127.0.0.1:9"
_BLOCK = 256


@dataclass(frozen=True)
class Site:
    """What each machine has of its own: settings, and the files of scenes and labels, in `folder`."""

    folder: Path
    tiles: tuple[str, ...]

    @property
    def keys(self) -> list[str]:
        return [f"{YEAR}|{tile}" for tile in self.tiles]


def environment(folder: Path) -> dict[str, str]:
    """The variables of a machine that has a copy of the site in `folder`."""
    return {
        "CROP_ASSETS_RECIPE": str(folder / "recipe.yaml"),
        "CROP_ASSETS_CDL": str(folder / f"{YEAR}_30m_cdls.tif"),
        "CROP_ASSETS_CDL_INDEX": "",
        "CROP_ASSETS_TILE_GRID": str(folder / "grid.parquet"),
        "CROP_ASSETS_STAC_URL": str(folder / "scenes.json"),
        "CROP_ASSETS_IPFS_STAC_URL": str(folder / "cids.json"),
        "CROP_ASSETS_KUBO_API": "",
        "CROP_ASSETS_IPFS_GATEWAYS": "",
        "CROP_ASSETS_BANDS": str(folder / "scenes"),
    }


def build(folder: Path, count: int) -> Site:
    """Make the site in a folder, if it is not there; the same count gives the same bytes."""
    finished = folder / "tiles.json"
    if finished.exists():
        return Site(folder, tuple(json.loads(finished.read_text())))
    grid = read_tile_grid(official_grid_path())
    near = grid[grid["lon"].between(-106, -91) & grid["lat"].between(32, 44)].reset_index(drop=True)
    near[["tile", "geometry"]].to_parquet(folder / "grid.parquet")
    chips = _chips(near, count)
    _write_cdl(folder / f"{YEAR}_30m_cdls.tif", [chip for pair in chips.values() for chip in pair])
    features = [
        {"properties": {"id": chip}, "geometry": shapely.geometry.mapping(chip_geobox(chip).extent.geom)}
        for pair in chips.values()
        for chip in pair
    ]
    crs = {"properties": {"name": "EPSG:5070"}}
    (folder / "boxes.geojson").write_text(
        json.dumps({"type": "FeatureCollection", "crs": crs, "features": features})
    )
    # the path of the boxes is relative to the recipe
    recipe = {"dataset": DATASET, "min_classes": 1, "seed": 2, "chip_boxes": "boxes.geojson"}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    outlines = near.set_index("tile").geometry
    with ThreadPoolExecutor(2) as threads:
        scenes = tuple(
            threads.map(
                lambda pair: _scene(folder / "scenes", *pair, outlines[pair[0]], chips[pair[0]]),
                [(tile, day) for tile in sorted(chips) for day in DAYS],
            )
        )
    world = World(folder, YEAR, folder / f"{YEAR}_30m_cdls.tif", tuple(sorted(chips)), scenes, "distributed")
    with serve(world, 0) as server:
        for name, url in (("scenes", server.stac_url), ("cids", server.ipfs_stac_url)):
            items = _items(url)
            for item in items:
                item["properties"]["spatial_coverage"] = 100
            text = json.dumps({"type": "FeatureCollection", "features": items})
            (folder / f"{name}.json").write_text(text.replace(server.base_url, _NOWHERE))
    finished.write_text(json.dumps(world.tiles))
    return Site(folder, world.tiles)


def _chips(grid: gpd.GeoDataFrame, count: int) -> dict[str, list[str]]:
    """Two neighbouring chips near the centre of each of the tiles that are nearest to the world's."""
    away = np.hypot(grid["lon"] - _CENTRE[0], grid["lat"] - _CENTRE[1])
    chosen: dict[str, list[str]] = {}
    for _, tile in grid.iloc[np.argsort(away)].iterrows():
        row, col = int((ORIGIN_Y - tile["y"]) // CHIP_METRES), int((tile["x"] - ORIGIN_X) // CHIP_METRES)
        boxes = gpd.GeoDataFrame(
            {
                "chip_id": [chip_id(row, col), chip_id(row, col + 1)],
                "row": row,
                "col": [col, col + 1],
                "x": [ORIGIN_X + (c + 0.5) * CHIP_METRES for c in (col, col + 1)],
                "y": ORIGIN_Y - (row + 0.5) * CHIP_METRES,
                # no box is near the antimeridian, and its place in degrees is not compared
                "lon": tile["lon"],
                "lat": tile["lat"],
                "geometry": [chip_geobox(chip_id(row, c)).extent.geom for c in (col, col + 1)],
            },
            crs=CRS,
        )
        found = map_chips(boxes, grid, "projected")
        if (found["tile"] == tile["tile"]).all() and found["contained"].all():
            chosen[tile["tile"]] = list(boxes["chip_id"])
        if len(chosen) == count:
            return chosen
    raise ValueError(f"the grid has {len(chosen)} tiles that can be used")


def _write_cdl(path: Path, chips: list[str]) -> None:
    """Fields around the chips, and nothing elsewhere."""
    cells = [tuple(map(int, chip.split("_")[1:])) for chip in chips]
    rows, cols = ([cell[axis] for cell in cells] for axis in (0, 1))
    top, left = min(rows) - 1, min(cols) - 1
    profile: dict[str, Any] = {
        "driver": "GTiff",
        "dtype": "uint8",
        "count": 1,
        "height": (max(rows) + 2 - top) * CHIP_SIZE,
        "width": (max(cols) + 2 - left) * CHIP_SIZE,
        "crs": CRS,
        "transform": chip_geobox(chip_id(top, left)).transform,
        "tiled": True,
        "compress": "deflate",
        "photometric": "palette",
        "sparse_ok": True,
    }
    with rasterio.open(path, "w", **profile) as raster:
        for row, col in cells:
            field = (np.add.outer(np.arange(CHIP_SIZE), np.arange(CHIP_SIZE) * (row % 5 + 1)) // 56) % 3
            codes = np.array([_CORN, _SOYBEANS, _WHEAT], np.uint8)[field]
            raster.write(codes, 1, window=Window((col - left) * 224, (row - top) * 224, 224, 224))
        raster.write_colormap(1, {code: (code, code, code, 255) for code in range(256)})


def _scene(folder: Path, tile: str, day: int, outline: shapely.Polygon, chips: list[str]) -> Scene:
    epsg, left, _, _, top = hls_tile_bounds(tile, outline)
    frame = TileFrame(tile, epsg, left, top)
    sensed = dt.datetime(YEAR, 1, 1, 17, 20, 20, tzinfo=dt.UTC) + dt.timedelta(days=day - 1)
    scene_id = f"HLS.S30.T{tile}.{YEAR}{day:03d}T{sensed:%H%M%S}.v2.0"
    window = _around(frame, chips)
    rng = np.random.default_rng(day + sum(map(ord, tile)))
    files = {}
    (folder / scene_id).mkdir(parents=True)
    for number, band in enumerate((*REFLECTANCE_BANDS, QA_BAND)):
        name = band if band == QA_BAND else file_band(scene_id, band)
        path = folder / scene_id / f"{scene_id}.{name}.tif"
        shape = (int(window.height), int(window.width))
        if band == QA_BAND:
            pixels = np.full(shape, _CLEAR, np.uint8)
        else:
            pixels = (300 * (number + 1) + rng.integers(0, 600, shape)).astype(np.int16)
        _write(path, pixels, window, frame, QA_NODATA if band == QA_BAND else NODATA)
        data = path.read_bytes()
        files[name] = DemoFile(len(data), "", file_cid(path))
    ring = [(x, y) for x, y, *_ in outline.exterior.coords]
    return Scene(scene_id, tile, epsg, left, top, sensed, 0, 100, tuple(ring), files)


def _around(frame: TileFrame, chips: list[str]) -> Window:
    """The blocks of the tile's raster that hold the chips."""
    places = gpd.GeoSeries([chip_geobox(chip).extent.geom for chip in chips], crs=CRS).to_crs(frame.epsg)
    near = from_bounds(*places.total_bounds, transform=frame.transform)
    row, col = (int(at // _BLOCK) * _BLOCK for at in (near.row_off, near.col_off))
    down = int(-(-(near.row_off + near.height - row) // _BLOCK)) * _BLOCK
    right = int(-(-(near.col_off + near.width - col) // _BLOCK)) * _BLOCK
    return Window(col, row, min(right, HLS_SIZE - col), min(down, HLS_SIZE - row))


def _write(path: Path, pixels: Any, window: Window, frame: TileFrame, nodata: int) -> None:
    profile: dict[str, Any] = {
        "driver": "GTiff",
        "dtype": pixels.dtype.name,
        "count": 1,
        "height": HLS_SIZE,
        "width": HLS_SIZE,
        "crs": f"EPSG:{frame.epsg}",
        "transform": frame.transform,
        "nodata": nodata,
        "tiled": True,
        "blockxsize": _BLOCK,
        "blockysize": _BLOCK,
        "compress": "deflate",
        "predictor": 2,
        "sparse_ok": True,
    }
    with rasterio.open(path, "w", **profile) as raster:
        raster.write(pixels, 1, window=window)
        raster.update_tags(SENSING_TIME="synthetic")


def _items(url: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    for collection in ("HLSS30_2.0",):
        page: str | None = f"{url}/collections/{collection}/items"
        while page:
            answer = requests.get(page, timeout=60).json()
            items += answer["features"]
            page = next((link["href"] for link in answer["links"] if link["rel"] == "next"), None)
    return items
