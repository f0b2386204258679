"""KV manager V2: it suspends a victim and moves its KV to the tier below the GPU. Without a tier it recomputes it.

Its scheduler allocates while it schedules, generation before prefill. So a real-time prompt cannot displace decodes by
its position in the list. This adapter suspends victims before the call, and lists only the requests that run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from backend.executors.foreign.source import PoolSize
from backend.executors.trtllm.decision import Decision, is_started
from backend.executors.trtllm.surface import LlmRequest, SchedulerOutput

logger = logging.getLogger(__name__)

_MAX_STALLED = 100  # empty steps in a row after which TensorRT-LLM's deadlock error is raised


class ManagerV2:
    """Adapter of `KVCacheManagerV2` with `KVCacheV2Scheduler`.

    max_util_for_resume: share of used pages, 0 to 1, above which TensorRT-LLM resumes no request. The policy sees only
    the pages below it.
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
        """Call TensorRT-LLM's scheduler. While it can run nothing, evict one withheld request and call it again.

        Newer versions report a deadlock only after 1,000 such steps, for which a real-time request would wait. Once
        the scheduler reports a deadlock, requests that should run may be evicted, too.
        """
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
        """Return an empty step: a request whose last step is in flight will free its pages.

        Raises `error` after `_MAX_STALLED` such steps in a row.
        """
        self._num_stalled += 1
        if self._num_stalled >= _MAX_STALLED:
            raise error
        output: SchedulerOutput = self._inner.schedule_request([], inflight)
        return output

    def _evict(self, victims: Sequence[LlmRequest], at_most: int | None = None) -> list[LlmRequest]:
        """Take the pages of the first `at_most` resident `victims`, by default of all. Return those requests."""
        resident = [victim for victim in victims if self.is_resident(victim)][:at_most]
        for victim in resident:
            self._take_pages(victim)
        return resident

    def _amend(self, output: SchedulerOutput, evicted: list[LlmRequest]) -> SchedulerOutput:
        """Add the requests that we evicted to those that TensorRT-LLM evicted by itself."""
        if not evicted:
            return output
        field = "paused_requests" if self.keeps_kv else "recompute_paused_requests"
        return output._replace(**{field: [*getattr(output, field), *evicted]})

    def _pages(self, level: int) -> Any:
        """Return the statistics of the scarcest page group of a cache level: `total`, `free`, `available`."""
        return min(self._kv.impl.get_storage_statistics(level), key=lambda statistics: statistics.available)


def _has_effect(output: SchedulerOutput) -> bool:
    """Return whether a step runs or evicts a request."""
    paused = [*output.paused_requests, *getattr(output, "recompute_paused_requests", ())]
    return bool(output.context_requests or output.generation_requests or paused)


def has_lower_tier(kv: Any) -> bool:
    """Return whether a V2 manager has a cache tier below the GPU (host memory or disk)."""
    return bool(getattr(kv, "has_cache_tier_below_gpu", getattr(kv, "can_evict", False)))


def can_evict(inner: Any, kv: Any) -> bool:
    """Return whether this version lets us take pages from a request."""
    return has_lower_tier(kv) or hasattr(inner, "_recompute_pause_request")
