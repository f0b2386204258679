"""Drives a TrtllmEngine and a fake executor together, in one thread, on virtual time."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import pytest

from backend.core.clock import VirtualClock
from backend.core.plan import StepOutput
from backend.core.request import FinishReason, Request, RequestId
from backend.engine.engine import Cancel, Submit
from backend.executors.foreign.source import Ticket
from backend.executors.trtllm.engine import TrtllmEngine
from backend.executors.trtllm.loading import load_engine
from backend.executors.trtllm.settings import TrtllmMode, TrtllmSettings
from backend.executors.trtllm.surface import RequestOutput
from backend.policy.settings import SchedulerSettings
from tests.backend.executors.trtllm.fake_executor import FakeLlm, FakePyExecutor, fake_modules

SINGLE_PROCESS = "TLLM_WORKER_USE_SINGLE_PROCESS"
_TURNS = 12  # of the event loop, more than any message needs from one end to the other
_MAX_ITERATIONS = 200_000


@dataclass
class Transcript:
    """What the clients got: tokens and ends by request id, and when each token came."""

    clock: VirtualClock
    token_ids: dict[RequestId, list[int]] = field(default_factory=dict)
    token_times_s: dict[RequestId, list[float]] = field(default_factory=dict)
    log_probs: dict[RequestId, list[float | None]] = field(default_factory=dict)
    ends: dict[RequestId, str] = field(default_factory=dict)
    num_ends: Counter[RequestId] = field(default_factory=Counter)
    outputs: list[StepOutput] = field(default_factory=list)

    def emit(self, output: StepOutput) -> None:
        self.outputs.append(output)
        for request, token_id, log_prob in output.tokens:
            request_id = request.request_id
            assert request_id not in self.ends, f"{request_id}: a token after its end"
            self.token_ids.setdefault(request_id, []).append(token_id)
            self.token_times_s.setdefault(request_id, []).append(self.clock.now_s())
            self.log_probs.setdefault(request_id, []).append(log_prob)
        for request in output.finished:
            assert request.finish_reason is not None
            self._end(request.request_id, request.finish_reason.value)
        for failed in output.failed:
            assert failed.request.finish_reason is FinishReason.ERROR
            self._end(failed.request.request_id, str(failed.error))

    def _end(self, request_id: RequestId, end: str) -> None:
        self.num_ends[request_id] += 1
        self.ends[request_id] = end


@dataclass
class Rig:
    """An engine on a fake TensorRT-LLM. `submitted`: the requests that it took, in its order."""

    engine: TrtllmEngine
    executor: FakePyExecutor
    llm: FakeLlm
    clock: VirtualClock
    transcript: Transcript
    submitted: list[Request] = field(default_factory=list)

    def play(
        self,
        requests: Sequence[Request],
        cancels: Sequence[tuple[float, Request]] = (),
        until_s: float = float("inf"),
        after_iteration: Callable[[], None] = lambda: None,
    ) -> Transcript:
        """Post each request when it arrives; run until all have ended or time is up; stop; return the transcript."""
        asyncio.run(self._play(requests, cancels, until_s, after_iteration))
        assert set(self.transcript.num_ends.values()) <= {1}, "a request had two ends"
        missing = {request.request_id for request in requests} - self.transcript.ends.keys()
        posted = {request.request_id for request in requests if request.arrival_s <= self.clock.now_s()}
        assert not missing & posted, f"without an end: {missing & posted}"
        return self.transcript

    async def _play(
        self,
        requests: Sequence[Request],
        cancels: Sequence[tuple[float, Request]],
        until_s: float,
        after_iteration: Callable[[], None],
    ) -> None:
        commands = [(request.arrival_s, 0, Submit(request)) for request in requests]
        commands += [(time_s, 1, Cancel(request.request_id)) for time_s, request in cancels]
        events = sorted(commands, key=lambda event: event[:2])
        serving = asyncio.get_running_loop().create_task(self.engine.serve())
        for _ in range(_MAX_ITERATIONS):
            while events and events[0][0] <= self.clock.now_s():
                self.engine.post(events.pop(0)[2])
            for _ in range(_TURNS):
                await asyncio.sleep(0)
            if serving.done() or self.clock.now_s() >= until_s:
                break
            if self.executor.step():
                after_iteration()
            elif events:
                self.clock.advance_to(events[0][0])
            elif len(self.transcript.ends) >= len(requests):
                break
        else:
            raise AssertionError(f"no end after {_MAX_ITERATIONS} iterations")
        self.engine.stop()
        await serving


def make_rig(
    monkeypatch: pytest.MonkeyPatch,
    executor: FakePyExecutor,
    clock: VirtualClock,
    *,
    mode: TrtllmMode = TrtllmMode.AUTO,
    llm: FakeLlm | None = None,
    scheduler: SchedulerSettings | None = None,
    settings: TrtllmSettings | None = None,
) -> Rig:
    """Load an engine on `executor` as `load_engine` does it, from fake modules."""
    llm = llm or FakeLlm(executor)
    for name, module in fake_modules(llm).items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setenv(SINGLE_PROCESS, "0")  # so that it is put back as it was
    monkeypatch.delenv(SINGLE_PROCESS)
    transcript = Transcript(clock)
    settings = settings or TrtllmSettings("/model", reserved_rt_seqs=8)
    engine = load_engine(replace(settings, mode=mode), scheduler or SchedulerSettings(), transcript.emit, clock)
    rig = Rig(engine, executor, llm, clock, transcript)
    submit = engine._runtime.submit

    def note(ticket: Ticket) -> RequestOutput:
        output = submit(ticket)
        rig.submitted.append(ticket.request)
        return output

    monkeypatch.setattr(engine._runtime, "submit", note)
    return rig
