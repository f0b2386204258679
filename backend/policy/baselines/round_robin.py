"""`round_robin`: the classes take turns, step by step; the ablation that the BROS paper compares with (§6).

Within a turn requests are served as vLLM does (`running_first`). Memory goes to the class in turn: it may preempt the
other.
"""

from __future__ import annotations

from backend.core.plan import StepPlan
from backend.core.request import PriorityClass
from backend.policy.baselines.running_first import run_then_admit
from backend.policy.packing import Packing
from backend.policy.view import SchedulerView, StepRecord


class RoundRobin:
    """Remembers whose turn it is."""

    def __init__(self) -> None:
        self._is_rt_turn = True

    def observe(self, step: StepRecord) -> None:
        self._is_rt_turn = step.num_rt_tokens == 0

    def plan(self, view: SchedulerView, now_s: float) -> StepPlan:
        """Serve the class in turn; the other where it has nothing to do; the oldest where all wait for slots."""
        del now_s
        turns = (PriorityClass.REAL_TIME, PriorityClass.BEST_EFFORT)
        for turn in turns if self._is_rt_turn else reversed(turns):
            packing = Packing(view)
            run_then_admit(view, packing, turn, is_alone=True)
            if packing.requests:
                return packing.plan(float("inf"))
        return Packing(view).plan(float("inf"))
