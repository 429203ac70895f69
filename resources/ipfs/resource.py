"""Configures where IPFS content comes from (Kubo node, gateways, `ipfs` command), and looks up single blocks."""

from collections.abc import Sequence

import tenacity
from pydantic import Field, ValidationInfo, field_validator

from resources import stop
from resources.addresses import AddressError, configured
from resources.errors import (
    IntegrityError,
    ResourceError,
    UnavailableError,
)
from resources.ipfs.cid import Cid
from resources.ipfs.directory import resolve_path
from resources.ipfs.nodes import Gateway, IpfsCommand, IpfsNode, IpfsSource, KuboNode
from resources.settings import Seconds, Settings, TimeoutSeconds
from resources.sources import Memory, PutOffError, as_resource_error, combined_error

_ATTEMPTS = 3


class IpfsContent(Settings):
    """The sources of content by CID. Constructing it contacts no server."""

    kubo_api: str = Field(
        default="http://127.0.0.1:5001", description="RPC address of a Kubo node. Empty for none."
    )
    gateways: list[str] = Field(
        default=["https://trustless-gateway.link", "https://ipfs.io", "https://dweb.link"],
        description="Addresses of trustless gateways, asked in this order. They need not be trusted: each "
        "block is checked against its CID.",
    )
    command: str = Field(default="ipfs", description="Name or path of the `ipfs` command line tool.")
    timeout_seconds: TimeoutSeconds = 60.0
    first_seconds: Seconds = Field(
        default=5.0,
        description="Longest wait for the first block of a file, in seconds, while other sources may have it. "
        "After these, a silent source is asked with `timeout_seconds`.",
    )
    probe_seconds: Seconds = Field(
        default=20.0,
        description="Longest wait for a single block, in seconds, as a check of availability asks.",
    )

    @field_validator("kubo_api", "gateways")
    @classmethod
    def _are_addresses(cls, value: str | list[str], info: ValidationInfo) -> str | list[str]:
        for address in [value] if isinstance(value, str) else value:
            try:
                _ = address and configured(address, plain_http=True)
            except AddressError as error:
                raise ValueError(
                    f"{info.field_name}: must be the http or https URL of a server: {error}"
                ) from None
        return value

    def sources(self, kind: str) -> list[IpfsSource]:
        """The nodes of a kind (kubo, gateways or ipfs_cli) as sources of files; empty for any other kind.

        Raises ValueError if an address is invalid.
        """
        return [IpfsSource(node, self.first_seconds) for node in self._nodes(kind, self.timeout_seconds)]

    def probes(self, kinds: Sequence[str]) -> list[IpfsNode]:
        """The nodes of these kinds, in order, for requests of single blocks. Kinds and errors as in `sources`."""
        return [node for kind in kinds for node in self._nodes(kind, self.probe_seconds)]

    def kubo(self) -> KuboNode:
        """The Kubo node. Raises UnavailableError if none is configured."""
        if not self.kubo_api:
            raise UnavailableError(
                "there is no Kubo node; set CROP_ASSETS_KUBO_API to the RPC address of one"
            )
        return KuboNode(self.kubo_api, self.timeout_seconds)

    def find_block(self, cid: Cid, nodes: Sequence[IpfsNode], memory: Memory) -> tuple[str, bytes]:
        """The name of the first node that has a block, and the verified block.

        Asks each node once, in the order and within the limits of `memory`. Raises NotFoundError, UnavailableError or
        IntegrityError, with the error of each node in the message.
        """
        said: dict[str, ResourceError] = {}
        queue = memory.in_order(nodes, said)
        while queue:
            node = queue.pop(0)
            try:
                with memory.asking(node, brief=bool(queue) and node.name not in said):
                    block = node.block(cid)
                if not cid.matches(block):
                    raise IntegrityError(f"the bytes sent as block {cid} are not that block")
                return node.name, block
            except Exception as raised:
                error = as_resource_error(node.name, raised)
                said[node.name] = error
                memory.failed(node, error)
                if isinstance(error, PutOffError):
                    queue.append(node)
        raise combined_error(f"block {cid}", said)

    def resolve(self, cid: Cid, path: Sequence[str], nodes: Sequence[IpfsNode], memory: Memory) -> Cid:
        """The CID of the file at `path` below the directory `cid`; verifies every directory on the way.

        Raises NotFoundError if there is no such name or no node has the directory, IntegrityError if it is not a
        directory or its bytes are wrong, and UnavailableError after three attempts.
        """
        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(_ATTEMPTS),
            wait=tenacity.wait_random_exponential(multiplier=0.5, max=10),
            retry=tenacity.retry_if_exception_type(UnavailableError),
            sleep=stop.pause,
            reraise=True,
        )
        return resolve_path(cid, path, lambda block: retrying(self.find_block, block, nodes, memory)[1])

    def _nodes(self, kind: str, seconds: float) -> list[IpfsNode]:
        match kind:
            case "kubo" if self.kubo_api:
                return [KuboNode(self.kubo_api, seconds)]
            case "gateways":
                return [Gateway(address, seconds) for address in self.gateways]
            case "ipfs_cli":
                return [IpfsCommand(self.command, seconds)]
        return []
