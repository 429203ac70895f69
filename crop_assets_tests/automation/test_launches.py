"""A command that launches tiles makes exactly the given partitions, checked in the store."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from crop_assets.layout import Layout
from crop_assets.partitions import CDL_YEAR, TILE
from crop_assets_tests.automation.test_daemon import environment as environment
from crop_assets_tests.automation.test_daemon import home as home
from crop_assets_tests.resources.nass import nass as nass
from crop_assets_tests.small_world import (
    EAST,
    RECIPE,
    SOUTH,
    THREE_TILES,
    TILE_STAGES,
    WEST,
    YEAR,
    Served,
    Setting,
    new_graph,
)
from resources.cdl import CdlReleases

EARLIER = YEAR - 1
EMPTY = "14SPG"
"""A tile without chips."""
ORDER = (EMPTY, WEST, SOUTH, EAST)
"""The tiles in the order in which they became partitions, which is not alphabetical."""
CHIPS = {
    (YEAR, tile): {f"{chip}{end}" for chip in THREE_TILES[tile] for end in ("_merged.tif", ".mask.tif")}
    for tile in (WEST, EAST)
}
"""The chip files of each year and tile; the others have no data."""


@pytest.fixture
def labels(
    tmp_path: Path,
    home: Path,
    environment: dict[str, str],
    setting: Setting,
    served: Served,
    three_tiles: dict[str, Any],
) -> dict[str, str]:
    """The environment of a store with the labels of two years, but without any tile."""
    source = Path(three_tiles["cdl_releases"].source)
    earlier = source.with_name(f"{EARLIER}_30m_cdls.tif")
    shutil.copy(source, earlier)
    cdl = str(source).replace(str(YEAR), "{year}")
    boxes = three_tiles["recipe"].chip_boxes
    Path(environment["CROP_ASSETS_RECIPE"]).write_text(yaml.safe_dump({**RECIPE, "chip_boxes": boxes}))
    changes = three_tiles | {"cdl_releases": CdlReleases(source=cdl, index="")}
    with new_graph(
        tmp_path / "data", setting, served.server, dg.DagsterInstance.from_config(str(home))
    ) as graph:
        graph.instance.add_dynamic_partitions(CDL_YEAR, [str(EARLIER)])
        graph.instance.add_dynamic_partitions(TILE, list(ORDER))
        for year in (EARLIER, YEAR):
            assert graph.run("labels_job", year=year, **changes).success
        assert graph.instance.get_dynamic_partitions(TILE) == list(ORDER)
    return environment | {"CROP_ASSETS_CDL": cdl, "CROP_ASSETS_TILES_PER_RUN": "2"}


def made(data: Path) -> tuple[set[tuple[int, str]], set[str]]:
    """The pairs of year and tile that have a table of every stage, and the names of the chips' files.

    Fails for a pair that has tables of some stages alone.
    """
    pairs: dict[tuple[int, str], set[str]] = {}
    chips: set[str] = set()
    for year in (EARLIER, YEAR):
        root = data / Layout("small", year).root
        for stage in TILE_STAGES:
            for table in (root / "tables" / stage).glob("*.parquet"):
                pairs.setdefault((year, table.stem), set()).add(stage)
        chips |= {path.name for path in (root / "chips").glob("*.tif")}
    assert all(stages == set(TILE_STAGES) for stages in pairs.values()), pairs
    return set(pairs), chips


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--partition-range", f"{YEAR}|{WEST}...{YEAR}|{EAST}"], {(YEAR, t) for t in (WEST, SOUTH, EAST)}),
        (
            ["--partition-range", f"{YEAR}|{EMPTY}...{EARLIER}|{WEST}"],
            {(year, tile) for year in (EARLIER, YEAR) for tile in (EMPTY, WEST)},
        ),
        (["--partition", f"{YEAR}|{EAST}"], {(YEAR, EAST)}),
    ],
)
def test_a_command_makes_the_given_range(
    labels: dict[str, str], tmp_path: Path, words: list[str], named: set[tuple[int, str]]
) -> None:
    select = ["--select", ",".join(TILE_STAGES)]
    command = [sys.executable, "-m", "dagster", "asset", "materialize", *select, *words]
    done = subprocess.run(
        [*command, "-m", "crop_assets.definitions"], env=labels, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    chips = set().union(*(CHIPS.get(pair, set()) for pair in named))
    assert made(tmp_path / "data") == (named, chips)
