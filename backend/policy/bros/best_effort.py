"""How BROS fills the rest of a step with best-effort work (design §3, packing 3)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np

from backend.core.request import Request
from backend.policy.bros.finish_by import Job, urgent
from backend.policy.bros.kv_forecast import KVForecast
from backend.policy.packing import Packing
from backend.policy.state.table_loops import Rows
from backend.policy.view import SchedulerView

_MAX_LOOKED_AT = 64  # waiting requests with a finish-by deadline that a step looks at, by deadline
_MIN_SHARE = 0.25  # part of a step that best-effort is expected to get, whatever real-time leaves of this one


class BestEffortFill:
    """Takes best-effort work into a step that already has its real-time part, and that is to end in `end_s`."""

    def __init__(self, view: SchedulerView, packing: Packing, end_s: float, now_s: float) -> None:
        self._view = view
        self._packing = packing
        self._end_s = self._prefill_end_s = end_s
        self._now_s = now_s
        self._forecast = KVForecast(view, is_rt=False)
        self._decodes = packing.groups.be_decodes
        self._prefills = packing.groups.be_prefills
        self._urgent: list[Request] = []
        self._is_short = False  # an urgent request found no slots
        # Each running real-time request may soon need a block; best-effort that has not begun leaves them that.
        num_rt = len(packing.groups.rt_decodes) + len(packing.groups.rt_prefills)
        self._reserve = num_rt * view.limits.block_size

    def pack_urgent(self) -> None:
        """Take the requests whose finish-by deadline is near, over the slots of others."""
        self._urgent = self._find_urgent()
        for request in self._urgent:
            if not (self._admit_urgent(request) if request.row is None else self._continue(request)):
                self._is_short = True

    def pack(self, prefill_end_s: float, credit_s: float) -> None:
        """Fill the step: decodes, those nearest their end first, but for one batch slot; then what has begun, the
        oldest first. New ones follow in order of arrival, and decodes take the batch slots that these left.

        Prefills are to end in `prefill_end_s`. `credit_s` may be taken beyond the ends.
        """
        with_credit_s = self._packing.predicted_s + credit_s
        self._end_s = max(self._end_s, with_credit_s)
        self._prefill_end_s = max(min(self._end_s, prefill_end_s), with_credit_s)
        has_prefills = len(self._prefills) > 0 or len(self._view.be_waiting) > 0
        left = self._pack_decodes(self._by_end(self._decodes), int(has_prefills))
        if self._continue_started() and not self._is_short:
            self._admit_waiting()
        self._pack_decodes(left)

    # Finish-by deadlines

    def _find_urgent(self) -> list[Request]:
        """Return the requests with a deadline that must be served now, by deadline (see `finish_by`)."""
        table = self._view.table
        rows = np.concatenate((self._decodes, self._prefills))
        started = table.requests_in(rows[table.deadline_s[rows] < np.inf])
        waiting = list(islice(self._view.be_deadlines.in_time(), _MAX_LOOKED_AT))
        requests = started + waiting
        if not requests:
            return []
        jobs = list(map(self._job, requests))
        mean_s = sum(job.serial_s for job in jobs[len(started) :]) / max(1, len(waiting))
        more_s = mean_s * (len(self._view.be_deadlines) - len(waiting))
        share = max(_MIN_SHARE, 1.0 - self._packing.predicted_s / max(self._end_s, 1e-9))
        return [requests[index] for index in urgent(jobs, self._now_s, more_s, 1.0 / share)]

    def _job(self, request: Request) -> Job:
        """Predict the rest of `request`, as if best-effort had the machine."""
        assert request.deadline_s is not None
        traffic, latency = self._view.traffic, self._view.latency
        serial_s = latency.prefill_s(request.num_uncomputed, request.num_computed)
        num_to_go = max(1.0, traffic.be_output_ratio * request.sampling.max_tokens - request.num_output)
        return Job(request.deadline_s, serial_s, num_to_go * traffic.step_s)

    def _admit_urgent(self, request: Request) -> bool:
        """Take the first chunk of a waiting request; those without need give up their slots for it, the youngest first.

        False for lack of slots only.
        """
        packing = self._packing
        if self._forecast.has_room_for(request) and self._admit(request):
            return True
        num_slots = len(request.token_ids) + self._reserve
        if packing.room_for(request) < num_slots and not packing.make_room_whole(
            request, num_slots, self._without_need()
        ):
            return False
        num_tokens = self._chunk(request, packing.room_for(request))
        if num_tokens > 0 and packing.add(request, num_tokens):
            self._forecast.take(request)
        return True

    def _without_need(self) -> Iterator[int]:
        """Return best-effort rows that are not urgent, the youngest first."""
        table = self._view.table
        rows = np.concatenate((self._decodes, self._prefills))
        youngest = rows[np.argsort(-table.arrival_index[rows])].tolist()
        return self._packing.victims(row for row in youngest if table.request(row) not in self._urgent)

    # The rest

    def _by_end(self, rows: Rows) -> Rows:
        table = self._view.table
        order = np.lexsort((table.arrival_index[rows], table.max_total[rows] - table.num_known[rows]))
        by_end: Rows = rows[order]
        return by_end

    def _pack_decodes(self, rows: Rows, num_kept: int = 0) -> Rows:
        """Take `rows` in order, but leave `num_kept` batch slots; return those that found no time or slot."""
        packing = self._packing
        if not len(rows) or packing.seqs_left <= num_kept:
            return rows
        if self._urgent or packing.has_cuts:
            rows = np.array([row for row in rows.tolist() if self._is_free(row)], np.int64)
        num_in_time = packing.num_in_time(rows, self._end_s)
        num_taken = max(0, min(num_in_time, packing.seqs_left - num_kept))
        packing.add_decodes(rows[:num_taken])
        return rows[num_taken:]

    def _is_free(self, row: int) -> bool:
        return not self._packing.is_cut(row) and self._view.table.request(row) not in self._packing.num_new_tokens

    def _continue_started(self) -> bool:
        """Go on with what has begun; return whether nothing that has begun was left waiting for room."""
        table = self._view.table
        rows = self._prefills
        rows = rows[table.arrival_index[rows].argsort()]
        waits = [row for row in rows.tolist() if self._is_free(row) and not self._continue(table.request(row))]
        return not waits

    def _continue(self, request: Request) -> bool:
        """Take a chunk of a request that has a row, restored as far as that is cheaper; False for lack of slots."""
        assert request.row is not None
        packing = self._packing
        if not self._is_free(request.row) or packing.seqs_left < 1:
            return True
        is_preempted = bool(self._view.table.is_preempted[request.row])
        room = packing.room_for(request, self._reserve + request.num_uncomputed)
        if is_preempted and not self._can_come_back(request, room):
            return False
        num_restored = packing.num_to_restore(request, self._prefill_end_s - packing.predicted_s)
        num_tokens = self._chunk(request, room - num_restored, num_restored)
        if num_tokens > 0 and packing.add(request, num_tokens, num_restored) and is_preempted:
            self._forecast.take(request)
        return room > 0

    def _can_come_back(self, request: Request, room: int) -> bool:
        """A preempted request comes back when all it lost fits and will go on fitting: it is to stay this time."""
        is_short = self._packing.has_cuts or room - self._reserve < request.num_uncomputed
        return not is_short and self._forecast.has_room_for(request)

    def _chunk(self, request: Request, room: int, num_restored: int = 0) -> int:
        time_left_s = self._prefill_end_s - self._packing.predicted_s - self._view.latency.c4 * num_restored
        return self._packing.chunk(request, time_left_s, room, num_restored)

    def _admit_waiting(self) -> None:
        view, packing = self._view, self._packing
        for request in view.be_alike.in_turn(view.be_waiting.in_time(), packing.num_new_tokens):
            if packing.seqs_left < 1 or packing.tokens_left < 1 or not self._admit(request):
                break

    def _admit(self, request: Request) -> bool:
        """Take the first chunk of a waiting request, if all that run will find slots until they end."""
        packing = self._packing
        room = packing.room_for(request, self._reserve + request.num_uncomputed)
        num_tokens = self._chunk(request, room - self._reserve)
        if num_tokens < 1 or not self._forecast.has_room_for(request) or not packing.add(request, num_tokens):
            return False
        self._forecast.take(request)
        return True
