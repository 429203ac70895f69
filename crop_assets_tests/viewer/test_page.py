"""The page of the chip viewer, opened from the file system in headless Chromium."""

import base64
import io
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from crop_assets.classes import CLASS_COLOURS, CLASSES
from crop_assets_tests.browser.chromium import chromium

PAGE = Path(__file__).resolve().parents[2] / "crop_assets" / "viewer" / "page"
TILES = ("13TDE", "14TLK", "15TVG", "16TCK")
REASONS = (
    "bad_quality",
    "na_pixels",
    "too_few_scenes",
    "tile_missing",
    "no_label",
    "outside_aoi",
    "impure",
    "doubtful",
)
FMASK = ("clear", "water", "snow or ice", "cloud", "cloud shadow", "adjacent to cloud or shadow", "missing")
FMASK_COLOURS = ("#d9d9d9", "#0072b2", "#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#000000")
IN_PACK = 64
SIDE = 224
HOSTILE = '<img src=x onerror="window.hit = 1"></script><script>window.hit = 1</script>'
RTL = "\u202e\u05e9\u05dc\u05d5\u05dd \u202e <b>txt.exe</b>"
LONG = "W" * 10_000

Chip = dict[str, Any]
"""The columns of one chip, as in data.js; `dates` and `scenes` have three values or are None."""


def picture(mode: str, width: int, seed: int) -> str:
    """The data URL of a random picture, SIDE high."""
    generator = np.random.default_rng(seed)
    bands = () if mode == "P" else (3,)
    coarse = generator.integers(0, 7 if mode == "P" else 256, (SIDE // 8, width // 8, *bands), dtype=np.uint8)
    image = Image.fromarray(coarse.repeat(8, axis=0).repeat(8, axis=1))
    file = io.BytesIO()
    if mode == "P":
        image.putpalette([value for one in FMASK_COLOURS for value in bytes.fromhex(one[1:])])
        image.save(file, "PNG")
    else:
        image.save(file, "JPEG", quality=85)
    kind = "png" if mode == "P" else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def script(call: str, *values: Any) -> str:
    text = ", ".join(json.dumps(value, separators=(",", ":")) for value in values)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return f"cropViewer.{call}({text});\n"


def chips(number: int) -> list[Chip]:
    """Chips of four tiles beside each other: three of four are in the dataset, the others have each of the reasons."""
    made = []
    for index in range(number):
        tile = index % len(TILES)
        place = index // len(TILES)
        row, column = divmod(place, 36)
        south, west = 41.0 - row * 0.06, -105.0 + tile * 3 + column * 0.08
        is_kept = index % 4 != 3 if number < 4 * 36 else (index // 4) % 4 != 3
        reason = "" if is_kept else REASONS[(index // 4 if number < 4 * 36 else index // 16) % len(REASONS)]
        shares = [0.0] * len(CLASSES)
        dominant = 1 + index % 13
        shares[dominant] = 70.5
        shares[1 + (index + 5) % 13] += 29.5
        has_pixels = reason in {"", "bad_quality", "na_pixels"}
        month = 4 + index % 3
        made.append(
            {
                "id": f"chip_{100 + row:03d}_{tile * 100 + column:03d}",
                "tile": "" if reason == "outside_aoi" else TILES[tile],
                "split": ("train", "train", "validation", "test")[(index * 7) % 11 % 4] if is_kept else "",
                "reason": reason,
                "detail": "12.4 % bad pixels" if reason == "bad_quality" else "",
                "corners": [
                    [south, west],
                    [south, west + 0.075],
                    [south + 0.055, west + 0.076],
                    [south + 0.055, west + 0.001],
                ],
                "dominant": -1 if reason == "no_label" else dominant,
                "shares": None if reason == "no_label" else shares,
                "bad": [0.0, (index % 9) * 4.1, 0.4] if has_pixels else None,
                "missing": (3 if reason == "na_pixels" else 0) if has_pixels else None,
                "purity": 91.2 if index % 2 else None,
                "confidence": 80.0 if index % 5 else None,
                "dates": [f"2022-{month:02d}-11", f"2022-{month + 2:02d}-21", f"2022-{month + 4:02d}-05"]
                if has_pixels
                else None,
                "scenes": [tile * 3, tile * 3 + 1, tile * 3 + 2] if has_pixels else None,
                "pack": 0 if has_pixels else -1,
            }
        )
    return sorted(made, key=lambda one: str(one["id"]))


def write_viewer(folder: Path, table: list[Chip], dataset: str = "made up") -> Path:
    """Write data.js and the packs of these chips beside the page and Leaflet, and return index.html."""
    # its package is imported here, since the package's name is found at run time
    import xstatic.pkg.leaflet

    shutil.copytree(PAGE, folder)
    shutil.copytree(xstatic.pkg.leaflet.BASE_DIR, folder / "leaflet")
    (folder / "packs").mkdir()
    pictures = [
        {
            "true_colour": picture("RGB", 3 * SIDE, seed),
            "near_infrared": picture("RGB", 3 * SIDE, 100 + seed),
            "mask": picture("P", SIDE, 200 + seed),
            "fmask": picture("P", 3 * SIDE, 300 + seed),
        }
        for seed in range(4)
    ]
    names = []
    pictured = [one for one in table if one["pack"] >= 0]
    for first in range(0, len(pictured), IN_PACK):
        batch = pictured[first : first + IN_PACK]
        for one in batch:
            one["pack"] = len(names)
        text = script("pack", len(names), {str(one["id"]): pictures[at % 4] for at, one in enumerate(batch)})
        (folder / "packs" / f"{len(names):04d}.js").write_text(text)
        names.append(f"packs/{len(names):04d}.js")
    bands = [f"B{band:02d}" for band in range(1, 13)] + ["Fmask"]
    data = {
        "dataset": dataset,
        "year": 2022,
        "classes": [
            {"value": value, "name": name, "color": colour}
            for value, (name, colour) in enumerate(zip(CLASSES, CLASS_COLOURS, strict=True))
        ],
        "fmask": [
            {"value": value, "name": name, "color": colour}
            for value, (name, colour) in enumerate(zip(FMASK, FMASK_COLOURS, strict=True))
        ],
        "tiles": {
            tile: [
                [at, west]
                for at, west in (
                    (41.1, -105.02 + 3 * place),
                    (41.1, -102.1 + 3 * place),
                    (38.9, -102.1 + 3 * place),
                    (38.9, -105.02 + 3 * place),
                )
            ]
            for place, tile in enumerate(TILES)
        },
        "scenes": [
            {
                "id": f"HLS.S30.T{tile}.2022{day:03d}T174911.v2.0",
                "date": f"2022-0{3 + number}-11",
                "files": [
                    [band, f"bafybei{number}{band.lower()}" if band != "B05" else "", band != "B05"]
                    for band in bands
                ],
            }
            for tile in TILES
            for number, day in enumerate((100, 160, 220))
        ],
        "columns": {name: [one[name] for one in table] for name in table[0]},
        "packs": names,
    }
    (folder / "data.js").write_text(script("load", data))
    return folder / "index.html"


@dataclass
class Viewer:
    """A page with the viewer, and what it requested and reported."""

    page: Any
    index: Path
    requests: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def open(self, chip: str = "") -> None:
        self.page.goto(self.index.as_uri() + (f"#{chip}" if chip else ""))
        self.until("!!document.querySelector('#list li, #notice:not([hidden])')")

    def until(self, condition: str, argument: Any = None) -> None:
        """Wait until an expression is true; Playwright's own wait needs `eval`, which the page refuses."""
        for _ in range(600):
            if self.page.evaluate(condition, argument):
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(condition)

    def packs(self) -> list[str]:
        return [url.rsplit("/", 1)[1] for url in self.requests if "/packs/" in url]

    def listed(self) -> list[str]:
        """The ids in the list, of all of its pages."""
        found: list[str] = self.page.eval_on_selector_all(
            "#list a > bdi", "all => all.map(e => e.textContent)"
        )
        while self.page.locator("#page-on").is_enabled():
            self.page.click("#page-on")
            found += self.page.eval_on_selector_all("#list a > bdi", "all => all.map(e => e.textContent)")
        return found

    def on_map(self) -> list[str]:
        found: list[str] = self.page.evaluate(
            "data.columns.id.filter((_, at) => map.hasLayer(chipLayers[at]))"
        )
        return found

    def title(self) -> str:
        return str(self.page.inner_text("#chip-title"))

    def images(self) -> list[list[int]]:
        """Width, height and number of distinct values of the first rows of each picture that is drawn."""
        self.until("[...document.querySelectorAll('#chip img')].length === 4")
        self.page.evaluate(
            "Promise.all([...document.querySelectorAll('#chip img')].map(image => image.decode()))"
        )
        found: list[list[int]] = self.page.evaluate(
            """[...document.querySelectorAll('#chip img')].map(image => {
                 const canvas = document.createElement('canvas');
                 [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
                 const context = canvas.getContext('2d');
                 context.drawImage(image, 0, 0);
                 const pixels = new Uint32Array(context.getImageData(0, 0, canvas.width, canvas.height).data.buffer);
                 return [canvas.width, canvas.height, new Set(pixels).size];
               })"""
        )
        return found

    def check(self) -> None:
        """Nothing was reported, and nothing came from elsewhere."""
        assert self.problems == []
        assert [url for url in self.requests if not url.startswith(("file://", "data:"))] == []


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


def viewer_of(browser: Any, index: Path, width: int = 1400, height: int = 900) -> Viewer:
    page = browser.new_page(viewport={"width": width, "height": height})
    page.set_default_timeout(60_000)
    viewer = Viewer(page, index)
    page.on("request", lambda request: viewer.requests.append(request.url))
    page.on("requestfailed", lambda request: viewer.problems.append(f"failed: {request.url}"))
    page.on("pageerror", lambda error: viewer.problems.append(str(error)))
    page.on(
        "console", lambda message: viewer.problems.append(message.text) if message.type != "log" else None
    )
    return viewer


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Chip]]:
    table = chips(36)
    return write_viewer(tmp_path_factory.mktemp("small") / "viewer", table), table


@pytest.fixture
def opened(browser: Any, small: tuple[Path, list[Chip]]) -> Iterator[tuple[Viewer, list[Chip]]]:
    viewer = viewer_of(browser, small[0])
    viewer.open()
    yield viewer, small[1]
    viewer.check()
    viewer.page.close()


def test_all_chips_are_on_the_map_and_in_the_list(opened: tuple[Viewer, list[Chip]]) -> None:
    viewer, table = opened
    ids = [one["id"] for one in table]
    assert viewer.on_map() == viewer.listed() == ids
    assert viewer.page.inner_text("#count") == "36 of 36 chips shown"
    assert viewer.packs() == []
    assert {one["reason"] for one in table} == {"", *REASONS}
    assert viewer.page.eval_on_selector_all(".tile-name", "all => all.map(e => e.textContent)") == list(TILES)
    degrees = viewer.page.eval_on_selector_all(".degrees", "all => all.map(e => e.textContent)")
    assert {"105\u00b0W", "40\u00b0N"} <= set(degrees) or {"104\u00b0W", "40\u00b0N"} <= set(degrees), degrees


@pytest.mark.parametrize(
    ("field_id", "value", "passes"),
    [
        ("class", "3", lambda one: one["shares"] is not None and one["shares"][3] > 0),
        ("tile", "14TLK", lambda one: one["tile"] == "14TLK"),
        ("split", "validation", lambda one: one["split"] == "validation"),
        ("split", "-", lambda one: one["split"] == ""),
        ("reason", "-", lambda one: one["reason"] == ""),
        ("reason", "*", lambda one: one["reason"] != ""),
        ("reason", "=bad_quality", lambda one: one["reason"] == "bad_quality"),
        ("from", "2022-10-01", lambda one: one["dates"] is not None and one["dates"][2] >= "2022-10-01"),
        ("to", "2022-05-01", lambda one: one["dates"] is not None and one["dates"][0] <= "2022-05-01"),
    ],
)
def test_a_filter_shows_the_chips_that_pass_it(
    opened: tuple[Viewer, list[Chip]], field_id: str, value: str, passes: Any
) -> None:
    viewer, table = opened
    expected = [one["id"] for one in table if passes(one)]
    assert 0 < len(expected) < len(table)
    if field_id in {"from", "to"}:
        viewer.page.fill(f"#{field_id}", value)
    else:
        viewer.page.select_option(f"#{field_id}", value)
    assert viewer.on_map() == viewer.listed() == expected
    assert viewer.page.inner_text("#count") == f"{len(expected)} of 36 chips shown"
    viewer.page.click("text=Clear filters")
    assert viewer.on_map() == viewer.listed() == [one["id"] for one in table]


def test_filters_combine(opened: tuple[Viewer, list[Chip]]) -> None:
    viewer, table = opened
    viewer.page.select_option("#class", "3")
    viewer.page.check("#is-dominant")
    assert viewer.listed() == [one["id"] for one in table if one["dominant"] == 3]
    viewer.page.select_option("#reason", "-")
    viewer.page.fill("#from", "2022-05-01")
    viewer.page.fill("#to", "2022-06-30")
    expected = [
        one["id"]
        for one in table
        if one["dominant"] == 3
        and one["reason"] == ""
        and any("2022-05-01" <= date <= "2022-06-30" for date in one["dates"])
    ]
    assert viewer.on_map() == viewer.listed() == expected
    viewer.page.fill("#from", "2022-12-30")
    assert viewer.on_map() == viewer.listed() == []
    assert viewer.page.inner_text("#page-of") == "no chips"
    viewer.page.keyboard.press("Escape")


QUALITY = ("0 %", "over 0 to 1 %", "over 1 to 5 %", "over 5 to 10 %", "over 10 to 25 %", "over 25 to 100 %")


def quality(one: Chip) -> str:
    if one["bad"] is None:
        return "not known"
    worst = max(one["bad"])
    return next(name for name, limit in zip(QUALITY, (0, 1, 5, 10, 25, 100), strict=True) if worst <= limit)


@pytest.mark.parametrize(
    ("mode", "name_of", "others"),
    [
        ("split", lambda one: one["split"] or "none (rejected)", ()),
        ("reason", lambda one: one["reason"] or "in the dataset", ()),
        ("class", lambda one: "not known" if one["dominant"] < 0 else CLASSES[one["dominant"]], CLASSES),
        ("quality", quality, QUALITY),
    ],
)
def test_the_colours_are_those_of_the_legend(
    opened: tuple[Viewer, list[Chip]], mode: str, name_of: Any, others: tuple[str, ...]
) -> None:
    viewer, table = opened
    viewer.page.select_option("#mode", mode)
    rows = viewer.page.eval_on_selector_all(
        "#legend li",
        """all => all.map(row => [
             row.querySelector('bdi').textContent,
             getComputedStyle(row.querySelector('.swatch')).backgroundColor,
             row.querySelector('.number').textContent,
           ])""",
    )
    counts = Counter(name_of(one) for one in table)
    assert {name: int(number) for name, _, number in rows if number != "0"} == counts
    assert {name for name, *_ in rows} >= {*others, *counts}
    colours = {name: colour for name, colour, _ in rows}
    drawn = viewer.page.evaluate(
        """chipLayers.map(layer => {
             const probe = document.createElement('i');
             probe.style.backgroundColor = layer.options.fillColor;
             document.body.append(probe);
             const colour = getComputedStyle(probe).backgroundColor;
             probe.remove();
             return colour;
           })"""
    )
    assert drawn == [colours[name_of(one)] for one in table]
    # and the canvas has them: chips of another colour look different, and chips of one the same
    kept = [at for at, one in enumerate(table) if one["reason"] == ""]
    viewer.page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    seen = {at: pixel(viewer, at) for at in kept}
    for at in kept:
        for other in kept:
            assert (seen[at] == seen[other]) == (drawn[at] == drawn[other]), (mode, at, other)


def centre(viewer: Viewer, index: int) -> tuple[float, float]:
    """Where the centre of a chip is on the page."""
    x, y = viewer.page.evaluate(
        """at => {
             const box = document.querySelector('#map').getBoundingClientRect();
             const point = map.latLngToContainerPoint(L.latLngBounds(data.columns.corners[at]).getCenter());
             return [box.x + point.x, box.y + point.y];
           }""",
        index,
    )
    return x, y


def pixel(viewer: Viewer, index: int) -> tuple[int, ...]:
    viewer.page.evaluate(
        "at => void map.setView(L.latLngBounds(data.columns.corners[at]).getCenter(), 11, {animate: false})",
        index,
    )
    viewer.page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    x, y = centre(viewer, index)
    shot = Image.open(
        io.BytesIO(viewer.page.screenshot(clip={"x": x - 1, "y": y - 1, "width": 3, "height": 3}))
    )
    return tuple(shot.convert("RGB").getpixel((1, 1)))  # type: ignore[arg-type]


def test_a_click_on_the_map_opens_the_chip_there(opened: tuple[Viewer, list[Chip]]) -> None:
    viewer, table = opened
    for index in (0, 17, 35):
        viewer.page.evaluate(
            "at => void map.setView(data.columns.corners[at][0], 10, {animate: false})", index
        )
        viewer.page.mouse.click(*centre(viewer, index))
        assert viewer.title() == table[index]["id"]
        viewer.page.wait_for_url(f"**#{table[index]['id']}")


def test_a_chip_shows_its_pictures_and_figures(opened: tuple[Viewer, list[Chip]]) -> None:
    viewer, table = opened
    one = next(one for one in table if one["reason"] == "bad_quality")
    viewer.page.get_by_role("link", name=one["id"]).click()
    assert [size[:2] for size in viewer.images()] == [[3 * SIDE, SIDE]] * 3 + [[SIDE, SIDE]]
    assert all(values > 3 for *_, values in viewer.images())
    text = viewer.page.inner_text("#chip")
    for words in (
        *one["dates"],
        "bad_quality",
        "12.4 % bad pixels",
        "70.5 %",
        CLASSES[one["dominant"]],
        *FMASK,
    ):
        assert words in text
    scenes = viewer.page.locator("#chip details")
    assert scenes.count() == 3
    assert f"HLS.S30.T{one['tile']}.2022100T174911.v2.0" in scenes.first.inner_text()
    assert "12 of 13 files verified" in scenes.first.inner_text()
    scenes.first.locator("summary").click()
    assert scenes.first.locator("tbody tr").count() == 13
    assert "bafybei0b02" in scenes.first.inner_text()
    assert "not verified" in scenes.first.locator("tr", has_text="B05").inner_text()
    without = next(one for one in table if one["reason"] == "too_few_scenes")
    viewer.page.get_by_role("link", name=without["id"]).click()
    assert "no pictures of this chip: it was rejected (too_few_scenes)" in viewer.page.inner_text("#chip")
    assert viewer.page.locator("#chip img").count() == 0


def test_keys_step_through_the_chips_that_are_shown(opened: tuple[Viewer, list[Chip]]) -> None:
    viewer, table = opened
    viewer.page.select_option("#tile", "15TVG")
    viewer.page.evaluate("document.activeElement.blur()")
    ids = [one["id"] for one in table if one["tile"] == "15TVG"]
    seen = []
    for key in ("ArrowRight", "j", "ArrowRight", "k", "ArrowLeft", "ArrowLeft", "End", "j", "k", "Home"):
        viewer.page.keyboard.press(key)
        seen.append(ids.index(viewer.title()))
        assert viewer.page.get_attribute("#list a[aria-current]", "href") == f"#{ids[seen[-1]]}"
    last = len(ids) - 1
    assert seen == [0, 1, 2, 1, 0, 0, last, last, last - 1, 0]
    viewer.page.wait_for_url(f"**#{ids[0]}")
    viewer.page.keyboard.press("?")
    assert viewer.page.locator("#help").is_visible()
    viewer.page.keyboard.press("j")
    viewer.page.keyboard.press("Escape")
    assert not viewer.page.locator("#help").is_visible()
    assert viewer.title() == ids[0]
    viewer.page.keyboard.press("Escape")
    assert not viewer.page.locator("#chip").is_visible()
    assert "#" not in viewer.page.url or viewer.page.wait_for_url("**/index.html") is None
    # by the tab key alone: the focus is on the link of the chip that was closed
    viewer.page.keyboard.press("Tab")
    viewer.page.keyboard.press("Enter")
    assert viewer.title() == ids[1]


def test_the_address_names_the_chip(browser: Any, small: tuple[Path, list[Chip]]) -> None:
    index, table = small
    ids = [one["id"] for one in table]
    viewer = viewer_of(browser, index)
    viewer.open(ids[5])
    assert viewer.title() == ids[5]
    viewer.images()
    for place in (6, 7):
        viewer.page.keyboard.press("ArrowRight")
        viewer.page.wait_for_url(f"**#{ids[place]}")
    for place in (6, 5):
        viewer.page.go_back()
        viewer.until("id => document.querySelector('#chip-title').textContent === id", ids[place])
    viewer.page.go_forward()
    viewer.until("id => document.querySelector('#chip-title').textContent === id", ids[6])
    viewer.check()
    missing = viewer_of(browser, index)
    missing.open("chip_none%E0%A4%A")
    assert missing.page.inner_text("#notice") == 'There is no chip "chip_none%E0%A4%A" in this dataset.'
    assert not missing.page.locator("#chip").is_visible()
    assert missing.listed() == ids
    missing.page.keyboard.press("ArrowRight")
    assert missing.title() == ids[0]
    assert not missing.page.locator("#notice").is_visible()
    missing.check()


def test_hostile_texts_stay_texts(browser: Any, tmp_path: Path) -> None:
    table = chips(36)
    for one, text in zip(table, (HOSTILE, RTL, LONG), strict=False):
        one.update(id=text, tile=text, reason=text, detail=text, dates=[text] * 3, split="")
    index = write_viewer(tmp_path / "viewer", table, dataset=HOSTILE + LONG)
    data = index.parent / "data.js"
    hostile = json.dumps(HOSTILE)[1:-1].replace("<", "\\u003c")
    data.write_text(data.read_text().replace("HLS.S30.", hostile).replace("bafybei0b02", hostile))
    for width, height in ((1400, 900), (800, 600)):
        viewer = viewer_of(browser, index, width, height)
        viewer.open()
        for mode in ("reason", "class", "split"):
            viewer.page.select_option("#mode", mode)
        for at, text in enumerate((HOSTILE, RTL, LONG)):
            viewer.page.evaluate("at => { choose(at); showHover(at); }", at)
            viewer.images()
            viewer.page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
            assert viewer.title() == text[:300] + ("\u2026" if len(text) > 300 else "")
            assert viewer.page.locator("img").count() == 4
            assert viewer.page.locator("body script, b, bdi *, #list script").count() == 0
            assert viewer.page.evaluate("window.hit") is None
            # nothing is wider than its place
            for part in ("body", "header", "#side", "#list", "#chip", "#legend"):
                wide, room = viewer.page.eval_on_selector(part, "e => [e.scrollWidth, e.clientWidth]")
                assert wide <= room + 1, (part, wide, room, at)
        viewer.page.reload()
        viewer.until("!!document.querySelector('#chip-title')")
        viewer.check()
        viewer.page.close()


def test_five_thousand_chips(browser: Any, tmp_path: Path) -> None:
    table = chips(5000)
    index = write_viewer(tmp_path / "viewer", table)
    assert {one["reason"] for one in table} == {"", *REASONS}
    viewer = viewer_of(browser, index)
    viewer.open()
    viewer.page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    print("first view after", viewer.page.evaluate("performance.now()"), "ms")
    assert viewer.packs() == []
    assert viewer.on_map() == viewer.listed() == [one["id"] for one in table]
    most = 0
    for at in range(300):
        viewer.page.keyboard.press("j")
        most = max(most, viewer.page.evaluate("cropViewer.packs.size"))
        if at % 40 == 0:
            assert viewer.title() == table[at]["id"]
            if table[at]["pack"] >= 0:
                viewer.images()
    assert 1 < most <= 4
    assert len(set(viewer.packs())) == len(viewer.packs()) > 4
    viewer.page.wait_for_url(f"**#{table[299]['id']}")
    viewer.page.keyboard.press("End")
    viewer.page.select_option("#mode", "quality")
    viewer.page.select_option("#reason", "*")
    assert viewer.listed() == [one["id"] for one in table if one["reason"]]
    session = viewer.page.context.new_cdp_session(viewer.page)
    used = session.send("Runtime.getHeapUsage")["usedSize"] / 1e6
    session.send("HeapProfiler.collectGarbage")
    settled = session.send("Runtime.getHeapUsage")["usedSize"] / 1e6
    print("heap", used, "MB, after a collection", settled, "MB")
    assert settled < 150
    assert viewer.page.locator("head script[src^=packs]").count() == 0
    viewer.check()


@pytest.mark.parametrize("kept", [True, False])
def test_one_chip(browser: Any, tmp_path: Path, kept: bool) -> None:
    table = [next(one for one in chips(36) if (one["reason"] == "") == kept and (one["pack"] == 0) == kept)]
    viewer = viewer_of(browser, write_viewer(tmp_path / "viewer", table))
    viewer.open()
    assert viewer.on_map() == viewer.listed() == [table[0]["id"]]
    for key in ("ArrowLeft", "ArrowRight", "End"):
        viewer.page.keyboard.press(key)
        assert viewer.title() == table[0]["id"]
    if kept:
        assert all(values > 3 for *_, values in viewer.images())
    else:
        assert "no pictures" in viewer.page.inner_text("#chip")
        assert viewer.packs() == []
    viewer.check()


def test_a_missing_pack_and_missing_data_are_reported(browser: Any, tmp_path: Path) -> None:
    table = [one for one in chips(36) if one["pack"] == 0]
    index = write_viewer(tmp_path / "viewer", table)
    (index.parent / "packs" / "0000.js").unlink()
    viewer = viewer_of(browser, index)
    viewer.open(table[0]["id"])
    viewer.page.wait_for_selector("#pictures [role=alert]")
    assert "packs/0000.js is missing or damaged" in viewer.page.inner_text("#pictures")
    assert "70.5 %" in viewer.page.inner_text("#chip")
    (index.parent / "data.js").write_text("")
    empty = viewer_of(browser, index)
    empty.page.goto(index.as_uri())
    empty.page.wait_for_selector("#notice:not([hidden])")
    assert "data.js" in empty.page.inner_text("#notice")
    empty.check()


def test_the_page_refuses_scripts_and_requests_of_others(opened: tuple[Viewer, list[Chip]]) -> None:
    viewer, _ = opened
    blocked = viewer.page.evaluate(
        """async () => {
             const found = new Set();
             document.addEventListener('securitypolicyviolation', event => found.add(event.effectiveDirective));
             const inline = document.createElement('script');
             inline.textContent = 'window.hit = 1';
             document.head.append(inline);
             const image = document.createElement('img');
             image.src = 'http://127.0.0.1:9/x.png';
             document.body.append(image);
             await fetch('http://127.0.0.1:9/').catch(() => null);
             await new Promise(done => setTimeout(done, 200));
             image.remove();
             inline.remove();
             return [[...found].sort(), window.hit === undefined];
           }"""
    )
    assert blocked == [["connect-src", "img-src", "script-src-elem"], True]
    assert len(viewer.problems) >= 3
    viewer.problems.clear()
    viewer.requests.clear()
