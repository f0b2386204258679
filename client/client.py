"""`Client` for threads and `AsyncClient` for asyncio: the same calls, the same options, the same errors.

with Client() as client:
    for chunk in client.stream("Why is the sky blue?", priority_class="rt", ttft_slo_s=0.5):
        print(chunk.text, end="", flush=True)
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import AsyncGenerator, Generator, Sequence
from typing import Self, Unpack
from uuid import uuid4

from client import wire
from client.errors import ExecutionError, InvalidRequestError, OverloadedError, readable
from client.generation import Call, Chunk, Generation, Options, Outputs, Prompt, Scalar, decode, encode, join
from client.retry import NEVER, Retry
from client.snapshot import Snapshot, parse_snapshot
from client.transports import AsyncTransport, Transport, connect, connect_async


class Client:
    """Talks to one server; may be shared by threads. `server` is a URL (see `connect`) or a transport of your own."""

    def __init__(
        self, server: str | Transport = wire.DEFAULT_GRPC_URL, *, model: str = wire.MODEL, retry: Retry = NEVER
    ) -> None:
        self._transport = connect(server) if isinstance(server, str) else server
        self._model = model
        self._retry = retry

    def stream(self, prompt: Prompt, **options: Unpack[Options]) -> Stream:
        """Return the answer as an iterator of chunks; the request is sent when the first one is asked for."""
        call = _encoded(prompt, options, self._model, stream=True)
        return Stream(call.request_id, self._chunks(call))

    def generate(self, prompt: Prompt, **options: Unpack[Options]) -> Generation:
        """Return the whole answer. Raises a ClientError."""
        call = _encoded(prompt, options, self._model, stream=_comes_in_pieces(options))
        return Stream(call.request_id, self._chunks(call)).join()

    def inspect(self, timeout_s: float | None = None, *, counts_only: bool = False) -> Snapshot:
        """Return the engine's state now. Raises InvalidRequestError where the server does not allow it.

        `counts_only`: without requests, preemptions and facts, which every server allows.
        """
        responses = self._transport.stream(_inspection(timeout_s, counts_only))
        return parse_snapshot("".join(_read(outputs).text for outputs in responses))

    def close(self) -> None:
        """Close the connections; requests still open are cancelled."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _chunks(self, call: Call) -> Generator[Chunk, None, None]:
        for attempt in itertools.count(1):
            try:
                yield from self._attempt(call)
                return
            except OverloadedError as error:  # a refusal: no chunk was yielded
                wait_s = self._retry.wait_s(error, attempt, random.random())
                if wait_s is None:
                    raise
            time.sleep(wait_s)

    def _attempt(self, call: Call) -> Generator[Chunk, None, None]:
        responses = self._transport.stream(call)
        is_finished = False
        try:
            for outputs in responses:
                chunk = _read(outputs)
                is_finished = chunk.finish_reason is not None
                yield chunk
        finally:
            responses.close()
        if not is_finished:
            raise _cut_short(call)


class Stream:
    """The chunks of one answer. Leaving its `with` block, `close`, or dropping it cancels an unfinished answer."""

    def __init__(self, request_id: str, chunks: Generator[Chunk, None, None]) -> None:
        self.request_id = request_id
        self._chunks = chunks

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Chunk:
        return next(self._chunks)

    def join(self) -> Generation:
        """Wait for the chunks still to come and return them as one answer."""
        with self:
            return join(self.request_id, self._chunks)

    def close(self) -> None:
        """Cancel the request if it is not finished; idempotent."""
        self._chunks.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncClient:
    """Talks to one server from one event loop; to be made inside it. Takes what `Client` takes."""

    def __init__(
        self, server: str | AsyncTransport = wire.DEFAULT_GRPC_URL, *, model: str = wire.MODEL, retry: Retry = NEVER
    ) -> None:
        self._transport = connect_async(server) if isinstance(server, str) else server
        self._model = model
        self._retry = retry

    def stream(self, prompt: Prompt, **options: Unpack[Options]) -> AsyncStream:
        """Return the answer as an iterator of chunks; the request is sent when the first one is asked for."""
        call = _encoded(prompt, options, self._model, stream=True)
        return AsyncStream(call.request_id, self._chunks(call))

    async def generate(self, prompt: Prompt, **options: Unpack[Options]) -> Generation:
        """Return the whole answer. Raises a ClientError."""
        call = _encoded(prompt, options, self._model, stream=_comes_in_pieces(options))
        return await AsyncStream(call.request_id, self._chunks(call)).join()

    async def inspect(self, timeout_s: float | None = None, *, counts_only: bool = False) -> Snapshot:
        """Return the engine's state now. Raises InvalidRequestError where the server does not allow it.

        `counts_only`: without requests, preemptions and facts, which every server allows.
        """
        responses = self._transport.stream(_inspection(timeout_s, counts_only))
        return parse_snapshot("".join([_read(outputs).text async for outputs in responses]))

    async def close(self) -> None:
        """Close the connections; requests still open are cancelled."""
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _chunks(self, call: Call) -> AsyncGenerator[Chunk, None]:
        for attempt in itertools.count(1):
            attempted = self._attempt(call)
            try:
                async for chunk in attempted:
                    yield chunk
                return
            except OverloadedError as error:  # a refusal: no chunk was yielded
                wait_s = self._retry.wait_s(error, attempt, random.random())
                if wait_s is None:
                    raise
            finally:
                await attempted.aclose()
            await asyncio.sleep(wait_s)

    async def _attempt(self, call: Call) -> AsyncGenerator[Chunk, None]:
        responses = self._transport.stream(call)
        is_finished = False
        try:
            async for outputs in responses:
                chunk = _read(outputs)
                is_finished = chunk.finish_reason is not None
                yield chunk
        finally:
            await responses.aclose()
        if not is_finished:
            raise _cut_short(call)


class AsyncStream:
    """The chunks of one answer. Leaving its `async with` block, or `close`, cancels an unfinished answer."""

    def __init__(self, request_id: str, chunks: AsyncGenerator[Chunk, None]) -> None:
        self.request_id = request_id
        self._chunks = chunks

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Chunk:
        return await anext(self._chunks)

    async def join(self) -> Generation:
        """Wait for the chunks still to come and return them as one answer."""
        async with self:
            return join(self.request_id, [chunk async for chunk in self._chunks])

    async def close(self) -> None:
        """Cancel the request if it is not finished; idempotent."""
        await self._chunks.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _comes_in_pieces(options: Options) -> bool:
    """Return whether a whole answer comes token by token: with alternatives, it is too long to be read in one go."""
    return bool(options.get("top_log_probs"))


def _encoded(prompt: Prompt, options: Options, model: str, stream: bool) -> Call:
    """Return the call for a prompt. Raises InvalidRequestError for half an emoji, or an argument of other bytes."""
    call = encode(prompt, options, model, stream)
    for name, value in {"request_id": call.request_id, **call.inputs}.items():
        _require_utf8(name, (value,) if isinstance(value, Scalar) else value)
    return call


def _require_utf8(name: str, values: Sequence[Scalar]) -> None:
    if not values or not isinstance(values[0], str):  # a million token ids are not looked at one by one
        return
    try:
        for value in values:
            str(value).encode()
    except UnicodeEncodeError as error:
        raise InvalidRequestError(f"{name}: no UTF-8 text at character {error.start}") from error


def _read(outputs: Outputs) -> Chunk:
    """Return the chunk that one response holds. Raises UnavailableError for a response that is none of ours."""
    with readable():
        return decode(outputs)


def _inspection(timeout_s: float | None, counts_only: bool) -> Call:
    asked = wire.INSPECT_COUNTS if counts_only else wire.INSPECT_ENGINE
    return Call(wire.MODEL, uuid4().hex, parameters={wire.INSPECT: asked}, timeout_s=timeout_s)


def _cut_short(call: Call) -> ExecutionError:
    return ExecutionError(f"request {call.request_id!r}: the stream ended without a final response")
