"""An interrupt, as Terminate sends it, that comes while a run writes to Dagster's storage."""

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy.engine import Engine

from crop_assets.partitions import TILE
from crop_assets_tests.small_world import (
    EAST,
    TILES,
    WEST,
    YEAR,
    Finished,
    Served,
    Setting,
    Traffic,
    new_graph,
)
from resources.stac import SceneStac


@contextmanager
def interrupted_at(table: str, text: str) -> Iterator[list[str]]:
    """Interrupt the main thread once, while it writes a row with `text` into `table`, before that is committed."""
    hit: list[str] = []

    def look(connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if not hit and statement.startswith(f"INSERT INTO {table} ") and text in str(parameters):
            hit.append(statement)
            os.kill(os.getpid(), signal.SIGINT)

    sqlalchemy.event.listen(Engine, "after_cursor_execute", look)
    try:
        yield hit
    finally:
        sqlalchemy.event.remove(Engine, "after_cursor_execute", look)


CASES = {
    "what a year asset says": ("labels_job", "event_logs", f"chip_bboxes {YEAR}: unchanged, nothing to do"),
    "what a year asset warns of": ("labels_job", "event_logs", ".parquet are missing or changed"),
    "new partitions": ("labels_job", "dynamic_partitions", EAST),
    "what a tile says": ("tiles_job", "event_logs", f"{WEST}: unchanged, nothing to do"),
    "a tile's materialization": ("tiles_job", "event_logs", "'ASSET_MATERIALIZATION'"),
    "a tile's failure": ("tiles_job", "event_logs", f"{EAST} failed at scene_metadata"),
    "a check that failed": ("dataset_job", "event_logs", "'ASSET_CHECK_EVALUATION'"),
}
"""The job that is interrupted, the table of Dagster's that it writes to then, and text in the row."""


@pytest.mark.parametrize("case", CASES)
def test_what_a_run_writes_when_it_is_interrupted_is_whole(
    setting: Setting, served: Served, traffic: Traffic, finished: Finished, tmp_path: Path, case: str
) -> None:
    job, table, text = CASES[case]
    store = tmp_path / "store"
    shutil.copytree(finished.graph.root, store)
    changes: dict[str, Any] = {}
    if "warns" in case:
        (store / finished.graph.layout.file("chip_bbox.geojson")).unlink()
    if "failure" in case:
        traffic.broken["/cmr/"] = 503
        changes["stac"] = SceneStac(url=served.server.stac_url, attempts=1, refresh=True)
    if "check" in case:
        (store / finished.graph.layout.table("filtered_chips", WEST)).unlink()
    with new_graph(store, setting, served.server) as graph:
        with interrupted_at(table, text) as writes:
            run = graph.run(job, **changes)
        assert writes, "nothing was interrupted"
        assert not run.success
        assert "DagsterExecutionInterruptedError" in run.failure
        if table == "dynamic_partitions":
            assert set(graph.instance.get_dynamic_partitions(TILE)) == set(TILES)
        else:
            entries = graph.instance.all_logs(run.result.run_id)
            assert any(text.replace("'", '"') in entry.to_json() for entry in entries)
