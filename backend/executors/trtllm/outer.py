"""Outer mode: TensorRT-LLM schedules its steps by itself. We decide only which requests enter it, and when."""

from __future__ import annotations

from backend.core.request import PriorityClass
from backend.engine.stats import ClassCounts, SchedulerStats
from backend.executors.trtllm.gate import Gate
from backend.executors.trtllm.runtime import Runtime
from kv.types import KVUsage


class GateAccounts:
    """Statistics of the gate. It counts best-effort blocks at their worst case: it cannot see inside TensorRT-LLM."""

    honours_plans = False

    def __init__(self, gate: Gate, runtime: Runtime, be_kv_ratio: float) -> None:
        self._gate = gate
        self._runtime = runtime
        self._be_kv_ratio = be_kv_ratio

    async def note_answer(self) -> None:
        """After an answer, ask for the size of the KV pool if it is still unknown."""
        if self._gate.limits.max_be_blocks or (size := await self._runtime.pool_size()) is None:
            return
        num_blocks, block_size = size
        self._gate.set_pool(num_blocks, block_size, int(self._be_kv_ratio * num_blocks))

    def stats(self) -> SchedulerStats:
        """Return a snapshot. Counts that need an inner scheduler are zero."""
        gate, limits = self._gate, self._gate.limits
        num_be_blocks = min(gate.num_be_blocks, limits.num_blocks)
        num_be_slots, num_slots = num_be_blocks * limits.block_size, limits.num_blocks * limits.block_size
        return SchedulerStats(
            requests={cls: ClassCounts(gate.num_waiting(cls), gate.num_inside(cls), 0) for cls in PriorityClass},
            kv=KVUsage(
                num_free_slots=num_slots - num_be_slots,
                num_head_slots=0,
                num_tail_slots=num_be_slots,
                num_free_blocks=limits.num_blocks - num_be_blocks,
                num_head_blocks=0,
                num_tail_blocks=num_be_blocks,
                num_shared_blocks=0,
                num_host_slots_used=0,
            ),
            latency_coefficients=(),
            latency_error_ratio=0.0,
            total_steps=0,
            total_step_tokens=dict.fromkeys(PriorityClass, 0),
            total_preemptions={},
            total_copied_out_tokens=0,
            total_copied_in_tokens=0,
            total_recomputed_tokens=0,
        )
