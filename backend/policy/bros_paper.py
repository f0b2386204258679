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

from itertools import accumulate, groupby, islice
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from backend.plan import StepPlan
from backend.policy.columns import Rows
from backend.policy.latency import LatencyModel
from backend.policy.packing import Packing
from backend.policy.settings import SchedulerSettings
from backend.policy.table import first_deadline_s
from backend.policy.view import SchedulerView, StepLimits, StepRecord
from backend.request import Request, RequestState
from kv.types import Row

_Urgent = tuple[float, int, Request, bool]  # residual time, arrival index, request, whether all it lacks is one token

_BOUND = 0.9  # part of the tightest residual from which on a step counts as bound by it


class BrosPaper:
    """Holds the batch size of the published controller, `num_seqs`."""

    def __init__(self, settings: SchedulerSettings, limits: StepLimits) -> None:
        self._base_seqs = min(settings.paper_base_seqs, limits.max_seqs)
        self._max_seqs = limits.max_seqs
        self.num_seqs = self._base_seqs
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
        self.num_seqs = self._base_seqs if is_bound else min(self._max_seqs, 2 * self.num_seqs)

    def plan(self, view: SchedulerView, now_s: float) -> StepPlan:
        packing = Packing(view)
        packing.seqs_left = min(packing.seqs_left, self.num_seqs)
        real_time = _by_residual(view, packing, now_s)
        best_effort = _by_restoring(view, packing)
        c0 = view.latency.c0
        budget_s = next((residual_s for residual_s, *_ in real_time if residual_s > c0), float("inf"))
        if len(real_time) > packing.seqs_left and len(best_effort) and real_time[-1][0] > 2 * view.traffic.step_s:
            real_time.pop()  # (c): the one with the most slack
        for is_plain, group in groupby(real_time, itemgetter(3)):
            if not _take_in_turn(view, packing, [request for _, _, request, _ in group], is_plain, budget_s):
                break
        _take_where_room(view, packing, best_effort, budget_s)
        if not packing.has_cuts and not view.table.is_preempted[best_effort].any():
            for request in view.be_waiting.in_time():
                if not _take_be(packing, request, budget_s):
                    break
        return packing.plan(budget_s)


def _by_residual(view: SchedulerView, packing: Packing, now_s: float) -> list[_Urgent]:
    """Return the real-time requests, those that wait as well, the most urgent first."""
    table, groups = view.table, packing.groups
    rows = np.concatenate((groups.rt_decodes, groups.rt_prefills))
    requests = table.requests_in(rows)
    since_last_s = table.tpot_slo_s[rows] - (now_s - table.last_token_s[rows])
    residuals_s = np.where(table.last_token_s[rows] < np.inf, since_last_s, table.deadline_s[rows] - now_s)
    started = zip(
        residuals_s.tolist(), table.arrival_index[rows].tolist(), requests, _is_plain(view, rows).tolist(), strict=True
    )
    waiting = islice(view.rt_waiting.in_time(), view.limits.max_seqs)
    return sorted([*started, *((first_deadline_s(r) - now_s, r.arrival_index, r, False) for r in waiting)])


def _by_restoring(view: SchedulerView, packing: Packing) -> Rows:
    """Return the rows of the started best-effort requests by the KV that must come back, then by age."""
    table, groups = view.table, packing.groups
    rows = np.concatenate((groups.be_decodes, groups.be_prefills))
    num_lost = np.zeros(len(rows), np.int64)
    for index in table.is_preempted[rows].nonzero()[0].tolist():
        num_lost[index] = view.kv.num_restorable(Row(int(rows[index])))
    ordered: Rows = rows[np.lexsort((table.arrival_index[rows], num_lost))]
    return ordered


def _is_plain(view: SchedulerView, rows: Rows) -> NDArray[np.bool_]:
    """Return which of `rows` lack nothing but one token."""
    table = view.table
    is_decode: NDArray[np.bool_] = table.num_known[rows] - table.num_computed[rows] == 1
    is_plain: NDArray[np.bool_] = is_decode & ~table.is_preempted[rows]
    return is_plain


def _take_in_turn(
    view: SchedulerView, packing: Packing, requests: list[Request], are_plain: bool, budget_s: float
) -> bool:
    """Take all that each request lacks, at the cost of best-effort slots, then of later real-time ones; return False
    when the iteration is full. A request that finds no slots is left out. Plain ones are taken many at once."""
    unmet = float("inf")  # slots that one that does not run cannot find, until something is taken
    while requests:
        if are_plain:
            rows = np.array([request.row for request in requests], np.int64)
            requests = requests[packing.add_first_decodes(rows[: packing.num_in_time(rows, budget_s)]) :]
            if packing.seqs_left < 1 or not requests:
                return packing.seqs_left > 0
        request = requests.pop(0)
        num_restored = packing.num_to_restore(request, float("inf"))
        num_tokens = min(request.num_uncomputed - num_restored, view.limits.max_tokens)
        cost_s = packing.cost_s(request, num_tokens, num_restored)
        if num_tokens > packing.tokens_left or (packing.num_new_tokens and packing.predicted_s + cost_s > budget_s):
            return False
        needed = num_restored + num_tokens
        is_running = request.state is RequestState.RUNNING
        num_own = 0 if request.row is None else view.limits.block_size  # the most room that only it can use
        if not is_running and needed - num_own >= unmet:
            continue
        most = _make_room(view, packing, request, needed)
        if most >= needed:
            packing.add(request, num_tokens, num_restored)
            unmet = float("inf")
        elif not is_running:
            unmet = min(unmet, most + 1)
        if packing.seqs_left < 1:
            return False
    return True


def _make_room(view: SchedulerView, packing: Packing, request: Request, num_slots: int) -> int:
    """Take from others what `request` needs to grow by `num_slots`, but nothing if even all that they hold would not
    do. Return by how much it could grow at most; or any number that is enough."""
    room = packing.room_for(request, num_slots)
    if room >= num_slots:
        return room
    victims = _victims(view, packing, request)
    totals = accumulate(map(packing.num_held, victims), initial=room)
    most = next((total for total in totals if total >= num_slots), None)
    if most is None:
        return room + sum(map(packing.num_held, victims))
    packing.make_room(request, num_slots, victims)
    return most


def _victims(view: SchedulerView, packing: Packing, request: Request) -> list[int]:
    """Return rows not in this step: best-effort, the youngest first, then later real-time ones, the latest first."""
    table, groups = view.table, packing.groups
    rows = np.concatenate((groups.be_decodes, groups.be_prefills))
    if request.row is not None and not table.is_preempted[request.row]:
        real_time = np.concatenate((groups.rt_decodes, groups.rt_prefills))
        rows = np.concatenate((rows, real_time[table.arrival_index[real_time] > request.arrival_index]))
    rows = packing.idle(rows)
    victims: list[int] = rows[np.lexsort((-table.arrival_index[rows], table.is_rt[rows]))].tolist()
    return victims


def _take_where_room(view: SchedulerView, packing: Packing, rows: Rows, budget_s: float) -> None:
    """Do `_take_be` for each of `rows`, but take plain ones many at once."""
    rows = packing.uncut(rows)
    is_plain = _is_plain(view, rows)
    for rest in np.split(rows, np.diff(is_plain).nonzero()[0] + 1):
        if not len(rest) or packing.seqs_left < 1:
            return
        if _is_plain(view, rest[:1])[0]:
            _take_plain(packing, rest, budget_s)
        else:
            for request in view.table.requests_in(rest):
                _take_be(packing, request, budget_s)


def _take_plain(packing: Packing, rows: Rows, budget_s: float) -> None:
    """Take one token of each of `rows` for which there is time and a slot, in order."""
    while packing.seqs_left and len(rows := packing.in_time(rows, budget_s)):
        num = packing.num_in_time(rows, budget_s)
        packing.add_decodes(rows[:num])
        rows = rows[num:]


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
