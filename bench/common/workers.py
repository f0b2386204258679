"""Worker processes that end when their command does."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager


@contextmanager
def worker_processes(num_workers: int, start: Callable[[], object] | None = None) -> Iterator[ProcessPoolExecutor]:
    """Yield a pool. Where an exception ends the block, running calls end at once; a pool alone would wait for them.

    start: called in each worker process before its first call.
    """
    with ProcessPoolExecutor(num_workers, initializer=_start, initargs=(start,)) as pool:
        try:
            yield pool
        except BaseException:
            _revive_cancelled(pool)
            # Killed before it is shut down: a pool that is shutting down may wait for the killed ones without end.
            for process in multiprocessing.active_children():
                process.kill()
            raise


def _revive_cancelled(pool: ProcessPoolExecutor) -> None:
    """Give the calls that `pool.map` cancelled a future that can fail.

    Where its workers die, a pool fails each call, and raises at a cancelled one (CPython 3.11).
    """
    for item in list(pool._pending_work_items.values()):
        if item.future.cancelled():
            item.future = Future()


def _start(start: Callable[[], object] | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the command ends these
    if start is not None:
        start()
