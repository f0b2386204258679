"""Reads bodies away from the event loop: long ones one at a time on a thread, so that streams go on meanwhile.

The thread and the event loop share Python's lock, so a body has bounds of its own (`client.openai.objects`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from client.openai.errors import ApiError, retry_after

_SHORT_BYTES = 16 * 1024  # read at once: the way to a thread would take longer
_MAX_WAITING = 128  # long bodies, each of which stands in memory
P = ParamSpec("P")
R = TypeVar("R")


class Reading:
    """Calls functions that read bodies. Belongs to one event loop."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reading")
        self._num_waiting = 0

    async def __call__(self, num_bytes: int, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Return what `function` makes of a body of `num_bytes`. Raises ApiError where too many long ones wait."""
        if num_bytes <= _SHORT_BYTES:
            return function(*args, **kwargs)
        if self._num_waiting >= _MAX_WAITING:
            words = f"{self._num_waiting} long bodies wait to be read, the most at once"
            raise ApiError(words, status=429, kind="rate_limit_error", headers=retry_after(1.0))
        self._num_waiting += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._thread, lambda: function(*args, **kwargs))
        finally:
            self._num_waiting -= 1

    def close(self) -> None:
        """Drop what waits."""
        self._thread.shutdown(wait=False, cancel_futures=True)
