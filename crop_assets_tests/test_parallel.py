import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import FrameType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resources.parallel import in_parallel
from resources.stop import GRACE_SECONDS


class Interrupt(BaseException):
    """As Dagster interrupts a run that is terminated."""


class Fault(Exception):
    """What a piece of work ends with here."""


class Work:
    """Takes `seconds`, and knows what has begun and what runs still."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.begun: list[int] = []
        self.running = 0
        self._lock = threading.Lock()

    def __call__(self, item: int) -> int:
        with self._lock:
            self.begun.append(item)
            self.running += 1
        try:
            if item < 0:
                raise Fault(item)
            time.sleep(self.seconds)
            return item * item
        finally:
            with self._lock:
                self.running -= 1


@pytest.fixture(params=[1, 2, 4])
def threads(request: pytest.FixtureRequest) -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(request.param) as pool:
        yield pool


@settings(max_examples=20)
@given(st.lists(st.integers(0, 20), max_size=30), st.integers(1, 8))
def test_results_are_in_the_order_of_items(items: list[int], threads: int) -> None:
    def work(item: int) -> int:
        time.sleep((20 - item) / 20_000)
        return item * item

    with ThreadPoolExecutor(threads) as pool:
        assert in_parallel(pool, work, iter(items)) == [item * item for item in items]


def test_work_is_distributed_over_the_threads() -> None:
    together = threading.Barrier(3, timeout=10)
    with ThreadPoolExecutor(3) as pool:
        in_parallel(pool, lambda _: together.wait(), range(3))


def test_the_error_of_the_first_item_is_raised_although_another_failed_sooner() -> None:
    second_failed = threading.Event()

    def work(item: int) -> None:
        if item == 0:
            second_failed.wait(10)
        else:
            second_failed.set()
        raise Fault(item)

    with ThreadPoolExecutor(2) as pool, pytest.raises(Fault, match=r"^0$"):
        in_parallel(pool, work, range(2))


def test_an_error_is_raised_when_nothing_runs_any_more(threads: ThreadPoolExecutor) -> None:
    work = Work(0.1)
    with pytest.raises(Fault):
        in_parallel(threads, work, [1, -1, 2, 3, 4])
    assert work.running == 0
    begun = list(work.begun)
    time.sleep(0.15)
    assert work.begun == begun


def test_after_an_error_later_work_is_cancelled(threads: ThreadPoolExecutor) -> None:
    work = Work(0.05)
    with pytest.raises(Fault):
        in_parallel(threads, work, [-1, *range(200)])
    assert len(work.begun) < 50


def test_after_an_error_the_pool_takes_more_work(threads: ThreadPoolExecutor) -> None:
    with pytest.raises(Fault):
        in_parallel(threads, Work(0), [-1, 1, 2])
    assert in_parallel(threads, Work(0), [1, 2, 3]) == [1, 4, 9]


def test_nothing_to_do_is_no_error(threads: ThreadPoolExecutor) -> None:
    assert in_parallel(threads, Work(0), []) == []


@pytest.fixture
def interrupt_main() -> Iterator[Callable[[], None]]:
    """Interrupts the main thread as a signal does, once it waits: Python sees one that comes just before only later."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Interrupt("interrupted")

    def interrupt_main() -> None:
        time.sleep(0.2)
        signal.pthread_kill(main, signal.SIGUSR1)

    main = threading.get_ident()
    before = signal.signal(signal.SIGUSR1, interrupt)
    yield interrupt_main
    signal.signal(signal.SIGUSR1, before)


def test_an_interrupted_wait_leaves_nothing_running(interrupt_main: Callable[[], None]) -> None:
    """Else the caller closes rasters that threads are reading, when a run is cancelled."""
    work, given = Work(0.3), threading.Event()

    def items() -> Iterator[int]:
        yield from range(80)
        given.set()

    def interrupting(item: int) -> int:
        given.wait(60)
        if item == 1:
            interrupt_main()
        return work(item)

    with ThreadPoolExecutor(2) as pool:
        with pytest.raises(Interrupt, match="interrupted"):
            in_parallel(pool, interrupting, items())
        assert work.running == 0
        assert len(work.begun) < 80


def test_an_interrupted_wait_leaves_work_that_hangs(interrupt_main: Callable[[], None]) -> None:
    never = threading.Event()
    ended = []

    def hang(item: int) -> None:
        if item == 0:
            interrupt_main()
        never.wait(600)
        ended.append(item)

    with ThreadPoolExecutor(2) as pool:
        with pytest.raises(Interrupt, match="interrupted"):
            in_parallel(pool, hang, range(8))
        assert not ended
        never.set()


def test_an_error_of_the_caller_waits_for_what_is_running() -> None:
    """However long that takes: the caller may close what the work uses."""
    work = Work(GRACE_SECONDS + 1)

    def items() -> Iterator[int]:
        yield 5
        while not work.begun:
            time.sleep(0.01)
        raise Fault("of the caller")

    with ThreadPoolExecutor(2) as pool, pytest.raises(Fault, match="of the caller"):
        try:
            in_parallel(pool, work, items())
        finally:
            assert (work.running, work.begun) == (0, [5])
