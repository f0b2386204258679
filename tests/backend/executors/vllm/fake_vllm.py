"""vLLM's scheduler and engine as read in 0.32, as far as this adapter touches them. The model is made up.

The walk of `schedule` is vLLM's. It takes running requests in order, each by its uncomputed tokens. It then takes those
that wait, unless one was preempted. Without a free block, the last running request is preempted. Full blocks stay in a
prefix cache until others need them, those at the end of a request first.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from backend.core.clock import VirtualClock
from backend.core.request import RequestId
from backend.executors.foreign.source import Ticket
from backend.executors.vllm.steering import Steering
from backend.executors.vllm.surface import CompletionOutput, RequestOutput

STEP_S, TOKEN_S = 0.01, 0.0002


@dataclass(eq=False)
class FakeRequest:
    """A request in the scheduler. Token ids are its own number, so that only it can hit its blocks in the cache."""

    request_id: str
    num_prompt: int
    max_tokens: int
    num_output: int = 0
    num_computed_tokens: int = 0
    num_held_blocks: int = 0

    @property
    def num_tokens(self) -> int:
        return self.num_prompt + self.num_output


class FakePool:
    """Blocks: held, or free. Some free blocks still hold computed tokens; the oldest is reused first."""

    def __init__(self, num_blocks: int) -> None:
        self.num_gpu_blocks = num_blocks + 1  # block 0 is vLLM's own
        self.num_free = num_blocks
        self.cached: OrderedDict[tuple[str, int], None] = OrderedDict()

    def get_num_free_blocks(self) -> int:
        return self.num_free

    def take(self, num_blocks: int) -> bool:
        if num_blocks > self.num_free:
            return False
        self.num_free -= num_blocks
        while len(self.cached) > self.num_free:
            self.cached.popitem(last=False)
        return True


class FakeKVManager:
    def __init__(self, num_blocks: int, block_size: int, has_cache: bool) -> None:
        self.block_pool = FakePool(num_blocks)
        self.block_size = block_size
        self.has_cache = has_cache

    def get_computed_blocks(self, request: FakeRequest) -> tuple[Any, int, int]:
        num_hits, most = 0, (request.num_tokens - 1) // self.block_size if self.has_cache else 0
        while num_hits < most and (request.request_id, num_hits) in self.block_pool.cached:
            num_hits += 1
        return None, num_hits * self.block_size, 0

    def allocate(self, request: FakeRequest, num_computed: int, num_new: int) -> bool:
        num_needed = -(-(num_computed + num_new) // self.block_size) - request.num_held_blocks
        if num_needed > 0 and not self.block_pool.take(num_needed):
            return False
        request.num_held_blocks += max(0, num_needed)
        return True

    def free(self, request: FakeRequest) -> None:
        self.block_pool.num_free += request.num_held_blocks
        for index in reversed(range(request.num_computed_tokens // self.block_size if self.has_cache else 0)):
            self.block_pool.cached[request.request_id, index] = None
        request.num_held_blocks = 0


class FakeScheduler:
    """`BrosScheduler` on a scheduler that walks as vLLM's does."""

    def __init__(
        self, num_blocks: int, block_size: int, max_tokens: int, max_seqs: int, has_cache: bool = True
    ) -> None:
        self.requests: dict[str, FakeRequest] = {}
        self.running: list[FakeRequest] = []
        self.waiting: Any = deque()
        self.kv_holding_waiting: list[FakeRequest] = []
        self.max_num_running_reqs = self.max_num_active_reqs = max_seqs
        self.max_num_scheduled_tokens = max_tokens
        self.max_model_len = 4096
        self.block_size = block_size
        self.kv_cache_manager = FakeKVManager(num_blocks, block_size, has_cache)
        self.kv_cache_config = SimpleNamespace(kv_cache_groups=[None])
        self.connector = None
        self.scheduler_config = SimpleNamespace(enable_chunked_prefill=True)
        cache = SimpleNamespace(enable_prefix_caching=has_cache)
        self.vllm_config = SimpleNamespace(max_concurrent_batches=1, cache_config=cache)
        self.steering: Steering | None = None
        self.has_fallen_back = False
        self.has_caps = True
        self.num_preempted = 0

    def add_request(self, request: FakeRequest) -> None:
        self.waiting.add_request(request)
        self.requests[request.request_id] = request
        assert self.steering is not None
        self.steering.note_arrival(request)

    def finish(self, request: FakeRequest) -> None:
        """Let go of a request, which ended or was aborted."""
        if request in self.running:
            self.running.remove(request)
        else:
            self.waiting.remove_request(request)
        assert self.steering is not None
        self.steering.note_end(request)
        self.kv_cache_manager.free(request)
        del self.requests[request.request_id]

    def bind_caps(self, do_bind: bool) -> None:
        self.has_caps = do_bind

    def fall_back(self) -> None:
        self.has_fallen_back = True

    def schedule(self) -> Any:
        assert self.steering is not None
        return self.steering.schedule(self._schedule)

    def _schedule(self) -> Any:
        scheduled: dict[str, int] = {}
        budget, has_preempted, index = self.max_num_scheduled_tokens, False, 0
        while index < len(self.running) and budget > 0:
            request = self.running[index]
            num_new = self._limited(request, min(request.num_tokens - request.num_computed_tokens, budget))
            index += 1
            if num_new == 0:
                continue
            while not self.kv_cache_manager.allocate(request, request.num_computed_tokens, num_new):
                victim = self.running.pop()
                self._preempt_request(victim, 0.0)
                has_preempted = True
                if victim is request:
                    break
            if request not in self.running:
                break
            scheduled[request.request_id] = num_new
            budget -= num_new
        while self.waiting and not has_preempted and budget > 0 and len(self.running) < self.max_num_active_reqs:
            request = self.waiting.peek_request()
            num_hits = self.kv_cache_manager.get_computed_blocks(request)[1]
            num_new = self._limited(request, min(request.num_tokens - num_hits, budget))
            if num_new == 0 or not self.kv_cache_manager.allocate(request, num_hits, num_new):
                break
            self.running.append(self.waiting.pop_request())
            request.num_computed_tokens = num_hits
            scheduled[request.request_id] = num_new
            budget -= num_new
        for request_id, num_new in scheduled.items():
            self.requests[request_id].num_computed_tokens += num_new
        return SimpleNamespace(num_scheduled_tokens=scheduled)

    def _limited(self, request: FakeRequest, num_new: int) -> int:
        assert self.steering is not None
        return self.steering.cap(request, num_new) if self.has_caps else num_new

    def _preempt_request(self, request: FakeRequest, _timestamp: float) -> None:
        self.kv_cache_manager.free(request)
        request.num_computed_tokens = 0
        self.num_preempted += 1
        self.waiting.prepend_request(request)

    def _request_blocks_can_be_freed(self, _: FakeRequest) -> bool:
        return True


@dataclass
class FakeCompletion:
    token_ids: Sequence[int]
    logprobs: Sequence[Mapping[int, Any]] | None = None
    finish_reason: str | None = None


@dataclass
class FakeOutput:
    request_id: str
    outputs: Sequence[CompletionOutput]
    finished: bool


@dataclass
class FakeRuntime:
    """vLLM's engine: every step takes a made-up time; token number n of any request is n."""

    scheduler: FakeScheduler
    tickets: dict[str, Ticket]
    clock: VirtualClock
    fault: Exception | None = None  # raised by the next step
    num_steps: int = 0
    is_closed: bool = False
    batches: list[dict[str, int]] = field(default_factory=list)

    def submit(self, ticket: Ticket) -> None:
        request = ticket.request
        if request.sampling.top_k == 13:
            raise ValueError("top_k 13 brings bad luck")
        self.tickets[request.request_id] = ticket
        self.scheduler.add_request(FakeRequest(request.request_id, request.num_prompt, request.sampling.max_tokens))

    def abort(self, request_id: RequestId) -> None:
        self.scheduler.finish(self.scheduler.requests[request_id])
        self.forget(request_id)

    def forget(self, request_id: RequestId) -> None:
        del self.tickets[request_id]

    def step(self) -> list[RequestOutput]:
        if self.fault is not None:
            raise self.fault
        batch: dict[str, int] = self.scheduler.schedule().num_scheduled_tokens
        self.num_steps += 1
        self.batches.append(batch)
        self.clock.advance(STEP_S + TOKEN_S * sum(batch.values()))
        return [output for request_id in batch if (output := self._sample(self.scheduler.requests[request_id]))]

    def close(self) -> None:
        self.is_closed = True

    def _sample(self, request: FakeRequest) -> FakeOutput | None:
        if request.num_computed_tokens < request.num_tokens:
            return None
        request.num_output += 1
        is_last = request.num_output == request.max_tokens
        if is_last:
            self.scheduler.finish(request)
        answer = FakeCompletion([request.num_output], finish_reason="length" if is_last else None)
        answer.logprobs = [{request.num_output: SimpleNamespace(logprob=-0.5)}]
        return FakeOutput(request.request_id, [answer], is_last)
