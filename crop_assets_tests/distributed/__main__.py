"""Thirty tiles on three workers, of which one is killed and one is cut off, compared with one machine's run.

`make distributed` runs it, as root because of the network namespaces, and writes docs/distributed.md.
"""

import argparse
import datetime as dt
import hashlib
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import psutil

from crop_assets.automation.jobs import TILE_ASSETS
from crop_assets.definitions import build_defs, environment_resources
from crop_assets.partitions import CDL_YEAR, TILE
from crop_assets_tests.distributed.cluster import PROJECT, Cluster, Worker, cluster, wait_for
from crop_assets_tests.distributed.world import YEAR, build, environment
from crop_assets_tests.small_world import digests

WORKERS = 3
TILES_PER_RUN = 2
LOOKS = 3
STARTED, FAILURE, SUCCESS = (
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.FAILURE,
    dg.DagsterRunStatus.SUCCESS,
)
MATERIALIZED = dg.DagsterEventType.ASSET_MATERIALIZATION


@dataclass
class Fault:
    """What happened to a worker in mid-run, and to its run."""

    name: str
    worker: Worker
    run_id: str
    finished_before: int
    at: float
    noticed: float = 0.0
    retried: float = 0.0
    looks: int = 0
    reason: str = ""


def one_machine() -> None:
    """The three jobs of all tiles in this process, for the variables that are set."""
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions(CDL_YEAR, [str(YEAR)])
        defs = build_defs(environment_resources())

        def execute(job: str, **where: Any) -> None:
            result = defs.resolve_job_def(job).execute_in_process(
                instance=instance, raise_on_error=False, **where
            )
            if not result.success:
                sys.exit(f"{job} failed")

        execute("labels_job", partition_key=str(YEAR))
        tiles = instance.get_dynamic_partitions(TILE)
        tags = {
            "dagster/asset_partition_range_start": f"{YEAR}|{tiles[0]}",
            "dagster/asset_partition_range_end": f"{YEAR}|{tiles[-1]}",
        }
        execute("tiles_job", tags=tags)
        execute("dataset_job", partition_key=str(YEAR))


def run_on_one_machine(folder: Path, site: Path) -> float:
    """Run all jobs in one process, on a local folder; returns how many seconds it took."""
    took = folder / "alone.seconds"
    if not took.exists():
        alone = {"CROP_ASSETS_DATA": str(folder / "alone"), **environment(site)}
        started = time.monotonic()
        with (folder / "alone.log").open("wb") as output:
            subprocess.run(
                [sys.executable, "-c", "from crop_assets_tests.distributed.__main__ import *; one_machine()"],
                env={**os.environ, **alone, "PYTHONPATH": str(PROJECT)},
                cwd=folder,
                stdout=output,
                stderr=output,
                check=True,
            )
        took.write_text(str(time.monotonic() - started))
    return float(took.read_text())


def in_mid_run(running: Cluster, backfill: str, spared: set[str]) -> tuple[dg.DagsterRun, Worker, int] | None:
    """A run that has made something of its tiles but not all, on a worker that is not spared."""
    for run in running.runs(backfill):
        if run.status != STARTED:
            continue
        worker = running.worker_of(run)
        made = len(running.instance.all_logs(run.run_id, MATERIALIZED))
        if worker and worker.host not in spared and 1 <= made < 12:
            return run, worker, made
    return None


def strike(running: Cluster, backfill: str, name: str, spared: set[str]) -> Fault:
    run, worker, made = wait_for("a run to disturb", lambda: in_mid_run(running, backfill, spared), 0.1)
    worker.kill() if name == "killed" else worker.cut_off()
    log(f"{worker.host} {name} during run {run.run_id}, after {made} materializations")
    return Fault(name, worker, run.run_id, made, time.monotonic())


def watch(running: Cluster, backfill: str, fault: Fault) -> bool:
    """Note when the run failed, and when its retry started; whether both are known."""
    if fault.retried:
        return True
    run = running.instance.get_run_by_id(fault.run_id)
    assert run is not None
    if not fault.noticed:
        if run.status != FAILURE:
            assert not run.is_finished, f"{run.run_id} ended as {run.status} with its worker {fault.name}"
            return False
        fault.noticed = time.monotonic() - fault.at
        lines = running.daemon_log.read_text(errors="replace").splitlines()
        fault.looks = sum(f"run {fault.run_id}: " in line and "(look " in line for line in lines)
        failures = running.instance.all_logs(fault.run_id, dg.DagsterEventType.RUN_FAILURE)
        event = failures[0].dagster_event if failures else None
        fault.reason = str(event.message) if event else ""
        log(f"{fault.name}: noticed after {fault.noticed:.0f} s and {fault.looks} looks: {fault.reason}")
    retries = [r for r in running.runs(backfill) if r.tags.get("dagster/parent_run_id") == fault.run_id]
    if not any(retry.status in (STARTED, SUCCESS) for retry in retries):
        return False
    fault.retried = time.monotonic() - fault.at
    return True


def watch_and_count(running: Cluster, backfill: str, fault: Fault) -> int:
    """Watch a fault; returns how many runs of the backfill have succeeded."""
    watch(running, backfill, fault)
    return sum(run.status == SUCCESS for run in running.runs(backfill))


def wait_for_the_end(running: Cluster, backfill: str, of_assets: bool) -> str:
    """Wait for the backfill's end, and check that each failed run has a retry that succeeded; returns its status.

    Dagster 1.13.27 ends a job's backfill as COMPLETED_FAILED if any of its runs failed, whatever their retries did
    (`execute_job_backfill_iteration`); one of assets is judged by what was made.
    """

    def ended() -> str | None:
        found = running.instance.get_backfill(backfill)
        status = found.status.value if found else "missing"
        return status if status not in ("REQUESTED", "CANCELING", "FAILING") else None

    status = wait_for("the end of the backfill", ended, 2)
    runs = running.runs(backfill)
    retried = {run.tags.get("dagster/parent_run_id") for run in runs if run.status == SUCCESS}
    failed = [run for run in runs if run.status != SUCCESS]
    assert all(run.run_id in retried for run in failed), failed
    expected = "COMPLETED_FAILED" if failed and not of_assets else "COMPLETED_SUCCESS"
    assert status == expected, status
    return status


def wait_for_rest(running: Cluster) -> None:
    """Until no worker has a task: one that was cut off may still be at the run that failed without it."""
    wait_for(
        "idle workers",
        lambda: len(tasks := running.active_tasks()) == WORKERS and not any(tasks.values()),
        2,
    )
    storage = running.instance.event_log_storage
    wait_for("free slots", lambda: storage.get_concurrency_info("tiles").active_slot_count == 0, 2)
    assert storage.get_concurrency_info("tiles").slot_count > 0


def run_alone(running: Cluster, job: str) -> None:
    run_id = running.launch(job, YEAR)

    def ended() -> dg.DagsterRun | None:
        run = running.instance.get_run_by_id(run_id)
        return run if run and run.is_finished else None

    run = wait_for(job, ended)
    assert run and run.status == SUCCESS, running.instance.all_logs(run_id)[-5:]


def log(text: str) -> None:
    print(f"{dt.datetime.now(dt.UTC):%H:%M:%S} {text}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("report", type=Path, nargs="?")
    parser.add_argument("--tiles", type=int, default=30)
    parser.add_argument(
        "--assets", action="store_true", help="launch from the asset graph, not the job's page"
    )
    parser.add_argument("--calm", action="store_true", help="disturb no worker")
    parser.add_argument(
        "--folder", type=Path, help="where all stays; the world and one machine's run are reused"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="crop-distributed-") as temporary:
        # PostgreSQL's user must get through
        Path(temporary).chmod(0o755)
        folder = options.folder or Path(temporary)
        folder.mkdir(exist_ok=True)
        drill(folder, options)


def drill(folder: Path, options: argparse.Namespace) -> None:
    site_folder = folder / "site"
    site_folder.mkdir(parents=True, exist_ok=True)
    site = build(site_folder, options.tiles)
    log(f"{len(site.tiles)} tiles are there")

    alone_seconds = run_on_one_machine(folder, site_folder)
    expected = digests(folder / "alone")
    log(f"one machine made {len(expected)} files in {alone_seconds:.0f} s")

    with cluster(folder, site_folder, WORKERS, TILES_PER_RUN) as running:
        running.instance.add_dynamic_partitions(CDL_YEAR, [str(YEAR)])
        run_alone(running, "labels_job")
        log("the labels are there")
        started = time.monotonic()
        first = launch(running, site.keys, options.assets)
        faults = [] if options.calm else disturb(running, first, options.tiles // TILES_PER_RUN * 2 // 3)
        status = wait_for_the_end(running, first, options.assets)
        first_seconds = time.monotonic() - started
        log(f"the backfill was {status} after {first_seconds:.0f} s")
        wait_for_rest(running)
        ends = [running.instance.get_run_by_id(fault.run_id) for fault in faults]
        run_alone(running, "dataset_job")
        made = running.files()
        differing = compare(running, made, expected)
        assert not differing, differing[:20]
        log(f"{len(expected)} of {len(expected)} files are equal")

        def write(second: str) -> None:
            text = report(
                options,
                faults,
                ends,
                running,
                first,
                status,
                len(expected),
                alone_seconds,
                first_seconds,
                second,
            )
            if options.report:
                options.report.write_text(text)

        write("The second backfill has not been run.")
        second = launch(running, site.keys, options.assets)
        started = time.monotonic()
        wait_for_the_end(running, second, options.assets)
        second_seconds = time.monotonic() - started
        logs = [
            entry.asset_materialization
            for run in running.runs(second)
            for entry in running.instance.all_logs(run.run_id, MATERIALIZED)
        ]
        reused = [bool(one.metadata["reused"].value) for one in logs if one]
        assert reused and all(reused), f"{reused.count(False)} of {len(reused)} were made again"
        assert running.files() == made
        log(f"the second backfill reused all of {len(reused)}")
        write(
            f"A second backfill took {second_seconds:.0f} s, reused all {len(reused)} tables, and wrote no file."
        )


def launch(running: Cluster, keys: Sequence[str], of_assets: bool) -> str:
    return running.backfill_assets(TILE_ASSETS, keys) if of_assets else running.backfill("tiles_job", keys)


def disturb(running: Cluster, backfill: str, count: int) -> list[Fault]:
    """Kill one worker and restart it as systemd would; cut another off, until the retry of its run has started."""
    killed = strike(running, backfill, "killed", set())
    time.sleep(max(0, killed.at + 5 - time.monotonic()))
    killed.worker.start()
    # late, so that the retry does not wait behind most of the runs while the worker is still cut off
    wait_for("two thirds of the runs", lambda: watch_and_count(running, backfill, killed) >= count)
    cut = strike(running, backfill, "cut off", {killed.worker.host})
    wait_for("the retries", lambda: watch(running, backfill, killed) & watch(running, backfill, cut))
    cut.worker.reconnect()
    log(f"{cut.worker.host} is back after {time.monotonic() - cut.at:.0f} s")
    for fault in (killed, cut):
        assert fault.looks == LOOKS, fault
    return [killed, cut]


def compare(running: Cluster, made: dict[str, Any], expected: dict[str, str]) -> list[str]:
    """The names that differ from the expected ones, or whose bytes do."""
    assert expected
    # CDL rasters and cached answers stay on each machine
    names = {name for name in made if name.startswith("training_datasets/")}
    wanted = {name: digest for name, digest in expected.items() if name.startswith("training_datasets/")}
    differing = sorted(names ^ wanted.keys())
    both = sorted(names & wanted.keys())
    for start in range(0, len(both), 200):
        for name, content in running.read(both[start : start + 200]).items():
            if hashlib.sha256(content).hexdigest() != wanted[name]:
                differing.append(name)
    return differing


def report(
    options: argparse.Namespace,
    faults: list[Fault],
    ends: list[dg.DagsterRun | None],
    running: Cluster,
    backfill: str,
    status: str,
    files: int,
    alone_seconds: float,
    seconds: float,
    second: str,
) -> str:
    runs = running.runs(backfill)
    retries = sum("dagster/parent_run_id" in run.tags for run in runs)
    memory = psutil.virtual_memory().total / 2**30
    cores, python = os.cpu_count(), platform.python_version()
    rows = "\n".join(
        f"| {fault.name} | {fault.finished_before} | {fault.noticed:.0f} s, {fault.looks} looks | "
        f"{fault.retried:.0f} s | {len(running.instance.all_logs(fault.run_id, MATERIALIZED))} | "
        f"{end.status.value if end else 'missing'} |"
        for fault, end in zip(faults, ends, strict=True)
    )
    return f"""# Many machines: a drill

`make distributed` wrote this page on {dt.date.today()}, on a machine with {cores} cores and {memory:.0f} GiB of
memory (Python {python}, Dagster {dg.__version__}). It played [many machines](many-machines.md) on one: PostgreSQL,
Redis, SeaweedFS as the object store, a code server, a webserver, a daemon with `deploy/many/dagster.yaml`, and
{WORKERS} workers. Each worker had a network namespace, a `DAGSTER_HOME`, a working directory and a folder for temporary
files of its own.

{options.tiles} tiles of a synthetic world, two chips each, were launched as a backfill from the page of `tiles_job`,
{TILES_PER_RUN} tiles a run. In mid-run one worker was killed with -9 and started again 5 seconds later. Another was cut
off later, and reconnected when the retry of its run had started.

| worker | tables before | noticed after | retry started after | tables in the end | status in the end |
|---|---|---|---|---|---|
{rows}

- All tiles were made in {seconds:.0f} s by {len(runs)} runs, of which {retries} were retries. Dagster shows the
  backfill as {status}: a failed run of a job's backfill counts even if its retry succeeded.
- All slots of the pool were free, and all workers idle.
- {files} of {files} files were equal, byte for byte, to those that one process made in a local folder in
  {alone_seconds:.0f} s.
- {second}
"""


if __name__ == "__main__":
    main()
