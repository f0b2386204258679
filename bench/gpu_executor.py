"""GpuExecutor: steps that take as long as they would on a real GPU by `bench.step_models`, on a virtual clock."""

from __future__ import annotations

import time

from backend.clock import VirtualClock
from backend.executors import ExecutorCapacity
from backend.plan import StepBatch, StepResult
from bench.step_models import Pair, StepWork

TOKEN_ID = 7  # what the simulated model always says; requests ignore the end of sequence


class GpuExecutor:
    """An `Executor` that computes nothing and advances `clock` by the modelled time of each step."""

    def __init__(self, pair: Pair, capacity: ExecutorCapacity, clock: VirtualClock) -> None:
        self._pair = pair
        self._capacity = capacity
        self._clock = clock
        self.cpu_s = 0.0  # processor time spent in here, to be told from the cost of scheduling

    def capacity(self) -> ExecutorCapacity:
        return self._capacity

    def execute(self, batch: StepBatch) -> StepResult:
        start_s = time.thread_time()
        spans = [(sequence.num_computed, n) for sequence, n in zip(batch.sequences, batch.num_new_tokens, strict=True)]
        num_copied = len(batch.copies_out) + len(batch.copies_in)
        duration_s = self._pair.step_s(StepWork.of_sequences(spans, num_copied))
        self._clock.advance(duration_s)
        token_ids = [
            TOKEN_ID if start + n == len(sequence.token_ids) else None
            for sequence, (start, n) in zip(batch.sequences, spans, strict=True)
        ]
        self.cpu_s += time.thread_time() - start_s
        return StepResult(token_ids=token_ids, duration_s=duration_s)

    def close(self) -> None:
        return
