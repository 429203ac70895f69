import hashlib
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import rasterio
import s3fs
import shapely
from affine import Affine
from moto.server import DomainDispatcherApplication, create_backend_app
from typer.testing import CliRunner
from werkzeug.serving import make_server

from crop_assets.aoi_map.server import AoiFile
from crop_assets.cli import app
from crop_assets.dataset.statistics import band_statistics, measure_bands
from crop_assets.errors import InputError
from crop_assets.graph.years import lineages, year_asset
from crop_assets.labels.aoi import read_aoi
from crop_assets.layout import Layout, tile_grid_table
from crop_assets.recipe import DatasetRecipe
from crop_assets.schemas import SCHEMAS, TILE_GRID
from crop_assets.tiles.assets import tile_grid
from crop_assets.verify import verify_tables
from crop_assets_tests.forged import table_of
from crop_assets_tests.resources.loopback import closed_port
from resources import file_system
from resources.errors import (
    ForbiddenError,
    IntegrityError,
    LoginError,
    ResourceError,
    StoreError,
    TryAgainError,
    UnreachableError,
)
from resources.store import DatasetStore, Tail
from resources.tables import Column, TableSchema, read_table, stored_table, write_table
from resources.tile_grid import TileGridSource

BUCKET, MISSING = "refused-crops", "no-such-crops"
SECRET, SESSION = "a-secret-of-this-test", "a-session-of-this-test"
SCHEMA = TableSchema((Column("tile", pa.string(), ""),))
CHECKSUMS = ("AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION")


@dataclass
class Server:
    """An S3 server that refuses requests with an error's status, code and words while `refusal` holds one."""

    address: str = ""
    refusal: tuple[int, str, str] | None = None
    refused: Callable[[dict[str, Any]], bool] = lambda environ: True

    def __post_init__(self) -> None:
        self._moto = DomainDispatcherApplication(create_backend_app)

    def __call__(self, environ: dict[str, Any], start: Any) -> Any:
        if self.refusal is None or not self.refused(environ):
            return self._moto(environ, start)
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        status, code, words = self.refusal
        # as servers do, which tell the key that was given
        body = (
            f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{words}</Message>"
            f"<Token-0>{SESSION}</Token-0></Error>"
        ).encode()
        start(f"{status} Refused", [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
        return [b"" if environ["REQUEST_METHOD"] == "HEAD" else body]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server with an empty bucket, and what s3fs and GDAL need to find it in the environment."""
    server = Server()
    http = make_server("127.0.0.1", 0, server, threaded=True)
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    server.address = f"127.0.0.1:{http.server_port}"
    none = str(tmp_path_factory.mktemp("home") / "none")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ACCESS_KEY_ID": "AKIAOFTHISTEST",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_SESSION_TOKEN": SESSION,
            "AWS_ENDPOINT_URL": f"http://{server.address}",
            "AWS_S3_ENDPOINT": server.address,
            "AWS_HTTPS": "NO",
            "AWS_VIRTUAL_HOSTING": "FALSE",
            "AWS_MAX_ATTEMPTS": "1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_SHARED_CREDENTIALS_FILE": none,
            "AWS_CONFIG_FILE": none,
        }.items():
            patch.setenv(name, value)
        for name in ("AWS_PROFILE", *CHECKSUMS):
            patch.delenv(name, raising=False)
        patch.setattr(s3fs.S3FileSystem, "retries", 1)
        forget()
        elsewhere().mkdir(BUCKET)
        yield server
        forget()
    http.shutdown()
    thread.join()
    http.server_close()


@pytest.fixture
def server(running: Server) -> Iterator[Server]:
    yield running
    running.refusal, running.refused = None, lambda environ: True


def forget() -> None:
    """Have the next store read the environment again."""
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Changes the environment, which the next store reads, and the first one of the next test again."""
    forget()
    yield monkeypatch
    forget()


def elsewhere() -> s3fs.S3FileSystem:
    """The server as another machine sees it."""
    return s3fs.S3FileSystem(skip_instance_cache=True)


@pytest.fixture
def root(server: Server, tmp_path: Path) -> str:
    return f"s3://{BUCKET}/{tmp_path.name}"


@dataclass(frozen=True)
class Kind:
    """A way in which an object store fails: what the server answers, the error, and what its message must hold."""

    refusal: tuple[int, str, str] | None
    error: type[ResourceError]
    words: tuple[str, ...]
    bucket: str = BUCKET
    environment: Callable[[], dict[str, str]] = dict
    """Variables to set, or to unset where they are empty."""


LOGIN = ("AWS_PROFILE", "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
KINDS = {
    "no bucket": Kind(
        None,
        StoreError,
        (f"there is no bucket {MISSING} at 127.0.0.1:", "NoSuchBucket", "AWS_ENDPOINT_URL", "create it"),
        MISSING,
    ),
    "no object store": Kind(
        (404, "NotFound", "There is nothing here."),
        StoreError,
        (
            f"there is no bucket {BUCKET} at 127.0.0.1:",
            "NotFound: There is nothing here.",
            "AWS_ENDPOINT_URL",
        ),
    ),
    "no login": Kind(
        None,
        LoginError,
        ("there is no login", *LOGIN),
        environment=lambda: {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_SESSION_TOKEN": ""},
    ),
    "an unknown key": Kind(
        (403, "InvalidAccessKeyId", "The key id does not exist in our records."),
        LoginError,
        ("InvalidAccessKeyId: The key id does not exist in our records.", *LOGIN),
    ),
    "a wrong secret": Kind(
        (403, "SignatureDoesNotMatch", f"Check your key {SECRET}."),
        LoginError,
        ("SignatureDoesNotMatch: Check your key …", *LOGIN),
    ),
    "an expired token": Kind(
        (400, "ExpiredToken", "The provided token has expired."),
        LoginError,
        ("ExpiredToken: The provided token has expired.", *LOGIN),
    ),
    "denied": Kind(
        (403, "AccessDenied", "not authorized to perform: s3:ListBucket"),
        ForbiddenError,
        ("AccessDenied: not authorized to perform: s3:ListBucket", "s3:GetObject", BUCKET, "AWS_PROFILE"),
    ),
    "another region": Kind(
        (400, "AuthorizationHeaderMalformed", "expecting 'eu-central-1'"),
        StoreError,
        ("in another region", "expecting 'eu-central-1'", "AWS_REGION"),
    ),
    "refused headers": Kind(
        (501, "NotImplemented", "A header you provided implies functionality that is not implemented"),
        StoreError,
        ("A header you provided", *(f"{name}=when_required" for name in CHECKSUMS)),
    ),
    "refused checksums": Kind(
        (400, "InvalidArgument", "Unsupported header 'x-amz-checksum-mode' received"),
        StoreError,
        ("Unsupported header", *(f"{name}=when_required" for name in CHECKSUMS)),
    ),
    "slow down": Kind(
        (503, "SlowDown", "Please reduce your request rate."), TryAgainError, ("try again later",)
    ),
    "failing": Kind((500, "InternalError", "Oops."), TryAgainError, ("try again later",)),
    "an address with a login": Kind(
        None,
        StoreError,
        ("cannot be used", "AWS_ENDPOINT_URL"),
        environment=lambda: {"AWS_ENDPOINT_URL": f"http://someone:{SECRET}@127.0.0.1"},
    ),
    "an address without a scheme": Kind(
        None,
        StoreError,
        ("cannot be used", "AWS_ENDPOINT_URL (http://host:port)"),
        environment=lambda: {"AWS_ENDPOINT_URL": "127.0.0.1:9000"},
    ),
    "no server": Kind(
        None,
        UnreachableError,
        ("127.0.0.1:", "cannot be reached", "AWS_ENDPOINT_URL"),
        environment=lambda: {
            "AWS_ENDPOINT_URL": closed_port(),
            "AWS_S3_ENDPOINT": closed_port().removeprefix("http://"),
        },
    ),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, server: Server) -> Kind:
    found = KINDS[request.param]
    server.refusal = found.refusal
    if changes := found.environment():
        environment: pytest.MonkeyPatch = request.getfixturevalue("environment")
        for name, value in changes.items():
            if value:
                environment.setenv(name, value)
            else:
                environment.delenv(name)
    return found


def require_words(said: str, kind: Kind, root: str) -> None:
    for words in (root, *kind.words):
        assert words in said, f"{words!r} is not in {said!r}"
    assert SECRET not in said
    assert SESSION not in said
    assert "AKIAOFTHISTEST" not in said


def copy_of(store: DatasetStore, name: str) -> None:
    with store.local(name):
        pass


OPERATIONS: dict[str, Callable[[DatasetStore], object]] = {
    "exists": lambda store: store.exists("a/b"),
    "size": lambda store: store.size("a/b"),
    "read_bytes": lambda store: store.read_bytes("a/b"),
    "sha256": lambda store: store.sha256("a/b"),
    "local": lambda store: copy_of(store, "a/b"),
    "write_bytes": lambda store: store.write_bytes("a/b", b"x"),
    "copy_file": lambda store: store.copy_file("a/b", "a/c"),
    "remove": lambda store: store.remove("a/b"),
    "names": lambda store: store.names("a"),
    "stored_table": lambda store: stored_table(store, "a/b"),
    "read_table": lambda store: read_table(store, "a/b", SCHEMA),
    "the page's AOI": lambda store: AoiFile.of(store, "aoi.geojson"),
    "the recipe's AOI": lambda store: read_aoi(f"{store.root}/aoi.geojson"),
    "the recipe's AOI in GeoParquet": lambda store: read_aoi(f"{store.root}/aoi.parquet"),
}


def test_each_operation_says_what_is_wrong_and_what_to_set(kind: Kind, tmp_path: Path) -> None:
    store = DatasetStore(root=f"s3://{kind.bucket}/{tmp_path.name}")
    for name, operation in OPERATIONS.items():
        with pytest.raises(ResourceError) as error:
            print(name, operation(store))
        assert type(error.value) is kind.error, f"{name}: {error.value!r}"
        require_words(str(error.value), kind, f"{store.root}/a")


def test_verify_ends_with_the_cause_in_one_line(kind: Kind, tmp_path: Path) -> None:
    root = f"s3://{kind.bucket}/{tmp_path.name}"
    shown = CliRunner().invoke(app, ["verify", "--data", root, "--dataset", "small"])
    assert shown.exit_code == 2
    assert shown.output.startswith(f"error: {root}/training_datasets/small: ")
    assert shown.output.count("\n") == 1
    require_words(shown.output, kind, root)


@pytest.fixture
def grid(tmp_path: Path) -> TileGridSource:
    """Three tiles."""
    squares = [shapely.box(-99 + i, 37, -98 + i, 38) for i in range(3)]
    frame = gpd.GeoDataFrame({"tile": ["14SMG", "14SNG", "14SPG"]}, geometry=squares, crs=4326)
    frame.to_parquet(tmp_path / "grid.parquet")
    return TileGridSource(path=str(tmp_path / "grid.parquet"))


def materialize(store: DatasetStore, grid: TileGridSource) -> tuple[bool, str]:
    """Whether the asset was made, and what the run's errors say."""
    with dg.DagsterInstance.ephemeral() as instance:
        made = dg.materialize(
            [year_asset(tile_grid, {})],
            instance=instance,
            resources={
                "store": store,
                "recipe": DatasetRecipe(),
                "tile_grid_source": grid,
                "lineages": lineages,
            },
            raise_on_error=False,
        )
        told = [event.step_failure_data.error_display_string for event in made.get_step_failure_events()]
        return made.success, "\n".join(told)


def test_an_asset_fails_with_the_cause(kind: Kind, tmp_path: Path, grid: TileGridSource) -> None:
    root = f"s3://{kind.bucket}/{tmp_path.name}"
    success, said = materialize(DatasetStore(root=root), grid)
    assert not success
    require_words(said, kind, f"{root}/{tile_grid_table()}")
    assert kind.error.__name__ in said
    assert "botocore" not in said


@pytest.mark.parametrize("name", ["slow down", "refused headers", "an expired token"])
def test_once_it_is_put_right_the_same_work_is_done(
    name: str, server: Server, root: str, grid: TileGridSource
) -> None:
    server.refusal = KINDS[name].refusal
    assert not materialize(DatasetStore(root=root), grid)[0]
    server.refusal = None
    store = DatasetStore(root=root)
    assert materialize(store, grid) == (True, "")
    assert read_table(store, tile_grid_table(), TILE_GRID)["tile"].tolist() == ["14SMG", "14SNG", "14SPG"]


def test_a_server_without_checksums_takes_what_the_message_advises(
    server: Server, root: str, grid: TileGridSource, environment: pytest.MonkeyPatch
) -> None:
    server.refusal = (
        501,
        "NotImplemented",
        "A header you provided implies functionality that is not implemented",
    )
    server.refused = lambda environ: any(
        name.startswith(("HTTP_X_AMZ_CHECKSUM", "HTTP_X_AMZ_SDK_CHECKSUM", "HTTP_X_AMZ_TRAILER"))
        for name in environ
    )
    success, said = materialize(DatasetStore(root=root), grid)
    assert not success
    require_words(said, KINDS["refused headers"], root)
    for name in CHECKSUMS:
        environment.setenv(name, "when_required")
    forget()
    store = DatasetStore(root=root)
    assert materialize(store, grid) == (True, "")
    assert len(read_table(store, tile_grid_table(), TILE_GRID)) == 3


def test_what_is_not_there_in_a_bucket_that_is_there_is_missing(server: Server, root: str) -> None:
    store = DatasetStore(root=root)
    assert not store.exists("a/b")
    assert store.names("a") == []
    assert stored_table(store, "a/b.parquet") is None
    store.remove("a/b")
    for name in ("size", "read_bytes", "sha256", "local", "copy_file"):
        with pytest.raises(FileNotFoundError):
            OPERATIONS[name](store)


def test_names_are_those_of_files_and_folders_alone(server: Server, root: str) -> None:
    store = DatasetStore(root=root)
    for name in ("a/b.tif", "a/c/d.tif", "ab/x.tif"):
        store.write_bytes(name, b"x")
    # what web consoles make for a folder
    elsewhere().pipe_file(f"{root.removeprefix('s3://')}/a/", b"")
    assert store.names("a") == ["a/b.tif", "a/c"]
    assert store.names("a/b.tif") == []


def test_a_file_is_read_by_one_request_and_no_more_of_it_than_allowed(server: Server, root: str) -> None:
    store = DatasetStore(root=root)
    store.write_bytes("a/b", b"12345")
    asked: list[str] = []
    server.refused = lambda environ: bool(asked.append(environ["REQUEST_METHOD"]))
    server.refusal = (500, "InternalError", "Oops.")
    assert store.read_bytes("a/b", 5) == b"12345"
    assert store.sha256("a/b") == hashlib.sha256(b"12345").hexdigest()
    with store.local("a/b", 5) as path:
        assert path.read_bytes() == b"12345"
    assert asked == ["GET"] * 3
    with pytest.raises(IntegrityError, match="a/b has 5 bytes; the most is 4"):
        store.read_bytes("a/b", 4)
    assert asked == ["GET"] * 4


def test_a_scratch_is_read_in_place_of_the_objects_until_it_ends(
    server: Server, root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    asked: list[str] = []
    server.refused = lambda environ: bool(asked.append(environ["REQUEST_METHOD"]))
    store = DatasetStore(root=root)
    store.write_bytes("a/c.tif", b"2")
    server.refusal = (500, "InternalError", "Oops.")
    with store.scratch() as scratch:
        scratch.write_bytes("a/b.tif", b"1")
        assert scratch.read_bytes("a/b.tif") == b"1"
        assert scratch.sha256("a/b.tif") == hashlib.sha256(b"1").hexdigest()
        assert scratch.tail("a/b.tif", 8) == Tail(b"1", 1)
        with scratch.local("a/b.tif", 1) as path, scratch.reading("a/b.tif") as file:
            assert (path.name, path.read_bytes(), file.read()) == ("b.tif", b"1", b"1")
        with pytest.raises(IntegrityError, match=r"a/b\.tif has 1 bytes; the most is 0"):
            scratch.read_bytes("a/b.tif", 0)
        assert asked == ["PUT"]
        assert [scratch.read_bytes("a/c.tif") for _ in range(2)] == [b"2", b"2"]
        assert asked == ["PUT", "GET"]
        scratch.copy_file("a/b.tif", "a/c.tif")
        assert scratch.read_bytes("a/c.tif") == b"1"
        scratch.remove("a/c.tif")
        for _ in range(2):
            with pytest.raises(FileNotFoundError):
                scratch.read_bytes("a/c.tif")
        store.write_bytes("a/b.tif", b"3")
        assert (scratch.read_bytes("a/b.tif"), store.read_bytes("a/b.tif")) == (b"1", b"3")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]

    left = tmp_path / f"crop-assets-{os.getuid()}" / ".scratch-killed" / "1"
    left.mkdir(parents=True)
    (left / "b.tif").write_bytes(b"1")
    with store.scratch() as scratch:
        assert scratch.read_bytes("a/b.tif") == b"3"
        assert left.exists(), "it may be in use"
    monkeypatch.setattr(file_system, "_ABANDONED_SECONDS", -1)
    with store.scratch():
        assert not left.parent.exists()


def test_the_end_of_an_object_is_read_by_one_request(server: Server, root: str) -> None:
    store = DatasetStore(root=root)
    for name, data in {"long": b"0123456789", "short": b"01", "empty": b""}.items():
        store.write_bytes(f"a/{name}", data)
    asked: list[str] = []
    server.refused = lambda environ: bool(asked.append(environ["REQUEST_METHOD"]))
    server.refusal = (500, "InternalError", "Oops.")
    found = [store.tail(f"a/{name}", 4) for name in ("long", "short", "empty")]
    assert [(tail.data, tail.size) for tail in found] == [(b"6789", 10), (b"01", 2), (b"", 0)]
    with pytest.raises(FileNotFoundError):
        store.tail("a/missing", 4)
    assert asked == ["GET"] * 4
    names = [f"a/{name}" for name in ("long", "missing", "short")]
    assert store.tails(names, 4) == {"a/long": found[0], "a/short": found[1]}
    etags = store.etags("a")
    assert (etags["a/long"], set(etags)) == (found[0].etag, {"a/long", "a/short", "a/empty"})
    assert found[0].etag
    assert store.etags("nothing") == {}


# Only damage is damage


def test_a_damaged_table_is_damaged_and_one_that_cannot_be_read_is_not(tmp_path: Path) -> None:
    store = DatasetStore(root=str(tmp_path))
    for name in ("t.parquet", "u.parquet"):
        write_table(store, name, pd.DataFrame({"tile": ["14SMG", "14SNG"]}), SCHEMA, {})
    data = bytearray(store.read_bytes("u.parquet"))
    data[-30:-8] = b"\xff" * 22
    store.write_bytes("u.parquet", bytes(data))
    store.write_bytes("v.parquet", b"PAR1")
    for name in ("u.parquet", "v.parquet"):
        with pytest.raises(IntegrityError, match="is damaged"):
            stored_table(store, name)

    (tmp_path / "folder.parquet").mkdir()
    with pytest.raises(IntegrityError, match=r"folder\.parquet is a folder, and a file belongs there"):
        stored_table(store, "folder.parquet")
    # opens, and fails when it is read
    with pytest.raises(OSError, match="mem cannot be read: ") as error:
        stored_table(DatasetStore(root="/proc/self"), "mem")
    assert error.value.errno


def test_verify_tells_damaged_from_unreadable(tmp_path: Path, pool: Any) -> None:
    store = DatasetStore(root=str(tmp_path))
    assets = ("cdl", "splits", "tile_map")
    tables = [Layout("small", 2022).table(asset) for asset in assets]
    for asset, name in zip(assets, tables, strict=True):
        write_table(store, name, table_of(asset).to_pandas(), SCHEMAS[asset], {})
    assert verify_tables(store, tables, pool).bad_files == []
    store.write_bytes(tables[1], store.read_bytes(tables[1])[:50])
    store.remove(tables[2])
    Path(store.gdal_path(tables[2])).mkdir()
    damaged, unreadable = verify_tables(store, tables, pool).bad_files
    assert (damaged.file, unreadable.file) == (tables[1], tables[2])
    assert "is damaged" in damaged.problem
    assert "is a folder, and a file belongs there" in unreadable.problem


def test_a_file_that_the_store_does_not_give_is_not_called_missing(server: Server, root: str) -> None:
    store = DatasetStore(root=root)
    for name in ("a.tif", "b.tif", "c.tif"):
        store.write_bytes(name, name.encode())
    files = {name: store.sha256(name) for name in ("a.tif", "b.tif", "c.tif")}
    table = Layout("small", 2022).table("splits")
    write_table(store, table, table_of("splits").to_pandas(), SCHEMAS["splits"], {"files": files})
    verify = ["verify", "--data", root, "--dataset", "small"]
    shown = CliRunner().invoke(app, verify)
    assert (shown.exit_code, "1 tables, 3 files, all unchanged" in shown.output) == (0, True)

    server.refused = lambda environ: environ["PATH_INFO"].endswith("/b.tif")
    for server.refusal in (
        (503, "SlowDown", "Please reduce your request rate."),
        (403, "AccessDenied", "No."),
    ):
        shown = CliRunner().invoke(app, verify)
        assert shown.exit_code == 2
        assert f"error: {root}/b.tif: " in shown.output
        assert "missing" not in shown.output
    server.refusal = None
    store.remove("b.tif")
    shown = CliRunner().invoke(app, verify)
    assert shown.exit_code == 1
    assert "b.tif: is missing; splits refers to it" in shown.output


# GDAL


@pytest.fixture
def chip(server: Server, root: str) -> str:
    """The path for GDAL of a merged chip in the bucket, whose values are 7."""
    store = DatasetStore(root=root)
    with (
        store.writing("chips/a.tif") as path,
        rasterio.open(
            *(path, "w"),
            driver="GTiff",
            count=18,
            height=224,
            width=224,
            dtype="int16",
            crs="EPSG:5070",
            transform=Affine(30, 0, 0, 0, -30, 0),
            compress="deflate",
        ) as raster,
    ):
        raster.write(np.full((18, 224, 224), 7, np.int16))
    return store.gdal_path("chips/a.tif")


def test_gdal_reads_what_is_there(chip: str, pool: Any) -> None:
    counts = measure_bands([chip], ["train"], pool)["train"]
    assert [band_statistics(band).mean for band in counts.sum(axis=0)] == [7] * 6


@pytest.mark.parametrize(
    "kind", ["no bucket", "no login", "an expired token", "slow down", "no server"], indirect=True
)
def test_what_gdal_cannot_read_has_the_same_errors(kind: Kind, pool: Any, tmp_path: Path) -> None:
    # each in a folder of its own, as GDAL remembers what it has not found
    name = f"{kind.bucket}/{tmp_path.name}/a.tif"
    with pytest.raises(ResourceError) as error:
        measure_bands([f"/vsis3/{name}"], ["train"], pool)
    assert type(error.value) is kind.error
    require_words(str(error.value), kind, f"s3://{name}")


def test_settings_that_only_gdal_lacks_are_named(
    chip: str, root: str, pool: Any, environment: pytest.MonkeyPatch
) -> None:
    # without an endpoint of its own GDAL asks AWS, which is not to be reached from here
    environment.delenv("AWS_S3_ENDPOINT")
    for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"):
        environment.setenv(name, closed_port())
    environment.setenv("NO_PROXY", "127.0.0.1")
    store = DatasetStore(root=root)
    store.copy_file("chips/a.tif", "chips/other.tif")
    with pytest.raises(StoreError, match="AWS_S3_ENDPOINT"):
        measure_bands([store.gdal_path("chips/other.tif")], ["train"], pool)


@pytest.mark.parametrize("data", [b"no raster at all", b"II*\0" + b"\xff" * 64], ids=["text", "tiff"])
def test_a_damaged_object_is_damaged(data: bytes, server: Server, root: str, pool: Any) -> None:
    store = DatasetStore(root=root)
    store.write_bytes("chips/b.tif", data)
    with pytest.raises(InputError, match=r"b\.tif cannot be read"):
        measure_bands([store.gdal_path("chips/b.tif")], ["train"], pool)
