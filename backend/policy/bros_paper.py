"""`bros_paper`: BROS as published (Wan et al., arXiv 2504.09590), as far as its text says.

Residual time: what is left of the TTFT SLO before the first token, of the TPOT SLO since the last token after it;
nothing is cumulative. Packing: (a) real-time by ascending residual, whole prompts, while the predicted iteration stays
within the most urgent residual; (b) best-effort by ascending KV to bring back, into free places; (c) where the batch is
full, the real-time request with the most slack gives its place to a best-effort one, if the most urgent can still make
it. Batch size: a base of 128, doubled while no deadline binds, back to the base when one does. KV is bidirectional with
lazy checkpoints, by this project's manager.

Where the text is silent: the latency model is this project's; a residual that cannot be met any more binds nothing; a
request that finds no slots although nothing runs takes them from all others.
"""

from __future__ import annotations

from itertools import chain, islice

import numpy as np

from backend.plan import StepPlan
from backend.policy.latency import LatencyModel
from backend.policy.packing import Packing
from backend.policy.settings import SchedulerSettings
from backend.policy.table import first_deadline_s
from backend.policy.view import SchedulerView, StepLimits, StepRecord
from backend.request import Request
from kv.types import Row

_BOUND = 0.9  # part of the tightest residual from which on a step counts as bound by it


class BrosPaper:
    """Holds the batch size of the published controller."""

    def __init__(self, settings: SchedulerSettings, limits: StepLimits) -> None:
        self._base_seqs = min(settings.paper_base_seqs, limits.max_seqs)
        self._max_seqs = limits.max_seqs
        self._num_seqs = self._base_seqs
        self._max_tokens = limits.max_tokens

    @property
    def window_tokens(self) -> int:
        return self._max_tokens

    def order(self, request: Request) -> float:
        return first_deadline_s(request) if request.is_rt else 0.0

    def is_late(self, request: Request, latency: LatencyModel, now_s: float) -> bool:
        del request, latency, now_s
        return False

    def observe(self, step: StepRecord) -> None:
        """Double the batch, or fall back to the base if the step was as long as a residual allowed."""
        is_bound = step.predicted_s >= _BOUND * step.budget_s
        self._num_seqs = self._base_seqs if is_bound else min(self._max_seqs, 2 * self._num_seqs)

    def plan(self, view: SchedulerView, now_s: float) -> StepPlan:
        packing = Packing(view)
        packing.seqs_left = min(packing.seqs_left, self._num_seqs)
        real_time = _by_residual(view, packing, now_s)
        best_effort = _by_restoring(view, packing)
        budget_s = min(
            (residual_s for residual_s, _ in real_time if residual_s > view.latency.c0), default=float("inf")
        )
        if len(real_time) > packing.seqs_left and best_effort and real_time[-1][0] > 2 * view.traffic.step_s:
            real_time.pop()  # (c): the one with the most slack
        for _, request in real_time:
            if not _take_rt(view, packing, request, budget_s):
                break
        for request in best_effort:
            _take_be(packing, request, budget_s)
        if not packing.has_cuts and not any(_is_preempted(view, request) for request in best_effort):
            for request in view.be_waiting.in_time():
                if not _take_be(packing, request, budget_s):
                    break
        return packing.plan(budget_s)


def _by_residual(view: SchedulerView, packing: Packing, now_s: float) -> list[tuple[float, Request]]:
    """Return the real-time requests, those that wait as well, with their residual times, the most urgent first."""
    started = view.table.requests_in(np.concatenate((packing.groups.rt_decodes, packing.groups.rt_prefills)))
    waiting = islice(view.rt_waiting.in_time(), view.limits.max_seqs)
    found = [(_residual_s(request, now_s), request.arrival_index, request) for request in chain(started, waiting)]
    return [(residual_s, request) for residual_s, _, request in sorted(found, key=lambda item: item[:2])]


def _residual_s(request: Request, now_s: float) -> float:
    assert request.slo is not None
    if request.last_token_s is None:
        return first_deadline_s(request) - now_s
    return request.slo.tpot_slo_s - (now_s - request.last_token_s)


def _by_restoring(view: SchedulerView, packing: Packing) -> list[Request]:
    """Return the started best-effort requests by the KV that must come back, then by age."""
    requests = view.table.requests_in(np.concatenate((packing.groups.be_decodes, packing.groups.be_prefills)))
    return sorted(requests, key=lambda request: (_num_lost(view, request), request.arrival_index))


def _num_lost(view: SchedulerView, request: Request) -> int:
    assert request.row is not None
    return view.kv.num_restorable(Row(request.row)) if _is_preempted(view, request) else 0


def _is_preempted(view: SchedulerView, request: Request) -> bool:
    return request.row is not None and bool(view.table.is_preempted[request.row])


def _take_rt(view: SchedulerView, packing: Packing, request: Request, budget_s: float) -> bool:
    """Take all that `request` lacks, at the cost of best-effort slots, then of later real-time ones; False when the
    iteration is full. A request that finds no slots is left out."""
    num_restored = packing.num_to_restore(request, float("inf"))
    num_tokens = min(request.num_uncomputed - num_restored, view.limits.max_tokens)
    cost_s = packing.cost_s(request, num_tokens, num_restored)
    if num_tokens > packing.tokens_left or (packing.num_new_tokens and packing.predicted_s + cost_s > budget_s):
        return False
    needed = num_restored + num_tokens
    victims = _victims(view, packing, request)
    if packing.room_for(request) + sum(map(packing.num_held, victims)) >= needed:
        packing.make_room(request, needed, victims)
    packing.add(request, num_tokens, num_restored)
    return packing.seqs_left > 0


def _victims(view: SchedulerView, packing: Packing, request: Request) -> list[int]:
    """Return rows not in this step: best-effort, the youngest first, then later real-time ones, the latest first."""
    groups = packing.groups
    best_effort = view.table.requests_in(np.concatenate((groups.be_decodes, groups.be_prefills)))
    real_time = view.table.requests_in(np.concatenate((groups.rt_decodes, groups.rt_prefills)))
    is_running = request.row is not None and not _is_preempted(view, request)
    later = [other for other in real_time if is_running and other.arrival_index > request.arrival_index]
    ordered = sorted(best_effort, key=_arrival, reverse=True) + sorted(later, key=_arrival, reverse=True)
    idle = [other.row for other in ordered if other not in packing.num_new_tokens and other.row is not None]
    return [row for row in idle if packing.num_held(row)]


def _arrival(request: Request) -> int:
    return request.arrival_index


def _take_be(packing: Packing, request: Request, budget_s: float) -> bool:
    """Take all that `request` lacks, if a place, the time and the slots are there."""
    if request.row is not None and packing.is_cut(request.row):
        return False
    num_restored = packing.num_to_restore(request, budget_s - packing.predicted_s)
    num_tokens = request.num_uncomputed - num_restored
    cost_s = packing.cost_s(request, num_tokens, num_restored)
    if packing.num_new_tokens and packing.predicted_s + cost_s > budget_s:
        return False
    return packing.add(request, min(num_tokens, packing.tokens_left), num_restored) if packing.tokens_left else False
