"""Executors run steps: the simulator, the torch engine and TensorRT-LLM behind one protocol.

Heavy imports stay inside each executor's own modules, which are loaded when the executor is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from backend.core.plan import StepBatch, StepResult


@dataclass(frozen=True, slots=True)
class ExecutorCapacity:
    """What an executor can hold and do in one step. A slot is a position of KV; there are `num_blocks * block_size`.

    weight_bytes, kv_bytes, host_kv_bytes: memory planned for weights and pools; 0 where the executor plans none.
    """

    block_size: int
    num_blocks: int
    num_host_slots: int
    max_seq_len: int
    max_tokens_per_step: int
    max_seqs_per_step: int
    fills_from_right: bool = True  # False: blocks fill from the left only, so the KV manager works in whole blocks
    host_copy_s_per_token: float = 0.0  # to the host pool or back; 0 where there is no pool
    description: str = ""  # what it runs on, in one line, for people
    weight_bytes: int = 0
    kv_bytes: int = 0
    host_kv_bytes: int = 0
    vocab_size: int | None = None  # token ids that the model knows, from 0 on; None where there is no model


class Executor(Protocol):
    """Runs one step at a time; called from the engine's thread only."""

    def capacity(self) -> ExecutorCapacity: ...

    def execute(self, batch: StepBatch) -> StepResult:
        """Compute one step, blocking. Raises ExecutorError; then the batch's requests are lost, the executor is not."""
        ...

    def close(self) -> None:
        """Release everything; idempotent."""
        ...
