"""Feedback: what an executed step teaches, and the totals of all steps, for every engine that a policy runs in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from backend.core.plan import PreemptionKind
from backend.core.request import PrefixSource, PriorityClass, first_deadline_s
from backend.engine.stats import ClassCounts, SchedulerStats
from backend.policy.state.latency_model import StepFeatures
from backend.policy.state.waiting_queue import WaitingQueue
from backend.policy.view import Policy, SchedulerView, StepRecord


@dataclass(frozen=True, slots=True)
class MovedTokens:
    """KV positions so far: preempted by class and kind (requests), copied to the host and back, computed again; those
    of prompts by class and source."""

    preemptions: Mapping[tuple[PriorityClass, PreemptionKind], int]
    copied_out: int
    copied_in: int
    recomputed: int
    prefix: Mapping[tuple[PriorityClass, PrefixSource], int] = field(default_factory=dict)


class Feedback:
    """Lets the policy's controller, the latency model and the traffic learn from each step, and counts steps.

    Writes to what the view shows: its latency model, traffic and queues. Owned by the engine's thread.
    """

    def __init__(self, policy: Policy, view: SchedulerView) -> None:
        self._policy = policy
        self._view = view
        self._totals: Counter[str] = Counter()

    def learn(self, step: StepRecord, features: StepFeatures) -> None:
        """Take in a step that ran, before its tokens are counted."""
        view = self._view
        self._policy.observe(step)
        view.latency.observe(features, max(step.duration_s, 1e-6))
        view.traffic.note_step(step.duration_s)
        totals = self._totals
        totals["steps"] += 1
        totals["rt_tokens"] += step.num_rt_tokens
        totals["be_tokens"] += step.num_be_tokens

    def settle(self, now_s: float) -> None:
        """Relegate waiting requests that turned late, and drop what left the queues."""
        view, is_late = self._view, self._policy.is_late
        for queue in (view.rt_waiting, view.be_waiting):
            if len(queue):
                queue.settle(lambda request: is_late(request, view.latency, now_s))
        if len(view.be_deadlines):
            view.be_deadlines.settle(lambda request: first_deadline_s(request) < now_s)

    def stats(self, moved: MovedTokens) -> SchedulerStats:
        """Return a snapshot."""
        view, totals = self._view, self._totals
        return SchedulerStats(
            requests={
                PriorityClass.REAL_TIME: self._counts(view.rt_waiting, is_rt=True),
                PriorityClass.BEST_EFFORT: self._counts(view.be_waiting, is_rt=False),
            },
            kv=view.kv.usage(),
            latency_coefficients=view.latency.coefficients,
            latency_error_ratio=view.latency.error_ratio,
            total_steps=totals["steps"],
            total_step_tokens={
                PriorityClass.REAL_TIME: totals["rt_tokens"],
                PriorityClass.BEST_EFFORT: totals["be_tokens"],
            },
            total_preemptions=dict(moved.preemptions),
            total_copied_out_tokens=moved.copied_out,
            total_copied_in_tokens=moved.copied_in,
            total_recomputed_tokens=moved.recomputed,
            total_prefix_tokens=dict(moved.prefix),
            total_evicted_slots=view.kv.num_evicted_slots,
        )

    def _counts(self, queue: WaitingQueue, is_rt: bool) -> ClassCounts:
        table = self._view.table
        mine = table.is_active & (table.is_rt == is_rt)
        num_preempted = int((mine & table.is_preempted).sum())
        return ClassCounts(len(queue), int(mine.sum()) - num_preempted, num_preempted)
