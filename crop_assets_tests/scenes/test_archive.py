"""The metadata of whole tiles, from an archive with CMR's habits."""

import datetime as dt
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from crop_assets.scenes.archive import TileAnswer, TileQuestion, tile_answer
from crop_assets.scenes.granules import scene_rows
from crop_assets_tests.scenes.cmr import SEARCH, SEASON, Cmr, serving
from resources.errors import IntegrityError, UnavailableError
from resources.stac import SET_ASIDE, SceneStac
from resources.store import DatasetStore

HOME = "14SMG"
# a tile with neighbours on all sides, so that a search by its bounding box brings theirs along
NINE = {f"1{row}S{column}G": (-100.0 + at, 37.0 + row) for row in range(3) for at, column in enumerate("LMN")}
TILES = {HOME: (-99.0, 38.0)} | {name: place for name, place in NINE.items() if place != (-99.0, 38.0)}


@pytest.fixture
def cmr() -> Iterator[Cmr]:
    with serving(Cmr(TILES, 120)) as served:
        yield served


@pytest.fixture
def store(tmp_path: Path) -> DatasetStore:
    return DatasetStore(root=str(tmp_path / "store"))


def catalogue(cmr: Cmr, **changes: Any) -> SceneStac:
    fields = {
        "url": cmr.stac,
        "granule_search": cmr.search,
        "metadata_hosts": ["127.0.0.1"],
        "attempts": 6,
        "requests_per_second": 100_000,
    }
    return SceneStac(**(fields | changes))


def ask(
    cmr: Cmr, store: DatasetStore, stac: SceneStac, tile: str = HOME, said: list[str] | None = None
) -> TileAnswer:
    question = TileQuestion(tile, cmr.bbox(tile), *SEASON, ["S30"])
    return tile_answer(question, stac, store, (said if said is not None else []).append)


def ids_of(answer: TileAnswer, tile: str = HOME) -> list[str]:
    """The scenes of the tile, each with its coverage."""
    rows = scene_rows(answer.items, answer.documents, tile, ["S30"], [])
    assert (rows["problem"] == "").all()
    assert (rows["spatial_coverage"] == 95).all()
    return list(rows["scene_id"])


def kept(store: DatasetStore) -> list[Path]:
    return list((Path(store.root) / "answers").glob("*"))


def test_a_tile_takes_one_request_and_one_for_each_hundred_scenes(cmr: Cmr, store: DatasetStore) -> None:
    stac = catalogue(cmr)
    answer = ask(cmr, store, stac)
    assert ids_of(answer) == cmr.in_season(HOME)
    assert len(cmr.in_season(HOME)) > 100
    assert cmr.asked == {SEARCH: 1, "/stac/LPCLOUD": 1, "/stac/LPCLOUD/search": 2}


@pytest.mark.parametrize(
    "habits",
    [
        {},
        {"failing": 0.05},
        {"failing": 0.4},
        {"busy": 3},
        {"repeats": True},
        {"page": 7},
        {"without_search": True},
        {"without_search": True, "repeats": True, "failing": 0.1},
    ],
    ids=str,
)
def test_the_whole_set_comes_out_of_each_of_its_habits(
    cmr: Cmr, store: DatasetStore, habits: dict[str, Any]
) -> None:
    for name, value in habits.items():
        setattr(cmr, name, value)
    search = "" if cmr.without_search else cmr.search
    stac = catalogue(cmr, granule_search=search, attempts=12)
    assert ids_of(ask(cmr, store, stac)) == cmr.in_season(HOME)


@pytest.mark.parametrize("lacking", [1, 2, 1000])
def test_a_catalogue_that_lacks_granules_has_not_answered_until_it_has_them(
    cmr: Cmr, store: DatasetStore, lacking: int
) -> None:
    names = cmr.in_season(HOME)
    cmr.forgets = set(names[3 : 3 + lacking])
    told = f"lacks {len(cmr.forgets)} of the {len(names)} granules of {HOME} that .*, such as {names[3]}; "
    for _ in range(2):
        with pytest.raises(UnavailableError, match=told):
            ask(cmr, store, catalogue(cmr))
    assert kept(store) == []
    cmr.forgets = set()
    assert ids_of(ask(cmr, store, catalogue(cmr))) == names
    assert len(kept(store)) == 1


@pytest.mark.parametrize("search", [True, False])
def test_a_catalogue_that_gives_one_page_of_several_has_not_answered(
    cmr: Cmr, store: DatasetStore, search: bool
) -> None:
    cmr.one_page, cmr.page = True, 20
    stac = catalogue(cmr, **({} if search else {"granule_search": ""}))
    with pytest.raises(
        UnavailableError, match=r"it matched \d+ items and returned 20; materialize this tile again"
    ):
        ask(cmr, store, stac)
    assert kept(store) == []
    cmr.one_page = False
    assert ids_of(ask(cmr, store, stac)) == cmr.in_season(HOME)


@pytest.mark.parametrize("more", [1, 500])
def test_a_search_that_tells_of_more_than_it_gives_has_not_answered(
    cmr: Cmr, store: DatasetStore, more: int
) -> None:
    cmr.hits = len(cmr.in_season(HOME)) + more
    with pytest.raises(
        UnavailableError, match=rf"reported {cmr.hits} granules and returned {cmr.hits - more};"
    ):
        ask(cmr, store, catalogue(cmr))
    assert kept(store) == []


@pytest.mark.parametrize(
    ("hits", "page"), [(0, 2000), (3, 10), ("30", 50), (-1, 2000), ("many", 10), (True, 2000), (1e400, 2000)]
)
def test_a_search_that_tells_of_fewer_than_it_gives_loses_none(
    cmr: Cmr, store: DatasetStore, hits: Any, page: int
) -> None:
    cmr.hits, cmr.granules = hits, page
    assert ids_of(ask(cmr, store, catalogue(cmr))) == cmr.in_season(HOME)


def test_a_search_that_knows_of_nothing_is_checked_against_the_catalogue(
    cmr: Cmr, store: DatasetStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = cmr.in_season(HOME)
    monkeypatch.setattr(Cmr, "in_season", lambda self, tile: [])
    said: list[str] = []
    assert ids_of(ask(cmr, store, catalogue(cmr), said=said)) == names
    assert said == [f"{cmr.search} has no granule of {HOME}; searching the STAC catalogue by place"]


NO_ITEMS: list[Any] = [
    None,
    "x",
    5,
    [],
    {},
    {"id": None},
    {"id": ""},
    {"id": 7},
    {"id": {"a": 1}},
    {"id": "../x"},
]


@pytest.mark.parametrize("search", [True, False])
def test_items_that_cannot_be_used_are_set_aside_and_the_others_stay(
    cmr: Cmr, store: DatasetStore, search: bool
) -> None:
    names = cmr.in_season(HOME)
    cmr.spoilt = dict(zip(names[4:], NO_ITEMS, strict=False))
    stac = catalogue(cmr, **({} if search else {"granule_search": ""}))
    answer = ask(cmr, store, stac)
    rows = scene_rows(answer.items, answer.documents, HOME, ["S30"], []).set_index("scene_id")
    good, bad = rows[rows["problem"] == ""], rows[rows["problem"] != ""]
    assert list(good.index) == [name for name in names if name not in cmr.spoilt]
    assert (good["spatial_coverage"] == 95).all()
    assert bad["problem"].str.startswith("set aside: ").all()
    assert bad["date"].isna().all()
    # by its place in the answer what has no name, and by what the granule search calls it
    assert "../x" in bad.index
    assert bad.index.str.fullmatch(r"item \d+ of the answer").sum() == len(NO_ITEMS) - 1
    assert sorted(bad.index.intersection(names)) == (sorted(cmr.spoilt) if search else [])
    assert kept(store) == []
    cmr.spoilt = {}
    assert ids_of(ask(cmr, store, stac)) == names


def test_an_item_that_cannot_be_used_stands_for_one_granule_alone(cmr: Cmr, store: DatasetStore) -> None:
    names = cmr.in_season(HOME)
    cmr.spoilt, cmr.forgets = {names[4]: {"id": 7}}, {names[5]}
    with pytest.raises(UnavailableError, match=f"lacks 2 of the {len(names)} granules"):
        ask(cmr, store, catalogue(cmr))


@pytest.mark.parametrize("search", [True, False])
def test_an_item_of_another_tile_that_cannot_be_used_stands_for_none(
    cmr: Cmr, store: DatasetStore, search: bool
) -> None:
    names = cmr.in_season(HOME)
    stac = catalogue(cmr, **({} if search else {"granule_search": ""}))
    # day 366 of a common year
    neighbour = {"id": f"{names[4][:15].replace(HOME, '14SLG')}2021366T173149.v2.0"}
    cmr.spoilt = {names[4]: neighbour}
    if search:
        with pytest.raises(UnavailableError, match=f"lacks 1 of the {len(names)} granules .*{names[4]}"):
            ask(cmr, store, stac)
    else:
        assert ids_of(ask(cmr, store, stac)) == [name for name in names if name != names[4]]


def test_an_item_that_is_too_large_is_set_aside_once_and_stands_for_itself(
    cmr: Cmr, store: DatasetStore
) -> None:
    names = cmr.in_season(HOME)
    cmr.spoilt = {name: {"id": name, "x": [0] * 10_000} for name in names[4:7]}
    for search in (cmr.search, ""):
        answer = ask(cmr, store, catalogue(cmr, granule_search=search))
        assert [item["id"] for item in answer.items] == names[:4] + names[7:] + names[4:7]
        assert all("has 10,003 values" in item[SET_ASIDE] for item in answer.items[-3:])
    cmr.forgets = {names[0]}
    with pytest.raises(UnavailableError, match=f"lacks 1 of the {len(names)} granules .*{names[0]}"):
        ask(cmr, store, catalogue(cmr))


@pytest.mark.parametrize(
    ("search", "message"),
    [
        (True, "answers with 401 records, but at most 314 can be right"),
        (False, f"gives 302 items of {HOME} that cannot be used, such as LC09_"),
    ],
)
def test_a_catalogue_of_something_else_is_refused(
    cmr: Cmr, store: DatasetStore, search: bool, message: str
) -> None:
    names = cmr.in_season(HOME)
    cmr.spoilt = {names[4]: {"id": "x"}}
    junk = [{"id": f"LC09_{number}"} for number in range(301)]
    items = Cmr.items

    def spoilt(query: dict[str, Any]) -> dict[str, Any]:
        answer = items(cmr, query)
        return answer | {"features": [*answer["features"], *(junk if "token" not in query else [])]}

    cmr.items = spoilt  # type: ignore[method-assign]
    stac = catalogue(cmr, **({} if search else {"granule_search": ""}))
    with pytest.raises(IntegrityError, match=message):
        ask(cmr, store, stac)
    assert kept(store) == []


def test_the_documents_of_a_tile_are_bounded_together(
    cmr: Cmr, store: DatasetStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [name.replace("T172020", f"T17202{part}") for name in cmr.in_season(HOME) for part in range(3)]
    cmr.items = lambda query: {"features": [cmr.item(name) for name in names]}  # type: ignore[method-assign]
    record = Cmr.record
    padding = {"padding": " " * 260_000}
    monkeypatch.setattr(Cmr, "record", lambda self, name: {"umm": record(self, name)["umm"] | padding})
    with pytest.raises(
        IntegrityError, match=r"answers with [0-9,]+ bytes, but at most 67,108,864 can be right"
    ):
        ask(cmr, store, catalogue(cmr, granule_search=""))


def test_a_tile_has_no_more_scenes_than_its_season_can_hold(cmr: Cmr, store: DatasetStore) -> None:
    day = cmr.in_season(HOME)[3]
    for count, search in ((20, ""), (20, cmr.search)):
        names = [f"{day[:23]}{number:06d}.v2.0" for number in range(count)]
        cmr.in_season = lambda tile, names=names: names  # type: ignore[method-assign]
        cmr.items = lambda query: {"features": [cmr.item(name) for name in cmr.in_season(HOME)]}  # type: ignore[method-assign]
        first = dt.datetime.strptime(day[15:22], "%Y%j").date()
        question = TileQuestion(HOME, cmr.bbox(HOME), first, first, ["S30"])
        with pytest.raises(IntegrityError, match="answers with 20 records, but at most 4 can be right"):
            tile_answer(question, catalogue(cmr, granule_search=search), store, print)
    assert not [path for path in cmr.asked if "concepts" in path], "no document is read"


def test_all_that_a_tile_asks_has_an_end(
    cmr: Cmr, store: DatasetStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crop_assets.scenes.archive.MAX_TILE_SECONDS", 3.0)
    record = Cmr.record

    def slowly(self: Cmr, name: str) -> dict[str, Any]:
        time.sleep(2)
        return record(self, name)

    monkeypatch.setattr(Cmr, "record", slowly)
    with pytest.raises(UnavailableError):
        ask(cmr, store, catalogue(cmr, granule_search=""))
    assert sum("concepts" in path for path in cmr.asked.elements()) <= 32
    assert kept(store) == []


def test_a_catalogue_that_asks_for_long_pauses_is_left_in_time(
    cmr: Cmr, store: DatasetStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crop_assets.scenes.archive.MAX_TILE_SECONDS", 30.0)
    cmr.busy, cmr.pause = 1000, 100
    with pytest.raises(UnavailableError):
        ask(cmr, store, catalogue(cmr, granule_search=""))
    assert sum(cmr.asked.values()) == 1


def test_a_document_that_is_another_page_is_not_kept(
    cmr: Cmr, store: DatasetStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    stac = catalogue(cmr, granule_search="")
    with monkeypatch.context() as patch:
        patch.setattr(SceneStac, "document", lambda self, url: b"<html>down for maintenance</html>")
        answer = ask(cmr, store, stac)
    rows = scene_rows(answer.items, answer.documents, HOME, ["S30"], [])
    assert list(rows["scene_id"]) == cmr.in_season(HOME)
    assert rows["spatial_coverage"].isna().all()
    assert rows["problem"].str.contains("metadata document cannot be read").all()
    assert kept(store) == []
    assert ids_of(ask(cmr, store, stac)) == cmr.in_season(HOME)


def test_an_answer_is_not_asked_for_twice_unless_it_is_told_to(cmr: Cmr, store: DatasetStore) -> None:
    first = ask(cmr, store, catalogue(cmr))
    cmr.asked.clear()
    again = ask(cmr, store, catalogue(cmr))
    assert (again.items, again.documents) == (first.items, first.documents)
    assert (first.asked, again.asked) == (True, False)
    assert not cmr.asked
    assert ask(cmr, store, catalogue(cmr, refresh=True)).asked
    assert cmr.asked


def test_without_a_granule_search_nothing_is_asked_for_twice_either(cmr: Cmr, store: DatasetStore) -> None:
    stac = catalogue(cmr, granule_search="")
    first = ask(cmr, store, stac)
    assert ids_of(first) == cmr.in_season(HOME)
    assert {item["id"] for item in first.items} == set(first.documents), "the neighbours' are not read"
    cmr.asked.clear()
    assert ids_of(ask(cmr, store, catalogue(cmr, granule_search=""))) == cmr.in_season(HOME)
    assert not cmr.asked


def test_another_question_is_asked(cmr: Cmr, store: DatasetStore) -> None:
    ask(cmr, store, catalogue(cmr))
    other = TileQuestion(HOME, cmr.bbox(HOME), SEASON[0], SEASON[0], ["S30"])
    assert tile_answer(other, catalogue(cmr), store, print).asked
    assert ask(cmr, store, catalogue(cmr), "10SLG").asked


@pytest.mark.parametrize("damage", [b"", b"no gzip", None])
def test_a_damaged_answer_is_asked_for_again(cmr: Cmr, store: DatasetStore, damage: bytes | None) -> None:
    ask(cmr, store, catalogue(cmr))
    (path,) = (Path(store.root) / "answers").iterdir()
    path.write_bytes(path.read_bytes()[:-20] if damage is None else damage)
    said: list[str] = []
    assert ids_of(ask(cmr, store, catalogue(cmr), said=said)) == cmr.in_season(HOME)
    assert "is damaged" in said[0]
    assert not ask(cmr, store, catalogue(cmr)).asked


def test_a_tile_that_cannot_be_had_fails_alone_and_a_rerun_asks_only_for_it(
    cmr: Cmr, store: DatasetStore
) -> None:
    for tile in list(TILES)[1:]:
        ask(cmr, store, catalogue(cmr), tile)
    cmr.failing = 1.0
    with pytest.raises(UnavailableError, match="answered 503"):
        ask(cmr, store, catalogue(cmr, attempts=2))
    assert len(list((Path(store.root) / "answers").iterdir())) == len(TILES) - 1, "nothing partial is kept"
    cmr.failing = 0.0
    cmr.asked.clear()
    stac = catalogue(cmr)
    for tile in TILES:
        assert ids_of(ask(cmr, store, stac, tile), tile) == cmr.in_season(tile)
    assert cmr.asked == {SEARCH: 1, "/stac/LPCLOUD": 1, "/stac/LPCLOUD/search": 2}


def test_what_a_granule_search_promises_and_does_not_give_is_no_answer(
    cmr: Cmr, store: DatasetStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = Cmr.record
    monkeypatch.setattr(Cmr, "record", lambda self, name: record(self, cmr.in_season(HOME)[0]))
    with pytest.raises(UnavailableError, match=r"reported \d+ granules and returned 1;"):
        ask(cmr, store, catalogue(cmr))


def test_a_granule_search_that_is_none_is_done_without(cmr: Cmr, store: DatasetStore) -> None:
    said: list[str] = []
    stac = catalogue(cmr, granule_search=cmr.stac)
    assert ids_of(ask(cmr, store, stac, said=said)) == cmr.in_season(HOME)
    assert "did not answer like a granule search" in said[0]


def test_all_tiles_of_the_country_under_five_percent_of_failures(store: DatasetStore) -> None:
    """490 tiles of 40 scenes: at most three requests a tile but for what failed, and nothing is missing."""
    names = [f"{zone}S{a}{b}" for zone in range(10, 20) for a in "KLMNPQR" for b in "ABCDEFG"][:490]
    tiles = {name: (-120.0 + at % 50, 25.0 + at // 50) for at, name in enumerate(names)}
    with serving(Cmr(tiles, 40, failing=0.05)) as cmr:
        stac = catalogue(cmr)
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda tile: ids_of(ask(cmr, store, stac, tile), tile), names))
        assert found == [cmr.in_season(tile) for tile in names]
        sent = sum(cmr.asked.values())
        assert sent * 0.9 <= 3 * len(names)
