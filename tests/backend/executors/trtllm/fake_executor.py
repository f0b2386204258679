"""Fakes of TensorRT-LLM's step loop and of the `LLM` in front of it, on a virtual clock.

A leaked sequence slot or KV block, a request both scheduled and paused, and a request scheduled without pages are
errors here at once. An abort takes two iterations. Under overlap a step's tokens are known one iteration late.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

from backend.core.clock import VirtualClock
from backend.policy.state.latency_model import StepFeatures
from tests.backend.executors.trtllm.fake_managers import (
    FakeKVManagerV1,
    FakeKVManagerV2,
    FakeSchedulerV1,
    FakeSchedulerV2,
)
from tests.backend.executors.trtllm.fake_requests import FakeLlmRequest, FakeRequestOutput, State

StepTime = Callable[[StepFeatures], float]
FIRST_CLIENT_ID = 5000  # the client side counts requests by itself
SPIN_S = 1e-4  # an iteration that runs nothing


def token_of(request_id: int, position: int) -> int:
    return 10 + (request_id * 31 + position * 7) % 1000


@dataclass(eq=False)
class _Entry:
    request: FakeLlmRequest
    output: FakeRequestOutput
    sampling: Any
    is_cancelled: bool = False


@dataclass(frozen=True)
class _Launch:
    """One request of a step: whether it samples, and how often it had been paused when the step began."""

    entry: _Entry
    has_token: bool
    num_pauses: int


class FakePyExecutor:
    """`PyExecutor`: `step` is one iteration of its loop, of `_executor_loop` or `_executor_loop_overlap`."""

    def __init__(
        self, scheduler: Any, kv: Any, clock: VirtualClock, step_time_s: StepTime, max_active: int, has_overlap: bool
    ) -> None:
        self.scheduler = scheduler
        self.kv_cache_manager = kv
        self.max_num_active_requests = max_active
        self.disable_overlap_scheduler = not has_overlap
        self.step_time_s = step_time_s
        self.active: list[_Entry] = []
        self.error: Exception | None = None
        self.num_iterations = 0
        self.num_pauses = 0
        self.batches: list[tuple[list[int], list[int]]] = []
        self.eos_after: Callable[[int], int | None] = lambda _: None
        self.clock = clock
        self._waiting: list[tuple[float, int, _Entry]] = []
        self._num_enqueued = 0
        self._free_slots = list(range(max_active))
        self._in_flight: list[_Launch] = []  # whose tokens are not known yet
        self._ends_s = clock.now_s()  # when the GPU is done with all that was launched
        self._dying: list[_Entry] = []

    def enqueue(self, request: FakeLlmRequest, output: FakeRequestOutput, sampling: Any) -> None:
        self._num_enqueued += 1
        entry = _Entry(request, output, sampling)
        heapq.heappush(self._waiting, (-request.priority, self._num_enqueued, entry))

    def abort_request(self, client_id: int) -> None:
        entries = [entry for *_, entry in self._waiting] + self.active
        for entry in entries:
            entry.is_cancelled = entry.is_cancelled or entry.request.py_client_id == client_id

    def has_work(self) -> bool:
        return bool(self._waiting or self.active or self._in_flight)

    def step(self) -> bool:
        """Run one iteration; False if the loop would block for want of requests. An error ends the executor."""
        if self.error is not None or not self.has_work():
            return False
        try:
            self._step()
        except Exception as error:
            self.error = error
            for entry in self.active + [entry for *_, entry in self._waiting]:
                entry.output.respond([], [], error=str(error))
        return True

    def assert_nothing_leaked(self) -> None:
        assert not self.active
        assert len(self._free_slots) == self.max_num_active_requests, "a sequence slot leaked"
        kv = self.kv_cache_manager
        held = kv.held if isinstance(kv, FakeKVManagerV1) else kv.kv_cache_map
        assert not held, f"KV of {list(held)} leaked"

    def _step(self) -> None:
        self.num_iterations += 1
        self._activate()
        entries = {entry.request.py_request_id: entry for entry in self.active}
        output = self.scheduler.schedule_request([entry.request for entry in self.active], set())
        self._check(output)
        self._pause(output)
        scheduled = [*output.context_requests, *output.generation_requests]
        self._allocate(scheduled)
        self.batches.append(
            ([r.request_id for r in output.context_requests], [r.request_id for r in output.generation_requests])
        )
        duration_s = self._duration_s(output) if scheduled else SPIN_S
        launched = [
            _Launch(entries[request.py_request_id], self._forward(request), request.num_pauses) for request in scheduled
        ]
        if self.disable_overlap_scheduler:
            self.clock.advance(duration_s)
            self._sample(launched)
        else:  # the GPU runs this step after the one in flight, whose end the loop waits for
            ends_s, self._ends_s = self._ends_s, max(self._ends_s, self.clock.now_s()) + duration_s
            self.clock.advance_to(ends_s if scheduled or self._in_flight else self._ends_s)
            self._sample(self._in_flight)
            self._in_flight = launched
        self._bury()

    def _activate(self) -> None:
        while self._waiting and len(self.active) < self.max_num_active_requests:
            self.active.append(heapq.heappop(self._waiting)[2])

    def _check(self, output: Any) -> None:
        scheduled = {r.request_id for r in (*output.context_requests, *output.generation_requests)}
        assert len(scheduled) == len(output.context_requests) + len(output.generation_requests), "scheduled twice"
        paused = {request.request_id for request in (*output.paused_requests, *self._recomputed(output))}
        assert not scheduled & paused, f"scheduled and paused at once: {scheduled & paused}"
        if isinstance(self.kv_cache_manager, FakeKVManagerV2):
            assert all(self.kv_cache_manager.is_request_active(request_id) for request_id in scheduled)

    def _recomputed(self, output: Any) -> list[FakeLlmRequest]:
        return list(getattr(output, "recompute_paused_requests", ()))

    def _pause(self, output: Any) -> None:
        is_v1 = isinstance(self.kv_cache_manager, FakeKVManagerV1)
        self.num_pauses += len(output.paused_requests) + len(self._recomputed(output))
        for request in [*(output.paused_requests if is_v1 else ()), *self._recomputed(output)]:
            self._free(request)
            request.restart()

    def _allocate(self, scheduled: list[FakeLlmRequest]) -> None:
        for request in scheduled:
            if request.py_seq_slot is None:
                request.py_seq_slot = self._free_slots.pop()
            if isinstance(self.kv_cache_manager, FakeKVManagerV1):
                self.kv_cache_manager.allocate(request)

    def _duration_s(self, output: Any) -> float:
        chunks = [(request.context_chunk_size, request.context_current_position) for request in output.context_requests]
        decodes = [request.num_tokens - 1 for request in output.generation_requests]
        return self.step_time_s(
            StepFeatures(
                new_tokens=sum(size for size, _ in chunks) + len(decodes),
                context_tokens=sum(decodes) + sum(start for size, start in chunks if size == 1),
                prefill_pairs=sum(size * (start + 0.5 * size) for size, start in chunks if size > 1),
                copied_tokens=0,
            )
        )

    def _forward(self, request: FakeLlmRequest) -> bool:
        """Move on the state, which is known at launch; return whether a token will be sampled."""
        if request.is_context_init_state:
            request.context_current_position += request.context_chunk_size
            if request.context_remaining_length:
                return False
            request.state = State.GENERATION_IN_PROGRESS
        num_coming = 1 + any(launch.has_token and launch.entry.request is request for launch in self._in_flight)
        if not self.disable_overlap_scheduler and request.num_generated + num_coming >= request.max_new_tokens:
            request.state = State.GENERATION_TO_COMPLETE
        return True

    def _sample(self, launched: list[_Launch]) -> None:
        for launch in launched:
            entry, request = launch.entry, launch.entry.request
            if not launch.has_token or request.state is State.GENERATION_COMPLETE or entry in self._dying:
                continue
            if request.num_pauses > launch.num_pauses:
                continue  # it starts over, this token included
            token_id = token_of(request.request_id, request.num_generated)
            request.num_tokens += 1
            eos_after = self.eos_after(request.request_id)
            reason = "length" if request.num_generated >= request.max_new_tokens else None
            reason = "stop" if eos_after is not None and request.num_generated >= eos_after else reason
            entry.output.respond([token_id], [-0.5] if entry.sampling.logprobs else [], reason)
            if reason:
                self._end(entry)

    def _bury(self) -> None:
        """Let cancelled requests go: marked in one iteration, freed in the next."""
        for entry in self._dying:
            if entry.request.state is not State.GENERATION_COMPLETE:
                entry.output.respond([], [], "cancelled")
                self._end(entry)
        self._dying = [entry for entry in self.active if entry.is_cancelled]
        for item in [item for item in self._waiting if item[2].is_cancelled]:
            self._waiting.remove(item)
            item[2].output.respond([], [], "cancelled")

    def _end(self, entry: _Entry) -> None:
        entry.request.state = State.GENERATION_COMPLETE
        self.active.remove(entry)
        self._free(entry.request)

    def _free(self, request: FakeLlmRequest) -> None:
        self.kv_cache_manager.free_resources(request)
        if request.py_seq_slot is not None:
            self._free_slots.append(request.py_seq_slot)
            request.py_seq_slot = None


class FakeSamplingParams(SimpleNamespace):
    """`tensorrt_llm.SamplingParams`: only the arguments it has, with the defaults that are read here."""

    KNOWN = frozenset(
        (
            *("max_tokens", "min_tokens", "stop_token_ids", "include_stop_str_in_output", "ignore_eos", "end_id"),
            *("temperature", "top_k", "top_p", "min_p", "seed"),
            *("repetition_penalty", "presence_penalty", "frequency_penalty", "detokenize", "logprobs"),
        )
    )

    def __init__(self, **arguments: Any) -> None:
        assert set(arguments) <= self.KNOWN, f"unknown: {set(arguments) - self.KNOWN}"
        super().__init__(**{"logprobs": None, **arguments})


class FakeLlm:
    """`LLM` of 1.3.0rc10 and later: `generate_async` takes a priority."""

    def __init__(self, executor: FakePyExecutor, in_process: bool = True) -> None:
        self.py_executor = executor
        self._executor = SimpleNamespace(is_shutdown=lambda: executor.error is not None)
        if in_process:
            self._executor.engine = executor
        self.is_shut_down = False
        self.refuse: str | None = None
        self.submitted: list[SimpleNamespace] = []

    def generate_async(
        self,
        inputs: list[int],
        sampling_params: Any = None,
        streaming: bool = False,
        priority: float = 0.5,
    ) -> FakeRequestOutput:
        assert 0.0 <= priority <= 1.0
        if self.refuse is not None:
            raise ValueError(self.refuse)
        request_id = len(self.submitted)
        client_id = FIRST_CLIENT_ID + request_id
        self.submitted.append(SimpleNamespace(sampling=sampling_params, priority=priority))
        output = FakeRequestOutput(client_id, self.py_executor)
        request = FakeLlmRequest(request_id, len(inputs), sampling_params.max_tokens, client_id, priority)
        assert streaming
        self.py_executor.enqueue(request, output, sampling_params)
        return output

    async def get_stats_async(self, timeout: float) -> AsyncIterator[dict[str, Any]]:
        assert timeout > 0
        kv = self.py_executor.kv_cache_manager
        yield {"iter": 1}
        yield {"kvCacheStats": {"maxNumBlocks": kv.num_blocks, "tokensPerBlock": kv.tokens_per_block}}

    def shutdown(self) -> None:
        self.is_shut_down = True


class RunningLlm(FakeLlm):
    """An LLM whose step loop is a task on the loop of whoever asks it, alive while there is work. A step takes the time
    that its executor's clock says, times `time_scale`."""

    def __init__(self, executor: FakePyExecutor, time_scale: float = 0.0) -> None:
        super().__init__(executor)
        self._time_scale = time_scale
        self._loop_task: asyncio.Task[None] | None = None

    def generate_async(
        self, inputs: list[int], sampling_params: Any = None, streaming: bool = False, priority: float = 0.5
    ) -> FakeRequestOutput:
        output = super().generate_async(inputs, sampling_params, streaming, priority)
        if self._loop_task is None or self._loop_task.done():
            self._loop_task = asyncio.get_running_loop().create_task(self._run())
        return output

    async def _run(self) -> None:
        clock = self.py_executor.clock
        start_s = clock.now_s()
        while self.py_executor.step():
            await asyncio.sleep(self._time_scale * (clock.now_s() - start_s))
            start_s = clock.now_s()


class FakeLlm12(FakeLlm):
    """`LLM` of 1.2: no request priority."""

    def generate_async(  # type: ignore[override]  # as it was
        self, inputs: list[int], sampling_params: Any = None, streaming: bool = False
    ) -> FakeRequestOutput:
        return super().generate_async(inputs, sampling_params, streaming)


def make_executor(
    manager: str = "v2",
    *,
    clock: VirtualClock | None = None,
    step_time_s: StepTime = lambda features: 0.01 + 1e-4 * features.new_tokens,
    num_blocks: int = 256,
    num_host_blocks: int = 1024,
    tokens_per_block: int = 32,
    max_active: int = 64,
    max_num_tokens: int = 1024,
    max_seq_len: int = 4096,
    has_overlap: bool = False,
    make_scheduler: Callable[..., Any] | None = None,
    **scheduler_options: Any,
) -> FakePyExecutor:
    """Build an executor with its manager, `v1` or `v2`, and the scheduler that goes with it."""
    kv: FakeKVManagerV1 | FakeKVManagerV2
    if manager == "v1":
        kv = FakeKVManagerV1(num_blocks, tokens_per_block, max_seq_len)
    else:
        kv = FakeKVManagerV2(num_blocks, num_host_blocks, tokens_per_block, max_seq_len)
    make_scheduler = make_scheduler or (FakeSchedulerV1 if manager == "v1" else FakeSchedulerV2)
    scheduler = make_scheduler(kv, max_active, max_num_tokens, **scheduler_options)
    return FakePyExecutor(scheduler, kv, clock or VirtualClock(), step_time_s, max_active, has_overlap)


def fake_modules(llm: FakeLlm, version: str = "1.3.0rc20") -> dict[str, ModuleType]:
    """Return the modules to put into `sys.modules` for `import tensorrt_llm` to find; `LLM()` returns `llm`."""
    package = ModuleType("tensorrt_llm")
    package.__version__ = version  # type: ignore[attr-defined]
    package.__path__ = []

    class LLM(type(llm)):  # type: ignore[misc]
        arguments: dict[str, Any]

        def __new__(cls, **arguments: Any) -> Any:
            cls.arguments = arguments
            if arguments["model"] == "/broken":
                raise RuntimeError("no such checkpoint")
            return llm

        def __init__(self, **_: Any) -> None: ...

    package.LLM = LLM  # type: ignore[attr-defined]
    package.SamplingParams = FakeSamplingParams  # type: ignore[attr-defined]
    llmapi = ModuleType("tensorrt_llm.llmapi")
    llmapi.CapacitySchedulerPolicy = {"MAX_UTILIZATION": "MAX_UTILIZATION"}  # type: ignore[attr-defined]
    llmapi.SchedulerConfig = SimpleNamespace  # type: ignore[attr-defined]
    return {module.__name__: module for module in (package, llmapi)}
