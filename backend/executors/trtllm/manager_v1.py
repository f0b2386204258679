"""KV manager V1 under MAX_UTILIZATION: a victim is paused, which frees its blocks and makes it prefill again.

Its capacity scheduler walks the list in our order. While an earlier request does not fit, it pauses started requests
from the end of the list. So victims go last. It allocates all blocks of a prompt with the first chunk.
"""

from __future__ import annotations

from typing import Any

from backend.executors.foreign.source import PoolSize
from backend.executors.trtllm.decision import Decision, Share
from backend.executors.trtllm.surface import LlmRequest, SchedulerOutput


class ManagerV1:
    """Adapter of `KVCacheManager` with `SimpleScheduler` or `SimpleUnifiedScheduler`."""

    keeps_kv = False
    has_chunked_prefill = True  # otherwise its micro-batch scheduler takes whole prompts only; ours offers chunks

    def __init__(self, inner: Any, kv: Any) -> None:
        self._inner = inner
        self._kv = kv
        self._micro_batch = inner.micro_batch_scheduler
        self._max_seqs: int = self._micro_batch.max_batch_size
        self._max_tokens: int = self._micro_batch.max_num_tokens
        self._block_size: int = kv.tokens_per_block
        config = getattr(self._micro_batch, "ctx_chunk_config", None)
        self._chunk_unit: int = getattr(config, "chunk_unit_size", self._block_size)

    def pool_size(self) -> PoolSize:
        return PoolSize(self._kv.get_kv_cache_stats().max_num_blocks, 0, self._block_size)

    def max_step(self) -> tuple[int, int]:
        return self._max_tokens, self._max_seqs

    def num_free_blocks(self) -> int:
        return int(self._kv.get_kv_cache_stats().free_num_blocks)

    def num_reserved_blocks(self, request: LlmRequest) -> int:
        if not request.is_context_init_state or request.is_first_context_chunk:
            return 0
        return self._blocks(request.prompt_len) - self._blocks(request.context_current_position)

    def is_resident(self, _: LlmRequest) -> bool:
        """Return True: a paused request starts over, so it has no computed KV that could be elsewhere."""
        return True

    def answer(self, decision: Decision, inflight_request_ids: set[int]) -> SchedulerOutput:
        shares, is_short = self._with_room(decision.shares)
        self._micro_batch.max_batch_size = min(self._max_seqs, decision.num_seqs)
        self._micro_batch.max_num_tokens = min(self._max_tokens, decision.num_tokens(self._chunk_unit))
        last = [*reversed(decision.withheld), *reversed(decision.victims)] if is_short else decision.victims[::-1]
        order = [*decision.passed_on, *(share.request for share in shares), *last]
        output: SchedulerOutput = self._inner.schedule_request(order, inflight_request_ids)
        return _pause(output, decision.victims)

    def release(self) -> None:
        self._micro_batch.max_batch_size = self._max_seqs
        self._micro_batch.max_num_tokens = self._max_tokens

    def _with_room(self, shares: Any) -> tuple[list[Share], bool]:
        """Leave out best-effort prompts that do not fit whole, because MAX_UTILIZATION would pause others for them.

        Return the other shares, and whether a real-time prompt does not fit. Then withheld requests must be in the
        list, so that they can be paused.
        """
        num_free = self.num_free_blocks()
        kept, is_short = [], False
        for share in shares:
            request = share.request
            is_new = request.is_context_init_state and request.is_first_context_chunk
            num_needed = self._blocks(request.prompt_len) if is_new else 0
            if num_needed > num_free and not share.is_rt:
                continue
            is_short = is_short or num_needed > num_free
            num_free -= num_needed
            kept.append(share)
        return kept, is_short

    def _blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self._block_size)


def _pause(output: SchedulerOutput, victims: Any) -> SchedulerOutput:
    """Add the victims to the requests that TensorRT-LLM paused by itself, unless it runs them."""
    known = {request.py_request_id for request in output.paused_requests}
    known |= {request.py_request_id for request in (*output.context_requests, *output.generation_requests)}
    paused = [request for request in victims if request.py_request_id not in known]
    return output._replace(paused_requests=[*output.paused_requests, *paused])
