"""The BROS policy: real-time requests by deadline, best-effort work in what their deadlines leave (design §3)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from heapq import merge
from typing import NamedTuple

import numpy as np

from backend.core.plan import StepPlan
from backend.core.request import Request
from backend.policy.bros.best_effort import BestEffortFill
from backend.policy.bros.kv_forecast import UNUSED_OF_BLOCK, Future
from backend.policy.bros.pausing import Aside
from backend.policy.bros.prefill_pacing import Pacing
from backend.policy.bros.token_window import AdaptiveWindow
from backend.policy.packing import Packing
from backend.policy.settings import SchedulerSettings
from backend.policy.state import table_loops
from backend.policy.state.latency_model import LatencyModel
from backend.policy.state.objectives import time_alone_s
from backend.policy.state.request_table import first_deadline_s
from backend.policy.state.table_loops import Rows
from backend.policy.view import SchedulerView, StepLimits, StepRecord

_CATCH_UP = 0.8  # a late decode asks for steps of this part of its TPOT SLO, so that it gains on its schedule
_IDLE_CAP_S = 0.25  # responsiveness cap while no real-time request came of late, or 8 steps where they are longer
_IDLE_STEPS = (
    8.0  # empty steps; best-effort work then loses an eighth to those that may come, whatever they may ask for
)
_ROUNDING = 1.0 + 1e-9  # the same times, added up in another order
_PREFILL_RESERVE = 1.1  # steps leave so many times the time that the prompts of real-time take
_SPARE_USE = 0.9  # part of the decodes' slack that late and best-effort work may use up
_MAX_MARGIN = 0.3
_EASY_LOAD = 0.65  # part of the slots that real-time takes, up to which best-effort may use all spare time
_FULL_LOAD = 0.95  # the same, from which it may use none
_SLOTS_RESERVE = 0.6  # of the slots that real-time holds even with no best-effort work, so much more stays out of reach
_RT_RESIDENT_PLACES = 0.8  # part of the places that more real-time requests than there are places may come to need
_PATIENT_STEPS = 2.0  # a decode whose slack outlasts so many steps can wait for a place
_MAX_CREDIT_S = 0.05  # best-effort time that may be saved up; where prompts are not chunked, enough for a whole one
_MAX_WHOLE_PROMPT_S = 1.0


class Bros:
    """Earliest deadline first for real-time, late ones behind; best-effort within the step budget and the window."""

    def __init__(self, settings: SchedulerSettings, limits: StepLimits) -> None:
        min_tokens = max(1, int(settings.be_min_share * limits.max_tokens))
        self._window = AdaptiveWindow(min_tokens, limits.max_tokens, settings.adaptive_window)
        self._pacing = Pacing(limits.max_seqs, settings.chunked_prefill)
        self._be_min_share = settings.be_min_share
        self._max_credit_s = _MAX_CREDIT_S if settings.chunked_prefill else _MAX_WHOLE_PROMPT_S
        self._be_credit_s = 0.0  # step time that best-effort work may claim against any real-time load

    @property
    def window_tokens(self) -> int:
        return self._window.tokens

    def order(self, request: Request) -> float:
        """RT by deadline; BE by arrival."""
        return first_deadline_s(request) if request.is_rt else 0.0

    def is_late(self, request: Request, latency: LatencyModel, now_s: float) -> bool:
        """Late: the next token would miss its deadline even if the request were served alone."""
        return request.is_rt and now_s + time_alone_s(request, latency) > first_deadline_s(request)

    def observe(self, step: StepRecord) -> None:
        self._window.observe(step.num_be_tokens, step.num_late > 0)
        self._pacing.observe(step)
        num_tokens = step.num_rt_tokens + step.num_be_tokens
        be_s = step.duration_s * step.num_be_tokens / max(1, num_tokens)
        credit_s = self._be_credit_s + self._be_min_share * step.duration_s - be_s
        self._be_credit_s = min(max(0.0, credit_s), self._max_credit_s)

    def plan(self, view: SchedulerView, now_s: float) -> StepPlan:
        step = _RealTimeStep(view, now_s)
        step.pack_decodes()
        late = step.pack_prefills()
        step.pack_patient_decodes()
        fill = BestEffortFill(view, step.packing, step.best_effort_end_s(), now_s)
        fill.pack_urgent()
        step.pack_late(late)
        num_decodes = len(step.packing.groups.be_decodes)
        allowance = self._pacing.allowance(step.packing, view.latency, num_decodes, step.sustainable_s().by_places)
        fill.pack(self._window.tokens, allowance, 0.0 if step.is_short_of_slots() else self._be_credit_s)
        return step.packing.plan(step.budget_s)


def _first_due(request: Request) -> tuple[float, int]:
    return (first_deadline_s(request), request.arrival_index)


def responsiveness_cap_s(view: SchedulerView, now_s: float) -> float:
    """Return the longest step: a real-time request that arrives just after its start must still make its TTFT."""
    if view.settings.responsiveness_cap_s is not None:
        return view.settings.responsiveness_cap_s
    objectives, latency = view.traffic.rt_objectives, view.latency
    tightest_s = objectives.tightest_ttft_slo_s(now_s)
    if tightest_s == float("inf"):
        return max(0.5 * objectives.usual_ttft_slo_s(now_s), min(_IDLE_STEPS * latency.c0, _IDLE_CAP_S))
    left_s = tightest_s - latency.prefill_s(objectives.longest_prompt, 0) - latency.c0 - latency.c5
    return min(0.5 * tightest_s, max(0.9 * left_s, 0.1 * tightest_s))


class Sustainable(NamedTuple):
    """Mean step times, in seconds, beyond which real-time requests run out of places or slots."""

    by_places: float
    by_slots: float


class _RealTimeStep:
    """The real-time part of one call of `plan`; the budgets tighten as requests with deadlines enter.

    On-time requests may use all of `budget_s`; late ones only `spare_budget_s`, which leaves part of the slack;
    best-effort ones no more than `be_budget_s` either, which heeds also what real-time cannot keep among themselves. As
    deadlines are cumulative, steps become no shorter in the long run: the slack just settles at
    1 / _SPARE_USE tokens, and that reserve lets a long prompt in when it comes.
    """

    def __init__(self, view: SchedulerView, now_s: float) -> None:
        self.packing = Packing(view)
        self._view = view
        self._now_s = now_s
        self._future = Future(view, is_rt=True)
        self._aside = Aside(view, self.packing, self._future, now_s)
        self._use = 1.0 - max(view.settings.budget_margin, min(_MAX_MARGIN, view.latency.overshoot_ratio))
        self._decodes = self.packing.groups.rt_decodes
        self._prefills = self.packing.groups.rt_prefills
        self._num_rt = len(self._decodes) + len(self._prefills)
        self._patient: Rows = self._decodes[:0]
        self._is_short = False  # of time, places or slots: a prefill in time was refused
        self._decodes_s = view.table.rt_step_s(view.latency, self._decodes) * _ROUNDING
        self._odd_s = self._shortest_s()
        self.spare_budget_s, self.be_budget_s = self._caps_s()
        self.budget_s = self.spare_budget_s

    def _shortest_s(self) -> float:
        """Return the step below which real-time itself cannot go on: one of all decodes, that leaves the prompts which
        arrive the time they take. Who asks for less is not to have it from the others, unless most of them do."""
        traffic = self._view.traffic
        prefill_share = _PREFILL_RESERVE * traffic.rt_demand.prefill_share(self._now_s, self._view.latency)
        with_prefills_s = self._decodes_s / max(1.0 - prefill_share, 1e-3)
        return min(with_prefills_s, _CATCH_UP * traffic.rt_objectives.usual_tpot_slo_s)

    def _caps_s(self) -> tuple[float, float]:
        """Return the longest steps, for real-time and for best-effort, that let in what may come."""
        cap_s = responsiveness_cap_s(self._view, self._now_s)
        objectives = self._view.traffic.rt_objectives
        usual_s = 0.5 * objectives.usual_ttft_slo_s(self._now_s)
        if cap_s < self._odd_s and objectives.tightest_ttft_slo_s(self._now_s) < usual_s:
            return max(self._decodes_s, usual_s), self._decodes_s
        return max(self._decodes_s, cap_s), max(self._decodes_s, cap_s)

    # Decodes

    def pack_decodes(self) -> None:
        """Take the decodes by deadline, late ones last; where time is short, those furthest ahead are left out.

        Where places or slots are short, those that can wait are left to `pack_patient_decodes`, the oldest first: by
        slack, new ones would overtake those that are about to end and to free their slots. There is no pacing beyond
        that: see docs/decisions/0001-real-time-runs-ahead.md.
        """
        rows = self._decodes
        if not len(rows):
            return
        table, latency = self._view.table, self._view.latency
        needed_s = latency.c0 + latency.c1
        slack_s, is_late, (rt_s, be_s) = table_loops.urgency(
            table.counts, table.times, rows, self._now_s, self._use, needed_s, latency.c2, self._odd_s, _CATCH_UP
        )
        self.budget_s = max(self._decodes_s, min(self.budget_s, rt_s))
        self.spare_budget_s = max(self._decodes_s, min(self.spare_budget_s, _SPARE_USE * rt_s))
        self.be_budget_s = max(self._decodes_s, min(self.be_budget_s, _SPARE_USE * be_s))
        order = np.lexsort((table.arrival_index[rows], slack_s, is_late))
        if self._num_rt + len(self._view.rt_waiting) > self._view.limits.max_seqs or self._aside.is_wanting():
            is_patient = (slack_s > _PATIENT_STEPS * self.budget_s)[order]
            patient = rows[order[is_patient]]
            self._patient = patient[table.arrival_index[patient].argsort()]
            order = order[~is_patient]
        self._take_decodes(rows[order])

    def pack_patient_decodes(self) -> None:
        """Take the decodes that would have left their places or slots to prefills, and did not have to."""
        patient, self._patient = self.packing.uncut(self._patient), self._patient[:0]
        if len(patient):
            self._take_decodes(patient)

    def _take_decodes(self, rows: Rows) -> None:
        """Take `rows` in order, only as many as the step's time allows, but one at least if nothing else is in it."""
        packing = self.packing
        for row in packing.add_decodes(rows[: packing.num_in_time(rows, self.budget_s)]):
            request = self._view.table.request(row)
            if self._make_room(request, 1):
                packing.add(request, 1)

    # Prefills

    def pack_prefills(self) -> list[Request]:
        """Take on-time prefills by deadline, chunked; return those found late."""
        late: list[Request] = []
        table = self._view.table
        resting = self._aside.resting
        rows = self._prefills[~np.isin(self._prefills, resting)] if resting else self._prefills
        started = sorted(table.requests_in(rows), key=self._key)
        for request in self._merged(started, self._view.rt_waiting.in_time()):
            if self.packing.has_cuts and self._aside.is_due(request):
                continue  # what was cut may push its copies out of the host pool
            if self._is_late(request):
                late.append(request)
            elif not self._pack_prefill(request, self.budget_s):
                self._leave_time_for(request)
                self._is_short = True
                return late
        self._bring_back(resting)
        return late

    def _bring_back(self, resting: list[int]) -> None:
        """Take requests that are aside and could rest on, as far as there is room anyway."""
        for row in resting:
            request = self._view.table.request(row)
            if self.packing.has_cuts or not self._future.has_room_for(request):
                break
            if not self._pack_prefill(request, self.budget_s):
                break

    def pack_late(self, late: list[Request]) -> None:
        """Take late prefills by deadline with what is left; they bind nothing. None begins while one in time waits."""
        relegated = iter(()) if self._is_short else self._view.rt_waiting.relegated()
        for request in self._merged(late, relegated):
            if self._is_short and request.row is None:
                continue
            if not self._pack_prefill(request, self.spare_budget_s):
                break

    def _merged(self, started: list[Request], waiting: Iterator[Request]) -> Iterator[Request]:
        """Return both by deadline; each is in that order already."""
        return merge(started, waiting, key=self._key) if started else waiting

    def _key(self, request: Request) -> tuple[float, int]:
        return (self._deadline_s(request), request.arrival_index)

    def _deadline_s(self, request: Request) -> float:
        return first_deadline_s(request) if request.row is None else float(self._view.table.deadline_s[request.row])

    def _is_late(self, request: Request) -> bool:
        """Late: not even a step that it ends now, behind what is in already, would bring its token in time."""
        latency = self._view.latency
        needed_s = self.packing.predicted_s + self.packing.any_prefill_s
        needed_s += latency.prefill_s(request.num_uncomputed, request.num_computed)
        return needed_s > self._use * (self._deadline_s(request) - self._now_s)

    def _pack_prefill(self, request: Request, budget_s: float) -> bool:
        """Take as large a chunk as time, tokens and slots allow; False if nothing of it fits."""
        packing = self.packing
        if request.row is None and not self._has_place_for(request):
            return False
        is_new = request.row is None or bool(self._view.table.is_preempted[request.row])
        if is_new and not self._future.has_room_for(request):
            if not self._aside.make_room_for(request, self._patient):
                return False
            if self._aside.is_due(request):  # it comes back in the next step, when the copies out are done
                self._future.take(request)
                return True
        time_left_s = budget_s - packing.predicted_s
        num_restored = packing.num_to_restore(request, time_left_s)
        copy_s = self._view.latency.c4 * num_restored
        num_tokens = packing.chunk(request, time_left_s - copy_s, packing.tokens_left, num_restored)
        if num_tokens < 1:
            return False
        if not self._make_room(request, num_restored + num_tokens):
            num_restored = 0
            num_tokens = packing.room_for(request) if self._view.settings.chunked_prefill else 0
        if num_tokens < 1 or not packing.add(request, num_tokens, num_restored):
            return False
        if is_new:
            self._future.take(request)
            self._num_rt += request.row is None
        self._leave_time_for(request, num_tokens + num_restored)
        return True

    def _has_place_for(self, request: Request) -> bool:
        """Return whether `request` can begin: with a place of its own, or with those that others can spare.

        See docs/decisions/0003-more-requests-than-places.md.
        """
        max_seqs = self._view.limits.max_seqs
        if self._num_rt < max_seqs:
            return True
        assert request.slo is not None
        own = min(1.0, self._full_step_s() / request.slo.tpot_slo_s)
        return self._places() + own <= _RT_RESIDENT_PLACES * max_seqs

    def _places(self) -> float:
        """Return how many places the real-time requests need on average, when steps are full of them.

        A request that asks for one token in S seconds needs a place in one of S / (time of a step) steps.
        """
        rows = np.concatenate((self._decodes, self._prefills))
        tpot_slo_s = self._view.table.tpot_slo_s[rows]
        num_begun = self._num_rt - len(rows)  # in this step: they need one
        return num_begun + float(np.minimum(1.0, self._full_step_s() / tpot_slo_s).sum())

    def _full_step_s(self) -> float:
        """Return the time of a step that decodes as many of the real-time requests as have places."""
        table, latency = self._view.table, self._view.latency
        rows = np.concatenate((self._decodes, self._prefills))
        mean_context = float(table.num_known[rows].mean()) if len(rows) else 0.0
        num_seqs = min(self._num_rt, self._view.limits.max_seqs)
        return latency.c0 + num_seqs * (latency.c1 + latency.c2 * mean_context)

    def _leave_time_for(self, request: Request, num_tokens: int = 0) -> None:
        """Tighten the budget so that `request`, of which this step computes `num_tokens`, can still be on time."""
        latency = self._view.latency
        slack_s = (self._deadline_s(request) - self._now_s) * self._use
        remaining = request.num_uncomputed - num_tokens
        if remaining:
            slack_s -= latency.c0 + latency.c5 + latency.prefill_s(remaining, request.num_computed + num_tokens)
        if slack_s > self.packing.predicted_s:
            self.budget_s = min(self.budget_s, slack_s)
            self.spare_budget_s = min(self.spare_budget_s, slack_s)

    # Memory

    def best_effort_end_s(self) -> float:
        """Return when best-effort work is to end: the spare budget, drawn in as real-time fills the slots.

        Best-effort work stretches steps, longer steps stretch the lives of real-time requests, and so more of them are
        there at once. Left alone, that loop ends with real-time requests preempting each other.
        """
        predicted_s = self.packing.predicted_s
        load = self._future.peak_ratio(_EASY_LOAD)
        budget_s = min(self.spare_budget_s, self.be_budget_s)
        share = min(1.0, max(0.0, (_FULL_LOAD - load) / (_FULL_LOAD - _EASY_LOAD)))
        return predicted_s + share * max(0.0, min(budget_s, self.sustainable_s().by_slots) - predicted_s)

    def is_short_of_slots(self) -> bool:
        """Whether even these steps are too long for the slots: then time is not what best-effort lacks."""
        return self.sustainable_s().by_slots < self.packing.predicted_s

    def sustainable_s(self) -> Sustainable:
        """Return the longest steps at which real-time finds places, and keeps to its part of the slots.

        By Little's law: what a request takes for a number of steps is in use as often at once as arrives in their time.
        The more slots real-time needs with best-effort work out of the way, the less can be taken back where the
        estimate errs, so the more is left (docs/decisions/0002-littles-law.md).
        """
        limits, traffic = self._view.limits, self._view.traffic
        block_rounding = UNUSED_OF_BLOCK * limits.block_size
        places, slots = traffic.rt_demand.per_step_s(self._now_s, traffic.rt_output_ratio, block_rounding)
        slots_alone = min(limits.num_slots, slots * self.packing.predicted_s)
        slots_usable = limits.num_slots - _SLOTS_RESERVE * slots_alone
        return Sustainable(limits.max_seqs / max(places, 1e-9), slots_usable / max(slots, 1e-9))

    def _make_room(self, request: Request, num_slots: int) -> bool:
        """Find slots: free ones, then best-effort ones, then those of real-time requests that are due later."""
        packing = self.packing
        if packing.room_for(request, num_slots) >= num_slots:
            return True
        if packing.make_room(request, num_slots, self._be_victims()):
            return True
        return request.row is not None and packing.make_room_whole(request, num_slots, self._rt_victims(request))

    def _be_victims(self) -> Iterator[int]:
        """Yield best-effort rows: those that cannot run now first, then the youngest."""
        table, groups = self._view.table, self.packing.groups
        rows = np.concatenate((groups.be_decodes, groups.be_prefills))
        is_running = ~table.is_preempted[rows]
        yield from self._idle(rows[np.lexsort((-table.arrival_index[rows], is_running))].tolist())

    def _rt_victims(self, request: Request) -> Iterator[int]:
        """Yield real-time rows whose first token was due after that of `request`, the latest first.

        The deadline of the next token would change with every token, and two requests preempt each other in turn.
        """
        requests = self._view.table.requests_in(np.concatenate((self._prefills, self._decodes)))
        later = [other for other in requests if _first_due(other) > _first_due(request)]
        yield from self._idle(
            other.row for other in sorted(later, key=_first_due, reverse=True) if other.row is not None
        )

    def _idle(self, rows: Iterable[int]) -> Iterator[int]:
        for row in rows:
            if self.packing.num_held(row) and not self.packing.is_in_step(row):
                yield row
