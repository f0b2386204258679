"""Reads the engine's state from its socket, as a stub does."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

from backend.wire.protocol import VERSION, EngineState, Hello, send, stub_reader

_CONNECT_PERIOD_S = 0.05


async def engine_states(path: Path) -> AsyncIterator[EngineState]:
    """Connect as soon as the engine listens; yield its state now and at every change, until it goes away."""
    connection = await _connect(path)
    with connection, stub_reader(connection) as reader:
        try:
            send(connection, Hello(version=VERSION, name="bros-serve"))
            while (message := await asyncio.to_thread(reader.read)) is not None:
                if isinstance(message, EngineState):
                    yield message
        except ConnectionError:  # it ended before it read our greeting
            return
        finally:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)  # wakes a thread that still reads, which closing would wait for


async def _connect(path: Path) -> socket.socket:
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            await asyncio.sleep(_CONNECT_PERIOD_S)
        else:
            return connection
