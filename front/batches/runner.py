"""Runs batches to their end, from any state. The disk holds the state; memory holds only the running tasks."""

from __future__ import annotations

import asyncio
import errno
import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from msgspec.structs import replace

from client.batch.lines import Line, Reply
from client.batch.results import BatchFileError, Results, open_results
from client.batch.run import pending_lines, run_lines
from client.batch.sender import Answer, Sender
from front.batches.check import CheckStoppedError, check_input
from front.batches.disk import Disk
from front.batches.objects import Batch, Counts, InputError, Status, StoredFile
from front.batches.settings import WINDOW_S, BatchSettings
from front.batches.settle import results_counts, settle

_LOG = logging.getLogger(__name__)
Clock = Callable[[], float]  # Unix time, seconds


class Runner:
    """Runs every batch in a task of its own; they take turns at the engine. Belongs to one event loop."""

    def __init__(self, disk: Disk, answer: Answer, settings: BatchSettings, now_s: Clock = time.time) -> None:
        self._disk = disk
        self._answer = answer
        self._settings = settings
        self._now_s = now_s
        self._open_requests = asyncio.Semaphore(settings.max_open_requests)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._stops: dict[str, asyncio.Event] = {}
        self._results: dict[str, Results] = {}
        self._counts: dict[str, Counts] = {}  # of those that wait for the disk
        self._checks = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checks")  # files of others never wait
        self._is_closing = False

    def start(self, batch: Batch) -> None:
        """Run a batch that has not ended."""
        self._stops[batch.id] = asyncio.Event()
        task = self._tasks[batch.id] = asyncio.create_task(self._live(batch))
        task.add_done_callback(lambda _: self._forget(batch.id))

    def stop(self, batch_id: str) -> None:
        """Break off a batch whose status has become CANCELLING."""
        if (stop := self._stops.get(batch_id)) is not None:
            stop.set()

    def counts(self, batch: Batch) -> Counts:
        """Return how far a batch is."""
        if batch.status.is_end:
            return batch.counts
        if (results := self._results.get(batch.id)) is None:
            return self._counts.get(batch.id, batch.counts)
        return results_counts(results, batch.counts.total)

    async def join(self) -> None:
        """Wait until all batches have ended."""
        await asyncio.gather(*self._tasks.values())

    async def close(self) -> None:
        """Leave all batches where they stand; their open requests are cancelled."""
        self._is_closing = True
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._checks.shutdown(cancel_futures=True)

    def _forget(self, batch_id: str) -> None:
        del self._tasks[batch_id], self._stops[batch_id]
        self._counts.pop(batch_id, None)

    async def _live(self, batch: Batch) -> None:
        """Take a batch to its end. A disk that refuses is waited for; any other error ends the batch."""
        flaws: list[InputError] = []
        while not batch.status.is_end:
            try:
                batch = await (self._fail(batch, flaws) if flaws else self._advance(batch))
            except Exception as error:
                if _is_of_the_disk(error) or flaws:
                    _LOG.warning("batch %s waits for the disk: %s", batch.id, error)
                    await asyncio.sleep(self._settings.disk_wait_s)
                else:
                    _LOG.exception("batch %s failed here", batch.id)
                    flaws = [_flaw(error)]

    async def _advance(self, batch: Batch) -> Batch:
        """Do what a batch's status asks for; return the batch as it then stands."""
        match batch.status:
            case Status.VALIDATING:
                return await self._check(batch)
            case Status.IN_PROGRESS:
                return await self._run(batch)
            case Status.CANCELLING:
                return await self._end(batch, Status.CANCELLED)
            case _:
                return await self._end(batch, Status.COMPLETED)

    async def _check(self, batch: Batch) -> Batch:
        path, stop = self._disk.folder.content(batch.input_id), self._stops[batch.id]
        try:
            num_lines, errors = await asyncio.get_running_loop().run_in_executor(
                self._checks,
                lambda: check_input(path, batch.endpoint, self._settings.max_lines, lambda: self._is_stopped(stop)),
            )
        except CheckStoppedError:
            return await self._move(batch, Status.CANCELLING)
        if errors:
            return await self._fail(batch, errors)
        return await self._move(replace(batch, counts=Counts(total=num_lines)), Status.IN_PROGRESS)

    def _is_stopped(self, stop: asyncio.Event) -> bool:
        return self._is_closing or stop.is_set()

    async def _run(self, batch: Batch) -> Batch:
        stop = self._stops[batch.id]
        async with self._opened(batch) as results:
            has_ended = await _until(self._send(batch, results), stop, self._left_s(batch))
            batch = replace(batch, counts=results_counts(results, batch.counts.total))
        if has_ended:
            return await self._move(batch, Status.FINALIZING)
        return await (self._move(batch, Status.CANCELLING) if stop.is_set() else self._end(batch, Status.EXPIRED))

    async def _send(self, batch: Batch, results: Results) -> None:
        sender = Sender(self._answer, lambda: 1e3 * max(1e-3, self._left_s(batch)), self._settings.first_wait_s)
        lines = pending_lines(self._disk.folder.content(batch.input_id), results, {}, _ignore)
        room = _Room(self._disk, batch.owner, self._settings)

        async def send(line: Line) -> Reply:
            await room.look()
            return await sender.send(line)

        await room.look()
        await run_lines(room.only_with(lines), results, send, self._open_requests, _ignore)
        room.require()

    def _left_s(self, batch: Batch) -> float:
        """Return the rest of a batch's window: all of it at most, where the clock was set back."""
        return min(float(WINDOW_S), batch.expires_s - self._now_s())

    @asynccontextmanager
    async def _opened(self, batch: Batch) -> AsyncIterator[Results]:
        """Open the results of a batch; reading them and putting them on the disk takes a thread of its own."""
        content = self._disk.folder.content
        manager = open_results(content(batch.output_id), content(batch.errors_id))
        results = self._results[batch.id] = await asyncio.to_thread(manager.__enter__)
        try:
            yield results
        finally:
            self._counts[batch.id] = self.counts(batch)  # while the batch waits for the disk
            del self._results[batch.id]
            await asyncio.to_thread(manager.__exit__, None, None, None)

    async def _end(self, batch: Batch, status: Status) -> Batch:
        settled, files = await asyncio.to_thread(settle, self._disk.folder, batch, status, int(self._now_s()))
        return await self._move(settled, status, files)

    async def _fail(self, batch: Batch, errors: list[InputError]) -> Batch:
        return await self._move(replace(batch, errors=errors), Status.FAILED)

    async def _move(self, batch: Batch, status: Status, files: Sequence[StoredFile] = ()) -> Batch:
        return await self._disk(self._disk.store.move, batch.moved(status, int(self._now_s())), files)


class _Room:
    """Looks now and then whether there is room for more answers: that of a key, and that of all.

    Where there is none, no line begins; those that are open end, and their answers are kept.
    """

    def __init__(self, disk: Disk, owner: str, settings: BatchSettings) -> None:
        self._disk = disk
        self._owner = owner
        self._settings = settings
        self._turn = asyncio.Lock()
        self._next_s = 0.0  # of the event loop's clock
        self._lack: str | None = None
        self._holds_back = False

    def only_with(self, lines: Iterator[Line | None]) -> Iterator[Line | None]:
        """Yield `lines` up to the first that finds no room."""
        for line in lines:
            if line is not None and self._lack is not None:
                self._holds_back = True
                return
            yield line

    def require(self) -> None:
        """Raise OSError, as a full disk does, where a line found no room."""
        if self._holds_back:
            raise OSError(errno.EDQUOT, self._lack)

    async def look(self) -> None:
        """Look, where the last time is long ago. Callers go on in their order."""
        async with self._turn:
            now_s = asyncio.get_running_loop().time()
            if now_s >= self._next_s:
                self._next_s = now_s + self._settings.room_check_s
                # The first lack stays: lines have ended for it, also where there is room again.
                self._lack = self._lack or await self._disk(self._disk.lack_of_room, self._owner, 0, self._settings)


async def _until(work: Coroutine[None, None, None], stop: asyncio.Event, left_s: float) -> bool:
    """Return whether `work` came to its end before `stop` was set and `left_s` seconds were over; else cancel it."""
    task, stopped = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({task, stopped}, timeout=max(0.0, left_s), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            return False
        task.result()
        return True
    finally:
        task.cancel()
        stopped.cancel()
        await asyncio.gather(task, stopped, return_exceptions=True)


def _is_of_the_disk(error: Exception) -> bool:
    """Return whether the same may go well later: a full disk, a database that is locked. No file that is gone."""
    if isinstance(error, FileNotFoundError):
        return False
    is_file_error = isinstance(error, BatchFileError) and isinstance(error.__cause__, OSError)
    return is_file_error or isinstance(error, OSError | sqlite3.Error)


def _flaw(error: Exception) -> InputError:
    if isinstance(error, BatchFileError):
        return InputError(code="damaged_files", message=str(error))
    if isinstance(error, FileNotFoundError):
        return InputError(code="missing_file", message="a file of this batch is gone")
    return InputError(code="server_error", message=f"the front door failed: {type(error).__name__}")


def _ignore(_: int) -> None:
    """Progress is read from the results."""
