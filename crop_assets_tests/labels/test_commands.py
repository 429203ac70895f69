"""Commands in messages, pasted into a shell."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from affine import Affine

from crop_assets.chip_grid import ORIGIN_X, ORIGIN_Y
from crop_assets.errors import InputError
from crop_assets.labels.cdl import check_cdl
from crop_assets_tests.labels.conftest import WriteCdl
from resources.cdl import raster_sha256
from resources.errors import NotFoundError
from resources.plain_text import shell_file

STEMS = [
    "a b",
    "a;touch pwned",
    "$(touch pwned)",
    "`touch pwned`",
    "a' ; touch pwned; '",
    'a"|touch pwned|"',
    "-overwrite",
    "&touch pwned&",
    "*",
    "~",
    "\u00e9",
    "$HOME",
    "a\ntouch pwned\n",
    "a\x1b[2Jb",
    "a\u202eb",
]
GRASS = np.full((30, 40), 176, np.uint8)
LOCAL = 'LOCAL_CS["NAD83 / Conus Albers",UNIT["metre",1]]'
UNFIT: dict[str, dict[str, Any]] = {
    "no CRS": {"crs": None},
    "local CRS": {"crs": LOCAL},
    "other CRS": {"crs": "EPSG:32614", "transform": Affine(30, 0, 6e5, 0, -30, 4e6)},
    "other pixels": {"transform": Affine(10, 0, ORIGIN_X, 0, -10, ORIGIN_Y)},
    "off the grid": {"col": 0.5},
    "suffix": {},
}
TOOLS = ("gdal_edit.py", "gdalwarp", "gdal_translate")


def pasted(message: str, folder: Path) -> list[str]:
    """The arguments that the tool gets when the command of a message is pasted into a shell."""
    command = re.search(rf"({'|'.join(map(re.escape, TOOLS))}) .*", message)
    assert command, message
    text = command[0].replace("gdal_edit.py", "gdal_edit")
    functions = "".join(f'{tool.removesuffix(".py")}() {{ printf "%s\\0" "$@"; }}; ' for tool in TOOLS)
    run = subprocess.run(
        ["sh", "-c", functions + text], cwd=folder, capture_output=True, text=True, check=True
    )
    assert run.stderr == ""
    return run.stdout.split("\0")[:-1]


@pytest.mark.parametrize("stem", STEMS, ids=ascii)
@pytest.mark.parametrize("unfit", UNFIT)
def test_a_command_names_the_file_and_does_nothing_else(
    write_cdl: WriteCdl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unfit: str, stem: str
) -> None:
    folder = tmp_path / "rasters"
    folder.mkdir()
    monkeypatch.chdir(folder)
    name = f"{stem}.nc" if unfit == "suffix" else f"{stem}.tif"
    shutil.copy(write_cdl(GRASS, **UNFIT[unfit]), folder / name)
    for path in (name, str(folder / name)):
        with pytest.raises(InputError) as refused:
            check_cdl(path)
        words = pasted(str(refused.value), folder)
        shown = "FILE" if not stem.isprintable() else f"./{name}" if path.startswith("-") else path
        assert shown in words
    assert [file.name for file in folder.iterdir()] == [name]


@pytest.mark.parametrize("stem", STEMS, ids=ascii)
def test_a_command_for_a_description_names_the_file_and_does_nothing_else(tmp_path: Path, stem: str) -> None:
    path = tmp_path / f"{stem}.vrt"
    path.write_text(
        '<VRTDataset rasterXSize="9" rasterYSize="9"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        '<SourceFilename relativeToVRT="1">../gone.tif</SourceFilename><SourceBand>1</SourceBand>'
        "</SimpleSource></VRTRasterBand></VRTDataset>"
    )
    with pytest.raises(NotFoundError) as refused:
        raster_sha256(path)
    made = f"./{stem}.tif" if stem.startswith("-") else f"{stem}.tif"
    shown = [str(path), made] if stem.isprintable() else ["FILE", "FILE"]
    assert pasted(str(refused.value), tmp_path) == shown
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_name_too_long_for_a_message_is_not_in_the_command() -> None:
    assert shell_file("a/" * 600) == "FILE"
    assert shell_file(Path("data/cdl/2022_30m_cdls.tif")) == "data/cdl/2022_30m_cdls.tif"
