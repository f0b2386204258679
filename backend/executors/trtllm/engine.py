"""TrtllmEngine: the engine's interface over TensorRT-LLM, which owns the step loop.

    post ──inbox──► gate ──generate_async──► TensorRT-LLM (inner mode: our scheduler inside its loop)
                                                  │ one task follows each answer
    emit ◄──StepOutput, one per turn of the loop──┘

One thread with one event loop owns the gate, the requests and the answers.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, cast

from backend.core.clock import Clock
from backend.core.errors import BrosError, ExecutorError, InvalidRequestError, OverloadedError, to_bros_error
from backend.core.request import FinishReason, Request, RequestId
from backend.engine.engine import MAX_INBOX, Cancel, Command, Emit, Inspect, Submit, look_at
from backend.engine.scheduler import Scheduler
from backend.engine.stats import SchedulerStats
from backend.executors.foreign.answers import Answers, log_prob_at
from backend.executors.foreign.source import Ticket
from backend.executors.trtllm.gate import Gate
from backend.executors.trtllm.runtime import Runtime
from backend.executors.trtllm.sampling import FINISH_REASONS
from backend.executors.trtllm.surface import CompletionOutput, RequestOutput

logger = logging.getLogger(__name__)


class Accounts(Protocol):
    """The source of the statistics: our scheduler inside TensorRT-LLM, or the gate alone."""

    @property
    def honours_plans(self) -> bool: ...

    def stats(self) -> SchedulerStats: ...

    async def note_answer(self) -> None:
        """Learn from an answer that has ended. The engine calls it after each."""
        ...


class TrtllmEngine:
    """Serves through TensorRT-LLM. `run` belongs to one thread; `post` and `stop` may be called from any."""

    def __init__(self, gate: Gate, runtime: Runtime, accounts: Accounts, clock: Clock, emit: Emit) -> None:
        self.error: BaseException | None = None  # the error that ended `run`
        self.clock = clock
        self._gate = gate
        self._runtime = runtime
        self._accounts = accounts
        self._emit = emit
        self._inside: dict[RequestId, tuple[Request, RequestOutput]] = {}  # until TensorRT-LLM releases them
        self._followers: set[asyncio.Task[None]] = set()
        self._answers = Answers()  # not emitted yet
        self._num_submitted = 0
        self._inbox: deque[Command] = deque()
        self._lock = threading.Lock()  # guards the inbox and the three below
        self._stopping = False
        self._loop: asyncio.AbstractEventLoop | None = None  # while `serve` runs
        self._wake = asyncio.Event()

    @property
    def honours_plans(self) -> bool:
        """Whether our policy plans each step (inner mode), or only the admission (outer mode)."""
        return self._accounts.honours_plans

    @property
    def can_be_inspected(self) -> bool:
        """False: TensorRT-LLM keeps the KV cache and its requests to itself."""
        return False

    @property
    def max_seq_len(self) -> int:
        """The longest prompt and output together, in tokens."""
        return self._gate.limits.max_tokens

    def stats(self) -> SchedulerStats:
        """Return a snapshot of the scheduler."""
        return self._accounts.stats()

    def post(self, command: Command) -> None:
        """Hand a command to the engine's thread. Never blocks. Raises OverloadedError when the inbox is full."""
        with self._lock:
            if len(self._inbox) >= MAX_INBOX and not isinstance(command, Cancel):
                raise OverloadedError(f"engine inbox: {MAX_INBOX} commands are waiting", retry_after_s=1.0)
            self._inbox.append(command)
            self._notify()

    def stop(self) -> None:
        """Make `run` return soon. Requests still in the engine fail."""
        with self._lock:
            self._stopping = True
            self._notify()

    def run(self) -> None:
        """Serve until `stop`. An unexpected error fails every request and ends it."""
        try:
            asyncio.run(self.serve())
        except BaseException as error:
            self.error = error
            logger.exception("the engine stops: %s", error)
            raise

    async def serve(self) -> None:
        """Serve on the running event loop until `stop`."""
        with self._lock:
            self._loop = asyncio.get_running_loop()
        error: BaseException | None = None
        try:
            while not self._stopping:
                self._wake.clear()
                self._drain_inbox()
                self._admit()
                self._flush()
                if self._runtime.is_shut_down():
                    raise ExecutorError("TensorRT-LLM has shut down")
                await self._wait_for_work()
        except BaseException as caught:
            error = caught
            raise
        finally:
            with self._lock:
                self._loop = None
            await self._end_all(ExecutorError(f"the engine stopped: {error or 'shut down'}"))
            self._runtime.close()

    def _notify(self) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._wake.set)

    def _drain_inbox(self) -> None:
        while self._inbox:
            match self._inbox.popleft():
                case Submit(request):
                    self._add(request)
                case Cancel(request_id):
                    self._cancel(request_id)
                case Inspect(look):
                    look_at(cast(Scheduler, self), look)  # an inspector calls only its `stats()`

    def _add(self, request: Request) -> None:
        request.arrival_index = self._num_submitted
        self._num_submitted += 1
        try:
            self._gate.add(request)
        except Exception as error:
            self._fail(request, to_bros_error(error, f"request {request.request_id!r} was not taken in"))

    def _cancel(self, request_id: RequestId) -> None:
        if (request := self._gate.withdraw(request_id)) is not None:
            self._finish(request, FinishReason.CANCELLED)
        elif request_id in self._inside:
            request, output = self._inside[request_id]
            self._finish(request, FinishReason.CANCELLED)
            output.abort()  # TensorRT-LLM releases it in an iteration or two; its follower waits for that

    def _admit(self) -> None:
        now_s = self.clock.now_s()
        for request in self._gate.refuse(now_s):
            late_s = now_s - request.arrival_s
            message = f"request {request.request_id!r}: its time to first token ran out after {late_s:.3f} s of waiting"
            self._fail(request, OverloadedError(message, retry_after_s=1.0))
        for request in self._gate.admit(now_s):
            request.first_scheduled_s = now_s
            ticket = Ticket(request)
            try:
                output = self._runtime.submit(ticket)
            except Exception as error:  # an error that concerns this request only
                self._gate.leave(request)
                refusal = ExecutorError(f"TensorRT-LLM refused {request.request_id!r}: {error}")
                self._fail(request, error if isinstance(error, InvalidRequestError) else refusal)
                continue
            self._inside[request.request_id] = (request, output)
            follower = asyncio.get_running_loop().create_task(self._follow(ticket, output))
            self._followers.add(follower)
            follower.add_done_callback(self._followers.discard)

    async def _wait_for_work(self) -> None:
        """Sleep until something is posted, a request ends, or a waiting one must be refused."""
        due_s = self._gate.next_refusal_s()
        timeout_s = None if due_s is None else max(0.0, due_s - self.clock.now_s())
        try:
            await asyncio.wait_for(self._wake.wait(), timeout_s)
        except TimeoutError:
            return

    async def _follow(self, ticket: Ticket, output: RequestOutput) -> None:
        """Record each token and the end of one answer, to be emitted to the client."""
        request = ticket.request
        num_seen = 0
        try:
            async for news in output:
                answer = news.outputs[0]
                self._note_tokens(request, answer, num_seen)
                num_seen = max(num_seen, len(answer.token_ids))
            request.num_preemptions = ticket.num_preemptions
            request.num_cached = ticket.num_cached
            request.first_scheduled_s = ticket.first_scheduled_s or request.first_scheduled_s
            self._finish(request, FINISH_REASONS.get(answer.finish_reason or "", FinishReason.ERROR))
            await self._accounts.note_answer()
        except Exception as error:  # TensorRT-LLM's iterator raises the errors of this request
            self._fail(request, ExecutorError(f"TensorRT-LLM failed {request.request_id!r}: {error}"))
        finally:
            del self._inside[request.request_id]
            self._runtime.forget(output)
            self._gate.leave(request)
            self._wake.set()

    def _note_tokens(self, request: Request, answer: CompletionOutput, num_seen: int) -> None:
        now_s = self.clock.now_s()
        with self._flushing():
            for position in range(num_seen, len(answer.token_ids)):
                token_id = answer.token_ids[position]
                self._answers.note_token(request, token_id, log_prob_at(answer.logprobs, position, token_id), now_s)

    def _finish(self, request: Request, reason: FinishReason) -> None:
        with self._flushing():
            self._answers.finish(request, reason)

    def _fail(self, request: Request, error: BrosError) -> None:
        with self._flushing():
            self._answers.fail(request, error)

    @contextmanager
    def _flushing(self) -> Iterator[None]:
        """Emit at the end of this turn of the loop, so that the tokens of one step are sent together."""
        was_empty = not len(self._answers)
        yield
        if was_empty and len(self._answers):
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        if len(self._answers):
            self._emit(self._answers.take())

    async def _end_all(self, error: BrosError) -> None:
        """Fail every request, and wait until every follower has ended."""
        self._drain_inbox()
        for request in self._gate.requests():
            self._fail(request, error)
        for _, output in self._inside.values():
            output.abort()
        for follower in self._followers:
            follower.cancel()
        await asyncio.gather(*self._followers, return_exceptions=True)
        self._flush()
