"""Whether the KV slots will suffice: the admission rule of BROS."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from backend.policy.view import SchedulerView
from backend.request import Request


def peak_slots(num_held: NDArray[np.int64], num_remaining: NDArray[np.int64]) -> int:
    """Return the most slots that requests will hold at once if each grows by one a step and leaves when it is done.

    When the request with r tokens to go ends, it and all that outlive it have grown by r.
    """
    if not len(num_held):
        return 0
    order = np.argsort(-num_remaining, kind="stable")
    held, remaining = num_held[order], num_remaining[order]
    return int((np.cumsum(held) + np.arange(1, len(held) + 1) * remaining).max())


class Future:
    """The expected growth of what runs, and of what this step admits; computed when first asked for.

    rt_only: best-effort requests count for nothing, because real-time ones may take their slots.
    """

    def __init__(self, view: SchedulerView, rt_only: bool) -> None:
        self._view = view
        self._rt_only = rt_only
        self._held: list[int] | None = None
        self._remaining: list[int] = []

    def has_room_for(self, request: Request) -> bool:
        """Return whether `request` could be admitted and all still end without preemption. True if nothing runs."""
        held, remaining = self._state()
        if not held:
            return True
        num_slots = self._view.limits.num_slots
        if not self._rt_only:
            num_slots -= int(self._view.settings.kv_headroom_ratio * num_slots)
        peak = peak_slots(
            np.array([*held, len(request.token_ids)]), np.array([*remaining, self._num_expected(request)])
        )
        return peak <= num_slots

    def take(self, request: Request) -> None:
        """Count `request` as admitted."""
        held, remaining = self._state()
        held.append(len(request.token_ids))
        remaining.append(self._num_expected(request))

    def _state(self) -> tuple[list[int], list[int]]:
        if self._held is None:
            table, traffic, rows = self._view.table, self._view.traffic, self._view.table.rows()
            if self._rt_only:
                rows = rows[table.is_rt[rows]]
            num_output = table.num_known[rows] - table.num_prompt[rows]
            max_output = table.max_total[rows] - table.num_prompt[rows]
            ratio = np.where(table.is_rt[rows], traffic.rt_output_ratio, traffic.be_output_ratio)
            expected = np.ceil(ratio * max_output).astype(np.int64) - num_output
            self._held = table.num_known[rows].tolist()
            self._remaining = np.clip(expected, 1, np.maximum(1, max_output - num_output)).tolist()
        return self._held, self._remaining

    def _num_expected(self, request: Request) -> int:
        traffic = self._view.traffic
        ratio = traffic.rt_output_ratio if request.is_rt else traffic.be_output_ratio
        return max(1, int(ratio * request.sampling.max_tokens))
