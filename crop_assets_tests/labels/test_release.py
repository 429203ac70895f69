"""From the release page to the raster: what is downloaded, what is refused, and what stays unchanged."""

import errno
import io
import json
import os
import re
import shutil
import struct
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from numpy.typing import NDArray

from crop_assets.errors import InputError
from crop_assets.labels import release as release_module
from crop_assets.labels.release import YearRaster, obtain_raster
from crop_assets_tests.labels.conftest import WriteCdl
from crop_assets_tests.resources.loopback import closed_port
from crop_assets_tests.resources.nass import Nass, archive_of
from crop_assets_tests.resources.nass import nass as nass
from resources import cdl as cdl_module
from resources import store as store_module
from resources.cdl import CdlReleases
from resources.errors import (
    CutShortError,
    ForbiddenError,
    IntegrityError,
    LoginError,
    NotFoundError,
    RefusedError,
    ResourceError,
    TryAgainError,
    UnavailableError,
    UnreachableError,
    UnsafeNameError,
)

NAME = "2022_30m_cdls.tif"
ARCHIVE = "/Release/datasets/2022_30m_cdls.zip"


def codes(seed: int = 0, size: int = 500) -> NDArray[np.uint8]:
    """Fields of some crops, in patches of 20 x 20 pixels."""
    patches = np.random.default_rng(seed).choice(
        [1, 5, 24, 36, 61, 111, 121, 141, 176], (size // 20, size // 20)
    )
    return np.kron(patches, np.ones((20, 20))).astype(np.uint8)


Pack = Callable[..., bytes]


@pytest.fixture
def pack(write_cdl: WriteCdl, tmp_path: Path) -> Pack:
    """Packs codes as the archive of a release."""

    def packed(pixels: NDArray[Any], name: str = NAME, **profile: Any) -> bytes:
        raster = write_cdl(pixels, 67_100, 51_700, **profile)
        with rasterio.open(raster, "r+") as writing:
            if pixels.dtype == np.uint8:
                writing.write_colormap(1, {1: (255, 211, 0, 255), 5: (38, 112, 0, 255)})
        data = archive_of(tmp_path / "packed.zip", raster, name, **{"metadata.htm": "<html>"})
        raster.unlink()
        return data

    return packed


class Obtain:
    """Obtains the raster of 2022, and keeps what was logged."""

    def __init__(self, nass: Nass, folder: Path, pool: ThreadPoolExecutor) -> None:
        self.nass, self.folder, self._pool = nass, folder, pool
        self.logged: list[str] = []
        self.warned: list[str] = []

    @property
    def raster(self) -> Path:
        return self.folder / NAME

    def __call__(self, **settings: Any) -> YearRaster:
        self.nass.asked.clear()
        releases = self.nass.releases(self.folder, **settings)
        return obtain_raster(releases, 2022, self._pool, self.logged.append, self.warned.append)

    def names(self) -> set[str]:
        """Names of the files in the folder, without locks."""
        paths = [path for path in self.folder.rglob("*") if path.is_file() and path.suffix != ".alone"]
        return {path.relative_to(self.folder).as_posix() for path in paths}


@pytest.fixture
def obtain(nass: Nass, tmp_path: Path, pool: ThreadPoolExecutor) -> Obtain:
    return Obtain(nass, tmp_path / "cdl", pool)


def test_a_release_becomes_a_tiled_raster_with_overviews(nass: Nass, obtain: Obtain, pack: Pack) -> None:
    address = nass.put(2022, pack(codes()))
    made = obtain()
    assert made.path == obtain.raster
    assert made.origin is not None
    assert (made.origin.release, made.origin.raster_sha256) == (address, made.sha256)
    assert obtain.names() == {NAME, "2022_30m_cdls.release.json"}
    with rasterio.open(made.path) as raster:
        np.testing.assert_array_equal(raster.read(1), codes())
        assert raster.crs.to_epsg() == 5070
        assert raster.nodata is None
        assert raster.block_shapes == [(224, 224)]
        assert raster.overviews(1) == [2, 4]
        assert raster.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert raster.colormap(1)[5] == (38, 112, 0, 255)


def test_the_same_release_gives_the_same_bytes(
    nass: Nass, obtain: Obtain, pack: Pack, tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    nass.put(2022, pack(codes()))
    assert Obtain(nass, tmp_path / "elsewhere", pool)().sha256 == obtain().sha256


def test_a_release_is_downloaded_only_once(nass: Nass, obtain: Obtain, pack: Pack) -> None:
    nass.put(2022, pack(codes()))
    made = obtain()
    before = obtain.raster.stat().st_mtime_ns
    assert obtain() == made
    assert nass.asked_for("GET") == ["/Release/index.php"]
    assert nass.asked_for("HEAD") == [ARCHIVE]
    assert obtain.raster.stat().st_mtime_ns == before


def test_a_new_version_with_the_same_bytes_leaves_the_raster_as_it_is(
    nass: Nass, obtain: Obtain, pack: Pack
) -> None:
    nass.put(2022, pack(codes()))
    made = obtain()
    before = obtain.raster.stat().st_mtime_ns
    nass.etags[ARCHIVE] = '"touched"'
    again = obtain()
    assert again.sha256 == made.sha256
    assert again.origin is not None
    assert again.origin.version.endswith(' "touched"')
    assert obtain.raster.stat().st_mtime_ns == before
    obtain()
    assert ARCHIVE not in nass.asked_for("GET")


def test_a_new_etag_alone_fetches_nothing_and_a_new_date_does(nass: Nass, obtain: Obtain, pack: Pack) -> None:
    data = pack(codes())
    nass.put(2022, data)
    nass.dates[ARCHIVE] = "Mon, 30 Jan 2023 10:00:00 GMT"
    made = obtain()
    nass.etags[ARCHIVE] = 'W/"another-server"'
    assert obtain() == made
    assert ARCHIVE not in nass.asked_for("GET")
    nass.dates[ARCHIVE] = "Tue, 31 Jan 2023 10:00:00 GMT"
    obtain()
    assert nass.asked_for("GET").count(ARCHIVE) == 1


def test_a_release_with_other_pixels_replaces_the_earlier_one(nass: Nass, obtain: Obtain, pack: Pack) -> None:
    nass.put(2022, pack(codes()))
    first = obtain()
    nass.put(2022, pack(codes(seed=1)))
    second = obtain()
    assert second.sha256 != first.sha256
    with rasterio.open(obtain.raster) as raster:
        np.testing.assert_array_equal(raster.read(1), codes(seed=1))
    assert any("a newer release" in text for text in obtain.logged)


def test_a_local_raster_is_never_touched(nass: Nass, obtain: Obtain, pack: Pack, write_cdl: WriteCdl) -> None:
    nass.put(2022, pack(codes()))
    obtain.folder.mkdir()
    shutil.move(write_cdl(codes(seed=2), 67_100, 51_700), obtain.raster)
    before = obtain.raster.read_bytes()
    assert obtain().origin is None
    assert nass.asked == []
    assert obtain.names() == {NAME}
    assert obtain.raster.read_bytes() == before


def test_a_raster_that_replaces_a_downloaded_one_counts_as_local(
    nass: Nass, obtain: Obtain, pack: Pack, write_cdl: WriteCdl
) -> None:
    nass.put(2022, pack(codes()))
    obtain()
    shutil.move(write_cdl(codes(seed=2), 67_100, 51_700), obtain.raster)
    before = obtain.raster.read_bytes()
    nass.put(2022, pack(codes(seed=1)))
    assert obtain().origin is None
    assert obtain.raster.read_bytes() == before


@pytest.mark.parametrize("lost", ["the raster", "the new raster's rename"])
def test_a_run_that_was_killed_between_record_and_raster_is_repeated(
    nass: Nass, obtain: Obtain, pack: Pack, lost: str
) -> None:
    nass.put(2022, pack(codes()))
    first = obtain()
    before = obtain.raster.read_bytes()
    if lost == "the raster":
        obtain.raster.unlink()
    else:
        nass.put(2022, pack(codes(seed=1)))
        obtain()
        obtain.raster.write_bytes(before)
    made = obtain()
    assert made.origin is not None
    assert (made.sha256 == first.sha256) == (lost == "the raster")
    assert made.origin.raster_sha256 == made.sha256
    with rasterio.open(obtain.raster) as raster:
        np.testing.assert_array_equal(raster.read(1), codes(seed=int(lost != "the raster")))


def test_a_local_archive_is_unpacked_without_the_network(nass: Nass, obtain: Obtain, pack: Pack) -> None:
    obtain.folder.mkdir()
    archive = obtain.folder / "2022_30m_cdls.zip"
    archive.write_bytes(pack(codes()))
    made = obtain()
    assert nass.asked == []
    assert made.origin is not None
    assert made.origin.release == "2022_30m_cdls.zip"
    assert archive.is_file()
    assert obtain(index="", source=str(archive)) == made
    archive.write_bytes(pack(codes(seed=1)))
    assert obtain().sha256 != made.sha256


def test_an_interrupted_download_is_resumed(nass: Nass, obtain: Obtain, pack: Pack) -> None:
    data = pack(codes())
    nass.put(2022, data)
    nass.cut[ARCHIVE] = len(data) // 2
    obtain()
    ranges = [asked for method, path, asked in nass.asked if (method, path) == ("GET", ARCHIVE)]
    assert ranges[0] == ""
    assert 0 < int(ranges[1].removeprefix("bytes=").removesuffix("-")) <= len(data) // 2


def test_a_download_interrupted_in_one_run_is_resumed_in_the_next(
    nass: Nass, obtain: Obtain, pack: Pack
) -> None:
    data = pack(codes())
    nass.put(2022, data)
    nass.cut[ARCHIVE] = len(data) // 2
    with pytest.raises(CutShortError, match="was cut short"):
        obtain(attempts=1)
    assert not obtain.raster.exists()
    obtain(attempts=1)
    assert any(asked.startswith("bytes=") for _, path, asked in nass.asked if path == ARCHIVE)
    with rasterio.open(obtain.raster) as raster:
        np.testing.assert_array_equal(raster.read(1), codes())


def test_a_release_published_during_a_download_is_downloaded_from_its_start(
    nass: Nass, obtain: Obtain, pack: Pack
) -> None:
    data = pack(codes())
    nass.put(2022, data)
    nass.cut[ARCHIVE] = len(data) // 2
    with pytest.raises(CutShortError):
        obtain(attempts=1)
    nass.put(2022, pack(codes(seed=1)))
    obtain()
    with rasterio.open(obtain.raster) as raster:
        np.testing.assert_array_equal(raster.read(1), codes(seed=1))


def test_a_fetched_archive_outlasts_a_failed_run_but_not_a_damaged_one(
    nass: Nass, obtain: Obtain, pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = pack(codes())
    nass.put(2022, data)
    room = shutil._ntuple_diskusage(1, 1, len(data) * 3 // 2)
    with monkeypatch.context() as patch:
        patch.setattr(store_module.shutil, "disk_usage", lambda _: room)
        with pytest.raises(OSError, match=r"MB free, and .* MB are needed; make room"):
            obtain()
    made = obtain()
    assert ARCHIVE not in nass.asked_for("GET"), "it was there already"
    nass.put(2022, pack(codes(seed=1))[:-2000] + bytes(2000))
    with pytest.raises(IntegrityError, match="is not a zip archive, or is cut short"):
        obtain()
    assert obtain.raster.is_file()
    nass.put(2022, pack(codes(seed=1)))
    assert obtain().sha256 != made.sha256


@pytest.mark.parametrize("broken", ["/Release/index.php", ARCHIVE])
def test_without_an_answer_the_earlier_release_is_used(
    nass: Nass, obtain: Obtain, pack: Pack, broken: str
) -> None:
    nass.put(2022, pack(codes()))
    made = obtain()
    nass.broken[broken] = 503
    assert obtain(attempts=1) == made
    assert "answered 503" in obtain.warned[0]
    assert "using the release that was downloaded earlier" in obtain.warned[0]
    obtain.raster.unlink()
    with pytest.raises(
        TryAgainError, match=r"there is no CDL raster of 2022 at .*answered 503.*yourself, or try again"
    ):
        obtain(attempts=1)


@pytest.mark.parametrize(
    ("status", "kind", "may_help"),
    [
        (429, TryAgainError, True),
        (500, TryAgainError, True),
        (418, RefusedError, False),
        (403, ForbiddenError, False),
        (401, LoginError, False),
        (410, NotFoundError, False),
        (0, UnreachableError, True),
        (200, IntegrityError, False),
    ],
)
@pytest.mark.parametrize("broken", ["/Release/index.php", ARCHIVE])
def test_the_error_without_a_release_says_whether_a_retry_can_help(
    nass: Nass, obtain: Obtain, status: int, kind: type[ResourceError], may_help: bool, broken: str
) -> None:
    nass.put(2022, b"an archive")
    if status == 200:
        nass.page, nass.etags[ARCHIVE], nass.sizeless = ("moved" if broken != ARCHIVE else None), "", True
    elif status:
        nass.broken[broken] = status
    settings = {} if status else {"index": f"{closed_port()}/Release/"}
    with pytest.raises(ResourceError, match=r"there is no CDL raster of 2022 at .*Put 2022_") as error:
        obtain(attempts=1, **settings)
    assert type(error.value) is kind
    assert isinstance(error.value, UnavailableError) is may_help
    assert ("or try again later" in str(error.value)) is may_help


def test_the_pause_that_a_server_asks_for_is_kept(nass: Nass, obtain: Obtain) -> None:
    nass.broken["/Release/index.php"] = 503
    nass.pause = 7
    with pytest.raises(TryAgainError) as error:
        obtain(attempts=1)
    assert error.value.retry_after == 7


def test_without_an_index_the_error_says_where_to_put_the_file(obtain: Obtain) -> None:
    with pytest.raises(
        NotFoundError, match=r"there is no CDL raster of 2022 at .*/cdl/2022_30m_cdls\.tif; put 2022_"
    ):
        obtain(index="")


def zipped(*members: tuple[str, bytes], declared: int | None = None) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    data = out.getvalue()
    if declared is not None:
        entry = data.index(b"PK\1\2")
        data = data[: entry + 24] + struct.pack("<I", declared) + data[entry + 28 :]
    return data


def said_to_be_of(size: int, archive: bytes) -> bytes:
    """The archive, each of its members said to have this many bytes, compressed or not."""
    data, entry = bytearray(archive), archive.index(b"PK\1\2")
    while entry >= 0:
        struct.pack_into("<II", data, entry + 20, size, size)
        entry = archive.find(b"PK\1\2", entry + 4)
    return bytes(data)


def misplaced(archive: bytes) -> bytes:
    """The archive, with a directory that claims to be before its start."""
    end = archive.rindex(b"PK\5\6")
    return archive[: end + 16] + struct.pack("<I", 2**31) + archive[end + 20 :]


def nameless(archive: bytes) -> bytes:
    """The archive, with one letter of a name counted as part of the extra field after it."""
    lengths = archive.index(b"PK\1\2") + 28
    return archive[:lengths] + struct.pack("<HH", 0, 1) + archive[lengths + 4 :]


UNFIT = {
    "a bomb": (
        zipped((NAME, bytes(30_000_000))),
        r"would unpack [\d,]+ bytes to 30,000,000, more than 200 times",
    ),
    "a lie about the size": (zipped((NAME, bytes(1000)), declared=900), "cannot be unpacked: Bad CRC-32"),
    "a name that climbs": (zipped((f"../{NAME}", b"x")), r"unsafe name '\.\./2022_30m_cdls\.tif'"),
    "a name from the root": (zipped((f"/etc/{NAME}", b"x")), "unsafe name"),
    "a name with a backslash": (zipped((f"a\\{NAME}", b"x")), "unsafe name"),
    "no name": (nameless(zipped(("a", b"x"))), "unsafe name ''"),
    "a name that is a folder's": (zipped((".", b"x")), r"unsafe name '\.'"),
    "a name with a drive": (zipped((f"C:{NAME}", b"x")), "unsafe name"),
    "another year": (
        zipped(("2021_30m_cdls.tif", b"x")),
        r"must contain one 2022_30m_cdls\.tif or \.img, but contains 0 \(2021_30m_cdls\.tif\)",
    ),
    "two rasters": (zipped((NAME, b"x"), (f"again/{NAME}", b"x")), "but contains 2"),
    "nothing in it": (zipped(), r"but contains 0 \(nothing\)"),
    "a cut archive": (zipped((NAME, b"x" * 5000))[:-30], "is not a zip archive, or is cut short"),
    "a text": (b"Sorry", "is not a zip archive"),
    "a directory elsewhere": (misplaced(zipped((NAME, b"x"))), r"is not a zip archive|cannot be unpacked"),
    "no raster": (
        zipped((NAME, b"<VRTDataset rasterXSize='9'/>")),
        r"cannot be read or converted: .* not recognized",
    ),
}


@pytest.mark.parametrize("case", UNFIT)
def test_an_invalid_or_unsafe_archive_is_refused(nass: Nass, obtain: Obtain, case: str) -> None:
    archive, message = UNFIT[case]
    nass.put(2022, archive)
    with pytest.raises((IntegrityError, InputError), match=message):
        obtain()
    assert not obtain.raster.exists()
    with pytest.raises((IntegrityError, InputError), match=message):
        obtain()
    nass.put(2022, b"another")
    with pytest.raises(IntegrityError, match="is not a zip archive"):
        obtain()


def altered(archive: bytes, method: int, flags: int = 0, part: int = 0) -> bytes:
    """The archive with another method and flags of its first member, or as the last part of several.

    Stored blocks, as of level 0, are the same in Deflate64.
    """
    data, entry, end = bytearray(archive), archive.index(b"PK\1\2"), archive.rindex(b"PK\5\6")
    for place in (8, entry + 10):
        struct.pack_into("<H", data, place, method)
        struct.pack_into("<H", data, place - 2, flags)
    struct.pack_into("<H", data, end + 4, part)
    return bytes(data)


KEPT = {
    "Deflate64": (9, 0, 0, "cannot be unpacked by Python: it is compressed with Deflate64"),
    "Zstandard": (93, 0, 0, "it is compressed with Zstandard"),
    "encrypted": (8, 1, 0, "cannot be unpacked by Python: .* is encrypted"),
    "AES": (99, 1, 0, "it is compressed with AES encryption|is encrypted"),
    "patched": (8, 0x20, 0, "cannot be unpacked by Python: compressed patched data"),
    "strong encryption": (8, 0x41, 0, "cannot be unpacked by Python: strong encryption"),
    "the last of several parts": (8, 0, 3, "is part 4 of a zip archive in several parts"),
}


@pytest.mark.parametrize("case", KEPT)
def test_an_archive_that_python_cannot_unpack_is_downloaded_once_and_kept(
    nass: Nass, obtain: Obtain, pack: Pack, tmp_path: Path, case: str
) -> None:
    with zipfile.ZipFile(io.BytesIO(pack(codes()))) as whole:
        raster = whole.read(NAME)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=0) as archive:
        archive.writestr(NAME, raster)
    method, flags, part, why = KEPT[case]
    data = altered(out.getvalue(), method, flags, part)
    nass.put(2022, data)
    told = []
    for fetched in (1, 0, 0):
        with pytest.raises(IntegrityError, match=why) as error:
            obtain()
        assert nass.asked_for("GET").count(ARCHIVE) == fetched
        told.append(str(error.value))
    assert told[0] == told[1] == told[2]
    found = re.search(
        r"The archive stays at (\S+), and is not .* 7-Zip or unzip, and put \S+ at (\S+), or set", told[0]
    )
    assert found
    assert Path(found[1]).read_bytes() == data
    assert Path(found[2]) == obtain.raster
    # what the advice says
    obtain.raster.write_bytes(raster)
    assert obtain().origin is None
    obtain.raster.rename(tmp_path / NAME)
    assert obtain(source=str(tmp_path / NAME)).path == tmp_path / NAME


@pytest.mark.parametrize(
    "note",
    [
        b"",
        b"[" * 100_000,
        b"{}",
        b"[1]",
        b'[{"release": 1}]',
        b"\xff",
        b" " * 100_000,
        b'[{"release": "", "version": 3}]',
    ],
)
def test_a_raster_with_an_invalid_record_counts_as_local(
    nass: Nass, obtain: Obtain, pack: Pack, note: bytes
) -> None:
    nass.put(2022, pack(codes()))
    assert obtain().origin
    (obtain.folder / "2022_30m_cdls.release.json").write_bytes(note)
    assert obtain().origin is None
    assert "is not the raster recorded in 2022_30m_cdls.release.json" in obtain.logged[-1]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make a link somebody else's")
@pytest.mark.parametrize("planted", [NAME, "2022_30m_cdls.zip", "folder"])
def test_a_link_of_another_user_is_not_followed_and_keeps_no_other_year_waiting(
    nass: Nass, obtain: Obtain, pack: Pack, tmp_path: Path, planted: str
) -> None:
    nass.put(2022, pack(codes()))
    folder = obtain.folder
    elsewhere = tmp_path / "home"
    elsewhere.mkdir()
    (elsewhere / NAME).write_bytes(b"the operator's own")
    if planted == "folder":
        link, target = folder, elsewhere
    else:
        folder.mkdir()
        link, target = folder / planted, elsewhere / NAME
    link.symlink_to(target)
    os.lchown(link, 12345, 12345)
    told: list[str] = []
    (folder / "2021_30m_cdls.tif").write_bytes(b"another year's")
    releases = nass.releases(folder)
    years = [release.year for release in releases.releases(told.append)]
    if planted != "folder":
        assert years == [2021, 2022], "2022 is on the index as well"
        assert releases.releases()[1].location.startswith("http")
    links = [text for text in told if "of another user" in text]
    assert [text.split(" of ")[0] for text in links] == [f"{link} is a symbolic link"]
    with pytest.raises(UnsafeNameError, match="remove it, or make it yourself"):
        obtain()
    assert (elsewhere / NAME).read_bytes() == b"the operator's own"
    assert not list(elsewhere.glob(".partial-*"))
    os.lchown(link, os.getuid(), os.getgid())
    assert releases.find(2022) if planted != "2022_30m_cdls.zip" else releases.release(2022)


@pytest.mark.parametrize("kind", ["symbolic", "hard"])
@pytest.mark.parametrize(
    "planted", [".writing-2022_30m_cdls.release.json", "2022_30m_cdls.release.json", f".writing-{NAME}"]
)
def test_links_next_to_the_raster_redirect_no_write(
    nass: Nass, obtain: Obtain, pack: Pack, tmp_path: Path, planted: str, kind: str
) -> None:
    keys = tmp_path / "authorized_keys"
    keys.write_bytes(b"the operator's own")
    obtain.folder.mkdir(exist_ok=True)
    plant = (
        (obtain.folder / planted).symlink_to if kind == "symbolic" else (obtain.folder / planted).hardlink_to
    )
    plant(keys)
    nass.put(2022, pack(codes()))
    assert obtain().origin
    assert keys.read_bytes() == b"the operator's own"
    assert json.loads((obtain.folder / "2022_30m_cdls.release.json").read_bytes())
    assert not (obtain.folder / "2022_30m_cdls.release.json").is_symlink()


@pytest.mark.parametrize(
    "case", ["a bomb", "a name that climbs", "another year", "two rasters", "a method of no format", "a text"]
)
def test_only_a_damaged_archive_is_fetched_again(nass: Nass, obtain: Obtain, case: str) -> None:
    damaged = case in ("a method of no format", "a text")
    nass.put(2022, UNFIT[case][0] if case in UNFIT else altered(zipped((NAME, b"x" * 99)), 77))
    for fetched in (1, int(damaged), int(damaged)):
        with pytest.raises(IntegrityError) as error:
            obtain()
        assert ("The archive stays at" in str(error.value)) is not damaged
        assert nass.asked_for("GET").count(ARCHIVE) == fetched


def test_a_page_in_place_of_an_archive_is_named_and_the_archive_fetched_when_it_is_there(
    nass: Nass, obtain: Obtain, pack: Pack
) -> None:
    nass.put(2022, b"<!DOCTYPE html><title>Maintenance until 6 pm</title>")
    with pytest.raises(RefusedError, match=r'answered with a web page \("Maintenance until 6 pm"\)'):
        obtain()
    assert not obtain.raster.exists()
    nass.put(2022, pack(codes()))
    assert obtain().origin


def test_a_full_disk_while_unpacking_costs_no_second_fetch(
    nass: Nass, obtain: Obtain, pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    nass.put(2022, pack(codes()))
    with monkeypatch.context() as patch:

        def full(*_: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(release_module, "unpack", full)
        with pytest.raises(OSError, match="No space left"):
            obtain()
    assert obtain().origin
    assert ARCHIVE not in nass.asked_for("GET")


def test_a_local_archive_that_python_cannot_unpack_is_kept(obtain: Obtain, nass: Nass) -> None:
    obtain.folder.mkdir()
    archive = obtain.folder / "2022_30m_cdls.zip"
    archive.write_bytes(altered(zipped((NAME, b"x" * 99)), 98))
    with pytest.raises(
        IntegrityError, match=rf"compressed with PPMd\. The archive stays at {archive}\. Unpack"
    ):
        obtain()
    assert archive.is_file()
    assert nass.asked == []


def test_an_archive_that_unpacks_beyond_the_limit_is_refused(nass: Nass, obtain: Obtain) -> None:
    archive = zipped((NAME, b"x" * 99), *((f"{i}.tif.ovr", b"x") for i in range(10)))
    nass.put(2022, said_to_be_of(0xFFFFFFFE, archive))
    with pytest.raises(IntegrityError, match=r"unpacks to 44\.0 GiB; the most is 40\.0 GiB"):
        obtain()


def test_an_archive_beyond_the_limit_is_not_fetched_whole(
    nass: Nass, obtain: Obtain, pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cdl_module, "MAX_ARCHIVE_BYTES", 1000)
    nass.put(2022, pack(codes()))
    with pytest.raises(IntegrityError, match="answered more than 1,000 bytes"):
        obtain()
    assert obtain.names() == set()


@pytest.mark.parametrize(
    ("pixels", "profile", "message"),
    [
        (codes(size=300), {}, "contains no complete chip of the national grid"),
        (
            codes(),
            {"crs": "EPSG:32614"},
            r"2022_30m_cdls\.zip: 2022_30m_cdls\.tif is in EPSG:32614, not EPSG:5070",
        ),
        (codes().astype(np.uint16), {}, r"2022_30m_cdls\.tif has 1 band\(s\) of uint16"),
        (
            np.where(codes() == 1, 99, codes()).astype(np.uint8),
            {},
            r"codes without a class: [\d,]+ pixels of code 99; such as",
        ),
    ],
)
def test_a_release_that_is_not_a_cdl_is_refused_and_the_earlier_one_kept(
    nass: Nass, obtain: Obtain, pack: Pack, pixels: NDArray[Any], profile: dict[str, Any], message: str
) -> None:
    nass.put(2022, pack(codes()))
    made = obtain()
    nass.put(2022, pack(pixels, **profile))
    with pytest.raises(InputError, match=message) as error:
        obtain()
    assert ".partial" not in str(error.value)
    assert obtain.raster.is_file()
    record = json.loads((obtain.folder / "2022_30m_cdls.release.json").read_text())
    assert [noted["raster_sha256"] for noted in record] == [made.sha256]
    left = {name for name in obtain.names() if not name.endswith(".whole")}
    assert left == {NAME, "2022_30m_cdls.release.json"}, "the archive alone stays, to be looked at"


def test_a_raster_put_there_meanwhile_counts_as_local_and_is_kept(
    nass: Nass, obtain: Obtain, pack: Pack, write_cdl: WriteCdl, pool: ThreadPoolExecutor
) -> None:
    nass.put(2022, pack(codes()))
    mine = write_cdl(codes(seed=2), 67_100, 51_700).read_bytes()

    def log(text: str) -> None:
        if text.startswith("writing a tiled raster"):
            obtain.raster.write_bytes(mine)

    made = obtain_raster(nass.releases(obtain.folder), 2022, pool, log, print)
    assert made.origin is None
    assert obtain.raster.read_bytes() == mine
    assert obtain.names() == {NAME}
    assert obtain().origin is None


def test_of_two_runs_one_fetches_and_the_other_waits(
    nass: Nass, tmp_path: Path, pack: Pack, pool: ThreadPoolExecutor
) -> None:
    nass.put(2022, pack(codes()))
    runs = [Obtain(nass, tmp_path / "cdl", pool) for _ in range(2)]
    with ThreadPoolExecutor(2) as people:
        first, second = (people.submit(run) for run in runs)
        assert first.result() == second.result()
    assert nass.asked_for("GET").count(ARCHIVE) <= 1
    logged = [text for run in runs for text in run.logged]
    assert sum("is new; using it" in text for text in logged) == 1


def test_a_killed_run_leaves_the_earlier_release_to_be_used(nass: Nass, obtain: Obtain, pack: Pack) -> None:
    nass.put(2022, pack(codes()))
    first, before = obtain(), obtain.raster.read_bytes()
    nass.put(2022, pack(codes(seed=1)))
    obtain()
    # as if the run had ended between note and raster
    obtain.raster.write_bytes(before)
    nass.broken["/Release/index.php"] = 503
    assert obtain(attempts=1) == first
    assert obtain(index="") == first


def test_a_raster_larger_than_the_country_is_refused(
    nass: Nass, obtain: Obtain, tmp_path: Path, write_cdl: WriteCdl
) -> None:
    raster = tmp_path / "vast.tif"
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "crs": "EPSG:5070", "sparse_ok": True}
    place = rasterio.Affine(30, 0, -2356095, 0, -30, 3172605)
    with rasterio.open(raster, "w", width=170_000, height=224, transform=place, **profile):
        pass
    nass.put(2022, archive_of(tmp_path / "packed.zip", raster, NAME))
    with pytest.raises(InputError, match="170,000 x 224 pixels, more than the national raster"):
        obtain()


def test_a_vrt_is_not_accepted_as_the_raster_of_a_release(
    nass: Nass, obtain: Obtain, tmp_path: Path, write_cdl: WriteCdl
) -> None:
    secret = write_cdl(codes(), 67_100, 51_700).rename(tmp_path / "secret.tif")
    with rasterio.open(secret) as raster:
        rasterio.shutil.copy(raster, tmp_path / "other.vrt", driver="VRT")
    described = (
        (tmp_path / "other.vrt")
        .read_bytes()
        .replace(b'relativeToVRT="1">secret.tif', f'relativeToVRT="0">{secret}'.encode())
    )
    nass.put(2022, zipped((NAME, described)))
    with pytest.raises(InputError, match="cannot be read or converted"):
        obtain()
    assert not obtain.raster.exists()


def test_a_raster_cut_short_within_a_whole_archive_is_refused(nass: Nass, obtain: Obtain, pack: Pack) -> None:
    with zipfile.ZipFile(io.BytesIO(pack(codes()))) as whole:
        raster = whole.read(NAME)
    nass.put(2022, zipped((NAME, raster[: len(raster) // 2])))
    with pytest.raises(InputError, match=r"2022_30m_cdls\.zip: 2022_30m_cdls\.tif cannot be read"):
        obtain()
    assert not obtain.raster.exists()


def test_the_real_release_keeps_its_pixels_and_palette(
    real: Path, nass: Nass, tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    source = real / "cdl/2021_30m_cdls.tif"
    address = nass.put(2021, archive_of(tmp_path / "packed.zip", source, "2021_30m_cdls.tif"))
    made = obtain_raster(nass.releases(tmp_path / "cdl"), 2021, pool, print, print)
    assert made.origin is not None
    assert made.origin.release == address
    with rasterio.open(source) as ours, rasterio.open(made.path) as theirs:
        np.testing.assert_array_equal(ours.read(1), theirs.read(1))
        assert ours.transform == theirs.transform
        assert ours.colormap(1) == theirs.colormap(1)


def test_an_archive_of_another_year_is_refused_also_when_its_raster_is_there(
    obtain: Obtain, pack: Pack, tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    archive = tmp_path / "2019_30m_cdls.zip"
    archive.write_bytes(pack(codes(), "2019_30m_cdls.tif"))
    releases = CdlReleases(source=str(archive))
    assert obtain_raster(releases, 2019, pool, print, print).origin is not None
    with pytest.raises(
        NotFoundError, match=r"2019_30m_cdls\.zip is the raster of 2019 by its name, but 2022"
    ):
        obtain_raster(releases, 2022, pool, print, print)


def img_parts(folder: Path, write_cdl: WriteCdl, pixels: NDArray[Any]) -> dict[str, bytes]:
    """The .img of a release and the .ige with its pixels, by suffix."""
    with rasterio.open(write_cdl(pixels, 67_100, 51_700)) as raster:
        rasterio.shutil.copy(raster, folder / "2022_30m_cdls.img", driver="HFA", USE_SPILL="YES")
    return {suffix: (folder / f"2022_30m_cdls{suffix}").read_bytes() for suffix in (".img", ".ige")}


def test_an_archive_of_an_img_and_its_pixels_becomes_a_tiled_raster(
    nass: Nass, obtain: Obtain, write_cdl: WriteCdl, tmp_path: Path
) -> None:
    parts = img_parts(tmp_path, write_cdl, codes(8))
    named = [(f"cdl/2022_30m_cdls{suffix}", data) for suffix, data in parts.items()]
    nass.put(2022, zipped(*reversed(named), ("2022_30m_cdls.htm", b"<html>")))
    made = obtain()
    with rasterio.open(made.path) as raster:
        np.testing.assert_array_equal(raster.read(1), codes(8))
        assert (raster.driver, raster.crs.to_epsg()) == ("GTiff", 5070)
    assert obtain.names() == {NAME, "2022_30m_cdls.release.json"}
    # without its pixels it is no raster
    nass.put(2022, zipped(named[0]))
    with pytest.raises(
        InputError,
        match=r"2022_30m_cdls\.img is read from 2022_30m_cdls\.ige, which is not in the archive",
    ):
        obtain()
    assert obtain.names() >= {NAME}


def test_a_raster_with_a_statistics_file_is_still_that_of_its_release(
    nass: Nass, obtain: Obtain, pack: Pack
) -> None:
    nass.put(2022, pack(codes()))
    before = obtain()
    obtain.raster.with_name(f"{NAME}.aux.xml").write_text("<PAMDataset><Metadata/></PAMDataset>")
    assert obtain().origin == before.origin
    nass.put(2022, pack(codes(1)))
    with rasterio.open(obtain().path) as raster:
        np.testing.assert_array_equal(raster.read(1), codes(1))


def test_a_release_with_an_unknown_code_is_taken_when_the_recipe_allows_it_and_not_fetched_twice(
    nass: Nass, obtain: Obtain, pack: Pack, pool: ThreadPoolExecutor
) -> None:
    odd = codes(9)
    odd[40, 60] = 40
    nass.put(2022, pack(odd, nodata=255))
    with pytest.raises(InputError, match="codes without a class: 1 pixel of code 40; such as 40 at"):
        obtain()
    nass.asked.clear()
    made = obtain_raster(nass.releases(obtain.folder), 2022, pool, print, print, "other")
    assert nass.asked_for("GET") == ["/Release/index.php"]
    with rasterio.open(made.path) as raster:
        np.testing.assert_array_equal(raster.read(1), odd)
        assert raster.nodata == 255
