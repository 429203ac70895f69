"""How many requests the tiles of a run make to an object store."""

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Executor
from typing import Any

import pytest
import s3fs
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from crop_assets.schemas import SCHEMAS
from crop_assets.verify import verify_tables
from crop_assets_tests.small_world import CHIPS, KEPT, TILE_STAGES, TILES, Graph, digests
from resources.store import DatasetStore
from resources.tables import read_table

BUCKET = "counted-crops"
OF_A_TILE, OF_A_CHIP, OF_A_TABLE = 85, 5, 3
"""Most requests: 400 for the 63 chips of a tile, whose store was empty. A chip has five files."""


class Server:
    """An S3 server that counts requests by method and path."""

    def __init__(self) -> None:
        self._moto = DomainDispatcherApplication(create_backend_app)
        self.asked: Counter[tuple[str, str]] = Counter()

    def __call__(self, environ: dict[str, Any], start: Any) -> Any:
        self.asked[environ["REQUEST_METHOD"], environ["PATH_INFO"]] += 1
        return self._moto(environ, start)

    def of(self, method: str) -> dict[str, int]:
        """Requests of a method by path."""
        return {path: count for (asked, path), count in self.asked.items() if asked == method}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    server = Server()
    http = make_server("127.0.0.1", 0, server, threaded=True)
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{http.server_port}",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    yield server
    s3fs.S3FileSystem.clear_instance_cache()
    http.shutdown()
    thread.join()
    http.server_close()


def test_a_tile_is_made_by_few_requests_and_reused_by_fewer(
    labelled_graph: Graph, server: Server, pool: Executor
) -> None:
    elsewhere = s3fs.S3FileSystem(skip_instance_cache=True)
    elsewhere.mkdir(BUCKET)
    elsewhere.put(str(labelled_graph.root), f"{BUCKET}/data", recursive=True)
    before = set(digests(labelled_graph.root))
    store = DatasetStore(root=f"s3://{BUCKET}/data")

    server.asked.clear()
    assert labelled_graph.run("tiles_job", store=store).success
    chips = sum(len(CHIPS[tile]) for tile in TILES)
    assert server.asked.total() <= len(TILES) * OF_A_TILE + chips * OF_A_CHIP
    written = server.of("PUT")
    assert set(written.values()) == {1}
    # what the run itself has written is not read
    assert not {path for path in server.of("GET") if path.endswith(".tif")}
    assert not server.of("HEAD")
    found = elsewhere.find(f"{BUCKET}/data")
    assert {f"/{path}" for path in found} == {*written, *(f"/{BUCKET}/data/{name}" for name in before)}

    layout = labelled_graph.layout
    tables = [layout.table(stage, tile) for stage in TILE_STAGES for tile in TILES]
    verified = verify_tables(store, tables, pool)
    assert (verified.bad_files, verified.tables) == ([], len(tables))
    kept: list[str] = []
    for tile in TILES:
        judged = read_table(store, layout.table("filtered_chips", tile), SCHEMAS["filtered_chips"])
        kept += list(judged.loc[judged["kept"], "chip_id"])
    assert sorted(kept) == KEPT

    server.asked.clear()
    again = labelled_graph.run("tiles_job", store=store)
    assert again.success
    assert not again.redone
    assert not server.of("PUT")
    read = {path: count for path, count in server.of("GET").items() if path.endswith(".tif")}
    assert set(read) == {path for path in written if path.endswith(".tif")}
    assert set(read.values()) == {1}
    assert server.asked.total() <= sum(read.values()) + len(TILES) * OF_A_TABLE * len(TILE_STAGES)
