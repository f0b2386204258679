"""The interface of a policy: `plan` reads a SchedulerView and returns a StepPlan."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from backend.core.plan import StepPlan
from backend.core.request import Request
from backend.policy.settings import SchedulerSettings
from backend.policy.state.alike import Alike
from backend.policy.state.arrival_rate import ArrivalRate
from backend.policy.state.latency_model import LatencyModel
from backend.policy.state.objectives import Objectives
from backend.policy.state.output_lengths import OutputLengths
from backend.policy.state.request_table import RequestTable
from backend.policy.state.waiting_queue import Key, WaitingQueue
from kv.budget import KVBudget
from kv.prefixes import Prefix
from kv.types import KVUsage, Row


class KVReader(Protocol):
    """What a policy may ask the KV manager; `kv.manager.KVCacheManager` answers it. Nothing here changes it."""

    def budget(self) -> KVBudget: ...
    def num_restorable(self, row: Row) -> int: ...
    def num_on_host(self, prefix: Prefix, start: int) -> int: ...
    def usage(self) -> KVUsage: ...
    @property
    def num_borrowed_cached(self) -> int: ...
    @property
    def num_evicted_slots(self) -> int: ...


@dataclass(frozen=True, slots=True)
class StepLimits:
    """The most that one step may hold, and the most that one request may become."""

    max_tokens: int
    max_seqs: int
    max_seq_len: int
    num_slots: int
    block_size: int = 16


@dataclass(slots=True, eq=False)
class Traffic:
    """Learned from the requests so far. Written by the scheduler.

    step_s: mean time of the last few hundred steps. rt_output_ratio, be_output_ratio: moving averages of tokens
    produced / max_tokens of finished requests; best-effort starts with caution, real-time with what preemption can
    mend. rt_lengths: of the last real-time requests to finish. rt_arrivals: what arrives per second. rt_objectives: the
    SLOs it asks for.
    """

    rt_output_ratio: float = 0.25
    be_output_ratio: float = 1.0
    step_s: float = 0.02
    num_rt_ended: int = 0
    num_be_ended: int = 0
    rt_lengths: OutputLengths = field(default_factory=OutputLengths)
    rt_arrivals: ArrivalRate = field(default_factory=ArrivalRate)
    rt_objectives: Objectives = field(default_factory=Objectives)

    def note_arrival(self, request: Request, latency: LatencyModel, now_s: float, rt_step_s: float) -> None:
        """Learn from a request that comes; a step of all real-time decodes takes `rt_step_s`."""
        if request.is_rt:
            self.rt_objectives.note(request, latency, now_s, rt_step_s)
            self.rt_arrivals.note(request)

    def note_end(self, request: Request, *, has_failed: bool = False) -> None:
        """Learn from a request that ended: by itself, because its client stopped it, or in an error."""
        if request.is_rt:
            self.rt_arrivals.note_end(request)
        if has_failed or not request.num_output:
            return  # it tells nothing about how long outputs become
        ratio = request.num_output / request.sampling.max_tokens
        if request.is_rt:
            self.num_rt_ended += 1
            self.rt_lengths.note(request.num_output, request.sampling.max_tokens)
            self.rt_output_ratio += max(0.02, 1.0 / (self.num_rt_ended + 3)) * (ratio - self.rt_output_ratio)
        else:
            self.num_be_ended += 1
            self.be_output_ratio += max(0.02, 1.0 / (self.num_be_ended + 3)) * (ratio - self.be_output_ratio)

    def note_step(self, duration_s: float) -> None:
        """Learn from a step."""
        self.step_s += 0.005 * (duration_s - self.step_s)


@dataclass(frozen=True, slots=True)
class SchedulerView:
    """Everything a policy may read. It is the live state, so nothing of it may be kept or changed.

    table: requests that hold KV rows. rt_waiting, be_waiting: those that wait for their first step, in the policy's
    order. be_deadlines: the waiting best-effort requests that have a finish-by deadline, by that deadline. be_alike:
    those that begin alike.
    """

    table: RequestTable
    rt_waiting: WaitingQueue
    be_waiting: WaitingQueue
    be_deadlines: WaitingQueue
    kv: KVReader
    latency: LatencyModel
    traffic: Traffic
    limits: StepLimits
    settings: SchedulerSettings
    be_alike: Alike = field(default_factory=Alike)


class StepRecord(NamedTuple):
    """One executed step, as a policy's controller sees it. budget_s: what the policy packed under."""

    duration_s: float
    predicted_s: float
    num_rt_tokens: int
    num_be_tokens: int
    num_seqs: int = 0
    budget_s: float = float("inf")


class Policy(Protocol):
    """Decides each step. `plan` changes nothing, not even the policy; `observe` may adapt its controller."""

    def order(self, request: Request) -> Key:
        """Return the sort key of a waiting request; the arrival index breaks ties."""
        ...

    def is_late(self, request: Request, latency: LatencyModel, now_s: float) -> bool:
        """Return whether a waiting request is to be relegated behind all that are not."""
        ...

    def plan(self, view: SchedulerView, now_s: float) -> StepPlan: ...

    def observe(self, step: StepRecord) -> None:
        """Learn from a step that ran; called once after each."""
        ...
