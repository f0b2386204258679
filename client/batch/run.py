"""Runs a batch: some requests at a time, each line of the input until it has one line of output."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from client.batch.format import BatchRequest, LineError, answer, checksum, parse, refusal
from client.batch.results import Results, find_repeated, read_lines
from client.client import AsyncClient
from client.errors import ClientError, ExecutionError, InvalidRequestError, UnavailableError
from client.generation import Generation, Options
from client.retry import Retry

OVERLOAD_RETRY = Retry(max_attempts=10_000, max_wait_s=10.0)  # a full queue empties: hours of waiting are fine
_MAX_ATTEMPTS = 6  # of a request that the engine, or the way to it, loses
_FIRST_WAIT_S = 0.5  # before the second attempt; doubles


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """How to run. `finish_by_s`: seconds from the start, after which requests go on without a deadline.

    `max_tokens` is for lines that do not say; `first_wait_s` before a lost request is sent again doubles each time.
    """

    concurrency: int = 32
    max_tokens: int = 256
    finish_by_s: float | None = None
    first_wait_s: float = _FIRST_WAIT_S


OnResult = Callable[[int], None]  # the result's number of output tokens; 0 for a failure


async def run_batch(
    client: AsyncClient, source: Path, results: Results, settings: BatchSettings, on_result: OnResult
) -> None:
    """Send what has no result yet and append its result. Raises UnavailableError when the server is gone for good;
    cancelling it cancels the open requests. Run again, it goes on where it was."""
    pending = _pending(source, results, on_result)
    worker = _Worker(client, results, settings, on_result, time.monotonic())
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(settings.concurrency):
                group.create_task(worker.run(pending))
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None


def _pending(source: Path, results: Results, on_result: OnResult) -> Iterator[BatchRequest]:
    """Yield the requests without a result, reading no further than asked; note lines that cannot be sent."""
    repeated = find_repeated(source)
    for index, text in read_lines(source):
        crc32 = checksum(text)
        try:
            request = _parse_named_once(index, text, repeated)
        except LineError as error:
            if not results.is_done(index, crc32, error.custom_id):
                results.append(index, crc32, refusal(index, crc32, error.custom_id, error), is_failure=True)
                on_result(0)
            continue
        if not results.is_done(index, crc32, request.custom_id):
            yield request


def _parse_named_once(index: int, text: bytes, repeated: Mapping[int, int]) -> BatchRequest:
    request = parse(index, text)
    if index in repeated:
        message = f"line {index}: custom_id {request.custom_id!r} is that of line {repeated[index]}"
        raise LineError(message, request.custom_id)
    return request


@dataclass(frozen=True, slots=True)
class _Worker:
    client: AsyncClient
    results: Results
    settings: BatchSettings
    on_result: OnResult
    started_s: float

    async def run(self, requests: Iterator[BatchRequest]) -> None:
        """Serve requests from the shared iterator until it ends."""
        for request in requests:
            try:
                generation = await self._generate(request)
            except UnavailableError:
                raise
            except ClientError as error:
                line = refusal(request.index, request.crc32, request.custom_id, error)
                self.results.append(request.index, request.crc32, line, is_failure=True)
                self.on_result(0)
            else:
                line = answer(request, generation, int(time.time()))
                self.results.append(request.index, request.crc32, line, is_failure=False)
                self.on_result(len(generation.token_ids))

    async def _generate(self, request: BatchRequest) -> Generation:
        lost: ClientError = ExecutionError(f"line {request.index}: the server cancelled it")
        waits_s = [0.0, *(self.settings.first_wait_s * 2**n for n in range(_MAX_ATTEMPTS - 1))]
        for wait_s in waits_s:
            await asyncio.sleep(wait_s)
            try:
                generation = await self.client.generate(request.prompt, **self._options(request))
            except (UnavailableError, ExecutionError) as error:
                lost = error
            except (ValueError, TypeError) as error:  # a value that no request can carry
                raise InvalidRequestError(f"line {request.index}: {type(error).__name__}: {error}") from error
            else:
                if generation.finish_reason != "cancelled":
                    return generation
        raise lost

    def _options(self, request: BatchRequest) -> Options:
        options: Options = {"max_tokens": self.settings.max_tokens, **request.options, "priority_class": "be"}
        if self.settings.finish_by_s is not None:
            left_s = self.started_s + self.settings.finish_by_s - time.monotonic()
            if left_s > 0.0:
                options["deadline_s"] = left_s
        return options
