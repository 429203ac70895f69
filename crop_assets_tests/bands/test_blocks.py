"""Band files of which only the blocks under the chips are fetched and stored."""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from crop_assets.bands.blocks import BlockSelection, Grids, choose_fetch, read_partial
from crop_assets.bands.cids import MAX_BAND_BYTES
from crop_assets.bands.download import (
    IN_STORE,
    NO_CID,
    NO_LINKS,
    BandRequest,
    Blocks,
    StoredBand,
    fetch_band,
)
from crop_assets.chip_grid import chip_geobox, chip_id, raster_geobox
from crop_assets.chips.reproject import ReprojectionJob, reproject_bands
from crop_assets.chips.warp import bilinear, source_pixels
from crop_assets.coordinates import blocks_of_chips
from crop_assets.demo import scenes as demo
from crop_assets.demo.server import WorldServer, serve
from crop_assets.demo.world import World
from crop_assets.errors import InputError
from crop_assets_tests.bands.test_download import GRID, NOWHERE, SCENE, made_world
from crop_assets_tests.small_world import CHIPS, WEST
from resources.earthdata import LpDaac
from resources.errors import IntegrityError, ResourceError
from resources.ipfs.resource import IpfsContent
from resources.ipfs.unixfs import file_cid
from resources.mirror import BandMirror
from resources.sources import Memory, Sources
from resources.stop import StoppablePool
from resources.store import DatasetStore, sha256_of

SIDE = 3660
ROWS, COLS = range(228, 243), range(303, 318)
"""The chips of which some part may be in the tile."""
LAYOUTS: dict[str, dict[str, Any]] = {
    "hls": {"driver": "COG", "blocksize": 256, "compress": "deflate", "predictor": 2, "overviews": "auto"},
    "cog": {"driver": "COG", "blocksize": 512, "compress": "zstd", "overviews": "none", "sparse_ok": True},
    "small tiles": {"tiled": True, "blockxsize": 128, "blockysize": 128, "compress": "lzw", "predictor": 2},
    "wide tiles": {"tiled": True, "blockxsize": 512, "blockysize": 144, "compress": "packbits"},
    "strips": {"tiled": False, "blockysize": 7, "compress": "deflate"},
    "bigtiff": {"tiled": True, "compress": "deflate", "bigtiff": "yes", "sparse_ok": True},
}


def noise(seed: int, spread: int = 300) -> NDArray[np.int16]:
    """Pixels with fill in a corner and along a seam through the tile."""
    values = np.random.default_rng(seed).integers(100, 100 + spread, (SIDE, SIDE), np.int16)
    values[:700, :900] = -9999
    values[1800:1810] = -9999
    return values


def write(path: Path, values: NDArray[np.int16], late_tags: bool = False, **profile: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    place = {
        "crs": "EPSG:32614",
        "transform": GRID,
        "width": SIDE,
        "height": SIDE,
        "count": 1,
        "dtype": "int16",
    }
    with rasterio.open(path, "w", **{"driver": "GTiff", **place, "nodata": -9999, **profile}) as raster:
        raster.write(values, 1)
    if late_tags:
        # GDAL then writes the directory again, at the end of the file
        with rasterio.open(path, "r+") as raster:
            raster.update_tags(LATE="x" * 5000)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file of the same pixels in each layout."""
    folder, values = tmp_path_factory.mktemp("layouts"), noise(0, 20)
    made = {name: write(folder / f"{name}.tif", values, **profile) for name, profile in LAYOUTS.items()}
    late = LAYOUTS["bigtiff"] | {"bigtiff": "no"}
    made["directory at the end"] = write(folder / "late.tif", values, late_tags=True, **late)
    return made


class Had(NamedTuple):
    got: StoredBand
    path: Path
    fetched: int


class Setting:
    """A store, and one band file that a mirror, a gateway and LP DAAC have."""

    def __init__(self, folder: Path, world: World, server: WorldServer) -> None:
        self.folder, self.world, self.server = folder, world, server
        self.store = DatasetStore(root=str(folder / "store"))
        self.path = world.band_path(world.scenes[0], "B02")
        self.cid = world.scenes[0].files["B02"].cid
        self.link = f"{server.base_url}/lpdaac/{SCENE}/{SCENE}.B02.tif"
        self.said: list[str] = []

    def obtain(
        self,
        chips: Sequence[str] | None,
        cid: bool = True,
        gateway: str = "",
        http: bool = False,
        mirror: str = "",
        by_blocks: bool = True,
        kinds: Sequence[str] = ("mirror", "gateways", "lp_daac"),
    ) -> Had:
        file = BandRequest(
            f"tiles/{SCENE}/{SCENE}.B02.tif",
            f"{SCENE}/{SCENE}.B02.tif",
            "B02",
            self.cid if cid else "",
            self.link if http else "",
            MAX_BAND_BYTES,
        )
        ipfs = IpfsContent(kubo_api="", gateways=[gateway or self.server.gateway_url], timeout_seconds=20)
        there = {
            "mirror": [BandMirror(folder=mirror)],
            "gateways": ipfs.sources("gateways"),
            "lp_daac": [LpDaac(token="token", hosts=["127.0.0.1"], timeout_seconds=20)],
        }
        sources = Sources([one for kind in kinds for one in there[kind]], attempts=1, memory=Memory(4))
        fetched: list[int] = []
        with StoppablePool(8) as pool:
            blocks = Blocks(chips, pool) if by_blocks else None
            got = fetch_band(file, self.store, sources, self.said.append, fetched.append, True, blocks)
        path = Path(self.store.root) / file.name
        assert (got.bytes, got.sha256) == (path.stat().st_size, sha256_of(path))
        partials = Path(self.store.root) / f".partial-{os.getuid()}"
        left = [path for path in partials.glob("*") if path.is_file()]
        assert not left, "nothing unfinished is left"
        return Had(got, path, sum(fetched))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, WorldServer]]:
    folder = tmp_path_factory.mktemp("world")
    world = made_world(folder)
    scene = world.scenes[0]
    path = write(world.band_path(scene, "B02"), noise(1), **LAYOUTS["hls"])
    files = scene.files | {"B02": demo.DemoFile(path.stat().st_size, "", file_cid(path))}
    scene = demo.Scene(
        **{name: getattr(scene, name) for name in scene.__dataclass_fields__} | {"files": files}
    )
    world = World(folder, 2022, folder / "cdl.tif", (WEST,), (scene,), "none")
    with serve(world) as server:
        yield world, server


@pytest.fixture
def setting(tmp_path: Path, served: tuple[World, WorldServer]) -> Setting:
    return Setting(tmp_path, *served)


def chip_pixels(path: Path, chips: Sequence[str]) -> list[NDArray[np.int16] | None]:
    """The pixels of chips, as they are made from a band file."""
    found: list[NDArray[np.int16] | None] = []
    with rasterio.open(path) as raster:
        for chip in chips:
            at = source_pixels(chip_geobox(chip), raster_geobox(raster))
            found.append(None if at is None else bilinear(raster.read(1, window=at.window), at, -9999))
    return found


def same(ours: Path, theirs: Path, chips: Sequence[str]) -> bool:
    pairs = zip(chip_pixels(ours, chips), chip_pixels(theirs, chips), strict=True)
    return all(
        (a is None and b is None) or (a is not None and b is not None and (a == b).all()) for a, b in pairs
    )


NEAR = CHIPS[WEST][:2]
FAR = [CHIPS[WEST][-1], "chip_239_306"]


def test_only_the_leaves_under_the_chips_are_fetched_and_verified(setting: Setting) -> None:
    had = setting.obtain(NEAR)
    assert (had.got.verified, had.got.note) == (True, "")
    complete = setting.path.stat().st_size
    assert had.got.complete_bytes == complete
    assert had.fetched < complete / 3
    assert had.got.bytes < had.fetched
    assert same(had.path, setting.path, NEAR)
    made = read_partial(had.path)
    assert made is not None
    with rasterio.open(setting.path) as raster:
        wanted = blocks_of_chips(tuple(NEAR), raster_geobox(raster), (256, 256))
    assert set(made.blocks) == wanted
    assert had.got.blocks == len(wanted)
    assert (made.of, made.version, made.verified) == (f"{SCENE}.B02.tif", setting.cid, True)


@pytest.mark.parametrize("way", ["gateway without ranges", "links", "etag", "mirror", "mirror without a CID"])
def test_the_same_pixels_come_from_every_source(
    setting: Setting, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chips = [*NEAR, *FAR]
    if way == "gateway without ranges":
        monkeypatch.setattr("resources.ipfs.nodes.Gateway.takes_ranges", False)
        had = setting.obtain(chips)
    elif way == "links":
        had = setting.obtain(chips, http=True, kinds=["lp_daac", "gateways"])
        assert had.got.source == "LP DAAC"
    elif way == "etag":
        had = setting.obtain(chips, http=True, gateway=NOWHERE, kinds=["lp_daac", "gateways"])
    else:
        shutil.copy(setting.path, setting.folder)
        had = setting.obtain(chips, cid=way == "mirror", mirror=str(setting.folder))
        assert had.got.source == "mirror"
    notes = {"etag": (False, NO_LINKS), "mirror without a CID": (False, NO_CID)}
    assert (had.got.verified, had.got.note) == notes.get(way, (True, ""))
    assert same(had.path, setting.path, chips)
    assert had.got.blocks > 0
    assert had.got.complete_bytes == setting.path.stat().st_size
    if not way.startswith("mirror"):
        assert had.fetched < setting.path.stat().st_size / 2


def test_more_chips_fetch_only_what_is_missing(setting: Setting) -> None:
    first = setting.obtain(NEAR, cid=False, http=True)
    before = read_partial(first.path)
    again = setting.obtain(NEAR, cid=False, http=True)
    assert (again.got.source, again.fetched, again.got.sha256) == (IN_STORE, 0, first.got.sha256)
    fewer = setting.obtain(NEAR[:1], cid=False, http=True)
    assert (fewer.got.source, fewer.fetched) == (IN_STORE, 0)

    more = setting.obtain([*NEAR, *FAR], cid=False, http=True)
    after = read_partial(more.path)
    assert before
    assert after
    assert set(before.blocks) < set(after.blocks)
    new = sum(len(block) for n, block in after.blocks.items() if n not in before.blocks)
    assert new <= more.fetched <= new + 16_384 + 10 * (256 << 10)
    assert same(more.path, setting.path, [*NEAR, *FAR])
    other = Setting(setting.folder / "other", setting.world, setting.server)
    at_once = other.obtain([*NEAR, *FAR], cid=False, http=True)
    assert at_once.got.sha256 == more.got.sha256, (
        "the same blocks make the same bytes in whatever order they came"
    )


def test_a_complete_file_in_the_store_is_used_and_a_partial_one_completed(setting: Setting) -> None:
    first = setting.obtain(NEAR)
    complete = setting.obtain(None, by_blocks=False)
    assert complete.path.read_bytes() == setting.path.read_bytes()
    assert (complete.got.blocks, complete.got.complete_bytes) == (0, setting.path.stat().st_size)
    again = setting.obtain(NEAR)
    assert (again.got.source, again.fetched, again.got.blocks) == (IN_STORE, 0, 0)
    assert first.got.sha256 != again.got.sha256


def test_all_blocks_are_the_complete_raster(setting: Setting) -> None:
    had = setting.obtain(None)
    with rasterio.open(had.path) as ours, rasterio.open(setting.path) as theirs:
        assert (ours.read(1) == theirs.read(1)).all()
        assert (ours.crs, ours.transform, ours.nodata) == (theirs.crs, theirs.transform, theirs.nodata)
        assert ours.overviews(1) == []
    assert had.got.blocks == 225


def damaged(data: bytes) -> bytes:
    at = len(data) - 100
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize("change", [damaged, lambda data: data[:-1000], lambda data: b""])
def test_a_damaged_partial_file_is_fetched_again(setting: Setting, change: Callable[[bytes], bytes]) -> None:
    first = setting.obtain(NEAR)
    first.path.write_bytes(change(first.path.read_bytes()))
    again = setting.obtain(NEAR)
    assert again.got.source == setting.server.gateway_url
    assert again.got.sha256 == first.got.sha256
    assert any("fetching it again" in line for line in setting.said)


def test_blocks_of_another_cid_are_not_mixed(setting: Setting, tmp_path: Path) -> None:
    first = setting.obtain(NEAR)
    other = write(tmp_path / f"{SCENE}.B02.tif", noise(2), **LAYOUTS["hls"])
    setting.cid = file_cid(other)
    had = setting.obtain([*NEAR, *FAR], mirror=str(tmp_path))
    assert (had.got.source, had.got.verified) == ("mirror", True)
    assert same(had.path, other, [*NEAR, *FAR])
    assert not same(had.path, setting.path, NEAR)
    assert first.got.sha256 != had.got.sha256


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_chips_of_random_layouts_equal_those_of_complete_files(
    files: dict[str, Path],
    served: tuple[World, WorldServer],
    tmp_path_factory: pytest.TempPathFactory,
    data: Any,
) -> None:
    name = data.draw(st.sampled_from(sorted(files)))
    cells = st.tuples(st.sampled_from(ROWS), st.sampled_from(COLS))
    chips = [chip_id(*cell) for cell in data.draw(st.lists(cells, min_size=1, max_size=4, unique=True))]
    setting = Setting(tmp_path_factory.mktemp("one"), *served)
    folder = setting.folder / "mirror"
    folder.mkdir()
    os.link(files[name], folder / f"{SCENE}.B02.tif")
    some = setting.obtain(chips[:1], cid=False, mirror=str(folder))
    assert some.got.blocks > 0 or not read_blocks(files[name], chips[:1])
    had = setting.obtain(chips, cid=False, mirror=str(folder))
    assert same(had.path, files[name], chips)
    made = read_partial(had.path)
    assert made is not None
    assert set(made.blocks) == read_blocks(files[name], chips)


def read_blocks(path: Path, chips: Sequence[str]) -> set[int]:
    """The blocks that hold a pixel with a weight, or the nearest one, of any chip pixel; found one pixel at a time."""
    with rasterio.open(path) as raster:
        (rows, cols), across = raster.block_shapes[0], -(-SIDE // raster.block_shapes[0][1])
        needed = np.zeros((SIDE, SIDE), bool)
        for chip in chips:
            if (at := source_pixels(chip_geobox(chip), raster_geobox(raster))) is None:
                continue
            window = np.zeros((at.window.height, at.window.width), bool)
            window.ravel()[at.weights.indices] = True
            window.ravel()[at.nearest[at.inside]] = True
            # the first pixel of a window stands for neighbours outside the tile
            if not at.within and not (at.weights.tocoo().data[at.weights.tocoo().col == 0] > 0).any():
                window[0, 0] = bool((at.nearest[at.inside] == 0).any())
            top, left = at.window.row_off, at.window.col_off
            needed[top : top + at.window.height, left : left + at.window.width] |= window
        found = np.argwhere(needed)
    return set(np.unique(found[:, 0] // rows * across + found[:, 1] // cols).tolist())


def test_an_unusual_file_is_fetched_complete(setting: Setting, tmp_path: Path) -> None:
    odd = write(tmp_path / f"{SCENE}.B02.tif", noise(3, 5), tiled=True, endianness="big")
    had = setting.obtain(NEAR, cid=False, mirror=str(tmp_path), kinds=["mirror"])
    assert had.path.read_bytes() == odd.read_bytes()
    assert had.got.blocks == 0
    assert any("the complete file is fetched" in line for line in setting.said)


def test_a_compression_that_is_not_read_is_refused_in_blocks_too(setting: Setting, tmp_path: Path) -> None:
    write(tmp_path / f"{SCENE}.B02.tif", noise(3, 5), tiled=True, compress="lerc", max_z_error=0)
    with pytest.raises(ResourceError, match="LERC"):
        setting.obtain(NEAR, cid=False, mirror=str(tmp_path), kinds=["mirror"])
    assert any("the complete file is fetched" in line for line in setting.said)
    assert not setting.store.names(f"tiles/{SCENE}")


def test_a_file_of_another_tile_is_refused_before_its_blocks_are_fetched(
    setting: Setting, tmp_path: Path
) -> None:
    write(
        tmp_path / f"{SCENE}.B02.tif",
        noise(3, 5),
        transform=GRID * Affine.translation(100, 0),
        **LAYOUTS["hls"],
    )
    with pytest.raises(IntegrityError, match="not the grid of tile 14SMG"):
        setting.obtain(NEAR, cid=False, mirror=str(tmp_path), kinds=["mirror"])
    assert not setting.store.names(f"tiles/{SCENE}")


LIES = {
    "no digest": ("PARTIAL_SHA256", ""),
    "other blocks": ("PARTIAL_BLOCKS", "0-3"),
    "blocks beyond the file": ("PARTIAL_BLOCKS", "0-9999999999"),
    "no numbers": ("PARTIAL_BLOCKS", "a-b"),
    "no size": ("PARTIAL_BYTES", "many"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_partial_file_that_lies_is_refused(setting: Setting, lie: str) -> None:
    had = setting.obtain(NEAR)
    with rasterio.open(had.path, "r+") as raster:
        raster.update_tags(**dict([LIES[lie]]))
    with pytest.raises(IntegrityError, match="partial file"):
        read_partial(had.path)
    assert setting.obtain(NEAR).got.sha256 == had.got.sha256, "it is fetched again"


MB = 1 << 20


@pytest.mark.parametrize(
    ("fetch", "chips", "megabytes", "by_cid", "expected"),
    [
        ("auto", 2, 15, False, True),
        ("auto", 2, 15, True, True),
        ("auto", 150, 15, True, True),
        ("auto", 150, 2, True, False),
        ("auto", 2, 1, False, False),
        ("auto", None, 15, False, False),
        ("blocks", 150, 1, True, True),
        ("blocks", None, 15, False, True),
        ("files", 2, 15, False, False),
    ],
)
def test_blocks_are_chosen_where_they_pay(
    fetch: str, chips: int | None, megabytes: int, by_cid: bool, expected: bool
) -> None:
    cells = [chip_id(row, col) for row in range(229, 243) for col in range(303, 318)]
    wanted = None if chips is None else cells[:: max(1, len(cells) // chips)][:chips]
    chosen = choose_fetch(fetch, WEST, wanted, [megabytes * MB] * 18, by_cid)
    assert chosen.by_blocks == expected
    assert chosen.file_bytes == 18 * megabytes * MB
    assert 0 < chosen.block_bytes <= chosen.file_bytes
    assert f"{chosen.file_bytes / 1e6:,.0f} MB" in str(chosen)
    assert f"{chosen.block_bytes / 1e6:,.0f} MB" in str(chosen)


def test_the_estimate_is_near_what_is_fetched(setting: Setting) -> None:
    chips = [*NEAR, *FAR]
    size = setting.path.stat().st_size
    for by_cid in (False, True):
        had = Setting(setting.folder / str(by_cid), setting.world, setting.server).obtain(
            chips, cid=by_cid, http=True, kinds=["gateways", "lp_daac"]
        )
        estimate = choose_fetch("blocks", WEST, chips, [size], by_cid).block_bytes
        assert estimate / 1.5 < had.fetched < estimate * 1.5


def test_a_partial_file_that_others_put_into_the_store_is_not_taken(setting: Setting, tmp_path: Path) -> None:
    """Its tags say that it is verified, and nothing in it can show that."""
    other = write(tmp_path / f"{SCENE}.B02.tif", noise(2), **LAYOUTS["hls"])
    forger = Setting(tmp_path / "forger", setting.world, setting.server)
    forged = forger.obtain(NEAR, cid=False, mirror=str(tmp_path))
    with rasterio.open(forged.path, "r+") as raster:
        raster.update_tags(PARTIAL_VERSION=setting.cid, PARTIAL_VERIFIED="yes")
    assert read_partial(forged.path) is not None
    path = Path(setting.store.root) / f"tiles/{SCENE}/{SCENE}.B02.tif"
    path.parent.mkdir(parents=True)
    shutil.copy(forged.path, path)
    had = setting.obtain(NEAR)
    assert had.got.source == setting.server.gateway_url
    assert same(had.path, setting.path, NEAR)
    assert not same(had.path, other, NEAR)
    assert any("was not written by an earlier run" in line for line in setting.said)


@pytest.mark.parametrize("by_blocks", [True, False])
def test_a_partial_file_from_a_source_is_refused(setting: Setting, tmp_path: Path, by_blocks: bool) -> None:
    made = setting.obtain(NEAR)
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    shutil.copy(made.path, mirror / made.path.name)
    made.path.unlink()
    with pytest.raises(IntegrityError, match="has only some blocks of another file"):
        setting.obtain(NEAR, cid=False, mirror=str(mirror), kinds=["mirror"], by_blocks=by_blocks)
    assert not setting.store.names(f"tiles/{SCENE}")


@pytest.mark.parametrize("whole_tile", [False, True])
def test_chips_without_their_blocks_are_not_made_of_nothing(
    setting: Setting, tmp_path: Path, pool: Any, whole_tile: bool
) -> None:
    had = setting.obtain(NEAR)
    store = DatasetStore(root=str(tmp_path / "reprojected"))

    def reproject(name: str, path: Path, chips: Sequence[str], whole: bool = False) -> bytes:
        job = ReprojectionJob(SCENE, "B02", "2.0", nullcontext(path), partial(store.write_pieces, name))
        reproject_bands([job], chips, {}, pool, pool, {}, whole_tile=whole)
        return store.read_bytes(name)

    assert reproject("ours.tif", had.path, NEAR) == reproject("theirs.tif", setting.path, NEAR)
    with pytest.raises(InputError, match=r"B02\.tif lacks [0-9]+ of [0-9]+ blocks"):
        reproject("more.tif", had.path, NEAR if whole_tile else [*NEAR, *FAR], whole_tile)
    assert not store.exists("more.tif")


def test_a_file_that_changes_between_attempts_is_of_one_version(
    setting: Setting, files: dict[str, Path], tmp_path: Path, pool: Any
) -> None:
    """The store has blocks of the first version, the first attempt sees it too, and the second attempt another one."""
    had = setting.obtain(NEAR, cid=False, http=True)
    stored = read_partial(had.path)
    assert stored is not None
    scene_file = f"{SCENE}/{SCENE}.B02.tif"
    scratch, made = tmp_path / "scratch.tif", tmp_path / "made.tif"
    selection = BlockSelection(pool, scratch, scene_file, "B02", [*NEAR, *FAR], Grids(), stored)
    first, second = setting.path.read_bytes(), files["hls"].read_bytes()
    kept = selection.choose(lambda start, stop: first[start:stop], len(first), stored.version)
    again = selection.choose(lambda start, stop: second[start:stop], len(second), '"another"')
    assert len(again) == len(kept) + len(stored.blocks)
    selection.write(lambda start, stop: second[start:stop], made, '"another"', False)
    assert same(made, files["hls"], [*NEAR, *FAR])
    partial = read_partial(made)
    assert partial is not None
    assert partial.version == '"another"'
    assert selection.made is not None
    assert (partial.blocks, partial.size) == (selection.made.blocks, selection.made.size)
