from pathlib import Path

from typer.testing import CliRunner

from crop_assets.cli import app
from crop_assets_tests.small_world import EAST, KEPT, WEST, YEAR, Finished, Graph


def verify(root: Path, *options: str) -> tuple[int, str]:
    shown = CliRunner().invoke(app, ["verify", "--data", str(root), "--dataset", "small", *options])
    return shown.exit_code, shown.output


def test_a_dataset_as_it_was_made_verifies(finished: Finished) -> None:
    code, said = verify(finished.graph.root)
    assert code == 0, said
    tables = len(list((finished.graph.dataset / "tables").rglob("*.parquet")))
    assert f"training_datasets/small/{YEAR}: {tables} tables" in said
    assert "all unchanged" in said
    assert verify(finished.graph.root, "--year", str(YEAR)) == (code, said)


def test_what_is_missing_or_changed_is_named_and_made_again(finished_graph: Graph) -> None:
    layout, root = finished_graph.layout, finished_graph.root
    changed, gone = root / layout.mask(KEPT[0]), root / layout.merged(KEPT[-1])
    changed.chmod(0o644)
    data = bytearray(changed.read_bytes())
    data[-1] ^= 1
    # in place, and so in chips_filtered as well where that is the same file
    changed.write_bytes(data)
    gone.unlink()
    table = root / layout.table("selected_scenes", WEST)
    table.write_bytes(table.read_bytes()[:100])
    # in the pages, which nothing looks at that only asks whether a table is current
    flipped = root / layout.table("chip_quality", EAST)
    pages = bytearray(flipped.read_bytes())
    pages[60] ^= 8
    flipped.write_bytes(pages)
    code, said = verify(root)
    assert code == 1
    assert f"{layout.mask(KEPT[0])}: has changed since chips/" in said
    assert f"{layout.merged(KEPT[-1])}: is missing; chips/{EAST} refers to it" in said
    assert f"{layout.table('selected_scenes', WEST)} is damaged" in said
    assert f"table {layout.table('chip_quality', EAST)} cannot be read" in said
    assert "WRONG" in said

    assert finished_graph.run("tiles_job").success
    code, said = verify(root)
    assert code == 0, said


def test_a_dataset_that_is_not_there_is_an_error(finished: Finished, tmp_path: Path) -> None:
    assert verify(tmp_path)[0] == 2
    code, said = verify(finished.graph.root, "--year", "1999")
    assert (code, "small of 1999" in said) == (2, True)
    assert verify(finished.graph.root, "--dataset", "../small")[0] == 2
