"""Looks for an engine that gives no sign of life: one that hangs in a step, or as a whole."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from pathlib import Path

from backend.core.errors import EngineUnavailableError, OverloadedError
from backend.wire.protocol import (
    VERSION,
    Chunks,
    EngineState,
    Hello,
    ProtocolError,
    Snapshot,
    Stage,
    send,
    stub_reader,
)

PERIOD_S = 5.0  # from the end of one look to the next
_ASK_AGAIN_S = 0.2


async def until_silent(path: Path, timeout_s: float) -> None:
    """Return when the engine that listens at `path` has left a question open for `timeout_s`."""
    while await _is_heard(path, timeout_s):
        await asyncio.sleep(min(PERIOD_S, timeout_s))


async def _is_heard(path: Path, timeout_s: float) -> bool:
    """Ask for an answer between two steps. An engine that is gone is not silent."""
    try:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError:  # no descriptor is free
        return True
    with connection:
        asking = asyncio.create_task(asyncio.to_thread(_ask, connection, path))
        try:
            # In halves: a launcher that was stopped itself finds the first one over, and has the second to read.
            for _ in range(2):
                await asyncio.wait({asking}, timeout=timeout_s / 2)
            return asking.done()
        finally:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)  # wakes a thread that still reads, which closing would wait for


def _ask(connection: socket.socket, path: Path) -> None:
    """Return when the engine answers, is not ready, or goes. The thread of its steps makes the snapshot.

    "Too many ask" is no answer: another thread says so, also where no step ends. So it is asked again.
    """
    question = Snapshot(1, names_requests=False)
    with contextlib.suppress(OSError, EngineUnavailableError, ProtocolError):
        connection.connect(str(path))
        with stub_reader(connection) as reader:
            send(connection, Hello(version=VERSION, name="bros-serve"))
            send(connection, question)
            for message in reader:
                if isinstance(message, EngineState) and message.stage is not Stage.READY:
                    return
                if isinstance(message, Chunks):
                    if not _is_refusal_of_many(message):
                        return
                    time.sleep(_ASK_AGAIN_S)
                    send(connection, question)


def _is_refusal_of_many(message: Chunks) -> bool:
    return any(chunk.end is not None and chunk.end.error_code == OverloadedError.code for chunk in message.chunks)
