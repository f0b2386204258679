"""Reads in Triton's log that it has crashed.

Server 2.51 says so before it ends. Where its heap is broken, its next step may wait without end for a lock of that
heap. Its streams then stand still. No client can write such a line: Triton quotes the words of clients.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

from backend.launcher.log_bound import shorten

PERIOD_S = 1.0  # from one look to the next
_CRASH = re.compile(rb"^Signal \((4|6|7|8|11)\) received", re.MULTILINE)  # ILL, ABRT, BUS, FPE, SEGV


async def first_crash(log: Path, start: int) -> int:
    """Wait until `log` tells of a crash after its first `start` bytes; return the signal's number. Keep it short."""
    while True:
        number, start = crash_in(log, start)
        if number is not None:
            return number
        if shorten(log):  # here, when it has been read: a line of its own life stays seen
            start = 0
        await asyncio.sleep(PERIOD_S)


def crash_in(log: Path, start: int) -> tuple[int | None, int]:
    """Return the signal that `log` tells of after `start` bytes, if any, and where its last, unended line starts."""
    try:
        with log.open("rb") as file:
            file.seek(start)
            content = file.read()
    except OSError:  # somebody moved it
        return None, start
    match = _CRASH.search(content)
    return (None if match is None else int(match[1])), start + content.rfind(b"\n") + 1
