"""The step of vLLM v1's scheduler, which `fcfs` and `priority` share.

Copied from vllm/v1/core/sched/scheduler.py: running requests first, in order of admission, each with all its uncomputed
tokens as far as the token budget goes; one that finds no KV blocks preempts the last of its kind, which loses
everything and is computed again; then, unless something was preempted, waiting requests in order, up to the first
that does not fit. Prompts are chunked by the token budget.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import merge

from backend.plan import StepPlan
from backend.policy.packing import Packing
from backend.policy.view import SchedulerView
from backend.request import Request

Rank = Callable[[Request], int]  # 0 is served first; vLLM's `priority`


def plan_running_first(view: SchedulerView, rank: Rank) -> StepPlan:
    """Return the step of running requests, then waiting ones by (rank, arrival)."""
    packing, table = Packing(view), view.table
    rows = sorted(view.table.rows().tolist(), key=lambda row: int(table.admission_index[row]))
    running = [row for row in rows if not table.is_preempted[row]]
    by_loss = sorted(running, key=lambda row: (rank(table.request(row)), int(table.admission_index[row])))
    for row in running:
        request = table.request(row)
        if not packing.is_cut(row):
            _run(packing, request, [victim for victim in reversed(by_loss) if victim != row])
    if not packing.has_cuts:
        preempted = [table.request(row) for row in rows if table.is_preempted[row]]
        _admit(view, packing, preempted, rank)
    return packing.plan(float("inf"))


def _run(packing: Packing, request: Request, victims: list[int]) -> None:
    num_tokens = min(request.num_uncomputed, packing.tokens_left)
    if num_tokens < 1 or packing.seqs_left < 1:
        return
    free = [victim for victim in victims if not packing.is_in_step(victim) and packing.num_held(victim)]
    if packing.make_room(request, num_tokens, free, keeps_prefix=False):
        packing.add(request, num_tokens)


def _admit(view: SchedulerView, packing: Packing, preempted: list[Request], rank: Rank) -> None:
    def key(request: Request) -> tuple[int, bool, int]:
        return (rank(request), request.row is None, request.arrival_index)

    queues = (sorted(preempted, key=key), view.rt_waiting.in_time(), view.be_waiting.in_time())
    for request in merge(*queues, key=key):
        num_tokens = packing.chunk(request, float("inf"), packing.tokens_left)
        if num_tokens < 1 or not packing.add(request, num_tokens):
            return
