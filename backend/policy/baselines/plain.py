"""PlainPolicy: a plan function and what it learns from, with queues in order of arrival; what the baselines share."""

from __future__ import annotations

from collections.abc import Callable

from backend.core.plan import StepPlan
from backend.core.request import Request
from backend.policy.state.latency_model import LatencyModel
from backend.policy.view import SchedulerView, StepRecord

PlanFunction = Callable[[SchedulerView, float], StepPlan]
Observe = Callable[[StepRecord], None]


class PlainPolicy:
    """No late requests; `observe` is called after each step, if given."""

    def __init__(self, plan: PlanFunction, observe: Observe | None = None) -> None:
        self._plan = plan
        self._observe = observe

    def order(self, request: Request) -> float:
        return request.arrival_index

    def is_late(self, request: Request, latency: LatencyModel, now_s: float) -> bool:
        del request, latency, now_s
        return False

    def plan(self, view: SchedulerView, now_s: float) -> StepPlan:
        return self._plan(view, now_s)

    def observe(self, step: StepRecord) -> None:
        if self._observe is not None:
            self._observe(step)
