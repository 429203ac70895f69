"""The code location of `make scale`: the project's graph, whose stages do no work.

What a stage is made from, how it is reused and recorded, partitions, jobs and sensors are those of the project.
"""

import dataclasses
import itertools
import os
from typing import Any

import dagster as dg
import pandas as pd

from crop_assets import definitions
from crop_assets.graph.stage import Made, Run, Stage
from crop_assets.stages import STAGES, TILE_STAGES
from crop_assets_tests.forged import table_of

CHIPS_PER_TILE = 10
TEXT = "|tile|chips|\n|:-|-:|\n" + "|14SMG|10|\n" * 100
"""Metadata of a stage; with it an event is as long as the average one of the demo."""


def tile_names(count: int) -> list[str]:
    names = itertools.product(range(11, 20), "ST", "ABCDEFGH", "ABCDEFGHJKLMNPQRSTUV")
    return ["".join(map(str, name)) for name in itertools.islice(names, count)]


def _tile_map() -> pd.DataFrame:
    names = [name for name in tile_names(int(os.environ["SCALE_TILES"])) for _ in range(CHIPS_PER_TILE)]
    ids = [f"chip_{number // 600:03d}_{number % 600:03d}" for number in range(len(names))]
    edges = {f"tile_{side}": 0.0 for side in ("west", "south", "east", "north")}
    numbers = {"chip_x": -99.0, "chip_y": 38.0, "distance_m": 0.0, "margin_m": 1.0, **edges}
    return pd.DataFrame({"chip_id": ids, "tile": names, "contained": True, "finding": "", **numbers})


def stub(stage: Stage) -> Stage:
    def work(run: Run) -> Made:
        run.log("no work was done")
        frame = stage.schema.empty()
        if stage.name == "tile_map":
            frame = _tile_map()
        elif stage.name == "cdl":
            frame = table_of("cdl").to_pandas()
        return Made(frame, {"note": dg.MetadataValue.md(TEXT)})

    work.__name__, work.__doc__ = stage.name, stage.function.__doc__
    changed: dict[str, Any] = {"source": None, "again": lambda: False, "services": frozenset()}
    if stage.scope != "tile":
        changed["checks"] = ()
    return dataclasses.replace(stage, function=work, **changed)


@dg.definitions
def defs() -> dg.Definitions:
    stubs = {name: stub(stage) for name, stage in STAGES.items()}
    definitions.STAGES = stubs
    definitions.TILE_STAGES = tuple(stubs[stage.name] for stage in TILE_STAGES)
    return definitions.build_defs(definitions.environment_resources())
