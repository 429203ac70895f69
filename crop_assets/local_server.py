"""Servers on 127.0.0.1, protected from web pages.

Any page that the user visits can send requests to loopback: by a link, a form, an image or a websocket, and by a host
name that resolves to 127.0.0.1. There is no protection from other users of the machine.
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
"""A launch of all tiles of a year, with a config, needs a thousandth of this."""


@dataclass(frozen=True)
class _Guard:
    """Middleware that accepts changes only from the server's own pages."""

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
                # a page that frames this one could trick its visitor into clicking
                headers["X-Frame-Options"] = "SAMEORIGIN"
                for name, value in self.headers.items():
                    headers[name] = value
            await send(message)

        status, error = self._refused(scope)
        app = JSONResponse({"error": error}, status) if error else self.app
        await app(scope, receive, answer)

    def _refused(self, scope: Scope) -> tuple[int, str]:
        """The status and message with which to refuse a request; the message is "" if it is accepted."""
        headers = Headers(scope=scope)
        if scope["type"] == "http" and scope["method"] in ("GET", "HEAD"):
            # a part of the path, because servers differ in how they treat a trailing slash or newline
            acts = self.queries and self.queries in scope["path"] and scope["query_string"]
            return (405, "send queries by POST") if acts else (200, "")
        # browsers send an origin with all but GET and HEAD
        origins = headers.getlist("origin")
        if origins != [f"http://{headers.get('host')}"] and not (self.programs and not origins):
            return 403, "only the page of this server may send to it"
        if scope["type"] == "http":
            kind = headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind not in self.content_types:
                return 415, f"send {' or '.join(sorted(self.content_types))}"
            # uvicorn makes sure that a body has this length
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
    """Make a server answer only to its names on loopback, and accept changes and websockets only from its own pages.

    Changes must have one of `content_types`; choose types that pages of other sites cannot send without a preflight.
    `headers` are added to all answers. A GET with a query is refused if `queries` is in the path. `programs` also
    allows requests without an Origin, which browsers always send.
    """
    app.add_middleware(
        _Guard,
        content_types=content_types,
        headers=headers or {},
        queries=queries,
        programs=programs,
    )
    # other sites could use a host name that resolves to loopback
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=_HOSTS, www_redirect=False)


def listen(port: int | None, default: int = 0) -> socket.socket:
    """A listening socket on 127.0.0.1: on `port`, or if that is None on `default`, or on a free port if that is in use.

    Raises InputError if the given port cannot be used.
    """
    try:
        return socket.create_server(("127.0.0.1", default if port is None else port))
    except OSError as error:
        if port is None:
            return socket.create_server(("127.0.0.1", 0))
        reason = os.strerror(error.errno or 0)
        raise InputError(f"port {port} of 127.0.0.1 cannot be used: {reason}; use another, or 0") from None


def run(app: Starlette, listener: socket.socket, browse: str, ws: Literal["none", "auto"] = "none") -> None:
    """Serve until SIGINT or SIGTERM. `browse` is the address to open in a browser, or empty."""
    options: dict[str, Any] = {"log_level": "warning", "lifespan": "off", "proxy_headers": False}
    server = uvicorn.Server(uvicorn.Config(app, ws=ws, timeout_graceful_shutdown=5, **options))
    # after shutting down, uvicorn raises the signal again, which would make the command fail
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, server.handle_exit)
    if browse:
        # in a thread, because a text browser blocks until it is closed
        threading.Thread(target=webbrowser.open, args=(browse,), daemon=True).start()
    server.run(sockets=[listener])
