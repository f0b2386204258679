"""The door's event loop: a crowd of new connections, or of gRPC's events, leaves turns for the streams."""

from __future__ import annotations

import asyncio
import socket
from contextlib import closing
from functools import partial

import grpc.aio
import pytest

from front.loop import DoorLoop

_NUM_EVENTS = 250  # fewer than gRPC's pipe has room for


class Turns:
    """Counts the turns of the running loop."""

    def __init__(self) -> None:
        self.count = 0
        self._turn()

    def _turn(self) -> None:
        self.count += 1
        asyncio.get_running_loop().call_soon(self._turn)


class PollerCompletionQueue:
    """gRPC's queue of events, as far as an event loop sees it: a byte for each event, and one byte read in a call."""

    def __init__(self) -> None:
        self.reader, self._writer = socket.socketpair()
        self.reader.setblocking(False)
        self._events: list[int] = []
        self.taken: list[int] = []

    def push(self, event: int) -> None:
        self._events.append(event)
        self._writer.send(b"1")

    def handle_events(self) -> None:
        assert self.reader.recv(1) == b"1"
        self.taken += self._events
        self._events.clear()

    def close(self) -> None:
        self.reader.close()
        self._writer.close()


def test_the_events_of_grpc_that_are_ready_take_one_turn() -> None:
    async def main(queue: PollerCompletionQueue) -> None:
        loop = asyncio.get_running_loop()
        loop.add_reader(queue.reader, partial(queue.handle_events))
        for event in range(_NUM_EVENTS):
            queue.push(event)
        for _ in range(3):
            await asyncio.sleep(0)
        loop.remove_reader(queue.reader)
        with pytest.raises(BlockingIOError):
            queue.reader.recv(1)
        assert queue.taken == [*range(_NUM_EVENTS)]

    with closing(PollerCompletionQueue()) as queue, asyncio.Runner(loop_factory=DoorLoop) as runner:
        runner.run(main(queue))


def test_grpc_registers_a_queue_that_the_loop_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    pipes: list[socket.socket] = []
    monkeypatch.setattr("front.loop._take_all", lambda pipe, take: (pipes.append(pipe), take()))

    async def main() -> None:
        async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await channel.unary_unary("/none/None")(b"", timeout=5.0)

    with asyncio.Runner(loop_factory=DoorLoop) as runner:
        runner.run(main())
    assert pipes


def test_a_crowd_of_new_connections_is_accepted_over_many_turns() -> None:
    num_clients = 200

    async def main() -> list[int]:
        made: list[int] = []  # the turn of each connection

        class Protocol(asyncio.Protocol):
            def connection_made(self, _: asyncio.BaseTransport) -> None:
                made.append(turns.count)

        loop = asyncio.get_running_loop()
        server = await loop.create_server(Protocol, "127.0.0.1", 0, backlog=2 * num_clients)
        address = server.sockets[0].getsockname()
        clients = [socket.create_connection(address, timeout=1.0) for _ in range(num_clients)]  # none is refused
        turns = Turns()
        while len(made) < num_clients:
            await asyncio.sleep(0)
        server.close()
        for client in clients:
            client.close()
        return made

    with asyncio.Runner(loop_factory=DoorLoop) as runner:
        made = runner.run(main())
    assert max(made.count(turn) for turn in made) <= 4


def test_other_readers_are_called_as_asyncio_calls_them() -> None:
    async def main() -> bytes:
        here, there = socket.socketpair()
        with here, there:
            read = asyncio.get_running_loop().create_future()
            here.setblocking(False)
            asyncio.get_running_loop().add_reader(here, lambda size: read.set_result(here.recv(size)), 3)
            there.sendall(b"abcdef")
            value = await read
            asyncio.get_running_loop().remove_reader(here)
            return bytes(value)

    with asyncio.Runner(loop_factory=DoorLoop) as runner:
        assert runner.run(main()) == b"abc"
