import hashlib
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.windows import Window

from crop_assets.bands.cids import MAX_BAND_BYTES
from crop_assets.bands.download import IN_STORE, NO_CID, UNKNOWN_LAYOUT, BandRequest, fetch_band
from crop_assets.bands.files import check_band
from crop_assets.demo import scenes as demo
from crop_assets.demo.server import WorldServer, serve
from crop_assets.demo.world import World
from crop_assets.hls import BANDS
from resources.earthdata import LpDaac
from resources.errors import IntegrityError, NotFoundError, ResourceError
from resources.ipfs.resource import IpfsContent
from resources.ipfs.unixfs import file_cid
from resources.mirror import BandMirror
from resources.sources import Memory, Sources
from resources.store import DatasetStore

SCENE = "HLS.S30.T14SMG.2022112T172221.v2.0"
UNKNOWN = "bafkreifjjcie6lypi6ny7amxnfftagclbuxndqonfipmb64f2km2devei4"
GRID = Affine(30, 0, 399960, 0, -30, 4200000)
"""The pixels of 14SMG, in EPSG:32614."""
NOWHERE = "http://127.0.0.1:1"


def write_band(path: Path, **profile: Any) -> Path:
    """A raster like an HLS band, with more than one IPFS block; `profile` changes it.

    Sparse: some pixels in its corner, and nothing elsewhere.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {
        "count": 1,
        "dtype": "uint8" if path.name.endswith("Fmask.tif") else "int16",
        "crs": "EPSG:32614",
        "transform": GRID,
        "width": 3660,
        "height": 3660,
        "tiled": True,
        "compress": "deflate",
        "sparse_ok": True,
        **profile,
    }
    shape = (profile["count"], 600, 500)
    seed = int.from_bytes(hashlib.sha256(path.name.encode()).digest()[:4])
    pixels = np.random.default_rng(seed).integers(0, 250, shape).astype(profile["dtype"])
    with rasterio.open(path, "w", driver="GTiff", **profile) as raster:
        raster.write(pixels, window=Window(0, 0, 500, 600))
    return path


def made_world(folder: Path) -> World:
    """A scene whose B02 and Fmask are valid, and whose other files are each wrong in a different way."""

    def path(band: str) -> Path:
        return folder / "scenes" / SCENE / f"{SCENE}.{band}.tif"

    write_band(path("B02"))
    write_band(path("Fmask"))
    write_band(path("B03"), count=2)
    write_band(path("B04"), dtype="float32")
    write_band(path("B8A"), crs=None)
    path("B11").write_bytes(b"<html>please sign in</html>")
    whole = write_band(path("B12")).read_bytes()
    path("B12").write_bytes(whole[: len(whole) // 2])
    files = {band: demo.DemoFile(path(band).stat().st_size, "", file_cid(path(band))) for band in BANDS}
    ring = ((-98.0, 37.0), (-97.0, 37.0), (-97.0, 38.0), (-98.0, 37.0))
    sensed = datetime(2022, 4, 22, 17, 22, 21, tzinfo=UTC)
    scene = demo.Scene(SCENE, "14SMG", 32614, 399960.0, 4200000.0, sensed, 0, 100, ring, files)
    return World(folder, 2022, folder / "cdl.tif", ("14SMG",), (scene,), "none")


@dataclass(frozen=True)
class Places:
    """A gateway and LP DAAC with the same files, and a gateway whose bytes have changed since."""

    world: World
    good: WorldServer
    corrupt: WorldServer

    def path(self, band: str) -> Path:
        return self.world.band_path(self.world.scenes[0], band)

    def cid(self, band: str) -> str:
        return self.world.scenes[0].files[band].cid

    def link(self, band: str) -> str:
        return f"{self.good.base_url}/lpdaac/{SCENE}/{SCENE}.{band}.tif"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    folder = tmp_path_factory.mktemp("worlds")
    world, other = made_world(folder / "good"), made_world(folder / "corrupt")
    with serve(world) as good, serve(other) as corrupt:
        for path in other.files.values():
            path.write_bytes(path.read_bytes()[:-1] + b"!")
        yield Places(world, good, corrupt)


class Had(NamedTuple):
    """How a file came."""

    source: str
    verified: bool
    note: str


class Setting:
    """A store, a mirror folder, and the services that a test allows as sources."""

    def __init__(self, folder: Path, sources: Places) -> None:
        self.sources = sources
        self.store = DatasetStore(root=str(folder / "store"))
        self.mirror = folder / "mirror"
        self.mirror.mkdir()
        self.said: list[str] = []

    def name(self, band: str = "B02") -> str:
        return f"tiles/{SCENE}/{SCENE}.{band}.tif"

    def obtain(
        self,
        band: str = "B02",
        cid: str = "",
        http: str = "",
        gateway: str = NOWHERE,
        token: str = "token",
        most: int = MAX_BAND_BYTES,
    ) -> Had:
        file = BandRequest(self.name(band), f"{SCENE}/{SCENE}.{band}.tif", band, cid, http, most)
        ipfs = IpfsContent(kubo_api="", gateways=[gateway], timeout_seconds=5)
        lp_daac = LpDaac(token=token, hosts=["127.0.0.1"], timeout_seconds=5)
        mirror = BandMirror(folder=str(self.mirror))
        sources = Sources([mirror, *ipfs.sources("gateways"), lp_daac], attempts=1, memory=Memory(4))
        got = fetch_band(file, self.store, sources, self.said.append)
        assert (got.bytes, got.sha256) == (self.store.size(file.name), self.store.sha256(file.name))
        return Had(got.source, got.verified, got.note)

    def put(self, content: bytes, band: str = "B02") -> None:
        self.store.write_bytes(self.name(band), content)

    def stored(self, band: str = "B02") -> bytes:
        return self.store.read_bytes(self.name(band))

    def nothing_is_left(self, band: str = "B02") -> bool:
        root = Path(self.store.root)
        return not [path for path in root.rglob("*") if path.is_file()] and not self.store.exists(
            self.name(band)
        )


@pytest.fixture
def setting(tmp_path: Path, sources: Places) -> Setting:
    return Setting(tmp_path, sources)


@pytest.mark.parametrize(("chunk", "version"), [(262144, 1), (1048576, 1), (262144, 0)])
def test_a_file_in_the_store_is_adopted_by_its_cid(
    setting: Setting, chunk: int, version: Literal[0, 1]
) -> None:
    source = setting.sources.path("B02")
    setting.put(source.read_bytes())
    cid = file_cid(source, chunk, version)
    assert setting.obtain(cid=cid, http="http://127.0.0.1:1/a") == Had(IN_STORE, True, "")
    assert setting.said == []


def test_wrong_content_in_the_store_is_replaced_from_the_gateway(setting: Setting) -> None:
    setting.put(setting.sources.path("Fmask").read_bytes())
    gateway = setting.sources.good.gateway_url
    cid = setting.sources.cid("B02")
    assert setting.obtain(cid=cid, gateway=gateway) == Had(gateway, True, "")
    assert setting.stored() == setting.sources.path("B02").read_bytes()
    assert f"already in the store: {SCENE}.B02.tif does not match {cid}; fetching it again" in setting.said


@pytest.mark.parametrize("band", ["B02", "Fmask"])
def test_a_file_comes_from_the_gateway(setting: Setting, band: str) -> None:
    gateway = setting.sources.good.gateway_url
    cid = setting.sources.cid(band)
    # the link is not followed: nothing listens there
    got = setting.obtain(band, cid, "http://127.0.0.1:1/a", gateway)
    assert got == Had(gateway, True, "")
    assert setting.stored(band) == setting.sources.path(band).read_bytes()


@pytest.mark.parametrize("folder", ["", SCENE])
def test_a_file_in_the_mirror_is_adopted_by_its_cid(setting: Setting, folder: str) -> None:
    source = setting.sources.path("B02")
    (setting.mirror / folder).mkdir(exist_ok=True)
    shutil.copy(source, setting.mirror / folder)
    assert setting.obtain(cid=setting.sources.cid("B02")) == Had("mirror", True, "")
    assert setting.stored() == source.read_bytes()
    assert source.read_bytes() == (setting.mirror / folder / source.name).read_bytes()


def test_a_wrong_file_in_the_mirror_is_left_alone_and_named(setting: Setting) -> None:
    wrong = setting.mirror / f"{SCENE}.B02.tif"
    shutil.copy(setting.sources.path("Fmask"), wrong)
    gateway = setting.sources.good.gateway_url
    cid = setting.sources.cid("B02")
    assert setting.obtain(cid=cid, gateway=gateway).source == gateway
    assert setting.stored() == setting.sources.path("B02").read_bytes()
    assert f"{SCENE}.B02.tif: mirror: {SCENE}.B02.tif does not match {cid}" in setting.said
    assert wrong.read_bytes() == setting.sources.path("Fmask").read_bytes()


@pytest.mark.parametrize("place", ["already in the store", "mirror"])
def test_without_a_cid_a_readable_raster_is_adopted_unverified(setting: Setting, place: str) -> None:
    content = setting.sources.path("B02").read_bytes()
    if place == "mirror":
        (setting.mirror / f"{SCENE}.B02.tif").write_bytes(content)
    else:
        setting.put(content)
    got = setting.obtain(http="http://127.0.0.1:1/a")
    assert got == Had(place, False, NO_CID)
    assert setting.stored() == content


WRONG = {
    "B03": r"has 2 band\(s\) of int16; B03 has one of int16",
    "B04": r"has 1 band\(s\) of float32; B04 has one of int16",
    "B8A": "has no coordinate reference system",
    "B11": "is a web page, not a raster",
    "B12": "cannot be read as a raster",
}
FROM_LP_DAAC = {"B11": r".*B11\.tif answered with a web page instead of a file"}
VERIFIED_AND_WRONG = {"B12": "is truncated: some of its blocks are after its end"}


@pytest.mark.parametrize("band", WRONG)
def test_without_a_cid_a_file_that_is_not_a_band_is_refused(setting: Setting, band: str) -> None:
    wrong = setting.sources.path(band)
    setting.put(wrong.read_bytes(), band)
    shutil.copy(wrong, setting.mirror)
    with pytest.raises(IntegrityError, match=f"mirror: {WRONG[band]}"):
        setting.obtain(band)
    (line,) = [line for line in setting.said if line.startswith("already in the store: ")]
    assert re.search(WRONG[band], line)
    assert setting.stored(band) == wrong.read_bytes(), "the store keeps what it had"


@pytest.mark.parametrize("band", WRONG)
def test_a_file_that_is_not_a_band_is_refused_from_every_server(setting: Setting, band: str) -> None:
    cid, link, gateway = (
        setting.sources.cid(band),
        setting.sources.link(band),
        setting.sources.good.gateway_url,
    )
    wrong = VERIFIED_AND_WRONG.get(band, WRONG[band])
    from_lp_daac = FROM_LP_DAAC.get(band, wrong)
    with pytest.raises(IntegrityError, match=f"{gateway}: {wrong}.*; LP DAAC: {from_lp_daac}"):
        setting.obtain(band, cid, link, gateway)
    assert setting.nothing_is_left(band)


def test_a_band_in_a_local_coordinate_system_is_refused(tmp_path: Path) -> None:
    write_band(tmp_path / "B02.tif", crs='LOCAL_CS["site",UNIT["metre",1]]')
    with pytest.raises(IntegrityError, match="no coordinate reference system that is tied to the Earth"):
        check_band(tmp_path / "B02.tif", "B02", "14SMG")


def test_a_band_named_as_another_is_refused(setting: Setting) -> None:
    """Fmask is also a raster of one band."""
    cid = setting.sources.cid("Fmask")
    with pytest.raises(ResourceError, match=r"1 band\(s\) of uint8; B02 has one of int16"):
        setting.obtain("B02", cid, gateway=setting.sources.good.gateway_url)
    assert setting.nothing_is_left()


def test_a_file_that_does_not_match_its_cid_is_fetched_from_lp_daac(setting: Setting) -> None:
    gateway, link = setting.sources.corrupt.gateway_url, setting.sources.link("B02")
    # verified all the same: these bytes have the CID
    got = setting.obtain(cid=setting.sources.cid("B02"), http=link, gateway=gateway)
    assert got == Had("LP DAAC", True, "")
    assert setting.stored() == setting.sources.path("B02").read_bytes()
    (line,) = setting.said
    assert line.startswith(f"{SCENE}.B02.tif: {gateway}: the bytes sent as block ")


def test_a_file_whose_cid_is_unavailable_is_fetched_from_lp_daac_unverified(setting: Setting) -> None:
    link = setting.sources.link("Fmask")
    got = setting.obtain("Fmask", UNKNOWN, link, setting.sources.good.gateway_url)
    assert got == Had("LP DAAC", False, UNKNOWN_LAYOUT)
    (line,) = setting.said
    assert UNKNOWN in line


def test_without_a_cid_lp_daac_is_asked(setting: Setting) -> None:
    link = setting.sources.link("B02")
    got = setting.obtain(http=link, gateway=setting.sources.good.gateway_url)
    assert got == Had("LP DAAC", False, NO_CID)
    assert setting.said == []


def test_an_error_names_the_file_and_the_answer_of_every_source(setting: Setting) -> None:
    old = b"damaged"
    setting.put(old)
    (setting.mirror / f"{SCENE}.B02.tif").write_bytes(b"another")
    gateway, link = setting.sources.corrupt.gateway_url, setting.sources.link("none")
    with pytest.raises(ResourceError) as error:
        setting.obtain(cid=setting.sources.cid("B02"), http=link, gateway=gateway)
    told = str(error.value)
    assert told.startswith(
        f"{SCENE}.B02.tif could not be had by its CID {setting.sources.cid('B02')}: mirror: "
    )
    sources = ["mirror: ", f"; {gateway}: ", "; LP DAAC: ", link]
    places = [told.index(source) for source in sources]
    assert places == sorted(places)
    assert setting.stored() == old


def test_without_a_login_the_error_says_how_to_log_in(setting: Setting) -> None:
    with pytest.raises(ResourceError, match=r"LP DAAC: .* answered 401: .*set EARTHDATA_TOKEN"):
        setting.obtain(http=setting.sources.link("B02"), token="")
    assert setting.nothing_is_left()


def test_a_file_without_cid_and_link_is_not_found(setting: Setting) -> None:
    with pytest.raises(NotFoundError, match=r"B02\.tif could not be had without a CID or a link"):
        setting.obtain()


def test_a_file_that_is_too_large_is_refused_from_every_server(
    setting: Setting,
) -> None:
    cid, link = setting.sources.cid("B02"), setting.sources.link("B02")
    shutil.copy(setting.sources.path("B02"), setting.mirror)
    gateway, most = setting.sources.good.gateway_url, setting.sources.path("B02").stat().st_size - 1
    told = rf"mirror: .*larger than {most:,} bytes; {gateway}: .*more than the {most} allowed; LP DAAC: .*more than"
    with pytest.raises(IntegrityError, match=told):
        setting.obtain(cid=cid, http=link, gateway=gateway, most=most)
    assert setting.nothing_is_left()


def test_real_bands_are_bands(real: Path) -> None:
    for path in (real / "hls").rglob("*.tif"):
        _, _, tile, *_, band = path.stem.split(".")
        check_band(path, band, tile.removeprefix("T"))
    old = real / "hls" / "HLS.S30.T29QND.2019182.v1.5"
    with pytest.raises(IntegrityError, match=r"of uint8; B02 has one of int16"):
        check_band(old / f"{old.name}.Fmask.tif", "B02", "29QND")
    with pytest.raises(IntegrityError, match="not the grid of tile 29QNE"):
        check_band(old / f"{old.name}.B02.tif", "B02", "29QNE")


UTM_14 = (
    'PROJCS["UTM Zone 14, Northern Hemisphere",GEOGCS["Unknown datum based upon the WGS 84 ellipsoid",'
    + (
        'DATUM["Not_specified_based_on_WGS_84_spheroid",SPHEROID["WGS 84",6378137,298.257223563]],'
        'PRIMEM["Greenwich",0],UNIT["degree",0.0174532925199433]],PROJECTION["Transverse_Mercator"],'
        'PARAMETER["latitude_of_origin",0],PARAMETER["central_meridian",-99],PARAMETER["scale_factor",0.9996],'
        'PARAMETER["false_easting",500000],PARAMETER["false_northing",0],UNIT["Meter",1]]'
    )
)


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        ("EPSG:32614", Affine(30.0000001, 0, 399960.0004, 0, -30, 4199999.9996)),
        ("+proj=utm +zone=14 +datum=WGS84 +units=m", GRID),
        (UTM_14, GRID),
        ("EPSG:32714", Affine(30, 0, 399960, 0, -30, 14200000)),
        ("EPSG:26914", GRID),
    ],
)
def test_an_equivalent_description_of_a_grid_is_accepted(tmp_path: Path, crs: str, transform: Affine) -> None:
    check_band(write_band(tmp_path / "B02.tif", crs=crs, transform=transform), "B02", "14SMG")


OTHER_GRIDS: dict[str, dict[str, Any]] = {
    "the tile to the north": {"transform": Affine(30, 0, 399960, 0, -30, 4300020)},
    "the tile to the west": {"transform": Affine(30, 0, 300000, 0, -30, 4200000)},
    "another zone": {"crs": "EPSG:32613"},
    "another projection": {"crs": "EPSG:5070", "transform": Affine(30, 0, -2356095, 0, -30, 3172605)},
    "degrees": {"crs": "EPSG:4326", "transform": Affine(0.0003, 0, -100.2, 0, -0.0003, 37.9)},
    "metres as degrees": {"crs": "EPSG:4326"},
    "half a pixel beside": {"transform": Affine(30, 0, 399975, 0, -30, 4200000)},
    "a pixel beside": {"transform": Affine(30, 0, 399960, 0, -30, 4199970)},
    "finer pixels": {"transform": Affine(10, 0, 399960, 0, -10, 4200000), "width": 10980, "height": 10980},
    "coarser pixels": {"transform": Affine(60, 0, 399960, 0, -60, 4200000), "width": 1830, "height": 1830},
    "pixels that are too small": {"transform": Affine(29.99, 0, 399960, 0, -29.99, 4200000)},
    "upside down": {"transform": Affine(30, 0, 399960, 0, 30, 4090200)},
    "cut at the bottom": {"height": 3000},
    "cut all round": {"transform": Affine(30, 0, 402960, 0, -30, 4197000), "width": 3000, "height": 3000},
    "a column too many": {"width": 3661},
}


@pytest.mark.parametrize("what", OTHER_GRIDS)
def test_the_error_of_a_file_on_another_grid_shows_both_grids(tmp_path: Path, what: str) -> None:
    path = write_band(tmp_path / "B02.tif", **OTHER_GRIDS[what])
    found = OTHER_GRIDS[what].get("transform", GRID)
    told = (
        rf"has \d+ x \d+ pixels of {found.a:g} x {-found.e:g} from \({found.c:.12g}, {found.f:.12g}\) in EPSG:\d+, "
        r"not the grid of tile 14SMG: 3660 x 3660 pixels of 30 x 30 from \(399960, 4200000\) in EPSG:32614; use"
    )
    with pytest.raises(IntegrityError, match=told):
        check_band(path, "B02", "14SMG")


@pytest.mark.parametrize("by_cid", [True, False])
def test_a_file_of_another_tile_is_never_used(setting: Setting, by_cid: bool) -> None:
    """Neither from the store nor from a mirror, even if a catalogue has its CID."""
    other = write_band(setting.mirror / SCENE / f"{SCENE}.B02.tif", **OTHER_GRIDS["the tile to the north"])
    setting.put(other.read_bytes())
    cid = file_cid(other) if by_cid else ""
    with pytest.raises(
        IntegrityError, match=rf"{SCENE}.B02.tif could not be had.*mirror: has 3660.* 14SMG: "
    ):
        setting.obtain(cid=cid)
    assert f"already in the store: {SCENE}.B02.tif has 3660 x 3660 pixels" in setting.said[0]
    if by_cid:
        return
    gateway, right = setting.sources.good.gateway_url, setting.sources.cid("B02")
    assert setting.obtain(cid=right, gateway=gateway).source == gateway
    assert setting.stored() == setting.sources.path("B02").read_bytes()


@pytest.mark.parametrize("place", ["store", "mirror"])
def test_a_vrt_or_mrf_with_its_own_cid_is_refused_and_writes_nothing(
    setting: Setting, tmp_path: Path, place: str
) -> None:
    """GDAL opens an MRF with any suffix, reads its source, and writes what it read to its data file."""
    elsewhere = tmp_path / "home/.profile"
    elsewhere.parent.mkdir()
    elsewhere.write_text("export A=1\n")
    size = '<Size x="3660" y="3660" c="1"/><PageSize x="512" y="512" c="1"/><Compression>NONE</Compression>'
    description = tmp_path / "description"
    description.write_text(
        f"<MRF_META><CachedSource><Source>{setting.sources.path('B02')}</Source></CachedSource><Raster>{size}"
        f"<DataType>Int16</DataType><DataFile>{elsewhere}</DataFile><IndexFile>{tmp_path / 'home/index'}</IndexFile>"
        '</Raster><GeoTags><BoundingBox minx="399960" miny="4090200" maxx="509760" maxy="4200000"/>'
        "<Projection>EPSG:32614</Projection></GeoTags></MRF_META>"
    )
    if place == "store":
        setting.put(description.read_bytes())
    else:
        shutil.copy(description, setting.mirror / f"{SCENE}.B02.tif")
    with pytest.raises(ResourceError) as error:
        setting.obtain(cid=file_cid(description))
    assert "is a message" in f"{error.value} {setting.said}"
    assert elsewhere.read_text() == "export A=1\n"
    assert [path.name for path in elsewhere.parent.iterdir()] == [".profile"]
