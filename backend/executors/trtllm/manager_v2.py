"""KV manager V2: a victim is suspended and its KV moves to the tier below the GPU; without a tier it is recomputed.

Its scheduler allocates while it schedules, generation before prefill, so a real-time prompt cannot displace decodes by
its place in the list: victims are suspended before the call, and who does not run is not in the list.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from backend.executors.foreign.source import PoolSize
from backend.executors.trtllm.decision import Decision, is_started
from backend.executors.trtllm.surface import LlmRequest, SchedulerOutput

logger = logging.getLogger(__name__)

_MAX_STALLED = 100  # steps in a row without anything, before TensorRT-LLM's deadlock error counts


class ManagerV2:
    """Adapter of `KVCacheManagerV2` with `KVCacheV2Scheduler`.

    max_util_for_resume: above this share of used pages TensorRT-LLM resumes nobody, so no policy is shown more pages.
    """

    def __init__(self, inner: Any, kv: Any, max_util_for_resume: float) -> None:
        self._inner = inner
        self._kv = kv
        self._max_seqs: int = self._inner.max_num_requests
        self._max_tokens: int = self._inner.max_num_tokens
        self._block_size: int = kv.tokens_per_block
        self.has_chunked_prefill: bool = self._inner.chunking_enabled
        self._chunk_unit: int = self._inner.chunk_unit_size if self.has_chunked_prefill else 1
        self.keeps_kv = has_lower_tier(kv)
        self._take_pages: Callable[[LlmRequest], None] = (  # the first V2 schedulers suspend by the KV manager alone
            getattr(inner, "_suspend_request", kv.suspend_request) if self.keeps_kv else inner._recompute_pause_request
        )
        self._num_stalled = 0
        self._num_unusable: int = round((1.0 - max_util_for_resume) * self._pages(0).total)

    def pool_size(self) -> PoolSize:
        num_host_blocks = self._pages(1).total if self.keeps_kv else 0
        return PoolSize(self._pages(0).total - self._num_unusable, num_host_blocks, self._block_size)

    def max_step(self) -> tuple[int, int]:
        return self._max_tokens, self._max_seqs

    def num_free_blocks(self) -> int:
        return max(0, int(self._pages(0).available) - self._num_unusable)

    def num_reserved_blocks(self, _: LlmRequest) -> int:
        return 0

    def is_resident(self, request: LlmRequest) -> bool:
        return bool(self._kv.is_request_active(request.py_request_id))

    def answer(self, decision: Decision, inflight_request_ids: set[int]) -> SchedulerOutput:
        evicted = self._evict(decision.victims)
        self._inner.max_num_requests = min(self._max_seqs, decision.num_seqs)
        self._inner.max_num_tokens = min(self._max_tokens, decision.num_tokens(self._chunk_unit))
        return self._amend(self._schedule(decision, evicted, inflight_request_ids), evicted)

    def release(self) -> None:
        self._inner.max_num_requests = self._max_seqs
        self._inner.max_num_tokens = self._max_tokens

    def _schedule(self, decision: Decision, evicted: list[LlmRequest], inflight: set[int]) -> SchedulerOutput:
        """Ask TensorRT-LLM's scheduler. Where it can run nothing, evict who is withheld, one after the other: newer
        versions call it a deadlock after 1,000 such steps only, and a real-time request would wait for them. Where it
        does say deadlock, those that were to run may be evicted, too."""
        runnable = [*decision.passed_on, *(share.request for share in decision.shares)]
        started = [request for request in reversed(runnable) if is_started(request)]
        while True:
            deadlock: RuntimeError | None = None
            try:
                output: SchedulerOutput = self._inner.schedule_request(runnable, inflight)
            except RuntimeError as error:
                if "deadlock" not in str(error):
                    raise
                deadlock = error
            else:
                self._num_stalled = 0
                if not decision.shares or _has_effect(output):
                    return output
            spare = [*decision.withheld, *(started if deadlock else ())]
            taken = self._evict(spare, at_most=1)
            if not taken:
                return self._wait_out(deadlock, inflight) if deadlock else output
            logger.warning("request %s is evicted: %s", taken[0].py_request_id, deadlock or "nothing could run")
            evicted += taken
            runnable = [request for request in runnable if request not in taken]

    def _wait_out(self, error: RuntimeError, inflight: set[int]) -> SchedulerOutput:
        """Return an empty step: pages of a request whose last step is in flight come back by themselves. Raises `error`
        when that has not helped for many steps."""
        self._num_stalled += 1
        if self._num_stalled >= _MAX_STALLED:
            raise error
        output: SchedulerOutput = self._inner.schedule_request([], inflight)
        return output

    def _evict(self, victims: Sequence[LlmRequest], at_most: int | None = None) -> list[LlmRequest]:
        """Take the pages of `victims`, as far as they have any; return those that lost theirs."""
        resident = [victim for victim in victims if self.is_resident(victim)][:at_most]
        for victim in resident:
            self._take_pages(victim)
        return resident

    def _amend(self, output: SchedulerOutput, evicted: list[LlmRequest]) -> SchedulerOutput:
        """Report those we evicted next to those that TensorRT-LLM evicted by itself."""
        if not evicted:
            return output
        field = "paused_requests" if self.keeps_kv else "recompute_paused_requests"
        return output._replace(**{field: [*getattr(output, field), *evicted]})

    def _pages(self, level: int) -> Any:
        """Return the statistics of the scarcest page group of a cache level: `total`, `free`, `available`."""
        return min(self._kv.impl.get_storage_statistics(level), key=lambda statistics: statistics.available)


def _has_effect(output: SchedulerOutput) -> bool:
    """Return whether a step runs or evicts anybody."""
    paused = [*output.paused_requests, *getattr(output, "recompute_paused_requests", ())]
    return bool(output.context_requests or output.generation_requests or paused)


def has_lower_tier(kv: Any) -> bool:
    """Return whether a V2 manager has a cache tier below the GPU (host memory or disk)."""
    return bool(getattr(kv, "has_cache_tier_below_gpu", getattr(kv, "can_evict", False)))


def can_evict(inner: Any, kv: Any) -> bool:
    """Return whether a scheduler of this version can take pages from a request at our request."""
    return has_lower_tier(kv) or hasattr(inner, "_recompute_pause_request")
