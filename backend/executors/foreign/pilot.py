"""The pilot: a policy, the mirror it reads, and what both learn from the steps that another engine runs.

mirror.follow ─► learn ─► plan ──StepPlan──► the engine's own scheduler, in its terms ──► adopt
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, NamedTuple, TypeVar

from backend.core.clock import Clock
from backend.core.plan import Reclaim, StepPlan
from backend.core.request import PriorityClass, Request, first_deadline_s
from backend.engine.feedback import Feedback, MovedTokens
from backend.engine.stats import ClassCounts, SchedulerStats
from backend.executors.foreign.decodes import Decodes, decodes_of
from backend.executors.foreign.mirror import Adopted, Mirror, Queues, Scheduled, Twin
from backend.executors.foreign.source import Source
from backend.policy.bros.policy import Bros
from backend.policy.registry import POLICIES
from backend.policy.settings import SchedulerSettings
from backend.policy.state.latency_model import PRIOR, LatencyModel, StepFeatures
from backend.policy.state.waiting_queue import WaitingQueue
from backend.policy.view import SchedulerView, StepLimits, StepRecord
from kv.types import KVUsage

H = TypeVar("H")  # the engine's own object for a request


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What one step of the engine, and one request in it, may hold. has_overlap: a step is scheduled while the one
    before it runs."""

    max_tokens: int
    max_seqs: int
    max_seq_len: int
    has_chunked_prefill: bool
    has_overlap: bool


class _Step(NamedTuple):
    """A step that the engine runs, as it was scheduled."""

    predicted_s: float
    budget_s: float
    requests: Collection[Request]
    features: StepFeatures
    num_rt_tokens: int
    num_be_tokens: int


class Pilot(Generic[H]):
    """Decides the engine's steps. Lives on the thread of its step loop; `stats` may be called from any."""

    def __init__(self, source: Source[H], limits: EngineLimits, settings: SchedulerSettings, clock: Clock) -> None:
        size = source.pool_size()
        settings = replace(settings, chunked_prefill=settings.chunked_prefill and limits.has_chunked_prefill)
        step_limits = StepLimits(
            max_tokens=min(limits.max_tokens, settings.max_tokens_per_step or limits.max_tokens),
            max_seqs=min(limits.max_seqs, settings.max_seqs_per_step or limits.max_seqs),
            max_seq_len=limits.max_seq_len,
            num_slots=size.num_blocks * size.block_size,
            block_size=size.block_size,
        )
        self.policy = POLICIES[settings.policy].make(settings, step_limits)
        order = self.policy.order
        queues = Queues(WaitingQueue(order), WaitingQueue(order), WaitingQueue(first_deadline_s))
        latency = LatencyModel(settings.latency_coefficients or PRIOR, settings.latency_forgetting)
        self.mirror = Mirror(source, queues, limits.max_seq_len, latency)
        self.view = SchedulerView(
            table=self.mirror.table,
            rt_waiting=queues.rt,
            be_waiting=queues.be,
            be_deadlines=queues.be_deadlines,
            kv=self.mirror,
            latency=latency,
            traffic=self.mirror.traffic,
            limits=step_limits,
            settings=settings,
        )
        self._clock = clock
        self._steps: deque[_Step] = deque(maxlen=2 if limits.has_overlap else 1)  # the oldest ended last
        self._last_call_s = clock.now_s()
        self._decodes: Decodes | None = None  # of the step adopted last, if it ran one token of all that hold a row
        self._feedback = Feedback(self.policy, self.view)

    def plan(self, catch_up: Callable[[float], None]) -> StepPlan:
        """Decide the next step. `catch_up(now_s)` brings the mirror up to date."""
        self._now_s = now_s = self._clock.now_s()
        catch_up(now_s)
        self._learn(now_s)
        start_s = self._next_start_s(now_s)
        self._decodes = self._again(start_s)
        if self._decodes is not None:
            return self._decodes.plan
        self.mirror.settle()
        return self.policy.plan(self.view, start_s)

    def adopt(self, scheduled: Iterable[Scheduled], budget_s: float) -> None:
        """Note what the engine made of the plan that was made last."""
        self._decodes = None
        ours = self.mirror.adopt(scheduled, self._now_s)
        self._last_call_s = self._now_s
        if not ours:
            self._steps.clear()
            return
        num_rt_tokens = sum(adopted.num_tokens for adopted in ours if adopted.request.is_rt)
        self._note_step([adopted.request for adopted in ours], _features(ours), num_rt_tokens, budget_s)

    def adopt_decodes(self, plan: StepPlan) -> bool:
        """Do what `adopt` does where the engine runs one token of each request in the plan, all of which have rows.
        False, and nothing is noted, where one of them may have lost KV or our count has no room."""
        decodes = self.decodes(plan)
        if decodes is None or not self.mirror.kv.grow_each_by_one(decodes.rows, has_room=decodes.is_again):
            self._decodes = None
            return False
        self._last_call_s = self._now_s
        self._note_step(plan.requests, decodes.features, len(decodes.rt_rows), plan.budget_s)
        return True

    def decodes(self, plan: StepPlan) -> Decodes | None:
        """Return `plan`, the last one, as a step of decodes; None where it has more."""
        if self._decodes is None:
            self._decodes = decodes_of(plan, self.mirror.table, self.mirror.started.rows)
        return self._decodes

    def _again(self, start_s: float) -> Decodes | None:
        """Return the decodes of the step before, one token on, where the policy would plan them and nothing else; None
        where it might not."""
        mirror, view, decodes = self.mirror, self.view, self._decodes
        if decodes is None or decodes.rows is not mirror.started.rows or decodes.num_deadlines:
            return None
        if not mirror.have_all_decoded or len(view.rt_waiting) or len(view.be_waiting):
            return None
        num_blocks, num_rows = mirror.num_own_blocks, len(decodes.rows)
        if num_rows > num_blocks and mirror.kv.most_new_blocks(decodes.rows) > num_blocks:
            return None
        if not isinstance(self.policy, Bros):
            return None
        features = decodes.next_features()
        predicted_s = view.latency.predict_s(features)
        budget_s = self.policy.decode_budget_s(view, decodes.rt_rows, num_rows, predicted_s, start_s)
        return None if budget_s is None else decodes.again(features, predicted_s, budget_s)

    def _note_step(
        self, requests: Collection[Request], features: StepFeatures, num_rt_tokens: int, budget_s: float
    ) -> None:
        self._steps.append(
            _Step(
                predicted_s=self.view.latency.predict_s(features),
                budget_s=budget_s,
                requests=requests,
                features=features,
                num_rt_tokens=num_rt_tokens,
                num_be_tokens=features.new_tokens - num_rt_tokens,
            )
        )

    def stats(self, is_at_rest: bool) -> SchedulerStats:
        """Return a snapshot. At rest nobody is inside: an engine asks no scheduler then, so the mirror still holds what
        the last step left."""
        stats = self._feedback.stats(
            MovedTokens(
                preemptions=self.mirror.preemptions,
                copied_out=0,  # the engine moves pages by itself and does not say
                copied_in=self.mirror.total_restored,
                recomputed=self.mirror.total_recomputed,
                prefix=self.mirror.prefix_tokens,
            )
        )
        return _at_rest(stats, self.view.limits) if is_at_rest else stats

    def _next_start_s(self, now_s: float) -> float:
        """Return when the step to plan will start: under overlap, the one before it is still running."""
        return now_s + (self._steps[-1].predicted_s if self._steps and self._steps.maxlen == 2 else 0.0)

    def _learn(self, now_s: float) -> None:
        """Take in the step that ended last, unless an idle time may lie between."""
        mirror = self.mirror
        if len(self._steps) == self._steps.maxlen and (
            mirror.have_all_decoded or mirror.has_any(self._steps[0].requests)
        ):
            step, duration_s = self._steps[0], max(now_s - self._last_call_s, 1e-6)
            record = StepRecord(
                duration_s=duration_s,
                predicted_s=step.predicted_s,
                num_rt_tokens=step.num_rt_tokens,
                num_be_tokens=step.num_be_tokens,
                num_seqs=len(step.requests),
                budget_s=step.budget_s,
            )
            self._feedback.learn(record, step.features)
        self._feedback.settle(now_s)


def whole_victims(reclaims: Sequence[Reclaim]) -> list[Request]:
    """Return who gives up its KV so that at least what the plan reclaims comes free. The engine takes it from a request
    whole or not at all, so fewer requests than the plan cuts may do."""
    num_missing = sum(reclaim.request.num_computed - reclaim.num_kept for reclaim in reclaims)
    victims = []
    for reclaim in reclaims:
        if num_missing > 0:
            victims.append(reclaim.request)
            num_missing -= reclaim.request.num_computed
    return victims


def by_loss(twins: Iterable[Twin[H]]) -> list[Twin[H]]:
    """Return who holds KV and does not run, the first to lose it first: best-effort, and the youngest of a class."""
    held = (twin for twin in twins if twin.request.row is not None)
    return sorted(held, key=lambda twin: (twin.request.is_rt, -twin.request.arrival_index))


def _at_rest(stats: SchedulerStats, limits: StepLimits) -> SchedulerStats:
    num_blocks = limits.num_slots // limits.block_size
    usage = KVUsage(
        num_free_slots=limits.num_slots,
        num_head_slots=0,
        num_tail_slots=0,
        num_free_blocks=num_blocks,
        num_head_blocks=0,
        num_tail_blocks=0,
        num_shared_blocks=0,
        num_host_slots_used=0,
    )
    return replace(stats, requests=dict.fromkeys(PriorityClass, ClassCounts(0, 0, 0)), kv=usage)


def _features(adopted: Sequence[Adopted]) -> StepFeatures:
    new_tokens = context_tokens = copied_tokens = 0
    prefill_pairs = 0.0
    for _, num_tokens, start, num_restored in adopted:
        new_tokens += num_tokens
        copied_tokens += num_restored
        if num_tokens == 1:
            context_tokens += start
        else:
            prefill_pairs += num_tokens * (start + 0.5 * num_tokens)
    return StepFeatures(
        new_tokens=new_tokens,
        context_tokens=context_tokens,
        prefill_pairs=prefill_pairs,
        copied_tokens=copied_tokens,
        has_prefill=prefill_pairs > 0.0,
    )
