"""`fcfs` and `priority`: the step of vLLM v1's scheduler, without and with its request priority.

Copied from vllm/v1/core/sched/scheduler.py: running requests first, in order of admission, each with all its uncomputed
tokens as far as the token budget goes; one that finds no KV blocks preempts the last of the least priority, which loses
everything and is computed again; then, unless something was preempted, waiting requests by (priority, arrival), up to
the first that does not fit. Prompts are chunked by the token budget. Nothing knows a deadline.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import merge

from backend.plan import StepPlan
from backend.policy.packing import Packing
from backend.policy.view import SchedulerView
from backend.request import Request

Rank = Callable[[Request], int]  # 0 is served first; vLLM's `priority`


def plan_fcfs(view: SchedulerView, now_s: float) -> StepPlan:
    """Serve both classes alike."""
    del now_s
    packing = Packing(view)
    run_then_admit(view, packing, _same_rank)
    return packing.plan(float("inf"))


def plan_priority(view: SchedulerView, now_s: float) -> StepPlan:
    """Admit real-time first, preempt best-effort first; what runs keeps its place all the same."""
    del now_s
    packing = Packing(view)
    run_then_admit(view, packing, class_rank)
    return packing.plan(float("inf"))


def class_rank(request: Request) -> int:
    """Rank real-time before best-effort."""
    return 0 if request.is_rt else 1


def _same_rank(request: Request) -> int:
    del request
    return 0


def run_then_admit(view: SchedulerView, packing: Packing, rank: Rank, only: Rank | None = None) -> None:
    """Take the running requests, then waiting ones by (rank, arrival); only those for which `only` is 0, if given."""
    table = view.table
    rows = sorted(table.rows().tolist(), key=lambda row: int(table.admission_index[row]))
    running = [row for row in rows if not table.is_preempted[row]]
    by_loss = sorted(running, key=lambda row: (rank(table.request(row)), int(table.admission_index[row])), reverse=True)
    for row in running:
        request = table.request(row)
        if not packing.is_cut(row) and (only is None or not only(request)):
            _run(packing, request, [victim for victim in by_loss if victim != row])
    if not packing.has_cuts:
        preempted = [table.request(row) for row in rows if table.is_preempted[row]]
        _admit(view, packing, preempted, rank, only)


def _run(packing: Packing, request: Request, victims: list[int]) -> None:
    num_tokens = min(request.num_uncomputed, packing.tokens_left)
    if num_tokens < 1 or packing.seqs_left < 1:
        return
    if packing.room_for(request, num_tokens) < num_tokens:
        idle = (victim for victim in victims if not packing.is_in_step(victim) and packing.num_held(victim))
        packing.make_room_whole(request, num_tokens, idle)
    packing.add(request, num_tokens)


def _admit(view: SchedulerView, packing: Packing, preempted: list[Request], rank: Rank, only: Rank | None) -> None:
    def key(request: Request) -> tuple[int, bool, int]:
        return (rank(request), request.row is None, request.arrival_index)

    num_places = view.limits.max_seqs - len(view.table.rows()) + len(preempted)
    for request in merge(sorted(preempted, key=key), view.rt_waiting.in_time(), view.be_waiting.in_time(), key=key):
        if only is not None and only(request):
            continue
        num_tokens = packing.chunk(request, float("inf"), packing.tokens_left)
        if num_places < 1 or num_tokens < 1 or not packing.add(request, num_tokens):
            return
        num_places -= 1
