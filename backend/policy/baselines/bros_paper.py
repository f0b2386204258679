"""`bros_paper`: BROS as published (Wan et al., arXiv 2504.09590), as far as its text goes.

Residual time: the rest of the TTFT SLO before the first token, the rest of the TPOT SLO since the last token after it.
Nothing is cumulative. Packing has three parts:

(a) Real-time by ascending residual, whole prompts, while the predicted iteration stays within the most urgent residual.
(b) Best-effort by ascending KV to bring back, into free batch slots.
(c) Where the batch is full, the real-time request with the most slack gives its batch slot to a best-effort one. It
does so only if the most urgent can still make it.

Batch size: a base of 128, doubled while no deadline binds, back to the base when one does. KV is bidirectional with
lazy checkpoints, by this project's manager.

Where the text is silent: The latency model is this project's. A residual that cannot be met any more binds nothing. A
request that finds no slots although nothing runs takes them from all others.
"""

from __future__ import annotations

from functools import cached_property
from itertools import islice, pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from backend.core.plan import StepPlan
from backend.core.request import Request, first_deadline_s
from backend.policy.packing import Packing
from backend.policy.settings import SchedulerSettings
from backend.policy.state.latency_model import LatencyModel
from backend.policy.state.table_loops import Rows
from backend.policy.view import SchedulerView, StepLimits, StepRecord
from kv.types import Row

_BOUND = 0.9  # part of the tightest residual from which on a step counts as bound by it.
_WINDOW = 64  # Requests looked at together for the next one that may find slots


class BrosPaper:
    """Holds the batch size of the published controller, `num_seqs`."""

    def __init__(self, settings: SchedulerSettings, limits: StepLimits) -> None:
        self._base_seqs = min(settings.paper_base_seqs, limits.max_seqs)
        self._max_seqs = limits.max_seqs
        self.num_seqs = self._base_seqs

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
        residuals_s = real_time.residual_s
        budget_s = min(residuals_s[residuals_s > view.latency.c0].tolist(), default=float("inf"))
        num_real_time = len(residuals_s)
        if num_real_time > packing.seqs_left and len(best_effort) and residuals_s[-1] > 2 * view.traffic.step_s:
            num_real_time -= 1  # (c): the one with the most slack
        _Turns(view, packing, real_time, budget_s).take_first(num_real_time)
        _take_where_room(view, packing, best_effort, budget_s)
        if not packing.has_cuts and not view.table.is_preempted[best_effort].any():
            for request in view.be_waiting.in_time():
                if not _take_be(packing, request, budget_s):
                    break
        return packing.plan(budget_s)


class _Urgent(NamedTuple):
    """Real-time requests as columns, the most urgent first. Those that wait have no row: there `rows` says nothing."""

    requests: list[Request]
    residual_s: NDArray[np.float64]
    rows: Rows
    num_computed: NDArray[np.int64]
    num_uncomputed: NDArray[np.int64]
    is_running: NDArray[np.bool_]
    is_waiting: NDArray[np.bool_]


def _by_residual(view: SchedulerView, packing: Packing, now_s: float) -> _Urgent:
    """Return the real-time requests, those that wait as well, the most urgent first."""
    table, groups = view.table, packing.groups
    rows = np.concatenate((groups.rt_decodes, groups.rt_prefills))
    started = table.requests_in(rows)
    last_token_s = table.last_token_s[rows]
    since_last_s = table.tpot_slo_s[rows] - (now_s - last_token_s)
    residual_s = np.where(last_token_s < np.inf, since_last_s, table.deadline_s[rows] - now_s)
    waiting = list(islice(view.rt_waiting.in_time(), view.limits.max_seqs))
    nothing = np.zeros(len(waiting), np.int64)
    residual_s = np.concatenate((residual_s, [first_deadline_s(request) - now_s for request in waiting]))
    arrival_index = np.concatenate((table.arrival_index[rows], [request.arrival_index for request in waiting]))
    num_known = np.concatenate((table.num_known[rows], np.array([len(r.token_ids) for r in waiting], np.int64)))
    num_cached = np.array([request.num_computed for request in waiting], np.int64)
    num_computed = np.concatenate((table.num_computed[rows], num_cached))
    order = np.lexsort((arrival_index, residual_s))
    requests = [*started, *waiting]
    return _Urgent(
        requests=[requests[index] for index in order.tolist()],
        residual_s=residual_s[order],
        rows=np.concatenate((rows, nothing))[order],
        num_computed=num_computed[order],
        num_uncomputed=(num_known - num_computed)[order],
        is_running=np.concatenate((~table.is_preempted[rows], nothing > 0))[order],
        is_waiting=order >= len(rows),
    )


def _by_restoring(view: SchedulerView, packing: Packing) -> Rows:
    """Return the rows of the started best-effort requests by the KV that must come back, then by age."""
    table, groups = view.table, packing.groups
    rows = np.concatenate((groups.be_decodes, groups.be_prefills))
    num_lost = _num_restorable(view, rows)
    ordered: Rows = rows[np.lexsort((table.arrival_index[rows], num_lost))]
    return ordered


def _is_plain(view: SchedulerView, rows: Rows) -> NDArray[np.bool_]:
    """Return which of `rows` lack nothing but one token."""
    table = view.table
    is_decode: NDArray[np.bool_] = table.num_known[rows] - table.num_computed[rows] == 1
    is_plain: NDArray[np.bool_] = is_decode & ~table.is_preempted[rows]
    return is_plain


def _num_restorable(view: SchedulerView, rows: Rows) -> NDArray[np.int64]:
    """Return how many positions of each of `rows` the host could give back."""
    is_preempted = view.table.is_preempted[rows]
    num_restorable = np.zeros(len(rows), np.int64)
    num_restorable[is_preempted] = [view.kv.num_restorable(Row(row)) for row in rows[is_preempted].tolist()]
    return num_restorable


class _Needs(NamedTuple):
    """What each of the requests lacks, as columns.

    num_restored, num_tokens, cost_s: positions to copy back, tokens to compute, and the time of both, without what the
    first prefill of a step costs. least_room: slots that must be found outside of its own last block; 0 for one that
    runs, since it may take them from others.
    """

    num_restored: NDArray[np.int64]
    num_tokens: NDArray[np.int64]
    cost_s: NDArray[np.float64]
    least_room: NDArray[np.int64]


def _needs_of(view: SchedulerView, packing: Packing, urgent: _Urgent) -> _Needs:
    """Do `packing.num_to_restore` and `packing.cost_s` for all of `urgent` at once."""
    latency, is_preempted = view.latency, ~(urgent.is_running | urgent.is_waiting)
    num_restored = np.zeros(len(urgent.rows), np.int64)
    if not packing.has_cuts:
        num_restored[is_preempted] = _num_restorable(view, urgent.rows[is_preempted])
        num_restored = np.minimum(num_restored, urgent.num_uncomputed - 1)
        num_restored[latency.c4 * num_restored >= _prefill_s(latency, num_restored, urgent.num_computed)] = 0
    num_tokens = np.minimum(urgent.num_uncomputed - num_restored, view.limits.max_tokens)
    start = urgent.num_computed + num_restored
    compute_s = np.where(num_tokens == 1, latency.c1 + latency.c2 * start, _prefill_s(latency, num_tokens, start))
    num_own = np.where(urgent.is_waiting, 0, view.limits.block_size)  # the most room that only it can use
    least_room = np.where(urgent.is_running, 0, num_restored + num_tokens - num_own)
    return _Needs(num_restored, num_tokens, compute_s + latency.c4 * num_restored, least_room)


def _prefill_s(latency: LatencyModel, num_tokens: NDArray[np.int64], context: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return `LatencyModel.prefill_s` of each: the equation is one of columns as well."""
    times_s: NDArray[np.float64] = latency.prefill_s(num_tokens, context)  # type: ignore[arg-type, assignment]
    return times_s


class _Turns:
    """Takes all that each real-time request lacks, the most urgent first, at the cost of best-effort slots, then, if it
    runs, of later real-time ones. A request that finds no slots is left out."""

    def __init__(self, view: SchedulerView, packing: Packing, urgent: _Urgent, budget_s: float) -> None:
        self._view = view
        self._packing = packing
        self._urgent = urgent
        self._budget_s = budget_s
        self._num_idle = view.table.num_computed.copy()  # by row: positions held, 0 for those in this step
        self._unmet = float("inf")  # slots that one that does not run cannot find, until something is taken

    def take_first(self, num_requests: int) -> None:
        """Take the first `num_requests`, or as many as the iteration holds."""
        is_plain = self._urgent.is_running & (self._urgent.num_uncomputed == 1)
        is_plain = is_plain[:num_requests]
        changes = (np.diff(is_plain).nonzero()[0] + 1).tolist()
        edges = [0, *changes, num_requests] if num_requests else []
        for start, end in pairwise(edges):
            if not (self._take_plain(start, end) if is_plain[start] else self._take_others(start, end)):
                return

    def _take_plain(self, start: int, end: int) -> bool:
        """Take requests that lack nothing but one token, many at once; return False when the iteration is full."""
        packing = self._packing
        while start < end:
            rows = self._urgent.rows[start:end]
            num_taken = packing.add_first_decodes(rows[: packing.num_in_time(rows, self._budget_s)])
            self._num_idle[rows[:num_taken]] = 0
            start += num_taken
            if packing.seqs_left < 1 or (start < end and not self._take(start)):
                return False
            start += 1
        return True

    def _take_others(self, start: int, end: int) -> bool:
        """Take requests one by one; return False when the iteration is full."""
        self._unmet = float("inf")
        while (start := self._next(start, end)) < end:
            if not self._take(start):
                return False
            start += 1
        return True

    def _next(self, start: int, end: int) -> int:
        """Return the first request from `start` on that may find slots, or ends the iteration; `end` if none does."""
        if self._unmet == float("inf"):
            return start
        while start < end:
            part = slice(start, min(start + _WINDOW, end))
            found = ((self._needs.least_room[part] < self._unmet) | self._is_too_much(part)).nonzero()[0]
            if len(found):
                return start + int(found[0])
            start = part.stop
        return end

    def _is_too_much(self, part: slice) -> NDArray[np.bool_]:
        """Return which of a part of the requests would not fit into the iteration."""
        packing, needs = self._packing, self._needs
        is_too_much: NDArray[np.bool_] = needs.num_tokens[part] > packing.tokens_left
        if packing.requests:
            cost_s = needs.cost_s[part] + packing.any_prefill_s * (needs.num_tokens[part] > 1)
            is_too_much |= packing.predicted_s + cost_s > self._budget_s
        return is_too_much

    def _take(self, index: int) -> bool:
        """Take one request, if it finds slots; return False when the iteration is full."""
        packing, needs, request = self._packing, self._needs, self._urgent.requests[index]
        if self._is_too_much(slice(index, index + 1))[0]:
            return False
        num_tokens, num_restored = int(needs.num_tokens[index]), int(needs.num_restored[index])
        most = self._make_room(index, num_restored + num_tokens)
        if most >= num_restored + num_tokens:
            if packing.add(request, num_tokens, num_restored) and request.row is not None:
                self._num_idle[request.row] = 0
            self._unmet = float("inf")
        elif not self._urgent.is_running[index]:
            self._unmet = min(self._unmet, most + 1)
        return packing.seqs_left > 0

    def _make_room(self, index: int, num_slots: int) -> int:
        """Take from others what a request needs to grow by `num_slots`, but nothing if even all that they hold would
        not do. Return by how much it could grow at most; or any number that is enough."""
        packing, request = self._packing, self._urgent.requests[index]
        room = packing.room_for(request, num_slots)
        if room >= num_slots:
            return room
        victims = self._victims(index)
        num_held = self._num_idle[victims]
        most = room + int(num_held.sum())
        if most >= num_slots:
            if not packing.has_cuts:
                del self._needs  # nothing is restored after cuts
            packing.make_room(request, num_slots, victims[num_held > 0].tolist())
            for row, num_kept in packing.kv.cuts.items():
                self._num_idle[row] = min(self._num_idle[row], num_kept)
        return most

    def _victims(self, index: int) -> Rows:
        """Return the rows that may lose slots: best-effort, the youngest first, then, if the request runs, later
        real-time ones, the latest first."""
        best_effort, real_time = self._by_age
        if not self._urgent.is_running[index]:
            return best_effort
        is_later = self._view.table.arrival_index[real_time] > self._urgent.requests[index].arrival_index
        return np.concatenate((best_effort, real_time[is_later]))

    @cached_property
    def _needs(self) -> _Needs:
        """What each request lacks, as long as this step cuts nothing; and once it does."""
        return _needs_of(self._view, self._packing, self._urgent)

    @cached_property
    def _by_age(self) -> tuple[Rows, Rows]:
        """The rows of started best-effort and real-time requests, the youngest first."""
        arrival_index, groups = self._view.table.arrival_index, self._packing.groups
        best_effort = np.concatenate((groups.be_decodes, groups.be_prefills))
        real_time = np.concatenate((groups.rt_decodes, groups.rt_prefills))
        return best_effort[np.argsort(-arrival_index[best_effort])], real_time[np.argsort(-arrival_index[real_time])]


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
    """Take all that `request` lacks, if a batch slot, the time and the slots are there."""
    if request.row is not None and packing.is_cut(request.row):
        return False
    num_restored = packing.num_to_restore(request, budget_s - packing.predicted_s)
    num_tokens = request.num_uncomputed - num_restored
    cost_s = packing.cost_s(request, num_tokens, num_restored)
    if packing.requests and packing.predicted_s + cost_s > budget_s:
        return False
    return packing.add(request, min(num_tokens, packing.tokens_left), num_restored) if packing.tokens_left else False
