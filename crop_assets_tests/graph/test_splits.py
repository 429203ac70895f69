"""Splits of a real run: who is in which file, who is left out and why, and what the checks say."""

from pathlib import Path

import pytest

from crop_assets.chip_grid import chip_position
from crop_assets_tests.small_world import (
    CHIPS,
    DESCRIPTION,
    EAST,
    KEPT,
    REJECTED,
    WEST,
    Graph,
    Run,
    ledger,
    lines,
    recipe,
)

FILES = {
    "train": ("train_ids.csv", "training_data.txt"),
    "validation": ("val_ids.csv", "validation_data.txt"),
    "test": ("test_ids.csv", "test_data.txt"),
}
BLOCKS = {"split": "blocks", "block_chips": 2, "train_share": 0.5, "test_share": 0.25, "seed": 42}


def splits_of(graph: Graph) -> dict[str, list[str]]:
    """The chips of each split by its files, which must agree with each other and the table."""
    table = graph.table("splits")
    found = {}
    for split, (ids_file, data_file) in FILES.items():
        chips = sorted(table.loc[table["split"] == split, "chip_id"])
        if not (graph.dataset / data_file).exists():
            assert not chips and not (graph.dataset / ids_file).exists()
            continue
        assert lines(graph, data_file) == chips
        assert lines(graph, ids_file) == ["ids", *(chip.removeprefix("chip_") for chip in chips)]
        found[split] = chips
    return found


def reasons(graph: Graph) -> dict[str, str]:
    return {row["chip_id"]: row["reason"] for row in ledger(graph)}


def touching(chips: list[str], others: list[str]) -> list[str]:
    def near(one: str, other: str) -> bool:
        return max(abs(a - b) for a, b in zip(chip_position(one), chip_position(other), strict=True)) <= 1

    return [chip for chip in chips if any(near(chip, other) for other in others)]


def run_again(graph: Graph, **fields: object) -> Run:
    for job in ("labels_job", "tiles_job"):
        assert graph.run(job, recipe=recipe(**fields)).success
    run = graph.run("dataset_job", recipe=recipe(**fields))
    assert run.success, run.failure
    return run


def test_at_random_validation_touches_training_and_a_check_says_so(finished_graph: Graph) -> None:
    run = finished_graph.run("dataset_job", recipe=recipe())
    found = splits_of(finished_graph)
    assert sorted(found["train"] + found["validation"]) == KEPT
    assert min(map(len, found.values())) > 0
    near = touching(found["validation"], found["train"])
    table = finished_graph.table("splits").set_index("chip_id")
    assert sorted(table.index[table["touches_train"]]) == near != []
    check = run.checks["splits", "few_chips_touch_training"]
    assert not check.passed
    percent = check.metadata["touching_percent"].value
    assert percent == pytest.approx(100 * len(near) / len(found["validation"]))
    assert "split: blocks" in str(check.metadata["advice"].value)
    # a limit of the recipe remakes nothing but what describes the dataset, which has all of its fields
    run = finished_graph.run("dataset_job", recipe=recipe(max_touching=100))
    assert run.checks["splits", "few_chips_touch_training"].passed
    assert run.redone == {(name, "2022") for name in DESCRIPTION}


def test_blocks_keep_chips_apart_and_the_ledger_has_what_that_costs(finished_graph: Graph) -> None:
    run = run_again(finished_graph, **BLOCKS)
    found = splits_of(finished_graph)
    assert set(found) == set(FILES)
    assert touching(found["validation"] + found["test"], found["train"]) == []
    assert run.checks["splits", "few_chips_touch_training"].passed
    why = reasons(finished_graph)
    buffer = [chip for chip, reason in why.items() if reason == "buffer"]
    assert buffer
    assert {chip: reason for chip, reason in why.items() if reason != "buffer"} == REJECTED
    assert sorted(sum(found.values(), buffer)) == KEPT
    funnel = run.made["splits", "2022"].metadata["funnel"].value
    assert f"| in a split | {len(KEPT) - len(buffer)} | {len(buffer)} |" in funnel
    assert (finished_graph.dataset / "test_dst.png").exists() == bool(found["test"])
    # and nothing of it is left when the recipe is as before
    run_again(finished_graph)
    assert set(splits_of(finished_graph)) == {"train", "validation"}
    assert reasons(finished_graph) == REJECTED
    assert not (finished_graph.dataset / "test_dst.png").exists()


@pytest.mark.parametrize("fields", [{}, BLOCKS, {**BLOCKS, "whole_tiles": True}])
def test_a_tile_that_comes_later_moves_no_chip(finished_graph: Graph, fields: dict[str, object]) -> None:
    run_again(finished_graph, **fields)
    whole = finished_graph.table("splits").set_index("chip_id")["split"]
    (finished_graph.dataset / f"tables/filtered_chips/{EAST}.parquet").unlink()
    run = finished_graph.run("dataset_job", recipe=recipe(**fields, max_missing_tiles=1), stages=["splits"])
    assert run.success, run.failure
    early = finished_graph.table("splits").set_index("chip_id")["split"]
    assert set(early.index) <= set(CHIPS[WEST])
    assert early.to_dict() == whole[whole.index.isin(CHIPS[WEST])].to_dict()


def test_files_of_a_split_decide_and_what_they_lack_or_add_is_named(
    finished_graph: Graph, tmp_path: Path
) -> None:
    train, validation = tmp_path / "train_ids.csv", tmp_path / "validation_data.txt"
    train.write_text("ids\n" + "".join(f"{chip.removeprefix('chip_')}\n" for chip in KEPT[:4]) + "001_001\n")
    validation.write_text("".join(f"{chip}\n" for chip in [*KEPT[4:7], *REJECTED]))
    given = {"split": "files", "train_ids": str(train), "validation_ids": str(validation)}
    run = finished_graph.run("dataset_job", recipe=recipe(**given))
    assert run.success, run.failure
    assert splits_of(finished_graph) == {"train": KEPT[:4], "validation": KEPT[4:7]}
    assert reasons(finished_graph) == REJECTED | dict.fromkeys(KEPT[7:], "in_no_split")
    told = run.made["splits", "2022"].metadata["not_in_dataset"].value
    assert told.startswith("4 chips (chip_001_001, ") and all(chip in told for chip in REJECTED)

    # the ids identify the split, not how they are written
    train.write_text("\n".join([*KEPT[3::-1], "chip_001_001"]))
    assert finished_graph.run("dataset_job", recipe=recipe(**given)).redone == set()
    validation.write_text("\n".join(KEPT[4:8]))
    run = finished_graph.run("dataset_job", recipe=recipe(**given))
    assert ("splits", "2022") in run.redone
    assert splits_of(finished_graph) == {"train": KEPT[:4], "validation": KEPT[4:8]}

    validation.write_text("\n".join(KEPT[3:8]))
    run = finished_graph.run("dataset_job", recipe=recipe(**given))
    assert f"{KEPT[3]} is in the files of train and of validation" in run.failure
    train.write_text("001_001\n")
    validation.write_text("001_002\n")
    run = finished_graph.run("dataset_job", recipe=recipe(**given))
    assert "none of the 9 chips of 2022 that are kept is in a split" in run.failure
    assert "name others (chip_001_001, chip_001_002)" in run.failure

    validation.unlink()
    run = finished_graph.run("dataset_job", recipe=recipe(**given))
    assert f"cannot read {validation}, which the recipe names" in run.failure
    assert splits_of(finished_graph) == {"train": KEPT[:4], "validation": KEPT[4:8]}
