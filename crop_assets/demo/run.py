"""Runs the demo: builds the world, launches the main jobs on it in Dagster, and prints a summary."""

import contextlib
import io
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import requests
import yaml

from crop_assets.dataset.funnel import reject_ledger, yield_funnel
from crop_assets.demo.fit import require_fit
from crop_assets.demo.server import WorldServer, serve
from crop_assets.demo.world import World, build_world
from crop_assets.layout import Layout
from crop_assets.partitions import add_year
from crop_assets.recipe import DatasetRecipe, load_recipe
from crop_assets.run.here import HereRunner, open_instance
from crop_assets.run.years import Outcome, Years, log_outcomes
from crop_assets.schemas import FILTERED_CHIPS, TILE_MAP
from crop_assets.ui import open_ui
from resources.cdl import CdlReleases, year_of
from resources.errors import ResourceError
from resources.http import new_session
from resources.store import DatasetStore
from resources.tables import read_table

DATASET = "demo"
DAGSTER_YAML = Path(__file__).with_name("dagster.yaml")


@dataclass(frozen=True)
class Demo:
    """The folders of a demo, all below one root, and its recipe."""

    root: Path
    recipe_file: Path
    recipe: DatasetRecipe

    @property
    def world(self) -> Path:
        return self.root / "world"

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def dagster_home(self) -> Path:
        return self.root / "dagster_home"

    def layout(self, year: int) -> Layout:
        return Layout(self.recipe.dataset, year)


def prepare(
    root: Path, cdl: Path | None, year: int | None, recipe: Path | None, log: Callable[[str], None]
) -> tuple[Demo, World]:
    """Build the world if necessary, and write the demo's Dagster configuration and, without a `recipe`, its default
    recipe.

    A root remembers its raster and year: without `cdl` and `year` it is the same demo again. Raises InputError as
    `build_world`, and if the recipe does not suit the world.
    """
    root = root.resolve()
    root.mkdir(parents=True, exist_ok=True)
    origin_file = root / "origin.yaml"
    if cdl is None and year is None and origin_file.is_file():
        origin = yaml.safe_load(origin_file.read_text())
        cdl, year = Path(origin["cdl"]) if origin["cdl"] else None, origin["year"]
    recipe_file = recipe or root / "recipe.yaml"
    if recipe is None:
        recipe_file.write_text(yaml.safe_dump(default_recipe(cdl)))
    demo = Demo(root, recipe_file, load_recipe(str(recipe_file)))
    demo.dagster_home.mkdir(exist_ok=True)
    year = year or (year_of(cdl.name) if cdl else None) or 2022
    if cdl:
        CdlReleases(source=str(cdl)).require_year(year)
    world = build_world(demo.world, cdl, year, log)
    require_fit(demo.recipe, world)
    if os.environ.get("CROP_ASSETS_RECIPE", str(recipe_file)) != str(recipe_file):
        log(f"CROP_ASSETS_RECIPE is not used: the demo uses {recipe_file}; choose another with --recipe")
    origin_file.write_text(yaml.safe_dump({"cdl": str(cdl) if cdl else "", "year": year}))
    shutil.copyfile(DAGSTER_YAML, demo.dagster_home / "dagster.yaml")
    return demo, world


def default_recipe(cdl: Path | None) -> dict[str, Any]:
    """The recipe of a demo that is not given one: on its own landscape, it chooses fewer chips than there are boxes."""
    # a user's raster may have few classes, but all of its chips should be used
    return {"dataset": DATASET} | ({"sampling": "all"} if cdl else {"min_classes": 6, "chips": 36})


def environment(demo: Demo, world: World, server: WorldServer) -> dict[str, str]:
    """The environment variables that make the production code location use the world instead of the real services."""
    return {
        "DAGSTER_HOME": str(demo.dagster_home),
        "CROP_ASSETS_DATA": str(demo.data),
        "CROP_ASSETS_RECIPE": str(demo.recipe_file),
        "CROP_ASSETS_CDL": str(world.cdl),
        "CROP_ASSETS_CDL_INDEX": "",
        **server_environment(server),
        # the world accepts any token, so do not send a real one
        "EARTHDATA_TOKEN": "demo",
        # a mirror comes first in the specification's sources, and would hide downloads by CID
        "CROP_ASSETS_BANDS": "" if "gateways" in demo.recipe.sources else str(world.scene_folder),
    }


def server_environment(server: WorldServer) -> dict[str, str]:
    """The environment variables that replace the real services by those of a served world."""
    return {
        "CROP_ASSETS_TILE_GRID": "",
        "CROP_ASSETS_BANDS": "",
        "CROP_ASSETS_STAC_URL": server.stac_url,
        "CROP_ASSETS_GRANULE_SEARCH": server.granule_search_url,
        "CROP_ASSETS_IPFS_STAC_URL": server.ipfs_stac_url,
        "CROP_ASSETS_KUBO_API": "",
        "CROP_ASSETS_IPFS_GATEWAYS": server.gateway_url,
        "CROP_ASSETS_LP_DAAC_HOSTS": "127.0.0.1",
    }


@contextlib.contextmanager
def served_world(demo: Demo, world: World, port: int | None) -> Iterator[str]:
    """Serve the world on loopback, and set the environment variables for it; yields the base URL.

    Without `port`, the first run takes a free port and later runs the same one, because the tables contain the
    addresses of the world's files. If this world is already served there, for example by a UI, that server is used.
    Raises InputError if the port is used by something else.
    """
    known = demo.root / "port"
    if port is None:
        port = int(known.read_text()) if known.is_file() else 0
    with contextlib.ExitStack() as stack:
        server = WorldServer(f"http://127.0.0.1:{port}")
        if not _serves(server, world):
            server = stack.enter_context(serve(world, port))
        known.write_text(server.base_url.rsplit(":", 1)[-1])
        os.environ.update(environment(demo, world, server))
        yield server.base_url


def _serves(server: WorldServer, world: World) -> bool:
    try:
        with new_session(attempts=1) as session:
            answer = session.get(f"{server.base_url}/world.json", timeout=2)
        return bool(answer.json()["fingerprint"] == world.fingerprint)
    except (requests.RequestException, ResourceError, ValueError, KeyError, TypeError):
        return False


def run_demo(
    root: Path,
    cdl: Path | None,
    year: int | None,
    recipe: Path | None,
    port: int | None,
    log: Callable[[str], None],
) -> bool:
    """Build the world and run labels, tiles and dataset on it; returns whether all of it succeeded.

    Raises KeyboardInterrupt after Ctrl-C; the next call reuses finished work.
    """
    started = time.monotonic()
    demo, world = prepare(root, cdl, year, recipe, log)
    with served_world(demo, world, port) as url:
        log(f"serving the world at {url}: STAC, metadata documents, IPFS gateway")
        with open_instance(log) as instance:
            years = Years(DatasetStore(root=str(demo.data)), demo.recipe, [world.year])
            outcomes = years.run(HereRunner(instance, log), log)
    _summary(demo, world.year, outcomes, time.monotonic() - started, log)
    return all(outcome.success for outcome in outcomes)


def _summary(
    demo: Demo, year: int, outcomes: Sequence[Outcome], seconds: float, log: Callable[[str], None]
) -> None:
    log("")
    log_outcomes(outcomes, log)
    log("")
    try:
        log(_funnel(demo, year).to_string(index=False))
    except (ResourceError, ValueError) as error:
        log(f"the funnel is not available: {error}")
    log("")
    dataset = demo.data / demo.layout(year).root
    log(f"dataset   {dataset}")
    if (index := dataset / "chips.parquet").is_file():
        log(f'load it   python -c "import geopandas; print(geopandas.read_parquet({str(index)!r}))"')
    if (page := dataset / "viewer/index.html").is_file():
        log(f"look at   {page}")
    log(f"the UI    {_ui_command(demo)}, then open the printed address")
    log(f"total     {seconds:.0f} s")


def _ui_command(demo: Demo) -> str:
    own = demo.recipe_file == demo.root / "recipe.yaml"
    if own and demo.root == Path(".demo").resolve():
        return "make ui"
    command = [Path(sys.executable).with_name("crop-assets"), "ui", "--root", demo.root]
    return shlex.join(map(str, command if own else [*command, "--recipe", demo.recipe_file]))


def _funnel(demo: Demo, year: int) -> pd.DataFrame:
    store, layout = DatasetStore(root=str(demo.data)), demo.layout(year)
    tile_map = read_table(store, layout.table("tile_map"), TILE_MAP)
    if store.exists(layout.table("splits")):
        ledger = pd.read_csv(io.BytesIO(store.read_bytes(layout.file("rejected_chips.csv"))))
        return yield_funnel(tile_map, ledger)
    frames, missing = [], {}
    for tile in sorted(set(tile_map["tile"]) - {""}):
        if store.exists(layout.table("filtered_chips", tile)):
            frames.append(
                read_table(store, layout.table("filtered_chips", tile), FILTERED_CHIPS).assign(tile=tile)
            )
        else:
            missing[tile] = "failed"
    return yield_funnel(tile_map, reject_ledger(tile_map, pd.concat(frames, ignore_index=True), missing))


def run_ui(
    root: Path,
    cdl: Path | None,
    year: int | None,
    recipe: Path | None,
    port: int | None,
    ui_port: int,
    log: Callable[[str], None],
) -> int:
    """Serve the world and the Dagster UI with its daemon on loopback until interrupted; the UI's exit code."""
    demo, world = prepare(root, cdl, year, recipe, log)
    with served_world(demo, world, port):
        with dg.DagsterInstance.get() as instance:
            add_year(instance, world.year)
        return open_ui(ui_port, log)
