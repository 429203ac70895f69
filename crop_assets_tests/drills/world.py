"""What the drills disturb: `crop-assets run` over a small world of three tiles with two chips each."""

import contextlib
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from crop_assets.demo.run import server_environment
from crop_assets.demo.server import WorldServer, serve
from crop_assets.layout import Layout
from crop_assets.tiles.grid import official_grid_path, read_tile_grid
from crop_assets_tests.small_world import (
    RECIPE,
    YEAR,
    Setting,
    build_setting,
    digests,
    write_three_tiles,
)

COMMAND = str(Path(sys.executable).with_name("crop-assets"))
SHIPPED = Path(__file__).resolve().parents[2] / "deploy/one/dagster.yaml"
SECONDS = 300
_SHOWN = 140


class DrillError(AssertionError):
    """A drill ended neither with the undisturbed bytes nor with a clear error."""


@dataclass
class Ended:
    """How a process ended: its exit code, negative for a signal, and what it wrote."""

    code: int
    output: str

    def require_clear_error(self, pattern: str) -> str:
        """The start of the line that matches, without time and folders.

        Raises DrillError unless the command failed with it and without a traceback.
        """
        if self.code not in (1, 2) or "Traceback" in self.output:
            raise DrillError(f"exit code {self.code}:\n{self.output[-3000:]}")
        if not (found := re.search(f"^.*{pattern}.*$", self.output, re.M)):
            raise DrillError(f"no line matches {pattern!r}:\n{self.output[-3000:]}")
        text = re.sub(r"/\S*/drills-[^/\s]*/", "", found[0].rpartition("ERROR: ")[2].strip())
        return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


@dataclass
class Call:
    """A running `crop-assets run`, and the file that it writes its output to."""

    process: "subprocess.Popen[bytes]"
    log: Path

    def wait_for(self, found: Callable[[], object]) -> bool:
        """Whether `found` became true before the process ended."""
        deadline = time.monotonic() + SECONDS
        while not found():
            if self.process.poll() is not None:
                return False
            if time.monotonic() > deadline:
                raise DrillError(f"waited in vain:\n{self.output[-3000:]}")
            time.sleep(0.02)
        return True

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def end(self) -> Ended:
        return Ended(self.process.wait(SECONDS), self.output)


@dataclass
class Bench:
    """The folders of a drill, and the variables for the served world."""

    root: Path
    setting: Setting
    server: WorldServer
    cdl: Path
    boxes: Path
    undisturbed: dict[str, str] = field(default_factory=dict)
    calls: int = 0

    @property
    def recipe(self) -> Path:
        return self.root / "recipe.yaml"

    def write_recipe(self, name: str = "recipe.yaml", **changes: object) -> Path:
        path = self.root / name
        path.write_text(yaml.safe_dump({**RECIPE, "chip_boxes": str(self.boxes), **changes}))
        return path

    def empty(self, name: str) -> "Store":
        """An empty store with a Dagster home of its own."""
        folder = self.root / name
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "home").mkdir(parents=True)
        shutil.copy(SHIPPED, folder / "home/dagster.yaml")
        return Store(self, folder)

    def variables(self, **changes: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("CROP_ASSETS_")}
        return {
            **kept,
            **server_environment(self.server),
            "PYTHONWARNINGS": "ignore",
            "CROP_ASSETS_CDL": str(self.cdl),
            "CROP_ASSETS_CDL_INDEX": "",
            "CROP_ASSETS_TILE_GRID": str(self.setting.grid),
            **changes,
        }


@dataclass
class Store:
    """A store that a drill disturbs."""

    bench: Bench
    folder: Path

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def dataset(self) -> Path:
        return self.data / Layout("small", YEAR).root

    def start(
        self, *words: str, recipe: Path | None = None, before: tuple[str, ...] = (), **variables: str
    ) -> Call:
        """Start `crop-assets run` for the year; `before` is a command that runs it."""
        self.bench.calls += 1
        log = self.folder / f"run_{self.bench.calls}.log"
        places = ["--data", str(self.data), "--recipe", str(recipe or self.bench.recipe)]
        with log.open("wb") as out:
            process = subprocess.Popen(
                [*before, COMMAND, "run", "--year", str(YEAR), *places, *words],
                env=self.bench.variables(**{"DAGSTER_HOME": str(self.folder / "home"), **variables}),
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return Call(process, log)

    def run(self, *words: str, recipe: Path | None = None, **variables: str) -> Ended:
        return self.start(*words, recipe=recipe, **variables).end()

    def table(self, stage: str) -> list[Path]:
        """The stage's tables."""
        tables = self.dataset / "tables"
        return [*tables.glob(f"{stage}.parquet"), *tables.glob(f"{stage}/*.parquet")]

    def require_undisturbed(self, undisturbed: Mapping[str, str] | None = None) -> None:
        """Run again, and raise DrillError unless that succeeds and every file has the undisturbed run's bytes."""
        ended = self.run()
        if ended.code != 0:
            raise DrillError(f"the next run ended with {ended.code}:\n{ended.output[-3000:]}")
        self.require_bytes(undisturbed)

    def require_bytes(self, undisturbed: Mapping[str, str] | None = None) -> None:
        expected = self.bench.undisturbed if undisturbed is None else undisturbed
        found = {name: digest for name, digest in digests(self.dataset).items() if ".writing-" not in name}
        if found != expected:
            wrong = [name for name in {*found, *expected} if found.get(name) != expected.get(name)]
            raise DrillError(f"{len(wrong)} files differ, such as {sorted(wrong)[:5]}")


@contextlib.contextmanager
def opened(root: Path) -> Iterator[Bench]:
    """Build and serve the world below `root`, and run it once without a disturbance."""
    world = root / "world"
    world.mkdir(parents=True)
    setting = build_setting(
        world, read_tile_grid(official_grid_path()), multiprocessing.get_context("forkserver")
    )
    cdl, boxes = write_three_tiles(root)
    with serve(setting.world, 0) as server:
        bench = Bench(root, setting, server, cdl, boxes)
        bench.write_recipe()
        store = bench.empty("undisturbed")
        ended = store.run()
        if ended.code != 0:
            raise DrillError(f"the undisturbed run failed:\n{ended.output}")
        bench.undisturbed = digests(store.dataset)
        yield bench
