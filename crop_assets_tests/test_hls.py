import datetime as dt
import re
from pathlib import Path

import geopandas as gpd
import pytest

from crop_assets import hls
from crop_assets.errors import InputError
from crop_assets.hls import (
    BANDS,
    collection_of,
    file_band,
    hls_bounds,
    is_scene_id,
    is_tile,
    parse_scene_id,
    tile_in,
)
from resources.errors import IntegrityError

SCENE = "HLS.S30.T13TDE.2022111T174859.v2.0"
NO_TILES = [
    "",
    "00TDE",
    "61SNH",
    "13ADE",
    "13IDE",
    "14SMI",
    "14SOG",
    "14SMW",
    "13tde",
    "13TD",
    "T13TDE",
    "13TDE\n",
]


def test_a_scene_id_is_read_and_anything_else_refused() -> None:
    name = parse_scene_id("HLS.S30.T13TDE.2022111T174859.v2.0")
    assert (name.sensor, name.tile, name.version) == ("S30", "13TDE", "2.0")
    assert name.sensed == dt.datetime(2022, 4, 21, 17, 48, 59, tzinfo=dt.UTC)
    assert parse_scene_id("HLS.S30.T29QND.2019182.v1.5").sensed.date() == dt.date(2019, 7, 1)
    for text in ("../../etc/passwd", "HLS.S30.T13TDE.2022111T174859.v2.0/..", "", "HLS.S30.T13TDE"):
        with pytest.raises(IntegrityError, match="not an HLS scene id"):
            parse_scene_id(text)


def test_bands_have_the_names_of_their_sensor() -> None:
    assert [file_band(SCENE, band) for band in BANDS] == list(BANDS)
    landsat = [file_band(SCENE.replace("S30", "L30"), band) for band in BANDS]
    assert landsat == ["B02", "B03", "B04", "B05", "B06", "B07", "Fmask"]
    assert (collection_of(SCENE), collection_of("HLS.L30.T29QND.2019182.v1.5")) == (
        "HLSS30_2.0",
        "HLSL30_1.5",
    )


def test_every_tile_of_the_official_grid_can_be_in_a_scene_id(official_grid: gpd.GeoDataFrame) -> None:
    for tile in official_grid["tile"]:
        scene = SCENE.replace("13TDE", tile)
        assert is_tile(tile) and is_scene_id(scene)
        assert parse_scene_id(scene).tile == tile_in(scene) == tile


@pytest.mark.parametrize("name", NO_TILES)
def test_an_invalid_tile_name_is_refused_everywhere(name: str) -> None:
    scene = SCENE.replace("13TDE", name)
    assert not is_tile(name) and not is_scene_id(scene)
    with pytest.raises(IntegrityError, match="not an HLS scene id"):
        parse_scene_id(scene)
    with pytest.raises(InputError, match="there is no 100 km square with this name"):
        hls_bounds(name)


def test_a_square_outside_its_zone_has_no_bounds() -> None:
    assert is_tile("14SAA")
    with pytest.raises(InputError, match="there is no 100 km square with this name"):
        hls_bounds("14SAA")


def test_the_tile_that_a_text_names() -> None:
    assert tile_in("HLS.X30.T13TDE.2022") == "13TDE"
    for text in ("", "HLS.S30.T13TDEX.2022", "LT13TDE", "13TDE", "T14SMI"):
        assert tile_in(text) is None


def test_tiles_and_scenes_have_one_pattern_each() -> None:
    package = Path(hls.__file__).parent
    patterns = re.compile(r"[CP]-X\]|A-Z\]\{2\}|HLS\\\\?\.|\[SL\]30")
    assert [path.name for path in package.rglob("*.py") if patterns.search(path.read_text())] == ["hls.py"]
