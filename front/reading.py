"""Reads bodies away from the event loop: long ones one at a time on a thread, so that streams go on meanwhile.

The thread and the event loop share Python's lock, so a body has bounds of its own (`client.openai.objects`). `Turns`
says which body is next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from typing import ParamSpec, TypeVar

from client.openai.errors import ApiError, retry_after
from front.turns import NO_PLACE, Sender, Turn, Turns

SHORT_BYTES = 16 * 1024  # read at once: the way to a thread would take longer
P = ParamSpec("P")
R = TypeVar("R")


class Reading:
    """Calls functions that read bodies. Belongs to one event loop."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reading")
        self._turns = Turns()
        self._numbers = count()
        self._is_busy = False

    async def __call__(
        self, sender: Sender, num_bytes: int, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Return what `function` makes of a body of `num_bytes`. Raises ApiError where the queue is full."""
        if num_bytes <= SHORT_BYTES:
            return function(*args, **kwargs)
        await self._turn(sender, num_bytes)
        work = asyncio.get_running_loop().run_in_executor(self._thread, partial(function, *args, **kwargs))
        work.add_done_callback(lambda _: self._begin_next())
        return await asyncio.shield(work)  # the thread is busy with it even where nobody waits any more

    def require_place(self, client: str, num_bytes: int) -> None:
        """Raise ApiError where the queue would refuse a body that has not come."""
        if num_bytes > SHORT_BYTES and not self._turns.has_place(client, num_bytes):
            raise _refused(NO_PLACE)

    def close(self) -> None:
        """Drop what waits."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _turn(self, sender: Sender, num_bytes: int) -> None:
        """Wait until the thread is free for this body."""
        if not self._is_busy:
            self._is_busy = True
            return
        begins = asyncio.get_running_loop().create_future()
        begin, refuse = partial(_set_result, begins), partial(_set_refused, begins)
        turn = Turn(not sender.is_rt, num_bytes, next(self._numbers), sender.client, begin, refuse)
        self._turns.add(turn)
        try:
            await begins
        except asyncio.CancelledError:
            self._turns.drop(turn)
            if begins.done() and not begins.cancelled() and begins.exception() is None:  # its turn had come
                self._begin_next()
            raise

    def _begin_next(self) -> None:
        turn = self._turns.pop()
        self._is_busy = turn is not None
        if turn is not None:
            turn.begin()


def _set_result(begins: asyncio.Future[None]) -> None:
    if not begins.done():
        begins.set_result(None)


def _set_refused(begins: asyncio.Future[None], words: str) -> None:
    if not begins.done():
        begins.set_exception(_refused(words))


def _refused(words: str) -> ApiError:
    return ApiError(words, status=429, kind="rate_limit_error", headers=retry_after(1.0))
