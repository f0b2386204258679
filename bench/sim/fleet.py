"""A fleet on a virtual clock: replicas with the production scheduler, behind one frontend that routes and forwards.

The routers copy NVIDIA Dynamo's rules (1.6, `lib/kv-router/src/scheduling`), where replicas share no prefix:

    kv             least (prefill tokens under way and of this request) / block size + blocks of open requests
    least-loaded   fewest open requests
    round-robin    in turn

The frontend is one queue: each request and each event of a stream costs processor time, on `num_cores` cores.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np

from backend.config import ServiceSettings
from backend.core.clock import VirtualClock
from backend.core.errors import BrosError
from backend.core.plan import StepOutput
from backend.core.request import PriorityClass, Request, RequestId, SamplingParams, Slo
from backend.engine.engine import Engine, Submit
from backend.engine.scheduler import make_scheduler
from backend.executors.sim import SimSettings, load
from backend.policy.settings import SchedulerSettings
from bench.common.score import RequestRecord, Slos
from bench.common.workload import Arrival

BE_COALESCE_S = ServiceSettings().be_coalesce_s
_DRAIN_S = 30.0
_TOKEN_ID = 1_000  # prefixes are not shared here


@dataclass(frozen=True, slots=True)
class Frontend:
    """Processor seconds of a frontend: for a request, and for an event of a stream. `num_cores` 0: it costs nothing."""

    request_s: float
    event_s: float
    num_cores: int


@dataclass(frozen=True, slots=True)
class FleetLoad:
    """Arrivals of both classes, until `duration_s`."""

    rt: Sequence[Arrival]
    be: Sequence[Arrival]
    slos: Slos
    duration_s: float


class _Event(NamedTuple):
    time_s: float
    order: int
    act: Callable[[float], None]


@dataclass(slots=True, eq=False)
class _Open:
    """One request on its way: where it runs, and what the router counts for it."""

    record: RequestRecord
    request: Request
    replica: int = -1
    has_begun: bool = False
    num_held: int = 0  # output tokens that wait to be sent together
    sent_s: float = -float("inf")

    def send(self, now_s: float) -> tuple[RequestRecord, int]:
        """Return the record and how many tokens leave now."""
        num_tokens, self.num_held, self.sent_s = self.num_held, 0, now_s
        return self.record, num_tokens


@dataclass(slots=True, eq=False)
class RouterState:
    """What a router counts of one replica, by its own decisions and the streams that it forwards."""

    num_open: int = 0
    prefill_tokens: int = 0
    blocks: int = 0


Choose = Callable[[Sequence[RouterState], int, int], int]


def choose_kv(replicas: Sequence[RouterState], num_prompt: int, block_size: int) -> int:
    """Return the replica of the least cost in blocks; the first of equals."""
    costs = [(state.prefill_tokens + num_prompt) / block_size + state.blocks for state in replicas]
    return int(np.argmin(costs))


def choose_least_loaded(replicas: Sequence[RouterState], _num_prompt: int, _block_size: int) -> int:
    """Return the replica with the fewest open requests; the first of equals."""
    return int(np.argmin([state.num_open for state in replicas]))


def make_round_robin() -> Choose:
    """Return a router that takes one replica after the other."""
    turn = itertools.count()
    return lambda replicas, _num_prompt, _block_size: next(turn) % len(replicas)


ROUTERS: dict[str, Callable[[], Choose]] = {
    "round-robin": make_round_robin,
    "least-loaded": lambda: choose_least_loaded,
    "kv": lambda: choose_kv,
}


class _Replica:
    """One engine on a clock of its own, which stands still while there is nothing to do."""

    def __init__(self, settings: SimSettings, emit: Callable[[float, StepOutput], None]) -> None:
        self.clock = VirtualClock()
        executor = load(settings, self.clock)
        scheduler = make_scheduler(SchedulerSettings(), executor.capacity())
        self._engine = Engine(scheduler, executor, self.clock, lambda output: emit(self.clock.now_s(), output))
        self.is_busy = False

    def take(self, request: Request, now_s: float) -> None:
        """Queue a request that arrives now."""
        self.clock.advance(max(0.0, now_s - self.clock.now_s()))
        self._engine.post(Submit(request))
        self.is_busy = True

    def step(self) -> None:
        """Run one step, if there is one."""
        self.is_busy = self._engine.step()


@dataclass(slots=True, eq=False)
class Fleet:
    """One run. `run` fills `records`; token times are those at which the frontend has sent them on."""

    engines: Sequence[SimSettings]
    frontend: Frontend
    router: str
    load: FleetLoad
    records: list[RequestRecord] = field(default_factory=list)
    errors: dict[str, BrosError] = field(default_factory=dict)
    busy_s: float = 0.0  # processor time of the frontend
    _free_s: float = 0.0  # when the frontend has done all it was given
    _events: list[_Event] = field(default_factory=list)
    _order: itertools.count[int] = field(default_factory=itertools.count)
    _open: dict[str, _Open] = field(default_factory=dict)
    _states: list[RouterState] = field(default_factory=list)
    _replicas: list[_Replica] = field(default_factory=list)

    def run(self) -> None:
        """Let all requests come, and go on until the real-time ones are answered."""
        choose = ROUTERS[self.router]()
        self._states = [RouterState() for _ in self.engines]
        self._replicas = [_Replica(settings, self._note) for settings in self.engines]
        for arrival, is_rt in [(each, True) for each in self.load.rt] + [(each, False) for each in self.load.be]:
            opened = self._request(arrival, is_rt)
            self._at(arrival.arrival_s, partial(self._receive, opened, choose))
        end_s = self.load.duration_s
        while (now_s := self._advance()) is not None and now_s < end_s + _DRAIN_S:
            if now_s >= end_s and not any(opened.record.is_rt for opened in self._open.values()):
                break

    def _advance(self) -> float | None:
        """Do whatever comes next; return its time, None where nothing is left."""
        busy = [replica for replica in self._replicas if replica.is_busy]
        first = min(busy, key=lambda replica: replica.clock.now_s(), default=None)
        if self._events and (first is None or self._events[0].time_s <= first.clock.now_s()):
            event = heapq.heappop(self._events)
            event.act(event.time_s)
            return event.time_s
        if first is None:
            return None
        now_s = first.clock.now_s()
        first.step()
        return now_s

    def _at(self, time_s: float, act: Callable[[float], None]) -> None:
        heapq.heappush(self._events, _Event(time_s, next(self._order), act))

    def _request(self, arrival: Arrival, is_rt: bool) -> _Open:
        name = RequestId(f"{'rt' if is_rt else 'be'}-{len(self.records)}")
        slos = self.load.slos
        record = RequestRecord(name, is_rt, arrival.arrival_s, arrival.num_prompt, arrival.num_output)
        request = Request(
            request_id=name,
            priority_class=PriorityClass.REAL_TIME if is_rt else PriorityClass.BEST_EFFORT,
            prompt_token_ids=(_TOKEN_ID,) * arrival.num_prompt,
            sampling=SamplingParams(max_tokens=arrival.num_output, ignore_eos=True),
            arrival_s=arrival.arrival_s,
            slo=Slo(slos.ttft_slo_s, slos.tpot_slo_s) if is_rt else None,
        )
        self.records.append(record)
        opened = self._open[name] = _Open(record, request)
        return opened

    def _spend(self, now_s: float, seconds: float) -> float:
        """Let the frontend work; return when it is done."""
        if not self.frontend.num_cores:
            return now_s
        self.busy_s += seconds
        self._free_s = max(self._free_s, now_s) + seconds / self.frontend.num_cores
        return self._free_s

    def _receive(self, opened: _Open, choose: Choose, now_s: float) -> None:
        """Choose a replica when the frontend comes to it, and send the request there."""
        self._at(self._spend(now_s, self.frontend.request_s), lambda done_s: self._route(opened, choose, done_s))

    def _route(self, opened: _Open, choose: Choose, now_s: float) -> None:
        record, block_size = opened.record, self.engines[0].block_size
        opened.replica = choose(self._states, record.num_prompt, block_size)
        state = self._states[opened.replica]
        state.num_open += 1
        state.prefill_tokens += record.num_prompt
        state.blocks += -(-record.num_prompt // block_size)
        self._replicas[opened.replica].take(opened.request, now_s)

    def _note(self, now_s: float, output: StepOutput) -> None:
        """Take the tokens of a step to the frontend at its end."""
        self._at(now_s, lambda at_s: self._forward(output, at_s))

    def _forward(self, output: StepOutput, now_s: float) -> None:
        """Send tokens on: real-time ones at once, best-effort ones together after a while, as the engines do."""
        sent: list[tuple[RequestRecord, int]] = []
        for request, _, _ in output.tokens:
            opened = self._open[request.request_id]
            if not opened.has_begun:
                opened.has_begun = True
                self._states[opened.replica].prefill_tokens -= opened.record.num_prompt
            opened.num_held += 1
            if request.is_rt or now_s - opened.sent_s >= BE_COALESCE_S:
                sent.append(opened.send(now_s))
        ended = [*output.finished, *(failed.request for failed in output.failed)]
        sent += [self._open[request.request_id].send(now_s) for request in ended]
        done_s = self._spend(now_s, self.frontend.event_s * len(sent))
        for record, num_tokens in sent:
            record.token_times_s += [done_s] * num_tokens
        for request in ended:
            self._end(self._open.pop(request.request_id), done_s)
        for failed in output.failed:
            self.errors[failed.request.request_id] = failed.error

    def _end(self, opened: _Open, done_s: float) -> None:
        opened.record.finished_s = done_s
        state = self._states[opened.replica]
        state.num_open -= 1
        state.blocks -= -(-opened.record.num_prompt // self.engines[0].block_size)
        state.prefill_tokens -= 0 if opened.has_begun else opened.record.num_prompt
