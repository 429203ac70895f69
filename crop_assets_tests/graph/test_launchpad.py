"""What a run's configuration may change, and what only the environment does."""

import functools
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import dagster as dg
import pytest
from dagster._config.config_type import ConfigType, ScalarUnion

from crop_assets.definitions import build_defs, defs, environment_resources
from crop_assets.errors import InputError
from crop_assets.launchpad import launchable
from crop_assets.recipe import PATHS
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
    assert fields | {f"recipe.{name}" for name in PATHS} == set(FIELDS)


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


def holds(annotation: Any, kinds: tuple[type, ...]) -> bool:
    return annotation in kinds or any(holds(inner, kinds) for inner in get_args(annotation))


FIELDS_OF_RUNS = {
    f"{key}.{name}": field
    for key, resource in environment_resources().items()
    for name, field in type(resource).model_fields.items()
}
NUMBERS = [name for name, field in FIELDS_OF_RUNS.items() if holds(field.annotation, (int, float))]
TEXTS = [name for name, field in FIELDS_OF_RUNS.items() if holds(field.annotation, (str,))]
HUGE = [10**30, -(10**30), 10**300, 1e300, -1e300, math.inf, -math.inf, math.nan]


@functools.cache
def instance() -> dg.DagsterInstance:
    """One for all contexts, because each would make one with databases of its own."""
    return dg.DagsterInstance.ephemeral()


def made(field: str, value: Any) -> Any:
    """The resource that a run with this value of a field gets."""
    key, name = field.split(".")
    fields = {"train_share": 0.05} if name == "test_share" else {}
    context = dg.build_init_resource_context(fields | {name: value}, instance=instance())
    resource = environment_resources()[key]
    if name == "min_confidence":
        # a run cannot set the path that the field needs
        resource = resource.model_copy(update={"confidence_raster": "confidence.tif"})
    return launchable(key, resource)(context)


def refusal(field: str, value: Any) -> str:
    with pytest.raises(InputError) as refused:
        made(field, value)
    return str(refused.value)


@pytest.mark.parametrize("field", NUMBERS)
def test_every_number_has_a_range_and_its_error_names_both(field: str) -> None:
    key, name = field.split(".")
    kind = FIELDS_OF_RUNS[field].annotation
    if kind not in (int, float):
        for value in (value for value in HUGE if isinstance(value, int) or holds(kind, (float,))):
            inside = [value] if "list" in str(kind) else {"Corn": value}
            assert refusal(field, inside).startswith(f"{key}: {name}")
        return
    bounds = {
        sign: getattr(one, sign)
        for one in FIELDS_OF_RUNS[field].metadata
        for sign in ("ge", "gt", "le", "lt")
        if getattr(one, sign, None) is not None
    }
    low, high = (
        bounds.get(inclusive, bounds.get(open_)) for inclusive, open_ in (("ge", "gt"), ("le", "lt"))
    )
    assert low is not None and high is not None, bounds
    step = 1 if kind is int else 0.001
    outside = [kind(low - step), kind(high + step)]
    outside += [low] * ("gt" in bounds) + [high] * ("lt" in bounds)
    for value in (*outside, *(value for value in HUGE if isinstance(value, kind))):
        words = refusal(field, value)
        assert words.startswith(f"{key}: {name}: {name}")
        assert words.endswith((f"from {low:,} to {high:,}", f"between {low:,} and {high:,}")), words
    for value in {low, high} - {bounds.get("gt"), bounds.get("lt")}:
        assert getattr(made(field, kind(value)), name) == value


def test_the_launchpad_shows_ranges_and_words() -> None:
    fields = (
        build_defs(environment_resources()).resolve_job_def("tiles_job").run_config_schema.config_type.fields
    )
    fields = fields["resources"].config_type.fields
    recipe, stac = (fields[key].config_type.fields["config"].config_type.fields for key in ("recipe", "stac"))
    assert recipe["chips"].description.endswith("A number from 1 to 10,000,000.")
    assert recipe["train_share"].description.endswith("A number between 0 and 1.")
    assert stac["timeout_seconds"].description.endswith("A number from 0.01 to 600.")
    assert recipe["sensors"].config_type.inner_type.given_name == "'one of S30, L30'"


@pytest.mark.parametrize("field", [field for field in TEXTS if field not in FIELDS])
def test_every_text_of_a_run_is_bounded_and_so_is_the_error(field: str) -> None:
    kind = FIELDS_OF_RUNS[field].annotation
    values: list[Any] = ["x" * 10**6]
    if "list" in str(kind):
        values = [["x" * 10**6], ["x"] * 10**5]
    elif "dict" in str(kind):
        values = [{"x" * 10**6: 1.0}, dict.fromkeys(map(str, range(10**5)), 1.0)]
    for value in values:
        assert len(refusal(field, value)) <= 4000


@pytest.mark.parametrize(
    "name",
    [
        "..",
        ".",
        ".a",
        "a/b",
        "a\\b",
        "",
        "a b",
        "\u0663",
        "\xe9",
        "a\u202eb",
        "a\n",
        "a\0",
        "a|b",
        "a:b",
        "x" * 101,
    ],
)
def test_a_dataset_of_a_run_is_a_short_plain_name(name: str) -> None:
    words = refusal("recipe.dataset", name)
    assert words.startswith("recipe: dataset: dataset ") and words.isprintable() and len(words) < 500


@pytest.mark.parametrize("name", ["kansas", "Kansas-2022_v1.1", "-", "_", "7", "x" * 100])
def test_plain_names_are_datasets(name: str) -> None:
    assert made("recipe.dataset", name).dataset == name


@pytest.mark.parametrize("variable", ["CROP_ASSETS_WORKERS", "CROP_ASSETS_TILES_PER_RUN"])
@pytest.mark.parametrize("text", ["-1", "1e3", "1_0", " 2", "\u0663", "9" * 5000, "1000000000", "many"])
def test_a_number_of_the_environment_has_a_range(
    monkeypatch: pytest.MonkeyPatch, variable: str, text: str
) -> None:
    monkeypatch.setenv(variable, text)
    with pytest.raises(
        InputError, match=rf"^{variable} is .* whole number up to 1[\d,]+, or unset$"
    ) as refused:
        defs().resolve_all_job_defs()
    assert len(str(refused.value)) <= 4000
