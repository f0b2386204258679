"""Runs requests through an executor under any schedule: chunked, batched, shared blocks, preempted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from backend.core.executor import Executor
from backend.core.plan import StepBatch
from backend.core.request import PriorityClass, Request, RequestId, SamplingParams
from kv.types import SlotCopy


def make_request(name: str, prompt: Sequence[int], **sampling: object) -> Request:
    params = SamplingParams(**sampling)  # type: ignore[arg-type] # the test's own keywords
    return Request(RequestId(name), PriorityClass.REAL_TIME, tuple(prompt), params, arrival_s=0.0)


@dataclass(frozen=True, slots=True)
class Schedule:
    """How a run proceeds. Every `preempt_every` steps (0: never) each running request loses a random end of its slots,
    copied to the host pool and back or recomputed. `is_random`: draw chunk and batch of each step anew."""

    chunk: int = 1 << 20
    batch: int = 1
    preempt_every: int = 0
    copies_back: bool = False
    is_random: bool = False
    seed: int = 0


@dataclass(slots=True, eq=False)
class Runner:
    """A scheduler as small as can be. Even rows fill blocks from the left, odd rows from the right, so that pairs of
    requests share blocks."""

    executor: Executor
    schedule: Schedule
    random: np.random.Generator = field(init=False)
    slot_table: np.ndarray[tuple[int, ...], np.dtype[np.int32]] = field(init=False)
    free_heads: list[int] = field(init=False)
    free_tails: list[int] = field(init=False)
    free_host: list[int] = field(init=False)

    def __post_init__(self) -> None:
        capacity = self.executor.capacity()
        self.random = np.random.default_rng(self.schedule.seed)
        self.slot_table = np.zeros((64, capacity.max_seq_len), np.int32)
        blocks = self.random.permutation(capacity.num_blocks) * capacity.block_size
        half = capacity.block_size // 2
        self.free_heads = [int(b) + i for b in blocks for i in range(half)][::-1]
        self.free_tails = [int(b) + i for b in blocks for i in range(capacity.block_size - 1, half - 1, -1)][::-1]
        self.free_host = list(range(capacity.num_host_slots))

    def run(self, requests: Sequence[Request]) -> list[list[int]]:
        """Run to the end; return each request's output tokens."""
        for row, request in enumerate(requests):
            request.row = row
        step = 0
        while waiting := [r for r in requests if r.num_output < r.sampling.max_tokens]:
            chosen = self._choose(waiting)
            self._execute(chosen)
            step += 1
            for request in waiting:
                if request.num_output == request.sampling.max_tokens:
                    self._release(request, 0)
            waiting = [r for r in waiting if r.num_output < r.sampling.max_tokens]
            if self.schedule.preempt_every and step % self.schedule.preempt_every == 0:
                for request in waiting:
                    self._preempt(request)
        return [request.token_ids[request.num_prompt :] for request in requests]

    def _choose(self, waiting: list[Request]) -> list[tuple[Request, int]]:
        chunk, batch = self.schedule.chunk, self.schedule.batch
        if self.schedule.is_random:
            chunk, batch = int(self.random.integers(1, 65)), int(self.random.integers(1, batch + 1))
            waiting = [waiting[i] for i in self.random.permutation(len(waiting))]
        return [(request, min(chunk, request.num_uncomputed)) for request in waiting[:batch]]

    def _execute(self, chosen: list[tuple[Request, int]]) -> None:
        for request, num_new in chosen:
            self._grow(request, request.num_computed, num_new)
        batch = StepBatch([r for r, _ in chosen], [n for _, n in chosen], self.slot_table)
        result = self.executor.execute(batch)
        for (request, num_new), token_id in zip(chosen, result.token_ids, strict=True):
            request.num_computed += num_new
            assert (token_id is not None) == (request.num_uncomputed == 0)
            if token_id is not None:
                request.token_ids.append(token_id)

    def _side(self, request: Request) -> list[int]:
        assert request.row is not None
        return self.free_tails if request.row % 2 else self.free_heads

    def _grow(self, request: Request, start: int, num_slots: int) -> None:
        free = self._side(request)
        for position in range(start, start + num_slots):
            self.slot_table[request.row, position] = free.pop()

    def _release(self, request: Request, num_kept: int) -> None:
        """Give slots back, overwriting nothing yet: the next to grow takes them first."""
        self._side(request).extend(self._slots(request, num_kept, request.num_computed)[::-1].tolist())
        request.num_computed = num_kept

    def _slots(self, request: Request, start: int, end: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
        assert request.row is not None
        return self.slot_table[request.row, start:end].copy()

    def _preempt(self, request: Request) -> None:
        start, end = int(self.random.integers(0, request.num_computed + 1)), request.num_computed
        lost = self._slots(request, start, end)
        host = np.array([self.free_host.pop() for _ in lost], np.int32)
        self._release(request, start)
        if self.schedule.copies_back:
            self._copy(StepBatch([], [], self.slot_table, copies_out=SlotCopy(lost, host)))
            self.random.shuffle(self._side(request))
            self._grow(request, start, end - start)
            back = self._slots(request, start, end)
            self._copy(StepBatch([], [], self.slot_table, copies_in=SlotCopy(back, host)))
            request.num_computed = end
        self.free_host.extend(host.tolist())

    def _copy(self, batch: StepBatch) -> None:
        assert self.executor.execute(batch).token_ids == []


def random_prompts(num_prompts: int, max_length: int, vocab_size: int, seed: int = 0) -> Iterator[list[int]]:
    """Yield prompts of 1 to `max_length` tokens; lengths grow by a constant factor, so that most are short."""
    random = np.random.default_rng(seed)
    for length in np.geomspace(1, max_length, num_prompts).round().astype(int):
        yield random.integers(3, vocab_size, length).tolist()
