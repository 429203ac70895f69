"""Distributes a batch of work over threads."""

from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, Executor, Future, wait
from typing import TypeVar

from resources.stop import GRACE_SECONDS

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def in_parallel(pool: Executor, work: Callable[[_Item], _Result], items: Iterable[_Item]) -> list[_Result]:
    """The results of `work` in the order of `items`.

    Raises the error of the first item that failed. Nothing of the batch is still running when this returns, so that the
    caller can close what the work was using; after an interrupt, it waits for at most `GRACE_SECONDS`.
    """
    futures: list[Future[_Result]] = []
    seconds: float | None = None
    try:
        for item in items:
            futures.append(pool.submit(work, item))
        wait(futures, return_when=FIRST_EXCEPTION)
    except BaseException as error:
        if not isinstance(error, Exception):
            # the run is being stopped, and work that hangs must not hold it up
            seconds = GRACE_SECONDS
        raise
    finally:
        for future in futures:
            future.cancel()
        wait(futures, seconds)
    return [future.result() for future in futures if not future.cancelled()]
