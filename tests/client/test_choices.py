"""The calls of requests that ask for several choices: how many are open, and how the event loop is shared."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from client.choices import Calls, Pace, complete, running
from client.client import AsyncClient
from client.generation import Generation
from client.openai.asked import Json
from client.openai.job import Job, batch_job

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


class Engine:
    """Answers with as many log-probabilities as asked for, once `may_end` is set; counts who waits for that."""

    def __init__(self) -> None:
        self.num_open = 0
        self.may_end = asyncio.Event()

    async def generate(self, _prompt: object, **options: Any) -> Generation:
        self.num_open += 1
        await self.may_end.wait()
        num, top = options.get("max_tokens", 10), options["top_log_probs"]
        likeliest = [(token_id, -1.0) for token_id in range(top)]
        return Generation("r", "", [5] * num, [-1.0] * num, "length", None, [likeliest] * num)


def job_of(max_tokens: int | None, log_probs: int) -> Job:
    asked = {"max_tokens": max_tokens, "logprobs": True, "top_logprobs": log_probs}
    body = {"messages": [{"role": "user", "content": "a"}], **asked}
    return batch_job("/v1/chat/completions", json.dumps(body).encode())


@pytest.mark.parametrize("max_tokens", [1000, None])
def test_so_many_long_answers_with_log_probabilities_of_a_client_run_at_once(max_tokens: int | None) -> None:
    async def main() -> None:
        engine, pace = Engine(), Pace()
        client, calls = cast(AsyncClient, engine), Calls(512, pace)
        long = [asyncio.create_task(complete(client, job_of(max_tokens, 20), calls)) for _ in range(10)]
        short = [asyncio.create_task(complete(client, job_of(3, 20), calls)) for _ in range(10)]
        await asyncio.sleep(0.01)
        assert engine.num_open == 4 + len(short)
        other = asyncio.create_task(complete(client, job_of(1000, 20), Calls(512, pace)))
        await asyncio.sleep(0.01)
        assert engine.num_open == 5 + len(short)
        engine.may_end.set()
        answers: list[Json] = await asyncio.gather(*long, *short, other)
        assert all(answer["choices"][0]["logprobs"] for answer in answers)

    asyncio.run(main())


def test_a_short_answer_waits_for_no_long_one_that_is_made() -> None:
    async def main() -> None:
        engine = Engine()
        engine.may_end.set()
        client, calls = cast(AsyncClient, engine), Calls(512, Pace())
        async with calls.pace._thread:  # a long answer is made
            long = asyncio.create_task(complete(client, job_of(1000, 20), calls))
            async with asyncio.timeout(5.0):
                assert (await complete(client, job_of(3, 20), calls))["choices"]
            assert not long.done()
        assert (await long)["choices"]

    asyncio.run(main())


@pytest.mark.parametrize(("options", "is_streamed"), [({}, False), ({"log_probs": True, "top_log_probs": 2}, True)])
def test_a_whole_answer_with_alternatives_comes_in_pieces(options: dict[str, Any], is_streamed: bool) -> None:
    asked: list[object] = []

    class Transport:
        async def stream(self, call: Any) -> Any:
            asked.append(call.inputs["stream"])
            for reason in ("", "length"):
                yield {"text_output": ["a"], "output_ids": [5], "finish_reason": [reason]}

    answer = asyncio.run(AsyncClient(cast(Any, Transport())).generate("hi", **options))
    assert (asked, answer.text) == ([is_streamed], "aa")
