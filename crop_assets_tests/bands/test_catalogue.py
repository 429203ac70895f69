from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crop_assets.bands.catalogue import catalogue_items
from crop_assets_tests.scenes.cmr import Cmr, scene_ids, serving
from resources.errors import UnavailableError
from resources.stac import IpfsStac
from resources.store import DatasetStore

TILE = "14SMG"
FIRST, SECOND, THIRD, *_ = SCENES = scene_ids(TILE, 10)


@pytest.fixture
def archive() -> Iterator[Cmr]:
    with serving(Cmr({TILE: (-99.0, 38.0)}, len(SCENES))) as served:
        yield served


@pytest.fixture
def store(tmp_path: Path) -> DatasetStore:
    return DatasetStore(root=str(tmp_path))


def ask(
    archive: Cmr, store: DatasetStore, *scenes: str, said: list[str] | None = None, **changes: Any
) -> list[str]:
    """Ids of the returned items, and the number of searches."""
    archive.asked.clear()
    catalogue = IpfsStac(**({"url": archive.stac, "attempts": 2, "requests_per_second": 1000} | changes))
    items = catalogue_items(scenes, TILE, catalogue, store, (said if said is not None else []).append)
    assert all(item == archive.item(item["id"]) for item in items)
    return [item["id"] for item in items]


def searches(archive: Cmr) -> int:
    return archive.asked["/stac/LPCLOUD/search"]


def test_only_scenes_that_are_not_cached_are_requested(archive: Cmr, store: DatasetStore) -> None:
    assert ask(archive, store, FIRST, SECOND) == [FIRST, SECOND]
    assert searches(archive) == 1
    assert ask(archive, store, SECOND, FIRST) == [FIRST, SECOND]
    assert not archive.asked
    assert ask(archive, store, SECOND, THIRD) == [SECOND, THIRD]
    assert searches(archive) == 1
    assert ask(archive, store, FIRST, refresh=True) == [FIRST]
    assert searches(archive) == 1
    assert ask(archive, store, FIRST, SECOND, THIRD) == [FIRST, SECOND, THIRD]
    assert not archive.asked


def test_a_scene_that_the_catalogue_lacks_is_requested_again(archive: Cmr, store: DatasetStore) -> None:
    archive.forgets = {SECOND}
    assert ask(archive, store, FIRST, SECOND) == [FIRST]
    archive.forgets = set()
    assert ask(archive, store, FIRST, SECOND) == [FIRST, SECOND]


@pytest.mark.parametrize(
    "spoilt", [None, "x", {}, {"id": 5}, {"id": SECOND}, {"id": SECOND, "assets": ["a"]}], ids=str
)
def test_a_malformed_item_affects_no_other_and_is_requested_again(
    archive: Cmr, store: DatasetStore, spoilt: Any
) -> None:
    archive.spoilt = {SECOND: spoilt}
    catalogue = IpfsStac(url=archive.stac, attempts=2, requests_per_second=1000)
    said: list[str] = []
    first, second, third = catalogue_items([FIRST, SECOND, THIRD], TILE, catalogue, store, said.append)
    if isinstance(spoilt, dict) and spoilt.get("id") == SECOND:
        assert (first["id"], second, third["id"]) == (FIRST, spoilt, THIRD)
        assert said == []
    else:
        assert (first["id"], second["id"], third["id"]) == (FIRST, THIRD, "item 2 of the answer")
        assert said[0].startswith("the IPFS catalogue's item 2 of the answer ")
    archive.spoilt = {}
    assert ask(archive, store, FIRST, SECOND, THIRD) == [FIRST, SECOND, THIRD]
    assert searches(archive) == 1


def test_a_partial_answer_is_an_error_and_not_cached(archive: Cmr, store: DatasetStore) -> None:
    archive.page, archive.one_page = 2, True
    with pytest.raises(UnavailableError, match="matched 3 items and returned 2"):
        ask(archive, store, FIRST, SECOND, THIRD)
    archive.one_page = False
    assert ask(archive, store, FIRST, SECOND, THIRD) == [FIRST, SECOND, THIRD]
    assert searches(archive) == 2


def test_each_catalogue_has_its_own_cached_answers(archive: Cmr, store: DatasetStore) -> None:
    ask(archive, store, FIRST)
    with serving(Cmr(archive.tiles, archive.scenes)) as other:
        assert ask(other, store, FIRST) == [FIRST]
        assert searches(other) == 1
    assert ask(archive, store, FIRST, url="") == []


def test_a_damaged_cached_answer_is_reported_and_requested_again(archive: Cmr, store: DatasetStore) -> None:
    ask(archive, store, FIRST)
    (path,) = (Path(store.root) / "answers").iterdir()
    path.write_bytes(path.read_bytes()[:-9])
    said: list[str] = []
    assert ask(archive, store, FIRST, said=said) == [FIRST]
    assert "is damaged" in said[0]


def test_a_catalogue_that_fails_leaves_the_cache_unchanged(archive: Cmr, store: DatasetStore) -> None:
    ask(archive, store, FIRST)
    archive.failing = 1.0
    with pytest.raises(UnavailableError):
        ask(archive, store, FIRST, SECOND)
    assert ask(archive, store, FIRST) == [FIRST]
