"""How stages are declared, and which declarations are refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from crop_assets.graph.lineage import Lineage
from crop_assets.graph.stage import AllTiles, Made, Run, Source, Stage, TileRun, YearRun, stage
from crop_assets.layout import Layout
from crop_assets.recipe import DatasetRecipe
from crop_assets.schemas import SCHEMAS
from crop_assets.stages import STAGES, _require_valid
from crop_assets_tests.forged import forge, table_of
from resources.errors import IntegrityError
from resources.machine import Machine
from resources.store import DatasetStore


def test_what_a_stage_reads_and_uses_follows_from_its_parameters() -> None:
    def chips(run: TileRun, tile_map: pd.DataFrame, machine: Machine) -> Made:
        return Made(tile_map)

    made = stage("chips", SCHEMAS["chips"], fields=["seed"], again=lambda stac: stac.refresh)(chips)
    assert (made.name, made.scope, made.tables, made.all_tiles) == ("chips", "tile", ("tile_map",), ())
    assert (made.services, made.job, made.recipe_fields(DatasetRecipe())) == (
        {"machine", "stac"},
        "tiles_job",
        ["seed"],
    )

    def splits(run: YearRun, chips: AllTiles, source: Path) -> Made:
        return Made(chips.frame)

    made = stage("dataset", SCHEMAS["splits"], source=lambda ipfs: Source(ipfs, ""))(splits)
    assert (made.scope, made.upstream, made.all_tiles) == ("year", ("tile_map",), ("chips",))
    assert (made.services, made.job) == ({"ipfs"}, "dataset_job")


def no_run(chips: pd.DataFrame) -> Made:
    return Made(chips)


def no_annotation(run: Run, chips) -> Made:  # type: ignore[no-untyped-def]
    return Made(chips)


@pytest.mark.parametrize("function", [no_run, no_annotation])
def test_a_function_that_does_not_say_what_it_takes_is_no_stage(function: Any) -> None:
    with pytest.raises(TypeError, match=rf"{function.__name__}: its .*parameter"):
        stage("chips", SCHEMAS["chips"])(function)


SPLITS, CHIPS = STAGES["splits"], STAGES["chips"]


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (replace(SPLITS, schema=SCHEMAS["chips"]), "its table must be in SCHEMAS"),
        (replace(CHIPS, all_tiles=("band_cids",)), "are for stages of a year"),
        (replace(CHIPS, warnings=("outcome",)), "are for stages of a year"),
        (replace(CHIPS, then=lambda instance, table: None), "are for stages of a year"),
        (replace(CHIPS, tables=("cdl",)), "must read the tile map, or another tile stage"),
        (replace(SPLITS, tables=("chips",)), "gets chips as AllTiles"),
        (replace(SPLITS, all_tiles=("cdl",)), "cdl is not a tile stage"),
    ],
)
def test_a_declaration_that_cannot_work_is_refused_when_it_is_loaded(wrong: Stage, why: str) -> None:
    with pytest.raises(TypeError, match=why):
        _require_valid(wrong, STAGES)
    for sound in STAGES.values():
        _require_valid(sound, STAGES)


@pytest.mark.parametrize("tile", [None, "14SMG"])
def test_rows_written_by_another_run_are_not_used(tmp_path: Path, tile: str | None) -> None:
    layout, store = Layout("small", 2022), DatasetStore(root=str(tmp_path))
    asset = "chips" if tile else "cdl"
    path = tmp_path / layout.table(asset, tile)
    forge(path, table_of(asset), {})
    lineage = Lineage(store, layout, DatasetRecipe())
    of_tile = Lineage(store, layout, DatasetRecipe(), lineage)
    assert of_tile.stale_because(asset, tile) == ""
    other = table_of(asset)
    forge(path, other.set_column(1, other.column_names[1], [["of another run"]]), {})
    with pytest.raises(
        IntegrityError, match=f"{asset}.* was written by another run meanwhile; launch this run again"
    ):
        of_tile.read(asset, tile)
    assert len(Lineage(store, layout, DatasetRecipe()).read(asset, tile)) == 1
