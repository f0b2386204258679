"""GpuExecutor: steps that take as long as they would on a real GPU by `bench.sim.step_models`, on a virtual clock."""

from __future__ import annotations

import time
from operator import add, attrgetter, eq

from backend.core.clock import VirtualClock
from backend.core.executor import ExecutorCapacity
from backend.core.plan import Sequenced, StepBatch, StepResult
from bench.sim.disturbance import Disturbance, steady
from bench.sim.step_models import Pair, StepWork

TOKEN_ID, END_ID = 7, 8  # the simulated model always says the first, but for an end that is not max_tokens
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
        self.ends: dict[str, int] = {}  # request id -> tokens of an output that ends before max_tokens
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
        if self.ends:
            token_ids = [
                said and self._said(sequence) for sequence, said in zip(batch.sequences, token_ids, strict=True)
            ]
        self.cpu_s += time.thread_time() - start_s
        return StepResult(token_ids=token_ids, duration_s=duration_s)

    def _said(self, sequence: Sequenced) -> int:
        """Return the next token of `sequence`."""
        num_output = len(sequence.token_ids) + 1 - sequence.num_prompt
        return END_ID if num_output == self.ends.get(sequence.request_id) else TOKEN_ID

    def close(self) -> None:
        return
