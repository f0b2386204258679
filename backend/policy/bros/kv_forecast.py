"""Whether the KV slots will suffice: the admission rule of BROS."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from backend.core.request import Request
from backend.policy.state import table_loops
from backend.policy.state.table_loops import Rows
from backend.policy.view import SchedulerView

Counts = NDArray[np.int64]

UNUSED_OF_BLOCK = 0.6  # part of its last block that a real-time request leaves unused: 1/2, and ends of answers


def peak_slots(num_held: Counts, num_remaining: Counts) -> int:
    """Return the most slots that requests will hold at once if each grows by one a step and leaves when it is done.

    When the request with r tokens to go ends, it and all that outlive it have grown by r.
    """
    if not len(num_held):
        return 0
    order = np.argsort(-num_remaining, kind="stable")
    held, remaining = num_held[order], num_remaining[order]
    return int((np.cumsum(held) + np.arange(1, len(held) + 1) * remaining).max())


class KVForecast:
    """Whether one more request of a class can be let in, so that all of it that runs ends without preemption.

    Real-time requests count among themselves, since they may take the slots of the others. Best-effort ones count among
    themselves, in what real-time leaves. That is what it used at most in the last seconds, because those that end are
    followed by others. Preempted requests count for nothing until they are let in again.

    The peak is computed only where not all that the requests could ever hold has room.
    """

    def __init__(self, view: SchedulerView, is_rt: bool) -> None:
        self._view = view
        self._is_rt = is_rt
        # rows, and slots that all of them could ever hold together
        self._rows, self._most = table_loops.running(view.table.counts, view.table.flags, is_rt)
        self._taken: list[Request] = []
        self._growth: tuple[Counts, Counts] | None = None

    def has_room_for(self, request: Request) -> bool:
        """Return whether `request` could be let in. True if nothing of its class runs."""
        if not len(self._rows) and not self._taken:
            return True
        num_slots = self._num_slots()
        return self._most + request.max_total_tokens <= num_slots or self._peak([request]) <= num_slots

    def take(self, request: Request) -> None:
        """Count `request` as let in."""
        self._taken.append(request)
        self._most += request.max_total_tokens

    def num_to_leave(self, rows: Rows, request: Request) -> int | None:
        """Return how many of `rows`, running requests, must stop in order for `request` to be let in; None if all
        together are not enough."""
        before = self._rows, self._most, self._growth
        try:
            self.leave(rows)
            if not len(rows) or not self.has_room_for(request):
                return None
            self._rows, self._most, self._growth = before
            num_left = 0
            while not self.has_room_for(request):
                self.leave(rows[num_left : num_left + 1])
                num_left += 1
            return num_left
        finally:
            self._rows, self._most, self._growth = before

    def leave(self, rows: Rows) -> None:
        """Count running requests as preempted."""
        self._rows = np.setdiff1d(self._rows, rows, assume_unique=True)
        self._most -= int(self._view.table.max_total[rows].sum())
        self._growth = None

    def _num_slots(self) -> float:
        num_slots = self._view.limits.num_slots
        if self._is_rt:
            num_running = len(self._rows) + len(self._taken)
            return num_slots - UNUSED_OF_BLOCK * self._view.limits.block_size * num_running
        return num_slots * (1.0 - self._view.settings.kv_headroom_ratio) - self._view.traffic.rt_slots

    def _peak(self, more: list[Request]) -> int:
        """Return the peak of the requests that run, of those let in since, and of `more`."""
        held, remaining = self._running()
        if added := self._taken + more:
            num_output = np.array([request.num_output for request in added])
            max_output = np.array([request.sampling.max_tokens for request in added])
            own = expected_growth(self._ratio(), num_output, max_output)
            held = np.concatenate((held, [len(request.token_ids) for request in added]))
            remaining = np.concatenate((remaining, own))
        return peak_slots(held, remaining)

    def _running(self) -> tuple[Counts, Counts]:
        """Return tokens held once all is computed, and tokens expected to come, of the running requests."""
        if self._growth is None:
            table, rows = self._view.table, self._rows
            num_known, num_prompt = table.num_known[rows], table.num_prompt[rows]
            growth = expected_growth(self._ratio(), num_known - num_prompt, table.max_total[rows] - num_prompt)
            self._growth = num_known, growth
        return self._growth

    def _ratio(self) -> float:
        traffic = self._view.traffic
        return traffic.rt_output_ratio if self._is_rt else traffic.be_output_ratio


def expected_growth(ratio: float, num_output: Counts, max_output: Counts) -> Counts:
    """Return the tokens a request will still produce: up to the usual part of its maximum; beyond, half of the rest."""
    usual = np.ceil(ratio * max_output).astype(np.int64) - num_output
    rest = max_output - num_output
    return np.maximum(1, np.minimum(rest, np.where(usual > 0, usual, (rest + 1) // 2)))
