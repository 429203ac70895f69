"""Logic loads no Dagster, not even by way of others, and `resources` knows nothing of crops."""

import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import crop_assets
import resources

OF_DAGSTER = {
    *(
        f"crop_assets.{room}.assets"
        for room in (
            "labels",
            "tiles",
            "scenes",
            "bands",
            "chips",
            "dataset",
            "readers",
            "description",
        )
    ),
    *(f"crop_assets.automation.{name}" for name in ("jobs", "sensors")),
    *(
        f"crop_assets.{name}"
        for name in ("dagster_internals", "definitions", "launchpad", "partitions", "stages", "ui")
    ),
    *(f"crop_assets.graph.{name}" for name in ("metadata", "tiles", "years")),
    *(f"crop_assets.run.{name}" for name in ("here", "daemon")),
    "crop_assets.demo.run",
    "crop_assets.celery_launcher",
    "crop_assets.celery_worker",
}
"""The modules that are glue between Dagster and the logic."""

BLOCKED = """
import importlib, sys
blocked, modules = sys.argv[1].split(","), sys.argv[2].split(",")

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Block())
for module in modules:
    try:
        importlib.import_module(module)
    except ImportError as error:
        print(f"{module}: {error}")
"""


def modules(package: object) -> set[str]:
    return {found.name for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")}  # type: ignore[attr-defined]


def failures(blocked: str, tried: set[str]) -> set[str]:
    """The modules that cannot be loaded without these packages, in a process of its own."""
    command = [sys.executable, "-c", BLOCKED, blocked, ",".join(sorted(tried))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {line.split(":")[0] for line in done.stdout.splitlines()}


def test_logic_loads_no_dagster() -> None:
    everything = modules(crop_assets) | modules(resources)
    assert len(everything) > 100
    assert failures("dagster,dagster_webserver,dagster_shared", everything) == OF_DAGSTER


LOADED = "import importlib, sys; importlib.import_module(sys.argv[1]); print(*sys.modules)"


@pytest.mark.parametrize(
    ("module", "spared"),
    [
        (
            "crop_assets.chips.clip",
            {"geopandas", "pandas", "pydantic", "pyogrio", "requests", "scipy", "upath"},
        ),
        ("crop_assets.cli", {"importlib.metadata", "numpy", "pydantic"}),
        ("crop_assets.definitions", {"matplotlib", "s3fs", "scipy"}),
    ],
)
def test_a_module_loads_only_what_it_needs_at_once(module: str, spared: set[str]) -> None:
    command = [sys.executable, "-c", LOADED, module]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert module in loaded
    assert spared & set(loaded) == set()


def test_the_extra_many_is_needed_by_the_workers_alone() -> None:
    users = {"crop_assets.celery_launcher", "crop_assets.celery_worker"}
    tried = users | {"crop_assets.definitions", "crop_assets.cli", "crop_assets.ui"}
    assert failures("celery,dagster_celery,dagster_k8s,dagster_postgres,kombu,redis", tried) == users


def test_clients_know_nothing_of_crops() -> None:
    assert failures("crop_assets", modules(resources)) == set()


def test_one_module_alone_uses_what_is_not_public_of_dagster() -> None:
    root = Path(crop_assets.__file__).parent
    private = re.compile(
        r"\bdagster(_webserver|_graphql|_shared)?\._|from dagster\S* import _|from dagster_webserver"
    )
    users = {
        path.relative_to(root).as_posix() for path in root.rglob("*.py") if private.search(path.read_text())
    }
    assert users == {"dagster_internals.py"}
