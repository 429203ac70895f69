"""What eight chips need of a tile's 21 files, from an archive behind a network: this project, with complete files and
with blocks, over HTTP and IPFS, and readers of windows.

Each contender is a process that lasts as long as the benchmark, and they take turns, so that a slow minute hits all of
them. The archive counts what it is asked for.
"""

import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import rasterio
import requests
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from benchmarks.archive import LEAVES
from benchmarks.world import DATASET, TILE, YEAR, TileWorld, make_tile_world
from crop_assets.bands.assets import downloaded_bands, downloaded_fmasks
from crop_assets.bands.cids import MAX_BAND_BYTES
from crop_assets.chip_grid import chip_geobox, chip_id
from crop_assets.chips.warp import SourcePixels, source_pixels
from crop_assets.graph.stage import TileRun
from crop_assets.hls import QA_BAND, REFLECTANCE_BANDS, hls_bounds
from crop_assets.recipe import DatasetRecipe
from crop_assets.schemas import CHIP_QUALITY
from resources.downloads import Downloads
from resources.earthdata import LpDaac
from resources.ipfs.resource import IpfsContent
from resources.ipfs.unixfs import file_cid
from resources.machine import Machine
from resources.mirror import BandMirror
from resources.store import DatasetStore

LINKS = (0, 20, 100)
"""MB/s of all connections together; 0 for no limit."""
_REPEATS = 3
_CONNECTIONS = 16
_CHIPS = 8
_DETAIL = 0.25
"""With it the 21 files have 332 MB, as those of a real tile."""
_TUNED = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
    "GDAL_HTTP_MULTIPLEX": "YES",
    "GDAL_INGESTED_BYTES_AT_OPEN": "16384",
    "CPL_VSIL_CURL_ALLOWED_EXTENSIONS": ".tif",
    "VSI_CACHE": "YES",
}

Pixels = Callable[[str], list[NDArray[Any]]]
"""The chips' source windows of the file with a name."""
Work = Callable[[str, str], Pixels | None]
"""Gets what the chips need, from the archive at an address, under a name that no cache has seen before."""


def make_world(root: Path) -> None:
    """The files of a tile, and the table of them."""
    world = make_tile_world(root, _DETAIL)
    rows = []
    for row in world.downloaded_bands.to_dict("records"):
        path = world.source(row)
        cids = {leaves: file_cid(path, size) for leaves, size in LEAVES.items()}
        rows.append(row | cids | {"file": path.name, "bytes": path.stat().st_size})
    pd.DataFrame(rows).to_parquet(root / "files.parquet")


def _files(root: Path) -> pd.DataFrame:
    return pd.read_parquet(root / "files.parquet")


@cache
def _places() -> dict[str, SourcePixels]:
    """Eight chips in the tile at random, of which no two touch, and their source pixels."""
    epsg, left, bottom, right, top = hls_bounds(TILE)
    box = GeoBox.from_bbox((left, bottom, right, top), f"EPSG:{epsg}", resolution=30)
    rng = np.random.default_rng(0)
    found: dict[tuple[int, int], SourcePixels] = {}
    while len(found) < _CHIPS:
        row, col = map(int, rng.integers((225, 311), (242, 328)))
        at = source_pixels(chip_geobox(chip_id(row, col)), box)
        apart = all(max(abs(row - r), abs(col - c)) > 1 for r, c in found)
        if apart and at is not None and at.within:
            found[row, col] = at
    return {chip_id(*cell): at for cell, at in found.items()}


def _read(path: str) -> list[NDArray[Any]]:
    with rasterio.open(path) as raster:
        return [raster.read(1, window=at.window) for at in _places().values()]


@contextlib.contextmanager
def ours(fetch: Literal["blocks", "files"], leaves: str, root: Path) -> Iterator[Work]:
    """The project's own asset functions, with an empty store: over HTTP, or over IPFS with leaves of a size."""
    table = _files(root).assign(problem="", max_bytes=MAX_BAND_BYTES)
    recipe = DatasetRecipe(dataset=DATASET, fetch=fetch, sources=["gateways" if leaves else "lp_daac"])
    folder = root / f"{fetch}_{leaves or 'http'}"
    tile_map = pd.DataFrame({"chip_id": list(_places()), "tile": TILE, "contained": True})

    def work(url: str, visit: str) -> Pixels:
        shutil.rmtree(folder, ignore_errors=True)
        store = DatasetStore(root=str(folder))
        sources = Downloads(per_host=_CONNECTIONS, ranges_per_host=_CONNECTIONS).of(
            recipe.sources,
            IpfsContent(kubo_api="", gateways=[f"{url}/{leaves}"]),
            LpDaac(hosts=["127.0.0.1"], token="any"),
            BandMirror(),
        )
        links = [f"{url}/files/{visit}/{file}" for file in table["file"]]
        cids = table.assign(cid=table[leaves], http="") if leaves else table.assign(cid="", http=links)
        with Machine().pool() as pool:
            run = TileRun(store, recipe, _quiet, _quiet, YEAR, TILE, pool)
            fmasks = downloaded_fmasks(run, cids, sources).frame
            made = downloaded_bands(run, cids, fmasks, CHIP_QUALITY.empty(), tile_map, sources).frame
        paths = {Path(path).name: folder / path for path in made["path"]}
        return lambda file: _read(str(paths[file]))

    yield work


def _quiet(text: str) -> None:
    pass


@contextlib.contextmanager
def vsicurl(threads: int, settings: dict[str, str], root: Path) -> Iterator[Work]:
    """`rasterio` windows of all files through GDAL's `/vsicurl`, into memory."""
    os.environ.update(_TUNED | settings)
    files = list(_files(root)["file"])

    def work(url: str, visit: str) -> Pixels:
        with ThreadPoolExecutor(threads) as pool:
            read = pool.map(_read, [f"/vsicurl/{url}/files/{visit}/{file}" for file in files])
            pixels = dict(zip(files, read, strict=True))
        return pixels.__getitem__

    yield work


@contextlib.contextmanager
def odc_stac(root: Path) -> Iterator[Work]:
    """`odc.stac.load` of each chip, into memory."""
    import odc.stac

    from benchmarks.tile import _item

    os.environ.update(_TUNED)
    table, world = _files(root), TileWorld(root)
    items = [_item(world, str(scene), rows) for scene, rows in table.groupby("scene_id")]
    bands = [*REFLECTANCE_BANDS, QA_BAND]

    def work(url: str, visit: str) -> None:
        for item in items:
            for asset in item.assets.values():
                asset.href = f"{url}/files/{visit}/{Path(asset.href).name}"
        for chip in _places():
            odc.stac.load(items, bands=bands, geobox=chip_geobox(chip), pool=_CONNECTIONS)

    yield work


CONTENDERS: dict[str, Callable[[Path], contextlib.AbstractContextManager[Work]]] = {
    "http_files": partial(ours, "files", ""),
    "http_ranges": partial(ours, "blocks", ""),
    "ipfs_files": partial(ours, "files", "256_kib"),
    "ipfs_256_kib": partial(ours, "blocks", "256_kib"),
    "ipfs_1_mib": partial(ours, "blocks", "1_mib"),
    "vsicurl_8": partial(vsicurl, 8, {}),
    "vsicurl_16": partial(vsicurl, 16, {}),
    "odc_stac": odc_stac,
}
_SLOW = {"odc_stac": (100,)}
"""Contenders that are measured with some links only."""


def _contend(name: str, root: Path) -> None:
    """Do the work for each line of standard input, an address and a name; print the seconds."""
    # not a part of what is measured, and what reads files is warm
    _read(str(TileWorld(root).source(TileWorld(root).downloaded_bands.iloc[0].to_dict())))
    with CONTENDERS[name](root) as work:
        print(name, flush=True)
        checked = False
        for line in sys.stdin:
            url, visit = line.split()
            cpu, started = time.process_time(), time.perf_counter()
            pixels = work(url, visit)
            told = {"seconds": time.perf_counter() - started, "cpu": time.process_time() - cpu}
            if pixels and not checked:
                _check(root, pixels)
                checked = True
            print(json.dumps(told), flush=True)


def _check(root: Path, pixels: Pixels) -> None:
    """Raise AssertionError unless the pixels that the chips are made of are those of the files."""
    used = [np.unique(at.weights.indices[at.weights.data != 0]) for at in _places().values()]
    for row in TileWorld(root).downloaded_bands.to_dict("records"):
        path = TileWorld(root).source(row)
        for found, there, at in zip(pixels(path.name), _read(str(path)), used, strict=True):
            np.testing.assert_array_equal(found.ravel()[at], there.ravel()[at])


@contextlib.contextmanager
def _process(module: str, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-W", "ignore", "-m", module, *arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        # under nohup or a batch system the signal to terminate may be ignored
        process.kill()
        process.wait()


def run(root: Path, names: Iterable[str] = CONTENDERS) -> dict[str, Any]:
    """Measure, and print the medians by `<contender>_<MB/s>`: seconds, the processor's seconds of both sides, requests,
    connections, and bytes as a share of those of the files.
    """
    print("downloads of a tile over three links: some seven minutes", flush=True)
    found = _measure(root, names)
    parts = list(next(iter(found.values())))
    print(f"{'':<20}{''.join(f'{part:>13}' for part in parts)}")
    for name, told in found.items():
        print(f"{name:<20}{''.join(f'{told[part]:>13g}' for part in parts)}", flush=True)
    return {"megabytes": round(_files(root)["bytes"].sum() / 1e6), "medians": found, "ratios": _ratios(found)}


def _ratios(found: dict[str, dict[str, float]]) -> dict[str, float]:
    """How many times faster than the complete files and than GDAL the parts are fetched, with each link."""
    pairs = {
        f"{ours}_vs_{other}_{link}": (f"{other}_{link}", f"{ours}_{link}")
        for link in LINKS
        for ours, other in (
            ("http_ranges", "http_files"),
            ("ipfs_256_kib", "ipfs_files"),
            ("ipfs_1_mib", "ipfs_files"),
            ("http_ranges", "vsicurl_8"),
            ("http_ranges", "vsicurl_16"),
            ("http_ranges", "odc_stac"),
        )
    }
    return {
        name: round(found[slow]["seconds"] / found[fast]["seconds"], 2)
        for name, (slow, fast) in pairs.items()
        if slow in found and fast in found
    }


def _measure(root: Path, names: Iterable[str]) -> dict[str, dict[str, float]]:
    complete = int(_files(root)["bytes"].sum())
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    with contextlib.ExitStack() as stack:
        archive = stack.enter_context(_process("benchmarks.archive", str(root)))
        url = _answer(archive)
        processes = {}
        for name in names:
            processes[name] = stack.enter_context(_process("benchmarks.network", name, str(root)))
            _answer(processes[name])
        for repeat in range(_REPEATS):
            for link in LINKS:
                for name, process in processes.items():
                    if link not in _SLOW.get(name, LINKS):
                        continue
                    requests.get(f"{url}/link/{link}", timeout=10).raise_for_status()
                    assert process.stdin is not None
                    process.stdin.write(f"{url} {name}_{link}_{repeat}\n")
                    process.stdin.flush()
                    told = json.loads(_answer(process))
                    counts = requests.get(f"{url}/counts", timeout=10).json()
                    counts["share"] = counts.pop("bytes") / complete
                    found[f"{name}_{link}"].append(told | counts)
    return {
        name: {part: round(statistics.median(one[part] for one in told), 3) for part in told[0]}
        for name, told in found.items()
    }


def _answer(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    if not line:
        raise RuntimeError(f"{process.args!r} ended with code {process.wait()}")
    return line


if __name__ == "__main__":
    _contend(sys.argv[1], Path(sys.argv[2]))
