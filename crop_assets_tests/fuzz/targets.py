"""Every reader of bytes from outside as a function of these bytes, and a sound input for each.

A target returns, or raises one of `OWN`: the project's own errors, which say what is wrong. Anything else that leaves
it is a bug. `crop_assets_tests.fuzz.mutations` spoils the sound inputs; a fuzzer may start from them as well.
"""

import atexit
import contextlib
import functools
import gzip
import io
import itertools
import json
import os
import shutil
import socket
import struct
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import rasterio
import shapely
import yaml
from affine import Affine
from rasterio.errors import RasterioError
from rasterio.windows import Window

from crop_assets.aoi_map.area import load_area
from crop_assets.aoi_map.drawing import read_drawing
from crop_assets.automation.cursors import DatasetCursor, ReleaseCursor, read_cursor
from crop_assets.automation.years import year_state
from crop_assets.bands.catalogue import catalogue_items
from crop_assets.bands.cid_list import parse_cid_list
from crop_assets.bands.cids import cid_rows
from crop_assets.bands.files import check_band
from crop_assets.chip_grid import ORIGIN_X, ORIGIN_Y, chip_id
from crop_assets.chips.rasters import BlockReader
from crop_assets.dataset.splits import parse_ids, split_by_files
from crop_assets.errors import InputError
from crop_assets.graph.lineage import Lineage
from crop_assets.hls import HLS_SIZE, hls_bounds
from crop_assets.labels.aoi import aoi_checksum, filter_aoi, inside_aoi, read_aoi
from crop_assets.labels.cdl import check_cdl
from crop_assets.labels.release import obtain_raster
from crop_assets.labels.sampling import read_chip_geojson
from crop_assets.layout import Layout
from crop_assets.plan import make_plan
from crop_assets.recipe import DatasetRecipe, load_recipe
from crop_assets.scenes.archive import TileQuestion, tile_answer
from crop_assets.scenes.granules import document_url, parse_document, scene_rows, unusable
from crop_assets.scenes.scene_list import listed_rows, parse_scene_list, scenes_of_tile
from crop_assets.scenes.selection import listed_scenes
from crop_assets.schemas import SCENE_METADATA, SCHEMAS, SELECTED_SCENES
from crop_assets.tiles.grid import read_tile_grid
from crop_assets.verify import dataset_tables, verify_tables
from crop_assets_tests.forged import forge, table_of
from crop_assets_tests.resources.footers import as_json, footer_of, of_json, with_footer, written
from crop_assets_tests.scenes.cmr import SEASON, Cmr, scene_ids
from resources.addresses import read as read_address
from resources.archives import members, unpack
from resources.cdl import CdlReleases, archive_links, same_release
from resources.earthdata import LpDaac
from resources.errors import ResourceError
from resources.ipfs.car import car_of, read_car
from resources.ipfs.cid import Cid, cid_from_href
from resources.ipfs.directory import find
from resources.ipfs.leaves import IpfsLeaves
from resources.ipfs.retrieve import Retrieval
from resources.ipfs.unixfs import FileDag, decode_file_node
from resources.pace import deadline
from resources.parquet import Parquet
from resources.parts import Parts
from resources.response_cache import read_response
from resources.sources import FileRequest
from resources.stac import IpfsStac, SceneStac
from resources.store import DatasetStore
from resources.tables import Column, TableSchema, read_table, stored_table, write_table
from resources.tiff import read_layout, tiff_pieces
from resources.wkb import read_wkb
from resources.words import document, server_words

OWN = (ResourceError, InputError)
_WKT = (
    "GEOMETRYCOLLECTION Z (POLYGON Z ((0 0 1, 4 0 1, 4 4 1, 0 0 1)), POINT Z (1 2 3), GEOMETRYCOLLECTION Z ("
    "MULTIPOINT Z ((1 2 3), (4 5 6)), MULTIPOLYGON Z (((0 0 1, 4 0 1, 4 4 1, 0 0 1)))))"
)

TILE = "14SMG"
BBOX = (-99.0, 38.0, -98.0, 39.0)
_SCHEMA = TableSchema(
    (Column("tile", pa.string(), ""), Column("bands", pa.list_(pa.string()), "")), "EPSG:4326"
)


@dataclass(frozen=True)
class Target:
    """A reader, and sound inputs for it.

    `is_json` where what matters is the values in a JSON document; `is_slow` where it takes hundredths of a second.
    """

    read: Callable[[bytes], None]
    seeds: Callable[[], Iterable[bytes]]
    is_json: bool
    is_slow: bool


TARGETS: dict[str, Target] = {}


def _target(
    *seeds: Callable[[], bytes], is_json: bool = False, is_slow: bool = False
) -> Callable[[Callable[[bytes], None]], Callable[[bytes], None]]:
    def register(read: Callable[[bytes], None]) -> Callable[[bytes], None]:
        TARGETS[read.__name__] = Target(read, lambda: [seed() for seed in seeds], is_json, is_slow)
        return read

    return register


@functools.cache
def _folder() -> Path:
    """A folder of this process."""
    folder = Path(tempfile.mkdtemp(prefix="crop-assets-fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _file(name: str, data: bytes) -> Path:
    path = _folder() / name
    path.write_bytes(data)
    return path


@functools.cache
def _store() -> DatasetStore:
    return DatasetStore(root=str(_folder() / "store"))


def _silent(_: object) -> None:
    pass


# Catalogues


class _Answers(ThreadingHTTPServer):
    """Gives one answer to searches, and one to all else."""

    daemon_threads = True
    landing = b""
    answer = b""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Answers

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        data = self.server.answer if "search" in self.path else self.server.landing
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass


@functools.cache
def _server() -> _Answers:
    server = _Answers(("127.0.0.1", 0), _Handler)
    server.landing = json.dumps(_landing(server.address)).encode()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def _landing(address: str) -> dict[str, Any]:
    return {
        "type": "Catalog",
        "id": "LPCLOUD",
        "stac_version": "1.0.0",
        "description": "",
        "conformsTo": [
            "https://api.stacspec.org/v1.0.0/core",
            "https://api.stacspec.org/v1.0.0/item-search",
        ],
        "links": [
            {
                "rel": "search",
                "href": f"{address}/stac/search",
                "type": "application/geo+json",
                "method": "POST",
            }
        ],
    }


@functools.cache
def _cmr() -> Cmr:
    return Cmr({TILE: BBOX[:2]}, 30)


def _names() -> list[str]:
    return scene_ids(TILE, 30)[8:11]


def _item(name: str) -> dict[str, Any]:
    item = json.loads(json.dumps(_cmr().item(name)))
    item["properties"]["spatial_coverage"] = 95
    for band, asset in item["assets"].items():
        cid = str(Cid.of(band.encode(), "raw"))
        asset |= {"alternate": {"IPFS": {"href": f"ipfs://{cid}", "cid": cid}}, "file:size": 20_000_000}
    return dict(item)


def _page() -> bytes:
    items = [_item(name) for name in _names()]
    page = {"type": "FeatureCollection", "features": items, "links": [], "numberMatched": len(items)}
    return json.dumps(page).encode()


def _records() -> bytes:
    records = [_cmr().record(name) for name in _names()]
    return json.dumps({"hits": len(records), "took": 3, "items": records}).encode()


def _use(items: list[dict[str, Any]], documents: dict[str, str]) -> None:
    """What the graph makes of items."""
    for item in items:
        if not unusable(item):
            document_url(item)
    rows = scene_rows(items, documents, TILE, ["S30"], [shapely.box(*BBOX)])
    if len(rows):
        scenes = rows.assign(position="peak")
        cid_rows(scenes, items, lambda cid, _: cid)


@functools.cache
def _stac(**changes: Any) -> SceneStac:
    server = _server()
    settings = {"attempts": 1, "timeout_seconds": 10, "requests_per_second": 1e6}
    return SceneStac(
        **(settings | {"url": f"{server.address}/stac", "metadata_hosts": ["127.0.0.1"]} | changes)
    )


@_target(_page, is_json=True, is_slow=True)
def stac_page(data: bytes) -> None:
    """A page of a STAC API's search."""
    _server().answer = data
    _use(_stac().search(BBOX, *SEASON), {})


@_target(lambda: json.dumps(_landing("http://127.0.0.1:1")).encode(), is_json=True, is_slow=True)
def stac_landing(data: bytes) -> None:
    """The landing page of a STAC API."""
    server = _server()
    server.answer, good = _page(), server.landing
    server.landing = data
    try:
        _stac.__wrapped__().search(BBOX, *SEASON)
    finally:
        server.landing = good


@_target(_page, is_json=True, is_slow=True)
def stac_file(data: bytes) -> None:
    """An ItemCollection in a file, for scenes and for CIDs."""
    path = _file("items.json", data)
    _use(SceneStac(url=str(path)).search(BBOX, *SEASON), {})
    found = catalogue_items(_names(), TILE, IpfsStac(url=str(path)), _store(), _silent)
    scenes = scene_rows([_item(name) for name in _names()], {}, TILE, ["S30"], [])
    cid_rows(scenes.assign(position="peak"), found, lambda cid, _: cid)


@_target(_records, is_json=True, is_slow=True)
def granule_search(data: bytes) -> None:
    """The answer of a granule search."""
    server = _server()
    server.answer = data
    stac = _stac(granule_search=f"{server.address}/granule-search")
    for record in stac.granules("HLSS30", TILE, *SEASON) or []:
        unusable({"id": str(record["umm"]["GranuleUR"])})
        parse_document(json.dumps(record).encode())


def _echo() -> bytes:
    return (
        b"<Granule><GranuleUR>HLS.S30.T14SMG.2022111T172020.v2.0</GranuleUR><AdditionalAttributes>"
        b"<AdditionalAttribute><Name>CLOUD_COVERAGE</Name><Values><Value>13</Value></Values></AdditionalAttribute>"
        b"</AdditionalAttributes><DataGranule><DataGranuleSizeInBytes>230000000</DataGranuleSizeInBytes></DataGranule>"
        b"<OnlineAccessURLs><OnlineAccessURL><URL>s3://lp-prod/a.tif</URL></OnlineAccessURL></OnlineAccessURLs></Granule>"
    )


@_target(lambda: json.dumps(_cmr().record(_names()[0])).encode(), is_json=True)
def granule_json(data: bytes) -> None:
    """A granule's metadata document, as an answer and as it is kept as text."""
    scene = _item(_names()[0])
    scene["properties"].pop("eo:cloud_cover")
    _use([scene], {scene["id"]: data.decode(errors="replace")})
    parse_document(data)


@_target(_echo)
def granule_xml(data: bytes) -> None:
    """A granule's metadata document in ECHO-10."""
    granule_json(data)


@_target(
    lambda: gzip.compress(
        json.dumps({"items": [_item(_names()[0])], "documents": {_names()[0]: _echo().decode()}}).encode()
    )
)
def kept_answer(data: bytes) -> None:
    """An answer that was kept, damaged on its disk."""
    store = _store()
    store.write_bytes("answers/kept.json.gz", data)
    answer = read_response(store, "answers/kept.json.gz", lambda _: True, _silent)
    assert answer is None or isinstance(answer, dict)


@_target(
    lambda: json.dumps(
        {"items": [_item(_names()[0])], "documents": {_names()[0]: _echo().decode()}}
    ).encode(),
    is_json=True,
    is_slow=True,
)
def kept_values(data: bytes) -> None:
    """What is in an answer that was kept."""
    store, stac = _store(), _stac(granule_search=f"{_server().address}/none")
    _server().answer = _page()
    question = TileQuestion(TILE, BBOX, *SEASON, ["S30"])
    kept = [name for name in store.names("answers") if name.startswith(f"answers/{TILE}-2022")]
    if not kept:
        tile_answer(question, stac, store, _silent)
        kept = [name for name in store.names("answers") if name.startswith(f"answers/{TILE}-2022")]
    store.write_bytes(kept[0], gzip.compress(data, 1))
    answer = tile_answer(question, stac, store, _silent)
    _use(answer.items, answer.documents)


class _Raw:
    """A server that sends the same bytes to whoever connects, and closes the connection."""

    def __init__(self) -> None:
        self.answer = b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            with connection, contextlib.suppress(OSError):
                connection.settimeout(10)
                request = b""
                while b"\r\n\r\n" not in request and (piece := connection.recv(65_536)):
                    request += piece
                connection.sendall(self.answer)


@functools.cache
def _again() -> SceneStac:
    return _stac(attempts=2)


@functools.cache
def _raw() -> _Raw:
    return _Raw()


def _http() -> bytes:
    page = b'<html><a href="2022_30m_cdls.zip">2022</a></html>'
    return (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nLast-Modified: Tue, 14 Feb 2023 12:00:00 GMT\r\n"
        b'ETag: "5f3-abc"\r\nRetry-After: 1\r\nContent-Length: %d\r\n\r\n%s' % (len(page), page)
    )


def _moved() -> bytes:
    return b"HTTP/1.1 302 Found\r\nLocation: https://example.invalid/a\r\nContent-Length: 0\r\n\r\n"


@_target(_http, _moved, lambda: _http().replace(b"200 OK", b"503 Busy"), is_slow=True)
def http_answer(data: bytes) -> None:
    """An answer as it comes over the line: to the index of releases, to a document and to a file."""
    server = _raw()
    server.answer = data
    for ask in (
        CdlReleases(
            source=str(_folder() / "none"), index=f"{server.address}/a/", attempts=1, timeout=5
        ).releases,
        lambda: _stac().document(f"{server.address}/a"),
        lambda: _again().document(f"{server.address}/a"),
        lambda: LpDaac(token="t", hosts=["127.0.0.1"], timeout_seconds=5).fetch(
            FileRequest("a/a.tif", "", f"{server.address}/a.tif", 1 << 20),
            _folder() / "b",
            _store().partials,
            _silent,
        ),
    ):
        # a pause that is asked for is not waited for
        with contextlib.suppress(*OWN), deadline(time.monotonic() + 0.2):
            ask()


# Labels and areas


@_target(
    lambda: (
        b'<html><base href="/Release/"><a href="datasets/2022_30m_cdls.zip">2022</a>'
        b'<a href="https://www.nass.usda.gov/x/2021_30m_cdls.zip?a=b#c">2021</a></html>'
    )
)
def index_page(data: bytes) -> None:
    """The page that lists the CDL releases."""
    archive_links(data.decode(errors="replace"), "https://www.nass.usda.gov/Research_and_Science/")


@_target(lambda: b'Tue, 14 Feb 2023 12:00:00 GMT 2041234567 "5f3-abc"')
def release_version(data: bytes) -> None:
    """What tells one release from another."""
    text = data.decode(errors="replace")
    same_release(text, 'Tue, 14 Feb 2023 12:00:00 GMT 2041234567 "5f3-abc"')
    same_release("-".join(text.split()), text)


def _raster(size: int, **profile: Any) -> bytes:
    path = _folder() / "made.tif"
    place = Affine(30, 0, ORIGIN_X + 67_200, 0, -30, ORIGIN_Y - 67_200)
    settings = {
        "dtype": "uint8",
        "crs": "EPSG:5070",
        "transform": place,
        "compress": "deflate",
        "tiled": True,
    }
    settings |= {"blockxsize": 64, "blockysize": 64, "nodata": 0} | profile
    with rasterio.open(path, "w", driver="GTiff", count=1, width=size, height=size, **settings) as raster:
        raster.write(np.full((1, size, size), 5, settings["dtype"]))
    return path.read_bytes()


@_target(
    lambda: b'[{"release": "a.zip", "version": "1 2", "archive_sha256": "0", "raster_sha256": "1"}]',
    is_json=True,
)
def release_note(data: bytes) -> None:
    """What is noted of the release that a raster was made of."""
    folder = _folder() / "cdl"
    if not folder.is_dir():
        folder.mkdir()
        (folder / "2022_30m_cdls.tif").write_bytes(_raster(64))
    (folder / "2022_30m_cdls.release.json").write_bytes(data)
    with ThreadPoolExecutor(1) as pool:
        obtain_raster(CdlReleases(source=str(folder), index=""), 2022, pool, _silent, _silent)


@_target(lambda: _raster(128))
def cdl_raster(data: bytes) -> None:
    """A CDL raster of a person's own."""
    check_cdl(_file("2022_30m_cdls.tif", data))


def _mosaic() -> bytes:
    rectangle = 'xOff="0" yOff="0" xSize="128" ySize="128"'
    return (
        '<VRTDataset rasterXSize="256" rasterYSize="128"><SRS dataAxisToSRSAxisMapping="1,2">EPSG:5070</SRS>'
        f"<GeoTransform>{ORIGIN_X}, 30, 0, {ORIGIN_Y}, 0, -30</GeoTransform>"
        '<VRTRasterBand dataType="Byte" band="1"><NoDataValue>0</NoDataValue><ColorInterp>Palette</ColorInterp>'
        '<ComplexSource><SourceFilename relativeToVRT="1">part.tif</SourceFilename><SourceBand>1</SourceBand>'
        f"<SrcRect {rectangle}/><DstRect {rectangle}/><NODATA>0</NODATA></ComplexSource>"
        "</VRTRasterBand></VRTDataset>"
    ).encode()


@_target(_mosaic)
def cdl_mosaic(data: bytes) -> None:
    """A .vrt of CDL rasters."""
    if not (_folder() / "part.tif").exists():
        _file("part.tif", _raster(128))
    check_cdl(_file("2022_30m_cdls.vrt", data))


@functools.cache
def _band() -> bytes:
    """A band file in which nothing was seen, so that no block is stored."""
    path, bounds = _folder() / "band.tif", hls_bounds(TILE)
    settings = {"crs": f"EPSG:{bounds.epsg}", "transform": Affine(30, 0, bounds.left, 0, -30, bounds.top)}
    settings |= {"dtype": "int16", "compress": "deflate", "sparse_ok": True, "tiled": True, "nodata": -9999}
    size = {"width": HLS_SIZE, "height": HLS_SIZE, "blockxsize": 512, "blockysize": 512}
    with rasterio.open(path, "w", driver="GTiff", count=1, **size, **settings):
        pass
    return path.read_bytes()


def _scattered() -> bytes:
    """A striped file of which the directory is at the end."""
    data = _raster(128, tiled=False, blockysize=16)
    (at,) = struct.unpack_from("<I", data, 4)
    (entries,) = struct.unpack_from("<H", data, at)
    directory = data[at : at + 2 + 12 * entries + 4]
    return data[:4] + struct.pack("<I", len(data)) + data[8:] + directory


@_target(_band, lambda: _raster(128, BIGTIFF="YES", predictor=2), _scattered)
def tiff_layout(data: bytes) -> None:
    """The directory of a band file of which little was fetched. Blocks are where it has them, and are cut out there."""
    layout = read_layout(lambda start, stop: data[start:stop], len(data))
    places = list(zip(layout.offsets.tolist(), layout.counts.tolist(), strict=True))
    assert all(0 <= offset <= offset + count <= len(data) for offset, count in places)
    assert sum(count for _, count in places) <= len(data)
    blocks = [data[offset : offset + count] or None for offset, count in places]
    copy = b"".join(tiff_pieces(layout.form, blocks))
    again = read_layout(lambda start, stop: copy[start:stop], len(copy))
    assert (again.form, again.counts.tolist()) == (layout.form, layout.counts.tolist())


@_target(_band, is_slow=True)
def band_raster(data: bytes) -> None:
    """A band file, verified by its CID and not."""
    path = _file("band.B02.tif", data)
    for every_block in (False, True):
        with contextlib.suppress(*OWN):
            check_band(path, "B02", TILE, every_block)


@_target(lambda: _raster(128, predictor=2), lambda: _raster(128, compress="zstd", dtype="int16"), _scattered)
def band_pixels(data: bytes) -> None:
    """A band file that was changed in the store after it was checked."""
    with (
        contextlib.suppress(RasterioError),
        contextlib.closing(BlockReader(_file("a.tif", data), {})) as reader,
    ):
        if reader.grid is not None:
            height, width = reader.grid.shape
            reader.read(Window(0, 0, min(width, 512), min(height, 512)))


def _zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("2022_30m_cdls.tif", b"II*\0" + bytes(3_000))
        archive.writestr("metadata.htm", "<html>")
    return buffer.getvalue()


@_target(_zip)
def zip_archive(data: bytes) -> None:
    """The archive of a release."""
    path = _file("a.zip", data)
    for member in members(path, 1 << 20):
        unpack(path, member, _folder() / "member", _silent)


def _geojson(crs: str = "") -> bytes:
    ring = [[-98.9, 38.1], [-98.1, 38.1], [-98.1, 38.9], [-98.9, 38.9], [-98.9, 38.1]]
    feature = {
        "type": "Feature",
        "properties": {"tile": TILE, "id": chip_id(10, 10), "name": "a"},
        "geometry": {"type": "Polygon", "coordinates": [ring]},
    }
    other = {
        "type": "Feature",
        "properties": {"tile": "14SNG", "id": chip_id(10, 11)},
        "geometry": {"type": "MultiPolygon", "coordinates": [[ring]]},
    }
    member = {"crs": {"type": "name", "properties": {"name": crs}}} if crs else {}
    return json.dumps({"type": "FeatureCollection", **member, "features": [feature, other]}).encode()


def _kml() -> bytes:
    place = "-98.9,38.1,0 -98.1,38.1,0 -98.1,38.9,0 -98.9,38.1,0"
    return (
        '<?xml version="1.0" encoding="UTF-8"?><kml xmlns="http://www.opengis.net/kml/2.2"><Document><Folder>'
        f"<name>Features</name><Placemark><name>{TILE}</name><Polygon><outerBoundaryIs><LinearRing><coordinates>"
        f"{place}</coordinates></LinearRing></outerBoundaryIs></Polygon></Placemark></Folder></Document></kml>"
    ).encode()


def _frame() -> gpd.GeoDataFrame:
    return gpd.GeoDataFrame({"tile": [TILE]}, geometry=[shapely.box(-98.9, 38.1, -98.1, 38.9)], crs=4326)


@functools.cache
def _vector(suffix: str) -> bytes:
    path = _folder() / f"made{suffix}"
    if suffix == ".parquet":
        _frame().to_parquet(path)
    else:
        _frame().to_file(path)
    return path.read_bytes()


@functools.cache
def _boxes() -> gpd.GeoDataFrame:
    squares = [shapely.box(x, 1_700_000, x + 6_720, 1_706_720) for x in range(-250_000, 0, 6_720)]
    return gpd.GeoDataFrame(
        {"chip_id": [chip_id(10, 10 + at) for at in range(len(squares))]}, geometry=squares, crs=5070
    )


def _use_area(name: str, data: bytes) -> None:
    aoi = read_aoi(_file(name, data))
    aoi_checksum(aoi)
    inside_aoi(_boxes(), aoi)
    filter_aoi(_boxes(), aoi)


@_target(
    _geojson,
    lambda: _geojson("EPSG:5070"),
    lambda: _geojson("urn:ogc:def:crs:OGC:1.3:CRS84"),
    is_json=True,
    is_slow=True,
)
def area_geojson(data: bytes) -> None:
    """An area of interest as GeoJSON."""
    _use_area("area.geojson", data)


@_target(_kml)
def area_kml(data: bytes) -> None:
    """An area of interest as KML."""
    _use_area("area.kml", data)


@_target(lambda: _vector(".gpkg"))
def area_geopackage(data: bytes) -> None:
    """An area of interest as GeoPackage."""
    _use_area("area.gpkg", data)


@_target(lambda: _vector(".gpkg"))
def grid_geopackage(data: bytes) -> None:
    """A tile grid as GeoPackage."""
    read_tile_grid(_file("grid.gpkg", data))


@_target(
    lambda: shapely.to_wkb(shapely.from_wkt(_WKT)),
    lambda: shapely.to_wkb(shapely.from_wkt(_WKT), byte_order=0),
)
def binary_geometry(data: bytes) -> None:
    """A geometry of a GeoPackage or GeoParquet file."""
    read_wkb([data])


@_target(lambda: _vector(".fgb"))
def area_flatgeobuf(data: bytes) -> None:
    """An area of interest as FlatGeobuf."""
    _use_area("area.fgb", data)


_FORGED = {"tile_map": None, "candidate_chips": None, "selected_scenes": TILE, "band_cids": TILE}


def _forged() -> bytes:
    tables = {asset: table_of(asset) for asset in _FORGED} | {
        "tile_map": table_of("tile_map", tile=pa.array([TILE, ""])),
        "selected_scenes": table_of("selected_scenes", position=pa.array(["first", "middle", "last"])),
    }
    return json.dumps({asset: table.to_pydict() for asset, table in tables.items()}, default=str).encode()


def _array(asset: str, name: str, values: Any) -> pa.Array:
    """Values as the asset has them, or whatever they are."""
    schema = SCHEMAS[asset].arrow()
    if name in schema.names:
        with contextlib.suppress(ValueError, TypeError, OverflowError, pa.ArrowException):
            return pa.array(pd.Series(values, dtype=object), schema.field(name).type)
    return pa.array(values)


@_target(_forged, is_json=True, is_slow=True)
def forged_tables(data: bytes) -> None:
    """Tables with right hashes in a store, to those who look at a dataset."""
    store, layout = _store(), Layout("forged", 2022)
    try:
        for asset, tile in _FORGED.items():
            columns = dict(json.loads(data)[asset])
            table = pa.table({name: _array(asset, name, values) for name, values in columns.items()})
            forge(Path(store.root, layout.table(asset, tile)), table)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError):
        return
    except pa.ArrowException:
        return
    with ThreadPoolExecutor(1) as pool:
        verify_tables(store, dataset_tables(store, layout), pool)
    for read in (
        lambda lineage: make_plan(lineage, 20),
        lambda lineage: load_area(store, layout, lineage.recipe),
        lambda lineage: lineage.rows("tile_map", TILE),
        year_state,
    ):
        with contextlib.suppress(*OWN):
            read(Lineage(store, layout, DatasetRecipe()))


@_target(lambda: _vector(".parquet"))
def area_geoparquet(data: bytes) -> None:
    """An area of interest as GeoParquet."""
    _use_area("area.parquet", data)


@_target(_geojson, is_json=True)
def drawing(data: bytes) -> None:
    """What the AOI page sends."""
    read_drawing(data)


@_target(_geojson, is_json=True, is_slow=True)
def grid_geojson(data: bytes) -> None:
    """A tile grid as GeoJSON."""
    read_tile_grid(_file("grid.geojson", data))


@_target(_kml)
def grid_kml(data: bytes) -> None:
    """A tile grid as KML."""
    read_tile_grid(_file("grid.kml", data))


@_target(lambda: _vector(".parquet"))
def grid_geoparquet(data: bytes) -> None:
    """A tile grid as GeoParquet."""
    read_tile_grid(_file("grid.parquet", data))


@_target(_geojson, lambda: _geojson("EPSG:5070"), is_json=True, is_slow=True)
def chip_geojson(data: bytes) -> None:
    """The chip boxes that a recipe names."""
    read_chip_geojson(_file("chips.geojson", data), _boxes())


@_target(
    lambda: yaml.safe_dump(
        {"dataset": "kansas", "chips": 100, "sensors": ["S30"], "aoi": "a.geojson", "min_classes": 3}
    ).encode()
)
def recipe(data: bytes) -> None:
    """A recipe."""
    load_recipe(str(_file("recipe.yaml", data)))


# Content


def _blocks() -> FileDag:
    return FileDag(_file("content", bytes(range(256)) * 40), chunk_size=1_000, width=4)


def _car() -> bytes:
    dag = _blocks()
    return b"".join(car_of(dag.root, dag.blocks()))


@_target(_car)
def car(data: bytes) -> None:
    """A CAR, as a stream and as a file that is wanted."""
    root = _blocks().root
    path = _folder() / "partial"
    for left in _folder().glob("partial*"):
        left.unlink()
    with Retrieval(root, path, 1 << 20) as retrieval:
        retrieval.feed([data[:100], data[100:]])
    for _ in read_car([data]):
        pass


@_target(lambda: next(block for cid, block in _blocks().blocks() if cid.codec == "dag-pb"))
def block(data: bytes) -> None:
    """A block of a file's tree, or of a directory."""
    for read in (
        decode_file_node,
        lambda block: find(block, "B02.tif"),
        lambda block: find(block, "B02.tif", 8),
    ):
        try:
            read(data)
        except OWN:
            continue


@_target(lambda: b"\0" * 16 + bytes(_blocks().root))
def left_over_tree(data: bytes) -> None:
    """What an interrupted download left, changed on its disk."""
    dag = _blocks()
    path = _folder() / "partial"
    path.write_bytes(data[:16])
    path.with_name("partial.tree").write_bytes(data)
    with Retrieval(dag.root, path, 1 << 20) as retrieval:
        retrieval.feed([_car()])


def _left_over_parts() -> bytes:
    """The log of a download of which the root and the first leaf have come."""
    dag, path = _blocks(), _folder() / "parts"
    with Parts(path) as parts:
        (_, root), (_, leaf) = itertools.islice(dag.blocks(), 2)
        parts.begin(str(dag.root), dag.size, 1 << 30)
        parts.note(str(dag.root), root)
        parts.add(0, leaf)
    log = path.with_name("parts.parts").read_bytes()
    with Parts(path) as parts:
        parts.remove()
    return log


@_target(_left_over_parts)
def left_over_parts(data: bytes) -> None:
    """What an interrupted download of ranges left, changed on its disk: it is completed all the same, with the right
    bytes."""
    dag, path = _blocks(), _folder() / "partial"
    path.write_bytes(next(block for cid, block in dag.blocks() if cid.codec == "raw"))
    path.with_name("partial.parts").write_bytes(data)
    whole = b"".join(block for cid, block in dag.blocks() if cid.codec == "raw")
    with Parts(path) as parts:
        leaves = IpfsLeaves(dag.root, _Node(dag), parts, 1 << 30, _Inline(), contextlib.nullcontext)
        leaves.bring([(0, dag.size)])
        if parts.read(0, dag.size) != whole:
            raise AssertionError("other bytes than those of the CID")


class _Node:
    """A node with the blocks of one file."""

    takes_ranges = False

    def __init__(self, dag: FileDag) -> None:
        self._dag = dag

    def block(self, cid: Cid, first_seconds: float | None = None) -> bytes:
        found = self._dag.block(cid)
        assert found is not None
        return found

    def car(self, *_: object) -> Any:
        raise AssertionError("it takes no ranges")


class _Inline(Executor):
    """Does work at once, in the same thread."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


@_target(lambda: str(_blocks().root).encode(), lambda: b"QmY7Yh4UquoXHLPFo2XbhXkhBvFoPwmQUSa92pxnxjQuPU")
def cid(data: bytes) -> None:
    """A CID as text and as bytes, and in an address."""
    text = data.decode(errors="surrogateescape")

    def href(_: bytes) -> object:
        return cid_from_href(f"https://gateway.example/ipfs/{text}/a/b.tif?x=1")

    for read in (Cid.from_bytes, lambda _: Cid.parse(text), href, lambda _: cid_from_href(text)):
        try:
            read(data)
        except OWN:
            continue


@_target(lambda: b"https://data.lpdaac.earthdatacloud.nasa.gov/lp-prod-protected/HLSS30.020/a.tif?x=1")
def address(data: bytes) -> None:
    """An address in a catalogue, a page or a redirect."""
    read_address(data.decode(errors="surrogateescape"))


@_target(
    lambda: b'{"error": {"message": "not found", "details": ["see", "https://example.org/help"]}}',
    is_json=True,
)
def words(data: bytes) -> None:
    """What a server says with an error."""
    server_words(data, ("secret",))
    document(data, "application/json")


@_target(
    lambda: (
        b"machine urs.earthdata.nasa.gov login me password x\nmachine other login a password b\nmacdef m\nx\n\n"
    )
)
def login_file(data: bytes) -> None:
    """A netrc file. The host that is looked for is in none of them, so that nothing is asked."""
    path = _file("netrc", data.replace(b"urs.earthdata", b"urs.elsewhere"))
    path.chmod(0o600)
    before = os.environ.get("NETRC")
    os.environ["NETRC"] = str(path)
    source = LpDaac(hosts=["127.0.0.1"], login_host="urs.earthdata.nasa.gov")
    try:
        # nothing listens there
        source.fetch(
            FileRequest("a/a.tif", "", "http://127.0.0.1:1/a.tif", 9),
            _folder() / "b",
            _store().partials,
            _silent,
        )
    finally:
        if before is None:
            del os.environ["NETRC"]
        else:
            os.environ["NETRC"] = before


# The store


@functools.cache
def _table() -> bytes:
    frame = gpd.GeoDataFrame(
        {"tile": [TILE, "14SNG"], "bands": [["B02"], []]}, geometry=[shapely.Point(1, 2)] * 2, crs=4326
    )
    record = {"identity": "x", "files": {"a": "b"}, "fields": {"chips": 3}, "upstream": {"tile_map": "y"}}
    write_table(_store(), "whole.parquet", frame, _SCHEMA, record)
    return _store().read_bytes("whole.parquet")


@_target(_table)
def table(data: bytes) -> None:
    """A table of the store."""
    _store().write_bytes("table.parquet", data)
    stored = stored_table(_store(), "table.parquet")
    assert stored is not None
    assert isinstance(read_table(_store(), "table.parquet", _SCHEMA), pd.DataFrame)


@_target(lambda: _vector(".parquet"))
def parquet(data: bytes) -> None:
    """A Parquet file."""
    Parquet(data).frame()


def _repeating() -> bytes:
    """A file of texts, each many times the same, and of lists of them."""
    same = pa.DictionaryArray.from_arrays(pa.array([0] * 3_000, pa.int32()), pa.array(["x" * 1_000]))
    lists = pa.ListArray.from_arrays(pa.array(range(3_001), pa.int32()), same)
    out = io.BytesIO()
    pq.write_table(pa.table({"a": same, "b": lists, "c": range(3_000)}), out, compression="zstd")
    return out.getvalue()


@_target(lambda: json.dumps(as_json(footer_of(_repeating())[1])).encode(), is_json=True)
def parquet_footer(data: bytes) -> None:
    """The footer of a Parquet file that takes 30 MB to read: with no other one it takes more than it may."""
    try:
        footer = written(of_json(json.loads(data)))
    except (ValueError, RecursionError):
        return
    file = with_footer(footer_of(_repeating())[0], footer)
    usual, most = pa.default_memory_pool(), 8 << 20
    counted = pa.proxy_memory_pool(usual)
    pa.set_memory_pool(counted)
    try:
        Parquet(file).frame(most=most)
    finally:
        pa.set_memory_pool(usual)
        assert counted.max_memory() <= most


@_target(
    lambda: json.dumps(
        {
            "identity": "x",
            "files": {"a": "b"},
            "fields": {"chips": 3},
            "upstream": {"tile_map": "y", "tile_grid": "z"},
            "tile_upstream": ["tile_map"],
            "tiles": {"chips": {TILE: "v"}},
        }
    ).encode(),
    is_json=True,
    is_slow=True,
)
def provenance(data: bytes) -> None:
    """What a table records of how it was made."""
    layout = Layout("small", 2022)
    try:
        record = dict(json.loads(data))
    except (ValueError, TypeError, RecursionError):
        return
    write_table(_store(), layout.table("splits"), _SCHEMA.empty(), _SCHEMA, record)
    Lineage(_store(), layout, DatasetRecipe()).stale_because("splits", None)


@_target(
    lambda: (
        b'{"place": "data/cdl https://x", "versions": {"2022": "1 2"}, "looked": 1.5e9, "problem": "late"}'
    ),
    lambda: b'{"seen": ["a", 1], "told": "x", "asked": {"2022": {"tiles": "a", "dataset": "b"}}, "count": 2}',
    is_json=True,
)
def cursor(data: bytes) -> None:
    """The cursor of a sensor."""
    text = data.decode(errors="replace")
    for kind in (ReleaseCursor, DatasetCursor):
        read_cursor(text, kind)


@_target(lambda: b"ids\n257_266\n003_1000\n", lambda: b'"id","tile"\r\n"chip_257_266","13TDE"\r\n')
def id_list(data: bytes) -> None:
    """A list of ids of a published split."""
    ids = parse_ids(data.decode(errors="replace"), "ids.csv")
    split_by_files(["chip_257_266"], {"train": ids, "validation": ids[1:]})


_SCENES = [f"HLS.S30.T14SMG.2022{day}T172221.v2.0" for day in ("072", "162", "262")]


@_target(
    lambda: "\n".join(["title_id,tile_id,cloud_cover", *(f"{one},T14SMG,1" for one in _SCENES)]).encode(),
    lambda: "\n".join(
        ["http_links,date", *(f"\"{{'B02': 'https://h/{one}/x.tif'}}\"," for one in _SCENES)]
    ).encode(),
)
def scene_list(data: bytes) -> None:
    """A list of the scenes to use."""
    found = scenes_of_tile(parse_scene_list(data, "scenes.csv"), TILE, 2022, "scenes.csv")
    rows = listed_rows(found) if found else SCENE_METADATA.empty()
    SELECTED_SCENES.require_valid(listed_scenes(rows, "scenes.csv"))


_CID_ENTRY = {
    "filename": f"{_SCENES[0]}.B02.tif",
    "cid": "bafybeib77f7bspur2pekd4nbodseysl2cdf5zsm4smtp25pi625smg3hzy",
}


@_target(
    lambda: json.dumps([_CID_ENTRY]).encode(),
    lambda: json.dumps({_SCENES[0]: [_CID_ENTRY | {"band_name": "B02"}]}).encode(),
    is_json=True,
)
def cid_list(data: bytes) -> None:
    """A list of the CIDs of files."""
    for files in parse_cid_list(data, "cids.json").values():
        assert all(Cid.parse(cid) for cid in files.values())


@_target(lambda: b"training_datasets/small/2022/tables/cdl.parquet")
def store_name(data: bytes) -> None:
    """A name of a file, as a table has it."""
    name = data.decode(errors="surrogateescape")
    _store().exists(name)
    # the system's own words for what is not there
    with contextlib.suppress(FileNotFoundError):
        _store().read_bytes(name)
