"""Servers on loopback, and an address at which there is none."""

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from typing import Any

import trustme
import uvicorn

from resources.loopback import free_port


@contextlib.contextmanager
def serving(app: Any, certificate: trustme.LeafCert | None = None) -> Iterator[str]:
    """The address of an ASGI application that is served for as long as the context lasts, over TLS if certified."""
    config = uvicorn.Config(
        app,
        port=0,
        log_level="critical",
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=1,
        # a server that ends waits half a minute for clients to end TLS on connections that stay open
        headers=[("Connection", "close")] if certificate else [],
    )
    if certificate:
        config.load()
        config.ssl = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(config.ssl)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http{'s' if certificate else ''}://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def closed_port() -> str:
    """An address at which nothing answers."""
    return f"http://127.0.0.1:{free_port()}"


@contextlib.contextmanager
def dripping(
    start: bytes, drop: bytes, certificate: trustme.LeafCert | None = None
) -> Iterator[tuple[str, list[bytes]]]:
    """A server that answers `start`, and then `drop` every 0.2 s for as long as the client stays, and its requests."""
    asked: list[bytes] = []
    ended = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if certificate:
        certificate.configure_cert(tls)

    def answer(connection: socket.socket) -> None:
        with (
            contextlib.suppress(OSError),
            tls.wrap_socket(connection, server_side=True) if certificate else connection as connection,
        ):
            asked.append(connection.recv(1 << 16))
            connection.sendall(start)
            while not ended.wait(0.2):
                connection.sendall(drop)

    def serve() -> None:
        while True:
            connection, _ = listener.accept()
            if ended.is_set():
                connection.close()
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=serve)
    thread.start()
    port = listener.getsockname()[1]
    try:
        yield f"http{'s' if certificate else ''}://127.0.0.1:{port}", asked
    finally:
        ended.set()
        socket.create_connection(("127.0.0.1", port)).close()
        thread.join()
        listener.close()
