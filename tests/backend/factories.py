"""Factories of requests, schedulers and engines with defaults, so that a test shows only what matters to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import fields
from itertools import count

from backend.core.clock import VirtualClock
from backend.core.errors import ExecutorError
from backend.core.executor import ExecutorCapacity
from backend.core.plan import StepBatch, StepOutput, StepResult
from backend.core.request import FinishReason, PriorityClass, Request, RequestId, SamplingParams, Slo
from backend.engine.engine import Engine, Submit
from backend.engine.scheduler import Scheduler, make_scheduler
from backend.executors.sim import SimExecutor, SimSettings
from backend.policy.settings import SchedulerSettings

RT, BE = PriorityClass.REAL_TIME, PriorityClass.BEST_EFFORT
EOS = 2
_ids = count()


def make_request(
    priority_class: PriorityClass = BE,
    num_prompt: int = 32,
    max_tokens: int = 8,
    *,
    request_id: str | None = None,
    arrival_s: float = 0.0,
    ttft_slo_s: float = 0.4,
    tpot_slo_s: float = 0.2,
    itl_slo_s: float | None = None,
    deadline_s: float | None = None,
    sampling: SamplingParams | None = None,
    prompt: Sequence[int] = (),
    cache_salt: str = "",
) -> Request:
    """Return a request with a made-up prompt of `num_prompt` tokens, that begins like no other unless it is given."""
    is_rt = priority_class is RT
    number = next(_ids)
    return Request(
        request_id=RequestId(request_id or f"request-{number}"),
        priority_class=priority_class,
        prompt_token_ids=tuple(prompt or [1_000 + number, *range(101, 100 + num_prompt)]),
        cache_salt=cache_salt,
        sampling=sampling or SamplingParams(max_tokens=max_tokens),
        arrival_s=arrival_s,
        slo=Slo(ttft_slo_s, tpot_slo_s, itl_slo_s) if is_rt else None,
        deadline_s=deadline_s,
    )


def rt(num_prompt: int = 32, max_tokens: int = 8, **knobs: object) -> Request:
    """Return a real-time request."""
    return make_request(RT, num_prompt, max_tokens, **knobs)  # type: ignore[arg-type]  # passed through


def be(num_prompt: int = 32, max_tokens: int = 8, **knobs: object) -> Request:
    """Return a best-effort request."""
    return make_request(BE, num_prompt, max_tokens, **knobs)  # type: ignore[arg-type]  # passed through


def ended(request: Request, num_output: int) -> Request:
    """Return `request` with an output of `num_output` tokens."""
    request.token_ids.extend([7] * num_output)
    return request


def _split(knobs: dict[str, object]) -> tuple[SchedulerSettings, SimSettings]:
    names = {field.name for field in fields(SchedulerSettings)}
    scheduler = {name: value for name, value in knobs.items() if name in names}
    sim = {name: value for name, value in knobs.items() if name not in names}
    return SchedulerSettings(**scheduler), SimSettings(**{"verify": True, **sim})  # type: ignore[arg-type]  # knobs


def make_scheduler_for_test(**knobs: object) -> Scheduler:
    """Return a scheduler; knobs are fields of SchedulerSettings and of SimSettings (its capacity)."""
    settings, sim = _split(knobs)
    return make_scheduler(settings, SimExecutor(sim, VirtualClock()).capacity(), frozenset({EOS}))


class FailingExecutor:
    """The harness's SimExecutor, but its step `fail_at` (from 1) raises before anything is copied or computed."""

    def __init__(self, harness: Harness) -> None:
        self._harness = harness
        self._num_steps = 0

    def capacity(self) -> ExecutorCapacity:
        return self._harness.executor.capacity()

    def execute(self, batch: StepBatch) -> StepResult:
        self._num_steps += 1
        if self._num_steps == self._harness.fail_at:
            raise ExecutorError(f"step {self._num_steps} is meant to fail")
        return self._harness.executor.execute(batch)

    def close(self) -> None:
        self._harness.executor.close()


class Harness:
    """An engine on the simulator that keeps every request's output, and checks the promises made to clients."""

    def __init__(self, output_lengths: dict[str, int] | None = None, **knobs: object) -> None:
        settings, sim = _split(knobs)
        self.clock = VirtualClock()
        lengths = output_lengths or {}
        self.executor = SimExecutor(
            sim, self.clock, output_length=lambda request: lengths.get(request.request_id, 1 << 30)
        )
        self.scheduler = make_scheduler(settings, self.executor.capacity(), frozenset({EOS}))
        self.engine = Engine(self.scheduler, FailingExecutor(self), self.clock, self._take)
        self.fail_at: int | None = None  # the step whose execution fails
        self.tokens: dict[str, list[int]] = {}
        self.token_times: dict[str, list[float]] = {}
        self.ends: Counter[str] = Counter()
        self.reasons: dict[str, FinishReason | None] = {}

    def submit(self, *requests: Request) -> None:
        """Post requests; their arrival is now."""
        for request in requests:
            request.arrival_s = self.clock.now_s()
            self.tokens.setdefault(request.request_id, [])
            self.engine.post(Submit(request))

    def step(self, num_steps: int = 1) -> bool:
        """Run steps and check the scheduler after each; return whether the last one did anything."""
        did = False
        for _ in range(num_steps):
            did = self.engine.step()
            self.scheduler.check_invariants()
        return did

    def run(self, max_steps: int = 100_000) -> int:
        """Step until nothing is left; return the number of steps."""
        for num_steps in range(max_steps):
            if not self.step():
                assert self.scheduler.is_idle, "the engine stands still with requests in it"
                return num_steps
        raise AssertionError(f"requests are left after {max_steps} steps")

    def num_free_blocks(self) -> int:
        """Return the free blocks once nothing is cached: all of them, where no slot leaked."""
        self.scheduler.kv.evict_all()
        self.scheduler.check_invariants()
        return self.scheduler.stats().kv.num_free_blocks

    def _take(self, output: StepOutput) -> None:
        for request, token_id, _ in output.tokens:
            assert not self.ends[request.request_id], f"{request.request_id}: a token after the end"
            self.tokens.setdefault(request.request_id, []).append(token_id)
            self.token_times.setdefault(request.request_id, []).append(self.clock.now_s())
        for request in output.finished:
            self._end(request, request.finish_reason)
        for failure in output.failed:
            self._end(failure.request, None)

    def _end(self, request: Request, reason: FinishReason | None) -> None:
        self.ends[request.request_id] += 1
        self.reasons[request.request_id] = reason
        assert self.ends[request.request_id] == 1, f"{request.request_id}: ended twice"
