"""The folder and its database, from an event loop: one thread runs all calls on them, in order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from front.batches.folder import Folder
from front.batches.store import Store

P = ParamSpec("P")
R = TypeVar("R")


class Disk:
    """Calls functions of the store, one at a time: no other call comes between the steps of one."""

    def __init__(self, folder: Folder, store: Store) -> None:
        self.folder = folder
        self.store = store
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")

    async def __call__(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Return what `function` returns."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, lambda: function(*args, **kwargs))

    def close(self) -> None:
        """Wait for what has been begun."""
        self._thread.shutdown()
