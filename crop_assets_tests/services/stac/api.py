"""A STAC API in a process of its own: stac-fastapi over the pgstac database that the environment names.

Prints one JSON line with its address when it runs, and ends with its standard input. The
database, what is in it, and this process are conftest.py's.
"""

import json
import os
import socket
import sys
import threading

import uvicorn


class _Announced(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        # a failed start has said why on the standard error
        if self.started and sockets:
            print(json.dumps({"url": f"http://127.0.0.1:{sockets[0].getsockname()[1]}"}), flush=True)


def _end_with_input() -> None:
    sys.stdin.read()
    os._exit(0)


def main() -> None:
    threading.Thread(target=_end_with_input, daemon=True).start()
    config = uvicorn.Config("stac_fastapi.pgstac.app:create_app", factory=True, log_level="warning")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        _Announced(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
