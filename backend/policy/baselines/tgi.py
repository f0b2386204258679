"""`tgi`: prefill first, between decodes, as Text Generation Inference does.

Copied from text-generation-inference (backends/v3/src/{backend,queue,block_allocator}.rs): requests in order of
arrival, one class. Running requests decode. Once `waiting_served_ratio` times as many wait as run, or 20 steps
after the last prefill, a step of whole prompts runs alone. It takes up to the token budget, and decodes pause. A
request is let in only if its prompt and all its output fit into the KV pool, so nothing is ever preempted.
"""

from __future__ import annotations

from heapq import merge
from math import ceil

import numpy as np

from backend.core.plan import StepPlan
from backend.policy.packing import Packing
from backend.policy.settings import SchedulerSettings
from backend.policy.view import SchedulerView, StepRecord

_MAX_WAITING_STEPS = 20  # TGI's --max-waiting-tokens


class Tgi:
    """Counts the decode steps since the last prefill."""

    def __init__(self, settings: SchedulerSettings) -> None:
        self._ratio = settings.waiting_served_ratio
        self._num_decode_steps = 0

    def observe(self, step: StepRecord) -> None:
        was_prefill = step.num_rt_tokens + step.num_be_tokens > step.num_seqs
        self._num_decode_steps = 0 if was_prefill else self._num_decode_steps + 1

    def plan(self, view: SchedulerView, now_s: float) -> StepPlan:
        del now_s
        packing = Packing(view)
        num_waiting = len(view.rt_waiting) + len(view.be_waiting)
        num_running = len(view.table.rows())
        is_due = num_waiting >= self._ratio * num_running or self._num_decode_steps >= _MAX_WAITING_STEPS
        self._continue_prompts(view, packing)
        if not packing.requests and is_due:
            self._admit(view, packing)
        if not packing.requests:
            packing.add_decodes(view.table.rows())
        return packing.plan(float("inf"))

    def _continue_prompts(self, view: SchedulerView, packing: Packing) -> None:
        """Go on with prompts that are longer than a step."""
        for rows in (packing.groups.rt_prefills, packing.groups.be_prefills):
            for request in view.table.requests_in(rows):
                packing.add(request, min(request.num_uncomputed, packing.tokens_left))

    def _admit(self, view: SchedulerView, packing: Packing) -> None:
        table, limits = view.table, view.limits
        rows = table.rows()
        block_size = limits.block_size
        num_free = limits.num_slots // block_size - int(np.ceil((table.max_total[rows] - 1) / block_size).sum())
        num_places = limits.max_seqs - len(rows)
        waiting = (view.rt_waiting.in_time(), view.be_waiting.in_time())
        for request in merge(*waiting, key=lambda request: request.arrival_index):
            num_free -= ceil((request.max_total_tokens - 1) / block_size)  # the last token is never computed
            num_tokens = min(request.num_uncomputed, limits.max_tokens)
            if num_free < 0 or num_places < 1 or not packing.add(request, num_tokens):
                return
            num_places -= 1
