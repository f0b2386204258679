"""The BROS policy: real-time requests by deadline, best-effort work in what their deadlines leave.

budgets        how long the step may take, and who may use how much of it
decode_bounds  how long it may be, so that the decodes end in time
real_time      real-time requests enter the step, by deadline
best_effort    best-effort requests enter in the rest
"""

from __future__ import annotations

from backend.core.plan import StepPlan
from backend.core.request import Request, first_deadline_s
from backend.policy.bros.best_effort import BestEffortFill
from backend.policy.bros.budgets import ROUNDING, Budgets
from backend.policy.bros.real_time import RealTimeFill, turn
from backend.policy.packing import Packing
from backend.policy.settings import SchedulerSettings
from backend.policy.state.latency_model import LatencyModel
from backend.policy.state.objectives import time_alone_s
from backend.policy.state.table_loops import Rows
from backend.policy.state.waiting_queue import Key
from backend.policy.view import SchedulerView, StepLimits, StepRecord

_DEPOSIT_S = 0.05  # step time, seconds, that best-effort is owed before it claims any: a burst of prompts goes first
_PERIOD_S = 10.0  # seconds over which it gets its share, although the deposit is kept back


class Bros:
    """Earliest deadline first for real-time, late ones behind; best-effort within the step's budget."""

    def __init__(self, settings: SchedulerSettings, limits: StepLimits) -> None:
        del limits
        self._be_min_share = settings.be_min_share and settings.be_min_share + _DEPOSIT_S / _PERIOD_S
        self._be_owed_s = 0.0  # step time that real-time took of best-effort's share

    def order(self, request: Request) -> Key:
        """RT by deadline, of about equal ones the shortest prompt first; BE by arrival."""
        return turn(first_deadline_s(request), request) if request.is_rt else (0.0, 0)

    def is_late(self, request: Request, latency: LatencyModel, now_s: float) -> bool:
        """Late: the next token would miss its deadline even if the request were served alone."""
        return request.is_rt and now_s + time_alone_s(request, latency) > first_deadline_s(request)

    def observe(self, step: StepRecord) -> None:
        be_s = step.duration_s * step.num_be_tokens / max(1, step.num_rt_tokens + step.num_be_tokens)
        owed_s = self._be_owed_s + self._be_min_share * step.duration_s - be_s
        most_s = _DEPOSIT_S + step.duration_s  # so that saved-up shares do not make one stall
        self._be_owed_s = min(max(0.0, owed_s), most_s)

    def plan(self, view: SchedulerView, now_s: float) -> StepPlan:
        packing = Packing(view)
        budgets = Budgets(view, packing.groups.rt_decodes, now_s)
        credit_s = self._credit_s(budgets)
        num_kept = _num_kept(view, packing, credit_s)
        packing.seqs_left -= num_kept
        real_time = RealTimeFill(view, packing, budgets, now_s)
        real_time.pack_decodes()
        late = real_time.pack_prefills()
        real_time.pack_deferred_decodes()
        end_s = budgets.best_effort_end_s(packing.predicted_s)
        best_effort = BestEffortFill(view, packing, end_s, now_s, longer_later=budgets.are_longer_later)
        best_effort.pack_urgent()
        real_time.pack_late(late)
        packing.seqs_left += num_kept
        best_effort.pack(budgets.prefill_end_s(packing), credit_s)
        return packing.plan(budgets.step_s)

    def decode_budget_s(
        self, view: SchedulerView, decodes: Rows, num: int, predicted_s: float, now_s: float
    ) -> float | None:
        """Return the budget of a plan of nothing but `num` decodes, those of real-time `decodes`: all that runs, with
        slots. None where best-effort might not have the time. Real-time always has it."""
        budgets = Budgets(view, decodes, now_s)
        if len(decodes):
            budgets.heed_decodes()
        if len(decodes) < num:
            rt_s = budgets.decodes_s
            end_s = max(budgets.best_effort_end_s(rt_s), rt_s + self._credit_s(budgets))
            if predicted_s * (1.0 + ROUNDING) > end_s:
                return None
        return budgets.step_s

    def _credit_s(self, budgets: Budgets) -> float:
        """Return the time of this step that best-effort may claim."""
        credit_s = max(0.0, self._be_owed_s - _DEPOSIT_S)
        return credit_s if credit_s and budgets.leaves_kv_slots() else 0.0


def _num_kept(view: SchedulerView, packing: Packing, credit_s: float) -> int:
    """Return the batch slots that real-time leaves to best-effort: as many as it can fill and `credit_s` pays for.

    That is one for a prompt, and one for each decode. Real-time keeps one.
    """
    groups = packing.groups
    has_prefills = len(groups.be_prefills) > 0 or len(view.be_waiting) > 0
    num_paid = int(credit_s / view.traffic.step_s * view.limits.max_seqs)
    return min(len(groups.be_decodes) + has_prefills, num_paid, packing.seqs_left - 1)
