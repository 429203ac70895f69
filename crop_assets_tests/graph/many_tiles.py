"""The tables of a year of many tiles, as their stages record them, without the work: for what looks at tables alone."""

from collections.abc import Mapping, Sequence
from itertools import product

import pandas as pd
import pyarrow as pa

from crop_assets.graph.lineage import Lineage
from crop_assets.graph.stage import Stage
from crop_assets.hls import is_tile
from crop_assets.layout import Layout
from crop_assets.stages import STAGES
from crop_assets_tests.forged import table_of
from crop_assets_tests.small_world import LABELS, TILE_STAGES, YEAR, recipe
from resources.store import DatasetStore

FILES = {f"training_datasets/small/{YEAR}/chips/chip_{row:03d}_000_merged.tif": "0" * 64 for row in range(30)}
"""The files that each tile's tables name; none of them is there."""


def names_of_tiles(count: int) -> list[str]:
    """Names that tiles could have."""
    names = ("".join(parts) for parts in product(("14", "15", "16"), "ST", "KLMNPQR", "ABCDEFGHJKLM"))
    return sorted(filter(is_tile, names))[:count]


def lineage_of(store: DatasetStore, of_year: Lineage | None = None, **changes: object) -> Lineage:
    return Lineage(store, Layout("small", YEAR), recipe(**changes), of_year)


def write_year(store: DatasetStore, tiles: Sequence[str]) -> None:
    """Write the tables of the labels and of all tile stages of a year."""
    year = lineage_of(store)
    rows = {"cdl": other_rows("cdl"), "tile_map": table_of("tile_map", tile=pa.array(tiles)).to_pandas()}
    for name in LABELS:
        write(year, STAGES[name], None, rows.get(name))
    for tile in tiles:
        one = lineage_of(store, year)
        for name in TILE_STAGES:
            write(one, STAGES[name], tile)


def write(
    lineage: Lineage,
    stage: Stage,
    tile: str | None,
    frame: pd.DataFrame | None = None,
    files: Mapping[str, str] = FILES,
) -> None:
    """Write a table as made of what is there now; without rows, unless they are given."""
    fields = stage.recipe_fields(lineage.recipe)
    record = lineage.record(fields, stage.upstream, tile, TILE_STAGES, {}, [stage.name])
    lineage.write(
        stage.name, tile, stage.schema.empty() if frame is None else frame, record | {"files": files}
    )


def other_rows(asset: str) -> pd.DataFrame:
    """A row that the stage could have made."""
    frame: pd.DataFrame = table_of(asset).to_pandas()
    return frame
