import asyncio
import email.utils
import hashlib
import itertools
import socket
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import dagster as dg
import pytest
import requests
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

from crop_assets.demo.gateway import gateway_routes
from resources.errors import IntegrityError, NotFoundError, UnavailableError
from resources.ipfs import resource as resource_module
from resources.ipfs.car import CONTENT_TYPE, DFS_CONTENT_TYPE, read_car, write_car
from resources.ipfs.cid import Cid
from resources.ipfs.resource import IpfsContent, Retrieved
from resources.ipfs.unixfs import FileDag, file_cid

DATA = hashlib.shake_256(b"one band").digest(700_000)
UNKNOWN = "bafkreifjjcie6lypi6ny7amxnfftagclbuxndqonfipmb64f2km2devei4"
LIMIT = 1 << 20


@dataclass
class World:
    """One server on loopback: a gateway at /good, and a faulty one for each way to fail."""

    address: str
    cid: str
    files: dict[str, Path]
    asked: Counter[str] = field(default_factory=Counter)
    headers: dict[str, str] = field(default_factory=dict)

    def gateway(self, name: str) -> str:
        return f"{self.address}/{name}"


def _faulty_routes(world: World, dag: FileDag) -> list[Route]:
    def car(content_type: str = DFS_CONTENT_TYPE, repeats: bool = True) -> Response:
        return StreamingResponse(write_car(dag, repeats), headers={"Content-Type": content_type})

    def stream(pieces: AsyncIterator[bytes] | Iterator[bytes], **headers: str) -> Response:
        return StreamingResponse(pieces, headers={"Content-Type": DFS_CONTENT_TYPE, **headers})

    def flipped(request: Request) -> Response:
        data = bytearray(b"".join(write_car(dag)))
        data[-1] ^= 1
        return Response(bytes(data), headers={"Content-Type": DFS_CONTENT_TYPE})

    def short(request: Request) -> Response:
        return stream(itertools.islice(write_car(dag), 3))

    async def reset(request: Request) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            for piece in itertools.islice(write_car(dag), 3):
                yield piece
            raise ConnectionAbortedError

        return stream(pieces())

    async def endless(request: Request) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            first, second, *_ = write_car(dag)
            yield first
            while True:
                yield second
                await asyncio.sleep(0)

        return stream(pieces())

    async def chatty(request: Request) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            for piece in write_car(dag):
                yield piece
            while True:
                yield b"more"
                await asyncio.sleep(0)

        return stream(pieces())

    async def dripping(request: Request) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            for piece in write_car(dag):
                for at in range(len(piece)):
                    yield piece[at : at + 1]
                    await asyncio.sleep(0.02)

        return stream(pieces())

    async def silent(request: Request) -> Response:
        await asyncio.sleep(1.5)
        return car()

    def page(request: Request) -> Response:
        return HTMLResponse("<p>please sign in</p>")

    def first_fails(request: Request) -> Response:
        return PlainTextResponse("down\nfor a while", 500) if world.asked["/first-fails"] == 1 else car()

    def first_is_too_many(request: Request) -> Response:
        return (
            PlainTextResponse("", 429, {"Retry-After": "1"})
            if world.asked["/first-is-too-many"] == 1
            else car()
        )

    def busy_until(request: Request) -> Response:
        if world.asked["/busy-until"] > 1:
            return car()
        return PlainTextResponse(
            "", 503, {"Retry-After": email.utils.formatdate(time.time() + 2, usegmt=True)}
        )

    def gone(request: Request) -> Response:
        return PlainTextResponse("", 410)

    def forbidden(request: Request) -> Response:
        return PlainTextResponse("not for you", 403)

    def broken(request: Request) -> Response:
        return PlainTextResponse("", 502)

    def moved(request: Request) -> Response:
        return RedirectResponse(f"/good/ipfs/{dag.root}?format=car", 301)

    def round_and_round(request: Request) -> Response:
        return RedirectResponse(str(request.url), 302)

    async def moved_with_endless_words(request: Request) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            while True:
                yield b"more"
                await asyncio.sleep(0)

        return StreamingResponse(pieces(), 302, {"Location": f"/good/ipfs/{dag.root}?format=car"})

    def moved_to_ftp(request: Request) -> Response:
        return RedirectResponse("ftp://127.0.0.1/file", 302)

    def moved_to_user(request: Request) -> Response:
        return RedirectResponse("http://me:secret@127.0.0.1/file", 302)

    def moved_to_nonsense(request: Request) -> Response:
        return RedirectResponse("http://[/", 302)

    def version(request: Request) -> Response:
        return Response('{"Version":"0.30.0"}', media_type="application/json")

    def export(request: Request) -> Response:
        if request.query_params["arg"] == str(dag.root):
            return car(content_type="application/octet-stream", repeats=False)
        return Response('{"Message":"ipld: could not find it","Code":0}', 500, media_type="application/json")

    def late_export(request: Request) -> Response:
        return PlainTextResponse('{"Message":"context deadline exceeded"}', 500)

    gateways = {
        "flipped": flipped,
        "short": short,
        "reset": reset,
        "endless": endless,
        "chatty": chatty,
        "dripping": dripping,
        "silent": silent,
        "page": page,
        "first-fails": first_fails,
        "first-is-too-many": first_is_too_many,
        "busy-until": busy_until,
        "gone": gone,
        "forbidden": forbidden,
        "broken": broken,
        "moved": moved,
        "moved-with-endless-words": moved_with_endless_words,
        "round": round_and_round,
        "moved-to-ftp": moved_to_ftp,
        "moved-to-user": moved_to_user,
        "moved-to-nonsense": moved_to_nonsense,
    }
    routes = [Route(f"/{name}/ipfs/{{cid}}", endpoint) for name, endpoint in gateways.items()]
    for name, endpoint in (("kubo", export), ("late-kubo", late_export)):
        routes.append(Route(f"/{name}/api/v0/version", version, methods=["POST"]))
        routes.append(Route(f"/{name}/api/v0/dag/export", endpoint, methods=["POST"]))
    return routes


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("served")
    path = folder / "B02.tif"
    path.write_bytes(DATA)
    files = {file_cid(path): path}
    for i in range(8):
        other = folder / f"{i}.tif"
        other.write_bytes(hashlib.shake_256(bytes([i])).digest(300_000 + i))
        files[file_cid(other)] = other
    world = World("", file_cid(path), files)
    app = Starlette(
        routes=[Mount("/good", routes=gateway_routes(files)), *_faulty_routes(world, FileDag(path))]
    )

    async def counted(scope: dict, receive: object, send: object) -> None:  # type: ignore[type-arg]
        if scope["type"] == "http":
            world.asked["/" + scope["path"].split("/")[1]] += 1
            world.headers = {key.decode(): value.decode() for key, value in scope["headers"]}
        await app(scope, receive, send)  # type: ignore[arg-type]

    config = uvicorn.Config(
        counted,
        port=0,
        log_level="critical",
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=1,
    )
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run)
    thread.start()
    while not running.started:
        time.sleep(0.01)
    port = running.servers[0].sockets[0].getsockname()[1]
    world.address = f"http://127.0.0.1:{port}"
    yield world
    running.should_exit = True
    thread.join()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource_module, "_BACKOFF_SECONDS", 0.01)


@pytest.fixture
def world(server: World) -> World:
    server.asked.clear()
    return server


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def content(
    *gateways: str, kubo_api: str = "", attempts: int = 2, timeout_seconds: float = 10
) -> IpfsContent:
    return IpfsContent(
        kubo_api=kubo_api, gateways=list(gateways), attempts=attempts, timeout_seconds=timeout_seconds
    )


def closed_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_a_file_from_a_gateway(world: World, out: Path) -> None:
    got = content(world.gateway("good")).fetch(world.cid, out, LIMIT)
    assert out.read_bytes() == DATA
    assert got == Retrieved(world.gateway("good"), len(DATA), got.seconds)
    assert 0 < got.seconds < 5
    assert world.headers["accept"] == "application/vnd.ipld.car; version=1; order=dfs; dups=y"


def test_nothing_is_contacted_before_a_fetch(world: World) -> None:
    content(world.gateway("good"), kubo_api=world.gateway("kubo"))
    assert not world.asked


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("flipped", "are not that block"),
        ("short", "the stream ended at byte 262144 of the file"),
        ("endless", "was sent"),
        ("page", "answered with 'text/html"),
    ],
)
def test_wrong_bytes_are_an_integrity_error(world: World, out: Path, fault: str, why: str) -> None:
    with pytest.raises(IntegrityError, match=why) as error:
        content(world.gateway(fault), attempts=1).fetch(world.cid, out, LIMIT)
    assert world.cid in str(error.value)
    assert world.gateway(fault) in str(error.value)
    assert not out.exists() or DATA.startswith(out.read_bytes())


@pytest.mark.parametrize(
    "fault", ["flipped", "short", "reset", "endless", "page", "forbidden", "broken", "gone"]
)
def test_the_next_gateway_makes_good(world: World, out: Path, fault: str) -> None:
    said: list[str] = []
    got = content(world.gateway(fault), world.gateway("good")).fetch(world.cid, out, LIMIT, said.append)
    assert got.source == world.gateway("good")
    assert out.read_bytes() == DATA
    assert len(said) == 1
    assert world.gateway(fault) in said[0]


def test_what_a_gateway_sends_after_the_file_does_no_harm(world: World, out: Path) -> None:
    assert content(world.gateway("chatty")).fetch(world.cid, out, LIMIT).bytes == len(DATA)
    assert out.read_bytes() == DATA


def test_a_file_larger_than_allowed(world: World, out: Path) -> None:
    with pytest.raises(IntegrityError, match="700000 bytes, more than the 699999 allowed"):
        content(world.gateway("good")).fetch(world.cid, out, len(DATA) - 1)
    assert out.read_bytes() == b""


def test_no_source_has_it(world: World, out: Path) -> None:
    with pytest.raises(NotFoundError) as error:
        content(world.gateway("good"), world.gateway("gone")).fetch(UNKNOWN, out, LIMIT)
    assert UNKNOWN in str(error.value)
    assert f"{world.gateway('good')}: HTTP 404 {UNKNOWN} is not served here" in str(error.value)
    assert f"{world.gateway('gone')}: HTTP 410" in str(error.value)
    assert world.asked == {"/good": 1, "/gone": 1}
    assert not out.exists()


def test_a_source_that_may_have_it_later_outweighs_one_that_has_it_not(world: World, out: Path) -> None:
    with pytest.raises(UnavailableError, match="HTTP 502"):
        content(world.gateway("gone"), world.gateway("broken")).fetch(UNKNOWN, out, LIMIT)
    assert world.asked == {"/gone": 1, "/broken": 2}


def test_a_refusal_is_not_repeated(world: World, out: Path) -> None:
    with pytest.raises(UnavailableError, match="HTTP 403 not for you"):
        content(world.gateway("forbidden")).fetch(world.cid, out, LIMIT)
    assert world.asked["/forbidden"] == 1


def test_a_server_error_is_tried_again(world: World, out: Path) -> None:
    said: list[str] = []
    content(world.gateway("first-fails")).fetch(world.cid, out, LIMIT, said.append)
    assert out.read_bytes() == DATA
    assert said == [f"IPFS {world.cid}: {world.gateway('first-fails')}: HTTP 500 down for a while"]


@pytest.mark.parametrize("fault", ["first-is-too-many", "busy-until"])
def test_retry_after_is_waited_for(world: World, out: Path, fault: str) -> None:
    got = content(world.gateway(fault)).fetch(world.cid, out, LIMIT)
    assert out.read_bytes() == DATA
    assert got.seconds >= 1
    assert world.asked["/" + fault] == 2


@pytest.mark.parametrize("fault", ["dripping", "silent"])
def test_a_slow_source_is_asked_last_for_a_while(world: World, out: Path, fault: str) -> None:
    ipfs = content(world.gateway(fault), world.gateway("good"), timeout_seconds=0.6)
    said: list[str] = []
    ipfs.fetch(world.cid, out, LIMIT, said.append)
    assert "too slow" in said[0]
    ipfs.fetch(world.cid, out, LIMIT, said.append)
    assert len(said) == 1
    assert world.asked == {"/" + fault: 1, "/good": 2}


def test_an_unreachable_gateway_is_left_out_for_a_while(world: World, out: Path) -> None:
    dead = closed_port()
    ipfs = content(dead, world.gateway("good"))
    said: list[str] = []
    ipfs.fetch(world.cid, out, LIMIT, said.append)
    assert out.read_bytes() == DATA
    assert len(said) == 1
    assert f"{dead}: cannot be reached (ConnectionRefusedError" in said[0]
    ipfs.fetch(world.cid, out, LIMIT, said.append)
    assert len(said) == 1
    with pytest.raises(UnavailableError, match=r"unreachable lately, asked again in \d+ s"):
        ipfs.fetch(UNKNOWN, out, LIMIT)


def test_nothing_reachable(out: Path) -> None:
    with pytest.raises(UnavailableError, match="cannot be reached"):
        content(closed_port()).fetch(UNKNOWN, out, LIMIT)


def test_no_source_at_all(out: Path) -> None:
    with pytest.raises(UnavailableError, match="there is no source to ask"):
        content(kubo_api=closed_port()).fetch(UNKNOWN, out, LIMIT)


@pytest.mark.parametrize("gateway", ["moved", "moved-with-endless-words"])
def test_a_redirect_is_followed(world: World, out: Path, gateway: str) -> None:
    content(world.gateway(gateway)).fetch(world.cid, out, LIMIT)
    assert out.read_bytes() == DATA


@pytest.mark.parametrize("fault", ["round", "moved-to-ftp", "moved-to-user", "moved-to-nonsense"])
def test_a_redirect_elsewhere_is_not(world: World, out: Path, fault: str) -> None:
    with pytest.raises(UnavailableError, match="redirect") as error:
        content(world.gateway(fault)).fetch(world.cid, out, LIMIT)
    assert "secret" not in str(error.value)


def test_no_credentials_are_sent(
    world: World, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    for gateway in ("good", "moved"):
        content(world.gateway(gateway)).fetch(world.cid, out, LIMIT)
        assert "authorization" not in world.headers


@pytest.mark.parametrize("address", ["ftp://127.0.0.1", "127.0.0.1:5001", "http://me:secret@127.0.0.1", ""])
def test_an_address_that_is_none(world: World, out: Path, address: str) -> None:
    with pytest.raises(ValueError, match=r"gateways: .* must be an http or https URL") as error:
        content(address).fetch(world.cid, out, LIMIT)
    assert "secret" not in str(error.value)


def test_a_malformed_cid_is_refused_before_anyone_is_asked(world: World, out: Path) -> None:
    with pytest.raises(IntegrityError, match="'bafy' is not a CID"):
        content(world.gateway("good")).fetch("bafy", out, LIMIT)
    assert not world.asked


def test_a_kubo_node_is_asked_first(world: World, out: Path) -> None:
    ipfs = content(world.gateway("good"), kubo_api=world.gateway("kubo"))
    for _ in range(2):
        assert ipfs.fetch(world.cid, out, LIMIT).source == world.gateway("kubo")
        assert out.read_bytes() == DATA
    assert world.asked == {"/kubo": 3}, "its version once, two files"


def test_a_kubo_node_without_the_file(world: World, out: Path) -> None:
    ipfs = content(world.gateway("good"), kubo_api=world.gateway("kubo"))
    other = list(world.files)[1]
    assert ipfs.fetch(other, out, LIMIT).source == world.gateway("good")
    with pytest.raises(NotFoundError, match="could not find it"):
        ipfs.fetch(UNKNOWN, out, LIMIT)


def test_a_kubo_node_in_trouble_may_have_it_later(world: World, out: Path) -> None:
    with pytest.raises(UnavailableError, match="deadline exceeded"):
        content(kubo_api=world.gateway("late-kubo"), attempts=1).fetch(world.cid, out, LIMIT)


def test_what_is_no_kubo_node_is_asked_once(world: World, out: Path) -> None:
    ipfs = content(world.gateway("good"), kubo_api=world.gateway("good"))
    said: list[str] = []
    for _ in range(2):
        ipfs.fetch(world.cid, out, LIMIT, said.append)
    assert said == [f"IPFS: no Kubo node answers at {world.gateway('good')}; asking gateways only"]
    assert world.asked == {"/good": 3}


def test_threads_fetch_at_once(world: World, tmp_path: Path) -> None:
    ipfs = content(closed_port(), world.gateway("good"), kubo_api=closed_port())
    names = list(world.files) * 3

    def fetch(i: int) -> Path:
        ipfs.fetch(names[i], tmp_path / str(i), LIMIT)
        return tmp_path / str(i)

    with ThreadPoolExecutor(8) as pool:
        for name, path in zip(names, pool.map(fetch, range(len(names))), strict=True):
            assert path.read_bytes() == world.files[name].read_bytes()


def test_an_asset_uses_it(world: World, out: Path) -> None:
    @dg.asset
    def band(ipfs: IpfsContent) -> int:
        return ipfs.fetch(world.cid, out, LIMIT).bytes

    result = dg.materialize([band], resources={"ipfs": content(world.gateway("good"))})
    assert result.output_for_node("band") == len(DATA)


def test_the_demo_gateway_serves_cars_and_blocks(world: World) -> None:
    url = f"{world.gateway('good')}/ipfs/{world.cid}"
    answer = requests.get(url, headers={"Accept": CONTENT_TYPE}, timeout=5)
    assert answer.headers["Content-Type"] == DFS_CONTENT_TYPE
    assert answer.headers["Content-Disposition"] == f'attachment; filename="{world.cid}.car"'
    blocks = list(read_car([answer.content]))
    assert blocks[0][0] == Cid.parse(world.cid)
    assert len(blocks) == 4
    for cid, block in blocks:
        answer = requests.get(f"{world.gateway('good')}/ipfs/{cid}?format=raw", timeout=5)
        assert answer.headers["Content-Type"] == "application/vnd.ipld.raw"
        assert answer.content == block


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("{cid}?format=car", 200),
        ("{cid}?format=raw", 200),
        ("{cid}", 406),
        ("{cid}?format=tar", 406),
        (UNKNOWN + "?format=car", 404),
        (UNKNOWN + "?format=raw", 404),
        ("{cid}/B02.tif?format=car", 404),
        ("bafy?format=car", 400),
    ],
)
def test_the_demo_gateway_says_what_it_does_not_serve(world: World, path: str, status: int) -> None:
    url = f"{world.gateway('good')}/ipfs/{path.format(cid=world.cid)}"
    get = requests.get(url, timeout=5)
    head = requests.head(url, timeout=5)
    assert (get.status_code, head.status_code) == (status, status)
    assert get.headers["Content-Type"] == head.headers["Content-Type"]
    assert head.content == b""


def test_the_demo_gateway_refuses_a_file_under_a_wrong_cid(world: World) -> None:
    with pytest.raises(ValueError, match="its CID is"):
        gateway_routes({UNKNOWN: world.files[world.cid]})
