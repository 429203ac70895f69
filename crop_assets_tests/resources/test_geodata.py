"""Files that are something else than they are called, and lead to other files and hosts."""

import html
import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pyogrio
import pyproj
import pytest
import rasterio
import shapely
from rasterio.errors import RasterioError

import resources.geodata
import resources.geojson
import resources.vectors
from crop_assets.bands.files import check_band
from crop_assets.demo.landscape import write_landscape
from crop_assets.errors import InputError
from crop_assets.hls import HLS_SIZE, hls_bounds
from crop_assets.labels.aoi import read_aoi
from crop_assets.labels.cdl import check_cdl
from crop_assets.labels.sampling import read_chip_geojson
from crop_assets.tiles.grid import read_tile_grid
from resources.cdl import raster_files
from resources.errors import IntegrityError, NotFoundError
from resources.geodata import create_raster, open_geotiff, open_raster
from resources.mosaics import plain_name
from resources.vectors import open_vector

SECRET = bytes(range(256)) * 256
PLACE = rasterio.Affine(30, 0, -2356095, 0, -30, 3172605)
REMOTE_RASTERS = (
    "EEDA",
    "EEDAI",
    "GTI",
    "HTTP",
    "MRF",
    "PLMOSAIC",
    "STACIT",
    "STACTA",
    "WCS",
    "WFS",
    "WMS",
    "WMTS",
)
REMOTE_VECTORS = (
    "CSW",
    "Carto",
    "Elasticsearch",
    "GDALG",
    "GML",
    "HTTP",
    "NGW",
    "OAPIF",
    "OGCAPI",
    "OGR_VRT",
    "WFS",
)


@dataclass(frozen=True)
class Outside:
    """What no file may lead to. The host has a process of its own, for GDAL does not let Python work meanwhile."""

    url: str
    asked: Path
    secret: Path

    def untouched(self) -> bool:
        return self.asked.read_text() == "" and self.secret.read_bytes() == SECRET


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    folder = tmp_path_factory.mktemp("host")
    log = folder / "log"
    program = (
        "import http.server, sys\n"
        "class Handler(http.server.SimpleHTTPRequestHandler):\n"
        "    def log_request(self, *args):\n"
        "        with open(sys.argv[1], 'a') as log: log.write(self.requestline + '\\n')\n"
        "server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)\n"
        "print(server.server_port, flush=True)\n"
        "server.serve_forever()\n"
    )
    log.touch()
    command = [sys.executable, "-c", program, str(log)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=folder, text=True) as process:
        assert process.stdout
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}", log
        process.terminate()


@pytest.fixture
def outside(host: tuple[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Outside:
    url, log = host
    log.write_text("")
    secret = tmp_path_factory.mktemp("home") / "secret.bin"
    secret.write_bytes(SECRET)
    # each test another name, as GDAL remembers which are not there
    return Outside(f"{url}/{time.monotonic_ns()}", log, secret)


def vrt(source: str, kind: str = "SimpleSource", relative: int = 0, band: str = "", more: str = "") -> str:
    return (
        '<VRTDataset rasterXSize="224" rasterYSize="224"><GeoTransform>0,30,0,0,0,-30</GeoTransform>'
        f'<VRTRasterBand dataType="Byte" band="1"{band}>{more}<{kind}><SourceFilename relativeToVRT="{relative}">'
        f"{source}</SourceFilename><SourceBand>1</SourceBand></{kind}></VRTRasterBand></VRTDataset>"
    )


RASTERS: dict[str, Callable[[Outside], str]] = {
    "MRF of a host": lambda to: (
        f"<MRF_META><CachedSource><Source>/vsicurl/{to.url}/a.tif</Source></CachedSource>"
        '<Raster><Size x="224" y="224" c="1"/><PageSize x="224" y="224" c="1"/></Raster></MRF_META>'
    ),
    "MRF that caches into a file": lambda to: (
        f"<MRF_META><CachedSource><Source>{to.secret}</Source></CachedSource>"
        '<Raster><Size x="256" y="256" c="1"/><PageSize x="256" y="256" c="1"/><Compression>NONE</Compression>'
        f"<DataFile>{to.secret}</DataFile><IndexFile>{to.secret}.idx</IndexFile></Raster></MRF_META>"
    ),
    "MRF of a file": lambda to: (
        '<MRF_META><Raster><Size x="256" y="256" c="1"/><PageSize x="256" y="256" c="1"/>'
        f"<Compression>NONE</Compression><DataFile>{to.secret}</DataFile></Raster></MRF_META>"
    ),
    "VRT of a host": lambda to: vrt(f"/vsicurl/{to.url}/a.tif"),
    "VRT of an object store": lambda to: vrt("/vsis3/bucket/key.tif"),
    "VRT of raw bytes": lambda to: (
        '<VRTDataset rasterXSize="256" rasterYSize="256"><VRTRasterBand dataType="Byte" band="1" '
        f'subClass="VRTRawRasterBand"><SourceFilename relativeToVRT="0">{to.secret}</SourceFilename>'
        "<ImageOffset>0</ImageOffset><PixelOffset>1</PixelOffset><LineOffset>256</LineOffset>"
        "</VRTRasterBand></VRTDataset>"
    ),
    "WMS": lambda to: (
        f'<GDAL_WMS><Service name="TMS"><ServerUrl>{to.url}/${{z}}/${{x}}/${{y}}.png</ServerUrl></Service>'
        "<DataWindow><UpperLeftX>0</UpperLeftX><UpperLeftY>6720</UpperLeftY><LowerRightX>6720</LowerRightX>"
        "<LowerRightY>0</LowerRightY><SizeX>224</SizeX><SizeY>224</SizeY><TileLevel>0</TileLevel></DataWindow>"
        "<BandsCount>1</BandsCount></GDAL_WMS>"
    ),
    "WMTS": lambda to: f"<GDAL_WMTS><GetCapabilitiesUrl>{to.url}/wmts</GetCapabilitiesUrl></GDAL_WMTS>",
    "WCS": lambda to: (
        f"<WCS_GDAL><ServiceURL>{to.url}/wcs?</ServiceURL><CoverageName>a</CoverageName></WCS_GDAL>"
    ),
    "tile index": lambda to: (
        f"<GDALTileIndexDataset><IndexDataset>{to.url}/a.gpkg</IndexDataset></GDALTileIndexDataset>"
    ),
    "STAC items": lambda to: (
        '{"type": "FeatureCollection", "stac_version": "1.0.0", "features": [{"type": "Feature", '
        f'"stac_version": "1.0.0", "properties": {{}}, "assets": {{"a": {{"href": "{to.url}/a.tif"}}}}}}]}}'
    ),
}


@pytest.mark.parametrize("kind", RASTERS)
def test_a_description_is_no_band_cdl_or_product(tmp_path: Path, outside: Outside, kind: str) -> None:
    text = RASTERS[kind](outside)
    for name in ("HLS.S30.T14SMG.2022072T172020.v2.0.B02.tif", "2022_30m_cdls.tif", "2022_30m_cdls.img"):
        path = tmp_path / name
        path.write_text(text)
        with pytest.raises(IntegrityError):
            check_band(path, "B02", "14SMG")
        with pytest.raises(InputError):
            check_cdl(path)
        with pytest.raises(RasterioError):
            open_geotiff(path)
        with pytest.raises(RasterioError):
            open_raster(path)
        assert raster_files(path) == [path]
    assert outside.untouched()
    assert {path.name for path in outside.secret.parent.iterdir()} == {outside.secret.name}


@pytest.mark.parametrize("kind", ["a host", "an object store", "a description beside it", "an .aux.xml"])
def test_a_geotiff_does_not_lead_to_its_overviews(tmp_path: Path, outside: Outside, kind: str) -> None:
    path = tmp_path / "2022_30m_cdls.tif"
    write_landscape(path, np.ones((448, 448), np.uint8), 232, 310)
    (tmp_path / "overviews.tif").write_text(RASTERS["VRT of raw bytes"](outside))
    to = {
        "an object store": "/vsis3/bucket/overviews.tif",
        "a description beside it": str(tmp_path / "overviews.tif"),
    }.get(kind, f"/vsicurl/{outside.url}/overviews.tif")
    if kind == "an .aux.xml":
        path.with_name(f"{path.name}.aux.xml").write_text(
            f'<PAMDataset><Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">{to}</MDI></Metadata></PAMDataset>'
        )
        # what lies beside a file of our own is not looked at
        with open_geotiff(path) as raster:
            assert raster.overviews(1) == []
            assert raster.files == [str(path)]
    else:
        with rasterio.open(path, "r+") as raster:
            raster.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=to)
        with pytest.raises(RasterioError, match="has its overviews in a file that its metadata name"):
            open_geotiff(path)
    with pytest.raises(InputError, match="has its overviews in a file that its metadata name"):
        check_cdl(path)
    assert raster_files(path) == [path]
    assert outside.untouched()


def test_a_raster_is_what_its_suffix_says(tmp_path: Path) -> None:
    tif = tmp_path / "2022_30m_cdls.tif"
    write_landscape(tif, np.ones((448, 448), np.uint8), 232, 310)
    with (
        open_raster(tif) as raster,
        create_raster(
            tmp_path / "2022_30m_cdls.img",
            "HFA",
            width=448,
            height=448,
            count=1,
            dtype="uint8",
            crs=raster.crs,
            transform=raster.transform,
        ) as target,
    ):
        target.write(raster.read())
    img = tmp_path / "2022_30m_cdls.img"
    assert check_cdl(img).width == check_cdl(tif).width == 448
    for path, other in ((tif, "2021_30m_cdls.img"), (img, "2021_30m_cdls.tif"), (tif, "2021_30m_cdls.vrt")):
        with pytest.raises(InputError):
            check_cdl(shutil.copy(path, tmp_path / other))
    with pytest.raises(InputError, match=r"is not a .tif.* gdal_translate .*cdls\.nc 2021_30m_cdls\.tif"):
        check_cdl(shutil.copy(tif, tmp_path / "2021_30m_cdls.nc"))


@pytest.fixture
def mosaic(tmp_path: Path) -> Path:
    """A folder with two rasters side by side, each 224 x 224, and nothing else."""
    folder = tmp_path / "mosaic"
    folder.mkdir()
    for name, col in (("west.tif", 310), ("east.tif", 311)):
        write_landscape(folder / name, np.full((224, 224), col - 309, np.uint8), 232, col)
    return folder


def of_two(first: str = "west.tif", second: str = "east.tif", more: str = "", frame: str = "") -> str:
    """A .vrt of two rasters side by side, on the national grid."""
    left, top = -2356095 + 310 * 6720, 3172605 - 232 * 6720
    sources = "".join(
        f'<SimpleSource><SourceFilename relativeToVRT="1">{name}</SourceFilename><SourceBand>1</SourceBand>'
        '<SrcRect xOff="0" yOff="0" xSize="224" ySize="224"/>'
        f'<DstRect xOff="{at}" yOff="0" xSize="224" ySize="224"/></SimpleSource>'
        for name, at in ((first, 0), (second, 224))
    )
    return (
        f'<VRTDataset rasterXSize="448" rasterYSize="224"{frame}><SRS>EPSG:5070</SRS>'
        f"<GeoTransform>{left},30,0,{top},0,-30</GeoTransform>{more}"
        f'<VRTRasterBand dataType="Byte" band="1">{sources}</VRTRasterBand></VRTDataset>'
    )


def test_a_vrt_of_rasters_in_its_folder_is_read(mosaic: Path) -> None:
    (mosaic / "deeper").mkdir()
    (mosaic / "east.tif").rename(mosaic / "deeper/east.tif")
    (mosaic / "inner.vrt").write_text(of_two(second="deeper/east.tif"))
    inner = vrt("inner.vrt", relative=1).replace('"224"', '"448"', 1)
    (mosaic / "outer.vrt").write_text(inner)
    for name in ("inner.vrt", "outer.vrt"):
        with open_raster(mosaic / name) as raster:
            assert np.unique(raster.read()).tolist() == [1, 2]
    found = raster_files(mosaic / "outer.vrt")
    names = [path.relative_to(mosaic).as_posix() for path in found]
    assert names == ["outer.vrt", "deeper/east.tif", "inner.vrt", "west.tif"]
    assert check_cdl(mosaic / "inner.vrt").width == 448


HOSTILE_VRTS: dict[str, Callable[[Outside], str]] = {
    "a file elsewhere": lambda to: of_two(str(to.secret)),
    "a path upwards": lambda to: of_two("../../" + to.secret.name),
    "a host": lambda to: of_two(f"/vsicurl/{to.url}/a.tif"),
    "a host by its address": lambda to: of_two(f"{to.url}/a.tif"),
    "an object store": lambda to: of_two("/vsis3/bucket/a.tif"),
    "an archive": lambda to: of_two(f"/vsizip//vsicurl/{to.url}/a.zip/a.tif"),
    "a description in place of a name": lambda to: of_two("&lt;GDAL_WMS>&lt;/GDAL_WMS>"),
    "a driver's own name": lambda to: of_two(f"GTIFF_RAW:{to.secret}"),
    "a link": lambda to: of_two("link.tif"),
    "a description called .tif": lambda to: of_two("description.tif"),
    "a raster called .txt": lambda to: of_two("west.txt"),
    "itself": lambda to: of_two("cdl.vrt"),
    "one that is not there": lambda to: of_two("nowhere.tif"),
    "an overview of a host": lambda to: of_two().replace(
        "</VRTRasterBand>",
        f"<Overview><SourceFilename>/vsicurl/{to.url}/o.tif</SourceFilename></Overview></VRTRasterBand>",
    ),
    "a program": lambda to: of_two().replace(
        'band="1">',
        'band="1" subClass="VRTDerivedRasterBand"><PixelFunctionLanguage>Python</PixelFunctionLanguage>',
        1,
    ),
    "raw bytes": lambda to: RASTERS["VRT of raw bytes"](to),
    "a warp": lambda to: of_two(frame=' subClass="VRTWarpedDataset"'),
    "a mask of a host": lambda to: of_two(more=f"<MaskBand>{vrt(f'/vsicurl/{to.url}/m.tif')}</MaskBand>"),
    "options of a source": lambda to: of_two().replace(
        "<SourceBand>", "<OpenOptions><OOI key='GEOREF_SOURCES'>PAM</OOI></OpenOptions><SourceBand>", 1
    ),
    "entities": lambda to: f'<!DOCTYPE a [<!ENTITY a SYSTEM "file://{to.secret}">]>{of_two("&a;")}',
    "two roots": lambda to: of_two() + "<GDAL_WMS/>",
    # GDAL takes attributes for elements, and names in any case
    "a file elsewhere in an attribute": lambda to: in_attribute(str(to.secret)),
    "a host in an attribute": lambda to: in_attribute(f"/vsicurl/{to.url}/a.tif"),
    "an object store in an attribute": lambda to: in_attribute("/vsis3/bucket/a.tif"),
    "a connection in an attribute": lambda to: in_attribute(f"vrt://{to.secret}"),
    "raw bytes in an attribute": lambda to: in_attribute(RASTERS["VRT of raw bytes"](to)),
    "a host in a description in an attribute": lambda to: in_attribute(RASTERS["VRT of a host"](to)),
    "raw bytes in attributes of the band": lambda to: of_two().replace(
        'band="1">',
        f'band="1" subclass="VRTRawRasterBand" SourceFilename="{to.secret}" ImageOffset="0" PixelOffset="1" '
        'LineOffset="448">',
        1,
    ),
    "a program in attributes": lambda to: of_two().replace(
        'band="1">',
        'band="1" subclass="VRTDerivedRasterBand" PixelFunctionLanguage="Python" PixelFunctionType="f" '
        'PixelFunctionCode="import os">',
        1,
    ),
    "a name in other letters": lambda to: of_two().replace("SourceFilename", "sourcefilename"),
    "an attribute in other letters": lambda to: of_two().replace("relativeToVRT", "relativetovrt"),
    "half a place": lambda to: re.sub("<SrcRect[^>]*>", "", of_two(), count=1),
    "neither relative nor not": lambda to: of_two().replace('relativeToVRT="1"', 'relativeToVRT="2"'),
    "two names": lambda to: of_two().replace(
        "<SourceBand>", f'<SourceFilename relativeToVRT="0">{to.secret}</SourceFilename><SourceBand>', 1
    ),
    "a name inside a name": lambda to: of_two(f"west.tif<SourceFilename>{to.secret}</SourceFilename>"),
    "a connection that is a file's name": lambda to: of_two("GTIFF_DIR:1:west.tiff"),
    "a file whose name begins with a space": lambda to: of_two(" spaced.tif"),
    "a file whose name ends with a space": lambda to: of_two("west.tif "),
    "its mask": lambda to: of_two().replace("<SourceBand>1<", "<SourceBand>mask,1<", 1),
    "another namespace": lambda to: of_two(frame=' xmlns="http://a"'),
    "a place of a host": lambda to: of_two().replace("EPSG:5070", f"{to.url}/a.prj"),
    "a place of a file": lambda to: of_two().replace("EPSG:5070", f"+proj=longlat +nadgrids={to.secret}"),
    "numbers that are none": lambda to: of_two().replace('xOff="224"', 'xOff="nan"'),
    "a source without an area": lambda to: of_two().replace('xSize="224"', 'xSize="0"'),
    "bytes of another kind": lambda to: of_two().replace('"Byte"', '"Int16"'),
    "several bands": lambda to: of_two().replace(
        "<VRTRasterBand", '<VRTRasterBand band="2"/><VRTRasterBand', 1
    ),
    "a name that is too long": lambda to: of_two("a" * 300 + ".tif"),
}


def in_attribute(name: str) -> str:
    source = f'<SimpleSource SourceFilename="{html.escape(name)}"><SourceBand>1</SourceBand></SimpleSource>'
    return re.sub("<SimpleSource>.*</SimpleSource>", lambda _: source, of_two())


@pytest.mark.parametrize("to", HOSTILE_VRTS)
def test_a_vrt_leads_nowhere_else(mosaic: Path, outside: Outside, to: str) -> None:
    (mosaic / "link.tif").symlink_to(outside.secret)
    (mosaic / "description.tif").write_text(RASTERS["VRT of raw bytes"](outside))
    (mosaic / " spaced.tif").write_text(RASTERS["VRT of a host"](outside))
    for name in ("west.txt", "west.tif "):
        shutil.copy(mosaic / "west.tif", mosaic / name)
    path = mosaic / "cdl.vrt"
    path.write_text(HOSTILE_VRTS[to](outside))
    with pytest.raises(InputError):
        check_cdl(path)
    with pytest.raises(RasterioError):
        open_raster(path)
    with suppress(NotFoundError):
        assert raster_files(path) == [path]
    assert outside.untouched()


MOSAICS: dict[str, str] = {
    "two side by side": of_two(),
    "what gdalbuildvrt says besides": of_two(
        more='<Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">/vsicurl/http://127.0.0.1:1/o</MDI></Metadata>'
        '<OverviewList resampling="nearest">2 4</OverviewList>'
    )
    .replace("<SRS>", '<SRS dataAxisToSRSAxisMapping="1,2">')
    .replace("EPSG:5070", html.escape(pyproj.CRS(5070).to_wkt("WKT1_GDAL")))
    .replace('band="1">', 'band="1" blockXSize="128" blockYSize="128"><ColorInterp>Palette</ColorInterp>', 1)
    .replace(
        "<SourceBand>1</SourceBand>",
        '<SourceBand>1</SourceBand><SourceProperties RasterXSize="224" RasterYSize="224" DataType="Byte" '
        'BlockXSize="224" BlockYSize="36" />',
    ),
    "nodata between": of_two()
    .replace('band="1">', 'band="1"><NoDataValue>255</NoDataValue>', 1)
    .replace('<DstRect xOff="224"', '<DstRect xOff="200.0"')
    .replace('<DstRect xOff="0"', '<DstRect xOff="-20"'),
    "hidden nodata": of_two().replace(
        'band="1">', 'band="1"><NoDataValue>7</NoDataValue><HideNoDataValue>1</HideNoDataValue>', 1
    ),
    "one over the other": re.sub(
        "(</?)SimpleSource>",
        r"\1ComplexSource>",
        of_two().replace("</SimpleSource>", "<NODATA>1</NODATA></SimpleSource>"),
    ).replace('<DstRect xOff="0"', '<DstRect xOff="120"'),
    "other pixels": of_two().replace(
        'xOff="0" yOff="0" xSize="224" ySize="224"', 'xOff="10.5" yOff="3" xSize="50" ySize="70.25"', 1
    ),
    "no place": re.sub("<SRS>.*</GeoTransform>", "", of_two()),
    "without rectangles": re.sub("<...Rect[^>]*>", "", of_two()),
    "no sources": re.sub("<SimpleSource>.*</SimpleSource>", "", of_two()),
}


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("kind", MOSAICS)
def test_a_vrt_is_read_as_gdal_reads_it(mosaic: Path, kind: str) -> None:
    path = mosaic / "cdl.vrt"
    path.write_text(MOSAICS[kind])
    with rasterio.open(path) as by_gdal, open_raster(path) as raster:
        np.testing.assert_array_equal(raster.read(), by_gdal.read())
        assert (raster.nodata, raster.transform, raster.shape) == (
            by_gdal.nodata,
            by_gdal.transform,
            by_gdal.shape,
        )
        assert (
            raster.crs is None and by_gdal.crs is None
        ) or raster.crs.to_epsg() == by_gdal.crs.to_epsg() == 5070


def test_gdal_gets_a_description_of_our_own(mosaic: Path) -> None:
    path = mosaic / "cdl.vrt"
    # the name of a file, and for GDAL a connection
    (mosaic / "west.tif").rename(mosaic / "GTIFF_RAW:east.tif")
    path.write_text(
        of_two("GTIFF_RAW:east.tif", more="<Metadata><MDI key='A'>of its author</MDI></Metadata>")
    )
    with open_raster(path) as raster:
        assert np.unique(raster.read()).tolist() == [1, 2]
        assert raster.name.startswith("<VRTDataset")
        assert "author" not in raster.name
        assert raster.name.count(f">{mosaic.resolve()}/") == 2


def test_a_folder_whose_name_gdal_may_take_for_more_is_refused(mosaic: Path) -> None:
    (mosaic / "cdl.vrt").write_text(of_two())
    for name in ("a\nb", f"a{vrt('a.tif').replace('/', '|')}"):
        folder = mosaic.rename(mosaic.with_name(name[:250]))
        mosaic = folder
        with pytest.raises(RasterioError, match="may be taken for more than the path of a file; rename it"):
            open_raster(folder / "cdl.vrt")
    for path in ("/vsimem/a.tif", "/data/a.tif\udcff"):
        with pytest.raises(IntegrityError, match="rename it"):
            plain_name(path)
    assert plain_name("/data/vsi/a (1) é.tif") == "/data/vsi/a (1) é.tif"


def test_a_vrt_that_reads_the_same_over_and_over_is_refused(mosaic: Path) -> None:
    def write(name: str, part: str, size: int, times: int) -> None:
        rectangle = f'xOff="0" yOff="0" xSize="{size}" ySize="{size}"'
        source = (
            f'<SimpleSource><SourceFilename relativeToVRT="1">{part}</SourceFilename><SourceBand>1</SourceBand>'
            f"<SrcRect {rectangle}/><DstRect {rectangle}/></SimpleSource>"
        )
        (mosaic / name).write_text(
            f'<VRTDataset rasterXSize="{size}" rasterYSize="{size}"><GeoTransform>0,30,0,0,0,-30</GeoTransform>'
            '<VRTRasterBand dataType="Byte" band="1">'
            f"{source * times}</VRTRasterBand></VRTDataset>"
        )

    frame = {"crs": "EPSG:5070", "transform": PLACE, "dtype": "uint8", "count": 1, "sparse_ok": True}
    with create_raster(mosaic / "a.tif", height=8000, width=8000, tiled=True, **frame):
        pass
    write("some.vrt", "a.tif", 8000, 10)
    with open_raster(mosaic / "some.vrt") as raster:
        assert raster.width == 8000
    write("many.vrt", "a.tif", 8000, 17)
    with pytest.raises(RasterioError, match="its sources have over 16 times as many pixels"):
        open_raster(mosaic / "many.vrt")
    write("nested.vrt", "some.vrt", 8000, 2)
    with pytest.raises(RasterioError, match="its sources have over 16 times as many pixels"):
        open_raster(mosaic / "nested.vrt")
    # of a whole raster one pixel
    write("pixel.vrt", "a.tif", 8000, 1)
    text = (mosaic / "pixel.vrt").read_text().replace('="8000"/></SimpleSource>', '="1"/></SimpleSource>')
    (mosaic / "pixel.vrt").write_text(re.sub('raster(.)Size="8000"', r'raster\1Size="100"', text))
    with pytest.raises(RasterioError, match="its sources have over 16 times as many pixels"):
        open_raster(mosaic / "pixel.vrt")
    # descriptions in descriptions, each of the one before a hundred times
    write("0.vrt", "west.tif", 1, 100)
    for depth in range(1, 4):
        write(f"{depth}.vrt", f"{depth - 1}.vrt", 1, 100)
    with pytest.raises(RasterioError, match="contains too many sources"):
        open_raster(mosaic / "3.vrt")


def test_a_large_vrt_is_not_parsed(mosaic: Path) -> None:
    path = mosaic / "cdl.vrt"
    path.write_text(of_two() + " " * (16 << 20))
    with pytest.raises(RasterioError, match="more than 16 MiB"):
        open_raster(path)


def test_the_pixels_of_an_img_lie_beside_it(tmp_path: Path, outside: Outside) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    path = inside / "2022_30m_cdls.img"
    with create_raster(
        path,
        "HFA",
        width=448,
        height=448,
        count=1,
        dtype="uint8",
        crs="EPSG:5070",
        transform=PLACE,
        USE_SPILL="YES",
    ) as raster:
        raster.write(np.ones((1, 448, 448), np.uint8))
    spill = path.with_suffix(".ige")
    assert [Path(file) for file in raster_files(path)] == [path, spill]
    elsewhere = f"../{spill.name[3:]}"
    assert path.read_bytes().count(spill.name.encode()) > 0
    path.write_bytes(path.read_bytes().replace(spill.name.encode(), elsewhere.encode()))
    spill.rename(inside / elsewhere)
    with pytest.raises(RasterioError, match=re.escape("which is not in its folder")):
        open_raster(path)


def test_drivers_that_ask_hosts_are_not_registered() -> None:
    with rasterio.Env() as environment:
        ours = set(environment.drivers())
    assert {"GTiff", "COG", "HFA", "VRT"} <= ours
    assert not ours & set(REMOTE_RASTERS)
    vectors = set(pyogrio.list_drivers())
    assert {"GeoJSON", "GPKG", "ESRI Shapefile", "FlatGeobuf"} <= vectors
    assert not vectors & set(REMOTE_VECTORS)
    assert "GDAL_SKIP" not in os.environ


@pytest.mark.parametrize(
    "first", ["rasterio", "pyogrio", "geopandas", "crop_assets.labels.aoi", "resources.vectors"]
)
def test_they_are_not_whichever_module_comes_first(first: str) -> None:
    program = (
        f"import {first}, resources.vectors, rasterio, pyogrio, os\n"
        "with rasterio.Env() as environment: assert 'WMS' not in environment.drivers()\n"
        f"assert {first == 'pyogrio'} or 'WFS' not in pyogrio.list_drivers()\n"
        "assert os.environ['GDAL_SKIP'] == 'PDF'\n"
    )
    environment = {**os.environ, "GDAL_SKIP": "PDF"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "PDF" not in done.stderr


SQUARE = shapely.box(-98.5, 37.5, -98, 38)
GEOMETRY = '{"type": "Polygon", "coordinates": [[[-98, 37], [-98, 38], [-97, 38], [-98, 37]]]}'
VECTOR_DESCRIPTIONS: dict[str, Callable[[Outside], str]] = {
    "OGR VRT of a file": lambda to: (
        f'<OGRVRTDataSource><OGRVRTLayer name="a"><SrcDataSource>{to.secret}'
        "</SrcDataSource></OGRVRTLayer></OGRVRTDataSource>"
    ),
    "OGR VRT of a host": lambda to: (
        f'<OGRVRTDataSource><OGRVRTLayer name="a"><SrcDataSource>/vsicurl/{to.url}/a.csv'
        "</SrcDataSource></OGRVRTLayer></OGRVRTDataSource>"
    ),
    "OGR VRT in a comment of KML": lambda to: (
        "<!-- <OGRVRTDataSource> --><OGRVRTDataSource><OGRVRTLayer name='a'>"
        f"<SrcDataSource>/vsicurl/{to.url}/a.csv</SrcDataSource></OGRVRTLayer></OGRVRTDataSource>"
    ),
    "WFS": lambda to: f"<OGRWFSDataSource><URL>{to.url}/wfs</URL></OGRWFSDataSource>",
    "OAPIF": lambda to: f"<OGRWFS3DataSource><URL>{to.url}</URL></OGRWFS3DataSource>",
    "CSW": lambda to: f"<OGRCSWDataSource><URL>{to.url}/csw</URL></OGRCSWDataSource>",
    "a GDAL command": lambda to: (
        '{"type": "gdal_streamed_alg", "command_line": "gdal vector convert '
        f'/vsicurl/{to.url}/a.gpkg streamed"}}'
    ),
    "GML with a schema of a host": lambda to: (
        '<ogr:FeatureCollection xmlns:ogr="http://ogr.maptools.org/" xmlns:gml="http://www.opengis.net/gml" '
        'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" '
        f'xsi:schemaLocation="http://ogr.maptools.org/ {to.url}/a.xsd"><gml:featureMember/></ogr:FeatureCollection>'
    ),
    "STAC items": RASTERS["STAC items"],
    "an ESRI feature service": lambda to: (
        '{"geometryType": "esriGeometryPolygon", "exceededTransferLimit": true, "features": []}'
    ),
    "a CSV": lambda to: "a,b\n1,2\n",
    "VRT of a host": RASTERS["VRT of a host"],
}


@pytest.mark.parametrize("kind", VECTOR_DESCRIPTIONS)
@pytest.mark.parametrize(
    "suffix", [".geojson", ".json", ".kml", ".gpkg", ".shp", ".fgb", ".csv", ".gml", ".xml"]
)
def test_a_description_is_no_area_or_tile_grid(
    tmp_path: Path, outside: Outside, kind: str, suffix: str
) -> None:
    path = tmp_path / f"area{suffix}"
    path.write_text(VECTOR_DESCRIPTIONS[kind](outside))
    for zipped in (path, path.with_suffix(".zip"), path.with_suffix(".kmz")):
        if zipped != path:
            with zipfile.ZipFile(zipped, "w") as archive:
                archive.write(path, f"folder/{path.name}")
        with pytest.raises(InputError):
            found = read_aoi(zipped)
            # GeoJSON without a place on Earth, which the caller refuses
            assert (found.geometry.isna() | found.geometry.is_empty).all()
            raise InputError("an empty area")
        with pytest.raises(InputError):
            read_tile_grid(zipped)
    assert outside.untouched()


CRS_MEMBERS: dict[str, Callable[[Outside], Any]] = {
    "a link": lambda to: {"type": "link", "properties": {"href": f"{to.url}/a.prj", "type": "esriwkt"}},
    "an address": lambda to: {"type": "url", "properties": {"url": f"{to.url}/a.prj"}},
    "a link as well": lambda to: {
        "type": "link",
        "properties": {"name": "EPSG:5700000", "href": f"{to.url}/a.prj"},
    },
    "an address for a name": lambda to: {"type": "name", "properties": {"name": f"{to.url}/a.prj"}},
    "a path for a name": lambda to: {"type": "name", "properties": {"name": str(to.secret)}},
    "parameters with a file": lambda to: {
        "type": "name",
        "properties": {"name": f"+proj=longlat +ellps=GRS80 +nadgrids={to.secret} +type=crs"},
    },
    "a definition": lambda to: {"type": "name", "properties": {"name": pyproj.CRS(4326).to_wkt()}},
    "a code that nobody has": lambda to: {"type": "name", "properties": {"name": "EPSG:5700000"}},
    "a text": lambda to: f"{to.url}/a.prj",
    "a list": lambda to: [f"{to.url}/a.prj"],
}


@pytest.mark.parametrize("kind", CRS_MEMBERS)
@pytest.mark.parametrize("place", ["collection", "feature", "geometry"])
def test_the_crs_of_a_geojson_is_a_code_and_nothing_that_is_fetched(
    tmp_path: Path, outside: Outside, kind: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GDAL_HTTP_HEADERS", "Authorization: Bearer a-secret")
    member = {"crs": CRS_MEMBERS[kind](outside)}
    document = json.loads(GEOMETRY) | (member if place == "geometry" else {})
    if place != "geometry":
        names = {"name": "14SNH", "id": "chip_010_010"}
        document = {"type": "Feature", "properties": names, "geometry": document, **member}
    if place == "collection":
        document = {"type": "FeatureCollection", "features": [document], **member}
    path = tmp_path / "area.geojson"
    path.write_text(json.dumps(document))
    archive = tmp_path / "area.zip"
    with zipfile.ZipFile(archive, "w") as writing:
        writing.write(path, "folder/area.json")
    boxes = gpd.GeoDataFrame({"chip_id": ["chip_010_010"]}, geometry=[SQUARE], crs=5070)
    for file in (path, archive):
        with pytest.raises(InputError, match=r"which is not a code that PROJ knows, such as EPSG:4326"):
            read_aoi(file)
        with pytest.raises(InputError, match=r"which is not a code that PROJ knows, such as EPSG:4326"):
            read_tile_grid(file)
    if place == "collection":
        with pytest.raises(InputError, match=r"which is not a code that PROJ knows, such as EPSG:4326"):
            read_chip_geojson(path, boxes)
    assert outside.untouched()


@pytest.mark.parametrize(
    ("name", "code"),
    [
        (None, 4326),
        ("EPSG:5070", 5070),
        ("urn:ogc:def:crs:EPSG::5070", 5070),
        ("urn:ogc:def:crs:EPSG:6.9:5070", 5070),
        ("http://www.opengis.net/def/crs/EPSG/0/5070", 5070),
        ("urn:ogc:def:crs:OGC:1.3:CRS84", 4326),
        ("urn:ogc:def:crs:OGC::CRS84", 4326),
        ("http://www.opengis.net/def/crs/OGC/1.3/CRS84", 4326),
        ("urn:x-ogc:def:crs:EPSG:4269", 4269),
        ("epsg:32614", 32614),
    ],
)
def test_a_geojson_is_read_as_gdal_reads_it(tmp_path: Path, name: str | None, code: int) -> None:
    member = {"crs": {"type": "name", "properties": {"name": name}}} if name else {"crs": None}
    polygon = json.loads(GEOMETRY)
    shapes = [
        polygon,
        {"type": "MultiPolygon", "coordinates": [polygon["coordinates"]]},
        None,
        {"type": "GeometryCollection", "geometries": [polygon]},
        {"type": "Polygon", "coordinates": []},
    ]
    features = [
        {"type": "Feature", "properties": {"name": str(at), f"n{at}": at}, "geometry": shape}
        for at, shape in enumerate(shapes)
    ]
    path = tmp_path / "area.geojson"
    path.write_bytes(
        b"\xef\xbb\xbf" + json.dumps({"type": "FeatureCollection", **member, "features": features}).encode()
    )
    by_gdal = pyogrio.read_dataframe(path)
    with open_vector(path) as vector:
        assert list(vector.layers()) == ["area"]
        assert vector.columns("area") == [column for column in by_gdal if column != "geometry"]
        found = vector.read("area", ["name"])
    assert found.crs.to_epsg() == code
    assert found["name"].tolist() == by_gdal["name"].tolist()
    assert shapely.equals_exact(found.geometry.to_numpy(), by_gdal.geometry.to_numpy()).tolist() == [
        *(True, True, False, True, True)
    ]
    assert found.geometry.isna().tolist() == [False, False, True, False, False]
    for alone in (polygon, features[0]):
        path.write_text(json.dumps(alone))
        assert read_aoi(path).geometry[0].equals_exact(found.geometry[0], 0)


def test_a_geojson_without_end_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources.geojson, "MAX_VALUES", 1000)
    path = tmp_path / "area.geojson"
    path.write_text(json.dumps({"type": "Polygon", "coordinates": [[[0, 0]] * 1000]}))
    with pytest.raises(InputError, match="it has more than 1,000 values"):
        read_aoi(path)
    path.write_text('{"type": "GeometryCollection", "geometries": [' * 100 + "]}" * 100)
    with pytest.raises(InputError, match="it is nested more than 64 deep"):
        read_aoi(path)
    monkeypatch.setattr(resources.geojson, "MAX_PARTS", 100)
    many, half = ({"type": "MultiPolygon", "coordinates": [[[]]] * parts} for parts in (101, 50))
    for document, parts in ((many, 101), ({"type": "GeometryCollection", "geometries": [half, half]}, 102)):
        path.write_text(json.dumps(document))
        with pytest.raises(InputError, match=f"have {parts} parts; the most is 100"):
            read_aoi(path)
    path.write_text(" " * 4800)
    with (
        pytest.raises(IntegrityError, match="has 4,800 bytes; the most is 4,000"),
        open_vector(path, 4000),
    ):
        pass


@pytest.mark.parametrize("suffix", [".zip", ".kmz"])
def test_an_archive_of_very_many_files_is_refused_before_its_list_is_made(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"area{suffix}"

    def write(members: int, name: str = "notes/{}") -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.geojson", GEOMETRY)
            for number in range(members):
                archive.writestr(name.format(number), "")

    write(999)
    assert len(read_aoi(path)) == 1
    for members, name in ((1000, "{}"), (1000, "{}/"), (2000, "x" * 600 + "{}")):
        write(members, name)
        if members > 1000:
            monkeypatch.setattr(zipfile, "ZipInfo", None)
        with pytest.raises(InputError, match=r"1,001 members; the most is 1,000|too large for 1,000 members"):
            read_aoi(path)


def test_of_an_archive_the_vector_file_alone_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpacked: list[str] = []
    unpack = resources.vectors.unpack

    def remember(path: Path, member: zipfile.ZipInfo, target: Path, progress: Callable[[int], None]) -> None:
        unpacked.append(target.relative_to(target.parent).as_posix())
        unpack(path, member, target, progress)

    monkeypatch.setattr(resources.vectors, "unpack", remember)
    gpd.GeoDataFrame({"a": [1]}, geometry=[SQUARE], crs=5070).to_file(tmp_path / "area.shp")
    (tmp_path / "area.geojson").write_text(GEOMETRY)
    beside = ["area.shp.xml", "area.vrt", "area.qix", "area.geojson.aux.xml", "other.dbf", "deeper/area.shx"]
    for wanted in (
        {"area.geojson"},
        {f"area{suffix}" for suffix in (".shp", ".shx", ".dbf", ".prj", ".cpg")},
    ):
        with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
            for name in wanted:
                archive.write(tmp_path / name, f"folder/{name}")
            for name in beside:
                archive.writestr(f"folder/{name}", "x")
        unpacked.clear()
        assert len(read_aoi(tmp_path / "all.zip")) == 1
        assert set(unpacked) == wanted
        (tmp_path / "all.zip").unlink()


def test_gdal_reaches_no_host_in_any_way_while_it_reads_a_vector_file(
    tmp_path: Path, outside: Outside, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GDAL_HTTP_HEADERS", "Authorization: Bearer a-secret")
    path = tmp_path / "area.geojson"
    member = {"type": "link", "properties": {"href": f"{outside.url}/a.prj", "type": "esriwkt"}}
    path.write_text(json.dumps(json.loads(GEOMETRY) | {"crs": member}))
    # a driver of GDAL that fetches, which nothing here hands a file to
    with resources.vectors._reading():
        pyogrio.read_dataframe(path)
    assert outside.untouched()
    pyogrio.read_dataframe(path)
    assert "a.prj" in outside.asked.read_text()


def test_kml_that_links_to_a_host_is_read_without_it(tmp_path: Path, outside: Outside) -> None:
    place = (
        "<Placemark><name>14SNH</name><Polygon><outerBoundaryIs><LinearRing><coordinates>-99,38 -98,38 -98,39 -99,38"
        "</coordinates></LinearRing></outerBoundaryIs></Polygon></Placemark>"
    )
    link = f"<NetworkLink><name>n</name><Link><href>{outside.url}/more.kml</href></Link></NetworkLink>"
    style = f"<styleUrl>{outside.url}/style.kml#s</styleUrl>"
    path = tmp_path / "area.kml"
    path.write_text(
        '<?xml version="1.0"?><!-- <OGRVRTDataSource> --><kml xmlns="http://www.opengis.net/kml/2.2"><Document>'
        f"<Folder><name>a</name>{place.replace('<Polygon>', style + '<Polygon>')}{link}</Folder></Document></kml>"
    )
    assert read_aoi(path).geometry.iloc[0].bounds == (-99, 38, -98, 39)
    assert outside.untouched()


def test_what_a_file_may_lead_to_is_as_before_once_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "area.fgb"
    gpd.GeoDataFrame(geometry=[SQUARE], crs=4326).to_file(path)
    assert len(read_aoi(path)) == 1
    for option in resources.vectors._OFFLINE:
        assert pyogrio.get_gdal_config_option(option) is None
    with rasterio.Env() as environment:
        assert "CPL_VSIL_CURL_ALLOWED_FILENAME" not in environment.options


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("told", [5000, 1 << 20, 1 << 30])
def test_a_flatgeobuf_that_tells_of_more_features_than_it_has_bytes_is_refused(
    tmp_path: Path, told: int, packed: bool
) -> None:
    path = tmp_path / "area.fgb"
    gpd.GeoDataFrame(geometry=[SQUARE] * 7, crs=4326).to_file(path, SPATIAL_INDEX="NO")
    data = path.read_bytes()
    count = (7).to_bytes(8, "little")
    assert data[:200].count(count) == 1
    path.write_bytes(data.replace(count, told.to_bytes(8, "little"), 1))
    if packed:
        with zipfile.ZipFile(tmp_path / "area.zip", "w") as archive:
            archive.write(path, "area.fgb")
        path = tmp_path / "area.zip"
    with pytest.raises(InputError, match=rf"reports {told:,} features in [0-9,]+ bytes"):
        read_aoi(path)


@pytest.mark.parametrize(
    ("size", "profile", "message"),
    [
        (200_000, {"tiled": True, "blockxsize": 128, "blockysize": 128}, "2,442,969 blocks of 128 x 128"),
        (448, {"tiled": True, "blockxsize": 32_768, "blockysize": 32_768}, "1 blocks of 32,768 x 32,768"),
        (32_000, {"tiled": True, "blockxsize": 32_000, "blockysize": 16_000}, "2 blocks of 32,000 x 16,000"),
        (2000, {"tiled": True, "blockxsize": 16, "blockysize": 2_000_000}, "125 blocks of 16 x 2,000,000"),
        (448, {"count": 101}, "101 bands; the most is 100"),
    ],
)
@pytest.mark.parametrize("compress", [None, "deflate"])
def test_a_raster_that_takes_hours_or_all_memory_is_not_read(
    tmp_path: Path, size: int, profile: dict[str, Any], message: str, compress: str | None
) -> None:
    path = tmp_path / "2022_30m_cdls.tif"
    place = {
        "crs": "EPSG:5070",
        "transform": PLACE,
        "dtype": "uint8",
        "compress": compress,
        "sparse_ok": True,
    }
    with create_raster(path, height=size, width=size, **{"count": 1, **place, **profile}):
        pass
    _is_refused(path, message)


def _is_refused(path: Path, message: str) -> None:
    for open_it in (open_geotiff, open_raster):
        with pytest.raises(RasterioError, match=message):
            open_it(path)
    with pytest.raises(InputError, match=message):
        check_cdl(path)
    with pytest.raises(IntegrityError, match=message):
        check_band(path, "B02", "14SMG")


@pytest.mark.parametrize(
    ("text", "spoilt", "message"),
    [
        pytest.param(b"My Albers", b"My \xc7lbers", "a CRS that is no text", id="name of the CRS"),
        pytest.param(b"beside.tif", b"\xe9eside.tif", "its overviews in a file", id="value of a tag"),
    ],
)
def test_texts_that_rasterio_cannot_read_hide_nothing_from_us(
    tmp_path: Path, text: bytes, spoilt: bytes, message: str
) -> None:
    path = tmp_path / "2022_30m_cdls.tif"
    # with a code, GDAL would look at no name
    crs = pyproj.CRS.from_epsg(5070).to_wkt("WKT1_GDAL").replace("NAD83 / Conus Albers", "My Albers")
    crs = crs.replace(',AUTHORITY["EPSG","5070"]', "")
    with create_raster(
        path, height=448, width=448, count=1, crs=crs, transform=PLACE, dtype="uint8"
    ) as raster:
        if text == b"beside.tif":
            raster.update_tags(ns="OVERVIEWS", OVERVIEW_FILE="beside.tif")
    data = path.read_bytes()
    assert text in data
    path.write_bytes(data.replace(text, spoilt))
    _is_refused(path, message)


@pytest.mark.parametrize("compress", ["deflate", "lzw", "zstd", "packbits"])
def test_a_raster_in_one_strip_is_read_at_once_or_not_at_all(tmp_path: Path, compress: str) -> None:
    path = tmp_path / "2022_30m_cdls.tif"
    place = {"crs": "EPSG:5070", "transform": PLACE, "dtype": "uint8", "compress": compress}
    pixels = np.random.default_rng(1).integers(0, 3, (1, 3000, 448), dtype=np.uint8)
    with create_raster(path, height=3000, width=448, count=1, blockysize=3000, **place) as raster:
        raster.write(pixels)
    # GDAL tells of 3000 strips, and decodes the one for each of them
    with open_raster(path) as raster:
        assert raster.block_shapes == [(3000, 448)]
        np.testing.assert_array_equal(raster.read(), pixels)
    with create_raster(path, height=9000, width=9000, count=1, blockysize=9000, sparse_ok=True, **place):
        pass
    _is_refused(
        path, "1 blocks of 9,000 x 9,000 pixels, which takes too long .* gdal_translate -co TILED=YES"
    )


@pytest.mark.parametrize("compress", ["lerc", "lerc_zstd", "lerc_deflate", "lzma", "jpeg"])
def test_a_raster_is_packed_as_files_are_and_not_as_pictures(tmp_path: Path, compress: str) -> None:
    path = tmp_path / "2022_30m_cdls.tif"
    place = {"crs": "EPSG:5070", "transform": PLACE, "dtype": "uint8", "compress": compress}
    with create_raster(path, height=448, width=448, count=1, **place) as raster:
        raster.write(np.ones((1, 448, 448), np.uint8))
    message = f"is compressed by {compress.upper()}, which is not read here; run: gdal_translate"
    _is_refused(path, message)
    # what lies beside it says something else
    path.with_name(f"{path.name}.aux.xml").write_text(
        '<PAMDataset><Metadata domain="IMAGE_STRUCTURE"><MDI key="COMPRESSION">DEFLATE</MDI></Metadata></PAMDataset>'
    )
    _is_refused(path, message)
    (tmp_path / "2022.vrt").write_text(of_two(path.name, path.name))
    with pytest.raises(RasterioError, match=message):
        open_raster(tmp_path / "2022.vrt")


@pytest.mark.parametrize("kind", RASTERS)
@pytest.mark.parametrize("suffix", [".ovr", ".msk", ".OVR", ".ovr.ovr", ".ovr.msk", ".msk.ovr"])
def test_what_lies_beside_a_raster_is_a_geotiff_too(
    mosaic: Path, outside: Outside, kind: str, suffix: str
) -> None:
    path = mosaic / "west.tif"
    beside = path.with_name(f"{path.name}{suffix}")
    (mosaic / "2022.vrt").write_text(of_two())
    beside.write_text(RASTERS[kind](outside))
    for file in (path, mosaic / "2022.vrt"):
        with pytest.raises(RasterioError, match=re.escape(beside.name)):
            open_raster(file)
        with pytest.raises(InputError, match=re.escape(beside.name)):
            check_cdl(file)
    assert raster_files(path) == [path]
    assert outside.untouched()
    # nor does a GeoTIFF there lead elsewhere
    shutil.copy(mosaic / "east.tif", beside)
    with rasterio.open(beside, "r+", driver="GTiff") as raster:
        raster.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=f"/vsicurl/{outside.url}/overviews.tif")
    with pytest.raises(RasterioError, match="has its overviews in a file that its metadata name"):
        open_raster(path)
    assert outside.untouched()
    with open_geotiff(path) as raster:
        assert raster.files == [str(path)]


@pytest.mark.parametrize(("width", "height"), [(16, 65_600), (16, 2_000_000), (2048, 1024)])
def test_a_band_file_has_no_larger_blocks_than_anybody_stores(
    tmp_path: Path, width: int, height: int
) -> None:
    epsg, left, _, _, top = hls_bounds("14SMG")
    path = tmp_path / "HLS.S30.T14SMG.2022072T172020.v2.0.B02.tif"
    frame = {"crs": f"EPSG:{epsg}", "transform": rasterio.Affine(30, 0, left, 0, -30, top), "dtype": "int16"}
    frame |= {
        "count": 1,
        "height": HLS_SIZE,
        "width": HLS_SIZE,
        "tiled": True,
        "compress": "zstd",
        "sparse_ok": True,
    }
    with create_raster(path, blockxsize=width, blockysize=height, **frame):
        pass
    with pytest.raises(
        IntegrityError, match=f"blocks of {width:,} x {height:,} pixels, (far larger|which takes)"
    ):
        check_band(path, "B02", "14SMG")
    for size in (256, 1024):
        with create_raster(path, blockxsize=size, blockysize=size, **frame):
            pass
        check_band(path, "B02", "14SMG", every_block=False)


def test_the_whole_country_in_usual_blocks_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "2022_30m_cdls.tif"
    for blocks in (
        {"blockysize": 1},
        {"blockysize": 128},
        {"tiled": True, "blockxsize": 128, "blockysize": 128},
    ):
        frame = {"crs": "EPSG:5070", "transform": PLACE, "dtype": "uint8", "count": 1, "sparse_ok": True}
        with create_raster(path, height=96_523, width=153_811, **frame, **blocks):
            pass
        assert check_cdl(path).width == 153_811
