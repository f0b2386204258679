"""The calls of requests that ask for several choices: how many are open, and how the event loop is shared."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from client.choices import Calls, Pace, running

NUM = 20


class Clock:
    """Counts turns of the event loop while something else runs."""

    def __init__(self) -> None:
        self.num_turns = 0

    async def tick(self) -> None:
        while True:
            self.num_turns += 1
            await asyncio.sleep(0)


async def most_in_a_turn(act: Callable[[Callable[[], None]], Awaitable[None]]) -> int:
    """Return how often `act` calls its argument in one turn of the event loop, at most."""
    clock, turns = Clock(), []
    ticking = asyncio.create_task(clock.tick())
    await act(lambda: turns.append(clock.num_turns))
    ticking.cancel()
    assert len(turns) == 3 * NUM
    return max(map(turns.count, turns))


def test_choices_of_all_requests_begin_one_in_a_turn_of_the_loop() -> None:
    async def main() -> None:
        pace = Pace()

        async def act(note: Callable[[], None]) -> None:
            async def call(_: int) -> None:
                note()

            async def request() -> None:
                async with running(call, NUM, Calls(1_000, pace)) as begun:
                    await begun.all
                    await asyncio.wait(begun.tasks)

            await asyncio.gather(request(), request(), request())

        assert await most_in_a_turn(act) == 1

    asyncio.run(main())


def test_choices_of_all_requests_are_cancelled_one_in_a_turn_of_the_loop() -> None:
    async def main() -> None:
        pace = Pace()

        async def act(note: Callable[[], None]) -> None:
            async def call(_: int) -> None:
                try:
                    await asyncio.sleep(60.0)
                finally:
                    note()

            async def request() -> None:
                async with running(call, NUM, Calls(1_000, pace)) as begun:
                    await begun.all

            await asyncio.gather(request(), request(), request())

        assert await most_in_a_turn(act) == 1

    asyncio.run(main())


def test_no_more_calls_are_open_than_there_may_be() -> None:
    async def main() -> None:
        num_open = most_open = 0

        async def call(choice: int) -> int:
            nonlocal num_open, most_open
            num_open += 1
            most_open = max(most_open, num_open)
            await asyncio.sleep(0.001)
            num_open -= 1
            return choice

        calls = Calls(3, Pace())
        async with running(call, NUM, calls) as one, running(call, NUM, calls) as other:
            await asyncio.gather(one.all, other.all)
            assert await asyncio.gather(*one.tasks, *other.tasks) == [*range(NUM), *range(NUM)]
        assert most_open == 3

    asyncio.run(main())


@pytest.mark.parametrize("num_turns", [0, 1, 5, 40])
def test_whoever_is_cancelled_again_while_it_ends_leaves_no_call_open(num_turns: int) -> None:
    async def main() -> None:
        num_open = 0
        calls = Calls(NUM, Pace())

        async def call(_: int) -> None:
            nonlocal num_open
            num_open += 1
            try:
                await asyncio.sleep(60.0)
            finally:
                num_open -= 1

        async def request() -> None:
            async with running(call, NUM, calls) as begun:
                await begun.all
                await asyncio.wait(begun.tasks)

        task = asyncio.create_task(request())
        for _ in range(num_turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(5.0):
            async with running(call, NUM, calls) as begun:  # all of the calls are free again
                await begun.all
        assert num_open == 0

    asyncio.run(main())
