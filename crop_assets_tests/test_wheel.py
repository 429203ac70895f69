import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import yaml

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT)
    (made,) = folder.iterdir()
    return made


def pip(command: str, *arguments: str | Path, python: str | Path = sys.executable) -> None:
    options = ["--quiet", "--no-index", "--disable-pip-version-check"]
    environment = os.environ | {"PIP_REQUIRE_VIRTUALENV": "0"}
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, command, *options, *arguments],
        env=environment,
        check=True,
    )


def test_the_wheel_has_the_files_of_both_packages_and_no_others(wheel: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "crop_assets", "resources"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    with zipfile.ZipFile(wheel) as file:
        contents = {name: file.read(name) for name in file.namelist()}
    about = {name for name in contents if name.startswith("crop_assets-0.1.0.dist-info/")}
    assert {name.partition("/")[2] for name in about} == {
        "METADATA",
        "WHEEL",
        "RECORD",
        "entry_points.txt",
        "licenses/LICENSE",
    }
    assert contents.keys() - about == set(listed.stdout.split())
    for name in contents.keys() - about:
        assert contents[name] == (ROOT / name).read_bytes(), name
    metadata = contents["crop_assets-0.1.0.dist-info/METADATA"].decode()
    assert "\nLicense-Expression: Apache-2.0\n" in metadata
    assert "\nRequires-Python: >=3.11\n" in metadata


def test_the_wheel_runs_the_demo_outside_the_repository(wheel: Path, tmp_path: Path) -> None:
    venv, elsewhere = tmp_path / "venv", tmp_path / "elsewhere"
    elsewhere.mkdir()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    (packages,) = venv.glob("lib/python*/site-packages")
    # the dependencies are those of the tests, without this checkout
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not entry.name.startswith(("crop_assets-", "_editable_impl_crop_assets")):
            (packages / entry.name).symlink_to(entry)
    pip("install", "--no-deps", wheel, python=venv / "bin/python")

    # without the variables of the tests, in particular PYTHONPATH
    environment = {"PATH": os.defpath, "HOME": str(elsewhere)}

    def run(*command: str) -> str:
        done = subprocess.run(
            [venv / "bin" / command[0], *command[1:]],
            cwd=elsewhere,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    where = "import crop_assets, resources; print(crop_assets.__file__, resources.__file__)"
    assert run("python", "-c", where).split() == [
        str(packages / "crop_assets/__init__.py"),
        str(packages / "resources/__init__.py"),
    ]
    assert run("crop-assets", "--version") == "crop-assets 0.1.0\n"
    shown = run("crop-assets", "demo")

    dataset = elsewhere / ".demo/data/training_datasets/demo/2022"
    assert f"dataset   {dataset}\n" in shown
    index = gpd.read_parquet(dataset / "chips.parquet")
    assert dict(index["split"].value_counts()) == {"train": 22, "validation": 9}
    assert len((dataset / "rejected_chips.csv").read_text().splitlines()) == 1 + 5
    train = index.loc[index["split"] == "train", "chip_id"]
    images = []
    for chip in train:
        with rasterio.open(dataset / f"chips_filtered/{chip}_merged.tif") as image:
            images.append(image.read().reshape(3, 6, -1).astype(float))
    # chips, dates, bands, pixels
    bands = np.moveaxis(np.stack(images), 2, 0).reshape(6, -1)
    np.testing.assert_allclose(np.loadtxt(dataset / "means.txt"), bands.mean(1), rtol=1e-6)
    np.testing.assert_allclose(np.loadtxt(dataset / "stds.txt"), bands.std(1), rtol=1e-6)
    statistics = json.loads((dataset / "statistics.json").read_text())["splits"]["train"]["bands"]
    np.testing.assert_allclose([band["mean"] for band in statistics.values()], bands.mean(1), rtol=1e-6)
    # what is made of files in the wheel that are not Python's
    for name in ("terratorch.yaml", "terratorch_tl.yaml", "clark_config.yaml"):
        assert yaml.safe_load((dataset / name).read_text())
    module = ROOT / "crop_assets/readers/templates/crop_datamodule.py"
    assert (dataset / "crop_datamodule.py").read_bytes() == module.read_bytes()
