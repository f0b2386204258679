"""Pausing: real-time decodes far ahead of their schedules give their KV slots to prompts that are due now."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from backend.core.request import Request
from backend.policy.bros.kv_forecast import KVForecast
from backend.policy.packing import Packing
from backend.policy.state.table_loops import Rows
from backend.policy.view import SchedulerView

_FAR_AHEAD = 20.0  # tokens ahead of its schedule from which a decode can be paused; below it, it must come back


class Pausing:
    """The paused real-time requests, which have given tokens and hold no KV slots, in one call of `plan`.

    Deadlines are cumulative, so a decode that ran ahead can pause and still be in time. When more arrives than the
    slots hold, its slots serve a prompt meanwhile and its KV goes to the host. Tokens given early carry real-time over
    a burst (docs/decisions/0004-pausing-decodes.md).

    due: rows of paused requests that must come back, the one that falls behind first in front. early: rows of those
    that could stay paused, in the same order.
    """

    def __init__(self, view: SchedulerView, packing: Packing, forecast: KVForecast, now_s: float) -> None:
        self._view = view
        self._packing = packing
        self._forecast = forecast
        self._now_s = now_s
        self.due: list[int] = []
        self.early: list[int] = []
        self._num_slots = 0.0  # that all paused requests will need at once, on average
        if len(packing.groups.rt_prefills):
            self._find(packing.groups.rt_prefills)

    def _find(self, prefills: Rows) -> None:
        table = self._view.table
        has_output = table.num_known[prefills] > table.num_prompt[prefills]
        rows = prefills[table.is_preempted[prefills] & has_output]
        ahead_tokens = self._ahead_tokens(rows)
        order = np.argsort(ahead_tokens, kind="stable")
        num_due = int(np.count_nonzero(ahead_tokens < _FAR_AHEAD))
        self.due, self.early = rows[order[:num_due]].tolist(), rows[order[num_due:]].tolist()
        self._num_slots = float(self._mean_slots(rows).sum())

    def is_due(self, request: Request) -> bool:
        """Return whether `request` is paused and should come back, at the cost of others if need be."""
        return request.row in self.due

    def make_room_for(self, request: Request, decodes: Rows) -> bool:
        """Pause those of `decodes` that are furthest ahead, as many as it takes to let `request` in.

        False, with nothing done, where that is not enough, or nothing is copied. False also where `request` is new and
        others are late already: pausing gains nothing under an overload that lasts.
        """
        if request.row is None and next(self._view.rt_waiting.relegated(), None) is not None:
            return False
        if not self._view.settings.checkpoints:
            return False
        rows = self._forecast.make_room_for(request, self._can_pause(self._packing.uncut(decodes)))
        if rows is None:
            return False
        self._num_slots += float(self._mean_slots(rows).sum())
        return True

    def _can_pause(self, decodes: Rows) -> Rows:
        """Return those of `decodes` that are far ahead, the furthest first.

        No more than the pool can serve in turn with all that are paused.
        """
        ahead_tokens = self._ahead_tokens(decodes)
        rows = decodes[np.argsort(-ahead_tokens, kind="stable")[: np.count_nonzero(ahead_tokens >= _FAR_AHEAD)]]
        num_slots = self._num_slots + np.cumsum(self._mean_slots(rows))
        can_pause: Rows = rows[num_slots <= self._view.limits.num_slots]
        return can_pause

    def _mean_slots(self, rows: Rows) -> NDArray[np.float64]:
        """Return the KV slots that each of `rows` needs on average."""
        table = self._view.table
        slots: NDArray[np.float64] = table.num_known[rows] * table.share_of_steps(rows, self._view.traffic.step_s)
        return slots

    def _ahead_tokens(self, rows: Rows) -> NDArray[np.float64]:
        """Return how many tokens ahead of their schedules the decodes in `rows` are."""
        table = self._view.table
        ahead: NDArray[np.float64] = (table.deadline_s[rows] - self._now_s) / table.tpot_slo_s[rows]
        return ahead
