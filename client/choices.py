"""Runs the choices of a request of OpenAI's API, each as a request of its own to the engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple, TypeVar

from client.client import AsyncClient
from client.errors import ClientError
from client.generation import Generation
from client.openai.asked import Json
from client.openai.errors import from_client
from client.openai.job import Job, require_end

T = TypeVar("T")
V = TypeVar("V")
R = TypeVar("R")
_MANY_LOG_PROBS = 4_096  # of an answer, whose making would take the event loop some 10 ms
MOST_LONG = 4  # answers of one client at once that ask for more. Each takes up to some 45 MB.
_ending: set[asyncio.Task[None]] = set()  # the event loop itself keeps none alive


class Pace:
    """Lets one caller go on in each turn of the event loop; they take turns.

    To begin or to cancel a call takes the loop a part of a millisecond. Thousands in one turn would hold up all that
    goes out.
    """

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._thread = asyncio.Lock()

    async def away(self, function: Callable[[V], R], value: V) -> R:
        """Return `function(value)`, called on a thread. Another such call waits: the event loop has to go on."""
        async with self._thread:
            return await asyncio.to_thread(function, value)

    async def turn(self) -> None:
        """Wait for a turn of the event loop in which nobody else goes on."""
        async with self._lock:
            await asyncio.sleep(0)


class Calls:
    """The calls of one client to the engine that are open: `most`. The others wait, and hurt nobody else.

    long: held for each answer that asks for many log-probabilities.
    """

    def __init__(self, most: int, pace: Pace, most_long: int = MOST_LONG) -> None:
        self.pace = pace
        self.long = asyncio.Semaphore(most_long)
        self._free = asyncio.Semaphore(most)

    async def begin(self, call: Callable[[], Coroutine[Any, Any, T]]) -> asyncio.Task[T]:
        """Begin `call` when one of the others has ended and its turn has come."""
        await self._free.acquire()
        try:
            await self.pace.turn()
        except BaseException:
            self._free.release()
            raise
        task = asyncio.create_task(call())
        task.add_done_callback(lambda _: self._free.release())
        return task


class Begun(NamedTuple):
    """Choices that run. all: done when all have begun. tasks: those that have, in order."""

    all: asyncio.Task[None]
    tasks: list[asyncio.Task[Any]]


async def complete(client: AsyncClient, job: Job, calls: Calls) -> Json:
    """Return the whole answer. When a choice fails, or this is cancelled, all choices are. Raises ApiError."""
    async with calls.long if _may_be_long(job) else nullcontext():
        generations = await _generations(client, job, calls)
        num_each = 1 + job.asked.options.get("top_log_probs", 0)
        num_log_probs = num_each * sum(len(generation.log_probs or ()) for generation in generations)
        if num_log_probs <= _MANY_LOG_PROBS:
            return job.answer(generations)
        return await calls.pace.away(job.answer, generations)


def _may_be_long(job: Job) -> bool:
    """Return whether an answer may hold many log-probabilities. Without `max_tokens` its length is not known."""
    options = job.asked.options
    is_open = job.asked.wants_log_probs and "top_log_probs" in options and "max_tokens" not in options
    return is_open or job.asked.num_log_probs > _MANY_LOG_PROBS


async def _generations(client: AsyncClient, job: Job, calls: Calls) -> list[Generation]:
    if job.asked.num_choices == 1:
        return [await _generation(client, job, 0)]
    async with running(lambda choice: _generation(client, job, choice), job.asked.num_choices, calls) as begun:
        await begun.all
        done, _ = await asyncio.wait(begun.tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()  # raises what it raised
        return [task.result() for task in begun.tasks]


@asynccontextmanager
async def running(call: Callable[[int], Coroutine[Any, Any, T]], num: int, calls: Calls) -> AsyncGenerator[Begun]:
    """Begin `call(0)` to `call(num - 1)` one after the other; at the end, cancel what has not ended."""
    tasks: list[asyncio.Task[T]] = []

    async def begin() -> None:
        for choice in range(num):
            task = await calls.begin(partial(call, choice))
            tasks.append(task)

    begun = Begun(asyncio.create_task(begin()), tasks)
    try:
        yield begun
    finally:
        ending = asyncio.create_task(_end(begun, calls.pace))  # goes on where this is cancelled again
        _ending.add(ending)
        ending.add_done_callback(_ending.discard)
        await asyncio.shield(ending)


async def _end(begun: Begun, pace: Pace) -> None:
    begun.all.cancel()
    await asyncio.gather(begun.all, return_exceptions=True)
    for task in begun.tasks:
        if not task.done():
            await pace.turn()
            task.cancel()
    await asyncio.gather(*begun.tasks, return_exceptions=True)


async def _generation(client: AsyncClient, job: Job, choice: int) -> Generation:
    try:
        generation = await client.generate(job.asked.prompt_of(choice), **job.options(choice))
    except ClientError as error:
        raise from_client(error) from error
    require_end(generation)
    return generation
