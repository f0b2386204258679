"""The way to the engine: one gRPC connection, shared by everything that this process serves.

`Engine.answer` runs one request as a batch's line has it; `complete` and `stream` run what an endpoint has read.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import uuid4

from client import AsyncClient, Chunk, Generation, Options, wire
from client.errors import ClientError, OverloadedError
from client.generation import PriorityClass
from client.snapshot import Snapshot
from client.transports import AsyncTransport
from front.asked import Asked, Endpoint, Json
from front.chat import CHAT
from front.completions import COMPLETIONS
from front.errors import ApiError, from_client, not_found
from front.tiers import Rule, Served, served_as
from front.usage import Tally

ENDPOINTS = {endpoint.path: endpoint for endpoint in (CHAT, COMPLETIONS)}
_CANARY = Options(max_tokens=1, ignore_eos=True, timeout_s=5.0)
_CANARY_TOKEN = 1
_INSPECT_TIMEOUT_S = 5.0
T = TypeVar("T")
Part = tuple[int, Chunk]  # of an answer: the number of the choice, and its next piece


@dataclass(frozen=True, slots=True)
class Job:
    """One request on its way: what it asks, how it is served, and what its answer is called."""

    endpoint: Endpoint
    asked: Asked
    served: Served
    request_id: str
    created_s: int

    def head(self, name: str) -> Json:
        """Return what stands at the top of an answer or of a piece of one."""
        return {
            "id": self.request_id,
            "object": name,
            "created": self.created_s,
            "model": self.asked.model,
            "service_tier": self.served.tier,
        }

    def options(self, choice: int) -> Options:
        """Return the engine's options for a choice: its own id, and a seed of its own."""
        asked = self.asked
        its_id = self.request_id if asked.num_choices == 1 else f"{self.request_id}-{choice}"
        options = Options(**asked.options, priority_class=self.served.priority_class, request_id=its_id)
        if asked.seed is not None:
            options["seed"] = (asked.seed + choice % asked.n) % 2**64
        return options


def make_job(endpoint: Endpoint, asked: Asked, served: Served) -> Job:
    """Give a request its name and its time."""
    return Job(endpoint, asked, served, endpoint.id_prefix + uuid4().hex, int(time.time()))


class Engine:
    """Runs requests. To be made inside the event loop that uses it; everything it raises is an ApiError."""

    def __init__(self, transport: AsyncTransport, default_class: PriorityClass) -> None:
        self._transport = transport
        self._clients = {model: AsyncClient(transport, model=model) for model in wire.MODELS}
        self._rule = Rule(default_class)

    async def answer(self, body: Mapping[str, Any], url: str, *, priority_class: PriorityClass | None = None) -> Json:
        """Return the whole answer to `body`, sent to the path `url`; `priority_class` wins over what the body says."""
        if (endpoint := ENDPOINTS.get(url)) is None:
            raise not_found("endpoint", url, param="url")
        asked = endpoint.parse(dict(body))
        if asked.is_streamed:
            raise ApiError("stream: not here", param="stream")
        if priority_class is None:
            return await self.complete(make_job(endpoint, asked, self._rule.served(asked.tier, asked.model)))
        return await self.complete(make_job(endpoint, asked, served_as(priority_class)))

    async def complete(self, job: Job) -> Json:
        """Return the whole answer. Cancelled, it cancels every choice."""
        choices = range(job.asked.num_choices)
        generations = await _all(self._generation(job, choice) for choice in choices)
        tally = Tally(job.asked)
        for choice, generation in enumerate(generations):
            tally.add(choice, generation)
        shown = [job.endpoint.choice(job.asked, choice, generations[choice]) for choice in choices]
        return job.head(job.endpoint.whole_name) | {"choices": shown, "usage": tally.usage}

    def stream(self, job: Job) -> AsyncGenerator[Part, None]:
        """Return the parts of the answer as they come, the choices mixed. Closed, it cancels every choice."""
        return self._parts(job, 0) if job.asked.num_choices == 1 else self._merged(job)

    async def inspect(self) -> Snapshot:
        """Return the engine's state now."""
        try:
            return await self._clients[wire.MODEL].inspect(_INSPECT_TIMEOUT_S)
        except ClientError as error:
            raise from_client(error) from error

    async def is_well(self) -> bool:
        """Return whether a token comes back: server, stub, engine and model all work. A full queue is well, too."""
        try:
            await self._clients[wire.MODEL_RT].generate([_CANARY_TOKEN], **_CANARY)
        except OverloadedError:
            return True
        except ClientError:
            return False
        return True

    async def close(self) -> None:
        """Close the connection; requests still open are cancelled."""
        await self._transport.close()

    async def _generation(self, job: Job, choice: int) -> Generation:
        client = self._clients[job.asked.model]
        try:
            generation = await client.generate(job.asked.prompt_of(choice), **job.options(choice))
        except ClientError as error:
            raise from_client(error) from error
        _require_end(generation)
        return generation

    async def _parts(self, job: Job, choice: int) -> AsyncGenerator[Part, None]:
        client = self._clients[job.asked.model]
        try:
            async with client.stream(job.asked.prompt_of(choice), **job.options(choice)) as chunks:
                async for chunk in chunks:
                    _require_end(chunk)
                    yield choice, chunk
        except ClientError as error:
            raise from_client(error) from error

    async def _merged(self, job: Job) -> AsyncGenerator[Part, None]:
        arrived: asyncio.Queue[Part | ApiError | None] = asyncio.Queue(maxsize=job.asked.num_choices)
        tasks = [asyncio.create_task(self._put(job, choice, arrived)) for choice in range(job.asked.num_choices)]
        num_open = len(tasks)
        try:
            while num_open:
                match await arrived.get():
                    case None:
                        num_open -= 1
                    case ApiError() as error:
                        raise error
                    case part:
                        yield part
        finally:
            await _cancel(tasks)

    async def _put(self, job: Job, choice: int, arrived: asyncio.Queue[Part | ApiError | None]) -> None:
        try:
            async for part in self._parts(job, choice):
                await arrived.put(part)
        except ApiError as error:
            await arrived.put(error)
        else:
            await arrived.put(None)


async def _all(work: Iterable[Coroutine[Any, Any, Generation]]) -> list[Generation]:
    """Wait for all; when one fails, or we are cancelled, cancel the rest."""
    tasks = [asyncio.create_task(each) for each in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        await _cancel(tasks)


async def _cancel(tasks: list[asyncio.Task[T]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _require_end(part: Chunk | Generation) -> None:
    """An answer that the server broke off has no finish_reason that OpenAI's API knows."""
    if part.finish_reason == "cancelled":
        raise ApiError("the server cancelled the request", status=408, kind="timeout_error", code="request_cancelled")
