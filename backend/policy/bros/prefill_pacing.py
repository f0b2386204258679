"""When best-effort prompts are computed: a little of them in every step, or several together in few steps.

Both keep the places full; what differs is what a step costs (docs/decisions/0006-prompts-spread-or-gathered.md).
"""

from __future__ import annotations

from typing import NamedTuple

from backend.policy.packing import Packing
from backend.policy.state.latency_model import LatencyModel
from backend.policy.view import StepRecord

_MEMORY = 1 / 200  # weight of the newest step in the mean step time
_GAIN = 5.0  # one place in a hundred without a decode lets prompts stretch a step by so many parts in a hundred
_STOCK = 1 / 64  # of the places: so many more decodes than places are made ready, where prompts are gathered
_OVERSHOOT = 1.05  # real-time may come to want so much of the places: what is ahead of its schedule can wait


class Allowance(NamedTuple):
    """What best-effort prefills may take of a step: places kept from decodes for them, and the step's end in s."""

    num_places: int
    end_s: float


class Pacing:
    """Spreads best-effort prompts, unless any prefill at all costs a step more than a place does (`LatencyModel.c5`).

    Spread, they stretch each step to the mean one: further where places are empty, less where decodes find none.
    Gathered, they join the prefills of real-time, with a few more than there are places for, so that the places stay
    full until the next; alone they begin only once empty places have cost what a prefill costs.
    """

    def __init__(self, max_seqs: int, is_chunked: bool) -> None:
        self._max_seqs = max_seqs
        self._is_chunked = is_chunked
        self._num_stock = max(1, round(_STOCK * max_seqs))
        self._step_s = 0.0  # mean
        self._lost_s = 0.0  # step time · part of the places that was empty, since the last step with a prefill

    def observe(self, step: StepRecord) -> None:
        """Learn from a step that ran."""
        self._step_s += (step.duration_s - self._step_s) * (_MEMORY if self._step_s else 1.0)
        has_prefill = step.num_rt_tokens + step.num_be_tokens > step.num_seqs
        self._lost_s = 0.0 if has_prefill else self._lost_s + step.duration_s * (1.0 - step.num_seqs / self._max_seqs)

    def allowance(self, packing: Packing, latency: LatencyModel, num_decodes: int, sustainable_s: float) -> Allowance:
        """Return what prefills may take of a step that has its real-time part, and could take `num_decodes` besides.

        sustainable_s: mean step time at which real-time comes to fill the places.
        """
        num_free = packing.seqs_left - num_decodes  # below 0: so many decodes find no place
        step_s = self._step_s or latency.c0
        longest_s = float("inf") if step_s < _OVERSHOOT * sustainable_s else sustainable_s
        if self._is_chunked and latency.c5 <= step_s / self._max_seqs:
            return Allowance(1, min(longest_s, _spread_s(step_s, num_free / self._max_seqs)))
        if packing.has_prefill:
            return Allowance(min(self._num_stock, max(0, self._num_stock + num_free)), longest_s)
        will_lose_s = step_s * max(0, num_free) / self._max_seqs
        return Allowance(0, longest_s if self._lost_s + will_lose_s >= latency.c5 else 0.0)


def _spread_s(step_s: float, free: float) -> float:
    """Return how long prefills may make a step when that part of the places is free: any time if much is."""
    return step_s / (1.0 - _GAIN * free) if _GAIN * free < 1.0 else float("inf")
