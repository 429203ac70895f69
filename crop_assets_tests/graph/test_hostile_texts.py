"""Texts from outside, of any length and characters, in what the operator reads: short, on one line, no links."""

import datetime as dt
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import geopandas as gpd
import pandas as pd
import pytest
import shapely
from dagster._serdes import serialize_value
from starlette.responses import Response

from crop_assets.definitions import environment_resources
from crop_assets.errors import InputError
from crop_assets.graph.metadata import bounded_errors, markdown, plain
from crop_assets.labels.aoi import filter_aoi, read_aoi
from crop_assets_tests.resources.loopback import serving
from crop_assets_tests.resources.nass import Nass
from crop_assets_tests.resources.nass import nass as nass
from crop_assets_tests.small_world import WEST, YEAR, Graph, Run, Served, collection, items_of
from resources.errors import IntegrityError, NotFoundError, ResourceError
from resources.ipfs.cid import Cid
from resources.ipfs.nodes import Gateway, KuboNode
from resources.plain_text import MAX_MESSAGE, plain_text
from resources.stac import IpfsStac, SceneStac
from resources.store import DatasetStore

EVIL = "\x1b]0;owned\x07\x1b[2J‮gnp.exe​\r\n2026-11-26 ERROR all is lost\x9b31m \ud800"
FLOOD = 10_000_000
MEGABYTES = EVIL + "x" * FLOOD
SHOWN = r"\x1b]0;owned\x07\x1b[2J\u202egnp.exe\u200b\r\n2026-11-26 ERROR all is lost\x9b31m \ud800"


def told(run: Run) -> list[str]:
    """All events of a run, as Dagster keeps them."""
    return [serialize_value(entry) for entry in run.instance.all_logs(run.result.run_id)]


def require_readable(text: str) -> None:
    assert len(text) <= MAX_MESSAGE
    assert text.isprintable()


def require_readable_events(run: Run) -> None:
    for event in told(run):
        assert len(event) < 150_000
        # as JSON writes them
        assert not re.search(r"(?<!\\)\\u(00(1b|07|9b)|202e|200b|d800)|[\x1b\x07\x9b\u202e\u200b]", event)
        assert "x" * 5000 not in event


@pytest.mark.parametrize("error", [InputError, ResourceError, IntegrityError, NotFoundError])
def test_every_error_is_short_and_on_one_line(error: Callable[[str], Exception]) -> None:
    assert str(error(f"{EVIL} is no name")) == f"{SHOWN} is no name"
    message = str(error(f"the link {MEGABYTES} leads nowhere; give another"))
    require_readable(message)
    assert message.startswith(f"the link {SHOWN}xxx")
    assert message.endswith("xxx leads nowhere; give another")
    assert "characters)" in message
    # as a part of another
    assert str(error(str(error(message)))) == message


def test_control_characters_do_not_lengthen_a_text() -> None:
    for character in ("\x00", "\U000e0001", "\ud800", "‮"):
        require_readable(plain_text(character * FLOOD))
        assert len(plain_text(character * 100, 50)) == 50


@pytest.mark.parametrize(
    "change",
    [
        lambda item: item.update(id=MEGABYTES),
        lambda item: item["properties"].update({"eo:cloud_cover": MEGABYTES}),
        lambda item: item["properties"].update(datetime=MEGABYTES),
        lambda item: item["assets"]["B02"].update(href=f"https://evil.example/{MEGABYTES}"),
        lambda item: item["assets"]["metadata"].update(href=f"https://evil.example/{MEGABYTES}"),
        lambda item: item.update(geometry={"type": MEGABYTES}),
        lambda item: item.update(assets={MEGABYTES: {"href": MEGABYTES}}),
    ],
    ids=["id", "cloud cover", "datetime", "href of a band", "href of its metadata", "geometry", "asset"],
)
def test_an_item_of_ten_megabytes_is_told_in_short(
    labelled_graph: Graph, served: Served, tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    items = [item for item in items_of(served.server.stac_url) if WEST in item["id"]]
    change(items[0])
    scenes = SceneStac(url=collection(tmp_path / "items.json", items), metadata_hosts=["127.0.0.1"])
    run = labelled_graph.run("tiles_job", tiles=[WEST], stac=scenes, ipfs_stac=IpfsStac(url=""))
    require_readable_events(run)


@pytest.mark.parametrize("field", ["href", "cid"])
def test_an_ipfs_address_of_ten_megabytes_is_told_in_short(
    labelled_graph: Graph, served: Served, tmp_path: Path, field: str
) -> None:
    items = items_of(served.server.ipfs_stac_url)
    for item in items:
        for asset in item["assets"].values():
            asset["alternate"] = {"IPFS": {field: f"ipfs://{MEGABYTES[:200]}"}}
    asset["alternate"] = {"IPFS": {field: f"ipfs://{MEGABYTES}"}}
    cids = IpfsStac(url=collection(tmp_path / "items.json", items))
    require_readable_events(labelled_graph.run("tiles_job", tiles=[WEST], ipfs_stac=cids))


def test_a_link_of_the_release_page_is_told_in_short(
    nass: Nass, labelled_graph: Graph, tmp_path: Path
) -> None:
    long = "x" * 3_900_000
    for link in (
        f"https://mirror.example/{long}/{YEAR}_30m_cdls.zip",
        f"https://mirror.example/&#27;[2J&#8238;/{YEAR}_30m_cdls.zip",
        f"https://me:secret@mirror.example/{YEAR}_30m_cdls.zip",
        f"https://mirror.example/{'y' * 5000}/{YEAR}_30m_cdls.zip",
    ):
        nass.page = f'<a href="{link}">{YEAR}</a>'
        said: list[str] = []
        with pytest.raises(IntegrityError) as refused:
            nass.releases(tmp_path).releases(said.append)
        for text in (str(refused.value), *said):
            require_readable(text)
            assert "secret" not in text
        run = labelled_graph.run("labels_job", cdl_releases=nass.releases(tmp_path))
        assert not run.success
        require_readable_events(run)


@pytest.mark.parametrize("status", [200, 403, 404, 500])
def test_the_words_of_a_node_are_told_in_short(status: int) -> None:
    words = (EVIL.replace("\ud800", "") + "see https://evil.example/login ") + "word " * 4000

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await Response(words, status, media_type="text/plain")(scope, receive, send)

    with serving(answer) as address:
        for node in (Gateway(address, 5), KuboNode(address, 5)):
            with pytest.raises(ResourceError) as refused:
                if not Cid.parse(UNKNOWN).matches(node.block(Cid.parse(UNKNOWN))):
                    raise IntegrityError("are not that block")
            require_readable(str(refused.value))
            assert len(str(refused.value)) < 600


UNKNOWN = "bafkreifjjcie6lypi6ny7amxnfftagclbuxndqonfipmb64f2km2devei4"


def test_names_in_an_area_of_interest_are_told_in_short(tmp_path: Path) -> None:
    square = gpd.GeoDataFrame(geometry=[shapely.box(-99, 37, -98, 38)], crs="EPSG:4326")
    square.to_file(tmp_path / "aoi.gpkg", layer="plain")
    local = square.set_crs('LOCAL_CS["\x1b[2J' + "y" * 9000 + '",UNIT["metre",1]]', allow_override=True)
    local.to_file(tmp_path / "aoi.gpkg", layer=re.sub(r"[\r\n\ud800]", "", EVIL) + "x" * 200)
    with pytest.raises(InputError, match=r"\\x1b\]0;owned") as refused:
        read_aoi(tmp_path / "aoi.gpkg")
    require_readable(str(refused.value))
    far = {"type": "FeatureCollection", "name": MEGABYTES[:-1].replace("\ud800", ""), "features": []}
    for crs_name in (MEGABYTES.replace("\ud800", ""), "urn:ogc:def:crs:EPSG::5070"):
        far["crs"] = {"type": "name", "properties": {"name": crs_name}}
        (tmp_path / "aoi.geojson").write_text(json.dumps(far))
        with pytest.raises(InputError) as refused:
            filter_aoi(square, read_aoi(tmp_path / "aoi.geojson"))
        require_readable(str(refused.value))


def test_what_a_library_raises_in_an_asset_reaches_the_log_in_short() -> None:
    def raising() -> None:
        try:
            raise KeyError(MEGABYTES)
        except KeyError as error:
            raise ValueError("cannot be read") from error

    def input_error() -> None:
        try:
            raise KeyError(MEGABYTES)
        except KeyError as error:
            raise InputError(f"cannot be read: {error}") from error

    for function in (raising, input_error):
        failing = dg.asset(name=function.__name__)(bounded_errors(function))
        with dg.DagsterInstance.ephemeral() as instance:
            result = dg.materialize([failing], instance=instance, raise_on_error=False)
            assert not result.success
            require_readable_events(Run(result, instance))


LINKS = [
    "see https://evil.example/a(b)_c*d*|e for more",
    "http://evil.example",
    "www.evil.example/login",
    "ask me@evil.example, or mailto:me@evil.example",
    "(https://evil.example/`code`)",
    "<https://evil.example>",
    "[click](https://evil.example)",
    "![x](https://evil.example/x.png)",
    "<img src=https://evil.example onerror=alert(1)>",
    "HTTPS://EVIL.EXAMPLE/ and ftp://evil.example",
    r"\https://evil.example \` `https://evil.example`",
    "``https://evil.example``",
]


@pytest.mark.parametrize("text", LINKS)
def test_an_address_of_a_server_is_code_and_no_link(text: str) -> None:
    shown = plain(text)
    outside = re.sub(r"\\.|`[^`]*`", "", shown)
    assert "://" not in outside and "www." not in outside.lower() and "@" not in outside
    assert not re.search(r"[\[\]<>|*`]", outside)


def test_a_cell_of_a_table_is_short_and_one_cell() -> None:
    frame = pd.DataFrame(
        {
            "problem": [MEGABYTES.replace("\ud800", ""), "a|b https://evil.example/a|b\n| c |"],
            "day": dt.date(2022, 5, 1),
        }
    )
    rows = markdown(frame).value.splitlines()
    assert len(rows) == 4
    assert all(len(row) < 1000 for row in rows)
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 3 for row in rows)


SECRET = "hunter2-of-the-operator"
LOGIN = f"https://me:{SECRET}@127.0.0.1:1/path"
KEY = f"https://127.0.0.1:1/path?key={SECRET}"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        *(
            (variable, value)
            for value in (LOGIN, KEY)
            for variable in (
                "CROP_ASSETS_CDL_INDEX",
                "CROP_ASSETS_STAC_URL",
                "CROP_ASSETS_GRANULE_SEARCH",
                "CROP_ASSETS_IPFS_STAC_URL",
                "CROP_ASSETS_KUBO_API",
                "CROP_ASSETS_IPFS_GATEWAYS",
                "CROP_ASSETS_CDL",
                "CROP_ASSETS_TILE_GRID",
                "CROP_ASSETS_BANDS",
            )
        ),
        ("CROP_ASSETS_DATA", f"s3://me:{SECRET}@bucket/data"),
        ("CROP_ASSETS_IPFS_GATEWAYS", f"https://ipfs.io,http://127.0.0.1/#{SECRET}"),
        ("CROP_ASSETS_STAC_URL", f"ftp://me:{SECRET}@127.0.0.1/"),
        ("CROP_ASSETS_GRANULE_SEARCH", f"http://me:{SECRET}\\@127.0.0.1/"),
    ],
)
def test_an_address_with_a_secret_is_refused_at_load(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(InputError, match=f"^{variable}: ") as refused:
        environment_resources()
    assert SECRET not in str(refused.value)
    assert refused.value.__cause__ is None and refused.value.__suppress_context__


def test_a_store_with_a_login_is_refused_without_repeating_it() -> None:
    with pytest.raises(ValueError, match="it has a user name") as refused:
        DatasetStore(root=f"s3://me:{SECRET}@bucket/data")
    assert SECRET not in str(refused.value)
