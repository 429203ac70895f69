import base64
import contextlib
import errno
import gzip
import hashlib
import os
import shutil
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
import trustme
import urllib3.util.connection

from crop_assets_tests.resources.loopback import closed_port, dripping
from resources import http as http_module
from resources import pace
from resources.addresses import is_loopback, same_site
from resources.earthdata import LpDaac
from resources.errors import (
    CutShortError,
    ForbiddenError,
    IntegrityError,
    LoginError,
    NotAFileError,
    NotFoundError,
    RefusedError,
    ResourceError,
    SlowError,
    TryAgainError,
    UnavailableError,
    UnreachableError,
)
from resources.http import (
    RestrictedSession,
    ask,
    check_status,
    get_bytes,
    get_file,
    in_time,
    mount,
    new_session,
    retry_after,
)
from resources.ipfs.unixfs import file_cid
from resources.mirror import BandMirror
from resources.resume import PartialFiles
from resources.sources import FetchResult, FileRequest, Memory, Sources

TOKEN = "eyJ0eXAi.secret-token.c2lnbmF0dXJl"
GIVEN = "eyJ0eXAi.secret-token-of-the-login.c2lnbmF0dXJl"
SIGNATURE = "X-Amz-Signature=secret-signature"
BAND = hashlib.shake_256(b"a band").digest(3_000_000)
LIMIT = 4_000_000
PATH = "/HLSS30.020/HLS.S30.T14SMF.2021062T172221.v2.0.B02.tif"
ARCHIVE = "data.lpdaac.earthdatacloud.nasa.gov"
STORAGE = "d1nklfio7vscoe.cloudfront.net"
LOGIN = "urs.earthdata.nasa.gov"


@dataclass
class Answer:
    """An answer as it goes over the wire; `announced` is its Content-Length, None for its true length."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    announced: int | None = None
    after: float = 0.0
    """Seconds before the answer."""


@dataclass
class Server:
    """A scripted server on loopback: each path has its answers, the last of which is repeated."""

    port: int
    script: dict[str, list[Answer]] = field(default_factory=dict)
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    """Path and Authorization header of each request; with its host before the path where it has many names."""
    heard: str = ""
    """The request lines and headers of all requests."""
    refused: str = "nothing"
    """An Authorization header that is answered 401."""

    def url(self, path: str = PATH, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    def says(self, *answers: Answer, path: str = PATH) -> str:
        self.script[path] = list(answers)
        return self.url(path)


def _started(server: Server, certificate: trustme.LeafCert | None = None) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # a server of many names is asked for "host/path"
            name = self.path if certificate is None else f"{self.headers['Host']}{self.path}"
            server.asked.append((name, self.headers.get("Authorization")))
            server.heard += f"{self.requestline}\n{self.headers}"
            answers = server.script.get(name, [Answer(404)])
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
            if self.headers.get("Authorization", "") == server.refused:
                answer = Answer(401)
            time.sleep(answer.after)
            self.send_response(answer.status)
            announced = len(answer.body) if answer.announced is None else answer.announced
            for name, value in {"Content-Length": str(announced), **answer.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.body)

        do_CONNECT = do_GET

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.do_GET()

        def handle(self) -> None:
            try:
                super().handle()
            except OSError:
                self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            pass

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(context)
        listener.socket = context.wrap_socket(
            listener.socket, server_side=True, do_handshake_on_connect=False
        )
    server.port = listener.server_port
    threading.Thread(target=listener.serve_forever, args=(0.02,), daemon=True).start()
    return listener


@pytest.fixture
def new_server() -> Iterator[Callable[[], Server]]:
    running: list[ThreadingHTTPServer] = []

    def start() -> Server:
        server = Server(0)
        running.append(_started(server))
        return server

    yield start
    for listener in running:
        listener.shutdown()
        listener.server_close()


@pytest.fixture
def archive(new_server: Callable[[], Server]) -> Server:
    """What LP DAAC is here."""
    return new_server()


@pytest.fixture
def storage(new_server: Callable[[], Server]) -> Server:
    """Where LP DAAC's redirects lead."""
    return new_server()


@pytest.fixture(autouse=True)
def netrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The netrc file of these tests, empty at first, so that the machine's own has no say."""
    path = tmp_path / "netrc"
    path.touch()
    monkeypatch.setenv("NETRC", str(path))
    monkeypatch.delenv("EARTHDATA_TOKEN_FILE", raising=False)
    return path


def lp_daac(token: str = TOKEN, **settings: Any) -> LpDaac:
    local: dict[str, Any] = {"hosts": ["127.0.0.1"], "storage_hosts": ["localhost"], "timeout_seconds": 5}
    return LpDaac(token=token, **local | settings)


@dataclass
class Fetching:
    """Fetches into one place, with what was left of earlier times."""

    out: Path
    partials: PartialFiles
    progress: list[int] = field(default_factory=list)

    def __call__(self, source: LpDaac, url: str, most: int = LIMIT, cid: str = "") -> bool:
        return source.fetch(
            FileRequest("scene/B02.tif", cid, url, most), self.out, self.partials, self.progress.append
        )


@pytest.fixture
def fetch(out: Path, partials: PartialFiles) -> Fetching:
    return Fetching(out, partials)


def told(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)) + repr(error) + str(vars(error))


# LP DAAC with a token


def test_a_file_comes_whole_and_with_the_bearer(archive: Server, fetch: Fetching) -> None:
    url = archive.says(Answer(body=BAND))
    assert fetch(lp_daac(), url) is False, "there is no CID to verify it by"
    assert fetch.out.read_bytes() == BAND
    assert archive.asked == [(PATH, f"Bearer {TOKEN}")]
    assert sum(fetch.progress) == len(BAND)
    assert "User-Agent: crop-assets" in archive.heard


def test_a_file_with_its_cid_is_verified(archive: Server, fetch: Fetching, tmp_path: Path) -> None:
    (tmp_path / "band").write_bytes(BAND)
    url = archive.says(Answer(body=BAND))
    assert fetch(lp_daac(), url, cid=file_cid(tmp_path / "band")) is True
    archive.says(Answer(body=BAND[:-1] + b"!"))
    assert fetch(lp_daac(), url, cid=file_cid(tmp_path / "band")) is False


def test_what_has_a_link_is_offered() -> None:
    source = lp_daac()
    assert source.offers(FileRequest("a/b", "", "https://example.org/b", 1))
    assert not source.offers(FileRequest("a/b", "bafy", "", 1))
    assert (source.name, source.host, source.by_cid) == ("LP DAAC", "127.0.0.1", False)
    assert LpDaac().host == ARCHIVE


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_the_bearer_stays_behind_when_a_redirect_leads_to_another_server(
    archive: Server, storage: Server, fetch: Fetching, host: str
) -> None:
    storage.says(Answer(body=BAND), path=f"/presigned?{SIGNATURE}")
    url = archive.says(Answer(303, headers={"Location": storage.url(f"/presigned?{SIGNATURE}", host)}))
    fetch(lp_daac(), url)
    assert fetch.out.read_bytes() == BAND
    assert archive.asked == [(PATH, f"Bearer {TOKEN}")]
    assert storage.asked == [(f"/presigned?{SIGNATURE}", None)]
    assert "secret-token" not in storage.heard
    assert "secret-token" in archive.heard


def test_the_bearer_stays_behind_when_only_the_name_of_the_host_changes(
    archive: Server, fetch: Fetching
) -> None:
    archive.says(Answer(body=BAND), path="/presigned")
    url = archive.says(Answer(307, headers={"Location": archive.url("/presigned", "localhost")}))
    fetch(lp_daac(), url)
    assert archive.asked == [(PATH, f"Bearer {TOKEN}"), ("/presigned", None)]


def test_the_bearer_goes_along_on_the_same_host(archive: Server, fetch: Fetching) -> None:
    archive.says(Answer(body=BAND), path="/elsewhere")
    url = archive.says(Answer(302, headers={"Location": "/elsewhere"}))
    fetch(lp_daac(), url)
    assert archive.asked == [(PATH, f"Bearer {TOKEN}"), ("/elsewhere", f"Bearer {TOKEN}")]


def test_the_bearer_does_not_come_back_once_it_has_stayed_behind(
    archive: Server, storage: Server, fetch: Fetching
) -> None:
    archive.says(Answer(body=BAND), path="/back")
    storage.says(Answer(302, headers={"Location": archive.url("/back")}), path="/over")
    url = archive.says(Answer(302, headers={"Location": storage.url("/over", "localhost")}))
    fetch(lp_daac(), url)
    assert archive.asked == [(PATH, f"Bearer {TOKEN}"), ("/back", None)]


@pytest.mark.parametrize("machine", ["machine 127.0.0.1", "machine localhost", "default"])
def test_a_login_in_netrc_neither_replaces_the_bearer_nor_goes_to_storage(
    archive: Server, storage: Server, fetch: Fetching, netrc: Path, machine: str
) -> None:
    netrc.write_text(f"{machine} login me password hidden\n")
    storage.says(Answer(body=b"x"), path="/presigned")
    url = archive.says(Answer(302, headers={"Location": storage.url("/presigned", "localhost")}))
    fetch(lp_daac(), url)
    assert archive.asked == [(PATH, f"Bearer {TOKEN}")]
    assert storage.asked == [("/presigned", None)]


@pytest.mark.parametrize(("token", "status"), [(TOKEN, 401), ("", 401), ("", 403)])
def test_a_refusal_says_how_to_log_in(archive: Server, fetch: Fetching, status: int, token: str) -> None:
    url = archive.says(Answer(status, b"who are you?"))
    with pytest.raises(
        ResourceError, match=rf"{url} answered {status}: not allowed with these credentials: who are you\?; "
    ) as error:
        fetch(lp_daac(token), url)
    assert "set EARTHDATA_TOKEN to a token from urs.earthdata.nasa.gov" in str(error.value)
    assert "put that host's login into ~/.netrc" in str(error.value)
    assert type(error.value) is (LoginError if status == 401 else ForbiddenError)
    assert len(archive.asked) == 1


AGREE = "https://urs.earthdata.nasa.gov/approve_app?client_id=ijpRZvb9qeKCK5ctsn75Tg"
REFUSED = {
    "JSON of Earthdata": (
        f'{{"status_code": 403, "error_description": "EULA Acceptance Failure", "resolution_url": "{AGREE}"}}',
        f"EULA Acceptance Failure ({AGREE})",
    ),
    "JSON message": ('{"message": "User is not authorized", "code": 7}', "User is not authorized"),
    "a list": ('{"errors": ["no rights", "ask again"]}', "no rights; ask again"),
    "nested": ('{"error": {"code": 3, "message": "quota exceeded"}}', "quota exceeded"),
    "XML of S3": (
        '<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code><Message>Request has expired</Message>'
        "<AWSAccessKeyId>ASIAABCDEFGHIJKL</AWSAccessKeyId></Error>",
        "AccessDenied; Request has expired",
    ),
    "a page": (
        "<!doctype html><html><head><title>403 &amp; out</title></head><body>b</body></html>",
        "403 & out",
    ),
    "plain text": ("squid: blocked\r\n\x1b[31mby policy", r"squid: blocked \x1b[31mby policy"),
    "a token": (f'{{"error": "no use for Bearer {TOKEN} here"}}', "no use for Bearer … here"),
    "another's token": (f'{{"message": "access_token={GIVEN}&x=1"}}', "access_token=…&x=1"),
    "links": (
        "see http://a.example/x or https://me:pw@b.example/ or https://b.example/y?Signature=abc&id=1",
        "see … or … or https://b.example/y?id=1",
    ),
    "cut JSON": ('{"message": "too long", "trace": "' + "x" * 5_000_000, "too long"),
    "no JSON": ("[Errno 24] too many", "[Errno 24] too many"),
    "huge text": ("word " * 1_000_000, "word word"),
    "binary": ("\0\1\2" * 50, ""),
    "nothing": ("", ""),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_the_words_of_a_refusal_are_passed_on(archive: Server, fetch: Fetching, kind: str) -> None:
    said, words = REFUSED[kind]
    url = archive.says(Answer(403, said.encode()))
    with pytest.raises(ForbiddenError) as error:
        fetch(lp_daac(), url)
    message = str(error.value)
    assert f"{url} answered 403: not allowed with these credentials{words and ': '}{words}" in message
    assert "the login itself was taken" in message
    assert "EARTHDATA_TOKEN" not in message
    assert "secret" not in told(error.value)
    assert "ASIA" not in message
    assert message.isprintable()
    assert len(message) < 800


def test_words_that_drip_are_not_waited_for(archive: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_module, "WORDS_SECONDS", 0.2)
    url = archive.says(Answer(403, b"not", announced=50))
    with new_session(attempts=1) as session, pytest.raises(ForbiddenError, match=r"credentials: not$"):
        get_bytes(session, url, timeout=0.5, max_bytes=9)


PAGES = {
    "HTML": (b"<!DOCTYPE html><title>Earthdata\n Login</title><form>", 'a web page ("Earthdata Login")'),
    "a bare page": (b"\xef\xbb\xbf\n<html>maintenance</html>", "a web page"),
    "XHTML": (b'<?xml version="1.0"?><!-- x --><html><title>Sign in</title>', 'a web page ("Sign in")'),
    "JSON": (b'{"message": "accept the EULA first"}', "a message (accept the EULA first)"),
    "XML": (b"<Error><Message>slow down</Message></Error>", "a message (slow down)"),
}


@pytest.mark.parametrize("kind", PAGES)
def test_a_page_in_place_of_a_file_is_named_and_costs_nothing_that_is_there(
    archive: Server, fetch: Fetching, kind: str
) -> None:
    page, what = PAGES[kind]
    archive.says(Answer(body=BAND[:1000], announced=len(BAND), headers={"ETag": '"a"'}))
    url = archive.url()
    with pytest.raises(CutShortError):
        fetch(lp_daac(), url)
    archive.says(Answer(body=page, headers={"ETag": '"b"'}))
    with pytest.raises(NotAFileError) as error:
        fetch(lp_daac(), url)
    assert (
        f"{url} answered with {what} instead of a file; if that is a login page, set EARTHDATA_TOKEN"
        in str(error.value)
    )
    assert not fetch.out.exists()
    part = next(path for path in (fetch.out.parent / "partials").iterdir() if len(path.name) == 32)
    assert part.read_bytes() == BAND[:1000]


@pytest.mark.parametrize("kind", ["text/html", "application/json"])
def test_a_page_in_place_of_data_is_named(archive: Server, kind: str) -> None:
    page = b"<html><head><title>Welcome to the hotel</title></head></html>"
    url = archive.says(Answer(body=page, headers={"Content-Type": kind}))
    with new_session(attempts=1) as session:
        with pytest.raises(
            NotAFileError, match=r'answered with a web page \("Welcome to the hotel"\) instead of'
        ):
            get_bytes(session, url, timeout=5, max_bytes=99)
        # where a page is asked for it is none in the place of something
        assert ask(session, "GET", url, 5, 99, page=True)[0] == page


# Proxies and certificates


@pytest.fixture
def proxied(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets the variables of a proxy, and no others."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return lambda **variables: [monkeypatch.setenv(name, value) for name, value in variables.items()] and None


def node_session() -> RestrictedSession:
    """A session that may ask example.org over plain http too, as an IPFS node is asked."""
    return RestrictedSession(same_site, plain_hosts=["example.org"])


DEAD = f"http://me:secret@{closed_port().removeprefix('http://')}"


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_this_machine_is_asked_directly(
    archive: Server, fetch: Fetching, proxied: Callable[..., None], variable: str, host: str
) -> None:
    proxied(**{variable: DEAD})
    archive.says(Answer(302, headers={"Location": archive.url("/b", host)}))
    archive.says(Answer(body=BAND), path="/b")
    fetch(lp_daac(), archive.url())
    assert fetch.out.read_bytes() == BAND
    with new_session(attempts=1) as session:
        assert get_bytes(session, archive.url("/b", host), 5, LIMIT) == BAND


def test_the_login_of_a_proxy_goes_to_the_proxy_alone(
    archive: Server, storage: Server, proxied: Callable[..., None], fetch: Fetching
) -> None:
    """On redirects of a plain address requests adds it, whether a proxy is asked or not."""
    proxied(HTTP_PROXY=DEAD, HTTPS_PROXY=DEAD)
    archive.says(Answer(body=b"x"), path="/b")
    storage.says(Answer(body=b"x"))
    for target in (archive.url("/b"), storage.url(host="localhost")):
        archive.says(Answer(302, headers={"Location": target}))
        for session in (RestrictedSession(lambda *_: True), requests.Session()):
            mount(session)
            with session:
                assert session.get(archive.url(), timeout=5).content == b"x"
    fetch(lp_daac(), archive.url())
    assert len(storage.asked) == 3
    assert "proxy-authorization" not in (archive.heard + storage.heard).lower()


def test_a_proxy_gets_its_login_also_after_a_redirect(archive: Server, proxied: Callable[..., None]) -> None:
    proxied(HTTP_PROXY=f"http://me:secret@127.0.0.1:{archive.port}")
    archive.says(Answer(302, headers={"Location": "http://example.org/b"}), path="http://example.org/a")
    archive.says(Answer(body=b"x"), path="http://example.org/b")
    with node_session() as session:
        assert get_bytes(session, "http://example.org/a", 5, 9) == b"x"
    assert archive.heard.count("Proxy-Authorization: Basic ") == 2


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("127.8.9.1", True),
        ("::1", True),
        ("LOCALHOST.", True),
        ("::ffff:127.0.0.1", True),
        ("10.0.0.1", False),
        ("127.0.0.1.example.org", False),
        ("", False),
    ],
)
def test_which_hosts_are_this_machine(host: str, own: bool) -> None:
    assert is_loopback(host) is own


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("variable", ["{}_PROXY", "{}_proxy", "ALL_PROXY"])
def test_a_dead_proxy_is_named_without_its_login(
    proxied: Callable[..., None], scheme: str, variable: str
) -> None:
    proxied(**{variable.format(scheme if variable.islower() else scheme.upper()): DEAD})
    place = DEAD.rsplit("@")[-1]
    with node_session() as session, pytest.raises(UnreachableError) as error:
        get_bytes(session, f"{scheme}://example.org/a", 5, 9)
    assert f"example.org/a cannot be reached through the proxy {place} (" in str(error.value)
    assert "check HTTPS_PROXY, HTTP_PROXY and ALL_PROXY" in str(error.value)
    assert "secret" not in told(error.value)


@pytest.mark.parametrize("status", [407, 502])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_what_a_proxy_answers_is_its_own(
    archive: Server, proxied: Callable[..., None], scheme: str, status: int
) -> None:
    place = f"127.0.0.1:{archive.port}"
    proxied(**{f"{scheme.upper()}_PROXY": f"http://me:secret@{place}"})
    archive.says(Answer(status, b"<title>proxy says no</title>"), path="http://example.org/a")
    archive.script["example.org:443"] = [Answer(status)]
    # what a proxy says to CONNECT is no answer of HTTP to requests
    expected = RefusedError if (scheme, status) == ("http", 407) else UnavailableError
    with node_session() as session, pytest.raises(expected) as error:
        get_bytes(session, f"{scheme}://example.org/a", 5, 9)
    assert f"the proxy {place}" in str(error.value)
    assert str(status) in str(error.value)
    assert "secret" not in told(error.value)
    assert archive.asked


def test_the_words_of_a_proxy_are_shown_like_those_of_any_server(
    proxied: Callable[..., None],
) -> None:
    login = base64.b64encode(b"me:p@ssword").decode()
    words = f"\x1b[31mno\x9b2J {login} p@ssword me:p%40ssword token=abcdefgh http://evil.example/ https://a.example/?sig=b"
    with dripping(f"HTTP/1.1 403 {words}\r\n\r\n".encode("latin-1"), b"") as (proxy, _):
        proxied(HTTPS_PROXY=proxy.replace("//", "//me:p%40ssword@"))
        with new_session(1) as session, pytest.raises(UnreachableError) as error:
            get_bytes(session, "https://example.org/a", 5, 9)
    assert r"failed: 403 \x1b[31mno\x9b2J … … … token=… … https://a.example/)" in str(error.value)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_drips_is_given_up_and_named(proxied: Callable[..., None], scheme: str) -> None:
    with (
        dripping(b"HTTP/1.1 200 OK\r\nX-Long: ", b"x") as (proxy, asked),
        node_session() as session,
    ):
        proxied(**{f"{scheme.upper()}_PROXY": proxy})
        with pytest.raises(TryAgainError, match=f"through the proxy {proxy[7:]}"):
            get_bytes(session, f"{scheme}://example.org/a", 0.5, 9)
    assert len(asked) == 1


@pytest.mark.parametrize(
    "start", [b"HTTP/1.1 200 OK\r\nX-Long: ", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;x="]
)
def test_what_drips_over_tls_is_given_up_as_well(
    names: dict[str, int], authority: trustme.CA, start: bytes
) -> None:
    certificate = authority.issue_cert("127.0.0.1")
    with (
        dripping(start, b"x", certificate) as (address, asked),
        new_session(attempts=1) as session,
        pytest.raises(SlowError, match="is too slow"),
    ):
        get_bytes(session, address, 0.5, 9)
    assert len(asked) == 1


def test_no_proxy_is_respected(names: dict[str, int], nasa: Server, proxied: Callable[..., None]) -> None:
    proxied(HTTPS_PROXY=DEAD, NO_PROXY=".earthdatacloud.nasa.gov")
    nasa.says(Answer(body=b"x"), path=f"{ARCHIVE}/x")
    with new_session(attempts=1) as session:
        assert get_bytes(session, f"https://{ARCHIVE}/x", 5, 9) == b"x"
        with pytest.raises(UnreachableError, match="through the proxy"):
            get_bytes(session, f"https://{STORAGE}/x", 5, 9)


@pytest.mark.usefixtures("login")
def test_the_login_names_a_dead_proxy_too(
    nasa: Server, fetch: Fetching, proxied: Callable[..., None]
) -> None:
    proxied(HTTPS_PROXY=DEAD, NO_PROXY=ARCHIVE)
    with pytest.raises(
        UnreachableError, match=f"https://{LOGIN} cannot be reached through the proxy"
    ) as error:
        fetch(LpDaac(), URL)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
@pytest.mark.parametrize("there", [True, False])
def test_a_ca_bundle_that_is_no_use_is_named(
    nasa: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, there: bool
) -> None:
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    bundle = tmp_path / "bundle.pem"
    if there:
        trustme.CA().cert_pem.write_to_path(str(bundle))
    monkeypatch.setenv(variable, str(bundle))
    with (
        new_session(attempts=1) as session,
        pytest.raises(UnavailableError if there else RefusedError) as error,
    ):
        get_bytes(session, URL, 5, 9)
    assert variable in str(error.value)
    assert str(bundle) in str(error.value)


def test_a_redirect_to_the_login_says_how_to_log_in(archive: Server, fetch: Fetching) -> None:
    target = f"https://{LOGIN}/oauth/authorize?client_id=a&redirect_uri=b"
    url = archive.says(Answer(302, headers={"Location": target}))
    with pytest.raises(ResourceError, match="set EARTHDATA_TOKEN to a token from") as error:
        fetch(lp_daac(), url)
    assert type(error.value) is ForbiddenError
    assert "client_id" not in str(error.value)


@pytest.mark.parametrize(
    ("target", "host"),
    [
        (f"https://example.org/a?{SIGNATURE}", "example.org"),
        (f"https://evil-cloudfront.net/a?{SIGNATURE}", "evil-cloudfront.net"),
        (f"https://cloudfront.net.example.org/a?{SIGNATURE}", "cloudfront.net.example.org"),
        (f"http://{STORAGE}/a?{SIGNATURE}", STORAGE),
        (f"//example.org/a?{SIGNATURE}", "example.org"),
    ],
)
def test_a_redirect_to_a_host_that_is_not_configured_is_refused(
    archive: Server, fetch: Fetching, target: str, host: str
) -> None:
    url = archive.says(Answer(302, headers={"Location": target}))
    with pytest.raises(RefusedError, match=f"redirects to {host}, which is not followed") as error:
        fetch(lp_daac(storage_hosts=["cloudfront.net"]), url)
    assert "secret" not in str(error.value)
    assert "etc" not in str(error.value)
    assert not fetch.out.exists()


@pytest.mark.parametrize(
    ("target", "may"),
    [
        (f"https://{STORAGE}/a", True),
        ("https://cloudfront.net/a", True),
        ("https://lp-prod.s3.us-west-2.amazonaws.com/a", True),
        (f"https://{ARCHIVE}/b", True),
        (f"http://{ARCHIVE}/b", False),
        (f"https://{LOGIN}/oauth", False),
        ("https://notamazonaws.com/a", False),
        ("http://127.0.0.1/a", False),
        ("https://127.0.0.1/a", False),
    ],
)
def test_redirects_lead_to_lp_daac_and_its_storage_alone(target: str, may: bool) -> None:
    assert LpDaac()._may_redirect(f"https://{ARCHIVE}{PATH}", target) is may


FAULTS: dict[str, tuple[list[Answer], type[ResourceError]]] = {
    "401": ([Answer(401)], LoginError),
    "403": ([Answer(403)], ForbiddenError),
    "404": ([Answer(404)], NotFoundError),
    "410": ([Answer(410)], NotFoundError),
    "400": ([Answer(400)], RefusedError),
    "408": ([Answer(408)], TryAgainError),
    "425": ([Answer(425)], TryAgainError),
    "429": ([Answer(429, headers={"Retry-After": "1"})], TryAgainError),
    "500": ([Answer(500)], TryAgainError),
    "502": ([Answer(502)], TryAgainError),
    "503": ([Answer(503)], TryAgainError),
    "504": ([Answer(504)], SlowError),
    "cut short": ([Answer(body=BAND[:-1], announced=len(BAND))], CutShortError),
    "cut chunks": (
        [Answer(body=b"5\r\nabcde\r\n", headers={"Transfer-Encoding": "chunked"}, announced=15)],
        CutShortError,
    ),
    "too large": ([Answer(body=bytes(LIMIT + 1))], IntegrityError),
    "gzip": ([Answer(body=b"not gzip", headers={"Content-Encoding": "gzip"})], IntegrityError),
    "silence": ([Answer(after=0.6)], SlowError),
    "a circle": ([Answer(302, headers={"Location": PATH})], RefusedError),
    "to another protocol": ([Answer(302, headers={"Location": "ftp://127.0.0.1/a"})], RefusedError),
    "to another host": (
        [Answer(302, headers={"Location": f"https://example.org/a?{SIGNATURE}"})],
        RefusedError,
    ),
    "to the login": ([Answer(302, headers={"Location": f"https://{LOGIN}/oauth"})], ForbiddenError),
    "to nonsense": ([Answer(302, headers={"Location": "http://[/"})], RefusedError),
    "to storage that is not there": (
        [Answer(302, headers={"Location": f"http://localhost:1/a?{SIGNATURE}"})],
        UnreachableError,
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_error_has_its_class_names_its_url_and_keeps_the_token_to_itself(
    archive: Server, fetch: Fetching, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    answers, expected = FAULTS[fault]
    url = archive.says(*answers)
    caplog.set_level("DEBUG")
    source = lp_daac(timeout_seconds=0.3)
    with pytest.raises(ResourceError) as error:
        fetch(source, url)
    assert type(error.value) is expected
    assert url in str(error.value) or "redirects to" in str(error.value)
    assert f"Bearer {TOKEN}" in {header for _, header in archive.asked}
    assert "secret-token" not in told(error.value) + caplog.text + repr(source) + str(source)
    assert "secret-signature" not in told(error.value)
    assert not fetch.out.exists()


@pytest.mark.parametrize("fault", ["404", "500", "cut short"])
def test_an_error_of_storage_does_not_repeat_the_signature(
    archive: Server, storage: Server, fetch: Fetching, fault: str
) -> None:
    answers, expected = FAULTS[fault]
    storage.says(*answers, path=f"/presigned?{SIGNATURE}")
    url = archive.says(Answer(302, headers={"Location": storage.url(f"/presigned?{SIGNATURE}", "localhost")}))
    with pytest.raises(expected) as error:
        fetch(lp_daac(), url)
    assert url in str(error.value)
    assert "secret" not in told(error.value)


@pytest.mark.parametrize("elsewhere", [True, False], ids=["mirrored", "not-mirrored"])
def test_a_silent_lp_daac_is_waited_for_briefly_while_another_may_have_the_file(
    archive: Server, out: Path, partials: PartialFiles, tmp_path: Path, elsewhere: bool
) -> None:
    source = lp_daac(first_seconds=0.3, timeout_seconds=60)
    path = tmp_path / "mirror" / "B02.tif"
    path.parent.mkdir()
    path.write_bytes(BAND)
    url = archive.says(Answer(body=BAND, after=20 if elsewhere else 1))
    wanted = FileRequest("scene/B02.tif", file_cid(path), url, LIMIT)
    mirror = BandMirror(folder=str(path.parent if elsewhere else tmp_path / "none"))
    said: list[str] = []
    got = Sources([source, mirror], 1, Memory(4)).obtain(wanted, out, partials, lambda *_: None, said.append)
    assert got == FetchResult("mirror" if elsewhere else "LP DAAC", True)
    assert out.read_bytes() == BAND
    assert len(archive.asked) == (1 if elsewhere else 2)
    assert "is too slow" in said[0]


def test_a_redirect_to_a_port_that_is_none_is_an_error_like_others(archive: Server, fetch: Fetching) -> None:
    url = archive.says(Answer(302, headers={"Location": "http://127.0.0.1:99999/a"}))
    with pytest.raises(RefusedError, match=r"redirects to an address that is not followed: .*99999"):
        fetch(lp_daac(), url)


def test_a_server_that_is_not_there_is_unreachable(fetch: Fetching) -> None:
    url = f"{closed_port()}/a.tif"
    with pytest.raises(UnreachableError, match=rf"{url} cannot be reached \(ConnectionRefusedError") as error:
        fetch(lp_daac(), url)
    assert "secret-token" not in told(error.value)


@pytest.mark.parametrize("token", [f"{TOKEN}\n", f" {TOKEN}", f"\t{TOKEN} \r\n"])
def test_white_space_around_the_token_is_dropped(archive: Server, fetch: Fetching, token: str) -> None:
    url = archive.says(Answer(body=b"x"))
    fetch(lp_daac(token), url)
    assert archive.asked == [(PATH, f"Bearer {TOKEN}")]


@pytest.mark.parametrize("junk", ["\n", "\r\nX-Injected: 1", "\0", "…", "\x7f"])
def test_a_token_that_cannot_be_one_is_refused_and_not_repeated(
    archive: Server, fetch: Fetching, junk: str
) -> None:
    url = archive.says(Answer(body=b"x"))
    with pytest.raises(ResourceError, match="EARTHDATA_TOKEN has characters that no token has") as error:
        fetch(lp_daac(f"{TOKEN}{junk}more"), url)
    assert "secret-token" not in told(error.value)
    assert not archive.asked


def test_the_token_may_be_in_a_file_that_is_replaced_while_the_process_runs(
    archive: Server, fetch: Fetching, netrc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc.write_text("default login me password hidden\n")
    url, file = archive.says(Answer(body=b"x")), tmp_path / "token"
    monkeypatch.setenv("EARTHDATA_TOKEN_FILE", str(file))
    source = lp_daac("")
    for token in ("first", "second"):
        file.write_text(f"{token}\n")
        fetch(source, url)
    fetch(lp_daac(), url)
    assert [login for _, login in archive.asked] == ["Bearer first", "Bearer second", f"Bearer {TOKEN}"]


@pytest.mark.parametrize("content", [None, b"", b" \n", b"\xff", f"{TOKEN}\nsecond line".encode()])
def test_a_file_without_a_token_is_refused_by_name_and_not_repeated(
    archive: Server,
    fetch: Fetching,
    netrc: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: bytes | None,
) -> None:
    netrc.write_text("default login me password hidden\n")
    url, file = archive.says(Answer(body=b"x")), tmp_path / "token"
    monkeypatch.setenv("EARTHDATA_TOKEN_FILE", str(file))
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ResourceError, match="EARTHDATA_TOKEN_FILE") as error:
        fetch(lp_daac(""), url)
    assert "secret-token" not in told(error.value)
    assert not archive.asked


def test_a_body_just_within_the_limit_is_taken(archive: Server, fetch: Fetching) -> None:
    url = archive.says(Answer(body=BAND))
    fetch(lp_daac(), url, most=len(BAND))
    assert fetch.out.read_bytes() == BAND
    with pytest.raises(IntegrityError, match="answered more than 2,999,999 bytes"):
        fetch(lp_daac(), url, most=len(BAND) - 1)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "gzip, gzip", "x-gzip", "nonsense"])
def test_a_file_that_comes_packed_is_refused_as_it_was_not_asked_for(
    archive: Server, fetch: Fetching, encoding: str
) -> None:
    url = archive.says(Answer(body=gzip.compress(BAND), headers={"Content-Encoding": encoding}))
    with pytest.raises(IntegrityError, match=f"in the encoding '{encoding}', which was not asked for"):
        fetch(lp_daac(), url)
    assert "Accept-Encoding: identity" in archive.heard
    assert not fetch.out.exists()


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost/a.tif",
        "https://127.0.0.1.example.org/a.tif",
        "https://example.org/127.0.0.1/a.tif",
    ],
)
def test_only_configured_hosts_are_asked(fetch: Fetching, url: str) -> None:
    with pytest.raises(IntegrityError, match=r"is not among the configured hosts \(127\.0\.0\.1\)"):
        fetch(lp_daac(), url)
    assert not fetch.out.exists()


@pytest.mark.parametrize("token", ["", TOKEN])
def test_no_login_goes_over_a_line_that_others_can_read(fetch: Fetching, token: str) -> None:
    with pytest.raises(IntegrityError, match="is not https") as error:
        fetch(LpDaac(token=token), f"http://{ARCHIVE}{PATH}")
    assert "secret-token" not in told(error.value)
    assert not fetch.out.exists()


def test_threads_fetch_at_once_with_one_source(
    archive: Server, tmp_path: Path, partials: PartialFiles
) -> None:
    source = lp_daac()
    for i in range(12):
        archive.says(Answer(body=BAND[: 100_000 + i]), path=f"/{i}")

    def ask(i: int) -> bytes:
        out = tmp_path / str(i)
        source.fetch(FileRequest("a/b", "", archive.url(f"/{i}"), LIMIT), out, partials, lambda count: None)
        return out.read_bytes()

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(ask, range(12))) == [BAND[: 100_000 + i] for i in range(12)]


# LP DAAC by its own names, over TLS, with the login in netrc


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, authority: trustme.CA) -> dict[str, int]:
    """Ports on loopback that real names lead to; only certificates of `authority` are believed."""
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "authority.pem"))
    ports: dict[str, int] = {}
    really = urllib3.util.connection.create_connection

    def connect(address: tuple[str, int], *arguments: Any, **named: Any) -> Any:
        name, port = address
        if name == "127.0.0.1":
            return really(address, *arguments, **named)
        assert port == 443
        return really(("127.0.0.1", ports[name]), *arguments, **named)

    monkeypatch.setattr(urllib3.util.connection, "create_connection", connect)
    return ports


@contextlib.contextmanager
def over_tls(authority: trustme.CA, *hosts: str) -> Iterator[Server]:
    server = Server(0)
    listener = _started(server, authority.issue_cert(*hosts))
    try:
        yield server
    finally:
        listener.shutdown()
        listener.server_close()


@pytest.fixture
def nasa(authority: trustme.CA, names: dict[str, int]) -> Iterator[Server]:
    """LP DAAC, its storage and Earthdata Login by their real names."""
    with over_tls(authority, ARCHIVE, STORAGE, LOGIN) as server:
        names.update(dict.fromkeys((ARCHIVE, STORAGE, LOGIN), server.port))
        yield server


_READ = {
    "requests": "import requests, sys; requests.get(sys.argv[1])",
    "gdal": "import rasterio, sys; rasterio.open('/vsicurl/' + sys.argv[1])",
}


@pytest.mark.parametrize(
    ("program", "variable", "believes"),
    [
        ("requests", "REQUESTS_CA_BUNDLE", True),
        ("gdal", "GDAL_CURL_CA_BUNDLE", True),
        ("gdal", "CURL_CA_BUNDLE", False),
    ],
)
def test_the_variable_of_the_readme_names_the_authority(
    authority: trustme.CA, tmp_path: Path, program: str, variable: str, believes: bool
) -> None:
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    environment = {name: text for name, text in os.environ.items() if not name.endswith("CA_BUNDLE")}
    settings = {
        variable: str(tmp_path / "authority.pem"),
        "CPL_VSIL_CURL_USE_HEAD": "NO",
        "NO_PROXY": "localhost",
    }
    with over_tls(authority, "localhost") as server:
        url = server.url("/B02.tif", "localhost").replace("http:", "https:")
        command = [sys.executable, "-c", _READ[program], url]
        subprocess.run(command, env=environment | settings, capture_output=True, timeout=60)
    assert (server.asked != []) is believes


URL = f"https://{ARCHIVE}{PATH}"
TOKEN_PATH = f"{LOGIN}/api/users/find_or_create_token"
PASSWORD = "secret-password"
GIVES_A_TOKEN = Answer(
    body=f'{{"access_token":"{GIVEN}","token_type":"Bearer","expiration_date":"10/16/2030"}}'.encode(),
    headers={"Content-Type": "application/json"},
)


@pytest.fixture
def login(netrc: Path) -> None:
    netrc.write_text(f"machine {LOGIN} login me password {PASSWORD}\n")


@pytest.mark.parametrize("token", [TOKEN, ""])
def test_over_tls_the_bearer_goes_to_lp_daac_alone(
    nasa: Server, fetch: Fetching, login: None, token: str
) -> None:
    nasa.says(GIVES_A_TOKEN, path=TOKEN_PATH)
    nasa.says(Answer(303, headers={"Location": f"https://{STORAGE}/a?{SIGNATURE}"}), path=f"{ARCHIVE}{PATH}")
    nasa.says(Answer(body=BAND), path=f"{STORAGE}/a?{SIGNATURE}")
    fetch(LpDaac(token=token), URL)
    assert fetch.out.read_bytes() == BAND
    assert nasa.asked[-2:] == [
        (f"{ARCHIVE}{PATH}", f"Bearer {token or GIVEN}"),
        (f"{STORAGE}/a?{SIGNATURE}", None),
    ]
    asked_for_a_token = [name for name, _ in nasa.asked if name == TOKEN_PATH]
    assert bool(asked_for_a_token) is not bool(token)


@pytest.mark.usefixtures("login")
def test_the_login_in_netrc_gives_a_token_that_is_used_again(nasa: Server, fetch: Fetching) -> None:
    nasa.says(GIVES_A_TOKEN, path=TOKEN_PATH)
    nasa.says(Answer(body=BAND), path=f"{ARCHIVE}{PATH}")
    source = LpDaac()
    fetch(source, URL)
    for_the_token = len(nasa.asked) - 1
    for _ in range(2):
        fetch(source, URL)
    assert fetch.out.read_bytes() == BAND
    assert nasa.asked[for_the_token:] == [(f"{ARCHIVE}{PATH}", f"Bearer {GIVEN}")] * 3
    assert all(name == TOKEN_PATH for name, _ in nasa.asked[:for_the_token])
    basic = {login for name, login in nasa.asked if name == TOKEN_PATH and login}
    assert basic == {requests.auth._basic_auth_str("me", PASSWORD)}


@pytest.mark.usefixtures("login")
def test_threads_share_one_login(nasa: Server, tmp_path: Path, partials: PartialFiles) -> None:
    nasa.says(GIVES_A_TOKEN, path=TOKEN_PATH)
    nasa.says(Answer(body=b"x"), path=f"{ARCHIVE}{PATH}")
    alone = LpDaac()
    alone.fetch(FileRequest("a/b", "", URL, LIMIT), tmp_path / "alone", partials, lambda count: None)
    once = len(nasa.asked) - 1
    nasa.asked.clear()
    source = LpDaac()
    wanted = FileRequest("a/b", "", URL, LIMIT)
    with ThreadPoolExecutor(6) as pool:
        list(
            pool.map(
                lambda i: source.fetch(wanted, tmp_path / str(i), partials, lambda count: None), range(6)
            )
        )
    assert len([name for name, _ in nasa.asked if name == TOKEN_PATH]) == once


@pytest.mark.parametrize(
    "text", ["", "machine example.org login me password secret\n", "default login me password secret\n", None]
)
def test_without_a_login_the_archive_is_asked_without_one(
    nasa: Server, fetch: Fetching, netrc: Path, text: str | None
) -> None:
    nasa.says(Answer(302, headers={"Location": f"https://{LOGIN}/oauth"}), path=f"{ARCHIVE}{PATH}")
    if text is None:
        netrc.unlink()
    else:
        netrc.write_text(text)
    with pytest.raises(ForbiddenError, match=f"redirects to {LOGIN}.*set EARTHDATA_TOKEN"):
        fetch(LpDaac(), URL)
    assert nasa.asked == [(f"{ARCHIVE}{PATH}", None)]


@pytest.mark.parametrize(
    "content",
    [
        b"machine nonsense nonsense",
        f"machine {LOGIN} login me password Passw\xf6rter".encode("latin-1"),
    ],
    ids=["no netrc", "no UTF-8"],
)
def test_a_netrc_that_cannot_be_read_is_told(
    nasa: Server, fetch: Fetching, netrc: Path, content: bytes
) -> None:
    netrc.write_bytes(content)
    with pytest.raises(
        ForbiddenError, match=r"netrc cannot be read.*fix it, or set EARTHDATA_TOKEN"
    ) as error:
        fetch(LpDaac(), URL)
    assert "Passw" not in told(error.value)
    assert not nasa.asked


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
@pytest.mark.parametrize("log_in", [False, True])
def test_a_user_without_a_home_or_a_name_can_download(archive: Server, tmp_path: Path, log_in: bool) -> None:
    url = archive.says(Answer(body=BAND))
    shared = Path(tempfile.mkdtemp(prefix="nobody-"))
    shared.chmod(0o777)
    code = (
        "import os, sys; from pathlib import Path\n"
        "from resources.earthdata import LpDaac; from resources.resume import PartialFiles\n"
        "from resources.sources import Memory, Sources, FileRequest\n"
        "os.setgid(12345); os.setuid(12345)\n"
        "url, folder, token = sys.argv[1:]\n"
        "source = LpDaac(token=token, hosts=['127.0.0.1'])\n"
        "got = Sources([source], 1, Memory(1)).obtain(FileRequest('a/b', '', url, 1 << 22), Path(folder, 'b'),\n"
        "    PartialFiles(Path(folder, 'parts')), lambda path, got: None, print)\n"
        "print(got.source, os.getuid())\n"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, url, str(shared), TOKEN if log_in else ""],
            env={},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.stdout == "LP DAAC 12345\n", done.stdout + done.stderr
        assert (shared / "b").read_bytes() == BAND
    finally:
        shutil.rmtree(shared)
    assert archive.asked == [(PATH, f"Bearer {TOKEN}" if log_in else None)]


@pytest.mark.parametrize("name", ["me", "zoë"])
def test_one_post_with_the_login_gets_the_token(
    nasa: Server, fetch: Fetching, netrc: Path, name: str
) -> None:
    netrc.write_text(f"machine {LOGIN} login {name} password {PASSWORD}\n")
    nasa.says(GIVES_A_TOKEN, path=TOKEN_PATH)
    nasa.says(Answer(body=b"x"), path=f"{ARCHIVE}{PATH}")
    fetch(LpDaac(), URL)
    basic = base64.b64encode(f"{name}:{PASSWORD}".encode()).decode()
    assert nasa.asked == [(TOKEN_PATH, f"Basic {basic}"), (f"{ARCHIVE}{PATH}", f"Bearer {GIVEN}")]
    assert nasa.heard.startswith("POST /api/users/find_or_create_token HTTP/1.1\n")
    assert nasa.heard.count("POST ") == 1


ANSWERS_TO_A_LOGIN = {
    "401": (Answer(401), LoginError, "it answered 401"),
    "403": (Answer(403, b'{"error": "accept the EULA"}'), ForbiddenError, f"https://{LOGIN} shows whether"),
    "404": (Answer(404), ForbiddenError, "it answered 404"),
    "500": (Answer(500, PASSWORD.encode()), TryAgainError, f"{LOGIN} answered 500"),
    "elsewhere": (Answer(302, headers={"Location": f"https://{ARCHIVE}{PATH}"}), ForbiddenError, "Refused"),
    "garbage": (Answer(body=b"\xff\0"), ForbiddenError, "UnicodeDecodeError"),
    "nested": (Answer(body=b"[" * 100_000), ForbiddenError, "ValueError"),
    "no text": (Answer(body=b'{"access_token": 5}'), ForbiddenError, "it gave no token"),
    "two lines": (Answer(body=b'{"access_token": "a\\nb"}'), ForbiddenError, "it gave no token"),
    "huge": (Answer(body=b'{"access_token": "' + b"a" * (5 << 20) + b'"}'), ForbiddenError, "IntegrityError"),
    "cut short": (Answer(body=b"{", announced=2), CutShortError, "was cut short"),
}


@pytest.mark.parametrize("name", ANSWERS_TO_A_LOGIN)
@pytest.mark.usefixtures("login")
def test_an_answer_without_a_token_has_its_error(nasa: Server, fetch: Fetching, name: str) -> None:
    answer, kind, words = ANSWERS_TO_A_LOGIN[name]
    nasa.says(answer, path=TOKEN_PATH)
    source = LpDaac()
    for _ in range(2):
        with pytest.raises(ResourceError, match=words) as error:
            fetch(source, URL)
        assert type(error.value) is kind
        assert PASSWORD not in told(error.value)
    assert {asked for asked, _ in nasa.asked} == {TOKEN_PATH}
    assert len(nasa.asked) == (1 if issubclass(kind, ForbiddenError) else 2), (
        "a refused login is not repeated"
    )


REFUSALS = {
    "a refusal": Answer(401, b'{"error":"invalid_credentials"}'),
    "no right": Answer(403, b'{"error":"forbidden"}'),
    "no JSON": Answer(200, b"<html>please sign in</html>"),
    "no token": Answer(200, b'{"error":"max_token_limit"}'),
    "a list": Answer(200, b"[]"),
    "nothing": Answer(200, b""),
    "a word": Answer(200, b'"token"'),
}


@pytest.mark.parametrize("name", REFUSALS)
@pytest.mark.usefixtures("login")
def test_a_login_that_is_refused_is_told_without_its_words(
    nasa: Server, fetch: Fetching, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    caplog.set_level("DEBUG")
    nasa.says(REFUSALS[name], path=TOKEN_PATH)
    nasa.says(Answer(body=BAND), path=f"{ARCHIVE}{PATH}")
    source = LpDaac()
    with pytest.raises(ResourceError, match=f"{LOGIN} did not take the login in netrc") as error:
        fetch(source, URL)
    assert "set EARTHDATA_TOKEN" in str(error.value)
    assert {asked for asked, _ in nasa.asked} == {TOKEN_PATH}, "the archive is not asked without a login"
    everything = told(error.value) + caplog.text + repr(source)
    assert PASSWORD not in everything
    assert requests.auth._basic_auth_str("me", PASSWORD) not in everything
    assert not fetch.out.exists()


@pytest.mark.usefixtures("login")
def test_the_token_of_a_login_is_not_told(
    nasa: Server, fetch: Fetching, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    nasa.says(GIVES_A_TOKEN, path=TOKEN_PATH)
    nasa.says(Answer(500), path=f"{ARCHIVE}{PATH}")
    source = LpDaac()
    with pytest.raises(TryAgainError) as error:
        fetch(source, URL)
    everything = told(error.value) + caplog.text + repr(source) + str(source)
    assert "secret" not in everything


@pytest.mark.usefixtures("login")
def test_a_login_that_the_server_repeats_is_not_logged(
    nasa: Server, fetch: Fetching, caplog: pytest.LogCaptureFixture
) -> None:
    nasa.says(Answer(401, f"not me:{PASSWORD}".encode()), path=TOKEN_PATH)
    with pytest.raises(ResourceError) as error:
        fetch(LpDaac(), URL)
    assert PASSWORD not in told(error.value)
    assert PASSWORD not in caplog.text


@pytest.mark.usefixtures("login")
def test_a_login_that_was_refused_is_not_tried_for_every_file(nasa: Server, fetch: Fetching) -> None:
    nasa.says(REFUSALS["a refusal"], path=TOKEN_PATH)
    source = LpDaac()
    asked = []
    for _ in range(2):
        with pytest.raises(ForbiddenError, match="did not take the login"):
            fetch(source, URL)
        asked.append(len(nasa.asked))
    assert asked[0] == asked[1]


@pytest.mark.parametrize("status", [429, 500, 503, 0])
@pytest.mark.usefixtures("login")
def test_a_login_server_in_trouble_is_no_wrong_login(
    nasa: Server, fetch: Fetching, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    nasa.says(Answer(status or 200), path=TOKEN_PATH)
    if not status:

        def refused(*arguments: Any, **named: Any) -> None:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")

        monkeypatch.setattr(urllib3.util.connection, "create_connection", refused)
    with pytest.raises(ResourceError) as error:
        fetch(LpDaac(), URL)
    assert isinstance(error.value, TryAgainError)


@pytest.mark.usefixtures("login")
def test_a_token_of_the_login_that_has_run_out_is_asked_for_anew(nasa: Server, fetch: Fetching) -> None:
    nasa.says(GIVES_A_TOKEN, path=TOKEN_PATH)
    nasa.says(Answer(body=b"x"), Answer(401), Answer(body=BAND), path=f"{ARCHIVE}{PATH}")
    source = LpDaac()
    fetch(source, URL)
    fetch(source, URL)
    assert fetch.out.read_bytes() == BAND


@pytest.mark.usefixtures("login")
def test_threads_whose_token_has_run_out_share_one_new_login(
    nasa: Server, tmp_path: Path, partials: PartialFiles
) -> None:
    nasa.says(GIVES_A_TOKEN, path=TOKEN_PATH)
    nasa.says(Answer(body=b"x"), path=f"{ARCHIVE}{PATH}")
    source, wanted = LpDaac(), FileRequest("a/b", "", URL, LIMIT)

    def fetch(name: str) -> bool:
        return source.fetch(wanted, tmp_path / name, partials, lambda count: None)

    fetch("first")
    once = len(nasa.asked) - 1
    nasa.refused = f"Bearer {GIVEN}"
    nasa.says(Answer(body=GIVES_A_TOKEN.body.replace(GIVEN.encode(), b"another-token")), path=TOKEN_PATH)
    nasa.asked.clear()
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(fetch, "abcdef"))
    assert len([name for name, _ in nasa.asked if name == TOKEN_PATH]) == once
    assert {login for name, login in nasa.asked if name != TOKEN_PATH} >= {"Bearer another-token"}


@pytest.mark.usefixtures("login")
def test_files_that_one_may_not_have_do_not_each_cost_a_login(nasa: Server, fetch: Fetching) -> None:
    nasa.says(GIVES_A_TOKEN, path=TOKEN_PATH)
    nasa.says(Answer(403), path=f"{ARCHIVE}{PATH}")
    source = LpDaac()
    logins = []
    for _ in range(3):
        with pytest.raises(ForbiddenError):
            fetch(source, URL)
        logins.append([name for name, _ in nasa.asked].count(TOKEN_PATH))
    assert logins[1] == logins[2]


@pytest.mark.usefixtures("login")
def test_a_new_token_that_is_not_taken_either_ends_it(nasa: Server, fetch: Fetching) -> None:
    nasa.says(GIVES_A_TOKEN, path=TOKEN_PATH)
    nasa.says(Answer(401), path=f"{ARCHIVE}{PATH}")
    with pytest.raises(ForbiddenError, match="set EARTHDATA_TOKEN") as error:
        fetch(LpDaac(), URL)
    assert "secret" not in told(error.value)
    assert [name for name, _ in nasa.asked].count(f"{ARCHIVE}{PATH}") == 1


@pytest.mark.parametrize("where", [ARCHIVE, STORAGE])
def test_a_certificate_that_nobody_knows_ends_it(
    nasa: Server, fetch: Fetching, names: dict[str, int], where: str
) -> None:
    target = f"https://{STORAGE}/a?{SIGNATURE}"
    nasa.says(Answer(303, headers={"Location": target}), path=f"{ARCHIVE}{PATH}")
    with over_tls(trustme.CA(), where) as impostor:
        names[where] = impostor.port
        with pytest.raises(UnreachableError, match="cannot be reached") as error:
            fetch(LpDaac(token=TOKEN), URL)
    assert impostor.heard == ""
    assert "secret" not in told(error.value)
    assert not fetch.out.exists()


# HTTP as all resources speak it


def answered(status: int = 200, **headers: str) -> requests.Response:
    answer = requests.Response()
    answer.status_code = status
    answer.headers.update({name.replace("_", "-"): value for name, value in headers.items()})
    return answer


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("", 0),
        ("0", 0),
        ("7", 7),
        (" 7 ", 7),
        ("60", 60),
        ("61", 60),
        ("9" * 5000, 60),
        ("\u0663", 0),
        ("Mon, 01 Jan 99999 00:00:00 GMT", 0),
        ("Mon, 01 Jan 0001 00:00:00 +1400", 0),
        ("Mon, 01 Jan 0001 00:00:00 -0000", 0),
        (f"Mon, 01 Jan {'9' * 5000} 00:00:00 GMT", 0),
        ("-1", 0),
        ("1.5", 0),
        ("soon", 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 60),
        ("Fri, 31 Dec 1999 23:59:59 GMT", 0),
        ("Fri, 31 Dec 1999 23:59:59 +9999", 0),
        ("Fri, 99 Dec 2030", 0),
    ],
)
def test_the_pause_that_a_server_asks_for(text: str, seconds: float) -> None:
    assert retry_after(answered(503, Retry_After=text)) == seconds


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (404, NotFoundError),
        (410, NotFoundError),
        (401, LoginError),
        (403, ForbiddenError),
        (408, TryAgainError),
        (425, TryAgainError),
        (429, TryAgainError),
        (500, TryAgainError),
        (501, TryAgainError),
        (503, TryAgainError),
        (599, TryAgainError),
        (100, RefusedError),
        (204, RefusedError),
        (304, RefusedError),
        (400, RefusedError),
        (406, RefusedError),
        (451, RefusedError),
    ],
)
def test_what_a_status_means(status: int, expected: type[ResourceError]) -> None:
    with pytest.raises(ResourceError, match=f"https://example.org/a answered {status}") as error:
        check_status(answered(status), "https://example.org/a")
    assert type(error.value) is expected
    with pytest.raises(NotFoundError, match=f"^answered {status} no such block$"):
        check_status(answered(status), not_found=True, words="no such block")


@pytest.mark.parametrize("status", [200, 206])
def test_a_good_status_is_no_error(status: int) -> None:
    check_status(answered(status), "https://example.org/a")


@pytest.mark.parametrize(
    ("url", "target", "same"),
    [
        ("https://ipfs.io/ipfs/a", "https://ipfs.io/ipfs/b", True),
        ("https://ipfs.io/ipfs/a", "https://IPFS.io:443/b", True),
        ("https://ipfs.io/ipfs/a", "https://IPFS.io:8443/b", False),
        ("https://ipfs.io:8443/ipfs/a", "https://a.ipfs.io:8443/b", True),
        ("http://ipfs.io/ipfs/a", "https://ipfs.io/b", True),
        ("http://ipfs.io:8080/ipfs/a", "https://ipfs.io/b", False),
        ("https://dweb.link/ipfs/a", "https://a.ipfs.dweb.link/", True),
        ("http://ipfs.io/ipfs/a", "https://ipfs.io/ipfs/a", True),
        ("http://127.0.0.1:8080/a", "http://127.0.0.1:8080/b", True),
        ("http://127.0.0.1:8080/a", "http://127.0.0.1:8081/b", False),
        ("http://[::1]:8080/a", "http://[::1]:8081/b", False),
        ("https://ipfs.io/ipfs/a", "http://ipfs.io/ipfs/a", False),
        ("https://ipfs.io/ipfs/a", "https://example.org/ipfs/a", False),
        ("https://ipfs.io/ipfs/a", "https://evilipfs.io/ipfs/a", False),
        ("https://ipfs.io/ipfs/a", "https://ipfs.io.example.org/ipfs/a", False),
        ("https://ipfs.io/ipfs/a", "https://me@ipfs.io/ipfs/a", False),
        ("https://ipfs.io/ipfs/a", "https://ipfs.io@example.org/ipfs/a", False),
        ("https://a.ipfs.dweb.link/", "https://dweb.link/", False),
        ("https://ipfs.io/ipfs/a", "ftp://ipfs.io/ipfs/a", False),
        ("https://ipfs.io/ipfs/a", "file:///etc/passwd", False),
        ("https://ipfs.io/ipfs/a", "", False),
        ("https://ipfs.io/ipfs/a", "https://example.org\\.ipfs.io/a", False),
    ],
)
def test_what_counts_as_the_same_site(url: str, target: str, same: bool) -> None:
    assert same_site(url, target) is same


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(pace, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def arriving(clock: list[float], *pieces: tuple[float, int]) -> Iterator[bytes]:
    """Pieces of so many bytes, each after so many seconds."""
    for seconds, size in pieces:
        clock[0] += seconds
        yield bytes(size)


def test_what_arrives_slowly_but_steadily_is_waited_for(clock: list[float]) -> None:
    pieces = [(10.0, 50_000)] * 100
    assert sum(map(len, in_time(arriving(clock, *pieces), 60))) == 5_000_000


def test_what_is_late_and_small_is_waited_for_as_long_as_one_is_patient(clock: list[float]) -> None:
    assert b"".join(in_time(arriving(clock, (59, 1), (1, 1)), 60)) == bytes(2)


def test_what_drips_is_given_up(clock: list[float]) -> None:
    with pytest.raises(SlowError, match=r"is too slow \(7 bytes in 70 s\)"):
        list(in_time(arriving(clock, *[(10.0, 1)] * 100), 60))


def test_what_begins_to_drip_is_given_up_as_well(clock: list[float]) -> None:
    with pytest.raises(SlowError):
        list(in_time(arriving(clock, (1.0, 60_000_000), *[(50.0, 1)] * 10), 60))


def test_bytes_are_bounded_and_whole(archive: Server) -> None:
    url = archive.says(Answer(body=b"12345"))
    with new_session(attempts=1) as session:
        assert get_bytes(session, url, 5, 5) == b"12345"
        with pytest.raises(IntegrityError, match="more than 4 bytes"):
            get_bytes(session, url, 5, 4)
        archive.says(Answer(body=b"1234", announced=5))
        with pytest.raises(CutShortError, match=f"{url} was cut short") as error:
            get_bytes(session, url, 5, 5)
    assert error.value.__suppress_context__, "what requests says repeats addresses"


@pytest.mark.parametrize("compress", [True, False])
def test_bytes_come_unpacked(archive: Server, compress: bool) -> None:
    body = gzip.compress(BAND) if compress else BAND
    url = archive.says(Answer(body=body, headers={"Content-Encoding": "gzip"} if compress else {}))
    with new_session(attempts=1) as session:
        assert get_bytes(session, url, 5, LIMIT) == BAND
    assert "Accept-Encoding: gzip\n" in archive.heard


def test_a_small_answer_that_unpacks_to_a_large_one_is_refused(archive: Server) -> None:
    packed = gzip.compress(bytes(100 * LIMIT), 9)
    assert len(packed) < LIMIT
    url = archive.says(Answer(body=packed, headers={"Content-Encoding": "gzip"}))
    with new_session(attempts=1) as session:
        with pytest.raises(IntegrityError, match="answered more than 4,000,000 bytes"):
            get_bytes(session, url, 5, LIMIT)
        archive.says(Answer(body=gzip.compress(packed), headers={"Content-Encoding": "gzip, gzip"}))
        with pytest.raises(IntegrityError, match="which was not asked for"):
            get_bytes(session, url, 5, LIMIT)


def test_bytes_are_asked_for_as_often_as_configured(archive: Server) -> None:
    url = archive.says(Answer(503, headers={"Retry-After": "0"}), Answer(503), Answer(body=b"x"))
    with new_session(attempts=2) as session, pytest.raises(TryAgainError, match=f"{url} answered 503"):
        get_bytes(session, url, 5, 5)
    assert len(archive.asked) == 2


def test_a_restricted_session_takes_a_redirect_only_where_it_may(archive: Server) -> None:
    archive.says(Answer(body=b"x"), path="/b")
    url = archive.says(Answer(302, headers={"Location": archive.url("/b")}))
    asked: list[tuple[str, str]] = []

    def may(here: str, target: str) -> bool:
        asked.append((here, target))
        return len(asked) == 1

    with RestrictedSession(may) as session:
        assert session.get(url, timeout=5).content == b"x"
        assert asked == [(url, archive.url("/b"))]
        with pytest.raises(
            RefusedError, match=r"redirects to 127\.0\.0\.1:\d+, which is not followed"
        ) as error:
            session.get(url, timeout=5)
    assert "/b" not in str(error.value)


def test_a_file_in_pieces_is_written_as_it_comes(archive: Server, tmp_path: Path) -> None:
    url = archive.says(Answer(body=BAND))
    told: list[int] = []
    with RestrictedSession(same_site) as session:
        assert get_file(session, url, 5, LIMIT, tmp_path / "a", progress=told.append) == len(BAND)
    assert (tmp_path / "a").read_bytes() == BAND
    assert not (tmp_path / "a.etag").exists()
    assert sum(told) == len(BAND)
