"""Measure what Dagster costs at the size of a national dataset: `python -m crop_assets_tests.scale REPORT`.

Runs the code server, the daemon and the webserver over a PostgreSQL of its own, with the project's graph, whose stages
do no work (`location`). Then copies the rows of a year in the database to other years, and measures the pages of the UI
and the look of `dataset_sensor` again.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import requests
import yaml

from crop_assets.automation.sensors import dataset_sensor
from crop_assets.definitions import environment_resources
from crop_assets.partitions import CDL_YEAR, TILE
from crop_assets_tests.background import Background, background
from crop_assets_tests.browser.chromium import chromium
from crop_assets_tests.scale import report
from crop_assets_tests.scale.clone import clone_year, count, version
from crop_assets_tests.scale.location import tile_names
from crop_assets_tests.scale.measured import Look, Measured, Query
from resources.loopback import free_port

ROOT = Path(__file__).resolve().parents[2]
LOCATION = "crop_assets_tests.scale.location"
YEARS = (2021, 2022)
MAX_SECONDS = 7200
TIMES = 5
FEW = 32
IDLE_SECONDS = 30
PAGES = {
    "the asset catalogue": "/assets",
    "the graph of a group": f"/locations/__repository__@{LOCATION}/asset-groups/chips",
    "an asset's partitions": "/assets/filtered_chips?view=partitions",
    "an asset's events": "/assets/filtered_chips?view=events",
    "runs": "/runs",
    "backfills": "/overview/backfills",
    "a backfill": "/runs/b/{backfill}",
    "a job's partitions": f"/locations/__repository__@{LOCATION}/jobs/tiles_job/partitions",
    "the timeline": "/overview/activity/timeline",
}


@dataclass
class Servers:
    """The running parts of Dagster, by name, and PostgreSQL."""

    url: str
    database: str
    parts: dict[str, psutil.Process] = field(default_factory=dict)

    def seconds(self) -> dict[str, float]:
        """CPU seconds of each part so far, with those of its processes, living and ended."""
        return {name: _cpu(process) for name, process in self.parts.items()}

    def ask(self, operation: dict[str, Any]) -> Any:
        answer = requests.post(f"{self.url}/graphql", json=operation, timeout=600)
        answer.raise_for_status()
        return answer.json()


def _cpu(process: psutil.Process) -> float:
    total = 0.0
    for one in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = one.cpu_times()
            # processes that ended and were waited for are in the times of their parents
            total += times.user + times.system + times.children_user + times.children_system
    return total


@contextlib.contextmanager
def postgres(folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    """A PostgreSQL with its default settings, reached by a socket in a folder of its user; yields address, process."""
    programs = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)
    if programs is None:
        raise SystemExit("there is no PostgreSQL; install Debian's postgresql")
    # PostgreSQL does not run as root; it ends with this process
    unprivileged: list[str | Path] = ["setpriv", "--pdeathsig=KILL"]
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres", "postgres")
        unprivileged += ["--reuid=postgres", "--regid=postgres", "--clear-groups"]
    data = folder / "data"
    options = ("--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync", "--username=postgres")
    made = subprocess.run(
        [*unprivileged, programs / "initdb", data, *options], cwd=folder, capture_output=True, text=True
    )
    if made.returncode:
        raise SystemExit(made.stderr)
    settings = {"unix_socket_directories": folder, "listen_addresses": "", "max_connections": 200}
    command = [*unprivileged, programs / "postgres", "-D", data]
    command += [f"--{name}={value}" for name, value in settings.items()]
    with background([str(word) for word in command], folder.parent / "postgres.log") as running:
        ready = [programs / "pg_isready", "-q", "-h", folder]
        running.wait_for("PostgreSQL", lambda: not subprocess.run(ready, check=False).returncode)
        yield f"postgresql+psycopg2://postgres@/postgres?host={folder}", psutil.Process(running.process.pid)


@contextlib.contextmanager
def servers(folder: Path) -> Iterator[Servers]:
    """Everything started, with an empty database and store in `folder`, which `DAGSTER_HOME` is in afterwards."""
    home, socket = folder / "dagster_home", folder / "code"
    home.mkdir()
    sockets = folder / "postgres"
    sockets.mkdir(mode=0o700)
    with contextlib.ExitStack() as stack:
        address, process = stack.enter_context(postgres(sockets))
        settings = yaml.safe_load((ROOT / "deploy/dagster.yaml").read_text())
        settings["storage"] = {"postgres": {"postgres_url": address}}
        (home / "dagster.yaml").write_text(yaml.safe_dump(settings))
        server = {"socket": str(socket), "location_name": LOCATION}
        workspace = folder / "workspace.yaml"
        workspace.write_text(yaml.safe_dump({"load_from": [{"grpc_server": server}]}))
        os.environ |= {
            "DAGSTER_HOME": str(home),
            "CROP_ASSETS_DATA": str(folder / "data"),
            "CROP_ASSETS_CDL_INDEX": "",
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        }
        # the tables of the database are made here, and not by several processes at the same time
        with dg.DagsterInstance.get() as instance:
            instance.add_dynamic_partitions(CDL_YEAR, [str(year) for year in YEARS])
        port = free_port()
        found = Servers(f"http://127.0.0.1:{port}", address, {"PostgreSQL": process})

        def start(name: str, *words: str) -> Background:
            command = [sys.executable, "-m", *words]
            running = stack.enter_context(background(command, folder / f"{name}.log"))
            found.parts[name] = psutil.Process(running.process.pid)
            return running

        where = ("-m", LOCATION, "--location-name", LOCATION)
        code = start(
            "code server and runs", "dagster", "code-server", "start", "--socket", str(socket), *where
        )
        code.wait_for("its socket", socket.exists)
        start("daemon", "dagster._daemon", "run", "-w", str(workspace))
        web = ("dagster_webserver", "-h", "127.0.0.1", "-p", str(port), "-w", str(workspace))
        loaded = {"query": "{workspaceOrError {... on Workspace {locationEntries {loadStatus}}}}"}
        start("webserver", *web).wait_for("the webserver", lambda: "LOADED" in json.dumps(found.ask(loaded)))
        yield found


def backfill(running: Servers, instance: dg.DagsterInstance, job: str, *launches: list[str]) -> str:
    """Launch backfills of these partitions from the job's page, wait for the end of all; returns the id of the last."""
    repository = {"repositoryName": "__repository__", "repositoryLocationName": LOCATION}
    selector = {"partitionSetName": f"{job}_partition_set", "repositorySelector": repository}
    launch = """mutation ($params: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $params) {
        __typename ... on LaunchBackfillSuccess {backfillId} ... on PythonError {message} } }"""
    ids = []
    for keys in launches:
        variables = {"params": {"selector": selector, "partitionNames": keys}}
        answer = running.ask({"query": launch, "variables": variables})["data"]["launchPartitionBackfill"]
        if answer["__typename"] != "LaunchBackfillSuccess":
            raise SystemExit(f"{job} was not launched: {answer}")
        ids.append(str(answer["backfillId"]))
    deadline, waiting = time.monotonic() + MAX_SECONDS, set(ids)
    while waiting:
        time.sleep(2)
        for one in list(waiting):
            state = instance.get_backfill(one)
            status = state.status.value if state else "gone"
            if status == "COMPLETED_SUCCESS":
                waiting.remove(one)
            elif status != "REQUESTED" or time.monotonic() > deadline:
                raise SystemExit(f"the backfill {one} of {job} is {status}; its runs say why")
    return ids[-1]


def pages(running: Servers, backfill_id: str) -> dict[str, list[Query]]:
    """The queries of each page, as Chromium sends them."""
    found = {}
    with chromium() as browser:
        for name, path in PAGES.items():
            asked: dict[str, dict[str, Any]] = {}
            first: dict[str, float] = {}

            def note(
                request: Any, asked: dict[str, dict[str, Any]] = asked, first: dict[str, float] = first
            ) -> None:
                body = json.loads(request.post_data or "{}") if "/graphql" in request.url else {}
                operation = body.get("operationName")
                if operation and operation not in asked and "mutation" not in body["query"][:20]:
                    asked[operation] = body
                    timing = request.timing
                    first[operation] = (timing["responseEnd"] - timing["requestStart"]) / 1000

            page = browser.new_page(viewport={"width": 1800, "height": 1100})
            page.on("requestfinished", note)
            page.goto(running.url + path.format(backfill=backfill_id), wait_until="load", timeout=600_000)
            # a page goes on to ask by what it got
            quiet, before = 0, -1
            while quiet < 8:
                page.wait_for_timeout(1000)
                quiet, before = (quiet + 1 if len(asked) == before else 0), len(asked)
            page.close()
            found[name] = [Query(one, first[one], *_timed(running, body)) for one, body in asked.items()]
    return found


def _timed(running: Servers, body: dict[str, Any]) -> tuple[float, int]:
    seconds, length = [], 0
    for _ in range(TIMES):
        started = time.perf_counter()
        answer = requests.post(f"{running.url}/graphql", json=body, timeout=600)
        seconds.append(time.perf_counter() - started)
        length = len(answer.content)
        if "errors" in answer.json():
            raise SystemExit(f"{body.get('operationName')}: {answer.text[:2000]}")
    return statistics.median(seconds), length


def measure(folder: Path, tiles: int, partitions: int) -> Measured:
    names, found = tile_names(tiles), Measured(tiles, few=FEW)
    with servers(folder) as running, dg.DagsterInstance.get() as instance:
        _log("labels_job")
        backfill(running, instance, "labels_job", [str(year) for year in YEARS])
        if set(instance.get_dynamic_partitions(TILE)) != set(names):
            raise SystemExit("labels_job has not added the tiles")
        before = running.seconds()
        time.sleep(IDLE_SECONDS)
        found.idle = {name: total - before[name] for name, total in running.seconds().items()}

        def tiles_job(year: int, tiles: list[str]) -> float:
            started = time.monotonic()
            backfill(running, instance, "tiles_job", [f"{year}|{tile}" for tile in tiles])
            return time.monotonic() - started

        found.counts.append(count(running.database))
        before, started = running.seconds(), time.monotonic()
        _log(f"tiles_job: {tiles} tiles of {len(YEARS)} years")
        # not in one backfill, of which Dagster would lose runs: see crop_assets.partitions
        keys = [[f"{year}|{tile}" for tile in names] for year in YEARS]
        done = backfill(running, instance, "tiles_job", *keys)
        found.seconds = time.monotonic() - started
        found.cpu = {name: total - before[name] for name, total in running.seconds().items()}
        found.counts.append(count(running.database))
        found.postgres = version(running.database)
        found.runs = found.counts[1].runs - found.counts[0].runs
        found.looks.append(look(instance, len(YEARS)))
        _log("the pages of the UI")
        found.pages.append(pages(running, done))
        found.again.append(tiles_job(YEARS[-1], names[:FEW]))
        fill(running, instance, found, partitions)
        _log("the pages of the UI again")
        found.pages.append(pages(running, done))
        found.again.append(tiles_job(YEARS[-1], names[:FEW]))
        found.load.append(os.getloadavg()[0])
    return found


def fill(running: Servers, instance: dg.DagsterInstance, found: Measured, partitions: int) -> None:
    """Copy the database's rows of a year to as many years as make up the partitions; and its tables to ten years."""
    first, years = YEARS[0], max(-(-partitions // found.tiles), 10)
    found.partitions = years * found.tiles
    others = [year for year in range(YEARS[-1] - years + 1, YEARS[-1] + 1) if year not in YEARS]
    _log(f"copying {first} to {len(others)} other years")
    for number, year in enumerate(reversed(others), 1):
        clone_year(running.database, first, year, number)
    dataset = next((Path(os.environ["CROP_ASSETS_DATA"]) / "training_datasets").iterdir())
    for year in others[-8:]:
        shutil.copytree(dataset / str(first), dataset / str(year))
    instance.add_dynamic_partitions(CDL_YEAR, [str(year) for year in others[-8:]])
    found.looks.append(look(instance, 10))
    instance.add_dynamic_partitions(CDL_YEAR, [str(year) for year in others])
    found.counts.append(count(running.database))


def look(instance: dg.DagsterInstance, years: int) -> Look:
    """Ticks of `dataset_sensor` with a new cursor until it has looked at all years, which are done, and one more after
    an event of one year.
    """
    resources = {name: environment_resources()[name] for name in ("recipe", "store")}
    cursor, requested, seconds = None, 0, list[float]()

    def tick() -> dg.SensorResult:
        context = dg.build_sensor_context(instance, cursor, resources=resources, sensor_name="dataset_sensor")
        started = time.perf_counter()
        result = dataset_sensor(context)
        seconds.append(time.perf_counter() - started)
        assert isinstance(result, dg.SensorResult)
        return result

    while requested < years:
        result = tick()
        cursor, more = result.cursor, len(result.run_requests or ())
        if not more:
            raise SystemExit(f"the sensor does not request the datasets of all years: {result}")
        requested += more
    event = dg.AssetMaterialization("filtered_chips", partition=f"{YEARS[-1]}|{tile_names(1)[0]}")
    instance.report_runless_asset_event(event)
    tick()
    return Look(years, seconds[:-1], seconds[-1])


def _log(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m crop_assets_tests.scale")
    parser.add_argument("report", type=Path, help="the page whose measured part is written")
    parser.add_argument(
        "--tiles", type=int, default=491, help="tiles of a year; the published dataset has 491"
    )
    parser.add_argument(
        "--partitions", type=int, default=30_000, help="tiles of all years, in the filled database"
    )
    parser.add_argument("--keep", action="store_true", help="keep the folder with logs and the database")
    arguments = parser.parse_args()
    if importlib.util.find_spec("dagster_postgres") is None:
        raise SystemExit(
            "dagster-postgres is not installed; it is in the extra `many` (requirements-many.lock)"
        )
    warnings.simplefilter("ignore")
    os.environ["SCALE_TILES"] = str(arguments.tiles)
    folder = Path(tempfile.mkdtemp(prefix="scale-"))
    # PostgreSQL's user must get to its own folder
    folder.chmod(0o755)
    try:
        found = measure(folder, arguments.tiles, arguments.partitions)
    finally:
        if arguments.keep:
            _log(f"kept {folder}")
        else:
            shutil.rmtree(folder)
    report.write(arguments.report, found)
    _log(f"wrote {arguments.report}")


if __name__ == "__main__":
    main()
