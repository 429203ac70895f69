"""`crop-assets aoi` as a person uses it: the command, and its page in headless Chromium."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from crop_assets.cli import app
from crop_assets.labels.aoi import filter_aoi, read_aoi
from crop_assets_tests.aoi_map.conftest import collection, landscape, rectangle
from crop_assets_tests.background import SECONDS
from crop_assets_tests.browser.chromium import chromium
from resources.loopback import free_port
from resources.store import DatasetStore

PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c6360606060000000050001"
    "a5f645400000000049454e44ae426082"
)


@dataclass(frozen=True)
class Command:
    """A running `crop-assets aoi`."""

    store: DatasetStore
    process: subprocess.Popen[str]
    url: str
    base_map: str

    @property
    def file(self) -> Path:
        return Path(self.store.root) / "aoi.geojson"

    def boxes(self) -> int:
        """The number of boxes that the graph finds in the saved area."""
        return len(filter_aoi(landscape(self.store), read_aoi(self.file)))

    def end(self, number: signal.Signals) -> str:
        """Stop it with a signal, check that it succeeds, and return its output."""
        self.process.send_signal(number)
        said, _ = self.process.communicate(timeout=20)
        assert self.process.returncode == 0
        return said


@contextlib.contextmanager
def running(root: Path) -> Iterator[Command]:
    base_map = f"http://127.0.0.1:{free_port()}"
    environment = {**os.environ, "CROP_ASSETS_DATA": str(root), "CROP_ASSETS_RECIPE": ""}
    arguments = ["aoi", "--port", "0", "--no-open", "--base-map", base_map + "/{z}/{x}/{y}.png"]
    process = subprocess.Popen(
        [sys.executable, "-m", "crop_assets.cli", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("Draw an area of interest at http://127.0.0.1:"), line
        yield Command(DatasetStore(root=str(root)), process, line.split()[6], base_map)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture(scope="module")
def shared_command(small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    root = tmp_path_factory.mktemp("drawn_on") / "store"
    shutil.copytree(small_store, root)
    with running(root) as command:
        yield command
        command.end(signal.SIGTERM)


@pytest.fixture
def command(shared_command: Command) -> Command:
    """The command with a store without a drawing."""
    shared_command.file.unlink(missing_ok=True)
    return shared_command


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


@dataclass(frozen=True)
class Screen:
    """The page, with a mouse."""

    page: Any

    def open(self, command: Command) -> None:
        self.page.goto(command.url)
        self.page.get_by_text("580 chip boxes").wait_for()
        self.settled()
        self.page.locator("img[src^='chips/'].leaflet-tile-loaded").first.wait_for()

    def place(self, lon: float, lat: float) -> tuple[float, float]:
        """The position of a longitude and latitude in the window, in pixels."""
        x, y = self.page.evaluate(
            """([lon, lat]) => {
                const point = map.latLngToContainerPoint([lat, lon]), box = map.getContainer().getBoundingClientRect();
                return [box.x + point.x, box.y + point.y];
            }""",
            [lon, lat],
        )
        return x, y

    def move(self, lon: float, lat: float) -> None:
        self.page.mouse.move(*self.place(lon, lat), steps=3)
        # where the mouse comes to rest must count
        arrived = "(to) => !draft || pixelsBetween(draft.cursor, to) < 2"
        self.wait_until(lambda: self.page.evaluate(arrived, [lat, lon]))

    def wait_until(self, found: Callable[[], Any]) -> None:
        deadline = time.monotonic() + SECONDS
        while not found():
            assert time.monotonic() < deadline
            self.page.wait_for_timeout(10)

    def click(self, lon: float, lat: float) -> None:
        self.page.mouse.click(*self.place(lon, lat))
        # the next click must not make a double-click with this one, as no hand would that moves in between
        self.page.wait_for_timeout(30)

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        self.move(*start)
        self.page.mouse.down()
        self.move(*end)
        self.page.mouse.up()

    def press(self, name: str) -> None:
        self.page.get_by_role("button", name=name, exact=True).click()

    def rectangle(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        self.press("Rectangle")
        self.drag(start, end)

    @property
    def boxes(self) -> int:
        return int(self.page.locator("#boxes").inner_text().replace(",", ""))

    @property
    def shapes(self) -> int:
        return int(self.page.locator(".area-shape").count())

    def settled(self) -> int:
        """The number of boxes shown when the server has counted the current drawing."""
        self.page.locator("#area[aria-busy='false']").wait_for()
        return self.boxes

    def save(self) -> None:
        with self.page.expect_response(lambda answer: answer.request.method == "PUT"):
            self.press("Save")

    def says(self, text: str) -> None:
        self.page.get_by_text(text).first.wait_for()


@pytest.fixture
def screen(browser: Any) -> Iterator[Screen]:
    page = browser.new_page(viewport={"width": 1200, "height": 800})
    page.set_default_timeout(SECONDS * 1000)
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda told: "Content Security Policy" in told.text and problems.append(told.text))
    yield Screen(page)
    page.close()
    assert not problems


# the boxes lie from about 99.9 to 97.5 degrees west and 36.9 to 38.3 degrees north
LEFT, RIGHT = (-99.4, 37.9), (-98.4, 37.4)


def test_an_area_is_drawn_saved_and_changed(screen: Screen, command: Command) -> None:
    screen.open(command)
    assert screen.boxes == 0

    screen.press("Rectangle")
    screen.move(-99.4, 38)
    screen.page.mouse.down()
    screen.move(-99.2, 37.9)
    few = screen.settled()
    screen.move(-98.9, 37.6)
    more = screen.settled()
    screen.move(-99.1, 37.8)
    assert 0 < few < screen.settled() < more
    screen.page.mouse.up()
    assert screen.shapes == 1
    alone = screen.settled()

    screen.press("Polygon")
    for corner in ((-98.6, 38.1), (-98, 38.1), (-97.8, 37.7)):
        screen.click(*corner)
    screen.move(-97.9, 37.4)
    growing = screen.settled()
    screen.click(-98.3, 37.3)
    both = screen.settled()
    assert alone < growing < both
    assert screen.shapes == 1 and not command.file.exists()
    screen.click(-98.6, 38.1)
    assert screen.shapes == 2 and screen.settled() == both
    screen.says("Not saved yet.")

    screen.save()
    screen.says(f"aoi: {command.file}")
    assert command.boxes() == both
    tiles = screen.page.locator("#tile-names").inner_text().split(", ")
    assert tiles == sorted(tiles) and len(tiles) == int(screen.page.locator("#tiles").inner_text()) > 1

    screen.page.reload()
    screen.says(f"{both} boxes and {len(tiles)} HLS tiles inside. Saved.")
    assert screen.shapes == 2
    assert screen.page.get_by_role("button", name="Save").is_disabled()

    screen.press("Edit")
    (corner,) = (p for p in polygons(command)[1] if p[0] < -98.5)
    screen.drag(corner, (-98.8, 38.3))
    wider = screen.settled()
    assert wider > both
    # the corner that is opposite of (-99.4, 38) takes the two beside it along
    screen.drag(min(polygons(command)[0], key=lambda p: (-p[0], p[1])), (-99.2, 37.3))
    now = screen.settled()
    screen.save()
    assert command.boxes() == now != wider
    ring = polygons(command)[0]
    assert len(ring) == 4 and len({x for x, _ in ring}) == len({y for _, y in ring}) == 2
    assert min(y for _, y in ring) == pytest.approx(37.3, abs=0.01)

    screen.press("Delete")
    screen.click(-99.3, 37.7)
    assert screen.shapes == 1
    less = screen.settled()
    assert less < now
    screen.press("Undo")
    assert screen.shapes == 2
    assert screen.settled() == now
    screen.click(-99.3, 37.7)
    assert screen.settled() == less
    screen.save()
    assert command.boxes() == less and len(polygons(command)) == 1


def test_a_slow_answer_does_not_replace_a_later_one(screen: Screen, command: Command) -> None:
    screen.open(command)
    held: list[Any] = []
    screen.page.route("**/count", lambda route: held.append(route))
    screen.rectangle(LEFT, RIGHT)
    screen.wait_until(lambda: held)
    for west in (-98.3, -98.2):
        screen.rectangle((west, 38.1), (west + 0.1, 37.6))
    assert screen.page.locator("#area").get_attribute("aria-busy") == "true"
    screen.says("Counting. Not saved yet.")
    assert screen.boxes == 0 and len(held) == 1, "the next question waits for the first answer"
    held.pop().continue_()
    screen.page.unroute("**/count")
    told = screen.settled()
    screen.says(f"{told} boxes and ")
    screen.save()
    assert len(polygons(command)) == 3 and command.boxes() == told


@pytest.mark.parametrize("is_late", [False, True])
def test_a_failed_count_does_not_show_old_numbers(screen: Screen, command: Command, is_late: bool) -> None:
    screen.open(command)
    screen.rectangle(LEFT, RIGHT)
    before = screen.settled()
    held: list[Any] = []
    screen.page.route("**/count", lambda route: held.append(route))
    # without a way to it, so that one question is asked about each
    screen.page.evaluate("change([...shapes, ...shapes])")
    screen.wait_until(lambda: held)
    if is_late:
        screen.page.evaluate("change([...shapes, ...shapes])")
    for _ in range(1 + is_late):
        screen.wait_until(lambda: held)
        held.pop().fulfill(status=500, json={"error": "no memory left"})
    screen.page.locator("#area[aria-busy='false']").wait_for()
    alert = screen.page.get_by_role("alert")
    alert.get_by_text("no memory left").wait_for()
    for number in ("boxes", "rich", "chips", "km2", "tiles"):
        assert screen.page.locator(f"#{number}").inner_text() == "\u2013"
    assert screen.page.locator("#tile-names").inner_text() == ""
    screen.says("Not counted. Not saved yet.")
    screen.page.unroute("**/count")
    screen.press("Undo")
    if is_late:
        screen.press("Undo")
    assert screen.settled() == before
    assert alert.is_hidden()


def test_a_save_in_progress_is_not_repeated(screen: Screen, command: Command) -> None:
    screen.open(command)
    held: list[Any] = []
    screen.page.route("**/aoi", lambda route: held.append(route))
    screen.rectangle(LEFT, RIGHT)
    screen.press("Save")
    screen.wait_until(lambda: held)
    screen.settled()
    save = screen.page.get_by_role("button", name="Save", exact=True)
    assert save.is_disabled()
    # what is drawn meanwhile is not what is being saved
    screen.rectangle((-98.2, 38.1), (-98.1, 37.6))
    screen.settled()
    assert save.is_disabled()
    held.pop().continue_()
    screen.page.unroute("**/aoi")
    screen.wait_until(save.is_enabled)
    assert len(polygons(command)) == 1 and screen.shapes == 2
    screen.says("Not saved yet.")
    screen.save()
    screen.says("Saved.")
    assert len(polygons(command)) == 2


def polygons(command: Command) -> list[list[tuple[float, float]]]:
    """The corners of the saved polygons."""
    features = json.loads(command.file.read_bytes())["features"]
    return [[(x, y) for x, y in feature["geometry"]["coordinates"][0][:-1]] for feature in features]


def test_corners_are_added_and_removed(screen: Screen, command: Command) -> None:
    triangle = [(-99.4, 37.4), (-98.4, 37.4), (-98.9, 38), (-99.4, 37.4)]
    command.file.write_text(json.dumps(collection(triangle)))
    screen.open(command)
    screen.press("Edit")
    screen.drag((-98.9, 37.4), (-98.9, 37.2))
    screen.save()
    corners = polygons(command)[0]
    assert len(corners) == 4 and corners[1] == pytest.approx((-98.9, 37.2), abs=0.01)
    screen.page.mouse.dblclick(*screen.place(*corners[1]))
    screen.save()
    assert polygons(command)[0] == triangle[:-1]


def test_there_are_several_ways_to_end_a_shape(screen: Screen, command: Command) -> None:
    screen.open(command)
    screen.press("Rectangle")
    screen.click(-99.4, 38)
    screen.move(-99.2, 37.8)
    assert screen.settled() > 0
    screen.click(-99.1, 37.7)
    assert screen.shapes == 1

    for end in (
        lambda: screen.page.keyboard.press("Enter"),
        lambda: screen.page.mouse.dblclick(*screen.place(-97.9, 37.4)),
    ):
        screen.press("Polygon")
        for corner in ((-98.4, 37.9), (-97.9, 37.9), (-98.1, 37.5)):
            screen.click(*corner)
        end()
    assert screen.shapes == 3

    before = screen.settled()
    screen.press("Polygon")
    screen.click(-98.9, 38.2)
    screen.click(-97.7, 38.2)
    screen.move(-97.7, 37.2)
    assert screen.settled() > before
    screen.page.keyboard.press("Enter")
    screen.says("A polygon needs three corners.")
    screen.page.keyboard.press("Escape")
    assert screen.settled() == before
    assert screen.shapes == 3
    screen.save()
    assert [len(corners) for corners in polygons(command)] == [4, 3, 4]
    assert command.boxes() == before


def test_a_polygon_that_crosses_itself_is_reported(screen: Screen, command: Command) -> None:
    screen.open(command)
    screen.press("Polygon")
    for corner in ((-99.4, 38), (-98.4, 37.4), (-98.4, 38), (-99.4, 37.4)):
        screen.click(*corner)
    screen.page.keyboard.press("Enter")
    screen.says("A polygon crosses its own edge.")
    told = screen.settled()
    screen.save()
    assert command.boxes() == told
    assert not read_aoi(command.file).geometry[0].is_valid


def broken_pictures(page: Any) -> int:
    return int(
        page.evaluate(
            """() => [...document.images].filter(
                (image) => getComputedStyle(image).visibility !== "hidden" && !(image.complete && image.naturalWidth)
            ).length"""
        )
    )


def test_without_the_internet_the_page_is_complete(screen: Screen, command: Command) -> None:
    screen.open(command)
    screen.says("The base map cannot be reached.")
    screen.page.wait_for_load_state("networkidle")
    assert broken_pictures(screen.page) == 0
    assert screen.page.locator("img[src^='chips/'].leaflet-tile-loaded").count() >= 4
    screen.page.evaluate("() => void map.setView([37.6, -98.8], 9, { animate: false })")
    screen.page.get_by_text("14SMG", exact=True).wait_for()


def test_with_the_internet_there_is_a_base_map(screen: Screen, command: Command) -> None:
    screen.page.route(
        f"{command.base_map}/**", lambda route: route.fulfill(body=PIXEL, content_type="image/png")
    )
    screen.open(command)
    screen.page.locator(f"img[src^='{command.base_map}'].leaflet-tile-loaded").first.wait_for()
    assert screen.page.locator("#notice").is_hidden()


def test_an_error_of_the_server_is_shown(screen: Screen, command: Command) -> None:
    screen.open(command)
    screen.page.evaluate("() => void map.setView([37.6, -98.7], 7, { animate: false })")
    screen.rectangle((-100.6, 39), (-100.4, 38.8))
    screen.save()
    alert = screen.page.get_by_role("alert")
    alert.get_by_text("the AOI touches no chip box").wait_for()
    assert not command.file.exists()
    screen.press("Dismiss the error")
    assert alert.is_hidden()


def test_a_file_saved_by_another_page_is_overwritten_only_on_request(
    screen: Screen, command: Command
) -> None:
    screen.open(command)
    screen.rectangle(LEFT, RIGHT)
    screen.save()
    screen.says("Saved.")

    other = json.dumps(collection(rectangle(-98.3, 37.5, -97.9, 37.9), rectangle(-97.8, 37.5, -97.7, 37.9)))
    command.file.write_text(other)
    screen.rectangle((-98.9, 38.2), (-98.7, 38))
    screen.save()
    screen.press("Cancel")
    assert command.file.read_text() == other and screen.shapes == 2
    screen.save()
    screen.press("Overwrite it")
    screen.says("Saved.")
    assert len(polygons(command)) == 2 and min(polygons(command)[0])[0] == pytest.approx(-99.4, abs=0.01)

    command.file.write_text(json.dumps(collection(rectangle(-98.3, 37.5, -97.9, 37.9))))
    screen.press("Clear")
    assert screen.shapes == 0
    screen.rectangle(LEFT, RIGHT)
    screen.save()
    screen.press("Load the changed file")
    screen.says("Saved.")
    assert screen.shapes == 1
    assert screen.settled() == command.boxes()


def test_leaving_with_unsaved_changes_is_asked_about(screen: Screen, command: Command) -> None:
    screen.open(command)
    asked = []
    screen.page.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.accept()))
    screen.page.reload()
    assert not asked
    screen.says("580 chip boxes")
    screen.rectangle(LEFT, RIGHT)
    screen.page.reload()
    assert asked == ["beforeunload"]


def test_a_narrow_window_shows_everything(screen: Screen, command: Command) -> None:
    screen.page.set_viewport_size({"width": 400, "height": 800})
    screen.open(command)
    assert screen.page.evaluate("document.documentElement.scrollWidth") <= 400
    for name in ("Rectangle", "Polygon", "Edit", "Delete", "Undo", "Clear", "Save"):
        box = screen.page.get_by_role("button", name=name, exact=True).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 400
    screen.rectangle((-99.2, 37.8), (-98.7, 37.5))
    assert screen.settled() > 0 and screen.shapes == 1


def test_the_command_stops_on_an_interrupt_and_the_page_shows_it(screen: Screen, store: DatasetStore) -> None:
    with running(Path(store.root)) as command:
        screen.open(command)
        screen.rectangle(LEFT, RIGHT)
        screen.save()
        screen.says("Saved.")
        told = screen.settled()
        said = command.end(signal.SIGINT)
        assert f"saved {command.file}: {told} boxes, " in said
        assert f"\naoi: {command.file}\n" in said
        screen.press("Clear")
        screen.page.get_by_role("alert").get_by_text("Is `crop-assets aoi` still running?").wait_for()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--dataset", "other"], "launch labels_job for a year first"),
        (["--year", "2021"], "launch labels_job for 2021 first"),
        (["--name", "../aoi.geojson"], "must be a plain file name"),
        (["--name", "mine.json"], "cannot be edited here"),
        (["--base-map", "nonsense"], "--base-map 'nonsense' is not an address"),
    ],
)
def test_the_command_fails_at_once_if_there_is_nothing_to_draw_on(
    store: DatasetStore, arguments: list[str], told: str
) -> None:
    store.write_bytes("mine.json", b"{}")
    result = CliRunner().invoke(app, ["aoi", "--no-open", "--port", "0", "--data", store.root, *arguments])
    assert result.exit_code == 2 and told in result.stderr and result.stderr.startswith("error: ")
