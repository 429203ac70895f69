"""What a run's configuration may change, and what only the environment does."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._config.config_type import ConfigType, ScalarUnion

from crop_assets.definitions import build_defs, environment_resources
from crop_assets.variables import FIELDS, PREFIX
from crop_assets_tests.small_world import Graph, Traffic, digests

SECRET = "wJalrXUtnFEMI-of-the-operator"
VALUES: list[Any] = ["/tmp/elsewhere", ["evil.example"], {"env": "AWS_SECRET_ACCESS_KEY"}, [], "", None, 1]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(PREFIX):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)


def config(field: str, value: Any) -> dict[str, Any]:
    resource, name = field.split(".")
    return {"resources": {resource: {"config": {name: value}}}}


def job_with(resource: str) -> str:
    return {"recipe": "labels_job", "cdl_releases": "labels_job", "tile_grid_source": "labels_job"}.get(
        resource, "tiles_job"
    )


@pytest.mark.parametrize("field", FIELDS)
def test_places_hosts_tokens_and_commands_are_not_a_runs_to_set(
    finished_graph: Graph, traffic: Traffic, field: str
) -> None:
    before = digests(finished_graph.root)
    runs = finished_graph.instance.get_runs_count()
    for value in VALUES:
        with pytest.raises(dg.DagsterInvalidConfigError) as refused:
            finished_graph.run(job_with(field.split(".")[0]), run_config=config(field, value))
        assert FIELDS[field] in str(refused.value), value
        assert SECRET not in str(refused.value)
    assert finished_graph.instance.get_runs_count() == runs
    assert digests(finished_graph.root) == before
    assert traffic.asked == []


def test_a_command_in_a_runs_configuration_is_not_run(finished_graph: Graph, tmp_path: Path) -> None:
    script, ran = tmp_path / "ipfs", tmp_path / "ran"
    script.write_text(f"#!/bin/sh\ntouch {ran}\n")
    script.chmod(0o755)
    attack = config("ipfs.command", str(script))
    attack["resources"] |= config("recipe.sources", ["ipfs_cli"])["resources"]
    for job in ("tiles_job", "publish_job"):
        with pytest.raises(
            dg.DagsterInvalidConfigError, match="set by the variable CROP_ASSETS_IPFS_COMMAND"
        ):
            finished_graph.run(job, run_config=attack)
    assert not ran.exists()


@pytest.mark.parametrize("field", ["dataset", "season_start", "seed", "fmask_first", "sampling"])
def test_no_variable_of_the_environment_becomes_a_value(finished_graph: Graph, field: str) -> None:
    for value in ({"env": "AWS_SECRET_ACCESS_KEY"}, [{"env": "AWS_SECRET_ACCESS_KEY"}]):
        with pytest.raises(dg.DagsterInvalidConfigError) as refused:
            finished_graph.run("labels_job", run_config=config(f"recipe.{field}", value))
        assert SECRET not in str(refused.value)


def types(config_type: ConfigType) -> Iterator[ConfigType]:
    yield config_type
    for field in getattr(config_type, "fields", {}).values():
        yield from types(field.config_type)
    if inner := getattr(config_type, "inner_type", None):
        yield from types(inner)


def test_no_type_of_any_jobs_configuration_reads_the_environment() -> None:
    """Dagster's own types for texts, numbers and switches take {"env": "NAME"} for a value."""
    jobs = build_defs(environment_resources()).resolve_all_job_defs()
    assert len(jobs) > 7
    for job in jobs:
        found = list(types(job.run_config_schema.config_type))
        assert len(found) > 10
        assert not [one for one in found if isinstance(one, ScalarUnion)], job.name


def test_a_run_cannot_name_the_folder_of_dagsters_own_outputs(finished_graph: Graph, tmp_path: Path) -> None:
    attack = {"resources": {"io_manager": {"config": {"base_dir": str(tmp_path / "outputs")}}}}
    run = finished_graph.run("dataset_job", run_config=attack)
    assert run.success, run.failure
    assert not (tmp_path / "outputs").exists()


def test_every_field_of_text_has_a_variable_and_every_variable_a_field() -> None:
    fields = {
        f"{key}.{name}"
        for key, resource in environment_resources().items()
        if key != "recipe"
        for name, field in type(resource).model_fields.items()
        if field.annotation not in (bool, int, float)
    }
    assert fields == {field for field in FIELDS if not field.startswith("recipe.")}


def test_numbers_and_switches_are_a_runs_to_set(finished_graph: Graph, traffic: Traffic) -> None:
    harmless = {
        "resources": {
            "stac": {"config": {"refresh": True, "attempts": 1}},
            "downloads": {"config": {"per_host": 2, "tile_retries": 0}},
            "machine": {"config": {"workers": 1}},
            "recipe": {
                "config": {"sources": ["gateways"], "coverage_ladder": [100, 50], "class_target": {"Corn": 2}}
            },
        }
    }
    run = finished_graph.run("tiles_job", stages=["scene_metadata"], run_config=harmless)
    assert run.success, run.failure
    assert {stage for stage, _ in run.redone} == {"scene_metadata"}
    assert any(asked.path == "/cmr/stac/search" for asked in traffic.asked)
