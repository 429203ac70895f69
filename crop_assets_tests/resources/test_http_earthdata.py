import base64
import gzip
import hashlib
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests

from resources.earthdata import LpDaac
from resources.errors import CutShortError, IntegrityError, NotFoundError, ResourceError, UnavailableError
from resources.http import get_bytes, new_session, require_host

TOKEN = "eyJ0eXAi.secret-token.c2lnbmF0dXJl"
BAND = hashlib.shake_256(b"a band").digest(3_000_000)
LIMIT = 4_000_000
PATH = "/HLSS30.020/HLS.S30.T14SMF.2021062T172221.v2.0.B02.tif"


@dataclass
class Answer:
    """An answer as it goes over the wire; `announced` is its Content-Length, None for its true length."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    announced: int | None = None


@dataclass
class Server:
    """A scripted server on loopback: each path has its answers, the last of which is repeated."""

    port: int
    script: dict[str, list[Answer]] = field(default_factory=dict)
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    """Path and Authorization header of each request."""
    heard: str = ""
    """All headers of all requests."""

    def url(self, path: str = PATH, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    def says(self, *answers: Answer, path: str = PATH) -> str:
        self.script[path] = list(answers)
        return self.url(path)


@pytest.fixture
def new_server() -> Iterator[Callable[[], Server]]:
    running: list[ThreadingHTTPServer] = []

    def start() -> Server:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append((self.path, self.headers.get("Authorization")))
                server.heard += str(self.headers)
                answers = server.script.get(self.path, [Answer(404)])
                answer = answers.pop(0) if len(answers) > 1 else answers[0]
                self.send_response(answer.status)
                announced = len(answer.body) if answer.announced is None else answer.announced
                for name, value in {"Content-Length": str(announced), **answer.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer.body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server = Server(listener.server_port)
        threading.Thread(target=listener.serve_forever, args=(0.05,), daemon=True).start()
        running.append(listener)
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
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "B02.tif"


def lp_daac(token: str = TOKEN, attempts: int = 2) -> LpDaac:
    return LpDaac(token=token, hosts=["127.0.0.1"], timeout_seconds=5, attempts=attempts)


def basic(login: str) -> str:
    return "Basic " + base64.b64encode(login.encode()).decode()


def test_a_file_comes_whole_and_with_the_bearer(archive: Server, out: Path) -> None:
    url = archive.says(Answer(body=BAND))
    assert lp_daac().fetch(url, out, LIMIT) == len(BAND)
    assert out.read_bytes() == BAND
    assert archive.asked == [(PATH, f"Bearer {TOKEN}")]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_the_bearer_stays_behind_when_a_redirect_leads_to_another_server(
    archive: Server, storage: Server, out: Path, host: str
) -> None:
    storage.says(Answer(body=BAND), path="/presigned?X-Amz-Signature=abc")
    target = storage.url("/presigned?X-Amz-Signature=abc", host)
    url = archive.says(Answer(303, headers={"Location": target}))
    assert lp_daac().fetch(url, out, LIMIT) == len(BAND)
    assert archive.asked == [(PATH, f"Bearer {TOKEN}")]
    assert storage.asked == [("/presigned?X-Amz-Signature=abc", None)]
    assert "secret-token" not in storage.heard
    assert "secret-token" in archive.heard


def test_the_bearer_stays_behind_when_only_the_name_of_the_host_changes(archive: Server, out: Path) -> None:
    archive.says(Answer(body=BAND), path="/presigned")
    url = archive.says(Answer(307, headers={"Location": archive.url("/presigned", "localhost")}))
    lp_daac().fetch(url, out, LIMIT)
    assert archive.asked == [(PATH, f"Bearer {TOKEN}"), ("/presigned", None)]


def test_a_login_in_netrc_does_not_replace_the_bearer(archive: Server, out: Path, netrc: Path) -> None:
    netrc.write_text("machine 127.0.0.1 login me password hidden\n")
    url = archive.says(Answer(body=b"x"))
    lp_daac().fetch(url, out, LIMIT)
    assert archive.asked == [(PATH, f"Bearer {TOKEN}")]


def test_without_a_token_the_login_in_netrc_is_used_at_its_own_host_only(
    archive: Server, storage: Server, out: Path, netrc: Path
) -> None:
    """Earthdata Login: the archive sends on to the login server, and that one back with a code."""
    netrc.write_text("machine localhost login me password hidden\n")
    login = storage.url("/oauth/authorize", "localhost")
    url = archive.says(Answer(302, headers={"Location": login}))
    storage.says(Answer(302, headers={"Location": archive.url("/login?code=1")}), path="/oauth/authorize")
    archive.says(Answer(body=BAND), path="/login?code=1")
    lp_daac(token="").fetch(url, out, LIMIT)
    assert out.read_bytes() == BAND
    assert archive.asked == [(PATH, None), ("/login?code=1", None)]
    assert storage.asked == [("/oauth/authorize", basic("me:hidden"))]


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("token", [TOKEN, ""])
def test_a_refusal_says_how_to_log_in(archive: Server, out: Path, status: int, token: str) -> None:
    url = archive.says(Answer(status, b"who are you?"))
    with pytest.raises(ResourceError) as error:
        lp_daac(token).fetch(url, out, LIMIT)
    assert str(error.value) == (
        f"{url} answered {status}: not allowed with these credentials; set EARTHDATA_TOKEN to a token from "
        "urs.earthdata.nasa.gov, or put that host's login into ~/.netrc"
    )
    assert len(archive.asked) == 1


FAULTS = {
    "401": ([Answer(401)], ResourceError),
    "404": ([Answer(404)], NotFoundError),
    "410": ([Answer(410)], NotFoundError),
    "400": ([Answer(400)], UnavailableError),
    "500": ([Answer(500)], UnavailableError),
    "503": ([Answer(503)], UnavailableError),
    "cut short": ([Answer(body=BAND[:-1], announced=len(BAND))], CutShortError),
    "cut chunks": (
        [Answer(body=b"5\r\nabcde\r\n", headers={"Transfer-Encoding": "chunked"}, announced=15)],
        CutShortError,
    ),
    "too large": ([Answer(body=bytes(LIMIT + 1))], IntegrityError),
    "no gzip": ([Answer(body=b"not gzip", headers={"Content-Encoding": "gzip"})], UnavailableError),
    "a circle": ([Answer(302, headers={"Location": PATH})], UnavailableError),
    "to another protocol": ([Answer(302, headers={"Location": "ftp://127.0.0.1/a"})], UnavailableError),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_error_has_its_class_names_its_url_and_keeps_the_token_to_itself(
    archive: Server, out: Path, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    answers, expected = FAULTS[fault]
    url = archive.says(*answers)
    caplog.set_level("DEBUG")
    source = lp_daac()
    with pytest.raises(ResourceError) as error:
        source.fetch(url, out, LIMIT)
    assert type(error.value) is expected
    assert url in str(error.value)
    told = "".join(traceback.format_exception(error.value)) + repr(error.value) + caplog.text + repr(source)
    assert f"Bearer {TOKEN}" in {header for _, header in archive.asked}
    assert "secret-token" not in told


@pytest.mark.parametrize("token", [f"{TOKEN}\n", f" {TOKEN}"])
def test_white_space_around_the_token_is_dropped(archive: Server, out: Path, token: str) -> None:
    url = archive.says(Answer(body=b"x"))
    lp_daac(token).fetch(url, out, LIMIT)
    assert archive.asked == [(PATH, f"Bearer {TOKEN}")]


@pytest.mark.parametrize("junk", ["\n", "\r\nX-Injected: 1", "\0", "…", "\x7f"])
def test_a_token_that_cannot_be_one_is_refused_and_not_repeated(
    archive: Server, out: Path, junk: str
) -> None:
    url = archive.says(Answer(body=b"x"))
    with pytest.raises(ResourceError, match="EARTHDATA_TOKEN has characters that no token has") as error:
        lp_daac(f"{TOKEN}{junk}more").fetch(url, out, LIMIT)
    assert "secret-token" not in "".join(traceback.format_exception(error.value))
    assert not archive.asked


def test_a_body_just_within_the_limit_is_taken(archive: Server, out: Path) -> None:
    url = archive.says(Answer(body=BAND))
    assert lp_daac().fetch(url, out, len(BAND)) == len(BAND)
    with pytest.raises(IntegrityError, match="answered more than 2,999,999 bytes"):
        lp_daac().fetch(url, out, len(BAND) - 1)


def test_a_small_answer_that_unpacks_to_a_large_one_is_refused(archive: Server, out: Path) -> None:
    packed = gzip.compress(bytes(100 * LIMIT), 9)
    assert len(packed) < LIMIT
    url = archive.says(Answer(body=packed, headers={"Content-Encoding": "gzip"}))
    with pytest.raises(IntegrityError, match="answered more than 4,000,000 bytes"):
        lp_daac().fetch(url, out, LIMIT)
    assert out.stat().st_size <= LIMIT


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_passing_failure_is_tried_again(archive: Server, out: Path, status: int) -> None:
    url = archive.says(Answer(status, headers={"Retry-After": "0"}), Answer(body=b"x"))
    assert lp_daac(attempts=2).fetch(url, out, LIMIT) == 1
    assert archive.asked == [(PATH, f"Bearer {TOKEN}")] * 2


def test_a_lasting_failure_is_tried_as_often_as_configured(archive: Server, out: Path) -> None:
    url = archive.says(Answer(503))
    with pytest.raises(UnavailableError, match=f"{url} answered 503"):
        lp_daac(attempts=3).fetch(url, out, LIMIT)
    assert len(archive.asked) == 3


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost/a.tif",
        "http://127.0.0.1.example.org/a.tif",
        "http://127.0.0.1@example.org/a.tif",
        "http://example.org/127.0.0.1/a.tif",
        "ftp://127.0.0.1/a.tif",
        "file:///etc/passwd",
        "s3://lp-prod-protected/a.tif",
        "/etc/passwd",
        "",
    ],
)
def test_only_configured_hosts_are_asked(out: Path, url: str) -> None:
    with pytest.raises(IntegrityError, match=r"is not among the configured hosts \(127\.0\.0\.1\)"):
        lp_daac().fetch(url, out, LIMIT)
    assert not out.exists()


@pytest.mark.parametrize("token", ["", TOKEN])
def test_no_login_goes_over_a_line_that_others_can_read(out: Path, token: str) -> None:
    lp_daac = LpDaac(token=token, hosts=["data.lpdaac.earthdatacloud.nasa.gov"])
    with pytest.raises(IntegrityError, match="is not https") as caught:
        lp_daac.fetch(f"http://data.lpdaac.earthdatacloud.nasa.gov{PATH}", out, LIMIT)
    assert TOKEN not in str(caught.value)
    assert not out.exists()


def test_an_address_that_cannot_be_read_is_refused(out: Path) -> None:
    with pytest.raises(IntegrityError, match=r"http://\[/ is not a URL"):
        require_host("http://[/", {"127.0.0.1"})


def test_a_server_that_is_not_there_is_unavailable(archive: Server, out: Path) -> None:
    with pytest.raises(UnavailableError, match=r"http://127\.0\.0\.1:1/a\.tif could not be read"):
        lp_daac().fetch("http://127.0.0.1:1/a.tif", out, LIMIT)


def test_bytes_are_bounded_and_whole(archive: Server) -> None:
    url = archive.says(Answer(body=b"12345"))
    with new_session(attempts=1) as session:
        assert get_bytes(session, url, 5, 5) == b"12345"
        with pytest.raises(IntegrityError, match="more than 4 bytes"):
            get_bytes(session, url, 5, 4)
        archive.says(Answer(body=b"1234", announced=5))
        with pytest.raises(IntegrityError, match=f"{url} was cut short") as error:
            get_bytes(session, url, 5, 5)
    assert isinstance(error.value.__cause__, requests.RequestException)
