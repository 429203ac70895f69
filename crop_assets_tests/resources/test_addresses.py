"""One reading of an address: what could be read in two ways is refused, and no login goes astray by it."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st
from requests.adapters import HTTPAdapter

from crop_assets.labels.aoi import read_aoi
from crop_assets.recipe import DatasetRecipe
from crop_assets_tests.resources.loopback import closed_port
from resources.addresses import AddressError, join, leads_to, read, require_host, safe_elsewhere, same_site
from resources.cdl import CdlReleases, archive_links
from resources.earthdata import LpDaac
from resources.errors import IntegrityError, NotFoundError, RefusedError, ResourceError
from resources.http import RestrictedSession, get_file
from resources.ipfs.nodes import Gateway, KuboNode
from resources.resume import PartialFiles
from resources.sources import FileRequest
from resources.stac import IpfsStac, SceneStac
from resources.store import DatasetStore
from resources.words import redacted

TOKEN = "secret-token"
HOST = "data.lpdaac.earthdatacloud.nasa.gov"
OTHER = "evil.example"

TWO_WAYS = [
    rf"https://{OTHER}\@{HOST}/x.tif",
    rf"https://{OTHER}\.{HOST}/x.tif",
    rf"https://{OTHER}:443\@{HOST}/x.tif",
    rf"https://{HOST}\{OTHER}/x.tif",
    rf"https:\\{HOST}\x.tif",
    rf"https://{HOST}/x\y.tif",
    f"https://{OTHER}@{HOST}/x.tif",
    f"https://{HOST}@{OTHER}/x.tif",
    f"https://{HOST}:443@{OTHER}/x.tif",
    f"https://@{HOST}/x.tif",
    f"https://{HOST}%2f@{OTHER}/",
    f"https://{HOST}%00.{OTHER}/",
    f"https://%64ata.{HOST}/x.tif",
    f"https://{HOST} .{OTHER}/",
    f" https://{HOST}/",
    f"https://{HOST}/ ",
    f"https://{HOST}/a\tb",
    f"https://{HOST}\n.{OTHER}/",
    f"ht\ntps://{HOST}/",
    f"https://{HOST}/\r\nX-Injected: 1",
    f"https://{HOST}\0.{OTHER}/",
    f"https://{HOST}/\x7f",
    f"https://{HOST}/\x85",
    f"https://{HOST}/\u2028",
    f"https://{HOST}/\u202egpj.tif",
    f"https://{HOST}/\ud800",
    f"https://{HOST}\u3002{OTHER}/",
    f"https://{HOST}\uff0f.{OTHER}/",
    f"https://{HOST}\u2100.{OTHER}/",
    f"https://\uff44ata.{OTHER}/",
    f"https://{HOST}\u00ad/",
    "https://b\u00fccher.example/",
    f"https://{HOST}./",
    f"https://.{HOST}/",
    f"https://data..{OTHER}/",
    f"https://{HOST}:/",
    f"https://{HOST}:0/",
    f"https://{HOST}:65536/",
    f"https://{HOST}:-1/",
    f"https://{HOST}:+443/",
    f"https://{HOST}:443:443/",
    f"https://{HOST}:4 43/",
    f"https://{HOST}:\u0664\u0664\u0663/",
    "https://0x7f.1/",
    "https://0x7f000001/",
    "https://0X7F.0.0.1/",
    "https://2130706433/",
    "https://127.1/",
    "https://0177.0.0.1/",
    "https://1.2.3.4.5/",
    "https://127.0.0.1./",
    "https://a.0x/",
    "https://256.0.0.1/",
    "https://[::1%25eth0]/",
    "https://[fe80::1%eth0]/",
    "https://[::1/",
    "https://[::1]x/",
    "https://[::1].evil.example/",
    "https://[127.0.0.1]/",
    "https://[v1.fe80]/",
    "https://::1/",
    "https:///x.tif",
    "https:/x.tif",
    f"https:{HOST}/x.tif",
    f"https://?@{HOST}/",
    "https://",
    f"//{HOST}/x.tif",
    "x.tif",
    "",
    f"ftp://{HOST}/x.tif",
    "file:///etc/passwd",
    "s3://lp-prod-protected/x.tif",
    "javascript://https/",
    f"httpss://{HOST}/",
    f"http://{HOST}/x.tif",
    "http://10.0.0.1/x.tif",
    f"http://localhost.{OTHER}/",
    f"https://{'a' * 64}.example/",
    f"https://{HOST}/{'a' * 9000}",
]


@pytest.mark.parametrize("url", TWO_WAYS)
def test_what_could_be_read_in_two_ways_is_no_address(url: str) -> None:
    with pytest.raises(AddressError) as error:
        read(url)
    assert len(str(error.value)) < 600
    assert str(error.value).isprintable()
    with pytest.raises(IntegrityError):
        require_host(url, [HOST])
    assert not leads_to(url, [HOST, OTHER])


@pytest.mark.parametrize(
    ("url", "origin", "sent"),
    [
        (f"https://{HOST}/x.tif", ("https", HOST, 443), f"https://{HOST}/x.tif"),
        (f"HTTPS://{HOST.upper()}:8443", ("https", HOST, 8443), f"https://{HOST}:8443/"),
        (
            "https://a_b.example/\u00e4?q=a@b#c",
            ("https", "a_b.example", 443),
            "https://a_b.example/%C3%A4?q=a@b#c",
        ),
        ("https://xn--bcher-kva.example/", ("https", "xn--bcher-kva.example", 443), None),
        ("http://127.0.0.1:5001/api", ("http", "127.0.0.1", 5001), None),
        ("http://[::1]:8080/", ("http", "::1", 8080), None),
        ("http://bafy.ipfs.localhost:8080/", ("http", "bafy.ipfs.localhost", 8080), None),
        ("https://8.8.8.8/", ("https", "8.8.8.8", 443), None),
        ("https://1e100.example7/", ("https", "1e100.example7", 443), None),
        (f"https://{HOST}/a%5cb@c", ("https", HOST, 443), f"https://{HOST}/a%5Cb@c"),
    ],
)
def test_an_address_is_read_as_it_is_sent(url: str, origin: tuple[str, str, int], sent: str | None) -> None:
    address = read(url)
    assert (address.scheme, address.host, address.port) == origin
    assert address.url == (sent or url)
    assert read(address.url) == address


PARTS = [
    "https:",
    "http:",
    "/",
    "//",
    "\\",
    "@",
    ":",
    "?",
    "#",
    ".",
    "[",
    "]",
    "%",
    "%2f",
    "%5c",
    "%40",
    " ",
    "\t",
]
PARTS += [
    "\u3002",
    "\uff0f",
    "\uff20",
    "\u2100",
    "0x7f",
    "127",
    "::1",
    "443",
    "99999",
    "a",
    "A",
    HOST,
    OTHER,
    "localhost",
]


@given(st.lists(st.sampled_from(PARTS), max_size=9).map("".join) | st.text(max_size=20))
def test_whatever_is_taken_goes_to_the_host_that_was_checked(rest: str) -> None:
    for url in (f"https://{rest}", rest):
        try:
            address = read(url)
        except AddressError:
            continue
        prepared = requests.Request("GET", url).prepare()
        host, _ = HTTPAdapter().build_connection_pool_key_attributes(prepared, True)
        assert str(host["host"]).strip("[]") == address.host
        assert (host["port"] or 443) == address.port
        assert "Authorization" not in prepared.headers


@pytest.mark.parametrize("url", [url for url in TWO_WAYS if not url.startswith(("http://", "//", "x"))])
def test_no_redirect_and_no_link_leads_there(url: str) -> None:
    assert not same_site(f"https://{HOST}/", url)
    assert not safe_elsewhere(f"https://{HOST}/", url)
    # what is relative is joined to the page's own address
    links = archive_links(f'<a href="{url}/2022_30m_cdls.zip">', f"https://{HOST}/", lambda *_: True)
    assert not links or links[2022].startswith(f"https://{HOST}/")


def test_links_are_joined_to_where_they_stand() -> None:
    base = f"https://{HOST}/a/b"
    assert join(base, "../c").url == f"https://{HOST}/c"
    assert join(base, "//cdn.example/c").host == "cdn.example"
    for link in ("/\t/evil.example", "\\\\evil.example", "//me@evil.example", "ht\ntp://x", "//a:b:c", "//["):
        with pytest.raises(AddressError):
            join(base, link)


class Listener:
    """A server on loopback that notes what it is asked, and sends the next of `answers`."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str | None]] = []
        self.location = ""
        self.body = b"a band"
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append((self.path, self.headers.get("Authorization")))
                self.send_response(302 if outer.location else 200)
                if outer.location:
                    self.send_header("Location", outer.location)
                self.send_header("Content-Length", str(len(outer.body)))
                self.end_headers()
                self.wfile.write(outer.body)

            do_POST = do_HEAD = do_GET

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def listeners() -> Iterator[tuple[Listener, Listener]]:
    """The server that may be asked, as localhost, and one on another port that nobody has configured."""
    both = Listener(), Listener()
    yield both
    for each in both:
        each.stop()


@pytest.fixture(autouse=True)
def netrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").touch()
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


CONFUSING = [
    r"http://127.0.0.1:{other}\@localhost:{own}/x.tif",
    r"http://127.0.0.1:{other}\.localhost:{own}/x.tif",
    r"http://127.0.0.1:{other}/\@localhost:{own}/x.tif",
    r"http://127.0.0.1:{other}@localhost:{own}/x.tif",
    r"http:\\127.0.0.1:{other}\@localhost:{own}/x.tif",
    "http://127.0.0.1:{other}#@localhost:{own}/x.tif",
    "http://0x7f.1:{other}/x.tif",
]


@pytest.mark.parametrize("link", CONFUSING)
def test_the_token_does_not_reach_a_host_that_only_one_parser_sees(
    listeners: tuple[Listener, Listener], tmp_path: Path, link: str
) -> None:
    own, other = listeners
    url = link.format(own=own.port, other=other.port)
    source = LpDaac(token=TOKEN, hosts=["localhost"], storage_hosts=[], timeout_seconds=5)
    with pytest.raises(IntegrityError):
        source.fetch(
            FileRequest("B02.tif", "", url, 100),
            tmp_path / "out",
            PartialFiles(tmp_path / "p"),
            lambda _: None,
        )
    assert other.asked == []
    assert own.asked == []


@pytest.mark.parametrize("link", CONFUSING)
def test_the_token_does_not_follow_a_redirect_there(
    listeners: tuple[Listener, Listener], tmp_path: Path, link: str
) -> None:
    own, other = listeners
    own.location = link.format(own=own.port, other=other.port)
    source = LpDaac(token=TOKEN, hosts=["localhost"], storage_hosts=[], timeout_seconds=5)
    wanted = FileRequest("B02.tif", "", f"http://localhost:{own.port}/x.tif", 100)
    with pytest.raises(RefusedError, match="not followed"):
        source.fetch(wanted, tmp_path / "out", PartialFiles(tmp_path / "p"), lambda _: None)
    assert other.asked == []
    assert own.asked == [("/x.tif", f"Bearer {TOKEN}")]


def login(request: requests.PreparedRequest) -> requests.PreparedRequest:
    request.headers["Authorization"] = f"Bearer {TOKEN}"
    return request


@pytest.mark.parametrize("link", [*CONFUSING, "http://127.0.0.1:{other}/x.tif"])
def test_what_came_past_all_other_checks_takes_no_login_along(
    listeners: tuple[Listener, Listener], tmp_path: Path, link: str
) -> None:
    own, other = listeners
    url = link.format(own=own.port, other=other.port)
    with (
        RestrictedSession(lambda *_: True, login_hosts=["localhost"]) as session,
        pytest.raises(ResourceError),
    ):
        get_file(session, url, 5, 100, tmp_path / "out", login)
    assert other.asked == []
    with RestrictedSession(lambda *_: True, login_hosts=["localhost"]) as session:
        get_file(session, f"http://localhost:{own.port}/x.tif", 5, 100, tmp_path / "out", login)
    assert own.asked == [("/x.tif", f"Bearer {TOKEN}")]


@pytest.mark.parametrize("link", CONFUSING)
def test_no_catalogue_page_or_gateway_is_asked_there(
    listeners: tuple[Listener, Listener], tmp_path: Path, link: str
) -> None:
    own, other = listeners
    url = link.format(own=own.port, other=other.port)
    if "#" not in url:
        for catalogue in (SceneStac, IpfsStac):
            with pytest.raises((ValueError, NotFoundError)):
                catalogue(url=url, attempts=1).items(["a"])
        for node in (Gateway, KuboNode):
            with pytest.raises(ValueError, match="must be the http or https URL of a server"):
                node(url, 5)
        with pytest.raises(ValueError, match="CROP_ASSETS_CDL_INDEX"):
            CdlReleases(source=str(tmp_path), index=url)
    stac = SceneStac(url=f"http://localhost:{own.port}/stac", attempts=1)
    with pytest.raises(IntegrityError):
        stac.document(url)
    own.location = url
    with pytest.raises(ResourceError):
        stac.document(f"http://localhost:{own.port}/a.umm_json")
    assert other.asked == []


@pytest.mark.parametrize("href", ["/etc/hostname", "file:///etc/hostname", "http://127.0.0.1:{other}/search"])
def test_a_catalogue_leads_to_no_file_and_no_other_server(
    listeners: tuple[Listener, Listener], href: str
) -> None:
    own, other = listeners
    href = href.format(other=other.port)
    own.body = (
        '{"type": "Catalog", "id": "a", "stac_version": "1.0.0", "description": "", '
        '"conformsTo": ["https://api.stacspec.org/v1.0.0/item-search"], '
        f'"links": [{{"rel": "search", "href": "{href}", "type": "application/geo+json", "method": "POST"}}]}}'
    ).encode()
    with pytest.raises(IntegrityError, match=r"not an address that is asked|is another site|KeyError"):
        IpfsStac(url=f"http://localhost:{own.port}/", attempts=1).items(["a"])
    assert other.asked == []


def test_a_link_of_a_catalogue_adds_no_headers_and_no_other_method(
    listeners: tuple[Listener, Listener],
) -> None:
    own, _ = listeners
    own.body = b'{"type": "FeatureCollection", "features": [{"id": "a"}], "links": [{"rel": "next", "href": '
    own.body += f'"http://localhost:{own.port}/next", "method": "DELETE", '.encode()
    own.body += b'"headers": {"Authorization": "Bearer theirs", "Host": "evil.example"}}]}'
    from resources.http import RateLimit
    from resources.stac import Bounds, _Io

    reader = _Io(f"http://localhost:{own.port}/", 1, 5, RateLimit(100))
    reader.bounds = Bounds("", 9)
    pages = reader.get_pages(f"http://localhost:{own.port}/search", "POST", {})
    next(pages), next(pages)
    assert own.asked == [("/search", None), ("/next", None)]


def test_plain_http_is_for_this_machine_and_configured_nodes_alone(tmp_path: Path) -> None:
    for url in ("http://kubo.example:5001", "http://10.0.0.7:8080"):
        assert Gateway(url, 5).host == KuboNode(url, 5).host
        with pytest.raises(ValueError, match="it is not https"):
            SceneStac(url=url)
        with pytest.raises(ValueError, match="it is not https"):
            SceneStac(granule_search=url)
        with pytest.raises(ValueError, match="it is not https"):
            CdlReleases(source=str(tmp_path), index=url)
        with RestrictedSession(same_site) as session, pytest.raises(AddressError, match="it is not https"):
            session.get(url, timeout=5)
        with (
            RestrictedSession(same_site, plain_hosts=["gateway.example"]) as session,
            pytest.raises(AddressError),
        ):
            session.get(url, timeout=5)
    place = closed_port().replace("127.0.0.1", "localhost")
    with RestrictedSession(same_site) as session, pytest.raises(requests.ConnectionError):
        session.get(place, timeout=5)


@pytest.mark.parametrize(
    ("url", "entry", "there"),
    [
        ("https://a.example/", "a.example", True),
        ("https://a.example:443/", "A.example", True),
        ("https://a.example:8443/", "a.example", False),
        ("https://a.example:8443/", "a.example:8443", True),
        ("https://a.example/", "a.example:8443", False),
        ("https://a.example/", "a.example:443", True),
        ("http://127.0.0.1:5001/", "127.0.0.1", True),
        ("http://127.0.0.1:5001/", "127.0.0.1:5001", True),
        ("http://127.0.0.1:5001/", "127.0.0.1:5002", False),
        ("http://[::1]:5001/", "::1", True),
        ("http://[::1]:5001/", "[::1]:5001", True),
        ("http://[::1]:5001/", "[::1]:5002", False),
        ("https://a.example/", "a.example:", False),
        ("https://a.example/", ":443", False),
        ("https://a.example/", "", False),
        ("https://a.example/", "a.example:\u0664\u0664\u0663", False),
    ],
)
def test_an_entry_of_a_list_of_hosts_may_name_a_port(url: str, entry: str, there: bool) -> None:
    assert read(url).is_one_of([entry]) is there
    assert read(url).is_at([entry]) is leads_to(url, [entry]) is there
    assert read(url.replace("a.example", "b.a.example")).is_at([entry]) is there
    assert read(url).is_one_of([read(url).place])
    assert not read(url.replace("a.example", "b.a.example")).is_one_of([entry]) or "a.example" not in url


def test_a_catalogue_on_this_machine_leads_to_no_other_port_of_it(
    listeners: tuple[Listener, Listener],
) -> None:
    own, other = listeners
    stac = SceneStac(url=f"http://localhost:{own.port}/stac", metadata_hosts=[], attempts=1)
    elsewhere = f"http://localhost:{other.port}/a.umm_json"
    with pytest.raises(
        IntegrityError, match=rf"leads to http://localhost:{other.port}, which is not among the"
    ):
        stac.document(elsewhere)
    own.location = elsewhere
    with pytest.raises(RefusedError, match=rf"redirects to localhost:{other.port}, which is not followed"):
        stac.document(f"http://localhost:{own.port}/a.umm_json")
    assert other.asked == []
    assert stac.model_copy(update={"metadata_hosts": ["localhost"]}).document(elsewhere) == other.body


@pytest.mark.parametrize("rel", ["root", "self", "parent", "child", "data", "conformance", "next", "item"])
def test_no_link_of_a_catalogue_is_followed_but_those_of_searches(
    listeners: tuple[Listener, Listener], rel: str
) -> None:
    own, other = listeners
    search = {"rel": "search", "href": f"http://localhost:{own.port}/search", "type": "application/geo+json"}
    for href in (
        f"http://localhost:{other.port}/x",
        f"http://localhost:{own.port}/x",
        "/etc/hostname",
        "file:///x",
    ):
        catalogue = {"type": "Catalog", "id": "a", "stac_version": "1.0.0", "description": "", "features": []}
        catalogue |= {"conformsTo": ["https://api.stacspec.org/v1.0.0/item-search"]}
        catalogue |= {"links": [{"rel": rel, "href": href}, search | {"method": "POST"}]}
        own.body = json.dumps(catalogue).encode()
        assert IpfsStac(url=f"http://localhost:{own.port}/", attempts=1).items(["a"]) == []
    assert other.asked == []
    assert {path for path, _ in own.asked} == {"/", "/search"}


def test_the_token_goes_to_no_other_port_of_its_host(
    listeners: tuple[Listener, Listener], tmp_path: Path
) -> None:
    own, other = listeners
    hosts = [f"localhost:{own.port}"]
    for port in (own.port, other.port):
        with (
            RestrictedSession(lambda *_: True, login_hosts=hosts) as session,
            contextlib.suppress(AddressError),
        ):
            get_file(session, f"http://localhost:{port}/x.tif", 5, 100, tmp_path / "out", login)
    with (
        RestrictedSession(lambda *_: True, login_hosts=["a.example"]) as session,
        pytest.raises(AddressError),
    ):
        get_file(session, "https://a.example:8443/x.tif", 5, 100, tmp_path / "out", login)
    source = LpDaac(token=TOKEN, hosts=hosts, storage_hosts=[], timeout_seconds=5)
    wanted = FileRequest("B02.tif", "", f"http://localhost:{other.port}/x.tif", 100)
    with pytest.raises(IntegrityError, match="not among the configured hosts"):
        source.fetch(wanted, tmp_path / "out", PartialFiles(tmp_path / "p"), lambda _: None)
    assert own.asked == [("/x.tif", f"Bearer {TOKEN}")]
    assert other.asked == []


def test_words_of_a_server_show_no_link_that_could_be_read_in_two_ways() -> None:
    assert redacted(r"see https://evil.example\@urs.earthdata.nasa.gov/x") == "see …"
    assert redacted("see https://me:pw@b.example/") == "see …"
    assert redacted("see https://b.example/y?Signature=abc&id=1") == "see https://b.example/y?id=1"


def test_the_login_of_an_address_is_in_no_message() -> None:
    for url in (
        "https://me:secret@h.example/",
        "https://me:se?secret@h.example/x",
        r"https://me:secret\@h/?secret",
    ):
        with pytest.raises(AddressError) as error:
            read(url)
        assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    "place",
    [
        "http://127.0.0.1:{port}/a.geojson",
        "HTTPS://169.254.169.254/latest/meta-data",
        "simplecache::http://127.0.0.1:{port}/a.geojson",
        "zip://a.geojson::http://127.0.0.1:{port}/a.zip",
        "github://owner:repo@main/a.geojson",
        "sftp://host/a.geojson",
        "smb://host/share/a.geojson",
        "memory://a.geojson",
        "ta120::a.geojson",
        "data:,{{}}",
        "S3://bucket/a.geojson",
        "zzz://a/b.geojson",
    ],
)
def test_files_of_the_configuration_are_on_a_disk_or_in_an_object_store(
    listeners: tuple[Listener, Listener], place: str
) -> None:
    own, _ = listeners
    named = place.format(port=own.port)
    configured: list[Callable[[], object]] = [
        lambda: DatasetStore(root=named),
        lambda: DatasetRecipe(aoi=named),
        lambda: DatasetRecipe(chip_boxes=named),
    ]
    for configure in configured:
        with pytest.raises(ValueError, match=r"not by .*, but as a local path \(./… .* s3://"):
            configure()
    assert own.asked == []


def test_a_local_path_may_have_a_colon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("./memory:field.geojson", str(tmp_path / "a::b.geojson"), "c:field.geojson"):
        shape = {"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 0]]]}
        Path(name).write_text(json.dumps(shape))
        assert len(read_aoi(DatasetRecipe(aoi=name).aoi)) == 1
