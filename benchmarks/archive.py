"""An archive of files on loopback that is as slow as a network: by HTTP with ranges, and as a trustless gateway.

`python -m benchmarks.archive FOLDER` serves the files of the folder until it is killed, and prints its address. Each
answer waits 50 ms, each connection carries 20 MB/s, and all of them together what `/link/<MB/s>` sets, which also starts
the counts of `/counts` again. The server takes no part in TLS, and loopback connects at once.
"""

import asyncio
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from resources.ipfs.car import DFS_CONTENT_TYPE, car_of
from resources.ipfs.cid import Cid
from resources.ipfs.unixfs import FileDag
from resources.loopback import free_port

LEAVES = {"256_kib": 1 << 18, "1_mib": 1 << 20}
"""Bytes of a leaf in the two trees of each file."""
LATENCY_SECONDS, CONNECTION_MB = 0.05, 20
_PIECE = 1 << 16
_CREDIT_SECONDS = 0.005


class _Line:
    """Lets bytes pass at a rate, in the order in which they are announced."""

    def __init__(self, megabytes: float) -> None:
        self._seconds = 1e-6 / megabytes if megabytes else 0.0
        self._free_at = time.perf_counter()

    async def carry(self, count: int) -> None:
        # timers are late by up to a millisecond, which later pieces make up for
        now = time.perf_counter()
        self._free_at = max(self._free_at, now - _CREDIT_SECONDS) + count * self._seconds
        if self._free_at > now:
            await asyncio.sleep(self._free_at - now)


class _Network:
    """Delays the answers of an application, and counts them."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.start(0)

    def start(self, megabytes: float) -> None:
        self._link = _Line(megabytes)
        self._requests = self._bytes = 0
        self._clients: set[Any] = set()
        self._cpu = time.process_time()

    def counts(self) -> dict[str, float]:
        """Since the start: requests, connections, bytes of bodies, and the processor's seconds of this process."""
        seconds = time.process_time() - self._cpu
        return {
            "requests": self._requests,
            "connections": len(self._clients),
            "bytes": self._bytes,
            "server_cpu": seconds,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._requests += 1
        self._clients.add(scope["client"])
        connection = _Line(CONNECTION_MB)

        async def slowly(message: Message) -> None:
            if message["type"] != "http.response.body":
                await asyncio.sleep(LATENCY_SECONDS)
                await send(message)
                return
            body = message.get("body", b"")
            for at in range(0, len(body) or 1, _PIECE):
                piece, more = body[at : at + _PIECE], at + _PIECE < len(body)
                await connection.carry(len(piece))
                await self._link.carry(len(piece))
                self._bytes += len(piece)
                await send(message | {"body": piece, "more_body": more or message.get("more_body", False)})

        await self._app(scope, receive, slowly)


class _File(FileResponse):
    # a change of threads for each read
    chunk_size = 1 << 20


def _files(folder: Path) -> Route:
    paths = {path.name: path for path in folder.rglob("HLS.*.tif")}

    # the first part of the path is for caches that must not know the file from before
    def serve(request: Request) -> Response:
        return _File(paths[request.path_params["name"]], media_type="image/tiff")

    return Route("/files/{visit}/{name}", serve)


def trees(path: Path) -> dict[str, FileDag]:
    """The trees of a file, by the size of their leaves."""
    return {name: FileDag(path, size) for name, size in LEAVES.items()}


def _gateway(folder: Path) -> Route:
    found = [
        (dag, LEAVES[leaves]) for path in folder.rglob("HLS.*.tif") for leaves, dag in trees(path).items()
    ]
    roots = {dag.root: (dag, leaf) for dag, leaf in found}
    owners = {cid: dag for dag, _ in found for cid in dag.cids()}

    def serve(request: Request) -> Response:
        cid, query = Cid.parse(request.path_params["cid"]), request.query_params
        if query["format"] == "raw" and cid in owners:
            return Response(owners[cid].block(cid), media_type="application/vnd.ipld.raw")
        if query["format"] == "car" and cid in roots:
            blocks = _covering(*roots[cid], query.get("entity-bytes", "0:*"))
            return StreamingResponse(car_of(cid, blocks), media_type=DFS_CONTENT_TYPE)
        return PlainTextResponse(f"{cid} is not served here", 404)

    return Route("/ipfs/{cid}", serve)


def _covering(dag: FileDag, leaf: int, wanted: str) -> Iterator[tuple[Cid, bytes]]:
    """The blocks that hold the bytes `from:to` of a file, both included, and those above them (IPIP-402)."""
    first, last = wanted.split(":")
    start = int(first) % dag.size if first.startswith("-") else int(first)
    stop = dag.size if last == "*" else int(last) % dag.size + 1 if last.startswith("-") else int(last) + 1
    at = start // leaf * leaf
    for cid, block in dag.blocks(start=start):
        yield cid, block
        at += len(block) if cid.codec == "raw" else 0
        if at >= stop:
            return


def app(folder: Path) -> Starlette:
    network = _Network(Starlette(routes=[_files(folder), _gateway(folder)]))

    async def link(request: Request) -> Response:
        network.start(request.path_params["megabytes"])
        return JSONResponse({})

    async def counts(request: Request) -> Response:
        return JSONResponse(network.counts())

    return Starlette(
        routes=[Route("/link/{megabytes:float}", link), Route("/counts", counts), Mount("/", network)]
    )


def main() -> None:
    served = app(Path(sys.argv[1]))
    with socket.create_server(("127.0.0.1", free_port()), backlog=256) as listener:
        print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        quiet = {"log_level": "warning", "access_log": False, "lifespan": "off", "ws": "none"}
        uvicorn.Server(uvicorn.Config(served, timeout_keep_alive=60, **quiet)).run(sockets=[listener])


if __name__ == "__main__":
    main()
