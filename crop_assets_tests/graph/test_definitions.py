import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster._core.remote_representation.external_data import RepositorySnap
from dagster._serdes import serialize_value

from crop_assets.definitions import build_defs, defs, environment_resources
from crop_assets.errors import InputError
from crop_assets.partitions import CDL_YEAR, TILE
from crop_assets.stages import STAGES, TILE_STAGES
from crop_assets_tests.small_world import (
    RECIPE,
    THROUGH_DOWNLOAD,
    WEST,
    Finished,
    Graph,
    Served,
    Setting,
    Traffic,
    new_graph,
)

PROJECT = Path(__file__).parents[2]
TOKEN = "eyJ0eXAiOiJKV1QiLCJvcmlnaW4iOiJFYXJ0aGRhdGEifQ"

IMPORT_PROBE = """
import json, os, sys
asked, touched = [], []
get = type(os.environ).__getitem__
def watched(self, key):
    frame = sys._getframe(1)
    while frame.f_code.co_filename.startswith("<frozen"):
        frame = frame.f_back
    asked.append([os.fsdecode(key), frame.f_code.co_filename])
    return get(self, key)
type(os.environ).__getitem__ = watched
def hook(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        touched.append(f"{event} {arguments[1:]}")
    elif event in ("open", "os.mkdir", "os.listdir", "os.scandir") and isinstance(arguments[0], str):
        touched.append(os.path.abspath(arguments[0]))
sys.addaudithook(hook)
import crop_assets.definitions
print(json.dumps([asked, touched]))
"""

VARIABLES = {
    "CROP_ASSETS_RECIPE": "recipe.yaml",
    "CROP_ASSETS_DATA": "data",
    "CROP_ASSETS_CDL": "cdl.tif",
    "CROP_ASSETS_TILE_GRID": "grid.kml",
    "CROP_ASSETS_BANDS": "bands",
    "CROP_ASSETS_STAC_URL": "stac.json",
    "CROP_ASSETS_IPFS_STAC_URL": "ipfs.json",
}


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("CROP_ASSETS_") or name == "EARTHDATA_TOKEN":
            monkeypatch.delenv(name)


@dataclass(frozen=True)
class Commands:
    """What is run beside the tests, from a folder of its own that has nothing in it."""

    folder: Path
    running: dict[str, "subprocess.Popen[str]"]

    def output(self, name: str) -> str:
        """All that a command said, once it has succeeded."""
        process = self.running[name]
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
        return said


@pytest.fixture(scope="module", autouse=True)
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    folder = tmp_path_factory.mktemp("commands")
    bare = {name: value for name, value in os.environ.items() if not name.startswith("CROP_ASSETS_")}
    elsewhere = {name: str(folder / "none" / path) for name, path in VARIABLES.items()}
    programs = Path(sys.executable).parent

    def start(name: str, command: list[str], where: Path, more: dict[str, str]) -> "subprocess.Popen[str]":
        home = folder / name
        home.mkdir()
        (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
        return subprocess.Popen(
            command,
            cwd=where,
            env=bare | {"DAGSTER_HOME": str(home), "HOME": str(home)} | more,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if name != "import" else None,
            text=True,
        )

    running = {
        "import": start("import", [sys.executable, "-P", "-c", IMPORT_PROBE], folder, elsewhere),
        "check": start("check", [str(programs / "dg"), "check", "defs"], PROJECT, {}),
        "validate": start(
            "validate",
            [str(programs / "dagster"), "definitions", "validate", "-m", "crop_assets.definitions"],
            folder,
            {"CROP_ASSETS_DATA": str(folder / "none")},
        ),
    }
    yield Commands(folder, running)
    for process in running.values():
        process.kill()
        process.communicate()


@dataclass(frozen=True)
class Expected:
    job: str
    group: str
    kinds: set[str]
    deps: set[str]


# The one list of stages that does not follow from their declarations; the stages of a job are in its order.
ASSETS = {
    "cdl": Expected("labels_job", "labels", {"geotiff"}, set()),
    "candidate_chips": Expected("labels_job", "labels", {"parquet"}, {"cdl"}),
    "chip_bboxes": Expected("labels_job", "labels", {"geoparquet", "geojson"}, {"candidate_chips"}),
    "tile_grid": Expected("labels_job", "tiles", {"geoparquet"}, set()),
    "tile_map": Expected("labels_job", "tiles", {"parquet"}, {"chip_bboxes", "tile_grid"}),
    "label_quality": Expected("labels_job", "labels", {"parquet"}, {"tile_map", "cdl"}),
    "scene_metadata": Expected("tiles_job", "scenes", {"stac"}, {"tile_map"}),
    "candidate_fmasks": Expected("tiles_job", "scenes", {"ipfs", "geotiff"}, {"scene_metadata", "tile_map"}),
    "selected_scenes": Expected("tiles_job", "scenes", set(), {"scene_metadata", "candidate_fmasks"}),
    "band_cids": Expected("tiles_job", "bands", {"stac", "ipfs"}, {"selected_scenes", "scene_metadata"}),
    "downloaded_fmasks": Expected("tiles_job", "bands", {"ipfs", "geotiff"}, {"band_cids"}),
    "chip_quality": Expected(
        "tiles_job", "chips", {"geotiff"}, {"downloaded_fmasks", "tile_map", "label_quality"}
    ),
    "downloaded_bands": Expected(
        "tiles_job",
        "bands",
        {"ipfs", "geotiff"},
        {"band_cids", "downloaded_fmasks", "chip_quality", "tile_map"},
    ),
    "reprojected_tiles": Expected("tiles_job", "chips", {"geotiff"}, {"downloaded_bands", "tile_map"}),
    "chips": Expected(
        "tiles_job", "chips", {"geotiff"}, {"reprojected_tiles", "selected_scenes", "tile_map", "cdl"}
    ),
    "filtered_chips": Expected("tiles_job", "chips", set(), {"chips", "chip_quality", "label_quality"}),
    "cid_retrievability": Expected("retrievability_job", "bands", {"ipfs"}, {"band_cids"}),
    "missing_cids": Expected(
        "missing_cids_job", "bands", {"json", "ipfs"}, {"cid_retrievability", "tile_map"}
    ),
    "tile_payloads": Expected("dataset_job", "bands", {"json", "ipfs"}, {"band_cids", "tile_map"}),
    "splits": Expected("dataset_job", "dataset", {"csv"}, {"filtered_chips", "tile_map", "chip_bboxes"}),
    "band_stats": Expected("dataset_job", "dataset", {"numpy", "png"}, {"splits"}),
    "class_weights": Expected("dataset_job", "dataset", {"csv"}, {"splits"}),
    "class_distribution": Expected("dataset_job", "dataset", {"png"}, {"splits"}),
    "chip_index": Expected(
        "dataset_job",
        "readers",
        {"geoparquet"},
        {
            *("splits", "chip_bboxes", "cdl", "chips", "filtered_chips", "downloaded_bands", "tile_map"),
            "label_quality",
        },
    ),
    "reader_layout": Expected(
        "dataset_job", "readers", {"geotiff"}, {"splits", "band_stats", "class_weights"}
    ),
    "exports": Expected("dataset_job", "readers", {"parquet", "numpy"}, {"chip_index"}),
    "viewer": Expected(
        "dataset_job",
        "readers",
        {"html"},
        {
            "splits",
            "chip_bboxes",
            "label_quality",
            "chips",
            "filtered_chips",
            "downloaded_bands",
            "tile_map",
        },
    ),
    "fingerprint": Expected(
        "dataset_job",
        "description",
        {"json"},
        {"cdl", "tile_grid", "downloaded_bands", "tile_map", "splits", "band_stats", "class_weights"},
    ),
    "dataset_files": Expected(
        "dataset_job",
        "description",
        set(),
        {
            "chip_bboxes",
            "splits",
            "band_stats",
            "class_weights",
            "class_distribution",
            "tile_payloads",
            "chip_index",
            "reader_layout",
            "exports",
            "viewer",
            "fingerprint",
        },
    ),
    "stac_catalogue": Expected(
        "dataset_job", "description", {"stac", "geoparquet"}, {"chip_index", "dataset_files", "fingerprint"}
    ),
    "dataset_card": Expected(
        "dataset_job",
        "description",
        {"markdown"},
        {
            "fingerprint",
            "dataset_files",
            "stac_catalogue",
            "cdl",
            "tile_map",
            "splits",
            "chip_index",
            "class_distribution",
            "class_weights",
            "label_quality",
            "filtered_chips",
            "downloaded_bands",
        },
    ),
    "croissant": Expected(
        "dataset_job",
        "description",
        {"json"},
        {
            "fingerprint",
            "dataset_files",
            "stac_catalogue",
            "dataset_card",
            "cdl",
            "tile_map",
            "splits",
            "chip_index",
            "class_distribution",
            "downloaded_bands",
        },
    ),
    "published_dataset": Expected(
        "publish_job",
        "dataset",
        {"ipfs"},
        {"dataset_files", "stac_catalogue", "dataset_card", "croissant"},
    ),
}
OF_A_TILE = [name for name, one in ASSETS.items() if one.job in ("tiles_job", "retrievability_job")]


def made_by(job: str) -> list[str]:
    return [name for name, one in ASSETS.items() if one.job == job]


@pytest.fixture(scope="module")
def location() -> dg.Definitions:
    return build_defs(environment_resources())


def test_the_graph_has_the_assets_and_the_lineage_of_the_specification(location: dg.Definitions) -> None:
    specs = {spec.key.to_user_string(): spec for spec in location.resolve_all_asset_specs()}
    found = {
        name: Expected(
            STAGES[name].job,
            str(spec.group_name),
            set(spec.kinds) - {"python"},
            {dep.asset_key.to_user_string() for dep in spec.deps},
        )
        for name, spec in specs.items()
    }
    assert found == ASSETS
    assert [stage.name for stage in TILE_STAGES] == OF_A_TILE, "a tile goes through them in this order"
    for name, spec in specs.items():
        assert "python" in spec.kinds, name
        assert list(spec.owners) == ["team:crop-assets"], name
        assert str(spec.code_version).isdecimal(), name
        assert spec.description, name
        assert len(spec.description) > 40, name


def test_dagster_finds_one_location_by_workspace_and_by_project() -> None:
    # sensors keep their switches and cursors by the location's name
    (target,) = yaml.safe_load((PROJECT / "workspace.yaml").read_text())["load_from"]
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["dg"]["project"]
    named = project.get("code_location_name", project["code_location_target_module"])
    assert target["python_module"]["location_name"] == named
    assert target["python_module"]["module_name"] == project["code_location_target_module"]


def test_assets_are_partitioned_by_year_and_tile(location: dg.Definitions) -> None:
    dimensions: dict[str, set[str]] = {}
    for spec in location.resolve_all_asset_specs():
        definition = spec.partitions_def
        if isinstance(definition, dg.MultiPartitionsDefinition):
            by = {str(d.partitions_def.name) for d in definition.partitions_defs}  # type: ignore[attr-defined]
        else:
            by = {str(definition.name)} if isinstance(definition, dg.DynamicPartitionsDefinition) else set()
        dimensions[spec.key.to_user_string()] = by
    assert dimensions == {
        **{name: {CDL_YEAR} for name in ASSETS},
        **{name: {CDL_YEAR, TILE} for name in OF_A_TILE},
        "tile_grid": set(),
    }


def test_a_year_leads_to_all_of_its_tiles_and_a_tile_to_its_year(location: dg.Definitions) -> None:
    graph = location.resolve_asset_graph()
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions(CDL_YEAR, ["2021", "2022"])
        instance.add_dynamic_partitions(TILE, ["14SMG", "14SNG"])
        for upstream, downstream, keys in (
            ("tile_map", "scene_metadata", {"2022|14SMG", "2022|14SNG"}),
            ("cdl", "chips", {"2022|14SMG", "2022|14SNG"}),
        ):
            mapping = graph.get_partition_mapping(dg.AssetKey(downstream), dg.AssetKey(upstream))
            assert isinstance(mapping, dg.MultiToSingleDimensionPartitionMapping)
            parent, child = (graph.get(dg.AssetKey(name)).partitions_def for name in (upstream, downstream))
            with dg.partition_loading_context(dynamic_partitions_store=instance):
                subset = mapping.get_downstream_partitions_for_partitions(
                    parent.subset_with_partition_keys(["2022"]), parent, child
                )
                assert set(subset.get_partition_keys()) == keys
        mapping = graph.get_partition_mapping(dg.AssetKey("splits"), dg.AssetKey("filtered_chips"))
        tiles, years = (graph.get(dg.AssetKey(name)).partitions_def for name in ("filtered_chips", "splits"))
        with dg.partition_loading_context(dynamic_partitions_store=instance):
            upstream_keys = mapping.get_upstream_mapped_partitions_result_for_partitions(
                years.subset_with_partition_keys(["2021"]), years, tiles
            ).partitions_subset.get_partition_keys()
        assert set(upstream_keys) == {"2021|14SMG", "2021|14SNG"}


def test_every_column_is_described_and_is_that_of_the_table(
    location: dg.Definitions, finished: Finished
) -> None:
    compared = set()
    for spec in location.resolve_all_asset_specs():
        name = spec.key.to_user_string()
        schema = spec.metadata["dagster/column_schema"]
        assert schema.columns, name
        assert all(column.description for column in schema.columns), name
        if name == "tile_grid" or ASSETS[name].job not in finished.runs:
            continue
        table = finished.graph.table(name, WEST if name in OF_A_TILE else None)
        assert [column.name for column in schema.columns] == list(table.columns), name
        compared.add(name)
    assert compared >= {"selected_scenes", "downloaded_bands", "filtered_chips", "splits"}


def test_the_jobs_hold_every_asset_once(location: dg.Definitions) -> None:
    jobs = {job.name: job for job in location.resolve_all_job_defs()}
    found = {
        name: {key.to_user_string() for key in jobs[name].asset_layer.executable_asset_keys}
        for name in jobs
        if not name.startswith("__")
    }
    assert found == {
        **{one.job: set(made_by(one.job)) for one in ASSETS.values()},
        "plan_job": {"scene_metadata", "candidate_fmasks", "selected_scenes", "band_cids"},
    }
    assert jobs["tiles_job"].executor_def is dg.in_process_executor
    policies = {location.resolve_asset_graph().get(dg.AssetKey(stage)).backfill_policy for stage in OF_A_TILE}
    assert policies == {dg.BackfillPolicy.multi_run(max_partitions_per_run=16)}


def test_the_variables_reach_the_resources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("seed: 7\n")
    variables = {name: str(tmp_path / path) for name, path in VARIABLES.items()} | {
        "CROP_ASSETS_KUBO_API": "http://127.0.0.1:1",
        "CROP_ASSETS_IPFS_GATEWAYS": "http://127.0.0.1:2, http://127.0.0.1:3, ",
        "CROP_ASSETS_LP_DAAC_HOSTS": "127.0.0.1",
        "CROP_ASSETS_CDL_HOSTS": " usda.example ,nass.usda.gov\n",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = environment_resources()
    assert found["recipe"].seed == 7
    assert found["ipfs"].gateways == ["http://127.0.0.1:2", "http://127.0.0.1:3"]
    assert found["lp_daac"].hosts == ["127.0.0.1"]
    assert found["cdl_releases"].hosts == ["usda.example", "nass.usda.gov"]
    for resource, field, variable in (
        ("store", "root", "CROP_ASSETS_DATA"),
        ("cdl_releases", "source", "CROP_ASSETS_CDL"),
        ("tile_grid_source", "path", "CROP_ASSETS_TILE_GRID"),
        ("mirror", "folder", "CROP_ASSETS_BANDS"),
        ("stac", "url", "CROP_ASSETS_STAC_URL"),
        ("ipfs_stac", "url", "CROP_ASSETS_IPFS_STAC_URL"),
        ("ipfs", "kubo_api", "CROP_ASSETS_KUBO_API"),
    ):
        assert getattr(found[resource], field) == variables[variable]


def test_a_recipe_that_is_nowhere_fails_when_the_definitions_are_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CROP_ASSETS_RECIPE", "/nowhere/recipe.yaml")
    with pytest.raises(
        InputError, match=r"^recipe /nowhere/recipe\.yaml: no such file; correct CROP_ASSETS_RECIPE"
    ):
        defs()


def test_one_field_in_the_launchpad_leaves_a_resource_what_it_was(
    finished_graph: Graph, traffic: Traffic
) -> None:
    """Asking the catalogue again means the configured one, not the default."""
    run = finished_graph.run("tiles_job", run_config={"resources": {"stac": {"config": {"refresh": True}}}})
    assert run.success, run.failure
    assert {stage for stage, _ in run.redone} == {"scene_metadata"}
    assert any(asked.path == "/cmr/stac/search" for asked in traffic.asked)


@pytest.fixture
def graph_with_token(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, setting: Setting, served: Served
) -> Iterator[Graph]:
    """The graph as its environment configures it: all files come from LP DAAC, with a token."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE))
    for name, value in {
        "EARTHDATA_TOKEN": TOKEN,
        "CROP_ASSETS_DATA": str(tmp_path / "store"),
        "CROP_ASSETS_RECIPE": str(recipe),
        "CROP_ASSETS_CDL": str(setting.world.cdl),
        "CROP_ASSETS_TILE_GRID": str(setting.grid),
        "CROP_ASSETS_STAC_URL": served.server.stac_url,
        "CROP_ASSETS_IPFS_STAC_URL": "",
        "CROP_ASSETS_KUBO_API": "",
        "CROP_ASSETS_IPFS_GATEWAYS": "",
        "CROP_ASSETS_LP_DAAC_HOSTS": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    home = tmp_path / "home"
    home.mkdir()
    instance = dg.DagsterInstance.local_temp(str(home))
    with new_graph(tmp_path / "store", setting, served.server, instance) as graph:
        yield Graph(graph.root, graph.instance, environment_resources())


def test_the_token_is_used_and_written_nowhere(
    graph_with_token: Graph, traffic: Traffic, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    graph = graph_with_token
    snapshot = serialize_value(RepositorySnap.from_def(build_defs(graph.resources).get_repository_def()))
    assert "EARTHDATA_TOKEN" in snapshot
    assert TOKEN not in snapshot

    assert graph.run("labels_job").success
    traffic.broken["/lpdaac/"] = 403
    refused = graph.run("tiles_job", tiles=[WEST], stages=THROUGH_DOWNLOAD)
    assert "answered 403: not allowed with these credentials" in refused.failure
    traffic.broken.clear()
    run = graph.run("tiles_job", tiles=[WEST], stages=THROUGH_DOWNLOAD)
    assert run.success, run.failure
    told_to = {(asked.path.split("/")[1], asked.authorization) for asked in traffic.asked}
    assert told_to == {("cmr", ""), ("lpdaac", f"Bearer {TOKEN}")}

    for entry in (entry for done in (refused, run) for entry in graph.instance.all_logs(done.result.run_id)):
        assert TOKEN not in serialize_value(entry)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.suffix == ".db" for path in written)
    assert [path for path in written if TOKEN.encode() in path.read_bytes()] == []
    told = capfd.readouterr()
    assert f"{WEST} failed at downloaded_fmasks" in told.err
    assert TOKEN not in told.out + told.err


def test_importing_the_definitions_reads_nothing(commands: Commands) -> None:
    asked, touched = json.loads(commands.output("import").splitlines()[-1])
    assert asked, "libraries ask the environment, so the probe must have seen it"
    ours = tuple(str(PROJECT / package) for package in ("crop_assets/", "resources/"))
    # GDAL's drivers are registered once, when its libraries are imported
    assert {name for name, file in asked if f"{file}/".startswith(ours)} <= {"GDAL_SKIP"}
    code = [path for path in touched if path.startswith(str(PROJECT / "crop_assets"))]
    assert any("definitions" in path for path in code), "the probe must have seen files opened"
    assert [path for path in touched if path.startswith("socket")] == []
    nowhere = str(commands.folder / "none")
    assert [path for path in touched if path.startswith((nowhere, str(PROJECT / "data")))] == []
    assert sorted(path.name for path in commands.folder.iterdir()) == ["check", "import", "validate"]


def test_dagster_finds_the_definitions_valid(commands: Commands) -> None:
    said = commands.output("validate")
    assert "Validation successful for code location crop_assets.definitions." in said
    assert not (commands.folder / "none").exists()


def test_dg_finds_the_definitions_valid(commands: Commands) -> None:
    assert "All definitions loaded successfully." in commands.output("check")
