"""`priority_tuned`: strict priority as a careful operator would tune it; the baseline that is hard to beat.

From today's practice it takes strict classes. Real-time preempts best-effort at admission: youngest first, all of it,
computed again. Chunked prefill is mixed with decodes (Sarathi-Serve, OSDI 2024), with a step size chosen for the SLO.
Instead of Sarathi's static token budget, the online latency model of BROS bounds every step. The bound is the tightest
TPOT SLO among the running real-time requests, or half of the tightest TTFT SLO where none runs.

It lacks the deadlines of BROS: order is arrival, and a request ahead of its schedule is like one behind. It also lacks
late requests, the share, block sharing, prefixes kept by victims, checkpoints and the look at future memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import merge

import numpy as np

from backend.core.plan import StepPlan
from backend.core.request import Request
from backend.policy.packing import Packing
from backend.policy.state.table_loops import Rows
from backend.policy.view import SchedulerView

_USE = 0.9  # of the SLO that a step may take; the rest is for errors of the model
_IDLE_CAP_S = 0.25  # longest step while no SLO has been seen


def plan_priority_tuned(view: SchedulerView, now_s: float) -> StepPlan:
    """Real-time by arrival, then best-effort by arrival, within a step time chosen for the SLOs."""
    packing = Packing(view)
    budget_s = step_target_s(view, packing, now_s)
    groups = packing.groups
    rt_decodes = _by_arrival(view, groups.rt_decodes)
    max_decodes = min(packing.seqs_left, packing.tokens_left)
    left_out = packing.add_decodes(rt_decodes) + rt_decodes[max_decodes:].tolist()
    for request in merge(_requests(view, groups.rt_prefills), view.rt_waiting.in_time(), key=_arrival):
        if not _take(view, packing, request, budget_s):
            break
    for row in left_out:
        _take(view, packing, view.table.request(row), float("inf"))
    _take_decodes(view, packing, _by_arrival(view, groups.be_decodes), budget_s)
    for request in merge(_requests(view, groups.be_prefills), view.be_waiting.in_time(), key=_arrival):
        if not _take(view, packing, request, budget_s):
            break
    return packing.plan(budget_s)


def step_target_s(view: SchedulerView, packing: Packing, now_s: float) -> float:
    """Return the step time that keeps the tightest TPOT SLO of the running real-time requests."""
    table, groups = view.table, packing.groups
    rows = np.concatenate((groups.rt_decodes, groups.rt_prefills))
    if len(rows):
        return _USE * float(table.tpot_slo_s[rows].min())
    wait_s = view.traffic.rt_objectives.recent(now_s).shortest_wait_s
    return _IDLE_CAP_S if wait_s == float("inf") else wait_s


def _take_decodes(view: SchedulerView, packing: Packing, rows: Rows, budget_s: float) -> None:
    """Do `_take` for each of `rows`, but take those that find their slots many at once."""
    while len(rows := packing.in_time(packing.uncut(rows), budget_s)):
        num_taken = packing.add_first_decodes(rows[: packing.num_in_time(rows, budget_s)])
        if num_taken < len(rows):
            _take(view, packing, view.table.request(int(rows[num_taken])), budget_s)
        rows = rows[num_taken + 1 :]


def _take(view: SchedulerView, packing: Packing, request: Request, budget_s: float) -> bool:
    """Take a chunk of `request`, over the slots of those behind it; whether to go on with the next."""
    if packing.has(request) or (request.row is not None and packing.is_cut(request.row)):
        return True
    num_tokens = packing.chunk(request, budget_s - packing.predicted_s, packing.tokens_left)
    if num_tokens < 1:
        return False
    is_preempted = request.row is not None and bool(view.table.is_preempted[request.row])
    needed = request.num_uncomputed if is_preempted else num_tokens
    if packing.room_for(request) < needed:
        is_entitled = request.is_rt or not (is_preempted or request.row is None)
        if not is_entitled or not packing.make_room_whole(request, needed, _behind(view, packing, request)):
            return False
    return packing.add(request, num_tokens)


def _behind(view: SchedulerView, packing: Packing, request: Request) -> Iterator[int]:
    """Yield the rows that are not in this step and come after `request`: best-effort first, the youngest first."""
    table, rows = view.table, view.table.rows()
    is_rt, is_later = table.is_rt[rows], table.arrival_index[rows] > request.arrival_index
    rows = rows[np.where(is_rt == request.is_rt, is_later, ~is_rt)]
    rows = rows[np.lexsort((-table.arrival_index[rows], table.is_rt[rows]))]
    return (row for row in rows.tolist() if packing.num_held(row) and not packing.is_in_step(row))


def _arrival(request: Request) -> int:
    return request.arrival_index


def _by_arrival(view: SchedulerView, rows: Rows) -> Rows:
    return rows[np.argsort(view.table.arrival_index[rows])]


def _requests(view: SchedulerView, rows: Rows) -> Iterator[Request]:
    return map(view.table.request, _by_arrival(view, rows).tolist())
