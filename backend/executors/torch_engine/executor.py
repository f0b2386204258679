"""TorchExecutor: runs the scheduler's steps on a real model."""

from __future__ import annotations

import time
from typing import Protocol

import torch

from backend.core.errors import ExecutorError
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
            token_ids, log_probs = self._compute(batch)
        except Exception as error:
            raise ExecutorError(f"a step of {sum(batch.num_new_tokens)} tokens failed: {error}") from error
        return StepResult(token_ids, time.perf_counter() - started_s, log_probs)

    def close(self) -> None:
        """Drop model and pools."""
        self.__dict__.pop("model", None)
        self.__dict__.pop("pool", None)

    def _compute(self, batch: StepBatch) -> tuple[list[int | None], list[float | None] | None]:
        token_ids: list[int | None] = [None] * len(batch.sequences)
        log_probs: list[float | None] = [None] * len(batch.sequences)
        if not batch.sequences:
            return token_ids, None
        inputs = pack(batch)
        self._check_fits(inputs)
        logits = self.model.forward(inputs)
        sequences = [batch.sequences[index] for index in inputs.sampled]
        for index, token_id, log_prob in zip(inputs.sampled, *self._sampler.sample(logits, sequences), strict=True):
            token_ids[index] = token_id
            log_probs[index] = log_prob
        return token_ids, log_probs if any(s.sampling.wants_log_probs for s in batch.sequences) else None

    def _check_fits(self, inputs: StepInputs) -> None:
        """Assert that every index lies inside the buffers: compiled kernels write without a check."""
        capacity = self._capacity
        smallest, largest = int(inputs.token_ids.min()), int(inputs.token_ids.max())
        assert 0 <= smallest <= largest < self.model.vocab_size, f"token ids {smallest} to {largest}"
        num_slots = capacity.num_blocks * capacity.block_size
        assert inputs.num_tokens <= capacity.max_tokens_per_step, f"{inputs.num_tokens} tokens in a step"
        assert int(inputs.positions.max()) < capacity.max_seq_len, f"position {inputs.positions.max()}"
        assert 0 <= int(inputs.slots.min()) <= int(inputs.slots.max()) < num_slots, f"a slot is not below {num_slots}"
