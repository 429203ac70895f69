"""Dagster's UI and daemon on loopback, like `dagster dev`, but protected from web pages.

Dagster's webserver itself accepts requests from any page that the user visits, and such a page could launch runs.
"""

import hashlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import yaml
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from crop_assets.dagster_internals import DAEMON, instance_of_terminal, webserver_app
from crop_assets.errors import InputError
from crop_assets.layout import PICTURE, PICTURE_TYPES
from crop_assets.local_server import listen, protect, run
from resources.errors import ResourceError
from resources.plain_text import plain_text
from resources.store import DatasetStore

_LOCATION = "crop_assets.definitions"
_POLL_SECONDS = 0.5
_DATASETS = "training_datasets/"
_MAX_PICTURE_BYTES = 16 << 20


def open_ui(port: int, log: Callable[[str], None]) -> int:
    """Serve the UI of the code location and run its daemon until interrupted; returns the exit code.

    Raises InputError if the port cannot be used or DAGSTER_HOME is not set.
    """
    require_home()
    listen(port).close()
    # the processes below would all make its databases at once
    instance_of_terminal(Path(os.environ["DAGSTER_HOME"])).dispose()
    # background jobs of a shell ignore interrupts, and Dagster's processes would inherit that
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # killing this process or closing its terminal must not leave Dagster's processes behind
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        # nohup makes this process ignore SIGHUP
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, _: sys.exit(128 + number))
    children: list[subprocess.Popen[bytes]] = []

    def start(*words: str) -> None:
        # a terminal signals all processes of its session: these would end in disorder, each by itself
        children.append(subprocess.Popen([sys.executable, "-m", *words], start_new_session=True))  # noqa: S603

    def ended() -> int | None:
        return next((child.returncode or 1 for child in children if child.poll() is not None), None)

    with tempfile.TemporaryDirectory() as folder:
        code, workspace = Path(folder) / "code", Path(folder) / "workspace.yaml"
        server = {"socket": str(code), "location_name": _LOCATION}
        workspace.write_text(yaml.safe_dump({"load_from": [{"grpc_server": server}]}))
        try:
            location = ("-m", _LOCATION, "--location-name", _LOCATION)
            start(
                "dagster", "code-server", "start", "--socket", str(code), *location, "--log-level", "warning"
            )
            while not code.exists():
                if status := ended():
                    return status
                time.sleep(_POLL_SECONDS)
            start("crop_assets.cli", "webserver", "--ui-port", str(port), "--workspace", str(workspace))
            start(DAEMON, "run", "-w", str(workspace))
            log(f"Dagster UI: http://127.0.0.1:{port}   (Ctrl-C stops it)")
            while not (status := ended()):
                time.sleep(_POLL_SECONDS)
            return status
        except KeyboardInterrupt:
            return 0
        finally:
            for child in reversed(children):
                child.terminate()
            for child in children:
                child.wait()


def require_home() -> None:
    """Raise InputError if DAGSTER_HOME is not set."""
    if not os.environ.get("DAGSTER_HOME"):
        raise InputError("DAGSTER_HOME is not set; set it to a folder for Dagster's runs")


def picture_route(store: DatasetStore) -> Route:
    """The route of the pictures that metadata of assets show (`crop_assets.graph.metadata.store_pictures`).

    A file is served if it still has the SHA-256 that the address asks for. It is an image and nothing else to a
    browser, whoever wrote it.
    """

    def serve(request: Request) -> Response:
        name = f"{_DATASETS}{request.path_params['name']}"
        match = re.fullmatch(PICTURE, name, re.ASCII)
        if not match:
            return Response("no picture has this name", 404)
        try:
            data = store.read_bytes(name, _MAX_PICTURE_BYTES)
        except (OSError, ResourceError) as error:
            return Response(plain_text(f"the picture cannot be read: {error}"), 404)
        if hashlib.sha256(data).hexdigest() != request.query_params.get("sha256"):
            return Response("a later run has made another picture", 404)
        headers = {
            "Cache-Control": "private, max-age=31536000, immutable",
            "Content-Security-Policy": "default-src 'none'; sandbox",
        }
        return Response(data, media_type=PICTURE_TYPES[match["kind"]], headers=headers)

    return Route(f"/{_DATASETS}{{name:path}}", serve)


def serve_ui(port: int, workspace: str) -> None:
    """Serve Dagster's UI for a workspace file, and the store's pictures, on loopback until SIGINT or SIGTERM.

    Raises InputError if the port cannot be used or DAGSTER_HOME is not set.
    """
    from crop_assets.definitions import environment_resources

    require_home()
    with (
        listen(port) as listener,
        dg.DagsterInstance.get() as instance,
        webserver_app(instance, workspace) as app,
    ):
        store = environment_resources()["store"]
        # Dagster's last route takes whatever is left
        app.router.routes.insert(0, picture_route(store))
        protect(app, {"application/json"}, queries="graphql", programs=True)
        run(app, listener, "", ws="auto")
