import hashlib
import multiprocessing
import os
import re
import signal
import stat
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import rasterio
import s3fs
from affine import Affine
from moto.server import ThreadedMotoServer

from resources.errors import UnsafeNameError
from resources.store import DatasetStore
from resources.tables import Column, TableSchema, read_table, stored_table, write_table

BUCKET = "crops"
RACES = 25
WEEK = 7 * 24 * 3600


@pytest.fixture(scope="module")
def object_store() -> Iterator[None]:
    """An S3 server of one bucket, with what s3fs and GDAL need to find it in the environment."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_S3_ENDPOINT", f"{host}:{port}")
        patch.setenv("AWS_HTTPS", "NO")
        patch.setenv("AWS_VIRTUAL_HOSTING", "FALSE")
        s3fs.S3FileSystem.clear_instance_cache()
        elsewhere().mkdir(BUCKET)
        yield
        s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def elsewhere() -> s3fs.S3FileSystem:
    """The bucket as another machine has it: nothing is shared with the store under test."""
    return s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)


@pytest.fixture
def folder(tmp_path: Path) -> DatasetStore:
    return DatasetStore(root=str(tmp_path / "store"))


@pytest.fixture
def bucket(object_store: None, tmp_path: Path, scratch: Path) -> DatasetStore:
    return DatasetStore(root=f"s3://{BUCKET}/{tmp_path.name}")


@pytest.fixture(params=["folder", "bucket"])
def store(request: pytest.FixtureRequest) -> DatasetStore:
    chosen: DatasetStore = request.getfixturevalue(request.param)
    return chosen


def everything(store: DatasetStore, scratch: Path) -> set[str]:
    """Every file below the root, temporary ones as well, and every one in the scratch folder."""
    if store.is_local:
        root = Path(store.root)
        found = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    else:
        root_key = store.root.removeprefix("s3://")
        found = {key.removeprefix(f"{root_key}/") for key in elsewhere().find(root_key)}
    return found | {f"scratch/{path.name}" for path in scratch.rglob("*") if path.is_file()}


def write_raster(path: Path, value: int) -> None:
    with rasterio.open(
        *(path, "w"),
        driver="GTiff",
        count=1,
        height=32,
        width=32,
        dtype="int16",
        crs="EPSG:5070",
        transform=Affine(30, 0, 0, 0, -30, 0),
    ) as raster:
        raster.write(np.full((1, 32, 32), value, np.int16))


def test_what_is_written_can_be_read(store: DatasetStore) -> None:
    assert not store.exists("a/b/c.txt")
    store.write_bytes("a/b/c.txt", b"abc")
    assert store.exists("a/b/c.txt")
    assert store.read_bytes("a/b/c.txt") == b"abc"
    assert store.size("a/b/c.txt") == 3
    store.write_bytes("a/b/c.txt", b"")
    assert store.read_bytes("a/b/c.txt") == b""
    assert store.size("a/b/c.txt") == 0


def test_sha256_is_that_of_the_bytes(store: DatasetStore) -> None:
    store.write_bytes("abc", b"abc")
    assert store.sha256("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    pieces = os.urandom(2_500_000)
    store.write_bytes("pieces", pieces)
    assert store.sha256("pieces") == hashlib.sha256(pieces).hexdigest()


def test_what_is_not_there_is_a_file_not_found_error(store: DatasetStore) -> None:
    with pytest.raises(FileNotFoundError):
        store.read_bytes("a/none")
    with pytest.raises(FileNotFoundError):
        store.sha256("a/none")
    with pytest.raises(FileNotFoundError):
        store.size("a/none")


def test_an_error_while_writing_leaves_the_old_file_and_nothing_else(
    store: DatasetStore, scratch: Path
) -> None:
    store.write_bytes("chips/a.tif", b"old")
    for name in ("chips/a.tif", "chips/new.tif"):
        with pytest.raises(ZeroDivisionError), store.writing(name) as path:
            path.write_bytes(b"half of")
            raise ZeroDivisionError
    assert store.read_bytes("chips/a.tif") == b"old"
    assert not store.exists("chips/new.tif")
    assert everything(store, scratch) == {"chips/a.tif"}


def test_a_file_is_not_there_before_its_block_ends(store: DatasetStore, scratch: Path) -> None:
    with store.writing("chips/a.tif") as path:
        assert path.suffix == ".tif"
        assert path.stat().st_size == 0
        path.write_bytes(b"half of")
        assert not store.exists("chips/a.tif")
        assert store.names("chips") == []
    assert store.names("chips") == ["chips/a.tif"]
    assert everything(store, scratch) == {"chips/a.tif"}


def test_a_reader_sees_the_old_file_or_the_new_one(store: DatasetStore) -> None:
    versions = [b"a" * 3_000_000, b"b" * 2_000_000]
    store.write_bytes("table", versions[0])
    written = threading.Event()

    def read() -> list[bytes]:
        seen = []
        while not written.is_set():
            seen.append(store.read_bytes("table"))
        return seen

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        try:
            for turn in range(RACES):
                store.write_bytes("table", versions[turn % 2])
        finally:
            written.set()
        seen = reading.result()
    assert set(seen) <= set(versions)
    assert len(seen) > 1


def test_of_two_writers_one_wins_whole(store: DatasetStore, scratch: Path) -> None:
    versions = [bytes([i]) * 300_000 for i in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda data: store.write_bytes("table", data), versions))
    assert store.read_bytes("table") in versions
    assert everything(store, scratch) == {"table"}


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o002, 0o664)])
def test_modes_follow_the_umask(folder: DatasetStore, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        folder.write_bytes("a/b.txt", b"x")
        with folder.writing("a/c.tif") as path:
            write_raster(path, 1)
        folder.copy_file("a/b.txt", "a/d.txt")
    finally:
        os.umask(before)
    modes = {name: stat.S_IMODE(folder.path(name).stat().st_mode) for name in folder.names("a")}
    assert modes == dict.fromkeys(["a/b.txt", "a/c.tif", "a/d.txt"], mode)


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "../a", "a/../../b", "a/..", "/etc/passwd", "//a", "a\0b", "a\\b", "..\\a"),
        *(
            "s3://other/a",
            "file:///etc/passwd",
            "a/x::b",
            "a/zip::c.zip",
            "http::a",
            "data:,a",
            "vrt:a.tif",
            "a:",
        ),
    ],
)
@pytest.mark.parametrize("root", ["data", "s3://crops/data"])
def test_names_that_are_none_below_the_root_are_refused(root: str, name: str) -> None:
    store = DatasetStore(root=root)
    with pytest.raises(UnsafeNameError, match=re.escape(repr(name))):
        store.path(name)
    with pytest.raises(UnsafeNameError):
        store.gdal_path(name)
    with pytest.raises(UnsafeNameError), store.writing(name):
        pytest.fail("the block was entered")


@pytest.mark.parametrize("name", ["s3/other/a", "~/a", "a?versionId=1", "a#b", "..a", "$HOME", "{a}", "*"])
def test_what_only_looks_like_an_address_stays_below_the_root(store: DatasetStore, name: str) -> None:
    root = Path(store.root if store.is_local else store.root.replace("s3://", "/vsis3/"))
    path = Path(store.gdal_path(name))
    assert path.is_relative_to(root)
    assert path != root


def test_names_are_sorted_and_below_one_folder(store: DatasetStore) -> None:
    for name in ("b.tif", "a.tif", "c/d.tif", "a/z.tif", "a/10.tif", "a/9.tif", "ab/x.tif"):
        store.write_bytes(name, b"x")
    assert store.names("a") == ["a/10.tif", "a/9.tif", "a/z.tif"]
    assert store.names("c") == ["c/d.tif"]
    assert store.names("missing") == []


@pytest.mark.parametrize("other", ["x::y.tif", "s3:", "a\\b.tif", "n" * 255])
def test_a_file_of_others_that_cannot_be_named_hides_no_other(store: DatasetStore, other: str) -> None:
    store.write_bytes("a/b.tif", b"x")
    path = store.path("a/b.tif")
    if store.is_local:
        Path(path.path).with_name(other).write_bytes(b"y")
    else:
        path.fs.pipe_file(path.path.removesuffix("b.tif") + other, b"y")
    assert store.names("a") == (["a/b.tif"] if set(other) & set(":\\") else ["a/b.tif", f"a/{other}"])


def test_a_copy_has_the_bytes_of_its_source(store: DatasetStore, scratch: Path) -> None:
    data = os.urandom(2_500_000)
    store.write_bytes("chips/a.tif", data)
    store.write_bytes("kept/a.tif", b"old")
    store.copy_file("chips/a.tif", "kept/a.tif")
    assert store.read_bytes("kept/a.tif") == data
    with pytest.raises(FileNotFoundError):
        store.copy_file("chips/none.tif", "kept/a.tif")
    assert store.read_bytes("kept/a.tif") == data
    assert everything(store, scratch) == {"chips/a.tif", "kept/a.tif"}


def test_a_copy_in_a_folder_takes_no_room(folder: DatasetStore) -> None:
    folder.write_bytes("chips/a.tif", b"x")
    folder.copy_file("chips/a.tif", "kept/a.tif")
    assert Path(folder.gdal_path("chips/a.tif")).samefile(folder.gdal_path("kept/a.tif"))


def test_a_copy_keeps_its_bytes_when_its_source_is_replaced_or_removed(
    store: DatasetStore, scratch: Path
) -> None:
    store.write_bytes("chips/a.tif", b"first")
    store.copy_file("chips/a.tif", "kept/a.tif")
    with store.writing("chips/a.tif") as path:
        path.write_bytes(b"second")
    assert (store.read_bytes("chips/a.tif"), store.read_bytes("kept/a.tif")) == (b"second", b"first")
    store.remove("chips/a.tif")
    assert store.read_bytes("kept/a.tif") == b"first"
    assert everything(store, scratch) == {"kept/a.tif"}


def test_a_source_keeps_its_bytes_when_its_copy_is_replaced(store: DatasetStore, scratch: Path) -> None:
    store.write_bytes("chips/a.tif", b"first")
    store.copy_file("chips/a.tif", "kept/a.tif")
    store.write_bytes("kept/a.tif", b"second")
    assert (store.read_bytes("chips/a.tif"), store.read_bytes("kept/a.tif")) == (b"first", b"second")
    assert everything(store, scratch) == {"chips/a.tif", "kept/a.tif"}


def test_a_raster_that_is_written_anew_leaves_its_copy_alone(folder: DatasetStore) -> None:
    for value in (1, 2):
        with folder.writing("chips/a.tif") as path:
            write_raster(path, value)
        folder.copy_file("chips/a.tif", f"kept/{value}.tif")
    for value in (1, 2):
        with rasterio.open(folder.gdal_path(f"kept/{value}.tif")) as raster:
            assert (raster.read(1) == value).all()


def test_a_file_can_be_copied_again_and_onto_itself(store: DatasetStore, scratch: Path) -> None:
    store.write_bytes("chips/a.tif", b"data")
    for name in ("kept/a.tif", "kept/a.tif", "chips/a.tif"):
        store.copy_file("chips/a.tif", name)
    store.copy_file("kept/a.tif", "chips/a.tif")
    assert store.read_bytes("chips/a.tif") == store.read_bytes("kept/a.tif") == b"data"
    assert everything(store, scratch) == {"chips/a.tif", "kept/a.tif"}


def test_a_copy_takes_the_place_of_another_file(store: DatasetStore, scratch: Path) -> None:
    store.write_bytes("chips/a.tif", b"data of a")
    store.write_bytes("chips/b.tif", b"b")
    store.copy_file("chips/a.tif", "kept/a.tif")
    store.copy_file("chips/b.tif", "kept/a.tif")
    assert store.read_bytes("kept/a.tif") == b"b"
    assert store.read_bytes("chips/a.tif") == b"data of a"
    assert everything(store, scratch) == {"chips/a.tif", "chips/b.tif", "kept/a.tif"}


def test_where_links_are_refused_the_bytes_are_copied(
    folder: DatasetStore, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(source: str, link: str) -> None:
        raise PermissionError(source)

    monkeypatch.setattr(os, "link", refused)
    folder.write_bytes("chips/a.tif", b"data")
    folder.copy_file("chips/a.tif", "kept/a.tif")
    assert folder.read_bytes("kept/a.tif") == b"data"
    assert not Path(folder.gdal_path("chips/a.tif")).samefile(folder.gdal_path("kept/a.tif"))
    assert everything(folder, scratch) == {"chips/a.tif", "kept/a.tif"}


def test_many_copies_at_once_are_all_there(folder: DatasetStore, scratch: Path) -> None:
    folder.write_bytes("chips/a.tif", b"data")
    names = [f"kept/{number % 10}.tif" for number in range(100)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda name: folder.copy_file("chips/a.tif", name), names))
    assert {folder.read_bytes(name) for name in names} == {b"data"}
    assert everything(folder, scratch) == {"chips/a.tif", *names}


def test_removing_twice_is_no_error(store: DatasetStore) -> None:
    store.write_bytes("a/b", b"x")
    store.write_bytes("a/c", b"x")
    store.remove("a/b")
    store.remove("a/b")
    assert store.names("a") == ["a/c"]


def test_a_file_of_a_folder_is_read_where_it_lies(folder: DatasetStore) -> None:
    folder.write_bytes("tiles/a.tif", b"x")
    with folder.local("tiles/a.tif") as path:
        assert path == Path(folder.root) / "tiles" / "a.tif"
    assert path.read_bytes() == b"x"


def test_an_object_is_read_from_a_copy_that_goes_away(bucket: DatasetStore, scratch: Path) -> None:
    bucket.write_bytes("tiles/a.tif", b"x")
    with bucket.local("tiles/a.tif") as path:
        assert path.name == "a.tif"
        assert path.read_bytes() == b"x"
    assert everything(bucket, scratch) == {"tiles/a.tif"}


def test_gdal_opens_what_gdal_path_gives(store: DatasetStore) -> None:
    for value in (1, 2):
        with store.writing(f"tiles/{value}.tif") as path:
            write_raster(path, value)
        # the second file came into a folder that GDAL has listed already
        with rasterio.open(store.gdal_path(f"tiles/{value}.tif")) as raster:
            assert (raster.read(1) == value).all()
            assert raster.crs.to_epsg() == 5070


def test_tables_lie_in_an_object_store_as_well(bucket: DatasetStore) -> None:
    schema = TableSchema((Column("tile", pa.string(), ""), Column("scenes", pa.int32(), "")))
    frame = pd.DataFrame({"tile": ["14SMF"], "scenes": [3]})
    assert stored_table(bucket, "tables/t.parquet") is None
    written = write_table(bucket, "tables/t.parquet", frame, schema, {"by": "a test"})
    assert stored_table(bucket, "tables/t.parquet") == written
    assert read_table(bucket, "tables/t.parquet", schema).to_dict("records") == [
        {"tile": "14SMF", "scenes": 3}
    ]


def test_what_another_machine_writes_is_seen(bucket: DatasetStore) -> None:
    bucket.write_bytes("chips/a", b"x")
    assert bucket.names("chips") == ["chips/a"]
    key = bucket.root.removeprefix("s3://")
    elsewhere().pipe_file(f"{key}/chips/a", b"longer")
    elsewhere().pipe_file(f"{key}/chips/b", b"y")
    assert bucket.names("chips") == ["chips/a", "chips/b"]
    assert bucket.exists("chips/b")
    assert bucket.size("chips/a") == 6
    assert bucket.read_bytes("chips/a") == b"longer"


def test_a_file_url_is_the_folder_that_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = DatasetStore(root=f"file://{tmp_path}/store")
    store.write_bytes("a/b.txt", b"x")
    assert (tmp_path / "store" / "a" / "b.txt").read_bytes() == b"x"
    assert store.gdal_path("a/b.txt") == f"{tmp_path}/store/a/b.txt"
    with store.local("a/b.txt") as path:
        assert path.read_bytes() == b"x"
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def _write_for_ever(store: DatasetStore, begun: Event) -> None:
    with store.writing("chips/a.tif") as path:
        path.write_bytes(b"half of")
        begun.set()
        time.sleep(60)


# Python 3.12 warns of forks beside threads; the child only writes and sleeps
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_the_temporary_file_of_a_killed_process_is_removed_a_week_later(
    folder: DatasetStore, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = multiprocessing.get_context("fork")
    begun = context.Event()
    writer = context.Process(target=_write_for_ever, args=(folder, begun))
    writer.start()
    assert begun.wait(20)
    os.kill(writer.pid or 0, signal.SIGKILL)
    writer.join()
    writer.close()
    assert folder.names("chips") == []
    (abandoned,) = everything(folder, scratch)
    killed = time.time()
    for seconds, left in ((WEEK - 60, {abandoned}), (WEEK + 60, set())):
        monkeypatch.setattr(time, "time", lambda now=killed + seconds: now)
        DatasetStore(root=folder.root).write_bytes("chips/b.tif", b"x")
        assert everything(folder, scratch) == {*left, "chips/b.tif"}


def test_a_copy_of_an_old_file_is_not_taken_for_an_abandoned_one(folder: DatasetStore) -> None:
    folder.write_bytes("chips/a.tif", b"data")
    os.utime(folder.gdal_path("chips/a.tif"), (0, 0))
    with folder.writing("kept/a.tif") as path:
        path.unlink()
        path.hardlink_to(folder.gdal_path("chips/a.tif"))
        DatasetStore(root=folder.root).write_bytes("chips/b.tif", b"x")
    assert folder.read_bytes("kept/a.tif") == b"data"


def test_a_file_written_by_pieces_has_the_size_and_checksum_that_are_returned(tmp_path: Path) -> None:
    store = DatasetStore(root=str(tmp_path))
    pieces = [b"head", b"", bytes(3 << 20), b"tail"]
    size, digest = store.write_pieces("a/b.tif", iter(pieces))
    assert store.read_bytes("a/b.tif") == b"".join(pieces)
    assert (size, digest) == (store.size("a/b.tif"), store.sha256("a/b.tif"))


def test_pieces_that_break_off_leave_the_earlier_file(tmp_path: Path) -> None:
    store = DatasetStore(root=str(tmp_path))
    store.write_bytes("a/b.tif", b"earlier")

    def pieces() -> Iterator[bytes]:
        yield b"head"
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        store.write_pieces("a/b.tif", pieces())
    assert store.read_bytes("a/b.tif") == b"earlier"
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["b.tif"]
