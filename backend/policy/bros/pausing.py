"""Setting aside: real-time decodes far ahead of their schedules give their slots to prompts that are due now."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from backend.core.request import Request
from backend.policy.bros.kv_forecast import Future
from backend.policy.packing import Packing
from backend.policy.state.table_loops import Rows
from backend.policy.view import SchedulerView

_AHEAD_TOKENS = 20.0  # a decode at least so many tokens ahead of its schedule can be set aside
_BACK_TOKENS = 5.0  # one that was comes back when it is no further ahead than that, or when there is room anyway
_MAX_COPY_STEPS = 0.3  # part of a step that the copies of one, there and back, may take
_LIVES_TO_RETURN = 2.0  # lives of a request that are allowed for a whole pool of them to come back


class Aside:
    """The real-time requests without slots that have given tokens already, in one call of `plan`.

    Deadlines are cumulative, so a decode that ran ahead can pause and still be on time. When more arrives than the
    slots hold, its slots serve a prompt meanwhile and its KV goes to the host: the surplus of tokens given early is
    what carries real-time over a burst. The gap between `_AHEAD_TOKENS` and `_BACK_TOKENS` keeps two requests from
    preempting each other in turn. See docs/decisions/0004-setting-decodes-aside.md.
    """

    def __init__(self, view: SchedulerView, packing: Packing, future: Future, now_s: float) -> None:
        self._view = view
        self._packing = packing
        self._future = future
        self._now_s = now_s
        self.due: list[int] = []  # rows, the one that falls behind first in front
        self.resting: list[int] = []  # likewise
        self._num_slots = 0  # that all of them will need together
        if len(packing.groups.rt_prefills):
            self._find(packing.groups.rt_prefills)

    def _find(self, prefills: Rows) -> None:
        """Tell who of `prefills` is aside."""
        table = self._view.table
        has_output = table.num_known[prefills] > table.num_prompt[prefills]
        rows = prefills[table.is_preempted[prefills] & has_output]
        ahead_tokens = self._ahead_tokens(rows)
        order = np.argsort(ahead_tokens, kind="stable")
        num_due = int(np.count_nonzero(ahead_tokens <= _BACK_TOKENS))
        self.due, self.resting = rows[order[:num_due]].tolist(), rows[order[num_due:]].tolist()
        self._num_slots = int(table.num_known[rows].sum())

    def is_due(self, request: Request) -> bool:
        """Return whether `request` is aside and should come back, at the cost of others if need be."""
        return request.row in self.due

    def is_wanting(self) -> bool:
        """Return whether a request that waits, or that is due, finds no room but what others may leave."""
        first = next(self._view.rt_waiting.in_time(), None)
        if first is None or self._future.has_room_for(first):
            first = self._view.table.request(self.due[0]) if self.due else None
        return first is not None and not self._future.has_room_for(first) and self._pays()

    def make_room_for(self, request: Request, decodes: Rows) -> bool:
        """Set those of `decodes` aside that are furthest ahead, as many as it takes to let `request` in.

        False, with nothing done, if that would not do; if those aside could not all be back in time; if `request` is
        new while others are late already, since an overload that lasts gains nothing by copies; or where copies are
        slow.
        """
        is_new = request.row is None
        if is_new and next(self._view.rt_waiting.relegated(), None) is not None:
            return False
        if not self._pays():
            return False
        rows = self._back_in_time(self._packing.uncut(decodes))
        num_needed = self._future.num_to_leave(rows, request)
        if num_needed is None:
            return False
        rows = rows[:num_needed]
        for row in rows.tolist():
            self._packing.cut(row, 0)
        self._future.leave(rows)
        self._num_slots += int(self._view.table.num_known[rows].sum())
        return True

    def _pays(self) -> bool:
        """Return whether copies are quick: what they take, all that runs waits for."""
        decodes = self._packing.groups.rt_decodes
        if not len(decodes) or not self._view.settings.checkpoints:
            return False
        copies_s = 2.0 * self._view.latency.c4 * float(self._view.table.num_known[decodes].mean())
        return copies_s <= _MAX_COPY_STEPS * self._view.traffic.step_s

    def _back_in_time(self, decodes: Rows) -> Rows:
        """Return `decodes`, those furthest ahead first, up to where one more could not return in time behind those that
        are aside. They return as those that run end: a pool of them within a request's life."""
        table, traffic, num_slots = self._view.table, self._view.traffic, self._view.limits.num_slots
        ahead_tokens = self._ahead_tokens(decodes)
        num_ahead = np.count_nonzero(ahead_tokens >= _AHEAD_TOKENS)
        rows: Rows = decodes[np.argsort(-ahead_tokens, kind="stable")[:num_ahead]]
        if not len(rows):
            return rows
        num_aside = self._num_slots + np.cumsum(table.num_known[rows])
        max_output = float((table.max_total[rows] - table.num_prompt[rows]).mean())
        life_s = traffic.step_s * traffic.rt_output_ratio * max_output
        slack_s = table.deadline_s[rows] - self._now_s
        can_return = (num_aside <= num_slots) & (slack_s >= _LIVES_TO_RETURN * life_s * num_aside / num_slots)
        returning: Rows = rows[: np.count_nonzero(np.logical_and.accumulate(can_return))]
        return returning

    def _ahead_tokens(self, rows: Rows) -> NDArray[np.float64]:
        """Return how many tokens ahead of their schedules the decodes in `rows` are."""
        table = self._view.table
        ahead: NDArray[np.float64] = (table.deadline_s[rows] - self._now_s) / table.tpot_slo_s[rows]
        return ahead
