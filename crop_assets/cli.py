"""The command line: commands, options and exit codes. The modules that it imports do the work."""

import os
import signal
from collections.abc import Callable, Hashable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from crop_assets.errors import InputError, problems
from crop_assets.variables import unknown_variables
from resources.errors import ResourceError
from resources.plain_text import plain_text

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    help="Crop-classification training data from the Cropland Data Layer and HLS, as a Dagster asset graph.\n\n"
    "Dagster runs the graph; `crop-assets dev` opens its UI. The other commands do what Dagster does not.",
)

Root = Annotated[Path, typer.Option(help="Folder for the demo's world, dataset and Dagster home.")]
Cdl = Annotated[
    Path | None,
    typer.Option(
        help="Build the demo's scenes around this small CDL raster (EPSG:5070, 30 m) instead of a synthetic one.",
        exists=True,
        dir_okay=False,
        resolve_path=True,
    ),
]
Year = Annotated[
    int | None,
    typer.Option(help="CDL year; by default the one in the raster's name, or 2022.", min=1997, max=2100),
]
DemoRecipe = Annotated[
    Path | None,
    typer.Option(
        "--recipe",
        help="Use this recipe file instead of the demo's recipe.",
        exists=True,
        dir_okay=False,
        resolve_path=True,
    ),
]
Port = Annotated[
    int | None,
    typer.Option(
        help="Loopback port of the demo's STAC and IPFS gateway; by default a free one, which is kept."
    ),
]
UiPort = Annotated[int, typer.Option(help="Loopback port of the Dagster UI.", min=1, max=65535)]

Data = Annotated[
    str, typer.Option(help="The store: a folder, or s3://bucket/prefix.", envvar="CROP_ASSETS_DATA")
]
Dataset = Annotated[str, typer.Option(help="Name of the dataset; by default the recipe's.")]
Recipe = Annotated[
    str,
    typer.Option(
        help="A recipe file; by default the specification's recipe.",
        envvar="CROP_ASSETS_RECIPE",
        metavar="FILE",
    ),
]

_ROOT = Path(".demo")


class Until(StrEnum):
    """The parts of `crop-assets run`, in order."""

    labels = "labels"
    tiles = "tiles"
    dataset = "dataset"


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"crop-assets {version('crop-assets')}")
        raise typer.Exit


@app.callback()
def _main(
    shown: Annotated[
        bool,
        typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    for name in unknown_variables(os.environ):
        typer.secho(f"warning: nothing reads the variable {name}", fg=typer.colors.YELLOW, err=True)


@app.command()
def demo(
    root: Root = _ROOT, cdl: Cdl = None, year: Year = None, recipe: DemoRecipe = None, port: Port = None
) -> None:
    """Run the complete graph on a small synthetic world, without the network.

    Makes a CDL raster, HLS scenes, and a STAC catalogue and an IPFS gateway on loopback. Then runs the labels, tiles
    and dataset jobs in Dagster, exactly as with the real services, and prints a summary. A second run reuses what has
    not changed. Ctrl-C stops it (exit code 130).
    """
    from crop_assets.demo.run import run_demo

    def work() -> int:
        try:
            return 0 if run_demo(root, cdl, year, recipe, port, typer.echo) else 1
        except KeyboardInterrupt:
            typer.echo("Stopped. Run the same command again to resume; finished work is reused.", err=True)
            return 130

    _finish(work)


@app.command()
def ui(
    root: Root = _ROOT,
    cdl: Cdl = None,
    year: Year = None,
    recipe: DemoRecipe = None,
    port: Port = None,
    ui_port: UiPort = 3000,
) -> None:
    """Open the Dagster UI with the demo's results; its world keeps running for more runs."""
    from crop_assets.demo.run import run_ui

    _finish(lambda: run_ui(root, cdl, year, recipe, port, ui_port, typer.echo))


@app.command()
def dev(
    ui_port: UiPort = 3000,
) -> None:
    """Open the Dagster UI with your own data, and its daemon: like `dg dev`, but protected from other web pages.

    Reads DAGSTER_HOME and the variables that docs/operating.md lists, and serves on 127.0.0.1 until Ctrl-C.
    """
    from crop_assets.ui import open_ui

    _finish(lambda: open_ui(ui_port, typer.echo))


@app.command()
def webserver(
    workspace: Annotated[
        Path, typer.Option(help="Dagster's workspace file.", exists=True, dir_okay=False, resolve_path=True)
    ] = Path("workspace.yaml"),
    ui_port: UiPort = 3000,
) -> None:
    """Serve the Dagster UI alone, beside a daemon and a code server of yours: `dagster-webserver`, but protected.

    Reads DAGSTER_HOME and the variables that docs/operating.md lists, and serves on 127.0.0.1 until Ctrl-C.
    """
    from crop_assets.ui import serve_ui

    def work() -> int:
        serve_ui(ui_port, str(workspace))
        return 0

    _finish(work)


@app.command()
def run(
    year: Annotated[
        list[int],
        typer.Option(help="The CDL year; give it several times for several years.", min=1997, max=2100),
    ],
    tiles: Annotated[
        str, typer.Option(help="HLS tiles, such as 14SMG,14SNG; by default all tiles with chip boxes.")
    ] = "",
    recipe: Recipe = "",
    data: Data = "data",
    until: Annotated[Until, typer.Option(help="The last part to make.")] = Until.dataset,
    daemon: Annotated[
        bool,
        typer.Option("--daemon", help="Let the daemon of DAGSTER_HOME do the work, and wait for it."),
    ] = False,
) -> None:
    """Make labels, tiles and dataset of a year without the UI, in this process or through a daemon.

    Finished work is reused, so run the same command again to resume. A failed tile does not affect the others. With
    --tiles, the dataset is made only if no other tiles are missing. Set DAGSTER_HOME to see the runs in the UI.
    The variables in docs/operating.md set the sources.

    Exit code 0: everything is made. 1: some of it failed, for the reasons shown. 2: an option or variable is not valid.
    130: stopped by Ctrl-C or SIGTERM; with --daemon, what was launched goes on.
    """
    _finish(lambda: _run(year, tiles, recipe, data, until, daemon))


def _run(years: list[int], tiles: str, recipe_file: str, data: str, until: Until, daemon: bool) -> int:
    from crop_assets.recipe import load_recipe
    from crop_assets.run.daemon import DaemonRunner
    from crop_assets.run.here import HereRunner, open_instance
    from crop_assets.run.years import Stop, Years, log_outcomes
    from resources.store import DatasetStore

    recipe, store = load_recipe(recipe_file), DatasetStore(root=data)
    # the runs read them from here
    os.environ |= {"CROP_ASSETS_DATA": data, "CROP_ASSETS_RECIPE": recipe_file}
    stop = Stop()
    # background jobs of a shell ignore interrupts; batch schedulers stop a job by SIGTERM
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop.handle)
    named = tuple(dict.fromkeys(part.strip() for part in tiles.split(",") if part.strip()))
    work = Years(store, recipe, tuple(dict.fromkeys(years)), named, until.value)
    try:
        with open_instance(typer.echo, needed=daemon) as instance:
            runner = (
                DaemonRunner(instance, typer.echo, stop.check, recipe if recipe_file else None)
                if daemon
                else HereRunner(instance, typer.echo, stop.check)
            )
            outcomes = work.run(runner, typer.echo)
    except KeyboardInterrupt:
        rest = "What was launched goes on; the UI can terminate it." if daemon else "Finished work is reused."
        typer.echo(f"Stopped. {rest} Run the same command again to resume.", err=True)
        return 130
    typer.echo("")
    log_outcomes(outcomes, typer.echo)
    return 0 if all(outcome.success for outcome in outcomes) else 1


@app.command()
def status(
    data: Data = "data",
    dataset: Dataset = "",
    year: Annotated[
        int | None, typer.Option(help="The CDL year; by default all years of the dataset.")
    ] = None,
    recipe: Recipe = "",
    every: Annotated[
        bool, typer.Option("--every", help="List every tile, not only the first 20 that are not done.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Show how far each year of a dataset is: labels, tiles done and missing and why, dataset, files and bytes.

    The causes of failures are those of the runs in DAGSTER_HOME, if it is set. Exit code 0: everything is done. 1:
    something is missing, failed or out of date. 2: there is no such dataset, or the store is not available.
    """
    _finish(lambda: _status(data, dataset, year, recipe, every, as_json))


def _status(data: str, dataset: str, year: int | None, recipe_file: str, every: bool, as_json: bool) -> int:
    from functools import partial

    from crop_assets.automation.jobs import DATASET_ASSETS
    from crop_assets.graph.lineage import Lineage
    from crop_assets.graph.years import failed_because
    from crop_assets.layout import Layout
    from crop_assets.recipe import load_recipe
    from crop_assets.run.here import open_instance
    from crop_assets.status import json_of, lines_of, year_status
    from crop_assets.stored import require_years
    from resources.store import DatasetStore

    recipe, store = load_recipe(recipe_file), DatasetStore(root=data)
    name = dataset or recipe.dataset
    years = require_years(store, name, year)
    with open_instance(lambda text: None) as instance:
        causes = partial(failed_because, instance, "filtered_chips")
        states = [
            year_status(Lineage(store, Layout(name, one), recipe), DATASET_ASSETS, causes) for one in years
        ]
    if as_json:
        typer.echo(json_of(name, states))
    else:
        typer.echo(_dataset_line(recipe_file, recipe.dataset, name, None))
        for line in (line for state in states for line in lines_of(state, None if every else 20)):
            typer.echo(plain_text(line))
        if waiting := [f"--year {state.year}" for state in states if not state.done]:
            typer.echo(f"Make what is missing: crop-assets run {' '.join(waiting)}")
    return 0 if all(state.done for state in states) else 1


@app.command()
def verify(
    data: Data = "data",
    dataset: Dataset = "",
    year: Annotated[
        int | None, typer.Option(help="The CDL year; by default all years of the dataset.")
    ] = None,
    recipe: Recipe = "",
) -> None:
    """Hash every file of a dataset again, and list those that are missing or changed, or do not belong there.

    Exit code 0: all files are unchanged. 1: some are not. 2: there is no such dataset, or the store is not available.
    """
    _finish(lambda: _verify(data, dataset, year, recipe))


def _verify(data: str, dataset: str, year: int | None, recipe: str) -> int:
    from crop_assets.layout import Layout
    from crop_assets.progress import Progress
    from crop_assets.recipe import load_recipe
    from crop_assets.stored import require_years
    from crop_assets.verify import dataset_tables, unknown_files, verify_tables
    from resources.machine import Machine
    from resources.store import DatasetStore

    store = DatasetStore(root=data)
    name = dataset or load_recipe(recipe).dataset
    wrong = 0
    for one in require_years(store, name, year):
        layout = Layout(name, one)
        tables = dataset_tables(store, layout)
        report = Progress(typer.echo, len(tables), "tables verified")
        with Machine().pool() as pool:
            checked = verify_tables(store, tables, pool, report)
        bad_files = [*checked.bad_files, *unknown_files(store, layout, checked)]
        for bad in bad_files:
            typer.secho(plain_text(f"{bad.file}: {bad.problem}"), fg=typer.colors.RED)
        wrong += len(bad_files)
        state = f"{len(bad_files)} WRONG" if bad_files else "all unchanged"
        partial = f" ({checked.partial} of them band files in blocks)" if checked.partial else ""
        typer.echo(f"{layout.root}: {checked.tables} tables, {checked.files} files{partial}, {state}")
    if wrong:
        typer.echo("Materialize the assets named above again; intact files are reused.")
    return 1 if wrong else 0


@app.command()
def diff(
    a: Annotated[str, typer.Argument(help="A dataset, or published tables.")],
    b: Annotated[str, typer.Argument(help="The same for B.")],
    data: Data = "data",
    pixels: Annotated[
        bool, typer.Option("--pixels/--no-pixels", help="Read the images and masks whose checksums differ.")
    ] = True,
    limit: Annotated[int, typer.Option(help="Lines of each kind of difference.", min=0)] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Write all differences as JSON.")] = False,
) -> None:
    """List what differs between two datasets, or between a dataset and published tables.

    A and B are folders of a dataset and year (.../training_datasets/NAME/YEAR, local or s3://), NAME/YEAR in --data, or
    a folder or file of published tables: chip_tracker.csv, lists of ids such as train_ids.csv, selected scenes. What
    one of them lacks is not compared, and named. Neither is changed.

    Exit code 0: they are the same. 1: they differ. 2: they cannot be compared.
    """
    _finish(lambda: _diff(a, b, data, pixels, limit, as_json))


def _diff(a: str, b: str, data: str, pixels: bool, limit: int, as_json: bool) -> int:
    import json

    from crop_assets.diff import compare, read_side, report_lines
    from crop_assets.progress import Progress
    from resources.machine import Machine

    reports: list[Progress] = []

    def progress(done: int, total: int) -> None:
        if not reports:
            reports.append(Progress(lambda text: typer.echo(text, err=True), total, "chips compared"))
        reports[0](done)

    with Machine().pool() as pool:
        found = compare(read_side(a, data, pool), read_side(b, data, pool), pool, pixels, progress)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        for line in report_lines(found, limit):
            typer.echo(line)
    return 0 if found["same"] else 1


@app.command()
def plan(
    data: Data = "data",
    dataset: Dataset = "",
    year: Annotated[
        int | None, typer.Option(help="The CDL year; by default the last one with a tile map.")
    ] = None,
    recipe: Recipe = "",
    rate: Annotated[
        float, typer.Option(help="Expected download rate in megabytes per second.", min=0.01)
    ] = 20,
    every: Annotated[
        bool, typer.Option("--every", help="List every tile, not only those with a problem.")
    ] = False,
) -> None:
    """Estimate what a year's dataset will take before anything is downloaded: tiles, scenes, chips, bytes, time.

    Launch labels_job for the year and backfill plan_job over its tiles first; plan_job only queries catalogues, and
    with `scene_rule: clearest` downloads the Fmask files that it measures. Exit code 0: every tile can be made. 1: some
    cannot, for the reasons shown. 2: there is no tile map.
    """
    _finish(lambda: _plan(data, dataset, year, recipe, rate, every))


def _plan(data: str, dataset: str, year: int | None, recipe_file: str, rate: float, every: bool) -> int:
    from crop_assets.graph.lineage import Lineage
    from crop_assets.layout import Layout
    from crop_assets.plan import make_plan
    from crop_assets.recipe import load_recipe
    from crop_assets.stored import years_with
    from resources.store import DatasetStore

    recipe, store = load_recipe(recipe_file), DatasetStore(root=data)
    name = dataset or recipe.dataset
    one = years_with(store, name, "tile_map", year)[-1]
    typer.echo(_dataset_line(recipe_file, recipe.dataset, name, one))
    made = make_plan(Lineage(store, Layout(name, one), recipe), rate)
    shown = made.tiles if every else made.tiles[made.tiles["problem"] != ""]
    for tile in shown.to_dict("records"):
        line = (
            f"{tile['tile']}: {tile['chips']} chips, {tile['fit_scenes']} fit scenes, {tile['files']} files, "
            f"{tile['bytes'] / 1e6:,.0f} MB{_in_blocks(tile)}{': ' * bool(tile['problem'])}{tile['problem']}"
        )
        typer.echo(plain_text(line))
    ready, total = made.ready, made.tiles
    typer.echo(
        f"{len(ready)} of {len(total)} tiles can be made: {int(ready['chips'].sum()):,} of "
        f"{int(total['chips'].sum()):,} chips, {int(ready['files'].sum()):,} files to download, "
        f"{ready['bytes'].sum() / 1e9:,.1f} GB, about {ready['seconds'].sum() / 3600:,.1f} h at {rate:g} MB/s"
    )
    by_blocks = int((ready["fetch"] == "blocks").sum())
    if by_blocks:
        typer.echo(
            f"Of {by_blocks:,} tiles only the blocks under the chips are fetched; complete files of all tiles would "
            f"be {ready['complete_bytes'].sum() / 1e9:,.1f} GB."
        )
    typer.echo("With fmask_first, tiles whose chips are all cloudy need only their Fmask files.")
    return 0 if len(ready) == len(total) else 1


def _in_blocks(tile: dict[Hashable, Any]) -> str:
    return f" in blocks, of {tile['complete_bytes'] / 1e6:,.0f} MB" if tile["fetch"] == "blocks" else ""


@app.command()
def aoi(
    data: Data = "data",
    dataset: Dataset = "",
    year: Annotated[
        int | None, typer.Option(help="The CDL year; by default the last one with candidate chips.")
    ] = None,
    recipe: Recipe = "",
    name: Annotated[str, typer.Option(help="File in the store to load and save.")] = "aoi.geojson",
    port: Annotated[
        int | None,
        typer.Option(help="Loopback port of the page; by default 8350, or a free one.", min=0, max=65535),
    ] = None,
    base_map: Annotated[
        str, typer.Option(help="Address of the base map's tiles with {z}, {x} and {y}; empty for none.")
    ] = "https://tile.openstreetmap.org/{z}/{x}/{y}.png",
    browse: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in the browser.")] = True,
) -> None:
    """Draw an area of interest on a map, and see how many chips and HLS tiles are inside.

    Serves a page on 127.0.0.1 until Ctrl-C; only the base map needs the internet. Launch labels_job for the year first.
    Exit code 0: stopped. 2: there are no chip boxes yet, or the file to save to cannot be edited.
    """
    _finish(lambda: _aoi(data, dataset, year, recipe, name, port, base_map, browse))


def _aoi(
    data: str,
    dataset: str,
    year: int | None,
    recipe_file: str,
    name: str,
    port: int | None,
    base_map: str,
    browse: bool,
) -> int:
    import yaml

    from crop_assets.aoi_map.area import Count, load_area
    from crop_assets.aoi_map.server import DEFAULT_PORT, AoiFile, AoiPage, check_base_map
    from crop_assets.layout import Layout
    from crop_assets.local_server import listen, run
    from crop_assets.recipe import load_recipe
    from crop_assets.stored import years_with
    from resources.store import DatasetStore

    recipe, store = load_recipe(recipe_file), DatasetStore(root=data)
    check_base_map(base_map)
    file = AoiFile.of(store, name)
    with listen(port, DEFAULT_PORT) as listener:
        dataset = dataset or recipe.dataset
        layout = Layout(dataset, years_with(store, dataset, "candidate_chips", year)[-1])
        area = load_area(store, layout, recipe)

        def saved(count: Count) -> None:
            typer.echo(
                f"saved {file.path}: {count.boxes:,} boxes, {len(count.tiles)} HLS tiles; in the recipe:"
            )
            typer.echo(yaml.safe_dump({"aoi": file.path}, width=1 << 20, allow_unicode=True).rstrip())

        page = AoiPage(area, layout, file, base_map, saved)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        typer.echo(f"Draw an area of interest at {url}   (Ctrl-C stops it)")
        typer.echo(_dataset_line(recipe_file, recipe.dataset, dataset, layout.year))
        typer.echo(f"It chooses: {area.rule}")
        run(page.app(), listener, url if browse else "")
    return 0


def _dataset_line(recipe_file: str, of_recipe: str, dataset: str, year: int | None) -> str:
    """The dataset and recipe that a command uses, as a line of text."""
    source = (
        f"the recipe {recipe_file}" if recipe_file else "the default recipe; choose another with --recipe"
    )
    other = f" (which is for the dataset {of_recipe})" if dataset != of_recipe else ""
    return f"{dataset}{f' of {year}' if year else ''}, by {source}{other}"


def _finish(work: Callable[[], int]) -> None:
    """Exit with the code that `work` returns; an error that a user can fix is one line, not a traceback."""
    from pydantic import ValidationError

    try:
        raise typer.Exit(work())
    except ValidationError as error:
        text = "; ".join(f"{name}: {message}" for name, message in problems(error).items())
    except (InputError, ResourceError, OSError) as error:
        text = str(error)
    typer.secho(f"error: {text}", fg=typer.colors.RED, err=True)
    raise typer.Exit(2)


if __name__ == "__main__":
    app()
