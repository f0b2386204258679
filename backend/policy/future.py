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
    """The expected growth of what runs, and of what this step lets in; computed when first asked for.

    Preempted requests count for nothing until they are let in again. rt_only: nor do best-effort requests, because
    real-time ones may take their slots.
    """

    def __init__(self, view: SchedulerView, rt_only: bool) -> None:
        self._view = view
        self._rt_only = rt_only
        self._growth: tuple[list[int], list[int]] | None = None

    def has_room_for(self, request: Request) -> bool:
        """Return whether `request` could be let in and all still end without preemption. True if nothing runs."""
        held, remaining = self._running()
        if not held:
            return True
        limits, settings = self._view.limits, self._view.settings
        num_slots = limits.num_slots
        if not self._rt_only:
            num_slots -= int(settings.kv_headroom_ratio * num_slots)
        own = self._num_expected(request)
        return peak_slots(np.array([*held, len(request.token_ids)]), np.array([*remaining, own])) <= num_slots

    def take(self, request: Request) -> None:
        """Count `request` as let in."""
        held, remaining = self._running()
        held.append(len(request.token_ids))
        remaining.append(self._num_expected(request))

    def _running(self) -> tuple[list[int], list[int]]:
        """Return tokens held once all is computed, and tokens expected to come, of the running requests."""
        if self._growth is None:
            table, traffic = self._view.table, self._view.traffic
            rows = table.rows()
            rows = rows[~table.is_preempted[rows] & (table.is_rt[rows] if self._rt_only else True)]
            ratio = np.where(table.is_rt[rows], traffic.rt_output_ratio, traffic.be_output_ratio)
            num_output = table.num_known[rows] - table.num_prompt[rows]
            max_output = table.max_total[rows] - table.num_prompt[rows]
            self._growth = table.num_known[rows].tolist(), expected_growth(ratio, num_output, max_output).tolist()
        return self._growth

    def _num_expected(self, request: Request) -> int:
        traffic = self._view.traffic
        ratio = traffic.rt_output_ratio if request.is_rt else traffic.be_output_ratio
        growth = expected_growth(
            np.array([ratio]), np.array([request.num_output]), np.array([request.sampling.max_tokens])
        )
        return int(growth[0])


def expected_growth(
    ratio: NDArray[np.float64], num_output: NDArray[np.int64], max_output: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the tokens a request will still produce: up to the usual part of its maximum; beyond, half of the rest."""
    usual = np.ceil(ratio * max_output).astype(np.int64) - num_output
    rest = max_output - num_output
    return np.maximum(1, np.minimum(rest, np.where(usual > 0, usual, (rest + 1) // 2)))
