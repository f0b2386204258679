"""Drives a VllmEngine on a fake vLLM, on virtual time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from backend.core.clock import VirtualClock
from backend.core.plan import StepOutput
from backend.core.request import Request, RequestId
from backend.engine.engine import Submit
from backend.executors.foreign.source import Ticket
from backend.executors.vllm.engine import VllmEngine
from backend.executors.vllm.steering import Steering
from backend.policy.settings import SchedulerSettings
from tests.backend.executors.vllm.fake_vllm import FakeRuntime, FakeScheduler

_MAX_STEPS = 100_000


@dataclass
class Rig:
    """An engine on a fake vLLM, and what its clients got."""

    engine: VllmEngine
    scheduler: FakeScheduler
    runtime: FakeRuntime
    clock: VirtualClock
    token_ids: dict[RequestId, list[int]] = field(default_factory=dict)
    log_probs: dict[RequestId, list[float | None]] = field(default_factory=dict)
    first_token_s: dict[RequestId, float] = field(default_factory=dict)
    ends: dict[RequestId, str] = field(default_factory=dict)

    @property
    def steering(self) -> Steering:
        assert self.scheduler.steering is not None
        return self.scheduler.steering

    def emit(self, output: StepOutput) -> None:
        for request, token_id, log_prob in output.tokens:
            assert request.request_id not in self.ends, f"{request.request_id}: a token after its end"
            self.token_ids.setdefault(request.request_id, []).append(token_id)
            self.log_probs.setdefault(request.request_id, []).append(log_prob)
            self.first_token_s.setdefault(request.request_id, self.clock.now_s())
        for request in output.finished:
            assert request.finish_reason is not None
            self._end(request.request_id, request.finish_reason.value)
        for failed in output.failed:
            self._end(failed.request.request_id, str(failed.error))

    def _end(self, request_id: RequestId, end: str) -> None:
        assert request_id not in self.ends, f"{request_id} had two ends"
        self.ends[request_id] = end

    def post(self, *requests: Request) -> None:
        for request in requests:
            self.engine.post(Submit(request))

    def play(self, requests: Sequence[Request]) -> None:
        """Post each request when it arrives; run until all have ended; check the books after each step."""
        coming = sorted(requests, key=lambda request: request.arrival_s)
        for _ in range(_MAX_STEPS):
            while coming and coming[0].arrival_s <= self.clock.now_s():
                self.post(coming.pop(0))
            has_run = self.engine.step()
            if self.engine.honours_plans:
                self.steering.pilot.mirror.check_invariants()
            if len(self.ends) == len(requests):
                return
            if not has_run:
                self.clock.advance_to(coming[0].arrival_s if coming else self.clock.now_s() + 0.01)
        raise AssertionError(f"no end after {_MAX_STEPS} steps")


def make_rig(
    num_blocks: int = 40, block_size: int = 16, max_tokens: int = 256, max_seqs: int = 32, **knobs: object
) -> Rig:
    """Return an engine with `num_blocks` blocks. Knobs: `has_cache`, or fields of SchedulerSettings."""
    has_cache = bool(knobs.pop("has_cache", True))
    clock = VirtualClock()
    scheduler = FakeScheduler(num_blocks, block_size, max_tokens, max_seqs, has_cache)
    tickets: dict[str, Ticket] = {}
    settings = SchedulerSettings(**knobs)  # type: ignore[arg-type]  # the test's own knobs
    scheduler.steering = Steering(scheduler, tickets, settings, clock)
    runtime = FakeRuntime(scheduler, tickets, clock)
    rig = Rig(None, scheduler, runtime, clock)  # type: ignore[arg-type]  # made in the next line
    rig.engine = VllmEngine(runtime, scheduler.steering, clock, rig.emit)
    return rig
