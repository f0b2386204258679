"""Whether the KV slots will suffice: the admission rule of BROS."""

from __future__ import annotations

from bisect import bisect_left
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from backend.core.request import Request
from backend.policy.packing import Packing
from backend.policy.state.table_loops import Rows
from backend.policy.view import SchedulerView

Counts = NDArray[np.int64]


def unused_of_block(view: SchedulerView) -> float:
    """Return the KV slots of its last block that a request leaves unused: half of them, on average."""
    return view.limits.block_size / 2


def peak_slots(num_held: Counts, num_remaining: Counts) -> int:
    """Return the most slots that requests will hold at once if each grows by one a step and leaves when it is done.

    When the request with r tokens to go ends, it and all that outlive it have grown by r.
    """
    order = np.argsort(-num_remaining, kind="stable")
    held, remaining = num_held[order], num_remaining[order]
    return int((np.cumsum(held) + np.arange(1, len(held) + 1) * remaining).max())


class KVForecast:
    """Whether one more request of a class can be let in, so that all of it that runs ends without preemption.

    Real-time requests count among themselves, since they may take the slots of the others. Best-effort ones count among
    themselves, in what real-time leaves at present. Preempted requests count for nothing until they are let in again. A
    slot that several share counts once: for the running request that owns it, or, where none does, as not there.
    Borrowable slots of a new request count until it borrows them.

    The peak is computed only where not all that the requests could ever hold has room.
    """

    def __init__(self, view: SchedulerView, packing: Packing, is_rt: bool) -> None:
        self._view = view
        self._packing = packing
        self._is_rt = is_rt
        self._taken: list[Request] = []
        self._num_running, self._most = packing.groups.rt_running if is_rt else packing.groups.be_running

    def has_room_for(self, request: Request, without: Rows | None = None) -> bool:
        """Return whether `request` could be let in if the rows `without` were preempted. True if nothing of its class
        runs."""
        rows = None if without is None else np.setdiff1d(self._rows, without, assume_unique=True)
        num_running = (self._num_running if rows is None else len(rows)) + len(self._taken)
        num_slots = self._num_slots(num_running)
        if not num_running or self._most + request.max_total_tokens <= num_slots:
            return True
        return self._peak(self._rows if rows is None else rows, [*self._taken, request]) <= num_slots

    def take(self, request: Request) -> None:
        """Count `request` as let in."""
        self._taken.append(request)
        self._most += request.max_total_tokens

    def make_room_for(self, request: Request, rows: Rows) -> Rows | None:
        """Preempt as few of `rows`, which run, as it takes to let `request` in, from the first one on; return them.

        None, with nothing done, if all together are not enough.
        """
        numbers = range(len(rows) + 1)
        num = bisect_left(numbers, True, key=lambda num: self.has_room_for(request, without=rows[:num]))
        if num not in numbers:
            return None
        for row in rows[:num].tolist():
            self._packing.cut(row, 0)
        table = self._view.table
        self._most -= int((table.max_total[rows[:num]] - table.num_borrowed[rows[:num]]).sum())
        self._rows = np.setdiff1d(self._rows, rows[:num], assume_unique=True)
        self._num_running = len(self._rows)
        return rows[:num]

    @cached_property
    def _rows(self) -> Rows:
        """Those that run."""
        groups = self._packing.groups
        decodes, prefills = groups[:2] if self._is_rt else groups[2:4]
        return np.concatenate((decodes, prefills[~self._view.table.is_preempted[prefills]]))

    def _num_slots(self, num_running: int) -> float:
        num_slots = self._view.limits.num_slots - self._view.kv.num_borrowed_cached
        if self._is_rt:
            return num_slots - num_running * unused_of_block(self._view)
        return num_slots * (1.0 - self._view.settings.kv_headroom_ratio) - self._packing.groups.num_rt_known

    def _peak(self, rows: Rows, requests: list[Request]) -> int:
        """Return the peak of `rows`, which run, and of `requests`, which are let in."""
        table, traffic = self._view.table, self._view.traffic
        num_output = table.num_known[rows] - table.num_prompt[rows], [request.num_output for request in requests]
        max_output = (
            table.max_total[rows] - table.num_prompt[rows],
            [request.sampling.max_tokens for request in requests],
        )
        held = table.num_known[rows] - table.num_borrowed[rows], [len(request.token_ids) for request in requests]
        ratio = traffic.rt_output_ratio if self._is_rt else traffic.be_output_ratio
        growth = expected_growth(ratio, np.concatenate(num_output), np.concatenate(max_output))
        return peak_slots(np.concatenate(held), growth)


def expected_growth(ratio: float, num_output: Counts, max_output: Counts) -> Counts:
    """Return the tokens a request will still produce: up to the usual part of its maximum, one at least."""
    growth: Counts = np.maximum(1, np.ceil(ratio * max_output).astype(np.int64) - num_output)
    return growth
