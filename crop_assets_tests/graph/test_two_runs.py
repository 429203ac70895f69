"""A file that another run removes while a stage works is named, and the run can be launched again."""

import pytest

from crop_assets_tests.small_world import Graph, digests
from resources.store import DatasetStore


@pytest.mark.parametrize(
    ("removed", "stage"), [("val_ids.csv", "splits"), ("validation_data.txt", "reader_layout")]
)
def test_a_file_that_another_run_removes_is_named(
    finished_graph: Graph, monkeypatch: pytest.MonkeyPatch, removed: str, stage: str
) -> None:
    undisturbed = digests(finished_graph.dataset)
    (finished_graph.dataset / "tables" / f"{stage}.parquet").unlink()
    sha256 = DatasetStore.sha256
    hits: list[str] = []

    def without(store: DatasetStore, name: str) -> str:
        """As by another run, between the writing of a file and the reading of it."""
        if name.endswith(removed) and not hits:
            hits.append(name)
            store.remove(name)
        return sha256(store, name)

    monkeypatch.setattr(DatasetStore, "sha256", without)
    run = finished_graph.run("dataset_job")
    monkeypatch.undo()
    assert hits
    assert not run.success
    assert (
        f"{hits[0]} was removed by another run of this year meanwhile; launch this run again" in run.failure
    )
    done = finished_graph.run("dataset_job")
    assert done.success, done.failure
    assert digests(finished_graph.dataset) == undisturbed
