"""A good gateway, a Kubo node's RPC API, and a faulty one for each way to fail, on one loopback server."""

import asyncio
import email.utils
import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

from crop_assets.demo.gateway import gateway_routes
from resources.ipfs.car import DFS_CONTENT_TYPE, MAX_SECTION, car_of, write_car
from resources.ipfs.unixfs import FileDag

UNKNOWN = "bafkreifjjcie6lypi6ny7amxnfftagclbuxndqonfipmb64f2km2devei4"
RAW = "application/vnd.ipld.raw"


@dataclass
class World:
    """Where the servers are, and what they were asked. The first of `files` is what the faulty ones spoil."""

    files: dict[str, Path]
    address: str = ""
    asked: Counter[str] = field(default_factory=Counter)
    headers: dict[str, str] = field(default_factory=dict)
    """Those of the last request."""
    query: str = ""
    clients: set[int] = field(default_factory=set)
    """Ports that requests came from: one for each connection."""
    most_at_once: Counter[str] = field(default_factory=Counter)
    """Most requests that a server had to answer at the same time, together with the one named `<its name>-too`."""
    ready_at: dict[str, float] = field(default_factory=dict)
    """When a server that asks for a pause has what it is asked for."""

    def __post_init__(self) -> None:
        self.cid = next(iter(self.files))
        self.data = self.files[self.cid].read_bytes()
        self._open: Counter[str] = Counter()
        self._lock = threading.Lock()

    def gateway(self, name: str) -> str:
        return f"{self.address}/{name}"

    def forget(self) -> None:
        for memory in (self.asked, self.headers, self.clients, self.most_at_once, self.ready_at):
            memory.clear()

    def app(self) -> Callable[..., Any]:
        """The ASGI application, which counts and tells how many requests it has at once."""
        dag = FileDag(self.files[self.cid])
        inner = Starlette(
            routes=[
                Mount("/good", routes=gateway_routes(self.files)),
                Mount("/good-too", routes=gateway_routes(self.files)),
                *(Route(f"/{name}/ipfs/{{cid}}", end) for name, end in _faulty(self, dag).items()),
                *_kubo(self, dag),
            ]
        )

        async def counting(scope: dict[str, Any], receive: Any, send: Any) -> None:
            name = scope["path"].split("/")[1]
            with self._lock:
                self.asked[name] += 1
                pair = name.removesuffix("-too")
                self._open[pair] += 1
                self.most_at_once[pair] = max(self.most_at_once[pair], self._open[pair])
                self.headers = {key.decode(): value.decode() for key, value in scope["headers"]}
                self.query = scope["query_string"].decode()
                self.clients.add(scope["client"][1])

            held = [pair]

            async def counting_send(message: dict[str, Any]) -> None:
                # before the end is sent, for the next request may come as soon as it is
                if message["type"] == "http.response.body" and not message.get("more_body"):
                    self._open.subtract(held)
                    held.clear()
                await send(message)

            try:
                await inner(scope, receive, counting_send)
            finally:
                self._open.subtract(held)

        return counting


async def _for_ever(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in itertools.chain(pieces[:-1], itertools.repeat(pieces[-1])):
        yield piece
        await asyncio.sleep(0)


def _car(dag: FileDag, repeats: bool = True, content_type: str = DFS_CONTENT_TYPE) -> Response:
    return StreamingResponse(write_car(dag, repeats), headers={"Content-Type": content_type})


def _stream(pieces: AsyncIterator[bytes] | Iterator[bytes], **headers: str) -> Response:
    return StreamingResponse(pieces, headers={"Content-Type": DFS_CONTENT_TYPE, **headers})


def _faulty(world: World, dag: FileDag) -> dict[str, Callable[..., Any]]:
    def flipped(request: Request) -> Response:
        data = bytearray(b"".join(write_car(dag)))
        data[-1] ^= 1
        return Response(bytes(data), headers={"Content-Type": DFS_CONTENT_TYPE})

    def backwards(request: Request) -> Response:
        first, *others = dag.blocks()
        return _stream(car_of(dag.root, [first, *reversed(others)]))

    def short(request: Request) -> Response:
        return _stream(itertools.islice(write_car(dag), 3))

    async def reset(request: Request) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            for piece in itertools.islice(write_car(dag), 3):
                yield piece
            raise ConnectionAbortedError

        return _stream(pieces())

    def endless(request: Request) -> Response:
        return _stream(_for_ever(*itertools.islice(write_car(dag), 2)))

    def chatty(request: Request) -> Response:
        return _stream(_for_ever(*write_car(dag), b"more"))

    async def dripping(request: Request) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            for piece in write_car(dag):
                for at in range(len(piece)):
                    yield piece[at : at + 1]
                    await asyncio.sleep(0.02)

        return _stream(pieces())

    async def silent(request: Request) -> Response:
        await asyncio.sleep(1.5)
        return _car(dag)

    async def pausing(request: Request) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            for at, piece in enumerate(write_car(dag)):
                if at == 3:
                    await asyncio.sleep(1)
                yield piece

        return _stream(pieces())

    async def lingering(request: Request) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            for piece in write_car(dag):
                yield piece
            await asyncio.sleep(1.5)

        return _stream(pieces())

    async def crowded(request: Request) -> Response:
        await asyncio.sleep(0.05)
        if request.query_params["format"] == "raw":
            return Response(dag.block(dag.root), media_type=RAW)
        return _car(dag)

    def page(request: Request) -> Response:
        return HTMLResponse("<p>please sign in</p>")

    def large(request: Request) -> Response:
        return Response(bytes(MAX_SECTION + 1), media_type=RAW)

    def other(request: Request) -> Response:
        return Response(b"another block", media_type=RAW)

    def first_fails(request: Request) -> Response:
        return PlainTextResponse("down\nfor a while", 500) if world.asked["first-fails"] == 1 else _car(dag)

    def busy(request: Request) -> Response:
        ready = world.ready_at.setdefault("busy", time.monotonic() + 1)
        return (
            _car(dag) if time.monotonic() >= ready else PlainTextResponse("later", 429, {"Retry-After": "1"})
        )

    def busy_until(request: Request) -> Response:
        # dates are in whole seconds
        ready = world.ready_at.setdefault("busy-until", float(int(time.time() + 1.5)))
        if time.time() >= ready:
            return _car(dag)
        return PlainTextResponse("", 503, {"Retry-After": email.utils.formatdate(ready, usegmt=True)})

    def moved(request: Request) -> Response:
        return RedirectResponse(f"/good/ipfs/{dag.root}?format=car", 301)

    def round_and_round(request: Request) -> Response:
        return RedirectResponse(str(request.url), 302)

    def moved_with_endless_words(request: Request) -> Response:
        target = f"/good/ipfs/{dag.root}?format=car"
        return StreamingResponse(_for_ever(b"more"), 302, {"Location": target})

    def answering(status: int, words: str = "", **headers: str) -> Callable[[Request], Response]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return lambda request: PlainTextResponse(words, status, named)

    def redirecting(target: str) -> Callable[[Request], Response]:
        return lambda request: Response(status_code=302, headers={"Location": target})

    def moved_to_another_host(request: Request) -> Response:
        return RedirectResponse(f"http://localhost:{request.url.port}/good/ipfs/{dag.root}?format=car", 302)

    def moved_to_another_network(request: Request) -> Response:
        return RedirectResponse(f"https://169.254.169.254/ipfs/{dag.root}?format=car", 302)

    return {
        "flipped": flipped,
        "backwards": backwards,
        "short": short,
        "reset": reset,
        "endless": endless,
        "chatty": chatty,
        "dripping": dripping,
        "silent": silent,
        "announcing": _announcing(dag),
        "pausing": pausing,
        "lingering": lingering,
        "crowded": crowded,
        "crowded-too": crowded,
        "page": page,
        "large": large,
        "other": other,
        "first-fails": first_fails,
        "busy": busy,
        "busy-until": busy_until,
        "gone": answering(410),
        "missing": answering(404),
        "forbidden": answering(403, "not for you"),
        "unlawful": answering(451, "blocked"),
        "teapot": answering(418),
        "broken": answering(502),
        "timed-out": answering(504, "failed to find the content"),
        "too-many": answering(429, "slow down", Retry_After="7"),
        "too-many-for-ever": answering(429, "", Retry_After="9" * 400),
        "too-early": answering(425),
        "nowhere": answering(302),
        "overflowing-date": answering(503, Retry_After="Mon, 01 Jan 2024 00:00:00 +99999999999999999999"),
        "wordy": lambda request: StreamingResponse(_for_ever(b"no"), 500),
        "moved": moved,
        "moved-with-endless-words": moved_with_endless_words,
        "round": round_and_round,
        "moved-to-another-host": moved_to_another_host,
        "moved-to-another-network": moved_to_another_network,
        "moved-to-another-scheme": redirecting("ftp://127.0.0.1/file"),
        "moved-to-a-user": redirecting("http://me:secret@127.0.0.1/file"),
        "moved-to-nonsense": redirecting("http://[/"),
        "moved-to-no-text": redirecting("/\xff"),
        "moved-to-no-port": redirecting("http://127.0.0.1:99999/file"),
        "moved-to-a-long-name": redirecting(f"http://{'x' * 70}.127.0.0.1/file"),
    }


def _announcing(dag: FileDag) -> Callable[..., Any]:
    """Sends the header of a CAR, and then looks for blocks that it does not have, as Kubo's `dag export`."""

    async def announcing(request: Request) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            yield next(write_car(dag))
            await asyncio.sleep(1.5)

        return _stream(pieces())

    return announcing


def _kubo(world: World, dag: FileDag) -> list[Route]:
    """Nodes as Kubo answers: one with the first file, the others in trouble."""
    not_here = {"Message": "block was not found locally (offline): ipld: could not find it", "Code": 0}

    def export(request: Request) -> Response:
        if request.query_params["arg"] == str(dag.root):
            return _car(dag, repeats=False, content_type="application/octet-stream")
        return Response(json.dumps(not_here), 500, media_type="application/json")

    def block(request: Request) -> Response:
        if request.query_params["arg"] == str(dag.root):
            return PlainTextResponse(dag.block(dag.root) or b"")
        return Response(json.dumps(not_here), 500, media_type="application/json")

    def late(request: Request) -> Response:
        return PlainTextResponse('{"Message":"context deadline exceeded"}', 500)

    def moved(request: Request) -> Response:
        return RedirectResponse(f"/kubo/api/v0/dag/export?arg={dag.root}", 307)

    async def silent(request: Request) -> Response:
        await asyncio.sleep(1.5)
        return Response(json.dumps(not_here), 500, media_type="application/json")

    announcing = _announcing(dag)
    routes = []
    for name, answers in (
        ("kubo", (export, block)),
        ("late-kubo", (late, late)),
        ("moved-kubo", (moved, moved)),
        ("silent-kubo", (silent, silent)),
        ("announcing-kubo", (announcing, silent)),
    ):
        for path, answer in zip(("dag/export", "block/get"), answers, strict=True):
            routes.append(Route(f"/{name}/api/v0/{path}", answer, methods=["POST"]))
    return routes
