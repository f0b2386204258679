"""The folder and its database, from an event loop: one thread runs all calls on them, in order."""

from __future__ import annotations

import asyncio
import errno
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

from client.openai.errors import ApiError
from front.batches.folder import Folder
from front.batches.settings import BatchSettings
from front.batches.store import Store

_FULL = {errno.ENOSPC, errno.EDQUOT}
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

    async def change(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Return what `function` returns, which writes. Raises ApiError where the disk is full."""
        try:
            return await self(function, *args, **kwargs)
        except (OSError, sqlite3.OperationalError) as error:
            if not is_full(error):
                raise
            raise disk_full() from error

    def used_bytes(self, owner: str | None = None) -> int:
        """Return the size of all files, or of those of one owner, with the answers that batches are writing."""
        writing = [batch for batch in self.store.unfinished() if owner in (None, batch.owner)]
        paths = [self.folder.content(file_id) for batch in writing for file_id in (batch.output_id, batch.errors_id)]
        return self.store.stored_bytes(owner) + sum(map(_size, paths))

    def lack_of_room(self, owner: str, num_bytes: int, limits: BatchSettings) -> str | None:
        """Return which bound `num_bytes` more of `owner` would exceed: that of a key, or that of all."""
        if self.used_bytes(owner) + num_bytes > limits.max_own_bytes:
            return f"the files of this key, with the answers of its batches, exceed {limits.max_own_bytes} bytes"
        if self.used_bytes() + num_bytes > limits.max_stored_bytes:
            return f"all files together, with the answers of batches, exceed {limits.max_stored_bytes} bytes"
        return None

    def close(self) -> None:
        """Wait for what has been begun."""
        self._thread.shutdown()


def _size(path: Path) -> int:
    """Return the size of a file; 0 where there is none yet."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def is_full(error: OSError | sqlite3.OperationalError) -> bool:
    """Return whether a write found a full disk. SQLite tells most of them so, and some as a write that failed."""
    if isinstance(error, OSError):
        return error.errno in _FULL
    return error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)


def disk_full() -> ApiError:
    """Return the answer to who wrote to a full disk."""
    words = "the disk that keeps files and batches is full: delete files"
    return ApiError(words, status=507, kind="server_error", code="storage_full")
