"""Long bodies are read on one thread; the order is that of `front.turns`."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable

import pytest

from client.openai.errors import ApiError
from front.reading import SHORT_BYTES, Reading
from front.turns import MAX_PER_CLIENT, Sender

LONG = SHORT_BYTES + 1
A, B = Sender("a"), Sender("b")


class Busy:
    """A thread that reads a first body until it is told to end."""

    def __init__(self) -> None:
        self.reading = Reading()
        self.read: list[str] = []
        self.may_end = threading.Event()
        self.first = asyncio.create_task(self.reading(A, LONG, self.may_end.wait, 10.0))

    def start(self, sender: Sender, name: str, num_bytes: int = LONG) -> asyncio.Task[None]:
        return asyncio.create_task(self.reading(sender, num_bytes, self.read.append, name))

    async def finish(self, *tasks: asyncio.Task[None]) -> list[str]:
        self.may_end.set()
        await asyncio.wait_for(asyncio.gather(self.first, *tasks), 10.0)
        self.reading.close()
        return self.read


def run(main: Callable[[Busy], Awaitable[None]]) -> None:
    async def inside() -> None:
        busy = Busy()
        await asyncio.sleep(0)
        await main(busy)

    asyncio.run(inside())


def test_another_client_waits_for_one_body_of_a_flood() -> None:
    async def main(busy: Busy) -> None:
        flood = [busy.start(A, "a") for _ in range(MAX_PER_CLIENT - 1)]
        other, urgent = busy.start(B, "b"), busy.start(Sender("c", is_rt=True), "rt")
        await asyncio.sleep(0)
        read = await busy.finish(other, urgent, *flood)
        assert read == ["rt", "a", "b", *["a"] * (MAX_PER_CLIENT - 2)]

    run(main)


def test_a_short_body_is_read_at_once() -> None:
    async def main(busy: Busy) -> None:
        await busy.start(B, "short", SHORT_BYTES)
        assert await busy.finish() == ["short"]

    run(main)


def test_a_flood_is_told_when_to_come_again() -> None:
    async def main(busy: Busy) -> None:
        waiting = [busy.start(A, "a") for _ in range(MAX_PER_CLIENT)]
        with pytest.raises(ApiError, match="32 shorter bodies of this client wait") as refusal:
            await busy.start(A, "too many")
        assert refusal.value.status == 429
        assert refusal.value.headers["Retry-After"] == "1"
        await busy.finish(*waiting)

    run(main)


def test_a_client_that_leaves_gives_up_its_place() -> None:
    async def main(busy: Busy) -> None:
        left, stays = busy.start(A, "left"), busy.start(B, "stays")
        await asyncio.sleep(0)
        left.cancel()
        assert await busy.finish(stays) == ["stays"]

    run(main)


def test_a_client_that_leaves_while_it_is_read_lets_nobody_in_early() -> None:
    async def main(busy: Busy) -> None:
        next_one = busy.start(B, "next")
        busy.first.cancel()
        await asyncio.wait({busy.first})
        await asyncio.sleep(0)
        assert busy.reading._is_busy
        assert busy.read == []
        busy.may_end.set()
        await asyncio.wait_for(next_one, 10.0)
        assert busy.read == ["next"]

    run(main)


def test_a_turn_that_comes_as_its_client_leaves_goes_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(busy: Busy) -> None:
        left, stays = busy.start(A, "left"), busy.start(A, "stays")
        await asyncio.sleep(0)
        begin_next = busy.reading._begin_next

        def begin_and_leave() -> None:
            begin_next()
            left.cancel()  # its turn has come, and it has not run yet

        monkeypatch.setattr(busy.reading, "_begin_next", begin_and_leave)
        assert await busy.finish(stays) == ["stays"]

    run(main)
