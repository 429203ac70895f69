import contextlib
import itertools
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resources import parts as parts_module
from resources.errors import (
    CutShortError,
    IntegrityError,
    NotFoundError,
    ResourceError,
    SlowError,
    TryAgainError,
    UnreachableError,
)
from resources.parts import ChangedError, Parts, Range, in_turns, merged
from resources.stop import StoppablePool

SIZE = 1000
DATA = bytes(i % 251 for i in range(SIZE))
LIMIT = 1 << 30


def begun(path: Path, *ranges: Range) -> None:
    """Parts of DATA, as an earlier process left them."""
    with Parts(path) as parts:
        parts.begin("one", SIZE, LIMIT)
        for start, stop in ranges:
            parts.add(start, DATA[start:stop])


def log_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.parts")


# what an earlier process left


def test_ranges_and_notes_are_there_when_they_are_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "parts"
    with Parts(path) as parts:
        assert (parts.version, parts.size) == ("", 0)
        parts.begin("one", SIZE, LIMIT)
        parts.add(100, DATA[100:200])
        parts.note("node", b"\0\xff")
        parts.add(900, DATA[900:])
    with Parts(path) as parts:
        assert (parts.version, parts.size) == ("one", SIZE)
        parts.begin("one", SIZE, LIMIT)
        assert parts.missing([(0, 5000)]) == [(0, 100), (200, 900)]
        assert parts.read(120, 180) == DATA[120:180]
        assert parts.read(950, 2000) == DATA[950:]
        assert parts.notes("one") == {"node": b"\0\xff"}
        assert parts.notes("two") == {}
        with pytest.raises(IntegrityError, match="bytes 199 to 201 of the file were not fetched"):
            parts.read(199, 201)


@pytest.mark.parametrize("left", range(1, 60, 7))
def test_half_a_line_of_a_killed_process_is_dropped(tmp_path: Path, left: int) -> None:
    path = tmp_path / "parts"
    begun(path, (0, 100), (200, 300))
    lines = log_of(path).read_bytes().splitlines(keepends=True)
    log_of(path).write_bytes(b"".join(lines[:2]) + lines[2][:left])
    with Parts(path) as parts:
        assert parts.missing([(0, SIZE)]) == [(100, SIZE)]
        parts.add(500, DATA[500:600])
    with Parts(path) as parts:
        assert parts.missing([(0, SIZE)]) == [(100, 500), (600, SIZE)]
        assert parts.read(500, 600) == DATA[500:600]


def test_a_process_that_is_killed_leaves_what_it_had(tmp_path: Path) -> None:
    path = tmp_path / "parts"
    code = (
        "import sys, time; from pathlib import Path; from resources.parts import Parts\n"
        "parts = Parts(Path(sys.argv[1])); parts.begin('one', 1 << 30, 1 << 30)\n"
        "for at in range(0, 1 << 30, 1000):\n"
        "    parts.add(at, bytes([at // 1000 % 256]) * 1000)\n"
        "    if at == 20_000: print('ready', flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    with Parts(path) as parts:
        assert (parts.version, parts.size) == ("one", 1 << 30)
        ((at, _),) = parts.missing([(0, 1 << 30)])
        assert at > 20_000
        assert at % 1000 == 0
        assert parts.read(0, at) == b"".join(bytes([n % 256]) * 1000 for n in range(at // 1000))


@pytest.mark.parametrize("at", [0, 50, 99])
def test_damaged_bytes_are_missing(tmp_path: Path, at: int) -> None:
    path = tmp_path / "parts"
    begun(path, (0, 100), (100, 200))
    damaged = bytearray(path.read_bytes())
    damaged[100 + at] ^= 1
    path.write_bytes(damaged)
    with Parts(path) as parts:
        assert parts.missing([(0, 200)]) == [(100, 200)]
        assert parts.read(0, 100) == DATA[:100]


@pytest.mark.parametrize("size", [0, 1, 150, 200])
def test_ranges_beyond_the_end_of_a_truncated_file_are_missing(tmp_path: Path, size: int) -> None:
    path = tmp_path / "parts"
    begun(path, (0, 100), (100, 200))
    os.truncate(path, size)
    with Parts(path) as parts:
        assert parts.missing([(0, 200)]) == merged(
            [(0, 0 if size >= 100 else 100), (100, 100 if size == 200 else 200)]
        )


def test_bytes_without_a_log_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "parts"
    begun(path, (0, 100))
    log_of(path).unlink()
    with Parts(path) as parts:
        assert (parts.version, parts.size) == ("", 0)
        assert path.stat().st_size == 0


def test_another_version_starts_with_nothing(tmp_path: Path) -> None:
    path = tmp_path / "parts"
    begun(path, (0, 100))
    with Parts(path) as parts:
        parts.note("node", b"of one")
        parts.begin("two", SIZE + 1, LIMIT)
        assert parts.missing([(0, SIZE)]) == [(0, SIZE)]
        assert parts.notes("two") == parts.notes("one") == {}
        assert path.stat().st_size == 0
    with Parts(path) as parts:
        assert (parts.version, parts.size) == ("two", SIZE + 1)


def test_what_was_dropped_stays_dropped(tmp_path: Path) -> None:
    path = tmp_path / "parts"
    begun(path, (0, 100))
    with Parts(path) as parts:
        parts.forget()
        assert (parts.version, parts.size) == ("", 0)
    with Parts(path) as parts:
        assert (parts.version, parts.size) == ("", 0)
        parts.begin("one", SIZE, LIMIT)
        assert parts.missing([(0, SIZE)]) == [(0, SIZE)]


def test_what_was_there_of_a_version_of_another_size_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "parts"
    begun(path, (0, 100))
    with Parts(path) as parts:
        parts.begin("one", SIZE - 1, LIMIT)
        assert parts.missing([(0, SIZE)]) == [(0, SIZE - 1)]
    with Parts(path) as parts:
        assert (parts.version, parts.size) == ("one", SIZE - 1)


def test_a_file_above_the_limit_is_refused(tmp_path: Path) -> None:
    with Parts(tmp_path / "parts") as parts:
        with pytest.raises(IntegrityError, match="1,001 bytes, more than the 1,000 allowed"):
            parts.begin("one", 1001, 1000)
        assert parts.size == 0
        parts.begin("one", 1000, 1000)


def test_nothing_is_left_when_the_parts_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "parts"
    with Parts(path) as parts:
        parts.begin("one", SIZE, LIMIT)
        parts.add(0, DATA)
        parts.remove()
    assert not list(tmp_path.iterdir())


def test_links_in_place_of_the_files_are_not_followed(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"kept")
    for name in ("parts", "parts.parts"):
        link = tmp_path / name
        link.symlink_to(other)
        with pytest.raises(OSError, match="symbolic"):
            Parts(tmp_path / "parts")
        link.unlink()
    assert other.read_bytes() == b"kept"


@given(
    at=st.floats(0, 1, exclude_max=True),
    junk=st.one_of(
        st.binary(max_size=30),
        st.sampled_from([b'{"version": 1}', b"[1, 2]", b"null", b"{}", b'[-1, -1, ""]', b"[" * 5000]),
    ),
    line=st.booleans(),
)
def test_a_damaged_log_never_makes_wrong_bytes_right(at: float, junk: bytes, line: bool) -> None:
    """Whatever is in it, what is read is what was added, and the file can be fetched."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "parts"
        begun(path, (0, 100), (300, 400), (700, SIZE))
        log = log_of(path).read_bytes()
        place = int(at * len(log))
        if line:
            place = log.rfind(b"\n", 0, place) + 1
            junk += b"\n"
        log_of(path).write_bytes(log[:place] + junk + log[place + (0 if line else len(junk)) :])
        with Parts(path) as parts:
            parts.begin("one", SIZE, LIMIT)
            for start, stop in parts.missing([(0, SIZE)]):
                parts.add(start, DATA[start:stop])
            assert parts.read(0, SIZE) == DATA
        with Parts(path) as parts:
            assert not parts.missing([(0, SIZE)])


def test_threads_add_at_once(tmp_path: Path) -> None:
    path, came = tmp_path / "parts", list[int]()
    pieces = [(at, at + 7) for at in range(0, SIZE - 7, 7)] * 2
    start = threading.Barrier(8)
    with Parts(path, came.append) as parts, ThreadPoolExecutor(8) as pool:
        parts.begin("one", SIZE, LIMIT)

        def add(first: int) -> None:
            start.wait()
            for begin, end in pieces[first::8]:
                parts.add(begin, DATA[begin:end])
                parts.note(f"{begin}", DATA[begin:end])
                assert parts.read(begin, end) == DATA[begin:end]

        list(pool.map(add, range(8)))
    assert sum(came) == 7 * len(pieces)
    with Parts(path) as parts:
        assert parts.missing([(0, SIZE)]) == [(994, SIZE)]
        assert parts.read(0, 994) == DATA[:994]
        assert parts.notes("one") == {f"{begin}": DATA[begin:end] for begin, end in pieces}


# against a model of single bytes

RANGES = st.lists(st.tuples(st.integers(0, 70), st.integers(0, 70)), max_size=8)


def bytes_of(ranges: list[Range]) -> set[int]:
    return {at for start, stop in ranges for at in range(start, stop)}


@given(ranges=RANGES, gap=st.integers(0, 9))
def test_merged_ranges_have_the_same_bytes_and_the_gaps_between_them(ranges: list[Range], gap: int) -> None:
    found = merged(ranges, gap)
    wanted = bytes_of(ranges)
    assert found == sorted(found)
    assert all(start < stop for start, stop in found)
    assert all(after[0] - before[1] > gap for before, after in itertools.pairwise(found))
    filled = {
        at
        for at in range(71)
        if any(b < at for b in wanted)
        and any(b > at for b in wanted)
        and min(b for b in wanted if b > at) - max(b for b in wanted if b < at) - 1 <= gap
    }
    assert bytes_of(found) == wanted | filled


@given(size=st.integers(1, 64), adds=RANGES, asked=RANGES, again=st.booleans())
def test_what_is_missing_and_read_is_that_of_a_model(
    size: int, adds: list[Range], asked: list[Range], again: bool
) -> None:
    data = DATA[:size]
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        path = Path(folder) / "parts"
        parts = stack.enter_context(Parts(path))
        parts.begin("one", size, LIMIT)
        have: set[int] = set()
        for start, stop in adds:
            if start < min(stop, size):
                parts.add(start, data[start:stop])
                have |= set(range(start, min(stop, size)))
        if again:
            parts = stack.enter_context(Parts(path))
        wanted = {at for at in bytes_of(asked) if at < size}
        missing = parts.missing(asked)
        assert missing == merged(missing)
        assert bytes_of(missing) == wanted - have
        for start, stop in asked:
            if set(range(start, min(stop, size))) <= have:
                assert parts.read(start, stop) == data[start:stop]
            else:
                with pytest.raises(IntegrityError):
                    parts.read(start, stop)


# turns


@contextlib.contextmanager
def any_turn() -> Iterator[None]:
    yield


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts_module, "_BACKOFF_SECONDS", 0.001)


class Request:
    """Raises these errors one after the other, and is then answered."""

    def __init__(self, *errors: ResourceError) -> None:
        self.errors = list(errors)
        self.sent = 0

    def __call__(self) -> None:
        self.sent += 1
        if self.errors:
            raise self.errors.pop(0)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(
    "error", [CutShortError("cut"), TryAgainError("503"), TryAgainError("503", 0.01)], ids=repr
)
def test_a_passing_failure_is_asked_again_up_to_three_times(pool: Executor, error: ResourceError) -> None:
    twice, always = Request(error, error), Request(*[error] * 9)
    in_turns(pool, any_turn, [twice])
    assert twice.sent == 3
    with pytest.raises(type(error), match=str(error)):
        in_turns(pool, any_turn, [always])
    assert always.sent == 3


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(
    "error",
    [
        UnreachableError("refused"),
        SlowError("silent"),
        ChangedError("other"),
        TryAgainError("503", 2.5),
        IntegrityError("wrong"),
        NotFoundError("404"),
    ],
    ids=repr,
)
def test_another_failure_is_not_asked_again(pool: Executor, error: ResourceError) -> None:
    request = Request(error)
    with pytest.raises(type(error), match=str(error)):
        in_turns(pool, any_turn, [request])
    assert request.sent == 1


def test_an_asked_for_pause_is_kept(pool: Executor) -> None:
    moments: list[float] = []

    def request() -> None:
        moments.append(time.monotonic())
        if len(moments) < 2:
            raise TryAgainError("503", 0.7)

    in_turns(pool, any_turn, [request])
    first, second = moments
    assert second - first >= 0.7


@pytest.mark.usefixtures("short")
def test_a_pause_takes_no_turn(pool: Executor) -> None:
    """And an error of the turn itself, such as that of a host that is busy, is one of the request."""
    held: list[int] = []
    now = 0

    @contextlib.contextmanager
    def turn() -> Iterator[None]:
        nonlocal now
        held.append(now)
        if len(held) == 2:
            raise TryAgainError("asked for a pause", 0.01)
        now += 1
        try:
            yield
        finally:
            now -= 1

    request = Request(CutShortError("cut"))
    in_turns(pool, turn, [request])
    assert request.sent == 2
    assert held == [0, 0, 0]


@pytest.mark.usefixtures("short")
def test_the_error_is_that_of_the_first_request_and_nothing_is_running_then() -> None:
    running, ended, sent = threading.Semaphore(0), list[int](), list[int]()

    def slow(number: int) -> Callable[[], None]:
        def request() -> None:
            sent.append(number)
            running.release()
            time.sleep(0.3)
            ended.append(number)
            if number == 0:
                raise IntegrityError("the first")

        return request

    def failing() -> None:
        running.acquire()
        running.acquire()
        raise IntegrityError("the third")

    with ThreadPoolExecutor(3) as pool:
        with pytest.raises(IntegrityError, match="the first"):
            in_turns(pool, any_turn, [slow(0), slow(1), failing, *map(slow, range(3, 60))])
        count = len(sent)
        assert sorted(ended) == sorted(sent), "what had begun has ended"
        time.sleep(0.1)
    assert len(sent) == count < 10, "and nothing else was begun"


def test_a_stop_ends_the_pauses_and_sends_nothing_more() -> None:
    class Interrupt(BaseException):
        pass

    failed = threading.Semaphore(0)
    sent: list[int] = []

    def request() -> None:
        sent.append(1)
        failed.release()
        raise TryAgainError("503", 2.0)

    outcome: list[BaseException] = []
    since = time.monotonic()
    with pytest.raises(Interrupt), StoppablePool(2) as pool, StoppablePool(1) as outer:

        def work() -> None:
            try:
                in_turns(pool, any_turn, [request] * 20)
            except BaseException as error:
                outcome.append(error)
                raise

        outer.submit(work)
        failed.acquire()
        failed.acquire()
        raise Interrupt
    assert len(sent) == 2
    assert [type(error).__name__ for error in outcome] == ["StoppedError"]
    assert time.monotonic() - since < 60
