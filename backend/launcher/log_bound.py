"""Bounds the logs of a launch. A client that has opened all descriptors makes Triton 2.51 write 12 MB a second.

The processes write to the files themselves, each at its end. So a file is emptied in place.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

from backend.core.ownership import own

MAX_LOG_BYTES = 64 * 2**20
KEPT_BYTES = 2**20  # of its end, in a file beside it
PERIOD_S = 1.0


async def keep_short(log: Path) -> None:
    """Empty `log` whenever it has grown too long, without an end."""
    while True:
        shorten(log)
        await asyncio.sleep(PERIOD_S)


def shorten(log: Path) -> bool:
    """Empty a log that is too long; its end is then in `<log>.1`. Return whether it was, False where it is gone."""
    try:
        if log.stat().st_size <= MAX_LOG_BYTES:
            return False
    except OSError:
        return False
    with contextlib.suppress(OSError):  # on a full disk it has to become shorter all the more
        _copy_end(log, log.with_name(f"{log.name}.1"))
    with contextlib.suppress(OSError):
        os.truncate(log, 0)
    return True


def _copy_end(log: Path, to: Path) -> None:
    with open(log, "rb", opener=own) as file:
        file.seek(-KEPT_BYTES, os.SEEK_END)
        end = file.read(KEPT_BYTES)
    with open(to, "wb", opener=own) as copy:
        copy.write(end)
