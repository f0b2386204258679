"""The engine: one thread that plans, commits, executes and reports, step after step.

Read `Engine.step` first; everything else feeds it or carries its results away. Other threads reach the engine through
one bounded inbox; results leave through `emit`, which must not block.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from backend.core.clock import Clock
from backend.core.errors import BrosError, ExecutorError, OverloadedError, shorten
from backend.core.executor import Executor
from backend.core.plan import FailedRequest, StepBatch, StepOutput, StepPlan, StepResult
from backend.core.request import Request, RequestId
from backend.engine.scheduler import Scheduler

logger = logging.getLogger(__name__)

MAX_INBOX = 65_536  # commands; far above any sum of queue limits, so that only a stuck engine reaches it

Emit = Callable[[StepOutput], None]
Record = Callable[[StepPlan, StepBatch, StepResult, StepOutput], None]  # called after each step, on the engine's thread


@dataclass(frozen=True, slots=True)
class Submit:
    """Take `request` in."""

    request: Request


@dataclass(frozen=True, slots=True)
class Cancel:
    """End a request; an unknown or finished one is ignored."""

    request_id: RequestId


@dataclass(frozen=True, slots=True)
class Inspect:
    """Call `look(scheduler)` on the engine's thread, between two steps."""

    look: Callable[[Scheduler], None]


Command = Submit | Cancel | Inspect


class Engine:
    """Scheduler, executor and clock put together; owned by the thread that calls `run` (or `step`)."""

    def __init__(
        self, scheduler: Scheduler, executor: Executor, clock: Clock, emit: Emit, record: Record | None = None
    ) -> None:
        self.scheduler = scheduler
        self.executor = executor
        self.clock = clock
        self.error: BaseException | None = None  # what ended `run`, if it was not `stop`
        self._emit = emit
        self._record = record or (lambda *_: None)
        self._inbox: deque[Command] = deque()
        self._inbox_bytes = 0  # of the requests in it
        self._wake = threading.Condition()
        self._stopping = False

    @property
    def honours_plans(self) -> bool:
        """Always true: the policy plans each step. An engine with a loop of its own may let it admit requests only."""
        return True

    @property
    def can_be_inspected(self) -> bool:
        return True

    def step(self) -> bool:
        """Run one step; return False when there was nothing to do."""
        self._drain_inbox()
        plan = self.scheduler.plan(self.clock.now_s())  # a decision: nothing has moved
        if plan.is_empty:
            return False
        batch = self.scheduler.commit(plan)  # blocks and queues change in this call only
        result = self._execute(batch)  # time passes in this call only
        if result is not None:
            output = self.scheduler.complete(batch, result, self.clock.now_s())
            self._emit(output)
            self._note(plan, batch, result, output)
        return True

    def post(self, command: Command) -> None:
        """Hand a command to the engine's thread. Raises OverloadedError when the inbox is full; never blocks."""
        with self._wake:
            if len(self._inbox) >= MAX_INBOX and not isinstance(command, Cancel):
                raise OverloadedError(f"engine inbox: {MAX_INBOX} commands are waiting", retry_after_s=1.0)
            if isinstance(command, Submit):
                self._take_bytes(command.request.num_bytes)
            self._inbox.append(command)
            self._wake.notify()

    def _take_bytes(self, num_bytes: int) -> None:
        """Count a request into the inbox, which may hold as much as a queue; called with the lock held."""
        max_bytes = self.scheduler.view.settings.max_waiting_bytes
        if self._inbox_bytes and self._inbox_bytes + num_bytes > max_bytes:
            raise OverloadedError(f"engine inbox: {self._inbox_bytes} bytes are waiting, of {max_bytes}", 1.0)
        self._inbox_bytes += num_bytes

    def run(self) -> None:
        """Step until `stop`; sleep while there is nothing to do. Raises what broke it, after failing all requests."""
        try:
            while not self._stopping:
                if not self.step():
                    self._wait_for_work()
        except BaseException as error:
            self.error = error
            logger.exception("the engine stops: %s", error)
            raise
        finally:
            reason = ExecutorError(f"the engine stopped: {self.error or 'shut down'}")
            self._emit(self.scheduler.fail_all(reason, self.clock.now_s()))

    def stop(self) -> None:
        """Make `run` return after the current step; requests still in the engine fail."""
        with self._wake:
            self._stopping = True
            self._wake.notify()

    def _execute(self, batch: StepBatch) -> StepResult | None:
        """Run the executor. An error that it raises ends the requests of this step, and no others."""
        try:
            return self.executor.execute(batch)
        except Exception as error:
            what = f"a step of {len(batch.sequences)} requests failed"
            logger.error("%s: %s", what, error, exc_info=error)
            failure = error if isinstance(error, ExecutorError) else ExecutorError(f"{what}: {shorten(repr(error))}")
            self._emit(self.scheduler.fail(batch, failure, self.clock.now_s()))
            return None

    def _note(self, plan: StepPlan, batch: StepBatch, result: StepResult, output: StepOutput) -> None:
        """Record a step. An error in the recording, such as a full disk, ends no request."""
        try:
            self._record(plan, batch, result, output)
        except Exception as error:
            logger.error("a step was not recorded: %s", error, exc_info=not isinstance(error, OSError))

    def _drain_inbox(self) -> None:
        while self._inbox:
            match self._inbox.popleft():
                case Submit(request):
                    with self._wake:
                        self._inbox_bytes -= request.num_bytes
                    self._submit(request)
                case Cancel(request_id):
                    self._emit(self.scheduler.cancel(request_id, self.clock.now_s()))
                case Inspect(look):
                    look_at(self.scheduler, look)

    def _submit(self, request: Request) -> None:
        try:
            self.scheduler.add(request, self.clock.now_s())
        except BrosError as error:
            self._emit(StepOutput(failed=(FailedRequest(request, error),)))

    def _wait_for_work(self) -> None:
        """Sleep until a command arrives, or until the scheduler expects to have work of its own."""
        due_s = self.scheduler.next_event_s()
        timeout_s = None if due_s is None else max(0.0, due_s - self.clock.now_s())
        with self._wake:
            self._wake.wait_for(lambda: self._inbox or self._stopping, timeout_s)


def look_at(scheduler: Scheduler, look: Callable[[Scheduler], None]) -> None:
    """Call `look`, which changes nothing. An error in it is logged and ends no request."""
    try:
        look(scheduler)
    except Exception as error:
        logger.error("the scheduler was not looked at: %s", error, exc_info=error)
