"""TorchExecutor: runs the scheduler's steps on a real model."""

from __future__ import annotations

import time
from typing import Protocol

import torch

from backend.errors import ExecutorError
from backend.executors import ExecutorCapacity
from backend.executors.torch_engine.attention import SlotAttention
from backend.executors.torch_engine.inputs import StepInputs, pack
from backend.executors.torch_engine.kv_pool import KVPool
from backend.executors.torch_engine.sampler import Sampler
from backend.plan import StepBatch, StepResult


class Model(Protocol):
    """Layers that run one step."""

    def forward(self, inputs: StepInputs, pool: KVPool, attention: SlotAttention) -> torch.Tensor:
        """Write the step's K and V to `pool`; return float32 logits [num_sampled, vocabulary]."""
        ...


class TorchExecutor:
    """An `Executor` over a torch model. Everything is owned by the engine's thread."""

    def __init__(
        self, model: Model, pool: KVPool, attention: SlotAttention, sampler: Sampler, capacity: ExecutorCapacity
    ) -> None:
        self._model = model
        self._pool = pool
        self._attention = attention
        self._sampler = sampler
        self._capacity = capacity

    def capacity(self) -> ExecutorCapacity:
        return self._capacity

    @torch.inference_mode()
    def execute(self, batch: StepBatch) -> StepResult:
        """Copy, compute and sample. Raises ExecutorError for what torch raises, out of memory for instance."""
        started_s = time.perf_counter()
        try:
            if len(batch.copies_out):
                self._pool.copy_out(batch.copies_out)
            if len(batch.copies_in):
                self._pool.copy_in(batch.copies_in)
            token_ids, log_probs = self._compute(batch)
        except (RuntimeError, MemoryError) as error:
            raise ExecutorError(f"a step of {sum(batch.num_new_tokens)} tokens failed: {error}") from error
        return StepResult(token_ids, time.perf_counter() - started_s, log_probs)

    def close(self) -> None:
        """Drop model and pools."""
        self.__dict__.pop("_model", None)
        self.__dict__.pop("_pool", None)

    def _compute(self, batch: StepBatch) -> tuple[list[int | None], list[float | None] | None]:
        token_ids: list[int | None] = [None] * len(batch.sequences)
        log_probs: list[float | None] = [None] * len(batch.sequences)
        if not batch.sequences:
            return token_ids, None
        inputs = pack(batch)
        logits = self._model.forward(inputs, self._pool, self._attention)
        sequences = [batch.sequences[index] for index in inputs.sampled]
        for index, token_id, log_prob in zip(inputs.sampled, *self._sampler.sample(logits, sequences), strict=True):
            token_ids[index] = token_id
            log_probs[index] = log_prob
        return token_ids, log_probs if any(s.sampling.wants_log_probs for s in batch.sequences) else None
