"""Other web pages, and names that resolve to this machine, launch nothing in the UI; its own pages do."""

import contextlib
import http.client
import json
import os
import socket
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import dagster as dg
import pandas as pd
import psutil
import pytest
import requests
import yaml
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin, Subprotocol

from crop_assets.demo.run import server_environment
from crop_assets.graph.metadata import markdown, plain
from crop_assets_tests.background import Background, background
from crop_assets_tests.browser.chromium import opened
from crop_assets_tests.graph.test_hostile_texts import LINKS
from crop_assets_tests.small_world import Served, Setting
from resources.loopback import free_port

Found = TypeVar("Found")

ATTACK = """mutation { launchRun(executionParams: {
    selector: {repositoryName: "__repository__", repositoryLocationName: "crop_assets.definitions",
               jobName: "__ASSET_JOB", assetSelection: [{path: ["tile_grid"]}]},
    runConfigData: {}, mode: "default", executionMetadata: {tags: []}})
    {__typename ... on LaunchRunSuccess {run {runId}} ... on RunConfigValidationInvalid {errors {message}}
     ... on PythonError {message}}}"""
FOREIGN = ("http://evil.example", "http://127.0.0.1:1", "https://127.0.0.1", "null", "")
JSON = "application/json"


@dataclass(frozen=True)
class Ui:
    """The UI of an empty store, as `crop-assets dev` opens it."""

    port: int
    data: Path
    instance: dg.DagsterInstance
    running: Background

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, method: str, path: str, body: str = "", **headers: str) -> int:
        """The status of a request as raw as it can be; a header's `_` stands for `-`."""
        asked = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(asked):
            asked.request(method, path, body, {name.replace("_", "-"): v for name, v in headers.items()})
            return asked.getresponse().status

    def graphql(self, query: str) -> Any:
        answer = requests.post(
            f"{self.origin}/graphql", json={"query": query}, headers={"Origin": self.origin}, timeout=60
        )
        return answer.json()["data"]

    def wait_for(self, what: str, found: Callable[[], Found]) -> Found:
        return self.running.wait_for(what, found)

    def connect(self, origin: str | None, host: str = "127.0.0.1") -> ClientConnection:
        protocol = Subprotocol("graphql-ws")
        headers = {"Host": f"{host}:{self.port}"} if host != "127.0.0.1" else {}
        return connect(
            f"ws://127.0.0.1:{self.port}/graphql",
            origin=None if origin is None else Origin(origin),
            subprotocols=[protocol],
            additional_headers=headers,
            proxy=None,
        )


@pytest.fixture(scope="module")
def ui(tmp_path_factory: pytest.TempPathFactory, setting: Setting, served: Served) -> Iterator[Ui]:
    folder = tmp_path_factory.mktemp("guarded")
    home, data, port = folder / "home", folder / "data", free_port()
    home.mkdir()
    (home / "dagster.yaml").write_text(
        yaml.safe_dump({"telemetry": {"enabled": False}, "nux": {"enabled": False}})
    )
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("CROP_ASSETS_")},
        **server_environment(served.server),
        "DAGSTER_HOME": str(home),
        "CROP_ASSETS_DATA": str(data),
        "CROP_ASSETS_TILE_GRID": str(setting.grid),
        "CROP_ASSETS_CDL_INDEX": "",
    }
    command = [sys.executable, "-m", "crop_assets.cli", "dev", "--ui-port", str(port)]
    with (
        dg.DagsterInstance.from_config(str(home)) as instance,
        background(command, folder / "log", environment) as running,
    ):
        ui = Ui(port, data, instance, running)
        ui.wait_for(
            "the UI", lambda: ui.graphql("{repositoriesOrError {... on RepositoryConnection {nodes {name}}}}")
        )
        yield ui


@pytest.fixture(autouse=True)
def nothing_is_launched(ui: Ui, request: pytest.FixtureRequest) -> Iterator[None]:
    """Each test but those that want to launch a run leaves none."""
    before = ui.instance.get_runs_count()
    yield
    if "launches" not in request.fixturenames:
        assert ui.instance.get_runs_count() == before


@pytest.fixture
def launches() -> None:
    """What a test asks for that launches a run."""


def test_it_listens_on_loopback_and_on_sockets_that_other_users_cannot_write_to(ui: Ui) -> None:
    """Other machines reach nothing of it, and other users only the port of the UI."""
    process = psutil.Process(ui.running.process.pid)
    sockets = [
        connection
        for one in (process, *process.children(recursive=True))
        for connection in one.net_connections("all")
    ]
    listening = {one.laddr for one in sockets if one.status == psutil.CONN_LISTEN}
    assert listening == {("127.0.0.1", ui.port)}
    # the code server's, and that of the process in which it loads the code
    paths = {Path(one.laddr) for one in sockets if one.family == socket.AF_UNIX and one.laddr}
    assert len(paths) >= 2
    for path in paths:
        assert not path.stat().st_mode & stat.S_IWOTH, path


@pytest.mark.parametrize(
    "path", ["/graphql", "/graphql/", "/%67raphql", "/graphql%0A", "//graphql", "/graphql%0D%0A"]
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_no_address_launches_a_run(ui: Ui, method: str, path: str) -> None:
    query = f"{path}?{urlencode({'query': ATTACK})}"
    for headers in (
        {},
        {"Accept": "image/*"},
        {"Accept": "text/html"},
        {"Origin": ui.origin, "Content_Type": JSON},
    ):
        assert ui.ask(method, query, **headers) == 405, headers


@pytest.mark.parametrize(
    "kind",
    [
        "text/plain",
        "text/plain; application/json",
        "text/plain;charset=application/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=application/json",
        "",
        "application/graphql",
    ],
)
@pytest.mark.parametrize("origin", ["own", None, *FOREIGN])
def test_no_form_launches_a_run(ui: Ui, kind: str, origin: str | None) -> None:
    given = ui.origin if origin == "own" else origin
    headers = {"Content_Type": kind} | ({} if given is None else {"Origin": given})
    body = json.dumps({"query": ATTACK})
    for path in ("/graphql", f"/graphql?query={quote(ATTACK)}"):
        for method in ("POST", "PUT"):
            assert ui.ask(method, path, body, **headers) in (403, 415), (path, method)


@pytest.mark.parametrize("origin", FOREIGN)
def test_no_other_page_sends_json(ui: Ui, origin: str) -> None:
    body = json.dumps({"query": ATTACK})
    assert ui.ask("POST", "/graphql", body, Origin=origin, Content_Type=JSON) == 403
    assert ui.ask("POST", "/report_asset_materialization/cdl", "{}", Origin=origin, Content_Type=JSON) == 403
    asks = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "content-type"}
    assert ui.ask("OPTIONS", "/graphql", Origin=origin, **asks) == 403


@pytest.mark.parametrize(
    ("header", "value", "status"),
    [
        ("Content-Length", str((16 << 20) + 1), 413),
        ("Content-Length", str(1 << 50), 413),
        ("Transfer-Encoding", "chunked", 411),
    ],
)
def test_a_body_is_refused_before_it_is_read_if_its_length_is_too_large_or_unknown(
    ui: Ui, header: str, value: str, status: int
) -> None:
    asked = http.client.HTTPConnection("127.0.0.1", ui.port, timeout=60)
    with contextlib.closing(asked):
        asked.putrequest("POST", "/graphql")
        for name, content in (("Content-Type", JSON), ("Origin", ui.origin), (header, value)):
            asked.putheader(name, content)
        asked.endheaders()
        assert asked.getresponse().status == status


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "127.0.0.1.evil.example",
        "evil.example:{port}",
        "localhost.evil.example:{port}",
        "0.0.0.0",
    ],
)
def test_no_other_name_of_this_machine_is_answered(ui: Ui, host: str) -> None:
    host = host.format(port=ui.port)
    body = json.dumps({"query": ATTACK})
    for method, path in (("GET", "/"), ("GET", "/graphql"), ("POST", "/graphql")):
        assert ui.ask(method, path, body, Host=host, Origin=f"http://{host}", Content_Type=JSON) == 400


@pytest.mark.parametrize("origin", FOREIGN[:-1])
def test_no_other_page_opens_a_websocket(ui: Ui, origin: str) -> None:
    with pytest.raises(InvalidStatus) as refused, ui.connect(origin):
        pass
    assert refused.value.response.status_code == 403


def test_no_websocket_is_opened_by_another_name(ui: Ui) -> None:
    with (
        pytest.raises(InvalidStatus) as refused,
        ui.connect(f"http://evil.example:{ui.port}", "evil.example"),
    ):
        pass
    assert refused.value.response.status_code in (400, 403)


def test_its_own_page_opens_a_websocket(ui: Ui) -> None:
    for origin in (ui.origin, None):
        with ui.connect(origin) as socket:
            socket.send('{"type": "connection_init"}')
            assert json.loads(socket.recv(60)) == {"type": "connection_ack"}


def test_other_pages_may_not_show_it_or_load_from_it(ui: Ui) -> None:
    for path in ("/", "/graphql", "/server_info", "/nothing/here"):
        headers = requests.get(f"{ui.origin}{path}", timeout=60).headers
        assert headers["X-Frame-Options"] == "SAMEORIGIN", path
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin", path


PAGE = """<!doctype html><title>evil</title><iframe src="URL/runs"></iframe><img src="URL/graphql?query=QUERY">
<form id="form" method="post" enctype="text/plain" action="URL/graphql?query=QUERY" target="there">
<input name='{"query": "' value='"}'></form><iframe name="there"></iframe>
<script>
const body = JSON.stringify({query: decodeURIComponent("QUERY")}), done = [];
for (const type of ["text/plain", "application/json", "text/plain; application/json"])
  for (const mode of ["no-cors", "cors"])
    done.push(fetch("URL/graphql", {method: "POST", mode, body, headers: {"Content-Type": type}}));
done.push(fetch("URL/graphql?query=QUERY", {mode: "no-cors"}), fetch("URL/graphql%0A?query=QUERY", {mode: "no-cors"}));
navigator.sendBeacon("URL/graphql?query=QUERY", body);
form.submit();
done.push(new Promise(ended => {
  const socket = new WebSocket("URL/graphql".replace("http", "ws"), "graphql-ws");
  socket.onopen = () => { document.title = "the websocket was opened"; ended(); };
  socket.onerror = socket.onclose = ended;
}));
Promise.allSettled(done).then(() => setTimeout(() => { document.body.id = "over"; }, 2000));
</script>"""


@contextlib.contextmanager
def page_of_another(content: str) -> Iterator[str]:
    """The address of a page on this machine, at another port: to a browser that is the same site."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(content.encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://localhost:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_visit_to_another_page_launches_nothing(ui: Ui) -> None:
    content = PAGE.replace("URL", ui.origin).replace("QUERY", quote(ATTACK, safe=""))
    with page_of_another(content) as url, opened(url) as page:
        page.goto("/")
        page.locator("#over").wait_for(state="attached")
        assert page.title() == "evil"
        assert not any(frame.url.startswith(ui.origin) and frame.title() for frame in page.frames[1:])


def test_addresses_of_servers_are_no_links_in_the_ui(ui: Ui) -> None:
    texts = [*LINKS, "of the project: see"]
    frame = pd.DataFrame({"problem": texts})
    listed = dg.MetadataValue.md("\n".join(f"- {plain(text)}" for text in texts))
    ours = dg.MetadataValue.md("[ours](https://ours.example)")
    event = dg.AssetMaterialization("tile_grid", metadata={"a": markdown(frame), "b": listed, "c": ours})
    ui.instance.report_runless_asset_event(event)
    with opened(ui.origin) as page:
        page.goto("/assets/tile_grid?view=events")
        page.get_by_role("link", name="ours").first.wait_for()
        for number in range(page.get_by_text("[Show Markdown]").count()):
            page.get_by_text("[Show Markdown]").nth(number).click()
            page.get_by_text("of the project: see").last.wait_for()
            assert page.locator("a[href*=evil i], img[src*=evil i]").count() == 0
            page.keyboard.press("Escape")
        assert page.locator("a[href*=evil i], img[src*=evil i]").count() == 0
        assert "evil.example" in page.content()


@pytest.mark.parametrize(
    ("asset", "resource", "config", "variable"),
    [
        ("tile_grid", "store", '{root: "/tmp/elsewhere"}', "CROP_ASSETS_DATA"),
        ("tile_grid", "tile_grid_source", '{path: {env: "EARTHDATA_TOKEN"}}', "CROP_ASSETS_TILE_GRID"),
        ("published_dataset", "ipfs", '{command: "/bin/sh"}', "CROP_ASSETS_IPFS_COMMAND"),
        ("published_dataset", "ipfs", '{gateways: ["https://evil.example"]}', "CROP_ASSETS_IPFS_GATEWAYS"),
        ("scene_metadata", "lp_daac", '{token: {env: "AWS_SECRET_ACCESS_KEY"}}', "EARTHDATA_TOKEN"),
        ("scene_metadata", "stac", '{refresh: true, url: "https://evil.example"}', "CROP_ASSETS_STAC_URL"),
    ],
)
def test_a_launch_that_names_a_place_is_refused_with_its_variable(
    ui: Ui, asset: str, resource: str, config: str, variable: str
) -> None:
    launch = ATTACK.replace("tile_grid", asset).replace(
        "runConfigData: {}", f"runConfigData: {{resources: {{{resource}: {{config: {config}}}}}}}"
    )
    answer = ui.graphql(launch)["launchRun"]
    assert answer["__typename"] == "RunConfigValidationInvalid", answer
    assert f"set by the variable {variable}, and not by a run" in answer["errors"][0]["message"]


@pytest.mark.usefixtures("launches")
def test_a_run_that_the_ui_launches_makes_its_table(ui: Ui) -> None:
    with opened(ui.origin) as page:
        page.goto("/assets/tile_grid")
        page.get_by_role("button", name="Materialize").first.click()
        found = ui.wait_for("the table", lambda: list(ui.data.rglob("tile_grid*.parquet")))
        assert len(found) == 1
    ui.wait_for("the end of the run", lambda: all(run.is_finished for run in ui.instance.get_runs()))
    assert [run.status.value for run in ui.instance.get_runs()] == ["SUCCESS"]
