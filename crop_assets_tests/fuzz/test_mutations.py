"""Thousands of spoilt inputs, the same ones each time: what leaves a reader is an error of the project's own."""

import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from crop_assets_tests.fuzz.mutations import mutations
from crop_assets_tests.fuzz.targets import OWN, TARGETS

COUNT, FEWER = 150, 25


@pytest.mark.parametrize("name", TARGETS)
def test_sound_inputs_are_read_or_refused_with_reasons(name: str) -> None:
    target = TARGETS[name]
    for seed in target.seeds():
        try:
            target.read(seed)
        except OWN as error:
            assert str(error)


# libraries warn of what is odd, and here everything is
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TARGETS)
def test_spoilt_inputs_leave_as_errors_of_the_project_alone(name: str) -> None:
    target = TARGETS[name]
    luck = random.Random(name)
    for seed in target.seeds():
        for data in mutations(seed, FEWER if target.is_slow else COUNT, luck, target.is_json):
            try:
                target.read(data)
            except OWN:
                continue
            except BaseException as error:
                error.add_note(f"the target {name} was given {data[:2_000]!r}")
                raise


def changed(name: str, *path: str | int, to: Any) -> bytes:
    """The first sound input of a target with another value at a place."""
    document = json.loads(next(iter(TARGETS[name].seeds())))
    holder = document
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = to
    return json.dumps(document).encode()


FIRST = ("features", 0)
PLACE = (*FIRST, "geometry")
FOUND: list[tuple[str, Callable[[], bytes]]] = [
    # ValueError of a chained URL's unknown protocol
    ("store_name", lambda: b"training_datasets/small/202\xff/ta120:: 00003/cdl.parquet"),
    # what left as OverflowError, IndexError, RecursionError
    *(
        (name, lambda name=name: changed(name, *PLACE, "coordinates", 0, 0, 0, to=10**400))
        for name in ("stac_file", "stac_page", "chip_geojson", "area_geojson", "grid_geojson", "drawing")
    ),
    *(
        (name, lambda name=name: changed(name, *PLACE, "type", to=""))
        for name in ("stac_file", "stac_page", "chip_geojson", "area_geojson", "grid_geojson", "drawing")
    ),
    *(
        (name, lambda: b'{"features": ' + b"[" * 100_000)
        for name in ("stac_file", "stac_page", "stac_landing", "chip_geojson", "area_geojson", "drawing")
    ),
    *((name, lambda: b"[" * 100_000) for name in ("granule_search", "granule_json", "release_note", "words")),
    # GEOSException and OverflowError
    *(
        ("grid_geojson", lambda at=at: changed("grid_geojson", *PLACE, "coordinates", 0, 1, 0, to=at))
        for at in (1e308, float("nan"), float("inf"), -1e9)
    ),
    ("grid_geojson", lambda: changed("grid_geojson", *PLACE, "coordinates", 0, to=[[0, 0]] * 4)),
    # TypeError and AttributeError
    *(
        ("grid_geojson", lambda name=name: changed("grid_geojson", *FIRST, "properties", "tile", to=name))
        for name in (None, 3, 1.5, ["14SMG"], {})
    ),
    *(
        (name, lambda name=name, to=to: changed(name, *FIRST, "properties", to=to))
        for name in ("chip_geojson", "grid_geojson", "area_geojson", "drawing", "stac_file", "stac_page")
        for to in (None, "x", [], 3)
    ),
    # what pystac-client raises of its own
    ("stac_landing", lambda: changed("stac_landing", "conformsTo", to=[])),
    ("stac_landing", lambda: changed("stac_landing", "links", to=[])),
    ("stac_landing", lambda: changed("stac_landing", "stac_version", to="9" * 99)),
    ("stac_landing", lambda: changed("stac_landing", "type", to="Collection")),
    # UnicodeEncodeError: half of a surrogate pair, which no table takes
    *(
        (name, lambda name=name, path=path: changed(name, *path, to="\ud800"))
        for name in ("stac_file", "stac_page")
        for path in (
            (*FIRST, "id"),
            (*FIRST, "properties", "eo:cloud_cover"),
            (*FIRST, "assets", "B02", "href"),
        )
    ),
    ("granule_search", lambda: changed("granule_search", "items", 0, "umm", "GranuleUR", to="\udfff")),
    ("kept_values", lambda: changed("kept_values", "items", 0, "assets", "B02", "href", to="https://\ud800")),
    # LookupError: unknown encoding
    *(
        (name, lambda: b'<?xml version="1.0" encoding="UF-8"?><kml></kml>')
        for name in ("area_kml", "grid_kml", "granule_xml")
    ),
    # ValueError, AttributeError and RecursionError of YAML's constructors
    *(
        ("recipe", lambda text=text: text)
        for text in (
            b"chips: 2022-13-45",
            b"chips: !!int x",
            b"chips: !!float x",
            b"chips: !!timestamp x",
            b"chips: " + b"9" * 5_000,
            b"a: " + b"{a: " * 3_000,
        )
    ),
    # JSONDecodeError, in what a server says with an error
    ("words", lambda: b'{"message": "C:\\users", "cut short'),
    # OSError and UnicodeEncodeError, for names that no file can have
    *(
        ("store_name", lambda name=name: name)
        for name in (b"a/" + b"b" * 300, b"a/" * 3_000 + b"b", b"\xff", b".")
    ),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("at", range(len(FOUND)), ids=lambda at: f"{at}-{FOUND[at][0]}")
def test_what_was_found_leaves_as_an_error_of_the_project(at: int) -> None:
    name, data = FOUND[at]
    try:
        TARGETS[name].read(data())
    except OWN as error:
        assert str(error)
