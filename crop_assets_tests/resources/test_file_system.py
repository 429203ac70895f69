import errno
import fcntl
import hashlib
import logging
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import rasterio
from affine import Affine

from crop_assets_tests.resources.gateways import World
from resources import file_system
from resources.ipfs.resource import IpfsContent
from resources.resume import PartialFiles
from resources.sources import FileRequest, Memory, Sources
from resources.store import DatasetStore
from resources.tables import Column, TableSchema, read_table, write_table

LACKING = [errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOLCK]


@pytest.fixture(autouse=True)
def nothing_was_logged_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_system, "warned", set())


@pytest.fixture
def store(tmp_path: Path) -> DatasetStore:
    return DatasetStore(root=str(tmp_path / "store"))


def answer(patch: pytest.MonkeyPatch, flock: int = 0, fsync: int = 0) -> None:
    """Answer with these error numbers in place of the file system, as some mounts do."""

    def refused(number: int) -> None:
        raise OSError(number, os.strerror(number))

    if flock:
        patch.setattr(fcntl, "flock", lambda file, operation: refused(flock))
    if fsync:
        patch.setattr(os, "fsync", lambda descriptor: refused(fsync))


def download(world: World, store: DatasetStore, cid: str, name: str) -> None:
    ipfs = IpfsContent(kubo_api="", gateways=[world.gateway("good")], timeout_seconds=10)
    sources = Sources(ipfs.sources("gateways"), attempts=1, memory=Memory(4))
    with store.writing(name) as local:
        sources.obtain(FileRequest(name, cid, "", 1 << 20), local, store.partials, lambda *_: None, print)


def files_of(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("number", LACKING, ids=errno.errorcode.get)
def test_without_locks_and_flushes_files_tables_and_chips_are_made(
    number: int,
    world: World,
    store: DatasetStore,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    answer(monkeypatch, flock=number, fsync=number)
    wanted = {f"bands/B{i:02d}.tif": cid for i, cid in enumerate(list(world.files)[1:4])}
    with caplog.at_level(logging.WARNING):
        for name, cid in wanted.items():
            download(world, store, cid, name)
        frame = pd.DataFrame({"chip_id": ["chip_232_310", "chip_232_311"]})
        schema = TableSchema((Column("chip_id", pa.string(), ""),))
        write_table(store, "tables/chips.parquet", frame, schema, {})
        for chip_id in frame["chip_id"]:
            with (
                store.writing(f"chips/{chip_id}.tif") as path,
                rasterio.open(
                    *(path, "w"),
                    driver="GTiff",
                    count=1,
                    height=32,
                    width=32,
                    dtype="int16",
                    crs="EPSG:5070",
                    transform=Affine(30, 0, 0, 0, -30, 0),
                ) as raster,
            ):
                raster.write(np.full((1, 32, 32), 7, np.int16))
            store.copy_file(f"chips/{chip_id}.tif", f"chips_filtered/{chip_id}.tif")

    chips = [f"{folder}/{i}.tif" for folder in ("chips", "chips_filtered") for i in frame["chip_id"]]
    made = files_of(Path(store.root))
    assert set(made) == {*wanted, "tables/chips.parquet", *chips}, "and no lock or partial file"
    for name, cid in wanted.items():
        assert made[name] == hashlib.sha256(world.files[cid].read_bytes()).hexdigest()
    assert read_table(store, "tables/chips.parquet", schema).equals(frame)
    for name in chips:
        with rasterio.open(store.gdal_path(name)) as raster:
            assert (raster.read(1) == 7).all()
    said = [record.message for record in caplog.records]
    assert len(said) == 2, "one line for each of the two, however many files"
    assert all(os.strerror(number) in line and store.root in line for line in said)
    assert "has no locks" in said[0]
    assert "cannot flush" in said[1]


def test_without_locks_each_download_has_a_file_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(monkeypatch, flock=errno.ENOSYS)
    partials = PartialFiles(tmp_path)
    with partials.holding("a") as first, PartialFiles(tmp_path).holding("a") as second:
        first.write_bytes(b"first")
        second.write_bytes(b"second")
        assert first.read_bytes() == b"first"
    assert files_of(tmp_path) == {}


def test_without_locks_a_release_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, flock=errno.ENOLCK)
    said: list[str] = []
    with PartialFiles(tmp_path).alone("2022", said.append):
        (tmp_path / "raster").write_bytes(b"x")
    assert said == []


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT], ids=errno.errorcode.get)
def test_a_disk_that_fails_or_is_full_is_an_error_and_leaves_nothing(
    number: int, store: DatasetStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store.write_bytes("a/old", b"old")
    answer(monkeypatch, fsync=number)
    for name in ("a/old", "a/new"):
        with pytest.raises(OSError, match=os.strerror(number)) as error:
            store.write_bytes(name, b"new")
        assert error.value.errno == number
    assert store.names("a") == ["a/old"]
    assert store.read_bytes("a/old") == b"old"
    assert not caplog.records


def test_a_lock_that_fails_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, flock=errno.EIO)
    with pytest.raises(OSError, match="Input/output"), PartialFiles(tmp_path).holding("a"):
        pytest.fail("the block was entered")
