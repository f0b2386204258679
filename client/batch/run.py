"""Runs a batch: some requests at a time, each line of the input until it has one line of output.

`run_lines` is told who answers; `run_batch` asks the engine itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from client.batch.lines import Line, LineError, Reply, checksum, parse_line, refused, result_line
from client.batch.results import Results, find_repeated, read_lines
from client.batch.sender import FIRST_WAIT_S, Sender
from client.choices import Calls, Pace, complete
from client.client import AsyncClient
from client.openai.asked import Json
from client.openai.errors import ApiError
from client.openai.job import batch_job

_MAX_SHOWN = 60  # characters of a custom_id in an error
_SKIPPED_BYTES = 64 * 1024  # of lines with a result, in one turn of the event loop


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """How to run. `finish_by_s`: seconds from the start, after which requests go on without a deadline.

    `max_tokens` is for lines that do not say; `first_wait_s` before a lost request is sent again doubles each time.
    """

    concurrency: int = 32
    max_tokens: int = 256
    finish_by_s: float | None = None
    first_wait_s: float = FIRST_WAIT_S


OnResult = Callable[[int], None]  # the result's number of output tokens; 0 for a failure
Send = Callable[[Line], Awaitable[Reply]]


async def run_batch(
    client: AsyncClient, source: Path, results: Results, settings: BatchSettings, on_result: OnResult
) -> None:
    """Send what has no result yet and append its result. Raises UnavailableError when the server is gone for good;
    cancelling it cancels the open requests. Run again, it goes on where it was."""

    calls = Calls(settings.concurrency, Pace(), settings.concurrency)

    async def answer(url: str, body: bytes, left_ms: float | None) -> Json:
        return await complete(client, batch_job(url, body, left_ms, settings.max_tokens, takes_any_model=True), calls)

    sender = Sender(answer, _left_ms(settings), settings.first_wait_s, waits_for_engine=False)
    pending = pending_lines(source, results, find_repeated(source), on_result)
    places = asyncio.Semaphore(settings.concurrency)
    await run_lines(pending, results, sender.send, places, on_result)


async def run_lines(
    lines: Iterator[Line | None], results: Results, send: Send, places: asyncio.Semaphore, on_result: OnResult
) -> None:
    """Send each line and append its result; raise what `send` raises, and cancel the rest.

    None among the lines is a moment for others of the event loop.

    A request takes one of `places` before its line is read, and holds it until its result is written. Batches that
    share them take turns, and none reads ahead.
    """
    try:
        async with asyncio.TaskGroup() as group:
            while (line := await _next_line(lines, places)) is not None:
                task = group.create_task(_run_line(line, results, send, on_result))
                task.add_done_callback(lambda _: places.release())
    except ExceptionGroup as errors:
        first = errors.exceptions[0]
        raise first from first.__cause__  # which says whether it was the disk


async def _next_line(lines: Iterator[Line | None], places: asyncio.Semaphore) -> Line | None:
    """Take one of `places`, and return the next line, which holds it. After the last one, give it back."""
    await places.acquire()
    line = None
    try:
        for line in lines:
            if line is not None:
                break
            await asyncio.sleep(0)  # others of the event loop go first
    finally:
        if line is None:
            places.release()
    return line


def pending_lines(
    source: Path, results: Results, repeated: Mapping[int, int], on_result: OnResult
) -> Iterator[Line | None]:
    """Yield the lines without a result, reading no further than asked; note lines that cannot be sent.

    Yield None after each `_SKIPPED_BYTES` that have their results. `repeated` tells which lines have a custom_id of an
    earlier one (`find_repeated`).
    """
    num_skipped = 0
    for index, text in read_lines(source):
        line = _pending(index, text, results, repeated, on_result)
        num_skipped += len(text)
        if line or num_skipped > _SKIPPED_BYTES:
            num_skipped = 0
            yield line


def _pending(
    index: int, text: bytes, results: Results, repeated: Mapping[int, int], on_result: OnResult
) -> Line | None:
    """Return a line that has no result; None for one that has, or that cannot be sent, which is noted."""
    crc32 = checksum(text)
    if results.has(index, crc32):
        return None
    try:
        line = _parse_named_once(index, text, repeated)
    except LineError as error:
        if not results.is_done(index, crc32, error.custom_id):
            _write(results, Line(index, crc32, error.custom_id, "", b""), refused(ApiError(str(error))), on_result)
        return None
    return None if results.is_done(index, crc32, line.custom_id) else line


async def _run_line(line: Line, results: Results, send: Send, on_result: OnResult) -> None:
    _write(results, line, await send(line), on_result)


def _write(results: Results, line: Line, reply: Reply, on_result: OnResult) -> None:
    results.append(line.index, line.crc32, result_line(line, reply), reply.is_failure)
    on_result(reply.num_output)


def _parse_named_once(index: int, text: bytes, repeated: Mapping[int, int]) -> Line:
    line = parse_line(index, text)
    if index in repeated:
        message = f"line {index}: custom_id {str(line.custom_id)[:_MAX_SHOWN]!r} is that of line {repeated[index]}"
        raise LineError(message, line.custom_id)
    return line


def _left_ms(settings: BatchSettings) -> Callable[[], float | None]:
    """Return a function that tells how long the batch still has: None without a limit, and when its time is over."""
    if settings.finish_by_s is None:
        return lambda: None
    due_s = time.monotonic() + settings.finish_by_s
    return lambda: left_ms if (left_ms := (due_s - time.monotonic()) * 1e3) > 0.0 else None
