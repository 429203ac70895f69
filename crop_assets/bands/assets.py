"""A scene -> verified files: `band_cids`, `downloaded_bands`, `tile_payloads`.

Belongs here: the glue between the graph and the band logic. Does not: the logic (`cids`, `download`, `files`).
"""

import json
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import dagster as dg
import pandas as pd
import pyarrow as pa

from crop_assets.bands.cids import cid_rows
from crop_assets.bands.cids import tile_payloads as payloads_of
from crop_assets.bands.download import BandFile, Obtained, obtain_band
from crop_assets.recipe import DatasetRecipe
from crop_assets.scenes.granules import FILES
from crop_assets.scenes.selection import chosen_scenes
from crop_assets.tile_assets import TileRun, TileTable, read_tiles, tile_stage
from crop_assets.year_assets import YearRun, markdown, year_asset
from resources.errors import ResourceError
from resources.store import DatasetStore
from resources.tables import Column, TableSchema

FILES_AT_ONCE = 6

_FILE = (
    Column("scene_id", pa.string(), "HLS scene id"),
    Column("position", pa.string(), "first, middle or last"),
    Column("date", pa.date32(), "day of sensing (UTC)"),
    Column("band", pa.string(), "B02 B03 B04 B8A B11 B12 or Fmask"),
)
BAND_CIDS = TableSchema(
    (
        *_FILE,
        Column("file", pa.string(), "file name"),
        Column("cid", pa.string(), "CID of the file's content; empty where none is known"),
        Column("problem", pa.string(), "why there is no CID"),
        Column("http", pa.string(), "HTTPS link to fall back on"),
    )
)
DOWNLOADED_BANDS = TableSchema(
    (
        *_FILE,
        Column("path", pa.string(), "file in the store"),
        Column("bytes", pa.int64(), "size of the file"),
        Column("sha256", pa.string(), "checksum of the file"),
        Column("cid", pa.string(), "CID of the file's content"),
        Column("verified", pa.bool_(), "whether the bytes are those that the CID promises"),
        Column("note", pa.string(), "why not verified"),
    )
)
TILE_PAYLOADS = TableSchema(
    (
        Column("tile", pa.string(), "HLS tile"),
        Column("scenes", pa.int32(), "scenes of the tile"),
        Column("files", pa.int32(), "files of the tile"),
        Column("without_cid", pa.int32(), "files without a CID"),
    )
)


@tile_stage("bands", BAND_CIDS, {"stac", "ipfs"}, refresh="ipfs_stac")
def band_cids(run: TileRun, selected_scenes: pd.DataFrame, scene_metadata: pd.DataFrame) -> TileTable:
    """The CID of every file of the selected scenes, from the STAC catalogue with IPFS alternates; what is
    missing or malformed is named, and its HTTPS link kept to fall back on.
    """
    scenes = chosen_scenes(selected_scenes)[["position", "scene_id", "date"]]
    if scenes.empty:
        return TileTable(BAND_CIDS.empty(), {"outcome": "no scene is selected"})
    catalogue = run.services.ipfs_stac
    items = catalogue.items(list(scenes["scene_id"])) if catalogue.url else []
    links = scene_metadata[["scene_id", *(f"{band}_http" for band in FILES)]]
    rows = cid_rows(scenes.merge(links, on="scene_id"), items)
    without = rows[rows["cid"] == ""]
    if len(without):
        run.log(f"{len(without)} of {len(rows)} files have no CID: {without['problem'].iloc[0]}")
    return TileTable(rows, {"files": len(rows), "without_cid": len(without)})


@tile_stage("bands", DOWNLOADED_BANDS, {"ipfs", "geotiff"})
def downloaded_bands(run: TileRun, band_cids: pd.DataFrame) -> TileTable:
    """The band files of the selected scenes in the store, fetched from IPFS and verified against their
    CIDs, or from LP DAAC; files that are already there are adopted if they check out.
    """
    rows: list[dict[str, Any]] = [dict(row) for _, row in band_cids.iterrows()]
    obtained: dict[int, Obtained] = {}
    errors: list[str] = []
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        futures = {pool.submit(_obtain, run, row): at for at, row in enumerate(rows)}
        for future in as_completed(futures):
            try:
                obtained[futures[future]] = future.result()
                if len(obtained) % len(FILES) == 0:
                    run.log(f"{len(obtained)} of {len(rows)} files")
            except ResourceError as error:
                errors.append(str(error))
    if errors:
        raise ResourceError(
            f"{len(errors)} of {len(rows)} files are missing. " + " | ".join(sorted(errors)[:3])
        )
    table = _downloaded_rows(run, rows, obtained)
    sources = pd.Series([o.source.split("/ipfs/")[0] for o in obtained.values()], dtype=str).value_counts()
    metadata = {
        "bytes": int(table["bytes"].sum()),
        "verified": int(table["verified"].sum()),
        "sources": markdown(sources.rename_axis("source").reset_index(name="files")),
    }
    return TileTable(table, metadata, dict(zip(table["path"], table["sha256"], strict=True)))


def _obtain(run: TileRun, row: dict[str, Any]) -> Obtained:
    name = run.layout.band(row["scene_id"], row["band"])
    scene_file = run.layout.scene_file(row["scene_id"], row["band"])
    file = BandFile(name, scene_file, row["band"], row["cid"], row["http"])
    services = run.services
    return obtain_band(file, run.store, services.mirror, services.ipfs, services.lp_daac, run.log)


def _downloaded_rows(run: TileRun, rows: list[dict[str, Any]], obtained: dict[int, Obtained]) -> pd.DataFrame:
    if not rows:
        return DOWNLOADED_BANDS.empty()
    made = []
    for at, row in enumerate(rows):
        path = run.layout.band(row["scene_id"], row["band"])
        made.append(
            {
                **{column.name: row[column.name] for column in _FILE},
                "path": path,
                "bytes": run.store.size(path),
                "sha256": run.store.sha256(path),
                "cid": row["cid"],
                "verified": obtained[at].verified,
                "note": obtained[at].note,
            }
        )
    return pd.DataFrame(made)


@dg.asset(**year_asset("bands", TILE_PAYLOADS, {"json", "ipfs"}, deps=["tile_map"], tile_deps=["band_cids"]))
def tile_payloads(
    context: dg.AssetExecutionContext, recipe: DatasetRecipe, store: DatasetStore
) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """`tile_payloads.json`: for each selected scene of the year its files and their CIDs, over all tiles
    that have them.
    """
    run = YearRun.of(context, recipe, store, TILE_PAYLOADS)
    tiles = read_tiles(run, "band_cids")
    if done := run.unchanged(tiles.versions, upstream=["tile_map"]):
        return done
    name = run.layout.file("tile_payloads.json")
    cids = tiles.frame
    store.write_bytes(name, json.dumps(payloads_of(cids), indent=1).encode() + b"\n")
    grouped = cids.groupby("tile", as_index=False)
    table = grouped.agg(scenes=("scene_id", "nunique"), files=("file", "size"), without_cid=("cid", _empties))
    return run.finish(table, tiles.metadata(), files=[name])


def _empties(cids: pd.Series) -> int:
    return int((cids == "").sum())
