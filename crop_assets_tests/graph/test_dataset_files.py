import hashlib
import json
from pathlib import Path

from crop_assets_tests.small_world import Finished, Graph, recipe

OTHERS = ("tables/", "tiles/", "tiles_reprojected/", "chips/", "chips_fmask/", "pictures/")
"""What is in the folder of a dataset and no part of it."""


def on_disk(dataset: Path) -> dict[str, bytes]:
    names = {path.relative_to(dataset).as_posix(): path for path in dataset.rglob("*") if path.is_file()}
    return {
        name: path.read_bytes()
        for name, path in names.items()
        if not name.startswith(OTHERS) and not (name.startswith("band_stats/") and name.endswith(".npy"))
    }


def test_the_table_has_each_file_of_the_dataset(finished: Finished) -> None:
    table = finished.graph.table("dataset_files")
    files = on_disk(finished.graph.dataset)
    assert dict(zip(table["file"], table["sha256"], strict=True)) == {
        name: hashlib.sha256(data).hexdigest() for name, data in files.items()
    }
    assert dict(zip(table["file"], table["bytes"], strict=True)) == {
        name: len(data) for name, data in files.items()
    }
    assert list(table["file"]) == sorted(files)


def test_dataset_json_has_the_fingerprint(finished: Finished) -> None:
    found = json.loads((finished.graph.dataset / "dataset.json").read_text())
    (row,) = finished.graph.table("fingerprint").to_dict("records")
    assert found | row == found
    assert found["recipe"] == json.loads(json.dumps(recipe().values()))


def one_of_each_kind(graph: Graph) -> list[str]:
    table = graph.table("dataset_files")
    kinds = table.assign(folder=table["file"].str.extract(r"^(?:(.*)/)?", expand=False).fillna(""))
    return list(kinds.groupby(["stage", "folder", "media_type"])["file"].first())


def problems(run: object) -> str:
    check = run.checks["dataset_files", "files_are_as_written"]  # type: ignore[attr-defined]
    return "" if check.passed else str(check.metadata["problems"].value)


def test_a_file_that_is_changed_is_named(finished_graph: Graph) -> None:
    run = finished_graph.run("dataset_job", stages=["dataset_files"])
    assert run.success, run.failure
    assert problems(run) == ""
    names = one_of_each_kind(finished_graph)
    for name in names:
        path = finished_graph.dataset / name
        path.chmod(0o644)
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    run = finished_graph.run("dataset_job", stages=["dataset_files"])
    assert [name for name in names if name not in problems(run)] == []
