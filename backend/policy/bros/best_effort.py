"""How BROS fills the rest of a step with best-effort work (design §3, packing 3)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from itertools import islice

import numpy as np

from backend.core.request import Request
from backend.policy.bros.finish_by import Job, urgent
from backend.policy.bros.kv_forecast import KVForecast
from backend.policy.packing import Packing
from backend.policy.state.request_table import Running
from backend.policy.state.table_loops import Rows
from backend.policy.view import SchedulerView

_URGENT_SHARE = 0.5  # of best-effort that requests with a deadline may take from those without
_WORTH = 4.0  # times what the first prefill of a step adds: a chunk of less is left to a later, longer step


class BestEffortFill:
    """Takes best-effort work into a step that already has its real-time part, and that is to end in `end_s`.

    longer_later: whether that is so soon because of decodes, which gain time in steps without a prefill.
    """

    def __init__(
        self, view: SchedulerView, packing: Packing, end_s: float, now_s: float, *, longer_later: bool
    ) -> None:
        self._view = view
        self._packing = packing
        self._end_s = self._prefill_end_s = end_s
        self._now_s = now_s
        self._forecast = KVForecast(view, packing, is_rt=False)
        self._decodes = packing.groups.be_decodes
        self._prefills = packing.groups.be_prefills
        self._urgent: list[Request] = []
        self._is_short = False  # an urgent request found no slots
        self._longer_later = longer_later

    def pack_urgent(self) -> None:
        """Take the requests whose finish-by deadline is near, over the slots of others.

        Where some have no deadline, a part of the batch slots, KV slots and time is left to the order of arrival.
        """
        self._urgent = self._find_urgent()
        if self._urgent and self._has_others:
            start_s = self._packing.predicted_s
            self._prefill_end_s = start_s + _URGENT_SHARE * (self._end_s - start_s)
        for request in self._urgent:
            if request.row is not None:
                has_room = self._continue(request)
            else:
                has_room = self._is_beyond_share(request) or self._admit_urgent(request)
            self._is_short |= not has_room

    def pack(self, prefill_end_s: float, credit_s: float) -> None:
        """Fill the step, the oldest first: decodes, but for one batch slot, then prompts that have begun, then new
        ones. Decodes take the batch slots that these left.

        Prefills are to end in `prefill_end_s`. `credit_s` may be taken beyond the ends.
        """
        self._longer_later &= credit_s == 0.0  # what best-effort claims is not put off
        with_credit_s = self._packing.predicted_s + credit_s
        self._end_s = max(self._end_s, with_credit_s)
        self._prefill_end_s = max(min(self._end_s, prefill_end_s), with_credit_s)
        has_prefills = len(self._prefills) > 0 or len(self._view.be_waiting) > 0
        left = self._pack_decodes(self._oldest_first(self._decodes), int(has_prefills))
        if self._continue_started() and not self._is_short:
            self._admit_waiting()
        self._pack_decodes(left)

    # Finish-by deadlines

    def _find_urgent(self) -> list[Request]:
        """Return the requests with a deadline that must be served now, by deadline (see `finish_by`)."""
        started: list[Request] = []
        if self._packing.groups.num_be_deadlines:
            table, rows = self._view.table, self._rows
            started = table.requests_in(rows[table.deadline_s[rows] < np.inf])
        waiting = islice(self._view.be_deadlines.in_time(), self._view.limits.max_seqs)
        if not (requests := [*started, *waiting]):
            return requests
        return [requests[index] for index in urgent(list(map(self._job, requests)), self._now_s)]

    @cached_property
    def _rows(self) -> Rows:
        """Those that have begun."""
        return np.concatenate((self._decodes, self._prefills))

    @cached_property
    def _has_others(self) -> bool:
        """Whether some request has no deadline."""
        num = len(self._rows) + len(self._view.be_waiting)
        return num > self._packing.groups.num_be_deadlines + len(self._view.be_deadlines)

    def _is_beyond_share(self, request: Request) -> bool:
        """Return whether a request that does not run would be one too many with a deadline, where others have none."""
        if request.deadline_s is None or not self._has_others:
            return False
        limits, running = self._view.limits, self._with_deadline
        most_slots = running.most_slots + request.max_total_tokens
        is_full = running.num >= _URGENT_SHARE * limits.max_seqs or most_slots > _URGENT_SHARE * limits.num_slots
        return running.num > 0 and is_full

    @cached_property
    def _with_deadline(self) -> Running:
        """Those with a deadline that run, with those that this step lets in."""
        table, rows = self._view.table, self._rows
        rows = rows[(table.deadline_s[rows] < np.inf) & ~table.is_preempted[rows]]
        return Running(len(rows), int(table.max_total[rows].sum()))

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
        table = self._view.table
        without_need = list(self._without_need())
        running = np.array([row for row in without_need if not table.is_preempted[row]], np.int64)
        if self._forecast.make_room_for(request, running) is None:
            return False
        num_slots = min(len(request.token_ids), self._packing.tokens_left)
        self._packing.make_room_whole(request, num_slots, without_need)
        self._take(request)
        return True

    def _without_need(self) -> Iterator[int]:
        """Yield rows that are not urgent. Those without a deadline keep their share."""
        table, rows = self._view.table, self._rows
        running = rows[(table.deadline_s[rows] == np.inf) & ~table.is_preempted[rows]]
        num_spare = table.max_total[running].sum() - (1.0 - _URGENT_SHARE) * self._view.limits.num_slots
        for row in self._packing.victims(rows):
            request = table.request(row)
            if request.deadline_s is None and not table.is_preempted[row]:
                if num_spare <= 0.0:
                    continue
                num_spare -= request.max_total_tokens
            if request not in self._urgent:
                yield row

    # The rest

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
        return not self._packing.is_cut(row) and not self._packing.is_in_step(row)

    def _continue_started(self) -> bool:
        """Go on with what has begun; return whether nothing that has begun was left waiting for room."""
        begun = self._view.table.requests_in(self._oldest_first(self._prefills))
        has_room = [self._continue(request) for request in begun]
        return all(has_room)

    def _oldest_first(self, rows: Rows) -> Rows:
        ordered: Rows = rows[self._view.table.arrival_index[rows].argsort()]
        return ordered

    def _continue(self, request: Request) -> bool:
        """Take a chunk of a request that has a row; False for lack of slots.

        A preempted one comes back when all it lost fits and will go on fitting: it is to stay this time.
        """
        packing = self._packing
        assert request.row is not None
        if not self._is_free(request.row) or packing.seqs_left < 1:
            return True
        if not self._view.table.is_preempted[request.row]:
            return self._take(request) or packing.room_for(request, 1) > 0
        if self._is_beyond_share(request):
            return True
        has_room = packing.room_for(request, request.num_uncomputed) >= request.num_uncomputed
        return has_room and not packing.has_cuts and self._take(request)

    def _admit_waiting(self) -> None:
        view, packing = self._view, self._packing
        waiting = view.be_alike.in_turn(view.be_waiting.in_time(), packing.newcomers)
        while packing.seqs_left > 0 and packing.tokens_left > 0:  # each that waits is looked up in the cache
            request = next(waiting, None)
            if request is None or not self._take(request):
                break

    def _take(self, request: Request) -> bool:
        """Take a chunk; of a request that does not run, only if all that run will find slots until they end."""
        packing = self._packing
        room = packing.room_for(request, request.num_uncomputed)
        num_tokens, num_restored = packing.chunk_by(request, self._prefill_end_s, room)
        is_new = request.row is None or bool(self._view.table.is_preempted[request.row])
        if num_tokens < 1 or self._is_dear(request, num_tokens, num_restored, room):
            return False
        if is_new and not self._forecast.has_room_for(request):
            return False
        if not packing.add(request, num_tokens, num_restored):
            return False
        if is_new:
            self._forecast.take(request)
        if is_new and request.deadline_s is not None and self._has_others:
            num, most_slots = self._with_deadline
            self._with_deadline = Running(num + 1, most_slots + request.max_total_tokens)
        return True

    def _is_dear(self, request: Request, num_tokens: int, num_restored: int, room: int) -> bool:
        """Return whether time makes a chunk short beside what the first prefill of a step costs, and a later step
        may have more time."""
        packing = self._packing
        num_left = request.num_uncomputed - num_restored
        if not (self._longer_later and packing.requests):
            return False
        if num_tokens >= min(num_left, packing.tokens_left, room - num_restored):
            return False
        chunk_s = self._view.latency.prefill_s(num_tokens, request.num_computed + num_restored)
        return chunk_s < _WORTH * packing.any_prefill_s
