"""First come, first served, as vLLM v1's scheduler does it: the baseline that knows no classes."""

from __future__ import annotations

from backend.plan import StepPlan
from backend.policy.latency import LatencyModel
from backend.policy.running_first import plan_running_first
from backend.policy.settings import SchedulerSettings
from backend.policy.view import SchedulerView, StepLimits, StepRecord
from backend.request import Request


class Fcfs:
    """Running requests in order of admission, then waiting ones in order of arrival, both classes alike."""

    def __init__(self, settings: SchedulerSettings, limits: StepLimits) -> None:
        del settings
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
        del now_s
        return plan_running_first(view, rank=_same_rank)

    def observe(self, step: StepRecord) -> None:
        del step


def _same_rank(request: Request) -> int:
    del request
    return 0
