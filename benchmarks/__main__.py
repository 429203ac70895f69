"""Run every contender in a process of its own, print the table of ratios, and write benchmarks/results/<date>.json.

Seconds are the median of three repeats or more after a first one that warms caches up, and megabytes the peak of the
contender's process, its imports included.
"""

import argparse
import contextlib
import datetime as dt
import importlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import rasterio

RESULTS = Path(__file__).parent / "results"
CONTENDERS = {
    "tile_ours": ("tile", "ours", 9),
    "tile_over_floor": ("tile", "over_floor", 9),
    "tile_two_runs": ("tile", "two_runs", 5),
    "tile_odc_stac": ("tile", "odc_stac", 5),
    "tile_reference": ("tile", "reference", 3),
    "cdl_scan_ours": ("national", "scan_ours", 5),
    "cdl_scan_floor": ("national", "scan_floor", 5),
    "cdl_scan_loop": ("national", "scan_loop", 3),
    "choose_ours": ("labels", "choose_ours", 3),
    "choose_evenness": ("labels", "choose_evenness", 3),
    "choose_greedy": ("labels", "choose_greedy", 3),
    "tiles_ours": ("labels", "tiles_ours", 5),
    "tiles_sjoin": ("labels", "tiles_sjoin", 5),
    "statistics_ours": ("national", "statistics_ours", 5),
    "statistics_one_band_concatenate": ("national", "statistics_concatenate", 3),
    "content_verified": ("content", "verified", 5),
    "content_unchecked": ("content", "unchecked", 5),
    "content_sha256": ("content", "sha256", 5),
    "stages_bare": ("orchestration", "bare", 3),
    "stages_through_dagster": ("orchestration", "through_dagster", 3),
}
_WITHOUT_WARM_UP = {"tile_reference", "statistics_one_band_concatenate", "cdl_scan_loop", "choose_greedy"}
_BANDS = 6


def build(root: Path) -> None:
    """Make all inputs below `root`."""
    from benchmarks import content, labels, network, orchestration, world

    world.make_tile_world(root / "tile")
    world.write_cdl(root / "national" / "cdl.tif", range(200, 260), range(300, 360))
    world.write_chips(root / "national" / "chips", 400)
    labels.write_country(root / "labels")
    content.write_file(root / "content" / "file")
    (root / "orchestration").mkdir()
    orchestration.make_world(root / "orchestration")
    network.make_world(root / "network")


def contend(name: str, root: Path) -> dict[str, Any]:
    """Repeat one contender in this process."""
    module, function, repeats = CONTENDERS[name]
    seconds, parts = [], []
    with getattr(importlib.import_module(f"benchmarks.{module}"), function)(root / module) as work:
        if name not in _WITHOUT_WARM_UP:
            work()
        for _ in range(repeats):
            started = time.perf_counter()
            told = work()
            seconds.append(time.perf_counter() - started)
            parts.append(told if isinstance(told, dict) else {})
    middle = {part: statistics.median(told[part] for told in parts) for part in parts[0]}
    return {"seconds": statistics.median(seconds), "peak_mb": round(_peak_mb()), "parts": middle}


def _peak_mb() -> float:
    # not ru_maxrss, which on Linux starts from the memory of the process that launched this one
    status = Path("/proc/self/status")
    if status.exists():
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure(name: str, root: Path) -> dict[str, Any]:
    """Run one contender in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks", "--contender", name, "--world", str(root)]
    told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    found: dict[str, Any] = json.loads(told.splitlines()[-1])
    print(f"  {name:<34}{found['seconds']:>10.3f} s{found['peak_mb']:>8} MB", flush=True)
    return found


def ratios(seconds: dict[str, float]) -> dict[str, float]:
    """What the targets are set for: how many times faster, and for the floor how many times slower."""
    tiles = 16
    return {
        "tile_vs_reference": seconds["tile_reference"] / seconds["tile_ours"],
        "tile_vs_odc_stac": seconds["tile_odc_stac"] / seconds["tile_ours"],
        "tile_vs_floor": seconds["tile_over_floor_times"],
        "tile_seconds_of_two_runs": seconds["tile_two_runs_tile"],
        "cdl_scan_vs_loop": seconds["cdl_scan_loop"] / seconds["cdl_scan_ours"],
        "cdl_scan_vs_floor": seconds["cdl_scan_ours"] / seconds["cdl_scan_floor"],
        "choose_balanced_vs_greedy": seconds["choose_greedy"] / seconds["choose_ours"],
        "distance_evenness_vs_balanced": seconds["choose_evenness_distance"]
        / seconds["choose_ours_distance"],
        "tiles_vs_sjoin": seconds["tiles_sjoin"] / seconds["tiles_ours"],
        # the recipe takes one band after the other
        "statistics_vs_concatenate": _BANDS
        * seconds["statistics_one_band_concatenate"]
        / seconds["statistics_ours"],
        "content_megabytes_per_second": 2**28 / 1e6 / seconds["content_verified"],
        "content_verified_vs_sha256": seconds["content_verified"] / seconds["content_sha256"],
        "content_verified_vs_unchecked": seconds["content_verified"] / seconds["content_unchecked"],
        "orchestration_seconds_per_tile": (seconds["stages_through_dagster"] - seconds["stages_bare"])
        / tiles,
    }


def machine() -> dict[str, Any]:
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "gdal": rasterio.__gdal_version__,
    }


def run(root: Path) -> None:
    print("making the world: a minute", flush=True)
    build(root)
    from benchmarks import network
    from benchmarks.national import megapixels

    found = {name: measure(name, root) for name in CONTENDERS}
    seconds = {name: told["seconds"] for name, told in found.items()}
    for name, told in found.items():
        seconds |= {f"{name}_{part}": value for part, value in told["parts"].items()}
    result = {
        "machine": machine(),
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
        "peak_mb": {name: told["peak_mb"] for name, told in found.items()},
        "ratios": {name: round(value, 2) for name, value in ratios(seconds).items()},
        "cdl_scan_megapixels_per_second": round(megapixels(root / "national") / seconds["cdl_scan_ours"]),
    }
    _show(result["ratios"])
    print(f"{'cdl_scan_megapixels_per_second':<36}{result['cdl_scan_megapixels_per_second']:>10}")
    result["network"] = network.run(root / "network")
    _show(result["network"]["ratios"])
    _keep(result, f"{dt.date.today()}.json")


def run_network(root: Path) -> None:
    """Only the benchmark of downloads."""
    from benchmarks import network

    network.make_world(root / "network")
    found = network.run(root / "network")
    _show(found["ratios"])
    _keep({"machine": machine(), "network": found}, f"{dt.date.today()}-network.json")


def _show(found: dict[str, float]) -> None:
    for name, value in found.items():
        print(f"{name:<36}{value:>10.2f}")


def _keep(result: dict[str, Any], name: str) -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / name).write_text(json.dumps(result, indent=2) + "\n")
    print(f"written to {RESULTS / name}")


@contextlib.contextmanager
def _folder(path: Path | None) -> Iterator[Path]:
    if path is not None:
        yield path
        return
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("only", nargs="?", choices=["network"], help="run only the benchmark of downloads")
    parser.add_argument(
        "--world", type=Path, help="an empty folder for the inputs, 2 GB; by default a temporary one"
    )
    parser.add_argument(
        "--contender", choices=CONTENDERS, help="only repeat this one over a finished --world"
    )
    arguments = parser.parse_args()
    if arguments.contender:
        print(json.dumps(contend(arguments.contender, arguments.world)))
        return
    with _folder(arguments.world) as root:
        (run_network if arguments.only else run)(root)


if __name__ == "__main__":
    main()
