"""PlainPolicy: a policy that is nothing but a plan function, with queues in order of arrival."""

from __future__ import annotations

from collections.abc import Callable

from backend.plan import StepPlan
from backend.policy.latency import LatencyModel
from backend.policy.settings import SchedulerSettings
from backend.policy.view import SchedulerView, StepLimits, StepRecord
from backend.request import Request

PlanFunction = Callable[[SchedulerView, float], StepPlan]


class PlainPolicy:
    """Keeps no state: no window, no late requests, nothing learned."""

    def __init__(self, plan: PlanFunction, settings: SchedulerSettings, limits: StepLimits) -> None:
        del settings
        self._plan = plan
        self._max_tokens = limits.max_tokens

    @property
    def window_tokens(self) -> int:
        return self._max_tokens

    def order(self, request: Request) -> float:
        return request.arrival_index

    def is_late(self, request: Request, latency: LatencyModel, now_s: float) -> bool:
        del request, latency, now_s
        return False

    def plan(self, view: SchedulerView, now_s: float) -> StepPlan:
        return self._plan(view, now_s)

    def observe(self, step: StepRecord) -> None:
        del step
