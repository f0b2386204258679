"""How much arrives per second, and what it will hold at once by Little's law."""

from __future__ import annotations

import math
from dataclasses import dataclass

from backend.core.request import Request
from backend.policy.state.objectives import RECENT_S

_MEMORY_S = 20.0  # seconds that the rates go back


def kept(last_s: float, now_s: float, memory_s: float) -> float:
    """Return the part of a sum of the last `memory_s` or so that was up to date at `last_s` and is left at `now_s`."""
    return math.exp(min(0.0, (last_s - now_s) / memory_s))


def rate_of_one(elapsed_s: float, last_s: float, now_s: float, memory_s: float) -> float:
    """Return the rate at `now_s` of a decayed sum of 1 over `elapsed_s` of arrivals, the last at `last_s`."""
    return kept(last_s, now_s, memory_s) / (memory_s * (1.0 - math.exp(-elapsed_s / memory_s)))


@dataclass(slots=True, eq=False)
class ArrivalRate:
    """What the arrivals of one class ask for per second, averaged over the last _MEMORY_S or so.

    With a prompt of p tokens and n output tokens, a request holds a batch slot for n steps. It holds
    Σ (p + i) ≈ n·(p + n/2) KV slots · steps.
    """

    _first_s: float = float("inf")
    _last_s: float = 0.0
    _tokens: float = 0.0  # decayed sums over arrivals, of the most tokens m that each may put out,
    _prompt_products: float = 0.0  # of m·p
    _half_squares: float = 0.0  # of m²/2

    def note(self, request: Request) -> None:
        """Count an arrival."""
        self._first_s = min(self._first_s, request.arrival_s)
        left = kept(self._last_s, request.arrival_s, _MEMORY_S)
        self._last_s = max(self._last_s, request.arrival_s)
        num_tokens = request.sampling.max_tokens
        self._tokens = left * self._tokens + num_tokens
        self._prompt_products = left * self._prompt_products + num_tokens * request.num_prompt
        self._half_squares = left * self._half_squares + 0.5 * num_tokens**2

    def per_step_s(self, now_s: float, output_ratio: float) -> tuple[float, float]:
        """Return the batch slots and the KV slots that will be in use at once for each second that a step takes.

        output_ratio: part of max_tokens that is usually put out.
        """
        if not self._tokens:
            return 0.0, 0.0
        elapsed_s = max(now_s - self._first_s, RECENT_S)  # the first few say little about a rate
        rate = rate_of_one(elapsed_s, self._last_s, now_s, _MEMORY_S)
        batch_slots = rate * output_ratio * self._tokens
        products = output_ratio * self._prompt_products + output_ratio**2 * self._half_squares
        return batch_slots, rate * products
