"""GpuExecutor: steps that take as long as they would on a real GPU by `bench.sim.step_models`, on a virtual clock."""

from __future__ import annotations

import time
from operator import add, attrgetter, eq

from backend.core.clock import VirtualClock
from backend.core.executor import ExecutorCapacity
from backend.core.plan import StepBatch, StepResult
from bench.sim.disturbance import Disturbance, steady
from bench.sim.step_models import Pair, StepWork

TOKEN_ID = 7  # what the simulated model always says; requests ignore the end of sequence
_TOKEN_IF = (None, TOKEN_ID)  # by whether a sequence reached its last known token
_num_computed, _token_ids = attrgetter("num_computed"), attrgetter("token_ids")


class GpuExecutor:
    """An `Executor` that computes nothing and advances `clock` by the modelled time of each step."""

    def __init__(
        self, pair: Pair, capacity: ExecutorCapacity, clock: VirtualClock, disturbed: Disturbance = steady
    ) -> None:
        self._pair = pair
        self._disturbed = disturbed
        self._capacity = capacity
        self._clock = clock
        self.cpu_s = 0.0  # processor time spent in here, to be told from the cost of scheduling

    def capacity(self) -> ExecutorCapacity:
        return self._capacity

    def execute(self, batch: StepBatch) -> StepResult:
        start_s = time.thread_time()
        starts, counts = list(map(_num_computed, batch.sequences)), batch.num_new_tokens
        num_copied = len(batch.copies_out) + len(batch.copies_in)
        duration_s = self._pair.step_s(StepWork.of_sequences(starts, counts, num_copied))
        duration_s = self._disturbed(duration_s, self._clock.now_s())
        self._clock.advance(duration_s)
        num_known = map(len, map(_token_ids, batch.sequences))
        token_ids = list(map(_TOKEN_IF.__getitem__, map(eq, num_known, map(add, starts, counts))))
        self.cpu_s += time.thread_time() - start_s
        return StepResult(token_ids=token_ids, duration_s=duration_s)

    def close(self) -> None:
        return
