"""In float32 a request's logits are bitwise the same whether it borrows a prefix or computes it, under any schedule."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from backend.core.clock import VirtualClock
from backend.core.executor import ExecutorCapacity
from backend.core.plan import StepBatch, StepOutput, StepResult
from backend.core.request import PrefixSource, PriorityClass, Request, RequestId, SamplingParams, Slo
from backend.engine.engine import Engine, Submit
from backend.engine.scheduler import Scheduler, make_scheduler
from backend.executors.torch_engine import load
from backend.executors.torch_engine.executor import TorchExecutor
from backend.executors.torch_engine.inputs import StepInputs
from backend.executors.torch_engine.settings import Dtype, TorchSettings
from backend.policy.settings import SchedulerSettings
from tests.backend.executors.torch_engine.models import VOCAB_SIZE, save_tiny_model

NUM_TURNS = 3
NUM_OUTPUT = 9
Logits = dict[tuple[str, int], torch.Tensor]  # by request and known tokens

ONE_BY_ONE: dict[str, object] = {"policy": "fcfs", "max_seqs_per_step": 1}
SCHEDULES: dict[str, tuple[dict[str, object], dict[str, int]]] = {
    "one by one": (ONE_BY_ONE, {}),
    "all at once": ({}, {}),
    "chunks of 7": ({}, {"max_tokens_per_step": 7}),
    "chunks of 64": ({}, {"max_tokens_per_step": 64}),
    "preempted, copied back": ({}, {"num_blocks": 20, "max_tokens_per_step": 64}),
    "preempted, recomputed": ({"checkpoints": False}, {"num_blocks": 20, "max_tokens_per_step": 64}),
    "evicted, copied back": (
        {"prefix_host_tokens": 1_000, "latency_coefficients": (1e-3, 1e-4, 0.0, 0.0, 0.0, 0.0)},
        {"num_blocks": 12, "max_tokens_per_step": 64},
    ),
    "no sharing of blocks": ({"sharing": False}, {"num_blocks": 20}),
    "whole victims": ({"policy": "priority"}, {"num_blocks": 20}),
}


class Recorded:
    """The executor, and its model, with every row of logits kept."""

    def __init__(self, inner: TorchExecutor, capacity: ExecutorCapacity) -> None:
        self.inner, self._capacity = inner, capacity
        self.logits: Logits = {}
        self._batch: StepBatch | None = None
        self._model = inner.model

    @property
    def vocab_size(self) -> int:
        return self._model.vocab_size

    def forward(self, inputs: StepInputs) -> torch.Tensor:
        logits = self._model.forward(inputs)
        assert self._batch is not None
        for index, row in zip(inputs.sampled, logits, strict=True):
            sequence = self._batch.sequences[index]
            self.logits[sequence.request_id, len(sequence.token_ids)] = row.clone()
        return logits

    def capacity(self) -> ExecutorCapacity:
        return self._capacity

    def execute(self, batch: StepBatch) -> StepResult:
        self._batch, self.inner.model = batch, self
        try:
            step_s = 1e-3 + 1e-4 * sum(
                batch.num_new_tokens
            )  # as if copies were free: the plans do not depend on the load
            return replace(self.inner.execute(batch), duration_s=step_s)
        finally:
            self.inner.model = self._model

    def close(self) -> None:
        """The inner one is closed by who made it."""


@pytest.fixture(scope="module")
def executor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchExecutor]:
    settings = TorchSettings(
        model_path=str(save_tiny_model(tmp_path_factory.mktemp("tiny"))),
        dtype=Dtype.FLOAT32,
        num_kv_tokens=4_000,
        host_kv_gib=0.01,
        max_tokens_per_step=2_048,
        num_threads=1,
    )
    executor = load(settings, lambda _stage, _fraction: None)
    assert isinstance(executor, TorchExecutor)
    yield executor
    executor.close()


def converse(executor: TorchExecutor, knobs: dict[str, object], sizes: dict[str, int]) -> tuple[Logits, Scheduler]:
    """Let conversations with a common beginning take turns; return all logits."""
    recorded = Recorded(executor, replace(executor.capacity(), **sizes))  # type: ignore[arg-type]  # the test's own
    scheduler = make_scheduler(SchedulerSettings(**{"prefix_caching": True, **knobs}), recorded.capacity())  # type: ignore[arg-type]  # as above
    failures: list[StepOutput] = []
    engine = Engine(
        scheduler, recorded, VirtualClock(), lambda output: failures.append(output) if output.failed else None
    )
    draw = np.random.default_rng(0)
    common = draw.integers(3, VOCAB_SIZE, 40).tolist()
    histories = [common[: 40 - 9 * index] + draw.integers(3, VOCAB_SIZE, 30).tolist() for index in range(4)]
    for turn in range(NUM_TURNS):
        requests = [
            _request(f"{index}.{turn}", history, is_rt=index % 2 == 0) for index, history in enumerate(histories)
        ]
        for request in requests:
            engine.post(Submit(request))
        while engine.step():
            scheduler.check_invariants()
        histories = [request.token_ids + draw.integers(3, VOCAB_SIZE, 5).tolist() for request in requests]
    assert not failures
    return recorded.logits, scheduler


def _request(name: str, prompt: list[int], is_rt: bool) -> Request:
    return Request(
        request_id=RequestId(name),
        priority_class=PriorityClass.REAL_TIME if is_rt else PriorityClass.BEST_EFFORT,
        prompt_token_ids=tuple(prompt),
        sampling=SamplingParams(max_tokens=NUM_OUTPUT, ignore_eos=True),
        arrival_s=0.0,
        slo=Slo(0.5, 0.1) if is_rt else None,
    )


@pytest.fixture(scope="module")
def expected(executor: TorchExecutor) -> Logits:
    return converse(executor, {**ONE_BY_ONE, "prefix_caching": False}, {})[0]


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_logits_are_bitwise_the_same_with_a_borrowed_prefix(
    schedule: tuple[dict[str, object], dict[str, int]], executor: TorchExecutor, expected: Logits
) -> None:
    logits, scheduler = converse(executor, *schedule)
    assert logits.keys() == expected.keys()
    assert all(torch.equal(row, expected[key]) for key, row in logits.items())
    found = scheduler.stats().total_prefix_tokens
    assert sum(num for (_, source), num in found.items() if source is PrefixSource.HIT) > 100
    assert not schedule[0].get("prefix_host_tokens") or found[PriorityClass.REAL_TIME, PrefixSource.HOST] >= 16
