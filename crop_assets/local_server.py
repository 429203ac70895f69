"""Servers on 127.0.0.1 for this machine's user alone, and what keeps web pages of others from using them.

Any page that the user visits may ask addresses of loopback: by a link, a form, an image or a websocket, and by a host
name of its own that resolves to 127.0.0.1. Other users of the machine are not kept out.
"""

import os
import signal
import socket
import threading
import webbrowser
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from crop_assets.errors import InputError

_HOSTS = ["127.0.0.1", "localhost"]
_MAX_BODY_BYTES = 16 << 20
"""A launch of all tiles of a year, with a run's config, takes a thousandth of it."""


@dataclass(frozen=True)
class _Guard:
    """Lets only the server's own pages send to it."""

    app: ASGIApp
    content_types: Collection[str]
    headers: Mapping[str, str] = field(default_factory=dict)
    queries: str = ""
    programs: bool = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return

        async def answer(message: Message) -> None:
            if message["type"].endswith("http.response.start"):
                headers = MutableHeaders(scope=message)
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Cross-Origin-Resource-Policy"] = "same-origin"
                # a page that shows this one could have its visitor click there
                headers["X-Frame-Options"] = "SAMEORIGIN"
                for name, value in self.headers.items():
                    headers[name] = value
            await send(message)

        status, error = self._refused(scope)
        app = JSONResponse({"error": error}, status) if error else self.app
        await app(scope, receive, answer)

    def _refused(self, scope: Scope) -> tuple[int, str]:
        """The status and words by which a request is refused, or "" where it is not."""
        headers = Headers(scope=scope)
        if scope["type"] == "http" and scope["method"] in ("GET", "HEAD"):
            # part of the path, for servers differ in what a slash or a line's end behind it means
            acts = self.queries and self.queries in scope["path"] and scope["query_string"]
            return (405, "queries are sent by POST") if acts else (200, "")
        # browsers send an origin with all but GET and HEAD
        origins = headers.getlist("origin")
        if origins != [f"http://{headers.get('host')}"] and not (self.programs and not origins):
            return 403, "only the page of this server may send to it"
        if scope["type"] == "http":
            kind = headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind not in self.content_types:
                return 415, f"send {' or '.join(sorted(self.content_types))}"
            # uvicorn sees to it that a body is as long as it says
            if "transfer-encoding" in headers:
                return 411, "send a Content-Length"
            if int(headers.get("content-length", 0)) > _MAX_BODY_BYTES:
                return 413, f"send at most {_MAX_BODY_BYTES:,} bytes"
        return 200, ""


def protect(
    app: Starlette,
    content_types: Collection[str],
    headers: Mapping[str, str] | None = None,
    queries: str = "",
    programs: bool = False,
) -> None:
    """Have a server answer only by its names on loopback, take what changes something, and websockets, from its own
    pages alone, and in `content_types`, which a page of another site cannot send unasked.

    `headers` are added to all answers. A GET with a query to a path that holds `queries` is refused. `programs` lets
    those send too that give no Origin, as no browser does.
    """
    app.add_middleware(
        _Guard,
        content_types=content_types,
        headers=headers or {},
        queries=queries,
        programs=programs,
    )
    # a page of another site could reach loopback by a name of its own that resolves to it
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=_HOSTS, www_redirect=False)


def listen(port: int | None, usual: int = 0) -> socket.socket:
    """A listening socket on 127.0.0.1: on `port`, or where that is None on `usual` or, if taken, on a free port.

    Raises InputError where the given port cannot be used.
    """
    try:
        return socket.create_server(("127.0.0.1", usual if port is None else port))
    except OSError as error:
        if port is None:
            return socket.create_server(("127.0.0.1", 0))
        reason = os.strerror(error.errno or 0)
        raise InputError(f"port {port} of 127.0.0.1 cannot be used: {reason}; take another, or 0") from None


def run(app: Starlette, listener: socket.socket, browse: str, ws: Literal["none", "auto"] = "none") -> None:
    """Serve until SIGINT or SIGTERM. `browse` is the address that a browser opens, or empty for none."""
    options: dict[str, Any] = {"log_level": "warning", "lifespan": "off", "proxy_headers": False}
    server = uvicorn.Server(uvicorn.Config(app, ws=ws, timeout_graceful_shutdown=5, **options))
    # uvicorn raises a signal again when it has ended by it, which would end the command as if it had failed
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, server.handle_exit)
    if browse:
        # a browser of the terminal takes as long as somebody looks at it
        threading.Thread(target=webbrowser.open, args=(browse,), daemon=True).start()
    server.run(sockets=[listener])
