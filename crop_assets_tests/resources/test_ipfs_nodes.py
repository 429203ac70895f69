import ast
import contextlib
import gc
import io
import itertools
import json
import os
import resource
import socket
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
import trustme
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route
from werkzeug.serving import make_server
from werkzeug.wrappers import Request as WsgiRequest
from werkzeug.wrappers import Response as WsgiResponse

from crop_assets.demo.gateway import gateway_routes
from crop_assets_tests.resources.gateways import RAW, UNKNOWN, World
from crop_assets_tests.resources.loopback import closed_port, serving
from resources.addresses import safe_elsewhere
from resources.errors import (
    CutShortError,
    ForbiddenError,
    IntegrityError,
    NotAFileError,
    NotFoundError,
    RefusedError,
    ResourceError,
    SlowError,
    TryAgainError,
    UnreachableError,
)
from resources.ipfs.car import CONTENT_TYPE, DFS_CONTENT_TYPE, MAX_SECTION, read_car, write_car
from resources.ipfs.cid import Cid
from resources.ipfs.nodes import Gateway, IpfsCommand, IpfsNode, IpfsSource, KuboNode
from resources.ipfs.unixfs import FileDag
from resources.resume import PartialFiles
from resources.sources import FileRequest

LIMIT = 1 << 20
MIB = 1 << 20


def gateway(world: World, name: str, timeout_seconds: float = 10) -> Gateway:
    return Gateway(world.gateway(name), timeout_seconds)


def kubo(world: World, name: str = "kubo", timeout_seconds: float = 10) -> KuboNode:
    return KuboNode(world.gateway(name), timeout_seconds)


def whole_car(node: IpfsNode, cid: str, offset: int = 0) -> bytes:
    with node.car(Cid.parse(cid), offset) as pieces:
        return b"".join(pieces)


def fetch(
    node: IpfsNode,
    cid: str,
    out: Path,
    partials: PartialFiles,
    most: int = LIMIT,
    progress: list[int] | None = None,
) -> bool:
    wanted = FileRequest("scene/B02.tif", cid, "", most)
    told = [] if progress is None else progress
    return IpfsSource(node).fetch(wanted, out, partials, told.append)


def nothing_wrong_at(out: Path) -> bool:
    return not out.exists()


# Gateways


def test_a_gateway_is_asked_for_a_whole_file_as_a_car(world: World) -> None:
    car = whole_car(gateway(world, "good"), world.cid)
    assert car == b"".join(write_car(FileDag(world.files[world.cid])))
    assert world.headers["accept"] == "application/vnd.ipld.car; version=1; order=dfs; dups=y"
    assert world.headers["accept-encoding"] == "identity"
    assert world.query == "format=car&dag-scope=entity"


def test_a_gateway_is_asked_for_what_is_missing_alone(world: World) -> None:
    car = whole_car(gateway(world, "good"), world.cid, offset=300_000)
    assert world.query == "format=car&dag-scope=entity&entity-bytes=300000%3A%2A"
    blocks = list(read_car([car]))
    assert [len(block) for _, block in blocks[1:]] == [262_144, 700_000 - 2 * 262_144]


def test_a_gateway_is_asked_for_a_single_block(world: World) -> None:
    root = Cid.parse(world.cid)
    assert root.matches(gateway(world, "good").block(root))
    assert world.headers["accept"] == RAW
    assert world.query == "format=raw"


def test_a_node_is_not_contacted_before_it_is_asked(world: World) -> None:
    gateway(world, "good").car(Cid.parse(world.cid), 0)
    kubo(world)
    assert not world.asked


@pytest.mark.parametrize(
    ("fault", "expected", "why"),
    [
        ("missing", NotFoundError, "answered 404"),
        ("gone", NotFoundError, "answered 410"),
        ("broken", TryAgainError, "answered 502"),
        ("timed-out", SlowError, "answered 504 failed to find the content"),
        ("too-many", TryAgainError, "answered 429 slow down"),
        ("too-early", TryAgainError, "answered 425"),
        ("wordy", TryAgainError, "answered 500 no"),
        ("first-fails", TryAgainError, "answered 500 down for a while"),
        ("forbidden", ForbiddenError, "answered 403: not allowed with these credentials: not for you"),
        ("unlawful", RefusedError, "answered 451 blocked"),
        ("teapot", RefusedError, "answered 418"),
        ("nowhere", RefusedError, "answered 302"),
        ("page", NotAFileError, "answered with a web page instead of application/vnd.ipld."),
    ],
)
@pytest.mark.parametrize("what", ["car", "block"])
def test_what_the_answer_of_a_gateway_means(
    world: World, fault: str, expected: type[ResourceError], why: str, what: str
) -> None:
    node = gateway(world, fault)
    with pytest.raises(ResourceError, match=why) as error:
        whole_car(node, world.cid) if what == "car" else node.block(Cid.parse(world.cid))
    assert type(error.value) is expected
    assert world.asked == {fault: 1}


@pytest.mark.parametrize(("fault", "seconds"), [("too-many", 7), ("too-many-for-ever", 60), ("broken", 0)])
def test_a_pause_that_a_gateway_asks_for_is_told_and_bounded(
    world: World, fault: str, seconds: float
) -> None:
    with pytest.raises(TryAgainError) as error:
        whole_car(gateway(world, fault), world.cid)
    assert error.value.retry_after == seconds


def test_a_pause_that_cannot_be_read_is_none(world: World) -> None:
    with pytest.raises(TryAgainError) as error:
        whole_car(gateway(world, "overflowing-date"), world.cid)
    assert error.value.retry_after == 0


@pytest.mark.parametrize("fault", ["dripping", "silent"])
def test_a_gateway_that_keeps_silent_or_drips_is_slow(world: World, fault: str) -> None:
    with pytest.raises(SlowError, match="is too slow"):
        whole_car(gateway(world, fault, timeout_seconds=0.3), world.cid)


@pytest.mark.parametrize("node", [Gateway, KuboNode])
def test_a_node_that_is_not_there_is_unreachable(node: Callable[[str, float], IpfsNode]) -> None:
    with pytest.raises(UnreachableError, match=r"cannot be reached \(ConnectionRefusedError"):
        whole_car(node(closed_port(), 5), UNKNOWN)


@pytest.mark.parametrize("name", ["moved", "moved-with-endless-words", "moved-to-another-host"])
def test_a_redirect_on_the_same_machine_is_followed(world: World, name: str) -> None:
    assert whole_car(gateway(world, name), world.cid) == whole_car(gateway(world, "good"), world.cid)


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("moved-to-another-network", r"redirects to 169\.254\.169\.254, which is not followed"),
        ("moved-to-another-scheme", "not followed: 'ftp://127.0.0.1/file' is .*neither https nor http"),
        ("moved-to-a-user", "not followed: 'http://…@127.0.0.1/file' is .* has a user name"),
        ("moved-to-nonsense", "redirects to an address that is not followed"),
        ("moved-to-no-port", "redirects to an address that is not followed"),
        ("moved-to-a-long-name", "redirects to an address that is not followed"),
        ("round", "redirects more than 5 times"),
        ("moved-to-no-text", "redirects to an address that is not followed: it is not UTF-8"),
    ],
)
def test_a_redirect_elsewhere_is_not_followed(world: World, fault: str, why: str) -> None:
    node = gateway(world, fault)
    with pytest.raises(RefusedError, match=why) as error:
        whole_car(node, world.cid)
    assert "secret" not in str(error.value)
    assert set(world.asked) == {fault}
    del node, error
    gc.collect()  # a connection that was left open would be a warning now, and so an error


@pytest.fixture
def certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> trustme.LeafCert:
    """Of an authority that is believed."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "authority.pem"))
    return authority.issue_cert("localhost", "127.0.0.1")


@contextlib.contextmanager
def redirecting(target: Callable[[Request], str], certificate: trustme.LeafCert) -> Iterator[str]:
    """A gateway over TLS that sends on to other addresses, with a cookie."""

    def send_on(request: Request) -> Response:
        return RedirectResponse(target(request), 302, {"Set-Cookie": "session=secret; Path=/"})

    with serving(Starlette(routes=[Route("/{path:path}", send_on)]), certificate) as address:
        yield address


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_a_gateway_that_redirects_over_https_to_another_is_followed_without_a_login(
    world: World,
    tmp_path: Path,
    partials: PartialFiles,
    certificate: trustme.LeafCert,
    monkeypatch: pytest.MonkeyPatch,
    host: str,
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login me password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    with contextlib.ExitStack() as stack:
        cdn = stack.enter_context(serving(world.app(), certificate)) + "/good"
        first = stack.enter_context(
            redirecting(lambda request: f"{cdn}{request.url.path}?{request.url.query}", certificate)
        )
        node = Gateway(first.replace("127.0.0.1", host), 10)
        for cid in list(world.files)[:3]:
            fetch(node, cid, tmp_path / "got", partials)
            assert (tmp_path / "got").read_bytes() == world.files[cid].read_bytes()
            assert not {"authorization", "cookie"} & set(world.headers)
    assert world.asked == {"good": 3}


@pytest.mark.parametrize("host", ["127.0.0.1", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]", "127.1"])
def test_a_public_gateway_does_not_lead_to_a_service_on_loopback(
    world: World, certificate: trustme.LeafCert, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    really = socket.getaddrinfo

    def resolve(name: str, *rest: Any, **named: Any) -> list[Any]:
        # the first address is the one that is connected to
        public = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", 443))]
        if name != "localhost":
            return really(name, *rest, **named)
        return [*really("127.0.0.1", *rest, **named), *public]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with contextlib.ExitStack() as stack:
        inner = stack.enter_context(serving(world.app(), certificate)).replace("127.0.0.1", host)
        first = stack.enter_context(redirecting(lambda request: f"{inner}/good/x", certificate))
        with pytest.raises(RefusedError, match="is not followed"):
            whole_car(Gateway(first.replace("127.0.0.1", "localhost"), 10), world.cid)
    assert not world.asked


def test_a_redirect_round_hosts_is_bounded(certificate: trustme.LeafCert, world: World) -> None:
    asked = []

    def other(request: Request) -> str:
        asked.append(request.url.hostname)
        host = "localhost" if request.url.hostname == "127.0.0.1" else "127.0.0.1"
        return str(request.url.replace(hostname=host))

    with (
        redirecting(other, certificate) as address,
        pytest.raises(RefusedError, match="redirects more than 5 times"),
    ):
        whole_car(Gateway(address, 10), world.cid)
    assert asked == ["127.0.0.1", "localhost"] * 3


ADDRESSES = {
    "gateway.example": ["93.184.216.34", "2606:2800:220:1::1"],
    "cdn.example": ["1.1.1.1"],
    "inner.example": ["10.1.2.3"],
    "other.inner.example": ["192.168.7.7", "fd00::7"],
    "here.example": ["127.0.0.1"],
    "mixed.example": ["1.1.1.1", "127.0.0.1"],
    "sub.gateway.example": ["127.0.0.1"],
    "bafy.gateway.example": ["93.184.216.34"],
}


@pytest.mark.parametrize(
    ("url", "target", "followed"),
    [
        ("https://gateway.example", "https://cdn.example/x", True),
        ("http://gateway.example", "https://cdn.example/x", True),
        ("https://gateway.example", "https://bafy.gateway.example/", True),
        ("http://gateway.example", "http://bafy.gateway.example/", True),
        ("https://gateway.example", "http://cdn.example/x", False),
        ("https://gateway.example", "http://bafy.gateway.example/", False),
        ("https://gateway.example", "http://gateway.example/", False),
        ("http://gateway.example", "http://cdn.example/x", False),
        ("https://gateway.example", "https://me@cdn.example/x", False),
        ("https://gateway.example", "https://me@gateway.example/x", False),
        ("https://gateway.example", "https://cdn.example\\@127.0.0.1/", False),
        ("https://gateway.example", "ftp://cdn.example/x", False),
        ("https://gateway.example", "https://inner.example/", False),
        ("https://gateway.example", "https://here.example/", False),
        ("https://gateway.example", "https://mixed.example/", False),
        ("http://gateway.example", "http://sub.gateway.example/", False),
        ("https://gateway.example", "https://unknown.example/", False),
        *(
            ("https://gateway.example", f"https://{address}/", False)
            for address in (
                "127.0.0.1",
                "0.0.0.0",
                "10.0.0.1",
                "169.254.169.254",
                "100.64.0.1",
                "3232235777",
                "0xa9fea9fe",
                "[::1]",
                "[::]",
                "[fe80::1]",
                "[fd00::1]",
                "[fec0::1]",
                "[::ffff:10.0.0.1]",
                "[::ffff:a9fe:a9fe]",
                "[2002:7f00:1::]",
                "[64:ff9b::7f00:1]",
                "[ff02::1]",
            )
        ),
        ("https://gateway.example", "https://8.8.8.8/", True),
        ("https://gateway.example", "https://[::ffff:8.8.8.8]/", True),
        ("https://mixed.example", "https://127.0.0.1/", False),
        ("https://unknown.example", "https://127.0.0.1/", False),
        ("https://unknown.example", "https://cdn.example/", True),
        ("http://169.254.7.7", "https://127.0.0.1/", False),
        ("https://inner.example", "https://other.inner.example/", True),
        ("https://inner.example", "https://cdn.example/", True),
        ("https://inner.example", "https://here.example/", False),
        ("https://inner.example", "https://169.254.169.254/", False),
        ("http://127.0.0.1:8080", "http://localhost:8080/", True),
        ("http://127.0.0.1:8080", "http://localhost:8081/", False),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8081/", False),
        ("http://127.0.0.1:8080", "https://cdn.example/", True),
        ("http://127.0.0.1:8080", "http://cdn.example/", False),
        ("http://127.0.0.1:8080", "https://0.0.0.0/", False),
    ],
)
def test_a_redirect_leads_no_further_into_the_users_network(
    monkeypatch: pytest.MonkeyPatch, url: str, target: str, followed: bool
) -> None:
    really = socket.getaddrinfo

    def look_up(host: str, port: int | None, *rest: Any, **named: Any) -> Any:
        if host in ADDRESSES:
            return [found for address in ADDRESSES[host] for found in really(address, port, *rest, **named)]
        if host.endswith(".example"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return really(host, port, *rest, **named)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    assert safe_elsewhere(url, target) is followed


def test_a_proxy_looks_up_what_this_machine_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> Any:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    assert not safe_elsewhere("https://gateway.example", "https://cdn.example/")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    assert safe_elsewhere("https://gateway.example", "https://cdn.example/")


def test_no_credentials_are_sent(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\ndefault login me password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    assert requests.utils.get_netrc_auth(world.address) == ("me", "secret")
    for node in (gateway(world, "good"), gateway(world, "moved"), kubo(world)):
        whole_car(node, world.cid)
        assert "authorization" not in world.headers
        assert world.headers["user-agent"] == "crop-assets"


@pytest.mark.parametrize(
    ("node", "what"), [(Gateway, "gateways"), (KuboNode, "kubo_api")], ids=["gateway", "kubo"]
)
@pytest.mark.parametrize(
    "address", ["ftp://127.0.0.1", "127.0.0.1:5001", "http://me:secret@127.0.0.1", "me:secret@127.0.0.1", ""]
)
def test_an_address_that_is_none(node: Callable[[str, float], IpfsNode], what: str, address: str) -> None:
    with pytest.raises(ValueError, match=rf"{what}: must be the http or https URL of a server") as error:
        node(address, 1)
    assert "secret" not in str(error.value)


def test_a_block_has_no_more_than_four_megabytes(world: World) -> None:
    with pytest.raises(IntegrityError, match=f"sent a block of more than {MAX_SECTION} bytes"):
        gateway(world, "large").block(Cid.parse(world.cid))


def test_a_connection_is_used_again(world: World) -> None:
    node = gateway(world, "good")
    for _ in range(3):
        whole_car(node, world.cid)
        node.block(Cid.parse(world.cid))
    assert len(world.clients) == 1


# Files from gateways


def test_a_file_is_written_where_it_should_be_and_its_bytes_are_told(
    world: World, out: Path, partials: PartialFiles
) -> None:
    told: list[int] = []
    assert fetch(gateway(world, "good"), world.cid, out, partials, progress=told) is True
    assert out.read_bytes() == world.data
    assert sum(told) == len(world.data)
    assert [path for path in out.parent.rglob("*") if path.is_file()] == [out], "nothing else is left"


def test_the_mode_of_a_file_follows_the_umask(world: World, out: Path, partials: PartialFiles) -> None:
    before = os.umask(0o027)
    try:
        fetch(gateway(world, "good"), world.cid, out, partials)
    finally:
        os.umask(before)
    assert out.stat().st_mode & 0o777 == 0o640


def test_a_file_is_the_groups_to_write_where_the_umask_lets_it(
    world: World, out: Path, partials: PartialFiles
) -> None:
    before = os.umask(0o002)
    try:
        fetch(gateway(world, "good"), world.cid, out, partials)
    finally:
        os.umask(before)
    assert out.stat().st_mode & 0o777 == 0o664


@pytest.mark.parametrize(
    ("fault", "expected", "why"),
    [
        ("flipped", IntegrityError, "are not that block"),
        ("short", CutShortError, "the stream ended at byte 262144 of the file"),
        ("reset", CutShortError, "was cut short"),
        ("endless", IntegrityError, "was sent"),
        ("page", NotAFileError, "answered with a web page instead of application/vnd.ipld.car"),
        ("missing", NotFoundError, "answered 404"),
    ],
)
def test_wrong_bytes_never_get_to_the_destination(
    world: World, out: Path, partials: PartialFiles, fault: str, expected: type[ResourceError], why: str
) -> None:
    with pytest.raises(expected, match=why) as error:
        # with patience enough for a slow machine to read all that an endless answer may hold
        fetch(gateway(world, fault, timeout_seconds=300), world.cid, out, partials)
    assert type(error.value) is expected
    assert nothing_wrong_at(out)


def test_blocks_may_come_in_another_order(world: World, out: Path, partials: PartialFiles) -> None:
    fetch(gateway(world, "backwards"), world.cid, out, partials)
    assert out.read_bytes() == world.data
    assert not [path for path in (out.parent / "partials").iterdir() if path.is_file()]


@pytest.mark.parametrize("left", [1, 262_144, 2_000_000])
def test_blocks_that_a_killed_process_had_set_aside_are_not_trusted(
    world: World, out: Path, partials: PartialFiles, left: int
) -> None:
    with partials.holding(world.cid) as path:
        path.with_name(f"{path.name}.aside").write_bytes(bytes(left))
    fetch(gateway(world, "backwards"), world.cid, out, partials)
    assert out.read_bytes() == world.data


def test_what_a_gateway_sends_after_the_file_does_no_harm(
    world: World, out: Path, partials: PartialFiles
) -> None:
    assert fetch(gateway(world, "chatty"), world.cid, out, partials)
    assert out.read_bytes() == world.data


def test_a_gateway_that_does_not_end_its_answer_does_no_harm(
    world: World, out: Path, partials: PartialFiles
) -> None:
    assert fetch(gateway(world, "lingering", timeout_seconds=0.3), world.cid, out, partials)
    assert out.read_bytes() == world.data


def test_a_file_larger_than_allowed_is_refused_at_its_root(
    world: World, out: Path, partials: PartialFiles
) -> None:
    with pytest.raises(IntegrityError, match="700000 bytes, more than the 699999 allowed"):
        fetch(gateway(world, "good"), world.cid, out, partials, most=len(world.data) - 1)
    assert nothing_wrong_at(out)


def test_a_malformed_cid_is_refused_before_anyone_is_asked(
    world: World, out: Path, partials: PartialFiles
) -> None:
    with pytest.raises(IntegrityError, match="'bafy' is not a CID"):
        fetch(gateway(world, "good"), "bafy", out, partials)
    assert not world.asked


def test_a_file_that_is_whole_but_was_not_moved_away_is_not_asked_for_again(
    world: World, out: Path, partials: PartialFiles
) -> None:
    with pytest.raises(IsADirectoryError):
        fetch(gateway(world, "good"), world.cid, Path(out.parent), partials)
    world.forget()
    fetch(gateway(world, "good"), world.cid, out, partials)
    assert out.read_bytes() == world.data
    assert not world.asked


@pytest.mark.parametrize("cid", ["", UNKNOWN])
def test_a_node_is_a_source_of_what_has_a_cid(world: World, cid: str) -> None:
    source = IpfsSource(gateway(world, "good"))
    assert source.offers(FileRequest("a/b", cid, "https://example.org/b", 1)) is bool(cid)
    assert (source.name, source.host, source.by_cid) == (world.gateway("good"), "127.0.0.1", True)
    assert not world.asked


# Kubo nodes


def test_a_kubo_node_gives_a_file_as_a_car(world: World, out: Path, partials: PartialFiles) -> None:
    fetch(kubo(world), world.cid, out, partials)
    assert out.read_bytes() == world.data
    assert world.query == f"arg={world.cid}"


def test_a_kubo_node_gives_a_block_and_is_told_how_long_to_look_for_it(world: World) -> None:
    root = Cid.parse(world.cid)
    assert root.matches(kubo(world, timeout_seconds=2.5).block(root))
    assert world.query == f"arg={world.cid}&timeout=2s", "less than the answer is waited for"


def test_a_kubo_node_answers_500_to_what_it_does_not_have(world: World) -> None:
    with pytest.raises(NotFoundError, match=r"answered 500 .*could not find it"):
        whole_car(kubo(world), UNKNOWN)
    with pytest.raises(NotFoundError, match="block was not found locally"):
        kubo(world).block(Cid.parse(UNKNOWN))


def test_a_kubo_node_that_has_looked_in_vain_is_slow(world: World) -> None:
    node = kubo(world, "late-kubo")
    for ask in (lambda: whole_car(node, world.cid), lambda: node.block(Cid.parse(world.cid))):
        with pytest.raises(SlowError, match=r"answered 500 .*deadline exceeded"):
            ask()


def test_a_kubo_node_does_not_send_on_to_another(world: World) -> None:
    with pytest.raises(RefusedError, match="answered 307"):
        whole_car(kubo(world, "moved-kubo"), world.cid)
    assert world.asked == {"moved-kubo": 1}


def test_what_is_no_kubo_node_has_nothing(world: World) -> None:
    with pytest.raises(NotFoundError, match="answered 404"):
        whole_car(kubo(world, "good"), world.cid)


class ImportingNode:
    """A stand-in for Kubo's `dag import`, which reads the form and the CAR in it as a server does."""

    def __init__(self) -> None:
        self.says: Callable[[str], str] = lambda root: pinned(root)
        self.status = 200
        self.blocks: list[tuple[Cid, bytes]] = []
        self.sizes: list[int] = []
        self.asked: list[str] = []
        self.keep = True
        self.server = make_server("127.0.0.1", 0, WsgiRequest.application(self._answer), threaded=True)
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    def _answer(self, request: WsgiRequest) -> WsgiResponse:
        self.asked.append(f"{request.method} {request.path}?{request.query_string.decode()}")
        file = request.files["file"]
        assert file.mimetype == CONTENT_TYPE
        self.sizes.append(file.stream.seek(0, io.SEEK_END))
        file.stream.seek(0)
        if self.keep:
            self.blocks = list(read_car(iter(lambda: file.stream.read(100_000), b"")))
        root = str(self.blocks[0][0]) if self.blocks else ""
        return WsgiResponse(self.says(root), self.status, content_type="application/json")


def pinned(root: str, error: str = "") -> str:
    return json.dumps({"Root": {"Cid": {"/": root}, "PinErrorMsg": error}}, separators=(",", ":")) + "\n"


@pytest.fixture
def importing() -> Iterator[ImportingNode]:
    node = ImportingNode()
    thread = threading.Thread(target=node.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield node
    node.server.shutdown()
    node.server.server_close()
    thread.join()


def test_a_kubo_node_takes_a_car_and_pins_its_root(world: World, importing: ImportingNode) -> None:
    dag = FileDag(world.files[world.cid])
    KuboNode(importing.address, 5).import_car(write_car(dag), dag.root)
    assert importing.blocks == list(dag.blocks())
    assert importing.asked == ["POST /api/v0/dag/import?pin-roots=true"]


STATS = '{"Stats":{"BlockCount":4,"BlockBytesCount":700224}}\n'


@pytest.mark.parametrize(
    "says",
    [
        lambda root: pinned(root) + STATS,
        lambda root: json.dumps({"Root": {"Cid": {"/": root}, "PinErrorMsg": ""}}),
    ],
    ids=["with statistics", "with spaces"],
)
def test_a_pin_may_be_confirmed_in_other_words(
    world: World, importing: ImportingNode, says: Callable[[str], str]
) -> None:
    importing.says = says
    dag = FileDag(world.files[world.cid])
    KuboNode(importing.address, 5).import_car(write_car(dag), dag.root)


@pytest.mark.parametrize(
    "says",
    [
        lambda root: pinned(root, "pin: context canceled"),
        lambda root: pinned(UNKNOWN),
        lambda root: STATS,
        lambda root: "",
        lambda root: f'{{"Message":"{root} is no root","Code":0,"Type":"error"}}',
        lambda root: pinned(root, "pin: no room") + pinned(UNKNOWN),
    ],
    ids=["pin error", "another root", "no root", "nothing", "an error", "another root pinned"],
)
def test_a_pin_that_is_not_confirmed_is_an_error(
    world: World, importing: ImportingNode, says: Callable[[str], str]
) -> None:
    importing.says = says
    dag = FileDag(world.files[world.cid])
    with pytest.raises(ResourceError, match=f"did not pin {dag.root}"):
        KuboNode(importing.address, 5).import_car(write_car(dag), dag.root)


def test_a_kubo_node_that_fails_to_import_says_why(world: World, importing: ImportingNode) -> None:
    importing.status = 500
    importing.says = lambda root: '{"Message":"no space left on device","Code":0,"Type":"error"}'
    dag = FileDag(world.files[world.cid])
    with pytest.raises(TryAgainError, match=r"/api/v0/dag/import answered 500 .*no space left on device"):
        KuboNode(importing.address, 5).import_car(write_car(dag), dag.root)


def test_an_import_goes_nowhere_else(world: World) -> None:
    dag = FileDag(world.files[world.cid])
    with pytest.raises(ResourceError, match="answered 404"):
        kubo(world, "good").import_car(write_car(dag), dag.root)
    with pytest.raises(UnreachableError):
        KuboNode(closed_port(), 5).import_car(write_car(dag), dag.root)


def test_a_car_that_breaks_while_it_is_sent_breaks_the_import(world: World, importing: ImportingNode) -> None:
    def pieces() -> Iterator[bytes]:
        yield from itertools.islice(write_car(FileDag(world.files[world.cid])), 2)
        raise IntegrityError("a file was changed while its folder was read")

    with pytest.raises(IntegrityError, match="was changed while"):
        KuboNode(importing.address, 5).import_car(pieces(), Cid.parse(world.cid))
    assert not importing.blocks


def test_memory_does_not_grow_with_the_car_that_is_imported(importing: ImportingNode) -> None:
    importing.keep = False
    importing.says = lambda root: pinned(UNKNOWN)
    piece = bytes(MIB)
    tracemalloc.start()
    try:
        KuboNode(importing.address, 20).import_car(itertools.repeat(piece, 48), Cid.parse(UNKNOWN))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert importing.sizes == [48 * MIB]
    assert peak < 16 * MIB


# The ipfs command


CAT = """\
import shutil, sys
kind, verb, cid = sys.argv[1:]
with open({folder!r} + "/" + kind + "-" + cid, "rb") as file:
    shutil.copyfileobj(file, sys.stdout.buffer)
"""
MISSING = """\
import sys
print("Error: block was not found locally (offline): ipld: could not find " + sys.argv[3], file=sys.stderr)
sys.exit(1)
"""
FAILING = """\
import sys
print("Error: {words}", file=sys.stderr)
sys.exit(1)
"""
SILENT = """\
import time
time.sleep(60)
"""
BEGINS = """\
import sys, time
sys.stdout.buffer.write(open({path!r}, "rb").read()[:300000])
sys.stdout.flush()
{then}
"""
DRIPS = """\
import sys, time
while True:
    sys.stdout.buffer.write(b"x")
    sys.stdout.flush()
    time.sleep(0.02)
"""


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], IpfsCommand]:
    """Puts a Python script named `ipfs` on the path."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def install(script: str, timeout_seconds: float = 10) -> IpfsCommand:
        path = folder / "ipfs"
        path.write_text(f"#!{sys.executable} -IS\n{script}")
        path.chmod(0o755)
        return IpfsCommand("ipfs", timeout_seconds)

    return install


@pytest.fixture
def no_process_is_left() -> Iterator[None]:
    before = set(psutil.Process().children(recursive=True))
    yield
    left = set(psutil.Process().children(recursive=True)) - before
    assert not [process.cmdline() for process in left], "neither running nor waiting for its parent"


@pytest.fixture
def car_folder(world: World, tmp_path: Path) -> Path:
    """What the command gives: `dag-<cid>` is a CAR, `block-<cid>` a block."""
    dag = FileDag(world.files[world.cid])
    (tmp_path / f"dag-{dag.root}").write_bytes(b"".join(write_car(dag, repeats=False)))
    (tmp_path / f"block-{dag.root}").write_bytes(dag.block(dag.root) or b"")
    return tmp_path


@pytest.mark.usefixtures("no_process_is_left")
def test_the_command_gives_a_file_as_a_car(
    world: World, car_folder: Path, command: Callable[[str], IpfsCommand], out: Path, partials: PartialFiles
) -> None:
    ipfs = command(CAT.format(folder=str(car_folder)))
    assert fetch(ipfs, world.cid, out, partials)
    assert out.read_bytes() == world.data
    assert not world.asked
    root = Cid.parse(world.cid)
    assert root.matches(ipfs.block(root))
    assert (IpfsSource(ipfs).name, IpfsSource(ipfs).host) == ("ipfs", "")


@pytest.mark.usefixtures("no_process_is_left")
def test_the_command_says_what_it_does_not_have(
    command: Callable[[str], IpfsCommand], out: Path, partials: PartialFiles
) -> None:
    ipfs = command(MISSING)
    with pytest.raises(NotFoundError, match=f"ended with code 1: Error: block was not found.*{UNKNOWN}"):
        fetch(ipfs, UNKNOWN, out, partials)
    with pytest.raises(NotFoundError, match="could not find"):
        ipfs.block(Cid.parse(UNKNOWN))
    assert nothing_wrong_at(out)


@pytest.mark.parametrize(
    "words",
    [
        "lock /repo/repo.lock: someone else has the lock",
        "dial tcp: lookup bootstrap.libp2p.io: no such host",
        "open /repo/config: no such file or directory",
    ],
)
@pytest.mark.usefixtures("no_process_is_left")
def test_a_command_in_trouble_may_have_it_later(command: Callable[[str], IpfsCommand], words: str) -> None:
    with pytest.raises(ResourceError, match="ended with code 1") as error:
        whole_car(command(FAILING.format(words=words)), UNKNOWN)
    assert type(error.value) is TryAgainError
    assert words in str(error.value)


def test_a_command_that_has_looked_in_vain_is_slow(command: Callable[[str], IpfsCommand]) -> None:
    with pytest.raises(SlowError, match="ended with code 1: Error: context deadline exceeded"):
        whole_car(command(FAILING.format(words="context deadline exceeded")), UNKNOWN)


@pytest.mark.parametrize("script", [SILENT, DRIPS], ids=["silent", "dripping"])
@pytest.mark.usefixtures("no_process_is_left")
def test_a_command_that_hangs_is_slow_and_ended(
    command: Callable[[str, float], IpfsCommand], script: str
) -> None:
    with pytest.raises(SlowError):
        whole_car(command(script, 0.4), UNKNOWN)


@pytest.mark.usefixtures("no_process_is_left")
def test_a_command_that_closes_its_output_and_goes_on_is_slow_and_ended(
    command: Callable[[str, float], IpfsCommand],
) -> None:
    ipfs = command("import os, time\nos.write(1, b'block')\nos.close(1)\ntime.sleep(30)", 0.4)
    with pytest.raises(SlowError, match=r"closed its output and did not end within 0\.4 s"):
        ipfs.block(Cid.parse(UNKNOWN))


@pytest.mark.parametrize(
    ("then", "expected"),
    [("", CutShortError), ("sys.exit(3)", TryAgainError), ("time.sleep(60)", SlowError)],
    ids=["ends", "fails", "hangs"],
)
@pytest.mark.usefixtures("no_process_is_left")
def test_what_a_command_gave_before_it_broke_off_is_kept(
    world: World,
    car_folder: Path,
    command: Callable[..., IpfsCommand],
    out: Path,
    partials: PartialFiles,
    then: str,
    expected: type[ResourceError],
) -> None:
    script = BEGINS.format(path=str(car_folder / f"dag-{world.cid}"), then=then)
    with pytest.raises(ResourceError) as error:
        fetch(command(script, 1), world.cid, out, partials)
    assert type(error.value) is expected
    assert nothing_wrong_at(out)
    fetch(gateway(world, "good"), world.cid, out, partials)
    assert out.read_bytes() == world.data
    assert "entity-bytes=262144" in world.query


@pytest.mark.usefixtures("no_process_is_left")
def test_a_command_whose_output_nobody_wants_any_more_is_ended(command: Callable[[str], IpfsCommand]) -> None:
    ipfs = command("import sys\nwhile True: sys.stdout.buffer.write(bytes(65536))")
    with pytest.raises(ZeroDivisionError), ipfs.car(Cid.parse(UNKNOWN), 0) as pieces:
        next(pieces)
        raise ZeroDivisionError
    with pytest.raises(IntegrityError, match="sent a block of more than"):
        ipfs.block(Cid.parse(UNKNOWN))


def test_the_command_gets_no_token_or_key_of_the_operators_environment(
    command: Callable[[str], IpfsCommand], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = {
        "IPFS_PATH": "/srv/ipfs",
        "HOME": str(tmp_path),
        "LC_ALL": "C.UTF-8",
        "https_proxy": "http://127.0.0.1:1",
        "NO_PROXY": "127.0.0.1",
        "SSL_CERT_FILE": "/etc/ssl/ca.pem",
        "TMPDIR": str(tmp_path),
    }
    secrets = ("EARTHDATA_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "GITHUB_TOKEN", "PGPASSWORD")
    others = ("DAGSTER_HOME", "CROP_ASSETS_DATA", "PYTHONPATH", "LD_PRELOAD_NOT", "MY_IPFS_PATH")
    for name in (*secrets, *others):
        monkeypatch.setenv(name, "of the operator alone")
    for name, value in wanted.items():
        monkeypatch.setenv(name, value)
    told = tmp_path / "told"
    ipfs = command(f"import os\nopen({str(told)!r}, 'w').write(repr(dict(os.environ)))")
    assert ipfs.block(Cid.parse(UNKNOWN)) == b""
    environment = ast.literal_eval(told.read_text())
    assert wanted.items() <= environment.items()
    assert environment["PATH"] == os.environ["PATH"]
    assert "of the operator alone" not in environment.values()


def test_a_command_that_does_not_exist_is_unreachable() -> None:
    with pytest.raises(UnreachableError, match="there is no command ipfs-none on this machine"):
        whole_car(IpfsCommand("ipfs-none", 1), UNKNOWN)


def test_a_command_that_cannot_be_run_is_unreachable(tmp_path: Path) -> None:
    path = tmp_path / "ipfs"
    path.write_bytes(b"\x7fELF of another machine")
    path.chmod(0o755)
    with pytest.raises(UnreachableError):
        whole_car(IpfsCommand(str(path), 1), UNKNOWN)


def test_a_command_that_wraps_another_is_ended_with_it(
    command: Callable[..., IpfsCommand], tmp_path: Path
) -> None:
    ended = tmp_path / "ended"
    script = f"import subprocess\nsubprocess.run(['sh', '-c', 'sleep 1.5; touch {ended}'])"
    with pytest.raises(SlowError):
        whole_car(command(script, 0.3), UNKNOWN)
    assert not ended.exists(), "the command's child was waited for"


def test_a_command_is_read_in_a_process_with_many_open_files(
    world: World, car_folder: Path, command: Callable[[str], IpfsCommand]
) -> None:
    ipfs = command(CAT.format(folder=str(car_folder)))
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 1200:
        pytest.skip("the system lets a process have few files")
    with contextlib.ExitStack() as stack:
        for _ in range(1100):
            stack.callback(os.close, os.open(os.devnull, os.O_RDONLY))
        assert whole_car(ipfs, world.cid)


# The gateway of the demo, which the tests above rest on


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
        assert answer.headers["Content-Type"] == RAW
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


@pytest.mark.parametrize(
    ("asked", "leaves"),
    [
        ("0:*", [0, 1, 2]),
        ("262143:*", [0, 1, 2]),
        ("262144:*", [1, 2]),
        ("699999:*", [2]),
        ("5:9", [0]),
        ("262143:262143", [0]),
        ("262143:262144", [0, 1]),
        ("-1:*", [2]),
        ("0:-1", [0, 1, 2]),
        ("x:*", [0, 1, 2]),
    ],
)
def test_the_demo_gateway_sends_the_leaves_of_a_range(world: World, asked: str, leaves: list[int]) -> None:
    url = f"{world.gateway('good')}/ipfs/{world.cid}?format=car&entity-bytes={asked}"
    blocks = list(read_car([requests.get(url, timeout=5).content]))
    assert blocks[0][0] == Cid.parse(world.cid)
    sent = [block for _, block in blocks[1:]]
    assert sent == [world.data[leaf << 18 : (leaf + 1) << 18] for leaf in leaves]


def test_the_demo_gateway_refuses_a_file_under_a_wrong_cid(world: World) -> None:
    with pytest.raises(ValueError, match="its CID is"):
        gateway_routes({UNKNOWN: world.files[world.cid]})
