"""Tables of a shared store that were changed by hand, with the record of the right ones."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from crop_assets_tests.forged import forge
from crop_assets_tests.small_world import EAST, WEST, Graph, digests

FORGED: list[tuple[str, str | None, str, Any]] = [
    ("candidate_chips", None, "class_1", -5),
    ("chip_bboxes", None, "row", 2**31 - 1),
    ("tile_map", None, "tile", "../../../etc"),
    ("label_quality", None, "purity_percent", 100.5),
    ("tile_grid", None, "lat", float("nan")),
    ("selected_scenes", WEST, "position", "first"),
    ("band_cids", EAST, "band", "B99"),
    ("chip_quality", EAST, "na_count", -1),
    ("downloaded_bands", WEST, "position", "spring"),
    ("reprojected_tiles", EAST, "band", "B99"),
    ("filtered_chips", WEST, "kept", True),
    ("splits", None, "split", "holdout"),
    ("band_stats", None, "mean", float("inf")),
    ("class_weights", None, "pixels", -1),
]


def spoil(graph: Graph, asset: str, tile: str | None, column: str, value: Any) -> Path:
    """Put a value in a table's first row that has another, with what was recorded of the right table."""
    name = "tile_grid.parquet" if asset == "tile_grid" else graph.layout.table(asset, tile)
    path = graph.root / name
    table = pq.read_table(path)
    metadata = table.schema.metadata
    values = table[column].to_pylist()
    values[next(at for at, one in enumerate(values) if one != value)] = value
    at = table.column_names.index(column)
    forged = table.set_column(at, column, pa.array(values, table.schema.field(at).type))
    record = json.loads(metadata[b"crop_assets"])
    del record["data_version"]
    forge(path, forged, record, metadata.get(b"geo"))
    return path


def test_values_that_make_no_sense_are_made_again_by_the_next_run(finished_graph: Graph) -> None:
    before = digests(finished_graph.root)
    spoilt = [spoil(finished_graph, *forged) for forged in FORGED]
    now = digests(finished_graph.root)
    assert {path.relative_to(finished_graph.root).as_posix() for path in spoilt} == {
        name for name in before if now[name] != before[name]
    }
    runs = finished_graph.run_all()
    assert all(run.success for run in runs), [run.failure for run in runs]
    after = digests(finished_graph.root)
    assert {name for name in before if after.get(name) != before[name]} == set()
    # the lists of readers come after those of the split
    made = {asset for run in runs for asset, _ in run.redone}
    assert made == {asset for asset, *_ in FORGED} | {"reader_layout"}
