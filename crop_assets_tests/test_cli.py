import contextlib
import os
import re
import sqlite3
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from typer.testing import CliRunner

from crop_assets.cli import app
from crop_assets.variables import VARIABLES


def test_help_describes_each_command() -> None:
    shown = CliRunner().invoke(app, ["--help"])
    assert shown.exit_code == 0
    for command in ("demo", "ui", "verify"):
        assert command in shown.output
        assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0


def test_a_raster_that_is_not_a_cdl_gives_one_line_of_error_and_exit_code_2(tmp_path: Path) -> None:
    raster = tmp_path / "2021_30m_cdls.tif"
    profile = {
        "driver": "GTiff",
        "dtype": "uint8",
        "count": 1,
        "width": 300,
        "height": 300,
        "crs": "EPSG:32614",
    }
    with rasterio.open(raster, "w", transform=Affine(30, 0, 0, 0, -30, 0), **profile) as out:
        out.write(np.ones((1, 300, 300), np.uint8))
    shown = CliRunner().invoke(app, ["demo", "--root", str(tmp_path / "demo"), "--cdl", str(raster)])
    assert shown.exit_code == 2
    assert shown.output.startswith("error:")
    assert "EPSG:5070" in shown.output
    assert "gdalwarp" in shown.output
    assert "Traceback" not in shown.output
    assert not (tmp_path / "demo/data").exists()


def test_the_coordinate_database_of_another_program_is_named(tmp_path: Path) -> None:
    """As on a machine where another program sets the variable for itself; PROJ reads it once a process."""
    variable = "PROJ_LIB"
    with contextlib.closing(sqlite3.connect(tmp_path / "proj.db")) as database, database:
        database.execute("CREATE TABLE metadata (key TEXT, value TEXT)")
        database.execute("INSERT INTO metadata VALUES ('DATABASE.LAYOUT.VERSION.MAJOR', '1')")
        database.execute("INSERT INTO metadata VALUES ('DATABASE.LAYOUT.VERSION.MINOR', '2')")
    command = [sys.executable, "-m", "crop_assets.cli", "demo", "--root", str(tmp_path / "demo")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PROJ_")}
    shown = subprocess.run(
        command, env=environment | {variable: str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert shown.returncode == 2
    assert "error: PROJ cannot look up EPSG:5070 (" in shown.stderr
    assert (
        f"{variable} is {tmp_path}, which does not fit the PROJ of rasterio: unset {variable}" in shown.stderr
    )
    assert "Traceback" not in shown.stderr


def test_a_missing_raster_is_refused_by_name(tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["demo", "--cdl", str(tmp_path / "nowhere.tif")])
    assert shown.exit_code == 2
    assert "nowhere.tif" in re.sub(r"[│\s]", "", shown.output)


def test_the_version_is_that_of_the_package() -> None:
    shown = CliRunner().invoke(app, ["--version"])
    assert (shown.exit_code, shown.output) == (0, f"crop-assets {version('crop-assets')}\n")


def test_a_variable_that_nothing_reads_is_reported(tmp_path: Path) -> None:
    variables = {
        "CROP_ASSETS_KUBO": "http://127.0.0.1:5001",
        "CROP_ASSETS_OURS": "",
        "CROP_ASSETS_DATA": str(tmp_path),
    }
    shown = CliRunner().invoke(app, ["verify"], env=variables)
    warnings = [line for line in shown.stderr.splitlines() if line.startswith("warning: ")]
    assert warnings == [
        "warning: nothing reads the variable CROP_ASSETS_KUBO (did you mean 'CROP_ASSETS_KUBO_API'?)",
        "warning: nothing reads the variable CROP_ASSETS_OURS",
    ]


def test_the_known_variables_are_those_that_are_read_and_described() -> None:
    project = Path(__file__).parents[1]
    sources = [path for folder in ("crop_assets", "resources") for path in (project / folder).rglob("*.py")]
    read = set(re.findall(r"\bCROP_ASSETS_[A-Z_]*[A-Z]\b", "\n".join(path.read_text() for path in sources)))
    described = set(
        re.findall(r"^\| `(CROP_ASSETS_\w+)` \|", (project / "docs/operating.md").read_text(), re.MULTILINE)
    )
    assert set(VARIABLES) == read
    assert set(VARIABLES) == described


def test_an_error_of_the_system_gives_one_line_and_exit_code_2(tmp_path: Path) -> None:
    for command in ("verify", "plan"):
        shown = CliRunner().invoke(app, [command, "--data", str(tmp_path / ("x" * 300))])
        assert shown.exit_code == 2, shown.output
        assert re.search(r"^error: .*File name too long", shown.output.replace("\n", " ")), shown.output
        assert "Traceback" not in shown.output
