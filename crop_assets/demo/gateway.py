"""A trustless IPFS gateway for a few local files in Kubo's default layout, for the demo and for tests."""

import re
from collections.abc import Mapping
from pathlib import Path

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from resources.errors import IntegrityError
from resources.ipfs.car import CONTENT_TYPE, DFS_CONTENT_TYPE, car_of
from resources.ipfs.cid import Cid
from resources.ipfs.unixfs import KUBO_CHUNK, FileDag

_RAW = "application/vnd.ipld.raw"
_ENTITY_BYTES = re.compile(r"(-?[0-9]{1,15}):(-?[0-9]{1,15}|\*)")


def gateway_routes(files: Mapping[str, Path], chunk_size: int = KUBO_CHUNK) -> list[Route]:
    """Routes that serve only `files`, CID to local path, under `/ipfs/{cid}`.

    The CID of a file returns a CAR of the complete file, and the CID of a block returns the block. Each file is read
    here once, and again when it is served. Raises ValueError if a file does not match its CID in the layout of
    `ipfs add` with chunks of `chunk_size` bytes, by default 256 KiB.
    """
    dags: dict[Cid, FileDag] = {}
    owners: dict[Cid, FileDag] = {}
    for text, path in files.items():
        cid = Cid.parse(text)
        dag = FileDag(path, chunk_size, cid.version)
        if dag.root != cid:
            raise ValueError(
                f"{path} is listed as {cid}, but its CID is {dag.root}; correct the list or the file"
            )
        dags[cid] = dag
        owners.update(dict.fromkeys(dag.cids(), dag))

    # not async, so that Starlette reads files in its thread pool
    def serve(request: Request) -> Response:
        try:
            cid = Cid.parse(request.path_params["cid"])
        except IntegrityError as error:
            return PlainTextResponse(str(error), 400)
        wanted = _wanted(request)
        if wanted is None:
            return PlainTextResponse(f"only {CONTENT_TYPE} and {_RAW} are served", 406)
        if wanted == CONTENT_TYPE and cid in dags:
            headers = _headers(cid, "car", DFS_CONTENT_TYPE)
            if request.method == "HEAD":
                return Response(headers=headers)
            start, stop = _range(request, dags[cid].size)
            blocks = dags[cid].blocks(start=start, stop=stop)
            return StreamingResponse(car_of(cid, blocks), headers=headers)
        if wanted == _RAW and cid in owners:
            return Response(owners[cid].block(cid), headers=_headers(cid, "bin", _RAW))
        return PlainTextResponse(f"{cid} is not served here", 404)

    return [Route("/ipfs/{cid}", serve, methods=["GET", "HEAD"])]


def _wanted(request: Request) -> str | None:
    """The content type requested by `?format=`, or else by the Accept header."""
    accept = request.headers.get("accept", "")
    by_header = next((kind for kind in (CONTENT_TYPE, _RAW) if kind in accept), None)
    asked = request.query_params.get("format")
    return by_header if asked is None else {"car": CONTENT_TYPE, "raw": _RAW}.get(asked)


def _range(request: Request, size: int) -> tuple[int, int]:
    """The bytes requested by `?entity-bytes=from:to`, both included (IPIP-402); of the complete file without it."""
    match = _ENTITY_BYTES.fullmatch(request.query_params.get("entity-bytes", "0:*"))
    if not match:
        return 0, size
    start, last = (int(bound) if bound != "*" else size - 1 for bound in match.groups())
    start, last = (bound + size if bound < 0 else bound for bound in (start, last))
    return max(start, 0), min(last + 1, size)


def _headers(cid: Cid, suffix: str, content_type: str) -> dict[str, str]:
    return {
        "Content-Type": content_type,
        "Content-Disposition": f'attachment; filename="{cid}.{suffix}"',
        "Etag": f'"{cid}.{suffix}"',
        "Cache-Control": "public, max-age=29030400, immutable",
        "X-Content-Type-Options": "nosniff",
    }
