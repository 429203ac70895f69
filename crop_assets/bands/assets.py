"""A scene -> verified files: `band_cids`, `downloaded_fmasks`, `downloaded_bands`, `tile_payloads`,
`cid_retrievability`, `missing_cids`.

Belongs here: the glue between the graph and the band logic. Does not: the logic (`catalogue`, `cids`,
`download`, `files`, `retrievability`, `transfer`).
"""

import json
from concurrent.futures import as_completed
from typing import Any

import dagster as dg
import pandas as pd

from crop_assets.bands.catalogue import catalogue_items
from crop_assets.bands.cids import cid_rows
from crop_assets.bands.cids import tile_payloads as payloads_of
from crop_assets.bands.download import BandFile, ObtainedBand, obtain_band
from crop_assets.bands.retrievability import ask_cids
from crop_assets.bands.transfer import Transfer, expected_bytes
from crop_assets.hls import BANDS, QA_BAND
from crop_assets.recipe import DatasetRecipe
from crop_assets.scenes.selection import chosen_scenes
from crop_assets.schemas import (
    BAND_CIDS,
    CID_RETRIEVABILITY,
    DOWNLOADED_BANDS,
    FILE_COLUMNS,
    MISSING_CIDS,
    NAMED_FILE_COLUMNS,
    TILE_PAYLOADS,
)
from crop_assets.tile_assets import TileRun, TileTable, every_tile_is_in, read_tiles, tile_stage
from crop_assets.year_assets import YearRun, bounded_errors, markdown, year_asset
from resources.errors import ResourceError, UnavailableError
from resources.stop import StoppablePool
from resources.store import DatasetStore

FILES_AT_ONCE = 6
CIDS_AT_ONCE = 8


@tile_stage("bands", BAND_CIDS, {"stac", "ipfs"}, code_version="3", refresh="ipfs_stac")
def band_cids(run: TileRun, selected_scenes: pd.DataFrame, scene_metadata: pd.DataFrame) -> TileTable:
    """The CID of every file of the selected scenes, from the STAC catalogue with IPFS alternates; what is
    missing or malformed is named, and its HTTPS link kept to fall back on.
    """
    scenes = chosen_scenes(selected_scenes)[["position", "scene_id", "date"]]
    if scenes.empty:
        return TileTable(BAND_CIDS.empty(), {"outcome": "no scene is selected"})
    ipfs = run.services.ipfs
    items = catalogue_items(list(scenes["scene_id"]), run.tile, run.services.ipfs_stac, run.store, run.log)
    facts = scene_metadata[["scene_id", "granule_bytes", *(f"{band}_http" for band in BANDS)]]
    nodes, memory = ipfs.probes(run.recipe.sources), run.services.sources.memory
    rows = cid_rows(
        scenes.merge(facts, on="scene_id"), items, lambda cid, path: ipfs.resolve(cid, path, nodes, memory)
    )
    without = rows[rows["cid"] == ""]
    if len(without):
        run.log(f"{len(without)} of {len(rows)} files have no CID: {without['problem'].iloc[0]}")
    return TileTable(rows, {"files": len(rows), "without_cid": len(without)})


@tile_stage("bands", DOWNLOADED_BANDS, {"ipfs", "geotiff"}, code_version="2")
def downloaded_fmasks(run: TileRun, band_cids: pd.DataFrame) -> TileTable:
    """The Fmask files of the selected scenes in the store, fetched as `downloaded_bands` are: a seventh of the
    bytes, which tells whether the rest is worth having.
    """
    return _download(run, band_cids[band_cids["band"] == QA_BAND])


@tile_stage("bands", DOWNLOADED_BANDS, {"ipfs", "geotiff"}, ["fmask_first"], code_version="3")
def downloaded_bands(
    run: TileRun, band_cids: pd.DataFrame, downloaded_fmasks: pd.DataFrame, chip_quality: pd.DataFrame
) -> TileTable:
    """All band files of the selected scenes in the store, fetched from the recipe's sources and verified against
    their CIDs; files that are already there are adopted if they check out. Under `fmask_first`, a tile
    whose chips all fail by their Fmask gets no more than that.
    """
    bands = band_cids[band_cids["band"] != QA_BAND]
    if run.recipe.fmask_first and len(chip_quality) and (chip_quality["reason"] != "").all():
        saved = sum(map(expected_bytes, bands["bytes"], bands["max_bytes"]))
        outcome = (
            f"no chip can pass by its Fmask: {len(bands)} files, some {saved / 1e6:,.0f} MB, are not fetched"
        )
        run.log(outcome)
        return TileTable(
            downloaded_fmasks,
            {"outcome": outcome, "saved_bytes": saved},
            dict(zip(downloaded_fmasks["path"], downloaded_fmasks["sha256"], strict=True)),
        )
    made = _download(run, bands)
    table = pd.concat([downloaded_fmasks, made.frame]) if len(made.frame) else downloaded_fmasks
    order = table["position"].map({"first": 0, "middle": 1, "last": 2}), table["band"].map(BANDS.index)
    table = (
        table.assign(o=order[0], b=order[1])
        .sort_values(["o", "b"], ignore_index=True)
        .drop(columns=["o", "b"])
    )
    return TileTable(table, made.metadata, dict(zip(table["path"], table["sha256"], strict=True)))


def _download(run: TileRun, wanted: pd.DataFrame) -> TileTable:
    rows: list[dict[str, Any]] = [dict(row) for _, row in wanted.iterrows()]
    obtained: dict[int, ObtainedBand] = {}
    errors: list[ResourceError] = []
    missing = [row for row in rows if not run.store.exists(run.layout.band(row["scene_id"], row["band"]))]
    run.store.require_room(sum(expected_bytes(row["bytes"], row["max_bytes"]) for row in missing))
    transfer = Transfer(run.log, len(rows))
    with StoppablePool(FILES_AT_ONCE) as pool:
        futures = {pool.submit(_obtain, run, row, transfer): at for at, row in enumerate(rows)}
        for future in as_completed(futures):
            try:
                obtained[futures[future]] = future.result()
                transfer.file_done()
            except ResourceError as error:
                errors.append(error)
    if errors:
        # what a later try cannot change first: it decides whether there is one, and what to do
        errors.sort(key=lambda error: (isinstance(error, UnavailableError), str(error)))
        told = " | ".join(map(str, errors[:3]))
        raise type(errors[0])(f"{told} ({len(errors)} of {len(rows)} files are missing)")
    table = _downloaded_rows(run, rows, obtained)
    sources = pd.Series([o.source for o in obtained.values()], dtype=str).value_counts()
    metadata = {
        "bytes": int(table["bytes"].sum()),
        "verified": int(table["verified"].sum()),
        "sources": markdown(sources.rename_axis("source").reset_index(name="files")),
        **transfer.metadata(),
    }
    return TileTable(table, metadata, dict(zip(table["path"], table["sha256"], strict=True)))


def _obtain(run: TileRun, row: dict[str, Any], transfer: Transfer) -> ObtainedBand:
    file = BandFile(
        run.layout.band(row["scene_id"], row["band"]),
        run.layout.scene_file(row["scene_id"], row["band"]),
        row["band"],
        row["cid"],
        row["http"],
        row["max_bytes"],
    )
    return obtain_band(file, run.store, run.services.sources, run.log, transfer.add)


def _downloaded_rows(
    run: TileRun, rows: list[dict[str, Any]], obtained: dict[int, ObtainedBand]
) -> pd.DataFrame:
    if not rows:
        return DOWNLOADED_BANDS.empty()
    made = []
    for at, row in enumerate(rows):
        path = run.layout.band(row["scene_id"], row["band"])
        made.append(
            {
                **{column.name: row[column.name] for column in FILE_COLUMNS},
                "path": path,
                "bytes": run.store.size(path),
                "sha256": run.store.sha256(path),
                "cid": row["cid"],
                "verified": obtained[at].verified,
                "note": obtained[at].note,
            }
        )
    return pd.DataFrame(made)


@dg.asset(
    **year_asset("bands", TILE_PAYLOADS, {"json", "ipfs"}, deps=["tile_map"], tile_deps=["band_cids"]),
    check_specs=[every_tile_is_in("tile_payloads")],
)
@bounded_errors
def tile_payloads(
    context: dg.AssetExecutionContext,
    recipe: dg.ResourceParam[DatasetRecipe],
    store: dg.ResourceParam[DatasetStore],
) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """`tile_payloads.json`: for each selected scene of the year its files and their CIDs, over all tiles
    that have them.
    """
    run = YearRun.of(context, recipe, store, TILE_PAYLOADS)
    tiles = read_tiles(run, "band_cids")
    check = tiles.check()
    if done := run.unchanged(
        upstream=["tile_map"],
        tiles={tiles.asset: tiles.versions},
        metadata=tiles.metadata(),
        check_results=[check],
    ):
        return done
    name = run.layout.file("tile_payloads.json")
    cids = tiles.frame
    store.write_bytes(name, json.dumps(payloads_of(cids), indent=1).encode() + b"\n")
    grouped = cids.groupby("tile", as_index=False)
    table = grouped.agg(scenes=("scene_id", "nunique"), files=("file", "size"), without_cid=("cid", _empties))
    return run.finish(table, tiles.metadata(), [name], [check])


def _empties(cids: pd.Series) -> int:
    return int((cids == "").sum())


@tile_stage("bands", CID_RETRIEVABILITY, {"ipfs"}, always=True)
def cid_retrievability(run: TileRun, band_cids: pd.DataFrame) -> TileTable:
    """Whether the content of each CID can be had: the recipe's IPFS sources are asked for its first block, which
    is verified; the rest is not downloaded. Each materialization asks anew.
    """
    ipfs, memory = run.services.ipfs, run.services.sources.memory
    nodes = ipfs.probes(run.recipe.sources)
    columns = [column.name for column in NAMED_FILE_COLUMNS]
    rows = ask_cids(
        band_cids[[*columns, "problem"]],
        lambda cid: ipfs.find_block(cid, nodes, memory)[0],
        CIDS_AT_ONCE,
        run.log,
    )
    missing = rows[~rows["available"].astype(bool)]
    metadata = {
        "available": len(rows) - len(missing),
        "missing": len(missing),
        "missing_cids": markdown(missing[["file", "cid", "problem"]]),
    }
    return TileTable(rows if len(rows) else CID_RETRIEVABILITY.empty(), metadata)


@dg.asset(
    **year_asset(
        "bands", MISSING_CIDS, {"json", "ipfs"}, deps=["tile_map"], tile_deps=["cid_retrievability"]
    ),
    check_specs=[
        every_tile_is_in("missing_cids"),
        dg.AssetCheckSpec(
            "every_cid_is_retrievable",
            asset="missing_cids",
            description="Somebody gives the content of every CID that the dataset needs.",
        ),
    ],
)
@bounded_errors
def missing_cids(
    context: dg.AssetExecutionContext,
    recipe: dg.ResourceParam[DatasetRecipe],
    store: dg.ResourceParam[DatasetStore],
) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """`missing_cids.json`: the files of the year whose content could not be had when their tiles were asked, in the
    form of `tile_payloads.json`, with what each source said.
    """
    run = YearRun.of(context, recipe, store, MISSING_CIDS)
    tiles = read_tiles(run, "cid_retrievability", "retrievability_job")
    asked = tiles.frame
    missing = asked[~asked["available"].astype(bool)].sort_values(["scene_id", "band"], ignore_index=True)
    retrievable = dg.AssetCheckResult(
        passed=missing.empty,
        check_name="every_cid_is_retrievable",
        severity=dg.AssetCheckSeverity.WARN,
        metadata={
            "asked": len(asked),
            "missing": len(missing),
            "missing_cids": markdown(missing[["file", "cid", "problem"]]),
        },
    )
    checks = [tiles.check(), retrievable]
    metadata = tiles.metadata() | {"missing_cids": len(missing)}
    if done := run.unchanged(
        upstream=["tile_map"],
        tiles={tiles.asset: tiles.versions},
        metadata=metadata,
        check_results=checks,
    ):
        return done
    name = run.layout.file("missing_cids.json")
    store.write_bytes(name, json.dumps(payloads_of(missing, ["problem"]), indent=1).encode() + b"\n")
    return run.finish(missing[[c.name for c in MISSING_CIDS.columns]], metadata, [name], checks)
