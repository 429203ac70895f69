"""Free ports for local servers."""

import contextlib
import random
import socket


def free_port() -> int:
    """A free port of 127.0.0.1 for a server that is started later.

    It is below 32768, because Linux could give a port above to an outgoing connection before the server starts.
    """
    while True:
        port = random.randrange(20_000, 32_768)  # noqa: S311 - it need not be hard to guess
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
