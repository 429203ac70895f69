import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from crop_assets_tests.resources.loopback import dripping, serving
from resources.http import RateLimit, ask, get_bytes, new_session
from resources.ipfs.cid import Cid
from resources.ipfs.nodes import IpfsCommand
from resources.stop import GRACE_SECONDS, StoppablePool, StoppedError, check, pause, uninterrupted

SOON = GRACE_SECONDS + 20
"""Seconds within which a stop is over on a machine with other work, and much less than what is stopped takes."""
LONG = 600.0
CID = Cid.parse("bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy")


class Interrupt(BaseException):
    """What Dagster raises in the main thread of a run that is terminated, in short."""


@pytest.fixture
def interrupt() -> Iterator[Callable[[], None]]:
    """Interrupts the main thread, as a signal does."""

    def raise_it(number: int, frame: FrameType | None) -> None:
        raise Interrupt

    main = threading.main_thread().ident
    before = signal.signal(signal.SIGUSR1, raise_it)
    yield lambda: signal.pthread_kill(main, signal.SIGUSR1)  # type: ignore[arg-type]
    signal.signal(signal.SIGUSR1, before)


@pytest.fixture
def busy() -> Iterator[tuple[str, list[str]]]:
    """A server that always asks to be asked again in an hour, and the requests that it had."""
    asked: list[str] = []

    def answer(request: Request) -> Response:
        asked.append(request.url.path)
        return Response("later", 503, {"Retry-After": "3600"})

    with serving(Starlette(routes=[Route("/{path:path}", answer)])) as url:
        yield url, asked


def stopped(
    work: Callable[[], Any], interrupt: Callable[[], None], begun: Callable[[], Any], times: int = 1
) -> list[BaseException | None]:
    """What `work` in a pool of two threads ends with, `times` over, when an interrupt comes once it has `begun`."""

    def look() -> None:
        while not begun():
            time.sleep(0.01)
        # Python sees an interrupt that comes just before the main thread waits only after that
        time.sleep(0.2)
        interrupt()

    looking = threading.Thread(target=look, daemon=True)
    since = time.monotonic()
    with pytest.raises(Interrupt), StoppablePool(2) as pool:
        futures = [pool.submit(work) for _ in range(times)]
        looking.start()
        wait(futures)
    assert time.monotonic() - since < SOON
    return [future.exception(0) for future in futures]


def test_it_is_an_executor() -> None:
    def work(item: int) -> int:
        if item == 3:
            raise ValueError("three")
        return item * item

    with StoppablePool(3) as pool:
        assert list(pool.map(work, [5, 4, 1, 2])) == [25, 16, 1, 4]
        assert str(pool.submit(work, 3).exception()) == "three"
        assert pool.submit(work, item=4).result() == 16
        together = threading.Barrier(3, timeout=SOON)
        wait([pool.submit(together.wait) for _ in range(3)])
        assert not together.broken
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(work, 1)


def test_a_system_without_more_threads_leaves_the_work_to_those_that_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with StoppablePool(8) as pool:
        assert pool.submit(int).result() == 0
        monkeypatch.setattr(threading.Thread, "start", refuse)
        assert list(pool.map(abs, range(-20, 0))) == list(range(20, 0, -1))
    with pytest.raises(RuntimeError, match="can't start new thread"), StoppablePool(8) as pool:
        pool.submit(int)


def test_an_error_stops_nothing() -> None:
    done: list[int] = []

    def work(item: int) -> None:
        pause(0.01)
        check()
        done.append(item)

    with pytest.raises(ValueError, match="of the caller"), StoppablePool(2) as pool:
        for item in range(10):
            pool.submit(work, item)
        raise ValueError("of the caller")
    assert sorted(done) == list(range(10))


def test_pauses_end_and_queued_work_never_begins(interrupt: Callable[[], None]) -> None:
    begun: list[int] = []

    def work() -> None:
        begun.append(1)
        pause(LONG)

    errors = stopped(work, interrupt, lambda: len(begun) == 2, times=50)
    assert len(begun) == 2
    assert {type(error) for error in errors} == {StoppedError}
    # the next run of the process is another
    with StoppablePool(1) as pool:
        pool.submit(check).result()
    check()


def test_a_pool_inside_a_stopped_one_is_stopped(interrupt: Callable[[], None]) -> None:
    inside: list[BaseException | None] = []
    begun = threading.Event()

    def work() -> None:
        with StoppablePool(1) as pool:
            first = pool.submit(pause, LONG)
            queued = pool.submit(check)
            begun.set()
            wait([first, queued])
            inside.extend([first.exception(), queued.exception()])

    stopped(work, interrupt, begun.is_set)
    assert [type(error) for error in inside] == [StoppedError, StoppedError]


def test_an_interrupt_of_the_wait_at_the_end_of_the_block_stops_too(interrupt: Callable[[], None]) -> None:
    since = time.monotonic()
    timer = threading.Timer(0.2, interrupt)
    with pytest.raises(Interrupt), StoppablePool(1) as pool:
        future = pool.submit(pause, LONG)
        timer.start()
    assert time.monotonic() - since < SOON
    assert isinstance(future.exception(), StoppedError)


def test_requests_end_in_the_pause_that_a_server_asks_for(
    interrupt: Callable[[], None], busy: tuple[str, list[str]]
) -> None:
    url, asked = busy

    def work() -> None:
        get_bytes(new_session(6), f"{url}/tile", 5, 100)

    errors = stopped(work, interrupt, lambda: len(asked) == 2, times=8)
    assert len(asked) == 2
    assert {type(error) for error in errors} == {StoppedError}


@pytest.mark.parametrize(
    "start", [b"HTTP/1.1 200 OK\r\nX-Long: ", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;x="]
)
def test_requests_end_whose_answers_drip_before_their_content(
    interrupt: Callable[[], None], start: bytes
) -> None:
    with dripping(start, b"x") as (url, asked):
        errors = stopped(lambda: get_bytes(new_session(6), url, LONG, 100), interrupt, lambda: asked)
    assert len(asked) == 1
    assert {type(error) for error in errors} == {StoppedError}


def test_requests_that_wait_for_their_turn_are_not_made(
    interrupt: Callable[[], None], busy: tuple[str, list[str]]
) -> None:
    url, asked = busy
    limit = RateLimit(1 / LONG)
    limit.wait()

    waiting: list[int] = []

    def work() -> None:
        waiting.append(1)
        limit.wait()
        ask(new_session(1), "GET", url, 5, 100)

    stopped(work, interrupt, lambda: len(waiting) == 2, times=300)
    assert asked == []


@pytest.mark.parametrize("script", ["sleep 600", "while :; do printf x; sleep 0.05; done"])
def test_a_command_is_ended(interrupt: Callable[[], None], tmp_path: Path, script: str) -> None:
    command, begun = tmp_path / "ipfs", tmp_path / "begun"
    command.write_text(f"#!/bin/sh\necho $$ > {begun}.new\nmv {begun}.new {begun}\n{script}\n")
    command.chmod(0o755)

    def work() -> bytes:
        return IpfsCommand(str(command), LONG).block(CID)

    (error,) = stopped(work, interrupt, begun.exists)
    assert isinstance(error, StoppedError)
    assert not psutil.pid_exists(int(begun.read_text()))


_HANGS = """
import socket, sys, threading
from resources.stop import StoppablePool
host, port = sys.argv[1:]
with StoppablePool(2) as pool:
    pool.submit(lambda: socket.create_connection((host, int(port))).recv(1)).result()
"""


def test_a_process_ends_although_its_threads_hang() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        host, port = server.getsockname()
        process = subprocess.Popen([sys.executable, "-c", _HANGS, host, str(port)], stderr=subprocess.PIPE)
        with process, server.accept()[0]:
            process.send_signal(signal.SIGINT)
            try:
                _, words = process.communicate(timeout=SOON)
            finally:
                process.kill()
    assert b"KeyboardInterrupt" in words


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("times", [1, 3])
def test_what_must_not_be_cut_off_is_done_before_the_interrupt(number: signal.Signals, times: int) -> None:
    done: list[str] = []

    def raise_it(number: int, frame: FrameType | None) -> None:
        raise Interrupt(number)

    before = signal.signal(number, raise_it)
    try:
        with pytest.raises(Interrupt, match=str(int(number))):
            with uninterrupted():
                for _ in range(times):
                    os.kill(os.getpid(), number)
                time.sleep(0.01)
                done.append("inside")
            done.append("after")
        assert done == ["inside"]
        with pytest.raises(Interrupt):
            os.kill(os.getpid(), number)
            time.sleep(1)
    finally:
        signal.signal(number, before)


def test_an_interrupt_comes_after_an_error_of_what_it_waited_for(interrupt: Callable[[], None]) -> None:
    before = signal.signal(signal.SIGINT, signal.getsignal(signal.SIGUSR1))
    try:
        with pytest.raises(Interrupt) as raised, uninterrupted():
            os.kill(os.getpid(), signal.SIGINT)
            raise ValueError("in the block")
    finally:
        signal.signal(signal.SIGINT, before)
    assert isinstance(raised.value.__context__, ValueError)


def test_an_ignored_signal_stays_ignored_and_other_threads_are_left_alone() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with uninterrupted():
            os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)

    def look() -> Any:
        with uninterrupted():
            return signal.getsignal(signal.SIGINT)

    with StoppablePool(1) as pool:
        assert pool.submit(look).result() is before
