"""Measure what Dagster costs at the size of a national dataset: `python -m crop_assets_tests.scale REPORT [--tiles N]`.

Runs the code server, the daemon and the webserver over a PostgreSQL of its own, with the project's graph, whose stages
do no work (`location`). Then copies the rows of a year in the database to other years, and measures the pages of the UI
and the look of `dataset_sensor` again.
"""

import argparse
import contextlib
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
from crop_assets_tests.scale.clone import Counts, clone_year, count
from crop_assets_tests.scale.location import tile_names
from resources.loopback import free_port

ROOT = Path(__file__).resolve().parents[2]
LOCATION = "crop_assets_tests.scale.location"
YEARS = (2021, 2022)
MAX_SECONDS = 7200
TIMES = 5
PAGES = {
    "the asset catalogue": "/assets",
    "the asset graph": "/asset-groups",
    "an asset's partitions": "/assets/filtered_chips?view=partitions",
    "an asset's events": "/assets/filtered_chips?view=events",
    "runs": "/runs",
    "backfills": "/runs/backfills",
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


def backfill(running: Servers, instance: dg.DagsterInstance, job: str, keys: list[str]) -> str:
    """Launch a backfill from the job's page, and wait for its end; returns its id."""
    repository = {"repositoryName": "__repository__", "repositoryLocationName": LOCATION}
    selector = {"partitionSetName": f"{job}_partition_set", "repositorySelector": repository}
    launch = """mutation ($params: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $params) {
        __typename ... on LaunchBackfillSuccess {backfillId} ... on PythonError {message} } }"""
    answer = running.ask(
        {"query": launch, "variables": {"params": {"selector": selector, "partitionNames": keys}}}
    )["data"]["launchPartitionBackfill"]
    if answer["__typename"] != "LaunchBackfillSuccess":
        raise SystemExit(f"{job} was not launched: {answer}")
    deadline = time.monotonic() + MAX_SECONDS
    while True:
        state = instance.get_backfill(answer["backfillId"])
        status = state.status.value if state else ""
        if status == "COMPLETED_SUCCESS":
            return str(answer["backfillId"])
        if status not in ("", "REQUESTED") or time.monotonic() > deadline:
            raise SystemExit(f"the backfill of {job} is {status}: {state.error if state else ''}")
        time.sleep(2)


@dataclass(frozen=True)
class Page:
    """What a page of the UI asks for: the seconds until it is at rest, and its queries, each with seconds and bytes."""

    name: str
    queries: list[tuple[str, float, int]]

    @property
    def slowest(self) -> tuple[str, float, int]:
        return max(self.queries, key=lambda query: query[1])


def pages(running: Servers, backfill_id: str) -> list[Page]:
    """The queries of each page as Chromium sends them, each repeated alone; seconds are medians, the first apart."""
    found = []
    with chromium() as browser:
        for name, path in PAGES.items():
            asked: dict[str, dict[str, Any]] = {}

            def note(request: Any, asked: dict[str, dict[str, Any]] = asked) -> None:
                if request.url.endswith("/graphql") or "/graphql?" in request.url:
                    body = json.loads(request.post_data or "{}")
                    if "mutation" not in body.get("query", "mutation")[:20]:
                        asked.setdefault(body.get("operationName") or "?", body)

            page = browser.new_page(viewport={"width": 1800, "height": 1100})
            page.on("request", note)
            page.goto(running.url + path.format(backfill=backfill_id), wait_until="load", timeout=600_000)
            # a page goes on to ask by what it got
            quiet, before = 0, -1
            while quiet < 5:
                page.wait_for_timeout(1000)
                quiet, before = (quiet + 1 if len(asked) == before else 0), len(asked)
            page.close()
            found.append(Page(name, [(one, *_timed(running, body)) for one, body in asked.items()]))
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


def look(instance: dg.DagsterInstance) -> tuple[float, str]:
    """The seconds of a first look of `dataset_sensor`, and what it says."""
    resources = {name: environment_resources()[name] for name in ("recipe", "store")}
    context = dg.build_sensor_context(instance, resources=resources, sensor_name="dataset_sensor")
    started = time.perf_counter()
    result = dataset_sensor(context)
    seconds = time.perf_counter() - started
    assert isinstance(result, dg.SensorResult)
    return seconds, json.loads(result.cursor or "{}")["told"]


@dataclass
class Measured:
    """What was measured, for the report."""

    tiles: int
    seconds: float
    cpu: dict[str, float]
    runs: int
    before: Counts
    after: Counts
    pages: list[Page]
    look: tuple[float, str]
    years: int = 0
    partitions: int = 0
    filled: Counts | None = None
    filled_pages: list[Page] = field(default_factory=list)
    filled_looks: list[tuple[int, float, str]] = field(default_factory=list)


def measure(folder: Path, tiles: int, partitions: int) -> Measured:
    names = tile_names(tiles)
    with servers(folder) as running, dg.DagsterInstance.get() as instance:
        _log("labels_job")
        backfill(running, instance, "labels_job", [str(year) for year in YEARS])
        if set(instance.get_dynamic_partitions(TILE)) != set(names):
            raise SystemExit("labels_job has not added the tiles")
        before, cpu, started = count(running.database), running.seconds(), time.monotonic()
        runs = len(instance.get_run_ids())
        _log(f"tiles_job: {tiles} tiles of {len(YEARS)} years")
        done = backfill(
            running, instance, "tiles_job", [f"{year}|{tile}" for year in YEARS for tile in names]
        )
        seconds = time.monotonic() - started
        spent = {name: total - cpu[name] for name, total in running.seconds().items()}
        _log("the pages of the UI")
        measured = Measured(
            tiles,
            seconds,
            spent,
            len(instance.get_run_ids()) - runs,
            before,
            count(running.database),
            pages(running, done),
            look(instance),
        )
        fill(running, instance, measured, partitions)
        _log("the pages of the UI again")
        measured.filled_pages = pages(running, done)
        return measured


def fill(running: Servers, instance: dg.DagsterInstance, measured: Measured, partitions: int) -> None:
    """Copy the database's rows of a year to as many years as make up the partitions; and its tables to ten years."""
    first = YEARS[0]
    measured.years = max(-(-partitions // measured.tiles), 10)
    measured.partitions = measured.years * measured.tiles
    others = [year for year in range(YEARS[-1] - measured.years + 1, YEARS[-1] + 1) if year not in YEARS]
    _log(f"copying {first} to {len(others)} other years")
    for number, year in enumerate(others, 1):
        clone_year(running.database, first, year, number)
    dataset = next((Path(os.environ["CROP_ASSETS_DATA"]) / "training_datasets").iterdir())
    for year in others[-8:]:
        shutil.copytree(dataset / str(first), dataset / str(year))
    instance.add_dynamic_partitions(CDL_YEAR, [str(year) for year in others[-8:]])
    measured.filled_looks.append((10, *look(instance)))
    instance.add_dynamic_partitions(CDL_YEAR, [str(year) for year in others])
    measured.filled_looks.append((measured.years, *look(instance)))
    measured.filled = count(running.database)


def _log(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m crop_assets_tests.scale")
    parser.add_argument(
        "--tiles", type=int, default=491, help="tiles of a year; the published dataset has 491"
    )
    parser.add_argument(
        "--partitions", type=int, default=30_000, help="tiles of all years, in the filled database"
    )
    parser.add_argument("--keep", action="store_true", help="keep the folder with logs and the database")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    os.environ["SCALE_TILES"] = str(arguments.tiles)
    folder = Path(tempfile.mkdtemp(prefix="scale-"))
    folder.chmod(0o755)
    try:
        measured = measure(folder, arguments.tiles, arguments.partitions)
    finally:
        if arguments.keep:
            _log(f"kept {folder}")
        else:
            shutil.rmtree(folder)
    print(measured)


if __name__ == "__main__":
    main()
