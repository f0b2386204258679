"""Fakes of both generations of TensorRT-LLM's KV manager and of the schedulers that go with them.

They have the limits of the real ones:

- V1 allocates a whole prompt with its first chunk, and pauses from the end of the list.
- V2 allocates while it schedules, and refuses to resume above a utilisation limit. It evicts from the end of the list
  for decodes only. It raises when candidates exist and nothing could be done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from tests.backend.executors.trtllm.fake_requests import FakeLlmRequest, Output12, OutputMain, State


def blocks_for(num_tokens: int, block_size: int) -> int:
    return -(-num_tokens // block_size)


# --- V1 ---------------------------------------------------------------------------------------------------------------


class FakeKVManagerV1:
    """`KVCacheManager`: blocks by request; the executor allocates after scheduling."""

    def __init__(self, num_blocks: int, tokens_per_block: int = 32, max_seq_len: int = 4096) -> None:
        self.tokens_per_block = tokens_per_block
        self.max_seq_len = max_seq_len
        self.num_blocks = num_blocks
        self.held: dict[int, int] = {}
        self.num_foreign = 0  # blocks that something else holds

    def get_kv_cache_stats(self) -> SimpleNamespace:
        return SimpleNamespace(
            max_num_blocks=self.num_blocks, free_num_blocks=self.num_free, tokens_per_block=self.tokens_per_block
        )

    @property
    def num_free(self) -> int:
        return self.num_blocks - self.num_foreign - sum(self.held.values())

    def needed_one_step(self, request: FakeLlmRequest) -> int:
        held = self.held.get(request.py_request_id, 0)
        num_tokens = request.prompt_len if request.is_context_init_state else request.num_tokens
        return max(0, blocks_for(num_tokens, self.tokens_per_block) - held)

    def allocate(self, request: FakeLlmRequest) -> None:
        needed = self.needed_one_step(request)
        assert needed <= self.num_free, f"request {request.py_request_id}: no free block"
        self.held[request.py_request_id] = self.held.get(request.py_request_id, 0) + needed

    def free_resources(self, request: FakeLlmRequest) -> None:
        self.held.pop(request.py_request_id, None)


class FakeCapacityScheduler:
    """`BindCapacityScheduler` under MAX_UTILIZATION: on a failure, the last started request of the list is paused."""

    def __init__(self, kv: FakeKVManagerV1, max_num_requests: int) -> None:
        self.kv_cache_manager = kv
        self.max_num_requests = max_num_requests
        self.impl = object()  # the C++ algorithm

    def schedule_request(self, active: Sequence[FakeLlmRequest]) -> tuple[list[Any], list[Any], list[Any]]:
        kv, fitting, paused = self.kv_cache_manager, [], []
        num_free, index, end = kv.num_free, 0, len(active)
        while index < end:
            request = active[index]
            needed = kv.needed_one_step(request)
            if request.state is State.GENERATION_TO_COMPLETE:
                index += 1
            elif needed <= num_free and len(fitting) < self.max_num_requests:
                num_free -= needed
                fitting.append(request)
                index += 1
            else:
                started = [i for i in range(index, end) if kv.held.get(active[i].py_request_id)]
                started = [i for i in started if active[i].state is not State.GENERATION_TO_COMPLETE]
                if not started:
                    break
                victim = active[end := started[-1]]
                paused.append(victim)
                num_free += kv.held[victim.py_request_id]
        return fitting, [], paused


class FakeMicroBatchScheduler:
    """`BindMicroBatchScheduler`: both limits are read on every call; prompts are chunked first come, first served."""

    def __init__(self, max_batch_size: int, max_num_tokens: int, chunk_unit: int) -> None:
        self.max_batch_size = max_batch_size
        self.max_num_tokens = max_num_tokens
        self.ctx_chunk_config = SimpleNamespace(chunk_unit_size=chunk_unit)

    def schedule(self, fitting: Sequence[FakeLlmRequest], inflight: set[int]) -> tuple[list[Any], list[Any]]:
        unit = self.ctx_chunk_config.chunk_unit_size
        return micro_batch(fitting, inflight, self.max_batch_size, self.max_num_tokens, unit)


def micro_batch(
    fitting: Sequence[FakeLlmRequest], inflight: set[int], max_seqs: int, max_tokens: int, unit: int
) -> tuple[list[Any], list[Any]]:
    """Return the context and generation requests of a step: the first `max_seqs`, decodes before chunks."""
    taken = [request for request in fitting if request.request_id not in inflight][:max_seqs]
    generation = [request for request in taken if not request.is_context_init_state][:max_tokens]
    tokens_left = max_tokens - len(generation)
    context = []
    for request in taken:
        if request.is_context_init_state and (size := chunk_of(request, tokens_left, unit)) > 0:
            request.context_chunk_size = size
            tokens_left -= size
            context.append(request)
    return context, generation


class FakeSchedulerV1:
    """`SimpleScheduler`."""

    def __init__(self, kv: FakeKVManagerV1, max_batch_size: int, max_num_tokens: int, output: Any = Output12) -> None:
        self.capacity_scheduler = FakeCapacityScheduler(kv, max_batch_size)
        self.micro_batch_scheduler = FakeMicroBatchScheduler(max_batch_size, max_num_tokens, kv.tokens_per_block)
        self._output = output

    def schedule_request(self, active: Sequence[FakeLlmRequest], inflight: set[int]) -> Any:
        fitting, disaggregated, paused = self.capacity_scheduler.schedule_request(active)
        context, generation = self.micro_batch_scheduler.schedule(fitting, inflight)
        extra = {"encoder_requests": []} if "encoder_requests" in self._output._fields else {}
        return self._output(
            context_requests=context,
            generation_requests=generation,
            paused_requests=paused,
            fitting_disagg_gen_init_requests=disaggregated,
            num_fitting_requests=len(fitting),
            **extra,
        )

    def can_schedule(self, requests: Sequence[FakeLlmRequest]) -> bool:
        return len(self.capacity_scheduler.schedule_request(requests)[0]) == len(requests)


# --- V2 ---------------------------------------------------------------------------------------------------------------


@dataclass
class FakeKVCache:
    """`_KVCache`: pages of one request, on the GPU or kept in the tier below."""

    num_blocks: int = 0
    is_active: bool = True


class FakeKVManagerV2:
    """`KVCacheManagerV2`: suspended pages keep their memory until another request needs it."""

    enable_block_reuse = False
    enable_joint_kv_cache_reuse = False
    block_reuse_policy = "per_request"
    num_extra_kv_tokens = 0
    kv_connector_manager = None
    is_draft = False
    _has_cp_helix = False

    def __init__(
        self,
        num_blocks: int,
        num_host_blocks: int = 0,
        tokens_per_block: int = 32,
        max_seq_len: int = 4096,
        max_util_for_resume: float = 0.95,
    ) -> None:
        self.tokens_per_block = tokens_per_block
        self.max_seq_len = max_seq_len
        self.num_blocks = num_blocks
        self.num_host_blocks = num_host_blocks
        self.max_util_for_resume = max_util_for_resume
        self.has_cache_tier_below_gpu = self.can_evict = num_host_blocks > 0
        self.kv_cache_map: dict[int, FakeKVCache] = {}
        self.num_foreign = 0
        self.num_refused_resumes = 0
        self.impl = SimpleNamespace(get_storage_statistics=self._statistics)

    @property
    def num_active(self) -> int:
        return sum(cache.num_blocks for cache in self.kv_cache_map.values() if cache.is_active) + self.num_foreign

    @property
    def num_suspended(self) -> int:
        return sum(cache.num_blocks for cache in self.kv_cache_map.values() if not cache.is_active)

    @property
    def num_available(self) -> int:
        """Pages that could be had: free ones, and suspended ones as far as the tier below takes them."""
        return self.num_blocks - self.num_active - max(0, self.num_suspended - self.num_host_blocks)

    def is_request_active(self, request_id: int) -> bool:
        cache = self.kv_cache_map.get(request_id)
        return cache is not None and cache.is_active

    def prepare_context(self, request: FakeLlmRequest, reuse_limit: int | None = None) -> bool:
        assert reuse_limit is None
        cache = self.kv_cache_map.setdefault(request.py_request_id, FakeKVCache(is_active=False))
        return cache.is_active or self._resume(cache)

    def resize_context(self, request: FakeLlmRequest, num_tokens: int) -> bool:
        return self._grow(request, request.context_current_position + num_tokens)

    def try_allocate_generation(self, request: FakeLlmRequest) -> bool:
        cache = self.kv_cache_map[request.py_request_id]
        return (cache.is_active or self._resume(cache)) and self._grow(request, request.num_tokens)

    def suspend_request(self, request: FakeLlmRequest) -> None:
        self.kv_cache_map[request.py_request_id].is_active = False

    def free_resources(self, request: FakeLlmRequest) -> None:
        self.kv_cache_map.pop(request.py_request_id, None)

    preempt_request = free_resources

    def _resume(self, cache: FakeKVCache) -> bool:
        num_used = self.num_active + cache.num_blocks
        cache.is_active = num_used <= self.max_util_for_resume * self.num_blocks
        self.num_refused_resumes += not cache.is_active
        return cache.is_active

    def _grow(self, request: FakeLlmRequest, num_tokens: int) -> bool:
        cache = self.kv_cache_map[request.py_request_id]
        needed = blocks_for(num_tokens, self.tokens_per_block) - cache.num_blocks
        if needed > self.num_available:
            return False
        cache.num_blocks += max(0, needed)
        return True

    def _statistics(self, level: int) -> list[SimpleNamespace]:
        if level == 1:
            return [SimpleNamespace(total=self.num_host_blocks, available=self.num_host_blocks)]
        return [SimpleNamespace(total=self.num_blocks, available=max(0, self.num_available))]


class FakeSchedulerV2:
    """`KVCacheV2Scheduler`. `patience`: stalled passes before the deadlock error (1 in 1.3rc, 1,000 on main)."""

    def __init__(
        self,
        kv: FakeKVManagerV2,
        max_batch_size: int,
        max_num_tokens: int,
        output: Any = OutputMain,
        patience: int = 1,
        chunking: bool = True,
    ) -> None:
        self.kv_cache_manager = kv
        self.max_num_requests = max_batch_size
        self.max_num_tokens = max_num_tokens
        self.chunking_enabled = chunking
        self.chunk_unit_size = kv.tokens_per_block
        self.scheduling_state_range = (State.CONTEXT_INIT, State.GENERATION_TO_COMPLETE)
        self._output = output
        self._patience = patience
        self._num_stalled = 0

    def schedule_request(self, active: Sequence[FakeLlmRequest], inflight: set[int]) -> Any:
        waiting = [r for r in active if r.is_context_init_state and r.request_id not in inflight]
        generation, evicted, end = [], [], len(active)
        index = 0
        while index < end and len(generation) < min(self.max_num_requests, self.max_num_tokens):
            request = active[index]
            index += 1
            if request.state is not State.GENERATION_IN_PROGRESS or request.request_id in inflight:
                continue
            end, has_room = self._allocate_generation(request, active, index, end, evicted)
            if not has_room:
                break
            generation.append(request)
        waiting = [request for request in waiting if request not in evicted]
        context = self._schedule_context(waiting, self.max_num_tokens - len(generation), len(generation))
        self._detect_deadlock(active, inflight, bool(generation or context or evicted))
        extra = {"encoder_requests": []} if "encoder_requests" in self._output._fields else {}
        return self._output(
            context_requests=context,
            generation_requests=generation,
            paused_requests=evicted,
            fitting_disagg_gen_init_requests=[],
            num_fitting_requests=len(context) + len(generation),
            **extra,
        )

    def can_schedule(self, requests: Sequence[FakeLlmRequest]) -> bool:
        return len(requests) <= self.max_num_requests

    def _suspend_request(self, request: FakeLlmRequest) -> None:
        self.kv_cache_manager.suspend_request(request)

    def _recompute_pause_request(self, request: FakeLlmRequest) -> None:
        self.kv_cache_manager.free_resources(request)

    def _allocate_generation(
        self, request: FakeLlmRequest, active: Sequence[FakeLlmRequest], index: int, end: int, evicted: list[Any]
    ) -> tuple[int, bool]:
        kv = self.kv_cache_manager
        while not kv.try_allocate_generation(request):
            started = [i for i in range(index, end) if kv.is_request_active(active[i].py_request_id)]
            if not started:
                if kv.is_request_active(request.py_request_id):
                    self._suspend_request(request)
                    evicted.append(request)
                return end, False
            end = started[-1]
            self._suspend_request(active[end])
            evicted.append(active[end])
        return end, True

    def _schedule_context(self, waiting: list[FakeLlmRequest], tokens_left: int, num_taken: int) -> list[Any]:
        kv, context = self.kv_cache_manager, []
        for request in waiting:
            if num_taken + len(context) >= self.max_num_requests:
                break
            unit = self.chunk_unit_size if self.chunking_enabled else 1 << 30
            size = chunk_of(request, tokens_left, unit)
            if size <= 0 or not kv.prepare_context(request):
                continue
            if not kv.resize_context(request, size):
                if request.is_first_context_chunk:
                    kv.free_resources(request)
                continue
            request.context_chunk_size = size
            tokens_left -= size
            context.append(request)
        return context

    def _detect_deadlock(self, active: Sequence[FakeLlmRequest], inflight: set[int], has_progress: bool) -> None:
        candidates = [r for r in active if r.state is not State.GENERATION_TO_COMPLETE and r.request_id not in inflight]
        if has_progress or not candidates:
            self._num_stalled = 0
            return
        self._num_stalled += 1
        if self._num_stalled >= self._patience:
            raise RuntimeError(
                f"V2 scheduler deadlock: {len(candidates)} request(s) active but none could be scheduled"
            )


def chunk_of(request: FakeLlmRequest, tokens_left: int, unit: int) -> int:
    """Return the chunk that fits, in whole units unless it ends the prompt."""
    remaining = request.context_remaining_length
    return remaining if remaining <= tokens_left else tokens_left // unit * unit
