"""A cluster on one machine: servers on a bridge, and workers in network namespaces that share no folder."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import dagster as dg
import requests
import s3fs

from crop_assets_tests.distributed.world import environment
from resources.loopback import free_port

POSTGRES = Path("/usr/lib/postgresql/15/bin")
PROJECT = Path(__file__).resolve().parents[2]
DAGSTER_YAML = PROJECT / "deploy" / "many" / "dagster.yaml"
BUCKET = "crops"
LOCATION, REPOSITORY = "crop_assets.definitions", "__repository__"
_BRIDGE, _NETWORK = "cropbr0", "10.87.22"
_HOST = f"{_NETWORK}.1"
_S3 = f"{_HOST}:8333"
_KEY, _SECRET = "crops", "a-secret-of-the-drill"
_PATIENCE = 900
"""Many times the seconds that anything here takes."""
Found = TypeVar("Found")


def wait_for(what: str, found: Callable[[], Found], every: float = 0.5) -> Found:
    """What `found` returns once that is true; a server that does not answer yet has not found it."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        with contextlib.suppress(requests.RequestException):
            if result := found():
                return result
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited in vain for {what}")
        time.sleep(every)


def run(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


@dataclass
class Worker:
    """A Celery worker with a folder, a DAGSTER_HOME and a network namespace of its own."""

    number: int
    folder: Path
    variables: Mapping[str, str]
    process: subprocess.Popen[bytes] | None = None

    @property
    def host(self) -> str:
        return f"tiles@worker{self.number}"

    @property
    def namespace(self) -> str:
        return f"crop-worker{self.number}"

    @property
    def link(self) -> str:
        return f"cropveth{self.number}"

    def connect(self) -> None:
        """Give the namespace a link to the bridge."""
        inside = ("ip", "netns", "exec", self.namespace, "ip")
        run("ip", "netns", "add", self.namespace)
        run("ip", "link", "add", self.link, "type", "veth", "peer", "name", "eth0", "netns", self.namespace)
        run("ip", "link", "set", self.link, "master", _BRIDGE, "up")
        run(*inside, "addr", "add", f"{_NETWORK}.{10 + self.number}/24", "dev", "eth0")
        run(*inside, "link", "set", "eth0", "up")
        run(*inside, "link", "set", "lo", "up")

    def start(self) -> None:
        command = ["ip", "netns", "exec", self.namespace, sys.executable, "-m", "celery"]
        command += ["-A", "crop_assets.celery_worker", "worker", "-Q", "dagster", "-n", self.host]
        with (self.folder / "worker.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--loglevel", "INFO"],
                env=self.variables,
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill(self) -> None:
        """With -9, its child too, as a machine that loses power."""
        if self.process:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def cut_off(self) -> None:
        run("ip", "link", "set", self.link, "down")

    def reconnect(self) -> None:
        run("ip", "link", "set", self.link, "up")


@dataclass
class Cluster:
    """The running processes, and how to ask them."""

    url: str
    workers: list[Worker]
    instance: dg.DagsterInstance
    daemon_log: Path
    s3: s3fs.S3FileSystem
    _labels: list[str] = field(default_factory=list)

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        answer = requests.post(
            f"{self.url}/graphql", json={"query": query, "variables": variables}, timeout=60
        )
        answer.raise_for_status()
        data = answer.json()
        assert "errors" not in data, data
        return data["data"]

    def launch(self, job: str, year: int) -> str:
        """Launch a job of a year as the launchpad does; returns the run's id."""
        query = """mutation($p: ExecutionParams!) { launchPipelineExecution(executionParams: $p) {
            __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
        selector = {"repositoryName": REPOSITORY, "repositoryLocationName": LOCATION, "jobName": job}
        tags = [{"key": "dagster/partition", "value": str(year)}]
        params = {"selector": selector, "runConfigData": {}, "executionMetadata": {"tags": tags}}
        answer = self.ask(query, p=params)["launchPipelineExecution"]
        assert answer["__typename"] == "LaunchRunSuccess", answer
        return answer["run"]["runId"]

    def backfill(self, job: str, keys: Sequence[str]) -> str:
        """Launch a backfill as the job's page does; returns its id."""
        query = """mutation($p: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $p) {
            __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }"""
        repository = {"repositoryName": REPOSITORY, "repositoryLocationName": LOCATION}
        selector = {"partitionSetName": f"{job}_partition_set", "repositorySelector": repository}
        params = {"selector": selector, "partitionNames": list(keys), "fromFailure": False, "tags": []}
        answer = self.ask(query, p=params)["launchPartitionBackfill"]
        assert answer["__typename"] == "LaunchBackfillSuccess", answer
        return answer["backfillId"]

    def backfill_assets(self, assets: Sequence[str], keys: Sequence[str]) -> str:
        """Launch a backfill as the asset graph does; returns its id."""
        query = """mutation($p: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $p) {
            __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }"""
        selection = [{"path": [asset]} for asset in assets]
        params = {"assetSelection": selection, "partitionNames": list(keys), "fromFailure": False, "tags": []}
        answer = self.ask(query, p=params)["launchPartitionBackfill"]
        assert answer["__typename"] == "LaunchBackfillSuccess", answer
        return answer["backfillId"]

    def runs(self, backfill: str) -> list[dg.DagsterRun]:
        return self.instance.get_runs(dg.RunsFilter(tags={"dagster/backfill": backfill}))

    def worker_of(self, run: dg.DagsterRun) -> Worker | None:
        """The worker that took a run's task."""
        launcher: Any = self.instance.run_launcher
        task = run.tags.get("dagster-celery/task_id")
        info = launcher.celery.AsyncResult(task).info if task else None
        host = info.get("hostname") if isinstance(info, dict) else None
        return next((worker for worker in self.workers if worker.host == host), None)

    def active_tasks(self) -> dict[str, list[str]]:
        """The ids of each worker's tasks; a worker that does not answer is missing."""
        launcher: Any = self.instance.run_launcher
        answers = launcher.celery.control.inspect(timeout=3).active() or {}
        return {host: [task["id"] for task in tasks] for host, tasks in answers.items()}

    def files(self) -> dict[str, tuple[int, str, str]]:
        """Size, ETag and time of each object, by its path below the store."""
        prefix = f"{BUCKET}/store/"
        self.s3.invalidate_cache()
        found = self.s3.find(f"{BUCKET}/store", detail=True)
        return {
            name.removeprefix(prefix): (about["size"], about["ETag"], str(about["LastModified"]))
            for name, about in found.items()
        }

    def read(self, names: Sequence[str]) -> dict[str, bytes]:
        prefix = f"{BUCKET}/store/"
        found = self.s3.cat([prefix + name for name in names])
        return {name.removeprefix(prefix): content for name, content in found.items()}


@contextlib.contextmanager
def cluster(folder: Path, site: Path, count: int, tiles_per_run: int) -> Iterator[Cluster]:
    """All servers, and `count` workers; `site` is copied to each. Needs root, for the namespaces."""
    with contextlib.ExitStack() as stack:
        stack.callback(_remove_network, count)
        _remove_network(count)
        run("ip", "link", "add", _BRIDGE, "type", "bridge")
        run("ip", "addr", "add", f"{_HOST}/24", "dev", _BRIDGE)
        run("ip", "link", "set", _BRIDGE, "up")
        _start_postgres(stack, folder / "postgres")
        _start(
            stack, folder / "redis", ["redis-server", "--bind", _HOST, "--save", "", "--protected-mode", "no"]
        )
        _start_s3(stack, folder / "s3")

        shared = {
            **{name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ},
            "PYTHONPATH": str(PROJECT),
            "DAGSTER_POSTGRES_HOST": _HOST,
            "DAGSTER_POSTGRES_USER": "postgres",
            "DAGSTER_POSTGRES_PASSWORD": "none",
            "DAGSTER_POSTGRES_DB": "postgres",
            "DAGSTER_CELERY_BROKER": f"redis://{_HOST}:6379/0",
            "DAGSTER_CELERY_BACKEND": f"redis://{_HOST}:6379/1",
            "CROP_ASSETS_DATA": f"s3://{BUCKET}/store",
            "CROP_ASSETS_TILES_PER_RUN": str(tiles_per_run),
            "AWS_ACCESS_KEY_ID": _KEY,
            "AWS_SECRET_ACCESS_KEY": _SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://{_S3}",
            "AWS_S3_ENDPOINT": _S3,
            "AWS_VIRTUAL_HOSTING": "FALSE",
            "AWS_HTTPS": "NO",
        }
        head = _machine(folder / "head", site, shared)
        os.environ.update(head)
        instance = stack.enter_context(dg.DagsterInstance.from_config(head["DAGSTER_HOME"]))
        s3 = s3fs.S3FileSystem(
            key=_KEY, secret=_SECRET, endpoint_url=f"http://{_S3}", use_listings_cache=False
        )
        wait_for("the object store", lambda: _try(lambda: s3.mkdir(BUCKET)))

        port, code = free_port(), free_port()
        workspace = folder / "workspace.yaml"
        where = {"host": "127.0.0.1", "port": code, "location_name": LOCATION}
        workspace.write_text(json.dumps({"load_from": [{"grpc_server": where}]}))
        scripts = Path(sys.executable).parent
        at = ["-w", str(workspace)]
        _start(
            stack,
            folder / "code",
            [scripts / "dagster", "api", "grpc", "-h", "127.0.0.1", "-p", str(code), "-m", LOCATION],
            head,
        )
        health = [scripts / "dagster", "api", "grpc-health-check", "-p", str(code)]
        wait_for(
            "the code server",
            lambda: subprocess.run(health, env=head, capture_output=True, check=False).returncode == 0,
        )
        web = [scripts / "dagster-webserver", *at, "-h", "127.0.0.1", "-p", str(port)]
        _start(stack, folder / "web", web, head)
        _start(stack, folder / "daemon", [scripts / "dagster-daemon", "run", *at], head)
        workers = []
        for number in range(1, count + 1):
            variables = _machine(folder / f"worker{number}", site, shared)
            worker = Worker(number, folder / f"worker{number}", variables)
            worker.connect()
            stack.callback(worker.kill)
            worker.start()
            workers.append(worker)
        running = Cluster(f"http://127.0.0.1:{port}", workers, instance, folder / "daemon" / "output.log", s3)
        wait_for("the webserver", lambda: requests.get(f"{running.url}/server_info", timeout=30))
        wait_for("the workers", lambda: len(running.active_tasks()) == count)
        yield running


def _machine(folder: Path, site: Path, shared: Mapping[str, str]) -> dict[str, str]:
    """Lay out a machine's own folders; returns its variables. Its copy of the site's files is hard-linked."""
    for name in ("home", "tmp"):
        (folder / name).mkdir(parents=True)
    shutil.copytree(site, folder / "site", copy_function=os.link)
    shutil.copy(DAGSTER_YAML, folder / "home" / "dagster.yaml")
    own = {"DAGSTER_HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp")}
    return {**shared, **own, **environment(folder / "site")}


def _try(action: Callable[[], Any]) -> bool:
    try:
        action()
    except OSError:
        return False
    return True


def _start(
    stack: contextlib.ExitStack,
    folder: Path,
    command: Sequence[str | Path],
    variables: Mapping[str, str] | None = None,
) -> None:
    """Run a server for as long as the stack lasts; its output is in output.log of its folder."""
    folder.mkdir(exist_ok=True)
    with (folder / "output.log").open("wb") as log:
        process = subprocess.Popen(
            command, env=variables, cwd=folder, stdout=log, stderr=log, start_new_session=True
        )

    def end() -> None:
        # nothing of it is kept
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    stack.callback(end)


def _start_postgres(stack: contextlib.ExitStack, folder: Path) -> None:
    folder.mkdir()
    shutil.chown(folder, "postgres", "postgres")
    # PostgreSQL does not run as root
    as_postgres = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
    data = folder / "data"
    run(*as_postgres, POSTGRES / "initdb", data, "--username=postgres", "--auth=trust", "--no-sync")
    with (data / "pg_hba.conf").open("a") as rules:
        rules.write(f"host all all {_NETWORK}.0/24 trust\n")
    command = [*as_postgres, str(POSTGRES / "postgres"), "-D", str(data)]
    command += [f"--listen_addresses={_HOST}", f"--unix_socket_directories={folder}", "--max_connections=200"]
    _start(stack, folder, command)
    ready = [POSTGRES / "pg_isready", "-q", "-h", _HOST]
    wait_for("PostgreSQL", lambda: subprocess.run(ready, check=False).returncode == 0)


def _start_s3(stack: contextlib.ExitStack, folder: Path) -> None:
    (folder / "data").mkdir(parents=True)
    keys = [{"accessKey": _KEY, "secretKey": _SECRET}]
    actions = ["Admin", "Read", "List", "Tagging", "Write"]
    identities = [{"name": "crops", "credentials": keys, "actions": actions}]
    (folder / "s3.json").write_text(json.dumps({"identities": identities}))
    weed = str(Path(sys.executable).with_name("weed"))
    command = [
        weed,
        "server",
        f"-dir={folder / 'data'}",
        f"-ip={_HOST}",
        f"-ip.bind={_HOST}",
        "-filer",
        "-s3",
    ]
    command += [f"-s3.config={folder / 's3.json'}", "-s3.port=8333", "-master.volumeSizeLimitMB=512"]
    _start(stack, folder, command)


def _remove_network(count: int) -> None:
    for number in range(1, count + 1):
        subprocess.run(["ip", "netns", "del", f"crop-worker{number}"], capture_output=True, check=False)
        subprocess.run(["ip", "link", "del", f"cropveth{number}"], capture_output=True, check=False)
    subprocess.run(["ip", "link", "del", _BRIDGE], capture_output=True, check=False)
