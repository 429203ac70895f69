"""The graph and its store over a real S3-compatible server."""

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import s3fs

from crop_assets.schemas import SCHEMAS
from crop_assets.verify import verify_tables
from crop_assets_tests.services.conftest import BUCKET, ObjectStore
from crop_assets_tests.small_world import EAST, THREE_TILES, TILE_STAGES, WEST, Graph, digests
from resources import store as store_module
from resources.errors import ResourceError, SlowError
from resources.store import DatasetStore
from resources.tables import read_table

LARGE = 104 << 20
"""Bytes of a file that is uploaded in three parts: s3fs does so from 100 MB."""


@pytest.fixture
def remote(seaweedfs: ObjectStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """The root of an empty store on the server, which s3fs and GDAL find by the environment."""
    for name, value in seaweedfs.environment().items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    s3fs.S3FileSystem.clear_instance_cache()
    yield f"s3://{BUCKET}/{tmp_path.name}"
    s3fs.S3FileSystem.clear_instance_cache()


def remote_digests(root: str, copy: Path) -> dict[str, str]:
    """SHA-256 of every object below a root, by its name there."""
    s3fs.S3FileSystem(skip_instance_cache=True).get(root.removeprefix("s3://"), str(copy), recursive=True)
    return digests(copy)


def test_every_file_of_a_dataset_is_that_of_a_local_run(
    graph: Graph, remote: str, three_tiles: dict[str, Any], tmp_path: Path, pool: Any
) -> None:
    tiles = sorted(THREE_TILES)
    # partial files are read and written again, which complete ones are not
    three_tiles = three_tiles | {"recipe": three_tiles["recipe"].model_copy(update={"fetch": "blocks"})}
    store = DatasetStore(root=remote)
    assert not store.names("training_datasets")
    for changes in ({}, {"store": store}):
        for job in ("labels_job", "tiles_job", "dataset_job"):
            run = graph.run(job, tiles=tiles, **three_tiles | changes)
            assert run.success, run.failure
    local, objects = digests(graph.root), remote_digests(remote, tmp_path / "copy")
    # a local store has a folder for unfinished files and notes of partial ones below its root
    assert not [name for name in local if name.startswith(".partial-") and "/notes/" not in name]
    local = {name: digest for name, digest in local.items() if not name.startswith(".partial-")}
    assert len(objects) > 200
    assert objects == local

    layout = graph.layout
    tables = [layout.table(stage, tile) for stage in TILE_STAGES for tile in tiles]
    verified = verify_tables(store, tables, pool)
    assert (verified.bad_files, verified.tables) == ([], len(tables))
    splits = read_table(store, layout.table("splits"), SCHEMAS["splits"])
    # nothing is published for the third tile
    assert set(splits["tile"]) == {WEST, EAST}

    for job in ("tiles_job", "dataset_job"):
        again = graph.run(job, tiles=tiles, **three_tiles, store=store)
        assert again.success
        assert not again.redone, job
    # what was made is noticed to be another's
    changed = layout.merged(THREE_TILES[EAST][0])
    store.write_bytes(changed, b"another's")
    again = graph.run("tiles_job", tiles=tiles, **three_tiles, store=store)
    assert again.success
    assert {asset for asset, _ in again.redone} == {"chips"}
    assert remote_digests(remote, tmp_path / "again")[changed] == local[changed]


class Cut:
    """A TCP proxy in front of the server, which breaks every connection once `after` bytes were sent to the server,
    and accepts no more.
    """

    def __init__(self, address: str, after: int) -> None:
        host, port = address.split(":")
        self._upstream = (host, int(port))
        self.left = after
        self.broken = threading.Event()
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self.broken.is_set():
                    client.close()
                    continue
                server = socket.create_connection(self._upstream)
                self._open += [client, server]
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if target.getpeername() == self._upstream:
                    self.left -= len(data)
                    if self.left < 0:
                        self.broken.set()
                        self._close()
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _close(self) -> None:
        for end in self._open:
            with contextlib.suppress(OSError):
                # with data that nobody has read, this resets the connection
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                end.shutdown(socket.SHUT_RD)
                end.close()

    def end(self) -> None:
        self._listener.close()
        self._close()


@pytest.fixture
def cut(seaweedfs: ObjectStore, remote: str) -> Iterator[Cut]:
    """A proxy that breaks after 70 MB, in the second part of a large file."""
    proxy = Cut(seaweedfs.address, 70 << 20)
    yield proxy
    proxy.end()


@pytest.mark.parametrize("size", [LARGE, 90 << 20], ids=["in parts", "in one request"])
def test_an_upload_that_breaks_off_leaves_what_was_there(
    size: int, cut: Cut, seaweedfs: ObjectStore, remote: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    DatasetStore(root=remote).write_bytes("a/large.tif", b"before")
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    for name, value in {**seaweedfs.environment(cut.address), "AWS_MAX_ATTEMPTS": "1"}.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(ResourceError):
        DatasetStore(root=remote).write_bytes("a/large.tif", bytes(size))
    assert cut.broken.is_set()
    for name, value in seaweedfs.environment().items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    store = DatasetStore(root=remote)
    assert store.read_bytes("a/large.tif") == b"before"
    assert store.names("a") == ["a/large.tif"]
    store.write_bytes("a/large.tif", bytes(size))
    assert store.size("a/large.tif") == size


def test_an_upload_that_the_server_stops_reading_ends(
    seaweedfs: ObjectStore, remote: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    DatasetStore(root=remote).write_bytes("a/large.tif", b"before")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with monkeypatch.context() as patch:
            for name, value in seaweedfs.environment(address).items():
                patch.setenv(name, value)
            patch.setattr(store_module, "_UPLOAD_SECONDS", 2.0)
            patch.setattr(store_module, "_SLOWEST_UPLOAD", 1e9)
            s3fs.S3FileSystem.clear_instance_cache()
            with pytest.raises(SlowError, match="did not take 94,371,840 bytes in 2 s"):
                DatasetStore(root=remote).write_bytes("a/large.tif", bytes(90 << 20))
    s3fs.S3FileSystem.clear_instance_cache()
    assert DatasetStore(root=remote).read_bytes("a/large.tif") == b"before"


WRITER = """
import sys
from resources.store import DatasetStore
DatasetStore(root=sys.argv[1]).write_bytes("a/large.tif", bytes(int(sys.argv[2])))
"""


@pytest.mark.parametrize("size", [LARGE, 90 << 20], ids=["in parts", "in one request"])
def test_a_process_killed_in_its_upload_leaves_what_was_there(
    size: int, seaweedfs: ObjectStore, remote: str, tmp_path: Path
) -> None:
    store = DatasetStore(root=remote)
    store.write_bytes("a/large.tif", b"before")
    proxy = Cut(seaweedfs.address, 70 << 20)
    environment = {**os.environ, **seaweedfs.environment(proxy.address), "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", WRITER, remote, str(size)], env=environment) as writer:
        assert proxy.broken.wait(60)
        writer.send_signal(signal.SIGKILL)
    proxy.end()
    assert writer.returncode == -signal.SIGKILL
    assert store.read_bytes("a/large.tif") == b"before"
    assert store.names("a") == ["a/large.tif"]
    files = s3fs.S3FileSystem(skip_instance_cache=True)
    key = f"{remote.removeprefix(f's3://{BUCKET}/')}/a/large.tif"
    # what the rule for unfinished uploads in docs/operating.md removes
    left = [upload for upload in files.list_multipart_uploads(BUCKET) if upload["Key"] == key]
    assert len(left) == (size == LARGE)
    store.write_bytes("a/large.tif", bytes(size))
    assert store.size("a/large.tif") == size
