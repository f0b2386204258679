"""VllmEngine: the engine's face over vLLM, whose steps it takes one by one.

post ──inbox──► add_request ──► vLLM's core, in this process: BrosScheduler, executor, workers
emit ◄──StepOutput, one per step──┘
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from dataclasses import dataclass
from typing import Protocol, cast

from backend.core.clock import Clock
from backend.core.errors import BrosError, ExecutorError, InvalidRequestError, OverloadedError, shorten
from backend.core.request import FinishReason, Request, RequestId
from backend.engine.admission import check_admissible
from backend.engine.engine import MAX_INBOX, Cancel, Command, Emit, Inspect, Submit, look_at
from backend.engine.scheduler import Scheduler
from backend.engine.stats import SchedulerStats
from backend.executors.foreign.answers import Answers, log_prob_at
from backend.executors.foreign.source import Ticket
from backend.executors.vllm.sampling import FINISH_REASONS
from backend.executors.vllm.steering import Steering
from backend.executors.vllm.surface import RequestOutput
from backend.policy.view import SchedulerView
from kv.manager import KVCacheManager

logger = logging.getLogger(__name__)

_IDLE_S = 0.002  # between two steps that run nothing, where requests wait for their time


class Runtime(Protocol):
    """vLLM as the engine uses it; see `runtime.py`."""

    def submit(self, ticket: Ticket) -> None: ...
    def abort(self, request_id: RequestId) -> None: ...
    def forget(self, request_id: RequestId) -> None: ...
    def step(self) -> list[RequestOutput]: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Inspected:
    """What an inspector reads of a scheduler."""

    view: SchedulerView
    kv: KVCacheManager
    steering: Steering

    def stats(self) -> SchedulerStats:
        return self.steering.stats()


class VllmEngine:
    """Serves through vLLM. `run` belongs to one thread, the one that loaded vLLM; `post` and `stop` to any."""

    def __init__(self, runtime: Runtime, steering: Steering, clock: Clock, emit: Emit) -> None:
        self.error: BaseException | None = None  # what ended `run`, if it was not `stop`
        self.clock = clock
        self._runtime = runtime
        self._steering = steering
        self._emit = emit
        self._answers = Answers()
        self._tickets: dict[RequestId, Ticket] = {}  # inside vLLM
        self._num_submitted = 0
        self._inbox: deque[Command] = deque()
        self._wake = threading.Condition()  # guards the inbox and the one below
        self._stopping = False

    @property
    def honours_plans(self) -> bool:
        """Whether each step is our policy's; false after an error of ours, when vLLM schedules by itself."""
        return self._steering.honours_plans

    @property
    def can_be_inspected(self) -> bool:
        return True

    @property
    def max_seq_len(self) -> int:
        """The longest prompt and output together, in tokens."""
        return self._steering.pilot.view.limits.max_seq_len

    def stats(self) -> SchedulerStats:
        """Return where the scheduling stands."""
        return self._steering.stats()

    def post(self, command: Command) -> None:
        """Hand a command to the engine's thread. Raises OverloadedError when the inbox is full; never blocks."""
        with self._wake:
            if len(self._inbox) >= MAX_INBOX and not isinstance(command, Cancel):
                raise OverloadedError(f"engine inbox: {MAX_INBOX} commands are waiting", retry_after_s=1.0)
            self._inbox.append(command)
            self._wake.notify()

    def stop(self) -> None:
        """Make `run` return after the current step; requests still in the engine fail."""
        with self._wake:
            self._stopping = True
            self._wake.notify()

    def run(self) -> None:
        """Serve until `stop`. What vLLM raises in a step fails every request and ends it."""
        try:
            while not self._stopping:
                if not self.step():
                    self._wait_for_work()
        except BaseException as error:
            self.error = error
            logger.exception("the engine stops: %s", error)
            raise
        finally:
            self._end_all(ExecutorError(f"the engine stopped: {shorten(str(self.error or 'shut down'))}"))
            self._runtime.close()

    def step(self) -> bool:
        """Run one step; return False when there was nothing to do."""
        self._drain_inbox()
        if not self._tickets:
            self._steering.come_to_rest()
            self._flush()
            return False
        outputs = self._runtime.step()
        now_s = self.clock.now_s()
        for output in outputs:
            self._note(output, now_s)
        self._flush()
        return bool(outputs) or not self._steering.was_idle

    def _wait_for_work(self) -> None:
        """Sleep until something is posted; where requests wait for their time, until the next look at them."""
        with self._wake:
            self._wake.wait_for(lambda: self._inbox or self._stopping, _IDLE_S if self._tickets else None)

    def _drain_inbox(self) -> None:
        while self._inbox:
            match self._inbox.popleft():
                case Submit(request):
                    self._add(request)
                case Cancel(request_id):
                    self._cancel(request_id)
                case Inspect(look):
                    pilot = self._steering.pilot
                    pilot.mirror.settle()
                    look_at(cast(Scheduler, Inspected(pilot.view, pilot.mirror.kv, self._steering)), look)

    def _add(self, request: Request) -> None:
        request.arrival_index = self._num_submitted
        self._num_submitted += 1
        try:
            self._check(request)
            ticket = Ticket(request)
            self._runtime.submit(ticket)
            self._tickets[request.request_id] = ticket
        except BrosError as error:
            self._answers.fail(request, error)
        except Exception as error:  # whatever vLLM finds wrong with one request is that request's error
            kind = InvalidRequestError if isinstance(error, ValueError) else ExecutorError
            self._answers.fail(request, kind(f"vLLM refused {request.request_id!r}: {shorten(str(error))}"))

    def _check(self, request: Request) -> None:
        """Raise a BrosError for a request that is not to be queued."""
        pilot = self._steering.pilot
        if self._steering.honours_plans:
            check_admissible(pilot.view, pilot.policy, request, self.clock.now_s(), begun_per_s=0.0)
        settings = pilot.view.settings
        if len(self._tickets) >= (max_open := settings.max_waiting_rt + settings.max_waiting_be):
            raise OverloadedError(f"vLLM: {max_open} requests are open", retry_after_s=1.0)

    def _cancel(self, request_id: RequestId) -> None:
        if (ticket := self._tickets.pop(request_id, None)) is not None:
            self._runtime.abort(request_id)
            self._end(ticket, FinishReason.CANCELLED)

    def _note(self, output: RequestOutput, now_s: float) -> None:
        """Carry what came of a request to its client."""
        ticket = self._tickets.get(RequestId(output.request_id))
        if ticket is None:
            return  # cancelled
        answer = output.outputs[0]
        num_top = ticket.request.sampling.num_top_log_probs
        for position, token_id in enumerate(answer.token_ids):
            log_prob = log_prob_at(answer.logprobs, position, token_id, num_top)
            self._answers.note_token(ticket.request, token_id, log_prob, now_s)
        if output.finished:
            del self._tickets[ticket.request.request_id]
            self._runtime.forget(ticket.request.request_id)
            self._end(ticket, FINISH_REASONS.get(answer.finish_reason or "", FinishReason.ERROR))

    def _end(self, ticket: Ticket, reason: FinishReason) -> None:
        request = ticket.request
        request.num_preemptions = ticket.num_preemptions
        request.num_cached = ticket.num_cached
        request.first_scheduled_s = ticket.first_scheduled_s
        self._answers.finish(request, reason)

    def _flush(self) -> None:
        if len(self._answers):
            self._emit(self._answers.take())

    def _end_all(self, error: BrosError) -> None:
        self._drain_inbox()
        for ticket in self._tickets.values():
            self._answers.fail(ticket.request, error)
        self._tickets.clear()
        self._flush()
