"""The files of a tile's scenes: which there are, and how they get into the store."""

import contextlib
from collections.abc import Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from crop_assets.bands.blocks import FetchChoice, file_sizes
from crop_assets.bands.catalogue import catalogue_items
from crop_assets.bands.cid_list import parse_cid_list
from crop_assets.bands.cids import cid_rows, listed_cid_rows
from crop_assets.bands.download import BandRequest, Blocks, StoredBand, fetch_band
from crop_assets.bands.transfer import Transfer
from crop_assets.graph.stage import Source, TileRun
from crop_assets.hls import BANDS
from crop_assets.schemas import DOWNLOADED_BANDS, FILE_COLUMNS
from resources.errors import IntegrityError, NotFoundError, ResourceError, UnavailableError
from resources.ipfs.resource import IpfsContent
from resources.sources import Sources
from resources.stac import IpfsStac
from resources.stop import StoppablePool
from resources.tables import stored_table

FILES_AT_ONCE = 6
_PARTIAL_FILES_AT_ONCE = 24
"""All files of a tile, which share the threads that request ranges."""


def listed_cids(run: TileRun) -> Source:
    """The CIDs of the tile's files in the recipe's list, by file name; None without a list."""
    path = run.recipe.cid_list
    if not path:
        return Source(None, None)
    cids = run.files.parsed(path, parse_cid_list).get(run.tile, {})
    return Source(cids, cids)


def file_rows(
    run: TileRun,
    scenes: pd.DataFrame,
    scene_metadata: pd.DataFrame,
    ipfs_stac: IpfsStac,
    ipfs: IpfsContent,
    sources: Sources,
    listed: Mapping[str, str] | None,
    bands: Sequence[str] = BANDS,
) -> pd.DataFrame:
    """The files of `scenes` (scene_id, position, date), with the columns of `cid_rows`: CIDs from the catalogue, or
    from those `listed`. Raises UnavailableError and IntegrityError of the catalogue.
    """
    facts = scene_metadata[["scene_id", "granule_bytes", *(f"{band}_http" for band in BANDS)]]
    scenes = scenes.merge(facts, on="scene_id")
    if listed is not None:
        return listed_cid_rows(scenes, listed, Path(run.recipe.cid_list).name, bands)
    items = catalogue_items(list(scenes["scene_id"]), run.tile, ipfs_stac, run.store, run.log)
    nodes, memory = ipfs.probes(run.recipe.sources), sources.memory
    return cid_rows(scenes, items, lambda cid, path: ipfs.resolve(cid, path, nodes, memory), bands)


@dataclass(frozen=True)
class FetchedFiles:
    """The files that are in the store, and the errors of the others, by their number in the request.

    `table` has the rows of the files in the store, with the columns of DOWNLOADED_BANDS.
    """

    table: pd.DataFrame
    stored: dict[int, StoredBand]
    errors: dict[int, ResourceError]
    transfer: Transfer

    def error(self, files: int) -> ResourceError:
        """One error for those of the request's `files` that are missing."""
        # permanent errors first: the first error decides about retries, and its message says what to do
        errors = sorted(
            self.errors.values(), key=lambda error: (isinstance(error, UnavailableError), str(error))
        )
        messages = " | ".join(map(str, errors[:3]))
        return type(errors[0])(f"{messages} ({len(errors)} of {files} files are missing)")


def fetch_files(
    run: TileRun,
    wanted: pd.DataFrame,
    sources: Sources,
    fetch: FetchChoice | None = None,
    chips: Sequence[str] | None = None,
) -> FetchedFiles:
    """Bring the files of `wanted`, with the columns of `cid_rows`, into the store; in blocks under `chips` if `fetch`
    says so. All are tried; the error of a file is returned.
    """
    rows: list[dict[str, Any]] = [dict(row) for _, row in wanted.iterrows()]
    stored: dict[int, StoredBand] = {}
    errors: dict[int, ResourceError] = {}
    paths = [run.layout.band(row["scene_id"], row["band"]) for row in rows]
    folders = {path.rsplit("/", 1)[0] for path in paths}
    found = {name for folder in folders for name in run.store.names(folder)}
    listed = [path in found for path in paths]
    by_blocks = fetch is not None and fetch.by_blocks
    needed = sum(size for size, there in zip(file_sizes(wanted), listed, strict=True) if not there)
    run.store.require_room(min(needed, fetch.block_bytes) if fetch and by_blocks else needed)
    recorded = _recorded(run) if fetch else {}
    transfer = Transfer(run.log, len(rows))
    with (
        # closed last, as the files send requests to its end
        StoppablePool(sources.memory.ranges_per_host) as requests,
        StoppablePool(_PARTIAL_FILES_AT_ONCE if by_blocks else FILES_AT_ONCE) as pool,
    ):
        blocks = Blocks(chips, requests) if by_blocks else None
        futures = {
            pool.submit(_fetch, run, row, sources, transfer, listed[at], blocks, recorded): at
            for at, row in enumerate(rows)
        }
        for future in as_completed(futures):
            try:
                stored[futures[future]] = future.result()
                transfer.file_done()
            except ResourceError as error:
                errors[futures[future]] = error
    return FetchedFiles(_table(run, rows, stored), stored, errors, transfer)


def _fetch(
    run: TileRun,
    row: dict[str, Any],
    sources: Sources,
    transfer: Transfer,
    listed: bool,
    blocks: Blocks | None,
    recorded: Mapping[str, str],
) -> StoredBand:
    file = BandRequest(
        run.layout.band(row["scene_id"], row["band"]),
        run.layout.scene_file(row["scene_id"], row["band"]),
        row["band"],
        row["cid"],
        row["http"],
        row["max_bytes"],
    )
    before = recorded.get(file.name, "")
    return fetch_band(file, run.store, sources, run.log, transfer.add, listed, blocks, before)


def _recorded(run: TileRun) -> Mapping[str, str]:
    """SHA-256 of the tile's files by the last table, whatever that was made from."""
    with contextlib.suppress(IntegrityError, NotFoundError):
        if stored := stored_table(run.store, run.layout.table("downloaded_bands", run.tile)):
            files: dict[str, str] = stored.provenance.get("files", {})
            return files
    return {}


def _table(run: TileRun, rows: list[dict[str, Any]], stored: dict[int, StoredBand]) -> pd.DataFrame:
    if not stored:
        return DOWNLOADED_BANDS.empty()
    made = []
    for at in sorted(stored):
        row = rows[at]
        path = run.layout.band(row["scene_id"], row["band"])
        made.append(
            {
                **{column.name: row[column.name] for column in FILE_COLUMNS},
                "path": path,
                "bytes": stored[at].bytes,
                "sha256": stored[at].sha256,
                "cid": row["cid"],
                "verified": stored[at].verified,
                "note": stored[at].note,
                "blocks": stored[at].blocks,
                "complete_bytes": stored[at].complete_bytes,
            }
        )
    return pd.DataFrame(made)
