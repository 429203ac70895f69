"""Stages from scenes to verified files: `band_cids`, `downloaded_fmasks`, `downloaded_bands`, `tile_payloads`,
`cid_retrievability`, `missing_cids`.
"""

import json
from collections.abc import Mapping, Sequence

import pandas as pd

from crop_assets.bands.blocks import FetchChoice, chips_to_fetch, fetch_of
from crop_assets.bands.cids import tile_payloads as payloads_of
from crop_assets.bands.retrievability import check_cids
from crop_assets.bands.tile_files import fetch_files, file_rows, listed_cids
from crop_assets.graph.metadata import markdown
from crop_assets.graph.stage import AllTiles, Check, Finding, Made, TileRun, YearRun, stage
from crop_assets.hls import BANDS, QA_BAND
from crop_assets.scenes.selection import chosen_scenes
from crop_assets.schemas import (
    BAND_CIDS,
    CID_RETRIEVABILITY,
    DOWNLOADED_BANDS,
    DOWNLOADED_FMASKS,
    MISSING_CIDS,
    NAMED_FILE_COLUMNS,
    TILE_PAYLOADS,
)
from resources.ipfs.resource import IpfsContent
from resources.sources import Sources
from resources.stac import IpfsStac

CIDS_AT_ONCE = 8


@stage(
    "bands",
    BAND_CIDS,
    kinds={"stac", "ipfs"},
    fields=["cid_list"],
    code_version="3",
    source=listed_cids,
    again=lambda ipfs_stac: ipfs_stac.refresh,
)
def band_cids(
    run: TileRun,
    selected_scenes: pd.DataFrame,
    scene_metadata: pd.DataFrame,
    ipfs_stac: IpfsStac,
    ipfs: IpfsContent,
    sources: Sources,
    source: Mapping[str, str] | None,
) -> Made:
    """The CID of every file of the selected scenes, from the STAC catalogue with IPFS alternates. Missing and malformed
    CIDs are reported; the HTTPS link is kept as a fallback. With `cid_list`, from that list, and no catalogue is asked.
    """
    scenes = chosen_scenes(selected_scenes)[["position", "scene_id", "date"]]
    if scenes.empty:
        return Made(BAND_CIDS.empty(), {"outcome": "no scene is selected"})
    rows = file_rows(run, scenes, scene_metadata, ipfs_stac, ipfs, sources, source)
    without = rows[rows["cid"] == ""]
    if len(without):
        run.log(f"{len(without)} of {len(rows)} files have no CID: {without['problem'].iloc[0]}")
    return Made(rows, {"files": len(rows), "without_cid": len(without)})


@stage("bands", DOWNLOADED_FMASKS, kinds={"ipfs", "geotiff"}, code_version="3")
def downloaded_fmasks(run: TileRun, band_cids: pd.DataFrame, sources: Sources) -> Made:
    """The Fmask files of the selected scenes, downloaded and verified like `downloaded_bands`. They are a small part
    of the bytes, and show whether the other bands are worth downloading.
    """
    return _download(run, band_cids[band_cids["band"] == QA_BAND], sources)


@stage(
    "bands",
    DOWNLOADED_BANDS,
    kinds={"ipfs", "geotiff"},
    fields=["coverage", "fetch", "fmask_first"],
    code_version="4",
)
def downloaded_bands(
    run: TileRun,
    band_cids: pd.DataFrame,
    downloaded_fmasks: pd.DataFrame,
    chip_quality: pd.DataFrame,
    tile_map: pd.DataFrame,
    sources: Sources,
) -> Made:
    """The band files of the selected scenes, downloaded from the recipe's sources and verified against their CIDs: with
    `fetch`, complete or only the blocks under the chips. What is already in the store is used if it is valid. With
    `fmask_first`, a tile gets no other bands if labels or Fmask rule out all of its chips.
    """
    bands = band_cids[band_cids["band"] != QA_BAND]
    chips = chips_to_fetch(run.recipe, tile_map["chip_id"])
    fetch = fetch_of(run.recipe, run.tile, chips, bands)
    saved = fetch.block_bytes if fetch.by_blocks else fetch.file_bytes
    if run.recipe.fmask_first and len(chip_quality) and (chip_quality["reason"] != "").all():
        outcome = (
            f"labels or Fmask rule out all chips: {len(bands)} files, about {saved / 1e6:,.0f} MB, "
            "are not downloaded"
        )
        run.log(outcome)
        return Made(
            downloaded_fmasks,
            {"outcome": outcome, "saved_bytes": saved},
            dict(zip(downloaded_fmasks["path"], downloaded_fmasks["sha256"], strict=True)),
        )
    run.log(f"to fetch: {fetch}")
    made = _download(run, bands, sources, fetch, chips)
    table = pd.concat([downloaded_fmasks, made.frame]) if len(made.frame) else downloaded_fmasks
    order = table["position"].map({"first": 0, "middle": 1, "last": 2}), table["band"].map(BANDS.index)
    table = (
        table.assign(o=order[0], b=order[1])
        .sort_values(["o", "b"], ignore_index=True)
        .drop(columns=["o", "b"])
    )
    return Made(table, made.metadata, dict(zip(table["path"], table["sha256"], strict=True)))


def _download(
    run: TileRun,
    wanted: pd.DataFrame,
    sources: Sources,
    fetch: FetchChoice | None = None,
    chips: Sequence[str] | None = None,
) -> Made:
    """The files of `wanted`; those of `fetch`, if given, in blocks if it says so."""
    fetched = fetch_files(run, wanted, sources, fetch, chips)
    if fetched.errors:
        raise fetched.error(len(wanted))
    table = fetched.table
    counts = pd.Series([band.source for band in fetched.stored.values()], dtype=str).value_counts()
    metadata = {
        "bytes": int(table["bytes"].sum()),
        "verified": int(table["verified"].sum()),
        **({"fetch": str(fetch)} if fetch else {}),
        "blocks": int(table["blocks"].sum()),
        "complete_bytes": int(table["complete_bytes"].sum()),
        "sources": markdown(counts.rename_axis("source").reset_index(name="files")),
        **fetched.transfer.metadata(),
    }
    return Made(table, metadata, dict(zip(table["path"], table["sha256"], strict=True)))


@stage("bands", TILE_PAYLOADS, kinds={"json", "ipfs"})
def tile_payloads(run: YearRun, band_cids: AllTiles) -> Made:
    """`tile_payloads.json`: the files of each selected scene of the year and their CIDs, for all finished tiles."""
    cids = band_cids.frame
    file = run.write_text("tile_payloads.json", json.dumps(payloads_of(cids), indent=1) + "\n")
    grouped = cids.groupby("tile", as_index=False)
    table = grouped.agg(scenes=("scene_id", "nunique"), files=("file", "size"), without_cid=("cid", _empties))
    return Made(table, files=[file])


def _empties(cids: pd.Series) -> int:
    return int((cids == "").sum())


@stage("bands", CID_RETRIEVABILITY, kinds={"ipfs"}, again=lambda: True, job="retrievability_job")
def cid_retrievability(run: TileRun, band_cids: pd.DataFrame, ipfs: IpfsContent, sources: Sources) -> Made:
    """Whether the content of each CID is available: its first block is requested from the recipe's IPFS sources and
    verified; the rest is not downloaded. Each materialization checks again.
    """
    nodes = ipfs.probes(run.recipe.sources)
    columns = [column.name for column in NAMED_FILE_COLUMNS]
    rows = check_cids(
        band_cids[[*columns, "problem"]],
        lambda cid: ipfs.find_block(cid, nodes, sources.memory)[0],
        CIDS_AT_ONCE,
        run.log,
    )
    missing = rows[~rows["available"].astype(bool)]
    metadata = {
        "available": len(rows) - len(missing),
        "missing": len(missing),
        "missing_cids": markdown(missing[["file", "cid", "problem"]]),
    }
    return Made(rows if len(rows) else CID_RETRIEVABILITY.empty(), metadata)


def _every_cid_is_retrievable(missing: pd.DataFrame, tiles: Mapping[str, AllTiles], _: object) -> Finding:
    shown = markdown(missing[["file", "cid", "problem"]])
    asked = len(tiles["cid_retrievability"].frame)
    return Finding(missing.empty, {"asked": asked, "missing": len(missing), "missing_cids": shown})


@stage(
    "bands",
    MISSING_CIDS,
    kinds={"json", "ipfs"},
    checks=[
        Check(
            "every_cid_is_retrievable",
            "Some IPFS source has the content of every CID that the dataset needs.",
            _every_cid_is_retrievable,
        )
    ],
    job="missing_cids_job",
)
def missing_cids(run: YearRun, cid_retrievability: AllTiles) -> Made:
    """`missing_cids.json`: the files of the year whose content was not available when their tiles were checked, in the
    format of `tile_payloads.json`, with the answer of each source.
    """
    asked = cid_retrievability.frame
    missing = asked[~asked["available"].astype(bool)].sort_values(["scene_id", "band"], ignore_index=True)
    file = run.write_text("missing_cids.json", json.dumps(payloads_of(missing, ["problem"]), indent=1) + "\n")
    return Made(missing[[c.name for c in MISSING_CIDS.columns]], {"missing_cids": len(missing)}, [file])
