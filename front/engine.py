"""The way to the engine: one gRPC connection, shared by everything that this process serves.

`Engine.answer` runs a line of a batch; `complete` and `stream` run what an endpoint has read.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from weakref import WeakValueDictionary

from client import AsyncClient, Chunk, Options, wire
from client.choices import Calls, Pace, complete, running
from client.errors import ClientError, OverloadedError
from client.openai.asked import Json
from client.openai.errors import ApiError, from_client
from client.openai.job import Job, batch_job, require_end
from client.snapshot import Snapshot
from client.transports import AsyncTransport
from front.reading import Reading
from front.turns import Sender

_CANARY = Options(max_tokens=1, ignore_eos=True, timeout_s=5.0)
_CANARY_TOKEN = 1
_INSPECT_TIMEOUT_S = 5.0
_LINES = Sender("lines of batches")
_MAX_LINES_READ = 8  # at once; the others wait here
MAX_OPEN_LINES = 64  # calls for lines of batches at once, each choice a call
_MAX_OPEN_CHOICES = 512  # calls of one client at once for its requests that ask for several choices
Part = tuple[int, Chunk]  # of an answer: the number of the choice, and its next piece


class Engine:
    """Runs requests. To be made inside the event loop that uses it; everything it raises is an ApiError."""

    def __init__(self, transport: AsyncTransport) -> None:
        self.reading = Reading()
        self._reading_lines = asyncio.Semaphore(_MAX_LINES_READ)
        self._pace = Pace()
        self._line_calls = Calls(MAX_OPEN_LINES, self._pace, MAX_OPEN_LINES)
        self._calls: WeakValueDictionary[str, Calls] = WeakValueDictionary()  # by client, while it has any
        self._transport = transport
        self._clients = {model: AsyncClient(transport, model=model) for model in wire.MODELS}

    async def answer(self, url: str, body: bytes, left_ms: float | None) -> Json:
        """Return the whole answer to a line of a batch: see `batch_job`."""
        async with self._reading_lines:
            job = await self.reading(_LINES, len(body), batch_job, url, body, left_ms)
        return await complete(self._clients[job.asked.model], job, self._line_calls)

    async def complete(self, job: Job, client: str) -> Json:
        """Return the whole answer for `client`. Cancelled, it cancels every choice."""
        return await complete(self._clients[job.asked.model], job, self._calls_of(client))

    def stream(self, job: Job, client: str) -> AsyncGenerator[Part, None]:
        """Return the parts of the answer for `client` as they come, the choices mixed. Closed, it cancels every
        choice."""
        return self._parts(job, 0) if job.asked.num_choices == 1 else self._merged(job, self._calls_of(client))

    async def inspect(self) -> Snapshot:
        """Return the engine's state now, as far as it names no request."""
        try:
            return await self._clients[wire.MODEL].inspect(_INSPECT_TIMEOUT_S, counts_only=True)
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
        self.reading.close()
        await self._transport.close()

    def _calls_of(self, client: str) -> Calls:
        return self._calls.setdefault(client, Calls(_MAX_OPEN_CHOICES, self._pace))

    async def _parts(self, job: Job, choice: int) -> AsyncGenerator[Part, None]:
        client = self._clients[job.asked.model]
        try:
            async with client.stream(job.asked.prompt_of(choice), **job.options(choice)) as chunks:
                async for chunk in chunks:
                    require_end(chunk)
                    yield choice, chunk
        except ClientError as error:
            raise from_client(error) from error

    async def _merged(self, job: Job, calls: Calls) -> AsyncGenerator[Part, None]:
        num_open = job.asked.num_choices
        arrived: asyncio.Queue[Part | ApiError | None] = asyncio.Queue(maxsize=num_open)
        async with running(lambda choice: self._put(job, choice, arrived), num_open, calls):
            while num_open:
                match await arrived.get():
                    case None:
                        num_open -= 1
                    case ApiError() as error:
                        raise error
                    case part:
                        yield part

    async def _put(self, job: Job, choice: int, arrived: asyncio.Queue[Part | ApiError | None]) -> None:
        try:
            async for part in self._parts(job, choice):
                await arrived.put(part)
        except ApiError as error:
            await arrived.put(error)
        else:
            await arrived.put(None)
