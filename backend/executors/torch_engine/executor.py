"""TorchExecutor: runs the scheduler's steps on a real model."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Protocol

import torch

from backend.core.errors import BrosError, ExecutorError
from backend.core.executor import ExecutorCapacity
from backend.core.plan import StepBatch, StepResult
from backend.executors.torch_engine.inputs import StepInputs, pack
from backend.executors.torch_engine.kv_pool import KVPool
from backend.executors.torch_engine.sampler import Sampler


class Model(Protocol):
    """Layers that run one step."""

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding: token ids from 0 on."""
        ...

    def forward(self, inputs: StepInputs) -> torch.Tensor:
        """Write the step's K and V to the pool; return float32 logits [num_sampled, vocabulary]."""
        ...


class TorchExecutor:
    """An `Executor` over a torch model. Everything is owned by the engine's thread."""

    def __init__(self, model: Model, pool: KVPool, sampler: Sampler, capacity: ExecutorCapacity) -> None:
        self.model = model
        self.pool = pool
        self._sampler = sampler
        self._capacity = capacity

    def capacity(self) -> ExecutorCapacity:
        return self._capacity

    @torch.inference_mode()
    def execute(self, batch: StepBatch) -> StepResult:
        """Copy, compute and sample. Raises ExecutorError for whatever goes wrong, out of memory for instance."""
        started_s = time.perf_counter()
        try:
            if len(batch.copies_out):
                self.pool.copy_out(batch.copies_out)
            if len(batch.copies_in):
                self.pool.copy_in(batch.copies_in)
            result = self._compute(batch)
        except Exception as error:
            raise ExecutorError(f"a step of {sum(batch.num_new_tokens)} tokens failed: {error}") from error
        return replace(result, duration_s=time.perf_counter() - started_s)

    def close(self) -> None:
        """Drop model and pools."""
        self.__dict__.pop("model", None)
        self.__dict__.pop("pool", None)

    def _compute(self, batch: StepBatch) -> StepResult:
        """Return the step's result; its duration is not known here."""
        token_ids: list[int | None] = [None] * len(batch.sequences)
        log_probs: list[float | None] = [None] * len(batch.sequences)
        errors: dict[int, BrosError] = {}
        if not batch.sequences:
            return StepResult(token_ids, 0.0)
        inputs = pack(batch)
        self._check_fits(inputs)
        logits = self.model.forward(inputs)
        chosen = self._sampler.sample(logits, [batch.sequences[index] for index in inputs.sampled])
        for index, token_id, log_prob in zip(inputs.sampled, chosen.token_ids, chosen.log_probs, strict=True):
            token_ids[index] = token_id
            log_probs[index] = log_prob
        for row, error in chosen.errors.items():
            token_ids[inputs.sampled[row]] = None
            errors[inputs.sampled[row]] = error
        wants_log_probs = any(s.sampling.wants_log_probs for s in batch.sequences)
        return StepResult(token_ids, 0.0, log_probs if wants_log_probs else None, errors)

    def _check_fits(self, inputs: StepInputs) -> None:
        """Assert that every index lies inside the buffers: compiled kernels write without a check."""
        capacity = self._capacity
        smallest, largest = int(inputs.token_ids.min()), int(inputs.token_ids.max())
        assert 0 <= smallest <= largest < self.model.vocab_size, f"token ids {smallest} to {largest}"
        num_slots = capacity.num_blocks * capacity.block_size
        assert inputs.num_tokens <= capacity.max_tokens_per_step, f"{inputs.num_tokens} tokens in a step"
        assert int(inputs.positions.max()) < capacity.max_seq_len, f"position {inputs.positions.max()}"
        assert 0 <= int(inputs.slots.min()) <= int(inputs.slots.max()) < num_slots, f"a slot is not below {num_slots}"
