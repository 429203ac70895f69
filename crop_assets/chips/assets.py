"""Stages from band files to chips: `chip_quality`, `reprojected_tiles`, `chips`, `filtered_chips`; and
`candidate_fmasks`, which measures scenes over the chips before three of them are selected.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import replace
from functools import partial
from typing import Any

import pandas as pd

from crop_assets.bands.tile_files import fetch_files, file_rows, listed_cids
from crop_assets.chips.clip import Band, Chip, TileReader, chip_facts, chip_files
from crop_assets.chips.fmask import count_fmasks, fmask_facts, read_fmasks
from crop_assets.chips.plots import (
    MAX_SHOWN,
    Thumbnail,
    Verdict,
    chip_picture,
    contact_sheet,
    read_thumbnail,
    thumbnail,
)
from crop_assets.chips.quality import NO_SCENES, NOT_FETCHED, figure_text, judge_chips
from crop_assets.chips.rasters import Block
from crop_assets.chips.reproject import ReprojectionJob, reproject_bands
from crop_assets.classes import CLASS_COLUMNS
from crop_assets.graph.metadata import Picture, markdown
from crop_assets.graph.stage import Check, Finding, Made, Source, TileRun, stage
from crop_assets.hls import POSITIONS, QA_BAND, parse_scene_id
from crop_assets.labels.cdl import raster_digest
from crop_assets.recipe import DatasetRecipe
from crop_assets.scenes.selection import candidate_scenes, chosen_scenes
from crop_assets.schemas import (
    CANDIDATE_FMASKS,
    CHIP_QUALITY,
    CHIPS,
    FILTERED_CHIPS,
    PIXEL_COUNTS,
    REPROJECTED_TILES,
)
from resources.cdl import CdlReleases
from resources.errors import IntegrityError, NotFoundError
from resources.ipfs.resource import IpfsContent
from resources.parallel import in_parallel
from resources.sources import Sources
from resources.stac import IpfsStac
from resources.stop import StoppablePool

_CHIPS_AT_ONCE = 16
"""Chips of a tile that are in memory at once, at 2 MB each. Stages hand over at most as many, at 3 MB each."""
_WRITERS = 8
"""Files that are written at once: most of that time they wait for the disk or the object store."""
_QA_FIELDS = ("qa_rule", "max_bad_percent", "max_na_pixels", "min_purity", "min_confidence")


def _candidate_fields(recipe: DatasetRecipe) -> list[str]:
    choice = ["max_candidates", "max_cloud_cover", "min_gap_days", "season_start", "season_end", "cid_list"]
    return ["scene_list", "scene_rule", *(choice if recipe.measures_candidates else [])]


def _candidate_cids(run: TileRun) -> Source:
    return listed_cids(run) if run.recipe.measures_candidates else Source(None, None)


@stage(
    "scenes",
    CANDIDATE_FMASKS,
    kinds={"ipfs", "geotiff"},
    fields=_candidate_fields,
    source=_candidate_cids,
    again=lambda run, ipfs_stac: run.recipe.measures_candidates and ipfs_stac.refresh,
)
def candidate_fmasks(
    run: TileRun,
    scene_metadata: pd.DataFrame,
    tile_map: pd.DataFrame,
    ipfs_stac: IpfsStac,
    ipfs: IpfsContent,
    sources: Sources,
    source: Mapping[str, str] | None,
) -> Made:
    """With `scene_rule: clearest`, the Fmask files of up to `max_candidates` scenes of the season, downloaded and
    verified like those of the selected scenes, and what each has of cloud, shadow, snow and fill over each chip of the
    tile. A candidate whose file no source has, or whose content is wrong, is set aside. Empty with other rules.
    """
    recipe = run.recipe
    if not recipe.measures_candidates:
        return Made(CANDIDATE_FMASKS.empty())
    season = recipe.season(run.year)
    scenes = candidate_scenes(
        scene_metadata, recipe.max_candidates, recipe.max_cloud_cover, recipe.min_gap_days, season
    )
    if scenes.empty:
        return Made(CANDIDATE_FMASKS.empty(), {"outcome": "no scene of the season can be a candidate"})
    wanted = file_rows(
        run, scenes.assign(position=""), scene_metadata, ipfs_stac, ipfs, sources, source, [QA_BAND]
    )
    fetched = fetch_files(run, wanted, sources)
    # a file that no source has sets its candidate aside, so the other errors decide about retries
    blocking = {
        at: error
        for at, error in fetched.errors.items()
        if not isinstance(error, NotFoundError | IntegrityError)
    }
    if blocking:
        raise replace(fetched, errors=blocking).error(len(wanted))
    # without three candidates the tile fails, as it does without a file of a selected scene
    if fetched.errors and len(fetched.stored) < len(POSITIONS):
        raise fetched.error(len(wanted))
    files = fetched.table
    chips = sorted(tile_map["chip_id"])
    local = [partial(run.store.local, path) for path in files["path"]]
    counted = dict(zip(files["scene_id"], count_fmasks(local, chips, run.pool), strict=True))
    named = ["path", "bytes", "sha256", "verified"]
    stored = {
        scene_id: dict(zip(named, facts, strict=True))
        for scene_id, *facts in _columns(files, "scene_id", *named)
    }
    absent = {wanted["scene_id"].iloc[at]: str(error) for at, error in fetched.errors.items()}
    tables = []
    for scene_id, date, cid in _columns(wanted, "scene_id", "date", "cid"):
        row = {"scene_id": scene_id, "date": date, "cid": cid, "verified": False, **stored.get(scene_id, {})}
        counts = absent[scene_id] if scene_id in absent else counted[scene_id]
        if isinstance(counts, str):
            run.log(f"{scene_id} is set aside: {counts}")
            tables.append(pd.DataFrame({**row, "problem": counts, "chip_id": chips}))
        else:
            tables.append(pd.DataFrame(counts).assign(**row, problem="", chip_id=chips))
    table = pd.concat(tables).reindex(columns=[column.name for column in CANDIDATE_FMASKS.columns])
    set_aside = table["problem"] != ""
    metadata = {
        "candidates": len(scenes),
        "set_aside": int(table.loc[set_aside, "scene_id"].nunique()),
        "bytes": int(files["bytes"].sum()),
        "verified": int(files["verified"].sum()),
        **fetched.transfer.metadata(),
    }
    return Made(table, metadata, dict(zip(files["path"], files["sha256"], strict=True)))


@stage("chips", CHIP_QUALITY, kinds={"geotiff"}, fields=_QA_FIELDS, code_version="2")
def chip_quality(
    run: TileRun, downloaded_fmasks: pd.DataFrame, tile_map: pd.DataFrame, label_quality: pd.DataFrame
) -> Made:
    """Bad and missing pixels of each chip box of the tile, from the Fmask of the three dates alone, and whether the
    chip can still be kept, also by its labels. This is known before the other bands are downloaded.
    """
    if downloaded_fmasks.empty:
        return Made(CHIP_QUALITY.empty(), {"outcome": "no scene is selected"})
    with contextlib.ExitStack() as stack:
        local = [stack.enter_context(run.store.local(path)) for path in downloaded_fmasks["path"]]
        fmasks = dict(zip(downloaded_fmasks["position"], local, strict=True))
        ids = sorted(tile_map["chip_id"])
        found = read_fmasks(fmasks, ids, run.pool)
    run.handover.update(found.pixels)
    for position, path, sha256 in _columns(downloaded_fmasks, "position", "path", "sha256"):
        for chip_id, block in zip(ids[:_CHIPS_AT_ONCE], found.blocks[position], strict=False):
            run.handover[path, sha256, chip_id] = block
    facts = fmask_facts(ids, found.blocks).assign(outcome="", fit_scenes=len(fmasks))
    judged = _judged(run, facts, label_quality)
    table = facts.assign(**{str(name): judged[name] for name in judged if name not in facts})
    table = table[[column.name for column in CHIP_QUALITY.columns]]
    failing = int((table["reason"] != "").sum())
    run.log(f"labels and Fmask rule out {failing} of {len(table)} chips")
    shown = table[["chip_id", "bad_percent_max", "na_count", "reason"]].round(2)
    return Made(table, {"may_be_kept": len(table) - failing, "chips": markdown(shown)})


def _judged(run: TileRun, facts: pd.DataFrame, label_quality: pd.DataFrame) -> pd.DataFrame:
    """The verdicts of `judge_chips` by the recipe."""
    recipe = run.recipe
    if recipe.min_purity or recipe.min_confidence:
        facts = facts.merge(label_quality.drop(columns="tile"), on="chip_id", how="left")
    return judge_chips(
        facts,
        recipe.qa_rule,
        recipe.max_bad_percent,
        recipe.max_na_pixels,
        recipe.min_purity,
        recipe.min_confidence,
    )


@stage("chips", REPROJECTED_TILES, kinds={"geotiff"}, fields=["coverage"], code_version="3")
def reprojected_tiles(run: TileRun, downloaded_bands: pd.DataFrame, tile_map: pd.DataFrame) -> Made:
    """Every band of the selected scenes, resampled to the CDL grid in EPSG:5070 (bilinear; Fmask nearest). The GeoTIFFs
    are sparse, with only the blocks under the tile's chips, or complete with `coverage: full`.
    """
    if downloaded_bands.empty:
        return Made(REPROJECTED_TILES.empty(), {"outcome": "no scene is selected"})
    if set(downloaded_bands["band"]) == {QA_BAND}:
        return Made(REPROJECTED_TILES.empty(), {"outcome": "labels or Fmask rule out all chips"})
    table = downloaded_bands[["scene_id", "position", "date", "band"]].copy()
    named = zip(table["scene_id"], table["band"], strict=True)
    table["path"] = [run.layout.reprojected(scene_id, band) for scene_id, band in named]
    chips = sorted(tile_map["chip_id"])
    files = [
        ReprojectionJob(
            scene_id,
            band,
            parse_scene_id(scene_id).version,
            run.store.local(source),
            partial(run.store.write_pieces, path),
            (source, sha256),
        )
        for (scene_id, band, path), (source, sha256) in zip(
            _columns(table, "scene_id", "band", "path"),
            _columns(downloaded_bands, "path", "sha256"),
            strict=True,
        )
    ]
    whole_tile = run.recipe.coverage == "full"
    with StoppablePool(_WRITERS) as writers:
        made = reproject_bands(
            files,
            chips,
            {"TILE": run.tile},
            run.pool,
            writers,
            run.handover,
            whole_tile,
            # not in memory, as a machine's folder for temporary files may be
            run.store.writing_folder,
        )
    for path, sha256, blocks in zip(table["path"], made.sha256, made.first, strict=True):
        run.handover.update(((path, sha256, chip_id), block) for chip_id, block in blocks.items())
    table["bytes"] = made.bytes
    table["sha256"] = made.sha256
    table["blocks"] = made.blocks
    metadata = {
        "bytes": int(table["bytes"].sum()),
        "blocks": sum(made.blocks),
        "grid": f"{made.grid.shape[1]} x {made.grid.shape[0]}",
    }
    return Made(table, metadata, dict(zip(table["path"], table["sha256"], strict=True)))


@stage("chips", CHIPS, kinds={"geotiff"}, fields=["unknown_codes"], code_version="4")
def chips(
    run: TileRun,
    reprojected_tiles: pd.DataFrame,
    selected_scenes: pd.DataFrame,
    tile_map: pd.DataFrame,
    cdl: pd.DataFrame,
    cdl_releases: CdlReleases,
) -> Made:
    """One 18-band image, 13-class mask and Fmask stack per chip box of the tile, with the numbers that the filter
    needs: valid, bad and missing pixels per date.
    """
    scenes = chosen_scenes(selected_scenes)
    fit = int(selected_scenes["fit"].sum())
    ids = sorted(tile_map["chip_id"])
    if scenes.empty:
        unmade = [{"chip_id": chip_id, "outcome": NO_SCENES, "fit_scenes": fit} for chip_id in ids]
        return Made(_chip_table(unmade), {"outcome": f"{len(ids)} chips without three scenes"})
    if reprojected_tiles.empty:
        unmade = [{"chip_id": chip_id, "outcome": NOT_FETCHED, "fit_scenes": fit} for chip_id in ids]
        return Made(_chip_table(unmade), {"outcome": f"{len(ids)} chips ruled out by labels or Fmask"})
    digest = raster_digest(cdl)
    tags = {
        "CDL": f"{run.year} {digest}",
        "TILE": run.tile,
        "SCENES": " ".join(scenes["scene_id"]),
    }
    rows: list[dict[str, Any]] = []
    thumbnails: list[Thumbnail] = []
    cdl_path = cdl_releases.find_same(run.year, digest)
    paths = {
        (position, band): (path, sha256)
        for position, band, path, sha256 in _columns(reprojected_tiles, "position", "band", "path", "sha256")
    }

    def known(band: Band, chip_id: str) -> Block | None:
        block: Block | None = run.handover.pop((*paths[band], chip_id), None)
        return block

    local = {band: run.store.local(path) for band, (path, _) in paths.items()}
    with (
        StoppablePool(_WRITERS) as writers,
        TileReader(local, str(cdl_path), run.recipe.unknown_codes, known) as reader,
    ):
        for start in range(0, len(ids), _CHIPS_AT_ONCE):
            some = ids[start : start + _CHIPS_AT_ONCE]
            pixels = reader.read(some, run.pool)
            if start == 0:
                preview = run.pool.submit(chip_picture, pixels[0], ids[0], list(map(str, scenes["date"])))
            thumbnails += map(thumbnail, pixels[: MAX_SHOWN - len(thumbnails)])
            named = zip(some, pixels, strict=True)
            made = in_parallel(
                run.pool, lambda chip: _chip_row(run, *chip, scenes, tags, fit, writers), named
            )
            rows += [
                row | {name: done.result()[1] for name, done in written.items()} for row, written in made
            ]
            if len(ids) > _CHIPS_AT_ONCE:
                run.log(f"{len(rows)} of {len(ids)} chips")
    table = _chip_table(rows)
    run.handover.update(zip(_picture_keys(table), thumbnails, strict=False))
    files = {
        path: digest
        for name in ("merged", "mask", "fmask")
        for path, digest in zip(table[f"{name}_path"], table[f"{name}_sha256"], strict=True)
    }
    return Made(table, {"chip": Picture(preview.result(), ids[0], "jpeg")}, files)


def _chip_row(
    run: TileRun,
    chip_id: str,
    chip: Chip,
    scenes: pd.DataFrame,
    tags: dict[str, str],
    fit: int,
    writers: Executor,
) -> tuple[dict[str, Any], dict[str, Future[tuple[int, str]]]]:
    """The row of a chip without the checksums of its files, and the files that are being written, by their column."""
    layout = run.layout
    paths = {"merged": layout.merged(chip_id), "mask": layout.mask(chip_id), "fmask": layout.fmask(chip_id)}
    files = chip_files(chip, chip_id, [str(date) for date in scenes["date"]], tags)
    written = {
        f"{name}_sha256": writers.submit(run.store.write_pieces, paths[name], pieces)
        for name, pieces in files.items()
    }
    row = {
        "chip_id": chip_id,
        "outcome": "",
        "fit_scenes": fit,
        **{f"{name}_path": path for name, path in paths.items()},
        **{
            f"{position}_date": date
            for position, date in zip(scenes["position"], scenes["date"], strict=True)
        },
        **{
            f"{position}_scene": scene
            for position, scene in zip(scenes["position"], scenes["scene_id"], strict=True)
        },
        **chip_facts(chip),
    }
    return row, written


def _columns(table: pd.DataFrame, *names: str) -> Iterator[tuple[Any, ...]]:
    return zip(*(table[name] for name in names), strict=True)


def _chip_table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=[column.name for column in CHIPS.columns], dtype=object)


def _any_chip_is_kept(chips: pd.DataFrame, *_: object) -> Finding:
    rejected = chips.loc[~chips["kept"], "reason"].value_counts()
    kept = int(chips["kept"].sum())
    return Finding(
        kept > 0 or chips.empty, {"kept": kept} | {str(why): int(n) for why, n in rejected.items()}
    )


@stage(
    "chips",
    FILTERED_CHIPS,
    fields=_QA_FIELDS,
    code_version="2",
    checks=[
        Check(
            "any_chip_is_kept",
            "At least one chip of the tile is in the dataset. A tile without chip boxes passes.",
            _any_chip_is_kept,
        )
    ],
)
def filtered_chips(
    run: TileRun, chips: pd.DataFrame, chip_quality: pd.DataFrame, label_quality: pd.DataFrame
) -> Made:
    """The chips with few enough bad pixels on every date, no missing ones, and labels that are pure and certain enough,
    copied to chips_filtered; for every other chip the reason for its rejection, and the number behind it.
    """
    facts = chips
    if (chips["outcome"] == NOT_FETCHED).all():
        known = chip_quality[["chip_id", *(column.name for column in PIXEL_COUNTS), "na_count"]]
        facts = chips[["chip_id", "outcome", "fit_scenes"]].merge(known, on="chip_id")
    table = _judged(run, facts, label_quality)
    carried = [*(f"{p}_date" for p in POSITIONS), *CLASS_COLUMNS]
    table = table.merge(chips[["chip_id", "merged_sha256", "mask_sha256", *carried]], on="chip_id")
    for name, file_of in (("merged", run.layout.merged), ("mask", run.layout.mask)):
        targets = [file_of(chip_id, "chips_filtered") for chip_id in table["chip_id"]]
        table[f"{name}_path"] = [
            path if kept else "" for path, kept in zip(targets, table["kept"], strict=True)
        ]
        table.loc[~table["kept"], f"{name}_sha256"] = ""
        copies = [
            (file_of(i), path)
            for i, path in zip(table["chip_id"], table[f"{name}_path"], strict=True)
            if path
        ]
        in_parallel(run.pool, lambda pair: run.store.copy_file(*pair), copies)
        in_parallel(run.pool, run.store.remove, sorted(set(targets) - set(table[f"{name}_path"])))
    rejected = table[~table["kept"]]
    kept = table[table["kept"]]
    files = {
        **dict(zip(kept["merged_path"], kept["merged_sha256"], strict=True)),
        **dict(zip(kept["mask_path"], kept["mask_sha256"], strict=True)),
    }
    run.log(f"{len(kept)} of {len(table)} chips kept")
    figures = pd.Series(list(map(figure_text, table["reason"], table["figure"])), table.index)
    reasons = rejected["reason"].value_counts().rename_axis("reason").reset_index(name="chips")
    why = [f"{reason} {figure}".rstrip() for reason, figure in zip(table["reason"], figures, strict=True)]
    metadata = {
        "kept": len(kept),
        "rejected": len(rejected),
        "contact_sheet": Picture(_contact_sheet(run, chips, why), f"chips of {run.tile}", "jpeg"),
        "reasons": markdown(reasons),
        "ledger": markdown(rejected[["chip_id", "reason"]].assign(figure=figures[~table["kept"]])),
    }
    return Made(table, metadata, files)


def _contact_sheet(run: TileRun, chips: pd.DataFrame, why: Sequence[str]) -> bytes:
    """The contact sheet of the tile, of thumbnails of the stage `chips`, or else read from its files.

    `why` has the reason against each chip, "" for a kept one.
    """
    shown = chips.head(MAX_SHOWN)

    def one(key: tuple[str, str, str, str]) -> Thumbnail | None:
        merged, _, mask, _ = key
        found: Thumbnail | None = run.handover.pop(key, None)
        return found or read_thumbnail(run.store.gdal_path(merged), run.store.gdal_path(mask))

    made = shown["outcome"] == ""
    thumbnails = dict(
        zip(shown.loc[made, "chip_id"], in_parallel(run.pool, one, _picture_keys(shown[made])), strict=True)
    )
    verdicts = [
        Verdict(chip_id, reason, thumbnails.get(chip_id))
        for chip_id, reason in zip(chips["chip_id"], why, strict=True)
    ]
    return contact_sheet(run.tile, verdicts)


def _picture_keys(chips: pd.DataFrame) -> list[tuple[str, str, str, str]]:
    """What the thumbnail of each chip depends on, as the keys of `handover`."""
    return list(_columns(chips, "merged_path", "merged_sha256", "mask_path", "mask_sha256"))
