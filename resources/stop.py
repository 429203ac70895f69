"""Stopping the threads of a run that is terminated.

Dagster interrupts only the main thread of a run, so other threads belong to a `StoppablePool`. When an interrupt leaves
the block of a pool, `check` and `pause` raise StoppedError in its threads and in those of pools opened by them: before
each request and piece of work, and in the pauses between them. A thread that hangs in a system call (a silent socket,
GDAL) is waited for no longer than `GRACE_SECONDS`, and ends with the process.
"""

import contextvars
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from functools import partial
from types import FrameType, TracebackType
from typing import Any, ParamSpec, TypeVar

GRACE_SECONDS = 2.0

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")

_stopped: contextvars.ContextVar[threading.Event | None] = contextvars.ContextVar("stopped", default=None)
"""Set when the run that the thread works for is stopped. Each run has its own: the next run of the process goes on."""


class StoppedError(BaseException):
    """The run is stopped. Like KeyboardInterrupt it is not an Exception, so that nothing retries or records it."""


def check() -> None:
    """Raise StoppedError if the run is stopped."""
    stopped = _stopped.get()
    if stopped is not None and stopped.is_set():
        raise StoppedError


def pause(seconds: float) -> None:
    """Sleep. Raises StoppedError as soon as the run is stopped."""
    stopped = _stopped.get()
    if stopped is None:
        time.sleep(seconds)
    elif stopped.wait(seconds):
        raise StoppedError


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold back the signals by which a run is interrupted (SIGINT, SIGTERM) until the end of the block.

    For writes of the main thread to a database: an interrupted write can leave its transaction open, and every later
    write then waits for it (30 s each on Dagster's SQLite). In other threads, which are not interrupted, it does
    nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[tuple[int, FrameType | None]] = []
    before = {
        number: signal.signal(number, lambda number, frame: held.append((number, frame)))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        for number, frame in held[:1]:
            handler = before[signal.Signals(number)]
            if callable(handler):
                handler(number, frame)


class StoppablePool(Executor):
    """A pool of at most `threads`, for a `with` block; an interrupt stops it and the pools inside it.

    Like ThreadPoolExecutor's, its threads start as work comes; unlike those, they do not keep the process alive.
    """

    def __init__(self, threads: int) -> None:
        self._stopped = _stopped.get() or threading.Event()
        self._work: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._closed = False
        self._max_threads = threads
        self._threads: list[threading.Thread] = []
        self._idle = threading.Semaphore(0)
        self._starting = threading.Lock()

    def submit(
        self, fn: Callable[_Arguments, _Result], /, *args: _Arguments.args, **kwargs: _Arguments.kwargs
    ) -> Future[_Result]:
        if self._closed:
            raise RuntimeError("cannot submit work after shutdown")
        future: Future[_Result] = Future()
        self._work.put((future, partial(fn, *args, **kwargs)))
        if not self._idle.acquire(blocking=False):
            self._start_thread()
        return future

    def _start_thread(self) -> None:
        with self._starting:
            if len(self._threads) == self._max_threads:
                return
            thread = threading.Thread(target=self._run, daemon=True)
            # before it starts, because an interrupt may come meanwhile
            self._threads.append(thread)
            try:
                thread.start()
            except RuntimeError:
                # the system has no more threads; the existing ones do the work
                self._threads.remove(thread)
                if not self._threads:
                    raise

    def _next(self) -> tuple[Future[Any], Callable[[], Any]] | None:
        try:
            return self._work.get_nowait()
        except queue.Empty:
            self._idle.release()
            return self._work.get()

    def _run(self) -> None:
        _stopped.set(self._stopped)
        while (item := self._next()) is not None:
            future, call = item
            if future.set_running_or_notify_cancel():
                try:
                    check()
                    future.set_result(call())
                except BaseException as error:
                    future.set_exception(error)
            # otherwise the last result stays in memory while the thread is idle
            del item, future, call

    def __enter__(self) -> "StoppablePool":
        self._outer = _stopped.set(self._stopped)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _stopped.reset(self._outer)
        if kind is not None and not issubclass(kind, Exception):
            self._stopped.set()
        self.shutdown()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Return once all work is done, or `GRACE_SECONDS` after a stop. `cancel_futures` has no effect."""
        self._closed = True
        for _ in self._threads:
            self._work.put(None)
        if not wait:
            return
        try:
            for thread in self._threads:
                while thread.is_alive() and not self._stopped.is_set():
                    thread.join(0.1)
        except BaseException:
            self._stopped.set()
            raise
        finally:
            # only if the run is stopped are threads still alive
            until = time.monotonic() + GRACE_SECONDS
            for thread in filter(threading.Thread.is_alive, self._threads):
                thread.join(max(0.0, until - time.monotonic()))
