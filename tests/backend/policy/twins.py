"""Slow, obvious twins of the baselines: one request after the other, each order by `sorted`. The same plans."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from heapq import merge
from itertools import islice

from backend.core.plan import StepPlan
from backend.core.request import Request, RequestState, first_deadline_s
from backend.policy.baselines.bros_paper import BrosPaper
from backend.policy.baselines.priority_tuned import step_target_s
from backend.policy.packing import Packing
from backend.policy.view import Policy, SchedulerView, StepRecord
from kv.types import Row

Rank = Callable[[Request], int]
Twin = Callable[[Policy, SchedulerView, float], StepPlan]


def _started(view: SchedulerView) -> list[Request]:
    return view.table.requests_in(view.table.rows())


def _is_preempted(request: Request) -> bool:
    return request.state is RequestState.PREEMPTED


def _row(request: Request) -> Row:
    assert request.row is not None
    return Row(request.row)


def _arrival(request: Request) -> int:
    return request.arrival_index


# fcfs, priority, round_robin


def _rank_behind(is_rt: bool, request: Request) -> int:
    return int(request.is_rt != is_rt)


def plan_fcfs(_policy: Policy, view: SchedulerView, _now_s: float) -> StepPlan:
    packing = Packing(view)
    _run_then_admit(view, packing, lambda _request: 0)
    return packing.plan(float("inf"))


def plan_priority(_policy: Policy, view: SchedulerView, _now_s: float) -> StepPlan:
    packing = Packing(view)
    _run_then_admit(view, packing, partial(_rank_behind, True))
    return packing.plan(float("inf"))


class RoundRobin:
    """Keeps whose turn it is."""

    def __init__(self) -> None:
        self._is_rt_turn = True

    def observe(self, step: StepRecord) -> None:
        self._is_rt_turn = step.num_rt_tokens == 0

    def plan(self, _policy: Policy, view: SchedulerView, _now_s: float) -> StepPlan:
        for is_rt in (self._is_rt_turn, not self._is_rt_turn):
            packing = Packing(view)
            _run_then_admit(view, packing, partial(_rank_behind, is_rt), is_alone=True)
            if packing.requests:
                return packing.plan(float("inf"))
        return Packing(view).plan(float("inf"))


def _run_then_admit(view: SchedulerView, packing: Packing, rank: Rank, is_alone: bool = False) -> None:
    admission = view.table.admission_index
    started = sorted(_started(view), key=lambda request: int(admission[_row(request)]))
    running = [request for request in started if not _is_preempted(request)]
    by_loss = sorted(running, key=lambda request: (rank(request), int(admission[_row(request)])), reverse=True)
    for request in running:
        num_tokens = min(request.num_uncomputed, packing.tokens_left)
        if packing.is_cut(_row(request)) or (is_alone and rank(request)) or num_tokens < 1 or packing.seqs_left < 1:
            continue
        if packing.room_for(request) < num_tokens:
            others = [_row(other) for other in by_loss if other is not request and not packing.has(other)]
            packing.make_room_whole(request, num_tokens, filter(packing.num_held, others))
        packing.add(request, num_tokens)
    if packing.has_cuts:
        return
    waiting = [*filter(_is_preempted, started), *view.rt_waiting.in_time(), *view.be_waiting.in_time()]
    num_places = view.limits.max_seqs - len(running)
    for request in sorted(waiting, key=lambda request: (rank(request), request.row is None, request.arrival_index)):
        num_tokens = packing.chunk(request, float("inf"), packing.tokens_left)
        if is_alone and rank(request):
            continue
        if num_places < 1 or num_tokens < 1 or not packing.add(request, num_tokens):
            return
        num_places -= 1


# priority_tuned


def plan_priority_tuned(_policy: Policy, view: SchedulerView, now_s: float) -> StepPlan:
    packing = Packing(view)
    budget_s = step_target_s(view, packing, now_s)
    started = sorted(_started(view), key=lambda request: (not request.is_rt, request.arrival_index))
    rt_decodes = [request for request in started if request.is_rt and request.num_uncomputed == 1]
    rt_prefills = [request for request in started if request.is_rt and request.num_uncomputed > 1]
    be_decodes = [request for request in started if not request.is_rt and request.num_uncomputed == 1]
    be_prefills = [request for request in started if not request.is_rt and request.num_uncomputed > 1]
    for request in rt_decodes[: min(packing.seqs_left, packing.tokens_left)]:
        packing.add(request, 1)
    for request in merge(rt_prefills, view.rt_waiting.in_time(), key=_arrival):
        if not _take(view, packing, request, budget_s):
            break
    for request in rt_decodes:
        _take(view, packing, request, float("inf"))
    for request in be_decodes:
        _take(view, packing, request, budget_s)
    for request in merge(be_prefills, view.be_waiting.in_time(), key=_arrival):
        if not _take(view, packing, request, budget_s):
            break
    return packing.plan(budget_s)


def _take(view: SchedulerView, packing: Packing, request: Request, budget_s: float) -> bool:
    if packing.has(request) or (request.row is not None and packing.is_cut(request.row)):
        return True
    num_tokens = packing.chunk(request, budget_s - packing.predicted_s, packing.tokens_left)
    if num_tokens < 1:
        return False
    needed = request.num_uncomputed if _is_preempted(request) else num_tokens
    if packing.room_for(request) < needed:
        is_entitled = request.is_rt or request.state is RequestState.RUNNING
        if not is_entitled or not packing.make_room_whole(request, needed, _behind(view, packing, request)):
            return False
    return packing.add(request, num_tokens)


def _behind(view: SchedulerView, packing: Packing, request: Request) -> list[int]:
    def place(other: Request) -> tuple[bool, int]:
        return (not other.is_rt, other.arrival_index)

    behind = sorted((other for other in _started(view) if place(other) > place(request)), key=place, reverse=True)
    return [_row(other) for other in behind if not packing.has(other) and packing.num_held(_row(other))]


# bros_paper


def plan_bros_paper(policy: Policy, view: SchedulerView, now_s: float) -> StepPlan:
    assert isinstance(policy, BrosPaper)
    packing = Packing(view)
    packing.seqs_left = min(packing.seqs_left, policy.num_seqs)

    def residual_s(request: Request) -> float:
        if not request.num_output or request.slo is None:
            return first_deadline_s(request) - now_s
        return request.slo.tpot_slo_s - (now_s - float(view.table.last_token_s[_row(request)]))

    def num_lost(request: Request) -> int:
        return view.kv.num_restorable(_row(request)) if _is_preempted(request) else 0

    started_rt = [request for request in _started(view) if request.is_rt]
    started_be = [request for request in _started(view) if not request.is_rt]
    waiting = islice(view.rt_waiting.in_time(), view.limits.max_seqs)
    real_time = sorted([*started_rt, *waiting], key=lambda request: (residual_s(request), request.arrival_index))
    best_effort = sorted(started_be, key=lambda request: (num_lost(request), request.arrival_index))
    residuals_s = list(map(residual_s, real_time))
    budget_s = min((value for value in residuals_s if value > view.latency.c0), default=float("inf"))
    is_full = len(real_time) > packing.seqs_left
    if is_full and best_effort and residuals_s[-1] > 2 * view.traffic.step_s:
        real_time.pop()
    for request in real_time:
        if not _take_rt(view, packing, request, budget_s):
            break
    for request in best_effort:
        _take_be(packing, request, budget_s)
    if not packing.has_cuts and not any(map(_is_preempted, best_effort)):
        for request in view.be_waiting.in_time():
            if not _take_be(packing, request, budget_s):
                break
    return packing.plan(budget_s)


def _take_rt(view: SchedulerView, packing: Packing, request: Request, budget_s: float) -> bool:
    num_restored = packing.num_to_restore(request, float("inf"))
    num_tokens = min(request.num_uncomputed - num_restored, view.limits.max_tokens)
    cost_s = packing.cost_s(request, num_tokens, num_restored)
    if num_tokens > packing.tokens_left or (packing.requests and packing.predicted_s + cost_s > budget_s):
        return False
    is_running = request.state is RequestState.RUNNING
    younger = sorted(_started(view), key=_arrival, reverse=True)
    victims = [other for other in younger if not other.is_rt]
    victims += [o for o in younger if o.is_rt and is_running and o.arrival_index > request.arrival_index]
    rows = [_row(other) for other in victims if not packing.has(other)]
    if packing.room_for(request) + sum(map(packing.num_held, rows)) >= num_restored + num_tokens:
        packing.make_room(request, num_restored + num_tokens, filter(packing.num_held, rows))
    packing.add(request, num_tokens, num_restored)
    return packing.seqs_left > 0


def _take_be(packing: Packing, request: Request, budget_s: float) -> bool:
    if request.row is not None and packing.is_cut(request.row):
        return False
    num_restored = packing.num_to_restore(request, budget_s - packing.predicted_s)
    num_tokens = request.num_uncomputed - num_restored
    cost_s = packing.cost_s(request, num_tokens, num_restored)
    if packing.requests and packing.predicted_s + cost_s > budget_s:
        return False
    return packing.tokens_left > 0 and packing.add(request, min(num_tokens, packing.tokens_left), num_restored)
