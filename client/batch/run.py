"""Runs a batch: some requests at a time, each line of the input until it has one line of output.

`run_lines` is told who answers; `run_batch` asks the engine itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from client.batch.format import BatchRequest, answer, refusal, request_of
from client.batch.lines import Line, LineError, Reply, checksum, parse_line, result_line
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
Send = Callable[[Line], Awaitable[Reply]]


async def run_batch(
    client: AsyncClient, source: Path, results: Results, settings: BatchSettings, on_result: OnResult
) -> None:
    """Send what has no result yet and append its result. Raises UnavailableError when the server is gone for good;
    cancelling it cancels the open requests. Run again, it goes on where it was."""
    sender = _Sender(client, settings, time.monotonic())
    pending = pending_lines(source, results, find_repeated(source), on_result)
    await run_lines(pending, results, sender.send, asyncio.Semaphore(settings.concurrency), on_result)


async def run_lines(
    lines: Iterator[Line], results: Results, send: Send, places: asyncio.Semaphore, on_result: OnResult
) -> None:
    """Send each line and append its result; raise what `send` raises, and cancel the rest.

    A request takes one of `places` before its line is read, and holds it until its result is written. Batches that
    share them take turns, and none reads ahead.
    """
    try:
        async with asyncio.TaskGroup() as group:
            await places.acquire()
            try:
                while (line := next(lines, None)) is not None:
                    task = group.create_task(_run_line(line, results, send, on_result))
                    task.add_done_callback(lambda _: places.release())
                    await places.acquire()
            finally:
                places.release()
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None


def pending_lines(source: Path, results: Results, repeated: Mapping[int, int], on_result: OnResult) -> Iterator[Line]:
    """Yield the lines without a result, reading no further than asked; note lines that cannot be sent.

    `repeated` tells which lines have a custom_id of an earlier one (`find_repeated`).
    """
    for index, text in read_lines(source):
        crc32 = checksum(text)
        try:
            line = _parse_named_once(index, text, repeated)
        except LineError as error:
            if not results.is_done(index, crc32, error.custom_id):
                _write(results, Line(index, crc32, error.custom_id, "", {}), refusal(error), on_result)
            continue
        if not results.is_done(index, crc32, line.custom_id):
            yield line


async def _run_line(line: Line, results: Results, send: Send, on_result: OnResult) -> None:
    _write(results, line, await send(line), on_result)


def _write(results: Results, line: Line, reply: Reply, on_result: OnResult) -> None:
    results.append(line.index, line.crc32, result_line(line, reply), reply.is_failure)
    on_result(reply.num_output)


def _parse_named_once(index: int, text: bytes, repeated: Mapping[int, int]) -> Line:
    line = parse_line(index, text)
    if index in repeated:
        message = f"line {index}: custom_id {line.custom_id!r} is that of line {repeated[index]}"
        raise LineError(message, line.custom_id)
    return line


@dataclass(frozen=True, slots=True)
class _Sender:
    client: AsyncClient
    settings: BatchSettings
    started_s: float

    async def send(self, line: Line) -> Reply:
        """Return what a line comes to. Raises UnavailableError."""
        try:
            request = request_of(line)
            return answer(request, await self._generate(request), int(time.time()))
        except UnavailableError:
            raise
        except ClientError as error:
            return refusal(error)

    async def _generate(self, request: BatchRequest) -> Generation:
        index = request.line.index
        failure: ClientError = ExecutionError(f"line {index}: the server cancelled it")
        for wait_s in (0.0, *lost_waits_s(self.settings.first_wait_s)):
            await asyncio.sleep(wait_s)
            try:
                generation = await self.client.generate(request.prompt, **self._options(request))
            except (UnavailableError, ExecutionError) as error:
                failure = error
            except (ValueError, TypeError) as error:  # a value that no request can carry
                raise InvalidRequestError(f"line {index}: {type(error).__name__}: {error}") from error
            else:
                if generation.finish_reason != "cancelled":
                    return generation
        raise failure

    def _options(self, request: BatchRequest) -> Options:
        options: Options = {"max_tokens": self.settings.max_tokens, **request.options, "priority_class": "be"}
        if self.settings.finish_by_s is not None:
            left_s = self.started_s + self.settings.finish_by_s - time.monotonic()
            if left_s > 0.0:
                options["deadline_s"] = left_s
        return options


def lost_waits_s(first_wait_s: float) -> list[float]:
    """Return the waits before the second and each further attempt of a request that was lost."""
    return [first_wait_s * 2**number for number in range(_MAX_ATTEMPTS - 1)]
