"""An archive of files on loopback that is as slow as a network: by HTTP with ranges, and as a trustless gateway.

`python -m benchmarks.archive FOLDER` prints its address and serves the files of the folder until it is killed. Each
answer takes 50 ms, a connection carries 20 MB/s, and all of them together what `/link/<MB/s>` sets, which also resets
the counts of `/counts`. Unlike on the internet, connecting takes no time, and there is no TLS.
"""

import asyncio
import socket
import sys
import time
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from crop_assets.demo.gateway import gateway_routes
from resources.ipfs.unixfs import file_cid
from resources.loopback import free_port

LEAVES = {"256_kib": 1 << 18, "1_mib": 1 << 20}
"""Bytes of a leaf in each of two trees of the files, by their kind."""
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
                await send({**message, "body": piece, "more_body": more or message.get("more_body", False)})

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


def _gateways(folder: Path) -> list[Mount]:
    """A gateway for the trees of each kind, at `/<kind>/ipfs/<cid>`."""
    paths = sorted(folder.rglob("HLS.*.tif"))
    return [
        Mount(f"/{kind}", routes=gateway_routes({file_cid(path, size): path for path in paths}, size))
        for kind, size in LEAVES.items()
    ]


def app(folder: Path) -> Starlette:
    network = _Network(Starlette(routes=[_files(folder), *_gateways(folder)]))

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
        config = uvicorn.Config(
            served, log_level="warning", access_log=False, lifespan="off", ws="none", timeout_keep_alive=60
        )
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
