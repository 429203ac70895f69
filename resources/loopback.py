"""Ports of this machine for servers that are started later."""

import contextlib
import random
import socket


def free_port() -> int:
    """A port of 127.0.0.1 for a server that is started later, or for none.

    Linux takes the ports of outgoing connections from 32768 on, where one could be lost before the server has it.
    """
    while True:
        port = random.randrange(20_000, 32_768)  # noqa: S311 - nobody is to be kept from guessing it
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
