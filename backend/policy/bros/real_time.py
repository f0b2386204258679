"""How real-time requests enter a step: decodes by slack, prompts by deadline, late ones behind both."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import merge

import numpy as np

from backend.core.request import Request, first_deadline_s
from backend.policy.bros.budgets import SPARE_USE, Budgets
from backend.policy.bros.kv_forecast import KVForecast
from backend.policy.bros.pausing import Pausing
from backend.policy.packing import Packing
from backend.policy.state import table_loops
from backend.policy.state.objectives import time_alone_s
from backend.policy.state.table_loops import Rows
from backend.policy.state.waiting_queue import Key
from backend.policy.view import SchedulerView

_SPAN_S = 0.05  # seconds; deadlines of one such span count as equal
_DEFERRABLE_STEPS = 2.0  # step budgets that the slack of a decode outlasts if it can wait for a batch slot


def turn(deadline_s: float, request: Request) -> Key:
    """Return the order of prompts: by deadline, of about equal ones the shortest first, so that most are met."""
    return deadline_s // _SPAN_S, request.num_prompt


class RealTimeFill:
    """Takes real-time requests into a step that is empty, and tightens its budgets to what they need."""

    def __init__(self, view: SchedulerView, packing: Packing, budgets: Budgets, now_s: float) -> None:
        self._view = view
        self._packing = packing
        self._budgets = budgets
        self._now_s = now_s
        self._forecast = KVForecast(view, packing, is_rt=True)
        self._pausing = Pausing(view, packing, self._forecast, now_s)
        self._decodes = packing.groups.rt_decodes
        self._prefills = packing.groups.rt_prefills
        self._num_rt = len(self._decodes) + len(self._prefills)  # that run, with those that begin in this step
        self._deferred: Rows = self._decodes[:0]

    # Decodes

    def pack_decodes(self) -> None:
        """Take the decodes by slack, late ones last; where time is short, those furthest ahead are left out.

        Those that can wait are left to `pack_deferred_decodes`, the oldest first: a prompt that is due needs their
        time, batch slots and KV slots. By slack, new ones would overtake those that are about to end and to free their
        slots. Nothing else holds decodes back (docs/decisions/0001-real-time-runs-ahead.md).
        """
        rows = self._decodes
        if not len(rows):
            return
        slack_s, is_late = self._budgets.heed_decodes()
        table, least_s = self._view.table, _DEFERRABLE_STEPS * self._budgets.pace_s
        self._deferred = table_loops.deferrable(table.counts, rows, slack_s, least_s)
        if len(self._deferred) < len(rows):
            near = (slack_s <= least_s).nonzero()[0]
            order = np.lexsort((table.arrival_index[rows[near]], slack_s[near], is_late[near]))
            self._take_decodes(rows[near[order]])

    def pack_deferred_decodes(self) -> None:
        """Take the decodes that would have left their slots to prefills, and did not have to."""
        deferred, self._deferred = self._packing.uncut(self._deferred), self._deferred[:0]
        if len(deferred):
            self._take_decodes(deferred)

    def _take_decodes(self, rows: Rows) -> None:
        """Take `rows` in order, only as many as the step's time allows, but one at least if nothing else is in it."""
        packing = self._packing
        for row in packing.add_decodes(rows[: packing.num_in_time(rows, self._budgets.in_time_s)]):
            request = self._view.table.request(row)
            if self._make_room(request, 1):
                packing.add(request, 1)

    # Prompts, and preempted requests

    def pack_prefills(self) -> list[Request]:
        """Take prefills in time by deadline, chunked; return those found late, and those that can wait for such."""
        late: list[Request] = []
        has_late = next(self._view.rt_waiting.relegated(), None) is not None
        early = self._pausing.early
        started = self._prefills[~np.isin(self._prefills, early)] if early else self._prefills
        for request in self._by_deadline(self._view.table.requests_in(started), self._view.rt_waiting.in_time()):
            if self._packing.has_cuts and self._pausing.is_due(request):
                continue  # a cut one may push its copies out of the host pool
            if self._is_late(request) or (has_late and self._can_wait(request)):
                late.append(request)
                has_late = True
            elif not self._pack_prefill(request, self._budgets.prompt_s(self._deadline_s(request))):
                self._leave_time_for(request)
                return late
        self._resume(early)
        return late

    def pack_late(self, late: list[Request]) -> None:
        """Take prefills that are late, or wait for such, by deadline with the rest; they bind nothing."""
        for request in self._by_deadline(late, self._view.rt_waiting.relegated()):
            if not self._pack_prefill(request, self._budgets.late_s):
                break

    def _resume(self, early: list[int]) -> None:
        """Go on with paused requests that could stay paused, as far as there is room anyway."""
        for request in map(self._view.table.request, early):
            if self._packing.has_cuts or not self._forecast.has_room_for(request):
                break
            if not self._pack_prefill(request, self._budgets.prompt_s(self._deadline_s(request))):
                break

    def _by_deadline(self, started: list[Request], waiting: Iterator[Request]) -> Iterator[Request]:
        """Return both by deadline; `waiting` is in that order already."""
        return merge(sorted(started, key=self._key), waiting, key=self._key) if started else waiting

    def _key(self, request: Request) -> tuple[Key, int]:
        return turn(self._deadline_s(request), request), request.arrival_index

    def _deadline_s(self, request: Request) -> float:
        return first_deadline_s(request) if request.row is None else float(self._view.table.deadline_s[request.row])

    def _slack_s(self, request: Request) -> float:
        """Return the time that may be planned with until the next token of `request` is due."""
        return self._budgets.use * (self._deadline_s(request) - self._now_s)

    def _is_late(self, request: Request) -> bool:
        """Late: not even a step that it ends now, behind those already in, would bring its token in time."""
        needed_s = self._packing.predicted_s + self._packing.any_prefill_s
        needed_s += self._view.latency.prefill_s(request.num_uncomputed, request.num_computed)
        return needed_s > self._slack_s(request)

    def _can_wait(self, request: Request) -> bool:
        """Return whether half of its slack is enough for `request`, and more than others ask for.

        Otherwise prompts with an SLO of minutes would hold up one that is late by a second, and needs a moment.
        """
        least_s = max(self._view.traffic.rt_objectives.loosest_ttft_s, time_alone_s(request, self._view.latency))
        return 0.5 * self._slack_s(request) > least_s

    def _pack_prefill(self, request: Request, budget_s: float) -> bool:
        """Take as large a chunk as time, tokens and slots allow; False if nothing of it fits."""
        packing = self._packing
        if request.row is None and not self._has_batch_slot_for(request):
            return False
        is_new = request.row is None or bool(self._view.table.is_preempted[request.row])
        if is_new and not self._forecast.has_room_for(request):
            if not self._pausing.make_room_for(request, self._deferred):
                return False
            if self._pausing.is_due(request):  # it comes back in the next step, when the copies out are done
                self._forecast.take(request)
                return True
        num_tokens, num_restored = packing.chunk_by(request, budget_s, self._view.limits.num_slots)
        if num_tokens < 1:
            return False
        if not self._make_room(request, num_restored + num_tokens):
            num_restored = 0
            num_tokens = packing.room_for(request) if self._view.settings.chunked_prefill else 0
        if num_tokens < 1 or not packing.add(request, num_tokens, num_restored):
            return False
        if is_new:
            self._forecast.take(request)
            self._num_rt += request.row is None
        self._leave_time_for(request, num_tokens + num_restored)
        return True

    def _leave_time_for(self, request: Request, num_tokens: int = 0) -> None:
        """Tighten the budgets so that `request`, of which this step computes `num_tokens`, can still be in time."""
        latency = self._view.latency
        slack_s = self._slack_s(request)
        remaining = request.num_uncomputed - num_tokens
        if remaining:
            slack_s -= latency.c0 + latency.c5 + latency.prefill_s(remaining, request.num_computed + num_tokens)
        if slack_s > self._packing.predicted_s:
            self._budgets.heed(slack_s)

    # Batch slots

    def _has_batch_slot_for(self, request: Request) -> bool:
        """Return whether `request` can begin: on a batch slot of its own, or on those that others can spare.

        A request that asks for one token in S seconds needs a slot in one of S / (mean step) steps.
        """
        max_seqs, step_s = self._view.limits.max_seqs, self._view.traffic.step_s
        if self._num_rt < max_seqs:
            return True
        assert request.slo is not None
        rows = np.concatenate((self._decodes, self._prefills))
        num_begun = self._num_rt - len(rows)  # in this step: each needs one
        num_needed = num_begun + float(self._view.table.share_of_steps(rows, step_s).sum())
        return num_needed + min(1.0, step_s / request.slo.tpot_slo_s) <= SPARE_USE * max_seqs

    # KV slots

    def _make_room(self, request: Request, num_slots: int) -> bool:
        """Find KV slots: free ones, then best-effort ones, then those of real-time requests that came later."""
        packing, groups = self._packing, self._packing.groups
        if packing.room_for(request, num_slots) >= num_slots:
            return True
        best_effort = np.concatenate((groups.be_decodes, groups.be_prefills))
        if packing.make_room(request, num_slots, packing.victims(best_effort)):
            return True
        rows = np.concatenate((self._prefills, self._decodes))
        later = rows[self._view.table.arrival_index[rows] > request.arrival_index]
        return request.row is not None and packing.make_room_whole(request, num_slots, packing.victims(later))
