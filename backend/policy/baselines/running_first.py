"""`fcfs` and `priority`: the step of vLLM v1's scheduler, without and with its request priority.

Copied from vllm/v1/core/sched/scheduler.py. Running requests come first, in order of admission, each with all its
uncomputed tokens as far as the token budget goes. One that finds no KV blocks preempts the last of the least priority,
which loses everything and is computed again. Then, unless something was preempted, waiting requests follow by
(priority, arrival), up to the first that does not fit. Prompts are chunked by the token budget. Nothing knows a
deadline.
"""

from __future__ import annotations

from heapq import merge

import numpy as np

from backend.core.plan import StepPlan
from backend.core.request import PriorityClass, Request
from backend.policy.packing import Packing
from backend.policy.state.table_loops import Rows
from backend.policy.view import SchedulerView


def plan_fcfs(view: SchedulerView, now_s: float) -> StepPlan:
    """Serve both classes alike."""
    del now_s
    packing = Packing(view)
    run_then_admit(view, packing)
    return packing.plan(float("inf"))


def plan_priority(view: SchedulerView, now_s: float) -> StepPlan:
    """Admit real-time first, preempt best-effort first; what runs goes on all the same."""
    del now_s
    packing = Packing(view)
    run_then_admit(view, packing, PriorityClass.REAL_TIME)
    return packing.plan(float("inf"))


def run_then_admit(
    view: SchedulerView, packing: Packing, first: PriorityClass | None = None, is_alone: bool = False
) -> None:
    """Take the running requests, then waiting ones by (class, arrival). The class that comes `first`, if one does, is
    admitted first and preempted last; nothing of the other is taken if it `is_alone`."""
    table = view.table
    rows = table.rows()
    running = rows[~table.is_preempted[rows]]
    running = running[np.argsort(table.admission_index[running])]
    is_behind = np.zeros(len(running), bool)
    if first is not None:
        is_behind = table.is_rt[running] != (first is PriorityClass.REAL_TIME)
    by_loss = running[np.argsort(is_behind, kind="stable")[::-1]]
    _run_all(view, packing, running[~is_behind] if is_alone else running, by_loss)
    if not packing.has_cuts:
        _admit(view, packing, first, is_alone)


def _run_all(view: SchedulerView, packing: Packing, rows: Rows, by_loss: Rows) -> None:
    """Do `_run` for each of `rows` in order, but take decodes all at once as far as they find slots."""
    is_decode = view.table.num_known - view.table.num_computed == 1
    while len(rows) and packing.seqs_left and packing.tokens_left:
        others = (~is_decode[rows]).nonzero()[0]
        num_decodes = min(int(others[0]) if len(others) else len(rows), packing.seqs_left, packing.tokens_left)
        num_taken = packing.add_first_decodes(rows[:num_decodes])
        rest = rows[num_taken:]
        rows = rest[1:]
        if len(rest) and _run(view, packing, int(rest[0]), by_loss):
            rows = packing.uncut(rows)


def _run(view: SchedulerView, packing: Packing, row: int, by_loss: Rows) -> bool:
    """Take all that the request in `row` lacks, over the slots of the first of `by_loss`; whether any were taken."""
    request = view.table.request(row)
    num_tokens = min(request.num_uncomputed, packing.tokens_left)
    if num_tokens < 1 or packing.seqs_left < 1:
        return False
    is_short = packing.room_for(request, num_tokens) < num_tokens
    if is_short:
        victims = (victim for victim in by_loss.tolist() if victim != row and not packing.is_in_step(victim))
        packing.make_room_whole(request, num_tokens, filter(packing.num_held, victims))
    packing.add(request, num_tokens)
    return is_short


def _admit(view: SchedulerView, packing: Packing, first: PriorityClass | None, is_alone: bool) -> None:
    def key(request: Request) -> tuple[bool, bool, int]:
        is_behind = first is not None and request.priority_class is not first
        return (is_behind, request.row is None, request.arrival_index)

    table = view.table
    rows = table.rows()
    preempted = table.requests_in(rows[table.is_preempted[rows]])
    num_places = view.limits.max_seqs - len(rows) + len(preempted)
    for request in merge(sorted(preempted, key=key), view.rt_waiting.in_time(), view.be_waiting.in_time(), key=key):
        num_tokens = packing.chunk(request, float("inf"), packing.tokens_left)
        if is_alone and request.priority_class is not first:
            return
        if num_places < 1 or num_tokens < 1 or not packing.add(request, num_tokens):
            return
        num_places -= 1
